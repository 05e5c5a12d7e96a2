"""The parts of a run that depend on its recipe or on the machine: bins, optimizer, accelerators."""

import time
from collections.abc import Sequence

import keras
import numpy as np
from numpy.typing import NDArray

from model_export import networks
from model_export.data import batching, sources
from model_export.networks.losses import occupied_bins
from model_export.recipe import Compact, Optimizer, Recipe
from model_export.run.precision import Precision

# The bins are chosen from the chroma of this number of photographs, shrunk to squares of this side, pixels.
BIN_PHOTOGRAPHS = 3000
BIN_SIDE = 32
BIN_STRIDE = 4


def sample_form(recipe: Recipe) -> batching.SampleSpec:
    """Return the format of the samples that the recipe's network learns from."""
    return batching.SampleSpec(recipe.color_space, networks.architecture(recipe).STRIDE, recipe.lightness)


def choose_bins(recipe: Recipe, entries: Sequence[sources.Entry]) -> NDArray[np.float32]:
    """Return the bins that the training photographs occupy, float32 [Q, 2]; Q is 0 for a network without bins."""
    if not (isinstance(recipe.network, Compact) and recipe.network.head == "bins"):
        return np.empty((0, 2), np.float32)
    random = np.random.default_rng(recipe.seed)
    drawn = random.permutation(len(entries))[:BIN_PHOTOGRAPHS]
    look = batching.SampleSpec(recipe.color_space, BIN_STRIDE)
    _, chroma = batching.load_batch([entries[i] for i in drawn], BIN_SIDE * BIN_STRIDE, look)
    return occupied_bins(chroma.reshape(-1, 2), recipe.network.bin_size)


def jit_compile() -> bool | str:
    """Return the value of `jit_compile` for Keras's `compile`."""
    # On a CPU, XLA does not use oneDNN: its convolutions are slower and have no bfloat16.
    return False if keras.backend.backend() == "tensorflow" else "auto"


def build_optimizer(settings: Optimizer) -> keras.Optimizer:
    """Return the optimizer of a recipe."""
    if settings.kind == "rmsprop":
        return keras.optimizers.RMSprop(settings.learning_rate)
    if settings.kind == "adam":
        return keras.optimizers.Adam(settings.learning_rate, beta_1=settings.beta_1)
    made = keras.optimizers.AdamW(settings.learning_rate, weight_decay=settings.weight_decay, beta_1=settings.beta_1)
    made.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return made


def use_all_accelerators() -> None:
    """Split each batch over all accelerators, each with a copy of the weights. JAX only."""
    if keras.backend.backend() != "jax":
        return
    accelerators = [device for device in keras.distribution.list_devices() if not device.startswith("cpu")]
    if len(accelerators) > 1:
        keras.distribution.set_distribution(keras.distribution.DataParallel(devices=accelerators))


def time_step(recipe: Recipe, precision: Precision) -> float:
    """Return the duration, in seconds, of a training step of the recipe's network in a precision."""
    keras.config.set_dtype_policy(precision)
    architecture, side = networks.architecture(recipe), recipe.curriculum[-1].side
    random = np.random.default_rng(0)
    bins = random.uniform(-40, 40, (200, 2)).astype(np.float32)
    network = architecture.build(recipe, bins)
    network.compile(build_optimizer(recipe.optimizer), architecture.loss(recipe, bins), jit_compile=jit_compile())
    grid = side // architecture.STRIDE
    lightness = random.uniform(size=(recipe.optimizer.batch, side, side, 1)).astype(np.float32)
    chroma = random.uniform(-40, 40, (recipe.optimizer.batch, grid, grid, 2)).astype(np.float32)
    network.train_on_batch(lightness, chroma)
    begun = time.monotonic()
    network.train_on_batch(lightness, chroma)
    return time.monotonic() - begun
