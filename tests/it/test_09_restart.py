"""Restart: kill -9, server crashes, cut connections, lost checkpoints: exact; a lost slot: refused."""

import os
import re
import shutil
import threading

import pytest

import compare
import pg
import proxy
import tw
import writers
from wait import Deadline, wait_for


def workload(pair):
    """A keyed table, a keyless one (a row doubled shows), a counter (an update doubled shows)."""
    pair.a.sql("CREATE TABLE keyed (id bigint PRIMARY KEY, v text)")
    pair.a.sql("CREATE TABLE keyless (side text, n bigint)")
    pair.a.sql("CREATE TABLE counter (side text PRIMARY KEY, n bigint)")
    pair.a.sql("INSERT INTO counter VALUES ('a', 0), ('b', 0)")


class Work:
    """Transactions of one side on these tables; each leaves its number, so a lost one shows."""

    def __init__(self, node, rng):
        self.side, self.rng, self.n = node.letter, rng, 0

    def __call__(self, cur):
        self.n += 1
        number = self.n * 2 + "ab".index(self.side)
        cur.execute("INSERT INTO keyed VALUES (%s, repeat('v', %s))", (number, self.rng.choice((1, 100, 5000))))
        cur.execute("INSERT INTO keyless SELECT %s, %s FROM generate_series(1, 2)", (self.side, number % 9))
        cur.execute("UPDATE counter SET n = n + 1 WHERE side = %s", (self.side,))
        if self.n % 5 == 0:
            cur.execute("DELETE FROM keyed WHERE id = %s", (number - 4,))
            cur.execute("UPDATE keyed SET v = 'u' WHERE id = %s", (number - 6,))


def write_both(pair, rng, per_second=150):
    return [writers.Writer(node, Work(node, rng), per_second) for node in pair.nodes]


def written(works, n):
    """Waits until every writer has done n transactions more."""
    goals = [w.acknowledged + n for w in works]
    wait_for(lambda: all(w.acknowledged >= g or w.error for w, g in zip(works, goals)), f"{n} transactions more")


def exact(job, works=()):
    """All is carried, both sides are the same, and hold all that the writers were told is committed."""
    job.wait_synced()
    compare.assert_same(job.pair)
    for writer in works:
        assert job.pair.b.one("SELECT n FROM counter WHERE side = %s", (writer.node.letter,)) >= writer.acknowledged
    assert [t["conflicts"] for t in job.status()["tasks"]] == [0, 0]


# ---- twsync is killed

def test_killed_while_copying(pair, make_job, rng):
    """Killed at random moments from the first second on, A being written; B holds each row once."""
    pair.a.sql("CREATE TABLE keyless_copy (n int, v text)")
    pair.a.sql("INSERT INTO keyless_copy SELECT g % 1000, repeat('x', 200) FROM generate_series(1, 80000) g")
    pair.a.sql("CREATE TABLE keyed_copy (id int PRIMARY KEY, v text UNIQUE)")
    pair.a.sql("INSERT INTO keyed_copy SELECT g, 'v' || g FROM generate_series(1, 80000) g")
    workload(pair)
    job = make_job(pair, forward={"workers": 2})
    writer = writers.Writer(pair.a, Work(pair.a, rng), 100)
    with writers.writing(writer):
        for _ in range(8):
            job.start(wait=())
            try:
                job.process.wait(rng.uniform(0.02, 0.7))
            except tw.subprocess.TimeoutExpired:
                pass
            assert job.alive(), job.log_tail()
            job.kill()
        job.start()
    exact(job, [writer])


@pytest.mark.parametrize("what", ["all", "first", "child"])
def test_killed_while_streaming(pair, make_job, rng, what):
    """All processes at once, the first one only (the others must end or be fenced), or one task."""
    workload(pair)
    job = make_job(pair).start()
    works = write_both(pair, rng)
    with writers.writing(*works):
        for _ in range(8):
            written(works, rng.randrange(2, 25))
            if what == "child":
                wait_for(lambda: job.kill_child(rng), "a task to kill")
                assert job.alive()
            else:
                job.kill(whole_group=what == "all")
                job.start(wait=())
        for task in tw.TASKS:
            job.wait_state(task, "Running")
    exact(job, works)
    if what == "child":
        assert sum(t["restarts"] for t in job.status()["tasks"]) > 0


@pytest.mark.rung("marker")
def test_killed_in_a_large_transaction(pair, make_job):
    workload(pair)
    job = make_job(pair).start()
    for n in range(3):
        with pair.a.transaction() as cur:
            cur.execute("INSERT INTO keyless SELECT 'a', g FROM generate_series(1, 30000) g")
            cur.execute("UPDATE counter SET n = n + 1 WHERE side = 'a'")
        wait_for(lambda: job.task("forward").get("rows", 0) > 0 or job.task("forward").get("transactions"), "rows")
        job.kill()
        job.start(wait=())
    job.wait_state("forward", "Running")
    job.wait_state("reverse", "Running")
    exact(job)
    assert pair.b.one("SELECT count(*) FROM keyless") == 90000


@pytest.mark.rung("origin")
def test_stopped_and_started(pair, make_job, rng):
    """A clean stop is no end: what is written meanwhile arrives afterwards."""
    workload(pair)
    job = make_job(pair).start()
    works = write_both(pair, rng)
    with writers.writing(*works):
        for _ in range(4):
            written(works, 10)
            assert job.stop() == tw.OK
            written(works, 10)
            job.start()
    exact(job, works)


@pytest.mark.rung("marker")
@pytest.mark.parametrize("lost", ["checkpoints", "state folder", "damaged"])
def test_lost_checkpoints(pair, make_job, rng, lost):
    """The state folder is a hint: losing it costs time, never rows."""
    workload(pair)
    job = make_job(pair).start()
    works = write_both(pair, rng)
    with writers.writing(*works):
        for _ in range(2):
            written(works, 10)
            names = ["forward.ckpt", "reverse.ckpt"]
            wait_for(lambda: sorted(n for n in os.listdir(job.state_dir) if n.endswith(".ckpt")) == names, "both checkpoints")
            job.kill()
            if lost == "checkpoints":
                for name in names:
                    os.remove(os.path.join(job.state_dir, name))
            elif lost == "damaged":
                for name in names:
                    path = os.path.join(job.state_dir, name)
                    data = bytearray(open(path, "rb").read())
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
                    with open(path, "wb") as f:
                        f.write(data[:rng.choice((len(data), len(data) // 2, 0))])
            else:
                shutil.rmtree(job.state_dir)
            written(works, 5)
            job.start()
    exact(job, works)


# ---- servers and connections

def test_server_crashes(own_pair, make_job, rng):
    """Either server, and both, stop at once without a word, under load."""
    pair = own_pair
    workload(pair)
    job = make_job(pair).start()
    works = write_both(pair, rng)
    with writers.writing(*works):
        for victims in ([pair.a], [pair.b], [pair.a], [pair.b], [pair.a, pair.b]):
            written(works, rng.randrange(5, 30))
            for node in victims:
                node.server.restart("immediate")
        written(works, 10)
        for task in tw.TASKS:
            job.wait_state(task, "Running")
    exact(job, works)
    assert job.alive()


@pytest.mark.rung("origin")
def test_server_away_for_a_while(own_pair, make_job):
    """While a server is down the task is Retrying; it resumes by itself."""
    pair = own_pair
    workload(pair)
    job = make_job(pair).start()
    pair.b.server.stop("fast")
    job.wait_state("forward", "Retrying")
    pair.a.sql("INSERT INTO keyless VALUES ('a', 1)")
    assert job.task("forward")["last_error"]
    pair.b.server.start()
    for task in tw.TASKS:
        job.wait_state(task, "Running")
    exact(job)


def test_terminated_backends(pair, make_job, rng):
    """An administrator ends our sessions: walsenders, apply sessions, all."""
    workload(pair)
    job = make_job(pair).start()
    works = write_both(pair, rng)
    with writers.writing(*works):
        for _ in range(8):
            written(works, rng.randrange(2, 20))
            node, pattern = rng.choice(pair.nodes), rng.choice(("%forward%", "%reverse%", "%"))
            assert node.admin("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() "
                              "AND application_name LIKE %s", (f"twsync:{job.name}:{pattern}",))[0][0] >= 0
    exact(job, works)


@pytest.fixture
def proxied(pair, make_job):
    """A job whose connections go through proxies."""
    workload(pair)
    proxies = [proxy.Proxy(node.server.port) for node in pair.nodes]
    yield make_job(pair, a=proxies[0].job_keys(), b=proxies[1].job_keys()), proxies
    for job in pair.jobs:
        job.clean_up()
    for p in proxies:
        p.close()


def test_cut_connections(pair, proxied, rng):
    """Cut at random moments, at either server, roughly and in an orderly way."""
    job, proxies = proxied
    job.start()
    works = write_both(pair, rng)
    with writers.writing(*works):
        for _ in range(20):
            written(works, rng.randrange(1, 12))
            rng.choice(proxies).cut(reset=rng.random() < 0.7)
    exact(job, works)


@pytest.mark.parametrize("what", ["replies", "requests"])
def test_ambiguous_commits(pair, proxied, rng, what):
    """The COMMIT, or the answer to it, never arrives: what happened is read from the progress."""
    job, proxies = proxied
    job.start()
    works = write_both(pair, rng)
    times = 8
    with writers.writing(*works):
        for n in range(times):
            p = proxies[n % 2]
            before = p.swallowed
            setattr(p, f"swallow_{what}", 1)
            try:
                wait_for(lambda: p.swallowed > before, f"a COMMIT whose {what} is lost", 60)
            except Deadline:
                if what == "requests":
                    pytest.skip("COMMIT is not sent as text")
                raise
    exact(job, works)


@pytest.mark.rung("marker")
def test_black_hole(pair, proxied, rng):
    """Nothing passes for some seconds and nobody says so; then it goes on."""
    job, proxies = proxied
    job.start()
    works = write_both(pair, rng)
    with writers.writing(*works):
        for p in proxies:
            p.hold()
            written(works, 200)
            p.release()
            written(works, 20)
    exact(job, works)


@pytest.mark.rung("origin")
def test_refused_for_a_while(pair, proxied, rng):
    job, proxies = proxied
    job.start()
    works = write_both(pair, rng)
    with writers.writing(*works):
        for p in proxies:
            p.refuse = True
            p.cut()
            job.wait_state("forward", "Retrying")
            written(works, 20)
            p.refuse = False
            job.wait_state("forward", "Running")
    exact(job, works)


def server_goes_on(node, works, patience):
    """With a backend of this server frozen: do all writers do 20 transactions more, and can its locks be seen?"""
    look = threading.Thread(target=node.admin, daemon=True, args=("SELECT * FROM pg_locks, twsync.progress",))
    look.start()
    goals = [w.acknowledged + 20 for w in works]
    try:
        return wait_for(lambda: all(w.acknowledged >= g for w, g in zip(works, goals)) and not look.is_alive(),
                        "a server that goes on", patience)
    except Deadline:
        return False


def freeze_apply(pair, job, works):
    """Stops the backend by which forward writes on B, at a moment when nobody else depends on it.

    A process that is stopped anywhere may hold a lock of the server's innards (of the WAL, of a page),
    and then the whole server waits for it; that moment is let go, and another one tried.
    """
    for patience in range(3, 15):
        frozen = pg.freeze(pair.b, f"twsync:{job.name}:forward%")
        try:
            if frozen and server_goes_on(pair.b, works, patience):
                return frozen
        except BaseException:
            pg.resume(frozen)
            raise
        pg.resume(frozen)
    raise AssertionError("no moment was found at which the apply session can be frozen")


@pytest.mark.skipif(os.geteuid() != 0, reason="signals the servers' processes")
def test_zombie(pair, make_job, rng):
    """The backend of a killed twsync comes back to life after the next one has begun: nothing doubles.

    Once when the next one stands by already (and has asked for the end of that session), twice before.
    """
    workload(pair)
    job = make_job(pair).start()
    for early in (None, 1.0, 0.3):
        works = write_both(pair, rng, 400)
        with writers.writing(*works):
            written(works, 20)
            frozen = freeze_apply(pair, job, works)
            try:
                mark, stood_by = pair.a.lsn(), job.log_text().count("standing by")
                job.kill()
                job.start(wait=())

                def passed():       # it must not get past its predecessor
                    assert job.alive(), job.log_tail()
                    return pg.lsn_int(job.task("forward").get("applied_lsn")) > mark

                if early is None:
                    wait_for(lambda: passed() or job.log_text().count("standing by") > stood_by, "the second one stands by")
                    assert not passed()
                else:
                    with pytest.raises(Deadline):
                        wait_for(passed, "a second writer", early)
            finally:
                pg.resume(frozen)
            written(works, 5)
            for task in tw.TASKS:
                job.wait_state(task, "Running")
        job.wait_synced()
        compare.assert_contents(pair)
        pair.both("DELETE FROM keyed WHERE false")
        pair.a.sql("TRUNCATE keyed")
        job.wait_synced()


# ---- two at once

@pytest.mark.rung("origin")
def test_second_instance(pair, make_job):
    """The same job twice: the second one ends with exit code 4 and disturbs nothing."""
    workload(pair)
    job = make_job(pair).start()
    code, out, err = job.command("run", job.path)
    assert code == tw.LOCKED and "another" in (out + err).lower(), (code, out, err)
    code, out, err = job.release()
    assert code == tw.LOCKED, (code, out, err)
    pair.a.sql("INSERT INTO keyless VALUES ('a', 1)")
    exact(job)


@pytest.mark.rung("marker")
def test_second_instance_elsewhere(pair, make_job):
    """The same job on another host (with another state folder): never both at work."""
    workload(pair)
    job = make_job(pair).start()
    second = make_job(pair, name=job.name)
    second.start(wait=())
    wait_for(lambda: not second.alive() or "standing by" in second.log_text(), "it gives up or stands by")
    for n in range(20):
        pair.nodes[n % 2].sql("INSERT INTO keyless VALUES ('x', %s)", (n,))
    if second.alive():
        assert second.task("forward").get("state") != "Running"
    else:
        assert second.wait_exit() == tw.LOCKED, second.log_tail()
    second.clean_up()
    exact(job)
    assert job.task("forward")["restarts"] == 0


# ---- the slot is not what it was

def drop_slot(pair, job, task):
    pair.source(task).admin("SELECT pg_drop_replication_slot(%s)", (f"twsync_{job.name}_{task}",))


def recreate_slot(pair, job, task):
    drop_slot(pair, job, task)
    pair.source(task).admin("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (f"twsync_{job.name}_{task}",))


def advance_slot(pair, job, task):
    pair.source(task).admin("SELECT pg_replication_slot_advance(%s, pg_current_wal_flush_lsn())", (f"twsync_{job.name}_{task}",))


def copied_slot(pair, job, task):
    """A slot of that name made from a copy taken later: its history has a hole."""
    slot = f"twsync_{job.name}_{task}"
    pair.source(task).admin("SELECT pg_create_logical_replication_slot('later_copy', 'pgoutput')")
    drop_slot(pair, job, task)
    pair.source(task).admin("SELECT pg_copy_logical_replication_slot('later_copy', %s)", (slot,))
    pair.source(task).admin("SELECT pg_drop_replication_slot('later_copy')")


@pytest.mark.parametrize("task", tw.TASKS)
@pytest.mark.parametrize("tamper", [drop_slot, recreate_slot, advance_slot, copied_slot])
@pytest.mark.rung("marker")
def test_tampered_slot(pair, make_job, tamper, task):
    """The gap is named and nothing is streamed over it; the checkpoint files do not matter."""
    workload(pair)
    job = make_job(pair).start()
    job.wait_synced()
    assert job.stop() == tw.OK
    pair.source(task).wait_slot_rests(f"twsync_{job.name}_{task}")
    pair.source(task).sql("INSERT INTO keyless VALUES ('lost', 1)")
    tamper(pair, job, task)
    pair.source(task).sql("INSERT INTO keyless VALUES ('after', 2)")
    for run in range(2):
        job.start(wait=())
        status = wait_failed(job, task)
        assert "slot" in status["last_error"], status
        if tamper is not drop_slot:
            assert re.search(r"[0-9A-F]+/[0-9A-F]+", status["last_error"]), status
        if job.alive():
            assert job.stop() == tw.TASK_FAILED
        if run == 0:
            for name in os.listdir(job.state_dir):
                if name.endswith(".ckpt"):
                    os.remove(os.path.join(job.state_dir, name))
    assert pair.target(task).one("SELECT count(*) FROM keyless") == 0


def wait_failed(job, task):
    """The status of a task that becomes Failed, whether or not the run ends with it."""
    def failed():
        status = job.task(task)
        return status if status.get("state") == "Failed" else None
    return wait_for(failed, f"{task} is Failed:\n{job.log_tail(8)}")


@pytest.mark.rung("marker")
def test_slot_lost_by_wal_limit(make_server, make_job, servers):
    """max_slot_wal_keep_size took the WAL away: said at once, never streamed."""
    small = make_server("small", {"max_slot_wal_keep_size": "2MB", "max_wal_size": "2MB", "min_wal_size": "2MB"})
    pair = pg.make_pair(small, servers[1], "wal_limit", "marker")
    try:
        workload(pair)
        job = make_job(pair).start()
        job.wait_synced()
        assert job.stop() == tw.OK
        pair.a.sql("INSERT INTO keyless VALUES ('lost', 1)")
        pair.a.sql("CREATE TABLE fill (v text)")
        for _ in range(6):
            pair.a.sql("INSERT INTO fill SELECT repeat('x', 1000) FROM generate_series(1, 4000)")
            small.sql("CHECKPOINT")
        assert small.sql("SELECT wal_status FROM pg_replication_slots WHERE slot_name = %s",
                         (f"twsync_{job.name}_forward",)) == [("lost",)]
        job.start(wait=())
        assert "slot" in wait_failed(job, "forward")["last_error"]
        job.clean_up()
        assert pair.b.one("SELECT count(*) FROM keyless") == 0
    finally:
        for job in pair.jobs:
            job.clean_up()
        pg.drop_pair(pair)
        small.stop("immediate")


@pytest.mark.rung("marker")
def test_another_cluster(pair, make_job, servers):
    """The job is pointed at another server with the same names: refused."""
    workload(pair)
    job = make_job(pair).start()
    job.wait_synced()
    assert job.stop() == tw.OK
    stranger = pg.make_pair(servers[1], servers[1], f"{pair.a.dbname}_other", "marker")
    try:
        workload(stranger)
        stranger.a.admin("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (f"twsync_{job.name}_forward",))
        job.change(a=stranger.a.job_keys())
        stranger.a.sql("INSERT INTO keyless VALUES ('stranger', 1)")
        job.start(wait=())
        wait_for(lambda: not job.alive() or job.task("forward").get("state") == "Failed", "it is refused")
        if not job.alive():
            assert job.wait_exit() in (tw.TASK_FAILED, tw.PRECHECK_FAILED), job.log_tail()
        job.clean_up()
        assert pair.b.one("SELECT count(*) FROM keyless") == 0
    finally:
        job.clean_up()
        pg.drop_pair(stranger)


@pytest.mark.rung("marker")
def test_auxiliary_objects_deleted(pair, make_job):
    """Someone drops the schema twsync while the job runs: noticed, not streamed over."""
    workload(pair)
    job = make_job(pair).start()
    job.wait_synced()
    pair.b.admin("DROP SCHEMA twsync CASCADE")
    before = pair.a.lsn()               # not earlier: until now an idle slot advances
    pair.a.sql("INSERT INTO keyless VALUES ('a', 1)")
    status = wait_failed(job, "forward")
    assert "progress" in status["last_error"], status
    kept = pair.a.admin("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %s",
                        (f"twsync_{job.name}_forward",))
    assert kept and pg.lsn_int(kept[0][0]) <= before, "the slot was made anew: what it held is lost"
