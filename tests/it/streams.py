"""Random change streams: tables of every kind, what happens to them, and where a target differs.

A `Stream` makes SQL from random numbers only, so that the same seed gives the same statements.
Rows of a table have numbers: HOT ones change all the time, and are the same on both sides; at COLD
ones the target holds something else (`planted`), and it has EXTRA rows.  Every statement asks first
whether the keys of its table allow it, so that a transaction never fails.
"""

HOT, COLD, EXTRA = range(1, 121), range(301, 361), range(1001, 1031)


def number(rng, cold):
    return rng.choice(["NULL::int", *(f"{n}::int" for n in range(6))])


def word(rng, cold):
    return rng.choice(["NULL::text", "''::text", r"E'a\tb\\c\nd'::text", "'\\N'::text",
                       *(f"'w{n}'::text" for n in range(5))])


def flag(rng, cold):
    return rng.choice(["true", "false"])


def large(rng, cold):
    """Stored out of line, so that it does not travel when it stays as it is."""
    return (f"(SELECT string_agg(md5('{rng.randrange(9)}' || i), '')"
            f" FROM generate_series(1, {rng.choice([2, 90, 90])}) i)")


def rare(rng, cold):
    """A value that few rows have: of cold rows one that an extra row of the target may have."""
    return 9000 + rng.randrange(30) if cold else rng.randrange(4000)


def unique(rng, cold):
    return f"{rare(rng, cold)}::int"


def unique_or_null(rng, cold):
    return "NULL::int" if rng.random() < 0.2 else unique(rng, cold)


def name(rng, cold):
    return f"'{rng.choice('Nn')}{rare(rng, cold)}'::text"


def span(rng, cold):
    low = 10 * rare(rng, cold)
    return f"int4range({low}, {low + rng.randint(1, 9)})"


def parent(rng, cold):
    return f"(SELECT min(id) FROM t_parent WHERE id >= {rng.choice(HOT)})"


def part(rng, cold):
    return f"{rng.randrange(3)}::int"


def plain_id(rng, k):
    return {"id": f"{k}::int"}


def pair_id(rng, k):
    return {"k1": f"{k % 20}::int", "k2": f"'x{k // 20}'::text"}


def numeric_id(rng, k):
    """One key, several texts."""
    return {"id": f"{k}{rng.choice(['', '.0', '.00'])}::numeric"}


def cased_id(rng, k):
    return {"id": f"'{rng.choice('Kk')}{k}'::text"}


class Table:
    """columns: of the key apart.  uniques: by column, a condition over rows o and n.

    folds: its changes may be folded; mixed: but not several of one row.  moves: its key may change.
    swaps: how two rows swap values, or their keys.  target: what only the target has.
    """

    def __init__(self, name, ddl, columns, key=plain_id, uniques=None, folds=True, moves=True,
                 swaps=None, mixed=False, own=None, after="", target=""):
        self.name, self.ddl, self.columns, self.key = name, ddl, columns, key
        self.uniques, self.folds, self.moves = uniques or {}, folds, moves
        self.own = own or {}
        self.swaps, self.mixed, self.after, self.target = swaps, mixed, after, target
        self.ordinary = [c for c in columns if c not in self.uniques]

    def on_target(self):
        """The same table with the keys that only the target has."""
        return Table(self.name, self.ddl, self.columns, self.key, {**self.uniques, **self.own})

    def where(self, rng, k, row=""):
        return " AND ".join(f"{row}{c} = {v}" for c, v in self.key(rng, k).items())

    def insert(self, rng, k, cold=False):
        row = {**self.key(rng, k), **{c: make(rng, cold) for c, make in self.columns.items()}}
        taken = " OR ".join([self.where(rng, k, "o."), *self.uniques.values()])
        return (f"INSERT INTO {self.name} ({', '.join(row)}) OVERRIDING SYSTEM VALUE"
                f" SELECT n.* FROM (SELECT {', '.join(f'{v} AS {c}' for c, v in row.items())}) n"
                f" WHERE NOT EXISTS (SELECT FROM {self.name} o WHERE {taken})")

    def set(self, rng, k, columns, cold=False):
        new = ", ".join(f"{self.columns[c](rng, cold)} AS {c}" for c in columns)
        taken = " OR ".join([self.uniques[c] for c in columns if c in self.uniques])
        free = (f" AND NOT EXISTS (SELECT FROM {self.name} o WHERE o.ctid <> t.ctid AND ({taken}))"
                if taken else "")
        return (f"UPDATE {self.name} t SET {', '.join(f'{c} = n.{c}' for c in columns)}"
                f" FROM (SELECT {new}) n WHERE {self.where(rng, k, 't.')}{free}")

    def update(self, rng, k, cold=False):
        n = rng.choice([1, 1, 2, len(self.ordinary)])
        return self.set(rng, k, rng.sample(self.ordinary, min(n, len(self.ordinary))), cold)

    def update_unique(self, rng, k, cold=False):
        if not self.uniques:
            return self.update(rng, k, cold)
        columns = rng.sample(sorted(self.uniques), rng.randint(1, len(self.uniques)))
        return self.set(rng, k, columns + rng.sample(self.ordinary, rng.randint(0, 1)), cold)

    def same(self, rng, k):
        c = rng.choice(self.ordinary)
        return f"UPDATE {self.name} SET {c} = {c} WHERE {self.where(rng, k)}"

    def delete(self, rng, k):
        return f"DELETE FROM {self.name} WHERE {self.where(rng, k)}"

    def move(self, rng, k, to):
        new = ", ".join(f"{c} = {v}" for c, v in self.key(rng, to).items())
        free = ("" if self.where(rng, k) == self.where(rng, to) else
                f" AND NOT EXISTS (SELECT FROM {self.name} o WHERE {self.where(rng, to, 'o.')})")
        return f"UPDATE {self.name} SET {new} WHERE {self.where(rng, k)}{free}"

    def swap(self, rng, k, other):
        """Two rows swap a unique value, or their keys, through a third value."""
        if self.swaps == "at once":     # what a deferrable key is for
            column = sorted(self.uniques)[0] if self.uniques else "id"
            return (f"UPDATE {self.name} t SET {column} = o.{column} FROM {self.name} o"
                    f" WHERE t.id IN ({k}, {other}) AND o.id IN ({k}, {other}) AND t.id <> o.id")
        if not self.uniques:
            return (f"UPDATE {self.name} SET id = -id WHERE id = {k};"
                    f"UPDATE {self.name} SET id = {k} WHERE id = {other};"
                    f"UPDATE {self.name} SET id = {other} WHERE id = -{k}")
        return (f"DO $$ DECLARE x int; y int; BEGIN"
                f" SELECT u INTO x FROM {self.name} WHERE id = {k};"
                f" SELECT u INTO y FROM {self.name} WHERE id = {other};"
                f" IF x <> y THEN UPDATE {self.name} SET u = -1 WHERE id = {k};"
                f" UPDATE {self.name} SET u = x WHERE id = {other};"
                f" UPDATE {self.name} SET u = y WHERE id = {k}; END IF; END $$")


U = {"u": "o.u = n.u"}
WIDE = [f"c{i}" for i in range(30)]

KEYED = [
    Table("t_plain", "id int PRIMARY KEY, a int, b int, c text, d text",
          {"a": number, "b": number, "c": word, "d": word}, swaps="third"),
    Table("t_composite", "k1 int, k2 text, a int, c text, PRIMARY KEY (k2, k1)",
          {"a": number, "c": word}, key=pair_id),
    Table("t_unique", "id int PRIMARY KEY, u int UNIQUE, a int, c text",
          {"u": unique_or_null, "a": number, "c": word}, uniques=U, swaps="third"),
    Table("t_uniques", "id int PRIMARY KEY, u int NOT NULL UNIQUE, v int UNIQUE, a int",
          {"u": unique, "v": unique_or_null, "a": number}, uniques={**U, "v": "o.v = n.v"}),
    Table("t_partial", "id int PRIMARY KEY, u int, live bool, a int",
          {"u": unique, "live": flag, "a": number}, uniques=U, mixed=True,
          after="CREATE UNIQUE INDEX ON t_partial (u) WHERE live"),
    Table("t_expression", "id int PRIMARY KEY, name text, a int", {"name": name, "a": number},
          uniques={"name": "lower(o.name) = lower(n.name)"}, mixed=True,
          after="CREATE UNIQUE INDEX ON t_expression (lower(name))"),
    Table("t_exclusion", "id int PRIMARY KEY, s int4range, a int, EXCLUDE USING gist (s WITH &&)",
          {"s": span, "a": number}, uniques={"s": "o.s && n.s"}),
    Table("t_generated", "id int PRIMARY KEY, u int, a int,"
          " g int GENERATED ALWAYS AS (u * 2) STORED UNIQUE,"
          " h text GENERATED ALWAYS AS ('h' || a) STORED",
          {"u": unique, "a": number}, uniques=U, mixed=True),
    Table("t_identity", "id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a int, c text",
          {"a": number, "c": word}, moves=False),
    Table("t_numeric", "id numeric PRIMARY KEY, a int, c text", {"a": number, "c": word},
          key=numeric_id),
    Table("t_cased", "id text COLLATE nocase PRIMARY KEY, a int, c text", {"a": number, "c": word},
          key=cased_id),
    Table("t_parts", "id int, p int, a int, c text, PRIMARY KEY (id, p)",
          {"p": part, "a": number, "c": word}),
    Table("t_toast", "id int PRIMARY KEY, big text, a int, more text, c text",
          {"big": large, "a": number, "more": large, "c": word},
          after="ALTER TABLE t_toast ALTER big SET STORAGE EXTERNAL,"
                " ALTER more SET STORAGE EXTERNAL"),
    Table("t_wide", "id int PRIMARY KEY, " + ", ".join(f"{c} int" for c in WIDE),
          {c: number for c in WIDE}, folds=False),
    Table("t_parent", "id int PRIMARY KEY, a int", {"a": number}),
    Table("t_child", "id int PRIMARY KEY, pid int REFERENCES t_parent ON DELETE CASCADE"
          " ON UPDATE CASCADE, a int", {"pid": parent, "a": number}),
    Table("t_own_unique", "id int PRIMARY KEY, u int, a int", {"u": unique, "a": number},
          mixed=True, own=U, target="CREATE UNIQUE INDEX ON t_own_unique (u)"),
    Table("t_deferrable", "id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, a int, c text",
          {"a": number, "c": word}, folds=False, swaps="at once"),
    Table("t_deferred", "id int PRIMARY KEY, u int UNIQUE DEFERRABLE INITIALLY DEFERRED, a int",
          {"u": unique, "a": number}, uniques=U, folds=False, swaps="at once"),
    Table("t_fires", "id int PRIMARY KEY, a int, c text", {"a": number, "c": word}, folds=False,
          target="CREATE TABLE t_fired (n int, what text, was text, now text);"
                 " CREATE FUNCTION t_fired() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                 " INSERT INTO public.t_fired SELECT (SELECT count(*) FROM public.t_fired), tg_op,"
                 " old::text, new::text; RETURN NULL; END $$;"
                 " CREATE TRIGGER t_fired AFTER INSERT OR UPDATE OR DELETE ON t_fires"
                 " FOR EACH ROW EXECUTE FUNCTION t_fired();"
                 " ALTER TABLE t_fires ENABLE ALWAYS TRIGGER t_fired"),
]
# The partitioned table is made apart: rows move between its parts when p changes.
PARTS = """
    CREATE TABLE t_parts (id int, p int, a int, c text, PRIMARY KEY (id, p)) PARTITION BY LIST (p);
    CREATE TABLE t_parts_0 PARTITION OF t_parts FOR VALUES IN (0);
    CREATE TABLE t_parts_1 PARTITION OF t_parts FOR VALUES IN (1);
    CREATE TABLE t_parts_2 PARTITION OF t_parts DEFAULT"""
COLLATION = "CREATE COLLATION nocase (provider=icu, locale='und-u-ks-level2', deterministic=false)"
# Without old images a deferrable primary key identifies nothing, and its updates would be refused.
DEFERRED = "ALTER TABLE t_deferrable REPLICA IDENTITY FULL"
KEYLESS = "CREATE TABLE t_keyless (a int, c text)"
OTHERS = """
    CREATE TABLE t_truncated (id int PRIMARY KEY, a int);
    CREATE TABLE t_many (id int PRIMARY KEY, a int, b int, c text);
    CREATE TABLE t_sets (id int PRIMARY KEY, u int UNIQUE, v int UNIQUE, a int)"""


def schema(keyless):
    """What both sides have, as one statement list."""
    out = [COLLATION]
    for t in KEYED:
        out += [PARTS] if t.name == "t_parts" else [f"CREATE TABLE {t.name} ({t.ddl})", t.after]
    return ";".join(s for s in out + [OTHERS, KEYLESS if keyless else DEFERRED] if s)


def target_schema():
    return ";".join(t.target for t in KEYED if t.target)


class Stream:
    """Statements by the transaction.  keyless: there is a table without a key."""

    def __init__(self, rng, keyless):
        self.rng, self.has_keyless, self.fresh = rng, keyless, 100_000

    def first_rows(self):
        rng = self.rng
        rows = [t.insert(rng, k, k in COLD and rng.random() < 0.05)
                for t in KEYED for k in (*HOT, *COLD)]
        rows.append("INSERT INTO t_many SELECT g, 0, g, 'first' FROM generate_series(1, 1500) g")
        if self.has_keyless:
            rows.append("INSERT INTO t_keyless SELECT g % 5, 'w' || g % 3"
                        " FROM generate_series(1, 60) g")
        rows.append("UPDATE t_own_unique SET u = id")   # later the source may do as it likes
        rows.append("INSERT INTO t_sets SELECT g, g FROM generate_series(1, 499) g")
        return ";".join(rows)

    def planted(self):
        """Where the target differs: rows gone, changed, in the way by key or by another value."""
        rng, out = self.rng, []
        for t in (t.on_target() for t in KEYED):
            for k in COLD:
                out += rng.choice([[], [], [t.delete(rng, k)], [t.update(rng, k)],
                                   [t.update(rng, k)], [t.update_unique(rng, k, True)]])
            out += [t.insert(rng, k, True) for k in EXTRA]
        out += self.each_kind_planted
        if self.has_keyless:
            out += ["DELETE FROM t_keyless WHERE a = 4 AND c = 'w1'",
                    "INSERT INTO t_keyless VALUES (0, 'w0'), (77, 'extra'), (77, 'extra')"]
        return ";".join(out)

    # One row of a hundred is not as the statement expects it.
    each_kind_planted = [
        "DELETE FROM t_sets WHERE id IN (50, 150)",
        "UPDATE t_sets SET a = 7 WHERE id IN (250, 350)",
        "INSERT INTO t_sets VALUES (-1, -1, -450), (-2, 550, NULL), (-3, 650, NULL), (-4, -4, 650)"]
    each_kind = {
        "update_missing": "UPDATE t_sets SET a = 1 WHERE id BETWEEN 1 AND 99",
        "delete_missing": "DELETE FROM t_sets WHERE id BETWEEN 101 AND 199",
        "update_differs": "UPDATE t_sets SET a = 1 WHERE id BETWEEN 201 AND 299",
        "delete_differs": "DELETE FROM t_sets WHERE id BETWEEN 301 AND 399",
        "update_exists": "UPDATE t_sets SET v = -id WHERE id BETWEEN 401 AND 499",
        "insert_exists": "INSERT INTO t_sets SELECT g, g FROM generate_series(501, 599) g",
        "multiple_unique_conflicts":
            "INSERT INTO t_sets SELECT g, g, g FROM generate_series(601, 699) g"}

    # ---- one row

    CALM = {"update": 60, "unique": 3, "insert": 6, "delete": 4, "same": 5, "bring": 3}
    HASTY = {"update": 40, "unique": 10, "insert": 12, "delete": 12, "same": 5, "bring": 6,
             "again": 6}
    QUIET = {**HASTY, "update": 50}     # for tables without secondary keys
    ANY = {**HASTY, "move": 4, "swap": 4}

    def one(self, t, k, cold, weights):
        """A change of one row, or a few in a row."""
        rng = self.rng
        what = rng.choices(list(weights), weights.values())[0]
        other = rng.choice(EXTRA if cold and rng.random() < 0.5 else COLD if cold else HOT)
        if what == "move" and t.moves:
            return [t.move(rng, k, other if rng.random() < 0.7 else k)]
        if what == "swap" and t.swaps and k != other:
            return [t.swap(rng, k, other)]
        if what == "again":
            return [t.insert(rng, k, cold), t.delete(rng, k), t.insert(rng, k, cold)]
        if what == "bring":
            return [t.delete(rng, k), t.insert(rng, k, cold), t.update(rng, k, cold)]
        return [{"insert": lambda: t.insert(rng, k, cold), "delete": lambda: t.delete(rng, k),
                 "same": lambda: t.same(rng, k), "unique": lambda: t.update_unique(rng, k, cold),
                 }.get(what, lambda: t.update(rng, k, cold))()]

    def keyless(self):
        rng = self.rng
        a, b, c = rng.randrange(6), rng.randrange(6), rng.randrange(3)
        return rng.choice([f"INSERT INTO t_keyless VALUES ({a}, 'w{c}')",
                           f"UPDATE t_keyless SET a = {b} WHERE a = {a} AND c = 'w{c}'",
                           f"DELETE FROM t_keyless WHERE ctid = (SELECT min(ctid) FROM t_keyless"
                           f" WHERE a = {a})"])

    def cold(self, tables, weights):
        """Some changes in a row of what differs on the target."""
        rng, out = self.rng, []
        t, k = rng.choice(tables), rng.choice(EXTRA if rng.random() < 0.3 else COLD)
        for _ in range(rng.choice([1, 1, 2, 3, 5])):
            out += self.one(t, k, rng.random() < 0.7, weights)
        return out

    def many(self, foldable):
        """One statement, many changes."""
        rng = self.rng
        low = rng.randrange(1500)
        self.fresh += 1000
        high = low + rng.choice([40, 200, 700])
        wide = f"UPDATE t_wide SET c{low % 30} = c{high % 30} WHERE id < 121"
        return rng.choice([
            f"UPDATE t_many SET a = a + 1 WHERE id BETWEEN {low} AND {high}",
            f"UPDATE t_many SET b = b - 1, c = 'w' || id % 7 WHERE id BETWEEN {low} AND {high}",
            f"UPDATE t_many SET c = c WHERE id BETWEEN {low} AND {high}",
            f"DELETE FROM t_many WHERE id BETWEEN {low} AND {high}",
            f"INSERT INTO t_many SELECT g, g % 5, 0, 'new' FROM generate_series({low}, {high}) g"
            f" WHERE NOT EXISTS (SELECT FROM t_many WHERE id = g)",
            f"UPDATE t_unique SET c = 'set' || a WHERE id BETWEEN {low % 120} AND 120",
            f"UPDATE t_unique SET u = {self.fresh} + id WHERE id BETWEEN {low % 120} AND 120",
            f"DELETE FROM t_composite WHERE k1 = {low % 20} AND k2 IN ('x1', 'x2', 'x3')",
            *([] if foldable else [wide])])

    def truncation(self):
        rng = self.rng
        fill = "INSERT INTO t_truncated SELECT g, g % 7 FROM generate_series(1, 50) g"
        return rng.choice([f"TRUNCATE t_truncated; {fill}", "TRUNCATE t_truncated",
                           "UPDATE t_truncated SET a = a + 1",
                           f"DELETE FROM t_truncated; {fill}; TRUNCATE t_truncated; {fill}"])

    # ---- transactions

    def phase(self, n, weights, hot, cold):
        """n transactions with such changes of hot keys; cold: the share that meets differences."""
        rng, foldable = self.rng, weights is not self.ANY
        tables = rng.sample([t for t in KEYED if t.folds or not foldable], 7)
        if weights is self.CALM:    # where keys are of these any two updates of a row end a window
            tables = [t for t in tables if not t.mixed]
        if weights is self.QUIET:
            tables = [t for t in KEYED if t.folds and not t.uniques and not t.mixed]
        for _ in range(n):
            out = []
            for _ in range(rng.choice([1, 1, 2, 4, 8, 30])):
                k = rng.choice(HOT[:6] if rng.random() < hot else HOT)
                out += self.one(rng.choice(tables), k, False, weights)
            if rng.random() < 0.15:
                out.append(self.many(foldable))
            if rng.random() < cold:
                some = self.cold(tables, self.HASTY if foldable else self.ANY)
                out[rng.randrange(len(out) + 1):0] = some
            if not foldable and rng.random() < 0.3:
                keyless = self.has_keyless and rng.random() < 0.7
                out.append(self.keyless() if keyless else self.truncation())
            yield "BEGIN;" + ";".join(out) + ";COMMIT"

    def transactions(self, n):
        """Phases that the bulk path may write mostly, and such that it may not; and now and then
        one conflict among so many changes that they are surely folded."""
        rng, kinds = self.rng, list(self.each_kind.values())
        rng.shuffle(kinds)
        while n > 0 or kinds:
            some = max(1, min(n, rng.randint(10, 30)))
            weights = rng.choice([self.QUIET, self.QUIET, self.CALM, self.HASTY, self.ANY])
            hot = 0.1 if weights is self.CALM else 0.4
            yield from self.phase(some, weights, hot, rng.choice([0, 0, 0, 0.2]))
            n -= some
            yield "TRUNCATE t_truncated"    # a window ends here
            yield from self.phase(5, self.QUIET, 0.4, 0)
            yield "BEGIN;UPDATE t_many SET a = a + 1;COMMIT"
            if rng.random() < 0.7:
                yield "TRUNCATE t_truncated"
            if kinds:
                yield f"BEGIN;{self.many(True)};{kinds.pop()};{self.many(True)};COMMIT"
