"""The HTTP routes."""

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
    """A route that passes the request on unparsed, because `upload` reads options and photos while the body arrives.

    FastAPI's own handler would look for arguments first. That takes a seventh of the event loop's time.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the endpoint itself. Called by FastAPI."""
        return self.endpoint


class HeadAsGet:
    """Middleware that handles HEAD as GET. The server leaves out the body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            # A copy, because the server reads the method again.
            scope = {**scope, "method": "GET"}
        await self.app(scope, receive, send)


HEAD_TOO_LARGE = openapi.problems(_431="Header section too large")
uploads = APIRouter(responses=HEAD_TOO_LARGE, route_class=UploadRoute)
router = APIRouter(responses=HEAD_TOO_LARGE)


async def _state(request: Request) -> State:
    # Async, because FastAPI would call a plain function in another thread.
    state: State = request.app.state.tomau
    return state


Shared = Annotated[State, Depends(_state)]


def _check_unread(state: State) -> None:
    """Raise Overloaded if there is no room for a response. Reserves nothing."""
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
            _500="An error in the service",
            _503="Overloaded or stopping; see `Retry-After`",
            _504="Deadline exceeded",
        ),
    },
    openapi_extra=openapi.request(openapi.BINARY, "image/*", "application/octet-stream"),
)
async def colorize(request: Request) -> Response:
    """Send the photo as the multipart field `file`, or as the body. Send options as query parameters or form fields.

    An empty option counts as not given.
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
        image = await _color(upload.data, state, options, partial(wait_for_disconnect, request.receive))
    seconds = {"receive": received - started, **image.seconds}
    middleware.record_stages(request.scope, seconds, {"receive": started, **image.begun})
    facts = {"X-Tomau-Model": image.model, "X-Tomau-Device": image.device, "X-Tomau-Input": image.tone}
    headers = {name: value for name, value in facts.items() if value is not None}
    headers["Server-Timing"] = middleware.server_timing(seconds)
    counted = partial(_count, state, image, len(upload.data), seconds["receive"])
    return PhotoResponse(image, headers, counted)


class PhotoResponse(Response):
    """A response with a coloured image. It is counted in the metrics only if it was sent to a connected client."""

    def __init__(self, image: ColoredImage, headers: Mapping[str, str], counted: Callable[[], None]) -> None:
        super().__init__(image.data, media_type=image.media_type, headers=headers)
        self._counted = counted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        await super().__call__(scope, receive, send)
        if middleware.REFUSED not in scope:
            self._counted()


def _count(state: State, image: ColoredImage, uploaded: int, receive_s: float) -> None:
    if image.model is not None:
        state.metrics.stage("receive", receive_s)
    state.metrics.photo(image, uploaded)


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
            _413="Too many photos, or too many bytes in total",
            _415="Not a form",
            _422="Invalid option, or no photo",
            _500="An error in the service",
            _503="Overloaded or stopping; see `Retry-After`",
        ),
    },
    openapi_extra=openapi.request({"type": "array", "items": openapi.BINARY, "minItems": 1}),
)
async def colorize_batch(request: Request) -> Response:
    """Send each photo as a multipart field `file`. Options apply to all photos; send them as query or form fields.

    A photo that can't be coloured has a problem in the report. The other photos are not affected.
    """
    state: State = request.app.state.tomau
    _check_unread(state)
    check_query(request, state)
    with ExitStack() as held:
        state.batches.acquire()
        held.callback(state.batches.release)
        leave = reserved_for_photos(state.settings)
        receiving = held.enter_context(UploadReservation(state.batch_uploads, state.upload_bytes, leave=leave))
        upload = await receive_batch(request.headers, request.receive, receiving, state.settings)
        receiving.complete()
        options = requested_options(request, state, upload.fields)
        # Resolved once, so that all photos have the same model even if the models are reloaded meanwhile.
        model = state.colorizer.models.get(options.model)
        color = partial(_color_in_batch, state=state, options=options, model=model)
        batch = BatchZip(upload.photos, color, state.batch_slots, done=receiving.shrink, failed=state.metrics.drop)
        return BatchResponse(batch, held.pop_all())


async def _color_in_batch(data: bytes, state: State, options: Options, model: Model) -> ColoredImage:
    await state.workers.wait_for_slot()
    image = await _color(data, state, options, _never, model)
    state.metrics.photo(image, len(data))
    return image


async def _never() -> None:
    """Wait for ever. BatchResponse itself watches the client, and cancels the photos in progress."""
    await asyncio.Event().wait()


async def _color(
    data: bytes, state: State, options: Options, disconnect: Callable[[], Awaitable[None]], model: Model | None = None
) -> ColoredImage:
    """Colour a photo in a worker thread, within the deadline, which starts now.

    model: for a photo of a batch, which has its slot already. A single photo takes a slot first.
    """
    received = time.monotonic()
    deadline = received + state.settings.deadline_s

    def call(cancelled: threading.Event) -> ColoredImage:
        # The wait for a thread counts as time in the queue.
        waited = time.monotonic() - received
        image = state.colorizer.colorize(data, options, model=model, deadline=deadline, cancelled=cancelled)
        return replace(image, seconds=image.seconds | {"queue": image.seconds["queue"] + waited})

    return await state.workers.run(call, deadline=deadline, disconnect=disconnect, has_slot=model is not None)


@router.get(
    "/models",
    summary="List the models",
    responses={200: openapi.WITH_ID, **openapi.problems(_503="Overloaded; see `Retry-After`")},
)
async def models(state: Shared) -> Models:
    """List all models. `default` marks the model for requests that name none."""
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


@router.get("/livez", summary="Check that the process runs", responses={200: openapi.WITH_ID})
async def livez() -> Live:
    """Respond as long as the event loop runs."""
    return Live()


@router.get(
    "/readyz",
    summary="Check that the service is ready for photos",
    responses={200: openapi.WITH_ID, **openapi.problems(_503="Stopping, stuck or failing")},
)
async def readyz(state: Shared) -> Ready:
    """Respond with 200 if the models are loaded and working, nothing is stuck, and the service is not stopping."""
    if reason := state.not_ready_reason():
        raise Draining(reason)
    registry = state.colorizer.models
    default = registry.get(None)
    return Ready(device=default.device, models=[model.contract.name for model in registry])


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=PlainTextResponse,
    responses={200: openapi.WITH_ID, **openapi.problems(_503="Out of memory; see `Retry-After`")},
)
def metrics(request: Request) -> Response:
    """Counters, histograms and gauges, in the text format of Prometheus or as OpenMetrics."""
    # Not async, so that FastAPI calls it in a thread: formatting the metrics takes milliseconds.
    state: State = request.app.state.tomau
    text, media_type = state.metrics.render(request.headers.get("accept", ""))
    return Response(text, headers={"Content-Type": media_type})


@router.get("/", include_in_schema=False)
async def root() -> RedirectResponse:
    """Redirect a browser from the bare address to the API page."""
    return RedirectResponse("docs")


@router.get("/docs", include_in_schema=False)
async def docs() -> HTMLResponse:
    """Return the OpenAPI page. Its assets come from this service, so that it needs no other host."""
    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title="tomau",
        swagger_js_url="docs/assets/swagger-ui-bundle.js",
        swagger_css_url="docs/assets/swagger-ui.css",
        swagger_favicon_url="docs/assets/favicon-32x32.png",
    )
    page.headers["Content-Security-Policy"] = security_headers.page_content_policy(bytes(page.body).decode())
    return page
