"""Who may call, and from where: API keys, the origins of web pages, and the headers that keep an answer harmless."""

import base64
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import InvalidKey, MissingKey
from service.settings import Settings

# Who watches over the service has no key, and a probe tells nothing worth one.
OPEN_PATHS = frozenset({"/livez", "/readyz"})
# What fits into `Authorization: Bearer` (RFC 6750), long enough not to be guessed.
VALID_KEY = re.compile(r"[A-Za-z0-9._~+/=-]{16,256}")
DEFAULT_PORTS = {"http": 80, "https": 443}

# What a page of an allowed origin may send and read beyond what every page may.
CORS_METHODS = ("GET", "POST")
CORS_HEADERS = ("Authorization", "Traceparent", "X-API-Key", "X-Request-ID")
CORS_EXPOSED = ("Retry-After", "Server-Timing", "X-Request-ID", "X-Tomau-Device", "X-Tomau-Input", "X-Tomau-Model")

# On every answer. Cross-Origin-Resource-Policy is about what a page embeds unasked; CORS goes its own way.
SAFE_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; sandbox")
NO_STORE = (b"cache-control", b"no-store")
ASK_AGAIN = (b"cache-control", b"no-cache")


class AccessError(Exception):
    """The settings don't say properly who may call. The text names the setting, and never holds a key."""


def digest(key: bytes) -> bytes:
    """What is kept of a key and compared: 32 bytes, whatever the key's length."""
    return hashlib.sha256(key).digest()


def key_digests(settings: Settings) -> frozenset[bytes]:
    """The digests of all keys of the variable and of the file; none when neither is set.

    Raises AccessError when a key is malformed, when a source that is set has none, or the file can't be read.
    """
    digests: set[bytes] = set()
    if settings.api_keys is not None:
        digests |= _checked("TOMAU_API_KEYS", settings.api_keys.get_secret_value().split(","))
    if settings.api_keys_file is not None:
        source = f"TOMAU_API_KEYS_FILE: {settings.api_keys_file}"
        try:
            text = settings.api_keys_file.read_text("utf-8")
        except OSError as error:
            raise AccessError(f"{source}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise AccessError(f"{source}: not a text in UTF-8") from None
        digests |= _checked(source, (line.partition("#")[0] for line in text.splitlines()))
    return frozenset(digests)


def _checked(source: str, keys: Iterable[str]) -> set[bytes]:
    given = [key for key in map(str.strip, keys) if key]
    if not given:
        raise AccessError(f"{source}: there is no key in it; unset it to let everyone call")
    for number, key in enumerate(given, 1):
        if not VALID_KEY.fullmatch(key):
            raise AccessError(f"{source}: key {number} is not 16 to 256 letters, digits and . _ ~ + / = - alone")
    return {digest(key.encode()) for key in given}


def cors_origins(settings: Settings) -> list[str]:
    """The origins whose pages may call, as browsers write them, or `*` alone. Raises AccessError."""
    if settings.cors_origins is None:
        return []
    origins = [origin for origin in map(str.strip, settings.cors_origins.split(",")) if origin]
    if not origins:
        raise AccessError("TOMAU_CORS_ORIGINS: there is no origin in it; unset it to allow none")
    if origins == ["*"]:
        return origins
    for origin in origins:
        if origin != _as_browsers_write(origin):
            raise AccessError(
                f"TOMAU_CORS_ORIGINS: {origin!r} is not an origin as browsers send it: scheme://host or"
                " scheme://host:port in lower case, without a path or a default port; or `*` alone for all"
            )
    return origins


def _as_browsers_write(origin: str) -> str | None:
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


def is_beyond_loopback(host: str) -> bool:
    """Whether others than this machine can reach a service that is bound to the host."""
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


class KeyGuard:
    """Asks for a key before anything else of a request is looked at. Raises MissingKey or InvalidKey."""

    def __init__(self, app: ASGIApp, digests: frozenset[bytes]) -> None:
        self.app = app
        self._digests = digests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            self.check(scope["headers"])
        await self.app(scope, receive, send)

    def check(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Looks for one known key in the headers; takes as long for each wrong one."""
        given = set(_keys_in(headers))
        if not given:
            raise MissingKey("send an API key as `Authorization: Bearer KEY` or `X-API-Key: KEY`")
        if len(given) > 1:
            raise InvalidKey("the request's headers have more than one API key")
        sent = digest(given.pop())
        matches = [hmac.compare_digest(sent, known) for known in self._digests]  # a list: all are compared
        if not any(matches):
            raise InvalidKey("the API key is not known")


def _keys_in(headers: Iterable[tuple[bytes, bytes]]) -> Iterable[bytes]:
    """The keys that were sent. Another scheme of Authorization belongs to somebody else, such as a proxy."""
    for name, value in headers:
        if name == b"x-api-key":
            key = value.strip()
        elif name == b"authorization":
            scheme, _, credentials = value.strip().partition(b" ")
            key = credentials.strip() if scheme.lower() == b"bearer" else b""
        else:
            continue
        if key:
            yield key


class Readable(CORSMiddleware):
    """Lets pages of the allowed origins read every answer of the layers inside; preflights are for `Preflights`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http":
            await self.simple_response(scope, receive, send, request_headers=Headers(scope=scope))
        else:
            await self.app(scope, receive, send)


class Preflights(CORSMiddleware):
    """Answers preflights, which never have a key, and nothing else."""

    async def simple_response(self, scope: Scope, receive: Receive, send: Send, request_headers: Headers) -> None:  # noqa: ARG002
        """Passes the request on."""
        await self.app(scope, receive, send)


def cors(layer: type[CORSMiddleware], app: ASGIApp, settings: Settings) -> ASGIApp:
    """The app in one of the two layers above; alone when no origin is allowed. Raises AccessError."""
    origins = cors_origins(settings)
    if not origins:
        return app
    return layer(
        app,
        allow_origins=origins,
        allow_methods=CORS_METHODS,
        allow_headers=CORS_HEADERS,
        expose_headers=CORS_EXPOSED,
    )


class SafeHeaders:
    """The outermost layer: gives every answer its security headers; its own Content-Security-Policy goes first."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *missing_headers(message.get("headers", ()))]
            await send(message)

        await self.app(scope, receive, send_safely)


def missing_headers(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """What an answer's headers lack. Only files, which have an ETag, may be kept, and are asked about each time."""
    names = {name for name, _ in headers}
    wanted = (*SAFE_HEADERS, POLICY, ASK_AGAIN if b"etag" in names else NO_STORE)
    return [header for header in wanted if header[0] not in names]


def page_policy(html: str) -> str:
    """The Content-Security-Policy of a page: what it loads comes from here, and its own inline scripts alone run."""
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(["'self'", *(f"'sha256-{value}'" for value in hashes)])
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'self'; img-src 'self' blob: data:;"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def with_keys(schema: dict[str, Any], problem: Mapping[str, Any], headers: Mapping[str, Any]) -> dict[str, Any]:
    """An OpenAPI document that says how to send a key, and which calls need one.

    problem, headers: content and headers of every problem.
    """
    schema["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "An API key"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key"},
    }
    schema["security"] = [{"bearer": []}, {"header": []}]
    refusal = {
        "description": "No API key, or not a known one",
        "headers": {**headers, "WWW-Authenticate": {"schema": {"type": "string"}}},
        "content": problem,
    }
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            if path in OPEN_PATHS:
                operation["security"] = []
            else:
                operation["responses"]["401"] = refusal
    return schema
