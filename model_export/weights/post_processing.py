"""The post-processing of an exported model: a gain of its chroma, and the removal of a part of its colour cast.

An ONNX file has both in its metadata, and a run that was initialized from the file exports with the same values. The
service reads neither, because both are part of the graph.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from model_export import files

GAIN, CAST = "tomau.gain", "tomau.cast"
FILE = "post-processing.json"
# The name of the layer that removes the cast. The names of its nodes in the graph begin with it.
CAST_LAYER = "without_cast"
# Decimal digits of the gain that survive the half precision of the bins.
DIGITS = 3


@dataclass(frozen=True, slots=True)
class PostProcessing:
    """gain: factor of the chroma. cast: fraction of each photograph's mean chroma that is removed, in 0..1."""

    gain: float
    cast: float

    def __str__(self) -> str:
        return f"gain {self.gain:g} and cast {self.cast:g}"

    def to_metadata(self) -> dict[str, str]:
        """Return the metadata that `from_onnx` reads."""
        return {GAIN: f"{self.gain:.6g}", CAST: f"{self.cast:.6g}"}

    def save(self, run: Path) -> None:
        """Write the post-processing into a run's folder."""
        files.write_atomic(run / FILE, json.dumps(asdict(self)).encode())

    @classmethod
    def load(cls, run: Path) -> Self | None:
        """Return the post-processing in a run's folder, or None if the folder has no file of it."""
        path = run / FILE
        return cls(**json.loads(path.read_text("utf-8"))) if path.exists() else None


def from_onnx(proto: onnx.ModelProto, bins: NDArray[np.float32]) -> PostProcessing | None:
    """Return the post-processing of an exported model, from its metadata or else from constants of its graph.

    bins: the chroma bins of its network, float32 [Q, 2]. Return None if neither source has a gain.
    """
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    if GAIN in metadata and CAST in metadata:
        return PostProcessing(float(metadata[GAIN]), float(metadata[CAST]))
    gain = _gain_of_graph(proto.graph, bins)
    return None if gain is None else PostProcessing(gain, _cast_of_graph(proto.graph))


def common_to_all(found: Sequence[PostProcessing | None]) -> PostProcessing | None:
    """Return the value that all have in common, or None if they differ or one is unknown."""
    first = found[0] if found else None
    return first if all(each == first for each in found) else None


def _gain_of_graph(graph: onnx.GraphProto, bins: NDArray[np.float32]) -> float | None:
    """Return the factor of the bins in the tensor that holds them, or None without such a tensor.

    Its shape is [3, Q, 1, 1], with a row of ones, or [Q, 2] in older files.
    """
    if not np.any(bins):
        return None
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor) if len(bins) in tensor.dims else np.empty(0)
        if values.shape == (3, len(bins), 1, 1):
            values = values[:2, :, 0, 0].T
        if values.shape == bins.shape:
            gain = float((values.astype(np.float64) * bins).sum() / np.square(bins).sum())
            if gain > 0 and np.allclose(values, gain * bins, rtol=2e-3, atol=1e-3 * np.abs(bins).max()):
                return round(gain, DIGITS)
    return None


def _cast_of_graph(graph: onnx.GraphProto) -> float:
    """Return the factor of the mean chroma in the layer that removes the cast, or 0 without such a layer."""
    numbers = {tensor.name: tensor for tensor in graph.initializer if numpy_helper.to_array(tensor).size == 1}
    for node in graph.node:
        if node.op_type == "Mul" and CAST_LAYER in node.name:
            for name in node.input:
                if name in numbers:
                    return round(float(numpy_helper.to_array(numbers[name]).item()), DIGITS)
    return 0.0
