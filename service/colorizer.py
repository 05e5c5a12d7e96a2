"""The way of one photo, whoever calls: decode, split, predict, merge, encode."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from service import codec, color, metadata
from service.catalog import Catalog, Model
from service.color import Floats
from service.photo import MEDIA_TYPES, Format, Photo, Pixels, Planes
from service.problems import ClientGone, DeadlineExceeded
from service.settings import Settings


class Options(BaseModel):
    """What a caller may ask for."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: str | None = Field(None, description="a name from `GET /models`; by default the one marked there")
    format: Format | None = Field(
        None, description="format of the answer; by default what `Accept` alone asks for, else that of the upload"
    )
    quality: int | None = Field(
        None, ge=1, le=100, description="of a JPEG or WebP answer; by default a JPEG's own, at least 85, else 92"
    )
    strength: float = Field(1.0, ge=0, le=2, description="scales the colour: 0 is gray, 1 the model's own")
    max_side: int | None = Field(None, ge=1, description="shrinks the answer to this longer side, pixels")
    metadata: Literal["keep", "strip"] = Field(
        "keep",
        description="`keep` carries captions, dates, places and the like over; `strip` drops them. That the colours are"
        " synthetic is noted either way",
    )
    merge: Literal["luma", "literal"] = Field(
        "luma", description="`luma` keeps the photo's luma exactly; `literal` converts L*ab or HSV to RGB"
    )


@dataclass(frozen=True, slots=True)
class Answer:
    """A coloured photo, and how it came about. `seconds` goes by stage: decode, queue, infer, merge, encode.

    `begun` are the times of `time.monotonic` when the stages began, without the queue; pixels are those of the photo as
    it came, and as it is answered.
    """

    data: bytes
    media_type: str
    model: str
    device: str
    seconds: dict[str, float]
    begun: dict[str, float] = field(default_factory=dict)
    pixels_in: int = 0
    pixels_out: int = 0


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
        self.begun[name] = started
        yield
        self.seconds[name] = time.monotonic() - started


class Colorizer:
    """Colours photos; synchronous, and safe to call from many threads at once."""

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        self.catalog = catalog
        self._limits = codec.Limits(settings.max_pixels, settings.max_side)
        # More threads than cores wait for a GPU; their decoding and encoding must not crowd one another.
        self._cores = threading.BoundedSemaphore(settings.cores)

    def colorize(
        self,
        data: bytes,
        options: Options,
        *,
        deadline: float | None = None,
        cancelled: threading.Event | None = None,
    ) -> Answer:
        """Colours one encoded photo.

        deadline: a time of `time.monotonic`. Raises the problems of the codec, UnknownModel, InvalidOption,
        Overloaded, DeadlineExceeded, and ClientGone once `cancelled` is set.
        """
        way = _Way(deadline, cancelled)
        model = self.catalog.get(options.model)
        space = model.contract.color_space
        with self._cores, way.stage("decode"):
            photo = codec.decode(data, self._limits)
            said = metadata.read(data, photo.format)
            pixels_in = photo.luma.size
            format_ = options.format or photo.format
            if options.max_side is not None:
                photo = codec.shrink(photo, options.max_side)
            codec.check_size(*photo.size, format_)
            if format_ == "jpeg":
                photo = codec.flatten(photo)
            lightness = color.split(photo.luma, space, model.contract.input_size)
        chroma = self._predict(model, lightness, way) * options.strength
        with self._cores:
            with way.stage("merge"):
                merged = _merge(photo, chroma, space, format_, options.merge)
            with way.stage("encode"):
                quality = options.quality or codec.default_quality(photo)
                coloured = (
                    codec.encode_planes(merged, quality)
                    if isinstance(merged, Planes)
                    else codec.encode_pixels(merged, format_, quality)
                )
                said = _for_answer(said, photo, model, options)
                coloured = metadata.write(coloured, format_, said)
        contract = model.contract
        name = f"{contract.name}/{contract.version}"
        return Answer(
            coloured, MEDIA_TYPES[format_], name, model.device, way.seconds, way.begun, pixels_in, photo.luma.size
        )

    def warm(self) -> None:
        """Colours a small made-up photo with every fresh model: libraries set themselves up at their first use."""
        ramp = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
        for format_ in MEDIA_TYPES:
            photo = codec.encode_pixels(Pixels(np.dstack([ramp] * 3), None), format_, codec.QUALITY)
            for model in self.catalog.fresh:
                self.colorize(photo, Options(model=model.contract.name))

    def _predict(self, model: Model, lightness: Floats, way: _Way) -> Floats:
        with way.stage("infer"):
            prediction = model.batcher.predict(lightness, deadline=way.deadline, cancelled=way.cancelled)
        way.seconds |= {"queue": prediction.queued, "infer": prediction.ran}
        way.begun["infer"] += prediction.queued
        return prediction.chroma


def _merge(
    photo: Photo, chroma: Floats, space: color.ColorSpace, format_: Format, merge: Literal["luma", "literal"]
) -> Planes | Pixels:
    if merge == "literal":
        return Pixels(color.merge_literal(photo.luma, chroma, space), photo.alpha)
    if format_ == "jpeg":
        return Planes(photo.luma, *color.merge_planes(color.half(photo.luma), chroma, space))
    cb, cr = color.merge_planes(photo.luma, chroma, space)
    return Pixels(color.rgb_of_planes(photo.luma, cb, cr), photo.alpha)


def _for_answer(said: metadata.Metadata, photo: Photo, model: Model, options: Options) -> metadata.Metadata:
    """What the upload said beside its pixels, as it is true of the answer."""
    height, width = photo.size
    kept = said if options.metadata == "keep" else metadata.strip(said)
    contract = model.contract
    return metadata.for_answer(kept, width=width, height=height, model=contract.name, version=contract.version)
