"""The job file: every mistake named with file, line and the nearest known name; secrets; show."""

import contextlib
import os
import re
import socket

import pytest

import compare
import pg
import tw

SECTIONS = ("job", "a", "b", "objects", "forward", "reverse", "slots", "retry")


@pytest.fixture
def trap():
    """A port on which nobody may knock."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        yield listener.getsockname()[1]
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def good_lines(port):
    """A valid job file as lines by section."""
    end = ["host = 127.0.0.1", f"port = {port}", "dbname = shop", "user = shop", "connect_timeout = 2"]
    lines = {section: [] for section in SECTIONS}
    lines.update(a=list(end), b=[*end[:2], "dbname = shop2", *end[3:]], objects=["schemas = public"])
    return lines


def written(path, lines):
    """Writes sections to a file; lines that begin with @ are wrong.  Returns their numbers."""
    text = [line for section, body in lines.items() for line in (f"[{section}]", *body)]
    tw.write_private(path, "".join(line.lstrip("@") + "\n" for line in text))
    return [n for n, line in enumerate(text, 1) if line.startswith("@")]


def refused(path, numbers, needle=""):
    """The job is refused with a message for each of these lines and for no other."""
    path = str(path)
    for command in ("run", "check", "show"):
        code, out, err = tw.run(command, path)
        assert code == tw.BAD_JOB, f"{command}: exit {code}\n{out}{err}"
        said = re.findall(rf"^(?:twsync: |error: )?{re.escape(path)}:(\d+): (.+)$", err, re.M)
        assert sorted({int(n) for n, _ in said}) == numbers, err
        assert needle in " ".join(text for _, text in said), err
    assert code == tw.BAD_JOB
    return err


ONE_LINE = [
    ("job", "nmae = shop", "name"),
    ("job", "name = Bad Name", "name"),
    ("job", "name = " + "x" * 41, "name"),
    ("job", "name = shop;drop", "name"),
    ("job", "tag = production", "online"),
    ("job", "log = xml", "json"),
    ("job", "log_level = debug", ""),
    ("job", "accept = no-such code", "accept"),
    ("a", "hots = example", "host"),
    ("a", "prot = 5432", "port"),
    ("a", "port = many", "port"),
    ("a", "port = 70000", "port"),
    ("a", "sslmode = verify_full", "verify-full"),
    ("a", "passwrd = x", "password"),
    ("a", "host", ""),
    ("b", "ssl_rootcert = ca.crt", "sslrootcert"),
    ("b", "password_file = /nonexistent/password", "/nonexistent/password"),
    ("b", "connect_timeout = soon", "connect_timeout"),
    ("b", "databse = shop", ""),
    ("objects", "scheams = public", "schemas"),
    ("objects", "tables = nodot", "tables"),
    ("objects", "tables = a.b.c", "tables"),
    ("objects", 'tables = public."unclosed', "tables"),
    ("objects", "exclude = public.", "exclude"),
    ("objects", "tables = public.t,,public.u", "tables"),
    ("objects", "existing = drop", "keep"),
    ("forward", "enabled = maybe", "enabled"),
    ("forward", "workers = 0", "workers"),
    ("forward", "workers = many", "workers"),
    ("forward", "workers = 4x", "workers"),
    ("forward", "workers = 99999999999999999999", "workers"),
    ("forward", "on_conflict = overwirte", "overwrite"),
    ("forward", "onconflict = fail", "on_conflict"),
    ("forward", "merge = cells", "columns"),
    ("forward", "identity = none", "full"),
    ("forward", "copy = 1x", "copy"),
    ("reverse", "copy = yes", "copy"),              # only one side may copy
    ("reverse", "schema = yes", "schema"),
    ("reverse", "tables = public.t", "tables"),     # reverse has the objects of forward
    ("reverse", "identity = half", "full"),
    ("slots", "retention = 15 parsecs", "retention"),
    ("slots", "retention = -1min", "retention"),
    ("slots", "retention_size = lots", "retention_size"),
    ("slots", "hartbeat = 10s", "heartbeat"),
    ("retry", "connection = 9min", "10"),
    ("retry", "connection = 1441min", "connection"),
    ("retry", "other = 0min", "other"),
    ("retry", "other = 1441min", "other"),
]


@pytest.mark.parametrize("section, line, needle", ONE_LINE, ids=lambda v: str(v)[:24])
def test_one_mistake(trap, tmp_path, section, line, needle):
    lines = good_lines(trap)
    lines[section].append("@" + line)
    refused(tmp_path / "job.ini", written(tmp_path / "job.ini", lines), needle)


def test_all_mistakes_at_once(trap, tmp_path):
    lines = good_lines(trap)
    lines["forwrad"] = ["on_conflict = fail"]
    for section, line, _ in ONE_LINE[::4]:
        lines[section].append("@" + line)
    numbers = written(tmp_path / "job.ini", lines)
    header = sum(len(body) + 1 for name, body in lines.items() if name != "forwrad") + 1
    path = str(tmp_path / "job.ini")
    code, out, err = tw.run("run", path)
    said = {int(n) for n in re.findall(rf"{re.escape(path)}:(\d+): ", err)}
    assert code == tw.BAD_JOB and said >= {*numbers, header}, err
    assert "forward" in err.split(f":{header}: ")[1].split("\n")[0], err


@pytest.mark.parametrize("text", [
    "", "[job]\nname = shop\n", "host = 1\n", "[a\nhost = x\n", "[a]\n= x\n", "\0\0\0", "\xff\xfe[a]\n",
    "[a]\n" + "x" * 100_000 + "\n", "[b]\ndbname = x\n", "[job]\n[job]\nnonsense\n", "]]][[[\n===\n;\n#\n",
], ids=lambda t: repr(t[:20]))
def test_not_a_job_at_all(tmp_path, text):
    path = tmp_path / "job.ini"
    path.write_bytes(text.encode("latin-1"))
    os.chmod(path, 0o600)
    code, out, err = tw.run("run", str(path))
    assert code == tw.BAD_JOB and str(path) in err, (code, out, err)


@pytest.mark.parametrize("missing", ["a", "b"])
def test_missing_end(trap, tmp_path, missing):
    lines = good_lines(trap)
    del lines[missing]
    written(tmp_path / "job.ini", lines)
    code, out, err = tw.run("run", str(tmp_path / "job.ini"))
    assert code == tw.BAD_JOB and f"[{missing}]" in err, err


def test_no_such_file(tmp_path):
    code, out, err = tw.run("run", str(tmp_path / "none.ini"))
    assert code == tw.BAD_JOB and "none.ini" in err and "No such file" in err
    code, out, err = tw.run("run", str(tmp_path))
    assert code == tw.BAD_JOB and str(tmp_path) in err


def test_retry_windows_in_order(trap, tmp_path):
    """other must be less than connection."""
    lines = good_lines(trap)
    lines["retry"] = ["connection = 20min", "other = 20min"]
    written(tmp_path / "job.ini", lines)
    code, out, err = tw.run("run", str(tmp_path / "job.ini"))
    assert code == tw.BAD_JOB and "other" in err and "job.ini:" in err, err


def test_reverse_needs_forward(trap, tmp_path):
    """There is no reverse task without the forward task."""
    lines = good_lines(trap)
    lines["forward"], lines["reverse"] = ["enabled = no"], ["enabled = yes"]
    written(tmp_path / "job.ini", lines)
    code, out, err = tw.run("run", str(tmp_path / "job.ini"))
    assert code == tw.BAD_JOB and "reverse" in err and "job.ini" in err, err


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
@pytest.mark.parametrize("key", ["password", "sslpassword"])
def test_password_in_a_public_job(trap, tmp_path, key, mode):
    lines = good_lines(trap)
    lines["a"].append(f"@{key} = {pg.PASSWORD}")
    numbers = written(tmp_path / "job.ini", lines)
    os.chmod(tmp_path / "job.ini", mode)
    assert pg.CANARY not in refused(tmp_path / "job.ini", numbers, key)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_password_in_a_foreign_job(trap, tmp_path):
    lines = good_lines(trap)
    lines["a"].append(f"@password = {pg.PASSWORD}")
    numbers = written(tmp_path / "job.ini", lines)
    os.chown(tmp_path / "job.ini", 65534, 65534)
    assert pg.CANARY not in refused(tmp_path / "job.ini", numbers, "password")


def test_public_job_without_password(tmp_path):
    """A job without a secret may be read by everybody."""
    written(tmp_path / "job.ini", good_lines(1))
    os.chmod(tmp_path / "job.ini", 0o644)
    assert tw.run("show", str(tmp_path / "job.ini"))[0] == tw.OK


def test_show_is_a_job(tmp_path):
    """What show prints is complete, valid, and means the same; secrets are masked."""
    lines = good_lines(5432)
    lines["job"] += ["name = shop_1", "tag = online", "log = json"]
    lines["a"] += [f"password = {pg.PASSWORD}", "sslmode = require"]
    lines["b"] += [f"sslpassword = {pg.PASSWORD}", "application_name = x"][:1]
    lines["objects"] += ['tables = shop.orders, "Odd.Schema ""q"""."Mi;xed, #1"', "exclude = public.audit", "existing = keep"]
    lines["forward"] += ["workers = 7", "on_conflict = overwrite", "merge = rows"]
    lines["reverse"] += ["on_conflict = ignore", "identity = key"]
    lines["slots"] += ["retention = 90s", "retention_size = 64MB", "heartbeat = 2s"]
    lines["retry"] += ["connection = 30min", "other = 5min"]
    written(tmp_path / "job.ini", lines)
    code, shown, err = tw.run("show", str(tmp_path / "job.ini"))
    assert code == tw.OK and pg.CANARY not in shown + err, (shown, err)
    for key in ("shop_1", "online", "json", "workers", "overwrite", "rows", "ignore", "state_dir", "heartbeat",
                "Odd.Schema", "Mi;xed, #1", "shop.orders", "public.audit", "keep", "require"):
        assert key in shown, f"{key} is not in:\n{shown}"
    tw.write_private(tmp_path / "again.ini", shown)
    code, again, err = tw.run("show", str(tmp_path / "again.ini"))
    assert code == tw.OK, err
    assert again == shown


def test_show_of_the_smallest_job(tmp_path):
    written(tmp_path / "Small Job.ini", {"a": ["dbname = x"], "b": ["dbname = y"], "objects": ["schemas = public"]})
    code, shown, err = tw.run("show", str(tmp_path / "Small Job.ini"))
    assert code == tw.OK, err
    for key in ("name", "tag", "workers", "on_conflict", "identity", "retention", "heartbeat", "connection", "other"):
        assert re.search(rf"^{key} = .+", shown, re.M), f"{key} is not in:\n{shown}"
    tw.write_private(tmp_path / "other.ini", shown)
    assert tw.run("show", str(tmp_path / "other.ini")) == (tw.OK, shown, "")


ODD_PASSWORD = pg.CANARY + " @:/?#%'\"\\;=é\U0001F600 end"


@pytest.fixture
def odd_role(pair):
    """A role whose password holds everything that quoting can get wrong."""
    for node in pair.nodes:
        node.server.sql("CREATE ROLE tw_odd LOGIN REPLICATION PASSWORD %s", (ODD_PASSWORD,))
        node.server.sql(f'ALTER DATABASE "{node.dbname}" OWNER TO tw_odd')
        node.role = "tw_odd"
    yield "tw_odd"
    for job in pair.jobs:
        job.clean_up()
    for node in pair.nodes:
        node.server.drop_db(node.dbname)
        node.server.sql("DROP ROLE tw_odd")


@pytest.mark.rung("marker")
@pytest.mark.parametrize("way", ["password_file", "passfile", "job"])
def test_ways_to_give_a_password(pair, odd_role, make_job, way):
    job = make_job(pair)
    name = os.path.join(job.folder, "secret")
    if way == "password_file":
        tw.write_private(name, ODD_PASSWORD + "\n")
        keys = {"password": None, "password_file": name}
    elif way == "passfile":
        escaped = ODD_PASSWORD.replace("\\", "\\\\").replace(":", "\\:")
        tw.write_private(name, f"*:*:*:tw_odd:{escaped}\n")
        keys = {"password": None, "passfile": name}
    else:
        for node in pair.nodes:
            node.server.sql("ALTER ROLE tw_odd PASSWORD %s", (pg.PASSWORD + "@:/?#%'é",))
        keys = {"password": pg.PASSWORD + "@:/?#%'é"}
    job.change(a={"user": odd_role, **keys}, b={"user": odd_role, **keys})
    code, out, err = job.command("check", job.path, "--connect")
    assert code == tw.OK, out + err
    assert pg.CANARY not in out + err


@pytest.mark.rung("marker")
def test_service_file(pair, make_job):
    """Connections that are defined once, in libpq's service file, and named by the job."""
    job = make_job(pair)
    services = {f"end_{node.letter}": node.job_keys() for node in pair.nodes}
    tw.write_private(os.path.join(job.folder, ".pg_service.conf"), tw.ini(services).replace(" = ", "="))
    for letter in "ab":
        job.sections[letter] = {"service": f"end_{letter}"}
    job.change()
    code, out, err = job.command("check", job.path, "--connect")
    assert code == tw.OK, out + err


@pytest.mark.rung("marker")
def test_password_file_must_be_private(pair, make_job):
    job = make_job(pair)
    name = os.path.join(job.folder, "secret")
    tw.write_private(name, pg.PASSWORD, 0o644)
    job.change(a={"password": None, "password_file": name})
    code, out, err = job.command("check", job.path)
    assert code == tw.BAD_JOB and name in err and pg.CANARY not in out + err


@pytest.mark.rung("marker")
def test_no_secret_is_seen(pair, job):
    """Not by ps, status, check, show, release, in the log or the state folder, nor after an error."""
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY)")
    job.start("--log", "json")
    for pid in [job.process.pid, *job.children()]:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            assert pg.CANARY.encode() not in f.read()
    said = [job.command(command, job.path, *more) for command, *more in (
        ("status",), ("status", "--json"), ("check",), ("check", "--json"), ("show",), ("sequences",))]
    assert job.stop() == tw.OK
    job.change(a={"password": pg.CANARY + "-wrong"})
    said += [job.command(command, job.path) for command in ("check", "run", "release", "sequences")]
    for code, out, err in said:
        assert pg.CANARY not in out + err


@pytest.mark.rung("marker")
def test_two_jobs_on_the_same_servers(pair, servers, make_job):
    """Jobs for two pairs of databases run side by side."""
    other = pg.make_pair(*servers, f"{pair.a.dbname}x", pair.rung)
    jobs = [make_job(p).change() for p in (pair, other)]
    try:
        for job in jobs:
            job.pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v text)")
            job.start()
        for n, job in enumerate(jobs):
            job.pair.a.sql("INSERT INTO t VALUES (1, %s)", (f"a{n}",))
            job.pair.b.sql("INSERT INTO t VALUES (2, %s)", (f"b{n}",))
        for n, job in enumerate(jobs):
            job.wait_synced()
            compare.assert_same(job.pair)
            assert job.pair.b.sql("SELECT * FROM t ORDER BY 1") == [(1, f"a{n}"), (2, f"b{n}")]
            assert job.stop() == tw.OK
    finally:
        for job in jobs:
            job.clean_up()
        pg.drop_pair(other)
