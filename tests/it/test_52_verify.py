"""`twsync verify`: finds every difference, and takes nothing for one that is only on its way."""

import json
import os

import pytest

import compare
import writers
from test_05_copy import SCHEMAS, load_everything
from tw import BAD_JOB, OK

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
