import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.pipeline import output_folder
from service.pipeline.output_folder import RECORD, OutputFolders, OutputRecord, digest, record_path

PHOTO = digest(b"a photo")
OTHER_PHOTO = digest(b"another photo")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_an_answer_is_known_to_a_later_run_and_replaced_if_forced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.jpg"
    assert OutputFolders().write(path, b"first", PHOTO, force=False)
    assert OutputFolders().has(path, PHOTO)
    assert not OutputFolders().write(path, b"second", PHOTO, force=False)
    assert path.read_bytes() == b"first"
    assert OutputFolders().write(path, b"second", PHOTO, force=True)
    assert path.read_bytes() == b"second"
    assert OutputFolders().has(path, PHOTO)
    assert names(path.parent) == {"a.jpg"}


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("there", "photo"), [(b"first, edited", PHOTO), (b"", PHOTO), (b"foreign", PHOTO), (b"first", OTHER_PHOTO)]
)
def test_what_is_no_answer_to_this_photo_is_left(tmp_path: Path, there: bytes, photo: bytes, force: bool) -> None:
    path = tmp_path / "a.jpg"
    OutputFolders().write(path, b"first", PHOTO, force=False)
    path.write_bytes(there)
    with pytest.raises(FileExistsError, match=r"a\.jpg exists already and is kept: (it|tomau) "):
        OutputFolders().write(path, b"second", photo, force=force)
    assert path.read_bytes() == there
    assert names(tmp_path) == {"a.jpg"}


@pytest.mark.parametrize("has_links", [True, False])
@pytest.mark.parametrize("force", [False, True])
def test_a_file_that_comes_in_the_last_moment_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool, has_links: bool
) -> None:
    path = tmp_path / "a.jpg"
    link = os.link

    def comes_first(source: Path, target: Path) -> None:
        path.write_bytes(b"foreign")
        if not has_links:
            raise OSError(errno.EPERM, "Operation not permitted")
        link(source, target)

    monkeypatch.setattr(os, "link", comes_first)
    with pytest.raises(FileExistsError, match=r"a\.jpg"):
        OutputFolders().write(path, b"first", PHOTO, force=force)
    assert path.read_bytes() == b"foreign"
    assert names(tmp_path) == {"a.jpg"}


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    path = tmp_path / "a.jpg"
    monkeypatch.setattr(os, "link", fails)
    assert OutputFolders().write(path, b"first", PHOTO, force=False)
    assert OutputFolders().write(path, b"second", PHOTO, force=True)
    assert path.read_bytes() == b"second"
    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match="not permitted"):
        OutputFolders().write(tmp_path / "b.jpg", b"first", PHOTO, force=False)
    assert names(tmp_path) == {"a.jpg"}


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("is_broken", [False, True])
def test_a_link_to_another_file_is_left(tmp_path: Path, is_broken: bool, force: bool) -> None:
    elsewhere, path = tmp_path / "elsewhere", tmp_path / "a.jpg"
    path.symlink_to(elsewhere)
    if not is_broken:
        elsewhere.write_bytes(b"foreign")
    with pytest.raises(FileExistsError, match=r"a\.jpg"):
        OutputFolders().write(path, b"first", PHOTO, force=force)
    assert path.is_symlink()
    assert elsewhere.exists() != is_broken


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_or_a_pipe_of_that_name(tmp_path: Path, force: bool) -> None:
    (tmp_path / "a.jpg").mkdir()
    os.mkfifo(tmp_path / "b.jpg")
    for name in ("a.jpg", "b.jpg"):
        with pytest.raises(FileExistsError, match=name):
            OutputFolders().write(tmp_path / name, b"first", PHOTO, force=force)


def test_after_a_crash_before_the_answer_was_put_into_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jpg"
    OutputFolders().write(path, b"first", PHOTO, force=False)

    def ends(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(output_folder, "_link", ends)
        with pytest.raises(SystemExit):
            OutputFolders().write(path, b"second", PHOTO, force=True)
    assert path.read_bytes() == b"first"
    assert OutputFolders().has(path, PHOTO)
    assert OutputFolders().write(path, b"third", PHOTO, force=True)
    assert OutputFolders().has(path, PHOTO)


def test_a_record_that_was_damaged_loses_what_is_damaged(tmp_path: Path) -> None:
    for number in range(4):
        OutputFolders().write(tmp_path / f"{number}.jpg", b"%d" % number, PHOTO, force=False)
    record = record_path(tmp_path)
    header, *lines, last = record.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(lines[1][70:72], b"\xff\0")
    record.write_bytes(b"\0" * 4096 + b"\n".join([header, *lines, last[:100]]))
    known = [OutputFolders().has(tmp_path / f"{number}.jpg", PHOTO) for number in range(4)]
    assert known == [True, False, True, False]
    # An incomplete line does not damage the next one.
    OutputFolders().write(tmp_path / "4.jpg", b"4", PHOTO, force=False)
    assert OutputFolders().has(tmp_path / "4.jpg", PHOTO)


@pytest.mark.parametrize("force", [False, True])
def test_without_its_record_nothing_is_an_answer(tmp_path: Path, force: bool) -> None:
    path = tmp_path / "a.jpg"
    OutputFolders().write(path, b"first", PHOTO, force=False)
    record_path(tmp_path).unlink()
    with pytest.raises(FileExistsError):
        OutputFolders().write(path, b"second", PHOTO, force=force)
    assert path.read_bytes() == b"first"


def test_a_record_that_is_deleted_meanwhile_is_begun_anew(tmp_path: Path) -> None:
    run = OutputFolders()
    run.write(tmp_path / "a.jpg", b"first", PHOTO, force=False)
    record_path(tmp_path).unlink()
    run.write(tmp_path / "b.jpg", b"second", PHOTO, force=False)
    assert not OutputFolders().has(tmp_path / "a.jpg", PHOTO)
    assert OutputFolders().has(tmp_path / "b.jpg", PHOTO)


def test_nothing_is_written_where_no_record_can_be(tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"precious")
    linked, taken = tmp_path / "linked", tmp_path / "taken"
    for folder in (linked, taken):
        folder.mkdir()
    record_path(linked).symlink_to(photo)
    record_path(taken).mkdir()
    for folder in (linked, taken):
        with pytest.raises(OSError, match="not a plain file"):
            OutputRecord(folder).check()
        with pytest.raises(OSError, match="not a plain file"):
            OutputFolders().write(folder / "a.jpg", b"first", PHOTO, force=True)
        assert names(folder) == set()
    assert photo.read_bytes() == b"precious"


def test_a_record_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    OutputFolders().write(tmp_path / "a.jpg", b"first", PHOTO, force=False)
    opened = Path.open

    def is_read_only(path: Path, mode: str = "r", **options: object) -> object:
        # Tests may run as root, who can write read-only files.
        if path == record_path(tmp_path) and mode != "rb":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, mode, **options)

    monkeypatch.setattr(Path, "open", is_read_only)
    with pytest.raises(PermissionError, match=RECORD):
        OutputRecord(tmp_path).check()
    with pytest.raises(PermissionError, match=RECORD):
        OutputFolders().write(tmp_path / "b.jpg", b"second", PHOTO, force=False)
    assert names(tmp_path) == {"a.jpg"}
    assert OutputFolders().has(tmp_path / "a.jpg", PHOTO)


def test_runs_beside_one_another(tmp_path: Path) -> None:
    """Every output is written once, by one of the runs, and each run knows the outputs of the others."""
    runs = [OutputFolders() for _ in range(4)]
    wanted = [(run, number) for number in range(40) for run in runs]

    def write(what: tuple[OutputFolders, int]) -> bool:
        run, number = what
        return run.write(tmp_path / f"{number}.jpg", b"%d" % number, digest(b"%d" % number), force=False)

    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(write, wanted))
    assert [sum(written[start : start + 4]) for start in range(0, 160, 4)] == [1] * 40
    assert all(run.has(tmp_path / f"{number}.jpg", digest(b"%d" % number)) for run, number in wanted)


def test_what_is_recorded_already_is_not_recorded_again(tmp_path: Path) -> None:
    for _ in range(3):
        OutputFolders().write(tmp_path / "a.jpg", b"first", PHOTO, force=True)
    assert len(record_path(tmp_path).read_bytes().splitlines()) == 2


def test_a_record_is_beside_the_folder_so_that_the_folder_has_pictures_only(tmp_path: Path) -> None:
    out = tmp_path / "out"
    OutputFolders().write(out / "a.jpg", b"first", PHOTO, force=False)
    assert names(tmp_path) == {"out", f".out{RECORD}"}
    assert record_path(Path("/")) == Path("/") / RECORD


def test_a_record_inside_the_folder_counts_there(tmp_path: Path) -> None:
    out, moved = tmp_path / "out", tmp_path / "moved"
    OutputFolders().write(out / "a.jpg", b"first", PHOTO, force=False)
    record_path(out).rename(out / RECORD)
    out.rename(moved)
    assert OutputFolders().has(moved / "a.jpg", PHOTO)
    OutputFolders().write(moved / "b.jpg", b"second", PHOTO, force=False)
    assert names(moved) == {"a.jpg", "b.jpg", RECORD}


@pytest.mark.parametrize("reason", ["mount point", "read-only parent", "long name"])
def test_a_record_that_can_not_be_beside_its_folder_is_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    out = tmp_path / ("o" * 250 if reason == "long name" else "out")
    if reason == "mount point":
        monkeypatch.setattr(Path, "is_mount", lambda path: path == out)
    elif reason == "read-only parent":
        # Tests may run as root, who can write everywhere.
        monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)
    OutputFolders().write(out / "a.jpg", b"first", PHOTO, force=False)
    assert names(out) == {"a.jpg", RECORD}
    assert OutputFolders().has(out / "a.jpg", PHOTO)
