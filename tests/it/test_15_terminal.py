"""What a person sees: bars while copying, a live line per task, log lines above them; none of it elsewhere."""

import codecs
import os
import pty
import re
import signal
import threading

import pytest

import compare
from wait import wait_for


class Terminal:
    """A terminal that remembers all it was sent."""

    def __init__(self):
        self.master, self.slave = pty.openpty()
        self.name = os.ttyname(self.slave)
        self.text = ""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")     # a read may end within a character
        while True:
            try:
                self.text += decoder.decode(os.read(self.master, 65536))
            except OSError:
                return

    def wait(self, pattern):
        wait_for(lambda: re.search(pattern, self.text), f"{pattern!r} on the terminal")

    def close(self):
        os.close(self.slave)
        os.close(self.master)


@pytest.fixture
def terminal():
    screen = Terminal()
    yield screen
    screen.close()


@pytest.mark.rung("marker")
def test_terminal(pair, make_job, proxy_a, terminal):
    pair.a.sql("CREATE TABLE big (id int PRIMARY KEY, v text)")
    pair.a.sql("INSERT INTO big SELECT g, repeat('x', 200) FROM generate_series(1, 150000) g; ANALYZE big")
    proxy_a.hold_after = 8 << 20        # of 31 MB: a bar is there as long as the copy takes
    job = make_job(pair, a=proxy_a.job_keys()).start(log=terminal.name, wait=())
    terminal.wait(r"public\.big +█[█░]{23} +[1-9]\d* rows")
    proxy_a.release()
    terminal.wait(r"total +█{24} +150000 rows .* 1/1 tables")
    terminal.wait(r"a→b Running +\d+ rows/s +delay +\d+ ms +0 conflicts")
    terminal.wait(r"b→a Running")
    pair.b.sql("UPDATE big SET v = 'y' WHERE id <= 20000")
    terminal.wait(r"b→a Running +[1-9]\d* rows/s")
    job.wait_synced()
    compare.assert_same(pair)
    assert job.stop(signal.SIGINT) == 0
    terminal.wait(r"stopped; run again")


@pytest.mark.rung("marker")
def test_no_terminal(pair, make_job):
    """In a file there are log lines only, no control sequences."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    job = make_job(pair).start()
    assert "\033" not in job.log_text() and "█" not in job.log_text()
    assert "copied 1 of 1 tables, 1 rows" in job.log_text()
