"""Selection of the photographs to train on, and the manifest of a run's data, `data.json` in its folder.

Photographs are left out that are broken, tiny, gray or toned, or duplicates.
"""

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from tqdm import tqdm

from model_export import files
from model_export.data import images, sources
from model_export.data.images import JPEG, MAX_PIXELS
from model_export.data.sources import Entry, UnreadablePhotograph
from model_export.recipe import Filtering, Recipe
from model_export.threads import worker_pool
from service.imaging.color import Bytes, Floats, luma_of_rgb, split_rgb, square

Fault = Literal["broken", "tiny", "gray", "duplicate"]
FAULTS: tuple[Fault, ...] = get_args(Fault)

MANIFEST = "data.json"

# Photographs per job of the thread pool.
CHUNK = 64

# A JPEG is decoded at a reduced size if its short side keeps this many pixels.
MIN_DECODED_SIDE = 128
START_OF_SCAN, END_OF_IMAGE = 0xDA, b"\xff\xd9"
# Bytes after 0xFF without a length and content (ITU-T T.81, B.1.1): a stuffed 0, TEM, RST0 to RST7.
STANDALONE_MARKERS = frozenset({0x00, 0x01, *range(0xD0, 0xD8)})

# Side at which photographs are inspected. At a larger one, the halved chroma planes of a JPEG would blur the edges of
# a toned photograph, which looks like colour.
SIDE = 32
# Degree of the polynomial from lightness to chroma. A toned print has one colour per lightness, with a bend where a
# channel saturates.
TONE_DEGREE = 5

# A perceptual hash has one bit for each of the lowest 8 x 8 frequencies.
FREQUENCIES = 8
# Duplicates have hashes that differ in at most 4 bits. So at least one of five pieces of 13 bits is equal in both.
MAX_DISTANCE, PIECE_BITS = 4, 13
# Number of hashes that are compared at a time, in 128 MiB.
BLOCK = 2**24

Hashes = NDArray[np.uint64]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Collection(_Record):
    """The data of one given path: photographs, bytes, SHA-256 of names and sizes, and the names left out by fault."""

    name: str
    photographs: int
    bytes: int
    sha256: str
    left_out: dict[Fault, list[str]]


class Manifest(_Record):
    """The data of a run. With the recipe it determines the training.

    sha256: of the names and sizes of the photographs that are kept.
    """

    sources: tuple[str, ...]
    sift: Filtering
    collections: tuple[Collection, ...]
    photographs: int
    kept: int
    sha256: str

    def summary(self) -> str:
        """Return a line with the numbers of photographs that are kept and left out, by fault."""
        counts = {fault: sum(len(c.left_out.get(fault, ())) for c in self.collections) for fault in FAULTS}
        ranked = sorted(counts.items(), key=lambda item: -item[1])
        why = ", ".join(f"{fault} {count:,}" for fault, count in ranked if count)
        return f"kept {self.kept:,} of {self.photographs:,} photographs; left out: {why or 'none'}"


@dataclass(frozen=True, slots=True)
class Selection:
    """The photographs to train on, and their manifest."""

    entries: list[Entry]
    manifest: Manifest

    def save(self, folder: Path) -> None:
        """Write the manifest into the run's folder."""
        files.write_atomic(folder / MANIFEST, (self.manifest.model_dump_json(indent=1) + "\n").encode())


def _first_scan(jpeg: bytes) -> int:
    """Return the offset of the first scan of a JPEG, past any thumbnail in its EXIF, or -1 without a scan."""
    place = jpeg.find(0xFF, len(JPEG))
    while 0 <= place < len(jpeg) - 3:
        marker = jpeg[place + 1]
        if marker == START_OF_SCAN:
            return place
        if marker == 0xFF:
            length = 1
        elif marker in STANDALONE_MARKERS:
            length = 2
        else:
            length = 2 + int.from_bytes(jpeg[place + 2 : place + 4])
        place = jpeg.find(0xFF, place + length)
    return -1


def _is_cut_off(jpeg: bytes) -> bool:
    """Return whether a JPEG has no end marker. Data after the end, such as a video of the same moment, is ignored."""
    scan = _first_scan(jpeg)
    return scan < 0 or jpeg.find(END_OF_IMAGE, scan) < 0


def _decode(entry: Entry) -> tuple[Bytes, int]:
    """Return a photograph, uint8 [H, W, 3], and the short side of its file. Large JPEGs are decoded at a reduced size.

    Raises UnreadablePhotograph.
    """
    data = entry.encoded()
    size = None
    if data.startswith(JPEG):
        if _is_cut_off(data):  # Decoders would fill the missing part with gray.
            raise UnreadablePhotograph(f"{entry.name} is cut off")
        size = images.jpeg_size(data)
        if size is None:
            raise UnreadablePhotograph(f"{entry.name} has a broken header")
        if math.prod(size) > MAX_PIXELS:
            raise UnreadablePhotograph(f"{entry.name} has a header of {size[1]} x {size[0]} pixels")
    picture = images.decode(data, images.reduction(data, MIN_DECODED_SIDE))
    if picture is None:
        raise UnreadablePhotograph(f"{entry.name} can't be decoded")
    return picture, min(size or picture.shape[:2])


def chroma_beyond_tone(rgb: Bytes) -> float:
    """Return the chroma of RGB, uint8 [H, W, 3], that lightness does not explain, in Lab units.

    It is 0 for gray, sepia, tinted and split-toned photographs. A polynomial fits chroma to lightness. The result is
    r^2 / c, where r is the root mean square of the residual and c that of all chroma. So a strong tone with JPEG noise
    counts less than a gray scene with one small red coat.
    """
    lightness, chroma = split_rgb(square(rgb, SIDE), "lab")
    colors = chroma.reshape(-1, 2).astype(np.float64)
    basis = np.vander(2.0 * lightness.ravel() - 1, TONE_DEGREE + 1)
    rest = colors - basis @ np.linalg.lstsq(basis, colors, rcond=None)[0]
    every, left = (float(np.square(part).sum(axis=1).mean()) ** 0.5 for part in (colors, rest))
    return left * left / every if every else 0.0


def _bits(frequencies: Floats) -> np.uint64:
    flat = frequencies.ravel()
    return np.uint64(np.packbits(flat > np.median(flat[1:])).view(np.uint64)[0])


def perceptual_hashes(rgb: Bytes) -> tuple[np.uint64, np.uint64]:
    """Return the perceptual hashes of RGB, uint8 [H, W, 3], and of its mirror image."""
    small = luma_of_rgb(square(rgb, SIDE)).astype(np.float32)
    frequencies = np.asarray(cv2.dct(small), np.float32)[:FREQUENCIES, :FREQUENCIES]
    signs = np.where(np.arange(FREQUENCIES) % 2, -1, 1).astype(np.float32)
    return _bits(frequencies), _bits(frequencies * signs)


def _inspect(entry: Entry, settings: Filtering) -> tuple[Fault | None, tuple[np.uint64, np.uint64]]:
    nothing = np.uint64(0), np.uint64(0)
    try:
        rgb, short = _decode(entry)
    except UnreadablePhotograph:
        return "broken", nothing
    if short < settings.min_side:
        return "tiny", nothing
    small = square(rgb, SIDE)
    if settings.min_chroma and chroma_beyond_tone(small) < settings.min_chroma:
        return "gray", nothing
    return None, nothing if settings.keep_duplicates else perceptual_hashes(small)


def _equal_groups(keys: NDArray[np.uint64]) -> Iterator[NDArray[np.int64]]:
    """Yield the indices of equal keys, group by group."""
    order = np.argsort(keys, kind="stable")
    if len(order):
        yield from np.split(order, np.flatnonzero(np.diff(keys[order])) + 1)


def _near_pairs(straight: Hashes, mirrored: Hashes) -> NDArray[np.int64]:
    """Return all pairs of photographs, int64 [P, 2], whose hashes are close, or close to those of the mirror image."""
    count = len(straight)
    both = np.concatenate([straight, mirrored])
    pairs = [np.empty((0, 2), np.int64)]
    for piece in range(0, 64, PIECE_BITS):
        for group in _equal_groups((both >> np.uint64(piece)) & np.uint64(2**PIECE_BITS - 1)):
            asking = group[group < count]
            step = max(1, BLOCK // len(group))
            for start in range(0, len(asking), step):
                rows = asking[start : start + step]
                near = np.bitwise_count(both[rows, np.newaxis] ^ both[group]) <= MAX_DISTANCE
                row, column = np.nonzero(near)
                first, second = rows[row], group[column] % count
                found = np.stack([first, second], axis=1)[first != second]
                pairs.append(np.sort(found, axis=1))
    return np.unique(np.concatenate(pairs), axis=0)


def find_duplicates(straight: Hashes, mirrored: Hashes) -> NDArray[np.bool_]:
    """Return which photographs, bool [N], look like an earlier one that is not a duplicate itself.

    straight, mirrored: hashes of the photographs and of their mirror images, uint64 [N]. A million photographs take
    seconds and a few hundred megabytes.
    """
    _, firsts = np.unique(np.minimum(straight, mirrored), return_index=True)
    firsts.sort()
    dropped = np.zeros(len(firsts), np.bool_)
    pairs = _near_pairs(straight[firsts], mirrored[firsts])
    for first, second in pairs[np.argsort(pairs[:, 1], kind="stable")].tolist():
        if not dropped[first]:
            dropped[second] = True
    found = np.ones(len(straight), np.bool_)
    found[firsts] = dropped
    return found


def find_faults(
    entries: Sequence[Entry], settings: Filtering, *, threads: int = os.cpu_count() or 1
) -> list[Fault | None]:
    """Return the fault of each photograph, or None. The first of several duplicates has no fault."""
    if not settings.enabled:
        return [None] * len(entries)
    parts = [entries[start : start + CHUNK] for start in range(0, len(entries), CHUNK)]
    faults: list[Fault | None] = []
    found = np.zeros((len(entries), 2), np.uint64)
    bar = tqdm(total=len(entries), desc="filtering", unit=" photographs", disable=None, leave=False)
    with bar, worker_pool(threads, "filtering") as pool:
        for looks in pool.map(lambda part: [_inspect(entry, settings) for entry in part], parts):
            found[len(faults) : len(faults) + len(looks)] = [pair for _, pair in looks]
            faults += [fault for fault, _ in looks]
            bar.update(len(looks))
    if not settings.keep_duplicates:
        good = np.array([number for number, fault in enumerate(faults) if fault is None], np.int64)
        for number in good[find_duplicates(found[good, 0], found[good, 1])]:
            faults[number] = "duplicate"
    return faults


def _sha256(entries: Sequence[Entry]) -> str:
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(f"{entry.name}\0{entry.size}\n".encode())
    return digest.hexdigest()


def _collection_name(path: Path) -> str:
    """Return the name of a given path in a manifest."""
    return sources.printable(path.resolve().name)


def _collection(path: Path, entries: Sequence[Entry], faults: Sequence[Fault | None]) -> Collection:
    left_out: dict[Fault, list[str]] = {}
    for entry, fault in zip(entries, faults, strict=True):
        if fault:
            left_out.setdefault(fault, []).append(entry.name)
    size = sum(entry.size for entry in entries)
    return Collection(
        name=_collection_name(path), photographs=len(entries), bytes=size, sha256=_sha256(entries), left_out=left_out
    )


def _filter(paths: Sequence[Path], found: Sequence[list[Entry]], recipe: Recipe) -> Selection:
    entries = [entry for part in found for entry in part]
    faults = find_faults(entries, recipe.sift)
    kept = [entry for entry, fault in zip(entries, faults, strict=True) if fault is None]
    collections, start = [], 0
    for path, part in zip(paths, found, strict=True):
        collections.append(_collection(path, part, faults[start : start + len(part)]))
        start += len(part)
    manifest = Manifest(
        sources=recipe.sources,
        sift=recipe.sift,
        collections=tuple(collections),
        photographs=len(entries),
        kept=len(kept),
        sha256=_sha256(kept),
    )
    return Selection(kept, manifest)


def _change(manifest: Manifest, paths: Sequence[Path], found: Sequence[list[Entry]], recipe: Recipe) -> str | None:
    """Return a description of what differs from the manifest, or None if nothing does."""
    if (manifest.sift, manifest.sources) != (recipe.sift, recipe.sources):
        return "the recipe's `sift` or `sources` have changed"
    before = [collection.name for collection in manifest.collections]
    if len(before) != len(paths):
        return f"it was {', '.join(before)} and is {', '.join(_collection_name(path) for path in paths)}"
    for old, path, entries in zip(manifest.collections, paths, found, strict=True):
        if old.sha256 != _sha256(entries):
            name = _collection_name(path)
            if old.photographs != len(entries):
                return f"{old.name} with {old.photographs:,} photographs is now {name} with {len(entries):,}"
            return f"names or sizes of the photographs in {name} are not those in {old.name}"
    return None


def _kept_entries(manifest: Manifest, found: Sequence[list[Entry]]) -> list[Entry]:
    kept = []
    for collection, entries in zip(manifest.collections, found, strict=True):
        left_out = {name for names in collection.left_out.values() for name in names}
        kept += [entry for entry in entries if entry.name not in left_out]
    return kept


def _find_entries(paths: Sequence[Path], recipe: Recipe) -> list[list[Entry]]:
    """Return the photographs at each path that belong to the recipe's sources."""
    found = [sources.find([path]) for path in paths]
    if not recipe.sources:
        return found
    found = [[entry for entry in entries if entry.source in recipe.sources] for entries in found]
    if not any(found):
        raise ValueError(f"no photograph is of the recipe's sources, {', '.join(recipe.sources)}")
    return found


def check_data(folder: Path, paths: Sequence[Path], recipe: Recipe) -> None:
    """Raise ValueError unless the data at every path is part of the data of the run in `folder`."""
    given = {collection.sha256 for collection in load(folder).collections}
    for path, entries in zip(paths, _find_entries(paths, recipe), strict=True):
        if _sha256(entries) not in given:
            raise ValueError(f"{path} is not of the data of the run in {folder}, which knows photographs by name only")


def load(folder: Path) -> Manifest:
    """Return the manifest of the run in `folder`. Raises FileNotFoundError if there is no manifest."""
    return Manifest.model_validate_json((folder / MANIFEST).read_text("utf-8"))


def select(folder: Path, paths: Sequence[Path], recipe: Recipe) -> Selection:
    """Return the photographs at `paths` for the run in `folder`: filtered, or as its manifest lists them.

    Raises FileNotFoundError if there are no photographs. Raises ValueError if none belongs to the recipe's sources or
    all have faults. It also does if a run that has begun gets other data than its manifest's.
    """
    found = _find_entries(paths, recipe)
    manifest = None
    if (folder / MANIFEST).exists():
        manifest = load(folder)
        change = _change(manifest, paths, found, recipe)
        if change and (folder / "state.json").exists():
            raise ValueError(
                f"the data of the run in {folder} has changed: {change}. Start a new run from its weights with --init"
            )
        manifest = None if change else manifest
    selection = Selection(_kept_entries(manifest, found), manifest) if manifest else _filter(paths, found, recipe)
    tqdm.write(selection.manifest.summary())
    if not selection.entries:
        raise ValueError("no photograph is fit to learn from: relax [sift] in the recipe")
    return selection
