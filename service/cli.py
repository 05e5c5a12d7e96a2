"""The command `tomau`. Each subcommand imports its own modules, so that `tomau health` starts fast."""

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

SERVE_DESCRIPTION = (
    "Serve over HTTP. Environment variables named TOMAU_* are the settings; `tomau settings` lists them. The API page"
    " is at /docs."
)
# What only the command line has to say about an option.
NOTES = {
    "model": "`tomau models` lists the names.",
    "format": "The suffix of an --output file sets the format, too.",
}


def _serve(_: argparse.Namespace) -> None:
    _open_standard_files()
    faulthandler.enable(2)  # By number, because `sys.stderr` may be None.
    if hasattr(signal, "SIGHUP"):
        # SIGHUP asks for a reload. One that arrives before the models are loaded stays pending until they are.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    server: uvicorn.Server | None = None

    def end(number: int, _: object) -> None:
        # A server that was stopped by a signal raises that signal again at its end.
        if server is None or not server.started:
            os._exit(128 + number)

    if os.getpid() == 1:
        # In a container, process 1 has no default action for signals. Without a handler of our own, a SIGTERM that
        # arrives before uvicorn installs its handler would be lost.
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
    """Open /dev/null for each standard file that is closed.

    Otherwise the next file or socket would get the number 2, and messages of C libraries would be written into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # It gets the lowest free number, which is this one.


def _check_address(host: str, port: int) -> None:
    """Raise OSError if the address can't be listened on. uvicorn would only log a traceback."""
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
    from service.inference.registry import ModelRegistry
    from service.pipeline import directory
    from service.pipeline.colorizer import Colorizer
    from service.pipeline.options import Options
    from service.settings import Settings

    for stream in (sys.stdout, sys.stderr):
        # A file name may have bytes that the terminal's encoding can't show.
        cast("io.TextIOWrapper", stream).reconfigure(errors="backslashreplace")
    given = {name: getattr(args, name) for name in Options.model_fields if getattr(args, name) is not None}
    jobs, folder, format_ = directory.plan(args.photo, args.output, given.get("format"))
    if format_:
        given["format"] = format_
    options = Options.model_validate(given)
    settings = Settings(spread_model_mib=0)  # A second session would take longer to load than it saves.
    colorizer = Colorizer(ModelRegistry(settings), settings)
    colorizer.models.get(options.model)
    directory.make_folder(folder)
    outcomes = directory.colorize_all(colorizer, jobs, options, threads=settings.cores, force=args.force)
    with closing(outcomes):  # After Ctrl-C, photos that have not been started are dropped.
        code = _report(outcomes)
    sys.exit(code)


def _report(outcomes: "Iterable[Outcome]") -> int:
    """Print a line for each photo and a summary. Return the exit code, which is 1 if a photo failed."""
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
    from service.inference.registry import ModelRegistry
    from service.settings import Settings

    registry = ModelRegistry(Settings(spread_model_mib=0))
    for model in registry:
        contract = model.contract
        mark = "*" if contract.name == registry.default else " "
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
    """An option that prints the version, which is looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        parser.exit(message=f"tomau {version('tomau')}\n")


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tomau", description="Colour black-and-white photographs.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve over HTTP", description=SERVE_DESCRIPTION)
    serve.set_defaults(call=_serve)
    commands.add_parser("models", help="list the models; * marks the default").set_defaults(call=_models)
    settings = commands.add_parser("settings", help="list the settings and their values")
    settings.set_defaults(call=_settings)
    settings.add_argument("--env", action="store_true", help="print them as an environment file, such as .env")
    commands.add_parser("formats", help="list the formats of uploads and of outputs").set_defaults(call=_formats)
    commands.add_parser("errors", help="list the errors that the service responds with").set_defaults(call=_errors)
    commands.add_parser("metrics", help="list the metrics").set_defaults(call=_metrics)
    commands.add_parser("health", help="check whether the service on this machine is ready").set_defaults(call=_health)
    colorize = commands.add_parser("colorize", help="colour photos")
    colorize.set_defaults(call=_colorize)
    colorize.add_argument(
        "photo",
        type=Path,
        nargs="+",
        help="Photos, and folders of photos. Inside a folder, hidden files and folders are skipped, and so are files"
        " without a photo's extension.",
    )
    colorize.add_argument(
        "-o",
        "--output",
        required=True,
        help="A .jpg, .png, .webp, .tiff or .avif file for a single photo, otherwise a folder. In a folder, an output"
        " has the name of its photo, plus a new suffix if the format differs. Use a separate folder for each set of"
        " photos.",
    )
    colorize.add_argument(
        "--force",
        action="store_true",
        help="Replace an output that tomau wrote for the same photo. By default it is kept, even if the options differ."
        " No other file is ever replaced.",
    )
    if "colorize" in argv:
        _add_options(colorize)
    return parser


def _add_options(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each field of Options, which checks the values. Its import is too slow for `tomau health`."""
    from service.pipeline.options import Options

    for name, schema in Options.model_json_schema()["properties"].items():
        schema |= next((kind for kind in schema.get("anyOf", ()) if kind["type"] != "null"), {})
        least, most, default = schema.get("minimum"), schema.get("maximum"), schema.get("default")
        texts = [schema["description"], NOTES.get(name, "")]
        if least is not None:
            texts.append(f"Allowed: at least {least}." if most is None else f"Allowed: {least} to {most}.")
        if default is not None:
            texts.append(f"Default: {default}.")
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            metavar="{" + ",".join(schema["enum"]) + "}" if "enum" in schema else None,
            help=" ".join(filter(None, texts)).replace("%", "%%"),
        )


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
    """Return the message of an error that the user can fix, or None for any other error."""
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from service.errors import Problem
    from service.inference.contract import ContractError
    from service.inference.executor import EngineError
    from service.inference.registry import ModelRegistryError
    from service.observability.tracing import TracingError
    from service.pipeline.directory import OutputError
    from service.web.auth import AccessError

    if isinstance(error, ValidationError):
        return _faults(error)
    known = (
        Problem,
        OutputError,
        AccessError,
        ModelRegistryError,
        ContractError,
        EngineError,
        SettingsError,
        TracingError,
        OSError,
    )
    return str(error) if isinstance(error, known) else None


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command. An error that the user can fix is printed in one line, and the exit code is 1."""
    args = _parser(sys.argv[1:] if argv is None else argv).parse_args(argv)
    try:
        args.call(args)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        sys.exit(f"tomau: {reason}")
