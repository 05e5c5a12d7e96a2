"""Shared fixtures: small models, photographs, a real server."""

import io
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import cv2
import httpx
import numpy as np
import onnx
import onnx.parser
import pytest
import skimage.data
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from service.inference.contract import INPUT, OUTPUT, Contract
from tests.waiting import WAIT_S, until


def contract(**changes: object) -> Contract:
    facts = {
        "name": "tint",
        "version": "1",
        "color_space": "lab",
        "input_size": 32,
        "license": "test",
        "data": "nothing",
    }
    return Contract(**(facts | changes))  # type: ignore[arg-type]


def tint_model(facts: Contract, chroma: tuple[float, float], *, metadata: dict[str, str] | None = None) -> bytes:
    """Return a model whose chroma is the lightness, at a quarter of its size, times a constant chroma."""
    size = facts.input_size
    weight = np.array(chroma, np.float32).reshape(2, 1, 1, 1)
    graph = helper.make_graph(
        [
            helper.make_node("AveragePool", [INPUT], ["small"], kernel_shape=[4, 4], strides=[4, 4]),
            helper.make_node("Conv", ["small", "weight"], [OUTPUT]),
        ],
        "tint",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", 1, size, size])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", 2, size // 4, size // 4])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, facts.to_metadata() if metadata is None else metadata)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def put_model(folder: Path, version: str, chroma: tuple[float, float] = (40.0, 30.0), name: str = "compact") -> None:
    """Write a model's file, and replace an older one atomically, as an operator should do."""
    new = folder / f"{name}.new"
    new.write_bytes(tint_model(contract(name=name, version=version), chroma))
    new.replace(folder / f"{name}.onnx")


def unrunnable_model() -> bytes:
    """Return a model that loads but can't run: the shape of its Reshape is computed, and does not fit."""
    size = 32
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMax", [INPUT], ["brightest"], keepdims=0),
            helper.make_node("Cast", ["brightest"], ["whole"], to=TensorProto.INT64),
            helper.make_node("Add", ["whole", "sides"], ["shape"]),
            helper.make_node("Reshape", [INPUT, "shape"], [OUTPUT]),
        ],
        "broken",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", 1, size, size])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", 2, "h", "w"])],
        [numpy_helper.from_array(np.array([1, 2, 5, 7]), "sides")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, contract(name="broken").to_metadata())
    return model.SerializeToString()


# The moody model fails on uniform photos of these grays, 0..255. Each is inside one of its bands of mean lightness.
HANGS, ANSWERS_NAN, RAISES, ANSWERS_ANOTHER_SHAPE = 255, 232, 204, 177
MOODY = """
<ir_version: 10, opset_import: ["": 18]>
moody (float[batch, 1, 32, 32] lightness) => (float[batch, 2, h, w] chroma)
<float weight = {25}, float zero = {0}, float one = {1}, bool go_on = {1}, int64 for_ever = {1099511627776},
 int64[4] shape = {0, 2, 8, 8}, int64[4] unfit = {0, 0, 1, 0}, int64[4] other = {0, -1, 8, 0},
 float a = {0.97}, float b = {0.95}, float c = {0.9}, float d = {0.85}, float e = {0.8}, float f = {0.75},
 float g = {0.7}>
{
    mean = ReduceMean <keepdims = 0> (lightness)
    small = AveragePool <kernel_shape = [4, 4], strides = [4, 4]> (lightness)
    one_plane = Mul (small, weight)
    tinted = Concat <axis = 1> (one_plane, one_plane)
    hangs = Greater (mean, a)
    under_b = Less (mean, b)
    over_c = Greater (mean, c)
    is_nan = And (under_b, over_c)
    under_d = Less (mean, d)
    over_e = Greater (mean, e)
    raises = And (under_d, over_e)
    under_f = Less (mean, f)
    over_g = Greater (mean, g)
    reshapes = And (under_f, over_g)
    nan = Div (zero, zero)
    factor = Where (is_nan, nan, one)
    perhaps_nan = Mul (tinted, factor)
    hangs_int = Cast <to = 7> (hangs)
    trips = Mul (hangs_int, for_ever)
    late = Loop (trips, go_on, zero) <body = turn (int64 number, bool going, float value)
        => (bool still, float next) { still = Identity (going) next = Mul (value, value) }>
    perhaps_late = Add (perhaps_nan, late)
    raises_int = Cast <to = 7> (raises)
    by_raises = Mul (raises_int, unfit)
    reshapes_int = Cast <to = 7> (reshapes)
    by_reshapes = Mul (reshapes_int, other)
    almost = Add (shape, by_raises)
    last = Add (almost, by_reshapes)
    chroma = Reshape (perhaps_late, last)
}
"""


def moody_model(facts: Contract) -> bytes:
    """Return a model that tints a photo, but fails in a different way on each of the photos named above."""
    model = onnx.parser.parse_model(MOODY)
    helper.set_model_props(model, facts.to_metadata())
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.fixture(scope="session", autouse=True)
def patient_clients() -> Iterator[None]:
    """Give httpx the timeout of the tests. Its own five seconds are too short on a busy machine."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("get", "head", "options", "post", "put", "delete", "request", "stream", "Client", "AsyncClient"):
            patch.setattr(httpx, name, partial(getattr(httpx, name), timeout=WAIT_S))
        yield


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a `lab` model, named as the default one, and an `hsv` model."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "compact.onnx").write_bytes(tint_model(contract(name="compact"), (20.0, 30.0)))
    (folder / "warm.onnx").write_bytes(tint_model(contract(name="warm", color_space="hsv"), (0.3, 0.3)))
    return folder


@pytest.fixture(scope="session")
def astronaut() -> np.ndarray:
    """Return a colour photograph, uint8 RGB [512, 512, 3]."""
    return skimage.data.astronaut()


@pytest.fixture(scope="session")
def gray(astronaut: np.ndarray) -> np.ndarray:
    """Return the luma of a part of the same photograph, with odd sides: uint8 [333, 501]."""
    return cv2.cvtColor(astronaut, cv2.COLOR_RGB2GRAY)[:333, :501].copy()


def encoded(pixels: np.ndarray, format_: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format_, **options)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def jpeg(gray: np.ndarray) -> bytes:
    """Return the gray photograph as a JPEG of quality 90."""
    return encoded(gray, "JPEG", quality=90)


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def luma(data: bytes) -> np.ndarray:
    """Return the Y plane of an encoded image, as stored if it is a JPEG."""
    image = Image.open(io.BytesIO(data))
    if image.format == "JPEG":
        image.draft("L", image.size)
    return np.asarray(image.convert("L")).astype(int)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment_of(**settings: object) -> dict[str, str]:
    """Return this process's environment, with these settings of the service and no others."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TOMAU_")}
    return environment | {f"TOMAU_{key.upper()}": str(value) for key, value in settings.items() if value is not None}


class Server:
    """A process of `tomau serve`."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.log = log

    def wait_until_ready(self) -> None:
        """Wait until it is ready. Raises RuntimeError if it ends instead, AssertionError on a timeout."""
        until(self._is_ready, pause=0.05)

    def _is_ready(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(self.log.read_text())
        try:
            return httpx.get(f"{self.url}/readyz").status_code == 200
        except httpx.TransportError:
            return False


Serve = Callable[..., "contextmanager[Server]"]


@pytest.fixture(scope="session")
def serve(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Serve:
    """Return a function that starts a server with the given settings, as a context manager. shell: how it is called."""

    @contextmanager
    def start(*, shell: str = 'exec "$@"', **settings: object) -> Iterator[Server]:
        port = free_port()
        log = tmp_path_factory.mktemp("server") / "log"
        environment = environment_of(**{"models": models, "port": port, **settings})
        with log.open("wb") as output:
            command = ["sh", "-c", shell, "sh", str(Path(sys.executable).with_name("tomau")), "serve"]
            process = subprocess.Popen(command, env=environment, stderr=output, stdout=output)
        server = Server(process, port, log)
        try:
            server.wait_until_ready()
            yield server
        except BaseException as error:
            error.add_note(
                f"The server's exit status: {process.poll()}; the end of its log:\n{log.read_text()[-4000:]}"
            )
            raise
        finally:
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(WAIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    return start


@pytest.fixture(scope="session")
def server(serve: Serve) -> Iterator[Server]:
    """Return a server with the default settings and the small models."""
    with serve() as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url) as session:
        yield session
