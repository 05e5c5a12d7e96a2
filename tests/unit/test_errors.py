"""The headers of problems."""

from service import errors
from service.errors import DeadlineExceeded, Draining, OutOfMemory, Overloaded


def test_each_problem_has_its_own_time_to_wait() -> None:
    defaults = {kind: kind("detail").headers().get("Retry-After") for kind in errors.kinds()}
    named = {kind: value for kind, value in defaults.items() if value is not None}
    assert named == {Overloaded: "1", OutOfMemory: "5", Draining: "5"}
    assert Overloaded("detail", retry_after=7).headers() == {"Retry-After": "7"}
    assert DeadlineExceeded("detail", retry_after=2).headers() == {"Retry-After": "2"}
