/* ground.c: Part I (status, memory, text, files), the checkpoint file (10), and what a command line
 * means (28, 31).  No server. */
int twsync_main(int argc, char **argv);
#define main twsync_main
#include "../../twsync.c"
#undef main

#include "../t.h"

#include <ftw.h>
#include <stddef.h>

static char dir[64];

/* ---- status ---- */

static void test_status_table(void)
{
    struct buf seen = {0};
    for (int i = 0; i < TW_NSTATUS; i++) {
        status s = (status) i;
        CHECK(tw_status_name(s)[0] && tw_status_text(s)[0]);
        CHECK(s == TW_OK || tw_status_name(s)[0] == 'E');
        struct buf one = {0};
        buf_fmt(&one, "<%s>", tw_status_name(s));
        CHECK(!strstr(buf_cstr(&seen), one.data)); /* no name twice */
        buf_str(&seen, one.data);
        buf_free(&one);
        CHECK((status_reaction(s) == REACT_DONE) == (s == TW_OK || s == TW_ESTOP));
    }
    buf_free(&seen);
    CHECK_STR(tw_status_name(TW_ECONFLICT), "ECONFLICT");
    CHECK(tw_status_name(TW_NSTATUS) && tw_status_text(TW_NSTATUS));
    /* Where a retry could do harm there is none. */
    static const status stops[] = {TW_EGAP, TW_ECONFLICT, TW_EPROTO, TW_EFENCED, TW_EJOB,
                                   TW_ECHECK, TW_EINTERNAL};
    for (size_t i = 0; i < sizeof stops / sizeof *stops; i++)
        CHECK(status_reaction(stops[i]) == REACT_STOP);
    CHECK(status_reaction(TW_ECONN) == REACT_RETRY && status_reaction(TW_EBUSY) == REACT_RETRY);
    CHECK(status_reaction(TW_ESERVER) == REACT_LATER && status_reaction(TW_ETXN) == REACT_REDO);
}

static void test_first_error_wins(void)
{
    struct tw_error e;
    char longer[2048];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    memset(&e, 1, sizeof e);
    error_clear(&e);
    CHECK(e.code == TW_OK && !e.msg[0] && !e.detail[0] && !e.hint[0] && !e.sqlstate[0]);
    int line = __LINE__ + 1;
    CHECK(fail(&e, TW_EPROTO, "first %d", 1) == TW_EPROTO);
    CHECK(fail(&e, TW_ECONN, "second") == TW_EPROTO);
    CHECK(e.code == TW_EPROTO && e.line == line);
    CHECK_STR(e.msg, "first 1");
    fail_hint(&e, "one");
    fail_hint(&e, "two");
    fail_detail(&e, "one");
    fail_detail(&e, "two");
    CHECK_STR(e.hint, "one");
    CHECK_STR(e.detail, "one");
    error_clear(&e);
    CHECK(fail(&e, TW_EOS, "%s", longer) == TW_EOS);
    fail_hint(&e, "%s", longer);
    fail_detail(&e, "%s", longer);
    CHECK(strlen(e.msg) == sizeof e.msg - 1 && strlen(e.hint) == sizeof e.hint - 1);
    CHECK(strlen(e.detail) == sizeof e.detail - 1);
}

static status try_twice(struct tw_error *e, int *reached)
{
    TRY(TW_OK);
    ++*reached;
    TRY(fail(e, TW_ELIMIT, "enough"));
    ++*reached;
    return TW_OK;
}

static void test_try(void)
{
    struct tw_error e = {0};
    int reached = 0;
    CHECK(try_twice(&e, &reached) == TW_ELIMIT && reached == 1);
}

/* ---- memory ---- */

static bool zeroed(const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (p[i]) return false;
    return true;
}

static void test_arena(void)
{
    struct arena a = {0};
    char *blocks[3000];
    size_t sizes[3000], sum = 0;
    srandom(7);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 3000; i++) {
            size_t n = (size_t) random() % (i % 100 ? 300 : 60000);
            blocks[i] = arena_alloc(&a, n);
            sizes[i] = n;
            sum += n;
            CHECK((uintptr_t) blocks[i] % _Alignof(max_align_t) == 0);
            CHECK(zeroed(blocks[i], n));
            memset(blocks[i], i & 255, n);
        }
        bool intact = true;
        for (int i = 0; i < 3000; i++)
            for (size_t k = 0; k < sizes[i]; k++)
                intact = intact && (unsigned char) blocks[i][k] == (i & 255);
        CHECK(intact); /* no two overlap */
        CHECK(a.total >= sum && a.total < sum + 3000 * 2 * ARENA_ALIGN);
        arena_reset(&a);
        CHECK(a.total == 0 && !a.defers);
        sum = 0;
    }
    arena_free(&a);
    CHECK(!a.chunks);
}

/* What does not fit a chunk gets its own, and the rest of the arena goes on. */
static void test_arena_large(void)
{
    struct arena a = {0};
    char *small = arena_alloc(&a, 10);
    char *large = arena_alloc(&a, 5 * 1000 * 1000);
    char *after = arena_alloc(&a, 10);
    CHECK(zeroed(large, 5 * 1000 * 1000));
    memset(large, 1, 5 * 1000 * 1000);
    CHECK(zeroed(small, 10) && zeroed(after, 10));
    arena_reset(&a);
    /* Large memory is given back, so an arena that lives long stays small. */
    size_t kept = 0;
    for (struct chunk *c = a.chunks; c; c = c->next) kept += c->size;
    CHECK(kept <= ARENA_CHUNK);
    CHECK(arena_alloc(&a, 0) != arena_alloc(&a, 0));
    arena_free(&a);
}

static char deferred[16];

static void note_deferred(void *arg)
{
    size_t n = strlen(deferred);
    deferred[n] = *(char *) arg; /* still there: releases come before the memory goes */
    deferred[n + 1] = '\0';
}

static void test_arena_defer(void)
{
    struct arena a = {0};
    for (const char *c = "abc"; *c; c++) arena_defer(&a, note_deferred, arena_fmt(&a, "%c", *c));
    deferred[0] = '\0';
    arena_reset(&a);
    CHECK_STR(deferred, "cba");
    arena_reset(&a);
    CHECK_STR(deferred, "cba"); /* once */
    arena_defer(&a, note_deferred, arena_str(&a, "d"));
    arena_free(&a);
    CHECK_STR(deferred, "cbad");
}

static void test_buf(void)
{
    struct buf b = {0};
    CHECK_STR(buf_cstr(&b), "");
    struct buf want = {0};
    for (int i = 0; i < 5000; i++) {
        buf_fmt(&b, "%d,", i);
        CHECK(b.len < b.cap && b.data[b.len] == '\0');
    }
    for (int i = 0; i < 5000; i++) {
        char text[16];
        snprintf(text, sizeof text, "%d", i);
        buf_str(&want, text);
        buf_char(&want, ',');
    }
    CHECK_STR(b.data, want.data);
    buf_reset(&b);
    CHECK(b.len == 0);
    CHECK_STR(buf_cstr(&b), "");
    buf_bytes(&b, "a\0b", 3);
    buf_bytes(&b, NULL, 0);
    CHECK(b.len == 3 && !memcmp(b.data, "a\0b", 4));
    buf_free(&b);
    buf_free(&want);
    CHECK(!b.data && !b.cap);
    /* Every size around the points where it grows. */
    for (size_t n = 250; n < 260; n++) {
        struct buf x = {0};
        for (size_t i = 0; i < n; i++) buf_char(&x, 'x');
        buf_fmt(&x, "%s", "tail");
        CHECK(x.len == n + 4 && str_is(x.data + n, "tail"));
        buf_free(&x);
    }
    struct arena a = {0};
    CHECK_STR(arena_fmt(&a, "%s-%d", "x", 5), "x-5");
    CHECK_STR(arena_str(&a, ""), "");
    arena_free(&a);
}

/* ---- text ---- */

static void test_lsn(void)
{
    static const struct {
        const char *text;
        lsn_t value;
    } good[] = {
        {"0/0", 0}, {"0/1", 1}, {"1/0", (lsn_t) 1 << 32}, {"16/B374D848", 0x16B374D848},
        {"FFFFFFFF/FFFFFFFF", UINT64_MAX}, {"0/FFFFFFFF", 0xFFFFFFFF}, {"a/b", 0xA0000000B},
    };
    static const char *const bad[] = {"", "0", "/", "0/", "/0", "0/0 ", "0/0g", "0-0", "g/0",
                                      "123456789/0", "0/123456789", "0/0/0"};
    struct arena a = {0};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        lsn_t v = 7, again = 7;
        CHECK(lsn_parse(good[i].text, &v) && v == good[i].value);
        CHECK(lsn_parse(lsn_text(&a, v), &again) && again == v);
        CHECK(strlen(lsn_text(&a, v)) < LSN_TEXT);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        lsn_t v = 7;
        CHECK(!lsn_parse(bad[i], &v) && v == 7);
    }
    lsn_t v = 7;
    CHECK(!lsn_parse(NULL, &v) && v == 7);
    CHECK_STR(lsn_text(&a, 0x16B374D848), "16/B374D848");
    CHECK_STR(lsn_text(&a, 0), "0/0");
    CHECK_STR(lsn_text(&a, UINT64_MAX), "FFFFFFFF/FFFFFFFF");
    arena_free(&a);
}

/* What only people write by mistake, and no server ever. */
static void test_lsn_strict(void)
{
    static const char *const bad[] = {" 0/1", "0/ 1", "0/-1", "-1/0", "+1/0", "0x1/0", "0/0x1",
                                      "0/0x"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        lsn_t v = 7;
        bool accepted = lsn_parse(bad[i], &v);
        if (accepted) printf("\naccepted \"%s\"", bad[i]);
        CHECK(!accepted);
    }
}

static const char *const hostile[] = {
    "", "a", "A b", "\"", "\"\"", "a\"b", "'", "''", "a'b", "\\", "\\'", "'\\", "$$", "--", "/*",
    ";", "%s%n", "x\ny", "\t", "\001", "\177", "\303\244", "\360\237\230\200", "select",
    "'; DROP TABLE x; --", "\"; DROP TABLE x; --", "E'\\", "\\\\\"", "a.b", ",", " ",
    "\342\200\256",
};
enum { NHOSTILE = sizeof hostile / sizeof *hostile };

/* The inverse of quoting, by the SQL standard: one quote ends it, two are one. */
static bool unquote(const char *sql, char quote, bool escapes, struct buf *out)
{
    if (*sql++ != quote) return false;
    for (; *sql; sql++) {
        if (*sql == quote) {
            if (sql[1] != quote) return sql[1] == '\0';
            sql++;
        } else if (escapes && *sql == '\\') {
            if (sql[1] != '\\') return false; /* no other escape is ever written */
            sql++;
        }
        buf_char(out, *sql);
    }
    return false;
}

static void test_sql_quoting(void)
{
    struct arena a = {0};
    for (size_t i = 0; i < NHOSTILE; i++) {
        struct buf b = {0}, back = {0};
        sql_ident(&b, hostile[i]);
        CHECK(unquote(b.data, '"', false, &back));
        CHECK_STR(buf_cstr(&back), hostile[i]);
        buf_reset(&back);
        const char *sql = sql_quoted_literal(&a, hostile[i]);
        bool escapes = strchr(hostile[i], '\\') != NULL;
        /* A blank before E: "LIKE" and E'' must not become one word. */
        CHECK(!escapes || !strncmp(sql, " E'", 3));
        CHECK(unquote(escapes ? sql + 2 : sql, '\'', escapes, &back));
        CHECK_STR(buf_cstr(&back), hostile[i]);
        buf_free(&b);
        buf_free(&back);
    }
    CHECK_STR(sql_quoted_table(&a, "s\"x", "t.y"), "\"s\"\"x\".\"t.y\"");
    CHECK_STR(sql_quoted_literal(&a, "it's"), "'it''s'");
    CHECK_STR(sql_quoted_literal(&a, "\\"), " E'\\\\'");
    arena_free(&a);
}

/* Undoes JSON's escapes; false if the text is no JSON string. */
static bool unjson(const char *s, size_t n, struct buf *out)
{
    if (n < 2 || s[0] != '"' || s[n - 1] != '"') return false;
    for (size_t i = 1; i < n - 1; i++) {
        unsigned code;
        if ((unsigned char) s[i] < 0x20 || s[i] == '"') return false;
        if (s[i] != '\\') {
            buf_char(out, s[i]);
        } else if (s[++i] == 'n') {
            buf_char(out, '\n');
        } else if (s[i] == 'u' && sscanf(s + i + 1, "%4x", &code) == 1 && code < 0x20) {
            buf_char(out, (char) code);
            i += 4;
        } else if (s[i] == '"' || s[i] == '\\') {
            buf_char(out, s[i]);
        } else {
            return false;
        }
        if (i >= n - 1) return false;
    }
    return true;
}

static void test_json(void)
{
    char all[256];
    for (int i = 0; i < 256; i++) all[i] = (char) i;
    struct buf b = {0}, back = {0};
    json_bytes(&b, all, sizeof all);
    CHECK(unjson(b.data, b.len, &back) && back.len == sizeof all);
    CHECK(!memcmp(back.data, all, sizeof all));
    for (size_t i = 0; i < NHOSTILE; i++) {
        buf_reset(&b);
        buf_reset(&back);
        json_str(&b, hostile[i]);
        CHECK(unjson(b.data, b.len, &back));
        CHECK_STR(buf_cstr(&back), hostile[i]);
    }
    buf_reset(&b);
    json_shown(&b, "\xc3\xa4 \xc3|\xe2\x82\xac\xe2\x82|\xf0\x9f\x98\x80\xed\xa0\x80\xff\xc0\xaf");
    CHECK_STR(b.data, "\"\xc3\xa4 \xef\xbf\xbd|\xe2\x82\xac\xef\xbf\xbd\xef\xbf\xbd|"
                      "\xf0\x9f\x98\x80\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"
                      "\xef\xbf\xbd\xef\xbf\xbd\"");
    buf_reset(&b);
    json_str(&b, "a\"b\\c\nd\te\001");
    CHECK_STR(b.data, "\"a\\\"b\\\\c\\nd\\u0009e\\u0001\"");
    buf_free(&b);
    buf_free(&back);
}

static void test_str_copy(void)
{
    char to[5];
    str_copy(to, sizeof to, "abc");
    CHECK_STR(to, "abc");
    str_copy(to, sizeof to, "abcdefgh");
    CHECK_STR(to, "abcd");
}

/* ---- os ---- */

static void test_points_off(void)
{
    CHECK(!getenv("TWSYNC_FAULT"));
    for (int i = 0; i < 3; i++)
        CHECK(!os_testpoint("apply.window") && !os_testpoint("repl.confirm"));
}

static status past_point(struct tw_error *e)
{
    TESTPOINT(e, "unit.point");
    return TW_OK;
}

static void test_points_on(void)
{
    struct tw_error e = {0};
    memset(&test_hook, 0, sizeof test_hook);
    setenv("TWSYNC_FAULT", "unit.point:2:error", 1);
    log_sink.quiet = true;
    CHECK(past_point(&e) == TW_OK && !os_testpoint("unit.other"));
    CHECK(past_point(&e) == TW_ECONN); /* the second time, and only then */
    error_clear(&e);
    CHECK(past_point(&e) == TW_OK);
    log_sink.quiet = false;
    unsetenv("TWSYNC_FAULT");
    memset(&test_hook, 0, sizeof test_hook);
}

static void test_files(void)
{
    struct tw_error e = {0};
    struct arena a = {0};
    struct buf b = {0};
    const char *sub = arena_fmt(&a, "%s/x/y/z", dir), *file = arena_fmt(&a, "%s/f", sub);
    CHECK(os_make_dir(sub, &e) == TW_OK && os_make_dir(sub, &e) == TW_OK);
    struct stat st;
    CHECK(stat(sub, &st) == 0 && S_ISDIR(st.st_mode) && (st.st_mode & 077) == 0);
    CHECK(os_replace_file(sub, "f", "one", 3, &e) == TW_OK);
    CHECK(os_replace_file(sub, "f", "two\0!", 5, &e) == TW_OK);
    CHECK(stat(file, &st) == 0 && (st.st_mode & 077) == 0);
    CHECK(os_read_file(file, &b, 5, &e) == TW_OK && b.len == 5 && !memcmp(b.data, "two\0!", 5));
    buf_reset(&b);
    CHECK(os_read_file(file, &b, 4, &e) == TW_ELIMIT);
    error_clear(&e);
    CHECK(os_read_file(arena_fmt(&a, "%s/none", sub), &b, 9, &e) == TW_EOS);
    CHECK(strstr(e.msg, "could not open") && strstr(e.msg, "No such file"));
    error_clear(&e);
    CHECK(os_make_dir(arena_fmt(&a, "%s/under", file), &e) == TW_EOS);
    error_clear(&e);
    /* Nobody can have it written elsewhere by a link in the way. */
    const char *victim = arena_fmt(&a, "%s/victim", sub), *link = arena_fmt(&a, "%s/.f.tmp", sub);
    CHECK(os_replace_file(sub, "victim", "safe", 4, &e) == TW_OK && symlink(victim, link) == 0);
    CHECK(os_replace_file(sub, "f", "three", 5, &e) == TW_OK);
    buf_reset(&b);
    CHECK(os_read_file(victim, &b, 9, &e) == TW_OK);
    CHECK_STR(buf_cstr(&b), "safe");
    CHECK(access(link, F_OK) != 0); /* nothing is left over */
    buf_free(&b);
    arena_free(&a);
}

static void test_sum(void)
{
    CHECK(sum_bytes(0, "", 0) == 0xcbf29ce484222325u);
    CHECK(sum_bytes(0, "a", 1) == 0xaf63dc4c8601ec8cu); /* published FNV-1a values */
    CHECK(sum_bytes(0, "foobar", 6) == 0x85944171f73967e8u);
    CHECK(sum_bytes(1, "a", 1) != sum_bytes(0, "a", 1));
}

static void test_page(void)
{
    struct tw_error e = {0};
    struct arena a = {0};
    const char *at = arena_fmt(&a, "%s/pages", dir), *file = arena_fmt(&a, "%s/page", at);
    CHECK(os_make_dir(at, &e) == TW_OK);
    CHECK(!stat_map(at, false, &e) && e.code == TW_EOS);
    error_clear(&e);
    struct stat_page *w = stat_map(at, true, &e);
    CHECK(w != NULL);
    if (!w) return;
    CHECK(zeroed((const char *) w, sizeof *w));
    CHECK(!stat_map(at, false, &e)); /* no magic: not ours, or not of this version */
    error_clear(&e);
    w->magic = STAT_MAGIC;
    w->task[1].rows = 42;
    const struct stat_page *r = stat_map(at, false, &e);
    CHECK(r && r->task[1].rows == 42);
    if (r) munmap((void *) (uintptr_t) r, sizeof *r);
    munmap(w, sizeof *w);
    CHECK(truncate(file, 100) == 0 && !stat_map(at, false, &e) && strstr(e.msg, "wrong size"));
    arena_free(&a);
}

/* ---- checkpoint ---- */

/* Every field another value, the texts as long as they can be. */
static struct ckpt full_ckpt(void)
{
    struct ckpt c;
    memset(&c, 0, sizeof c);
    int64_t n = INT64_MIN;
    char *const texts[] = {c.task, c.state, c.phase, c.rung, c.source_system, c.slot_name,
                           c.last_error};
    const size_t sizes[] = {sizeof c.task, sizeof c.state, sizeof c.phase, sizeof c.rung,
                            sizeof c.source_system, sizeof c.slot_name, sizeof c.last_error};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        memset(texts[i], 'a' + (int) i, sizes[i] - 1);
        texts[i][1] = ' ';
    }
    c.received_lsn = UINT64_MAX;
    c.applied_lsn = 0x16B374D848;
    c.confirmed_lsn = 1;
#define X(name) c.name = n, n = n < 0 ? INT64_MAX : n / 2 + 3;
    STAT_COUNTERS(X)
#undef X
    return c;
}

static bool ckpt_same(const struct ckpt *x, const struct ckpt *y)
{
    bool same = str_is(x->task, y->task) && str_is(x->state, y->state) &&
                str_is(x->phase, y->phase) && str_is(x->rung, y->rung) &&
                str_is(x->source_system, y->source_system) &&
                str_is(x->slot_name, y->slot_name) && str_is(x->last_error, y->last_error) &&
                x->received_lsn == y->received_lsn && x->applied_lsn == y->applied_lsn &&
                x->confirmed_lsn == y->confirmed_lsn;
#define X(name) same = same && x->name == y->name;
    STAT_COUNTERS(X)
#undef X
    return same;
}

/* ckpt_parse() writes into its text: give it a copy that ends where it ends. */
static bool parse_copy(const char *text, size_t n, struct ckpt *c)
{
    char *copy = mem_resize(NULL, n + 1);
    memcpy(copy, text, n);
    copy[n] = '\0';
    bool ok = ckpt_parse(copy, n, c);
    free(copy);
    return ok;
}

static void test_ckpt_round_trip(void)
{
    struct ckpt c = full_ckpt(), back, empty;
    struct buf b = {0};
    ckpt_render(&c, &b);
    CHECK(parse_copy(b.data, b.len, &back) && ckpt_same(&c, &back));
    memset(&empty, 0, sizeof empty);
    buf_reset(&b);
    ckpt_render(&empty, &b);
    CHECK(parse_copy(b.data, b.len, &back) && ckpt_same(&empty, &back));
    str_copy(c.last_error, sizeof c.last_error, "one\ncrc 00000000\n\nthree");
    buf_reset(&b);
    ckpt_render(&c, &b);
    CHECK(parse_copy(b.data, b.len, &back));
    CHECK_STR(back.last_error, "one crc 00000000  three");
    buf_free(&b);
}

static void test_ckpt_cut(void)
{
    struct ckpt c = full_ckpt(), back;
    struct buf b = {0};
    int accepted = 0;
    ckpt_render(&c, &b);
    for (size_t n = 0; n < b.len; n++) accepted += parse_copy(b.data, n, &back);
    CHECK(accepted == 0);
    buf_char(&b, '\n');
    CHECK(!parse_copy(b.data, b.len, &back)); /* nor with anything behind */
    buf_free(&b);
}

/* One bit: refused, but for the case of the sum's own hex digits, and then nothing is changed. */
static void test_ckpt_bits(void)
{
    struct ckpt c = full_ckpt(), back;
    struct buf b = {0};
    int accepted = 0;
    str_copy(c.last_error, sizeof c.last_error, "what it was");
    ckpt_render(&c, &b);
    size_t digits = b.len - 9;
    for (size_t i = 0; i < b.len * 8; i++) {
        b.data[i / 8] = (char) (b.data[i / 8] ^ 1 << i % 8);
        if (parse_copy(b.data, b.len, &back)) {
            accepted++;
            CHECK(i / 8 >= digits && ckpt_same(&c, &back));
        }
        b.data[i / 8] = (char) (b.data[i / 8] ^ 1 << i % 8);
    }
    if (accepted) printf("\n%d flips of the sum's own digits are not noticed", accepted);
    CHECK(accepted == 0);
    buf_free(&b);
}

static void test_ckpt_other(void)
{
    struct ckpt c = full_ckpt(), back;
    struct buf b = {0};
    ckpt_render(&c, &b);
    /* Another version, with a right sum of its own. */
    char *digit = strstr(b.data, "checkpoint 1") + 11;
    size_t body = b.len - strlen("crc 00000000\n");
    *digit = '2';
    snprintf(b.data + body, b.cap - body, "crc %08lx\n",
             crc32(0, (const unsigned char *) b.data, (unsigned) body));
    CHECK(!parse_copy(b.data, b.len, &back));
    *digit = '1';
    snprintf(b.data + body, b.cap - body, "crc %08lx\n",
             crc32(0, (const unsigned char *) b.data, (unsigned) body));
    CHECK(parse_copy(b.data, b.len, &back)); /* this test's own sums are right */
    CHECK(!parse_copy("", 0, &back));
    CHECK(!parse_copy("\n", 1, &back));
    buf_free(&b);
}

static void test_ckpt_file(void)
{
    struct arena a = {0};
    struct tw_error e = {0};
    struct ckpt c = full_ckpt(), back;
    struct job job = {.state_dir = arena_fmt(&a, "%s/ckpt", dir)};
    log_sink.quiet = true;
    CHECK(os_make_dir(job.state_dir, &e) == TW_OK);
    CHECK(!ckpt_read(&job, TW_FORWARD, &back));
    memset(&back, 0, sizeof back);
    CHECK(ckpt_write(&job, TW_FORWARD, &c, &e) == TW_OK);
    CHECK(ckpt_read(&job, TW_FORWARD, &back) && ckpt_same(&c, &back));
    CHECK(!ckpt_read(&job, TW_REVERSE, &back)); /* each task its own */
    c.rows = 5;
    CHECK(ckpt_write(&job, TW_FORWARD, &c, &e) == TW_OK);
    CHECK(ckpt_read(&job, TW_FORWARD, &back) && back.rows == 5);
    /* Where it cannot be written: an error that names the place, and the old one stays. */
    struct job nowhere = {.state_dir = arena_fmt(&a, "%s/none", dir)};
    CHECK(ckpt_write(&nowhere, TW_FORWARD, &c, &e) == TW_EOS && strstr(e.msg, nowhere.state_dir));
    error_clear(&e);
    c.rows = 6;
    CHECK(mkdir(arena_fmt(&a, "%s/.forward.ckpt.tmp", job.state_dir), 0700) == 0); /* root too */
    CHECK(ckpt_write(&job, TW_FORWARD, &c, &e) == TW_EOS && strstr(e.msg, "could not create"));
    CHECK(ckpt_read(&job, TW_FORWARD, &back) && back.rows == 5);
    arena_free(&a);
    log_sink.quiet = false;
}

/* ---- what a command line means ---- */

/* Texts of the page may be caught without their end, and its numbers may be anything. */
static void test_status_copy(void)
{
    struct stat_page page = {.magic = STAT_MAGIC};
    struct job job = {.name = "shop", .path = "shop.ini"};
    struct report *r = mem_resize(NULL, sizeof *r);
    struct buf b = {0};
    struct stat_task *t = &page.task[TW_FORWARD];
    job.task[TW_FORWARD].enabled = true;
    job.node[0].letter = 'a';
    job.node[1].letter = 'b';
    memset(t->rung, 'r', sizeof t->rung);
    memset(t->phase, 'p', sizeof t->phase);
    memset(t->last_error, 'e', sizeof t->last_error);
    memset(t->look.waits, 'w', sizeof t->look.waits);
    memset(t->look.parked, 'k', sizeof t->look.parked);
    memset(t->look.conflicts, 'c', sizeof t->look.conflicts);
    memset(page.node[0].holders, 'h', sizeof page.node[0].holders);
    memset(page.copying.tables, 'n', sizeof page.copying.tables);
    memset(page.alerts, 'a', sizeof page.alerts);
    memset(page.lease.holder, 'l', sizeof page.lease.holder);
    page.copying.n = 1000000;
    page.lease.state = -1;
    t->state = -7;
    t->look.edits = 1; /* and its writer is no more */
    report_read(r, &job, &page, true);
    CHECK(strlen(r->page.task[TW_FORWARD].rung) == sizeof t->rung - 1);
    CHECK(strlen(r->page.task[TW_FORWARD].phase) == sizeof t->phase - 1);
    CHECK(strlen(r->page.task[TW_FORWARD].last_error) == sizeof t->last_error - 1);
    report_json(r, &b);
    CHECK(strstr(b.data, "\"state\":\"unknown\",\"phase\":\"ppppppppppppppp\",\"rung\":\"rrr"));
    CHECK(strstr(b.data, "\"recent_conflicts\":[]"));
    CHECK(b.len == strlen(b.data) && str_is(b.data + b.len - 3, "]}\n"));
    report_metrics(r, &b);
    report_history(r, &b);
    report_text(r, &b);
    CHECK(b.len == strlen(b.data));
    report_free(r);
    mem_free(r);
    buf_free(&b);
}

static void test_exit_codes(void)
{
    static const int want[TW_NSTATUS] = {
        [TW_OK] = 0,        [TW_ECONN] = 5,     [TW_EBUSY] = 5,   [TW_ETXN] = 1,
        [TW_ESERVER] = 1,   [TW_EOS] = 1,       [TW_ELIMIT] = 1,  [TW_ECONFLICT] = 1,
        [TW_EGAP] = 1,      [TW_EPROTO] = 1,    [TW_EJOB] = 2,    [TW_ECHECK] = 3,
        [TW_ESCHEMA] = 1,   [TW_EFENCED] = 4,   [TW_ESTOP] = 0,   [TW_EINTERNAL] = 70,
    };
    for (int i = 0; i < TW_NSTATUS; i++) CHECK(sup_exit_code((status) i) == want[i]);
    CHECK(EXIT_LEFTOVERS == 6 && EXIT_OOM == 71);
}

static char heard[4096];

/* Run f with standard output and error going to `heard`. */
static int overhear(int (*f)(int, char **), int argc, char **argv)
{
    struct arena a = {0};
    const char *file = arena_fmt(&a, "%s/heard", dir);
    fflush(stdout);
    int fd = open(file, O_CREAT | O_RDWR | O_TRUNC | O_CLOEXEC, 0600);
    int out = dup(STDOUT_FILENO), err = dup(STDERR_FILENO);
    dup2(fd, STDOUT_FILENO);
    dup2(fd, STDERR_FILENO);
    int rc = f(argc, argv);
    fflush(stdout);
    fflush(stderr);
    dup2(out, STDOUT_FILENO);
    dup2(err, STDERR_FILENO);
    close(out);
    close(err);
    ssize_t n = pread(fd, heard, sizeof heard - 1, 0);
    heard[n > 0 ? n : 0] = '\0';
    close(fd);
    arena_free(&a);
    return rc;
}

static struct cli parsed;

static int parse(int argc, char **argv)
{
    parsed = (struct cli){.command = argv[1]};
    return cli_parse(&parsed, argc, argv);
}

/* "run x --quiet" as argc and argv. */
static int words(int (*f)(int, char **), const char *line)
{
    static char text[256];
    static char name[] = "twsync";
    char *argv[16] = {name}, *save = NULL;
    int argc = 1;
    str_copy(text, sizeof text, line);
    for (char *w = strtok_r(text, " ", &save); w; w = strtok_r(NULL, " ", &save)) argv[argc++] = w;
    return overhear(f, argc, argv);
}

static void test_cli_parse(void)
{
    CHECK(words(parse, "run shop.ini") == 0);
    CHECK_STR(parsed.job_path, "shop.ini");
    CHECK(!parsed.json && !parsed.connect && !parsed.apply && !parsed.quiet && !parsed.log);
    CHECK(words(parse, "check --json shop.ini --connect --quiet --log json") == 0);
    CHECK(parsed.json && parsed.connect && parsed.quiet && str_is(parsed.log, "json"));
    CHECK_STR(parsed.job_path, "shop.ini");
    CHECK(words(parse, "status j --json") == 0 && parsed.json);
    CHECK(words(parse, "sequences j --to a --apply") == 0 && parsed.apply);
    CHECK_STR(parsed.to, "a");
    CHECK(words(parse, "sequences j --to b") == 0 && !parsed.apply && str_is(parsed.to, "b"));
    CHECK_STR(heard, "");
}

static void test_cli_mistakes(void)
{
    static const struct {
        const char *line, *want;
    } bad[] = {
        {"run", "which job?"},
        {"run a.ini b.ini", "more than one job file"},
        {"run a.ini --nonsense", "unknown option \"--nonsense\""},
        {"run a.ini -q", "unknown option \"-q\""},
        {"run a.ini --json", "option --json does not belong to \"run\""},
        {"status a.ini --connect", "option --connect does not belong to \"status\""},
        {"release a.ini --apply", "option --apply does not belong to \"release\""},
        {"show a.ini --to a", "option --to does not belong to \"show\""},
        {"sequences a.ini --to", "--to takes a or b"},
        {"sequences a.ini --to c", "--to takes a or b"},
        {"run a.ini --log", "--log takes text or json"},
        {"run a.ini --log xml", "--log takes text or json"},
        {"run postgres://u:canary@h/d", "connections belong into the job file"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK(words(parse, bad[i].line) == EXIT_JOB);
        CHECK(strstr(heard, bad[i].want) && strstr(heard, "--help") && !strstr(heard, "canary"));
    }
}

static void test_cli_main(void)
{
    CHECK(words(twsync_main, "") == EXIT_JOB && strstr(heard, "Usage:"));
    CHECK(words(twsync_main, "--help") == 0 && strstr(heard, "Usage:"));
    CHECK(words(twsync_main, "help") == 0 && strstr(heard, "Usage:"));
    CHECK(words(twsync_main, "--version") == 0 && strstr(heard, "twsync " TWSYNC_VERSION));
    CHECK(strstr(heard, "libpq ") && strstr(heard, "OpenSSL ") && strstr(heard, "zlib ") &&
          strstr(heard, "inih "));
    CHECK(words(twsync_main, "rum x") == EXIT_JOB && strstr(heard, "unknown command \"rum\""));
    CHECK(words(twsync_main, "show /nowhere/job.ini") == EXIT_JOB);
    CHECK(strstr(heard, "/nowhere/job.ini"));
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        char line[64];
        snprintf(line, sizeof line, "%s --help", commands[i].name);
        CHECK(words(twsync_main, line) == 0 && strstr(heard, commands[i].what));
        CHECK(words(twsync_main, "--help") == 0 && strstr(heard, commands[i].what));
        /* Its options are known to the parser. */
        struct arena a = {0};
        char *save = NULL;
        char *list = arena_str(&a, commands[i].options);
        for (char *w = strtok_r(list, "[] ", &save); w; w = strtok_r(NULL, "[] ", &save)) {
            if (strncmp(w, "--", 2)) continue;
            snprintf(line, sizeof line, "%s j %s a", commands[i].name, w);
            words(parse, line);
            CHECK(!strstr(heard, "unknown option") && !strstr(heard, "does not belong"));
        }
        arena_free(&a);
    }
}

static const struct t_test tests[] = {
    {"status table", test_status_table},
    {"the first error wins", test_first_error_wins},
    {"TRY", test_try},
    {"arena", test_arena},
    {"arena: large", test_arena_large},
    {"arena: releases in reverse order", test_arena_defer},
    {"buf", test_buf},
    {"positions", test_lsn},
    {"positions, strictly", test_lsn_strict},
    {"SQL quoting", test_sql_quoting},
    {"JSON", test_json},
    {"copying strings", test_str_copy},
    {"test points off", test_points_off},
    {"test points on", test_points_on},
    {"files", test_files},
    {"hash", test_sum},
    {"page of counters", test_page},
    {"checkpoint: round trip", test_ckpt_round_trip},
    {"checkpoint: cut at every byte", test_ckpt_cut},
    {"checkpoint: every bit flipped", test_ckpt_bits},
    {"checkpoint: other versions", test_ckpt_other},
    {"checkpoint: file", test_ckpt_file},
    {"exit codes", test_exit_codes},
    {"status: a page in mid-change", test_status_copy},
    {"command line", test_cli_parse},
    {"command line: mistakes", test_cli_mistakes},
    {"command line: main", test_cli_main},
};

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *at)
{
    (void) st;
    (void) kind;
    (void) at;
    return remove(path);
}

int main(int argc, char **argv)
{
    const char *tmp = getenv("TMPDIR");
    unsetenv("TWSYNC_FAULT");
    snprintf(dir, sizeof dir, "%.40s/twsync-unit-XXXXXX", tmp ? tmp : "/tmp");
    if (!mkdtemp(dir)) return 1;
    int rc = t_run(tests, sizeof tests / sizeof *tests, argc, argv);
    nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    return rc;
}
