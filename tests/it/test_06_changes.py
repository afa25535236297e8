"""Increments: each kind of change, both ways, on both rungs; transactions; values; keys."""

import io

import pytest

import compare
import pg
import tw
import writers
from values import random_text
from wait import Pulse, wait_for

KEYED = "CREATE TABLE t (id int PRIMARY KEY, n int DEFAULT 0, v text)"
# Each direction on each rung; or each direction and each rung once, where they hardly matter.
ways = pytest.mark.parametrize("source", ["a", "b"])
two_ways = pytest.mark.parametrize("rung, source", [("marker", "b"), ("origin", "a")])


def node_of(pair, letter):
    return pair.nodes["ab".index(letter)]


def opposite(pair, letter):
    return pair.nodes["ba".index(letter)]


def run_both(pair, make_job, *statements, schemas="public", rows=(), **sections):
    """Creates tables on A, starts a job, and returns it."""
    for statement in statements:
        pair.a.sql(statement)
    for statement in rows:
        pair.a.sql(statement)
    return make_job(pair, schemas, **sections).start()


def done(job):
    """Waits until all is carried, and both sides are the same, without any conflict."""
    job.wait_synced()
    compare.assert_same(job.pair)
    assert [t["conflicts"] for t in job.status()["tasks"]] == [0, 0]


@ways
def test_insert_update_delete(pair, make_job, source):
    job = run_both(pair, make_job, KEYED, rows=["INSERT INTO t SELECT g, 0, 'v' FROM generate_series(1, 10) g"])
    node = node_of(pair, source)
    node.sql("INSERT INTO t VALUES (11, 1, 'new'), (12, NULL, NULL)")
    node.sql("UPDATE t SET v = NULL WHERE id = 1")
    node.sql("UPDATE t SET v = 'all', n = id")
    node.sql("UPDATE t SET v = v WHERE id = 3")        # changes nothing
    node.sql("DELETE FROM t WHERE id = 2")
    done(job)
    task = job.task("forward" if source == "a" else "reverse")
    assert (task["inserts"], task["updates"], task["deletes"]) == (2, 14, 1)
    assert task["transactions"] == 5 and task["rows"] == 17
    other = job.task("reverse" if source == "a" else "forward")
    assert other["rows"] == 0, "an echo was applied"


@two_ways
def test_same_row_many_times(pair, make_job, source):
    """In one transaction and over several, in order."""
    job = run_both(pair, make_job, KEYED)
    node = node_of(pair, source)
    with node.transaction() as cur:
        cur.execute("INSERT INTO t VALUES (1, 0, 'a')")
        for n in range(50):
            cur.execute("UPDATE t SET n = n + 1, v = v || %s WHERE id = 1", (str(n),))
        cur.execute("DELETE FROM t WHERE id = 1")
        cur.execute("INSERT INTO t VALUES (1, 7, 'again')")
    for n in range(20):
        node.sql("UPDATE t SET n = n + 1 WHERE id = 1")
    for n in range(5):
        node.sql("DELETE FROM t WHERE id = 1")
        node.sql("INSERT INTO t VALUES (1, 7, 'again')")
    done(job)


@ways
def test_key_changes(pair, make_job, source):
    """An update of the key moves the row and leaves no orphan."""
    job = run_both(pair, make_job, KEYED, "CREATE TABLE two (a int, b text, v text, PRIMARY KEY (b, a))",
                   "CREATE TABLE uniq (k int NOT NULL UNIQUE, v text)",
                   rows=["INSERT INTO t SELECT g, g, 'v' FROM generate_series(1, 5) g", "INSERT INTO two VALUES (1, 'x', 'v')",
                         "INSERT INTO uniq VALUES (1, 'v')"])
    node = node_of(pair, source)
    node.sql("UPDATE t SET id = 100 WHERE id = 1")
    node.sql("UPDATE t SET id = 101, v = 'both' WHERE id = 2")
    node.sql("UPDATE two SET b = 'y'")
    node.sql("UPDATE two SET a = 2, b = 'z', v = NULL")
    node.sql("UPDATE uniq SET k = 9")
    with node.transaction() as cur:     # a ring through a free place
        for old, new in ((3, 0), (4, 3), (5, 4), (0, 5)):
            cur.execute("UPDATE t SET id = %s WHERE id = %s", (new, old))
    done(job)


@two_ways
@pytest.mark.parametrize("identity", ["full", "key"])
def test_unchanged_toast(pair, make_job, source, identity):
    """A large value that an update does not touch stays on the other side."""
    job = run_both(pair, make_job, "CREATE TABLE t (id int PRIMARY KEY, n int, big text, raw bytea)",
                   forward={"identity": identity}, reverse={"identity": identity})
    node = node_of(pair, source)
    node.sql("INSERT INTO t VALUES (1, 0, %s, %s), (2, 0, NULL, ''), (3, 0, 'short', NULL)",
             (random_text(1, 1 << 20), random_text(2, 50000).encode()))
    node.sql("UPDATE t SET n = n + 1")
    node.sql("UPDATE t SET id = id + 10")
    node.sql("UPDATE t SET big = %s WHERE id = 12", (random_text(3, 9000),))
    with node.transaction() as cur:
        cur.execute("INSERT INTO t VALUES (4, 0, %s, NULL)", (random_text(4, 9000),))
        cur.execute("UPDATE t SET n = 5 WHERE id = 4")
        cur.execute("UPDATE t SET id = 5 WHERE id = 4")
        cur.execute("UPDATE t SET raw = big::bytea WHERE id = 5")
    done(job)


@two_ways
def test_toasted_key(pair, make_job, source):
    job = run_both(pair, make_job, "CREATE TABLE t (k text PRIMARY KEY, n int, big text)")
    node = node_of(pair, source)
    keys = [random_text(n, 2500) for n in range(4)]
    for key in keys[:3]:
        node.sql("INSERT INTO t VALUES (%s, 0, %s)", (key, random_text(key, 5000)))
    node.sql("UPDATE t SET n = 1")
    node.sql("UPDATE t SET k = %s WHERE k = %s", (keys[3], keys[0]))
    node.sql("DELETE FROM t WHERE k = %s", (keys[1],))
    done(job)


@two_ways
def test_transactions_and_savepoints(pair, make_job, source):
    """What is rolled back, wholly or in part, never arrives; the rest does, together."""
    job = run_both(pair, make_job, KEYED)
    node = node_of(pair, source)
    with node.transaction() as cur:
        cur.execute("INSERT INTO t VALUES (1)")
        for depth in range(10):
            cur.execute(f"SAVEPOINT s{depth}")
            cur.execute("INSERT INTO t VALUES (%s)", (10 + depth,))
        cur.execute("ROLLBACK TO s5")
        cur.execute("UPDATE t SET n = 5")
        cur.execute("RELEASE s2")
        cur.execute("SAVEPOINT last")
        cur.execute("DELETE FROM t")
        cur.execute("ROLLBACK TO last")
    with node.transaction() as cur:
        cur.execute("INSERT INTO t VALUES (99)")
        cur.connection.rollback()
    done(job)
    assert opposite(pair, source).one("SELECT count(*) FROM t") == 6


@two_ways
def test_one_transaction_of_100000_rows(pair, make_job, source):
    job = run_both(pair, make_job, KEYED, "CREATE TABLE log (n int, v text)")
    node = node_of(pair, source)
    with node.transaction() as cur:
        cur.execute("INSERT INTO t SELECT g, g, 'v' || g FROM generate_series(1, 60000) g")
        cur.execute("UPDATE t SET n = n + 1 WHERE id % 2 = 0")
        cur.execute("DELETE FROM t WHERE id % 10 = 0")
        cur.execute("INSERT INTO log SELECT g % 7, 'x' FROM generate_series(1, 4000) g")
    done(job)
    task = job.task("forward" if source == "a" else "reverse")
    assert task["transactions"] == 1 and task["rows"] == 100_000


@pytest.mark.parametrize("rows", [1023, 1024, 1025, 65535, 65536])
@pytest.mark.rung("marker")
def test_batch_sizes(pair, make_job, rows):
    """Counts at which fixed-size buffers would end."""
    job = run_both(pair, make_job, "CREATE TABLE t (n int)")
    pair.a.sql("INSERT INTO t SELECT 1 FROM generate_series(1, %s)", (rows,))
    done(job)


@two_ways
def test_many_small_transactions(pair, make_job, source):
    job = run_both(pair, make_job, KEYED, "CREATE TABLE log (n int)", rows=["INSERT INTO t VALUES (1)"])
    node_of(pair, source).sql("""
        DO $$ BEGIN FOR i IN 1..3000 LOOP
            INSERT INTO log VALUES (i % 5); UPDATE t SET n = n + 1; COMMIT;
        END LOOP; END $$""")
    done(job)


@two_ways
def test_copied_in_rows(pair, make_job, source):
    """COPY puts many rows under one position."""
    job = run_both(pair, make_job, KEYED, "CREATE TABLE log (n int, v text)")
    node = node_of(pair, source)
    with node.transaction() as cur:
        cur.copy_expert("COPY t (id, v) FROM stdin", io.StringIO("".join(f"{n}\tv\\\\{n}\n" for n in range(5000))))
        cur.copy_expert("COPY log FROM stdin", io.StringIO("1\tsame\n" * 3000))
    done(job)


@ways
def test_truncate(pair, make_job, source):
    job = run_both(pair, make_job, KEYED, "CREATE TABLE u (id serial PRIMARY KEY, v text)", "CREATE TABLE w (v text)",
                   "CREATE TABLE child (id int PRIMARY KEY, t int REFERENCES t)",
                   rows=["INSERT INTO t VALUES (1)", "INSERT INTO u (v) VALUES ('x'), ('y')", "INSERT INTO w VALUES ('x'), ('x')",
                         "INSERT INTO child VALUES (1, 1)"])
    node = node_of(pair, source)
    node.sql("TRUNCATE w")
    node.sql("INSERT INTO w VALUES ('after')")
    node.sql("TRUNCATE t CASCADE")
    node.sql("INSERT INTO t VALUES (2)")
    with node.transaction() as cur:
        cur.execute("INSERT INTO t VALUES (3)")
        cur.execute("TRUNCATE t, child, u RESTART IDENTITY")
        cur.execute("INSERT INTO u (v) VALUES ('first again')")
        cur.execute("INSERT INTO t VALUES (4)")
    done(job)
    assert node.sql("SELECT id FROM u") == [(1,)]
    if source == "a":
        assert compare.sequence_values(pair.b)["public.u_id_seq"][0] == 1


@two_ways
def test_keys_change_places(pair, make_job, source):
    """A deferrable key allows what no order of single changes does."""
    job = run_both(pair, make_job, "CREATE TABLE t (id int PRIMARY KEY, pos int UNIQUE DEFERRABLE)",
                   "CREATE TABLE pk (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v text)",
                   rows=["INSERT INTO t SELECT g, g FROM generate_series(1, 100) g",
                         "INSERT INTO pk SELECT g, 'v' || g FROM generate_series(1, 10) g"])
    node = node_of(pair, source)
    node.sql("UPDATE t SET pos = 101 - pos")
    node.sql("UPDATE t SET pos = pos % 100 + 1")
    node.sql("UPDATE pk SET id = 11 - id")
    done(job)


@ways
def test_keyless_duplicates(pair, make_job, source):
    """Of equal rows exactly as many go as went."""
    job = run_both(pair, make_job, "CREATE TABLE t (v text, f float8, j json, p point)",
                   rows=["INSERT INTO t SELECT 'same', 'NaN', '{ }', '(1,-0)' FROM generate_series(1, 5)",
                         "INSERT INTO t DEFAULT VALUES", "INSERT INTO t DEFAULT VALUES"])
    node = node_of(pair, source)
    node.sql("DELETE FROM t WHERE ctid = (SELECT min(ctid) FROM t WHERE v = 'same')")
    node.sql("UPDATE t SET v = 'other' WHERE ctid = (SELECT min(ctid) FROM t WHERE v = 'same')")
    node.sql("DELETE FROM t WHERE ctid = (SELECT min(ctid) FROM t WHERE v IS NULL)")
    node.sql("INSERT INTO t SELECT * FROM t")
    done(job)
    assert opposite(pair, source).sql("SELECT v, count(*) FROM t GROUP BY 1 ORDER BY 1") == [
        ("other", 2), ("same", 6), (None, 2)]


@ways
def test_foreign_keys(pair, make_job, source):
    """Cascades happen once: the rows end as they are at the source."""
    job = run_both(pair, make_job, KEYED,
                   "CREATE TABLE child (id int PRIMARY KEY, t int REFERENCES t ON DELETE CASCADE, v text)",
                   "CREATE TABLE grandchild (id int PRIMARY KEY, child int NOT NULL REFERENCES child ON DELETE CASCADE)",
                   rows=["INSERT INTO t SELECT g FROM generate_series(1, 6) g", "INSERT INTO child SELECT g, (g + 1) / 2 FROM generate_series(1, 12) g",
                         "INSERT INTO grandchild SELECT g, (g + 1) / 2 FROM generate_series(1, 24) g"])
    node = node_of(pair, source)
    node.sql("DELETE FROM t WHERE id = 1")
    with node.transaction() as cur:
        cur.execute("INSERT INTO t VALUES (7)")
        cur.execute("INSERT INTO child VALUES (20, 7)")
        cur.execute("INSERT INTO grandchild VALUES (30, 20), (31, 20)")
        cur.execute("DELETE FROM t WHERE id IN (2, 3)")
    job.wait_synced()
    compare.assert_same(pair)


@ways
@pytest.mark.rung("origin")
def test_foreign_keys_that_change_rows(pair, make_job, source):
    """SET NULL and ON UPDATE CASCADE: with session_replication_role they do not act a second time."""
    job = run_both(pair, make_job, KEYED,
                   "CREATE TABLE child (id int PRIMARY KEY, t int REFERENCES t ON DELETE SET NULL ON UPDATE CASCADE, v text)",
                   rows=["INSERT INTO t SELECT g FROM generate_series(1, 4) g", "INSERT INTO child SELECT g, g FROM generate_series(1, 4) g"])
    node = node_of(pair, source)
    node.sql("DELETE FROM t WHERE id = 1")
    node.sql("UPDATE t SET id = id + 10")
    done(job)


@pytest.mark.rung("origin")
def test_triggers_stay_silent(pair, make_job):
    """Triggers of the target do not fire for carried rows, except those that are made to."""
    job = run_both(pair, make_job, KEYED, "CREATE TABLE seen (what text)")
    pair.b.sql("CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS "
               "$$ BEGIN INSERT INTO public.seen VALUES (TG_NAME); RETURN NEW; END $$")
    for name in ("plain", "always"):
        pair.b.sql(f"CREATE TRIGGER {name} AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION note()")
    pair.b.sql("ALTER TABLE t ENABLE ALWAYS TRIGGER always")
    pair.a.sql("INSERT INTO t VALUES (1)")
    job.wait_synced()
    assert pair.b.sql("SELECT what FROM seen") == [("always",)]
    assert pair.b.one("SHOW session_replication_role") == "origin"
    pair.b.sql("INSERT INTO t VALUES (2)")
    assert pair.b.sql("SELECT what FROM seen ORDER BY 1") == [("always",), ("always",), ("plain",)]


@two_ways
def test_generated_and_identity(pair, make_job, source):
    job = run_both(pair, make_job,
                   "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED)",
                   "CREATE TABLE only_generated (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY)")
    node = node_of(pair, source)
    node.sql("INSERT INTO t (a) SELECT g FROM generate_series(1, 5) g")
    node.sql("UPDATE t SET a = a + 1")
    node.sql("UPDATE t SET id = DEFAULT WHERE id = 1")
    node.sql("INSERT INTO only_generated DEFAULT VALUES")
    done(job)


def test_bits(pair, make_job):
    """bit and varbit as values and as keys, in the copy and after it (the service refuses them)."""
    job = run_both(pair, make_job, "CREATE TABLE t (k bit(12) PRIMARY KEY, v varbit, w bit(1)[])", "CREATE TABLE u (k varbit PRIMARY KEY)",
                   rows=["INSERT INTO t VALUES (B'000000000001', B'', '{0,1}'), (B'111111111111', B'0', NULL)",
                         "INSERT INTO u VALUES (B''), (B'0')"])
    for node, bit in zip(pair.nodes, "01"):
        node.sql(f"INSERT INTO t VALUES (B'10000000000{bit}', B'1{bit}', '{{{bit}}}')")
        node.sql(f"INSERT INTO u VALUES (B'1{bit}')")
    pair.a.sql("UPDATE t SET k = B'011111111111', v = v || B'1' WHERE k = B'111111111111'")
    pair.b.sql("DELETE FROM u WHERE k = B'0'")
    done(job)


def test_partitions(pair, make_job):
    """Rows land in their leaf once, and move between leaves."""
    job = run_both(pair, make_job, "CREATE TABLE p (id int, kind text, v text, PRIMARY KEY (id, kind)) PARTITION BY LIST (kind)",
                   "CREATE TABLE p1 PARTITION OF p FOR VALUES IN ('x')",
                   "CREATE TABLE p2 PARTITION OF p FOR VALUES IN ('y') PARTITION BY RANGE (id)",
                   "CREATE TABLE p2a PARTITION OF p2 FOR VALUES FROM (MINVALUE) TO (10)", "CREATE TABLE p2b PARTITION OF p2 DEFAULT",
                   rows=["INSERT INTO p SELECT g, CASE g % 2 WHEN 0 THEN 'x' ELSE 'y' END, 'v' FROM generate_series(1, 40) g"])
    compare.assert_same(pair)
    pair.a.sql("INSERT INTO p VALUES (100, 'x', 'a'), (102, 'y', 'a')")
    pair.b.sql("INSERT INTO p VALUES (201, 'x', 'b'), (1, 'x', 'b')")
    job.wait_synced()
    pair.a.sql("UPDATE p SET kind = 'y' WHERE id = 100")
    pair.b.sql("UPDATE p SET id = 5000 WHERE id = 3")
    pair.b.sql("DELETE FROM p1 WHERE id = 4")
    done(job)
    pair.a.sql("TRUNCATE p2a")
    done(job)
    pair.b.sql("TRUNCATE p")
    done(job)


def test_everything_changes(pair, make_job, rng):
    """Random changes of every type on both sides at once, under opposite defaults of the databases."""
    from test_05_copy import SCHEMAS, load_everything
    load_everything(pair.a)
    for flavour, node in enumerate(pair.nodes):
        node.set_hostile(flavour)
    job = make_job(pair, SCHEMAS).start()
    with pair.b.transaction() as cur:       # longer than both sides' statement_timeout and lock_timeout
        cur.execute("LOCK TABLE ev.keyless IN EXCLUSIVE MODE")
        pair.a.sql("INSERT INTO ev.keyless DEFAULT VALUES")
        wait_for(lambda: pair.b.admin("SELECT 1 FROM pg_stat_activity WHERE application_name LIKE %s AND wait_event_type = 'Lock' "
                                      "AND clock_timestamp() - query_start > '2s'", (f"twsync:{job.name}:forward:apply%",)),
                 "forward waits for two seconds")
    works = [writers.Writer(node, writers.Everything(node, rng), 300) for node in pair.nodes]
    with writers.writing(*works):
        wait_for(lambda: all(w.acknowledged > 600 or w.error for w in works), "600 transactions on each side", 300)
    job.wait_synced()
    compare.assert_contents(pair)
    compare.assert_schema(pair)


def test_columns_in_another_order(pair, make_job):
    """Columns meet by name; further columns of the target keep their default."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, a text, b int)")
    pair.b.sql("CREATE TABLE t (gone int, b int, more text DEFAULT 'd', id int PRIMARY KEY, a text)")
    pair.b.sql("ALTER TABLE t DROP COLUMN gone")
    pair.a.sql("INSERT INTO t VALUES (1, 'x', 1)")
    job = make_job(pair, objects={"existing": "keep"}, forward={"schema": False}, reverse={"enabled": False})
    job.start(wait=["forward"])
    pair.a.sql("INSERT INTO t VALUES (2, 'y', 2)")
    pair.a.sql("UPDATE t SET b = 3 WHERE id = 1")
    job.wait_synced(["forward"])
    assert pair.b.sql("SELECT id, a, b, more FROM t ORDER BY 1") == [(1, "x", 3, "d"), (2, "y", 2, "d")]


@pytest.mark.rung("marker")
def test_one_way(pair, make_job):
    """Without the reverse task nothing of B goes to A, and no slot is made there."""
    pair.a.sql(KEYED)
    job = make_job(pair, reverse={"enabled": False}).start(wait=["forward"])
    pair.b.sql("INSERT INTO t VALUES (5)")
    pair.a.sql("INSERT INTO t VALUES (6)")
    job.wait_synced(["forward"])
    assert pair.a.sql("SELECT id FROM t") == [(6,)]
    assert pair.b.admin("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()") == [(0,)]


def test_a_blocked_target_is_waited_for(pair, make_job):
    """While a lock holds up the target the source's connection lives on."""
    pair.a.server.sql("ALTER SYSTEM SET wal_sender_timeout = '1s'")
    pair.a.server.sql("SELECT pg_reload_conf()")
    try:
        job = run_both(pair, make_job, KEYED, rows=["INSERT INTO t VALUES (1)"])

        def sender():
            return (pair.a.admin("SELECT pid FROM pg_stat_replication WHERE application_name LIKE %s",
                                 (f"twsync:{job.name}:forward%",)), job.task("forward")["restarts"])

        for n in range(3):
            with Pulse() as pulse:      # the time-out is there before the lock and after it, too
                job.wait_synced()
                before = sender()
                with pair.b.transaction() as cur:
                    cur.execute("SELECT * FROM t WHERE id = 1 FOR UPDATE")
                    pair.a.sql("UPDATE t SET n = n + 1 WHERE id = 1")
                    pair.a.sql("INSERT INTO t SELECT g, g, repeat('x', 1000) FROM generate_series(%s, %s) g",
                               (n * 20000 + 2, n * 20000 + 20000))
                    cur.execute("SELECT pg_sleep(4)")       # four time-outs long: the thing tested
                job.wait_synced()
                after = sender()
            compare.assert_same(pair)
            if after == before:
                break
            assert pulse.worst > 0.2, "the walsender was lost"
        else:
            pytest.skip("this machine lets processes stand too long to answer within a second")
    finally:
        pair.a.server.sql("ALTER SYSTEM RESET wal_sender_timeout")
        pair.a.server.sql("SELECT pg_reload_conf()")


def test_messages_and_foreign_tables_do_not_disturb(pair, make_job):
    """Logical messages of anybody, unselected tables, temporary tables: passed over."""
    job = run_both(pair, make_job, KEYED, schemas="public")
    pair.a.sql("CREATE SCHEMA aside CREATE TABLE x (id int)")
    pair.a.sql("SELECT pg_logical_emit_message(true, 'twsync', 'DROP TABLE t')", user="tw_plain")
    pair.a.sql("SELECT pg_logical_emit_message(false, 'twsync', repeat('x', 100000))", user="tw_plain")
    with pair.a.transaction() as cur:
        cur.execute("CREATE TEMP TABLE tmp (id int)")
        cur.execute("INSERT INTO tmp VALUES (1)")
        cur.execute("INSERT INTO aside.x VALUES (1)")
        cur.execute("INSERT INTO t VALUES (1)")
        cur.execute("SELECT pg_logical_emit_message(true, 'twsync', 'x')")
    job.wait_synced()
    assert pair.b.sql("SELECT id FROM t") == [(1,)]
    assert pg.lsn_int(job.task("forward")["applied_lsn"]) and job.task("forward")["state"] == "Running"
    assert job.stop() == tw.OK
