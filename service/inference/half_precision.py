"""Models in half precision for GPUs: NAME.fp16.onnx next to NAME.onnx. Check that both are the same model."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from service.imaging.color import ColorSpace, Floats
from service.inference.contract import ContractError
from service.inference.executor import EngineError
from service.inference.session import Engine

log = logging.getLogger(__name__)

SUFFIX = ".fp16.onnx"
# How far the chroma of both files may differ on synthetic pictures, on average and at most. Half precision has 11 bits,
# so that a deep network is a few tenths of a Lab unit off, and more in noise. One that overflows has other colours.
MEAN_LIMIT: dict[ColorSpace, float] = {"lab": 0.5, "hsv": 0.005}
LARGEST_LIMIT: dict[ColorSpace, float] = {"lab": 8.0, "hsv": 0.08}


class HalfPrecisionFileError(ContractError):
    """The file of half precision does not exist, or is not the same model."""


def half_of(path: Path) -> Path:
    """Return the path of a model's file of half precision, whether it exists or not."""
    return path.with_suffix(SUFFIX)


def is_half(path: Path) -> bool:
    """Return whether a path has the name of a file of half precision."""
    return path.name.endswith(SUFFIX)


def synthetic_lightness(size: int) -> Floats:
    """Return lightness, float32 [3, 1, size, size]: a ramp from black to white, soft shapes, grain. Deterministic."""
    random = np.random.default_rng(0)
    ramp = np.tile(np.linspace(0, 1, size), (size, 1))
    shapes = cv2.resize(random.random((8, 8)), (size, size), interpolation=cv2.INTER_LINEAR)
    grain = np.clip(shapes + random.normal(0, 0.05, (size, size)), 0, 1)
    return np.stack([ramp, shapes, grain])[:, np.newaxis].astype(np.float32)


def check_parity(whole: Engine, half: Engine) -> None:
    """Run both on synthetic pictures. Raise HalfPrecisionFileError if their contracts or outputs differ."""
    contract = whole.contract
    if half.contract != contract:
        raise HalfPrecisionFileError(f"{half.contract} is not {contract}")
    lightness = synthetic_lightness(contract.input_size)
    want, have = (np.concatenate([engine.predict(one[np.newaxis]) for one in lightness]) for engine in (whole, half))
    if want.shape != have.shape:
        raise HalfPrecisionFileError(f"its output has the shape {have.shape}, not {want.shape}")
    difference = np.abs(want - have)
    mean, largest = float(difference.mean()), float(difference.max())
    space = contract.color_space
    if mean > MEAN_LIMIT[space] or largest > LARGEST_LIMIT[space]:
        raise HalfPrecisionFileError(
            f"its chroma differs by {mean:.3g} on average and {largest:.3g} at most, which is"
            f" over {MEAN_LIMIT[space]:g} or {LARGEST_LIMIT[space]:g}"
        )


def choose_file(path: Path, precision: Literal["auto", "fp32", "fp16"], load: Callable[[Path], Engine]) -> Path:
    """Return the file to serve for the model at `path`. `load` loads a file on the device that will serve it.

    Raises HalfPrecisionFileError if `fp16` is requested and its file is missing or bad. With `auto`, log a warning.
    """
    half = half_of(path)
    if precision == "fp32" or (precision == "auto" and not half.is_file()):
        return path
    try:
        if not half.is_file():
            raise HalfPrecisionFileError("there is no such file")
        check_parity(load(path), load(half))
    except (ContractError, EngineError) as error:
        if precision == "fp16":
            raise HalfPrecisionFileError(f"{half}: {error}") from error
        log.warning("%s is not used: %s", half, error)
        return path
    return half
