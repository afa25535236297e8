"""Limits per second hold, for the copy and for the streams, and can be changed while the job runs."""

import threading
import time

import psycopg2
import pytest

import compare
import tw
from wait import wait_for

WIDE = "CREATE TABLE wide (id int PRIMARY KEY, v text); INSERT INTO wide SELECT g, repeat('x', 1000) " \
       "FROM generate_series(1, {}) g"


def rate_of(job, column, seconds=3):
    """What a counter of the copy gains per second, once it moves."""
    first = wait_for(lambda: job.task("forward").get(column), "the copy has begun")
    began = time.monotonic()
    wait_for(lambda: time.monotonic() - began > seconds, "a while", seconds + 60)
    last, now = job.task("forward")[column], time.monotonic()
    return (last - first) / (now - began)


@pytest.mark.parametrize("limit, column, rate, unit", [("full.rows", "copy_rows", 2000, 2000),
                                                       ("full.bytes", "copy_bytes", "2MB", 2 * 1024 * 1024)])
def test_copy(pair, make_job, limit, column, rate, unit):
    """No faster than allowed; and as fast as it can once the limit is lifted."""
    pair.a.sql(WIDE.format(60000))
    job = make_job(pair, throttle={limit: rate}, forward={"workers": 3, "chunk_size": "4MB"})
    job.start(wait=())
    assert rate_of(job, column) < unit * 1.1
    assert job.task("forward")["state"] == "Initializing"
    code, out, err = job.command("throttle", job.path, f"{limit}=-1")
    assert code == 0 and "until the job starts again" in out, out + err
    job.wait_state("forward", "Running")
    compare.assert_contents(pair)


def test_locks_are_given_back(pair, make_job):
    """No lock is held on A for longer than a piece takes, though the copy goes on."""
    pair.a.sql(WIDE.format(60000))
    job = make_job(pair, throttle={"full.rows": 3000}, forward={"workers": 1, "chunk_size": "1MB"})
    job.start(wait=())
    wait_for(lambda: job.task("forward").get("copy_rows"), "the copy has begun")
    for _ in range(3):
        pair.a.sql("SET lock_timeout = '5s'; LOCK TABLE wide IN ACCESS EXCLUSIVE MODE")
    assert job.task("forward")["copy_rows"] < 60000
    assert job.command("throttle", job.path, "full.rows=-1")[0] == 0
    job.wait_state("forward", "Running")
    compare.assert_contents(pair)


def test_queries(pair, make_job):
    """Each piece costs the source three queries: of ten a second, three pieces."""
    for n in range(40):
        pair.a.sql(f"CREATE TABLE t{n} (id int PRIMARY KEY); INSERT INTO t{n} VALUES (1)")
    job = make_job(pair, throttle={"full.queries": 15}, forward={"workers": 4})
    job.start(wait=())
    assert rate_of(job, "copy_tables_done") < 5 * 1.1
    assert job.command("throttle", job.path, "full.queries=1000000")[0] == 0
    job.wait_state("forward", "Running")
    compare.assert_contents(pair)


SLEEPING = "SELECT {} FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)' AND state = 'active'"


def sleep(node):
    with pytest.raises(psycopg2.Error):
        node.sql("SELECT pg_sleep(600)")


def test_active_sessions(pair, make_job):
    """While more sessions are active on A than the job allows, no new piece is begun."""
    pair.a.sql(WIDE.format(1000))
    sleepers = [threading.Thread(target=sleep, args=(pair.a,)) for _ in range(3)]
    for thread in sleepers:
        thread.start()
    try:
        wait_for(lambda: pair.a.one(SLEEPING.format("count(*)")) == 3, "they are at work")
        job = make_job(pair, throttle={"full.sessions": 2}).start(wait=())
        wait_for(lambda: "sessions are active on a" in job.log_text(), "it waits")
        assert job.task("forward")["copy_rows"] == 0
    finally:
        pair.a.admin(SLEEPING.format("pg_terminate_backend(pid)"))
        for thread in sleepers:
            thread.join()
    job.wait_state("forward", "Running")
    compare.assert_contents(pair)


LIMITS = {"forward.rows": 500, "increments.rows": 500, "forward.bytes": "60kB", "increments.bytes": "60kB"}


@pytest.mark.parametrize("limit", LIMITS)
def test_increments(pair, make_job, limit):
    """Of a backlog no more is applied per second than allowed, in one transaction as in many."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY)")
    job = make_job(pair, throttle={limit: LIMITS[limit]}).start()
    job.wait_synced()
    job.stop()
    pair.a.sql("INSERT INTO t SELECT g, repeat('x', 100) FROM generate_series(1, 1000) g")
    for n in range(1000, 6000, 10):
        pair.a.sql("INSERT INTO t SELECT g, repeat('y', 100) FROM generate_series(%s + 1, %s + 10) g", (n, n))
    began = time.monotonic()
    job.start()
    pair.b.sql("INSERT INTO u SELECT generate_series(1, 200)")
    wait_for(lambda: pair.a.one("SELECT count(*) FROM u") == 200, "rows of b")
    wait_for(lambda: time.monotonic() - began > 4, "a while", 60)
    assert 0 < pair.b.one("SELECT count(*) FROM t") < 600 * (time.monotonic() - began) + 100
    assert job.command("throttle", job.path, f"{limit}=-1")[0] == 0
    job.wait_synced()
    compare.assert_same(pair)


def test_command(pair, make_job):
    """It lists what is in effect, refuses what it cannot do, and only the running job can be changed."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY)")
    job = make_job(pair, throttle={"full.rows": 123, "reverse.bytes": "1GB"})
    code, out, _ = job.command("throttle", job.path)
    assert code == 0 and "123" in out and "1GB" in out and "forward.rows" in out
    assert job.command("throttle", job.path, "full.rows=5")[0] == 2
    job.start()
    for wrong in ("full.rows=0", "full.rows", "full.row=5", "full.bytes=5", "full.rows=5x", "full.rows=-2", "=5"):
        code, _, err = job.command("throttle", job.path, wrong)
        assert code == 2 and "twsync: " in err or "error" in err, (wrong, err)
    code, out, _ = job.command("throttle", job.path, "full.rows=77", "increments.bytes=5MB")
    assert code == 0 and "77" in out and "5MB" in out
    code, out, _ = job.command("show", job.path)
    assert "full.rows = 123" in out


@pytest.mark.parametrize("line", ["full.rows = 0", "full.rows = fast", "full.bytes = 100", "rows = 5",
                                  "increments.rows = -2"])
def test_wrong(pair, make_job, line):
    key, _, value = line.partition(" = ")
    job = make_job(pair, throttle={key: value})
    code, _, err = tw.run("show", job.path)
    assert code == 2 and key in err, err
