"""Tables of an evaluation, and the files that show it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from model_export.evaluation.evaluate import MIN_COLORFULNESS, Figures, Report, Sample
from model_export.evaluation.metrics import colorfulness, mean_ciede2000


def gain_table(sample: Sample, gains: Sequence[float]) -> str:
    """Return a Markdown table of CIEDE2000 and colourfulness at each gain, to choose the gain of an export."""
    target = colorfulness(sample.truth).mean()
    lines = ["| gain | de00 | colourfulness relative to the truth |", "| --- | --- | --- |"]
    for gain in gains:
        rgb = sample.rgb_at(gain)
        share = f"{colorfulness(rgb).mean() / target:.0%}" if target >= MIN_COLORFULNESS else "-"
        lines.append(f"| {gain:g} | {mean_ciede2000(rgb, sample.truth):.2f} | {share} |")
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def markdown(rows: Mapping[str, Figures]) -> str:
    """Return the metrics as a Markdown table."""
    columns = [field for field in Figures.__dataclass_fields__ if field != "best_strength"]
    lines = []
    for name, figures in rows.items():
        values = asdict(figures)
        lines.append([name, *("-" if values[column] is None else f"{values[column]:.2f}" for column in columns)])
    return _table(["predictor", *columns], lines)


def sources_markdown(report: Report) -> str:
    """Return a Markdown table with a row per source; the sources that the model improves most come first."""
    gray, model = report.rows["gray"].by_source, report.rows[report.model].by_source
    head = ["source", "photographs", "de00 of gray", f"de00 of {report.model}", "difference", "hue"]
    lines = [
        (own.de00 - gray[name].de00, [name, str(own.photographs), f"{gray[name].de00:.2f}", f"{own.de00:.2f}"], own.hue)
        for name, own in model.items()
    ]
    return _table(head, [[*cells, f"{change:+.2f}", f"{hue:.1f}"] for change, cells, hue in sorted(lines)])


def write(report: Report, folder: Path) -> None:
    """Write `figures.json` and `figures.md` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        name: {**asdict(row.figures), "sources": {key: asdict(value) for key, value in row.by_source.items()}}
        for name, row in report.rows.items()
    }
    (folder / "figures.json").write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    table = markdown({name: row.figures for name, row in report.rows.items()})
    (folder / "figures.md").write_text(f"{table}\n{report.note}\n\n{sources_markdown(report)}", "utf-8")
