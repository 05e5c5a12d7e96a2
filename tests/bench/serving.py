"""Compare tomau with its peers in one run, on the same photographs and model: `make bench`, or --help.

Every round visits every size. At each size it visits every server and the floor, in a random order. A visit starts the
server, warms it up, and measures it with each number of clients. Each measurement starts and ends idle, so CPU time and
images are those of whole requests. Then the server is started again and gets twice its capacity: tomau in every round,
its peers in the last.

The report has medians over the rounds, and ratios within one round.
"""

import argparse
import json
import math
import os
import platform
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from service.imaging.color import Bytes
from tests.bench import check, model, photos, report, tree
from tests.bench.bars import bars
from tests.bench.check import Reference, WrongAnswer
from tests.bench.photos import Size
from tests.bench.results import TOMAU, Cell, Check, Failure, Floor, Overload, Results, Start, name_of, percentile
from tests.bench.servers import CORES, DEFAULT, KINDS, ROOT, Server, ServerFailed, running

ROUTES = ("planes", "pixels")
SIZES = ((512, 384), (1600, 1200), (4000, 3000))
MB = 1e6
OVERLOAD = 2.0
REFUSAL = re.compile(r"POST /colorize 503 ([\d.]+) ms")


@dataclass(frozen=True)
class Plan:
    """The plan of a benchmark. Times in seconds: of a cell, of the warm-up, and of the overload."""

    servers: Sequence[str] = DEFAULT
    sizes: Sequence[Size] = SIZES
    clients: Sequence[int] = (1, 8, 32, 128)
    rounds: int = 3
    seconds: float = 6.0
    warm: float = 1.0
    overload: float = 10.0
    overload_servers: Sequence[str] = DEFAULT
    checked: int = len(photos.NAMES)
    settings: dict[str, str] = field(default_factory=dict)


QUICK = Plan(clients=(1, 8), rounds=1, seconds=1.0, warm=0.3, overload=3.0, overload_servers=(TOMAU,), checked=1)


class ScriptFailed(Exception):
    """A script of the benchmark failed; its messages are on standard error."""


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _script(name: str, *arguments: object) -> dict[str, Any]:
    """Return the JSON that a script of the benchmark prints."""
    command = [sys.executable, "-m", f"tests.bench.{name}", *map(str, arguments)]
    ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=False)
    if ended.returncode:
        raise ScriptFailed(f"{name} ended with code {ended.returncode}")
    answer: dict[str, Any] = json.loads(ended.stdout)
    return answer


class Bench:
    """A run of the benchmark: its folder with the model and the photographs, and its results."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.folder = folder
        self.results = Results(machine(plan), CORES, list(plan.servers), sorted(plan.sizes), list(plan.clients))
        self.model = folder / "models" / f"{model.NAME}.onnx"
        self.model.parent.mkdir()
        self.model.write_bytes(model.build())
        self.photos = {size: photos.write(folder, size) for size in plan.sizes}
        self._references: dict[Path, Reference] = {}
        self._first_answers: dict[Path, Bytes] = {}

    def run(self) -> None:
        visits = 0
        for number in range(self.plan.rounds):
            for size in self.plan.sizes:
                for visit in self._shuffled(visits):
                    visit(size, number)
                visits += 1

    def _shuffled(self, seed: int) -> Iterator[Callable[[Size, int], None]]:
        visits = [self._floors, *(self._visitor(name) for name in self.plan.servers)]
        random.Random(seed).shuffle(visits)
        yield from visits

    def _visitor(self, name: str) -> Callable[[Size, int], None]:
        return lambda size, number: self._visit(name, size, number)

    def _floors(self, size: Size, number: int) -> None:
        for route in ROUTES:
            for threads in sorted({1, CORES}):
                options = ("--threads", threads, "--seconds", self.plan.seconds / 2)
                answer = _script("floor", route, self.model, *self.photos[size], *options)
                self.results.floors.append(Floor(route, size, threads, number, answer["cpu_ms"]))
                _say(f"round {number + 1}, {name_of(size)}: floor, {route}, {threads}: {answer['cpu_ms']:.1f} ms")

    def _visit(self, name: str, size: Size, number: int) -> None:
        """Measure one server. A failure is recorded, and the run continues."""
        log = self.folder / f"{name}-{name_of(size)}-{number}.log"
        try:
            with running(name, self.model, log, self.plan.settings) as server:
                self.results.starts.append(Start(name, server.ready_s))
                self._load(server, size, self.plan.warm, "--clients", 2 * CORES)
                if number == 0:
                    self._check(name, server, size)
                capacity = max(self._cell(name, server, size, clients, number) for clients in self.plan.clients)
            is_due = name == TOMAU or number == self.plan.rounds - 1
            if is_due and self.plan.overload and name in self.plan.overload_servers and capacity:
                # A new process, because memory left by the closed loops would hide the growth.
                with running(name, self.model, log.with_suffix(".overload.log"), self.plan.settings) as server:
                    self._load(server, size, self.plan.warm, "--clients", 2 * CORES)
                    self._overload(name, server, size, capacity)
        except (ServerFailed, WrongAnswer, ScriptFailed) as error:
            why = f"{type(error).__name__}: {error}"
            self.results.failures.append(Failure(name, size, number, why))
            _say(f"round {number + 1}, {name_of(size)}: {name} failed: {why}")

    def _load(self, server: Server, size: Size, seconds: float, kind: str, much: float) -> dict[str, Any]:
        result = _script("load", server.port, *self.photos[size], "--seconds", seconds, kind, much)
        if server.process.poll() is not None:
            raise server.failure()
        return result

    def _check(self, name: str, server: Server, size: Size) -> None:
        for path in self.photos[size][: self.plan.checked]:
            if path not in self._references:
                self._references[path] = check.reference(path.read_bytes(), self.model)
            reference = self._references[path]
            answer = check.ask(server.port, reference.photo)
            rgb, difference = check.compare(answer, reference)
            first = self._first_answers.setdefault(path, rgb)
            mean, most = check.luma_difference(answer, reference.luma)
            photo = path.stem.rsplit("-", 1)[0]
            found = Check(name, size, photo, difference, check.de00(rgb, first), mean, most)
            self.results.checks.append(found)

    def _cell(self, name: str, server: Server, size: Size, clients: int, number: int) -> float:
        """Measure one cell; return its images per second."""
        before = tree.cpu_seconds(server.pid)
        with tree.Watch(server.pid) as watch:
            seen = self._load(server, size, self.plan.seconds, "--clients", clients)
            peak = watch.peak_bytes
        cpu = tree.cpu_seconds(server.pid) - before
        images = len(seen["answered"])
        latencies = seen["answered"] + seen["given_up"]
        p50, p95, p99 = (1000 * percentile(latencies, percent) for percent in (50, 95, 99))
        cell = Cell(
            name,
            size,
            clients,
            number,
            images,
            images / seen["last_answer"] if images else 0.0,
            1000 * cpu / images if images else math.nan,
            p50,
            p95,
            p99,
            peak / MB,
            len(seen["refused"]),
            seen["errors"],
            1000 * seen["cpu"] / images if images else math.nan,
            len(seen["given_up"]),
        )
        self.results.cells.append(cell)
        _say(
            f"round {number + 1}, {name_of(size)}: {name}, {clients} clients: {cell.rate:.1f} images/s,"
            f" {cell.cpu_ms:.1f} CPU ms, p99 {p99:.0f} ms, {cell.peak_mb:.0f} MB, errors {cell.errors or 0}"
        )
        return cell.rate

    def _overload(self, name: str, server: Server, size: Size, capacity: float) -> None:
        logged = server.log.stat().st_size
        with tree.Watch(server.pid) as watch:
            seen = self._load(server, size, self.plan.overload, "--rate", OVERLOAD * capacity)
            peak = watch.peak_bytes
        with server.log.open("rb") as log:
            log.seek(logged)
            in_server = [float(found[1]) for found in REFUSAL.finditer(log.read().decode("utf-8", "replace"))]
        overload = Overload(
            name,
            size,
            capacity,
            OVERLOAD * capacity,
            len(seen["answered"]),
            1000 * percentile(seen["answered"], 50),
            1000 * percentile(seen["answered"], 99),
            len(seen["refused"]),
            1000 * percentile(seen["refused"], 99) if seen["refused"] else None,
            percentile(in_server, 99) if in_server else None,
            seen["errors"],
            peak / MB,
            watch.growth_bytes(self.plan.overload) / MB,
        )
        self.results.overloads.append(overload)
        _say(f"{name_of(size)}: {name} at {overload.rate:.1f} images/s: p99 {overload.p99_ms:.0f} ms")


def machine(plan: Plan) -> dict[str, str]:
    """Return what the measurements ran on, and with which settings."""
    cpu = re.search(r"model name\s*: (.*)", _read(Path("/proc/cpuinfo")))
    packages = ("fastapi", "uvicorn", "litserve", "onnxruntime", "opencv-python-headless", "simplejpeg", "numpy")
    is_pss = Path("/proc/self/smaps_rollup").exists()
    facts = {
        "cores": str(CORES),
        "processor": cpu[1] if cpu else platform.processor() or platform.machine(),
        "Python": platform.python_version(),
        **{name: version(name) for name in packages if _has(name)},
        "rounds": str(plan.rounds),
        "seconds a cell": f"{plan.seconds:g}",
        "commit": _commit(),
        "load before": f"{os.getloadavg()[0]:.1f}",
        "memory": f"RSS of one process, {'PSS' if is_pss else 'RSS'} of several",
    }
    return facts | {f"TOMAU_{name.upper()}": value for name, value in plan.settings.items()}


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    return ended.stdout.strip() or "unknown"


def _read(path: Path) -> str:
    return path.read_text("utf-8", "replace") if path.exists() else ""


def _has(package: str) -> bool:
    try:
        version(package)
    except ModuleNotFoundError:
        return False
    return True


def _size(text: str) -> Size:
    width, height = text.split("x")
    return int(width), int(height)


def _setting(text: str) -> tuple[str, str]:
    name, value = text.split("=", 1)
    return name, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round, about two minutes")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--sizes", type=_size, nargs="+", help="such as 512x384")
    parser.add_argument("--clients", type=int, nargs="+")
    parser.add_argument("--servers", choices=KINDS, nargs="+", help=f"by default {' '.join(DEFAULT)}")
    parser.add_argument("--seconds", type=float, help="how long photos are sent for one cell")
    parser.add_argument("--overload", type=float, help="how long twice the capacity is sent, seconds; 0: never")
    parser.add_argument("--set", type=_setting, nargs="+", default=[], help="settings of tomau: max_photos=64")
    parser.add_argument("--output", type=Path, default=Path("runs/bench"), help="folder of the report")
    return parser


def plan_of(arguments: argparse.Namespace) -> Plan:
    base = QUICK if arguments.quick else Plan()
    names = ("rounds", "sizes", "clients", "servers", "seconds", "overload")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if "clients" in given:
        given["clients"] = sorted(
            given["clients"]
        )  # Ascending: memory kept from a larger load must not count for a smaller one.
    if "seconds" in given:
        given["warm"] = min(base.warm, given["seconds"])
    if "servers" in given and not arguments.quick:
        given["overload_servers"] = given["servers"]
    return Plan(**{**base.__dict__, **given, "settings": dict(arguments.set)})


def write(results: Results, folder: Path) -> str:
    """Write the report's files; return its text."""
    folder.mkdir(parents=True, exist_ok=True)
    reached = bars(results)
    text = report.markdown(results, reached)
    (folder / "bench.md").write_text(text, "utf-8")
    (folder / "bench.json").write_text(
        json.dumps(asdict(results) | {"bars": [asdict(bar) for bar in reached]}, indent=1)
    )
    if results.cells:
        report.draw(results, folder / "latency.png")
    return text


def _interrupt(number: int, _frame: object) -> None:
    """Let SIGTERM and SIGHUP end the run as Ctrl-C does, so that servers are stopped."""
    raise KeyboardInterrupt


def _allow_many_connections() -> None:
    """Raise the limit of open files for servers and load generator: an unbounded queue needs many sockets."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark. After an interruption, the results so far are still written."""
    arguments = _parser().parse_args(argv)
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        _run(arguments)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(arguments: argparse.Namespace) -> None:
    _allow_many_connections()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(plan_of(arguments), Path(folder))
        _say(f"model: {model.macs(bench.model.read_bytes()) / 1e9:.3f} GMAC")
        is_whole = False
        try:
            bench.run()
            is_whole = True
        except KeyboardInterrupt:
            _say("interrupted: this is what was measured until now")
        print(write(bench.results, arguments.output), end="")
    if not is_whole:
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
