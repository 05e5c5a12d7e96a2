"""Colour files and folders of photos into an output folder, on all cores."""

import logging
import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from service.errors import Problem
from service.formats.registry import FORMATS, MEDIA_TYPES, PHOTO_SUFFIXES, SUFFIXES, default_format
from service.imaging.identification import source_of
from service.inference.executor import EngineError
from service.pipeline.colorizer import Colorizer
from service.pipeline.options import Options
from service.pipeline.output_folder import OutputFolders, OutputRecord, digest

log = logging.getLogger(__name__)

SEPARATORS = tuple(filter(None, (os.sep, os.altsep)))
# Folders of systems and of network storage, in lower case. They hold thumbnails, and deleted or lost files.
SKIPPED_NAMES = frozenset(
    {
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),  # Synology, QNAP
        *("$recycle.bin", "system volume information", "__macosx", "lost+found"),  # Windows, macOS, Linux
    }
)
# Bytes at the start of a file that show its format.
START_BYTES = 4096
# What is equal for all names of one file or folder.
Identity = tuple[int, int] | str


class OutputError(ValueError):
    """The outputs can't be written where the user wants them."""


@dataclass(frozen=True, slots=True)
class Job:
    """A photo and the path of its output. If the extension of `target` is of another format, the right one is appended.

    fault: the reason why the photo can't be coloured, if it is known in advance.
    """

    photo: Path
    target: Path
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result for a photo: its output, written now or earlier (`skipped`), or the reason why it has no output."""

    photo: Path
    written: Path | None = None
    skipped: bool = False
    reason: str = ""


def plan(photos: Sequence[Path], output: str, wanted: str | None = None) -> tuple[list[Job], Path, str | None]:
    """Return the jobs, the output folder, and the common format of the outputs if there is one.

    output: the name of the only output, or a folder. wanted: the format that the user requests. Raises OutputError.
    """
    path = Path(output)
    if path.is_dir() or output.endswith(SEPARATORS) or path.suffix.lower() not in PHOTO_SUFFIXES:
        return find_jobs(photos, path), path, wanted
    if len(photos) > 1 or photos[0].is_dir():
        raise OutputError(
            f"--output: {path} is the name of one output; for several photos, give a folder, with a / at its end"
        )
    media_type = PHOTO_SUFFIXES[path.suffix.lower()]
    named = next((format_ for format_ in FORMATS if MEDIA_TYPES[format_] == media_type), None)
    if named is None:
        raise OutputError(f"--output: {path.suffix} can't be written; the output formats are {', '.join(FORMATS)}")
    if wanted not in (None, named):
        raise OutputError(f"--format: {wanted} does not fit --output {path}")
    return [Job(photos[0], path)], path.parent, named


def make_folder(folder: Path) -> None:
    """Create the output folder. Raise OSError if outputs can't be written there, before hours of work are lost."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"--output: the folder {folder} is not writable")
    OutputRecord(folder).check()


def find_jobs(given: Iterable[Path], folder: Path) -> list[Job]:
    """Return the jobs for files and for the photos in folders, in order. The output folder gets the same subfolders.

    A photo that is found twice, for example by a link, is one job. The name of an output depends on its photo only, so
    that a later run with more photos finds the existing outputs. Raises OutputError if the output folder is one of the
    given folders.
    """
    found: list[Job] = []
    seen: dict[Identity | None, Path] = {}
    for path in given:
        if path.is_dir() and folder.is_dir() and path.samefile(folder):
            raise OutputError(f"--output: {folder} is the folder with the photos; give another folder")
        for job in _found(path, folder):
            identity = None if job.fault else _identity(job.photo)
            if identity in seen:
                log.warning("%s is the same file as %s, which is coloured once", job.photo, seen[identity])
                continue
            if identity is not None:
                seen[identity] = job.photo
            found.append(job)
    return found


def _found(path: Path, folder: Path) -> Iterator[Job]:
    if not path.is_dir():
        # A file that the user names is a photo, whatever its extension. In folders the extension decides.
        yield Job(path, folder / path.name)
        return
    is_empty = True
    for photo, fault in _photos(path, folder):
        is_empty = False
        yield Job(photo, folder / photo.relative_to(path), fault)
    if is_empty:
        yield Job(path, folder / path.name, "the folder has no photos")


def _photos(path: Path, outputs: Path) -> Iterator[tuple[Path, str]]:
    """Yield the photos below a folder. Yield broken links and unreadable folders with the reason.

    Hidden files and the output folder are skipped. Outputs of other runs, and files without the extension of a photo,
    are skipped with a warning.
    """
    unread: list[OSError] = []
    others: Counter[str] = Counter()
    seen = {_identity(outputs)}
    for folder, folders, names in os.walk(path, onerror=unread.append, followlinks=True):
        here = Path(folder)
        identity = _identity(here)
        if identity in seen:
            # This is a link back to a parent folder, or the output folder.
            folders.clear()
            continue
        seen.add(identity)
        folders[:] = sorted(name for name in folders if not _is_skipped(name))
        record = OutputRecord(here)
        for name in sorted(name for name in names if not _is_skipped(name)):
            photo = here / name
            if photo.suffix.lower() not in PHOTO_SUFFIXES:
                others[photo.suffix.lower() or "no extension"] += 1
            elif photo.is_symlink() and not photo.exists():
                yield photo, "the link is broken"
            elif photo.is_file() and _is_output(record, photo):
                others["outputs of another run"] += 1
            elif photo.is_file():
                yield photo, ""
    for error in unread:
        yield Path(error.filename), str(error)
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
        log.warning(
            "%s: %d skipped, because they are outputs or do not have a photo's extension: %s",
            path,
            others.total(),
            kinds,
        )


def _is_output(record: OutputRecord, photo: Path) -> bool:
    try:
        return record.holds(photo)
    except OSError:
        return False  # Its job reports the error.


def _is_skipped(name: str) -> bool:
    """Return whether a file or folder is hidden, such as `._IMG_1.jpg` of macOS, or belongs to a system."""
    return name.startswith(".") or name.lower() in SKIPPED_NAMES


def _identity(path: Path) -> Identity | None:
    """Return what is equal for all names of one file or folder, or None if it does not exist."""
    try:
        status = path.stat()
    except OSError:
        return None
    # Some file systems do not number their files.
    return (status.st_dev, status.st_ino) if status.st_ino else str(path.resolve())


def colorize_all(
    colorizer: Colorizer, photos: Sequence[Job], options: Options, *, threads: int, force: bool = False
) -> Generator[Outcome, None, None]:
    """Colour the photos on several threads, and yield their outcomes in order. Photos with an output are skipped.

    An error with one photo is its outcome, and does not affect the others. force: replace existing outputs. The only
    files that are ever replaced are unchanged outputs of tomau for the same photo.
    """
    with ThreadPoolExecutor(threads) as pool:
        try:
            starts = pool.map(lambda job: b"" if job.fault else _start(job.photo), photos)
            run = _Run(colorizer, options, {_identity(job.photo) for job in photos} - {None}, force=force)
            planned = list(map(run.reserve, photos, starts))
            yield from pool.map(run.outcome, planned)
        finally:
            pool.shutdown(cancel_futures=True)


class _Run:
    """One run over many photos. It decides which output has which name."""

    def __init__(self, colorizer: Colorizer, options: Options, originals: set[Identity | None], *, force: bool) -> None:
        self._colorizer = colorizer
        self._options = options
        self._originals = originals
        self._force = force
        self._outputs = OutputFolders()
        self._names: dict[str, Job] = {}

    def reserve(self, job: Job, start: bytes) -> Job:
        """Reserve the names that the output most likely has. Return the job, with a fault if a name is in use.

        start: the first bytes of the photo.
        """
        try:
            if not job.fault:
                for media_type in _likely(start, self._options):
                    self._reserve_name(_with_extension(job.target, media_type), job)
        except Problem:
            pass  # The photo will be refused, so that it needs no name.
        except FileExistsError as error:
            return replace(job, fault=str(error))
        return job

    def outcome(self, job: Job) -> Outcome:
        """Colour one photo. Never raises."""
        try:
            return Outcome(job.photo, reason=job.fault) if job.fault else self._color(job)
        except (Problem, OSError, EngineError) as error:
            return Outcome(job.photo, reason=str(error))
        except Exception as error:
            # An unexpected error with one photo must not end the run.
            log.exception("%s", job.photo)
            return Outcome(job.photo, reason=f"an internal error of tomau: {error!r}")

    def _color(self, job: Job) -> Outcome:
        data = job.photo.read_bytes()
        photo = digest(data)
        names = [_with_extension(job.target, media_type) for media_type in _possible(data, self._options)]
        for name in names if not self._force else []:
            if self._outputs.has(name, photo):
                return Outcome(job.photo, name, skipped=True)
        if len(names) == 1:
            self._outputs.check(names[0], photo)
        image = self._colorizer.colorize(data, self._options)
        name = _with_extension(job.target, image.media_type)
        # The format is certain only now. A HEIC with alpha becomes a PNG, for example.
        self._reserve_name(name, job)
        is_new = self._outputs.write(name, image.data, photo, force=self._force)
        return Outcome(job.photo, name, skipped=not is_new)

    def _reserve_name(self, name: Path, job: Job) -> None:
        """Reserve a name for the output of a job. Raise FileExistsError if another output or a photo has the name."""
        if _identity(name) in self._originals:
            raise FileExistsError(f"{name} is a photo, which the output would replace; give another folder")
        first = self._names.setdefault(_normalized(name), job)
        if first is not job:
            raise FileExistsError(
                f"its output would have the same name as that of {first.photo}, {name}; colour it into another folder"
            )


def _start(photo: Path) -> bytes:
    """Return the first bytes of a photo, or none if it can't be read, or is a pipe, which can be read only once."""
    try:
        if not photo.is_file():
            return b""
        with photo.open("rb") as file:
            return file.read(START_BYTES)
    except OSError:
        return b""


def _likely(start: bytes, options: Options) -> list[str]:
    """Return the media types that the output of a photo usually has. Raise UnsupportedType or EmptyUpload."""
    source = source_of(start)
    if options.format:
        return [MEDIA_TYPES[options.format]]
    kept = [source] if options.if_color == "keep" else []
    return [MEDIA_TYPES[format_] for format_ in (default_format(source, has_alpha=False), *kept)]


def _possible(data: bytes, options: Options) -> list[str]:
    """Return all possible media types, likely ones first. Rare cases are alpha, and sizes beyond the photo's format."""
    likely = _likely(data, options)
    if options.format:
        return likely
    source = source_of(data)
    every = [
        default_format(source, has_alpha=alpha, pixels=most) for alpha in (False, True) for most in (0, sys.maxsize)
    ]
    return list(dict.fromkeys([*likely, *(MEDIA_TYPES[format_] for format_ in every)]))


def _with_extension(target: Path, media_type: str) -> Path:
    fits = PHOTO_SUFFIXES.get(target.suffix.lower()) == media_type
    return target if fits else target.with_name(target.name + SUFFIXES[media_type])


def _normalized(name: Path) -> str:
    """Return a form that is equal for names that a file system may not distinguish: by case, or by form of accents."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", str(name)).casefold())
