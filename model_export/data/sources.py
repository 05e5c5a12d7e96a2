"""Collections of photographs, in folders, tar shards and zip files, and the split into training and held-out ones.

No archive is unpacked. Photographs in a tar, in a tar within a tar, or in a zip are read in place.
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

# Signatures of gzip, bzip2, xz and Zstandard files, of zip files and of empty ones. They are long enough not to match a
# tar, which begins with the name of its first member, such as PK or BZh.
COMPRESSED = re.compile(rb"\x1f\x8b|BZh[1-9]1AY&SY|\xfd7zXZ|\x28\xb5\x2f\xfd")
ZIP = (b"PK\x03\x04", b"PK\x05\x06")
SIGNATURE_LENGTH = 10

# Bytes after a tar's end that are read at a time.
READ_AHEAD = 2**20

# The fixed part of a zip's local header, APPNOTE.TXT 4.3.7. It ends with the lengths of the name and the extra field.
ZIP_HEADER = struct.Struct("<26xHH")
ZIP_ENCRYPTED = 0x1


class UnreadablePhotograph(ValueError):
    """A photograph whose file can't be read or decoded."""


def printable(name: str) -> str:
    """Return a file name with the bytes that are not UTF-8 escaped, so that it can be printed, hashed and stored."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class Entry(NamedTuple):
    """The location of an encoded photograph: a file, or a part of a tar or zip file.

    It is a tuple, because there may be millions. name: the path within the folder or archive, made `printable`.
    offset, size: those of the part, in bytes. deflated: whether the part is compressed, in a zip file.
    """

    name: str
    file: str
    offset: int
    size: int
    deflated: bool = False

    @property
    def source(self) -> str:
        """Return the collection of the photograph: the first folder of its name, or "" without a folder."""
        return self.name.partition("/")[0] if "/" in self.name else ""

    def _part(self) -> bytes:
        descriptor = os.open(self.file, os.O_RDONLY)
        try:
            return os.pread(descriptor, self.size, self.offset)
        finally:
            os.close(descriptor)

    def encoded(self) -> bytes:
        """Return the bytes of the photograph's file. Raises UnreadablePhotograph if they can't be read or inflated."""
        try:
            data = self._part()
            return zlib.decompress(data, -zlib.MAX_WBITS) if self.deflated else data
        except (OSError, zlib.error) as error:
            raise UnreadablePhotograph(f"{self.name} in {self.file}: {error}") from error

    def read(self, min_side: int | None = None) -> Bytes:
        """Decode the photograph to RGB, uint8 [H, W, 3]. Raises UnreadablePhotograph.

        min_side: pixels that the short side keeps when a large JPEG is decoded at a reduced size; None for full size.
        """
        data = self.encoded()
        picture = images.decode(data, 1 if min_side is None else images.reduction(data, min_side))
        if picture is None:
            raise UnreadablePhotograph(f"{self.name} in {self.file} can't be decoded")
        return picture

    def content_id(self) -> str:
        """Return an identifier that depends on the file's bytes only: its size and 16 digits of its SHA-256.

        Raises UnreadablePhotograph.
        """
        data = self.encoded()
        return f"{len(data)}-{hashlib.sha256(data).hexdigest()[:16]}"


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"


def _member_name(name: str) -> str:
    """Return the printable name of a member, without `./`, or "" if a part of it is hidden."""
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
        # `tarfile` keeps all members that it has read: gigabytes for a million photographs.
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
    """Check the block at which `tarfile` stopped reading a tar that begins at `start` of the file.

    Raises ValueError if it is a damaged header, because all members after it would be lost. Logs a warning if the tar
    has no end marker, and if there is more data after the end, such as another tar.
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
    """Return the result of an entry's `is_dir` or `is_file`, and False for a link that leads to itself."""
    try:
        return is_kind()
    except OSError:
        return False


def _files(folder: Path | str, seen: set[tuple[int, int]]) -> Iterator[os.DirEntry[str]]:
    """Yield all files below a folder, ordered by the parts of their paths. A folder with several links counts once."""
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
    """Return all photographs in folders, tar shards and zip files, in a stable order.

    If several members of an archive have one name, the last one counts, as when the archive is unpacked. Raises
    FileNotFoundError if a path has no photographs. Raises ValueError for a file that is not an archive, and for one
    whose members can't be read independently.
    """
    entries: list[Entry] = []
    for path in paths:
        found = {entry.name: entry for entry in (_folder_entries(path) if path.is_dir() else _archive_entries(path))}
        if not found:
            raise FileNotFoundError(f"no photographs in {path}")
        entries += found.values()
    return entries


def name_digest(name: str) -> str:
    """Return 16 digits of the SHA-256 of a photograph's name, for files that must not disclose the name."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def content_ids(entries: Sequence[Entry]) -> list[str | None]:
    """Return the `content_id` of each photograph, or None if it can't be read."""

    def one(entry: Entry) -> str | None:
        try:
            return entry.content_id()
        except UnreadablePhotograph:
            return None

    with worker_pool() as pool:
        return list(pool.map(one, entries))


def with_content_ids(entries: Sequence[Entry], known: Collection[str]) -> list[Entry]:
    """Return the photographs that have one of these `content_ids`.

    Only files of a matching size, and compressed ones, are read.
    """
    wanted = set(known)
    sizes = {int(content.partition("-")[0]) for content in wanted}
    likely = [entry for entry in entries if wanted and (entry.deflated or entry.size in sizes)]
    return [entry for entry, content in zip(likely, content_ids(likely), strict=True) if content in wanted]


def hold_out(entries: Sequence[Entry], count: int) -> tuple[list[Entry], list[Entry]]:
    """Return (the others, `count` photographs), drawn by the hashes of their names."""
    ranked = sorted(entries, key=lambda entry: hashlib.sha256(entry.name.encode()).digest())
    return ranked[count:], ranked[:count]


def split_off(entries: Sequence[Entry], names: Collection[str]) -> tuple[list[Entry], list[Entry]]:
    """Return (the others, the photographs of these names). Raises FileNotFoundError without any."""
    wanted = set(names)
    found = [entry for entry in entries if entry.name in wanted]
    if not found:
        raise FileNotFoundError(f"none of the {len(wanted)} held-out photographs is in the data")
    return [entry for entry in entries if entry.name not in wanted], found
