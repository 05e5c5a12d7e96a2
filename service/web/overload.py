"""Refuse requests on connections above TOMAU_MAX_CONNECTIONS, except health checks and metrics."""

import logging
import math
import time

from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import Overloaded
from service.observability.metrics import Metrics
from service.observability.middleware import Telemetry
from service.settings import Settings
from service.web import cors, security_headers

log = logging.getLogger(__name__)

# At most one warning per interval.
WARNING_INTERVAL_S = 60.0
# Served on connections above the limit, too, as long as a file descriptor is left.
ALWAYS_SERVED_PATHS = frozenset({"/livez", "/readyz", "/metrics"})


class ConnectionLimitApp:
    """An app for connections above the limit. It serves health and metrics, and refuses all other requests."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app = app
        self._limit = settings.max_connections
        self._warned_at = -math.inf
        refusing = Telemetry(cors.with_cors(cors.CorsPreflights, self._refuse, settings), metrics)
        self._refusing = security_headers.SecurityHeadersMiddleware(
            cors.with_cors(cors.CorsResponses, refusing, settings)
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse a request (ASGI)."""
        app = self._app if scope["path"] in ALWAYS_SERVED_PATHS else self._refusing
        await app(scope, receive, send)

    def warn(self) -> None:
        """Log at intervals that the limit is exceeded. Most of these connections never send a request to log."""
        now = time.monotonic()
        if now - self._warned_at >= WARNING_INTERVAL_S:
            self._warned_at = now
            log.warning(
                "more than TOMAU_MAX_CONNECTIONS=%d connections: idle ones are closed, or requests on new ones refused",
                self._limit,
            )

    async def _refuse(self, _scope: Scope, _receive: Receive, _send: Send) -> None:
        raise Overloaded("too many open connections; close idle ones, or try again later", limit=self._limit)
