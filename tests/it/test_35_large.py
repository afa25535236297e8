"""Rows of hundreds of megabytes: carried up to what the servers can send, and told beyond that."""

import re

import pytest

import tw
from wait import wait_for

MB = 1024 * 1024
LIKE = "SELECT id, n, length(v), md5(v) FROM t ORDER BY id"


@pytest.mark.rung("origin")
def test_larger_than_256_mb(pair, make_job):
    """The service's limit is none of ours: in the copy, inserted, updated beside it and deleted, both ways."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, n int, v text)")
    pair.a.sql(f"INSERT INTO t VALUES (1, 1, repeat(md5('a'), {300 * MB // 32}))")
    job = make_job(pair).start()
    job.wait_synced()
    assert pair.a.sql(LIKE) == pair.b.sql(LIKE) != []
    pair.b.sql(f"INSERT INTO t VALUES (2, 2, repeat(md5('b'), {270 * MB // 32})); UPDATE t SET n = 7 WHERE id = 1")
    job.wait_synced()
    assert pair.a.sql(LIKE) == pair.b.sql(LIKE) and pair.a.one("SELECT n FROM t WHERE id = 1") == 7
    pair.a.sql("DELETE FROM t WHERE id = 1; UPDATE t SET v = 'short'")
    job.wait_synced()
    assert pair.b.sql("SELECT * FROM t") == [(2, 2, "short")]
    assert [job.task(task)["conflicts"] for task in tw.TASKS] == [0, 0]


@pytest.mark.rung("origin")
def test_larger_than_the_server_sends(pair, make_job):
    """1 GB as text is the server's own limit: the task says so, of which table, and how to go on; nothing else is lost."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, n int, v bytea); CREATE TABLE o (id int PRIMARY KEY)")
    job = make_job(pair, forward={"on_conflict": "overwrite"}, reverse={"on_conflict": "ignore"}).start()
    job.wait_synced()
    pair.a.sql("INSERT INTO o VALUES (1)")
    half = "decode(repeat('ab', {}), 'hex')".format(300 * MB)
    pair.a.sql(f"INSERT INTO o VALUES (2); INSERT INTO t VALUES (1, 1, {half} || {half}); INSERT INTO o VALUES (3)")
    pair.a.sql("INSERT INTO o VALUES (4)")
    wait_for(lambda: "larger than 1 GB" in job.task("forward").get("last_error", ""), "the task says so", 240)
    error = job.task("forward")["last_error"]
    assert '"public"."t"' in error, error
    lsn = re.search(r"--transaction ([0-9A-F]+/[0-9A-F]+)", job.log_text())[1]
    code, out, err = job.command("skip", job.path, "--transaction", lsn)
    assert code == tw.LOCKED and "stop it first" in err, out + err
    job.stop()
    for wrong in ("nonsense", "FFFF/0", "0/1"):
        assert job.command("skip", job.path, "--transaction", wrong)[0] == tw.BAD_JOB, wrong
    code, out, err = job.command("skip", job.path, "--transaction", lsn)
    assert code == 0 and "goes on after " + lsn in out, out + err
    job.start()
    job.wait_synced()
    assert pair.b.sql("SELECT id FROM o ORDER BY 1") == [(1,), (4,)] and pair.b.one("SELECT count(*) FROM t") == 0
    for table in ("t", "o"):
        code, out, err = job.command("resync", job.path, table, timeout=300)
        assert code == 0, out + err
    job.wait_synced()
    assert pair.b.sql("SELECT id FROM o ORDER BY 1") == [(1,), (2,), (3,), (4,)]
    assert pair.a.sql(LIKE) == pair.b.sql(LIKE) != []
    assert "going on after it" in job.log_text(), "the reverse task, after what the forward task has copied"
    pair.b.sql("INSERT INTO o VALUES (5)")
    job.wait_synced()
    assert pair.a.one("SELECT count(*) FROM o") == 5
