"""The training loop: it trains a recipe in a run's folder, with time limits and checkpoints."""

import json
import math
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import keras
import numpy as np
from tqdm import tqdm

from model_export import files, networks
from model_export.data import batching, filtering, sources
from model_export.recipe import Recipe, Shards, UNet
from model_export.run import initialization
from model_export.run.adversarial import AdversarialTrainer
from model_export.run.precision import Precision, choose
from model_export.run.schedule import Clock, Limits, learning_rate, ramp
from model_export.run.setup import (
    build_optimizer,
    choose_bins,
    jit_compile,
    sample_form,
    time_step,
    use_all_accelerators,
)
from model_export.signals import DeferredSignal
from model_export.weights import checkpoint
from model_export.weights.averaging import WeightAverage
from model_export.weights.checkpoint import Setup, State

# Averaged weights need new batch-norm statistics. They are computed from this number of batches, or from this share of
# the steps in a short run, with this momentum.
CALIBRATION_BATCHES = 100
CALIBRATION_SHARE = 0.1
CALIBRATION_MOMENTUM = 0.97
VALIDATION_BATCH = 50
# `--checkpoint-minutes 0` writes a checkpoint every 50 steps, for tests and experiments.
FREQUENT_STEPS = 50
# A time budget for fewer steps causes a warning.
FEW_STEPS = 30
# The estimated duration of the last checkpoint is multiplied by this.
SAFETY_FACTOR = 1.1
# In a log, the progress bar is printed at this interval.
LOG_INTERVAL_S = 60.0


class Diverged(RuntimeError):
    """The loss is NaN or infinite."""


def _set_up(
    recipe: Recipe, folder: Path, entries: Sequence[sources.Entry], initial: initialization.Initialization | None
) -> Setup:
    """Return the setup of the run in `folder`, which is written if the run is new."""
    if (folder / "state.json").exists():
        return checkpoint.load_setup(folder)
    held_out = initialization.hold_out(recipe, entries, initial)
    training, validating = sources.split_off(entries, held_out)
    bins = initial.setup.bins if initial else choose_bins(recipe, training)
    content_ids = [content for content in sources.content_ids(validating) if content]
    origins, post_processing = (initial.origins, initial.post_processing) if initial else ([], None)
    setup = Setup(recipe, bins, held_out, origins, content_ids, post_processing)
    checkpoint.save_setup(folder, setup)
    return setup


class Run:
    """A training run in its folder: it trains, averages, validates, and keeps the best weights."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        entries: Sequence[sources.Entry],
        initial: initialization.Initialization | None = None,
    ) -> None:
        use_all_accelerators()
        keras.utils.set_random_seed(recipe.seed)
        setup = _set_up(recipe, folder, entries, initial)
        self.folder = folder
        self.recipe = recipe
        self.training, self.held_out = sources.split_off(entries, setup.held_out)
        architecture = networks.architecture(recipe)
        self.network = architecture.build(recipe, setup.bins)
        self.averaged = architecture.build(recipe, setup.bins)
        for layer in self.averaged.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = CALIBRATION_MOMENTUM
        self.state = State()
        if (folder / "state.json").exists():
            self.state = checkpoint.load_state(folder)
            checkpoint.load_weights(folder / checkpoint.WEIGHTS, self.network)
            checkpoint.load_weights(folder / checkpoint.AVERAGE, self.averaged)
        else:
            initialization.initialize(self.network, recipe, initial)
            self.averaged.set_weights(self.network.get_weights())
        # Trained weights are validated first, so that the user sees whether the run improved them.
        self.validates_start = initial is not None
        settings = recipe.optimizer
        self.average = WeightAverage(self.averaged.get_weights(), settings.average, self.steps)
        self.optimizer = build_optimizer(settings)
        loss = architecture.loss(recipe, setup.bins)
        self.network.compile(self.optimizer, loss, jit_compile=jit_compile())
        self.averaged.compile(keras.optimizers.SGD(0.0), loss, jit_compile=jit_compile())
        self.adversarial: AdversarialTrainer | None = None
        self.current_work = ""
        self.stop = DeferredSignal(lambda: self.current_work)
        self.form = sample_form(recipe)
        self.stream = self._stream(recipe.seed, recipe.shards, self.state.views)
        # Calibration has a stream of its own. Otherwise the times of checkpoints would change the training batches.
        self.calibration_stream = self._stream(recipe.seed + 1)

    def _stream(self, seed: int, shards: Shards | None = None, views: int = 0) -> batching.Stream:
        batch, augment = self.recipe.optimizer.batch, self.recipe.augment
        return batching.Stream(self.training, batch, self.form, augment, seed, shards=shards, views=views)

    @property
    def steps(self) -> int:
        """Number of steps of all calls so far."""
        return self.state.views // self.recipe.optimizer.batch

    def train(self, limits: Limits, started: float) -> State:
        """Train until the recipe's views or the time are used up, and return the state.

        started: when this call began, by `time.monotonic`. SIGINT and SIGTERM stop the run after a last checkpoint;
        then KeyboardInterrupt is raised. Raises Diverged if the loss is not finite.
        """
        clock = Clock(limits, self.state.minutes, started)
        if self.state.progress >= 1:
            tqdm.write(f"the run is finished; to train further, start a new run: --init {self.folder} --run ANOTHER")
        else:
            self._prepare(clock)
            with self.stop:
                self._learn(limits, clock)
        if self.state.progress < 1:
            self.stop.raise_if_signalled()
        return self.state

    def _learn(self, limits: Limits, clock: Clock) -> None:
        before, last_check, steps = self.state, clock.now(), 0
        clock.start_schedule(before.progress)
        # A log keeps every line that the bar prints.
        interval = 0.1 if sys.stderr.isatty() else LOG_INTERVAL_S
        initial, form = 100 * before.progress, "{l_bar}{bar}| {postfix}"
        bar = tqdm(total=100.0, initial=initial, unit="%", bar_format=form, mininterval=interval, miniters=0)
        losses: list[float] = []
        stops = False
        batches = self.stream.batches(lambda: self.recipe.side(self.state.progress))
        with bar, closing(batches):
            while self.state.progress < 1 and not stops:
                self.current_work = self._step_and_checkpoint(clock)
                begun = clock.now()
                losses.append(self._step(next(batches), before, steps, clock))
                steps += 1
                clock.record_step(clock.now() - begun)
                self._update_progress(clock)
                bar.set_postfix_str(self._progress_text(before, clock, losses), refresh=False)
                bar.update(100 * self.state.progress - bar.n)
                stops = clock.call_is_used_up() or self.stop.number is not None
                waited = clock.now() - last_check
                often = limits.checkpoint_minutes == 0 and len(losses) >= FREQUENT_STEPS
                is_due = often or 0 < 60 * limits.checkpoint_minutes < waited
                # A run that ends soon writes its last checkpoint then.
                is_due = is_due and clock.seconds_left > 2 * clock.checkpoint_s
                if stops or is_due or self.state.progress >= 1:
                    begun = clock.now()
                    self._write_checkpoint(float(np.mean(losses)), clock)
                    losses, last_check = [], clock.now()
                    clock.checkpoint_s = last_check - begun

    def _progress_text(self, before: State, clock: Clock, losses: Sequence[float]) -> str:
        views = self.state.views - before.views
        speed = views / max(clock.learning_seconds, 1e-9)
        return f"{self.state.views:,} views, {speed:.0f}/s, loss {np.mean(losses[-FREQUENT_STEPS:]):.3f}"

    def _step_and_checkpoint(self, clock: Clock) -> str:
        seconds = f", about {clock.step_s + clock.checkpoint_s:.0f} s" if clock.checkpoint_s else ""
        return f"finishing this step, then writing a checkpoint to {self.folder}{seconds}"

    def _check_finite(self, loss: float) -> float:
        """Return the loss. Raises Diverged, before anything is written, if it is not finite."""
        if not math.isfinite(loss):
            raise Diverged(
                f"the loss is {loss} after {self.state.views:,} views: nothing was written since the last checkpoint."
                " Try a smaller `learning_rate`"
            )
        return loss

    def _progress(self, views: float, clock: Clock, ahead: float = 0.0) -> float:
        """Return the progress of the run, in 0..1, after this number of views and in `ahead` seconds."""
        # A longer time budget must not reduce the progress.
        return min(1.0, max(self.state.progress, views / self.recipe.views, clock.progress(ahead)))

    def _update_progress(self, clock: Clock) -> None:
        progress = 1.0 if clock.budget_is_used_up() else self._progress(self.state.views, clock)
        self.state = replace(self.state, minutes=clock.minutes, progress=progress)

    def _step(self, batch: batching.Batch, before: State, steps: int, clock: Clock) -> float:
        """Learn from a batch and return its loss.

        before: the state at the start of the call, `steps` steps ago. The learning rate is that of the middle of the
        step, so that a run of few steps goes through the whole schedule.
        """
        half = clock.step_s / 2
        progress = self._progress(self.state.views + len(batch[0]) / 2, clock, half)
        of_rest = (progress - before.progress) / (1 - before.progress)
        rise = ramp(steps + 0.5, max(of_rest, clock.call_progress(half)))
        if trainer := self._adversarial_trainer():
            loss = trainer.step(*batch, rise)
        else:
            self.optimizer.learning_rate = rise * learning_rate(self.recipe, progress)
            loss = float(self.network.train_on_batch(*batch))
        self.state = replace(self.state, views=self.state.views + len(batch[0]))
        self._check_finite(loss)
        if self.average.momentum and self.average.is_due(self.steps):
            self.average.update(self.network.get_weights(), self.steps - self.average.steps)
        return loss

    def _prepare(self, clock: Clock) -> None:
        """Validate the initial weights, and measure durations if the time is limited."""
        if not (self.validates_start or clock.is_limited):
            return
        loss = self._validate(self.held_out)
        tqdm.write(f"validation loss before: {loss:.4f} ({len(self.held_out)} photographs)")
        if self.validates_start:
            self.state = replace(self.state, start_loss=loss)
        if clock.is_limited:
            self._measure_durations(clock)

    def _measure_durations(self, clock: Clock) -> None:
        """Measure how long a step and the last checkpoint take. The weights do not change."""
        examples = self._stream(self.recipe.seed + 2)
        if not self._adversarial_trainer():
            self._time_steps(clock, examples)
        begun = clock.now()
        part = self.held_out[:VALIDATION_BATCH]
        self._validate(part)
        validation = (clock.now() - begun) * len(self.held_out) / len(part)
        begun = clock.now()
        self._calibrate(examples, 1)
        settling = clock.now() - begun
        saving = 3 * checkpoint.measure_save_time(self.folder, self.network)
        clock.checkpoint_s = SAFETY_FACTOR * (validation + settling + saving)
        clock.start_schedule(self.state.progress)
        count = self._calibration_batches(
            self.steps + int(min(clock.steps_left, CALIBRATION_BATCHES / CALIBRATION_SHARE))
        )
        clock.checkpoint_s = SAFETY_FACTOR * (validation + settling * count + saving)
        left = clock.steps_left
        if clock.step_s:
            tqdm.write(
                f"a step takes {clock.step_s:.1f} s and the last checkpoint {clock.checkpoint_s:.0f} s:"
                f" about {left:.0f} steps of {self.recipe.optimizer.batch} photographs fit into the time,"
                " which starts now"
                + ("; this is too few to learn much: increase --max-minutes" if left < FEW_STEPS else "")
            )

    def _time_steps(self, clock: Clock, examples: batching.Stream) -> None:
        """Run two steps in each remaining size, and restore all weights. TensorFlow compiles in the first step."""
        self.optimizer.build(self.network.trainable_variables)
        variables = [*self.network.variables, *self.optimizer.variables]
        kept = [keras.ops.convert_to_numpy(variable).copy() for variable in variables]
        sides = [stage.side for stage in self.recipe.curriculum if stage.until > self.state.progress]
        for side in dict.fromkeys(reversed(sides)):
            (batch,) = examples.batches(side, 1)
            for _ in range(2):
                begun = clock.now()
                self.network.train_on_batch(*batch)
                duration = clock.now() - begun
        clock.record_step(duration)
        for variable, value in zip(variables, kept, strict=True):
            variable.assign(value)

    def _adversarial_trainer(self) -> AdversarialTrainer | None:
        """Return the adversarial trainer from the recipe's `adversarial_from` on; None before."""
        settings = self.recipe.network
        if not isinstance(settings, UNet) or self.state.progress < settings.adversarial_from:
            return None
        if self.adversarial is None:
            self.adversarial = AdversarialTrainer(self.network, settings, jit_compile())
            if (self.folder / checkpoint.DISCRIMINATOR).exists():
                checkpoint.load_weights(self.folder / checkpoint.DISCRIMINATOR, self.adversarial.discriminator)
        return self.adversarial

    def _calibration_batches(self, steps: int) -> int:
        """Return the number of batches that calibrate batch norm after this number of steps."""
        return min(CALIBRATION_BATCHES, max(1, int(CALIBRATION_SHARE * steps))) if self.average.momentum else 0

    def _calibrate(self, stream: batching.Stream, count: int) -> None:
        """Recompute the batch-norm statistics of the averaged weights on training batches.

        Averaged weights need their own statistics (Izmailov et al., "Averaging Weights Leads to Wider Optima", 2018).
        """
        if not self.average.momentum:
            self.averaged.set_weights(self.network.get_weights())
            return
        self.averaged.set_weights(self.average.weights)
        trainable = [variable.value for variable in self.averaged.trainable_variables]
        statistics = [variable.value for variable in self.averaged.non_trainable_variables]
        for lightness, _ in stream.batches(self.recipe.curriculum[-1].side, count):
            _, statistics = self.averaged.stateless_call(trainable, statistics, lightness, training=True)
        for variable, value in zip(self.averaged.non_trainable_variables, statistics, strict=True):
            variable.assign(value)

    def _validate(self, entries: Sequence[sources.Entry]) -> float:
        """Return the mean loss of the averaged weights on photographs, at the last stage's size."""
        lightness, chroma = batching.load_batch(entries, self.recipe.curriculum[-1].side, self.form)
        parts = [slice(start, start + VALIDATION_BATCH) for start in range(0, len(lightness), VALIDATION_BATCH)]
        losses = [float(self.averaged.test_on_batch(lightness[part], chroma[part])) for part in parts]
        return self._check_finite(float(np.average(losses, weights=[len(lightness[part]) for part in parts])))

    def _write_checkpoint(self, loss: float, clock: Clock) -> None:
        """Average, validate, and write the checkpoint and a line of `history.jsonl`.

        loss: the mean training loss since the last checkpoint.
        """
        self.current_work = f"finishing the checkpoint in {self.folder}"
        self._calibrate(self.calibration_stream, self._calibration_batches(self.steps))
        validation = self._validate(self.held_out)
        models = {checkpoint.WEIGHTS: self.network, checkpoint.AVERAGE: self.averaged}
        if self.adversarial:
            models[checkpoint.DISCRIMINATOR] = self.adversarial.discriminator
        takes_last = self.recipe.best_by == "last"
        judged_by = loss if self.recipe.best_by == "training" else validation
        if takes_last or judged_by < self.state.best_loss:
            models[checkpoint.BEST] = self.averaged
            self.state = replace(self.state, best_loss=judged_by)
        self.state = replace(self.state, minutes=clock.minutes)
        checkpoint.save(self.folder, models, self.state)
        line = {
            "views": self.state.views,
            "minutes": round(self.state.minutes, 2),
            "side": self.recipe.side(self.state.progress),
            "loss": round(loss, 4),
            "validation_loss": round(validation, 4),
        }
        with (self.folder / "history.jsonl").open("a", encoding="utf-8") as history:
            history.write(json.dumps(line) + "\n")
        tqdm.write(f"checkpoint: {line}")


def _load_initialization(recipe: Recipe, folder: Path, init: Sequence[Path]) -> initialization.Initialization | None:
    """Return what a new run starts from; None for a run that is resumed.

    It runs before the data is read, so that errors appear early. Raises ValueError if the folder's run has another
    recipe.
    """
    if not (folder / "state.json").exists():
        files.ensure_writable(folder)
        return initialization.load(recipe, init)
    setup = checkpoint.load_setup(folder)
    if setup.recipe != recipe:
        raise ValueError(f"the run in {folder} was started with another recipe")
    if init and not initialization.matches_origins(init, setup.origins):
        # This is not an error: the origins may be gone or trained further, and the same command must resume.
        names = ", ".join(origin.partition(" ")[0] for origin in setup.origins)
        tqdm.write(f"the run in {folder} resumes from its own checkpoint; it started from {names or 'nothing'}")
    return None


def train(  # noqa: PLR0913 - all but the first four are keyword-only
    recipe: Recipe,
    folder: Path,
    paths: Sequence[Path],
    limits: Limits,
    *,
    init: Sequence[Path] = (),
    precision: Precision | None = None,
    started: float | None = None,
) -> State:
    """Train or resume the run in `folder` on the photographs at `paths`.

    init: the origins of a new run, see `initialization.load`. precision: the fastest one on this machine if None; it
    may differ between calls. started: when this call began, by `time.monotonic`; now if None. Raises FileNotFoundError
    if there are no photographs. Raises ValueError if the folder's run has another recipe or other photographs.
    """
    started = time.monotonic() if started is None else started
    initial = _load_initialization(recipe, folder, init)
    photographs = filtering.select(folder, paths, recipe)
    # Saved before the rest of the set-up, so that a run that is stopped there does not filter again.
    photographs.save(folder)
    choice = choose(precision, partial(time_step, recipe))
    tqdm.write(str(choice))
    keras.config.set_dtype_policy(choice.precision)
    return Run(recipe, folder, photographs.entries, initial).train(limits, started)
