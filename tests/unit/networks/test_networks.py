"""The networks are the ones that are said. Slow only because Keras takes its time to be imported."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from model_export import recipe
from model_export.recipe import Recipe

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
NO_BINS = np.empty((0, 2), np.float32)
RECIPES = Path(recipe.__file__).parent / "recipes"


def load(name: str) -> Recipe:
    return recipe.load(RECIPES / f"{name}.toml")


def built(name: str, side: int) -> SimpleNamespace:
    from model_export import networks

    network = networks.architecture(load(name)).build(load(name), NO_BINS, side)
    trainable = sum(int(np.prod(variable.shape)) for variable in network.trainable_variables)
    return SimpleNamespace(all=network.count_params(), trainable=trainable, shape=network.output_shape, network=network)


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.toml")))
def test_every_recipe_can_be_read(name: str) -> None:
    assert load(name).name


@pytest.mark.parametrize("name", ["resnet50-fcn", "resnet50-fcn-improved"])
def test_the_first_tutorials_network_has_its_parameters(name: str) -> None:
    made = built(name, 224)
    assert (made.all, made.trainable) == (34_243_204, 34_190_084)
    assert made.shape == (None, 224, 224, 2)


def test_the_second_tutorials_networks_have_their_parameters() -> None:
    from model_export.networks import unet_gan

    generator = built("unet-gan", 256)
    assert generator.trainable == 54_409_858
    assert generator.shape == (None, 256, 256, 2)
    assert built("unet-gan-resnet18", 64).trainable == pytest.approx(15.6e6, rel=0.01)
    discriminator = unet_gan.build_discriminator(256)
    assert sum(int(np.prod(v.shape)) for v in discriminator.trainable_variables) == 2_765_633
    assert discriminator.output_shape == (None, 30, 30, 1)


def test_a_verdict_is_about_70_by_70_pixels() -> None:
    import keras

    from model_export.networks import unet_gan

    keras.utils.set_random_seed(0)
    discriminator = unet_gan.build_discriminator(256)
    picture, ab = np.zeros((1, 256, 256, 1), np.float32), np.zeros((1, 256, 256, 2), np.float32)
    plain = np.asarray(discriminator([picture, ab]))
    changed = picture.copy()
    changed[0, 128, 128] = 1
    seen = np.argwhere(np.abs(np.asarray(discriminator([changed, ab])) - plain)[0, ..., 0] > 0)
    rows = seen[:, 0].max() - seen[:, 0].min() + 1
    # A pixel is seen by the patches of 70 pixels, 8 apart, that it lies in.
    assert rows in (8, 9)


def test_the_first_tutorials_loss_is_in_bytes() -> None:
    import cv2

    from model_export import networks
    from service.imaging.color import split_rgb

    rgb = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    rgb[0, 0, 0] = 77  # gray: hue 0, saturation 0
    truth = split_rgb(rgb[0], "hsv")[1][np.newaxis]
    tutorial = cv2.cvtColor(rgb[0], cv2.COLOR_RGB2HSV)[np.newaxis, ..., :2].astype(np.float32)
    answer = np.full_like(tutorial, 100)
    made = load("resnet50-fcn")
    loss = float(np.asarray(networks.architecture(made).loss(made, NO_BINS)(truth, answer)))
    assert loss == pytest.approx(np.sqrt(((tutorial - answer) ** 2).mean()), rel=2e-3)
    # And what the service is given is the colour that the bytes mean.
    chroma = np.asarray(networks.architecture(made).chroma_layer(made, NO_BINS, 1.0)(tutorial))
    np.testing.assert_allclose(chroma, truth, atol=0.03)
