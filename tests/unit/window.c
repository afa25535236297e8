/* window.c: changes that wait, folded to one net change per key (19). */
#define TWSYNC_LIBRARY
#include "../../twsync.c"

#include "../t.h"
#include "rel.h"

/* ---- changes and net changes as people read them ---- */

/* "I(1 x y)", "U(1 x y)(1 p y)" with the old row, "U()(1 p y)" without, "UK(2 n n)(1 x y)" with the
 * old key, "D(1 x y)", "DK(1 n n)"; several with ';' between them.  n is NULL, u unchanged. */
static struct tuple read_row(struct arena *a, const char **text, int n)
{
    const char *words[16];
    int count = 0;
    const char *p = *text + 1;
    while (*p && *p != ')') {
        size_t len = strcspn(p, " )");
        words[count++] = arena_bytes(a, p, len);
        p += len + (p[len] == ' ');
    }
    *text = *p ? p + 1 : p;
    if (!count) return (struct tuple){0};
    CHECK(count == n);
    return make_row(a, n, words);
}

static struct change read_change(struct arena *a, struct rel *rel, const char **text)
{
    struct change c = {.rel = rel, .commit_lsn = 100};
    const char *p = *text + strspn(*text, " ;");
    c.m.kind = *p++;
    char old_kind = 'O';
    if (*p == 'K') old_kind = *p++;
    if (c.m.kind != 'I') c.m.old = read_row(a, &p, rel->ncolumns);
    if (c.m.kind != 'D') c.m.new = read_row(a, &p, rel->ncolumns);
    if (c.m.old.n) c.m.old_kind = old_kind;
    *text = p + strspn(p, " ;");
    return c;
}

static void write_row(struct buf *b, const struct tuple *t)
{
    for (int i = 0; i < t->n; i++) {
        const struct value *v = &t->values[i];
        const char none[] = {v->kind, '\0'};
        buf_fmt(b, "%s%s", i ? " " : "(", value_text(v) ? value_text(v) : none);
    }
    if (t->n) buf_char(b, ')');
}

/* What goes or is changed, with the old row it must meet; "U[a b]": of these columns. */
static void write_net(struct buf *b, const struct net *n)
{
    if (b->len) buf_str(b, "; ");
    if (n->m.kind == 'U') {
        const char *sep = "";
        buf_str(b, "U[");
        for (int i = 0; i < n->rel->ncolumns; i++) {
            if (!n->cols->set[i]) continue;
            buf_fmt(b, "%s%s", sep, n->rel->columns[i].name);
            sep = " ";
        }
        buf_char(b, ']');
    } else if (n->m.kind != 'I') {
        buf_char(b, n->m.kind);
    }
    if (n->m.old_kind == 'K') buf_char(b, 'K');
    if (n->m.old_kind) write_row(b, &n->m.old);
    if (n->m.kind == 'U' || n->m.kind == 'A') write_row(b, &n->m.new);
    if (n->insert) {
        buf_str(b, n->m.kind == 'I' ? "I" : " I");
        write_row(b, &n->m.new);
    }
}

/* The net changes of keys that are one digit; others only fill the window.  Then "| rows" if it
 * goes row by row, or "| later" if it had to end before the last change. */
static const char *fold_into(struct window *w, struct rel *rel, const char *text)
{
    static char out[1000];
    enum take take = TAKE_DONE;
    while (*text && take == TAKE_DONE) {
        struct change c = read_change(&w->arena, rel, &text);
        take = window_add(w, &c);
    }
    CHECK(!*text);
    struct buf b = {0};
    for (uint32_t i = 0; i < w->nnets && !w->by_row; i++)
        if (!w->nets[i].rel->nident || net_key(&w->nets[i], 0)->len == 1)
            write_net(&b, &w->nets[i]);
    if (w->by_row) buf_str(&b, "| rows");
    if (take == TAKE_LATER) buf_str(&b, b.len ? " | later" : "| later");
    snprintf(out, sizeof out, "%s", buf_cstr(&b));
    buf_free(&b);
    return out;
}

static const char *fold(struct rel *rel, const char *text)
{
    struct window w = {.number = 1};
    rel->brought_in = 0;
    const char *out = fold_into(&w, rel, text);
    window_free(&w);
    return out;
}

/* The same in a window of many changes, which ends rather than goes row by row. */
static void fill(struct window *w, struct rel *rel, int from, int n)
{
    for (int i = 0; i < n; i++) {
        const char *key = arena_fmt(&w->arena, "%d", from + i);
        struct change c = {.rel = rel, .m = {.kind = 'I'}};
        c.m.new = make_row(&w->arena, 3, (const char *const[]){key, "0", "0"});
        CHECK(window_add(w, &c) == TAKE_DONE);
    }
}

static const char *fold_late(struct rel *rel, const char *text)
{
    struct window w = {.number = 1};
    rel->brought_in = 0;
    fill(&w, rel, 1000, WINDOW_FEW + 1);
    rel->brought_in = 0;
    const char *out = fold_into(&w, rel, text);
    window_free(&w);
    return out;
}

/* k, a, b; key k. */
static struct rel *make_table(char replident)
{
    static const struct column columns[] = {{"k", true, ' '}, {"a", false, ' '}, {"b", false, ' '}};
    struct rel *rel = make_rel("s", "t", replident, 3, columns, 1, (const int[]){0});
    rel->bulk = rel->same_keys = true;
    return rel;
}

static void check_folds(struct rel *rel, const char *const (*cases)[2], size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const char *got = fold(rel, cases[i][0]);
        if (!str_is(got, cases[i][1])) printf("\n%s:", cases[i][0]);
        CHECK_STR(got, cases[i][1]);
    }
}

#define CHECK_FOLDS(rel, cases) check_folds(rel, cases, sizeof(cases) / sizeof *(cases))

/* ---- one key ---- */

static void test_full(void)
{
    static const char *const cases[][2] = {
        {"I(1 x y)", "I(1 x y)"},
        {"U(1 x y)(1 p y)", "U[a](1 x y)(1 p y)"},
        {"U(1 x y)(1 x y)", "U[](1 x y)(1 x y)"},
        {"D(1 x y)", "D(1 x y)"},
        {"I(1 x y); U(1 x y)(1 p y)", "I(1 p y)"},
        {"I(1 x y); D(1 x y)", "A(1 x y)"},
        {"U(1 x y)(1 p y); U(1 p y)(1 q y)", "U[a](1 x y)(1 q y)"},
        {"U(1 x y)(1 p y); U(1 p y)(1 p q)", "U[a b](1 x y)(1 p q)"},
        {"U(1 x y)(1 p y); U(1 p y)(1 x y)", "U[a](1 x y)(1 x y)"},
        {"U(1 n y)(1 p y); U(1 p y)(1 n y)", "U[a](1 n y)(1 n y)"},
        {"U(1 x y)(1 p y); D(1 p y)", "D(1 x y)"},
        {"D(1 x y); I(1 p q)", "D(1 x y) I(1 p q)"},
        {"I(1 x y); U(1 x y)(1 p y); U(1 p y)(1 p q)", "I(1 p q)"},
        {"I(1 x y); U(1 x y)(1 p y); D(1 p y)", "A(1 p y)"},
        {"I(1 x y); D(1 x y); I(1 p q)", "I(1 p q)"},
        {"U(1 x y)(1 p y); U(1 p y)(1 p q); U(1 p q)(1 r q)", "U[a b](1 x y)(1 r q)"},
        {"U(1 x y)(1 p y); U(1 p y)(1 p q); D(1 p q)", "D(1 x y)"},
        {"U(1 x y)(1 p y); D(1 p y); I(1 r s)", "D(1 x y) I(1 r s)"},
        {"D(1 x y); I(1 p q); U(1 p q)(1 r q)", "D(1 x y) I(1 r q)"},
        {"D(1 x y); I(1 p q); D(1 p q)", "D(1 x y)"},
        {"D(1 x y); I(1 p q); D(1 p q); I(1 r s)", "D(1 x y) I(1 r s)"},
        {"I(1 x y); D(1 x y); I(1 p q); D(1 p q)", "A(1 p q)"},
        {"I(1 x y); I(2 x y); D(1 x y); U(2 x y)(2 p y)", "A(1 x y); I(2 p y)"},
    };
    struct rel *rel = make_table('f');
    CHECK_FOLDS(rel, cases);
    rel_free(rel);
}

/* Without old images: an update writes all that came. */
static void test_key(void)
{
    static const char *const cases[][2] = {
        {"U()(1 p y)", "U[a b](1 p y)"},
        {"U()(1 p u)", "U[a](1 p u)"},
        {"U()(1 p y); U()(1 q z)", "U[a b](1 q z)"},
        {"U()(1 p y); U()(1 q u)", "U[a b](1 q y)"},
        {"U()(1 p u); U()(1 q z)", "U[a b](1 q z)"},
        {"U()(1 p u); U()(1 u z)", "U[a b](1 p z)"},
        {"I(1 p y); U()(1 q u)", "I(1 q y)"},
        {"I(1 p y); U()(1 q u); DK(1 n n)", "A(1 q y)"},
        {"U()(1 p y); DK(1 n n)", "DK(1 n n)"},
        {"DK(1 n n); I(1 p q)", "DK(1 n n) I(1 p q)"},
        {"DK(1 n n); I(1 p q); U()(1 u r)", "DK(1 n n) I(1 p r)"},
        {"DK(1 n n); I(1 p q); DK(1 n n)", "DK(1 n n)"},
        {"I(1 p q); DK(1 n n); I(1 r s)", "I(1 r s)"},
    };
    struct rel *rel = make_table('d');
    CHECK_FOLDS(rel, cases);
    rel_free(rel);
}

/* What did not travel keeps the earlier value, with old images too. */
static void test_unchanged(void)
{
    static const char *const cases[][2] = {
        {"U(1 x y)(1 p u)", "U[a](1 x y)(1 p u)"},
        {"U(1 x y)(1 p u); U(1 p y)(1 q u)", "U[a](1 x y)(1 q u)"},
        {"U(1 x y)(1 u p); U(1 x p)(1 q u)", "U[a b](1 x y)(1 q p)"},
        {"U(1 x y)(1 p u); U(1 p y)(1 u q)", "U[a b](1 x y)(1 p q)"},
        {"I(1 x y); U(1 x y)(1 p u)", "I(1 p y)"},
        {"D(1 x y); I(1 p q); U(1 p q)(1 u r)", "D(1 x y) I(1 p r)"},
        {"U(1 x y)(1 p u); D(1 p y)", "D(1 x y)"},
    };
    struct rel *rel = make_table('f');
    CHECK_FOLDS(rel, cases);
    rel_free(rel);
}

/* Every run of changes that a source can make to one row: executed, the net change ends where the
 * changes end, and what it must meet is the row as it was. */
static void every_run(struct rel *rel, int length, unsigned choice, bool there)
{
    struct window w = {.number = 1};
    char row[2][3] = {"xy", "xy"}; /* at first, and now */
    bool first = there;
    char next = 'a';
    for (int i = 0; i < length; i++, choice /= 3) {
        struct change c = {.rel = rel};
        char old[2][2] = {{row[1][0]}, {row[1][1]}};
        c.m.kind = !there ? 'I' : choice % 3 ? 'U' : 'D';
        if (there) {
            c.m.old_kind = 'O';
            c.m.old = make_row(&w.arena, 3, (const char *const[]){
                "1", arena_str(&w.arena, old[0]), arena_str(&w.arena, old[1])});
        }
        there = c.m.kind != 'D';
        if (c.m.kind == 'I' || choice % 3 == 1) row[1][0] = next++;
        if (c.m.kind == 'I' || choice % 3 == 2) row[1][1] = next++;
        char now[2][2] = {{row[1][0]}, {row[1][1]}};
        if (there)
            c.m.new = make_row(&w.arena, 3, (const char *const[]){
                "1", arena_str(&w.arena, now[0]), arena_str(&w.arena, now[1])});
        CHECK(window_add(&w, &c) == TAKE_DONE && !w.by_row);
    }
    const struct net *n = w.nets;
    CHECK(w.nnets == 1 && w.n == length);
    CHECK((n->m.kind == 'U' || n->m.kind == 'D') == first);
    CHECK((n->insert || n->m.kind == 'U') == there);
    for (int i = 0; i < 2; i++) {
        char was[] = {row[0][i], '\0'}, now[] = {row[1][i], '\0'};
        if (first) CHECK_STR(n->m.old.values[i + 1].data, was);
        if (there) CHECK_STR(n->m.new.values[i + 1].data, now);
        if (n->m.kind == 'U') CHECK(n->cols->set[i + 1] == (was[0] != now[0]));
    }
    window_free(&w);
}

static void test_every_run(void)
{
    struct rel *rel = make_table('f');
    unsigned most = 3;
    for (int length = 1; length <= 6; length++, most *= 3)
        for (unsigned choice = 0; choice < 2 * most; choice++)
            every_run(rel, length, choice / 2, choice % 2);
    rel_free(rel);
}

/* ---- what is not folded ---- */

/* The row was changed in between by somebody whose changes are not in this stream. */
static void test_discontinuous(void)
{
    static const char *const cases[][2] = {
        {"U(1 x y)(1 p y); U(1 r y)(1 q y)", "U[a](1 x y)(1 p y) | later"},
        {"U(1 x y)(1 p y); U(1 n y)(1 q y)", "U[a](1 x y)(1 p y) | later"},
        {"U(1 x y)(1 p y); D(1 r y)", "U[a](1 x y)(1 p y) | later"},
        {"I(1 x y); U(1 r y)(1 q y)", "I(1 x y) | later"},
        {"I(1 x y); D(1 x r)", "I(1 x y) | later"},
        {"I(1 x y); I(1 p q)", "I(1 x y) | later"},
        {"U(1 x y)(1 p y); I(1 p q)", "U[a](1 x y)(1 p y) | later"},
        {"D(1 x y); U(1 x y)(1 p y)", "D(1 x y) | later"},
        {"D(1 x y); D(1 x y)", "D(1 x y) | later"},
        {"I(1 x y); D(1 x y); U(1 x y)(1 p y)", "A(1 x y) | later"},
        {"I(1 x y); D(1 x y); D(1 x y)", "A(1 x y) | later"},
        {"U(1 x y)(1 p y); U()(1 q y)", "U[a](1 x y)(1 p y) | later"},
        /* Of a column that nobody wrote here the later old value counts. */
        {"U(1 x y)(1 p y); U(1 p r)(1 p q)", "U[a b](1 x r)(1 p q)"},
        {"U(1 x y)(1 p y); D(1 p r)", "D(1 x r)"},
    };
    struct rel *rel = make_table('f');
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        CHECK_STR(fold_late(rel, cases[i][0]), cases[i][1]);
        if (strstr(cases[i][1], "later")) CHECK_STR(fold(rel, cases[i][0]), "| rows");
    }
    /* Where rows are compared whole, so is what the later change leaves from. */
    rel->merge = MERGE_ROWS;
    CHECK_STR(fold_late(rel, "U(1 x y)(1 p y); U(1 p r)(1 p q)"), "U[a](1 x y)(1 p y) | later");
    CHECK_STR(fold(rel, "U(1 x y)(1 p y); U(1 p y)(1 p q)"), "U[a b](1 x y)(1 p q)");
    rel_free(rel);
}

/* A value of a secondary key that comes and goes would have met another row. */
static void test_hidden(void)
{
    static const char *const cases[][2] = {
        {"I(1 x y); D(1 x y)", "I(1 x y) | later"},
        {"I(1 x y); U(1 x y)(1 x p)", "I(1 x y) | later"},
        {"U(1 x y)(1 x p); U(1 x p)(1 x q)", "U[b](1 x y)(1 x p) | later"},
        {"U(1 x y)(1 x p); D(1 x p)", "U[b](1 x y)(1 x p) | later"},
        {"D(1 x y); I(1 x p); D(1 x p)", "D(1 x y) I(1 x p) | later"},
        {"I(1 x y); U(1 x y)(1 p y)", "I(1 p y)"},
        {"U(1 x y)(1 x p); U(1 x p)(1 r p)", "U[a b](1 x y)(1 r p)"},
        {"U(1 x y)(1 p y); U(1 p y)(1 p q)", "U[a b](1 x y)(1 p q)"},
        {"U(1 x y)(1 p y); D(1 p y)", "D(1 x y)"},
        {"D(1 x y); I(1 p q)", "D(1 x y) I(1 p q)"},
    };
    struct rel *rel = make_table('f');
    make_key(rel, 2, false);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        CHECK_STR(fold_late(rel, cases[i][0]), cases[i][1]);
    CHECK_STR(fold(rel, "I(1 x y); D(1 x y)"), "| rows");
    rel_free(rel);
}

/* Without old images what goes is written before what comes, and nothing would show that it was in
 * the way: then not in one window.  The other way round is how it was. */
static void test_disorder(void)
{
    static const char *const cases[][2] = {
        {"I(1 x y); DK(2 n n)", "I(1 x y) | later"},
        {"I(1 x y); U()(2 u q)", "I(1 x y) | later"},
        {"U()(1 u q); DK(2 n n)", "U[b](1 u q) | later"},
        {"U()(1 u q); U()(2 u r)", "U[b](1 u q) | later"},
        {"DK(2 n n); I(1 x y)", "DK(2 n n); I(1 x y)"},
        {"I(1 x y); U()(2 q u)", "I(1 x y); U[a](2 q u)"},
        {"I(1 x y); I(2 x z)", "I(1 x y); I(2 x z)"},
    };
    struct rel *rel = make_table('d');
    make_key(rel, 2, false);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        CHECK_STR(fold_late(rel, cases[i][0]), cases[i][1]);
    CHECK_STR(fold(rel, "I(1 x y); DK(2 n n)"), "| rows");
    rel_free(rel);
    /* With old images neither can be, where the source has the same keys. */
    rel = make_table('f');
    make_key(rel, 2, false);
    CHECK_STR(fold(rel, "I(1 x y); D(2 p y)"), "I(1 x y); D(2 p y)");
    rel->same_keys = false;
    CHECK_STR(fold_late(rel, "I(1 x y); D(2 p y)"), "I(1 x y) | later");
    CHECK_STR(fold_late(rel, "U(1 x y)(1 x p); U(2 x p)(2 x q)"), "U[b](1 x y)(1 x p) | later");
    CHECK_STR(fold(rel, "I(1 x y); U(2 x p)(2 y p)"), "I(1 x y); U[a](2 x p)(2 y p)");
    /* The next window starts afresh. */
    struct window w = {.number = 1};
    CHECK_STR(fold_into(&w, rel, "I(1 x y)"), "I(1 x y)");
    window_reset(&w);
    CHECK(w.number == 3);
    CHECK_STR(fold_into(&w, rel, "D(2 x y)"), "D(2 x y)");
    window_free(&w);
    rel_free(rel);
}

/* Only one by one: then the window ends before, and the next one is not folded. */
static void check_by_row(struct rel *rel, const char *text)
{
    struct window w = {.number = 1};
    CHECK_STR(fold(rel, text), "| rows");
    fill(&w, rel, 1000, 1);
    if (!w.by_row) CHECK(strstr(fold_into(&w, rel, text), "| later") && w.n == 1);
    window_free(&w);
}

static void test_rows_only(void)
{
    struct rel *rel = make_table('f');
    check_by_row(rel, "U(1 x y)(2 x y)");
    check_by_row(rel, "U(u x y)(u p y)");
    rel->targets[1].identity_always = true;
    check_by_row(rel, "U(1 x y)(1 p y)");
    CHECK_STR(fold(rel, "U(1 x y)(1 x p)"), "U[b](1 x y)(1 x p)");
    rel->bulk = false;
    check_by_row(rel, "I(1 x y)");
    check_by_row(rel, "D(1 x y)");
    rel_free(rel);
    rel = make_table('d');
    check_by_row(rel, "UK(2 n n)(1 x y)");
    rel_free(rel);
}

static void test_deferrable(void)
{
    struct rel *rel = make_table('f');
    make_key(rel, 2, true);
    check_by_row(rel, "I(1 x y)");
    check_by_row(rel, "U(1 x y)(1 x p)");
    CHECK_STR(fold(rel, "U(1 x y)(1 p y)"), "U[a](1 x y)(1 p y)");
    CHECK_STR(fold(rel, "D(1 x y)"), "D(1 x y)");
    rel_free(rel);
}

static void test_keyless(void)
{
    static const struct column columns[] = {
        {"k", false, ' '}, {"a", false, ' '}, {"b", false, ' '}};
    struct rel *rel = make_rel("s", "t", 'f', 3, columns, 0, NULL);
    rel->bulk = true;
    CHECK_STR(fold(rel, "I(1 x y); I(1 x y); I(2 p q)"), "I(1 x y); I(1 x y); I(2 p q)");
    check_by_row(rel, "U(1 x y)(1 p y)");
    check_by_row(rel, "D(1 x y)");
    rel_free(rel);
}

/* So many sets of columns are kept; an update of one more goes by itself. */
static void test_column_sets(void)
{
    enum { N = 8 };
    static const struct column columns[N] = {
        {"k", true, ' '}, {"a", false, ' '}, {"b", false, ' '}, {"c", false, ' '},
        {"d", false, ' '}, {"e", false, ' '}, {"f", false, ' '}, {"g", false, ' '}};
    struct rel *rel = make_rel("s", "t", 'f', N, columns, 1, (const int[]){0});
    struct window w = {.number = 1};
    rel->bulk = true;
    for (int set = 0; set <= REL_MAX_COLSETS; set++) {
        const char *old[N] = {arena_fmt(&w.arena, "%d", set)}, *new[N] = {old[0]};
        for (int i = 1; i < N; i++) {
            old[i] = "o";
            new[i] = set >> (i - 1) & 1 ? "x" : "o";
        }
        struct change c = {.rel = rel, .m = {.kind = 'U', .old_kind = 'O'}};
        c.m.old = make_row(&w.arena, N, old);
        c.m.new = make_row(&w.arena, N, new);
        CHECK(window_add(&w, &c) == (set < REL_MAX_COLSETS ? TAKE_DONE : TAKE_LATER));
    }
    /* One that is known still folds, but not into a union that is not kept. */
    CHECK(strstr(fold_into(&w, rel, "U(3 x x o o o o o)(3 y x o o o o o)"), "(3 y x o o o o o)"));
    CHECK(w.n == REL_MAX_COLSETS + 1 && !w.by_row);
    CHECK_STR(fold(rel, "U(1 o o o o x o o)(1 o o o o y o o); U(1 o o o o y o o)(1 o o o x y o o)"),
              "| rows");
    window_free(&w);
    rel_free(rel);
}

/* ---- the key table ---- */

static void test_many_keys(void)
{
    enum { N = 10000 };
    struct rel *rel = make_table('d');
    struct window w = {.number = 1};
    fill(&w, rel, 100000, N);
    CHECK(w.nnets == N && w.nslots >= 2 * N && (w.nslots & (w.nslots - 1)) == 0);
    for (int i = 0; i < N; i++) {
        struct change c = {.rel = rel};
        c.m.kind = i % 2 ? 'U' : 'D';
        c.m.old_kind = i % 2 ? 0 : 'K';
        const char *key = arena_fmt(&w.arena, "%d", 100000 + i);
        if (i % 2) c.m.new = make_row(&w.arena, 3, (const char *const[]){key, key, "u"});
        else c.m.old = make_row(&w.arena, 3, (const char *const[]){key, "n", "n"});
        CHECK(window_add(&w, &c) == TAKE_DONE);
    }
    CHECK(w.nnets == N && w.n == 2 * N);
    for (uint32_t i = 0; i < w.nnets; i++) {
        const struct value *now = w.nets[i].m.new.values;
        CHECK(w.nets[i].m.kind == (i % 2 ? 'I' : 'A') && w.nets[i].insert == i % 2);
        CHECK(value_equal(&now[1], i % 2 ? &now[0] : &now[2]) && str_is(now[2].data, "0"));
    }
    window_reset(&w);
    CHECK(!w.n && !w.nnets && !w.by_row && !w.closed);
    CHECK_STR(fold_into(&w, rel, "U()(1 x y)"), "U[a b](1 x y)");
    window_free(&w);
    rel_free(rel);
}

/* Keys are told apart by table, by column, and byte by byte. */
static void test_apart(void)
{
    static const struct column columns[] = {{"k", true, ' '}, {"l", true, ' '}, {"a", false, ' '}};
    struct rel *one = make_rel("s", "one", 'f', 3, columns, 2, (const int[]){0, 1});
    struct rel *other = make_rel("s", "other", 'f', 3, columns, 2, (const int[]){0, 1});
    one->bulk = other->bulk = true;
    struct window w = {.number = 1};
    fold_into(&w, one, "I(1 23 x); I(12 3 x); I(1 2 x); I(1.0 2 x); I(2 1 x)");
    fold_into(&w, other, "I(1 23 x)"); /* the same relid even: a table described anew */
    CHECK(w.nnets == 6 && !w.by_row);
    fold_into(&w, other, "D(1 23 x)");
    CHECK(w.nnets == 6 && w.nets[0].m.kind == 'I' && w.nets[5].m.kind == 'A');
    window_free(&w);
    rel_free(one);
    rel_free(other);
}

/* ---- limits ---- */

/* The index of a column that came after the columns were read: the description is not one. */
static void test_torn(void)
{
    PGresult *r = PQmakeEmptyPGresult(NULL, PGRES_TUPLES_OK);
    PGresAttDesc names[11];
    char name[] = "c";
    const char *row[11] = {"1", "k", "f", "t", NULL, "late", "late", "pg_catalog", "=", "f", "f"};
    for (int i = 0; i < 11; i++) names[i] = (PGresAttDesc){.name = name, .typid = TEXT};
    CHECK(PQsetResultAttrs(r, 11, names));
    for (int i = 0; i < 11; i++)
        if (row[i]) {
            char text[16];
            snprintf(text, sizeof text, "%s", row[i]);
            CHECK(PQsetvalue(r, 0, i, text, (int) strlen(text)));
        }
    const struct column columns[] = {{"id", true, ' '}, {"v", false, ' '}};
    struct rel *rel = make_rel("public", "t", 'f', 2, columns, 0, NULL);
    CHECK(!rel_read_keys(rel, r));
    PQclear(r);
    rel_free(rel);
}

static void test_limits(void)
{
    enum { BIG = 1024 * 1024 };
    struct rel *rel = make_table('f');
    struct window w = {.number = 1};
    struct change c = {.rel = rel, .m = {.kind = 'I'}};
    for (int i = 0; !w.closed && i < 100; i++) {
        const char *key = arena_fmt(&w.arena, "%d", i);
        arena_array(&w.arena, char, BIG);
        c.m.new = make_row(&w.arena, 3, (const char *const[]){key, "x", "y"});
        CHECK(window_add(&w, &c) == TAKE_DONE);
    }
    CHECK(w.n >= WINDOW_BYTES / BIG - 1 && w.n <= WINDOW_BYTES / BIG + 1);
    window_reset(&w);
    rel->bulk = false;
    while (!w.closed) CHECK(window_add(&w, &c) == TAKE_DONE && w.n <= WINDOW_ROWS);
    CHECK(w.n == WINDOW_ROWS && w.by_row);
    window_reset(&w);
    rel->bulk = true;
    fill(&w, rel, 0, 10 * WINDOW_ROWS);
    CHECK(!w.closed && !w.by_row); /* folded ones have no limit but bytes */
    window_free(&w);
    rel_free(rel);
}

static const struct t_test tests[] = {
    {"one key: old images", test_full},
    {"one key: no old images", test_key},
    {"one key: unchanged values", test_unchanged},
    {"one key: every run of six", test_every_run},
    {"not folded: changed in between", test_discontinuous},
    {"not folded: a value that came and went", test_hidden},
    {"not folded: no old images, secondary keys", test_disorder},
    {"not folded: rows only", test_rows_only},
    {"not folded: deferrable keys", test_deferrable},
    {"not folded: no key", test_keyless},
    {"not folded: too many sets of columns", test_column_sets},
    {"keys: 10,000", test_many_keys},
    {"keys: told apart", test_apart},
    {"limits", test_limits},
    {"keys of columns that came meanwhile", test_torn},
};

int main(int argc, char **argv)
{
    return t_run(tests, sizeof tests / sizeof *tests, argc, argv);
}
