"""A run's best weights as an ONNX file that obeys the service's contract."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import keras
import numpy as np
import onnx
from keras import layers
from onnx import helper

from model_export import checkpoint, data, networks, readback, sources
from model_export.model_files import check_name, write_model
from model_export.narrow import narrow
from service.color import Floats
from service.contract import INPUT, OUTPUT, Contract
from service.engine import Engine

OPSET = 18
# Kernels that are stored narrowly move the answer by this much at most, in units of the space's own scale.
TOLERANCE = {"lab": 0.5, "hsv": 0.005}


class ParityError(RuntimeError):
    """The ONNX file answers something else than the network it was made of."""


@dataclass(frozen=True, slots=True)
class Parity:
    """Differences between network and ONNX file over real photographs, in chroma's units."""

    largest: float
    mean: float


def serving_model(network: keras.Model, setup: checkpoint.Setup, size: int, gain: float) -> keras.Model:
    """The network as the contract wants it: float32 [N, 1, S, S] to [N, 2, s, s]."""
    lightness = keras.Input((1, size, size), name=INPUT)
    # One channel: moving its axis to the end is a reshape.
    answer = network(layers.Reshape((size, size, 1))(lightness))
    chroma = networks.of(setup.recipe).chroma(setup.recipe, setup.bins, gain)(answer)
    return keras.Model(lightness, layers.Permute((3, 1, 2))(chroma), name="serving")


def to_onnx(model: keras.Model, contract: Contract) -> onnx.ModelProto:
    """Converts a serving model; names its axes; stores its weights narrowly; adds the contract."""
    import tensorflow as tf
    import tf2onnx

    size = contract.input_size
    signature = [tf.TensorSpec([None, 1, size, size], tf.float32, name=INPUT)]
    function = tf.function(lambda lightness: model(lightness, training=False), input_signature=signature)
    proto, _ = tf2onnx.convert.from_function(function, input_signature=signature, opset=OPSET)
    _rename_output(proto.graph)
    for port in (*proto.graph.input, *proto.graph.output):
        port.type.tensor_type.shape.dim[0].dim_param = "batch"
    narrow(proto.graph)
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


def parity(model: keras.Model, engine: Engine, lightness: Floats) -> Parity:
    """Runs both on the same lightness, float32 [N, 1, S, S]."""
    want = np.concatenate([model.predict_on_batch(one[np.newaxis]) for one in lightness])
    have = np.concatenate([engine.predict(one[np.newaxis]) for one in lightness])
    difference = np.abs(want - have)
    return Parity(float(difference.max()), float(difference.mean()))


def export(
    run: Path,
    output: Path,
    *,
    name: str,
    version: str,
    size: int | None,
    gain: float | None,
    license_: str,
    trained_on: str,
    photographs: Sequence[sources.Entry],
    weights: str = checkpoint.BEST,
) -> Parity:
    """Writes `output` and, beside it, its SHA-256; returns how far it is from the network.

    size: side of the input; that of the run's last stage if None. gain: what the chroma is multiplied with; that of the
    recipe if None, which the network was trained for. photographs: real ones for the parity check.
    Raises ParityError, and writes nothing, when it is off.
    """
    check_name(output)
    keras.config.set_dtype_policy("float32")
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError("tf2onnx exports TensorFlow graphs: set KERAS_BACKEND=tensorflow")
    recipe = checkpoint.load_setup(run).recipe
    size = size or recipe.curriculum[-1].side
    gain = recipe.gain if gain is None else gain
    network, setup = checkpoint.load_network(run, weights, size)
    color_space = setup.recipe.color_space
    contract = Contract(name, version, color_space, size, license_, trained_on)
    model = serving_model(network, setup, size, gain)
    proto = to_onnx(model, contract)
    if setup.recipe.network.kind == "compact":
        readback.embed(proto, network.get_weights(), setup)
    content = proto.SerializeToString()
    lightness, _ = data.fixed(photographs, size, data.Form(color_space))
    found = parity(model, Engine(output, content, "cpu"), np.ascontiguousarray(lightness.transpose(0, 3, 1, 2)))
    tolerance = TOLERANCE[color_space] * max(1.0, gain)
    if not found.largest <= tolerance:
        raise ParityError(f"ONNX differs from Keras by {found.largest:.4f}, more than {tolerance}")
    write_model(output, content)
    return found
