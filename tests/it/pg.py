"""Throwaway PostgreSQL servers, and databases on them.

PostgreSQL refuses to run as root, so root runs the servers as an unprivileged user.  One data
directory is made by initdb and copied for each server.  Over the Unix socket everybody is trusted;
over TCP (127.0.0.1) a password is needed, so that both ways of connecting are in use.

A server of a major version that is not installed runs in a cage: by chroot, in a Debian that has
this version.  ./build.sh test keeps these in its cache; a run works on a copy of its own (made of
links), which holds the folders of these servers.  Nothing is ever mounted.
"""

import contextlib
import functools
import glob
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import threading

import psycopg2
import psycopg2.extensions

from wait import wait_for

# Every password of the suite contains this word; nothing twsync writes may contain it.
CANARY = "canary8f3a"
PASSWORD = CANARY + "-word"

# Two ways to be somebody on a server (the rungs of loop avoidance that follow from them).
ROLES = {"marker": "tw_owner", "origin": "tw_super"}

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",
    "wal_level": "logical",
    "password_encryption": "scram-sha-256",     # which 13 has not by default
    "track_commit_timestamp": "on",
    "max_replication_slots": "20",
    "max_wal_senders": "20",
    "max_connections": "100",
    "max_wal_size": "1GB",
    "checkpoint_timeout": "30min",
    "autovacuum": "off",
    "timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%a %u@%d ",
}

HBA = """\
local all         all            trust
local replication all            trust
host  all         tw_rejected    127.0.0.1/32 reject
host  all         all            127.0.0.1/32 scram-sha-256
host  replication all            127.0.0.1/32 scram-sha-256
"""

# The harness reads and writes values in one fixed form, whatever a database is set to.
SESSION = (
    "-c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0 "
    "-c datestyle=ISO,YMD -c intervalstyle=postgres -c extra_float_digits=3 -c bytea_output=hex "
    "-c xmloption=content -c array_nulls=on -c timezone=UTC -c default_transaction_read_only=off "
    "-c default_transaction_isolation=read\\ committed -c transform_null_equals=off "
    "-c synchronous_commit=on -c row_security=on -c client_min_messages=warning "
    "-c search_path=public -c standard_conforming_strings=on -c quote_all_identifiers=off"
)


def bin_dir():
    """The folder of initdb, postgres, pg_dump, pgbench that are installed: the newest."""
    named = os.environ.get("TWSYNC_TEST_PGBIN")
    if named:
        return named
    found = [d for d in glob.glob("/usr/lib/postgresql/*/bin") if os.path.exists(d + "/initdb")]
    if not found:
        raise RuntimeError("no PostgreSQL server is installed (apt-get install postgresql)")
    return max(found, key=lambda d: int(re.search(r"/(\d+)/", d).group(1)))


@functools.cache
def installed_version():
    """The major version of what is in bin_dir()."""
    told = subprocess.run([os.path.join(bin_dir(), "postgres"), "--version"], check=True,
                          stdout=subprocess.PIPE, text=True).stdout
    return int(re.search(r"\) (\d+)", told).group(1))


def major(version=None):
    """A major version; None is what most tests run on: the installed one, unless the environment names another."""
    return version or int(os.environ.get("TWSYNC_TEST_VERSION") or installed_version())


def release_dir(version):
    """Where ./build.sh test put a Debian with this major version; it must name the same folder."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.environ.get("HOME") or "/root", ".cache")
    cache = os.environ.get("TWSYNC_CACHE") or os.path.join(caches, "twsync")
    return os.path.join(cache, "pg", str(version))


def why_missing(version):
    """Why no server of this major version can run here; None when it can."""
    if version == installed_version():
        return None
    if os.geteuid() != 0:
        return f"PostgreSQL {version} is not installed, and only root may run it by chroot"
    if not os.path.exists(os.path.join(release_dir(version), "made")):
        return f"no PostgreSQL {version} is at hand: ./build.sh test fetches it, given a network"
    return None


def make_cage(folder, version):
    """Lays out folder/VERSION, unless it is there, as a root for servers of this version; returns it.

    Seen from inside, a folder in the cage has the same path as outside: the cage's own path leads to its top.
    """
    cage = os.path.join(folder, str(version))
    if os.path.exists(cage):
        return cage
    if subprocess.run(["cp", "-al", release_dir(version), cage], stderr=subprocess.DEVNULL).returncode:
        shutil.rmtree(cage, ignore_errors=True)     # links do not reach to another file system
        subprocess.run(["cp", "-a", release_dir(version), cage], check=True)
    inside = cage + cage
    os.makedirs(os.path.dirname(inside))
    os.symlink(os.path.relpath(cage, os.path.dirname(inside)), inside)
    for name in ("passwd", "group"):
        with open(os.path.join(cage, "etc", name), "w") as f:
            f.write("postgres:x:{0.pw_uid}:{0.pw_gid}::/:/bin/sh\n".format(server_user()))
    null = os.path.join(cage, "dev", "null")
    try:
        os.close(os.open(null, os.O_RDWR))
    except OSError:     # missing, or devices do not work here: an ordinary file does
        with contextlib.suppress(FileNotFoundError):
            os.remove(null)
        open(null, "w").close()
        os.chmod(null, 0o666)
    return cage


def server_user():
    """Who runs the servers: None is ourselves."""
    return None if os.geteuid() != 0 else pwd.getpwnam("postgres")


def as_server_user(argv):
    user = server_user()
    if user is None:
        return argv
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", *argv]


reserved = []       # sockets whose names say which ports are ours; they go with the process


def free_port():
    """A port of 127.0.0.1 that is ours while this process lives, whether or not anybody listens.

    It lies outside the range from which the kernel serves outgoing connections, any of which could
    sit on it while a server restarts.  Other runs on this machine see that it is taken by the name
    of a socket; tests/demo.sh takes its ports from 20000 on.
    """
    with open("/proc/sys/net/ipv4/ip_local_port_range") as f:
        low, high = map(int, f.read().split())
    ports = list(range(10000, 20000))
    ports = [port for port in ports if not low <= port <= high] or ports
    random.SystemRandom().shuffle(ports)
    for port in ports:
        name = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(OSError), contextlib.closing(socket.socket()) as probe:
            name.bind(f"\0twsync-test-port-{port}")
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            reserved.append(name)
            return port
        name.close()
    raise RuntimeError("no port is free")


def lsn_int(text):
    """A position as a number; NULL and the empty text come before all."""
    if not text:
        return 0
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


def lsn_text(value):
    return f"{value >> 32:X}/{value & 0xFFFFFFFF:X}"


class Server:
    """One running PostgreSQL server in a folder of its own; its version is a major one, None the usual one."""

    def __init__(self, root, name, settings=None, hba=HBA, template=None, version=None):
        self.major, self.cage = major(version), None
        if self.major != installed_version():
            self.cage = make_cage(root, self.major)
            root = os.path.join(self.cage, "srv")
        self.root, self.name = os.path.join(root, name), name
        self.data = os.path.join(self.root, "data")
        self.log = os.path.join(self.root, "server.log")
        self.port = free_port()
        os.makedirs(self.root)
        if server_user():
            os.chown(self.root, server_user().pw_uid, server_user().pw_gid)
        if template:
            subprocess.run(["cp", "-a", template, self.data], check=True)
        else:
            self._run("initdb", "-N", "-D", self.data, "-U", "postgres", "--auth=trust",
                      "--encoding=UTF8", "--locale=C.UTF-8", "--wal-segsize=1")
        self.configure(settings or {}, hba)

    def configure(self, settings, hba=HBA):
        with open(os.path.join(self.data, "twsync_test.conf"), "w") as f:
            for key, value in {**SETTINGS, **settings}.items():
                f.write(f"{key} = '{value}'\n")
        conf = os.path.join(self.data, "postgresql.conf")
        with open(conf) as f:
            known = "twsync_test.conf" in f.read()
        if not known:
            with open(conf, "a") as f:
                f.write("include 'twsync_test.conf'\n")
        with open(os.path.join(self.data, "pg_hba.conf"), "w") as f:
            f.write(hba)
        self._give(os.path.join(self.data, "twsync_test.conf"))

    def add_file(self, name, source, mode=0o600):
        """Puts a file (a certificate, a key) into the data folder."""
        path = os.path.join(self.data, name)
        shutil.copy(source, path)
        os.chmod(path, mode)
        self._give(path)

    @staticmethod
    def _give(path):
        if server_user():
            os.chown(path, server_user().pw_uid, server_user().pw_gid)

    def argv(self, tool, *args):
        """The command line of a tool of this server's version, run as the server's user."""
        if self.cage is None:
            return as_server_user([os.path.join(bin_dir(), tool), *args])
        user = server_user()
        return ["chroot", f"--userspec={user.pw_uid}:{user.pw_gid}", "--groups=", self.cage,
                f"/usr/lib/postgresql/{self.major}/bin/{tool}", *args]

    def _run(self, tool, *args, check=True):
        # Output goes to a file: a server started by pg_ctl would keep a pipe open.
        with open(self.log + ".tools", "ab") as out:
            done = subprocess.run(self.argv(tool, *args),
                                  stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/",
                                  env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"})
        if check and done.returncode:
            raise RuntimeError(f"{tool} failed on {self.name}: see {self.log}.tools, {self.log}")
        return done.returncode

    def start(self):
        self._run("pg_ctl", "start", "-w", "-t", "120", "-D", self.data, "-l", self.log,
                  "-o", f"-p {self.port} -k {self.root}")
        return self

    def stop(self, mode="fast"):
        self._run("pg_ctl", "stop", "-w", "-t", "120", "-m", mode, "-D", self.data, check=False)

    def restart(self, mode="fast"):
        self.stop(mode)
        self.start()

    def connect(self, dbname="postgres", user="postgres", **more):
        conn = psycopg2.connect(host=self.root, port=self.port, dbname=dbname, user=user,
                                application_name="harness", options=SESSION, **more)
        conn.autocommit = True
        return conn

    def sql(self, query, args=None, dbname="postgres", user="postgres"):
        """Runs one statement in its own session: rows, or the number of rows it touched."""
        with contextlib.closing(self.connect(dbname, user)) as conn, conn.cursor() as cur:
            cur.execute(query, args)
            return cur.fetchall() if cur.description else cur.rowcount

    def make_roles(self):
        self.sql(f"CREATE ROLE tw_owner LOGIN REPLICATION PASSWORD '{PASSWORD}'")
        self.sql(f"CREATE ROLE tw_super LOGIN SUPERUSER PASSWORD '{PASSWORD}'")
        self.sql(f"CREATE ROLE tw_plain LOGIN PASSWORD '{PASSWORD}'")
        self.sql(f"CREATE ROLE tw_rejected LOGIN REPLICATION PASSWORD '{PASSWORD}'")

    def version(self):
        return int(self.sql("SHOW server_version_num")[0][0])

    def create_db(self, dbname, owner):
        self.sql(f'CREATE DATABASE "{dbname}" OWNER "{owner}"')

    def drop_db(self, dbname):
        """Drops a database with all that twsync may have left in it."""
        query = "SELECT slot_name FROM pg_replication_slots WHERE database = %s"

        def drop_slots():
            self.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
                     (dbname,))
            for (slot,) in self.sql(query, (dbname,)):
                with contextlib.suppress(psycopg2.Error):
                    self.sql("SELECT pg_drop_replication_slot(%s)", (slot,))
            return not self.sql(query, (dbname,))

        wait_for(drop_slots, f"no slot left in {dbname}")
        self.sql(f'DROP DATABASE IF EXISTS "{dbname}" WITH (FORCE)')

    def drop_origins(self, prefix):
        for (name,) in self.sql("SELECT roname FROM pg_replication_origin WHERE starts_with(roname, %s)",
                                (prefix,)):
            with contextlib.suppress(psycopg2.Error):
                self.sql("SELECT pg_replication_origin_drop(%s)", (name,))


class Node:
    """A database on a server, seen as the role that owns it and that twsync connects as."""

    def __init__(self, letter, server, dbname, role, tcp):
        self.letter, self.server, self.dbname, self.role = letter, server, dbname, role
        self.tcp = tcp

    def connect(self, autocommit=True, user=None):
        conn = self.server.connect(self.dbname, user or self.role)
        conn.autocommit = autocommit
        return conn

    def sql(self, query, args=None, user=None):
        return self.server.sql(query, args, self.dbname, user or self.role)

    def one(self, query, args=None, user=None):
        """The single value that a query yields."""
        return self.sql(query, args, user)[0][0]

    def admin(self, query, args=None):
        return self.sql(query, args, user="postgres")

    @contextlib.contextmanager
    def transaction(self, user=None):
        """One transaction; yields its cursor."""
        with contextlib.closing(self.connect(False, user)) as conn, conn, conn.cursor() as cur:
            yield cur

    def wait_slot_rests(self, slot):
        """A slot stays active for a moment after the program that read it has ended; it cannot be dropped then."""
        active = "SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND active"
        wait_for(lambda: not self.admin(active, (slot,)), f"nobody reads slot {slot}")

    def lsn(self):
        """The end of what is durable here, as a number."""
        return lsn_int(self.one("SELECT pg_current_wal_flush_lsn()::text", user="postgres"))

    def job_keys(self):
        """What a job file's section about this node says."""
        keys = {"port": self.server.port, "dbname": self.dbname, "user": self.role}
        if self.tcp:
            return {"host": "127.0.0.1", **keys, "password": PASSWORD, "sslmode": "disable"}
        return {"host": self.server.root, **keys}

    def set_hostile(self, flavour):
        """Gives the database defaults that bend values in text form; flavour 0 or 1 are opposites."""
        hostile = {
            "datestyle": ("SQL, DMY", "German, MDY"),
            "intervalstyle": ("sql_standard", "iso_8601"),
            "timezone": ("Asia/Tokyo", "America/St_Johns"),
            "bytea_output": ("escape", "hex"),
            "extra_float_digits": ("-15", "0"),
            "xmloption": ("document", "content"),
            "xmlbinary": ("hex", "base64"),
            "array_nulls": ("off", "on"),
            "search_path": ("pg_temp", "nowhere, public"),
            "quote_all_identifiers": ("on", "off"),
            "standard_conforming_strings": ("off", "on"),
            "transform_null_equals": ("on", "off"),
            "row_security": ("on", "off"),
            "statement_timeout": ("1s", "1200ms"),  # must do for the one statement that sets it to 0
            "lock_timeout": ("200ms", "0"),
            "idle_in_transaction_session_timeout": ("300ms", "500ms"),
            "default_transaction_isolation": ("serializable", "repeatable read"),
            "default_transaction_read_only": ("on", "on"),
            "default_transaction_deferrable": ("on", "off"),
            "synchronous_commit": ("off", "on"),
        }
        for key, values in hostile.items():
            self.server.sql(f'ALTER DATABASE "{self.dbname}" SET {key} TO '
                            + (values[flavour] if key in ("datestyle", "search_path")
                               else f"'{values[flavour]}'"))


class Pair:
    """The two databases of a test."""

    def __init__(self, a, b, rung):
        self.a, self.b, self.rung = a, b, rung
        self.nodes = (a, b)
        self.jobs = []

    def both(self, query, args=None):
        for node in self.nodes:
            node.sql(query, args)

    def source(self, task):
        return self.a if task == "forward" else self.b

    def target(self, task):
        return self.b if task == "forward" else self.a


def make_pair(server_a, server_b, dbname, rung):
    """Fresh databases; the marker rung comes over TCP with a password, the origin rung by socket."""
    role = ROLES[rung]
    nodes = []
    for letter, server in (("a", server_a), ("b", server_b)):
        name = f"{dbname}_{letter}"
        server.create_db(name, role)
        nodes.append(Node(letter, server, name, role, rung == "marker"))
    return Pair(*nodes, rung)


def drop_pair(pair):
    for node in pair.nodes:
        node.server.drop_db(node.dbname)
        for job in pair.jobs:
            node.server.drop_origins(f"twsync_{job.name}_")


def signal_backends(node, sig, application):
    """Sends a signal to the backends of this server whose application_name is like the pattern."""
    pids = [pid for (pid,) in node.admin(
        "SELECT pid FROM pg_stat_activity WHERE application_name LIKE %s", (application,))]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sig)
    return pids


def freeze(node, application):
    """Stops these backends, and waits until each of them stands still."""
    def stands(pid):
        try:
            with open(f"/proc/{pid}/stat") as f:
                return f.read().rpartition(")")[2].split()[0] in "TZX"
        except OSError:
            return True

    pids = signal_backends(node, signal.SIGSTOP, application)
    try:
        wait_for(lambda: all(map(stands, pids)), "the backends stand still", every=0.002)
    except BaseException:
        resume(pids)
        raise
    return pids


def freeze_at_rest(node, application):
    """The same, but each of them stands still while it waits for events: it holds no lock of the server's innards.

    One that is stopped elsewhere may hold such a lock, and then sooner or later the whole server waits
    for it; that moment is let go, and another one tried.  Nothing is frozen when there are no such backends.
    """
    query = "SELECT wait_event_type FROM pg_stat_activity WHERE pid = ANY(%s)"
    for patience in range(2, 30):
        pids, kinds = freeze(node, application), []
        look = threading.Thread(target=lambda: kinds.extend(node.admin(query, (pids,))), daemon=True)
        try:
            look.start()
            look.join(patience)
            if len(kinds) == len(pids) and all(kind in ("Activity", "Client") for kind, in kinds):
                return pids
        except BaseException:
            resume(pids)
            raise
        resume(pids)
    raise AssertionError(f"no moment was found at which {application} can be frozen")


def resume(pids):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
