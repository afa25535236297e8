"""Differences without a dispute: both sides came to the same values, and cascades of the target's own keys."""

import pytest

import compare
import tw

SCHEMA = """
CREATE TABLE parent (id int PRIMARY KEY, v text);
CREATE TABLE child (id int PRIMARY KEY, up int REFERENCES parent ON UPDATE CASCADE ON DELETE CASCADE, v text);
CREATE TABLE loose (id int PRIMARY KEY, up int REFERENCES parent ON UPDATE CASCADE ON DELETE SET NULL);
INSERT INTO parent SELECT g, 'p' || g FROM generate_series(1, 5) g;
INSERT INTO child SELECT g, g, 'c' || g FROM generate_series(1, 5) g;
INSERT INTO loose SELECT g, g FROM generate_series(1, 5) g;
"""


def test_cascades_do_not_stop(pair, make_job):
    """Without the right to rest foreign keys the target cascades by itself: never a reason to fail."""
    pair.a.sql(SCHEMA)
    job = make_job(pair).start()
    with pair.a.transaction() as cur:
        cur.execute("UPDATE parent SET id = 10 WHERE id = 1")
        cur.execute("DELETE FROM parent WHERE id = 2")
    with pair.b.transaction() as cur:
        cur.execute("UPDATE parent SET id = 30 WHERE id = 3")
        cur.execute("DELETE FROM parent WHERE id = 4")
    job.wait_synced()
    for task in tw.TASKS:
        assert job.task(task)["state"] == "Running", job.status()
        assert {c["outcome"] for c in job.conflicts(task)} <= {"equal", "ignored"}
    compare.assert_same(pair)
    assert pair.b.sql("SELECT id, up FROM child ORDER BY id") == [(1, 10), (3, 30), (5, 5)]
    assert pair.b.sql("SELECT id, up FROM loose ORDER BY id") == [(1, 10), (2, None), (3, 30), (4, None), (5, 5)]


@pytest.mark.rung("marker")
def test_same_change_on_both_sides(pair, make_job):
    """The same update on both sides is recorded, since it may be a lost count, and stops nothing."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, n int, v text); INSERT INTO t VALUES (1, 5, 'x')")
    job = make_job(pair).start()
    job.stop()
    pair.both("UPDATE t SET n = n + 1 WHERE id = 1")
    pair.a.sql("UPDATE t SET v = 'y' WHERE id = 1")
    job.start()
    job.wait_synced()
    compare.assert_same(pair)
    assert pair.b.sql("SELECT * FROM t") == [(1, 6, "y")]
    assert [(c["kind"], c["outcome"]) for c in job.conflicts("forward")] == [("update_differs", "equal")]
