"""A run's checkpoint: weights, bins, recipe, what is held out and how far it is, in a folder.

Kernels are stored in half precision, everything that is one-dimensional (biases, batch-norm) in single.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeAlias

import keras
import numpy as np
from numpy.typing import NDArray

from model_export import files, networks
from model_export.data import filtering, sources
from model_export.recipe import Recipe
from model_export.weights import post_processing
from model_export.weights.post_processing import PostProcessing

Weights: TypeAlias = list[NDArray[np.float32]]

WEIGHTS = "weights.npz"  # as the optimizer left them, to resume from
AVERAGE = "average.npz"  # their average, batch norm settled, of the newest checkpoint
BEST = "best.npz"  # the average with the lowest loss
CONTENTS = "held-out-contents.json"
DISCRIMINATOR = "discriminator.npz"  # of an adversarial run


@dataclass(frozen=True, slots=True)
class State:
    """How far a run is. start_loss: of what it began with, on what validates."""

    views: int = 0
    progress: float = 0.0
    minutes: float = 0.0
    best_loss: float = float("inf")
    start_loss: float | None = None


@dataclass(frozen=True, slots=True)
class Setup:
    """What a run is: its recipe, the chroma bins, float32 [Q, 2], the names of the photographs held out.

    origins: the runs and files it started from, each a name and the SHA-256 of its weights. contents: of what is held
    out, see `sources.content_ids`; older runs have none. post_processing: that of the ONNX files it started from.
    """

    recipe: Recipe
    bins: NDArray[np.float32]
    held_out: list[str]
    origins: list[str] = field(default_factory=list)
    content_ids: list[str] = field(default_factory=list)
    post_processing: PostProcessing | None = None


def _write_new(path: Path, model: keras.Model) -> Path:
    """Writes all of a model's weights, in their order, beside where they are to be."""
    arrays = {f"{number:03d}": array for number, array in enumerate(model.get_weights())}
    stored = {k: a.astype(np.float16 if a.ndim > 1 else np.float32) for k, a in arrays.items()}
    new = path.with_name("new-" + path.name)
    np.savez(new, **stored)
    return new


def save_weights(path: Path, model: keras.Model) -> None:
    """Writes all of a model's weights, in their order."""
    _write_new(path, model).replace(path)


def measure_save_time(run: Path, model: keras.Model) -> float:
    """Write the weights of a model once for nothing, and return the seconds. Raise OSError where there is no room."""
    begun = time.monotonic()
    new = run / f"new-{WEIGHTS}"
    try:
        _write_new(run / WEIGHTS, model)
        return time.monotonic() - begun
    finally:
        new.unlink(missing_ok=True)


def save(run: Path, models: Mapping[str, keras.Model], state: State) -> None:
    """Writes the weights of models, by their files' names, and how far the run is.

    All are written before the first is put in its place, so that a program that is killed leaves them as they were.
    """
    written = {run / name: _write_new(run / name, model) for name, model in models.items()}
    for path, new in written.items():
        new.replace(path)
    save_state(run, state)


def read_weights(path: Path) -> Weights:
    """Reads them back."""
    with np.load(path) as stored:
        return [stored[key].astype(np.float32) for key in sorted(stored.files)]


def load_weights(path: Path, model: keras.Model) -> None:
    """Gives a model the weights of a file; raises ValueError when their number or a shape differs."""
    model.set_weights(read_weights(path))


def save_state(run: Path, state: State) -> None:
    """Writes how far the run is."""
    files.write_atomic(run / "state.json", json.dumps(asdict(state), indent=1).encode())


def load_state(run: Path) -> State:
    """Reads how far the run is."""
    return State(**json.loads((run / "state.json").read_text("utf-8")))


def save_setup(run: Path, setup: Setup) -> None:
    """Writes what the network is rebuilt from, and what it must never be trained on."""
    files.write_atomic(run / "recipe.json", setup.recipe.model_dump_json(indent=1).encode())
    files.write_atomic(run / "bins.json", json.dumps(np.round(setup.bins, 6).tolist()).encode())
    files.write_atomic(run / "held-out.json", json.dumps(setup.held_out, indent=1).encode())
    files.write_atomic(run / CONTENTS, json.dumps(setup.content_ids, indent=1).encode())
    files.write_atomic(run / "origins.json", json.dumps(setup.origins, indent=1).encode())
    if setup.post_processing:
        setup.post_processing.save(run)
    else:
        (run / post_processing.FILE).unlink(missing_ok=True)


def load_setup(run: Path) -> Setup:
    """Reads a run's setup."""
    recipe = Recipe.model_validate_json((run / "recipe.json").read_text("utf-8"))
    bins = np.array(json.loads((run / "bins.json").read_text("utf-8")), np.float32)
    held_out, origins = (json.loads((run / f"{name}.json").read_text("utf-8")) for name in ("held-out", "origins"))
    contents = json.loads((run / CONTENTS).read_text("utf-8")) if (run / CONTENTS).exists() else []
    return Setup(recipe, bins.reshape(-1, 2), held_out, origins, contents, PostProcessing.load(run))


def find_held_out(run: Path, paths: Sequence[Path]) -> list[sources.Entry]:
    """Those photographs at `paths` that a run has held out of its training.

    By their contents. An older run knows their names only, which other photographs may have too: it has to be its own
    data. Raises FileNotFoundError when none is there, ValueError for other data.
    """
    setup = load_setup(run)
    if not setup.content_ids:
        filtering.check_data(run, paths, setup.recipe)
        return sources.split_off(sources.find(paths), setup.held_out)[1]
    found = sources.with_content_ids(sources.find(paths), setup.content_ids)
    if not found:
        raise FileNotFoundError(f"none of the {len(setup.content_ids)} photographs that {run} has held out is there")
    return found


def load_network(run: Path, weights: str = BEST, side: int | None = None) -> tuple[keras.Model, Setup]:
    """A run's network with its weights; of a fixed input size if one is given."""
    setup = load_setup(run)
    network = networks.architecture(setup.recipe).build(setup.recipe, setup.bins, side)
    load_weights(run / weights, network)
    return network, setup
