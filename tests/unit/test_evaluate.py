import numpy as np
import pytest

from model_export import evaluate
from model_export.evaluate import Figures, Sample
from service import color

SHAPE = (6, 400)


def made_up_truth() -> np.ndarray:
    """Six colourful photographs' pixels, uint8 RGB [6, 400, 3]."""
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
    angle = np.deg2rad(90)
    turned = np.stack(
        [true[0] * np.cos(angle) - true[1] * np.sin(angle), true[0] * np.sin(angle) + true[1] * np.cos(angle)]
    )
    answers = {
        "gray": np.zeros_like(true),
        "tint": np.full_like(true, 30.0),
        "truth": true,
        "timid": true / 3,
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
    for name in ("gray", "tint", "turned"):
        assert figures[name].de00 > 5
        assert figures[name].hue > 30


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
        assert vivid is None or vivid > gray
    assert figures["turned"].hue == pytest.approx(90, abs=6)


def test_colorfulness_is_that_of_the_paper() -> None:
    """Of a picture half pure red, half pure green: rg = +-255, yb = 127.5."""
    half = np.zeros((1, 2, 3), np.uint8)
    half[0, 0, 0] = half[0, 1, 1] = 255
    expected = 255 + 0.3 * 127.5
    np.testing.assert_allclose(evaluate.colorfulness(half), [expected])


def test_the_table_has_a_row_an_answer(figures: dict[str, Figures]) -> None:
    lines = evaluate.markdown(figures).splitlines()
    assert len(lines) == 2 + len(figures)
    assert len({line.count("|") for line in lines}) == 1
