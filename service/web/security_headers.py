"""Security headers of every response."""

import base64
import hashlib
import re
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# On every answer. Cross-Origin-Resource-Policy is about what a page embeds unasked; CORS goes its own way.
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; sandbox")


NO_STORE = (b"cache-control", b"no-store")


REVALIDATE = (b"cache-control", b"no-cache")


class SecurityHeadersMiddleware:
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
    wanted = (*SECURITY_HEADERS, POLICY, REVALIDATE if b"etag" in names else NO_STORE)
    return [header for header in wanted if header[0] not in names]


def page_content_policy(html: str) -> str:
    """The Content-Security-Policy of a page: what it loads comes from here, and its own inline scripts alone run."""
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(["'self'", *(f"'sha256-{value}'" for value in hashes)])
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'self'; img-src 'self' blob: data:;"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
