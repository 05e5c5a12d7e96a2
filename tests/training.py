"""Chroma bins, recipes and saved runs that the tests of training share."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np

from model_export import recipe
from model_export.recipe import Recipe

BINS = np.array([[a, b] for a in range(-60, 61, 10) for b in range(-60, 61, 10)], np.float32)
NO_BINS = np.empty((0, 2), np.float32)
RECIPES = Path(recipe.__file__).parent / "recipes"


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


def shipped(name: str) -> Recipe:
    return recipe.load(RECIPES / f"{name}.toml")


def built(name: str, side: int) -> SimpleNamespace:
    from model_export import networks

    network = networks.architecture(shipped(name)).build(shipped(name), NO_BINS, side)
    trainable = sum(int(np.prod(variable.shape)) for variable in network.trainable_variables)
    return SimpleNamespace(all=network.count_params(), trainable=trainable, shape=network.output_shape, network=network)
