"""The benchmark's report as Markdown, and the plot of latency over load."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.bench.bars import Bar, cpu, of_peers, rate
from tests.bench.photos import Size
from tests.bench.results import TOMAU, Cell, Results, megapixels, name_of
from tests.bench.servers import KINDS

# Okabe and Ito's palette is safe for colour-blind readers. Each line also has its own marker.
LOOKS = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"))


def number(value: float, form: str = "{:.1f}") -> str:
    return "-" if math.isnan(value) else form.format(value)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _figure(name: str) -> Callable[[Cell], float]:
    return lambda cell: float(getattr(cell, name))


def _errors(cells: Sequence[Cell]) -> str:
    if not cells:
        return "not measured, see Failures"
    kinds = sorted({kind for cell in cells for kind in cell.errors})
    return ", ".join(f"{sum(cell.errors.get(kind, 0) for cell in cells)} x {kind}" for kind in kinds) or "0"


def _cell_row(results: Results, server: str, size: Size, clients: int) -> list[str]:
    every = [c for c in results.cells if (c.server, c.size, c.clients) == (server, size, clients)]

    def median(figure: str) -> float:
        return results.median(server, size, clients, _figure(figure))

    times = " / ".join(number(median(figure), "{:.0f}") for figure in ("p50_ms", "p95_ms", "p99_ms"))
    peak = max((cell.peak_mb for cell in every), default=math.nan)
    return [
        KINDS[server].title,
        str(clients),
        number(median("rate")),
        times,
        number(median("cpu_ms")),
        number(results.above_floor(server, size, clients), "{:.2f}"),
        number(peak, "{:.0f}"),
        f"{sum(cell.refused for cell in every)} ({sum(cell.given_up for cell in every)})",
        _errors(every),
    ]


def _size(results: Results, size: Size) -> Iterator[str]:
    yield f"\n## {name_of(size)}, {megapixels(size):.1f} megapixels\n"
    floors = ", ".join(
        f"{route} {number(results.floor(route, size, threads))} ms with {threads} thread{'s' * (threads > 1)}"
        for route in ("planes", "pixels")
        for threads in sorted({1, results.cores})
    )
    yield f"Floor, CPU an image: {floors}.\n"
    head = [
        "server",
        "clients",
        "images/s",
        "p50 / p95 / p99, ms",
        "CPU ms an image",
        "x floor",
        "peak MB",
        "503 (given up)",
        "errors",
    ]
    order = [(server, clients) for clients in results.clients for server in results.servers]
    yield table(head, [_cell_row(results, server, size, clients) for server, clients in order])


def _ratios(results: Results) -> Iterator[str]:
    rows = []
    for size in results.sizes:
        for clients in results.clients:
            costs, rates = (of_peers(results, size, clients, figure) for figure in (cpu, rate))
            if not costs:
                continue
            cheapest, quickest = min(costs, key=lambda peer: costs[peer]), max(rates, key=lambda peer: rates[peer])
            less, more = f"{costs[cheapest]:.2f} ({cheapest})", f"{1 / rates[quickest]:.2f} ({quickest})"
            rows.append([name_of(size), str(clients), less, more])
    if rows:
        yield "\n## tomau and the best peer\n"
        yield "Medians of the ratios within each round.\n"
        yield table(["size", "clients", "CPU of the peer / of tomau", "images/s of tomau / of the peer"], rows)


def _overloads(results: Results) -> Iterator[str]:
    if not results.overloads:
        return
    yield "\n## Twice the capacity, open loop\n"
    head = ["server", "size", "images/s", "answered", "p50 / p99, ms", "503", "their p99, ms", "in the server, ms"]
    rows = [
        [
            KINDS[o.server].title,
            name_of(o.size),
            f"{o.rate:.1f}",
            str(o.answered),
            f"{number(o.p50_ms, '{:.0f}')} / {number(o.p99_ms, '{:.0f}')}",
            str(o.refused),
            "-" if o.refused_p99_ms is None else f"{o.refused_p99_ms:.1f}",
            "not measured" if o.refused_in_server_p99_ms is None else f"{o.refused_in_server_p99_ms:.1f}",
            ", ".join(f"{count} x {kind}" for kind, count in o.errors.items()) or "0",
            f"{o.peak_mb:.0f} ({o.growth_mb:+.0f})",
        ]
        for o in results.overloads
    ]
    yield table([*head, "errors", "peak MB (growth)"], rows)


def _checks(results: Results) -> Iterator[str]:
    yield "\n## Start and answers\n"
    head = ["server", "ready after, s", "CIEDE2000 to the reference", "to the first answer", "luma, mean", "luma, most"]
    rows = []
    for server in results.servers:
        checks = [check for check in results.checks if check.server == server]
        starts = sorted(start.seconds for start in results.starts if start.server == server)
        forms = {"de00": "{:.2f}", "de00_first": "{:.2f}", "luma_mean": "{:.2f}", "luma_max": "{:.0f}"}
        shown = [
            number(max((float(getattr(check, name)) for check in checks), default=math.nan), form)
            for name, form in forms.items()
        ]
        rows.append([KINDS[server].title, number(statistics.median(starts) if starts else math.nan), *shown])
    yield "Ready: median of all starts. Answers: the worst photo's mean, or its worst pixel.\n"
    yield table(head, rows)


def _bars(bars: Sequence[Bar]) -> Iterator[str]:
    yield "\n## Bars\n"
    words = {True: "met", False: "MISSED", None: "not measured"}
    yield table(["bar", "measured", ""], [[bar.text, bar.value, words[bar.met]] for bar in bars])


def markdown(results: Results, bars: Sequence[Bar]) -> str:
    lines = ["# Serving benchmark\n", ", ".join(f"{key}: {value}" for key, value in results.machine.items())]
    for size in results.sizes:
        lines += _size(results, size)
    lines += [*_ratios(results), *_overloads(results), *_checks(results)]
    if results.failures:
        lines.append("\n## Failures\n")
        lines += [f"- {f.server}, {name_of(f.size)}, round {f.round + 1}: {f.why}" for f in results.failures]
    return "\n".join([*lines, *_bars(bars)]) + "\n"


def draw(results: Results, path: Path) -> None:
    """Plot latency over the number of clients, one panel per size: p50 as a solid line, p99 dashed."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False})
    figure, panels = plt.subplots(
        1, len(results.sizes), figsize=(4.2 * len(results.sizes), 4.4), squeeze=False, layout="constrained"
    )
    for panel, size in zip(panels[0], results.sizes, strict=True):
        loads = results.clients
        for server, (color, marker) in zip(results.servers, LOOKS, strict=False):
            for figure_name, style in (("p50_ms", "-"), ("p99_ms", "--")):
                heights = [results.median(server, size, clients, _figure(figure_name)) for clients in loads]
                label = KINDS[server].title.replace("`", "") if style == "-" else None
                panel.plot(
                    loads,
                    heights,
                    style,
                    color=color,
                    marker=marker,
                    markersize=5,
                    label=label,
                    linewidth=2.5 if server == TOMAU else 1.5,
                )
        panel.set(title=name_of(size), xlabel="clients", xscale="log", yscale="log")
        panel.set_xticks(loads, [str(clients) for clients in loads])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("latency, ms (line p50, dashes p99)")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
