"""Cases that time how long a backlog takes: see bench.py."""

import contextlib
import statistics
import subprocess
import time

import pg
import tw
from loads import LOADS
from servers import RUNS, SCALE, has_pglogical, rotated, say, show
from systems import SYSTEMS, Twsync, tables
from wait import wait_for

POLL_S, DEADLINE_S = 0.01, 600
FAR_MS = 10     # each way


def digests(node):
    """The number of rows of each table and a sum of their hashes, which knows no order."""
    return {table: node.admin(
        f"SELECT count(*), sum(hashtextextended(t::text, 0)::numeric) FROM {table} t")[0]
        for table in tables(node)}


def compare(label, want, target):
    have = digests(target)
    wrong = [table for table in want if have.get(table) != want[table]]
    if wrong:
        raise ValueError(f"{label}: the target differs from the source in {', '.join(wrong)}")


def time_to_sentinel(system, target, from_stream):
    """Seconds from the start, or from when the stream was asked for, until all is on the target."""
    with contextlib.closing(target.connect(user="postgres")) as conn, conn.cursor() as cur:
        began = time.monotonic()
        system.start()
        if from_stream:
            wait_for(system.streams, "the stream is asked for", every=0.002)
            began = time.monotonic()
        while True:
            cur.execute("SELECT FROM bench_done")
            seconds = time.monotonic() - began
            if cur.rowcount:
                return seconds
            system.check()
            if seconds > DEADLINE_S:
                raise TimeoutError(f"{system.label} was not done after {DEADLINE_S} s")
            time.sleep(POLL_S)


class FarNode(pg.Node):
    """A node that twsync reaches through a proxy."""

    def __init__(self, node, port):
        super().__init__(node.letter, node.server, node.dbname, node.role, True)
        self.proxy_port = port

    def job_keys(self):
        return {**super().job_keys(), "port": self.proxy_port}


class Backlog:
    """One source database, a target database per system and run, and what is to be carried."""

    def __init__(self, bench, load, kinds, from_stream=False):
        self.bench, self.load, self.kinds = bench, load, kinds
        self.from_stream = from_stream
        self.source = self.fill(bench.node("a", "source"))
        self.source.admin(f"CREATE PUBLICATION bench FOR TABLE {', '.join(tables(self.source))}")
        self.fill(bench.node("b", "base"))
        self.systems = [{kind: self.place(kind, run) for kind in kinds if kind != "floor"}
                        for run in range(RUNS)]
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
        template = "base" if kind not in ("twsync", "far") or label == "twsync_0" else "twsync_0"
        target = self.bench.node("b", label, template)
        if kind == "far":
            target = FarNode(target, self.bench.delay(target.server.port, FAR_MS))
        pair = pg.Pair(self.source, target, "origin")
        pair.jobs = self.bench.jobs
        return SYSTEMS.get(kind, Twsync)(pair, self.bench.case_folder, label, self.load.identity)

    def make_floor(self):
        """A slot that is never confirmed, so that it serves every run."""
        self.source.admin(f"CREATE PUBLICATION floor FOR TABLE {', '.join(tables(self.source))}")
        self.source.admin("SELECT pg_create_logical_replication_slot('floor', 'pgoutput')")

    def run(self):
        """The median of each system's seconds."""
        times = {kind: [] for kind in self.kinds}
        for run in range(RUNS):
            for kind in rotated(self.kinds, run):
                self.bench.settle()
                system = self.systems[run].get(kind)
                seconds = self.carry(system) if system else self.drain(run)
                say(f"run {run + 1}: {kind} {seconds:.2f} s")
                times[kind].append(seconds)
        return {kind: statistics.median(seconds) for kind, seconds in times.items()}

    def drain(self, run):
        """Seconds that reading alone takes; the job tells where."""
        job = self.systems[run]["twsync"].job
        return float(subprocess.run(
            [self.bench.drain, job.path, "floor", self.until], check=True, stdout=subprocess.PIPE,
            text=True, env=tw.environment("/")).stdout)

    def carry(self, system):
        """Times one system and holds its target against the source.

        The target is emptied then, so that autovacuum has no work there while others are timed.
        """
        target = system.pair.b
        seconds = time_to_sentinel(system, target, self.from_stream)
        system.stop()
        compare(system.label, self.want, target)
        system.rewind()
        target.admin(f"TRUNCATE {', '.join(self.want)}")
        return seconds


def installed():
    return [kind for kind in SYSTEMS if kind != "pglogical" or has_pglogical()]


def peers(case, load):
    """The systems that can carry a load, and the floor."""
    if load.identity == "full":
        say(f"{case}: pglogical carries no updates of tables with REPLICA IDENTITY FULL")
        return ["twsync", "native", "floor"]
    return installed() + ["floor"]


def backlog_case(bench, case):
    backlog = Backlog(bench, LOADS[case], peers(case, LOADS[case]))
    s = backlog.run()
    pglogical = s.get("pglogical")
    show(case, twsync_s=s["twsync"], floor_s=s["floor"], native_s=s["native"],
         pglogical_s=pglogical, ratio_native=s["native"] / s["twsync"],
         ratio_pglogical=pglogical and pglogical / s["twsync"],
         ratio_floor=s["twsync"] / s["floor"], rows=backlog.rows)


def far_case(bench, case):
    """twsync with a target that is far from it, beside twsync with the same target near.

    A matter of throughput: of the start, which is some forty questions to the target, each a round
    trip, nothing is counted."""
    backlog = Backlog(bench, LOADS["tpcb"], ["twsync", "far"], from_stream=True)
    s = backlog.run()
    show(case, twsync_s=s["far"], local_s=s["twsync"], ratio_local=s["twsync"] / s["far"],
         rows=backlog.rows)
