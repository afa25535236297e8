/* The journal of keys that were written: what is read of it, whole, cut off, and spoilt. */
#define TWSYNC_LIBRARY
#include "../../twsync.c"

#include "../t.h"

static const char whole[] =
    "T\003s\0t\0id\0K\0015\0K\001tab\there\nand \"more\"\0"
    "T\004s\0two\0a\0b\0K\002x\0\0"
    "T\002s\0bag\0W\0"
    "T\003s\0t\0id\0K\0015\0";

enum { WHOLE = sizeof whole - 1 };

static struct changed_table *table_of(const struct changed *c, const char *name)
{
    struct changed_table *t = c->tables;
    while (t && !str_is(t->name, name)) t = t->next;
    return t;
}

static void test_read(void)
{
    struct changed c = {.gap = false};
    CHECK(changed_read(&c, whole, whole + WHOLE));
    CHECK(!c.gap);
    struct changed_table *t = table_of(&c, "t"), *two = table_of(&c, "two");
    struct changed_table *bag = table_of(&c, "bag");
    CHECK(t && t->n == 3 && !t->whole && str_is(t->keys[0][0], "5"));
    CHECK(t && str_is(t->keys[1][0], "tab\there\nand \"more\""));
    CHECK(two && two->n == 1 && str_is(two->keys[0][0], "x") && str_is(two->keys[0][1], ""));
    CHECK(bag && bag->whole && !bag->n);
    arena_free(&c.arena);
}

/* Whoever changes the key of a table meanwhile has all of it compared. */
static void test_other_key(void)
{
    static const char text[] = "T\003s\0t\0id\0K\0015\0T\003s\0t\0no\0K\0016\0G\0";
    struct changed c = {.gap = false};
    CHECK(changed_read(&c, text, text + sizeof text - 1));
    struct changed_table *t = table_of(&c, "t");
    CHECK(t && t->whole && c.gap);
    arena_free(&c.arena);
}

/* Cut off anywhere it is either a shorter one or refused; in memory of exactly that size. */
static void test_cut(void)
{
    int good = 0;
    for (size_t n = 0; n <= WHOLE; n++) {
        struct changed c = {.gap = false};
        char *copy = malloc(n + !n);
        memcpy(copy, whole, n);
        good += changed_read(&c, copy, copy + n);
        free(copy);
        arena_free(&c.arena);
    }
    CHECK(good == 10);  /* after each of its nine records, and before the first */
}

static void test_spoilt(void)
{
    uint32_t seed = 4711;
    for (int i = 0; i < 20000; i++) {
        struct changed c = {.gap = false};
        char copy[WHOLE];
        memcpy(copy, whole, WHOLE);
        for (int k = 0; k < 3; k++) {
            seed = seed * 1664525 + 1013904223;
            copy[(seed >> 8) % WHOLE] = (char) (seed >> 24);
        }
        (void) changed_read(&c, copy, copy + WHOLE);
        arena_free(&c.arena);
    }
    CHECK(true);  /* the sanitizers judge */
}

static const struct t_test tests[] = {
    {"read", test_read},
    {"another key", test_other_key},
    {"cut off", test_cut},
    {"spoilt", test_spoilt},
};

int main(int argc, char **argv)
{
    return t_run(tests, sizeof tests / sizeof *tests, argc, argv);
}
