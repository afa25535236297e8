/* conf.c: two-way conflicts, model-checked with the deciding functions of chapter 21.  Every
 * interleaving of up to four changes to one row on two nodes, of the two streams that carry them,
 * and of settling: do both sides end equal?  With the argument `table`, the answer for the README.
 *
 * A node is its row and what PostgreSQL and the task's memory of deletes know of it.  A stream
 * carries a node's own changes in order, with the whole old row; what a stream or settling has
 * written does not travel.  model_apply_next() is the careful path (23) for a row of two columns.
 *
 * Settling, as modelled.  A conflict makes the key pending and notes where both streams end.  Once
 * both have been applied past there, both rows are locked and made equal, and the ends are noted
 * again.  Once those are passed too, and no change of the key was applied meanwhile, it is done:
 * nothing was in flight at the look, so the sides were one.  Else it is looked at again.
 * test_shortcuts() shows that nothing of this can be left out.
 *
 * The first column holds 0, 1 or 2, the second 0 or 1: enough for counters that cross and flags
 * that come back, with runs of seconds.  Three values for both, and five changes, find no more
 * (tried by hand).  Values have no meaning, so a new one is always the lowest that is unused. */
#define TWSYNC_LIBRARY
#include "../../twsync.c"

#include "../t.h"

/* ---- the model ---- */

enum { A, B, NCOLS = 2, MAX_CHANGES = 4 };
enum { GONE = 0, THERE = 0x10 };  /* a row in a byte: THERE, and two bits for each column */

static const int nvalues[NCOLS] = {3, 2};

struct model_event {
    uint8_t old, new, at;
};

/* All bytes: states are compared and hashed as such. */
struct model_state {
    struct {
        uint8_t row;
        uint8_t at;       /* commit time of its last write or delete; 0 where no policy asks */
        bool deleted;     /* there is none, by a delete of its own: the memory may know it */
    } side[2];
    struct {
        uint8_t n;        /* in flight from here to the other side, oldest first */
        struct model_event e[MAX_CHANGES];
    } stream[2];
    bool pending, looked; /* the key waits to be settled; both sides were made equal, and since
                           * then no change of it was applied */
    uint8_t wait[2];      /* changes of each stream until the ends that were noted */
    uint8_t made;
    uint8_t clock[2];     /* changes made by each side, for clocks that disagree */
    uint8_t used[NCOLS];  /* values in use: 0 to used - 1 */
    uint8_t deleted_at;   /* newest delete in the memory of either task */
    struct model_event newest;  /* of all changes, by its time */
};

enum model_memory { KEPT, LOST, EITHER };    /* what a question to the memory of deletes meets */
enum model_clocks { TRUE_TIME, TIES, SKEW }; /* one clock; equal times on both; A's far ahead */

/* Rules of settling that may be broken, besides 1 << kind: that conflict is not settled. */
enum {
    UNSETTLED_EQUAL = 1 << CONF_NKINDS, /* outcome equal is not settled */
    EQUAL_IS_DONE = UNSETTLED_EQUAL << 1,
    COPIED_IS_DONE = EQUAL_IS_DONE << 1,
};

struct model {
    enum policy policy[2];
    char named;
    enum merge_unit merge;
    enum model_memory memory;
    enum model_clocks clocks;
    bool settles, newest_wins;
    int broken;
};

static int col(unsigned row, int i)
{
    return row >> 2 * i & 3;
}

static bool model_has_time(const struct model *m)
{
    return m->policy[A] == POLICY_LATEST || m->policy[B] == POLICY_LATEST;
}

static void model_write(struct model_state *s, int side, uint8_t row, uint8_t at)
{
    s->side[side].row = row;
    s->side[side].at = at;
    s->side[side].deleted = false;
}

static void model_note_ends(struct model_state *s)
{
    for (int i = 0; i < 2; i++) s->wait[i] = s->stream[i].n;
}

/* ---- changes ---- */

static uint8_t model_time(const struct model *m, const struct model_state *s, int side)
{
    if (!model_has_time(m)) return 0;
    if (m->clocks == TRUE_TIME) return (uint8_t) (1 + s->made);
    return (uint8_t) (1 + s->clock[side] + (m->clocks == SKEW && side == A ? MAX_CHANGES : 0));
}

/* Returns false if the row holds a value that is not its turn yet. */
static bool model_use(struct model_state *s, uint8_t row)
{
    for (int i = 0; row && i < NCOLS; i++) {
        if (col(row, i) > s->used[i]) return false;
        s->used[i] = (uint8_t) (s->used[i] + (col(row, i) == s->used[i]));
    }
    return true;
}

/* A user's change: insert, update or delete. */
static bool model_change(const struct model *m, struct model_state *s, int side, uint8_t row)
{
    if (row == s->side[side].row || !model_use(s, row)) return false;
    s->made++;
    if (model_has_time(m) && m->clocks != TRUE_TIME) s->clock[side]++;
    struct model_event e = {s->side[side].row, row, model_time(m, s, side)};
    s->stream[side].e[s->stream[side].n++] = e;
    model_write(s, side, row, e.at);
    s->side[side].deleted = !row;
    if (!row && e.at > s->deleted_at) s->deleted_at = e.at;
    if (conf_newer(e.at, s->newest.at, "ab"[side]) && e.at) s->newest = e;
    return true;
}

/* ---- applying: chapter 22 for one row of two columns ---- */

static enum conf_action model_decide(const struct model *m, struct model_state *s,
                                     const struct model_event *e, int from,
                                     enum conflict_kind kind)
{
    if (m->settles && !(m->broken & 1 << kind)) s->pending = true;
    return conf_decide(kind, m->policy[from], conf_newer(e->at, s->side[!from].at, "ab"[from]));
}

static void model_update(const struct model *m, struct model_state *s,
                         const struct model_event *e, int from)
{
    uint8_t now = s->side[!from].row, row = THERE;
    bool by_rows = m->merge == MERGE_ROWS || m->policy[from] == POLICY_LATEST;
    enum merge_unit unit = by_rows ? MERGE_ROWS : MERGE_COLUMNS;
    bool changed[NCOLS], differs[NCOLS], brought[NCOLS], write[NCOLS], any = false;
    for (int i = 0; i < NCOLS; i++) {
        write[i] = changed[i] = col(e->old, i) != col(e->new, i);
        differs[i] = (by_rows || changed[i]) && col(now, i) != col(e->old, i);
        brought[i] = col(now, i) == col(e->new, i);
        any = any || differs[i];
    }
    if (any && conf_disputed(unit, NCOLS, differs, brought)) {
        enum conf_action act = model_decide(m, s, e, from, CONF_update_differs);
        if (!conf_columns(unit, act, NCOLS, changed, differs, write)) return;
    } else if (any && m->settles && !(m->broken & UNSETTLED_EQUAL)) {
        s->pending = true;
    }
    for (int i = 0; i < NCOLS; i++)
        row = (uint8_t) (row | col(write[i] ? e->new : now, i) << 2 * i);
    model_write(s, !from, row, e->at);
}

static void model_apply(const struct model *m, struct model_state *s, const struct model_event *e,
                        int from, bool remembers)
{
    uint8_t now = s->side[!from].row;
    enum conflict_kind missing =
        remembers && s->side[!from].deleted ? CONF_update_deleted : CONF_update_missing;
    enum conf_action writes = now ? ACT_WRITE : ACT_INSERT, act = writes;
    if (e->old && e->new && now) {
        model_update(m, s, e, from);
        return;
    }
    if (!e->old && now) act = model_decide(m, s, e, from, CONF_insert_exists);
    else if (e->old && e->new) act = model_decide(m, s, e, from, missing);
    else if (e->old && !now) act = model_decide(m, s, e, from, CONF_delete_missing);
    else if (now != e->old) act = model_decide(m, s, e, from, CONF_delete_differs);
    if (act == writes) model_write(s, !from, e->new, e->at);
}

static void model_apply_next(const struct model *m, struct model_state *s, int from, bool remembers)
{
    struct model_event e = s->stream[from].e[0], *queue = s->stream[from].e;
    memmove(queue, queue + 1, sizeof e * (MAX_CHANGES - 1));
    queue[MAX_CHANGES - 1] = (struct model_event){0};
    s->stream[from].n--;
    bool was_pending = s->pending;
    model_apply(m, s, &e, from, remembers);
    if (s->wait[from]) s->wait[from]--;
    if (s->pending && !was_pending) model_note_ends(s);
    s->looked = false;
    assert(s->wait[A] <= s->stream[A].n && s->wait[B] <= s->stream[B].n);
}

/* ---- settling ---- */

/* What conf_winner() is told.  A side without the row has the time of the newest delete that
 * either task remembers: its own, or one that was applied to it. */
static struct conf_side model_side(const struct model_state *s, int side, bool remembers)
{
    if (s->side[side].row) return (struct conf_side){true, s->side[side].at};
    return (struct conf_side){false, remembers ? s->deleted_at : 0};
}

static void model_done(struct model_state *s)
{
    s->pending = s->looked = false;
    s->wait[A] = s->wait[B] = 0;
}

/* One step: done, or a look at both rows, locked.  The copy carries the winner's time. */
static void model_settle(const struct model *m, struct model_state *s, bool remembers)
{
    bool equal = s->side[A].row == s->side[B].row;
    struct conf_side a = model_side(s, A, remembers), b = model_side(s, B, remembers);
    char winner = conf_winner(m->policy[A], m->policy[B], m->named, &a, &b);
    int from = winner == 'b' ? B : A;
    if (s->looked || !winner) {
        model_done(s);
        return;
    }
    if (!equal) model_write(s, !from, s->side[from].row, s->side[from].at);
    s->looked = true;
    model_note_ends(s);
    if (m->broken & (equal ? EQUAL_IS_DONE : COPIED_IS_DONE)) model_done(s);
}

static bool model_can_settle(const struct model_state *s)
{
    return s->pending && !s->wait[A] && !s->wait[B];
}

/* Left alone, it comes to an end: a look, and the one that says done. */
static bool model_settling_ends(const struct model *m, struct model_state s, bool remembers)
{
    for (int i = 0; i < 2 && model_can_settle(&s); i++) model_settle(m, &s, remembers);
    return !model_can_settle(&s);
}

/* ---- every state that can be reached ---- */

struct place {
    struct model_state s;
    uint32_t from;  /* the place it was first reached from; itself if it is a start */
};

struct space {
    const struct model *m;
    struct place *v;
    size_t n, size;
    uint32_t *found;  /* hash of states: an index into v, plus 1 */
    size_t nfound;
    bool endless;     /* settling did not end by itself */
};

static uint32_t *space_find(const struct space *sp, const struct model_state *s)
{
    size_t i = (size_t) sum_bytes(0, s, sizeof *s) & (sp->nfound - 1);
    while (sp->found[i] && memcmp(&sp->v[sp->found[i] - 1].s, s, sizeof *s))
        i = (i + 1) & (sp->nfound - 1);
    return &sp->found[i];
}

static void space_grow(struct space *sp)
{
    sp->size = sp->size ? 2 * sp->size : 1 << 12;
    sp->nfound = 2 * sp->size;
    sp->v = mem_resize(sp->v, sp->size * sizeof *sp->v);
    sp->found = mem_resize(sp->found, sp->nfound * sizeof *sp->found);
    memset(sp->found, 0, sp->nfound * sizeof *sp->found);
    for (size_t i = 0; i < sp->n; i++) *space_find(sp, &sp->v[i].s) = (uint32_t) i + 1;
}

static void space_add(struct space *sp, const struct model_state *s, size_t from)
{
    if (sp->n == sp->size) space_grow(sp);
    uint32_t *found = space_find(sp, s);
    if (*found) return;
    sp->v[sp->n] = (struct place){*s, (uint32_t) from};
    *found = (uint32_t) ++sp->n;
}

static void space_free(struct space *sp)
{
    free(sp->v);
    free(sp->found);
}

static void step_changes(struct space *sp, size_t at)
{
    for (int side = A; side <= B; side++)
        for (int v = 0; v <= nvalues[0] * nvalues[1]; v++) {
            struct model_state s = sp->v[at].s;
            int row = v ? THERE | (v - 1) % nvalues[0] | (v - 1) / nvalues[0] << 2 : GONE;
            if (model_change(sp->m, &s, side, (uint8_t) row)) space_add(sp, &s, at);
        }
}

/* Every step but a user's change, for one answer of the memory. */
static void step_tasks(struct space *sp, size_t at, bool remembers)
{
    for (int from = A; from <= B; from++) {
        struct model_state s = sp->v[at].s;
        if (!s.stream[from].n) continue;
        model_apply_next(sp->m, &s, from, remembers);
        space_add(sp, &s, at);
    }
    struct model_state s = sp->v[at].s;
    if (!model_can_settle(&s)) return;
    if (!model_settling_ends(sp->m, s, remembers)) sp->endless = true;
    model_settle(sp->m, &s, remembers);
    space_add(sp, &s, at);
}

/* Breadth first, so a trace is as short as can be. */
static void space_explore(struct space *sp)
{
    for (unsigned there = 0; there <= 1; there++) {
        struct model_state s = {.used = {(uint8_t) there, (uint8_t) there}};
        uint8_t row = there ? THERE : GONE;
        for (int i = A; i <= B; i++) model_write(&s, i, row, model_has_time(sp->m) && there);
        s.newest.new = row;
        space_add(sp, &s, sp->n);
    }
    for (size_t i = 0; i < sp->n; i++) {
        if (sp->m->memory != LOST) step_tasks(sp, i, true);
        if (sp->m->memory != KEPT) step_tasks(sp, i, false);
        if (sp->v[i].s.made < MAX_CHANGES) step_changes(sp, i);
    }
}

/* All is applied and settled: are the sides as they should be? */
static bool parted(const struct model *m, const struct model_state *s)
{
    if (s->stream[A].n || s->stream[B].n || s->pending) return false;
    return s->side[A].row != s->side[B].row || (m->newest_wins && s->side[A].row != s->newest.new);
}

static const char *row_text(char text[NCOLS + 1], uint8_t row)
{
    for (int i = 0; i < NCOLS; i++) text[i] = (char) (row ? '0' + col(row, i) : '-');
    text[NCOLS] = '\0';
    return text;
}

static const char *step_name(const struct model_state *s, const struct model_state *next)
{
    for (int side = A; side <= B; side++) {
        if (next->stream[side].n > s->stream[side].n) return side ? "B changes" : "A changes";
        if (next->stream[side].n < s->stream[side].n) return side ? "A applies" : "B applies";
    }
    return next == s ? "start" : "settling";
}

static void print_trace(const struct space *sp, size_t at)
{
    size_t from = sp->v[at].from;
    const struct model_state *s = &sp->v[at].s;
    char a[NCOLS + 1], b[NCOLS + 1];
    if (from != at) print_trace(sp, from);
    printf("\n  %-9s  A %s@%d  B %s@%d%s", step_name(&sp->v[from].s, s),
           row_text(a, s->side[A].row), s->side[A].at, row_text(b, s->side[B].row), s->side[B].at,
           !s->pending ? "" : s->looked ? "  looked at" : "  pending");
}

/* How few changes part the sides; 0: none of up to MAX_CHANGES do. */
static int parts_from(const struct model *m, bool show)
{
    struct space sp = {.m = m};
    size_t least = 0;
    bool any = false;
    space_explore(&sp);
    for (size_t i = 0; i < sp.n; i++) {
        if (!parted(m, &sp.v[i].s) || (any && sp.v[i].s.made >= sp.v[least].s.made)) continue;
        least = i;
        any = true;
    }
    int made = any ? sp.v[least].s.made : 0;
    if (any && show) print_trace(&sp, least);
    CHECK(!sp.endless);
    space_free(&sp);
    return made;
}

/* ---- what is promised ---- */

static const struct pair {
    enum policy policy[2];
    char named;
    int parts[2];  /* so few changes part unsettled sides, by columns and by rows */
} pairs[] = {
    {{POLICY_OVERWRITE, POLICY_IGNORE}, 0, {3, 3}},
    {{POLICY_IGNORE, POLICY_OVERWRITE}, 0, {3, 3}},
    {{POLICY_LATEST, POLICY_LATEST}, 0, {3, 3}},
    {{POLICY_OVERWRITE, POLICY_OVERWRITE}, 0, {2, 2}},
    {{POLICY_IGNORE, POLICY_IGNORE}, 0, {2, 2}},
    {{POLICY_OVERWRITE, POLICY_OVERWRITE}, 'a', {2, 2}},
    {{POLICY_IGNORE, POLICY_IGNORE}, 'b', {2, 2}},
    {{POLICY_LATEST, POLICY_OVERWRITE}, 'a', {2, 2}},
    {{POLICY_IGNORE, POLICY_LATEST}, 'b', {2, 2}},
};
enum { NPAIRS = sizeof pairs / sizeof *pairs };

static struct model model_of(const struct pair *p, enum merge_unit merge)
{
    return (struct model){.policy = {p->policy[A], p->policy[B]}, .named = p->named,
                          .merge = merge, .memory = KEPT, .clocks = TRUE_TIME};
}

/* Settled, whatever the merge, the clocks and the memory of deletes: are the sides ever parted? */
static bool settled_parts(const struct pair *p, bool show)
{
    for (enum merge_unit merge = MERGE_COLUMNS; merge <= MERGE_ROWS; merge++) {
        struct model m = model_of(p, merge);
        m.settles = true;
        m.memory = EITHER;
        for (m.clocks = TRUE_TIME; m.clocks <= (model_has_time(&m) ? SKEW : TRUE_TIME); m.clocks++)
            if (parts_from(&m, show)) return true;
    }
    return false;
}

static bool has_winner(const struct pair *p)
{
    return p->named || p->policy[A] != p->policy[B] || p->policy[A] == POLICY_LATEST;
}

static void test_settled(void)
{
    for (int i = 0; i < NPAIRS; i++)
        CHECK(settled_parts(&pairs[i], has_winner(&pairs[i])) == !has_winner(&pairs[i]));
}

static void test_unsettled(void)
{
    for (int i = 0; i < NPAIRS; i++)
        for (enum merge_unit merge = MERGE_COLUMNS; merge <= MERGE_ROWS; merge++) {
            struct model m = model_of(&pairs[i], merge);
            CHECK(parts_from(&m, false) == pairs[i].parts[merge]);
        }
}

/* Every rule of settling is needed, and the checker sees when one is broken. */
static void test_shortcuts(void)
{
    for (int rule = 1; rule <= COPIED_IS_DONE; rule <<= 1) {
        struct model m = model_of(&pairs[0], MERGE_COLUMNS);
        m.settles = true;
        m.memory = EITHER;
        m.broken = rule;
        bool one_key = rule != 1 << CONF_update_exists &&
                       rule != 1 << CONF_multiple_unique_conflicts;
        CHECK((parts_from(&m, false) > 0) == one_key);
    }
}

/* Both ends being equal does not say whose row it is. */
static void test_winners(void)
{
    const struct conf_side old = {true, 1}, new = {true, 2}, gone = {false, 3}, lost = {false, 0};
    CHECK(conf_newer(2, 1, 'b') && !conf_newer(1, 2, 'a'));
    CHECK(conf_newer(1, 1, 'a') && !conf_newer(1, 1, 'b'));
    CHECK(conf_winner(POLICY_OVERWRITE, POLICY_IGNORE, 'b', &old, &new) == 'a');
    CHECK(conf_winner(POLICY_IGNORE, POLICY_OVERWRITE, 'a', &new, &old) == 'b');
    CHECK(conf_winner(POLICY_IGNORE, POLICY_IGNORE, 'b', &new, &old) == 'b');
    CHECK(conf_winner(POLICY_LATEST, POLICY_IGNORE, 0, &new, &old) == 0);
    CHECK(conf_winner(POLICY_LATEST, POLICY_LATEST, 'b', &new, &old) == 'a');
    CHECK(conf_winner(POLICY_LATEST, POLICY_LATEST, 'a', &new, &gone) == 'b');
    CHECK(conf_winner(POLICY_LATEST, POLICY_LATEST, 'b', &old, &lost) == 'a');
    CHECK(conf_winner(POLICY_LATEST, POLICY_LATEST, 'a', &lost, &old) == 'b');
}

/* latest/latest with true clocks: both sides end with the row of the newest change. */
static void test_latest(void)
{
    struct model m = model_of(&pairs[2], MERGE_ROWS);
    m.settles = m.newest_wins = true;
    CHECK(!parts_from(&m, true));
}

/* ---- the table ---- */

static void print_cell(const struct pair *p, enum merge_unit merge)
{
    struct model m = model_of(p, merge);
    int made = parts_from(&m, false);
    if (made) printf(" may part (%d) |", made);
    else printf(" equal |");
}

static int print_table(void)
{
    printf("| forward / reverse | merge = columns | merge = rows | settled |\n|---|---|---|---|\n");
    for (int i = 0; i < NPAIRS; i++) {
        const struct pair *p = &pairs[i];
        printf("| %s / %s", policy_names[p->policy[A]], policy_names[p->policy[B]]);
        if (p->named) printf(", winner = %c", p->named);
        printf(" |");
        print_cell(p, MERGE_COLUMNS);
        print_cell(p, MERGE_ROWS);
        printf(" %s |\n", settled_parts(p, false) ? "may part" : "equal");
    }
    printf("\nBoth sides after up to %d changes to one row, in every order; (n): so few may part"
           " them.\nSettled: with either merge, any clocks, deletes remembered or not.\n",
           MAX_CHANGES);
    return 0;
}

static const struct t_test tests[] = {
    {"winners", test_winners},
    {"model: settled sides are equal", test_settled},
    {"model: unsettled sides may part", test_unsettled},
    {"model: no shortcut in settling", test_shortcuts},
    {"model: latest keeps the newest", test_latest},
};

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "table") == 0) return print_table();
    return t_run(tests, sizeof tests / sizeof *tests, argc, argv);
}
