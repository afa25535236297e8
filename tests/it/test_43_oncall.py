"""What someone on call reads: real failures, and what `twsync status` says of each: where, what, what to do.

TEXTS has the texts.  Of each failure all warnings must be shown, as text and by --json; it is mended by the command
or the setting that the text names; then there are no warnings, and both sides are equal.
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess

import pytest

import compare
import pg
import proxy
import tw
from wait import Deadline, wait_for

pytestmark = pytest.mark.rung("marker")

# Failure -> its warnings: (what is wrong, what to do about it).  A text alone is somewhere in the output, one with "!"
# is nowhere in it.  JOB is the job file, NAME the job's name, PID, PORT and DB what the test knows of them.
RETRY = r"\(attempt \d+, next 2\S+Z, gives up 2\S+Z\)"
ANEW = (r"^(The two databases may differ now\.  )?To start over: stop the job, `twsync reset JOB --empty` "
        r"\(it empties the job's tables on b\), existing = keep in \[objects\], and run it again\.$")
MEND = (r"^`twsync repair JOB` goes on with a new slot, compares both sides while they are written to, and mends only what "
        r"differs\.  Or start over: stop the job, `twsync reset JOB --empty` \(it empties the job's tables on b\), "
        r"existing = keep in \[objects\], and run it again\.$")
AGAIN = r"^When {} answers again twsync goes on by itself; it gives up at 2\S+Z\.$"
ON_B = r"^Mend it on b: it goes on by itself then\.  `twsync schema JOB` shows how b differs from a\.$"
TEXTS = {
    "A is stopped": [
        (r"^a \(DB_a at 127.0.0.1:PORT\) does not answer: .*Connection refused", AGAIN.format("a")),
        "!cannot go on",
    ],
    "B is stopped": [
        (r"^b \(DB_b at 127.0.0.1:PORT\) does not answer: .*Connection refused", AGAIN.format("b")),
        "!cannot go on",
    ],
    "password of B changed": [
        (r'^b \(DB_b at 127.0.0.1:PORT\) does not answer: .*password authentication failed for user "tw_owner"',
         r"^Put the right password into \[b\] of the job file, then: twsync reload JOB$"),
        "!cannot go on",
    ],
    "too many connections on B": [
        (r'^b \(DB_b at 127.0.0.1:PORT\) does not answer: .*too many connections for role "tw_owner"',
         AGAIN.format("b")),
        "!cannot go on",
    ],
    "database of B renamed": [
        (r'^b \(DB_b at 127.0.0.1:PORT\) does not answer: .*database "DB_b" does not exist', AGAIN.format("b")),
        "!cannot go on",
    ],
    "network to A is a black hole": [
        (r"^a \(DB_a at 127.0.0.1:PORT\) does not answer: .*(time|no answer|\d+ s)",
         "^When a answers again twsync goes on by itself"),
        "!cannot go on",
    ],
    "conflict under policy fail": [
        (r'^forward has failed: conflict insert_exists in table "public"."t", key {"id":"500"}, under policy fail',
         r"twsync conflicts JOB --open.*--resolve ID --take a.*twsync resume JOB --task forward$"),
    ],
    "paused": [
        (r"^forward rests, and its slot keeps WAL on a: \d+ \w+ so far", "^twsync resume JOB --task forward$"),
        "!ERROR",
    ],
    "slot dropped while paused": [
        (r"^the replication slot of forward is gone from a: what was committed since it was last read is lost", MEND),
        "!keeps WAL", "!twsync resume",
    ],
    "slot dropped: gap": [
        (r"^forward has failed: replication slot twsync_NAME_forward is gone from a: what was committed after \S+ is "
         r"lost", MEND),
        "!keeps WAL", "!twsync resume",
    ],
    "slot near its limit": [
        (r"^the replication slot of forward on a holds \d+ kB of WAL; after \d+ kB more it is lost",
         "^Raise max_slot_wal_keep_size on a, or let the task catch up: twsync resume JOB --task forward$"),
        (r"^forward rests", "twsync resume JOB --task forward"),
    ],
    "slot about to be lost": [
        (r"^the replication slot of forward on a holds \d+ kB of WAL, more than .*: it is about to be lost",
         "^Raise max_slot_wal_keep_size on a, or let the task catch up: twsync resume JOB --task forward$"),
        (r"^forward rests", "twsync resume JOB --task forward"),
    ],
    "slot lost while paused": [
        (r"^the replication slot of forward on a is lost", MEND),
        "!keeps WAL", "!twsync resume",
    ],
    "slot lost: gap": [
        (r"^forward has failed: replication slot twsync_NAME_forward on a is lost .*: WAL after \S+ was removed", MEND),
        "!keeps WAL", "!twsync resume",
    ],
    "locked on B": [
        (r"^forward has applied nothing for .*: it is waiting \d+ s for a lock of pid PID \(tw_owner, nightly report, "
         r"idle in transaction since \d+ s, last: .*LOCK TABLE t", r"^On b: SELECT pg_terminate_backend\(PID\)"),
    ],
    "idle in transaction on A": [
        (r"^on a, pid PID \(tw_owner, forgotten\), idle in transaction, its transaction is open for \d+ s, last: .*"
         r"UPDATE t", r"keeps WAL.*pg_terminate_backend\(PID\)"),
    ],
    "prepared transaction on A": [
        (r"^on a, prepared transaction 'left over' of tw_owner in database minute_a, prepared \d+ s ago",
         r"keeps WAL.*(COMMIT|ROLLBACK) PREPARED 'left over'"),
    ],
    "B refuses a row": [
        (rf'^forward cannot go on {RETRY}: could not .* on b: new row for relation "t" violates check constraint '
         r'"short"; Failing row contains \(700, much too long\)', ON_B),
    ],
    "B refuses a row: given up": [
        (r'^forward has failed: could not .* on b: new row for relation "t" violates check constraint "short"',
         r"on b.*twsync resume JOB --task forward$"),
    ],
    "table parked": [
        (r'^not kept in step: public.t: .*check constraint "known" of relation "t" is violated by some row',
         r"^When its cause is gone: twsync resync JOB 'public\.t'$"),
    ],
    "disk full on B": [
        (rf"^forward cannot go on {RETRY}: could not .* on b: could not extend file .*: No space left on device",
         "Check free disk space"),
    ],
    "killed": [
        (r"^the job does not run on this host; its last sign of life was \d+.* ago", "^twsync run JOB$"),
        "not running",
    ],
    "paused (reverse)": [
        (r"^reverse rests, and its slot keeps WAL on b: \d+ \w+ so far", "^twsync resume JOB --task reverse$"),
        "!ERROR",
    ],
    "forward process stopped": [
        (r"^the forward process, (process )?PID, has given no sign for", "SIGSTOP.*kill -CONT PID"),
    ],
    "supervisor process stopped": [
        (r"^the supervisor, process PID, has given no sign for", "SIGSTOP.*kill -CONT PID"),
    ],
    "publication dropped on A": [
        (r'^forward .* on a: publication "twsync_NAME_forward" does not exist', ANEW),
    ],
    "privilege revoked on B": [
        (rf"^forward cannot go on {RETRY}: could not .* on b: permission denied for table t",
         "^`twsync grants JOB` prints what the role lacks; it goes on by itself then"),
    ],
    "column dropped on B": [
        (rf'^forward cannot go on {RETRY}: column "v" of table "public"."t" does not exist on b',
         r"""^`twsync resync JOB '"public"."t"'` brings the table back as it is on a\.$"""),
    ],
    "table dropped on B": [
        (rf'^forward cannot go on {RETRY}: table "public"."t" does not exist on b',
         r"""^`twsync resync JOB '"public"."t"'` brings it to b as it is on the source, """),
    ],
    "A is an older copy": [
        (r"^forward has failed: a has gone back: ", MEND),
        "!twsync resume",
    ],
    "B is another cluster": [
        (r"^the precheck failed: .*\bb\b.*(another server|right server|system identifier|TARGET_TABLES)",
         "twsync run JOB"),
        "!twsync release", "!pg_drop_replication_slot",     # A's slot is what the job needs when B is right again
    ],
    "throttled": [
        (r"^a limit slows forward down: forward.rows = 20", "^twsync throttle JOB forward.rows=-1"),
        "!ERROR",
    ],
    "precheck failed": [
        (r"^the precheck failed: .*REPLICATION", "ALTER ROLE tw_owner REPLICATION;.*twsync run JOB"),
        "!given up",
    ],
    "A does not send": [
        (r"^forward has applied nothing for .*: a does not send, \d+ \w+ are not decoded, walsender pid PID$",
         "^Look at that process: .*be stopped"),
        r"!^forward +Running \(caught up\)",
    ],
    "A does not send: asked again": [
        (rf'^forward cannot go on {RETRY}: could not start replication on a: .*slot "\w+" is active for \w+ PID',
         r"stopped|pg_terminate_backend\(PID\)"),
    ],
    "progress deleted on B": [
        (r"^forward has failed: the progress of task NAME/forward is gone from b", ANEW),
        "!twsync resume",
    ],
    "schema deleted on B": [
        (r"^forward has failed: .*(twsync|progress).* gone from b", ANEW),
        "!twsync resume",
    ],
    "standing by": [
        r"^job NAME \(normal\): standing by; HOST works on it",
        "!ERROR", "!WARNING",
    ],
}
SMALL = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'a' FROM generate_series(1, 100) g"
POLICIES = {"forward": {"on_conflict": "overwrite"}, "reverse": {"on_conflict": "ignore"}}
DEADLINE = 45


def warnings_of(job):
    """The warnings in both forms: [(what is wrong, what to do)] of the text, and of JSON."""
    code, out, err = job.command("status", job.path)
    assert code == tw.OK, err
    text = re.findall(r"^(?:ERROR  |WARNING) (.*)(?:\n        (.*))?$", out, re.M)
    return text, [(w["text"], w["what_to_do"]) for w in job.status()["warnings"]], out


def told(job, failure, deadline=DEADLINE, **known):
    """Waits until status says all that TEXTS has of this failure; {what is wrong: what to do} as it was said."""
    known.update(JOB=job.path, NAME=job.name, HOST=os.uname().nodename)
    last = []

    def shows(text, what):
        return re.search(re.sub("|".join(known), lambda m: re.escape(str(known[m[0]])), text), what, re.M)

    def missing():
        *forms, out = warnings_of(job)
        last[:] = [out]
        lines = [want for want in TEXTS[failure] if isinstance(want, str)
                 and bool(shows(want.lstrip("!"), out)) == want.startswith("!")]
        return lines + [want for want in TEXTS[failure] if isinstance(want, tuple) and not all(any(
            shows(want[0], text) and shows(want[1], todo) for text, todo in form) for form in forms)]

    try:
        wait_for(lambda: not missing(), f"status tells: {failure}", deadline, 0.2)
    except Deadline:
        wanted = "\n".join(map(str, missing()))
        raise AssertionError(f"{failure}: status should say (\"!\": not say)\n{wanted}\nand says\n{last[0]}") from None
    return dict(warnings_of(job)[1])


def do(job, said, command):
    """Runs the command `twsync COMMAND JOB ...` that one of the texts names; what it prints."""
    found = re.search(rf"twsync {command} {re.escape(job.path)}(?: --\w+(?: \w+)?| '[^']+'| \w+\.\w+=-?\w+)*",
                      "\n".join(said.values()))
    assert found, f"no text names twsync {command}: {said}"
    args = shlex.split(found[0])[1:]
    if command == "run":
        job.start()
    else:
        code, out, err = job.command(*args)
        assert code == tw.OK, f"{found[0]}\n{out}{err}"
        return out


def clean(job):
    """A job at work of which nothing is wrong."""
    for task in tw.TASKS:
        job.wait_state(task, "Running", DEADLINE)
    job.wait_synced(deadline=DEADLINE)
    try:
        wait_for(lambda: not any(warnings_of(job)[:2]), "no warnings", DEADLINE)
    except Deadline:
        raise AssertionError(f"nothing should be wrong any more:\n{warnings_of(job)[2]}") from None
    return job


def mended(job):
    clean(job)
    compare.assert_same(job.pair)


def begin(pair, make_job, sql=SMALL, **sections):
    pair.a.sql(sql)
    return clean(make_job(pair, **{**POLICIES, **sections}).start())


def anew(job, said):
    """What is left after a gap: stop, reset --empty, existing = keep, run."""
    job.stop()
    do(job, said, "reset")
    job.change(objects={"existing": "keep"})
    mended(job.start())


def end_ours(node, job):
    node.admin("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE %s",
               (f"twsync:{job.name}:%",))


@contextlib.contextmanager
def own(make_server, name, settings_a=None):
    """A pair on servers of its own."""
    servers = [make_server(name, settings, template=n) for n, settings in enumerate((settings_a, None))]
    pair = pg.make_pair(*servers, name, "marker")
    try:
        yield pair
    finally:
        for job in pair.jobs:
            job.clean_up()
        for server in servers:
            server.stop("immediate")


def test_servers_stopped(own_pair, make_job):
    """Either is stopped; it is mended by its start."""
    job = begin(own_pair, make_job)
    for node in own_pair.nodes:
        node.server.stop("fast")
        (own_pair.b if node is own_pair.a else own_pair.a).sql("INSERT INTO t SELECT max(id) + 1, 'w' FROM t")
        told(job, f"{node.letter.upper()} is stopped", DB=own_pair.a.dbname[:-2], PORT=node.server.port)
        node.server.start()
        mended(job)


def test_password(pair, make_job):
    """The role's password on B is another one, and the old sessions are ended; the job is told the new one."""
    job = begin(pair, make_job)
    try:
        pair.b.admin(f"ALTER ROLE tw_owner PASSWORD '{pg.PASSWORD}-2'")
        end_ours(pair.b, job)
        said = told(job, "password of B changed", DB=pair.a.dbname[:-2], PORT=pair.b.server.port)
        job.change(b={"password": pg.PASSWORD + "-2"})
        do(job, said, "reload")
        mended(job)
    finally:
        pair.b.admin(f"ALTER ROLE tw_owner PASSWORD '{pg.PASSWORD}'")


def test_conflict(pair, make_job):
    """A conflict under policy fail; it is decided by the command that is named."""
    job = begin(pair, make_job, forward={"on_conflict": "fail"})
    with job.unseen("b") as cur:
        cur.execute("INSERT INTO t VALUES (500, 'in the way')")
    pair.a.sql("INSERT INTO t VALUES (500, 'of a')")
    said = told(job, "conflict under policy fail")
    do(job, said, "conflicts")
    code, out, err = job.command("conflicts", job.path, "--resolve", "b/1", "--take", "a")
    assert code == tw.OK, out + err
    do(job, said, "resume")
    mended(job)


def test_slot_dropped(pair, make_job):
    """Somebody drops a slot that keeps WAL for a task at rest."""
    job = begin(pair, make_job)
    assert job.command("pause", job.path, "--task", "forward")[0] == tw.OK
    slot = f"twsync_{job.name}_forward"
    pair.a.wait_slot_rests(slot)
    told(job, "paused")
    pair.a.sql("INSERT INTO t VALUES (500, 'lost')")
    pair.a.admin("SELECT pg_drop_replication_slot(%s)", (slot,))
    told(job, "slot dropped while paused")
    assert job.command("resume", job.path)[0] == tw.OK      # which the text does not say, and somebody tries
    said = told(job, "slot dropped: gap")
    anew(job, said)


def test_slot_lost(make_server, make_job):
    """max_slot_wal_keep_size: first a warning, then the slot is lost."""
    small = {"max_slot_wal_keep_size": "5MB", "min_wal_size": "2MB"}
    with own(make_server, "keep", small) as pair:
        job = begin(pair, make_job)
        assert job.command("pause", job.path, "--task", "forward")[0] == tw.OK
        pair.a.wait_slot_rests(f"twsync_{job.name}_forward")
        noise = "CREATE TABLE noise AS SELECT repeat('x', 1000) v FROM generate_series(1, 3000); DROP TABLE noise"
        pair.a.server.sql(noise)
        told(job, "slot near its limit")
        pair.a.server.sql(noise)
        told(job, "slot about to be lost")
        pair.a.sql("INSERT INTO t VALUES (500, 'lost')")
        pair.a.server.sql(noise)
        pair.a.server.sql("CHECKPOINT")
        told(job, "slot lost while paused")
        assert job.command("resume", job.path)[0] == tw.OK
        said = told(job, "slot lost: gap")
        anew(job, said)


def test_locked(pair, make_job):
    """Another session on B holds a lock; who it is is told."""
    job = begin(pair, make_job)
    with contextlib.closing(pair.b.connect(False)) as other, other.cursor() as cur:
        cur.execute("SET application_name = 'nightly report'; LOCK TABLE t IN EXCLUSIVE MODE")
        pair.a.sql("UPDATE t SET v = 'b' WHERE id = 1")
        told(job, "locked on B", PID=other.info.backend_pid)
        pair.b.admin("SELECT pg_terminate_backend(%s)", (other.info.backend_pid,))
    mended(job)


def test_minute(make_server, make_job):
    """What is told after a minute: transactions that stay open on A, and a row that B alone refuses."""
    with own(make_server, "minute", {"max_prepared_transactions": 5}) as pair, \
            contextlib.closing(pair.a.connect(False)) as idle, idle.cursor() as cur:
        job = begin(pair, make_job, retry={"other": "1min"})
        cur.execute("SET application_name = 'forgotten'; UPDATE t SET v = 'idle' WHERE id = 1")
        with contextlib.closing(pair.a.connect(False)) as two, two.cursor() as other:
            other.execute("INSERT INTO t VALUES (600, 'prepared')")
            other.execute("PREPARE TRANSACTION 'left over'")
        assert not job.status()["warnings"]
        pair.b.sql("ALTER TABLE t ADD CONSTRAINT short CHECK (length(v) < 9)")
        pair.a.sql("INSERT INTO t VALUES (700, 'much too long')")
        told(job, "B refuses a row")
        told(job, "idle in transaction on A", PID=idle.info.backend_pid, deadline=85)
        told(job, "prepared transaction on A", deadline=85)
        said = told(job, "B refuses a row: given up", deadline=85)
        pair.b.sql("ALTER TABLE t DROP CONSTRAINT short")
        do(job, said, "resume")
        pair.a.admin("SELECT pg_terminate_backend(%s)", (idle.info.backend_pid,))
        pair.a.sql("ROLLBACK PREPARED 'left over'")
        mended(job)


@pytest.mark.rung("origin")
def test_parked(pair, make_job):
    """DDL of A that B refuses: the table is left out until resync."""
    job = begin(pair, make_job)
    with job.unseen("b") as cur:
        cur.execute("UPDATE t SET v = 'odd' WHERE id = 7")
    pair.a.sql("UPDATE t SET v = 'x' WHERE id = 8; ALTER TABLE t ADD CONSTRAINT known CHECK (v <> 'odd')")
    said = told(job, "table parked")
    pair.b.sql("UPDATE t SET v = 'b' WHERE id = 7")
    job.wait_synced(("reverse",))
    do(job, said, "resync")
    mended(job)


def test_disk_full(make_server, make_job):
    """B's disk is full: a tablespace of 2 MB, in a view of the machine's mounts that ends with the server."""
    if os.geteuid() or pg.major() != pg.installed_version() or not all(map(shutil.which, ("unshare", "nsenter"))):
        pytest.skip("only root makes a small disk")
    with own(make_server, "disk") as pair:
        server = pair.b.server
        disk = os.path.join(server.root, "disk")
        os.mkdir(disk)
        plain, small = server.argv, f"mount -t tmpfs -o size=2m,mode=700,uid={pg.server_user().pw_uid}"
        inside = ["unshare", "--mount", "sh", "-c", f'{small} none {disk} && exec "$@"', "sh"]
        server.argv = lambda tool, *args: (inside if "start" in args else []) + plain(tool, *args)
        server.restart()
        pair.b.admin(f"CREATE TABLESPACE small LOCATION '{disk}'")
        pair.b.admin("GRANT CREATE ON TABLESPACE small TO tw_owner")
        job = begin(pair, make_job)
        pair.b.sql("ALTER TABLE t SET TABLESPACE small")
        clean(job)
        pair.a.sql("INSERT INTO t SELECT g, repeat('x', 1000) FROM generate_series(1000, 5000) g")
        told(job, "disk full on B")
        with open(os.path.join(server.data, "postmaster.pid")) as f:
            pid = f.readline().strip()
        subprocess.run(["nsenter", "-t", pid, "-m", "mount", "-o", "remount,size=64m", disk], check=True)
        clean(job)
        compare.assert_contents(pair)   # the tablespace stays B's own


def test_killed(pair, make_job):
    """kill -9 of all of it; `run` goes on."""
    job = begin(pair, make_job)
    job.kill()
    pair.a.sql("UPDATE t SET v = 'meanwhile'")
    said = told(job, "killed")
    do(job, said, "run")
    mended(job)


def test_paused(pair, make_job):
    """At rest, by a command."""
    job = begin(pair, make_job)
    assert job.command("pause", job.path, "--task", "reverse")[0] == tw.OK
    pair.b.sql("UPDATE t SET v = 'meanwhile'")
    said = told(job, "paused (reverse)")
    do(job, said, "resume")
    mended(job)


def test_stopped_processes(pair, make_job):
    """SIGSTOP of the forward task and of the supervisor."""
    job = begin(pair, make_job)
    pids = {"forward": job.processes()["forward"], "supervisor": job.process.pid}
    for pid in pids.values():
        os.kill(pid, signal.SIGSTOP)
    try:
        pair.a.sql("UPDATE t SET v = v || 'x' WHERE id < 10")
        for what, pid in pids.items():
            told(job, f"{what} process stopped", PID=pid)
    finally:
        for pid in pids.values():
            os.kill(pid, signal.SIGCONT)
    mended(job)


def test_black_hole(pair, make_job, proxy_a):
    """The network to A swallows everything."""
    job = begin(pair, make_job, a=proxy_a.job_keys())
    proxy_a.hold()
    try:
        told(job, "network to A is a black hole", DB=pair.a.dbname[:-2], PORT=proxy_a.port)
    finally:
        proxy_a.release()
    mended(job)


def test_publication_dropped(pair, make_job):
    """Somebody drops the publication on A."""
    job = begin(pair, make_job)
    pair.a.admin(f'DROP PUBLICATION "twsync_{job.name}_forward"')
    pair.a.sql("UPDATE t SET v = 'b' WHERE id = 1")
    said = told(job, "publication dropped on A")
    anew(job, said)


def test_privilege(pair, make_job):
    """The table on B is given to somebody else; what `grants` prints for B gives the role back what it needs."""
    job = begin(pair, make_job)
    pair.b.admin("ALTER TABLE t OWNER TO tw_plain; GRANT USAGE ON SCHEMA public TO tw_plain")
    try:
        pair.a.sql("UPDATE t SET v = 'b' WHERE id = 1")
        said = told(job, "privilege revoked on B")
        pair.b.admin("-- " + do(job, said, "grants").split("-- b, database ")[1])
        mended(job)
    finally:
        pair.b.admin("REVOKE tw_plain FROM tw_owner")
        if pair.b.server.version() >= 150000:
            pair.b.admin("REVOKE SET ON PARAMETER session_replication_role FROM tw_owner")


@pytest.mark.rung("origin")
def test_column_dropped(pair, make_job):
    """A column is dropped on B by hand: A's rows have values that B has no place for.

    Without event triggers a column that B lacks is a new one, and is added.
    """
    job = begin(pair, make_job)
    pair.b.sql("ALTER TABLE t DROP v")
    pair.a.sql("UPDATE t SET v = 'b' WHERE id < 10")
    said = told(job, "column dropped on B")
    do(job, said, "resync")
    mended(job)


def test_table_dropped(pair, make_job):
    """A table is dropped on B by hand."""
    job = begin(pair, make_job)
    pair.b.sql("DROP TABLE t")
    pair.a.sql("UPDATE t SET v = 'b'")
    said = told(job, "table dropped on B")
    do(job, said, "resync")
    mended(job)


def test_connection_limit(pair, make_job):
    """The role has no connections left on B."""
    job = begin(pair, make_job)
    try:
        pair.b.admin("ALTER ROLE tw_owner CONNECTION LIMIT 0")
        end_ours(pair.b, job)
        told(job, "too many connections on B", DB=pair.a.dbname[:-2], PORT=pair.b.server.port)
    finally:
        pair.b.admin("ALTER ROLE tw_owner CONNECTION LIMIT -1")
    mended(job)


def test_database_renamed(pair, make_job):
    """B's database has another name."""
    job = begin(pair, make_job)
    server, name = pair.b.server, pair.b.dbname

    def renamed(old, new):
        with contextlib.suppress(pg.psycopg2.Error):
            server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (old,))
            server.sql(f"ALTER DATABASE {old} RENAME TO {new}")
            return True

    wait_for(lambda: renamed(name, name + "_old"), "another name")
    told(job, "database of B renamed", DB=name[:-2], PORT=server.port)
    wait_for(lambda: renamed(name + "_old", name), "its old name")
    mended(job)


def test_older_copy(make_server, make_job):
    """A is put back to an older copy of its files."""
    with own(make_server, "older") as pair:
        job = begin(pair, make_job)
        assert job.stop() == tw.OK
        a = pair.a.server
        a.stop()
        subprocess.run(["cp", "-a", a.data, a.data + ".old"], check=True)
        a.start()
        clean(job.start())
        pair.a.sql("INSERT INTO t VALUES (500, 'forgotten by A')")
        job.wait_synced()
        a.stop()
        shutil.rmtree(a.data)
        os.rename(a.data + ".old", a.data)
        a.start()
        said = told(job, "A is an older copy")
        anew(job, said)


def test_another_cluster(pair, make_job, servers):
    """B's address leads to another server."""
    job = begin(pair, make_job)
    job.stop()
    stranger = pg.make_pair(servers[0], servers[0], f"{pair.a.dbname}_new", "marker")
    try:
        stranger.b.sql(SMALL)
        there = dict(job.sections["b"])
        job.change(b=stranger.b.job_keys())
        job.start(wait=())
        told(job, "B is another cluster")
        job.clean_up()
        job.change(b=there)
        mended(job.start())
    finally:
        job.clean_up()
        pg.drop_pair(stranger)


def test_throttled(pair, make_job):
    """A limit holds the task back."""
    job = begin(pair, make_job, throttle={"forward.rows": 20})
    pair.a.sql("INSERT INTO t SELECT g, 'many' FROM generate_series(1000, 5000) g")
    said = told(job, "throttled")
    do(job, said, "throttle")
    mended(job)


def test_precheck(pair, make_job):
    """A right is missing when the job starts."""
    job = begin(pair, make_job)
    assert job.stop() == tw.OK
    try:
        pair.a.admin("ALTER ROLE tw_owner NOREPLICATION")
        job.start(wait=())
        assert job.wait_exit() == tw.PRECHECK_FAILED
        said = told(job, "precheck failed")
    finally:
        pair.a.admin("ALTER ROLE tw_owner REPLICATION")
    do(job, said, "run")
    mended(job)


def test_frozen_walsender(pair, make_job):
    """A's server stops sending, and nobody reports an error."""
    job = begin(pair, make_job)
    frozen = pg.freeze_at_rest(pair.a, f"twsync:{job.name}:forward:stream:%")
    try:
        pair.a.sql("UPDATE t SET v = 'c' WHERE id = 1")
        told(job, "A does not send", PID=frozen[0])
        told(job, "A does not send: asked again", PID=frozen[0])
    finally:
        pg.resume(frozen)
    mended(job)


@pytest.mark.parametrize("what", ["progress", "schema"])
def test_ours_deleted(pair, make_job, what):
    """Somebody tidies up on B."""
    job = begin(pair, make_job)
    pair.b.admin("DROP SCHEMA twsync CASCADE" if what == "schema" else
                 "DELETE FROM twsync.progress WHERE task ~ 'forward'")
    pair.a.sql("UPDATE t SET v = 'b' WHERE id = 1")
    said = told(job, f"{what} deleted on B")
    anew(job, said)


def test_standby(pair, make_job):
    """A second twsync of the job: it stands by, which is no failure."""
    job = begin(pair, make_job)
    other = make_job(pair, name=job.name, **POLICIES).start(wait=())
    wait_for(lambda: other.status()["lease"] == "standby", "it stands by")
    told(other, "standing by", deadline=5)
    assert not other.status()["warnings"]
    mended(job)
