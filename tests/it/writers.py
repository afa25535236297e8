"""Writers: applications that change the databases while twsync runs.

Each side changes only rows of its own (an even id belongs to a, an odd one to b; elsewhere the rows
say whose they are), so that there is one right end state and no conflict.
"""

import contextlib
import threading
import time

import psycopg2

from values import ARRAYS, KEYS, ODD_TEXTS, SCALARS, columns_of, random_text

# Errors that any application meets: serialization failure, deadlock, lock or statement time-out.
PASSING = {"40001", "40P01", "55P03", "57014"}

MIXED = '"Odd.Schema ""q"""."Mixed ""Case"".Table"'


class Writer(threading.Thread):
    """Runs transactions until it is stopped; connects again when the server went away.

    work(cur) does the statements of one transaction.  acknowledged counts the commits that the
    server confirmed; an error that no application should meet ends the writer and fails the test.
    """

    def __init__(self, node, work, per_second=200):
        super().__init__(daemon=True)
        self.node, self.work, self.interval = node, work, 1 / per_second
        self.acknowledged, self.error, self._ended = 0, None, threading.Event()
        self.start()

    def run(self):
        while not self._ended.is_set():
            try:
                with contextlib.closing(self.node.connect(autocommit=False)) as conn:
                    while not self._ended.is_set():
                        self._one(conn)
                        self._ended.wait(self.interval)
            except (psycopg2.OperationalError, psycopg2.InterfaceError):
                time.sleep(0.05)        # the server is away
            except Exception as error:  # noqa: BLE001 - shown by finish()
                self.error = error
                return

    def _one(self, conn):
        try:
            with conn, conn.cursor() as cur:
                self.work(cur)
            self.acknowledged += 1
        except psycopg2.Error as error:
            if error.pgcode is None:
                raise psycopg2.OperationalError("connection lost") from error
            if error.pgcode not in PASSING:
                raise

    def finish(self):
        self._ended.set()
        self.join(90)
        if self.error:
            raise AssertionError(f"the writer of node {self.node.letter} met {self.error!r}")
        assert not self.is_alive(), f"the writer of node {self.node.letter} does not come back"
        return self.acknowledged


@contextlib.contextmanager
def writing(*writers):
    """Ends the writers when the block ends, however it ends."""
    try:
        yield writers
    except BaseException:
        for writer in writers:
            writer._ended.set()
        raise
    for writer in writers:
        writer.finish()


def insert(cur, table, row, more=""):
    names = ", ".join('"%s"' % name.replace('"', '""').replace("%", "%%") for name in row)
    cur.execute(f"INSERT INTO {table} ({names}) {more} VALUES ({', '.join(['%s'] * len(row))})",
                list(row.values()))


def load_everything(node):
    """The rows of everything.sql before twsync starts: all values of values.py and one of each more."""
    scalars = columns_of(node, "ev.scalar", SCALARS)
    arrays = columns_of(node, "ev.arrays", ARRAYS)
    with node.transaction() as cur:
        for table, pools in (("ev.scalar", scalars), ("ev.arrays", arrays)):
            for i in range(max(map(len, pools.values()))):
                insert(cur, table, {"id": i + 1, **{c: pool[i % len(pool)] for c, pool in pools.items()}})
            insert(cur, table, {"id": 1000})
        for table, keys in KEYS.items():
            for key in keys:
                insert(cur, f"ev.{table}", {"k": key, "v": "first " + key})
        for i, text in enumerate(ODD_TEXTS):
            insert(cur, MIXED, {"Id": i, "Sp ace": text, "ünï·ço∂é\U0001F600": text, "select": None})
            insert(cur, "ev.keyless", {"side": "ab"[i % 2], "n": i, "t": text, "f": "-0", "j": "{ }"})
            insert(cur, "ev.key_three", {"a": i, "b": text, "c": "2024-03-04", "v": text})
        cur.execute("INSERT INTO ev.keyless SELECT side, n, t, f, j, p FROM ev.keyless WHERE n < 9")
        cur.execute("INSERT INTO ev.keyless DEFAULT VALUES")
        cur.execute("INSERT INTO ev.gen (id, a, name) SELECT g, g, 'Name ' || g FROM generate_series(1, 9) g")
        cur.execute("INSERT INTO ev.gen (id, a, name) VALUES (10, -1, NULL)")
        for table in ("ident_always", "ident_default"):
            cur.execute(f"INSERT INTO ev.{table} (v) SELECT 'v' || g FROM generate_series(1, 7) g")
        cur.execute("INSERT INTO ev.serials (v) SELECT 'v' || g FROM generate_series(1, 6) g")
        cur.execute("INSERT INTO ev.defaults (name) VALUES ('x'), ('é'), ('NULL')")
        cur.execute("""INSERT INTO ev.part SELECT g, (ARRAY['eu', 'uk', 'us', 'cn', 'br'])[1 + g % 5],
                       '2015-01-01'::date + g * 30, 'v' || g FROM generate_series(1, 200) g""")
        cur.execute("INSERT INTO ev.part_hash SELECT g, 'v' || g FROM generate_series(1, 40) g")
        for i in range(1, 5):
            insert(cur, "ev.toast", {"id": i, "small": i, "big": random_text(i, 20000), "raw": b"\\\0" * 5000})
            insert(cur, "ev.toast_key", {"k": f"{'ab'[i % 2]}{random_text(i, 2500)}", "small": i,
                                         "big": random_text(-i, 9000)})
        insert(cur, "ev.toast", {"id": 5, "small": 5, "big": random_text("mb", 1 << 20), "raw": None})
        cur.execute("INSERT INTO ev.customer SELECT g, 'c' || g, nullif(g / 2 * 2 - 2, 0) FROM generate_series(2, 20, 2) g")
        cur.execute("INSERT INTO ev.customer SELECT g, 'c' || g, NULL FROM generate_series(1, 19, 2) g")
        cur.execute("INSERT INTO ev.orders SELECT g, g, 'o' FROM generate_series(1, 20) g")
        cur.execute("INSERT INTO ev.item SELECT g, l, 'i' FROM generate_series(1, 20) g, generate_series(1, 3) l")
        cur.execute("INSERT INTO ev.item_note SELECT orders * 10, orders, line FROM ev.item WHERE line = 2")
        cur.execute("INSERT INTO ev.cycle_1 SELECT g, g FROM generate_series(1, 6) g")
        cur.execute("INSERT INTO ev.cycle_2 SELECT g, 7 - g FROM generate_series(1, 6) g")
        cur.execute("INSERT INTO ev.booking SELECT g, int4range(g * 10, g * 10 + 5) FROM generate_series(1, 8) g")
        cur.execute("INSERT INTO ev.rank SELECT g, g FROM generate_series(1, 40) g")
        cur.execute("""INSERT INTO ev.checks SELECT g, 'c' || g, g, g + 5, ARRAY['t' || g, NULL],
                       jsonb_build_object('g', g) FROM generate_series(1, 40) g""")
        cur.execute("INSERT INTO ev.parent SELECT g, 'p' || g FROM generate_series(1, 8) g")
        cur.execute("INSERT INTO ev.child SELECT g, 'c' || g, 'x' FROM generate_series(11, 18) g")
        for table in ("trunc_a", "trunc_b"):
            cur.execute(f"INSERT INTO ev.{table} (v) VALUES ('1'), ('2')")


class Everything:
    """Random transactions of one side on all tables of everything.sql: the work of a Writer."""

    def __init__(self, node, rng, after_id=10_000):
        self.rng, self.side = rng, node.letter
        self.parity = "ab".index(node.letter)
        self.last_id = after_id
        self.scalars = columns_of(node, "ev.scalar", SCALARS)
        self.arrays = columns_of(node, "ev.arrays", ARRAYS)
        self.changes = [getattr(self, name) for name in dir(self) if name.startswith("do_")]

    def __call__(self, cur):
        for _ in range(self.rng.choice((1, 1, 2, 5))):
            if self.rng.random() < 0.1:     # something that is taken back
                cur.execute("SAVEPOINT s")
                self.rng.choice(self.changes)(cur)
                cur.execute("ROLLBACK TO s")
            self.rng.choice(self.changes)(cur)
        if self.rng.random() < 0.05:
            cur.connection.rollback()

    def new_id(self):
        self.last_id += 2
        return self.last_id + self.parity

    def pick(self, table, column="id"):
        """An SQL expression: one of our ids (or NULL)."""
        return (f"(SELECT {column} FROM {table} WHERE mod({column}, 2) = {self.parity} "
                f"ORDER BY {column} DESC LIMIT 1 OFFSET {self.rng.randrange(30)})")

    def text(self):
        return self.rng.choice(ODD_TEXTS) if self.rng.random() < 0.5 else f"t{self.rng.random()}"

    def random_row(self, pools, columns):
        return {c: None if self.rng.random() < 0.1 else self.rng.choice(pools[c]) for c in columns}

    def wide(self, cur, table, pools):
        kind = self.rng.randrange(4)
        if kind < 2:
            insert(cur, table, {"id": self.new_id(), **self.random_row(pools, pools)})
        elif kind == 2:
            row = self.random_row(pools, self.rng.sample(sorted(pools), self.rng.choice((1, 3, 12))))
            sets = ", ".join(f"{column} = %s" for column in row)
            cur.execute(f"UPDATE {table} SET {sets} WHERE id = {self.pick(table)}", list(row.values()))
        else:
            cur.execute(f"DELETE FROM {table} WHERE id = {self.pick(table)}")

    def do_scalar(self, cur):
        self.wide(cur, "ev.scalar", self.scalars)

    do_scalar_again = do_scalar

    def do_arrays(self, cur):
        self.wide(cur, "ev.arrays", self.arrays)

    def do_keys(self, cur):
        table = self.rng.choice(sorted(KEYS))
        old, new = (self.rng.choice(KEYS[table][self.parity::2]) for _ in range(2))
        kind = self.rng.randrange(3)
        if kind == 0:
            cur.execute(f"INSERT INTO ev.{table} VALUES (%s, %s) ON CONFLICT (k) DO UPDATE SET v = excluded.v",
                        (new, self.text()))
        elif kind == 1:
            cur.execute(f"DELETE FROM ev.{table} WHERE k = %s", (old,))
        else:
            cur.execute(f"UPDATE ev.{table} SET k = %s, v = %s WHERE k = %s "
                        f"AND (k = %s OR NOT EXISTS (SELECT FROM ev.{table} WHERE k = %s))",
                        (new, self.text(), old, new, new))

    def do_key_three(self, cur):
        a, text = self.new_id(), self.text()
        cur.execute("INSERT INTO ev.key_three VALUES (%s, %s, '2024-03-04', 'v')", (a, text))
        cur.execute(f"UPDATE ev.key_three SET b = b || '!', c = 'infinity' WHERE a = {self.pick('ev.key_three', 'a')}")

    def do_mixed(self, cur):
        insert(cur, MIXED, {"Id": self.new_id(), "Sp ace": self.text(), "percent%s$1": self.text()})
        chosen = self.pick(MIXED, '"Id"')
        cur.execute(f'UPDATE {MIXED} SET "ünï·ço∂é\U0001F600" = %s, "quo""te" = -1.50 WHERE "Id" = {chosen}',
                    (self.text(),))

    def do_gen(self, cur):
        cur.execute("INSERT INTO ev.gen (id, a, name) VALUES (%s, %s, %s)",
                    (self.new_id(), self.rng.randrange(10**6), self.text()))
        cur.execute(f"UPDATE ev.gen SET a = a + 1, name = NULL WHERE id = {self.pick('ev.gen')}")
        cur.execute(f"UPDATE ev.gen SET name = 'N' WHERE id = {self.pick('ev.gen')}")

    def do_identities(self, cur):
        table = self.rng.choice(("ev.ident_always", "ev.ident_default", "ev.serials"))
        cur.execute(f"INSERT INTO {table} (id, v) OVERRIDING SYSTEM VALUE VALUES (%s, 'x')", (self.new_id(),))
        cur.execute(f"UPDATE {table} SET v = %s WHERE id = {self.pick(table)}", (self.text(),))
        cur.execute(f"DELETE FROM {table} WHERE id = {self.pick(table)}")

    def do_defaults(self, cur):
        cur.execute("INSERT INTO ev.defaults (id) VALUES (%s)", (self.new_id(),))
        cur.execute(f"UPDATE ev.defaults SET tags = NULL, mood = 'sad' WHERE id = {self.pick('ev.defaults')}")

    def do_part(self, cur):
        region, day = self.rng.choice(("eu", "uk", "us", "cn")), self.rng.choice(("2001-02-03", "2023-04-05"))
        kind = self.rng.randrange(3)
        if kind == 0:
            cur.execute("INSERT INTO ev.part VALUES (%s, %s, %s, %s)", (self.new_id(), region, day, self.text()))
        elif kind == 1:     # may move it to another partition
            cur.execute(f"UPDATE ev.part SET region = %s, at = %s, v = %s WHERE id = {self.pick('ev.part')}",
                        (region, day, self.text()))
        else:
            cur.execute(f"DELETE FROM ev.part WHERE id = {self.pick('ev.part')}")
            cur.execute(f"UPDATE ev.part_hash SET v = %s WHERE id = {self.pick('ev.part_hash')}", (self.text(),))
            cur.execute("INSERT INTO ev.part_hash VALUES (%s)", (self.new_id(),))

    def do_keyless(self, cur):
        one = "ctid = (SELECT ctid FROM ev.keyless WHERE side = %s LIMIT 1 OFFSET %s)"
        where = (self.side, self.rng.randrange(10))
        cur.execute("INSERT INTO ev.keyless SELECT %s, %s, %s, 'NaN', '{\"a\" : 1}', '(1,-0)' FROM generate_series(1, %s)",
                    (self.side, self.rng.randrange(5), self.rng.choice(ODD_TEXTS), self.rng.randrange(1, 4)))
        kind = self.rng.randrange(3)
        if kind == 0:
            cur.execute(f"DELETE FROM ev.keyless WHERE {one}", where)
        elif kind == 1:
            cur.execute(f"UPDATE ev.keyless SET n = n + 1 WHERE {one}", where)
        elif kind == 2 and self.rng.random() < 0.2:
            cur.execute("DELETE FROM ev.keyless WHERE side = %s AND n = %s", (self.side, self.rng.randrange(5)))

    def do_toast(self, cur):
        kind = self.rng.randrange(8)
        if kind == 0:
            size = self.rng.choice((3000, 30000, 1 << 20))
            insert(cur, "ev.toast", {"id": self.new_id(), "small": 0, "big": random_text(self.rng.random(), size)})
        elif kind == 1:
            cur.execute(f"UPDATE ev.toast SET big = %s WHERE id = {self.pick('ev.toast')}",
                        (random_text(self.rng.random(), 8000),))
        elif kind == 2:
            cur.execute("INSERT INTO ev.toast_key VALUES (%s, 0, %s)",
                        (self.side + random_text(self.rng.random(), 2500), random_text(self.rng.random(), 5000)))
        elif kind == 3:
            cur.execute("UPDATE ev.toast_key SET small = small + 1 WHERE left(k, 1) = %s", (self.side,))
        elif kind == 4:
            cur.execute(f"DELETE FROM ev.toast WHERE id = {self.pick('ev.toast')} AND length(big) > 1000000")
        else:
            cur.execute(f"UPDATE ev.toast SET small = small + 1 WHERE id = {self.pick('ev.toast')}")

    def do_foreign_keys(self, cur):
        n, kind = self.new_id(), self.rng.randrange(4)
        if kind < 2:
            cur.execute(f"INSERT INTO ev.customer VALUES (%s, %s, {self.pick('ev.customer')})", (n, self.text()))
            cur.execute("INSERT INTO ev.orders VALUES (%s, %s, 'o')", (n, n))
            cur.execute("INSERT INTO ev.item SELECT %s, g, 'i' FROM generate_series(1, 4) g", (n,))
            cur.execute("INSERT INTO ev.item_note VALUES (%s, %s, 2)", (n, n))
        elif kind == 2:     # takes orders, items and notes along
            cur.execute(f"DELETE FROM ev.customer c WHERE id = {self.pick('ev.customer')} "
                        "AND NOT EXISTS (SELECT FROM ev.customer x WHERE x.boss = c.id)")
        else:
            cur.execute("INSERT INTO ev.cycle_1 VALUES (%s, %s)", (n, n))
            cur.execute("INSERT INTO ev.cycle_2 VALUES (%s, %s)", (n, n))
            cur.execute(f"UPDATE ev.cycle_1 SET other = NULL WHERE id = {self.pick('ev.cycle_1')}")

    def do_constraints(self, cur):
        n = self.new_id()
        cur.execute("INSERT INTO ev.booking VALUES (%s, int4range(%s, %s))", (n, n * 10, n * 10 + 10))
        cur.execute("INSERT INTO ev.checks VALUES (%s, %s, %s, %s, '{a,b}', '{\"k\": [1]}')",
                    (n, f"{self.side}{n}", n, n + 1))
        cur.execute(f"UPDATE ev.checks SET high = high + 1, code = code || 'x' WHERE id = {self.pick('ev.checks')} "
                    "AND length(code) < 11")
        cur.execute(f"DELETE FROM ev.booking WHERE id = {self.pick('ev.booking')}")

    def do_rank(self, cur):
        """Our ranks change places in one statement, which only a deferrable key allows."""
        cur.execute("UPDATE ev.rank SET pos = 42 - pos - %s WHERE id %% 2 = %s AND id <= 40", (self.parity * 2, self.parity))

    def do_inheritance(self, cur):
        n = self.new_id()
        cur.execute("INSERT INTO ev.parent VALUES (%s, 'p')", (n,))
        cur.execute("INSERT INTO ev.child VALUES (%s, 'c', 'x')", (n,))
        cur.execute(f"UPDATE ev.parent SET v = %s WHERE id = {self.pick('ev.child')}", (self.text(),))

    def do_truncate(self, cur):
        table = f"ev.trunc_{self.side}"
        if self.rng.random() < 0.3:
            cur.execute(f"TRUNCATE {table} RESTART IDENTITY")
        cur.execute(f"INSERT INTO {table} (v) SELECT 'v' || g FROM generate_series(1, 3) g")
