"""What jobs leave behind, on purpose or not: slots of dead jobs, of failed tasks, jobs that begin anew."""

import datetime
import shutil

import compare
import tw
from wait import wait_for

TABLE = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'a' FROM generate_series(1, 100) g"
POLICIES = {"forward": {"on_conflict": "overwrite"}, "reverse": {"on_conflict": "ignore"}}


def slots(node):
    return {name for (name,) in node.admin("SELECT slot_name FROM pg_replication_slots WHERE database = %s",
                                           (node.dbname,))}


def forget_lease(node, job):
    node.admin("UPDATE twsync.lease SET renewed_at = now() - interval '3 days' WHERE job = %s", (job.name,))


def test_orphans(pair, make_job):
    """A job that died long ago is listed with what it keeps, and removed by name; one that lives is not."""
    pair.a.sql(TABLE + "; CREATE TABLE u (id int PRIMARY KEY)")
    dead = make_job(pair, None, **POLICIES, objects={"tables": "public.t"}).start()
    dead.wait_synced()
    dead.kill()
    shutil.rmtree(dead.state_dir)
    live = make_job(pair, None, **POLICIES, objects={"tables": "public.u"}).start()
    live.wait_synced()
    code, out, _ = live.command("orphans", live.path)
    assert code == 0 and out.startswith("nothing:"), "it died a moment ago"
    for node in pair.nodes:
        forget_lease(node, dead)
    code, out, _ = live.command("orphans", live.path)
    assert code == 0 and f"slot twsync_{dead.name}_forward: job {dead.name} has given no sign for 3 days" in out, out
    assert f"slot twsync_{dead.name}_reverse" in out and live.name not in out.replace(live.path, ""), out
    wait_for(lambda: f"slot twsync_{dead.name}_forward" in live.command("status", live.path)[1], "status tells, too", 30)
    code, out, err = live.command("orphans", live.path, "--remove", live.name)
    assert code == tw.BAD_JOB and "has left nothing" in out + err
    code, out, err = live.command("orphans", live.path, "--remove", dead.name)
    assert code == 0, out + err
    assert [slots(node) for node in pair.nodes] == [{f"twsync_{live.name}_forward"}, {f"twsync_{live.name}_reverse"}]
    assert not pair.b.admin("SELECT FROM twsync.progress WHERE job = %s", (dead.name,))
    pair.a.sql("INSERT INTO u VALUES (1)")
    live.wait_synced()
    assert pair.b.one("SELECT count(*) FROM u") == 1
    wait_for(lambda: not live.status()["warnings"], "nothing is left to tell", 30)


def test_release_beside_another(pair, make_job):
    """Of two one-way jobs from one database, the one that stays keeps what it needs there."""
    pair.a.sql(TABLE + "; CREATE TABLE u (id int PRIMARY KEY)")
    one_way = {"reverse": {"enabled": "no"}}
    goes = make_job(pair, None, **one_way, objects={"tables": "public.t"}).start(wait=("forward",))
    stays = make_job(pair, None, **one_way, objects={"tables": "public.u"}).start(wait=("forward",))
    goes.wait_synced(("forward",))
    assert goes.stop() == 0 and goes.release()[0] == 0
    assert stays.stop() == 0
    stays.start(wait=("forward",))
    pair.a.sql("INSERT INTO u VALUES (1)")
    stays.wait_synced(("forward",))
    assert pair.b.one("SELECT count(*) FROM u") == 1


def test_failed_slot_is_dropped(pair, make_job):
    """on_failure = drop: a task that has failed holds no WAL any more, and says so; keep is the default."""
    for setting, left in (("keep", True), ("drop", False)):
        pair.a.sql(TABLE)
        job = make_job(pair, slots={"on_failure": setting}, name=f"fails_{setting}").start()
        job.wait_synced()
        with pair.b.connect() as other, other.cursor() as cur:
            cur.execute("INSERT INTO t VALUES (999, 'b')")
            pair.a.sql("INSERT INTO t VALUES (999, 'a')")
            other.commit()
        wait_for(lambda: "Failed" in {job.task(task)["state"] for task in tw.TASKS}, "it fails")
        failed = [task for task in tw.TASKS if job.task(task)["state"] == "Failed"]
        node = {"forward": pair.a, "reverse": pair.b}
        for task in failed:
            wait_for(lambda: (f"twsync_{job.name}_{task}" in slots(node[task])) == left,
                     f"{task}'s slot, {setting}: {slots(node[task])}", 20)
            assert (f"slot twsync_{job.name}_{task} on {node[task].letter} was dropped" in job.log_text()) != left
        if job.alive():
            job.stop()
        assert job.release()[0] == 0
        for side in pair.nodes:
            side.sql("DROP TABLE t")


def test_reset(pair, make_job):
    """The job begins anew; its tables on B are emptied if that is asked for."""
    pair.a.sql(TABLE)
    job = make_job(pair, **POLICIES).start()
    job.wait_synced()
    code, out, err = job.command("reset", job.path)
    assert code == tw.LOCKED, "not while it runs"
    assert job.stop() == 0
    pair.a.sql("UPDATE t SET v = 'of a' WHERE id = 1")
    pair.b.sql("UPDATE t SET v = 'of b' WHERE id = 2; INSERT INTO t VALUES (500, 'of b')")
    code, out, err = job.command("reset", job.path)
    assert code == 0 and not any(map(slots, pair.nodes)), out + err
    job.start(wait=())
    assert job.wait_exit() != 0 and "TARGET_TABLES" in job.log_text(), "B's tables are not overwritten unasked"
    job.change(objects={"existing": "keep"})
    code, out, err = job.command("reset", job.path, "--empty")
    assert code == 0 and "1 tables of the job are empty on b" in out, out + err
    job.start()
    job.wait_synced()
    compare.assert_same(pair)
    assert pair.a.one("SELECT count(*) FROM t") == 100 and pair.b.one("SELECT v FROM t WHERE id = 1") == "of a"


def test_reset_of_one_task(pair, make_job):
    """The way back begins anew from now on; forward goes on where it was."""
    pair.a.sql(TABLE)
    job = make_job(pair, **POLICIES).start()
    job.wait_synced()
    assert job.stop() == 0
    pair.b.admin("SELECT pg_drop_replication_slot(%s)", (f"twsync_{job.name}_reverse",))
    pair.a.sql("UPDATE t SET v = 'of a' WHERE id = 1")
    job.start(wait=())
    wait_for(lambda: job.task("reverse")["state"] == "Failed", "its slot is gone")
    job.wait_synced(("forward",))
    job.stop()
    code, out, err = job.command("reset", job.path, "--task", "reverse")
    assert code == 0 and "does not come" in out, out + err
    code, out, err = job.command("reset", job.path, "--task", "forward")
    assert code == tw.BAD_JOB and "reset both" in out + err
    job.start()
    pair.b.sql("UPDATE t SET v = 'of b' WHERE id = 2")
    pair.a.sql("UPDATE t SET v = 'of a' WHERE id = 3")
    job.wait_synced()
    compare.assert_same(pair)
    assert pair.a.one("SELECT v FROM t WHERE id = 2") == "of b" and pair.b.one("SELECT v FROM t WHERE id = 1") == "of a"


def test_shortest_retry_window(pair, make_job):
    """Jobs that share a database share the shortest of their retry windows, as long as both live."""
    pair.a.sql(TABLE + "; CREATE TABLE u (id int PRIMARY KEY)")
    patient = make_job(pair, None, **POLICIES, objects={"tables": "public.t"}).start()
    assert patient.status()["retry_minutes"] == {"connection": 720, "other": 10}
    hasty = make_job(pair, None, **POLICIES, objects={"tables": "public.u"},
                     retry={"connection": "20min", "other": "3min"}).start()
    wait_for(lambda: patient.status()["retry_minutes"] == {"connection": 20, "other": 3}, "it hears of it", 60)
    assert hasty.status()["retry_minutes"] == {"connection": 20, "other": 3}
    pair.b.sql("ALTER TABLE t ADD CHECK (v <> 'bad')")
    pair.a.sql("UPDATE t SET v = 'bad' WHERE id = 1")
    patient.wait_state("forward", "Retrying")
    gives_up = datetime.datetime.fromisoformat(patient.task("forward")["gives_up"][:-1])
    assert gives_up - datetime.datetime.utcnow() < datetime.timedelta(minutes=3)
    assert hasty.stop() == 0
    wait_for(lambda: patient.status()["retry_minutes"] == {"connection": 720, "other": 10}, "it is alone again", 60)
