"""Answers in folders: which of the files there tomau wrote, and how a new one is put there without any loss."""

import hashlib
import os
import re
import secrets
import stat
import threading
from pathlib import Path

RECORD = ".tomau-answers"
# The longest name that common file systems take, in bytes.
MAX_NAME = 255
# Bytes of a SHA-256.
DIGEST = 32
HEADER = b"# tomau wrote these answers here. Of each: the SHA-256 of the photo, and that of the answer.\n"
LINE = re.compile(rb"^[0-9a-f]{64} [0-9a-f]{64}(?=\r?$)", re.MULTILINE)


def digest(data: bytes) -> bytes:
    """Return the SHA-256 of the data, 32 bytes."""
    return hashlib.sha256(data).digest()


def record_path(folder: Path) -> Path:
    """Return where the record of a folder's answers is: a hidden file beside the folder, `.NAME.tomau-answers`.

    A folder of answers then holds pictures only, as photo apps and people expect. The record is inside the folder, as
    `.tomau-answers`, if there is one already, and where nothing can be kept beside: at a mount point, and where the
    parent can't be written.
    """
    folder = folder.resolve()
    inside, beside = folder / RECORD, folder.with_name(f".{folder.name}{RECORD}") if folder.name else folder / RECORD
    is_kept_inside = (
        os.path.lexists(inside)
        or folder.is_mount()
        or not os.access(folder.parent, os.W_OK | os.X_OK)
        or len(os.fsencode(beside.name)) > MAX_NAME
    )
    return inside if is_kept_inside else beside


def _digest_of(path: Path) -> bytes | None:
    """Return the SHA-256 of a file, None where there is no file. Raises OSError when it can't be read."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


class OutputRecord:
    """The answers that tomau wrote into one folder, as a hidden text file tells them.

    A line has two hashes and no name, so files can be renamed. Lines are only added, each before its answer is put
    into place: after a crash, the hash of the file itself shows whether it was. A damaged line counts as none. Safe to
    use from many threads, and beside other processes.
    """

    def __init__(self, folder: Path) -> None:
        self._path = record_path(folder)
        self._lock = threading.Lock()
        self._pairs: set[bytes] = set()
        self._photos: set[bytes] = set()
        self._answers: set[bytes] = set()
        self._read = 0  # bytes of the file

    def has(self, photo: bytes, answer: bytes) -> bool:
        """Return whether the answer was written for the photo; both are digests. Raises OSError."""
        with self._lock:
            if photo + answer not in self._pairs:
                self._read_on()
            return photo + answer in self._pairs

    def holds(self, path: Path) -> bool:
        """Return whether a file is an answer to any photo, as tomau wrote it. Raises OSError."""
        with self._lock:
            self._read_on()
            if not self._answers:
                return False
        return _digest_of(path) in self._answers

    def reason(self, photo: bytes, answer: bytes | None) -> str:
        """Return why something in the place of an answer is none. answer: its digest, None where it is no file."""
        if not self._answers:
            return f"there is no record of answers in this folder ({self._path.name}), or it is damaged"
        if answer in self._answers:
            return "it is the answer to another photo, or to an earlier version of this one"
        return "it was edited since tomau wrote it" if photo in self._photos else "tomau did not write it"

    def add(self, photo: bytes, answer: bytes) -> None:
        """Note an answer, on disk, unless it is noted already; both are digests. Raises OSError."""
        if self.has(photo, answer):
            return
        line = f"{photo.hex()} {answer.hex()}\n".encode()
        with self._lock:
            # One write in append mode: another process may add a line at the same time.
            with self._path.open("a+b") as file:
                file.write(self._before_line(file.seek(0, os.SEEK_END)) + line)
                file.flush()
                os.fsync(file.fileno())
            self._learn([photo + answer])

    def check(self) -> None:
        """Raise OSError when the record can't be read or written."""
        self._check()
        if self._path.exists():
            with self._path.open("r+b"):
                pass

    def _check(self) -> None:
        """Raise OSError for a link to some other file, for a folder, and the like."""
        try:
            mode = self._path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISREG(mode):
            raise OSError(f"{self._path} is not a plain file, so no answer can be recorded there; move it away")

    def _before_line(self, size: int) -> bytes:
        """Return the bytes that a new line needs in front of it. A run that was killed may have left half a line."""
        if not size:
            return HEADER
        with self._path.open("rb") as file:
            file.seek(size - 1)
            return b"" if file.read() == b"\n" else b"\n"

    def _read_on(self) -> None:
        """Read what was added since, by this process or another one."""
        self._check()
        try:
            with self._path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._read:
                    self._read = 0  # It is another file.
                file.seek(self._read)
                text = file.read()
        except FileNotFoundError:
            return
        text = text[: text.rfind(b"\n") + 1]
        self._read += len(text)
        self._learn([bytes.fromhex(line[0].decode()) for line in LINE.finditer(text)])

    def _learn(self, pairs: list[bytes]) -> None:
        self._pairs.update(pairs)
        self._photos.update(pair[:DIGEST] for pair in pairs)
        self._answers.update(pair[DIGEST:] for pair in pairs)


class OutputFolders:
    """The answers in all folders. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: dict[Path, OutputRecord] = {}

    def has(self, path: Path, photo: bytes) -> bool:
        """Return whether a file is an answer to the photo, as tomau wrote it. Raises OSError when it can't be read.

        photo: the digest of its bytes.
        """
        answer = _digest_of(path)
        return answer is not None and self._record(path.parent).has(photo, answer)

    def check(self, path: Path, photo: bytes) -> None:
        """Raise FileExistsError when something is there that tomau did not write for the photo."""
        if os.path.lexists(path) and not self.has(path, photo):
            reason = self._record(path.parent).reason(photo, _digest_of(path))
            raise FileExistsError(f"{path} is there already, and stays: {reason}; move it away, or name another folder")

    def write(self, path: Path, data: bytes, photo: bytes, *, force: bool) -> bool:
        """Write an answer, whole or not at all, and return whether it was written.

        An answer to the same photo that tomau wrote is replaced if `force`, and else left. Raises FileExistsError when
        anything else is there, even if it came in the last moment, and other OSErrors.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.check(path, photo)
        part = path.with_name(f".{secrets.token_hex(8)}.part")
        try:
            with part.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self._record(path.parent).add(photo, digest(data))
            return self._put(part, path, photo, force=force)
        finally:
            part.unlink(missing_ok=True)

    def _put(self, part: Path, path: Path, photo: bytes, *, force: bool) -> bool:
        try:
            _link(part, path)
        except FileExistsError:
            self.check(path, photo)
            if force:
                part.replace(path)
            return force
        return True

    def _record(self, folder: Path) -> OutputRecord:
        with self._lock:
            return self._records.setdefault(folder, OutputRecord(folder))


def _link(part: Path, path: Path) -> None:
    """Give a finished file its name. Raises FileExistsError when something has that name, and other OSErrors."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:
        # There are no hard links, as on exFAT and many network shares. An empty file of our own takes the name first.
        path.open("xb").close()
        try:
            part.replace(path)
        except OSError:
            path.unlink(missing_ok=True)
            raise
