"""API keys: read them from the settings, and check them in every request."""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import InvalidKey, MissingKey
from service.settings import Settings

# Orchestrators probe the service without a key, and these responses reveal nothing.
KEYLESS_PATHS = frozenset({"/livez", "/readyz"})
# The characters of `Authorization: Bearer` (RFC 6750). The length makes guessing infeasible.
VALID_KEY = re.compile(r"[A-Za-z0-9._~+/=-]{16,256}")


class AccessError(Exception):
    """A setting on keys or origins is invalid. The text names the setting, and never contains a key."""


def digest(key: bytes) -> bytes:
    """Return the SHA-256 of a key: 32 bytes. Only digests are kept and compared."""
    return hashlib.sha256(key).digest()


def key_digests(settings: Settings) -> frozenset[bytes]:
    """Return the digests of all keys in the variable and in the file. Without both, the set is empty.

    Raises AccessError if a key is malformed, a source that is set has no key, or the file can't be read.
    """
    digests: set[bytes] = set()
    if settings.api_keys is not None:
        digests |= _valid_digests("TOMAU_API_KEYS", settings.api_keys.get_secret_value().split(","))
    if settings.api_keys_file is not None:
        source = f"TOMAU_API_KEYS_FILE: {settings.api_keys_file}"
        try:
            text = settings.api_keys_file.read_text("utf-8")
        except OSError as error:
            raise AccessError(f"{source}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise AccessError(f"{source}: the file is not UTF-8 text") from None
        digests |= _valid_digests(source, (line.partition("#")[0] for line in text.splitlines()))
    return frozenset(digests)


def _valid_digests(source: str, keys: Iterable[str]) -> set[bytes]:
    given = [key for key in map(str.strip, keys) if key]
    if not given:
        raise AccessError(f"{source}: there is no key in it; unset it to allow requests without a key")
    for number, key in enumerate(given, 1):
        if not VALID_KEY.fullmatch(key):
            raise AccessError(f"{source}: key {number} must have 16 to 256 letters, digits or . _ ~ + / = - only")
    return {digest(key.encode()) for key in given}


def is_beyond_loopback(host: str) -> bool:
    """Return whether other machines can reach a service that listens on the host."""
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


class ApiKeyMiddleware:
    """A middleware that checks the API key before it passes a request on. Raises MissingKey or InvalidKey."""

    def __init__(self, app: ASGIApp, digests: frozenset[bytes]) -> None:
        self.app = app
        self._digests = digests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the key, and pass the request on (ASGI)."""
        if scope["type"] == "http" and scope["path"] not in KEYLESS_PATHS:
            self.check(scope["headers"])
        await self.app(scope, receive, send)

    def check(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Raise MissingKey or InvalidKey unless the headers have one known key. Takes the same time for each key."""
        given = set(_keys_in(headers))
        if not given:
            raise MissingKey("send an API key as `Authorization: Bearer KEY` or `X-API-Key: KEY`")
        if len(given) > 1:
            raise InvalidKey("the headers contain different API keys; send only one")
        sent = digest(given.pop())
        matches = [hmac.compare_digest(sent, known) for known in self._digests]  # a list, so that all keys are compared
        if not any(matches):
            raise InvalidKey("the service does not know this API key")


def _keys_in(headers: Iterable[tuple[bytes, bytes]]) -> Iterable[bytes]:
    """Yield the keys in the headers. Other schemes of `Authorization` are ignored: they may be for a proxy."""
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
