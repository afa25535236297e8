"""Numbered regression tests: each was a defect once, or still is one."""

import contextlib
import os
import shutil
import signal
import subprocess
import time

import pytest

import compare
import pg
import proxy
import tw
from test_09_restart import workload
from wait import Pulse, wait_for


# ---- faults

def carried_or_failed(job, task):
    """Waits until all is carried, or the task says that it cannot go on; a silent gap is neither."""
    end = job.pair.source(task).lsn()

    def settled():
        assert job.alive() or job.process.returncode != tw.OK
        if not job.alive() or job.task(task).get("state") == "Failed":
            return "failed"
        return "carried" if job.applied(task) >= end else None
    if wait_for(settled, f"{task} carries all or is Failed") == "carried":
        compare.assert_contents(job.pair)


@pytest.mark.rung("marker")
@pytest.mark.parametrize("task", tw.TASKS)
def test_f1_progress_row_gone(pair, make_job, task):
    """The progress row disappears while twsync is stopped: never a new slot over the gap."""
    workload(pair)
    job = make_job(pair).start()
    job.wait_synced()
    assert job.stop() == tw.OK
    pair.target(task).admin("DELETE FROM twsync.progress WHERE task = %s", (f"{job.name}/{task}",))
    for n in range(2):          # a second start must not heal what the first refused
        pair.source(task).sql("INSERT INTO keyless VALUES ('gap', %s)", (n,))
        job.start(wait=())
        carried_or_failed(job, task)
        job.clean_up()


@pytest.mark.rung("marker")
@pytest.mark.parametrize("existing", ["error", "keep"])
@pytest.mark.parametrize("gone", ["DELETE FROM twsync.progress", "DROP SCHEMA twsync CASCADE"])
def test_f2_progress_gone_while_running(pair, make_job, gone, existing):
    """The same while the task lives, which connects again and must not begin anew."""
    workload(pair)
    job = make_job(pair, objects={"existing": existing}).start()
    job.wait_synced()
    conn = pair.b.connect(autocommit=False, user="postgres")
    with contextlib.closing(conn), conn, conn.cursor() as cur:
        cur.execute(gone)
        pair.a.sql("UPDATE counter SET n = n + 1 WHERE side = 'a'")
        pair.a.sql("INSERT INTO keyless VALUES ('gap', 1)")
        cur.execute("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE %s",
                    (f"twsync:{job.name}:forward%",))

    def settled():
        return (job.task("forward").get("state") == "Failed"
                or job.task("forward").get("restarts") and job.task("forward").get("state") == "Running")
    wait_for(settled, "forward ends or goes on")
    if job.task("forward")["state"] == "Running":
        job.wait_synced(["forward"])
        compare.assert_contents(pair)


@pytest.mark.parametrize("how", ["open transaction", "killed"])
def test_f3_table_made_during_initialising(pair, make_job, how):
    """A table that appears after the publication was made is published too, or left out altogether."""
    workload(pair)
    job = make_job(pair)
    if how == "killed":
        job.start(wait=(), TWSYNC_FAULT="task.slot.created:1:kill")
        wait_for(lambda: pair.a.admin("SELECT 1 FROM pg_publication"), "the publication")
        job.kill()
        pair.a.sql("CREATE TABLE late (id int PRIMARY KEY)")
    else:
        with pair.a.transaction() as cur:
            cur.execute("CREATE TABLE late (id int PRIMARY KEY)")
            job.start(wait=())
            wait_for(lambda: "waiting for transactions" in job.log_text(), "the slot waits")
    if not job.alive():
        job.start(wait=())
    for task in tw.TASKS:
        job.wait_state(task, "Running")
    if pair.b.one("SELECT to_regclass('public.late') IS NOT NULL"):
        pair.a.sql("INSERT INTO late VALUES (1)")
        job.wait_synced()
        compare.assert_contents(pair)


def test_f4_copy_resumed_with_foreign_key(pair, make_job, proxy_a):
    """Tables copied under two snapshots: the foreign key holds only once the stream has passed both."""
    pair.a.sql("CREATE TABLE parent (id int PRIMARY KEY, v text)")
    pair.a.sql("CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent (id))")
    pair.a.sql("INSERT INTO parent SELECT g, repeat('x', 500) FROM generate_series(1, 10000) g")  # the larger goes first
    pair.a.sql("INSERT INTO child SELECT g, g FROM generate_series(1, 100) g")
    proxy_a.hold_after = 2 << 20        # in the middle of the 5 MB of parent
    job = make_job(pair, a=proxy_a.job_keys(), forward={"workers": 1}).start(wait=())
    wait_for(proxy_a.held, "parent is being copied")
    with pair.b.transaction() as cur:
        cur.execute("LOCK TABLE child IN EXCLUSIVE MODE")
        proxy_a.release()
        wait_for(lambda: pair.b.admin("SELECT 1 FROM twsync.copied WHERE table_name = 'parent'"), "parent is copied")
        job.kill()
    wait_for(lambda: not pair.b.admin("SELECT 1 FROM pg_stat_activity WHERE application_name LIKE %s",
                                      (f"twsync:{job.name}:%",)), "its sessions end")
    assert pair.b.admin("SELECT DISTINCT table_name FROM twsync.copied") == [("parent",)]
    pair.a.sql("INSERT INTO parent VALUES (20000, 'late')")
    pair.a.sql("INSERT INTO child VALUES (500, 20000)")
    job.start()
    job.wait_synced()
    compare.assert_same(pair)


@pytest.mark.rung("marker")
@pytest.mark.parametrize("task", [0, 1])
def test_f5_one_task_terminated(pair, make_job, task):
    """SIGTERM for one task's process only is no wish to stop the job: it is started again."""
    workload(pair)
    job = make_job(pair).start()
    job.wait_synced()
    os.kill(sorted(job.children())[task], signal.SIGTERM)
    pair.a.sql("INSERT INTO keyless VALUES ('a', 1)")
    pair.b.sql("INSERT INTO keyless VALUES ('b', 1)")
    compare.wait_contents(pair)
    for name in tw.TASKS:
        job.wait_state(name, "Running")


@pytest.mark.rung("marker")
def test_f6_short_sender_timeout(make_server, make_job):
    """wal_sender_timeout = 1s while the target's lock holds the apply: the source is kept content."""
    servers = [make_server("short", {"wal_sender_timeout": "1s"}, template=n) for n in (0, 1)]
    pair = pg.make_pair(*servers, "short", "marker")
    workload(pair)
    job, restarts = make_job(pair), [0, 0]
    for n in range(3):
        with Pulse() as pulse:          # all the time between two looks at the restarts
            if n == 0:
                job.start()
            job.wait_synced()
            with pair.b.transaction() as cur:
                cur.execute("LOCK TABLE keyless IN ACCESS EXCLUSIVE MODE")
                pair.a.sql("INSERT INTO keyless VALUES ('a', 1)")
                cur.execute("SELECT pg_sleep(6)")
            job.wait_synced()
            before, restarts = restarts, [t["restarts"] for t in job.status()["tasks"]]
        if restarts == before:
            break
        assert pulse.worst > 0.2, job.log_tail(8)
    else:
        pytest.skip("this machine lets processes stand too long to answer within a second")
    job.clean_up()
    for server in servers:
        server.stop("immediate")


@pytest.mark.rung("marker")
@pytest.mark.parametrize("side", [0, 1])
def test_f7_silent_peer(pair, make_job, side):
    """A peer that says nothing any more, though its TCP lives, is given up within half a minute."""
    workload(pair)
    proxies = [proxy.Proxy(node.server.port) for node in pair.nodes]
    job = make_job(pair, a=proxies[0].job_keys(), b=proxies[1].job_keys()).start()
    try:
        job.wait_synced()
        proxies[side].hold()
        wait_for(lambda: "Retrying" in [t["state"] for t in job.status()["tasks"]], "the silence is noticed", 60, 0.5)
        proxies[side].release()
        proxies[side].cut()
        for task in tw.TASKS:
            job.wait_state(task, "Running")
        job.wait_synced()
    finally:
        job.clean_up()
        for p in proxies:
            p.close()


@pytest.mark.rung("marker")
def test_f8_source_restored(make_server, make_job):
    """A is put back to an older copy of its files and written again: refused, never streamed over."""
    servers = make_server("resta"), make_server("restb", template=1)
    pair = pg.make_pair(*servers, "rest", "marker")
    workload(pair)
    job = make_job(pair).start()
    job.wait_synced()
    assert job.stop() == tw.OK
    a = servers[0]
    a.stop()
    subprocess.run(["cp", "-a", a.data, a.data + ".old"], check=True)
    a.start()
    job.start()
    pair.a.sql("INSERT INTO keyless VALUES ('lost history', 1)")
    job.wait_synced()
    assert job.stop() == tw.OK
    a.stop()
    shutil.rmtree(a.data)
    os.rename(a.data + ".old", a.data)
    a.start()
    pair.a.sql("INSERT INTO keyed SELECT g, repeat('x', 500) FROM generate_series(1, 5000) g")
    job.start(wait=())
    wait_for(lambda: not job.alive() or job.task("forward").get("state") in ("Failed", "Running"), "an answer")
    state = job.task("forward").get("state")
    job.clean_up()
    for server in servers:
        server.stop("immediate")
    assert state == "Failed"


@pytest.mark.rung("marker")
def test_f9_source_stops_while_target_waits(own_pair, make_job):
    """A fast shutdown of the source does not wait for a target that is blocked by a lock."""
    pair = own_pair
    workload(pair)
    job = make_job(pair).start()
    job.wait_synced()
    with pair.b.transaction() as cur:
        cur.execute("LOCK TABLE keyless IN ACCESS EXCLUSIVE MODE")
        pair.a.sql("INSERT INTO keyless VALUES ('a', 1)")
        wait_for(lambda: pair.b.admin("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name LIKE 'twsync:%%'"),
                 "the apply waits")
        begun = time.monotonic()
        pair.a.server.stop("fast")
        assert time.monotonic() - begun < 60     # it would wait for as long as the lock is held
    pair.a.server.start()
    for task in tw.TASKS:
        job.wait_state(task, "Running")
    job.wait_synced()
    compare.assert_contents(pair)
