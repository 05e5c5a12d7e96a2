"""Values that schemathesis need not try: the document forbids them, but they become valid when they are sent.

Forms and queries carry only strings. So a list of one value is sent as the value, an empty list is not sent, and an
empty string counts as not given. The service can't refuse them, and should not.
"""

from collections.abc import Mapping

import schemathesis


def is_lost_when_sent(value: object) -> bool:
    """Return whether the value arrives as another value, or not at all."""
    return value == "" or (isinstance(value, list) and len(value) < 2)


@schemathesis.hook
def filter_case(context: schemathesis.HookContext, case: schemathesis.Case) -> bool:
    """Return whether to try a case. Cases with such values are skipped; the photos of a batch are a list."""
    if case.operation.path != "/colorize":
        return True
    values = [*(case.query or {}).values()]
    if isinstance(case.body, Mapping):
        values += case.body.values()
    return not any(map(is_lost_when_sent, values))
