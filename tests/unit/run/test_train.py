"""The training loop. Slow only because Keras takes seconds to import."""

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


def test_what_is_wrong_is_said_before_the_photographs_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from model_export.data import filtering
    from model_export.run import train

    folder = write_folder(tmp_path / "data", photographs(20))
    with monkeypatch.context() as patch:
        patch.delattr(filtering, "select")
        with pytest.raises(FileNotFoundError, match="nowhere"):
            train.train(tiny(), tmp_path / "run", [folder], train.Limits(), init=[tmp_path / "nowhere"])
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
    assert "resumes from its own checkpoint; it started from origin" in capsys.readouterr().out
    (origin / checkpoint.BEST).unlink()
    assert train._load_initialization(tiny(), run, [origin]) is None
    assert "it started from origin" in capsys.readouterr().out


class FakeRun:
    """A run without real computation, on a fake clock on which steps and validations take a given time.

    It records the learning rate and the side of every step.
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
        """Return the run's history. `rates` and `sides` do not include the steps that only measure time."""
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
    fake = FakeRun(tmp_path, monkeypatch, views=4 * steps)
    start = [array.copy() for array in fake.run.network.get_weights()]
    history = fake.learn()
    assert [line["views"] for line in history] == [4 * steps]
    assert history[-1]["validation_loss"] == 2
    assert len(fake.rates) == steps
    assert max(fake.rates) > 0.3
    if steps > 1:
        assert fake.rates[-1] == min(fake.rates[1:]) < 0.3
        assert fake.sides == [32] * ((steps + 1) // 2) + [64] * (steps // 2)
    # Each step adds 1 to the first kernel, and the average follows.
    grown = [float(np.mean(now - old)) for now, old in zip(fake.run.average.weights, start, strict=True)]
    assert max(grown) > 0.7 * steps


@pytest.mark.parametrize(("step_s", "validation_s", "steps"), [(1.0, 6.0, 53), (7.0, 2.0, 8), (100.0, 3.0, 1)])
def test_a_time_budget_is_kept_and_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_s: float, validation_s: float, steps: int
) -> None:
    fake = FakeRun(tmp_path, monkeypatch, step_s=step_s, validation_s=validation_s, views=10**9)
    before = [array.copy() for array in fake.run.network.get_weights()]
    fake.learn(max_minutes=1)
    state = fake.run.state
    assert state.progress == 1
    assert state.minutes * 60 == pytest.approx(steps * step_s + validation_s)
    assert state.minutes * 60 <= max(60, step_s + validation_s)
    assert state.views == 4 * steps
    assert len(fake.rates) == steps
    assert max(fake.rates) > 0.3
    if steps > 1:
        assert fake.rates[-1] < 0.2
        assert set(fake.sides) == {32, 64}
    # The steps that only measured time are undone: the first kernel grew by the number of counted steps.
    grown = [float(np.mean(now - old)) for now, old in zip(fake.run.network.get_weights(), before, strict=True)]
    assert max(grown) == pytest.approx(steps)


def test_a_checkpoint_is_written_when_its_time_has_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRun(tmp_path, monkeypatch, step_s=99, views=40)
    history = fake.learn(checkpoint_minutes=5)
    assert [line["views"] for line in history] == [16, 32, 40]


def test_a_resumed_run_goes_on_with_its_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from model_export.data import sources
    from model_export.run import train

    shards = {"count": 3, "drawn": 2, "epochs": 2}
    fake = FakeRun(tmp_path, monkeypatch, views=4000, shards=shards)
    seen = fake.run._stream(0, fake.run.recipe.shards)
    whole = [[entry.name for entry, _ in seen._next_items()] for _ in range(20)]
    for _ in range(3):
        fake.learn(stop_after=0)
        resumed = train.Run(fake.run.recipe, fake.run.folder, sources.find([tmp_path / "data"]))
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
