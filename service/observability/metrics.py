"""What the service counts and measures, for Prometheus at `GET /metrics`.

What happens is counted as it happens. What merely is (places, queues, models) is read where it lives, when it is asked
for. Labels take few values, whoever calls: routes and never paths, problem codes and never texts, no names of files,
no addresses.
"""

from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from platform import python_version
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import onnxruntime as ort
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from service.errors import ClientGone, Problem, UploadTooSlow
from service.runtime import memory
from service.runtime.admission import Slots

if TYPE_CHECKING:
    from service.pipeline.colorizer import ColoredImage, Colorizer
    from service.runtime.worker_pool import WorkerPool
    from service.web.reload import Reloader

STAGES = ("receive", "decode", "queue", "infer", "merge", "encode")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# A path that no route has, a method that nobody knows.
OTHER = "other"
# There was no whole request to have a route, a method or an answer.
NONE = "none"
# Why a good request may go without its answer: the service's state, the time, the client's connection.
LOSSES = [kind for kind in Problem.__subclasses__() if kind.status >= 500 or kind in (ClientGone, UploadTooSlow)]
REASONS = [kind.code for kind in LOSSES]

# From a small photo's stage to the deadline and beyond.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Series(NamedTuple):
    """One metric: its name, kind, labels and meaning."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    meaning: str


REQUESTS = Series(
    "tomau_requests_total",
    "counter",
    ("route", "method", "status", "code"),
    "Requests that ended; `code` is that of the problem, empty when there was none.",
)
REQUEST_SECONDS = Series(
    "tomau_request_seconds", "histogram", ("route",), "Seconds from a request's headers to the end of its answer."
)
STAGE_SECONDS = Series(
    "tomau_stage_seconds",
    "histogram",
    ("stage",),
    "Seconds that coloured photos took in each stage: " + ", ".join(STAGES) + ".",
)
PHOTOS = Series("tomau_photos_total", "counter", ("model",), "Photos answered; `model` is empty for those kept.")
PIXELS = Series(
    "tomau_photo_pixels_total",
    "counter",
    ("direction",),
    "Pixels of coloured photos, `in` as uploaded, `out` as answered.",
)
BYTES = Series(
    "tomau_photo_bytes_total",
    "counter",
    ("direction",),
    "Bytes of coloured photos, `in` as uploaded, `out` as answered.",
)
DROPPED = Series(
    "tomau_dropped_total",
    "counter",
    ("reason",),
    "Requests that failed for another reason than what they asked for, by the code of the problem.",
)
BATCH_SIZE = Series("tomau_batch_size", "histogram", (), "Photos in a run of a model.")
PADDING = Series("tomau_batch_padding_total", "counter", (), "Empty places that a GPU ran along with its batches.")
RELOADS = Series("tomau_reloads_total", "counter", ("result",), "Reloads of the models: `success` or `failure`.")
RELOADS_OVERDUE = Series(
    "tomau_reloads_overdue", "gauge", (), "Reloads that have not ended within TOMAU_STUCK_S, and go on."
)

READY = Series("tomau_ready", "gauge", (), "Whether /readyz is green: 1 or 0.")
INSIDE = Series("tomau_photos_inside", "gauge", (), "Photos that have a place inside, waiting or at work.")
PLACES = Series("tomau_photos_limit", "gauge", (), "Places for photos inside.")
WAITING = Series("tomau_photos_waiting", "gauge", (), "Photos that wait for a thread.")
WAIT_SECONDS = Series("tomau_photos_wait_seconds", "gauge", (), "Seconds that the first of them has waited.")
QUEUE_DEPTH = Series(
    "tomau_queue_depth", "gauge", ("model",), "Photos that wait for a model's executor, in its batcher."
)
UPLOADS = Series("tomau_uploads", "gauge", (), "Uploads being received.")
UPLOAD_BYTES = Series(
    "tomau_upload_bytes_inflight", "gauge", (), "Bytes of uploads in memory, being received or of photos inside."
)
UNREAD = Series("tomau_unread_bytes", "gauge", (), "Bytes of answers in memory that clients have not read yet.")
CONNECTIONS = Series("tomau_connections", "gauge", (), "Open connections.")
MEMORY_LIMIT = Series(
    "tomau_memory_limit_bytes", "gauge", (), "Memory that the process may have: its container's, else the machine's."
)
MODEL = Series(
    "tomau_model_info",
    "gauge",
    ("name", "version", "sha256", "color_space", "device", "default"),
    "Models served: 1 each.",
)
BUILD = Series("tomau_build_info", "gauge", ("version", "python", "onnxruntime"), "What runs: 1.")

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
    PLACES,
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
    """Every metric of the service's own, as a Markdown table."""
    lines = ["| metric | kind | labels | meaning |", "| --- | --- | --- | --- |"]
    for series in ALL:
        labels = ", ".join(f"`{label}`" for label in series.labels)
        lines.append(f"| `{series.name}` | {series.kind} | {labels} | {series.meaning} |")
    return "\n".join(lines) + "\n"


class ServiceState(Protocol):
    """What merely is: the part of the routes' state that the figures are read from."""

    colorizer: "Colorizer"
    reloader: "Reloader"
    uploads: Slots
    batch_uploads: Slots
    upload_bytes: Slots
    unread: Slots
    connections: Slots
    workers: "WorkerPool"

    def not_ready_reason(self) -> str | None:
        """Why the service is not ready, if it is not."""


class Metrics:
    """The counters and histograms of one app, in a registry of its own. Safe to use from many threads at once."""

    def __init__(self, routes: Iterable[str] = ()) -> None:
        """routes: the paths that a request may be counted under; all others are one."""
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
        # Looking a child up by its labels takes longer than counting. And what is known to be possible is there from
        # the start, with a zero: a rate can't see the first of what was not.
        self._ends: dict[tuple[str, str, int | None, str], tuple[Counter, Histogram]] = {}
        self._stages = {stage: stages.labels(stage) for stage in STAGES}
        self._pixels_in, self._pixels_out = pixels.labels("in"), pixels.labels("out")
        self._bytes_in, self._bytes_out = bytes_.labels("in"), bytes_.labels("out")
        self._dropped = {reason: dropped.labels(reason) for reason in REASONS}
        # The alerts set what fails beside these, also before the first is answered.
        self._photos.labels("")
        self._reloads = {True: reloads.labels("success"), False: reloads.labels("failure")}
        ProcessCollector(registry=self.registry)

    def _counter(self, series: Series) -> Counter:
        return Counter(series.name, series.meaning, series.labels, registry=self.registry)

    def _histogram(self, series: Series, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(series.name, series.meaning, series.labels, registry=self.registry, buckets=buckets)

    def route_of(self, scope: Mapping[str, Any]) -> str:
        """The route of a request, from its ASGI scope; `other` where it has none."""
        found = getattr(scope.get("route"), "path", None)
        if isinstance(found, str):
            return found
        # Refused before it was routed, or a part of something mounted.
        return next((path for path in (scope["path"], scope.get("root_path")) if path in self._routes), OTHER)

    def request(self, route: str, method: str, status: int | None, code: str, seconds: float) -> None:
        """Counts a request that ended. `code` is that of its problem, if any; no status: it was never answered."""
        key = route, method if method in METHODS else OTHER, status, code
        end = self._ends.get(key)
        if end is None:
            child = self._requests.labels(*key[:2], status or NONE, code)
            end = self._ends[key] = child, self._request_seconds.labels(route)
        end[0].inc()
        end[1].observe(seconds)
        self.drop(code)

    def refuse(self, problem: Problem) -> None:
        """Counts what was refused before it was a whole request."""
        self._requests.labels(NONE, NONE, problem.status, problem.code).inc()
        self.drop(problem.code)

    def drop(self, code: str) -> None:
        """Counts a request, or a photo of many, as dropped, if the code of its problem says so."""
        if code in self._dropped:
            self._dropped[code].inc()

    def stage(self, stage: str, seconds: float) -> None:
        """Counts one stage of a photo that was coloured."""
        self._stages[stage].observe(seconds)

    def photo(self, answer: "ColoredImage", uploaded: int) -> None:
        """Counts a photo, of so many bytes as it came, and its stages; of one that was kept, only that it was."""
        self._photos.labels((answer.model or "").partition("/")[0]).inc()
        if answer.model is None:
            return
        self._pixels_in.inc(answer.pixels_in)
        self._pixels_out.inc(answer.pixels_out)
        self._bytes_in.inc(uploaded)
        self._bytes_out.inc(len(answer.data))
        for stage, seconds in answer.seconds.items():
            self.stage(stage, seconds)

    def batch(self, photos: int, padded_size: int) -> None:
        """Counts a run of a model with so many photos in so many places."""
        self._batch_size.observe(photos)
        self._padding.inc(padded_size - photos)

    def reload(self, *, success: bool) -> None:
        """Counts a reload."""
        self._reloads[success].inc()

    def observe(self, state: "ServiceState") -> None:
        """Has what merely is read from there."""
        self.registry.register(_Watch(state))

    def page(self, accept: str) -> tuple[bytes, str]:
        """Everything, as text of the kind that an Accept header asks for, else plain text, and its media type."""
        try:
            encode, media_type = choose_encoder(accept)
            return encode(self.registry), media_type
        except (TypeError, ValueError):  # what the library makes of a version that is none, as `text/plain;version=x`
            encode, media_type = choose_encoder("")
            return encode(self.registry), media_type


class _Watch(Collector):
    """Reads what the service's parts know about themselves."""

    def __init__(self, state: "ServiceState") -> None:
        self._state = state
        self._build = {"version": version("tomau"), "python": python_version(), "onnxruntime": ort.__version__}

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges, as they are now."""
        state = self._state
        workers = state.workers
        yield _gauge(READY, state.not_ready_reason() is None)
        yield _gauge(INSIDE, workers.slots.in_use)
        yield _gauge(PLACES, workers.slots.limit)
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
