"""Schema synchronization of what is no table: functions, views, triggers, rules, policies and the like."""

import contextlib
import itertools
import os
import re

import psycopg2
import pytest

import compare
import tw
from wait import wait_for

OBJECTS = 'ob, "Odd. ""ob"", é"'
SCHEMAS = {"shop": "shop", "ledger": "ledger, ledger_old", "content": "content, content_api"}

USERS = "n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'twsync')"
RELATION = "quote_ident(n.nspname) || '.' || quote_ident(c.relname)"


@pytest.fixture(autouse=True)
def since_15(pair):
    """The files use what came with PostgreSQL 14 and 15."""
    if pair.a.server.version() < 150000:
        pytest.skip("PostgreSQL 15")


def load(node, name):
    """Runs schemas/NAME.sql, one transaction."""
    with open(os.path.join(os.path.dirname(__file__), "schemas", name + ".sql")) as f:
        node.sql(f.read())


def warnings(job):
    """What the job warned of beyond its precheck."""
    return [line.split("warning: ", 1)[1] for line in job.log_text().splitlines()
            if "warning: " in line and "precheck" not in line]


def count_of(node, catalog):
    """How many of these there are in schemas of users; of triggers and rules those that users made."""
    source = {
        "view": "pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE relkind IN ('v', 'm')",
        "function": "pg_proc c JOIN pg_namespace n ON n.oid = pronamespace WHERE true",
        "trigger": "pg_trigger t JOIN pg_class c ON c.oid = tgrelid JOIN pg_namespace n ON n.oid = relnamespace"
                   " WHERE NOT tgisinternal AND tgparentid = 0",
        "rule": "pg_rewrite r JOIN pg_class c ON c.oid = ev_class JOIN pg_namespace n ON n.oid = relnamespace"
                " WHERE rulename <> '_RETURN'",
    }[catalog]
    return node.admin(f"SELECT count(*) FROM {source} AND {USERS}")[0][0]


def view_rows(node):
    """The rows of each view by name; None for a materialized view that is not filled."""
    views = node.admin(f"""SELECT {RELATION}, relispopulated FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
                           WHERE relkind IN ('v', 'm') AND {USERS}""")
    return {name: filled and sorted(row for row, in node.admin(f"SELECT v::text FROM {name} v"))
            for name, filled in views}


def assert_all_same(pair):
    """Schema, rows, and what the views show."""
    compare.assert_same(pair)
    assert view_rows(pair.b) == view_rows(pair.a)


def fails(node, query, says):
    """The statement is refused, by a trigger or a check of the application."""
    with pytest.raises(psycopg2.Error, match=says):
        node.sql(query)


# ---- all arrives

@pytest.mark.rung("origin")
@pytest.mark.parametrize("settings", ["plain", "hostile"])
def test_objects(pair, make_job, settings):
    """Every kind of object, in every variant and under odd names, whatever the databases' defaults are."""
    load(pair.a, "objects")
    if settings == "hostile":
        for flavour, node in enumerate(pair.nodes):
            node.set_hostile(flavour)
    job = make_job(pair, OBJECTS).start()
    compare.assert_same(pair)
    assert warnings(job) == []
    filled = "SELECT relname, relispopulated FROM pg_class WHERE relkind = 'm' ORDER BY 1"
    assert pair.b.admin(filled) == pair.a.admin(filled)
    job.wait_synced()
    assert [job.task(task)["rows"] for task in tw.TASKS] == [0, 0]


def use_shop(pair):
    """Orders on both sides: each trigger does its work once, on the side of the write."""
    order = """SELECT shop.place_order(%s, %s, '[{"product": %s, "quantity": 5}, {"product": %s, "quantity": 1}]')"""
    pair.a.sql(order, (1001, 1, 1, 2))
    pair.b.sql(order, (2001, 2, 11, 12))
    pair.a.sql("CALL shop.cancel(1)")
    pair.b.sql("UPDATE shop.catalogue SET name = 'Renamed', price = 1 WHERE id = 21")
    pair.b.sql("UPDATE shop.order_lines SET quantity = 7 WHERE order_id = 20 AND line = 1")
    fails(pair.b, "TRUNCATE shop.orders CASCADE", "never emptied")
    pair.b.sql("DELETE FROM shop.audit")
    yield
    for node in pair.nodes:
        assert node.sql("""SELECT p.id FROM shop.products p WHERE stock + (SELECT coalesce(sum(quantity), 0)
                           FROM shop.order_lines l WHERE l.product = p.id) <> 1000""") == []
        assert node.sql("""SELECT id FROM shop.order_sums s WHERE total <>
                           coalesce((SELECT sum(amount) FROM shop.order_lines l WHERE l.order_id = s.id), 0)""") == []
        for order_id in ("1001", "2001"):
            assert node.sql("""SELECT action, changed FROM shop.audit WHERE table_name = 'shop.orders'
                               AND after ->> 'id' = %s ORDER BY at""", (order_id,))[1:] == [("U", ["total"])]
        assert node.sql("SELECT (product).slug FROM shop.search('rename')") == [("renamed",)]


def use_ledger(pair):
    """Transfers on both sides; what the constraint triggers forbid on A they forbid on B."""
    pair.a.sql("SELECT ledger.transfer('2024-06-07', '4000', '1200', 12.5)")
    pair.b.sql("SELECT ledger.transfer('2024-09-01', '1000', '6000', 3)")
    for node in pair.nodes:
        fails(node, "SELECT ledger.transfer('2024-02-01', '2000.01', '1200', 1)", "is closed")
        fails(node, "SELECT ledger.post(gen_random_uuid(), '2024-02-01', ROW('1000', 'debit', 1)::ledger.leg)",
              "out of balance by 1")
        fails(node, "UPDATE ledger.entries SET amount = 1", "not changed: post a reversal")
    pair.b.sql("SELECT ledger.post(gen_random_uuid(), '2023-10-01', ROW('6000', 'debit', 1)::ledger.leg)")
    yield
    for node in pair.nodes:
        assert node.sql("SELECT account, count(*) FROM ledger.entries GROUP BY 1 EXCEPT"
                        " SELECT account, entries FROM ledger.counters") == []
        assert node.one("SELECT count(*) FROM ledger.entries") == 605
    for node in pair.nodes:
        node.sql("CALL ledger.close_month()")


def use_content(pair):
    """Items changed on both sides keep their versions; a tenant's user sees on B what he sees on A."""
    change = """UPDATE content.items SET body = '[{"type": "p", "text": "new"}]' WHERE slug = %s"""
    pair.a.sql(change, ("item-5",))
    pair.b.sql(change, ("item-8",))
    pair.b.sql("DELETE FROM content.published WHERE slug = 'item-11'")
    pair.a.sql("INSERT INTO content_api.drafts (id, tenant) VALUES ('00000000-0000-0000-0000-000000000001', 2)")
    fails(pair.b, "UPDATE content.items SET slug = 'No slug'", "looks")
    fails(pair.b, """UPDATE content.items SET body = '[{"type": "list", "items": [1]}]'""", "blocks")
    yield
    seen = []
    for node in pair.nodes:
        versions = node.one("SELECT count(*) FROM content.versions")
        assert node.one("SELECT sum(version - 1) FROM content.items") == versions
        assert node.one("SELECT state FROM content.items WHERE slug = 'item-11'") == "archived"
        node.sql("GRANT USAGE ON SCHEMA content, content_api TO tw_plain; GRANT SELECT ON content.items, content.users,"
                 " content_api.items TO tw_plain")
        with node.transaction(user="tw_plain") as cur:
            cur.execute("SET content.tenant = 2; SELECT slug, version FROM content.items ORDER BY 1")
            seen.append(cur.fetchall())
            cur.execute("SELECT content_api.item('item-5')")
            seen[-1] += cur.fetchall()
    assert seen[0] == seen[1] and 5 < len(seen[0]) < 15


@pytest.mark.rung("origin")
@pytest.mark.parametrize("name", SCHEMAS)
def test_application(pair, make_job, name):
    """A schema as applications have it: it arrives, is used on both sides, and a second start leaves it alone."""
    load(pair.a, name)
    job = make_job(pair, SCHEMAS[name]).start()
    assert_all_same(pair)
    assert warnings(job) == []
    use = {"shop": use_shop, "ledger": use_ledger, "content": use_content}[name](pair)
    next(use)
    job.wait_synced()
    assert_all_same(pair)
    next(use, None)
    job.wait_synced()
    assert_all_same(pair)
    assert [t["conflicts"] for t in job.status()["tasks"]] == [0, 0]
    before = compare.schema_of(pair.b)
    assert job.stop() == tw.OK
    job.start()
    job.wait_synced()
    assert compare.schema_of(pair.b) == before and warnings(job) == []
    assert_all_same(pair)


RINGS = {
    "check of its row": """
        CREATE FUNCTION s.good(s.t) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT $1.id > 0';
        ALTER TABLE s.t ADD CONSTRAINT good CHECK (s.good(t))""",
    "default from itself": """
        CREATE FUNCTION s.next() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT max(id) + 1 FROM s.t; END;
        ALTER TABLE s.t ALTER id SET DEFAULT s.next()""",
    "body that counts on a key": """
        CREATE FUNCTION s.g() RETURNS SETOF text LANGUAGE sql BEGIN ATOMIC SELECT v FROM s.t GROUP BY id; END""",
    "type of a view's row": """
        CREATE VIEW s.v AS SELECT v, count(*) FROM s.t GROUP BY id;
        CREATE TYPE s.of_view AS (v s.v, n int);
        CREATE DOMAIN s.d AS s.of_view[];
        CREATE FUNCTION s.f(s.d) RETURNS int LANGUAGE sql AS 'SELECT 1'""",
    "inlined into an index": """
        CREATE FUNCTION s.z(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 + 1';
        CREATE FUNCTION s.a(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT s.z($1)';
        CREATE INDEX i ON s.t (s.a(id)); ALTER TABLE s.t ADD g int GENERATED ALWAYS AS (s.a(id)) STORED""",
    "sequence of an identity column": """
        CREATE TABLE s.i (id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, n serial);
        CREATE FUNCTION s.a() RETURNS bigint LANGUAGE sql
            BEGIN ATOMIC SELECT nextval('s.i_id_seq'::regclass) + nextval('s.i_n_seq'::regclass); END;
        CREATE FUNCTION s.index(i regclass DEFAULT 's.t_pkey'::regclass) RETURNS int LANGUAGE sql AS 'SELECT 1';
        CREATE VIEW s.v AS SELECT last_value FROM s.i_id_seq;
        CREATE TABLE s.u (id bigint PRIMARY KEY DEFAULT s.a())""",
    "range with a function": """
        CREATE FUNCTION s.diff(date, date) RETURNS float8 LANGUAGE sql IMMUTABLE AS 'SELECT ($1 - $2)::float8';
        CREATE TYPE s.days AS RANGE (subtype = date, subtype_diff = s.diff);
        CREATE TYPE s.alone AS RANGE (subtype = date, subtype_diff = s.diff, multirange_type_name = s.some);
        CREATE FUNCTION s.word() RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$;
        CREATE DOMAIN s.d AS text DEFAULT s.word(); ALTER TABLE s.t ADD r s.days, ADD d s.d""",
    "materialized view through a view": """
        CREATE VIEW s.v AS SELECT 1::bigint AS n;
        CREATE MATERIALIZED VIEW s.a AS SELECT n FROM s.v;
        CREATE MATERIALIZED VIEW s.b AS SELECT count(*) AS n FROM s.t;
        CREATE OR REPLACE VIEW s.v AS SELECT n FROM s.b""",
    "type's check on another type": """
        CREATE TYPE s.pair AS (a int, b int);
        CREATE FUNCTION s.in_order(s.pair) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT $1.a < $1.b';
        CREATE DOMAIN s.ordered AS s.pair CHECK (s.in_order(VALUE));
        CREATE FUNCTION s.width(s.ordered) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT ($1).b - ($1).a';
        CREATE DOMAIN s.narrow AS s.ordered CHECK (s.width(VALUE) < 9);
        ALTER TABLE s.t ADD o s.narrow DEFAULT '(1,2)', ADD w int GENERATED ALWAYS AS (3) STORED""",
}


@pytest.mark.rung("origin")
@pytest.mark.parametrize("name", RINGS)
def test_order(pair, make_job, name):
    """What needs what is found out, also where a table and a function need each other."""
    pair.a.sql(f"CREATE SCHEMA s; CREATE TABLE s.t (id int PRIMARY KEY, v text); {RINGS[name]};"
               "INSERT INTO s.t (id, v) VALUES (1, 'x'), (2, 'y')")
    for view in ("b", "a"):             # their rows are of the time they are filled
        if name.startswith("materialized"):
            pair.a.sql(f"REFRESH MATERIALIZED VIEW s.{view}")
    job = make_job(pair, "s").start(wait=())
    wait_for(lambda: job.task("reverse").get("state") == "Running" or job.task("forward").get("last_error"), "a start")
    assert not job.task("forward").get("last_error")
    assert_all_same(pair)
    assert warnings(job) == []


OUTSIDE = {
    "cast": """
        CREATE TYPE s.c AS (a int);
        CREATE FUNCTION s.c_to_int(s.c) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1.a';
        CREATE CAST (s.c AS int) WITH FUNCTION s.c_to_int(s.c);
        ALTER TABLE s.t ADD c s.c, ADD g int GENERATED ALWAYS AS (c::int) STORED""",
    "operator class": """
        CREATE FUNCTION s.cmp(int, int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT btint4cmp($2, $1)';
        CREATE OPERATOR CLASS s.back FOR TYPE int USING btree AS OPERATOR 1 >, OPERATOR 2 >=, OPERATOR 3 =,
            OPERATOR 4 <=, OPERATOR 5 <, FUNCTION 1 s.cmp(int, int);
        CREATE INDEX i ON s.t (id s.back)""",
    "text search configuration": """
        CREATE TEXT SEARCH CONFIGURATION s.conf (COPY = pg_catalog.simple);
        CREATE INDEX i ON s.t USING gin (to_tsvector('s.conf'::regconfig, v))""",
    "collation": """
        CREATE COLLATION s.c FROM "C"; ALTER TABLE s.t ALTER v TYPE text COLLATE s.c""",
}


@pytest.mark.rung("origin")
@pytest.mark.parametrize("name", OUTSIDE)
def test_what_tables_need_beyond(pair, make_job, name):
    """A table counts on an object of a kind that is not made: made all the same, or refused before any write."""
    pair.a.sql(f"CREATE SCHEMA s; CREATE TABLE s.t (id int PRIMARY KEY, v text); {OUTSIDE[name]}")
    job = make_job(pair, "s").start(wait=())
    wait_for(lambda: not job.alive() or job.task("reverse").get("state") == "Running"
             or job.task("forward").get("last_error"), "a start or an end")
    if job.alive():
        assert not job.task("forward").get("last_error")
        compare.assert_same(pair)
    else:
        assert job.process.returncode == tw.PRECHECK_FAILED
        compare.assert_untouched(pair, job.name)


@pytest.mark.rung("origin")
def test_view_and_function_in_a_ring(pair, make_job):
    """Each needs the other, which only CREATE OR REPLACE brings about: they may be left out, rows may not."""
    pair.a.sql("""CREATE SCHEMA s; CREATE TABLE s.t (id int PRIMARY KEY); INSERT INTO s.t VALUES (1);
                  CREATE FUNCTION s.f() RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint';
                  CREATE VIEW s.v AS SELECT id, s.f() AS n FROM s.t;
                  CREATE OR REPLACE FUNCTION s.f() RETURNS bigint LANGUAGE sql
                      BEGIN ATOMIC SELECT count(*) FROM s.v; END""")
    job = make_job(pair, "s").start()
    compare.assert_contents(pair)
    assert bool(warnings(job)) == bool(compare.schema_differences(pair))


# ---- twsync is killed

def waits_on_b(pair, job):
    """A session of the job on B waits for a lock."""
    wait_for(lambda: pair.b.admin("SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND"
                                  " wait_event_type = 'Lock' AND application_name LIKE %s", (f"twsync:{job.name}:%",)),
             "twsync is held on b")


GATE = "SELECT pg_advisory_xact_lock(19)"
HELD = {        # what somebody does on B, one after the other, that holds twsync in the middle of a section
    "before": ["CREATE FUNCTION shop.touch() RETURNS int LANGUAGE sql AS 'SELECT 1'"],
    "keys": ["CREATE TABLE shop.order_sums ()"],
    "rows": [GATE],
    "last": [GATE, "LOCK TABLE shop.audit IN ROW EXCLUSIVE MODE"],      # the rule on it comes after the triggers
}


@pytest.mark.rung("origin")
@pytest.mark.parametrize("section", HELD)
def test_killed_in_a_section(pair, make_job, section):
    """Killed while a section is half done, with A being written meanwhile; the next start does the rest."""
    load(pair.a, "shop")
    pair.a.sql("CREATE MATERIALIZED VIEW shop.gate AS SELECT pg_advisory_xact_lock_shared(19)::text AS held")
    pair.b.sql("CREATE SCHEMA shop; COMMENT ON SCHEMA shop IS 'Customers, products, orders'")
    job = make_job(pair, "shop")
    with contextlib.ExitStack() as held:
        for n, query in enumerate(HELD[section]):
            conn = held.enter_context(contextlib.closing(pair.b.connect(autocommit=False)))
            conn.cursor().execute(query)
            if n == 0:
                job.start(wait=())
            else:               # past what this lock would have held before
                before.rollback()
                wait_for(lambda: pair.b.admin("SELECT 1 FROM pg_trigger WHERE tgname = 'words'"), "the triggers")
            waits_on_b(pair, job)
            before = conn
        job.kill()
    pair.a.sql("""SELECT shop.place_order(1001, 1, '[{"product": 1, "quantity": 5}]')""")
    job.start()
    job.wait_synced()
    pair.both("REFRESH MATERIALIZED VIEW shop.sales")
    assert_all_same(pair)
    assert warnings(job) == []


@pytest.mark.rung("origin")
def test_killed_at_test_points(pair, make_job):
    """Killed before one entry after another, further each time (a debug build has these points)."""
    with open(tw.BINARY, "rb") as f:
        if b"TWSYNC_FAULT" not in f.read():
            pytest.skip("a debug build")
    load(pair.a, "shop")
    job = make_job(pair, "shop")
    half_done = False
    for killed, nth in enumerate(itertools.count(1, 7), start=1):
        job.start(wait=(), TWSYNC_FAULT=f"shape.run:{nth}:kill")

        def is_killed():
            return job.log_text().count("test point shape.run: kill") == killed
        wait_for(lambda: is_killed() or job.task("reverse").get("state") == "Running", "killed, or all is made")
        job.kill()
        if not is_killed():
            break
        half_done |= 0 < count_of(pair.b, "trigger") < count_of(pair.a, "trigger")
    assert killed > 6 and half_done
    job.start()
    job.wait_synced()
    assert_all_same(pair)
    assert warnings(job) == []


# ---- what is selected

@pytest.mark.rung("origin")
def test_single_tables(pair, make_job):
    """Tables selected one by one come without the views, functions and triggers around them."""
    load(pair.a, "shop")
    job = make_job(pair, None, objects={"tables": "shop.customers, shop.orders, shop.audit"}).start()
    assert set(compare.tables(pair.b)) == {'"shop"."customers"', '"shop"."orders"', '"shop"."audit"'}
    assert [count_of(pair.b, kind) for kind in ("view", "function", "trigger", "rule")] == [0, 0, 0, 0]
    pair.a.sql("UPDATE shop.customers SET name = 'New' WHERE id = 1")
    pair.b.sql("UPDATE shop.customers SET name = 'New' WHERE id = 2")
    job.wait_synced()
    compare.assert_contents(pair, set(compare.tables(pair.b)))
    assert pair.a.one("SELECT count(*) FROM shop.audit WHERE after ->> 'name' = 'New'") == 1
    assert warnings(job) == []


@pytest.mark.rung("origin")
def test_view_left_out(pair, make_job):
    """A view excluded by name is not created, nor what is built on it, of which the log warns."""
    load(pair.a, "shop")
    job = make_job(pair, "shop", objects={"exclude": "shop.catalogue, shop.sales, shop.order_sums"}).start()
    missing = {"shop.catalogue", "shop.sales", "shop.order_sums", "shop.best_customers"}
    assert view_rows(pair.a).keys() - view_rows(pair.b).keys() == missing
    assert len(warnings(job)) == 1 and '"shop"."best_customers"' in warnings(job)[0]
    assert pair.b.admin("SELECT 1 FROM pg_class WHERE relname = 'sales_key'") == []
    pair.b.sql("UPDATE shop.customers SET name = 'New' WHERE id = 2")
    job.wait_synced()
    compare.assert_contents(pair)


KINDS = ("trigger", "rule")


def views_have(node):
    """Triggers and rules of views."""
    return node.one("SELECT count(*) FROM pg_class c WHERE relkind = 'v' AND c.oid >= 16384 "
                    "AND EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid AND NOT tgisinternal)") + node.one(
        "SELECT count(*) FROM pg_rewrite w JOIN pg_class c ON c.oid = ev_class "
        "WHERE relkind = 'v' AND rulename <> '_RETURN' AND c.oid >= 16384")


def on_tables(node):
    return sum(count_of(node, kind) for kind in KINDS) - views_have(node)


@pytest.mark.rung("marker")
@pytest.mark.parametrize("name, query", [
    ("shop", """SELECT shop.place_order(1001, 1, '[{"product": 1, "quantity": 5}]')"""),
    ("ledger", "SELECT ledger.transfer('2024-06-07', '4000', '1200', 12.5)"),
], ids=["shop", "ledger"])
def test_no_triggers_where_they_would_fire(pair, make_job, name, query):
    """A role that may not set session_replication_role gets them for views alone, which twsync never writes."""
    load(pair.a, name)
    job = make_job(pair, SCHEMAS[name]).start()
    assert on_tables(pair.b) == 0 and sum(count_of(pair.b, kind) for kind in KINDS) == views_have(pair.a)
    assert len(warnings(job)) == 1
    n = on_tables(pair.a)
    assert warnings(job)[0].startswith(f"{n} triggers and rules are not created on b")
    assert view_rows(pair.b) == view_rows(pair.a)
    pair.a.sql(query)
    job.wait_synced()
    compare.assert_contents(pair)
    assert job.stop() == tw.OK
    pair.a.sql("""DO $$ DECLARE d text; BEGIN
        FOR d IN SELECT format('DROP TRIGGER %I ON %s', tgname, tgrelid::regclass) FROM pg_trigger
                 JOIN pg_class ON pg_class.oid = tgrelid WHERE NOT tgisinternal AND tgparentid = 0 AND relkind <> 'v'
                 UNION ALL SELECT format('DROP RULE %I ON %s', rulename, ev_class::regclass) FROM pg_rewrite
                 JOIN pg_class ON pg_class.oid = ev_class
                 WHERE rulename <> '_RETURN' AND ev_class >= 16384 AND relkind <> 'v'
        LOOP EXECUTE d; END LOOP; END $$""")
    compare.assert_schema(pair)


# ---- what cannot be made, what is there

@pytest.fixture
def role_of_a(pair):
    """A role that server B does not have."""
    name = f"only_{pair.a.dbname}"
    pair.a.admin(f'CREATE ROLE "{name}"')
    yield name
    pair.a.admin(f'DROP OWNED BY "{name}"; DROP ROLE "{name}"')


@pytest.mark.rung("origin")
def test_what_cannot_be_made(pair, make_job, role_of_a):
    """Rows can do without these: a warning for each, all else is made, changes are carried."""
    pair.a.sql(f"""
        CREATE SCHEMA s; CREATE SCHEMA other;
        CREATE TABLE s.t (id int PRIMARY KEY, n int); INSERT INTO s.t VALUES (1, 1);
        ALTER TABLE s.t ENABLE ROW LEVEL SECURITY;
        CREATE POLICY of_role ON s.t TO "{role_of_a}" USING (n > 0);
        CREATE POLICY of_all ON s.t USING (n > 0);
        CREATE TYPE other.mood AS ENUM ('ok');
        CREATE TABLE other.x (id int PRIMARY KEY);
        CREATE FUNCTION other.fire() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
        CREATE FUNCTION s.of_mood(other.mood) RETURNS int LANGUAGE sql AS 'SELECT 1';
        CREATE FUNCTION s.plus(int, int) RETURNS int LANGUAGE internal IMMUTABLE AS 'int4pl';
        CREATE AGGREGATE s.sum(int) (SFUNC = s.plus, STYPE = int);
        CREATE VIEW s.of_other AS SELECT id FROM other.x;
        CREATE VIEW s.of_view AS SELECT id FROM s.of_other;
        CREATE VIEW s.fine AS SELECT id FROM s.t;
        CREATE TRIGGER of_other BEFORE INSERT ON s.t FOR EACH ROW EXECUTE FUNCTION other.fire();
        CREATE MATERIALIZED VIEW s.quotient AS SELECT 10 / n AS q FROM s.t;
        UPDATE s.t SET n = 0""")
    job = make_job(pair, "s").start()
    texts = warnings(job)
    for what in ("of_role", "of_mood", "plus", "s.sum", "of_other", "of_view", "trigger.*of_other", "quotient"):
        pattern = what.replace("s.sum", r'"sum"')
        assert [text for text in texts if re.search(pattern, text)], f"no warning of {what}: {texts}"
    assert role_of_a in "".join(texts) and len(texts) == 8
    assert pair.b.admin("SELECT polname FROM pg_policy") == [("of_all",)]
    assert view_rows(pair.b) == {"s.fine": ["(1)"], "s.quotient": False}
    pair.a.sql("INSERT INTO s.t VALUES (2, 2)")
    pair.b.sql("INSERT INTO s.t VALUES (3, 3)")
    job.wait_synced()
    compare.assert_contents(pair, {'"s"."t"'})


@pytest.mark.rung("origin")
def test_what_is_there_is_kept(pair, make_job):
    """Objects that B has under these names stay as they are; those it lacks are made."""
    make = """
        CREATE SCHEMA s; CREATE TABLE s.t (id int PRIMARY KEY, v text);
        CREATE FUNCTION s.f() RETURNS text LANGUAGE sql AS $$ SELECT 'of {0}' $$;
        CREATE FUNCTION s.fire() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN NEW.v := NEW.v || ' of {0}'; RETURN NEW; END $$;
        CREATE PROCEDURE s.p(int DEFAULT {1}) LANGUAGE sql AS '';
        CREATE AGGREGATE s.sum(int) (SFUNC = int4pl, STYPE = int, INITCOND = '{1}');
        CREATE OPERATOR s.+ (FUNCTION = int4pl, LEFTARG = int, RIGHTARG = int);
        CREATE VIEW s.v AS SELECT id, 'of {0}'::text AS side FROM s.t;
        CREATE MATERIALIZED VIEW s.m AS SELECT {1} AS n;
        CREATE TRIGGER fire BEFORE INSERT ON s.t FOR EACH ROW EXECUTE FUNCTION s.fire('{0}');
        CREATE RULE r AS ON DELETE TO s.t WHERE OLD.id = {1} DO INSTEAD NOTHING;
        CREATE POLICY p ON s.t USING (id > {1});
        CREATE STATISTICS s.st ({2}) ON id, v FROM s.t;
        COMMENT ON VIEW s.v IS 'of {0}';"""
    pair.a.sql(make.format("a", 1, "mcv"))
    pair.a.sql("CREATE VIEW s.new AS SELECT side FROM s.v;"
               "CREATE FUNCTION s.f(int) RETURNS text LANGUAGE sql AS 'SELECT s.f()';"
               "CREATE TRIGGER new AFTER INSERT ON s.t FOR EACH ROW EXECUTE FUNCTION s.fire()")
    pair.b.sql(make.format("b", 2, "ndistinct"))
    had = compare.schema_of(pair.b)
    job = make_job(pair, "s", objects={"existing": "keep"}).start()
    assert warnings(job) == []
    have = [statement for statement in compare.schema_of(pair.b) if "REPLICA IDENTITY" not in statement]
    assert [statement for statement in had if statement not in have] == []
    assert len(have) - len(had) == 3
    assert pair.b.one("SELECT n FROM s.m") == 2
    pair.a.sql("INSERT INTO s.t VALUES (1, 'x')")
    pair.b.sql("INSERT INTO s.t VALUES (2, 'x')")
    job.wait_synced()
    for node in pair.nodes:
        assert node.sql("SELECT * FROM s.t ORDER BY 1") == [(1, "x of a"), (2, "x of b")]


@pytest.mark.rung("origin")
def test_objects_of_extensions(pair, make_job):
    """What an extension brought comes with the extension, which B must have: no warning of its functions in C."""
    if not pair.a.sql("SELECT 1 FROM pg_available_extensions WHERE name = 'citext'"):
        pytest.skip("citext")
    pair.both("CREATE SCHEMA s; CREATE EXTENSION citext SCHEMA s")
    pair.a.sql("""
        CREATE TABLE s.t (id int PRIMARY KEY, name s.citext UNIQUE); INSERT INTO s.t VALUES (1, 'Name');
        CREATE FUNCTION s.named(s.citext) RETURNS SETOF s.t LANGUAGE sql STABLE BEGIN ATOMIC
            SELECT * FROM s.t WHERE name OPERATOR(s.=) $1; END;
        CREATE VIEW s.v AS SELECT id, name, min(name) OVER () FROM s.t WHERE name OPERATOR(s.<>) 'x'""")
    job = make_job(pair, "s").start()
    assert_all_same(pair)
    assert warnings(job) == []


# ---- dependence on nothing but the catalog

@pytest.mark.rung("origin")
def test_many_objects(pair, make_job):
    """A long chain of views, each on the one before, and functions between them: order is no matter of luck."""
    steps = ["CREATE SCHEMA s; CREATE TABLE s.t (id int PRIMARY KEY, v text); INSERT INTO s.t VALUES (1, 'x');"
             "CREATE VIEW s.v500 AS SELECT id, v FROM s.t;"]
    for n in range(499, 350, -1):       # names in the wrong order
        steps.append(f"CREATE FUNCTION s.f{n}(x s.v{n + 1}) RETURNS text LANGUAGE sql AS 'SELECT $1.v';"
                     f"CREATE VIEW s.v{n} AS SELECT id, s.f{n}(w) AS v FROM s.v{n + 1} w;")
    pair.a.sql("".join(steps))
    job = make_job(pair, "s").start()
    compare.assert_same(pair)
    assert warnings(job) == []
    assert pair.b.sql("SELECT * FROM s.v490") == [(1, "x")]


@pytest.mark.rung("origin")
def test_rights_of_an_owner_are_not_given_away(pair, make_job, role_of_a):
    """On B every function is twsync's: one that somebody else wrote to run with his own rights may be called by nobody."""
    pair.a.sql("CREATE SCHEMA s; CREATE TABLE s.t (id int PRIMARY KEY);"
               "CREATE FUNCTION s.theirs() RETURNS text LANGUAGE sql SECURITY DEFINER AS 'SELECT current_user::text';"
               "CREATE FUNCTION s.mine() RETURNS text LANGUAGE sql SECURITY DEFINER AS 'SELECT current_user::text'")
    pair.a.admin(f'GRANT ALL ON SCHEMA s TO "{role_of_a}"; ALTER FUNCTION s.theirs() OWNER TO "{role_of_a}"')
    job = make_job(pair, "s").start()
    may = "SELECT has_function_privilege('public', %s, 'EXECUTE')"
    assert pair.a.one(may, ("s.theirs()",)) and not pair.b.one(may, ("s.theirs()",))
    assert pair.b.one(may, ("s.mine()",))
    assert [w for w in warnings(job) if "theirs" in w and "its owner's rights" in w], warnings(job)


@pytest.mark.parametrize("workers", [1, 3])
def test_indexes_side_by_side(pair, make_job, workers):
    """As many sessions build indexes as there are workers; with one, only the task's own."""
    pair.a.sql("".join(f"CREATE TABLE t{n} (id int PRIMARY KEY, v text UNIQUE, w int);"
                       f"INSERT INTO t{n} SELECT g, 'v' || g, g FROM generate_series(1, 20000) g;"
                       f"CREATE INDEX ON t{n} (w, v);" for n in range(4)))
    pair.b.admin(f"ALTER DATABASE {pair.b.dbname} SET log_statement = 'ddl'")
    make_job(pair, forward={"workers": workers}).start()
    with open(pair.b.server.log, errors="replace") as f:
        pids = {line.split("[")[1].split("]")[0] for line in f
                if f"@{pair.b.dbname} " in line and ":index" in line}
    assert len(pids) == (workers if workers > 1 else 0)
    compare.assert_schema(pair)


def test_clustering_marks(pair, make_job):
    """Which index a table was clustered by goes with the index."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE INDEX t_v ON t (v); CREATE INDEX t_w ON t (v, id);"
               "ALTER TABLE t CLUSTER ON t_v; CREATE TABLE u (id int PRIMARY KEY); ALTER TABLE u CLUSTER ON u_pkey")
    make_job(pair).start()
    compare.assert_schema(pair)
    assert pair.b.one("SELECT count(*) FROM pg_index WHERE indisclustered") == 2
