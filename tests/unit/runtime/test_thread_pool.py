import gc
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from service.runtime.thread_pool import Job, LifoThreadPool
from tests.waiting import WAIT_S


@contextmanager
def threads(count: int) -> Iterator[LifoThreadPool]:
    pool = LifoThreadPool(count, "test")
    try:
        yield pool
    finally:
        pool.stop()


@contextmanager
def occupied(pool: LifoThreadPool, count: int) -> Iterator[list[Future[bool]]]:
    """Let `count` threads wait at a door until the block ends."""
    door = threading.Event()
    inside = threading.Barrier(count + 1)

    def wait() -> bool:
        inside.wait(WAIT_S)
        return door.wait(WAIT_S)

    calls = [pool.submit(wait) for _ in range(count)]
    inside.wait(WAIT_S)
    try:
        yield calls
    finally:
        door.set()
        assert [call.result(10) for call in calls] == [True] * count


def test_the_thread_that_worked_last_works_next() -> None:
    with threads(4) as pool:
        with occupied(pool, 4):
            pass
        seen = set()
        for _ in range(50):
            time.sleep(0.002)  # A result is there a moment before its thread is idle.
            seen.add(pool.submit(threading.get_ident).result(10))
        assert len(seen) <= 2  # On a busy machine that moment may take longer.


def test_all_threads_work_at_once_and_what_waits_keeps_its_order() -> None:
    done: list[int] = []
    with threads(3) as pool, occupied(pool, 2):
        with occupied(pool, 1):
            waiting = [pool.submit(lambda number=number: done.append(number)) for number in range(20)]
            assert not done
        for call in waiting:
            call.result(10)
        assert done == list(range(20))


def test_an_error_is_the_call_s_and_not_the_thread_s() -> None:
    def ends() -> None:
        raise SystemExit(3)

    with threads(1) as pool:
        calls = [pool.submit(ends) for _ in range(3)]
        assert [str(call.exception(10)) for call in calls] == ["3"] * 3
        assert pool.submit(lambda: 42).result(10) == 42


def test_a_cancelled_call_never_runs() -> None:
    ran: list[str] = []
    with threads(1) as pool:
        with occupied(pool, 1):
            first, second = (pool.submit(lambda name=name: ran.append(name)) for name in ("first", "second"))
            assert first.cancel()
        second.result(10)
    assert ran == ["second"]


def test_stopping_lets_running_calls_end_and_cancels_waiting_ones() -> None:
    pool = LifoThreadPool(2, "test")
    with occupied(pool, 2) as running:
        waiting = [pool.submit(int) for _ in range(5)]
        pool.stop()
        assert all(call.cancelled() for call in waiting)
        assert not any(call.done() for call in running)
        with pytest.raises(RuntimeError, match="stopped"):
            pool.submit(int)
    pool.stop()


def test_a_hand_over_that_fails_loses_neither_thread_nor_call(monkeypatch: pytest.MonkeyPatch) -> None:
    give = ThreadPoolExecutor.submit

    def fails(*_: object) -> None:
        raise MemoryError

    with threads(1) as pool:
        monkeypatch.setattr(ThreadPoolExecutor, "submit", fails)
        with pytest.raises(MemoryError):
            pool.submit(int)
        monkeypatch.setattr(ThreadPoolExecutor, "submit", give)
        with occupied(pool, 1):
            waiting = [pool.submit(int) for _ in range(3)]
            monkeypatch.setattr(ThreadPoolExecutor, "submit", fails)
        assert [call.result(10) for call in waiting] == [0, 0, 0]


def test_what_was_given_to_a_thread_does_not_begin_after_the_stop() -> None:
    pool = LifoThreadPool(1, "test")
    job = Job(int)
    with occupied(pool, 1):
        pool.stop()
    pool._work(pool._threads[0], [job])
    assert job.future.cancelled()


def test_a_busy_thread_holds_no_earlier_call_and_no_result() -> None:
    class Plane:
        pass

    with threads(1) as pool:
        with occupied(pool, 1):
            plane = Plane()
            seen = weakref.ref(plane)
            call = pool.submit(lambda plane=plane: plane)
            del plane
            door, inside = threading.Event(), threading.Event()
            last = pool.submit(lambda: (inside.set(), door.wait(WAIT_S)))
        call.result(10)
        del call
        assert inside.wait(WAIT_S)
        gc.collect()
        try:
            assert seen() is None
        finally:
            door.set()
            last.result(10)


def test_an_idle_thread_holds_neither_a_call_nor_its_result() -> None:
    class Plane:
        pass

    held = []

    def colour(plane: Plane) -> Plane:
        held.append(weakref.ref(plane))
        answer = Plane()
        held.append(weakref.ref(answer))
        return answer

    def work(pool: LifoThreadPool) -> None:
        plane = Plane()
        pool.submit(lambda: colour(plane)).result(10)

    gc.disable()
    try:
        with threads(2) as pool:
            work(pool)
            end = time.monotonic() + WAIT_S
            while any(plane() for plane in held) and time.monotonic() < end:
                time.sleep(0.001)
            assert [plane() for plane in held] == [None, None]
    finally:
        gc.enable()


def test_threads_that_nobody_stopped_end_with_their_pool() -> None:
    pool = LifoThreadPool(2, "forgotten")
    pool.submit(int).result(10)
    of_pool = [thread for thread in threading.enumerate() if thread.name.startswith("forgotten")]
    assert len(of_pool) == 2
    del pool
    gc.collect()
    for thread in of_pool:
        thread.join(WAIT_S)
    assert not any(thread.is_alive() for thread in of_pool)
