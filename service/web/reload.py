"""Reload the models while the service runs, and change nothing if a file is bad."""

import asyncio
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable

from service.inference.contract import ContractError
from service.inference.executor import EngineError
from service.inference.registry import ModelRegistry, ModelRegistryError
from service.observability.metrics import Metrics
from service.pipeline.colorizer import Colorizer
from service.runtime.thread_pool import run_detached
from service.settings import Settings

log = logging.getLogger(__name__)

# Loads that may hang at the same time. The memory of their models is lost.
MAX_LOADS = 3


def has_terminal() -> bool:
    """Return whether a terminal controls this process. A closed terminal does not count."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


class Reloader:
    """Loads models in a thread, and swaps the model registry once all of them are verified and warmed up.

    A photo in progress keeps its model. The old model is freed when the last such photo is done.

    A load is overdue after TOMAU_STUCK_S. It can't be stopped, but the next load no longer waits for it.
    If it ends after a later load, it changes nothing.
    """

    def __init__(self, colorizer: Colorizer, settings: Settings, metrics: Metrics) -> None:
        self._colorizer = colorizer
        self._settings = settings
        self._metrics = metrics
        self._is_requested = False
        self._task: asyncio.Task[None] | None = None
        # The loads in progress and when they began. Only the event loop's thread changes it.
        self._loads: dict[asyncio.Future[bool], float] = {}
        self._numbers = itertools.count(1)
        self._swap = threading.Lock()
        self._served_number = 0  # the number of the load whose models serve now
        self.on_load: Callable[[], None] = lambda: None  # called when a load begins

    def request(self) -> None:
        """Start a reload, from the event loop. A request during a reload starts another one after it."""
        self._is_requested = True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        else:
            log.info("the models are reloaded again when the current load has ended, or is overdue")

    def loading_for(self) -> float | None:
        """Return the seconds since the latest load in progress began, or None if no load is in progress."""
        began = list(self._loads.values())
        return time.monotonic() - max(began) if began else None

    @property
    def overdue(self) -> int:
        """The number of loads that are overdue."""
        now = time.monotonic()
        return sum(now - began >= self._settings.stuck_s for began in list(self._loads.values()))

    async def _run(self) -> None:
        while self._is_requested:
            await self._wait_for_free_load()
            self._is_requested = False
            load = asyncio.ensure_future(run_detached(self.reload))
            self._loads[load] = time.monotonic()
            load.add_done_callback(self._on_load_end)
            self.on_load()
            limit = self._settings.stuck_s
            await asyncio.wait([load], timeout=limit)
            if not load.done():
                log.error(
                    "a load of the models has not ended in %g s: the old ones serve, SIGHUP starts another load", limit
                )

    def _on_load_end(self, load: asyncio.Future[bool]) -> None:
        del self._loads[load]
        if not load.cancelled() and (error := load.exception()):
            log.error("the models were not reloaded: %s", error)
            self._metrics.reload(success=False)

    async def _wait_for_free_load(self) -> None:
        if len(self._loads) >= MAX_LOADS:
            log.error("%d loads of the models have not ended: no other one begins until one ends", len(self._loads))
            await asyncio.wait(self._loads, return_when=asyncio.FIRST_COMPLETED)

    def reload(self) -> bool:
        """Reload the models in this thread, and return whether the new ones serve now. Errors are logged."""
        number = next(self._numbers)
        try:
            registry = self.load()
        except (ModelRegistryError, ContractError, EngineError, OSError) as error:
            log.error("the models were not reloaded, and nothing has changed: %s", error)
        except Exception:
            log.exception("the models were not reloaded, and nothing has changed")
        else:
            if self._serve(registry, number):
                self._metrics.reload(success=True)
                return True
            log.error("the models were not reloaded, and nothing has changed: a later load has ended earlier")
        self._metrics.reload(success=False)
        return False

    def _serve(self, registry: ModelRegistry, number: int) -> bool:
        """Serve a model registry, and return True; return False if that of a later load serves already."""
        with self._swap:
            if number < self._served_number:
                return False
            self._served_number = number
            self._colorizer.models = registry
        names = ", ".join(f"{model.contract.name} {model.contract.version} {model.sha256:.12}" for model in registry)
        log.info("the models were reloaded (%d of them new): %s", len(registry.fresh), names)
        return True

    def load(self) -> ModelRegistry:
        """Load, verify and warm up the models of the folder. Models whose files have not changed are kept."""
        old = self._colorizer.models
        # Without this, a GPU without memory for both would make the new models run on the CPU.
        registry = ModelRegistry(self._settings.model_copy(update={"device": old.device}), known=old)
        Colorizer(registry, self._settings).warm_up()
        registry.observe_runs(self._metrics.batch)
        return registry
