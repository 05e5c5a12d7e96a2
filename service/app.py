"""Wires the service together: start-up, serving, draining."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version

import cv2
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from service import memory
from service.catalog import Catalog
from service.colorizer import Colorizer
from service.metrics import Metrics
from service.problems import InternalError, MethodNotAllowed, NotFound, Problem
from service.routes import State, router
from service.settings import Settings
from service.telemetry import Telemetry
from service.tracing import Tracer

log = logging.getLogger(__name__)

# sysexits.h: an internal software error.
EXIT_STUCK = 70
STUCK_CHECK_S = 1.0


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
            await asyncio.sleep(STUCK_CHECK_S)  # Readiness is red for a moment, and the log is written.
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


def create_app(settings: Settings | None = None, catalog: Catalog | None = None) -> FastAPI:
    """The service, its models loaded, verified and warm.

    Raises CatalogError, ContractError or EngineError when a model can't be served, and TracingError when spans can't be
    sent.
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
        lifespan=_lifespan,
    )
    app.include_router(router)
    app.mount("/docs/assets", StaticFiles(packages=[("fastapi_swagger", "resources")]))
    metrics = Metrics(path for route in (*router.routes, *app.routes) if (path := getattr(route, "path", None)))
    colorizer = Colorizer(catalog or Catalog(settings), settings)
    colorizer.warm()
    app.state.tomau = State(settings, colorizer, metrics)
    app.state.tracer = tracer
    app.add_exception_handler(Problem, _raise_problem)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_middleware(Telemetry, metrics=metrics, tracer=tracer)
    return app
