"""Many tables: what grows with their number stays in proportion."""

import os

TABLES = int(os.environ.get("TWSYNC_TEST_TABLES", 1000))


def test_many_tables(pair, make_job):
    """Made, copied and joined, empty ones and small ones; a row of any of them arrives."""
    for first in range(0, TABLES, 500):
        pair.a.sql("DO $$ BEGIN FOR n IN {}..{} LOOP EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY, v text)', n); "
                   "END LOOP; END $$".format(first, min(first + 500, TABLES) - 1))
    pair.a.sql("INSERT INTO t7 SELECT generate_series(1, 10)")
    job = make_job(pair)
    job.start(wait=())
    job.wait_state("forward", "Running", 600)
    job.wait_state("reverse", "Running", 600)
    pair.a.sql(f"INSERT INTO t{TABLES - 1} VALUES (1, 'a')")
    pair.b.sql("INSERT INTO t0 VALUES (2, 'b')")
    job.wait_synced()
    assert pair.b.one(f"SELECT v FROM t{TABLES - 1}") == "a" and pair.a.one("SELECT v FROM t0") == "b"
    assert pair.b.one("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == TABLES
    for name in ("t0", "t7", f"t{TABLES - 1}"):
        assert pair.a.sql(f"SELECT * FROM {name} ORDER BY 1") == pair.b.sql(f"SELECT * FROM {name} ORDER BY 1")
