"""The shipped models on photographs from two libraries' wheels, which they were not trained on."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
from sklearn.datasets import load_sample_images

from model_export.evaluation import metrics
from service.imaging import color
from service.inference.registry import ModelRegistry
from service.pipeline.colorizer import Colorizer
from service.pipeline.options import Options
from service.settings import SHIPPED_MODELS, Settings
from tests.conftest import decoded, encoded, luma


@pytest.fixture(scope="module")
def colorizer() -> Colorizer:
    settings = Settings(device="cpu")
    return Colorizer(ModelRegistry(settings), settings)


@pytest.fixture(scope="module")
def photographs() -> dict[str, np.ndarray]:
    china, flower = load_sample_images().images
    names = ("astronaut", "chelsea", "coffee", "rocket")
    return {name: getattr(skimage.data, name)() for name in names} | {"china": china, "flower": flower}


def coloured(colorizer: Colorizer, rgb: np.ndarray, **options: object) -> np.ndarray:
    data = encoded(color.luma_of_rgb(rgb), "PNG")
    return decoded(colorizer.colorize(data, Options(**options)).data)  # type: ignore[arg-type]


MODELS = sorted(path.stem for path in SHIPPED_MODELS.glob("*.onnx"))


def test_both_colour_spaces_are_served(colorizer: Colorizer) -> None:
    assert {model.contract.color_space for model in colorizer.models} == set(color.COLOR_SPACES)


@pytest.mark.parametrize("model", MODELS)
def test_every_photo_keeps_its_luma_and_gets_colour(
    colorizer: Colorizer, photographs: dict[str, np.ndarray], model: str
) -> None:
    for name, rgb in photographs.items():
        answer = coloured(colorizer, rgb, model=model)
        assert answer.shape == rgb.shape
        assert np.abs(color.luma_of_rgb(answer).astype(int) - color.luma_of_rgb(rgb)).max() <= 1, name
        assert metrics.mean_chroma(answer) > 3, name


def test_a_jpeg_keeps_its_luma(colorizer: Colorizer, photographs: dict[str, np.ndarray]) -> None:
    for name, rgb in photographs.items():
        source = encoded(rgb, "JPEG", quality=88)
        assert np.abs(luma(colorizer.colorize(source, Options()).data) - luma(source)).mean() < 1, name


@pytest.mark.parametrize("model", MODELS)
def test_its_hues_are_nearer_to_the_truth_than_a_constant(
    colorizer: Colorizer, photographs: dict[str, np.ndarray], model: str
) -> None:
    def errors(answer: dict[str, np.ndarray]) -> float:
        return float(np.mean([metrics.hue_error(answer[name], rgb) for name, rgb in photographs.items()]))

    warm = np.array([3.0, 12.0], np.float32).reshape(2, 1, 1)
    constant = {name: color.merge_rgb(color.luma_of_rgb(rgb), warm, "lab") for name, rgb in photographs.items()}
    assert errors({name: coloured(colorizer, rgb, model=model) for name, rgb in photographs.items()}) < errors(constant)


def test_the_same_photo_gives_the_same_colours(colorizer: Colorizer, photographs: dict[str, np.ndarray]) -> None:
    first, second = (coloured(colorizer, photographs["china"]) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("shape", [(100, 500), (500, 100), (40, 40)])
def test_long_and_small_photos_are_coloured_without_harm(
    colorizer: Colorizer, photographs: dict[str, np.ndarray], shape: tuple[int, int]
) -> None:
    resized = cv2.resize(photographs["china"], shape[::-1], interpolation=cv2.INTER_AREA)
    answer = coloured(colorizer, resized)
    assert np.abs(color.luma_of_rgb(answer).astype(int) - color.luma_of_rgb(resized)).max() <= 1


def test_the_folder_is_small_and_its_hashes_are_right() -> None:
    files = [path for path in SHIPPED_MODELS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 24 * 1000 * 1000
    for path in SHIPPED_MODELS.glob("*.onnx"):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert path.with_suffix(".onnx.sha256").read_text().split() == [digest, path.name]
        assert path.with_suffix(".md").is_file(), "each model has a card"


def test_every_shipped_model_says_what_it_is(colorizer: Colorizer) -> None:
    for model in colorizer.models:
        assert "research" in model.contract.license.lower()
        assert Path(model.contract.name).name == model.contract.name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", MODELS)
def test_training_can_go_on_from_a_shipped_file(model: str) -> None:
    from model_export.weights import onnx_weights

    weights, setup = onnx_weights.load(SHIPPED_MODELS / f"{model}.onnx")
    assert setup.recipe.name.startswith("compact")
    assert sum(array.size for array in weights) > 1_000_000
    assert len(setup.bins) > 100
    assert setup.held_out
