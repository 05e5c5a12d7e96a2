"""Trains a recipe: `python -m model_export train RECIPE --data ... --run FOLDER`."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from model_export import checkpoint, data, sources
from model_export.checkpoint import Setup, State
from model_export.losses import bin_loss, occupied_bins
from model_export.networks import compact
from model_export.recipe import Recipe

Weights = list[NDArray[np.float32]]

# Steps between two looks at the clock and the learning rate.
ROUND = 50
# Batches that settle the batch-norm statistics after weights were averaged, and their momentum meanwhile.
SETTLE = 100
SETTLE_MOMENTUM = 0.97
# The optimizer's moments start from nothing at every start: the learning rate rises over so many steps.
RAMP = 100
# Photographs whose chroma decides which bins there are, and the side they are looked at in.
BIN_PHOTOGRAPHS = 3000
BIN_SIDE = 32


@dataclass(frozen=True, slots=True)
class Limits:
    """When a run checks itself and when it ends. `max_minutes` is for all calls together, `stop_after` for this one."""

    max_minutes: float | None = None
    stop_after: float | None = None
    checkpoint_minutes: float = 10.0


def learning_rate(recipe: Recipe, progress: float) -> float:
    """A linear warm-up, then half a cosine down to a hundredth of the peak."""
    peak, warm_up = recipe.optimizer.learning_rate, recipe.optimizer.warm_up
    if progress < warm_up:
        return peak * max(progress / warm_up, 0.01)
    phase = (progress - warm_up) / (1 - warm_up)
    return peak * max(0.01, 0.5 + 0.5 * math.cos(math.pi * min(phase, 1)))


def choose_bins(recipe: Recipe, entries: Sequence[sources.Entry]) -> NDArray[np.float32]:
    """The bins that the training photographs occupy, float32 [Q, 2]."""
    random = np.random.default_rng(recipe.seed)
    drawn = random.permutation(len(entries))[:BIN_PHOTOGRAPHS]
    _, chroma = data.fixed([entries[i] for i in drawn], BIN_SIDE * data.OUTPUT_STRIDE, recipe.color_space)
    return occupied_bins(chroma.reshape(-1, 2), recipe.network.bin_size)


def _compile(network: keras.Model, recipe: Recipe, bins: NDArray[np.float32], optimizer: keras.Optimizer) -> None:
    # XLA compiles convolutions for a CPU without oneDNN: slower, and without bfloat16.
    jit = False if keras.backend.backend() == "tensorflow" else "auto"
    loss = bin_loss(bins, recipe.network.bin_size, recipe.chroma_statistics)
    network.compile(optimizer=optimizer, loss=loss, jit_compile=jit)


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


def _set_up(recipe: Recipe, folder: Path, entries: Sequence[sources.Entry], init: Path | None) -> Setup:
    """The setup of the run in `folder`, or that of a new one. Raises ValueError when it is not what was asked for."""
    if (folder / "state.json").exists():
        setup = checkpoint.load_setup(folder)
        if setup.recipe != recipe:
            raise ValueError(f"the run in {folder} was begun with another recipe")
        return setup
    if init is None:
        training, held_out = sources.hold_out(entries, recipe.validate_on)
        setup = Setup(recipe, choose_bins(recipe, training), [entry.name for entry in held_out])
    else:
        old = checkpoint.load_setup(init)
        if (old.recipe.network, old.recipe.color_space) != (recipe.network, recipe.color_space):
            raise ValueError(f"the run in {init} has another network or colour space")
        setup = Setup(recipe, old.bins, old.held_out)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save_setup(folder, setup)
    return setup


class Run:
    """One run in one folder: trains, averages, validates, keeps the best."""

    def __init__(
        self, recipe: Recipe, folder: Path, entries: Sequence[sources.Entry], init: Path | None = None
    ) -> None:
        keras.utils.set_random_seed(recipe.seed)
        setup = _set_up(recipe, folder, entries, init)
        self.folder = folder
        self.recipe = recipe
        training, self.held_out = sources.split_off(entries, setup.held_out)
        self.network = compact.build(recipe.network, len(setup.bins))
        self.averaged = compact.build(recipe.network, len(setup.bins))
        for layer in self.averaged.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = SETTLE_MOMENTUM
        self.state = State()
        if (folder / "state.json").exists():
            self.state = checkpoint.load_state(folder)
            checkpoint.load_weights(folder / checkpoint.WEIGHTS, self.network)
            checkpoint.load_weights(folder / checkpoint.AVERAGE, self.averaged)
        elif init:
            checkpoint.load_weights(init / checkpoint.BEST, self.network)
        settings = recipe.optimizer
        steps = self.state.views // settings.batch
        self.average = WeightAverage(self.averaged.get_weights(), settings.average, steps)
        self.optimizer = keras.optimizers.AdamW(settings.learning_rate, weight_decay=settings.weight_decay)
        self.optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        _compile(self.network, recipe, setup.bins, self.optimizer)
        _compile(self.averaged, recipe, setup.bins, keras.optimizers.SGD(0.0))
        seed = recipe.seed + self.state.views
        self.stream = data.Stream(training, settings.batch, recipe.color_space, recipe.augment, seed)

    def train(self, limits: Limits) -> State:
        """Goes on until the recipe's views or the time are used up, and returns where it stopped.

        An interrupt stops it after a last checkpoint.
        """
        started = time.monotonic()
        before, last_check = self.state, started
        bar = tqdm(total=100.0, initial=100 * before.progress, unit="%", bar_format="{l_bar}{bar}| {postfix}")
        loss, stops = math.nan, False
        with bar:
            while self.state.progress < 1 and not stops:
                try:
                    loss = self._round(self.state.views - before.views)
                except KeyboardInterrupt:
                    stops = True
                minutes = (time.monotonic() - started) / 60
                self._advance(before.minutes + minutes, limits.max_minutes)
                bar.update(100 * self.state.progress - bar.n)
                speed = (self.state.views - before.views) / (60 * minutes)
                bar.set_postfix_str(f"{self.state.views:,} views, {speed:.0f}/s, loss {loss:.3f}")
                stops = stops or (limits.stop_after is not None and minutes >= limits.stop_after)
                is_due = time.monotonic() - last_check > 60 * limits.checkpoint_minutes
                if stops or is_due or self.state.progress >= 1:
                    self._check(loss)
                    last_check = time.monotonic()
        return self.state

    def _advance(self, minutes: float, budget: float | None) -> None:
        by_views = self.state.views / self.recipe.views
        by_time = minutes / budget if budget else 0.0
        self.state = replace(self.state, minutes=minutes, progress=min(1.0, max(by_views, by_time)))

    def _round(self, views_of_this_call: int) -> float:
        batch = self.recipe.optimizer.batch
        ramp = min(1.0, (views_of_this_call / batch + ROUND / 2) / RAMP)
        self.optimizer.learning_rate = ramp * learning_rate(self.recipe, self.state.progress)
        batches = self.stream.batches(self.recipe.side(self.state.progress), ROUND)
        history = self.network.fit(batches, steps_per_epoch=ROUND, verbose=0)
        self.average.update(self.network.get_weights(), ROUND)
        self.state = replace(self.state, views=self.state.views + ROUND * batch)
        return float(history.history["loss"][0])

    def _settle(self, side: int) -> None:
        """Gives the averaged weights batch-norm statistics of their own, by running them and learning nothing."""
        self.averaged.set_weights(self.average.weights)
        trainable = [variable.value for variable in self.averaged.trainable_variables]
        statistics = [variable.value for variable in self.averaged.non_trainable_variables]
        for lightness, _ in self.stream.batches(side, SETTLE):
            _, statistics = self.averaged.stateless_call(trainable, statistics, lightness, training=True)
        for variable, value in zip(self.averaged.non_trainable_variables, statistics, strict=True):
            variable.assign(value)

    def _check(self, loss: float) -> None:
        """Averages, validates at the last stage's size, writes the checkpoint and a line of the run's history."""
        side = self.recipe.curriculum[-1].side
        self._settle(side)
        lightness, chroma = data.fixed(self.held_out, side, self.recipe.color_space)
        validation = float(self.averaged.evaluate(lightness, chroma, batch_size=50, verbose=0))
        checkpoint.save_weights(self.folder / checkpoint.WEIGHTS, self.network)
        checkpoint.save_weights(self.folder / checkpoint.AVERAGE, self.averaged)
        if validation < self.state.best_loss:
            checkpoint.save_weights(self.folder / checkpoint.BEST, self.averaged)
            self.state = replace(self.state, best_loss=validation)
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


def train(recipe: Recipe, folder: Path, paths: Sequence[Path], limits: Limits, init: Path | None = None) -> State:
    """Trains or resumes the run in `folder` on the photographs at `paths`.

    init: the folder of another run whose best weights, bins and held-out photographs this one starts from.
    Raises FileNotFoundError when there are no photographs, ValueError when a folder's run is another one.
    """
    return Run(recipe, folder, sources.find(paths), init).train(limits)
