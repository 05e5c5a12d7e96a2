"""Trains a recipe: `python -m model_export train RECIPE --data ... --run FOLDER`."""

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from model_export import checkpoint, data, networks, readback, sift, sources
from model_export.adversary import Adversary
from model_export.checkpoint import Setup, State, Weights
from model_export.losses import occupied_bins
from model_export.recipe import Compact, Optimizer, Recipe, UNet

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


@dataclass(frozen=True, slots=True)
class Start:
    """What a new run begins with: the mean of other runs' best weights, the setup of the first, all names held out."""

    weights: Weights
    setup: Setup
    held_out: set[str]
    origins: list[str]


def _best_of(origin: Path) -> tuple[Weights, Setup]:
    if origin.is_file():
        return readback.load(origin)
    return checkpoint.read_weights(origin / checkpoint.BEST), checkpoint.load_setup(origin)


def _fingerprint(origin: Path) -> str:
    file = origin if origin.is_file() else origin / checkpoint.BEST
    return f"{origin.name} {hashlib.sha256(file.read_bytes()).hexdigest()}"


def _misfit(setup: Setup, recipe: Recipe) -> str | None:
    """Why a recipe can't go on from a run; None when it can. It may have more residual blocks."""
    if setup.recipe.color_space != recipe.color_space:
        return f"is of {setup.recipe.color_space}, the recipe of {recipe.color_space}"
    old, new = setup.recipe.network, recipe.network
    if isinstance(old, Compact) and isinstance(new, Compact):
        old = old.model_copy(update={"blocks": new.blocks})
    return None if old == new else "has another network than the recipe"


def start(recipe: Recipe, origins: Sequence[Path]) -> Start | None:
    """Reads the folders of runs and the ONNX files that were exported from runs; None where there are none.

    Runs that began with the same weights can be averaged, and the mean is often better than each of them (Wortsman
    et al., "Model soups", 2022). Raises ValueError when the recipe can't go on from one, or they don't fit together.
    """
    if not origins:
        return None
    found = [_best_of(origin) for origin in origins]
    first = found[0][1]
    for origin, (_, setup) in zip(origins, found, strict=True):
        if why := _misfit(setup, recipe):
            raise ValueError(f"{origin} {why}")
        if setup.recipe.network != first.recipe.network or not np.array_equal(setup.bins, first.bins):
            raise ValueError(f"{origin} has another network or other bins than {origins[0]}")
    mean = [np.mean(arrays, axis=0) for arrays in zip(*(weights for weights, _ in found), strict=True)]
    held_out = {name for _, setup in found for name in setup.held_out}
    return Start(mean, first, held_out, [_fingerprint(origin) for origin in origins])


def _begin_with(network: keras.Model, recipe: Recipe, begun: Start) -> None:
    """Gives a network the weights of one that may have fewer layers; those that are new stay as they are.

    Raises ValueError when the other has more, or other shapes.
    """
    if begun.setup.recipe.network == recipe.network:
        network.set_weights(begun.weights)
        return
    old = networks.of(begun.setup.recipe).build(begun.setup.recipe, begun.setup.bins)
    own = {variable.path: variable for variable in network.weights}
    for variable, array in zip(old.weights, begun.weights, strict=True):
        if variable.path not in own or own[variable.path].shape != array.shape:
            raise ValueError(f"{variable.path}, of the shape {array.shape}, has no place in the recipe's network")
        own[variable.path].assign(array)


def _hold_out(recipe: Recipe, entries: Sequence[sources.Entry], begun: Start | None) -> list[str]:
    """Names of the photographs that validate: those held out of the runs it starts from, where they are in the data.

    Else a tenth of all at most. Raises ValueError when too few are left to learn from.
    """
    count = min(recipe.validate_on, len(entries) // 10)
    if not count:
        raise ValueError(f"{len(entries)} photographs are too few: a tenth of them validates")
    if begun:
        # A run knows them by their names, an ONNX file by digests.
        known = {e.name for e in entries if e.name in begun.held_out or sources.digest(e.name) in begun.held_out}
        if 2 * len(known) >= count:
            return sorted(known)
        if known:
            tqdm.write(f"only {len(known)} of the photographs held out before are here: others validate")
    return sorted(entry.name for entry in sources.hold_out(entries, count)[1])


def _set_up(recipe: Recipe, folder: Path, entries: Sequence[sources.Entry], begun: Start | None) -> Setup:
    """The setup of the run in `folder`, or that of a new one. Raises ValueError when it is not what was asked for."""
    if (folder / "state.json").exists():
        setup = checkpoint.load_setup(folder)
        if setup.recipe != recipe:
            raise ValueError(f"the run in {folder} was begun with another recipe")
        return setup
    held_out = _hold_out(recipe, entries, begun)
    training, _ = sources.split_off(entries, held_out)
    bins = begun.setup.bins if begun else choose_bins(recipe, training)
    setup = Setup(recipe, bins, held_out, begun.origins if begun else [])
    folder.mkdir(parents=True, exist_ok=True)
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
    """Takes a step with each batch and returns the mean of their losses.

    Not `fit` or `evaluate`: they wrap the batches in a tf.data pipeline, whose end waits for its tuning thread to
    wake, which took as long as half of the training itself.
    """
    losses, sizes = [], []
    for lightness, chroma in batches:
        losses.append(float(step(lightness, chroma)))
        sizes.append(len(lightness))
    return float(np.average(losses, weights=sizes))


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
        elif begun:
            _begin_with(self.network, recipe, begun)
        settings = recipe.optimizer
        steps = self.state.views // settings.batch
        self.average = WeightAverage(self.averaged.get_weights(), settings.average, steps)
        self.optimizer = _optimizer(settings)
        loss = architecture.loss(recipe, setup.bins)
        self.network.compile(self.optimizer, loss, jit_compile=_jit_compile())
        self.averaged.compile(keras.optimizers.SGD(0.0), loss, jit_compile=_jit_compile())
        self.adversary: Adversary | None = None
        seed = recipe.seed + self.state.views
        self.form = form(recipe)
        self.stream = data.Stream(training, settings.batch, self.form, recipe.augment, seed, recipe.shards)
        # Photographs of their own to settle on: when a run checks itself must not change what it learns from.
        self.settling = data.Stream(training, settings.batch, self.form, recipe.augment, recipe.seed + 1)

    def train(self, limits: Limits) -> State:
        """Goes on until the recipe's views or the time are used up, and returns where it stopped.

        An interrupt stops it after a last checkpoint.
        """
        started = time.monotonic()
        before, last_check = self.state, started
        # In a log each picture of the bar stays.
        interval = 0.1 if sys.stderr.isatty() else LOG_INTERVAL_S
        initial, form = 100 * before.progress, "{l_bar}{bar}| {postfix}"
        bar = tqdm(total=100.0, initial=initial, unit="%", bar_format=form, mininterval=interval)
        losses: list[float] = []
        stops = False
        with bar:
            while self.state.progress < 1 and not stops:
                try:
                    losses.append(self._round(self.state.views - before.views))
                except KeyboardInterrupt:
                    stops = True
                minutes = (time.monotonic() - started) / 60
                self._advance(before.minutes + minutes, limits.max_minutes)
                bar.update(100 * self.state.progress - bar.n)
                speed = (self.state.views - before.views) / (60 * minutes)
                bar.set_postfix_str(
                    f"{self.state.views:,} views, {speed:.0f}/s, loss {losses[-1] if losses else 0:.3f}"
                )
                stops = stops or (limits.stop_after is not None and minutes >= limits.stop_after)
                is_due = time.monotonic() - last_check > 60 * limits.checkpoint_minutes
                if losses and (stops or is_due or self.state.progress >= 1):
                    self._check(float(np.mean(losses)))
                    losses, last_check = [], time.monotonic()
        return self.state

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
        batches = self.stream.batches(self.recipe.side(self.state.progress), ROUND)
        if adversary := self._adversary():
            loss = adversary.round(batches, ramp)
        else:
            loss = _mean_loss(self.network.train_on_batch, batches)
        self.average.update(self.network.get_weights(), ROUND)
        self.state = replace(self.state, views=self.state.views + ROUND * batch)
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
        validation = _mean_loss(self.averaged.test_on_batch, parts)
        checkpoint.save_weights(self.folder / checkpoint.WEIGHTS, self.network)
        checkpoint.save_weights(self.folder / checkpoint.AVERAGE, self.averaged)
        if self.adversary:
            checkpoint.save_weights(self.folder / checkpoint.DISCRIMINATOR, self.adversary.discriminator)
        takes_last = self.recipe.best_by == "last"
        judged_by = loss if self.recipe.best_by == "training" else validation
        if takes_last or judged_by < self.state.best_loss:
            checkpoint.save_weights(self.folder / checkpoint.BEST, self.averaged)
            self.state = replace(self.state, best_loss=judged_by)
        checkpoint.save_state(self.folder, self.state)
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


def train(recipe: Recipe, folder: Path, paths: Sequence[Path], limits: Limits, init: Sequence[Path] = ()) -> State:
    """Trains or resumes the run in `folder` on the photographs at `paths`.

    init: what a new run starts from, see `start`. Raises FileNotFoundError when there are no photographs, ValueError
    when a folder's run is another one or had other photographs.
    """
    photographs = sift.choose(folder, paths, recipe)
    begun = None if (folder / "state.json").exists() else start(recipe, init)
    run = Run(recipe, folder, photographs.entries, begun)
    # Not before: a folder whose run has another recipe is refused.
    photographs.save(folder)
    return run.train(limits)
