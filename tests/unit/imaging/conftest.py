"""Photos that several tests of imaging share."""

import numpy as np
import pytest


@pytest.fixture(scope="module")
def picture(astronaut: np.ndarray) -> np.ndarray:
    """Return a colour photo with odd sides, uint8 [199, 301, 3]."""
    return astronaut[:199, :301].copy()


@pytest.fixture(scope="module")
def deep(picture: np.ndarray) -> np.ndarray:
    """Return the same photo with 16 bits, whose low eight bits are noise."""
    noise = np.random.default_rng(3).integers(0, 256, picture.shape)
    return (picture.astype(np.uint16) << 8) + noise.astype(np.uint16)
