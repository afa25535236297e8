"""Two twsync of one job: one works, the other takes over when that one dies, stops, or is cut off; never both."""

import contextlib
import itertools
import os
import signal
import threading
import time

import pytest

import compare
import proxy
import tw
from wait import wait_for

TABLE = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'a' FROM generate_series(1, 100) g"
POLICIES = {"forward": {"on_conflict": "overwrite"}, "reverse": {"on_conflict": "ignore"}}
TAKES_OVER_S = 10


def second(make_job, pair, first, **more):
    """The same job as another host has it: a state directory of its own."""
    return make_job(pair, name=first.name, **{**POLICIES, **more})


def stands_by(job):
    return job.status()["lease"] == "standby"


def works(job):
    status = job.status()
    return status["lease"] == "held" and all(task["state"] == "Running" for task in status["tasks"])


class Writer(threading.Thread):
    """Rows on both sides until told to stop; what the server has confirmed is counted."""

    def __init__(self, pair):
        super().__init__(daemon=True)
        self.pair, self.going, self.rows = pair, True, 0
        self.start()

    def run(self):
        with contextlib.closing(self.pair.a.connect()) as a, contextlib.closing(self.pair.b.connect()) as b:
            a.autocommit = b.autocommit = True
            for n in itertools.count():
                if not self.going:
                    break
                for offset, side in enumerate((a, b)):
                    with side.cursor() as cur:
                        cur.execute("INSERT INTO t VALUES (%s, 'w')", (1000 + 2 * n + offset,))
                    self.rows += 1
                time.sleep(0.005)

    def end(self):
        self.going = False
        self.join(60)
        assert not self.is_alive()


def taken_over(job, since):
    wait_for(lambda: works(job), "the other has taken over", 60, every=0.05)
    took = time.monotonic() - since
    assert took < TAKES_OVER_S + 3, f"it took {took:.1f} s"  # as far beyond the promise as a busy machine may be
    print(f"taken over in {took:.1f} s")


@pytest.mark.parametrize("how", ["killed", "stopped", "ended", "cut off"])
def test_takes_over(pair, make_job, how):
    """Both sides are written all the time; whatever happens to the first, each row arrives once."""
    pair.a.sql(TABLE)
    proxies = [proxy.Proxy(side.server.port) for side in pair.nodes]
    first = make_job(pair, a=proxies[0].job_keys(), b=proxies[1].job_keys(), **POLICIES).start()
    other = second(make_job, pair, first).start(wait=())
    wait_for(lambda: stands_by(other), "the second stands by")
    assert works(first) and not other.processes().keys() & set(tw.TASKS)
    assert f"standing by; {os.uname().nodename} works on it" in other.command("status", other.path)[1]
    writer = Writer(pair)
    wait_for(lambda: first.task("forward")["rows"] > 100 and first.task("reverse")["rows"] > 100, "rows go across")
    began = time.monotonic()
    if how == "killed":
        first.kill()
    elif how == "stopped":
        os.killpg(first.process.pid, signal.SIGSTOP)
    elif how == "ended":
        assert first.stop() == 0
    else:
        for p in proxies:
            p.hold()
    taken_over(other, began)
    rows = writer.rows
    wait_for(lambda: writer.rows > rows + 200, "the writers go on")
    if how == "stopped":
        os.killpg(first.process.pid, signal.SIGCONT)
    for p in proxies if how == "cut off" else ():
        p.release()
    if how in ("stopped", "cut off"):
        wait_for(lambda: stands_by(first) and not first.processes().keys() & set(tw.TASKS),
                 "the first finds out, ends its tasks, and stands by", 90)
        assert works(other)
    rows = writer.rows
    wait_for(lambda: writer.rows > rows + 200, "the writers go on")
    writer.end()
    other.wait_synced()
    compare.assert_same(pair)
    assert pair.a.one("SELECT count(*) FROM t WHERE v = 'w'") == writer.rows
    for p in proxies:
        p.close()


def test_to_and_fro(pair, make_job, rng):
    """They take turns at dying while both sides are written."""
    pair.a.sql(TABLE)
    jobs = [make_job(pair, **POLICIES).start()]
    jobs.append(second(make_job, pair, jobs[0]).start(wait=()))
    wait_for(lambda: stands_by(jobs[1]), "the second stands by")
    writer = Writer(pair)
    for turn in range(4):
        works_now, waits = jobs[turn % 2], jobs[1 - turn % 2]
        wait_for(lambda: works(works_now) and stands_by(waits), "one works, one waits")
        rows = writer.rows
        wait_for(lambda: writer.rows > rows + rng.randint(1, 200), "rows are written")
        began = time.monotonic()
        works_now.kill()
        taken_over(waits, began)
        works_now.start(wait=())
    writer.end()
    jobs[0].wait_synced()
    compare.assert_same(pair)
    assert pair.a.one("SELECT count(*) FROM t WHERE v = 'w'") == writer.rows


def test_three(pair, make_job):
    """Of those who stand by one takes over, the others go on standing by; their own sessions are in nobody's way."""
    pair.a.sql(TABLE)
    jobs = [make_job(pair, **POLICIES).start()]
    jobs += [second(make_job, pair, jobs[0]).start(wait=()) for _ in range(2)]
    for turn in range(2):
        wait_for(lambda: sum(map(works, jobs)) == 1 and sum(map(stands_by, jobs)) == len(jobs) - 1, "one works", 60)
        pair.a.sql(f"INSERT INTO t VALUES ({1000 + turn}, 'a')")
        pair.b.sql(f"INSERT INTO t VALUES ({2000 + turn}, 'b')")
        working = next(job for job in jobs if works(job))
        working.wait_synced()
        working.kill()
        jobs.remove(working)
    taken_over(jobs[0], time.monotonic())
    jobs[0].wait_synced()
    compare.assert_same(pair)
    assert pair.a.one("SELECT count(*) FROM t") == 104


def test_during_the_copy(pair, make_job):
    """The first dies in the middle of the copy; what it has copied is not copied again."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, repeat('x', 200) FROM "
               "generate_series(1, 60000) g")
    slow = {"throttle": {"full.rows": 20000}, "forward": {**POLICIES["forward"], "chunk_size": "1MB", "workers": 2}}
    first = make_job(pair, **{**POLICIES, **slow}).start(wait=())
    wait_for(lambda: pair.b.admin("SELECT to_regclass('twsync.copied')")[0][0] and
             pair.b.admin("SELECT count(*) FROM twsync.copied")[0][0] > 2, "some chunks are copied")
    other = second(make_job, pair, first, **slow).start(wait=())
    wait_for(lambda: stands_by(other), "the second stands by")
    os.killpg(first.process.pid, signal.SIGSTOP)
    began = time.monotonic()
    copied = pair.b.admin("SELECT count(*) FROM twsync.copied")[0][0]
    wait_for(lambda: other.status()["lease"] == "held", "it has taken over", 60)
    assert time.monotonic() - began < TAKES_OVER_S + 3
    pair.a.sql("UPDATE t SET v = 'new' WHERE id % 1000 = 0; DELETE FROM t WHERE id % 1000 = 1")
    os.killpg(first.process.pid, signal.SIGCONT)
    other.wait_synced(deadline=180)
    wait_for(lambda: stands_by(first), "the first stands by")
    compare.assert_same(pair)
    assert copied > 2 and other.task("forward")["copy_rows"] < 60000, "not from the beginning"


def test_killed_and_started_again(pair, make_job):
    """Its own lease does not keep a twsync waiting."""
    pair.a.sql(TABLE)
    job = make_job(pair, **POLICIES).start()
    job.wait_synced()
    job.kill()
    began = time.monotonic()
    job.start()
    assert time.monotonic() - began < 6, "it waited for itself"


def test_release(pair, make_job):
    """Not while another host works on it; and one that stands by ends when the job is no more."""
    pair.a.sql(TABLE)
    first = make_job(pair, **POLICIES).start()
    other = second(make_job, pair, first).start(wait=())
    wait_for(lambda: stands_by(other), "the second stands by")
    third = second(make_job, pair, first)
    code, out, err = third.command("release", third.path)
    assert code == tw.LOCKED and "is worked on by host" in out + err, (code, out, err)
    os.killpg(other.process.pid, signal.SIGSTOP)
    assert first.stop() == 0
    assert first.release()[0] == tw.OK
    os.killpg(other.process.pid, signal.SIGCONT)
    assert other.wait_exit() == 1
    assert "was released elsewhere" in other.log_text()
    assert not pair.b.admin("SELECT to_regnamespace('twsync')")[0][0]
