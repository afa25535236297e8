"""Which tables belong to a job: names, patterns, exclusions."""

import pytest

import compare
from wait import wait_for


def tables(node):
    return [f"{s}.{t}" for s, t in node.sql(
        "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN "
        "('r', 'p') AND n.nspname !~ '^(pg_|twsync|information_schema)' ORDER BY 1, 2")]


SETUP = """
CREATE SCHEMA sales_eu; CREATE SCHEMA sales_us; CREATE SCHEMA other; CREATE SCHEMA "a*b"; CREATE SCHEMA "a.b";
CREATE TABLE sales_eu.orders (id int PRIMARY KEY); CREATE TABLE sales_us.orders (id int PRIMARY KEY);
CREATE TABLE sales_us.tmp_1 (id int PRIMARY KEY); CREATE TABLE other.log_1 (id int PRIMARY KEY);
CREATE TABLE other.log_22 (id int PRIMARY KEY); CREATE TABLE other.log (id int PRIMARY KEY);
CREATE TABLE other."LOG_x" (id int PRIMARY KEY); CREATE TABLE other."log_*" (id int PRIMARY KEY);
CREATE TABLE other."log_é" (id int PRIMARY KEY); CREATE TABLE "a*b".t (id int PRIMARY KEY);
CREATE TABLE "a.b"."c(d" (id int PRIMARY KEY); CREATE VIEW other.log_view AS SELECT 1 AS id;
"""

CHOICES = {
    "schemas": ({"schemas": "sales_*"}, ["sales_eu.orders", "sales_us.orders", "sales_us.tmp_1"]),
    "one letter": ({"schemas": "sales_?s"}, ["sales_us.orders", "sales_us.tmp_1"]),
    "tables": ({"tables": "other.log_*"}, ["other.log_*", "other.log_1", "other.log_22", "other.log_é"]),
    "a letter of two bytes": ({"tables": "other.log_?"}, ["other.log_*", "other.log_1", "other.log_é"]),
    "a quoted star": ({"tables": 'other."log_*"'}, ["other.log_*"]),
    "any schema": ({"tables": "*.orders"}, ["sales_eu.orders", "sales_us.orders"]),
    "excluded": ({"schemas": "sales_*", "exclude": "*.tmp_*"}, ["sales_eu.orders", "sales_us.orders"]),
    "excluded of tables": ({"tables": "other.log*", "exclude": "other.log_?"}, ["other.log", "other.log_22"]),
    "odd letters": ({"tables": '*."c(d", "a*b".*'}, ["a*b.t", "a.b.c(d"]),
    "dots are dots": ({"tables": "a?b.?(d, \"a*b\".t"}, ["a*b.t", "a.b.c(d"]),
}


@pytest.mark.rung("origin")
@pytest.mark.parametrize("name", CHOICES)
def test_patterns(pair, make_job, name):
    """What a pattern means at the start is what it means for tables that come later, and for reverse."""
    objects, wanted = CHOICES[name]
    pair.a.sql(SETUP)
    job = make_job(pair, None, objects=objects).start()
    assert tables(pair.b) == sorted(wanted)
    job.wait_synced()
    pair.a.sql("CREATE TABLE sales_us.orders2 (id int PRIMARY KEY); CREATE TABLE other.log_3 (id int PRIMARY KEY); "
               "CREATE TABLE other.log_333 (id int PRIMARY KEY); CREATE TABLE sales_us.tmp_2 (id int PRIMARY KEY); "
               "CREATE SCHEMA sales_xs; CREATE TABLE sales_xs.orders (id int PRIMARY KEY); "
               "INSERT INTO sales_xs.orders VALUES (1)")
    later = {"schemas": ["sales_us.orders2", "sales_us.tmp_2", "sales_xs.orders"],
             "one letter": ["sales_us.orders2", "sales_us.tmp_2", "sales_xs.orders"],
             "tables": ["other.log_3", "other.log_333"], "a letter of two bytes": ["other.log_3"],
             "any schema": ["sales_xs.orders"], "excluded": ["sales_us.orders2", "sales_xs.orders"],
             "excluded of tables": ["other.log_333"]}.get(name, [])
    job.wait_synced()
    assert tables(pair.b) == sorted(wanted + later)
    found = pair.b.sql("SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = "
                       "c.relnamespace WHERE c.relkind = 'r' AND n.nspname !~ '^(pg_|twsync|information)'")
    for n, (table,) in enumerate(found):
        pair.b.sql(f"INSERT INTO {table} VALUES ({100 + n})")
    job.wait_synced()
    for table, in found:
        rows = f"SELECT id FROM {table} ORDER BY 1"
        assert pair.a.sql(rows) == pair.b.sql(rows), table


def test_nothing_meets_a_pattern(pair, make_job):
    """A pattern that selects nothing is a mistake, named by the precheck; so is one under on_conflict_..."""
    pair.a.sql(SETUP)
    job = make_job(pair, None, objects={"tables": "other.log, other.lag_*"})
    code, out, err = job.command("check", job.path)
    assert code == 3 and '"other"."lag_*"' in out, out + err
    job = make_job(pair, None, objects={"tables": "other.log"}, forward={"on_conflict_ignore": "other.x*"})
    code, out, err = job.command("check", job.path)
    assert code == 3 and "POLICY_TABLES" in out, out + err


def test_policy_by_pattern(pair, make_job):
    """A policy given to a pattern is that of each table that meets it, and of no other."""
    pair.a.sql(SETUP)
    job = make_job(pair, "other", forward={"on_conflict_ignore": "other.log_*"}).start()
    job.wait_synced()
    with job.unseen("b") as cur:
        cur.execute("INSERT INTO other.log_1 VALUES (5); INSERT INTO other.log VALUES (5)")
    pair.a.sql("INSERT INTO other.log_1 VALUES (5)")
    wait_for(lambda: job.task("forward")["conflicts"] == 1, "the conflict is recorded")
    assert job.conflicts("forward")[0]["policy"] == "ignore" and job.task("forward")["state"] == "Running"
    pair.a.sql("INSERT INTO other.log VALUES (5)")
    job.wait_state("forward", "Failed")
