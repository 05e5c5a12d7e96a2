"""The model registry: find, verify and load the models."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from service.errors import UnknownModel
from service.imaging.color import Floats
from service.inference import half_precision
from service.inference.batcher import Batcher
from service.inference.contract import Contract
from service.inference.executor import Device, EngineError
from service.inference.session import Engine, Gpu, select_device
from service.runtime.memory import MIB
from service.settings import Settings

log = logging.getLogger(__name__)

# An estimate: two cores halve the time of a small model. More cores were not measured.
MAX_SPREAD = 4
# One executor assembles its batch while the other one runs.
EXECUTORS_PER_GPU = 2
MIN_PHOTOS_ON_CPU = 32


class ModelRegistryError(RuntimeError):
    """A model is missing, or its file is not the expected one."""


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded model that was verified and warmed up."""

    contract: Contract
    sha256: str
    device: Device
    batcher: Batcher
    padded_size: Callable[[int], int]  # From a number of photos to the batch size that they run as.

    @property
    def black_photo(self) -> Floats:
        """The lightness of a black photo, float32 [1, S, S], which shows whether the model runs at all."""
        size = self.contract.input_size
        return np.zeros((1, size, size), np.float32)


def _verified(path: Path) -> tuple[bytes, str]:
    """Return a model's bytes and their SHA-256. Compare it with the `.sha256` file next to the model, if any."""
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    expected = path.with_suffix(".onnx.sha256")
    if expected.is_file() and expected.read_text("utf-8").split()[:1] != [digest]:
        raise ModelRegistryError(f"{path}: its SHA-256 is {digest}, which is not the one in {expected.name}")
    return data, digest


def _photos_of_batches(settings: Settings, batches: int) -> int:
    """Return the number of photos in this many full batches on each GPU."""
    return batches * settings.inference_batch_size * len(settings.gpu_ids)


def _max_photos(settings: Settings, device: Device) -> int:
    if settings.max_photos:
        return settings.max_photos
    return max(MIN_PHOTOS_ON_CPU, 4 * settings.cores) if device == "cpu" else _photos_of_batches(settings, 4)


def _gpus(settings: Settings) -> list[Gpu]:
    arena = None if settings.gpu_arena_mib is None else settings.gpu_arena_mib * MIB
    return [
        Gpu(
            id_,
            tf32=settings.tf32,
            graphs=settings.cuda_graphs,
            arena_bytes=arena,
            options=settings.cuda_options,
            tensorrt=settings.tensorrt_options,
        )
        for id_ in settings.gpu_ids
    ]


def _gpu_for(path: Path, gpu: Gpu) -> Gpu:
    """Return the GPU's options for a file. Half precision needs TF32.

    Without TF32, ORT runs convolutions of half precision without tensor cores, too (its conv.cc, from 1.20 on).
    """
    return replace(gpu, tf32=True) if half_precision.is_half(path) else gpu


def _report_run(on_run: Callable[[int, int], None], padded_size: Callable[[int], int], photos: int) -> None:
    on_run(photos, padded_size(photos))


class ModelRegistry:
    """The models that a service has loaded, by name."""

    def __init__(self, settings: Settings, known: Iterable[Model] = ()) -> None:
        """Load and warm up every .onnx file of the models' folder. Reuse `known` models that still run.

        Raises ModelRegistryError, ContractError or EngineError with the name of a file that can't be served.
        """
        self.device = select_device(settings.device)
        self._known = {model.sha256: model for model in known}
        try:
            self._models = self._load_all(settings)
        except EngineError as error:
            if settings.device != "auto" or self.device == "cpu":
                raise
            log.warning("the GPU can't be used, and the CPU serves instead: %s", error)
            self.device = "cpu"
            self._models = self._load_all(settings)
        if settings.default_model not in self._models:
            raise ModelRegistryError(
                f"{settings.models}: the default model {settings.default_model!r} is missing"
                f" (found: {', '.join(self._models) or 'none'}); set TOMAU_DEFAULT_MODEL to another name"
            )
        self.fresh = [model for model in self if self._known.get(model.sha256) is not model]
        self._known = {}
        self.default = settings.default_model
        self.max_photos = _max_photos(settings, self.device)
        self.workers = settings.workers or (settings.cores if self.device == "cpu" else _photos_of_batches(settings, 2))

    def _load_all(self, settings: Settings) -> dict[str, Model]:
        models: dict[str, Model] = {}
        for path in sorted(path for path in settings.models.glob("*.onnx") if not half_precision.is_half(path)):
            model = self._load(path, settings)
            if model.contract.name in models:
                raise ModelRegistryError(f"{path}: another file already has the model {model.contract.name!r}")
            models[model.contract.name] = model
        return models

    def _load(self, path: Path, settings: Settings) -> Model:
        if self.device == "cuda":
            path = half_precision.choose_file(path, settings.precision, lambda file: self._probe(file, settings))
        data, digest = _verified(path)
        known = self._known.get(digest)
        if known is not None and known.batcher.can_run(known.black_photo):
            return known
        if known is not None:
            log.warning("%s: the loaded model no longer runs, and is loaded again", path)
        engines = self._engines(path, data, settings)
        for engine in engines:
            try:
                engine.warm_up()
            except Exception as error:
                raise EngineError(f"{path}: can't be run on {self.device}: {error}") from error
        first = engines[0]
        # The first executor of each GPU comes first, so that the first batches go to different GPUs.
        executors = [
            executor for row in zip(*(engine.executors for engine in engines), strict=True) for executor in row
        ]
        capacity = _max_photos(settings, self.device)
        batcher = Batcher(executors, max_batch=first.max_batch, capacity=capacity, spread=first.spread)
        contract = first.contract
        log.info("model %s %s of %s is ready on %s", contract.name, contract.version, path.name, self.device)
        return Model(contract, digest, self.device, batcher, first.padded_size)

    def _engines(self, path: Path, data: bytes, settings: Settings) -> list[Engine]:
        """Load the model on each device, without warming it up."""
        if self.device == "cpu":
            is_spread = len(data) <= settings.spread_model_mib * MIB
            spread = min(settings.cores, MAX_SPREAD) if is_spread else 1
            return [Engine(path, data, "cpu", executors=settings.cores, spread=spread)]
        return [
            Engine(
                path,
                data,
                "cuda",
                max_batch=settings.inference_batch_size,
                executors=EXECUTORS_PER_GPU,
                gpu=_gpu_for(path, gpu),
            )
            for gpu in _gpus(settings)
        ]

    def _probe(self, path: Path, settings: Settings) -> Engine:
        """Load the model on the first GPU, with a batch size of 1."""
        return Engine(path, _verified(path)[0], "cuda", gpu=_gpu_for(path, _gpus(settings)[0]))

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def observe_runs(self, on_run: Callable[[int, int], None]) -> None:
        """Have `on_run` called after each run of a model, with the number of photos and the padded batch size."""
        for model in self:
            # The callback has no reference to the model: a cycle would keep it until the next garbage collection.
            model.batcher.on_run = partial(_report_run, on_run, model.padded_size)

    def get(self, name: str | None) -> Model:
        """Return the model of a name, or the default model for None. Raise UnknownModel if there is no such model."""
        try:
            return self._models[self.default if name is None else name]
        except KeyError:
            known = ", ".join(self._models)
            raise UnknownModel(
                f"the model {name!r:.80} does not exist; the models are {known}", field="model"
            ) from None
