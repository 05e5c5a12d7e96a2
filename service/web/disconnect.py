"""Wait until the client of a request disconnects. `connection.py` decides when a client counts as gone."""

from typing import NoReturn

from starlette.types import Receive

from service.errors import ClientGone


async def wait_for_disconnect(receive: Receive) -> None:
    """Return once the client has disconnected. Drop the rest of the body that arrives before."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def raise_on_disconnect(receive: Receive) -> NoReturn:
    """Wait until the client has disconnected, and raise ClientGone."""
    await wait_for_disconnect(receive)
    raise ClientGone("the client has disconnected")
