"""The parts that a network is taught by. Slow only because Keras takes its time to be imported."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from model_export.recipe import Optimizer, Recipe, Stage
from tests.training import BINS, saved_run, tiny
from tests.unit.data.test_batching import photographs, write_folder

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_the_learning_rate_rises_and_falls() -> None:
    from model_export.run.schedule import learning_rate

    recipe = Recipe.model_validate({"name": "x", "optimizer": {"learning_rate": 1e-3, "warm_up": 0.1}})
    rates = [learning_rate(recipe, progress) for progress in np.linspace(0, 1, 101)]
    assert rates[0] == pytest.approx(1e-5)
    assert rates[10] == pytest.approx(1e-3)
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(1e-5)


def test_a_run_starts_from_the_mean_of_others(tmp_path: Path) -> None:
    from model_export.run import initialization
    from model_export.weights import checkpoint

    # What learns may differ, as it changes no network.
    runs = [saved_run(tmp_path / str(seed), seed, learning_blocks=seed) for seed in (1, 2)]
    begun = initialization.load(tiny(), runs)
    assert begun is not None
    assert begun.held_out == {"a", "b"}
    assert [origin.split()[0] for origin in begun.origins] == ["1", "2"]
    one, other = (checkpoint.read_weights(run / checkpoint.BEST) for run in runs)
    for mean, first, second in zip(begun.weights, one, other, strict=True):
        np.testing.assert_allclose(mean, (first + second) / 2, atol=1e-6)
    assert initialization.load(tiny(), []) is None
    with pytest.raises(ValueError, match="wider has another network"):
        initialization.load(tiny(), [runs[0], saved_run(tmp_path / "wider", 3, context=9)])
    with pytest.raises(ValueError, match="is of lab, the recipe of hsv"):
        initialization.load(tiny().model_copy(update={"color_space": "hsv"}), runs)
    with pytest.raises(ValueError, match="another network"):
        initialization.load(tiny(bin_size=5.0), runs)


def test_a_network_with_more_blocks_begins_as_the_one_without(tmp_path: Path) -> None:
    from model_export.networks import compact
    from model_export.run import initialization

    small, large = tiny(blocks=(1, 2, 2, 1)), tiny(blocks=(1, 2, 4, 2))
    begun = initialization.load(large, [saved_run(tmp_path / "run", 1, blocks=(1, 2, 2, 1))])
    assert begun is not None
    networks = [compact.build(recipe, BINS[:5]) for recipe in (small, large)]
    for network, recipe in zip(networks, (small, large), strict=True):
        initialization.initialize(network, recipe, begun)
    picture = np.random.default_rng(0).uniform(size=(1, 64, 64, 1)).astype(np.float32)
    answers = [np.asarray(network(picture)) for network in networks]
    np.testing.assert_allclose(answers[1], answers[0], atol=1e-5)
    assert np.abs(answers[0]).max() > 0.01
    larger = initialization.load(small, [saved_run(tmp_path / "more", 1, blocks=(1, 2, 4, 2))])
    assert larger is not None
    with pytest.raises(ValueError, match="has no place"):
        initialization.initialize(networks[0], small, larger)


def test_what_is_held_out_stays_held_out(capsys: pytest.CaptureFixture[str]) -> None:
    from model_export.data.sources import Entry, name_digest
    from model_export.run.initialization import Initialization, hold_out
    from model_export.weights.checkpoint import Setup

    entries = [Entry(f"made/{number}.jpg", "shard.tar", 0, 1) for number in range(40)]
    before = {"made/3.jpg", name_digest("made/5.jpg"), "elsewhere.jpg"}
    begun = Initialization([], Setup(tiny(), BINS[:5], []), before, [])
    assert hold_out(tiny(), entries, begun) == ["made/3.jpg", "made/5.jpg"]
    assert not capsys.readouterr().out
    # Own photographs, none of them known: a tenth at most validates.
    own = [entry._replace(name=f"own/{number}.jpg") for number, entry in enumerate(entries)]
    assert len(hold_out(tiny().model_copy(update={"validate_on": 500}), own, begun)) == 4
    assert "none of the 3 photographs held out before is here: 4 others validate" in capsys.readouterr().out
    with pytest.raises(ValueError, match="too few"):
        hold_out(tiny(), entries[:9], begun)
    every = Initialization([], begun.setup, {entry.name for entry in entries}, [])
    with pytest.raises(ValueError, match="none is left to learn from"):
        hold_out(tiny(), entries, every)


@pytest.mark.parametrize("validate_on", [20, 500])
def test_no_other_validates_than_those_held_out_before(validate_on: int, capsys: pytest.CaptureFixture[str]) -> None:
    """An archive that has grown since, or a recipe that would have more of them."""
    from model_export.data.sources import Entry
    from model_export.run.initialization import Initialization, hold_out
    from model_export.weights.checkpoint import Setup

    entries = [Entry(f"{number}.jpg", "shard.tar", 0, 1) for number in range(2000)]
    first = hold_out(tiny().model_copy(update={"validate_on": 20}), entries[:400], None)
    begun = Initialization([], Setup(tiny(), BINS[:5], []), set(first), [])
    assert hold_out(tiny().model_copy(update={"validate_on": validate_on}), entries, begun) == first
    assert ("20 photographs validate" in capsys.readouterr().out) == (validate_on > 20)


def test_what_was_held_out_is_known_by_other_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from model_export.data import sources
    from model_export.run.initialization import Initialization, hold_out
    from model_export.weights.checkpoint import Setup

    made = photographs(40)
    write_folder(tmp_path / "archive", made)
    recipe = tiny().model_copy(update={"validate_on": 4})
    entries = sources.find([tmp_path / "archive"])
    first = hold_out(recipe, entries, None)
    contents = sources.content_ids(sources.split_off(entries, first)[1])
    begun = Initialization(
        [], Setup(recipe, BINS[:5], []), set(first), [], {content for content in contents if content}
    )
    above = hold_out(recipe, sources.find([tmp_path]), begun)
    assert above == [f"archive/{name}" for name in first]
    # The names alone, as older runs have them, don't say so; it is told.
    assert hold_out(recipe, sources.find([tmp_path]), Initialization([], begun.setup, set(first), [])) != above
    assert "none of the 4 photographs held out before" in capsys.readouterr().out


def test_broken_origins_are_said(tmp_path: Path) -> None:
    from model_export.run import initialization
    from model_export.weights import checkpoint

    run = saved_run(tmp_path / "run", 1)
    (run / checkpoint.BEST).write_bytes((run / checkpoint.BEST).read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"best\.npz is broken"):
        initialization.load(tiny(), [run])
    (tmp_path / "broken.onnx").write_bytes(b"\x08no model at all")
    with pytest.raises(ValueError, match=r"broken\.onnx is no ONNX file, or broken"):
        initialization.load(tiny(), [tmp_path / "broken.onnx"])


def test_what_is_wrong_is_said_before_the_photographs_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from model_export.data import filtering
    from model_export.run import train

    folder = write_folder(tmp_path / "data", photographs(20))
    with monkeypatch.context() as patch:
        patch.delattr(filtering, "select")
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

    monkeypatch.setattr(train.initialization, "hold_out", fail)
    with pytest.raises(ValueError, match="the set-up fails"):
        train.train(tiny(), tmp_path / "run", [folder], train.Limits())
    assert (tmp_path / "run" / filtering.MANIFEST).exists()


def test_a_run_that_goes_on_tells_of_other_origins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from model_export.run import initialization, train
    from model_export.weights import checkpoint

    origin, other = (saved_run(tmp_path / name, seed) for seed, name in enumerate(("origin", "other")))
    begun = initialization.load(tiny(), [origin])
    assert begun is not None
    run = tmp_path / "run"
    run.mkdir()
    checkpoint.save_setup(run, checkpoint.Setup(tiny(), BINS[:5], [], begun.origins))
    (run / "state.json").write_text("{}")
    for same in ([], [origin]):
        assert train._load_initialization(tiny(), run, same) is None
        assert not capsys.readouterr().out
    assert train._load_initialization(tiny(), run, [other]) is None
    assert "goes on from its own checkpoint; it began from origin" in capsys.readouterr().out
    (origin / checkpoint.BEST).unlink()
    assert train._load_initialization(tiny(), run, [origin]) is None
    assert "it began from origin" in capsys.readouterr().out


def test_a_cast_is_taken_from_what_has_it_and_gray_stays_gray() -> None:
    from model_export.export.export import CastReduction

    chroma = np.zeros((2, 2, 2, 2), np.float32)
    chroma[0] = [[[20, 0], [8, 0]], [[0, 0], [-8, 4]]]  # their mean is (5, 1)
    answer = np.asarray(CastReduction(0.4)(chroma))
    np.testing.assert_allclose(answer[0, 0], [[18, -0.4], [6, -0.4]], atol=1e-4)
    np.testing.assert_array_equal(answer[0, 1], chroma[0, 1])
    np.testing.assert_array_equal(answer[1], 0)
    chroma[:] = 2, 1
    np.testing.assert_allclose(np.asarray(CastReduction(0.4)(chroma)), chroma * 0.6, rtol=1e-4)


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
    from model_export.run import initialization
    from model_export.weights.post_processing import PostProcessing

    bold, plain = PostProcessing(2.4, 0.36), PostProcessing(1.6, 0)
    runs = [saved_run(tmp_path / name, 1) for name in ("a", "b", "c", "d")]
    for run, post in zip(runs, (bold, bold, plain, None), strict=True):
        if post:
            post.save(run)

    def begun(*origins: Path) -> PostProcessing | None:
        start = initialization.load(tiny(), origins)
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
        monkeypatch.setattr(train.checkpoint, "measure_save_time", lambda *_: 0.0)
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

        rehearse = self.run._time_steps

        def forgotten(*arguments: object) -> None:
            rehearse(*arguments)  # type: ignore[arg-type]
            self.rates.clear()
            self.sides.clear()

        self.run._time_steps = forgotten  # type: ignore[method-assign, assignment]
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
    whole = [[entry.name for entry, _ in seen._next_items()] for _ in range(20)]
    for _ in range(3):
        taught.learn(stop_after=0)
        resumed = train.Run(taught.run.recipe, taught.run.folder, sources.find([tmp_path / "data"]))
        steps = resumed.state.views // 4
        assert [[entry.name for entry, _ in resumed.stream._next_items()] for _ in range(5)] == whole[steps : steps + 5]


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
