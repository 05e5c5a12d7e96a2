"""Executors: each the right to run one batch of a model, and on a GPU the memory to run it in.

On a GPU a batch goes from pinned host memory into the GPU's input, is run there, and comes back as one new array. All
of that memory is allocated once for each batch size of each executor, so two batches never share any.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol

import numpy as np
import onnxruntime as ort

from service.imaging.color import Floats
from service.inference.contract import INPUT, OUTPUT

log = logging.getLogger(__name__)

Device = Literal["cpu", "cuda"]
# Of N photos, [N, 1, S, S]: one array, or one of [1, S, S] for each photo, which are then copied only once.
Batch = Floats | Sequence[Floats]
PROVIDERS: dict[Device, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# Names of captured CUDA graphs, in ORT's run option: each session has one, and some runs are no part of it.
GRAPH, NO_GRAPH = "1", "-1"


# Beyond every colour space, and far from where float32 overflows on the way to RGB.
LARGEST_CHROMA = 10_000.0


class EngineError(RuntimeError):
    """A model could not be loaded on the device that was asked for, or answered nonsense."""


class Predictor(Protocol):
    """What a batcher needs of an executor."""

    def predict(self, lightness: Batch) -> Floats:
        """Lightness, float32 [N, 1, S, S], to chroma, float32 [N, 2, s, s]."""


@dataclass(frozen=True, slots=True)
class DeviceRef:
    """Where a session takes its input and leaves its output; `id` is the GPU's number."""

    device: Device
    id: int = 0


def _check_shape(shape: tuple[int, ...], batch: int, name: str) -> None:
    if len(shape) != 4 or shape[:2] != (batch, 2) or 0 in shape:
        raise EngineError(f"model {name} answered the shape {shape}, not [{batch}, 2, s, s]")


def _check_values(chroma: Floats, name: str) -> Floats:
    largest = np.abs(chroma).max()
    if not largest < LARGEST_CHROMA:  # not even when it is NaN
        raise EngineError(f"model {name} answered values that are not finite, or no colours: {largest:g}")
    return chroma


class CpuExecutor:
    """Plain runs of a session, for any number of threads at once: on a CPU there is nothing to copy or to pad."""

    def __init__(self, session: ort.InferenceSession, name: str) -> None:
        self._session = session
        self._name = name

    def predict(self, lightness: Batch) -> Floats:
        """Lightness, float32 [N, 1, S, S], to chroma, float32 [N, 2, s, s].

        Raises EngineError when the answer has another shape or is not finite.
        """
        joined = lightness if isinstance(lightness, np.ndarray) else np.stack(lightness)
        (chroma,) = self._session.run([OUTPUT], {INPUT: joined})
        _check_shape(chroma.shape, len(lightness), self._name)
        return _check_values(np.asarray(chroma, np.float32), self._name)


def _pinned_info(id_: int) -> Any:
    """How ONNX Runtime names the pinned host memory of a GPU.

    Either the CUDA provider is a plug-in, which brings the allocator with it, or it is a part of ONNX Runtime; then
    the allocator is registered by hand.
    """
    for device in ort.get_ep_devices():
        info = device.memory_info(ort.OrtDeviceMemoryType.HOST_ACCESSIBLE)
        if device.ep_name == PROVIDERS["cuda"] and info is not None and info.device_id == id_:
            return info
    info = ort.OrtMemoryInfo("CudaPinned", ort.OrtAllocatorType.ORT_DEVICE_ALLOCATOR, id_, ort.OrtMemType.CPU_OUTPUT)
    ort.create_and_register_allocator_v2(PROVIDERS["cuda"], info, {}, ort.OrtArenaCfg({}))
    return info


@cache
def _pinned(id_: int) -> Any:
    """The `memory_info` of a GPU's pinned host memory; None where ORT gives none to Python, which is told once.

    `ortvalue_from_shape_and_type` takes it since onnxruntime #28038 (April 2026).
    """
    try:
        info = _pinned_info(id_)
        ort.OrtValue.ortvalue_from_shape_and_type((1,), np.float32, memory_info=info)
    except Exception as error:
        log.warning("no pinned memory for GPU %d, copies to it take longer: %s", id_, error)
        return None
    return info


def host_memory(shape: tuple[int, ...], place: DeviceRef) -> ort.OrtValue:
    """Memory of the host, float32, that the place's device is quick to read."""
    info = _pinned(place.id) if place.device == "cuda" else None
    if info is None:
        return ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32)
    return ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, memory_info=info)


def _run_options(graph: str) -> ort.RunOptions:
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", graph)
    return options


class BoundSession:
    """A session that runs one batch size, and the memory of its input and output. For one thread at a time.

    What is bound stays on the GPU, as CUDA graphs need it, and is copied before and after the run; for so long the
    other threads of Python wait. Host memory can't be bound instead: ordinary memory is copied when it is bound and
    not when it is run, and pinned memory counts as the GPU's own, so kernels would fetch it number by number (seen
    with ORT 1.31).
    """

    def __init__(self, session: ort.InferenceSession, batch: int, size: int, place: DeviceRef, name: str) -> None:
        """size: S, pixels. Runs the session once, on black photos, which tells the shape of the answer."""
        shape = (batch, 1, size, size)
        self._session = session
        self._host_value = host_memory(shape, place)
        self._host: Floats = self._host_value.numpy()
        self._host[:] = 0
        self._input = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, place.device, place.id)
        self._input.update_inplace(self._host)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(INPUT, self._input)
        self._bind_output(place, batch, name)
        self._options = _run_options(GRAPH)

    def _bind_output(self, place: DeviceRef, batch: int, name: str) -> None:
        """Keeps the memory that ORT allocates for the first answer: later ones are written there too."""
        self._binding.bind_output(OUTPUT, place.device, place.id)
        self._session.run_with_iobinding(self._binding, _run_options(NO_GRAPH))
        (output,) = self._binding.get_outputs()
        _check_shape(tuple(output.shape()), batch, name)
        self._output = output
        self._binding.bind_ortvalue_output(OUTPUT, output)

    def run(self, lightness: Batch) -> Floats:
        """Lightness, float32 [n, 1, S, S], n at most the batch size, to chroma, float32 [n, 2, s, s], a new array."""
        count = len(lightness)
        for place, one in zip(self._host, lightness, strict=False):
            place[:] = one
        # No photo of an earlier batch may have a part in this one.
        self._host[count:] = 0
        self._input.update_inplace(self._host)
        self._session.run_with_iobinding(self._binding, self._options)
        # One copy, straight into the array that is handed out. Pinned memory in between would only add a second one.
        (chroma,) = self._binding.copy_outputs_to_cpu()
        return np.asarray(chroma[:count], np.float32)


class PaddingExecutor:
    """Runs batches of any size, padded to the next of its batch sizes, one at a time."""

    def __init__(self, sessions: Mapping[int, ort.InferenceSession], size: int, place: DeviceRef, name: str) -> None:
        """sessions: by batch size, each seeing no other; they may be those of other executors too."""
        self._bound = {
            batch: BoundSession(session, batch, size, place, name) for batch, session in sorted(sessions.items())
        }
        self._name = name
        # A batcher never runs two at once. Were it to, one photo would get another's colours.
        self._lock = threading.Lock()

    def predict(self, lightness: Batch) -> Floats:
        """Lightness, float32 [N, 1, S, S], to chroma, float32 [N, 2, s, s], N at most the largest batch size.

        Raises EngineError when the answer is not finite.
        """
        batch = next(size for size in self._bound if size >= len(lightness))
        with self._lock:
            chroma = self._bound[batch].run(lightness)
        return _check_values(chroma, self._name)


class SingleThreadExecutor:
    """Makes and runs an executor in one thread of its own, whoever calls.

    ONNX Runtime keeps a captured CUDA graph and its stream in the context of the thread that captured it, and replays
    the very addresses of that time. Batches are run by whichever caller leads: without this each would capture anew.
    """

    def __init__(self, make: Callable[[], Predictor]) -> None:
        self._thread = ThreadPoolExecutor(1, "executor")
        self._predictor = self._thread.submit(make).result()

    def predict(self, lightness: Batch) -> Floats:
        """As the executor's own."""
        return self._thread.submit(self._predictor.predict, lightness).result()
