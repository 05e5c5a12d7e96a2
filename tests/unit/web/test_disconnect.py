"""The wait for a client that disconnects."""

import asyncio
from collections.abc import Callable, Coroutine

import pytest
from starlette.types import Message, Receive

from service.errors import ClientGone
from service.web.disconnect import raise_on_disconnect, wait_for_disconnect

MESSAGES: list[Message] = [
    {"type": "http.request", "body": b"rest", "more_body": True},
    {"type": "http.request", "body": b"", "more_body": False},
    {"type": "http.disconnect"},
]


def receive_of(messages: list[Message]) -> Receive:
    async def receive() -> Message:
        await asyncio.sleep(0)
        return messages.pop(0)

    return receive


def test_the_rest_of_the_body_is_dropped_until_the_client_disconnects() -> None:
    left = MESSAGES.copy()
    asyncio.run(wait_for_disconnect(receive_of(left)))
    assert not left
    with pytest.raises(ClientGone):
        asyncio.run(raise_on_disconnect(receive_of(MESSAGES.copy())))


@pytest.mark.parametrize("wait", [wait_for_disconnect, raise_on_disconnect])
def test_a_client_that_stays_is_waited_for(wait: Callable[[Receive], Coroutine[None, None, None]]) -> None:
    async def receive() -> Message:
        return await asyncio.Event().wait()

    async def scene() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(wait(receive), 0.02)

    asyncio.run(scene())
