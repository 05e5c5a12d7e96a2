"""Write a zip as a stream, entry by entry, and make safe names for its entries."""

import time
import unicodedata
import zipfile
from collections.abc import Iterable

from service.formats.registry import PHOTO_SUFFIXES

# Characters that Windows forbids in file names. `/` and `\` separate folders, and `:` names a stream of a file.
FORBIDDEN = frozenset('/\\:*?"<>|')
# Names of devices, which Windows has in every folder and with any extension.
DEVICES = frozenset(
    ["con", "prn", "aux", "nul", "clock$", "conin$", "conout$"]
    + [f"{port}{number}" for port in ("com", "lpt") for number in range(10)]
)
# Most systems allow 255 bytes in a file name. A number and an extension are added to the stem.
MAX_STEM_BYTES = 180
# Characters of a name that are used. No file system has longer names, and each character takes time.
MAX_NAME = 255
NAMELESS = "photo"


def safe_stem(name: str) -> str:
    """Return the name without path and image extension, changed so that every file system accepts it."""
    base = name.replace("\\", "/").rpartition("/")[2][:MAX_NAME]
    base = " ".join(unicodedata.normalize("NFC", "".join(map(_safe_character, base))).split())
    stem, dot, suffix = base.rpartition(".")
    if dot + suffix.strip().lower() in PHOTO_SUFFIXES:
        base = stem
    # A leading dot hides a file, and a leading dash looks like an option. Windows drops dots and spaces at the end.
    base = _shortened(base.lstrip(" .-")).rstrip(" .")
    return f"_{base}" if _folded(base).partition(".")[0].rstrip() in DEVICES else base or NAMELESS


def unique_stems(names: Iterable[str]) -> list[str]:
    """Return a safe stem for each name, in order. The stems differ even if case and the form of accents are ignored."""
    taken: dict[str, int] = {}
    return [_untaken(safe_stem(name), taken) for name in names]


def _safe_character(char: str) -> str:
    if char.isspace():
        return " "
    if unicodedata.category(char).startswith("C"):  # Control and format characters, such as those that reverse text.
        return ""
    # In the compatible form, too: conversion to an old code page turns a full-width slash into a slash.
    return "_" if FORBIDDEN & set(unicodedata.normalize("NFKC", char)) else char


def _shortened(stem: str) -> str:
    return stem.encode("utf-8")[:MAX_STEM_BYTES].decode("utf-8", "ignore")


def _folded(name: str) -> str:
    """Return a key that is equal for all names that a file system may treat as the same."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def _untaken(stem: str, taken: dict[str, int]) -> str:
    """Return the stem, with a number if it is taken.

    taken: the last number of each folded stem. A folded stem stays folded when a number is appended to it.
    """
    folded = _folded(stem)
    if folded not in taken:
        taken[folded] = 1
        return stem
    number = taken[folded] + 1
    while f"{folded}-{number}" in taken:
        number += 1
    taken[folded] = number
    taken[f"{folded}-{number}"] = 1
    return f"{stem}-{number}"


class _Window:
    """The end of the file that zipfile writes. It can seek back to the header of the current entry, but not further."""

    def __init__(self) -> None:
        self._start = 0
        self._at = 0
        # Not a BytesIO: garbage collection may close it before an abandoned ZipFile, whose own close would then fail.
        self._bytes = bytearray()

    def write(self, data: bytes) -> int:
        self._bytes[self._at : self._at + len(data)] = data
        self._at += len(data)
        return len(data)

    def tell(self) -> int:
        return self._start + self._at

    def seek(self, offset: int) -> int:
        self._at = offset - self._start
        return offset

    def flush(self) -> None: ...

    def close(self) -> None: ...

    def take(self) -> bytes:
        """Return the bytes that were written since the last call."""
        data = bytes(self._bytes)
        self._start += len(data)
        self._at = 0
        self._bytes = bytearray()
        return data


class Archive:
    """A zip of uncompressed entries, because images are compressed already.

    Each entry has its size and checksum before its data, so that clients can unpack the zip while they receive it.
    """

    def __init__(self) -> None:
        self._window = _Window()
        self._zip = zipfile.ZipFile(self._window, "w")

    def add(self, name: str, data: bytes) -> bytes:
        """Add an entry. Return the next bytes of the zip."""
        entry = zipfile.ZipInfo(name, time.localtime()[:6])
        entry.external_attr = 0o644 << 16
        self._zip.writestr(entry, data)
        return self._window.take()

    def close(self) -> bytes:
        """Return the last bytes of the zip, which are its directory."""
        self._zip.close()
        return self._window.take()
