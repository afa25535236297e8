/* message.h: pgoutput messages as people read them, for tests of chapter 15; the same words as in
 * tests/data/capture.py. */
#ifndef MESSAGE_H
#define MESSAGE_H

/* Printable ASCII as it is but for the quote and the backslash; the rest as \xNN. */
static void message_quoted(struct buf *b, const char *data, size_t len)
{
    buf_char(b, '"');
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char) data[i];
        if (c < 32 || c > 126 || c == '"' || c == '\\') buf_fmt(b, "\\x%02x", c);
        else buf_char(b, (char) c);
    }
    buf_char(b, '"');
}

static void message_row(struct buf *b, char tag, const struct tuple *t)
{
    buf_fmt(b, " %c(", tag);
    for (int i = 0; i < t->n; i++) {
        const struct value *v = &t->values[i];
        buf_fmt(b, "%s%c", i ? " " : "", v->kind);
        if (v->kind != 'n' && v->kind != 'u') message_quoted(b, v->data, v->len);
    }
    buf_char(b, ')');
}

static void message_text(struct buf *b, const struct msg *m)
{
    buf_char(b, m->kind);
    switch (m->kind) {
    case 'B':
        buf_fmt(b, " " LSN_FMT " %" PRId64 " %" PRIu32, LSN_ARG(m->final_lsn), m->commit_us,
                m->xid);
        break;
    case 'C':
        buf_fmt(b, " " LSN_FMT " " LSN_FMT " %" PRId64, LSN_ARG(m->final_lsn), LSN_ARG(m->end_lsn),
                m->commit_us);
        break;
    case 'O':
        buf_fmt(b, " " LSN_FMT " ", LSN_ARG(m->final_lsn));
        message_quoted(b, m->name, strlen(m->name));
        break;
    case 'R':
        buf_fmt(b, " %" PRIu32 " ", m->relid);
        message_quoted(b, m->schema, strlen(m->schema));
        buf_char(b, ' ');
        message_quoted(b, m->name, strlen(m->name));
        buf_fmt(b, " %c", m->replident);
        for (int i = 0; i < m->ncolumns; i++) {
            buf_str(b, m->columns[i].is_key ? " *" : " ");
            message_quoted(b, m->columns[i].name, strlen(m->columns[i].name));
            buf_fmt(b, ":%" PRIu32, m->columns[i].type);
        }
        break;
    case 'I':
    case 'U':
    case 'D':
        buf_fmt(b, " %" PRIu32, m->relid);
        if (m->row.old_kind) message_row(b, m->row.old_kind, &m->row.old);
        if (m->kind != 'D') message_row(b, 'N', &m->row.new);
        break;
    case 'T':
        buf_fmt(b, " %u", m->options);
        for (int i = 0; i < m->nrelids; i++) buf_fmt(b, " %" PRIu32, m->relids[i]);
        break;
    default: break;
    }
}

/* Are all values where the message is, and terminated? */
static bool message_sound(const struct msg *m, const char *data, size_t len)
{
    const struct tuple *const rows[] = {&m->row.old, &m->row.new};
    for (int r = 0; r < 2; r++) {
        for (int i = 0; i < rows[r]->n; i++) {
            const struct value *v = &rows[r]->values[i];
            if (v->kind == 'n' || v->kind == 'u') continue;
            if (v->data < data || v->data + v->len > data + len || v->data[v->len]) return false;
        }
    }
    return true;
}

#endif
