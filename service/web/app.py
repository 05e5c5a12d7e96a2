"""Wires the service together: start-up, serving, draining."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from importlib.metadata import version

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from service.errors import InternalError, MethodNotAllowed, NotFound, Problem
from service.inference.registry import Catalog
from service.observability.metrics import Metrics
from service.observability.telemetry import Telemetry
from service.observability.tracing import Tracer
from service.pipeline.colorizer import Colorizer
from service.runtime import freeze_watchdog, memory
from service.runtime.thread_pool import apart, is_any_apart
from service.settings import Settings, tell_of_device
from service.web import access
from service.web.openapi import PROBLEM, REQUEST_ID
from service.web.routes import HeadAsGet, State, router, uploads
from service.web.upload import tell_of_cap

log = logging.getLogger(__name__)

# sysexits.h: an internal software error, and something that is needed does not work.
EXIT_STUCK = 70
EXIT_FAILING = 69
WATCH_S = 1.0
# Failures that pass, as for want of a GPU's memory, should not keep it from its photos for long.
PROBE_S = 2.0
# For photos that nobody waits for any more, when the process is to end.
LAST_PHOTOS_S = 5.0


async def _raise_problem(_: Request, problem: Exception) -> Response:
    """Lets a problem through to Telemetry, the outermost layer, which answers it."""
    raise problem


async def _http_exception(request: Request, error: Exception) -> Response:
    """The framework's own refusals, as problems."""
    if not isinstance(error, HTTPException):
        raise error
    known: dict[int, type[Problem]] = {404: NotFound, 405: MethodNotAllowed}
    kind = known.get(error.status_code, InternalError)
    raise kind(f"{request.method} {request.url.path}", allow=(error.headers or {}).get("Allow"))


def _end(state: State) -> tuple[int, str] | None:
    """The code and the reason to end with, when only a new process helps."""
    limit = state.settings.stuck_s
    if state.workers.stuck_for() > limit:
        return EXIT_STUCK, f"all {state.workers.count} workers are stuck for {limit:.0f} s"
    for model in state.colorizer.catalog:
        name = model.contract.name
        if model.batcher.runs.stuck_for() > limit:
            return EXIT_STUCK, f"all runs of the model {name} are stuck for {limit:.0f} s"
        if model.batcher.suspects.failing_for() > limit:
            return EXIT_FAILING, f"the model {name} has failed, on a black photo too, for {limit:.0f} s"
    return None


async def _watch(state: State) -> None:
    """Ends the process when only a new one helps: a thread inside a C call can't be stopped, for one."""
    while True:
        await asyncio.sleep(WATCH_S)
        if end := _end(state):
            code, reason = end
            log.critical("%s: the process ends%s", reason, _requests_inside(state))
            freeze_watchdog.dump_tracebacks()
            os._exit(code)


def _requests_inside(state: State) -> str:
    """Return the end of a log line: the requests that may have caused the end of the process."""
    requests = ", ".join(sorted(state.workers.requests))
    return f", with the requests {requests} inside" if requests else ""


async def _probe(state: State) -> None:
    """Tries the models that failed: while it is not ready, no photo may come that would show that they work again."""
    while True:
        await asyncio.sleep(PROBE_S)
        for model in state.colorizer.catalog:
            if model.batcher.suspects:
                with suppress(RuntimeError):  # There is no thread for it now.
                    await apart(partial(model.batcher.suspects.probe, model.black))


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state: State = app.state.tomau
    watches = [asyncio.create_task(watch(state)) for watch in (_watch, _probe)]
    yield
    state.draining = True
    for watch in watches:
        watch.cancel()
    await asyncio.wait(watches)
    state.workers.stop()
    if app.state.tracer is not None:
        await asyncio.to_thread(app.state.tracer.stop)
    await _end_of_last_photos(state)
    if is_any_apart():
        # A reload, most likely. Python's own end would break it off in the midst of a C call, and crash.
        log.info("the process ends without waiting for what it still loads or tries")
        os._exit(0)


async def _end_of_last_photos(state: State) -> None:
    """Ends the process when a worker does not come back: Python would wait for it for ever."""
    ends = time.monotonic() + LAST_PHOTOS_S
    while state.workers.busy:
        if time.monotonic() > ends:
            stuck = "%d workers are stuck: the process ends without them%s"
            log.critical(stuck, state.workers.busy, _requests_inside(state))
            freeze_watchdog.dump_tracebacks()
            os._exit(EXIT_STUCK)
        await asyncio.sleep(0.05)


def _add_layers(app: FastAPI, settings: Settings, metrics: Metrics, tracer: Tracer | None) -> None:
    """What every request passes, from the outside in: safe headers, CORS, telemetry, preflights, keys, HEAD.

    Telemetry answers a missing key, and swallows the body behind it; a page can read that answer only with its CORS
    headers, so they come before both. A preflight never has a key, and is answered between the two.
    """
    app.add_middleware(HeadAsGet)
    keys = access.key_digests(settings)
    access.cors_origins(settings)  # Layers are made at the first request only.
    if keys:
        app.add_middleware(access.KeyGuard, digests=keys)
        document = app.openapi
        app.openapi = lambda: access.with_keys(document(), PROBLEM, REQUEST_ID)  # type: ignore[method-assign]
    elif access.is_beyond_loopback(settings.host):
        log.warning("everyone who reaches %s may call: there are no TOMAU_API_KEYS", settings.host)
    app.add_middleware(partial(access.cors, access.Preflights), settings)
    app.add_middleware(Telemetry, metrics=metrics, tracer=tracer)
    app.add_middleware(partial(access.cors, access.Readable), settings)
    app.add_middleware(access.SafeHeaders)


def create_app(settings: Settings | None = None, catalog: Catalog | None = None) -> FastAPI:
    """The service, its models loaded, verified and warm.

    Raises AccessError when the settings don't say properly who may call; CatalogError, ContractError or EngineError
    when a model can't be served; TracingError when spans can't be sent.
    """
    settings = settings or Settings()
    tracer = Tracer(settings.otlp_endpoint) if settings.otlp_endpoint else None
    memory.keep_freed()
    app = FastAPI(
        title="tomau",
        description="Colours black-and-white photographs, and keeps every pixel's own lightness.",
        version=version("tomau"),
        docs_url=None,
        redoc_url=None,
        # A redirect would go to whatever host the request names.
        redirect_slashes=False,
        lifespan=_lifespan,
    )
    app.include_router(uploads)
    app.include_router(router)
    app.mount("/docs/assets", StaticFiles(packages=[("fastapi_swagger", "resources")]))
    metrics = Metrics(
        path for route in (*uploads.routes, *router.routes, *app.routes) if (path := getattr(route, "path", None))
    )
    _add_layers(app, settings, metrics, tracer)
    colorizer = Colorizer(catalog or Catalog(settings), settings)
    colorizer.warm()
    app.state.tomau = State(settings, colorizer, metrics)
    tell_of_cap(settings)
    tell_of_device(settings, colorizer.catalog.device)
    app.state.tracer = tracer
    app.add_exception_handler(Problem, _raise_problem)
    app.add_exception_handler(HTTPException, _http_exception)
    return app
