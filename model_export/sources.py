"""Collections of photographs: tar shards and folders, and what of them is held out."""

import hashlib
import os
import tarfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from service.color import Bytes

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


class UnreadablePhotograph(ValueError):
    """A file among the training data that no decoder takes."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one encoded photograph lies: a file of its own, or a part of a tar shard."""

    name: str
    file: Path
    offset: int
    size: int

    def read(self) -> Bytes:
        """Decodes it to RGB, uint8 [H, W, 3]. Raises UnreadablePhotograph."""
        with self.file.open("rb") as stream:
            data = os.pread(stream.fileno(), self.size, self.offset)
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) if data else None
        if picture is None:
            raise UnreadablePhotograph(f"{self.name} in {self.file} can't be decoded")
        return np.asarray(picture, np.uint8)


def _of_shard(shard: Path) -> Iterator[Entry]:
    with tarfile.open(shard) as tar:
        for member in tar:
            if member.isfile() and Path(member.name).suffix.lower() in SUFFIXES:
                yield Entry(member.name, shard, member.offset_data, member.size)


def _of_folder(folder: Path) -> Iterator[Entry]:
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in SUFFIXES and file.is_file():
            yield Entry(str(file.relative_to(folder)), file, 0, file.stat().st_size)


def find(paths: Sequence[Path]) -> list[Entry]:
    """All photographs in tar shards and folders, in a stable order. Raises FileNotFoundError where there are none."""
    entries = [e for path in paths for e in (_of_folder(path) if path.is_dir() else _of_shard(path))]
    if not entries:
        raise FileNotFoundError(f"no photographs in {', '.join(map(str, paths)) or 'nothing'}")
    return entries


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
