"""The results of the GPU benchmark, their targets, and their report as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from service.inference.executor import Device
from tests.bench.bars import Bar
from tests.bench.report import number, table

SIZE = (512, 384)
FP32, TF32, FP16 = "fp32", "fp32 with TF32", "fp16"
BOUND, PLAIN, PINNED = "IO binding", "run", "run, pinned"
BATCHER_BAR, HALF_BAR, HTTP_BAR = 0.95, 1.6, 0.7


@dataclass(frozen=True)
class Bare:
    """Photos per second of parallel bare loops."""

    variant: str
    batch: int
    threads: int
    rate: float
    way: str = BOUND


@dataclass(frozen=True)
class Batched:
    """Photos per second through the batcher, the mean batch size, and the seconds to load and warm up the model."""

    variant: str
    threads: int
    rate: float
    batch: float
    ready_s: float


@dataclass(frozen=True)
class Served:
    """The results of the whole pipeline. `cores` is the CPU time of all threads divided by the wall time.

    Over HTTP, `loop` is the share of one core that the event loop's thread used; otherwise None.
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
    """All measurements, and the machine that they ran on."""

    machine: dict[str, str]
    device: Device
    max_batch: int
    bare: list[Bare] = field(default_factory=list)
    batched: list[Batched] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)

    def best_bare(self, variant: str, batch: int | None = None) -> float:
        """Return the best rate of one loop or of several parallel ones; NaN if it was not measured."""
        wanted = (variant, batch or self.max_batch)
        bound = [bare for bare in self.bare if bare.way == BOUND]
        return max((bare.rate for bare in bound if (bare.variant, bare.batch) == wanted), default=np.nan)


def bars(results: Results) -> list[Bar]:
    """Return the targets for an H200; a CPU measures none of them."""
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
