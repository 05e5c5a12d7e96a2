"""Colours the photos of files and folders into a folder, on all cores."""

import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from service.colorizer import Colorizer, Options
from service.executor import EngineError
from service.photo import PHOTO_SUFFIXES, SUFFIXES
from service.problems import Problem

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """A photo, and where its answer goes, but for the extension."""

    photo: Path
    target: Path


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a photo: the file that was written, or the reason why there is none."""

    photo: Path
    written: Path | None = None
    skipped: bool = False
    reason: str = ""


def jobs(given: Iterable[Path], folder: Path) -> list[Job]:
    """The photos to colour, in order: the files, and those in the folders, whose own folders are made anew.

    No two have the same target: `a.jpg` and `a.png` become `a` and `a-2`.
    """
    found: list[Job] = []
    taken: set[str] = set()
    for path in given:
        for photo, place in _photos(path):
            target, number = folder / place.with_suffix(""), 1
            while str(target).casefold() in taken:
                number += 1
                target = folder / place.with_name(f"{place.stem}-{number}")
            taken.add(str(target).casefold())
            found.append(Job(photo, target))
    return found


def _photos(path: Path) -> Iterator[tuple[Path, Path]]:
    """Photos, and where they stand below what was given."""
    if not path.is_dir():
        yield path, Path(path.name)
        return
    # In a folder there may be other files; what is named by the user is taken whatever its name.
    for photo in sorted(path.rglob("*")):
        if photo.suffix.lower() in PHOTO_SUFFIXES and photo.is_file():
            yield photo, photo.relative_to(path)


def colorize(
    colorizer: Colorizer, photos: Iterable[Job], options: Options, *, threads: int, force: bool = False
) -> Iterator[Outcome]:
    """Colours photo after photo, and tells of each in order. Those that have an answer are skipped, unless `force`.

    One that can't be coloured, read or written, for whatever reason, is an outcome, and nothing to the others.
    """
    with ThreadPoolExecutor(threads) as pool:
        try:
            yield from pool.map(lambda job: _colored(colorizer, job, options, force=force), photos)
        finally:
            pool.shutdown(cancel_futures=True)


def _colored(colorizer: Colorizer, job: Job, options: Options, *, force: bool) -> Outcome:
    if not force and (there := _answer(job)):
        return Outcome(job.photo, there, skipped=True)
    try:
        answer = colorizer.colorize(job.photo.read_bytes(), options)
        written = job.target.with_name(job.target.name + SUFFIXES[answer.media_type])
        written.parent.mkdir(parents=True, exist_ok=True)
        if written.exists() and written.samefile(job.photo):
            return Outcome(job.photo, reason="it would be overwritten by its own answer")
        _write(written, answer.data)
    except (Problem, OSError, EngineError) as error:
        return Outcome(job.photo, reason=str(error))
    except Exception as error:
        # A night's work must not end with one photo that nobody thought of.
        log.exception("%s", job.photo)
        return Outcome(job.photo, reason=f"a fault of tomau's own: {error!r}")
    return Outcome(job.photo, written)


def _answer(job: Job) -> Path | None:
    names = (job.target.with_name(job.target.name + suffix) for suffix in SUFFIXES.values())
    return next((path for path in names if path.exists()), None)


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all: who breaks off finds no half picture."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
