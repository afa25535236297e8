"""`twsync repair` after a gap: a slot that is lost, and a source that forgot.  It moves what differs, and nothing else."""

import json
import os
import subprocess

import pytest

import compare
import tw
import writers
from test_49_failover import standby_of  # noqa: F401 - a fixture
from test_52_verify import DIFFER, assert_equal, repair
from tw import BAD_JOB, OK
from wait import wait_for

POLICIES = {"forward": {"on_conflict": "overwrite"}, "reverse": {"on_conflict": "ignore"}}
ROWS = 50_000


class Application(writers.Writer):
    """Inserts, updates and deletes rows of its own: even ids are of a, odd ones of b."""

    def __init__(self, node):
        self.mine, self.n = "ab".index(node.letter), 0
        self.rows = {}              # what it was told is committed
        super().__init__(node, self.change, 60)

    def change(self, cur):
        self.n += 1
        new, old, gone = (2 * (ROWS + self.n) + self.mine, 2 * self.n + self.mine + 10_000, 2 * self.n + self.mine + 30_000)
        cur.execute("INSERT INTO t VALUES (%s, 'new')", (new,))
        cur.execute("UPDATE t SET v = 'changed' WHERE id = %s", (old,))
        cur.execute("DELETE FROM t WHERE id = %s", (gone,))
        self.pending = {new: "new", old: "changed", gone: None}

    def _one(self, conn):
        self.pending = {}
        super()._one(conn)
        self.rows.update(self.pending)


def start(pair, make_job, **sections):
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v text, w text);"
               f"INSERT INTO t SELECT g, 'old', repeat('w', 50) FROM generate_series(1, {ROWS}) g;"
               "CREATE TABLE other (id int PRIMARY KEY, v text); INSERT INTO other SELECT g, 'x' FROM generate_series(1, 1000) g")
    job = make_job(pair, **{**POLICIES, **sections}).start()
    job.wait_synced()
    return job


def write_on(apps, count=40):
    for app, want in [(app, app.acknowledged + count) for app in apps]:
        wait_for(lambda: app.error or app.acknowledged >= want, f"{app.node.letter} writes on")


def lose_slot(job, task, how, apps):
    """The task rests, what applications write meanwhile is lost with the slot; then it fails."""
    slot, node = f"twsync_{job.name}_{task}", job.pair.source(task)
    assert job.command("pause", job.path, "--task", task)[0] == OK
    job.wait_state(task, "Paused")
    node.wait_slot_rests(slot)
    write_on(apps)
    if how == "advanced":
        node.admin("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", (slot,))
    else:
        node.admin("SELECT pg_drop_replication_slot(%s)", (slot,))
        if how == "made again":
            node.admin("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (slot,))
    write_on(apps)
    assert job.command("resume", job.path, "--task", task)[0] == OK
    job.wait_state(task, "Failed")


def assert_kept(job, apps):
    job.wait_synced()
    compare.assert_same(job.pair)
    for app in apps:
        for node in job.pair.nodes:
            have = dict(node.sql("SELECT id, v FROM t WHERE id %% 2 = %s", (app.mine,)))
            lost = {id: v for id, v in app.rows.items() if have.get(id) != v}
            assert not lost, (app.node.letter, node.letter, len(lost), list(lost.items())[:3])


@pytest.mark.parametrize("rung, how", [("marker", "dropped"), ("origin", "advanced"), ("origin", "made again")])
@pytest.mark.parametrize("task", tw.TASKS)
def test_slot_lost(pair, make_job, task, how):
    """While both sides are written to: exact in the end, by about as many rows as were written in the gap."""
    job = start(pair, make_job)
    apps = [Application(node) for node in pair.nodes]
    with writers.writing(*apps):
        write_on(apps)
        lose_slot(job, task, how, apps)
        status = job.command("status", job.path)[1]
        assert "twsync repair" in status, status
        n = sum(app.acknowledged for app in apps)
        code, found, tables, summary = repair(job)
        assert code == OK and summary["repaired"] == summary["differences"], (summary, tables)
        assert 100 < summary["repaired"] <= 3 * n, (summary, n)
        write_on(apps)
    assert_kept(job, apps)
    assert_equal(job)
    assert not pair.target(task).admin("SELECT 1 FROM twsync.mend")
    wait_for(lambda: "not repaired" not in job.command("status", job.path)[1], "status is content")


@pytest.mark.parametrize("task", tw.TASKS)
@pytest.mark.rung("marker")
def test_policy_fail(pair, make_job, task):
    """Under policy fail nothing stops on rows that the gap has parted; afterwards conflicts stop it again."""
    job = start(pair, make_job, forward={"on_conflict": "fail"}, reverse={"on_conflict": "fail"})
    apps = [Application(node) for node in pair.nodes]
    with writers.writing(*apps):
        write_on(apps)
        lose_slot(job, task, "dropped", apps)
        source = pair.source(task)
        source.sql("UPDATE t SET w = 'after' WHERE v = 'changed'")      # rows that the other side has otherwise
        code, found, tables, summary = repair(job)
        assert code == OK and summary["repaired"] == summary["differences"] > 100, (summary, tables)
        write_on(apps)
    assert_kept(job, apps)
    wait_for(lambda: not job.task(task)["phase"] == "mend" and "gap is repaired" in job.log_text(), "policies are as before", 30)
    with job.unseen("ba"[tw.TASKS.index(task)]) as cur:
        cur.execute("UPDATE t SET v = 'parted' WHERE id = 1")
    with job.unseen("ab"[tw.TASKS.index(task)]) as cur:
        cur.execute("UPDATE other SET v = 'y' WHERE id = 1")
    source.sql("UPDATE t SET v = 'conflict' WHERE id = 1")
    job.wait_state(task, "Failed")


@pytest.mark.rung("marker")
def test_broken_off(pair, make_job):
    """Repair is killed after the gap was crossed: the tasks go on, status says what is open, and it goes on as it began."""
    job = start(pair, make_job)
    apps = [Application(node) for node in pair.nodes]
    with writers.writing(*apps):
        lose_slot(job, "reverse", "dropped", apps)
        process = subprocess.Popen([tw.BINARY, "repair", job.path, "--rate", "100"], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: job.task("reverse")["state"] == "Running", "reverse is across the gap")
        process.kill()
        process.wait()
        assert "gap that is not repaired" in job.command("status", job.path)[1]
        job.kill()
        job.start()
        write_on(apps)
        assert "gap that is not repaired" in job.command("status", job.path)[1]
        code, found, tables, summary = repair(job)
        assert code == OK and summary["repaired"] > 50, summary
    assert_kept(job, apps)


@pytest.mark.rung("marker")
def test_both_slots_lost(pair, make_job):
    """Whose rows are right has to be said."""
    job = start(pair, make_job)
    for task in tw.TASKS:
        job.command("pause", job.path, "--task", task)
        job.wait_state(task, "Paused")
    for n, (node, task) in enumerate(zip(pair.nodes, tw.TASKS)):
        node.sql(f"UPDATE t SET v = '{node.letter}' WHERE id = 1; INSERT INTO t VALUES ({2 * ROWS + n}, '{node.letter}')")
        node.wait_slot_rests(f"twsync_{job.name}_{task}")
        node.admin("SELECT pg_drop_replication_slot(%s)", (f"twsync_{job.name}_{task}",))
    job.stop()
    for task in tw.TASKS:
        job.command("resume", job.path, "--task", task)
    job.start(wait=())
    assert job.wait_exit() == tw.TASK_FAILED
    code, _, err = job.command("repair", job.path)
    assert code == BAD_JOB and "changes of both sides were lost" in err, err
    code, out, _ = job.command("repair", job.path, "--dry-run", "--json")
    assert code == DIFFER and json.loads(out.splitlines()[-1])["differences"] == 3, out
    said = os.path.join(job.folder, "repair.log")
    with open(said, "w") as out:
        process = subprocess.Popen([tw.BINARY, "repair", job.path, "--take", "b"], stdin=subprocess.DEVNULL,
                                   stdout=out, stderr=out)
    wait_for(lambda: "start it" in open(said).read(), "it waits for the job")
    job.start()
    assert process.wait(120) == OK, open(said).read()
    job.wait_synced()
    compare.assert_same(pair)
    assert pair.a.sql("SELECT id, v FROM t WHERE id = 1 OR id >= %s ORDER BY id", (2 * ROWS,)) == [(1, "b"), (2 * ROWS + 1, "b")]


@pytest.mark.parametrize("version, rung, letter, slots, take", [
    (17, "marker", "a", "on", "old"), (17, "marker", "a", "off", "new"), (18, "origin", "b", "on", "new"),
    (18, "origin", "b", "off", "old")])
def test_source_forgot(own_pair, make_job, standby_of, letter, take, slots):  # noqa: F811 - a fixture
    """A standby that lacks the newest transactions is promoted: refused, listed, and brought back or let go of."""
    node, other = own_pair.nodes if letter == "a" else own_pair.nodes[::-1]
    task = tw.TASKS["ab".index(letter)]
    standby = standby_of(node, slots)
    own_pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'x' FROM generate_series(1, 1000) g")
    job = make_job(own_pair, **{letter: standby.job_keys()}, slots={"retention": "1min"}, **POLICIES).start()
    job.wait_synced()
    if slots == "on":
        standby.wait_slot(job)
    standby.set(node.server, synchronized_standby_slots="")
    standby.cut_off()
    node.sql("INSERT INTO t VALUES (4000, 'forgotten'); UPDATE t SET v = 'forgotten' WHERE id = 1; DELETE FROM t WHERE id = 2")
    other.sql("INSERT INTO t VALUES (4001, 'of the other side')")
    wait_for(lambda: other.sql("SELECT 1 FROM t WHERE id = 4000"), "it is carried")
    wait_for(lambda: node.sql("SELECT 1 FROM t WHERE id = 4001"), "and back")
    job.wait_synced()
    standby.take_over(job)
    wait_for(lambda: job.task(task)["state"] == "Failed", "it is refused", 120)
    node.sql("INSERT INTO t VALUES (5000, 'after'); UPDATE t SET v = 'after' WHERE id = 10")
    other.sql("UPDATE t SET v = 'other, after' WHERE id = 20")
    if slots == "on":
        code, _, err = job.command("repair", job.path)
        assert code == BAD_JOB and "whose rows are right" in err and "--at-rest" in err, err
    code, out, err = job.command("verify", job.path, "--at-rest", "--json")
    keys = {c[letter if f["found"] != f"missing on {letter}" else other.letter] for f in map(json.loads, out.splitlines())
            if "found" in f for c in f["columns"] if c["isPrimary"]}
    assert code == DIFFER and {"4000", "1", "2"} <= keys, (keys, out, err)
    right = other if take == "old" else node
    code, found, tables, summary = repair(job, "--take", right.letter)
    assert code == OK and summary["repaired"] == summary["differences"] >= 3, (summary, tables)
    job.wait_synced()
    compare.assert_same(own_pair)
    have = dict(node.sql("SELECT id, v FROM t WHERE id IN (1, 2, 10, 20, 4000, 4001, 5000)"))
    assert have[4001] == "of the other side" and have[20] == "other, after"
    if take == "old":
        assert have[4000] == have[1] == "forgotten" and 2 not in have
    else:
        assert 4000 not in have and have[1] == have[2] == "x" and have[10] == have[5000] == "after"
    node.sql("INSERT INTO t VALUES (6000, 'goes on')")
    other.sql("INSERT INTO t VALUES (6001, 'goes on')")
    job.wait_synced()
    compare.assert_same(own_pair)
