"""The evaluation of models and baselines on the same held-out photographs, and its tables."""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from model_export.data import sources
from model_export.evaluation.metrics import (
    Doubles,
    ab_errors,
    ab_rmse,
    auc,
    chunks,
    ciede2000,
    colorfulness,
    hs_rmse,
    hue_error,
    mean_chroma,
    mean_ciede2000,
    psnr,
    rebalancing_weights,
    unevenness,
)
from model_export.threads import worker_pool
from service.imaging import color
from service.imaging.color import Bytes, ColorSpace, Floats
from service.inference.session import Engine

log = logging.getLogger(__name__)

T = TypeVar("T")

# Number of pixels measured of each photograph. Every evaluation draws the same ones.
PIXELS = 2048
STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
MAX_GAIN = 8.0
# Photographs are shrunk to squares of this side, pixels, to measure unevenness.
UNEVENNESS_SIDE = 24
# A set whose colourfulness is lower has no usable reference for gains.
MIN_COLORFULNESS = 0.5
# The first rows of every table.
BASELINES = ("gray", "constant")
# The constant is the mean of photographs shrunk to squares of this side, so that each has the same weight.
CONSTANT_SIDE = 32

Predict = Callable[[Bytes], Floats]


@dataclass(frozen=True, slots=True)
class Figures:
    """The metrics of one predictor over a set of photographs. Chroma and colour differences are in Lab units.

    de00: mean CIEDE2000. de00_best: the same at the one strength of 0.2, 0.4, .. 1 that is best for the whole set.
    best_strength: that strength. hue: mean absolute hue error, degrees, weighted by the true chroma. vivid_gain: the
    gain at which the set is as colourful as the truth (Hasler and Suesstrunk 2003); None if no gain up to MAX_GAIN
    reaches that. de00_vivid: mean CIEDE2000 at that gain. cf_gap: mean colourfulness minus the truth's. cf_err: mean
    absolute difference of colourfulness per photograph. neutral: mean chroma predicted for nearly neutral photographs;
    None without such photographs. uneven: mean `unevenness`; None if only pixels are known. Duller output has less.
    auc, auc_reb: AuC of Zhang et al. (2016), percent, plain and rebalanced. ab_rmse: root mean square error of a* and
    b*. hs_rmse: of OpenCV's H, 0..179, and S, 0..255. psnr: dB; None for the truth itself.
    """

    de00: float
    de00_best: float
    best_strength: float
    hue: float
    de00_vivid: float | None
    vivid_gain: float | None
    cf_gap: float
    cf_err: float
    neutral: float | None
    uneven: float | None
    auc: float
    auc_reb: float
    ab_rmse: float
    hs_rmse: float
    psnr: float | None


@dataclass(frozen=True, slots=True)
class SourceFigures:
    """The metrics of one source of photographs: their number, mean CIEDE2000, and hue error in degrees."""

    photographs: int
    de00: float
    hue: float


@dataclass(frozen=True, slots=True)
class Sample:
    """The measured pixels of P photographs, n of each.

    luma: uint8 [P, n]. chroma: predicted, float32 [2, P, n]. truth: RGB, uint8 [P, n, 3]. uneven: `unevenness` of each
    photograph at strength 1, float64 [P]; None if unknown.
    """

    luma: Bytes
    chroma: Floats
    truth: Bytes
    color_space: ColorSpace
    uneven: Doubles | None = None

    def rgb_at(self, strength: float) -> Bytes:
        """Return the predicted RGB at a strength, uint8 [P, n, 3]."""
        rgb = np.empty_like(self.truth)
        for rows in chunks(len(rgb)):
            x, y = self.chroma[:, rows] * np.float32(strength)
            rgb[rows] = color.rgb_at(self.luma[rows], x, y, self.color_space)
        return rgb


@dataclass(frozen=True, slots=True)
class Predictor:
    """A function from luma to chroma, and the colour space of its chroma: a model or a baseline."""

    predict: Predict
    color_space: ColorSpace


@dataclass(frozen=True, slots=True)
class Constant:
    """The constant baseline: its (a*, b*), and for the note, the photographs that it is the mean of."""

    chroma: tuple[float, float]
    origin: str


@dataclass(frozen=True, slots=True)
class Measurement:
    """The results of one predictor.

    figures: of the whole set. de00 and hue: mean CIEDE2000 and hue error of each photograph, float64 [P]. by_source: of
    each source.
    """

    sample: Sample
    figures: Figures
    de00: Doubles
    hue: Doubles
    by_source: dict[str, SourceFigures]


@dataclass(frozen=True, slots=True)
class Report:
    """The results of all predictors on the same photographs.

    rows: by name. model: the name of the row that the report is about. note: what was measured.
    """

    rows: dict[str, Measurement]
    model: str
    note: str

    def de00_change(self) -> Doubles:
        """Return each photograph's CIEDE2000 minus that of its gray version, float64 [P]. Negative: the model helps."""
        return self.rows[self.model].de00 - self.rows["gray"].de00

    def caption(self, photograph: int) -> str:
        """Return the caption of one photograph, with its errors."""
        row, gray = self.rows[self.model], self.rows["gray"]
        error = f"CIEDE2000 {row.de00[photograph]:.1f}, gray {gray.de00[photograph]:.1f}"
        return f"{error}; hue {row.hue[photograph]:.0f} degrees off"


def model_predict(engine: Engine) -> Predict:
    """Return a function that predicts chroma, float32 [2, s, s], from a luma plane, uint8 [H, W]."""
    contract = engine.contract

    def predict(luma: Bytes) -> Floats:
        lightness = color.split(luma, contract.color_space, contract.input_size)
        chroma: Floats = engine.predict(lightness[np.newaxis])[0]
        return chroma

    return predict


def _with_progress(photos: Iterator[T], total: int, task: str) -> Iterable[T]:
    """Return the items with a progress bar on a terminal, and without one in a log."""
    return tqdm(photos, total=total, desc=task, unit=" photos", disable=None, leave=False)


def drop_unreadable(entries: Sequence[sources.Entry]) -> tuple[list[sources.Entry], int]:
    """Return the photographs that can be read, and the number of the others, which are logged.

    Raises ValueError if none can be read, unless `entries` is empty.
    """

    def one(entry: sources.Entry) -> bool:
        try:
            entry.read()
        except sources.UnreadablePhotograph as error:
            log.warning("left out: %s", error)
            return False
        return True

    with worker_pool() as pool:
        fit = list(_with_progress(pool.map(one, entries), len(entries), "reading"))
    if entries and not any(fit):
        raise ValueError(f"none of {len(entries):,} photographs can be read; the first is {entries[0].name}")
    return list(itertools.compress(entries, fit)), fit.count(False)


def take_sample(entries: Sequence[sources.Entry], predictor: Predictor) -> Sample:
    """Colour every photograph at its own size, and return PIXELS random pixels of each."""

    def one(entry: sources.Entry) -> tuple[Bytes, Floats, Bytes, float]:
        rgb = entry.read()
        luma = color.luma_of_rgb(rgb)
        chroma = predictor.predict(luma)
        planes = color.enlarge(chroma, *luma.shape)
        small = color.merge_rgb(color.square(luma, UNEVENNESS_SIDE), chroma, predictor.color_space)
        uneven = unevenness(small, color.square(rgb, UNEVENNESS_SIDE))
        drawn = np.random.default_rng(luma.size).integers(luma.size, size=PIXELS)
        return luma.ravel()[drawn], np.stack([p.ravel()[drawn] for p in planes]), rgb.reshape(-1, 3)[drawn], uneven

    with worker_pool() as pool:
        rows = list(_with_progress(pool.map(one, entries), len(entries), "colouring"))
    luma, chroma, truth, uneven = (np.stack(parts) for parts in zip(*rows, strict=True))
    planes = np.ascontiguousarray(chroma.transpose(1, 0, 2))
    return Sample(luma, planes, truth, predictor.color_space, uneven)


def vivid_gain(sample: Sample) -> float | None:
    """Return the gain, to 0.01, at which the output is as colourful as the truth; None if there is no such gain."""
    target = colorfulness(sample.truth).mean()
    low, high = 0.0, MAX_GAIN
    if target < MIN_COLORFULNESS or colorfulness(sample.rgb_at(high)).mean() < target:
        return None
    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (middle, high) if colorfulness(sample.rgb_at(middle)).mean() < target else (low, middle)
    return high


def measure(sample: Sample, neutral: Sample | None = None) -> Figures:
    """Return all metrics of one predictor."""
    plain, truth = sample.rgb_at(1), sample.truth
    by_strength = {strength: mean_ciede2000(sample.rgb_at(strength), truth) for strength in STRENGTHS}
    best = min(by_strength, key=by_strength.__getitem__)
    gain = vivid_gain(sample)
    gaps = colorfulness(plain) - colorfulness(truth)
    errors = ab_errors(plain, truth)
    return Figures(
        de00=by_strength[1.0],
        de00_best=by_strength[best],
        best_strength=best,
        hue=hue_error(plain, truth),
        de00_vivid=None if gain is None else mean_ciede2000(sample.rgb_at(gain), truth),
        vivid_gain=gain,
        cf_gap=float(gaps.mean()),
        cf_err=float(np.abs(gaps).mean()),
        neutral=None if neutral is None else mean_chroma(neutral.rgb_at(1)),
        uneven=None if sample.uneven is None else float(sample.uneven.mean()),
        auc=auc(errors),
        auc_reb=auc(errors, rebalancing_weights(truth)),
        ab_rmse=ab_rmse(errors),
        hs_rmse=hs_rmse(plain, truth),
        psnr=psnr(plain, truth),
    )


def source_of(entry: sources.Entry) -> str:
    """Return the source of a photograph, which is the first folder of its name; "-" if it has no folder."""
    return entry.source or "-"


def _measure_in_parts(sample: Sample, names: Sequence[str], neutral: Sample | None) -> Measurement:
    """Return the metrics of the set, of each photograph and of each source. names: each photograph's source."""
    plain, truth = sample.rgb_at(1), sample.truth
    de00 = ciede2000(plain, truth).mean(axis=1, dtype=np.float64)
    hue = np.array([hue_error(*pixels) for pixels in zip(plain, truth, strict=True)])
    by_source = {}
    for name in sorted(set(names)):
        rows = np.flatnonzero(np.array(names) == name)
        error = hue_error(plain[rows], truth[rows])
        by_source[name] = SourceFigures(len(rows), float(de00[rows].mean()), error)
    return Measurement(sample, measure(sample, neutral), de00, hue, by_source)


def constant_predict(chroma: tuple[float, float]) -> Predict:
    """Return a function that predicts this (a*, b*) everywhere; (0, 0) is gray."""
    grid = np.array(chroma, np.float32).reshape(2, 1, 1)
    return lambda _: grid


def mean_chroma_of(entries: Sequence[sources.Entry]) -> tuple[float, float]:
    """Return the mean (a*, b*) of photographs, each with the same weight."""

    def one(entry: sources.Entry) -> Floats:
        _, chroma = color.split_rgb(color.square(entry.read(), CONSTANT_SIDE), "lab")
        return chroma

    with worker_pool() as pool:
        a, b = np.mean(list(pool.map(one, entries)), axis=(0, 1, 2))
    return float(a), float(b)


def _names(name: str, file: Path) -> Iterator[str]:
    """Yield names for a table row, the preferred ones first."""
    yield name
    yield f"{name} ({file.stem})"
    yield from (f"{name} ({file.stem}, {number})" for number in itertools.count(2))


def name_models(models: Sequence[tuple[Path, Engine]]) -> dict[str, Engine]:
    """Return the models, each with its file, by their names in a table.

    The first has its contract's name, the others name and version. If a name is taken, the file's name is added.
    """
    named: dict[str, Engine] = {}
    for file, engine in models:
        contract = engine.contract
        wanted = f"{contract.name} {contract.version}" if named else contract.name
        named[next(name for name in _names(wanted, file) if name not in {*BASELINES, *named})] = engine
    return named


def predictor_of(engine: Engine) -> Predictor:
    """Return a model as a predictor."""
    return Predictor(model_predict(engine), engine.contract.color_space)


def _predictors(models: Mapping[str, Engine], constant: tuple[float, float]) -> dict[str, Predictor]:
    """Return the baselines, which are the same for every model, and the models."""
    baselines = {
        name: Predictor(constant_predict(c), "lab") for name, c in zip(BASELINES, ((0, 0), constant), strict=True)
    }
    return baselines | {name: predictor_of(engine) for name, engine in models.items()}


def evaluate(
    models: Mapping[str, Engine],
    entries: Sequence[sources.Entry],
    neutral: Sequence[sources.Entry],
    constant: Constant,
    unreadable: int = 0,
) -> Report:
    """Measure gray, a constant colour and the models on the same photographs, all of which must be readable.

    neutral: nearly neutral photographs; may be empty. unreadable: for the note, the number of photographs left out.
    """
    names = [source_of(entry) for entry in entries]
    rows = {}
    for name, predictor in _predictors(models, constant.chroma).items():
        gray = take_sample(neutral, predictor) if neutral else None
        rows[name] = _measure_in_parts(take_sample(entries, predictor), names, gray)
    note = f"{len(entries):,} photographs, {PIXELS:,} pixels of each; {len(neutral):,} nearly neutral photographs."
    left_out = f" {unreadable:,} unreadable photographs are left out." if unreadable else ""
    return Report(rows, next(iter(models)), f"{note} `constant` is the mean colour of {constant.origin}.{left_out}")
