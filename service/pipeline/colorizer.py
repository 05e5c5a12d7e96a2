"""The pipeline of one photo: decode, split, predict, merge, encode."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import cv2
import numpy as np

from service.errors import ColorPhoto
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
from service.pipeline.stages import STAGES, StageTimer
from service.runtime.core_scheduler import CoreScheduler
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class ColoredImage:
    """The output for one photo, and how it was made.

    model, device: None for a photo in colour that is kept. seconds: the duration of each of STAGES. tone: the tone of
    the upload, if the options request a check. begun: the time of `time.monotonic` at which each stage but `queue`
    began. pixels_in, pixels_out: the sizes of the upload and of the output, pixels.
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
    """The format of a photo, its metadata, and the options of the request."""

    source: Source
    metadata: Metadata
    options: Options


class Colorizer:
    """Colours photos. Its methods block, and are safe to call from many threads concurrently."""

    def __init__(self, models: ModelRegistry, settings: Settings) -> None:
        # Photos run concurrently, on one core each.
        cv2.setNumThreads(1)
        self.models = models
        self._limits = Limits(
            settings.max_pixels, settings.max_side, max(settings.deadline_s, decoding_cost.MIN_DEADLINE_S)
        )
        # With a GPU there are more threads than cores. Their decoding and encoding must not compete for the cores.
        self._cores = CoreScheduler(settings.cores)
        self._lock = threading.Lock()
        self._inside = 0  # Photos in progress.

    def colorize(
        self,
        data: bytes,
        options: Options,
        *,
        model: Model | None = None,
        deadline: float | None = None,
        cancelled: threading.Event | None = None,
    ) -> ColoredImage:
        """Colour one encoded photo.

        model: by default the one that the options name. deadline: a time of `time.monotonic`.

        Raises what `identification.identify` and `decoding.decode` raise, UnknownModel, InvalidOption, ColorPhoto,
        Overloaded, DeadlineExceeded and OutOfMemory. Raises ClientGone once `cancelled` is set.
        """
        timer = StageTimer(deadline, cancelled)
        model = model or self.models.get(options.model)
        with self._counted():
            return self._run(data, options, model, timer)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._lock:
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1

    def _run(self, data: bytes, options: Options, model: Model, timer: StageTimer) -> ColoredImage:
        with self._cores.acquire_to_start(), timer.stage("decode"):
            file = identification.identify(data, self._limits)
            upload = _Upload(file.source, transfer.read(data, file.source), options)
            photo = decoding.decode(file, icc=upload.metadata.icc, detect_tone=options.if_color is not None)
        if photo.tone == "color" and options.if_color == "reject":
            raise ColorPhoto("the photo is in colour already", field="if_color")
        if photo.tone == "color" and options.if_color == "keep":
            with self._cores.acquire_to_continue():
                if not _changes(options, upload.source, photo):
                    return _uncolored(data, upload.source, photo, pixels_out=photo.luma.size, timer=timer)
                with timer.stage("decode"):
                    pixels = decoding.decode_pixels(file, icc=upload.metadata.icc)
                # The library that opened the file keeps its pixels in memory.
                del file
                return self._encode_uncolored(upload, photo, pixels, timer)
        del file
        return self._color(upload, photo, model, timer)

    def _color(self, upload: _Upload, photo: Photo, model: Model, timer: StageTimer) -> ColoredImage:
        options = upload.options
        space = model.contract.color_space
        with self._cores.acquire_to_continue(), timer.stage("decode"):
            pixels_in = photo.luma.size
            upright = photo.size
            format_ = _format(upload, photo)
            photo = resizing.fit(photo, format_, options.max_side)
            registry.check_size(*photo.size, format_)
            lightness = color.split(photo.luma, space, model.contract.input_size)
        chroma = self._predict(model, lightness, timer) * options.strength
        with self._cores.acquire_to_continue():
            with timer.stage("merge"):
                merged = _merge(photo, chroma, space, format_, options.merge)
            with timer.stage("encode"):
                metadata = _output_metadata(upload, upright, photo.size, model)
                encoded = _encode(merged, format_, options.quality or encoding.default_quality(photo), metadata)
        contract = model.contract
        name = f"{contract.name}/{contract.version}"
        return ColoredImage(
            encoded,
            MEDIA_TYPES[format_],
            model=name,
            device=model.device,
            seconds=timer.seconds,
            tone=photo.tone,
            begun=timer.begun,
            pixels_in=pixels_in,
            pixels_out=photo.luma.size,
        )

    def _encode_uncolored(self, upload: _Upload, photo: Photo, pixels: Pixels, timer: StageTimer) -> ColoredImage:
        """Return the upload encoded again with its own colours, because its options request a change."""
        options = upload.options
        with timer.stage("decode"):
            format_ = _format(upload, photo)
            pixels = resizing.fit_pixels(pixels, format_, options.max_side)
            height, width, _ = pixels.rgb.shape
            registry.check_size(height, width, format_)
        with timer.stage("encode"):
            metadata = _output_metadata(upload, photo.size, (height, width), None)
            encoded = _encode(pixels, format_, options.quality or encoding.default_quality(photo), metadata)
        return _uncolored(encoded, format_, photo, pixels_out=height * width, timer=timer)

    def warm_up(self) -> None:
        """Colour a small synthetic photo with every new model, because libraries initialise at their first use."""
        ramp = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
        for format_ in FORMATS:
            photo = encoding.encode_pixels(Pixels(np.dstack([ramp] * 3), None), format_, encoding.QUALITY)
            for model in self.models.fresh:
                self.colorize(photo, Options(model=model.contract.name))

    def _predict(self, model: Model, lightness: Floats, timer: StageTimer) -> Floats:
        with timer.stage("infer"):
            prediction = model.batcher.predict(
                lightness, deadline=timer.deadline, cancelled=timer.cancelled, alone=self._inside == 1
            )
        timer.seconds |= {"queue": prediction.queued, "infer": prediction.ran}
        timer.begun["infer"] += prediction.queued
        return prediction.chroma


def _uncolored(data: bytes, format_: Source, photo: Photo, *, pixels_out: int, timer: StageTimer) -> ColoredImage:
    """Return the output for a photo in colour that is kept. Stages that did not run took 0 s."""
    return ColoredImage(
        data,
        MEDIA_TYPES[format_],
        model=None,
        device=None,
        seconds=dict.fromkeys(STAGES, 0.0) | timer.seconds,
        tone=photo.tone,
        begun=timer.begun,
        pixels_in=photo.luma.size,
        pixels_out=pixels_out,
    )


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


def _encode(merged: Planes | Pixels, format_: Format, quality: int, metadata: Metadata) -> bytes:
    if isinstance(merged, Planes):
        encoded = encoding.encode_planes(merged, quality)
    else:
        encoded = encoding.encode_pixels(merged, format_, quality, avif_options=transfer.avif_options(metadata))
    return transfer.write(encoded, format_, metadata)


def _format(upload: _Upload, photo: Photo) -> Format:
    """Return the format of the output."""
    options = upload.options
    pixels = min(photo.luma.size, (options.max_side or max(photo.size)) ** 2)
    default = registry.default_format(upload.source, has_alpha=photo.alpha is not None, pixels=pixels)
    return options.format or default


def _changes(options: Options, source: Source, photo: Photo) -> bool:
    return (
        options.format not in (None, source)
        or options.quality is not None
        or options.metadata == "strip"
        or (options.max_side is not None and options.max_side < max(photo.size))
    )


def _output_metadata(upload: _Upload, upright: tuple[int, int], size: tuple[int, int], model: Model | None) -> Metadata:
    """Return the metadata of the upload, corrected for the output.

    upright, size: height and width of the upright photo and of the output, pixels. model: None if it is not coloured.
    """
    kept = upload.metadata if upload.options.metadata == "keep" else transfer.strip(upload.metadata)
    name, version = (None, None) if model is None else (model.contract.name, model.contract.version)
    (full_height, full_width), (height, width) = upright, size
    return transfer.for_output(
        kept, width=width, height=height, model=name, version=version, upright=(full_width, full_height)
    )
