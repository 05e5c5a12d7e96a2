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

from model_export import checkpoint, data
from model_export.checkpoint import State
from model_export.losses import bin_loss, occupied_bins
from model_export.networks import compact
from model_export.recipe import Recipe

# Steps between two looks at the clock and the learning rate.
ROUND = 50
# Batches that settle the batch-norm statistics after weights were averaged.
SETTLE = 40
# Photographs whose chroma decides which bins there are, and the side they are looked at in.
BIN_PHOTOGRAPHS = 3000
BIN_SIDE = 32


@dataclass(frozen=True, slots=True)
class Limits:
    """When a run checks itself and when it ends."""

    max_minutes: float | None = None
    checkpoint_minutes: float = 10.0


def learning_rate(recipe: Recipe, progress: float) -> float:
    """A linear warm-up, then half a cosine down to a hundredth of the peak."""
    peak, warm_up = recipe.optimizer.learning_rate, recipe.optimizer.warm_up
    if progress < warm_up:
        return peak * max(progress / warm_up, 0.01)
    phase = (progress - warm_up) / (1 - warm_up)
    return peak * max(0.01, 0.5 + 0.5 * math.cos(math.pi * min(phase, 1)))


def choose_bins(recipe: Recipe, entries: Sequence[data.Entry]) -> NDArray[np.float32]:
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


class Run:
    """One run in one folder: trains, averages, validates, keeps the best."""

    def __init__(self, recipe: Recipe, folder: Path, entries: Sequence[data.Entry], init: Path | None = None) -> None:
        keras.utils.set_random_seed(recipe.seed)
        self.folder = folder
        training, self.held_out = data.hold_out(entries, recipe.validate_on)
        resumes = (folder / "state.json").exists()
        if resumes:
            self.recipe, self.bins = checkpoint.load_setup(folder)
            self.state = checkpoint.load_state(folder)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            self.recipe, self.state = recipe, State()
            self.bins = checkpoint.load_setup(init)[1] if init else choose_bins(recipe, training)
            checkpoint.save_setup(folder, recipe, self.bins)
        self.network = compact.build(self.recipe.network, len(self.bins))
        self.averaged = compact.build(self.recipe.network, len(self.bins))
        if resumes:
            checkpoint.load_weights(folder / checkpoint.WEIGHTS, self.network)
        elif init:
            checkpoint.load_weights(init / checkpoint.BEST, self.network)
        settings = self.recipe.optimizer
        self.optimizer = keras.optimizers.AdamW(settings.learning_rate, weight_decay=settings.weight_decay)
        self.optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        _compile(self.network, self.recipe, self.bins, self.optimizer)
        # Kept here: an optimizer with `use_ema` overwrites the weights with their average whenever `fit` returns.
        self.average = self.network.get_weights()
        # A learning rate of zero moves the batch-norm statistics and nothing else.
        _compile(self.averaged, self.recipe, self.bins, keras.optimizers.SGD(0.0))
        self.stream = data.Stream(
            training, settings.batch, self.recipe.color_space, self.recipe.augment, self.recipe.seed + self.state.views
        )

    def train(self, limits: Limits) -> State:
        """Goes on until the recipe's views or the time budget are used up, and returns where it stopped."""
        started = time.monotonic()
        before, last_check = self.state, started
        bar = tqdm(total=100.0, initial=100 * before.progress, unit="%", bar_format="{l_bar}{bar}| {postfix}")
        with bar:
            while self.state.progress < 1:
                loss = self._round()
                minutes = (time.monotonic() - started) / 60
                self.state = replace(
                    self.state,
                    views=self.state.views + ROUND * self.recipe.optimizer.batch,
                    minutes=before.minutes + minutes,
                )
                self.state = replace(self.state, progress=self._progress(before, minutes, limits.max_minutes))
                bar.update(100 * self.state.progress - bar.n)
                speed = (self.state.views - before.views) / (60 * minutes)
                bar.set_postfix_str(f"{self.state.views:,} views, {speed:.0f}/s, loss {loss:.3f}")
                if time.monotonic() - last_check > 60 * limits.checkpoint_minutes or self.state.progress >= 1:
                    self._check(loss)
                    last_check = time.monotonic()
        return self.state

    def _progress(self, before: State, minutes: float, budget: float | None) -> float:
        by_views = self.state.views / self.recipe.views
        if budget is None:
            return min(1.0, by_views)
        by_time = before.progress + (1 - before.progress) * minutes / budget
        return min(1.0, max(by_views, by_time))

    def _round(self) -> float:
        self.optimizer.learning_rate = learning_rate(self.recipe, self.state.progress)
        batches = self.stream.batches(self.recipe.side(self.state.progress), ROUND)
        history = self.network.fit(batches, steps_per_epoch=ROUND, verbose=0)
        kept = self.recipe.optimizer.average**ROUND
        for mean, weights in zip(self.average, self.network.get_weights(), strict=True):
            mean += (1 - kept) * (weights - mean)
        return float(history.history["loss"][0])

    def _settle(self, side: int) -> None:
        """Gives the averaged weights batch-norm statistics of their own."""
        self.averaged.set_weights(self.average)
        self.averaged.fit(self.stream.batches(side, SETTLE), steps_per_epoch=SETTLE, verbose=0)

    def _check(self, loss: float) -> None:
        """Averages, validates, writes the checkpoint and a line of the run's history."""
        side = self.recipe.side(self.state.progress)
        self._settle(side)
        lightness, chroma = data.fixed(self.held_out, self.recipe.curriculum[-1].side, self.recipe.color_space)
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
            "side": side,
            "loss": round(loss, 4),
            "validation_loss": round(validation, 4),
        }
        with (self.folder / "history.jsonl").open("a", encoding="utf-8") as history:
            history.write(json.dumps(line) + "\n")
        tqdm.write(f"checkpoint: {line}")


def train(recipe: Recipe, folder: Path, paths: Sequence[Path], limits: Limits, init: Path | None = None) -> State:
    """Trains or resumes the run in `folder` on the photographs at `paths`.

    init: the folder of a finished run whose best weights and bins this one starts from.
    Raises FileNotFoundError when there are no photographs.
    """
    return Run(recipe, folder, data.find(paths), init).train(limits)
