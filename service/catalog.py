"""Finds, verifies and lists the models."""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from service.batcher import Batcher
from service.contract import Contract
from service.engine import Device, Engine, EngineError, available
from service.problems import UnknownModel
from service.settings import Settings

log = logging.getLogger(__name__)

# One batch is assembled while the other runs.
EXECUTORS_A_GPU = 2
PHOTOS_ON_A_CPU = 32


class CatalogError(RuntimeError):
    """There is no model to serve, or a file is not what it should be."""


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded, verified and warmed model."""

    contract: Contract
    sha256: str
    device: Device
    batcher: Batcher


def _verified(path: Path) -> tuple[bytes, str]:
    """A model's bytes and their SHA-256, held against the `.sha256` file beside it, if there is one."""
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    expected = path.with_suffix(".onnx.sha256")
    if expected.is_file() and expected.read_text("utf-8").split()[:1] != [digest]:
        raise CatalogError(f"{path}: its SHA-256 is {digest}, not the one in {expected.name}")
    return data, digest


def _max_photos(settings: Settings, device: Device) -> int:
    if settings.max_photos:
        return settings.max_photos
    return max(PHOTOS_ON_A_CPU, 4 * settings.cores) if device == "cpu" else 4 * settings.max_batch


class Catalog:
    """The models of one service, by name."""

    def __init__(self, settings: Settings) -> None:
        """Loads and warms every .onnx file of the models' folder.

        Raises CatalogError, ContractError or EngineError with the file's name when one can't be served.
        """
        self.device = available(settings.device)
        try:
            self._models = self._load_all(settings)
        except EngineError as error:
            if settings.device != "auto" or self.device == "cpu":
                raise
            log.warning("no GPU after all, serving from the CPU: %s", error)
            self.device = "cpu"
            self._models = self._load_all(settings)
        if settings.default_model not in self._models:
            raise CatalogError(
                f"{settings.models}: there is no model {settings.default_model!r} to be the default"
                f" (found: {', '.join(self._models) or 'none'})"
            )
        self.default = settings.default_model
        self.max_photos = _max_photos(settings, self.device)
        self.workers = settings.workers or (settings.cores if self.device == "cpu" else 2 * settings.max_batch)

    def _load_all(self, settings: Settings) -> dict[str, Model]:
        models: dict[str, Model] = {}
        for path in sorted(settings.models.glob("*.onnx")):
            model = self._load(path, settings)
            if model.contract.name in models:
                raise CatalogError(f"{path}: another file has a model {model.contract.name!r} already")
            models[model.contract.name] = model
        return models

    def _load(self, path: Path, settings: Settings) -> Model:
        data, digest = _verified(path)
        engine = Engine(path, data, self.device, settings.max_batch)
        try:
            engine.warm()
        except Exception as error:
            raise EngineError(f"{path}: can't be run on {self.device}: {error}") from error
        batcher = Batcher(
            engine,
            executors=settings.cores if self.device == "cpu" else EXECUTORS_A_GPU,
            max_batch=engine.max_batch,
            capacity=_max_photos(settings, self.device),
        )
        log.info("model %s %s is ready on %s", engine.contract.name, engine.contract.version, self.device)
        return Model(engine.contract, digest, self.device, batcher)

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def get(self, name: str | None) -> Model:
        """The model of that name, or the default one. Raises UnknownModel."""
        try:
            return self._models[self.default if name is None else name]
        except KeyError:
            known = ", ".join(self._models)
            raise UnknownModel(f"there is no model {name!r:.80}; there are {known}", field="model") from None
