"""The whole promise at once: pgbench and everything.sql written on both sides, twsync killed ten times.

TWSYNC_TEST_SECONDS (60) is how long both sides are written, on each rung.
"""

import contextlib
import os
import re
import subprocess

import compare
import pg
import tw
import writers
from test_05_copy import load_everything
from test_07_loops import BEAT, assert_idle
from wait import wait_for

SECONDS = float(os.environ.get("TWSYNC_TEST_SECONDS", "60"))
SCALE = 10
KILLS = 10
SCHEMAS = 'public, ev, "Odd.Schema ""q"""'

# pgbench's TPC-B, on one half of the accounts, tellers and branches; the history is keyless and common.
HALF = """\
\\set aid random(:half * 500000 + 1, :half * 500000 + 500000)
\\set tid random(:half * 50 + 1, :half * 50 + 50)
\\set bid random(:half * 5 + 1, :half * 5 + 5)
\\set delta random(-5000, 5000)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = :bid;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP);
END;
"""


def pgbench(node, *args, **more):
    """Starts pgbench as the role of the node, through the socket."""
    env = {**os.environ, "PGOPTIONS": pg.SESSION}
    return subprocess.Popen([os.path.join(pg.bin_dir(), "pgbench"), "-h", node.server.root, "-p", str(node.server.port),
                             "-U", node.role, *args, node.dbname], env=env, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, **more)


def finished(process, deadline):
    out, _ = process.communicate(timeout=deadline)
    assert process.returncode == 0, f"pgbench failed:\n{out}"
    return out


@contextlib.contextmanager
def both_written(pair, folder, seconds, rng):
    """pgbench and the random writers on both sides until the block ends (at most `seconds` + a little)."""
    script = tw.write_private(os.path.join(folder, "half.sql"), HALF, 0o644)
    benches = [pgbench(node, "-n", "-f", script, "-D", f"half={half}", "-c", "2", "-R", "300", "-T", str(int(seconds)))
               for half, node in enumerate(pair.nodes)]
    works = [writers.Writer(node, writers.Everything(node, rng), 40) for node in pair.nodes]
    try:
        with writers.writing(*works):
            yield benches, works
            for bench in benches:
                bench.said = finished(bench, seconds + 120)
    finally:
        for bench in benches:
            bench.kill()
            bench.wait()


def test_killed_ten_times(pair, make_job, rng, folder):
    seconds = SECONDS
    finished(pgbench(pair.a, "-i", "-q", "-s", str(SCALE)), 300)
    load_everything(pair.a)
    job = make_job(pair, SCHEMAS, forward={"workers": 4}, slots=BEAT).start()
    with both_written(pair, job.folder, seconds, rng) as (benches, works):
        pause = seconds / (KILLS + 1)
        for kill in range(KILLS):
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.process.wait(rng.uniform(0.3, 1.7) * pause)     # how long twsync lives this time
            assert job.alive(), job.log_tail()
            job.kill(whole_group=kill % 3 != 2)
            job.start(wait=())
    for task in tw.TASKS:
        job.wait_state(task, "Running")
    job.wait_synced(deadline=300)
    compare.assert_contents(pair)
    compare.assert_schema(pair)
    told = sum(int(re.search(r"transactions actually processed: (\d+)", bench.said)[1]) for bench in benches)
    assert pair.a.one("SELECT count(*) FROM pgbench_history") == told > 20 * seconds
    for balance, table in (("abalance", "accounts"), ("tbalance", "tellers"), ("bbalance", "branches")):
        assert pair.b.one(f"SELECT sum({balance}) FROM pgbench_{table}") == pair.b.one("SELECT sum(delta) FROM pgbench_history")
    before = {task: job.task(task)["rows"] for task in tw.TASKS}
    assert_idle(pair)
    assert {task: job.task(task)["rows"] for task in tw.TASKS} == before, "echoes"
    assert job.stop() == tw.OK
    assert job.release()[0] == tw.OK
    compare.assert_untouched(pair, job.name)
    compare.assert_contents(pair)
    wait_for(lambda: not job.children(), "no process is left")
