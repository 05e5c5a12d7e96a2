"""Filtering of photographs, and the manifest of a run's data."""

import json
import os
import struct
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data

from model_export.data import filtering, sources
from model_export.recipe import Filtering, Recipe
from tests.conftest import encoded
from tests.unit.data.test_batching import photographs, write_folder, write_shard
from tests.unit.data.test_sources import vast


def faults(path: Path, settings: Filtering | None = None) -> dict[str, filtering.Fault | None]:
    entries = sources.find([path])
    return {
        e.name: fault for e, fault in zip(entries, filtering.find_faults(entries, settings or Filtering()), strict=True)
    }


def toned(rgb: np.ndarray, dark: tuple[int, int, int], light: tuple[int, int, int]) -> np.ndarray:
    luma = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)[..., np.newaxis] / 255
    return (np.array(dark) + (np.array(light) - np.array(dark)) * luma).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "photos", photographs(5))


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(name="x")


@pytest.mark.parametrize("picture", ["astronaut", "coffee", "chelsea"])
def test_gray_and_toned_photographs_fall_and_neutral_ones_stay(tmp_path: Path, picture: str) -> None:
    rgb = getattr(skimage.data, picture)()
    muted = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)[..., np.newaxis] * 0.7 + rgb * 0.3
    made = {
        "color": rgb,
        "muted": muted.astype(np.uint8),
        "gray": toned(rgb, (0, 0, 0), (255, 255, 255)),
        "sepia": toned(rgb, (20, 10, 0), (255, 240, 200)),
        "cyanotype": toned(rgb, (0, 20, 70), (225, 240, 255)),
        "split": toned(rgb, (10, 20, 70), (255, 235, 200)),
    }
    coat = made["gray"].copy()
    coat[100:160, 100:140] = 190, 30, 30
    files = {f"{name}.jpg": encoded(pixels, "JPEG", quality=85) for name, pixels in (made | {"coat": coat}).items()}
    files["one_channel.jpg"] = encoded(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), "JPEG")
    found = faults(write_folder(tmp_path, files), Filtering(keep_duplicates=True))
    assert {name.split(".")[0] for name, fault in found.items() if fault is None} == {"color", "muted", "coat"}
    assert set(found.values()) == {None, "gray"}


def test_tiny_photographs_fall(tmp_path: Path, astronaut: np.ndarray) -> None:
    wide = astronaut[:63]
    files = {"wide.png": encoded(wide, "PNG"), "wide.jpg": encoded(wide, "JPEG"), "all.jpg": encoded(astronaut, "JPEG")}
    path = write_folder(tmp_path, files)
    assert faults(path) == {"all.jpg": None, "wide.jpg": "tiny", "wide.png": "tiny"}
    assert faults(path, Filtering(min_side=63, keep_duplicates=True)) == dict.fromkeys(sorted(files))
    # The header gives the short side of a JPEG that is decoded at a reduced size.
    assert faults(path, Filtering(min_side=513))["all.jpg"] == "tiny"


def test_broken_photographs_fall(tmp_path: Path, astronaut: np.ndarray) -> None:
    jpeg, png = encoded(astronaut, "JPEG"), encoded(astronaut[:200], "PNG")
    files = {
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "cut.png": png[: len(png) // 2],
        "empty.jpg": b"",
        "header.jpg": b"\xff\xd8\xff no",
        "html.jpg": b"<html>404</html>",
        "trailer.jpg": jpeg + bytes(100),
    }
    found = faults(write_folder(tmp_path, files))
    assert found == dict.fromkeys(files, "broken") | {"trailer.jpg": None}


def with_thumbnail(jpeg: bytes, thumbnail: bytes) -> bytes:
    """Return a JPEG with another one in its EXIF, as cameras write them."""
    exif = b"Exif\0\0" + thumbnail
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


def test_only_what_misses_its_own_end_is_cut_off(tmp_path: Path, astronaut: np.ndarray) -> None:
    jpeg, thumbnail = encoded(astronaut, "JPEG"), encoded(astronaut[::4, ::4], "JPEG")
    whole = with_thumbnail(jpeg, thumbnail)
    kept = {
        # Phones append a video to a photograph, which may have any bytes.
        "motion.jpg": jpeg + b"ftypmp42\xff\xd9\xff\xda\x00",
        "thumbnail.jpg": whole,
        "filled.jpg": jpeg[:2] + b"\xff\xff" + jpeg[2:],
        "progressive.jpg": encoded(astronaut, "JPEG", progressive=True),
        "restarts.jpg": encoded(astronaut, "JPEG", restart_marker_rows=1),
    }
    cut = {
        "cut.jpg": whole[: len(whole) - len(jpeg) // 2],
        "header.jpg": whole[: len(thumbnail) + 30],
        "progressive_cut.jpg": kept["progressive.jpg"][: len(jpeg) // 2],
        "thumbnail_cut.jpg": whole[: len(thumbnail) // 2],
    }
    found = faults(write_folder(tmp_path, kept | cut), Filtering(keep_duplicates=True))
    assert found == dict.fromkeys(kept) | dict.fromkeys(cut, "broken")


@pytest.mark.parametrize("format_", ["JPEG", "PNG"])
def test_a_header_of_too_many_pixels_is_broken(tmp_path: Path, format_: str) -> None:
    assert faults(write_folder(tmp_path, {"vast.jpg": vast(format_)})) == {"vast.jpg": "broken"}


def test_a_file_that_is_gone_is_broken(tmp_path: Path) -> None:
    entries = sources.find([write_folder(tmp_path, photographs(2))])
    Path(entries[0].file).unlink()
    assert filtering.find_faults(entries, Filtering()) == ["broken", None]


def test_of_duplicates_the_first_is_kept(tmp_path: Path, astronaut: np.ndarray) -> None:
    files = {
        "1.jpg": encoded(astronaut, "JPEG", quality=95),
        "2.webp": encoded(cv2.resize(astronaut, (200, 200), interpolation=cv2.INTER_AREA), "WEBP", quality=60),
        "3.png": encoded(np.ascontiguousarray(astronaut[:, ::-1]), "PNG"),
        "4.png": encoded(np.ascontiguousarray(astronaut[::-1]), "PNG"),
    }
    path = write_folder(tmp_path, files)
    assert faults(path) == {"1.jpg": None, "2.webp": "duplicate", "3.png": "duplicate", "4.png": None}
    assert set(faults(path, Filtering(keep_duplicates=True)).values()) == {None}
    # A photograph that is left out for another fault has no duplicates.
    assert faults(path, Filtering(min_side=300)) == {
        "1.jpg": None,
        "2.webp": "tiny",
        "3.png": "duplicate",
        "4.png": None,
    }


def test_duplicates_are_those_of_a_plain_search() -> None:
    random = np.random.default_rng(0)
    hashes = random.integers(2**64, size=(400, 2), dtype=np.uint64)
    for copy in range(200, 400):
        original = random.integers(copy)
        flips = np.bitwise_or.reduce(np.uint64(1) << random.integers(64, size=copy % 8, dtype=np.uint64))
        hashes[copy] = (hashes[original] ^ flips)[:: random.choice([1, -1])]
    expected: list[bool] = []
    for number in range(400):
        kept = [other for other in range(number) if not expected[other]]
        distances = np.bitwise_count(hashes[kept] ^ hashes[number, 0])
        expected.append(bool((distances <= filtering.MAX_DISTANCE).any()))
    assert 50 < sum(expected) < 200
    assert filtering.find_duplicates(hashes[:, 0], hashes[:, 1]).tolist() == expected


def test_nothing_is_looked_at_when_switched_off(tmp_path: Path) -> None:
    path = write_folder(tmp_path, {"bad.jpg": b"no"})
    assert faults(path, Filtering(enabled=False)) == {"bad.jpg": None}


def test_the_order_of_threads_changes_nothing(tmp_path: Path) -> None:
    entries = sources.find([write_folder(tmp_path, photographs(150) | {"made/100.jpg": b""})])
    assert filtering.find_faults(entries, Filtering(), threads=1) == filtering.find_faults(
        entries, Filtering(), threads=8
    )


def spoilt(folder: Path) -> Path:
    (folder / "made" / "001.jpg").write_bytes(b"")
    (folder / "made" / "009.jpg").write_bytes((folder / "made" / "000.jpg").read_bytes())
    return folder


def test_a_manifest_says_what_is_kept_and_why_not_the_rest(
    tmp_path: Path, folder: Path, recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = write_shard(tmp_path / "train.tar", {"other/1.png": encoded(skimage.data.coffee(), "PNG")})
    selection = filtering.select(tmp_path, [spoilt(folder), shard], recipe)
    assert "kept 5 of 7 photographs; left out: broken 1, duplicate 1" in capsys.readouterr().out
    assert len(selection.entries) == 5
    selection.save(tmp_path)
    manifest = json.loads((tmp_path / filtering.MANIFEST).read_text())
    assert [(c["name"], c["photographs"], c["left_out"]) for c in manifest["collections"]] == [
        ("photos", 6, {"broken": ["made/001.jpg"], "duplicate": ["made/009.jpg"]}),
        ("train.tar", 1, {}),
    ]
    assert manifest["kept"] == 5
    again = filtering.select(tmp_path / "elsewhere", [folder, shard], recipe)
    assert again.manifest == selection.manifest
    assert str(tmp_path) not in json.dumps(manifest)


def test_a_run_that_goes_on_sifts_no_more(
    tmp_path: Path, folder: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = filtering.select(tmp_path, [spoilt(folder)], recipe)
    first.save(tmp_path)
    monkeypatch.delattr(filtering, "find_faults")
    assert filtering.select(tmp_path, [folder], recipe) == first


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "made" / "000.jpg").unlink(), "photos with 5 photographs is now photos with 4"),
        (
            lambda folder: (folder / "made" / "000.jpg").write_bytes(b"12"),
            "names or sizes of the photographs in photos",
        ),
        (
            lambda folder: (folder / "made" / "000.jpg").rename(folder / "a.jpg"),
            "names or sizes of the photographs in photos",
        ),
    ],
)
def test_a_run_that_has_begun_is_refused_other_data(
    tmp_path: Path, folder: Path, recipe: Recipe, change: object, said: str
) -> None:
    assert callable(change)
    filtering.select(tmp_path, [folder], recipe).save(tmp_path)
    change(folder)
    # The data of a run that has not begun is filtered again.
    fresh = filtering.select(tmp_path, [folder], recipe)
    assert fresh.manifest.photographs == len(sources.find([folder]))
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(ValueError, match=f"{said}.*--init"):
        filtering.select(tmp_path, [folder], recipe)


def test_a_run_that_has_begun_is_refused_other_paths_and_settings(tmp_path: Path, folder: Path, recipe: Recipe) -> None:
    filtering.select(tmp_path, [folder], recipe).save(tmp_path)
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="it was photos and is photos, photos"):
        filtering.select(tmp_path, [folder, folder], recipe)
    with pytest.raises(ValueError, match="`sift`"):
        filtering.select(tmp_path, [folder], recipe.model_copy(update={"sift": Filtering(min_side=32)}))
    # The name of the folder itself does not count.
    moved = folder.rename(tmp_path / "moved")
    assert len(filtering.select(tmp_path, [moved], recipe).entries) == 5


def test_an_older_run_gets_a_manifest(tmp_path: Path, folder: Path, recipe: Recipe) -> None:
    (tmp_path / "state.json").write_text("{}")
    filtering.select(tmp_path, [folder], recipe).save(tmp_path)
    assert (tmp_path / filtering.MANIFEST).exists()


def test_a_recipe_may_name_its_sources(tmp_path: Path, recipe: Recipe) -> None:
    files = list(photographs(6).values())
    shards = [
        write_shard(tmp_path / f"{part}.tar", {f"{name}/{part}.jpg": files.pop() for name in ("free", "not", "fair")})
        for part in range(2)
    ]
    only = recipe.model_copy(update={"sources": ("free", "fair", "absent")})
    selection = filtering.select(tmp_path, shards, only)
    assert Counter(entry.source for entry in selection.entries) == {"free": 2, "fair": 2}
    assert selection.manifest.photographs == 4
    with pytest.raises(ValueError, match="sources, absent"):
        filtering.select(tmp_path, shards, recipe.model_copy(update={"sources": ("absent",)}))


def test_data_of_which_nothing_is_fit_is_an_error(tmp_path: Path, recipe: Recipe) -> None:
    folder = write_folder(tmp_path / "photos", {"gray.png": encoded(np.full((100, 100), 90, np.uint8), "PNG")})
    with pytest.raises(ValueError, match="no photograph is fit"):
        filtering.select(tmp_path, [folder], recipe)


def test_a_manifest_has_names_that_are_not_utf8(tmp_path: Path, recipe: Recipe) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9s")
    write_folder(odd, photographs(3) | {os.fsdecode(b"caf\xe9.jpg"): b"no"})
    first = filtering.select(tmp_path, [odd], recipe)
    first.save(tmp_path)
    (collection,) = json.loads((tmp_path / filtering.MANIFEST).read_text())["collections"]
    assert collection["name"] == r"caf\xe9s"
    assert collection["left_out"] == {"broken": [r"caf\xe9.jpg"]}
    assert filtering.select(tmp_path, [odd], recipe) == first
