"""A run's best weights as an ONNX file that obeys the service's contract."""

import logging
from collections.abc import Callable, Sequence
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
from model_export.export.parity import ChromaDifference
from model_export.weights import UnusableWeights, checkpoint, onnx_weights
from model_export.weights.post_processing import CAST_LAYER, PostProcessing
from model_export.weights.quantization import compress_weights
from service.imaging.color import Floats
from service.inference.contract import INPUT, OUTPUT, Contract
from service.inference.session import Engine

log = logging.getLogger(__name__)

OPSET = 18
# What may come between the network and its file, in units of the space's own scale. A conversion adds up in another
# order; it must agree everywhere. Weights stored narrowly move a colour that was in doubt a good deal, and few others:
# on average by no more than this.
CONVERSION_TOLERANCE = {"lab": 0.1, "hsv": 0.001}
STORAGE_TOLERANCE = {"lab": 0.1, "hsv": 0.001}
# Beside the square of a photograph's mean chroma, which may be nothing.
EPSILON = 1e-6


class ParityError(RuntimeError):
    """The ONNX file answers something else than the network it was made of."""


class CastReduction(layers.Layer):  # type: ignore[misc]
    """InputKind a share of each photograph's mean chroma from what leans the same way: [N, s, s, 2] to the same.

    All of that share from a place that has as much of it as the mean or more, in proportion from one that has less,
    and nothing from one that has none or leans the other way: what is gray stays gray.
    """

    def __init__(self, share: float) -> None:
        super().__init__(name=CAST_LAYER, dtype="float32", trainable=False)
        self.share = share

    def call(self, chroma: KerasTensor) -> KerasTensor:
        """Keras."""
        mean = ops.mean(chroma, axis=(1, 2), keepdims=True)
        square = ops.sum(ops.square(mean), axis=-1, keepdims=True) + EPSILON
        along = ops.sum(chroma * mean, axis=-1, keepdims=True) / square
        return chroma - self.share * mean * ops.clip(along, 0, 1)


def serving_model(
    network: keras.Model, setup: checkpoint.Setup, size: int, gain: float, cast: float = 0.0
) -> keras.Model:
    """The network as the contract wants it: float32 [N, 1, S, S] to [N, 2, s, s].

    gain: what the chroma is multiplied with. cast: the share of a photograph's mean chroma that is then taken away: an
    answer that is a mean of what is likely leans to tan where nothing is known.
    """
    lightness = keras.Input((1, size, size), name=INPUT)
    # One channel: moving its axis to the end is a reshape.
    answer = network(layers.Reshape((size, size, 1))(lightness))
    chroma = networks.architecture(setup.recipe).chroma_layer(setup.recipe, setup.bins, gain)(answer)
    if cast:
        chroma = CastReduction(cast)(chroma)
    return keras.Model(lightness, layers.Permute((3, 1, 2))(chroma), name="serving")


def to_onnx(model: keras.Model, contract: Contract) -> onnx.ModelProto:
    """Converts a serving model; names its axes; adds the contract. Its weights stay float32."""
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
    (output,) = graph.output
    old, output.name = output.name, OUTPUT
    for node in graph.node:
        node.output[:] = [OUTPUT if name == old else name for name in node.output]
        node.input[:] = [OUTPUT if name == old else name for name in node.input]


def predict_each(run: Callable[[Floats], Any], lightness: Floats) -> Floats:
    """Of one photograph at a time, float32 [N, 1, S, S] to [N, 2, s, s]."""
    return np.concatenate([np.asarray(run(one[np.newaxis])) for one in lightness])


def _compress_weights(
    proto: onnx.ModelProto, check: Callable[[onnx.ModelProto], ChromaDifference], most: float
) -> tuple[onnx.ModelProto, ChromaDifference]:
    """In eight bits where these move the answer by `most` at most, else in half precision."""
    for int8 in (True, False):
        narrowed = onnx.ModelProto()
        narrowed.CopyFrom(proto)
        compress_weights(narrowed.graph, int8=int8)
        found = check(narrowed)
        if found.mean <= most:
            return narrowed, found
    raise ParityError(f"weights stored narrowly move the answer by {found.mean:.4f} on average, more than {most}")


def export(
    run: Path,
    output: Path,
    *,
    name: str,
    version: str,
    size: int | None,
    gain: float | None = None,
    cast: float | None = None,
    license_: str,
    trained_on: str,
    photographs: Sequence[sources.Entry],
    weights: str = checkpoint.BEST,
) -> ChromaDifference:
    """Write `output` and, beside it, its SHA-256; return how far it is from the network.

    size: side of the input; that of the run's last stage if None. gain: what the chroma is multiplied with. cast: the
    share of each photograph's mean chroma, in 0..1, that is taken away. Each is by default what
    `default_post_processing` says. photographs: real ones for the parity check.
    Raises ParityError, and writes nothing, when the file is off.
    """
    check_name(output)
    keras.config.set_dtype_policy("float32")
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError("tf2onnx exports TensorFlow graphs: set KERAS_BACKEND=tensorflow")
    size = size or checkpoint.load_setup(run).recipe.curriculum[-1].side
    network, setup = checkpoint.load_network(run, weights, size)
    post = _post_processing(setup, gain, cast)
    color_space = setup.recipe.color_space
    contract = Contract(name, version, color_space, size, license_, trained_on)
    model = serving_model(network, setup, size, post.gain, post.cast)
    whole = to_onnx(model, contract)
    photos, _ = batching.load_batch(photographs, size, batching.SampleSpec(color_space))
    lightness = np.ascontiguousarray(photos.transpose(0, 3, 1, 2))
    wanted = predict_each(model.predict_on_batch, lightness)
    scale = max(1.0, post.gain)

    def check(proto: onnx.ModelProto) -> ChromaDifference:
        return ChromaDifference.between(
            wanted, predict_each(Engine(output, proto.SerializeToString(), "cpu").predict, lightness)
        )

    converted = check(whole)
    if not converted.largest <= CONVERSION_TOLERANCE[color_space] * scale:
        raise ParityError(f"ONNX differs from Keras by {converted.largest:.4f} at most")
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
    """Add what training needs to go on from the file. It can be served without that, so a failure is only told."""
    try:
        onnx_weights.embed(proto, whole, weights, setup)
    except UnusableWeights as error:
        log.warning("training can't go on from this file, only from the run's folder: %s", error)


def default_post_processing(setup: checkpoint.Setup) -> tuple[PostProcessing, str]:
    """Return the post-processing of a run's exports, and where it comes from.

    It is that of the ONNX file that the run began with. Otherwise it is the recipe's gain, which the network was
    trained for, and no cast.
    """
    names = " and ".join(origin.rpartition(" ")[0] for origin in setup.origins)
    if setup.post_processing:
        return setup.post_processing, f"as in {names}, which the run began with"
    if any(origin.rpartition(" ")[0].endswith(".onnx") for origin in setup.origins):
        return PostProcessing(setup.recipe.gain, 0.0), f"of the recipe; the run's folder says none of {names}"
    return PostProcessing(setup.recipe.gain, 0.0), "of the recipe"


def _post_processing(setup: checkpoint.Setup, gain: float | None, cast: float | None) -> PostProcessing:
    """Return what is asked for, by default what the run has, and say where it comes from."""
    default, origin = default_post_processing(setup)
    taken = PostProcessing(default.gain if gain is None else gain, default.cast if cast is None else cast)
    print(
        f"gain {taken.gain:g} ({origin if gain is None else 'as asked for'}),"
        f" cast {taken.cast:g} ({origin if cast is None else 'as asked for'})"
    )
    return taken
