"""Export a run's weights as an ONNX file that follows the service's contract, within tolerances that are checked."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import keras
import numpy as np
import onnx
from keras import KerasTensor, layers, ops
from onnx import helper

from model_export import networks
from model_export.data import batching, sources
from model_export.export.model_files import check_name, write_model
from model_export.export.parity import ChromaDifference, ParityError
from model_export.weights import UnusableWeights, checkpoint, onnx_weights
from model_export.weights.post_processing import CAST_LAYER, PostProcessing
from model_export.weights.quantization import compress_weights
from service.imaging.color import Floats
from service.inference.contract import INPUT, OUTPUT, Contract
from service.inference.session import Engine

log = logging.getLogger(__name__)

OPSET = 18
# Tolerances between the network and its file, in units of the colour space. The conversion only changes the order of
# sums, so it must agree for every value. Compressed weights change uncertain colours more: only their mean is limited.
CONVERSION_TOLERANCE = {"lab": 0.1, "hsv": 0.001}
STORAGE_TOLERANCE = {"lab": 0.1, "hsv": 0.001}
# It is added to the square of a photograph's mean chroma, which may be 0.
EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class Labels:
    """The description of a model in its file, which `/models` shows."""

    name: str
    version: str
    license: str
    trained_on: str


@dataclass(frozen=True, slots=True)
class Choices:
    """The choices that an export leaves open.

    size: side of the input, pixels; that of the run's last stage if None. gain: the factor of the chroma. cast: the
    share of each photograph's mean chroma, in 0..1, that is removed. If gain or cast is None, it comes from
    `default_post_processing`. weights: the name of a weights file in the run's folder.
    """

    size: int | None = None
    gain: float | None = None
    cast: float | None = None
    weights: str = checkpoint.BEST


class CastReduction(layers.Layer):  # type: ignore[misc]
    """A layer that removes a share of each photograph's mean chroma: [N, s, s, 2] to the same shape.

    It subtracts share * c * mean from each pixel. c is the length of the pixel's chroma along the mean, divided by the
    length of the mean, and clipped to 0..1. So gray pixels and pixels of the opposite colour do not change.
    """

    def __init__(self, share: float) -> None:
        super().__init__(name=CAST_LAYER, dtype="float32", trainable=False)
        self.share = share

    def call(self, chroma: KerasTensor) -> KerasTensor:
        """Apply the layer; Keras calls it."""
        mean = ops.mean(chroma, axis=(1, 2), keepdims=True)
        square = ops.sum(ops.square(mean), axis=-1, keepdims=True) + EPSILON
        along = ops.sum(chroma * mean, axis=-1, keepdims=True) / square
        return chroma - self.share * mean * ops.clip(along, 0, 1)


def serving_model(
    network: keras.Model, setup: checkpoint.Setup, size: int, gain: float, cast: float = 0.0
) -> keras.Model:
    """Return the network with the contract's input and output: float32 [N, 1, S, S] to [N, 2, s, s].

    gain: the factor of the chroma. cast: the share of each photograph's mean chroma that is removed afterwards. A
    network predicts the mean of likely colours, which tends towards tan where little is known.
    """
    lightness = keras.Input((1, size, size), name=INPUT)
    # With one channel, moving its axis to the end is a reshape.
    output = network(layers.Reshape((size, size, 1))(lightness))
    chroma = networks.architecture(setup.recipe).chroma_layer(setup.recipe, setup.bins, gain)(output)
    if cast:
        chroma = CastReduction(cast)(chroma)
    return keras.Model(lightness, layers.Permute((3, 1, 2))(chroma), name="serving")


def to_onnx(model: keras.Model, contract: Contract) -> onnx.ModelProto:
    """Convert a serving model to ONNX with named axes and the contract's metadata. Its weights stay float32."""
    import tensorflow as tf
    import tf2onnx

    size = contract.input_size
    signature = [tf.TensorSpec([None, 1, size, size], tf.float32, name=INPUT)]
    function = tf.function(lambda lightness: model(lightness, training=False), input_signature=signature)
    proto, _ = tf2onnx.convert.from_function(function, input_signature=signature, opset=OPSET)
    _rename_output(proto.graph)
    for port in (*proto.graph.input, *proto.graph.output):
        port.type.tensor_type.shape.dim[0].dim_param = "batch"
    del proto.metadata_props[:]
    helper.set_model_props(proto, contract.to_metadata())
    proto.producer_name = "tomau"
    proto.producer_version = ""
    onnx.checker.check_model(proto, full_check=True)
    return cast("onnx.ModelProto", proto)


def _rename_output(graph: onnx.GraphProto) -> None:
    """Rename the graph's only output to the contract's name."""
    (output,) = graph.output
    old, output.name = output.name, OUTPUT
    for node in graph.node:
        node.output[:] = [OUTPUT if name == old else name for name in node.output]
        node.input[:] = [OUTPUT if name == old else name for name in node.input]


def predict_each(run: Callable[[Floats], Any], lightness: Floats) -> Floats:
    """Run a model on one photograph at a time: float32 [N, 1, S, S] to [N, 2, s, s]."""
    return np.concatenate([np.asarray(run(one[np.newaxis])) for one in lightness])


def _compress_weights(
    proto: onnx.ModelProto, check: Callable[[onnx.ModelProto], ChromaDifference], most: float
) -> tuple[onnx.ModelProto, ChromaDifference]:
    """Store the weights in 8 bits if that changes the output by at most `most` on average, otherwise in half precision.

    Raises ParityError if half precision changes it by more, too.
    """
    for int8 in (True, False):
        narrowed = onnx.ModelProto()
        narrowed.CopyFrom(proto)
        compress_weights(narrowed.graph, int8=int8)
        found = check(narrowed)
        if found.mean <= most:
            return narrowed, found
    raise ParityError(
        f"compressed weights change the output by {found.mean:.4f} on average, more than {most}: nothing was written"
    )


def export(
    run: Path, output: Path, photographs: Sequence[sources.Entry], labels: Labels, choices: Choices
) -> ChromaDifference:
    """Write `output` and its SHA-256 file; return the difference to the network's output.

    photographs: for the parity check. Raises ParityError, and writes nothing, if the difference is too large.
    """
    check_name(output)
    keras.config.set_dtype_policy("float32")
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError("tf2onnx exports only TensorFlow graphs: set KERAS_BACKEND=tensorflow")
    size = choices.size or checkpoint.load_setup(run).recipe.curriculum[-1].side
    network, setup = checkpoint.load_network(run, choices.weights, size)
    post = _post_processing(setup, choices.gain, choices.cast)
    color_space = setup.recipe.color_space
    contract = Contract(labels.name, labels.version, color_space, size, labels.license, labels.trained_on)
    model = serving_model(network, setup, size, post.gain, post.cast)
    whole = to_onnx(model, contract)
    photos, _ = batching.load_batch(photographs, size, batching.SampleSpec(color_space))
    lightness = np.ascontiguousarray(photos.transpose(0, 3, 1, 2))
    expected = predict_each(model.predict_on_batch, lightness)
    scale = max(1.0, post.gain)

    def check(proto: onnx.ModelProto) -> ChromaDifference:
        return ChromaDifference.between(
            expected, predict_each(Engine(output, proto.SerializeToString(), "cpu").predict, lightness)
        )

    converted = check(whole)
    if not converted.largest <= CONVERSION_TOLERANCE[color_space] * scale:
        raise ParityError(
            f"the ONNX graph differs from the Keras network by up to {converted.largest:.4f}: nothing was written"
        )
    proto, stored = _compress_weights(whole, check, STORAGE_TOLERANCE[color_space] * scale)
    for key, value in post.to_metadata().items():
        proto.metadata_props.add(key=key, value=value)
    if setup.recipe.network.kind == "compact":
        _embed(proto, whole, network.get_weights(), setup)
    write_model(output, proto.SerializeToString())
    return stored


def _embed(
    proto: onnx.ModelProto, whole: onnx.ModelProto, weights: checkpoint.Weights, setup: checkpoint.Setup
) -> None:
    """Add what training needs to start from the file. The service does not need it, so a failure is only logged."""
    try:
        onnx_weights.embed(proto, whole, weights, setup)
    except UnusableWeights as error:
        log.warning("no run can start from this file, only from the run's folder: %s", error)


def default_post_processing(setup: checkpoint.Setup) -> tuple[PostProcessing, str]:
    """Return the default post-processing of a run's exports, and a phrase that says where it comes from.

    It is that of the ONNX file that the run started from. Otherwise it is the recipe's gain, which the network was
    trained with, and no cast.
    """
    names = " and ".join(origin.rpartition(" ")[0] for origin in setup.origins)
    if setup.post_processing:
        return setup.post_processing, f"as in {names}, which the run started from"
    if any(origin.rpartition(" ")[0].endswith(".onnx") for origin in setup.origins):
        return PostProcessing(setup.recipe.gain, 0.0), f"of the recipe; the run's folder has none of {names}"
    return PostProcessing(setup.recipe.gain, 0.0), "of the recipe"


def _post_processing(setup: checkpoint.Setup, gain: float | None, cast: float | None) -> PostProcessing:
    """Return the gain and cast that were asked for, or the defaults, and print where they come from."""
    default, origin = default_post_processing(setup)
    taken = PostProcessing(default.gain if gain is None else gain, default.cast if cast is None else cast)
    print(
        f"gain {taken.gain:g} ({origin if gain is None else 'as asked for'}),"
        f" cast {taken.cast:g} ({origin if cast is None else 'as asked for'})"
    )
    return taken
