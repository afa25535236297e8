/* stream.c: from bytes to decisions: messages (15), statements (18), conflicts (20, 22), positions
 * and states (26).  No server: tests/data/pgoutput holds what servers sent. */
#define TWSYNC_LIBRARY
#include "../../twsync.c"

#include "../t.h"
#include "message.h"
#include "rel.h"

#include <glob.h>

/* ---- captured messages ---- */

struct captured {
    char *data;
    size_t len;
    char *text;
};

static struct captured captured[1000];
static int ncaptured;

static void add_captured(char *line)
{
    char *tab = strchr(line, '\t');
    if (!tab || ncaptured == (int) (sizeof captured / sizeof *captured)) return;
    struct captured *c = &captured[ncaptured++];
    c->len = (size_t) (tab - line) / 2;
    c->data = mem_resize(NULL, c->len);
    for (size_t i = 0; i < c->len; i++) {
        unsigned byte = 0;
        sscanf(line + 2 * i, "%2x", &byte);
        c->data[i] = (char) byte;
    }
    c->text = mem_resize(NULL, strlen(tab));
    memcpy(c->text, tab + 1, strlen(tab));
    c->text[strcspn(c->text, "\n")] = '\0';
}

static void load_captured(void)
{
    glob_t found;
    if (glob("tests/data/pgoutput/*.hex", 0, NULL, &found)) return;
    for (size_t i = 0; i < found.gl_pathc; i++) {
        FILE *f = fopen(found.gl_pathv[i], "r");
        char *line = NULL;
        size_t size = 0;
        while (f && getline(&line, &size, f) > 0) add_captured(line);
        free(line);
        if (f) fclose(f);
    }
    globfree(&found);
}

static void free_captured(void)
{
    for (int i = 0; i < ncaptured; i++) {
        free(captured[i].data);
        free(captured[i].text);
    }
}

/* Decode a copy that ends where its memory ends.  Its text goes to *text, if it is sound. */
static status decode(const char *data, size_t len, struct buf *text, size_t *allocated)
{
    struct arena a = {0};
    struct tw_error e = {0};
    struct msg m;
    char *copy = mem_resize(NULL, len + 1);
    if (len) memcpy(copy, data, len);
    copy[len] = '\0';
    status s = msg_decode(copy, len, &a, &m, &e);
    CHECK(s == e.code && (s == TW_OK || s == TW_EPROTO));
    CHECK(s != TW_OK || message_sound(&m, copy, len));
    if (s == TW_OK && text) message_text(text, &m);
    if (allocated) *allocated = a.total;
    arena_free(&a);
    free(copy);
    return s;
}

static void test_captured(void)
{
    struct buf kinds = {0};
    for (int i = 0; i < ncaptured; i++) {
        struct buf text = {0};
        CHECK(decode(captured[i].data, captured[i].len, &text, NULL) == TW_OK);
        CHECK_STR(buf_cstr(&text), captured[i].text);
        if (!strchr(buf_cstr(&kinds), captured[i].data[0])) buf_char(&kinds, captured[i].data[0]);
        buf_free(&text);
    }
    CHECK(ncaptured > 300 && kinds.len == 10); /* B C D I M O R T U Y */
    buf_free(&kinds);
}

static bool whole_only(const struct captured *c)
{
    return c->data[0] != 'Y' && c->data[0] != 'M'; /* these are not read further */
}

static void test_cut(void)
{
    for (int i = 0; i < ncaptured; i++) {
        const struct captured *c = &captured[i];
        int accepted = 0;
        for (size_t n = 0; n < c->len; n++) accepted += decode(c->data, n, NULL, NULL) == TW_OK;
        CHECK(!whole_only(c) || accepted == 0);
    }
}

static void test_trailing(void)
{
    for (int i = 0; i < ncaptured; i++) {
        struct buf more = {0};
        buf_bytes(&more, captured[i].data, captured[i].len);
        buf_char(&more, '\0');
        CHECK(!whole_only(&captured[i]) || decode(more.data, more.len, NULL, NULL) == TW_EPROTO);
        buf_free(&more);
    }
}

static void mutate(struct buf *b)
{
    static const unsigned char odd[] = {0, 1, 0x7f, 0x80, 0xff, 'n', 'u', 't', 'b', 'N', 'K', 'O'};
    size_t at = (size_t) random() % b->len, n = 1 + (size_t) random() % 8;
    if (n > b->len - at) n = b->len - at;
    switch (random() % 6) {
    case 0: b->data[at] = (char) (b->data[at] ^ 1 << random() % 8); break;
    case 1: b->data[at] = (char) odd[(size_t) random() % sizeof odd]; break;
    case 2: memset(b->data + at, random() % 2 ? 0xff : 0, n); break;
    case 3:
        memmove(b->data + at, b->data + at + n, b->len - at - n);
        b->len -= n;
        break;
    case 4: memmove(b->data + at, b->data + (size_t) random() % (b->len - n + 1), n); break;
    default: {
        const struct captured *c = &captured[random() % ncaptured];
        size_t from = (size_t) random() % c->len;
        buf_bytes(b, c->data + from, c->len - from);
    }
    }
}

static void test_mutations(void)
{
    enum { ROUNDS = 200000 };
    int fine = 0;
    srandom(4);
    for (int round = 0; round < ROUNDS; round++) {
        const struct captured *c = &captured[random() % ncaptured];
        if (c->len > 1000 && round % 8) continue; /* most of it is one long value */
        struct buf b = {0};
        buf_bytes(&b, c->data, c->len);
        for (long i = random() % 4; i >= 0 && b.len; i--) mutate(&b);
        struct buf text = {0};
        fine += decode(buf_cstr(&b), b.len, &text, NULL) == TW_OK;
        buf_free(&text);
        buf_free(&b);
    }
    CHECK(fine > ROUNDS / 100 && fine < ROUNDS / 10 * 9); /* both ways were gone */
}

/* A length that is a lie must not cost memory. */
static void test_huge_counts(void)
{
    static const struct {
        const char *what, *data;
        size_t len;
    } lies[] = {
        {"insert of 65535 values", "I\0\0\0\1N\xff\xff", 8},
        {"insert of 65535 values, one there", "I\0\0\0\1N\xff\xffn", 9},
        {"old row of 65535 values", "D\0\0\0\1K\xff\xff", 8},
        {"value of 4 GB", "I\0\0\0\1N\0\1t\xff\xff\xff\xff" "x", 14},
        {"value of 2 GB", "I\0\0\0\1N\0\1t\x7f\xff\xff\xff" "x", 14},
        {"truncate of 4 G tables", "T\xff\xff\xff\xff\0\0\0\0\1", 10},
        {"truncate of 1 G tables", "T\x40\0\0\0\0\0\0\0\1", 10},
        {"relation of 65535 columns", "R\0\0\0\1s\0t\0d\xff\xff", 12},
        {"relation of 65535 columns, one there",
         "R\0\0\0\1s\0t\0d\xff\xff\1c\0\0\0\0\27\0\0\0\0", 23},
    };
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        size_t allocated = 0;
        CHECK(decode(lies[i].data, lies[i].len, NULL, &allocated) == TW_EPROTO);
        CHECK(allocated <= 64 * lies[i].len);
        if (allocated > 64 * lies[i].len)
            printf(" (%s: %zu bytes for %zu)", lies[i].what, allocated, lies[i].len);
    }
    for (int i = 0; i < ncaptured; i++) { /* nor the truth more than it must */
        size_t allocated = 0;
        CHECK(decode(captured[i].data, captured[i].len, NULL, &allocated) == TW_OK);
        CHECK(allocated <= 64 * captured[i].len);
    }
}

/* ---- relations and rows made by hand ---- */

static void test_value_equal(void)
{
    const struct value null = {.kind = 'n'}, empty = {"", 0, 't'}, x = {"x", 1, 't'},
                       y = {"y", 1, 't'}, xx = {"xx", 2, 't'};
    CHECK(value_equal(&null, &null) && value_equal(&x, &x) && value_equal(&empty, &empty));
    CHECK(!value_equal(&null, &empty) && !value_equal(&empty, &null));
    CHECK(!value_equal(&x, &y) && !value_equal(&x, &xx) && !value_equal(&xx, &x));
    CHECK(!value_text(&null) && value_text(&empty) && !value_text(&(struct value){.kind = 'u'}));
}

/* One column under every circumstance, against the rule in words: an update writes what came, but
 * not what it is known to have left as it was.  Known is the whole row with an 'O' image, and the
 * key always: without an old image it has not changed. */
static void check_changed(char target, bool key, char old_kind, const char *was, const char *is)
{
    struct arena a = {0};
    const struct column columns[] = {{"c", key, target}, {"other", false, ' '}};
    struct rel *rel = make_rel("s", "t", key ? 'd' : 'f', 2, columns, 0, NULL);
    struct dml m = {.kind = 'U', .old_kind = old_kind};
    bool set[2] = {true, true};
    m.new = make_row(&a, 2, (const char *const[]){is, "u"});
    if (old_kind == 'O' || (old_kind == 'K' && key))
        m.old = make_row(&a, 2, (const char *const[]){was, "o"});
    else if (old_kind == 'K')
        m.old = make_row(&a, 2, (const char *const[]){"n", "n"});
    bool can = rel_changed(rel, &m, set);
    bool came = target != 'g' && !str_is(is, "u");
    bool known = old_kind == 'O' || key;
    bool same = old_kind ? str_is(was, is) : key;
    bool changed = came && !(known && same);
    bool ok = set[0] == (changed && target != 'a') && !set[1];
    if (target != 'a' || known) ok = ok && can == !(changed && target == 'a');
    CHECK(ok);
    if (!ok)
        printf(" ('%c' key %d old %c: %s -> %s)", target, key, old_kind ? old_kind : '-', was, is);
    rel_free(rel);
    arena_free(&a);
}

static void test_changed(void)
{
    static const char *const values[] = {"n", "", "x", "y"};
    static const char *const news[] = {"n", "", "x", "y", "u"};
    for (const char *target = " ga"; *target; target++)
        for (int key = 0; key < 2; key++)
            for (int kind = 0; kind < 3; kind++)
                for (int was = 0; was < 4; was++)
                    for (int is = 0; is < 5; is++)
                        check_changed(*target, key, "\0KO"[kind], values[was], news[is]);
}

/* GENERATED ALWAYS AS IDENTITY can change by SET c = DEFAULT.  Without the whole old row one cannot
 * tell that it has not, so the change must be looked at. */
static void test_changed_identity_always(void)
{
    struct arena a = {0};
    const struct column columns[] = {{"id", true, ' '}, {"c", false, 'a'}};
    struct rel *rel = make_rel("s", "t", 'd', 2, columns, 1, (const int[]){0});
    struct dml m = {.kind = 'U', .new = make_row(&a, 2, (const char *const[]){"1", "2"})};
    bool set[2];
    CHECK(!rel_changed(rel, &m, set));
    rel_free(rel);
    arena_free(&a);
}

static void test_key_usable(void)
{
    const struct column columns[] = {{"k", true, ' '}, {"v", false, ' '}, {"g", true, 'g'}};
    struct rel *rel = make_rel("s", "t", 'd', 3, columns, 1, (const int[]){0});
    struct unique_key *k = &rel->keys[0];
    CHECK(rel_key_usable(rel, k) && rel->identity == k && rel->nident == 1 && rel->ident[0] == 0);
    k->columns[0] = 1; /* not part of the replica identity: the old row lacks it */
    rel->targets[1].not_null = true;
    CHECK(!rel_key_usable(rel, k));
    rel->replident = 'f';
    CHECK(rel_key_usable(rel, k));
    rel->targets[1].source = -1; /* a column only the target has */
    CHECK(!rel_key_usable(rel, k));
    k->columns[0] = 0;
    k->not_null = false;
    CHECK(!rel_key_usable(rel, k));
    k->not_null = true;
    k->plain = false;
    CHECK(!rel_key_usable(rel, k));
    k->plain = true;
    CHECK(rel_key_usable(rel, k));
    rel_free(rel);
}

/* The source sends the column, the target makes its own value of it: no place to look for. */
static void test_key_generated_there(void)
{
    const struct column columns[] = {{"k", true, ' '}, {"g", true, 'g'}};
    struct rel *rel = make_rel("s", "t", 'f', 2, columns, 0, NULL);
    int key[] = {1};
    const char *ops[] = {"="};
    struct unique_key k = {.n = 1, .columns = key, .ops = ops, .not_null = true, .plain = true};
    CHECK(!rel_key_usable(rel, &k));
    rel_free(rel);
}

/* ---- statements ---- */

/* The statement and its parameters: "SQL | n0 o1 k2:1023" (from, source column, type). */
static void check_stmt_by(struct rel *rel, char kind, char old_kind, const bool *set, bool whole,
                          const char *want)
{
    struct arena a = {0};
    int serial = 0;
    struct buf b = {0};
    const struct colset *cols = set ? rel_colset(rel, set, &a) : NULL;
    rel->merge = whole ? MERGE_ROWS : MERGE_COLUMNS;
    struct stmt *st = rel_stmt(rel, kind, old_kind, cols, &serial, &a);
    buf_fmt(&b, "%s |", st->sql);
    for (int i = 0; i < st->nparams; i++)
        buf_fmt(&b, " %c%d", "nok"[st->params[i].from], st->params[i].column);
    CHECK_STR(b.data, want);
    for (int i = 0; i < st->nparams; i++)
        CHECK(st->types[i] == rel->targets[rel->target_of[st->params[i].column]].type);
    CHECK(rel_stmt(rel, kind, old_kind, cols, &serial, &a) == st && serial == 1);
    CHECK_STR(st->name, "tw1");
    rel->stmts = NULL;
    rel->nstmts = 0;
    buf_free(&b);
    arena_free(&a);
}

static void check_stmt(struct rel *rel, char kind, char old_kind, const bool *set, const char *want)
{
    check_stmt_by(rel, kind, old_kind, set, false, want);
}

static void test_stmt_plain(void)
{
    const struct column columns[] = {{"id", true, ' '}, {"v", false, ' '}, {"w", false, ' '}};
    struct rel *rel = make_rel("s", "t", 'd', 3, columns, 1, (const int[]){0});
    check_stmt(rel, 'I', 0, NULL, "INSERT INTO \"s\".\"t\" (\"id\", \"v\", \"w\") OVERRIDING"
               " SYSTEM VALUE VALUES ($1, $2, $3) | n0 n1 n2");
    check_stmt(rel, 'U', 0, (const bool[]){0, 1, 1}, "UPDATE ONLY \"s\".\"t\" t SET \"v\" = $1,"
               " \"w\" = $2 WHERE t.\"id\" OPERATOR(pg_catalog.=) $3 | n1 n2 k0");
    check_stmt(rel, 'U', 'K', (const bool[]){1, 0, 1}, "UPDATE ONLY \"s\".\"t\" t SET \"id\" ="
               " $1, \"w\" = $2 WHERE t.\"id\" OPERATOR(pg_catalog.=) $3 | n0 n2 k0");
    check_stmt(rel, 'U', 0, (const bool[]){0, 0, 0}, "SELECT 1 FROM ONLY \"s\".\"t\" t WHERE"
               " t.\"id\" OPERATOR(pg_catalog.=) $1 | k0");
    check_stmt(rel, 'D', 'K', NULL, "DELETE FROM ONLY \"s\".\"t\" t WHERE t.\"id\""
               " OPERATOR(pg_catalog.=) $1 | k0");
    rel_free(rel);
}

/* The whole old row: an update compares what it changes, a delete everything. */
static void test_stmt_whole_row(void)
{
    const struct column columns[] = {{"id", true, ' '}, {"v", true, ' '}, {"w", true, ' '}};
    struct rel *rel = make_rel("s", "t", 'f', 3, columns, 1, (const int[]){0});
    check_stmt(rel, 'U', 'O', (const bool[]){0, 0, 1}, "UPDATE ONLY \"s\".\"t\" t SET \"w\" = $1"
               " WHERE t.\"id\" OPERATOR(pg_catalog.=) $2 AND ROW(t.\"w\")::record"
               " OPERATOR(pg_catalog.*=) ROW($3)::record | n2 k0 o2");
    check_stmt(rel, 'U', 'O', (const bool[]){1, 1, 0}, "UPDATE ONLY \"s\".\"t\" t SET \"id\" ="
               " $1, \"v\" = $2 WHERE t.\"id\" OPERATOR(pg_catalog.=) $3 AND ROW(t.\"id\","
               " t.\"v\")::record OPERATOR(pg_catalog.*=) ROW($4, $5)::record | n0 n1 k0 o0 o1");
    check_stmt(rel, 'U', 'O', (const bool[]){0, 0, 0}, "SELECT 1 FROM ONLY \"s\".\"t\" t WHERE"
               " t.\"id\" OPERATOR(pg_catalog.=) $1 AND true | k0");
    check_stmt(rel, 'D', 'O', NULL, "DELETE FROM ONLY \"s\".\"t\" t WHERE t.\"id\""
               " OPERATOR(pg_catalog.=) $1 AND ROW(t.\"id\", t.\"v\", t.\"w\")::record"
               " OPERATOR(pg_catalog.*=) ROW($2, $3, $4)::record | k0 o0 o1 o2");
    /* Merging by rows, any difference counts. */
    check_stmt_by(rel, 'U', 'O', (const bool[]){0, 0, 1}, true, "UPDATE ONLY \"s\".\"t\" t SET"
                  " \"w\" = $1 WHERE t.\"id\" OPERATOR(pg_catalog.=) $2 AND ROW(t.\"id\","
                  " t.\"v\", t.\"w\")::record OPERATOR(pg_catalog.*=) ROW($3, $4, $5)::record |"
                  " n2 k0 o0 o1 o2");
    rel->only = ""; /* a partitioned table */
    check_stmt(rel, 'U', 0, (const bool[]){0, 0, 1}, "UPDATE \"s\".\"t\" t SET \"w\" = $1 WHERE"
               " t.\"id\" OPERATOR(pg_catalog.=) $2 | n2 k0");
    rel_free(rel);
}

/* Without a key exactly one of equal rows is meant. */
static void test_stmt_keyless(void)
{
    const struct column columns[] = {{"a", true, ' '}, {"b", true, ' '}};
    struct rel *rel = make_rel("s", "t", 'f', 2, columns, 0, NULL);
    check_stmt(rel, 'U', 'O', (const bool[]){0, 1}, "UPDATE ONLY \"s\".\"t\" t SET \"b\" = $1"
               " WHERE t.ctid = (SELECT t.ctid FROM ONLY \"s\".\"t\" t WHERE ROW(t.\"a\","
               " t.\"b\")::record OPERATOR(pg_catalog.*=) ROW($2, $3)::record LIMIT 1) | n1 o0"
               " o1");
    check_stmt(rel, 'D', 'O', NULL, "DELETE FROM ONLY \"s\".\"t\" t WHERE t.ctid = (SELECT"
               " t.ctid FROM ONLY \"s\".\"t\" t WHERE ROW(t.\"a\", t.\"b\")::record"
               " OPERATOR(pg_catalog.*=) ROW($1, $2)::record LIMIT 1) | o0 o1");
    rel_free(rel);
}

static void test_stmt_odd(void)
{
    const struct column columns[] = {{"A\"b", true, ' '}, {"$1", true, ' '}, {"sum", false, 'g'},
                                     {"it's; --", false, 'a'}};
    struct rel *rel = make_rel("Odd \"s\"", "t.y", 'd', 4, columns, 2, (const int[]){1, 0});
    check_stmt(rel, 'I', 0, NULL, "INSERT INTO \"Odd \"\"s\"\"\".\"t.y\" (\"A\"\"b\", \"$1\","
               " \"it's; --\") OVERRIDING SYSTEM VALUE VALUES ($1, $2, $3) | n0 n1 n3");
    check_stmt(rel, 'U', 'K', (const bool[]){1, 0, 0, 0}, "UPDATE ONLY \"Odd \"\"s\"\"\".\"t.y\""
               " t SET \"A\"\"b\" = $1 WHERE t.\"$1\" OPERATOR(pg_catalog.=) $2 AND t.\"A\"\"b\""
               " OPERATOR(ext.===) $3 | n0 k1 k0");
    check_stmt(rel, 'D', 'O', NULL, "DELETE FROM ONLY \"Odd \"\"s\"\"\".\"t.y\" t WHERE t.\"$1\""
               " OPERATOR(pg_catalog.=) $1 AND t.\"A\"\"b\" OPERATOR(ext.===) $2 AND"
               " ROW(t.\"A\"\"b\", t.\"$1\", t.\"it's; --\")::record OPERATOR(pg_catalog.*=)"
               " ROW($3, $4, $5)::record | k1 k0 o0 o1 o3");
    rel_free(rel);
    const struct column all_generated[] = {{"g", false, 'g'}};
    rel = make_rel("s", "t", 'f', 1, all_generated, 0, NULL);
    check_stmt(rel, 'I', 0, NULL, "INSERT INTO \"s\".\"t\" DEFAULT VALUES |");
    check_stmt(rel, 'D', 'O', NULL, "DELETE FROM ONLY \"s\".\"t\" t WHERE t.ctid = (SELECT"
               " t.ctid FROM ONLY \"s\".\"t\" t WHERE true LIMIT 1) |");
    rel_free(rel);
    rel = make_rel("s", "none", 'f', 0, NULL, 0, NULL);
    check_stmt(rel, 'I', 0, NULL, "INSERT INTO \"s\".\"none\" DEFAULT VALUES |");
    rel_free(rel);
}

/* Statements are kept by what they set, so many of them and no more. */
static void test_stmt_kept(void)
{
    struct column columns[8];
    for (int i = 0; i < 8; i++)
        columns[i] = (struct column){(const char *[]){"a", "b", "c", "d", "e", "f", "g", "h"}[i],
                                     i == 0, ' '};
    struct rel *rel = make_rel("s", "t", 'd', 8, columns, 1, (const int[]){0});
    struct arena a = {0};
    int serial = 0, unnamed = 0;
    for (int bits = 0; bits < 256; bits += 2) {
        bool set[8];
        for (int i = 0; i < 8; i++) set[i] = bits >> i & 1;
        const struct colset *cols = rel_colset(rel, set, &a);
        struct stmt *st = rel_stmt(rel, 'U', 0, cols, &serial, &a);
        unnamed += st->name[0] == '\0';
        CHECK(cols->kept == (st->name[0] != '\0'));
        if (cols->kept) CHECK(rel_stmt(rel, 'U', 0, cols, &serial, &a) == st);
        CHECK(!memcmp(st->cols->set, set, sizeof set));
    }
    CHECK(serial == REL_MAX_COLSETS && rel->nstmts == REL_MAX_COLSETS);
    CHECK(unnamed == 128 - REL_MAX_COLSETS);
    rel_free(rel);
    arena_free(&a);
}

/* ---- conflicts ---- */

static void test_conf_decide(void)
{
    static const enum conf_action want[CONF_NKINDS][5] = {
        /*                             fail        ignore      overwrite   newer       older */
        [CONF_insert_exists] =         {ACT_STOP, ACT_SKIP, ACT_WRITE, ACT_WRITE, ACT_SKIP},
        [CONF_update_missing] =        {ACT_INSERT, ACT_INSERT, ACT_INSERT, ACT_INSERT, ACT_INSERT},
        [CONF_update_exists] =         {ACT_STOP, ACT_SKIP, ACT_WRITE, ACT_WRITE, ACT_SKIP},
        [CONF_update_differs] =        {ACT_STOP, ACT_SKIP, ACT_WRITE, ACT_WRITE, ACT_SKIP},
        [CONF_update_deleted] =        {ACT_STOP, ACT_SKIP, ACT_INSERT, ACT_INSERT, ACT_SKIP},
        [CONF_delete_missing] =        {ACT_SKIP, ACT_SKIP, ACT_SKIP, ACT_SKIP, ACT_SKIP},
        [CONF_delete_differs] =        {ACT_STOP, ACT_SKIP, ACT_WRITE, ACT_WRITE, ACT_SKIP},
        [CONF_multiple_unique_conflicts] = {ACT_STOP, ACT_SKIP, ACT_WRITE, ACT_WRITE, ACT_SKIP},
    };
    static const char *const names[CONF_NKINDS] = {
        "insert_exists", "update_missing", "update_exists", "update_differs", "update_deleted",
        "delete_missing", "delete_differs", "multiple_unique_conflicts"};
    static const enum policy policies[] = {POLICY_FAIL, POLICY_IGNORE, POLICY_OVERWRITE,
                                           POLICY_LATEST, POLICY_LATEST};
    for (int k = 0; k < CONF_NKINDS; k++) {
        CHECK_STR(conflict_names[k], names[k]);
        for (int p = 0; p < 5; p++)
            CHECK(conf_decide((enum conflict_kind) k, policies[p], p == 3) == want[k][p]);
    }
}

/* The rule in words.  Merging by columns, a column is written if the change changes it and it is
 * undisturbed, or the incoming side wins.  By rows, the winner's row is the row. */
static bool should_write(enum merge_unit unit, enum conf_action act, bool changed, bool differs)
{
    if (unit == MERGE_ROWS) return act == ACT_WRITE;
    return changed && (act == ACT_WRITE || !differs);
}

static void test_conf_columns(void)
{
    for (int n = 0; n <= 4; n++)
        for (int c = 0; c < 1 << n; c++)
            for (int d = 0; d < 1 << n; d++)
                for (int unit = MERGE_COLUMNS; unit <= MERGE_ROWS; unit++)
                    for (int act = ACT_SKIP; act <= ACT_WRITE; act++) {
                        bool changed[5] = {0}, differs[5] = {0}, write[5], any = false, good = true;
                        memset(write, 1, sizeof write);
                        for (int i = 0; i < n; i++)
                            changed[i] = c >> i & 1, differs[i] = d >> i & 1;
                        bool got = conf_columns((enum merge_unit) unit, (enum conf_action) act, n,
                                                changed, differs, write);
                        for (int i = 0; i < n; i++) {
                            bool want = should_write((enum merge_unit) unit, (enum conf_action) act,
                                                     changed[i], differs[i]);
                            any = any || want;
                            good = good && write[i] == want;
                        }
                        CHECK(good && got == any && write[n]);
                    }
}

static void test_careful_same(void)
{
    const struct value null = {.kind = 'n'}, empty = {"", 0, 't'}, x = {"x", 1, 't'};
    CHECK(careful_same("anything", &null, true)); /* the server has said so */
    CHECK(careful_same(NULL, &null, false) && careful_same("", &empty, false));
    CHECK(careful_same("x", &x, false));
    CHECK(!careful_same(NULL, &empty, false) && !careful_same("", &null, false));
    CHECK(!careful_same("y", &x, false) && !careful_same("xx", &x, false));
}

static void test_careful_differs(void)
{
    const struct column columns[] = {{"id", true, ' '}, {"v", true, ' '}, {"g", true, 'g'}};
    struct rel *rel = make_rel("s", "t", 'f', 3, columns, 1, (const int[]){0});
    struct change c = {.rel = rel};
    bool same[3] = {true, false, false}, of[3] = {true, false, true}, differs[3];
    struct found f = {.same = same};
    CHECK(careful_differs(&c, &f, NULL, differs) == 1 && !differs[0] && differs[1] && !differs[2]);
    CHECK(careful_differs(&c, &f, of, differs) == 0 && !differs[1]);
    rel_free(rel);
}

/* Both sides came to the same: nothing to decide. */
static void test_careful_disputed(void)
{
    const struct column columns[] = {{"id", true, ' '}, {"v", true, ' '}, {"w", true, ' '}};
    struct rel *rel = make_rel("s", "t", 'f', 3, columns, 1, (const int[]){0});
    struct arena a = {0};
    struct change c = {.rel = rel, .m = {.kind = 'U', .old_kind = 'O'}};
    c.m.new = make_row(&a, 3, (const char *const[]){"1", "new", "n"});
    const char *same[] = {"1", "new", NULL}, *other[] = {"1", "theirs", ""};
    CHECK(!careful_disputed(&a, &c, &(struct found){.values = same}, (const bool[]){0, 1, 1}));
    CHECK(careful_disputed(&a, &c, &(struct found){.values = other}, (const bool[]){0, 1, 1}));
    CHECK(!careful_disputed(&a, &c, &(struct found){.values = other}, (const bool[]){0, 0, 0}));
    c.m.new.values[1].kind = 'u'; /* it brings no value to agree with */
    CHECK(careful_disputed(&a, &c, &(struct found){.values = same}, (const bool[]){0, 1, 0}));
    rel_free(rel);
    arena_free(&a);
}

/* An identity column cannot be SET, but a change of it is a change. */
static void test_careful_changed(void)
{
    const struct column columns[] = {{"id", true, 'a'}, {"v", false, ' '}};
    struct rel *rel = make_rel("s", "t", 'd', 2, columns, 1, (const int[]){0});
    struct arena a = {0};
    struct change c = {.rel = rel, .m = {.kind = 'U', .old_kind = 'K'}};
    bool changed[2];
    c.m.old = make_row(&a, 2, (const char *const[]){"1", "n"});
    c.m.new = make_row(&a, 2, (const char *const[]){"2", "u"});
    careful_changed(&c, changed);
    CHECK(changed[0] && !changed[1]);
    c.m.new = make_row(&a, 2, (const char *const[]){"1", "x"});
    careful_changed(&c, changed);
    CHECK(!changed[0] && changed[1]);
    c.m.old_kind = 0;
    careful_changed(&c, changed);
    CHECK(!changed[0] && changed[1]);
    rel_free(rel);
    arena_free(&a);
}

static void test_must_replace(void)
{
    const struct column columns[] = {{"id", true, 'a'}, {"v", false, ' '}};
    struct rel *rel = make_rel("s", "t", 'd', 2, columns, 1, (const int[]){0});
    const char *now[] = {"1", "x"};
    struct found f = {.values = now};
    const struct value row[] = {{"2", 1, 't'}, {"y", 1, 't'}}, same[] = {{"1", 1, 't'}, row[1]};
    CHECK(careful_must_replace(rel, &f, (const bool[]){true, true}, row));
    CHECK(!careful_must_replace(rel, &f, (const bool[]){false, true}, row));
    CHECK(!careful_must_replace(rel, &f, (const bool[]){true, true}, same));
    rel_free(rel);
}

/* What is recorded is JSON of what came, without what did not. */
static void test_conflict_json(void)
{
    const struct column columns[] = {{"i\"d", true, ' '}, {"v", false, ' '}, {"big", false, ' '}};
    struct rel *rel = make_rel("s", "t", 'd', 3, columns, 1, (const int[]){0});
    struct arena a = {0};
    struct change c = {.rel = rel, .m = {.kind = 'U'}};
    c.m.new = make_row(&a, 3, (const char *const[]){"1", "a\"\\\n", "u"});
    CHECK_STR(conflict_key(&a, &c), "{\"i\\\"d\":\"1\"}");
    CHECK_STR(conflict_tuple(&a, &c, &c.m.new, false), "{\"i\\\"d\":\"1\",\"v\":\"a\\\"\\\\\\n\"}");
    CHECK(conflict_tuple(&a, &c, &c.m.old, false) == NULL);
    c.m.old_kind = 'K';
    c.m.old = make_row(&a, 3, (const char *const[]){"0", "n", "n"});
    CHECK_STR(conflict_key(&a, &c), "{\"i\\\"d\":\"0\"}"); /* the row it left from */
    CHECK_STR(conflict_tuple(&a, &c, &c.m.old, true), "{\"i\\\"d\":\"0\"}");
    const char *v[] = {"1", NULL, "x"};
    struct collision one = {.row = {.values = v}};
    struct collisions all = {.n = 1, .items = &one};
    const struct found f = {.values = v};
    const char *row = "{\"i\\\"d\":\"1\",\"v\":null,\"big\":\"x\"}";
    CHECK_STR(json_existing(&a, rel, &f, NULL), arena_fmt(&a, "[%s]", row));
    CHECK_STR(json_existing(&a, rel, &f, &all), arena_fmt(&a, "[%s,%s]", row, row));
    CHECK_STR(json_existing(&a, rel, NULL, &all), arena_fmt(&a, "[%s]", row));
    rel_free(rel);
    rel = make_rel("s", "t", 'f', 3, columns, 0, NULL);
    c.rel = rel;
    c.m.old_kind = 'O';
    CHECK_STR(conflict_key(&a, &c), "{\"i\\\"d\":\"0\",\"v\":null,\"big\":null}");
    rel_free(rel);
    arena_free(&a);
}

/* ---- holding back feedback ---- */

struct applied_batch {
    usec at;
    lsn_t before, after;
};

/* What the list of all batches says: nothing from `hold` on may be confirmed, since it is young;
 * everything before `late` must be, since it is old. */
struct retention_model {
    struct applied_batch *batches;
    int n, first; /* those before `first` are old */
    lsn_t late;
};

static lsn_t model_hold(struct retention_model *m, usec now, usec keep, lsn_t applied)
{
    while (m->first < m->n &&
           now - m->batches[m->first].at > keep + keep / RETENTION_BUCKETS * 2 + 2)
        m->late = m->batches[m->first++].after;
    int k = m->first;
    while (k < m->n && now - m->batches[k].at >= keep) k++;
    return k < m->n ? m->batches[k].before : applied;
}

/* A random life of a task. */
static void check_retention(usec keep, int64_t cap, usec pause)
{
    enum { ROUNDS = 40000 };
    static struct applied_batch batches[ROUNDS];
    struct retention r = {.cap_bytes = cap};
    struct retention_model m = {.batches = batches};
    lsn_t applied = 1000, confirmed = 1000;
    usec now = USEC_SEC;
    int back = 0, capped = 0, over = 0, early = 0;
    for (int i = 0; i < ROUNDS; i++) {
        now += random() % (pause + 1);
        if (random() % 20000 == 0) now += 2 * keep; /* idle */
        if (random() % 4) {
            lsn_t before = applied;
            applied += 1 + (lsn_t) random() % 1000;
            batches[m.n++] = (struct applied_batch){now, before, applied};
            retention_note(&r, before, now, keep);
            if (random() % 3) continue; /* several batches between two looks */
        } else if (random() % 5 == 0) {
            applied += 500; /* an idle mark: nothing of ours lay between */
        }
        lsn_t limit = retention_limit(&r, applied, now);
        lsn_t hold = model_hold(&m, now, keep, applied);
        back += limit > applied || limit < confirmed; /* applied first, and never back */
        capped += applied - limit > (lsn_t) cap;      /* no more than that is held */
        over += limit < m.late;                       /* and not for much longer */
        early += limit > hold && applied - hold <= (lsn_t) cap / 2; /* what is young is held */
        confirmed = limit;
    }
    CHECK(back == 0);
    CHECK(capped == 0);
    CHECK(over == 0);
    CHECK(early == 0);
    if (early) printf(" (%d times)", early);
    CHECK(retention_limit(&r, applied, now + 2 * keep + 1) == applied && r.n == 0);
}

static void test_retention(void)
{
    srandom(3);
    for (int i = 0; i < 5; i++) {
        check_retention(900 * USEC_SEC, INT64_MAX, 100 * USEC_SEC); /* few batches */
        check_retention(64 * USEC_SEC, INT64_MAX, 4 * USEC_SEC);
    }
}

static void test_retention_busy(void)
{
    srandom(5);
    for (int i = 0; i < 5; i++) check_retention(64 * USEC_SEC, INT64_MAX, USEC_SEC / 50);
}

static void test_retention_bytes(void)
{
    srandom(6);
    for (int i = 0; i < 5; i++) {
        check_retention(64 * USEC_SEC, 5000, USEC_SEC);
        check_retention(64 * USEC_SEC, 0, USEC_SEC);
    }
}

static void test_retention_off(void)
{
    struct retention r = {.cap_bytes = 1 << 30};
    retention_note(&r, 100, 5, 0);
    CHECK(r.n == 0 && retention_limit(&r, 200, 5) == 200);
    /* As after a restart: what the slot already held goes on being held, then goes. */
    r = (struct retention){.cap_bytes = 1 << 30, .n = 1};
    r.bucket[0].until_us = 1000 + 61 * USEC_SEC;
    r.bucket[0].lsn = 50;
    CHECK(retention_limit(&r, 200, 1000 + 60 * USEC_SEC) == 50);
    CHECK(retention_limit(&r, 300, 1000 + 62 * USEC_SEC) == 300);
    CHECK(retention_limit(&r, 400, 1000 + 62 * USEC_SEC) == 400); /* idle */
}

/* ---- states ---- */

static void test_states(void)
{
    static const char *const names[] = {"NotStarted", "Prechecking", "PrecheckFailed",
                                        "Initializing", "Running", "Retrying", "Paused",
                                        "Modifying", "Failed"};
    static const char want[TASK_NSTATES][TASK_NSTATES + 1] = {
        /* from \ to          N P X I R T Z M F */
        [TASK_NotStarted] =     "xx.xxxxxx",
        [TASK_Prechecking] =    "xxx......",
        [TASK_PrecheckFailed] = ".xx......",
        [TASK_Initializing] =   "x..xxx..x",
        [TASK_Running] =        "x..xxx..x",
        [TASK_Retrying] =       "x..xxx..x",
        [TASK_Paused] =         "xx....x..",
        [TASK_Modifying] =      "x......x.",
        [TASK_Failed] =         "xx....xxx",
    };
    CHECK(TASK_NSTATES == sizeof names / sizeof *names);
    for (int from = 0; from < TASK_NSTATES; from++) {
        CHECK_STR(task_state_name(from), names[from]);
        for (int to = 0; to < TASK_NSTATES; to++) {
            bool may = task_may_move((enum task_state) from, (enum task_state) to);
            CHECK(may == (want[from][to] == 'x'));
            if (may != (want[from][to] == 'x')) printf(" (%s to %s)", names[from], names[to]);
        }
    }
}

/* ---- what a transaction is taken for ---- */

static struct stat_task counters;
static struct job test_job;
static struct stat_page page;
static const struct task_conf test_conf = {.bulk = true, .batch = 1000};

static void stream_open(struct task *t, lsn_t applied)
{
    memset(&counters, 0, sizeof counters);
    memset(t, 0, sizeof *t);
    t->job = &test_job;
    t->stat = &counters;
    t->name = "shop/forward";
    t->opposite = "shop/reverse";
    t->opposite_origin = "twsync_shop_reverse";
    t->progress.applied_lsn = applied;
    t->apply.e = &t->e;
    t->apply.stat = &counters;
    t->apply.applied_lsn = t->seen_lsn = applied;
    t->conf = &test_conf;
    t->page = &page;
    t->w = t->windows;
}

static void stream_close(struct task *t)
{
    apply_end(&t->apply);
    for (int i = 0; i < 2; i++) window_free(&t->windows[i]);
    arena_free(&t->session);
}

static void put_int(struct buf *b, uint64_t v, int n)
{
    for (int i = n - 1; i >= 0; i--) buf_char(b, (char) (v >> 8 * i));
}

static status say(struct task *t, struct buf *b)
{
    error_clear(&t->e);
    char *exact = mem_resize(NULL, b->len); /* task_handle copies */
    memcpy(exact, b->data, b->len);
    enum take take;
    status s = task_handle(t, exact, b->len, &take);
    CHECK(s != TW_OK || take == TAKE_DONE);
    free(exact);
    buf_free(b);
    return s;
}

static status say_begin(struct task *t, lsn_t final_lsn)
{
    struct buf b = {0};
    buf_char(&b, 'B');
    put_int(&b, final_lsn, 8);
    put_int(&b, 5, 8);
    put_int(&b, 99, 4);
    return say(t, &b);
}

static status say_commit(struct task *t, lsn_t final_lsn, lsn_t end_lsn)
{
    struct buf b = {0};
    buf_str(&b, "C");
    put_int(&b, 0, 1);
    put_int(&b, final_lsn, 8);
    put_int(&b, end_lsn, 8);
    put_int(&b, 5, 8);
    return say(t, &b);
}

static status say_origin(struct task *t, const char *name)
{
    struct buf b = {0};
    buf_char(&b, 'O');
    put_int(&b, 77, 8);
    buf_bytes(&b, name, strlen(name) + 1);
    return say(t, &b);
}

/* A table of two columns: id, task. */
static status say_relation(struct task *t, uint32_t relid, const char *schema, const char *name)
{
    struct buf b = {0};
    buf_char(&b, 'R');
    put_int(&b, relid, 4);
    buf_bytes(&b, schema, strlen(schema) + 1);
    buf_bytes(&b, name, strlen(name) + 1);
    buf_char(&b, 'd');
    put_int(&b, 2, 2);
    for (int i = 0; i < 2; i++) {
        put_int(&b, i == 1, 1);
        buf_bytes(&b, i ? "task" : "id", i ? 5 : 3);
        put_int(&b, TEXT, 4);
        put_int(&b, 0, 4);
    }
    status s = say(t, &b);
    struct rel *rel = apply_rel(&t->apply, relid);
    if (rel && !rel->is_marker) { /* as if its place were known */
        rel->resolved = true;
        rel->targets = arena_array(&rel->arena, struct target_column, 2);
        rel->target_of = arena_array(&rel->arena, int, 2);
        rel->target_of[1] = 1;
    }
    return s;
}

static status say_row(struct task *t, char kind, uint32_t relid, int n, const char *value)
{
    struct buf b = {0};
    buf_char(&b, kind);
    put_int(&b, relid, 4);
    buf_char(&b, kind == 'D' ? 'K' : 'N');
    put_int(&b, (uint64_t) n, 2);
    for (int i = 0; i < n; i++) {
        buf_char(&b, 't');
        put_int(&b, strlen(value), 4);
        buf_str(&b, value);
    }
    return say(t, &b);
}

/* Our marked transactions are dropped whole; everybody else's are not. */
static void test_marks(void)
{
    static const struct {
        const char *schema;
        char kind;
        const char *value;
        bool dropped;
    } cases[] = {
        {"twsync", 'U', "shop/reverse", true},    {"twsync", 'I', "shop/reverse", true},
        {"twsync", 'U', "shop/forward", false},   {"twsync", 'U', "other/reverse", false},
        {"twsync", 'U', "shop/reverse2", false},  {"twsync", 'U', "", false},
        {"twsync", 'D', "shop/reverse", true},   {"shop", 'U', "shop/reverse", false},
        {"public", 'I', "shop/reverse", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct task t;
        stream_open(&t, 1000);
        CHECK(say_begin(&t, 2000) == TW_OK && t.in_txn);
        CHECK(say_relation(&t, 1, cases[i].schema, "progress") == TW_OK);
        CHECK(say_relation(&t, 2, "shop", "orders") == TW_OK);
        CHECK(say_row(&t, cases[i].kind, 1, 2, cases[i].value) == TW_OK);
        CHECK(t.dropping == cases[i].dropped);
        CHECK(t.w->n == !str_is(cases[i].schema, "twsync")); /* the mark itself never */
        int before = t.w->n;
        CHECK(say_row(&t, 'I', 2, 2, "x") == TW_OK);
        CHECK(t.w->n == before + !cases[i].dropped);
        stream_close(&t);
    }
}

static void test_dropped(void)
{
    struct task t;
    stream_open(&t, 1000);
    CHECK(say_begin(&t, 2000) == TW_OK && say_relation(&t, 1, "twsync", "progress") == TW_OK);
    CHECK(say_row(&t, 'U', 1, 2, "shop/reverse") == TW_OK);
    CHECK(say_relation(&t, 2, "shop", "orders") == TW_OK); /* remembered all the same */
    CHECK(say_row(&t, 'I', 2, 2, "x") == TW_OK && say_row(&t, 'D', 2, 2, "x") == TW_OK);
    CHECK(say_row(&t, 'I', 55, 2, "x") == TW_OK); /* not even looked at */
    CHECK(say_commit(&t, 2000, 2100) == TW_OK);
    CHECK(!t.in_txn && t.seen_lsn == 2100 && t.w->n == 0 && !t.apply.open);
    CHECK(counters.skipped_transactions == 1 && t.apply.transactions == 0);
    /* The next one is its own. */
    CHECK(say_begin(&t, 2200) == TW_OK && !t.dropping);
    CHECK(say_row(&t, 'I', 2, 2, "x") == TW_OK && t.w->n == 1);
    CHECK(t.w->changes[0].commit_lsn == 2200 && t.w->changes[0].m.new.n == 2);
    /* A mark that is not the first change is none: the transaction is somebody else's. */
    CHECK(say_row(&t, 'U', 1, 2, "shop/reverse") == TW_OK && !t.dropping);
    CHECK(say_row(&t, 'I', 2, 2, "y") == TW_OK && t.w->n == 2);
    CHECK_STR(t.w->changes[0].m.new.values[1].data, "x"); /* waiting bytes stay */
    CHECK_STR(t.w->changes[1].m.new.values[0].data, "y");
    stream_close(&t);
}

static void test_origins(void)
{
    struct task t;
    stream_open(&t, 1000);
    CHECK(say_begin(&t, 2000) == TW_OK && say_origin(&t, "twsync_shop_reverse") == TW_OK);
    CHECK(t.dropping);
    CHECK(say_commit(&t, 2000, 2100) == TW_OK && counters.skipped_transactions == 1);
    static const char *const others[] = {"twsync_shop_forward", "twsync_other_reverse", "x", ""};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        lsn_t at = 3000 + 1000 * i;
        CHECK(say_begin(&t, at) == TW_OK && say_origin(&t, others[i]) == TW_OK && !t.dropping);
        CHECK(say_commit(&t, at, at + 100) == TW_OK && t.seen_lsn == at + 100);
    }
    CHECK(counters.skipped_transactions == 1);
    stream_close(&t);
}

/* Applied is what committed before the progress; what the copy holds is not applied again. */
static void test_positions(void)
{
    struct task t;
    stream_open(&t, 5000);
    CHECK(say_begin(&t, 4999) == TW_OK && t.dropping);
    CHECK(say_commit(&t, 4999, 5000) == TW_OK);
    CHECK(say_begin(&t, 5000) == TW_OK && !t.dropping); /* it begins where the last one ended */
    CHECK(say_relation(&t, 2, "shop", "orders") == TW_OK);
    apply_rel(&t.apply, 2)->skip_until_lsn = 5001;
    CHECK(say_row(&t, 'I', 2, 2, "x") == TW_OK && t.w->n == 0);
    CHECK(say_commit(&t, 5000, 5050) == TW_OK && t.seen_lsn == 5050);
    CHECK(say_begin(&t, 5001) == TW_OK);
    CHECK(say_row(&t, 'I', 2, 2, "x") == TW_OK && t.w->n == 1);
    stream_close(&t);
}

static void test_nonsense(void)
{
    struct task t;
    stream_open(&t, 1000);
    CHECK(say_commit(&t, 2000, 2100) == TW_EPROTO);
    CHECK(say_begin(&t, 2000) == TW_OK && say_begin(&t, 2001) == TW_EPROTO);
    CHECK(say_row(&t, 'I', 9, 2, "x") == TW_EPROTO && strstr(t.e.msg, "unknown relation"));
    CHECK(say_relation(&t, 9, "shop", "orders") == TW_OK);
    CHECK(say_row(&t, 'I', 9, 1, "x") == TW_EPROTO && strstr(t.e.msg, "number of columns"));
    CHECK(say_row(&t, 'D', 9, 3, "x") == TW_EPROTO && strstr(t.e.msg, "number of columns"));
    CHECK(t.w->n == 0);
    struct buf b = {0};
    buf_bytes(&b, "\0", 1);
    CHECK(say(&t, &b) == TW_EPROTO);
    t.dropping = true;
    buf_bytes(&b, "\0", 1);
    CHECK(say(&t, &b) == TW_EPROTO);
    stream_close(&t);
}

/* Positions of an idle stream are held, too, for less long, and never shorten what changes need. */
static void test_retention_idle(void)
{
    const usec keep = 900 * USEC_SEC, idle = keep / RETENTION_IDLE, second = USEC_SEC;
    struct retention r = {.cap_bytes = 1 << 30};
    lsn_t applied = 1000;
    usec now = second;
    for (int i = 0; i < 600; i++, now += second) {
        retention_note(&r, applied, now, idle);
        lsn_t limit = retention_limit(&r, ++applied, now);
        CHECK(applied - limit <= 63 && (i < 60 || applied - limit >= 60));
    }
    lsn_t change = applied;
    usec changed = now;
    retention_note(&r, applied++, now, keep);
    for (; now <= changed + keep; now += second) {  /* idle again, with the change in the window */
        retention_note(&r, applied++, now, idle);
        CHECK(retention_limit(&r, applied, now) <= change);
    }
    for (int i = 0; i < 100; i++, now += second) retention_note(&r, applied++, now, idle);
    CHECK(applied - retention_limit(&r, applied, now) <= 64);
    CHECK(retention_limit(&r, applied, now + 2 * idle) == applied);
}

static const struct t_test tests[] = {
    {"messages: captured", test_captured},
    {"messages: cut at every byte", test_cut},
    {"messages: a byte too many", test_trailing},
    {"messages: 200,000 mutations", test_mutations},
    {"messages: huge counts", test_huge_counts},
    {"equal values", test_value_equal},
    {"changed columns", test_changed},
    {"changed columns: identity always", test_changed_identity_always},
    {"usable keys", test_key_usable},
    {"usable keys: generated on the target", test_key_generated_there},
    {"statements: plain", test_stmt_plain},
    {"statements: whole old row", test_stmt_whole_row},
    {"statements: no key", test_stmt_keyless},
    {"statements: odd names and columns", test_stmt_odd},
    {"statements: kept", test_stmt_kept},
    {"conflicts: decisions", test_conf_decide},
    {"conflicts: columns", test_conf_columns},
    {"conflicts: same value", test_careful_same},
    {"conflicts: differing columns", test_careful_differs},
    {"conflicts: disputed columns", test_careful_disputed},
    {"conflicts: identity always", test_must_replace},
    {"conflicts: identity always changed", test_careful_changed},
    {"conflicts: JSON", test_conflict_json},
    {"retention", test_retention},
    {"retention: busy", test_retention_busy},
    {"retention: bytes", test_retention_bytes},
    {"retention: off, and restarts", test_retention_off},
    {"retention: idle", test_retention_idle},
    {"states", test_states},
    {"transactions: marks", test_marks},
    {"transactions: dropped", test_dropped},
    {"transactions: origins", test_origins},
    {"transactions: positions", test_positions},
    {"transactions: nonsense", test_nonsense},
};

int main(int argc, char **argv)
{
    unsetenv("TWSYNC_FAULT");
    load_captured();
    int rc = t_run(tests, sizeof tests / sizeof *tests, argc, argv);
    free_captured();
    return rc;
}
