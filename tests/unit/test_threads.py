"""The thread pool of training."""

import threading

import pytest

from model_export.threads import worker_pool


def test_after_an_interruption_nobody_waits_for_what_has_not_begun() -> None:
    begun, done, go_on = threading.Event(), [], threading.Event()

    def work(number: int) -> None:
        begun.set()
        assert go_on.wait(60)
        done.append(number)

    def interrupted() -> None:
        with worker_pool(1) as workers:
            waiting = [workers.submit(work, number) for number in range(100)]
            assert begun.wait(60)
            # The pool's end waits for the first, which ends only once the last is dropped.
            waiting[-1].add_done_callback(lambda _: go_on.set())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == [0]
