"""Servers of other major versions than the one that the rest of the suite runs on, also two that differ."""

import pytest

import compare
import tw
import writers
from test_05_copy import SCHEMAS, load_everything
from values import random_text
from wait import wait_for

pytestmark = pytest.mark.parametrize("version", [(17, 17), (18, 18), (13, 13), (13, 17), (17, 15), (15, 18)])


def same_major(pair):
    return pair.a.server.major == pair.b.server.major


@pytest.mark.rung("marker")
def test_the_versions(pair, version):
    """The servers are what their names say."""
    assert tuple(node.server.version() // 10000 for node in pair.nodes) == version


def test_everything(pair, make_job, rng):
    """A job's whole life: a schema with every type, the copy, changes of both sides at once, and nothing left behind."""
    load_everything(pair.a)
    job = make_job(pair, SCHEMAS).start()
    compare.assert_contents(pair)
    if same_major(pair):        # pg_dump words one schema in more than one way where the servers' versions differ
        compare.assert_schema(pair)
    works = [writers.Writer(node, writers.Everything(node, rng), 300) for node in pair.nodes]
    with writers.writing(*works):
        wait_for(lambda: all(w.acknowledged > 200 or w.error for w in works), "200 transactions on each side", 300)
    job.wait_synced()
    compare.assert_contents(pair)
    for task in tw.TASKS:       # where a foreign key cascades on both sides, one of them comes second
        assert {conflict["kind"] for conflict in job.conflicts(task)} <= {"delete_missing"}
        assert job.task(task)["restarts"] == 0
    assert job.stop() == 0
    code, out, err = job.release()
    assert code == 0, (out, err)
    compare.assert_untouched(pair, job.name)


def finish(job):
    """All is carried, without conflict and without a second try."""
    job.wait_synced()
    compare.assert_contents(job.pair)
    for task in tw.TASKS:
        status = job.task(task)
        assert (status["conflicts"], status["restarts"]) == (0, 0), status


@pytest.fixture
def job(pair, make_job):
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, n int, big text); CREATE TABLE ring (id int PRIMARY KEY, v text UNIQUE); "
               "CREATE TABLE p (id int, at int, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at); "
               "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); "
               "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20); "
               "INSERT INTO p SELECT g, g % 20, 'v' FROM generate_series(1, 100) g")
    pair.a.sql("INSERT INTO t SELECT g, g, CASE WHEN g < 5 THEN %s END FROM generate_series(1, 100) g",
               (random_text(1, 20000),))
    return make_job(pair).start()


def test_kinds_of_changes(pair, job):
    """What the stream has a message of its own for, from both sides in turn."""
    for n, node in enumerate(pair.nodes):
        node.sql("UPDATE t SET n = n + 1")                          # large values stay where they are
        node.sql("UPDATE t SET id = id + 1000 WHERE id %% 10 = %s", (n,))
        node.sql("DELETE FROM t WHERE id %% 10 = %s", (n + 2,))
        node.sql("UPDATE p SET at = 19 - at, v = 'moved' WHERE id %% 3 = %s", (n,))
        node.sql("INSERT INTO t SELECT g, 0, repeat('x', 3000) FROM generate_series(%s, %s) g",
                 (20000 + n * 10000, 20900 + n * 10000))
        with node.transaction() as cur:                             # a part of it is undone
            cur.execute("INSERT INTO ring SELECT g, g::text FROM generate_series(%s, %s) g", (n * 10 + 1, n * 10 + 5))
            cur.execute("SAVEPOINT s; DELETE FROM ring; ROLLBACK TO s; UPDATE ring SET v = v || 'x'")
        job.wait_synced()
    for node, table in zip(pair.nodes, ("p1", "ring")):
        node.sql(f"TRUNCATE {table}")
        job.wait_synced()
        assert [other.one(f"SELECT count(*) FROM {table}") for other in pair.nodes] == [0, 0]
    finish(job)


@pytest.mark.rung("marker")
def test_new_column(pair, job):
    pair.a.sql("ALTER TABLE t ADD COLUMN c numeric(10,2) DEFAULT 1.5 NOT NULL; UPDATE t SET c = id WHERE id < 10")
    job.wait_synced()
    pair.b.sql("UPDATE t SET c = 7 WHERE id > 90")
    finish(job)


@pytest.mark.rung("origin")
def test_killed(pair, job):
    """It goes on where it stood, whichever side's server keeps the place."""
    for n, node in enumerate(pair.nodes * 2):
        job.kill()
        node.sql("UPDATE t SET n = n + 1 WHERE id % 2 = " + "01"[n % 2])    # what the other side leaves alone
        job.start()
        node.sql("INSERT INTO t VALUES (%s)", (5000 + n,))
    job.wait_synced()
    compare.assert_contents(pair)
    assert [job.task(task)["conflicts"] for task in tw.TASKS] == [0, 0]


@pytest.mark.rung("marker")
def test_servers_restart(own_pair, make_job):
    """Servers of every version can crash and come again, in their place."""
    own_pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v text)")
    job = make_job(own_pair).start()
    for n, node in enumerate(own_pair.nodes):
        node.sql("INSERT INTO t VALUES (%s, 'before')", (2 * n,))
        node.server.restart("immediate")
        node.sql("INSERT INTO t VALUES (%s, 'after')", (2 * n + 1,))
    job.wait_synced()
    compare.assert_contents(own_pair)
    assert own_pair.b.one("SELECT count(*) FROM t") == 4
