"""The case in which both sides write at once: see bench.py.

Each system gets two databases of its own, for both are written to.  A's clients take odd keys, B's
even ones.  Native subscriptions can share tables in both directions with origin = none (servers 16
and newer); before, the pair carries one table each way and has no loops to avoid, nor conflicts.
"""

import statistics
import time

import pg
from backlog import DEADLINE_S, POLL_S, compare, digests
from loads import HASTE, pgbench_end, pgbench_start
from servers import RUNS, SCALE, rotated, say, show
from systems import Native, System, Twsync

KEYS, TRANSACTIONS, LIVE_TPS, LIVE_S = 100_000, 50_000, 1000, 10

TABLES = "".join(f"""
    CREATE TABLE {name} (id int PRIMARY KEY, n int NOT NULL, note text);
    INSERT INTO {name} SELECT g, 0, 'row ' || g FROM generate_series(1, {KEYS}) g;"""
    for name in ("shared", "only_a", "only_b")) + """
    CREATE TABLE done_a (id int PRIMARY KEY);
    CREATE TABLE done_b (id int PRIMARY KEY)"""

SCRIPT = """\\set id 2 * random(1, {half}) - {odd}
UPDATE {table} SET n = n + 1, note = 'row of {table} {odd}' WHERE id = :id;"""


class TwsyncPair(Twsync):
    """Both directions, a job for each pair of databases."""

    shared = True

    def __init__(self, pair, folder, label):
        super().__init__(pair, folder, label, "key", label,
                         forward={"schema": False, "copy": False, "identity": "key",
                                  "on_conflict": "overwrite"},
                         reverse={"enabled": True, "identity": "key", "on_conflict": "ignore"})

    def initialise(self):
        self.job.start(wait=("forward", "reverse"))
        self.stop()


class NativePair(System):
    """A subscription each way."""

    def __init__(self, pair, folder, label):
        super().__init__(pair, folder, label, "key")
        self.shared = has_origin_none(pair.a.server)
        more = ", origin = none" if self.shared else ""
        sides = (("ab", pair), ("ba", pg.Pair(pair.b, pair.a, pair.rung)))
        for side, (_, way) in zip("ab", sides):
            tables = "shared, done_a, done_b" if self.shared else f"only_{side}, done_{side}"
            way.a.admin(f"CREATE PUBLICATION bench FOR TABLE {tables}")
        self.ways = [Native(way, folder, f"{label}_{name}", "key", more) for name, way in sides]

    def start(self):
        for way in self.ways:
            way.start()

    def stop(self):
        for way in self.ways:
            way.stop()


def has_origin_none(server):
    return server.version() >= 160000


def place(bench, cls, label):
    nodes = [bench.node(letter, label) for letter in "ab"]
    for node in nodes:
        node.sql(TABLES)
        node.admin("VACUUM ANALYZE")
    pair = pg.Pair(*nodes, "origin")
    pair.jobs = bench.jobs
    return cls(pair, bench.case_folder, label)


def write(system, *args, **more):
    """pgbench on both sides at once, until both are done."""
    writers = []
    for odd, side, node in zip((1, 0), "ab", system.pair.nodes):
        table = "shared" if system.shared else f"only_{side}"
        writers.append(pgbench_start(
            node, SCRIPT.format(half=KEYS // 2, odd=odd, table=table),
            "-n", "-M", "prepared", "-c", 2, "-j", 1, *args, **more))
    for writer in writers:
        pgbench_end(writer)


def sentinels(system, n):
    for side, node in zip("ab", system.pair.nodes):
        node.admin(f"INSERT INTO done_{side} VALUES (%s)", (n,))


def wait_sentinels(system, n, began):
    """Seconds from `began` until each side has the other's sentinel."""
    for side, node in zip("ba", system.pair.nodes):
        while not node.admin(f"SELECT FROM done_{side} WHERE id = %s", (n,)):
            system.check()
            if time.monotonic() - began > DEADLINE_S:
                raise TimeoutError(f"{system.label} was not done after {DEADLINE_S} s")
            time.sleep(POLL_S)
    return time.monotonic() - began


def catch_up(bench, system, transactions):
    """Seconds for a backlog of both sides; then how far it is behind after a paced load."""
    write(system, "-t", transactions // 2, env=HASTE)
    sentinels(system, 1)
    bench.settle()
    began = time.monotonic()
    system.start()
    seconds = wait_sentinels(system, 1, began)
    write(system, "-R", LIVE_TPS, "-T", LIVE_S)
    sentinels(system, 2)
    behind = wait_sentinels(system, 2, time.monotonic())
    system.stop()
    compare(system.label, digests(system.pair.a), system.pair.b)
    for node in system.pair.nodes:      # no work for autovacuum while others are timed
        node.admin("TRUNCATE shared, only_a, only_b")
    return seconds, behind


def twoway_case(bench, case):
    if not has_origin_none(bench.a):
        say(f"{case}: subscriptions here have no origin = none; native has a table each way")
    found = {"twsync": [], "native": []}
    classes = {"twsync": TwsyncPair, "native": NativePair}
    transactions = int(TRANSACTIONS * SCALE)
    for run in range(RUNS):
        for kind in rotated(list(found), run):
            system = place(bench, classes[kind], f"{kind}_{run}")
            found[kind].append(catch_up(bench, system, transactions))
            seconds, behind = found[kind][-1]
            say(f"run {run + 1}: {kind} {seconds:.2f} s, then {behind:.3f} s behind after "
                f"{LIVE_S} s of {LIVE_TPS} tx/s on each side")
    s, late = ({kind: statistics.median(run[i] for run in runs) for kind, runs in found.items()}
                 for i in (0, 1))
    show(case, twsync_s=s["twsync"], native_s=s["native"], ratio_native=s["native"] / s["twsync"],
         rows=transactions // 2 * 2 * 2, live_tps=LIVE_TPS,
         twsync_behind_s=late["twsync"], native_behind_s=late["native"])
