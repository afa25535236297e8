"""What [table] sections say: which rows and which operations of a table are carried, and what becomes of its columns."""

import pytest

import compare
import tw
from wait import wait_for

SHOP = """
CREATE TABLE orders (id int PRIMARY KEY, region text, amount numeric(10,2), email text, note text, big text);
INSERT INTO orders SELECT g, CASE g % 3 WHEN 0 THEN 'eu' WHEN 1 THEN 'us' END, g * 1.5, 'User' || g || '@X.org', 'n' || g,
  repeat(md5(g::text), 200) FROM generate_series(1, 3000) g;
"""
RULES = {"table public.orders": {"filter": "region = 'eu' AND amount < 4000", "set email": "lower(email)",
                                 "set note": "left(note, 1) || '***'"}}


def wanted(pair, where="coalesce(region = 'eu' AND amount < 4000, false)"):
    return pair.a.sql("SELECT id, region, amount, lower(email), left(note, 1) || '***', md5(big) FROM orders WHERE "
                      f"{where} ORDER BY id")


def found(pair):
    return pair.b.sql("SELECT id, region, amount, email, note, md5(big) FROM orders ORDER BY id")


@pytest.mark.parametrize("push", ("yes", "no"))
def test_filter_and_transforms(pair, make_job, push):
    """The copy and the stream carry the same rows, with the same values; a row may enter and leave the filter."""
    pair.a.sql(SHOP)
    job = make_job(pair, forward={"on_conflict": "fail", "push_filters": push}, **RULES).start()
    job.wait_synced()
    assert found(pair) == wanted(pair) != []
    for sql in ("INSERT INTO orders VALUES (5001, 'eu', 1, 'A@B', 'note', 'b'), (5002, 'us', 1, 'A@B', 'x', 'b'),"
                " (5003, NULL, 1, 'C@D', 'y', 'b')",
                "UPDATE orders SET region = 'eu' WHERE id IN (1, 2, 5002)",        # enter
                "UPDATE orders SET region = 'us' WHERE id IN (3, 6)",              # leave
                "UPDATE orders SET email = 'NEW@X', note = NULL WHERE id < 20",    # stay, in and out
                "UPDATE orders SET amount = amount + 10000 WHERE id = 9", "UPDATE orders SET region = NULL WHERE id = 12",
                "UPDATE orders SET id = -id WHERE id IN (15, 16)", "DELETE FROM orders WHERE id BETWEEN 18 AND 23",
                "UPDATE orders SET email = upper(email)", "UPDATE orders SET region = 'eu' WHERE id % 7 = 0",
                "UPDATE orders SET region = 'us' WHERE id = 30; UPDATE orders SET region = 'eu', note = 'again'"
                " WHERE id = 30; DELETE FROM orders WHERE id = 33; INSERT INTO orders VALUES (33, 'eu', 2, 'E', 'q', '')"):
        pair.a.sql(sql)
    job.wait_synced()
    assert found(pair) == wanted(pair)
    assert job.task("forward")["conflicts"] == 0
    pair.a.sql("TRUNCATE orders; INSERT INTO orders VALUES (1, 'eu', 1, 'X', 'x', ''), (2, 'us', 1, 'X', 'x', '')")
    job.wait_synced()
    assert found(pair) == wanted(pair) != []


def published(pair, job):
    """The filters that A has in its publication."""
    return dict(pair.a.admin("SELECT c.relname::text, pg_get_expr(m.prqual, c.oid) FROM pg_publication u JOIN "
                             "pg_publication_rel m ON m.prpubid = u.oid JOIN pg_class c ON c.oid = m.prrelid WHERE "
                             f"m.prqual IS NOT NULL AND u.pubname = 'twsync_{job.name}_forward'"))


PUSHED = """
CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE FUNCTION fine(int) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT $1 > 0';
CREATE TABLE t (id int PRIMARY KEY, x int, m mood); INSERT INTO t SELECT g, g % 4 - 1, 'ok' FROM generate_series(1, 20) g;
CREATE TABLE "o'dd ""t" (id int PRIMARY KEY, x int); INSERT INTO "o'dd ""t" SELECT id, x FROM t;
CREATE TABLE p (id int PRIMARY KEY, x int) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p DEFAULT;
INSERT INTO p SELECT id, x FROM t;
"""
FILTERS = {
    "plain": ({"filter": "x > 0 -- positive"}, {}, True), "drop": ({"drop": "x <= 0 OR t.x IS NULL"}, {}, True),
    "comparisons": ({"filter": "x BETWEEN 1 AND 100 AND (id <> 1000 OR x IN (1, 2, 3) OR x IS NULL) AND id::text <> 'n'"
                               " OR x IS DISTINCT FROM 1 AND NOT x <= 0"}, {}, False),
    "comparisons that cannot fail": ({"filter": "x BETWEEN 1 AND 100 AND (id <> 1000 OR x IN (1, 2, 3) OR x IS NULL) OR "
                                                "x IS DISTINCT FROM 1 AND NOT x <= 0"}, {}, True),
    "what may fail": ({"filter": "100 / (id + 1) > -1 AND x > 0"}, {}, False),
    "a function of the user": ({"filter": "public.fine(x)"}, {}, False), "a type of the user": ({"filter": "m = 'ok'"}, {}, False),
    "the operation": ({"filter": "x > 0 OR tw_operation = 'update'"}, {}, False),
    "not every operation": ({"filter": "x > 0", "operations": "insert, delete"}, {}, False),
    "not every operation of the task": ({"filter": "x > 0"}, {"operations": "insert, update"}, False),
}


@pytest.mark.parametrize("name", FILTERS)
def test_pushed(pair, make_job, name):
    """A leaves out rows by itself where it takes the filter, and where it refuses no update because of it."""
    if pair.a.one("SELECT current_setting('server_version_num')::int") < 150000:
        pytest.skip("publications have filters since 15")
    keys, forward, pushed = FILTERS[name]
    pair.a.sql(PUSHED)
    job = make_job(pair, forward={"on_conflict": "overwrite", "push_filters": "yes", **forward}, reverse={"on_conflict": "ignore"},
                   **{"table public.t": keys}).start()
    job.wait_synced()
    assert list(published(pair, job)) == (["t"] if pushed else [])
    pair.a.sql("UPDATE t SET x = -x WHERE id < 9; UPDATE t SET x = 3 WHERE id IN (12, 16); DELETE FROM t WHERE id IN (13, 16); "
               "INSERT INTO t VALUES (21, 1, 'ok'), (22, -1, 'sad')")
    job.wait_synced()
    if "operations" not in {**keys, **forward} and "tw_" not in str(keys):
        where = "m = 'ok'" if name == "a type of the user" else "x > 0"
        assert pair.b.sql("TABLE t ORDER BY 1") == pair.a.sql(f"SELECT * FROM t WHERE {where} ORDER BY 1") != []


def test_pushed_with_the_job(pair, make_job):
    """The publication follows the job file: at a reload, and at a start; partitions are left to twsync."""
    if pair.a.one("SELECT current_setting('server_version_num')::int") < 150000:
        pytest.skip("publications have filters since 15")
    odd = 'table public."o\'dd ""t"'
    pair.a.sql(PUSHED)
    job = make_job(pair, forward={"on_conflict": "overwrite", "push_filters": "yes"}, reverse={"on_conflict": "ignore"}, **{odd: {"filter":
                   "x > 0"}, "table public.p": {"filter": "x > 0"}, "table public.t": {"filter": "x > 1"}}).start()
    job.wait_synced()
    assert published(pair, job) == {'o\'dd "t': "(true AND COALESCE((x > 0), false))", "t": "(true AND COALESCE((x > 1), false))"}
    job.change(**{odd: {"filter": None, "set x": "x + 1"}, "table public.t": {"filter": "x > 0"}})
    job.command("reload", job.path)
    wait_for(lambda: published(pair, job) == {"t": "(true AND COALESCE((x > 0), false))"}, "the new filter is published")
    pair.a.sql("UPDATE t SET x = 1 WHERE id = 1; UPDATE \"o'dd \"\"t\" SET x = -7 WHERE id = 2; UPDATE p SET x = -x")
    job.wait_synced()
    assert pair.b.one("SELECT x FROM t WHERE id = 1") == 1 and pair.b.one("SELECT count(*) FROM p WHERE x < 0") == 0
    assert pair.b.one('SELECT x FROM "o\'dd ""t" WHERE id = 2') == -6
    job.stop()
    job.change(forward={"push_filters": "no"}).start()
    wait_for(lambda: published(pair, job) == {}, "no filter is published")
    pair.a.sql("ALTER TABLE t DROP COLUMN m; INSERT INTO t VALUES (31, 1), (32, -1)")
    job.wait_synced()
    assert pair.b.sql("SELECT id FROM t WHERE id > 30") == [(31,)]
    job.stop()
    assert job.release()[0] == 0
    compare.assert_untouched(pair, job.name)


def test_reverse_of_such_a_table(pair, make_job):
    """B's rows come to A, but not what B holds in columns that forward fills; new rows come whole."""
    pair.a.sql(SHOP)
    job = make_job(pair, forward={"on_conflict": "overwrite"}, reverse={"on_conflict": "ignore"}, **RULES).start()
    job.wait_synced()
    pair.b.sql("UPDATE orders SET amount = 7, email = 'b@b' WHERE id = 3; UPDATE orders SET email = 'only' WHERE id = 6; "
               "INSERT INTO orders VALUES (9001, 'eu', 1, 'B@B', 'whole', 'b'), (9002, 'asia', 1, 'B@B', 'w', 'b'); "
               "DELETE FROM orders WHERE id = 9")
    job.wait_synced()
    assert pair.a.sql("SELECT id, region, amount, email, note FROM orders WHERE id IN (3, 6, 9, 9001, 9002) ORDER BY 1") \
        == [(3, "eu", 7, "User3@X.org", "n3"), (6, "eu", 9, "User6@X.org", "n6"), (9001, "eu", 1, "B@B", "whole"),
            (9002, "asia", 1, "B@B", "w")]
    assert pair.b.one("SELECT email FROM orders WHERE id = 6") == "only"
    pair.a.sql("UPDATE orders SET amount = 8, email = 'From@A' WHERE id = 6")
    job.wait_synced()
    assert pair.b.sql("SELECT amount, email FROM orders WHERE id = 6") == [(8, "from@a")]
    assert [job.task(t)["conflicts"] for t in tw.TASKS] == [0, 0], "B's own email is not compared"


NAMES = {"table public.orders": {"drop": "tw_operation = 'delete' OR tw_table <> 'orders' OR orders.region = 'us'",
                                 "set note": "tw_operation || coalesce(tw_commit_time::date::text, ' copied') || tw_schema"}}


def test_names_of_the_change(pair, make_job):
    """Operation, commit time, schema and table are names; deletes can be dropped."""
    pair.a.sql(SHOP)
    job = make_job(pair, forward={"on_conflict": "overwrite"}, reverse={"on_conflict": "ignore"}, **NAMES).start()
    job.wait_synced()
    today = pair.a.one("SELECT (now() AT TIME ZONE 'UTC')::date::text")
    assert pair.b.sql("SELECT DISTINCT note, region FROM orders ORDER BY 2") == [("insert copiedpublic", "eu"),
                                                                                ("insert copiedpublic", None)]
    pair.a.sql("DELETE FROM orders WHERE id < 10; UPDATE orders SET amount = 1 WHERE id = 12; "
               "INSERT INTO orders VALUES (7000, 'eu', 1, 'x', 'y', 'z')")
    job.wait_synced()
    assert pair.b.one("SELECT count(*) FROM orders WHERE id < 10") == 6
    assert pair.b.sql("SELECT id, note FROM orders WHERE id IN (12, 7000) ORDER BY 1") == \
        [(12, f"update{today}public"), (7000, f"insert{today}public")]
    assert job.task("forward")["conflicts"] == 0


OPERATIONS = {
    "of the task": ({"operations": "insert"}, {}, {1, 2, 4, 5}, {"a", "b"}),
    "of the table": ({"operations": "insert"}, {"table public.t": {"operations": "insert, delete"}}, {1, 4, 5}, {"a"}),
    "of one task": ({}, {"table public.t": {"forward.operations": "update, delete, truncate"}}, {1, 4}, {"b"}),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(pair, make_job, name):
    """Of a table only the chosen operations are carried; its section goes before the task's word."""
    forward, rules, ids, _ = OPERATIONS[name]
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a'), (2, 'a'), (4, 'a'); "
               "CREATE TABLE u (id int PRIMARY KEY)")
    job = make_job(pair, forward=forward, **rules).start()
    job.wait_synced()
    pair.a.sql("UPDATE t SET v = 'b' WHERE id = 1; DELETE FROM t WHERE id = 2; INSERT INTO t VALUES (5, 'c'); "
               "INSERT INTO u VALUES (1)")
    pair.b.sql("INSERT INTO t VALUES (100, 'of b'); UPDATE t SET v = 'of b' WHERE id = 4")
    job.wait_synced()
    assert {i for i, in pair.b.sql("SELECT id FROM t")} == ids | {100}
    assert pair.b.one("SELECT v FROM t WHERE id = 1") == ("b" if name == "of one task" else "a")
    assert pair.b.one("SELECT count(*) FROM u") == 1
    assert pair.a.sql("SELECT id, v FROM t WHERE id > 3 ORDER BY 1") == \
        [(4, "a" if name == "of the table" else "of b"), (5, "c"), (100, "of b")]
    pair.a.sql("TRUNCATE t")
    job.wait_synced()
    assert (pair.b.one("SELECT count(*) FROM t") == 0) == (name == "of one task")


WRONG = {
    "syntax": ({"filter": "region = = 'eu'"}, "filter", 'syntax error at or near "="', "letter 10"),
    "column": ({"filter": "regoin = 'eu'"}, "filter", 'column "regoin" does not exist', "letter 1"),
    "umlaut before": ({"filter": "region = 'ü' AND nope"}, "filter", 'column "nope" does not exist', "letter 18"),
    "subquery": ({"filter": "id IN (SELECT 1)"}, "filter", "cannot use subquery"),
    "aggregate": ({"drop": "count(*) > 1"}, "drop", "aggregate functions are not allowed"),
    "not boolean": ({"drop": "amount"}, "drop", "must be type boolean"),
    "other table": ({"filter": "other.x = 1"}, "filter", "missing FROM-clause"),
    "type": ({"set amount": "now()"}, "set", "cannot cast type"),
    "no such column": ({"set nope": "1"}, "set", "there is no such column"),
    "key": ({"set id": "id + 1"}, "set", "part of a unique key"),
    "filter of a set column": ({"filter": "region = 'eu'", "set region": "lower(region)"}, "filter", "is set by the job"),
    "generated": ({"filter": "twice > 1"}, "filter", "is generated"),
}


@pytest.mark.parametrize("name", WRONG)
def test_refused(pair, make_job, name):
    """What cannot work is told beforehand, with its place; nothing is left behind."""
    pair.a.sql(SHOP + "ALTER TABLE orders ADD twice numeric GENERATED ALWAYS AS (amount * 2) STORED")
    keys, *words = WRONG[name]
    job = make_job(pair, **{"table public.orders": keys})
    code, out, err = job.command("check", job.path)
    assert code == tw.PRECHECK_FAILED and "RULES" in out, out + err
    for word in words:
        assert word in out, out
    compare.assert_untouched(pair, job.name)


BAD_JOBS = {
    "unknown key": ("[table public.t]\nfilte = x\n", 'unknown key "filte"'),
    "semicolon": ("[table public.t]\nfilter = true;drop table x\n", "cannot hold a ;"),
    "open quote": ("[table public.t]\nfilter = x = 'y\n", "closing ' is missing"),
    "two names": ("[table public.t, public.u]\nfilter = x\n", "one name"),
    "no schema": ("[table t]\nfilter = x\n", "lacks its schema"),
    "twice": ("[table public.t]\nfilter = x\n[table public.t]\ndrop = x\n", "listed twice"),
    "operation": ("[table public.t]\noperations = insert, updat\n", 'did you mean "update"'),
    "no operation": ("[table public.t]\noperations =\n", "has no value"),
    "set twice": ("[table public.t]\nset x = 1\nset \"x\" = 2\n", "given twice"),
    "set of two": ("[table public.t]\nset x y = 1\n", "one name"),
}


@pytest.mark.parametrize("name", BAD_JOBS)
def test_mistakes(pair, make_job, name):
    text, word = BAD_JOBS[name]
    job = make_job(pair)
    with open(job.path, "a") as f:
        f.write("\n" + text)
    code, out, err = job.command("show", job.path)
    assert code == tw.BAD_JOB and word in err, out + err
    assert job.path in err


def test_show(pair, make_job):
    """`show` prints the rules, as they can be read again, over several lines, with comments and odd names."""
    job = make_job(pair)
    with open(job.path, "a") as f:
        f.write('\n[table public."odd ] name"]   ; a comment\nfilter = a = \';\' -- sql\n    AND b <> "x = y" ; not this\n'
                'set "Mixed = Case" = lower("Mixed = Case")\noperations = update, insert\n\n[table public.log_*]\n'
                'drop: true\nreverse.operations = delete\n')
    code, out, err = job.command("show", job.path)
    assert code == 0, err
    assert '[table public."odd ] name"]' in out and "filter = a = ';' -- sql\n AND b <> \"x = y\"" in out
    assert 'set "Mixed = Case" = lower("Mixed = Case")' in out and "forward.operations = insert, update" in out
    assert "[table public.log_*]\ndrop = true\nreverse.operations = delete" in out
    again = tw.write_private(job.path + "2.ini", out)
    code, twice, err = job.command("show", again)
    assert code == 0 and twice == out, err
