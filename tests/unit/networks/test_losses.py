"""The losses and the terms of which they are made. Slow only because importing Keras takes time."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.training import BINS

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_bins_are_those_that_photographs_occupy() -> None:
    from model_export.networks.losses import occupied_bins

    chroma = np.array([[0, 0]] * 50 + [[9, -11]] * 49 + [[88, 88]], np.float32)
    assert occupied_bins(chroma, 10, min_share=0).tolist() == [[0, 0], [10, -10], [90, 90]]
    assert occupied_bins(chroma, 10, min_share=0.02).tolist() == [[0, 0], [10, -10]]


def test_soft_encoding_is_a_distribution_whose_mean_is_the_chroma() -> None:
    from model_export.networks.losses import soft_encode

    chroma = np.random.default_rng(0).uniform(-40, 40, (100, 2)).astype(np.float32)
    weights = np.asarray(soft_encode(chroma, BINS, 10.0))
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(weights @ BINS, chroma, atol=0.3)
    nearest = np.linalg.norm(chroma[:, np.newaxis] - BINS, axis=-1).argmin(axis=-1)
    np.testing.assert_array_equal(weights.argmax(axis=-1), nearest)


def test_the_loss_is_least_at_the_truth() -> None:
    from model_export.networks.losses import BinLossTerms, bin_loss, soft_encode

    chroma = np.random.default_rng(1).uniform(-40, 40, (2, 4, 4, 2)).astype(np.float32)
    truth = np.log(np.asarray(soft_encode(chroma, BINS, 10.0)) + 1e-12)
    for weight in (0.0, 0.5):
        loss = bin_loss(BINS, 10.0, BinLossTerms(chroma_statistics=weight))
        best = np.asarray(loss(chroma, truth))
        assert best.shape == (2,)
        assert (np.asarray(loss(chroma, np.zeros_like(truth))) > best + 1).all()
        assert (np.asarray(loss(chroma, np.roll(truth, 3, axis=-1))) > best + 1).all()
    entropy = -(np.exp(truth) * truth).sum(axis=-1).mean(axis=(1, 2))
    np.testing.assert_allclose(
        np.asarray(bin_loss(BINS, 10.0, BinLossTerms(chroma_statistics=0.0))(chroma, truth)), entropy, atol=1e-3
    )


def statistics_error(chroma: NDArray[np.float32], answer: NDArray[np.float32]) -> float:
    """Return the value that the chroma statistics add to the loss, in bins."""
    from model_export.networks.losses import BinLossTerms, bin_loss, soft_encode

    logits = np.log(np.asarray(soft_encode(answer, BINS, 10.0)) + 1e-12)
    extra = bin_loss(BINS, 10.0, BinLossTerms(chroma_statistics=1.0))(chroma, logits) - bin_loss(
        BINS, 10.0, BinLossTerms(chroma_statistics=0.0)
    )(chroma, logits)
    return float(np.asarray(extra)[0])


def test_chroma_statistics_see_timidity() -> None:
    chroma = np.random.default_rng(2).uniform(-40, 40, (1, 8, 8, 2)).astype(np.float32)
    size = np.linalg.norm(chroma, axis=-1)
    parts = np.linalg.norm(chroma.reshape(4, 2, 4, 2, 2).mean(axis=(1, 3)), axis=-1)
    expected = 0.75 * (size.mean() + parts.std()) / 10
    assert statistics_error(chroma, chroma / 4) == pytest.approx(expected, rel=0.05)


def test_chroma_statistics_are_not_bought_by_a_glaring_spot() -> None:
    """With equal mean chroma, a glaring spot hardly lowers the error of a large field that lacks colour."""
    truth = np.zeros((1, 32, 32, 2), np.float32)
    truth[0, :16] = 30
    timid, spotted = truth / 3 + 5, truth / 3 + 5
    spotted[0, :4, :4] = 60
    spotted *= np.linalg.norm(timid, axis=-1).mean() / np.linalg.norm(spotted, axis=-1).mean()
    of_timid, of_spotted, of_bold = (statistics_error(truth, answer) for answer in (timid, spotted, truth))
    assert of_bold == pytest.approx(0, abs=0.02)
    assert of_spotted > 0.8 * of_timid > 0.5


def test_steps_see_a_glow_and_not_a_tint() -> None:
    from model_export.networks.losses import chroma_step_error

    head = np.zeros((1, 24, 24, 2), np.float32)
    head[:, 8:16, 8:16] = 30
    distance = np.maximum(np.abs(np.arange(24) - 11.5) - 3.5, 0)
    glow = np.maximum(30 - 10 * np.maximum(distance[:, np.newaxis], distance), 0)[np.newaxis, ..., np.newaxis]
    patch = head.copy()
    patch[:, 2:5, 18:21] = 15
    answers = (head + 20, 0 * head + glow, patch)
    tinted, glowing, patched = (float(np.asarray(chroma_step_error(head, a.astype(np.float32)))[0]) for a in answers)
    assert tinted < 0.01
    assert glowing > 1
    assert patched > 0.3


def a_face() -> np.ndarray:
    """Return a face of chroma 30 that covers a sixth of a gray photograph."""
    truth = np.zeros((1, 24, 24, 2), np.float32)
    truth[:, 2:14, 4:12] = np.array([18, 24])
    return truth


def evenness_error(truth: np.ndarray, answer: np.ndarray) -> float:
    from model_export.networks.losses import evenness_error

    return float(np.asarray(evenness_error(truth.astype(np.float32), answer.astype(np.float32)))[0])


def test_a_hand_lacks_the_colour_of_its_face() -> None:
    """The error is the chroma that the hand has less than the predicted face."""
    face, person = a_face(), a_face()
    person[:, 16:22, 16:22] = np.array([18, 24])
    share = 36 / 24**2
    assert evenness_error(person, person) < 0.01
    assert evenness_error(person, 0 * person) < 0.01
    assert evenness_error(person, person / 2) < 0.01
    assert evenness_error(person, face) == pytest.approx(30 * share, rel=0.02)
    assert evenness_error(person, face / 2) == pytest.approx(15 * share, rel=0.02)
    # The lack is limited by the hand's true chroma. The face pays for what it has more than the mean of both.
    too_much = 60 * 36 / (36 + 96) * 96 / 24**2
    assert evenness_error(person, 2 * face) == pytest.approx(30 * share + too_much, rel=0.02)


def test_a_glow_is_more_than_its_wall_is_given() -> None:
    face, glowing = a_face(), a_face()
    glowing[:, 14:18, 4:8] = np.array([9, 12])
    wall = (24**2 - 96) / 4
    assert evenness_error(face, glowing) == pytest.approx(15 * (1 - 4 / wall) * 16 / 24**2, rel=0.02)
    # A tint of the whole photograph is not uneven.
    assert evenness_error(face, face + np.array([3, 4])) < 0.01


def test_a_wrong_colour_is_not_spread() -> None:
    half_blue = -a_face()
    half_blue[:, 8:14] = 0
    # The gray half lacks no true colour. The blue half has 15 more than the mean of both.
    assert evenness_error(a_face(), half_blue) == pytest.approx(15 * 48 / 24**2, rel=0.02)


def test_what_is_compared_with_learns_nothing_from_who_lacks_colour() -> None:
    """The face gets no gradient towards the gray of its hand."""
    import tensorflow as tf

    from model_export.networks.losses import evenness_error

    person = np.full((1, 8, 8, 2), 20, np.float32)
    answer = person.copy()
    answer[:, :, 6:] = 0
    answer = tf.Variable(answer)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(evenness_error(person, answer))
    gradient = tape.gradient(total, answer).numpy()
    assert not gradient[:, :, :6].any()
    assert (gradient[:, :, 6:] < 0).all()


def test_the_losses_gradient_is_finite_for_a_flat_answer() -> None:
    import tensorflow as tf

    from model_export.networks.losses import BinLossTerms, bin_loss

    chroma = np.random.default_rng(3).uniform(-40, 40, (2, 8, 8, 2)).astype(np.float32)
    loss = bin_loss(BINS, 10.0, BinLossTerms(chroma_statistics=0.5, difference=1.0, steps=1.0, evenness=1.0))
    logits = tf.Variable(tf.zeros((2, 8, 8, len(BINS))))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(loss(chroma, logits))
    assert np.isfinite(tape.gradient(total, logits).numpy()).all()


def test_the_loss_knows_photos_of_two_sizes() -> None:
    """Keras traces a graph without known sides once it has seen two sizes."""
    import tensorflow as tf

    from model_export.networks.losses import BinLossTerms, bin_loss

    loss = tf.function(
        bin_loss(BINS, 10.0, BinLossTerms(chroma_statistics=0.5, steps=1.0, evenness=1.0)),
        input_signature=[tf.TensorSpec((None, None, None, 2)), tf.TensorSpec((None, None, None, len(BINS)))],
    )
    for side in (8, 12):
        assert np.isfinite(loss(tf.zeros((1, side, side, 2)), tf.zeros((1, side, side, len(BINS)))).numpy()).all()


def test_cie94_is_the_librarys() -> None:
    from skimage.color import deltaE_ciede94

    from model_export.networks.losses import cie94

    random = np.random.default_rng(0)
    true, answer = random.uniform(-60, 60, (2, 500, 2)).astype(np.float32)
    as_lab = [np.concatenate([np.full((500, 1), 50), chroma], axis=1) for chroma in (true, answer)]
    np.testing.assert_allclose(np.asarray(cie94(true, answer)), deltaE_ciede94(*as_lab), rtol=2e-3, atol=0.05)
    np.testing.assert_allclose(np.asarray(cie94(true, true)), 0, atol=0.05)
