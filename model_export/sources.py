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

import cv2
import numpy as np

from service.color import Bytes

log = logging.getLogger(__name__)

SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff"})
ARCHIVES = frozenset({"tar", "zip", "tgz", "gz", "bz2", "xz", "zst"})

# How files begin: gzip, bzip2, xz and Zstandard; zip, and a zip of nothing. A tar begins with its first member's name,
# which may be as short as PK or BZh.
COMPRESSED = re.compile(rb"\x1f\x8b|BZh[1-9]1AY&SY|\xfd7zXZ|\x28\xb5\x2f\xfd")
ZIP = (b"PK\x03\x04", b"PK\x05\x06")
LONGEST_START = 10

# APPNOTE.TXT of zip, 4.3.7: a local header's fixed part ends with the lengths of the name and of the extra field.
ZIP_HEADER = struct.Struct("<26xHH")
ZIP_ENCRYPTED = 0x1


class UnreadablePhotograph(ValueError):
    """A file among the photographs that can't be read, or that no decoder takes."""


def decode(data: bytes, flag: int) -> Bytes | None:
    """The picture that OpenCV makes of a file, uint8; None where it makes none."""
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error:  # for an empty file, and for a header that promises more pixels than it allows
        return None
    return None if picture is None else np.asarray(picture, np.uint8)


class Entry(NamedTuple):
    """Where one encoded photograph lies: a file of its own, or a part of a tar or zip file.

    A tuple, because there may be millions. `name` is the path within the folder or archive, `size` that of the part.
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

    def read(self) -> Bytes:
        """Decodes it to RGB, uint8 [H, W, 3]. Raises UnreadablePhotograph."""
        picture = decode(self.encoded(), cv2.IMREAD_COLOR_RGB)
        if picture is None:
            raise UnreadablePhotograph(f"{self.name} in {self.file} can't be decoded")
        return picture


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"


def _tidy(name: str) -> str:
    """A member's name without `./`; empty when a part of it is hidden."""
    parts = [part for part in name.split("/") if part not in {"", "."}]
    return "" if any(map(_is_hidden, parts)) else "/".join(parts)


def _of_zip(path: Path) -> Iterator[Entry]:
    with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
        for member in archive.infolist():
            name = _tidy(member.filename)
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


def _of_tar(tar: tarfile.TarFile, path: Path, start: int = 0, folder: str = "") -> Iterator[Entry]:
    while (member := tar.next()) is not None:
        # It remembers all that it has seen: gigabytes for a million photographs.
        tar.members.clear()  # type: ignore[attr-defined]
        name = _tidy(member.name)
        stream = tar.extractfile(member) if name and _suffix(name) == "tar" else None
        if name and member.isfile() and _suffix(name) in SUFFIXES:
            yield Entry(folder + name, str(path), start + member.offset_data, member.size)
        elif stream is not None:
            with tarfile.open(fileobj=stream, mode="r:") as inner:
                yield from _of_tar(inner, path, start + member.offset_data, f"{folder}{name[:-4]}/")


def _of_archive(path: Path) -> Iterator[Entry]:
    with path.open("rb") as stream:
        start = stream.read(LONGEST_START)
    if COMPRESSED.match(start):
        raise ValueError(f"{path} is compressed as a whole, so no photograph can be read by itself: unpack it first")
    try:
        if start.startswith(ZIP):
            yield from _of_zip(path)
            return
        with tarfile.open(path, "r:") as tar:
            yield from _of_tar(tar, path)
    except (tarfile.TarError, zipfile.BadZipFile, struct.error) as error:
        raise ValueError(f"{path} can't be read as a folder, tar or zip file of photographs: {error}") from error


def _leads_to(is_kind: Callable[[], bool]) -> bool:
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
        if _leads_to(entry.is_dir):
            yield from _files(entry.path, seen)
        else:
            yield entry


def _of_folder(folder: Path) -> Iterator[Entry]:
    root = folder.absolute()
    start = len(str(root / "_")) - 1
    archives = 0
    for file in _files(root, set()):
        suffix = _suffix(file.name)
        archives += suffix in ARCHIVES
        if suffix in SUFFIXES and _leads_to(file.is_file):
            yield Entry(file.path[start:], file.path, 0, file.stat().st_size)
    if archives:
        log.warning("%d archives in %s are not read: name each of them", archives, folder)


def find(paths: Sequence[Path]) -> list[Entry]:
    """All photographs in folders, tar shards and zip files, in a stable order.

    Of several members of one name in an archive the last counts, as when it is unpacked.
    Raises FileNotFoundError where a path has none, ValueError for a file that is no archive or can't be read at random.
    """
    entries: list[Entry] = []
    for path in paths:
        found = {entry.name: entry for entry in (_of_folder(path) if path.is_dir() else _of_archive(path))}
        if not found:
            raise FileNotFoundError(f"no photographs in {path}")
        entries += found.values()
    return entries


def digest(name: str) -> str:
    """Stands for a photograph's name where the name itself is nobody's business."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]


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
