"""Colour the photos of files and folders into a folder, on all cores."""

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
THERE = "it would be overwritten by an answer"
# Folders of systems and of network storage, in lower case. They hold thumbnails, and what was deleted or lost.
PASSED_OVER = frozenset(
    {
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),  # Synology, QNAP
        *("$recycle.bin", "system volume information", "__macosx", "lost+found"),  # Windows, macOS, Linux
    }
)
# Bytes of a file that tell its format.
HEAD = 4096
# Of a file or folder, whatever it is called.
Identity = tuple[int, int] | str


class OutputError(ValueError):
    """Answers can't go where they are to go."""


@dataclass(frozen=True, slots=True)
class Job:
    """A photo and the name of its answer, which gets the answer's extension behind it where its own is another.

    `fault` is why the photo can't be coloured, where that is known before it is tried.
    """

    photo: Path
    target: Path
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a photo: its answer, written now or earlier (`skipped`), or the reason why there is none."""

    photo: Path
    written: Path | None = None
    skipped: bool = False
    reason: str = ""


def plan(photos: Sequence[Path], output: str, wanted: str | None = None) -> tuple[list[Job], Path, str | None]:
    """Return what to colour, the folder that answers go to, and their format, if they are to have the same.

    output: the name of the one answer, or a folder. wanted: the format that is asked for. Raises OutputError.
    """
    path = Path(output)
    if path.is_dir() or output.endswith(SEPARATORS) or path.suffix.lower() not in PHOTO_SUFFIXES:
        return find_jobs(photos, path), path, wanted
    if len(photos) > 1 or photos[0].is_dir():
        raise OutputError(f"--output: {path} is a name for one photo; for several name a folder, with a / at its end")
    media_type = PHOTO_SUFFIXES[path.suffix.lower()]
    named = next((format_ for format_ in FORMATS if MEDIA_TYPES[format_] == media_type), None)
    if named is None:
        raise OutputError(f"--output: there are no answers in {path.suffix}, only in {', '.join(FORMATS)}")
    if wanted not in (None, named):
        raise OutputError(f"--format: {wanted}, but --output is {path}")
    return [Job(photos[0], path)], path.parent, named


def make_folder(folder: Path) -> None:
    """Make the folder for answers. Raises OSError, before a night's work, when they can't be written there."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"--output: nothing can be written to {folder}")
    OutputRecord(folder).check()


def find_jobs(given: Iterable[Path], folder: Path) -> list[Job]:
    """Return the photos to colour, in order: the files, and those in the folders, whose own folders are made anew.

    A photo that is reached twice, be it by a link, is taken once. An answer's name is its photo's and nothing else's,
    so that another run, with photos added, finds what it did. Raises OutputError when answers would go among the
    photos themselves.
    """
    found: list[Job] = []
    seen: dict[Identity | None, Path] = {}
    for path in given:
        if path.is_dir() and folder.is_dir() and path.samefile(folder):
            raise OutputError(f"--output: {folder} is where the photos are; name another folder")
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
    """Yield the photos below a folder; and links that lead nowhere and folders that can't be read, with the reason.

    What is hidden, and what is among the answers, is passed over. So are answers of other runs, and files that are not
    named as photos: of these a warning tells.
    """
    unread: list[OSError] = []
    others: Counter[str] = Counter()
    seen = {_identity(answers)}
    for place, folders, names in os.walk(path, onerror=unread.append, followlinks=True):
        here = Path(place)
        identity = _identity(here)
        if identity in seen:
            # A link back to a folder above, or the answers of an earlier run.
            folders.clear()
            continue
        seen.add(identity)
        folders[:] = sorted(name for name in folders if not _is_passed_over(name))
        record = OutputRecord(here)
        for name in sorted(name for name in names if not _is_passed_over(name)):
            photo = here / name
            if photo.suffix.lower() not in PHOTO_SUFFIXES:
                others[photo.suffix.lower() or "no extension"] += 1
            elif photo.is_symlink() and not photo.exists():
                yield photo, "the link leads nowhere"
            elif photo.is_file() and _is_answer(record, photo):
                others["answers of another run"] += 1
            elif photo.is_file():
                yield photo, ""
    for error in unread:
        yield Path(error.filename), str(error)
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
        log.warning(
            "%s: %d files are passed over, as they are not named as photos or are answers: %s",
            path,
            others.total(),
            kinds,
        )


def _is_answer(record: OutputRecord, photo: Path) -> bool:
    try:
        return record.holds(photo)
    except OSError:
        return False  # What is wrong with it is told when it is coloured.


def _is_passed_over(name: str) -> bool:
    """Return whether a file or folder is no photo of an album: hidden, as `._IMG_1.jpg` of macOS, or a system's own."""
    return name.startswith(".") or name.lower() in PASSED_OVER


def _identity(path: Path) -> Identity | None:
    """Return what is the same for all names of a file or folder; None when it isn't there."""
    try:
        status = path.stat()
    except OSError:
        return None
    # Some file systems do not number their files.
    return (status.st_dev, status.st_ino) if status.st_ino else str(path.resolve())


def colorize_all(
    colorizer: Colorizer, photos: Sequence[Job], options: Options, *, threads: int, force: bool = False
) -> Generator[Outcome, None, None]:
    """Colour photo after photo, and tell of each in order. Those that have an answer are skipped, unless `force`.

    A photo that can't be coloured, read or written, for whatever reason, is an outcome, and nothing to the others. No
    file is written over but tomau's own answer to the same photo, as it was written.
    """
    with ThreadPoolExecutor(threads) as pool:
        try:
            heads = pool.map(lambda job: b"" if job.fault else _head(job.photo), photos)
            run = _Run(colorizer, options, {_identity(job.photo) for job in photos} - {None}, force=force)
            planned = [run.reserve(job, head) for job, head in zip(photos, heads, strict=True)]
            yield from pool.map(run.outcome, planned)
        finally:
            pool.shutdown(cancel_futures=True)


class _Run:
    """One run over many photos: which of them gets which name."""

    def __init__(self, colorizer: Colorizer, options: Options, originals: set[Identity | None], *, force: bool) -> None:
        self._colorizer = colorizer
        self._options = options
        self._originals = originals
        self._force = force
        self._answers = OutputFolders()
        self._names: dict[str, Job] = {}

    def reserve(self, job: Job, head: bytes) -> Job:
        """Reserve the names that the answer will most likely have; return the job with a fault if one is taken.

        head: the first bytes of the photo.
        """
        try:
            if not job.fault:
                for media_type in _likely(head, self._options):
                    self._take(_named(job.target, media_type), job)
        except Problem:
            pass  # It will be refused: no answer, no name.
        except FileExistsError as error:
            return replace(job, fault=str(error))
        return job

    def outcome(self, job: Job) -> Outcome:
        """Colour one photo. Never raises."""
        try:
            return Outcome(job.photo, reason=job.fault) if job.fault else self._colored(job)
        except (Problem, OSError, EngineError) as error:
            return Outcome(job.photo, reason=str(error))
        except Exception as error:
            # A night's work must not end with one photo that nobody thought of.
            log.exception("%s", job.photo)
            return Outcome(job.photo, reason=f"a fault of tomau's own: {error!r}")

    def _colored(self, job: Job) -> Outcome:
        data = job.photo.read_bytes()
        photo = digest(data)
        names = [_named(job.target, media_type) for media_type in _possible(data, self._options)]
        for name in names if not self._force else []:
            if self._answers.has(name, photo):
                return Outcome(job.photo, name, skipped=True)
        if len(names) == 1:
            self._answers.check(names[0], photo)
        answer = self._colorizer.colorize(data, self._options)
        name = _named(job.target, answer.media_type)
        # Only now is it certain: a HEIC, say, is answered as PNG where it has alpha.
        self._take(name, job)
        is_new = self._answers.write(name, answer.data, photo, force=self._force)
        return Outcome(job.photo, name, skipped=not is_new)

    def _take(self, name: Path, job: Job) -> None:
        """Give a name to a photo's answer. Raises FileExistsError when it is another answer's, or an original's."""
        if _identity(name) in self._originals:
            raise FileExistsError(f"{name}: {THERE}")
        first = self._names.setdefault(_alike(name), job)
        if first is not job:
            raise FileExistsError(
                f"its answer would have the name of that to {first.photo}, {name}; colour it into another folder"
            )


def _head(photo: Path) -> bytes:
    """Return the first bytes of a photo; of a pipe, which can be read only once, and of what can't be read, none."""
    try:
        if not photo.is_file():
            return b""
        with photo.open("rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""


def _likely(head: bytes, options: Options) -> list[str]:
    """Return the media types that a photo's answer has, rare cases aside. Raises UnsupportedType and EmptyUpload."""
    source = source_of(head)
    if options.format:
        return [MEDIA_TYPES[options.format]]
    kept = [source] if options.if_color == "keep" else []
    return [MEDIA_TYPES[format_] for format_ in (default_format(source, has_alpha=False), *kept)]


def _possible(head: bytes, options: Options) -> list[str]:
    """Return them with the rare ones behind: of photos with alpha, and of those too large for their own format."""
    likely = _likely(head, options)
    if options.format:
        return likely
    source = source_of(head)
    every = [
        default_format(source, has_alpha=alpha, pixels=most) for alpha in (False, True) for most in (0, sys.maxsize)
    ]
    return list(dict.fromkeys([*likely, *(MEDIA_TYPES[format_] for format_ in every)]))


def _named(target: Path, media_type: str) -> Path:
    is_so_already = PHOTO_SUFFIXES.get(target.suffix.lower()) == media_type
    return target if is_so_already else target.with_name(target.name + SUFFIXES[media_type])


def _alike(name: Path) -> str:
    """Return what is the same for names that may be one to a file system: neither case nor accents' form tells."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", str(name)).casefold())
