import threading
import time

import cv2
import numpy as np
import pytest

from service.errors import ClientGone, DeadlineExceeded, OutOfMemory
from service.pipeline.stages import StageTimer


def test_the_parts_of_a_stage_add_up() -> None:
    timer = StageTimer(None, None)
    with timer.stage("decode"):
        time.sleep(0.01)
    first, begun = timer.seconds["decode"], dict(timer.begun)
    with timer.stage("decode"):
        time.sleep(0.01)
    assert timer.seconds["decode"] >= first + 0.01
    assert timer.begun == begun


def test_no_stage_begins_after_the_deadline_or_a_cancellation() -> None:
    late = StageTimer(time.monotonic(), None)
    with pytest.raises(DeadlineExceeded, match="before the stage merge"), late.stage("merge"):
        pass
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(ClientGone, match="before the stage merge"), StageTimer(None, cancelled).stage("merge"):
        pass


def test_missing_memory_is_a_problem_and_other_errors_pass() -> None:
    timer = StageTimer(None, None)
    with pytest.raises(OutOfMemory, match="the stage merge"), timer.stage("merge"):
        raise MemoryError
    with pytest.raises(cv2.error), timer.stage("merge"):
        cv2.cvtColor(np.zeros((1, 1, 7), np.uint8), cv2.COLOR_BGR2GRAY)
    assert timer.seconds == {}
