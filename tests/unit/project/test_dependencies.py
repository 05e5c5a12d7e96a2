"""Every private, undocumented or overridden name of a dependency is there, and takes the arguments that we use.

Most of them no library promises to keep. The bounds in pyproject.toml name versions that have them, and `make
test-lowest` tries the lowest of these. When a new version is tried, these tests name what is gone.
"""

import asyncio
import inspect
import re
import tomllib
from pathlib import Path

import _pi_heif
import cv2
import httptools
import pytest
from fastapi.routing import APIRoute
from packaging.requirements import Requirement
from packaging.version import Version
from pi_heif.heif import BaseImage
from PIL import Image, ImageCms, PngImagePlugin
from pydantic_settings import EnvSettingsSource
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send
from uvicorn import Server as UvicornServer
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from service import settings
from service.web import batch, connection, cors, routes, server

ROOT = Path(__file__).parents[3]
# Our class, the library's, and what ours overrides or calls there.
OVERRIDDEN: list[tuple[type, type, set[str]]] = [
    (
        connection.LimitedProtocol,
        HttpToolsProtocol,
        {
            *("connection_made", "connection_lost", "data_received", "eof_received", "pause_writing", "resume_writing"),
            *(
                "on_message_begin",
                "on_header",
                "on_headers_complete",
                "on_body",
                "on_message_complete",
                "on_response_complete",
            ),
            *("_start_asgi_task", "_unsupported_upgrade_warning", "send_400_response"),
        },
    ),
    (server.Server, UvicornServer, {"run", "serve", "startup", "shutdown", "handle_exit"}),
    (cors.CorsResponses, CORSMiddleware, {"__call__"}),
    (cors.CorsPreflights, CORSMiddleware, {"simple_response"}),
    (batch.BatchResponse, Response, {"__call__"}),
    (routes.UploadRoute, APIRoute, {"get_route_handler"}),
    (settings.Environment, EnvSettingsSource, {"get_field_value", "prepare_field_value"}),
]
# Attributes that the library's constructor sets, and ours reads or changes.
ATTRIBUTES: list[tuple[type, set[str]]] = [
    (
        HttpToolsProtocol,
        {"app", "cycle", "headers", "loop", "parser", "pipeline", "timeout_keep_alive_task", "transport"},
    ),
    (
        RequestResponseCycle,
        {
            *("chunked_encoding", "disconnected", "expected_content_length", "keep_alive", "message_event"),
            *("more_body", "response_complete", "response_started", "scope"),
        },
    ),
    (UvicornServer, {"config", "force_exit", "server_state", "started"}),
    (ServerState, {"connections", "tasks"}),
    (CORSMiddleware, {"app"}),
    (EnvSettingsSource, {"env_vars"}),
]
# Dependencies with names that nothing promises to keep: a version after the one that was tried may lack them.
WITH_PRIVATE_NAMES = {"pi-heif", "uvicorn"}


@pytest.mark.parametrize(("ours", "theirs", "names"), OVERRIDDEN, ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_overridden_is_there_and_takes_the_same(ours: type, theirs: type, names: set[str]) -> None:
    own = {name for name, value in vars(ours).items() if inspect.isfunction(value)}
    common = {name for name in own if hasattr(theirs, name) and (name == "__call__" or not name.startswith("__"))}
    assert common == names, "a name that either has and the other lacks"
    for name in names:
        own_parameters = list(inspect.signature(getattr(ours, name)).parameters)
        assert own_parameters == list(inspect.signature(getattr(theirs, name)).parameters), name


@pytest.mark.parametrize(("theirs", "names"), ATTRIBUTES, ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_read_or_changed_is_set(theirs: type, names: set[str]) -> None:
    assert names <= {*inspect.getsource(theirs.__init__).replace("self.", " ").replace(":", " ").split()}


def test_cors_lets_an_answer_pass_that_no_page_asked_for() -> None:
    """Its own `__call__` would pass such requests by; ours does not."""
    sent: list[Message] = []

    async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> Message:
        raise AssertionError("there is nothing to receive")

    async def send(message: Message) -> None:
        sent.append(message)

    layer = CORSMiddleware(answer, allow_origins=["http://a"])
    scope = {"type": "http", "headers": []}
    asyncio.run(layer.simple_response(scope, receive, send, request_headers=Headers(scope=scope)))
    assert sent[0]["headers"] == [(b"vary", b"Origin")]


def test_pi_heif_takes_the_arguments_that_we_use() -> None:
    with pytest.raises((ValueError, EOFError, OSError, RuntimeError, SyntaxError)):
        _pi_heif.load_file(b"", 1, False, False, True, True, "", False)
    assert list(inspect.signature(BaseImage).parameters) == ["c_image"]


def test_httptools_tells_what_is_asked() -> None:
    asked = {"feed_data", "get_http_version", "get_method", "should_keep_alive", "should_upgrade"}
    assert asked <= set(dir(httptools.HttpRequestParser))
    assert issubclass(httptools.HttpParserUpgrade, Exception)


def test_limits_of_pillow_are_where_they_are_set() -> None:
    assert hasattr(Image, "MAX_IMAGE_PIXELS")
    assert isinstance(PngImagePlugin.MAX_TEXT_CHUNK, int)
    assert {"NONE", "NOOPTIMIZE", "BLACKPOINTCOMPENSATION"} <= set(ImageCms.Flags.__members__)


def test_opencv_can_be_silenced() -> None:
    assert cv2.utils.logging.getLogLevel() == cv2.utils.logging.LOG_LEVEL_SILENT
    assert isinstance(cv2.Error.StsNoMem, int)


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def locked(name: str) -> dict[str, list[Version]]:
    """The versions of a lock file; some are different for different versions of Python."""
    found: dict[str, list[Version]] = {}
    text = (ROOT / "requirements" / name).read_text()
    for package, version in re.findall(r"^([a-z0-9-]+)==([^ \n;]+)", text, re.MULTILINE):
        found.setdefault(package, []).append(Version(version))
    return found


def bound(requirement: Requirement, operator: str) -> tuple[int, ...]:
    return next(Version(one.version).release for one in requirement.specifier if one.operator == operator)


def test_private_names_are_taken_from_no_untried_version() -> None:
    """The upper bound is the next version that may change them: the locked one's next minor."""
    requirements = {one.name: one for one in map(Requirement, PROJECT["dependencies"])}
    for name in WITH_PRIVATE_NAMES:
        major, minor, *_ = locked("dev.lock")[name][0].release
        assert bound(requirements[name], "<") == (major, minor + 1), f"{name}: try it, then move its bound"


def test_the_lowest_versions_are_tried() -> None:
    """Else `make test-lowest` would say nothing of them."""
    extras = PROJECT["optional-dependencies"]
    named = [*PROJECT["dependencies"], *(one for extra in ("cpu", "export", "dev") for one in extras[extra])]
    versions = locked("lowest.lock")
    for requirement in map(Requirement, named):
        low = bound(requirement, ">=")
        assert min(versions[requirement.name]).release[: len(low)] == low, requirement


LOCKED_EXTRAS = {
    "dev": ("cpu", "export", "dev"),
    "bench": ("cpu", "bench"),
    "fuzz": ("cpu", "export", "dev", "fuzz"),
    "audit": ("cpu", "export", "dev", "audit"),
    "serve-cpu": ("cpu",),
    "serve-gpu": ("gpu",),
    "lowest": ("cpu", "export", "dev"),
}


@pytest.mark.parametrize("lock", LOCKED_EXTRAS)
def test_lock_files_are_up_to_date(lock: str) -> None:
    """Each named requirement is locked, in a version that it allows. `make lock` mends it."""
    versions = locked(f"{lock}.lock")
    extras = PROJECT["optional-dependencies"]
    named = [*PROJECT["dependencies"], *(one for extra in LOCKED_EXTRAS[lock] for one in extras[extra])]
    for requirement in map(Requirement, named):
        assert requirement.name in versions, requirement
        assert all(requirement.specifier.contains(version) for version in versions[requirement.name]), requirement


def test_every_lock_file_is_checked() -> None:
    assert {path.stem for path in (ROOT / "requirements").glob("*.lock")} == {*LOCKED_EXTRAS, "build"}
