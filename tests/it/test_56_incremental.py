"""`twsync verify --incremental`: what was written since the last verification is compared, and no more."""

import os

import pytest

import tw
import writers
from test_05_copy import SCHEMAS, load_everything
from test_52_verify import DIFFER, POLICIES, key_of, plant, repair, verify
from tw import BAD_JOB, OK
from wait import wait_for

JOURNAL = {**POLICIES, "verify": {"journal": "yes"}}
USAGE = 2
TABLES = """CREATE TABLE t (id int PRIMARY KEY, v text, n int DEFAULT 0); INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, 20000) g;
            CREATE TABLE other (id int PRIMARY KEY, v text); INSERT INTO other SELECT g, 'o' FROM generate_series(1, 500) g"""


def start(pair, make_job, tables=TABLES):
    """A job whose journals begin: both sides have proved equal."""
    pair.a.sql(tables)
    job = make_job(pair, **JOURNAL).start()
    job.wait_synced()
    code, found, tables, summary = incremental(job)
    assert code == OK and not summary["incremental"], summary      # the first one compares everything
    return job


def incremental(job, *args):
    return verify(job, "--incremental", *args)


def assert_equal(job):
    """Nothing differs in what was written; the number of keys by table."""
    code, found, tables, summary = incremental(job)
    assert code == OK and summary["incremental"], (found[:5], summary)
    return {name: t["rows"]["a"] for name, t in tables.items()}


def everything_is_compared(job):
    code, found, tables, summary = incremental(job)
    assert not summary["incremental"], summary
    return code


def test_only_what_was_written(pair, make_job):
    """Differences in rows that were written are told, with column and both values, until they are mended; others are not."""
    job = start(pair, make_job)
    assert assert_equal(job) == {}
    pair.a.sql("UPDATE t SET n = n + 1 WHERE id <= 300")
    pair.b.sql("UPDATE t SET n = n + 1 WHERE id BETWEEN 1001 AND 1100; DELETE FROM t WHERE id BETWEEN 1101 AND 1110;"
               " INSERT INTO t VALUES (30001, 'new')")
    job.wait_synced()
    plant(job, "b", "UPDATE t SET v = 'bent' WHERE id IN (7, 1050, 15000)", "DELETE FROM t WHERE id = 9",
          "INSERT INTO t VALUES (1105, 'back')", "UPDATE other SET v = 'bent' WHERE id = 1")
    for again in range(2):
        code, found, tables, summary = incremental(job)
        assert code == DIFFER and summary["incremental"] and set(tables) == {"public.t"}, summary
        assert tables["public.t"]["rows"]["a"] == 411
        assert sorted((f["found"], *key_of(f)) for f in found) == [
            ("differs", "1050"), ("differs", "7"), ("missing on a", "1105"), ("missing on b", "9")]
        bent = next(f for f in found if key_of(f) == ("7",))
        assert {"name": "v", "a": "v7", "b": "bent", "isPrimary": False} in [
            {k: c[k] for k in ("name", "a", "b", "isPrimary")} for c in bent["columns"]]
    code, found, tables, summary = verify(job)                     # all of it: the two others, too
    assert code == DIFFER and len(found) == 6
    code, found, tables, summary = repair(job, "--take", "a")
    assert code == OK and summary["repaired"] == 6, summary
    assert assert_equal(job) == {}
    pair.a.sql("UPDATE other SET v = 'p' WHERE id = 3")
    job.wait_synced()
    assert assert_equal(job) == {"public.other": 1}
    job.stop()


def test_under_load(pair, make_job, rng):
    """While both sides are written to nothing is told, and all that was written is looked at."""
    load_everything(pair.a)
    job = make_job(pair, SCHEMAS, **JOURNAL).start()
    job.wait_synced()
    assert everything_is_compared(job) == OK
    works = [writers.Writer(node, writers.Everything(node, rng), 40) for node in pair.nodes]
    looked = 0
    with writers.writing(*works):
        for n in range(5):
            before = sum(w.acknowledged for w in works)
            wait_for(lambda: sum(w.acknowledged for w in works) > before + 20, "they write")
            looked += sum(assert_equal(job).values())
    job.wait_synced()
    looked += sum(assert_equal(job).values())
    assert looked > 100 and assert_equal(job) == {}
    job.stop()


ODD = """CREATE TABLE "Odd ""Name" (a text, "b b" timestamptz, v text, PRIMARY KEY (a, "b b"));
         CREATE TABLE bag (v text); ALTER TABLE bag REPLICA IDENTITY FULL;
         CREATE TABLE emptied (id int PRIMARY KEY); INSERT INTO emptied SELECT generate_series(1, 10);
         CREATE TABLE parts (id int, r int, v text, PRIMARY KEY (id, r)) PARTITION BY RANGE (r);
         CREATE TABLE parts1 PARTITION OF parts FOR VALUES FROM (0) TO (10);
         CREATE TABLE parts2 PARTITION OF parts FOR VALUES FROM (10) TO (20)"""


def test_shapes(pair, make_job):
    """Keys of odd letters and several columns, changed keys, no key, TRUNCATE, partitions."""
    job = start(pair, make_job, ODD)
    keys = ["tab\there", "line\nbreak", "", "back\\slash", "\\N", "quote'\"", "snow\u2603man", "x" * 2000]
    for key in keys:
        pair.a.sql('INSERT INTO "Odd ""Name" VALUES (%s, %s, %s)', (key, "2020-02-02 02:02:02.123456+05", "v"))
    pair.a.sql("INSERT INTO bag VALUES ('x'), ('x'), (NULL); TRUNCATE emptied; INSERT INTO emptied VALUES (1), (2);"
               " INSERT INTO parts VALUES (1, 1, 'v'), (2, 11, 'v')")
    pair.b.sql("UPDATE \"Odd \"\"Name\" SET a = 'moved' WHERE a = ''")
    job.wait_synced()
    plant(job, "b", 'UPDATE "Odd ""Name" SET v = \'bent\'', "UPDATE bag SET v = 'y' WHERE v IS NULL", "INSERT INTO emptied VALUES (9)",
          "UPDATE parts SET v = 'bent'")
    plant(job, "a", "INSERT INTO \"Odd \"\"Name\" VALUES ('', '2020-02-02 02:02:02.123456+05', 'left behind')")
    code, found, tables, summary = incremental(job)
    assert code == DIFFER and summary["incremental"], summary
    count = {}
    for f in found:
        count[f["table"]] = count.get(f["table"], 0) + 1
    assert count == {'public.Odd "Name': len(keys) + 1, "public.bag": 2, "public.emptied": 1, "public.parts1": 1,
                     "public.parts2": 1}, count
    job.stop()


@pytest.mark.rung("origin")
def test_after_ddl(pair, make_job):
    """DDL may give rows values of each side's own: everything is compared once; a new table alone is no reason."""
    job = start(pair, make_job)
    pair.a.sql("CREATE TABLE fresh (id int PRIMARY KEY); INSERT INTO fresh VALUES (1)")
    job.wait_synced()
    assert assert_equal(job) == {"public.fresh": 1}
    pair.a.sql("ALTER TABLE other ADD c timestamptz DEFAULT clock_timestamp()")
    job.wait_synced()
    assert everything_is_compared(job) == OK      # the table was copied again
    job.stop()


def test_killed(pair, make_job, rng):
    """Tasks that are killed while they write: no key they have written is missing in the journal."""
    job = start(pair, make_job)
    for n in range(5):
        for k in range(30):
            pair.a.sql("UPDATE t SET n = n + 1 WHERE id = %s", (n * 30 + k + 1,))
        job.kill_child(rng)
    for task in tw.TASKS:
        job.wait_state(task, "Running")
    job.wait_synced()
    plant(job, "b", "UPDATE t SET v = 'bent' WHERE id <= 150")
    code, found, tables, summary = incremental(job)
    assert code == DIFFER and summary["incremental"] and len(found) == 150, (len(found), summary)
    job.stop()


@pytest.mark.rung("marker")
def test_gaps(pair, make_job, tmp_path):
    """What the journals do not know is found, for then everything is compared; afterwards they do again."""
    job = start(pair, make_job)
    pair.a.sql("UPDATE t SET v = 'w' WHERE id = 5")
    job.wait_synced()
    head = os.path.join(job.state_dir, "journal.forward")

    def comes_back(spoil):
        job.stop()
        spoil()
        job.start()
        job.wait_synced()
        assert everything_is_compared(job) == OK
        assert assert_equal(job) == {}

    def remove():
        os.remove(head)

    def off_and_on():
        job.change(verify={"journal": "no"})
        job.start()
        pair.a.sql("UPDATE t SET v = 'x' WHERE id = 6")
        job.wait_synced()
        job.stop()
        job.change(verify={"journal": "yes"})

    def other_boot():
        with open(head, "r+b") as f:
            text = f.read(64)
            f.seek(0)
            f.write(text[:8] + b"0" * 8 + text[16:])

    def garbage():
        with open(head, "ab") as f:
            f.write(b"\0" * 4096)

    for spoil in (remove, off_and_on, other_boot, garbage):
        comes_back(spoil)
    pair.a.sql("ALTER TABLE other RENAME TO another")               # marker rung: b is told by hand
    pair.b.sql("ALTER TABLE other RENAME TO another")
    pair.a.sql("UPDATE another SET v = 'x' WHERE id = 6")
    job.wait_synced()
    code, found, tables, summary = incremental(job)
    assert code == OK, (found, summary)
    job.stop()
    job.release()
    assert not os.path.exists(head)


@pytest.mark.rung("marker")
def test_too_many(pair, make_job):
    """More keys than are worth it: the file stays small, and everything is compared."""
    job = start(pair, make_job, "CREATE TABLE wide (id text PRIMARY KEY)")
    for n in range(7):
        pair.a.sql("INSERT INTO wide SELECT repeat('x', 1000) || g FROM generate_series(%s::int, %s::int) g", (n * 10000, n * 10000 + 9999))
    job.wait_synced()
    assert os.path.getsize(os.path.join(job.state_dir, "journal.forward")) < 80 << 20
    assert everything_is_compared(job) == OK
    assert assert_equal(job) == {}
    job.stop()


@pytest.mark.rung("marker")
def test_refused(pair, make_job):
    pair.a.sql(TABLES)
    job = make_job(pair, **POLICIES)
    code, out, err = job.command("verify", job.path, "--incremental")
    assert code == USAGE and "journal = yes in [verify]" in err, err
    job.change(verify={"journal": "yes"})
    for more in (["--count"], ["--sample", "50"], ["t"]):
        code, out, err = job.command("verify", job.path, "--incremental", *more)
        assert code == USAGE and "compares all that was written" in err, err


def verification(job):
    """What status says of the last one by the clock."""
    return job.status()["verification"]


def wait_verified(job, since, result):
    wait_for(lambda: verification(job) and verification(job)["at"] > since and verification(job)["result"] == result,
             f"a verification after {since or 'the start'} says {result}")
    return verification(job)["at"]


@pytest.mark.parametrize("compare", ["all", "written"])
def test_by_the_clock(pair, make_job, compare):
    """twsync verifies by itself, says what it found, and goes on by its report after a restart."""
    pair.a.sql(TABLES)
    job = make_job(pair, **{**JOURNAL, "verify": {"journal": "yes", "every": "1s", "compare": compare}}).start()
    job.wait_synced()
    at = wait_verified(job, "", "equal")
    assert not job.status()["warnings"]
    pair.a.sql("UPDATE t SET n = 1 WHERE id = 4")
    job.wait_synced()
    plant(job, "b", "UPDATE t SET v = 'bent' WHERE id = 4")
    at = wait_verified(job, at, "differs")
    warnings = job.status()["warnings"]
    assert any("has found 1 differences" in w["text"] and "twsync repair" in w["what_to_do"] for w in warnings), warnings
    with open(os.path.join(job.state_dir, "verification")) as f:
        assert '"found":"differs"' in f.read()
    job.change(verify={"every": "1h"})
    code, out, err = job.command("reload", job.path)
    assert code == OK, err
    at = verification(job)["at"]
    job.stop()
    job.start()
    job.wait_synced()
    wait_for(lambda: verification(job), "the report is read")
    assert verification(job)["at"] >= at and verification(job)["result"] == "differs"
    code, found, tables, summary = repair(job, "--take", "a")
    assert code == OK, summary
    job.change(verify={"every": "1s"})
    code, out, err = job.command("reload", job.path)
    assert code == OK, err
    wait_verified(job, at, "equal")
    wait_for(lambda: not job.status()["warnings"], "the warning is gone")
    job.stop()


@pytest.mark.rung("marker")
def test_clock_refused(pair, make_job):
    pair.a.sql(TABLES)
    job = make_job(pair, **POLICIES, verify={"every": "1h", "compare": "written"})
    code, out, err = job.command("check", job.path)
    assert code == BAD_JOB and "journal = yes" in err, err
    job.change(verify={"compare": None})
    job.start()
    assert verification(job) is None or verification(job)["result"] == "equal"
    assert "verify" in job.processes()
    job.change(verify={"every": None})
    code, out, err = job.command("reload", job.path)
    assert code == OK, err
    wait_for(lambda: "verify" not in job.processes(), "nobody verifies any more")
    job.stop()
