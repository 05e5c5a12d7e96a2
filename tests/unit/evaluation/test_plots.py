import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch

from model_export.evaluation import metrics, plots
from model_export.evaluation.evaluate import Sample
from service.imaging import color

HISTORY = [
    {"views": 1000, "minutes": 1.0, "side": 96, "loss": 4.0, "validation_loss": 3.9},
    {"views": 2000, "minutes": 2.0, "side": 96, "loss": math.nan, "validation_loss": 3.5},
    {"views": 9000, "minutes": 9.0, "side": 128, "loss": 3.25, "validation_loss": 3.0},
]


def texts(figure: Figure) -> list[str]:
    axes = figure.axes[0]
    legend = axes.get_legend()
    assert legend is not None
    return [*(text.get_text() for text in legend.get_texts()), axes.get_xlabel(), axes.get_ylabel()]


def test_hues_are_drawn_beside_the_true_ones() -> None:
    random = np.random.default_rng(0)
    truth, answer = (random.integers(0, 256, (3, 50, 3)).astype(np.uint8) for _ in range(2))
    figure = plots.hues({"ours": answer, "gray": np.full_like(truth, 99)}, truth)
    axes = figure.axes[0]
    bars = [bar.get_height() for bar in axes.containers[0]]
    np.testing.assert_allclose(bars, metrics.hue_histogram(truth))
    steps = [patch.get_data().values for patch in axes.patches if isinstance(patch, StepPatch)]
    np.testing.assert_allclose(steps, [metrics.hue_histogram(answer), np.zeros(plots.HUE_BINS)])
    written = " ".join(texts(figure))
    assert f"truth (mean chroma {sum(bars):.1f})" in written
    assert "gray (0.0)" in written
    assert "degrees" in written
    assert "Lab units" in written


def test_bars_have_the_colours_they_stand_for() -> None:
    truth = np.zeros((1, 1, 3), np.uint8)
    figure = plots.hues({"ours": truth}, truth)
    for bar in figure.axes[0].containers[0]:
        middle = bar.get_x() + bar.get_width() / 2
        rgb = (np.array([[bar.get_facecolor()[:3]]]) * 255).round().astype(np.uint8)
        _, a, b = metrics.lab(rgb)[0, 0]
        off = (np.rad2deg(np.arctan2(b, a)) - middle + 180) % 360 - 180
        assert abs(off) < 12, middle


def test_curves_have_training_and_validation_of_every_run() -> None:
    figure = plots.curves({"long": HISTORY, "short": HISTORY[:1]})
    lines = figure.axes[0].lines
    assert [line.get_label() for line in lines] == [
        f"{run}, {kind}" for run in ("long", "short") for kind in ("validation", "training")
    ]
    assert np.asarray(lines[0].get_xdata()).tolist() == [1000, 2000, 9000]
    assert np.asarray(lines[0].get_ydata()).tolist() == [3.9, 3.5, 3.0]
    np.testing.assert_array_equal(np.asarray(lines[1].get_ydata()), [4.0, math.nan, 3.25])
    assert {"photographs seen (views)", "loss, each recipe's own"} <= set(texts(figure))


def test_a_run_is_read_from_its_history(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text('{"views": 5, "loss": 2.5}\n{"views": 9, "loss": NaN}\n', "utf-8")
    first, second = plots.read_history(tmp_path)
    assert first == {"views": 5, "loss": 2.5}
    assert math.isnan(second["loss"])
    with pytest.raises(FileNotFoundError):
        plots.read_history(tmp_path / "elsewhere")


def test_runs_of_one_name_have_more_of_their_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [tmp_path / name for name in ("a/compact", "b/compact", "b/small")]
    assert plots.name_runs(runs) == dict(zip(("a/compact", "b/compact", "small"), runs, strict=True))
    assert list(plots.name_runs([Path("/compact"), Path("/a/compact")])) == ["/compact", "a/compact"]
    runs[0].mkdir(parents=True)
    monkeypatch.chdir(runs[0])
    assert plots.name_runs([Path(), runs[0]]) == {"compact": runs[0].resolve()}


def test_drawings_are_saved(tmp_path: Path) -> None:
    truth = np.random.default_rng(0).integers(0, 256, (2, 50, 3)).astype(np.uint8)
    sample = Sample(color.luma_of_rgb(truth), np.zeros((2, 2, 50), np.float32), truth, "lab")
    plots.save_all({"ours": sample}, {}, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["hues.png"]
    plots.save_all({"ours": sample}, {"run": HISTORY}, tmp_path)
    for name in ("hues.png", "curves.png"):
        picture = cv2.imread(str(tmp_path / name))
        assert picture is not None
        assert picture.shape == (675, 1350, 3)
        assert 0.5 < (picture == 255).all(axis=2).mean() < 0.99, "drawn, and not full"
