"""The systems that are compared: twsync, native logical replication, pglogical.

Each carries the tables of schema public from a source database to a target database that holds the
same rows already.  All connect by TCP as the same superuser, without TLS.
"""

import os
import re

import pg
import tw
from wait import wait_for

ROLE = pg.ROLES["origin"]


def dsn(node):
    return f"host=127.0.0.1 port={node.server.port} dbname={node.dbname} user={ROLE} " \
           f"password={pg.PASSWORD} sslmode=disable"


def tables(node):
    return [name for (name,) in node.admin(
        "SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")]


class System:
    """One system between the two databases of a pair, at rest until start()."""

    def __init__(self, pair, folder, label, identity):
        """Makes its slot and all it needs."""
        self.pair, self.label = pair, label

    def start(self):
        raise NotImplementedError

    def check(self):
        """Raises if it cannot be going on."""

    def stop(self):
        raise NotImplementedError

    def rewind(self):
        """Gives back on the source what another run of it needs."""


class Twsync(System):
    """A table belongs to one job, so all runs share one, by name: they start from copies of the
    target database on which it was initialised, and from a copy of its slot."""

    SLOT, KEPT = "twsync_bench_forward", "kept_forward"

    def __init__(self, pair, folder, label, identity, name="bench", **sections):
        super().__init__(pair, folder, label, identity)
        self.job = tw.Job(pair, os.path.join(folder, label), name, **{
            "objects": {"existing": "keep"},
            "forward": {"schema": False, "copy": False, "identity": identity},
            "reverse": {"enabled": False},
            "slots": {"heartbeat": None},
            **sections})
        if not pair.b.admin("SELECT FROM pg_namespace WHERE nspname = 'twsync'"):
            self.initialise()

    def initialise(self):
        self.job.start(wait=("forward",))
        self.stop()
        self.copy_slot(self.SLOT, self.KEPT)

    def copy_slot(self, source, copy):
        self.pair.a.admin("SELECT pg_copy_logical_replication_slot(%s, %s)", (source, copy))

    def start(self):
        self.streamed = self.job.log_text().count("streaming from")
        self.job.start(wait=())

    def streams(self):
        self.check()
        return self.job.log_text().count("streaming from") > self.streamed

    def check(self):
        assert self.job.alive(), f"twsync ended:\n{self.job.log_tail()}"

    def stop(self):
        self.job.stop()
        wait_for(lambda: not self.pair.a.admin(
            "SELECT FROM pg_replication_slots WHERE active AND slot_name ~ '^twsync_'"),
            "twsync's slots rest")

    def rewind(self):
        self.pair.a.admin("SELECT pg_drop_replication_slot(%s)", (self.SLOT,))
        self.copy_slot(self.KEPT, self.SLOT)


class Native(System):
    def __init__(self, pair, folder, label, identity, more=""):
        super().__init__(pair, folder, label, identity)
        pair.a.admin("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (label,))
        pair.b.admin(f"CREATE SUBSCRIPTION {label} CONNECTION '{dsn(pair.a)}' PUBLICATION bench "
                     f"WITH (copy_data = false, create_slot = false, enabled = false{more})")

    def start(self):
        self.pair.b.admin(f"ALTER SUBSCRIPTION {self.label} ENABLE")

    def stop(self):
        self.pair.b.admin(f"ALTER SUBSCRIPTION {self.label} DISABLE")
        wait_for(lambda: not self.pair.b.admin(
            "SELECT FROM pg_stat_subscription WHERE subname = %s AND pid IS NOT NULL",
            (self.label,)), f"{self.label} rests")


class Pglogical(System):
    """Tables without a key go into the replication set that carries inserts only."""

    def __init__(self, pair, folder, label, identity):
        super().__init__(pair, folder, label, identity)
        if not pair.a.admin("SELECT FROM pg_extension WHERE extname = 'pglogical'"):
            self.make_provider()
        pair.b.admin("CREATE EXTENSION pglogical")
        pair.b.admin("SELECT pglogical.create_node(%s, %s)", (label, dsn(pair.b)))
        pair.b.admin(
            "SELECT pglogical.create_subscription(%s, %s, ARRAY['default', 'default_insert_only'], "
            "synchronize_structure := false, synchronize_data := false)", (label, dsn(pair.a)))
        wait_for(lambda: self.status() == "replicating", f"{label} replicates")
        self.stop()

    def make_provider(self):
        a = self.pair.a
        a.admin("CREATE EXTENSION pglogical")
        a.admin("SELECT pglogical.create_node('provider', %s)", (dsn(a),))
        for table in tables(a):
            keyed = a.admin("SELECT FROM pg_index WHERE indrelid = %s::regclass AND indisprimary",
                            (table,))
            a.admin("SELECT pglogical.replication_set_add_table(%s, %s)",
                    ("default" if keyed else "default_insert_only", table))

    def status(self):
        return self.pair.b.admin("SELECT status FROM pglogical.show_subscription_status(%s)",
                                 (self.label,))[0][0]

    def start(self):
        self.pair.b.admin("SELECT pglogical.alter_subscription_enable(%s, true)", (self.label,))

    def stop(self):
        self.pair.b.admin("SELECT pglogical.alter_subscription_disable(%s, true)", (self.label,))
        wait_for(lambda: not self.pair.a.admin(
            "SELECT FROM pg_replication_slots WHERE active AND plugin = 'pglogical_output' "
            "AND slot_name ~ %s", (re.escape(self.label),)), f"{self.label} rests")


SYSTEMS = {"twsync": Twsync, "native": Native, "pglogical": Pglogical}
