"""Photographs in folders, tar shards and zip files."""

import errno
import io
import os
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from model_export.data import sources
from tests.conftest import encoded
from tests.unit.data.test_batching import photographs, write_folder, write_shard

PHOTO = next(iter(photographs(1).values()))


def tree(*names: str) -> dict[str, bytes]:
    return dict.fromkeys(names, PHOTO)


def write_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def names(*paths: Path) -> list[str]:
    return [entry.name for entry in sources.find(paths)]


def vast(format_: str) -> bytes:
    """Return a small image whose header states 60,000 x 60,000 pixels."""
    content = bytearray(encoded(np.zeros((64, 64, 3), np.uint8), format_))
    if format_ == "JPEG":
        start = content.index(b"\xff\xc0")
        content[start + 5 : start + 9] = struct.pack(">HH", 60_000, 60_000)
    else:
        content[16:24] = struct.pack(">II", 60_000, 60_000)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return write_shard(tmp_path / "train.tar", photographs(20) | {"README.txt": b"no photograph"})


def test_a_shard_a_folder_and_a_zip_hold_the_same(tmp_path: Path, shard: Path) -> None:
    files = photographs(20) | {"notes.txt": b""}
    places = [
        shard,
        write_folder(tmp_path / "folder", files),
        write_zip(tmp_path / "stored.zip", files),
        write_zip(tmp_path / "deflated.zip", files, zipfile.ZIP_DEFLATED),
    ]
    first, *others = (sources.find([place]) for place in places)
    assert len(first) == 20
    for other in others:
        assert [entry.name for entry in other] == [entry.name for entry in first]
        for one, same in zip(first, other, strict=True):
            np.testing.assert_array_equal(one.read(), same.read())


def test_a_path_without_photographs_is_an_error(tmp_path: Path, shard: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no photographs in"):
        sources.find([shard, write_folder(tmp_path / "empty", {"notes.txt": b""})])
    with pytest.raises(FileNotFoundError):
        sources.find([tmp_path / "nowhere"])


def test_an_unreadable_photograph_is_named(tmp_path: Path) -> None:
    (entry,) = sources.find([write_folder(tmp_path, {"broken.jpg": b"\xff\xd8\xff no"})])
    with pytest.raises(sources.UnreadablePhotograph, match=r"broken\.jpg"):
        entry.read()


def test_a_broken_zip_member_is_an_unreadable_photograph(tmp_path: Path) -> None:
    file = write_zip(tmp_path / "photos.zip", tree("a.jpg"), zipfile.ZIP_DEFLATED)
    (entry,) = sources.find([file])
    content = bytearray(file.read_bytes())
    content[entry.offset] = 0xFF
    file.write_bytes(content)
    with pytest.raises(sources.UnreadablePhotograph, match=r"a\.jpg"):
        entry.read()


@pytest.mark.parametrize("format_", ["JPEG", "PNG"])
def test_a_header_of_too_many_pixels_is_an_unreadable_photograph(tmp_path: Path, format_: str) -> None:
    (entry,) = sources.find([write_folder(tmp_path, {"vast.jpg": vast(format_)})])
    with pytest.raises(sources.UnreadablePhotograph, match=r"vast\.jpg"):
        entry.read()


def test_a_file_that_is_gone_or_fails_is_an_unreadable_photograph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (entry,) = sources.find([write_folder(tmp_path, tree("a.jpg"))])

    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(sources.os, "pread", fail)
        with pytest.raises(sources.UnreadablePhotograph, match=r"a\.jpg.*Input/output"):
            entry.encoded()
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(sources.UnreadablePhotograph, match=r"a\.jpg"):
        entry.read()


@pytest.mark.parametrize("suffix", ["tif", "tiff", "TIF"])
def test_tiff_is_read(tmp_path: Path, suffix: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    (entry,) = sources.find([write_folder(tmp_path, {f"scan.{suffix}": encoded(pixels, "TIFF")})])
    np.testing.assert_array_equal(entry.read(), pixels)


# The layouts of the data sets once they are unpacked.
PLACES = tree(
    "data_256/a/abbey/00000001.jpg",
    "data_256/a/apartment_building/outdoor/00000001.jpg",
    "test_256/Places365_test_00000001.jpg",
    "val_256/Places365_val_00000001.jpg",
)
IMAGENET = tree(
    "ILSVRC/Data/CLS-LOC/train/n01440764/n01440764_10026.JPEG",
    "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000001.JPEG",
) | {"ILSVRC/Annotations/CLS-LOC/val/ILSVRC2012_val_00000001.xml": b"<annotation/>"}
CELEBA = tree("img_align_celeba/img_align_celeba/000001.jpg", "img_align_celeba/img_align_celeba/000002.jpg")
COCO = tree("train2017/000000000009.jpg", "val2017/000000000139.jpg") | {"annotations/captions_train2017.json": b"{}"}


@pytest.mark.parametrize("layout", [PLACES, IMAGENET, CELEBA, COCO])
def test_layouts_are_found(tmp_path: Path, layout: dict[str, bytes]) -> None:
    photos = [name for name, content in layout.items() if content == PHOTO]
    for place in (
        write_folder(tmp_path / "folder", layout),
        write_shard(tmp_path / "layout.tar", layout),
        write_zip(tmp_path / "layout.zip", layout),
    ):
        assert names(place) == photos


def test_shards_have_sources_in_their_names(tmp_path: Path) -> None:
    made = tree("dogs/terrier-00001.webp", "dogs/00002.webp", "loose-00003.webp")
    entries = sources.find([write_shard(tmp_path / "train.tar", made)])
    assert [entry.source for entry in entries] == ["dogs", "dogs", ""]


def test_tars_within_a_tar_are_read_where_they_lie(tmp_path: Path) -> None:
    files = photographs(6)
    contents = list(files.values())
    classes = {
        f"n0144076{number}.tar": write_shard(
            tmp_path / "class.tar", {f"n0144076{number}_{n}.JPEG": contents[2 * number + n] for n in range(2)}
        ).read_bytes()
        for number in range(3)
    }
    entries = sources.find([write_shard(tmp_path / "ILSVRC2012_img_train.tar", classes)])
    assert [entry.name for entry in entries[:3]] == [
        "n01440760/n01440760_0.JPEG",
        "n01440760/n01440760_1.JPEG",
        "n01440761/n01440761_0.JPEG",
    ]
    assert [entry.encoded() for entry in entries] == contents


def test_hidden_files_and_those_of_other_systems_are_passed_over(tmp_path: Path) -> None:
    made = tree("./photos/a.jpg", "photos/._a.jpg", ".thumbnails/a.jpg", "__MACOSX/photos/a.jpg")
    for place in (
        write_folder(tmp_path / "folder", made),
        write_shard(tmp_path / "all.tar", made),
        write_zip(tmp_path / "all.zip", made),
    ):
        assert names(place) == ["photos/a.jpg"]


def test_links_that_lead_back_end(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", tree("b/1.jpg", "c.jpg"))
    elsewhere = write_folder(tmp_path / "elsewhere", tree("2.jpg"))
    (folder / "b" / "up").symlink_to(folder)
    (folder / "itself").symlink_to("itself")
    (folder / "gone.jpg").symlink_to("nowhere")
    (folder / "itself.jpg").symlink_to("itself.jpg")
    (folder / "a").symlink_to(elsewhere)
    assert names(folder) == ["a/2.jpg", "b/1.jpg", "c.jpg"]


def test_of_members_of_one_name_the_last_counts(tmp_path: Path) -> None:
    old, new = list(photographs(2).values())
    file = write_shard(tmp_path / "train.tar", {"a.jpg": old})
    with tarfile.open(file, "a") as tar:
        member = tarfile.TarInfo("a.jpg")
        member.size = len(new)
        tar.addfile(member, io.BytesIO(new))
    (entry,) = sources.find([file])
    assert entry.encoded() == new


@pytest.mark.parametrize("name", ["PKU/1.jpg", "BZhang/1.jpg", "BZh9/1.jpg"])
def test_a_tar_may_begin_like_another_archive(tmp_path: Path, name: str) -> None:
    file = write_shard(tmp_path / "train.tar", tree(name))
    assert file.read_bytes().startswith(name[:3].encode())
    assert names(file) == [name]


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_compressed_tar_is_refused(tmp_path: Path, mode: str) -> None:
    path = tmp_path / f"train.tar.{mode[2:]}"
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        tar.add(write_folder(tmp_path / "folder", tree("a.jpg")))
    with pytest.raises(ValueError, match="unpack it first"):
        sources.find([path])


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(PHOTO)
    with pytest.raises(ValueError, match="folder, tar or zip"):
        sources.find([tmp_path / "photo.jpg"])
    (tmp_path / "cut.zip").write_bytes(write_zip(tmp_path / "whole.zip", tree("a.jpg")).read_bytes()[:-30])
    with pytest.raises(ValueError, match="folder, tar or zip"):
        sources.find([tmp_path / "cut.zip"])
    with pytest.raises(ValueError, match="neither stored nor deflated"):
        sources.find([write_zip(tmp_path / "small.zip", tree("a.jpg"), zipfile.ZIP_LZMA)])


def test_archives_in_a_folder_are_not_silently_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_folder(tmp_path / "folder", tree("a.jpg"))
    write_shard(folder / "train.tar", tree("b.jpg"))
    assert names(folder) == ["a.jpg"]
    assert "1 archives" in caplog.text


def test_held_out_photographs_are_found_again_by_name(shard: Path) -> None:
    entries = sources.find([shard])
    training, held_out = sources.split_off(entries, ["made/003.jpg", "made/017.jpg", "elsewhere.jpg"])
    assert [entry.name for entry in held_out] == ["made/003.jpg", "made/017.jpg"]
    assert len(training) == 18
    with pytest.raises(FileNotFoundError):
        sources.split_off(entries, ["elsewhere.jpg"])


def test_the_same_photographs_are_held_out_in_any_order(shard: Path) -> None:
    entries = sources.find([shard])
    training, held_out = sources.hold_out(entries, 5)
    assert sorted(e.name for e in training + held_out) == sorted(e.name for e in entries)
    assert set(sources.hold_out(list(reversed(entries)), 5)[1]) == set(held_out)


def test_a_name_that_is_not_utf8_is_spelt_out(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9.jpg")).write_bytes(PHOTO)
    shard = write_shard(tmp_path / "train.tar", {os.fsdecode(b"caf\xe9.jpg"): PHOTO})
    for place in (folder, shard):
        (entry,) = sources.find([place])
        assert entry.name == r"caf\xe9.jpg"
        assert entry.encoded() == PHOTO
        assert sources.hold_out([entry], 1) == ([], [entry])
        assert len(sources.name_digest(entry.name)) == 16


def cut_and_damaged(tmp_path: Path) -> tuple[bytes, list[int]]:
    """Return a tar of ten photographs, and the offsets of its members."""
    path = write_shard(tmp_path / "whole.tar", photographs(10))
    with tarfile.open(path) as tar:
        return path.read_bytes(), [member.offset for member in tar]


def test_a_tar_with_a_damaged_header_is_refused(tmp_path: Path) -> None:
    whole, offsets = cut_and_damaged(tmp_path)
    damaged = bytearray(whole)
    damaged[offsets[5] + 20] ^= 0x55
    for content in (bytes(damaged), whole[: offsets[5] + 100]):
        (tmp_path / "bad.tar").write_bytes(content)
        with pytest.raises(ValueError, match=f"bad.tar is damaged at byte {offsets[5]:,}: no photograph"):
            sources.find([tmp_path / "bad.tar"])
    outer = write_shard(tmp_path / "outer.tar", {"first/1.jpg": PHOTO, "second.tar": bytes(damaged)})
    with tarfile.open(outer) as tar:
        second = tar.getmember("second.tar").offset_data
    with pytest.raises(ValueError, match=f"outer.tar is damaged at byte {second + offsets[5]:,}"):
        sources.find([outer])


def test_a_tar_without_its_end_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole, offsets = cut_and_damaged(tmp_path)
    (tmp_path / "cut.tar").write_bytes(whole[: offsets[5]])
    assert len(sources.find([tmp_path / "cut.tar"])) == 5
    assert f"cut.tar stops at byte {offsets[5]:,} without" in caplog.text


def test_a_tar_behind_another_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole, _ = cut_and_damaged(tmp_path)
    (tmp_path / "whole.tar").write_bytes(whole + bytes(2**21))
    assert len(sources.find([tmp_path / "whole.tar"])) == 10
    assert not caplog.text
    (tmp_path / "two.tar").write_bytes(whole + whole)
    assert len(sources.find([tmp_path / "two.tar"])) == 10
    assert "the other tar" in caplog.text


def test_photographs_are_known_by_their_contents(tmp_path: Path) -> None:
    files = photographs(6)
    known = sources.content_ids(sources.find([write_folder(tmp_path / "old", files)])[:2])
    renamed = {f"elsewhere/{n}.jpg": content for n, content in enumerate(files.values())}
    # These are other photographs with the old names.
    others = dict(zip(files, reversed([*files.values()]), strict=True))
    for made in (
        write_folder(tmp_path / "new", renamed),
        write_shard(tmp_path / "new.tar", renamed),
        write_zip(tmp_path / "new.zip", renamed, zipfile.ZIP_DEFLATED),
    ):
        found = sources.with_content_ids(sources.find([made]), known)
        assert [entry.name for entry in found] == ["elsewhere/0.jpg", "elsewhere/1.jpg"]
    found = sources.with_content_ids(sources.find([write_folder(tmp_path / "others", others)]), known)
    assert [entry.name for entry in found] == ["made/004.jpg", "made/005.jpg"]
    (gone,) = sources.find([write_folder(tmp_path / "gone", {"a.jpg": PHOTO})])
    assert sources.with_content_ids([gone], []) == []
    Path(gone.file).unlink()
    assert sources.content_ids([gone]) == [None]
