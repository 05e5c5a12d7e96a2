"""Measure a GPU: the model alone, through the batcher, and over HTTP: python -m tests.bench.gpu --help

There are three steps, each under the same conditions as in the service's process:

- bare: a loop over a session with IO binding, for each batch size and precision. It runs in one thread, and in one
  thread per executor of a GPU. Only inputs and outputs are copied. For comparison, `run` without binding is measured
  with pageable and with pinned memory. Copies of pinned memory let other threads run.
- batcher: many threads, each with one photo at a time.
- photos of 512x384: the whole pipeline in as many threads as the service has, without and with HTTP.

LitServe is not needed. If ONNX Runtime's converter (`onnxruntime.transformers`) is missing, create the two model files
on another machine (`--models FOLDER --make`) and copy the folder. `--device cpu` measures the same on a CPU.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

from tests.bench import photos
from tests.bench.gpu_measures import Plan, make_models, measure_bare, measure_batched, measure_direct, measure_http
from tests.bench.gpu_results import SIZE, Results, bars, markdown
from tests.bench.servers import CORES

PACKAGES = ("onnxruntime-gpu", "onnxruntime", "opencv-python-headless", "simplejpeg", "uvicorn", "numpy")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def machine(plan: Plan) -> dict[str, str]:
    """Return what the measurements ran on."""
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


def run(plan: Plan, folder: Path, scratch: Path) -> Results:
    make_models(folder)
    files = photos.write(scratch, SIZE)
    # A CPU engine always has a batch size of 1.
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
    """Write the report as Markdown and JSON; return the text."""
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
        help="seconds per measurement (default 2; bare loops: half of it), after a quarter of that as warm-up",
    )
    parser.add_argument("--clients", type=int, help="clients over HTTP; default: 4 x max-batch, or 4 x cores on a CPU")
    parser.add_argument("--graphs", action="store_true", help="use CUDA graphs, except in the bare loops")
    parser.add_argument(
        "--option",
        type=_option,
        nargs="+",
        default=[],
        help="options of ONNX Runtime's CUDA provider, as prefer_nhwc=1",
    )
    parser.add_argument(
        "--models", type=Path, help="folder of the two model files, which are created if they are missing"
    )
    parser.add_argument("--make", action="store_true", help="only create the model files")
    parser.add_argument("--output", type=Path, default=Path("runs/bench-gpu"), help="folder of the report")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = _parser()
    args = parser.parse_args(argv)
    if args.make:
        if args.models is None:
            parser.error("--make: give the folder with --models")
        make_models(args.models)
        return
    plan = Plan(args.device, args.max_batch, args.seconds, args.clients, args.graphs, dict(args.option))
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.models or Path(scratch) / "models"
        print(write(run(plan, folder, Path(scratch)), args.output), end="")


if __name__ == "__main__":
    main()
