"""What several test files share: small models, photographs, a real server."""

import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import httpx
import numpy as np
import onnx
import pytest
import skimage.data
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from service.contract import INPUT, OUTPUT, Contract


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
    """A graph that answers lightness, a quarter of its size, times a chroma: brighter is more colourful."""
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


def unrunnable_model() -> bytes:
    """A graph that loads: the shape that it reshapes to is computed, so that only a run shows that it does not fit."""
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


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `lab` model, named as the default one, and an `hsv` one."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "compact.onnx").write_bytes(tint_model(contract(name="compact"), (20.0, 30.0)))
    (folder / "warm.onnx").write_bytes(tint_model(contract(name="warm", color_space="hsv"), (0.3, 0.3)))
    return folder


@pytest.fixture(scope="session")
def astronaut() -> np.ndarray:
    """A colour photograph, uint8 RGB [512, 512, 3]."""
    return skimage.data.astronaut()


@pytest.fixture(scope="session")
def gray(astronaut: np.ndarray) -> np.ndarray:
    """The same photograph as luma, with odd sides: uint8 [333, 501]."""
    return cv2.cvtColor(astronaut, cv2.COLOR_RGB2GRAY)[:333, :501].copy()


def encoded(pixels: np.ndarray, format_: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format_, **options)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def jpeg(gray: np.ndarray) -> bytes:
    """The gray photograph as a JPEG of quality 90."""
    return encoded(gray, "JPEG", quality=90)


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def luma(data: bytes) -> np.ndarray:
    """The Y plane of an encoded picture, as it is stored where there is one."""
    image = Image.open(io.BytesIO(data))
    if image.format == "JPEG":
        image.draft("L", image.size)
    return np.asarray(image.convert("L")).astype(int)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A `tomau serve` of its own."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.log = log

    def wait_until_ready(self) -> None:
        for _ in range(400):
            if self.process.poll() is not None:
                raise RuntimeError(self.log.read_text())
            try:
                if httpx.get(f"{self.url}/readyz", timeout=1).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        raise TimeoutError(self.log.read_text())


Serve = Callable[..., "contextmanager[Server]"]


@pytest.fixture(scope="session")
def serve(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Serve:
    """A function that starts a server with settings of its own, as a context manager."""

    @contextmanager
    def start(**settings: object) -> Iterator[Server]:
        port = free_port()
        log = tmp_path_factory.mktemp("server") / "log"
        changed = {"MODELS": models, "PORT": port, **settings}
        environment = {key: value for key, value in os.environ.items() if not key.startswith("TOMAU_")}
        environment |= {f"TOMAU_{key.upper()}": str(value) for key, value in changed.items() if value is not None}
        with log.open("wb") as output:
            command = [str(Path(sys.executable).with_name("tomau")), "serve"]
            process = subprocess.Popen(command, env=environment, stderr=output, stdout=output)
        server = Server(process, port, log)
        try:
            server.wait_until_ready()
            yield server
        finally:
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    return start


@pytest.fixture(scope="session")
def server(serve: Serve) -> Iterator[Server]:
    """A server with the default settings and the small models."""
    with serve() as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as session:
        yield session
