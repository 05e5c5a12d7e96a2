import asyncio
import json

import pytest

from service.errors import NotFound, Overloaded, Problem
from service.observability.logging import set_up_logging
from service.observability.metrics import Metrics
from service.observability.middleware import Telemetry, server_timing
from tests.unit.observability.conftest import TRACE, TRACEPARENT, Logged, exchange


def test_the_header_has_milliseconds() -> None:
    assert server_timing({"decode": 0.0123, "infer": 0.5}) == "decode;dur=12.3, infer;dur=500.0"


@pytest.mark.parametrize(("level", "status", "lines"), [("info", 200, 0), ("info", 503, 1), ("debug", 200, 1)])
def test_probes_are_quiet_while_all_is_well(logged: Logged, level: str, status: int, lines: int) -> None:
    async def probed(_scope, _receive, send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    set_up_logging(level)
    exchange(probed, path="/readyz")
    assert len([line for line in logged() if "/readyz" in line]) == lines


def test_a_problem_names_its_request_and_not_its_trace(logged: Logged) -> None:
    async def nothing(*_: object) -> None:
        raise NotFound("POST /nowhere")

    set_up_logging("info", "json")
    start, body = exchange(nothing, (b"x-request-id", b"mine"), (b"traceparent", TRACEPARENT.encode()), path="/nowhere")
    assert start["status"] == 404
    assert json.loads(body["body"])["instance"] == "urn:tomau:request:mine"
    assert TRACE.encode() not in body["body"]
    (access,) = map(json.loads, logged())
    assert (access["route"], access["path"], access["code"]) == ("other", "/nowhere", "not_found")


@pytest.mark.parametrize(
    ("problem", "told"), [(Overloaded("too many uploads at once (100%)"), True), (NotFound("POST /x"), False)]
)
@pytest.mark.parametrize("format_", ["text", "json"])
def test_why_a_good_request_was_refused_is_logged(logged: Logged, problem: Problem, told: bool, format_: str) -> None:
    """One code has many causes. A fault of the client is not logged, because the detail quotes the client."""

    async def refused(*_: object) -> None:
        raise problem

    set_up_logging("info", format_)
    exchange(refused)
    (line,) = logged()
    assert (problem.detail in line) is told
    if format_ == "json":
        assert json.loads(line).get("detail") == (problem.detail if told else None)


@pytest.mark.parametrize("begun", [False, True])
def test_a_request_that_the_services_end_cuts_off_is_told_and_counted(begun: bool) -> None:
    sent: list[dict] = []

    async def endless(_scope, _receive, send) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.Event().wait()

    async def send(message: dict) -> None:
        sent.append(message)

    async def main() -> None:
        task = asyncio.create_task(Telemetry(endless, metrics)(scope, None, send))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        task.cancel()
        await task

    metrics = Metrics(["/colorize"])
    scope = {"type": "http", "method": "POST", "path": "/colorize", "raw_path": b"/colorize", "headers": []}
    asyncio.run(main())
    status = 200 if begun else 503
    assert [message.get("status") for message in sent] == ([200] if begun else [503, None])
    if not begun:
        assert json.loads(sent[1]["body"])["code"] == "draining"
        assert (b"retry-after", b"5") in sent[0]["headers"]
    text = metrics.render("")[0].decode()
    assert f'tomau_requests_total{{code="draining",method="POST",route="/colorize",status="{status}"}} 1.0' in text
    assert 'tomau_dropped_total{reason="draining"} 1.0' in text
