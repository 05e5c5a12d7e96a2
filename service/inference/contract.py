"""The contract of a model: what the metadata of its ONNX file must declare, and its inputs and outputs.

Input `lightness`: float32 [N, 1, S, S] in 0..1. Output `chroma`: float32 [N, 2, s, s], s <= S. For `lab` it is a* and
b* in Lab units, for `hsv` it is S cos H and S sin H in -1..1. The batch axis is dynamic.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from service.imaging.color import COLOR_SPACES, ColorSpace

VERSION = "1"
INPUT = "lightness"
OUTPUT = "chroma"
MAX_INPUT_SIZE = 4096

Shape = Sequence[int | str | None]


class ContractError(ValueError):
    """A model does not have the contract, or breaks it."""


@dataclass(frozen=True, slots=True)
class Contract:
    """The declared properties. `input_size` is S, pixels; `max_batch` is None if the graph takes any batch size."""

    name: str
    version: str
    color_space: ColorSpace
    input_size: int
    license: str
    data: str
    max_batch: int | None = None

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Self:
        """Read `metadata_props`. Raise ContractError with the name of a key that is missing or wrong."""
        if _text(metadata, "contract") != VERSION:
            raise ContractError(f"tomau.contract is {metadata['tomau.contract']!r}, not {VERSION!r}")
        space = _text(metadata, "color_space")
        color_space = next((known for known in COLOR_SPACES if known == space), None)
        if color_space is None:
            raise ContractError(f"tomau.color_space is {space!r}, not one of {', '.join(COLOR_SPACES)}")
        return cls(
            name=_header_text(metadata, "name"),
            version=_header_text(metadata, "version"),
            color_space=color_space,
            input_size=_number(metadata, "input_size", MAX_INPUT_SIZE),
            license=_text(metadata, "license"),
            data=_text(metadata, "data"),
            max_batch=_number(metadata, "max_batch", 1 << 16) if "tomau.max_batch" in metadata else None,
        )

    def to_metadata(self) -> dict[str, str]:
        """Return the metadata that `from_metadata` reads."""
        metadata = {
            "tomau.contract": VERSION,
            "tomau.name": self.name,
            "tomau.version": self.version,
            "tomau.color_space": self.color_space,
            "tomau.input_size": str(self.input_size),
            "tomau.license": self.license,
            "tomau.data": self.data,
        }
        return metadata if self.max_batch is None else metadata | {"tomau.max_batch": str(self.max_batch)}

    def check_graph(self, inputs: Mapping[str, tuple[str, Shape]], outputs: Mapping[str, tuple[str, Shape]]) -> None:
        """Raise ContractError unless the graph's inputs and outputs, name to (type, shape), fit the contract."""
        size = self.input_size
        batch = _check_port("input", inputs, INPUT, (1, size, size))[0]
        if isinstance(batch, int) and batch != self.max_batch:
            raise ContractError(
                f"input {INPUT!r} has a fixed batch of {batch}, but tomau.max_batch is {self.max_batch}"
            )
        shape = _check_port("output", outputs, OUTPUT, (2, None, None))
        for side in shape[2:]:
            if isinstance(side, int) and not 1 <= side <= size:
                raise ContractError(f"output {OUTPUT!r} has a side of {side}, not one in 1..{size}")


def _text(metadata: Mapping[str, str], key: str) -> str:
    value = metadata.get(f"tomau.{key}", "").strip()
    if not value:
        raise ContractError(f"the metadata has no tomau.{key}")
    return value


def _header_text(metadata: Mapping[str, str], key: str) -> str:
    """Return a text that is sent in a header of every response."""
    value = _text(metadata, key)
    if not (value.isascii() and value.isprintable()):
        raise ContractError(f"tomau.{key} is {value!r}, which is not plain ASCII")
    return value


def _number(metadata: Mapping[str, str], key: str, most: int) -> int:
    text = _text(metadata, key)
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= most:
        raise ContractError(f"tomau.{key} is {text!r}, not a number in 1..{most}")
    return int(text)


def _check_port(kind: str, ports: Mapping[str, tuple[str, Shape]], name: str, tail: Shape) -> Shape:
    if set(ports) != {name}:
        raise ContractError(f"the graph's {kind}s are {sorted(ports)}, not only {name!r}")
    element, shape = ports[name]
    if element != "tensor(float)":
        raise ContractError(f"{kind} {name!r} is {element}, not tensor(float)")
    fits = len(shape) == 4 and all(want in (None, have) for want, have in zip(tail, shape[1:], strict=True))
    if not fits:
        raise ContractError(f"{kind} {name!r} has the shape {list(shape)}, not [batch, {', '.join(map(str, tail))}]")
    return shape
