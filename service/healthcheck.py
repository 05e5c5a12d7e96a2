"""Asks a running service whether it is ready, for container health checks.

They come every few seconds, so nothing is imported that takes long, not even the settings.
"""

import os
from contextlib import closing
from http.client import HTTPConnection, HTTPException

TIMEOUT_S = 5.0
# Who listens on all addresses is asked on this machine's own.
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def address() -> tuple[str, int]:
    """Where the service listens, by its settings; raises ValueError when the port is no number."""
    given = {name.upper(): value for name, value in os.environ.items() if value}
    host = given.get("TOMAU_HOST", "127.0.0.1")
    return LOOPBACK.get(host, host), int(given.get("TOMAU_PORT", "8000"))


def check() -> tuple[bool, str]:
    """Whether `/readyz` is green, and what it said."""
    where = "TOMAU_PORT"
    try:
        host, port = address()
        where = f"{host}:{port}"
        with closing(HTTPConnection(host, port, timeout=TIMEOUT_S)) as connection:
            connection.request("GET", "/readyz")
            answer = connection.getresponse()
            said = answer.read(1000).decode("utf-8", "replace")
    except (OSError, HTTPException, ValueError) as error:
        return False, f"{where}: {error}"
    return answer.status == 200, f"{where}: {answer.status} {said}"
