import asyncio

from service.runtime.request_context import NO_REQUEST, request_id, trace_id


def test_each_task_and_its_threads_have_ids_of_their_own() -> None:
    async def handle(name: str) -> str:
        request_id.set(name)
        await asyncio.sleep(0)
        return await asyncio.to_thread(request_id.get)

    async def scene() -> list[str]:
        return await asyncio.gather(handle("a"), handle("b"))

    assert asyncio.run(scene()) == ["a", "b"]
    assert (request_id.get(), trace_id.get()) == (NO_REQUEST, None)
