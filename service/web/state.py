"""The state that the routes, the server and the watchdog share."""

from service.observability.metrics import Metrics
from service.pipeline.colorizer import Colorizer
from service.runtime.admission import Slots
from service.runtime.worker_pool import WorkerPool
from service.settings import Settings
from service.web.batch import BatchSlots
from service.web.reload import Reloader


class State:
    """The settings, models, limits and metrics of one service. `create_app` creates it."""

    def __init__(self, settings: Settings, colorizer: Colorizer, metrics: Metrics) -> None:
        registry = colorizer.models
        self.settings = settings
        self.colorizer = colorizer
        self.metrics = metrics
        self.reloader = Reloader(colorizer, settings, metrics)
        self.uploads = Slots("uploads", settings.max_uploads)
        self.batch_uploads = Slots("batch uploads", settings.max_batch_uploads)
        self.upload_bytes = Slots("bytes being uploaded", settings.max_upload_bytes)
        self.unread = Slots("unread bytes of responses", settings.max_unread_bytes)
        self.connections = Slots("connections", settings.max_connections)
        self.workers = WorkerPool(registry.workers, Slots("photos", registry.max_photos), settings.max_wait_s)
        self.batches = Slots("batches", settings.max_uploads)
        self.batch_slots = BatchSlots(min(registry.workers, max(1, registry.max_photos // 2)))
        self.draining = False
        registry.observe_runs(metrics.batch)
        metrics.observe(self)

    def not_ready_reason(self) -> str | None:
        """Return why the service is not ready to accept a photo, or None if it is ready."""
        if self.draining:
            return "the service is stopping"
        if self.workers.stuck_for() > self.settings.deadline_s:
            return "no worker has finished its photo in time"
        for model in self.colorizer.models:
            if model.batcher.runs.stuck_for() > self.settings.deadline_s:
                return f"no run of the model {model.contract.name} has ended in time"
            if model.batcher.failing_executors.failing_for():
                return f"the model {model.contract.name} fails on a black photo, too"
        return None
