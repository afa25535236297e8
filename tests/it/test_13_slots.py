"""Slots: names, what they hold back and for how long, and that idle ones advance."""

import pytest

import pg
import tw
from wait import wait_for


def job_with(pair, make_job, **slots):
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v text)")
    return make_job(pair, slots=slots).start()


def confirmed(pair, job, task):
    return pg.lsn_int(pair.source(task).admin(
        "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %s",
        (f"twsync_{job.name}_{task}",))[0][0])


def assert_invariant(pair, job):
    """What the source may forget is never ahead of what the target durably has, nor of the source itself."""
    for task in tw.TASKS:
        position = confirmed(pair, job, task)
        assert position <= job.applied(task), f"{task}: the slot is ahead of the progress"
        assert position <= pair.source(task).lsn()


def test_names(pair, make_job):
    job = job_with(pair, make_job)
    for node, task, other in ((pair.a, "forward", "reverse"), (pair.b, "reverse", "forward")):
        assert node.admin("SELECT slot_name, plugin, active FROM pg_replication_slots WHERE database = current_database()") == [
            (f"twsync_{job.name}_{task}", "pgoutput", True)]
        assert node.admin("SELECT pubname FROM pg_publication") == [(f"twsync_{job.name}_{task}",)]
        names = {name for (name,) in node.admin("SELECT application_name FROM pg_stat_activity "
                                                "WHERE application_name LIKE 'twsync:%%' AND datname = current_database()")}
        assert any(name.startswith(f"twsync:{job.name}:{other}:apply") for name in names), names
        assert node.one("SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'twsync'") == node.role


@pytest.mark.parametrize("task", tw.TASKS)
@pytest.mark.rung("marker")
def test_without_retention(pair, make_job, task):
    """retention = 0: the confirmed position follows what is applied."""
    job = job_with(pair, make_job, retention="0")
    node = pair.source(task)
    for n in range(30):
        node.sql("INSERT INTO t VALUES (%s, repeat('x', 10000))", (n,))
        assert_invariant(pair, job)
    end = node.lsn()
    job.wait_synced()
    wait_for(lambda: confirmed(pair, job, task) >= end, "the slot follows")
    assert_invariant(pair, job)


@pytest.mark.parametrize("task", tw.TASKS)
@pytest.mark.rung("marker")
def test_retention_by_time(pair, make_job, task):
    """retention = 10min: the last minutes can be read again."""
    job = job_with(pair, make_job, retention="10min")
    pair.source(task).sql("INSERT INTO t VALUES (0, 'first')")
    start = pair.source(task).lsn()     # not before: an idle slot advances until there is something to hold
    for n in range(1, 20):
        pair.source(task).sql("INSERT INTO t VALUES (%s, repeat('x', 10000))", (n,))
    job.wait_synced()
    job.wait_synced()
    assert confirmed(pair, job, task) <= start
    assert pg.lsn_int(job.task(task)["confirmed_lsn"]) <= start < pg.lsn_int(job.task(task)["applied_lsn"])
    job.kill()      # the older position is asked for again, and nothing doubles
    job.start()
    job.wait_synced()
    assert pair.target(task).one("SELECT count(*) FROM t") == 20
    assert confirmed(pair, job, task) <= start


@pytest.mark.rung("marker")
def test_retention_by_size(pair, make_job):
    """However long the time, no more than retention_size of WAL is held back."""
    job = job_with(pair, make_job, retention="10min", retention_size="2MB")
    pair.a.sql("INSERT INTO t SELECT g, repeat('x', 1000) FROM generate_series(1, 10000) g")
    end = pair.a.lsn()
    job.wait_synced()
    wait_for(lambda: confirmed(pair, job, "forward") >= end - (4 << 20), "the slot is at most 2 MB behind")
    assert_invariant(pair, job)


@pytest.mark.rung("marker")
def test_idle_slots_advance(pair, make_job, servers):
    """Another database writes 20 MB; our slots do not keep its WAL."""
    job = job_with(pair, make_job, retention="0")
    for server in servers:
        server.sql("CREATE TABLE noise AS SELECT repeat('x', 1000) v FROM generate_series(1, 20000)")
    try:
        ends = {task: pair.source(task).lsn() for task in tw.TASKS}
        for task in tw.TASKS:
            wait_for(lambda: confirmed(pair, job, task) >= ends[task] - (1 << 20), f"the idle slot of {task} advances")

        def restart_behind(task):
            node = pair.source(task)
            node.admin("CHECKPOINT")        # writes a snapshot record, which lets restart_lsn advance
            return node.admin("SELECT pg_current_wal_lsn() - restart_lsn < 8 << 20 FROM pg_replication_slots "
                              "WHERE slot_name = %s", (f"twsync_{job.name}_{task}",))[0][0]

        for task in tw.TASKS:
            wait_for(lambda: restart_behind(task), f"{task} lets go of old WAL", every=0.5)
        assert_invariant(pair, job)
        # A restart after idle acknowledgements is no false alarm.
        job.kill()
        job.start()
        pair.a.sql("INSERT INTO t VALUES (1, 'v')")
        job.wait_synced()
        assert pair.b.one("SELECT count(*) FROM t") == 1
    finally:
        for server in servers:
            server.sql("DROP TABLE noise")


@pytest.mark.rung("marker")
def test_confirmed_after_source_crash(own_pair, make_job):
    """A crash of the source may take the slot back; what is sent again changes nothing."""
    pair = own_pair
    pair.a.sql("CREATE TABLE keyless (n int)")
    job = make_job(pair, slots={"retention": "0"}).start()
    for n in range(5):
        pair.a.sql("INSERT INTO keyless VALUES (%s)", (n,))
        pair.b.sql("INSERT INTO keyless VALUES (%s)", (n,))
        job.wait_synced()
        pair.nodes[n % 2].server.restart("immediate")
    for task in tw.TASKS:
        job.wait_state(task, "Running")
    job.wait_synced()
    assert [node.one("SELECT count(*) FROM keyless") for node in pair.nodes] == [10, 10]
