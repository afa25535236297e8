"""Fixtures: a pair of servers for the whole session, a fresh pair of databases for each test.

A test that asks for `pair` runs once for each rung (how loops are avoided, which follows from what
the role may do): "marker" is an owner with REPLICATION and nothing else, "origin" a superuser.
`@pytest.mark.rung("marker")` keeps one of them.

`@pytest.mark.parametrize("version", [15, (13, 17)])` gives such a test servers of these major versions,
the same for A and B or one each.  A version that cannot be had here is skipped.
"""

import contextlib
import functools
import itertools
import os
import random
import re
import shutil
import tempfile

import psycopg2
import pytest

import pg
import proxy
import tw

SEED = os.environ.get("TWSYNC_TEST_SEED") or str(random.SystemRandom().randrange(10**9))
numbers = itertools.count(1)


def pytest_configure(config):
    config.addinivalue_line("markers", "rung(*names): run only on these rungs")


def pytest_report_header(config):
    return f"twsync: {tw.BINARY}; PostgreSQL: {pg.major()}, {pg.bin_dir()}; TWSYNC_TEST_SEED={SEED}"


def pytest_make_parametrize_id(val, argname):
    return "-".join(map(str, val)) if argname == "version" and isinstance(val, tuple) else None


def pytest_generate_tests(metafunc):
    given = any("rung" in m.args[0] for m in metafunc.definition.iter_markers("parametrize"))
    if "rung" in metafunc.fixturenames and not given:
        only = metafunc.definition.get_closest_marker("rung")
        metafunc.parametrize("rung", list(only.args) if only else ["marker", "origin"])


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failed test shows its seed and the ends of the logs."""
    report = (yield).get_result()
    setattr(item, "failed_" + report.when, report.failed)
    if not report.failed:
        return
    report.sections.append(("seed", f"TWSYNC_TEST_SEED={SEED}"))
    for job in getattr(item, "jobs", []):
        report.sections.append((f"job file {job.path}", mask(tw.ini(job.sections))))
        report.sections.append((f"end of {job.log}", job.log_tail(60)))
        with contextlib.suppress(Exception):
            report.sections.append(("status", str(job.status())))
    names = "|".join(job.name for job in getattr(item, "jobs", [])) or "harness"
    for server in getattr(item, "servers", []):
        with contextlib.suppress(OSError), open(server.log, errors="replace") as f:
            lines = [line for line in f if re.search(rf"(twsync:({names}):.*| )(ERROR|FATAL|PANIC):  ", line)]
            report.sections.append((f"errors in {server.log}", "".join(lines[-12:])))


def mask(text):
    return text.replace(pg.CANARY, "***")


def pytest_sessionfinish(session, exitstatus):
    """Leaves the counts for run.sh."""
    path = os.environ.get("TWSYNC_TEST_COUNTS")
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if path and reporter:
        def count(*kinds):
            return sum(len(reporter.stats.get(kind, [])) for kind in kinds)
        with open(path, "w") as f:
            f.write(f"{count('passed')} {count('failed', 'error')} {count('skipped', 'xfailed')}\n")


@pytest.fixture(scope="session")
def folder():
    """A short path for sockets, data and job files; kept when TWSYNC_TEST_KEEP is set."""
    path = tempfile.mkdtemp(prefix="twit-", dir="/tmp")
    os.chmod(path, 0o755)
    yield path
    if not os.environ.get("TWSYNC_TEST_KEEP"):
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def templates(folder):
    """templates(n, version) -> a data directory to copy; n is 0 or 1, for copies share the system identifier."""
    @functools.cache
    def template(n, version):
        return pg.Server(folder, f"template{n}", version=version).data

    return template


@pytest.fixture(scope="session")
def make_server(folder, templates):
    """make_server(name, settings, hba) -> a running server; all are stopped at the end.

    Its version is a major one, None the usual one; if that cannot be had, the test is skipped.
    """
    servers = []

    def make(name, settings=None, hba=pg.HBA, template=0, version=None):
        version = pg.major(version)
        if pg.why_missing(version):
            pytest.skip(pg.why_missing(version))
        data = templates(template, version)
        server = pg.Server(folder, f"{name}{next(numbers)}", settings, hba, data, version).start()
        servers.append(server)
        server.make_roles()
        return server

    yield make
    for server in servers:
        if os.path.exists(server.root):
            server.stop("immediate")


@pytest.fixture(scope="session")
def servers_of(make_server):
    """servers_of(version) -> the two servers of this version that tests share; (13, 17): A has 13, B has 17."""
    @functools.cache
    def shared(n, version):
        return make_server("ab"[n], template=n, version=version)

    return lambda version=None: tuple(shared(n, pg.major(v)) for n, v in enumerate(both_versions(version)))


def both_versions(version):
    return version if isinstance(version, tuple) else (version, version)


@pytest.fixture(scope="session")
def servers(servers_of):
    """The two servers that most tests share."""
    return servers_of()


@pytest.fixture
def version():
    """The major version of the servers of a test, or of A and of B; a test may parametrize it."""
    return None


@pytest.fixture
def rng(request):
    """Random numbers that are the same again under the same seed."""
    return random.Random(f"{SEED} {request.node.nodeid}")


@pytest.fixture
def pair(request, servers_of, version, rung):
    """Two fresh databases on the shared servers."""
    yield from new_pair(request, *servers_of(version), rung)


@pytest.fixture
def own_pair(request, make_server, version, rung):
    """Two fresh databases on servers of this test alone, which may crash."""
    own = [make_server(f"own{'ab'[n]}", template=n, version=v) for n, v in enumerate(both_versions(version))]
    yield from new_pair(request, *own, rung)
    for server in own:
        server.stop("immediate")
        shutil.rmtree(server.root, ignore_errors=True)


@pytest.fixture
def proxy_a(pair):
    """A proxy before server A: a job given its job_keys() can be held in the middle of a copy."""
    before_a = proxy.Proxy(pair.a.server.port)
    yield before_a
    before_a.close()


def new_pair(request, server_a, server_b, rung):
    request.node.servers = (server_a, server_b)
    pair = pg.make_pair(server_a, server_b, f"db{next(numbers)}", rung)
    yield pair
    for job in pair.jobs:
        job.clean_up()
    with contextlib.suppress(psycopg2.OperationalError):
        pg.drop_pair(pair)


@pytest.fixture
def make_job(request, folder):
    """make_job(pair, schemas, section={...}) -> a tw.Job; afterwards its log must be clean."""
    if not os.access(tw.BINARY, os.X_OK):
        pytest.fail(f"{tw.BINARY} is not built (./build.sh)", pytrace=False)
    jobs = request.node.jobs = []

    def make(pair, schemas="public", name=None, **sections):
        name = name or f"t{next(numbers)}"
        job = tw.Job(pair, os.path.join(folder, "jobs", f"{name}-{next(numbers)}"), name, schemas,
                     **sections)
        jobs.append(job)
        return job

    yield make
    for job in jobs:
        job.clean_up()
    for job in jobs:
        log = job.log_text()
        assert not tw.DEFECT.search(log), f"a defect shows in {job.log}:\n{job.log_tail()}"
        assert_no_secret(job)


def assert_no_secret(job):
    """No password is in the log or in any file of the state folder."""
    paths = [job.log] + [os.path.join(base, name) for base, _, names in os.walk(job.state_dir)
                         for name in names if name != "socket"]
    for path in paths:
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as f:
            assert pg.CANARY.encode() not in f.read(), f"a password is in {path}"


@pytest.fixture
def job(pair, make_job):
    """The ordinary job: schema public in both directions.  The test starts it."""
    return make_job(pair)
