"""Hours of running, compressed by a faster clock: memory, descriptors and connections stay what they are.

TWSYNC_TEST_HOURS says how many (0.5; seven take seven minutes).  The clock of the processes goes sixty times as fast,
so heartbeats, the lease, looks, checkpoints, retention and the hourly duties come sixty times as often; what the
applications write, and what the servers do, goes on at its own pace.
"""

import contextlib
import os
import socket
import subprocess
import time
import urllib.request

import pytest

import compare

FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
ROOT = os.path.join(os.path.dirname(__file__), "..", "..")
SPEED = 60
HOURS = float(os.environ.get("TWSYNC_TEST_HOURS", "0.5"))
POLICIES = {"forward": {"on_conflict": "overwrite"}, "reverse": {"on_conflict": "ignore"}}


def footprint(job):
    """By process: its id, resident kB, open descriptors."""
    found = {}
    for name, pid in {**job.processes(), "supervisor": job.process.pid}.items():
        with open(f"/proc/{pid}/status") as f:
            kb = next(int(line.split()[1]) for line in f if line.startswith("VmRSS"))
        found[name] = (pid, kb, len(os.listdir(f"/proc/{pid}/fd")))
    return found


def sessions(pair):
    return [node.admin("SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND application_name LIKE 'twsync:%%'",
                       (node.dbname,))[0][0] for node in pair.nodes]


@pytest.mark.rung("origin")
@pytest.mark.skipif(not os.path.exists(FAKETIME), reason="libfaketime is not installed")
def test_hours(pair, make_job, tmp_path):
    """No process grows, none is started again, no session is left over."""
    # The release is static, so nothing can be preloaded; and sanitizers keep what was freed.
    program = os.path.join(tmp_path, "twsync")
    subprocess.run(["./build.sh", "cc", "debug", "twsync.c", program, "-fno-sanitize=all"], cwd=ROOT, check=True,
                   capture_output=True)
    os.chmod(tmp_path, 0o755)
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'a' FROM generate_series(1, 100) g")
    job = make_job(pair, **POLICIES, endpoint={"listen": str(free_port())})
    job.command_prefix = [program]
    job.start(LD_PRELOAD=FAKETIME, FAKETIME=f"+0 x{SPEED}", FAKETIME_NO_CACHE="1", FAKETIME_DONT_FAKE_STAT="1",
              FAKETIME_DONT_RESET="1")
    job.wait_synced()
    seconds = HOURS * 3600 / SPEED
    begun, looks, n = time.monotonic(), [], 0
    with contextlib.closing(pair.a.connect()) as a, contextlib.closing(pair.b.connect()) as b:
        while time.monotonic() - begun < seconds:
            n += 1
            a.cursor().execute("INSERT INTO t VALUES (%s, repeat('a', 200))", (1000 + 2 * n,))
            b.cursor().execute("INSERT INTO t VALUES (%s, repeat('b', 200))", (1001 + 2 * n,))
            a.cursor().execute("UPDATE t SET v = v || 'x' WHERE id = %s", (1 + n % 50,))
            b.cursor().execute("DELETE FROM t WHERE id = %s", (1001 + 2 * (n - 40),))
            if n % 7 == 0:
                fetch(job)
            if n % 20 == 0:
                looks.append((footprint(job), sessions(pair)))
            time.sleep(0.01)  # the pace of the applications, not a wait for anything
    job.wait_synced()
    compare.assert_same(pair)
    third = len(looks) // 3
    assert third >= 3, f"too few looks: {len(looks)}"
    early, late = looks[third:2 * third], looks[2 * third:]
    for name in looks[-1][0]:
        pids = {look[0][name][0] for look in looks if name in look[0]}
        assert len(pids) == 1, f"{name} was started again"
        was, now = (min(look[0][name][1] for look in part) for part in (early, late))
        assert now - was <= 1024 + was // 20, f"{name} grew from {was} to {now} kB"
        # What leaks stays: it lifts the fewest ever seen.  The most ever seen is only how many were open by chance.
        was, now = (min(look[0][name][2] for look in part) for part in (early, late))
        assert now <= was, f"{name} has {now} open files, it had {was}"
    for node in (0, 1):
        was, now = (min(look[1][node] for look in part) for part in (early, late))
        assert now <= was, f"node {node} has {now} sessions of ours, it had {was}"
    beats = pair.a.admin("SELECT beat FROM twsync.heartbeat")[0][0]
    assert beats > HOURS * 3600 / 0.1 / 20, f"only {beats} heartbeats: the clock was not fast"


def fetch(job):
    with urllib.request.urlopen(f"http://127.0.0.1:{job.sections['endpoint']['listen']}/status.json", timeout=30) as r:
        assert r.status == 200 and r.read()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.rung("marker")
def test_01_small_transactions_leave_nothing(pair, make_job):
    """Each single-row transaction left 16 kB behind in the forward task, each echo of it some in the reverse one."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v text)")
    job = make_job(pair, **POLICIES).start()

    def write(start, n=600):
        with contextlib.closing(pair.a.connect()) as a:
            for i in range(n):
                a.cursor().execute("INSERT INTO t VALUES (%s, repeat('a', 200))", (start + i,))
                time.sleep(0.004)  # the pace of an application: each arrives by itself
        job.wait_synced()
        return footprint(job)

    write(0)
    before, after = write(1000), write(2000)
    for task in ("forward", "reverse"):
        assert after[task][1] - before[task][1] < 1500, f"{task} grew from {before[task][1]} to {after[task][1]} kB"
