"""Defects of the bulk path that were found, and what it promises of memory."""

import contextlib

import pytest

import pg
import proxy
import tw
from wait import wait_for


def staging_tables(pair):
    return pair.b.one("SELECT count(*) FROM pg_class WHERE relpersistence = 't' AND relkind = 'r'")


@pytest.mark.rung("origin")
def test_g1_staging_tables_go(pair, make_job):
    """A relation is described anew after each ALTER or ANALYZE: its staging tables must not pile up."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT g, 0 FROM generate_series(1, 500) g")
    job = make_job(pair, reverse={"enabled": False}).start(wait=("forward",))
    for n in range(8):
        pair.a.sql(f"ALTER TABLE t SET (fillfactor = {90 + n})")
        pair.a.sql("UPDATE t SET v = v + 1")
        wait_for(lambda: pair.b.one("SELECT min(v) FROM t") == n + 1, "the update on b")
        assert job.task("forward")["conflicts"] == 0
    wait_for(lambda: staging_tables(pair) <= 1, "old staging tables are gone")
    assert staging_tables(pair) == 1        # and the updates did go through one


def high_water(job):
    """The most memory that any process of the job has had, in bytes."""
    most = 0
    for pid in [job.process.pid, *job.children()]:
        with open(f"/proc/{pid}/status") as f:
            most = max([most] + [int(line.split()[1]) * 1024 for line in f if line.startswith("VmHWM")])
    return most


@pytest.mark.rung("origin")
def test_g2_memory_of_a_large_transaction(pair, make_job):
    """One transaction of many rows is applied as it arrives: memory does not grow with it."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v text, n int)")
    job = make_job(pair, reverse={"enabled": False}).start(wait=("forward",))
    pair.a.sql("INSERT INTO t SELECT g, 'some text of row ' || g, 0 FROM generate_series(1, 400000) g")
    job.wait_synced(tasks=("forward",))
    pair.a.sql("UPDATE t SET n = 1")
    job.wait_synced(tasks=("forward",))
    assert pair.b.one("SELECT count(*) FROM t WHERE n = 1") == 400000
    if "debug" not in tw.BINARY:            # the sanitizers need memory of their own
        assert high_water(job) < 64 * 1024 * 1024


@pytest.mark.rung("marker")
def test_g3_moved_rows_of_any_length(pair, make_job):
    """The list of moved rows was sent from where it had been before it grew by its last byte."""
    pair.a.sql("CREATE TABLE t (k text PRIMARY KEY, n int); INSERT INTO t SELECT 'k', 0")
    job = make_job(pair).start()
    for n in range(100, 125):       # texts of every length, odd and even, around where the list grows
        for letter in "xy":
            pair.a.sql("UPDATE t SET k = repeat(%s, %s)", (letter, n))
            job.wait_synced(tasks=("forward",))
    assert pair.b.one("SELECT count(*) FROM twsync.moved") == 50
    assert pair.b.one("SELECT length(k) FROM t") == 124
    assert job.task("forward")["restarts"] == 0


@pytest.mark.rung("marker")
def test_g4_what_came_while_the_target_was_asked(pair, make_job):
    """A row that came while the target was asked how far its disk is lay there until the next message of
    the source, or half a second.  Waiting with rows at hand is a failed assertion now: no restart, no such wait."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY)")
    to_b = proxy.Proxy(pair.b.server.port)
    job = make_job(pair, b=to_b.job_keys(), reverse={"enabled": False}).start(wait=("forward",))
    slot = f"twsync_{job.name}_forward"
    try:
        for n in range(0, 20, 2):
            pair.a.sql("INSERT INTO t VALUES (%s)", (n,))
            wait_for(lambda: pair.b.one("SELECT max(id) FROM t") == n, "the first row")
            to_b.hold()     # the question is asked within a fifth of a second, and its answer does not come
            pair.a.sql("SELECT pg_sleep(0.25); INSERT INTO t VALUES (%s)", (n + 1,))
            end = pair.a.lsn()
            wait_for(lambda: pair.a.admin(
                "SELECT sent_lsn >= %s::pg_lsn FROM pg_stat_replication JOIN pg_replication_slots ON active_pid = pid "
                "WHERE slot_name = %s", (pg.lsn_text(end), slot)) == [(True,)], "the second row was sent")
            to_b.release()
            wait_for(lambda: pair.b.one("SELECT max(id) FROM t") == n + 1, "the second row")
        assert job.task("forward")["restarts"] == 0, job.log_tail(8)
    finally:
        job.clean_up()
        to_b.close()


@pytest.mark.rung("origin")
def test_g5_deadlock_closed_by_the_application(pair, make_job):
    """A session looks for a deadlock once.  Ours had looked, and found none, before the application closed the
    circle: it was the application that was ended."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE u (id int PRIMARY KEY, v int); "
               "INSERT INTO t VALUES (1, 0); INSERT INTO u VALUES (1, 0)")
    job = make_job(pair).start()
    job.wait_synced()
    with contextlib.closing(pair.a.server.connect(pair.a.dbname, "postgres")) as conn, conn.cursor() as cur:
        cur.execute("SET deadlock_timeout = '10s'")
        for n in range(1, 4):
            cur.execute("BEGIN; LOCK TABLE u")
            pair.b.sql("UPDATE t SET v = v + 1; UPDATE u SET v = v + 1")
            wait_for(lambda: pair.a.admin(
                "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE %s AND wait_event_type = 'Lock' AND "
                "clock_timestamp() - query_start > '0.5s'", (f"twsync:{job.name}:reverse:apply%",)),
                "it waits, and has looked for a deadlock")
            cur.execute("LOCK TABLE t; COMMIT")
            job.wait_synced()
            assert pair.a.one("SELECT t.v * 10 + u.v FROM t, u") == 11 * n
    assert job.task("reverse")["restarts"] == 0 and "gives way" in job.log_text()
