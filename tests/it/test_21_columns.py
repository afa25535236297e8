"""Columns added on A are added on B, in their place between the rows, on any server and without any right beyond owning
the tables: the stream describes a table anew before its next row.  With event triggers (rung origin) more is carried:
test 22."""

import pytest

import compare
import tw
from wait import wait_for

ONE_WAY = {"reverse": {"enabled": False}}


def columns(node, table):
    return node.sql("SELECT attname::text, format_type(atttypid, atttypmod), attnotnull, pg_get_expr(adbin, adrelid) "
                    "FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum "
                    "WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY 1", (table,))


@pytest.fixture
def job(pair, make_job):
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'old' FROM generate_series(1, 50) g")
    pair.a.sql("CREATE TABLE p (id int, at int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at); "
               "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); "
               "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20); INSERT INTO p VALUES (1, 1), (2, 12)")
    return make_job(pair).start()


ADDED = ["n int", "n numeric(10,2) DEFAULT 1.50 NOT NULL", "\"o'dd \"\"name\" varchar(20) COLLATE \"C\" DEFAULT 'it''s'",
         "n int[] DEFAULT '{1,2}'", "at timestamptz DEFAULT now() NOT NULL", "n text DEFAULT NULL",
         "n text DEFAULT 'a \"quoted\", \\ text'", "n jsonb NOT NULL DEFAULT '{\"a\": [1, 2]}'"]


@pytest.mark.parametrize("added", ADDED)
def test_added(pair, job, added):
    """With its type, default and what older rows hold; in both directions rows have it from then on."""
    pair.a.sql(f"ALTER TABLE t ADD COLUMN {added}")
    pair.a.sql("UPDATE t SET v = 'new' WHERE id < 10; INSERT INTO t (id, v) VALUES (100, 'after')")
    job.wait_synced()
    pair.b.sql("INSERT INTO t (id, v) VALUES (200, 'of b'); UPDATE t SET v = 'b' WHERE id = 20")
    job.wait_synced()
    assert columns(pair.a, "t") == columns(pair.b, "t")
    compare.assert_contents(pair)
    assert job.task("forward")["restarts"] == job.task("reverse")["restarts"] == 0
    assert all(job.task(task)["conflicts"] == 0 for task in tw.TASKS)


def test_in_one_transaction(pair, job):
    """Rows, column, rows, column, rows: one transaction on A, one on B."""
    pair.a.sql("BEGIN; INSERT INTO t VALUES (60, 'x'); ALTER TABLE t ADD COLUMN a int; UPDATE t SET a = id; "
               "ALTER TABLE t ADD COLUMN b text DEFAULT 'b'; UPDATE t SET b = b || a WHERE id % 2 = 0; "
               "ALTER TABLE p ADD COLUMN c int DEFAULT 5; INSERT INTO p VALUES (3, 3, 3), (4, 14, DEFAULT); COMMIT")
    job.wait_synced()
    assert columns(pair.a, "t") == columns(pair.b, "t") and columns(pair.a, "p2") == columns(pair.b, "p2")
    compare.assert_contents(pair)


def test_partitions(pair, job):
    """The parent's new column is added to the parent, whichever partition brings it first."""
    pair.a.sql("ALTER TABLE p ADD COLUMN c text DEFAULT 'c'; INSERT INTO p VALUES (9, 15, 'd')")
    job.wait_synced()
    assert columns(pair.a, "p") == columns(pair.b, "p")
    compare.assert_contents(pair)


@pytest.mark.rung("marker")
def test_own_values(pair, job):
    """Where each older row got a value of its own, that is told: these rows differ."""
    pair.a.sql("ALTER TABLE t ADD COLUMN r float8 DEFAULT random(); INSERT INTO t (id) VALUES (70)")
    job.wait_synced()
    wait_for(lambda: 'values of their own in the new column "r"' in job.log_text(), "the warning")
    assert columns(pair.a, "t") == columns(pair.b, "t")


@pytest.mark.rung("marker")
def test_not_null_without_a_value(pair, job):
    """NOT NULL waits where rows may lack a value still; `twsync schema` has it."""
    pair.a.sql("ALTER TABLE t ADD COLUMN n int; UPDATE t SET n = 1; ALTER TABLE t ALTER n SET NOT NULL")
    job.wait_synced()
    compare.assert_contents(pair)
    code, out, err = job.command("schema", job.path, "--apply")
    assert code == 0 and "SET NOT NULL" in out, (code, out, err)
    assert columns(pair.a, "t") == columns(pair.b, "t")


@pytest.mark.rung("marker")
@pytest.mark.parametrize("column", ["v", "w"])
def test_renamed(pair, make_job, column):
    """A column with a new name is not a new column: its older values would be lost.  The task waits, and says for what."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v text, w text); INSERT INTO t VALUES (1, 'old', 'older')")
    job = make_job(pair).start()
    pair.a.sql(f"ALTER TABLE t RENAME {column} TO renamed; UPDATE t SET renamed = 'new'; INSERT INTO t VALUES (2, 'x', 'y')")
    wait_for(lambda: 'column "renamed"' in job.task("forward")["last_error"], "the error")
    wait_for(lambda: f'b has a column "{column}" there' in job.log_text(), "the hint")
    assert [c[0] for c in columns(pair.b, "t")] == ["id", "v", "w"]
    pair.b.sql(f"ALTER TABLE t RENAME {column} TO renamed")
    job.wait_synced()
    compare.assert_contents(pair)


def test_killed(pair, job):
    """Column and rows are there once, however often twsync dies meanwhile."""
    for n in range(4):
        job.kill()
        pair.a.sql(f"ALTER TABLE t ADD COLUMN c{n} int DEFAULT {n}; UPDATE t SET v = v || {n}")
        job.start(wait=())
        wait_for(lambda: len(columns(pair.b, "t")) == n + 3, "the column") if n % 2 else None
    job.wait_synced()
    assert columns(pair.a, "t") == columns(pair.b, "t")
    compare.assert_contents(pair)


def test_locked(pair, job):
    """A reader on B that holds the table delays the column, never breaks the stream."""
    with pair.b.transaction() as cur:
        cur.execute("SELECT count(*) FROM t")
        pair.a.sql("ALTER TABLE t ADD COLUMN n int; UPDATE t SET n = 1")
        wait_for(lambda: "lock timeout" in job.log_text(), "the lock is waited for in vain")
    job.wait_synced()
    compare.assert_contents(pair)


def test_not_wanted(pair, make_job):
    """ddl = no: the task says which column B lacks, and goes on when it is there."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v text)")
    job = make_job(pair, forward={"ddl": False}).start()
    pair.a.sql("ALTER TABLE t ADD COLUMN n int; INSERT INTO t VALUES (1, 'x', 2)")
    wait_for(lambda: 'column "n"' in job.task("forward")["last_error"], "the error")
    pair.b.sql("ALTER TABLE t ADD COLUMN n int")
    job.wait_synced()
    compare.assert_contents(pair)
