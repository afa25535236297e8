"""What the source's databases hold at first, and the backlogs that are written on them."""

import dataclasses
import os
import subprocess
import typing

import pg
from systems import ROLE

ITEMS = 300_000

ITEM = """
    CREATE TABLE item (
        id bigserial PRIMARY KEY, n int NOT NULL, at timestamptz NOT NULL, note text)"""
FILL_ITEM = """
    INSERT INTO item (n, at, note)
    SELECT g, timestamptz '2024-01-01' + g * interval '1 second', 'note of item ' || g
    FROM generate_series(1, %s) g"""
COUNTER = """
    CREATE TABLE counter (id int PRIMARY KEY, n bigint NOT NULL, note text);
    INSERT INTO counter SELECT g, 0, 'counter ' || g FROM generate_series(1, 1000) g"""

INSERT_SCRIPT = "INSERT INTO item (n, at, note) VALUES (:client_id, now(), 'a note of no use');"
UPDATE_ALL = "UPDATE item SET n = n + 1, note = note || '!'"
HOT_SCRIPT = "UPDATE counter SET n = n + 1 WHERE id = 500;"


def pgbench_start(node, script, *args, **popen):
    """Starts pgbench by the Unix socket; `script` is the text of a transaction, or None."""
    read = ["-f", "/dev/stdin"] if script else []
    argv = [os.path.join(pg.bin_dir(), "pgbench"), "-h", node.server.root,
            "-p", str(node.server.port), "-U", ROLE, *map(str, args), *read, node.dbname]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True, **popen)
    process.stdin.write(script or "")
    process.stdin.close()
    return process


def pgbench_end(process):
    said = process.stderr.read()
    if process.wait():
        raise RuntimeError(f"pgbench failed: {said[-2000:]}")


def pgbench(node, *args, script=None, **popen):
    pgbench_end(pgbench_start(node, script, *args, **popen))


# For what is written while nothing is timed: commits do not wait for the disk.
HASTE = {**os.environ, "PGOPTIONS": "-c synchronous_commit=off"}


def backlog(node, transactions, clients=4, script=None):
    """Transactions as fast as they go; returns their number."""
    pgbench(node, "-n", "-M", "prepared", "-c", clients, "-j", min(clients, 2),
            "-t", transactions // clients, script=script, env=HASTE)
    return transactions // clients * clients


@dataclasses.dataclass(frozen=True)
class Load:
    setup: typing.Callable      # (node, scale): makes the tables; the same on both sides
    write: typing.Callable      # (node, scale): writes the backlog, returns its number of rows
    identity: str = "key"


def tpcb_tables(node, scale):
    pgbench(node, "-i", "-q", "-s", 10)


def tpcb_tables_with_keys(node, scale):
    """twsync asks for a key in every table if replica identities are to stay as they are."""
    tpcb_tables(node, scale)
    node.sql("ALTER TABLE pgbench_history ADD hid bigserial PRIMARY KEY")


def tpcb(node, scale):
    return 4 * backlog(node, int(200_000 * scale))


def items(node, scale):
    node.sql(ITEM)
    node.sql(FILL_ITEM, (int(ITEMS * scale),))


LOADS = {
    "tpcb": Load(tpcb_tables_with_keys, tpcb),
    "tpcb-full": Load(tpcb_tables, tpcb, "full"),
    "inserts": Load(lambda node, scale: node.sql(ITEM),
                    lambda node, scale: backlog(node, int(ITEMS * scale), script=INSERT_SCRIPT)),
    "bigtx": Load(items, lambda node, scale: node.sql(UPDATE_ALL)),
    "deletes": Load(items, lambda node, scale: node.sql("DELETE FROM item")),
    "hot": Load(lambda node, scale: node.sql(COUNTER),
                lambda node, scale: backlog(node, int(100_000 * scale), 1, HOT_SCRIPT)),
}
