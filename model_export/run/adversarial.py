"""Adversarial training: a generator against a discriminator, as in the second half of the second tutorial."""

import keras
import numpy as np

from model_export.networks import unet_gan
from model_export.recipe import UNet
from service.imaging.color import Floats


class _GeneratorTraining(keras.Model):  # type: ignore[misc]
    """The generator followed by the discriminator. Only the generator's weights are trainable.

    Outputs: the discriminator's verdict and the predicted ab. The discriminator runs in training mode: its batch norm
    uses the batch, which a layer with `trainable = False` would not do.
    """

    def __init__(self, generator: keras.Model, discriminator: keras.Model) -> None:
        lightness = generator.inputs[0]
        answer = generator(lightness)
        verdict = discriminator([lightness, answer])
        super().__init__(inputs=lightness, outputs=[verdict, answer], name="generator_training")
        self._learning = {id(variable) for variable in generator.trainable_variables}

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        return [variable for variable in self.variables if id(variable) in self._learning]

    @property
    def non_trainable_variables(self) -> list[keras.Variable]:
        return [variable for variable in self.variables if id(variable) not in self._learning]

    @property
    def trainable_weights(self) -> list[keras.Variable]:
        return self.trainable_variables

    @property
    def non_trainable_weights(self) -> list[keras.Variable]:
        return self.non_trainable_variables


def _discriminator_training(discriminator: keras.Model) -> keras.Model:
    """Return a model that applies the discriminator to true and predicted ab, each normalized by itself."""
    lightness, true = discriminator.inputs
    answered = keras.Input(true.shape[1:], name="answered")
    verdicts = [discriminator([lightness, true]), discriminator([lightness, answered])]
    return keras.Model([lightness, true, answered], verdicts, name="discriminator_training")


class AdversarialTrainer:
    """A trainer that alternates between the discriminator and the generator.

    The discriminator learns to tell true ab from predicted ab. The generator learns to be taken for true and to keep a
    small L1 error. Unlike the tutorial, the generator runs twice a step: once for the discriminator and once for its
    own update. So the two passes use different dropout, and the generator's batch-norm statistics are updated twice.
    """

    def __init__(self, generator: keras.Model, settings: UNet, jit_compile: bool | str) -> None:
        self.generator = generator
        self.learning_rate = settings.adversarial_rate
        self.discriminator = unet_gan.build_discriminator()
        verdict = keras.losses.BinaryCrossentropy(from_logits=True)
        self.discriminator_training = _discriminator_training(self.discriminator)
        self.discriminator_training.compile(
            keras.optimizers.Adam(settings.adversarial_rate, beta_1=0.5),
            loss=[verdict, verdict],
            loss_weights=[0.5, 0.5],
            jit_compile=jit_compile,
        )
        self.generator_training = _GeneratorTraining(generator, self.discriminator)
        self.generator_training.compile(
            keras.optimizers.Adam(settings.adversarial_rate, beta_1=0.5),
            loss=[verdict, unet_gan.absolute_error],
            loss_weights=[1.0, settings.l1_weight],
            jit_compile=jit_compile,
        )

    def step(self, lightness: Floats, chroma: Floats, ramp: float = 1.0) -> float:
        """Train both on a batch and return the generator's mean L1 error, in units of 110 (`unet_gan.AB_RANGE`).

        ramp: the factor of both learning rates.
        """
        for model in (self.discriminator_training, self.generator_training):
            model.optimizer.learning_rate = ramp * self.learning_rate
        true = chroma / np.float32(unet_gan.AB_RANGE)
        answered = keras.ops.convert_to_numpy(self.generator(lightness, training=True)).astype(np.float32)
        verdict = np.ones((len(true), *self.discriminator.compute_output_shape([lightness.shape, true.shape])[1:]))
        self.discriminator_training.train_on_batch([lightness, true, answered], [verdict, np.zeros_like(verdict)])
        self.generator_training.train_on_batch(lightness, [verdict, true])
        return float(np.abs(answered - true).mean())
