"""Waiting for a condition with a deadline: the only way this suite waits."""

import time


class Deadline(AssertionError):
    """What was waited for did not happen in time."""


def wait_for(condition, what, deadline=60.0, every=0.05):
    """Calls condition() until it is true and returns its value; the last value is in the error."""
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Deadline(f"waited {deadline} s in vain for: {what}; last value: {value!r}")
        time.sleep(every)
