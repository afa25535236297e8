"""Cases that time the copy of a database that is there already: see bench.py."""

import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time

import pg
import tw
from backlog import DEADLINE_S, compare, digests
from loads import COPY_LOADS
from servers import RUNS, SCALE, rotated, say, show
from systems import ROLE, dsn, tables
from wait import wait_for

WORKERS = 4     # of each system: sessions that copy, and sessions that build indexes

# Tables that are larger go by parts, where a system can do that.
PART_BYTES = 64 << 20

# What a table has beside its rows.  Names that a server made up are names like others.
STRUCTURE = """
    SELECT attrelid::regclass::text, concat_ws(' ', attname, format_type(atttypid, atttypmod), attnotnull,
        attidentity, pg_get_expr(adbin, adrelid))
    FROM pg_class c JOIN pg_attribute a ON attrelid = c.oid LEFT JOIN pg_attrdef ON adrelid = c.oid AND adnum = attnum
    WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND attnum > 0 AND NOT attisdropped
    UNION ALL
    SELECT tablename::text, indexdef FROM pg_indexes WHERE schemaname = 'public'
    UNION ALL
    SELECT conrelid::regclass::text, concat_ws(' ', conname, pg_get_constraintdef(oid), convalidated)
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace"""
UNANALYZED = """
    SELECT oid::regclass::text FROM pg_class c
    WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND pg_relation_size(oid) > 0
        AND NOT EXISTS (SELECT FROM pg_statistic WHERE starelid = c.oid)"""

# What a system may leave on the source, where the next one would meet it.
TRACES = """
    SELECT 'slot', slot_name::text FROM pg_replication_slots
    UNION ALL SELECT 'publication', pubname FROM pg_publication
    UNION ALL SELECT 'schema', nspname FROM pg_namespace WHERE nspname !~ '^pg_'
    UNION ALL SELECT 'event trigger', evtname FROM pg_event_trigger
    UNION ALL SELECT 'replica identity', concat_ws(' ', oid::regclass, relreplident) FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
    UNION ALL SELECT 'trigger', tgname FROM pg_trigger WHERE NOT tgisinternal"""


def uri(node):
    return f"postgresql://{ROLE}:{pg.PASSWORD}@127.0.0.1:{node.server.port}/{node.dbname}?sslmode=disable"


def search_path():
    """Where programs are looked for: first beside the servers' own."""
    return f"{pg.bin_dir()}:{os.environ['PATH']}"


class Copier:
    """One system that copies the source into an empty database of its own, once.

    Its programs connect by TCP as the same superuser, without TLS.
    """

    def __init__(self, bench, source, label):
        self.bench, self.source, self.label = bench, source, label
        self.folder = os.path.join(bench.case_folder, label)
        os.makedirs(self.folder)
        self.target = bench.node("b", label)
        self.began, self.laps = 0, {}   # the start, and the seconds from there to what is named
        self.programs = []              # all that were ever started

    def prepare(self):
        """What is not timed."""

    def copy(self):
        """Returns when everything is on the target."""
        raise NotImplementedError

    def clean_up(self):
        """Leaves nothing on the source."""

    def lap(self, name):
        self.laps[name] = time.monotonic() - self.began

    def path(self, name):
        return os.path.join(self.folder, name)

    def start(self, *argv, **popen):
        """Starts a program; what it says goes into the log."""
        with open(self.path("log"), "ab") as log:
            popen = {"stdin": subprocess.DEVNULL, "stdout": log, **popen}
            self.programs.append(subprocess.Popen(
                [shutil.which(argv[0], path=search_path()), *map(str, argv[1:])], stderr=log, start_new_session=True,
                env=tw.environment(self.folder, PATH=search_path()), **popen))
        return self.programs[-1]

    def end(self, *processes):
        for process in processes:
            if process.wait(DEADLINE_S):
                with open(self.path("log"), errors="replace") as log:
                    raise RuntimeError(f"{process.args[0]} failed: {log.read()[-2000:]}")

    def run(self, *argv, **popen):
        self.end(self.start(*argv, **popen))

    def pipe(self, give, take):
        """The output of one program is the input of another."""
        giver = self.start(*give, stdout=subprocess.PIPE)
        taker = self.start(*take, stdin=giver.stdout)
        giver.stdout.close()
        return giver, taker

    def abandon(self):
        """After a failure: a program would wait for servers that are gone."""
        for program in self.programs:
            tw.kill_group(program, signal.SIGKILL)

    def analyze(self):
        self.run("vacuumdb", "-q", "-Z", "-j", WORKERS, "-d", dsn(self.target))


class TwsyncCopy(Copier):
    """The job's own defaults, but for the other direction."""

    def prepare(self):
        pair = pg.Pair(self.source, self.target, "origin")
        pair.jobs = self.bench.jobs
        self.job = tw.Job(pair, self.path("job"), "bench", forward={"schema": True, "copy": True, "workers": WORKERS},
                          reverse={"enabled": False}, slots={"heartbeat": None})

    def says(self, text):
        if text in self.job.log_text():
            return True
        assert self.job.alive(), f"twsync ended:\n{self.job.log_tail()}"
        return False

    def copy(self):
        """The lap ends where the pipe's does, with the rows."""
        self.job.start(wait=())
        wait_for(lambda: self.says("[forward] building keys"), "the rows are copied", DEADLINE_S, 0.01)
        self.lap("rows")
        wait_for(lambda: self.says("[forward] Running"), "forward is Running", DEADLINE_S, 0.01)

    def clean_up(self):
        self.job.stop()
        self.source.wait_slot_rests("twsync_bench_forward")
        code, out, err = self.job.release()
        assert code == tw.OK, f"release exited {code}: {out}{err}"
        for table in tables(self.source):       # which release leaves to the user
            self.source.sql(f"ALTER TABLE {table} REPLICA IDENTITY DEFAULT")


class PgcopydbCopy(Copier):
    """Its VACUUM ANALYZE, which it does by itself, included."""

    def copy(self):
        self.run("pgcopydb", "clone", "--source", uri(self.source), "--target", uri(self.target),
                 "--dir", self.path("work"), "--table-jobs", WORKERS, "--index-jobs", WORKERS,
                 "--split-tables-larger-than", f"{PART_BYTES >> 20}MB")


class DumpCopy(Copier):
    """By a folder on this machine.  It is not compressed, which would take longer than it saves."""

    def copy(self):
        self.run("pg_dump", "-Fd", "-Z", 0, "-j", WORKERS, "-f", self.path("dump"), "-d", dsn(self.source))
        self.lap("dump")
        self.run("pg_restore", "-e", "-j", WORKERS, "-d", dsn(self.target), self.path("dump"))
        self.analyze()


class NativeCopy(Copier):
    """A subscription's first copy: the schema comes before the rows, with its keys and indexes."""

    def copy(self):
        self.end(*self.pipe(["pg_dump", "-s", "-d", dsn(self.source)],
                            ["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", dsn(self.target)]))
        self.source.admin("CREATE PUBLICATION bench FOR ALL TABLES")
        self.target.admin(f"CREATE SUBSCRIPTION {self.label} CONNECTION '{dsn(self.source)}' PUBLICATION bench "
                          "WITH (copy_data = true)")
        with contextlib.closing(self.target.connect(user="postgres")) as conn, conn.cursor() as cur:
            def ready():
                cur.execute("SELECT FROM pg_subscription_rel WHERE srsubstate NOT IN ('r', 's') LIMIT 1")
                return not cur.rowcount
            wait_for(ready, "every table is in step", DEADLINE_S, 0.01)
        self.lap("rows")
        self.analyze()

    def clean_up(self):
        self.target.admin(f"DROP SUBSCRIPTION {self.label}")
        self.source.admin("DROP PUBLICATION bench")


class FloorCopy(Copier):
    """What it takes to give and take the rows (the lap), and then to build what stands on them.

    Of each pipe the first psql writes the script that the second one reads, for many parts of tables.
    Two programs hand each row on: with large values a system that does with one, or none, is below.
    """

    def prepare(self):
        self.run("pg_dump", "-Fc", "-s", "-f", self.path("schema"), "-d", dsn(self.source))
        self.restore("pre-data")
        for i, script in enumerate(self.scripts()):
            with open(self.path(f"pipe_{i}.sql"), "w") as f:
                f.write(script)

    def restore(self, section):
        self.run("pg_restore", "-e", "-j", WORKERS, f"--section={section}", "-d", dsn(self.target),
                 self.path("schema"))

    def parts(self):
        """(bytes, table, first block, block after the last) of ranges of all tables."""
        for table, size, blocks in self.source.admin("""
                SELECT oid::regclass::text, pg_table_size(oid),
                    pg_relation_size(oid) / current_setting('block_size')::int
                FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"""):
            n = min(blocks, max(WORKERS, size * WORKERS // PART_BYTES)) if size > PART_BYTES // 16 else 1
            for i in range(n):
                yield size // n, table, blocks * i // n, blocks * (i + 1) // n

    def scripts(self):
        """The parts on so many pipes that each has the same to carry, the large ones first."""
        pipes = [[0, "BEGIN;"] for _ in range(WORKERS)]
        for size, table, low, high in sorted(self.parts(), reverse=True):
            least = min(pipes, key=lambda pipe: pipe[0])
            least[0] += size
            least.append(f"\\echo COPY {table} FROM STDIN;\nCOPY (SELECT * FROM {table} "
                         f"WHERE ctid >= '({low},0)' AND ctid < '({high},0)') TO STDOUT;\n\\echo '\\\\.'")
        return ["\n".join(["\\echo BEGIN;", *pipe[1:], "COMMIT;", "\\echo COMMIT;\n"]) for pipe in pipes]

    def copy(self):
        psql = ["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d"]
        pipes = [self.pipe([*psql, dsn(self.source), "-f", self.path(f"pipe_{i}.sql")], [*psql, dsn(self.target)])
                 for i in range(WORKERS)]
        for pipe in pipes:
            self.end(*pipe)
        self.lap("pipe")
        self.restore("post-data")
        self.lap("keys")
        self.analyze()


COPIERS = {"twsync": TwsyncCopy, "pgcopydb": PgcopydbCopy, "dump": DumpCopy, "native": NativeCopy, "floor": FloorCopy}


def chosen():
    """The systems of TWSYNC_BENCH_SYSTEMS, or all that are installed."""
    named = os.environ.get("TWSYNC_BENCH_SYSTEMS")
    kinds = named.split(",") if named else list(COPIERS)
    unknown = [kind for kind in kinds if kind not in COPIERS]
    if unknown:
        sys.exit(f"bench.py: no system \"{unknown[0]}\"; there are: {', '.join(COPIERS)}")
    if "pgcopydb" in kinds and not shutil.which("pgcopydb", path=search_path()):
        say("pgcopydb is not installed: no figures of it")
        kinds.remove("pgcopydb")
    return kinds


def facts(node, query):
    return set(node.admin(query))


def verify(copier, want, structure):
    """What the time is worth nothing without."""
    target = copier.target
    compare(copier.label, want, target)
    differ = structure ^ facts(target, STRUCTURE)
    if differ:
        raise ValueError(f"{copier.label}: columns, indexes, constraints on one side only: {sorted(differ)[:10]}")
    if facts(target, UNANALYZED):
        raise ValueError(f"{copier.label}: not analyzed: {facts(target, UNANALYZED)}")


class Copying:
    """A database to copy, and what a copy of it must be."""

    def __init__(self, bench, case):
        self.bench = bench
        self.source = bench.node("a", "source")
        COPY_LOADS[case](self.source, SCALE)
        self.source.admin("VACUUM ANALYZE")
        self.want = digests(self.source)
        self.structure = facts(self.source, STRUCTURE)
        self.traces = facts(self.source, TRACES)
        self.rows = sum(count for count, _ in self.want.values())
        self.bytes = int(self.source.one("""
            SELECT sum(pg_table_size(oid)) FROM pg_class
            WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"""))

    def time(self, kind, run):
        """Times one system, holds its copy against the source, and drops it; its seconds and laps."""
        copier = COPIERS[kind](self.bench, self.source, f"{kind}_{run}")
        try:
            copier.prepare()
            self.bench.settle()
            copier.began = time.monotonic()
            copier.copy()
            seconds = time.monotonic() - copier.began
        except BaseException:
            copier.abandon()
            raise
        verify(copier, self.want, self.structure)
        copier.clean_up()
        left = self.traces ^ facts(self.source, TRACES)
        if left:
            raise ValueError(f"{copier.label} has left the source another one: {sorted(left)[:10]}")
        copier.target.server.drop_db(copier.label)
        if not os.environ.get("TWSYNC_BENCH_KEEP"):
            shutil.rmtree(copier.folder)
        return seconds, copier.laps

    def run(self, kinds):
        """The median of the seconds of each system, and of each lap under "SYSTEM LAP"."""
        times = {}
        for run in range(RUNS):
            for kind in rotated(kinds, run):
                seconds, laps = self.time(kind, run)
                told = ", ".join(f"{name} {lap:.2f} s" for name, lap in laps.items())
                say(f"run {run + 1}: {kind} {seconds:.2f} s" + (f" ({told})" if told else ""))
                times.setdefault(kind, []).append(seconds)
                for name, lap in laps.items():
                    times.setdefault(f"{kind} {name}", []).append(lap)
        return {name: statistics.median(seconds) for name, seconds in times.items()}


def copy_case(bench, case):
    kinds = chosen()
    copying = Copying(bench, case)
    s = copying.run(kinds)

    def ratio(one, other):
        return s[one] / s[other] if one in s and other in s else None
    peers = ("pgcopydb", "dump", "native")
    show(case, rows=copying.rows, bytes=copying.bytes, twsync_s=s.get("twsync"),
         **{f"{peer}_s": s.get(peer) for peer in peers}, pipe_s=s.get("floor pipe"), floor_s=s.get("floor"),
         **{f"ratio_{peer}": ratio(peer, "twsync") for peer in peers}, ratio_floor=ratio("twsync", "floor"))
