"""Are two databases the same?  Contents row by row as bytes, and the schema as pg_dump sees it."""

import collections
import contextlib
import difflib
import os
import re
import subprocess

import psycopg2.extensions

import pg
from wait import Deadline, wait_for

# Types whose text form says all there is; other built-in types are compared by their send function
# and by their text, so that neither a lost digit nor a changed byte can hide.
PLAIN = {"int2", "int4", "int8", "text", "varchar", "refcursor", "bool", "date", "uuid", "bytea",
         "name", "char", "bit", "varbit", "timestamp", "timestamptz"}

TABLES = """
    SELECT c.oid::int8, n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
    WHERE relkind = 'r' AND relpersistence <> 't'
      AND nspname NOT IN ('pg_catalog', 'information_schema', 'twsync', 'pg_toast')
    ORDER BY 2, 3"""

# The send function is used for built-in types only: elsewhere the binary form may hold OIDs, which
# differ between servers (as do those of the reg types).
COLUMNS = """
    SELECT a.attname, t.typname,
           CASE WHEN tn.nspname = 'pg_catalog' AND t.typsend <> 0 AND t.typname !~ '^_?reg'
                THEN t.typsend::regproc::text END
    FROM pg_attribute a JOIN pg_type t ON t.oid = atttypid JOIN pg_namespace tn ON tn.oid = typnamespace
    WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped ORDER BY attname"""


def quote(name):
    return '"' + name.replace('"', '""') + '"'


def row_image(cur, oid):
    """An SQL expression: the bytes of a row of this table, columns in order of name."""
    cur.execute(COLUMNS, (oid,))
    parts = []
    for name, typname, send in cur:
        text = f"t.{quote(name)}::text"
        if typname == "xml":            # has no cast under every xmloption
            text = f"xmlserialize(content t.{quote(name)} as text)"
        if typname in PLAIN or send is None:
            parts.append(f"coalesce({text}, E'\\\\N')")
        else:
            parts.append(f"coalesce(encode(pg_catalog.{send}(t.{quote(name)}), 'hex') || {text}, E'\\\\N')")
    return " || E'\\x01' || ".join(parts) or "''"


def table_digest(cur, oid, name):
    """Number of rows and an order-free 128-bit sum of their md5, computed by the server."""
    cur.execute(f"""
        SELECT count(*), coalesce(sum(('x' || left(h, 16))::bit(64)::int8::numeric), 0),
                         coalesce(sum(('x' || right(h, 16))::bit(64)::int8::numeric), 0)
        FROM (SELECT md5({row_image(cur, oid)}) AS h FROM ONLY {name} t) x""")
    return cur.fetchone()


def tables(node):
    """oid by quoted name of every table that holds rows."""
    return {f"{quote(s)}.{quote(t)}": oid for oid, s, t in node.admin(TABLES)}


def rows_of(node, oid, name):
    with contextlib.closing(node.connect(user="postgres")) as conn, conn.cursor() as cur:
        cur.execute(f"SELECT {row_image(cur, oid)} FROM ONLY {name} t")
        return collections.Counter(row for (row,) in cur)


def shorten(text, limit=200):
    text = repr(text)
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def column_names(node, oid):
    return [name for name, *_ in node.admin(COLUMNS, (oid,))]


def row_differences(a, oid_a, b, oid_b, name, limit=6):
    """Rows that only one side has; for two rows of one id only the columns that differ."""
    in_a, in_b = rows_of(a, oid_a, name), rows_of(b, oid_b, name)
    columns = column_names(a, oid_a)
    key = next((columns.index(c) for c in ("id", "Id", "k", "aid") if c in columns), None)
    extra = [sorted((x - y).elements()) for x, y in ((in_a, in_b), (in_b, in_a))]
    out = []
    if key is not None and columns == column_names(b, oid_b):
        rows = [{row.split("\x01")[key]: row.split("\x01") for row in side} for side in extra]
        for value in rows[0].keys() & rows[1].keys():
            out.append(f"    {columns[key]} {shorten(value, 60)}: " + "; ".join(
                f"{column} is {shorten(x)} in a, {shorten(y)} in b"
                for column, x, y in zip(columns, rows[0][value], rows[1][value]) if x != y))
        shared = rows[0].keys() & rows[1].keys()
        extra = [[row for row in side if row.split("\x01")[key] not in shared] for side in extra]
    for side, these in zip("ab", extra):
        out += [f"    only in {side}: {shorten(row)}" for row in these[:limit]]
        if len(these) > limit:
            out.append(f"    only in {side}: {len(these) - limit} rows more")
    return out[:4 * limit]


def content_differences(pair, only=None):
    """Lines that say which tables differ and in which rows; empty when all are equal."""
    have = [tables(node) for node in pair.nodes]
    if only:
        have = [{name: oid for name, oid in t.items() if name in only} for t in have]
    out = [f"table {name} is only in {'ab'[name in have[1]]}"
           for name in sorted(have[0].keys() ^ have[1].keys())]
    with contextlib.closing(pair.a.connect(user="postgres")) as conn_a, \
            contextlib.closing(pair.b.connect(user="postgres")) as conn_b, \
            conn_a.cursor() as cur_a, conn_b.cursor() as cur_b:
        for name in sorted(have[0].keys() & have[1].keys()):
            digest_a = table_digest(cur_a, have[0][name], name)
            digest_b = table_digest(cur_b, have[1][name], name)
            if digest_a != digest_b:
                out.append(f"table {name}: {digest_a[0]} rows in a, {digest_b[0]} in b")
                if max(digest_a[0], digest_b[0]) < 2_000_000:
                    out += row_differences(pair.a, have[0][name], pair.b, have[1][name], name)
    return out


def schema_of(node, by=None):
    """The statements of pg_dump -s of server `by`, one string each, sorted; without what is twsync's own.

    A pg_dump in a cage sees no sockets but its own server's, hence TCP.
    """
    by = by or node.server
    at = [node.server.root, "postgres"] if by.cage is None else ["127.0.0.1", "tw_super"]
    env = {**os.environ, "LC_ALL": "C.UTF-8", "PGOPTIONS": pg.SESSION, "PGPASSWORD": pg.PASSWORD}
    dump = subprocess.run(
        by.argv("pg_dump", "-s", "-N", "twsync", "--no-owner",
                "--no-privileges", "--no-publications", "--no-subscriptions",
                "-h", at[0], "-p", str(node.server.port), "-U", at[1], node.dbname),
        check=True, capture_output=True, text=True, env=env, cwd="/").stdout
    lines = [line for line in dump.splitlines()
             if not re.match(r"--|\\(un)?restrict|SET |SELECT pg_catalog.set_config", line)]
    statements = re.split(r";\n", "\n".join(lines))
    # Storage parameters have no order.
    statements = [re.sub(r"(?<=\nWITH \()[^()]*(?=\)$)", lambda m: ", ".join(sorted(m[0].split(", "))), s) for s in statements]
    return sorted(s.strip() for s in statements if s.strip() and "EVENT TRIGGER twsync_" not in s)


def schema_differences(pair):
    newer = max((node.server for node in pair.nodes), key=lambda server: server.major)
    a, b = (schema_of(node, newer) for node in pair.nodes)
    return [line for line in difflib.unified_diff("\n".join(a).split("\n"), "\n".join(b).split("\n"),
                                                  "schema of a", "schema of b", lineterm="", n=2)]


def assert_contents(pair, only=None):
    found = content_differences(pair, only)
    assert not found, "the contents of a and b differ:\n" + "\n".join(found)


def assert_schema(pair):
    found = schema_differences(pair)
    assert not found, "the schemas of a and b differ:\n" + "\n".join(found)


def assert_same(pair):
    """Contents and schema."""
    assert_schema(pair)
    assert_contents(pair)


def wait_contents(pair, deadline=90, only=None):
    """Waits until the contents are equal: for tests in which no position can be waited for."""
    try:
        wait_for(lambda: not content_differences(pair, only), "equal contents", deadline, 0.3)
    except Deadline:
        assert_contents(pair, only)


def sequence_values(node):
    """(last_value, is_called) of each sequence by name."""
    found = {}
    for (name,) in node.admin("""
            SELECT quote_ident(nspname) || '.' || quote_ident(relname) FROM pg_class c
            JOIN pg_namespace n ON n.oid = relnamespace
            WHERE relkind = 'S' AND nspname NOT IN ('twsync', 'pg_catalog')"""):
        found[name] = node.admin(f"SELECT last_value, is_called FROM {name}")[0]
    return found


LEFT_BEHIND = {
    "slots": "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()",
    "publications": "SELECT pubname FROM pg_publication",
    "schema": "SELECT nspname FROM pg_namespace WHERE nspname = 'twsync'",
    "event triggers": "SELECT evtname FROM pg_event_trigger WHERE evtname ~ 'twsync'",
    "triggers": "SELECT tgname FROM pg_trigger WHERE tgname ~ 'twsync'",
}


def left_behind(node, job_name=None):
    """What of twsync is on a node: a list of 'kind: name'."""
    found = [f"{kind}: {name}" for kind, query in LEFT_BEHIND.items()
             for (name,) in node.admin(query)]
    if job_name:
        found += [f"origin: {name}" for (name,) in node.admin(
            "SELECT roname FROM pg_replication_origin WHERE starts_with(roname, %s)",
            (f"twsync_{job_name}_",))]
    return found


def assert_untouched(pair, job_name=None):
    for node in pair.nodes:
        assert left_behind(node, job_name) == [], f"twsync left something on node {node.letter}"
