"""A model on one device: its ONNX Runtime sessions, the batch sizes that a GPU prepares, and their executors."""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import onnxruntime as ort

from service.imaging.color import Floats
from service.inference.contract import Contract, ContractError
from service.inference.executor import (
    PROVIDERS,
    Batch,
    CpuExecutor,
    Device,
    DeviceRef,
    EngineError,
    PaddingExecutor,
    Predictor,
    SingleThreadExecutor,
)
from service.runtime.thread_pool import LifoThreadPool

TENSORRT = "TensorrtExecutionProvider"
# The first two runs allocate memory, and the third one at the latest captures the CUDA graph. Later ones replay it.
WARM_RUNS = 4
CPU_ONLY = (
    "TOMAU_DEVICE=cuda: the installed ONNX Runtime supports CPUs only; for a GPU, run `make serve TARGET=gpu"
    " VENV=.venv-gpu`, or use the GPU image, or replace the package: `pip uninstall onnxruntime && pip install"
    " 'onnxruntime-gpu[cuda,cudnn]'`"
)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, and the options of its sessions. `id` counts the GPUs that CUDA shows to this process."""

    id: int = 0
    tf32: bool = True
    graphs: bool = False
    arena_bytes: int | None = None  # The limit of one session.
    options: Mapping[str, str] = field(default_factory=dict)  # CUDA provider options that override the defaults here.
    tensorrt: Mapping[str, str] | None = None  # Options of the TensorRT provider, which then has priority.


def batch_sizes(max_batch: int) -> list[int]:
    """Return the batch sizes that run on a GPU: the powers of two below `max_batch`, and `max_batch`."""
    sizes = [1 << power for power in range(max_batch.bit_length()) if 1 << power < max_batch]
    return [*sizes, max_batch]


def providers(device: Device, gpu: Gpu) -> list[tuple[str, dict[str, str]]]:
    """Return ONNX Runtime's execution providers and their options, the preferred one first."""
    cpu: tuple[str, dict[str, str]] = (PROVIDERS["cpu"], {})
    if device == "cpu":
        return [cpu]
    options = {
        "device_id": str(gpu.id),
        "use_tf32": str(int(gpu.tf32)),
        "enable_cuda_graph": str(int(gpu.graphs)),
        # From ORT 1.20 on, this uses cuDNN's better heuristic, and does not try all kernels. A session sees one shape,
        # so that the heuristic runs once, at warm-up. `DEFAULT` is the slow fallback (onnxruntime #22705).
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        # Shapes never change, so that a session needs no more memory after warm-up, and no reserve.
        "arena_extend_strategy": "kSameAsRequested",
    }
    if gpu.arena_bytes is not None:
        options["gpu_mem_limit"] = str(gpu.arena_bytes)
    found = [(PROVIDERS["cuda"], options | dict(gpu.options)), cpu]
    if gpu.tensorrt is not None:
        found.insert(0, (TENSORRT, {"device_id": str(gpu.id)} | dict(gpu.tensorrt)))
    return found


@cache
def _preload() -> None:
    """Load CUDA's libraries from their wheels, if those are installed."""
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()


def _options(threads: int = 1) -> ort.SessionOptions:
    """Return the options of a session. By default a photo runs on one core, as several photos run concurrently."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads would take time from other photos.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


@contextmanager
def _as_file(model: bytes) -> Iterator[str | bytes]:
    """Provide the verified bytes as a file in memory, or as bytes if the system has no such files.

    ONNX Runtime holds Python's lock while it parses bytes, but not while it parses a file. For 370 MB that blocks other
    threads for 1.5 s instead of 15 ms, as seen with ORT 1.31.
    """
    file = _memory_file(model)
    if file is None:
        yield model
        return
    with file:
        yield f"/proc/self/fd/{file.fileno()}"


def _memory_file(model: bytes) -> BinaryIO | None:
    """Write the bytes to a file in memory. Return None if the system has no such files, or allows none of that size."""
    if not hasattr(os, "memfd_create"):
        return None
    file = os.fdopen(os.memfd_create("model"), "wb", buffering=0)
    try:
        view = memoryview(model)
        while view:
            view = view[file.write(view) :]
    except OSError:
        file.close()
        return None
    return file


class SessionLoader:
    """Creates sessions of one model on one device."""

    def __init__(self, path: Path, model: str | bytes, device: Device, gpu: Gpu) -> None:
        self._path = path
        self._model = model
        self._device = device
        self._gpu = gpu

    def session(self, batch: int | None = None, threads: int = 1) -> ort.InferenceSession:
        """Return a session for batches of size `batch`, or of any size for None. Raise EngineError if that fails."""
        options = _options(threads)
        if batch is not None:
            options.add_free_dimension_override_by_name("batch", batch)
        wanted = providers(self._device, self._gpu)
        try:
            if self._device == "cuda":
                _preload()
            # ONNX Runtime's own fallback would hide the reason, and try again without a GPU.
            session = ort.InferenceSession(self._model, options, providers=wanted, enable_fallback=0)
        except Exception as error:
            raise EngineError(f"{self._path}: can't be loaded on {self._device}: {error}") from error
        used = session.get_providers()[0]
        if used != wanted[0][0]:
            raise EngineError(
                f"{self._path}: {self._device} is requested, but ONNX Runtime uses {used} instead of {wanted[0][0]}"
            )
        return session

    def description(self) -> ort.InferenceSession:
        """Return a session for reading the file's metadata. It loads fast, and always on the CPU."""
        options = _options()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            return ort.InferenceSession(self._model, options, providers=[PROVIDERS["cpu"]])
        except Exception as error:
            raise EngineError(f"{self._path}: can't be loaded: {error}") from error

    def contract(self, session: ort.InferenceSession) -> Contract:
        """Return the contract in the file's metadata. Raise ContractError if the graph does not fit it."""
        try:
            contract = Contract.from_metadata(session.get_modelmeta().custom_metadata_map)
            contract.check_graph(
                {port.name: (port.type, port.shape) for port in session.get_inputs()},
                {port.name: (port.type, port.shape) for port in session.get_outputs()},
            )
        except ContractError as error:
            raise ContractError(f"{self._path}: {error}") from error
        return contract


class Engine:
    """A loaded model and its executors. As many batches as there are executors can run concurrently."""

    def __init__(  # noqa: PLR0913  (options by keyword)
        self,
        path: Path,
        model: bytes,
        device: Device,
        *,
        max_batch: int = 1,
        executors: int = 1,
        spread: int = 1,
        gpu: Gpu | None = None,
    ) -> None:
        """Load `model`, the content of the file at `path`.

        spread: on a CPU, the number of cores that run a single photo; more than 1 loads the model twice. Raises
        ContractError if the model breaks the contract, and EngineError if it can't run on the device.
        """
        self.device = device
        self.executors: list[Predictor] = []
        self.spread: Predictor | None = None
        gpu = gpu or Gpu()
        self._parallel_warming = not gpu.graphs
        with _as_file(model) as file:
            loader = SessionLoader(path, file, device, gpu)
            if device == "cpu":
                self._load_on_cpu(loader, executors, spread)
            else:
                self._load_on_gpu(loader, path, max_batch, executors, gpu)

    def _load_on_cpu(self, loader: SessionLoader, executors: int, spread: int) -> None:
        session = loader.session()
        self.contract = loader.contract(session)
        self.max_batch = 1
        self.executors += [CpuExecutor(session, self.contract.name)] * executors
        if spread > 1:
            _check_threads(spread)
            self.spread = CpuExecutor(loader.session(threads=spread), self.contract.name)

    def _load_on_gpu(self, loader: SessionLoader, path: Path, max_batch: int, executors: int, gpu: Gpu) -> None:
        self.contract = loader.contract(loader.description())
        self.max_batch = min(max_batch, self.contract.max_batch or max_batch)
        try:
            self.executors += _on_gpu(loader, self.contract, batch_sizes(self.max_batch), executors, gpu)
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(f"{path}: can't be run on {self.device}: {error}") from error

    def warm_up(self) -> None:
        """Run each batch size on each executor, so that no photo waits for the device's selection of kernels.

        Executors warm up concurrently, because each stream of a session creates its own handles. With CUDA graphs they
        run one after another: calls of another thread to the GPU would invalidate a graph during its capture.
        """
        executors = list(dict.fromkeys(filter(None, [*self.executors, self.spread])))
        with ThreadPoolExecutor(len(executors) if self._parallel_warming else 1) as pool:
            list(pool.map(self._warm, executors))

    def _warm(self, executor: Predictor) -> None:
        size = self.contract.input_size
        for batch in batch_sizes(self.max_batch):
            for _ in range(1 if self.device == "cpu" else WARM_RUNS):
                executor.predict(np.zeros((batch, 1, size, size), np.float32))

    def padded_size(self, photos: int) -> int:
        """Return the batch size that this number of photos runs as."""
        return photos if self.device == "cpu" else next(size for size in batch_sizes(self.max_batch) if size >= photos)

    def predict(self, lightness: Batch) -> Floats:
        """Return the chroma, float32 [N, 2, s, s], for lightness, float32 [N, 1, S, S], N <= `max_batch`.

        Raises EngineError if the output has another shape or is not finite.
        """
        return self.executors[0].predict(lightness)


def _check_threads(count: int) -> None:
    """Raise EngineError if `count` threads can't be started. ONNX Runtime would wait for them forever."""
    try:
        LifoThreadPool(count, "spread").stop(wait=True)
    except OSError as error:
        raise EngineError(str(error)) from error


def _on_gpu(loader: SessionLoader, contract: Contract, sizes: list[int], executors: int, gpu: Gpu) -> list[Predictor]:
    """Return the executors of one GPU.

    There is a session for each batch size, for two reasons. If the shape changes between runs of a session, cuDNN makes
    new plans of the convolutions, which costs many runs (onnxruntime #23006, from 1.20 on). With a fixed batch size,
    shapes are computed when the session is created. Otherwise 45 nodes of the default model would run on the CPU, in
    every run.

    Executors share the sessions. With CUDA graphs each executor has its own, because two threads can't run a session
    that captures a graph.
    """

    def sessions() -> dict[int, ort.InferenceSession]:
        return {batch: loader.session(batch) for batch in sizes}

    def executor(sessions: dict[int, ort.InferenceSession]) -> Predictor:
        return PaddingExecutor(sessions, contract.input_size, DeviceRef("cuda", gpu.id), contract.name)

    if gpu.graphs:
        return [SingleThreadExecutor(lambda: executor(sessions())) for _ in range(executors)]
    shared = sessions()
    return [executor(shared) for _ in range(executors)]


def select_device(device: Literal["auto", "cpu", "cuda"]) -> Device:
    """Return the device to use.

    `auto` means a GPU if ONNX Runtime has the CUDA provider and the driver is installed. Raises EngineError for `cuda`
    if the installed ONNX Runtime supports CPUs only.
    """
    has_provider = PROVIDERS["cuda"] in ort.get_available_providers()
    if device == "cuda" and not has_provider:
        raise EngineError(CPU_ONLY)
    if device != "auto":
        return device
    return "cuda" if has_provider and Path("/dev/nvidiactl").exists() else "cpu"
