"""`twsync verify`: finds every difference, and takes nothing for one that is only on its way."""

import contextlib
import json
import os
import subprocess
import threading

import pytest

import compare
import tw
import writers
from test_05_copy import SCHEMAS, load_everything
from tw import BAD_JOB, OK
from wait import wait_for

DIFFER, INCOMPLETE = 7, 1
POLICIES = {"forward": {"on_conflict": "overwrite"}, "reverse": {"on_conflict": "ignore"}}


def verify(job, *args, timeout=300):
    """Exit code, the findings, the tables by name, the summary."""
    code, out, err = job.command("verify", job.path, *args, "--json", timeout=timeout)
    lines = [json.loads(line) for line in out.splitlines()]
    assert lines and "result" in lines[-1], f"exit {code}\n{out[-2000:]}\n{err}"
    found = [x for x in lines if "found" in x]
    tables = {x["table"]: x for x in lines if "rows" in x and "table" in x}
    assert {DIFFER: "differs", INCOMPLETE: "incomplete", OK: "equal"}[code] == lines[-1]["result"], lines[-1]
    return code, found, tables, lines[-1]


def key_of(finding):
    return tuple(c.get("a", c.get("b")) for c in finding["columns"] if c["isPrimary"])


def assert_equal(job, *args):
    code, found, tables, summary = verify(job, *args)
    assert code == OK, (found[:5], [t for t in tables.values() if t["note"] or t["undecided"]], summary)
    return tables


def test_everything_is_equal(pair, make_job):
    """All types and kinds of tables, rows by the thousand, and the schema; for people, too."""
    load_everything(pair.a)
    job = make_job(pair, SCHEMAS, **POLICIES).start()
    job.wait_synced()
    tables = assert_equal(job)
    assert sum(t["rows"]["a"] for t in tables.values()) > 500
    code, out, err = job.command("verify", job.path)
    assert code == OK and out.rstrip().endswith("everything is equal"), out + err
    assert "the schemas are equal" in out


PLANTED = {
    "differs": [
        "one bit", "NULL", "empty", "blank", "minus zero", "swapped", "toast", "number", "instant", "array", "flag"],
    "missing on b": ["missing"], "missing on a": ["extra"],
}


@pytest.mark.rung("origin")
def test_hundred_of_hundred(pair, make_job):
    """A hundred differences in a million rows, of every sort: all are told, nothing else; then mended."""
    pair.a.sql("""CREATE TABLE t (id bigint PRIMARY KEY, v text, n numeric, f float8, at timestamptz, l int[], ok bool,
                                  big text);
                  ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
                  INSERT INTO t SELECT g, 'value ' || g, g / 7.0, g * 0.5, '2026-01-01'::timestamptz + g * '1 s'::interval,
                                       ARRAY[g, g + 1], g % 2 = 0, CASE g % 10000 WHEN 7 THEN repeat('0123456789', 500) END
                  FROM generate_series(1, 1000000) g;
                  UPDATE t SET v = '' WHERE id % 50000 = 3;
                  UPDATE t SET v = NULL WHERE id % 50000 = 4;
                  UPDATE t SET f = 0 WHERE id % 50000 = 5""")
    job = make_job(pair, **POLICIES).start()
    job.wait_synced()
    assert_equal(job)
    changes = {  # of one row in 100,000 each: ten rows
        8: "v = overlay(v PLACING chr(ascii(v) # 1) FROM 1)", 3: "v = NULL", 4: "v = ''", 9: "v = v || ' '",
        5: "f = '-0'", 7: "big = overlay(big PLACING 'x' FROM 4321)", 12: "n = n + 0.0000000001",
        13: "at = at + '1 microsecond'", 14: "l = l || NULL::int", 15: "ok = NULL"}
    want = {}
    with job.unseen("b") as cur:
        for n, change in changes.items():
            cur.execute(f"UPDATE t SET {change} WHERE id % 100000 = {n + (50000 if n == 3 else 0)} RETURNING id")
            rows = [str(row[0]) for row in cur]
            assert rows
            want.update({id: "differs" for id in rows[:8 if n != 15 else 4]})
            for id in rows[8 if n != 15 else 4:]:   # a hundred in all
                cur.execute(f"UPDATE t SET v = o.v, n = o.n, f = o.f FROM t o WHERE false AND t.id = {id}")
                want[id] = "differs"
        cur.execute("UPDATE t SET v = CASE id WHEN 500001 THEN 'value 500002' ELSE 'value 500001' END"
                    " WHERE id IN (500001, 500002)")
        want.update({"500001": "differs", "500002": "differs"})
        cur.execute("DELETE FROM t WHERE id IN (1, 777777, 1000000)")
        want.update({id: "missing on b" for id in ("1", "777777", "1000000")})
        cur.execute("INSERT INTO t (id, v) VALUES (-9000000000, 'extra'), (0, 'extra'), (1000001, NULL)")
        want.update({id: "missing on a" for id in ("-9000000000", "0", "1000001")})
    sql = os.path.join(job.folder, "mend.sql")
    code, found, tables, summary = verify(job, "--sql", sql, "--take", "a")
    got = {key_of(f)[0]: f["found"] for f in found}
    assert code == DIFFER and got == want, (len(got), len(want), set(want.items()) ^ set(got.items()))
    assert len(found) == len(want) == summary["differences"] and len(want) >= 100, len(want)
    assert tables["public.t"]["missing"] == {"a": 3, "b": 3}
    one = next(f for f in found if key_of(f) == ("500001",))
    assert one["columns"] == [{"name": "id", "isPrimary": True, "a": "500001", "b": "500001"},
                              {"name": "v", "isPrimary": False, "a": "value 500001", "b": "value 500002"}]
    with open(sql) as f:
        pair.b.sql(f.read().replace("%", "%%"))
    job.wait_synced()
    assert_equal(job)
    compare.assert_same(pair)


def test_under_load(pair, make_job, rng):
    """While both sides are written to nothing is taken for a difference; what differs is found all the same."""
    load_everything(pair.a)
    pair.a.sql("CREATE TABLE quiet (id int PRIMARY KEY, v text); INSERT INTO quiet SELECT g, 'v' FROM"
               " generate_series(1, 5000) g")
    job = make_job(pair, SCHEMAS + ", public", **POLICIES).start()
    job.wait_synced()
    works = [writers.Writer(node, writers.Everything(node, rng), 40) for node in pair.nodes]
    with writers.writing(*works):
        for round in range(4):
            code, found, tables, summary = verify(job)
            assert not found and code == OK, (found[:3], [t for t in tables.values() if t["undecided"] or t["note"]])
        with job.unseen("b") as cur:
            cur.execute("UPDATE quiet SET v = 'w' WHERE id = 4711; DELETE FROM quiet WHERE id = 1")
        code, found, _, _ = verify(job)
        assert code == DIFFER and sorted((key_of(f)[0], f["found"]) for f in found) == [
            ("1", "missing on b"), ("4711", "differs")]
    assert all(w.acknowledged > 30 for w in works)


@pytest.mark.rung("marker")
def test_refusals(pair, make_job):
    """What cannot be told is refused, with what to do."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY)")
    job = make_job(pair, **POLICIES)
    code, _, err = job.command("verify", job.path)
    assert code == BAD_JOB and "does not run on this host" in err and "--at-rest" in err
    job.start()
    job.wait_synced()
    for args, says in ((["--sample", "0"], "percentage"), (["--sample", "x"], "percentage"), (["--rate", "0"], "rows"),
                       (["--sql", "/tmp/x"], "belong together"), (["nowhere"], "does not carry a table nowhere")):
        code, _, err = job.command("verify", job.path, *args)
        assert code == BAD_JOB and says in err, (args, err)
    job.command("pause", job.path, "--task", "reverse")
    job.wait_state("reverse", "Paused")
    code, _, err = job.command("verify", job.path)
    assert code == BAD_JOB and "task reverse is Paused" in err
    assert_equal(job, "--at-rest")


def plant(job, letter, *statements):
    with job.unseen(letter) as cur:
        for sql in statements:
            cur.execute(sql)


def repair(job, *args, timeout=300):
    code, out, err = job.command("repair", job.path, *args, "--json", timeout=timeout)
    assert "result" in out, out + err
    lines = [json.loads(line) for line in out.splitlines()]
    return code, [x for x in lines if "found" in x], {x["table"]: x for x in lines if "rows" in x and "table" in x}, lines[-1]


@pytest.mark.parametrize("take", [None, "a", "b"])
def test_repair(pair, make_job, take):
    """The rows that differ become the winner's on both sides, by a marked write, while both are written to."""
    pair.a.sql("""CREATE TABLE p (id int PRIMARY KEY, u text UNIQUE, n int);
                  CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p, v text);
                  CREATE TABLE busy (id int PRIMARY KEY, n int);
                  INSERT INTO p SELECT g, 'u' || g, 0 FROM generate_series(1, 3000) g;
                  INSERT INTO c SELECT g, g, 'c' FROM generate_series(1, 3000) g;
                  INSERT INTO busy SELECT g, 0 FROM generate_series(1, 20) g""")
    job = make_job(pair, **POLICIES).start()
    job.wait_synced()
    plant(job, "b", "DELETE FROM c WHERE id <= 400", "DELETE FROM p WHERE id <= 200",
          "UPDATE p SET u = 'x' || u WHERE id BETWEEN 500 AND 600",
          "UPDATE p SET u = 'swap' WHERE id = 700", "UPDATE p SET u = 'u700' WHERE id = 701",
          "UPDATE p SET u = 'u701' WHERE id = 700", "INSERT INTO p VALUES (9000, 'only b', 1)",
          "INSERT INTO c VALUES (9000, 9000, 'only b')")
    busy = [writers.Writer(node, lambda cur, m=m: cur.execute(
        "UPDATE busy SET n = n + 1 WHERE id = 1 + (random() * 9)::int * 2 + %s", (m,)), 100)
        for m, node in enumerate(pair.nodes)]
    with writers.writing(*busy):
        before = [node.one("SELECT count(*) FROM p") for node in pair.nodes]
        code, found, tables, summary = repair(job, "--dry-run", *(["--take", take] if take else []))
        assert code == DIFFER and summary["differences"] == 400 + 200 + 101 + 2 + 2 and summary["repaired"] == 0, summary
        assert before == [node.one("SELECT count(*) FROM p") for node in pair.nodes]
        code, found, tables, summary = repair(job, *(["--take", take] if take else []))
        assert code == OK and summary["repaired"] == summary["differences"] == 705, (summary, tables)
    job.wait_synced()
    assert_equal(job)
    compare.assert_same(pair)
    assert pair.a.one("SELECT count(*) FROM p") == (3000 if take != "b" else 2801)
    assert pair.a.one("SELECT count(*) FROM p WHERE u = 'only b'") == (take == "b")
    for task in ("forward", "reverse"):
        assert job.task(task)["state"] == "Running"


@pytest.mark.rung("marker")
def test_repair_one_way(pair, make_job):
    """Without a way back a's rows are right, and nothing is written there."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 2000) g;"
               "CREATE TABLE bag (v text); INSERT INTO bag VALUES ('x'), ('x'), ('y')")
    job = make_job(pair, forward={"on_conflict": "overwrite"}, reverse={"enabled": False}).start(wait=["forward"])
    job.wait_synced(["forward"])
    pair.b.sql("UPDATE t SET v = 'b' WHERE id % 10 = 0; DELETE FROM t WHERE id % 7 = 0; INSERT INTO t VALUES (0, 'more');"
               "DELETE FROM bag WHERE v = 'y'; INSERT INTO bag VALUES ('x')")
    code, _, err = job.command("repair", job.path, "--take", "b")
    assert code == BAD_JOB and "writes nothing on a" in err
    with writers.writing(writers.Writer(pair.a, lambda cur: cur.execute(
            "UPDATE t SET v = v || 'w' WHERE id = 1 + (random() * 1999)::int"), 20)):
        code, found, tables, summary = repair(job, "t")
        assert code == OK and summary["repaired"] == summary["differences"] >= 400, summary
    code, found, tables, _ = repair(job, "bag")
    assert code == DIFFER and "resync" in tables["public.bag"]["note"] and sorted(
        (f["found"], f["columns"][0].get("a", f["columns"][0].get("b"))) for f in found) == [
            ("missing on a", "x"), ("missing on b", "y")]
    code, out, err = job.command("resync", job.path, "bag")
    assert code == OK, out + err
    job.wait_synced(["forward"])
    assert_equal(job)
    compare.assert_same(pair)


@pytest.mark.rung("origin")
def test_repair_latest(pair, make_job):
    """Under latest the row that was written last wins, and keeps its time on the other side."""
    for node in pair.nodes:
        assert node.one("SHOW track_commit_timestamp") == "on"
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 10) g")
    job = make_job(pair, forward={"on_conflict": "latest"}, reverse={"on_conflict": "latest"}).start()
    job.wait_synced()
    plant(job, "b", "UPDATE t SET v = 'old b' WHERE id IN (1, 2)")
    plant(job, "a", "UPDATE t SET v = 'new a' WHERE id = 1", "DELETE FROM t WHERE id = 5")
    plant(job, "b", "UPDATE t SET v = 'new b' WHERE id = 3")
    code, found, tables, summary = repair(job)
    assert code == OK and summary["repaired"] == 4, (summary, tables)
    compare.assert_same(pair)
    assert dict(pair.a.sql("SELECT id, v FROM t WHERE id < 6")) == {1: "new a", 2: "old b", 3: "new b", 4: "v", 5: "v"}
    times = [dict(node.sql("SELECT id, pg_xact_commit_timestamp(xmin) FROM t WHERE id < 4")) for node in pair.nodes]
    assert times[0] == times[1]
    for node in pair.nodes:
        assert not node.admin("SELECT 1 FROM pg_replication_origin WHERE roname LIKE '%repair'")


# ---- what attacks have found, by number

def test_01_table_goes_away(pair, make_job):
    """A table that is dropped on a while others are compared ended the program."""
    pair.a.sql("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a SELECT generate_series(1, 60);"
               "CREATE TABLE z (id int PRIMARY KEY)")
    job = make_job(pair, forward={**POLICIES["forward"], "ddl": False}, reverse=POLICIES["reverse"]).start()
    job.wait_synced()
    process = subprocess.Popen([tw.BINARY, "verify", job.path, "--rate", "20"], stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(lambda: pair.a.admin("SELECT 1 FROM pg_stat_activity WHERE application_name LIKE '%%:verify' AND query LIKE '%%\"a\"%%'"),
             "the first table is compared")
    pair.a.sql("DROP TABLE z")
    out = process.communicate(timeout=120)[0]
    assert process.returncode in (INCOMPLETE, DIFFER) and "a does not have it any more" in out, out


@pytest.mark.rung("marker")
def test_02_minutes(pair, make_job):
    """What the time did not suffice for was called equal."""
    pair.a.sql("CREATE TABLE a (v text); ALTER TABLE a REPLICA IDENTITY FULL; INSERT INTO a SELECT 'x' FROM generate_series(1, 100);"
               "CREATE TABLE z (id int PRIMARY KEY)")
    job = make_job(pair, **POLICIES).start()
    job.wait_synced()
    code, found, tables, summary = verify(job, "--time", "4s", "--rate", "10")
    assert code == INCOMPLETE and tables["public.z"]["note"] == "the time was over" and summary["incomplete"] >= 1


@pytest.mark.rung("marker")
def test_03_count(pair, make_job):
    """--count found nothing where one key had gone and another had come."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT g * 2 FROM generate_series(1, 3000) g")
    job = make_job(pair, **POLICIES).start()
    job.wait_synced()
    plant(job, "b", "DELETE FROM t WHERE id = 10", "INSERT INTO t VALUES (11)")
    code, found, _, _ = verify(job, "--count")
    assert code == DIFFER and sorted((key_of(f)[0], f["found"]) for f in found) == [("10", "missing on b"), ("11", "missing on a")]


@pytest.mark.rung("origin")
def test_04_own_cast(pair, make_job):
    """A type's own cast to text may say less than its values."""
    for node in pair.nodes:
        node.sql("""CREATE TYPE mood AS ENUM ('sad', 'ok', 'fine');
                    CREATE FUNCTION mt(mood) RETURNS text IMMUTABLE LANGUAGE sql AS $$SELECT CASE WHEN $1 = 'sad' THEN 'bad' ELSE 'good' END$$;
                    CREATE CAST (mood AS text) WITH FUNCTION mt(mood)""")
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, m mood); INSERT INTO t SELECT g, 'ok' FROM generate_series(1, 10) g;"
               "CREATE TABLE k (m mood PRIMARY KEY, v int); INSERT INTO k VALUES ('ok', 1), ('fine', 2)")
    job = make_job(pair, objects={"existing": "keep"}, **POLICIES).start()
    job.wait_synced()
    plant(job, "b", "UPDATE t SET m = 'fine' WHERE id = 7", "UPDATE k SET v = 3 WHERE m = 'ok'")
    code, found, tables, _ = verify(job, "t", "k")
    assert code == DIFFER and [(key_of(f), f["columns"][1]["a"], f["columns"][1]["b"]) for f in found] == [
        (("7",), "ok", "fine"), (("ok",), "1", "3")] or sorted(map(key_of, found)) == [("7",), ("ok",)], (found, tables)


@pytest.mark.rung("origin")
def test_05_commit_that_waits(own_pair, make_job):
    """A commit that waits for a synchronous standby is on b, and not to be seen on a."""
    pair = own_pair
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 10) g")
    job = make_job(pair, **POLICIES).start()
    job.wait_synced()
    pair.a.server.sql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    pair.a.server.sql("SELECT pg_reload_conf()")
    writer = threading.Thread(target=lambda: pair.a.sql("UPDATE t SET v = 'w' WHERE id = 7"))
    writer.start()
    wait_for(lambda: pair.b.sql("SELECT 1 FROM t WHERE v = 'w'"), "it is on b")
    code, found, tables, _ = verify(job, "t")
    assert not found and code == INCOMPLETE, (found, tables)
    pair.a.server.sql("ALTER SYSTEM RESET synchronous_standby_names")
    pair.a.server.sql("SELECT pg_reload_conf()")
    writer.join()
    assert_equal(job, "t")


@pytest.mark.parametrize("two_way", [True, False])
@pytest.mark.rung("marker")
def test_06_set_columns(pair, make_job, two_way):
    """A value that the job makes is what the column makes of it; with a way back nothing can be said of it."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, n numeric(10,2), at timestamp(0), v text); INSERT INTO t SELECT g, g, '2026-01-01'::timestamp"
               " + g * '0.4 s'::interval, 'v' FROM generate_series(1, 50) g")
    job = make_job(pair, **{**POLICIES, "reverse": {**POLICIES["reverse"], "enabled": two_way}},
                   **{"table public.t": {"set n": "n / 3", "set at": "at + interval '0.7 s'"}})
    job.start(wait=tw.TASKS if two_way else ["forward"])
    job.wait_synced(tw.TASKS if two_way else ["forward"])
    if two_way:
        pair.b.sql("INSERT INTO t VALUES (1000, 5, now(), 'b')")
        job.wait_synced()
    assert_equal(job, "t")
    if two_way:
        plant(job, "b", "UPDATE t SET v = 'w' WHERE id = 5")
    else:
        pair.b.sql("UPDATE t SET n = n + 0.01 WHERE id = 5")
    code, found, _, _ = verify(job, "t")
    assert code == DIFFER and [key_of(f) for f in found] == [("5",)]


@pytest.mark.rung("origin")
def test_07_ddl_on_its_way(pair, make_job):
    """DDL that b does not have yet is no difference."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100)")
    job = make_job(pair, **POLICIES).start()
    job.wait_synced()
    ended = threading.Event()

    def change():
        for n in range(1000):
            if ended.is_set():
                return
            pair.a.sql(f"ALTER TABLE t ADD c{n} int")
            ended.wait(1)

    changer = threading.Thread(target=change)
    changer.start()
    try:
        codes = []
        for _ in range(6):
            code, found, tables, summary = verify(job, timeout=100)
            assert code in (OK, INCOMPLETE) and not found, (found, tables, summary)
            codes.append(code)
        assert OK in codes
    finally:
        ended.set()
        changer.join()


@pytest.mark.rung("marker")
def test_08_words(pair, make_job):
    """A name that is no table of the job was passed over if another one was."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY)")
    job = make_job(pair, **POLICIES).start()
    code, out, err = job.command("verify", job.path, "u", "nowhere")
    assert code == BAD_JOB and "nowhere" in err


@pytest.mark.rung("marker")
def test_09_keys_written_otherwise(pair, make_job):
    """Keys that are equal and written otherwise are one row; keys of domains have their own collation."""
    pair.a.sql("""CREATE TABLE n (k numeric PRIMARY KEY, v text); INSERT INTO n SELECT g, 'v' FROM generate_series(1, 20) g;
                  CREATE DOMAIN dom AS text COLLATE "C"; CREATE TABLE d (k dom COLLATE "POSIX" PRIMARY KEY, v text);
                  INSERT INTO d SELECT 'k' || g, 'v' FROM generate_series(1, 20) g;
                  CREATE TABLE c (k char(10) PRIMARY KEY, v char(5)); INSERT INTO c SELECT 'k' || g, 'v' FROM generate_series(1, 20) g""")
    job = make_job(pair, **POLICIES).start()
    job.wait_synced()
    plant(job, "b", "UPDATE n SET k = 7.00 WHERE k = 7", "UPDATE d SET v = 'w' WHERE k = 'k5'", "UPDATE c SET v = 'w' WHERE k = 'k5'")
    code, found, _, summary = verify(job, "n", "d", "c")
    assert code == DIFFER and summary["differences"] == 3 and sorted(f["table"] for f in found) == ["public.c", "public.d", "public.n"], found


@pytest.mark.rung("marker")
def test_10_sql_under_odd_settings(pair, make_job):
    """The statements say what they mean whatever the database's defaults are."""
    pair.a.sql("CREATE TYPE pairs AS (x int, y text); CREATE TABLE t (k pairs PRIMARY KEY, a text[], n int GENERATED ALWAYS AS IDENTITY);"
               "INSERT INTO t SELECT ROW(g, 'y')::pairs, ARRAY[NULL, 'x'] FROM generate_series(1, 10) g")
    job = make_job(pair, **POLICIES).start()
    job.wait_synced()
    plant(job, "b", "UPDATE t SET a = '{a}' WHERE (k).x = 3", "DELETE FROM t WHERE (k).x = 4")
    pair.b.set_hostile(0)
    sql = os.path.join(job.folder, "mend.sql")
    assert verify(job, "--sql", sql, "--take", "a")[0] == DIFFER
    with open(sql) as f, contextlib.closing(pair.b.connect()) as conn:
        conn.cursor().execute("SET array_nulls = off; SET xmloption = document")
        conn.cursor().execute(f.read())
    job.wait_synced()
    assert_equal(job, "t")


@pytest.mark.parametrize("version", [18])
@pytest.mark.rung("marker")
def test_11_null_in_a_key(pair, make_job, version):
    """Since 18 a column may be NOT NULL and hold NULL: such a key is none."""
    pair.a.sql("CREATE TABLE t (id int, v text); INSERT INTO t VALUES (NULL, 'a'), (1, 'b'); CREATE UNIQUE INDEX ON t (id);"
               "ALTER TABLE t ADD CONSTRAINT c NOT NULL id NOT VALID; ALTER TABLE t REPLICA IDENTITY FULL")
    job = make_job(pair, **POLICIES).start()
    job.wait_synced()
    plant(job, "b", "DELETE FROM t WHERE id IS NULL")
    code, found, tables, _ = verify(job, "t")
    assert code == DIFFER and [f["found"] for f in found] == ["missing on b"], (found, tables)


@pytest.mark.rung("marker")
def test_12_rules_left_out(pair, make_job):
    """A table that was not compared is not called equal."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY)")
    job = make_job(pair, **POLICIES, **{"table public.u": {"operations": "insert"}}).start()
    job.wait_synced()
    code, out, _ = job.command("verify", job.path)
    assert code == OK and "not compared: the job does not carry every kind of change" in out and "but for 1 table" in out, out


# ---- the same of repair

@pytest.mark.rung("origin")
def test_21_columns_of_one_side(pair, make_job):
    """Rows that swap unique values left and came again without the columns that the job does not carry."""
    pair.a.sql("CREATE TABLE p (id int PRIMARY KEY, u text UNIQUE, note text); INSERT INTO p VALUES (1, 'x', 'kept'), (2, 'y', 'kept')")
    job = make_job(pair, **POLICIES, **{"table public.p": {"without": "note"}}).start()
    job.wait_synced()
    plant(job, "b", "UPDATE p SET u = 'z' WHERE id = 1", "UPDATE p SET u = 'x' WHERE id = 2", "UPDATE p SET u = 'y' WHERE id = 1")
    code, _, tables, summary = repair(job, "--take", "b")
    assert code == OK and pair.a.sql("SELECT * FROM p ORDER BY 1") == [(1, "y", "kept"), (2, "x", "kept")], (tables, summary)


@pytest.mark.rung("marker")
def test_22_cascades(pair, make_job):
    """What foreign keys took along with a repaired row comes back."""
    pair.a.sql("""CREATE TABLE p (id int PRIMARY KEY, s bigint GENERATED ALWAYS AS IDENTITY);
                  CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p ON DELETE CASCADE);
                  INSERT INTO p SELECT generate_series(1, 5); INSERT INTO c SELECT g, g FROM generate_series(1, 5) g;
                  CREATE TABLE q (id int PRIMARY KEY, u text UNIQUE); INSERT INTO q VALUES (1, 'x'), (2, 'y');
                  CREATE TABLE z (id int PRIMARY KEY, q text REFERENCES q (u) ON UPDATE CASCADE); INSERT INTO z VALUES (1, 'y')""")
    job = make_job(pair, **POLICIES).start()
    job.wait_synced()
    plant(job, "b", "ALTER TABLE p ALTER s SET GENERATED BY DEFAULT", "UPDATE p SET s = 99 WHERE id = 2",
          "ALTER TABLE p ALTER s SET GENERATED ALWAYS", "UPDATE q SET u = 'z' WHERE id = 2", "UPDATE q SET u = 'y' WHERE id = 1",
          "UPDATE z SET q = 'y'")
    code, _, tables, summary = repair(job)
    assert code == OK, (tables, summary)
    compare.assert_contents(pair)


@pytest.mark.rung("marker")
def test_23_moved_while_read(pair, make_job):
    """A row that differs was given a key where nobody looked any more."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' FROM generate_series(100, 3000) g")
    job = make_job(pair, **POLICIES).start()
    job.wait_synced()
    plant(job, "b", "UPDATE t SET v = 'b' WHERE id = 2900")
    process = subprocess.Popen([tw.BINARY, "repair", job.path, "--rate", "1000"], stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(lambda: pair.b.admin("SELECT 1 FROM pg_stat_activity WHERE application_name LIKE '%%:verify' AND query LIKE '%%> ($1%%'"),
             "it is past the first rows")
    pair.a.sql("UPDATE t SET id = 10 WHERE id = 2900")
    out = process.communicate(timeout=120)[0]
    assert process.returncode == OK and "1 repaired" in out, out
    job.wait_synced()
    compare.assert_same(pair)


@pytest.mark.rung("marker")
def test_24_one_row_is_locked(pair, make_job):
    """It keeps nobody else from being repaired, and is said to be locked."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 40) g")
    job = make_job(pair, **POLICIES).start()
    job.wait_synced()
    plant(job, "b", "UPDATE t SET v = 'b' WHERE id <= 20")
    with pair.b.transaction() as cur:
        cur.execute("SELECT FROM t WHERE id = 5 FOR UPDATE")
        code, _, tables, summary = repair(job)
        assert code == DIFFER and summary["repaired"] == 19 and "lock timeout" in tables["public.t"]["note"], (tables, summary)
    assert repair(job)[0] == OK
    compare.assert_same(pair)


@pytest.mark.rung("marker")
def test_25_shapes(pair, make_job):
    """Rows that can go only one after the other: references to itself, chains of tables, shifts and rotations of unique values."""
    pair.a.sql("""CREATE TABLE s (id int PRIMARY KEY, p int REFERENCES s); INSERT INTO s SELECT g, CASE WHEN g < 15 THEN g + 1 END FROM generate_series(1, 15) g;
                  CREATE TABLE a1 (id int PRIMARY KEY); INSERT INTO a1 VALUES (1)""")
    for n in range(2, 8):
        pair.a.sql(f"CREATE TABLE a{n} (id int PRIMARY KEY REFERENCES a{n - 1}); INSERT INTO a{n} VALUES (1)")
    pair.a.sql("""CREATE TABLE r (id int PRIMARY KEY, u int UNIQUE); INSERT INTO r SELECT g, g FROM generate_series(1, 150) g;
                  CREATE TABLE m (id int PRIMARY KEY, u int UNIQUE); INSERT INTO m SELECT g, g FROM generate_series(1, 40) g""")
    job = make_job(pair, **POLICIES).start()
    job.wait_synced()
    plant(job, "b", "DELETE FROM s", *(f"DELETE FROM a{n}" for n in range(7, 0, -1)),
          "UPDATE r SET u = -u", "UPDATE r SET u = id % 150 + 1", "UPDATE m SET u = -u", "UPDATE m SET u = id - 1")
    code, _, tables, summary = repair(job)
    assert code == OK and summary["repaired"] == 15 + 7 + 150 + 40, (summary, {t: x["note"] for t, x in tables.items() if x["note"]})
    compare.assert_same(pair)


@pytest.mark.rung("marker")
def test_26_most(pair, make_job):
    """So many and no more; those that were repaired are counted."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 100) g")
    job = make_job(pair, **POLICIES).start()
    job.wait_synced()
    plant(job, "b", "UPDATE t SET v = 'b' WHERE id <= 40")
    code, _, _, summary = repair(job, "--most", "10", "--dry-run")
    assert code == DIFFER and summary["differences"] == 10
    code, _, _, summary = repair(job, "--take", "a")
    assert code == OK and summary["repaired"] == 40
    compare.assert_same(pair)


@pytest.mark.rung("marker")
def test_13_stream_stands_still(pair, make_job):
    """A task that does not come by ends the waiting, also while the other one goes on."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 10) g")
    job = make_job(pair, **POLICIES).start()
    job.wait_synced()
    with pair.b.transaction() as cur:
        cur.execute("SELECT FROM t WHERE id = 5 FOR UPDATE")
        pair.a.sql("UPDATE t SET v = 'w' WHERE id = 5")
        code, found, tables, _ = verify(job, "t")
        assert code == INCOMPLETE and not found and "has not come by" in tables["public.t"]["note"], (found, tables)
    job.wait_synced()
    assert_equal(job, "t")


@pytest.mark.rung("marker")
def test_sample(pair, make_job):
    """About as many percent of the rows as asked for, others each time; between them all are found."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 4000) g")
    job = make_job(pair, **POLICIES).start()
    job.wait_synced()
    assert_equal(job, "t", "--sample", "30")
    plant(job, "b", "UPDATE t SET v = 'w' WHERE id % 10 = 0")
    seen = []
    for _ in range(2):
        code, found, tables, _ = verify(job, "t", "--sample", "50")
        assert code == DIFFER and 1700 < tables["public.t"]["rows"]["a"] < 2300 and 140 < len(found) < 260
        seen.append({key_of(f) for f in found})
    assert seen[0] != seen[1]


@pytest.mark.rung("origin")
def test_27_deferrable(pair, make_job):
    """A key that nobody would check in our session: the table is left as it is, and that is said."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, u int UNIQUE DEFERRABLE); INSERT INTO t VALUES (1, 10), (2, 30)")
    job = make_job(pair, **POLICIES).start()
    job.wait_synced()
    plant(job, "b", "UPDATE t SET u = 20 WHERE id = 1")
    code, _, tables, summary = repair(job)
    assert code == DIFFER and summary["repaired"] == 0 and "deferrable" in tables["public.t"]["note"], (tables, summary)
    assert pair.b.sql("SELECT u FROM t ORDER BY id") == [(20,), (30,)]
