"""Regressions: rows lost, doubled or confused, conflicts missed, tasks stopped without need."""

import pytest

import compare
from wait import wait_for

OVERWRITE = {"forward": {"on_conflict": "overwrite"}, "reverse": {"on_conflict": "ignore"}}


def started(pair, make_job, *statements, **sections):
    for statement in statements:
        pair.a.sql(statement)
    return make_job(pair, **sections).start()


def done(job, conflicts=(0, 0)):
    job.wait_synced()
    compare.assert_contents(job.pair)
    assert tuple(t["conflicts"] for t in job.status()["tasks"]) == conflicts


@pytest.mark.parametrize("index", ["UNIQUE (u)", "INDEX (lower(u))"])
def test_01_null_collides_with_nothing(pair, make_job, index):
    """A conflict on a row with NULL in a unique column leaves the other rows with NULL alone."""
    job = started(pair, make_job, "CREATE TABLE t (id int PRIMARY KEY, u text, v text)",
                  "ALTER TABLE t ADD UNIQUE (u)" if "UNIQUE" in index else "CREATE UNIQUE INDEX ON t (lower(u))",
                  "INSERT INTO t SELECT g, NULL, 'v' || g FROM generate_series(1, 10) g", **OVERWRITE)
    with job.unseen("b") as cur:
        cur.execute("INSERT INTO t VALUES (50, NULL, 'b'), (60, 'u', 'b')")
    pair.a.sql("INSERT INTO t VALUES (50, NULL, 'a')")
    pair.a.sql("INSERT INTO t VALUES (60, NULL, 'a')")
    done(job, (2, 0))
    assert [c["kind"] for c in job.conflicts("forward")] == ["insert_exists"] * 2


def test_02_nulls_not_distinct_collide(pair, make_job):
    """The opposite: where the index says so, NULL collides with NULL."""
    if pair.a.server.version() < 150000:
        pytest.skip("NULLS NOT DISTINCT came with PostgreSQL 15")
    job = started(pair, make_job, "CREATE TABLE t (id int PRIMARY KEY, u int, UNIQUE NULLS NOT DISTINCT (u))", **OVERWRITE)
    with job.unseen("b") as cur:
        cur.execute("INSERT INTO t VALUES (5, NULL)")
    pair.a.sql("INSERT INTO t VALUES (6, NULL)")
    done(job, (1, 0))


@pytest.mark.parametrize("key", ["id int PRIMARY KEY DEFERRABLE, u int", "id int PRIMARY KEY, u int UNIQUE DEFERRABLE"])
def test_03_deferrable_keys_are_kept(pair, make_job, key):
    """session_replication_role = replica rests the triggers that watch over deferrable keys."""
    job = started(pair, make_job, f"CREATE TABLE t ({key}, v text)", **OVERWRITE)
    with job.unseen("b") as cur:
        cur.execute("INSERT INTO t VALUES (5, 5, 'b')")
    pair.a.sql("INSERT INTO t VALUES (%s, 5, 'a')", (5 if "KEY DEF" in key else 6,))
    done(job, (1, 0))


def test_04_keys_change_places_after_vacuum(pair, make_job):
    """Two rows hold a deferrable key for a moment: the one that the change left from is meant."""
    job = started(pair, make_job, "CREATE TABLE t (id int PRIMARY KEY DEFERRABLE, v text)",
                  "INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, 4) g")
    for _ in range(3):
        pair.a.sql("UPDATE t SET id = 5 - id")
        done(job)
        pair.both("VACUUM t")


IMAGES = {
    "array_element": ("int[]", "'{1,NULL,2}'", "v[2] = 5"),
    "array_slice": ("int[]", "NULL", "v = (ARRAY[1, 2, NULL])[1:2]"),
    "nan": ("float8", "0", "v = 'inf'::float8 - 'inf'::float8"),
    "tsquery": ("tsquery", "NULL", "v = 'a'::tsquery && 'b'::tsquery"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_05_keyless_rows_of_another_image(pair, make_job, name):
    """A value computed on one side may differ in memory from what its text makes on the other."""
    kind, first, change = IMAGES[name]
    job = started(pair, make_job, f"CREATE TABLE t (id int, v {kind})", f"INSERT INTO t VALUES (1, {first}), (2, {first})")
    pair.b.sql(f"UPDATE t SET {change}")
    job.wait_synced()
    pair.a.sql("UPDATE t SET id = 3 WHERE id = 1")
    pair.a.sql("DELETE FROM t WHERE id = 2")
    job.wait_synced()
    assert [node.sql("SELECT id, v::text FROM t") for node in pair.nodes][0] == pair.b.sql("SELECT id, v::text FROM t")
    assert [t["conflicts"] for t in job.status()["tasks"]] == [0, 0]


def test_06_keyless_rows_of_an_older_composite(pair, make_job):
    job = started(pair, make_job, "CREATE TYPE pair AS (x int, y text)", "CREATE TABLE t (id int, v pair)",
                  "INSERT INTO t VALUES (1, '(1,a)'), (2, '(2,b)')")
    pair.both("ALTER TYPE pair ADD ATTRIBUTE z int")
    pair.a.sql("UPDATE t SET id = 10 WHERE id = 1")
    pair.a.sql("DELETE FROM t WHERE id = 2")
    done(job)


def test_07_identity_that_is_no_key(pair, make_job):
    job = started(pair, make_job, "CREATE TABLE t (id int PRIMARY KEY, n int GENERATED ALWAYS AS IDENTITY, v text)",
                  "INSERT INTO t (id, v) VALUES (1, 'a'), (2, 'b')",
                  forward={"identity": "key"}, reverse={"identity": "key"})
    pair.a.sql("UPDATE t SET n = DEFAULT WHERE id = 1")
    done(job)


def test_08_replaced_rows_keep_other_columns(pair, make_job):
    """SET id = DEFAULT of a generated-always identity: columns that only B has stay as they are."""
    pair.a.sql("CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text)")
    pair.a.sql("INSERT INTO t (v) VALUES ('a'), ('b')")
    pair.b.sql("CREATE TABLE t (own text DEFAULT 'd', v text, id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY)")
    job = make_job(pair, forward={"schema": "no"}, reverse={"enabled": "no"}).start(wait=("forward",))
    pair.b.sql("UPDATE t SET own = 'mine'")
    pair.a.sql("UPDATE t SET id = DEFAULT WHERE id = 1")
    job.wait_synced(("forward",))
    assert pair.b.sql("SELECT id, v, own FROM t ORDER BY id") == [(2, "b", "mine"), (3, "a", "mine")]


@pytest.mark.parametrize("table, theirs, ours", [
    ("(id int PRIMARY KEY, e text, l text GENERATED ALWAYS AS (lower(e)) STORED UNIQUE)", "'Foo'", "'fOO'"),
    ("(id int PRIMARY KEY, e int4range, EXCLUDE USING gist (e WITH &&))", "'[1,5)'", "'[3,8)'"),
], ids=["generated", "exclusion"])
@pytest.mark.parametrize("policy", ["overwrite", "ignore"])
def test_09_other_constraints_are_decided_too(pair, make_job, table, theirs, ours, policy):
    job = started(pair, make_job, f"CREATE TABLE t {table}", forward={"on_conflict": policy})
    with job.unseen("b") as cur:
        cur.execute(f"INSERT INTO t VALUES (50, {theirs})")
    pair.a.sql(f"INSERT INTO t VALUES (51, {ours})")
    job.wait_synced()
    assert pair.b.sql("SELECT id FROM t") == [(51 if policy == "overwrite" else 50,)]


def test_10_conflict_in_a_wide_table(pair, make_job):
    columns = ", ".join(f"c{i} int" for i in range(1599))
    job = started(pair, make_job, f"CREATE TABLE t (id int PRIMARY KEY, {columns})", "INSERT INTO t (id, c1) VALUES (1, 1), (2, 2)",
                  **OVERWRITE)
    with job.unseen("b") as cur:
        cur.execute("UPDATE t SET c1 = 7")
    pair.a.sql("UPDATE t SET c1 = 9")
    done(job, (2, 0))


def test_11_old_values_that_break_a_domain(pair, make_job):
    job = started(pair, make_job, "CREATE DOMAIN d AS int", "CREATE TABLE t (id int PRIMARY KEY, v d)",
                  "INSERT INTO t VALUES (1, -5), (2, -6)", "ALTER DOMAIN d ADD CONSTRAINT p CHECK (VALUE > 0) NOT VALID")
    pair.a.sql("UPDATE t SET v = 3 WHERE id = 1")
    pair.a.sql("DELETE FROM t WHERE id = 2")
    done(job)


def test_12_existing_rows_and_a_deferrable_key(pair, make_job):
    for node in pair.nodes:
        node.sql("CREATE TABLE t (id int PRIMARY KEY DEFERRABLE, v text)")
        node.sql("INSERT INTO t VALUES (1, 'v')")
    pair.a.sql("INSERT INTO t VALUES (2, 'w')")
    job = make_job(pair, objects={"existing": "keep"}).start(wait=())
    job.wait_state("reverse", "Running")
    done(job)


@pytest.mark.rung("origin")
@pytest.mark.parametrize("on_b", [
    "CREATE TABLE own (id int PRIMARY KEY)",
    "CREATE TABLE t (id int PRIMARY KEY, v text, own int)",
    "CREATE TABLE t (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE t_1 PARTITION OF t DEFAULT",
], ids=["table", "column", "partition"])
def test_13_what_only_b_has(pair, make_job, on_b):
    """Either the precheck refuses it, or the way back is not stopped by it."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v text)")
    if "TABLE own" in on_b:
        pair.b.sql("CREATE TABLE t (id int PRIMARY KEY, v text)")
    pair.b.sql(on_b)
    job = make_job(pair, forward={"schema": "no"})
    code, items = job.check()
    if code != 0:
        assert [i for i in items if i["status"] == "failed"]
        return
    job.start()
    pair.b.sql("INSERT INTO t VALUES (1, 'b')")
    if "TABLE own" in on_b:
        pair.b.sql("INSERT INTO own VALUES (1)")
    job.wait_synced()
    assert pair.a.sql("SELECT id, v FROM t") == [(1, "b")]


@pytest.mark.rung("origin")
@pytest.mark.parametrize("statements", [
    ("CREATE FUNCTION f(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1'", "CREATE TABLE t (id int PRIMARY KEY CHECK (f(id) > 0))"),
    ("CREATE COLLATION own FROM \"C\"", "CREATE TABLE t (id int PRIMARY KEY, v text COLLATE own)"),
], ids=["function", "collation"])
def test_14_what_the_schema_needs_is_named_by_check(pair, make_job, statements):
    for statement in statements:
        pair.a.sql(statement)
    job = make_job(pair)
    code, _ = job.check()
    if code == 0:
        job.start(wait=())
        wait_for(lambda: job.task("forward").get("state") in ("Running", "Retrying", "Failed"), "forward has tried")
        assert job.task("forward")["state"] == "Running", "check passed, and the schema cannot be made"


@pytest.mark.rung("marker")
def test_15_cascades_are_no_conflict(pair, make_job):
    """Foreign keys of the target act before their changes arrive: those find what they would write."""
    job = started(pair, make_job, "CREATE TABLE p (id int PRIMARY KEY)",
                  "CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p ON UPDATE CASCADE ON DELETE SET NULL)",
                  "INSERT INTO p SELECT generate_series(1, 4)", "INSERT INTO c SELECT g, g FROM generate_series(1, 4) g")
    pair.a.sql("UPDATE p SET id = 100 WHERE id = 1")
    pair.b.sql("DELETE FROM p WHERE id = 2")
    job.wait_synced()
    compare.assert_contents(pair)
