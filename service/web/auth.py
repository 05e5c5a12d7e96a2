"""Who may call, and from where: API keys, the origins of web pages, and the headers that keep an answer harmless."""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import InvalidKey, MissingKey
from service.settings import Settings

# Who watches over the service has no key, and a probe tells nothing worth one.
KEYLESS_PATHS = frozenset({"/livez", "/readyz"})
# What fits into `Authorization: Bearer` (RFC 6750), long enough not to be guessed.
VALID_KEY = re.compile(r"[A-Za-z0-9._~+/=-]{16,256}")


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
        digests |= _valid_digests("TOMAU_API_KEYS", settings.api_keys.get_secret_value().split(","))
    if settings.api_keys_file is not None:
        source = f"TOMAU_API_KEYS_FILE: {settings.api_keys_file}"
        try:
            text = settings.api_keys_file.read_text("utf-8")
        except OSError as error:
            raise AccessError(f"{source}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise AccessError(f"{source}: not a text in UTF-8") from None
        digests |= _valid_digests(source, (line.partition("#")[0] for line in text.splitlines()))
    return frozenset(digests)


def _valid_digests(source: str, keys: Iterable[str]) -> set[bytes]:
    given = [key for key in map(str.strip, keys) if key]
    if not given:
        raise AccessError(f"{source}: there is no key in it; unset it to let everyone call")
    for number, key in enumerate(given, 1):
        if not VALID_KEY.fullmatch(key):
            raise AccessError(f"{source}: key {number} is not 16 to 256 letters, digits and . _ ~ + / = - alone")
    return {digest(key.encode()) for key in given}


def is_beyond_loopback(host: str) -> bool:
    """Whether others than this machine can reach a service that is bound to the host."""
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


class ApiKeyMiddleware:
    """Asks for a key before anything else of a request is looked at. Raises MissingKey or InvalidKey."""

    def __init__(self, app: ASGIApp, digests: frozenset[bytes]) -> None:
        self.app = app
        self._digests = digests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and scope["path"] not in KEYLESS_PATHS:
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
