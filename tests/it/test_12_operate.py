"""Seeing and stopping: signals, status, log lines, the terminal, sequences."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess

import pytest

import compare
import tw
from wait import wait_for

STATES = {"NotStarted", "Prechecking", "PrecheckFailed", "Initializing", "Running", "Retrying", "Paused", "Failed", "Completed"}


def small(pair, rows=1000, width=1):
    pair.a.sql("CREATE TABLE t (id serial PRIMARY KEY, v text)")
    pair.a.sql("INSERT INTO t (v) SELECT repeat('v', %s) FROM generate_series(1, %s)", (width, rows))


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.rung("marker")
def test_clean_stop(pair, job, sig):
    """Stops within 10 s, with exit code 0; sessions and processes end, slots stay for the next run."""
    small(pair)
    job.start()
    pair.b.sql("UPDATE t SET v = 'w' WHERE id < 10")
    assert job.stop(sig, deadline=10) == tw.OK
    for node, task in zip(pair.nodes, tw.TASKS):
        sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE %s"
        wait_for(lambda: node.admin(sessions, (f"twsync:{job.name}:%",)) == [(0,)], "no session is left")
        node.wait_slot_rests(f"twsync_{job.name}_{task}")
        assert node.admin("SELECT slot_name, active FROM pg_replication_slots WHERE database = current_database()") == [
            (f"twsync_{job.name}_{task}", False)]
    job.start()
    job.wait_synced()
    compare.assert_same(pair)


@pytest.mark.rung("marker")
def test_stop_while_copying(pair, make_job):
    small(pair, 300_000)
    job = make_job(pair, forward={"workers": 1}).start(wait=())
    wait_for(lambda: job.task("forward").get("phase") in ("copy", "keys", "stream"), "the copy")
    assert job.stop() == tw.OK
    job.start()
    job.wait_synced()
    compare.assert_same(pair)


@pytest.mark.rung("marker")
def test_stop_while_blocked(pair, job):
    """A lock on the target does not keep twsync from stopping."""
    small(pair)
    job.start()
    with pair.b.transaction() as cur:
        cur.execute("LOCK TABLE t")
        pair.a.sql("UPDATE t SET v = 'w' WHERE id = 1")
        wait_for(lambda: pair.b.admin("SELECT count(*) FROM pg_locks WHERE NOT granted")[0][0], "the task is blocked")
        assert job.stop() == tw.OK
    job.start()
    job.wait_synced()
    compare.assert_same(pair)


@pytest.mark.rung("marker")
def test_status(pair, job):
    """Before, during and after a run; as JSON and as text."""
    small(pair)
    before = job.status()
    assert before["job"] == job.name and before["running"] is False
    assert all(t["state"] in STATES for t in before["tasks"])
    job.start()
    pair.a.sql("UPDATE t SET v = 'w' WHERE id < 4")
    pair.b.sql("DELETE FROM t WHERE id = 9")
    job.wait_synced()
    status = job.status()
    assert status["running"] is True and status["tag"] == "normal"
    assert [t["task"] for t in status["tasks"]] == ["forward", "reverse"]
    for task in status["tasks"]:
        assert task["state"] == "Running" and task["phase"] == "stream" and task["rung"] == pair.rung
        assert not task["last_error"] and task["conflicts"] == 0 and 0 <= task["delay_ms"] < 10_000
        for key in ("received_lsn", "applied_lsn", "confirmed_lsn"):
            assert re.fullmatch(r"[0-9A-F]+/[0-9A-F]+", task[key]), task
    forward, reverse = status["tasks"]
    assert (forward["rows"], forward["updates"], forward["transactions"]) == (3, 3, 1)
    assert (reverse["rows"], reverse["deletes"], reverse["transactions"]) == (1, 1, 1)
    assert (forward["copy_tables"], forward["copy_tables_done"], forward["copy_rows"]) == (1, 1, 1000)
    assert forward["copy_bytes"] > 0
    code, out, err = job.command("status", job.path)
    assert code == tw.OK and "forward" in out and "reverse" in out and "Running" in out
    assert job.stop() == tw.OK
    assert job.status()["running"] is False


@pytest.mark.rung("marker")
def test_delay_when_idle(pair, make_job):
    """The delay of an idle task is near 0, not the time since the last row."""
    small(pair)
    job = make_job(pair).start()
    pair.a.sql("UPDATE t SET v = 'w' WHERE id = 1")
    job.wait_synced()
    pair.a.sql("SELECT pg_sleep(3)")        # an idle while: the thing tested
    wait_for(lambda: job.task("forward")["delay_ms"] < 2500, "a small delay")    # the other one only grows


@pytest.mark.rung("marker")
def test_json_log(pair, job):
    """Every line is an object with time, level and message; --quiet says nothing that is no problem."""
    small(pair)
    job.start("--log", "json")
    assert job.stop() == tw.OK
    lines = [json.loads(line) for line in job.log_text().splitlines()]
    assert len(lines) > 3
    for line in lines:
        assert isinstance(line, dict) and len(line) >= 3, line
    for node, task in zip(pair.nodes, tw.TASKS):    # one that is still read is a problem, and told
        node.wait_slot_rests(f"twsync_{job.name}_{task}")
    job.log += ".quiet"
    job.start("--quiet")
    assert job.stop() == tw.OK
    assert job.log_text() == ""


@pytest.mark.rung("marker")
def test_text_log(pair, job):
    """Without a terminal: plain lines, no control characters."""
    small(pair)
    job.start()
    assert job.stop() == tw.OK
    text = job.log_text()
    assert text and not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text), repr(text)
    assert "forward" in text and "Running" in text


@pytest.mark.rung("marker")
def test_terminal(pair, make_job, proxy_a):
    """On a terminal: a bar while copying, then a live line for each task; Ctrl-C ends it."""
    small(pair, 60_000, 300)
    proxy_a.hold_after = 4 << 20        # of 18 MB: a bar is there as long as the copy takes
    job = make_job(pair, a=proxy_a.job_keys())
    master, slave = pty.openpty()
    job.process = subprocess.Popen([tw.BINARY, "run", job.path], stdin=slave, stdout=slave, stderr=slave,
                                   start_new_session=True, env=tw.environment(job.folder, TERM="xterm", COLUMNS="100"))
    job.started.append(job.process)
    os.close(slave)
    seen = bytearray()

    def read():
        while select.select([master], [], [], 0)[0]:
            try:
                data = os.read(master, 65536)
            except OSError:
                return True
            if not data:
                return True
            seen.extend(data)
        return False

    def shows(pattern):
        read()
        return re.search(pattern, seen.decode(errors="replace"))

    try:
        wait_for(lambda: shows(r"public\.t .*[1-9]\d* rows"), "the bar of the table")
        proxy_a.release()
        wait_for(lambda: shows(r"total .*1/1 tables"), "the bar of the whole")
        wait_for(lambda: shows("a→b Running.*rows/s") and shows("b→a Running.*rows/s"), "a line for each task")
        assert re.search(rb"[\r\x1b]", seen), "nothing is drawn over"
        job.process.send_signal(signal.SIGINT)
        wait_for(lambda: read() or job.process.poll() is not None, "the end")
        assert job.process.wait(60) == tw.OK
    finally:
        with contextlib.suppress(OSError):
            os.close(master)


def sequences(pair):
    pair.a.sql("CREATE TABLE t (id serial PRIMARY KEY, other bigint GENERATED ALWAYS AS IDENTITY (INCREMENT 5))")
    pair.a.sql("""CREATE SEQUENCE "Odd. ""Seq" START 100 INCREMENT -10 MAXVALUE 1000 MINVALUE -1000""")
    pair.a.sql("CREATE SEQUENCE untouched START 42")
    pair.a.sql("INSERT INTO t SELECT FROM generate_series(1, 7)")
    pair.a.sql("""SELECT nextval('"Odd. ""Seq"') FROM generate_series(1, 3)""")


@pytest.mark.rung("marker")
def test_sequences(pair, job):
    """Set with the copy; afterwards printed as SQL, or set, on either side; is_called is minded."""
    sequences(pair)
    job.start()
    assert compare.sequence_values(pair.b) == compare.sequence_values(pair.a)
    pair.a.sql("INSERT INTO t SELECT FROM generate_series(1, 5)")
    pair.a.sql("SELECT nextval('untouched')")
    job.wait_synced()
    code, out, err = job.command("sequences", job.path)
    assert code == tw.OK, err
    assert len(re.findall(r"setval\(", out)) == 4, out
    assert compare.sequence_values(pair.b) != compare.sequence_values(pair.a)
    for statement in filter(str.strip, re.sub(r"^\s*--.*$", "", out, flags=re.M).split(";\n")):
        pair.b.sql(statement)
    assert next_values(pair.b) == next_values(pair.a)


def next_values(node):
    return {name: node.one("SELECT nextval(%s)", (name,)) for name in sorted(compare.sequence_values(node))}


@pytest.mark.rung("marker")
@pytest.mark.parametrize("to", [None, "b", "a"])
def test_sequences_apply(pair, job, to):
    sequences(pair)
    job.start()
    source, target = (pair.b, pair.a) if to == "a" else (pair.a, pair.b)
    for name in ("t_id_seq", "untouched", '"Odd. ""Seq"'):
        source.sql("SELECT nextval(%s) FROM generate_series(1, 9)", (name,))
    code, out, err = job.command("sequences", job.path, "--apply", *(["--to", to] if to else []))
    assert code == tw.OK, out + err
    assert next_values(target) == next_values(source)
    job.wait_synced()
    assert job.task("forward")["state"] == job.task("reverse")["state"] == "Running"


@pytest.mark.rung("marker")
def test_hangup_and_pipe(pair, job):
    """A closed log pipe does not end the job."""
    small(pair)
    read_end, write_end = os.pipe()
    job.process = subprocess.Popen([tw.BINARY, "run", job.path], stdin=subprocess.DEVNULL, stdout=write_end,
                                   stderr=write_end, start_new_session=True, env=tw.environment(job.folder))
    job.started.append(job.process)
    os.close(write_end)
    os.close(read_end)
    for task in tw.TASKS:
        job.wait_state(task, "Running")
    pair.a.sql("UPDATE t SET v = 'w' WHERE id = 1")
    job.wait_synced()
    compare.assert_same(pair)
    assert job.stop() == tw.OK
