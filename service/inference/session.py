"""A model on one device: its ONNX Runtime sessions, and the executors that run them."""

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
# A CUDA graph is captured by the third run at the latest (the first two allocate what it needs), and then replayed.
WARM_RUNS = 4
CPU_ONLY = (
    "TOMAU_DEVICE=cuda: the ONNX Runtime that is installed runs on CPUs only; for a GPU, run `make serve TARGET=gpu"
    " VENV=.venv-gpu`, or use the GPU image, or replace the package: `pip uninstall onnxruntime && pip install"
    " 'onnxruntime-gpu[cuda,cudnn]'`"
)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, and how a model runs on it; `id` counts those that CUDA shows to this process."""

    id: int = 0
    tf32: bool = True
    graphs: bool = False
    arena_bytes: int | None = None  # of one session
    options: Mapping[str, str] = field(default_factory=dict)  # of the CUDA provider, over ours
    tensorrt: Mapping[str, str] | None = None  # options of the TensorRT provider, which is then asked first


def batch_sizes(max_batch: int) -> list[int]:
    """The batch sizes that a GPU sees: powers of two up to the largest batch, and that one itself."""
    sizes = [1 << power for power in range(max_batch.bit_length()) if 1 << power < max_batch]
    return [*sizes, max_batch]


def providers(device: Device, gpu: Gpu) -> list[tuple[str, dict[str, str]]]:
    """ONNX Runtime's providers and their options, the one that is wanted first."""
    cpu: tuple[str, dict[str, str]] = (PROVIDERS["cpu"], {})
    if device == "cpu":
        return [cpu]
    options = {
        "device_id": str(gpu.id),
        "use_tf32": str(int(gpu.tf32)),
        "enable_cuda_graph": str(int(gpu.graphs)),
        # From ORT 1.20 on this is no trial of all kernels but cuDNN's better heuristic. A session sees one shape, so
        # it is asked once, at warm-up. `DEFAULT` is the slow fallback (onnxruntime #22705).
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        # Shapes never change, so after warm-up no more memory is asked for, and none has to be kept in reserve.
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
    """CUDA's libraries from their wheels, where there are any."""
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()


def _options(threads: int = 1) -> ort.SessionOptions:
    """By default one photo, one core: photos run beside one another. A spinning thread would only take from others."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


@contextmanager
def _as_file(model: bytes) -> Iterator[str | bytes]:
    """The very bytes that were verified, as a file in memory where the system has such.

    Bytes are parsed with Python's lock held, and nothing else goes on for so long: 1.5 s for 370 MB, where a file holds
    others up for 15 ms (seen with ORT 1.31).
    """
    file = _written(model)
    if file is None:
        yield model
        return
    with file:
        yield f"/proc/self/fd/{file.fileno()}"


def _written(model: bytes) -> BinaryIO | None:
    """None where there are no files in memory, or none of that size may be made."""
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
    """Makes sessions of one model on one device."""

    def __init__(self, path: Path, model: str | bytes, device: Device, gpu: Gpu) -> None:
        self._path = path
        self._model = model
        self._device = device
        self._gpu = gpu

    def session(self, batch: int | None = None, threads: int = 1) -> ort.InferenceSession:
        """A session for batches of that size only, or of any. Raises EngineError."""
        options = _options(threads)
        if batch is not None:
            options.add_free_dimension_override_by_name("batch", batch)
        wanted = providers(self._device, self._gpu)
        try:
            if self._device == "cuda":
                _preload()
            # Its own fallback would hide the reason, and try again without a GPU.
            session = ort.InferenceSession(self._model, options, providers=wanted, enable_fallback=0)
        except Exception as error:
            raise EngineError(f"{self._path}: can't be loaded on {self._device}: {error}") from error
        used = session.get_providers()[0]
        if used != wanted[0][0]:
            raise EngineError(
                f"{self._path}: {self._device} was asked for, but instead of {wanted[0][0]} ONNX Runtime took {used}"
            )
        return session

    def description(self) -> ort.InferenceSession:
        """A session that is only asked what the file says; quickly made, and always on the CPU."""
        options = _options()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            return ort.InferenceSession(self._model, options, providers=[PROVIDERS["cpu"]])
        except Exception as error:
            raise EngineError(f"{self._path}: can't be loaded: {error}") from error

    def contract(self, session: ort.InferenceSession) -> Contract:
        """What the file says about itself, held against its graph. Raises ContractError."""
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
    """A loaded model, and its executors: as many batches can run at once."""

    def __init__(
        self,
        path: Path,
        model: bytes,
        device: Device,
        max_batch: int = 1,
        *,
        executors: int = 1,
        spread: int = 1,
        gpu: Gpu | None = None,
    ) -> None:
        """Loads `model`, the content of the file at `path`.

        spread: on a CPU, so many cores run a photo that is alone; with more than one the model is loaded twice. Raises
        ContractError when it breaks the contract, EngineError when it can't run on that device.
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
        """Runs each batch size on each executor, so that no photo waits for the device's search for kernels.

        Executors run beside one another, as they will: a second stream of a session makes handles of its own. Not so
        with CUDA graphs, which are spoilt by what another thread asks of the GPU while they are being captured.
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
        """The size of the batch that so many photos are run as."""
        return photos if self.device == "cpu" else next(size for size in batch_sizes(self.max_batch) if size >= photos)

    def predict(self, lightness: Batch) -> Floats:
        """Lightness, float32 [N, 1, S, S], to chroma, float32 [N, 2, s, s], N at most `max_batch`.

        Raises EngineError when the answer has another shape or is not finite.
        """
        return self.executors[0].predict(lightness)


def _check_threads(count: int) -> None:
    """Raises EngineError when so many threads can't be started: ONNX Runtime would wait for them for ever."""
    try:
        LifoThreadPool(count, "spread").stop(wait=True)
    except OSError as error:
        raise EngineError(str(error)) from error


def _on_gpu(loader: SessionLoader, contract: Contract, sizes: list[int], executors: int, gpu: Gpu) -> list[Predictor]:
    """The executors of one GPU.

    A session for each batch size: cuDNN's plan of a convolution is made anew whenever the shape changes from one run
    of its session to the next, at a cost of many runs (onnxruntime #23006, from 1.20 on). And where the batch is known,
    shapes are computed when a session is made: 45 nodes of the default model would else run on the CPU, in every run.
    Executors share the sessions, but not with CUDA graphs: those that capture can't be run by two threads at once.
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

    `auto` is a GPU only where the runtime has its provider and the driver is there. Raises EngineError for `cuda` where
    the runtime is the one for CPUs.
    """
    has_provider = PROVIDERS["cuda"] in ort.get_available_providers()
    if device == "cuda" and not has_provider:
        raise EngineError(CPU_ONLY)
    if device != "auto":
        return device
    return "cuda" if has_provider and Path("/dev/nvidiactl").exists() else "cpu"
