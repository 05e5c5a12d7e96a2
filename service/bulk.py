"""Colours the photos of files and folders into a folder, on all cores."""

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from service.colorizer import Colorizer, Options
from service.encoding import SLOW_FORMATS
from service.executor import EngineError
from service.photo import FORMATS, MEDIA_TYPES, PHOTO_SUFFIXES, SUFFIXES
from service.problems import Problem

log = logging.getLogger(__name__)

SEPARATORS = tuple(filter(None, (os.sep, os.altsep)))
THERE = "it would be overwritten by an answer"


class OutputError(ValueError):
    """Answers can't go where they are to go."""


@dataclass(frozen=True, slots=True)
class Job:
    """A photo, and the name of its answer, which has the answer's extension behind it where its own is another.

    `fault` is why it can't be coloured, where that is seen before it is tried.
    """

    photo: Path
    target: Path
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a photo: the file that was written, or the reason why there is none."""

    photo: Path
    written: Path | None = None
    skipped: bool = False
    reason: str = ""


def plan(photos: Sequence[Path], output: str, wanted: str | None = None) -> tuple[list[Job], Path, str | None]:
    """What to colour, the folder that answers go to, and their format, if they are to have the same.

    output: the name of the one answer, or a folder. wanted: the format that is asked for beside it. Raises OutputError.
    """
    path = Path(output)
    if path.is_dir() or output.endswith(SEPARATORS) or path.suffix.lower() not in PHOTO_SUFFIXES:
        return jobs(photos, path), path, wanted
    if len(photos) > 1 or photos[0].is_dir():
        raise OutputError(f"--output: {path} is a name for one photo; for several name a folder, with a / at its end")
    media_type = PHOTO_SUFFIXES[path.suffix.lower()]
    named = next((format_ for format_ in FORMATS if MEDIA_TYPES[format_] == media_type), None)
    if named is None:
        raise OutputError(f"--output: there are no answers in {path.suffix}, only in {', '.join(FORMATS)}")
    if wanted not in (None, named):
        raise OutputError(f"--format: {wanted}, but --output is {path}")
    return [Job(photos[0], path)], path.parent, named


def make(folder: Path) -> None:
    """Raises OSError, before a night's work, when answers can't be written there."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"--output: nothing can be written to {folder}")


def jobs(given: Iterable[Path], folder: Path) -> list[Job]:
    """The photos to colour, in order: the files, and those in the folders, whose own folders are made anew.

    An answer's name is its photo's and nothing else's, so that another run, with photos added, finds what it did. Two
    photos whose answers would have one name are a fault of the second. Raises OutputError when answers would go
    among the photos themselves.
    """
    found: list[Job] = []
    taken: dict[str, Path] = {}
    for path in given:
        if path.is_dir() and folder.is_dir() and path.samefile(folder):
            raise OutputError(f"--output: {folder} is where the photos are; name another folder")
        for job in _found(path, folder):
            first = taken.setdefault(str(job.target).casefold(), job.photo)
            is_clash = first is not job.photo and not job.fault
            fault = f"its answer would have the name of that of {first}; colour it into another folder"
            found.append(Job(job.photo, job.target, fault) if is_clash else job)
    return found


def _found(path: Path, folder: Path) -> Iterator[Job]:
    if not path.is_dir():
        # In a folder there may be other files; what is named by the user is taken whatever its name.
        yield Job(path, folder / path.name)
        return
    is_empty = True
    for photo, fault in _photos(path, folder):
        is_empty = False
        yield Job(photo, folder / photo.relative_to(path), fault)
    if is_empty:
        yield Job(path, folder / path.name, "there is no photo in it")


def _photos(path: Path, answers: Path) -> Iterator[tuple[Path, str]]:
    """Photos below a folder, but for those among the answers; and folders that can't be read, with the reason."""
    unread: list[OSError] = []
    seen = {_identity(answers)}
    for place, folders, names in os.walk(path, onerror=unread.append, followlinks=True):
        here = Path(place)
        identity = _identity(here)
        if identity in seen:
            # A link back to a folder above, or the answers of an earlier run.
            folders.clear()
            continue
        seen.add(identity)
        folders.sort()
        for name in sorted(names):
            if Path(name).suffix.lower() in PHOTO_SUFFIXES and (here / name).is_file():
                yield here / name, ""
    for error in unread:
        yield Path(error.filename), str(error)


def _identity(path: Path) -> tuple[int, int] | None:
    """Of a file or folder, whatever it is called; None when it isn't there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def colorize(
    colorizer: Colorizer, photos: Sequence[Job], options: Options, *, threads: int, force: bool = False
) -> Iterator[Outcome]:
    """Colours photo after photo, and tells of each in order. Those that have an answer are skipped, unless `force`.

    One that can't be coloured, read or written, for whatever reason, is an outcome, and nothing to the others. None of
    the photos is ever written over.
    """
    originals = {_identity(job.photo) for job in photos} - {None}
    with ThreadPoolExecutor(threads) as pool:
        try:
            yield from pool.map(lambda job: _outcome(colorizer, job, options, originals, force=force), photos)
        finally:
            pool.shutdown(cancel_futures=True)


def _outcome(
    colorizer: Colorizer, job: Job, options: Options, originals: set[tuple[int, int] | None], *, force: bool
) -> Outcome:
    try:
        if job.fault:
            return Outcome(job.photo, reason=job.fault)
        job.photo.stat()
        there = next((path for path in _expected(job, options) if path.exists()), None)
        if there and _identity(there) in originals:
            return Outcome(job.photo, reason=f"{there}: {THERE}")
        if there and not force:
            return Outcome(job.photo, there, skipped=True)
        answer = colorizer.colorize(job.photo.read_bytes(), options)
        written = _named(job.target, answer.media_type)
        # Once more: the photo may not be what its extension says.
        if _identity(written) in originals:
            return Outcome(job.photo, reason=f"{written}: {THERE}")
        if written.exists() and not force:
            return Outcome(job.photo, written, skipped=True)
        _write(written, answer.data)
    except (Problem, OSError, EngineError) as error:
        return Outcome(job.photo, reason=str(error))
    except Exception as error:
        # A night's work must not end with one photo that nobody thought of.
        log.exception("%s", job.photo)
        return Outcome(job.photo, reason=f"a fault of tomau's own: {error!r}")
    return Outcome(job.photo, written)


def _named(target: Path, media_type: str) -> Path:
    is_so_already = PHOTO_SUFFIXES.get(target.suffix.lower()) == media_type
    return target if is_so_already else target.with_name(target.name + SUFFIXES[media_type])


def _expected(job: Job, options: Options) -> list[Path]:
    """The names that an answer can have, going by the photo's extension."""
    if options.format:
        return [_named(job.target, MEDIA_TYPES[options.format])]
    own = PHOTO_SUFFIXES.get(job.photo.suffix.lower())
    if own in {MEDIA_TYPES[format_] for format_ in FORMATS if format_ not in SLOW_FORMATS}:
        return [_named(job.target, own)]
    # As it came, or else what a photo of no such format is answered in.
    return [_named(job.target, media_type) for media_type in (own, "image/jpeg", "image/png") if media_type]


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all: who breaks off finds no half picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{os.getpid()}-{threading.get_native_id()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
