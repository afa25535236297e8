"""Alerts: told once when something has held for a while, once when it is over, by command and by HTTP."""

import http.server
import json
import os
import ssl
import subprocess
import threading

import pytest

import tw
from wait import wait_for

TABLE = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'a' FROM generate_series(1, 100) g"
FAST = {"slots": {"heartbeat": "500ms"}}


class Receiver(http.server.ThreadingHTTPServer):
    """Somebody's web hook: keeps what is posted, and answers with `code`."""

    def __init__(self, code=200, tls=None):
        receiver = self
        self.got, self.code = [], code

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append((self.path, self.headers["Content-Type"], json.loads(body)))
                self.send_response(receiver.code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def alerts(self):
        return [(body["alert"], body["status"]) for _, _, body in self.got]


@pytest.fixture
def receiver():
    made = Receiver()
    yield made
    made.shutdown()


def command_log(folder):
    path = os.path.join(folder, "alerts")
    return path, f"cat >> {path}"


def told(path):
    if not os.path.exists(path):
        return []
    with open(path) as f:
        return [(alert["alert"], alert["status"]) for alert in map(json.loads, f)]


def test_delay(pair, make_job, tmp_path, receiver):
    """A delay that lasts is told once, by both ways; when it is over, that is told once; a short one is not told."""
    pair.a.sql(TABLE)
    path, command = command_log(tmp_path)
    job = make_job(pair, **FAST, alerts={"delay": "1s", "for": "5s", "state": "no", "command": command,
                                         "url": f"http://127.0.0.1:{receiver.server_port}/hook?token=4711"}).start()
    job.wait_synced()

    def lock(seconds):
        with pair.b.connect() as other, other.cursor() as cur:
            cur.execute("LOCK TABLE t IN EXCLUSIVE MODE")
            pair.a.sql("UPDATE t SET v = v || 'x' WHERE id = 1")
            wait_for(lambda: job.task("forward")["delay_ms"] > 1000 * seconds, "the delay grows")
            if seconds > 3:
                wait_for(lambda: receiver.alerts(), "it is told")
                wait_for(lambda: job.task("forward")["delay_ms"] > 1000 * (seconds + 3), "and goes on")
            other.rollback()
        wait_for(lambda: job.task("forward")["delay_ms"] < 1000, "it is over")

    lock(1.2)
    lock(8)
    wait_for(lambda: len(receiver.got) == 2, "the end is told")
    assert receiver.alerts() == [("forward.delay", "firing"), ("forward.delay", "resolved")]
    assert told(path) == receiver.alerts()
    where, kind, body = receiver.got[0]
    assert where == "/hook?token=4711" and kind == "application/json"
    assert body["job"] == job.name and body["host"] == os.uname().nodename and body["text"].startswith("delay ")
    assert not job.status()["alerts"]
    assert "4711" not in job.log_text() + job.command("show", job.path)[1] + job.command("status", job.path)[1]


def test_state(pair, make_job, tmp_path, proxy_a):
    """A server that is away, and a task that fails, also when the job ends with it; told again not even by a restart."""
    pair.a.sql(TABLE)
    path, command = command_log(tmp_path)
    job = make_job(pair, a=proxy_a.job_keys(), **FAST, alerts={"for": "1s", "command": command}).start()
    job.wait_synced()
    proxy_a.refuse = True
    proxy_a.cut()
    on = {"forward.state", "reverse.state", "a.unreachable"}
    wait_for(lambda: {name for name, status in told(path) if status == "firing"} >= on, "they are told")
    proxy_a.refuse = False
    wait_for(lambda: {name for name, status in told(path) if status == "resolved"} >= on, "they are over")
    job.wait_synced()
    before = told(path)
    assert len(before) == len(set(before)), before
    with pair.b.connect() as other, other.cursor() as cur:
        cur.execute("INSERT INTO t VALUES (999, 'b')")
        pair.a.sql("INSERT INTO t VALUES (999, 'a')")
        other.commit()
    assert job.wait_exit() == tw.TASK_FAILED
    wait_for(lambda: any(status == "firing" for _, status in told(path)[len(before):]), "the failure is told")
    failed = [name for name, status in told(path)[len(before):] if status == "firing"]
    assert [name for name in failed if name.endswith(".state")], failed


def test_conflicts_and_wal(pair, make_job, tmp_path):
    """So many conflicts within an hour; so much WAL held."""
    pair.a.sql(TABLE)
    path, command = command_log(tmp_path)
    job = make_job(pair, forward={"on_conflict": "overwrite"}, reverse={"on_conflict": "ignore"}, **FAST,
                   alerts={"conflicts": "3", "wal_held": "1MB", "for": "1s", "command": command}).start()
    job.wait_synced()
    for n in range(3):
        job.command("pause", job.path)
        pair.a.sql(f"UPDATE t SET v = 'a{n}' WHERE id = {n + 1}")
        pair.b.sql(f"UPDATE t SET v = 'b{n}' WHERE id = {n + 1}")
        job.command("resume", job.path)
        job.wait_synced()
    wait_for(lambda: ("forward.conflicts", "firing") in told(path), "conflicts are told")
    job.command("pause", job.path, "--task", "forward")
    pair.a.sql("CREATE TABLE filler AS SELECT g, repeat('x', 1000) AS x FROM generate_series(1, 5000) g; DROP TABLE filler")
    wait_for(lambda: ("forward.wal_held", "firing") in told(path), "WAL is told")
    assert told(path).count(("forward.conflicts", "firing")) == 1


def test_receiver_is_away(pair, make_job, tmp_path):
    """What could not be delivered is tried again; 204 is an answer, 500 is none."""
    pair.a.sql(TABLE)
    hook = Receiver(code=500)
    job = make_job(pair, **FAST, alerts={"delay": "500ms", "for": "0", "state": "no",
                                         "url": f"http://127.0.0.1:{hook.server_port}/"}).start()
    job.wait_synced()
    with pair.b.connect() as other, other.cursor() as cur:
        cur.execute("LOCK TABLE t IN EXCLUSIVE MODE")
        pair.a.sql("UPDATE t SET v = 'x' WHERE id = 1")
        wait_for(lambda: len(hook.got) >= 2, "it is tried again", 60)
        hook.code = 204
        n = len(hook.got)
        wait_for(lambda: len(hook.got) == n + 1, "and once more", 60)
        wait_for(lambda: [a for a in job.status()["alerts"] if a["told"]], "then it is told")
        other.rollback()
    wait_for(lambda: hook.alerts()[-1] == ("forward.delay", "resolved"), "the end is told", 60)
    assert len(hook.got) == n + 2, hook.alerts()
    assert "could not tell that alert forward.delay is on" in job.log_text()
    hook.shutdown()


def test_https(pair, make_job, tmp_path):
    """By TLS, to a name that its certificate bears; to another one nothing is sent."""
    pair.a.sql(TABLE)
    base = os.path.join(tmp_path, "hook")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", base + ".key", "-out",
                    base + ".crt", "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
                   check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(base + ".crt", base + ".key")
    for name, arrives in (("localhost", True), ("127.0.0.1", False)):
        hook = Receiver(tls=tls)
        job = make_job(pair, **FAST, alerts={"delay": "500ms", "for": "0", "state": "no",
                                             "url": f"https://{name}:{hook.server_port}/"})
        job.start(SSL_CERT_FILE=base + ".crt")
        job.wait_synced()
        with pair.b.connect() as other, other.cursor() as cur:
            cur.execute("LOCK TABLE t IN EXCLUSIVE MODE")
            pair.a.sql("UPDATE t SET v = v || 'x' WHERE id = 1")
            if arrives:
                wait_for(lambda: hook.got, "it arrives", 60)
            else:
                wait_for(lambda: "could not tell that alert forward.delay is on" in job.log_text(), "it is refused", 60)
                assert not hook.got
            other.rollback()
        job.stop()
        job.release()
        pair.b.sql("DROP TABLE IF EXISTS t")
        hook.shutdown()
