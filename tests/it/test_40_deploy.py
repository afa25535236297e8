"""The files in jobs/ that deploy twsync: what they say is done, with this very program.

The image is made twice: by podman, and by hand, as an empty root that gets what the Containerfile copies.  The
latter runs wherever root may chroot; podman needs more of the machine, and where it lacks that, its tests are
skipped and say why.  In both twsync is process 1, has no rights, and nothing else is there.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import urllib.error
import urllib.request

import pytest
import yaml

import compare
import pg
import tw
from wait import wait_for

JOBS = os.path.join(tw.ROOT, "jobs")
CONTAINERFILE = os.path.join(JOBS, "container", "Containerfile")
UNIT = os.path.join(JOBS, "twsync@.service")
MANIFEST = os.path.join(JOBS, "kubernetes.yaml")
INIS = sorted(name for name in os.listdir(JOBS) if name.endswith(".ini"))
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
STOPS_IN = 10       # seconds, from SIGTERM to the end of the last process
TAKES_OVER_IN = 20  # seconds: twsync says 10, this machine has other work
MAX_EXPOSURE = 2.0  # of systemd-analyze security

TABLE = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'a' FROM generate_series(1, 1000) g"
LARGE = ("CREATE TABLE t (id int PRIMARY KEY, v text); "
         "INSERT INTO t SELECT g, repeat('x', 200) FROM generate_series(1, 50000) g")
POLICIES = {"forward": {"on_conflict": "overwrite"}, "reverse": {"on_conflict": "ignore"}}

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="chroot and namespaces need root")
release_build = pytest.mark.skipif("debug" in os.path.basename(tw.BINARY), reason="not the release build")


def tool(name):
    path = shutil.which(name, path=PATH)
    assert path, f"{name} is not installed (./build.sh test installs it)"
    return path


# ---- the image


class Containerfile:
    """What a Containerfile says; an instruction this reader does not know is an error."""

    def __init__(self, path):
        self.copies, self.env, self.volumes, self.entrypoint, self.cmd, self.user = [], {}, [], [], [], None
        self.stop_signal = "SIGTERM"
        with open(path) as f:
            self.lines = [line.strip() for line in f if line.strip() and not line.startswith("#")]
        assert self.lines[0] == "FROM scratch", self.lines[0]
        for line in self.lines[1:]:
            word, rest = line.split(None, 1)
            getattr(self, "_" + word.lower())(rest)
        for argv in (self.entrypoint, self.cmd):
            assert argv and argv[0] != "/bin/sh", "there is no shell: the exec form is needed"

    def _copy(self, rest):
        *options, source, target = shlex.split(rest)
        owner = next((o.split("=")[1] for o in options if o.startswith("--chown=")), "0:0")
        self.copies.append((source, target, tuple(map(int, owner.split(":")))))

    def _env(self, rest):
        self.env.update(word.split("=", 1) for word in shlex.split(rest))

    def _volume(self, rest):
        self.volumes += shlex.split(rest)

    def _user(self, rest):
        self.user = tuple(map(int, rest.split(":")))

    def _stopsignal(self, rest):
        self.stop_signal = rest

    def _entrypoint(self, rest):
        self.entrypoint = json.loads(rest)

    def _cmd(self, rest):
        self.cmd = json.loads(rest)

    def lay_out(self, context, root):
        """An empty root with what is copied; the paths are those of a build with this context."""
        os.makedirs(root, 0o755)
        for source, target, owner in self.copies:
            source, target = os.path.join(context, source), root + target
            if os.path.isdir(source):
                shutil.copytree(source, target)
            else:
                shutil.copy(source, target)
            for base, _, names in [(target, (), ())] + list(os.walk(target)):
                for path in [base] + [os.path.join(base, name) for name in names]:
                    os.chown(path, *owner)


@pytest.fixture
def context(tmp_path):
    """What `podman build ... .` is given: the checkout, of which the Containerfile needs jobs/, and the program."""
    path = tmp_path / "context"
    shutil.copytree(JOBS, path / "jobs")
    shutil.copy(tw.BINARY, path / "twsync")
    return str(path)


class Container:
    """A job that runs as process 1 of a container; tw.Job does the rest, its commands are executed inside."""

    def __init__(self, job, folder, context, mounts, env=None, args=None, user=None):
        self.job, self.image, self.mounts = job, Containerfile(CONTAINERFILE), mounts
        self.user, self.args = user or self.image.user, args or self.image.cmd
        self.env = {**self.image.env, **(env or {})}
        self.folder = str(folder)
        self.root = os.path.join(self.folder, f"root-{job.name}")
        self.prepare(context)
        job.path = self.args[1]
        job.state_dir = os.path.join(self.state_folder, job.name)
        assert self.args[0] == "run", self.args     # which is what tw.Job starts

    def prepare(self, context):
        """The folder of the state is made by the image (where a container's volume gets its owner from)."""
        self.image.lay_out(context, self.root)
        for target, source in self.mounts.items():
            assert not os.path.exists(self.root + target), f"{target} hides what the image has"
            shutil.copytree(source, self.root + target)
            give(self.root + target, self.user)
        self.state_folder = self.root + self.env["TWSYNC_STATE_DIR"]

    def start_argv(self):
        uid, gid = self.user
        return [tool("unshare"), "--pid", "--fork", "--mount", "--kill-child", tool("setpriv"), "--no-new-privs",
                "--inh-caps=-all", tool("chroot"), "--groups=", f"--userspec={uid}:{gid}", self.root,
                *self.image.entrypoint]

    def start(self, wait=tw.TASKS):
        self.job.command_prefix = [tool("env"), "-i", *(f"{k}={v}" for k, v in self.env.items()),
                                   *self.start_argv()]
        self.job.start(wait=())
        self.pid = wait_for(self.first_process, "the container's process 1", every=0.01)
        uid, gid = self.user
        self.job.command_prefix = [
            tool("env"), "-i", *(f"{k}={v}" for k, v in self.env.items()), tool("nsenter"), f"--target={self.pid}",
            "--pid", "--mount", "--root", f"--setuid={uid}", f"--setgid={gid}", *self.image.entrypoint]
        for task in wait:
            self.job.wait_state(task, "Running")
        return self

    def first_process(self):
        """Our pid of the process that is number 1 inside, once it is twsync."""
        assert self.job.alive(), f"it ended with {self.job.process.returncode}:\n{self.job.log_tail()}"
        return next((pid for pid in below(self.job.process.pid) if inside(pid) == 1 and runs_twsync(pid)), None)

    def stop(self):
        """The signal of the image to process 1: the exit code.  Nothing is left of it in time."""
        processes = [self.pid] + below(self.pid)
        os.kill(self.pid, getattr(signal, self.image.stop_signal))
        wait_for(lambda: not any(map(exists, processes)), "no process of the container is left", STOPS_IN, 0.01)
        return self.job.process.wait(60)


class Podman(Container):
    """The same in an image that podman has built, as its user would run it."""

    def prepare(self, context):
        self.where = os.path.join(self.folder, "podman")     # all tests build upon the same layers
        self.podman = [tool("podman"), f"--root={self.where}/root", f"--runroot={self.where}/run",
                       f"--tmpdir={self.where}/tmp", "--storage-driver=vfs", "--cgroup-manager=cgroupfs",
                       "--events-backend=file"]
        self.name = f"twsync-test-{os.getpid()}-{self.job.name}"
        self.state_folder = f"{self.where}/root/volumes/{self.name}/_data"
        file = os.path.relpath(CONTAINERFILE, tw.ROOT)
        run(*self.podman, "build", "--isolation=chroot", "-f", os.path.join(context, file), "-t", "twsync", context)
        for source in self.mounts.values():
            give(source, self.user)

    def alone(self, *argv):
        """In a view of the machine's mounts of its own: crun does not take cgroups of both versions at once."""
        hide = "umount /sys/fs/cgroup/unified 2>/dev/null; exec \"$@\""
        return [tool("unshare"), "--mount", "/bin/sh", "-c", hide, "sh", *argv]

    def run_argv(self, *options):
        binds = [f"--volume={source}:{target}:ro" for target, source in self.mounts.items()]
        return self.alone(*self.podman, "run", "--rm", "--name", self.name, "--network=host", "--cgroups=disabled",
                          "--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096", "--read-only", "--cap-drop=all",
                          "--security-opt=no-new-privileges", *binds, *options, "twsync")

    def start_argv(self):
        """With a new volume, which gets its owner from the image."""
        volume, = self.image.volumes
        return [tool("env"), f"PATH={PATH}", *self.run_argv(f"--volume={self.name}:{volume}")]

    def first_process(self):
        """It is the child of conmon, which is nobody's."""
        assert self.job.alive(), f"it ended with {self.job.process.returncode}:\n{self.job.log_tail()}"
        done = subprocess.run([*self.podman, "inspect", "--format", "{{.State.Pid}}", self.name], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={"PATH": PATH}, timeout=60)
        pid = int(done.stdout or 0) if not done.returncode else 0
        return pid if pid and inside(pid) == 1 and runs_twsync(pid) else None

    def clean_up(self):
        with contextlib.suppress(AssertionError):
            run(*self.alone(*self.podman, "rm", "--force", "--time=0", "--all"))


def run(*argv, code=0):
    """Runs a tool: what it says on both outputs."""
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
                          timeout=120, env={"PATH": PATH, "LC_ALL": "C.UTF-8"})
    assert done.returncode == code, f"{' '.join(argv)}: exit code {done.returncode}\n{done.stdout}"
    return done.stdout


def give(folder, user):
    """To its user alone, as secrets are."""
    for base, _, names in os.walk(folder):
        os.chmod(base, 0o700)
        os.chown(base, *user)
        for name in names:
            os.chmod(os.path.join(base, name), 0o400)
            os.chown(os.path.join(base, name), *user)


# ---- processes, as /proc has them


def stat_of(pid):
    """State and parent of a process; of one that is gone nothing."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            fields = f.read().rpartition(")")[2].split()
        return fields[0], int(fields[1])
    except OSError:
        return None, None


def exists(pid):
    return stat_of(pid)[0] is not None


def below(pid):
    """Its children and theirs, zombies too."""
    parents = {int(entry): stat_of(entry)[1] for entry in os.listdir("/proc") if entry.isdigit()}
    found = [pid]
    for parent in found:
        found += [child for child, of in parents.items() if of == parent]
    return found[1:]


def inside(pid):
    """The number a process has in its own namespace."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as f:
        return int(re.search(r"^NSpid:.*\s(\d+)$", f.read(), re.M)[1])
    return None


def runs_twsync(pid):
    with contextlib.suppress(OSError):
        return os.path.basename(os.readlink(f"/proc/{pid}/exe")) == "twsync"
    return False


def zombies_of(pid):
    return [child for child in below(pid) if stat_of(child)[0] == "Z"]


# ---- (a) in a container


def service_file(pair, path):
    """What the job's services a and b are."""
    text = tw.ini({node.letter: node.job_keys() for node in pair.nodes}).replace(" = ", "=")
    return tw.write_private(path, text)


def served(pair, folder, sections):
    """A folder as the Containerfile describes it: the job, which names services, and the service file."""
    os.makedirs(folder)
    service_file(pair, os.path.join(folder, "pg_service.conf"))
    own = {**sections, "a": {"service": "a"}, "b": {"service": "b"}}
    own["job"] = {"name": sections["job"]["name"]}      # the state is where the image says
    tw.write_private(os.path.join(folder, "job.ini"), tw.ini({s: k for s, k in own.items() if k}))
    return folder


@pytest.fixture
def engine():
    """How the container runs; tests parametrize it."""
    return "root"


@pytest.fixture
def contain(pair, make_job, context, folder, tmp_path, engine):
    """contain(section={...}) -> a Container of such a job, not started."""
    made = []

    def make(**sections):
        job = make_job(pair, **{**POLICIES, **sections})
        mounts = {"/job": served(pair, str(tmp_path / "job"), job.sections)}
        kind = Podman if engine == "podman" else Container
        made.append(kind(job, folder, context, mounts))     # podman wants a short path
        if engine == "podman":
            why_no_podman(made[0])
        return made[0]

    yield make
    for container in made:
        container.job.clean_up()
        if engine == "podman":
            container.clean_up()


def why_no_podman(container):
    """Skips where this machine lets no container run at all, with podman's own reason."""
    argv = container.run_argv() + ["--version"]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
                          timeout=120, env={"PATH": PATH})
    if done.returncode == 126:      # podman's code for what the runtime could not do
        pytest.skip(f"podman runs no container on this machine: {done.stdout.strip()[-300:]}")
    assert done.returncode == 0 and re.match(r"twsync \d+\.\d+", done.stdout), done.stdout


in_both = pytest.mark.parametrize("engine", ["root", "podman"])


@as_root
@release_build
@in_both
@pytest.mark.rung("marker")     # over TCP: a container has no sockets of the host
def test_container(pair, contain):
    """A job as process 1 without rights: both directions, a stop in time with nothing left, and on it goes."""
    pair.a.sql(TABLE)
    container = contain().start()
    job = container.job
    with open(f"/proc/{container.pid}/status") as f:
        told = {name: value.strip() for name, _, value in (line.partition(":") for line in f)}
    assert told["Uid"].split() == [str(container.user[0])] * 4 and told["Gid"].split() == [str(container.user[1])] * 4
    assert told["CapEff"] == told["CapPrm"] == "0" * 16 and told["NoNewPrivs"] == "1", told
    for _ in range(2):
        pair.a.sql("UPDATE t SET v = v || 'a' WHERE id < 10; INSERT INTO t SELECT max(id) + 2, 'new of a' FROM t")
        pair.b.sql("DELETE FROM t WHERE id IN (SELECT id FROM t WHERE v = 'a' ORDER BY id DESC LIMIT 3)")
        job.wait_synced()
        compare.assert_same(pair)
        assert job.command("status", job.path)[0] == tw.OK, "the health check of the image"
        pair.a.sql("UPDATE t SET v = v || 'b' WHERE id % 10 = 0")       # on its way while it is stopped
        pair.b.sql("UPDATE t SET v = v || 'c' WHERE id % 10 = 1")
        assert container.stop() == tw.OK and "stopped; run again" in job.log_text(), job.log_tail()
        container.start()
    job.wait_synced()
    compare.assert_same(pair)
    assert container.stop() == tw.OK
    found = sorted(os.listdir(os.path.join(container.state_folder, job.name)))
    assert "forward.ckpt" in found and "reverse.ckpt" in found, found


@as_root
@release_build
@in_both
@pytest.mark.rung("marker")
def test_container_reloads(pair, contain):
    """SIGHUP to process 1, which the kernel gives only to one that asked for it."""
    pair.a.sql(TABLE)
    container = contain().start()
    os.kill(container.pid, signal.SIGHUP)
    wait_for(lambda: "goes on by what its file says" in container.job.log_text(), "it has read the file again")
    for task in tw.TASKS:
        container.job.wait_state(task, "Running")
    pair.b.sql("INSERT INTO t VALUES (5000, 'after it')")
    container.job.wait_synced()
    compare.assert_same(pair)
    assert container.stop() == tw.OK


@as_root
@release_build
@in_both
@pytest.mark.rung("marker")
def test_container_reaps(pair, contain):
    """A task is killed while it copies: its workers, which become children of process 1, leave no zombies."""
    pair.a.sql(LARGE)
    container = contain(throttle={"full.rows": 10000}, forward={"chunk_size": "1MB", "workers": 2}).start(wait=())
    job = container.job

    def copying():
        """A task with its workers."""
        tasks = {pid: below(pid) for pid in below(container.pid) if stat_of(pid)[1] == container.pid}
        return next(((pid, workers) for pid, workers in tasks.items() if len(workers) >= 2), None)

    task, workers = wait_for(copying, "a task has workers", every=0.01)
    os.kill(task, signal.SIGKILL)
    wait_for(lambda: not any(map(exists, [task, *workers])), "they are gone, as zombies too", 20)
    job.command("throttle", job.path, "full.rows=-1")
    for name in tw.TASKS:
        job.wait_state(name, "Running")
    job.wait_synced()
    assert not zombies_of(container.pid)
    compare.assert_same(pair)
    assert container.stop() == tw.OK


@as_root
@release_build
@in_both
@pytest.mark.rung("marker")
def test_container_stops_while_copying(pair, contain):
    """Also then, and with a task that cannot end because it is held, it ends in time."""
    pair.a.sql(LARGE)
    container = contain(throttle={"full.rows": 10000}, forward={"chunk_size": "1MB", "workers": 2}).start(wait=())
    wait_for(lambda: [pid for pid in below(container.pid) if len(below(pid)) >= 2], "it copies", every=0.01)
    assert container.stop() == tw.OK
    container.start(wait=())
    tasks = wait_for(lambda: [pid for pid in below(container.pid) if len(below(pid)) >= 2], "it copies", every=0.01)
    os.kill(tasks[0], signal.SIGSTOP)
    assert container.stop() == tw.OK
    container.start(wait=())
    container.job.command("throttle", container.job.path, "full.rows=-1")
    for name in tw.TASKS:
        container.job.wait_state(name, "Running")
    container.job.wait_synced()
    compare.assert_same(pair)


# ---- (b) under systemd


def unit_text():
    """The unit, with this program in the place of the one that is not installed here."""
    with open(UNIT) as f:
        text = f.read()
    assert text.count("=/usr/local/bin/twsync ") == 2, "ExecStart and ExecReload"
    return text.replace("=/usr/local/bin/twsync ", f"={tw.BINARY} ")


def unit_values(key):
    return re.findall(rf"^{key}=(.*)$", unit_text(), re.M)


@pytest.fixture
def unit(tmp_path):
    path = tmp_path / "twsync@.service"
    path.write_text(unit_text())
    return str(path)


def test_unit_is_understood(unit):
    """systemd has nothing to say about it: it does know each directive and each value."""
    assert run(tool("systemd-analyze"), "verify", "--man=no", unit) == ""


def test_unit_is_hardened(unit):
    out = run(tool("systemd-analyze"), "security", "--offline=true", f"--threshold={MAX_EXPOSURE * 10:.0f}", unit)
    exposure = float(re.search(r"Overall exposure level for \S+: ([\d.]+)", out)[1])
    assert exposure <= MAX_EXPOSURE, out


def test_unit_restarts():
    """Exit codes that a person has to decide about are those, and stopping takes longer than twsync does."""
    assert unit_values("RestartPreventExitStatus") == [f"{tw.TASK_FAILED} {tw.BAD_JOB}"]
    assert int(unit_values("TimeoutStopSec")[0]) > STOPS_IN and unit_values("KillMode") == ["mixed"]


# Loads what the unit says of system calls, and becomes the program.  What is not allowed kills it here.
CONFINED = """
import json, os, sys
import seccomp
allowed, families, argv = json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:]
f = seccomp.SyscallFilter(seccomp.KILL_PROCESS)
WRITE, EXEC = 2, 4
special = {
    # RestrictAddressFamilies=
    "socket": [[seccomp.Arg(0, seccomp.EQ, n)] for n in families],
    # MemoryDenyWriteExecute=
    "mmap": [[seccomp.Arg(2, seccomp.MASKED_EQ, EXEC, 0)], [seccomp.Arg(2, seccomp.MASKED_EQ, EXEC | WRITE, EXEC)]],
    "mprotect": [[seccomp.Arg(2, seccomp.MASKED_EQ, EXEC, 0)]],
}
for name in allowed:
    try:
        for args in special.get(name, [[]]):
            f.add_rule(seccomp.ALLOW, name, *args)
    except RuntimeError:
        pass    # a call that this machine does not have
f.load()
os.execv(argv[0], argv)
"""


def system_calls(groups):
    """The names in these groups of systemd's, and in the groups within."""
    found, todo = set(), list(groups)
    for name in todo:
        if name.startswith("@"):
            listed = run(tool("systemd-analyze"), "syscall-filter", name).splitlines()[1:]
            todo += [line.strip() for line in listed if line.strip() and not line.strip().startswith("#")]
        else:
            found.add(name)
    return found


def unit_system_calls():
    allowed = set()
    for words in unit_values("SystemCallFilter"):
        if words.startswith("~"):
            allowed -= system_calls(words[1:].split())
        else:
            allowed |= system_calls(words.split())
    return sorted(allowed)


@as_root
@release_build
@pytest.mark.rung("marker")
def test_unit_lets_it_work(pair, make_job, tmp_path, rng):
    """All of a job's life without rights, under the unit's filters of system calls: nothing it needs is forbidden."""
    pair.a.sql(TABLE)
    families = [{"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10}[word]
                for word in unit_values("RestrictAddressFamilies")[0].split()]
    user = Containerfile(CONTAINERFILE).user
    job = make_job(pair, **POLICIES, job={"state_dir": str(tmp_path / "state" / "x")})
    folder = served(pair, str(tmp_path / "etc"), job.sections)
    give(folder, user)
    os.mkdir(tmp_path / "state", 0o700)
    os.chown(tmp_path / "state", *user)
    for path in [tmp_path, *list(tmp_path.parents)[:-2]]:
        assert os.stat(path).st_uid == 0
        os.chmod(path, os.stat(path).st_mode | 0o011)
    env = {"PGSERVICEFILE": f"{folder}/pg_service.conf", "TWSYNC_STATE_DIR": str(tmp_path / "state")}
    job.path, job.state_dir = f"{folder}/job.ini", str(tmp_path / "state" / job.name)
    job.command_prefix = [
        tool("env"), *(f"{k}={v}" for k, v in env.items()), tool("setpriv"), f"--reuid={user[0]}",
        f"--regid={user[1]}", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs",
        "/usr/bin/python3", "-c", CONFINED, json.dumps(unit_system_calls()), json.dumps(families), tw.BINARY]
    job.start()
    with open(f"/proc/{job.process.pid}/status") as f:
        assert re.search(r"^Seccomp:\t2$", f.read(), re.M), "it is not confined"
    pair.a.sql("ALTER TABLE t ADD w int DEFAULT 3; UPDATE t SET v = 'of a' WHERE id < 10")
    pair.b.sql("INSERT INTO t VALUES (5000, 'of b')")
    job.wait_synced()
    compare.assert_same(pair)
    assert job.kill_child(rng)
    code, out, err = job.command("reload", job.path)
    assert code == tw.OK, out + err
    for task in tw.TASKS:
        job.wait_state(task, "Running")
    job.wait_synced()
    assert job.stop() == tw.OK
    code, out, err = job.release()
    assert code == tw.OK, out + err


# ---- (c) on Kubernetes

# The fields of the API that the manifest uses; True is any value, a list has elements of one kind.
# A field that is not here is a mistake, or has to be looked up in the API and written down.
LABELS = {"*": str}
SELECTOR = {"matchLabels": LABELS}
META = {"name": str, "labels": LABELS}
PROBE = {"httpGet": {"path": str, "port": (int, str), "scheme": str}, "exec": {"command": [str]},
         "initialDelaySeconds": int, "periodSeconds": int, "timeoutSeconds": int, "successThreshold": int,
         "failureThreshold": int}
CONTAINER = {
    "name": str, "image": str, "imagePullPolicy": str, "command": [str], "args": [str],
    "env": [{"name": str, "value": str}],
    "ports": [{"name": str, "containerPort": int, "protocol": str}],
    "livenessProbe": PROBE, "readinessProbe": PROBE, "startupProbe": PROBE,
    "securityContext": {"allowPrivilegeEscalation": bool, "readOnlyRootFilesystem": bool,
                        "capabilities": {"drop": [str]}},
    "resources": {"requests": {"cpu": str, "memory": str}, "limits": {"cpu": str, "memory": str}},
    "volumeMounts": [{"name": str, "mountPath": str, "readOnly": bool, "subPath": str}],
}
ANTI = {"topologyKey": str, "labelSelector": SELECTOR}
POD = {
    "automountServiceAccountToken": bool, "enableServiceLinks": bool, "terminationGracePeriodSeconds": int,
    "affinity": {"podAntiAffinity": {
        "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": int, "podAffinityTerm": ANTI}],
        "requiredDuringSchedulingIgnoredDuringExecution": [ANTI]}},
    "securityContext": {"runAsNonRoot": bool, "runAsUser": int, "runAsGroup": int, "fsGroup": int,
                        "seccompProfile": {"type": str}},
    "containers": [CONTAINER],
    "volumes": [{"name": str, "configMap": {"name": str, "defaultMode": int}, "emptyDir": {"sizeLimit": str},
                 "secret": {"secretName": str, "defaultMode": int}}],
}
KINDS = {
    ("v1", "Secret"): {"type": str, "stringData": {"*": str}},
    ("v1", "ConfigMap"): {"data": {"*": str}},
    ("apps/v1", "Deployment"): {"spec": {
        "replicas": int, "selector": SELECTOR, "template": {"metadata": {"labels": LABELS}, "spec": POD},
        "strategy": {"type": str, "rollingUpdate": {"maxSurge": int, "maxUnavailable": int}}}},
    ("policy/v1", "PodDisruptionBudget"): {"spec": {"minAvailable": int, "selector": SELECTOR}},
}


def departures(value, shape, path):
    """Where a value is not of this shape."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return [f"{path} is not a mapping"]
        unknown = [f"{path}.{key} is not in the API" for key in value if key not in shape and "*" not in shape]
        return unknown + [line for key, part in value.items() if key in shape or "*" in shape
                          for line in departures(part, shape.get(key, shape.get("*")), f"{path}.{key}")]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [f"{path} is not a list"]
        return [line for n, part in enumerate(value) for line in departures(part, shape[0], f"{path}[{n}]")]
    if isinstance(value, bool) and shape is not bool or not isinstance(value, shape):
        return [f"{path} is {value!r}"]
    return []


class Strict(yaml.SafeLoader):
    """A key that is there twice, of which the first would be lost, is a mistake."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep) for key, _ in node.value]
        assert len(set(keys)) == len(keys), f"a key is there twice, in {keys}"
        return super().construct_mapping(node, deep)


def manifest():
    """The objects by kind."""
    with open(MANIFEST) as f:
        objects = list(yaml.load_all(f, Strict))
    assert len({o["kind"] for o in objects}) == len(objects) == 4
    return {o["kind"]: o for o in objects}


def test_manifest_fits_the_api():
    for one in manifest().values():
        head = {"apiVersion": str, "kind": str, "metadata": META}
        shape = KINDS.get((one["apiVersion"], one["kind"]))
        assert shape, f"no {one['apiVersion']} {one['kind']}"
        assert departures(one, {**head, **shape}, one["kind"]) == []
        for name in [one["metadata"]["name"], *one["metadata"]["labels"].values()]:
            assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name), name


def test_manifest_is_of_one_piece():
    """What is spoken of is there: labels, ports, volumes, keys of the Secret and the ConfigMap."""
    kinds = manifest()
    deployment = kinds["Deployment"]["spec"]
    labels, spec = deployment["template"]["metadata"]["labels"], deployment["template"]["spec"]
    term = spec["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"][0]["podAffinityTerm"]
    for selector in (deployment["selector"], kinds["PodDisruptionBudget"]["spec"]["selector"], term["labelSelector"]):
        assert selector["matchLabels"] and selector["matchLabels"].items() <= labels.items(), selector
    assert deployment["replicas"] == 2 > kinds["PodDisruptionBudget"]["spec"]["minAvailable"] >= 1
    assert deployment["strategy"]["type"] == "RollingUpdate"
    assert spec["terminationGracePeriodSeconds"] > STOPS_IN
    container, = spec["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for probe, path in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        get = container[probe]["httpGet"]
        assert get["path"] == path and get["port"] in [*ports, *ports.values()], get
    listen = re.search(r"^listen = (.*):(\d+)$", job_of(kinds), re.M)
    assert listen and listen[1] == "0.0.0.0" and int(listen[2]) in ports.values(), "the kubelet cannot ask it"
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert len(mounts) == len(container["volumeMounts"]) and sorted(mounts.values()) == sorted(volumes)
    assert volumes[mounts["/state"]] == {"name": mounts["/state"], "emptyDir": {}}, "a state of its own"
    assert kinds["Secret"]["metadata"]["name"] == volumes["secret"]["secret"]["secretName"]
    assert kinds["ConfigMap"]["metadata"]["name"] == volumes["job"]["configMap"]["name"]
    files = mounted(kinds)
    env = {one["name"]: one["value"] for one in container["env"]}
    assert container["args"][0] == "run" and container["args"][1] in files and env["PGSERVICEFILE"] in files
    for path in re.findall(r"^sslrootcert=(.*)$", files[env["PGSERVICEFILE"]], re.M):
        assert path in files, path


def test_manifest_is_hardened():
    spec = manifest()["Deployment"]["spec"]["template"]["spec"]
    container, = spec["containers"]
    uid, gid = Containerfile(CONTAINERFILE).user
    assert spec["securityContext"] == {"runAsNonRoot": True, "runAsUser": uid, "runAsGroup": gid, "fsGroup": gid,
                                       "seccompProfile": {"type": "RuntimeDefault"}}
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                                            "capabilities": {"drop": ["ALL"]}}
    assert spec["automountServiceAccountToken"] is False and not spec["volumes"][1]["secret"]["defaultMode"] & 0o337


def job_of(kinds):
    text, = kinds["ConfigMap"]["data"].values()
    return text


def mounted(kinds):
    """What the pod finds: text by path."""
    spec = kinds["Deployment"]["spec"]["template"]["spec"]
    source = {volume["name"]: kinds["Secret"]["stringData"] if "secret" in volume else
              kinds["ConfigMap"]["data"] if "configMap" in volume else {} for volume in spec["volumes"]}
    return {f"{mount['mountPath']}/{name}": text for mount in spec["containers"][0]["volumeMounts"]
            for name, text in source[mount["name"]].items()}


def show(path):
    done = subprocess.run([tw.BINARY, "show", path], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          stdin=subprocess.DEVNULL, timeout=60, env=tw.environment("/"))
    assert done.returncode == tw.OK, done.stdout
    return done.stdout


@pytest.mark.parametrize("name", INIS)
def test_jobs_are_right(name):
    """Each example is a job as this program understands it."""
    assert "[objects]" in show(os.path.join(JOBS, name))


def test_job_of_the_manifest_is_right(tmp_path):
    told = show(tw.write_private(tmp_path / "shop.ini", job_of(manifest())))
    assert "name = shop" in told and "listen = 0.0.0.0:9836" in told, told


def test_job_that_is_wrong_is_told(tmp_path):
    """So that the two above mean something."""
    path = tw.write_private(tmp_path / "shop.ini", job_of(manifest()).replace("on_conflict", "on_conflicts", 1))
    code, out, err = tw.run("show", str(path))
    assert code == tw.BAD_JOB and "on_conflicts" in out + err


class Pod:
    """One of the manifest, run by hand: its files, user, environment and arguments; its probes are asked.

    Only addresses are those of the test: of the servers, and of the probes, for all pods share one network here.
    """

    def __init__(self, pair, make_job, context, folder):
        kinds, self.port = manifest(), pg.free_port()
        spec = kinds["Deployment"]["spec"]["template"]["spec"]
        self.spec, files = spec["containers"][0], mounted(kinds)
        self.grace = spec["terminationGracePeriodSeconds"]
        env, args = {one["name"]: one["value"] for one in self.spec["env"]}, self.spec["args"]
        self.job = make_job(pair, name=re.search(r"^name = (.*)$", files[args[1]], re.M)[1])
        mounts = {}
        for path, text in files.items():
            mount, name = os.path.split(path)
            source = mounts.setdefault(mount, os.path.join(self.job.folder, os.path.basename(mount)))
            os.makedirs(source, exist_ok=True)
            if path == args[1]:
                text = re.sub(r"^schemas = .*$", "schemas = public", text, flags=re.M)
                text = re.sub(r"^listen = (.*):.*$", rf"listen = \1:{self.port}", text, flags=re.M)
                text += "\n[slots]\nheartbeat = 100ms\n"
            tw.write_private(os.path.join(source, name), text)
            if path == env["PGSERVICEFILE"]:
                service_file(pair, os.path.join(source, name))
        user = (spec["securityContext"]["runAsUser"], spec["securityContext"]["runAsGroup"])
        os.makedirs(os.path.join(folder, "pods"), exist_ok=True)
        where = os.path.join(folder, "pods", os.path.basename(self.job.folder))
        self.container = Container(self.job, where, context, mounts, env, args, user)

    def answer(self, probe):
        """The code of HTTP, or why there is none."""
        url = f"http://127.0.0.1:{self.port}{self.spec[probe]['httpGet']['path']}"
        try:
            with urllib.request.urlopen(url, timeout=self.spec[probe]["timeoutSeconds"]) as got:
                return got.status
        except urllib.error.HTTPError as e:
            return e.code
        except OSError as e:
            return str(e)

    def wait_ready(self):
        for probe in ("livenessProbe", "readinessProbe"):
            wait_for(lambda: self.answer(probe) == 200, f"{probe} is answered", 30)


@as_root
@release_build
@pytest.mark.rung("marker")
def test_pods(pair, make_job, context, folder):
    """Both replicas are ready; the one that works is killed, and then ended: each time the other goes on."""
    def carries(pod, n):
        pair.a.sql("INSERT INTO t VALUES (%s, 'of a')", (7000 + n,))
        pair.b.sql("INSERT INTO t VALUES (%s, 'of b')", (8000 + n,))
        pod.job.wait_synced()
        compare.assert_same(pair)

    pair.a.sql(TABLE)
    first, second = (Pod(pair, make_job, context, folder) for _ in range(2))
    first.container.start()
    first.wait_ready()
    second.container.start(wait=())
    second.wait_ready()
    carries(first, 0)
    os.kill(first.container.pid, signal.SIGKILL)
    for task in tw.TASKS:
        second.job.wait_state(task, "Running", TAKES_OVER_IN)
    carries(second, 1)
    first.job.process.wait(60)
    first.container.start(wait=())
    first.wait_ready()
    os.kill(second.container.pid, signal.SIGTERM)
    assert second.job.process.wait(second.grace) == tw.OK and second.answer("livenessProbe") != 200
    for task in tw.TASKS:
        first.job.wait_state(task, "Running", TAKES_OVER_IN)
    carries(first, 2)
