"""bench.py: twsync beside its peers, on the same two servers, in the same run.

    ./build.sh bench [CASE...]

One line per case on standard output; what it does meanwhile, and the machine, on standard error.
Exit code 1 if a case failed, or if a target differed from the source afterwards.

How a backlog is timed.  The target gets a database per system and run, all with the rows of the
source.  Every system makes its slot there and then rests.  The backlog is written on the source,
and a sentinel row after it.  Then one system at a time is started, nothing else runs, and the time
is taken until the sentinel is seen on the target, asked for every 10 ms.  The order rotates from
run to run; the medians are shown.  Before each start both servers make a checkpoint.
The floor is the same backlog read by twsync's reader and thrown away (drain.c).

tpcb           200,000 transactions of pgbench, 4 clients, keys as replica identity
tpcb-full      the same with REPLICA IDENTITY FULL
inserts        300,000 transactions of one row
bigtx deletes  one transaction that updates, deletes 300,000 rows
hot            one row updated 100,000 times
far            tpcb with the target behind a proxy that delays 10 ms each way (delay.c); the time is
               that of the stream, without the start
latency-RATE   from a commit to its row on the target, at RATE tx/s for 10 s, with no backlog before
twoway         a backlog of both sides, then how far behind it is after 10 s of 1,000 tx/s on each
copy           the three that follow
copy-big       pgbench at scale 50: one table of 5,000,000 rows, 670 MB
copy-mixed     200 tables of all sizes, 500 MB, with keys, indexes, foreign keys; some have no key
copy-toast     5,000 rows of 16 to 100 kB that cannot be compressed, 300 MB

How a copy is timed.  Each system copies the source into a new, empty database, from the start of
its program until all rows, keys, indexes and constraints are there and the tables are analyzed; 4
workers each.  Nothing is written meanwhile.  twsync: a job until forward is Running.  pgcopydb:
clone.  dump: pg_dump -Fd, pg_restore, vacuumdb -Z.  native: the whole schema by pg_dump, then a
subscription, until every table is in step, then vacuumdb -Z.  pipe: psql's COPY TO STDOUT | COPY
FROM STDIN, 4 at once over ranges of the tables, which are there but have no keys; floor: the same
with pg_restore of keys, indexes and constraints, and vacuumdb -Z.  Each copy is compared with the
source, rows and structure, and dropped.

ratio_PEER is peer / twsync, of seconds or milliseconds; ratio_floor is twsync / floor.
The settings of the servers, the same for all, are in servers.py.

TWSYNC_BENCH_SCALE   size of the cases (default 1.0)
TWSYNC_BENCH_RUNS    runs of each system (default 3)
TWSYNC_BENCH_SYSTEMS only these systems in the cases of copies: twsync,pgcopydb,dump,native,floor
TWSYNC_BENCH_KEEP    keep the servers' folders and logs
"""

import os
import signal
import sys
import traceback

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "it"))

from backlog import backlog_case, far_case               # noqa: E402
from copying import copy_case                            # noqa: E402
from live import latency_case                            # noqa: E402
from loads import COPY_LOADS, LOADS                      # noqa: E402
from servers import Bench, say, say_machine              # noqa: E402
from twoway import twoway_case                            # noqa: E402

CASES = {**{case: backlog_case for case in LOADS}, "far": far_case,
         "latency-100": latency_case, "latency-1000": latency_case,
         "twoway": twoway_case, **{case: copy_case for case in COPY_LOADS}}
GROUPS = {"copy": list(COPY_LOADS)}


def main(names):
    names = [case for name in names for case in GROUPS.get(name, [name])]
    unknown = [name for name in names if name not in CASES]
    if unknown:
        sys.exit(f"bench.py: no case \"{unknown[0]}\"; there are: {', '.join([*CASES, *GROUPS])}")
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sig, lambda number, frame: sys.exit(128 + number))
    with Bench() as bench:
        say_machine()
        for name in names or CASES:
            say(name)
            try:
                bench.begin_case(name, pglogical=name not in COPY_LOADS)
                CASES[name](bench, name)
                bench.end_case()
            except Exception:
                traceback.print_exc()
                sys.exit(f"bench.py: {name} failed: no figures")


if __name__ == "__main__":
    main(sys.argv[1:])
