"""Reads the models again while the service runs, and changes nothing when a file is bad."""

import asyncio
import logging
import os

from service.catalog import Catalog, CatalogError
from service.colorizer import Colorizer
from service.contract import ContractError
from service.executor import EngineError
from service.metrics import Metrics
from service.settings import Settings
from service.threads import apart

log = logging.getLogger(__name__)


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
    """

    def __init__(self, colorizer: Colorizer, settings: Settings, metrics: Metrics) -> None:
        self._colorizer = colorizer
        self._settings = settings
        self._metrics = metrics
        self._is_wanted = False
        self._task: asyncio.Task[None] | None = None

    def request(self) -> None:
        """Has the models read again, from the event loop; what is asked for while that is being done, is done after."""
        self._is_wanted = True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while self._is_wanted:
            self._is_wanted = False
            await apart(self.reload)

    def reload(self) -> bool:
        """Reads the models again, in this thread; whether that could be done."""
        try:
            catalog = self._load()
        except (CatalogError, ContractError, EngineError, OSError) as error:
            log.error("the models were not reloaded, and nothing has changed: %s", error)
        except Exception:
            log.exception("the models were not reloaded, and nothing has changed")
        else:
            self._colorizer.catalog = catalog
            names = ", ".join(f"{model.contract.name} {model.contract.version} {model.sha256:.12}" for model in catalog)
            log.info("the models were reloaded (%d of them new): %s", len(catalog.fresh), names)
            self._metrics.reload(success=True)
            return True
        self._metrics.reload(success=False)
        return False

    def _load(self) -> Catalog:
        old = self._colorizer.catalog
        # A GPU without room for both is no reason to go on with the CPU.
        catalog = Catalog(self._settings.model_copy(update={"device": old.device}), known=old)
        Colorizer(catalog, self._settings).warm()
        catalog.watch(self._metrics.batch)
        return catalog
