"""release: nothing of twsync is left on either side, or the SQL that a person must run is printed."""

import os
import re

import pytest

import compare
import pg
import tw
from wait import wait_for


def running_job(pair, make_job, **sections):
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v text)")
    pair.a.sql("INSERT INTO t VALUES (1, 'v')")
    job = make_job(pair, **sections).start()
    pair.b.sql("UPDATE t SET v = 'w'")
    job.wait_synced()
    return job


def test_release(pair, make_job):
    job = running_job(pair, make_job)
    assert all(compare.left_behind(node, job.name) for node in pair.nodes)
    assert job.stop() == tw.OK
    code, out, err = job.release()
    assert code == tw.OK, out + err
    compare.assert_untouched(pair, job.name)
    assert [n for n in (os.listdir(job.state_dir) if os.path.exists(job.state_dir) else []) if n.endswith(".ckpt")] == []
    compare.assert_contents(pair)
    assert job.release()[0] == tw.OK        # again: nothing to do


def test_release_after_kill(pair, make_job):
    job = running_job(pair, make_job)
    job.kill()
    code, out, err = job.release()
    assert code == tw.OK, out + err
    compare.assert_untouched(pair, job.name)


def test_release_without_state(pair, make_job):
    """What is to be removed follows from the job file and the servers alone."""
    job = running_job(pair, make_job)
    assert job.stop() == tw.OK
    job.change(job={"state_dir": job.state_dir + "-new"})
    code, out, err = job.release()
    assert code == tw.OK, out + err
    compare.assert_untouched(pair, job.name)


def test_release_of_a_failed_job(pair, make_job):
    """A copy that cannot succeed leaves things behind; release takes them away."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY)")
    pair.b.sql("CREATE TABLE t (id int PRIMARY KEY CHECK (id > 1))")
    pair.a.sql("INSERT INTO t VALUES (1)")
    job = make_job(pair, objects={"existing": "keep"}, forward={"schema": False})
    job.start(wait=())
    wait_for(lambda: not job.alive() or job.task("forward").get("state") in ("Retrying", "Failed"), "the copy does not succeed")
    assert "check constraint" in job.task("forward")["last_error"]
    if job.alive():
        assert job.stop() in (tw.OK, tw.TASK_FAILED)
    assert compare.left_behind(pair.a, job.name) != [] != compare.left_behind(pair.b, job.name)
    assert job.release()[0] == tw.OK
    compare.assert_untouched(pair, job.name)


def test_release_leaves_others_alone(pair, make_job):
    """Only what this job made is removed: not other slots, publications, or another job's."""
    job = running_job(pair, make_job)
    pair.a.admin("CREATE PUBLICATION twsync_not_ours FOR TABLE t")
    pair.a.admin("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (f"twsync_{job.name}_other",))
    assert job.stop() == tw.OK
    assert job.release()[0] == tw.OK
    assert compare.left_behind(pair.a) == [f"slots: twsync_{job.name}_other", "publications: twsync_not_ours"]
    compare.assert_untouched(pg.Pair(pair.b, pair.b, pair.rung), job.name)


@pytest.mark.rung("marker")
@pytest.mark.parametrize("end", ["a", "b"])
def test_barred_end(pair, make_job, end):
    """The password of one end was changed: the other end is cleaned, and the SQL for this one printed."""
    job = running_job(pair, make_job)
    assert job.stop() == tw.OK
    job.change(**{end: {"password": "changed"}})
    code, out, err = job.release()
    assert code == tw.NOT_RELEASED, out + err
    barred, free = (pair.nodes if end == "a" else pair.nodes[::-1])
    assert compare.left_behind(free, job.name) == []
    assert compare.left_behind(barred, job.name) != []
    # What is printed on standard output is SQL; run as printed it does the work.
    assert "pg_drop_replication_slot" in out and "DROP SCHEMA" in out, out
    barred.wait_slot_rests(f"twsync_{job.name}_{'forward' if end == 'a' else 'reverse'}")
    statements = re.sub(r"^\s*--.*$", "", out, flags=re.M)
    for statement in statements.split(";\n"):
        if statement.strip():
            barred.admin(statement)
    assert compare.left_behind(barred, job.name) == []


@pytest.mark.rung("marker")
def test_run_again_after_release(pair, make_job):
    """A released job can be run from the beginning; B's tables are kept as they are by existing = keep."""
    job = running_job(pair, make_job)
    assert job.stop() == tw.OK
    assert job.release()[0] == tw.OK
    pair.b.sql("DROP TABLE t")
    job.start()
    pair.a.sql("INSERT INTO t VALUES (2, 'again')")
    job.wait_synced()
    compare.assert_same(pair)
