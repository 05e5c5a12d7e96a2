"""The way of one photo, whoever calls: decode, split, predict, merge, encode."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import cv2
import numpy as np

from service.errors import ClientGone, ColorPhoto, DeadlineExceeded, OutOfMemory
from service.formats import decoding_cost, registry
from service.formats.decoding_limits import Limits
from service.formats.registry import FORMATS, MEDIA_TYPES, Format, Source
from service.imaging import color, decoding, encoding, identification, resizing
from service.imaging.color import Bytes, Floats
from service.imaging.photo import Photo, Pixels, Planes, Tone
from service.inference.registry import Model, ModelRegistry
from service.metadata import transfer
from service.metadata.transfer import Metadata
from service.pipeline.options import Options
from service.runtime.core_scheduler import CoreScheduler
from service.settings import Settings

log = logging.getLogger(__name__)

# Of a photo's way, as `Answer.seconds` has them.
STAGES = ("decode", "queue", "infer", "merge", "encode")


@dataclass(frozen=True, slots=True)
class ColoredImage:
    """A coloured photo, and how it came about. `seconds` goes by stage: decode, queue, infer, merge, encode.

    model, device: None for a photo that was in colour and kept so. tone: what the upload was, where that was asked for.
    `begun` are the times of `time.monotonic` when the stages began, without the queue; pixels are those of the photo as
    it came, and as it is answered.
    """

    data: bytes
    media_type: str
    model: str | None
    device: str | None
    seconds: dict[str, float]
    tone: Tone | None = None
    begun: dict[str, float] = field(default_factory=dict)
    pixels_in: int = 0
    pixels_out: int = 0


@dataclass(frozen=True, slots=True)
class _Upload:
    """What came, what it says beside its pixels, and what is wanted of it."""

    data: bytes
    source: Source
    said: Metadata
    options: Options


class _Way:
    """Times the stages of one photo, and ends it between two of them when nobody waits for it any more."""

    def __init__(self, deadline: float | None, cancelled: threading.Event | None) -> None:
        self.deadline = deadline
        self.cancelled = cancelled
        self.seconds: dict[str, float] = {}
        self.begun: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if self.cancelled is not None and self.cancelled.is_set():
            raise ClientGone(f"the request was cancelled before its photo's {name}")
        started = time.monotonic()
        if self.deadline is not None and started >= self.deadline:
            raise DeadlineExceeded(f"time was up before the photo's {name}")
        self.begun.setdefault(name, started)
        try:
            yield
        except (MemoryError, cv2.error) as error:
            if isinstance(error, cv2.error) and error.code != cv2.Error.StsNoMem:
                raise
            log.warning("no memory for a photo's %s: %s", name, error)
            detail = f"there is no memory left for the photo's {name}"
            raise OutOfMemory(detail) from error
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started


class Colorizer:
    """Colours photos; synchronous, and safe to call from many threads at once."""

    def __init__(self, models: ModelRegistry, settings: Settings) -> None:
        # Photos run beside one another, one core each.
        cv2.setNumThreads(1)
        self.models = models
        self._limits = Limits(
            settings.max_pixels, settings.max_side, max(settings.deadline_s, decoding_cost.MIN_DEADLINE_S)
        )
        # More threads than cores wait for a GPU; their decoding and encoding must not crowd one another.
        self._cores = CoreScheduler(settings.cores)
        self._lock = threading.Lock()
        self._inside = 0  # photos that are being coloured

    def colorize(
        self,
        data: bytes,
        options: Options,
        *,
        model: Model | None = None,
        deadline: float | None = None,
        cancelled: threading.Event | None = None,
    ) -> ColoredImage:
        """Colours one encoded photo.

        model: by default the one of the options. deadline: a time of `time.monotonic`. Raises what
        `decoding.decode` does, UnknownModel, InvalidOption, Overloaded, DeadlineExceeded, and ClientGone once
        `cancelled` is set.
        """
        way = _Way(deadline, cancelled)
        model = model or self.models.get(options.model)
        with self._counted():
            return self._answer(data, options, model, way)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._lock:
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1

    def _answer(self, data: bytes, options: Options, model: Model, way: _Way) -> ColoredImage:
        with self._cores.acquire_to_start(), way.stage("decode"):
            source = identification.source_of(data)
            upload = _Upload(data, source, transfer.read(data, source), options)
            look = options.if_color is not None
            photo = decoding.decode(data, source, self._limits, icc=upload.said.icc, look=look)
        if photo.tone == "color" and options.if_color == "reject":
            raise ColorPhoto("the photo is in colour already", field="if_color")
        if photo.tone == "color" and options.if_color == "keep":
            with self._cores.acquire_to_continue():
                return self._kept(upload, photo, way)
        return self._coloured(upload, photo, model, way)

    def _coloured(self, upload: _Upload, photo: Photo, model: Model, way: _Way) -> ColoredImage:
        options = upload.options
        space = model.contract.color_space
        with self._cores.acquire_to_continue(), way.stage("decode"):
            pixels_in = photo.luma.size
            upright = photo.size
            format_ = _format(upload, photo)
            photo = resizing.fit(photo, format_, options.max_side)
            registry.check_size(*photo.size, format_)
            lightness = color.split(photo.luma, space, model.contract.input_size)
        chroma = self._predict(model, lightness, way) * options.strength
        with self._cores.acquire_to_continue():
            with way.stage("merge"):
                merged = _merge(photo, chroma, space, format_, options.merge)
            with way.stage("encode"):
                said = _for_answer(upload, upright, photo.size, model)
                coloured = _encode(merged, format_, options.quality or encoding.default_quality(photo), said)
        contract = model.contract
        name = f"{contract.name}/{contract.version}"
        return ColoredImage(
            coloured,
            MEDIA_TYPES[format_],
            name,
            model.device,
            way.seconds,
            photo.tone,
            way.begun,
            pixels_in,
            photo.luma.size,
        )

    def _kept(self, upload: _Upload, photo: Photo, way: _Way) -> ColoredImage:
        """The upload itself, or as an uncoloured answer where its options ask for a change."""
        options, source = upload.options, upload.source
        seconds = dict.fromkeys(STAGES, 0.0)
        if not _asks_for_change(options, source, photo):
            seconds |= way.seconds
            size = photo.luma.size
            return ColoredImage(
                upload.data, MEDIA_TYPES[source], None, None, seconds, photo.tone, way.begun, size, size
            )
        with way.stage("decode"):
            pixels = decoding.decode_pixels(upload.data, source, self._limits, icc=upload.said.icc)
            format_ = _format(upload, photo)
            pixels = resizing.fit_pixels(pixels, format_, options.max_side)
            height, width, _ = pixels.rgb.shape
            registry.check_size(height, width, format_)
        with way.stage("encode"):
            said = _for_answer(upload, photo.size, (height, width), None)
            encoded = _encode(pixels, format_, options.quality or encoding.default_quality(photo), said)
        seconds |= way.seconds
        sizes = photo.luma.size, height * width
        return ColoredImage(encoded, MEDIA_TYPES[format_], None, None, seconds, photo.tone, way.begun, *sizes)

    def warm_up(self) -> None:
        """Colours a small made-up photo with every fresh model: libraries set themselves up at their first use."""
        ramp = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
        for format_ in FORMATS:
            photo = encoding.encode_pixels(Pixels(np.dstack([ramp] * 3), None), format_, encoding.QUALITY)
            for model in self.models.fresh:
                self.colorize(photo, Options(model=model.contract.name))

    def _predict(self, model: Model, lightness: Floats, way: _Way) -> Floats:
        with way.stage("infer"):
            alone = self._inside == 1
            prediction = model.batcher.predict(lightness, deadline=way.deadline, cancelled=way.cancelled, alone=alone)
        way.seconds |= {"queue": prediction.queued, "infer": prediction.ran}
        way.begun["infer"] += prediction.queued
        return prediction.chroma


def _merge(
    photo: Photo, chroma: Floats, space: color.ColorSpace, format_: Format, merge: Literal["luma", "literal"]
) -> Planes | Pixels:
    if merge == "literal":
        return Pixels(color.merge_literal(photo.luma, chroma, space), photo.alpha)
    if photo.luma.dtype == np.uint16:
        return Pixels(color.merge_rgb(photo.luma, chroma, space), photo.alpha)
    luma: Bytes = np.asarray(photo.luma, np.uint8)
    if format_ == "jpeg":
        return Planes(luma, *color.merge_planes(color.half(luma), chroma, space))
    return Pixels(color.rgb_of_planes(luma, *color.merge_planes(luma, chroma, space)), photo.alpha)


def _encode(merged: Planes | Pixels, format_: Format, quality: int, said: Metadata) -> bytes:
    if isinstance(merged, Planes):
        encoded = encoding.encode_planes(merged, quality)
    else:
        encoded = encoding.encode_pixels(merged, format_, quality, avif_options=transfer.avif_options(said))
    return transfer.write(encoded, format_, said)


def _format(upload: _Upload, photo: Photo) -> Format:
    """The answer's."""
    options = upload.options
    pixels = min(photo.luma.size, (options.max_side or max(photo.size)) ** 2)
    default = registry.default_format(upload.source, has_alpha=photo.alpha is not None, pixels=pixels)
    return options.format or default


def _asks_for_change(options: Options, source: Source, photo: Photo) -> bool:
    return (
        options.format not in (None, source)
        or options.quality is not None
        or options.metadata == "strip"
        or (options.max_side is not None and options.max_side < max(photo.size))
    )


def _for_answer(upload: _Upload, upright: tuple[int, int], size: tuple[int, int], model: Model | None) -> Metadata:
    """Return what the upload said beside its pixels, as it is true of the answer.

    upright, size: height and width of the upright photo and of the answer, pixels.
    """
    kept = upload.said if upload.options.metadata == "keep" else transfer.strip(upload.said)
    name, version = (None, None) if model is None else (model.contract.name, model.contract.version)
    (full_height, full_width), (height, width) = upright, size
    return transfer.for_output(
        kept, width=width, height=height, model=name, version=version, upright=(full_width, full_height)
    )
