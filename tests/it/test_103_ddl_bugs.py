"""Defects of DDL replication that were found."""

import pytest

import compare
import tw
from wait import wait_for

T = ("CREATE TABLE t (id int PRIMARY KEY, v text, x numeric(10,2));"
     "INSERT INTO t SELECT g, 'v' || g, g FROM generate_series(1, 10) g;")


def in_flight(pair, make_job, base, b, a, schemas="public"):
    """B writes while twsync is away, and then A changes its schema."""
    pair.a.sql(base)
    job = make_job(pair, schemas).start()
    job.kill()
    pair.b.sql(b)
    pair.a.sql(a)
    return job.start(wait=())


def same(job, tasks=tw.TASKS):
    job.wait_synced(tasks)
    compare.wait_contents(job.pair)
    compare.assert_schema(job.pair)
    for task in tasks:
        assert job.task(task)["conflicts"] == 0, job.conflicts(task)
        assert job.task(task)["restarts"] == 0, job.log_tail()


@pytest.mark.rung("origin")
@pytest.mark.parametrize("after", [
    "ALTER TABLE t ALTER w DROP DEFAULT", "ALTER TABLE t ALTER w SET DEFAULT 'y'", "ALTER TABLE t RENAME w TO z",
    "ALTER TABLE t DROP w", "SELECT 1"])
@pytest.mark.parametrize("not_null", ["NOT NULL", ""])
def test_s1_added_column_of_rows_on_their_way(pair, make_job, after, not_null):
    """A row of B that does not know the column holds what B's other rows will hold, not what the default is by now."""
    job = in_flight(pair, make_job, T, "INSERT INTO t VALUES (101, 'b', 5); UPDATE t SET v = 'b' WHERE id = 3",
                    f"ALTER TABLE t ADD w text DEFAULT 'x''\\y' {not_null}; {after}")
    same(job)


@pytest.mark.rung("origin")
def test_s1_without_a_default(pair, make_job):
    job = in_flight(pair, make_job, T, "INSERT INTO t VALUES (101, 'b', 5)",
                    "ALTER TABLE t ADD w int; ALTER TABLE t ALTER w SET DEFAULT 7")
    same(job)
    assert pair.b.sql("SELECT w FROM t WHERE id = 101") == [(None,)]


@pytest.mark.rung("origin")
@pytest.mark.parametrize("change", ["x TYPE numeric(14,4)", "v TYPE char(10)", "x TYPE text"])
def test_s2_old_values_of_another_type(pair, make_job, change):
    """What B changed before it had the new type is no conflict: values are compared as the new type writes them."""
    job = in_flight(pair, make_job, T, "UPDATE t SET x = x + 1, v = 'b' WHERE id = 1; DELETE FROM t WHERE id = 5",
                    f"ALTER TABLE t ALTER {change}")
    same(job)
    assert pair.a.sql("SELECT v FROM t WHERE id = 1")[0][0].strip() == "b"


@pytest.mark.rung("origin")
def test_s3_copied_after_other_ddl_of_its_transaction(pair, make_job):
    """The tasks do not wait for each other, where one holds a lock that the other's look needs."""
    pair.a.sql("CREATE TABLE o (id int PRIMARY KEY, c int UNIQUE); CREATE TABLE i (id int PRIMARY KEY, q int);"
               "INSERT INTO o VALUES (2, 2); INSERT INTO i VALUES (2, 2)")
    job = make_job(pair).start()
    job.kill()
    pair.b.sql("INSERT INTO o VALUES (1, 1); INSERT INTO i VALUES (1, 1)")
    pair.a.sql("BEGIN; ALTER TABLE o ALTER c TYPE bigint; ALTER TABLE i ALTER q TYPE numeric USING q * 1.5; COMMIT")
    job.start(wait=())
    job.wait_synced()
    compare.wait_contents(pair)
    assert "has not passed" not in job.log_text()
    compare.assert_same(pair)


@pytest.mark.rung("origin")
def test_s4_column_of_the_parent_only(pair, make_job):
    """ALTER TABLE ONLY ... DROP: the children keep the column and its values; without ONLY they lose it."""
    pair.a.sql("CREATE TABLE p (id int PRIMARY KEY, v text, w int); CREATE TABLE c (id int PRIMARY KEY) INHERITS (p);"
               "INSERT INTO c VALUES (2, 'c', 1)")
    job = make_job(pair).start()
    pair.a.sql("ALTER TABLE ONLY p DROP v")
    same(job, ("forward",))
    pair.a.sql("ALTER TABLE p DROP w; INSERT INTO c VALUES (4, 'd')")
    same(job)


@pytest.mark.rung("origin")
def test_s5_row_of_a_table_that_was_moved_out(pair, make_job):
    """Its rows are left out, with a word, and all other tables go on."""
    pair.a.sql(T + "CREATE SCHEMA two; CREATE SCHEMA three; CREATE TABLE two.x (id int PRIMARY KEY, v text)")
    job = make_job(pair, "public, two").start()
    pair.a.sql("ALTER TABLE two.x SET SCHEMA three")
    job.wait_synced()
    pair.b.sql("INSERT INTO two.x VALUES (3, 'b'); INSERT INTO t VALUES (1001, '1', 1)")
    wait_for(lambda: pair.a.one("SELECT count(*) FROM t WHERE id = 1001") == 1, "the other table's row")
    assert "has moved it out of what is selected" in job.log_text()


@pytest.mark.rung("origin")
def test_s6_tables_that_refer_to_one_another_are_dropped(pair, make_job):
    pair.a.sql("CREATE TABLE d1 (id int PRIMARY KEY, o int); CREATE TABLE d2 (id int PRIMARY KEY, o int REFERENCES d1);"
               "ALTER TABLE d1 ADD FOREIGN KEY (o) REFERENCES d2")
    job = make_job(pair).start()
    pair.a.sql("DROP TABLE d1, d2")
    same(job)
    assert not pair.b.one("SELECT to_regclass('d1') IS NOT NULL OR to_regclass('d2') IS NOT NULL")


@pytest.mark.rung("origin")
def test_s7_index_dropped_after_reindex(pair, make_job):
    """REINDEX CONCURRENTLY gives an index another oid without a word: it is known by its name."""
    pair.a.sql(T + "CREATE INDEX i ON t (v); CREATE UNIQUE INDEX j ON t (x); CREATE INDEX k ON t (v, x)")
    job = make_job(pair).start()
    for sql in ("REINDEX INDEX CONCURRENTLY i", "DROP INDEX i", "REINDEX TABLE CONCURRENTLY t", "DROP INDEX j",
                "ALTER INDEX k RENAME TO k2", "REINDEX TABLE t", "DROP INDEX CONCURRENTLY k2"):
        pair.a.sql(sql)
    same(job)


@pytest.mark.rung("origin")
def test_s8_comment_of_what_is_made_anew(pair, make_job):
    pair.a.sql(T + "CREATE INDEX i ON t (v); COMMENT ON INDEX i IS 'it''s \\ x'; CREATE VIEW w AS SELECT id FROM t;"
               "COMMENT ON VIEW w IS 'w'; ALTER TABLE t ADD CONSTRAINT k CHECK (id > 0); COMMENT ON CONSTRAINT k ON t IS 'k'")
    job = make_job(pair).start()
    pair.a.sql("ALTER INDEX i SET (fillfactor = 50); CREATE OR REPLACE VIEW w AS SELECT id, v FROM t")
    same(job)


OWN_OF_B = {
    "table dropped": ("CREATE TABLE n (x int, precious text); INSERT INTO n VALUES (1, 'mine')",
                      "CREATE TABLE n (id int PRIMARY KEY, v text)", "DROP TABLE n"),
    "table renamed": ("CREATE TABLE n (x int, precious text); INSERT INTO n VALUES (1, 'mine')",
                      "CREATE TABLE n (id int PRIMARY KEY, v text)", "ALTER TABLE n RENAME TO n2; DROP TABLE n2"),
    "table altered": ("CREATE TABLE n (x int, precious text, v text); INSERT INTO n VALUES (1, 'mine', 'v')",
                      "CREATE TABLE n (id int PRIMARY KEY, v text)",
                      "ALTER TABLE n DROP v, ADD more int; CREATE INDEX ON n (more); COMMENT ON TABLE n IS 'of a'"),
    "view": ("CREATE VIEW n AS SELECT 42 AS precious", "CREATE VIEW n AS SELECT 1 AS a", "DROP VIEW n"),
    "sequence": ("CREATE SEQUENCE n INCREMENT 7", "CREATE SEQUENCE n", "ALTER SEQUENCE n INCREMENT 3; DROP SEQUENCE n"),
    "function": ("CREATE FUNCTION n() RETURNS int LANGUAGE sql AS 'SELECT 42'",
                 "CREATE FUNCTION n() RETURNS text LANGUAGE sql AS 'SELECT 1::text'", "DROP FUNCTION n"),
    "type": ("CREATE TYPE n AS ENUM ('precious')", "CREATE TYPE n AS ENUM ('a')",
             "ALTER TYPE n ADD VALUE 'b'; DROP TYPE n"),
}


@pytest.mark.rung("origin")
@pytest.mark.parametrize("name", OWN_OF_B)
def test_s14_what_is_of_b_stays(pair, make_job, name):
    """Where B had something else by the name, what A does to its own later is not done to it."""
    there, made, later = OWN_OF_B[name]
    pair.a.sql(T)
    job = make_job(pair).start()
    pair.b.sql(there)
    before = compare.schema_of(pair.b)
    pair.a.sql(made)
    job.wait_synced()
    for sql in later.split("; "):
        pair.a.sql(sql)
    pair.a.sql("INSERT INTO t VALUES (2000, 'last', 1)")
    job.wait_synced()
    assert pair.b.one("SELECT count(*) FROM t WHERE id = 2000") == 1
    assert compare.schema_of(pair.b) == before
    if name.startswith("table"):
        assert pair.b.one("SELECT precious FROM n") == "mine"
    if name != "table altered":
        assert pair.b.admin("SELECT table_name FROM twsync.parked UNION ALL SELECT obj FROM twsync.barred") == []


@pytest.mark.rung("origin")
def test_s14_resync_makes_it_as_on_a(pair, make_job):
    """Asked for by name, B's own table becomes A's."""
    pair.a.sql(T)
    job = make_job(pair).start()
    pair.b.sql("CREATE TABLE n (x int, precious text); INSERT INTO n VALUES (1, 'mine')")
    pair.a.sql("CREATE TABLE n (id int PRIMARY KEY, v text); INSERT INTO n VALUES (2, 'x')")
    job.wait_synced()
    code, out, err = job.command("resync", job.path, "public.n")
    assert code == tw.OK, (out, err)
    pair.a.sql("ALTER TABLE n ADD w int DEFAULT 3")
    same(job)


@pytest.mark.rung("origin")
def test_s17_enum_replaced_in_single_commands(pair, make_job):
    """The new type takes the old one's name: a column's type is another one although it is called the same."""
    pair.a.sql("CREATE TYPE m AS ENUM ('a', 'b'); CREATE TABLE t (id int PRIMARY KEY, v m, w m[]);"
               "INSERT INTO t VALUES (2, 'a', '{a,b}'), (4, 'b', NULL)")
    job = make_job(pair).start()
    for sql in ("ALTER TYPE m RENAME TO m_old", "CREATE TYPE m AS ENUM ('b', 'a', 'c')",
                "ALTER TABLE t ALTER v TYPE m USING v::text::m", "ALTER TABLE t ALTER w TYPE m[] USING w::text[]::m[]",
                "DROP TYPE m_old", "INSERT INTO t VALUES (6, 'c', '{c}')"):
        pair.a.sql(sql)
    same(job)
    assert not pair.b.one("SELECT to_regtype('m_old') IS NOT NULL")


@pytest.mark.rung("origin")
@pytest.mark.parametrize("then", [
    "ALTER TABLE users ADD z int", "ALTER TABLE users RENAME TO people", "ALTER TABLE users RENAME uuid TO u",
    "ALTER TABLE users DROP uuid", "ALTER TABLE users DROP CONSTRAINT users_pkey CASCADE", "CREATE INDEX ON users (uuid)"])
@pytest.mark.parametrize("referenced", [False, True])
def test_s20_volatile_default_and_more(pair, make_job, then, referenced):
    """A column whose values A alone can tell, NOT NULL, and more DDL right behind it."""
    pair.a.sql("CREATE TABLE users (id bigserial PRIMARY KEY, name text);"
               "INSERT INTO users (name) SELECT 'n' || g FROM generate_series(1, 100) g")
    if referenced:
        pair.a.sql("CREATE TABLE o (id int PRIMARY KEY, u bigint REFERENCES users);"
                   "INSERT INTO o SELECT g, g FROM generate_series(1, 100) g")
    job = make_job(pair).start()
    with pair.a.connect() as conn, conn.cursor() as cur:
        for sql in ("ALTER TABLE users ADD uuid uuid DEFAULT gen_random_uuid() NOT NULL", then,
                    "INSERT INTO %s (name) VALUES ('last')" % ("people" if "people" in then else "users")):
            cur.execute(sql)
            conn.commit()
    same(job)
    assert pair.b.admin("SELECT * FROM twsync.parked") == []


@pytest.mark.rung("origin")
def test_s18_ddl_under_an_old_snapshot(pair, make_job):
    """What the event trigger cannot write down is looked at once more, and the table copied."""
    pair.a.sql(T + "CREATE TABLE o (id int PRIMARY KEY)")
    job = make_job(pair).start()
    with pair.a.connect() as one, one.cursor() as cur:
        cur.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM o")
        pair.a.sql("ALTER TABLE t ADD y int DEFAULT 1; ALTER TABLE t RENAME v TO w")
        cur.execute("ALTER TABLE t DROP y; ALTER TABLE t RENAME w TO ww; COMMIT")
    pair.a.sql("UPDATE t SET ww = 'five' WHERE id = 4; INSERT INTO o VALUES (2)")
    wait_for(lambda: pair.b.one("SELECT count(*) FROM o") == 1, "the other table's row")
    job.wait_synced()
    compare.wait_contents(pair)
    wait_for(lambda: pair.b.admin("SELECT * FROM twsync.parked") == [], "no table parked")
    pair.b.sql("INSERT INTO t (id, ww) VALUES (1001, 'of b')")
    same(job)
    assert job.task("forward")["ddl_failed"] >= 1


@pytest.mark.rung("origin")
def test_s19_two_sessions_create_tables(pair, make_job):
    """The second waits for the publication, and gives up: its table comes all the same, with its rows."""
    pair.a.sql(T)
    job = make_job(pair).start()
    with pair.a.connect() as one, one.cursor() as first, pair.a.connect() as two, two.cursor() as second:
        first.execute("BEGIN; CREATE TABLE n1 (id int PRIMARY KEY)")
        second.execute("SET lock_timeout = '300ms'; COMMIT")
        second.execute("CREATE TABLE n2 (id int PRIMARY KEY); INSERT INTO n2 VALUES (1); COMMIT")
        first.execute("COMMIT")
        second.execute("ALTER TABLE n2 ADD v int; INSERT INTO n2 VALUES (2, 2); COMMIT")
    wait_for(lambda: pair.b.one("SELECT to_regclass('n2') IS NOT NULL"), "the second table")
    compare.wait_contents(pair)
    pair.a.sql("INSERT INTO n2 VALUES (4, 4)")
    pair.b.sql("INSERT INTO n1 VALUES (1001)")
    same(job)


@pytest.mark.rung("origin")
def test_s21_conflict_before_a_refused_row(pair, make_job):
    """What was recorded of a transaction before a row of it was refused is recorded and counted once."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, n int, v text); "
               "INSERT INTO t SELECT g, g, 'v' FROM generate_series(1, 9) g")
    job = make_job(pair, forward={"on_conflict": "overwrite"}, reverse={"on_conflict": "ignore"}).start()
    job.wait_synced()
    job.kill()
    pair.a.sql("UPDATE t SET v = 'a' WHERE id < 4; ALTER TABLE t ADD CHECK (n < 50)")
    with pair.b.connect() as conn, conn.cursor() as cur:
        cur.execute("UPDATE t SET v = 'b' WHERE id < 4; INSERT INTO t VALUES (12, 99, 'no'), (13, 2, 'yes'); "
                    "UPDATE t SET v = 'b' WHERE id = 9")
    job.start()
    wait_for(lambda: pair.a.one("SELECT count(*) FROM t WHERE id = 13"), "reverse goes on")
    job.wait_synced()
    recorded = [c["kind"] for c in job.conflicts("reverse")]
    assert recorded.count("refused") == 1, recorded
    assert len(recorded) == job.task("reverse")["conflicts"] == 4, recorded
    assert pair.a.sql("SELECT id, v FROM t WHERE id > 8 ORDER BY id") == [(9, "b"), (13, "yes")]
