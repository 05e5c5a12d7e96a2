"""The command `tomau`. Each command imports what it needs: `tomau health` has to start fast."""

import argparse
import faulthandler
import os
import signal
import socket
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import io

    import uvicorn
    from pydantic import ValidationError

    from service.pipeline.directory import Outcome

# Those of an upload.
OPTIONS = {
    "model": "a name that `tomau models` lists",
    "format": "jpeg, png, webp, tiff or avif; by default the photo's own, or that of the output's name",
    "quality": "of a JPEG, WebP or AVIF, 1 to 100; by default a JPEG's own, at least 85, else 92",
    "strength": "scales the colour, 0 (gray) to 2; by default 1",
    "max_side": "shrinks the answer to this longer side, pixels",
    "if_color": "recolor, keep or reject photos that are in colour already",
    "metadata": "keep (by default) or strip",
    "merge": "luma (by default) or literal",
}


def _serve(_: argparse.Namespace) -> None:
    _open_standard_files()
    faulthandler.enable(2)  # the number: `sys.stderr` may be missing
    if hasattr(signal, "SIGHUP"):
        # It asks for a reload: one that comes before the models are loaded waits until they are.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    server: uvicorn.Server | None = None

    def end(number: int, _: object) -> None:
        # A server that has ended raises the signal that ended it once more.
        if server is None or not server.started:
            os._exit(128 + number)

    if os.getpid() == 1:
        # As in a container. There is no default action for this process: until the server listens to the signal, it
        # would be lost.
        signal.signal(signal.SIGTERM, end)
    import logging

    from service.observability.logging import set_up_logging
    from service.settings import Settings, renamed_variables, unknown_variables
    from service.web.app import create_app
    from service.web.server import Server, raise_file_limit

    settings = Settings()
    set_up_logging(settings.log_level, settings.log_format)
    for warning in (*renamed_variables(os.environ), *unknown_variables(os.environ)):
        logging.getLogger(__name__).warning(warning)
    raise_file_limit(settings.max_connections)
    app = create_app(settings)
    _check_address(settings.host, settings.port)
    server = Server(app, settings)
    server.run()


def _open_standard_files() -> None:
    """Else the next files would get their numbers, and what a library has to complain about would go into a photo."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one


def _check_address(host: str, port: int) -> None:
    """Raises OSError, told in a line, when the address can't be listened on: uvicorn goes on with its log."""
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OSError(f"TOMAU_HOST and TOMAU_PORT: can't listen on {host}:{port}: {reason}") from error


def _health(_: argparse.Namespace) -> None:
    from service import healthcheck

    is_ready, said = healthcheck.check()
    print(said)
    sys.exit(not is_ready)


def _colorize(args: argparse.Namespace) -> None:
    from service.inference.registry import Catalog
    from service.pipeline import directory
    from service.pipeline.colorizer import Colorizer
    from service.pipeline.options import Options
    from service.settings import Settings

    for stream in (sys.stdout, sys.stderr):
        # The names of files may be in another encoding, or in none.
        cast("io.TextIOWrapper", stream).reconfigure(errors="backslashreplace")
    given = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    jobs, folder, format_ = directory.plan(args.photo, args.output, given.get("format"))
    if format_:
        given["format"] = format_
    options = Options.model_validate(given)
    settings = Settings(spread_model_mib=0)  # That would take longer to load than it saves.
    colorizer = Colorizer(Catalog(settings), settings)
    colorizer.catalog.get(options.model)
    directory.make(folder)
    outcomes = directory.colorize(colorizer, jobs, options, threads=settings.cores, force=args.force)
    with closing(outcomes):  # After Ctrl-C, what has not begun is dropped.
        code = _tell(outcomes)
    sys.exit(code)


def _tell(outcomes: "Iterable[Outcome]") -> int:
    """A line for each photo, and one at the end; the exit code is 1 when one has failed."""
    colored = skipped = failed = 0
    for outcome in outcomes:
        if outcome.reason:
            print(f"tomau: {outcome.photo}: {outcome.reason}", file=sys.stderr)
        else:
            print(f"{outcome.photo} -> {outcome.written}{', which is there already' if outcome.skipped else ''}")
        failed += bool(outcome.reason)
        skipped += outcome.skipped
        colored += not outcome.reason and not outcome.skipped
    print(f"{colored} coloured, {skipped} skipped, {failed} failed")
    return int(failed > 0)


def _models(_: argparse.Namespace) -> None:
    from service.inference.registry import Catalog
    from service.settings import Settings

    catalog = Catalog(Settings(spread_model_mib=0))
    for model in catalog:
        contract = model.contract
        mark = "*" if contract.name == catalog.default else " "
        print(
            f"{mark} {contract.name} {contract.version}  {contract.color_space}  {contract.input_size} px  "
            f"sha256 {model.sha256}"
        )


def _settings(args: argparse.Namespace) -> None:
    from service.settings import Settings, environment, table

    print((environment if args.env else table)(Settings()), end="")


def _formats(_: argparse.Namespace) -> None:
    from service.formats import support_table

    print(support_table.table(), end="")


def _errors(_: argparse.Namespace) -> None:
    from service import errors

    print(errors.table(), end="")


def _metrics(_: argparse.Namespace) -> None:
    from service.observability.metrics import table

    print(table(), end="")


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        parser.exit(message=f"tomau {version('tomau')}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tomau", description="Colours black-and-white photographs.")
    parser.add_argument("--version", action=_Version, nargs=0, help="show it and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("serve", help="serve over HTTP; settings are TOMAU_* variables").set_defaults(call=_serve)
    commands.add_parser("models", help="list the models; * is the default").set_defaults(call=_models)
    settings = commands.add_parser("settings", help="list the settings and their values")
    settings.set_defaults(call=_settings)
    settings.add_argument("--env", action="store_true", help="as an environment file, such as .env")
    commands.add_parser("formats", help="list what is taken and what is given").set_defaults(call=_formats)
    commands.add_parser("errors", help="list every problem that an answer can be").set_defaults(call=_errors)
    commands.add_parser("metrics", help="list the metrics").set_defaults(call=_metrics)
    commands.add_parser("health", help="ask the service here whether it is ready").set_defaults(call=_health)
    colorize = commands.add_parser("colorize", help="colour photos")
    colorize.set_defaults(call=_colorize)
    colorize.add_argument(
        "photo",
        type=Path,
        nargs="+",
        help="files, and folders of them; hidden files and folders in a folder are passed over",
    )
    colorize.add_argument(
        "-o",
        "--output",
        required=True,
        help="a .jpg, .png, .webp, .tiff or .avif file for one photo, else a folder; each album needs its own, because"
        " answers have the names of their photos, with .jpg or the like behind them where their format is another",
    )
    colorize.add_argument(
        "--force",
        action="store_true",
        help="replace answers that tomau wrote for the same photo; by default they are left, whatever the other"
        " options. No other file is ever replaced",
    )
    for name, meaning in OPTIONS.items():
        colorize.add_argument(f"--{name.replace('_', '-')}", help=meaning)
    return parser


def _faults(error: "ValidationError") -> str:
    """Return a line that names each invalid setting by its variable, or each invalid option."""
    from service.settings import FORMER_NAMES, variable

    def shown(name: str) -> str:
        if error.title != "Settings":
            return name
        former = FORMER_NAMES.get(name)
        return f"{variable(name)} (formerly {variable(former)})" if former else variable(name)

    return "; ".join(f"{shown(str(fault['loc'][0]))}: {fault['msg']}" for fault in error.errors())


def _reason(error: Exception) -> str | None:
    """What is wrong, if that is for the user to put right."""
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from service.errors import Problem
    from service.inference.contract import ContractError
    from service.inference.executor import EngineError
    from service.inference.registry import CatalogError
    from service.observability.tracing import TracingError
    from service.pipeline.directory import OutputError
    from service.web.auth import AccessError

    if isinstance(error, ValidationError):
        return _faults(error)
    known = (
        Problem,
        OutputError,
        AccessError,
        CatalogError,
        ContractError,
        EngineError,
        SettingsError,
        TracingError,
        OSError,
    )
    return str(error) if isinstance(error, known) else None


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command; what is wrong is said in one line, with a non-zero code."""
    args = _parser().parse_args(argv)
    try:
        args.call(args)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        sys.exit(f"tomau: {reason}")
