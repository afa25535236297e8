"""The program itself: one static, hardened file that needs nothing around it."""

import os
import re
import shutil
import subprocess

import pytest

import compare
import tw

release_build = pytest.mark.skipif("debug" in os.path.basename(tw.BINARY), reason="not the release build")


def output(*argv):
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def test_version_names_everything_linked_in():
    code, out, err = tw.run("--version")
    assert code == tw.OK
    assert re.search(r"^twsync \d+\.\d+", out, re.M), out
    for library in ("libpq", "OpenSSL", "zlib", "inih"):
        assert re.search(rf"{library}\D*\d+", out, re.I), f"{library} is not in:\n{out}"


@pytest.mark.parametrize("args", [["--help"], ["help"], *(["help", c] for c in (
    "run", "check", "show", "status", "sequences", "release"))], ids=" ".join)
def test_help(args):
    code, out, err = tw.run(*args)
    assert code == tw.OK and "twsync" in out and not err


@pytest.mark.parametrize("args, needle", [
    ([], "usage"), (["rum", "x.ini"], "rum"), (["run"], "job"), (["run", "a", "b"], "job"),
    (["--nonsense"], "nonsense"), (["run", "x.ini", "--nonsense"], "nonsense"), (["check", "--jsn", "x.ini"], "jsn"),
    (["sequences", "x.ini", "--to", "c"], "to"), (["run", "x.ini", "--log", "xml"], "log"),
    (["run", "x.ini", "--log"], "log"),
], ids=lambda v: " ".join(v) if isinstance(v, list) else None)
def test_wrong_usage(args, needle):
    code, out, err = tw.run(*args)
    assert code == tw.BAD_JOB and not out
    assert needle in err.lower(), err


@release_build
def test_static_and_small():
    assert os.path.getsize(tw.BINARY) < 8 << 20
    headers = output("readelf", "-lW", tw.BINARY)
    assert "INTERP" not in headers and "NEEDED" not in output("readelf", "-dW", tw.BINARY)
    assert ".symtab" not in output("readelf", "-SW", tw.BINARY), "the program is not stripped"


@release_build
def test_hardened():
    headers = output("readelf", "-hlW", tw.BINARY)
    assert re.search(r"GNU_STACK.* RW ", headers), "the stack is executable"
    assert "GNU_RELRO" in headers
    assert re.search(r"Type:\s+DYN", headers), "not position-independent"
    dynamic = output("readelf", "-dW", tw.BINARY)
    assert "BIND_NOW" in dynamic or re.search(r"FLAGS_1.*NOW", dynamic)
    assert "TEXTREL" not in dynamic
    assert not re.search(r"LOAD.* RWE ", headers), "a segment is writable and executable"


@release_build
@pytest.mark.skipif(os.geteuid() != 0, reason="chroot needs root")
@pytest.mark.rung("marker")
def test_empty_root(pair, make_job, folder):
    """The whole of a small job with nothing there but the program, the job file, the state folder."""
    root = os.path.join(folder, "empty-root")
    os.makedirs(os.path.join(root, "state"), 0o700)
    shutil.copy(tw.BINARY, os.path.join(root, "twsync"))
    pair.a.sql("CREATE TABLE t AS SELECT g AS id, 'v' || g AS v FROM generate_series(1, 1000) g")
    pair.a.sql("ALTER TABLE t ADD PRIMARY KEY (id)")
    job = make_job(pair, job={"state_dir": "/state"})
    shutil.copy(job.path, os.path.join(root, "job.ini"))
    job.command_prefix = [shutil.which("chroot", path="/usr/sbin:/usr/bin"), root, "/twsync"]
    job.path = "/job.ini"
    job.start(LC_ALL="C")
    pair.a.sql("UPDATE t SET v = 'from a' WHERE id < 10")
    pair.b.sql("UPDATE t SET v = 'from b' WHERE id > 990")
    job.wait_synced()
    compare.assert_same(pair)
    assert job.stop() == tw.OK
    assert sorted(os.listdir(root)) == ["job.ini", "state", "twsync"]
    assert job.release()[0] == tw.OK
    compare.assert_untouched(pair, job.name)
