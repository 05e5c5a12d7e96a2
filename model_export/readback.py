"""A network's weights, kept in its ONNX file so that training can go on from there.

The graph holds the kernels, but each multiplied, channel by channel, with what its batch norm would have done. So the
file also says which tensor is which kernel, and holds the factors, everything one-dimensional, and the channels that
became too small for half precision. Of the photographs held out it has digests of the names and of the files.
"""

import base64
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray

from model_export import sources
from model_export.checkpoint import Setup, Weights
from model_export.narrow import PRECISION, kernels
from model_export.recipe import Recipe

KEY = "tomau.training"
# The smallest number of half precision, by which any weight may be off.
SMALLEST = float(np.finfo(np.float16).smallest_subnormal)
# What the names of a kernel's lost channels, and of their weights, end with.
LOST, WHOLE = "-lost", "-whole"


class NoWeights(ValueError):
    """An ONNX file that training can't go on from."""


def _packed(arrays: dict[str, NDArray[Any]]) -> str:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return base64.b64encode(stream.getvalue()).decode()


def _as_kernel(tensor: NDArray[np.float32]) -> NDArray[np.float32]:
    """From ONNX's [out, in, rows, columns] to [rows, columns, in, out]."""
    return tensor.transpose(2, 3, 1, 0)


def _turned(kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    """A depthwise kernel, from Keras's form to that of the others or back: one of its last axes is of length one."""
    return kernel.transpose(0, 1, 3, 2)


def _factors(kernel: NDArray[np.float32], tensor: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    """What each output channel of `kernel` is multiplied with to be `tensor`, and the largest difference then."""
    power = np.square(kernel).sum(axis=(0, 1, 2))
    factors = (kernel * tensor).sum(axis=(0, 1, 2)) / np.maximum(power, 1e-12)
    return factors, float(np.abs(kernel * factors - tensor).max())


def _divided(tensor: NDArray[np.float32], factors: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(tensor / np.where(factors == 0, 1, factors), np.float32)


def _lost(kernel: NDArray[np.float32], tensor: NDArray[np.float32], factors: NDArray[np.float32]) -> NDArray[np.int64]:
    """The channels of a kernel that its tensor doesn't give back."""
    distance = np.abs(_divided(tensor, factors) - kernel).max(axis=(0, 1, 2))
    return np.flatnonzero((factors == 0) | (distance > PRECISION * np.abs(kernel).max()))


def _kernels(proto: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    return {name: _as_kernel(values) for name, values in kernels(proto).items()}


def _find(kernel: NDArray[np.float32], tensors: dict[str, NDArray[np.float32]]) -> tuple[str, NDArray[np.float32]]:
    """The tensor that is nearest to the kernel, as a share of itself.

    A batch norm that has hardly learnt leaves next to nothing of its kernel, which is within the tolerance of any: the
    wrong one of those is no harm, for what it doesn't give back is kept.
    """
    found: list[tuple[float, str, NDArray[np.float32]]] = []
    for name, tensor in tensors.items():
        if kernel.shape == tensor.shape:
            factors, distance = _factors(kernel, tensor)
            largest = float(np.abs(tensor).max())
            if distance <= PRECISION * largest + SMALLEST:
                found.append((distance / largest if largest else math.inf, name, factors))
    if not found:
        raise NoWeights(f"no tensor of the graph is the kernel of shape {kernel.shape}")
    _, name, factors = min(found, key=lambda each: each[0])
    return name, factors


def _is_depthwise(kernel: NDArray[np.float32], tensors: dict[str, NDArray[np.float32]]) -> bool:
    """Only the graph tells a depthwise kernel from one with a single output: Keras gives both the same form."""
    if kernel.shape[-1] != 1:
        return False
    try:
        _find(kernel, tensors)
    except NoWeights:
        return True
    return False


def embed(proto: onnx.ModelProto, weights: Weights, setup: Setup) -> None:
    """Adds what `load` needs to the file's metadata. Raises NoWeights when the graph doesn't hold all kernels."""
    tensors = _kernels(proto)
    names: dict[str, str] = {}
    depthwise: list[str] = []
    arrays: dict[str, NDArray[Any]] = {}
    for number, array in enumerate(weights):
        key = f"{number:03d}"
        if array.ndim == 1:
            arrays[key] = array
        elif array.ndim == 4:
            kernel = array
            if _is_depthwise(array, tensors):
                depthwise.append(key)
                kernel = _turned(array)
            names[key], arrays[key] = _find(kernel, tensors)
            lost = _lost(kernel, tensors.pop(names[key]), arrays[key])
            arrays[f"{key}{LOST}"], arrays[f"{key}{WHOLE}"] = lost, kernel[..., lost].astype(np.float16)
        else:
            raise NoWeights(f"a weight of {array.ndim} dimensions")
    document = {
        "recipe": setup.recipe.model_dump(mode="json"),
        "bins": np.round(setup.bins, 6).tolist(),
        "held_out": [sources.digest(name) for name in setup.held_out],
        "contents": setup.contents,
        "kernels": names,
        "depthwise": depthwise,
        "arrays": _packed(arrays),
    }
    proto.metadata_props.add(key=KEY, value=json.dumps(document))


def load(path: Path) -> tuple[Weights, Setup]:
    """A network's weights, kernels as precise as the file keeps them, and its setup. Raises NoWeights.

    In place of the names held out stand their digests.
    """
    try:
        proto = onnx.load(path)
    except DecodeError as error:
        raise NoWeights(f"{path} is no ONNX file, or broken: {error}") from error
    text = next((entry.value for entry in proto.metadata_props if entry.key == KEY), None)
    if text is None:
        raise NoWeights(f"{path} has no {KEY}: it was not exported from a run of a compact network")
    document = json.loads(text)
    tensors = _kernels(proto)
    with np.load(io.BytesIO(base64.b64decode(document["arrays"]))) as stored:
        arrays = {key: stored[key] for key in stored.files}
    for key, name in document["kernels"].items():
        kernel = _divided(tensors[name], arrays[key])
        kernel[..., arrays.pop(f"{key}{LOST}")] = arrays.pop(f"{key}{WHOLE}")
        arrays[key] = _turned(kernel) if key in document.get("depthwise", []) else kernel
    recipe = Recipe.model_validate(document["recipe"])
    bins = np.array(document["bins"], np.float32).reshape(-1, 2)
    setup = Setup(recipe, bins, document["held_out"], contents=document.get("contents", []))
    return [arrays[key].astype(np.float32) for key in sorted(arrays)], setup
