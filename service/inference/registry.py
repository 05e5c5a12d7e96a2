"""Finds, verifies and lists the models."""

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

# A guess: two cores halve a small model's time, more were not at hand to be measured.
MOST_SPREAD = 4
# One batch is assembled while the other runs.
EXECUTORS_A_GPU = 2
PHOTOS_ON_A_CPU = 32


class ModelRegistryError(RuntimeError):
    """There is no model to serve, or a file is not what it should be."""


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded, verified and warmed model."""

    contract: Contract
    sha256: str
    device: Device
    batcher: Batcher
    padded_size: Callable[[int], int]  # of photos that run together: the size of the batch that they are run as

    @property
    def black(self) -> Floats:
        """A photo, as the model takes it, that tells whether it runs at all."""
        size = self.contract.input_size
        return np.zeros((1, size, size), np.float32)


def _verified(path: Path) -> tuple[bytes, str]:
    """A model's bytes and their SHA-256, held against the `.sha256` file beside it, if there is one."""
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    expected = path.with_suffix(".onnx.sha256")
    if expected.is_file() and expected.read_text("utf-8").split()[:1] != [digest]:
        raise ModelRegistryError(f"{path}: its SHA-256 is {digest}, not the one in {expected.name}")
    return data, digest


def _a_gpus_photos(settings: Settings, batches: int) -> int:
    """So many full batches for each GPU."""
    return batches * settings.inference_batch_size * len(settings.gpu_ids)


def _max_photos(settings: Settings, device: Device) -> int:
    if settings.max_photos:
        return settings.max_photos
    return max(PHOTOS_ON_A_CPU, 4 * settings.cores) if device == "cpu" else _a_gpus_photos(settings, 4)


def _gpus(settings: Settings) -> list[Gpu]:
    arena = None if settings.gpu_arena_mib is None else settings.gpu_arena_mib * MIB
    return [
        Gpu(id_, settings.tf32, settings.cuda_graphs, arena, settings.cuda_options, settings.tensorrt_options)
        for id_ in settings.gpu_ids
    ]


def _fit(gpu: Gpu, path: Path) -> Gpu:
    """Without TF32, ORT keeps convolutions of half precision from the tensor cores too (its conv.cc, from 1.20 on)."""
    return replace(gpu, tf32=True) if half_precision.is_half(path) else gpu


def _tell(ran: Callable[[int, int], None], padded_size: Callable[[int], int], photos: int) -> None:
    ran(photos, padded_size(photos))


class ModelRegistry:
    """The models of one service, by name."""

    def __init__(self, settings: Settings, known: Iterable[Model] = ()) -> None:
        """Loads and warms every .onnx file of the models' folder; those that are `known` and still run are taken over.

        Raises CatalogError, ContractError or EngineError with the file's name when one can't be served.
        """
        self.device = select_device(settings.device)
        self._known = {model.sha256: model for model in known}
        try:
            self._models = self._load_all(settings)
        except EngineError as error:
            if settings.device != "auto" or self.device == "cpu":
                raise
            log.warning("no GPU after all, serving from the CPU: %s", error)
            self.device = "cpu"
            self._models = self._load_all(settings)
        if settings.default_model not in self._models:
            raise ModelRegistryError(
                f"{settings.models}: there is no model {settings.default_model!r} to be the default"
                f" (found: {', '.join(self._models) or 'none'}); TOMAU_DEFAULT_MODEL names another"
            )
        self.fresh = [model for model in self if self._known.get(model.sha256) is not model]
        self._known = {}
        self.default = settings.default_model
        self.max_photos = _max_photos(settings, self.device)
        self.workers = settings.workers or (settings.cores if self.device == "cpu" else _a_gpus_photos(settings, 2))

    def _load_all(self, settings: Settings) -> dict[str, Model]:
        models: dict[str, Model] = {}
        for path in sorted(set(settings.models.glob("*.onnx")) - set(settings.models.glob(f"*{half_precision.HALF}"))):
            model = self._load(path, settings)
            if model.contract.name in models:
                raise ModelRegistryError(f"{path}: another file has a model {model.contract.name!r} already")
            models[model.contract.name] = model
        return models

    def _load(self, path: Path, settings: Settings) -> Model:
        if self.device == "cuda":
            path = half_precision.choose(path, settings.precision, lambda file: self._probe(file, settings))
        data, digest = _verified(path)
        known = self._known.get(digest)
        if known is not None and known.batcher.can_run(known.black):
            return known
        if known is not None:
            log.warning("%s: its model does not run any more, and is loaded anew", path)
        engines = self._engines(path, data, settings)
        for engine in engines:
            try:
                engine.warm_up()
            except Exception as error:
                raise EngineError(f"{path}: can't be run on {self.device}: {error}") from error
        first = engines[0]
        # One of each GPU, then the next of each: the first batches go to different ones.
        executors = [
            executor for row in zip(*(engine.executors for engine in engines), strict=True) for executor in row
        ]
        capacity = _max_photos(settings, self.device)
        batcher = Batcher(executors, max_batch=first.max_batch, capacity=capacity, spread=first.spread)
        contract = first.contract
        log.info("model %s %s of %s is ready on %s", contract.name, contract.version, path.name, self.device)
        return Model(contract, digest, self.device, batcher, first.padded_size)

    def _engines(self, path: Path, data: bytes, settings: Settings) -> list[Engine]:
        """One for each device, not warm yet."""
        if self.device == "cpu":
            is_spread = len(data) <= settings.spread_model_mib * MIB
            spread = min(settings.cores, MOST_SPREAD) if is_spread else 1
            return [Engine(path, data, "cpu", executors=settings.cores, spread=spread)]
        return [
            Engine(path, data, "cuda", settings.inference_batch_size, executors=EXECUTORS_A_GPU, gpu=_fit(gpu, path))
            for gpu in _gpus(settings)
        ]

    def _probe(self, path: Path, settings: Settings) -> Engine:
        """The model on the first GPU, for one photo at a time."""
        return Engine(path, _verified(path)[0], "cuda", gpu=_fit(_gpus(settings)[0], path))

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def observe_runs(self, ran: Callable[[int, int], None]) -> None:
        """Has `ran` called after each run of a model, with the photos and the places of its batch."""
        for model in self:
            # Without the model itself: a batcher that held it would be freed only when Python looks for cycles.
            model.batcher.ran = partial(_tell, ran, model.padded_size)

    def get(self, name: str | None) -> Model:
        """The model of that name, or the default one. Raises UnknownModel."""
        try:
            return self._models[self.default if name is None else name]
        except KeyError:
            known = ", ".join(self._models)
            raise UnknownModel(f"there is no model {name!r:.80}; there are {known}", field="model") from None
