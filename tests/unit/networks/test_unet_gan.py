"""The networks of the second tutorial. Slow only because importing Keras takes time."""

import numpy as np
import pytest

from tests.training import built

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


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
    # Patches of 70 pixels begin every 8 pixels. A pixel changes the patches that contain it.
    assert rows in (8, 9)
