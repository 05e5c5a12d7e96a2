"""A model's file of half precision: NAME.fp16.onnx beside NAME.onnx, the same model for a GPU."""

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

HALF = ".fp16.onnx"
# How far the chroma of both files may be apart on made-up pictures: on average, and anywhere. Half precision has 11
# bits, so a deep network is a few tenths of a Lab unit off, more in noise; one that overflows is off by whole colours.
MEAN_LIMIT: dict[ColorSpace, float] = {"lab": 0.5, "hsv": 0.005}
LARGEST_LIMIT: dict[ColorSpace, float] = {"lab": 8.0, "hsv": 0.08}


class HalfPrecisionError(ContractError):
    """There is no file of half precision, or it is not the same model."""


def half_of(path: Path) -> Path:
    """Where a model's file of half precision is, if there is one."""
    return path.with_suffix(HALF)


def is_half(path: Path) -> bool:
    """Whether it is one by its name."""
    return path.name.endswith(HALF)


def pictures(size: int) -> Floats:
    """Made-up lightness, float32 [3, 1, size, size], always the same: from black to white, soft shapes, grain."""
    random = np.random.default_rng(0)
    ramp = np.tile(np.linspace(0, 1, size), (size, 1))
    shapes = cv2.resize(random.random((8, 8)), (size, size), interpolation=cv2.INTER_LINEAR)
    grain = np.clip(shapes + random.normal(0, 0.05, (size, size)), 0, 1)
    return np.stack([ramp, shapes, grain])[:, np.newaxis].astype(np.float32)


def check(whole: Engine, half: Engine) -> None:
    """Runs both on the same pictures. Raises VariantError when they are not the same model, as far as that shows."""
    contract = whole.contract
    if half.contract != contract:
        raise HalfPrecisionError(f"{half.contract} is not {contract}")
    lightness = pictures(contract.input_size)
    want, have = (np.concatenate([engine.predict(one[np.newaxis]) for one in lightness]) for engine in (whole, half))
    if want.shape != have.shape:
        raise HalfPrecisionError(f"it answers the shape {have.shape}, not {want.shape}")
    apart = np.abs(want - have)
    mean, largest = float(apart.mean()), float(apart.max())
    space = contract.color_space
    if mean > MEAN_LIMIT[space] or largest > LARGEST_LIMIT[space]:
        raise HalfPrecisionError(
            f"its chroma differs by {mean:.3g} on average and {largest:.3g} at most,"
            f" over {MEAN_LIMIT[space]:g} or {LARGEST_LIMIT[space]:g}"
        )


def choose(path: Path, precision: Literal["auto", "fp32", "fp16"], load: Callable[[Path], Engine]) -> Path:
    """The file to serve for the model at `path`. `load` loads one on the device that will serve it.

    Raises VariantError when fp16 was asked for and there is no good file of it; with `auto` that is a warning.
    """
    half = half_of(path)
    if precision == "fp32" or (precision == "auto" and not half.is_file()):
        return path
    try:
        if not half.is_file():
            raise HalfPrecisionError("there is no such file")
        check(load(path), load(half))
    except (ContractError, EngineError) as error:
        if precision == "fp16":
            raise HalfPrecisionError(f"{half}: {error}") from error
        log.warning("%s is not used: %s", half, error)
        return path
    return half
