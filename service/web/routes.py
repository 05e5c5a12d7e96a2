"""The HTTP surface."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import Draining
from service.inference.registry import Model
from service.observability import middleware
from service.pipeline.colorizer import ColoredImage
from service.pipeline.options import Options
from service.runtime.admission import UploadReservation
from service.web import openapi, security_headers
from service.web.batch import BatchResponse, BatchZip
from service.web.disconnect import wait_for_disconnect
from service.web.options import check_query, requested_options
from service.web.schemas import Live, ModelInfo, Models, Ready
from service.web.state import State
from service.web.upload import receive, receive_batch, reserved_for_photos


class UploadRoute(APIRoute):
    """Hands the request over as it is: options and photos are in a body that `upload` reads, while it comes.

    FastAPI would look for arguments first, which takes it a seventh of the event loop's time.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI."""
        return self.endpoint


class HeadAsGet:
    """Answers HEAD as GET: the server leaves the body out."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            # Not changed in place: the server looks at it again.
            scope = {**scope, "method": "GET"}
        await self.app(scope, receive, send)


HEAD_TOO_LARGE = openapi.problems(_431="The head is too large")
uploads = APIRouter(responses=HEAD_TOO_LARGE, route_class=UploadRoute)
router = APIRouter(responses=HEAD_TOO_LARGE)


async def _state(request: Request) -> State:
    # Were it not async, FastAPI would hop to a thread of its own for it.
    state: State = request.app.state.tomau
    return state


Shared = Annotated[State, Depends(_state)]


def _check_unread(state: State) -> None:
    """No photo is begun when there is no room for its answer: raises Overloaded, else takes nothing."""
    state.unread.acquire(0)


@uploads.post(
    "/colorize",
    summary="Colour a photo",
    response_class=Response,
    responses={
        200: openapi.COLORED,
        **openapi.problems(
            _400="Unreadable image or broken body",
            _404="Unknown model",
            _408="Upload too slow",
            _413="Too many bytes or pixels",
            _415="Not a supported image",
            _422="Invalid option, or a photo in colour with `if_color=reject`",
            _500="A fault of the service",
            _503="Overloaded or stopping; see Retry-After",
            _504="Not done in time",
        ),
    },
    openapi_extra=openapi.request(openapi.BINARY, "image/*", "application/octet-stream"),
)
async def colorize(request: Request) -> Response:
    """Send the photo as multipart field `file`, or as a bare body; options as query parameters or form fields.

    An option that is empty counts as not given.
    """
    started = time.monotonic()
    state: State = request.app.state.tomau
    _check_unread(state)
    check_query(request, state)
    with UploadReservation(state.uploads, state.upload_bytes) as receiving:
        upload = await receive(request.headers, request.receive, receiving, state.settings)
        receiving.complete()
        received = time.monotonic()
        accept = ",".join(request.headers.getlist("accept"))
        options = requested_options(request, state, upload.fields, accept)
        answer = await _coloured(upload.data, state, options, partial(wait_for_disconnect, request.receive))
    seconds = {"receive": received - started, **answer.seconds}
    middleware.record_stages(request.scope, seconds, {"receive": started, **answer.begun})
    facts = {"X-Tomau-Model": answer.model, "X-Tomau-Device": answer.device, "X-Tomau-Input": answer.tone}
    headers = {name: value for name, value in facts.items() if value is not None}
    headers["Server-Timing"] = middleware.server_timing(seconds)
    counted = partial(_count, state, answer, len(upload.data), seconds["receive"])
    return PhotoResponse(answer, headers, counted)


class PhotoResponse(Response):
    """A coloured photo, which is counted once it was sent to a client that was there."""

    def __init__(self, answer: ColoredImage, headers: Mapping[str, str], counted: Callable[[], None]) -> None:
        super().__init__(answer.data, media_type=answer.media_type, headers=headers)
        self._counted = counted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        await super().__call__(scope, receive, send)
        if middleware.REFUSED not in scope:
            self._counted()


def _count(state: State, answer: ColoredImage, uploaded: int, receive_s: float) -> None:
    if answer.model is not None:
        state.metrics.stage("receive", receive_s)
    state.metrics.photo(answer, uploaded)


@uploads.post(
    "/colorize/batch",
    summary="Colour several photos",
    response_class=Response,
    responses={
        200: openapi.ZIP,
        **openapi.problems(
            _400="Broken body",
            _404="Unknown model",
            _408="Upload too slow",
            _413="Too many photos, or too many bytes together",
            _415="Not a form",
            _422="Invalid option, or no photo",
            _500="A fault of the service",
            _503="Overloaded or stopping; see Retry-After",
        ),
    },
    openapi_extra=openapi.request({"type": "array", "items": openapi.BINARY, "minItems": 1}),
)
async def colorize_batch(request: Request) -> Response:
    """Send each photo as a multipart field `file`; options, for all of them, as query parameters or form fields.

    A photo that can't be coloured is a problem in the report, and nothing to the others.
    """
    state: State = request.app.state.tomau
    _check_unread(state)
    check_query(request, state)
    with ExitStack() as inside:
        state.batches.acquire()
        inside.callback(state.batches.release)
        leave = reserved_for_photos(state.settings)
        receiving = inside.enter_context(UploadReservation(state.batch_uploads, state.upload_bytes, leave=leave))
        upload = await receive_batch(request.headers, request.receive, receiving, state.settings)
        receiving.complete()
        options = requested_options(request, state, upload.fields)
        # Held, so that a reload in its middle does not take the model away.
        model = state.colorizer.models.get(options.model)
        colour = partial(_coloured_of_batch, state=state, options=options, model=model)
        album = BatchZip(upload.photos, colour, state.batch_slots, receiving.shrink, state.metrics.drop)
        return BatchResponse(album, inside.pop_all())


async def _coloured_of_batch(data: bytes, state: State, options: Options, model: Model) -> ColoredImage:
    await state.workers.wait_for_slot()
    answer = await _coloured(data, state, options, _never, model)
    state.metrics.photo(answer, len(data))
    return answer


async def _never() -> None:
    """A batch watches its client itself, and cancels what is inside."""
    await asyncio.Event().wait()


async def _coloured(
    data: bytes, state: State, options: Options, disconnect: Callable[[], Awaitable[None]], model: Model | None = None
) -> ColoredImage:
    """A whole photo takes its place, and has the deadline's time from now. One of a batch has its place and model."""
    received = time.monotonic()
    deadline = received + state.settings.deadline_s
    call = partial(_colorize, state, data, options, model, received, deadline)
    return await state.workers.run(call, deadline=deadline, disconnect=disconnect, has_slot=model is not None)


def _colorize(
    state: State,
    data: bytes,
    options: Options,
    model: Model | None,
    received: float,
    deadline: float,
    cancelled: threading.Event,
) -> ColoredImage:
    """In a worker thread. The wait for the thread is a part of the queue's time."""
    waited = time.monotonic() - received
    answer = state.colorizer.colorize(data, options, model=model, deadline=deadline, cancelled=cancelled)
    return replace(answer, seconds=answer.seconds | {"queue": answer.seconds["queue"] + waited})


@router.get(
    "/models",
    summary="The models",
    responses={200: openapi.WITH_ID, **openapi.problems(_503="Overloaded; see Retry-After")},
)
async def models(state: Shared) -> Models:
    """Every served model; `default` marks the one that is used when none is named."""
    registry = state.colorizer.models
    return Models(
        models=[
            ModelInfo(
                name=model.contract.name,
                version=model.contract.version,
                color_space=model.contract.color_space,
                input_size=model.contract.input_size,
                sha256=model.sha256,
                license=model.contract.license,
                data=model.contract.data,
                device=model.device,
                default=model.contract.name == registry.default,
            )
            for model in registry
        ]
    )


@router.get("/livez", summary="Is the process up?", responses={200: openapi.WITH_ID})
async def livez() -> Live:
    """Answers as long as the event loop runs."""
    return Live()


@router.get(
    "/readyz",
    summary="Can it take a photo?",
    responses={200: openapi.WITH_ID, **openapi.problems(_503="Stopping, stuck or failing")},
)
async def readyz(state: Shared) -> Ready:
    """Models are loaded, warm and not failing, nothing is stuck, and the service is not about to stop."""
    if reason := state.not_ready_reason():
        raise Draining(reason)
    registry = state.colorizer.models
    default = registry.get(None)
    return Ready(device=default.device, models=[model.contract.name for model in registry])


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_class=PlainTextResponse,
    responses={200: openapi.WITH_ID, **openapi.problems(_503="No memory; see Retry-After")},
)
def metrics(request: Request) -> Response:
    """Counters, histograms and gauges, as Prometheus' text or OpenMetrics. In a thread: writing them takes a while."""
    state: State = request.app.state.tomau
    text, media_type = state.metrics.page(request.headers.get("accept", ""))
    return Response(text, headers={"Content-Type": media_type})


@router.get("/", include_in_schema=False)
async def root() -> RedirectResponse:
    """Who opens the bare address in a browser finds the API page."""
    return RedirectResponse("docs")


@router.get("/docs", include_in_schema=False)
async def docs() -> HTMLResponse:
    """The OpenAPI page; its assets come from this service, so it needs no network."""
    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title="tomau",
        swagger_js_url="docs/assets/swagger-ui-bundle.js",
        swagger_css_url="docs/assets/swagger-ui.css",
        swagger_favicon_url="docs/assets/favicon-32x32.png",
    )
    page.headers["Content-Security-Policy"] = security_headers.page_content_policy(bytes(page.body).decode())
    return page
