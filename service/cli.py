"""The command `tomau`. Each command imports what it needs: `tomau health` has to start fast."""

import argparse
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


def _serve(_: argparse.Namespace) -> None:
    _open_standard_files()
    if hasattr(signal, "SIGHUP"):
        # It asks for a reload: one that comes before the models are loaded waits until they are.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    from service.app import create_app
    from service.server import Server
    from service.settings import Settings
    from service.telemetry import set_up_logging

    settings = Settings()
    set_up_logging(settings.log_level, settings.log_format)
    app = create_app(settings)
    _check_address(settings.host, settings.port)
    Server(app, settings).run()


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
    from service import health

    is_ready, said = health.check()
    print(said)
    sys.exit(not is_ready)


def _colorize(args: argparse.Namespace) -> None:
    from service.catalog import Catalog
    from service.colorizer import Colorizer, Options
    from service.settings import Settings

    given = {"model": args.model, "strength": args.strength, "quality": args.quality}
    suffix = args.output.suffix.lower().removeprefix(".")
    given["format"] = {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix)
    options = Options.model_validate({key: value for key, value in given.items() if value is not None})
    settings = Settings()
    answer = Colorizer(Catalog(settings), settings).colorize(args.photo.read_bytes(), options)
    args.output.write_bytes(answer.data)


def _models(_: argparse.Namespace) -> None:
    from service.catalog import Catalog
    from service.settings import Settings

    catalog = Catalog(Settings())
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
    from service import formats

    print(formats.table(), end="")


def _errors(_: argparse.Namespace) -> None:
    from service import problems

    print(problems.table(), end="")


def _metrics(_: argparse.Namespace) -> None:
    from service.metrics import table

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
    colorize = commands.add_parser("colorize", help="colour one photo")
    colorize.set_defaults(call=_colorize)
    colorize.add_argument("photo", type=Path)
    colorize.add_argument("-o", "--output", type=Path, required=True, help="a .jpg, .png, .webp, .tiff or .avif file")
    colorize.add_argument("--model", help="by default the service's default")
    colorize.add_argument("--strength", type=float, help="0 (gray) to 2; by default 1")
    colorize.add_argument("--quality", type=int, help="1 to 100")
    return parser


def _faults(error: "ValidationError") -> str:
    """Each bad setting or option, by the name that the user gave it."""
    is_setting = error.title == "Settings"
    names = [str(fault["loc"][0]) for fault in error.errors()]
    shown = [f"TOMAU_{name.upper()}" if is_setting else name for name in names]
    return "; ".join(f"{name}: {fault['msg']}" for name, fault in zip(shown, error.errors(), strict=True))


def _reason(error: Exception) -> str | None:
    """What is wrong, if that is for the user to put right."""
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from service.access import AccessError
    from service.catalog import CatalogError
    from service.contract import ContractError
    from service.executor import EngineError
    from service.problems import Problem
    from service.tracing import TracingError

    if isinstance(error, ValidationError):
        return _faults(error)
    known = (Problem, AccessError, CatalogError, ContractError, EngineError, SettingsError, TracingError, OSError)
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
