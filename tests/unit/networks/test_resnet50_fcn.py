"""The network of the first tutorial. Slow only because importing Keras takes time."""

import numpy as np
import pytest

from tests.training import NO_BINS, built, shipped

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("name", ["resnet50-fcn", "resnet50-fcn-improved"])
def test_the_first_tutorials_network_has_its_parameters(name: str) -> None:
    made = built(name, 224)
    assert (made.all, made.trainable) == (34_243_204, 34_190_084)
    assert made.shape == (None, 224, 224, 2)


def test_the_first_tutorials_loss_is_in_bytes() -> None:
    import cv2

    from model_export import networks
    from service.imaging.color import split_rgb

    rgb = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    rgb[0, 0, 0] = 77  # gray: hue 0, saturation 0
    truth = split_rgb(rgb[0], "hsv")[1][np.newaxis]
    tutorial = cv2.cvtColor(rgb[0], cv2.COLOR_RGB2HSV)[np.newaxis, ..., :2].astype(np.float32)
    answer = np.full_like(tutorial, 100)
    made = shipped("resnet50-fcn")
    loss = float(np.asarray(networks.architecture(made).loss(made, NO_BINS)(truth, answer)))
    assert loss == pytest.approx(np.sqrt(((tutorial - answer) ** 2).mean()), rel=2e-3)
    # The service gets the colour that the bytes encode.
    chroma = np.asarray(networks.architecture(made).chroma_layer(made, NO_BINS, 1.0)(tutorial))
    np.testing.assert_allclose(chroma, truth, atol=0.03)
