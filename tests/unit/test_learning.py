"""The parts that a network is taught by. Slow only because Keras takes its time to be imported."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from model_export.recipe import Recipe

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
BINS = np.array([[a, b] for a in range(-60, 61, 10) for b in range(-60, 61, 10)], np.float32)


def test_bins_are_those_that_photographs_occupy() -> None:
    from model_export.losses import occupied_bins

    chroma = np.array([[0, 0]] * 50 + [[9, -11]] * 49 + [[88, 88]], np.float32)
    assert occupied_bins(chroma, 10, least=0).tolist() == [[0, 0], [10, -10], [90, 90]]
    assert occupied_bins(chroma, 10, least=0.02).tolist() == [[0, 0], [10, -10]]


def test_soft_encoding_is_a_distribution_whose_mean_is_the_chroma() -> None:
    from model_export.losses import soft_encode

    chroma = np.random.default_rng(0).uniform(-40, 40, (100, 2)).astype(np.float32)
    weights = np.asarray(soft_encode(chroma, BINS, 10.0))
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(weights @ BINS, chroma, atol=0.3)
    nearest = np.linalg.norm(chroma[:, np.newaxis] - BINS, axis=-1).argmin(axis=-1)
    np.testing.assert_array_equal(weights.argmax(axis=-1), nearest)


def test_the_loss_is_least_at_the_truth() -> None:
    from model_export.losses import bin_loss, soft_encode

    chroma = np.random.default_rng(1).uniform(-40, 40, (2, 4, 4, 2)).astype(np.float32)
    truth = np.log(np.asarray(soft_encode(chroma, BINS, 10.0)) + 1e-12)
    for weight in (0.0, 0.5):
        loss = bin_loss(BINS, 10.0, weight)
        best = np.asarray(loss(chroma, truth))
        assert best.shape == (2,)
        assert (np.asarray(loss(chroma, np.zeros_like(truth))) > best + 1).all()
        assert (np.asarray(loss(chroma, np.roll(truth, 3, axis=-1))) > best + 1).all()
    entropy = -(np.exp(truth) * truth).sum(axis=-1).mean(axis=(1, 2))
    np.testing.assert_allclose(np.asarray(bin_loss(BINS, 10.0, 0.0)(chroma, truth)), entropy, atol=1e-3)


def statistics_error(chroma: NDArray[np.float32], answer: NDArray[np.float32]) -> float:
    """What the chroma statistics add to the loss of an answer, in bins."""
    from model_export.losses import bin_loss, soft_encode

    logits = np.log(np.asarray(soft_encode(answer, BINS, 10.0)) + 1e-12)
    extra = bin_loss(BINS, 10.0, 1.0)(chroma, logits) - bin_loss(BINS, 10.0, 0.0)(chroma, logits)
    return float(np.asarray(extra)[0])


def test_chroma_statistics_see_timidity() -> None:
    chroma = np.random.default_rng(2).uniform(-40, 40, (1, 8, 8, 2)).astype(np.float32)
    size = np.linalg.norm(chroma, axis=-1)
    parts = np.linalg.norm(chroma.reshape(4, 2, 4, 2, 2).mean(axis=(1, 3)), axis=-1)
    expected = 0.75 * (size.mean() + parts.std()) / 10
    assert statistics_error(chroma, chroma / 4) == pytest.approx(expected, rel=0.05)


def test_chroma_statistics_are_not_bought_by_a_glaring_spot() -> None:
    """Of two answers with the same mean chroma, a spot in one of them makes up for little of a large field's colour."""
    truth = np.zeros((1, 32, 32, 2), np.float32)
    truth[0, :16] = 30
    timid, spotted = truth / 3 + 5, truth / 3 + 5
    spotted[0, :4, :4] = 60
    spotted *= np.linalg.norm(timid, axis=-1).mean() / np.linalg.norm(spotted, axis=-1).mean()
    of_timid, of_spotted, of_bold = (statistics_error(truth, answer) for answer in (timid, spotted, truth))
    assert of_bold == pytest.approx(0, abs=0.02)
    assert of_spotted > 0.8 * of_timid > 0.5


def test_the_losses_gradient_is_finite_for_a_flat_answer() -> None:
    import tensorflow as tf

    from model_export.losses import bin_loss

    chroma = np.random.default_rng(3).uniform(-40, 40, (2, 8, 8, 2)).astype(np.float32)
    loss = bin_loss(BINS, 10.0, 0.5, difference=1.0)
    logits = tf.Variable(tf.zeros((2, 8, 8, len(BINS))))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(loss(chroma, logits))
    assert np.isfinite(tape.gradient(total, logits).numpy()).all()


def test_the_loss_knows_photos_of_two_sizes() -> None:
    """Keras traces a graph whose sides are not known once it has seen two."""
    import tensorflow as tf

    from model_export.losses import bin_loss

    loss = tf.function(
        bin_loss(BINS, 10.0, 0.5),
        input_signature=[tf.TensorSpec((None, None, None, 2)), tf.TensorSpec((None, None, None, len(BINS)))],
    )
    for side in (8, 12):
        assert np.isfinite(loss(tf.zeros((1, side, side, 2)), tf.zeros((1, side, side, len(BINS)))).numpy()).all()


def test_the_learning_rate_rises_and_falls() -> None:
    from model_export.train import learning_rate

    recipe = Recipe.model_validate({"name": "x", "optimizer": {"learning_rate": 1e-3, "warm_up": 0.1}})
    rates = [learning_rate(recipe, progress) for progress in np.linspace(0, 1, 101)]
    assert rates[0] == pytest.approx(1e-5)
    assert rates[10] == pytest.approx(1e-3)
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(1e-5)


def test_the_average_forgets_its_start_and_follows() -> None:
    from model_export.train import WeightAverage

    average = WeightAverage([np.full(3, 100.0, np.float32)], momentum=0.999)
    for _ in range(4):
        average.update([np.ones(3, np.float32)], 50)
    np.testing.assert_allclose(average.weights[0], 1, atol=0.01)
    late = WeightAverage([np.zeros(3, np.float32)], momentum=0.999, steps=100_000)
    late.update([np.ones(3, np.float32)], 50)
    np.testing.assert_allclose(late.weights[0], 1 - 0.999**50, rtol=1e-3)


def test_weights_survive_a_checkpoint(tmp_path: Path) -> None:
    import keras

    from model_export import checkpoint
    from model_export.networks import compact

    tiny = Recipe.model_validate(
        {"name": "tiny", "network": {"kind": "compact", "widths": (4, 6, 8, 10, 12), "context": 8}}
    )
    bins = BINS[:5]
    network = compact.build(tiny, bins)
    checkpoint.save_weights(tmp_path / "w.npz", network)
    keras.utils.set_random_seed(1)
    other = compact.build(tiny, bins)
    picture = np.random.default_rng(0).uniform(size=(1, 64, 64, 1)).astype(np.float32)
    before = np.asarray(network(picture))
    assert not np.allclose(np.asarray(other(picture)), before, atol=0.5)
    checkpoint.load_weights(tmp_path / "w.npz", other)
    np.testing.assert_allclose(np.asarray(other(picture)), before, atol=5e-2)
    with pytest.raises(ValueError, match=r"shape|weights"):
        checkpoint.load_weights(tmp_path / "w.npz", compact.build(tiny, BINS[:6]))


def test_the_shipped_network_has_the_size_that_is_said() -> None:
    from model_export.networks import compact

    network = compact.build(Recipe(name="default"), np.zeros((186, 2), np.float32))
    assert network.count_params() == 7_958_458
    assert network.compute_output_shape((1, 224, 224, 1)) == (1, 56, 56, 186)


def test_both_heads_answer_chroma() -> None:
    from model_export.losses import chroma_loss
    from model_export.networks import compact

    settings = {"kind": "compact", "widths": (4, 6, 8, 10, 12), "context": 8, "head": "chroma"}
    recipe = Recipe.model_validate({"name": "x", "network": settings, "chroma_statistics": 0.5})
    network = compact.build(recipe, BINS[:0])
    assert network.compute_output_shape((1, 64, 64, 1)) == (1, 16, 16, 2)
    answer = np.random.default_rng(0).normal(size=(2, 16, 16, 2)).astype(np.float32)
    chroma = np.asarray(compact.chroma(recipe, BINS[:0], 1.0)(answer))
    np.testing.assert_allclose(chroma, answer * 10, rtol=1e-5)
    for weight in (0.0, 0.5):
        loss = chroma_loss(10.0, weight)
        np.testing.assert_allclose(np.asarray(loss(chroma, answer)), 0, atol=1e-5)
        assert (np.asarray(loss(chroma, answer / 2)) > 0.1).all()


def tiny(**network: object) -> Recipe:
    settings = {"kind": "compact", "widths": (4, 6, 8, 10, 12), "context": 8} | network
    return Recipe.model_validate({"name": "tiny", "network": settings, "validate_on": 2})


def saved_run(folder: Path, seed: int, **network: object) -> Path:
    import keras

    from model_export import checkpoint
    from model_export.networks import compact

    keras.utils.set_random_seed(seed)
    folder.mkdir()
    checkpoint.save_setup(folder, checkpoint.Setup(tiny(**network), BINS[:5], ["a", "b"]))
    checkpoint.save_weights(folder / checkpoint.BEST, compact.build(tiny(**network), BINS[:5]))
    return folder


def test_a_run_starts_from_the_mean_of_others(tmp_path: Path) -> None:
    from model_export import checkpoint, train

    runs = [saved_run(tmp_path / str(seed), seed) for seed in (1, 2)]
    begun = train.start(tiny(), runs)
    assert begun is not None
    assert begun.held_out == {"a", "b"}
    assert [origin.split()[0] for origin in begun.origins] == ["1", "2"]
    one, other = (checkpoint.read_weights(run / checkpoint.BEST) for run in runs)
    for mean, first, second in zip(begun.weights, one, other, strict=True):
        np.testing.assert_allclose(mean, (first + second) / 2, atol=1e-6)
    assert train.start(tiny(), []) is None
    with pytest.raises(ValueError, match="wider has another network"):
        train.start(tiny(), [runs[0], saved_run(tmp_path / "wider", 3, context=9)])
    with pytest.raises(ValueError, match="is of lab, the recipe of hsv"):
        train.start(tiny().model_copy(update={"color_space": "hsv"}), runs)
    with pytest.raises(ValueError, match="another network"):
        train.start(tiny(bin_size=5.0), runs)


def test_a_network_with_more_blocks_begins_as_the_one_without(tmp_path: Path) -> None:
    from model_export import train
    from model_export.networks import compact

    small, large = tiny(blocks=(1, 2, 2, 1)), tiny(blocks=(1, 2, 4, 2))
    begun = train.start(large, [saved_run(tmp_path / "run", 1, blocks=(1, 2, 2, 1))])
    assert begun is not None
    networks = [compact.build(recipe, BINS[:5]) for recipe in (small, large)]
    for network, recipe in zip(networks, (small, large), strict=True):
        train._begin_with(network, recipe, begun)
    picture = np.random.default_rng(0).uniform(size=(1, 64, 64, 1)).astype(np.float32)
    answers = [np.asarray(network(picture)) for network in networks]
    np.testing.assert_allclose(answers[1], answers[0], atol=1e-5)
    assert np.abs(answers[0]).max() > 0.01
    larger = train.start(small, [saved_run(tmp_path / "more", 1, blocks=(1, 2, 4, 2))])
    assert larger is not None
    with pytest.raises(ValueError, match="has no place"):
        train._begin_with(networks[0], small, larger)


def test_what_is_held_out_stays_held_out() -> None:
    from model_export.checkpoint import Setup
    from model_export.sources import Entry, digest
    from model_export.train import Start, _hold_out

    entries = [Entry(f"made/{number}.jpg", "shard.tar", 0, 1) for number in range(40)]
    before = {"made/3.jpg", digest("made/5.jpg"), "elsewhere.jpg"}
    begun = Start([], Setup(tiny(), BINS[:5], []), before, [])
    assert _hold_out(tiny(), entries, begun) == ["made/3.jpg", "made/5.jpg"]
    # Own photographs, none of them known: a tenth at most validates.
    own = [entry._replace(name=f"own/{number}.jpg") for number, entry in enumerate(entries)]
    assert len(_hold_out(tiny().model_copy(update={"validate_on": 500}), own, begun)) == 4
    with pytest.raises(ValueError, match="too few"):
        _hold_out(tiny(), entries[:9], begun)


def test_cie94_is_the_librarys() -> None:
    from skimage.color import deltaE_ciede94

    from model_export.losses import cie94

    random = np.random.default_rng(0)
    true, answer = random.uniform(-60, 60, (2, 500, 2)).astype(np.float32)
    as_lab = [np.concatenate([np.full((500, 1), 50), chroma], axis=1) for chroma in (true, answer)]
    np.testing.assert_allclose(np.asarray(cie94(true, answer)), deltaE_ciede94(*as_lab), rtol=2e-3, atol=0.05)
    np.testing.assert_allclose(np.asarray(cie94(true, true)), 0, atol=0.05)


def test_the_difference_is_for_bins_in_lab() -> None:
    with pytest.raises(ValueError, match="difference"):
        Recipe.model_validate({"name": "x", "color_space": "hsv", "difference": 1})
