import pytest
from pydantic import ValidationError

from service.pipeline.options import Options


def test_by_default_nothing_is_requested() -> None:
    assert Options().model_dump() == {
        "model": None,
        "format": None,
        "quality": None,
        "strength": 1.0,
        "max_side": None,
        "if_color": None,
        "metadata": "keep",
        "merge": "luma",
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("format", "gif"),
        ("quality", 0),
        ("quality", 101),
        ("strength", -0.1),
        ("strength", 2.1),
        ("strength", "nan"),
        ("max_side", 0),
        ("if_color", "ask"),
        ("metadata", "drop"),
        ("merge", "other"),
        ("colour", "more"),
    ],
)
def test_other_values_and_names_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        Options.model_validate({name: value})
    assert [fault["loc"] for fault in caught.value.errors()] == [(name,)]


def test_texts_of_numbers_are_accepted() -> None:
    options = Options.model_validate({"quality": "90", "strength": "1.3", "max_side": "1600"})
    assert (options.quality, options.strength, options.max_side) == (90, 1.3, 1600)
