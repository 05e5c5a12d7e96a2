"""A zip that is handed out entry by entry as it is written, and safe names for its entries."""

import time
import unicodedata
import zipfile
from collections.abc import Iterable

from service.formats.registry import PHOTO_SUFFIXES

# What Windows takes in no file name; `/` and `\` part paths, `:` names a stream of a file.
FORBIDDEN = frozenset('/\\:*?"<>|')
# Devices in every folder of Windows, with any extension.
DEVICES = frozenset(
    ["con", "prn", "aux", "nul", "clock$", "conin$", "conout$"]
    + [f"{port}{number}" for port in ("com", "lpt") for number in range(10)]
)
# A file's name has 255 bytes on most systems; a number and an extension still come.
MAX_STEM_BYTES = 180
# Of a name that is looked at: no file system has longer ones, and each character takes its time.
MAX_NAME = 255
NAMELESS = "photo"


def safe_stem(name: str) -> str:
    """A name that a client sent, without path and image extension, as a file may be named anywhere."""
    base = name.replace("\\", "/").rpartition("/")[2][:MAX_NAME]
    base = " ".join(unicodedata.normalize("NFC", "".join(map(_safe_character, base))).split())
    stem, dot, suffix = base.rpartition(".")
    if dot + suffix.strip().lower() in PHOTO_SUFFIXES:
        base = stem
    # A leading dot hides a file, a leading dash makes it an option; Windows drops dots and spaces at the end.
    base = _shortened(base.lstrip(" .-")).rstrip(" .")
    return f"_{base}" if _folded(base).partition(".")[0].rstrip() in DEVICES else base or NAMELESS


def unique_stems(names: Iterable[str]) -> list[str]:
    """A safe stem for each name, in order; no two of them meet where case or the form of accents doesn't count."""
    taken: dict[str, int] = {}
    return [_untaken(safe_stem(name), taken) for name in names]


def _safe_character(char: str) -> str:
    if char.isspace():
        return " "
    if unicodedata.category(char).startswith("C"):  # Control characters, and invisible ones that turn the text around.
        return ""
    # The compatible form too: a full-width slash becomes a slash where a name is brought into an old code page.
    return "_" if FORBIDDEN & set(unicodedata.normalize("NFKC", char)) else char


def _shortened(stem: str) -> str:
    return stem.encode("utf-8")[:MAX_STEM_BYTES].decode("utf-8", "ignore")


def _folded(name: str) -> str:
    """What file systems that ignore case or normalize names may make of it, and a little more."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def _untaken(stem: str, taken: dict[str, int]) -> str:
    """taken: folded stems, and the last number that each was given. What a number is appended to stays folded."""
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
    """The end of a file, as zipfile wants it: it can go back to the header of the entry it writes, not further."""

    def __init__(self) -> None:
        self._start = 0
        self._at = 0
        # No BytesIO: garbage collection may close it before a ZipFile that was given up, which then closes itself.
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
        """What was written since the last time."""
        data = bytes(self._bytes)
        self._start += len(data)
        self._at = 0
        self._bytes = bytearray()
        return data


class Archive:
    """A zip of uncompressed entries: images are compressed already.

    Each has its size and checksum before its data, so that the zip can also be unpacked while it comes.
    """

    def __init__(self) -> None:
        self._window = _Window()
        self._zip = zipfile.ZipFile(self._window, "w")

    def add(self, name: str, data: bytes) -> bytes:
        """Adds an entry; the archive's next bytes."""
        entry = zipfile.ZipInfo(name, time.localtime()[:6])
        entry.external_attr = 0o644 << 16
        self._zip.writestr(entry, data)
        return self._window.take()

    def close(self) -> bytes:
        """The archive's last bytes: its directory."""
        self._zip.close()
        return self._window.take()
