"""Collections of photographs: folders, tar shards and zip files as data sets are published; what is held out.

Nothing is unpacked. Photographs in a tar, in a tar within a tar, or in a zip are read where they lie.
"""

import hashlib
import logging
import os
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from model_export.data import images
from model_export.threads import worker_pool
from service.imaging.color import Bytes

log = logging.getLogger(__name__)

SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff"})
ARCHIVES = frozenset({"tar", "zip", "tgz", "gz", "bz2", "xz", "zst"})

# How files begin: gzip, bzip2, xz and Zstandard; zip, and a zip of nothing. A tar begins with its first member's name,
# which may be as short as PK or BZh.
COMPRESSED = re.compile(rb"\x1f\x8b|BZh[1-9]1AY&SY|\xfd7zXZ|\x28\xb5\x2f\xfd")
ZIP = (b"PK\x03\x04", b"PK\x05\x06")
SIGNATURE_LENGTH = 10

# Bytes of what follows a tar's end that are looked at together.
READ_AHEAD = 2**20

# APPNOTE.TXT of zip, 4.3.7: a local header's fixed part ends with the lengths of the name and of the extra field.
ZIP_HEADER = struct.Struct("<26xHH")
ZIP_ENCRYPTED = 0x1


class UnreadablePhotograph(ValueError):
    """A file among the photographs that can't be read, or that no decoder takes."""


def printable(name: str) -> str:
    """A file's name that is not UTF-8 with its odd bytes spelt out: names are printed, hashed and written as JSON."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class Entry(NamedTuple):
    """Where one encoded photograph lies: a file of its own, or a part of a tar or zip file.

    A tuple, because there may be millions. `name` is the path within the folder or archive, `printable`; `size` that of
    the part.
    """

    name: str
    file: str
    offset: int
    size: int
    deflated: bool = False

    @property
    def source(self) -> str:
        """The collection it belongs to: the first part of its name, empty where there is but one."""
        return self.name.partition("/")[0] if "/" in self.name else ""

    def _part(self) -> bytes:
        descriptor = os.open(self.file, os.O_RDONLY)
        try:
            return os.pread(descriptor, self.size, self.offset)
        finally:
            os.close(descriptor)

    def encoded(self) -> bytes:
        """The photograph's file. Raises UnreadablePhotograph where it can't be read, or a zip file is broken."""
        try:
            data = self._part()
            return zlib.decompress(data, -zlib.MAX_WBITS) if self.deflated else data
        except (OSError, zlib.error) as error:
            raise UnreadablePhotograph(f"{self.name} in {self.file}: {error}") from error

    def read(self, least: int | None = None) -> Bytes:
        """Decodes it to RGB, uint8 [H, W, 3]. Raises UnreadablePhotograph.

        least: pixels that its short side keeps, so that a large JPEG is decoded at a part of its size; whole if None.
        """
        data = self.encoded()
        picture = images.decode(data, 1 if least is None else images.reduction(data, least))
        if picture is None:
            raise UnreadablePhotograph(f"{self.name} in {self.file} can't be decoded")
        return picture

    def content_id(self) -> str:
        """Stands for the photograph, whatever it is called and wherever it lies: its file's size and SHA-256.

        Raises UnreadablePhotograph.
        """
        data = self.encoded()
        return f"{len(data)}-{hashlib.sha256(data).hexdigest()[:16]}"


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"


def _member_name(name: str) -> str:
    """A member's printable name without `./`; empty when a part of it is hidden."""
    parts = [part for part in name.split("/") if part not in {"", "."}]
    return "" if any(map(_is_hidden, parts)) else printable("/".join(parts))


def _zip_entries(path: Path) -> Iterator[Entry]:
    with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
        for member in archive.infolist():
            name = _member_name(member.filename)
            if member.is_dir() or _suffix(name) not in SUFFIXES:
                continue
            if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                raise ValueError(f"{name} in {path} is neither stored nor deflated: unpack the file first")
            if member.flag_bits & ZIP_ENCRYPTED:
                raise ValueError(f"{name} in {path} is encrypted: unpack the file first")
            lengths = ZIP_HEADER.unpack(os.pread(stream.fileno(), ZIP_HEADER.size, member.header_offset))
            offset = member.header_offset + ZIP_HEADER.size + sum(lengths)
            deflated = member.compress_type == zipfile.ZIP_DEFLATED
            yield Entry(name, str(path), offset, member.compress_size, deflated)


def _tar_entries(tar: tarfile.TarFile, path: Path, start: int = 0, folder: str = "") -> Iterator[Entry]:
    while (member := tar.next()) is not None:
        # It remembers all that it has seen: gigabytes for a million photographs.
        tar.members.clear()  # type: ignore[attr-defined]
        name = _member_name(member.name)
        stream = tar.extractfile(member) if name and _suffix(name) == "tar" else None
        if name and member.isfile() and _suffix(name) in SUFFIXES:
            yield Entry(folder + name, str(path), start + member.offset_data, member.size)
        elif stream is not None:
            with tarfile.open(fileobj=stream, mode="r:") as inner:
                yield from _tar_entries(inner, path, start + member.offset_data, f"{folder}{name[:-4]}/")
    _check_end(tar, path, start)


def _check_end(tar: tarfile.TarFile, path: Path, start: int) -> None:
    """Whether what was read as the end of a tar, which begins at `start` of the file, is one: `tarfile` doesn't look.

    Raises ValueError where a member's header is damaged, for all behind it would be lost. A tar that ends between two
    members may have been written so; one behind another is passed over by most programs: of both is only told.
    """
    stream = tar.fileobj
    assert stream is not None  # noqa: S101, it is open
    stream.seek(tar.offset)
    block, end = stream.read(tarfile.BLOCKSIZE), start + tar.offset
    if block.strip(b"\0"):
        raise ValueError(f"{path} is damaged at byte {end:,}: no photograph from there on can be found")
    if not block:
        log.warning("%s stops at byte %s without the zeros that end a tar: its end may be missing", path, f"{end:,}")
    elif any(part.strip(b"\0") for part in iter(lambda: stream.read(READ_AHEAD), b"")):
        log.warning("%s ends at byte %s: the other tar or whatever is behind it is not read", path, f"{end:,}")


def _archive_entries(path: Path) -> Iterator[Entry]:
    with path.open("rb") as stream:
        start = stream.read(SIGNATURE_LENGTH)
    if COMPRESSED.match(start):
        raise ValueError(f"{path} is compressed as a whole, so no photograph can be read by itself: unpack it first")
    try:
        if start.startswith(ZIP):
            yield from _zip_entries(path)
            return
        with tarfile.open(path, "r:") as tar:
            yield from _tar_entries(tar, path)
    except (tarfile.TarError, zipfile.BadZipFile, struct.error) as error:
        raise ValueError(f"{path} can't be read as a folder, tar or zip file of photographs: {error}") from error


def _is_reachable(is_kind: Callable[[], bool]) -> bool:
    """Whether an entry is a folder or a file, by its method that says so."""
    try:
        return is_kind()
    except OSError:  # a link that leads to itself
        return False


def _files(folder: Path | str, seen: set[tuple[int, int]]) -> Iterator[os.DirEntry[str]]:
    """Every file below, in the order of their paths' parts. A folder that links lead to again is entered once."""
    facts = os.stat(folder)  # noqa: PTH116, a Path for each of a hundred thousand folders
    if (facts.st_dev, facts.st_ino) in seen:
        return
    seen.add((facts.st_dev, facts.st_ino))
    with os.scandir(folder) as found:
        entries = sorted((entry for entry in found if not _is_hidden(entry.name)), key=lambda entry: entry.name)
    for entry in entries:
        if _is_reachable(entry.is_dir):
            yield from _files(entry.path, seen)
        else:
            yield entry


def _folder_entries(folder: Path) -> Iterator[Entry]:
    root = folder.absolute()
    start = len(str(root / "_")) - 1
    archives = 0
    for file in _files(root, set()):
        suffix = _suffix(file.name)
        archives += suffix in ARCHIVES
        if suffix in SUFFIXES and _is_reachable(file.is_file):
            yield Entry(printable(file.path[start:]), file.path, 0, file.stat().st_size)
    if archives:
        log.warning("%d archives in %s are not read: name each of them", archives, folder)


def find(paths: Sequence[Path]) -> list[Entry]:
    """All photographs in folders, tar shards and zip files, in a stable order.

    Of several members of one name in an archive the last counts, as when it is unpacked.
    Raises FileNotFoundError where a path has none, ValueError for a file that is no archive or can't be read at random.
    """
    entries: list[Entry] = []
    for path in paths:
        found = {entry.name: entry for entry in (_folder_entries(path) if path.is_dir() else _archive_entries(path))}
        if not found:
            raise FileNotFoundError(f"no photographs in {path}")
        entries += found.values()
    return entries


def name_digest(name: str) -> str:
    """Stands for a photograph's name where the name itself is nobody's business."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def content_ids(entries: Sequence[Entry]) -> list[str | None]:
    """The `content` of each photograph; None where it can't be read."""

    def one(entry: Entry) -> str | None:
        try:
            return entry.content_id()
        except UnreadablePhotograph:
            return None

    with worker_pool() as pool:
        return list(pool.map(one, entries))


def with_content_ids(entries: Sequence[Entry], known: Collection[str]) -> list[Entry]:
    """The photographs that have one of these `contents`. Only those of a known size are read, and compressed ones."""
    wanted = set(known)
    sizes = {int(content.partition("-")[0]) for content in wanted}
    likely = [entry for entry in entries if wanted and (entry.deflated or entry.size in sizes)]
    return [entry for entry, content in zip(likely, content_ids(likely), strict=True) if content in wanted]


def hold_out(entries: Sequence[Entry], count: int) -> tuple[list[Entry], list[Entry]]:
    """Splits off `count` photographs, drawn by their names' hashes: (the others, these)."""
    ranked = sorted(entries, key=lambda entry: hashlib.sha256(entry.name.encode()).digest())
    return ranked[count:], ranked[:count]


def split_off(entries: Sequence[Entry], names: Collection[str]) -> tuple[list[Entry], list[Entry]]:
    """Splits off the photographs of these names: (the others, these). Raises FileNotFoundError when none is there."""
    wanted = set(names)
    found = [entry for entry in entries if entry.name in wanted]
    if not found:
        raise FileNotFoundError(f"none of the {len(wanted)} held-out photographs is in the data")
    return [entry for entry in entries if entry.name not in wanted], found
