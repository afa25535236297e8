"""Commands reach a running job by a socket in its state directory: for its owner alone, and whatever comes by it."""

import concurrent.futures
import contextlib
import os
import signal
import socket
import stat
import subprocess

import tw
from wait import wait_for

TABLE = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'a' FROM generate_series(1, 100) g"


def running(pair, make_job, **keys):
    pair.a.sql(TABLE)
    job = make_job(pair, **keys).start()
    job.wait_synced()
    return job


def connect(job):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(20)
    s.connect(os.path.join(job.state_dir, "socket"))
    return s


def ask(job, request):
    """What is answered; b'' if the connection ends without."""
    with contextlib.closing(connect(job)) as s:
        with contextlib.suppress(BrokenPipeError):
            s.sendall(request)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while part := s.recv(4096):
                answer += part
        return answer


def states(job):
    return [job.task(task)["state"] for task in tw.TASKS]


def test_private(pair, make_job):
    """Nobody but its owner may ask, even where the folder lets others in."""
    job = running(pair, make_job)
    path = os.path.join(job.state_dir, "socket")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    folder = job.state_dir
    while folder != "/":
        os.chmod(folder, os.stat(folder).st_mode | 0o055)
        folder = os.path.dirname(folder)
    shown = subprocess.run(["/usr/bin/python3", "-c", "import socket, sys\ns = socket.socket(socket.AF_UNIX)\n"
                            "s.connect(sys.argv[1])", path], capture_output=True, text=True, user=65534, group=65534)
    assert "PermissionError" in shown.stderr, shown.stderr
    assert ask(job, b"pause reverse\n") == b"ok\n" and states(job) == ["Running", "Paused"]
    assert ask(job, b"resume reverse\n") == b"ok\n"
    job.stop()
    job.release()
    assert not os.path.exists(path)


def test_whatever_comes(pair, make_job):
    """What is no request changes nothing, and holds up nobody."""
    job = running(pair, make_job)
    for request in (b"\n", b"stop\n", b"pause\n", b"throttle\n", b"\xff\xfe %s%n\n", b"pausE forward\n", b"throttle x=1\n",
                    b"throttle stream.rows=-5\n", b"throttle stream.rows=5 full.rows=x\n", b" reload\n",
                    b"throttle " + b"=" * 1000 + b"\n"):
        answer = ask(job, request)
        assert answer.startswith(b"error ") and answer.endswith(b"\n") and answer.count(b"\n") == 1, (request, answer)
    for request in (b"pause forward\0\n", b"x" * 5000 + b"\n", b"pause " + b"forward " * 500 + b"\n", b"y" * 1024):
        assert ask(job, request) == b"", request
    assert ask(job, b"pause reverse sideways\n") == b"ok\n" and ask(job, b"resume reverse\nresume\n") == b"ok\n"
    silent = [connect(job) for _ in range(20)]  # more than it serves at once
    half = connect(job)
    half.sendall(b"pause forw")
    code, out, err = job.command("pause", job.path, "--task", "reverse")
    assert code == 0 and states(job)[0] == "Running", out + err
    code, out, err = job.command("resume", job.path)
    assert code == 0, out + err
    for s in [*silent, half]:
        assert s.recv(10) == b""
        s.close()
    wait_for(lambda: states(job) == ["Running", "Running"], "both work")
    assert job.status()["tasks"][0]["restarts"] == 0 and "stream.rows" not in job.log_text()
    pair.a.sql("INSERT INTO t VALUES (1000, 'x')")
    job.wait_synced()


def test_many_at_once(pair, make_job):
    """Each gets its answer, in some order; the last word holds."""
    job = running(pair, make_job)
    commands = [("pause", "--task", "reverse"), ("resume",), ("throttle", "full.rows=1000"), ("reload",)] * 3
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for code, out, err in pool.map(lambda c: job.command(c[0], job.path, *c[1:]), commands):
            assert code == 0, out + err
    assert job.command("resume", job.path)[0] == 0
    pair.a.sql("INSERT INTO t VALUES (1000, 'x')")
    for task in tw.TASKS:
        job.wait_state(task, "Running")
    job.wait_synced()


def test_long_path(pair, make_job, tmp_path):
    """A socket's address holds some hundred bytes; a folder's name may be longer."""
    job = running(pair, make_job, job={"state_dir": str(tmp_path / ("d" * 120) / ("e" * 90))})
    code, out, err = job.command("pause", job.path)
    assert code == 0 and "forward task rests\n" in out, out + err
    assert states(job) == ["Paused", "Paused"]
    code, out, err = job.command("throttle", job.path, "full.rows=77")
    assert code == 0 and " 77 " in out, out + err


def test_killed_and_stopped(pair, make_job):
    """The socket of a dead process is nobody's; a stopped one is told from a dead one."""
    job = running(pair, make_job)
    job.kill()
    assert os.path.exists(os.path.join(job.state_dir, "socket"))
    code, out, err = job.command("pause", job.path, "--task", "reverse")
    assert code == 0 and "when the job runs" in out, out + err
    job.start(wait=("forward",))
    wait_for(lambda: states(job) == ["Running", "Paused"], "what was written down holds")
    pid = job.process.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        code, out, err = job.command("resume", job.path)
        assert code == 1 and "gave no answer in 30 s" in err, out + err
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: states(job) == ["Running", "Running"], "it hears it when it wakes up")


def test_no_room_for_a_socket(pair, make_job):
    """Something else has its name: the job works, and says what it does not hear."""
    pair.a.sql(TABLE)
    job = make_job(pair)
    os.makedirs(os.path.join(job.state_dir, "socket", "x"), mode=0o700)
    os.chmod(job.state_dir, 0o700)
    job.start()
    job.wait_synced()
    wait_for(lambda: "no socket in" in job.log_text(), "it is told")
    assert job.stop() == 0
