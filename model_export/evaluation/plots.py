"""Plots: predicted hues compared with the true ones, and the loss curves of training runs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from model_export.evaluation.evaluate import Sample
from model_export.evaluation.metrics import Doubles, hue_histogram
from service.imaging import color
from service.imaging.color import Bytes

DPI = 150
HUE_BINS = 36
# Luma and chroma of the bars' colours.
SHOWN_LUMA, SHOWN_CHROMA = 150, 45.0


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of this size in inches, without pyplot's global state."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _hue_colors(degrees: Doubles) -> Doubles:
    """Return a colour for each hue, RGB in 0..1, float64 [n, 3]."""
    # OpenCV 4 has no one-dimensional arrays, so this is an image of one row.
    angle = np.deg2rad(degrees.astype(np.float32))[np.newaxis]
    luma = np.full(angle.shape, SHOWN_LUMA, np.uint8)
    x, y = (np.float32(SHOWN_CHROMA) * part(angle) for part in (np.cos, np.sin))
    return np.asarray(color.rgb_at(luma, x, y, "lab")[0] / 255, np.float64)


def hues(outputs: Mapping[str, Bytes], truth: Bytes) -> Figure:
    """Return a plot of the chroma per hue: of each output as a line, and of the truth as bars.

    outputs and truth: uint8 RGB [..., 3]. The first output has a thick line.
    """
    figure, axes = _axes(9, 4.5)
    edges = np.linspace(0, 360, HUE_BINS + 1)
    middles = (edges[:-1] + edges[1:]) / 2
    true = hue_histogram(truth, HUE_BINS)
    axes.bar(middles, true, 360 / HUE_BINS, color=_hue_colors(middles))
    # The bars have different colours, but the legend needs one entry for them.
    axes.bar(0, 0, color="0.7", label=f"truth (mean chroma {true.sum():.1f})")
    for number, (name, rgb) in enumerate(outputs.items()):
        height = hue_histogram(rgb, HUE_BINS)
        style: dict[str, Any] = {"color": f"C{number - 1}", "linewidth": 1.2} if number else {"color": "black"}
        axes.stairs(height, edges, baseline=None, label=f"{name} ({height.sum():.1f})", **{"linewidth": 2, **style})
    axes.set(xlim=(0, 360), xticks=range(0, 361, 45), title="Hues of the outputs and of the truth")
    axes.set(xlabel="hue: angle of (a*, b*), degrees", ylabel="mean chroma in each 10 degrees, Lab units")
    axes.legend(frameon=False)
    return figure


def name_runs(runs: Sequence[Path]) -> dict[str, Path]:
    """Return runs by the names for a plot: the shortest distinct ends of their paths."""
    paths = list(dict.fromkeys(run.resolve() for run in runs))
    return {_distinct_suffix(path, [other for other in paths if other != path]): path for path in paths}


def _distinct_suffix(path: Path, others: Sequence[Path]) -> str:
    """Return the shortest end of a path that no other path ends in."""
    ends = (path.parts[-count:] for count in range(1, len(path.parts) + 1))
    return str(Path(*next(end for end in ends if all(other.parts[-len(end) :] != end for other in others))))


def read_history(run: Path) -> list[dict[str, float]]:
    """Return the checkpoints of a run's `history.jsonl`. Raises FileNotFoundError if the file is missing."""
    return [json.loads(line) for line in (run / "history.jsonl").read_text("utf-8").splitlines()]


def curves(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Return a plot of the training and validation loss of runs over views, with a point per checkpoint."""
    figure, axes = _axes(9, 4.5)
    for number, (name, history) in enumerate(histories.items()):
        views = [line["views"] for line in history]
        for key, style, fill, label in (
            ("validation_loss", "o-", "full", "validation"),
            ("loss", "o--", "none", "training"),
        ):
            losses = [line[key] for line in history]
            axes.plot(views, losses, style, fillstyle=fill, color=f"C{number}", markersize=5, label=f"{name}, {label}")
    axes.set(xlabel="photographs seen (views)", ylabel="loss, each recipe's own", title="How training went")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.legend(frameon=False)
    return figure


def save_all(
    outputs: Mapping[str, Sample], histories: Mapping[str, Sequence[Mapping[str, float]]], folder: Path
) -> None:
    """Write `hues.png` of outputs for the same photographs and, if there are histories, `curves.png`."""
    truth = next(iter(outputs.values())).truth
    hues({name: sample.rgb_at(1) for name, sample in outputs.items()}, truth).savefig(folder / "hues.png")
    if histories:
        curves(histories).savefig(folder / "curves.png")
