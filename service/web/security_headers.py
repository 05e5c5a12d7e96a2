"""The security headers of every response."""

import base64
import hashlib
import re
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Cross-Origin-Resource-Policy concerns what a page embeds without CORS. Requests with CORS are not affected.
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
    """The outermost middleware. It adds security headers to every response, unless the response sets them itself."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and add the missing headers to its response (ASGI)."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *missing_headers(message.get("headers", ()))]
            await send(message)

        await self.app(scope, receive, send_safely)


def missing_headers(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the security headers that a response lacks. Only a file, which has an ETag, may be cached.

    The cache must revalidate the file before each use.
    """
    names = {name for name, _ in headers}
    wanted = (*SECURITY_HEADERS, POLICY, REVALIDATE if b"etag" in names else NO_STORE)
    return [header for header in wanted if header[0] not in names]


def page_content_policy(html: str) -> str:
    """Return a page's Content-Security-Policy. It allows only this origin, and the inline scripts of the page."""
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(["'self'", *(f"'sha256-{value}'" for value in hashes)])
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'self'; img-src 'self' blob: data:;"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
