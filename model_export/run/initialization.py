"""The start of a new run: its initial weights, and the photographs that it holds out."""

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
    """The starting point of a new run.

    weights: the mean of the best weights of the origins. setup: that of the first origin. held_out: names of all
    photographs that the origins held out, or digests of these names. origins: name and SHA-256 of each origin.
    content_ids: digests of the held-out photographs, as far as they are known. post_processing: gain and cast of the
    ONNX files among the origins, if all agree.
    """

    weights: Weights
    setup: Setup
    held_out: set[str]
    origins: list[str]
    content_ids: set[str] = field(default_factory=set)
    post_processing: PostProcessing | None = None


def _load_best(origin: Path) -> tuple[Weights, Setup]:
    """Return the best weights and the setup of a run's folder or an exported ONNX file."""
    if origin.is_file():
        return onnx_weights.load(origin)
    try:
        return checkpoint.read_weights(origin / checkpoint.BEST), checkpoint.load_setup(origin)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{origin / checkpoint.BEST} is damaged: {error}") from error


def _fingerprint(origin: Path) -> str:
    """Return the name of an origin and the SHA-256 of its weights."""
    file = origin if origin.is_file() else origin / checkpoint.BEST
    return f"{origin.name} {hashlib.sha256(file.read_bytes()).hexdigest()}"


def matches_origins(origins: Sequence[Path], known: Sequence[str]) -> bool:
    """Return whether `origins` are the ones with the fingerprints `known`."""
    try:
        return [_fingerprint(origin) for origin in origins] == known
    except OSError:
        return False


def _has_backbone(recipe: Recipe) -> bool:
    return isinstance(recipe.network, Compact) and bool(recipe.network.backbone)


def _architecture(recipe: Recipe) -> object:
    """Return the network settings that determine the shapes of the weights."""
    network = recipe.network
    return network.model_copy(update={"learning_blocks": 0}) if isinstance(network, Compact) else network


def _incompatibility(setup: Setup, recipe: Recipe) -> str | None:
    """Return why a recipe can't start from a run, or None if it can.

    The recipe may add residual blocks, propagation, keys and a backbone.
    """
    if setup.recipe.color_space != recipe.color_space:
        return f"uses the colour space {setup.recipe.color_space}, but the recipe uses {recipe.color_space}"
    old, new = setup.recipe.network, recipe.network
    if isinstance(old, Compact) and isinstance(new, Compact):
        if old.propagation and not new.propagation:
            return "propagates chroma: set network.propagation in the recipe"
        if old.nonlocal_channels not in (0, new.nonlocal_channels):
            return f"has network.nonlocal_channels = {old.nonlocal_channels}: set the same number in the recipe"
        if old.backbone and not new.backbone:
            return f"has a backbone: set network.backbone to {old.backbone!r} in the recipe"
        may_differ = ("blocks", "propagation", "nonlocal_channels", "backbone", "learning_blocks")
        old = old.model_copy(update={name: getattr(new, name) for name in may_differ})
    return None if old == new else "has another network than the recipe"


def load(recipe: Recipe, origins: Sequence[Path]) -> Initialization | None:
    """Load the mean weights of runs and of ONNX files exported from runs. Return None if there are no origins.

    Averaging runs that started from the same weights often beats each of them (Wortsman et al., "Model soups", 2022).
    Raises ValueError if the recipe is not compatible with an origin, or the origins with each other. Raises
    UnusableWeights if the recipe needs a backbone, no origin has one, and its weights are not installed.
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
    """Return the default gain and cast of the run's exports, and print them. Return None for those of the recipe.

    The right gain for a mean of weights with different gains is unknown, so the origins must agree.
    """
    found = [setup.post_processing for setup in setups]
    taken = common_to_all(found)
    if taken:
        tqdm.write(f"export will use {taken}, as {origins[0].name} does; --gain and --cast override this")
    elif any(found):
        each = "; ".join(f"{o.name}: {has or 'those of its recipe'}" for o, has in zip(origins, found, strict=True))
        tqdm.write(f"export will use the gain of this recipe and no cast, because the origins differ ({each})")
    return taken


def initialize(network: keras.Model, recipe: Recipe, initial: Initialization | None) -> None:
    """Copy the initial weights into a new network, which may have more layers than they have.

    The added layers keep their own weights. An added backbone gets its ImageNet weights. Raises ValueError if `initial`
    has a layer that the network lacks, or another shape. Raises UnusableWeights.
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
            raise ValueError(f"the recipe's network has no weights {variable.path} of shape {array.shape}")
        own[variable.path].assign(array)


def _held_out_before(entries: Sequence[sources.Entry], initial: Initialization) -> set[str]:
    """Return the names of the photographs in `entries` that the origins held out.

    They are found by content or by name. The name still identifies a file whose caption was changed since, and more
    photographs than necessary do no harm here.
    """
    by_name = {e.name for e in entries if e.name in initial.held_out or sources.name_digest(e.name) in initial.held_out}
    return by_name | {entry.name for entry in sources.with_content_ids(entries, initial.content_ids)}


def hold_out(recipe: Recipe, entries: Sequence[sources.Entry], initial: Initialization | None) -> list[str]:
    """Return the names of the photographs to validate on.

    A run with origins validates on all photographs of its data that these held out, and on no others: the origins may
    have learnt from any other. If none is in the data, or without origins, photographs are drawn, at most a tenth of
    the data. Raises ValueError if too few photographs are left to learn from.
    """
    count = min(recipe.validate_on, len(entries) // 10)
    if not count:
        raise ValueError(
            f"{len(entries)} photographs are too few: at least 10 are needed, because a tenth is held out to validate"
        )
    known = _held_out_before(entries, initial) if initial else set()
    if not known:
        if initial:
            tqdm.write(
                f"none of the {len(initial.held_out)} photographs held out before is in the data: {count} others are"
                " held out, and the earlier runs should not have learnt from these"
            )
        return sorted(entry.name for entry in sources.hold_out(entries, count)[1])
    if all(entry.name in known for entry in entries):
        raise ValueError("all photographs were held out by the earlier runs: none is left to learn from")
    if len(known) < count:
        tqdm.write(f"the {len(known)} photographs held out before are held out again; the recipe asks for {count}")
    return sorted(known)
