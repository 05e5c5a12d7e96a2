"""The stages of a photo: their names, how long each takes, and when the pipeline stops between two of them."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import cv2

from service.errors import ClientGone, DeadlineExceeded, OutOfMemory

log = logging.getLogger(__name__)

# `queue` is the wait for an executor of the model, and for a worker thread if there is one.
STAGES = ("decode", "queue", "infer", "merge", "encode")


class StageTimer:
    """Measures the stages of one photo. Stops before a stage if the photo is cancelled or late.

    `seconds` has the duration of each stage so far. `begun` has the time of `time.monotonic` at which each began.
    """

    def __init__(self, deadline: float | None, cancelled: threading.Event | None) -> None:
        self.deadline = deadline
        self.cancelled = cancelled
        self.seconds: dict[str, float] = {}
        self.begun: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure a stage, or a further part of it.

        Raises ClientGone if `cancelled` is set, DeadlineExceeded after the deadline, and OutOfMemory if the memory
        does not suffice.
        """
        if self.cancelled is not None and self.cancelled.is_set():
            raise ClientGone(f"the request was cancelled before the stage {name} of its photo")
        started = time.monotonic()
        if self.deadline is not None and started >= self.deadline:
            raise DeadlineExceeded(f"the deadline passed before the stage {name} of the photo")
        self.begun.setdefault(name, started)
        try:
            yield
        except (MemoryError, cv2.error) as error:
            if isinstance(error, cv2.error) and error.code != cv2.Error.StsNoMem:
                raise
            log.warning("not enough memory for the stage %s of a photo: %s", name, error)
            raise OutOfMemory(f"there is not enough memory for the stage {name} of the photo") from error
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started
