"""Measures models on held-out photographs, beside answers that anyone could give."""

import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
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

# Pixels of each photograph that are measured; the same ones in every run.
PIXELS = 2048
STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
MAX_GAIN = 8.0
# Photographs are shrunk to this side where their places are compared.
UNEVENNESS_SIDE = 24
# A set of less colourfulness has none that answers could be held against.
MIN_COLORFULNESS = 0.5
# The rows that every table begins with.
BASELINES = ("gray", "constant")
# The constant is the mean of photographs shrunk to this side, so that each counts the same.
CONSTANT_SIDE = 32

Predict = Callable[[Bytes], Floats]


@dataclass(frozen=True, slots=True)
class Figures:
    """What is measured of one way to answer. Chroma and differences are in Lab units, hue in degrees.

    de00: mean CIEDE2000. de00_best: the same at the best of the strengths 0.2, 0.4, .. 1, for the whole set.
    hue: mean absolute error of hue, weighted by the true chroma. vivid_gain: the gain that makes the set as colourful
    as the truth (Hasler and Suesstrunk 2003), None where nothing does; de00_vivid: CIEDE2000 at that gain.
    cf_gap: mean colourfulness minus the truth's; cf_err: mean of the photographs' absolute differences.
    neutral: mean chroma given to nearly neutral photographs. uneven: chroma that strays within things of one colour, of
    which a duller answer has less (None where only pixels are known). auc, auc_reb: accuracy of Zhang et al. 2016,
    percent, plain and rebalanced. ab_rmse in Lab units, hs_rmse in OpenCV's (H 0..179, S 0..255), psnr in dB (None for
    the truth itself).
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
    """The same of the photographs of one collection."""

    photographs: int
    de00: float
    hue: float


@dataclass(frozen=True, slots=True)
class Sample:
    """Measurement pixels: luma uint8 [P, n], an answer's chroma float32 [2, P, n], true RGB uint8 [P, n, 3].

    uneven: the unevenness of each photograph's answer at strength 1, float64 [P].
    """

    luma: Bytes
    chroma: Floats
    truth: Bytes
    color_space: ColorSpace
    uneven: Doubles | None = None

    def rgb_at(self, strength: float) -> Bytes:
        """The answer's RGB at a strength, uint8 [P, n, 3]."""
        rgb = np.empty_like(self.truth)
        for rows in chunks(len(rgb)):
            x, y = self.chroma[:, rows] * np.float32(strength)
            rgb[rows] = color.rgb_at(self.luma[rows], x, y, self.color_space)
        return rgb


@dataclass(frozen=True, slots=True)
class Predictor:
    """A way to answer: a model's, or one that anyone could think of."""

    predict: Predict
    color_space: ColorSpace


@dataclass(frozen=True, slots=True)
class Measurement:
    """A way's figures: of the set, of each photograph (mean CIEDE2000 and hue error, float64 [P]), of each source."""

    sample: Sample
    figures: Figures
    de00: Doubles
    hue: Doubles
    by_source: dict[str, SourceFigures]


@dataclass(frozen=True, slots=True)
class Report:
    """All ways, measured on the same photographs. `model` names the row that it is about, `note` what was measured."""

    rows: dict[str, Measurement]
    model: str
    note: str

    def de00_change(self) -> Doubles:
        """Each photograph's CIEDE2000 minus that of its gray, float64 [P]: below zero where the model helps."""
        return self.rows[self.model].de00 - self.rows["gray"].de00

    def caption(self, photograph: int) -> str:
        """How well the model has done on one of them."""
        row, gray = self.rows[self.model], self.rows["gray"]
        error = f"CIEDE2000 {row.de00[photograph]:.1f}, gray {gray.de00[photograph]:.1f}"
        return f"{error}; hue {row.hue[photograph]:.0f} degrees off"


def model_predict(engine: Engine) -> Predict:
    """What a model answers to a luma plane: chroma, float32 [2, s, s]."""
    contract = engine.contract

    def predict(luma: Bytes) -> Floats:
        lightness = color.split(luma, contract.color_space, contract.input_size)
        answer: Floats = engine.predict(lightness[np.newaxis])[0]
        return answer

    return predict


def _with_progress(photos: Iterator[T], total: int, doing: str) -> Iterable[T]:
    """With a bar on a terminal, and none in a log."""
    return tqdm(photos, total=total, desc=doing, unit=" photos", disable=None, leave=False)


def drop_unreadable(entries: Sequence[sources.Entry]) -> tuple[list[sources.Entry], int]:
    """The photographs that can be read, and the number of the others. Raises ValueError when none of some can be."""

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
        raise ValueError(f"none of {len(entries):,} photographs can be read, the first {entries[0].name}")
    return list(itertools.compress(entries, fit)), fit.count(False)


def take_sample(entries: Sequence[sources.Entry], predict: Predict, color_space: ColorSpace) -> Sample:
    """Colours every photograph at its own size and keeps some pixels of each."""

    def one(entry: sources.Entry) -> tuple[Bytes, Floats, Bytes, float]:
        rgb = entry.read()
        luma = color.luma_of_rgb(rgb)
        chroma = predict(luma)
        planes = color.enlarge(chroma, *luma.shape)
        small = color.merge_rgb(color.square(luma, UNEVENNESS_SIDE), chroma, color_space)
        uneven = unevenness(small, color.square(rgb, UNEVENNESS_SIDE))
        drawn = np.random.default_rng(luma.size).integers(luma.size, size=PIXELS)
        return luma.ravel()[drawn], np.stack([p.ravel()[drawn] for p in planes]), rgb.reshape(-1, 3)[drawn], uneven

    with worker_pool() as pool:
        rows = list(_with_progress(pool.map(one, entries), len(entries), "colouring"))
    luma, chroma, truth, uneven = (np.stack(parts) for parts in zip(*rows, strict=True))
    return Sample(luma, np.ascontiguousarray(chroma.transpose(1, 0, 2)), truth, color_space, uneven)


def vivid_gain(sample: Sample) -> float | None:
    """The gain at which the answers are as colourful as the truth, to a hundredth; None where none does."""
    aim = colorfulness(sample.truth).mean()
    low, high = 0.0, MAX_GAIN
    if aim < MIN_COLORFULNESS or colorfulness(sample.rgb_at(high)).mean() < aim:
        return None
    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (middle, high) if colorfulness(sample.rgb_at(middle)).mean() < aim else (low, middle)
    return high


def measure(sample: Sample, neutral: Sample | None = None) -> Figures:
    """All figures of one way to answer."""
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
    """The collection that a photograph is of: the first folder in its name; "-" where it has none."""
    return entry.source or "-"


def _measure_in_parts(sample: Sample, names: Sequence[str], neutral: Sample | None) -> Measurement:
    """Measures the set, its photographs and its sources; `names` has the source of each photograph."""
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
    """The same chroma everywhere; gray for (0, 0)."""
    grid = np.array(chroma, np.float32).reshape(2, 1, 1)
    return lambda _: grid


def mean_chroma_of(entries: Sequence[sources.Entry]) -> tuple[float, float]:
    """The constant that training photographs would suggest: their mean (a*, b*)."""

    def one(entry: sources.Entry) -> Floats:
        _, chroma = color.split_rgb(color.square(entry.read(), CONSTANT_SIDE), "lab")
        return chroma

    with worker_pool() as pool:
        a, b = np.mean(list(pool.map(one, entries)), axis=(0, 1, 2))
    return float(a), float(b)


def _names(name: str, file: Path) -> Iterator[str]:
    yield name
    yield f"{name} ({file.stem})"
    yield from (f"{name} ({file.stem}, {number})" for number in itertools.count(2))


def name_models(models: Sequence[tuple[Path, Engine]]) -> dict[str, Engine]:
    """What models, each with its file, are called in a table.

    The first has its own name, the others name and version; to what is taken already the file's name is added.
    """
    named: dict[str, Engine] = {}
    for file, engine in models:
        contract = engine.contract
        wanted = f"{contract.name} {contract.version}" if named else contract.name
        named[next(name for name in _names(wanted, file) if name not in {*BASELINES, *named})] = engine
    return named


def predictor_of(engine: Engine) -> Predictor:
    """What a model answers."""
    return Predictor(model_predict(engine), engine.contract.color_space)


def _predictors(models: Mapping[str, Engine], constant: tuple[float, float]) -> dict[str, Predictor]:
    """The baselines, which no model's colour space changes, and the models."""
    ways = {name: Predictor(constant_predict(c), "lab") for name, c in zip(BASELINES, ((0, 0), constant), strict=True)}
    return ways | {name: predictor_of(engine) for name, engine in models.items()}


def evaluate(
    models: Mapping[str, Engine],
    entries: Sequence[sources.Entry],
    neutral: Sequence[sources.Entry],
    constant: tuple[float, float],
    origin: str,
    unreadable: int = 0,
) -> Report:
    """Measures gray, the constant (a*, b*) and the models on the same photographs, all of them `drop_unreadable` ones.

    neutral: nearly neutral photographs, may be none. For the note: whose mean colour the constant is, and how many
    photographs were left out of all of them.
    """
    names = [source_of(entry) for entry in entries]
    rows = {}
    for name, way in _predictors(models, constant).items():
        gray = take_sample(neutral, way.predict, way.color_space) if neutral else None
        rows[name] = _measure_in_parts(take_sample(entries, way.predict, way.color_space), names, gray)
    note = f"{len(entries):,} photographs, {PIXELS:,} pixels of each; {len(neutral):,} nearly neutral ones."
    left_out = f" {unreadable:,} that can't be read are left out." if unreadable else ""
    return Report(rows, next(iter(models)), f"{note} `constant` is the mean colour of {origin}.{left_out}")


def gain_table(sample: Sample, gains: Sequence[float]) -> str:
    """What each gain costs in CIEDE2000 and gives in colourfulness, as a table: to choose one for the export."""
    aim = colorfulness(sample.truth).mean()
    lines = ["| gain | de00 | colourfulness, of the truth's |", "| --- | --- | --- |"]
    for gain in gains:
        answer = sample.rgb_at(gain)
        share = f"{colorfulness(answer).mean() / aim:.0%}" if aim >= MIN_COLORFULNESS else "-"
        lines.append(f"| {gain:g} | {mean_ciede2000(answer, sample.truth):.2f} | {share} |")
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def markdown(rows: Mapping[str, Figures]) -> str:
    """The figures as a table."""
    columns = [field for field in Figures.__dataclass_fields__ if field != "best_strength"]
    lines = []
    for name, figures in rows.items():
        values = asdict(figures)
        lines.append([name, *("-" if values[column] is None else f"{values[column]:.2f}" for column in columns)])
    return _table(["answer", *columns], lines)


def sources_markdown(report: Report) -> str:
    """Where the model helps and where it harms, as a table: a row a source, the most helped first."""
    gray, model = report.rows["gray"].by_source, report.rows[report.model].by_source
    head = ["source", "photographs", "de00 of gray", f"de00 of {report.model}", "difference", "hue"]
    lines = [
        (own.de00 - gray[name].de00, [name, str(own.photographs), f"{gray[name].de00:.2f}", f"{own.de00:.2f}"], own.hue)
        for name, own in model.items()
    ]
    return _table(head, [[*cells, f"{harm:+.2f}", f"{hue:.1f}"] for harm, cells, hue in sorted(lines)])


def write(report: Report, folder: Path) -> None:
    """Writes `figures.json` and `figures.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        name: {**asdict(row.figures), "sources": {key: asdict(value) for key, value in row.by_source.items()}}
        for name, row in report.rows.items()
    }
    (folder / "figures.json").write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    table = markdown({name: row.figures for name, row in report.rows.items()})
    (folder / "figures.md").write_text(f"{table}\n{report.note}\n\n{sources_markdown(report)}", "utf-8")
