"""Checkpoints of a training run: a folder with weights, bins, recipe, held-out photographs and progress.

Kernels are stored in half precision. One-dimensional weights (biases, batch norm) are stored in single precision.
"""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
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
from service.runtime.atomic_file import unfinished

Weights: TypeAlias = list[NDArray[np.float32]]

WEIGHTS = "weights.npz"  # those of the last step, from which training resumes
AVERAGE = "average.npz"  # their average, with batch-norm statistics of its own, of the newest checkpoint
BEST = "best.npz"  # the average with the lowest loss so far
CONTENTS = "held-out-contents.json"
DISCRIMINATOR = "discriminator.npz"  # of an adversarial run


@dataclass(frozen=True, slots=True)
class State:
    """The progress of a run.

    progress: in 0..1. minutes: training time of all calls. start_loss: validation loss of the initial weights.
    """

    views: int = 0
    progress: float = 0.0
    minutes: float = 0.0
    best_loss: float = float("inf")
    start_loss: float | None = None


@dataclass(frozen=True, slots=True)
class Setup:
    """The parts of a run besides its weights.

    bins: the chroma bins, float32 [Q, 2]. held_out: the names of the held-out photographs. origins: the runs and files
    that it was initialized from, each a name and the SHA-256 of its weights. content_ids: those of the held-out
    photographs (see `sources.content_ids`); runs of older versions have none. post_processing: that of the ONNX files
    that the run was initialized from.
    """

    recipe: Recipe
    bins: NDArray[np.float32]
    held_out: list[str]
    origins: list[str] = field(default_factory=list)
    content_ids: list[str] = field(default_factory=list)
    post_processing: PostProcessing | None = None


def _write(path: Path, model: keras.Model) -> None:
    """Write all weights of a model, in their order."""
    arrays = {f"{number:03d}": array for number, array in enumerate(model.get_weights())}
    stored = {k: a.astype(np.float16 if a.ndim > 1 else np.float32) for k, a in arrays.items()}
    with path.open("wb") as file:  # NumPy would add an extension to a path.
        np.savez(file, **stored)


def save_weights(path: Path, model: keras.Model) -> None:
    """Write all weights of a model, in their order. The file is replaced only when they are complete."""
    with unfinished(path) as new:
        _write(new, model)
        new.replace(path)


def measure_save_time(run: Path, model: keras.Model) -> float:
    """Return the seconds that saving the weights of a model takes. Raises OSError if there is no space for them."""
    begun = time.monotonic()
    with unfinished(run / WEIGHTS) as new:
        _write(new, model)
        return time.monotonic() - begun


def save(run: Path, models: Mapping[str, keras.Model], state: State) -> None:
    """Write a checkpoint: the weights of models, by file name, and the state.

    All files are written before the first one is replaced. A program that is killed before leaves the old checkpoint.
    """
    with ExitStack() as stack:
        written = {run / name: stack.enter_context(unfinished(run / name)) for name in models}
        for new, model in zip(written.values(), models.values(), strict=True):
            _write(new, model)
        for path, new in written.items():
            new.replace(path)
    save_state(run, state)


def read_weights(path: Path) -> Weights:
    """Return the weights of a file, in their order."""
    with np.load(path) as stored:
        return [stored[key].astype(np.float32) for key in sorted(stored.files)]


def load_weights(path: Path, model: keras.Model) -> None:
    """Set the weights of a model from a file. Raises ValueError if their number or a shape differs."""
    model.set_weights(read_weights(path))


def save_state(run: Path, state: State) -> None:
    """Write the progress of a run."""
    files.write_atomic(run / "state.json", json.dumps(asdict(state), indent=1).encode())


def load_state(run: Path) -> State:
    """Return the progress of a run."""
    return State(**json.loads((run / "state.json").read_text("utf-8")))


def save_setup(run: Path, setup: Setup) -> None:
    """Write the setup of a run: what its network is rebuilt from, and which photographs it must never be trained on."""
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
    """Return the setup of a run."""
    recipe = Recipe.model_validate_json((run / "recipe.json").read_text("utf-8"))
    bins = np.array(json.loads((run / "bins.json").read_text("utf-8")), np.float32)
    held_out, origins = (json.loads((run / f"{name}.json").read_text("utf-8")) for name in ("held-out", "origins"))
    contents = json.loads((run / CONTENTS).read_text("utf-8")) if (run / CONTENTS).exists() else []
    return Setup(recipe, bins.reshape(-1, 2), held_out, origins, contents, PostProcessing.load(run))


def find_held_out(run: Path, paths: Sequence[Path]) -> list[sources.Entry]:
    """Return the photographs at `paths` that a run has held out of training, found by their contents.

    A run of an older version knows only their names, which other photographs may have too. `paths` must then be the
    run's own data. Raises FileNotFoundError if none of them is found, ValueError if the data is not the run's own.
    """
    setup = load_setup(run)
    if not setup.content_ids:
        filtering.check_data(run, paths, setup.recipe)
        return sources.split_off(sources.find(paths), setup.held_out)[1]
    found = sources.with_content_ids(sources.find(paths), setup.content_ids)
    if not found:
        raise FileNotFoundError(f"none of the {len(setup.content_ids)} photographs held out by {run} is in the data")
    return found


def load_network(run: Path, weights: str = BEST, side: int | None = None) -> tuple[keras.Model, Setup]:
    """Return the network of a run with its weights, and the setup. side: of a fixed input, None for any size."""
    setup = load_setup(run)
    network = networks.architecture(setup.recipe).build(setup.recipe, setup.bins, side)
    load_weights(run / weights, network)
    return network, setup
