"""Wires the service together: start-up, serving, draining."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from importlib.metadata import version

import cv2
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from service import access, memory
from service.catalog import Catalog
from service.colorizer import Colorizer
from service.metrics import Metrics
from service.openapi import PROBLEM, REQUEST_ID
from service.problems import InternalError, MethodNotAllowed, NotFound, Problem
from service.routes import State, router, uploads
from service.settings import Settings
from service.telemetry import Telemetry
from service.tracing import Tracer

log = logging.getLogger(__name__)

# sysexits.h: an internal software error.
EXIT_STUCK = 70
STUCK_CHECK_S = 1.0
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


async def _watch(state: State) -> None:
    """Ends the process when no worker will ever come back: a thread inside a C call can't be stopped."""
    while True:
        await asyncio.sleep(STUCK_CHECK_S)
        if state.is_stuck():
            log.critical("all %d workers are stuck for %.0f s", state.workers.count, state.settings.stuck_s)
            os._exit(EXIT_STUCK)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state: State = app.state.tomau
    watch = asyncio.create_task(_watch(state))
    yield
    state.draining = True
    watch.cancel()
    with suppress(asyncio.CancelledError):
        await watch
    state.workers.stop()
    if app.state.tracer is not None:
        await asyncio.to_thread(app.state.tracer.stop)
    await _end_of_last_photos(state)


async def _end_of_last_photos(state: State) -> None:
    """Ends the process when a worker does not come back: Python would wait for it for ever."""
    ends = time.monotonic() + LAST_PHOTOS_S
    while state.workers.busy:
        if time.monotonic() > ends:
            log.critical("%d workers are stuck: the process ends without them", state.workers.busy)
            os._exit(EXIT_STUCK)
        await asyncio.sleep(0.05)


def _add_layers(app: FastAPI, settings: Settings, metrics: Metrics, tracer: Tracer | None) -> None:
    """What every request passes, from the outside in: safe headers, CORS, telemetry, preflights, keys.

    Telemetry answers a missing key, and swallows the body behind it; a page can read that answer only with its CORS
    headers, so they come before both. A preflight never has a key, and is answered between the two.
    """
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
    # Photos run beside one another, one core each.
    cv2.setNumThreads(1)
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
    app.state.tracer = tracer
    app.add_exception_handler(Problem, _raise_problem)
    app.add_exception_handler(HTTPException, _http_exception)
    return app
