"""The two servers of a case, their settings, the programs beside twsync; how things are said."""

import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile

import pg
import tw
from systems import ROLE

SCALE = float(os.environ.get("TWSYNC_BENCH_SCALE", 1))
RUNS = int(os.environ.get("TWSYNC_BENCH_RUNS", 3))

# Both servers.  What a commit promises is left as it is: fsync and synchronous_commit are on.  No
# checkpoint falls into a run, except one that a run brings about itself by more WAL than 8 GB.
SETTINGS = {
    "shared_buffers": "1GB", "max_wal_size": "8GB", "min_wal_size": "2GB",
    "checkpoint_timeout": "1h", "fsync": "on", "autovacuum": "on", "track_commit_timestamp": "off",
    "max_worker_processes": "40", "max_replication_slots": "40", "max_wal_senders": "40",
    "max_logical_replication_workers": "20",
    "max_sync_workers_per_subscription": "4",   # as many as twsync and the others copy with
    "wal_retrieve_retry_interval": "100ms",     # or a native subscription may start 5 s late
}


def say(text):
    print(f"bench.py: {text}", file=sys.stderr, flush=True)


def show(case, **figures):
    """The line of a case."""
    def text(value):
        return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
    print(f"bench: {case}", *(f"{k}={text(v)}" for k, v in figures.items()), flush=True)


def rotated(items, by):
    by %= len(items)
    return items[by:] + items[:by]


def has_pglogical():
    return os.path.exists(os.path.join(pg.bin_dir(), "..", "lib", "pglogical.so"))


def say_machine():
    with open("/proc/meminfo") as f:
        memory = int(f.readline().split()[1]) / 1e6
    version = subprocess.run([os.path.join(pg.bin_dir(), "postgres"), "--version"], check=True,
                             stdout=subprocess.PIPE, text=True).stdout.strip()
    say(f"{os.cpu_count()} cores, {memory:.0f} GB, Linux {platform.release()}, {version}; "
        f"scale {SCALE:g}, {RUNS} runs")
    if not has_pglogical():
        say("pglogical is not installed for this server: no figures of it")


class Bench:
    """A folder, the tools, and two servers for each case; what it starts ends with it."""

    def __enter__(self):
        self.folder = tempfile.mkdtemp(prefix="twbench-")
        os.chmod(self.folder, 0o755)
        self.servers, self.jobs, self.proxies = [], [], []
        self.drain = self.compile("drain", "-Wno-unused-function")
        self.templates = [self.initdb(name) for name in "ab"]
        return self

    def __exit__(self, *_):
        for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(sig, signal.SIG_IGN)
        self.end_case()
        if not os.environ.get("TWSYNC_BENCH_KEEP"):
            shutil.rmtree(self.folder, ignore_errors=True)

    def begin_case(self, name, pglogical=True):
        """New servers, for under pglogical's workers no database can be dropped."""
        self.case_folder = os.path.join(self.folder, name)
        os.makedirs(self.case_folder, 0o755)
        preload = {"shared_preload_libraries": "pglogical"} if pglogical and has_pglogical() else {}
        self.a, self.b = (self.server(*pair, preload) for pair in zip("ab", self.templates))

    def end_case(self):
        for job in self.jobs:
            job.clean_up()
        for server in self.servers:
            server.stop("immediate")
            if not os.environ.get("TWSYNC_BENCH_KEEP"):
                shutil.rmtree(server.root, ignore_errors=True)
        for proxy in self.proxies:
            proxy.kill()
        self.servers, self.jobs, self.proxies = [], [], []

    def compile(self, name, *flags):
        program = os.path.join(self.folder, name)
        source = os.path.join(tw.ROOT, "tests", "bench", name + ".c")
        build = os.path.join(tw.ROOT, "build.sh")
        subprocess.run([build, "cc", "release", source, program, *flags], check=True,
                       stdout=sys.stderr)
        return program

    def delay(self, port, ms):
        """The port of a proxy that delays what goes to a port and what comes from it."""
        program = os.path.join(self.folder, "delay")
        if not os.path.exists(program):
            self.compile("delay")
        proxy = subprocess.Popen([program, str(port), str(ms)], stdout=subprocess.PIPE, text=True)
        self.proxies.append(proxy)
        return int(proxy.stdout.readline())

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

    def server(self, name, template, preload):
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
