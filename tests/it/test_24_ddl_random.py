"""DDL of all kinds at random on A, among writes on both sides, with twsync killed now and then: the sides end equal.

TWSYNC_TEST_DDL (300) is how many statements there are, TWSYNC_TEST_KILLS (4) how often twsync dies meanwhile,
TWSYNC_TEST_EQUAL (75) after how many statements the sides are compared, TWSYNC_TEST_NOT which kinds are left out.

Nothing is remembered of the tables: what there is is asked of the catalog, within the transaction that changes it.  The
first letter of a column says what may be written there, whatever its type is by then.  Rows made on A have even ids,
those of B odd ones, and each side changes its own.  Where a statement and a row that is still on its way could not be
brought together by anybody (TRUNCATE, SET NOT NULL), B is quiet meanwhile.
"""

import contextlib
import os
import random

import psycopg2
import pytest

import compare
import tw
from values import ODD_TEXTS
from wait import wait_for

COUNT = int(os.environ.get("TWSYNC_TEST_DDL", "300"))
EQUAL = int(os.environ.get("TWSYNC_TEST_EQUAL", "75"))
NOT = os.environ.get("TWSYNC_TEST_NOT", "").split(",")
KILLS = int(os.environ.get("TWSYNC_TEST_KILLS", "4"))

BASE = """
    CREATE SCHEMA two;
    CREATE TABLE ref (id int PRIMARY KEY, v text);
    INSERT INTO ref SELECT g, 'ref' FROM generate_series(1, 10) g;
    CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
    CREATE TYPE mood AS ENUM ('a', 'b', 'c');
    CREATE TABLE t1 (id int PRIMARY KEY, n1 int, s1 text, d1 date, u1 int UNIQUE);
    CREATE TABLE t2 (id bigint PRIMARY KEY, n1 numeric(12,2) DEFAULT 1, e1 mood DEFAULT 'a', a1 int[],
                     r1 int REFERENCES ref);
    CREATE TABLE two.t3 (id int, s1 varchar(200), x1 int4range);
    CREATE TABLE p (id int, at int, s1 text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
    CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
    CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20);
"""

TABLES = """
    SELECT c.oid::int8, format('%I.%I', nspname, relname), relkind::text, relispartition, nspname::text, relname::text,
           EXISTS (SELECT FROM pg_constraint WHERE conrelid = c.oid AND contype = 'p'),
           EXISTS (SELECT FROM pg_inherits WHERE inhparent = c.oid OR inhrelid = c.oid),
           coalesce((SELECT array_agg(ARRAY[attname, format_type(atttypid, atttypmod), attnotnull::text,
                                            attidentity::text, attgenerated::text, atttypid::text] ORDER BY attnum)
                     FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped), '{}')
    FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
    WHERE relkind IN ('r', 'p') AND nspname IN ('public', 'two') AND relname <> 'ref' AND relpersistence = 'p'
    ORDER BY 2"""

NUMBERS = ("int", "bigint", "numeric(12,2)", "numeric", "float8", "text", "varchar(40)")
WORDS = ("text", "varchar(200)", "varchar(300)", "text COLLATE \"C\"")
DATES = ("date", "timestamp", "text")
TEXTS = [text for text in ODD_TEXTS if len(text) < 150]
SUFFIXES = ("", "", "", " o'dd", '"q" %s', "\\ ;--", "é😀", "$$", "select\n")


class Column:
    def __init__(self, name, kind, not_null, identity, generated, type_oid):
        self.name, self.type, self.letter, self.not_null = name, kind, name[0], not_null == "true"
        self.identity, self.generated, self.type_oid = identity, generated, int(type_oid)
        self.quoted = compare.quote(name)


class Table:
    def __init__(self, oid, sql, relkind, is_partition, schema, name, has_key, in_tree, columns):
        self.oid, self.sql, self.relkind, self.is_partition = oid, sql, relkind, is_partition
        self.schema, self.name, self.has_key, self.in_tree = schema, name, has_key, in_tree
        self.columns = [Column(*c) for c in columns]
        self.free = [c for c in self.columns if c.name not in ("id", "at")]

    def of(self, letters):
        return [c for c in self.free if c.letter in letters and not c.generated]


class Nothing(Exception):
    """There is nothing that a statement of this kind could be about."""


def marked(mark):
    def put(function):
        setattr(function, mark, True)
        return function
    return put


quiet = marked("quiet")     # B must not write meanwhile
later = marked("later")     # rows that A alone can tell: the table is read again
alone = marked("alone")     # not within a transaction


class Looking:
    """What there is, as a session sees it."""

    def __init__(self, cur, rng):
        self.cur, self.rng = cur, rng

    def ask(self, query, args=None):
        self.cur.execute(query, args)
        return self.cur.fetchall()

    def tables(self):
        return [Table(*row) for row in self.ask(TABLES)]

    def choose(self, items):
        items = list(items)
        if not items:
            raise Nothing
        return self.rng.choice(items)

    def table(self, relkinds="r", condition=lambda t: True):
        return self.choose(t for t in self.tables() if t.relkind in relkinds and condition(t))

    # ---- rows

    def value(self, column, row_id):
        """A text that the column takes."""
        letter = column.letter
        if column.name == "at":
            return str(self.rng.randrange(20))
        if letter in "nm":
            return str(self.rng.randrange(100))
        if letter == "s":
            return self.rng.choice(TEXTS)
        if letter == "d":
            return f"20{self.rng.randrange(10, 60)}-0{self.rng.randrange(1, 10)}-1{self.rng.randrange(10)}"
        if letter in "uig":
            return str(row_id)
        if letter == "x":
            return f"[{row_id},{row_id + 1})"
        if letter == "r":
            return str(self.rng.randrange(1, 11))
        if letter == "v":
            return "0.5"
        if letter == "a":
            return self.rng.choice(("{}", "{1,NULL,3}", "{7}"))
        if letter == "e":
            labels = self.ask("SELECT enumlabel::text FROM pg_enum WHERE enumtypid = %s ORDER BY enumsortorder",
                              (column.type_oid,))
            return self.choose(labels)[0] if labels else None
        if letter == "c":
            (many,), = self.ask("SELECT count(*) FROM pg_attribute JOIN pg_type t ON attrelid = typrelid "
                                "WHERE t.oid = %s AND attnum > 0 AND NOT attisdropped", (column.type_oid,))
            return "(" + ",".join("1" for _ in range(many)) + ")"
        raise AssertionError(f"column {column.name}")

    def write(self, table, side, new_id):
        """One change of a row that belongs to this side: the statement and its values."""
        kind = self.rng.choice(("insert", "insert", "insert", "update", "update", "delete"))
        key = "id" if table.relkind == "p" else "ctid"
        mine = (f"{key} = (SELECT {key} FROM {'ONLY ' * (key == 'ctid')}{table.sql} WHERE id % 2 = {side} "
                f"ORDER BY id DESC LIMIT 1 OFFSET {self.rng.randrange(6)})")
        if kind == "delete":
            return f"DELETE FROM {table.sql} WHERE {mine}".replace("%", "%%"), ()
        columns = [c for c in table.columns if c.name != "id" and not c.generated]
        if kind == "insert":
            columns = [c for c in columns if c.not_null or c.name == "at" or self.rng.random() < 0.8]
            names = ", ".join(c.quoted for c in columns).replace("%", "%%")
            return (f"INSERT INTO {table.sql}".replace("%", "%%") + f" (id{', ' if names else ''}{names}) OVERRIDING "
                    f"SYSTEM VALUE VALUES (%s"
                    + ", %s" * len(columns) + ")", (new_id, *(self.value(c, new_id) for c in columns)))
        columns = [c for c in columns if c.letter in "nsdarev" and c.name != "at" and not c.identity]
        columns = self.rng.sample(columns, min(len(columns), self.rng.choice((1, 1, 2, 9))))
        if not columns:
            raise Nothing
        sets = ", ".join(f"{c.quoted} = %%s" for c in columns)
        return (f"UPDATE {table.sql} SET ".replace("%", "%%") + sets.replace("%", "%%").replace("%%%%s", "%s")
                + f" WHERE {mine}".replace("%", "%%"), [self.value(c, 0) for c in columns])


class Change(Looking):
    """Statements of each kind: a method do_... gives one, about something that is there."""

    def __init__(self, cur, rng):
        super().__init__(cur, rng)
        self.last, self.about = 100, None
        self.kinds = {name[3:]: getattr(self, name) for name in sorted(dir(self))
                      if name.startswith("do_") and name[3:] not in NOT}

    def name(self, start):
        self.last += 1
        return compare.quote(f"{start}{self.last}{self.rng.choice(SUFFIXES)}")

    def schema(self):
        return self.rng.choice(("public", "public", "two"))

    def text(self):
        return "E'" + self.rng.choice(TEXTS).replace("\\", "\\\\").replace("'", "''") + "'"

    def new_column(self, letters="nnssdaexuvmrc"):
        """Name and type of a column, and a default that is the same for all rows."""
        letter = self.rng.choice(letters)
        kind, default = {
            "n": lambda: (self.rng.choice(NUMBERS), str(self.rng.randrange(100))), "s": lambda: (self.rng.choice(WORDS),
                self.text()),
            "d": lambda: (self.rng.choice(DATES), "'2020-02-02'"), "a": lambda: ("int[]", "'{1,NULL}'"),
            "u": lambda: ("int", None),
            "x": lambda: ("int4range", None), "v": lambda: ("float8", "0.25"), "r": lambda: ("int REFERENCES ref",
                None),
            "e": lambda: (self.a_type("e"), None), "m": lambda: (self.a_type("d"), "7"), "c": lambda: (self.a_type("c"),
                None),
        }[letter]()
        return f"{self.name(letter)} {kind}", default

    def a_type(self, typtype):
        return self.choose(self.types(typtype))

    def types(self, typtype):
        return [name for name, in self.ask(
            "SELECT format('%%I.%%I', nspname, typname) FROM pg_type t JOIN pg_namespace n ON n.oid = typnamespace "
            "LEFT JOIN pg_class c ON c.oid = typrelid "
            "WHERE typtype = %s AND nspname IN ('public', 'two') AND (typrelid = 0 OR relkind = 'c') ORDER BY 1",
            (typtype,))]

    def columns_sql(self, most=5):
        parts = []
        for _ in range(self.rng.randrange(1, most)):
            with contextlib.suppress(Nothing):
                column, default = self.new_column()
                parts.append(column + (f" DEFAULT {default}{self.rng.choice((' NOT NULL', ''))}"
                                       if default and "REFERENCES" not in column and self.rng.random() < 0.5 else ""))
        return "".join(", " + part for part in parts)

    def column(self, letters="nsdaexuvmrcig", condition=lambda c: True, relkinds="rp"):
        """A table and one of its columns."""
        table = self.table(relkinds, lambda t: not t.is_partition and any(condition(c) for c in t.of(letters)))
        return table, self.rng.choice([c for c in table.of(letters) if condition(c)])

    def relations(self, relkind, more="true"):
        return [name for name, in self.ask(
            "SELECT format('%%I.%%I', nspname, relname) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace "
            f"WHERE relkind = %s AND nspname IN ('public', 'two') AND {more.replace('%', '%%')} ORDER BY 1",
            (relkind,))]

    # ---- tables

    def do_create_table(self):
        key = self.rng.choice(("int PRIMARY KEY", "int PRIMARY KEY", "bigint PRIMARY KEY",
                               "bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY", "int", "int UNIQUE NOT NULL"))
        check = self.rng.choice(("", f", CONSTRAINT {self.name('k')} CHECK (id > 0)"))
        return (f"CREATE TABLE {self.schema()}.{self.name('t')} (id "
                f"{key}{self.columns_sql()}{check}){self.rng.choice(('', ' WITH (fillfactor = 70)'))}")

    do_create_another_table = do_create_table

    def do_create_serial(self):
        return (f"CREATE TABLE {self.schema()}.{self.name('t')} (id serial PRIMARY KEY, {self.name('i')} bigint "
                f"GENERATED ALWAYS AS IDENTITY (START 1000000 INCREMENT 3){self.columns_sql()})")

    def do_create_like(self):
        return (f"CREATE TABLE {self.schema()}.{self.name('t')} (LIKE {self.table().sql} "
                f"{self.rng.choice(('INCLUDING ALL', '', 'INCLUDING DEFAULTS INCLUDING INDEXES'))})")

    @later
    def do_create_as(self):
        self.about = f"{self.schema()}.{self.name('t')}"
        return f"CREATE TABLE {self.about} AS SELECT *, random() AS {self.name('v')} FROM {self.table('rp').sql}"

    @later
    def do_select_into(self):
        self.about = f"{self.schema()}.{self.name('t')}"
        return f"SELECT * INTO {self.about} FROM {self.table().sql} WHERE id > 10"

    def do_create_partitioned(self):
        name = self.name("p")
        return (f"CREATE TABLE {name} (id int, at int{self.columns_sql(3)}, PRIMARY KEY (id, at)) PARTITION BY RANGE "
                f"(at); "
                f"CREATE TABLE {self.name('q')} PARTITION OF {name} FOR VALUES FROM (0) TO (10); CREATE TABLE "
                f"{self.name('q')} PARTITION OF {name} DEFAULT")

    def do_partition_of(self):
        low = self.rng.randrange(2, 9) * 10
        return (f"CREATE TABLE {self.schema()}.{self.name('q')} PARTITION OF {self.table('p').sql} FOR VALUES FROM "
                f"({low}) TO ({low + 10})")

    def do_inherits(self):
        """In the schema of its parent: a tree in two schemas is refused."""
        parent = self.table("r", lambda t: not t.is_partition)
        return f"CREATE TABLE {parent.schema}.{self.name('t')} ({self.name('s')} text) INHERITS ({parent.sql})"

    def do_drop_table(self):
        if len(self.tables()) < 8:
            raise Nothing
        return f"DROP TABLE {self.table('rrp').sql} {self.rng.choice(('CASCADE', ''))}"

    def do_rename_table(self):
        return f"ALTER TABLE {self.table('rp').sql} RENAME TO {self.name('t')}"

    def do_set_schema(self):
        table = self.table("rp", lambda t: t.is_partition or t.relkind == "p" or not t.in_tree)
        return f"ALTER TABLE {table.sql} SET SCHEMA {'two' if table.schema == 'public' else 'public'}"

    @quiet
    def do_detach(self):
        return self.detach("")

    @quiet
    @alone
    def do_detach_concurrently(self):
        return self.detach(" CONCURRENTLY")

    def detach(self, how):
        parent, child = self.choose(self.ask("SELECT inhparent::regclass::text, inhrelid::regclass::text FROM "
                                             "pg_inherits "
                                             "JOIN pg_class c ON c.oid = inhparent WHERE relkind = 'p' ORDER BY 1, 2"))
        return f"ALTER TABLE {parent} DETACH PARTITION {child}{how}"

    @quiet
    def do_attach(self):
        parent = self.table("p")
        low = self.rng.randrange(2, 9) * 10
        name = self.name("q")
        return (f"CREATE TABLE {name} (LIKE {parent.sql} INCLUDING DEFAULTS); ALTER TABLE {parent.sql} ATTACH "
                f"PARTITION {name} FOR VALUES FROM ({low}) TO ({low + 10})")

    @quiet
    def do_truncate(self):
        names = {self.table("rp").sql for _ in range(self.rng.choice((1, 1, 2)))}
        return f"TRUNCATE {', '.join(sorted(names))} {self.rng.choice(('', 'RESTART IDENTITY', 'CASCADE'))}"

    # ---- columns

    def do_add_column(self):
        return f"ALTER TABLE {self.table('rp', lambda t: not t.is_partition).sql} ADD {self.new_column()[0]}"

    def do_add_column_default(self):
        column, default = self.new_column("nsdavm")
        return (f"ALTER TABLE {self.table('rp', lambda t: not t.is_partition).sql} ADD {column} DEFAULT "
                f"{default}{self.rng.choice(('', ' NOT NULL'))}")

    def do_add_generated(self):
        table, column = self.column("s")
        return (f"ALTER TABLE {table.sql} ADD {self.name('g')} int GENERATED ALWAYS AS (length({column.quoted}) + id) "
                f"STORED")

    @quiet
    @later
    def do_add_random(self):
        self.about = self.table("r", lambda t: not t.is_partition).sql
        return f"ALTER TABLE {self.about} ADD {self.name('v')} float8 DEFAULT random()"

    @quiet
    @later
    def do_add_numbered(self):
        self.about = self.table("r", lambda t: not t.in_tree).sql
        return (f"ALTER TABLE {self.about} ADD {self.name('i')} "
                + self.rng.choice(("bigserial", "int GENERATED BY DEFAULT AS IDENTITY",
                                   "bigint GENERATED ALWAYS AS IDENTITY")))

    @quiet
    @later
    def do_type_using(self):
        table, column = self.column("s", relkinds="r")
        self.about = table.sql
        return (f"ALTER TABLE {table.sql} ALTER {column.quoted} TYPE text USING left({column.quoted}, 100) || "
                f"{self.text()} || id")

    def do_drop_column(self):
        table, column = self.column()
        return f"ALTER TABLE {table.sql} DROP {column.quoted} {self.rng.choice(('', 'CASCADE'))}"

    @quiet
    def do_column_again(self):
        table, column = self.column("ns")
        kind = self.rng.choice(NUMBERS if column.letter == "n" else WORDS)
        return f"ALTER TABLE {table.sql} DROP {column.quoted} CASCADE, ADD {column.quoted} {kind}"

    def do_rename_column(self):
        table, column = self.column()
        return f"ALTER TABLE {table.sql} RENAME {column.quoted} TO {self.name(column.letter)}"

    @quiet
    def do_names_exchanged(self):
        table = self.table("rp", lambda t: not t.is_partition and len(t.of("n")) > 1)
        one, other = (c.quoted for c in self.rng.sample(table.of("n"), 2))
        middle = self.name("n")
        return (f"ALTER TABLE {table.sql} RENAME {one} TO {middle}; ALTER TABLE {table.sql} RENAME {other} TO {one}; "
                f"ALTER TABLE {table.sql} RENAME {middle} TO {other}")

    @quiet
    def do_set_default(self):
        table, column = self.column("ns")
        return (f"ALTER TABLE {table.sql} ALTER {column.quoted} "
                f"{self.rng.choice(('SET DEFAULT ' + ('5' if column.letter == 'n' else self.text()), 'DROP DEFAULT'))}")

    @quiet
    def do_not_null(self):
        table, column = self.column("nsd")
        if column.not_null:
            return f"ALTER TABLE {table.sql} ALTER {column.quoted} DROP NOT NULL"
        value = {"n": "3", "s": "'filled'", "d": "'2021-01-01'"}[column.letter]
        return (f"UPDATE {table.sql} SET {column.quoted} = {value} WHERE {column.quoted} IS NULL; "
                f"ALTER TABLE {table.sql} ALTER {column.quoted} SET NOT NULL")

    def do_wider(self):
        table, column = self.column("ns", lambda c: c.type in ("integer", "character varying(40)",
            "character varying(200)"))
        return f"ALTER TABLE {table.sql} ALTER {column.quoted} TYPE {'bigint' if column.type == 'integer' else 'text'}"

    @quiet
    def do_type(self):
        table, column = self.column("nsd")
        kind = self.rng.choice({"n": NUMBERS, "s": WORDS, "d": DATES}[column.letter])
        using = f"{column.quoted}::{'text::numeric::' * (column.letter == 'n')}{kind.partition(' ')[0]}"
        return (f"ALTER TABLE {table.sql} ALTER {column.quoted} DROP DEFAULT, ALTER {column.quoted} TYPE {kind} USING "
                f"{using}"
                + self.rng.choice(("", f", ALTER {column.quoted} SET STATISTICS 50")))

    @quiet
    def do_type_of_key(self):
        return (f"ALTER TABLE {self.table('rp', lambda t: not t.is_partition).sql} ALTER id TYPE "
                f"{self.rng.choice(('bigint', 'int', 'numeric'))}")

    def do_storage(self):
        table, column = self.column("sna")
        what = self.rng.choice(("SET STORAGE EXTERNAL", "SET STORAGE MAIN", "SET STATISTICS 200", "SET STATISTICS -1",
                                "SET (n_distinct = 9)", "SET COMPRESSION pglz"))
        return f"ALTER TABLE {table.sql} ALTER {column.quoted} {what}"

    def do_options(self):
        return (f"ALTER TABLE {self.table().sql} "
                + self.rng.choice(("SET (fillfactor = 80)", "RESET (fillfactor)", "SET (autovacuum_enabled = off)",
                                   "REPLICA IDENTITY FULL")))

    def do_several(self):
        table = self.table("rp", lambda t: not t.is_partition and len(t.of("nsda")) > 1)
        gone = self.rng.choice(table.of("nsda"))
        column, default = self.new_column("nsd")
        return (f"ALTER TABLE {table.sql} ADD {column} DEFAULT {default}, DROP {gone.quoted} CASCADE, ADD CONSTRAINT "
                f"{self.name('k')} CHECK (id > -5), "
                f"ADD {self.new_column('ns')[0]}")

    def do_identity(self):
        table, column = self.column("i", lambda c: c.identity)
        what = self.rng.choice(("DROP IDENTITY", "SET GENERATED ALWAYS", "SET GENERATED BY DEFAULT", "SET INCREMENT 5",
                                "RESTART WITH 5000000"))
        return f"ALTER TABLE {table.sql} ALTER {column.quoted} {what}"

    # ---- constraints and indexes

    def do_check(self):
        table, column = self.column("ns")
        check = f"length({column.quoted}::text) < {self.rng.randrange(1000, 9999)}"
        return (f"ALTER TABLE {table.sql} ADD CONSTRAINT {self.name('k')} CHECK "
                f"({check}){self.rng.choice(('', ' NOT VALID'))}")

    def do_unique(self):
        table, column = self.column("u")
        how = self.rng.choice(("", " DEFERRABLE", " DEFERRABLE INITIALLY DEFERRED"))
        return (f"ALTER TABLE {table.sql} ADD CONSTRAINT {self.name('k')} UNIQUE "
                f"({column.quoted}{', at' if table.relkind == 'p' else ''}){how}")

    def do_primary_key(self):
        table = self.table("r", lambda t: not t.is_partition)
        if table.has_key:
            return f"ALTER TABLE {table.sql} DROP CONSTRAINT {self.constraint_of(table, 'p')}"
        return f"ALTER TABLE {table.sql} ADD CONSTRAINT {self.name('k')} PRIMARY KEY (id)"

    def constraint_of(self, table, kinds):
        return self.choose(self.ask("SELECT quote_ident(conname) FROM pg_constraint WHERE conrelid = %s AND "
                                    "contype::text = ANY (%s) "
                                    "AND conislocal AND conparentid = 0 ORDER BY 1", (table.oid, list(kinds))))[0]

    def do_foreign_key(self):
        table, column = self.column("r")
        return (f"ALTER TABLE {table.sql} ADD CONSTRAINT {self.name('k')} FOREIGN KEY ({column.quoted}) REFERENCES ref "
                f"{self.rng.choice(('', 'DEFERRABLE', 'ON DELETE SET NULL'))}"
                f"{self.rng.choice(('', ' NOT VALID')) if table.relkind == 'r' else ''}")

    def do_exclusion(self):
        table, column = self.column("x", relkinds="r")
        return f"ALTER TABLE {table.sql} ADD CONSTRAINT {self.name('k')} EXCLUDE USING gist ({column.quoted} WITH &&)"

    def do_drop_constraint(self):
        table = self.table("rp")
        return f"ALTER TABLE {table.sql} DROP CONSTRAINT {self.constraint_of(table, 'cufx')}"

    def do_rename_constraint(self):
        table = self.table("rp")
        return f"ALTER TABLE {table.sql} RENAME CONSTRAINT {self.constraint_of(table, 'pcufx')} TO {self.name('k')}"

    def do_validate(self):
        table, name = self.choose(self.ask("SELECT conrelid::regclass::text, quote_ident(conname) FROM pg_constraint "
                                           "WHERE NOT convalidated AND conrelid <> 0 ORDER BY 1, 2"))
        return f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}"

    def do_alter_foreign_key(self):
        table, name = self.choose(self.ask("SELECT conrelid::regclass::text, quote_ident(conname) FROM pg_constraint "
                                           "WHERE contype = 'f' AND conparentid = 0 ORDER BY 1, 2"))
        return (f"ALTER TABLE {table} ALTER CONSTRAINT {name} "
                f"{self.rng.choice(('DEFERRABLE INITIALLY DEFERRED', 'NOT DEFERRABLE'))}")

    def index_sql(self, how="", relkinds="rp"):
        table, column = self.column("nsdavu", relkinds=relkinds)
        unique = "UNIQUE " if column.letter == "u" and table.relkind == "r" and self.rng.random() < 0.5 else ""
        parts = self.rng.choice((column.quoted, f"{column.quoted} DESC NULLS LAST, id",
                                 f"({column.quoted}::text || 'x')" if column.letter == "s" else "id",
                                 f"id) INCLUDE ({column.quoted}"))
        name = self.rng.choice((self.name("x"), ""))
        return (f"CREATE {unique}INDEX {how}{name} ON {table.sql} "
                f"({parts}){self.rng.choice(('', ' WITH (fillfactor = 60)', ' WHERE id > 7'))}")

    def do_create_index(self):
        return self.index_sql()

    def do_create_another_index(self):
        return self.index_sql()

    @alone
    def do_create_index_concurrently(self):
        return self.index_sql("CONCURRENTLY ", "r")

    def own_index(self, kinds="i"):
        return self.choose(name for kind in kinds for name in self.relations(
            kind, "NOT relispartition AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = c.oid)"))

    def do_drop_index(self):
        return f"DROP INDEX {self.own_index('iI')}"

    @alone
    def do_drop_index_concurrently(self):
        return f"DROP INDEX CONCURRENTLY {self.own_index()}"

    def do_rename_index(self):
        return f"ALTER INDEX {self.choose(self.relations('i') + self.relations('I'))} RENAME TO {self.name('x')}"

    def do_alter_index(self):
        return f"ALTER INDEX {self.own_index()} {self.rng.choice(('SET (fillfactor = 50)', 'RESET (fillfactor)'))}"

    def do_reindex(self):
        return f"REINDEX TABLE {self.table().sql}"

    # ---- types and sequences

    def do_create_enum(self):
        return f"CREATE TYPE {self.schema()}.{self.name('e')} AS ENUM ('a', 'b''s', 'c\\d')"

    @alone
    def do_add_value(self):
        kind = self.a_type("e")
        labels = self.ask("SELECT quote_literal(enumlabel) FROM pg_enum WHERE enumtypid = %s::regtype ORDER BY "
                          "enumsortorder", (kind,))
        where = ""
        if labels and self.rng.random() < 0.7:
            where = f" {self.rng.choice(('BEFORE', 'AFTER'))} {self.choose(labels)[0]}"
        self.last += 1
        return f"ALTER TYPE {kind} ADD VALUE 'w{self.last} o''dd'{where}"

    @quiet
    def do_rename_value(self):
        kind = self.a_type("e")
        label, = self.choose(self.ask("SELECT quote_literal(enumlabel) FROM pg_enum WHERE enumtypid = %s::regtype "
                                      "ORDER BY 1", (kind,)))
        self.last += 1
        return f"ALTER TYPE {kind} RENAME VALUE {label} TO 'r{self.last}'"

    def do_rename_type(self):
        typtype = self.rng.choice("edc")
        return f"ALTER {'DOMAIN' if typtype == 'd' else 'TYPE'} {self.a_type(typtype)} RENAME TO {self.name('y')}"

    def do_type_schema(self):
        return f"ALTER TYPE {self.a_type(self.rng.choice('ec'))} SET SCHEMA {self.schema()}"

    def do_create_domain(self):
        return (f"CREATE DOMAIN {self.schema()}.{self.name('y')} AS int {self.rng.choice(('', 'DEFAULT 5'))} "
                f"CONSTRAINT {self.name('k')} CHECK (VALUE >= 0)")

    def do_domain_constraint(self):
        name = self.a_type("d")
        have = self.ask("SELECT quote_ident(conname) FROM pg_constraint WHERE contypid = %s::regtype ORDER BY 1",
                        (name,))
        add = f"ADD CONSTRAINT {self.name('k')} CHECK (VALUE < {self.rng.randrange(1000, 9999)})"
        return f"ALTER DOMAIN {name} " + self.rng.choice([add, "SET DEFAULT 9", "DROP DEFAULT"]
                                                         + [f"DROP CONSTRAINT {k}" for k, in have]
                                                         + [f"RENAME CONSTRAINT {k} TO {self.name('k')}" for k,
                                                             in have])

    def do_create_composite(self):
        return f"CREATE TYPE {self.schema()}.{self.name('y')} AS ({self.name('a')} int, {self.name('b')} text)"

    @quiet
    def do_attribute(self):
        kind = self.a_type("c")
        have = self.ask("SELECT quote_ident(attname) FROM pg_attribute JOIN pg_type t ON attrelid = typrelid WHERE "
                        "t.oid = %s::regtype AND attnum > 0 AND NOT attisdropped ORDER BY 1", (kind,))
        choices = [f"ADD ATTRIBUTE {self.name('z')} {self.rng.choice(('int', 'text', 'numeric'))}"]
        choices += [f"RENAME ATTRIBUTE {a} TO {self.name('z')}" for a, in have]
        choices += [f"DROP ATTRIBUTE {a}" for a, in have[1:]]
        return f"ALTER TYPE {kind} {self.rng.choice(choices)}"

    def do_drop_type(self):
        return f"DROP TYPE {self.a_type(self.rng.choice('edc'))} {self.rng.choice(('CASCADE', ''))}"

    def do_create_sequence(self):
        return (f"CREATE SEQUENCE {self.schema()}.{self.name('s')} "
                f"{self.rng.choice(('', 'AS int INCREMENT -1', 'START 7 CACHE 9', 'MAXVALUE 900 CYCLE'))}")

    def sequence(self):
        return self.choose(self.relations("S", "NOT EXISTS (SELECT FROM pg_depend WHERE objid = c.oid AND deptype IN "
                                          "('i', 'a'))"))

    def do_alter_sequence(self):
        name = self.sequence()
        table, column = self.column("n")
        return f"ALTER SEQUENCE {name} " + self.rng.choice(("INCREMENT 5", "CACHE 4", "RESTART WITH 50",
            f"RENAME TO {self.name('s')}", f"OWNED BY {table.sql}.{column.quoted}", "SET SCHEMA two"))

    def do_drop_sequence(self):
        return f"DROP SEQUENCE {self.sequence()} CASCADE"

    @quiet
    def do_default_of_sequence(self):
        name = self.sequence()
        table, column = self.column("n")
        return (f"ALTER TABLE {table.sql} ALTER {column.quoted} SET DEFAULT "
                f"nextval('{name.replace(chr(39), chr(39) * 2)}')")

    # ---- views, routines, and what hangs on a table

    def do_create_view(self):
        table = self.table("rp")
        columns = ", ".join(["id"] + [c.quoted for c in self.rng.sample(table.columns, min(2, len(table.columns)))
                                      if c.name != "id"])
        return f"CREATE VIEW {self.schema()}.{self.name('v')} AS SELECT {columns} FROM {table.sql} WHERE id > 0"

    def do_view_of_view(self):
        return (f"CREATE VIEW {self.schema()}.{self.name('v')} AS SELECT id, {self.text()} AS w FROM "
                f"{self.choose(self.relations('v'))}")

    def do_replace_view(self):
        view = self.choose(self.relations("v"))
        definition, = self.ask("SELECT pg_get_viewdef(%s::regclass)", (view,))[0]
        return (f"CREATE OR REPLACE VIEW {view} AS SELECT w.*, {self.rng.randrange(99)} AS {self.name('z')} FROM "
                f"({definition.rstrip('; ')}) w")

    def do_alter_view(self):
        return f"ALTER VIEW {self.choose(self.relations('v'))} " + self.rng.choice((f"RENAME TO {self.name('v')}",
            "SET (security_barrier)", "SET SCHEMA two", f"RENAME id TO {self.name('z')}"))

    def do_drop_view(self):
        return f"DROP VIEW {self.choose(self.relations('v'))} {self.rng.choice(('CASCADE', ''))}"

    def do_materialized(self):
        have = self.relations("m")
        if have and self.rng.random() < 0.5:
            return self.rng.choice((f"DROP MATERIALIZED VIEW {have[0]}", f"ALTER MATERIALIZED VIEW {have[0]} RENAME "
                                    f"TO {self.name('v')}", f"REFRESH MATERIALIZED VIEW {have[0]}"))
        return f"CREATE MATERIALIZED VIEW {self.name('v')} AS SELECT count(*) AS n FROM {self.table('rp').sql}"

    def do_create_function(self):
        return (f"CREATE FUNCTION {self.schema()}.{self.name('f')}(a int DEFAULT {self.rng.randrange(9)}) RETURNS "
                f"text LANGUAGE {self.rng.choice(('sql', 'sql IMMUTABLE', 'sql SET search_path = two'))} "
                f"AS $f$ SELECT {self.text()}::text $f$")

    def do_create_procedure(self):
        return f"CREATE PROCEDURE {self.name('f')}(a int) LANGUAGE plpgsql AS $f$ BEGIN PERFORM {self.text()}; END $f$"

    def routine(self, prokind):
        return self.choose(name for name, in self.ask("SELECT format('%%I.%%I', nspname, proname) FROM pg_proc JOIN "
                                                      "pg_namespace n ON n.oid = pronamespace "
                                                      "WHERE nspname IN ('public', 'two') AND prokind = %s AND "
                                                      "proname <> 'nothing' ORDER BY 1", (prokind,)))

    def do_replace_function(self):
        return (f"CREATE OR REPLACE FUNCTION {self.routine('f')}(a int DEFAULT 7) RETURNS text LANGUAGE sql COST 5 AS "
                f"$f$ SELECT {self.text()}::text || a $f$")

    def do_alter_function(self):
        return f"ALTER FUNCTION {self.routine('f')} " + self.rng.choice((f"RENAME TO {self.name('f')}", "STABLE",
            "COST 77", "SET work_mem = '9MB'", "RESET ALL", "SET SCHEMA two"))

    def do_overload(self):
        name = self.routine("f")
        return (f"CREATE FUNCTION {name}(a {self.rng.choice(('text', 'date', 'int[]'))}) RETURNS int LANGUAGE sql AS "
                f"'SELECT 1'")

    def do_drop_routine(self):
        signature, = self.choose(self.ask("SELECT p.oid::regprocedure::text FROM pg_proc p JOIN pg_namespace n ON "
                                          "n.oid = pronamespace "
                                          "WHERE nspname IN ('public', 'two') AND proname <> 'nothing' ORDER BY 1"))
        return f"DROP ROUTINE {signature}"

    def do_create_trigger(self):
        table = self.table("rp", lambda t: not t.is_partition)
        how = self.rng.choice(("BEFORE INSERT", "AFTER UPDATE", "BEFORE INSERT OR UPDATE OR DELETE"))
        return (f"CREATE TRIGGER {self.name('g')} {how} ON {table.sql} FOR EACH "
                f"{'ROW' if 'DELETE' not in how else 'STATEMENT'} EXECUTE FUNCTION public.nothing({self.text()})")

    def do_alter_trigger(self):
        table, name = self.choose(self.ask("SELECT tgrelid::regclass::text, quote_ident(tgname) FROM pg_trigger WHERE "
                                           "NOT tgisinternal AND tgparentid = 0 ORDER BY 1, 2"))
        return self.rng.choice((f"ALTER TABLE {table} DISABLE TRIGGER {name}", f"ALTER TABLE {table} ENABLE TRIGGER "
                                f"{name}", f"ALTER TRIGGER {name} ON {table} RENAME TO {self.name('g')}",
                                f"DROP TRIGGER {name} ON {table}"))

    def do_rule(self):
        have = self.ask("SELECT ev_class::regclass::text, quote_ident(rulename) FROM pg_rewrite JOIN pg_class c ON "
                        "c.oid = ev_class WHERE relkind = 'r' AND ev_class >= 16384 ORDER BY 1, 2")
        if have and self.rng.random() < 0.6:
            table, name = self.rng.choice(have)
            return self.rng.choice((f"DROP RULE {name} ON {table}", f"ALTER RULE {name} ON {table} RENAME TO "
                                    f"{self.name('l')}"))
        return f"CREATE RULE {self.name('l')} AS ON UPDATE TO {self.table().sql} WHERE NEW.id < 0 DO ALSO NOTHING"

    def do_policy(self):
        have = self.ask("SELECT polrelid::regclass::text, quote_ident(polname) FROM pg_policy ORDER BY 1, 2")
        if have and self.rng.random() < 0.6:
            table, name = self.rng.choice(have)
            return self.rng.choice((f"DROP POLICY {name} ON {table}", f"ALTER POLICY {name} ON {table} RENAME TO "
                                    f"{self.name('o')}", f"ALTER POLICY {name} ON {table} USING (id > 5)"))
        return (f"CREATE POLICY {self.name('o')} ON {self.table('rp').sql} FOR "
                f"{self.rng.choice(('ALL', 'SELECT', 'DELETE'))} USING (id > 0)")

    def do_row_security(self):
        return (f"ALTER TABLE {self.table('rp').sql} {self.rng.choice(('ENABLE', 'DISABLE', 'FORCE', 'NO FORCE'))} ROW "
                f"LEVEL SECURITY")

    def do_statistics(self):
        have = self.ask("SELECT format('%I.%I', nspname, stxname) FROM pg_statistic_ext JOIN pg_namespace n ON n.oid "
                        "= stxnamespace ORDER BY 1")
        if have and self.rng.random() < 0.6:
            name, = self.rng.choice(have)
            return self.rng.choice((f"DROP STATISTICS {name}", f"ALTER STATISTICS {name} RENAME TO {self.name('z')}",
                                    f"ALTER STATISTICS {name} SET STATISTICS 99"))
        table, column = self.column("nsd", relkinds="r")
        return f"CREATE STATISTICS {self.schema()}.{self.name('z')} ON id, {column.quoted} FROM {table.sql}"

    def do_comment(self):
        table, column = self.column()
        what = [f"TABLE {table.sql}", f"COLUMN {table.sql}.{column.quoted}", "SCHEMA two"]
        for kind, word in (("i", "INDEX"), ("v", "VIEW"), ("S", "SEQUENCE"), ("m", "MATERIALIZED VIEW")):
            what += [f"{word} {name}" for name in self.relations(kind)[:1]]
        for typtype, word in (("e", "TYPE"), ("d", "DOMAIN"), ("c", "TYPE")):
            what += [f"{word} {name}" for name in self.types(typtype)[:1]]
        what += [f"CONSTRAINT {name} ON {owner}" for name, owner in self.ask(
            "SELECT quote_ident(conname), conrelid::regclass::text FROM pg_constraint WHERE conrelid >= 16384 AND "
            "conparentid = 0 ORDER BY 1, 2 LIMIT 1")]
        return f"COMMENT ON {self.rng.choice(what)} IS {self.rng.choice((self.text(), self.text(), 'NULL'))}"

    do_another_comment = do_comment

    def do_other_schema(self):
        name = self.name("other")
        return self.rng.choice((f"CREATE SCHEMA {name}; CREATE TABLE {name}.x (id int); INSERT INTO {name}.x VALUES "
                                f"(1); DROP SCHEMA {name} CASCADE",
                                f"GRANT SELECT ON {self.table().sql} TO PUBLIC"))


class Play:
    """The session on A that runs statements, the writes on both sides, and twsync, which lives and dies."""

    def __init__(self, pair, job, rng):
        self.pair, self.job, self.rng = pair, job, rng
        self.rng_b = random.Random(rng.random())        # B's writes depend on how far it is; A's statements must not
        self.conn = pair.a.connect()
        self.cur = self.conn.cursor()
        self.change = Change(self.cur, rng)
        self.conn_b = pair.b.connect()
        self.b = Looking(self.conn_b.cursor(), self.rng_b)
        self.done, self.last_id, self.log = 0, 10_000, []
        self.b_until, self.b_wrote, self.later = 0, False, set()

    def close(self):
        self.conn.close()
        self.conn_b.close()

    def say(self, side, sql, *more):
        self.log.append(f"{side} {' '.join(map(str, more))}{sql}")
        print(self.log[-1])

    def new_id(self, side):
        self.last_id += 2
        return self.last_id + side

    # ---- statements on A

    def attempt(self, sql, within, args=None):
        """Whether A takes it; what it refuses leaves no trace."""
        try:
            if within:
                self.cur.execute("SAVEPOINT s")
            self.cur.execute(sql, args)
            self.ran = self.cur.query.decode("utf8", "replace")
            if within:
                self.cur.execute("RELEASE s")
            return True
        except psycopg2.Error as error:
            if error.pgcode in ("40P01", "40001", "57014") or error.pgcode is None:
                raise
            if within:
                self.cur.execute("ROLLBACK TO s")
            assert error.pgcode not in ("42601", "42P02"), f"not a statement: {sql}\n{error}"
            return False

    def one(self, kind, within):
        """A statement of this kind: 1 if it was run, 0 if there is nothing to do or A refuses it."""
        try:
            sql = self.change.kinds[kind]()
        except Nothing:
            return 0
        run, single = sql, hasattr(self.change.kinds[kind], "alone")
        if not single and self.rng.random() < 0.2 and sql.isascii() and "\\" not in sql:
            run = f"DO $do$ BEGIN EXECUTE {psycopg2.extensions.QuotedString(sql)}; END $do$"
        elif not within and not single and self.rng.random() < 0.2:
            run = f"{sql}; COMMENT ON SCHEMA two IS 'of {self.change.last}'"
        if not self.attempt(run, within):
            return 0
        self.say("a", run, f"[{kind}] ")
        if hasattr(self.change.kinds[kind], "later") and self.change.about:
            self.later.add(self.change.ask("SELECT to_regclass(%s)::oid::int8", (self.change.about,))[0][0])
        return 1

    def write_a(self, within):
        with contextlib.suppress(Nothing):
            sql, args = self.change.write(self.change.table("rp"), 0, self.new_id(0))
            if self.attempt(sql, within, args):
                self.say("a", self.ran, "  ")

    def some_kinds(self, many):
        return [self.rng.choice(sorted(self.change.kinds)) for _ in range(many)]

    def single(self):
        kind, = self.some_kinds(1)
        self.prepare([kind])
        self.write_a(False)
        self.done += self.one(kind, False)
        self.write_a(False)
        self.after([kind])

    def transaction(self):
        """Several statements and rows, some of them taken back; now and then all."""
        kinds = [kind for kind in self.some_kinds(self.rng.randrange(2, 6)) if not hasattr(self.change.kinds[kind],
            "alone")]
        self.prepare(kinds)
        self.cur.execute("BEGIN")
        self.say("a", "BEGIN")
        done = 0
        for kind in kinds:
            self.write_a(True)
            if self.rng.random() < 0.15:
                self.cur.execute("SAVEPOINT back")
                self.say("a", "SAVEPOINT back")
                self.one(kind, True)
                self.write_a(True)
                self.cur.execute("ROLLBACK TO back")
                self.say("a", "ROLLBACK TO back")
            else:
                done += self.one(kind, True)
        self.write_a(True)
        end = "ROLLBACK" if self.rng.random() < 0.1 else "COMMIT"
        self.cur.execute(end)
        self.say("a", end)
        self.done += done if end == "COMMIT" else 0
        self.after(kinds)

    def prepare(self, kinds):
        """Before a statement that bears no rows on their way from B: all that B has written is there."""
        if any(hasattr(self.change.kinds[kind], "quiet") for kind in kinds) and self.b_wrote:
            if not self.job.alive():
                self.job.start(wait=())
            self.job.wait_synced(("reverse",))
            self.b_wrote = False

    def after(self, kinds):
        if any(hasattr(self.change.kinds[kind], "quiet") for kind in kinds):
            self.b_until = self.pair.a.lsn()

    # ---- rows on B

    def write_b(self):
        if self.b_until:
            if self.job.applied("forward") < self.b_until:
                return
            self.b_until = 0
        here = {t.sql: t.oid for t in self.change.tables()}
        with contextlib.suppress(Nothing):
            table = self.b.table("rp")
            if self.later and (table.sql not in here or here[table.sql] in self.later):
                return
            sql, args = self.b.write(table, 1, self.new_id(1))
            try:
                self.b.cur.execute(sql, args)
                self.b_wrote = True
                self.say("b", self.b.cur.query.decode("utf8", "replace"), "  ")
            except psycopg2.Error as error:     # it has become another table meanwhile, or has no partition
                if error.pgcode is None or error.pgcode[:2] not in ("42", "23", "22", "40", "55"):
                    raise

    # ---- all of it

    def check(self):
        """Both sides are equal, now."""
        if not self.job.alive():
            self.job.start(wait=())
        self.job.wait_synced()
        if self.later:
            compare.wait_contents(self.pair)
        compare.assert_schema(self.pair)
        compare.assert_contents(self.pair)
        for task in tw.TASKS:
            assert self.job.task(task)["conflicts"] == 0, self.job.conflicts(task)
        wait_for(lambda: self.pair.b.admin("SELECT table_name, reason FROM twsync.parked") == [], "no table parked")
        self.later.clear()
        self.b_wrote = False
        self.say("-", f"equal after {self.done} statements")

    def run(self, count):
        kills = sorted(self.rng.randrange(count) for _ in range(KILLS))
        back, checked = None, 0
        while self.done < count:
            try:
                self.single() if self.rng.random() < 0.6 else self.transaction()
            except (psycopg2.errors.DeadlockDetected, psycopg2.errors.SerializationFailure):
                self.cur.execute("ROLLBACK")
                self.say("a", "ROLLBACK after a deadlock")
            for _ in range(self.rng_b.randrange(3)):
                self.write_b()
            if kills and self.done >= kills[0]:
                kills.pop(0)
                if self.job.alive():
                    self.job.kill(whole_group=self.rng.random() < 0.7)
                    self.say("-", "twsync killed")
                back = self.done + self.rng.choice((0, 0, 10))
            if back is not None and self.done >= back:
                if not self.job.alive():
                    self.job.start(wait=())
                back = None
            if self.done >= checked + EQUAL:
                checked = self.done
                self.check()
        self.check()


@pytest.mark.rung("origin")
@pytest.mark.parametrize("version", [15, 17])
def test_random(pair, make_job, version):
    """COUNT statements that A takes; always the same ones, unless TWSYNC_TEST_SEED says which others."""
    rng = random.Random(f"{os.environ.get('TWSYNC_TEST_SEED', '24')} {version}")
    pair.a.sql(BASE)
    job = make_job(pair, "public, two").start()
    play = Play(pair, job, rng)
    try:
        play.run(COUNT)
    finally:
        play.close()
        with open(os.path.join(job.folder, "statements.sql"), "w") as f:
            f.write("\n".join(play.log))
    assert job.stop() == tw.OK
