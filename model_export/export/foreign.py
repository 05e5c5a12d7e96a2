"""The interface of a third-party colorizer, and the colorizer's own output for reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import cv2
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from skimage.color import lab2rgb, rgb2lab

from service.imaging.color import Floats
from service.inference.contract import MAX_INPUT_SIZE

# The largest allowed difference between the original graph and the new file, Lab units, by the graph's precision.
TOLERANCE = {"tensor(float)": 0.5, "tensor(double)": 0.5, "tensor(float16)": 2.0}
DTYPES: dict[str, type[np.floating]] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
}
InputKind = Literal["lightness", "gray", "rgb"]
OutputKind = Literal["ab", "rgb", "bgr"]
Layout = Literal["nchw", "nhwc"]
Range = tuple[float, float]


# The fields that a user can set, with their command-line options.
OPTIONS = {
    "input_kind": "--input",
    "output_kind": "--output",
    "license": "--license",
    "data": "--data",
    "input_range": "--input-range",
    "mean": "--mean",
    "std": "--std",
    "output_range": "--output-range",
    "ab_range": "--ab-range",
    "layout": "--layout",
}


@dataclass(frozen=True, slots=True)
class Interface:
    """The input and output of a third-party graph, and the licence of its weights.

    input_kind: `lightness` is one channel of L*, `gray` one channel of sRGB gray, `rgb` that gray three times.
    input_range: the values of black and white. mean, std: subtracted, then divided by; one number, or one per channel.
    output_kind: `ab`, or an image as `rgb` or `bgr`. output_range: for an image, the values of black and white. For
    `ab`, the values of the two ends of `ab_range`, Lab units; without `ab_range`, the output is in Lab units. size:
    side of the input, pixels, if the graph does not fix it; a multiple of `multiple`. data: what it was trained on.
    """

    input_kind: InputKind
    output_kind: OutputKind
    license: str
    data: str = "not stated"
    input_range: Range = (0.0, 1.0)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    output_range: Range = (0.0, 1.0)
    ab_range: Range | None = None
    layout: Layout = "nchw"
    size: int | None = None
    multiple: int = 1

    def __post_init__(self) -> None:
        """Raise ValueError for an empty range, or if `mean` or `std` do not match the channels."""
        for name in ("input_range", "output_range", "ab_range"):
            ends = getattr(self, name)
            if ends is not None and ends[0] == ends[1]:
                raise ValueError(f"{OPTIONS[name]} {ends[0]:g} {ends[1]:g} is empty: give two different numbers")
        for name in ("mean", "std"):
            count = len(getattr(self, name))
            if count not in (1, self.channels):
                raise ValueError(f"{OPTIONS[name]} has {count} numbers, but the input has {self.channels} channels")
        if 0 in self.std:
            raise ValueError("--std has a 0: give numbers other than 0")

    @property
    def channels(self) -> int:
        """Number of channels of the input."""
        return 3 if self.input_kind == "rgb" else 1

    @property
    def output_channels(self) -> int:
        """Number of channels of the output."""
        return 2 if self.output_kind == "ab" else 3

    def dims(self, batch: object, channels: object, height: object, width: object) -> tuple[object, ...]:
        """Return a shape in this layout."""
        return (batch, channels, height, width) if self.layout == "nchw" else (batch, height, width, channels)


IMAGENET = "ImageNet, as its authors say"

PRESETS: dict[str, Interface] = {
    "ddcolor": Interface("rgb", "ab", "Apache-2.0", IMAGENET, size=512),
    "deoldify": Interface(
        "rgb", "rgb", "MIT", IMAGENET, input_range=(0, 255), output_range=(0, 255), size=256, multiple=16
    ),
    # Both normalize L*, a* and b* inside their PyTorch modules.
    "eccv16": Interface("lightness", "ab", "BSD-2-Clause", IMAGENET, input_range=(0, 100), size=256),
    "siggraph17": Interface("lightness", "ab", "BSD-2-Clause", IMAGENET, input_range=(0, 100), size=256),
}


def interface(preset: str | None, changes: Mapping[str, object]) -> Interface:
    """Return a preset with some fields replaced, or an interface of the given fields only.

    Raises ValueError if the fields for input, output or licence are missing.
    """
    if preset is not None:
        return replace(PRESETS[preset], **changes)  # type: ignore[arg-type]
    missing = [OPTIONS[field] for field in ("input_kind", "output_kind", "license") if field not in changes]
    if missing:
        raise ValueError(f"without --preset, {', '.join(missing)} must be given")
    return Interface(**changes)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a graph."""

    name: str
    type: str
    shape: list[int | None]  # None if the graph does not fix the size

    @classmethod
    def of(cls, port: ort.NodeArg) -> Self:
        """Return the port that ONNX Runtime describes."""
        return cls(port.name, port.type, [side if isinstance(side, int) and side > 0 else None for side in port.shape])

    def __str__(self) -> str:
        sides = ", ".join("?" if side is None else str(side) for side in self.shape)
        return f"{self.name!r} is {self.type} [{sides}]"


class ForeignModel:
    """A third-party graph, loaded in its own session."""

    def __init__(self, path: Path, interface: Interface, size: int | None) -> None:
        """Load the graph. size: side of the input, if the caller sets one. Raises ValueError if it does not fit."""
        self.interface = interface
        try:
            options = ort.SessionOptions()
            options.log_severity_level = 4
            self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ValueError(f"{path}: ONNX Runtime can't load it: {first_line(error)}") from error
        ports = [Port.of(port) for port in self._session.get_inputs()]
        if not ports:
            raise ValueError(f"{path}: the graph has no input")
        self.image, *others = ports
        self.size = self._input_side(size)
        self.zero_inputs = [self._zero_input(port) for port in others]
        self.output, self.output_size = self._find_output()
        # The contract does not allow a chroma that is larger than the input.
        self.chroma_size = min(self.size, self.output_size)

    def _input_side(self, size: int | None) -> int:
        """Return the side of the image input. Raises ValueError if its shape does not match the interface."""
        interface = self.interface
        wanted = interface.dims("batch", interface.channels, *("size" if size is None else size,) * 2)
        wrong = f"input {self.image}, but a float tensor [{', '.join(map(str, wanted))}] is expected"
        if self.image.type not in DTYPES or len(self.image.shape) != 4:
            raise ValueError(wrong)
        batch, *rest = self.image.shape
        channels, height, width = rest if interface.layout == "nchw" else (rest[2], rest[0], rest[1])
        sides = {side for side in (height, width, size) if side is not None}
        if channels not in (None, interface.channels) or len(sides) > 1:
            raise ValueError(wrong)
        if batch not in (None, 1):
            raise ValueError(
                f"input {self.image}: its batch size is fixed at {batch}, but the service also runs single photos;"
                " export it with a batch size of 1 or a dynamic one"
            )
        side = sides.pop() if sides else interface.size
        if side is None:
            raise ValueError(f"input {self.image} does not fix its size: set it with --size")
        if not 1 <= side <= MAX_INPUT_SIZE:
            raise ValueError(f"input {self.image.name!r}: the size {side} is not in 1..{MAX_INPUT_SIZE}")
        if side % interface.multiple:
            raise ValueError(f"input {self.image.name!r}: the size {side} is not a multiple of {interface.multiple}")
        return side

    def _zero_input(self, port: Port) -> Port:
        """Return an additional input (colour hints or their mask) with its sizes.

        Raises ValueError unless all sizes except the batch are known.
        """
        batch, *rest = port.shape or [0]
        if len(rest) == 3:
            first = 1 if self.interface.layout == "nchw" else 0
            rest[first : first + 2] = [self.size if side is None else side for side in rest[first : first + 2]]
        if port.type not in DTYPES or batch not in (None, 1) or None in rest:
            raise ValueError(
                f"input {port}, but an additional input must be a float tensor of known size, which gets zeros"
            )
        return Port(port.name, port.type, [batch, *rest])

    def _find_output(self) -> tuple[Port, int]:
        """Return the only output with the expected channels, with the sizes of a test run, and its side."""
        ports = [Port.of(port) for port in self._session.get_outputs()]
        try:
            outputs = self._run(np.zeros((1, 1, self.size, self.size), np.float32), [port.name for port in ports])
        except Exception as error:
            raise ValueError(
                f"the graph does not run on {self.size} x {self.size} pixels: {first_line(error)}"
            ) from error
        real = [Port(port.name, port.type, list(np.shape(a))) for port, a in zip(ports, outputs, strict=True)]
        fits = [port for port in real if self._is_output(port)]
        if len(fits) != 1:
            wanted = ", ".join(map(str, self.interface.dims(1, self.interface.output_channels, "s", "s")))
            have = "; ".join(f"output {port}" for port in real)
            raise ValueError(f"{have}; exactly one output must be a float tensor [{wanted}]")
        return fits[0], fits[0].shape[2] or 0

    def _is_output(self, port: Port) -> bool:
        if port.type not in DTYPES or len(port.shape) != 4:
            return False
        side = port.shape[2]
        return tuple(port.shape) == self.interface.dims(1, self.interface.output_channels, side, side)

    def _run(self, lightness: Floats, names: Sequence[str]) -> list[NDArray[np.floating]]:
        feeds = {self.image.name: _input_of(lightness, self.interface).astype(DTYPES[self.image.type])}
        for port in self.zero_inputs:
            feeds[port.name] = np.zeros([len(lightness), *(side or 0 for side in port.shape[1:])], DTYPES[port.type])
        return list(self._session.run(list(names), feeds))

    def chroma(self, lightness: Floats) -> Floats:
        """Return (a*, b*), float32 [N, 2, s, s], of lightness, float32 [N, 1, S, S], without added nodes."""
        (output,) = self._run(lightness, [self.output.name])
        return _chroma_of(output.astype(np.float64), self.interface, self.chroma_size)

    def supports_batches(self, lightness: Floats, single: Floats) -> bool:
        """Return whether a batch gives the same output as single photographs.

        single: the output for each photograph alone. Some exports declare an open batch but fail on it.
        """
        if self.image.shape[0] == 1 or any(port.shape[0] == 1 for port in self.zero_inputs):
            return False
        try:
            together = self.chroma(lightness)
        except Exception:  # noqa: BLE001 - ONNX Runtime's errors have no common base class
            return False
        return together.shape == single.shape and bool(np.abs(together - single).max() <= TOLERANCE[self.image.type])


def first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _input_of(lightness: Floats, interface: Interface) -> NDArray[np.float64]:
    """Return the graph's input for lightness [N, 1, S, S], computed with scikit-image and NumPy."""
    plane = lightness.astype(np.float64)
    if interface.input_kind != "lightness":
        lab = np.concatenate([plane * 100, np.zeros_like(plane), np.zeros_like(plane)], axis=1)
        plane = lab2rgb(lab, channel_axis=1)[:, : interface.channels]
    low, high = interface.input_range
    mean, std = (np.reshape(each, (-1, 1, 1)) for each in (interface.mean, interface.std))
    scaled = (low + plane * (high - low) - mean) / std
    return scaled if interface.layout == "nchw" else np.moveaxis(scaled, 1, -1)


def _chroma_of(output: NDArray[np.float64], interface: Interface, size: int) -> Floats:
    """Return (a*, b*), float32 [N, 2, size, size], of the graph's output; with scikit-image and OpenCV."""
    low, high = interface.output_range
    values = (output - low) / (high - low)
    if interface.layout == "nhwc":
        values = np.moveaxis(values, -1, 1)
    if interface.output_kind == "ab":
        first, last = interface.ab_range or interface.output_range
        chroma = first + values * (last - first)
    else:
        rgb = values if interface.output_kind == "rgb" else values[:, ::-1]
        chroma = rgb2lab(np.clip(rgb, 0, 1), channel_axis=1)[:, 1:]
    small = [[cv2.resize(c, (size, size), interpolation=cv2.INTER_AREA) for c in one] for one in chroma]
    return np.asarray(small, np.float32)
