"""Batches of (lightness, chroma) from photographs, with augmentation.

Lightness is float32 in 0..1, chroma is float32 in the units of `service.imaging.color`.
"""

import hashlib
import logging
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from model_export.data.sources import Entry, UnreadablePhotograph
from model_export.recipe import Augment, Shards
from model_export.threads import worker_pool
from service.imaging.color import Bytes, ColorSpace, Floats, lightness_of_luma, luma_of_rgb, split_rgb, square

log = logging.getLogger(__name__)

# More threads than cores, because reading a photograph from a disk or a network waits.
THREADS = 4 * (os.cpu_count() or 1)

# A photograph is decoded at least this many times larger than the network input, and no larger if that is possible.
OVERSAMPLING = 2

# Number of unreadable photographs in a row after which a stream fails.
MAX_UNREADABLE = 20

# Photographs and the seeds of their augmentation.
Items: TypeAlias = list[tuple[Entry, tuple[int, int]]]
# Lightness and chroma, of one photograph or of several.
Sample = tuple[Floats, Floats]
Batch = Sample


@dataclass(frozen=True, slots=True)
class SampleSpec:
    """The form of a network's training samples.

    stride: the side of the lightness divided by that of the chroma. lightness: "luma" for the lightness of the luma, as
    in the service; "own" for the true lightness of the colours.
    """

    color_space: ColorSpace
    stride: int = 4
    lightness: Literal["luma", "own"] = "luma"


def _sample_of(small: Bytes, luma: Bytes, spec: SampleSpec) -> Sample:
    grid = small.shape[0] // spec.stride
    lightness, chroma = split_rgb(small, spec.color_space)
    if spec.lightness == "luma":
        lightness = lightness_of_luma(luma, spec.color_space)
    coarse = np.asarray(cv2.resize(chroma, (grid, grid), interpolation=cv2.INTER_AREA), np.float32)
    return lightness[..., np.newaxis], coarse


def make_sample(rgb: Bytes, side: int, spec: SampleSpec) -> Sample:
    """Return the lightness, [side, side, 1], and chroma, [side/stride, side/stride, 2], of RGB, uint8 [H, W, 3]."""
    small = square(rgb, side)
    return _sample_of(small, luma_of_rgb(small), spec)


def _crop(rgb: Bytes, augment: Augment, random: np.random.Generator) -> Bytes:
    height, width = rgb.shape[:2]
    rows, columns = (max(1, round(n * random.uniform(augment.min_crop, 1))) for n in (height, width))
    top, left = random.integers(height - rows + 1), random.integers(width - columns + 1)
    crop = rgb[top : top + rows, left : left + columns]
    return crop[:, ::-1] if random.random() < augment.mirror else crop


def simulate_ageing(luma: Bytes, random: np.random.Generator) -> Bytes:
    """Return luma, uint8 [H, W], degraded like an old print: faded, blurred, grainy, compressed."""
    tones = np.arange(256, dtype=np.float32) / 255
    tones = tones ** random.uniform(0.7, 1.4)
    black, white = random.uniform(0, 0.2), random.uniform(0.75, 1)
    plane = (black + (white - black) * tones).astype(np.float32)[luma]
    if random.random() < 0.4:
        plane = np.asarray(cv2.GaussianBlur(plane, (0, 0), random.uniform(0.3, 1.2)), np.float32)
    if random.random() < 0.5:
        plane = plane + random.normal(0, random.uniform(0.005, 0.05), plane.shape).astype(np.float32)
    aged = np.asarray(np.clip(plane * 255 + 0.5, 0, 255), np.uint8)
    if random.random() < 0.3:
        _, data = cv2.imencode(".jpg", aged, [cv2.IMWRITE_JPEG_QUALITY, int(random.integers(30, 80))])
        aged = np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE), np.uint8)
    return aged


def make_augmented_sample(
    rgb: Bytes, side: int, spec: SampleSpec, augment: Augment, random: np.random.Generator
) -> Sample:
    """Return a sample of a random crop, which may be mirrored and its lightness degraded."""
    small = square(_crop(rgb, augment, random), side)
    luma = luma_of_rgb(small)
    if random.random() < augment.degrade:
        luma = simulate_ageing(luma, random)
    return _sample_of(small, luma, spec)


def _stack(samples: Sequence[Sample]) -> Batch:
    lightness, chroma = zip(*samples, strict=True)
    return np.stack(lightness), np.stack(chroma)


def _order(count: int, shards: Shards | None, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield the indices of photographs, an array per epoch, without end. They depend on the seed only."""
    random = np.random.default_rng(seed)
    if shards is None:
        while True:
            yield random.permutation(count)
    parts = np.array_split(random.permutation(count), shards.count)[: shards.drawn]
    while True:
        part = parts[random.integers(len(parts))]
        for _ in range(shards.epochs):
            yield random.permutation(part)


class Stream:
    """An endless stream of augmented batches, which a thread pool decodes ahead of the network.

    An epoch covers all photographs, or one shard if there are `shards`. A batch depends only on the seed and on the
    number of photographs before it. So a stream that begins after `views` photographs continues one that was stopped.
    """

    def __init__(  # noqa: PLR0913, each is an independent property of the stream
        self,
        entries: Sequence[Entry],
        batch: int,
        spec: SampleSpec,
        augment: Augment,
        seed: int,
        *,
        shards: Shards | None = None,
        views: int = 0,
    ) -> None:
        self.entries = entries
        self.batch = batch
        self.spec = spec
        self.augment = augment
        self.seed = seed
        self.unreadable: set[str] = set()
        self.lock = threading.Lock()
        self.order = _order(len(entries), shards, seed)
        self.upcoming: NDArray[np.int64] = np.empty(0, np.int64)
        self.views = 0
        while self.views < views:
            self._draw(min(views - self.views, len(entries)))

    def _draw(self, count: int) -> NDArray[np.int64]:
        """Return the indices of the next `count` photographs."""
        while len(self.upcoming) < count:
            self.upcoming = np.concatenate([self.upcoming, next(self.order)])
        drawn, self.upcoming = self.upcoming[:count], self.upcoming[count:]
        self.views += count
        return drawn

    def _next_items(self) -> Items:
        """Return the photographs of the next batch, each with the seed of its augmentation."""
        first = self.views
        return [(self.entries[i], (self.seed, first + n)) for n, i in enumerate(self._draw(self.batch))]

    def _read(self, entry: Entry, min_side: int | None) -> Bytes:
        """Return a photograph, or another one if it can't be read. A bad file in a large collection must not end a run.

        min_side: as in `Entry.read`.
        """
        for number in range(MAX_UNREADABLE):
            try:
                return entry.read(min_side)
            except UnreadablePhotograph as error:
                with self.lock:
                    is_known = entry.name in self.unreadable
                    self.unreadable.add(entry.name)
                if not is_known:
                    log.warning("left out: %s", error)
                digest = hashlib.sha256(f"{entry.name}{number}".encode()).digest()
                entry = self.entries[int.from_bytes(digest[:8]) % len(self.entries)]
        raise UnreadablePhotograph(f"{len(self.unreadable)} photographs can't be decoded, the last {entry.name}")

    def _make_batch(self, items: Items, side: int) -> Batch:
        # If a crop may keep a tenth of each side, ten times the size is needed. Without a bound, the full size is.
        min_crop = self.augment.min_crop
        min_side = math.ceil(OVERSAMPLING * side / min_crop) if min_crop else None
        return _stack(
            [
                make_augmented_sample(
                    self._read(entry, min_side), side, self.spec, self.augment, np.random.default_rng(seed)
                )
                for entry, seed in items
            ]
        )

    def batches(
        self,
        side: int | Callable[[], int],
        count: int | None = None,
        *,
        threads: int = THREADS,
        prefetch: int = THREADS,
    ) -> Generator[Batch, None, None]:
        """Yield batches of lightness [N, side, side, 1] and chroma [N, side/stride, side/stride, 2].

        side: a number, or a function that is called when a batch is requested. Batches that were decoded ahead for
        another side are decoded again. count: number of batches, None for an endless stream. No photograph is drawn
        beyond the last batch. prefetch: number of batches that are decoded ahead.
        """
        side_of = side if callable(side) else lambda: side
        with worker_pool(threads, "photographs") as workers:
            waiting: deque[tuple[Items, int, Future[Batch]]] = deque()
            begun = 0

            def begin(items: Items, wanted: int) -> None:
                waiting.append((items, wanted, workers.submit(self._make_batch, items, wanted)))

            while waiting or count is None or begun < count:
                wanted = side_of()
                if waiting and waiting[0][1] != wanted:
                    again = list(waiting)
                    waiting.clear()
                    for items, _, future in again:
                        future.cancel()
                        begin(items, wanted)
                while len(waiting) < max(1, prefetch) and (count is None or begun < count):
                    begin(self._next_items(), wanted)
                    begun += 1
                yield waiting.popleft()[2].result()


def load_batch(entries: Sequence[Entry], side: int, spec: SampleSpec) -> Batch:
    """Return photographs without augmentation as one batch, which must fit into memory.

    Unreadable ones are left out. Raises UnreadablePhotograph if all of them are.
    """

    def one(entry: Entry) -> Sample | None:
        try:
            return make_sample(entry.read(OVERSAMPLING * side), side, spec)
        except UnreadablePhotograph as error:
            log.warning("left out: %s", error)
            return None

    with worker_pool(THREADS, "photographs") as workers:
        examples = [example for example in workers.map(one, entries) if example]
    if not examples:
        raise UnreadablePhotograph(f"none of {len(entries)} photographs can be decoded")
    return _stack(examples)
