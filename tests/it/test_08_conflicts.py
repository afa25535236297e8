"""Conflicts: the service's four kinds, update_differs and delete_differs, by policy, both ways, recorded."""

import pytest

import compare
import tw

COLUMNS = "(id int PRIMARY KEY, u int UNIQUE, x int, y text)"
BASE = [(1, 10, 1, "one"), (2, 20, 2, "two"), (3, 30, 3, "three")]

directions = pytest.mark.parametrize("task", tw.TASKS)


class Case:
    """Rows of the target that are changed unseen, the change of the source that meets them, the outcome.

    kinds: names under which the conflict may be recorded.  ignore, overwrite: the target's rows afterwards.
    stops: policy fail makes the task Failed.
    """

    def __init__(self, name, unseen, change, kinds, ignore, overwrite, key, stops=True, merge="columns"):
        self.name, self.unseen, self.change, self.kinds = name, unseen, change, kinds.split()
        self.rows = {"ignore": ignore, "overwrite": overwrite}
        self.key, self.stops, self.merge = key, stops, merge

    def __repr__(self):
        return self.name


def but(*rows, gone=()):
    """The base rows with these in place of those of the same id."""
    new = {row[0] for row in rows} | set(gone)
    return sorted([row for row in BASE if row[0] not in new] + list(rows))


TARGET_5, SOURCE_5 = (5, 50, 5, "target"), (5, 55, 6, "source")

CASES = [
    Case("insert_same_key", "INSERT INTO {t} VALUES (5, 50, 5, 'target')", "INSERT INTO {t} VALUES (5, 55, 6, 'source')",
         "insert_exists", but(TARGET_5), but(SOURCE_5), 5),
    Case("insert_equal_row", "INSERT INTO {t} VALUES (5, 55, 6, 'source')", "INSERT INTO {t} VALUES (5, 55, 6, 'source')",
         "insert_exists", but(SOURCE_5), but(SOURCE_5), 5),
    Case("insert_same_unique", "INSERT INTO {t} VALUES (5, 50, 5, 'target')", "INSERT INTO {t} VALUES (6, 50, 6, 'source')",
         "insert_exists", but(TARGET_5), but((6, 50, 6, "source")), 6),
    Case("insert_two_others", "INSERT INTO {t} VALUES (5, 50, 5, 'target'), (6, 60, 6, 'target')",
         "INSERT INTO {t} VALUES (5, 60, 7, 'source')", "insert_exists multiple_unique_conflicts",
         but(TARGET_5, (6, 60, 6, "target")), but((5, 60, 7, "source")), 5),
    Case("update_missing_row", "DELETE FROM {t} WHERE id = 1", "UPDATE {t} SET x = 9 WHERE id = 1",
         "update_missing", but((1, 10, 9, "one")), but((1, 10, 9, "one")), 1, stops=False),
    Case("update_to_same_key", "INSERT INTO {t} VALUES (5, 50, 5, 'target')", "UPDATE {t} SET id = 5 WHERE id = 1",
         "update_exists", but(TARGET_5), but((5, 10, 1, "one"), gone=[1]), 1),
    Case("update_to_same_unique", "INSERT INTO {t} VALUES (5, 50, 5, 'target')", "UPDATE {t} SET u = 50 WHERE id = 1",
         "update_exists", but(TARGET_5), but((1, 50, 1, "one")), 1),
    Case("delete_missing_row", "DELETE FROM {t} WHERE id = 1", "DELETE FROM {t} WHERE id = 1",
         "delete_missing", but(gone=[1]), but(gone=[1]), 1, stops=False),
    Case("delete_changed_row", "UPDATE {t} SET x = 100 WHERE id = 1", "DELETE FROM {t} WHERE id = 1",
         "delete_differs", but((1, 10, 100, "one")), but(gone=[1]), 1),
    Case("update_same_column", "UPDATE {t} SET x = 100 WHERE id = 1", "UPDATE {t} SET x = 9 WHERE id = 1",
         "update_differs", but((1, 10, 100, "one")), but((1, 10, 9, "one")), 1),
    Case("update_one_of_two", "UPDATE {t} SET x = 100 WHERE id = 1", "UPDATE {t} SET x = 9, y = 'source' WHERE id = 1",
         "update_differs", but((1, 10, 100, "source")), but((1, 10, 9, "source")), 1),
    Case("update_to_null", "UPDATE {t} SET x = NULL WHERE id = 1", "UPDATE {t} SET x = 9 WHERE id = 1",
         "update_differs", but((1, 10, None, "one")), but((1, 10, 9, "one")), 1),
    Case("rows_other_column", "UPDATE {t} SET y = 'target' WHERE id = 1", "UPDATE {t} SET x = 9 WHERE id = 1",
         "update_differs", but((1, 10, 1, "target")), but((1, 10, 9, "one")), 1, merge="rows"),
    Case("rows_same_column", "UPDATE {t} SET x = 100 WHERE id = 1", "UPDATE {t} SET x = 9, y = 'source' WHERE id = 1",
         "update_differs", but((1, 10, 100, "one")), but((1, 10, 9, "source")), 1, merge="rows"),
]
COLUMN_CASES = [case for case in CASES if case.merge == "columns"]
ROW_CASES = [case for case in CASES if case.merge == "rows"]


def with_tables(pair, names):
    for name in names:
        pair.a.sql(f"CREATE TABLE {name} {COLUMNS}")
        for row in BASE:
            pair.a.sql(f"INSERT INTO {name} VALUES (%s, %s, %s, %s)", row)


def policies(task, policy, other="fail", **more):
    """The sections of a job in which only `task` has this policy."""
    sections = {"forward": {"on_conflict": other}, "reverse": {"on_conflict": other}}
    sections[task] = {"on_conflict": policy, **more}
    return sections


def rows(node, table):
    return node.sql(f"SELECT * FROM {table} ORDER BY id")


def letters(task):
    """Source and target of a task."""
    return ("a", "b") if task == "forward" else ("b", "a")


def make_conflict(job, task, case, table):
    """The conflict, in the middle of a transaction whose other rows meet nothing; what the target had before."""
    with job.unseen(letters(task)[1]) as cur:
        cur.execute(case.unseen.format(t=table))
    before = rows(job.pair.target(task), table)
    with job.pair.source(task).transaction() as cur:
        cur.execute(f"INSERT INTO {table} VALUES (1000, 1000, 0, 'before')")
        cur.execute(case.change.format(t=table))
        cur.execute(f"INSERT INTO {table} VALUES (1001, 1001, 0, 'after')")
    return before


AROUND = [(1000, 1000, 0, "before"), (1001, 1001, 0, "after")]


def check_record(job, task, case, table, policy):
    found = [c for c in job.conflicts(task) if c["table_name"] == table]
    assert len(found) == 1, found
    conflict = found[0]
    assert conflict["kind"] in case.kinds and conflict["schema_name"] == "public", conflict
    assert conflict["policy"] == policy and conflict["outcome"], conflict
    assert str(case.key) in [str(value) for value in conflict["key"].values()], conflict
    missing = case.name.endswith("_missing_row")
    assert bool(conflict["existing"]) == (not missing), conflict
    if "source" in case.change:
        assert "source" in str(conflict["incoming"]), conflict
    if "target" in case.unseen:
        assert "target" in str(conflict["existing"]), conflict


@directions
@pytest.mark.parametrize("policy", ["ignore", "overwrite"])
@pytest.mark.parametrize("merge, cases", [("columns", COLUMN_CASES), ("rows", ROW_CASES)], ids=["columns", "rows"])
def test_policy(pair, make_job, task, policy, merge, cases):
    """Every kind under ignore and overwrite: the rows, the record, the counter."""
    with_tables(pair, [case.name for case in cases])
    job = make_job(pair, **policies(task, policy, merge=merge)).start()
    for case in cases:
        make_conflict(job, task, case, case.name)
    job.wait_synced()
    got = {case.name: rows(pair.target(task), case.name) for case in cases}
    assert got == {case.name: case.rows[policy] + AROUND for case in cases}
    for case in cases:
        check_record(job, task, case, case.name, policy)
    assert job.task(task)["conflicts"] == len(cases)


@directions
@pytest.mark.parametrize("case", [c for c in COLUMN_CASES if c.stops and c.name != "insert_equal_row"], ids=repr)
@pytest.mark.rung("marker")
def test_fail(pair, make_job, task, case):
    """Under fail the task is Failed, nothing of the transaction is there, the other task goes on."""
    with_tables(pair, ["t"])
    job = make_job(pair, **policies(task, "fail")).start()
    source, target = pair.source(task), pair.target(task)
    before = make_conflict(job, task, case, "t")
    status = job.wait_state(task, "Failed")
    assert "public.t" in status["last_error"] or '"t"' in status["last_error"], status
    assert any(kind in status["last_error"] for kind in case.kinds), status
    assert rows(target, "t") == before
    other = next(t for t in tw.TASKS if t != task)
    target.sql("INSERT INTO t VALUES (500, 500, 0, 'on')")
    job.wait_synced([other])
    assert (500, 500, 0, "on") in rows(source, "t")
    assert job.task(other)["state"] == "Running" and job.task(task)["state"] == "Failed"
    assert job.stop() == tw.TASK_FAILED
    # Decided by another policy, it goes on where it stopped and loses nothing.
    job.change(**policies(task, "overwrite")).start()
    job.wait_synced()
    assert rows(target, "t") == sorted(case.rows["overwrite"] + AROUND + [(500, 500, 0, "on")])


@directions
@pytest.mark.rung("marker")
def test_fail_is_the_default(pair, make_job, task):
    with_tables(pair, ["t"])
    job = make_job(pair).start()
    make_conflict(job, task, CASES[0], "t")
    job.wait_state(task, "Failed")
    assert rows(pair.target(task), "t") == but(TARGET_5)


@directions
@pytest.mark.rung("marker")
def test_missing_rows_never_stop(pair, make_job, task):
    """update_missing becomes an insert and delete_missing nothing, under fail too."""
    cases = [case for case in CASES if not case.stops]
    with_tables(pair, [case.name for case in cases])
    job = make_job(pair, **policies(task, "fail")).start()
    for case in cases:
        make_conflict(job, task, case, case.name)
    job.wait_synced()
    for case in cases:
        assert rows(pair.target(task), case.name) == case.rows["ignore"] + AROUND
        check_record(job, task, case, case.name, "fail")


@pytest.mark.rung("marker")
def test_mended_by_hand(pair, make_job):
    """After the row that was in the way is gone the task goes on by a restart."""
    with_tables(pair, ["t"])
    job = make_job(pair, forward={"on_conflict": "fail"}).start()
    make_conflict(job, "forward", CASES[0], "t")
    job.wait_state("forward", "Failed")
    assert job.stop() == tw.TASK_FAILED
    with job.unseen("b") as cur:
        cur.execute("DELETE FROM t WHERE id = 5")
    job.start()
    job.wait_synced()
    compare.assert_same(pair)


@pytest.mark.rung("marker")
def test_a_single_failed_task_ends_the_run(pair, make_job):
    """With no other task left, run ends with exit code 1 and says why."""
    with_tables(pair, ["t"])
    job = make_job(pair, reverse={"enabled": False}).start(wait=["forward"])
    pair.b.sql("INSERT INTO t VALUES (5, 50, 5, 'target')")
    pair.a.sql("INSERT INTO t VALUES (5, 55, 6, 'source')")
    assert job.wait_exit() == tw.TASK_FAILED
    assert "insert_exists" in job.log_text()
    assert job.task("forward")["state"] == "Failed" and job.status()["running"] is False


# What applications do on both sides while twsync is stopped, and what must come of it.
TWO_WAY = {
    "insert_insert": ("INSERT INTO t VALUES (5, 50, 5, 'a')", "INSERT INTO t VALUES (5, 55, 6, 'b')",
                      but((5, 50, 5, "a")), but((5, 55, 6, "b"))),
    "insert_insert_unique": ("INSERT INTO t VALUES (5, 50, 5, 'a')", "INSERT INTO t VALUES (6, 50, 6, 'b')",
                             but((5, 50, 5, "a")), but((6, 50, 6, "b"))),
    "update_update": ("UPDATE t SET x = 7 WHERE id = 1", "UPDATE t SET x = 8 WHERE id = 1",
                      but((1, 10, 7, "one")), but((1, 10, 8, "one"))),
    "update_other_columns": ("UPDATE t SET x = 7 WHERE id = 1", "UPDATE t SET y = 'b' WHERE id = 1",
                             but((1, 10, 7, "b")), but((1, 10, 7, "b"))),
    "update_overlap": ("UPDATE t SET x = 7, y = 'a' WHERE id = 1", "UPDATE t SET u = 77, y = 'b' WHERE id = 1",
                       but((1, 77, 7, "a")), but((1, 77, 7, "b"))),
    "delete_delete": ("DELETE FROM t WHERE id = 1", "DELETE FROM t WHERE id = 1", but(gone=[1]), but(gone=[1])),
    "same_update": ("UPDATE t SET x = 7 WHERE id = 1", "UPDATE t SET x = 7 WHERE id = 1", but((1, 10, 7, "one")), but((1, 10, 7, "one"))),
}


@pytest.mark.parametrize("winner", ["a", "b"])
def test_both_sides_end_equal(pair, make_job, winner):
    """Under a pair of policies with a winner every conflict ends the same on both sides."""
    with_tables(pair, TWO_WAY)
    lose, win = "ignore", "overwrite"
    job = make_job(pair, forward={"on_conflict": win if winner == "a" else lose},
                   reverse={"on_conflict": win if winner == "b" else lose}).start()
    assert job.stop() == tw.OK
    for name, (on_a, on_b, *_) in TWO_WAY.items():
        pair.a.sql(on_a.replace(" t ", f" {name} "))
        pair.b.sql(on_b.replace(" t ", f" {name} "))
    job.start()
    job.wait_synced()
    expected = {name: case[2 if winner == "a" else 3] for name, case in TWO_WAY.items()}
    for node in pair.nodes:
        assert {name: rows(node, name) for name in TWO_WAY} == expected, f"node {node.letter}"
    compare.assert_same(pair)


@pytest.mark.parametrize("identity", ["full", "key"])
@pytest.mark.rung("marker")
def test_update_of_a_missing_row_with_large_value(pair, make_job, identity):
    """The insert that comes of it is whole, although the update did not carry the large value."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, n int, big text)")
    pair.a.sql("INSERT INTO t SELECT 1, 1, string_agg(md5(g::text), '') FROM generate_series(1, 1000) g")
    job = make_job(pair, forward={"identity": identity}, reverse={"identity": identity}).start()
    with job.unseen("b") as cur:
        cur.execute("DELETE FROM t")
    pair.a.sql("UPDATE t SET n = 2")
    job.wait_synced()
    compare.assert_same(pair)


@pytest.mark.rung("marker")
def test_own_changes_are_no_conflict(pair, make_job):
    """Rows written twice in a transaction, or in quick succession on both sides in turn."""
    with_tables(pair, ["t"])
    job = make_job(pair).start()
    for n in range(10):
        node = pair.nodes[n % 2]
        with node.transaction() as cur:
            cur.execute("UPDATE t SET x = x + 1 WHERE id = 1")
            cur.execute("UPDATE t SET x = x + 1, y = y || '!' WHERE id = 1")
            cur.execute("DELETE FROM t WHERE id = 2")
            cur.execute("INSERT INTO t VALUES (2, 20, %s, 'two')", (n,))
        job.wait_synced()
    assert [t["conflicts"] for t in job.status()["tasks"]] == [0, 0]
    compare.assert_same(pair)
