"""twsync schema: what B lacks to be as A is, as statements, run with --apply."""

import pytest

import compare
import tw
from test_05_copy import SCHEMAS, load_everything

DIFFER = 7

OWN = """
CREATE SCHEMA own;
CREATE TYPE own.kind AS ENUM ('a', 'b');
CREATE TABLE own.t (id int PRIMARY KEY, v text, k own.kind DEFAULT 'a', n int CHECK (n > 0));
CREATE TABLE own.p (id int, at date) PARTITION BY RANGE (at);
CREATE TABLE own.p1 PARTITION OF own.p FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
CREATE INDEX t_v ON own.t (v);
CREATE SEQUENCE own.s;
CREATE FUNCTION own.f(int) RETURNS int LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION own.g() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE VIEW own.v AS SELECT id, v FROM own.t;
CREATE TRIGGER g BEFORE INSERT ON own.t FOR EACH ROW EXECUTE FUNCTION own.g();
CREATE POLICY p ON own.t USING (id > 0);
"""


def schema(job, *options):
    code, out, err = job.command("schema", job.path, *options)
    assert code in (tw.OK, DIFFER), (code, out, err)
    return code, out


def filled(pair, make_job):
    """Both sides have schema own, by the command itself."""
    pair.a.sql(OWN)
    job = make_job(pair, "own")
    code, said = schema(job)
    assert code == DIFFER and 'missing on b: table "own"."t"' in said
    assert not pair.b.one("SELECT to_regnamespace('own') IS NOT NULL"), "only told, not done"
    code, said = schema(job, "--apply")
    assert code == 0, said
    compare.assert_schema(pair)
    return job


@pytest.mark.rung("origin")
def test_everything(pair, make_job):
    """Everything is made as it is on A, in an order that works; then the sides are equal, also in a running job."""
    load_everything(pair.a)
    job = make_job(pair, SCHEMAS)
    code, said = schema(job, "--apply")
    assert code == 0, said[-3000:]
    compare.assert_schema(pair)
    code, said = schema(job)
    assert code == 0 and "are equal" in said, said[-3000:]


CHANGES = [
    ("ALTER TABLE own.t ADD COLUMN w numeric(8,2) DEFAULT 1.5 NOT NULL",
     'ADD COLUMN "w" numeric(8,2) DEFAULT \'1.50\' NOT NULL'),
    ("ALTER TABLE own.t ADD COLUMN z int NOT NULL", 'ALTER COLUMN "z" SET NOT NULL'),
    ("ALTER TABLE own.t ALTER n TYPE bigint", 'ALTER COLUMN "n" TYPE bigint'),
    ("ALTER TABLE own.t ALTER v SET DEFAULT 'it''s', ALTER v SET NOT NULL", "SET DEFAULT 'it''s'"),
    ("ALTER TABLE own.t ALTER k DROP DEFAULT", "DROP DEFAULT"),
    ("ALTER TABLE own.p ADD COLUMN x text", 'ALTER TABLE "own"."p" ADD COLUMN "x" text'),
    ("CREATE OR REPLACE FUNCTION own.f(int) RETURNS int LANGUAGE sql AS 'SELECT $1 + 1'", "SELECT $1 + 1"),
    ("CREATE OR REPLACE VIEW own.v AS SELECT id, v, k FROM own.t", 'DROP VIEW "own"."v"'),
    ("DROP INDEX own.t_v; CREATE INDEX t_v ON own.t (v DESC)", 'DROP INDEX "own"."t_v"'),
    ("ALTER TABLE own.t DISABLE TRIGGER g", 'DROP TRIGGER "g"'),
    ("DROP POLICY p ON own.t; CREATE POLICY p ON own.t USING (id > 1)", 'DROP POLICY "p"'),
    ("CREATE TABLE own.more (id serial PRIMARY KEY, t int REFERENCES own.t)", 'CREATE TABLE "own"."more"'),
    ("CREATE STATISTICS own.st ON id, v FROM own.t", "CREATE STATISTICS"),
]


@pytest.mark.rung("origin")
def test_each_change(pair, make_job):
    """Whatever A's schema came to, the statements that are printed bring B there."""
    job = filled(pair, make_job)
    for change, told in CHANGES:
        pair.a.sql(change)
        code, said = schema(job)
        assert code == DIFFER and told in said, (change, said)
        code, said = schema(job, "--apply")
        assert code == 0, (change, said)
        compare.assert_schema(pair)
        code, said = schema(job)
        assert code == 0 and "are equal" in said, (change, said)


@pytest.mark.rung("origin")
def test_older_rows(pair, make_job):
    """A new column's older rows hold on B what they hold on A, whatever its default says by now."""
    job = filled(pair, make_job)
    for node in pair.nodes:
        node.sql("INSERT INTO own.t (id, n) SELECT g, g FROM generate_series(1, 5) g")
    pair.a.sql("ALTER TABLE own.t ADD COLUMN stable timestamptz DEFAULT now(), ADD COLUMN c text DEFAULT 'then'; "
               "ALTER TABLE own.t ALTER c SET DEFAULT 'now'")
    code, said = schema(job, "--apply")
    assert code == 0, said
    compare.assert_same(pair)


@pytest.mark.rung("origin")
def test_rights_are_no_difference(pair, make_job):
    """A function that was revoked when it was made on B is as A's is; a grant there is not taken back."""
    pair.a.sql(OWN)
    pair.a.admin("CREATE ROLE other_owner; GRANT ALL ON SCHEMA own TO other_owner; CREATE FUNCTION own.d() RETURNS int "
                 "LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'; ALTER FUNCTION own.d() OWNER TO other_owner")
    try:
        job = make_job(pair, "own")
        code, said = schema(job, "--apply")
        assert code == 0 and "REVOKE EXECUTE ON ROUTINE" in said
        may = "SELECT has_function_privilege('public', 'own.d()', 'EXECUTE')"
        assert not pair.b.one(may)
        code, said = schema(job)
        assert code == 0 and "are equal" in said, said
        pair.b.sql("GRANT EXECUTE ON FUNCTION own.d() TO PUBLIC")
        pair.a.admin("CREATE OR REPLACE FUNCTION own.d() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 2'")
        code, said = schema(job, "--apply")
        assert code == 0 and pair.b.one(may) and pair.b.one("SELECT own.d()") == 2, said
    finally:
        pair.a.admin("DROP OWNED BY other_owner; DROP ROLE other_owner")


@pytest.mark.rung("origin")
def test_only_on_b(pair, make_job):
    """What only B has is named, never dropped."""
    job = filled(pair, make_job)
    pair.b.sql("CREATE TABLE own.extra (id int PRIMARY KEY); CREATE INDEX t_n ON own.t (n); ALTER TABLE own.t ADD z int")
    for options in ((), ("--apply",)):
        code, said = schema(job, *options)
        assert code == DIFFER
        assert 'only on b: table "own"."extra"' in said and 'DROP INDEX "own"."t_n"' in said
        assert 'column "z" of "own"."t" is only on b' in said
    assert pair.b.one("SELECT count(*) FROM own.extra") == 0


@pytest.mark.rung("origin")
def test_sequences_may_differ(pair, make_job):
    """Odd and even sequences are no difference, but told."""
    job = filled(pair, make_job)
    pair.b.sql("ALTER SEQUENCE own.s INCREMENT BY 2")
    code, said = schema(job)
    assert code == 0 and 'sequence "own"."s" is made otherwise on b' in said


@pytest.mark.rung("marker")
def test_what_would_fire(pair, make_job):
    """Where triggers cannot rest on our writes they are not created, and that is told each time."""
    pair.a.sql(OWN)
    job = make_job(pair, "own")
    code, said = schema(job, "--apply")
    assert code == DIFFER and "left out: it would fire" in said, said
    assert pair.b.one("SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal") == 0
    code, said = schema(job)
    assert code == DIFFER and said.count("missing on b: ") == 2, said    # the trigger, and the last line


def test_refused(pair, make_job):
    """A statement that B refuses is an error with its reason; what stood before it is done."""
    pair.a.sql(OWN)
    pair.b.sql("CREATE SCHEMA own; CREATE TABLE own.t (id int PRIMARY KEY, v text, k text, n int); "
               "INSERT INTO own.t VALUES (1, 'x', 'neither', -1)")
    job = make_job(pair, "own")
    code, out, err = job.command("schema", job.path, "--apply")
    assert code == tw.TASK_FAILED and "could not change the schema" in err, (code, out, err)
