"""`twsync switchover`: applications leave one side and go on at the other, and back; nothing lost, nothing doubled."""

import contextlib
import signal
import subprocess
import threading
import time

import psycopg2
import pytest

import compare
import pg
import tw
from tw import BAD_JOB, OK
from wait import wait_for

SHUT = 3
POLICIES = {"forward": {"on_conflict": "overwrite"}, "reverse": {"on_conflict": "ignore"}}
TABLES = """CREATE TABLE t (id bigserial PRIMARY KEY, by text, n int DEFAULT 0);
            CREATE TABLE counter (id int PRIMARY KEY, n int); INSERT INTO counter SELECT g, 0 FROM generate_series(1, 5) g"""


def connect(node):
    """As an application does: the harness' own sessions have settings that would hide a fence."""
    return psycopg2.connect(host=node.server.root, port=node.server.port, dbname=node.dbname, user=node.role)


class Application(threading.Thread):
    """Writes where it may: a side that refuses it, or ends its session, is left for the other one."""

    def __init__(self, pair, name, moves=True):
        super().__init__(daemon=True)
        self.pair, self.name_, self.side, self.moves = pair, name, 0, moves
        self.ids, self.counted, self.error, self.ended = [], 0, None, threading.Event()
        self.start()

    def run(self):
        try:
            while not self.ended.is_set():
                with contextlib.suppress(psycopg2.OperationalError, psycopg2.InterfaceError,
                                         psycopg2.errors.ReadOnlySqlTransaction):
                    self.write()
                self.side = 1 - self.side if self.moves else 0
                time.sleep(0.02)
        except Exception as error:  # noqa: BLE001 - shown by finish()
            self.error = error

    def write(self):
        with contextlib.closing(connect(self.pair.nodes[self.side])) as conn:
            while not self.ended.is_set():
                with conn.cursor() as cur:
                    cur.execute("INSERT INTO t (by) VALUES (%s) RETURNING id", (self.name_,))
                    id = cur.fetchone()[0]
                    cur.execute("UPDATE counter SET n = n + 1 WHERE id = %s", (len(self.ids) % 5 + 1,))
                conn.commit()
                self.ids.append(id)
                time.sleep(0.005)

    def goes_on(self, count=50):
        want = len(self.ids) + count
        wait_for(lambda: self.error or len(self.ids) >= want, f"{self.name_} writes on")

    def finish(self):
        self.ended.set()
        self.join(60)
        assert not self.error, repr(self.error)


@contextlib.contextmanager
def applications(pair, n=3, moves=True):
    apps = [Application(pair, f"app {i}", moves) for i in range(n)]
    try:
        yield apps
    finally:
        for app in apps:
            app.ended.set()
    for app in apps:
        app.finish()


def read_only(node):
    """By default, for a session of an application that comes now."""
    with contextlib.closing(connect(node)) as conn, conn.cursor() as cur:
        cur.execute("SHOW default_transaction_read_only")
        return cur.fetchone()[0] == "on"


def switch(job, *args, timeout=120):
    code, out, err = job.command("switchover", job.path, *args, timeout=timeout)
    return code, out + err


def start(pair, make_job, **sections):
    pair.a.sql(TABLES)
    job = make_job(pair, **{**POLICIES, **sections}).start()
    job.wait_synced()
    return job


def test_there_and_back(pair, make_job):
    """Three applications write all the time; they are moved to b, and back to a."""
    job = start(pair, make_job)
    code, out = switch(job, "--to", "a", "--fence")     # nobody is to write to b by mistake
    assert code == OK and read_only(pair.b), out
    with applications(pair) as apps:
        for app in apps:
            app.goes_on()
        for to in "bab":
            old, new = (pair.a, pair.b) if to == "b" else (pair.b, pair.a)
            code, out = switch(job, "--to", to, "--fence")
            assert code == OK and f"{to} is the side to write to" in out, out
            for app in apps:
                app.goes_on()
            assert read_only(old) and not read_only(new)
    job.wait_synced()
    compare.assert_same(pair)
    ids = [id for app in apps for id in app.ids]
    assert len(ids) == len(set(ids)) > 400
    assert {id for (id,) in pair.a.sql("SELECT id FROM t")} >= set(ids)
    assert pair.a.one("SELECT sum(n) FROM counter") >= len(ids)
    assert pair.a.one("SELECT count(*) FROM t") == pair.a.one("SELECT sum(n) FROM counter")
    for task in tw.TASKS:
        assert job.conflicts(task) == []
    assert switch(job, "--undo")[0] == OK
    assert not read_only(pair.a) and not read_only(pair.b)
    job.stop()
    assert job.release()[0] == OK


@pytest.mark.rung("marker")
def test_gates(pair, make_job):
    """Each gate by itself: named, and nothing has changed."""
    job = make_job(pair, **POLICIES)
    pair.a.sql(TABLES)
    code, out = switch(job, "--to", "b")
    assert code == BAD_JOB and "does not run on this host" in out
    assert switch(job)[0] == BAD_JOB
    job.start()
    job.wait_synced()
    code, out = switch(job, "--to", "b", "--dry-run", "--fence")
    assert code == OK and "FAILS" not in out and "fence the old side" in out, out

    def shut(says, *args):
        values = [compare.sequence_values(node) for node in pair.nodes]
        code, out = switch(job, "--to", "b", *args)
        assert code == SHUT and any(line.startswith("  FAILS") and says in line for line in out.splitlines()), out
        assert [compare.sequence_values(node) for node in pair.nodes] == values
        assert not read_only(pair.a) and not read_only(pair.b)

    job.command("pause", job.path, "--task", "reverse")
    job.wait_state("reverse", "Paused")
    shut("task reverse runs: it is Paused")
    job.command("resume", job.path, "--task", "reverse")
    job.wait_state("reverse", "Running")
    with job.unseen("b") as cur:
        cur.execute("UPDATE counter SET n = 99 WHERE id = 1")
    shut("both sides are equal: they are not")
    code, out = switch(job, "--to", "b", "--no-verify", "--dry-run")
    assert code == OK and "left out" in out
    assert job.command("repair", job.path)[0] == OK
    job.command("skip", job.path, "counter")
    wait_for(lambda: pair.b.admin("SELECT 1 FROM twsync.parked"), "it is left out")
    shut("1 are left out")
    job.command("resync", job.path, "counter")
    pair.b.admin("INSERT INTO twsync.conflict (task, kind, policy, outcome, schema_name, table_name, commit_lsn, change, settled)"
                 " VALUES (%s, 'x', 'x', 'x', 'public', 'gone', '0/1', 1, 'failed')", (f"{job.name}/forward",))
    shut("no conflict is open: 1 are")
    pair.b.admin("DELETE FROM twsync.conflict")
    ended = threading.Event()

    def write():
        with contextlib.closing(pair.a.connect()) as conn, conn.cursor() as cur:
            while not ended.wait(0.01):
                cur.execute("UPDATE counter SET n = n + 1 WHERE id = 2")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        shut("nobody writes to a any more: somebody does", "--timeout", "10")
    finally:
        ended.set()
        writer.join()
    job.wait_synced()
    code, out = switch(job, "--to", "b")
    assert code == OK and "FAILS" not in out, out
    pair.b.sql("INSERT INTO t (by) VALUES ('after')")
    job.wait_synced()
    compare.assert_same(pair)


@pytest.mark.rung("marker")
def test_one_way(pair, make_job):
    pair.a.sql(TABLES)
    job = make_job(pair, reverse={"enabled": False}).start(wait=["forward"])
    code, out = switch(job, "--to", "b", "--fence")
    assert code == SHUT and "without it there is no way back" in out and not read_only(pair.a)


@pytest.mark.parametrize("had", [None, "off"])
@pytest.mark.rung("marker")
def test_not_in_time(pair, make_job, had):
    """What is on its way does not come in time: the fence is taken away, and the database has the setting that it had."""
    job = start(pair, make_job)
    if had:
        pair.a.sql(f'ALTER DATABASE "{pair.a.dbname}" SET default_transaction_read_only = {had}')
    with applications(pair, 1, moves=False) as (app,):
        app.goes_on()
        with pair.b.transaction() as cur:
            cur.execute("LOCK TABLE t IN SHARE MODE")
            code, out = switch(job, "--to", "b", "--fence", "--no-verify", "--timeout", "3")
        assert code == SHUT and "not in time" in out and "the side to write to, as before" in out, out
        assert not read_only(pair.a)
        app.goes_on()
    have = pair.a.admin("SELECT c FROM pg_db_role_setting, unnest(setconfig) c WHERE setdatabase ="
                        " (SELECT oid FROM pg_database WHERE datname = current_database())")
    assert have == ([("default_transaction_read_only=off",)] if had else [])
    job.wait_synced()
    compare.assert_same(pair)


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.rung("marker")
def test_broken_off(pair, make_job, sig):
    """Asked to stop it takes its fence away; killed it leaves it, and --undo lifts it."""
    job = start(pair, make_job)
    with pair.b.transaction() as cur:
        cur.execute("LOCK TABLE t IN SHARE MODE")
        pair.a.sql("INSERT INTO t (by) VALUES ('x')")
        process = subprocess.Popen([tw.BINARY, "switchover", job.path, "--to", "b", "--fence", "--no-verify"],
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: read_only(pair.a), "a is fenced")
        process.send_signal(sig)
        process.wait(30)
    assert read_only(pair.a) == (sig == signal.SIGKILL)
    code, out = switch(job, "--undo")
    assert code == OK and ("the fence of a is taken away" in out) == (sig == signal.SIGKILL), out
    assert not read_only(pair.a)
    pair.a.sql("INSERT INTO t (by) VALUES ('y')")
    code, out = switch(job, "--to", "b", "--fence")
    assert code == OK, out
    job.stop()
    assert job.release()[0] == OK
    assert not read_only(pair.a), "release lifts the fence, too"


SEQUENCES = """CREATE SEQUENCE down INCREMENT -3 MAXVALUE 100 MINVALUE -100000 START 100;
               CREATE SEQUENCE around MAXVALUE 10 CYCLE; CREATE SEQUENCE cached CACHE 500;
               CREATE SEQUENCE fresh START 77; CREATE SEQUENCE small AS smallint MAXVALUE 20"""


@pytest.mark.rung("marker")
def test_sequences(pair, make_job):
    """Headroom in their own steps and within their bounds; what a session has in advance is left behind, too."""
    pair.a.sql(TABLES + ";" + SEQUENCES)
    job = make_job(pair, **POLICIES).start()
    job.wait_synced()
    pair.b.sql("ALTER SEQUENCE t_id_seq INCREMENT 2")      # b counts otherwise
    with contextlib.closing(pair.a.connect()) as conn, conn.cursor() as cur:
        cur.execute("SELECT nextval('cached'), nextval('small'), nextval('t_id_seq') FROM generate_series(1, 8)")
        cur.execute("SELECT nextval('down'), nextval('around') FROM generate_series(1, 13)")
        code, out = switch(job, "--to", "b", "--headroom", "100", "--dry-run")
        assert code == OK, out
        code, out = switch(job, "--to", "b", "--headroom", "100")
        assert code == OK and "6 sequences of b" in out, out
        cur.execute("SELECT max(nextval('cached')) FROM generate_series(1, 400)")
        last = cur.fetchone()[0]
    got = {name: pair.b.one("SELECT nextval(%s)", (name,)) for name in ("down", "around", "cached", "fresh", "t_id_seq")}
    assert got["cached"] > last + 90 and got["down"] == 100 - 3 * (13 + 100) and got["around"] == 4
    assert got["fresh"] == 177 and got["t_id_seq"] > 108 and got["t_id_seq"] % 2 == pair.b.one("SELECT nextval('t_id_seq')") % 2
    with pytest.raises(psycopg2.errors.SequenceGeneratorLimitExceeded):
        pair.b.sql("SELECT nextval('small')")


def test_prepared_transaction(make_server, make_job):
    """What it holds is not on the other side: the gate is shut."""
    servers = [make_server(f"prepared{n}", {"max_prepared_transactions": 5}, template=n) for n in range(2)]
    pair = pg.make_pair(*servers, "prepared", "marker")
    try:
        job = start(pair, make_job)
        with contextlib.closing(pair.a.connect()) as conn, conn.cursor() as cur:
            for statement in ("BEGIN", "UPDATE counter SET n = 7 WHERE id = 4", "PREPARE TRANSACTION 'left'"):
                cur.execute(statement)
            code, out = switch(job, "--to", "b")
            assert code == SHUT and "FAILS  no prepared transaction on a: 1 are there" in out, out
            cur.execute("COMMIT PREPARED 'left'")
        code, out = switch(job, "--to", "b")
        assert code == OK, out
        assert pair.b.one("SELECT n FROM counter WHERE id = 4") == 7
        job.stop()
    finally:
        for job in pair.jobs:
            job.clean_up()
        pg.drop_pair(pair)
