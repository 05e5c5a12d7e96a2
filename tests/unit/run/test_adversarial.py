"""Adversarial training. Slow only because Keras takes seconds to import."""

import numpy as np
import pytest

from tests.training import built, shipped

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_the_generator_alone_learns_in_the_duel() -> None:
    from model_export.run.adversarial import AdversarialTrainer

    made = shipped("unet-gan-resnet18")
    generator = built("unet-gan-resnet18", 64).network
    trainer = AdversarialTrainer(generator, made.network, jit_compile=False)
    random = np.random.default_rng(0)
    lightness = random.uniform(size=(2, 64, 64, 1)).astype(np.float32)
    chroma = random.uniform(-50, 50, (2, 64, 64, 2)).astype(np.float32)
    before = [v.numpy() for v in trainer.discriminator.trainable_variables]
    verdict = np.ones((2, *trainer.discriminator.compute_output_shape([(2, 64, 64, 1), (2, 64, 64, 2)])[1:]))
    trainer.generator_training.train_on_batch(lightness, [verdict, chroma / 110])
    for old, new in zip(before, trainer.discriminator.trainable_variables, strict=True):
        np.testing.assert_array_equal(old, new.numpy())
    own = [v.numpy() for v in generator.trainable_variables]
    assert 0 < trainer.step(lightness, chroma) < 1
    assert any((old != new.numpy()).any() for old, new in zip(own, generator.trainable_variables, strict=True))
    assert any(
        (old != new.numpy()).any() for old, new in zip(before, trainer.discriminator.trainable_variables, strict=True)
    )
