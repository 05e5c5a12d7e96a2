"""What a recipe rejects."""

import pytest

from model_export.recipe import Recipe


@pytest.mark.parametrize("field", ["beta_1", "average"])
def test_a_momentum_of_one_would_learn_nothing(field: str) -> None:
    assert Recipe.model_validate({"name": "x", "optimizer": {field: 0.99}})
    with pytest.raises(ValueError, match=field):
        Recipe.model_validate({"name": "x", "optimizer": {field: 1.0}})


@pytest.mark.parametrize("term", ["difference", "steps", "evenness"])
def test_some_losses_are_for_bins_in_lab(term: str) -> None:
    with pytest.raises(ValueError, match=term):
        Recipe.model_validate({"name": "x", "color_space": "hsv", term: 1})
