"""Settling: random writers on ten hot keys, on both sides at once; at the end both sides are the same."""

import os

import pytest

import compare
import writers
from wait import wait_for

SECONDS = float(os.environ.get("TWSYNC_TEST_SECONDS", "2"))
ENOUGH = 20     # conflicts on each side

# forward, reverse, named winner
PAIRS = [("overwrite", "ignore", None), ("ignore", "overwrite", None), ("latest", "latest", None),
         ("overwrite", "overwrite", "a"), ("ignore", "ignore", "b")]


class Hot:
    """Counters, flags, inserts and deletes on ten keys that both sides fight for."""

    def __init__(self, rng):
        self.rng = rng

    def __call__(self, cur):
        key = self.rng.randrange(10)
        act = self.rng.choice(["count", "count", "flag", "flag", "both", "text", "put", "drop"])
        if act == "count":
            cur.execute("UPDATE hot SET n = n + 1 WHERE id = %s", (key,))
        elif act == "flag":
            cur.execute("UPDATE hot SET f = NOT f WHERE id = %s", (key,))
        elif act == "both":
            cur.execute("UPDATE hot SET n = n - 1, f = NOT f WHERE id = %s", (key,))
        elif act == "text":
            cur.execute("UPDATE hot SET v = %s WHERE id = %s", (self.rng.choice("abc"), key))
        elif act == "put":
            cur.execute("INSERT INTO hot VALUES (%s, 0, false, 'a') ON CONFLICT DO NOTHING", (key,))
        else:
            cur.execute("DELETE FROM hot WHERE id = %s", (key,))


def settled(job):
    """Every recorded conflict of both tasks is settled."""
    left = [node.one("SELECT count(*) FROM twsync.conflict WHERE settled IS NULL") for node in job.pair.nodes]
    return left == [0, 0]


def set_up(pair, make_job, forward, reverse, winner, **more):
    pair.a.sql("CREATE TABLE hot (id int PRIMARY KEY, n int, f bool, v text)")
    pair.a.sql("INSERT INTO hot SELECT g, 0, false, 'a' FROM generate_series(0, 9) g")
    job = make_job(pair, forward={"on_conflict": forward, **more}, reverse={"on_conflict": reverse, **more})
    if winner:
        job.change(job={"winner": winner})
    return job.start()


def conflicts(pair):
    return [node.one("SELECT count(*) FROM twsync.conflict") for node in pair.nodes]


def rows_settled(job):
    """How many rows settling has written over; how soon it must depends on the machine."""
    return sum(task["settled"] for task in job.status()["tasks"])


def enough(job):
    """Both tasks have counted enough: settling records some in the same tables that count for no task."""
    return all(task["conflicts"] >= ENOUGH for task in job.status()["tasks"])


def fight(pair, job, rng, seconds, kill=False):
    """Writes on both sides for a while, and until both have recorded enough conflicts, some that part the sides."""
    works = [writers.Writer(node, Hot(rng), 150) for node in pair.nodes]
    with writers.writing(*works):
        for _ in range(3 if kill else 1):
            goals = [w.acknowledged + seconds * 100 / (3 if kill else 1) for w in works]
            wait_for(lambda: any(w.error for w in works) or all(w.acknowledged >= g for w, g in zip(works, goals)),
                     "writes", 120)
            if kill:
                job.kill()
                job.start()
        wait_for(lambda: any(w.error for w in works) or min(conflicts(pair)) >= ENOUGH, "conflicts on both sides", 120)
        if not kill:
            wait_for(lambda: any(w.error for w in works) or enough(job), "conflicts counted by both tasks", 120)
            wait_for(lambda: any(w.error for w in works) or rows_settled(job), "sides that part and are settled", 120)


def same_at_last(job):
    job.wait_synced()
    wait_for(lambda: settled(job), "all conflicts settled")
    job.wait_synced()
    wait_for(lambda: settled(job), "all conflicts settled")
    compare.assert_contents(job.pair)


@pytest.mark.rung("origin")
@pytest.mark.parametrize("forward, reverse, winner, merge", [(*pair, "columns") for pair in PAIRS] + [
    (*pair, "rows") for pair in (PAIRS[0], PAIRS[4])])
def test_hot_keys(pair, make_job, rng, forward, reverse, winner, merge):
    job = set_up(pair, make_job, forward, reverse, winner, merge=merge)
    fight(pair, job, rng, SECONDS)
    same_at_last(job)
    assert enough(job)
    assert rows_settled(job) > 0


@pytest.mark.rung("origin")
@pytest.mark.parametrize("forward, reverse, winner", PAIRS[:3])
def test_hot_keys_killed(pair, make_job, rng, forward, reverse, winner):
    job = set_up(pair, make_job, forward, reverse, winner)
    fight(pair, job, rng, SECONDS, kill=True)
    same_at_last(job)
