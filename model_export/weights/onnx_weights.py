"""A network's weights in the metadata of its ONNX file, so that training can resume from the file.

The graph holds the kernels, folded: each channel is multiplied by the factor of its batch norm. The metadata maps the
kernels to the tensors of the graph. It also holds the factors, all one-dimensional weights, and the channels that the
stored precision loses. For the held-out photographs it has digests of the names and of the files.
"""

import base64
import io
import json
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray

from model_export.data import sources
from model_export.recipe import Recipe
from model_export.weights import UnusableWeights, post_processing
from model_export.weights.checkpoint import Setup, Weights
from model_export.weights.quantization import HALF_TOLERANCE, INT8_SUFFIX, INT8_TOLERANCE, kernels, stored_name

METADATA_KEY = "tomau.training"
# The smallest number of half precision: the error that any weight may have.
SMALLEST = float(np.finfo(np.float16).smallest_subnormal)
# Maximum difference of an uncompressed tensor from its kernel times the factors, as a fraction of its largest weight.
FACTOR_TOLERANCE = 1e-5
# Suffixes of the keys of a kernel's lost channels and of their weights.
LOST_SUFFIX, WHOLE_SUFFIX = "-lost", "-whole"


def _pack(arrays: dict[str, NDArray[Any]]) -> str:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return base64.b64encode(stream.getvalue()).decode()


def _as_kernel(tensor: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a tensor of ONNX, [out, in, rows, columns], as [rows, columns, in, out]."""
    return tensor.transpose(2, 3, 1, 0)


def _swap_depthwise_axes(kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a depthwise kernel with its last axes swapped: Keras's layout to that of other kernels, or back."""
    return kernel.transpose(0, 1, 3, 2)


def _factors(kernel: NDArray[np.float32], tensor: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    """Return the factors of the output channels that fit `kernel` to `tensor`, and the largest difference left."""
    exact = kernel.astype(np.float64)
    power = np.square(exact).sum(axis=(0, 1, 2))
    factors = (exact * tensor).sum(axis=(0, 1, 2)) / np.where(power == 0, 1, power)
    return factors.astype(np.float32), float(np.abs(exact * factors - tensor).max())


def _divided(tensor: NDArray[np.float32], factors: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return np.asarray(tensor / np.where(factors == 0, 1, factors), np.float32)


def _lost_channels(
    kernel: NDArray[np.float32], tensor: NDArray[np.float32], factors: NDArray[np.float32], precision: float
) -> NDArray[np.int64]:
    """Return the channels of a kernel that can't be restored from its stored tensor with this precision."""
    distance = np.abs(_divided(tensor, factors) - kernel).max(axis=(0, 1, 2))
    return np.flatnonzero((factors == 0) | ~(distance <= precision * np.abs(kernel).max()))


def _kernels(proto: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    return {name: _as_kernel(values) for name, values in kernels(proto).items()}


def _find(
    kernel: NDArray[np.float32], tensors: dict[str, NDArray[np.float32]]
) -> tuple[str, NDArray[np.float32]] | None:
    """Return the name of the tensor that is the kernel times a factor per channel, and the factors, or None.

    A tensor of zeros, which a batch norm without any output gives, matches no kernel.
    """
    found: list[tuple[float, str, NDArray[np.float32]]] = []
    for name, tensor in tensors.items():
        largest = float(np.abs(tensor).max(initial=0))
        if kernel.shape == tensor.shape and largest:
            factors, distance = _factors(kernel, tensor)
            if distance <= FACTOR_TOLERANCE * largest:
                found.append((distance / largest, name, factors))
    if not found:
        return None
    _, name, factors = min(found, key=itemgetter(0))
    return name, factors


def embed(proto: onnx.ModelProto, whole: onnx.ModelProto, weights: Weights, setup: Setup) -> None:
    """Add what `load` needs to the metadata of `proto`.

    whole: the same model before its weights were compressed. Only its channels have one exact factor each: a factor
    estimated from rounded weights would be biased. A kernel that matches no tensor of the graph is stored in the
    metadata, in half precision. Raises UnusableWeights, and adds nothing, if the weights can't be restored.
    """
    tensors, stored = _kernels(whole), _kernels(proto)
    names: dict[str, str] = {}
    depthwise: list[str] = []
    arrays: dict[str, NDArray[Any]] = {}
    for number, array in enumerate(weights):
        key = f"{number:03d}"
        kernel, found = array, _find(array, tensors) if array.ndim == 4 else None
        # Keras gives depthwise kernels and kernels with one output the same shape. Only the graph tells which it is.
        if found is None and array.ndim == 4 and array.shape[-1] == 1:
            kernel = _swap_depthwise_axes(array)
            found = _find(kernel, tensors)
            depthwise += [key] if found else []
        if found is None:
            arrays[key] = array.astype(np.float16) if array.ndim > 1 else array
            continue
        name, factors = found
        del tensors[name]
        names[key], arrays[key] = stored_name(name, stored), factors
        precision = INT8_TOLERANCE if names[key].endswith(INT8_SUFFIX) else HALF_TOLERANCE
        lost = _lost_channels(kernel, stored[names[key]], factors, precision)
        arrays[f"{key}{LOST_SUFFIX}"], arrays[f"{key}{WHOLE_SUFFIX}"] = lost, kernel[..., lost].astype(np.float16)
    document = {
        "recipe": setup.recipe.model_dump(mode="json"),
        "bins": np.round(setup.bins, 6).tolist(),
        "held_out": [sources.name_digest(name) for name in setup.held_out],
        "contents": setup.content_ids,
        "kernels": names,
        "depthwise": depthwise,
        "arrays": _pack(arrays),
    }
    for number, (given, read) in enumerate(zip(weights, _weights(document, stored), strict=True)):
        if not np.allclose(
            read, given, rtol=1e-3, atol=INT8_TOLERANCE * float(np.abs(given).max(initial=0)) + SMALLEST
        ):
            raise UnusableWeights(f"weight {number}, of shape {given.shape}, can't be restored exactly enough")
    proto.metadata_props.add(key=METADATA_KEY, value=json.dumps(document))


def _weights(document: dict[str, Any], tensors: dict[str, NDArray[np.float32]]) -> Weights:
    """Return the weights from a document of `embed` and the stored kernels of its file."""
    with np.load(io.BytesIO(base64.b64decode(document["arrays"]))) as stored:
        arrays = {key: stored[key] for key in stored.files}
    for key, name in document["kernels"].items():
        kernel = _divided(tensors[name], arrays[key])
        kernel[..., arrays.pop(f"{key}{LOST_SUFFIX}")] = arrays.pop(f"{key}{WHOLE_SUFFIX}")
        arrays[key] = _swap_depthwise_axes(kernel) if key in document.get("depthwise", []) else kernel
    return [arrays[key].astype(np.float32) for key in sorted(arrays)]


def load(path: Path) -> tuple[Weights, Setup]:
    """Return the weights of a network, with the precision of the file, and its setup.

    Digests take the place of the held-out names. Raises UnusableWeights if the file has no such metadata.
    """
    try:
        proto = onnx.load(path)
    except DecodeError as error:
        raise UnusableWeights(f"{path} is not an ONNX file, or is broken: {error}") from error
    text = next((entry.value for entry in proto.metadata_props if entry.key == METADATA_KEY), None)
    if text is None:
        raise UnusableWeights(f"{path} has no {METADATA_KEY}: it was not exported from a run of a compact network")
    document = json.loads(text)
    recipe = Recipe.model_validate(document["recipe"])
    bins = np.array(document["bins"], np.float32).reshape(-1, 2)
    setup = Setup(
        recipe,
        bins,
        document["held_out"],
        content_ids=document.get("contents", []),
        post_processing=post_processing.from_onnx(proto, bins),
    )
    return _weights(document, _kernels(proto)), setup
