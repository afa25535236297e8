"""Delay told truthfully: an idle source shows none, whatever stands still shows one, and says where."""

import os
import signal

import pg
import tw
from wait import wait_for

TABLE = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'a' FROM generate_series(1, 100) g"
FAST = {"slots": {"heartbeat": "500ms"}}


def test_idle(pair, make_job):
    """Heartbeats go by: without one change of the application the delay is measured, and small."""
    pair.a.sql(TABLE)
    job = make_job(pair, **FAST).start()
    job.wait_synced()
    before = {task: job.task(task)["transactions"] for task in tw.TASKS}
    written = {side.letter: side.admin("SELECT sum(beat) FROM twsync.heartbeat")[0][0] or 0
               for side in (pair.a, pair.b)}
    wait_for(lambda: all(side.admin("SELECT sum(beat) FROM twsync.heartbeat")[0][0] > written[side.letter] + 5
                         for side in (pair.a, pair.b)), "heartbeats are written on both sides")
    for task in tw.TASKS:
        wait_for(lambda: 0 <= job.task(task)["heartbeat_delay_ms"] < 1000, "it passes within a second")
        assert job.task(task)["delay_ms"] < 1000 and not job.task(task)["stalled_ms"]
        assert job.task(task)["transactions"] == before[task], "a heartbeat is no change"
    assert not job.status()["warnings"], job.status()["warnings"]


def test_locked(pair, make_job):
    """The target's table is locked: the delay grows, and the one who holds the lock is named."""
    pair.a.sql(TABLE)
    job = make_job(pair, **FAST).start()
    job.wait_synced()
    with pair.b.connect() as other, other.cursor() as cur:
        cur.execute("SET application_name = 'nightly report'; LOCK TABLE t IN EXCLUSIVE MODE")
        cur.execute("SELECT 4711")
        pid = other.info.backend_pid
        pair.a.sql("UPDATE t SET v = 'b' WHERE id = 1")
        wait_for(lambda: f"pid {pid} " in job.task("forward")["waits"], "who holds the lock is known")
        assert "nightly report" in job.task("forward")["waits"] and "4711" in job.task("forward")["waits"]
        wait_for(lambda: job.task("forward")["delay_ms"] > 3000, "the delay grows")
        assert job.task("reverse")["delay_ms"] < 2000, "of this task alone"
        wait_for(lambda: job.task("forward")["stalled_ms"] > 0, "it stands still, and says so")
        text = job.command("status", job.path)[1]
        assert "forward has applied nothing for" in text and f"pid {pid} " in text, text
        assert job.task("forward")["lag"]["unapplied"]["ms"] > 2000, job.task("forward")["lag"]
        other.rollback()
    job.wait_synced()
    wait_for(lambda: job.task("forward")["delay_ms"] < 1000 and not job.task("forward")["stalled_ms"], "it is over")
    wait_for(lambda: not job.status()["warnings"], "nothing is wrong any more")


def test_stopped_walsender(pair, make_job):
    """A source that does not decode: no error anywhere, and the task has nothing to do."""
    pair.a.sql(TABLE)
    job = make_job(pair, **FAST).start()
    job.wait_synced()
    wait_for(lambda: 0 <= job.task("forward")["heartbeat_delay_ms"] < 1000, "heartbeats pass")
    frozen = pg.freeze_at_rest(pair.a, "twsync:%:forward:stream:%")
    assert frozen
    try:
        pair.a.sql("UPDATE t SET v = 'c' WHERE id = 1")
        wait_for(lambda: job.task("forward")["delay_ms"] > 3000, "the delay grows")
        lag = job.task("forward")["lag"]
        assert lag["undecoded"]["bytes"] > 0 and lag["undecoded"]["ms"] > 1000, lag
        assert not lag["unapplied"]["bytes"], lag
        wait_for(lambda: job.task("forward")["stalled_ms"] > 0, "it stands still, and says so")
    finally:
        pg.resume(frozen)
    job.wait_synced()
    wait_for(lambda: job.task("forward")["delay_ms"] < 1000, "it is over")


def test_stopped_task(pair, make_job):
    """A task's process that hangs is told by its silence and by its delay."""
    pair.a.sql(TABLE)
    job = make_job(pair, **FAST).start()
    job.wait_synced()
    wait_for(lambda: 0 <= job.task("forward")["heartbeat_delay_ms"] < 1000, "heartbeats pass")
    child = job.processes()["forward"]
    try:
        os.kill(child, signal.SIGSTOP)
        wait_for(lambda: job.task("forward")["delay_ms"] > 3000, "the delay grows")
        wait_for(lambda: "has given no sign for" in job.command("status", job.path)[1], "it is told")
    finally:
        os.kill(child, signal.SIGCONT)
    job.wait_synced()
    wait_for(lambda: job.task("forward")["delay_ms"] < 1000 and not job.status()["warnings"], "it is over")


def test_unreachable_source(pair, make_job, proxy_a):
    """What a source may commit that cannot be asked is not known to be applied."""
    pair.a.sql(TABLE)
    job = make_job(pair, a=proxy_a.job_keys(), **FAST).start()
    job.wait_synced()
    wait_for(lambda: 0 <= job.task("forward")["heartbeat_delay_ms"] < 1000, "heartbeats pass")
    proxy_a.refuse = True
    proxy_a.cut()
    wait_for(lambda: job.task("forward")["delay_ms"] > 3000, "the delay grows")
    wait_for(lambda: "does not answer" in job.command("status", job.path)[1], "and why")
    proxy_a.refuse = False
    job.wait_synced()
    wait_for(lambda: job.task("forward")["delay_ms"] < 1000 and not job.status()["warnings"], "it is over")


def test_after_a_restart(pair, make_job):
    """A heartbeat that was on its way when the watcher died counts from when it was written."""
    pair.a.sql(TABLE)
    job = make_job(pair, **FAST).start()
    job.wait_synced()
    wait_for(lambda: 0 <= job.task("forward")["heartbeat_delay_ms"] < 1000, "heartbeats pass")
    with pair.b.connect() as other, other.cursor() as cur:
        cur.execute("LOCK TABLE t IN EXCLUSIVE MODE")
        pair.a.sql("UPDATE t SET v = 'd'")
        wait_for(lambda: job.task("forward")["delay_ms"] > 4000, "the delay grows")
        os.kill(job.processes()["watch"], signal.SIGKILL)
        wait_for(lambda: job.task("forward")["heartbeat_delay_ms"] > 4000, "and goes on to")
        other.rollback()
    job.wait_synced()
    wait_for(lambda: job.task("forward")["delay_ms"] < 1000, "it is over")


def test_job_from_before_heartbeats(pair, make_job):
    """A publication that was made without the table of heartbeats has it from the next session on."""
    pair.a.sql(TABLE)
    job = make_job(pair, **FAST).start()
    job.wait_synced()
    assert job.stop() == 0
    for node, task in zip(pair.nodes, tw.TASKS):
        node.admin(f"ALTER PUBLICATION twsync_{job.name}_{task} DROP TABLE twsync.heartbeat")
    job.start()
    wait_for(lambda: all(0 <= job.task(task)["heartbeat_delay_ms"] < 1000 for task in tw.TASKS), "heartbeats pass")
    job.wait_synced()
