"""Executors. Each is the right to run one batch of a model at a time, and on a GPU the memory for it.

On a GPU, a batch is copied from pinned host memory into the input on the GPU. The output comes back as a new array.
This memory is allocated once for each batch size of each executor, so that two batches never share memory.
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
# The lightness of N photos: one array [N, 1, S, S], or N arrays [1, S, S], which saves one copy.
Batch = Floats | Sequence[Floats]
PROVIDERS: dict[Device, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# Values of ORT's run option for CUDA graphs: the graph of the session, or a run without a graph.
GRAPH, NO_GRAPH = "1", "-1"
# Larger than any chroma in either colour space, and far below where float32 overflows on the way to RGB.
LARGEST_CHROMA = 10_000.0


class EngineError(RuntimeError):
    """A model can't be loaded or run on the requested device, or its output is invalid."""


class Predictor(Protocol):
    """The interface that a batcher uses of an executor."""

    def predict(self, lightness: Batch) -> Floats:
        """Return the chroma, float32 [N, 2, s, s], for lightness, float32 [N, 1, S, S]."""


@dataclass(frozen=True, slots=True)
class DeviceRef:
    """The device that holds the input and the output of a session. `id` is the number of the GPU."""

    device: Device
    id: int = 0


def _check_shape(shape: tuple[int, ...], batch: int, name: str) -> None:
    if len(shape) != 4 or shape[:2] != (batch, 2) or 0 in shape:
        raise EngineError(f"model {name} returned the shape {shape}, not [{batch}, 2, s, s]")


def _check_values(chroma: Floats, name: str) -> Floats:
    largest = np.abs(chroma).max()
    if not largest < LARGEST_CHROMA:  # This is true for NaN, too.
        raise EngineError(f"model {name} returned values that are not finite or too large for chroma: {largest:g}")
    return chroma


class CpuExecutor:
    """Runs a session on the CPU, from any number of threads concurrently. Nothing is copied or padded."""

    def __init__(self, session: ort.InferenceSession, name: str) -> None:
        self._session = session
        self._name = name

    def predict(self, lightness: Batch) -> Floats:
        """Return the chroma, float32 [N, 2, s, s], for lightness, float32 [N, 1, S, S].

        Raises EngineError if the output has another shape or is not finite.
        """
        joined = lightness if isinstance(lightness, np.ndarray) else np.stack(lightness)
        (chroma,) = self._session.run([OUTPUT], {INPUT: joined})
        _check_shape(chroma.shape, len(lightness), self._name)
        return _check_values(np.asarray(chroma, np.float32), self._name)


def _pinned_info(id_: int) -> Any:
    """Return ONNX Runtime's description of the pinned host memory of a GPU.

    If the CUDA provider is a plug-in, it has registered the allocator. If it is a part of ONNX Runtime, this function
    registers the allocator.
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
    """Return the `memory_info` of a GPU's pinned host memory, or None with one warning if ORT does not offer it.

    `ortvalue_from_shape_and_type` accepts it since onnxruntime #28038 (April 2026).
    """
    try:
        info = _pinned_info(id_)
        ort.OrtValue.ortvalue_from_shape_and_type((1,), np.float32, memory_info=info)
    except Exception as error:  # noqa: BLE001  (any fault of the library costs only speed)
        log.warning("no pinned memory for GPU %d, copies to it take longer: %s", id_, error)
        return None
    return info


def host_memory(shape: tuple[int, ...], device: DeviceRef) -> ort.OrtValue:
    """Return host memory, float32, that the device reads fast."""
    info = _pinned(device.id) if device.device == "cuda" else None
    if info is None:
        return ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32)
    return ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, memory_info=info)


def _run_options(graph: str) -> ort.RunOptions:
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", graph)
    return options


class BoundSession:
    """A session for one batch size, with the memory of its input and output. For one thread at a time.

    The bound memory stays on the GPU, as CUDA graphs require. It is copied before and after the run, and during a copy
    the other Python threads wait. Host memory can't be bound instead, as seen with ORT 1.31. Ordinary memory is copied
    when it is bound, and not when the session runs. Pinned memory counts as the GPU's own, so that kernels would fetch
    it value by value.
    """

    def __init__(self, session: ort.InferenceSession, batch: int, size: int, device: DeviceRef, name: str) -> None:
        """Allocate the memory. Run the session once, on black photos, to learn the output's shape. size: S, pixels."""
        shape = (batch, 1, size, size)
        self._session = session
        self._host_value = host_memory(shape, device)
        self._host: Floats = self._host_value.numpy()
        self._host[:] = 0
        self._input = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, device.device, device.id)
        self._input.update_inplace(self._host)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(INPUT, self._input)
        self._bind_output(device, batch, name)
        self._options = _run_options(GRAPH)

    def _bind_output(self, device: DeviceRef, batch: int, name: str) -> None:
        """Keep the memory that ORT allocates for the first output, so that later outputs are written there too."""
        self._binding.bind_output(OUTPUT, device.device, device.id)
        self._session.run_with_iobinding(self._binding, _run_options(NO_GRAPH))
        (output,) = self._binding.get_outputs()
        _check_shape(tuple(output.shape()), batch, name)
        self._output = output
        self._binding.bind_ortvalue_output(OUTPUT, output)

    def run(self, lightness: Batch) -> Floats:
        """Return the chroma, float32 [n, 2, s, s], for lightness, float32 [n, 1, S, S], n <= the batch size."""
        count = len(lightness)
        for slot, one in zip(self._host, lightness, strict=False):
            slot[:] = one
        # No photo of an earlier batch may remain in the padding.
        self._host[count:] = 0
        self._input.update_inplace(self._host)
        self._session.run_with_iobinding(self._binding, self._options)
        # This copies directly into the returned array. Pinned memory in between would only add a second copy.
        (chroma,) = self._binding.copy_outputs_to_cpu()
        return np.asarray(chroma[:count], np.float32)


class PaddingExecutor:
    """Runs one batch at a time, padded to the next larger of its batch sizes."""

    def __init__(self, sessions: Mapping[int, ort.InferenceSession], size: int, device: DeviceRef, name: str) -> None:
        """Bind each session. sessions: by batch size, each for that size only; other executors may share them."""
        self._bound = {
            batch: BoundSession(session, batch, size, device, name) for batch, session in sorted(sessions.items())
        }
        self._name = name
        # A batcher never runs two batches concurrently. Without the lock such a fault would mix up photos' colours.
        self._lock = threading.Lock()

    def predict(self, lightness: Batch) -> Floats:
        """Return the chroma, float32 [N, 2, s, s], for lightness, float32 [N, 1, S, S], N <= the largest batch size.

        Raises EngineError if the output is not finite.
        """
        batch = next(size for size in self._bound if size >= len(lightness))
        with self._lock:
            chroma = self._bound[batch].run(lightness)
        return _check_values(chroma, self._name)


class SingleThreadExecutor:
    """Creates and runs an executor in one dedicated thread, for callers in any thread.

    ONNX Runtime binds a captured CUDA graph and its stream to the thread that captured it, and replays the addresses of
    that capture. Batches run in the thread of their leader, so that without this class each thread would capture again.
    """

    def __init__(self, make: Callable[[], Predictor]) -> None:
        self._thread = ThreadPoolExecutor(1, "executor")
        self._predictor = self._thread.submit(make).result()

    def predict(self, lightness: Batch) -> Floats:
        """Call the executor's `predict` in its thread."""
        return self._thread.submit(self._predictor.predict, lightness).result()
