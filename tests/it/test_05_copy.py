"""Schema and full copy: every type, key, constraint; exact; consistent under writes."""

import os
import re

import pytest

import compare
import pg
import tw
import writers
from wait import wait_for

SCHEMAS = 'ev, "Odd.Schema ""q"""'


def load_everything(node):
    with open(os.path.join(os.path.dirname(__file__), "everything.sql")) as f:
        node.sql(f.read())
    writers.load_everything(node)


def test_everything_covers_all_types(pair):
    """No built-in type is forgotten by everything.sql."""
    load_everything(pair.a)
    cannot = {"pg_node_tree", "pg_ndistinct", "pg_dependencies", "pg_mcv_list", "pg_brin_bloom_summary",
              "pg_brin_minmax_multi_summary", "gtsvector"}
    missing = {name for (name,) in pair.a.sql("""
        SELECT typname FROM pg_type t WHERE typnamespace = 'pg_catalog'::regnamespace AND typtype IN ('b', 'r', 'm')
          AND typrelid = 0 AND NOT (typelem <> 0 AND typsubscript = 'array_subscript_handler'::regproc
                                    AND typname LIKE '\\_%')
          AND NOT EXISTS (SELECT FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid
                          WHERE atttypid = t.oid AND attnum > 0 AND relnamespace IN
                                (SELECT oid FROM pg_namespace WHERE nspname = 'ev'))""")}
    assert missing <= cannot, missing - cannot


@pytest.mark.parametrize("settings", ["plain", "hostile"])
def test_everything(pair, make_job, settings):
    """The schema and all values arrive byte for byte, whatever the databases' defaults are."""
    load_everything(pair.a)
    if settings == "hostile":
        for flavour, node in enumerate(pair.nodes):
            node.set_hostile(flavour)
    job = make_job(pair, SCHEMAS).start()
    compare.assert_same(pair)
    status = job.task("forward")
    assert status["rung"] == pair.rung and status["phase"] == "stream"
    assert status["copy_tables_done"] == status["copy_tables"] > 40
    total = sum(pair.a.one(f"SELECT count(*) FROM ONLY {name}") for name in compare.tables(pair.a))
    assert status["copy_rows"] == total
    assert compare.sequence_values(pair.b) == compare.sequence_values(pair.a)
    job.wait_synced()
    for task in tw.TASKS:      # nothing of the copy came back, nothing was sent twice
        assert job.task(task)["rows"] == 0
    compare.assert_same(pair)


def test_composite_and_own_range(pair, job):
    """User types beyond enums and domains."""
    pair.a.sql("CREATE TYPE addr AS (street text, no int)")
    pair.a.sql("CREATE TYPE floatrange AS RANGE (subtype = float8)")
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, home addr, homes addr[], span floatrange)")
    pair.a.sql("""INSERT INTO t VALUES (1, '("a, b",1)', ARRAY[ROW('x', NULL)::addr, NULL], '[0.1,0.3)'), (2, NULL, NULL, NULL)""")
    job.start()
    compare.assert_same(pair)
    pair.b.sql("""UPDATE t SET home = '("""""",2)', span = 'empty' WHERE id = 2""")
    job.wait_synced()
    compare.assert_same(pair)


def test_table_details(pair, job):
    """What pg_dump tells of a table beyond columns and keys."""
    pair.a.sql("""CREATE TABLE t (id int PRIMARY KEY, big text, other text) WITH (fillfactor = 70, autovacuum_enabled = off)""")
    pair.a.sql("ALTER TABLE t ALTER big SET STORAGE EXTERNAL, ALTER other SET COMPRESSION pglz, ALTER id SET STATISTICS 7")
    pair.a.sql("CREATE UNIQUE INDEX again ON t (id, other)")
    pair.a.sql("CREATE TABLE without_columns ()")
    pair.a.sql("INSERT INTO without_columns DEFAULT VALUES")
    pair.a.sql("COMMENT ON TABLE t IS 'a; comment''s'")
    pair.a.sql("COMMENT ON COLUMN t.big IS 'large'")
    job.start()
    compare.assert_same(pair)


def test_nulls_not_distinct(pair, job):
    if pair.a.server.version() < 150000:
        pytest.skip("PostgreSQL 15")
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v int UNIQUE NULLS NOT DISTINCT)")
    job.start()
    compare.assert_same(pair)


def test_many_columns_long_names(pair, job):
    names = [f"{n:03}" + "é" * 30 for n in range(500)]
    columns = ", ".join(f'"{name}" int' for name in names)
    pair.a.sql(f'CREATE TABLE "{"t" * 63}" ("id" int PRIMARY KEY, {columns})')
    pair.a.sql(f'INSERT INTO "{"t" * 63}" (id, "{names[499]}") SELECT g, g FROM generate_series(1, 100) g')
    job.start()
    compare.assert_same(pair)
    pair.b.sql(f'UPDATE "{"t" * 63}" SET "{names[0]}" = 7 WHERE id < 50')
    job.wait_synced()
    compare.assert_same(pair)


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.rung("marker")
def test_copy_under_writes(pair, make_job, rng, workers):
    """The copy is of one moment and the stream goes on from there: A is written all the time."""
    pair.a.sql("CREATE TABLE account (id int PRIMARY KEY, balance bigint, filler text)")
    pair.a.sql("INSERT INTO account SELECT g, 1000, repeat('x', 100) FROM generate_series(1, 60000) g")
    pair.a.sql("CREATE TABLE log (account int, amount bigint)")
    pair.a.sql("INSERT INTO log SELECT g, 0 FROM generate_series(1, 60000) g")

    def transfer(cur):
        one, two, amount = rng.randrange(1, 60001), rng.randrange(1, 60001), rng.randrange(100)
        cur.execute("UPDATE account SET balance = balance - %s WHERE id = %s", (amount, one))
        cur.execute("UPDATE account SET balance = balance + %s WHERE id = %s", (amount, two))
        cur.execute("INSERT INTO log VALUES (%s, %s), (%s, %s)", (one, -amount, two, amount))

    job = make_job(pair, forward={"workers": workers})
    with writers.writing(writers.Writer(pair.a, transfer, 500)):
        job.start()
    job.wait_synced()
    compare.assert_same(pair)
    assert pair.b.one("SELECT sum(balance) FROM account") == 60_000_000
    assert pair.b.one("SELECT sum(amount) FROM log") == 0


def three_tables(pair):
    pair.a.sql("CREATE SCHEMA shop")
    for name in ("shop.one", "shop.two", "public.three"):
        pair.a.sql(f"CREATE TABLE {name} (id int PRIMARY KEY, v text)")
        pair.a.sql(f"INSERT INTO {name} VALUES (1, 'a')")


@pytest.mark.parametrize("objects, expected", [
    ({"schemas": "shop"}, {"shop.one", "shop.two"}),
    ({"schemas": "shop, public"}, {"shop.one", "shop.two", "public.three"}),
    ({"tables": "shop.two"}, {"shop.two"}),
    ({"schemas": "shop", "exclude": "shop.one", "tables": "public.three"}, {"shop.two", "public.three"}),
], ids=str)
@pytest.mark.rung("marker")
def test_selection(pair, make_job, objects, expected):
    three_tables(pair)
    job = make_job(pair, schemas=None, objects=objects).start()
    got = {name.replace('"', "") for name in compare.tables(pair.b)}
    assert got == expected
    for name in ("shop.one", "shop.two", "public.three"):
        pair.a.sql(f"INSERT INTO {name} VALUES (2, 'b')")
    job.wait_synced()
    for name in expected:
        assert pair.b.sql(f"SELECT * FROM {name} ORDER BY id") == [(1, "a"), (2, "b")]


@pytest.mark.parametrize("schema, copy", [(True, False), (False, True), (False, False)])
@pytest.mark.rung("marker")
def test_phases_are_optional(pair, make_job, schema, copy):
    """schema and copy can be left out; increments always run."""
    three_tables(pair)
    if not schema:
        pair.b.sql("CREATE SCHEMA shop")
        for name in ("shop.one", "shop.two"):
            pair.b.sql(f"CREATE TABLE {name} (id int PRIMARY KEY, v text)")
    keep = {"existing": "keep"} if not schema else {}
    job = make_job(pair, "shop", forward={"schema": schema, "copy": copy}, objects=keep).start()
    pair.a.sql("INSERT INTO shop.one VALUES (2, 'b')")
    job.wait_synced()
    assert pair.b.sql("SELECT * FROM shop.one ORDER BY id") == [(1, "a")] * copy + [(2, "b")]


@pytest.mark.rung("marker")
def test_existing_rows_are_kept(pair, make_job):
    """existing = keep: rows that B has stay, missing ones arrive."""
    pair.both("CREATE TABLE t (id int PRIMARY KEY, v text)")
    pair.a.sql("INSERT INTO t VALUES (1, 'a'), (2, 'a')")
    pair.b.sql("INSERT INTO t VALUES (2, 'b'), (3, 'b')")
    make_job(pair, objects={"existing": "keep"}).start()
    assert pair.b.sql("SELECT * FROM t ORDER BY id") == [(1, "a"), (2, "b"), (3, "b")]


def test_rows_hidden_by_policy(pair, job):
    """Row level security must not make rows fewer without a word."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v text)")
    pair.a.sql("INSERT INTO t SELECT g, 'v' FROM generate_series(1, 10) g")
    pair.a.sql("ALTER TABLE t ENABLE ROW LEVEL SECURITY")
    job.start()
    pair.a.sql("UPDATE t SET v = 'w' WHERE id = 1")
    job.wait_synced()
    compare.assert_contents(pair)
    assert pair.b.one("SELECT count(*) FROM t", user="postgres") == 10


@pytest.mark.rung("marker")
def test_large_value_of_16_mb(pair, job):
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, n int, v bytea)")
    value = os.urandom(16 << 20)
    pair.a.sql("INSERT INTO t VALUES (1, 1, %s)", (value,))
    job.start()
    pair.a.sql("INSERT INTO t VALUES (2, 2, %s)", (value,))
    pair.b.sql("UPDATE t SET n = 3 WHERE id = 1")
    job.wait_synced()
    compare.assert_contents(pair)


@pytest.mark.rung("marker")
def test_nothing_selected(pair, make_job):
    """A schema without tables is no job."""
    pair.a.sql("CREATE SCHEMA hollow")
    job = make_job(pair, "hollow")
    code, out, err = job.command("run", job.path)
    assert code == tw.PRECHECK_FAILED and "no table is selected" in out + err
    compare.assert_untouched(pair, job.name)


def test_large_tables_in_parts(pair, make_job):
    """One big table is copied by several workers at once, each row once."""
    pair.a.sql("CREATE TABLE big (id int, v text)")     # keyless: a row copied twice would show
    pair.a.sql("INSERT INTO big SELECT g, repeat(md5(g::text), 4) FROM generate_series(1, 200000) g")
    job = make_job(pair, forward={"workers": 4}).start()
    compare.assert_same(pair)
    assert job.task("forward")["copy_rows"] == 200000
    wait_for(lambda: pg.lsn_int(job.task("forward")["applied_lsn"]) > 0, "a position")


def test_frozen(pair, make_job):
    """Small tables are written as VACUUM FREEZE would leave them."""
    pair.a.sql("CREATE TABLE f (id int PRIMARY KEY); INSERT INTO f SELECT generate_series(1, 5000)")
    pair.b.admin("CREATE EXTENSION pg_visibility")
    make_job(pair).start()
    assert pair.b.admin("SELECT all_visible > 20, all_frozen > 20 FROM pg_visibility_map_summary('public.f')") == \
        [(True, True)]


def test_binary(pair, make_job):
    """A table that is large enough for it travels in binary; what would not mean the same there goes as text."""
    for node in pair.nodes:
        node.sql("CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TYPE two AS (a int, b text);"
                 "CREATE DOMAIN small AS int CHECK (VALUE < 1000000)")
    pair.b.sql("CREATE TABLE other (a bigint, filler text)")
    kinds = {
        "plain": "g AS a, g::numeric / 7 AS b, now() AS c, md5(g::text)::uuid AS d, ARRAY[g, NULL] AS e, "
                 "to_jsonb(g) AS f, 'NaN'::float8 AS h",
        "enum": "(ARRAY['ok', 'sad'])[g % 2 + 1]::mood AS a, g::small AS b", "other": "g AS a",
        "composite": "(g, 'x')::two AS a", "names": "'pg_class'::regclass AS a", "enums": "ARRAY['ok'::mood] AS a"}
    for name, columns in kinds.items():
        pair.a.sql(f"CREATE TABLE {name} AS SELECT {columns}, repeat('\u00e9', 300) AS filler "
                   "FROM generate_series(1, 3000) g")
    pair.b.admin(f"ALTER DATABASE {pair.b.dbname} SET log_statement = 'all'")
    make_job(pair, objects={"existing": "keep"}).start()
    compare.assert_contents(pair)
    with open(pair.b.server.log) as f:
        said = re.findall(rf'@{pair.b.dbname} .*COPY "public"\."(\w+)" .*FORMAT (\w+)', f.read())
    assert dict(said) == {"plain": "binary", "enum": "binary", "other": "text", "composite": "text", "names": "text",
                          "enums": "text"}
