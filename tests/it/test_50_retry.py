"""How long twsync goes on trying, and what it does about which error.

Windows are minutes, so the clock of the processes goes sixty times as fast; the times in log and status are then those
of that clock.  The errors are a server's: a trigger on B raises every kind of SQLSTATE for carried rows.
"""

import contextlib
import datetime
import os
import re
import subprocess

import pytest

import compare
import tw
from wait import wait_for

FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
CLOCK = {"LD_PRELOAD": FAKETIME, "FAKETIME": "+0 x60", "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_STAT": "1",
         "FAKETIME_DONT_RESET": "1"}
# Two looks at a clock that goes so fast differ, even one right after the other.
SLACK = datetime.timedelta(minutes=2)
WINDOW = datetime.timedelta(minutes=10)     # the shortest that [retry] connection takes
SIX = datetime.timedelta(minutes=6)

TABLE = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'a' FROM generate_series(1, 100) g"
POLICIES = {"forward": {"on_conflict": "overwrite"}, "reverse": {"on_conflict": "ignore"}}
TWO_TABLES = TABLE + "; CREATE TABLE u (id int PRIMARY KEY, v text)"

pytestmark = pytest.mark.rung("marker")


@pytest.fixture(scope="module")
def fast(folder):
    """A program that takes libfaketime: the release is static, and keeps it out, as sanitizers do."""
    if not os.path.exists(FAKETIME):
        pytest.skip("libfaketime is not installed")
    program = os.path.join(folder, "fast")
    subprocess.run(["./build.sh", "cc", "debug", "twsync.c", program, "-fno-sanitize=all"], cwd=tw.ROOT, check=True,
                   capture_output=True)
    return program


def begin(pair, make_job, program, **sections):
    """A job at work whose clock is fast."""
    pair.a.sql(TABLE)
    retry = {"connection": "10min", "other": "5min"}
    job = make_job(pair, **{**POLICIES, "retry": retry, "slots": {"heartbeat": "10s"}, **sections})
    job.command_prefix = [program]
    job.start(**CLOCK, wait=())
    for task in tw.TASKS:
        if job.sections[task].get("enabled") != "no":
            job.wait_state(task, "Running")
            job.wait_synced((task,))
    return job


def time_of(text):
    return datetime.datetime.fromisoformat(text.rstrip("Z"))


def logged(job, task, state):
    """When the log says that a task came into this state, each time."""
    return [time_of(at) for at in re.findall(rf"^(\S+Z) \[{task}\] {state}$", job.log_text(), re.M)]


def slots(node):
    return {name for (name,) in node.admin("SELECT slot_name FROM pg_replication_slots WHERE database = %s",
                                           (node.dbname,))}


def trying(job, task, attempt=2):
    """Its status, when it tries again and has failed so often."""
    def told():
        status = job.task(task)
        return status if status.get("state") == "Retrying" and status["attempt"] >= attempt else None
    return wait_for(told, f"{task} has tried {attempt} times", 45, 0.02)


def gives_up(job, *tasks):
    """Follows tasks that try again until they have Failed: not before they said, and for no longer than the window."""
    first = {task: trying(job, task) for task in tasks}
    last = dict(first)

    def over():
        for task in tasks:
            status = job.task(task)
            assert status["state"] in ("Retrying", "Running", "Failed"), status
            last[task] = status if status["state"] == "Retrying" else last[task]
        return all(job.task(task)["state"] == "Failed" for task in tasks)

    wait_for(over, f"{tasks} give up", 60)
    for task in tasks:
        until = time_of(last[task]["gives_up"])
        assert last[task]["attempt"] > first[task]["attempt"] and last[task]["next_try"] > first[task]["next_try"]
        assert abs(until - time_of(first[task]["gives_up"])) < SLACK, "the time when it gives up moves"
        began, ended = logged(job, task, "Retrying")[-1], logged(job, task, "Failed")
        assert abs(until - began - WINDOW) < SLACK, (began, until)
        assert len(ended) == 1 and ended[0] > until - SLACK, (ended, until)


def told(job, failed):
    """What status says of a task that has failed: what is wrong, what to do; as JSON and as text."""
    warnings = job.status()["warnings"]
    found = [(w["text"], w["what_to_do"]) for w in warnings if w["text"].startswith(f"{failed} has failed: ")]
    assert len(found) == 1, warnings
    code, out, err = job.command("status", job.path)
    assert code == tw.OK and all(text in out for text in found[0]), out + err
    return found[0]


def says(job, *patterns):
    """Does status, as text, say all of that?"""
    text = job.command("status", job.path)[1]
    return all(re.search(pattern, text) for pattern in patterns)


def goes_on(job):
    """Everything that was committed on either side has arrived."""
    for task in tw.TASKS:
        job.wait_state(task, "Running")
    job.wait_synced()
    compare.assert_same(job.pair)


def test_source_stopped(own_pair, make_job, fast):
    """A is stopped for longer than the window: both tasks fail, keep their slots, and go on by the command named."""
    job, (a, b) = begin(own_pair, make_job, fast), own_pair.nodes
    a.sql("INSERT INTO t VALUES (500, 'before')")
    a.server.stop("immediate")
    for task in tw.TASKS:
        trying(job, task)
    b.sql("INSERT INTO t VALUES (501, 'meanwhile')")
    wait_for(lambda: says(job, r"a \(.*\) does not answer: .*\n *When a answers again .*; it gives up at 2",
                          r"retry +attempt \d+, the next at 2\S+Z, given up at 2"), "status tells of it")
    gives_up(job, *tw.TASKS)
    assert job.wait_exit() != tw.OK
    for task in tw.TASKS:
        why, todo = told(job, task)
        assert "Connection refused" in why and todo == f"When its cause is gone: twsync run {job.path}", (why, todo)
    assert job.status()["running"] is False
    a.server.start()
    assert slots(a) == {f"twsync_{job.name}_forward"} and slots(b) == {f"twsync_{job.name}_reverse"}
    a.sql("INSERT INTO t VALUES (502, 'of a')")
    b.sql("UPDATE t SET v = 'of b' WHERE id = 7")
    job.start()
    goes_on(job)
    assert {500, 501, 502} <= {row for (row,) in a.sql("SELECT id FROM t")}


def test_target_stopped(own_pair, make_job, fast):
    """B is, and reverse rests: so the job lives on, and `resume` lets forward go on; what rests has not failed."""
    job, (a, b) = begin(own_pair, make_job, fast), own_pair.nodes
    assert job.command("pause", job.path, "--task", "reverse")[0] == tw.OK
    b.server.stop("fast")
    a.sql("INSERT INTO t VALUES (500, 'meanwhile')")
    gives_up(job, "forward")
    assert job.alive() and job.task("reverse")["state"] == "Paused"
    why, todo = told(job, "forward")
    assert "Connection refused" in why and todo == f"When its cause is gone: twsync resume {job.path} --task forward"
    assert slots(a) == {f"twsync_{job.name}_forward"}
    b.server.start()
    b.sql("INSERT INTO t VALUES (501, 'of b')")
    resumes(job, "forward")
    job.wait_state("forward", "Running")
    job.wait_synced(("forward",))
    assert b.one("SELECT v FROM t WHERE id = 500") == "meanwhile" and job.task("reverse")["state"] == "Paused"
    resumes(job, "reverse")
    goes_on(job)


def resumes(job, task):
    """By this clock the supervisor waits for a line of a command only a twelfth of a second."""
    wait_for(lambda: job.command("resume", job.path, "--task", task)[0] == tw.OK, f"{task} is resumed")


def test_black_hole(pair, make_job, fast, proxy_a):
    """What stands before A takes connections and never answers: the same as a server that is stopped."""
    job, (a, b) = begin(pair, make_job, fast, a=proxy_a.job_keys()), pair.nodes
    proxy_a.hold()
    proxy_a.cut()
    a.sql("INSERT INTO t VALUES (500, 'of a')")
    b.sql("INSERT INTO t VALUES (501, 'of b')")
    gives_up(job, *tw.TASKS)
    assert job.wait_exit() != tw.OK
    for task in tw.TASKS:
        why, todo = told(job, task)
        assert re.search("time|no answer", why), why
        assert todo == f"When its cause is gone: twsync run {job.path}"
    assert slots(a) == {f"twsync_{job.name}_forward"} and slots(b) == {f"twsync_{job.name}_reverse"}
    proxy_a.release()
    job.start()
    goes_on(job)


def test_one_task(own_pair, make_job, fast):
    """A takes sessions but no streams: forward gives up, reverse goes on as if nothing were."""
    job, (a, b) = begin(own_pair, make_job, fast), own_pair.nodes
    pid = job.processes()["reverse"]
    a.admin("ALTER ROLE tw_owner NOREPLICATION")
    a.admin("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active")
    a.sql("INSERT INTO t VALUES (500, 'of a')")
    gives_up(job, "forward")
    b.sql("INSERT INTO t VALUES (501, 'of b')")
    job.wait_synced(("reverse",))
    assert a.one("SELECT v FROM t WHERE id = 501") == "of b" and not logged(job, "reverse", "Retrying")
    assert job.processes()["reverse"] == pid and not b.sql("SELECT FROM t WHERE id = 500")
    why, todo = told(job, "forward")
    assert "replication" in why and todo.endswith(f"When its cause is gone: twsync resume {job.path} --task forward")
    a.admin("ALTER ROLE tw_owner REPLICATION")
    resumes(job, "forward")
    goes_on(job)


def test_slots_dropped(own_pair, make_job, fast):
    """on_failure = drop: the slot on the side that lives goes; that on the other side stays, and the log says so."""
    drop = {"heartbeat": "10s", "on_failure": "drop"}
    job, (a, b) = begin(own_pair, make_job, fast, slots=drop), own_pair.nodes
    forward, reverse = (f"twsync_{job.name}_{task}" for task in tw.TASKS)
    b.server.stop("fast")
    gives_up(job, *tw.TASKS)
    assert job.wait_exit() != tw.OK
    assert not slots(a) and f"slot {forward} on a was dropped, as on_failure" in job.log_text()
    assert re.search(rf"slot {reverse} on b could not be dropped: .*; run there: "
                     rf"SELECT pg_drop_replication_slot\('{reverse}'\)", job.log_text())
    b.server.start()
    assert slots(b) == {reverse}
    assert f"twsync reset {job.path} --empty" in told(job, "forward")[1], "nothing else goes on without the slot"
    a.sql("INSERT INTO t VALUES (500, 'lost')")
    b.sql("INSERT INTO t VALUES (501, 'of b')")
    job.start(wait=())
    wait_for(lambda: job.task("forward").get("state") == "Failed", "forward sees that it is gone")
    job.wait_synced(("reverse",))
    assert a.one("SELECT v FROM t WHERE id = 501") == "of b" and not b.sql("SELECT FROM t WHERE id = 500")
    why, todo = told(job, "forward")
    assert f"replication slot {forward} is gone from a" in why and f"twsync reset {job.path} --empty" in todo
    job.stop()
    assert job.command("reset", job.path, "--empty")[0] == tw.OK
    job.change(objects={"existing": "keep"})
    job.start()
    goes_on(job)


def test_short_outages(own_pair, make_job, fast):
    """Six minutes, and six again: a window ends with the failure it began with, and none is given up."""
    job, (a, b) = begin(own_pair, make_job, fast), own_pair.nodes
    ends = []
    for n in range(2):
        a.server.stop("fast")
        b.sql("INSERT INTO t VALUES (%s, 'meanwhile')", (500 + n,))
        for task in tw.TASKS:
            status = wait_for(lambda: has_tried_for(job, task, SIX), f"{task} has tried for six minutes")
            ends.append(time_of(status["gives_up"]))
        a.server.start()
        a.sql("INSERT INTO t VALUES (%s, 'after')", (510 + n,))
        goes_on(job)
    assert ends[2] - ends[0] > SIX < ends[3] - ends[1], ends
    assert "Failed" not in job.log_text()


def has_tried_for(job, task, how_long):
    status = job.task(task)
    assert status["state"] != "Failed", status
    if status["state"] == "Retrying" and time_of(status["next_try"]) > time_of(status["gives_up"]) - WINDOW + how_long:
        return status


def test_exit_code(pair, make_job, fast, proxy_a):
    """README.md: 1 when a task failed, also when it failed because a server was away."""
    job = begin(pair, make_job, fast, a=proxy_a.job_keys(), reverse={"enabled": "no"})
    proxy_a.refuse = True
    proxy_a.cut()
    gives_up(job, "forward")
    assert job.wait_exit() == tw.TASK_FAILED


# ---- which error asks for what

REFUSES = """
    CREATE SCHEMA aside;
    CREATE TABLE aside.switch (state text, at_commit bool);
    CREATE FUNCTION aside.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE state text := (SELECT s.state FROM aside.switch s WHERE s.at_commit = (tg_argv[0] = 'at commit'));
        BEGIN
            IF state = 'changing' THEN state := CASE WHEN random() < 0.5 THEN 'P0001' ELSE '40001' END; END IF;
            IF state IS NOT NULL THEN RAISE EXCEPTION 'refused as %', state USING ERRCODE = state; END IF;
            RETURN NEW;
        END $$;
    CREATE TRIGGER refuse BEFORE INSERT OR UPDATE OR DELETE ON t
        FOR EACH ROW EXECUTE FUNCTION aside.refuse('at once');
    CREATE CONSTRAINT TRIGGER late AFTER INSERT OR UPDATE OR DELETE ON t DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION aside.refuse('at commit');
    ALTER TABLE t ENABLE ALWAYS TRIGGER refuse;
    ALTER TABLE t ENABLE ALWAYS TRIGGER late"""

# Reaction -> which window holds, whether the task counts as Running while it tries, and SQLSTATEs; those after "|" are
# raised by COMMIT, too.
REACTIONS = {
    "connection": ("connection", True,
                   "55006 08000 08006 57P01 57P02 57P03 57P05 53300 25006 25P03 25P04 | 08006 57P01"),
    "again": ("other", True, "55P03 40001 40003 40P01 57014 | 40001 57014"),
    "servers": ("other", False, "53000 53100 53200 53400 54000 55000 57000 58030 25P02 XX000 XX001 | 53100"),
    "statements": ("other", False, "42501 42P01 42703 22003 22P02 23502 23503 23514 44000 P0001 0A000 | 23503"),
}
MINUTES = {"connection": 60, "other": 3}


def refusing(pair, make_job, **sections):
    pair.a.sql(TWO_TABLES)
    job = make_job(pair, **{**POLICIES, "retry": {k: f"{v}min" for k, v in MINUTES.items()}, **sections})
    job.start()
    job.wait_synced()
    pair.b.sql(REFUSES)
    return job


def accepts(pair):
    pair.b.sql("DELETE FROM aside.switch")


def mended(job):
    """Nothing is refused any more, and both sides are the same."""
    job.wait_synced()
    job.pair.b.sql("DROP TRIGGER refuse ON t; DROP TRIGGER late ON t; DROP SCHEMA aside CASCADE")
    goes_on(job)


def refused(job, state, at_commit, n):
    """Three transactions, the second one refused; the status when it was tried for the second time."""
    a, b = job.pair.nodes
    b.sql("INSERT INTO aside.switch VALUES (%s, %s)", (state, at_commit))
    with contextlib.closing(a.connect()) as conn, conn.cursor() as cur:
        for table, add in (("u", 0), ("t", 0), ("u", 1)):
            cur.execute(f"INSERT INTO {table} VALUES (%s, %s)", (n + add, state))
    return trying(job, "forward")


@pytest.mark.parametrize("reaction", REACTIONS)
def test_sqlstates(pair, make_job, reaction):
    """Each SQLSTATE is tried again within its window, by itself, and nothing is lost or comes before its time."""
    window, runs, states = REACTIONS[reaction]
    job, n = refusing(pair, make_job), 1000
    at_once, at_commit = (part.split() for part in states.split("|"))
    for late, state in [(False, s) for s in at_once] + [(True, s) for s in at_commit]:
        case, n, mark = f"{state}, at commit: {late}", n + 10, len(job.log_text())
        status = refused(job, state, late, n)
        assert f"refused as {state}" in status["last_error"], case
        left = time_of(status["gives_up"]) - time_of(status["next_try"])
        assert (left > datetime.timedelta(minutes=MINUTES["other"])) == (window == "connection"), (case, status)
        assert ("[forward] Running" in job.log_text()[mark:]) == runs, case
        assert not pair.b.sql("SELECT FROM u WHERE id = %s", (n + 1,)), f"{case}: not in order"
        if not runs:    # then it is tried alone
            assert pair.b.sql("SELECT FROM u WHERE id = %s", (n,)), f"{case}: took its neighbour with it"
        accepts(pair)
        job.wait_synced(("forward",))
    assert not job.conflicts("forward") and not logged(job, "reverse", "Retrying")
    mended(job)


@pytest.mark.parametrize("policy", ["overwrite", "fail"])
def test_unique_without_a_cause(pair, make_job, policy):
    """A key is said to be violated, and no row is in the way: nothing to decide, under no policy; it is tried again."""
    job = refusing(pair, make_job, forward={"on_conflict": policy})
    for n, state in enumerate(("23505", "23P01")):
        status = refused(job, state, False, 1000 + 10 * n)
        assert "refuses the row" in status["last_error"] and "Running" == job.task("reverse")["state"]
        accepts(pair)
        job.wait_synced(("forward",))
    assert not job.conflicts("forward")
    mended(job)


def test_changing_error(pair, make_job, fast):
    """A failure of changing kind is one failure: its window is counted from the first."""
    job = begin(pair, make_job, fast)
    pair.b.sql(REFUSES)
    pair.b.sql("INSERT INTO aside.switch VALUES ('changing', false)")
    pair.a.sql("INSERT INTO t VALUES (500, 'a')")
    until = time_of(trying(job, "forward", 1)["gives_up"]) + SLACK
    assert wait_for(lambda: ended_or_late(job, until), "it gives up, or should have") == "Failed"


def ended_or_late(job, until):
    status = job.task("forward")
    if status["state"] == "Failed" or (status["state"] == "Retrying" and time_of(status["next_try"]) > until):
        return status["state"]


TOO_LONG = """
    CREATE SCHEMA aside;
    CREATE FUNCTION aside.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_advisory_xact_lock(50);
            PERFORM pg_sleep(1.2);  -- so long that the task looks at its stream meanwhile
            RAISE EXCEPTION 'index row size 2816 exceeds btree version 4 maximum 2704' USING ERRCODE = '54000';
        END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION aside.refuse();
    ALTER TABLE t ENABLE ALWAYS TRIGGER refuse"""
BIG = "INSERT INTO u SELECT g, repeat('x', 1000) FROM generate_series(1, 40000) g"


def test_too_long_beside_an_echo(pair, make_job, proxy_a):
    """B refuses a row as too long for an index while forward reads what reverse wrote: the row is not given up."""
    pair.a.sql(TWO_TABLES)
    job = make_job(pair, **POLICIES, a=proxy_a.job_keys()).start()
    job.wait_synced()
    pair.b.sql(TOO_LONG)
    with contextlib.closing(pair.b.connect(user="postgres")) as other:
        other.cursor().execute("SELECT pg_advisory_lock(50)")
        pair.a.sql("INSERT INTO t VALUES (1000, 'too long')")
        wait_for(lambda: pair.b.admin("SELECT count(*) FROM pg_locks WHERE NOT granted")[0][0], "forward writes it")
        proxy_a.hold_after = 4 << 20
        pair.b.sql(BIG)
        wait_for(proxy_a.held, "forward reads the echo")
    wait_for(lambda: re.search(r"\[forward\] (error|a row|trying)", job.log_text()), "B has refused it")
    proxy_a.release()
    pair.b.sql("DROP TRIGGER refuse ON t; DROP SCHEMA aside CASCADE")
    job.wait_synced()
    compare.assert_same(pair)


def test_too_long_in_a_large_transaction(pair, make_job):
    """The same in a large transaction, which is written in parts: B refuses it, and nothing is to be skipped."""
    pair.a.sql(TWO_TABLES)
    job = make_job(pair, **POLICIES).start()
    job.wait_synced()
    pair.b.sql(TOO_LONG)
    with pair.a.transaction() as cur:
        cur.execute("INSERT INTO t VALUES (1000, 'too long')")
        cur.execute(BIG)
    status, warnings = trying(job, "forward", 1), job.status()["warnings"]
    pair.b.sql("DROP TRIGGER refuse ON t; DROP SCHEMA aside CASCADE")
    goes_on(job)
    assert status["last_error"].startswith("could not insert") and "twsync skip" not in str(warnings), warnings
