"""Cases in which applications write while a system runs: see bench.py."""

import glob
import os
import statistics
import time

from backlog import Backlog, compare, digests, installed
from loads import Load, pgbench_end, pgbench_start
from servers import RUNS, rotated, say, show
from wait import wait_for

CLIENTS, SECONDS = 4, 10

BEAT = """
    CREATE TABLE beat (client int, n bigint, at timestamptz NOT NULL, PRIMARY KEY (client, n))"""
BEAT_SCRIPT = "\\set n :n + 1\nINSERT INTO beat VALUES (:client_id, :n, clock_timestamp());"

# The target says when it inserted a row, which a system commits at once.  Asking for new rows often
# enough would take more of two cores than what is measured.
SEEN = "ALTER TABLE beat ADD COLUMN seen timestamptz DEFAULT clock_timestamp()"


def wait_sentinel(source, target, n):
    """What is committed on the source before has reached the target."""
    source.admin("INSERT INTO bench_done VALUES (%s)", (n,))
    wait_for(lambda: target.admin("SELECT FROM bench_done WHERE id = %s", (n,)), "the sentinel", 60)


def commits(prefix):
    """(client, time of commit) in the order of each client, as pgbench logged them."""
    found = [[] for _ in range(CLIENTS)]
    for path in glob.glob(prefix + ".*"):
        with open(path) as f:
            for fields in map(str.split, f):
                found[int(fields[0])].append(int(fields[4]) + int(fields[5]) / 1e6)
    return found


def delays(prefix, target, first):
    """Milliseconds from each commit to its row on the target; rows are numbered from `first` on."""
    seen = {(client, n): at for client, n, at in target.admin(
        "SELECT client, n, extract(epoch FROM seen)::float8 FROM beat")}
    return sorted((seen[client, n] - committed) * 1000
                  for client, times in enumerate(commits(prefix))
                  for n, committed in enumerate(times, first + 1))


def measure(backlog, system, run, rate):
    """The p50 and p99 of a system that had caught up before, in milliseconds."""
    source, target = system.pair.a, system.pair.b
    prefix = os.path.join(backlog.bench.case_folder, f"log_{system.label}_{time.time()}")
    first = source.one("SELECT coalesce(max(n), 0) FROM beat")
    target.sql(SEEN)
    backlog.bench.settle()
    system.start()
    wait_sentinel(source, target, source.one("SELECT count(*) + 1 FROM bench_done"))
    process = pgbench_start(
        source, BEAT_SCRIPT, "-n", "-M", "prepared", "-c", CLIENTS, "-T", SECONDS, "-R", rate,
        "-D", f"n={first}", "-l", f"--log-prefix={prefix}")
    pgbench_end(process)
    wait_sentinel(source, target, source.one("SELECT count(*) + 1 FROM bench_done"))
    system.check()
    system.stop()
    found = delays(prefix, target, first)
    target.sql("ALTER TABLE beat DROP COLUMN seen")
    p50, p99 = (found[int(len(found) * q)] for q in (0.50, 0.99))
    say(f"run {run + 1}: {system.label} {len(found)} commits, p50 {p50:.2f} ms, p99 {p99:.2f} ms")
    return p50, p99


def latency_case(bench, case):
    """latency-RATE: from a commit on the source to its being seen on the target."""
    load = Load(lambda node, scale: node.sql(BEAT), lambda node, scale: 0)
    backlog = Backlog(bench, load, installed())
    found = {kind: [] for kind in backlog.kinds}
    for run in range(RUNS):
        for kind in rotated(backlog.kinds, run):
            found[kind].append(measure(backlog, backlog.systems[run][kind], run,
                                       int(case.split("-")[1])))
            compare(kind, digests(backlog.source), backlog.systems[run][kind].pair.b)
            backlog.systems[run][kind].rewind()
    p50, p99 = ({kind: statistics.median(run[i] for run in runs) for kind, runs in found.items()}
                for i in (0, 1))
    figures = {}
    for kind in found:
        figures |= {f"{kind}_p50_ms": p50[kind], f"{kind}_p99_ms": p99[kind]}
    for kind in list(found)[1:]:
        figures |= {f"ratio_{kind}_p50": p50[kind] / p50["twsync"],
                    f"ratio_{kind}_p99": p99[kind] / p99["twsync"]}
    show(case, **figures)
