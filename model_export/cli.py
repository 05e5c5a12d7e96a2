"""The command line of the training program."""

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from model_export import signals

RECIPES = Path(__file__).parent / "recipes"
# What the shipped weights are, in every place that says it.
LICENSE = "Research use: trained on photographs of mixed, partly non-commercial licences"
PARITY_PHOTOGRAPHS = 32
CONSTANT_PHOTOGRAPHS = 2000
# Of every network: its input is halved five times.
STRIDE = 32
# Rows of three, of sheet.py, in the 65,500 pixels that a JPEG may be high.
MAX_SHEET_PHOTOGRAPHS = 1275
# Of foreign.py, which is imported only to adapt.
PRESETS = ("ddcolor", "deoldify", "eccv16", "siggraph17")


def _recipe(text: str) -> Path:
    path = Path(text) if text.endswith(".toml") else RECIPES / f"{text}.toml"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise argparse.ArgumentTypeError(f"{text}: neither a .toml file nor one of the recipes {names}")
    return path


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: not a whole number from 1 on")
    return int(text)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text}: not a number")
    return number


def _positive(text: str) -> float:
    if (number := _number(text)) <= 0:
        raise argparse.ArgumentTypeError(f"{text}: not more than 0")
    return number


def _not_negative(text: str) -> float:
    if (number := _number(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text}: less than 0")
    return number


def _share(text: str) -> float:
    if not 0 <= (number := _number(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text}: not in 0..1")
    return number


def _side(text: str) -> int:
    if (side := _count(text)) % STRIDE:
        raise argparse.ArgumentTypeError(f"{text}: not a multiple of {STRIDE}")
    return side


def _sheet(text: str) -> int:
    if (count := _count(text)) > MAX_SHEET_PHOTOGRAPHS:
        raise argparse.ArgumentTypeError(f"{text}: a JPEG has room for {MAX_SHEET_PHOTOGRAPHS:,} at most")
    return count


def _train(args: argparse.Namespace) -> None:
    # TensorFlow takes its time to be imported.
    started = time.monotonic()
    from model_export import recipe
    from model_export.run import train
    from model_export.run.schedule import Limits

    limits = Limits(args.max_minutes, args.stop_after, args.checkpoint_minutes)
    learnt = recipe.load(args.recipe)
    state = train.train(learnt, args.run, args.data, limits, args.init, args.precision, started)
    print(f"{state.views:,} views in {state.minutes:.1f} minutes; best loss {state.best_loss:.4f}")
    if state.start_loss is not None:
        print(f"validation loss of what it began with: {state.start_loss:.4f}")
        if learnt.best_by == "validation" and state.best_loss >= state.start_loss:
            print(
                "it is not better on the photographs held out; a few say little, many that it learnt too much by heart"
            )


def _evaluate(args: argparse.Namespace) -> None:
    from model_export.data import sources
    from model_export.evaluation import contact_sheet, evaluate, plots
    from model_export.weights import checkpoint
    from service.inference.session import Engine

    # Read first: a wrong name shouldn't cost minutes.
    histories = {name: plots.read_history(run) for name, run in plots.name_runs(args.run).items()}
    files = (args.model, *args.previous)
    models = evaluate.name_models([(file, Engine(file, file.read_bytes(), "cpu")) for file in files])
    engine = next(iter(models.values()))
    run = args.held_out_of
    entries = checkpoint.find_held_out(run, args.data) if run else sources.find(args.data)
    entries, lost = evaluate.drop_unreadable(entries)
    shown = [n for n, e in enumerate(entries) if not args.sources or evaluate.source_of(e) in args.sources]
    if not shown:
        raise ValueError(f"no photograph is of the sources {', '.join(args.sources)}")
    training = sources.find(args.training) if args.training else entries
    _, drawn = sources.hold_out(training, min(CONSTANT_PHOTOGRAPHS, len(training)))
    drawn, lost_drawn = evaluate.drop_unreadable(drawn)
    origin = f"{len(drawn):,} training photographs" if args.training else "these photographs themselves"
    neutral, lost_neutral = evaluate.drop_unreadable(sources.find(args.neutral) if args.neutral else [])
    constant = evaluate.mean_chroma_of(drawn)
    report = evaluate.evaluate(models, entries, neutral, constant, origin, lost + lost_drawn + lost_neutral)
    evaluate.write(report, args.output)
    print(evaluate.markdown({name: row.figures for name, row in report.rows.items()}) + "\n" + report.note)
    if args.gains:
        print(evaluate.gain_table(report.rows[report.model].sample, args.gains))
    contact_sheet.save_all(entries, shown, report, evaluate.predictor_of(engine), args.sheet, args.output)
    plots.save_all({name: report.rows[name].sample for name in models}, histories, args.output)


def _export(args: argparse.Namespace) -> None:
    from model_export.export import model_files

    # Said before TensorFlow takes its time to be imported.
    model_files.check_replaceable(args.output, force=args.force, written=model_files.exports_of(args.run))
    from model_export.data import sources
    from model_export.export import export

    _, photographs = sources.hold_out(sources.find(args.data), PARITY_PHOTOGRAPHS)
    difference = export.export(
        args.run,
        args.output,
        name=args.name or args.output.stem,
        version=args.version,
        size=args.size,
        gain=args.gain,
        cast=args.cast,
        license_=args.license,
        trained_on=args.trained_on,
        photographs=photographs,
        weights=args.weights,
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
        f" its chroma by {found.chroma.mean:.5f} on average, {found.chroma.largest:.5f} at most"
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
        print(f"inputs that only get zeros: {', '.join(found.zero_inputs)}")


# What is said at once when a command is interrupted; a run that learns says more.
NOTHING_LEARNT = "stopping: nothing was learnt since the last checkpoint"
NOTHING_WRITTEN = "stopping: no file is written"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m model_export", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train a recipe, or go on with the run in a folder")
    train.set_defaults(call=_train, left=NOTHING_LEARNT)
    train.add_argument("recipe", type=_recipe, help="a TOML file, or the name of a shipped recipe")
    train.add_argument(
        "--data", type=Path, nargs="+", required=True, help="folders, tar shards and zip files of photographs"
    )
    train.add_argument("--run", type=Path, required=True, help="the run's folder; one that has a checkpoint is resumed")
    train.add_argument(
        "--init",
        type=Path,
        nargs="+",
        default=[],
        help="start from the best weights of a finished run or of our ONNX file; of several: from their mean",
    )
    train.add_argument(
        "--max-minutes",
        type=_positive,
        help="time budget for all calls together, set-up and last checkpoint included: the schedule is fitted into it",
    )
    train.add_argument(
        "--stop-after", type=_not_negative, help="minutes after which this call stops, to be resumed; 0: after a step"
    )
    train.add_argument(
        "--checkpoint-minutes",
        type=_not_negative,
        default=10.0,
        help="between two checkpoints (default 10); 0: every 50 steps",
    )
    train.add_argument(
        "--precision",
        choices=("mixed_bfloat16", "float32"),
        help="by default mixed_bfloat16 where the GPU or CPU computes it fast, else float32",
    )

    evaluate = commands.add_parser("evaluate", help="measure an ONNX model on held-out photographs")
    evaluate.set_defaults(call=_evaluate, left="stopping: not all figures are written")
    evaluate.add_argument("--model", type=Path, required=True)
    evaluate.add_argument("--data", type=Path, nargs="+", required=True, help="held-out shards and folders")
    evaluate.add_argument(
        "--held-out-of", type=Path, help="of --data, only what this run has held out: to choose a gain"
    )
    evaluate.add_argument("--neutral", type=Path, nargs="+", help="nearly neutral photographs")
    evaluate.add_argument("--training", type=Path, nargs="+", help="where the constant baseline's colour comes from")
    evaluate.add_argument("--gains", type=_positive, nargs="+", help="also a table of what each gain would do")
    evaluate.add_argument("--output", type=Path, required=True, help="folder for the figures and the pictures")
    evaluate.add_argument("--sheet", type=_sheet, default=24, help="photographs on the contact sheet (default 24)")
    evaluate.add_argument("--sources", nargs="+", help="folders of the shards that the sheets may show")
    evaluate.add_argument(
        "--previous", type=Path, nargs="+", default=[], help="other ONNX models, each a row of the table"
    )
    evaluate.add_argument("--run", type=Path, nargs="+", default=[], help="runs whose training curves are drawn")

    export = commands.add_parser("export", help="write a run's best weights as an ONNX file")
    export.set_defaults(call=_export, left=NOTHING_WRITTEN)
    export.add_argument("--run", type=Path, required=True)
    export.add_argument("--output", type=Path, required=True, help="the .onnx file to write")
    export.add_argument("--force", action="store_true", help="replace a file that this run was not exported to before")
    export.add_argument("--data", type=Path, nargs="+", required=True, help="photographs for the parity check")
    export.add_argument("--name", help="shown by /models; by default that of the file")
    export.add_argument("--version", default="1")
    export.add_argument(
        "--size",
        type=_side,
        help="side of the input, a multiple of 32 (256 for unet-gan); by default that of the last stage",
    )
    export.add_argument(
        "--gain",
        type=_positive,
        help="what the chroma is multiplied with; by default that of the ONNX file that the run began with, else the"
        " recipe's",
    )
    export.add_argument(
        "--cast",
        type=_share,
        help="share of each photo's mean chroma that is taken away; by default that of the ONNX file that the run began"
        " with, or 0",
    )
    export.add_argument("--weights", default="best.npz", help="which of the run's weights (default best.npz)")
    export.add_argument("--license", default=LICENSE)
    export.add_argument("--trained-on", default="not stated", help="shown by /models (default: not stated)")

    half = commands.add_parser("half", help="write an ONNX model in half precision, for a GPU")
    half.set_defaults(call=_half, left=NOTHING_WRITTEN)
    half.add_argument("model", type=Path, metavar="NAME.onnx")
    half.add_argument(
        "-o", dest="path", type=Path, metavar="NAME.fp16.onnx", help="the file to write; by default beside the model"
    )
    half.add_argument("--data", type=Path, nargs="+", required=True, help="photographs for the parity check")
    half.add_argument("--force", action="store_true", help="replace a file that is there")

    adapt = commands.add_parser("adapt", help="wrap somebody else's ONNX colorizer so that the service can serve it")
    adapt.set_defaults(call=_adapt, left=NOTHING_WRITTEN)
    adapt.add_argument("file", type=Path, metavar="FILE.onnx")
    adapt.add_argument("-o", dest="path", type=Path, required=True, metavar="NAME.onnx", help="the file to write")
    adapt.add_argument("--force", action="store_true", help="replace a file that is there")
    adapt.add_argument("--preset", choices=PRESETS, help="whose it is; the options below change it, or do without it")
    adapt.add_argument("--size", type=int, help="side of the input, pixels, where the graph leaves it open")
    adapt.add_argument("--name", help="shown by /models; by default that of the file to write")
    adapt.add_argument("--version", default="1")
    adapt.add_argument("--license", help="of the weights; has to be given without a preset")
    adapt.add_argument("--data", help="what they were trained on")
    adapt.add_argument(
        "--input",
        dest="input_kind",
        choices=("lightness", "gray", "rgb"),
        help="one channel of L*, one of sRGB gray, or that gray three times",
    )
    adapt.add_argument("--input-range", type=float, nargs=2, metavar=("BLACK", "WHITE"), help="default 0 1")
    adapt.add_argument("--mean", type=float, nargs="+", help="taken off after that: one, or one a channel (default 0)")
    adapt.add_argument("--std", type=float, nargs="+", help="then divided by (default 1)")
    adapt.add_argument("--output", dest="output_kind", choices=("ab", "rgb", "bgr"), help="a* and b*, or a picture")
    adapt.add_argument(
        "--output-range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="what a picture's black and white are, or the ends of --ab-range (default 0 1)",
    )
    adapt.add_argument(
        "--ab-range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="the a* and b* that --output-range stands for (default: the same, Lab units as they are)",
    )
    adapt.add_argument("--layout", choices=("nchw", "nhwc"), help="where the channels are (default nchw)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command; what is wrong is said in one line, with a non-zero code."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # What it says of a photograph is without a name; `left out: NAME` follows.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    args = _parser().parse_args(argv)
    try:
        with signals.interruptible(args.left):
            args.call(args)
    except ModuleNotFoundError as error:
        sys.exit(f"{error.name} is not installed: `make .venv/.dev` sets up what training needs")
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt as interrupt:
        print("interrupted" + ("; the same command goes on" if args.call is _train else ""), file=sys.stderr)
        sys.exit(signals.exit_code(interrupt))
