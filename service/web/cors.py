"""CORS: the allowed origins, and the middleware for responses and for preflights."""

import re
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from service.settings import Settings
from service.web.auth import AccessError

DEFAULT_PORTS = {"http": 80, "https": 443}
# What pages of an allowed origin may send and read, in addition to what CORS allows every page.
CORS_METHODS = ("GET", "POST")
CORS_HEADERS = ("Authorization", "Traceparent", "X-API-Key", "X-Request-ID")
CORS_EXPOSED = ("Retry-After", "Server-Timing", "X-Request-ID", "X-Tomau-Device", "X-Tomau-Input", "X-Tomau-Model")


def allowed_origins(settings: Settings) -> list[str]:
    """Return the allowed origins as browsers send them, or only `*`. Raises AccessError if one is malformed."""
    if settings.cors_origins is None:
        return []
    origins = [origin for origin in map(str.strip, settings.cors_origins.split(",")) if origin]
    if not origins:
        raise AccessError("TOMAU_CORS_ORIGINS: there is no origin in it; unset it to allow no origin")
    if origins == ["*"]:
        return origins
    for origin in origins:
        if origin != _as_browsers_send(origin):
            raise AccessError(
                f"TOMAU_CORS_ORIGINS: {origin!r} is not an origin as browsers send it: scheme://host or"
                " scheme://host:port, in lower case, without a path or a default port; `*` alone allows all"
            )
    return origins


def _as_browsers_send(origin: str) -> str | None:
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError:
        return None
    if not parts.scheme or not parts.hostname or not re.fullmatch(r"[\w.:-]+", parts.hostname, re.ASCII):
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    suffix = "" if port in (None, DEFAULT_PORTS.get(parts.scheme)) else f":{port}"
    return f"{parts.scheme}://{host}{suffix}"


class CorsResponses(CORSMiddleware):
    """A middleware that lets pages of the allowed origins read every response. It passes preflights on."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and add the CORS headers to its response (ASGI)."""
        if scope["type"] == "http":
            await self.simple_response(scope, receive, send, request_headers=Headers(scope=scope))
        else:
            await self.app(scope, receive, send)


class CorsPreflights(CORSMiddleware):
    """A middleware that responds to preflights, and passes all other requests on."""

    async def simple_response(self, scope: Scope, receive: Receive, send: Send, request_headers: Headers) -> None:  # noqa: ARG002
        """Pass the request on."""
        await self.app(scope, receive, send)


def with_cors(layer: type[CORSMiddleware], app: ASGIApp, settings: Settings) -> ASGIApp:
    """Return the app inside a CORS middleware, or unchanged if no origin is allowed. Raises AccessError."""
    origins = allowed_origins(settings)
    if not origins:
        return app
    return layer(
        app,
        allow_origins=origins,
        allow_methods=CORS_METHODS,
        allow_headers=CORS_HEADERS,
        expose_headers=CORS_EXPOSED,
    )
