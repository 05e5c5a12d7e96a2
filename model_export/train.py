"""Trains a recipe: `python -m model_export train RECIPE --data ... --run FOLDER`."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from model_export import checkpoint, data, files, networks, sift, sources
from model_export.adversary import Adversary
from model_export.beginning import Start, begin_with, hold_out, is_from, start
from model_export.checkpoint import Setup, State, Weights
from model_export.losses import occupied_bins
from model_export.recipe import Compact, Optimizer, Recipe, UNet
from model_export.stopping import Stop

# Steps between two looks at the clock and the learning rate.
ROUND = 50
# Batches that settle the batch-norm statistics after weights were averaged (fewer in a short run), and their momentum
# meanwhile.
SETTLE = 100
SETTLE_MOMENTUM = 0.97
VALIDATION_BATCH = 50
# Seconds between two pictures of the bar in a log.
LOG_INTERVAL_S = 60.0
# The optimizer's moments start from nothing at every start: the learning rate rises over so many steps.
RAMP = 100
# Photographs whose chroma decides which bins there are, and the side they are looked at in.
BIN_PHOTOGRAPHS = 3000
BIN_SIDE = 32
BIN_STRIDE = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """When a run checks itself and when it ends. `max_minutes` is for all calls together, `stop_after` for this one."""

    max_minutes: float | None = None
    stop_after: float | None = None
    checkpoint_minutes: float = 10.0


class Diverged(RuntimeError):
    """The loss is no number any more."""


def learning_rate(recipe: Recipe, progress: float) -> float:
    """A linear warm-up, then half a cosine down to a hundredth of the peak; or the peak all along."""
    peak, warm_up = recipe.optimizer.learning_rate, recipe.optimizer.warm_up
    if recipe.optimizer.schedule == "constant":
        return peak
    if progress < warm_up:
        return peak * max(progress / warm_up, 0.01)
    phase = (progress - warm_up) / (1 - warm_up)
    return peak * max(0.01, 0.5 + 0.5 * math.cos(math.pi * min(phase, 1)))


def form(recipe: Recipe) -> data.Form:
    """What the recipe's network is shown and asked for."""
    return data.Form(recipe.color_space, networks.of(recipe).STRIDE, recipe.lightness)


def choose_bins(recipe: Recipe, entries: Sequence[sources.Entry]) -> NDArray[np.float32]:
    """The bins that the training photographs occupy, float32 [Q, 2]; none for a network without bins."""
    if not (isinstance(recipe.network, Compact) and recipe.network.head == "bins"):
        return np.empty((0, 2), np.float32)
    random = np.random.default_rng(recipe.seed)
    drawn = random.permutation(len(entries))[:BIN_PHOTOGRAPHS]
    look = data.Form(recipe.color_space, BIN_STRIDE)
    _, chroma = data.fixed([entries[i] for i in drawn], BIN_SIDE * BIN_STRIDE, look)
    return occupied_bins(chroma.reshape(-1, 2), recipe.network.bin_size)


def _jit_compile() -> bool | str:
    # XLA compiles convolutions for a CPU without oneDNN: slower, and without bfloat16.
    return False if keras.backend.backend() == "tensorflow" else "auto"


def _optimizer(settings: Optimizer) -> keras.Optimizer:
    if settings.kind == "rmsprop":
        return keras.optimizers.RMSprop(settings.learning_rate)
    if settings.kind == "adam":
        return keras.optimizers.Adam(settings.learning_rate, beta_1=settings.beta_1)
    optimizer = keras.optimizers.AdamW(
        settings.learning_rate, weight_decay=settings.weight_decay, beta_1=settings.beta_1
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


class WeightAverage:
    """An exponential average of a network's weights, without the weight of where it started from.

    Kept here: an optimizer with `use_ema` overwrites the weights with their average whenever `fit` returns.
    """

    def __init__(self, weights: Weights, momentum: float, steps: int = 0) -> None:
        self.weights = weights
        self.momentum = momentum
        self.steps = steps

    def update(self, weights: Weights, steps: int) -> None:
        """Takes in the weights after another `steps` steps."""
        self.steps += steps
        kept = min(self.momentum, (1 + self.steps) / (10 + self.steps)) ** steps
        for mean, new in zip(self.weights, weights, strict=True):
            mean += (1 - kept) * (new - mean)


def _set_up(recipe: Recipe, folder: Path, entries: Sequence[sources.Entry], begun: Start | None) -> Setup:
    """The setup of the run in `folder`, or that of a new one."""
    if (folder / "state.json").exists():
        return checkpoint.load_setup(folder)
    held_out = hold_out(recipe, entries, begun)
    training, validating = sources.split_off(entries, held_out)
    bins = begun.setup.bins if begun else choose_bins(recipe, training)
    contents = [content for content in sources.contents(validating) if content]
    origins, post_processing = (begun.origins, begun.post_processing) if begun else ([], None)
    setup = Setup(recipe, bins, held_out, origins, contents, post_processing)
    checkpoint.save_setup(folder, setup)
    return setup


def _use_all_accelerators() -> None:
    """Each batch is split over them, and every one holds all of the weights. Keras can do so with JAX."""
    if keras.backend.backend() != "jax":
        return
    accelerators = [device for device in keras.distribution.list_devices() if not device.startswith("cpu")]
    if len(accelerators) > 1:
        keras.distribution.set_distribution(keras.distribution.DataParallel(devices=accelerators))


def _mean_loss(step: Callable[..., float], batches: Iterable[data.Batch]) -> float:
    """Takes a step with each batch and returns the mean of their losses; not a number where there is no batch.

    Not `fit` or `evaluate`: they wrap the batches in a tf.data pipeline, whose end waits for its tuning thread to
    wake, which took as long as half of the training itself.
    """
    losses, sizes = [], []
    for lightness, chroma in batches:
        losses.append(float(step(lightness, chroma)))
        sizes.append(len(lightness))
    return float(np.average(losses, weights=sizes)) if losses else math.nan


class Run:
    """One run in one folder: trains, averages, validates, keeps the best."""

    def __init__(
        self, recipe: Recipe, folder: Path, entries: Sequence[sources.Entry], begun: Start | None = None
    ) -> None:
        _use_all_accelerators()
        keras.utils.set_random_seed(recipe.seed)
        setup = _set_up(recipe, folder, entries, begun)
        self.folder = folder
        self.recipe = recipe
        training, self.held_out = sources.split_off(entries, setup.held_out)
        architecture = networks.of(recipe)
        self.network = architecture.build(recipe, setup.bins)
        self.averaged = architecture.build(recipe, setup.bins)
        for layer in self.averaged.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = SETTLE_MOMENTUM
        self.state = State()
        if (folder / "state.json").exists():
            self.state = checkpoint.load_state(folder)
            checkpoint.load_weights(folder / checkpoint.WEIGHTS, self.network)
            checkpoint.load_weights(folder / checkpoint.AVERAGE, self.averaged)
        else:
            begin_with(self.network, recipe, begun)
        settings = recipe.optimizer
        steps = self.state.views // settings.batch
        self.average = WeightAverage(self.averaged.get_weights(), settings.average, steps)
        self.optimizer = _optimizer(settings)
        loss = architecture.loss(recipe, setup.bins)
        self.network.compile(self.optimizer, loss, jit_compile=_jit_compile())
        self.averaged.compile(keras.optimizers.SGD(0.0), loss, jit_compile=_jit_compile())
        self.adversary: Adversary | None = None
        self.stop = Stop()
        seed = recipe.seed + self.state.views
        self.form = form(recipe)
        self.stream = data.Stream(training, settings.batch, self.form, recipe.augment, seed, recipe.shards)
        # Photographs of their own to settle on: when a run checks itself must not change what it learns from.
        self.settling = data.Stream(training, settings.batch, self.form, recipe.augment, recipe.seed + 1)

    def train(self, limits: Limits) -> State:
        """Goes on until the recipe's views or the time are used up, and returns where it stopped.

        SIGINT or SIGTERM stops it after a last checkpoint, with KeyboardInterrupt. Raises Diverged.
        """
        started = time.monotonic()
        before, last_check = self.state, started
        # In a log each picture of the bar stays.
        interval = 0.1 if sys.stderr.isatty() else LOG_INTERVAL_S
        initial, form = 100 * before.progress, "{l_bar}{bar}| {postfix}"
        bar = tqdm(total=100.0, initial=initial, unit="%", bar_format=form, mininterval=interval)
        losses: list[float] = []
        stops = False
        with bar, self.stop:
            while self.state.progress < 1 and not stops:
                views = self.state.views
                loss = self._round(views - before.views)
                if self.state.views > views:
                    losses.append(self._finite(loss))
                minutes = (time.monotonic() - started) / 60
                self._advance(before.minutes + minutes, limits.max_minutes)
                bar.update(100 * self.state.progress - bar.n)
                speed = (self.state.views - before.views) / (60 * minutes)
                bar.set_postfix_str(
                    f"{self.state.views:,} views, {speed:.0f}/s, loss {losses[-1] if losses else 0:.3f}"
                )
                is_late = limits.stop_after is not None and minutes >= limits.stop_after
                stops = is_late or self.stop.number is not None
                is_due = time.monotonic() - last_check > 60 * limits.checkpoint_minutes
                if losses and (stops or is_due or self.state.progress >= 1):
                    self._check(float(np.mean(losses)))
                    losses, last_check = [], time.monotonic()
        if self.state.progress < 1:
            self.stop.raise_if_signalled()
        return self.state

    def _finite(self, loss: float) -> float:
        """A loss that is a number. Raises Diverged, before anything is written, for one that is none."""
        if not math.isfinite(loss):
            raise Diverged(
                f"the loss is {loss} after {self.state.views:,} views: nothing was written since the last checkpoint."
                " A smaller `learning_rate` may help"
            )
        return loss

    def _batches(self) -> Iterator[data.Batch]:
        """A round of batches, each counted as it is learnt from; no more of them after a signal."""
        for batch in self.stream.batches(self.recipe.side(self.state.progress), ROUND):
            if self.stop.number is not None:
                return
            self.state = replace(self.state, views=self.state.views + self.recipe.optimizer.batch)
            yield batch

    def _advance(self, minutes: float, budget: float | None) -> None:
        by_views = self.state.views / self.recipe.views
        by_time = minutes / budget if budget else 0.0
        # A longer budget for the rest takes nothing back.
        progress = min(1.0, max(self.state.progress, by_views, by_time))
        self.state = replace(self.state, minutes=minutes, progress=progress)

    def _round(self, views_of_this_call: int) -> float:
        batch = self.recipe.optimizer.batch
        ramp = min(1.0, (views_of_this_call / batch + ROUND / 2) / RAMP)
        self.optimizer.learning_rate = ramp * learning_rate(self.recipe, self.state.progress)
        before = self.state.views
        if adversary := self._adversary():
            loss = adversary.round(self._batches(), ramp)
        else:
            loss = _mean_loss(self.network.train_on_batch, self._batches())
        self.average.update(self.network.get_weights(), (self.state.views - before) // batch)
        return loss

    def _adversary(self) -> Adversary | None:
        """The adversary, brought in when its time has come."""
        settings = self.recipe.network
        if not isinstance(settings, UNet) or self.state.progress < settings.adversarial_from:
            return None
        if self.adversary is None:
            self.adversary = Adversary(self.network, settings, _jit_compile())
            if (self.folder / checkpoint.DISCRIMINATOR).exists():
                checkpoint.load_weights(self.folder / checkpoint.DISCRIMINATOR, self.adversary.discriminator)
        return self.adversary

    def _settle(self, side: int) -> None:
        """Gives the averaged weights batch-norm statistics of their own, by running them and learning nothing."""
        self.averaged.set_weights(self.average.weights)
        if not self.average.momentum:
            return
        trainable = [variable.value for variable in self.averaged.trainable_variables]
        statistics = [variable.value for variable in self.averaged.non_trainable_variables]
        steps = self.state.views // self.recipe.optimizer.batch
        for lightness, _ in self.settling.batches(side, min(SETTLE, max(1, steps // 5))):
            _, statistics = self.averaged.stateless_call(trainable, statistics, lightness, training=True)
        for variable, value in zip(self.averaged.non_trainable_variables, statistics, strict=True):
            variable.assign(value)

    def _check(self, loss: float) -> None:
        """Averages, validates at the last stage's size, writes the checkpoint and a line of the run's history.

        loss: the mean since the last time.
        """
        side = self.recipe.curriculum[-1].side
        self._settle(side)
        lightness, chroma = data.fixed(self.held_out, side, self.form)
        starts = range(0, len(lightness), VALIDATION_BATCH)
        parts = ((lightness[i : i + VALIDATION_BATCH], chroma[i : i + VALIDATION_BATCH]) for i in starts)
        validation = self._finite(_mean_loss(self.averaged.test_on_batch, parts))
        models = {checkpoint.WEIGHTS: self.network, checkpoint.AVERAGE: self.averaged}
        if self.adversary:
            models[checkpoint.DISCRIMINATOR] = self.adversary.discriminator
        takes_last = self.recipe.best_by == "last"
        judged_by = loss if self.recipe.best_by == "training" else validation
        if takes_last or judged_by < self.state.best_loss:
            models[checkpoint.BEST] = self.averaged
            self.state = replace(self.state, best_loss=judged_by)
        checkpoint.save(self.folder, models, self.state)
        line = {
            "views": self.state.views,
            "minutes": round(self.state.minutes, 1),
            "side": self.recipe.side(self.state.progress),
            "loss": round(loss, 4),
            "validation_loss": round(validation, 4),
        }
        with (self.folder / "history.jsonl").open("a", encoding="utf-8") as history:
            history.write(json.dumps(line) + "\n")
        tqdm.write(f"checkpoint: {line}")


def _begin(recipe: Recipe, folder: Path, init: Sequence[Path]) -> Start | None:
    """What a new run starts from, None where one is to go on. What can't be done is said before the data is looked at.

    Raises ValueError when the folder's run has another recipe.
    """
    if not (folder / "state.json").exists():
        files.check_folder(folder)
        return start(recipe, init)
    setup = checkpoint.load_setup(folder)
    if setup.recipe != recipe:
        raise ValueError(f"the run in {folder} was begun with another recipe")
    if init and not is_from(init, setup.origins):
        # No more than told of: what it began from may be gone or have learnt more, and the same command goes on.
        names = ", ".join(origin.partition(" ")[0] for origin in setup.origins)
        tqdm.write(f"the run in {folder} goes on from its own checkpoint; it began from {names or 'nothing'}")
    return None


def train(recipe: Recipe, folder: Path, paths: Sequence[Path], limits: Limits, init: Sequence[Path] = ()) -> State:
    """Trains or resumes the run in `folder` on the photographs at `paths`.

    init: what a new run starts from, see `start`. Raises FileNotFoundError when there are no photographs, ValueError
    when a folder's run is another one or had other photographs.
    """
    begun = _begin(recipe, folder, init)
    photographs = sift.choose(folder, paths, recipe)
    # Before the rest of the set-up: a run that is stopped there has them looked at already.
    photographs.save(folder)
    return Run(recipe, folder, photographs.entries, begun).train(limits)
