"""The measurements on a GPU: bare loops, the batcher, and the whole pipeline without and with HTTP."""

import hashlib
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
import psutil

from service.inference.batcher import Batcher
from service.inference.contract import INPUT, OUTPUT
from service.inference.executor import BoundSession, CpuExecutor, Device, DeviceRef, host_memory
from service.inference.half_precision import half_of
from service.inference.registry import EXECUTORS_PER_GPU, ModelRegistry
from service.inference.session import Engine, Gpu, SessionLoader, batch_sizes
from service.pipeline.colorizer import Colorizer
from service.pipeline.options import Options
from service.runtime import memory
from service.settings import Settings
from tests.bench import model, tree
from tests.bench.gpu_results import BOUND, FP16, FP32, PINNED, PLAIN, TF32, Bare, Batched, Served
from tests.bench.results import TOMAU, percentile
from tests.bench.servers import CORES, ROOT, Server, running

VARIANTS = (FP32, TF32, FP16)


@dataclass(frozen=True)
class Plan:
    """The plan of a benchmark. seconds: per measurement; the many bare loops get half of it.

    options: of ONNX Runtime's CUDA provider, in addition to the service's.
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
        return EXECUTORS_PER_GPU if self.device == "cuda" else CORES

    def gpu(self, variant: str) -> Gpu:
        # Half precision needs TF32: see ModelRegistry.
        return Gpu(0, variant != FP32, self.graphs, options=self.options)

    def settings(self, folder: Path) -> Settings:
        return Settings(
            models=folder,
            default_model=model.NAME,
            device=self.device,
            inference_batch_size=self.max_batch,
            cuda_graphs=self.graphs,
            cuda_options=self.options,
        )


def make_models(folder: Path) -> None:
    """Create the benchmark's model and its half-precision version, unless they exist."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / f"{model.NAME}.onnx"
    if not whole.exists():
        whole.write_bytes(model.build())
    if not half_of(whole).exists():
        import onnx

        from model_export.export.fp16 import to_fp16

        half_of(whole).write_bytes(to_fp16(onnx.load(whole)).SerializeToString())


def _file(folder: Path, variant: str) -> Path:
    whole = folder / f"{model.NAME}.onnx"
    return half_of(whole) if variant == FP16 else whole


def photos_a_second(calls: Sequence[Callable[[], int]], seconds: float) -> tuple[int, float]:
    """Call each function repeatedly in a thread of its own. Return the number of photos and the photos per second.

    Each call returns its number of photos. Raises what a call raised.
    """
    counts, errors = [0] * len(calls), list[BaseException]()
    start = threading.Barrier(len(calls) + 1)

    def work(number: int) -> None:
        start.wait()
        try:
            while not errors and (counts[number] == 0 or time.monotonic() < until):
                counts[number] += calls[number]()
        except BaseException as error:  # noqa: BLE001 - raised again by the caller's thread
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
    """Return a session as in the service. A captured graph belongs to one thread, so bare loops run without graphs."""
    gpu = replace(plan.gpu(variant), graphs=False)
    return SessionLoader(file, file.read_bytes(), plan.device, gpu).session(batch)


def _inputs(batch: int) -> np.ndarray:
    return np.random.default_rng(0).random((batch, 1, model.INPUT_SIZE, model.INPUT_SIZE), np.float32)


def _pinned_run(session: ort.InferenceSession, place: DeviceRef, batch: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that copies its input into pinned memory and calls `run`."""
    value = host_memory((batch, 1, model.INPUT_SIZE, model.INPUT_SIZE), place)
    host = value.numpy()

    def run(lightness: np.ndarray, value: ort.OrtValue = value) -> np.ndarray:
        host[:] = lightness
        (chroma,) = session.run([OUTPUT], {INPUT: host})
        return chroma

    return run


def measure_bare(folder: Path, plan: Plan) -> Iterator[Bare]:
    place = DeviceRef(plan.device)
    for variant in plan.variants:
        for batch in batch_sizes(plan.max_batch):
            session = _session(_file(folder, variant), plan, variant, batch)
            lightness = _inputs(batch)
            each = range(plan.executors)
            ways: dict[str, list[Callable[[np.ndarray], np.ndarray]]] = {
                BOUND: [BoundSession(session, batch, model.INPUT_SIZE, place, model.NAME).run for _ in each],
                PLAIN: [CpuExecutor(session, model.NAME).predict for _ in each],
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
            file,
            file.read_bytes(),
            plan.device,
            max_batch=plan.max_batch,
            executors=plan.executors,
            gpu=plan.gpu(variant),
        )
        engine.warm_up()
        ready_s = time.monotonic() - started
        # This number of threads keeps every executor full while the same number of photos waits.
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
    """Return which of the model's files has that hash."""
    half = _file(folder, FP16)
    return FP16 if hashlib.sha256(half.read_bytes()).hexdigest() == sha256 else FP32


def measure_direct(folder: Path, plan: Plan, files: list[Path]) -> Served:
    """Measure the service's pipeline in as many threads as the service has, without HTTP."""
    memory.keep_freed_memory()
    cv2.setNumThreads(1)
    settings = plan.settings(folder)
    registry = ModelRegistry(settings)
    colorizer = Colorizer(registry, settings)
    data = [file.read_bytes() for file in files]

    def one(number: int) -> int:
        colorizer.colorize(data[number % len(data)], Options())
        return 1

    calls = [lambda number=number: one(number) for number in range(registry.workers)]
    photos_a_second(calls, plan.seconds / 4)
    used, wall = time.process_time(), time.monotonic()
    images, rate = photos_a_second(calls, plan.seconds)
    used, wall = time.process_time() - used, time.monotonic() - wall
    precision = _precision(folder, registry.get(None).sha256)
    return Served("no HTTP", precision, registry.workers, images, rate, used / wall)


def _served_hash(server: Server) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request("GET", "/models")
        (only,) = json.load(connection.getresponse())["models"]
        return str(only["sha256"])
    finally:
        connection.close()


def _loop_seconds(pid: int) -> float:
    """Return the CPU time of the process's first thread, which runs the event loop; NaN if unknown."""
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
    fields = ("device", "inference_batch_size", "cuda_graphs")
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
        # The start of the load generator is not counted.
        used / min(wall, busy or wall),
        p50,
        p99,
        loop / min(wall, busy or wall),
        len(seen["refused"]),
        seen["errors"],
    )
