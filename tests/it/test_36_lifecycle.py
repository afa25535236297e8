"""Tasks rest and go on by command, each for itself; what was committed meanwhile arrives then."""

import datetime

import pytest

import compare
import tw
from wait import wait_for

TABLE = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'a' FROM generate_series(1, 100) g"
POLICIES = {"forward": {"on_conflict": "overwrite"}, "reverse": {"on_conflict": "ignore"}}


def say(job, *args):
    code, out, err = job.command(args[0], job.path, *args[1:])
    assert code == 0, out + err
    return out


def states(job):
    return [job.task(task)["state"] for task in tw.TASKS]


def test_pause_and_resume(pair, make_job):
    """Both rest, also through a stop and a start; nothing moves; then all of it arrives."""
    pair.a.sql(TABLE)
    job = make_job(pair, **POLICIES).start()
    job.wait_synced()
    out = say(job, "pause")
    assert states(job) == ["Paused", "Paused"] and "keeps WAL on a" in out and "keeps WAL on b" in out, out
    assert "without a limit (max_slot_wal_keep_size is -1)" in out, out
    pair.a.sql("INSERT INTO t VALUES (1000, 'of a'); UPDATE t SET v = 'u' WHERE id < 10")
    pair.b.sql("INSERT INTO t VALUES (2000, 'of b'); DELETE FROM t WHERE id > 95 AND id < 200")
    job.stop()
    job.start(wait=())
    wait_for(lambda: states(job) == ["Paused", "Paused"], "they rest after a start, too")
    assert pair.b.one("SELECT count(*) FROM t WHERE id = 1000") == 0 and pair.a.one("SELECT count(*) FROM t") == 101
    assert not pair.a.admin("SELECT FROM pg_stat_activity WHERE application_name ~ '^twsync:' AND "
                            "application_name !~ ':watch:'"), "no session of a task is left"
    say(job, "resume")
    for task in tw.TASKS:
        job.wait_state(task, "Running")
    job.wait_synced()
    compare.assert_same(pair)
    assert pair.a.one("SELECT count(*) FROM t") == 97


@pytest.mark.parametrize("task", tw.TASKS)
def test_one_task(pair, make_job, task):
    """One rests, the other goes on, and starts without it."""
    pair.a.sql(TABLE)
    job = make_job(pair, **POLICIES).start()
    job.wait_synced()
    rests, goes = (pair.a, pair.b) if task == "forward" else (pair.b, pair.a)
    other = tw.TASKS[1 - tw.TASKS.index(task)]
    say(job, "pause", "--task", task)
    for again in range(2):
        assert job.task(task)["state"] == "Paused"
        job.wait_state(other, "Running")
        rests.sql(f"INSERT INTO t VALUES (30{again}, 'waits')")
        goes.sql(f"INSERT INTO t VALUES (40{again}, 'goes')")
        job.wait_synced((other,))
        assert rests.one(f"SELECT count(*) FROM t WHERE id = 40{again}") == 1
        assert goes.one(f"SELECT count(*) FROM t WHERE id = 30{again}") == 0
        if not again:
            job.stop()
            job.start(wait=())
            wait_for(lambda: job.task(task)["state"] == "Paused", "it rests")
    say(job, "resume", "--task", task)
    job.wait_state(task, "Running")
    job.wait_synced()
    compare.assert_same(pair)


def test_while_copying(pair, make_job):
    """A copy rests and goes on, with A being written."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, repeat('x', 200) FROM "
               "generate_series(1, 50000) g")
    job = make_job(pair, throttle={"full.rows": 20000}, forward={"chunk_size": "1MB", "workers": 2}).start(wait=())
    wait_for(lambda: pair.b.admin("SELECT to_regclass('twsync.copied')")[0][0] and
             pair.b.admin("SELECT count(*) > 1 FROM twsync.copied")[0][0], "some pieces")
    say(job, "pause")
    assert job.task("forward")["state"] == "Paused"
    have = pair.b.admin("SELECT count(*) FROM twsync.copied")
    pair.a.sql("UPDATE t SET v = 'changed' WHERE id % 100 = 0; DELETE FROM t WHERE id % 1000 = 1")
    assert pair.b.admin("SELECT count(*) FROM twsync.copied") == have
    say(job, "resume")
    for task in tw.TASKS:
        job.wait_state(task, "Running")
    job.wait_synced()
    compare.assert_same(pair)


def test_after_a_failure(pair, make_job):
    """A task that has failed leaves the other running; resume starts it again, once its cause is gone."""
    pair.a.sql(TABLE)
    job = make_job(pair, forward={"on_conflict": "fail"}, reverse={"on_conflict": "ignore"}).start()
    job.wait_synced()
    with job.unseen("b") as cur:
        cur.execute("INSERT INTO t VALUES (500, 'in the way')")
    pair.a.sql("INSERT INTO t VALUES (500, 'of a')")
    job.wait_state("forward", "Failed")
    assert f"twsync resume {job.path} --task forward" in say(job, "status")
    pair.b.sql("INSERT INTO t VALUES (600, 'of b')")
    job.wait_synced(("reverse",))
    assert job.task("reverse")["state"] == "Running" and pair.a.one("SELECT count(*) FROM t WHERE id = 600") == 1
    with job.unseen("b") as cur:
        cur.execute("DELETE FROM t WHERE id = 500")
    say(job, "resume", "--task", "forward")
    job.wait_state("forward", "Running")
    job.wait_synced()
    compare.assert_same(pair)


def test_retrying(pair, make_job):
    """Status says which attempt it is, when the next one is, and until when; and the error, as long as it is one."""
    pair.a.sql(TABLE)
    job = make_job(pair, retry={"other": "3min"}, **POLICIES).start()
    job.wait_synced()
    pair.b.sql("ALTER TABLE t ADD CONSTRAINT no CHECK (v <> 'refused')")
    pair.a.sql("INSERT INTO t VALUES (700, 'refused')")
    told = wait_for(lambda: job.task("forward").get("attempt", 0) > 1 and job.task("forward"), "it tries again and again")
    until, after = (datetime.datetime.fromisoformat(told[k][:-1]) for k in ("gives_up", "next_try"))
    now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
    assert abs(after - now).total_seconds() < 60 and 100 < (until - now).total_seconds() < 190, told
    assert "violates check" in told["last_error"] and "given up at " + told["gives_up"][:16] in say(job, "status")
    pair.b.sql("ALTER TABLE t DROP CONSTRAINT no")
    job.wait_state("forward", "Running")
    job.wait_synced()
    assert "attempt" not in job.task("forward") and "given up" not in say(job, "status")


def test_not_running(pair, make_job):
    """Told to a job that does not run, it holds for the next run; what is wrong is told."""
    pair.a.sql(TABLE)
    job = make_job(pair, **POLICIES)
    assert "does not on this host" in say(job, "pause")
    job.start(wait=())
    wait_for(lambda: states(job) == ["Paused", "Paused"], "both rest")
    assert pair.a.admin("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()") == [(0,)]
    say(job, "resume")
    for task in tw.TASKS:
        job.wait_state(task, "Running")
    job.wait_synced()
    compare.assert_same(pair)
    job.stop()
    job.change(reverse={"enabled": "no"})
    code, out, err = job.command("pause", job.path, "--task", "reverse")
    assert code == tw.BAD_JOB and "not enabled" in err, out + err
    assert job.command("pause", job.path, "--task", "both")[0] == tw.BAD_JOB


def test_release(pair, make_job):
    """A job that was released does not rest when it is run again."""
    pair.a.sql(TABLE)
    job = make_job(pair, **POLICIES).start()
    job.wait_synced()
    say(job, "pause")
    job.stop()
    assert job.release()[0] == 0
    pair.b.sql("DROP TABLE t")
    job.start()
    job.wait_synced()
    compare.assert_same(pair)
