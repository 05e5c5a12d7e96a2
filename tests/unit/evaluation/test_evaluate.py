"""Measurements, tables and the report."""

import json
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from model_export.data import sources
from model_export.evaluation import evaluate, tables
from model_export.evaluation.evaluate import Figures, Report, Sample
from model_export.evaluation.metrics import lab, unevenness
from service.imaging import color
from service.inference.contract import Contract
from tests.unit.data.test_batching import write_folder

SHAPE = (6, 400)


def made_up_truth() -> np.ndarray:
    """Return the pixels of six colourful photographs, uint8 RGB [6, 400, 3]."""
    random = np.random.default_rng(0)
    base = random.integers(60, 200, (6, 8, 3))
    patches = np.repeat(base, 50, axis=1) + random.integers(-20, 20, (*SHAPE, 3))
    return patches.clip(0, 255).astype(np.uint8)


def answering(chroma: np.ndarray, truth: np.ndarray) -> Figures:
    sample = Sample(color.luma_of_rgb(truth), chroma.astype(np.float32), truth, "lab")
    return evaluate.measure(sample)


@pytest.fixture(scope="module")
def figures() -> dict[str, Figures]:
    truth = made_up_truth()
    true = color.split_rgb(truth, "lab")[1].transpose(2, 0, 1)
    # This is as colourful as the truth, so that colourfulness has no effect.
    turned = np.stack([-true[1], true[0]]) * 0.57
    answers = {
        "gray": np.zeros_like(true),
        "constant": np.full_like(true, true.mean(axis=(1, 2), keepdims=True)),
        "tint": np.full_like(true, 60.0),
        "truth": true,
        "timid": true / 3,
        "vivid": true * 2,
        "turned": turned,
    }
    return {name: answering(chroma, truth) for name, chroma in answers.items()}


def test_the_truth_is_best_in_everything(figures: dict[str, Figures]) -> None:
    truth = figures["truth"]
    assert truth.de00 < 0.5
    assert truth.hue < 3
    assert truth.de00_vivid is not None
    assert truth.de00_vivid < 0.7
    assert abs(truth.cf_gap) < 1
    for name in ("gray", "constant", "tint", "turned"):
        assert figures[name].de00 > 5
        assert figures[name].hue > 30
    for name in figures.keys() - {"truth"}:
        other = figures[name]
        assert truth.cf_err < other.cf_err
        assert truth.auc > other.auc + 10
        assert truth.auc_reb > other.auc_reb + 10
        assert truth.ab_rmse < other.ab_rmse - 10
        assert truth.hs_rmse < other.hs_rmse - 40
        assert truth.psnr is not None
        assert other.psnr is not None
        assert truth.psnr > other.psnr + 20


def test_gray_has_no_hue_and_can_not_be_made_vivid(figures: dict[str, Figures]) -> None:
    gray = figures["gray"]
    assert gray.hue == 90
    assert gray.de00_vivid is None
    assert gray.de00 == gray.de00_best


def test_timidity_costs_nothing_in_what_looks_at_hue(figures: dict[str, Figures]) -> None:
    timid, truth = figures["timid"], figures["truth"]
    assert timid.de00 > truth.de00 + 3
    assert timid.hue < 6
    assert timid.vivid_gain == pytest.approx(3, abs=0.3)
    assert timid.de00_vivid == pytest.approx(truth.de00_vivid, abs=1)


def test_vividness_can_not_be_bought_with_a_tint_or_wrong_hues(figures: dict[str, Figures]) -> None:
    gray = figures["gray"].de00
    for name in ("tint", "turned"):
        vivid = figures[name].de00_vivid
        assert vivid is not None
        assert vivid > gray + 5
    assert figures["constant"].de00_vivid is None
    assert figures["turned"].hue == pytest.approx(90, abs=6)


def test_colourfulness_can_be_bought_and_accuracy_can_not(figures: dict[str, Figures]) -> None:
    gray = figures["gray"]
    for name in ("tint", "turned"):
        bought = figures[name]
        assert abs(bought.cf_gap) < 2
        assert bought.cf_err < gray.cf_err / 5
        assert bought.auc < gray.auc - 3
        assert bought.auc_reb < gray.auc_reb - 3
        assert bought.ab_rmse > gray.ab_rmse
        assert bought.hue > 80


def test_unevenness_sees_blotches_and_neither_tints_nor_wrong_colours() -> None:
    """A blue and a brown half: true, both wrong, tinted, gray, with a spot, and with one half fading."""
    random = np.random.default_rng(1)
    truth = np.empty((32, 32, 3), np.uint8)
    truth[:, :16], truth[:, 16:] = (90, 105, 140), (130, 105, 85)
    truth = (truth + random.integers(-4, 5, truth.shape)).clip(0, 255).astype(np.uint8)
    luma = color.luma_of_rgb(truth)
    _, true = color.split_rgb(truth, "lab")
    fading = true.copy()
    fading[:, :16] *= np.linspace(1.5, 0, 32, dtype=np.float32)[:, np.newaxis, np.newaxis]
    spotted = true.copy()
    spotted[8:16, 4:12] = (30, 20)
    wrong = np.where(np.arange(32)[:, np.newaxis] < 16, 20, -15) + 0 * true
    answers = {"truth": true, "wrong": wrong, "tint": true * 0 + 15, "gray": true * 0}
    even = {name: uneven(luma, chroma, truth) for name, chroma in answers.items()}
    assert max(even.values()) < 0.15
    for blotched in (fading, spotted):
        assert uneven(luma, blotched, truth) > 0.4
        assert uneven(luma, blotched / 2, truth) < 0.7 * uneven(luma, blotched, truth)


def uneven(luma: np.ndarray, chroma: np.ndarray, truth: np.ndarray) -> float:
    rgb = color.rgb_at(luma, *np.ascontiguousarray(chroma.transpose(2, 0, 1), np.float32), "lab")
    return unevenness(rgb, truth)


def test_dullness_buys_what_is_for_comparison_only(figures: dict[str, Figures]) -> None:
    """Right hues at twice the chroma score worse than pale ones in PSNR and AuC, but not in hue metrics."""
    vivid, timid, gray = figures["vivid"], figures["timid"], figures["gray"]
    for dull in (timid, gray):
        assert dull.psnr > vivid.psnr  # type: ignore[operator]
    assert timid.auc > vivid.auc
    assert timid.ab_rmse < vivid.ab_rmse
    assert vivid.hue < 5
    assert vivid.vivid_gain == pytest.approx(0.5, abs=0.02)
    assert vivid.de00_vivid == pytest.approx(figures["truth"].de00_vivid, abs=0.1)


def test_one_colour_everywhere_buys_no_more_than_gray_has(figures: dict[str, Figures]) -> None:
    gray, constant = figures["gray"], figures["constant"]
    assert constant.de00_best > gray.de00_best
    assert constant.auc == pytest.approx(gray.auc, abs=1)
    assert constant.auc_reb == pytest.approx(gray.auc_reb, abs=1)
    assert constant.psnr == pytest.approx(gray.psnr, abs=1)
    # For the loss of the HSV tutorial, any colour is better than none.
    for name in ("constant", "tint"):
        assert figures[name].hs_rmse < gray.hs_rmse - 3


def test_every_figure_of_the_truth_is_that_of_its_pixels() -> None:
    """The output of an HSV model is measured in the same way as a Lab model's."""
    truth = made_up_truth()
    chroma = color.split_rgb(truth, "hsv")[1].transpose(2, 0, 1)
    figures = evaluate.measure(Sample(color.luma_of_rgb(truth), chroma, truth, "hsv"))
    assert figures.de00 < 0.5
    assert figures.auc > 99


def test_the_table_has_a_row_an_answer(figures: dict[str, Figures]) -> None:
    lines = tables.markdown(figures).splitlines()
    assert len(lines) == 2 + len(figures)
    assert len({line.count("|") for line in lines}) == 1


def stand_in(name: str, version: str, chroma: tuple[float, float], space: color.ColorSpace = "lab") -> SimpleNamespace:
    """Return the necessary parts of an engine whose model predicts one chroma everywhere."""
    contract = Contract(name, version, space, 32, "CC0", "none")
    grid = np.array(chroma, np.float32).reshape(1, 2, 1, 1)
    return SimpleNamespace(contract=contract, predict=lambda lightness: grid.repeat(len(lightness), 0))


def test_models_in_a_table_have_names_of_their_own() -> None:
    files = ["gray", "b", "a/b", "c/b", "d/b", "other"]
    names = [("gray", "1"), ("m", "2"), ("m", "2"), ("m", "2"), ("m", "2"), ("other", "7")]
    models = [(Path(f"{file}.onnx"), stand_in(*name, (0, 0))) for file, name in zip(files, names, strict=True)]
    named = evaluate.name_models(models)
    assert list(named) == ["gray (gray)", "m 2", "m 2 (b)", "m 2 (b, 2)", "m 2 (b, 3)", "other 7"]
    assert list(named.values()) == [engine for _, engine in models]
    # Only the first model has its plain name.
    assert list(evaluate.name_models([models[1], models[1]])) == ["m", "m 2"]


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[sources.Entry]:
    """Return three orange photographs of one source, a blue one of another, and an orange one without a source."""
    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    orange, blue = (200, 120, 60), (60, 100, 200)
    for name, rgb in (("sand/1", orange), ("sand/2", orange), ("sand/3", orange), ("sea/1", blue), ("0", orange)):
        file = folder / f"{name}.png"
        file.parent.mkdir(exist_ok=True)
        photograph = np.array(rgb) + random.integers(-20, 21, (30, 40, 1))
        cv2.imwrite(str(file), photograph.astype(np.uint8)[..., ::-1])
    return sources.find([folder])


@pytest.fixture(scope="module")
def report(entries: list[sources.Entry]) -> Report:
    """Return the report on a model that predicts orange, and on a previous one that predicts blue."""
    models = {"orange": stand_in("orange", "2", (20, 40)), "blue 1": stand_in("blue", "1", (5, -40))}
    return evaluate.evaluate(models, entries, entries[:2], evaluate.Constant((10, 20), "a sunset"))  # type: ignore[arg-type]


def test_a_report_has_every_way_on_the_same_photographs(report: Report) -> None:
    assert list(report.rows) == ["gray", "constant", "orange", "blue 1"]
    assert report.model == "orange"
    assert "5 photographs, 2,048 pixels of each; 2 nearly neutral photographs." in report.note
    assert "the mean colour of a sunset" in report.note
    first, *others = (row.sample.truth for row in report.rows.values())
    assert all(np.array_equal(first, other) for other in others)
    assert report.rows["orange"].figures.neutral == pytest.approx(44, abs=5)


def test_parts_add_up_to_the_whole(report: Report) -> None:
    for row in report.rows.values():
        assert {name: part.photographs for name, part in row.by_source.items()} == {"-": 1, "sand": 3, "sea": 1}
        mean = sum(part.photographs * part.de00 for part in row.by_source.values()) / 5
        assert row.figures.de00 == pytest.approx(mean) == pytest.approx(row.de00.mean())
        assert row.de00.shape == row.hue.shape == (5,)
    sea = report.rows["orange"].by_source["sea"]
    assert sea.hue > 120
    assert report.rows["orange"].by_source["sand"].hue < 20


def test_harm_is_where_the_model_is_further_off_than_gray(report: Report, entries: list[sources.Entry]) -> None:
    harmed = {entry.name for entry, harm in zip(entries, report.de00_change(), strict=True) if harm > 0}
    assert harmed == {"sea/1.png"}
    assert evaluate.source_of(entries[0]) == "-"
    number = [entry.name for entry in entries].index("sea/1.png")
    caption = report.caption(number)
    assert f"CIEDE2000 {report.rows['orange'].de00[number]:.1f}, gray" in caption


def test_figures_are_written_for_programs_and_for_people(report: Report, tmp_path: Path) -> None:
    tables.write(report, tmp_path / "new")
    document = json.loads((tmp_path / "new" / "figures.json").read_text("utf-8"))
    assert list(document) == list(report.rows)
    for name, row in document.items():
        assert row.pop("sources")["sea"] == asdict(report.rows[name].by_source["sea"])
        assert row == asdict(report.rows[name].figures)
    page = (tmp_path / "new" / "figures.md").read_text("utf-8")
    assert page.startswith(tables.markdown({name: row.figures for name, row in report.rows.items()}))
    assert report.note in page
    lines = [line.split(" | ") for line in page.split(report.note)[1].strip().splitlines()[2:]]
    assert {line[0] for line in lines} == {"| -", "| sand", "| sea"}
    assert all(float(one[4]) <= float(other[4]) for one, other in pairwise(lines)), "the most helped first"


def test_the_constant_is_the_mean_chroma_of_photographs(entries: list[sources.Entry]) -> None:
    mean = np.mean([color.split_rgb(entry.read(), "lab")[1].mean(axis=(0, 1)) for entry in entries], axis=0)
    np.testing.assert_allclose(evaluate.mean_chroma_of(entries), mean, atol=0.5)


def test_the_baselines_are_the_same_whatever_the_model_answers(entries: list[sources.Entry]) -> None:
    first, second = (
        evaluate.evaluate(
            {"m": stand_in("m", "1", (0.1, 0.1), space)}, entries, [], evaluate.Constant((10, 20), "a sunset")
        )  # type: ignore[dict-item]
        for space in ("lab", "hsv")
    )
    for name in evaluate.BASELINES:
        assert first.rows[name].figures == second.rows[name].figures
    a, b = lab(first.rows["constant"].sample.rgb_at(1))[..., 1:].mean(axis=(0, 1))
    assert (a, b) == (pytest.approx(10, abs=1.5), pytest.approx(20, abs=1.5))


def test_photographs_that_can_not_be_read_are_left_out_and_counted(
    entries: list[sources.Entry], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = sources.find([write_folder(tmp_path, {"1.jpg": b"no", "2.png": b""})])
    assert evaluate.drop_unreadable([bad[0], *entries, bad[1]]) == (entries, 2)
    assert caplog.text.count("left out") == 2
    assert evaluate.drop_unreadable([]) == ([], 0)
    with pytest.raises(ValueError, match=r"none of 2 photographs can be read; the first is 1\.jpg"):
        evaluate.drop_unreadable(bad)


def test_a_set_without_colour_has_no_hue_and_no_gain() -> None:
    gray = np.dstack([color.luma_of_rgb(made_up_truth())] * 3)
    random = np.random.default_rng(0).normal(0, 20, (2, *SHAPE)).astype(np.float32)
    sample = Sample(color.luma_of_rgb(gray), random, gray, "lab")
    figures = evaluate.measure(sample)
    assert figures.hue == 90
    assert figures.vivid_gain is None
    assert figures.de00_vivid is None
    assert tables.gain_table(sample, [1.5]).splitlines()[2].endswith("| - |")
