"""The job file changes while the job lives: tables join and leave, limits and policies change, mistakes change nothing."""

import os
import signal

import pytest

import compare
import tw
import writers
from wait import wait_for

TABLES = """
CREATE TABLE one (id int PRIMARY KEY, v text); INSERT INTO one SELECT g, 'one ' || g FROM generate_series(1, 100) g;
CREATE TABLE two (id serial PRIMARY KEY, one_id int REFERENCES one, v text DEFAULT 'it''s');
INSERT INTO two (one_id, v) SELECT g, 'two ' || g FROM generate_series(1, 100) g; CREATE INDEX ON two (lower(v));
CREATE TABLE parts (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (50); CREATE TABLE parts_2 PARTITION OF parts DEFAULT;
INSERT INTO parts SELECT g, 'p' FROM generate_series(1, 100) g;
CREATE SCHEMA other; CREATE TYPE other.mood AS ENUM ('sad', 'ok'); CREATE TABLE other.x (id int PRIMARY KEY, m other.mood);
INSERT INTO other.x VALUES (1, 'ok');
"""


def reload(job):
    code, out, err = job.command("reload", job.path)
    assert code == 0, out + err


def carried(job):
    """No table waits, all has arrived both ways."""
    wait_for(lambda: job.pair.b.admin("SELECT * FROM twsync.parked WHERE wanted") == [], "no table waits")
    job.wait_synced()


class Writer:
    """Rows of a node in a table: new ones, changed ones, deleted ones, each node among its own."""

    def __init__(self, side, table):
        self.side, self.table, self.last = side, table, 1000

    def __call__(self, cur):
        self.last += 2
        cur.execute(f"INSERT INTO {self.table} (id, v) VALUES (%s, 'new')", (self.last + self.side,))
        cur.execute(f"UPDATE {self.table} SET v = v || '+' WHERE id = %s", (self.last + self.side - 10,))
        cur.execute(f"DELETE FROM {self.table} WHERE id = %s", (self.last + self.side - 20,))


def test_tables_join(pair, make_job):
    """New tables are made, copied and carried, with A being written; the others go on meanwhile."""
    pair.a.sql(TABLES)
    job = make_job(pair, None, objects={"tables": "public.one"}, forward={"on_conflict": "overwrite"},
                   reverse={"on_conflict": "ignore"}).start()
    job.wait_synced()
    works = [writers.Writer(pair.a, Writer(0, "two")), writers.Writer(pair.a, Writer(0, "one")),
             writers.Writer(pair.b, Writer(1, "one"))]
    with writers.writing(*works):
        wait_for(lambda: all(w.acknowledged > 10 for w in works), "they write")
        job.change(objects={"tables": "public.one, public.two, public.parts, other.x"})
        reload(job)
        wait_for(lambda: pair.b.one("SELECT to_regclass('two') IS NOT NULL AND to_regclass('other.x') IS NOT NULL"),
                 "they are made")
        wait_for(lambda: job.pair.b.admin("SELECT * FROM twsync.parked") == [], "they are copied")
        before = works[0].acknowledged
        wait_for(lambda: works[0].acknowledged > before + 30, "more is written")
    carried(job)
    compare.assert_same(pair)
    assert pair.b.one("SELECT count(*) FROM parts") == 100
    pair.b.sql("INSERT INTO two (id, one_id) VALUES (9001, 1); UPDATE parts SET v = 'b' WHERE id = 7; "
               "UPDATE other.x SET m = 'sad'")
    pair.a.sql("UPDATE two SET v = 'a' WHERE id = 3; INSERT INTO parts VALUES (500, 'a')")
    carried(job)
    compare.assert_contents(pair)
    assert job.process.poll() is None


def test_tables_leave(pair, make_job):
    """What is selected no more stays on B as it is, and nothing of it is carried, either way."""
    pair.a.sql(TABLES)
    job = make_job(pair, "public, other").start()
    job.wait_synced()
    job.change(objects={"exclude": "public.two", "schemas": "public"})
    reload(job)
    job.wait_state("forward", "Running")
    job.wait_synced()
    pair.a.sql("UPDATE two SET v = 'a'; UPDATE other.x SET m = 'sad'; UPDATE one SET v = 'a' WHERE id = 1")
    pair.b.sql("DELETE FROM two WHERE id = 5; UPDATE one SET v = 'b' WHERE id = 2")
    job.wait_synced()
    assert pair.b.one("SELECT count(*) FROM two WHERE v = 'a'") == 0 and pair.a.one("SELECT count(*) FROM two") == 100
    assert pair.b.one("SELECT m::text FROM other.x") == "ok"
    assert pair.b.one("SELECT v FROM one WHERE id = 1") == "a" and pair.a.one("SELECT v FROM one WHERE id = 2") == "b"
    job.change(objects={"exclude": None})     # and back: what B holds by now stands in the way
    reload(job)
    wait_for(lambda: pair.b.admin("SELECT reason FROM twsync.parked WHERE table_name = 'two'"), "it is parked")
    assert "holds rows on b" in pair.b.admin("SELECT reason FROM twsync.parked WHERE table_name = 'two'")[0][0]
    assert pair.b.one("SELECT count(*) FROM two") == 99
    wait_for(lambda: 'table "public"."two" has joined' in job.log_text(), "it has joined")
    code, out, err = job.command("resync", job.path, "public.two")
    assert code == 0, out + err
    carried(job)
    assert pair.a.sql("SELECT * FROM two ORDER BY id") == pair.b.sql("SELECT * FROM two ORDER BY id")
    pair.b.sql("UPDATE two SET v = 'of b' WHERE id = 9")
    job.wait_synced()
    assert pair.a.one("SELECT v FROM two WHERE id = 9") == "of b"


def test_changed_while_stopped(pair, make_job):
    """The same without reload, by stopping, and killed at any moment of it."""
    pair.a.sql(TABLES)
    job = make_job(pair, None, objects={"tables": "public.one"}).start()
    job.wait_synced()
    job.stop()
    pair.a.sql("UPDATE one SET v = 'meanwhile' WHERE id = 1; UPDATE parts SET v = 'meanwhile' WHERE id = 1")
    job.change(objects={"tables": "public.parts"})
    for _ in range(3):
        job.start(wait=())
        wait_for(lambda: job.task("forward").get("state") in ("Running", "Retrying"), "it has begun")
        job.kill()
    job.start()
    carried(job)
    assert pair.a.sql("SELECT * FROM parts ORDER BY id") == pair.b.sql("SELECT * FROM parts ORDER BY id")
    pair.a.sql("UPDATE one SET v = 'no more' WHERE id = 2")
    job.wait_synced()
    assert pair.b.sql("SELECT count(*) FROM one WHERE v = 'no more'") == [(0,)]


@pytest.mark.rung("origin")
def test_renamed_tables_stay(pair, make_job):
    """A table that was renamed on A is not taken for one that left, as long as [objects] is the same."""
    pair.a.sql(TABLES)
    job = make_job(pair, None, objects={"tables": "public.one"}).start()
    job.wait_synced()
    pair.a.sql("ALTER TABLE one RENAME TO uno")
    job.wait_synced()
    reload(job)
    job.wait_synced()
    pair.a.sql("UPDATE uno SET v = 'still' WHERE id = 1")
    job.wait_synced()
    assert pair.b.one("SELECT v FROM uno WHERE id = 1") == "still"


def test_other_settings(pair, make_job):
    """Policies, operations, limits, filters: from then on; SIGHUP does the same."""
    pair.a.sql(TABLES + "ALTER TABLE two DROP CONSTRAINT two_one_id_fkey")
    job = make_job(pair, None, objects={"tables": "public.one"}).start()
    job.wait_synced()
    job.change(forward={"operations": "insert, update"}, throttle={"forward.rows": 1000},
               **{"table public.one": {"filter": "id < 50"}})
    job.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "goes on by what its file says" in job.log_text(), "it is taken")
    job.wait_state("forward", "Running")
    pair.a.sql("DELETE FROM one WHERE id = 1; UPDATE one SET v = 'x' WHERE id IN (2, 60); INSERT INTO one VALUES (200, 'n')")
    job.wait_synced()
    assert pair.b.sql("SELECT id, v FROM one WHERE id IN (1, 2, 60, 200) ORDER BY 1") == \
        [(1, "one 1"), (2, "x"), (60, "one 60")]
    assert "1000" in job.command("throttle", job.path)[1]


def test_mistakes(pair, make_job):
    """A file that is wrong, or fails the precheck, changes nothing, and says why."""
    pair.a.sql(TABLES)
    job = make_job(pair, None, objects={"tables": "public.one"}).start()
    job.wait_synced()
    for change, code, word in (({"objects": {"tables": "one"}}, tw.BAD_JOB, "lacks its schema"),
                               ({"table public.one": {"filter": "nope = 1"}}, tw.PRECHECK_FAILED, "nope"),
                               ({"table public.one": {"rename id": "v"}}, tw.PRECHECK_FAILED, "there twice"),
                               ({"job": {"name": "another"}}, tw.BAD_JOB, "cannot change")):
        before = {section: dict(keys) for section, keys in job.sections.items()}
        job.change(**change)
        got, out, err = job.command("reload", job.path)
        assert word in out + err and got != 0, (change, got, out + err)
        job.sections = before
        job.change()
    pair.a.sql("UPDATE one SET v = 'goes on' WHERE id = 1")
    job.wait_synced()
    assert pair.b.one("SELECT v FROM one WHERE id = 1") == "goes on"
    job.stop()
    code, out, err = job.command("reload", job.path)
    assert code == tw.BAD_JOB and "does not run" in err, out + err


def test_skip(pair, make_job):
    """A table whose copy fails can be left out by command; the rest goes on, and resync brings it back."""
    pair.a.sql(TABLES + "ALTER TABLE one ADD CHECK (v <> '')")
    pair.b.sql("CREATE TABLE one (id int PRIMARY KEY, v text CHECK (v <> 'one 50')); CREATE SCHEMA other; "
               "CREATE TYPE other.mood AS ENUM ('sad', 'ok'); CREATE TABLE other.x (id int PRIMARY KEY, m other.mood)")
    job = make_job(pair, None, objects={"tables": "public.one, other.x"}, forward={"schema": "no"}).start(wait=())
    wait_for(lambda: "violates check" in job.task("forward").get("last_error", ""), "the copy fails")
    code, out, err = job.command("skip", job.path, "public.one")
    assert code == 0 and "left out" in out, out + err
    job.wait_state("forward", "Running")
    job.wait_synced()
    assert pair.b.sql("SELECT id FROM other.x") == [(1,)] and pair.b.sql("SELECT * FROM one") == []
    pair.a.sql("UPDATE one SET v = 'fits' WHERE id = 50")
    job.stop()
    code, out, err = job.command("resync", job.path, "public.one")
    assert code == 0 and "does not run" in out, out + err
    job.start()
    wait_for(lambda: pair.b.admin("SELECT * FROM twsync.parked") == [], "it is back")
    job.wait_synced()
    assert pair.a.sql("SELECT * FROM one ORDER BY 1") == pair.b.sql("SELECT * FROM one ORDER BY 1")


@pytest.mark.rung("marker")
def test_endpoint_and_password(pair, make_job, proxy_a):
    """The server is reached by another address, with another password: the tasks go on where they were."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100)")
    job = make_job(pair).start()
    job.wait_synced()
    was = pair.a.admin("SELECT rolpassword FROM pg_authid WHERE rolname = %s", (pair.a.role,))[0][0]
    try:
        pair.a.admin(f"ALTER ROLE {pair.a.role} PASSWORD 'another one'")
        password = os.path.join(job.folder, "password")
        tw.write_private(password, "another one\n")
        job.change(a={**proxy_a.job_keys(), "password": None, "password_file": password})
        code, out, err = job.command("reload", job.path)
        assert code == 0, out + err
        for task in tw.TASKS:
            job.wait_state(task, "Running")
        assert proxy_a.links, "it goes by the new address"
        pair.a.sql("INSERT INTO t VALUES (1000)")
        pair.b.sql("INSERT INTO t VALUES (2000)")
        job.wait_synced()
        compare.assert_same(pair)
        assert job.task("forward")["copy_rows"] == 100, "nothing is copied again"
    finally:
        pair.a.admin("ALTER ROLE %s PASSWORD '%s'" % (pair.a.role, was))


@pytest.mark.rung("marker")
def test_reverse_switched_off(pair, make_job):
    """Its slot stays, for it may be switched on again, and status says so; what B wrote meanwhile comes then; or it goes."""
    pair.a.sql(TABLES)
    job = make_job(pair, forward={"on_conflict": "overwrite"}, reverse={"on_conflict": "ignore"}).start()
    job.wait_synced()
    job.change(reverse={"enabled": "no"})
    reload(job)
    pair.b.sql("INSERT INTO one VALUES (5001, 'of b')")
    warning = f"reverse is not enabled, but its slot twsync_{job.name}_reverse is there and keeps"
    wait_for(lambda: warning in job.command("status", job.path)[1], "it is told")
    job.change(reverse={"enabled": "yes"})
    reload(job)
    job.wait_state("reverse", "Running")
    job.wait_synced()
    assert pair.a.one("SELECT v FROM one WHERE id = 5001") == "of b"
    assert warning not in job.command("status", job.path)[1]
    job.change(reverse={"enabled": "no"})
    assert job.stop() == tw.OK
    assert job.command("reset", job.path, "--task", "reverse")[0] == tw.OK
    job.start(wait=("forward",))
    job.wait_synced(("forward",))
    assert not pair.b.admin("SELECT slot_name FROM pg_replication_slots WHERE slot_name LIKE %s", (f"twsync_{job.name}%",))
    assert "is not enabled" not in job.command("status", job.path)[1]
