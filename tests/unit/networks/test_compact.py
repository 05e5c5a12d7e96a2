"""The compact network. Slow only because importing Keras takes time."""

import numpy as np
import pytest

from model_export.recipe import Recipe
from tests.training import BINS

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_the_shipped_network_has_the_size_that_is_said() -> None:
    from model_export.networks import compact

    network = compact.build(Recipe(name="default"), np.zeros((186, 2), np.float32))
    assert network.count_params() == 7_958_458
    assert network.compute_output_shape((1, 224, 224, 1)) == (1, 56, 56, 186)


def test_both_heads_answer_chroma() -> None:
    from model_export.networks import compact
    from model_export.networks.losses import chroma_loss

    settings = {"kind": "compact", "widths": (4, 6, 8, 10, 12), "context": 8, "head": "chroma"}
    recipe = Recipe.model_validate({"name": "x", "network": settings, "chroma_statistics": 0.5})
    network = compact.build(recipe, BINS[:0])
    assert network.compute_output_shape((1, 64, 64, 1)) == (1, 16, 16, 2)
    answer = np.random.default_rng(0).normal(size=(2, 16, 16, 2)).astype(np.float32)
    chroma = np.asarray(compact.chroma_layer(recipe, BINS[:0], 1.0)(answer))
    np.testing.assert_allclose(chroma, answer * 10, rtol=1e-5)
    for weight in (0.0, 0.5):
        loss = chroma_loss(10.0, weight)
        np.testing.assert_allclose(np.asarray(loss(chroma, answer)), 0, atol=1e-5)
        assert (np.asarray(loss(chroma, answer / 2)) > 0.1).all()
