import random
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager

import pytest

from service.runtime.core_scheduler import CoreScheduler
from tests.waiting import WAIT_S, until


def in_line(cores: CoreScheduler) -> int:
    return len(cores._starting) + len(cores._continuing)


def test_who_goes_on_comes_before_who_begins_and_each_in_turn() -> None:
    cores = CoreScheduler(1)
    came: list[str] = []

    def work(name: str, core: AbstractContextManager[None]) -> None:
        with core:
            came.append(name)

    with ThreadPoolExecutor(4) as pool:
        with cores.acquire_to_start():
            for name in ("begin 1", "begin 2", "go on 1", "go on 2"):
                before = in_line(cores)
                pool.submit(
                    work, name, cores.acquire_to_continue() if name.startswith("go on") else cores.acquire_to_start()
                )
                until(lambda before=before: in_line(cores) == before + 1)
            assert came == []
        until(lambda: len(came) == 4)
    assert came == ["go on 1", "go on 2", "begin 1", "begin 2"]


def test_an_error_gives_the_core_back() -> None:
    cores = CoreScheduler(1)
    for core in (cores.acquire_to_start, cores.acquire_to_continue, cores.acquire_to_start):
        with pytest.raises(ValueError, match="broken"), core():
            raise ValueError("broken")
    assert cores._free == 1


@pytest.mark.parametrize("count", [1, 3])
def test_never_more_than_there_are_and_nobody_is_left_behind(count: int) -> None:
    cores = CoreScheduler(count)
    lock = threading.Lock()
    busy = most = 0

    def work(seed: int) -> None:
        nonlocal busy, most
        chance = random.Random(seed)
        for _ in range(200):
            with cores.acquire_to_continue() if chance.random() < 0.5 else cores.acquire_to_start():
                with lock:
                    busy += 1
                    most = max(most, busy)
                with lock:
                    busy -= 1

    with ThreadPoolExecutor(8) as pool:
        workers: list[Future[None]] = [pool.submit(work, seed) for seed in range(8)]
        for worker in workers:
            worker.result(WAIT_S)
    assert most <= count
    assert (cores._free, in_line(cores)) == (count, 0)
