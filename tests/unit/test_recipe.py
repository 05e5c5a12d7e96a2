"""Recipes: those that are shipped, and what a recipe rejects."""

import pytest
from pydantic import ValidationError

from model_export import recipe
from model_export.recipe import Recipe
from tests.training import RECIPES, shipped


@pytest.mark.parametrize("field", ["beta_1", "average"])
def test_a_momentum_of_one_would_learn_nothing(field: str) -> None:
    assert Recipe.model_validate({"name": "x", "optimizer": {field: 0.99}})
    with pytest.raises(ValueError, match=field):
        Recipe.model_validate({"name": "x", "optimizer": {field: 1.0}})


@pytest.mark.parametrize("term", ["difference", "steps", "evenness"])
def test_some_losses_are_for_bins_in_lab(term: str) -> None:
    with pytest.raises(ValueError, match=term):
        Recipe.model_validate({"name": "x", "color_space": "hsv", term: 1})


def test_shipped_recipes_are_valid() -> None:
    found = sorted(RECIPES.glob("*.toml"))
    assert found
    for path in found:
        assert recipe.load(path).name == path.stem


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "x", "learning_rate": 1},
        {"name": "x", "curriculum": [{"until": 0.5, "side": 96}]},
        {"name": "x", "curriculum": [{"until": 1.0, "side": 100}]},
        {"name": "x", "optimizer": {"batch": 0}},
    ],
)
def test_a_wrong_recipe_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Recipe.model_validate(wrong)


def test_a_curriculum_goes_through_its_stages() -> None:
    stages = Recipe.model_validate(
        {"name": "x", "curriculum": [{"until": 0.5, "side": 96}, {"until": 1.0, "side": 128}]}
    )
    assert [stages.side(progress) for progress in (0, 0.49, 0.5, 0.99, 1.0)] == [96, 96, 128, 128, 128]


def test_the_permissive_recipe_is_compact_on_fewer_sources() -> None:
    permissive, compact = (shipped(name) for name in ("permissive", "compact"))
    assert permissive.sources
    assert permissive.model_copy(update={"name": "compact", "sources": ()}) == compact
