"""Status by HTTP: what it tells is true, whoever asks cannot disturb the job, and the page shows it.

The page is looked at in a real browser, metrics are read by Prometheus' own programs, and what jobs/ has for
Grafana and Prometheus is held against a running job.
"""

import contextlib
import datetime
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest
import yaml

import browser as web
import pg
import tw
from wait import wait_for

JOBS = os.path.join(tw.ROOT, "jobs")
RULES = os.path.join(JOBS, "prometheus-rules.yaml")
DASHBOARD = os.path.join(JOBS, "grafana-dashboard.json")
TABLE = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'a' FROM generate_series(1, 100) g"
POLICIES = {"forward": {"on_conflict": "overwrite"}, "reverse": {"on_conflict": "ignore"}}
ROUTES = ("/", "/healthz", "/readyz", "/metrics", "/status.json", "/history.json")
STATES = ("NotStarted", "Prechecking", "PrecheckFailed", "Initializing", "Running", "Retrying", "Paused",
          "Modifying", "Failed")
EVIL = "<img src=x onerror=alert(1)>"
TIMEOUT_S = 10      # after which a silent connection is closed
LATE_S = 10         # this machine has other work

pytestmark = pytest.mark.rung("marker")     # which has a password


def tool(name):
    path = shutil.which(name)
    assert path, f"{name} is not installed (./build.sh test installs it)"
    return path


def with_endpoint(pair, make_job, **sections):
    """The ordinary job, which listens on a port of its own."""
    port = pg.free_port()
    job = make_job(pair, **{**POLICIES, "endpoint": {"listen": port}, **sections})
    job.port = port
    return job


def ask(job, path="/healthz", method="GET", host="127.0.0.1", timeout=60, headers=None):
    """One request on a connection of its own: code, headers, body."""
    line = http.client.HTTPConnection(host, job.port, timeout=timeout)
    with contextlib.closing(line):
        line.request(method, path, headers=headers or {"Connection": "close"})
        got = line.getresponse()
        return got.status, got.headers, got.read()


def code_of(job, path="/healthz", **more):
    """The code, or None where nobody answers."""
    try:
        return ask(job, path, **more)[0]
    except OSError:
        return None


def wait_code(job, path, code, deadline=90):
    wait_for(lambda: code_of(job, path) == code, f"{path} says {code}", deadline)


def say(job, *args):
    code, out, err = job.command(args[0], job.path, *args[1:])
    assert code == 0, out + err


def told(job, path="/status.json"):
    code, headers, body = ask(job, path)
    assert code == 200 and headers["Content-Type"] == "application/json", headers
    return json.loads(body.decode())


def task_told(job, task="forward"):
    return next(t for t in told(job)["tasks"] if t["task"] == task)


def metrics_text(job):
    code, headers, body = ask(job, "/metrics")
    assert code == 200 and headers["Content-Type"].startswith("text/plain; version=0.0.4"), headers
    return body.decode()


def samples(job):
    """All samples by name and labels: 'up', 'rows_total forward', 'state forward Running', 'node_up a'."""
    found = {}
    for name, labels, value in re.findall(r"^twsync_(\w+)\{(.*)\} (\S+)$", metrics_text(job), re.M):
        parts = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        assert parts.pop("job") == job.name, labels
        key = " ".join([name, *parts.values()])
        assert key not in found, f"{key} is there twice"
        found[key] = float(value)
    return found


def state_told(job, task="forward"):
    """The one state that the gauges are 1 for; all others are 0."""
    now = samples(job)
    values = {state: now[f"state {task} {state}"] for state in STATES}
    assert sorted(values.values()) == [0] * (len(STATES) - 1) + [1], values
    return next(state for state in STATES if values[state])


def lint(job):
    """promtool has nothing to say against it."""
    done = subprocess.run([tool("promtool"), "check", "metrics"], input=metrics_text(job), capture_output=True,
                          text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def pids(job):
    """Who must not be disturbed."""
    found = job.processes()
    return {name: found.get(name) for name in ("forward", "reverse", "watch")}, job.process.pid


def make_conflict(job, n, table="t"):
    """Forward finds a row in its way."""
    with job.unseen("b") as cur:
        cur.execute(f"INSERT INTO {table} VALUES (%s, 'in the way')", (n,))
    job.pair.a.sql(f"INSERT INTO {table} VALUES (%s, 'of a')", (n,))


# ---- where it listens


def listens(*processes):
    """Addresses and ports on which these processes accept connections, as the kernel has them."""
    inodes = set()
    for pid in processes:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                inodes.update(re.findall(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{fd}")))
    found = set()
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/net/{name}") as f:
            for words in map(str.split, f.readlines()[1:]):
                if words[3] == "0A" and words[9] in inodes:
                    address, port = words[1].split(":")
                    raw = b"".join(bytes.fromhex(address[i:i + 8])[::-1] for i in range(0, len(address), 8))
                    found.add((socket.inet_ntop(family, raw), int(port, 16)))
    return found


def other_addresses():
    """IPv4 addresses of this host that are not the loopback's."""
    with open("/proc/net/fib_trie") as f:
        found = set(re.findall(r"-- (\S+)\n\s+/32 host LOCAL", f.read()))
    return sorted(a for a in found if not a.startswith("127."))


def has_ipv6():
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


def everyone(job):
    return [job.process.pid, *job.children()]


def test_off_by_default(pair, make_job):
    """Nobody asked for it: no process, no socket."""
    pair.a.sql(TABLE)
    job = make_job(pair, **POLICIES).start()
    job.wait_synced()
    assert "http" not in job.processes() and not listens(*everyone(job))


def test_where_it_listens(pair, make_job):
    """This host alone, unless the job says otherwise; a reload moves it and ends it."""
    pair.a.sql(TABLE)
    job = with_endpoint(pair, make_job).start()
    wait_code(job, "/healthz", 200)
    assert listens(job.processes()["http"]) == {("127.0.0.1", job.port)}
    assert listens(*everyone(job)) == {("127.0.0.1", job.port)}
    for address in other_addresses():
        assert code_of(job, host=address, timeout=10) is None, address

    def moved(listen, *hosts):
        job.port = pg.free_port()
        job.change(endpoint={"listen": listen.format(job.port)})
        say(job, "reload")
        for host in hosts:
            wait_for(lambda: code_of(job, host=host, timeout=10) == 200, f"it answers on {host}")

    if has_ipv6():
        moved("[::1]:{}", "::1")
        assert listens(*everyone(job)) == {("::1", job.port)} and code_of(job) is None
    moved("0.0.0.0:{}", "127.0.0.1", *other_addresses())
    assert listens(job.processes()["http"]) == {("0.0.0.0", job.port)}
    moved("127.0.0.1:{}", "127.0.0.1")
    job.change(endpoint={"listen": None})
    say(job, "reload")
    wait_for(lambda: "http" not in job.processes() and code_of(job) is None, "the endpoint has gone")
    for task in tw.TASKS:
        job.wait_state(task, "Running")


@pytest.mark.parametrize("value", ["0", "65536", "70000", "-1", "abc", ":80", "host.name:99", "localhost:99", "80x",
                                   "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "1.2.3:x", "[::1]", "[::1:80", "::1]:80",
                                   "[]:80", "999.1.1.1:80", "127.0.0.1 :80", "unix:/tmp/s", "80 81"])
def test_bad_values(tmp_path, value):
    """A place nobody can listen on is refused before anything is done, and the key is named."""
    text = tw.ini({"job": {"name": "x", "state_dir": tmp_path / "s"}, "a": {"host": "/nowhere", "dbname": "a"},
                   "b": {"host": "/nowhere", "dbname": "b"}, "objects": {"schemas": "public"},
                   "endpoint": {"listen": value}})
    path = str(tw.write_private(tmp_path / "x.ini", text))
    for command in ("show", "check"):
        code, out, err = tw.run(command, path)
        assert code == tw.BAD_JOB and "listen" in out + err and f'"{value}"' in out + err, (code, out + err)


@pytest.mark.parametrize("value, shown", [("9836", "127.0.0.1:9836"), ("1", "127.0.0.1:1"), ("[::]:65535",) * 2,
                                          ("192.0.2.77:80",) * 2])
def test_good_values(tmp_path, value, shown):
    text = tw.ini({"job": {"name": "x", "state_dir": tmp_path / "s"}, "a": {"host": "/nowhere", "dbname": "a"},
                   "b": {"host": "/nowhere", "dbname": "b"}, "objects": {"schemas": "public"},
                   "endpoint": {"listen": value}})
    code, out, err = tw.run("show", str(tw.write_private(tmp_path / "x.ini", text)))
    assert code == tw.OK and f"listen = {shown}" in out, out + err


def test_port_is_taken(pair, make_job):
    """The job runs nevertheless, and says why nobody answers; once the port is free, somebody does."""
    pair.a.sql(TABLE)
    job = with_endpoint(pair, make_job)
    with socket.create_server(("127.0.0.1", job.port)):
        job.start()
        job.wait_synced()
        wait_for(lambda: f'could not listen on "127.0.0.1:{job.port}"' in job.log_text(), "it says so")
        before = pids(job)
    wait_code(job, "/readyz", 200)
    assert pids(job) == before


# ---- metrics


def counters(job):
    """Samples of what may only grow: by their declared type, which must fit the name."""
    text = metrics_text(job)
    types = dict(re.findall(r"^# TYPE twsync_(\w+) (\w+)$", text, re.M))
    assert set(types) == set(re.findall(r"^# HELP twsync_(\w+) \S", text, re.M)) and set(types.values()) == {
        "gauge", "counter"}
    assert all(name.endswith("_total") == (kind == "counter") for name, kind in types.items()), types
    assert set(re.findall(r"^twsync_(\w+)\{", text, re.M)) == set(types), "each is declared, and there"
    return {key: value for key, value in samples(job).items() if types[key.split()[0]] == "counter"}


def test_metrics(pair, make_job):
    """They are what was written, and what status says; promtool is content."""
    pair.a.sql(TABLE)
    job = with_endpoint(pair, make_job).start()
    job.wait_synced()
    lint(job)
    first = samples(job)
    assert first["copy_rows_total forward"] == 100 and first["copy_bytes_total forward"] > 100
    assert first["copy_tables forward"] == first["copy_tables_done forward"] == 1
    assert first["up"] == 1 and first["standby"] == 0 and first["node_up a"] == first["node_up b"] == 1
    version = tw.run("--version")[1].split()[1]
    assert first[f"info {version}"] == 1, [key for key in first if key.startswith("info")]
    pair.a.sql("INSERT INTO t SELECT g, 'of a' FROM generate_series(1001, 1050) g")
    pair.a.sql("UPDATE t SET v = 'u' WHERE id <= 7")
    pair.a.sql("DELETE FROM t WHERE id BETWEEN 51 AND 53")
    pair.b.sql("INSERT INTO t SELECT g, 'of b' FROM generate_series(2001, 2020) g")
    job.wait_synced()
    want = {"inserts forward": 50, "updates forward": 7, "deletes forward": 3, "rows forward": 60,
            "transactions forward": 3, "conflicts forward": 0, "inserts reverse": 20, "rows reverse": 20,
            "transactions reverse": 1, "conflicts reverse": 0, "updates reverse": 0, "restarts forward": 0}
    wait_gained(job, first, want)
    now = samples(job)
    for task in tw.TASKS:
        assert state_told(job, task) == "Running"
        assert now[f"bytes_total {task}"] > first[f"bytes_total {task}"]
        wait_for(lambda: samples(job)[f"slot_held_bytes {task}"] > 0, "the slot keeps WAL")
        assert now[f"slot_safe_bytes {task}"] == -1 and now[f"slot_lost {task}"] == 0
        wait_for(lambda: samples(job)[f"caught_up {task}"] == 1 and samples(job)[f"delay_seconds {task}"] < 5,
                 "it has caught up")
        status = job.task(task)
        for key, value in counters(job).items():
            name, of = key.split()
            if of == task and name not in ("bytes_total", "skipped_transactions_total"):
                assert value == status[name[:-6]], key
    lint(job)
    with pair.b.connect() as other, other.cursor() as cur:
        cur.execute("LOCK TABLE t IN EXCLUSIVE MODE")
        pair.a.sql("UPDATE t SET v = 'l' WHERE id = 1")
        wait_for(lambda: samples(job)["delay_seconds forward"] > 3, "the delay is told in seconds")
        now = samples(job)
        assert now["delay_seconds forward"] < 80 and now["delay_seconds reverse"] < 3
        wait_for(lambda: samples(job)["unapplied_bytes forward"] > 0, "where it waits is told")
        wait_for(lambda: samples(job)["stalled_seconds forward"] > 0, "it stands still")
        assert state_told(job) == "Running" and samples(job)["caught_up forward"] == 0, "what was received waits"
        other.rollback()
    job.wait_synced()


def wait_gained(job, first, want):
    def gained():
        now = samples(job)
        last.update({k: now[k.replace(" ", "_total ")] - first[k.replace(" ", "_total ")] for k in want})
        return last == want

    last = {}
    with contextlib.suppress(AssertionError):
        wait_for(gained, "they say what was written", 30)
    assert last == want


def test_conflicts_are_counted_once(pair, make_job):
    """A transaction with a conflict in it is one transaction, and so are its rows, however they were applied."""
    pair.a.sql(TABLE)
    job = with_endpoint(pair, make_job).start()
    job.wait_synced()
    first = samples(job)
    for n in range(3):
        make_conflict(job, 5000 + n)
        job.wait_synced()
    want = {"conflicts forward": 3, "inserts forward": 3, "rows forward": 3, "transactions forward": 3,
            "restarts forward": 0}
    wait_gained(job, first, want)
    say(job, "pause", "--task", "forward")      # and many that come at once
    with job.unseen("b") as cur:
        cur.execute("INSERT INTO t SELECT g, 'in the way' FROM generate_series(6001, 6002) g")
    for n in (6000, 6001, 6002, 6003):
        pair.a.sql("INSERT INTO t VALUES (%s, 'of a')", (n,))
    say(job, "resume", "--task", "forward")
    job.wait_state("forward", "Running")
    job.wait_synced()
    wait_gained(job, first, {**want, "conflicts forward": 5, "inserts forward": 7, "rows forward": 7,
                             "transactions forward": 7})


def test_conflicts_are_settled(pair, make_job):
    """A row that both sides hold alike after a conflict was not copied: what is counted are copies."""
    pair.a.sql(TABLE)
    job = with_endpoint(pair, make_job).start()
    job.wait_synced()
    for n in range(3):
        make_conflict(job, 5000 + n)
    job.wait_synced()
    wait_for(lambda: [c["settled"] for c in task_told(job)["recent_conflicts"]] == ["equal"] * 3, "they are settled")
    wait_gained(job, dict.fromkeys(samples(job), 0), {"conflicts forward": 3, "settled forward": 0})


def test_28_settled_with_nothing_to_write(pair, make_job):
    """A conflict that was told before it was settled is told as settled, though no row had to be copied."""
    pair.a.sql(TABLE)
    job = with_endpoint(pair, make_job).start()
    job.wait_synced()
    say(job, "pause", "--task", "reverse")
    job.wait_state("reverse", "Paused")
    make_conflict(job, 5000)
    settled = lambda: [c["settled"] for c in task_told(job)["recent_conflicts"]]
    wait_for(lambda: settled() == [None], "it is told")
    say(job, "resume", "--task", "reverse")
    wait_for(lambda: settled() == ["equal"], "it is settled")


def test_lag_of_a_copy(pair, make_job):
    """What waits while a copy goes on is what was written since it began, not all the source ever wrote."""
    pair.a.sql(TABLE.replace("100", "20000"))
    job = with_endpoint(pair, make_job, throttle={"full.rows": 2000}).start(wait=())
    wait_code(job, "/healthz", 200)
    wait_for(lambda: task_told(job)["copy_rows"] > 2000 and task_told(job)["slot"]["exists"], "it copies")
    more = {task: more_lag_than_wal(job, task) for task in tw.TASKS}
    assert max(more.values()) <= 1 << 20, f"more bytes are told to wait than the slot holds: {more}"


def test_counters_never_fall(pair, make_job):
    """Over the death of a task nothing that counts goes back; what comes after is added."""
    pair.a.sql(TABLE)
    job = with_endpoint(pair, make_job).start()
    pair.a.sql("UPDATE t SET v = 'x'")
    pair.b.sql("INSERT INTO t VALUES (3000, 'of b')")
    make_conflict(job, 5000)
    job.wait_synced()
    wait_for(lambda: samples(job)["rows_total forward"] == 101, "all is counted")
    most = counters(job)
    for n, task in enumerate(tw.TASKS * 2):
        child = job.processes()[task]
        os.kill(child, signal.SIGKILL)
        pair.source(task).sql(f"INSERT INTO t VALUES ({4000 + n}, 'meanwhile')")

        def back():
            now = counters(job)
            assert now.keys() == most.keys() and not {k: (most[k], now[k]) for k in now if now[k] < most[k]}
            most.update(now)
            return job.processes().get(task) not in (None, child) and state_told(job, task) == "Running"

        wait_for(back, f"{task} works again", every=0.02)
        job.wait_synced()
        back()
    wait_for(lambda: samples(job)["rows_total forward"] >= 103, "the rows of meanwhile are added")
    assert most["restarts_total forward"] == most["restarts_total reverse"] == 2


# ---- JSON


def shape(value):
    """Names and types; of a list its elements, which must be alike, of an object also the order."""
    if isinstance(value, dict):
        return [(key, shape(part)) for key, part in value.items()]
    if isinstance(value, list):
        return [shape(part) for part in value]
    return type(value).__name__


MOVING = ("at", "ms", "bytes", "delay_ms", "heartbeat_delay_ms", "received_lsn", "applied_lsn", "confirmed_lsn",
          "wal_lsn", "held_bytes", "spill_bytes", "skipped_transactions")


def at_rest(value):
    """Without what heartbeats and time move."""
    if isinstance(value, dict):
        return {key: at_rest(part) for key, part in value.items() if key not in MOVING}
    return [at_rest(part) for part in value] if isinstance(value, list) else value


def test_status(pair, make_job):
    """The same as `twsync status --json`, with strange names in it."""
    pair.a.sql(f'{TABLE}; CREATE TABLE "{EVIL}" (id int PRIMARY KEY, v text); '
               'CREATE TABLE "ü""\\\n€" (LIKE t INCLUDING ALL)')
    job = with_endpoint(pair, make_job).start()
    make_conflict(job, 5000)
    make_conflict(job, 5001, f'"{EVIL}"')
    make_conflict(job, 5002, '"ü""\\\n€"')
    job.wait_synced()
    wait_for(lambda: len(task_told(job)["recent_conflicts"]) == 3, "the conflicts are told")
    wait_for(lambda: at_rest(told(job)) == at_rest(job.status()), "both say the same")
    assert shape(told(job)) == shape(job.status())
    conflicts = task_told(job)["recent_conflicts"]
    assert [c["table"] for c in conflicts] == ['public.ü"\\\n€', f"public.{EVIL}", "public.t"], conflicts
    assert json.loads(conflicts[0]["key"]) == {"id": "5002"} and conflicts[0]["outcome"], conflicts
    assert told(job)["job"] == job.name and told(job)["host"] == socket.gethostname() and told(job)["running"] is True
    assert task_told(job)["slot"]["safe_bytes"] is None
    started = datetime.datetime.fromisoformat(told(job)["started"][:-1])
    assert 0 <= (datetime.datetime.utcnow() - started).total_seconds() < 600, started


def test_history(pair, make_job):
    """A point every few seconds, of both tasks, that adds up to what was written."""
    pair.a.sql(TABLE)
    job = with_endpoint(pair, make_job).start()
    job.wait_synced()

    def points():
        past = told(job, "/history.json")
        assert list(past["tasks"]) == ["forward", "reverse"] and past["step_s"] == 5, past
        series = [s[key] for s in past["tasks"].values() for key in ("delay_ms", "rows")]
        assert len({len(s) for s in series}) == 1, "lists of equal length"
        assert all(type(n) is int and 0 <= n < 120_000 for s in series for n in s), past
        return past

    def rows(task):
        return sum(points()["tasks"][task]["rows"]) * 5

    first = wait_for(lambda: len(points()["tasks"]["forward"]["rows"]), "there is a point")
    began, sums = time.monotonic(), {task: rows(task) for task in tw.TASKS}
    pair.a.sql("INSERT INTO t SELECT g, 'of a' FROM generate_series(10001, 15000) g")
    pair.b.sql("INSERT INTO t SELECT g, 'of b' FROM generate_series(20001, 23000) g")
    job.wait_synced()
    for task, many in (("forward", 5000), ("reverse", 3000)):
        wait_for(lambda: rows(task) - sums[task] >= many - 25, "the rows are in the history")
        assert rows(task) - sums[task] <= many + 100    # of the copy
    now = len(points()["tasks"]["forward"]["rows"])
    child = job.processes()["watch"]
    os.kill(child, signal.SIGKILL)      # who takes the points
    before = len(points()["tasks"]["forward"]["rows"])
    wait_for(lambda: len(points()["tasks"]["forward"]["rows"]) > before + 1, "it grows again")
    assert rows("forward") <= 5100 and rows("reverse") <= 3000, "what was counted is not counted again"
    assert 0 < now - first <= (time.monotonic() - began) / 5 + 1, "it grows, at its pace"
    at = datetime.datetime.fromisoformat(points()["at"][:-1])
    assert abs((datetime.datetime.utcnow() - at).total_seconds()) < 30, at


def test_texts_are_cut_between_characters(pair, make_job):
    """An error too long for where it is told is cut, and what is sent is still UTF-8."""
    names = {"forward": "ü" * 31, "reverse": "ü" * 30 + "x"}      # of which one or the other is cut within a letter
    for name in names.values():
        pair.a.sql(f'CREATE TABLE "{name}" (id int PRIMARY KEY, v text)')
    job = with_endpoint(pair, make_job).start()
    job.wait_synced()
    for n, (task, name) in enumerate(names.items()):
        pair.target(task).sql(f'ALTER TABLE "{name}" ADD CONSTRAINT "{name}" CHECK (v IS NULL)')
        pair.source(task).sql(f'INSERT INTO "{name}" VALUES (%s, %s)', (1 + 10 * n, "xy"[:n] + "ü" * 2000))
    for task in tw.TASKS:
        wait_for(lambda: task_told(job, task)["state"] == "Retrying", f"{task} retries")
    wait_for(lambda: len(told(job)["alerts"]) == 2, "the alerts have come")
    assert ask(job, "/metrics")[2].decode() and all("ü" * 20 in a["text"] for a in told(job)["alerts"])
    assert job.status()["alerts"]


# ---- health


def test_supervisor_stands(pair, make_job):
    """A supervisor that gives no sign is not healthy, and no number claims otherwise; then it is again."""
    pair.a.sql(TABLE)
    job = with_endpoint(pair, make_job).start()
    wait_code(job, "/healthz", 200)
    wait_code(job, "/readyz", 200)
    before = pids(job)
    job.process.send_signal(signal.SIGSTOP)
    try:
        wait_code(job, "/healthz", 503, 60)
        assert code_of(job, "/readyz") == 503 and samples(job)["up"] == 0
        now = told(job)
        assert now["running"] is False and now["warnings"][0]["level"] == "error", now
        assert state_told(job) == "NotStarted" and samples(job)["node_up a"] == 0
    finally:
        job.process.send_signal(signal.SIGCONT)
    wait_code(job, "/healthz", 200)
    wait_code(job, "/readyz", 200)
    assert pids(job) == before and samples(job)["up"] == 1


def test_paused_and_failed(pair, make_job):
    """Who rests by command is ready; who has failed is not, and it is told which."""
    pair.a.sql(TABLE)
    job = with_endpoint(pair, make_job, forward={"on_conflict": "fail"}).start()
    job.wait_synced()
    assert ask(job, "/readyz")[0] == 200
    say(job, "pause", "--task", "reverse")
    assert state_told(job, "reverse") == "Paused" and state_told(job, "forward") == "Running"
    assert ask(job, "/readyz")[0] == 200
    say(job, "pause")
    assert state_told(job, "forward") == "Paused" and ask(job, "/readyz")[0] == ask(job)[0] == 200
    say(job, "resume")
    wait_for(lambda: [state_told(job, task) for task in tw.TASKS] == ["Running"] * 2, "both run again")
    assert ask(job, "/readyz")[0] == 200
    make_conflict(job, 500)
    job.wait_state("forward", "Failed")
    assert state_told(job) == "Failed" and state_told(job, "reverse") == "Running"
    assert (ask(job, "/readyz")[0], ask(job, "/healthz")[0]) == (503, 200)
    lint(job)


def test_node_away(own_pair, make_job):
    """B is away: not ready, but healthy; its gauge falls, A's does not; all that is said keeps the secrets."""
    own_pair.a.sql(TABLE)
    hook = f"http://user:{pg.CANARY}-pw@127.0.0.1:{pg.free_port()}/hook?token={pg.CANARY}-token"
    job = with_endpoint(own_pair, make_job, alerts={"url": hook, "for": "0"}).start()
    job.wait_synced()
    wait_code(job, "/readyz", 200)
    before = samples(job)
    own_pair.b.server.stop("immediate")
    wait_code(job, "/readyz", 503)
    assert ask(job)[0] == 200
    wait_for(lambda: samples(job)["node_up b"] == 0, "b's gauge falls")
    assert samples(job)["node_up a"] == 1
    own_pair.a.sql("UPDATE t SET v = 'x'")
    wait_for(lambda: state_told(job) == "Retrying", "forward tries again and again")
    wait_for(lambda: "could not tell that alert" in job.log_text(), "the alert's url is not there")
    for path in (*ROUTES, "/nothing"):
        assert pg.CANARY.encode() not in b"".join(map(repr_bytes, ask(job, path))), path
    assert {a["alert"] for a in told(job)["alerts"]} >= {"b.unreachable"}
    lint(job)
    with contextlib.suppress(AssertionError):
        wait_for(lambda: more_lag_than_wal(job) > 0, "", 3)
    lag = more_lag_than_wal(job)
    own_pair.b.server.start()
    wait_code(job, "/readyz", 200)
    wait_for(lambda: samples(job)["node_up b"] == 1, "b is back")
    job.wait_synced()
    now = counters(job)
    assert all(now[key] >= before[key] for key in now)
    assert lag <= 1 << 20, f"{lag} bytes more are told to wait than the slot holds"


def more_lag_than_wal(job, task="forward"):
    """What waits is in the WAL that the slot keeps, so that this is not above zero, but for the moment of the look."""
    now = samples(job)
    return sum(now[f"{part}_bytes {task}"] for part in ("undecoded", "unreceived", "unapplied")) - now[
        f"slot_held_bytes {task}"]


def repr_bytes(part):
    return part if isinstance(part, bytes) else str(part).encode()


def test_standby(pair, make_job):
    """Who stands by is ready, and says who works; of delays and tasks it tells nothing that alarms."""
    pair.a.sql(TABLE)
    first = with_endpoint(pair, make_job).start()
    first.wait_synced()
    other = with_endpoint(pair, make_job, job={"name": first.name}).start(wait=())
    other.name = first.name
    wait_for(lambda: code_of(other, "/readyz") == 200 and told(other)["lease"] == "standby", "the other stands by")
    assert ask(other)[0] == 200 and told(other)["holder"] and told(other)["running"] is True
    assert (samples(first)["up"], samples(first)["standby"]) == (1, 0)
    assert (samples(other)["up"], samples(other)["standby"]) == (0, 1)
    first.kill()
    wait_for(lambda: samples(other)["up"] == 1 and samples(other)["standby"] == 0, "the other works")
    wait_for(lambda: [state_told(other, task) for task in tw.TASKS] == ["Running"] * 2, "both tasks run")
    # The one that worked comes back, with all it knew of the tasks.
    first.process = subprocess.Popen([tw.BINARY, "run", first.path], stdin=subprocess.DEVNULL, start_new_session=True,
                                     stdout=open(first.log, "ab"), stderr=subprocess.STDOUT,
                                     env=tw.environment(first.folder))
    first.started.append(first.process)
    wait_for(lambda: code_of(first, "/readyz") == 200 and told(first)["lease"] == "standby", "the first stands by")
    pair.a.sql("INSERT INTO t SELECT g, repeat('x', 500) FROM generate_series(1001, 9000) g")
    other.wait_synced()
    lint(first)
    for task in tw.TASKS:
        assert state_told(first, task) == "NotStarted"
        for gauge in ("delay_seconds", "heartbeat_delay_seconds", "stalled_seconds", "slot_lost", "parked_tables"):
            assert samples(first)[f"{gauge} {task}"] <= 0, gauge
        for gauge in ("undecoded_bytes", "unreceived_bytes", "unapplied_bytes"):
            with contextlib.suppress(AssertionError):
                wait_for(lambda: samples(first)[f"{gauge} {task}"] < 1 << 20, "it has looked again", 15)
            assert samples(first)[f"{gauge} {task}"] < 1 << 20, f"{gauge} of {task} is that of long ago"
    assert not told(first)["warnings"], told(first)["warnings"]


def test_one_way(pair, make_job):
    """A task that is not enabled is not spoken of, and not waited for."""
    pair.a.sql(TABLE)
    job = with_endpoint(pair, make_job, reverse={"enabled": "no"}).start(wait=("forward",))
    wait_code(job, "/readyz", 200)
    assert [t["task"] for t in told(job)["tasks"]] == ["forward"] == list(told(job, "/history.json")["tasks"])
    assert not [key for key in samples(job) if "reverse" in key]
    lint(job)


# ---- who asks cannot do harm


def raw(port, data, hold=False):
    """Sends bytes as they are; what comes back until the other side closes."""
    got = b""
    with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), 60) as line:
        line.settimeout(60)
        with contextlib.suppress(OSError):      # it need not read all of it
            line.sendall(data)
            if not hold:
                line.shutdown(socket.SHUT_WR)
        while piece := line.recv(65536):
            got += piece
    return got


def codes(answer):
    return [int(code) for code in re.findall(rb"^HTTP/1\.[01] (\d+)", answer, re.M)]


def head(line, *more):
    return "\r\n".join([line, "Host: x", *more, "", ""]).encode("latin-1")


CLOSE = "Connection: close"
HOSTILE = {     # and which answers are right; none: the connection is closed without one
    "POST": (head("POST /metrics HTTP/1.1", CLOSE, "Content-Length: 5") + b"hello", {405}),
    "a large body": (head("POST / HTTP/1.1", CLOSE, "Content-Length: 3000000") + b"x" * 3000000, {405, None}),
    "a body that lies": (head("GET /healthz HTTP/1.1", f"Content-Length: {10**20}") + b"x", {400, 413, None}),
    "a body below zero": (head("GET /healthz HTTP/1.1", "Content-Length: -1") + b"x", {400, None}),
    "a path above": (head("GET /../../etc/passwd HTTP/1.1", CLOSE), {400, 404}),
    "the same, escaped": (head("GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1", CLOSE), {400, 404}),
    "a path below": (head("GET /metrics/../../etc/passwd HTTP/1.1", CLOSE), {400, 404}),
    "a null": (head("GET /%00/metrics HTTP/1.1", CLOSE), {200, 400, 404}),  # a path ends there, and / is for all
    "another host's": (head("GET http://example.org/etc/passwd HTTP/1.1", CLOSE), {400, 404}),
    "a proxy's": (head("CONNECT example.org:443 HTTP/1.1", CLOSE), {400, 404, 405, None}),
    "a long URL": (head("GET /" + "a" * 100_000 + " HTTP/1.1", CLOSE), {404, 413, 414, 431, None}),
    "a long query": (head("GET /metrics?" + "a=b&" * 50_000 + " HTTP/1.1", CLOSE), {404, 413, 414, 431, None}),
    "large headers": (head("GET / HTTP/1.1", CLOSE, *[f"X-{n}: {'y' * 1000}" for n in range(1000)]), {413, 431, None}),
    "many headers": (head("GET / HTTP/1.1", CLOSE, *[f"X{n}: y" for n in range(20_000)]), {413, 431, None}),
    "a header without an end": (b"GET / HTTP/1.1\r\nX: " + b"y" * 1_000_000, {413, 431, None}),
    "a long method": (b"A" * 100_000 + b" / HTTP/1.1\r\n\r\n", {400, 405, 413, 414, 431, 501, None}),
    "nulls": (b"\0" * 100_000, {400, 413, 414, 431, None}),
    "all bytes": (bytes(range(256)) * 400, {400, 405, 413, 414, 431, 501, None}),
    "TLS": (bytes.fromhex("160301020001000001fc0303") + os.urandom(500), {400, 405, 413, 414, 501, None}),
    "nothing but ends of lines": (b"\r\n" * 50_000, {400, None}),
    "another protocol": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", {400, 405, 501, None}),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), {400, 405, 501, 505, None}),
    "HTTP/0.9": (b"GET /metrics\r\n", {400, None}),
    "HTTP/9.9": (b"GET /metrics HTTP/9.9\r\n\r\n", {400, 505, None}),
    "format strings": (head("GET /%25n%25n%25s HTTP/1.1", CLOSE, "User-Agent: %n%n%s"), {404}),
    "markup": (head("GET /<script>alert(1)</script> HTTP/1.1", CLOSE), {400, 404}),
}
SMUGGLED = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


def test_hostile_requests(pair, make_job):
    """Whatever is sent: a right answer or none, and the next one who asks is answered; nobody dies of it."""
    pair.a.sql(TABLE)
    job = with_endpoint(pair, make_job).start()
    wait_code(job, "/readyz", 200)
    before, child = pids(job), job.processes()["http"]
    wrong = []
    for what, (data, right) in HOSTILE.items():
        answer = raw(job.port, data)
        if not set(codes(answer) or [None]) <= right or len(codes(answer)) > 1 or (answer and not codes(answer)):
            wrong.append(f"{what}: {codes(answer)} {answer[:60]!r}")
        assert b"root:" not in answer and b"<script>alert" not in answer, what
        assert ask(job)[0] == 200, f"after {what}"
    for name, fields in (("both lengths", ("Content-Length: 4", "Transfer-Encoding: chunked")),
                         ("two lengths", ("Content-Length: 4", f"Content-Length: {len(SMUGGLED)}")),
                         ("an odd coding", ("Transfer-Encoding: xchunked", "Content-Length: 4")),
                         ("a space", (f"Content-Length : {len(SMUGGLED)}",)),
                         ("a bad chunk", ("Transfer-Encoding: chunked",))):
        end = b"0\r\n\r\n" if name == "both lengths" else b""
        answer = raw(job.port, head("POST /healthz HTTP/1.1", *fields) + end + SMUGGLED)
        if 200 in codes(answer):
            wrong.append(f"{name}: what was smuggled in is answered: {codes(answer)}")
        assert ask(job)[0] == 200, f"after {name}"
    assert job.processes()["http"] == child and pids(job) == before
    assert not wrong, "\n".join(wrong)
    job.wait_synced()


def test_answers(pair, make_job):
    """Only GET and HEAD; each answer says what it is, and forbids what a page of this kind needs not do."""
    pair.a.sql(TABLE)
    job = with_endpoint(pair, make_job).start()
    wait_code(job, "/readyz", 200)
    types = {"/": "text/html", "/healthz": "text/plain", "/readyz": "text/plain", "/metrics": "text/plain",
             "/status.json": "application/json", "/history.json": "application/json", "/nothing": "text/plain"}
    for path in (*ROUTES, "/nothing", "/metrics/", "/METRICS", "//metrics", "/healthzz", "/index.html", "/favicon.ico"):
        code, headers, body = ask(job, path)
        assert code == (200 if path in ROUTES else 404) and body, path
        assert headers["Content-Type"].split(";")[0] == types.get(path, "text/plain"), path
        assert headers["Cache-Control"] == "no-store" and headers["X-Content-Type-Options"] == "nosniff", path
        assert headers["X-Frame-Options"] == "DENY" and headers["Referrer-Policy"] == "no-referrer", path
        csp = dict(part.split(None, 1) for part in headers["Content-Security-Policy"].split("; "))
        assert csp["default-src"] == "'none'" and csp["connect-src"] == "'self'", csp
        assert "Access-Control-Allow-Origin" not in headers, "no other page may read it"
        assert code_of(job, path, method="HEAD") == code
        answer = raw(job.port, head(f"HEAD {path} HTTP/1.1", CLOSE))
        assert answer.endswith(b"\r\n\r\n") and int(re.search(rb"Content-Length: (\d+)", answer)[1]) > 0, answer
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW"):
        for path in ("/", "/metrics", "/nothing"):
            code, headers, body = ask(job, path, method)
            assert code == 405 and headers["Allow"] == "GET, HEAD", (method, path, code)
            assert b"twsync_" not in body
    assert ask(job, "/metrics?name=x")[0] == 200
    both = raw(job.port, head("GET /healthz HTTP/1.1") + head("GET /metrics HTTP/1.1", CLOSE), hold=True)
    assert codes(both) == [200, 200] and b"twsync_up" in both, "a connection may ask more than once"


def resident(pid):
    with open(f"/proc/{pid}/status") as f:
        return int(re.search(r"^VmRSS:\s+(\d+) kB$", f.read(), re.M)[1])


def open_files(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_many_requests(pair, make_job):
    """Two thousand later it holds no more memory and no more files than before."""
    pair.a.sql(TABLE)
    job = with_endpoint(pair, make_job).start()
    wait_code(job, "/readyz", 200)
    child, before = job.processes()["http"], pids(job)

    def many(n):
        line = http.client.HTTPConnection("127.0.0.1", job.port, timeout=60)
        for i in range(n):
            path = (*ROUTES, "/nothing")[i % 7]
            line.request("GET", path)
            got = line.getresponse()
            assert got.status == (200 if path in ROUTES else 404) and got.read()
            if i % 2:
                line.close()    # the next is another connection
        line.close()

    many(300)
    wait_for(lambda: open_files(child) == open_files(child), "it rests")
    memory, files = resident(child), open_files(child)
    many(2000)
    assert resident(child) - memory < 2048, f"from {memory} to {resident(child)} kB"
    wait_for(lambda: open_files(child) <= files, "no file is left open", 60)
    assert job.processes()["http"] == child and pids(job) == before


@pytest.mark.parametrize("how", ["silent", "half a request", "byte by byte"])
def test_slow_ones(pair, make_job, how):
    """More connections than are let in at once, that never end their request: others wait for a moment only."""
    pair.a.sql(TABLE)
    job = with_endpoint(pair, make_job).start()
    wait_code(job, "/readyz", 200)
    child, before = job.processes()["http"], pids(job)
    files, ended = open_files(child), threading.Event()
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(socket.create_connection(("127.0.0.1", job.port), 60)) for _ in range(40)]
        if how != "silent":
            for line in lines:
                line.sendall(b"GET /healthz HTTP/1.1\r\nHost: ")

        def dribble():
            while not ended.wait(0.5):
                for line in lines:
                    with contextlib.suppress(OSError):
                        line.send(b"x")

        dribbler = threading.Thread(target=dribble, daemon=True)
        if how == "byte by byte":
            dribbler.start()
        began = time.monotonic()
        try:
            assert code_of(job, timeout=TIMEOUT_S + LATE_S) == 200, f"nobody answers: {time.monotonic() - began:.0f} s"
        finally:
            ended.set()
            if dribbler.is_alive():
                dribbler.join(60)
    assert ask(job)[0] == 200 and job.processes()["http"] == child and pids(job) == before
    wait_for(lambda: open_files(child) <= files, "no file is left open", 60)
    job.wait_synced()


def test_killed(pair, make_job):
    """It comes back by itself, and nobody else notices; who stops the job is not held up, and leaves nothing."""
    pair.a.sql(TABLE)
    job = with_endpoint(pair, make_job).start()
    wait_code(job, "/readyz", 200)
    before = pids(job)
    for _ in range(3):
        child = job.processes()["http"]
        os.kill(child, signal.SIGKILL)
        wait_for(lambda: job.processes().get("http") not in (None, child), "there is another")
        wait_code(job, "/readyz", 200)
    assert pids(job) == before and samples(job)["restarts_total forward"] == 0
    pair.a.sql("UPDATE t SET v = 'x'")
    job.wait_synced()
    with socket.create_connection(("127.0.0.1", job.port), 60) as line:     # holds one in the middle
        line.sendall(b"GET /metrics HTTP/1.1\r\n")
        assert job.stop() == tw.OK
    assert code_of(job) is None
    job.start()
    wait_code(job, "/readyz", 200)
    job.kill(whole_group=False)
    wait_for(lambda: not job.children() and code_of(job) is None, "it does not outlive the supervisor")


# ---- the page, in a browser


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    web.need()
    one = web.Browser(tmp_path_factory.mktemp("browser"))
    yield one
    one.close()


@pytest.fixture
def page(window, tmp_path):
    """page(job) opens it; page.fits(name) looks at it in all sizes and colours, and leaves pictures."""
    yield Page(window, tmp_path)
    window.driver.get("about:blank")


class Page:
    SIZES = ((360, 740), (1280, 900))

    def __init__(self, window, folder):
        self.window, self.folder = window, folder
        self.js, self.text, self.texts = window.js, window.text, window.texts

    def __call__(self, job):
        self.base = f"http://127.0.0.1:{job.port}/"
        self.window.look(1280, 900, False)
        self.window.open(self.base)
        self.js("window.neverReloaded = true; window.alerted = []; window.alert = x => alerted.push(x)")
        return self

    def shows(self, selector, what, deadline=60):
        """Waits until an element that can be seen says this."""
        wait_for(lambda: what in self.text(selector), f"{selector} says {what!r}", deadline)

    def calm(self):
        """No markup came of what databases said, nothing is asked of others, nothing is in the console."""
        assert self.js("return window.neverReloaded && document.images.length === 0 && alerted.length === 0")
        assert not self.js("return [...document.querySelectorAll('iframe, object, embed, form, script[src], "
                           "link[href^=http]')].map(e => e.tagName)")
        asked = self.js("return performance.getEntriesByType('resource').map(e => e.name)")
        assert asked and not [url for url in asked if not url.startswith((self.base, "data:"))], asked
        assert self.window.console() == []

    def fits(self, name):
        for width, height in self.SIZES:
            for dark in (False, True):
                self.window.look(width, height, dark)
                wait_for(lambda: self.js("return innerWidth === arguments[0] && [...document.querySelectorAll("
                                         "'#charts svg')].every(e => e.getBoundingClientRect().right <= innerWidth)",
                                         width), "the window has this size")
                self.window.shot(self.folder / f"{name}-{width}-{'dark' if dark else 'light'}.png")
                assert self.js("return document.documentElement.scrollWidth <= innerWidth"), f"{name} at {width}"
                beyond = self.js("return [...document.querySelectorAll('body *')].filter(e => e.checkVisibility() && "
                                 "e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 90))")
                assert not beyond, f"{name} at {width}: {beyond}"
                ink = self.js("return getComputedStyle(document.querySelector('h1')).color.match(/\\d+/g)"
                              ".slice(0, 3).reduce((sum, n) => sum + Number(n), 0)")
                assert (ink > 384) == dark, f"the text's colour in the {'dark' if dark else 'light'}: {ink}"
        self.window.look(1280, 900, False)


def test_page(pair, make_job, page):
    """A job that runs: what it does can be seen, as it does it; its end can be seen, and its return."""
    pair.a.sql(TABLE)
    job = with_endpoint(pair, make_job).start()
    job.wait_synced()
    page(job).shows("#verdict", "Nothing is wrong")
    assert page.text("#job") == job.name and page.text("#state") == "running" and "twsync " in page.text("#about")
    assert not page.texts("#warnings li") and not page.texts("#gone") and not page.texts("#conflicts tbody tr")
    for task in tw.TASKS:
        assert page.text(f"#tasks .task.{task} h3 .badge") == "Running"
        assert re.fullmatch(r"[\d.]+ (ms|s)", page.text(f"#tasks .task.{task} .delay b"))
        page.shows(f"#tasks .task.{task} .delay", " caught up")
    assert [t.split()[0] for t in page.texts("#nodes .node h3 .badge")] == ["answers", "answers"]
    was = [page.text(f"#tasks .task.{task} dd[data-fact='rows']") for task in tw.TASKS]
    assert was == ["0: 0 inserts, 0 updates, 0 deletes"] * 2, was
    pair.a.sql("INSERT INTO t SELECT g, 'of a' FROM generate_series(1001, 2500) g; DELETE FROM t WHERE id < 4")
    pair.b.sql("UPDATE t SET v = 'of b' WHERE id BETWEEN 50 AND 59")
    page.shows("#tasks .task.forward dd[data-fact='rows']", "1,503: 1,500 inserts, 0 updates, 3 deletes")
    page.shows("#tasks .task.reverse dd[data-fact='rows']", "10: 0 inserts, 10 updates, 0 deletes")
    for task in tw.TASKS:
        for chart in ("delays", "rates"):
            wait_for(lambda: "L" in (page.js(f"return document.querySelector('#{chart} svg path.curve.{task}')"
                                             "?.getAttribute('d')") or ""), f"{task} has a curve in {chart}")
    make_conflict(job, 5000)
    page.shows("#conflicts tbody tr", "public.t")
    assert '{"id": "5000"}' in page.text("#conflicts tbody tr") and page.text("#verdict") == "Nothing is wrong"
    assert page.js("return document.title") == f"{job.name}: Nothing is wrong"
    page.fits("running")
    say(job, "pause", "--task", "reverse")
    page.shows("#tasks .task.reverse h3 .badge", "Paused")
    page.shows("#warnings li.warn", "twsync resume")
    page.fits("paused")
    say(job, "resume", "--task", "reverse")
    page.shows("#verdict", "Nothing is wrong")
    page.calm()
    assert job.stop() == tw.OK
    page.shows("#gone", "No answer since")
    assert page.js("return document.querySelector('#main').classList.contains('stale')")
    page.fits("gone")
    calm = page.js("return document.title")
    job.start()
    wait_for(lambda: not page.texts("#gone") and page.text("#verdict") == "Nothing is wrong", "it is back by itself")
    assert page.js("return window.neverReloaded && !document.querySelector('#main').classList.contains('stale')")
    assert "Nothing is wrong" not in calm, "the title, all that is seen of a tab, said so while nobody answered"


def test_page_names(pair, make_job, page):
    """What databases say is text: a table, a key, who holds a lock."""
    pair.a.sql(f'{TABLE}; CREATE TABLE "{EVIL}" ("{EVIL}" text PRIMARY KEY, v text)')
    job = with_endpoint(pair, make_job).start()
    job.wait_synced()
    page(job).shows("#verdict", "Nothing is wrong")
    with job.unseen("b") as cur:
        cur.execute(f'INSERT INTO "{EVIL}" VALUES (%s, %s)', (EVIL + "</td>", EVIL))
    pair.a.sql(f'INSERT INTO "{EVIL}" VALUES (%s, %s)', (EVIL + "</td>", EVIL + EVIL))
    page.shows("#conflicts tbody tr", EVIL)
    assert page.text("#conflicts tbody tr td[data-head='table']") == f"public.{EVIL}"
    assert EVIL + "</td>" in page.text("#conflicts tbody tr td[data-head='key']")
    with pair.b.connect() as other, other.cursor() as cur:
        cur.execute("SELECT set_config('application_name', %s, false)", (EVIL,))
        cur.execute("LOCK TABLE t IN EXCLUSIVE MODE")
        cur.execute(f"SELECT '{EVIL}'")
        pair.a.sql("UPDATE t SET v = 'b' WHERE id = 1")
        page.shows("#warnings li", f"pid {other.info.backend_pid} ")
        page.shows("#warnings li", f"SELECT '{EVIL}'")
        page.shows("#warnings li.bad", "forward has applied nothing")
        assert "wrong" not in page.text("#verdict") and "error" in page.text("#verdict")
        page.fits("locked")
        page.shows("#tasks .task.forward .delay", "not caught up", 20)
        other.rollback()
    page.shows("#verdict", "Nothing is wrong")
    assert not page.texts("#warnings li")
    page.calm()


def test_page_node_away(own_pair, make_job, page):
    """B is away: the warning, its node and both tasks say so, and later that it is over."""
    own_pair.a.sql(TABLE)
    job = with_endpoint(own_pair, make_job).start()
    job.wait_synced()
    page(job).shows("#verdict", "Nothing is wrong")
    own_pair.b.server.stop("immediate")
    page.shows("#warnings li.bad", "does not answer")
    page.shows("#nodes .node:last-child h3", "does not answer")
    assert page.text("#nodes .node:first-child h3 .badge") == "answers"
    page.shows("#tasks .task.forward h3 .badge", "Retrying")
    page.shows("#tasks .task.forward dd[data-fact='retry']", "gives up in")
    page.shows("#alerts li", "b.unreachable")
    page.fits("away")
    own_pair.b.server.start()
    page.shows("#verdict", "Nothing is wrong", 120)
    wait_for(lambda: not page.texts("#alerts li"), "the alerts are over")
    page.calm()


def test_page_copy(pair, make_job, page):
    """Each table of a copy has its progress, which moves."""
    for name in ("orders", "a_table_with_a_name_that_is_as_long_as_any_name_may_be_in_here", EVIL):
        pair.a.sql(f'CREATE TABLE "{name}" (id int PRIMARY KEY, v text); INSERT INTO "{name}" '
                   "SELECT g, repeat('x', 200) FROM generate_series(1, 20000) g")
    job = with_endpoint(pair, make_job, throttle={"full.rows": 2500}, forward={
        "on_conflict": "overwrite", "chunk_size": "1MB", "workers": 2}).start(wait=())
    wait_code(job, "/healthz", 200)
    page(job).shows("#tasks .task.forward h3 .badge", "Initializing")
    page.shows("#copy tbody tr", "orders")
    page.shows("#copy tbody tr", EVIL)
    assert len(page.texts("#copy tbody tr")) == 3

    def done():
        return page.js("return [...document.querySelectorAll('#copy tbody tr progress')].map(e => e.value)")

    before = wait_for(lambda: any(0 < value < 100 for value in done()) and done(), "a table is being copied")
    wait_for(lambda: max(done(), default=0) > max(before), "it goes on")
    assert re.search(r"[\d,]+ rows", page.text("#copy .copied")) and code_of(job, "/healthz") == 200
    page.fits("copy")
    say(job, "throttle", "full.rows=-1")
    page.shows("#tasks .task.forward h3 .badge", "Running")
    page.shows("#verdict", "Nothing is wrong")
    assert told(job)["tasks"][0]["copy_rows"] == 60000
    page.calm()


# ---- for Prometheus and Grafana


def board():
    with open(DASHBOARD) as f:
        return json.load(f)


def dashboard_queries():
    return [target["expr"] for panel in board()["panels"] for target in panel["targets"]]


def rules():
    with open(RULES) as f:
        return [rule for group in yaml.safe_load(f)["groups"] for rule in group["rules"]]


def test_dashboard():
    """As Grafana wants it: each panel has what it needs, and a place of its own."""
    it = board()
    assert it["title"] and it["schemaVersion"] >= 38 and it["uid"] and not it.get("id")
    variables = {v["name"]: v for v in it["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource" and variables["datasource"]["query"] == "prometheus"
    assert variables["job"]["type"] == "query" and "label_values(twsync_up, job)" in str(variables["job"]["query"])
    assert len({panel["id"] for panel in it["panels"]}) == len(it["panels"])
    taken = set()
    for panel in it["panels"]:
        title, place = panel["title"], panel["gridPos"]
        assert title and panel["description"] and panel["fieldConfig"]["defaults"]["unit"], title
        assert panel["type"] in ("timeseries", "state-timeline", "stat", "bargauge"), title
        assert panel["targets"] and len({t["refId"] for t in panel["targets"]}) == len(panel["targets"]), title
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24 and not cells & taken, f"{title} lies upon another"
        taken |= cells
        for thing in (panel, *panel["targets"]):
            assert thing["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, title
        for target in panel["targets"]:
            chosen = re.findall(r"twsync_\w+\{([^}]*)\}", target["expr"])
            assert len(chosen) == target["expr"].count("twsync_") and all('job=~"$job"' in c for c in chosen), title
            assert "{{task}}" in target["legendFormat"] or "{{node}}" in target["legendFormat"], title
    shown = " ".join(dashboard_queries())
    for name in ("state", "delay_seconds", "undecoded_bytes", "unreceived_bytes", "unapplied_bytes", "rows_total",
                 "conflicts_total", "slot_held_bytes", "parked_tables", "node_up", "copy_tables_done"):
        assert f"twsync_{name}{{" in shown, f"no panel for {name}"


def healthy():
    """Series of a job as they are all day long on the host that works, h1, and on the one that stands by, h2."""
    series = {}
    for host, works in (("h1", 1), ("h2", 0)):
        def put(name, value, host=host, **labels):
            labels = {"job": "shop", "instance": host, **labels}
            text = ", ".join(f'{k}="{v}"' for k, v in labels.items())
            series[f"twsync_{name}{{{text}}}"] = value
        put("up", works)
        put("standby", 1 - works)
        for node in "ab":
            put("node_up", works, node=node)
        for task in tw.TASKS:
            for state in STATES:
                put("state", int(state == ("Running" if works else "NotStarted")), task=task, state=state)
            for name, value in (("delay_seconds", 1), ("stalled_seconds", 0), ("slot_lost", 0), ("slot_safe_bytes", -1),
                                ("slot_held_bytes", 10**9), ("parked_tables", 0), ("conflicts_total", 5),
                                ("ddl_failed_total", 0)):
                put(name, value, task=task)
    return {key: f"{value}x240" for key, value in series.items()}


OF = 'job="shop", instance="h1", task="forward"'
WAS = ('twsync_state{%s, state="Running"}' % OF, "0x240")


def state_is(name):
    return dict([WAS, ('twsync_state{%s, state="%s"}' % (OF, name), "1x240")])


# What happens, who speaks up, after how many minutes: not a minute before.
CASES = [
    ({}, None, 0),
    ({"twsync_delay_seconds{%s}" % OF: "61x240"}, "TwsyncDelay", 5),
    ({"twsync_delay_seconds{%s}" % OF: "60x240"}, None, 0),
    ({"twsync_delay_seconds{%s}" % OF: "1x10 300x3 1x220"}, None, 0),
    (state_is("Failed"), "TwsyncTaskFailed", 0),
    (state_is("PrecheckFailed"), "TwsyncTaskFailed", 0),
    (state_is("Retrying"), "TwsyncTaskNotRunning", 5),
    (state_is("NotStarted"), "TwsyncTaskNotRunning", 5),
    (state_is("Paused"), None, 0),
    (state_is("Initializing"), None, 0),
    ({"twsync_stalled_seconds{%s}" % OF: "31x240"}, "TwsyncStalled", 1),
    ({"twsync_slot_lost{%s}" % OF: "1x240"}, "TwsyncSlotLost", 0),
    ({"twsync_slot_safe_bytes{%s}" % OF: "900000000x240"}, "TwsyncSlotNearItsEnd", 5),
    ({"twsync_slot_safe_bytes{%s}" % OF: "0x240"}, "TwsyncSlotNearItsEnd", 5),
    ({"twsync_slot_held_bytes{%s}" % OF: "11000000000x240"}, "TwsyncWALHeld", 5),
    ({"twsync_conflicts_total{%s}" % OF: "0+60x240"}, "TwsyncConflicts", 7),
    ({"twsync_conflicts_total{%s}" % OF: "0+3x240"}, None, 0),
    ({'twsync_node_up{job="shop", instance="h1", node="b"}': "0x240"}, "TwsyncNodeDown", 1),
    ({"twsync_parked_tables{%s}" % OF: "2x240"}, "TwsyncParkedTables", 1),
    ({"twsync_ddl_failed_total{%s}" % OF: "0 1x239"}, "TwsyncDDLRefused", 1),
    ({'twsync_up{job="shop", instance="h1"}': "1x2 _x240", 'twsync_up{job="shop", instance="h2"}': "0x240"},
     "TwsyncNobodyWorks", 9),   # Prometheus sees the last sample for five minutes
    ({'twsync_up{job="shop", instance="h1"}': "1x2 0x240"}, "TwsyncNobodyWorks", 4),
]


def promtool(*args, cwd):
    done = subprocess.run([tool("promtool"), *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=120, cwd=cwd)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_rules(tmp_path):
    """Each alert comes when it should, and not before; a job that is well, or stands by, or rests, raises none."""
    assert f"SUCCESS: {len(rules())} rules found" in promtool("check", "rules", RULES, cwd=tmp_path)
    speak = 'sum by (alertname, task, node) (ALERTS{alertstate="firing"})'
    tests = []
    for change, alert, minutes in CASES:
        assert not change.keys() - healthy().keys(), change
        spoken = {"TwsyncNodeDown": ', node="b"', "TwsyncNobodyWorks": ""}.get(alert, ', task="forward"')
        exact = [{"labels": f'{{alertname="{alert}"{spoken}}}', "value": 1}] if alert else []
        times = [(minutes, exact), (45, exact)]
        if alert and minutes:
            times.insert(0, (minutes - 1, []))
        tests.append({"interval": "1m", "name": f"{alert} {list(change.items())[:1]}",
                      "input_series": [{"series": k, "values": v} for k, v in {**healthy(), **change}.items()],
                      "promql_expr_test": [{"expr": speak, "eval_time": f"{at}m", "exp_samples": samples_}
                                           for at, samples_ in times]})
    well = healthy()    # and the one that stood by takes over
    swapped = {k: well[k.translate({ord("1"): "2", ord("2"): "1"})] for k in well}
    tests.append({"interval": "1m", "name": "taken over", "input_series": [
        {"series": k, "values": f"{v.split('x')[0]}x20 {swapped[k]}"} for k, v in well.items()],
        "promql_expr_test": [{"expr": speak, "eval_time": f"{at}m", "exp_samples": []} for at in (10, 21, 22, 26, 45)]})
    assert {alert for _, alert, _ in CASES} - {None} == {rule["alert"] for rule in rules()}, "all rules have a case"
    texts = {rule["alert"]: rule["annotations"] for rule in rules()}
    for alert, change, severity, summary in (
            ("TwsyncTaskFailed", state_is("Failed"), "critical", "shop: forward has failed"),
            ("TwsyncDelay", {"twsync_delay_seconds{%s}" % OF: "90x240"}, "warning", "shop: forward is 1m 30s behind")):
        labels = {"job": "shop", "instance": "h1", "task": "forward", "severity": severity}
        if alert == "TwsyncTaskFailed":
            labels["state"] = "Failed"
        tests.append({"interval": "1m", "input_series": [
            {"series": k, "values": v} for k, v in {**healthy(), **change}.items()], "alert_rule_test": [
                {"eval_time": "10m", "alertname": alert, "exp_alerts": [
                    {"exp_labels": labels, "exp_annotations": {**texts[alert], "summary": summary}}]}]})
    path = tmp_path / "test.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [RULES], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", str(path), cwd=tmp_path)


def test_rules_are_told():
    """Who is woken finds what is wrong, with which job, and what can be done."""
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning"), rule
        assert "{{ $labels.job }}" in rule["annotations"]["summary"] and rule["annotations"]["description"], rule
    with open(RULES) as f:
        text = f.read()
    assert "twsync_up + twsync_standby" in text and "honor_labels: true" in text


class Prometheus:
    """A real one that scrapes a job every second, under the rules of jobs/."""

    def __init__(self, job, folder):
        self.port = pg.free_port()
        config = {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "rule_files": [RULES],
                  "scrape_configs": [{"job_name": "scraped", "honor_labels": True,
                                      "static_configs": [{"targets": [f"127.0.0.1:{job.port}"]}]}]}
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        with open(folder / "prometheus.log", "wb") as log:
            self.process = subprocess.Popen(
                [tool("prometheus"), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
                 f"--web.listen-address=127.0.0.1:{self.port}"], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd=folder)

    def get(self, what, **args):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/{what}?{urllib.parse.urlencode(args)}",
                                        timeout=60) as got:
                return json.load(got)["data"]
        except urllib.error.HTTPError as e:
            if e.code == 503:   # it begins
                return {}
            raise AssertionError(f"{args}: {e.read()}") from None
        except OSError:
            return {}

    def end(self):
        self.process.kill()
        self.process.wait(60)


def test_prometheus(pair, make_job, tmp_path):
    """It takes what it scrapes as it is; each panel has something to show; a failure raises its alert, and no other."""
    pair.a.sql(TABLE)
    job = with_endpoint(pair, make_job, forward={"on_conflict": "fail"}).start()
    job.wait_synced()
    known = set(re.findall(r"^# TYPE (\w+)", metrics_text(job), re.M))
    with open(RULES) as f:
        named = set(re.findall(r"twsync_[a-z_]+", " ".join([*dashboard_queries(), *(r["expr"] for r in rules())])))
        named |= set(re.findall(r"twsync_[a-z]+_[a-z_]+", f.read())) - {"twsync_standby"}
    assert named and named <= known, named - known
    states = {state for text in re.findall(r'state=~?"([^"]*)"', " ".join([*dashboard_queries(), *(
        r["expr"] for r in rules())])) for state in text.split("|")}
    assert states == set(STATES)
    server = Prometheus(job, tmp_path)
    try:
        def values(query):
            for name, text in (("$job", job.name), ("$__rate_interval", "1m")):
                query = query.replace(name, text)
            return server.get("query", query=query).get("result")

        wait_for(lambda: values("twsync_up") and values("rate(twsync_rows_total[1m])"), "it has scraped twice")
        for query in dashboard_queries():
            shown = re.sub(r" >=? 0$", "", query)       # what is only shown when it is so
            wait_for(lambda: values(shown), f"there is something to show of {query}", 30)
            for one in values(shown):
                assert one["metric"]["job"] == job.name, one
        panel = next(p for p in board()["panels"] if p["title"].startswith("State"))
        assert [v["value"][1] for v in values(panel["targets"][0]["expr"])] == [str(STATES.index("Running"))] * 2
        mapped = panel["fieldConfig"]["defaults"]["mappings"]
        assert [m["text"] for m in mapped[0]["options"].values()] == list(STATES)

        def alerts():
            groups = server.get("rules").get("groups", [])
            assert all(rule["health"] != "err" for group in groups for rule in group["rules"]), groups
            return sorted(a["labels"]["alertname"] for a in server.get("alerts").get("alerts", []))

        assert alerts() == []
        make_conflict(job, 500)
        job.wait_state("forward", "Failed")
        wait_for(lambda: alerts() == ["TwsyncTaskFailed"], "the alert")
        target, = server.get("targets")["activeTargets"]
        assert target["health"] == "up" and not target["lastError"], target
    finally:
        server.end()
