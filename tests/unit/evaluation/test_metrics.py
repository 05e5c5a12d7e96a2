"""Each metric compared with a library or a sum by hand."""

import numpy as np
import pytest
from skimage.color import deltaE_cie76, deltaE_ciede2000, rgb2lab

from model_export.evaluation import metrics


def pixels(*colors: tuple[int, int, int]) -> np.ndarray:
    """Return one photograph of these pixels, uint8 [1, n, 3]."""
    return np.array([colors], np.uint8)


RED, GREEN, BLUE, CYAN, GRAY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 255, 255), (90, 90, 90)


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    """Return forty photographs of random pixels, and the same slightly changed: more than one chunk."""
    random = np.random.default_rng(0)
    truth = random.integers(0, 256, (40, 100, 3))
    answer = truth + random.integers(-40, 41, truth.shape)
    return answer.clip(0, 255).astype(np.uint8), truth.astype(np.uint8)


def test_differences_are_those_of_double_precision(pair: tuple[np.ndarray, np.ndarray]) -> None:
    answer, truth = pair
    expected = deltaE_ciede2000(rgb2lab(answer), rgb2lab(truth))
    np.testing.assert_allclose(metrics.ciede2000(answer, truth), expected, atol=1e-3)
    assert metrics.mean_ciede2000(answer, truth) == pytest.approx(expected.mean(), abs=1e-5)


def test_ab_errors_are_distances_without_lightness(pair: tuple[np.ndarray, np.ndarray]) -> None:
    flat = [rgb2lab(rgb) * (0, 1, 1) for rgb in pair]
    expected = deltaE_cie76(*flat)
    errors = metrics.ab_errors(*pair)
    np.testing.assert_allclose(errors, expected, atol=1e-3)
    assert metrics.ab_rmse(errors) == pytest.approx(np.sqrt(((flat[0] - flat[1])[..., 1:] ** 2).mean()), abs=1e-4)


@pytest.mark.parametrize(
    ("error", "expected"),
    [(0, 100), (75, 100 * 75.5 / 150), (74.5, 100 * 75.5 / 150), (150, 100 * 0.5 / 150), (150.1, 0), (250, 0)],
)
def test_accuracy_is_the_area_under_the_steps(error: float, expected: float) -> None:
    """All pixels pass at the same threshold, where the trapezoid rule counts half a step."""
    assert metrics.auc(np.full((2, 3), error, np.float32)) == pytest.approx(expected)


def test_accuracy_weighs_pixels() -> None:
    errors, weights = np.array([0, 200], np.float32), np.array([3.0, 1.0])
    assert metrics.auc(errors) == pytest.approx(50)
    assert metrics.auc(errors, weights) == pytest.approx(75)


def test_rarity_is_the_equation_of_the_paper() -> None:
    truth = pixels(GRAY, GRAY, GRAY, BLUE)
    weights = metrics.rebalancing_weights(truth)
    expected = [4 / 3, 4 / 3, 4 / 3, 4]
    np.testing.assert_allclose(weights, [expected])
    # Colours in the same bin count as equal.
    np.testing.assert_allclose(metrics.rebalancing_weights(pixels(GRAY, GRAY, (92, 90, 90), BLUE)), [expected])


def test_gray_does_not_buy_the_rebalanced_accuracy() -> None:
    """Gray is common and red is rare, so a gray output is right for most pixels but wrong for the rare ones."""
    truth = pixels(*[GRAY] * 95, *[RED] * 5)
    gray = np.full_like(truth, 90)
    errors = metrics.ab_errors(gray, truth)
    assert metrics.auc(errors) > 95
    assert metrics.auc(errors, metrics.rebalancing_weights(truth)) < 70


def test_every_colour_counts_the_same_in_the_rebalanced_accuracy() -> None:
    truth = pixels(*[GRAY] * 99, RED)
    assert metrics.rebalancing_weights(truth)[0, :99].sum() == pytest.approx(metrics.rebalancing_weights(truth)[0, 99])
    errors = np.array([[0] * 99 + [200]], np.float32)
    assert metrics.auc(errors, metrics.rebalancing_weights(truth)) == pytest.approx(50)


def test_hs_rmse_is_in_the_units_of_the_tutorial() -> None:
    assert metrics.hs_rmse(pixels(RED), pixels(CYAN)) == pytest.approx(np.sqrt(90**2 / 2))
    assert metrics.hs_rmse(pixels(GRAY), pixels(RED)) == pytest.approx(np.sqrt(255**2 / 2))
    # Two reds with hues near 0 and near 179.
    assert metrics.hs_rmse(pixels((255, 0, 6)), pixels((255, 6, 0))) == pytest.approx(np.sqrt(178**2 / 2))


def test_psnr_is_that_of_all_pixels() -> None:
    truth = pixels(GRAY, GRAY, GRAY, GRAY)
    answer = truth + np.array([0, 0, 2, 2], np.uint8)[:, np.newaxis]
    assert metrics.psnr(answer, truth) == pytest.approx(20 * np.log10(255) - 10 * np.log10(2))
    assert metrics.psnr(truth, truth) is None


@pytest.mark.parametrize(("color", "hue"), [(BLUE, 306.3), (GREEN, 136.0), ((255, 255, 0), 102.9)])
def test_hue_histogram_has_a_colour_where_it_belongs(color: tuple[int, int, int], hue: float) -> None:
    histogram = metrics.hue_histogram(pixels(color, GRAY))
    assert np.flatnonzero(histogram).tolist() == [int(hue // 10)]
    assert histogram.sum() == pytest.approx(metrics.mean_chroma(pixels(color)) / 2, abs=0.01)


def test_hue_histogram_of_gray_is_empty() -> None:
    assert not metrics.hue_histogram(pixels(GRAY, (0, 0, 0))).any()


def test_hue_error_is_an_angle() -> None:
    """In Lab, the hues of red and green are 96 degrees apart, those of blue and green 170."""
    assert metrics.hue_error(pixels(RED), pixels(GREEN)) == pytest.approx(96.0, abs=0.1)
    assert metrics.hue_error(pixels(BLUE), pixels(GREEN)) == pytest.approx(170.3, abs=0.1)


def test_hue_error_of_nothing_is_chance() -> None:
    assert metrics.hue_error(pixels(GRAY, GRAY), pixels(RED, BLUE)) == 90
    assert metrics.hue_error(pixels(RED), pixels((0, 0, 0))) == 90


def test_hue_errors_weigh_as_much_as_the_true_chroma() -> None:
    truth, answer = pixels(BLUE, (100, 100, 110)), pixels(BLUE, (110, 110, 100))
    pale, vivid = metrics.mean_chroma(truth[:, 1:]), metrics.mean_chroma(truth[:, :1])
    error = metrics.hue_error(answer[:, 1:], truth[:, 1:])
    assert error > 150
    assert metrics.hue_error(answer, truth) == pytest.approx(error * pale / (pale + vivid), abs=0.01)


def test_colorfulness_is_that_of_the_paper() -> None:
    """The image is half pure red and half pure green: rg = +-255, yb = 127.5."""
    np.testing.assert_allclose(metrics.colorfulness(pixels(RED, GREEN)), [255 + 0.3 * 127.5])
