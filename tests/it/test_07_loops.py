"""No loop: a row written on one side appears once on the other, and then there is silence."""

import contextlib
import time

import pytest

import compare
import tw
from wait import wait_for


@contextlib.contextmanager
def observed(node):
    """Counts the row changes of a database itself, through a slot of its own: yields a function."""
    slot = f"watch_{node.dbname}"
    node.admin("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", (slot,))
    try:
        yield lambda: node.admin("SELECT count(*) FROM pg_logical_slot_peek_changes(%s, NULL, NULL) "
                                 "WHERE data LIKE 'table %%' AND data NOT LIKE 'table twsync.%%'", (slot,))[0][0]
    finally:
        node.admin("SELECT pg_drop_replication_slot(%s)", (slot,))


def growth(pair, seconds):
    """WAL bytes and transactions of each server during some seconds, and how many these really were."""
    query = "SELECT pg_current_wal_insert_lsn() - '0/0', txid_snapshot_xmax(txid_current_snapshot())"
    begun = time.monotonic()
    before = [node.admin(query)[0] for node in pair.nodes]
    pair.a.admin("SELECT pg_sleep(%s)", (seconds,))
    after = [node.admin(query)[0] for node in pair.nodes]
    return [(int(y[0] - x[0]), y[1] - x[1]) for x, y in zip(before, after)], time.monotonic() - begun


# The heartbeat of jobs whose idleness is measured.
BEAT = {"heartbeat": "1s"}


def assert_idle(pair, seconds=10):
    """Neither side writes more than is meant: with each heartbeat (1 s) its row and the progress, every other
    second the lease; a few hundred bytes each.

    A page written for the first time after a checkpoint goes to the WAL whole, so a checkpoint is made
    first and some pages are granted; the idle server's own snapshot records are small.
    """
    for node in pair.nodes:
        node.admin("CHECKPOINT")
    grown, seconds = growth(pair, seconds)
    beats = seconds + 2
    for node, (written, transactions) in zip(pair.nodes, grown):
        assert transactions <= 3 * beats, f"node {node.letter}: {transactions} transactions while idle"
        assert written <= 3 * beats * 600 + 6 * 8192, f"node {node.letter}: {written} bytes of WAL while idle"


def test_no_echo(pair, make_job):
    """N rows written on A: N changes on A, N on B, nothing comes back; the same for B."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v text)")
    pair.a.sql("CREATE TABLE log (v text)")
    pair.a.sql("INSERT INTO t SELECT g, 'copied' FROM generate_series(1, 500) g")
    job = make_job(pair).start()
    with observed(pair.a) as changes_a, observed(pair.b) as changes_b:
        pair.a.sql("INSERT INTO t SELECT g, 'a' FROM generate_series(1000, 1099) g")
        pair.a.sql("UPDATE t SET v = 'x' WHERE id < 11")
        pair.a.sql("INSERT INTO log SELECT 'a' FROM generate_series(1, 7)")
        pair.b.sql("INSERT INTO t SELECT g, 'b' FROM generate_series(2000, 2049) g")
        pair.b.sql("DELETE FROM t WHERE id = 400")
        pair.b.sql("INSERT INTO log VALUES ('b')")
        job.wait_synced()
        job.wait_synced()       # whatever an echo had written would have come by now
        # A commit of twsync does not wait for the disk, and a slot sees what is on the disk.
        wait_for(lambda: changes_a() >= 117 + 52 <= changes_b(), "all changes on both disks")
        assert changes_a() == changes_b() == 117 + 52
    rows = {task: job.task(task)["rows"] for task in tw.TASKS}
    assert rows == {"forward": 117, "reverse": 52}
    assert job.task("forward")["skipped_transactions"] + job.task("reverse")["skipped_transactions"] >= 0
    compare.assert_same(pair)


def test_marks_are_dropped_whole(pair, make_job):
    """What forward applied is seen and dropped by reverse (or already filtered by the server)."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY)")
    job = make_job(pair).start()
    for n in range(20):
        pair.a.sql("INSERT INTO t VALUES (%s)", (n,))
    job.wait_synced()
    if pair.rung == "marker":
        wait_for(lambda: job.task("reverse")["skipped_transactions"] > 0, "reverse drops marked transactions")
    assert job.task("reverse")["rows"] == 0


def test_the_mark_cannot_be_forged(pair, make_job):
    """A message or a table of anybody's does not hide changes; the marker is nobody else's to write."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY)")
    job = make_job(pair).start()
    with pair.a.transaction() as cur:
        cur.execute("SELECT pg_logical_emit_message(true, 'twsync', %s)", (f"{job.name}/reverse",))
        cur.execute("INSERT INTO t VALUES (1)")
    job.wait_synced()
    assert pair.b.sql("SELECT id FROM t") == [(1,)]
    for node in pair.nodes:
        rights = node.admin("SELECT count(*) FROM information_schema.table_privileges "
                            "WHERE table_schema = 'twsync' AND grantee NOT IN (%s, 'postgres')", (node.role,))
        assert rights == [(0,)]
        assert not node.one("SELECT has_schema_privilege('tw_plain', 'twsync', 'USAGE')")


def test_copy_is_not_echoed(pair, make_job):
    """The rows of the full copy are marked too."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v text)")
    pair.a.sql("INSERT INTO t SELECT g, 'v' FROM generate_series(1, 50000) g")
    with observed(pair.a) as changes_a:
        job = make_job(pair).start()
        pair.b.sql("UPDATE t SET v = 'w' WHERE id = 1")
        job.wait_synced()
        wait_for(changes_a, "the change on A's disk")
        assert changes_a() == 1
    assert job.task("reverse")["rows"] == 1


def test_idle_is_idle(pair, make_job):
    """After writes on both sides stop, both servers rest."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v text)")
    job = make_job(pair, slots=BEAT).start()
    for n in range(100):
        pair.nodes[n % 2].sql("INSERT INTO t VALUES (%s, 'v')", (n,))
    job.wait_synced()
    before = {task: job.task(task)["rows"] for task in tw.TASKS}
    assert_idle(pair)
    assert {task: job.task(task)["rows"] for task in tw.TASKS} == before == {"forward": 50, "reverse": 50}
    assert all(job.task(task)["state"] == "Running" and job.task(task)["delay_ms"] < 5000 for task in tw.TASKS)


@pytest.mark.rung("origin")
def test_origin_is_set(pair, make_job):
    """On the origin rung what is applied carries the origin, for other tools to filter by; our own rows do not."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY)")
    job = make_job(pair).start()
    slot = f"watch_{pair.b.dbname}"
    pair.b.admin("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", (slot,))
    pair.a.sql("INSERT INTO t VALUES (1)")
    job.wait_synced()
    changes = pair.b.admin("SELECT count(*) FROM pg_logical_slot_peek_changes(%s, NULL, NULL, 'only-local', 'on') "
                           "WHERE data LIKE 'table %%' AND data !~ '^table twsync.(heartbeat|lease):'", (slot,))
    assert changes == [(0,)]
    pair.b.admin("SELECT pg_drop_replication_slot(%s)", (slot,))
    assert pair.b.admin("SELECT count(*) FROM pg_replication_origin WHERE roname = %s",
                        (f"twsync_{job.name}_forward",)) == [(1,)]
