"""The parts of a run. Slow only because Keras takes seconds to import."""

import pytest

from model_export.recipe import Optimizer
from tests.training import tiny

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("kind", ["adamw", "adam", "rmsprop"])
def test_the_recipe_chooses_the_optimizer(kind: str) -> None:
    from model_export.run import setup

    made = setup.build_optimizer(Optimizer.model_validate({"kind": kind, "learning_rate": 0.25, "weight_decay": 0.125}))
    assert type(made).__name__.lower() == kind
    assert float(made.learning_rate) == 0.25
    assert made.weight_decay == (0.125 if kind == "adamw" else None)


def test_a_network_without_bins_has_none() -> None:
    from model_export.run import setup

    assert setup.choose_bins(tiny(head="chroma"), []).shape == (0, 2)
