"""The benchmark's measurements, and their summary: medians over rounds, and ratios within one round."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.bench.photos import Size

TOMAU = "tomau"


@dataclass(frozen=True)
class Cell:
    """One server, size and number of clients in one round. CPU time and memory are of the whole process tree."""

    server: str
    size: Size
    clients: int
    round: int
    images: int
    rate: float  # images a second
    cpu_ms: float  # an image
    p50_ms: float
    p95_ms: float
    p99_ms: float
    peak_mb: float
    refused: int
    errors: dict[str, int]
    client_cpu_ms: float  # of the load generator, an image
    given_up: int = 0  # photos that were still refused at the end; the percentiles include their latency so far


@dataclass(frozen=True)
class Floor:
    """The sum of the stages by one route, on that number of threads, in one round."""

    route: str
    size: Size
    threads: int
    round: int
    cpu_ms: float


@dataclass(frozen=True)
class Overload:
    """One server at twice its capacity. Rates in images per second, times in ms; None if nothing was measured."""

    server: str
    size: Size
    capacity: float
    rate: float
    answered: int
    p50_ms: float
    p99_ms: float
    refused: int
    refused_p99_ms: float | None
    refused_in_server_p99_ms: float | None
    errors: dict[str, int]
    peak_mb: float
    growth_mb: float


@dataclass(frozen=True)
class Check:
    """A server's output for one photo compared with the reference: mean CIEDE2000, and levels of luma.

    `de00_first` compares it with the output of the first server.
    """

    server: str
    size: Size
    photo: str
    de00: float
    de00_first: float
    luma_mean: float
    luma_max: int


@dataclass(frozen=True)
class Start:
    """The time from the start of the process until it is ready, seconds."""

    server: str
    seconds: float


@dataclass(frozen=True)
class Failure:
    """A server that did not start, ended, or could not be measured, and the reason."""

    server: str
    size: Size
    round: int
    why: str


@dataclass
class Results:
    """All measurements of one benchmark, and the machine that they ran on."""

    machine: dict[str, str]
    cores: int
    servers: list[str]
    sizes: list[Size]
    clients: list[int]
    cells: list[Cell] = field(default_factory=list)
    floors: list[Floor] = field(default_factory=list)
    overloads: list[Overload] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    @property
    def peers(self) -> list[str]:
        return [server for server in self.servers if server != TOMAU]

    def rounds(self, server: str, size: Size, clients: int) -> list[Cell]:
        """Return the rounds in which the server returned any image."""
        asked = (server, size, clients)
        return [cell for cell in self.cells if (cell.server, cell.size, cell.clients) == asked and cell.images]

    def median(self, server: str, size: Size, clients: int, figure: Callable[[Cell], float]) -> float:
        """Return the median of a figure over the rounds; NaN if there is no such round."""
        values = [figure(cell) for cell in self.rounds(server, size, clients)]
        return statistics.median(values) if values else math.nan

    def ratio(self, over: str, under: str, size: Size, clients: int, figure: Callable[[Cell], float]) -> float:
        """Return the median over the rounds of `over` divided by `under`; NaN if they have no common round."""
        below = {cell.round: figure(cell) for cell in self.rounds(under, size, clients)}
        rounds = self.rounds(over, size, clients)
        values = [figure(cell) / below[cell.round] for cell in rounds if below.get(cell.round)]
        return statistics.median(values) if values else math.nan

    def floor(self, route: str, size: Size, threads: int) -> float:
        asked = (route, size, threads)
        values = [floor.cpu_ms for floor in self.floors if (floor.route, floor.size, floor.threads) == asked]
        return statistics.median(values) if values else math.nan

    def threads(self, clients: int) -> int:
        """Return the number of threads of the floor that matches this number of clients: up to all cores."""
        return min(clients, self.cores)

    def above_floor(self, server: str, size: Size, clients: int) -> float:
        """Return CPU time per image as a multiple of the floor of the server's own route, a median over the rounds."""
        route, threads = "planes" if server == TOMAU else "pixels", self.threads(clients)
        floors = {
            floor.round: floor.cpu_ms
            for floor in self.floors
            if (floor.route, floor.size, floor.threads) == (route, size, threads)
        }
        rounds = self.rounds(server, size, clients)
        values = [cell.cpu_ms / floors[cell.round] for cell in rounds if floors.get(cell.round)]
        return statistics.median(values) if values else math.nan


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least `percent` percent of the values do not exceed; NaN if there are none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]


def megapixels(size: Size) -> float:
    return size[0] * size[1] / 1e6


def name_of(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
