"""Reads the models again while the service runs, and changes nothing when a file is bad."""

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

# That hang, and the memory of whose models is lost.
MAX_LOADS = 3


def has_terminal() -> bool:
    """Whether a terminal controls this process; not so once it is closed."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


class Reloader:
    """New models are loaded, verified and warmed beside the old ones, and then take their place at once.

    A photo under way ends with the model that it began with; when the last of them is done, the old model is freed.

    A load that has taken TOMAU_STUCK_S is overdue: it goes on, as nothing can stop it, but the next one does not wait
    for it any more. When it ends after a later one, it changes nothing.
    """

    def __init__(self, colorizer: Colorizer, settings: Settings, metrics: Metrics) -> None:
        self._colorizer = colorizer
        self._settings = settings
        self._metrics = metrics
        self._is_requested = False
        self._task: asyncio.Task[None] | None = None
        # Those under way, and when they began; of the event loop's thread only.
        self._loads: dict[asyncio.Future[bool], float] = {}
        self._numbers = itertools.count(1)
        self._swap = threading.Lock()
        self._served_number = 0  # the number of the load that made what serves now
        self.on_load: Callable[[], None] = lambda: None  # called whenever a load begins

    def request(self) -> None:
        """Has the models read again, from the event loop; what is asked for while that is being done, is done after."""
        self._is_requested = True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        else:
            log.info("the models are read again once the load that goes on has ended, or is overdue")

    def loading_for(self) -> float | None:
        """Return the seconds since the latest of the loads under way began; None when there is none."""
        began = list(self._loads.values())
        return time.monotonic() - max(began) if began else None

    @property
    def overdue(self) -> int:
        """How many loads have taken longer than they may."""
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
                log.error("a load of the models has not ended in %g s: the old ones serve, SIGHUP loads anew", limit)

    def _on_load_end(self, load: asyncio.Future[bool]) -> None:
        del self._loads[load]
        if not load.cancelled() and (error := load.exception()):
            log.error("the models were not reloaded: %s", error)
            self._metrics.reload(success=False)

    async def _wait_for_free_load(self) -> None:
        if len(self._loads) >= MAX_LOADS:
            log.error("%d loads of the models have not ended: no other begins until one does", len(self._loads))
            await asyncio.wait(self._loads, return_when=asyncio.FIRST_COMPLETED)

    def reload(self) -> bool:
        """Reads the models again, in this thread; whether that could be done."""
        number = next(self._numbers)
        try:
            registry = self._load()
        except (ModelRegistryError, ContractError, EngineError, OSError) as error:
            log.error("the models were not reloaded, and nothing has changed: %s", error)
        except Exception:
            log.exception("the models were not reloaded, and nothing has changed")
        else:
            if self._serve(registry, number):
                self._metrics.reload(success=True)
                return True
            log.error("the models were not reloaded, and nothing has changed: a later load has ended before")
        self._metrics.reload(success=False)
        return False

    def _serve(self, registry: ModelRegistry, number: int) -> bool:
        """Has a catalogue serve, unless that of a later load does."""
        with self._swap:
            if number < self._served_number:
                return False
            self._served_number = number
            self._colorizer.models = registry
        names = ", ".join(f"{model.contract.name} {model.contract.version} {model.sha256:.12}" for model in registry)
        log.info("the models were reloaded (%d of them new): %s", len(registry.fresh), names)
        return True

    def _load(self) -> ModelRegistry:
        old = self._colorizer.models
        # A GPU without room for both is no reason to go on with the CPU.
        registry = ModelRegistry(self._settings.model_copy(update={"device": old.device}), known=old)
        Colorizer(registry, self._settings).warm_up()
        registry.observe_runs(self._metrics.batch)
        return registry
