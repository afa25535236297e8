"""Conflicts in depth: policy latest, rows deleted meanwhile, policies per table, many keys at once, settling, and
`twsync conflicts`.

A direction is held back by stopping the walsender it reads from, so that changes of both sides truly cross.
"""

import contextlib
import json
import os
import re
from unittest import mock

import pytest

import compare
import pg
import tw
from wait import wait_for

COLUMNS = "(id int PRIMARY KEY, u int UNIQUE, x int, y text)"
BASE = [(1, 10, 1, "one"), (2, 20, 2, "two"), (3, 30, 3, "three")]
A_WINS = {"forward": {"on_conflict": "overwrite"}, "reverse": {"on_conflict": "ignore"}}
B_WINS = {"forward": {"on_conflict": "ignore"}, "reverse": {"on_conflict": "overwrite"}}
KEEPING = {"forward": {"on_conflict": "ignore"}, "reverse": {"on_conflict": "ignore"}}
LATEST = {"forward": {"on_conflict": "latest"}, "reverse": {"on_conflict": "latest"}}
WINS = {"a": A_WINS, "b": B_WINS}
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"

marker = pytest.mark.rung("marker")
origin = pytest.mark.rung("origin")
directions = pytest.mark.parametrize("task", tw.TASKS)


# ---- helpers

class Held:
    """Both directions of a running job, each of which can be held back."""

    def __init__(self, job):
        self.job, self.pids = job, {}

    def hold(self, *tasks):
        for task in tasks or tw.TASKS:
            node = self.job.pair.source(task)
            pattern = f"twsync:{self.job.name}:{task}:stream%"
            self.pids[task] = wait_for(lambda: pg.freeze_at_rest(node, pattern), f"{task} is held")
        return self

    def release(self, *tasks, sync=False):
        for task in tasks or tw.TASKS:
            pg.resume(self.pids.pop(task, []))
            if sync:
                self.job.wait_synced([task])


@contextlib.contextmanager
def held(job, *tasks):
    lanes = Held(job)
    try:
        yield lanes.hold(*tasks)
    finally:
        lanes.release()


def other(task):
    return "reverse" if task == "forward" else "forward"


def unsettled(job, only="true"):
    return [n for node in job.pair.nodes for (n,) in node.admin(
        f"SELECT id FROM twsync.conflict WHERE settled IS NULL AND outcome <> 'stopped' AND {only}")]


def wait_settled(job, deadline=90, only="true"):
    """All has arrived and no conflict waits to be settled; what that wrote has arrived, too.

    Where no winner is named only what a person decided is settled: only="wanted IS NOT NULL".
    """
    for _ in range(2):
        job.wait_synced()
        wait_for(lambda: not unsettled(job, only), "every conflict is settled", deadline)
    job.wait_synced()


def rows(node, table, order="1"):
    return node.sql(f"SELECT * FROM {table} ORDER BY {order}")


def records(job, task, table=None):
    """The recorded conflicts of a task, with what became of them."""
    names = ("id", "kind", "policy", "outcome", "table_name", "key", "existing", "old", "incoming", "wanted", "settled")
    found = job.pair.target(task).admin(
        f"SELECT {', '.join(names)} FROM twsync.conflict WHERE task = %s ORDER BY id", (f"{job.name}/{task}",))
    found = [dict(zip(names, row)) for row in found]
    return [c for c in found if table in (None, c["table_name"])]


def all_records(job, table=None):
    return [c for task in tw.TASKS for c in records(job, task, table)]


def create(pair, names):
    with pair.a.transaction() as cur:
        for name in names:
            cur.execute(f"CREATE TABLE {name} {COLUMNS}")
            cur.executemany(f"INSERT INTO {name} VALUES (%s, %s, %s, %s)", BASE)


def but(*changed, gone=()):
    new = {row[0] for row in changed} | set(gone)
    return sorted([row for row in BASE if row[0] not in new] + list(changed))


def item(job, code):
    return [i for i in job.check()[1] if i["code"] == code]


# ---- policy latest

# What A does, what B does, the rows if A's is the newer, the rows if B's is.
CROSSING = {
    "same_column": ("UPDATE t SET x = 7 WHERE id = 1", "UPDATE t SET x = 8 WHERE id = 1",
                    but((1, 10, 7, "one")), but((1, 10, 8, "one"))),
    "other_columns": ("UPDATE t SET x = 7 WHERE id = 1", "UPDATE t SET y = 'b' WHERE id = 1",
                      but((1, 10, 7, "one")), but((1, 10, 1, "b"))),
    "a_deletes": ("DELETE FROM t WHERE id = 1", "UPDATE t SET x = 8 WHERE id = 1",
                  but(gone=[1]), but((1, 10, 8, "one"))),
    "b_deletes": ("UPDATE t SET x = 7 WHERE id = 2", "DELETE FROM t WHERE id = 2",
                  but((2, 20, 7, "two")), but(gone=[2])),
    "inserts": ("INSERT INTO t VALUES (5, 50, 5, 'a')", "INSERT INTO t VALUES (5, 55, 6, 'b')",
                but((5, 50, 5, "a")), but((5, 55, 6, "b"))),
    "second_key": ("INSERT INTO t VALUES (5, 50, 5, 'a')", "INSERT INTO t VALUES (6, 50, 6, 'b')",
                   but((5, 50, 5, "a")), but((6, 50, 6, "b"))),
    "second_key_update": ("UPDATE t SET u = 50 WHERE id = 1", "INSERT INTO t VALUES (6, 50, 6, 'b')",
                          but((1, 50, 1, "one")), but((6, 50, 6, "b"))),
    "same_value": ("UPDATE t SET x = 7 WHERE id = 1", "UPDATE t SET x = 7 WHERE id = 1",
                   but((1, 10, 7, "one")), but((1, 10, 7, "one"))),
}


@origin
@pytest.mark.parametrize("newer, first", [("a", "forward"), ("b", "reverse")])
def test_latest(pair, make_job, newer, first):
    """The newer commit wins on both sides, whole rows, in whichever order the changes arrive."""
    create(pair, CROSSING)
    job = make_job(pair, **LATEST).start()
    with held(job) as lanes:
        for side in ("ba" if newer == "a" else "ab"):
            for name, case in CROSSING.items():
                pair.nodes["ab".index(side)].sql(case["ab".index(side)].replace(" t ", f" {name} "))
        lanes.release(first, sync=True)
        lanes.release()
        wait_settled(job)
    expected = {name: case[2 if newer == "a" else 3] for name, case in CROSSING.items()}
    # A row that only stood in the way of the newer one may come back with its old values.
    either = {**expected, "second_key_update": but((6, 50, 6, "b"), gone=[1])}
    for node in pair.nodes:
        got = {name: rows(node, name) for name in CROSSING}
        assert got in (expected, either), f"node {node.letter}"
    compare.assert_contents(pair)
    assert {c["policy"] for c in all_records(job)} == {"latest"}
    assert all(t["conflicts"] > 0 for t in job.status()["tasks"])


@origin
def test_latest_again(pair, make_job):
    """A row that was carried or settled keeps the time of its own commit for the next comparison."""
    create(pair, ["t"])
    job = make_job(pair, **LATEST).start()
    with held(job) as lanes:
        pair.b.sql("UPDATE t SET x = 8 WHERE id = 1")       # the oldest
        pair.b.sql("UPDATE t SET x = 2 WHERE id = 2")
        pair.a.sql("UPDATE t SET x = 7 WHERE id = 1")       # newer; reaches B after what follows
        pair.b.sql("UPDATE t SET y = 'newest' WHERE id = 1")
        pair.a.sql("UPDATE t SET x = 9 WHERE id = 2")
        lanes.release("reverse", sync=True)
        lanes.release("forward", sync=True)
        wait_settled(job)
    assert rows(pair.a, "t")[:2] == rows(pair.b, "t")[:2] == [(1, 10, 8, "newest"), (2, 20, 9, "two")]
    # B has (2, ..., 9) now, committed on A; a change of A that came before a newer one of B loses still.
    with held(job) as lanes:
        pair.a.sql("UPDATE t SET x = 100 WHERE id = 2")
        pair.b.sql("UPDATE t SET x = 200 WHERE id = 2")
        lanes.release("forward", sync=True)
        lanes.release("reverse", sync=True)
        wait_settled(job)
    assert rows(pair.a, "t") == rows(pair.b, "t")
    assert rows(pair.a, "t")[1] == (2, 20, 200, "two")


@marker
def test_latest_needs_origins(pair, make_job):
    """Without the right the precheck says what is missing and how to get it; with it, it passes."""
    create(pair, ["t"])
    job = make_job(pair, **LATEST)
    code, _ = job.check()
    found = item(job, "LATEST")
    assert code == tw.PRECHECK_FAILED and [i["status"] for i in found] == ["failed", "failed"], found
    assert all("tw_owner" in i["remedy"] and "origin" in i["needed"] for i in found), found
    assert job.start(wait=()).wait_exit() == tw.PRECHECK_FAILED
    compare.assert_untouched(pair, job.name)
    job.change(forward={"on_conflict": "fail"}, reverse={"on_conflict": "fail"})
    assert {i["status"] for i in item(job, "LATEST")} == {"ok"}
    job.change(forward={"on_conflict_latest": "public.t"})
    assert [i["status"] for i in item(job, "LATEST")] == ["failed", "failed"]


GRANT = """GRANT EXECUTE ON FUNCTION pg_replication_origin_create(text), pg_replication_origin_drop(text),
    pg_replication_origin_oid(text), pg_replication_origin_progress(text, boolean),
    pg_replication_origin_session_progress(boolean), pg_replication_origin_session_reset(),
    pg_replication_origin_session_setup(text), pg_replication_origin_xact_setup(pg_lsn, timestamptz) TO tw_owner"""


@marker
def test_latest_by_grant(pair, make_job):
    """An owner with the rights the README names may use latest."""
    if min(node.server.version() for node in pair.nodes) < 140000:
        pytest.skip("origins can be granted from 14 on")
    create(pair, ["t"])
    for node in pair.nodes:
        node.admin(GRANT)
    job = make_job(pair, **LATEST)
    assert {i["status"] for i in item(job, "LATEST")} == {"ok"}
    job.start()
    with held(job):
        pair.a.sql("UPDATE t SET x = 7 WHERE id = 1")
        pair.b.sql("UPDATE t SET y = 'b' WHERE id = 1")
    wait_settled(job)
    assert rows(pair.a, "t") == rows(pair.b, "t") == but((1, 10, 1, "b"))


@pytest.fixture(scope="module")
def odd_server(make_server):
    """A server without commit timestamps whose clock can be an hour ahead (then it is restarted)."""
    server = make_server("odd", {"track_commit_timestamp": "off"}, template=1)
    yield server


def fake_clock(server, offset):
    """Restarts the server with its clock ahead by `offset` seconds, or right again (0)."""
    plain = pg.as_server_user

    def under_libfaketime(argv):
        return plain(["env", f"LD_PRELOAD={FAKETIME}", f"FAKETIME=+{offset}s", "FAKETIME_DONT_FAKE_MONOTONIC=1", *argv])

    server.stop()
    with mock.patch.object(pg, "as_server_user", under_libfaketime if offset else plain):
        server.start()


@pytest.mark.parametrize("rung", ["origin"])
def test_latest_needs_timestamps_and_clocks(request, servers, odd_server, make_job, rung):
    """LATEST names the setting; CLOCK fails under latest beyond max_clock_skew, and only warns otherwise."""
    for pair in pairs_of(request, servers[0], odd_server, rung):
        create(pair, ["t"])
        job = make_job(pair, **LATEST)
        found = {i["node"]: i for i in item(job, "LATEST")}
        assert found["a"]["status"] == "ok" and found["b"]["status"] == "failed", found
        assert "track_commit_timestamp" in found["b"]["remedy"] and "restart" in found["b"]["remedy"], found
        odd_server.configure({"track_commit_timestamp": "on"})
        odd_server.restart()
        assert {i["status"] for i in item(job, "LATEST")} == {"ok"}
        assert [i["status"] for i in item(job, "CLOCK")] == ["ok"]
        if not os.path.exists(FAKETIME):
            pytest.skip("libfaketime is not installed")
        fake_clock(odd_server, 100)
        try:
            code, _ = job.check()
            clock, = item(job, "CLOCK")
            assert code == tw.PRECHECK_FAILED and clock["status"] == "failed", clock
            said = re.search(r"clocks (\d+) ms apart, measured to (\d+) ms", clock["measured"])
            assert abs(int(said[1]) - 100_000) < 1000 + int(said[2]), clock
            assert "max_clock_skew" in clock["needed"] and "NTP" in clock["remedy"], clock
            assert job.start(wait=()).wait_exit() == tw.PRECHECK_FAILED
            job.change(job={"max_clock_skew": "5min"})
            assert item(job, "CLOCK")[0]["status"] == "warning"
            job.change(job={"max_clock_skew": None}, **A_WINS)
            assert item(job, "CLOCK")[0]["status"] == "warning"
            # Which side is newer is then what the clocks say: B's, though A wrote later.
            job.change(job={"max_clock_skew": "5min"}, **LATEST).start()
            with held(job):
                pair.b.sql("UPDATE t SET x = 8 WHERE id = 1")
                pair.a.sql("UPDATE t SET x = 7 WHERE id = 1")
            wait_settled(job)
            assert rows(pair.a, "t") == rows(pair.b, "t") == but((1, 10, 8, "one"))
            assert job.stop() == tw.OK
        finally:
            fake_clock(odd_server, 0)


@pytest.mark.skipif(not os.path.exists(FAKETIME), reason="libfaketime is not installed")
def test_clocks_part_while_running(request, servers, odd_server, make_job):
    """The clocks are compared again with every new session, and hourly: latest waits until they agree."""
    for pair in pairs_of(request, servers[0], odd_server, "origin"):
        odd_server.configure({"track_commit_timestamp": "on"})
        odd_server.restart()
        create(pair, ["t"])
        job = make_job(pair, **LATEST).start()
        job.wait_synced()
        fake_clock(odd_server, 100)
        try:
            wait_for(lambda: "clocks of a and b" in job.task("forward")["last_error"], "the clocks are compared")
            pair.a.sql("UPDATE t SET x = 7 WHERE id = 1")
            assert job.task("forward")["state"] == "Retrying" and rows(pair.b, "t") == but()
        finally:
            fake_clock(odd_server, 0)
        wait_for(lambda: rows(pair.b, "t") == but((1, 10, 7, "one")), "the row, with the clocks right again")
        assert job.stop() == tw.OK


def pairs_of(request, server_a, server_b, rung):
    """One pair on these two servers, in a for statement of one turn."""
    import conftest
    return conftest.new_pair(request, server_a, server_b, rung)


# ---- rows deleted meanwhile

class Deleted:
    """Row 1: the source updates it and the target deletes it.  Row 2 is missing on the target for no known reason."""

    def __init__(self, pair, job, task):
        self.pair, self.job, self.task = pair, job, task
        self.source, self.target = pair.source(task), pair.target(task)

    def lose_row_2(self):
        with self.job.unseen("b" if self.task == "forward" else "a") as cur:
            cur.execute("DELETE FROM t WHERE id = 2")

    def update(self):
        with self.source.transaction() as cur:
            cur.execute("UPDATE t SET x = 9 WHERE id = 1")
            cur.execute("UPDATE t SET x = 9 WHERE id = 2")

    def delete(self):
        self.target.sql("DELETE FROM t WHERE id = 1")

    def check(self, outcome, kind="update_deleted"):
        compare.assert_contents(self.pair)
        found = [(c["kind"], c["key"]["id"], c["outcome"]) for c in records(self.job, self.task)]
        assert sorted(found) == sorted([(kind, "1", outcome), ("update_missing", "2", "inserted")])
        stays = outcome != "kept"
        assert rows(self.target, "t") == but(*[(1, 10, 9, "one")] * stays, (2, 20, 9, "two"), gone=[1])


def start_with_page(job):
    """Job.start() removes the page of counters, in which deletes are remembered, too; not here.

    Returns when the new run has taken the page over: until then it tells of the states of the last one.
    """
    def taken():
        with open(os.path.join(job.state_dir, "lock")) as f:
            return f.read().strip() == str(job.process.pid)

    with mock.patch("os.remove"):
        job.start(wait=())
    wait_for(taken, "the new run has the page")


def task_policy(task, policy):
    answer = {"ignore": "overwrite", "overwrite": "ignore", "fail": "ignore", "latest": "latest"}[policy]
    return {task: {"on_conflict": policy}, other(task): {"on_conflict": answer}}


@directions
@pytest.mark.parametrize("policy, newer, rung", [
    ("ignore", "delete", "marker"), ("overwrite", "delete", "origin"),
    ("latest", "delete", "origin"), ("latest", "update", "origin")])
def test_update_deleted(pair, make_job, task, policy, newer, rung):
    create(pair, ["t"])
    job = make_job(pair, **task_policy(task, policy)).start()
    case = Deleted(pair, job, task)
    case.lose_row_2()
    with held(job) as lanes:
        for step in (case.update, case.delete) if newer == "delete" else (case.delete, case.update):
            step()
        lanes.release(other(task), sync=True)
        lanes.release(task, sync=True)
        wait_settled(job)
    case.check("kept" if policy == "ignore" or (policy == "latest" and newer == "delete") else "inserted")


@marker
@pytest.mark.parametrize("take, memory", [("a", "kept"), ("b", "kept"), ("b", "lost")])
def test_update_deleted_fails(pair, make_job, take, memory):
    """Under fail a person decides: the update comes back as a row, or the row stays deleted."""
    create(pair, ["t"])
    job = make_job(pair, **task_policy("forward", "fail")).start()
    case = Deleted(pair, job, "forward")
    case.lose_row_2()
    with held(job, "forward") as lanes:
        case.update()
        case.delete()
        job.wait_synced(["reverse"])
        lanes.release()
        status = job.wait_state("forward", "Failed")
    assert "update_deleted" in status["last_error"], status
    assert job.stop() == tw.TASK_FAILED
    (left,) = records(job, "forward")
    assert left["kind"] == "update_deleted" and left["outcome"] == "stopped"
    code, out, err = job.command("conflicts", job.path, "--resolve", f"b/{left['id']}", "--take", take)
    assert code == tw.OK, err
    if memory == "kept":
        start_with_page(job)
    else:
        job.start(wait=())
    wait_settled(job, only="wanted IS NOT NULL")
    case.check("inserted" if take == "a" else "kept")


@marker
@pytest.mark.parametrize("task", ["forward"])
def test_update_deleted_after_a_crash(pair, make_job, task):
    """twsync is killed between the delete and the update: what was decoded before is not forgotten."""
    create(pair, ["t"])
    job = make_job(pair, **task_policy(task, "ignore")).start()
    case = Deleted(pair, job, task)
    case.lose_row_2()
    with held(job, task) as lanes:
        case.update()
        case.delete()
        job.wait_synced([other(task)])
        job.kill()
        lanes.release()
    start_with_page(job)
    wait_settled(job)
    case.check("kept")


@marker
@pytest.mark.parametrize("winner", ["b"])
def test_update_deleted_forgotten(pair, make_job, winner):
    """With the state folder's memory gone the sides still end the same."""
    create(pair, ["t"])
    job = make_job(pair, **WINS[winner]).start()
    with held(job) as lanes:
        pair.a.sql("UPDATE t SET x = 9 WHERE id = 1")
        pair.b.sql("DELETE FROM t WHERE id = 1")
        lanes.release("reverse", sync=True)
        job.kill()
        lanes.release()
    job.start()
    wait_settled(job)
    compare.assert_contents(pair)


# What can come between a key that changes, and changes of the same row on the other side.
KEYS = {
    "moved_updated": ("UPDATE t SET id = 7 WHERE id = 1", "UPDATE t SET x = 8 WHERE id = 1"),
    "updated_moved": ("UPDATE t SET x = 8 WHERE id = 1", "UPDATE t SET id = 7 WHERE id = 1"),
    "moved_deleted": ("UPDATE t SET id = 7 WHERE id = 1", "DELETE FROM t WHERE id = 1"),
    "deleted_moved": ("DELETE FROM t WHERE id = 1", "UPDATE t SET id = 7 WHERE id = 1"),
    "moved_moved": ("UPDATE t SET id = 7 WHERE id = 1", "UPDATE t SET id = 8 WHERE id = 1"),
    "moved_same": ("UPDATE t SET id = 7, x = 7 WHERE id = 1", "UPDATE t SET id = 7, x = 8 WHERE id = 1"),
    "moved_taken": ("UPDATE t SET id = 7 WHERE id = 1", "INSERT INTO t VALUES (7, 70)"),
    "moved_far": ("UPDATE t SET id = 7 WHERE id = 1; UPDATE t SET id = 8 WHERE id = 7",
                  "UPDATE t SET x = 8 WHERE id = 1"),
    "moved_new": ("UPDATE t SET id = 7 WHERE id = 1; INSERT INTO t VALUES (1, 11)",
                  "UPDATE t SET x = 8 WHERE id = 1"),
}


@pytest.mark.parametrize("win, first, rung", [("a", "forward", "marker"), ("b", "forward", "marker"),
                                              ("a", "reverse", "marker"), ("latest", "reverse", "origin")])
def test_keys_that_change(pair, make_job, win, first, rung):
    """An update of the key on one side, and another change of that row on the other: both sides end equal."""
    for name in KEYS:
        pair.a.sql(f"CREATE TABLE {name} (id int PRIMARY KEY, x int); INSERT INTO {name} VALUES (1, 1), (2, 2)")
    job = make_job(pair, **WINS.get(win, LATEST)).start()
    with held(job) as lanes:
        for side, node in enumerate(pair.nodes):
            for name, case in KEYS.items():
                node.sql(case[side].replace(" t ", f" {name} "))
        lanes.release(first)
        lanes.release()
        wait_settled(job)
    compare.assert_contents(pair)


# ---- policies per table

def test_policy_per_table(pair, make_job, rung):
    """Each listed table goes by its own policy, the others by on_conflict."""
    names = ["over", "ign", '"Odd, Name"', "rest"] + (["newer"] if rung == "origin" else [])
    create(pair, names)
    job = make_job(pair, forward={"on_conflict": "overwrite", "on_conflict_overwrite": "public.over",
                                  "on_conflict_ignore": 'public.ign, public."Odd, Name"'},
                   reverse={"on_conflict": "ignore", "on_conflict_ignore": "public.over",
                            "on_conflict_overwrite": 'public."Odd, Name", public.ign'})
    if rung == "origin":
        job.change(forward={"on_conflict_latest": "public.newer"}, reverse={"on_conflict_latest": "public.newer"})
    job.start()
    with held(job):
        for node, value in ((pair.a, 7), (pair.b, 8)):
            for name in names:
                node.sql(f"UPDATE {name} SET x = {value} WHERE id = 1")
    wait_settled(job)
    wins = {"over": 7, "ign": 8, '"Odd, Name"': 8, "rest": 7, "newer": 8}
    for node in pair.nodes:
        assert {name: rows(node, name)[0][2] for name in names} == {name: wins[name] for name in names}
    policies = {c["table_name"]: c["policy"] for c in records(job, "forward")}
    expected = {"over": "overwrite", "ign": "ignore", "Odd, Name": "ignore", "rest": "overwrite", "newer": "latest"}
    assert policies == {name: policy for name, policy in expected.items() if name in policies}
    assert len(policies) == len(names)
    _, shown, _ = job.command("show", job.path)
    path = os.path.join(job.folder, "again.ini")
    tw.write_private(path, shown.replace("password = ***", f"password = {pg.PASSWORD}"))
    assert job.command("show", path)[1] == shown
    for line in ('on_conflict_ignore = public.ign, public."Odd, Name"', "on_conflict_overwrite = public.over"):
        assert line in shown, shown


@marker
def test_fail_for_one_table(pair, make_job):
    """A table under fail stops the task; the same conflict in another one does not."""
    create(pair, ["careful", "rest"])
    job = make_job(pair, forward={"on_conflict": "overwrite", "on_conflict_fail": "public.careful"},
                   reverse={"on_conflict": "ignore"}).start()
    with held(job):
        for node, value in ((pair.a, 7), (pair.b, 8)):
            node.sql(f"UPDATE rest SET x = {value} WHERE id = 1")
    wait_settled(job)
    assert rows(pair.b, "rest") == but((1, 10, 7, "one"))
    with held(job):
        for node, value in ((pair.a, 7), (pair.b, 8)):
            node.sql(f"UPDATE careful SET x = {value} WHERE id = 1")
    assert "careful" in job.wait_state("forward", "Failed")["last_error"]


@marker
def test_policy_lists_wrong(pair, make_job):
    """A table listed twice, or no list of tables at all, is a mistake of the job file, with its line."""
    for wrong, words in (
            ({"on_conflict_ignore": "public.t, public.u", "on_conflict_fail": "public.u"},
             '"public"."u" is also listed'),
            ({"on_conflict_latest": "public.t", "on_conflict_overwrite": 'public."t"'}, '"public"."t" is also listed'),
            ({"on_conflict_ignore": "public.t, public.t"}, "on_conflict_ignore"),
            ({"on_conflict_ignore": "t"}, "on_conflict_ignore"),
            ({"on_conflict_keep": "public.t"}, "on_conflict_keep")):
        for section in tw.TASKS:
            job = make_job(pair, **{section: wrong})
            code, _, err = job.command("check", job.path)
            assert code == tw.BAD_JOB and words in err, err
            number = int(re.search(rf"{re.escape(job.path)}:(\d+)", err).group(1))
            with open(job.path) as f:
                assert f.read().splitlines()[number - 1].split(" ")[0] in wrong, err


@origin
def test_policy_lists_checked(pair, make_job):
    """The precheck warns of listed tables whose two policies have no winner."""
    create(pair, ["t", "u"])
    job = make_job(pair, **A_WINS)
    assert item(job, "POLICY")[0]["status"] == "ok"
    job.change(reverse={"on_conflict_overwrite": "public.u"})
    found = item(job, "POLICY")
    assert found[0]["status"] == "warning" and "u" in found[0]["measured"], found


@marker
def test_policy_lists_unknown(pair, make_job):
    """The precheck names listed tables that the job does not carry: most likely a name misspelt."""
    create(pair, ["t"])
    job = make_job(pair, **A_WINS).change(forward={"on_conflict_ignore": "public.nosuch"})
    assert [i for i in job.check()[1] if i["status"] != "ok" and "nosuch" in str(i)]


# ---- other keys than the primary one

UNIQUE = {
    "partial": ("(id int PRIMARY KEY, v text, live bool); CREATE UNIQUE INDEX ON {t} (v) WHERE live",
                "(5, 'same', true)", "(6, 'same', true)"),
    "expression": ("(id int PRIMARY KEY, v text); CREATE UNIQUE INDEX ON {t} (lower(v))", "(5, 'Same')", "(6, 'sAME')"),
    "exclusion": ("(id int PRIMARY KEY, r int4range, EXCLUDE USING gist (r WITH &&))", "(5, '[1,10)')",
                  "(6, '[9,20)')"),
    "two_columns": ("(id int PRIMARY KEY, v text, w int, UNIQUE (w, v))", "(5, 'v', 1)", "(6, 'v', 1)"),
    "late": ("(id int PRIMARY KEY, v int UNIQUE DEFERRABLE INITIALLY DEFERRED)", "(5, 1)", "(6, 1)"),
    "nulls": ("(id int PRIMARY KEY, v int, w int, UNIQUE NULLS NOT DISTINCT (v, w))", "(5, NULL, 1)", "(6, NULL, 1)"),
    "two_others": ("(id int PRIMARY KEY, v int UNIQUE, w int UNIQUE)", "(5, 1, 2)", "(6, 1, 3), (7, 4, 2)"),
    "three_others": ("(id int PRIMARY KEY, v int UNIQUE, w int UNIQUE)", "(5, 1, 2)",
                     "(5, 9, 9), (6, 1, 3), (7, 4, 2)"),
    "many_overlaps": ("(id int PRIMARY KEY, r int4range, EXCLUDE USING gist (r WITH &&))", "(5, '[1,100)')",
                      "(6, '[2,9)'), (7, '[10,20)'), (8, '[30,40)')"),
}


def unique_tables(pair):
    cases = dict(UNIQUE)
    if min(node.server.version() for node in pair.nodes) < 150000:
        del cases["nulls"]
    for name, case in cases.items():
        pair.a.sql(f"CREATE TABLE {name} " + case[0].format(t=name))
    return cases


@pytest.mark.parametrize("act, win", [("insert", "a"), ("insert", "latest"), ("update", "b"), ("update", "latest")])
@pytest.mark.parametrize("rung", ["origin"])
def test_unique_keys(pair, make_job, win, act, rung):
    """Every sort of key as the one violated: the winner's rows are on both sides, and the record has them all."""
    cases = unique_tables(pair)
    blank = {name: f"INSERT INTO {name} (id) VALUES (5)" for name in cases}
    if act == "update":
        with pair.a.transaction() as cur:
            for name in cases:
                cur.execute(blank[name] if name != "nulls" else "INSERT INTO nulls VALUES (5, 5, 5)")
    job = make_job(pair, **WINS.get(win, LATEST)).start()

    def on_a(name):
        row = cases[name][1]
        if act == "insert":
            return f"INSERT INTO {name} VALUES {row}"
        columns = [c for c, in pair.a.admin("SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass "
                                            "AND attnum > 0 ORDER BY attnum", (name,))]
        return f"UPDATE {name} SET ({', '.join(columns)}) = ROW{row} WHERE id = 5"

    with held(job):
        for name, case in cases.items():
            pair.a.sql(on_a(name))
            theirs = case[2] if act == "insert" or not case[2].startswith("(5, 9, 9), ") else case[2][11:]
            pair.b.sql(f"INSERT INTO {name} VALUES {theirs}")
    wait_settled(job)
    compare.assert_contents(pair)
    for name in cases:
        ids = [row[0] for row in rows(pair.a, name)]
        if win == "a":
            assert 5 in ids, (name, ids)
            assert [row for row in rows(pair.a, name) if row[0] == 5][0][1] is not None or name == "nulls"
        else:
            assert 6 in ids, (name, ids)
        found = records(job, "forward", name)
        assert found, name
        if name in ("two_others", "three_others", "many_overlaps"):
            assert found[0]["kind"] == "multiple_unique_conflicts", found[0]
            existing = {row["id"] for row in found[0]["existing"]}
            wanted = {"6", "7"} | ({"8"} if name == "many_overlaps" else set()) | (
                {"5"} if name == "three_others" or act == "update" else set())
            assert existing == wanted, found[0]


@marker
def test_unique_keys_fail(pair, make_job):
    """Under fail nothing is written, and the record of the stop has every row in the way."""
    case = unique_tables(pair)["three_others"]
    job = make_job(pair, reverse={"on_conflict": "ignore"}).start()
    with held(job):
        pair.b.sql(f"INSERT INTO three_others VALUES {case[2]}")
        pair.a.sql(f"INSERT INTO three_others VALUES {case[1]}")
    status = job.wait_state("forward", "Failed")
    assert "multiple_unique_conflicts" in status["last_error"], status
    left, = wait_for(lambda: records(job, "forward"), "the record")
    assert left["outcome"] == "stopped" and {row["id"] for row in left["existing"]} == {"5", "6", "7"}, left
    assert rows(pair.b, "three_others") == [(5, 9, 9), (6, 1, 3), (7, 4, 2)]


# ---- settling

ODD = '"Odd ""T"".x"'
SHAPES = {
    "plain": ("(id int PRIMARY KEY, n int, v text)", "(id, n, v)", "{i}, {n}, 'v'"),
    "big": ("(id int PRIMARY KEY, n int, v text)", "(id, n, v)",
            "{i}, {n}, (SELECT string_agg(md5(g::text || {n}), '') FROM generate_series(1, 500) g)"),
    "gen": ("(id int PRIMARY KEY, n int, d int GENERATED ALWAYS AS (n * 2) STORED)", "(id, n)", "{i}, {n}"),
    "ident": ("(id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int)", "(id, n)", "{i}, {n}"),
    "ident_more": ("(id int PRIMARY KEY, n int, s int GENERATED ALWAYS AS IDENTITY)", "(id, n, s)",
                   "{i}, {n}, 100 * {n} + {i}"),
    "part": ("(id int, n int, PRIMARY KEY (id)) PARTITION BY HASH (id); "
             "CREATE TABLE part_0 PARTITION OF part FOR VALUES WITH (MODULUS 2, REMAINDER 0); "
             "CREATE TABLE part_1 PARTITION OF part FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
             "(id, n)", "{i}, {n}"),
    "comp": ("(k text, id int, n int, PRIMARY KEY (id, k))", "(k, id, n)", "E'k'' \\\\ \" \\n é', {i}, {n}"),
    ODD: ('(id int, "sp ace" text, "quo""te" text, "SELECT" int, n int, "ünï%s$1" text, PRIMARY KEY ("sp ace", id))',
          '("sp ace", id, n, "quo""te", "ünï%s$1")', "'a''b\"c\\d', {i}, {n}, 'x''\"\\', E'\\t\\u0001'"),
    "nulls": ("(id int PRIMARY KEY, n int, v text, w int[])", "(id, n, v, w)",
              "{i}, {n}, CASE WHEN {n} % 2 = 0 THEN 'v' END, CASE WHEN {n} % 2 = 1 THEN '{{1,NULL}}'::int[] END"),
    "times": ("(id int, at timestamptz, f float8, num numeric, raw bytea, iv interval, n int, "
              "PRIMARY KEY (id, at, f, num, raw, iv))", "(id, at, f, num, raw, iv, n)",
              "{i}, '2024-03-04 05:06:07.891011+00', 0.1::float8 + 0.2, 1.500, '\\x00ff27', "
              "'1 mon -3 days 04:05:06.7', {n}"),
    "types": ("(id uuid PRIMARY KEY, n int, j jsonb, x xml, d date, r numrange, f float4)", "(id, n, j, x, d, r, f)",
              "('00000000-0000-0000-0000-00000000000' || {i})::uuid, {n}, '{{\"a\": [1, null]}}', '<a>{n}</a>', "
              "'infinity', '[1.0,2.50)', 'NaN'"),
    "unlike": ("(id int NOT NULL UNIQUE, n int, v text UNIQUE)", "(id, n, v)", "{i}, {n}, 'v{i}-{n}'"),
}


def shape_sql(name, act, i, n):
    _, columns, values = SHAPES[name]
    values = values.format(i=i, n=n)
    key = f"id = ('00000000-0000-0000-0000-00000000000' || {i})::uuid" if name == "types" else f"id = {i}"
    if act == "insert":
        return f"INSERT INTO {name} {columns} OVERRIDING SYSTEM VALUE VALUES ({values})"
    if act == "delete":
        return f"DELETE FROM {name} WHERE {key}"
    if name.startswith("ident"):    # such a column cannot be SET
        return f"UPDATE {name} SET n = {n} WHERE {key}"
    return f"UPDATE {name} SET {columns} = ROW({values}) WHERE {key}"


# Row: what A does, what B does.
FIGHTS = {1: ("update", "update"), 2: ("update", "delete"), 3: ("delete", "update"), 5: ("insert", "insert")}


def fight(pair, names=tuple(SHAPES)):
    """Each kind of conflict in each table, from rows 1, 2 and 3."""
    for side, node in enumerate(pair.nodes):
        with node.transaction() as cur:
            for name in names:
                for i, acts in FIGHTS.items():
                    cur.execute(shape_sql(name, acts[side], i, 11 + side).replace("%", "%%"), ())


def make_shapes(pair):
    for name, shape in SHAPES.items():
        pair.a.sql(f"CREATE TABLE {name} {shape[0]}")
        for i in (1, 2, 3):
            pair.a.sql(shape_sql(name, "insert", i, i))


def contents(node):
    return {name: rows(node, name, "1, 2") for name in SHAPES if name != "types"} | {
        "types": node.sql("SELECT *, x::text FROM types ORDER BY id".replace("*, ", "id, n, j, d, r, f::text, "))}


@pytest.mark.parametrize("winner, rung", [("a", "marker"), ("b", "origin")])
def test_settled_shapes(pair, make_job, winner, rung):
    """ignore on both sides leaves each with its own rows; with a winner named, both get the winner's, whole."""
    make_shapes(pair)
    pair.a.set_hostile(0)
    pair.b.set_hostile(1)
    job = make_job(pair, job={"winner": winner}, forward={"on_conflict": "ignore", "merge": "rows"},
                   reverse={"on_conflict": "ignore", "merge": "rows"}).start()
    with held(job) as lanes:
        fight(pair)
        expected = contents(pair.nodes["ab".index(winner)])
        assert expected != contents(pair.nodes["ba".index(winner)])
        lanes.release()
        wait_settled(job)
    for node in pair.nodes:
        assert contents(node) == expected, f"node {node.letter}"
    compare.assert_contents(pair)
    found = all_records(job)
    assert {c["settled"] for c in found} == {winner, "equal"} or {c["settled"] for c in found} == {winner}
    assert "could not settle" not in job.log_text()
    settled = {t["task"]: t["settled"] for t in job.status()["tasks"]}
    assert settled["forward" if winner == "a" else "reverse"] == len(SHAPES) * len(FIGHTS), settled
    assert settled["reverse" if winner == "a" else "forward"] == 0, settled
    quiet_after(pair, job)


def quiet_after(pair, job):
    """Nothing goes round: no row is written again and no conflict comes, however often both streams move on."""
    def versions():
        return [node.sql(f"SELECT xmin::text, ctid::text FROM {name} ORDER BY 2")
                for node in pair.nodes for name in SHAPES]

    before, counts = versions(), [len(records(job, task)) for task in tw.TASKS]
    written = [[t[c] for c in ("inserts", "updates", "deletes", "settled")] for t in job.status()["tasks"]]
    for _ in range(3):
        job.wait_synced()
    assert versions() == before
    assert [len(records(job, task)) for task in tw.TASKS] == counts
    assert [[t[c] for c in ("inserts", "updates", "deletes", "settled")] for t in job.status()["tasks"]] == written


@pytest.mark.parametrize("winner, rung", [("a", "origin"), ("b", "marker")])
def test_settled_counts(pair, make_job, winner, rung):
    """Old values that coincide: one side sees a conflict, the other one a perfect match; settled all the same."""
    make_shapes(pair)
    job = make_job(pair, **WINS[winner]).start()
    with held(job):
        for node, times in ((pair.a, 1 if winner == "a" else 2), (pair.b, 2 if winner == "a" else 1)):
            for _ in range(times):
                with node.transaction() as cur:
                    for name in SHAPES:
                        cur.execute(f"UPDATE {name} SET n = n + 1".replace("%", "%%"), ())
    wait_settled(job)
    compare.assert_contents(pair)
    assert {c["settled"] for c in all_records(job)} == {winner}
    task = "forward" if winner == "a" else "reverse"
    assert job.task(task)["settled"] == 3 * len(SHAPES)


@marker
@pytest.mark.parametrize("policy", ["overwrite"])
def test_no_winner(pair, make_job, policy):
    """A pair of policies without a winner: warned about, left as it is, until the job names one."""
    create(pair, ["t", "listed"])
    job = make_job(pair, forward={"on_conflict": policy}, reverse={"on_conflict": policy})
    assert item(job, "POLICY")[0]["status"] == "warning"
    assert "winner" in item(job, "POLICY")[0]["needed"]
    job.start()
    with held(job):
        for node, value in ((pair.a, 7), (pair.b, 8)):
            node.sql(f"UPDATE t SET x = {value} WHERE id = 1")
            node.sql(f"UPDATE listed SET x = {value} WHERE id = 1")
    job.wait_synced()
    pair.both("INSERT INTO t VALUES (pg_backend_pid(), NULL, 0, 'more')")
    job.wait_synced()
    own, others = (8, 7) if policy == "overwrite" else (7, 8)
    assert [rows(node, "t")[0][2] for node in pair.nodes] == [own, others]
    assert {c["settled"] for c in all_records(job)} <= {None, "open"}
    # One table has a winner now, by its own policies: only that is settled.
    assert job.stop() == tw.OK
    job.change(forward={"on_conflict_overwrite": "public.listed"}, reverse={"on_conflict_ignore": "public.listed"})
    job.start()
    wait_for(lambda: not unsettled(job), "every conflict is looked at")
    job.wait_synced()
    assert rows(pair.a, "listed") == rows(pair.b, "listed")
    assert rows(pair.a, "listed")[0][2] == own
    assert {c["settled"] for c in all_records(job, "t")} == {"open"}
    assert [rows(node, "t")[0][2] for node in pair.nodes] == [own, others]
    # And what is open is settled when a person says so.
    code, out, _ = job.command("conflicts", job.path, "--table", "t", "--open", "--take", "b")
    assert code == tw.OK and "2 taken up" in out, out
    wait_settled(job)
    assert [rows(node, "t")[0][2] for node in pair.nodes] == [others, others]
    assert {c["settled"] for c in all_records(job, "t")} == {"b"}
    compare.assert_contents(pair)


@marker
def test_winner_named_later(pair, make_job):
    """Conflicts recorded while there was no winner are settled once the job names one."""
    create(pair, ["t"])
    job = make_job(pair, forward={"on_conflict": "ignore"}, reverse={"on_conflict": "ignore"}).start()
    with held(job):
        for node, value in ((pair.a, 7), (pair.b, 8)):
            node.sql(f"UPDATE t SET x = {value} WHERE id = 1")
    job.wait_synced()
    assert job.stop() == tw.OK
    job.change(job={"winner": "b"})
    assert item(job, "POLICY")[0]["status"] == "ok"
    job.start()
    wait_settled(job)
    assert rows(pair.a, "t") == rows(pair.b, "t") == but((1, 10, 8, "one"))


@marker
def test_not_settled(pair, make_job):
    """A table without a key, and a row that the other side refuses: said so, and all else goes on."""
    pair.a.sql("CREATE TABLE keyless (n int, v text); INSERT INTO keyless VALUES (1, 'x'), (1, 'x'), (2, 'y')")
    create(pair, ["t"])
    job = make_job(pair, job={"winner": "a"}, **KEEPING).start()
    pair.b.sql("ALTER TABLE t ADD CONSTRAINT small CHECK (x < 100)")
    with held(job):
        pair.a.sql("UPDATE t SET x = 200 WHERE id = 1")
        pair.b.sql("UPDATE t SET x = 50 WHERE id = 1")
        pair.a.sql("UPDATE t SET x = 9 WHERE id = 2")
        pair.b.sql("UPDATE t SET x = 8 WHERE id = 2")
        pair.a.sql("DELETE FROM keyless WHERE n = 2")
        pair.b.sql("UPDATE keyless SET v = 'z' WHERE n = 2")
    wait_settled(job)
    settled = {(c["table_name"], c["key"].get("id")): c["settled"] for c in all_records(job)}
    assert settled.pop(("t", "1")) == "failed" and settled.pop(("t", "2")) == "a"
    assert settled and set(settled.values()) == {"failed"}, settled
    assert re.search(r"could not settle public.t .*small", job.log_text())
    assert re.search(r"could not settle public.keyless", job.log_text())
    assert rows(pair.b, "t")[0][2] == 50
    assert all(t["state"] == "Running" for t in job.status()["tasks"])
    # With the constraint gone, a person has it settled after all.
    pair.b.sql("ALTER TABLE t DROP CONSTRAINT small")
    code, out, _ = job.command("conflicts", job.path, "--table", "t", "--open", "--take", "a")
    assert code == tw.OK, out
    wait_settled(job)
    assert rows(pair.a, "t") == rows(pair.b, "t")


@pytest.mark.parametrize("locked", ["a", "b"])
@marker
def test_settling_waits_for_a_lock(pair, make_job, locked):
    """An application holds the row: settling waits, the streams do not, and then it is settled."""
    create(pair, ["t", "more"])
    job = make_job(pair, job={"winner": "a"}, **KEEPING).start()
    node = pair.nodes["ab".index(locked)]
    task = "reverse" if locked == "b" else "forward"     # the one that does not touch the locked row
    with held(job) as lanes:
        pair.a.sql("UPDATE t SET x = 7 WHERE id = 1")
        pair.b.sql("UPDATE t SET x = 8 WHERE id = 1")
        lanes.release(other(task), sync=True)
        with node.transaction() as cur:
            cur.execute("SELECT * FROM t WHERE id = 1 FOR UPDATE")
            lanes.release(task, sync=True)
            waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE %s AND wait_event_type = 'Lock'"
            for n in range(3):
                wait_for(lambda: node.admin(waits, (f"twsync:{job.name}:%",))[0][0], "a wait for the lock", every=0.01)
                pair.both(f"INSERT INTO more VALUES ({100 + n} + CASE current_database() WHEN '{pair.a.dbname}' THEN 0 "
                          "ELSE 100 END, NULL, 0, '')")
                job.wait_synced()
            assert unsettled(job)
        wait_settled(job)
    assert rows(pair.a, "t") == rows(pair.b, "t") == but((1, 10, 7, "one"))
    compare.assert_contents(pair)


def many_conflicts(pair, job, n=200):
    with held(job):
        for node, value in ((pair.a, 7), (pair.b, 8)):
            with node.transaction() as cur:
                cur.execute("UPDATE many SET x = %s WHERE id %% 4 <> 0", (value,))
                cur.execute("DELETE FROM many WHERE id %% 8 = %s", (4 * (value - 7),))
                cur.execute("UPDATE many SET x = %s WHERE id %% 4 = 0", (value,))
                cur.execute(f"INSERT INTO many SELECT g, {value} FROM generate_series({n + 1}, {n + 20}) g")


def make_many(pair, make_job, n=200):
    pair.a.sql("CREATE TABLE many (id int PRIMARY KEY, x int)")
    pair.a.sql("INSERT INTO many SELECT g, 0 FROM generate_series(1, %s) g", (n,))
    return make_job(pair, job={"winner": "a"}, forward={"on_conflict": "ignore", "merge": "rows"},
                    reverse={"on_conflict": "ignore", "merge": "rows"}).start()


@marker
def test_killed_while_settling(pair, make_job, rng):
    """kill -9 ten times, of all or of one process, while a few hundred keys are being settled."""
    job = make_many(pair, make_job)
    many_conflicts(pair, job)
    for n in range(10):
        before = sum(node.one("SELECT count(*) FROM twsync.conflict WHERE settled IS NOT NULL") for node in pair.nodes)
        goal = before + rng.randrange(12)
        with contextlib.suppress(AssertionError):
            wait_for(lambda: not unsettled(job) or goal <= sum(node.one(
                "SELECT count(*) FROM twsync.conflict WHERE settled IS NOT NULL") for node in pair.nodes),
                "settling goes on", 10, rng.random() * 0.05)
        if n % 5 == 4:
            job.kill()
            job.start(wait=())
        else:
            wait_for(lambda: job.kill_child(rng), "a process to kill")
        if n == 6:      # something new meanwhile
            pair.both("UPDATE many SET x = x + 1 WHERE id = 1")
    for task in tw.TASKS:
        job.wait_state(task, "Running")
    wait_settled(job)
    compare.assert_contents(pair)
    assert not [c for c in all_records(job) if c["settled"] not in ("a", "equal")]
    assert {x for (x,) in pair.b.sql("SELECT x FROM many WHERE id BETWEEN 201 AND 220")} == {7}


@marker
def test_servers_crash_while_settling(own_pair, make_job, rng):
    """Each server crashes once while keys are being settled."""
    job = make_many(own_pair, make_job)
    many_conflicts(own_pair, job)
    for node in own_pair.nodes:
        wait_for(lambda: any(own_pair.b.one("SELECT count(*) FROM twsync.conflict WHERE settled IS NOT NULL") > n
                             for n in (rng.randrange(150),)), "settling goes on", every=0.01)
        node.server.restart("immediate")
    for task in tw.TASKS:
        job.wait_state(task, "Running")
    wait_settled(job)
    compare.assert_contents(own_pair)
    assert {x for (x,) in own_pair.b.sql("SELECT x FROM many WHERE id BETWEEN 201 AND 220")} == {7}


# ---- twsync conflicts

def listing(job, *options):
    """`twsync conflicts --json`: every line is one object."""
    code, out, err = job.command("conflicts", job.path, "--json", *options)
    assert code == tw.OK, err
    return [json.loads(line) for line in out.splitlines()]


CANARY_ROW = "it's \"odd\" \\ <b>\t\n\x1b[31m\u0001 \u202eé\U0001F600"


@marker
def test_list(pair, make_job):
    """Every filter, as text and as JSON; odd texts come out escaped, one conflict a line."""
    create(pair, ["t", '"Odd ""N"" x"'])
    pair.a.sql("CREATE TABLE k (id text PRIMARY KEY, n int)")
    pair.a.sql("INSERT INTO k VALUES (%s, 1)", (CANARY_ROW,))
    job = make_job(pair, **A_WINS)
    code, out, err = job.command("conflicts", job.path)
    assert code == tw.OK and len(out.splitlines()) == 1, out + err      # the heading alone
    assert listing(job) == []
    job.start()
    assert listing(job) == []
    with held(job):
        for node, value in ((pair.a, 7), (pair.b, 8)):
            node.sql("UPDATE t SET x = %s, y = %s WHERE id = 1", (value, CANARY_ROW + str(value)))
            node.sql("UPDATE k SET n = %s", (value,))
            node.sql('INSERT INTO "Odd ""N"" x" VALUES (5, %s, 5, NULL)', (value,))
        pair.a.sql("DELETE FROM t WHERE id = 2")
        pair.b.sql("UPDATE t SET x = 1000 WHERE id = 2")
    wait_settled(job)
    everything = listing(job)
    assert len(everything) == len(all_records(job)) == 8
    assert {c["node"] for c in everything} == {"a", "b"}
    for c in everything:
        task = c["task"].split("/")[1]
        assert c["node"] == ("b" if task == "forward" else "a"), c
    assert listing(job, "--task", "forward") == [c for c in everything if c["node"] == "b"]
    assert listing(job, "--task", "reverse") == [c for c in everything if c["node"] == "a"]
    for kind in ("insert_exists", "update_differs", "update_deleted", "delete_differs", "update_missing"):
        assert listing(job, "--kind", kind) == [c for c in everything if c["kind"] == kind]
    for name in ("t", "public.t"):
        assert listing(job, "--table", name) == [c for c in everything if c["table_name"] == "t"]
    assert len(listing(job, "--table", 'Odd "N" x')) == 2
    assert listing(job, "--table", "nosuch") == []
    assert listing(job, "--open") == []
    assert len(listing(job, "--limit", "1", "--task", "forward")) == 1
    assert listing(job, "--limit", "1", "--task", "forward") == [c for c in everything if c["node"] == "b"][-1:]
    assert listing(job, "--kind", "update_differs", "--table", "k", "--task", "reverse") == [
        c for c in everything if c["table_name"] == "k" and c["node"] == "a"]
    found = next(c for c in everything if c["table_name"] == "t" and c["node"] == "b" and c["key"]["id"] == "1")
    assert found["incoming"]["y"] == CANARY_ROW + "7" and found["existing"][0]["y"] == CANARY_ROW + "8"
    code, out, _ = job.command("conflicts", job.path)
    lines = out.splitlines()
    assert code == tw.OK and len(lines) == 9, out
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", out), repr(out)
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}  [ab]/\d+ ", line) for line in lines[1:]), out
    key, = [json.loads(line[line.index("{"):]) for line in lines if "public.k " in line and "  a/" in line]
    assert key == {"id": CANARY_ROW}


@marker
def test_list_wrong(pair, make_job):
    """What is no kind, id, task or number is said so, and changes nothing."""
    create(pair, ["t"])
    job = make_job(pair, **A_WINS).start()
    with held(job):
        for node, value in ((pair.a, 7), (pair.b, 8)):
            node.sql("UPDATE t SET x = %s WHERE id = 1", (value,))
    wait_settled(job)
    before = all_records(job)
    for options in (["--kind", "nosuch"], ["--kind", ""], ["--task", "sideways"], ["--limit", "0"], ["--limit", "x"],
                    ["--resolve", "12", "--take", "a"], ["--resolve", "c/1", "--take", "a"],
                    ["--resolve", "b/", "--take", "a"], ["--resolve", "b/1x", "--take", "a"],
                    ["--resolve", "b/-1", "--take", "a"], ["--resolve", "b/99999999999999999999", "--take", "a"],
                    ["--resolve", "b/9223372036854775808", "--take", "a"],
                    ["--resolve", "b/999", "--take", "a"], ["--resolve", "b/1"], ["--resolve", "b/1", "--take", "c"],
                    ["--resolve", "", "--take", "a"], ["--take", "a"], ["--nosuch"], ["--limit", "-3"],
                    ["--limit", "99999999999999999999"], ["--limit", "5x"]):
        code, out, err = job.command("conflicts", job.path, *options)
        assert code == tw.BAD_JOB, (options, code, out, err)
        assert err.startswith("twsync: ") or ": " in err, (options, err)
        assert "ERROR" not in err and "invalid input" not in err, (options, err)
    assert all_records(job) == before
    code, _, err = job.command("conflicts", os.path.join(job.folder, "nosuch.ini"))
    assert code == tw.BAD_JOB


@marker
def test_list_without_a_server(pair, make_job):
    create(pair, ["t"])
    job = make_job(pair, **A_WINS)
    job.change(b={"port": pg.free_port()})
    code, _, err = job.command("conflicts", job.path)
    assert code == tw.NO_CONNECTION and err, (code, err)


@marker
def test_resolve_kept(pair, make_job):
    """A conflict is decided again by a person: both sides get that side's row, the running job sees to it."""
    create(pair, ["t"])
    job = make_job(pair, **A_WINS).start()
    with held(job):
        for node, value in ((pair.a, 7), (pair.b, 8)):
            node.sql("UPDATE t SET x = %s WHERE id = 1", (value,))
    wait_settled(job)
    kept = records(job, "reverse")[0]
    assert kept["outcome"] == "kept"
    # What B held is gone; a person gives it back there without its being carried, and says so.
    with job.unseen("b") as cur:
        cur.execute("UPDATE t SET x = 8 WHERE id = 1")
    code, out, err = job.command("conflicts", job.path, "--resolve", f"a/{kept['id']}", "--take", "b")
    assert code == tw.OK and "b wanted" in out, out + err
    wait_settled(job)
    assert rows(pair.a, "t") == rows(pair.b, "t") == but((1, 10, 8, "one"))
    again, = [c for c in records(job, "reverse") if c["id"] == kept["id"]]
    assert (again["wanted"], again["settled"]) == ("b", "b")
    answer, = listing(job, "--resolve", f"a/{kept['id']}", "--take", "a")
    assert answer["wanted"] == "a" and answer["settled"] is None


STOPS = {
    "update_differs": ("UPDATE t SET x = 7 WHERE id = 1", "UPDATE t SET x = 8 WHERE id = 1",
                       but((1, 10, 7, "one")), but((1, 10, 8, "one"))),
    "delete_differs": ("DELETE FROM t WHERE id = 1", "UPDATE t SET x = 8 WHERE id = 1",
                       but(gone=[1]), but((1, 10, 8, "one"))),
    "insert_exists": ("INSERT INTO t VALUES (5, 50, 5, 'a')", "INSERT INTO t VALUES (6, 50, 6, 'b')",
                      but((5, 50, 5, "a")), but((6, 50, 6, "b"))),
    "update_exists": ("UPDATE t SET u = 50 WHERE id = 1", "INSERT INTO t VALUES (6, 50, 6, 'b')",
                      but((1, 50, 1, "one")), but((6, 50, 6, "b"))),
}


@marker
@pytest.mark.parametrize("kind, take", [("update_differs", "a"), ("update_differs", "b"), ("delete_differs", "b"),
                                        ("insert_exists", "a"), ("update_exists", "a")])
def test_resolve_stopped(pair, make_job, kind, take):
    """A task that policy fail stopped goes on with the decision, for that conflict alone."""
    create(pair, ["t"])
    on_a, on_b, *ends = STOPS[kind]
    job = make_job(pair, forward={"on_conflict": "fail"}, reverse={"on_conflict": "ignore"}).start()
    with held(job) as lanes:
        pair.a.sql(on_a)
        pair.b.sql(on_b)
        pair.a.sql("INSERT INTO t VALUES (100, 100, 0, 'after')")
        pair.a.sql("UPDATE t SET x = 7 WHERE id = 3")
        lanes.release("forward")
        job.wait_state("forward", "Failed")
    pair.b.sql("UPDATE t SET x = 8 WHERE id = 3")       # will stop it again, as any new conflict must
    job.wait_synced(["reverse"])
    left, = listing(job, "--kind", kind, "--task", "forward")
    assert left["outcome"] == "stopped" and left["settled"] is None
    assert [c["id"] for c in listing(job, "--open") if c["node"] == "b"] == [left["id"]]
    code, out, err = job.command("conflicts", job.path, "--resolve", f"b/{left['id']}", "--take", take)
    assert code == tw.OK and f"{take} wanted" in out, out + err
    job.stop()
    job.start(wait=())
    status = job.wait_state("forward", "Failed")
    assert "update_differs" in status["last_error"] and '"3"' in status["last_error"], status
    second = listing(job, "--task", "forward")[-1]
    assert (second["outcome"], second["key"]["id"]) == ("stopped", "3")
    assert len(listing(job, "--task", "forward")) == 2
    job.command("conflicts", job.path, "--resolve", f"b/{second['id']}", "--take", "a")
    job.stop()
    job.start()
    wait_settled(job, only="wanted IS NOT NULL")
    compare.assert_contents(pair)
    expected = ends["ab".index(take)]
    got = [row for row in rows(pair.b, "t") if row[0] not in (100, 3)]
    allowed = [[row for row in expected if row[0] != 3]]
    if kind == "update_exists" and take == "b":     # the row that was in the way may be back
        allowed.append([row for row in expected if row[0] not in (3, 1)])
    assert got in allowed, got
    assert [row for row in rows(pair.b, "t") if row[0] in (3, 100)] == [(3, 30, 7, "three"), (100, 100, 0, "after")]
    assert [c["outcome"] for c in records(job, "forward")].count("stopped") == 0
    # The decision is used up: the same rows in conflict again stop the task again.
    if kind == "update_differs":
        with held(job, "forward"):
            pair.a.sql("UPDATE t SET x = 70 WHERE id = 1")
            pair.b.sql("UPDATE t SET x = 80 WHERE id = 1")
            job.wait_synced(["reverse"])
        assert "update_differs" in job.wait_state("forward", "Failed")["last_error"]
