"""A run's checkpoint: weights, bins, recipe and how far it is, in a folder.

Kernels are stored in half precision, everything that is one-dimensional (biases, batch-norm) in single.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeAlias

import keras
import numpy as np
from numpy.typing import NDArray

from model_export import files, networks
from model_export.recipe import Recipe

Weights: TypeAlias = list[NDArray[np.float32]]

WEIGHTS = "weights.npz"  # as the optimizer left them, to resume from
AVERAGE = "average.npz"  # their average, batch norm settled, of the newest checkpoint
BEST = "best.npz"  # the average with the lowest loss
DISCRIMINATOR = "discriminator.npz"  # of an adversarial run


@dataclass(frozen=True, slots=True)
class State:
    """How far a run is."""

    views: int = 0
    progress: float = 0.0
    minutes: float = 0.0
    best_loss: float = float("inf")


@dataclass(frozen=True, slots=True)
class Setup:
    """What a run is: its recipe, the chroma bins, float32 [Q, 2], the names of the photographs held out.

    origins: the runs and files it started from, each a name and the SHA-256 of its weights.
    """

    recipe: Recipe
    bins: NDArray[np.float32]
    held_out: list[str]
    origins: list[str] = field(default_factory=list)


def save_weights(path: Path, model: keras.Model) -> None:
    """Writes all of a model's weights, in their order."""
    arrays = {f"{number:03d}": array for number, array in enumerate(model.get_weights())}
    stored = {k: a.astype(np.float16 if a.ndim > 1 else np.float32) for k, a in arrays.items()}
    new = path.with_name("new-" + path.name)
    np.savez(new, **stored)
    new.replace(path)


def read_weights(path: Path) -> Weights:
    """Reads them back."""
    with np.load(path) as stored:
        return [stored[key].astype(np.float32) for key in sorted(stored.files)]


def load_weights(path: Path, model: keras.Model) -> None:
    """Gives a model the weights of a file; raises ValueError when their number or a shape differs."""
    model.set_weights(read_weights(path))


def save_state(run: Path, state: State) -> None:
    """Writes how far the run is."""
    files.write(run / "state.json", json.dumps(asdict(state), indent=1).encode())


def load_state(run: Path) -> State:
    """Reads how far the run is."""
    return State(**json.loads((run / "state.json").read_text("utf-8")))


def save_setup(run: Path, setup: Setup) -> None:
    """Writes what the network is rebuilt from, and what it must never be trained on."""
    files.write(run / "recipe.json", setup.recipe.model_dump_json(indent=1).encode())
    files.write(run / "bins.json", json.dumps(np.round(setup.bins, 6).tolist()).encode())
    files.write(run / "held-out.json", json.dumps(setup.held_out, indent=1).encode())
    files.write(run / "origins.json", json.dumps(setup.origins, indent=1).encode())


def load_setup(run: Path) -> Setup:
    """Reads a run's setup."""
    recipe = Recipe.model_validate_json((run / "recipe.json").read_text("utf-8"))
    bins = np.array(json.loads((run / "bins.json").read_text("utf-8")), np.float32)
    held_out, origins = (json.loads((run / f"{name}.json").read_text("utf-8")) for name in ("held-out", "origins"))
    return Setup(recipe, bins.reshape(-1, 2), held_out, origins)


def load_network(run: Path, weights: str = BEST, side: int | None = None) -> tuple[keras.Model, Setup]:
    """A run's network with its weights; of a fixed input size if one is given."""
    setup = load_setup(run)
    network = networks.of(setup.recipe).build(setup.recipe, setup.bins, side)
    load_weights(run / weights, network)
    return network, setup
