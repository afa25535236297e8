"""A slot or a server that is not what it was: eight ways, on each version, and each is refused by name."""

import os
import shutil
import subprocess

import pytest

import tw
from wait import wait_for

pytestmark = [pytest.mark.rung("marker"), pytest.mark.parametrize("version", [13, 15, 17, 18])]

TABLE = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'a' FROM generate_series(1, 100) g"
POLICIES = {"forward": {"on_conflict": "overwrite"}, "reverse": {"on_conflict": "ignore"}}


def slot(job):
    return f"twsync_{job.name}_forward"


def dropped(pair, job):
    pair.a.admin("SELECT pg_drop_replication_slot(%s)", (slot(job),))


def created_again(pair, job):
    dropped(pair, job)
    pair.a.admin("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (slot(job),))


def advanced(pair, job):
    pair.a.admin("SELECT pg_replication_slot_advance(%s, pg_current_wal_flush_lsn())", (slot(job),))


def of_a_later_copy(pair, job):
    pair.a.admin("SELECT pg_create_logical_replication_slot('later', 'pgoutput')")
    dropped(pair, job)
    pair.a.admin("SELECT pg_copy_logical_replication_slot('later', %s)", (slot(job),))
    pair.a.admin("SELECT pg_drop_replication_slot('later')")


def of_another_plugin(pair, job):
    dropped(pair, job)
    pair.a.admin("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", (slot(job),))


def refused(pair, job, error):
    """The forward task is Failed, says why, and has written nothing; B's own row stays where it is."""
    before = pair.b.admin("SELECT count(*), max(v) FROM t")
    job.start(wait=())
    wait_for(lambda: not job.alive() or job.task("forward")["state"] == "Failed", "an answer")
    status = job.task("forward")
    assert status["state"] == "Failed" and error in status["last_error"], status["last_error"]
    told = job.command("status", job.path)[1]
    assert "forward has failed: " in told and f"twsync reset {job.path} --empty" in told, told
    assert "twsync resume" not in told.split("\nreverse")[0], told
    two_way = job.sections["reverse"].get("enabled") != "no"
    assert (job.stop() if two_way and job.alive() else job.wait_exit()) == tw.TASK_FAILED
    assert pair.b.admin("SELECT count(*), max(v) FROM t") == before


@pytest.mark.parametrize("what, error", [
    (dropped, "is gone from a: what was committed after"), (created_again, "what lies between is lost"),
    (advanced, "what lies between is lost"), (of_a_later_copy, "what lies between is lost"),
    (of_another_plugin, "is not ours: plugin test_decoding")])
def test_slot(pair, make_job, what, error):
    """Whatever was done to the slot while nobody looked."""
    pair.a.sql(TABLE)
    job = make_job(pair, reverse={"enabled": "no"}).start(wait=("forward",))
    job.wait_synced(("forward",))
    assert job.stop() == 0
    pair.a.sql("UPDATE t SET v = 'lost' WHERE id = 1")
    pair.source("forward").wait_slot_rests(slot(job))
    what(pair, job)
    refused(pair, job, error)


def test_slot_is_invalidated(own_pair, make_job):
    """The server has removed WAL that the slot needed."""
    pair = own_pair
    pair.a.sql(TABLE)
    job = make_job(pair, reverse={"enabled": "no"}).start(wait=("forward",))
    job.wait_synced(("forward",))
    assert job.stop() == 0
    pair.a.admin("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
    pair.a.admin("ALTER SYSTEM SET max_wal_size = '32MB'")
    pair.a.admin("SELECT pg_reload_conf()")
    pair.a.sql("CREATE TABLE filler (x text)")

    def lost():
        pair.a.admin("INSERT INTO filler SELECT repeat(md5(g::text), 30) FROM generate_series(1, 5000) g")
        pair.a.admin("SELECT pg_switch_wal()")
        pair.a.admin("CHECKPOINT")
        return pair.a.admin("SELECT wal_status FROM pg_replication_slots WHERE slot_name = %s", (slot(job),)) == [("lost",)]

    wait_for(lost, "the slot is lost")
    refused(pair, job, "is lost (")


def stopped_copy(server):
    server.stop()
    subprocess.run(["cp", "-a", server.data, server.data + ".old"], check=True)
    server.start()


def put_back(server):
    server.stop()
    shutil.rmtree(server.data)
    os.rename(server.data + ".old", server.data)
    server.start()


def test_older_copy(own_pair, make_job):
    """A is put back to an older copy of its files, and written again."""
    pair = own_pair
    pair.a.sql(TABLE)
    job = make_job(pair, **POLICIES).start()
    job.wait_synced()
    assert job.stop() == 0
    stopped_copy(pair.a.server)
    job.start()
    pair.a.sql("UPDATE t SET v = 'lost history' WHERE id = 1")
    job.wait_synced()
    assert job.stop() == 0
    put_back(pair.a.server)
    pair.a.sql("INSERT INTO t SELECT g, repeat('x', 500) FROM generate_series(1000, 6000) g")
    refused(pair, job, "a has gone back")


def test_another_cluster(own_pair, make_job, make_server, version):
    """Behind A's address is another cluster, with the same tables and rows."""
    pair = own_pair
    pair.a.sql(TABLE)
    job = make_job(pair, **POLICIES).start()
    job.wait_synced()
    assert job.stop() == 0
    other = make_server("other", template=1, version=version)
    other.create_db(pair.a.dbname, pair.a.role)
    theirs = type(pair.a)("a", other, pair.a.dbname, pair.a.role, pair.a.tcp)
    theirs.sql(TABLE)
    job.change(a=theirs.job_keys())
    before = pair.b.admin("SELECT count(*), max(v) FROM t")
    job.start(wait=())
    wait_for(lambda: not job.alive() or job.task("forward")["state"] in ("Failed", "PrecheckFailed"), "an answer")
    told = job.command("status", job.path)[1]
    assert "a is another server: system identifier" in told, told
    if job.alive():
        job.stop()
    assert pair.b.admin("SELECT count(*), max(v) FROM t") == before
    assert not other.sql("SELECT FROM pg_replication_slots", dbname=pair.a.dbname), "nothing is made there"
