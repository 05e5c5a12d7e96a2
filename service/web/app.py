"""Create the app: its state, routes, middleware and lifespan."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from service.errors import InternalError, MethodNotAllowed, NotFound, Problem
from service.inference.registry import ModelRegistry
from service.observability.metrics import Metrics
from service.observability.middleware import Telemetry
from service.observability.tracing import Tracer
from service.pipeline.colorizer import Colorizer
from service.runtime import memory
from service.runtime.thread_pool import is_any_detached
from service.settings import Settings, warn_about_unused
from service.web import auth, cors, openapi, security_headers
from service.web.openapi import PROBLEM, REQUEST_ID
from service.web.routes import HeadAsGet, router, uploads
from service.web.state import State
from service.web.upload import warn_about_cap
from service.web.watchdog import probe, wait_for_workers, watch

log = logging.getLogger(__name__)


async def _raise_problem(_: Request, problem: Exception) -> Response:
    """Pass a problem on to the Telemetry middleware, which sends the response."""
    raise problem


async def _http_exception(request: Request, error: Exception) -> Response:
    """Raise the framework's own HTTP errors as problems."""
    if not isinstance(error, HTTPException):
        raise error
    known: dict[int, type[Problem]] = {404: NotFound, 405: MethodNotAllowed}
    kind = known.get(error.status_code, InternalError)
    raise kind(f"{request.method} {request.url.path}", allow=(error.headers or {}).get("Allow"))


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Run the watchdog while the app serves. Then stop the threads, and exit if one can't be stopped."""
    state: State = app.state.tomau
    tasks = [asyncio.create_task(task(state)) for task in (watch, probe)]
    yield
    state.draining = True
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    state.workers.stop()
    if app.state.tracer is not None:
        await asyncio.to_thread(app.state.tracer.stop)
    await wait_for_workers(state)
    if is_any_detached():
        # This is most likely a reload. Python's own exit would interrupt it inside a C call, and crash.
        log.info("the process exits without waiting for a reload or a probe of a model")
        os._exit(0)


def _add_middleware(app: FastAPI, settings: Settings, metrics: Metrics, tracer: Tracer | None) -> None:
    """Add all middleware. From the outside in: security headers, CORS, telemetry, preflights, API keys, HEAD.

    Telemetry responds to a missing key, and reads the rest of that request's body. A page can read this response only
    with CORS headers, so CORS is outside of both. A preflight never has a key, so it is handled before keys are.
    """
    app.add_middleware(HeadAsGet)
    keys = auth.key_digests(settings)
    cors.allowed_origins(settings)  # A bad setting must fail now. The middleware is created with the first request.
    if keys:
        app.add_middleware(auth.ApiKeyMiddleware, digests=keys)
        document = app.openapi
        app.openapi = lambda: openapi.with_keys(document(), PROBLEM, REQUEST_ID)  # type: ignore[method-assign]
    elif auth.is_beyond_loopback(settings.host):
        log.warning("every client that reaches %s may send requests: TOMAU_API_KEYS is not set", settings.host)
    app.add_middleware(partial(cors.with_cors, cors.CorsPreflights), settings)
    app.add_middleware(Telemetry, metrics=metrics, tracer=tracer)
    app.add_middleware(partial(cors.with_cors, cors.CorsResponses), settings)
    app.add_middleware(security_headers.SecurityHeadersMiddleware)


def create_app(settings: Settings | None = None, registry: ModelRegistry | None = None) -> FastAPI:
    """Return the service with its models loaded, verified and warmed up.

    Raises AccessError if the settings on keys or origins are invalid, and TracingError if spans can't be sent.
    Raises ModelRegistryError, ContractError or EngineError if a model can't be served.
    """
    settings = settings or Settings()
    tracer = Tracer(settings.otlp_endpoint) if settings.otlp_endpoint else None
    memory.keep_freed_memory()
    app = FastAPI(
        title="tomau",
        description="Colours black-and-white photographs, and keeps every pixel's own lightness.",
        version=version("tomau"),
        docs_url=None,
        redoc_url=None,
        # A redirect would lead to the host that the request names, which can be any.
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.include_router(uploads)
    app.include_router(router)
    app.mount("/docs/assets", StaticFiles(packages=[("fastapi_swagger", "resources")]))
    metrics = Metrics(
        path for route in (*uploads.routes, *router.routes, *app.routes) if (path := getattr(route, "path", None))
    )
    _add_middleware(app, settings, metrics, tracer)
    colorizer = Colorizer(registry or ModelRegistry(settings), settings)
    colorizer.warm_up()
    app.state.tomau = State(settings, colorizer, metrics)
    warn_about_cap(settings)
    warn_about_unused(settings, colorizer.models.device)
    app.state.tracer = tracer
    app.add_exception_handler(Problem, _raise_problem)
    app.add_exception_handler(HTTPException, _http_exception)
    return app
