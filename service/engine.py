"""One ONNX Runtime session on one device."""

import os
from pathlib import Path
from typing import Literal, Protocol

# Read when the library is loaded: these are people's private photographs.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime as ort

from service.color import Floats
from service.contract import INPUT, OUTPUT, Contract, ContractError

Device = Literal["cpu", "cuda"]
PROVIDERS: dict[Device, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class EngineError(RuntimeError):
    """A model could not be loaded on the device that was asked for, or answered nonsense."""


class Predictor(Protocol):
    """What a batcher needs of an engine."""

    def predict(self, lightness: Floats) -> Floats:
        """Lightness, float32 [N, 1, S, S], to chroma, float32 [N, 2, s, s]."""


def buckets(max_batch: int) -> list[int]:
    """The batch sizes that a GPU sees: powers of two up to the largest batch, and that one itself."""
    sizes = [1 << power for power in range(max_batch.bit_length()) if 1 << power < max_batch]
    return [*sizes, max_batch]


def _session(model: bytes, device: Device) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if device == "cpu":
        # One photo, one core: photos run beside one another, and a spinning thread would only take from the others.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    elif hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    return ort.InferenceSession(
        model, options, providers=[PROVIDERS[device], PROVIDERS["cpu"]][: 1 + (device != "cpu")]
    )


class Engine:
    """A loaded model. `predict` may be called from several threads at once."""

    def __init__(self, path: Path, model: bytes, device: Device, max_batch: int = 1) -> None:
        """Loads `model`, the content of the file at `path`.

        Raises ContractError when it breaks the contract, EngineError when it can't run on that device.
        """
        try:
            self._session = _session(model, device)
        except Exception as error:
            raise EngineError(f"{path}: can't be loaded on {device}: {error}") from error
        if self._session.get_providers()[0] != PROVIDERS[device]:
            raise EngineError(f"{path}: {device} was asked for, but ONNX Runtime fell back to the CPU")
        try:
            self.contract = Contract.from_metadata(self._session.get_modelmeta().custom_metadata_map)
            self.contract.check_graph(
                {port.name: (port.type, port.shape) for port in self._session.get_inputs()},
                {port.name: (port.type, port.shape) for port in self._session.get_outputs()},
            )
        except ContractError as error:
            raise ContractError(f"{path}: {error}") from error
        self.device = device
        wanted = max_batch if device == "cuda" else 1
        self.max_batch = min(wanted, self.contract.max_batch or wanted)
        self._buckets = buckets(self.max_batch)

    def warm(self) -> None:
        """Runs each batch size once, so that no photo waits for the device's search for kernels."""
        size = self.contract.input_size
        for count in self._buckets:
            self.predict(np.zeros((count, 1, size, size), np.float32))

    def predict(self, lightness: Floats) -> Floats:
        """Lightness, float32 [N, 1, S, S], to chroma, float32 [N, 2, s, s], N at most `max_batch`.

        Raises EngineError when the answer has another shape or is not finite.
        """
        count = len(lightness)
        bucket = next(size for size in self._buckets if size >= count)
        if bucket > count:
            lightness = np.concatenate([lightness, np.zeros((bucket - count, *lightness.shape[1:]), np.float32)])
        (chroma,) = self._session.run([OUTPUT], {INPUT: lightness})
        if chroma.ndim != 4 or chroma.shape[:2] != (bucket, 2):
            raise EngineError(f"model {self.contract.name} answered the shape {chroma.shape}, not [{bucket}, 2, s, s]")
        chroma = np.asarray(chroma[:count], np.float32)
        if not np.isfinite(chroma).all():
            raise EngineError(f"model {self.contract.name} answered values that are not finite")
        return chroma


def available(device: Literal["auto", "cpu", "cuda"]) -> Device:
    """The device to use. `auto` is a GPU only where the runtime has its provider and the driver is there."""
    if device != "auto":
        return device
    has_gpu = PROVIDERS["cuda"] in ort.get_available_providers() and Path("/dev/nvidiactl").exists()
    return "cuda" if has_gpu else "cpu"
