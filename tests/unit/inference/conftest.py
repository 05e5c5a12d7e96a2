"""Fixtures that several tests of inference share."""

from concurrent.futures import ThreadPoolExecutor

import pytest


@pytest.fixture
def pool() -> ThreadPoolExecutor:
    with ThreadPoolExecutor(16) as executor:
        yield executor
