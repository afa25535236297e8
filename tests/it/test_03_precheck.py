"""The precheck: what is missing is named, with what mends it, and nothing is created before it passes."""

import contextlib

import psycopg2
import pytest

import compare
import pg
import tw
from wait import wait_for

KEYS = {"code", "status", "detail", "advice", "ignorable"}
STATUSES = {"ok", "warning", "failed"}


def items_of(job, exit_code):
    """The items of a check that must end with exit_code, in a known form."""
    code, items = job.check()
    assert code == exit_code, f"exit {code}:\n" + "\n".join(map(str, items))
    assert items
    for item in items:
        assert KEYS <= item.keys() and item["status"] in STATUSES and item["code"], item
        assert isinstance(item["ignorable"], bool), item
        assert item["status"] == "ok" or item["detail"], item
    return items


def failed(items):
    return [item for item in items if item["status"] == "failed"]


def assert_fails(job, *needles, end=None):
    """check and run both end with "precheck failed"; one failed item says all the needles."""
    items = failed(items_of(job, tw.PRECHECK_FAILED))

    def said(item):
        return " ".join(str(value) for value in item.values()).lower()

    assert any(all(n.lower() in said(item) for n in needles) for item in items), (
        f"no failed item says {needles}:\n" + "\n".join(map(str, items)))
    assert all(item["advice"] for item in items), f"a failed item has no advice: {items}"
    code, out, err = job.command("run", job.path)
    assert code == tw.PRECHECK_FAILED, f"run: exit {code}\n{out}{err}"
    for node in job.pair.nodes:
        with contextlib.suppress(psycopg2.Error):
            assert compare.left_behind(node, job.name) == []
    return items


def table(pair):
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v text)")


def test_all_well(pair, job):
    table(pair)
    items = items_of(job, tw.OK)
    assert not failed(items)
    assert len({item["code"] for item in items}) > 8
    text = job.command("check", job.path)
    assert text[0] == tw.OK
    for item in items:
        assert item["code"] in text[1]
    assert pair.rung in text[1].lower(), f"the rung is not told:\n{text[1]}"
    compare.assert_untouched(pair, job.name)


@pytest.mark.rung("marker")
@pytest.mark.parametrize("end", ["a", "b"])
@pytest.mark.parametrize("fault", ["closed port", "wrong password", "pg_hba", "no database", "no role"])
def test_connection(pair, make_job, end, fault):
    """Each fault is told apart, and at which end it is."""
    table(pair)
    node = pair.nodes["ab".index(end)]
    changes, needle = {
        "closed port": ({"port": pg.free_port()}, "connection refused"),
        "wrong password": ({"password": "wrong"}, "password authentication failed"),
        "pg_hba": ({"user": "tw_rejected"}, "pg_hba.conf"),
        "no database": ({"dbname": "no_such_db"}, "does not exist"),
        "no role": ({"user": "no_such_role"}, "authentication failed"),
    }[fault]
    job = make_job(pair, **{end: changes})
    items = assert_fails(job, needle)
    assert any(f'"node": "{end}"' in str(item).replace("'", '"') or f" {end} " in f" {item['detail']} "
               or f"[{end}]" in str(item) or f"node {end}" in str(item).lower()
               or item["code"].lower().startswith((f"{end}_", f"{end}.")) for item in items), items
    code, out, err = job.command("check", job.path, "--connect")
    assert code in (tw.PRECHECK_FAILED, tw.NO_CONNECTION) and needle in (out + err).lower(), (code, out, err)
    compare.assert_untouched(pair, job.name)
    assert node.letter == end


def test_same_database_on_both_sides(pair, make_job):
    table(pair)
    job = make_job(pair, b=pair.a.job_keys())
    assert_fails(job, "same")


def test_same_database_by_another_way(pair, make_job):
    """The socket and TCP lead to the same place; the names do not show it."""
    table(pair)
    other = pg.Node("b", pair.a.server, pair.a.dbname, pair.a.role, not pair.a.tcp)
    job = make_job(pair, b={"password": None, "sslmode": None})
    job.change(b=other.job_keys())
    assert_fails(job, "same")


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


@pytest.mark.rung("marker")
@pytest.mark.parametrize("end", ["a", "b"])
@pytest.mark.parametrize("setting, value, needle", [
    ("wal_level", "replica", "wal_level"), ("max_replication_slots", "1", "max_replication_slots"),
    ("max_wal_senders", "0", "max_wal_senders")], ids=lambda v: str(v))
def test_server_settings(servers, make_server, make_job, request, end, setting, value, needle):
    """wal_level, free slots, free senders."""
    bad = make_server("bad", {setting: value}, template=end == "b")
    if setting == "max_replication_slots":
        bad.sql("SELECT pg_create_physical_replication_slot('taken')")
    both = (bad, servers[1]) if end == "a" else (servers[0], bad)
    pair = pg.make_pair(*both, f"settings_{setting}_{end}", "marker")
    try:
        table(pair)
        assert_fails(make_job(pair), needle)
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
    assert_fails(make_job(pair, **{end: {"user": "tw_plain"}}), "REPLICATION")


@pytest.mark.rung("marker")
def test_not_the_owner_of_a_table(pair, make_job):
    table(pair)
    pair.a.sql("CREATE TABLE other_s (id int PRIMARY KEY)", user="tw_owner")
    pair.a.admin("ALTER TABLE other_s OWNER TO tw_plain")
    assert_fails(make_job(pair), "other_s")


@pytest.mark.rung("marker")
def test_may_not_create(pair, make_job):
    """On B nothing belongs to the role: no schema can be made there."""
    table(pair)
    pair.b.server.sql(f'ALTER DATABASE "{pair.b.dbname}" OWNER TO tw_plain')
    assert_fails(make_job(pair), "CREATE")


def test_tables_without_key(pair, job):
    """Neither a primary key nor a non-null unique index: told by name."""
    table(pair)
    pair.a.sql("CREATE TABLE no_key (v text)")
    pair.a.sql("CREATE TABLE nullable_key (k int UNIQUE)")
    pair.a.sql("CREATE TABLE partial_key (k int NOT NULL)")
    pair.a.sql("CREATE UNIQUE INDEX ON partial_key (k) WHERE k > 0")
    pair.a.sql("CREATE TABLE unique_key (k int NOT NULL UNIQUE)")
    code, items = job.check()
    told = " ".join(item["detail"] for item in items if item["status"] != "ok")
    for name in ("no_key", "nullable_key", "partial_key"):
        assert name in told, items
    keys_told = " ".join(i["detail"] for i in items if i["status"] != "ok" and "no_key" in i["detail"] and "partial_key" in i["detail"])
    assert "unique_key" not in keys_told and "public.t," not in keys_told
    compare.assert_untouched(pair, job.name)


def test_replica_identity(pair, job):
    """A table whose identity is not FULL is a warning; run sets it."""
    table(pair)
    pair.a.sql("CREATE TABLE already (id int PRIMARY KEY)")
    pair.a.sql("ALTER TABLE already REPLICA IDENTITY FULL")
    items = items_of(job, tw.OK)
    told = [item for item in items if "identity" in str(item).lower() and item["status"] == "warning"]
    assert told and any("public.t" in str(item) for item in told), items
    assert not any("already" in item["detail"] for item in told)
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
    """Unlogged and foreign tables, inheritance across schemas, unique indexes on expressions: by name."""
    table(pair)
    pair.a.sql("CREATE UNLOGGED TABLE volatile_t (id int PRIMARY KEY)")
    pair.a.sql("CREATE SCHEMA elsewhere CREATE TABLE mother (id int PRIMARY KEY)")
    pair.a.sql("CREATE TABLE daughter (PRIMARY KEY (id)) INHERITS (elsewhere.mother)")
    pair.a.sql("CREATE TABLE expressive (id int PRIMARY KEY, v text)")
    pair.a.sql("CREATE UNIQUE INDEX ON expressive (lower(v))")
    code, items = job.check()
    told = " ".join(str(item) for item in items if item["status"] != "ok")
    for name in ("volatile_t", "daughter", "expressive"):
        assert name in told, items


def test_existing_table(pair, make_job):
    """With existing = error a table of the same name on B is named and nothing starts."""
    table(pair)
    pair.b.sql("CREATE TABLE t (id int PRIMARY KEY, v text)")
    assert_fails(make_job(pair), "public.t")
    items_of(make_job(pair, objects={"existing": "keep"}), tw.OK)


def test_restart_is_no_existing_table(pair, job):
    """What forward itself has created does not fail the check, nor reverse."""
    table(pair)
    job.start()
    assert job.stop() == tw.OK
    assert not failed(items_of(job, tw.OK))


def test_selected_table_missing(pair, make_job):
    table(pair)
    assert_fails(make_job(pair, objects={"tables": "public.not_there"}), "not_there")
    assert_fails(make_job(pair, "no_such_schema"), "no_such_schema")


@pytest.mark.parametrize("forward, reverse, warned", [
    ("overwrite", "overwrite", True), ("ignore", "ignore", True), ("overwrite", "ignore", False),
    ("ignore", "overwrite", False), ("fail", "fail", False)])
@pytest.mark.rung("marker")
def test_policies_that_part_the_sides(pair, make_job, forward, reverse, warned):
    table(pair)
    job = make_job(pair, forward={"on_conflict": forward}, reverse={"on_conflict": reverse})
    told = [i for i in items_of(job, tw.OK) if i["status"] == "warning" and forward in str(i) and "conver" in str(i).lower()]
    assert bool(told) == warned, told


@pytest.mark.rung("marker")
def test_ignore_flow(pair, make_job):
    """accept takes ignorable items only."""
    table(pair)
    code, items = make_job(pair, b=pair.a.job_keys()).check()
    barred = next(i for i in failed(items) if not i["ignorable"])
    job = make_job(pair, job={"accept": barred["code"]}, b=pair.a.job_keys())
    code, out, err = job.command("run", job.path)
    assert code in (tw.BAD_JOB, tw.PRECHECK_FAILED) and barred["code"] in out + err, (code, out, err)


def test_old_transaction(pair, job):
    """An open transaction that holds up the slot is told, with its process."""
    table(pair)
    with contextlib.closing(pair.a.connect(autocommit=False)) as conn, conn.cursor() as cur:
        cur.execute("INSERT INTO t VALUES (1)")
        job.start(wait=())
        wait_for(lambda: str(conn.info.backend_pid) in job.log_text(), "the log names the blocking process", 30)
        conn.commit()
    for task in tw.TASKS:
        job.wait_state(task, "Running")
    job.wait_synced()
    compare.assert_same(pair)
