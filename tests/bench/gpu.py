"""A GPU: what the model alone can do on it, what the batcher makes of that, and what is left over HTTP: --help

Three steps, each in the same process conditions as the service's own:

- bare: a session with IO binding in a loop, for each batch size and precision, in one thread and in as many as a GPU
  has executors. Inputs are copied in and answers out, nothing else is done. For comparison: `run` without binding, of
  ordinary and of pinned memory, which lets other threads go on while it copies.
- batcher: many threads, each with one photo at a time.
- photos of 512x384: the whole way of a photo in as many threads as the service has, and the same over HTTP.

It needs no LitServe. Without ONNX Runtime's converter there (`onnxruntime.transformers`), make the model's two files
elsewhere (`--models FOLDER --make`) and bring the folder along. `--device cpu` measures the same on a CPU.
"""

import argparse
import hashlib
import http.client
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import cv2
import numpy as np
import onnxruntime as ort
import psutil

from service import memory
from service.batcher import Batcher
from service.catalog import EXECUTORS_A_GPU, Catalog
from service.colorizer import Colorizer, Options
from service.contract import INPUT, OUTPUT
from service.engine import Engine, Gpu, Loader, buckets
from service.executor import Bound, Device, Place, Plain, host_memory
from service.settings import Settings
from service.variants import half_of
from tests.bench import model, photos, tree
from tests.bench.bars import Bar
from tests.bench.report import number, table
from tests.bench.results import TOMAU, percentile
from tests.bench.servers import CORES, ROOT, Server, running

SIZE = (512, 384)
FP32, TF32, FP16 = "fp32", "fp32 with TF32", "fp16"
VARIANTS = (FP32, TF32, FP16)
BOUND, PLAIN, PINNED = "IO binding", "run", "run, pinned"
BATCHER_BAR, HALF_BAR, HTTP_BAR = 0.95, 1.6, 0.7
PACKAGES = ("onnxruntime-gpu", "onnxruntime", "opencv-python-headless", "simplejpeg", "uvicorn", "numpy")


@dataclass(frozen=True)
class Plan:
    """What is measured, and for how long each (seconds; bare loops, of which there are many, half as long).

    options: ONNX Runtime's for CUDA, over the service's.
    """

    device: Device = "cuda"
    max_batch: int = 32
    seconds: float = 2.0
    clients: int | None = None
    graphs: bool = False
    options: dict[str, str] = field(default_factory=dict)

    @property
    def variants(self) -> Sequence[str]:
        return VARIANTS if self.device == "cuda" else (FP32, FP16)

    @property
    def executors(self) -> int:
        return EXECUTORS_A_GPU if self.device == "cuda" else CORES

    def gpu(self, variant: str) -> Gpu:
        # Half precision needs TF32 to be allowed: see Catalog.
        return Gpu(0, variant != FP32, self.graphs, options=self.options)

    def settings(self, folder: Path) -> Settings:
        return Settings(
            models=folder,
            default_model=model.NAME,
            device=self.device,
            max_batch=self.max_batch,
            cuda_graphs=self.graphs,
            cuda_options=self.options,
        )


@dataclass(frozen=True)
class Bare:
    """Photos a second of bare loops side by side."""

    variant: str
    batch: int
    threads: int
    rate: float
    way: str = BOUND


@dataclass(frozen=True)
class Batched:
    """Photos a second through the batcher, and how many ran together on average; seconds to load and warm the model."""

    variant: str
    threads: int
    rate: float
    batch: float
    ready_s: float


@dataclass(frozen=True)
class Served:
    """The whole way of photos. `cores` is the CPU time of all threads by the time that went by.

    Over HTTP, `loop` is the share of one core that the event loop's thread took, else None.
    """

    way: str
    precision: str
    threads: int
    images: int
    rate: float
    cores: float
    p50_ms: float | None = None
    p99_ms: float | None = None
    loop: float | None = None
    refused: int = 0
    errors: dict[str, int] = field(default_factory=dict)


@dataclass
class Results:
    """Everything that was measured, and on what."""

    machine: dict[str, str]
    device: Device
    max_batch: int
    bare: list[Bare] = field(default_factory=list)
    batched: list[Batched] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)

    def best_bare(self, variant: str, batch: int | None = None) -> float:
        """Of one loop and of several side by side; NaN when it was not measured."""
        wanted = (variant, batch or self.max_batch)
        bound = [bare for bare in self.bare if bare.way == BOUND]
        return max((bare.rate for bare in bound if (bare.variant, bare.batch) == wanted), default=np.nan)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def make_models(folder: Path) -> None:
    """The benchmark's model and its half, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / f"{model.NAME}.onnx"
    if not whole.exists():
        whole.write_bytes(model.build())
    if not half_of(whole).exists():
        import onnx

        from model_export.half import halve

        half_of(whole).write_bytes(halve(onnx.load(whole)).SerializeToString())


def _file(folder: Path, variant: str) -> Path:
    whole = folder / f"{model.NAME}.onnx"
    return half_of(whole) if variant == FP16 else whole


def photos_a_second(calls: Sequence[Callable[[], int]], seconds: float) -> tuple[int, float]:
    """Calls each again and again in a thread of its own; the photos that they say they did, and those a second.

    Raises what a call raised.
    """
    counts, errors = [0] * len(calls), list[BaseException]()
    start = threading.Barrier(len(calls) + 1)

    def work(number: int) -> None:
        start.wait()
        try:
            while not errors and (counts[number] == 0 or time.monotonic() < until):
                counts[number] += calls[number]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    started = time.monotonic()
    until = started + seconds
    start.wait()
    for thread in threads:
        thread.join()
    took = time.monotonic() - started
    if errors:
        raise errors[0]
    return sum(counts), sum(counts) / took


def _session(file: Path, plan: Plan, variant: str, batch: int) -> ort.InferenceSession:
    """As the service makes them. A captured graph is one thread's only, so bare loops run without."""
    gpu = replace(plan.gpu(variant), graphs=False)
    return Loader(file, file.read_bytes(), plan.device, gpu).session(batch)


def _inputs(batch: int) -> np.ndarray:
    return np.random.default_rng(0).random((batch, 1, model.INPUT_SIZE, model.INPUT_SIZE), np.float32)


def _pinned_run(session: ort.InferenceSession, place: Place, batch: int) -> Callable[[np.ndarray], np.ndarray]:
    """A plain run of an input that is copied into pinned memory first."""
    value = host_memory((batch, 1, model.INPUT_SIZE, model.INPUT_SIZE), place)
    host = value.numpy()

    def run(lightness: np.ndarray, value: ort.OrtValue = value) -> np.ndarray:
        host[:] = lightness
        (chroma,) = session.run([OUTPUT], {INPUT: host})
        return chroma

    return run


def measure_bare(folder: Path, plan: Plan) -> Iterator[Bare]:
    place = Place(plan.device)
    for variant in plan.variants:
        for batch in buckets(plan.max_batch):
            session = _session(_file(folder, variant), plan, variant, batch)
            lightness = _inputs(batch)
            each = range(plan.executors)
            ways: dict[str, list[Callable[[np.ndarray], np.ndarray]]] = {
                BOUND: [Bound(session, batch, model.INPUT_SIZE, place, model.NAME).run for _ in each],
                PLAIN: [Plain(session, model.NAME).predict for _ in each],
                PINNED: [_pinned_run(session, place, batch) for _ in each],
            }
            for way, runs in ways.items():
                calls = [lambda run=run, lightness=lightness: len(run(lightness)) for run in runs]
                photos_a_second(calls, plan.seconds / 8)
                for threads in sorted({1, plan.executors}):
                    rate = photos_a_second(calls[:threads], plan.seconds / 2)[1]
                    yield Bare(variant, batch, threads, rate, way)


def measure_batched(folder: Path, plan: Plan) -> Iterator[Batched]:
    for variant in plan.variants:
        file = _file(folder, variant)
        started = time.monotonic()
        engine = Engine(
            file, file.read_bytes(), plan.device, plan.max_batch, executors=plan.executors, gpu=plan.gpu(variant)
        )
        engine.warm()
        ready_s = time.monotonic() - started
        # So many that each executor can be full while as many photos wait.
        threads = 2 * plan.executors * engine.max_batch
        batcher = Batcher(engine.executors, max_batch=engine.max_batch, capacity=threads)
        items = _inputs(threads)
        shares: list[float] = []

        def one(item: np.ndarray, batcher: Batcher = batcher, shares: list[float] = shares) -> int:
            shares.append(1 / batcher.predict(item).batch)
            return 1

        calls = [lambda item=item, one=one: one(item) for item in items]
        photos_a_second(calls, plan.seconds / 4)
        shares.clear()
        images, rate = photos_a_second(calls, plan.seconds)
        yield Batched(variant, threads, rate, images / sum(shares), ready_s)


def _precision(folder: Path, sha256: str) -> str:
    """Which of the model's files has that hash."""
    half = _file(folder, FP16)
    return FP16 if hashlib.sha256(half.read_bytes()).hexdigest() == sha256 else FP32


def measure_direct(folder: Path, plan: Plan, files: list[Path]) -> Served:
    """The service's own way of a photo in as many threads as it has, without HTTP."""
    memory.keep_freed()
    cv2.setNumThreads(1)
    settings = plan.settings(folder)
    catalog = Catalog(settings)
    colorizer = Colorizer(catalog, settings)
    data = [file.read_bytes() for file in files]

    def one(number: int) -> int:
        colorizer.colorize(data[number % len(data)], Options())
        return 1

    calls = [lambda number=number: one(number) for number in range(catalog.workers)]
    photos_a_second(calls, plan.seconds / 4)
    used, wall = time.process_time(), time.monotonic()
    images, rate = photos_a_second(calls, plan.seconds)
    used, wall = time.process_time() - used, time.monotonic() - wall
    precision = _precision(folder, catalog.get(None).sha256)
    return Served("no HTTP", precision, catalog.workers, images, rate, used / wall)


def _served_hash(server: Server) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request("GET", "/models")
        (only,) = json.load(connection.getresponse())["models"]
        return str(only["sha256"])
    finally:
        connection.close()


def _loop_seconds(pid: int) -> float:
    """CPU time of the process's first thread, which the event loop runs in; NaN where it isn't told."""
    try:
        times = {thread.id: thread.user_time + thread.system_time for thread in psutil.Process(pid).threads()}
    except psutil.Error:
        return np.nan
    return times.get(pid, np.nan)


def _load(server: Server, files: list[Path], clients: int, seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.bench.load", str(server.port), *map(str, files)]
    options = ["--clients", str(clients), "--seconds", str(seconds)]
    ended = subprocess.run([*command, *options], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    seen: dict[str, Any] = json.loads(ended.stdout)
    return seen


def measure_http(folder: Path, plan: Plan, files: list[Path], log: Path) -> Served:
    settings = plan.settings(folder)
    fields = ("device", "max_batch", "cuda_graphs")
    given = {name: str(getattr(settings, name)) for name in fields} | {"cuda_options": json.dumps(plan.options)}
    clients = plan.clients or (4 * plan.max_batch if plan.device == "cuda" else 4 * CORES)
    with running(TOMAU, _file(folder, FP32), log, given) as server:
        precision = _precision(folder, _served_hash(server))
        _load(server, files, clients, plan.seconds / 4)
        used, loop, wall = tree.cpu_seconds(server.pid), _loop_seconds(server.pid), time.monotonic()
        seen = _load(server, files, clients, plan.seconds)
        wall = time.monotonic() - wall
        used, loop = tree.cpu_seconds(server.pid) - used, _loop_seconds(server.pid) - loop
    answered = seen["answered"]
    busy = seen["last_answer"]
    p50, p99 = (1000 * percentile(answered, percent) for percent in (50, 99))
    return Served(
        "HTTP",
        precision,
        clients,
        len(answered),
        len(answered) / busy if busy else 0.0,
        # The load generator's own start is no time of work.
        used / min(wall, busy or wall),
        p50,
        p99,
        loop / min(wall, busy or wall),
        len(seen["refused"]),
        seen["errors"],
    )


def machine(plan: Plan) -> dict[str, str]:
    """What the figures were measured on."""
    facts = {"device": plan.device, "GPU": "none", "cores": str(CORES), "processor": _processor()}
    if plan.device == "cuda":
        facts["GPU"] = _gpu_name()
    versions = {name: _version(name) for name in PACKAGES}
    facts |= {"Python": platform.python_version(), "ONNX Runtime": ort.__version__}
    facts |= {name: found for name, found in versions.items() if found}
    return facts | {"CUDA graphs": str(plan.graphs), "seconds": f"{plan.seconds:g}"} | plan.options


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", path.read_text("utf-8", "replace")) if path.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def _gpu_name() -> str:
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return "unknown: there is no nvidia-smi"
    return "; ".join(lines)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def bars(results: Results) -> list[Bar]:
    """What an H200 has to reach; a CPU measures none of it."""
    batched = {found.variant: found.rate / results.best_bare(found.variant) for found in results.batched}
    worst = min(batched, key=lambda variant: batched[variant], default="")
    half = results.best_bare(FP16, 32) / results.best_bare(FP32, 32)
    rates = {served.way: served.rate for served in results.served}
    values = [
        (f"batcher at least {BATCHER_BAR:.0%} of the bare loop", batched.get(worst, np.nan), BATCHER_BAR, worst),
        (f"fp16 at least {HALF_BAR:g} times fp32 without TF32 at batch 32", half, HALF_BAR, ""),
        (
            f"over HTTP at least {HTTP_BAR:.0%} of the same without HTTP",
            rates.get("HTTP", np.nan) / rates.get("no HTTP", np.nan),
            HTTP_BAR,
            "",
        ),
    ]
    return [_bar(results, f"H200: {text}", value, limit, where) for text, value, limit, where in values]


def _bar(results: Results, text: str, value: float, limit: float, where: str) -> Bar:
    if results.device != "cuda" or np.isnan(value):
        return Bar(text, "not measured", None)
    return Bar(text, f"{value:.2f}" + (f" ({where})" if where else ""), bool(value >= limit))


def markdown(results: Results, reached: Sequence[Bar]) -> str:
    variants = list(dict.fromkeys(bare.variant for bare in results.bare))
    loops = sorted({(bare.way, bare.batch, bare.threads) for bare in results.bare})
    rates = {(bare.variant, bare.way, bare.batch, bare.threads): bare.rate for bare in results.bare}
    bare = [[*map(str, loop), *(number(rates.get((name, *loop), np.nan)) for name in variants)] for loop in loops]
    batched = [
        [
            b.variant,
            str(b.threads),
            number(b.rate),
            number(b.batch),
            number(b.rate / results.best_bare(b.variant), "{:.2f}"),
            number(b.ready_s),
        ]
        for b in results.batched
    ]
    served = [
        [
            s.way,
            s.precision,
            str(s.threads),
            number(s.rate),
            "-" if s.p50_ms is None or s.p99_ms is None else f"{s.p50_ms:.0f} / {s.p99_ms:.0f}",
            number(s.cores, "{:.2f}"),
            number(1000 * s.cores / s.rate if s.rate else np.nan, "{:.2f}"),
            "-" if s.loop is None else f"{s.loop:.0%} of a core, {s.loop / s.cores:.0%} of all",
            str(s.refused),
            ", ".join(f"{count} x {kind}" for kind, count in s.errors.items()) or "0",
        ]
        for s in results.served
    ]
    words = {True: "met", False: "MISSED", None: "not measured"}
    served_head = ["way", "precision", "threads or clients", "images/s", "p50 / p99, ms", "cores", "CPU ms an image"]
    best = f"of the best bare loop at {results.max_batch}"
    batched_head = ["precision", "threads", "images/s", "mean batch", best, "ready after, s"]
    parts = [
        "# GPU benchmark\n",
        ", ".join(f"{key}: {value}" for key, value in results.machine.items()),
        "\n## Bare loops, images/s\n",
        table(["way", "batch", "loops", *variants], bare),
        "\n## Through the batcher\n",
        table(batched_head, batched),
        f"\n## Photos of {SIZE[0]}x{SIZE[1]}\n",
        table([*served_head, "event loop", "503", "errors"], served),
        "\n## Bars\n",
        table(["bar", "measured", ""], [[bar.text, bar.value, words[bar.met]] for bar in reached]),
    ]
    return "\n".join(parts) + "\n"


def run(plan: Plan, folder: Path, scratch: Path) -> Results:
    make_models(folder)
    files = photos.write(scratch, SIZE)
    # A CPU's engine runs one photo at a time, whatever is asked for.
    results = Results(machine(plan), plan.device, plan.max_batch if plan.device == "cuda" else 1)
    for bare in measure_bare(folder, plan):
        _say(f"bare: {bare}")
        results.bare.append(bare)
    for batched in measure_batched(folder, plan):
        _say(f"batcher: {batched}")
        results.batched.append(batched)
    for measure in (
        lambda: measure_direct(folder, plan, files),
        lambda: measure_http(folder, plan, files, scratch / "log"),
    ):
        results.served.append(measure())
        _say(f"photos: {results.served[-1]}")
    return results


def write(results: Results, folder: Path) -> str:
    """Writes the report as Markdown and JSON; returns the text."""
    folder.mkdir(parents=True, exist_ok=True)
    reached = bars(results)
    text = markdown(results, reached)
    (folder / "gpu.md").write_text(text, "utf-8")
    (folder / "gpu.json").write_text(
        json.dumps(asdict(results) | {"bars": [asdict(bar) for bar in reached]}, indent=1), "utf-8"
    )
    return text


def _option(text: str) -> tuple[str, str]:
    name, value = text.split("=", 1)
    return name, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--max-batch", type=int, default=Plan.max_batch)
    parser.add_argument(
        "--seconds",
        type=float,
        default=Plan.seconds,
        help="of each figure (default 2; bare loops: half), after a quarter of warming",
    )
    parser.add_argument("--clients", type=int, help="over HTTP; by default 4 x max-batch, or 4 x cores on a CPU")
    parser.add_argument("--graphs", action="store_true", help="CUDA graphs, for all but the bare loops")
    parser.add_argument("--option", type=_option, nargs="+", default=[], help="of ONNX Runtime's CUDA: prefer_nhwc=1")
    parser.add_argument(
        "--models", type=Path, help="folder of the model's two files, which are made if they are missing"
    )
    parser.add_argument("--make", action="store_true", help="only make them")
    parser.add_argument("--output", type=Path, default=Path("runs/bench-gpu"), help="folder of the report")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = _parser()
    args = parser.parse_args(argv)
    if args.make:
        if args.models is None:
            parser.error("--make: say where, with --models")
        make_models(args.models)
        return
    plan = Plan(args.device, args.max_batch, args.seconds, args.clients, args.graphs, dict(args.option))
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.models or Path(scratch) / "models"
        print(write(run(plan, folder, Path(scratch)), args.output), end="")


if __name__ == "__main__":
    main()
