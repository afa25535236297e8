"""The cases of test 22 where schemas and a column are called otherwise on B: equal but for the names."""

import re

import pytest

import compare
from test_22_ddl import (BASE, CASES, LATER, NOT_YET, SELECTED, UNMEETABLE, assert_calm, run_step, settle, since_15)

assert since_15

pytestmark = pytest.mark.rung("origin")

MAP = {"schema public": {"to": '"Pub B"'}, "schema two": {"to": "zwei"}, "table *.*": {"rename v": '"W b"'}}

# What the README says of mapping: bodies of functions, and views, are not rewritten where they name a column.
NOT_MAPPED = {"view: views", "view: view over view", "routine: triggers", "schema: drop and create",
              "setting: search path"}


def on_b(step):
    """A step that the case wants on B, by the names there."""
    step = re.sub(r"\bv\b(?!')", '"W b"', step).replace("two.", "zwei.")
    return 'SET search_path = "Pub B"; ' + step.replace("public.", '"Pub B".')


def rename_back(node):
    """B by A's names, once the job has stopped."""
    for table, in node.admin("SELECT a.attrelid::regclass::text FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid "
                             "WHERE a.attname = 'W b' AND a.attinhcount = 0 AND c.relkind IN ('r', 'p', 'v', 'c')"):
        kind = node.admin("SELECT relkind FROM pg_class WHERE oid = %s::regclass", (table,))[0][0]
        what = {"v": "VIEW", "c": "TYPE"}.get(kind, "TABLE")
        node.admin(f'ALTER {what} {table} RENAME {"ATTRIBUTE" if kind == "c" else "COLUMN"} "W b" TO v')
    node.admin('DROP SCHEMA public CASCADE; ALTER SCHEMA "Pub B" RENAME TO public')
    if node.admin("SELECT to_regnamespace('zwei') IS NOT NULL")[0][0]:
        node.admin("ALTER SCHEMA zwei RENAME TO two")


@pytest.mark.parametrize("name", [name for name in CASES if name not in NOT_YET["test_case"] and name not in NOT_MAPPED])
def test_case(pair, make_job, name):
    pair.a.sql(BASE)
    job = make_job(pair, SELECTED, **MAP).start()
    for n, step in enumerate(CASES[name]):
        step = step.replace("{role}", f"role_{pair.a.dbname}")
        if not step.startswith("b:"):
            run_step(pair.a, step)
        else:
            job.wait_synced()
            pair.b.sql(on_b(step[2:]))
            if name in UNMEETABLE:
                job.wait_synced()
        pair.a.sql("INSERT INTO steady VALUES (%s, 1, 'new')", (5000 + 2 * n,))
        pair.b.sql(on_b("INSERT INTO steady VALUES (%s, 1, 'new'); UPDATE steady SET v = 'b' WHERE id = 7"),
                   (5001 + 2 * n,))
    settle_mapped(job, name in LATER)
    assert_calm(job, restarts=1)
    job.stop()
    rename_back(pair.b)
    compare.assert_same(pair)


def settle_mapped(job, later):
    """All has arrived, and no table waits to be copied."""
    settle(job)
    if later:
        job.wait_synced()
