"""bench.py: twsync beside its peers, on the same two servers, in the same run.

    ./build.sh bench [CASE...]

One line per case on standard output; what it does meanwhile, and the machine, on standard error.
Exit code 1 if a case failed, or if a target differed from the source afterwards.

How a backlog is timed.  The target gets a database per system and run, all with the rows of the
source.  Every system makes its slot there and then rests.  The backlog is written on the source,
and a sentinel row after it.  Then one system at a time is started, nothing else runs, and the time
is taken until the sentinel is seen on the target, asked for every 10 ms.  The order rotates from
run to run; the medians are shown.  Before each start both servers make a checkpoint.
The floor is the same backlog read by twsync's reader and thrown away (drain.c).

TWSYNC_BENCH_SCALE   size of the cases (default 1.0)
TWSYNC_BENCH_RUNS    runs of each system (default 3)
TWSYNC_BENCH_KEEP    keep the servers' folders and logs
"""

import contextlib
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "it"))

import pg                                                # noqa: E402
import tw                                                # noqa: E402
from loads import LOADS                                  # noqa: E402
from systems import ROLE, SYSTEMS, tables                # noqa: E402

SCALE = float(os.environ.get("TWSYNC_BENCH_SCALE", 1))
RUNS = int(os.environ.get("TWSYNC_BENCH_RUNS", 3))
POLL_S, DEADLINE_S = 0.01, 600

# Both servers.  What a commit promises is left as it is: fsync and synchronous_commit are on.  No
# checkpoint falls into a run, except one that a run brings about itself by more WAL than 8 GB.
SETTINGS = {
    "shared_buffers": "1GB", "max_wal_size": "8GB", "min_wal_size": "2GB",
    "checkpoint_timeout": "1h", "fsync": "on", "autovacuum": "on", "track_commit_timestamp": "off",
    "max_worker_processes": "40", "max_replication_slots": "40", "max_wal_senders": "40",
    "max_logical_replication_workers": "20",
    "wal_retrieve_retry_interval": "100ms",     # or a native subscription may start 5 s late
}


def say(text):
    print(f"bench.py: {text}", file=sys.stderr, flush=True)


def say_machine():
    with open("/proc/meminfo") as f:
        memory = int(f.readline().split()[1]) / 1e6
    version = subprocess.run([os.path.join(pg.bin_dir(), "postgres"), "--version"], check=True,
                             stdout=subprocess.PIPE, text=True).stdout.strip()
    say(f"{os.cpu_count()} cores, {memory:.0f} GB, Linux {platform.release()}, {version}; "
        f"scale {SCALE:g}, {RUNS} runs")
    if not has_pglogical():
        say("pglogical is not installed for this server: no figures of it")


def has_pglogical():
    return os.path.exists(os.path.join(pg.bin_dir(), "..", "lib", "pglogical.so"))


class Bench:
    """A folder, the tools, and two servers for each case; what it starts ends with it."""

    def __enter__(self):
        self.folder = tempfile.mkdtemp(prefix="twbench-")
        os.chmod(self.folder, 0o755)
        self.servers, self.jobs = [], []
        self.drain = os.path.join(self.folder, "drain")
        self.compile("drain.c", self.drain, "-Wno-unused-function")
        self.templates = [self.initdb(name) for name in "ab"]
        return self

    def __exit__(self, *_):
        for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(sig, signal.SIG_IGN)
        self.end_case()
        if not os.environ.get("TWSYNC_BENCH_KEEP"):
            shutil.rmtree(self.folder, ignore_errors=True)

    def begin_case(self, name):
        """Servers of its own for each case, because pglogical's workers let no database be dropped."""
        self.case_folder = os.path.join(self.folder, name)
        os.makedirs(self.case_folder, 0o755)
        self.a, self.b = (self.server(*pair) for pair in zip("ab", self.templates))

    def end_case(self):
        for job in self.jobs:
            job.clean_up()
        for server in self.servers:
            server.stop("immediate")
            if not os.environ.get("TWSYNC_BENCH_KEEP"):
                shutil.rmtree(server.root, ignore_errors=True)
        self.servers, self.jobs = [], []

    def compile(self, source, program, *flags):
        subprocess.run([os.path.join(tw.ROOT, "build.sh"), "cc", "release",
                        os.path.join(tw.ROOT, "tests", "bench", source), program, *flags],
                       check=True, stdout=sys.stderr)

    def initdb(self, name):
        """A data folder with WAL segments of the usual size, unlike those of the test suite."""
        data = os.path.join(self.folder, name + ".template")
        os.makedirs(data)
        pg.Server._give(data)
        subprocess.run(pg.as_server_user(
            [os.path.join(pg.bin_dir(), "initdb"), "-N", "-D", data, "-U", "postgres",
             "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8"]),
            check=True, cwd="/", stdout=subprocess.DEVNULL)
        return data

    def server(self, name, template):
        preload = {"shared_preload_libraries": "pglogical"} if has_pglogical() else {}
        server = pg.Server(self.case_folder, name, {**SETTINGS, **preload}, template=template)
        self.servers.append(server)
        server.start()
        server.make_roles()
        if server.sql("SELECT FROM pg_settings WHERE name = 'output_plugin_libraries'"):
            server.sql("ALTER SYSTEM SET output_plugin_libraries = pgoutput, pglogical_output")
            server.sql("SELECT pg_reload_conf()")
        return server

    def node(self, letter, dbname, template=None):
        """A new database."""
        server = self.a if letter == "a" else self.b
        copy = f"TEMPLATE {template} STRATEGY FILE_COPY" if template else ""
        server.sql(f"CREATE DATABASE {dbname} OWNER {ROLE} {copy}")
        return pg.Node(letter, server, dbname, ROLE, True)

    def settle(self):
        for server in self.servers:
            server.sql("CHECKPOINT")


def digests(node):
    """The number of rows of each table and a sum of their hashes, which knows no order."""
    return {table: node.admin(
        f"SELECT count(*), sum(hashtextextended(t::text, 0)::numeric) FROM {table} t")[0]
        for table in tables(node)}


class Backlog:
    """One source database, a target database per system and run, and what is to be carried."""

    def __init__(self, bench, load, kinds):
        self.bench, self.load, self.kinds = bench, load, kinds
        self.source = self.fill(bench.node("a", "source"))
        self.source.admin(f"CREATE PUBLICATION bench FOR TABLE {', '.join(tables(self.source))}")
        self.fill(bench.node("b", "base"))
        self.systems = [{kind: self.place(kind, run) for kind in self.kinds} for run in range(RUNS)]
        self.make_floor()
        self.rows = self.load.write(self.source, SCALE)
        self.source.admin("VACUUM ANALYZE")
        self.until = self.source.admin("SELECT pg_current_wal_insert_lsn()")[0][0]
        self.source.admin("INSERT INTO bench_done VALUES (1)")
        self.want = digests(self.source)

    def fill(self, node):
        """The same rows on both sides.  They are made, not copied."""
        self.load.setup(node, SCALE)
        node.sql("CREATE TABLE bench_done (id int PRIMARY KEY)")
        if self.load.identity == "full":
            for table in tables(node):
                node.sql(f"ALTER TABLE {table} REPLICA IDENTITY FULL")
        node.admin("VACUUM ANALYZE")
        return node

    def place(self, kind, run):
        """A system on a target database of its own."""
        label = f"{kind}_{run}"
        template = "twsync_0" if kind == "twsync" and run else "base"
        pair = pg.Pair(self.source, self.bench.node("b", label, template), "origin")
        pair.jobs = self.bench.jobs
        return SYSTEMS[kind](pair, self.bench.case_folder, label, self.load.identity)

    def make_floor(self):
        """A slot that is never confirmed, so that it serves every run; twsync's job names the node."""
        self.source.admin(f"CREATE PUBLICATION floor FOR TABLE {', '.join(tables(self.source))}")
        self.source.admin("SELECT pg_create_logical_replication_slot('floor', 'pgoutput')")

    def run(self):
        """Seconds of each system, run by run."""
        times = {kind: [] for kind in [*self.kinds, "floor"]}
        order = list(times)
        for run in range(RUNS):
            for kind in order[run % len(order):] + order[:run % len(order)]:
                self.bench.settle()
                seconds = self.drain(run) if kind == "floor" else self.carry(self.systems[run][kind])
                say(f"run {run + 1}: {kind} {seconds:.2f} s")
                times[kind].append(seconds)
        return times

    def drain(self, run):
        job = self.systems[run]["twsync"].job
        return float(subprocess.run([self.bench.drain, job.path, "floor", self.until], check=True,
                                    stdout=subprocess.PIPE, text=True, env=tw.environment("/")).stdout)

    def carry(self, system):
        """Times one system and holds its target against the source.

        The target is emptied then, so that autovacuum has no work there while others are timed.
        """
        target = system.pair.b
        seconds = time_to_sentinel(system, target)
        system.stop()
        compare(system.label, self.want, target)
        system.rewind()
        target.admin(f"TRUNCATE {', '.join(self.want)}")
        return seconds


def time_to_sentinel(system, target):
    with contextlib.closing(target.connect(user="postgres")) as conn, conn.cursor() as cur:
        began = time.monotonic()
        system.start()
        while True:
            cur.execute("SELECT FROM bench_done")
            seconds = time.monotonic() - began
            if cur.rowcount:
                return seconds
            system.check()
            if seconds > DEADLINE_S:
                raise TimeoutError(f"{system.label} was not done after {DEADLINE_S} s")
            time.sleep(POLL_S)


def compare(label, want, target):
    have = digests(target)
    wrong = [table for table in want if have.get(table) != want[table]]
    if wrong:
        raise ValueError(f"{label}: the target differs from the source in {', '.join(wrong)}")


def show(case, **figures):
    """The line of a case."""
    def text(value):
        return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
    print(f"bench: {case}", *(f"{k}={text(v)}" for k, v in figures.items()), flush=True)


def peers(case, load):
    """The systems that can carry a load."""
    if load.identity == "full":
        say(f"{case}: pglogical carries no updates of tables with REPLICA IDENTITY FULL")
    return [k for k in SYSTEMS if k != "pglogical" or has_pglogical() and load.identity != "full"]


def backlog_case(bench, case):
    backlog = Backlog(bench, LOADS[case], peers(case, LOADS[case]))
    s = {kind: statistics.median(times) for kind, times in backlog.run().items()}
    pglogical = s.get("pglogical")
    show(case, twsync_s=s["twsync"], floor_s=s["floor"], native_s=s["native"], pglogical_s=pglogical,
         ratio_native=s["native"] / s["twsync"],
         ratio_pglogical=pglogical and pglogical / s["twsync"],
         ratio_floor=s["twsync"] / s["floor"], rows=backlog.rows)


CASES = {case: backlog_case for case in LOADS}


def main(names):
    unknown = [name for name in names if name not in CASES]
    if unknown:
        sys.exit(f"bench.py: no case \"{unknown[0]}\"; there are: {', '.join(CASES)}")
    for sig in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(sig, lambda number, frame: sys.exit(128 + number))
    with Bench() as bench:
        say_machine()
        for name in names or CASES:
            say(name)
            try:
                bench.begin_case(name)
                CASES[name](bench, name)
                bench.end_case()
            except Exception:
                traceback.print_exc()
                sys.exit(f"bench.py: {name} failed: no figures")


if __name__ == "__main__":
    main(sys.argv[1:])
