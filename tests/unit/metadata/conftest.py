"""Fixtures of the tests of metadata."""

import numpy as np
import pytest


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (33, 47, 3), np.uint8)
