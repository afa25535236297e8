"""Running the twsync binary: the job file of a test, its processes, what they say."""

import contextlib
import json
import os
import re
import signal
import subprocess

from pg import lsn_int, lsn_text
from wait import wait_for

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
BINARY = os.environ.get("TWSYNC_TEST_BIN", os.path.join(ROOT, "twsync"))
TASKS = ("forward", "reverse")

# Exit codes.
OK, TASK_FAILED, BAD_JOB, PRECHECK_FAILED, LOCKED, NO_CONNECTION, NOT_RELEASED = 0, 1, 2, 3, 4, 5, 6

# Traces of a defect in the program itself; no test may leave one in a log.
DEFECT = re.compile(r"AddressSanitizer|LeakSanitizer|runtime error:|[Aa]ssertion.*failed"
                    r"|internal error|Segmentation fault|stack smashing")


def environment(home, **more):
    """A small environment: nothing of the caller's leaks into a job."""
    return {"PATH": "/usr/bin:/bin", "HOME": home, "LC_ALL": "C.UTF-8", **more}


def run(*args, home="/", timeout=120, program=(BINARY,), **more):
    """Runs twsync to its end: exit code, standard output, standard error."""
    done = subprocess.run([*program, *args], capture_output=True, text=True, errors="replace",
                          stdin=subprocess.DEVNULL, timeout=timeout, env=environment(home), **more)
    return done.returncode, done.stdout, done.stderr


def ini(sections):
    """The text of a job file: {"forward": {"workers": 2}} -> [forward] workers = 2."""
    lines = []
    for name, keys in sections.items():
        lines.append(f"[{name}]")
        for key, value in keys.items():
            if isinstance(value, bool):
                value = "yes" if value else "no"
            lines.append(f"{key} = {value}")
        lines.append("")
    return "\n".join(lines)


def write_private(path, text, mode=0o600):
    with open(path, "w") as f:
        os.fchmod(f.fileno(), mode)
        f.write(text)
    return path


class Job:
    """A job file, its state folder, and the processes of `twsync run`.

    Keyword arguments are sections of the job file; they add to or replace what every test has:
    both ends, the schemas given, and quick heartbeats (the positions of an idle task advance with them).
    """

    command_prefix = [BINARY]

    def __init__(self, pair, folder, name, schemas="public", **sections):
        self.pair, self.name, self.folder = pair, name, str(folder)
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        self.state_dir = os.path.join(self.folder, "state")
        self.path = os.path.join(self.folder, f"{name}.ini")
        self.log = os.path.join(self.folder, "run.log")
        self.process = None
        self.started = []           # every process ever started, for the clean-up
        self.sections = {
            "job": {"name": name, "state_dir": self.state_dir},
            "a": pair.a.job_keys(), "b": pair.b.job_keys(),
            "objects": {"schemas": schemas} if schemas else {},
            "forward": {}, "reverse": {},
            "slots": {"heartbeat": "100ms"}, "retry": {}, "throttle": {},
        }
        pair.jobs.append(self)
        self.change(**sections)

    def change(self, **sections):
        """Changes keys of the job file (None removes one) and writes it."""
        for section, keys in sections.items():
            self.sections.setdefault(section, {})
            for key, value in keys.items():
                if value is None:
                    self.sections[section].pop(key, None)
                else:
                    self.sections[section][key] = value
        write_private(self.path, ini({s: k for s, k in self.sections.items() if k}))
        return self

    # ---- processes

    def start(self, *options, wait=TASKS, log=None, **env):
        """Starts `twsync run`, in a process group of its own, and waits until tasks are Running.

        The page of counters of an earlier run goes first, so that its states are not taken for new.
        """
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(self.state_dir, "page"))
        with open(log or self.log, "ab") as out:
            self.process = subprocess.Popen(
                [*self.command_prefix, "run", self.path, *options], stdin=subprocess.DEVNULL, stdout=out,
                stderr=out, start_new_session=True, env=environment(self.folder, **env))
        self.started.append(self.process)
        for task in wait:
            self.wait_state(task, "Running")
        return self

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def kill(self, whole_group=True):
        """kill -9: of all processes of the run (and they are gone), or of the first one only."""
        if whole_group:
            kill_group(self.process, signal.SIGKILL)
        else:
            self.process.kill()
        self.process.wait(60)
        if whole_group:
            wait_for(lambda: not self.children(), "the killed processes are gone", every=0.005)

    def children(self):
        """pids of the other processes of the run."""
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != self.process.pid:
                try:
                    with open(f"/proc/{entry}/stat") as f:
                        fields = f.read().rpartition(")")[2].split()
                except OSError:
                    continue
                if int(fields[2]) == self.process.pid and fields[0] not in "ZX":
                    found.append(int(entry))
        return found

    def processes(self):
        """The pids of the run's children by what they do: forward, reverse, watch, http."""
        found = {}
        for pid in self.children():
            with contextlib.suppress(OSError), open(f"/proc/{pid}/comm") as f:
                name = f.read().strip()
                if name.startswith("twsync:"):
                    found[name[7:]] = pid
        return found

    def kill_child(self, rng):
        """kill -9 of one task process; the run goes on."""
        children = self.children()
        if children:
            try:
                os.kill(rng.choice(children), signal.SIGKILL)
            except ProcessLookupError:
                pass
        return bool(children)

    def stop(self, sig=signal.SIGTERM, deadline=60):
        """Asks for a clean stop and returns the exit code."""
        self.process.send_signal(sig)
        code = self.process.wait(deadline)
        wait_for(lambda: not self.children(), "no process of the run is left", deadline)
        return code

    def wait_exit(self, deadline=90):
        return self.process.wait(deadline)

    def clean_up(self):
        for process in self.started:
            kill_group(process, signal.SIGKILL)
            process.wait(60)

    # ---- commands

    def command(self, *args, timeout=120):
        return run(*args, home=self.folder, timeout=timeout, program=self.command_prefix)

    def check(self):
        """`check --json`: exit code and the items as a list of objects."""
        code, out, err = self.command("check", self.path, "--json")
        try:
            return code, check_items(json.loads(out))
        except ValueError:
            raise AssertionError(f"check --json exited {code} and printed no JSON:\n{out}\n{err}")

    def release(self):
        return self.command("release", self.path)

    def status(self):
        code, out, err = self.command("status", self.path, "--json")
        try:
            return json.loads(out)
        except ValueError:
            raise AssertionError(f"status --json exited {code} and printed no JSON:\n{out}\n{err}")

    def task(self, name):
        """The status of one task; an empty object before there is any."""
        return next((t for t in self.status().get("tasks", []) if t["task"] == name), {})

    @contextlib.contextmanager
    def unseen(self, letter):
        """A transaction on node a or b that the other side does not get: it bears twsync's own mark.

        The change of the progress row comes first, as in every transaction that twsync applies.
        """
        node, task = (self.pair.a, "reverse") if letter == "a" else (self.pair.b, "forward")
        with node.transaction() as cur:
            cur.execute("UPDATE twsync.progress SET task = task WHERE task = %s", (f"{self.name}/{task}",))
            assert cur.rowcount == 1, f"no progress row of {task}"
            yield cur

    # ---- waiting

    def wait_state(self, task, state, deadline=90):
        def reached():
            status = self.task(task)
            if status.get("state") == state:
                return status
            assert self.alive(), (f"twsync run ended with {self.process.returncode} before {task} "
                                  f"was {state}:\n{self.log_tail(15)}")
            assert state in ("Failed", "Retrying") or status.get("state") != "Failed", (
                f"{task} is Failed: {status.get('last_error')}\n{self.log_tail(15)}")
            return None
        return wait_for(reached, f"{task} is {state}", deadline)

    def applied(self, task):
        """The position up to which the target of a task has all: the row kept with the data."""
        rows = self.pair.target(task).admin(
            "SELECT applied_lsn::text FROM twsync.progress WHERE task = %s",
            (f"{self.name}/{task}",))
        return lsn_int(rows[0][0]) if rows else 0

    def wait_synced(self, tasks=TASKS, deadline=120):
        """Waits until all that is committed now has reached the other side.  Nobody may write.

        The status may be of the moment before the target crashed, and lost what it had not on disk yet;
        the row kept with the data is not.
        """
        marks = {task: self.pair.source(task).lsn() for task in tasks}

        def reached(task):
            status = self.task(task)
            assert self.alive(), (f"twsync run ended with {self.process.returncode} while "
                                  f"catching up:\n{self.log_tail(15)}")
            assert status.get("state") != "Failed", (
                f"{task} is Failed: {status.get('last_error')}\n{self.log_tail(15)}")
            return lsn_int(status.get("applied_lsn")) >= marks[task] and self.applied(task) >= marks[task]

        for task in tasks:
            wait_for(lambda: reached(task), f"{task} has applied up to {lsn_text(marks[task])}", deadline)

    # ---- what was written

    def log_text(self):
        try:
            with open(self.log, errors="replace") as f:
                return f.read()
        except FileNotFoundError:
            return ""

    def log_tail(self, lines=40):
        return "\n".join(self.log_text().splitlines()[-lines:])

    def conflicts(self, task):
        """The recorded conflicts of a task, oldest first, as objects."""
        names = ("kind", "policy", "outcome", "schema_name", "table_name", "key", "existing", "incoming", "settled")
        rows = self.pair.target(task).admin(
            f"SELECT {', '.join(names)} FROM twsync.conflict WHERE task LIKE %s ORDER BY id",
            (f"%{task}",))
        return [dict(zip(names, row)) for row in rows]


def kill_group(process, sig):
    """Signals the whole process group of a run; the group may outlive its first process."""
    try:
        os.killpg(process.pid, sig)
    except ProcessLookupError:
        pass


def check_items(answer):
    """The precheck items in a JSON answer, wherever it keeps them."""
    if isinstance(answer, list) and answer and isinstance(answer[0], dict) and "code" in answer[0]:
        return answer
    values = answer.values() if isinstance(answer, dict) else answer if isinstance(answer, list) else []
    found = []
    for value in values:
        if isinstance(value, (dict, list)):
            found += check_items(value)
    return found
