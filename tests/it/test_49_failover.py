"""A server dies, and its standby is promoted: twsync goes on there from the synchronized slot, or refuses by name.

The job file names both hosts of such a node, as libpq has it: host = one,two; of several the primary is wanted.
"""

import shutil
import subprocess

import pytest

import compare
import pg
import tw
import writers
from wait import wait_for

TABLES = ("CREATE TABLE t (id int PRIMARY KEY, n int, v text); CREATE TABLE keyless (id int, n int); "
          "INSERT INTO t SELECT g, 0, 'copied' FROM generate_series(1, 100) g")
FIRST, STEP = 1000, 2       # each side's own rows: even ids are of a, odd ones of b
SLOT = "physical"           # by which the standby reads


def cases(*of):
    """The version, the rung, and which node fails."""
    return pytest.mark.parametrize("version, rung, letter", of, ids=["-".join(map(str, case)) for case in of])


def task_from(node):
    return tw.TASKS["ab".index(node.letter)]


def slot_of(job, task):
    return f"twsync_{job.name}_{task}"


class Application(writers.Writer):
    """Writes rows of its own to one node, new and old ones, and remembers what it was told is committed."""

    def __init__(self, node):
        self.told, self.last = [], FIRST + "ab".index(node.letter)
        super().__init__(node, self.change, 100)

    def change(self, cur):
        self.last += STEP
        cur.execute("INSERT INTO t VALUES (%s, 0, 'new')", (self.last,))
        cur.execute("UPDATE t SET n = n + 1, v = 'old' WHERE id = %s", (self.last - 5 * STEP,))
        cur.execute("INSERT INTO keyless VALUES (%s, %s)", (self.last, self.last))

    def _one(self, conn):
        super()._one(conn)
        self.told.append(self.last)

    def goes_on(self, count=40):
        """A condition: so many more commits were told."""
        want = self.acknowledged + count
        return lambda: self.error or self.acknowledged >= want


def rows_of(node, table="t"):
    return {row for (row,) in node.sql(f"SELECT id FROM {table}")}


def write_on(apps, what):
    for app, done in [(app, app.goes_on()) for app in apps]:
        wait_for(done, f"the application on {app.node.letter} writes {what}")


class Standby:
    """A physical standby of a node's server, which may become that node's server."""

    def __init__(self, folder, node, sync_slots):
        self.node, self.old = node, node.server
        base = self.old.data + ".base"
        subprocess.run(self.old.argv("pg_basebackup", "-D", base, "-R", "-C", "-S", SLOT, "-c", "fast", "-d",
                                     f"host={self.old.root} port={self.old.port} user=postgres dbname=postgres "
                                     "application_name=standby"),
                       check=True, cwd="/", stdin=subprocess.DEVNULL, capture_output=True)
        settings = {"sync_replication_slots": sync_slots, "hot_standby_feedback": "on"}
        self.server = pg.Server(folder, f"{self.old.name}s", settings, pg.HBA, base, self.old.major)
        shutil.rmtree(base)
        self.server.start()
        self.set(self.old, synchronized_standby_slots=SLOT)
        wait_for(lambda: self.server.sql("SELECT 1 FROM pg_stat_wal_receiver WHERE status = 'streaming'"), "it streams")

    @staticmethod
    def set(server, **settings):
        for name, value in settings.items():
            server.sql(f"ALTER SYSTEM SET {name} = '{value}'")
        server.sql("SELECT pg_reload_conf()")

    def job_keys(self):
        """Both hosts: the job takes the one that can be written."""
        keys = self.node.job_keys()
        hosts = [keys["host"], keys["host"] if self.node.tcp else self.server.root]
        return {**keys, "host": ",".join(hosts), "port": f"{self.old.port},{self.server.port}"}
    def wait_slot(self, job):
        """The slot is there, and would survive a promotion: it is temporary until the server's own has moved a bit."""
        slot = slot_of(job, task_from(self.node))

        def kept():
            self.old.sql("SELECT pg_log_standby_snapshot()")    # of itself the server does so every 15 seconds
            return self.server.sql("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND failover AND synced "
                                   "AND NOT temporary AND invalidation_reason IS NULL", (slot,))

        wait_for(kept, f"{slot} is on the standby", every=0.2)

    def never_behind(self):
        """What an application is told is committed is on the standby's disk, too."""
        self.set(self.old, synchronous_standby_names="standby")
        query = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"
        wait_for(lambda: self.old.sql(query), "commits wait for it")

    def cut_off(self):
        """It hears no more of the server; what it has synchronized, it keeps."""
        self.set(self.server, primary_conninfo="")
        wait_for(lambda: not self.server.sql("SELECT 1 FROM pg_stat_wal_receiver"), "nothing comes to it any more")

    def take_over(self, job):
        """The server dies; once the job has seen that, the standby is promoted and is the node's server."""
        self.old.stop("immediate")
        for task in tw.TASKS:
            job.wait_state(task, "Retrying")
        self.server.sql("SELECT pg_promote()")
        wait_for(lambda: self.server.sql("SELECT NOT pg_is_in_recovery()")[0][0], "it is promoted")
        self.node.server = self.server

    def stop(self):
        for server in (self.old, self.server):
            server.stop("immediate")


@pytest.fixture
def standby_of(own_pair, folder):
    """standby_of(node) -> a running Standby; it and the node's server are stopped afterwards."""
    made = []

    def make(node, sync_slots="on"):
        made.append(Standby(folder, node, sync_slots))
        return made[-1]

    yield make
    for standby in made:
        standby.stop()
        shutil.rmtree(standby.server.root, ignore_errors=True)


def assert_nothing_lost(job, apps):
    """Both sides are equal, have each row that an application was told of, and none of them twice."""
    job.wait_synced()
    compare.assert_contents(job.pair)
    for node in job.pair.nodes:
        for app in apps:
            for table in ("t", "keyless"):
                missing = set(app.told) - rows_of(node, table)
                assert not missing, f"told by {app.node.letter}, and not in {table} of {node.letter}: {missing}"
        assert node.sql("SELECT id FROM keyless GROUP BY id HAVING count(*) > 1") == [], f"doubled on {node.letter}"
        assert node.sql("SELECT id FROM t WHERE n > 1") == [], f"changed twice on {node.letter}"
    for task in tw.TASKS:
        assert job.conflicts(task) == []


def running(pair, make_job, *standbys, **sections):
    """A job whose slots may survive a failover; it knows the hosts of these standbys."""
    pair.a.sql(TABLES)
    sections.setdefault("slots", {"retention": "1min"})   # an idle slot moves on after 4 s, and is synchronized then
    job = make_job(pair, **{standby.node.letter: standby.job_keys() for standby in standbys}, **sections).start()
    job.wait_synced()
    for task in tw.TASKS:
        assert pair.source(task).admin("SELECT failover FROM pg_replication_slots WHERE slot_name = %s",
                                       (slot_of(job, task),)) == [(True,)]
    return job


def told_of_promoted(job, node):
    """Now the job file names the other host only."""
    job.change(**{node.letter: node.job_keys()})
    code, out, err = job.command("reload", job.path)
    assert code == tw.OK, out + err


def sides(pair, letter):
    """The node that fails, and the other one."""
    return pair.nodes if letter == "a" else pair.nodes[::-1]


@cases((17, "marker", "a"), (17, "origin", "b"), (18, "origin", "a"), (18, "marker", "b"))
def test_goes_on(own_pair, make_job, standby_of, letter):
    """A server dies while both are written: the same twsync goes on, and whatever anybody was told is on both sides."""
    node, _ = sides(own_pair, letter)
    standby = standby_of(node)
    job = running(own_pair, make_job, standby)
    standby.wait_slot(job)
    standby.never_behind()
    apps = [Application(side) for side in own_pair.nodes]
    with writers.writing(*apps):
        write_on(apps, "before")
        standby.take_over(job)
        write_on(apps, "after")
    assert_nothing_lost(job, apps)
    assert f"{letter} is on a new timeline, 2, which continues ours" in job.log_text()
    assert job.stop() == tw.OK
    assert job.release()[0] == tw.OK
    compare.assert_untouched(own_pair, job.name)


@cases((17, "origin", "a"), (18, "marker", "b"))
def test_standby_is_behind(own_pair, make_job, standby_of, letter):
    """It forgets rows that the other side never saw, and rows of the other side, which are sent again.

    Here the job names one host, and is told of the other one when that has been promoted.
    """
    node, other = sides(own_pair, letter)
    standby = standby_of(node)
    job = running(own_pair, make_job)
    standby.wait_slot(job)
    apps = [Application(side) for side in (node, other)]
    with writers.writing(*apps):
        write_on(apps, "before")
        standby.cut_off()
        write_on(apps, "while the standby hears nothing")
        sent = max(apps[1].told)
        wait_for(lambda: sent in rows_of(node), "the other direction goes on")
        why = f"{letter} waits until a standby that synchronized_standby_slots names has received"
        wait_for(lambda: why in job.command("status", job.path)[1], "status says what it waits for")
        standby.take_over(job)
        told = set(apps[0].told)        # before one looks: it goes on by itself
        kept = rows_of(node)
        forgotten = told - kept
        assert len(forgotten) > 20 and sent not in kept
        assert not forgotten & rows_of(other), "the other side got ahead of the standby"
        apps[0].told[:] = [row for row in apps[0].told if row not in forgotten]
        told_of_promoted(job, node)
        write_on(apps, "after")
    assert_nothing_lost(job, apps)
    assert not forgotten & rows_of(other)


@cases((17, "marker", "b"))
def test_standby_is_behind_while_idle(own_pair, make_job, standby_of, letter):
    """Nobody writes: what the standby has not heard of are positions, and no change lies between them."""
    node, other = sides(own_pair, letter)
    standby = standby_of(node)
    job = running(own_pair, make_job, slots={"retention": "5min"})
    standby.wait_slot(job)
    standby.cut_off()
    known = other.lsn()     # no position the standby has heard of is beyond this
    wait_for(lambda: pg.lsn_int(job.task(task_from(other))["applied_lsn"]) > known, "it moves on")
    standby.take_over(job)
    other.sql("INSERT INTO t VALUES (5000, 0, 'after')")
    told_of_promoted(job, node)
    assert_nothing_lost(job, [])


@cases((18, "origin", "a"))
def test_sessions_while_standby_is_behind(own_pair, make_job, standby_of, letter):
    """The standby has not heard of the last sessions of twsync, nor of the process that works on the job now."""
    node, other = sides(own_pair, letter)
    standby = standby_of(node)
    job = running(own_pair, make_job)
    standby.wait_slot(job)
    own_pair.b.sql("INSERT INTO t VALUES (4001, 0, 'before')")
    own_pair.a.sql("INSERT INTO t VALUES (4002, 0, 'before')")
    job.wait_synced()
    standby.cut_off()
    assert job.stop() == tw.OK
    job.start()
    standby.take_over(job)
    other.sql("INSERT INTO t VALUES (5000, 0, 'after')")
    told_of_promoted(job, node)
    assert_nothing_lost(job, [])


def wait_refused(job, task, *errors):
    """The task has Failed, says why and how to start over."""
    job.wait_state(task, "Failed")
    assert any(error in job.task(task)["last_error"] for error in errors), job.task(task)["last_error"]
    told = job.command("status", job.path)[1]
    assert f"{task} has failed: " in told and f"twsync reset {job.path} --empty" in told, told


@cases((17, "marker", "b"), (18, "origin", "a"))
def test_no_slot_on_standby(own_pair, make_job, standby_of, letter):
    """The standby synchronizes no slots: what is written there is not carried, and twsync says so, now and later."""
    node, other = sides(own_pair, letter)
    standby = standby_of(node, sync_slots="off")
    job = running(own_pair, make_job, standby)
    standby.never_behind()
    node.sql("INSERT INTO t VALUES (4000, 0, 'before')")
    job.wait_synced()
    task, back = task_from(node), task_from(other)
    slot = slot_of(job, task)
    standby.take_over(job)
    node.sql("INSERT INTO t VALUES (5000, 0, 'after')")
    wait_refused(job, task, f"replication slot {slot} is gone from {letter}: what was committed after ")
    job.wait_state(back, "Running")
    other.sql("INSERT INTO t VALUES (5001, 0, 'after')")
    wait_for(lambda: 5001 in rows_of(node), "the other direction goes on")
    assert job.stop() == tw.TASK_FAILED
    job.start(wait=())
    wait_refused(job, task, f"replication slot {slot} is gone from {letter}: what was committed after ")
    job.wait_state(back, "Running")
    assert 5000 not in rows_of(other) and 4000 in rows_of(other)
    assert node.admin("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s", (slot,)) == [], "nothing is made anew"


@cases((17, "origin", "a"))
def test_check_of_a_standby(own_pair, make_job, standby_of, letter):
    """A standby alone fails the precheck by name, whether it is asked for a primary or not; beside its primary it is none."""
    node, _ = sides(own_pair, letter)
    standby = standby_of(node)
    own_pair.a.sql(TABLES)
    alone = {**standby.job_keys(), "host": standby.server.root, "port": standby.server.port}
    _, items = make_job(own_pair, **{letter: alone}).check()
    item, = [i for i in items if i["code"] == "RECOVERY" and i["status"] == "failed"]
    assert item["measured"] == "a standby" and "primary" in item["remedy"], item
    _, items = make_job(own_pair, **{letter: {**alone, "target_session_attrs": "primary"}}).check()
    item, = [i for i in items if i["status"] == "failed"]
    assert item["code"] == "CONNECT_REACH" and "standby" in item["measured"] + item["needed"], item
    code, items = make_job(own_pair, **{letter: standby.job_keys()}).check()
    assert code == tw.OK, [i for i in items if i["status"] == "failed"]


@cases((18, "marker", "a"))
def test_other_side_is_ahead(own_pair, make_job, standby_of, letter):
    """Nothing made the other side wait for the standby (synchronized_standby_slots): it has more than that one."""
    node, other = sides(own_pair, letter)
    standby = standby_of(node)
    job = running(own_pair, make_job, standby)
    standby.wait_slot(job)
    standby.set(node.server, synchronized_standby_slots="")
    standby.cut_off()
    node.sql("INSERT INTO t VALUES (4000, 0, 'forgotten')")
    wait_for(lambda: 4000 in rows_of(other), "it is carried")
    job.wait_synced((task_from(node),))
    standby.take_over(job)
    task = task_from(node)
    wait_refused(job, task, f"{letter} is on timeline 2, which left timeline 1 at ", f"{letter} has gone back: its")
    node.sql("INSERT INTO t VALUES (5000, 0, 'after')")
    assert 4000 not in rows_of(node)
    assert 4000 in rows_of(other) and 5000 not in rows_of(other)
