"""A copy that was interrupted goes on where it was, with A being written: nothing lost, doubled or read again."""

import contextlib
import os
import random
import subprocess

import pytest

import compare
import tw
import writers
from wait import wait_for

ROWS = int(os.environ.get("TWSYNC_TEST_ROWS", 100000))
KILLS = int(os.environ.get("TWSYNC_TEST_KILLS", 5))
CHUNK = os.environ.get("TWSYNC_TEST_CHUNK", "1MB")
SLOWLY = {"full.rows": ROWS // 4}       # so that it can be interrupted

BIG = f"""
CREATE TABLE big (id int PRIMARY KEY, u int UNIQUE, n int, v text, w text);
INSERT INTO big SELECT g, g, 0, repeat('x', 120 + g % 60), repeat(md5(g::text), g % 5) FROM generate_series(1, {ROWS}) g;
CREATE INDEX ON big (n); CREATE TABLE short (id int PRIMARY KEY, v varchar(5) DEFAULT 'dd'); INSERT INTO short VALUES (1, 'abc');
CREATE TABLE pt (id int, k int, v text, PRIMARY KEY (id, k)) PARTITION BY LIST (k); CREATE TABLE pt1 PARTITION OF pt FOR VALUES
IN (1); CREATE TABLE pt2 PARTITION OF pt DEFAULT; INSERT INTO pt SELECT g, g % 2, 'p' FROM generate_series(1, 3000) g;
"""


class Churn:
    """Rows that move between pages, change their keys, swap unique values, go and come again."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.last = ROWS

    def __call__(self, cur):
        rng, n = self.rng, self.rng.randrange
        for _ in range(n(1, 5)):
            a, b = n(1, ROWS), n(1, ROWS)
            what = n(7)
            if what == 0:
                self.last += 1
                cur.execute("INSERT INTO big VALUES (%s, %s, 1, 'new', '') ON CONFLICT DO NOTHING", (self.last,) * 2)
            elif what == 1:
                cur.execute("UPDATE big SET n = n + 1, v = repeat('y', %s) WHERE id = %s", (n(400), a))
            elif what == 2:
                cur.execute("DELETE FROM big WHERE id = %s", (a,))
            elif what == 3:
                cur.execute("INSERT INTO big VALUES (%s, -%s, 2, repeat('again', %s), '') ON CONFLICT DO NOTHING",
                            (a, a, n(60)))
            elif what == 4:     # the unique value of one row becomes another's
                cur.execute("UPDATE big SET u = NULL WHERE id = %s", (a,))
                cur.execute("UPDATE big SET u = %s WHERE id = %s AND NOT EXISTS (SELECT FROM big WHERE u = %s)",
                            (a, b, a))
            elif what == 5:     # its key, too
                cur.execute("UPDATE big SET id = id + 100000000 WHERE id = %s AND NOT EXISTS (SELECT FROM big WHERE "
                            "id = %s)", (a, a + 100000000))
            else:
                cur.execute("UPDATE big SET n = n + 1 WHERE id BETWEEN %s AND %s", (a, a + n(20)))


def ledger(pair):
    if not pair.b.one("SELECT to_regclass('twsync.copied') IS NOT NULL", user="postgres"):
        return {}
    return {(row[0], row[1]): row[2:] for row in pair.b.admin(
        "SELECT table_name, chunk, from_page, to_page, snapshot_lsn, copied_at, rows FROM twsync.copied "
        "WHERE task LIKE '%forward'")}


def interrupt(job, rng, seconds):
    """Kill it after some more chunks, at any moment of the next one."""
    before = len(ledger(job.pair))
    job.start(wait=())
    want = before + rng.randrange(1, 3)
    try:
        wait_for(lambda: len(ledger(job.pair)) >= want or is_copied(job), "chunks", seconds)
        with contextlib.suppress(subprocess.TimeoutExpired):
            job.process.wait(rng.uniform(0, 0.1))
    finally:
        job.kill()


def part_copied(pair, job, rng, when):
    """Some of the table is there; the copy is interrupted, or goes on."""
    if when == "interrupted":
        half_copied(pair, job, rng)
    else:
        job.start(wait=())
        wait_for(lambda: len(ledger(pair)) > 1, "chunks")
        assert not is_copied(job)


def is_copied(job):
    if not job.pair.b.one("SELECT to_regclass('twsync.progress') IS NOT NULL", user="postgres"):
        return False
    return job.pair.b.one("SELECT bool_and(phase NOT IN ('init', 'schema', 'copy')) FROM twsync.progress WHERE task "
                          "LIKE '%forward'", user="postgres")


@pytest.mark.parametrize("workers", [1, 3])
def test_goes_on(pair, make_job, rng, workers):
    """Killed again and again: what the ledger has stays as it is, and both sides end equal, without a conflict."""
    pair.a.sql(BIG)
    job = make_job(pair, throttle=SLOWLY, forward={"workers": workers, "chunk_size": CHUNK},
                   reverse={"enabled": "no"})
    writer = writers.Writer(pair.a, Churn(rng.random()), 200)
    with writers.writing(writer):
        kills, known = 0, {}
        while kills < KILLS and not (known and is_copied(job)):
            interrupt(job, rng, 60)
            now = ledger(pair)
            assert {k: now.get(k) for k in known} == known, "a chunk that was there is there, untouched"
            known = now
            kills += 1
        assert kills >= 3
        job.start(wait=("forward",))
    now = ledger(pair)
    assert {k: now.get(k) for k in known} == known
    assert "goes on" in job.log_text() and "starting it over" not in job.log_text()
    job.wait_synced(("forward",))
    compare.assert_schema(pair)
    compare.assert_contents(pair)
    assert job.task("forward")["conflicts"] == 0
    assert "catching up to" in job.log_text()


def half_copied(pair, job, rng):
    interrupt(job, rng, 60)
    assert ledger(pair) and not is_copied(job)
    return ledger(pair)


AGAIN = {  # why it cannot go on, and what is done meanwhile
    "no key": ("ALTER TABLE big DROP CONSTRAINT big_pkey", None, "it has no key"),
    "written anew": (None, "UPDATE big SET n = 7 WHERE id % 3 = 0; VACUUM FULL big", "it was written anew since"),
    "truncated": (None, "TRUNCATE big; INSERT INTO big VALUES (1, 1, 1, 'one', '')", "it was written anew since"),
}


@pytest.mark.parametrize("name", AGAIN)
def test_starts_over(pair, make_job, rng, name):
    """Where pages no longer tell what was copied, or rows cannot be told apart, the table begins again, and says so."""
    before, meanwhile, why = AGAIN[name]
    pair.a.sql(BIG + (before or ""))
    job = make_job(pair, throttle=SLOWLY, forward={"workers": 1, "chunk_size": CHUNK}, reverse={"enabled": "no"})
    half_copied(pair, job, rng)
    for sql in (meanwhile or "").split("; "):
        if sql:
            pair.a.sql(sql)
    pair.a.sql("DELETE FROM big WHERE id IN (5, 50000); UPDATE big SET n = 99 WHERE id IN (6, 40000)")
    job.start(wait=("forward",))
    assert f"starting it over, for {why}" in job.log_text()
    job.wait_synced(("forward",))
    compare.assert_contents(pair)


def test_written_anew_while_copied(pair, make_job):
    """An old snapshot sees nothing of a table that was truncated since: noticed, never believed."""
    pair.a.sql(BIG)
    pair.a.sql("CREATE TABLE last (id int PRIMARY KEY); INSERT INTO last SELECT generate_series(1, 1000)")
    job = make_job(pair, throttle=SLOWLY, forward={"workers": 1, "chunk_size": CHUNK}, reverse={"enabled": "no"})
    job.start(wait=())
    wait_for(lambda: ledger(pair), "a chunk")
    assert not pair.b.admin("SELECT FROM twsync.copied WHERE table_name = 'last'"), "the small one comes last"
    pair.a.sql("TRUNCATE last; INSERT INTO last SELECT generate_series(1, 2000)")
    job.wait_state("forward", "Running")
    job.wait_synced(("forward",))
    assert "was written anew on a while it was copied" in job.log_text()
    compare.assert_contents(pair)


def test_key_of_the_user(pair, make_job, rng):
    """With schema = no the keys are there from the start, all of them: rows in their way do not get lost."""
    pair.a.sql(BIG)
    pair.b.sql("CREATE TABLE big (id int PRIMARY KEY, u int UNIQUE, n int, v text, w text); CREATE INDEX ON big (n); "
               + BIG[BIG.index("CREATE TABLE short"):])
    pair.b.sql("DELETE FROM short; DELETE FROM pt")
    job = make_job(pair, objects={"existing": "keep"}, reverse={"enabled": "no"}, throttle=SLOWLY,
                   forward={"workers": 2, "chunk_size": CHUNK, "schema": "no"})
    writer = writers.Writer(pair.a, Churn(rng.random()), 200)
    with writers.writing(writer):
        half_copied(pair, job, rng)
        interrupt(job, rng, 60)
        job.start(wait=("forward",))
    job.wait_synced(("forward",))
    compare.assert_contents(pair)
    assert job.task("forward")["conflicts"] == 0


def test_two_way_afterwards(pair, make_job, rng):
    """The reverse task starts when the forward one has caught up, and finds all keys there."""
    pair.a.sql(BIG)
    job = make_job(pair, throttle=SLOWLY, forward={"workers": 2, "chunk_size": CHUNK})
    writer = writers.Writer(pair.a, Churn(rng.random()), 200)
    with writers.writing(writer):
        half_copied(pair, job, rng)
        job.start()
    pair.b.sql("UPDATE big SET n = -1 WHERE id < 50; INSERT INTO big VALUES (-1, -1, -1, 'of b', '')")
    job.wait_synced()
    compare.assert_same(pair)
    assert all(job.task(task)["conflicts"] == 0 for task in tw.TASKS)


MEANWHILE = {"added": "ALTER TABLE big ADD x int DEFAULT 7", "dropped": "ALTER TABLE big DROP w",
             "not null": "ALTER TABLE big ALTER v SET NOT NULL",
             "all at once": "ALTER TABLE big ADD x int, ADD y text DEFAULT 'y'; CREATE INDEX ON big (x); ALTER TABLE big "
                            "DROP w; UPDATE big SET x = 9 WHERE id % 100 = 0",
             "made": "CREATE TABLE more (id int PRIMARY KEY, v text); INSERT INTO more VALUES (1, 'a'); UPDATE more SET v = 'b'",
             "digits": "ALTER TABLE big ALTER n TYPE numeric(12,2); UPDATE big SET n = n + 0.25 WHERE id % 100 = 0",
             "longer": "ALTER TABLE short ALTER v TYPE varchar(9); INSERT INTO short VALUES (2, '123456789')",
             "default": "ALTER TABLE short ALTER v DROP DEFAULT, ALTER v TYPE int USING 5; ALTER TABLE short ALTER v SET DEFAULT 6;"
                        "INSERT INTO short (id) VALUES (3)",
             "made by rows": "ALTER TABLE big ADD r float8 DEFAULT random(), ADD q timestamptz DEFAULT clock_timestamp(), "
                             "ADD s bigserial",
             "partitions": "ALTER TABLE pt ALTER id TYPE bigint; UPDATE pt SET id = id + 5000000000 WHERE id % 50 = 0",
             "type": "ALTER TABLE big ALTER n TYPE bigint; UPDATE big SET n = 5000000000 WHERE id % 100 = 0"}
RENAMED = {"column": ("ALTER TABLE big RENAME v TO vv", "ALTER TABLE big RENAME vv TO v"),
           "columns swapped": ("ALTER TABLE big RENAME v TO t; ALTER TABLE big RENAME w TO v; ALTER TABLE big RENAME t TO w",) * 2,
           "table": ("ALTER TABLE big RENAME TO bigger", "ALTER TABLE bigger RENAME TO big"),
           "column made again": ("ALTER TABLE big DROP w; ALTER TABLE big ADD w text DEFAULT 'new'; UPDATE big SET w = 'u' WHERE "
                                 "id % 50 = 0", "ALTER TABLE big DROP w"),
           "table made again": ("DROP TABLE short; CREATE TABLE short (id int PRIMARY KEY, x int)", "DROP TABLE short")}


@pytest.mark.rung("origin")
@pytest.mark.parametrize("when", ("interrupted", "running"))
@pytest.mark.parametrize("name", MEANWHILE)
def test_ddl(pair, make_job, rng, name, when):
    """A's table changes while it is copied: the copy goes on, and the stream brings the rest."""
    pair.a.sql(BIG)
    job = make_job(pair, throttle=SLOWLY, forward={"workers": 2, "chunk_size": CHUNK}, reverse={"enabled": "no"})
    part_copied(pair, job, rng, when)
    pair.a.sql("UPDATE big SET v = 'before', w = 'so' WHERE id % 50 = 1")
    pair.a.sql(MEANWHILE[name])
    pair.a.sql("UPDATE big SET n = n + 1 WHERE id % 50 = 0")
    if when == "interrupted":
        job.start(wait=())
    job.wait_state("forward", "Running")
    job.wait_synced(("forward",))
    compare.assert_schema(pair)
    compare.assert_contents(pair)


@pytest.mark.rung("origin")
@pytest.mark.parametrize("when", ("interrupted", "running"))
@pytest.mark.parametrize("name", RENAMED)
def test_renamed(pair, make_job, rng, name, when):
    """A new name while the rows are copied is told, and nothing goes to the wrong column; with the old name it goes on."""
    pair.a.sql(BIG)
    job = make_job(pair, throttle=SLOWLY, forward={"workers": 2, "chunk_size": CHUNK}, reverse={"enabled": "no"})
    part_copied(pair, job, rng, when)
    pair.a.sql("UPDATE big SET v = 'before', w = 'so' WHERE id % 50 = 1")
    there, back = RENAMED[name]
    pair.a.sql(there)
    if when == "interrupted":
        job.start(wait=())
    else:
        job.command("throttle", job.path, "full.rows=-1")  # it is told at the latest when the rows are there
    wait_for(lambda: "before its rows were copied" in job.task("forward").get("last_error", ""), "it says so")
    assert "name back" in job.log_text() or "Drop it again" in job.log_text()
    pair.a.sql(back)
    pair.a.sql("UPDATE big SET v = 'after' WHERE id % 50 = 2")
    job.wait_state("forward", "Running")
    job.wait_synced(("forward",))
    compare.assert_schema(pair)
    compare.assert_contents(pair)


def test_key_taken_again(pair, make_job, rng):
    """Another row has the key by the time its change is replayed: it is not taken for the old one."""
    pair.a.sql(BIG)
    job = make_job(pair, throttle=SLOWLY, forward={"workers": 1, "chunk_size": CHUNK}, reverse={"enabled": "no"})
    half_copied(pair, job, rng)
    pair.a.sql("UPDATE big SET id = id + 100000000 WHERE id > %s", (ROWS - 20,))
    pair.a.sql("INSERT INTO big SELECT g, -g, 3, 'another', '' FROM generate_series(%s, %s) g", (ROWS - 19, ROWS))
    job.start(wait=("forward",))
    job.wait_synced(("forward",))
    compare.assert_schema(pair)
    compare.assert_contents(pair)
