"""Refuse requests on connections that exceed TOMAU_MAX_CONNECTIONS; answer only health checks and metrics."""

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

# How often it is told that there are too many.
WARNING_INTERVAL_S = 60.0
# With too many connections, too, as long as there is a file left for one.
ALWAYS_SERVED_PATHS = frozenset({"/livez", "/readyz", "/metrics"})


class ConnectionLimitApp:
    """The service for connections that are too many: it only tells how it fares."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app = app
        self._limit = settings.max_connections
        self._warned_at = -math.inf
        refusing = Telemetry(cors.with_cors(cors.CorsPreflights, self._refuse, settings), metrics)
        self._refusing = security_headers.SecurityHeadersMiddleware(
            cors.with_cors(cors.CorsResponses, refusing, settings)
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        app = self._app if scope["path"] in ALWAYS_SERVED_PATHS else self._refusing
        await app(scope, receive, send)

    def warn(self) -> None:
        """Logs that there are too many, once in a while: most of them never send a request that would be logged."""
        now = time.monotonic()
        if now - self._warned_at >= WARNING_INTERVAL_S:
            self._warned_at = now
            log.warning(
                "more connections at once than TOMAU_MAX_CONNECTIONS=%d: silent ones are closed, or new ones refused",
                self._limit,
            )

    async def _refuse(self, _scope: Scope, _receive: Receive, _send: Send) -> None:
        raise Overloaded("too many connections at once", limit=self._limit)
