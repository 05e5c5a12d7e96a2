"""The parts that a network is taught by. Slow only because Keras takes its time to be imported."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from model_export.recipe import Optimizer, Recipe, Stage
from tests.unit.data.test_batching import photographs, write_folder

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
BINS = np.array([[a, b] for a in range(-60, 61, 10) for b in range(-60, 61, 10)], np.float32)


def test_bins_are_those_that_photographs_occupy() -> None:
    from model_export.networks.losses import occupied_bins

    chroma = np.array([[0, 0]] * 50 + [[9, -11]] * 49 + [[88, 88]], np.float32)
    assert occupied_bins(chroma, 10, least=0).tolist() == [[0, 0], [10, -10], [90, 90]]
    assert occupied_bins(chroma, 10, least=0.02).tolist() == [[0, 0], [10, -10]]


def test_soft_encoding_is_a_distribution_whose_mean_is_the_chroma() -> None:
    from model_export.networks.losses import soft_encode

    chroma = np.random.default_rng(0).uniform(-40, 40, (100, 2)).astype(np.float32)
    weights = np.asarray(soft_encode(chroma, BINS, 10.0))
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(weights @ BINS, chroma, atol=0.3)
    nearest = np.linalg.norm(chroma[:, np.newaxis] - BINS, axis=-1).argmin(axis=-1)
    np.testing.assert_array_equal(weights.argmax(axis=-1), nearest)


def test_the_loss_is_least_at_the_truth() -> None:
    from model_export.networks.losses import bin_loss, soft_encode

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
    from model_export.networks.losses import bin_loss, soft_encode

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


def test_steps_see_a_glow_and_not_a_tint() -> None:
    from model_export.networks.losses import step_error

    head = np.zeros((1, 24, 24, 2), np.float32)
    head[:, 8:16, 8:16] = 30
    distance = np.maximum(np.abs(np.arange(24) - 11.5) - 3.5, 0)
    glow = np.maximum(30 - 10 * np.maximum(distance[:, np.newaxis], distance), 0)[np.newaxis, ..., np.newaxis]
    patch = head.copy()
    patch[:, 2:5, 18:21] = 15
    answers = (head + 20, 0 * head + glow, patch)
    tinted, glowing, patched = (float(np.asarray(step_error(head, a.astype(np.float32)))[0]) for a in answers)
    assert tinted < 0.01
    assert glowing > 1
    assert patched > 0.3


def a_face() -> np.ndarray:
    """Of chroma 30, a sixth of a gray photograph."""
    truth = np.zeros((1, 24, 24, 2), np.float32)
    truth[:, 2:14, 4:12] = np.array([18, 24])
    return truth


def evenness_error(truth: np.ndarray, answer: np.ndarray) -> float:
    from model_export.networks.losses import evenness_error

    return float(np.asarray(evenness_error(truth.astype(np.float32), answer.astype(np.float32)))[0])


def test_a_hand_lacks_the_colour_of_its_face() -> None:
    """What counts is what the hand has less than the face was given."""
    face, person = a_face(), a_face()
    person[:, 16:22, 16:22] = np.array([18, 24])
    share = 36 / 24**2
    assert evenness_error(person, person) < 0.01
    assert evenness_error(person, 0 * person) < 0.01
    assert evenness_error(person, person / 2) < 0.01
    assert evenness_error(person, face) == pytest.approx(30 * share, rel=0.02)
    assert evenness_error(person, face / 2) == pytest.approx(15 * share, rel=0.02)
    # It lacks no more than it should have itself, and the face has more than both do on average.
    too_much = 60 * 36 / (36 + 96) * 96 / 24**2
    assert evenness_error(person, 2 * face) == pytest.approx(30 * share + too_much, rel=0.02)


def test_a_glow_is_more_than_its_wall_is_given() -> None:
    face, glowing = a_face(), a_face()
    glowing[:, 14:18, 4:8] = np.array([9, 12])
    wall = (24**2 - 96) / 4
    assert evenness_error(face, glowing) == pytest.approx(15 * (1 - 4 / wall) * 16 / 24**2, rel=0.02)
    # A tint of all of it is no unevenness.
    assert evenness_error(face, face + np.array([3, 4])) < 0.01


def test_a_wrong_colour_is_not_spread() -> None:
    half_blue = -a_face()
    half_blue[:, 8:14] = 0
    # Who is not blue lacks nothing; who is has 15 more than both do on average.
    assert evenness_error(a_face(), half_blue) == pytest.approx(15 * 48 / 24**2, rel=0.02)


def test_what_is_compared_with_learns_nothing_from_who_lacks_colour() -> None:
    """The face is not made gray for its hand's sake."""
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

    from model_export.networks.losses import bin_loss

    chroma = np.random.default_rng(3).uniform(-40, 40, (2, 8, 8, 2)).astype(np.float32)
    loss = bin_loss(BINS, 10.0, 0.5, difference=1.0, steps=1.0, evenness=1.0)
    logits = tf.Variable(tf.zeros((2, 8, 8, len(BINS))))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(loss(chroma, logits))
    assert np.isfinite(tape.gradient(total, logits).numpy()).all()


def test_the_loss_knows_photos_of_two_sizes() -> None:
    """Keras traces a graph whose sides are not known once it has seen two."""
    import tensorflow as tf

    from model_export.networks.losses import bin_loss

    loss = tf.function(
        bin_loss(BINS, 10.0, 0.5, steps=1.0, evenness=1.0),
        input_signature=[tf.TensorSpec((None, None, None, 2)), tf.TensorSpec((None, None, None, len(BINS)))],
    )
    for side in (8, 12):
        assert np.isfinite(loss(tf.zeros((1, side, side, 2)), tf.zeros((1, side, side, len(BINS)))).numpy()).all()


def test_the_learning_rate_rises_and_falls() -> None:
    from model_export.run.schedule import learning_rate

    recipe = Recipe.model_validate({"name": "x", "optimizer": {"learning_rate": 1e-3, "warm_up": 0.1}})
    rates = [learning_rate(recipe, progress) for progress in np.linspace(0, 1, 101)]
    assert rates[0] == pytest.approx(1e-5)
    assert rates[10] == pytest.approx(1e-3)
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(1e-5)


def test_the_average_forgets_its_start_and_follows() -> None:
    from model_export.weights.averaging import WeightAverage

    average = WeightAverage([np.full(3, 100.0, np.float32)], momentum=0.999)
    for _ in range(4):
        average.update([np.ones(3, np.float32)], 50)
    np.testing.assert_allclose(average.weights[0], 1, atol=0.01)
    late = WeightAverage([np.zeros(3, np.float32)], momentum=0.999, steps=100_000)
    late.update([np.ones(3, np.float32)], 50)
    np.testing.assert_allclose(late.weights[0], 1 - 0.999**50, rtol=1e-3)


@pytest.mark.parametrize(("steps", "least"), [(1, 0.8), (3, 0.98), (10, 0.9999), (1000, 0.9999)])
def test_the_average_of_a_short_run_is_of_what_it_has_learnt(steps: int, least: float) -> None:
    from model_export.weights.averaging import WeightAverage

    average = WeightAverage([np.zeros(1, np.float32)], momentum=0.999)
    updates = 0
    for step in range(1, steps + 1):
        if average.is_due(step):
            average.update([np.ones(1, np.float32)], step - average.steps)
            updates += 1
    assert average.weights[0][0] >= least
    assert average.steps >= 0.97 * steps
    # A long run is not held up by copying the weights.
    assert updates <= 300


def test_weights_survive_a_checkpoint(tmp_path: Path) -> None:
    import keras

    from model_export.networks import compact
    from model_export.weights import checkpoint

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
    from model_export.networks import compact
    from model_export.networks.losses import chroma_loss

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

    from model_export.networks import compact
    from model_export.weights import checkpoint

    keras.utils.set_random_seed(seed)
    folder.mkdir()
    checkpoint.save_setup(folder, checkpoint.Setup(tiny(**network), BINS[:5], ["a", "b"]))
    checkpoint.save_weights(folder / checkpoint.BEST, compact.build(tiny(**network), BINS[:5]))
    return folder


def test_a_run_starts_from_the_mean_of_others(tmp_path: Path) -> None:
    from model_export.run import train
    from model_export.weights import checkpoint

    # What learns may differ, as it changes no network.
    runs = [saved_run(tmp_path / str(seed), seed, learning_blocks=seed) for seed in (1, 2)]
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
    from model_export.networks import compact
    from model_export.run import train
    from model_export.run.initialization import begin_with

    small, large = tiny(blocks=(1, 2, 2, 1)), tiny(blocks=(1, 2, 4, 2))
    begun = train.start(large, [saved_run(tmp_path / "run", 1, blocks=(1, 2, 2, 1))])
    assert begun is not None
    networks = [compact.build(recipe, BINS[:5]) for recipe in (small, large)]
    for network, recipe in zip(networks, (small, large), strict=True):
        begin_with(network, recipe, begun)
    picture = np.random.default_rng(0).uniform(size=(1, 64, 64, 1)).astype(np.float32)
    answers = [np.asarray(network(picture)) for network in networks]
    np.testing.assert_allclose(answers[1], answers[0], atol=1e-5)
    assert np.abs(answers[0]).max() > 0.01
    larger = train.start(small, [saved_run(tmp_path / "more", 1, blocks=(1, 2, 4, 2))])
    assert larger is not None
    with pytest.raises(ValueError, match="has no place"):
        begin_with(networks[0], small, larger)


def test_what_is_held_out_stays_held_out(capsys: pytest.CaptureFixture[str]) -> None:
    from model_export.data.sources import Entry, digest
    from model_export.run.initialization import Start, hold_out
    from model_export.weights.checkpoint import Setup

    entries = [Entry(f"made/{number}.jpg", "shard.tar", 0, 1) for number in range(40)]
    before = {"made/3.jpg", digest("made/5.jpg"), "elsewhere.jpg"}
    begun = Start([], Setup(tiny(), BINS[:5], []), before, [])
    assert hold_out(tiny(), entries, begun) == ["made/3.jpg", "made/5.jpg"]
    assert not capsys.readouterr().out
    # Own photographs, none of them known: a tenth at most validates.
    own = [entry._replace(name=f"own/{number}.jpg") for number, entry in enumerate(entries)]
    assert len(hold_out(tiny().model_copy(update={"validate_on": 500}), own, begun)) == 4
    assert "none of the 3 photographs held out before is here: 4 others validate" in capsys.readouterr().out
    with pytest.raises(ValueError, match="too few"):
        hold_out(tiny(), entries[:9], begun)
    every = Start([], begun.setup, {entry.name for entry in entries}, [])
    with pytest.raises(ValueError, match="none is left to learn from"):
        hold_out(tiny(), entries, every)


@pytest.mark.parametrize("validate_on", [20, 500])
def test_no_other_validates_than_those_held_out_before(validate_on: int, capsys: pytest.CaptureFixture[str]) -> None:
    """An archive that has grown since, or a recipe that would have more of them."""
    from model_export.data.sources import Entry
    from model_export.run.initialization import Start, hold_out
    from model_export.weights.checkpoint import Setup

    entries = [Entry(f"{number}.jpg", "shard.tar", 0, 1) for number in range(2000)]
    first = hold_out(tiny().model_copy(update={"validate_on": 20}), entries[:400], None)
    begun = Start([], Setup(tiny(), BINS[:5], []), set(first), [])
    assert hold_out(tiny().model_copy(update={"validate_on": validate_on}), entries, begun) == first
    assert ("20 photographs validate" in capsys.readouterr().out) == (validate_on > 20)


def test_what_was_held_out_is_known_by_other_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from model_export.data import sources
    from model_export.run.initialization import Start, hold_out
    from model_export.weights.checkpoint import Setup

    made = photographs(40)
    write_folder(tmp_path / "archive", made)
    recipe = tiny().model_copy(update={"validate_on": 4})
    entries = sources.find([tmp_path / "archive"])
    first = hold_out(recipe, entries, None)
    contents = sources.contents(sources.split_off(entries, first)[1])
    begun = Start([], Setup(recipe, BINS[:5], []), set(first), [], {content for content in contents if content})
    above = hold_out(recipe, sources.find([tmp_path]), begun)
    assert above == [f"archive/{name}" for name in first]
    # The names alone, as older runs have them, don't say so; it is told.
    assert hold_out(recipe, sources.find([tmp_path]), Start([], begun.setup, set(first), [])) != above
    assert "none of the 4 photographs held out before" in capsys.readouterr().out


def run_of(folder: Path, *, knows_contents: bool) -> Path:
    from model_export.data import filtering, sources
    from model_export.weights import checkpoint

    write_folder(folder / "data", photographs(40))
    paths = [folder / "data"]
    filtering.choose(folder, paths, tiny()).save(folder)
    _, held_out = sources.hold_out(sources.find(paths), 4)
    names = [entry.name for entry in held_out]
    known = [content for content in sources.contents(held_out) if content and knows_contents]
    checkpoint.save_setup(folder, checkpoint.Setup(tiny(), BINS[:5], names, [], known))
    return folder


def test_only_what_a_run_has_held_out_is_measured(tmp_path: Path) -> None:
    """Not what has the same names, as photographs of other cameras have."""
    from model_export.weights import checkpoint

    new, old = run_of(tmp_path / "new", knows_contents=True), run_of(tmp_path / "old", knows_contents=False)
    (old / checkpoint.CONTENTS).unlink()
    names = checkpoint.load_setup(new).held_out
    for run in (new, old):
        assert sorted(entry.name for entry in checkpoint.held_out_of(run, [run / "data"])) == sorted(names)
    made = photographs(40)
    others = write_folder(tmp_path / "others", dict(zip(made, reversed([*made.values()]), strict=True)))
    found = checkpoint.held_out_of(new, [others])
    assert {entry.encoded() for entry in found} == {made[name] for name in names}
    assert not {entry.name for entry in found} & set(names)
    with pytest.raises(ValueError, match="others is not of the data of the run"):
        checkpoint.held_out_of(old, [others])
    with pytest.raises(FileNotFoundError, match="none of the 4"):
        checkpoint.held_out_of(new, [write_folder(tmp_path / "none", {"a.jpg": b"no"})])


def test_old_and_new_programs_read_a_runs_setup(tmp_path: Path) -> None:
    """Older ones know `held-out.json` as a list of names, and have no other file of that."""
    from model_export.weights import checkpoint

    setup = checkpoint.Setup(tiny(), BINS[:5], ["a", "b"], ["x 12"], ["5-abc"])
    checkpoint.save_setup(tmp_path, setup)
    assert json.loads((tmp_path / "held-out.json").read_text()) == ["a", "b"]
    assert checkpoint.load_setup(tmp_path).contents == ["5-abc"]
    (tmp_path / checkpoint.CONTENTS).unlink()
    assert checkpoint.load_setup(tmp_path).contents == []


def test_broken_origins_are_said(tmp_path: Path) -> None:
    from model_export.run.initialization import start
    from model_export.weights import checkpoint

    run = saved_run(tmp_path / "run", 1)
    (run / checkpoint.BEST).write_bytes((run / checkpoint.BEST).read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"best\.npz is broken"):
        start(tiny(), [run])
    (tmp_path / "broken.onnx").write_bytes(b"\x08no model at all")
    with pytest.raises(ValueError, match=r"broken\.onnx is no ONNX file, or broken"):
        start(tiny(), [tmp_path / "broken.onnx"])


def test_what_is_wrong_is_said_before_the_photographs_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from model_export.data import filtering
    from model_export.run import train

    folder = write_folder(tmp_path / "data", photographs(20))
    with monkeypatch.context() as patch:
        patch.delattr(filtering, "choose")
        with pytest.raises(FileNotFoundError, match="nowhere"):
            train.train(tiny(), tmp_path / "run", [folder], train.Limits(), [tmp_path / "nowhere"])
        (tmp_path / "file").write_text("")
        with pytest.raises(FileExistsError):
            train.train(tiny(), tmp_path / "file", [folder], train.Limits())
        run = saved_run(tmp_path / "other", 1, context=9)
        (run / "state.json").write_text("{}")
        with pytest.raises(ValueError, match="another recipe"):
            train.train(tiny(), run, [folder], train.Limits())

    def fail(*_: object) -> None:
        raise ValueError("the set-up fails")

    monkeypatch.setattr(train, "hold_out", fail)
    with pytest.raises(ValueError, match="the set-up fails"):
        train.train(tiny(), tmp_path / "run", [folder], train.Limits())
    assert (tmp_path / "run" / filtering.MANIFEST).exists()


def test_a_run_that_goes_on_tells_of_other_origins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from model_export.run import train
    from model_export.weights import checkpoint

    origin, other = (saved_run(tmp_path / name, seed) for seed, name in enumerate(("origin", "other")))
    begun = train.start(tiny(), [origin])
    assert begun is not None
    run = tmp_path / "run"
    run.mkdir()
    checkpoint.save_setup(run, checkpoint.Setup(tiny(), BINS[:5], [], begun.origins))
    (run / "state.json").write_text("{}")
    for same in ([], [origin]):
        assert train._begin(tiny(), run, same) is None
        assert not capsys.readouterr().out
    assert train._begin(tiny(), run, [other]) is None
    assert "goes on from its own checkpoint; it began from origin" in capsys.readouterr().out
    (origin / checkpoint.BEST).unlink()
    assert train._begin(tiny(), run, [origin]) is None
    assert "it began from origin" in capsys.readouterr().out


def test_all_of_a_checkpoint_is_put_in_its_place_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from model_export.networks import compact
    from model_export.weights import checkpoint

    network = compact.build(tiny(), BINS[:5])
    files = (checkpoint.WEIGHTS, checkpoint.AVERAGE, checkpoint.BEST)
    checkpoint.save(tmp_path, dict.fromkeys(files, network), checkpoint.State(views=1))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert sorted(before) == sorted([*files, "state.json"])
    write, written = np.savez, []

    def killed(path: Path, **arrays: NDArray[np.float32]) -> None:
        if len(written) == 2:
            raise SystemExit
        written.append(path)
        write(path, **{name: array + 1 for name, array in arrays.items()})

    monkeypatch.setattr(np, "savez", killed)
    with pytest.raises(SystemExit):
        checkpoint.save(tmp_path, dict.fromkeys(files, network), checkpoint.State(views=2))
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


@pytest.mark.parametrize("field", ["beta_1", "average"])
def test_a_momentum_of_one_would_learn_nothing(field: str) -> None:
    assert Recipe.model_validate({"name": "x", "optimizer": {field: 0.99}})
    with pytest.raises(ValueError, match=field):
        Recipe.model_validate({"name": "x", "optimizer": {field: 1.0}})


def test_cie94_is_the_librarys() -> None:
    from skimage.color import deltaE_ciede94

    from model_export.networks.losses import cie94

    random = np.random.default_rng(0)
    true, answer = random.uniform(-60, 60, (2, 500, 2)).astype(np.float32)
    as_lab = [np.concatenate([np.full((500, 1), 50), chroma], axis=1) for chroma in (true, answer)]
    np.testing.assert_allclose(np.asarray(cie94(true, answer)), deltaE_ciede94(*as_lab), rtol=2e-3, atol=0.05)
    np.testing.assert_allclose(np.asarray(cie94(true, true)), 0, atol=0.05)


@pytest.mark.parametrize("term", ["difference", "steps", "evenness"])
def test_some_losses_are_for_bins_in_lab(term: str) -> None:
    with pytest.raises(ValueError, match=term):
        Recipe.model_validate({"name": "x", "color_space": "hsv", term: 1})


def test_a_cast_is_taken_from_what_has_it_and_gray_stays_gray() -> None:
    from model_export.export.export import WithoutCast

    chroma = np.zeros((2, 2, 2, 2), np.float32)
    chroma[0] = [[[20, 0], [8, 0]], [[0, 0], [-8, 4]]]  # their mean is (5, 1)
    answer = np.asarray(WithoutCast(0.4)(chroma))
    np.testing.assert_allclose(answer[0, 0], [[18, -0.4], [6, -0.4]], atol=1e-4)
    np.testing.assert_array_equal(answer[0, 1], chroma[0, 1])
    np.testing.assert_array_equal(answer[1], 0)
    chroma[:] = 2, 1
    np.testing.assert_allclose(np.asarray(WithoutCast(0.4)(chroma)), chroma * 0.6, rtol=1e-4)


class Exported(Exception):
    """What an export was about to make."""


@pytest.mark.parametrize(
    ("asked", "of_file", "taken"),
    [
        ((None, None), None, (1.6, 0.0)),
        ((1.2, 0.3), None, (1.2, 0.3)),
        ((None, None), (2.4, 0.36), (2.4, 0.36)),
        ((1.2, None), (2.4, 0.36), (1.2, 0.36)),
        ((None, 0.0), (2.4, 0.36), (2.4, 0.0)),
    ],
)
def test_a_model_is_exported_with_the_gain_of_its_recipe_or_of_the_file_that_it_began_with(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    asked: tuple[float | None, float | None],
    of_file: tuple[float, float] | None,
    taken: tuple[float, float],
) -> None:
    from model_export.export import export
    from model_export.weights import checkpoint
    from model_export.weights.post_processing import PostProcessing

    run = saved_run(tmp_path / "run", 1)
    post = PostProcessing(*of_file) if of_file else None
    recipe = tiny().model_copy(update={"gain": 1.6})
    checkpoint.save_setup(run, checkpoint.Setup(recipe, BINS[:5], [], ["old.onnx 12ab"] * bool(post), [], post))

    def seen(network: object, setup: object, size: int, gain: float, cast: float) -> None:
        raise Exported(gain, cast)

    monkeypatch.setattr(export, "serving_model", seen)
    facts = {"name": "x", "version": "1", "size": 64, "license_": "l", "trained_on": "d", "photographs": []}
    with pytest.raises(Exported) as made:
        export.export(run, tmp_path / "x.onnx", gain=asked[0], cast=asked[1], **facts)  # type: ignore[arg-type]
    assert made.value.args == taken
    said = capsys.readouterr().out
    assert ("as in old.onnx, which the run began with" in said) == (post is not None)
    assert ("as asked for" in said) == (asked != (None, None))
    for name in ("model.bin", "x.fp16.onnx"):
        with pytest.raises(ValueError, match="the service takes only"):
            export.export(run, tmp_path / name, **facts)  # type: ignore[arg-type]


def test_a_run_begins_with_the_post_processing_of_its_origins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from model_export.run import train
    from model_export.weights.post_processing import PostProcessing

    bold, plain = PostProcessing(2.4, 0.36), PostProcessing(1.6, 0)
    runs = [saved_run(tmp_path / name, 1) for name in ("a", "b", "c", "d")]
    for run, post in zip(runs, (bold, bold, plain, None), strict=True):
        if post:
            post.save(run)

    def begun(*origins: Path) -> PostProcessing | None:
        start = train.start(tiny(), origins)
        assert start is not None
        return start.post_processing

    assert begun(*runs[:2]) == bold
    assert "export will take gain 2.4 and cast 0.36, as a has them" in capsys.readouterr().out
    assert begun(runs[0], runs[2]) is None
    assert "those before differ (a: gain 2.4 and cast 0.36; c: gain 1.6 and cast 0)" in capsys.readouterr().out
    assert begun(runs[0], runs[3]) is None
    assert "d: those of its recipe" in capsys.readouterr().out
    assert begun(runs[3]) is None
    assert not capsys.readouterr().out


def test_a_file_that_training_cannot_go_on_from_is_written_and_that_is_told(caplog: pytest.LogCaptureFixture) -> None:
    import onnx

    from model_export.export import export
    from model_export.weights import checkpoint

    proto = onnx.ModelProto()
    broken = [np.full(3, np.nan, np.float32)]
    export._embed(proto, onnx.ModelProto(), broken, checkpoint.Setup(tiny(), BINS[:5], []))
    assert "training can't go on from this file" in caplog.text
    assert not proto.metadata_props


class Taught:
    """A run whose network is not computed, by a clock of the test's own: each step and each validation takes its time.

    The learning rate and the side of every step are noted.
    """

    def __init__(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        *,
        step_s: float = 1.0,
        validation_s: float = 0.0,
        **more: object,
    ) -> None:
        from model_export.data import sources
        from model_export.run import train
        from model_export.run.schedule import Clock

        self.seconds = 0.0
        self.rates: list[float] = []
        self.sides: list[int] = []
        monkeypatch.setattr(train, "Clock", partial(Clock, now=lambda: self.seconds))
        monkeypatch.setattr(train.checkpoint, "time_to_save", lambda *_: 0.0)
        entries = sources.find([write_folder(folder / "data", photographs(40))])
        network = {"kind": "compact", "widths": (4, 6, 8, 10, 12), "context": 8, "bin_size": 20.0}
        optimizer = {"batch": 4, "learning_rate": 1.0}
        stages = [{"until": 0.5, "side": 32}, {"until": 1.0, "side": 64}]
        facts = {"name": "x", "network": network, "optimizer": optimizer, "curriculum": stages, "validate_on": 4}
        self.run = train.Run(Recipe.model_validate(facts | more), folder / "run", entries)

        def learn(lightness: NDArray[np.float32], chroma: NDArray[np.float32]) -> float:
            self.seconds += step_s
            self.rates.append(float(self.run.optimizer.learning_rate))
            self.sides.append(lightness.shape[1])
            kernel = self.run.network.trainable_variables[0]
            kernel.assign_add(np.ones(kernel.shape, np.float32))
            return 1.0

        def validate(*_: object) -> float:
            self.seconds += validation_s
            return 2.0

        monkeypatch.setattr(self.run.network, "train_on_batch", learn)
        monkeypatch.setattr(self.run.averaged, "test_on_batch", validate)

    def learn(self, **limits: float) -> list[dict[str, float]]:
        """Return the run's history. What was rehearsed is no part of `rates` and `sides`."""
        from model_export.run.schedule import Limits

        rehearse = self.run._rehearse_steps

        def forgotten(*arguments: object) -> None:
            rehearse(*arguments)  # type: ignore[arg-type]
            self.rates.clear()
            self.sides.clear()

        self.run._rehearse_steps = forgotten  # type: ignore[method-assign, assignment]
        self.run.train(Limits(**limits), self.seconds)
        lines = (self.run.folder / "history.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


@pytest.mark.parametrize("steps", [1, 7, 30])
def test_a_run_of_fewer_than_fifty_steps_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    taught = Taught(tmp_path, monkeypatch, views=4 * steps)
    start = [array.copy() for array in taught.run.network.get_weights()]
    history = taught.learn()
    assert [line["views"] for line in history] == [4 * steps]
    assert history[-1]["validation_loss"] == 2
    assert len(taught.rates) == steps
    assert max(taught.rates) > 0.3
    if steps > 1:
        assert taught.rates[-1] == min(taught.rates[1:]) < 0.3
        assert taught.sides == [32] * ((steps + 1) // 2) + [64] * (steps // 2)
    # The average is of what was learnt: after n steps the first kernel has grown by n.
    grown = [float(np.mean(now - old)) for now, old in zip(taught.run.average.weights, start, strict=True)]
    assert max(grown) > 0.7 * steps


@pytest.mark.parametrize(("step_s", "validation_s", "steps"), [(1.0, 6.0, 53), (7.0, 2.0, 8), (100.0, 3.0, 1)])
def test_a_time_budget_is_kept_and_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_s: float, validation_s: float, steps: int
) -> None:
    taught = Taught(tmp_path, monkeypatch, step_s=step_s, validation_s=validation_s, views=10**9)
    before = [array.copy() for array in taught.run.network.get_weights()]
    taught.learn(max_minutes=1)
    state = taught.run.state
    assert state.progress == 1
    assert state.minutes * 60 == pytest.approx(steps * step_s + validation_s)
    assert state.minutes * 60 <= max(60, step_s + validation_s)
    assert state.views == 4 * steps
    assert len(taught.rates) == steps
    assert max(taught.rates) > 0.3
    if steps > 1:
        assert taught.rates[-1] < 0.2
        assert set(taught.sides) == {32, 64}
    # The steps that were rehearsed are undone: the first kernel has grown by no more than those that count.
    grown = [float(np.mean(now - old)) for now, old in zip(taught.run.network.get_weights(), before, strict=True)]
    assert max(grown) == pytest.approx(steps)


def test_a_checkpoint_is_written_when_its_time_has_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taught = Taught(tmp_path, monkeypatch, step_s=99, views=40)
    history = taught.learn(checkpoint_minutes=5)
    assert [line["views"] for line in history] == [16, 32, 40]


def test_a_resumed_run_goes_on_with_its_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from model_export.data import sources
    from model_export.run import train

    shards = {"count": 3, "drawn": 2, "epochs": 2}
    taught = Taught(tmp_path, monkeypatch, views=4000, shards=shards)
    seen = taught.run._stream(0, taught.run.recipe.shards)
    whole = [[entry.name for entry, _ in seen._next()] for _ in range(20)]
    for _ in range(3):
        taught.learn(stop_after=0)
        resumed = train.Run(taught.run.recipe, taught.run.folder, sources.find([tmp_path / "data"]))
        steps = resumed.state.views // 4
        assert [[entry.name for entry, _ in resumed.stream._next()] for _ in range(5)] == whole[steps : steps + 5]


def test_a_run_goes_on_in_another_precision(tmp_path: Path) -> None:
    import keras

    from model_export.run import train
    from model_export.run.schedule import Limits

    paths = [write_folder(tmp_path / "data", photographs(20))]
    stages, optimizer = (Stage(until=1.0, side=32),), Optimizer(batch=2)
    recipe = tiny(blocks=(1, 1, 1, 1), bin_size=40.0).model_copy(update={"curriculum": stages, "optimizer": optimizer})
    try:
        for precision in ("mixed_bfloat16", "float32"):
            state = train.train(recipe, tmp_path / "run", paths, Limits(stop_after=0), precision=precision)
            assert keras.config.dtype_policy().name == precision
    finally:
        keras.config.set_dtype_policy("float32")
    assert state.views == 4
