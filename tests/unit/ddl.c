/* ddl.c: what of the stream a copy holds (18), and what has become of names (26).  No server. */
#define TWSYNC_LIBRARY
#include "../../twsync.c"

#include "../t.h"

/* ---- a snapshot ---- */

static void test_snapshot(void)
{
    const char *one = "100:105:101,103";
    static const struct {
        uint32_t xid;
        bool seen;
    } cases[] = {{99, true}, {100, true}, {101, false}, {102, true}, {103, false}, {104, true},
                 {105, false}, {2000000, false}, {3, true}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        CHECK(snapshot_sees(one, cases[i].xid) == cases[i].seen);
    CHECK(snapshot_sees("7:7:", 6) && !snapshot_sees("7:7:", 7));
}

/* Of 64 bits the stream has 32: before and after they begin anew. */
static void test_snapshot_turn(void)
{
    const char *over = "4294967290:4294967300:4294967291,4294967298";
    CHECK(snapshot_sees(over, 4294967289U) && snapshot_sees(over, 4294967290U));
    CHECK(!snapshot_sees(over, 4294967291U) && snapshot_sees(over, 0));
    CHECK(!snapshot_sees(over, 2) && snapshot_sees(over, 3));
    CHECK(!snapshot_sees(over, 4) && !snapshot_sees(over, 5000));
}

static void test_skips(void)
{
    struct rel rel = {.skip_until_lsn = 500};
    CHECK(rel_skips(&rel, 499, 9) && !rel_skips(&rel, 500, 1));
    rel.seen = "8:10:8";
    CHECK(rel_skips(&rel, 499, 7) && !rel_skips(&rel, 499, 8) && rel_skips(&rel, 499, 9));
    CHECK(!rel_skips(&rel, 499, 10) && !rel_skips(&rel, 600, 7));
}

/* ---- names ---- */

#define TABLE(op_, obj_, from, to)                                                                 \
    {.op = op_, .obj = obj_, .of_table = true, .old_table = from, .new_table = to}
#define PART(op_, obj_, from, to) {.op = op_, .obj = obj_, .was = from, .name = to}

static void became(const struct ddl_step *steps, int n, const char *table, const char *now,
                   const char *obj)
{
    const char *is = table, *by;
    ddl_walk_table(steps, n, &is, &by);
    CHECK(now ? is && str_is(is, now) : !is);
    CHECK(obj ? by && str_is(by, obj) : !by);
}

static void test_tables(void)
{
    const struct ddl_step swap[] = {TABLE('r', "r1", "t", "x"), TABLE('r', "r2", "u", "t"),
                                    TABLE('r', "r1", "x", "u")};
    became(swap, 3, "t", "u", "r1");
    became(swap, 3, "u", "t", "r2");
    became(swap, 3, "v", "v", NULL);
    const struct ddl_step again[] = {TABLE('d', "r1", "t", "t"), TABLE('r', "r3", "n", "t")};
    became(again, 2, "t", NULL, "r1");
    became(again, 2, "n", "t", "r3");
    became(NULL, 0, "t", "t", NULL);
}

static void part(const struct ddl_step *steps, int n, const char *obj, const char *name,
                 const char *now)
{
    const char *is = ddl_walk_part(steps, n, obj, name);
    CHECK(now ? is && str_is(is, now) : !is);
}

static void test_columns(void)
{
    const struct ddl_step steps[] = {
        PART('r', "r1", "a", "x"), PART('r', "r1", "b", "a"), PART('r', "r1", "x", "b"),
        PART('d', "r1", "c", NULL), PART('a', "r1", "5", "c"), PART('r', "r2", "d", "e"),
        PART('t', "r1", NULL, "d")};
    int n = (int) (sizeof steps / sizeof *steps);
    part(steps, n, "r1", "a", "b");
    part(steps, n, "r1", "b", "a");
    part(steps, n, "r1", "c", NULL);   /* what bears its name now is another */
    part(steps, n, "r1", "d", "d");
    part(steps, n, "r2", "d", "e");
    part(steps + 5, n - 5, "r1", "c", "c");
}

static const struct t_test tests[] = {
    {"a snapshot", test_snapshot},
    {"a snapshot where xids begin anew", test_snapshot_turn},
    {"what a copy holds", test_skips},
    {"tables", test_tables},
    {"columns", test_columns},
};

int main(int argc, char **argv)
{
    return t_run(tests, sizeof tests / sizeof *tests, argc, argv);
}
