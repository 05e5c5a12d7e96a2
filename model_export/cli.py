"""Train, evaluate and export models that colour photographs."""

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from model_export import signals

RECIPES = Path(__file__).parent / "recipes"
# The licence of the shipped weights.
LICENSE = "Research use: trained on photographs of mixed, partly non-commercial licences"
PARITY_PHOTOGRAPHS = 32
CONSTANT_PHOTOGRAPHS = 2000
# Every network halves its input five times.
STRIDE = 32
# A JPEG can be 65,500 pixels high, and each row of a contact sheet has three photographs.
MAX_SHEET_PHOTOGRAPHS = 1275
# The presets of export/foreign.py, which only `adapt` imports because that takes long.
PRESETS = ("ddcolor", "deoldify", "eccv16", "siggraph17")


def _recipe(text: str) -> Path:
    path = Path(text) if text.endswith(".toml") else RECIPES / f"{text}.toml"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise argparse.ArgumentTypeError(
            f"{text}: the file does not exist; give a .toml file or one of the recipes {names}"
        )
    return path


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number of at least 1")
    return int(text)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text}: must be a finite number")
    return number


def _positive(text: str) -> float:
    if (number := _number(text)) <= 0:
        raise argparse.ArgumentTypeError(f"{text}: must be greater than 0")
    return number


def _not_negative(text: str) -> float:
    if (number := _number(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 0")
    return number


def _share(text: str) -> float:
    if not 0 <= (number := _number(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text}: must be in 0..1")
    return number


def _side(text: str) -> int:
    if (side := _count(text)) % STRIDE:
        raise argparse.ArgumentTypeError(f"{text}: must be a multiple of {STRIDE}")
    return side


def _sheet(text: str) -> int:
    if (count := _count(text)) > MAX_SHEET_PHOTOGRAPHS:
        raise argparse.ArgumentTypeError(
            f"{text}: must be at most {MAX_SHEET_PHOTOGRAPHS:,}, because a larger sheet does not fit into a JPEG"
        )
    return count


def _train(args: argparse.Namespace) -> None:
    # The imports of TensorFlow take seconds, which belong to the time of this call.
    started = time.monotonic()
    from model_export import recipe
    from model_export.run import train
    from model_export.run.schedule import Limits

    limits = Limits(args.max_minutes, args.stop_after, args.checkpoint_minutes)
    loaded = recipe.load(args.recipe)
    state = train.train(loaded, args.run, args.data, limits, init=args.init, precision=args.precision, started=started)
    print(f"{state.views:,} views in {state.minutes:.1f} minutes; best loss {state.best_loss:.4f}")
    if state.start_loss is not None:
        print(f"validation loss of the initial weights: {state.start_loss:.4f}")
        if loaded.best_by == "validation" and state.best_loss >= state.start_loss:
            print(
                "The run did not improve on its initial weights. With few held-out photographs this means little; with"
                " many, it means overfitting: train for fewer minutes, or with a smaller learning_rate"
            )


def _evaluate(args: argparse.Namespace) -> None:
    from model_export.data import sources
    from model_export.evaluation import contact_sheet, evaluate, plots, tables
    from model_export.weights import checkpoint
    from service.inference.session import Engine

    # Read first, so that a wrong name fails at the start and not after minutes.
    histories = {name: plots.read_history(run) for name, run in plots.name_runs(args.run).items()}
    files = (args.model, *args.previous)
    models = evaluate.name_models([(file, Engine(file, file.read_bytes(), "cpu")) for file in files])
    predictor = evaluate.predictor_of(next(iter(models.values())))
    run = args.held_out_of
    entries = checkpoint.find_held_out(run, args.data) if run else sources.find(args.data)
    entries, unreadable = evaluate.drop_unreadable(entries)
    shown = {n: e for n, e in enumerate(entries) if not args.sources or evaluate.source_of(e) in args.sources}
    if not shown:
        raise ValueError(f"no photograph comes from the sources {', '.join(args.sources)}: check --sources")
    training = sources.find(args.training) if args.training else entries
    _, drawn = sources.hold_out(training, min(CONSTANT_PHOTOGRAPHS, len(training)))
    drawn, unreadable_drawn = evaluate.drop_unreadable(drawn)
    origin = f"{len(drawn):,} training photographs" if args.training else "the measured photographs"
    neutral, unreadable_neutral = evaluate.drop_unreadable(sources.find(args.neutral) if args.neutral else [])
    constant = evaluate.Constant(evaluate.mean_chroma_of(drawn), origin)
    left_out = unreadable + unreadable_drawn + unreadable_neutral
    report = evaluate.evaluate(models, entries, neutral, constant, left_out)
    tables.write(report, args.output)
    print(tables.markdown({name: row.figures for name, row in report.rows.items()}) + "\n" + report.note)
    if args.gains:
        print(tables.gain_table(report.rows[report.model].sample, args.gains))
    contact_sheet.save_all(shown, report, predictor, args.sheet, args.output)
    plots.save_all({name: report.rows[name].sample for name in models}, histories, args.output)


def _export(args: argparse.Namespace) -> None:
    from model_export.export import model_files

    # Checked before TensorFlow is imported, which takes seconds.
    model_files.check_replaceable(args.output, force=args.force, written=model_files.exports_of(args.run))
    from model_export.data import sources
    from model_export.export import export

    _, photographs = sources.hold_out(sources.find(args.data), PARITY_PHOTOGRAPHS)
    difference = export.export(
        args.run,
        args.output,
        photographs,
        export.Labels(args.name or args.output.stem, args.version, args.license, args.trained_on),
        export.Choices(args.size, args.gain, args.cast, args.weights),
    )
    model_files.note_export(args.run, args.output)
    print(
        f"{args.output}: differs from the network by {difference.mean:.5f} on average, {difference.largest:.5f} at most"
    )


def _half(args: argparse.Namespace) -> None:
    from model_export.data import sources
    from model_export.export import fp16, model_files

    output = args.path or fp16.half_of(args.model)
    model_files.check_replaceable(output, force=args.force)
    _, photographs = sources.hold_out(sources.find(args.data), PARITY_PHOTOGRAPHS)
    found = fp16.convert(args.model, output, photographs)
    print(
        f"{output}: differs by {found.de00:.4f} CIEDE2000, {found.worst:.4f} on the worst photograph;"
        f" chroma differs by {found.chroma.mean:.5f} on average, {found.chroma.largest:.5f} at most"
    )


def _adapt(args: argparse.Namespace) -> None:
    from model_export.export import foreign, model_files, wrap

    model_files.check_replaceable(args.path, force=args.force)
    given = {field: getattr(args, field) for field in foreign.OPTIONS}
    changes = {field: tuple(x) if isinstance(x, list) else x for field, x in given.items() if x is not None}
    found = wrap.adapt(
        args.file,
        args.path,
        foreign.interface(args.preset, changes),
        name=args.name or args.path.stem,
        version=args.version,
        size=args.size,
    )
    size, single = found.contract.input_size, found.contract.max_batch == 1
    print(f"{args.path}: {size} x {size} pixels, {'one photo at a time' if single else 'batches of any size'}")
    mean, largest = found.chroma.mean, found.chroma.largest
    print(f"differs from {args.file} by {mean:.5f} on average, {largest:.5f} at most (Lab units)")
    if found.zero_inputs:
        print(f"inputs that always get zeros: {', '.join(found.zero_inputs)}")


# Printed when a command is interrupted. A run in its training loop prints more.
NOTHING_LEARNT = "stopping: there was no training since the last checkpoint"
NOTHING_WRITTEN = "stopping: no file is written"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m model_export", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train a recipe, or resume the run in a folder")
    train.set_defaults(call=_train, left=NOTHING_LEARNT)
    train.add_argument(
        "recipe", type=_recipe, help="a TOML file, or the name of a shipped recipe, such as compact or compact-hsv"
    )
    train.add_argument(
        "--data", type=Path, nargs="+", required=True, help="folders, tar shards and zip files of photographs"
    )
    train.add_argument(
        "--run", type=Path, required=True, help="the run's folder; a run that has a checkpoint is resumed"
    )
    train.add_argument(
        "--init",
        type=Path,
        nargs="+",
        default=[],
        help="start from the best weights of a run's folder or of an exported ONNX file; of several: from their mean",
    )
    train.add_argument(
        "--max-minutes",
        type=_positive,
        help="time budget of all calls together, last checkpoint included; the schedule is fitted into it",
    )
    train.add_argument(
        "--stop-after",
        type=_not_negative,
        help="stop this call after this number of minutes; the same command resumes the run; 0 stops after one step",
    )
    train.add_argument(
        "--checkpoint-minutes",
        type=_not_negative,
        default=10.0,
        help="minutes between two checkpoints (default 10); 0 writes one every 50 steps",
    )
    train.add_argument(
        "--precision",
        choices=("mixed_bfloat16", "float32"),
        help="default: mixed_bfloat16 if the GPU or CPU computes it fast, otherwise float32",
    )

    evaluate = commands.add_parser("evaluate", help="measure an ONNX model on held-out photographs")
    evaluate.set_defaults(call=_evaluate, left="stopping: not all results are written")
    evaluate.add_argument("--model", type=Path, required=True, help="the ONNX file to measure")
    evaluate.add_argument(
        "--data", type=Path, nargs="+", required=True, help="folders, tar shards and zip files of held-out photographs"
    )
    evaluate.add_argument(
        "--held-out-of", type=Path, help="use only the photographs of --data that this run held out: to choose a gain"
    )
    evaluate.add_argument("--neutral", type=Path, nargs="+", help="nearly neutral photographs")
    evaluate.add_argument(
        "--training",
        type=Path,
        nargs="+",
        help="photographs whose mean colour is the constant baseline; default: those of --data",
    )
    evaluate.add_argument("--gains", type=_positive, nargs="+", help="also print a table of the effect of these gains")
    evaluate.add_argument("--output", type=Path, required=True, help="folder for tables, plots and contact sheets")
    evaluate.add_argument("--sheet", type=_sheet, default=24, help="photographs on the contact sheet (default 24)")
    evaluate.add_argument(
        "--sources", nargs="+", help="sources (first folder of a photograph's name) that the contact sheets may show"
    )
    evaluate.add_argument(
        "--previous", type=Path, nargs="+", default=[], help="other ONNX models, each with its own row in the table"
    )
    evaluate.add_argument("--run", type=Path, nargs="+", default=[], help="runs whose training curves are plotted")

    export = commands.add_parser("export", help="write a run's best weights as an ONNX file")
    export.set_defaults(call=_export, left=NOTHING_WRITTEN)
    export.add_argument("--run", type=Path, required=True, help="the run's folder")
    export.add_argument("--output", type=Path, required=True, help="the .onnx file to write")
    export.add_argument(
        "--force", action="store_true", help="replace an existing file, even if it was not exported from this run"
    )
    export.add_argument("--data", type=Path, nargs="+", required=True, help="photographs for the parity check")
    export.add_argument("--name", help="name shown by /models; default: the file's name")
    export.add_argument("--version", default="1", help="version shown by /models (default 1)")
    export.add_argument(
        "--size",
        type=_side,
        help="side of the input, pixels, a multiple of 32 (256 for unet-gan); default: that of the last stage",
    )
    export.add_argument(
        "--gain",
        type=_positive,
        help="factor of the chroma; default: that of the ONNX file that the run started from, otherwise the recipe's",
    )
    export.add_argument(
        "--cast",
        type=_share,
        help="share of each photo's mean chroma to remove, 0..1; default: that of the ONNX file that the run started"
        " from, otherwise 0",
    )
    export.add_argument("--weights", default="best.npz", help="weights file in the run's folder (default best.npz)")
    export.add_argument("--license", default=LICENSE, help="licence of the weights, shown by /models")
    export.add_argument(
        "--trained-on", default="not stated", help="training data, shown by /models (default: not stated)"
    )

    half = commands.add_parser("half", help="convert an ONNX model to half precision, for a GPU")
    half.set_defaults(call=_half, left=NOTHING_WRITTEN)
    half.add_argument("model", type=Path, metavar="NAME.onnx")
    half.add_argument(
        "-o", dest="path", type=Path, metavar="NAME.fp16.onnx", help="the file to write; default: next to the model"
    )
    half.add_argument("--data", type=Path, nargs="+", required=True, help="photographs for the parity check")
    half.add_argument("--force", action="store_true", help="replace an existing file")

    adapt = commands.add_parser("adapt", help="wrap a third-party ONNX colorizer so that the service can serve it")
    adapt.set_defaults(call=_adapt, left=NOTHING_WRITTEN)
    adapt.add_argument("file", type=Path, metavar="FILE.onnx")
    adapt.add_argument("-o", dest="path", type=Path, required=True, metavar="NAME.onnx", help="the file to write")
    adapt.add_argument("--force", action="store_true", help="replace an existing file")
    adapt.add_argument(
        "--preset",
        choices=PRESETS,
        help="description of a known colorizer; the options below override it or replace it",
    )
    adapt.add_argument("--size", type=int, help="side of the input, pixels, if the graph does not fix it")
    adapt.add_argument("--name", help="name shown by /models; default: that of the file to write")
    adapt.add_argument("--version", default="1", help="version shown by /models (default 1)")
    adapt.add_argument("--license", help="licence of the weights; required without a preset")
    adapt.add_argument("--data", help="training data of the weights")
    adapt.add_argument(
        "--input",
        dest="input_kind",
        choices=("lightness", "gray", "rgb"),
        help="one channel of L*, one channel of sRGB gray, or that gray three times",
    )
    adapt.add_argument(
        "--input-range",
        type=float,
        nargs=2,
        metavar=("BLACK", "WHITE"),
        help="input values of black and white (default 0 1)",
    )
    adapt.add_argument(
        "--mean", type=float, nargs="+", help="then subtracted: one number, or one per channel (default 0)"
    )
    adapt.add_argument(
        "--std", type=float, nargs="+", help="then divided by: one number, or one per channel (default 1)"
    )
    adapt.add_argument("--output", dest="output_kind", choices=("ab", "rgb", "bgr"), help="a* and b*, or an image")
    adapt.add_argument(
        "--output-range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="output values of an image's black and white, or of the two ends of --ab-range (default 0 1)",
    )
    adapt.add_argument(
        "--ab-range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="a* and b*, Lab units, at the two ends of --output-range (default: the output is in Lab units)",
    )
    adapt.add_argument(
        "--layout", choices=("nchw", "nhwc"), help="order of the axes of input and output (default nchw)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command. An error is printed in one line, and the exit code is not 0."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # OpenCV logs errors without the file's name. Our own log line `left out: NAME` has it.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    args = _parser().parse_args(argv)
    try:
        with signals.interruptible(args.left):
            args.call(args)
    except ModuleNotFoundError as error:
        sys.exit(f"{error.name} is not installed: `make .venv/.dev` installs what training needs")
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt as interrupt:
        print("interrupted" + ("; the same command resumes the run" if args.call is _train else ""), file=sys.stderr)
        sys.exit(signals.exit_code(interrupt))
