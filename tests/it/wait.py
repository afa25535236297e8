"""Waiting for a condition with a deadline: the only way this suite waits.

A deadline costs time only when a test fails anyway, so it leaves room for a slow machine with other
work; where a short one is itself what is tested, the test says so.
"""

import threading
import time


class Deadline(AssertionError):
    """What was waited for did not happen in time."""


def wait_for(condition, what, deadline=90.0, every=0.05):
    """Calls condition() until it is true and returns its value; the last value is in the error."""
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Deadline(f"waited {deadline} s in vain for: {what}; last value: {value!r}")
        time.sleep(every)


class Pulse:
    """Measures how long this machine lets a process stand that wants to run: `worst`, in seconds.

    Where the thing tested must answer within a second, a machine that stood still is no evidence.
    """

    EVERY = 0.02

    def __enter__(self):
        self.worst, self._ended = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def _beat(self):
        last = time.monotonic()
        while not self._ended.wait(self.EVERY):
            now = time.monotonic()
            self.worst, last = max(self.worst, now - last - self.EVERY), now

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()
