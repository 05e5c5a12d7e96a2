"""Output folders: record which files tomau wrote, and write new outputs without replacing other files."""

import hashlib
import os
import re
import stat
import threading
from pathlib import Path

from service.runtime.atomic_file import unfinished

RECORD = ".tomau-answers"
# The longest name that common file systems allow, bytes.
MAX_NAME = 255
# The size of a SHA-256, bytes.
DIGEST_BYTES = 32
HEADER = b"# The outputs that tomau wrote here. Each line: the SHA-256 of a photo, and the SHA-256 of its output.\n"
LINE = re.compile(rb"^[0-9a-f]{64} [0-9a-f]{64}(?=\r?$)", re.MULTILINE)


def digest(data: bytes) -> bytes:
    """Return the SHA-256 of the data, 32 bytes."""
    return hashlib.sha256(data).digest()


def record_path(folder: Path) -> Path:
    """Return the path of an output folder's record: a hidden file next to the folder, `.NAME.tomau-answers`.

    The output folder then has only pictures, as people and photo apps expect. The record is inside the folder, as
    `.tomau-answers`, in two cases: if it exists there already, and if it can't be next to the folder. The latter is so
    at a mount point, in a parent folder that is not writable, and for names that are too long.
    """
    folder = folder.resolve()
    inside, outside = folder / RECORD, folder.with_name(f".{folder.name}{RECORD}") if folder.name else folder / RECORD
    is_kept_inside = (
        os.path.lexists(inside)
        or folder.is_mount()
        or not os.access(folder.parent, os.W_OK | os.X_OK)
        or len(os.fsencode(outside.name)) > MAX_NAME
    )
    return inside if is_kept_inside else outside


def _digest_of(path: Path) -> bytes | None:
    """Return the SHA-256 of a file, or None if it does not exist. Raise OSError if it can't be read."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


class OutputRecord:
    """The outputs that tomau wrote into one folder, as a hidden text file lists them.

    A line has two hashes and no name, so that files can be renamed. Lines are only appended, each before its output is
    moved to its place. After a crash, the hash of the output shows whether that happened. Damaged lines are ignored.
    Safe to use from many threads and processes concurrently.
    """

    def __init__(self, folder: Path) -> None:
        self._path = record_path(folder)
        self._lock = threading.Lock()
        self._pairs: set[bytes] = set()
        self._photos: set[bytes] = set()
        self._outputs: set[bytes] = set()
        self._read = 0  # Bytes of the file that were read so far.

    def has(self, photo: bytes, output: bytes) -> bool:
        """Return whether the output was written for the photo. Both are digests. Raises OSError."""
        with self._lock:
            if photo + output not in self._pairs:
                self._read_new_lines()
            return photo + output in self._pairs

    def holds(self, path: Path) -> bool:
        """Return whether a file is an unchanged output for any photo. Raises OSError."""
        with self._lock:
            self._read_new_lines()
            if not self._outputs:
                return False
        return _digest_of(path) in self._outputs

    def reason(self, photo: bytes, existing: bytes | None) -> str:
        """Return why an existing file is not the output for the photo. existing: its digest, or None for a non-file."""
        if not self._outputs:
            return f"the record of outputs in this folder ({self._path.name}) is missing or damaged"
        if existing in self._outputs:
            return "it is the output for another photo, or for an earlier version of this photo"
        return "it was edited since tomau wrote it" if photo in self._photos else "tomau did not write it"

    def add(self, photo: bytes, output: bytes) -> None:
        """Append an output to the file, unless it is listed already. Both are digests. Raises OSError."""
        if self.has(photo, output):
            return
        line = f"{photo.hex()} {output.hex()}\n".encode()
        with self._lock:
            # A single write in append mode, because another process may append a line at the same time.
            with self._path.open("a+b") as file:
                file.write(self._separator(file.seek(0, os.SEEK_END)) + line)
                file.flush()
                os.fsync(file.fileno())
            self._learn([photo + output])

    def check(self) -> None:
        """Raise OSError if the record can't be read or written."""
        self._check_kind()
        if self._path.exists():
            with self._path.open("r+b"):
                pass

    def _check_kind(self) -> None:
        """Raise OSError if the record is anything but a regular file, such as a link or a folder."""
        try:
            mode = self._path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISREG(mode):
            raise OSError(f"{self._path} is not a plain file, so that outputs can't be recorded there; move it away")

    def _separator(self, size: int) -> bytes:
        """Return the bytes that must precede a new line. A run that was killed may have left an incomplete line."""
        if not size:
            return HEADER
        with self._path.open("rb") as file:
            file.seek(size - 1)
            return b"" if file.read() == b"\n" else b"\n"

    def _read_new_lines(self) -> None:
        """Read the lines that this process or another one has appended since the last call."""
        self._check_kind()
        try:
            with self._path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._read:
                    self._read = 0  # The file was replaced.
                file.seek(self._read)
                text = file.read()
        except FileNotFoundError:
            return
        text = text[: text.rfind(b"\n") + 1]
        self._read += len(text)
        self._learn([bytes.fromhex(line[0].decode()) for line in LINE.finditer(text)])

    def _learn(self, pairs: list[bytes]) -> None:
        self._pairs.update(pairs)
        self._photos.update(pair[:DIGEST_BYTES] for pair in pairs)
        self._outputs.update(pair[DIGEST_BYTES:] for pair in pairs)


class OutputFolders:
    """The outputs in all folders of a run. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: dict[Path, OutputRecord] = {}

    def has(self, path: Path, photo: bytes) -> bool:
        """Return whether a file is an unchanged output for the photo. Raise OSError if it can't be read.

        photo: the digest of its bytes.
        """
        existing = _digest_of(path)
        return existing is not None and self._record(path.parent).has(photo, existing)

    def check(self, path: Path, photo: bytes) -> None:
        """Raise FileExistsError if the path exists and is not an unchanged output for the photo."""
        if os.path.lexists(path) and not self.has(path, photo):
            reason = self._record(path.parent).reason(photo, _digest_of(path))
            raise FileExistsError(f"{path} exists already and is kept: {reason}; move it away, or give another folder")

    def write(self, path: Path, data: bytes, photo: bytes, *, force: bool) -> bool:
        """Write an output completely or not at all. Return whether it was written.

        An unchanged output for the same photo is replaced if `force`, and otherwise kept. Raises FileExistsError if any
        other file exists, even if it appeared at the last moment, and other OSErrors.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.check(path, photo)
        with unfinished(path, unique=True) as part:
            with part.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self._record(path.parent).add(photo, digest(data))
            return self._put(part, path, photo, force=force)

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
    """Give a finished file its name. Raise FileExistsError if the name is in use, and other OSErrors."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:
        # exFAT and many network shares have no hard links. There an empty file reserves the name first.
        path.open("xb").close()
        try:
            part.replace(path)
        except OSError:
            path.unlink(missing_ok=True)
            raise
