import asyncio
import gc
import math
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from service.errors import ClientGone, DeadlineExceeded, Overloaded
from service.runtime.admission import Slots
from service.runtime.worker_pool import WorkerPool
from tests.waiting import WAIT_S, eventually

T = TypeVar("T")


async def never() -> None:
    await asyncio.sleep(60)


def play(
    scene: Callable[[WorkerPool], Awaitable[T]], *, workers: int = 1, slots: int = 2, max_wait: float = math.inf
) -> T:
    async def main() -> T:
        pool = WorkerPool(workers, Slots("photos", slots), max_wait)
        try:
            return await scene(pool)
        finally:
            await eventually(lambda: not pool.slots.in_use)
            pool.stop()

    return asyncio.run(main())


def soon(seconds: float = WAIT_S) -> float:
    return time.monotonic() + seconds


def test_an_answer_and_an_error_come_back() -> None:
    async def scene(pool: WorkerPool) -> int:
        with pytest.raises(ValueError, match="broken"):
            await pool.run(lambda _: int("broken"), deadline=soon(), disconnect=never)
        return await pool.run(lambda _: 42, deadline=soon(), disconnect=never)

    assert play(scene) == 42


def test_the_deadline_is_kept_though_the_thread_goes_on() -> None:
    door = threading.Event()
    told = threading.Event()

    def stuck(cancelled: threading.Event) -> None:
        assert door.wait(WAIT_S)
        if cancelled.is_set():
            told.set()

    async def scene(pool: WorkerPool) -> None:
        with pytest.raises(DeadlineExceeded):
            await pool.run(stuck, deadline=soon(0.3), disconnect=never)
        assert pool.slots.in_use == 1, "the slot is free only when the thread returns"
        assert pool.stuck_for() > 0
        door.set()
        assert await asyncio.to_thread(told.wait, WAIT_S)

    play(scene)


def test_a_client_that_hangs_up_frees_what_has_not_begun() -> None:
    door = threading.Event()
    ran = []

    async def gone() -> None:
        await asyncio.sleep(0.05)

    async def scene(pool: WorkerPool) -> None:
        first = asyncio.create_task(pool.run(lambda _: door.wait(WAIT_S), deadline=soon(), disconnect=never))
        await eventually(lambda: pool.busy == 1)
        with pytest.raises(ClientGone):
            await pool.run(lambda _: ran.append(1), deadline=soon(), disconnect=gone)
        await eventually(lambda: pool.slots.in_use == 1)
        door.set()
        assert await first

    play(scene)
    assert ran == []


def test_no_place_is_an_immediate_refusal() -> None:
    door = threading.Event()

    async def scene(pool: WorkerPool) -> None:
        jobs = [
            asyncio.create_task(pool.run(lambda _: door.wait(WAIT_S), deadline=soon(), disconnect=never))
            for _ in range(2)
        ]
        await eventually(lambda: pool.slots.in_use == 2)
        with pytest.raises(Overloaded) as caught:
            await pool.run(lambda _: None, deadline=soon(), disconnect=never)
        assert caught.value.retry_after == 1
        door.set()
        assert all(await asyncio.gather(*jobs))

    play(scene)


def test_workers_that_take_photos_are_not_stuck() -> None:
    """One thread hangs, and the other runs photo after photo. The pool is busy, but not stuck."""
    door = threading.Event()

    async def scene(pool: WorkerPool) -> None:
        assert pool.stuck_for() == 0
        began = time.monotonic()
        held = asyncio.create_task(pool.run(lambda _: door.wait(WAIT_S), deadline=soon(), disconnect=never))
        await eventually(lambda: pool.busy == 1)
        await asyncio.sleep(0.5)
        assert pool.stuck_for() == 0, "one is free"
        seen, since = await pool.run(
            lambda _: (pool.stuck_for(), time.monotonic() - began), deadline=soon(), disconnect=never
        )
        assert 0 < seen < since - 0.4, "since the last one began, not the first"
        door.set()
        assert await held

    play(scene, workers=2)


def test_a_cancelled_photo_is_let_go_at_once() -> None:
    door = threading.Event()

    class Photo:
        def __call__(self, cancelled: threading.Event) -> None:
            raise AssertionError("nobody waits for it")

    async def gone() -> None:
        await asyncio.sleep(0.02)

    async def scene(pool: WorkerPool) -> None:
        held = asyncio.create_task(pool.run(lambda _: door.wait(WAIT_S), deadline=soon(), disconnect=never))
        await eventually(lambda: pool.busy == 1)
        photo = Photo()
        alive = weakref.ref(photo)
        with pytest.raises(ClientGone):
            await pool.run(photo, deadline=soon(), disconnect=gone)
        del photo
        await asyncio.sleep(0.02)
        gc.collect()
        assert alive() is None, "it waits in the queue, and holds its upload"
        door.set()
        assert await held

    play(scene)


async def photos_inside(pool: WorkerPool, count: int, door: threading.Event) -> list[asyncio.Future[bool]]:
    """Add `count` photos that run or wait until the door is open."""
    before = pool.busy + pool.waiting
    inside = [
        asyncio.ensure_future(pool.run(lambda _: door.wait(30), deadline=soon(30), disconnect=never))
        for _ in range(count)
    ]
    await eventually(lambda: pool.busy == pool.count and pool.busy + pool.waiting == before + count)
    return inside


def test_a_burst_is_taken_whole_but_no_more_once_it_has_waited_too_long() -> None:
    async def scene(pool: WorkerPool) -> None:
        door = threading.Event()
        inside = await photos_inside(pool, 6, door)
        inside += await photos_inside(pool, 2, door)
        await eventually(lambda: pool.longest_wait() > 1)
        with pytest.raises(Overloaded, match="photos already wait for") as refusal:
            await pool.run(lambda _: None, deadline=soon(), disconnect=never)
        assert refusal.value.retry_after >= 2
        door.set()
        await asyncio.gather(*inside)
        assert pool.longest_wait() == 0
        assert await pool.run(lambda _: 42, deadline=soon(), disconnect=never) == 42

    play(scene, slots=32, max_wait=1)


def test_a_few_photos_may_wait_however_long() -> None:
    async def scene(pool: WorkerPool) -> None:
        door = threading.Event()
        inside = await photos_inside(pool, 4, door)  # one works, three wait
        inside += await photos_inside(pool, 1, door)
        with pytest.raises(Overloaded):
            await pool.run(lambda _: None, deadline=soon(), disconnect=never)
        door.set()
        await asyncio.gather(*inside)

    play(scene, slots=32, max_wait=1e-6)


@pytest.mark.parametrize("max_wait", [math.inf, 0.001])
def test_who_lines_up_comes_in_among_others_that_try_again_at_once(max_wait: float) -> None:
    singles, in_line = 0, 10

    async def try_again(pool: WorkerPool) -> None:
        nonlocal singles
        while in_line:
            try:
                await pool.run(lambda _: time.sleep(0.01), deadline=soon(), disconnect=never)
                singles += 1
            except Overloaded:
                await asyncio.sleep(0.001)  # With 0 the loop spins, and the thread hardly gets Python's lock.

    async def scene(pool: WorkerPool) -> None:
        nonlocal in_line
        others = [asyncio.create_task(try_again(pool)) for _ in range(20)]
        await asyncio.sleep(0.05)
        for _ in range(10):
            await pool.wait_for_slot()
            await pool.run(lambda _: time.sleep(0.01), deadline=soon(), disconnect=never, has_slot=True)
            in_line -= 1
        await asyncio.gather(*others)
        assert 5 <= singles <= 60

    play(scene, slots=4, max_wait=max_wait)


def test_the_line_is_first_come_first_served_and_may_be_left() -> None:
    served: list[int] = []

    async def one(pool: WorkerPool, number: int) -> None:
        await pool.wait_for_slot()
        await pool.run(lambda _: served.append(number), deadline=soon(), disconnect=never, has_slot=True)

    async def scene(pool: WorkerPool) -> None:
        door = threading.Event()
        inside = await photos_inside(pool, 2, door)
        line = [asyncio.create_task(one(pool, number)) for number in range(4)]
        await eventually(lambda: len(pool._queue) == 4)
        line[1].cancel()
        door.set()
        await asyncio.gather(*inside, *line, return_exceptions=True)
        assert served == [0, 2, 3]

    play(scene)


def test_a_place_that_comes_in_the_moment_of_a_cancellation_is_given_back() -> None:
    async def scene(pool: WorkerPool) -> None:
        pool.slots.acquire(2)
        late = asyncio.create_task(pool.wait_for_slot())
        await eventually(lambda: len(pool._queue) == 1)
        pool._release_slot()
        assert pool.slots.in_use == 2, "it has the slot, and does not know yet"
        late.cancel()
        await asyncio.wait([late])
        assert late.cancelled()
        assert pool.slots.in_use == 1
        pool.slots.release()

    play(scene)


def test_a_cancelled_photo_waits_no_more() -> None:
    async def scene(pool: WorkerPool) -> None:
        door = threading.Event()
        inside = await photos_inside(pool, 1, door)
        with pytest.raises(DeadlineExceeded):
            await pool.run(lambda _: None, deadline=soon(0.05), disconnect=never)
        assert pool.longest_wait() == 0
        door.set()
        await asyncio.gather(*inside)

    play(scene)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_what_would_end_a_worker_is_an_error_of_its_photo(error: type[BaseException]) -> None:
    def end(_: threading.Event) -> None:
        raise error

    async def scene(pool: WorkerPool) -> int:
        for _ in range(3):
            with pytest.raises(RuntimeError, match=f"a worker raised {error.__name__}"):
                await pool.run(end, deadline=soon(), disconnect=never)
        return await pool.run(lambda _: 42, deadline=soon(), disconnect=never)

    assert play(scene) == 42


def test_a_failed_photo_is_let_go_at_once() -> None:
    """Its error and its task form a cycle. What its frames hold would stay until the next garbage collection."""

    class Plane:
        pass

    planes: list[weakref.ref[Plane]] = []

    def merge() -> None:
        plane = Plane()
        planes.append(weakref.ref(plane))
        raise ValueError("deep inside")

    def colour(_: threading.Event) -> None:
        plane = Plane()
        planes.append(weakref.ref(plane))
        try:
            merge()
        except ValueError as error:
            raise RuntimeError("outside") from error

    async def scene(pool: WorkerPool) -> None:
        with pytest.raises(RuntimeError, match="outside"):
            await pool.run(colour, deadline=soon(), disconnect=never)
        assert [plane() for plane in planes] == [None, None]

    gc.disable()
    try:
        play(scene)
    finally:
        gc.enable()


def test_all_threads_run_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that can not be started later would lose its photo."""
    start = threading.Thread.start

    def fails(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def third_fails(self: threading.Thread) -> None:
        (fails if self.name.startswith("photo_2") else start)(self)

    async def scene(pool: WorkerPool) -> list[int]:
        monkeypatch.setattr(threading.Thread, "start", fails)
        calls = [pool.run(lambda _: 42, deadline=soon(), disconnect=never) for _ in range(4)]
        return await asyncio.gather(*calls)

    assert play(scene, workers=4, slots=4) == [42] * 4
    monkeypatch.setattr(threading.Thread, "start", third_fails)
    with pytest.raises(OSError, match="4 photo threads can't be started: can't start new thread"):
        WorkerPool(4, Slots("photos", 4))
    monkeypatch.undo()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("photo_") and not settled(thread)]


def settled(thread: threading.Thread) -> bool:
    thread.join(5)
    return not thread.is_alive()
