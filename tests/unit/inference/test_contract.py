import pytest

from service.inference.contract import INPUT, OUTPUT, Contract, ContractError, Shape
from tests.conftest import contract

FLOAT = "tensor(float)"
GOOD_IN: Shape = ("batch", 1, 32, 32)
GOOD_OUT: Shape = ("batch", 2, 8, 8)


@pytest.mark.parametrize("max_batch", [None, 1, 16])
def test_metadata_goes_there_and_back(max_batch: int | None) -> None:
    facts = contract(max_batch=max_batch, color_space="hsv", license="CC0 1.0")
    assert Contract.from_metadata(facts.to_metadata()) == facts


def test_keys_of_the_training_program_are_passed_over() -> None:
    more = {"tomau.gain": "2.4", "tomau.cast": "0.36", "tomau.training": "{}"}
    assert Contract.from_metadata(contract().to_metadata() | more) == contract()


def test_a_fixed_batch_has_to_be_declared() -> None:
    contract(max_batch=1).check_graph({INPUT: (FLOAT, (1, 1, 32, 32))}, {OUTPUT: (FLOAT, (1, 2, 8, 8))})


@pytest.mark.parametrize("key", ["contract", "name", "version", "color_space", "input_size", "license", "data"])
def test_a_missing_key_is_named(key: str) -> None:
    metadata = contract().to_metadata()
    del metadata[f"tomau.{key}"]
    with pytest.raises(ContractError, match=f"tomau.{key}"):
        Contract.from_metadata(metadata)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("contract", "2"),
        ("color_space", "rgb"),
        ("input_size", "0"),
        ("input_size", "-224"),
        ("input_size", "224.0"),
        ("input_size", "1000000"),
        ("input_size", "²"),
        ("max_batch", "many"),
        ("name", "  "),
        ("name", "màu"),
        ("version", "1\n2"),
    ],
)
def test_a_wrong_value_is_named(key: str, value: str) -> None:
    with pytest.raises(ContractError, match=f"tomau.{key}"):
        Contract.from_metadata(contract().to_metadata() | {f"tomau.{key}": value})


@pytest.mark.parametrize("out", [GOOD_OUT, ("batch", 2, None, None), ("N", 2, "h", "w"), ("batch", 2, 32, 32)])
def test_good_graphs(out: Shape) -> None:
    contract().check_graph({INPUT: (FLOAT, GOOD_IN)}, {OUTPUT: (FLOAT, out)})


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ({"image": (FLOAT, GOOD_IN)}, {OUTPUT: (FLOAT, GOOD_OUT)}),
        ({INPUT: (FLOAT, GOOD_IN), "more": (FLOAT, GOOD_IN)}, {OUTPUT: (FLOAT, GOOD_OUT)}),
        ({INPUT: ("tensor(float16)", GOOD_IN)}, {OUTPUT: (FLOAT, GOOD_OUT)}),
        ({INPUT: (FLOAT, ("batch", 3, 32, 32))}, {OUTPUT: (FLOAT, GOOD_OUT)}),
        ({INPUT: (FLOAT, ("batch", 1, 64, 64))}, {OUTPUT: (FLOAT, GOOD_OUT)}),
        ({INPUT: (FLOAT, GOOD_IN)}, {OUTPUT: (FLOAT, ("batch", 3, 8, 8))}),
        ({INPUT: (FLOAT, GOOD_IN)}, {OUTPUT: (FLOAT, ("batch", 2, 64, 64))}),
        ({INPUT: (FLOAT, GOOD_IN)}, {OUTPUT: (FLOAT, ("batch", 2, 8))}),
        ({INPUT: (FLOAT, GOOD_IN)}, {}),
        ({INPUT: (FLOAT, (1, 1, 32, 32))}, {OUTPUT: (FLOAT, (1, 2, 8, 8))}),
    ],
)
def test_graphs_that_break_it(inputs: dict[str, tuple[str, Shape]], outputs: dict[str, tuple[str, Shape]]) -> None:
    with pytest.raises(ContractError):
        contract().check_graph(inputs, outputs)
