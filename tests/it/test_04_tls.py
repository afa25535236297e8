"""TLS: plain, a CA that is checked, client certificates, a key with a passphrase."""

import os
import subprocess

import pytest

import compare
import pg
import tw

HBA = """\
local     all tw_cert               reject
local     all all                   trust
hostssl   all tw_cert  127.0.0.1/32 cert
hostssl   all all      127.0.0.1/32 scram-sha-256
hostnossl all tw_plain 127.0.0.1/32 scram-sha-256
hostnossl all tw_owner 127.0.0.1/32 reject
"""
PASSPHRASE = pg.CANARY + " pass phrase"


class Authority:
    """A certificate authority in a folder."""

    def __init__(self, folder, name):
        self.folder, self.name = folder, name
        os.makedirs(folder, exist_ok=True)
        self.openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
                     "-keyout", self.path(f"{name}.key"), "-out", self.path(f"{name}.crt"), "-subj", f"/CN={name}")
        self.crt = self.path(f"{name}.crt")

    def path(self, name):
        return os.path.join(self.folder, name)

    @staticmethod
    def openssl(*args):
        subprocess.run(["openssl", *args], check=True, capture_output=True)

    def issue(self, name, subject, san=None, passphrase=None):
        """A certificate and its key: their paths."""
        key, crt, request = (self.path(f"{name}.{end}") for end in ("key", "crt", "csr"))
        self.openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key,
                     "-out", request, "-subj", f"/CN={subject}")
        extension = tw.write_private(self.path(f"{name}.ext"), f"subjectAltName={san}\n" if san else "")
        self.openssl("x509", "-req", "-in", request, "-CA", self.crt, "-CAkey", self.path(f"{self.name}.key"),
                     "-CAcreateserial", "-days", "30", "-out", crt, "-extfile", extension)
        if passphrase:
            self.openssl("pkcs8", "-topk8", "-in", key, "-out", key + ".p8", "-passout", f"pass:{passphrase}")
            key += ".p8"
        os.chmod(key, 0o600)
        return crt, key


@pytest.fixture(scope="module")
def authority(folder):
    return Authority(os.path.join(folder, "ca"), "twsync-test-ca")


@pytest.fixture(scope="module")
def tls_servers(make_server, authority):
    """Two servers that speak TLS to tw_owner and tw_cert only."""
    made = []
    for n, name in enumerate(("tlsa", "tlsb")):
        crt, key = authority.issue(name, name, "IP:127.0.0.1")
        server = make_server(name, template=n)
        for target, source in (("server.crt", crt), ("server.key", key), ("root.crt", authority.crt)):
            server.add_file(target, source)
        server.configure({"ssl": "on", "ssl_ca_file": "root.crt"}, HBA)
        server.restart()
        server.sql("CREATE ROLE tw_cert LOGIN REPLICATION")
        made.append(server)
    return made


@pytest.fixture
def tls_pair(tls_servers, request):
    pair = pg.make_pair(*tls_servers, f"tls{abs(hash(request.node.name)) % 10**8}", "marker")
    request.node.servers = tls_servers
    pair.a.sql("CREATE TABLE t (id int PRIMARY KEY, v text)")
    pair.a.sql("INSERT INTO t SELECT g, 'v' FROM generate_series(1, 100) g")
    yield pair
    for job in pair.jobs:
        job.clean_up()
    pg.drop_pair(pair)


def whole_job(job):
    """Copies, carries changes both ways, releases."""
    job.start()
    for node in job.pair.nodes:
        node.sql("INSERT INTO t VALUES (%s, 'new')", (1000 + "ab".index(node.letter),), user="postgres")
        encrypted = node.admin("SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) "
                               "WHERE application_name LIKE 'twsync%%'")
        assert encrypted and all(row[0] for row in encrypted), encrypted
    job.wait_synced()
    compare.assert_same(job.pair)
    assert job.stop() == tw.OK
    assert job.release()[0] == tw.OK
    compare.assert_untouched(job.pair, job.name)


def both(keys):
    return {"a": keys, "b": keys}


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
def test_authority(tls_pair, make_job, authority, mode):
    root = {} if mode == "require" else {"sslrootcert": authority.crt}
    whole_job(make_job(tls_pair, **both({"sslmode": mode, **root})))


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE], ids=["plain key", "passphrase"])
def test_client_certificate(tls_pair, make_job, authority, passphrase):
    crt, key = authority.issue(f"client{bool(passphrase)}", "tw_cert", passphrase=passphrase)
    for node in tls_pair.nodes:
        node.admin(f'ALTER DATABASE "{node.dbname}" OWNER TO tw_cert')
        node.admin("REASSIGN OWNED BY tw_owner TO tw_cert")
    keys = {"user": "tw_cert", "password": None, "sslmode": "verify-full", "sslrootcert": authority.crt,
            "sslcert": crt, "sslkey": key}
    whole_job(make_job(tls_pair, **both({**keys, **({"sslpassword": passphrase} if passphrase else {})})))


def refused(job, *needles):
    code, out, err = job.command("check", job.path, "--connect")
    assert code in (tw.PRECHECK_FAILED, tw.NO_CONNECTION), (code, out, err)
    assert any(needle in (out + err).lower() for needle in needles), out + err
    assert pg.CANARY not in out + err
    code, out, err = job.command("run", job.path)
    assert code in (tw.PRECHECK_FAILED, tw.NO_CONNECTION), (code, out, err)
    compare.assert_untouched(job.pair, job.name)


def test_wrong_authority(tls_pair, make_job, folder):
    other = Authority(os.path.join(folder, "other-ca"), "other-ca")
    refused(make_job(tls_pair, a={"sslmode": "verify-full", "sslrootcert": other.crt}, b={"sslmode": "require"}),
            "certificate verify failed")


def test_wrong_host_name(tls_pair, make_job, authority):
    """The certificate is for 127.0.0.1; the name asked for is another one."""
    keys = {"sslmode": "verify-full", "sslrootcert": authority.crt}
    refused(make_job(tls_pair, a={**keys, "host": "db.example", "hostaddr": "127.0.0.1"}, b=keys), "does not match")


def test_missing_root_file(tls_pair, make_job):
    keys = {"sslmode": "verify-full", "sslrootcert": "/nonexistent/root.crt"}
    refused(make_job(tls_pair, **both(keys)), "/nonexistent/root.crt")


def test_plain_where_tls_is_asked(tls_pair, make_job):
    refused(make_job(tls_pair, **both({"sslmode": "disable"})), "no encryption", "pg_hba.conf")


@pytest.mark.rung("marker")
def test_no_tls_at_the_server(pair, make_job):
    refused(make_job(pair, **both({"sslmode": "require"})), "does not support ssl")


def test_certificate_without_passphrase(tls_pair, make_job, authority):
    """A locked key and no passphrase: an error, never a question at the terminal."""
    crt, key = authority.issue("locked", "tw_cert", passphrase=PASSPHRASE)
    refused(make_job(tls_pair, **both({"user": "tw_cert", "password": None, "sslmode": "require",
                                       "sslcert": crt, "sslkey": key})), "sslpassword", "private key", "passphrase")
