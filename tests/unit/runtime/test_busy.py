from service.runtime.busy import BusyTracker


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_running_jobs_are_known_by_name_oldest_first() -> None:
    tracker = BusyTracker(3)
    with tracker.track("b"), tracker.track("a"):
        assert tracker.names == ["b", "a"]
        assert tracker.busy == 2
    assert tracker.names == []


def test_all_are_stuck_since_the_newest_job_began() -> None:
    clock = Clock()
    tracker = BusyTracker(2, clock)
    with tracker.track():
        clock.now += 50
        assert tracker.stuck_for() == 0, "one of two is free"
        with tracker.track():
            clock.now += 7
            assert tracker.stuck_for() == 7
        assert tracker.stuck_for() == 0
