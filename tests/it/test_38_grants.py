"""`twsync grants`: the SQL it prints is what a role needs, and no more than that."""

import pytest

import compare
import tw

TABLES = """
CREATE SCHEMA shop; CREATE TABLE shop.people (id int PRIMARY KEY, name text);
INSERT INTO shop.people SELECT g, 'p' || g FROM generate_series(1, 50) g; CREATE TABLE plain (id int PRIMARY KEY);
"""


def grants(job):
    """What is printed for A and for B."""
    code, out, err = job.command("grants", job.path)
    assert code == 0 and out.startswith("-- a, database "), out + err
    return out.split("-- b, database ")


@pytest.fixture
def plain_job(pair, make_job):
    """A job whose role may do nothing yet but connect; what it was given is taken back afterwards."""
    pair.a.sql(TABLES)
    names = {"schema shop": {"to": "crm"}}
    job = make_job(pair, None, objects={"schemas": "shop", "tables": "public.plain"}, **names)
    job.change(a={"user": "tw_plain"}, b={"user": "tw_plain"})
    yield job
    job.clean_up()
    for node in (pair.a, pair.b):
        node.admin("ALTER ROLE tw_plain NOREPLICATION; REVOKE tw_owner, tw_super FROM tw_plain")
        if node.one("SELECT current_setting('server_version_num')::int >= 150000"):
            node.admin("REVOKE SET ON PARAMETER session_replication_role FROM tw_plain")
        else:
            node.admin("ALTER ROLE tw_plain RESET session_replication_role")


@pytest.mark.rung("marker")
def test_enough(pair, plain_job):
    """With what is printed the precheck passes and the job works both ways, on the origin rung; then nothing is missing."""
    job = plain_job
    assert job.check()[0] == tw.PRECHECK_FAILED
    on_a, on_b = grants(job)
    assert "REPLICATION;" in on_a and 'GRANT tw_owner TO tw_plain;' in on_a and "crm" not in on_b, on_a + on_b
    pair.a.admin(on_a)
    pair.b.admin("-- " + on_b)
    on_a, on_b = grants(job)
    assert "nothing is missing" in on_a and "nothing is missing" in on_b, on_a + on_b
    job.start()
    pair.a.sql("INSERT INTO shop.people VALUES (100, 'of a'); INSERT INTO plain VALUES (1)")
    job.wait_synced()
    pair.b.admin("INSERT INTO crm.people VALUES (200, 'of b'); DELETE FROM crm.people WHERE id < 10")
    job.wait_synced()
    assert pair.a.sql("SELECT * FROM shop.people ORDER BY 1") == pair.b.admin("SELECT * FROM crm.people ORDER BY 1")
    assert [job.task(task)["rung"] for task in tw.TASKS] == ["origin", "origin"]
    job.stop()
    assert job.release()[0] == 0
    compare.assert_untouched(pair, job.name)


@pytest.mark.rung("marker")
def test_cannot_connect(pair, make_job):
    """Of a role that is not there the first steps are told, quoted; no password is printed."""
    job = make_job(pair)
    job.change(a={"user": 'new "role'})
    on_a, on_b = grants(job)
    assert 'CREATE ROLE "new ""role" LOGIN REPLICATION PASSWORD \'...\';' in on_a, on_a
    assert "once more" in on_a and "CREATE ROLE" not in on_b, on_b
