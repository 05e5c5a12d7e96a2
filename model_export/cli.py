"""The command line of the training program."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

RECIPES = Path(__file__).parent / "recipes"


def _recipe(text: str) -> Path:
    path = Path(text) if text.endswith(".toml") else RECIPES / f"{text}.toml"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise argparse.ArgumentTypeError(f"{text}: neither a .toml file nor one of the recipes {names}")
    return path


def _train(args: argparse.Namespace) -> None:
    import keras

    from model_export import recipe, train

    keras.config.set_dtype_policy(args.precision)
    limits = train.Limits(args.max_minutes, args.checkpoint_minutes)
    state = train.train(recipe.load(args.recipe), args.run, args.data, limits, args.init)
    print(f"{state.views:,} views in {state.minutes:.0f} minutes; best validation loss {state.best_loss:.4f}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m model_export", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train a recipe, or go on with the run in a folder")
    train.set_defaults(call=_train)
    train.add_argument("recipe", type=_recipe, help="a TOML file, or the name of a shipped recipe")
    train.add_argument("--data", type=Path, nargs="+", required=True, help="tar shards and folders of photographs")
    train.add_argument("--run", type=Path, required=True, help="the run's folder; one that has a checkpoint is resumed")
    train.add_argument("--init", type=Path, help="start from the best weights of this finished run")
    train.add_argument("--max-minutes", type=float, help="time budget: the schedule is fitted into it")
    train.add_argument("--checkpoint-minutes", type=float, default=10.0, help="between two checkpoints (default 10)")
    train.add_argument("--precision", default="mixed_bfloat16", choices=("mixed_bfloat16", "float32"))
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command; bad arguments end with code 2 and a line that says why."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    args = _parser().parse_args(argv)
    args.call(args)
