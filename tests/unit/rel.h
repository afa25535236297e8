/* rel.h: relations and rows made by hand, for tests of chapters 18 to 22. */
#ifndef REL_H
#define REL_H

struct column {
    const char *name;
    bool key;
    char target; /* ' ' ordinary, 'g' generated there, 'a' GENERATED ALWAYS AS IDENTITY there */
};

enum { INT = 23, TEXT = 25 };

/* A relation whose place on the target is known, its key (if any) the columns of `key`. */
static struct rel *make_rel(const char *schema, const char *name, char replident, int n,
                            const struct column *columns, int nkey, const int *key)
{
    struct msg_column cols[16];
    for (int i = 0; i < n; i++)
        cols[i] = (struct msg_column){columns[i].key, columns[i].name, i % 2 ? TEXT : INT, false};
    struct msg m = {.relid = 7, .schema = schema, .name = name, .replident = replident,
                    .ncolumns = n, .columns = cols};
    struct rel *rel = rel_learn(&m);
    struct arena *a = &rel->arena;
    rel->exists = rel->resolved = true;
    rel->only = "ONLY ";
    rel->ntargets = n;
    rel->target_of = arena_array(a, int, n);
    rel->targets = arena_array(a, struct target_column, n);
    for (int i = 0; i < n; i++) {
        struct buf q = {0};
        sql_ident(&q, columns[i].name);
        rel->target_of[i] = columns[i].target == 'g' ? -2 : i;
        rel->targets[i] = (struct target_column){
            .quoted = arena_str(a, q.data), .type = cols[i].type + 1000, .source = i,
            .not_null = columns[i].key, .generated = columns[i].target == 'g',
            .identity_always = columns[i].target == 'a'};
        buf_free(&q);
    }
    if (nkey) {
        struct unique_key *k = rel->keys = arena_new(a, struct unique_key);
        rel->nkeys = 1;
        *k = (struct unique_key){.name = "k", .n = nkey, .primary = true, .not_null = true,
                                 .plain = true, .columns = arena_array(a, int, nkey),
                                 .uses = arena_array(a, bool, n),
                                 .ops = arena_array(a, const char *, nkey)};
        for (int i = 0; i < nkey; i++) {
            k->columns[i] = key[i];
            k->uses[key[i]] = true;
            k->ops[i] = i ? "OPERATOR(ext.===)" : "OPERATOR(pg_catalog.=)";
        }
    }
    rel_choose_identity(rel);
    return rel;
}

/* "n" NULL, "u" unchanged, anything else the text itself. */
static struct tuple make_row(struct arena *a, int n, const char *const *texts)
{
    struct tuple t = {.n = n, .values = arena_array(a, struct value, n)};
    for (int i = 0; i < n; i++) {
        bool none = str_is(texts[i], "n") || str_is(texts[i], "u");
        t.values[i] = none ? (struct value){.kind = texts[i][0]}
                           : (struct value){texts[i], (uint32_t) strlen(texts[i]), 't'};
    }
    return t;
}

/* One more unique key, of one column. */
static void make_key(struct rel *rel, int column, bool deferrable)
{
    struct unique_key *keys = arena_array(&rel->arena, struct unique_key, rel->nkeys + 1);
    ptrdiff_t identity = rel->identity ? rel->identity - rel->keys : -1;
    for (int i = 0; i < rel->nkeys; i++) keys[i] = rel->keys[i];
    rel->keys = keys;
    if (identity >= 0) rel->identity = &keys[identity];
    struct unique_key *k = &keys[rel->nkeys++];
    *k = (struct unique_key){.name = "more", .n = 1, .plain = true, .deferrable = deferrable,
                             .columns = arena_new(&rel->arena, int),
                             .uses = arena_array(&rel->arena, bool, rel->ncolumns)};
    k->columns[0] = column;
    k->uses[column] = true;
    rel->has_secondary = true;
    if (deferrable) rel->has_deferrable = true;
}

#endif
