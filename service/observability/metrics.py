"""The metrics of the service, for Prometheus at `GET /metrics`.

Counters and histograms are updated as events happen. Gauges (slots, queues, models) are read from their owners at each
scrape. Labels have few values, whatever clients send: routes but no paths, problem codes but no texts, no file names,
no addresses.
"""

from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from platform import python_version
from typing import Any, Literal, NamedTuple, Protocol

import onnxruntime as ort
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from service.errors import ClientGone, Problem, UploadTooSlow
from service.pipeline import stages
from service.pipeline.colorizer import ColoredImage, Colorizer
from service.runtime import memory
from service.runtime.admission import Slots
from service.runtime.worker_pool import WorkerPool

STAGES = ("receive", *stages.STAGES)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# The label of a path without a route, and of an unknown method.
OTHER = "other"
# The label of the route, method and status of a request that was refused before it was complete.
NONE = "none"
# Problems that are not the fault of the request: of the service, of its load, or of the client's connection.
DROPS = [kind for kind in Problem.__subclasses__() if kind.status >= 500 or kind in (ClientGone, UploadTooSlow)]
REASONS = [kind.code for kind in DROPS]

# Buckets from a stage of a small photo to beyond the deadline.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Series(NamedTuple):
    """A metric: its name, kind, labels and meaning."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    meaning: str


REQUESTS = Series(
    "tomau_requests_total",
    "counter",
    ("route", "method", "status", "code"),
    "Requests that ended. `code` is the problem code; it is empty for a success.",
)
REQUEST_SECONDS = Series(
    "tomau_request_seconds",
    "histogram",
    ("route",),
    "Seconds from the header section of a request to the end of its response.",
)
STAGE_SECONDS = Series(
    "tomau_stage_seconds",
    "histogram",
    ("stage",),
    "Seconds that coloured photos took in each stage: " + ", ".join(STAGES) + ".",
)
PHOTOS = Series(
    "tomau_photos_total",
    "counter",
    ("model",),
    "Photos that were returned. `model` is empty for a photo in colour that was kept.",
)
PIXELS = Series(
    "tomau_photo_pixels_total",
    "counter",
    ("direction",),
    "Pixels of coloured photos: `in` for uploads, `out` for outputs.",
)
BYTES = Series(
    "tomau_photo_bytes_total",
    "counter",
    ("direction",),
    "Bytes of coloured photos: `in` for uploads, `out` for outputs.",
)
DROPPED = Series(
    "tomau_dropped_total",
    "counter",
    ("reason",),
    "Requests that failed through no fault of the request, by problem code.",
)
BATCH_SIZE = Series("tomau_batch_size", "histogram", (), "Photos in one run of a model.")
PADDING = Series(
    "tomau_batch_padding_total", "counter", (), "Empty photos that filled batches up to a prepared batch size of a GPU."
)
RELOADS = Series("tomau_reloads_total", "counter", ("result",), "Reloads of the models, by `success` or `failure`.")
RELOADS_OVERDUE = Series("tomau_reloads_overdue", "gauge", (), "Reloads that are still running after TOMAU_STUCK_S.")

READY = Series("tomau_ready", "gauge", (), "1 if `/readyz` reports ready, else 0.")
INSIDE = Series(
    "tomau_photos_inside", "gauge", (), "Photos that have a slot: those that wait for a thread and those in progress."
)
PHOTO_LIMIT = Series("tomau_photos_limit", "gauge", (), "Slots for photos.")
WAITING = Series("tomau_photos_waiting", "gauge", (), "Photos that wait for a worker thread.")
WAIT_SECONDS = Series("tomau_photos_wait_seconds", "gauge", (), "Seconds that the oldest of these photos has waited.")
QUEUE_DEPTH = Series(
    "tomau_queue_depth", "gauge", ("model",), "Photos that wait for an executor in the model's batcher."
)
UPLOADS = Series("tomau_uploads", "gauge", (), "Uploads being received.")
UPLOAD_BYTES = Series(
    "tomau_upload_bytes_inflight",
    "gauge",
    (),
    "Bytes of uploads in memory, both of those being received and of photos that have a slot.",
)
UNREAD = Series("tomau_unread_bytes", "gauge", (), "Bytes of responses in memory that clients have not read yet.")
CONNECTIONS = Series("tomau_connections", "gauge", (), "Open connections.")
MEMORY_LIMIT = Series(
    "tomau_memory_limit_bytes",
    "gauge",
    (),
    "Memory limit of the process: the container's limit or the machine's memory.",
)
MODEL = Series(
    "tomau_model_info",
    "gauge",
    ("name", "version", "sha256", "color_space", "device", "default"),
    "The value is 1 for each model that is served.",
)
BUILD = Series(
    "tomau_build_info",
    "gauge",
    ("version", "python", "onnxruntime"),
    "The value is 1. The labels are the running versions.",
)

ALL = (
    REQUESTS,
    REQUEST_SECONDS,
    STAGE_SECONDS,
    PHOTOS,
    PIXELS,
    BYTES,
    DROPPED,
    BATCH_SIZE,
    PADDING,
    RELOADS,
    RELOADS_OVERDUE,
    READY,
    INSIDE,
    PHOTO_LIMIT,
    WAITING,
    WAIT_SECONDS,
    QUEUE_DEPTH,
    UPLOADS,
    UPLOAD_BYTES,
    UNREAD,
    CONNECTIONS,
    MEMORY_LIMIT,
    MODEL,
    BUILD,
)


def table() -> str:
    """Return all metrics of the service as a Markdown table."""
    lines = ["| metric | kind | labels | meaning |", "| --- | --- | --- | --- |"]
    for series in ALL:
        labels = ", ".join(f"`{label}`" for label in series.labels)
        lines.append(f"| `{series.name}` | {series.kind} | {labels} | {series.meaning} |")
    return "\n".join(lines) + "\n"


class Reloads(Protocol):
    """The part of the reloader that the gauges are read from."""

    @property
    def overdue(self) -> int:
        """The number of reloads that run for longer than they should."""


class ServiceState(Protocol):
    """The part of the service's state that the gauges are read from."""

    colorizer: Colorizer
    uploads: Slots
    batch_uploads: Slots
    upload_bytes: Slots
    unread: Slots
    connections: Slots
    workers: WorkerPool

    @property
    def reloader(self) -> Reloads:
        """The owner of the reloads."""

    def not_ready_reason(self) -> str | None:
        """Return why the service is not ready, or None if it is ready."""


class Metrics:
    """The metrics of one app, in a registry of their own. Safe to use from many threads concurrently."""

    def __init__(self, routes: Iterable[str] = ()) -> None:
        """Create all series. routes: the paths to count requests by; all other paths count as `other`."""
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._routes = frozenset(routes)
        self._requests = self._counter(REQUESTS)
        self._request_seconds = self._histogram(REQUEST_SECONDS, SECONDS)
        self._photos = self._counter(PHOTOS)
        stages = self._histogram(STAGE_SECONDS, SECONDS)
        pixels, bytes_ = self._counter(PIXELS), self._counter(BYTES)
        dropped, reloads = self._counter(DROPPED), self._counter(RELOADS)
        self._batch_size = self._histogram(BATCH_SIZE, SIZES)
        self._padding = self._counter(PADDING)
        # Children are kept here, because looking one up by its labels takes longer than counting. Possible values exist
        # from the start with a zero: else the first event would not appear in a rate.
        self._ends: dict[tuple[str, str, int | None, str], tuple[Counter, Histogram]] = {}
        self._stages = {stage: stages.labels(stage) for stage in STAGES}
        self._pixels_in, self._pixels_out = pixels.labels("in"), pixels.labels("out")
        self._bytes_in, self._bytes_out = bytes_.labels("in"), bytes_.labels("out")
        self._dropped = {reason: dropped.labels(reason) for reason in REASONS}
        # Alerts compare failures with this series, also before the first photo is returned.
        self._photos.labels("")
        self._reloads = {True: reloads.labels("success"), False: reloads.labels("failure")}
        ProcessCollector(registry=self.registry)

    def _counter(self, series: Series) -> Counter:
        return Counter(series.name, series.meaning, series.labels, registry=self.registry)

    def _histogram(self, series: Series, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(series.name, series.meaning, series.labels, registry=self.registry, buckets=buckets)

    def route_of(self, scope: Mapping[str, Any]) -> str:
        """Return the route of a request from its ASGI scope, or `other` if it has none."""
        found = getattr(scope.get("route"), "path", None)
        if isinstance(found, str):
            return found
        # The request was refused before routing, or it belongs to a mounted app.
        return next((path for path in (scope["path"], scope.get("root_path")) if path in self._routes), OTHER)

    def request(self, route: str, method: str, status: int | None, code: str, seconds: float) -> None:
        """Count a request that ended. code: of its problem, or empty. status: None if there was no response."""
        key = route, method if method in METHODS else OTHER, status, code
        end = self._ends.get(key)
        if end is None:
            child = self._requests.labels(*key[:2], status or NONE, code)
            end = self._ends[key] = child, self._request_seconds.labels(route)
        end[0].inc()
        end[1].observe(seconds)
        self.drop(code)

    def refuse(self, problem: Problem) -> None:
        """Count a request that was refused before it was complete."""
        self._requests.labels(NONE, NONE, problem.status, problem.code).inc()
        self.drop(problem.code)

    def drop(self, code: str) -> None:
        """Count a request, or a photo of a batch, as dropped if its problem code is one of REASONS."""
        if code in self._dropped:
            self._dropped[code].inc()

    def stage(self, stage: str, seconds: float) -> None:
        """Count one stage of a photo that was coloured."""
        self._stages[stage].observe(seconds)

    def photo(self, image: ColoredImage, uploaded: int) -> None:
        """Count a photo and its stages. A photo that was kept counts without its stages. uploaded: its size, bytes."""
        self._photos.labels((image.model or "").partition("/")[0]).inc()
        if image.model is None:
            return
        self._pixels_in.inc(image.pixels_in)
        self._pixels_out.inc(image.pixels_out)
        self._bytes_in.inc(uploaded)
        self._bytes_out.inc(len(image.data))
        for stage, seconds in image.seconds.items():
            self.stage(stage, seconds)

    def batch(self, photos: int, padded_size: int) -> None:
        """Count a run of a model. padded_size: the batch size including padding."""
        self._batch_size.observe(photos)
        self._padding.inc(padded_size - photos)

    def reload(self, *, success: bool) -> None:
        """Count a reload."""
        self._reloads[success].inc()

    def observe(self, state: ServiceState) -> None:
        """Read the gauges from this state at each scrape."""
        self.registry.register(_StateCollector(state))

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics in the text format that an Accept header requests, and its media type."""
        try:
            encode, media_type = choose_encoder(accept)
            return encode(self.registry), media_type
        except (TypeError, ValueError):  # The library raises these for an invalid version in the header.
            encode, media_type = choose_encoder("")
            return encode(self.registry), media_type


class _StateCollector(Collector):
    """Reads the gauges from the state of the service."""

    def __init__(self, state: ServiceState) -> None:
        self._state = state
        self._build = {"version": version("tomau"), "python": python_version(), "onnxruntime": ort.__version__}

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges with their current values."""
        state = self._state
        workers = state.workers
        yield _gauge(READY, state.not_ready_reason() is None)
        yield _gauge(INSIDE, workers.slots.in_use)
        yield _gauge(PHOTO_LIMIT, workers.slots.limit)
        yield _gauge(WAITING, workers.waiting)
        yield _gauge(WAIT_SECONDS, workers.longest_wait())
        yield _gauge(UPLOADS, state.uploads.in_use + state.batch_uploads.in_use)
        yield _gauge(UPLOAD_BYTES, state.upload_bytes.in_use)
        yield _gauge(UNREAD, state.unread.in_use)
        yield _gauge(CONNECTIONS, state.connections.in_use)
        yield _gauge(RELOADS_OVERDUE, state.reloader.overdue)
        yield _gauge(MEMORY_LIMIT, memory.limit())
        yield from self._models()
        yield _family(BUILD, [(self._build, 1)])

    def _models(self) -> Iterator[GaugeMetricFamily]:
        registry = self._state.colorizer.models
        yield _family(QUEUE_DEPTH, [({"model": model.contract.name}, model.batcher.depth) for model in registry])
        infos = [
            {
                "name": model.contract.name,
                "version": model.contract.version,
                "sha256": model.sha256,
                "color_space": model.contract.color_space,
                "device": model.device,
                "default": str(model.contract.name == registry.default).lower(),
            }
            for model in registry
        ]
        yield _family(MODEL, [(info, 1) for info in infos])


def _gauge(series: Series, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(series.name, series.meaning, float(value))


def _family(series: Series, values: Iterable[tuple[Mapping[str, str], float]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(series.name, series.meaning, labels=series.labels)
    for labels, value in values:
        family.add_metric([labels[name] for name in series.labels], value)
    return family
