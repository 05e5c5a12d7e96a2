"""Measures a model on held-out photographs, beside answers that anyone could give."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from skimage.color import deltaE_ciede2000, rgb2lab
from tqdm import tqdm

from model_export import data, sources
from service import color
from service.color import Bytes, ColorSpace, Floats
from service.engine import Engine

# Pixels of each photograph that are measured; the same ones in every run.
PIXELS = 2048
STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
# Below this chroma, Lab units, an answer has no hue.
NO_HUE = 0.5
MOST_GAIN = 8.0

Predict = Callable[[Bytes], Floats]


@dataclass(frozen=True, slots=True)
class Figures:
    """What is measured of one way to answer. Chroma and differences are in Lab units, hue in degrees.

    de00: mean CIEDE2000. de00_best: the same at the best of the strengths 0.2, 0.4, .. 1, for the whole set.
    hue: mean absolute error of hue, weighted by the true chroma. vivid_gain: the gain that makes the set as colourful
    as the truth (Hasler and Suesstrunk 2003), None where nothing does; de00_vivid: CIEDE2000 at that gain.
    cf_gap: mean colourfulness minus the truth's. neutral: mean chroma given to nearly neutral photographs.
    """

    de00: float
    de00_best: float
    best_strength: float
    hue: float
    de00_vivid: float | None
    vivid_gain: float | None
    cf_gap: float
    neutral: float | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """Measured pixels: luma uint8 [P, n], an answer's chroma float32 [2, P, n], true RGB uint8 [P, n, 3]."""

    luma: Bytes
    chroma: Floats
    truth: Bytes
    color_space: ColorSpace

    def answered(self, strength: float) -> Bytes:
        """The answer's RGB at a strength, uint8 [P, n, 3]."""
        x, y = self.chroma * np.float32(strength)
        return color.rgb_at(self.luma, x, y, self.color_space)


def model_predictor(engine: Engine) -> Predict:
    """What a model answers to a luma plane: chroma, float32 [2, s, s]."""
    contract = engine.contract

    def predict(luma: Bytes) -> Floats:
        lightness = color.split(luma, contract.color_space, contract.input_size)
        answer: Floats = engine.predict(lightness[np.newaxis])[0]
        return answer

    return predict


def take_sample(entries: Sequence[sources.Entry], predict: Predict, color_space: ColorSpace) -> Sample:
    """Colours every photograph at its own size and keeps some pixels of each."""

    def one(entry: sources.Entry) -> tuple[Bytes, Floats, Bytes]:
        rgb = entry.read()
        luma = color.luma_of_rgb(rgb)
        planes = color.enlarge(predict(luma), *luma.shape)
        drawn = np.random.default_rng(luma.size).integers(luma.size, size=PIXELS)
        return luma.ravel()[drawn], np.stack([p.ravel()[drawn] for p in planes]), rgb.reshape(-1, 3)[drawn]

    with ThreadPoolExecutor() as pool:
        rows = list(tqdm(pool.map(one, entries), total=len(entries), desc="colouring", unit=" photos", leave=False))
    luma, chroma, truth = (np.stack(parts) for parts in zip(*rows, strict=True))
    return Sample(luma, np.ascontiguousarray(chroma.transpose(1, 0, 2)), truth, color_space)


def colorfulness(rgb: Bytes) -> NDArray[np.float64]:
    """M3 of Hasler and Suesstrunk, "Measuring colourfulness in natural images" (2003), [P] of pixels [P, n, 3]."""
    red, green, blue = np.moveaxis(rgb.astype(np.float64), -1, 0)
    red_green, yellow_blue = red - green, (red + green) / 2 - blue
    spread = np.hypot(red_green.std(axis=1), yellow_blue.std(axis=1))
    mean = np.hypot(red_green.mean(axis=1), yellow_blue.mean(axis=1))
    return np.asarray(spread + 0.3 * mean)


def difference(rgb: Bytes, truth: Bytes) -> float:
    """Mean CIEDE2000 of pixels."""
    return float(
        deltaE_ciede2000(  # type: ignore[no-untyped-call]
            rgb2lab(rgb), rgb2lab(truth)
        ).mean()
    )


def hue_error(rgb: Bytes, truth: Bytes) -> float:
    """Mean absolute hue error, degrees, weighted by the true chroma; 90 where the answer has no hue."""
    answer, true = rgb2lab(rgb)[..., 1:], rgb2lab(truth)[..., 1:]
    turn = np.arctan2(answer[..., 1], answer[..., 0]) - np.arctan2(true[..., 1], true[..., 0])
    error = np.abs(np.rad2deg(np.arctan2(np.sin(turn), np.cos(turn))))
    error = np.where(np.hypot(answer[..., 0], answer[..., 1]) < NO_HUE, 90, error)
    return float(np.average(error, weights=np.hypot(true[..., 0], true[..., 1])))


def vivid_gain(sample: Sample) -> float | None:
    """The gain at which the answers are as colourful as the truth, to a hundredth; None where nothing does."""
    aim = colorfulness(sample.truth).mean()
    low, high = 0.0, MOST_GAIN
    if colorfulness(sample.answered(high)).mean() < aim:
        return None
    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (middle, high) if colorfulness(sample.answered(middle)).mean() < aim else (low, middle)
    return high


def measure(sample: Sample, neutral: Sample | None = None) -> Figures:
    """All figures of one way to answer."""
    plain = sample.answered(1)
    by_strength = {strength: difference(sample.answered(strength), sample.truth) for strength in STRENGTHS}
    best = min(by_strength, key=by_strength.__getitem__)
    gain = vivid_gain(sample)
    return Figures(
        de00=by_strength[1.0],
        de00_best=by_strength[best],
        best_strength=best,
        hue=hue_error(plain, sample.truth),
        de00_vivid=None if gain is None else difference(sample.answered(gain), sample.truth),
        vivid_gain=gain,
        cf_gap=float((colorfulness(plain) - colorfulness(sample.truth)).mean()),
        neutral=None if neutral is None else mean_chroma(neutral.answered(1)),
    )


def mean_chroma(rgb: Bytes) -> float:
    """Mean Lab chroma of pixels."""
    lab = rgb2lab(rgb)
    return float(np.hypot(lab[..., 1], lab[..., 2]).mean())


def constant_predictor(chroma: tuple[float, float]) -> Predict:
    """The same chroma everywhere; gray for (0, 0)."""
    grid = np.array(chroma, np.float32).reshape(2, 1, 1)
    return lambda _: grid


def mean_chroma_of(entries: Sequence[sources.Entry], color_space: ColorSpace) -> tuple[float, float]:
    """The constant that training photographs would suggest: their mean chroma."""
    _, chroma = data.fixed(entries, 32, color_space)
    x, y = chroma.reshape(-1, 2).mean(axis=0)
    return float(x), float(y)


def evaluate(
    engine: Engine, entries: Sequence[sources.Entry], neutral: Sequence[sources.Entry], constant: tuple[float, float]
) -> dict[str, Figures]:
    """Figures of gray, of the constant (its chroma in the model's space) and of the model."""
    space = engine.contract.color_space
    ways = {
        "gray": constant_predictor((0, 0)),
        "constant": constant_predictor(constant),
        engine.contract.name: model_predictor(engine),
    }
    return {
        name: measure(take_sample(entries, predict, space), take_sample(neutral, predict, space) if neutral else None)
        for name, predict in ways.items()
    }


def gain_table(sample: Sample, gains: Sequence[float]) -> str:
    """What each gain costs in CIEDE2000 and gives in colourfulness, as a table: to choose one for the export."""
    aim = colorfulness(sample.truth).mean()
    lines = ["| gain | de00 | colourfulness, of the truth's |", "| --- | --- | --- |"]
    for gain in gains:
        answer = sample.answered(gain)
        lines.append(f"| {gain:g} | {difference(answer, sample.truth):.2f} | {colorfulness(answer).mean() / aim:.0%} |")
    return "\n".join(lines) + "\n"


def markdown(rows: dict[str, Figures]) -> str:
    """The figures as a table."""
    columns = [field for field in Figures.__dataclass_fields__ if field != "best_strength"]
    lines = ["| answer | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for name, figures in rows.items():
        values = asdict(figures)
        cells = ["-" if values[column] is None else f"{values[column]:.2f}" for column in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write(rows: dict[str, Figures], folder: Path) -> None:
    """Writes `figures.json` and `figures.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {name: asdict(figures) for name, figures in rows.items()}
    (folder / "figures.json").write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    (folder / "figures.md").write_text(markdown(rows), "utf-8")
