"""One meaning: the same change streams, row by row, in bulk and in batches of any size, end alike.

A one-way job copies the source to a target, which is then made to differ here and there.  Copies of
that target apply the same recorded stream (streams.py), each in its own way.  Tables and records of
conflicts must be the same as those of the one that was written row by row.
"""

import contextlib
import json
import os
import random
import re
import subprocess
import time

import psycopg2
import pytest

import compare
import conftest
import pg
import streams
import tw

HARD = os.path.join(os.path.dirname(tw.BINARY), "twsync-hard")
TRANSACTIONS = 12 * int(os.environ.get("TWSYNC_TEST_SECONDS") or 60)
RECORD = ("kind", "policy", "outcome", "schema_name", "table_name", "key", "existing", "old",
          "incoming", "change")


class Variant:
    """A target and the job that writes it."""

    def __init__(self, name, program=tw.BINARY, **forward):
        self.name, self.program, self.forward = name, program, forward


def variants(rng):
    """The first is the meaning, by which the others are judged."""
    sizes = rng.randint(33, 120), rng.randint(120, 3000)
    return [Variant("row by row", bulk=False), Variant("bulk"),
            Variant(f"by COPY, batches of {sizes[0]}", bulk="copy", batch=sizes[0]),
            Variant(f"by arrays, batches of {sizes[1]}", bulk="arrays", batch=sizes[1])]


@pytest.fixture
def hard():
    """The hostile build: windows of one change, tiny buffers."""
    folder = os.path.dirname(tw.BINARY)
    if os.access(os.path.join(folder, "build.sh"), os.X_OK):
        subprocess.run(["./build.sh", "hard"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    if not os.access(HARD, os.X_OK):
        pytest.skip(f"{HARD} is not built (./build.sh hard)")
    return HARD


@pytest.fixture(scope="module")
def both(make_server):
    settings = {"log_parameter_max_length": "0"}
    return make_server("eqa", settings), make_server("eqb", settings, template=1)


@pytest.fixture
def source(request, both):
    """A fresh pair on these servers; its target is the template of all targets."""
    yield from conftest.new_pair(request, *both, "origin")


@pytest.fixture
def replay(source, make_job):
    """replay(variants, transactions, rng, settings): the targets are copies of one, and the job's
    slot is put back to where it was before each, so that all get the same stream."""
    name, server, targets = f"eq{next(conftest.numbers)}", source.b.server, []
    slot, saved = f"twsync_{name}_forward", f"saved_{name}"

    def run(wanted, n, rng, **forward):
        stream = streams.Stream(rng, forward["identity"] == "full")
        sections = {"reverse": {"enabled": False}, "forward": forward}
        prepare(source, make_job(source, name=name, **sections), stream)
        source.a.admin("SELECT pg_copy_logical_replication_slot(%s, %s)", (slot, saved))
        for i, v in enumerate(wanted):
            node = pg.Node("b", server, f"{name}_{i}", source.b.role, source.b.tcp)
            server.sql(f"CREATE DATABASE {node.dbname} TEMPLATE {source.b.dbname}")
            server.sql(f"ALTER DATABASE {node.dbname} SET log_statement = 'all'")
            targets.append(node.dbname)
            v.pair = pg.Pair(source.a, node, source.rung)
            v.job = make_job(v.pair, name=name, **sections).change(forward=v.forward)
            v.job.command_prefix = [v.program]
        record(source.a, stream, n)
        for v in wanted:
            source.a.wait_slot_rests(slot)
            source.a.admin("SELECT pg_drop_replication_slot(%s)", (slot,))
            source.a.admin("SELECT pg_copy_logical_replication_slot(%s, %s)", (saved, slot))
            began = time.monotonic()
            v.job.start(wait=["forward"])
            v.job.wait_synced(["forward"])
            assert v.job.stop() == tw.OK, v.name
            v.windows = bulk_windows(v)
            print(f"{v.name}: {time.monotonic() - began:.1f} s, {v.windows[0]} windows in bulk,"
                  f" {v.windows[1]} taken back")

    yield run
    for dbname in targets:
        server.drop_db(dbname)


def prepare(pair, job, stream):
    """Both sides hold the same rows, but for planted differences; the job has stopped."""
    triggers_rest = "SET session_replication_role = replica;"
    pair.a.sql(streams.schema(stream.has_keyless))
    pair.a.sql(triggers_rest + stream.first_rows())
    pair.b.sql(streams.COLLATION)
    job.start(wait=["forward"])
    assert job.stop() == tw.OK
    pair.b.sql(streams.target_schema())
    pair.b.sql(triggers_rest + stream.planted())


def record(node, stream, n):
    """The stream, on the source."""
    with contextlib.closing(node.connect()) as conn, conn.cursor() as cur:
        for at, sql in enumerate(stream.transactions(n)):
            try:
                cur.execute(sql)
            except psycopg2.Error as e:
                raise AssertionError(f"transaction {at}: {e}: {sql}") from None


def conflicts(v):
    """The records, oldest first; rows in the way are found in no order."""
    rows = v.pair.b.admin(f"SELECT {', '.join(RECORD)} FROM twsync.conflict ORDER BY id")
    found = [dict(zip(RECORD, row)) for row in rows]
    for c in found:
        if isinstance(c["existing"], list):
            c["existing"].sort(key=lambda row: json.dumps(row, sort_keys=True))
    return found


def compare_tables(meaning, v):
    found = compare.content_differences(pg.Pair(meaning.pair.b, v.pair.b, "origin"))
    assert not found, (f"a is written {meaning.name!r}, b {v.name!r} ({v.pair.b.dbname}, "
                       f"seed {conftest.SEED}):\n" + "\n".join(found))


def compare_conflicts(meaning, v):
    want, have = conflicts(meaning), conflicts(v)
    for n, (one, other) in enumerate(zip(want, have)):
        assert one == other, (f"conflict {n} of {len(want)}, {len(have)}, by {v.name!r} "
                              f"({v.pair.b.dbname}, seed {conftest.SEED}) differs:\n"
                              f"{meaning.name}: {one}\n{v.name}: {other}")
    assert len(want) == len(have), (f"{v.name!r} recorded {len(have)} conflicts, not {len(want)}; "
                                    f"the next is {(want + have)[min(len(want), len(have))]}")


def bulk_windows(v):
    """How many windows went in bulk, and how many of these had to be taken back."""
    tried = back = 0
    last = ""
    with open(v.pair.b.server.log, errors="replace") as f:
        for line in f:
            if f"@{v.pair.b.dbname} " not in line or not re.search("statement: |execute ", line):
                continue
            if re.search(r"statement: .*COPY \S+ .*FROM STDIN;|execute tw\d+a: ", line):
                tried += last != "bulk"
                last = "bulk"
            elif "statement: ROLLBACK TO SAVEPOINT tw_window" in line:
                back += last == "bulk"
                last = ""
            elif re.search("execute <unnamed>: (BEGIN|COMMIT)", line):
                last = ""
    return tried, back


OLD_KINDS = {"update_differs", "delete_differs"}      # seen by old images


def judge(wanted, identity):
    """All ended as the first did, and met conflicts of every kind."""
    have = [c["kind"] for c in conflicts(wanted[0])]
    print({kind: have.count(kind) for kind in sorted(set(have))})
    for v in wanted[1:]:
        compare_tables(wanted[0], v)
        compare_conflicts(wanted[0], v)
    missing = streams.Stream.each_kind.keys() - set(have)
    missing -= OLD_KINDS if identity == "key" else set()
    assert not missing, f"no conflicts of kind {missing}"


@pytest.mark.parametrize("identity, merge, policy", [
    ("full", "columns", "overwrite"), ("full", "columns", "ignore"), ("full", "rows", None),
    ("key", "columns", None)])
def test_one_meaning(replay, identity, merge, policy):
    rng = random.Random(f"{conftest.SEED} {identity} {merge} {policy}")
    policy = policy or rng.choice(["overwrite", "ignore"])
    wanted = variants(rng)
    replay(wanted, TRANSACTIONS, rng, on_conflict=policy, merge=merge, identity=identity)
    judge(wanted, identity)
    for v in wanted:
        assert v.forward.get("bulk", True) or not v.windows[0], v.name
    assert wanted[2].windows[0] and wanted[3].windows[0], "not every way was taken"
    # How many windows there are, and whether one of them meets a conflict, depends on the machine: each
    # takes what came while the last was written.
    assert sum(tried - back for tried, back in (v.windows for v in wanted)) >= 3, "little in bulk"


def test_hostile_build(replay, hard):
    rng = random.Random(f"{conftest.SEED} hostile")
    wanted = [Variant("row by row", bulk=False), Variant("hostile", hard),
              Variant("row by row, small batches", bulk=False, batch=rng.randint(1, 30))]
    replay(wanted, TRANSACTIONS // 4, rng, on_conflict=rng.choice(["overwrite", "ignore"]),
           merge="columns", identity="full")
    judge(wanted, "full")
