"""Ask a running service whether it is ready, for the health checks of containers.

A container runs it every few seconds, so it imports nothing that takes long to load, not even the settings.
"""

import os
from contextlib import closing
from http.client import HTTPConnection, HTTPException

TIMEOUT_S = 5.0
# A service that listens on all addresses is asked at the loopback address.
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def address() -> tuple[str, int]:
    """Return the host and the port of the service, from its settings. Raises ValueError if the port is not a number."""
    given = {name.upper(): value for name, value in os.environ.items() if value}
    host = given.get("TOMAU_HOST", "127.0.0.1")
    return LOOPBACK.get(host, host), int(given.get("TOMAU_PORT", "8000"))


def check() -> tuple[bool, str]:
    """Return whether `/readyz` responded with status 200, and a line for the user."""
    where = "TOMAU_PORT"
    try:
        host, port = address()
        where = f"{host}:{port}"
        with closing(HTTPConnection(host, port, timeout=TIMEOUT_S)) as connection:
            connection.request("GET", "/readyz")
            response = connection.getresponse()
            body = response.read(1000).decode("utf-8", "replace")
    except (OSError, HTTPException, ValueError) as error:
        return False, f"{where}: {error}"
    return response.status == 200, f"{where}: {response.status} {body}"
