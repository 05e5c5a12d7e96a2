"""The targets of the benchmark, and whether tomau reaches them."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.bench.photos import Size
from tests.bench.results import TOMAU, Cell, Overload, Results, name_of

FLOOR = 1.15
LESS_CPU = {(4000, 3000): 2.2, (1600, 1200): 1.5, (512, 384): 1.0}
RATE = 0.97
PEAK_MB, PEAK_SIZE, PEAK_CLIENTS = 500.0, (4000, 3000), 32
P99_MS, REFUSED_IN_SERVER_MS, REFUSED_MS = 1500.0, 20.0, 100.0
GROWTH = 0.05
READY_S = 3.0
LUMA_LEVELS, DE00 = 1.0, 1.0

# The worst value of a figure, NaN if it was not measured, and where it was measured.
Worst = tuple[float, str]


@dataclass(frozen=True)
class Bar:
    """One target. `met` is None if the run did not measure it."""

    text: str
    value: str
    met: bool | None


def cpu(cell: Cell) -> float:
    return cell.cpu_ms


def rate(cell: Cell) -> float:
    return cell.rate


def _worst(values: list[Worst], pick: Callable[..., Worst]) -> Worst:
    known = [value for value in values if not math.isnan(value[0])]
    return pick(known) if known else (math.nan, "")


def _at_most(text: str, worst: Worst, limit: float, form: str = "{:.2f}") -> Bar:
    return _bar(text, worst, worst[0] <= limit, form)


def _at_least(text: str, worst: Worst, limit: float, form: str = "{:.2f}") -> Bar:
    return _bar(text, worst, worst[0] >= limit, form)


def _bar(text: str, worst: Worst, met: bool, form: str) -> Bar:
    value, where = worst
    if math.isnan(value):
        return Bar(text, "not measured", None)
    return Bar(text, form.format(value) + (f" ({where})" if where else ""), met)


def of_peers(results: Results, size: Size, clients: int, figure: Callable[[Cell], float]) -> dict[str, float]:
    """Return for each peer with results its figure divided by tomau's."""
    ratios = {peer: results.ratio(peer, TOMAU, size, clients, figure) for peer in results.peers}
    return {peer: ratio for peer, ratio in ratios.items() if not math.isnan(ratio)}


def _silent(results: Results, size: Size, value: float) -> list[Worst]:
    """Return `value` for each cell in which tomau failed, so that a missing result does not reach a target."""
    has_failed = any((failure.server, failure.size) == (TOMAU, size) for failure in results.failures)
    silent = [clients for clients in results.clients if has_failed and not results.rounds(TOMAU, size, clients)]
    return [(value, f"{clients} clients: no answer") for clients in silent]


def _above_floor(results: Results, size: Size) -> Bar:
    values = [(results.above_floor(TOMAU, size, clients), f"{clients} clients") for clients in results.clients]
    values += _silent(results, size, math.inf)
    text = f"{name_of(size)}: CPU an image at most {FLOOR:g} times the floor of its own route"
    return _at_most(text, _worst(values, max), FLOOR)


def _less_cpu(results: Results, size: Size) -> Bar:
    values = [
        (ratio, f"{peer}, {clients} clients")
        for clients in results.clients
        for peer, ratio in of_peers(results, size, clients, cpu).items()
    ]
    values += _silent(results, size, 0.0)
    limit = LESS_CPU[size]
    text = f"{name_of(size)}: the best peer takes at least {limit:g} times the CPU an image"
    return _at_least(text, _worst(values, min), limit)


def _rates(results: Results) -> list[Worst]:
    """Return for each cell tomau's images/s divided by those of the best peer."""
    values = []
    for size in results.sizes:
        for clients in results.clients:
            peers = of_peers(results, size, clients, rate)
            # A server without any response counts as 0, not as missing.
            answers = bool(results.rounds(TOMAU, size, clients))
            best = 1 / max(peers.values()) if peers else math.nan if answers else 0.0
            values.append((best, f"{name_of(size)}, {clients} clients"))
    return [value for value in values if not math.isnan(value[0])]


def _throughput(results: Results) -> Iterator[Bar]:
    values = _rates(results) if TOMAU in results.servers and results.peers else []
    text = f"images/s at least {RATE:g} of the best peer's in every cell"
    yield _at_least(text, _worst(values, min), RATE)
    ahead = sum(value > 1 for value, _ in values)
    shown = f"{ahead} of {len(values)}" if values else "not measured"
    yield Bar("images/s ahead of the best peer in most cells", shown, ahead > len(values) / 2 if values else None)


def _memory(results: Results) -> Bar:
    peak = max((cell.peak_mb for cell in results.rounds(TOMAU, PEAK_SIZE, PEAK_CLIENTS)), default=math.nan)
    text = f"peak RSS under {PEAK_MB:g} MB with {PEAK_CLIENTS} clients at {name_of(PEAK_SIZE)}"
    return _at_most(text, (peak, ""), PEAK_MB, "{:.0f} MB")


def _overload(results: Results) -> Iterator[Bar]:
    own = [overload for overload in results.overloads if overload.server == TOMAU]

    def largest(figure: Callable[[Overload], float | None]) -> Worst:
        found = [(figure(overload) if overload.answered else math.inf, name_of(overload.size)) for overload in own]
        return _worst([(math.nan if value is None else value, where) for value, where in found], max)

    prefix = "twice the capacity: "
    yield _at_most(f"{prefix}p99 of the answered under {P99_MS:g} ms", largest(lambda o: o.p99_ms), P99_MS, "{:.0f} ms")
    yield _at_most(
        f"{prefix}refusals' p99 under {REFUSED_IN_SERVER_MS:g} ms in the server, from the app's call on",
        largest(lambda o: o.refused_in_server_p99_ms),
        REFUSED_IN_SERVER_MS,
        "{:.0f} ms",
    )
    yield _at_most(
        f"{prefix}refusals' p99 under {REFUSED_MS:g} ms at the client",
        largest(lambda o: o.refused_p99_ms),
        REFUSED_MS,
        "{:.0f} ms",
    )
    lost = largest(lambda o: float(sum(o.errors.values())))
    yield _at_most(f"{prefix}none lost to a reset or another error", lost, 0, "{:.0f}")
    growth = largest(lambda o: o.growth_mb / o.peak_mb)
    yield _at_most(f"{prefix}memory flat (last third at most {GROWTH:.0%} above the middle)", growth, GROWTH, "{:+.1%}")


def _answers(results: Results) -> Iterator[Bar]:
    own = [(check, f"{check.photo}, {name_of(check.size)}") for check in results.checks if check.server == TOMAU]
    luma = _worst([(check.luma_mean, where) for check, where in own], max)
    yield _at_most(f"luma within {LUMA_LEVELS:g} level on average", luma, LUMA_LEVELS)
    colour = _worst([(check.de00, where) for check, where in own], max)
    yield _at_most(f"mean CIEDE2000 against the reference under {DE00:g}", colour, DE00)


def _all_answered(results: Results) -> Bar:
    own = [cell for cell in results.cells if cell.server == TOMAU]
    failures = sum(failure.server == TOMAU for failure in results.failures)
    errors = sum(sum(cell.errors.values()) for cell in own)
    text = "no failure, and no error but refusals, in the closed loops"
    measured = float(failures + errors) if own or failures else math.nan
    return _at_most(text, (measured, ""), 0, "{:.0f}")


def bars(results: Results) -> list[Bar]:
    """Return all targets, including those that were not measured."""
    ready = _worst([(start.seconds, "") for start in results.starts if start.server == TOMAU], max)
    sizes = sorted(LESS_CPU)
    return [
        *(_above_floor(results, size) for size in sizes),
        *(_less_cpu(results, size) for size in sizes),
        *_throughput(results),
        _memory(results),
        *_overload(results),
        _at_most(f"ready within {READY_S:g} s of the start", ready, READY_S, "{:.1f} s"),
        *_answers(results),
        _all_answered(results),
    ]
