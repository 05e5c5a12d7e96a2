"""What a new run starts from, and which photographs it holds out."""

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np
from tqdm import tqdm

from model_export import networks
from model_export.data import sources
from model_export.recipe import Compact, Recipe
from model_export.weights import checkpoint, onnx_weights, pretrained
from model_export.weights.checkpoint import Setup, Weights
from model_export.weights.post_processing import PostProcessing, common_to_all


@dataclass(frozen=True, slots=True)
class Initialization:
    """What a new run begins with: the mean of other runs' best weights, the setup of the first, all that was held out.

    held_out: names, or digests of them. content_ids: of the same photographs, where known. post_processing: that
    of the ONNX files among them, if all have the same.
    """

    weights: Weights
    setup: Setup
    held_out: set[str]
    origins: list[str]
    content_ids: set[str] = field(default_factory=set)
    post_processing: PostProcessing | None = None


def _load_best(origin: Path) -> tuple[Weights, Setup]:
    if origin.is_file():
        return onnx_weights.load(origin)
    try:
        return checkpoint.read_weights(origin / checkpoint.BEST), checkpoint.load_setup(origin)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{origin / checkpoint.BEST} is broken: {error}") from error


def _fingerprint(origin: Path) -> str:
    file = origin if origin.is_file() else origin / checkpoint.BEST
    return f"{origin.name} {hashlib.sha256(file.read_bytes()).hexdigest()}"


def matches_origins(origins: Sequence[Path], known: Sequence[str]) -> bool:
    """Whether a run whose origins are `known` began from these."""
    try:
        return [_fingerprint(origin) for origin in origins] == known
    except OSError:
        return False


def _has_backbone(recipe: Recipe) -> bool:
    return isinstance(recipe.network, Compact) and bool(recipe.network.backbone)


def _architecture(recipe: Recipe) -> object:
    """What a recipe's network is built of: what learns of it may differ."""
    network = recipe.network
    return network.model_copy(update={"learning_blocks": 0}) if isinstance(network, Compact) else network


def _incompatibility(setup: Setup, recipe: Recipe) -> str | None:
    """Why a recipe can't go on from a run; None when it can. It may have more blocks, propagation, keys, a backbone."""
    if setup.recipe.color_space != recipe.color_space:
        return f"is of {setup.recipe.color_space}, the recipe of {recipe.color_space}"
    old, new = setup.recipe.network, recipe.network
    if isinstance(old, Compact) and isinstance(new, Compact):
        if old.propagation and not new.propagation:
            return "propagates chroma, and only a recipe with network.propagation goes on from it"
        if old.nonlocal_channels not in (0, new.nonlocal_channels):
            return f"has {old.nonlocal_channels} nonlocal_channels, and only a recipe with as many goes on from it"
        if old.backbone and not new.backbone:
            return "has a backbone, and only a recipe with the same goes on from it"
        may_differ = ("blocks", "propagation", "nonlocal_channels", "backbone", "learning_blocks")
        old = old.model_copy(update={name: getattr(new, name) for name in may_differ})
    return None if old == new else "has another network than the recipe"


def load(recipe: Recipe, origins: Sequence[Path]) -> Initialization | None:
    """Reads the folders of runs and the ONNX files that were exported from runs; None where there are none.

    A backbone that none of them has must be at hand, or UnusableWeights is raised.

    Runs that began with the same weights can be averaged, and the mean is often better than each of them (Wortsman
    et al., "Model soups", 2022). Raises ValueError when the recipe can't go on from one, or they don't fit together.
    """
    if not origins:
        if _has_backbone(recipe):
            pretrained.find_file()
        return None
    found = [_load_best(origin) for origin in origins]
    first = found[0][1]
    for origin, (_, setup) in zip(origins, found, strict=True):
        if why := _incompatibility(setup, recipe):
            raise ValueError(f"{origin} {why}")
        if _architecture(setup.recipe) != _architecture(first.recipe) or not np.array_equal(setup.bins, first.bins):
            raise ValueError(f"{origin} has another network or other bins than {origins[0]}")
    if _has_backbone(recipe) and not _has_backbone(first.recipe):
        pretrained.find_file()
    mean = [np.mean(arrays, axis=0) for arrays in zip(*(weights for weights, _ in found), strict=True)]
    held_out = {name for _, setup in found for name in setup.held_out}
    content_ids = {content for _, setup in found for content in setup.content_ids}
    fingerprints = [_fingerprint(origin) for origin in origins]
    return Initialization(
        mean, first, held_out, fingerprints, content_ids, _post_processing(origins, [s for _, s in found])
    )


def _post_processing(origins: Sequence[Path], setups: Sequence[Setup]) -> PostProcessing | None:
    """Return what the exports of a run will do by default, and say so; None for what its own recipe has.

    The gain that suits a mean of several weights is not known. Where those of the origins differ, none is taken.
    """
    found = [setup.post_processing for setup in setups]
    taken = common_to_all(found)
    if taken:
        tqdm.write(f"export will take {taken}, as {origins[0].name} has them; --gain and --cast choose others")
    elif any(found):
        each = "; ".join(f"{o.name}: {has or 'those of its recipe'}" for o, has in zip(origins, found, strict=True))
        tqdm.write(f"export will take the gain of this recipe and no cast, since those before differ ({each})")
    return taken


def initialize(network: keras.Model, recipe: Recipe, initial: Initialization | None) -> None:
    """Gives a new network the weights of one that may have fewer layers; those that are new stay as they are.

    But for a new backbone's, which are what it learnt as a classifier. Raises ValueError when the other has more, or
    other shapes, and UnusableWeights.
    """
    if _has_backbone(recipe) and not (initial and _has_backbone(initial.setup.recipe)):
        pretrained.load_into(network)
    if not initial:
        return
    if initial.setup.recipe.network == recipe.network:
        network.set_weights(initial.weights)
        return
    old = networks.architecture(initial.setup.recipe).build(initial.setup.recipe, initial.setup.bins)
    own = {variable.path: variable for variable in network.weights}
    for variable, array in zip(old.weights, initial.weights, strict=True):
        if variable.path not in own or own[variable.path].shape != array.shape:
            raise ValueError(f"{variable.path}, of the shape {array.shape}, has no place in the recipe's network")
        own[variable.path].assign(array)


def _held_out_before(entries: Sequence[sources.Entry], initial: Initialization) -> set[str]:
    """Names of the photographs that were held out of the runs it starts from: by their contents, or their names.

    By either, for a file that was given another caption since has its name still, and none too many may validate.
    """
    by_name = {e.name for e in entries if e.name in initial.held_out or sources.name_digest(e.name) in initial.held_out}
    return by_name | {entry.name for entry in sources.with_content_ids(entries, initial.content_ids)}


def hold_out(recipe: Recipe, entries: Sequence[sources.Entry], initial: Initialization | None) -> list[str]:
    """Names of the photographs that validate: all those held out of the runs it starts from that are in the data.

    No others join them, for those runs may have learnt from any. Where there are none, a tenth of all at most is drawn.
    Raises ValueError when too few are left to learn from.
    """
    count = min(recipe.validate_on, len(entries) // 10)
    if not count:
        raise ValueError(f"{len(entries)} photographs are too few: a tenth of them validates")
    known = _held_out_before(entries, initial) if initial else set()
    if not known:
        if initial:
            tqdm.write(
                f"none of the {len(initial.held_out)} photographs held out before is here: {count} others validate,"
                " which should not be among those learnt from before"
            )
        return sorted(entry.name for entry in sources.hold_out(entries, count)[1])
    if all(entry.name in known for entry in entries):
        raise ValueError("all photographs were held out before: none is left to learn from")
    if len(known) < count:
        tqdm.write(f"{len(known)} photographs validate, those held out before; the recipe would have {count}")
    return sorted(known)
