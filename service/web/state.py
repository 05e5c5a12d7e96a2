"""State that the routes, the server and the watchdog share."""

from service.observability.metrics import Metrics
from service.pipeline.colorizer import Colorizer
from service.runtime.admission import Places
from service.runtime.worker_pool import Workers
from service.settings import Settings
from service.web.batch import BatchSlots
from service.web.reload import Reloader


class State:
    """What the routes share; made by `create_app`."""

    def __init__(self, settings: Settings, colorizer: Colorizer, metrics: Metrics) -> None:
        catalog = colorizer.catalog
        self.settings = settings
        self.colorizer = colorizer
        self.metrics = metrics
        self.reloader = Reloader(colorizer, settings, metrics)
        self.uploads = Places("uploads", settings.max_uploads)
        self.batch_uploads = Places("uploads of batches", settings.max_batch_uploads)
        self.upload_bytes = Places("bytes being uploaded", settings.max_upload_bytes)
        self.unread = Places("bytes of answers not read yet", settings.max_unread_bytes)
        self.connections = Places("connections", settings.max_connections)
        self.workers = Workers(catalog.workers, Places("photos", catalog.max_photos), settings.max_wait_s)
        self.batches = Places("batches", settings.max_uploads)
        self.batch_slots = BatchSlots(min(catalog.workers, max(1, catalog.max_photos // 2)))
        self.draining = False
        catalog.watch(metrics.batch)
        metrics.watch(self)

    def not_ready_reason(self) -> str | None:
        """Why it is not ready to take a photo, if it is not."""
        if self.draining:
            return "the service is about to stop"
        if self.workers.stuck_for() > self.settings.deadline_s:
            return "no worker has finished its photo in time"
        for model in self.colorizer.catalog:
            if model.batcher.runs.stuck_for() > self.settings.deadline_s:
                return f"no run of the model {model.contract.name} has ended in time"
            if model.batcher.suspects.failing_for():
                return f"the model {model.contract.name} fails on a black photo, too"
        return None
