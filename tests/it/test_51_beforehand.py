"""What the precheck knows beforehand of trouble that would come later, and what helps where others run the server."""

import contextlib

import psycopg2
import pytest

import pg
import tw
from test_03_precheck import assert_fails, items_of, of_status
from wait import wait_for

PLAIN = "CREATE TABLE t (id int PRIMARY KEY, v text)"


def told(job, code, *statuses, node=None):
    """The items of this code with one of these statuses, of a check that passes or not."""
    _, items = job.check()
    for item in of_status(items, "warning", "failed"):
        assert item["needed"] and item["remedy"], item
    return [i for i in of_status(items, *(statuses or ("warning", "failed")))
            if i["code"] == code and node in (None, i["node"])]


def one(job, code, status, node=None):
    found = told(job, code, status, node=node)
    assert len(found) == 1, job.check()
    return found[0]


@contextlib.contextmanager
def own(servers, make_server, make_job, end, name, settings=None, version=None, rung="marker", **keys):
    """A job with a server of its own on one end."""
    server = make_server(name, settings or {}, template=end == "b", version=version)
    both = (server, servers[1]) if end == "a" else (servers[0], server)
    pair = pg.make_pair(*both, name, rung)
    try:
        pair.a.sql(PLAIN)
        yield server, pair, make_job(pair, **keys)
    finally:
        for job in pair.jobs:
            job.clean_up()
        pg.drop_pair(pair)
        server.stop("immediate")


# ---- who runs the server

PROVIDERS = {
    "aws": ({"rds.logical_replication": "0"}, None,
            {"WAL_LEVEL": ["rds.logical_replication = 1", "parameter group", "reboot"],
             "SLOTS": ["max_replication_slots", "parameter group"], "REPLICATION_CONNECT": ["GRANT rds_replication TO tw_plain"]}),
    "aws by role": ({}, "rdsadmin", {"WAL_LEVEL": ["rds.logical_replication = 1"]}),
    "alibaba": ({}, "alicloud_rds_admin",
                {"WAL_LEVEL": ["wal_level = logical", "RDS console"], "SLOTS": ["RDS console"],
                 "REPLICATION_CONNECT": ["privileged account"]}),
}


@pytest.mark.rung("marker")
@pytest.mark.parametrize("name", PROVIDERS)
def test_remedies_of_providers(servers, make_server, make_job, name):
    """Where others run the server, what helps is theirs: no ALTER SYSTEM, no superuser."""
    settings, role, wanted = PROVIDERS[name]
    with own(servers, make_server, make_job, "a", "managed",
             {**settings, "wal_level": "replica", "max_replication_slots": "1"}) as (server, pair, job):
        if role:
            server.sql(f"CREATE ROLE {role}")
        server.sql("SELECT pg_create_physical_replication_slot('taken')")
        _, items = job.check()
        assert not [i for i in items if i["node"] == "a" and ("ALTER SYSTEM" in i["remedy"] or " SUPERUSER" in i["remedy"])]
        for code, words in wanted.items():
            if code == "REPLICATION_CONNECT":
                server.sql(f'ALTER DATABASE "{pair.a.dbname}" OWNER TO tw_plain')
                job = make_job(pair, a={"user": "tw_plain"})
            remedy = one(job, code, "failed", "a")["remedy"]
            assert all(w in remedy for w in words), remedy


@pytest.mark.rung("marker")
@pytest.mark.parametrize("host, words", [
    ("x.c1.eu-west-1.rds.amazonaws.com", "security group"), ("pgm-x.pg.rds.aliyuncs.com", "IP whitelist"),
    ("pc-x.pg.polardb.rds.aliyuncs.com", "cluster's whitelist"), ("db.example.com", "listen_addresses")])
def test_provider_by_name(pair, make_job, host, words):
    """One that cannot be asked is known by its name."""
    pair.a.sql(PLAIN)
    job = make_job(pair, a={"host": host, "hostaddr": "127.0.0.1", "port": pg.free_port()})
    assert words in one(job, "CONNECT_REACH", "failed", "a")["remedy"]


@pytest.mark.rung("marker")
def test_tls_alone(servers, make_server, make_job):
    """A server that lets in over TLS alone is told with that way, too."""
    server = make_server("tlsonly", {}, hba="local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n")
    pair = pg.make_pair(server, servers[1], "tlsonly", "marker")
    try:
        job = make_job(pair, a={"sslmode": "disable"})
        assert "sslmode = require" in one(job, "CONNECT_HBA", "failed", "a")["remedy"]
    finally:
        pg.drop_pair(pair)
        server.stop("immediate")


# ---- settings of a server

SETTINGS = [
    ("a", None, {"max_connections": "14", "superuser_reserved_connections": "3"}, "CONNECTIONS", "warning", "max_connections"),
    ("b", None, {"old_snapshot_threshold": "60"}, "TIMEOUTS", "warning", "old_snapshot_threshold = -1"),
    ("a", 18, {"idle_replication_slot_timeout": "600"}, "TIMEOUTS", "warning", "idle_replication_slot_timeout = 0"),
    ("a", 17, {"event_triggers": "off"}, "EVENT_TRIGGER", "failed", "event_triggers = on"),
    ("b", 18, {"max_active_replication_origins": "0"}, "ORIGINS", "failed", "max_active_replication_origins"),
]


@pytest.mark.rung("origin")
@pytest.mark.parametrize("end, version, settings, code, status, remedy", SETTINGS, ids=[next(iter(s[2])) for s in SETTINGS])
def test_settings(servers, make_server, make_job, end, version, settings, code, status, remedy):
    """Each is told, with what sets it right; set right it is told no more."""
    with own(servers, make_server, make_job, end, "odd", settings, version, rung="origin") as (server, _, job):
        item = one(job, code, status, end)
        assert next(iter(settings)) in item["measured"] + item["remedy"] and remedy in item["remedy"], item
        if "ALTER SYSTEM" in item["remedy"] and "..." not in item["remedy"]:
            for statement in item["remedy"].split("\n")[0].split("--")[0].split(";"):
                if statement.strip():
                    server.sql(statement)
            server.configure({})
            server.stop()
            server.start()
            assert not told(job, code, node=end)


@pytest.mark.rung("marker")
def test_limit_of_the_role(pair, job):
    pair.a.sql(PLAIN)
    pair.a.server.sql(f"ALTER DATABASE \"{pair.a.dbname}\" CONNECTION LIMIT 5")
    assert_fails(job, "CONNECTIONS", "ALTER DATABASE", "CONNECTION LIMIT -1", node="a")
    pair.a.server.sql(f"ALTER DATABASE \"{pair.a.dbname}\" CONNECTION LIMIT -1")
    assert not told(job, "CONNECTIONS")


@contextlib.contextmanager
def receiving(server):
    """Somebody streams from it by a physical slot, as a standby does."""
    with contextlib.closing(psycopg2.connect(
            host=server.root, port=server.port, user="postgres", dbname="postgres", application_name="standby1",
            connection_factory=psycopg2.extras.PhysicalReplicationConnection)) as conn, conn.cursor() as cur:
        cur.execute("CREATE_REPLICATION_SLOT standby1 PHYSICAL")
        cur.start_replication(slot_name="standby1", decode=False)
        yield


@pytest.mark.rung("origin")
def test_standby(servers, make_server, make_job):
    """Before 17 no slot survives a failover: told where there is a standby to fail over to."""
    with own(servers, make_server, make_job, "a", "walled") as (server, _, job):
        assert not told(job, "SLOT_FAILOVER")
        with receiving(server):
            item = one(job, "SLOT_FAILOVER", "warning", "a")
        assert "before PostgreSQL 17" in item["needed"] and "pg_failover_slots" in item["remedy"], item


@pytest.mark.rung("origin")
def test_standby_of_17(servers, make_server, make_job):
    """Since 17 it does, and B does not get ahead of a standby that is named."""
    with own(servers, make_server, make_job, "a", "walled", version=17) as (server, _, job), receiving(server):
        item = one(job, "SLOT_FAILOVER", "warning", "a")
        assert "synchronized_standby_slots" in item["remedy"] and "sync_replication_slots" in item["needed"], item
        server.sql("ALTER SYSTEM SET synchronized_standby_slots = 'standby1'")
        server.sql("SELECT pg_reload_conf()")
        assert not told(job, "SLOT_FAILOVER")


@pytest.mark.rung("marker")
def test_slot_of_a_job_that_is_lost(servers, make_server, make_job):
    """A job that has run: whether it could go on is known beforehand."""
    with own(servers, make_server, make_job, "a", "lost", {"max_slot_wal_keep_size": "1MB"}) as (server, pair, job):
        job.start()
        job.wait_synced()
        assert job.stop() == tw.OK and not told(job, "SLOT_NAME")
        pair.a.sql("CREATE TABLE filler AS SELECT repeat('x', 1000) FROM generate_series(1, 9000); DROP TABLE filler")
        server.sql("CHECKPOINT")
        item = one(job, "SLOT_NAME", "warning", "a")
        assert f"twsync_{job.name}_forward is lost" in item["measured"] and "twsync reset" in item["remedy"], item


# ---- by trying

@pytest.mark.rung("origin")
def test_somebody_forbids_it(pair, job):
    """The right is there, and an event trigger says no: it is tried."""
    pair.a.sql(PLAIN)
    pair.b.admin("CREATE FUNCTION no() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not here' "
                 "USING ERRCODE = '2F003'; END $$; CREATE EVENT TRIGGER no_ddl ON ddl_command_start WHEN tag IN "
                 "('CREATE SCHEMA', 'CREATE TABLE') EXECUTE FUNCTION no()")
    assert_fails(job, "WRITE_TRIAL", "2F003", node="b")
    pair.b.admin("DROP EVENT TRIGGER no_ddl")
    assert not told(job, "WRITE_TRIAL")


@pytest.mark.rung("marker")
def test_slot_that_waits(pair, job):
    """Making a slot waits for open transactions: the trial does not wait for long, and leaves nothing that does."""
    pair.a.sql(PLAIN)
    with contextlib.closing(pair.a.connect(autocommit=False)) as conn, conn.cursor() as cur:
        cur.execute("INSERT INTO t VALUES (1, 'x')")
        assert "not tried to the end" in one(job, "SLOT_TRIAL", "ok", "a")["measured"]
        wait_for(lambda: pair.a.admin("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE %s",
                                      (f"twsync:{job.name}:check%",)) == [(0,)], "no session is left")
        assert pair.a.admin("SELECT slot_name FROM pg_replication_slots WHERE slot_name LIKE 'twsync_probe%%'") == []
        conn.rollback()
    assert one(job, "SLOT_TRIAL", "ok", "a")["measured"] == "a slot can be made"


@pytest.mark.rung("marker")
def test_no_temporary_tables(pair, make_job):
    pair.a.sql(PLAIN)
    pair.b.admin(f'REVOKE TEMPORARY ON DATABASE "{pair.b.dbname}" FROM PUBLIC; GRANT CREATE ON DATABASE "{pair.b.dbname}" '
                 "TO tw_plain; GRANT ALL ON SCHEMA public TO tw_plain")
    job = make_job(pair, b={"user": "tw_plain"}, reverse={"enabled": "no"})
    assert_fails(job, "CREATE_RIGHT", "GRANT TEMPORARY ON DATABASE", node="b")
    out = job.command("grants", job.path)[1]
    assert "GRANT TEMPORARY ON DATABASE" in out, out
    assert not told(job, "WRITE_TRIAL"), "what is known is not told twice"
    pair.b.admin(f'GRANT TEMPORARY ON DATABASE "{pair.b.dbname}" TO tw_plain')
    assert not told(job, "CREATE_RIGHT")
    pair.a.admin(f'REVOKE TEMPORARY ON DATABASE "{pair.a.dbname}" FROM PUBLIC, tw_owner')
    assert not told(job, "CREATE_RIGHT") and not told(job, "WRITE_TRIAL"), "a source that is nobody's target needs none"
    assert one(job, "WRITE_TRIAL", "ok", "a")["measured"] != "not tried"
    pair.b.admin(f'REVOKE CREATE ON DATABASE "{pair.b.dbname}" FROM tw_plain')
    assert one(job, "CREATE_RIGHT", "failed", "b") and not told(job, "WRITE_TRIAL")


@pytest.mark.rung("marker")
def test_truncate_of_a_target(pair, make_job):
    pair.a.sql(PLAIN)
    pair.b.sql(PLAIN + "; GRANT SELECT, INSERT, UPDATE, DELETE ON t TO tw_plain")
    pair.b.admin(f'GRANT CREATE ON DATABASE "{pair.b.dbname}" TO tw_plain; GRANT ALL ON SCHEMA public TO tw_plain')
    job = make_job(pair, b={"user": "tw_plain"}, reverse={"enabled": "no"}, objects={"existing": "keep"})
    assert "public.t" in one(job, "OWNERSHIP", "failed", "b")["measured"]
    pair.b.sql("GRANT TRUNCATE ON t TO tw_plain")
    assert not told(job, "OWNERSHIP")


# ---- tables

def test_publication_of_others(pair, make_job):
    """REPLICA IDENTITY FULL beside a publication with a column list: the server would refuse the application's updates."""
    pair.a.sql(PLAIN + "; INSERT INTO t VALUES (1, 'a')")
    pair.a.admin("CREATE PUBLICATION other FOR TABLE t (id)")
    item = one(make_job(pair), "OTHER_PUBLICATIONS", "failed", "a")
    assert "ALTER PUBLICATION other DROP TABLE public.t" in item["remedy"], item
    job = make_job(pair, forward={"identity": "key"})
    assert not told(job, "OTHER_PUBLICATIONS")
    pair.a.admin("ALTER PUBLICATION other DROP TABLE t; ALTER PUBLICATION other ADD TABLE t")
    job = make_job(pair)
    assert not told(job, "OTHER_PUBLICATIONS")
    job.start()
    pair.a.sql("UPDATE t SET v = 'b'")
    job.wait_synced()


def test_counting_alike(pair, make_job):
    """Two sides that give out the same numbers; what the remedy says ends it."""
    pair.a.sql("CREATE TABLE t (id serial PRIMARY KEY, v text); CREATE TABLE u (id bigint GENERATED ALWAYS AS IDENTITY "
               "PRIMARY KEY); CREATE SEQUENCE free; CREATE TABLE w (id int PRIMARY KEY DEFAULT nextval('free'), s serial); "
               "INSERT INTO t (v) SELECT 'x' FROM generate_series(1, 7)")
    job = make_job(pair)
    item = one(job, "SEQUENCES", "warning")
    assert [part.replace('"', "") for part in item["measured"].split(": ")[1].split(", ")] == [
        "public.t.id", "public.u.id", "public.w.id"], item
    assert not told(make_job(pair, reverse={"enabled": "no"}), "SEQUENCES")
    job.start()
    job.wait_synced()
    for node, letter in ((pair.a, "a"), (pair.b, "b")):
        pair.a.sql("INSERT INTO t (v) VALUES ('z')")
        for line in one(job, "SEQUENCES", "warning")["remedy"].split("\n"):
            assert f"-- on {letter}" in line, line
            node.sql(line.split(";")[0])
        job.wait_synced()
    assert not told(job, "SEQUENCES")
    for n in range(5):
        for node in pair.nodes:
            node.sql("INSERT INTO t (v) VALUES ('y'); INSERT INTO w (s) VALUES (1); INSERT INTO u DEFAULT VALUES")
    job.wait_synced()
    assert [job.task(task)["conflicts"] for task in tw.TASKS] == [0, 0]
    assert pair.a.one("SELECT count(*) FROM t") == 19


COLUMNS = [
    ("numeric(12,4)", "numeric(12,2)", True), ("numeric", "numeric(20,6)", True), ("numeric(10)", "numeric(12,2)", False),
    ("timestamp(6)", "timestamp(0)", True), ("timestamptz", "timestamp", True), ("float8", "float4", True),
    ("float4", "float8", False), ("varchar(10)", "char(10)", True), ("varchar(10)", "text", False), ("int", "bigint", False),
    ("bigint", "int", False), ("int", "text", True), ("timestamp(3)", "timestamp", False), ("text[]", "text", True),
]


@pytest.mark.rung("marker")
def test_types_of_columns(pair, make_job):
    """Types by which values change without an error; one way what is wider is no matter."""
    a = ", ".join(f"c{n} {x}" for n, (x, _, _) in enumerate(COLUMNS))
    b = ", ".join(f"c{n} {y}" for n, (_, y, _) in enumerate(COLUMNS))
    pair.a.sql(f"CREATE TABLE t (id int PRIMARY KEY, {a})")
    pair.b.sql(f"CREATE TABLE t (id int PRIMARY KEY, {b})")
    job = make_job(pair, objects={"existing": "keep"}, reverse={"enabled": "no"})
    measured = one(job, "TARGET_COLUMNS", "failed", "b")["measured"]
    for n, (x, y, bad) in enumerate(COLUMNS):
        assert (f'"c{n}" is ' in measured) == bad, (x, y, measured)
    both = one(make_job(pair, objects={"existing": "keep"}), "TARGET_COLUMNS", "failed", "b")["measured"]
    assert '"c6" is real on a, double precision on b' in both and '"c8" is ' not in both, both
    items_of(make_job(pair, objects={"existing": "keep"}, job={"accept": "TARGET_COLUMNS"}), tw.OK)


def test_table_without_its_key(pair, make_job):
    pair.a.sql(PLAIN)
    pair.b.sql("CREATE TABLE t (id int, v text)")
    job = make_job(pair, objects={"existing": "keep"})
    assert_fails(job, "TARGET_KEYS", '"public"."t"', "ADD PRIMARY KEY", node="b")
    pair.b.sql("ALTER TABLE t ADD PRIMARY KEY (id)")
    assert not told(job, "TARGET_KEYS")


@pytest.mark.rung("origin")
def test_what_fires(pair, make_job):
    """Triggers and rules that fire for replicas, too, and tables outside that refer to ours."""
    pair.a.sql(PLAIN)
    pair.b.sql(PLAIN + "; CREATE SCHEMA side; CREATE TABLE side.log (id int); CREATE TABLE side.child (t int REFERENCES t ON "
               "DELETE CASCADE); CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$; "
               "CREATE TRIGGER audit AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION note(); CREATE RULE noted AS ON UPDATE "
               "TO t DO ALSO INSERT INTO side.log VALUES (1)")
    job = make_job(pair, objects={"existing": "keep"})
    assert "side.child" in one(job, "FIRING", "warning", "b")["measured"]
    pair.b.sql("DROP TABLE side.child")
    assert not told(job, "FIRING")
    pair.b.sql("ALTER TABLE t ENABLE ALWAYS TRIGGER audit; ALTER TABLE t ENABLE REPLICA RULE noted")
    item = one(job, "FIRING", "warning", "b")
    assert "trigger audit of public.t" in item["measured"] and "rule noted of public.t" in item["measured"], item
    for line in item["remedy"].split("\n"):
        pair.b.sql(line)
    assert not told(job, "FIRING")


@pytest.mark.rung("marker")
def test_what_no_stream_carries(pair, job):
    pair.a.sql(PLAIN + "; CREATE TABLE x (id int PRIMARY KEY, what regclass, big oid, plain oid)")
    assert "x.what (regclass)" in one(job, "NOT_CARRIED", "warning", "a")["measured"]
    number = pair.a.one("SELECT lo_create(0)")
    try:
        assert "x.big (oid)" in one(job, "NOT_CARRIED", "warning", "a")["measured"]
    finally:
        pair.a.sql("SELECT lo_unlink(%s)", (number,))


@pytest.mark.rung("marker")
def test_types_that_an_older_server_lacks(servers_of, make_job):
    servers = servers_of((15, 13))
    pair = pg.make_pair(*servers, "older", "marker")
    try:
        pair.a.sql(PLAIN + "; CREATE TABLE m (id int PRIMARY KEY, r int4multirange)")
        assert_fails(make_job(pair), "TYPES", "int4multirange", node="b")
    finally:
        pg.drop_pair(pair)


@pytest.mark.rung("marker")
def test_collation_of_another_system(pair, job):
    """Of a database whose indexes were built by another version of the C library."""
    pair.a.sql(PLAIN)
    pair.a.admin("UPDATE pg_database SET datcollversion = '0.1' WHERE datname = current_database() AND "
                 "pg_database_collation_actual_version(oid) IS NOT NULL")
    if pair.a.admin("SELECT datcollversion FROM pg_database WHERE datname = current_database()") == [("0.1",)]:
        assert "REFRESH COLLATION VERSION" in one(job, "COLLATION_VERSION", "warning", "a")["remedy"]


@pytest.mark.rung("marker")
def test_remedy_of_a_topology(pair, make_job):
    """Another job's tables: whose they are, and what can be done."""
    pair.a.sql(PLAIN)
    make_job(pair).start()
    item = one(make_job(pair), "TOPOLOGY", "failed", "a")
    assert "twsync release" in item["remedy"] and "exclude" in item["remedy"], item
