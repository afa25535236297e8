"""The precheck: what is missing is named, with what mends it, and nothing is created before it passes."""

import contextlib

import psycopg2
import psycopg2.extras
import pytest

import compare
import pg
import tw
from wait import wait_for

KEYS = {"code", "node", "status", "measured", "needed", "remedy", "ignorable", "accepted"}


def items_of(job, exit_code):
    """The items of a check that must end with exit_code, in a known form."""
    code, items = job.check()
    assert code == exit_code, f"exit {code}:\n" + "\n".join(map(str, items))
    for item in items:
        assert KEYS == item.keys() and item["status"] in ("ok", "warning", "failed"), item
        assert item["code"] and item["node"] in ("a", "b", "-") and item["measured"], item
        assert item["status"] == "ok" or (item["needed"] and item["remedy"]), item
    return items


def of_status(items, *statuses):
    return [item for item in items if item["status"] in statuses]


def assert_fails(job, code, *needles, node=None):
    """check and run both end with "precheck failed"; the item says all the needles; nothing is created."""
    items = of_status(items_of(job, tw.PRECHECK_FAILED), "failed")
    assert any(item["code"] == code and (node is None or item["node"] == node)
               and all(n in item["measured"] + item["needed"] + item["remedy"] for n in needles) for item in items), (
        f"no failed item {code} says {needles}:\n" + "\n".join(map(str, items)))
    exit_code, out, err = job.command("run", job.path)
    assert exit_code == tw.PRECHECK_FAILED and code in out + err, (exit_code, out, err)
    for end in job.pair.nodes:
        with contextlib.suppress(psycopg2.Error):
            assert compare.left_behind(end, job.name) == []


def table(pair):
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v text)")


def test_all_well(pair, job):
    table(pair)
    items = items_of(job, tw.OK)
    assert not of_status(items, "failed")
    assert len({item["code"] for item in items}) > 20
    code, out, err = job.command("check", job.path)
    assert code == tw.OK
    for item in items:
        assert item["code"] in out
    for node in "ab":
        assert any(item["code"] == "RUNG" and item["node"] == node and pair.rung in item["measured"] for item in items)
    compare.assert_untouched(pair, job.name)


@pytest.mark.rung("marker")
@pytest.mark.parametrize("end", ["a", "b"])
@pytest.mark.parametrize("fault", ["closed port", "wrong password", "pg_hba", "no database", "no role"])
def test_connection(pair, make_job, end, fault):
    """Each fault is told apart, and at which end it is."""
    table(pair)
    changes, code, needle = {
        "closed port": ({"port": pg.free_port()}, "CONNECT_REACH", "Connection refused"),
        "wrong password": ({"password": "wrong"}, "CONNECT_PASSWORD", "password authentication failed"),
        "pg_hba": ({"user": "tw_rejected"}, "CONNECT_HBA", "pg_hba.conf"),
        "no database": ({"dbname": "no_such_db"}, "CONNECT_DATABASE", "does not exist"),
        "no role": ({"user": "no_such_role"}, "CONNECT_PASSWORD", "authentication failed"),
    }[fault]
    job = make_job(pair, **{end: changes})
    assert_fails(job, code, needle, node=end)
    exit_code, out, err = job.command("check", job.path, "--connect")
    assert exit_code == tw.PRECHECK_FAILED and needle in out, (exit_code, out, err)
    compare.assert_untouched(pair, job.name)


def test_same_database_on_both_sides(pair, make_job):
    """Seen in the job file alone."""
    table(pair)
    job = make_job(pair, b=pair.a.job_keys())
    code, out, err = job.command("check", job.path)
    assert code == tw.BAD_JOB and "same database" in err, (code, out, err)


def test_same_database_by_another_way(pair, make_job):
    """The socket and TCP lead to the same place; the names do not show it."""
    table(pair)
    other = pg.Node("b", pair.a.server, pair.a.dbname, pair.a.role, not pair.a.tcp)
    job = make_job(pair)
    job.sections["b"] = {}
    job.change(b=other.job_keys())
    assert_fails(job, "SAME_DATABASE")


@pytest.mark.rung("marker")
def test_clone_is_another_database(servers, make_server, make_job):
    """A server copied from the other as files: same system identifier and OIDs, yet not the same database."""
    clones = [make_server("clone") for _ in range(2)]
    pair = pg.make_pair(*clones, "cloned", "marker")
    try:
        table(pair)
        job = make_job(pair).start()
        pair.b.sql("INSERT INTO t VALUES (1, 'v')")
        job.wait_synced()
        compare.assert_same(pair)
        job.clean_up()
    finally:
        for clone in clones:
            clone.stop("immediate")


@contextlib.contextmanager
def walsender(server):
    """Occupies one walsender."""
    with contextlib.closing(psycopg2.connect(host=server.root, port=server.port, user="postgres", dbname="postgres",
                                             connection_factory=psycopg2.extras.LogicalReplicationConnection)):
        yield


@pytest.mark.rung("marker")
@pytest.mark.parametrize("end", ["a", "b"])
@pytest.mark.parametrize("setting, value, code", [
    ("wal_level", "replica", "WAL_LEVEL"), ("max_replication_slots", "1", "SLOTS"), ("max_wal_senders", "1", "SENDERS")])
def test_server_settings(servers, make_server, make_job, end, setting, value, code):
    """wal_level, free slots, free senders."""
    bad = make_server("bad", {setting: value}, template=end == "b")
    if setting == "max_replication_slots":
        bad.sql("SELECT pg_create_physical_replication_slot('taken')")
    both = (bad, servers[1]) if end == "a" else (servers[0], bad)
    pair = pg.make_pair(*both, f"settings_{setting}_{end}", "marker")
    try:
        table(pair)
        with contextlib.ExitStack() as stack:
            if setting == "max_wal_senders":
                stack.enter_context(walsender(bad))
            assert_fails(make_job(pair), code, setting, node=end)
        compare.assert_untouched(pair)
    finally:
        pg.drop_pair(pair)
        bad.stop("immediate")


@pytest.mark.rung("marker")
@pytest.mark.parametrize("end", ["a", "b"])
def test_no_replication(pair, make_job, end):
    """A role that owns all but lacks REPLICATION."""
    table(pair)
    node = pair.nodes["ab".index(end)]
    node.server.sql(f'ALTER DATABASE "{node.dbname}" OWNER TO tw_plain')
    node.admin("REASSIGN OWNED BY tw_owner TO tw_plain")
    assert_fails(make_job(pair, **{end: {"user": "tw_plain"}}), "REPLICATION_CONNECT", "REPLICATION", node=end)


@pytest.mark.rung("marker")
def test_not_the_owner_of_a_table(pair, make_job):
    table(pair)
    pair.a.sql("CREATE TABLE other_s (id int PRIMARY KEY)", user="tw_owner")
    pair.a.admin("ALTER TABLE other_s OWNER TO tw_plain")
    assert_fails(make_job(pair), "OWNERSHIP", "other_s", node="a")


@pytest.mark.rung("marker")
def test_may_not_create(pair, make_job):
    """On B nothing belongs to the role: no schema can be made there."""
    table(pair)
    pair.b.server.sql(f'ALTER DATABASE "{pair.b.dbname}" OWNER TO tw_plain')
    assert_fails(make_job(pair), "CREATE_RIGHT", "GRANT CREATE ON DATABASE", node="b")


def test_tables_without_key(pair, job):
    """Neither a primary key nor a non-null unique index: told by name."""
    table(pair)
    pair.a.sql("CREATE TABLE no_key (v text)")
    pair.a.sql("CREATE TABLE nullable_key (k int UNIQUE)")
    pair.a.sql("CREATE TABLE partial_key (k int NOT NULL)")
    pair.a.sql("CREATE UNIQUE INDEX ON partial_key (k) WHERE k > 0")
    pair.a.sql("CREATE TABLE unique_key (k int NOT NULL UNIQUE)")
    keyless = [item["measured"] for item in of_status(items_of(job, tw.OK), "warning") if item["code"] == "KEY"]
    for name in ("no_key", "nullable_key", "partial_key"):
        assert name in keyless[0]
    assert "unique_key" not in keyless[0] and '"t"' not in keyless[0]
    compare.assert_untouched(pair, job.name)


def test_replica_identity(pair, job):
    """A table whose identity is not FULL is a warning; run sets it."""
    table(pair)
    pair.a.sql("CREATE TABLE already (id int PRIMARY KEY)")
    pair.a.sql("ALTER TABLE already REPLICA IDENTITY FULL")
    items = items_of(job, tw.OK)
    told = [item["measured"] for item in of_status(items, "warning") if item["code"] == "REPLICA_IDENTITY"]
    assert told == ["public.t"]
    job.start()
    for node in pair.nodes:
        assert node.sql("SELECT relname, relreplident FROM pg_class WHERE oid IN ('t'::regclass, 'already'::regclass) "
                        "ORDER BY 1") == [("already", "f"), ("t", "f")]


def test_identity_key_leaves_tables_alone(pair, make_job):
    table(pair)
    job = make_job(pair, forward={"identity": "key"}, reverse={"identity": "key"}).start()
    assert [node.one("SELECT relreplident FROM pg_class WHERE oid = 't'::regclass") for node in pair.nodes] == ["d", "d"]
    job.stop()


def test_unsupported_objects(pair, job):
    """Unlogged tables, inheritance across schemas: by name."""
    table(pair)
    pair.a.sql("CREATE UNLOGGED TABLE volatile_t (id int PRIMARY KEY)")
    pair.a.sql("CREATE SCHEMA elsewhere CREATE TABLE mother (id int PRIMARY KEY)")
    pair.a.sql("CREATE TABLE daughter (PRIMARY KEY (id)) INHERITS (elsewhere.mother)")
    code, items = job.check()
    told = " ".join(item["measured"] for item in of_status(items, "warning", "failed") if item["code"] == "UNSUPPORTED")
    for name in ("volatile_t", "daughter"):
        assert name in told, items


def test_table_without_a_plain_key(pair, job):
    """A unique index on an expression is no key: the table is named."""
    table(pair)
    pair.a.sql("CREATE TABLE only_expr (v text); CREATE UNIQUE INDEX ON only_expr (lower(v))")
    code, items = job.check()
    assert "only_expr" in " ".join(i["measured"] for i in of_status(items, "warning", "failed")), items


INCOMPLETE = {
    "child": ("public.child", None, "FOREIGN_KEYS", ["public.child", "child_t_fkey", "public.t"],
              ["to tables in the job", "to exclude", "DROP CONSTRAINT"]),
    "root without a leaf": (None, "public.p1", "PARTITIONS", ["public.p", "public.p1"], ["exclude"]),
    "leaf without its root": ("public.p1", None, "PARTITIONS", ["public.p1", "without its root"], ["to tables"]),
}


@pytest.mark.parametrize("name", INCOMPLETE)
def test_incomplete_selection(pair, make_job, name):
    """What a selected table cannot do without is named, with what can be done."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE child (id int PRIMARY KEY, t int REFERENCES t);"
               "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);"
               "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); CREATE TABLE p2 PARTITION OF p DEFAULT")
    tables, exclude, item_code, measured, remedy = INCOMPLETE[name]
    job = make_job(pair, objects={"schemas": None, "tables": tables} if tables else {"exclude": exclude})
    code, items = job.check()
    item, = [i for i in of_status(items, "failed") if i["code"] == item_code]
    assert all(word in item["measured"] for word in measured), item
    assert all(word in item["remedy"] for word in remedy), item


def test_sequences_come_with_their_tables(pair, make_job):
    """A serial column's sequence belongs to the selection of its table."""
    pair.a.sql("CREATE TABLE t (id serial PRIMARY KEY, v text); INSERT INTO t (v) VALUES ('a')")
    job = make_job(pair, objects={"schemas": None, "tables": "public.t"}).start()
    job.wait_synced()
    assert pair.b.one("SELECT last_value FROM t_id_seq") >= 1
    compare.assert_schema(pair)


def test_triggers_and_foreign_keys(pair, job):
    """Where session_replication_role cannot be set, tables with foreign keys are named, and the command."""
    table(pair)
    pair.a.sql("CREATE TABLE child (id int PRIMARY KEY, t int REFERENCES t)")
    told = [item for item in of_status(items_of(job, tw.OK), "warning") if item["code"] == "REPLICA_ROLE"]
    assert bool(told) == (pair.rung == "marker")
    for item in told:
        assert "public.child" in item["measured"] and "session_replication_role" in item["remedy"]


def test_existing_table(pair, make_job):
    """With existing = error a table of the same name on B is named and nothing starts."""
    table(pair)
    pair.b.sql("CREATE TABLE t (id int PRIMARY KEY, v text)")
    assert_fails(make_job(pair), "TARGET_TABLES", "public.t", node="b")
    items_of(make_job(pair, objects={"existing": "keep"}), tw.OK)


def test_restart_is_no_existing_table(pair, job):
    """What forward itself has created does not fail the check, nor reverse."""
    table(pair)
    job.start()
    assert job.stop() == tw.OK
    items_of(job, tw.OK)


def test_selected_object_missing(pair, make_job):
    table(pair)
    assert_fails(make_job(pair, objects={"tables": "public.not_there"}), "OBJECTS", "not_there")
    assert_fails(make_job(pair, "no_such_schema"), "OBJECTS", "no_such_schema")


@pytest.mark.parametrize("forward, reverse, warned", [
    ("overwrite", "overwrite", True), ("ignore", "ignore", True), ("overwrite", "ignore", False),
    ("ignore", "overwrite", False), ("fail", "fail", False)])
@pytest.mark.rung("marker")
def test_policies_that_part_the_sides(pair, make_job, forward, reverse, warned):
    table(pair)
    job = make_job(pair, forward={"on_conflict": forward}, reverse={"on_conflict": reverse})
    told = [item for item in of_status(items_of(job, tw.OK), "warning") if item["code"] == "POLICY"]
    assert bool(told) == warned, told


@pytest.mark.rung("marker")
def test_ignore_flow(pair, make_job):
    """A child without its parent fails; that can be accepted.  What is not ignorable cannot."""
    table(pair)
    pair.a.sql("CREATE TABLE child (id int PRIMARY KEY, t int REFERENCES t)")
    objects = {"tables": "public.child"}
    assert_fails(make_job(pair, None, objects=objects), "FOREIGN_KEYS", "child_t_fkey")
    job = make_job(pair, None, objects=objects, job={"accept": "FOREIGN_KEYS"})
    item = next(i for i in items_of(job, tw.OK) if i["code"] == "FOREIGN_KEYS" and i["accepted"])
    assert item["ignorable"]
    assert_fails(make_job(pair, job={"accept": "WAL_LEVEL"}), "ACCEPT", "WAL_LEVEL")


def test_old_transaction(pair, job):
    """An open transaction that holds up the making of the slot is told, with its process."""
    table(pair)
    pair.a.sql("CREATE SCHEMA aside CREATE TABLE x (id int)")
    with contextlib.closing(pair.a.connect(autocommit=False)) as conn, conn.cursor() as cur:
        cur.execute("INSERT INTO aside.x VALUES (1)")
        job.start(wait=())
        wait_for(lambda: str(conn.info.backend_pid) in job.log_text(), "the log names the blocking process")
        conn.commit()
    for task in tw.TASKS:
        job.wait_state(task, "Running")
    job.wait_synced()
    assert job.task("forward")["state"] == "Running"


def test_locked_table(pair, job):
    """A lock on a table is waited for in short tries, so that nobody queues behind us for long."""
    table(pair)
    with pair.a.transaction() as cur:
        cur.execute("INSERT INTO t VALUES (1, 'v')")
        job.start(wait=())
        wait_for(lambda: "public" in job.log_text() and "locked" in job.log_text(), "the log tells of the lock")
    for task in tw.TASKS:
        job.wait_state(task, "Running")
    job.wait_synced()
    compare.assert_same(pair)
