/* twsync.c - keep two PostgreSQL databases in step while applications write to both.
 *
 * ==== 1. opening ===========================================================
 * A and B are databases.  The forward task carries what is committed on A to B, the reverse task
 * what is committed on B to A, each in a process of its own that may die at any instruction.
 *
 * Invariants.  The code says "invariant 3" where it leans on one.
 *  1. Rows and the progress "applied up to here" commit on the target in one transaction, so after
 *     any crash the progress is true.
 *  2. The source is told last: a position is confirmed to its slot only after it is durable in the
 *     target's progress.  Late costs WAL on the source; early would lose rows silently.
 *  3. The only positions are ends of commits (end_lsn), or what a keepalive says while nothing is
 *     pending.  Whole transactions are skipped, never rows.
 *  4. A stream never starts over a gap: same system, same database, same timeline or its child,
 *     slot not ahead of the progress.  Anything else stops the task with the gap named.
 *  5. One session at a time writes for a task: a session lock on the target, taken before the
 *     progress is read, and an epoch in the progress row that every commit must meet.
 *  6. What we write is marked, and the opposite task drops it whole: the first change of each of
 *     our transactions is one of twsync.progress or twsync.copied, which only our role may write;
 *     where the rights allow it, a replication origin as well.
 *  7. A change that does not meet the row it left from is a conflict: decided by policy, recorded
 *     in the deciding transaction, never passed over.
 *  8. Files of ours are hints.  Losing them costs time, never rows.
 *
 * The life of one row, from A to B:
 *     task_wait            bytes arrive on the replication connection
 *     repl_read            one frame of the stream; keepalives are answered on the way
 *     msg_decode           its pgoutput message as struct msg, bounds checked
 *     task_message         Begin, origin, relation, change, commit; a marked transaction is dropped
 *     task_change          the relation's place on the target (rel_resolve); copied already?
 *     window_add           into the window, with others, and folded into its key's net change
 *     apply_bulk           as COPY and one statement per table and kind: counts must be right
 *     apply_rows           else as one pipeline: each statement must meet exactly one row
 *     apply_careful        if one did not: one by one, looked at first; conf_decide; recorded
 *     apply_commit         progress, origin, COMMIT
 *     retention_limit      how far the source may forget: what was applied a while ago
 *     repl_confirm         and now the slot on A moves
 *
 * Contents.  A chapter uses only what stands above it.  Numbers left out are kept for chapters to
 * come: verification, the status endpoint.
 *
 *  I. Ground
 *   2  status     what can go wrong and what to do about it; fail(), TRY
 *   3  arena, buf  memory by lifetime
 *   4  str, lsn, ts  quoted SQL, JSON strings, positions, instants
 *   5  log        one line per event
 *   6  os         clock, files, signals, test points
 *   7  sum        a small hash
 *   8  stat       counters and the page they live in
 *  II. The job
 *   9  job        the job file: parse, check, print back
 *  10  ckpt       checkpoint files
 *  III. Servers
 *  11  db         a connection
 *  12  names      what A's schemas, tables and columns are called on B
 *  13  cat        tables and sequences of a job, from the catalog
 *  14  slot       schema twsync, publications, slots, origins, replica identity
 *  IV. The stream
 *  15  rd, msg    pgoutput messages
 *  16  repl       START_REPLICATION, keepalives, feedback
 *  17  throttle   limits per second, shared by all processes of a job
 *  V. Deciding and writing
 *  18  rel        source relation to target table; statements
 *  19  window     changes that wait, folded to one net change per key
 *  20  rules      filters and transforms of tables
 *  21  conf       what a conflict means: pure
 *  22  shape      schema synchronization, sequences
 *  23  apply      bulk path, row path, careful path; conflict records
 *  24  check      rights and the precheck
 *  25  copy       the full copy
 *  26  settle     after a conflict: the same row on both sides
 *  27  ddl        what DDL changed on A, told by event triggers there and done on B
 *  VI. Running
 *  28  task       one direction: initialise, stream, retry
 *  29  sup        the supervisor
 *  30  release    leaving; sequences and status commands
 *  31  tw_        the public API
 *  32  cli        commands and main()
 */
#include "twsync.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <ini.h>
#include <inttypes.h>
#include <libpq-fe.h>
#include <openssl/crypto.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <zlib.h>

/* ==== 2. status ============================================================
 * What can go wrong and what to do about it.  An error is born in fail(), travels by TRY, and
 * is logged once, by the task or the command that gives up. */

typedef tw_status status;
#define MUST_CHECK __attribute__((warn_unused_result))
#define PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))

enum reaction { REACT_DONE, REACT_RETRY, REACT_REDO, REACT_LATER, REACT_STOP };

static const struct {
    const char *name, *text;
    enum reaction reaction;
} status_table[TW_NSTATUS] = {
#define X(n, r, t) [TW_##n] = {#n, t, REACT_##r},
    TW_STATUSES(X)
#undef X
};

#define TRY(call)                                                                                  \
    do {                                                                                           \
        status try_status_ = (call);                                                               \
        if (try_status_ != TW_OK) return try_status_;                                              \
    } while (0)

static enum reaction status_reaction(status s)
{
    assert(s < TW_NSTATUS);
    return status_table[s].reaction;
}

static void error_clear(struct tw_error *e)
{
    *e = (struct tw_error){.code = TW_OK};
}

/* Every error is born here: a breakpoint on this line sees them all.  The first one wins, since
 * what follows is usually its consequence. */
static status PRINTF(4, 5) fail_at(struct tw_error *e, int line, status code, const char *fmt, ...)
{
    assert(code != TW_OK && code < TW_NSTATUS);
    if (e->code != TW_OK) return e->code;
    va_list args;
    va_start(args, fmt);
    vsnprintf(e->msg, sizeof e->msg, fmt, args);
    va_end(args);
    e->code = code;
    e->line = line;
    return code;
}
#define fail(e, ...) fail_at(e, __LINE__, __VA_ARGS__)

static void PRINTF(2, 3) fail_hint(struct tw_error *e, const char *fmt, ...)
{
    if (e->hint[0]) return;
    va_list args;
    va_start(args, fmt);
    vsnprintf(e->hint, sizeof e->hint, fmt, args);
    va_end(args);
}

static void PRINTF(2, 3) fail_detail(struct tw_error *e, const char *fmt, ...)
{
    if (e->detail[0]) return;
    va_list args;
    va_start(args, fmt);
    vsnprintf(e->detail, sizeof e->detail, fmt, args);
    va_end(args);
}

/* ==== 3. arena, buf ========================================================
 * Memory by lifetime.  An arena is emptied as a whole, so nothing is freed one by one; a buffer
 * grows and is reused.  Real lack of memory ends the process (exit 71): all that matters is on
 * the servers, and the supervisor starts the task again. */

enum { EXIT_OOM = 71 };

static _Noreturn void mem_die(void)
{
    static const char text[] = "twsync: out of memory\n";
    ssize_t ignored = write(STDERR_FILENO, text, sizeof text - 1);
    (void) ignored;
    _exit(EXIT_OOM);
}

static void *mem_resize(void *old, size_t size)
{
    void *p = realloc(old, size ? size : 1);
    if (!p) mem_die();
    return p;
}

static void mem_free(void *p)
{
    free(p);
}

struct chunk {
    struct chunk *next;
    size_t used, size;
    /* The bytes follow, aligned as malloc aligned the header. */
};

struct defer {
    struct defer *next;
    void (*fn)(void *);
    void *arg;
};

struct arena {
    struct chunk *chunks;  /* newest first */
    struct defer *defers;  /* newest first: released in reverse order of registration */
    size_t total;          /* bytes handed out since the last reset */
};

enum { ARENA_CHUNK = 16 * 1024, ARENA_ALIGN = 16 };

static size_t align_up(size_t n)
{
    return (n + ARENA_ALIGN - 1) & ~(size_t) (ARENA_ALIGN - 1);
}

/* Zeroed memory that lives until the arena is reset. */
static void *arena_alloc(struct arena *a, size_t size)
{
    const size_t head = align_up(sizeof(struct chunk));
    size = align_up(size ? size : 1);
    if (!a->chunks || a->chunks->size - a->chunks->used < size) {
        size_t room = size > ARENA_CHUNK ? size : ARENA_CHUNK;
        struct chunk *c = mem_resize(NULL, head + room);
        *c = (struct chunk){.next = a->chunks, .size = room};
        a->chunks = c;
    }
    char *p = (char *) a->chunks + head + a->chunks->used;
    a->chunks->used += size;
    a->total += size;
    memset(p, 0, size);
    return p;
}

#define arena_new(a, type) ((type *) arena_alloc(a, sizeof(type)))
#define arena_array(a, type, n) ((type *) arena_alloc(a, sizeof(type) * (size_t) (n)))

/* Register a release that arena_reset() performs. */
static void arena_defer(struct arena *a, void (*fn)(void *), void *arg)
{
    struct defer *d = arena_new(a, struct defer);
    *d = (struct defer){.next = a->defers, .fn = fn, .arg = arg};
    a->defers = d;
}

static void arena_reset(struct arena *a)
{
    for (struct defer *d = a->defers; d; d = d->next) d->fn(d->arg);
    struct chunk *keep = NULL;
    for (struct chunk *c = a->chunks, *next; c; c = next) {
        next = c->next;
        if (!next && c->size == ARENA_CHUNK) {
            keep = c;  /* the first one: spare the next user a malloc */
            keep->used = 0;
        } else {
            free(c);
        }
    }
    *a = (struct arena){.chunks = keep};
}

static void arena_free(struct arena *a)
{
    arena_reset(a);
    free(a->chunks);
    *a = (struct arena){0};
}

/* A growing byte buffer.  data[len] is always '\0' once something was written. */
struct buf {
    char *data;
    size_t len, cap;
};

static void buf_room(struct buf *b, size_t more)
{
    if (b->cap - b->len > more) return;
    size_t cap = b->cap ? b->cap : 256;
    while (cap - b->len <= more) cap *= 2;
    b->data = mem_resize(b->data, cap);
    b->cap = cap;
}

static void buf_bytes(struct buf *b, const void *data, size_t len)
{
    buf_room(b, len + 1);
    if (len) memcpy(b->data + b->len, data, len);
    b->len += len;
    b->data[b->len] = '\0';
}

static void buf_str(struct buf *b, const char *s)
{
    buf_bytes(b, s, strlen(s));
}

static void buf_char(struct buf *b, char c)
{
    buf_bytes(b, &c, 1);
}

static void PRINTF(2, 3) buf_fmt(struct buf *b, const char *fmt, ...)
{
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    assert(n >= 0);
    buf_room(b, (size_t) n + 1);
    vsnprintf(b->data + b->len, (size_t) n + 1, fmt, again);
    va_end(again);
    b->len += (size_t) n;
}

static void buf_reset(struct buf *b)
{
    b->len = 0;
    if (b->data) b->data[0] = '\0';
}

static const char *buf_cstr(const struct buf *b)
{
    return b->data ? b->data : "";
}

static void buf_free(struct buf *b)
{
    free(b->data);
    *b = (struct buf){0};
}

/* A copy of bytes, with a NUL after them. */
static char *arena_bytes(struct arena *a, const void *data, size_t len)
{
    char *p = arena_alloc(a, len + 1);
    return len ? memcpy(p, data, len) : p;
}

static char *arena_str(struct arena *a, const char *s)
{
    size_t n = strlen(s) + 1;
    return memcpy(arena_alloc(a, n), s, n);
}

static char *PRINTF(2, 3) arena_fmt(struct arena *a, const char *fmt, ...)
{
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    assert(n >= 0);
    char *p = arena_alloc(a, (size_t) n + 1);
    vsnprintf(p, (size_t) n + 1, fmt, again);
    va_end(again);
    return p;
}

/* ==== 4. str, lsn, ts ======================================================
 * Small values: quoted SQL, JSON strings, log sequence numbers, instants. */

typedef uint64_t lsn_t;  /* a position in one server's WAL; never compared across servers */
typedef int64_t usec;    /* microseconds: an instant since 1970-01-01 UTC, or a duration */

#define LSN_FMT "%X/%X"
#define LSN_ARG(l) (unsigned) ((l) >> 32), (unsigned) (l)
enum { LSN_TEXT = 18 };
#define USEC_SEC ((usec) 1000000)

/* PostgreSQL's epoch is 2000-01-01 (timestamp.h, POSTGRES_EPOCH_JDATE). */
#define TS_PG_EPOCH ((usec) 946684800 * 1000000)

static bool lsn_parse(const char *text, lsn_t *out)
{
    unsigned hi, lo;
    int used = 0;
    if (!text || text[strspn(text, "0123456789ABCDEFabcdef/")]) return false;
    if (sscanf(text, "%8X/%8X%n", &hi, &lo, &used) != 2 || text[used]) return false;
    *out = (lsn_t) hi << 32 | lo;
    return true;
}

static const char *lsn_text(struct arena *a, lsn_t lsn)
{
    return arena_fmt(a, LSN_FMT, LSN_ARG(lsn));
}

/* "quoted" identifier.  Always quoted: no keyword list to keep in step with the server. */
static void sql_ident(struct buf *b, const char *name)
{
    buf_char(b, '"');
    for (; *name; name++) {
        if (*name == '"') buf_char(b, '"');
        buf_char(b, *name);
    }
    buf_char(b, '"');
}

static void sql_table(struct buf *b, const char *schema, const char *table)
{
    sql_ident(b, schema);
    buf_char(b, '.');
    sql_ident(b, table);
}

/* 'quoted' literal, right whatever standard_conforming_strings says. */
static void sql_literal(struct buf *b, const char *text)
{
    if (strchr(text, '\\')) buf_str(b, " E");
    buf_char(b, '\'');
    for (; *text; text++) {
        if (*text == '\'' || *text == '\\') buf_char(b, *text);
        buf_char(b, *text);
    }
    buf_char(b, '\'');
}

static char *sql_quoted_table(struct arena *a, const char *schema, const char *table)
{
    struct buf b = {0};
    sql_table(&b, schema, table);
    char *s = arena_str(a, b.data);
    buf_free(&b);
    return s;
}

static char *sql_quoted_literal(struct arena *a, const char *text)
{
    struct buf b = {0};
    sql_literal(&b, text);
    char *s = arena_str(a, b.data);
    buf_free(&b);
    return s;
}

static void json_bytes(struct buf *b, const char *s, size_t len)
{
    buf_char(b, '"');
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char) s[i];
        if (c == '"' || c == '\\') {
            buf_char(b, '\\');
            buf_char(b, (char) c);
        } else if (c == '\n') {
            buf_str(b, "\\n");
        } else if (c < 0x20) {
            buf_fmt(b, "\\u%04x", c);
        } else {
            buf_char(b, (char) c);
        }
    }
    buf_char(b, '"');
}

static void json_str(struct buf *b, const char *s)
{
    json_bytes(b, s, strlen(s));
}

static bool str_is(const char *a, const char *b)
{
    return strcmp(a, b) == 0;
}

/* Copy with certain termination; the tail is cut. */
static void str_copy(char *to, size_t size, const char *from)
{
    snprintf(to, size, "%s", from);
}

/* ==== 5. log ===============================================================
 * One line per event, text or JSON, on standard error. */

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARNING, LOG_ERROR };

/* The log's destination and form: process-wide, set once after the job is read. */
static struct {
    bool json, quiet, debug;
    const char *job, *task;
    /* Live lines at the foot of the terminal, in shared memory since every process logs above
     * them; the cursor rests at the end of the last one.  NULL or 0: there are none. */
    _Atomic int32_t *live;
} log_sink;

static const char *const log_names[] = {"debug", "info", "warning", "error"};

static void log_time(char *out, size_t size)
{
    struct timespec now;
    struct tm tm;
    char sec[32];
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &tm);
    strftime(sec, sizeof sec, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(out, size, "%s.%03dZ", sec, (int) (now.tv_nsec / 1000000));
}

static void log_line_json(struct buf *b, enum log_level level, const char *msg)
{
    char when[40];
    log_time(when, sizeof when);
    buf_fmt(b, "{\"time\":\"%s\",\"level\":\"%s\"", when, log_names[level]);
    if (log_sink.job) buf_fmt(b, ",\"job\":\"%s\"", log_sink.job);
    if (log_sink.task) buf_fmt(b, ",\"task\":\"%s\"", log_sink.task);
    buf_str(b, ",\"msg\":");
    json_str(b, msg);
    buf_str(b, "}\n");
}

static void log_line_text(struct buf *b, enum log_level level, const char *msg)
{
    char when[40];
    int live = log_sink.live ? *log_sink.live : 0;
    log_time(when, sizeof when);
    if (live > 1) buf_fmt(b, "\033[%dA", live - 1);
    if (live) buf_str(b, "\r\033[J");
    buf_fmt(b, "%s ", when);
    if (log_sink.task) buf_fmt(b, "[%s] ", log_sink.task);
    if (level != LOG_INFO) buf_fmt(b, "%s: ", log_names[level]);
    buf_str(b, msg);
    for (int i = 0; i < (live ? live : 1); i++) buf_char(b, '\n');
}

static void PRINTF(2, 3) log_at(enum log_level level, const char *fmt, ...)
{
    if (level == LOG_DEBUG && !log_sink.debug) return;
    if (level == LOG_INFO && log_sink.quiet) return;
    char msg[4096];
    va_list args;
    va_start(args, fmt);
    vsnprintf(msg, sizeof msg, fmt, args);
    va_end(args);
    struct buf b = {0};
    if (log_sink.json)
        log_line_json(&b, level, msg);
    else
        log_line_text(&b, level, msg);
    /* One write per line, so that lines of several processes do not mix. */
    ssize_t ignored = write(STDERR_FILENO, b.data, b.len);
    (void) ignored;
    buf_free(&b);
}
#define log_debug(...) log_at(LOG_DEBUG, __VA_ARGS__)
#define log_info(...) log_at(LOG_INFO, __VA_ARGS__)
#define log_warning(...) log_at(LOG_WARNING, __VA_ARGS__)
#define log_error(...) log_at(LOG_ERROR, __VA_ARGS__)

/* The whole of an error: message, then detail, then hint. */
static void log_failure(const struct tw_error *e, const char *context)
{
    struct buf b = {0};
    buf_str(&b, e->msg);
    if (e->sqlstate[0]) buf_fmt(&b, " (SQLSTATE %s)", e->sqlstate);
    if (e->detail[0]) buf_fmt(&b, "; detail: %s", e->detail);
    if (context && context[0]) buf_fmt(&b, "; while %s", context);
    if (e->hint[0]) buf_fmt(&b, "; hint: %s", e->hint);
    log_error("%s", b.data);
    log_debug("born at line %d as %s", e->line, status_table[e->code].name);
    buf_free(&b);
}

/* ==== 6. os ================================================================
 * Clock, signals, files, test points. */

/* The wish to stop, set by signal handlers and tw_stop() only; and to read the job file again, set
 * by the signal handler of the supervisor. */
static volatile sig_atomic_t stop_flag, reload_flag;

/* For timers: never jumps with the wall clock. */
static usec os_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (usec) t.tv_sec * USEC_SEC + t.tv_nsec / 1000;
}

/* For people and for PostgreSQL's timestamps. */
static usec os_wall(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (usec) t.tv_sec * USEC_SEC + t.tv_nsec / 1000;
}

static void os_sleep_ms(int ms)
{
    poll(NULL, 0, ms);  /* ends early on a signal, as every wait here should */
}

/* A named place where tests make the program fail.  TWSYNC_FAULT=name:nth:kind arms one; kinds:
 * kill (as kill -9), error (returns TW_ECONN), stall (hangs until killed), drop (as error). */
#ifdef TWSYNC_TEST
static struct {
    bool read;
    char name[64], kind[16];
    long nth, seen;
} test_hook;

static bool os_testpoint(const char *name)
{
    if (!test_hook.read) {
        const char *spec = getenv("TWSYNC_FAULT");
        test_hook.read = true;
        if (spec) sscanf(spec, "%63[^:]:%ld:%15s", test_hook.name, &test_hook.nth, test_hook.kind);
    }
    if (!str_is(name, test_hook.name) || ++test_hook.seen != test_hook.nth) return false;
    log_info("test point %s: %s", name, test_hook.kind);
    if (str_is(test_hook.kind, "kill")) raise(SIGKILL);
    while (str_is(test_hook.kind, "stall")) os_sleep_ms(1000);
    return true;
}
#define TESTPOINT(e, name)                                                                         \
    do {                                                                                           \
        if (os_testpoint(name)) return fail(e, TW_ECONN, "test point %s", name);                   \
    } while (0)
#else
#define TESTPOINT(e, name) ((void) 0)
#endif

static status MUST_CHECK os_write_all(int fd, const void *data, size_t len, const char *what,
                                      struct tw_error *e)
{
    const char *p = data;
    while (len) {
        ssize_t n = write(fd, p, len);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return fail(e, TW_EOS, "could not write %s: %s", what, strerror(errno));
        p += n;
        len -= (size_t) n;
    }
    return TW_OK;
}

/* Whole file into b; TW_EOS with errno kept when it cannot be read. */
static status MUST_CHECK os_read_file(const char *path, struct buf *b, size_t limit,
                                      struct tw_error *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return fail(e, TW_EOS, "could not open \"%s\": %s", path, strerror(errno));
    for (;;) {
        char block[8192];
        ssize_t n = read(fd, block, sizeof block);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            int err = errno;
            close(fd);
            return fail(e, TW_EOS, "could not read \"%s\": %s", path, strerror(err));
        }
        if (n == 0) break;
        buf_bytes(b, block, (size_t) n);
        if (b->len > limit) {
            close(fd);
            return fail(e, TW_ELIMIT, "\"%s\" is larger than %zu bytes", path, limit);
        }
    }
    close(fd);
    return TW_OK;
}

static status MUST_CHECK os_sync_dir(const char *dir, struct tw_error *e)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return fail(e, TW_EOS, "could not open \"%s\": %s", dir, strerror(errno));
    int rc = fsync(fd);
    int err = errno;
    close(fd);
    if (rc) return fail(e, TW_EOS, "could not sync \"%s\": %s", dir, strerror(err));
    return TW_OK;
}

/* Replace dir/name as a whole: whatever happens, a reader sees the old or the new contents. */
static status MUST_CHECK os_replace_file(const char *dir, const char *name, const void *data,
                                         size_t len, struct tw_error *e)
{
    struct arena a = {0};
    const char *path = arena_fmt(&a, "%s/%s", dir, name);
    const char *temp = arena_fmt(&a, "%s/.%s.tmp", dir, name);
    unlink(temp);
    int fd = open(temp, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    status s = TW_OK;
    if (fd < 0) {
        s = fail(e, TW_EOS, "could not create \"%s\": %s", temp, strerror(errno));
    } else {
        s = os_write_all(fd, data, len, temp, e);
        if (s == TW_OK && fsync(fd))
            s = fail(e, TW_EOS, "could not sync \"%s\": %s", temp, strerror(errno));
        close(fd);
        if (s == TW_OK && rename(temp, path))
            s = fail(e, TW_EOS, "could not rename \"%s\": %s", temp, strerror(errno));
        if (s == TW_OK) s = os_sync_dir(dir, e);
    }
    arena_free(&a);
    return s;
}

/* mkdir -p, private. */
static status MUST_CHECK os_make_dir(const char *path, struct tw_error *e)
{
    struct arena a = {0};
    char *p = arena_str(&a, path);
    status s = TW_OK;
    for (char *c = p + 1; s == TW_OK; c++) {
        if (*c && *c != '/') continue;
        char keep = *c;
        *c = '\0';
        if (mkdir(p, 0700) && errno != EEXIST)
            s = fail(e, TW_EOS, "could not create folder \"%s\": %s", p, strerror(errno));
        *c = keep;
        if (!keep) break;
    }
    arena_free(&a);
    return s;
}

/* ==== 7. sum ===============================================================
 * A small hash for cache keys; the checksum of files is zlib's CRC-32. */

static uint64_t sum_bytes(uint64_t seed, const void *data, size_t len)
{
    const unsigned char *p = data;
    uint64_t h = seed ^ 0xcbf29ce484222325u;  /* FNV-1a */
    for (size_t i = 0; i < len; i++) h = (h ^ p[i]) * 0x100000001b3u;
    return h;
}

/* ==== 8. stat ==============================================================
 * Counters and the page they live in: a small file in the state directory, mapped by every
 * process of the job and by `twsync status`.  One writer per task section.  A reader may catch a
 * counter halfway through an update; worst case it shows what was true a microsecond ago. */

#define STAT_COUNTERS(X)                                                                           \
    X(transactions) X(rows) X(inserts) X(updates) X(deletes) X(truncates) X(conflicts)             \
    X(settled) X(skipped_transactions) X(bytes) X(restarts) X(copy_tables) X(copy_tables_done)     \
    X(copy_chunks) X(copy_chunks_done) X(copy_rows) X(copy_bytes) X(ddl) X(ddl_skipped)            \
    X(ddl_failed) X(parked)

#define TASK_STATES(X)                                                                             \
    X(NotStarted) X(Prechecking) X(PrecheckFailed) X(Initializing) X(Running) X(Retrying)          \
    X(Paused) X(Modifying) X(Failed)

enum task_state {
#define X(n) TASK_##n,
    TASK_STATES(X)
#undef X
    TASK_NSTATES
};

/* The page may hold anything. */
static const char *task_state_name(int64_t state)
{
    static const char *const names[] = {
#define X(n) #n,
        TASK_STATES(X)
#undef X
    };
    return state >= 0 && state < TASK_NSTATES ? names[state] : "unknown";
}

/* Which states may follow which, and why. */
static const struct task_move {
    enum task_state from, to;
    const char *why;
} task_moves[] = {
    {TASK_NotStarted, TASK_Prechecking, "twsync run"},
    {TASK_Failed, TASK_Prechecking, "twsync run"},
    {TASK_PrecheckFailed, TASK_Prechecking, "twsync run"},
    {TASK_Prechecking, TASK_PrecheckFailed, "an item failed"},
    {TASK_Prechecking, TASK_NotStarted, "passed"},
    {TASK_NotStarted, TASK_Initializing, "nothing is there yet, or not all"},
    {TASK_NotStarted, TASK_Running, "it was initialised before"},
    {TASK_NotStarted, TASK_Retrying, "an error that may pass"},
    {TASK_NotStarted, TASK_Failed, "an error that stays"},
    {TASK_NotStarted, TASK_Paused, "twsync pause"},
    {TASK_Initializing, TASK_Running, "all is copied"},
    {TASK_Initializing, TASK_Retrying, "an error that may pass"},
    {TASK_Initializing, TASK_Failed, "an error that stays"},
    {TASK_Initializing, TASK_NotStarted, "stopped"},
    {TASK_Running, TASK_Initializing, "the catching up after a copy"},
    {TASK_Running, TASK_Retrying, "an error that may pass"},
    {TASK_Running, TASK_Failed, "an error that stays"},
    {TASK_Running, TASK_NotStarted, "stopped"},
    {TASK_Retrying, TASK_Initializing, "tried again"},
    {TASK_Retrying, TASK_Running, "tried again"},
    {TASK_Retrying, TASK_Failed, "the time for it is over"},
    {TASK_Retrying, TASK_NotStarted, "stopped"},
    {TASK_Paused, TASK_NotStarted, "twsync resume"},
    {TASK_Paused, TASK_Prechecking, "twsync run"},
    {TASK_Failed, TASK_NotStarted, "twsync resume, twsync reload"},
    {TASK_Failed, TASK_Paused, "twsync pause"},
    {TASK_NotStarted, TASK_Modifying, "twsync reload"},
    {TASK_Failed, TASK_Modifying, "twsync reload"},
    {TASK_Modifying, TASK_NotStarted, "the job file was read"},
};

static bool task_may_move(int64_t from, enum task_state to)
{
    for (size_t i = 0; i < sizeof task_moves / sizeof *task_moves; i++)
        if (task_moves[i].from == from && task_moves[i].to == to) return true;
    return from == to;
}

enum { STAT_MAGIC = 0x74775442 };  /* "twTB": changes with the layout */

/* Limits, by name in the job file's [throttle] and in `twsync throttle`; the first word says whose
 * they are.  Per second, but for full.sessions. */
#define THROTTLES(X)                                                                               \
    X(full_queries, "full.queries", "queries that copying asks the source")                        \
    X(full_rows, "full.rows", "rows copied")                                                       \
    X(full_bytes, "full.bytes", "bytes copied")                                                    \
    X(full_sessions, "full.sessions", "no new piece is copied while more are active on the source")\
    X(increments_rows, "increments.rows", "rows streamed, both tasks together")                    \
    X(increments_bytes, "increments.bytes", "bytes streamed, both tasks together")                 \
    X(forward_rows, "forward.rows", "rows streamed from A to B")                                   \
    X(forward_bytes, "forward.bytes", "bytes streamed from A to B")                                \
    X(reverse_rows, "reverse.rows", "rows streamed from B to A")                                   \
    X(reverse_bytes, "reverse.bytes", "bytes streamed from B to A")

enum throttle {
#define X(n, name, help) THROTTLE_##n,
    THROTTLES(X)
#undef X
    NTHROTTLES
};

/* rate -1: none.  What was let through is paid for at due_ns (os_now(), in nanoseconds). */
struct stat_limit {
    _Atomic int64_t rate, due_ns;
};

enum { MEMORY_DELETES = 8192, MEMORY_KEYS = 4096 };

/* What the two tasks tell each other about keys.  Keys are hashes: a false match costs a look. */
struct memory {
    /* By the task that carries them: rows deleted on its source, and when.  A later one takes the
     * place of an earlier one with the same remainder. */
    struct { _Atomic uint64_t key; _Atomic int64_t us; } deleted[2][MEMORY_DELETES];
    /* While keys are being settled: how often each was written to. */
    _Atomic int64_t npending;
    _Atomic uint32_t touches[MEMORY_KEYS];
};


/* Written by the task's process; `restarts` and, after a death, `state` by the supervisor. */
struct stat_task {
    _Atomic int64_t state;      /* enum task_state */
    _Atomic int64_t enabled;
    _Atomic int64_t ready;      /* forward only: initialised, so reverse may start */
    _Atomic int64_t caught_up;  /* nothing received is unapplied, nothing sent is unreceived */
    _Atomic int64_t delay_us;   /* by the source's clock: newest message minus applied commit */
    _Atomic int64_t beat_us;    /* wall clock of the last loop turn */
    _Atomic uint64_t received_lsn, applied_lsn, confirmed_lsn, source_lsn;
    _Atomic uint64_t passed_lsn;  /* all the source committed before is applied or not ours */
#define X(n) _Atomic int64_t n;
    STAT_COUNTERS(X)
#undef X
    _Atomic int64_t attempts, next_us, until_us;  /* Retrying: so often, again then, until then */
    char phase[16], rung[16], ddl_by[16];
    char last_error[2048];
};

struct stat_page {
    uint32_t magic;
    _Atomic int32_t supervisor_pid, live_lines;
    _Atomic int64_t started_us;
    _Atomic int32_t reloads;   /* how often the job file was read again */
    char reload_failed[512];   /* why it was not taken; written before `reloads` */
    _Atomic int32_t pauses;    /* how often tasks were told to rest or to go on */
    _Atomic int32_t pauses_heard;
    struct stat_task task[2];  /* by enum tw_direction */
    struct stat_limit limits[NTHROTTLES];
    struct memory memory;
};

/* For the supervisor, which makes it; for others to read; or to write, if it is there. */
enum stat_use { STAT_MAKE, STAT_READ, STAT_WRITE };

static struct stat_page *stat_map(const char *state_dir, enum stat_use use, struct tw_error *e)
{
    bool create = use == STAT_MAKE;
    struct arena a = {0};
    const char *path = arena_fmt(&a, "%s/page", state_dir);
    int fd = open(path, (use == STAT_READ ? O_RDONLY : O_RDWR | O_NOFOLLOW) |
                        (create ? O_CREAT : 0) | O_CLOEXEC, 0600);
    struct stat st = {0};
    struct stat_page *page = NULL;
    /* Allocated, not sparse: writing a mapped hole on a full disk would be a SIGBUS. */
    int err = fd < 0 ? errno : create ? posix_fallocate(fd, 0, sizeof *page) : 0;
    if (err || fstat(fd, &st) || st.st_size != (off_t) sizeof *page) {
        fail(e, TW_EOS, "could not use \"%s\": %s", path, err ? strerror(err) : "wrong size");
    } else {
        page = mmap(NULL, sizeof *page, use == STAT_READ ? PROT_READ : PROT_READ | PROT_WRITE,
                    MAP_SHARED, fd, 0);
        if (page == MAP_FAILED) {
            fail(e, TW_EOS, "could not map \"%s\": %s", path, strerror(errno));
            page = NULL;
        } else if (!create && page->magic != STAT_MAGIC) {
            fail(e, TW_EOS, "\"%s\" was written by another version of twsync", path);
            munmap(page, sizeof *page);
            page = NULL;
        }
    }
    if (fd >= 0) close(fd);
    arena_free(&a);
    return page;
}

/* ---- tasks at rest ---- */

/* Which tasks are to rest is kept in the state directory: they do so until they are told to go on,
 * whatever is started and stopped meanwhile. */
static void pause_read(const char *state_dir, bool paused[2])
{
    struct arena a = {0};
    struct buf b = {0};
    struct tw_error none;
    error_clear(&none);
    status s = os_read_file(arena_fmt(&a, "%s/paused", state_dir), &b, 64, &none);
    bool there = s == TW_OK && b.len;
    paused[0] = there && strstr(b.data, "forward");
    paused[1] = there && strstr(b.data, "reverse");
    buf_free(&b);
    arena_free(&a);
}

static status MUST_CHECK pause_write(const char *state_dir, const bool paused[2],
                                     struct tw_error *e)
{
    char text[32];
    snprintf(text, sizeof text, "%s%s", paused[0] ? "forward\n" : "", paused[1] ? "reverse\n" : "");
    TRY(os_make_dir(state_dir, e));
    return os_replace_file(state_dir, "paused", text, strlen(text), e);
}

/* ==== 9. job ===============================================================
 * The job file: what the user wants, checked as a whole before anything is touched. */

enum policy { POLICY_FAIL, POLICY_IGNORE, POLICY_OVERWRITE, POLICY_LATEST };
enum merge_unit { MERGE_COLUMNS, MERGE_ROWS };
enum identity { IDENTITY_FULL, IDENTITY_KEY };
enum existing { EXISTING_ERROR, EXISTING_KEEP };
enum job_tag { TAG_NORMAL, TAG_ONLINE };
enum winner { WINNER_NONE, WINNER_A, WINNER_B };
/* Of names on B; CASE_SERVICE: schemas and tables in small letters, columns as they are. */
enum letter_case { CASE_SOURCE, CASE_SERVICE, CASE_LOWER, CASE_UPPER };

static const char *const policy_names[] = {"fail", "ignore", "overwrite", "latest", NULL};
static const char *const merge_names[] = {"columns", "rows", NULL};

/* How many changes are written at once: by the way that is faster, or by the one named. */
enum bulk_how { BULK_NO, BULK_YES, BULK_COPY, BULK_ARRAYS };
static const char *const bulk_names[] = {"no", "yes", "copy", "arrays", NULL};
static const char *const identity_names[] = {"full", "key", NULL};
static const char *const existing_names[] = {"error", "keep", NULL};
static const char *const tag_names[] = {"normal", "online", NULL};
static const char *const winner_names[] = {"none", "a", "b", NULL};
static const char *const case_names[] = {"source", "service", "lower", "upper", NULL};
static const char *const direction_names[] = {"forward", "reverse"};

/* One libpq connection setting as given in the job file. */
struct conn_setting {
    const char *keyword, *value;
    bool secret;  /* password, sslpassword: never printed */
};

struct node {
    char letter;                    /* 'a' or 'b' */
    struct conn_setting *settings;  /* as in the file, password_file already read into password */
    int nsettings;
    const char *password_file;      /* NULL unless given */
};

struct qname {
    const char *schema, *table;       /* table NULL: a whole schema */
    bool schema_glob, table_glob;     /* a pattern: * is any characters, ? is one */
};

struct qname_list {
    struct qname *items;
    int n;
};

struct str_list {
    const char **items;
    int n;
};

/* What a task carries: a set of these. */
enum operation { OP_INSERT = 1, OP_UPDATE = 2, OP_DELETE = 4, OP_TRUNCATE = 8, OP_ALL = 15 };
static const char *const operation_names[] = {"insert", "update", "delete", "truncate", NULL};

struct task_conf {
    bool enabled, schema, copy, ddl, push;  /* all but the first: forward only */
    int operations;
    int workers;
    int64_t chunk_bytes;  /* of the copy */
    enum policy on_conflict;
    struct qname_list policy_tables[4];  /* by enum policy: tables that differ from on_conflict */
    enum merge_unit merge;
    enum identity identity;
    enum bulk_how bulk;
    int batch;
};

/* A column that forward fills with the value of an expression. */
struct rule_set {
    const char *column, *expression;
};

/* What is called otherwise on B: a column of a table, or a schema. */
struct renamed {
    const char *name, *to;
};

/* [table NAME]: what is special about a table, or about those that meet a pattern. */
struct table_rules {
    struct qname name;
    int line;
    const char *filter;  /* forward carries the rows for which it is true; NULL: all */
    const char *drop;    /* and of those not the ones for which this is true; NULL: none */
    int operations[2];   /* by enum tw_direction; 0: those of the task */
    struct rule_set *sets;
    int nsets;
    const char *to;      /* its name on B; NULL: the same */
    struct renamed *renames;
    int nrenames;
    struct str_list columns, without;  /* columns that B has, or has not; all: neither is given */
    bool made;           /* by name_learn(): the job file has no section that the table meets */
};

struct job {
    struct arena arena;  /* owns everything below */
    const char *path;    /* of the job file */
    const char *name;
    const char *state_dir;
    enum job_tag tag;
    usec clock_skew_us;
    enum winner winner;  /* of a conflict, where the two tasks' policies name none */
    bool log_json;
    struct str_list accept;  /* codes of failed precheck items the user takes on himself */
    struct node node[2];     /* A, B */
    struct qname_list schemas, tables, exclude;
    enum existing existing;
    enum letter_case letters;  /* of names on B: name_learn() makes rules of it */
    struct task_conf task[2];  /* by enum tw_direction */
    usec retention_us, heartbeat_us;
    int64_t retention_bytes;
    int connection_retry_min, other_retry_min;
    struct table_rules *rules;
    int nrules;
    struct renamed *schema_names;
    int nschema_names;
    int64_t throttle[NTHROTTLES];  /* in a second; -1: no limit */
    const struct job_key *keys;  /* every known setting, libpq's included: for job_print() */
    int nkeys;
};

/* Does the text meet the pattern?  After a mismatch the last * takes one more character. */
static bool glob_matches(const char *pattern, const char *text)
{
    const char *star = NULL, *from = NULL;
    while (*text) {
        if (*pattern == '*') {
            star = pattern++;
            from = text;
        } else if (*pattern == '?' || *pattern == *text) {
            for (text++; (*text & 0xc0) == 0x80 && *pattern == '?'; text++) {}
            pattern++;
        } else if (star) {
            pattern = star + 1;
            text = ++from;
        } else {
            return false;
        }
    }
    while (*pattern == '*') pattern++;
    return !*pattern;
}

static bool qname_in(const struct qname *q, const char *schema)
{
    return q->schema_glob ? glob_matches(q->schema, schema) : str_is(q->schema, schema);
}

static bool qname_matches(const struct qname *q, const char *schema, const char *table)
{
    if (!qname_in(q, schema) || !q->table) return qname_in(q, schema);
    return q->table_glob ? glob_matches(q->table, table) : str_is(q->table, table);
}

/* The table's section: the one with its name, or the first whose pattern it meets; NULL: none. */
static const struct table_rules *job_rules(const struct job *job, const char *schema,
                                           const char *table)
{
    const struct table_rules *first = NULL;
    for (int i = 0; i < job->nrules; i++) {
        const struct table_rules *r = &job->rules[i];
        if (!qname_matches(&r->name, schema, table)) continue;
        if (!r->name.schema_glob && !r->name.table_glob) return r;
        if (!first) first = r;
    }
    return first;
}

/* Does forward look at the rows themselves? */
static bool rules_see_rows(const struct table_rules *r)
{
    return r && (r->filter || r->drop || r->nsets);
}

/* Does it say anything of columns? */
static bool rules_columns(const struct table_rules *r)
{
    return r && (r->nrenames || r->columns.n || r->without.n);
}

static bool list_has(const struct str_list *list, const char *word)
{
    for (int i = 0; i < list->n; i++)
        if (str_is(list->items[i], word)) return true;
    return false;
}

/* Has the table on B this column of A? */
static bool rules_have(const struct table_rules *r, const char *column)
{
    if (r && r->columns.n) return list_has(&r->columns, column);
    return !r || !list_has(&r->without, column);
}

/* Is anything called otherwise on B, or left out there? */
static bool job_maps(const struct job *job)
{
    for (int i = 0; i < job->nrules; i++) {
        const struct table_rules *r = &job->rules[i];
        if (r->to || r->nrenames || r->columns.n || r->without.n) return true;
    }
    return job->nschema_names > 0;
}

/* May rows rightly differ between the sides? */
static bool rules_part(const struct job *job, const struct table_rules *r)
{
    int forward = r && r->operations[0] ? r->operations[0] : job->task[0].operations;
    int reverse = r && r->operations[1] ? r->operations[1] : job->task[1].operations;
    return rules_see_rows(r) || (forward & reverse) != OP_ALL;
}

/* How a task decides conflicts in a table. */
static enum policy job_policy(const struct job *job, enum tw_direction dir, const char *schema,
                              const char *table)
{
    const struct task_conf *conf = &job->task[dir];
    for (int p = 0; p < 4; p++)
        for (int i = 0; i < conf->policy_tables[p].n; i++)
            if (qname_matches(&conf->policy_tables[p].items[i], schema, table))
                return (enum policy) p;
    return conf->on_conflict;
}

/* Does any table of either task follow this policy? */
static bool job_uses_policy(const struct job *job, enum policy policy)
{
    for (int dir = 0; dir < 2; dir++)
        if (job->task[dir].enabled && (job->task[dir].on_conflict == policy ||
                                       job->task[dir].policy_tables[policy].n))
            return true;
    return false;
}

static char job_winner(const struct job *job)
{
    return "\0ab"[job->winner];
}

/* The form of the file.  `[section]`, `key = value` (or `key: value`), one to a line.  A comment
 * starts with ; or # at the start of a line, or with a ; after a blank.  A value may stand in
 * double quotes, a quote inside doubled: then blanks at its ends, ; and # are part of it.  Lists
 * are separated by commas and may go on in indented lines.
 *
 * Sections and keys are found by inih.  It is shown a skeleton of each line, with the line's number
 * in the place of the value: its line buffer would cut long values (200 bytes by default), its
 * inline comments know no quotes, and its handler is not told the line.  The value is then read
 * from the file's own text.  So nothing depends on how inih was built.
 *
 * Every mistake is noted with its line and reading goes on; all are shown together at the end. */

struct job_file {
    struct job *job;
    const char *path;
    struct stat st;          /* of the file as opened: decides whether it may hold a password */
    struct buf text;
    struct job_line *lines;  /* lines[1] to lines[nlines] */
    int nlines, at;          /* at: the line job_reader() showed last */
    int *given;              /* parallel to job->keys: the line that sets the key, or 0 */
    struct job_mistake *mistakes;
    int nmistakes;
};

enum job_line_kind { LINE_NOTHING, LINE_SECTION, LINE_KEY, LINE_MORE, LINE_BAD_SECTION };

struct job_line {
    const char *text;
    enum job_line_kind kind;
    bool of_name;       /* [table NAME], [schema NAME], and what stands in it: not for inih */
    const char *name;   /* of the section or key */
    const char *value;  /* what follows the = (LINE_KEY), or the whole (LINE_MORE) */
};

struct job_mistake {
    int line;  /* 0: the file as a whole */
    int order; /* in which it was found */
    const char *text;
};

/* How a type of setting is read into its field and written back.  A list is read once per line. */
struct job_kind {
    void (*read)(struct job_file *f, const struct job_key *k, const char *text, int line,
                 void *field);
    void (*write)(struct buf *b, const struct job_key *k, const void *field);
    bool is_list;
};

struct job_key {
    const char *section, *key;
    const struct job_kind *kind;
    size_t field;              /* offset in struct job */
    const char *standard;      /* the default as it would stand in the file, or NULL */
    const char *const *words;  /* what an enum may be */
    int64_t min, max;          /* of a number, in the unit of its field's kind */
    const char *help;          /* shown by job_print(); for job_refused: why it is refused */
    bool is_secret;
};

enum {
    JOB_FILE_MAX = 1024 * 1024,
    JOB_PASSWORD_MAX = 64 * 1024,
    JOB_NAME_MAX = 40,     /* keeps "twsync_NAME_forward" within NAMEDATALEN */
    JOB_KEY_MAX = 40,      /* inih cuts names at 49 bytes */
    JOB_MISTAKES_MAX = 100,
    JOB_IDENT_MAX = 63     /* NAMEDATALEN - 1 */
};

static const struct {
    const char *name, *help;
    bool required;
} job_sections[] = {
    {"job", "the job as a whole", false},
    {"a", "database A, where forward starts; any connection setting of libpq", true},
    {"b", "database B, where forward ends; any connection setting of libpq", true},
    {"objects", "what is kept in step", true},
    {"forward", "from A to B", false},
    {"reverse", "from B to A; starts by itself once forward is running", false},
    {"slots", "what the source servers keep for us", false},
    {"retry", "how long to go on trying, counted from the first failure", false},
    {"throttle", "limits per second; -1 is none", false},
};
enum { JOB_NSECTIONS = sizeof job_sections / sizeof *job_sections };

/* ---- mistakes ---- */

static void PRINTF(3, 4) job_mistake(struct job_file *f, int line, const char *fmt, ...)
{
    if (f->nmistakes == JOB_MISTAKES_MAX) return;
    char text[600];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    f->mistakes[f->nmistakes] = (struct job_mistake){line, f->nmistakes,
                                                     arena_str(&f->job->arena, text)};
    f->nmistakes++;
}

static int job_mistake_order(const void *a, const void *b)
{
    const struct job_mistake *x = a, *y = b;
    return x->line != y->line ? x->line - y->line : x->order - y->order;
}

/* Show all mistakes in the order of the file, in one write. */
static status MUST_CHECK job_report(struct job_file *f, struct tw_error *e)
{
    int n = f->nmistakes;
    if (!n) return TW_OK;
    qsort(f->mistakes, (size_t) n, sizeof *f->mistakes, job_mistake_order);
    struct buf b = {0};
    status s = TW_OK;
    for (int i = 0; i < n; i++) {
        const struct job_mistake *m = &f->mistakes[i];
        size_t start = b.len;
        buf_fmt(&b, "%s:", f->path);
        if (m->line) buf_fmt(&b, "%d:", m->line);
        buf_fmt(&b, " %s", m->text);
        if (i == 0) s = fail(e, TW_EJOB, "%s", b.data + start);
        buf_char(&b, '\n');
    }
    if (n == JOB_MISTAKES_MAX) buf_fmt(&b, "%s: stopped after %d mistakes\n", f->path, n);
    fail_detail(e, "%d mistake%s in \"%s\"", n, n == 1 ? "" : "s", f->path);
    fflush(stderr);
    struct tw_error ignored = {0};
    status written = os_write_all(STDERR_FILENO, b.data, b.len, "mistakes", &ignored);
    (void) written;
    buf_free(&b);
    return s;
}

/* How many letters to change, insert, drop or swap with their neighbour, in any case. */
static int job_distance(const char *a, const char *b)
{
    enum { MAX = JOB_KEY_MAX };
    int d[MAX + 1][MAX + 1];
    int na = (int) strlen(a), nb = (int) strlen(b);
    if (na > MAX || nb > MAX) return MAX;
    for (int i = 0; i <= na; i++) {
        for (int j = 0; j <= nb; j++) {
            if (i == 0 || j == 0) {
                d[i][j] = i + j;
                continue;
            }
            int x = tolower((unsigned char) a[i - 1]), y = tolower((unsigned char) b[j - 1]);
            int best = d[i - 1][j - 1] + (x != y);
            if (d[i - 1][j] + 1 < best) best = d[i - 1][j] + 1;
            if (d[i][j - 1] + 1 < best) best = d[i][j - 1] + 1;
            if (i > 1 && j > 1 && x == tolower((unsigned char) b[j - 2]) &&
                y == tolower((unsigned char) a[i - 2]) && d[i - 2][j - 2] + 1 < best)
                best = d[i - 2][j - 2] + 1;
            d[i][j] = best;
        }
    }
    return d[na][nb];
}

/* The better of the best name so far and a candidate; start with NULL.  A name too far from what
 * was written is never offered. */
static const char *job_nearer(const char *written, const char *best, const char *candidate)
{
    int nw = (int) strlen(written), nc = (int) strlen(candidate);
    int d = job_distance(written, candidate);
    if (d > 1 + nw / 4 || d >= (nw > nc ? nw : nc)) return best;
    return !best || d < job_distance(written, best) ? candidate : best;
}

/* "; did you mean "host"?", or nothing. */
static const char *job_hint(struct job_file *f, const char *best)
{
    return best ? arena_fmt(&f->job->arena, "; did you mean \"%s\"?", best) : "";
}

/* ---- finding things ---- */

/* Where a section begins, or 0. */
static int job_section_line(const struct job_file *f, const char *section)
{
    for (int i = 1; i <= f->nlines; i++)
        if (f->lines[i].kind == LINE_SECTION && str_is(f->lines[i].name, section)) return i;
    return 0;
}

static int job_key_index(const struct job *job, const char *section, const char *key)
{
    for (int i = 0; i < job->nkeys; i++)
        if (str_is(job->keys[i].key, key) && str_is(job->keys[i].section, section)) return i;
    return -1;
}

/* The line that sets a key, or 0. */
static int job_given(const struct job_file *f, const char *section, const char *key)
{
    int i = job_key_index(f->job, section, key);
    return i < 0 ? 0 : f->given[i];
}

/* The line to blame for a key: its own, or its section's, or the first. */
static int job_blame(const struct job_file *f, const char *section, const char *key)
{
    int line = job_given(f, section, key);
    if (!line) line = job_section_line(f, section);
    return line ? line : 1;
}

/* Has the line of a key been found wrong already?  Then its value proves nothing. */
static bool job_is_wrong(const struct job_file *f, const char *section, const char *key)
{
    int line = job_given(f, section, key);
    for (int i = 0; line && i < f->nmistakes; i++)
        if (f->mistakes[i].line == line) return true;
    return false;
}

static const char *job_node_setting(const struct node *n, const char *keyword)
{
    for (int i = 0; i < n->nsettings; i++)
        if (str_is(n->settings[i].keyword, keyword)) return n->settings[i].value;
    return NULL;
}

/* There is room for every keyword of libpq, each set at most once. */
static void job_add_setting(struct node *n, const char *keyword, const char *value, bool secret)
{
    assert(!job_node_setting(n, keyword));
    n->settings[n->nsettings++] = (struct conn_setting){keyword, value, secret};
}

/* ---- words and numbers ---- */

/* Index of text among words, or -1 and a mistake. */
static int job_word(struct job_file *f, const struct job_key *k, const char *text, int line)
{
    struct buf all = {0};
    const char *best = NULL;
    for (int i = 0; k->words[i]; i++) {
        if (str_is(text, k->words[i])) {
            buf_free(&all);
            return i;
        }
        buf_fmt(&all, "%s%s", i ? ", " : "", k->words[i]);
        best = job_nearer(text, best, k->words[i]);
    }
    job_mistake(f, line, "%s must be one of %s, not \"%.60s\"%s", k->key, buf_cstr(&all), text,
                job_hint(f, best));
    buf_free(&all);
    return -1;
}

static void job_read_enum(struct job_file *f, const struct job_key *k, const char *text, int line,
                          void *field)
{
    int i = job_word(f, k, text, line);
    if (i < 0) return;
    unsigned value = (unsigned) i;  /* gcc and clang store an enum without negatives as unsigned */
    memcpy(field, &value, sizeof value);
}

static void job_write_enum(struct buf *b, const struct job_key *k, const void *field)
{
    unsigned value;
    memcpy(&value, field, sizeof value);
    buf_str(b, k->words[value]);
}

static void job_read_bool(struct job_file *f, const struct job_key *k, const char *text, int line,
                          void *field)
{
    static const char *const spellings[] = {"no", "yes", "off", "on", "false", "true", "0", "1"};
    bool *to = field;
    if (k->words) {
        int i = job_word(f, k, text, line);
        *to = i == 1;
        return;
    }
    for (size_t i = 0; i < sizeof spellings / sizeof *spellings; i++) {
        if (strcasecmp(text, spellings[i])) continue;
        *to = i % 2;
        return;
    }
    job_mistake(f, line, "%s must be yes or no, not \"%.60s\"", k->key, text);
}

static void job_write_bool(struct buf *b, const struct job_key *k, const void *field)
{
    static const char *const no_yes[] = {"no", "yes"};
    buf_str(b, (k->words ? k->words : no_yes)[*(const bool *) field]);
}

/* A whole number of at most 18 digits, so that it cannot overflow; the end goes to *rest. */
static bool job_digits(const char *text, int64_t *out, const char **rest)
{
    int n = 0;
    *out = 0;
    for (; isdigit((unsigned char) text[n]); n++) {
        if (n == 18) return false;
        *out = *out * 10 + (text[n] - '0');
    }
    *rest = text + n;
    return n > 0;
}

static void job_read_int(struct job_file *f, const struct job_key *k, const char *text, int line,
                         void *field)
{
    int64_t v;
    const char *rest;
    if (!job_digits(text, &v, &rest) || *rest)
        job_mistake(f, line, "%s must be a whole number, not \"%.60s\"", k->key, text);
    else if (v < k->min || v > k->max)
        job_mistake(f, line, "%s must be between %" PRId64 " and %" PRId64 ", not %" PRId64,
                    k->key, k->min, k->max, v);
    else
        *(int *) field = (int) v;
}

static void job_write_int(struct buf *b, const struct job_key *k, const void *field)
{
    (void) k;
    buf_fmt(b, "%d", *(const int *) field);
}

struct job_unit {
    const char *name;
    int64_t factor;
};

#define JOB_MINUTE (60 * USEC_SEC)
#define JOB_HOUR (60 * JOB_MINUTE)
#define JOB_DAY (24 * JOB_HOUR)
#define JOB_MB ((int64_t) 1024 * 1024)
#define JOB_GB (1024 * JOB_MB)

/* Smallest first. */
static const struct job_unit job_time_units[] = {
    {"us", 1}, {"ms", 1000}, {"s", USEC_SEC}, {"min", JOB_MINUTE}, {"h", JOB_HOUR},
    {"d", JOB_DAY}, {NULL, 0}
};
static const struct job_unit job_size_units[] = {
    {"kB", 1024}, {"MB", 1024 * 1024}, {"GB", JOB_GB}, {"TB", 1024 * JOB_GB}, {NULL, 0}
};

/* In the largest unit that divides it. */
static void job_write_amount(struct buf *b, int64_t value, const struct job_unit *units)
{
    const struct job_unit *u = units;
    while (u[1].name && value % u[1].factor == 0) u++;
    if (value)
        buf_fmt(b, "%" PRId64 "%s", value / u->factor, u->name);
    else
        buf_char(b, '0');
}

/* A number with its unit; only 0 needs none. */
static bool job_parse_amount(const char *text, const struct job_unit *units, int64_t *out)
{
    const char *unit;
    if (!job_digits(text, out, &unit)) return false;
    if (!*unit) return *out == 0;
    while (*unit == ' ') unit++;
    for (const struct job_unit *u = units; u->name; u++) {
        bool same = units == job_size_units ? !strcasecmp(unit, u->name) : str_is(unit, u->name);
        if (same) return !__builtin_mul_overflow(*out, u->factor, out);
    }
    return false;
}

static bool job_read_amount(struct job_file *f, const struct job_key *k, const char *text,
                            int line, const struct job_unit *units, int64_t *out)
{
    struct buf b = {0};
    bool ok = job_parse_amount(text, units, out);
    if (!ok) {
        for (const struct job_unit *u = units; u->name; u++)
            buf_fmt(&b, "%s%s", u == units ? "" : u[1].name ? ", " : " or ", u->name);
        job_mistake(f, line, "%s must be a number with a unit (%s), not \"%.60s\"", k->key,
                    buf_cstr(&b), text);
    } else if (*out < k->min || *out > k->max) {
        ok = false;
        job_write_amount(&b, k->min, units);
        buf_str(&b, " and ");
        job_write_amount(&b, k->max, units);
        job_mistake(f, line, "%s must be between %s, not %.60s", k->key, buf_cstr(&b), text);
    }
    buf_free(&b);
    return ok;
}

static void job_read_time(struct job_file *f, const struct job_key *k, const char *text, int line,
                          void *field)
{
    int64_t v;
    if (job_read_amount(f, k, text, line, job_time_units, &v)) *(usec *) field = v;
}

static void job_write_time(struct buf *b, const struct job_key *k, const void *field)
{
    (void) k;
    job_write_amount(b, *(const usec *) field, job_time_units);
}

static void job_read_size(struct job_file *f, const struct job_key *k, const char *text, int line,
                          void *field)
{
    int64_t v;
    if (job_read_amount(f, k, text, line, job_size_units, &v)) *(int64_t *) field = v;
}

static void job_write_size(struct buf *b, const struct job_key *k, const void *field)
{
    (void) k;
    job_write_amount(b, *(const int64_t *) field, job_size_units);
}

/* So many per second, bytes with their unit; -1: no limit. */
static bool job_parse_rate(const char *name, const char *text, int64_t *out)
{
    const char *rest = "", *bytes = strstr(name, ".bytes");
    *out = -1;
    if (str_is(text, "-1")) return true;
    bool ok = bytes ? job_parse_amount(text, job_size_units, out)
                    : job_digits(text, out, &rest) && !*rest;
    return ok && *out > 0;
}

/* What is wrong with it. */
static void job_rate_wrong(char *out, size_t size, const char *name, const char *text)
{
    snprintf(out, size, "%s must be -1 (no limit) or a number%s, not \"%.60s\"", name,
             strstr(name, ".bytes") ? " with a unit (kB, MB, GB or TB)" : "", text);
}

static void job_read_rate(struct job_file *f, const struct job_key *k, const char *text, int line,
                          void *field)
{
    char why[200];
    job_rate_wrong(why, sizeof why, k->key, text);
    if (!job_parse_rate(k->key, text, field)) job_mistake(f, line, "%s", why);
}

static void job_write_rate(struct buf *b, const struct job_key *k, const void *field)
{
    int64_t rate = *(const int64_t *) field;
    if (rate > 0 && strstr(k->key, ".bytes")) job_write_amount(b, rate, job_size_units);
    else buf_fmt(b, "%" PRId64, rate);
}

/* Stored as a number of minutes: what the retry windows of a job count in. */
static void job_read_minutes(struct job_file *f, const struct job_key *k, const char *text,
                             int line, void *field)
{
    int64_t v;
    if (!job_read_amount(f, k, text, line, job_time_units, &v)) return;
    if (v % JOB_MINUTE)
        job_mistake(f, line, "%s must be whole minutes, not %.60s", k->key, text);
    else
        *(int *) field = (int) (v / JOB_MINUTE);
}

static void job_write_minutes(struct buf *b, const struct job_key *k, const void *field)
{
    (void) k;
    buf_fmt(b, "%dmin", *(const int *) field);
}

/* ---- strings and files ---- */

/* As it must be written to be read back the same. */
static void job_write_string(struct buf *b, const char *s)
{
    size_t n = strlen(s);
    bool quote = n == 0 || isspace((unsigned char) s[0]) || isspace((unsigned char) s[n - 1]) ||
                 strpbrk(s, ";#\"");
    if (quote)
        sql_ident(b, s);  /* the same rule: "..." with "" inside */
    else
        buf_str(b, s);
}

static void job_read_path(struct job_file *f, const struct job_key *k, const char *text, int line,
                          void *field)
{
    const char **to = field;
    char cwd[4096];
    if (!text[0])
        job_mistake(f, line, "%s is empty", k->key);
    else if (text[0] == '/')
        *to = text;
    else if (!getcwd(cwd, sizeof cwd))
        job_mistake(f, line, "could not find the current directory: %s", strerror(errno));
    else
        *to = arena_fmt(&f->job->arena, "%s/%s", str_is(cwd, "/") ? "" : cwd, text);
}

static void job_write_path(struct buf *b, const struct job_key *k, const void *field)
{
    (void) k;
    job_write_string(b, *(const char *const *) field);
}

/* text with everything that a job name may not hold turned into _. */
static char *job_fold_name(struct arena *a, const char *text)
{
    char *name = arena_fmt(a, "%.*s", JOB_NAME_MAX, text);
    for (char *c = name; *c; c++) {
        *c = (char) tolower((unsigned char) *c);
        if (!strchr("abcdefghijklmnopqrstuvwxyz0123456789_", *c)) *c = '_';
    }
    return name;
}

static void job_read_name(struct job_file *f, const struct job_key *k, const char *text, int line,
                          void *field)
{
    const char *folded = job_fold_name(&f->job->arena, text);
    if (!text[0])
        job_mistake(f, line, "%s is empty", k->key);
    else if (!str_is(folded, text))
        job_mistake(f, line, "%s must be 1 to %d of a-z, 0-9 and _, not \"%.60s\"%s", k->key,
                    JOB_NAME_MAX, text, job_hint(f, folded));
    else
        *(const char **) field = text;
}

static void job_read_refused(struct job_file *f, const struct job_key *k, const char *text,
                             int line, void *field)
{
    (void) text;
    (void) field;
    job_mistake(f, line, "%s cannot be set in [%s]: %s", k->key, k->section, k->help);
}

/* May this file hold a password?  It may when nobody but us and root can read it.  A password_file
 * of root's may be readable by its group, as libpq allows for keys: secrets are mounted so. */
static bool job_is_private(struct job_file *f, const struct stat *st, const char *path,
                           const char *what, mode_t forbidden, int line)
{
    if (st->st_uid != geteuid() && st->st_uid != 0) {
        job_mistake(f, line, "%s in \"%s\", which belongs to user %u; run: chown %u '%s'", what,
                    path, (unsigned) st->st_uid, (unsigned) geteuid(), path);
        return false;
    }
    if (st->st_mode & forbidden) {
        job_mistake(f, line, "%s in \"%s\", which others may read or change; run: chmod 600 '%s'",
                    what, path, path);
        return false;
    }
    return true;
}

/* Read a whole regular file; 0 or an errno.  EFBIG: larger than limit.  One read of the size found
 * at opening, so that no copy of a password is left behind by a growing buffer. */
static int job_read_fd(int fd, struct stat *st, size_t limit, struct buf *b)
{
    if (fstat(fd, st)) return errno;
    if (S_ISDIR(st->st_mode)) return EISDIR;
    if (!S_ISREG(st->st_mode)) return EINVAL;
    if ((size_t) st->st_size > limit) return EFBIG;
    buf_room(b, (size_t) st->st_size + 1);
    while (b->len < (size_t) st->st_size) {
        ssize_t n = read(fd, b->data + b->len, (size_t) st->st_size - b->len);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return errno;
        if (n == 0) break;
        b->len += (size_t) n;
    }
    b->data[b->len] = '\0';
    return 0;
}

/* O_NONBLOCK: opening a pipe must not wait for its writer. */
static bool job_read_file(struct job_file *f, int line, const char *path, size_t limit,
                          struct stat *st, struct buf *b)
{
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    int err = fd < 0 ? errno : job_read_fd(fd, st, limit, b);
    if (fd >= 0) close(fd);
    if (err == EFBIG)
        job_mistake(f, line, "file \"%s\" is larger than %zu kB", path, limit / 1024);
    else if (err)
        job_mistake(f, line, "could not read file \"%s\": %s", path,
                    err == EINVAL ? "not a regular file" : strerror(err));
    return !err;
}

static void job_wipe(struct buf *b)
{
    if (b->data) explicit_bzero(b->data, b->cap);
    buf_free(b);
}

/* ---- names of objects ---- */

/* Room for one more in an array that is grown whenever its length is a power of two. */
static void *job_grow(struct arena *a, void *items, int n, size_t size)
{
    if (n & (n - 1)) return items;
    void *more = arena_alloc(a, size * (n ? (size_t) n * 2 : 1));
    if (n) memcpy(more, items, size * (size_t) n);
    return more;
}

static const char *job_skip_blanks(const char *p)
{
    while (*p == ' ' || *p == '\t') p++;
    return p;
}

/* One part of a name, "quoted" or as it stands; NULL after a mistake. */
static const char *job_name_part(struct job_file *f, const struct job_key *k, const char **pp,
                                 int line, bool *glob)
{
    const char *p = *pp;
    struct buf b = {0};
    bool quoted = *p == '"', open = quoted;
    if (quoted) p++;
    for (; *p; p++) {
        if (quoted && p[0] == '"' && p[1] != '"') {
            open = false;
            p++;
            break;
        }
        if (quoted && *p == '"') p++;
        if (!quoted && strchr(",.\" \t", *p)) break;
        buf_char(&b, *p);
    }
    const char *part = NULL;
    if (open)
        job_mistake(f, line, "%s: closing quote is missing", k->key);
    else if (!b.len)
        job_mistake(f, line, "%s: name expected %s\"%.20s\"", k->key, *p ? "before " : "after ",
                    *p ? p : ".");
    else if (b.len > JOB_IDENT_MAX)
        job_mistake(f, line, "%s: name \"%.20s...\" is longer than %d bytes", k->key, b.data,
                    JOB_IDENT_MAX);
    else
        part = arena_str(&f->job->arena, b.data);
    *glob = part && !quoted && strpbrk(part, "*?");
    buf_free(&b);
    *pp = p;
    return part;
}

/* schema or schema.table. */
static bool job_name(struct job_file *f, const struct job_key *k, const char **p, int line,
                     struct qname *q)
{
    *q = (struct qname){0};
    q->schema = job_name_part(f, k, p, line, &q->schema_glob);
    if (!q->schema) return false;
    if (**p != '.') return true;
    ++*p;
    q->table = job_name_part(f, k, p, line, &q->table_glob);
    if (!q->table) return false;
    if (**p != '.') return true;
    job_mistake(f, line, "%s: \"%s.%s\" goes on with a third part; names are schema.table "
                "(quote a part that holds a dot)", k->key, q->schema, q->table);
    return false;
}

/* The end of a list item, right or wrong: the next comma or comment outside quotes. */
static const char *job_item_end(const char *p)
{
    bool quoted = false;
    for (char before = 'x'; *p; before = *p++) {
        if (*p == '"') quoted = !quoted;
        if (quoted) continue;
        if (*p == ',' || (*p == ';' && (before == ' ' || before == '\t'))) break;
    }
    return p;
}

/* Each name of one line goes to add(). */
static void job_read_names(struct job_file *f, const struct job_key *k, const char *text, int line,
                           void *field,
                           void (*add)(struct job_file *f, const struct job_key *k,
                                       const struct qname *q, int line, void *field))
{
    for (const char *p = job_skip_blanks(text); *p && *p != ';';) {
        struct qname q;
        const char *start = p;
        if (job_name(f, k, &p, line, &q)) {
            add(f, k, &q, line, field);
            p = job_skip_blanks(p);
            if (*p && *p != ',' && *p != ';')
                job_mistake(f, line, "%s: comma expected before \"%.20s\" (quote a name with "
                            "blanks)", k->key, p);
        }
        p = job_item_end(start);
        if (*p == ',') p = job_skip_blanks(p + 1);
    }
}

static bool job_is_system(const char *schema)
{
    return !strncmp(schema, "pg_", 3) || str_is(schema, "information_schema") ||
           str_is(schema, "twsync");
}

static void job_add_word(struct job_file *f, const struct job_key *k, const struct qname *q,
                         int line, void *field)
{
    struct str_list *list = field;
    if (q->table) {
        job_mistake(f, line, "%s: \"%s.%s\" has two parts, one is expected", k->key, q->schema,
                    q->table);
        return;
    }
    list->items = job_grow(&f->job->arena, list->items, list->n, sizeof *list->items);
    list->items[list->n++] = q->schema;
}

static void job_add_name(struct job_file *f, const struct job_key *k, const struct qname *q,
                         int line, struct qname_list *list)
{
    if (job_is_system(q->schema)) {
        job_mistake(f, line, "%s: schema \"%s\" cannot be synchronized", k->key, q->schema);
    } else {
        list->items = job_grow(&f->job->arena, list->items, list->n, sizeof *list->items);
        list->items[list->n++] = *q;
    }
}

static void job_add_schema(struct job_file *f, const struct job_key *k, const struct qname *q,
                           int line, void *field)
{
    if (q->table)
        job_mistake(f, line, "%s: \"%s.%s\" has two parts, one is expected", k->key, q->schema,
                    q->table);
    else
        job_add_name(f, k, q, line, field);
}

static void job_add_table(struct job_file *f, const struct job_key *k, const struct qname *q,
                          int line, void *field)
{
    if (!q->table)
        job_mistake(f, line, "%s: \"%s\" lacks its schema; write schema.table", k->key, q->schema);
    else
        job_add_name(f, k, q, line, field);
}

static void job_read_words(struct job_file *f, const struct job_key *k, const char *text, int line,
                           void *field)
{
    job_read_names(f, k, text, line, field, job_add_word);
}

static void job_read_schemas(struct job_file *f, const struct job_key *k, const char *text,
                             int line, void *field)
{
    job_read_names(f, k, text, line, field, job_add_schema);
}

static void job_read_tables(struct job_file *f, const struct job_key *k, const char *text,
                            int line, void *field)
{
    job_read_names(f, k, text, line, field, job_add_table);
}

static void job_write_part(struct buf *b, const char *name, bool glob)
{
    bool plain = *name;
    for (const char *c = name; *c; c++)
        if (!isalnum((unsigned char) *c) && *c != '_') plain = false;
    if (plain || glob)
        buf_str(b, name);
    else
        sql_ident(b, name);
}

/* Between items of a list; a new indented line when this one is full. */
static void job_write_comma(struct buf *b, int i)
{
    enum { WIDTH = 80 };
    if (!i) return;
    const char *start = memrchr(b->data, '\n', b->len);
    size_t used = start ? (size_t) (b->data + b->len - start) : b->len;
    buf_str(b, used > WIDTH ? ",\n    " : ", ");
}

static void job_write_words(struct buf *b, const struct job_key *k, const void *field)
{
    const struct str_list *list = field;
    (void) k;
    for (int i = 0; i < list->n; i++) {
        job_write_comma(b, i);
        job_write_part(b, list->items[i], false);
    }
}

static void job_write_name(struct buf *b, const struct qname *q)
{
    job_write_part(b, q->schema, q->schema_glob);
    if (!q->table) return;
    buf_char(b, '.');
    job_write_part(b, q->table, q->table_glob);
}

static void job_write_names(struct buf *b, const struct job_key *k, const void *field)
{
    const struct qname_list *list = field;
    (void) k;
    for (int i = 0; i < list->n; i++) {
        job_write_comma(b, i);
        job_write_name(b, &list->items[i]);
    }
}

/* "insert, update": a set of operations. */
static void job_read_operations(struct job_file *f, const struct job_key *k, const char *text,
                                int line, void *field)
{
    struct str_list words = {0};
    int mask = 0;
    job_read_names(f, k, text, line, &words, job_add_word);
    for (int i = 0; i < words.n; i++) {
        struct job_key word = {.key = k->key, .words = operation_names};
        int n = job_word(f, &word, words.items[i], line);
        if (n >= 0) mask |= 1 << n;
    }
    *(int *) field = mask;
}

static void job_write_operations(struct buf *b, const struct job_key *k, const void *field)
{
    const char *sep = "";
    (void) k;
    for (int i = 0; operation_names[i]; i++) {
        if (!(*(const int *) field & 1 << i)) continue;
        buf_fmt(b, "%s%s", sep, operation_names[i]);
        sep = ", ";
    }
}

/* ---- connection settings ---- */

/* A number, or for port a list of them, one per host, where nothing stands for the default. */
static bool job_conn_number(struct job_file *f, const struct job_key *k, const char *text, int line)
{
    bool is_port = str_is(k->key, "port");
    for (const char *p = text;; p++) {
        int64_t v = 0;
        const char *end = p;
        bool ok = job_digits(p, &v, &end) && v >= k->min && v <= k->max;
        if (is_port && (*p == ',' || !*p)) ok = true;
        if (!ok || (*end && !(is_port && *end == ','))) {
            job_mistake(f, line, "%s must be a number between %" PRId64 " and %" PRId64
                        ", not \"%.60s\"", k->key, k->min, k->max, text);
            return false;
        }
        if (!*end) return true;
        p = end;
    }
}

/* Of a place to connect to: not a whole connection string, which could hide a password. */
static bool job_conn_place(struct job_file *f, const struct job_key *k, const char *text, int line)
{
    bool is_dbname = str_is(k->key, "dbname");
    if (!is_dbname && strncmp(k->key, "host", 4)) return true;
    bool is_path = text[0] == '/' || text[0] == '@';
    bool is_string = is_dbname ? strchr(text, '=') != NULL : !is_path && strchr(text, '@');
    if (!is_string && !strstr(text, "://")) return true;
    job_mistake(f, line, "%s must be a %s, not a connection string; give host, port, user and "
                "dbname each in its own line", k->key, is_dbname ? "database name" : "host");
    return false;
}

static void job_read_conn(struct job_file *f, const struct job_key *k, const char *text, int line,
                          void *field)
{
    if (k->words && job_word(f, k, text, line) < 0) return;
    if (k->max && !job_conn_number(f, k, text, line)) return;
    if (!job_conn_place(f, k, text, line)) return;
    if (k->is_secret && !job_is_private(f, &f->st, f->path, k->key, 077, line)) return;
    job_add_setting(field, k->key, text, k->is_secret);
}

static void job_write_conn(struct buf *b, const struct job_key *k, const void *field)
{
    const char *value = job_node_setting(field, k->key);
    assert(!k->is_secret);
    if (value) job_write_string(b, value);
}

/* The password is the file's only line. */
static void job_read_password(struct job_file *f, const struct job_key *k, const char *path,
                              int line, void *field)
{
    struct node *n = field;
    struct stat st;
    struct buf b = {0};
    n->password_file = path;
    if (job_given(f, k->section, "password")) {
        job_mistake(f, line, "password and password_file are both given in [%s]", k->section);
    } else if (job_read_file(f, line, path, JOB_PASSWORD_MAX, &st, &b) &&
               job_is_private(f, &st, path, "password", st.st_uid || !geteuid() ? 077 : 037,
                              line)) {
        if (b.len && b.data[b.len - 1] == '\n') b.data[--b.len] = '\0';
        if (b.len && b.data[b.len - 1] == '\r') b.data[--b.len] = '\0';
        if (!b.len)
            job_mistake(f, line, "file \"%s\" is empty", path);
        else if (strlen(b.data) != b.len || strchr(b.data, '\n'))
            job_mistake(f, line, "file \"%s\" must hold one line of text", path);
        else
            job_add_setting(n, "password", arena_str(&f->job->arena, b.data), true);
    }
    job_wipe(&b);
}

static void job_write_password_file(struct buf *b, const struct job_key *k, const void *field)
{
    const struct node *n = field;
    (void) k;
    if (n->password_file) job_write_string(b, n->password_file);
}

/* ---- the table of settings ---- */

static const struct job_kind job_enum = {job_read_enum, job_write_enum, false};
static const struct job_kind job_bool = {job_read_bool, job_write_bool, false};
static const struct job_kind job_int = {job_read_int, job_write_int, false};
static const struct job_kind job_time = {job_read_time, job_write_time, false};
static const struct job_kind job_size = {job_read_size, job_write_size, false};
static const struct job_kind job_rate = {job_read_rate, job_write_rate, false};
static const struct job_kind job_minutes = {job_read_minutes, job_write_minutes, false};
static const struct job_kind job_path = {job_read_path, job_write_path, false};
static const struct job_kind job_ident = {job_read_name, job_write_path, false};
static const struct job_kind job_words = {job_read_words, job_write_words, true};
static const struct job_kind job_schemas = {job_read_schemas, job_write_names, true};
static const struct job_kind job_tables = {job_read_tables, job_write_names, true};
static const struct job_kind job_conn = {job_read_conn, job_write_conn, false};
static const struct job_kind job_password = {job_read_password, job_write_password_file, false};
static const struct job_kind job_operations = {job_read_operations, job_write_operations, false};
static const struct job_kind job_refused = {job_read_refused, NULL, false};

static const char *const job_log_names[] = {"text", "json", NULL};

#define AT(member) offsetof(struct job, member)
#define FORWARD(member) AT(task[TW_FORWARD].member)
#define REVERSE(member) AT(task[TW_REVERSE].member)

/* name and state_dir have defaults that depend on the file and the user: job_defaults(). */
static const struct job_key job_own_keys[] = {
    {"job", "name", &job_ident, AT(name), NULL, NULL, 0, 0,
     "part of the names of slots, publications and origins", false},
    {"job", "tag", &job_enum, AT(tag), "normal", tag_names, 0, 0, "normal or online", false},
    {"job", "state_dir", &job_path, AT(state_dir), NULL, NULL, 0, 0,
     "checkpoints, lock and counters", false},
    {"job", "log", &job_bool, AT(log_json), "text", job_log_names, 0, 0, "text or json", false},
    {"job", "winner", &job_enum, AT(winner), "none", winner_names, 0, 0,
     "whose row both sides keep after a conflict, where the policies do not say: a, b or none",
     false},
    {"job", "max_clock_skew", &job_time, AT(clock_skew_us), "1s", NULL, 1000, JOB_HOUR,
     "policy latest: clocks further apart are refused", false},
    {"job", "accept", &job_words, AT(accept), NULL, NULL, 0, 0,
     "codes of failed precheck items taken on", false},
    {"a", "password_file", &job_password, AT(node[0]), NULL, NULL, 0, 0,
     "a file with the password, and nothing else", false},
    {"b", "password_file", &job_password, AT(node[1]), NULL, NULL, 0, 0,
     "a file with the password, and nothing else", false},
    {"objects", "schemas", &job_schemas, AT(schemas), NULL, NULL, 0, 0,
     "every table in them, and all else; patterns: * and ?", false},
    {"objects", "tables", &job_tables, AT(tables), NULL, NULL, 0, 0,
     "single tables: schema.table; patterns: * and ?", false},
    {"objects", "exclude", &job_tables, AT(exclude), NULL, NULL, 0, 0,
     "tables left out: schema.table; patterns: * and ?", false},
    {"objects", "existing", &job_enum, AT(existing), "error", existing_names, 0, 0,
     "tables found on B at the start: error or keep", false},
    {"objects", "capitalization", &job_enum, AT(letters), "source", case_names, 0, 0,
     "of names on B: source, service (schemas and tables lower), lower or upper", false},
    {"forward", "enabled", &job_bool, FORWARD(enabled), "yes", NULL, 0, 0, "yes or no", false},
    {"forward", "schema", &job_bool, FORWARD(schema), "yes", NULL, 0, 0,
     "create the tables on B", false},
    {"forward", "copy", &job_bool, FORWARD(copy), "yes", NULL, 0, 0,
     "copy the rows that are there", false},
    {"forward", "ddl", &job_bool, FORWARD(ddl), "yes", NULL, 0, 0,
     "carry DDL of A to B", false},
    {"forward", "push_filters", &job_bool, FORWARD(push), "no", NULL, 0, 0,
     "A itself leaves out rows by filters, where it can (15 and later)", false},
    {"forward", "workers", &job_int, FORWARD(workers), "4", NULL, 1, 64,
     "processes that copy", false},
    {"forward", "chunk_size", &job_size, FORWARD(chunk_bytes), "64MB", NULL, JOB_MB,
     64 * 1024 * JOB_GB, "tables are copied in pieces of this size, each counted once", false},
    {"forward", "on_conflict", &job_enum, FORWARD(on_conflict), "fail", policy_names, 0, 0,
     "fail, ignore, overwrite or latest", false},
    {"forward", "on_conflict_fail", &job_tables, FORWARD(policy_tables[POLICY_FAIL]),
     NULL, NULL, 0, 0, "tables with this policy", false},
    {"forward", "on_conflict_ignore", &job_tables, FORWARD(policy_tables[POLICY_IGNORE]),
     NULL, NULL, 0, 0, "tables with this policy", false},
    {"forward", "on_conflict_overwrite", &job_tables, FORWARD(policy_tables[POLICY_OVERWRITE]),
     NULL, NULL, 0, 0, "tables with this policy", false},
    {"forward", "on_conflict_latest", &job_tables, FORWARD(policy_tables[POLICY_LATEST]),
     NULL, NULL, 0, 0, "tables with this policy", false},
    {"forward", "operations", &job_operations, FORWARD(operations),
     "insert, update, delete, truncate", NULL, 0, 0, "what is carried", false},
    {"forward", "merge", &job_enum, FORWARD(merge), "columns", merge_names, 0, 0,
     "what an update replaces: columns or rows", false},
    {"forward", "identity", &job_enum, FORWARD(identity), "full", identity_names, 0, 0,
     "replica identity of the tables: full or key", false},
    {"forward", "bulk", &job_enum, FORWARD(bulk), "yes", bulk_names, 0, 0,
     "many changes are folded and loaded; no: each is a statement", false},
    {"forward", "batch", &job_int, FORWARD(batch), "50000", NULL, 1, 1000000,
     "commit on the target after so many changes", false},
    {"reverse", "enabled", &job_bool, REVERSE(enabled), "yes", NULL, 0, 0, "yes or no", false},
    {"reverse", "on_conflict", &job_enum, REVERSE(on_conflict), "fail", policy_names, 0, 0,
     "fail, ignore, overwrite or latest", false},
    {"reverse", "on_conflict_fail", &job_tables, REVERSE(policy_tables[POLICY_FAIL]),
     NULL, NULL, 0, 0, "tables with this policy", false},
    {"reverse", "on_conflict_ignore", &job_tables, REVERSE(policy_tables[POLICY_IGNORE]),
     NULL, NULL, 0, 0, "tables with this policy", false},
    {"reverse", "on_conflict_overwrite", &job_tables, REVERSE(policy_tables[POLICY_OVERWRITE]),
     NULL, NULL, 0, 0, "tables with this policy", false},
    {"reverse", "on_conflict_latest", &job_tables, REVERSE(policy_tables[POLICY_LATEST]),
     NULL, NULL, 0, 0, "tables with this policy", false},
    {"reverse", "operations", &job_operations, REVERSE(operations),
     "insert, update, delete, truncate", NULL, 0, 0, "what is carried", false},
    {"reverse", "merge", &job_enum, REVERSE(merge), "columns", merge_names, 0, 0,
     "what an update replaces: columns or rows", false},
    {"reverse", "identity", &job_enum, REVERSE(identity), "full", identity_names, 0, 0,
     "replica identity of the tables: full or key", false},
    {"reverse", "bulk", &job_enum, REVERSE(bulk), "yes", bulk_names, 0, 0,
     "many changes are folded and loaded; no: each is a statement", false},
    {"reverse", "batch", &job_int, REVERSE(batch), "50000", NULL, 1, 1000000,
     "commit on the target after so many changes", false},
    {"reverse", "schema", &job_refused, 0, NULL, NULL, 0, 0, "only forward copies", false},
    {"reverse", "copy", &job_refused, 0, NULL, NULL, 0, 0, "only forward copies", false},
    {"reverse", "ddl", &job_refused, 0, NULL, NULL, 0, 0, "only forward carries it", false},
    {"reverse", "workers", &job_refused, 0, NULL, NULL, 0, 0, "only forward copies", false},
    {"reverse", "chunk_size", &job_refused, 0, NULL, NULL, 0, 0, "only forward copies", false},
    {"slots", "retention", &job_time, AT(retention_us), "15min", NULL, 0, 30 * JOB_DAY,
     "confirm positions so much later; 0: at once", false},
    {"slots", "retention_size", &job_size, AT(retention_bytes), "1GB", NULL, 0, 64 * 1024 * JOB_GB,
     "but never hold back more WAL than this", false},
    {"slots", "heartbeat", &job_time, AT(heartbeat_us), "10s", NULL, USEC_SEC / 10, JOB_HOUR,
     "moves the slot of an idle database", false},
    {"retry", "connection", &job_minutes, AT(connection_retry_min), "720min", NULL,
     10 * JOB_MINUTE, JOB_DAY, "when a server cannot be reached", false},
    {"retry", "other", &job_minutes, AT(other_retry_min), "10min", NULL, JOB_MINUTE, JOB_DAY,
     "any other failure that may pass", false},
#define X(n, name, help)                                                                           \
    {"throttle", name, &job_rate, AT(throttle[THROTTLE_##n]), "-1", NULL, 0, 0, help, false},
    THROTTLES(X)
#undef X
};

#undef AT
#undef FORWARD
#undef REVERSE

#define WORDS(...) ((const char *const[]){__VA_ARGS__, NULL})

/* What is known of the values of libpq's keywords (documentation, "Parameter Key Words").  libpq
 * would find these mistakes only when it connects. */
static const struct {
    const char *keyword;
    const char *const *words;
    int64_t max;          /* min is 0, for port 1 */
    const char *refused;  /* why it may not be set */
} job_conn_rules[] = {
    {"port", NULL, 65535, NULL},
    {"connect_timeout", NULL, INT32_MAX, NULL},
    {"keepalives", NULL, 1, NULL},
    {"keepalives_idle", NULL, INT32_MAX, NULL},
    {"keepalives_interval", NULL, INT32_MAX, NULL},
    {"keepalives_count", NULL, INT32_MAX, NULL},
    {"tcp_user_timeout", NULL, INT32_MAX, NULL},
    {"sslcompression", NULL, 1, NULL},
    {"sslsni", NULL, 1, NULL},
    {"sslmode", WORDS("disable", "allow", "prefer", "require", "verify-ca", "verify-full"), 0,
     NULL},
    {"sslnegotiation", WORDS("postgres", "direct"), 0, NULL},
    {"sslcertmode", WORDS("disable", "allow", "require"), 0, NULL},
    {"channel_binding", WORDS("disable", "prefer", "require"), 0, NULL},
    {"gssencmode", WORDS("disable", "prefer", "require"), 0, NULL},
    {"ssl_min_protocol_version", WORDS("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"), 0, NULL},
    {"ssl_max_protocol_version", WORDS("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"), 0, NULL},
    {"target_session_attrs",
     WORDS("any", "read-write", "read-only", "primary", "standby", "prefer-standby"), 0, NULL},
    {"load_balance_hosts", WORDS("disable", "random"), 0, NULL},
    {"replication", NULL, 0, "twsync sets it itself"},
    {"application_name", NULL, 0, "twsync sets it itself"},
    {"client_encoding", NULL, 0, "twsync sets it itself"},
};

#undef WORDS

static void job_conn_key(struct job_key *k, const PQconninfoOption *o, int i)
{
    *k = (struct job_key){.kind = &job_conn, .field = offsetof(struct job, node[i])};
    k->section = i ? "b" : "a";
    /* libpq marks what a dialog must hide with *; the SCRAM keys are as good as the password. */
    k->is_secret = o->dispchar[0] == '*' || !strncmp(o->keyword, "scram_", 6);
    for (size_t r = 0; r < sizeof job_conn_rules / sizeof *job_conn_rules; r++) {
        if (!str_is(job_conn_rules[r].keyword, o->keyword)) continue;
        k->words = job_conn_rules[r].words;
        k->max = job_conn_rules[r].max;
        k->min = str_is(o->keyword, "port");
        k->help = job_conn_rules[r].refused;
        if (k->help) k->kind = &job_refused;
    }
}

/* Our own settings, and for A and B every keyword of the libpq we are linked with. */
static void job_make_keys(struct job *job)
{
    enum { OWN = sizeof job_own_keys / sizeof *job_own_keys };
    PQconninfoOption *options = PQconndefaults();
    if (!options) mem_die();
    int n = 0;
    /* cppcheck-suppress nullPointerRedundantCheck ; mem_die() does not return */
    while (options[n].keyword) n++;
    struct job_key *keys = arena_array(&job->arena, struct job_key, OWN + 2 * n);
    int nkeys = 0;
    for (int i = 0; i < 2; i++) {
        for (int j = 0; j < n; j++, nkeys++) {
            job_conn_key(&keys[nkeys], &options[j], i);
            keys[nkeys].key = arena_str(&job->arena, options[j].keyword);
        }
        job->node[i].settings = arena_array(&job->arena, struct conn_setting, n);
        job->node[i].letter = (char) ('a' + i);
    }
    memcpy(keys + nkeys, job_own_keys, sizeof job_own_keys);
    job->keys = keys;
    job->nkeys = nkeys + OWN;
    PQconninfoFree(options);
}

/* ---- lines ---- */

/* Is this a line of text in UTF-8, without control characters? */
static bool job_is_text(const char *line)
{
    for (const unsigned char *p = (const unsigned char *) line; *p; p++) {
        if ((*p < 0x20 && *p != '\t') || *p == 0x7f) return false;
        if (*p < 0x80) continue;
        int more = *p >= 0xf0 ? 3 : *p >= 0xe0 ? 2 : 1;
        unsigned v = *p & (0x3fu >> more);
        if (*p < 0xc2 || *p > 0xf4) return false;
        for (int i = more; i > 0; i--) {
            if ((*++p & 0xc0) != 0x80) return false;
            v = v << 6 | (*p & 0x3f);
        }
        bool is_overlong = (more == 2 && v < 0x800) || (more == 3 && v < 0x10000);
        if (is_overlong || v > 0x10ffff || (v >= 0xd800 && v < 0xe000)) return false;
    }
    return true;
}

/* The first = or : of a line, before any comment; where names may stand in quotes, outside them. */
static const char *job_separator(const char *line, bool has_quotes)
{
    bool quoted = false;
    for (const char *p = line; *p; p++) {
        if (*p == '"' && has_quotes) quoted = !quoted;
        if (quoted) continue;
        if (*p == '=' || *p == ':') return p;
        if (*p == ';' && p > line && (p[-1] == ' ' || p[-1] == '\t')) return NULL;
    }
    return NULL;
}

/* from..to without blanks at its ends. */
static const char *job_trim(struct arena *a, const char *from, const char *to)
{
    while (from < to && (*from == ' ' || *from == '\t')) from++;
    while (to > from && (to[-1] == ' ' || to[-1] == '\t')) to--;
    return arena_fmt(a, "%.*s", (int) (to - from), from);
}

/* Is it this word and something behind it? */
static bool job_is_word(const char *text, const char *word)
{
    size_t n = strlen(word);
    return !strncmp(text, word, n) && (text[n] == ' ' || text[n] == '\t');
}

static void job_scan_section(struct job_file *f, struct job_line *l, int line, const char *start)
{
    bool quoted = false;
    const char *end = start;
    for (; *end && (quoted || *end != ']'); end++) quoted ^= *end == '"';
    if (!*end) end = strchr(start, ']');
    const char *after = end ? job_skip_blanks(end + 1) : "";
    l->kind = LINE_BAD_SECTION;
    if (!end || (*after && *after != ';' && *after != '#')) {
        job_mistake(f, line, "section must be written [name], alone in its line");
        return;
    }
    l->name = job_trim(&f->job->arena, start + 1, end);
    l->of_name = job_is_word(l->name, "table") || job_is_word(l->name, "schema");
    if (l->of_name) {
        l->kind = LINE_SECTION;
        return;
    }
    const char *best = NULL;
    for (int i = 0; i < JOB_NSECTIONS; i++) {
        if (str_is(l->name, job_sections[i].name)) l->kind = LINE_SECTION;
        best = job_nearer(l->name, best, job_sections[i].name);
    }
    if (l->kind == LINE_BAD_SECTION)
        job_mistake(f, line, "unknown section [%.40s]%s", l->name, job_hint(f, best));
}

/* What no setting can be made of.  It may be a piece of a password: only a known key is named. */
static void job_stray_line(struct job_file *f, int line, const char *text)
{
    const char *end = text + strcspn(text, " \t");
    const char *word = arena_fmt(&f->job->arena, "%.*s", (int) (end - text), text);
    for (int i = 0; i < f->job->nkeys; i++) {
        if (!str_is(word, f->job->keys[i].key)) continue;
        job_mistake(f, line, "= is missing after \"%s\"", word);
        return;
    }
    job_mistake(f, line, "neither [section] nor key = value nor a comment");
}

/* is_listed: a key stands above, whose value an indented line may go on with; that of an expression
 * whatever it holds. */
static void job_scan_line(struct job_file *f, int line, bool is_listed, bool of_name)
{
    struct job_line *l = &f->lines[line];
    const char *start = job_skip_blanks(l->text);
    bool is_indented = start > l->text;
    l->of_name = of_name;
    if (!job_is_text(l->text)) {
        job_mistake(f, line, "not text in UTF-8");
        return;
    }
    if (!*start || *start == ';' || *start == '#') return;
    if (*start == '[' && !(of_name && is_indented)) {
        job_scan_section(f, l, line, start);
        return;
    }
    const char *sep = job_separator(start, is_indented || of_name);
    if (is_indented && is_listed && (!sep || of_name)) {
        l->kind = LINE_MORE;
        l->value = start;
        return;
    }
    if (!sep) {
        job_stray_line(f, line, start);
        return;
    }
    l->name = job_trim(&f->job->arena, start, sep);
    l->value = sep + 1;
    if (!l->name[0])
        job_mistake(f, line, "key expected before %c", *sep);
    else if (strlen(l->name) > JOB_KEY_MAX && !of_name)
        job_mistake(f, line, "key is longer than %d bytes", JOB_KEY_MAX);
    else
        l->kind = LINE_KEY;
}

/* Cut the text into lines and find out what each is. */
static void job_scan(struct job_file *f)
{
    char *p = f->text.data;
    int n = 1;
    for (char *c = p; *c; c++) n += *c == '\n';
    f->lines = arena_array(&f->job->arena, struct job_line, n + 1);
    if (!strncmp(p, "\xef\xbb\xbf", 3)) p += 3;  /* byte order mark, as some editors write */
    bool is_listed = false, of_name = false;
    for (f->nlines = 0; *p && f->nmistakes < JOB_MISTAKES_MAX;) {
        char *end = strchr(p, '\n'), *next = end ? end + 1 : p + strlen(p);
        if (!end) end = next;
        if (end > p && end[-1] == '\r') end--;
        *end = '\0';
        struct job_line *l = &f->lines[++f->nlines];
        l->text = p;
        job_scan_line(f, f->nlines, is_listed, of_name);
        if (l->kind == LINE_SECTION || l->kind == LINE_BAD_SECTION) of_name = l->of_name;
        if (l->kind != LINE_NOTHING) is_listed = l->kind == LINE_KEY || l->kind == LINE_MORE;
        p = next;
    }
}

/* inih's fgets: the skeleton of the next line. */
static char *job_reader(char *out, int size, void *arg)
{
    struct job_file *f = arg;
    if (f->at == f->nlines) return NULL;
    const struct job_line *l = &f->lines[++f->at];
    int n;
    if (l->kind == LINE_SECTION)
        n = snprintf(out, (size_t) size, "[%s]\n", l->of_name ? "table" : l->name);
    else if (l->kind == LINE_BAD_SECTION)
        n = snprintf(out, (size_t) size, "[?]\n");
    else if (l->kind == LINE_KEY)
        n = snprintf(out, (size_t) size, "%s = %d\n", l->of_name ? "key" : l->name, f->at);
    else
        n = snprintf(out, (size_t) size, "\n");
    assert(n > 0 && n < size);
    return out;
}

/* A key we do not know.  It is shown only when it looks like one: the line may be half of a
 * password in base64. */
static void job_unknown_key(struct job_file *f, int line, const char *section, const char *key)
{
    const char *best = NULL, *home = NULL;
    for (int i = 0; i < f->job->nkeys; i++) {
        const struct job_key *k = &f->job->keys[i];
        if (str_is(k->section, section))
            best = job_nearer(key, best, k->key);
        else if (str_is(k->key, key) && k->kind != &job_refused && !home)
            home = k->section;
    }
    bool is_plain = strspn(key, "abcdefghijklmnopqrstuvwxyz_-.") == strlen(key);
    if (home)
        job_mistake(f, line, "unknown key \"%s\" in [%s]; it belongs in [%s]", key, section, home);
    else if (best || is_plain)
        job_mistake(f, line, "unknown key \"%s\" in [%s]%s", key, section, job_hint(f, best));
    else
        job_mistake(f, line, "unknown key in [%s]", section);
}

/* inih's handler: notes where a key is given.  `text` is the number of its line. */
static int job_handler(void *arg, const char *section, const char *name, const char *text)
{
    struct job_file *f = arg;
    if (!name || !text || str_is(section, "?") || f->nmistakes == JOB_MISTAKES_MAX) return 1;
    int line = atoi(text), i = job_key_index(f->job, section, name);
    if (f->lines[line].of_name) return 1;  /* job_read_sections() */
    if (!section[0])
        job_mistake(f, line, "key stands before the first [section]");
    else if (i < 0)
        job_unknown_key(f, line, section, name);
    else if (f->given[i])
        job_mistake(f, line, "\"%s\" is given twice in [%s], first in line %d", name, section,
                    f->given[i]);
    else
        f->given[i] = line;
    return 1;
}

/* ---- values ---- */

/* Undo the quotes: text starts with one. */
static const char *job_unquote(struct job_file *f, const struct job_key *k, const char *text,
                               int line)
{
    char *out = arena_alloc(&f->job->arena, strlen(text) + 1), *to = out;
    const char *p = text + 1;
    for (; *p && !(p[0] == '"' && p[1] != '"'); p++) {
        if (*p == '"') p++;
        *to++ = *p;
    }
    if (!*p) {
        job_mistake(f, line, "%s: closing quote is missing", k->key);
        return NULL;
    }
    p = job_skip_blanks(p + 1);
    if (!*p || *p == ';') return out;
    job_mistake(f, line, "%s: text after the closing quote; write \"\" for a quote inside quotes",
                k->key);
    return NULL;
}

/* The single value of a line; NULL after a mistake. */
static const char *job_value(struct job_file *f, const struct job_key *k, int line)
{
    const char *text = f->lines[line].value, *start = job_skip_blanks(text), *end = start;
    for (int i = line + 1; i <= f->nlines; i++) {
        if (f->lines[i].kind == LINE_MORE)
            job_mistake(f, i, "indented line goes on with %s, which is not a list", k->key);
        else if (f->lines[i].kind != LINE_NOTHING)
            break;
    }
    if (*start == '"') return job_unquote(f, k, start, line);
    while (*end && !(*end == ';' && end > text && (end[-1] == ' ' || end[-1] == '\t'))) end++;
    const char *value = job_trim(&f->job->arena, start, end);
    if (*value) return value;
    job_mistake(f, line, "%s has no value", k->key);
    return NULL;
}

/* The line of the key and the indented ones below it. */
static void job_read_list(struct job_file *f, const struct job_key *k, int line, void *field)
{
    int before = f->nmistakes;
    k->kind->read(f, k, f->lines[line].value, line, field);
    for (int i = line + 1; i <= f->nlines; i++) {
        if (f->lines[i].kind == LINE_MORE)
            k->kind->read(f, k, f->lines[i].value, i, field);
        else if (f->lines[i].kind != LINE_NOTHING)
            break;
    }
    /* Both list types begin with their pointer; a list without items has none. */
    void *items;
    memcpy(&items, field, sizeof items);
    if (!items && before == f->nmistakes) job_mistake(f, line, "%s has no value", k->key);
}

static void job_read_keys(struct job_file *f)
{
    for (int i = 0; i < f->job->nkeys; i++) {
        const struct job_key *k = &f->job->keys[i];
        int line = f->given[i];
        void *field = (char *) f->job + k->field;
        const char *text = k->standard;
        if (line && k->kind->is_list) {
            job_read_list(f, k, line, field);
        } else {
            if (line) text = job_value(f, k, line);
            if (text) k->kind->read(f, k, text, line, field);
        }
    }
}

/* ---- the sections of single tables ---- */

/* What of SQL an expression is within: a string or a name, up to its end; or nothing. */
struct job_scan {
    char quote;      /* ' or ", 'E' a string with backslashes, '$', '-' a comment; '\0': nothing */
    char tag[40];    /* of '$' */
};

/* How many letters of the text belong together; where the state changes, what opens or closes. */
static size_t job_scan_step(struct job_scan *x, const char *text, const char *p)
{
    size_t n = 1;
    switch (x->quote) {
    case '\0':
        if (*p == '\'')
            x->quote = p > text && (p[-1] == 'E' || p[-1] == 'e') &&
                       !(p > text + 1 && (isalnum((unsigned char) p[-2]) || p[-2] == '_'))
                           ? 'E' : '\'';
        else if (*p == '"') x->quote = '"';
        else if (p[0] == '-' && p[1] == '-') x->quote = '-';
        else if (*p == '$') {
            size_t len = 1 + strspn(p + 1, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_");
            if (p[len] != '$' || len + 2 > sizeof x->tag) break;
            snprintf(x->tag, sizeof x->tag, "%.*s", (int) len + 1, p);
            x->quote = '$';
            n = len + 1;
        }
        break;
    case '$':
        if (strncmp(p, x->tag, strlen(x->tag))) break;
        n = strlen(x->tag);
        x->quote = '\0';
        break;
    case '-': break;  /* to the end of the line */
    case 'E':
        if (p[0] == '\\' && p[1]) n = 2;
        else if (*p == '\'') x->quote = '\0';
        break;
    default:
        if (*p == x->quote) x->quote = '\0';
    }
    return n;
}

/* An expression: the line of its key and the indented ones below it, comments taken away.  NULL
 * after a mistake. */
static const char *job_expression(struct job_file *f, int line)
{
    struct buf b = {0};
    struct job_scan x = {0};
    const char *key = f->lines[line].name, *out = NULL;
    bool ends = false;
    for (int i = line; i <= f->nlines; i++) {
        const struct job_line *l = &f->lines[i];
        if (i > line && l->kind == LINE_NOTHING) continue;
        if (i > line && l->kind != LINE_MORE) break;
        if (b.len) buf_char(&b, '\n');
        if (x.quote == '-') x.quote = '\0';
        for (const char *c = job_skip_blanks(l->value); *c;) {
            if (!x.quote && *c == ';' && (c == l->value || c[-1] == ' ' || c[-1] == '\t')) break;
            ends = ends || (!x.quote && *c == ';');
            size_t n = job_scan_step(&x, l->value, c);
            buf_bytes(&b, c, n);
            c += n;
        }
    }
    const char *text = buf_cstr(&b), *trimmed = text + b.len;
    while (trimmed > text && isspace((unsigned char) trimmed[-1])) trimmed--;
    if (ends) job_mistake(f, line, "%s: an expression cannot hold a ;", key);
    else if (x.quote && x.quote != '-')
        job_mistake(f, line, "%s: closing %c is missing", key, x.quote == 'E' ? '\'' : x.quote);
    else if (!*job_skip_blanks(text)) job_mistake(f, line, "%s has no value", key);
    else out = arena_fmt(&f->job->arena, "%.*s", (int) (trimmed - text), text);
    buf_free(&b);
    return out;
}

/* One name, for what stands in `what`; NULL after a mistake. */
static const char *job_one_name(struct job_file *f, const char *what, const char *text, int line)
{
    struct job_key k = {.key = what};
    const char *p = job_skip_blanks(text);
    bool glob;
    const char *name = job_name_part(f, &k, &p, line, &glob);
    p = job_skip_blanks(p);
    if (!name) return NULL;
    if (!glob && (!*p || *p == ';')) return name;
    job_mistake(f, line, "%s: one name is expected (quote one that is not plain)", what);
    return NULL;
}

/* The column of "set COLUMN" and "rename COLUMN". */
static const char *job_key_column(struct job_file *f, int line)
{
    const char *key = f->lines[line].name;
    return job_one_name(f, key, key + strcspn(key, " \t"), line);
}

static void job_read_renamed(struct job_file *f, struct renamed **list, int *n, const char *name,
                             int line)
{
    const char *key = f->lines[line].name;
    const char *to = name ? job_one_name(f, key, f->lines[line].value, line) : NULL;
    for (int i = 0; name && i < *n; i++)
        if (str_is((*list)[i].name, name)) job_mistake(f, line, "%s is given twice", key);
    if (!to) return;
    *list = job_grow(&f->job->arena, *list, *n, sizeof **list);
    (*list)[(*n)++] = (struct renamed){name, to};
}

/* "set COLUMN" */
static void job_read_set(struct job_file *f, struct table_rules *r, int line)
{
    struct job_key k = {.key = f->lines[line].name};
    struct rule_set set = {.column = job_key_column(f, line)};
    if (!set.column) return;
    set.expression = job_expression(f, line);
    for (int i = 0; i < r->nsets; i++)
        if (str_is(r->sets[i].column, set.column))
            job_mistake(f, line, "%s is given twice", k.key);
    if (!set.expression) return;
    r->sets = job_grow(&f->job->arena, r->sets, r->nsets, sizeof *r->sets);
    r->sets[r->nsets++] = set;
}

static void job_read_rule(struct job_file *f, struct table_rules *r, int line)
{
    static const struct job_key operations = {.key = "operations", .kind = &job_operations};
    static const struct job_key columns = {.key = "columns", .kind = &job_words};
    const char *key = f->lines[line].name, *text, **field = NULL;
    int one = str_is(key, "forward.operations") ? 1 : str_is(key, "reverse.operations") ? 2 : 0;
    if (job_is_word(key, "set")) {
        job_read_set(f, r, line);
    } else if (job_is_word(key, "rename")) {
        job_read_renamed(f, &r->renames, &r->nrenames, job_key_column(f, line), line);
    } else if (str_is(key, "to")) {
        if (r->to) job_mistake(f, line, "to is given twice");
        r->to = job_one_name(f, key, f->lines[line].value, line);
    } else if (str_is(key, "columns") || str_is(key, "without")) {
        struct str_list *list = *key == 'c' ? &r->columns : &r->without;
        if (list->n) job_mistake(f, line, "%s is given twice", key);
        job_read_list(f, &columns, line, list);
    } else if (one || str_is(key, "operations")) {
        int mask = 0;
        text = job_value(f, &operations, line);
        if (text) operations.kind->read(f, &operations, text, line, &mask);
        if (one != 2) r->operations[0] = mask;
        if (one != 1) r->operations[1] = mask;
    } else if (str_is(key, "filter") || str_is(key, "drop")) {
        field = *key == 'f' ? &r->filter : &r->drop;
        if (*field) job_mistake(f, line, "%s is given twice", key);
        *field = job_expression(f, line);
    } else {
        job_mistake(f, line, "unknown key \"%.40s\"; a table has to, columns, without, rename"
                    " COLUMN, filter, drop, set COLUMN, operations, forward.operations and"
                    " reverse.operations", key);
    }
}

/* [table NAME]: its rules, for what stands in it; NULL after a mistake. */
static struct table_rules *job_table_section(struct job_file *f, int line)
{
    static const struct job_key name = {.key = "[table]"};
    struct job *job = f->job;
    struct qname_list one = {0};
    job_read_names(f, &name, f->lines[line].name + strlen("table"), line, &one, job_add_table);
    if (one.n != 1) {
        if (one.n) job_mistake(f, line, "[table] is about one name, or one pattern");
        return NULL;
    }
    job->rules = job_grow(&job->arena, job->rules, job->nrules, sizeof *job->rules);
    job->rules[job->nrules] = (struct table_rules){.name = *one.items, .line = line};
    return &job->rules[job->nrules++];
}

static void job_read_schema(struct job_file *f, const char *schema, int line)
{
    struct job *job = f->job;
    if (str_is(f->lines[line].name, "to"))
        job_read_renamed(f, &job->schema_names, &job->nschema_names, schema, line);
    else
        job_mistake(f, line, "unknown key \"%.40s\"; a schema has to", f->lines[line].name);
}

/* The sections of single tables and schemas, in their order. */
static void job_read_sections(struct job_file *f)
{
    struct table_rules *r = NULL;
    const char *schema = NULL;
    for (int i = 1; i <= f->nlines; i++) {
        const struct job_line *l = &f->lines[i];
        bool section = l->kind == LINE_SECTION || l->kind == LINE_BAD_SECTION;
        if (section) r = NULL;
        if (section) schema = NULL;
        if (!l->of_name) continue;
        bool of_table = section && job_is_word(l->name, "table");
        if (of_table) r = job_table_section(f, i);
        else if (section) schema = job_one_name(f, "[schema]", l->name + strlen("schema"), i);
        else if (l->kind == LINE_KEY && r) job_read_rule(f, r, i);
        else if (l->kind == LINE_KEY && schema) job_read_schema(f, schema, i);
    }
}

/* ---- defaults that depend on where we are ---- */

static void job_default_name(struct job_file *f)
{
    struct job *job = f->job;
    const char *slash = strrchr(f->path, '/'), *base = slash ? slash + 1 : f->path;
    size_t n = strlen(base);
    if (n >= 4 && str_is(base + n - 4, ".ini")) n -= 4;
    job->name = job_fold_name(&job->arena, arena_fmt(&job->arena, "%.*s", (int) n, base));
    if (job->name[0]) return;
    job_mistake(f, job_blame(f, "job", "name"), "name is missing, and the file name holds none");
}

static void job_default_state_dir(struct job_file *f)
{
    struct job *job = f->job;
    const char *base = getenv("TWSYNC_STATE_DIR"), *home = getenv("HOME"), *dir;
    int i = job_key_index(job, "job", "state_dir");
    if (base && base[0])
        dir = arena_fmt(&job->arena, "%s/%s", base, job->name);
    else if (geteuid() == 0)
        dir = arena_fmt(&job->arena, "/var/lib/twsync/%s", job->name);
    else if (home && home[0])
        dir = arena_fmt(&job->arena, "%s/.local/state/twsync/%s", home, job->name);
    else
        dir = NULL;
    if (dir)
        job_read_path(f, &job->keys[i], dir, job_blame(f, "job", "state_dir"), &job->state_dir);
    else
        job_mistake(f, job_blame(f, "job", "state_dir"), "state_dir is missing, and HOME is not "
                    "set");
}

/* One of a comma separated list: an address on this machine? */
static bool job_host_is_local(const char *host, size_t n)
{
    if (n == 0 || host[0] == '/' || host[0] == '@') return true;  /* @: abstract Unix socket */
    if (n == 9 && !strncasecmp(host, "localhost", n)) return true;
    if (n == 3 && !strncmp(host, "::1", n)) return true;
    return !strncmp(host, "127.", 4) && strspn(host, "0123456789.") >= n;
}

static bool job_node_is_local(const struct node *n)
{
    const char *p = job_node_setting(n, "hostaddr");  /* where libpq goes if it is given */
    if (!p) p = job_node_setting(n, "host");
    if (!p) p = getenv("PGHOSTADDR");
    if (!p) p = getenv("PGHOST");
    while (p) {
        size_t len = strcspn(p, ",");
        if (!job_host_is_local(p, len)) return false;
        p = p[len] ? p + len + 1 : NULL;
    }
    return true;
}

/* libpq's default sslmode `prefer` falls back to plain text without a word.  Across a network a
 * server must prove who it is unless the job says otherwise.  A service may say it for the job. */
static void job_default_ssl(struct job *job, struct node *n)
{
    if (job_node_setting(n, "service") || job_node_setting(n, "sslmode")) return;
    if (getenv("PGSERVICE") || getenv("PGSSLMODE") || job_node_is_local(n)) return;
    job_add_setting(n, "sslmode", "verify-full", false);
    const char *home = getenv("HOME");
    const char *root = arena_fmt(&job->arena, "%s/.postgresql/root.crt", home ? home : "");
    if (!job_node_setting(n, "sslrootcert") && !getenv("PGSSLROOTCERT") && access(root, F_OK))
        job_add_setting(n, "sslrootcert", "system", false);
}

static void job_defaults(struct job_file *f)
{
    struct job *job = f->job;
    if (!job_given(f, "job", "name")) job_default_name(f);
    if (!job_given(f, "job", "state_dir") && job->name) job_default_state_dir(f);
    for (int i = 0; i < 2; i++) job_default_ssl(job, &job->node[i]);
}

/* ---- what must fit together ---- */

static void job_check_sections(struct job_file *f)
{
    for (int s = 0; s < JOB_NSECTIONS; s++) {
        const char *name = job_sections[s].name;
        int first = 0;
        for (int i = 1; i <= f->nlines; i++) {
            if (f->lines[i].kind != LINE_SECTION || !str_is(f->lines[i].name, name)) continue;
            if (first)
                job_mistake(f, i, "section [%s] is given twice, first in line %d", name, first);
            else
                first = i;
        }
        if (!first && job_sections[s].required)
            job_mistake(f, 1, "section [%s] is missing", name);
    }
}

static void job_check_dbname(struct job_file *f, const struct node *n, const char *section)
{
    const char *dbname = job_node_setting(n, "dbname");
    if (!job_section_line(f, section) || job_is_wrong(f, section, "dbname")) return;
    if (job_node_setting(n, "service") || (dbname && dbname[0])) return;
    job_mistake(f, job_blame(f, section, "dbname"), "dbname is missing in [%s]", section);
}

/* Another user or another way of logging in still leads to the same database. */
static void job_check_same(struct job_file *f)
{
    static const char *const keys[] = {"dbname", "host", "hostaddr", "port", "service"};
    const struct node *n = f->job->node;
    const char *port = getenv("PGPORT");
    if (!job_node_setting(n, "dbname") && !job_node_setting(n, "service")) return;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const char *standard = !str_is(keys[i], "port") ? "" : port ? port : "5432";
        const char *a = job_node_setting(&n[0], keys[i]), *b = job_node_setting(&n[1], keys[i]);
        if (job_is_wrong(f, "a", keys[i]) || job_is_wrong(f, "b", keys[i])) return;
        if (!str_is(a ? a : standard, b ? b : standard)) return;
    }
    job_mistake(f, job_blame(f, "b", "dbname"), "[b] is the same database as [a]");
}

static int job_string_order(const void *a, const void *b)
{
    return strcmp(*(const char *const *) a, *(const char *const *) b);
}

/* Sorted names of a list, and a mistake for each that is there twice. */
static const char **job_sorted_names(struct job_file *f, const char *section, const char *key,
                                     const struct qname_list *list)
{
    const char **names = arena_array(&f->job->arena, const char *, list->n);
    for (int i = 0; i < list->n; i++) {
        const struct qname *q = &list->items[i];
        struct buf b = {0};
        if (q->schema_glob) buf_str(&b, q->schema);
        else sql_ident(&b, q->schema);
        if (q->table) buf_char(&b, '.');
        if (q->table_glob) buf_str(&b, q->table);
        else if (q->table) sql_ident(&b, q->table);
        names[i] = arena_str(&f->job->arena, buf_cstr(&b));
        buf_free(&b);
    }
    qsort(names, (size_t) list->n, sizeof *names, job_string_order);
    for (int i = 1; i < list->n; i++)
        if (str_is(names[i - 1], names[i]))
            job_mistake(f, job_blame(f, section, key), "%s: %s is listed twice", key, names[i]);
    return names;
}

static bool job_has(const char **sorted, int n, const char *name)
{
    return bsearch(&name, sorted, (size_t) n, sizeof name, job_string_order) != NULL;
}

/* Can a name under exclude be about anything that is selected?  One pattern within another cannot
 * be told. */
static bool job_may_select(const struct job *job, const struct qname *q)
{
    if (q->schema_glob) return true;
    for (int i = 0; i < job->schemas.n; i++)
        if (qname_in(&job->schemas.items[i], q->schema)) return true;
    for (int i = 0; i < job->tables.n; i++)
        if (job->tables.items[i].table_glob && qname_in(&job->tables.items[i], q->schema))
            return true;
    return false;
}

static void job_check_objects(struct job_file *f)
{
    struct job *job = f->job;
    int line = job_section_line(f, "objects"), exclude = job_blame(f, "objects", "exclude");
    if (line && !job_given(f, "objects", "schemas") && !job_given(f, "objects", "tables"))
        job_mistake(f, line, "[objects] selects nothing: give schemas or tables");
    job_sorted_names(f, "objects", "schemas", &job->schemas);
    const char **tables = job_sorted_names(f, "objects", "tables", &job->tables);
    job_sorted_names(f, "objects", "exclude", &job->exclude);
    for (int i = 0; i < job->exclude.n; i++) {
        const struct qname *q = &job->exclude.items[i];
        const char *name = sql_quoted_table(&job->arena, q->schema, q->table);
        if (job_has(tables, job->tables.n, name))
            job_mistake(f, exclude, "exclude: %s is also listed under tables", name);
        else if (!job_is_wrong(f, "objects", "schemas") && !job_may_select(job, q))
            job_mistake(f, exclude, "exclude: %s is in none of the schemas", name);
    }
}

/* A table has one policy. */
static void job_check_policies(struct job_file *f, enum tw_direction dir)
{
    const struct qname_list *lists = f->job->task[dir].policy_tables;
    const char *section = direction_names[dir], **names[4];
    char key[32];
    for (int p = 0; p < 4; p++) {
        snprintf(key, sizeof key, "on_conflict_%s", policy_names[p]);
        names[p] = job_sorted_names(f, section, key, &lists[p]);
        for (int q = 0; q < p; q++)
            for (int i = 0; i < lists[p].n; i++)
                if (job_has(names[q], lists[q].n, names[p][i]))
                    job_mistake(f, job_blame(f, section, key),
                                "%s: %s is also listed under on_conflict_%s", key, names[p][i],
                                policy_names[q]);
    }
}

static void job_check_tasks(struct job_file *f)
{
    job_check_policies(f, TW_FORWARD);
    job_check_policies(f, TW_REVERSE);
    const struct task_conf *forward = &f->job->task[TW_FORWARD];
    const struct task_conf *reverse = &f->job->task[TW_REVERSE];
    if (job_is_wrong(f, "forward", "enabled") || job_is_wrong(f, "reverse", "enabled")) return;
    if (!forward->enabled && reverse->enabled)
        job_mistake(f, job_blame(f, "forward", "enabled"),
                    "reverse is enabled and forward is not; reverse starts from a running forward");
    if (!forward->enabled && !reverse->enabled)
        job_mistake(f, job_blame(f, "forward", "enabled"), "neither direction is enabled");
}

static void job_check_rules(struct job_file *f)
{
    const struct job *job = f->job;
    struct qname_list names = {.items = arena_array(&f->job->arena, struct qname, job->nrules)};
    for (int i = 0; i < job->nrules; i++) {
        const struct table_rules *r = &job->rules[i];
        names.items[names.n++] = r->name;
        if (rules_see_rows(r) && job->task[TW_FORWARD].identity == IDENTITY_KEY)
            job_mistake(f, r->line, "filter, drop and set need whole old rows: identity = full in"
                        " [forward]");
        if (r->to && (r->name.schema_glob || r->name.table_glob))
            job_mistake(f, r->line, "to: a pattern cannot have one name");
        if (r->columns.n && r->without.n)
            job_mistake(f, r->line, "give columns or without, not both");
        for (int k = 0; k < r->nsets; k++)
            if (!rules_have(r, r->sets[k].column))
                job_mistake(f, r->line, "set %s: the column is left out", r->sets[k].column);
        for (int k = 0; k < r->nrenames; k++)
            if (!rules_have(r, r->renames[k].name))
                job_mistake(f, r->line, "rename %s: the column is left out", r->renames[k].name);
    }
    job_sorted_names(f, "objects", "[table]", &names);
}

static void job_check_retry(struct job_file *f)
{
    int connection = f->job->connection_retry_min, other = f->job->other_retry_min;
    if (job_is_wrong(f, "retry", "connection") || job_is_wrong(f, "retry", "other")) return;
    if (other >= connection)
        job_mistake(f, job_blame(f, "retry", "other"),
                    "other (%dmin) must be less than connection (%dmin)", other, connection);
}

/* ---- in and out ---- */

static void job_parse(struct job_file *f)
{
    if (!job_read_file(f, 0, f->path, JOB_FILE_MAX, &f->st, &f->text)) return;
    size_t n = strlen(f->text.data);
    if (n != f->text.len) {
        int line = 1;
        for (size_t i = 0; i < n; i++) line += f->text.data[i] == '\n';
        job_mistake(f, line, "not a text file");
        return;
    }
    if (strspn(f->text.data, " \t\r\n") == n) {
        job_mistake(f, 1, "file is empty");
        return;
    }
    f->given = arena_array(&f->job->arena, int, f->job->nkeys);
    job_scan(f);
    int rc = ini_parse_stream(job_reader, f, job_handler, f);
    if (rc < 0) mem_die();
    if (rc > 0) job_mistake(f, rc, "could not be understood");
    job_read_keys(f);
    job_read_sections(f);
    job_defaults(f);
    job_check_sections(f);
    job_check_dbname(f, &f->job->node[0], "a");
    job_check_dbname(f, &f->job->node[1], "b");
    job_check_same(f);
    job_check_objects(f);
    job_check_tasks(f);
    job_check_rules(f);
    job_check_retry(f);
}

/* What the arena held may be a password. */
static void job_free(struct job *job)
{
    if (!job) return;
    for (struct chunk *c = job->arena.chunks; c; c = c->next)
        explicit_bzero((char *) c + align_up(sizeof *c), c->used);
    arena_free(&job->arena);
    free(job);
}

/* Read and check a job file; connects to nothing.  TW_EJOB: e->msg is the first mistake,
 * e->detail says how many there are, and all have been written to standard error. */
static status MUST_CHECK job_load(const char *path, struct job **out, struct tw_error *e)
{
    struct job *job = mem_resize(NULL, sizeof *job);
    *job = (struct job){0};
    *out = NULL;
    job->path = arena_str(&job->arena, path);
    job_make_keys(job);
    struct job_file f = {.job = job, .path = job->path};
    f.mistakes = arena_array(&job->arena, struct job_mistake, JOB_MISTAKES_MAX);
    job_parse(&f);
    job_wipe(&f.text);
    status s = job_report(&f, e);
    if (s == TW_OK)
        *out = job;
    else
        job_free(job);
    return s;
}

/* One setting.  What is not set and has no default shows as a comment, as do secrets, which look
 * the same set or not: so the output of the output is the output. */
static void job_print_key(const struct job *job, const struct job_key *k, struct buf *b)
{
    enum { COLUMN = 32 };
    struct buf value = {0};
    if (k->kind == &job_refused) return;
    if (!k->is_secret) k->kind->write(&value, k, (const char *) job + k->field);
    size_t start = b->len;
    if (k->is_secret)
        buf_fmt(b, "; %s = ********", k->key);
    else if (value.len)
        buf_fmt(b, "%s = %s", k->key, value.data);
    else if (k->help)
        buf_fmt(b, "; %s =", k->key);
    if (k->help) {
        do buf_char(b, ' ');
        while (b->len - start < COLUMN);
        buf_fmt(b, "; %s", k->help);
    }
    if (b->len > start) buf_char(b, '\n');
    buf_free(&value);
}

static void job_print_expression(struct buf *b, const char *key, const char *text)
{
    if (!text) return;
    buf_fmt(b, "%s = ", key);
    for (; *text; text++) {
        buf_char(b, *text);
        if (*text == '\n') buf_char(b, ' ');
    }
    buf_char(b, '\n');
}

/* "rename COLUMN = NAME" */
static void job_print_renamed(struct buf *b, const char *before, const struct renamed *r)
{
    buf_str(b, before);
    if (*before) job_write_part(b, r->name, false);
    buf_str(b, *before ? " = " : "to = ");
    job_write_part(b, r->to, false);
    buf_char(b, '\n');
}

static void job_print_rules(const struct job *job, const struct table_rules *r, struct buf *b)
{
    buf_str(b, "\n[table ");
    job_write_name(b, &r->name);
    buf_str(b, "]\n");
    if (r->to) {
        buf_str(b, "to = ");
        job_write_part(b, r->to, false);
        buf_char(b, '\n');
    }
    for (int i = 0; i < r->nrenames; i++) job_print_renamed(b, "rename ", &r->renames[i]);
    const struct str_list *lists[] = {&r->columns, &r->without};
    for (int i = 0; i < 2; i++) {
        if (!lists[i]->n) continue;
        buf_str(b, i ? "without = " : "columns = ");
        job_write_words(b, job->keys, lists[i]);
        buf_char(b, '\n');
    }
    job_print_expression(b, "filter", r->filter);
    job_print_expression(b, "drop", r->drop);
    for (int i = 0; i < r->nsets; i++) {
        buf_str(b, "set ");
        job_write_part(b, r->sets[i].column, false);
        job_print_expression(b, "", r->sets[i].expression);
    }
    for (int dir = 0; dir < 2; dir++) {
        if (!r->operations[dir]) continue;
        buf_fmt(b, "%s.operations = ", direction_names[dir]);
        job_write_operations(b, job->keys, &r->operations[dir]);
        buf_char(b, '\n');
    }
}

static void job_print(const struct job *job, FILE *to)
{
    struct buf b = {0};
    buf_str(&b, "; The job in effect, defaults filled in.  Secrets are masked, set or not.\n"
                "; A value that begins or ends with a blank or holds ; # or \" stands in "
                "\"quotes\", a quote inside doubled.\n");
    for (int s = 0; s < JOB_NSECTIONS; s++) {
        buf_fmt(&b, "\n; %s\n[%s]\n", job_sections[s].help, job_sections[s].name);
        for (int i = 0; i < job->nkeys; i++)
            if (str_is(job->keys[i].section, job_sections[s].name))
                job_print_key(job, &job->keys[i], &b);
    }
    for (int i = 0; i < job->nschema_names; i++) {
        buf_str(&b, "\n[schema ");
        job_write_part(&b, job->schema_names[i].name, false);
        buf_str(&b, "]\n");
        job_print_renamed(&b, "", &job->schema_names[i]);
    }
    for (int i = 0; i < job->nrules; i++) job_print_rules(job, &job->rules[i], &b);
    fwrite(b.data, 1, b.len, to);
    fflush(to);
    buf_free(&b);
}

/* ---- help ---- */

static void job_help_key(struct buf *b, const struct job_key *k)
{
    const struct job_kind *unit = k->kind == &job_minutes ? &job_time : k->kind;
    if (k->kind == &job_refused) return;
    buf_fmt(b, "  %-24s%s\n", k->key, k->help);
    if (!k->standard && !k->max) return;
    buf_fmt(b, "  %-24s", "");
    if (k->standard) buf_fmt(b, "default %s", k->standard);
    if (k->max && k->kind == &job_int) {
        buf_fmt(b, "%s%" PRId64 " to %" PRId64, k->standard ? ", " : "", k->min, k->max);
    } else if (k->max) {
        buf_str(b, k->standard ? ", " : "");
        unit->write(b, k, &k->min);
        buf_str(b, " to ");
        unit->write(b, k, &k->max);
    }
    buf_char(b, '\n');
}

/* `twsync help job`: every key, from the table by which the file is read. */
static void job_help(FILE *to)
{
    static const char rules[] =
        "\n[schema NAME]             a schema that is called otherwise on B\n"
        "  to                      its name there\n"
        "\n[table NAME]              a table, or those that meet a pattern (* and ?)\n"
        "  to                      its name on B\n"
        "  rename COLUMN           the column's name on B\n"
        "  columns                 the columns that B has\n"
        "  without                 or those that it has not\n"
        "  filter                  forward carries the rows for which this is true (SQL)\n"
        "  drop                    and of those not the ones for which this is true\n"
        "  set COLUMN              the value of the column on B (SQL)\n"
        "  operations              what is carried of this table\n"
        "  forward.operations      the same for one task\n"
        "  reverse.operations      the same for the other\n";
    struct buf b = {0};
    buf_str(&b, "A job file has sections, and keys with values:\n\n"
                "  [section]\n  key = value             ; a comment\n\n"
                "A list goes on over several lines that begin with a blank.  A value with ; # or\n"
                "blanks at its ends stands in \"quotes\".  Sizes: kB MB GB; times: ms s min h d."
                "\n");
    for (int s = 0; s < JOB_NSECTIONS; s++) {
        int blanks = 24 - (int) strlen(job_sections[s].name);
        buf_fmt(&b, "\n[%s]%*s%s%s\n", job_sections[s].name, blanks, "", job_sections[s].help,
                job_sections[s].required ? " (required)" : "");
        for (size_t i = 0; i < sizeof job_own_keys / sizeof *job_own_keys; i++)
            if (str_is(job_own_keys[i].section, job_sections[s].name))
                job_help_key(&b, &job_own_keys[i]);
    }
    buf_str(&b, rules);
    fwrite(b.data, 1, b.len, to);
    buf_free(&b);
}

/* ==== 10. ckpt =============================================================
 * The checkpoint file of a task: phase, positions, identities, counters.  A hint for people and
 * for sanity checks; the truth is on the servers, so losing it costs nothing but old counters.
 * Text, one "key value" a line, closed by a line with the CRC-32 of all before it. */

struct ckpt {
    char task[96], state[24], phase[16], rung[16];
    char source_system[24], slot_name[64];
    lsn_t received_lsn, applied_lsn, confirmed_lsn;
#define X(n) int64_t n;
    STAT_COUNTERS(X)
#undef X
    char last_error[2048];
};

enum { CKPT_MAX = 64 * 1024 };

static const char *ckpt_file(struct arena *a, enum tw_direction dir)
{
    return arena_fmt(a, "%s.ckpt", direction_names[dir]);
}

static void ckpt_render(const struct ckpt *c, struct buf *b)
{
    buf_str(b, "twsync checkpoint 1\n");
    buf_fmt(b, "task %s\nstate %s\nphase %s\nrung %s\n", c->task, c->state, c->phase, c->rung);
    buf_fmt(b, "source_system %s\nslot_name %s\n", c->source_system, c->slot_name);
    buf_fmt(b, "received_lsn " LSN_FMT "\n", LSN_ARG(c->received_lsn));
    buf_fmt(b, "applied_lsn " LSN_FMT "\n", LSN_ARG(c->applied_lsn));
    buf_fmt(b, "confirmed_lsn " LSN_FMT "\n", LSN_ARG(c->confirmed_lsn));
#define X(n) buf_fmt(b, #n " %" PRId64 "\n", c->n);
    STAT_COUNTERS(X)
#undef X
    buf_str(b, "last_error ");
    for (const char *p = c->last_error; *p; p++) buf_char(b, *p == '\n' ? ' ' : *p);
    buf_char(b, '\n');
    unsigned long crc = crc32(0, (const unsigned char *) b->data, (unsigned) b->len);
    buf_fmt(b, "crc %08lx\n", crc);
}

static status MUST_CHECK ckpt_write(const struct job *job, enum tw_direction dir,
                                    const struct ckpt *c, struct tw_error *e)
{
    struct arena a = {0};
    struct buf b = {0};
    ckpt_render(c, &b);
    status s = os_replace_file(job->state_dir, ckpt_file(&a, dir), b.data, b.len, e);
    buf_free(&b);
    arena_free(&a);
    return s;
}

static void ckpt_line(struct ckpt *c, const char *key, const char *value)
{
    const struct {
        const char *key;
        char *to;
        size_t size;
    } texts[] = {
        {"task", c->task, sizeof c->task},
        {"state", c->state, sizeof c->state},
        {"phase", c->phase, sizeof c->phase},
        {"rung", c->rung, sizeof c->rung},
        {"source_system", c->source_system, sizeof c->source_system},
        {"slot_name", c->slot_name, sizeof c->slot_name},
        {"last_error", c->last_error, sizeof c->last_error},
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (str_is(key, texts[i].key)) str_copy(texts[i].to, texts[i].size, value);
    if (str_is(key, "received_lsn")) lsn_parse(value, &c->received_lsn);
    if (str_is(key, "applied_lsn")) lsn_parse(value, &c->applied_lsn);
    if (str_is(key, "confirmed_lsn")) lsn_parse(value, &c->confirmed_lsn);
#define X(n)                                                                                       \
    if (str_is(key, #n)) c->n = strtoll(value, NULL, 10);
    STAT_COUNTERS(X)
#undef X
}

/* Parse a whole file; false when damaged, of another version, or cut. */
static bool ckpt_parse(char *text, size_t len, struct ckpt *c)
{
    static const char head[] = "twsync checkpoint 1\n";
    *c = (struct ckpt){0};
    if (len != strlen(text) || strncmp(text, head, sizeof head - 1)) return false;
    char *tail = strstr(text, "\ncrc ");
    if (!tail) return false;
    tail++;
    char want[16];
    snprintf(want, sizeof want, "crc %08lx\n",
             crc32(0, (const unsigned char *) text, (unsigned) (tail - text)));
    if (!str_is(tail, want)) return false;
    *tail = '\0';
    char *save = NULL;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char *space = strchr(line, ' ');
        if (!space) continue;
        *space = '\0';
        ckpt_line(c, line, space + 1);
    }
    return true;
}

/* What was known last; an empty struct when there is no usable file. */
static bool ckpt_read(const struct job *job, enum tw_direction dir, struct ckpt *c)
{
    struct arena a = {0};
    struct buf b = {0};
    struct tw_error e;
    error_clear(&e);
    *c = (struct ckpt){0};
    const char *path = arena_fmt(&a, "%s/%s", job->state_dir, ckpt_file(&a, dir));
    bool ok = false;
    if (access(path, F_OK) == 0) {
        ok = os_read_file(path, &b, CKPT_MAX, &e) == TW_OK && b.len && ckpt_parse(b.data, b.len, c);
        if (!ok)
            log_warning("checkpoint file \"%s\" is damaged and is ignored: counters start over",
                        path);
    }
    if (!ok) *c = (struct ckpt){0};
    buf_free(&b);
    arena_free(&a);
    return ok;
}

/* ==== 11. db ===============================================================
 * A connection: open, wait without deafness, query, SQLSTATE to status.
 *
 * Nothing here blocks without a way out: every wait polls the socket, runs the owner's tick (which
 * keeps the other connection's replication stream alive) and ends when a stop was asked for. */

struct db {
    PGconn *pg;
    const struct node *node;
    struct tw_error *e;
    int version;           /* as PQserverVersion: 150018 */
    status (*tick)(void *arg);  /* called at least every tick_ms while waiting; may be NULL */
    void *tick_arg;
    int tick_ms;
    int also_fd;           /* a wait also ticks when this can be read; 0 or less: none */
    char purpose[64];      /* "forward:apply": part of application_name */
};

enum { DB_TICK_MS = 1000, DB_CONNECT_S = 30 };

/* Settings every session of ours runs with, whatever role, database or server defaults say
 * (failures D11-D14, B12).  Set in one round trip after connecting, since managed servers and
 * poolers may refuse start-up options; those a version does not know are passed over. */
static const char db_session_sql[] =
    "SET search_path = '';"
    "SELECT count(set_config(v.n, v.s, false)) FROM (VALUES ('datestyle', 'ISO, YMD'),"
    " ('intervalstyle', 'postgres'), ('extra_float_digits', '3'), ('bytea_output', 'hex'),"
    " ('timezone', 'UTC'), ('client_encoding', 'UTF8'), ('lc_monetary', 'C'),"
    " ('xmloption', 'content'), ('xmlbinary', 'base64'), ('array_nulls', 'on'),"
    " ('row_security', 'off'), ('statement_timeout', '0'), ('lock_timeout', '0'),"
    " ('idle_in_transaction_session_timeout', '0'), ('idle_session_timeout', '0'),"
    " ('transaction_timeout', '0'), ('default_transaction_read_only', 'off'),"
    " ('default_transaction_isolation', 'read committed'),"
    " ('default_transaction_deferrable', 'off'), ('standard_conforming_strings', 'on'),"
    " ('transform_null_equals', 'off'), ('client_min_messages', 'warning'),"
    " ('quote_all_identifiers', 'off'), ('synchronous_commit', 'on'),"
    " ('check_function_bodies', 'off'), ('default_table_access_method', 'heap'),"
    " ('default_tablespace', ''), ('client_connection_check_interval', '2s'), ('jit', 'off'),"
    " ('tcp_keepalives_idle', '10'), ('tcp_keepalives_interval', '5'),"
    " ('tcp_keepalives_count', '3')) v(n, s)"
    " WHERE EXISTS (SELECT FROM pg_settings p WHERE lower(p.name) = v.n)";

static void db_discard_notice(void *arg, const PGresult *r)
{
    (void) arg;
    log_debug("server: %s", PQresultErrorMessage(r));
}

/* libpq's message without its line breaks and trailing blanks. */
static void db_message(char *out, size_t size, const char *msg)
{
    str_copy(out, size, msg ? msg : "");
    for (char *c = out; *c; c++)
        if (*c == '\n' || *c == '\t') *c = ' ';
    size_t n = strlen(out);
    while (n && out[n - 1] == ' ') out[--n] = '\0';
}

/* "a (shop at db1:5432)": what may be shown of a connection. */
static const char *db_label(struct arena *a, const struct node *node)
{
    const char *host = job_node_setting(node, "host"), *port = job_node_setting(node, "port");
    const char *db = job_node_setting(node, "dbname"), *service = job_node_setting(node, "service");
    if (!host) host = job_node_setting(node, "hostaddr");
    if (!host && service) return arena_fmt(a, "%c (service %s)", node->letter, service);
    return arena_fmt(a, "%c (%s at %s:%s)", node->letter, db ? db : "?", host ? host : "local",
                     port ? port : "5432");
}

/* Which SQLSTATE asks for which reaction (documentation, appendix A).  The first match counts;
 * a prefix of two characters stands for its class. */
static const struct {
    const char *prefix;
    status code;
} db_sqlstates[] = {
    {"55006", TW_EBUSY},  /* object_in_use: the slot or origin is still held by an old session */
    {"55P03", TW_ETXN},   /* lock_not_available: our lock_timeout */
    {"40", TW_ETXN},      /* serialization failure, deadlock */
    {"57014", TW_ETXN},   /* query_canceled */
    {"08", TW_ECONN},     {"57P", TW_ECONN},  /* shutdown, crash, starting up, idle timeout */
    {"53300", TW_ECONN},  /* too_many_connections */
    {"25P03", TW_ECONN},  {"25P04", TW_ECONN},  /* idle-in-transaction, transaction timeout */
};

static status db_state_status(const char *state)
{
    for (size_t i = 0; i < sizeof db_sqlstates / sizeof *db_sqlstates; i++)
        if (!strncmp(state, db_sqlstates[i].prefix, strlen(db_sqlstates[i].prefix)))
            return db_sqlstates[i].code;
    return TW_ESERVER;
}

/* Turn a failed result into an error; `what` says what we were doing. */
static status db_fail_result(struct db *d, const PGresult *r, const char *what)
{
    const char *state = PQresultErrorField(r, PG_DIAG_SQLSTATE);
    char msg[400];
    if (!state || PQstatus(d->pg) == CONNECTION_BAD) {
        db_message(msg, sizeof msg, PQerrorMessage(d->pg));
        if (!msg[0]) str_copy(msg, sizeof msg, "connection lost");
        return fail(d->e, TW_ECONN, "could not %s on %c: %s", what, d->node->letter, msg);
    }
    db_message(msg, sizeof msg, PQresultErrorField(r, PG_DIAG_MESSAGE_PRIMARY));
    status s = fail(d->e, db_state_status(state), "could not %s on %c: %s", what, d->node->letter,
                    msg);
    str_copy(d->e->sqlstate, sizeof d->e->sqlstate, state);
    const char *detail = PQresultErrorField(r, PG_DIAG_MESSAGE_DETAIL);
    const char *hint = PQresultErrorField(r, PG_DIAG_MESSAGE_HINT);
    if (detail) fail_detail(d->e, "%s", detail);
    if (hint) fail_hint(d->e, "%s", hint);
    return s;
}

static status db_fail_conn(struct db *d, const char *what)
{
    char msg[400];
    db_message(msg, sizeof msg, PQerrorMessage(d->pg));
    return fail(d->e, TW_ECONN, "could not %s on %c: %s", what, d->node->letter,
                msg[0] ? msg : "connection lost");
}

static status MUST_CHECK db_tick(struct db *d)
{
    if (stop_flag) return fail(d->e, TW_ESTOP, "stop requested");
    return d->tick ? d->tick(d->tick_arg) : TW_OK;
}

/* Wait until the socket is ready for `events`, a tick at a time. */
static status MUST_CHECK db_poll(struct db *d, short events)
{
    for (;;) {
        struct pollfd p[] = {{.fd = PQsocket(d->pg), .events = events},
                             {.fd = d->also_fd, .events = POLLIN}};
        if (poll(p, d->also_fd > 0 ? 2 : 1, d->tick_ms) < 0 && errno != EINTR)
            return fail(d->e, TW_EOS, "could not wait for a socket: %s", strerror(errno));
        TRY(db_tick(d));
        if (p[0].revents) return TW_OK;
    }
}

/* Send what libpq holds, reading meanwhile so that neither side waits for the other. */
static status MUST_CHECK db_flush(struct db *d)
{
    for (;;) {
        int rc = PQflush(d->pg);
        if (rc == 0) return TW_OK;
        if (rc < 0) return db_fail_conn(d, "send");
        TRY(db_poll(d, POLLIN | POLLOUT));
        if (!PQconsumeInput(d->pg)) return db_fail_conn(d, "receive");
    }
}

/* The next result, waiting for it.  *out is NULL at the end of a query's results. */
static status MUST_CHECK db_next_result(struct db *d, PGresult **out)
{
    *out = NULL;
    TRY(db_flush(d));
    while (PQisBusy(d->pg)) {
        TRY(db_poll(d, POLLIN));
        if (!PQconsumeInput(d->pg)) return db_fail_conn(d, "receive");
    }
    *out = PQgetResult(d->pg);
    return TW_OK;
}

static void db_clear_result(void *r)
{
    PQclear(r);
}

static bool db_result_ok(const PGresult *r)
{
    switch (PQresultStatus(r)) {
    case PGRES_COMMAND_OK:
    case PGRES_TUPLES_OK:
    case PGRES_EMPTY_QUERY:
    case PGRES_COPY_IN:
    case PGRES_COPY_OUT:
    case PGRES_COPY_BOTH:
        return true;
    default:
        return false;
    }
}

/* Collect the results of what was sent; *out gets the last one, or the first bad one. */
static status MUST_CHECK db_collect(struct db *d, PGresult **out)
{
    PGresult *last = NULL;
    for (;;) {
        PGresult *r;
        status s = db_next_result(d, &r);
        if (s != TW_OK) {
            PQclear(last);
            return s;
        }
        if (!r) break;
        if (last && !db_result_ok(last)) {
            PQclear(r);
            continue;
        }
        PQclear(last);
        last = r;
        ExecStatusType st = PQresultStatus(r);
        if (st == PGRES_COPY_IN || st == PGRES_COPY_OUT || st == PGRES_COPY_BOTH) break;
        if (PQstatus(d->pg) == CONNECTION_BAD) break;
    }
    *out = last;
    return last ? TW_OK : db_fail_conn(d, "receive a result");
}

/* Run SQL whose failure is no surprise: *out is the result, good or bad (the caller's to PQclear).
 * Only a lost connection or a stop is an error. */
static status MUST_CHECK db_attempt(struct db *d, const char *sql, int n, const char *const *values,
                                    PGresult **out)
{
    *out = NULL;
    int sent = n ? PQsendQueryParams(d->pg, sql, n, NULL, values, NULL, NULL, 0)
                 : PQsendQuery(d->pg, sql);
    if (!sent) return db_fail_conn(d, "send a query");
    TRY(db_collect(d, out));
    if (!db_result_ok(*out) && PQstatus(d->pg) == CONNECTION_BAD) {
        status s = db_fail_result(d, *out, "run a query");
        PQclear(*out);
        *out = NULL;
        return s;
    }
    return TW_OK;
}

/* Run a query with text parameters; `what` completes "could not ...".  The result lives in `a`. */
static status MUST_CHECK db_query(struct db *d, struct arena *a, const char *what, const char *sql,
                                  int n, const char *const *values, PGresult **out)
{
    PGresult *r;
    TRY(db_attempt(d, sql, n, values, &r));
    arena_defer(a, db_clear_result, r);
    if (!db_result_ok(r)) return db_fail_result(d, r, what);
    *out = r;
    return TW_OK;
}

/* One of several questions for one round trip. */
struct db_question {
    const char *sql;
    int n;
    const char *values[3];
    PGresult *r;  /* the answer */
};

static status MUST_CHECK db_hear(struct db *d, struct arena *a, const char *what, PGresult **out)
{
    PGresult *r, *end;
    TRY(db_next_result(d, &r));
    if (!r) return db_fail_conn(d, what);
    arena_defer(a, db_clear_result, r);
    *out = r;
    if (PQresultStatus(r) == PGRES_PIPELINE_SYNC) return TW_OK;
    TRY(db_next_result(d, &end));  /* the NULL after each answer */
    PQclear(end);
    return TW_OK;
}

/* Ask them; the answers live in `a`. */
static status MUST_CHECK db_ask(struct db *d, struct arena *a, const char *what,
                                struct db_question *q, int n)
{
    PGresult *sync, *bad = NULL;
    if (!PQenterPipelineMode(d->pg)) return db_fail_conn(d, what);
    for (int i = 0; i < n; i++)
        if (!PQsendQueryParams(d->pg, q[i].sql, q[i].n, NULL, q[i].values, NULL, NULL, 0))
            return db_fail_conn(d, what);
    if (!PQpipelineSync(d->pg)) return db_fail_conn(d, what);
    for (int i = 0; i < n; i++) {
        TRY(db_hear(d, a, what, &q[i].r));
        if (!bad && !db_result_ok(q[i].r)) bad = q[i].r;
    }
    TRY(db_hear(d, a, what, &sync));
    if (PQresultStatus(sync) != PGRES_PIPELINE_SYNC || !PQexitPipelineMode(d->pg))
        return fail(d->e, TW_EPROTO, "the answers of %c are out of step", d->node->letter);
    return bad ? db_fail_result(d, bad, what) : TW_OK;
}

/* Run SQL for its effect.  Several statements without parameters may stand in one string. */
static status MUST_CHECK db_exec(struct db *d, const char *what, const char *sql)
{
    struct arena a = {0};
    PGresult *r;
    status s = db_query(d, &a, what, sql, 0, NULL, &r);
    arena_free(&a);
    return s;
}

static status MUST_CHECK db_exec_params(struct db *d, const char *what, const char *sql, int n,
                                        const char *const *values)
{
    struct arena a = {0};
    PGresult *r;
    status s = db_query(d, &a, what, sql, n, values, &r);
    arena_free(&a);
    return s;
}

/* One value as text, NULL for no row or SQL NULL. */
static status MUST_CHECK db_value(struct db *d, struct arena *a, const char *what, const char *sql,
                                  int n, const char *const *values, const char **out)
{
    PGresult *r;
    *out = NULL;
    TRY(db_query(d, a, what, sql, n, values, &r));
    if (PQntuples(r) && !PQgetisnull(r, 0, 0)) *out = PQgetvalue(r, 0, 0);
    return TW_OK;
}

static const char *db_cell(const PGresult *r, int row, int col)
{
    return PQgetisnull(r, row, col) ? NULL : PQgetvalue(r, row, col);
}

static bool db_cell_true(const PGresult *r, int row, int col)
{
    return !PQgetisnull(r, row, col) && PQgetvalue(r, row, col)[0] == 't';
}

static int64_t db_cell_int(const PGresult *r, int row, int col)
{
    return PQgetisnull(r, row, col) ? 0 : strtoll(PQgetvalue(r, row, col), NULL, 10);
}

static void db_close(struct db *d)
{
    if (d->pg) PQfinish(d->pg);
    d->pg = NULL;
}

enum { DB_CANCEL_MS = 1000 };

/* Stop what the server is doing for us, best effort and never for long: a statement of a session
 * that was killed holds its locks until it ends. */
static void db_cancel(PGconn *pg)
{
    PGcancelConn *c = PQcancelCreate(pg);
    usec deadline = os_now() + DB_CANCEL_MS * 1000;
    bool going = PQcancelStart(c);
    while (going && os_now() < deadline) {
        PostgresPollingStatusType st = PQcancelPoll(c);
        if (st == PGRES_POLLING_OK || st == PGRES_POLLING_FAILED) break;
        struct pollfd p = {.fd = PQcancelSocket(c),
                           .events = st == PGRES_POLLING_READING ? POLLIN : POLLOUT};
        poll(&p, 1, DB_CANCEL_MS / 10);
    }
    PQcancelFinish(c);
}

static void db_abandon(struct db *d)
{
    if (d->pg && PQstatus(d->pg) == CONNECTION_OK && PQtransactionStatus(d->pg) == PQTRANS_ACTIVE)
        db_cancel(d->pg);
    db_close(d);
}

static status MUST_CHECK db_connect_wait(struct db *d)
{
    usec deadline = os_now() + DB_CONNECT_S * USEC_SEC;
    const char *set = job_node_setting(d->node, "connect_timeout");
    if (set && atoi(set) > 0) deadline = os_now() + atoi(set) * USEC_SEC;
    PostgresPollingStatusType st = PGRES_POLLING_WRITING;
    while (st != PGRES_POLLING_OK) {
        if (st == PGRES_POLLING_FAILED) return db_fail_conn(d, "connect");
        if (os_now() > deadline)
            return fail(d->e, TW_ECONN, "could not connect on %c: timed out", d->node->letter);
        struct pollfd p = {.fd = PQsocket(d->pg),
                           .events = st == PGRES_POLLING_READING ? POLLIN : POLLOUT};
        int n = poll(&p, 1, d->tick_ms);
        TRY(db_tick(d));
        if (n > 0) st = PQconnectPoll(d->pg);
    }
    return TW_OK;
}

/* Keep-alives that notice a dead peer in about 30 seconds, unless the job says otherwise. */
static const char *const db_defaults[][2] = {
    {"keepalives_idle", "10"}, {"keepalives_interval", "5"}, {"keepalives_count", "3"},
    {"tcp_user_timeout", "30000"}, {"fallback_application_name", "twsync"},
};

enum { DB_MAX_KEYWORDS = 96 };

static status MUST_CHECK db_start(struct db *d, bool replication)
{
    const char *keys[DB_MAX_KEYWORDS], *values[DB_MAX_KEYWORDS];
    char app[128];
    int n = 0;
    for (size_t i = 0; i < sizeof db_defaults / sizeof *db_defaults; i++, n++) {
        keys[n] = db_defaults[i][0];
        values[n] = db_defaults[i][1];
    }
    assert(d->node->nsettings < DB_MAX_KEYWORDS - 16);
    for (int i = 0; i < d->node->nsettings; i++, n++) {
        keys[n] = d->node->settings[i].keyword;
        values[n] = d->node->settings[i].value;
    }
    snprintf(app, sizeof app, "twsync:%s", d->purpose);
    keys[n] = "application_name";
    values[n++] = app;
    if (replication) {
        keys[n] = "replication";
        values[n++] = "database";
    }
    keys[n] = NULL;
    values[n] = NULL;
    d->pg = PQconnectStartParams(keys, values, 0);
    if (!d->pg) mem_die();
    if (PQstatus(d->pg) == CONNECTION_BAD) return db_fail_conn(d, "connect");
    PQsetNoticeReceiver(d->pg, db_discard_notice, NULL);
    return db_connect_wait(d);
}

/* Open a connection.  d->node, d->e and d->purpose are set by the caller; ticks may be. */
static status MUST_CHECK db_open(struct db *d, bool replication)
{
    assert(!d->pg && d->node && d->e);
    if (!d->tick_ms) d->tick_ms = DB_TICK_MS;
    status s = db_start(d, replication);
    if (s == TW_OK) s = db_exec(d, "set up the session", db_session_sql);
    if (s == TW_OK && PQsetnonblocking(d->pg, 1)) s = db_fail_conn(d, "connect");
    if (s == TW_OK) d->version = PQserverVersion(d->pg);
    if (s != TW_OK) db_close(d);
    return s;
}

/* Do commits of the session wait for the disk?  One that does takes all before it along. */
static status MUST_CHECK db_commits_wait(struct db *d, bool wait)
{
    return db_exec(d, "set up the session", wait ? "SET synchronous_commit = on"
                                                 : "SET synchronous_commit = off");
}

/* ==== 12. names ============================================================
 * What A's schemas, tables and columns are called on B, and which columns B does not have: by the
 * [schema] and [table] sections.  Whatever is noted, recorded or shared by both tasks is called as
 * on A.
 *
 * Statements for B are made of A's catalog, with every identifier quoted, and go through
 * name_sql().  It needs no grammar: a qualified name is a relation, or something else of its
 * schema; a single one is a column of the table that the statement is about, unless a word before
 * it, or a parenthesis behind it, says otherwise. */

static const char *name_schema(const struct job *job, const char *schema)
{
    for (int i = 0; i < job->nschema_names; i++)
        if (str_is(job->schema_names[i].name, schema)) return job->schema_names[i].to;
    return schema;
}

static const char *name_table(const struct job *job, const char *schema, const char *table)
{
    const struct table_rules *r = job_rules(job, schema, table);
    return r && r->to ? r->to : table;
}

/* NULL: B does not have it. */
static const char *name_column(const struct table_rules *r, const char *column)
{
    if (!rules_have(r, column)) return NULL;
    for (int i = 0; r && i < r->nrenames; i++)
        if (str_is(r->renames[i].name, column)) return r->renames[i].to;
    return column;
}

/* ASCII letters alone, as the server folds names that are not quoted. */
static const char *name_letters(struct arena *a, enum letter_case letters, const char *name)
{
    char *out = arena_str(a, name);
    for (char *c = out; *c && letters; c++)
        if (!(*c & 0x80)) *c = (char) (letters == CASE_UPPER ? toupper(*c) : tolower(*c));
    return str_is(out, name) ? name : out;
}

/* "s"."t" as it is on B. */
static char *name_quoted(const struct job *job, struct arena *a, const char *schema,
                         const char *table)
{
    return sql_quoted_table(a, name_schema(job, schema), name_table(job, schema, table));
}

/* ---- from B to A ---- */

static const char *name_schema_of_a(const struct job *job, const char *schema)
{
    for (int i = 0; i < job->nschema_names; i++)
        if (str_is(job->schema_names[i].to, schema)) return job->schema_names[i].name;
    return schema;
}

static const char *name_table_of_a(const struct job *job, const char *schema, const char *table)
{
    for (int i = 0; i < job->nrules; i++) {
        const struct table_rules *r = &job->rules[i];
        if (r->to && str_is(r->to, table) && str_is(r->name.schema, schema)) return r->name.table;
    }
    return table;
}

/* NULL: it is B's own. */
static const char *name_column_of_a(const struct table_rules *r, const char *column)
{
    for (int i = 0; r && i < r->nrenames; i++)
        if (str_is(r->renames[i].to, column)) return r->renames[i].name;
    const char *there = name_column(r, column);
    return there && str_is(there, column) ? column : NULL;
}

/* ---- statements ---- */

struct namer {
    const struct job *job;
    struct arena *arena;
    struct buf out;
    const struct table_rules *about;  /* the table that single names are columns of */
    const struct table_rules *refers; /* the same within the parentheses behind REFERENCES */
    bool refers_next;                 /* they come next */
    int refers_depth;                 /* 0: not within them */
    int depth;                        /* of parentheses */
    char word[16];       /* before this: in capitals; "::", "\"" a name, or "" */
    bool renames_column; /* RENAME COLUMN */
    bool has_rows;       /* a trigger or a rule: OLD and NEW are rows of `event` */
    const struct table_rules *event;
    bool statistics;     /* CREATE STATISTICS ... FROM */
    bool roles;          /* TO: names of roles */
    size_t start;        /* of the statement, in out */
    bool first_lacks;    /* the first of several statements does */
    bool creates;          /* CREATE TABLE */
    bool lacks;          /* names a column that B does not have */
    struct qname created;  /* the table, as on A */
    struct str_list left;  /* columns that B will not have */
};

/* The identifier at *p, which stands in quotes; *p goes behind it. */
static const char *namer_ident(struct namer *n, const char **p)
{
    struct buf b = {0};
    const char *c = *p + 1;
    for (; *c && !(c[0] == '"' && c[1] != '"'); c++) {
        if (*c == '"') c++;
        buf_char(&b, *c);
    }
    *p = *c ? c + 1 : c;
    const char *text = arena_str(n->arena, buf_cstr(&b));
    buf_free(&b);
    return text;
}

static bool namer_after(const struct namer *n, const char *const *words)
{
    for (; *words; words++)
        if (str_is(n->word, *words)) return true;
    return false;
}

/* A column, or something that is called so. */
static void namer_column(struct namer *n, const char *name, const char *next)
{
    static const char *const others[] = {"::", "\"", "CONSTRAINT", "INDEX", "TRIGGER", "RULE",
                                         "POLICY", "COLLATE", "USING", "TABLESPACE", "EXTENSION",
                                         "STATISTICS", "AS", "ROLE", "TYPE", NULL};
    const struct table_rules *r = n->refers_depth ? n->refers : n->about;
    const char *to = name;
    bool is_column = !namer_after(n, others) && *next != '(' && !n->roles;
    if (str_is(n->word, "SCHEMA") || *next == '.') {
        bool whole = !strncmp(next, ".*", 2);  /* table.*, else schema.sign of an operator */
        if (!whole) to = name_schema(n->job, name);
        else if (r && r->to && str_is(r->name.table, name)) to = r->to;
    } else if (is_column) {
        to = name_column(r, name);
        if (!to && n->creates && !list_has(&n->left, name)) {
            n->left.items = job_grow(n->arena, n->left.items, n->left.n, sizeof *n->left.items);
            n->left.items[n->left.n++] = name;
        }
        n->lacks = n->lacks || !to;
    }
    sql_ident(&n->out, to ? to : name);
}

/* "schema"."relation", perhaps "."column"; a function's name is followed by its arguments. */
static void namer_qualified(struct namer *n, const char *const *parts, int nparts,
                            const char *next)
{
    static const char *const tables[] = {"TABLE", "ONLY", "ON", "INTO", "REFERENCES", "COPY", NULL};
    static const char *const about[] = {"TABLE", "ONLY", "ON", "INTO", NULL};
    static const char *const others[] = {"STATISTICS", "INDEX", "SEQUENCE", "::", NULL};
    const struct table_rules *r = job_rules(n->job, parts[0], parts[1]);
    bool function = *next == '(' && !namer_after(n, tables);
    n->refers_next = str_is(n->word, "REFERENCES");
    if (n->refers_next) n->refers = r;
    else if (namer_after(n, about) || (n->statistics && str_is(n->word, "FROM")) ||
             (!n->about && nparts == 2 && !function && !namer_after(n, others)))
        n->about = r;
    bool of_rows = str_is(n->word, "ON") || str_is(n->word, "TO");
    if (n->has_rows && !n->event && of_rows) n->event = n->about = r;
    n->roles = false;
    if (n->creates && !n->created.table) n->created = (struct qname){parts[0], parts[1], 0, 0};
    sql_ident(&n->out, name_schema(n->job, parts[0]));
    buf_char(&n->out, '.');
    sql_ident(&n->out, function ? parts[1] : name_table(n->job, parts[0], parts[1]));
    if (nparts < 3) return;
    const char *column = name_column(r, parts[2]);
    n->lacks = n->lacks || !column;
    buf_char(&n->out, '.');
    sql_ident(&n->out, column ? column : parts[2]);
}

/* Names with dots between them. */
static void namer_name(struct namer *n, const char **p)
{
    const char *parts[3];
    int k = 0;
    parts[k++] = namer_ident(n, p);
    while (k < 3 && (*p)[0] == '.' && (*p)[1] == '"') {
        ++*p;
        parts[k++] = namer_ident(n, p);
    }
    bool of_row = n->has_rows && (!strcasecmp(parts[0], "new") || !strcasecmp(parts[0], "old")) &&
                  !str_is(n->word, "ON") && !str_is(n->word, "INTO");
    if (k > 1 && of_row) {
        const struct table_rules *about = n->about;
        sql_ident(&n->out, parts[0]);
        buf_char(&n->out, '.');
        snprintf(n->word, sizeof n->word, "NEW");
        n->about = n->event ? n->event : about;
        namer_column(n, parts[1], "");
        n->about = about;
    } else if (k == 1 && of_row) {
        sql_ident(&n->out, parts[0]);  /* OLD.* */
    } else if (k > 1) {
        namer_qualified(n, parts, k, *p);
    } else {
        namer_column(n, parts[0], *p);
    }
    snprintf(n->word, sizeof n->word, "\"");
}

/* Does the text end with this word and a parenthesis, in any case? */
static bool namer_calls(const struct buf *b, const char *function)
{
    size_t len = strlen(function);
    return b->len > len && b->data[b->len - 1] == '(' &&
           !strncasecmp(b->data + b->len - 1 - len, function, len);
}

/* A string.  Only one that is read as a name is looked into: to_regclass('...'), ''::regclass. */
static void namer_string(struct namer *n, const char **p, bool escapes)
{
    static const char *const readers[] = {"to_regclass", "to_regtype", "to_regprocedure",
                                          "to_regoperator", "to_regnamespace", NULL};
    const char *start = *p, *c = start + 1;
    for (; *c && !(c[0] == '\'' && c[1] != '\''); c++)
        if (*c == '\'' || (escapes && *c == '\\')) c++;
    *p = *c ? c + 1 : c;
    bool is_name = !strncmp(*p, "::reg", 5) || !strncmp(*p, "::\"reg", 6);
    for (int i = 0; readers[i]; i++) is_name = is_name || namer_calls(&n->out, readers[i]);
    if (!is_name || escapes) {
        buf_bytes(&n->out, start, (size_t) (*p - start));
        return;
    }
    bool schema = namer_calls(&n->out, "to_regnamespace") || !strncmp(*p, "::regnamespace", 14) ||
                  !strncmp(*p, "::\"regnamespace", 15);
    struct buf inner = {0}, outer = n->out;
    for (const char *i = start + 1; i < *p - 1; i++) {
        if (*i == '\'') i++;
        buf_char(&inner, *i);
    }
    n->out = (struct buf){0};
    snprintf(n->word, sizeof n->word, "%s", schema ? "SCHEMA" : "\"");
    for (const char *i = buf_cstr(&inner); *i;) {
        if (*i == '"') namer_name(n, &i);
        else buf_char(&n->out, *i++);
    }
    sql_literal(&outer, buf_cstr(&n->out));
    buf_free(&n->out);
    buf_free(&inner);
    n->out = outer;
}

/* $tag$ ... $tag$: a body, which is left as it is. */
static void namer_body(struct namer *n, const char **p)
{
    const char *end = *p + 1;
    while (isalnum((unsigned char) *end) || *end == '_') end++;
    bool is_tag = *end == '$' && !isdigit((unsigned char) (*p)[1]);
    const char *tag = arena_fmt(n->arena, "%.*s", (int) (end + 1 - *p), *p);
    const char *close = is_tag ? strstr(end + 1, tag) : NULL;
    const char *to = close ? close + strlen(tag) : *p + 1;
    buf_bytes(&n->out, *p, (size_t) (to - *p));
    *p = to;
}

/* A word; IF NOT EXISTS and its like say nothing about the name behind them. */
static void namer_word(struct namer *n, const char **p)
{
    static const char *const empty[] = {"IF", "NOT", "EXISTS", NULL};
    char before[sizeof n->word], now[sizeof n->word] = "";
    size_t len = 0;
    n->refers_next = false;
    memcpy(before, n->word, sizeof before);
    for (const char *c = *p; isalnum((unsigned char) *c) || *c == '_' || *c & 0x80; c++, len++)
        if (len + 1 < sizeof now) now[len] = (char) toupper((unsigned char) *c);
    buf_bytes(&n->out, *p, len);
    *p += len;
    memcpy(n->word, now, sizeof now);
    if (str_is(now, "TABLE") && str_is(before, "CREATE")) n->creates = true;
    if (str_is(now, "TRIGGER") || str_is(now, "RULE")) n->has_rows = true;
    if (str_is(now, "STATISTICS") && str_is(before, "CREATE")) n->statistics = true;
    if (str_is(now, "TO")) n->roles = !n->renames_column;
    if (str_is(now, "USING") || str_is(now, "WITH") || str_is(now, "WHEN")) n->roles = false;
    if (str_is(now, "RENAME")) n->renames_column = false;
    if (str_is(now, "COLUMN") && str_is(before, "RENAME")) n->renames_column = true;
    if (str_is(now, "ON") && str_is(before, "CLUSTER")) snprintf(n->word, sizeof n->word, "INDEX");
    if (namer_after(n, empty)) memcpy(n->word, before, sizeof before);
}

/* A statement ends.  What is about a column that B does not have goes; behind the statement that
 * creates a table its columns do. */
static void namer_end(struct namer *n)
{
    bool created = n->created.table && !n->start;
    if (!n->start) n->first_lacks = n->lacks && !created;
    else if (n->lacks) n->out.len = n->start;
    for (int i = 0; created && i < n->left.n; i++) {
        buf_fmt(&n->out, "; ALTER TABLE %s DROP COLUMN IF EXISTS ",
                name_quoted(n->job, n->arena, n->created.schema, n->created.table));
        sql_ident(&n->out, n->left.items[i]);
        buf_str(&n->out, " CASCADE");
    }
    n->lacks = n->has_rows = n->statistics = n->roles = n->renames_column = n->creates = false;
    n->event = NULL;
    n->start = n->out.len;
}

static void namer_sign(struct namer *n, const char **p)
{
    char c = *(*p)++;
    if (c == ';' && !n->depth) namer_end(n);
    buf_char(&n->out, c);
    if (isspace((unsigned char) c)) return;
    n->word[0] = '\0';
    if (c == ':' && **p == ':') {
        buf_char(&n->out, *(*p)++);
        snprintf(n->word, sizeof n->word, "::");
    }
    if (c == '(') n->depth++;
    if (c == '(' && n->refers_next) n->refers_depth = n->depth;
    n->refers_next = false;
    if (c == ')' && n->refers_depth == n->depth) n->refers_depth = 0;
    if (c == ')') n->depth--;
}

static void namer_run(struct namer *n, const char *p)
{
    while (*p) {
        if (*p == '"') {
            namer_name(n, &p);
        } else if (*p == '\'') {
            namer_string(n, &p, str_is(n->word, "E"));
            n->word[0] = '\0';
        } else if (*p == '$') {
            namer_body(n, &p);
        } else if (isalnum((unsigned char) *p) || *p == '_' || *p & 0x80) {
            namer_word(n, &p);
        } else {
            namer_sign(n, &p);
        }
    }
    namer_end(n);
}

/* What was said of A's objects, for B: statements, questions, descriptions.  `of` names the table
 * that it is about, if the text does not; a description names the column before its table.
 * *lacks: it is about a column that B does not have.  Of a table that is created such columns go
 * again. */
static const char *name_sql(const struct job *job, struct arena *a, const char *of,
                            const char *text, bool *lacks)
{
    *lacks = false;
    if (!text || !job_maps(job)) return text;
    struct namer look = {.job = job, .arena = a}, n = {.job = job, .arena = a};
    namer_run(&look, of ? of : text);
    buf_free(&look.out);
    n.about = look.about;
    namer_run(&n, text);
    *lacks = n.first_lacks;
    const char *out = arena_str(a, buf_cstr(&n.out));
    buf_free(&n.out);
    return out;
}

/* ==== 13. cat ==============================================================
 * The catalog as structs: which tables and sequences a job means, and what they are like. */

struct table {
    uint32_t oid;
    const char *schema, *name;
    char relkind;          /* 'r' or 'p' (partitioned) */
    char replident;        /* pg_class.relreplident: 'd', 'n', 'f' or 'i' */
    bool is_partition;
    bool parent_missing;   /* partition or child of a table that is not selected: stands alone */
    bool has_pk;
    bool has_key;          /* a primary key, or a unique index that identifies every row */
    bool unlogged;
    bool owned;            /* the session's role may act as the owner */
    bool has_fk_actions;   /* a foreign key of it that changes rows: cascade, set null, default */
    bool has_user_triggers;
    bool inherits;         /* parent or child in inheritance (partitions do not count) */
    bool no_whole_rows;    /* virtual columns (18): FULL would make the server refuse its updates */
    int ncolumns;
    int64_t pages;         /* of the heap: what chunks are cut from */
    int64_t bytes;         /* heap and TOAST */
    int64_t reltuples;     /* the planner's estimate; 0 if unknown */
    uint32_t filenode;     /* pg_class.relfilenode: another one where it was written anew */
    const char *why_not;   /* NULL, or why it cannot be synchronised */
};

struct table_list {
    struct table *items;
    int n;
};

struct sequence {
    uint32_t oid;
    const char *schema, *name, *type;
    int64_t last_value;
    bool is_called;
    int64_t start, increment, min, max, cache;
    bool cycle;
    char owned;            /* 'a': OWNED BY a column (serial), 'i': identity, '\0': by none */
    uint32_t owner_oid;    /* the table, 0 if none; and its names, NULL if none */
    const char *owner_schema, *owner_table, *owner_column;
    const char *comment;
};

struct sequence_list {
    struct sequence *items;
    int n;
};

/* The job as B sees it: by the names its tables have there.  tables: those of A. */
static const struct job *name_job(const struct job *job, struct arena *a,
                                  const struct table_list *tables)
{
    if (!job_maps(job)) return job;
    struct job *b = arena_new(a, struct job);
    *b = *job;
    b->rules = NULL;
    b->nrules = b->nschema_names = 0;
    b->schemas.items = arena_array(a, struct qname, job->schemas.n * (tables->n + 1));
    b->schemas.n = 0;
    for (int i = 0; i < job->schemas.n; i++) {
        const struct qname *q = &job->schemas.items[i];
        struct qname *next = &b->schemas.items[b->schemas.n];
        if (!q->schema_glob) *next++ = (struct qname){.schema = name_schema(job, q->schema)};
        for (int k = 0; k < tables->n && q->schema_glob; k++) {
            const char *schema = tables->items[k].schema;
            if (k && str_is(schema, tables->items[k - 1].schema)) continue;
            if (glob_matches(q->schema, schema))
                *next++ = (struct qname){.schema = name_schema(job, schema)};
        }
        b->schemas.n = (int) (next - b->schemas.items);
    }
    b->tables.items = arena_array(a, struct qname, tables->n + 1);
    b->tables.n = 0;
    for (int k = 0; k < tables->n; k++)
        b->tables.items[b->tables.n++] = (struct qname){
            .schema = name_schema(job, tables->items[k].schema),
            .table = name_table(job, tables->items[k].schema, tables->items[k].name)};
    b->exclude.items = arena_array(a, struct qname, job->exclude.n + 1);
    for (int i = 0; i < job->exclude.n; i++) {
        b->exclude.items[i] = job->exclude.items[i];
        if (!job->exclude.items[i].schema_glob)
            b->exclude.items[i].schema = name_schema(job, job->exclude.items[i].schema);
    }
    return b;
}

/* Never ours: the servers' schemas, our own, and those an extension brought. */
static const char cat_user_schema[] =
    "(n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'twsync',"
    " 'polar_feature_utils') AND NOT EXISTS (SELECT FROM pg_depend x WHERE x.deptype = 'e'"
    " AND x.classid = 'pg_namespace'::regclass AND x.objid = n.oid))";

/* Append "n.nspname = 's'", or the pattern as a regular expression. */
static void cat_match_part(struct buf *b, const char *column, const char *name, bool glob)
{
    struct buf re = {0};
    buf_str(&re, "^");
    for (const char *c = name; glob && *c; c++) {
        if (*c == '*' || *c == '?') buf_str(&re, *c == '*' ? ".*" : ".");
        else if (isalnum((unsigned char) *c) || *c == '_' || *c & 0x80) buf_char(&re, *c);
        else buf_fmt(&re, "\\%c", *c);
    }
    buf_str(&re, "$");
    buf_fmt(b, "%s OPERATOR(pg_catalog.%s) ", column, glob ? "~" : "=");
    sql_literal(b, glob ? re.data : name);
    buf_free(&re);
}

/* Append " OR n.nspname ..." for the whole schemas in a list. */
static void cat_match_schemas(struct buf *b, const struct qname_list *names)
{
    for (int i = 0; i < names->n; i++) {
        if (names->items[i].table) continue;
        buf_str(b, " OR ");
        cat_match_part(b, "n.nspname", names->items[i].schema, names->items[i].schema_glob);
    }
}

/* Append " OR (n.nspname, c.relname) IN ...".  A list of VALUES is hashed by the planner, so ten
 * thousand names cost no more than one. */
static void cat_match_tables(struct buf *b, const struct qname_list *names)
{
    const char *sep = " OR (n.nspname::text, c.relname::text) IN (VALUES (";
    for (int i = 0; i < names->n; i++) {
        const struct qname *q = &names->items[i];
        if (!q->table || q->schema_glob || q->table_glob) continue;
        buf_str(b, sep);
        sql_literal(b, q->schema);
        buf_str(b, ", ");
        sql_literal(b, q->table);
        sep = "), (";
    }
    if (str_is(sep, "), (")) buf_str(b, "))");
}

static void cat_match_patterns(struct buf *b, const struct qname_list *names)
{
    for (int i = 0; i < names->n; i++) {
        const struct qname *q = &names->items[i];
        if (!q->table || !(q->schema_glob || q->table_glob)) continue;
        buf_str(b, " OR ");
        cat_match_part(b, "n.nspname", q->schema, q->schema_glob);
        buf_str(b, " AND ");
        cat_match_part(b, "c.relname", q->table, q->table_glob);
    }
}

/* Is the relation c in n one of them? */
static void cat_match(struct buf *b, const struct qname_list *names)
{
    buf_str(b, "(false");
    cat_match_schemas(b, names);
    cat_match_tables(b, names);
    cat_match_patterns(b, names);
    buf_char(b, ')');
}

/* What a job without any name in [objects] means: everything. */
static void cat_match_job(struct buf *b, const struct job *job)
{
    if (job->schemas.n + job->tables.n == 0) {
        buf_str(b, "true");
    } else {
        buf_char(b, '(');
        cat_match(b, &job->schemas);
        buf_str(b, " OR ");
        cat_match(b, &job->tables);
        buf_char(b, ')');
    }
    buf_str(b, " AND NOT ");
    cat_match(b, &job->exclude);
}

/* Append "WITH RECURSIVE chosen(oid) AS (...)": the tables the job selects, supported or not, so
 * that a query can follow.  A partitioned table brings its partitions, wherever they live, unless
 * they are excluded.  Foreign tables, and views if named, are in: they must be reported. */
static void cat_selection(struct buf *b, const struct job *job)
{
    buf_str(b, "WITH RECURSIVE chosen(oid) AS (SELECT c.oid FROM pg_class c"
               " JOIN pg_namespace n ON n.oid = c.relnamespace"
               " WHERE (c.relkind IN ('r', 'p', 'f') OR c.relkind IN ('v', 'm') AND (false");
    cat_match_tables(b, &job->tables);
    buf_fmt(b, ")) AND %s AND ", cat_user_schema);
    cat_match_job(b, job);
    buf_str(b, " UNION SELECT c.oid FROM chosen p JOIN pg_inherits i ON i.inhparent = p.oid"
               " JOIN pg_class c ON c.oid = i.inhrelid AND c.relispartition"
               " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE NOT ");
    cat_match(b, &job->exclude);
    buf_str(b, ")");
}

/* Columns as read by cat_read_table().  A key may be deferrable: the rows it finds are the same.
 * indkey counts from 0 and holds INCLUDE columns after the first indnkeyatts. */
static const char cat_tables_sql[] =
    " SELECT c.oid, n.nspname, c.relname, c.relkind, c.relreplident, c.relispartition,"
    " EXISTS (SELECT FROM pg_inherits h WHERE h.inhrelid = c.oid"
    "   AND NOT EXISTS (SELECT FROM chosen p WHERE p.oid = h.inhparent)),"
    " k.pk, k.key, c.relpersistence = 'u', pg_has_role(c.relowner, 'USAGE'),"
    " EXISTS (SELECT FROM pg_constraint f WHERE f.conrelid = c.oid AND f.contype = 'f'"
    "   AND (f.confupdtype IN ('c', 'n', 'd') OR f.confdeltype IN ('c', 'n', 'd'))),"
    " EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND NOT g.tgisinternal),"
    " y.inherits, EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid"
    "   AND NOT a.attisdropped AND to_jsonb(a)->>'attgenerated' = 'v'),"
    " (SELECT count(*) FROM pg_attribute a"
    "   WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),"
    " CASE c.relkind WHEN 'r' THEN pg_relation_size(c.oid)"
    "   / current_setting('block_size')::int8 END,"
    " CASE c.relkind WHEN 'r' THEN pg_table_size(c.oid) END,"
    " greatest(c.reltuples, 0)::int8, c.relfilenode,"
    " CASE WHEN c.relkind IN ('v', 'm') THEN 'view'"
    "   WHEN c.relkind = 'f' THEN 'foreign table'"
    "   WHEN x.extname IS NOT NULL THEN 'member of extension ' || x.extname"
    "   WHEN EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid"
    "     AND g.tgname = 'ts_insert_blocker') THEN 'TimescaleDB hypertable'"
    "   WHEN c.relkind = 'r' AND c.relpersistence = 'u' THEN 'unlogged table'"
    "   WHEN c.relpersistence = 't' THEN 'temporary table'"
    "   WHEN y.across THEN 'inheritance across schemas'"
    "   WHEN NOT k.key AND k.expression THEN 'its only unique index is on an expression' END"
    " FROM chosen s JOIN pg_class c ON c.oid = s.oid"
    " JOIN pg_namespace n ON n.oid = c.relnamespace"
    " CROSS JOIN LATERAL (SELECT coalesce(bool_or(i.indisprimary), false) AS pk,"
    "   coalesce(bool_or(i.indisprimary OR i.indisvalid AND i.indpred IS NULL"
    "     AND i.indexprs IS NULL AND NOT EXISTS (SELECT FROM pg_attribute a"
    "       WHERE a.attrelid = c.oid AND NOT a.attnotnull"
    "       AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]))), false) AS key,"
    "   coalesce(bool_or(i.indexprs IS NOT NULL), false) AS expression"
    "   FROM pg_index i WHERE i.indrelid = c.oid AND i.indisunique) k"
    " CROSS JOIN LATERAL (SELECT count(*) > 0 AS inherits,"
    "   coalesce(bool_or(o.relnamespace <> c.relnamespace), false) AS across"
    "   FROM pg_inherits h"
    "   JOIN pg_class o ON o.oid IN (h.inhparent, h.inhrelid) AND o.oid <> c.oid"
    "   JOIN pg_class child ON child.oid = h.inhrelid AND NOT child.relispartition"
    "   WHERE c.oid IN (h.inhparent, h.inhrelid) AND c.relkind = 'r') y"
    " LEFT JOIN LATERAL (SELECT e.extname FROM pg_depend d"
    "   JOIN pg_extension e ON e.oid = d.refobjid WHERE d.classid = 'pg_class'::regclass"
    "   AND d.objid = c.oid AND d.deptype = 'e' LIMIT 1) x ON true"
    " ORDER BY n.nspname, c.relname";

static void cat_read_table(struct arena *a, const PGresult *r, int row, struct table *t)
{
    int i = 0;
    t->oid = (uint32_t) db_cell_int(r, row, i++);
    t->schema = arena_str(a, db_cell(r, row, i++));
    t->name = arena_str(a, db_cell(r, row, i++));
    t->relkind = *db_cell(r, row, i++);
    t->replident = *db_cell(r, row, i++);
    bool *const flags[] = {&t->is_partition, &t->parent_missing, &t->has_pk, &t->has_key,
                           &t->unlogged, &t->owned, &t->has_fk_actions, &t->has_user_triggers,
                           &t->inherits, &t->no_whole_rows};
    for (size_t f = 0; f < sizeof flags / sizeof *flags; f++)
        *flags[f] = db_cell_true(r, row, i++);
    t->ncolumns = (int) db_cell_int(r, row, i++);
    t->pages = db_cell_int(r, row, i++);
    t->bytes = db_cell_int(r, row, i++);
    t->reltuples = db_cell_int(r, row, i++);
    t->filenode = (uint32_t) db_cell_int(r, row, i++);
    const char *why = db_cell(r, row, i++);
    t->why_not = why ? arena_str(a, why) : NULL;
    assert(i == PQnfields(r));
}

static void cat_named(struct buf *b, const struct qname *q)
{
    sql_literal(b, q->schema);
    buf_str(b, "::text, ");
    if (q->table) sql_literal(b, q->table);
    else buf_str(b, "NULL");
    buf_str(b, "::text");
}

/* Append "(VALUES ('schema', 'table' or NULL), ...) v(s, t)": every name, but no pattern. */
static void cat_named_values(struct buf *b, const struct qname_list *names)
{
    for (int i = 0; i < names->n; i++) {
        if (names->items[i].schema_glob || names->items[i].table_glob) continue;
        buf_str(b, ", (");
        cat_named(b, &names->items[i]);
        buf_char(b, ')');
    }
}

/* Append a query for each pattern: its name, if nothing meets it. */
static void cat_missing_patterns(struct buf *b, const struct qname_list *names)
{
    for (int i = 0; i < names->n; i++) {
        const struct qname *q = &names->items[i];
        if (!q->schema_glob && !q->table_glob) continue;
        buf_str(b, " UNION ALL SELECT ");
        cat_named(b, q);
        buf_str(b, q->table ? " WHERE NOT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n"
                              " ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p') AND "
                            : " WHERE NOT EXISTS (SELECT FROM pg_namespace n WHERE ");
        cat_match_part(b, "n.nspname", q->schema, q->schema_glob);
        if (q->table) buf_str(b, " AND ");
        if (q->table) cat_match_part(b, "c.relname", q->table, q->table_glob);
        buf_fmt(b, " AND %s)", cat_user_schema);
    }
}

/* Names and patterns in [objects] that nothing on this server meets; table NULL for a schema. */
static status MUST_CHECK cat_missing(struct db *d, struct arena *a, const struct job *job,
                                     struct qname_list *out)
{
    struct buf b = {0};
    PGresult *r;
    *out = (struct qname_list){0};
    buf_str(&b, "SELECT v.s, v.t FROM (VALUES (NULL::text, NULL::text)");
    cat_named_values(&b, &job->schemas);
    cat_named_values(&b, &job->tables);
    buf_fmt(&b, ") v(s, t) WHERE v.s IS NOT NULL AND NOT EXISTS (SELECT FROM pg_namespace n WHERE"
                " n.nspname = v.s"
                " AND %s AND (v.t IS NULL OR EXISTS (SELECT FROM pg_class c"
                " WHERE c.relnamespace = n.oid AND c.relname = v.t"
                " AND c.relkind IN ('r', 'p', 'f', 'v', 'm', 'S'))))",
            cat_user_schema);
    cat_missing_patterns(&b, &job->schemas);
    cat_missing_patterns(&b, &job->tables);
    buf_str(&b, " ORDER BY 1, 2");
    status s = db_query(d, a, "look for the named objects", b.data, 0, NULL, &r);
    buf_free(&b);
    TRY(s);
    out->items = arena_array(a, struct qname, PQntuples(r));
    for (int i = 0; i < PQntuples(r); i++)
        out->items[out->n++] = (struct qname){.schema = db_cell(r, i, 0),
                                              .table = db_cell(r, i, 1)};
    return TW_OK;
}

/* The job's tables on this server, by schema and name; those we cannot synchronise apart. */
static status MUST_CHECK cat_tables(struct db *d, struct arena *a, const struct job *job,
                                    struct table_list *supported, struct table_list *unsupported,
                                    struct qname_list *missing)
{
    struct buf b = {0};
    PGresult *r;
    cat_selection(&b, job);
    buf_str(&b, cat_tables_sql);
    status s = db_query(d, a, "read the list of tables", b.data, 0, NULL, &r);
    buf_free(&b);
    TRY(s);
    int n = PQntuples(r);
    *supported = (struct table_list){.items = arena_array(a, struct table, n)};
    *unsupported = (struct table_list){.items = arena_array(a, struct table, n)};
    for (int i = 0; i < n; i++) {
        struct table t = {0};
        cat_read_table(a, r, i, &t);
        struct table_list *to = t.why_not ? unsupported : supported;
        to->items[to->n++] = t;
    }
    return cat_missing(d, a, job, missing);
}

/* "{1,2,3}": the tables as an oid[] parameter. */
static const char *cat_oid_array(struct arena *a, const struct table_list *tables)
{
    struct buf b = {0};
    buf_char(&b, '{');
    for (int i = 0; i < tables->n; i++)
        buf_fmt(&b, "%s%" PRIu32, i ? "," : "", tables->items[i].oid);
    buf_char(&b, '}');
    const char *text = arena_str(a, b.data);
    buf_free(&b);
    return text;
}

/* ---- capitalization ---- */

/* A column of a table that has no name of its own yet. */
static void name_learn_column(const struct job *job, struct arena *a, struct table_rules *r,
                              const char *column)
{
    const char *there = name_letters(a, job->letters, column);
    if (job->letters == CASE_SERVICE || there == column || !rules_have(r, column)) return;
    for (int i = 0; i < r->nrenames; i++)
        if (str_is(r->renames[i].name, column)) return;
    struct renamed *all = arena_array(a, struct renamed, r->nrenames + 1);
    if (r->nrenames) memcpy(all, r->renames, sizeof *all * (size_t) r->nrenames);
    all[r->nrenames++] = (struct renamed){column, there};
    r->renames = all;
}

/* The rules of a table, with what the job's capitalization makes of its name. */
static struct table_rules *name_learn_table(const struct job *job, struct job *j, struct arena *a,
                                            const char *schema, const char *table)
{
    const struct table_rules *own = job_rules(job, schema, table);
    for (int i = 0; i < j->nrules; i++)
        if (str_is(j->rules[i].name.table, table) && str_is(j->rules[i].name.schema, schema))
            return &j->rules[i];
    struct table_rules *r = &j->rules[j->nrules++];
    *r = own ? *own : (struct table_rules){.made = true};
    r->name = (struct qname){.schema = schema, .table = table};
    if (!r->to) r->to = name_letters(a, job->letters, table);
    return r;
}

static void name_learn_schema(struct job *job, struct arena *a, const char *schema)
{
    for (int i = 0; i < job->nschema_names; i++)
        if (str_is(job->schema_names[i].name, schema)) return;
    struct renamed *all = arena_array(a, struct renamed, job->nschema_names + 1);
    if (job->nschema_names)
        memcpy(all, job->schema_names, sizeof *all * (size_t) job->nschema_names);
    all[job->nschema_names++] = (struct renamed){schema, name_letters(a, job->letters, schema)};
    job->schema_names = all;
}

/* The job with a section for every table of A, where capitalization changes names.  more: other
 * names, as rows of schema, table, and column or NULL; or NULL. */
static status MUST_CHECK name_learn(const struct job *job, struct db *on_a, struct arena *a,
                                    const PGresult *more, const struct job **out)
{
    struct table_list tables, unsupported;
    struct qname_list missing;
    PGresult *columns;
    *out = job;
    if (!job->letters) return TW_OK;
    TRY(cat_tables(on_a, a, job, &tables, &unsupported, &missing));
    const char *oids = cat_oid_array(a, &tables);
    TRY(db_query(on_a, a, "read the columns", "SELECT attrelid, attname FROM unnest($1::oid[])"
                 " WITH ORDINALITY u(oid, n) JOIN pg_attribute ON attrelid = u.oid AND attnum > 0"
                 " AND NOT attisdropped ORDER BY u.n, attnum", 1, &oids, &columns));
    struct job *j = arena_new(a, struct job);
    *j = *job;
    int extra = more ? PQntuples(more) : 0, at = 0;
    j->rules = arena_array(a, struct table_rules, tables.n + extra + job->nrules + 1);
    j->nrules = 0;
    for (int i = 0; i < tables.n; i++) {
        const struct table *t = &tables.items[i];
        struct table_rules *r = name_learn_table(job, j, a, t->schema, t->name);
        name_learn_schema(j, a, t->schema);
        for (; at < PQntuples(columns) && (uint32_t) db_cell_int(columns, at, 0) == t->oid; at++)
            name_learn_column(job, a, r, PQgetvalue(columns, at, 1));
    }
    TRY(db_query(on_a, a, "read the schemas", arena_fmt(a, "SELECT n.nspname FROM pg_namespace n"
                 " WHERE %s", cat_user_schema), 0, NULL, &columns));
    for (int i = 0; i < PQntuples(columns); i++) {
        const char *schema = PQgetvalue(columns, i, 0);
        bool in = job->schemas.n + job->tables.n == 0;
        for (int k = 0; k < job->schemas.n; k++)
            in = in || qname_in(&job->schemas.items[k], schema);
        if (in) name_learn_schema(j, a, schema);
    }
    for (int i = 0; i < extra; i++) {
        const char *parts[3];
        for (int k = 0; k < 3; k++)
            parts[k] = PQgetisnull(more, i, k) ? NULL : arena_str(a, PQgetvalue(more, i, k));
        struct table_rules *r = name_learn_table(job, j, a, parts[0], parts[1]);
        name_learn_schema(j, a, parts[0]);
        if (parts[2]) name_learn_column(job, a, r, parts[2]);
    }
    if (job->nrules)
        memcpy(j->rules + j->nrules, job->rules, sizeof *j->rules * (size_t) job->nrules);
    j->nrules += job->nrules;
    *out = j;
    return TW_OK;
}

static const struct table *cat_find(const struct table_list *tables, uint32_t oid)
{
    for (int i = 0; i < tables->n; i++)
        if (tables->items[i].oid == oid) return &tables->items[i];
    return NULL;
}

/* Follows cat_selection(): sequences that belong to a column of a chosen table, that a default of
 * one uses, or that the job selects itself and no other table owns. */
static void cat_sequences_sql(struct buf *b, const struct job *job)
{
    cat_selection(b, job);
    buf_str(b, ", used(oid) AS (SELECT d.objid FROM chosen t JOIN pg_class o ON o.oid = t.oid"
               "   AND o.relkind IN ('r', 'p') AND o.relpersistence = 'p'"
               "   JOIN pg_depend d ON d.refobjid = t.oid"
               "   WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass"
               "   AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')"
               " UNION SELECT d.refobjid FROM chosen t JOIN pg_attrdef f ON f.adrelid = t.oid"
               "   JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid"
               "   WHERE d.refclassid = 'pg_class'::regclass"
               " UNION SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
               "   WHERE c.relkind = 'S' AND ");
    cat_match_job(b, job);
    buf_fmt(b, " AND %s AND NOT EXISTS (SELECT FROM pg_depend d"
               "   WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid"
               "   AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')))",
            cat_user_schema);
    buf_str(b, " SELECT c.oid, n.nspname, c.relname, format_type(s.seqtypid, NULL), s.seqstart,"
               " s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle, o.deptype, o.oid,"
               " o.nspname, o.relname, o.attname, obj_description(c.oid, 'pg_class')"
               " FROM used u JOIN pg_class c ON c.oid = u.oid AND c.relpersistence = 'p'"
               " JOIN pg_namespace n ON n.oid = c.relnamespace"
               " JOIN pg_sequence s ON s.seqrelid = c.oid"
               " LEFT JOIN LATERAL (SELECT d.deptype, t.oid, tn.nspname, t.relname, a.attname"
               "   FROM pg_depend d JOIN pg_class t ON t.oid = d.refobjid"
               "   JOIN pg_namespace tn ON tn.oid = t.relnamespace"
               "   JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid"
               "   WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid"
               "   AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')) o ON true"
               " WHERE NOT EXISTS (SELECT FROM pg_depend e WHERE e.deptype = 'e'"
               "   AND e.classid = 'pg_class'::regclass AND e.objid = c.oid)"
               " ORDER BY n.nspname, c.relname");
}

static void cat_read_sequence(const PGresult *r, int row, struct sequence *q)
{
    int i = 0;
    q->oid = (uint32_t) db_cell_int(r, row, i++);
    q->schema = db_cell(r, row, i++);
    q->name = db_cell(r, row, i++);
    q->type = db_cell(r, row, i++);
    int64_t *const numbers[] = {&q->start, &q->increment, &q->min, &q->max, &q->cache};
    for (size_t f = 0; f < sizeof numbers / sizeof *numbers; f++)
        *numbers[f] = db_cell_int(r, row, i++);
    q->cycle = db_cell_true(r, row, i++);
    const char *owned = db_cell(r, row, i++);
    q->owned = owned ? *owned : '\0';
    q->owner_oid = (uint32_t) db_cell_int(r, row, i++);
    q->owner_schema = db_cell(r, row, i++);
    q->owner_table = db_cell(r, row, i++);
    q->owner_column = db_cell(r, row, i++);
    q->comment = db_cell(r, row, i++);
    assert(i == PQnfields(r));
}

enum { CAT_SEQUENCE_BATCH = 200 };

/* pg_sequences hides the value of a sequence that was set but not called, so each sequence is read
 * itself, many in one query. */
static status MUST_CHECK cat_sequence_values(struct db *d, struct arena *a,
                                             struct sequence_list *list, int first)
{
    struct buf b = {0};
    PGresult *r;
    int end = first + CAT_SEQUENCE_BATCH < list->n ? first + CAT_SEQUENCE_BATCH : list->n;
    for (int i = first; i < end; i++) {
        buf_fmt(&b, "%sSELECT %d, last_value, is_called FROM ", i > first ? " UNION ALL " : "", i);
        sql_table(&b, list->items[i].schema, list->items[i].name);
    }
    status s = db_query(d, a, "read the sequences", b.data, 0, NULL, &r);
    buf_free(&b);
    TRY(s);
    for (int i = 0; i < PQntuples(r); i++) {
        struct sequence *q = &list->items[db_cell_int(r, i, 0)];
        q->last_value = db_cell_int(r, i, 1);
        q->is_called = db_cell_true(r, i, 2);
    }
    return TW_OK;
}

/* The job's sequences with their values as of now, by schema and name. */
static status MUST_CHECK cat_sequences(struct db *d, struct arena *a, const struct job *job,
                                       struct sequence_list *out)
{
    struct buf b = {0};
    PGresult *r;
    cat_sequences_sql(&b, job);
    status s = db_query(d, a, "read the list of sequences", b.data, 0, NULL, &r);
    buf_free(&b);
    TRY(s);
    *out = (struct sequence_list){.items = arena_array(a, struct sequence, PQntuples(r)),
                                  .n = PQntuples(r)};
    for (int i = 0; i < out->n; i++) cat_read_sequence(r, i, &out->items[i]);
    for (int i = 0; i < out->n; i += CAT_SEQUENCE_BATCH)
        TRY(cat_sequence_values(d, a, out, i));
    return TW_OK;
}
/* ==== 14. slot =============================================================
 * What twsync creates on the servers besides user tables: schema twsync, publications, slots,
 * origins, replica identities; to make, to inspect, to drop. */

/* One database as a replication source: who it is (IDENTIFY_SYSTEM). */
struct source_id {
    char system[24];  /* system identifier, decimal */
    int timeline;
    lsn_t flush_lsn;
    char database[64];
};

struct slot_info {
    bool exists, active;
    char plugin[64], database[64], wal_status[32], invalid[64];
    lsn_t confirmed_lsn, restart_lsn;
    int active_pid;
};

/* The object name that slot, publication and origin of a task share. */
static const char *slot_name(struct arena *a, const struct job *job, enum tw_direction dir)
{
    return arena_fmt(a, "twsync_%s_%s", job->name, direction_names[dir]);
}

static const char *task_name(struct arena *a, const struct job *job, enum tw_direction dir)
{
    return arena_fmt(a, "%s/%s", job->name, direction_names[dir]);
}

/* session: one row per task, on its source; see task_new_epoch().
 * progress: one row per task, on its target, changed in the same transaction as the rows; it is
 * also the loop marker.  copied: the chunk ledger of the full copy, on the target.
 * conflict: what was decided, on the target, in the deciding transaction.
 * moved: rows that got another key, for a day, on the target, in the transaction that did it. */
static const char slot_node_sql[] =
    "BEGIN;"
    "SELECT pg_advisory_xact_lock(hashtext('twsync setup'));"
    "CREATE SCHEMA IF NOT EXISTS twsync;"
    "REVOKE ALL ON SCHEMA twsync FROM PUBLIC;"
    "CREATE TABLE IF NOT EXISTS twsync.progress ("
    " task text PRIMARY KEY, job text NOT NULL, phase text NOT NULL,"
    " source_system text, source_timeline int, source_database text, target_system text,"
    " slot_name text, slot_point pg_lsn, applied_lsn pg_lsn, applied_at timestamptz,"
    " reverse_made boolean NOT NULL DEFAULT false,"
    " epoch bigint NOT NULL DEFAULT 0, updated_at timestamptz NOT NULL DEFAULT now());"
    "CREATE TABLE IF NOT EXISTS twsync.session (task text PRIMARY KEY, epoch bigint NOT NULL,"
    " started_at timestamptz NOT NULL DEFAULT now());"
    "CREATE TABLE IF NOT EXISTS twsync.copied ("
    " task text, schema_name text, table_name text, chunk int, chunks int NOT NULL,"
    " snapshot_lsn pg_lsn NOT NULL, rows bigint NOT NULL, bytes bigint NOT NULL,"
    " copied_at timestamptz NOT NULL DEFAULT now(),"
    " PRIMARY KEY (task, schema_name, table_name, chunk));"
    "CREATE TABLE IF NOT EXISTS twsync.conflict ("
    " id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
    " recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(), task text NOT NULL,"
    " kind text NOT NULL, policy text NOT NULL, outcome text NOT NULL,"
    " schema_name text NOT NULL, table_name text NOT NULL,"
    " key jsonb, existing jsonb, old jsonb, incoming jsonb,"
    " commit_lsn pg_lsn NOT NULL, change bigint NOT NULL, committed_at timestamptz,"
    " wanted text, settled text, settled_at timestamptz,"
    " UNIQUE (task, commit_lsn, change, kind));"
    "ALTER TABLE twsync.copied ADD COLUMN IF NOT EXISTS filenode oid,"
    " ADD COLUMN IF NOT EXISTS from_page bigint, ADD COLUMN IF NOT EXISTS to_page bigint;"
    "CREATE INDEX IF NOT EXISTS conflict_unsettled ON twsync.conflict (id) WHERE settled IS NULL;"
    "CREATE TABLE IF NOT EXISTS twsync.moved (task text NOT NULL, schema_name text NOT NULL,"
    " table_name text NOT NULL, key jsonb NOT NULL, new_key jsonb NOT NULL,"
    " moved_at timestamptz NOT NULL DEFAULT now());"
    "CREATE INDEX IF NOT EXISTS moved_key ON twsync.moved (schema_name, table_name, key);"
    "REVOKE ALL ON twsync.progress, twsync.session, twsync.copied, twsync.conflict, twsync.moved"
    " FROM PUBLIC;"
    "COMMIT";

static status MUST_CHECK slot_setup_node(struct db *d)
{
    return db_exec(d, "create schema twsync", slot_node_sql);
}

static status MUST_CHECK slot_identify(struct db *repl, struct source_id *id)
{
    struct arena a = {0};
    PGresult *r;
    status s = db_query(repl, &a, "identify the system", "IDENTIFY_SYSTEM", 0, NULL, &r);
    if (s == TW_OK && (PQntuples(r) != 1 || PQnfields(r) < 4 || PQgetisnull(r, 0, 3) ||
                       !lsn_parse(PQgetvalue(r, 0, 2), &id->flush_lsn)))
        s = fail(repl->e, TW_EPROTO, "IDENTIFY_SYSTEM answered something else on %c",
                 repl->node->letter);
    if (s == TW_OK) {
        str_copy(id->system, sizeof id->system, PQgetvalue(r, 0, 0));
        id->timeline = atoi(PQgetvalue(r, 0, 1));
        str_copy(id->database, sizeof id->database, PQgetvalue(r, 0, 3));
    }
    arena_free(&a);
    return s;
}

/* Columns that appeared later are read through to_jsonb, so one query serves every version. */
static status MUST_CHECK slot_inspect(struct db *d, const char *name, struct slot_info *out)
{
    static const char sql[] =
        "SELECT s.plugin, s.database, s.active_pid, s.confirmed_flush_lsn, s.restart_lsn,"
        " to_jsonb(s)->>'wal_status', coalesce(to_jsonb(s)->>'invalidation_reason',"
        " CASE WHEN to_jsonb(s)->>'conflicting' = 'true' THEN 'conflicting' END)"
        " FROM pg_replication_slots s WHERE s.slot_name = $1";
    struct arena a = {0};
    PGresult *r;
    *out = (struct slot_info){0};
    status s = db_query(d, &a, "read replication slots", sql, 1, (const char *[]){name}, &r);
    if (s == TW_OK && PQntuples(r)) {
        out->exists = true;
        str_copy(out->plugin, sizeof out->plugin, PQgetvalue(r, 0, 0));
        str_copy(out->database, sizeof out->database, PQgetvalue(r, 0, 1));
        out->active_pid = atoi(PQgetvalue(r, 0, 2));
        out->active = !PQgetisnull(r, 0, 2);
        lsn_parse(db_cell(r, 0, 3), &out->confirmed_lsn);
        lsn_parse(db_cell(r, 0, 4), &out->restart_lsn);
        str_copy(out->wal_status, sizeof out->wal_status, PQgetvalue(r, 0, 5));
        str_copy(out->invalid, sizeof out->invalid, PQgetvalue(r, 0, 6));
    }
    arena_free(&a);
    return s;
}

/* Create a logical slot and export its snapshot, which lives until the next command on `repl`.
 * Failover slots (17+) are carried to standbys; a temporary one serves only its snapshot. */
static status MUST_CHECK slot_create(struct db *repl, struct arena *a, const char *name,
                                     bool temporary, lsn_t *point, const char **snapshot)
{
    const char *sql =
        repl->version >= 170000 && !temporary
            ? arena_fmt(a, "CREATE_REPLICATION_SLOT \"%s\" LOGICAL pgoutput"
                           " (SNAPSHOT 'export', FAILOVER true)", name)
            : arena_fmt(a, "CREATE_REPLICATION_SLOT \"%s\" %s LOGICAL pgoutput EXPORT_SNAPSHOT",
                        name, temporary ? "TEMPORARY" : "");
    PGresult *r;
    TRY(db_query(repl, a, "create the replication slot", sql, 0, NULL, &r));
    if (PQntuples(r) != 1 || PQnfields(r) < 3 || !lsn_parse(PQgetvalue(r, 0, 1), point))
        return fail(repl->e, TW_EPROTO, "CREATE_REPLICATION_SLOT answered something else on %c",
                    repl->node->letter);
    *snapshot = PQgetvalue(r, 0, 2);
    return TW_OK;
}

static status MUST_CHECK slot_drop(struct db *d, const char *name)
{
    return db_exec_params(d, "drop the replication slot",
                          "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
                          " WHERE slot_name = $1", 1, (const char *[]){name});
}

/* Who keeps a slot creation waiting: the oldest writing transactions and prepared ones. */
static void slot_log_blockers(struct db *d)
{
    static const char sql[] =
        "SELECT string_agg(x, ', ') FROM (SELECT 'pid ' || pid || ' (' || coalesce(usename, '?') ||"
        " ', open since ' || xact_start::text || ')' AS x FROM pg_stat_activity"
        " WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()"
        " UNION ALL SELECT 'prepared transaction ' || gid FROM pg_prepared_xacts LIMIT 5) t";
    struct arena a = {0};
    const char *who = NULL;
    if (db_value(d, &a, "look for open transactions", sql, 0, NULL, &who) == TW_OK && who)
        log_info("waiting for transactions on %c to end: %s", d->node->letter, who);
    arena_free(&a);
}

/* ---- publications and replica identity ---- */

static void slot_append_tables(struct buf *b, const struct table_list *tables, int version)
{
    const char *sep = "";
    for (int i = 0; i < tables->n; i++) {
        const struct table *t = &tables->items[i];
        if (t->relkind == 'p' && version < 130000) continue;  /* roots can be published since 13 */
        buf_str(b, sep);
        buf_str(b, "ONLY ");
        sql_table(b, t->schema, t->name);
        sep = ", ";
    }
}

/* The publication of a task: its tables, and twsync.progress of this node, because the opposite
 * task's marker must be in our stream to be recognised (design 5). */
static status MUST_CHECK slot_publish(struct db *d, const char *name,
                                      const struct table_list *tables)
{
    struct arena a = {0};
    struct buf b = {0};
    const char *found;
    status s = db_value(d, &a, "read publications",
                        "SELECT 1 FROM pg_publication WHERE pubname = $1", 1,
                        (const char *[]){name}, &found);
    if (s == TW_OK && !found) {
        buf_str(&b, "CREATE PUBLICATION ");
        sql_ident(&b, name);
        buf_str(&b, " FOR TABLE ");
        slot_append_tables(&b, tables, d->version);
        buf_fmt(&b, ", ONLY twsync.progress, ONLY twsync.copied"
                    " WITH (publish = 'insert, update, delete, truncate'%s)",
                /* else 18 refuses updates of tables with a whole-row identity and such columns */
                d->version >= 180000 ? ", publish_generated_columns = stored" : "");
        s = db_exec(d, "create the publication", b.data);
    }
    buf_free(&b);
    arena_free(&a);
    return s;
}

enum { IDENTITY_TRIES = 60 };

/* ALTER TABLE takes a lock that stops writers: never wait for it longer than two seconds, rather
 * come back (requirement 59). */
static status MUST_CHECK slot_identity_one(struct db *d, const struct table *t)
{
    struct arena a = {0};
    const char *name = sql_quoted_table(&a, t->schema, t->name);
    const char *sql = arena_fmt(&a, "BEGIN; SET LOCAL lock_timeout = '2s';"
                                    "ALTER TABLE ONLY %s REPLICA IDENTITY FULL; COMMIT", name);
    status s = TW_OK;
    for (int i = 0; i < IDENTITY_TRIES; i++) {
        error_clear(d->e);
        s = db_exec(d, arena_fmt(&a, "set the replica identity of %s", name), sql);
        if (s == TW_OK || s != TW_ETXN) break;
        s = db_exec(d, "roll back", "ROLLBACK");
        log_info("%s is locked on %c: trying again", name, d->node->letter);
        os_sleep_ms(500);
        if (stop_flag) s = fail(d->e, TW_ESTOP, "stop requested");
        if (s != TW_OK) break;
        s = fail(d->e, TW_EBUSY, "could not lock %s on %c", name, d->node->letter);
    }
    arena_free(&a);
    return s;
}

static status MUST_CHECK slot_identity_full(struct db *d, const struct table_list *tables)
{
    /* Each by itself, for they lock; to disk with what is committed next. */
    TRY(db_commits_wait(d, false));
    for (int i = 0; i < tables->n; i++)
        if (tables->items[i].replident != 'f' && !tables->items[i].no_whole_rows)
            TRY(slot_identity_one(d, &tables->items[i]));
    return db_commits_wait(d, true);
}

/* ---- origins ---- */

static status MUST_CHECK slot_origin_setup(struct db *d, const char *name)
{
    const char *values[] = {name};
    TRY(db_exec_params(d, "create the replication origin",
                       "SELECT pg_replication_origin_create($1) WHERE NOT EXISTS"
                       " (SELECT FROM pg_replication_origin WHERE roname = $1)", 1, values));
    return db_exec_params(d, "use the replication origin",
                          "SELECT pg_replication_origin_session_setup($1)", 1, values);
}

/* ==== 15. rd, msg ==========================================================
 * Bytes of one pgoutput message to struct msg (documentation, "Logical Replication Message
 * Formats", protocol version 1).  The reader never trusts a length: past the end it sets `bad`
 * and gives zeros, and msg_decode() looks at `bad` once. */

struct rd {
    const unsigned char *p, *end;
    bool bad;
};

static const unsigned char *rd_bytes(struct rd *r, size_t n)
{
    if (r->bad || (size_t) (r->end - r->p) < n) {
        r->bad = true;
        return NULL;
    }
    const unsigned char *at = r->p;
    r->p += n;
    return at;
}

static uint64_t rd_uint(struct rd *r, size_t n)
{
    const unsigned char *p = rd_bytes(r, n);
    uint64_t v = 0;
    for (size_t i = 0; p && i < n; i++) v = v << 8 | p[i];
    return v;
}

/* A timestamp; whatever comes, without overflow. */
static usec rd_time(struct rd *r)
{
    return (usec) (rd_uint(r, 8) + (uint64_t) TS_PG_EPOCH);
}

static const char *rd_str(struct rd *r)
{
    const unsigned char *nul = r->bad ? NULL : memchr(r->p, 0, (size_t) (r->end - r->p));
    if (!nul) {
        r->bad = true;
        return "";
    }
    const char *s = (const char *) r->p;
    r->p = nul + 1;
    return s;
}

/* A column value.  'u' is an unchanged TOASTed value: no bytes, and not NULL. */
struct value {
    const char *data;  /* NUL-terminated, borrowed from the message */
    uint32_t len;
    char kind;  /* 'n' null, 'u' unchanged, 't' text, 'b' binary */
};

struct tuple {
    int n;
    struct value *values;
};

/* What an Insert, Update or Delete does to a row. */
struct dml {
    char kind;      /* 'I' 'U' 'D' */
    char old_kind;  /* 'O' whole old row, 'K' its key only, 0 none */
    struct tuple old, new;
};

struct msg_column {
    bool is_key;
    const char *name;
    uint32_t type;
    bool gone;  /* not in messages: the target has dropped it already */
};

struct msg {
    char kind;  /* 'B' 'C' 'O' 'R' 'Y' 'I' 'U' 'D' 'T' 'M' */
    /* B: final_lsn is where the commit record starts; C: end_lsn is the position that counts */
    lsn_t final_lsn, end_lsn;
    usec commit_us;
    uint32_t xid;
    /* R, I, U, D */
    uint32_t relid;
    const char *schema, *name;  /* R; O: name of the origin */
    char replident;
    int ncolumns;
    struct msg_column *columns;
    struct dml row;
    /* T */
    int nrelids;
    uint32_t *relids;
    uint8_t options;  /* 1 CASCADE, 2 RESTART IDENTITY */
};

/* Values are NUL-terminated in place: the byte after one is the next one's kind, or the message's
 * own last NUL, and has been read by then. */
static void msg_tuple(struct rd *r, struct arena *a, struct tuple *t)
{
    t->n = (int) rd_uint(r, 2);
    if (r->bad || (size_t) (r->end - r->p) < (size_t) t->n) {
        r->bad = true;
        return;
    }
    t->values = arena_array(a, struct value, t->n);
    char *pending = NULL;
    for (int i = 0; i < t->n && !r->bad; i++) {
        struct value *v = &t->values[i];
        v->kind = (char) rd_uint(r, 1);
        if (pending) *pending = '\0';
        pending = NULL;
        if (v->kind == 'n' || v->kind == 'u') continue;
        if (v->kind != 't' && v->kind != 'b') r->bad = true;
        v->len = (uint32_t) rd_uint(r, 4);
        v->data = (const char *) rd_bytes(r, v->len);
        if (v->data) pending = (char *) (uintptr_t) v->data + v->len;
    }
    /* The last value's terminator overwrites whatever follows, which the caller reads first. */
    if (pending && r->p == r->end) *pending = '\0';
}

/* An old tuple is followed by the kind byte 'N': read it before its place is overwritten. */
static char msg_next_kind(struct rd *r, const struct tuple *before)
{
    char kind = (char) rd_uint(r, 1);
    if (r->bad || !before->n) return kind;
    const struct value *last = &before->values[before->n - 1];
    if (last->data) ((char *) (uintptr_t) last->data)[last->len] = '\0';
    return kind;
}

static void msg_row(struct rd *r, struct arena *a, struct msg *m)
{
    m->relid = (uint32_t) rd_uint(r, 4);
    m->row.kind = m->kind;
    char kind = (char) rd_uint(r, 1);
    if (kind == 'O' || kind == 'K') {
        m->row.old_kind = kind;
        msg_tuple(r, a, &m->row.old);
        kind = m->kind == 'U' ? msg_next_kind(r, &m->row.old) : 0;
    }
    if (m->kind == 'D') {
        if (!m->row.old_kind) r->bad = true;
        return;
    }
    if (kind != 'N') r->bad = true;
    msg_tuple(r, a, &m->row.new);
}

static void msg_relation(struct rd *r, struct arena *a, struct msg *m)
{
    m->relid = (uint32_t) rd_uint(r, 4);
    m->schema = rd_str(r);
    if (!m->schema[0]) m->schema = "pg_catalog";
    m->name = rd_str(r);
    m->replident = (char) rd_uint(r, 1);
    m->ncolumns = (int) rd_uint(r, 2);
    if ((size_t) (r->end - r->p) / 10 < (size_t) m->ncolumns) r->bad = true;  /* 10 bytes each */
    if (r->bad) return;
    m->columns = arena_array(a, struct msg_column, m->ncolumns);
    for (int i = 0; i < m->ncolumns && !r->bad; i++) {
        m->columns[i].is_key = rd_uint(r, 1) & 1;
        m->columns[i].name = rd_str(r);
        m->columns[i].type = (uint32_t) rd_uint(r, 4);
        rd_uint(r, 4);  /* type modifier */
    }
}

static void msg_truncate(struct rd *r, struct arena *a, struct msg *m)
{
    uint32_t n = (uint32_t) rd_uint(r, 4);
    m->options = (uint8_t) rd_uint(r, 1);
    if (r->bad || (size_t) (r->end - r->p) / 4 < n) {
        r->bad = true;
        return;
    }
    m->nrelids = (int) n;
    m->relids = arena_array(a, uint32_t, n);
    for (uint32_t i = 0; i < n; i++) m->relids[i] = (uint32_t) rd_uint(r, 4);
}

/* Decode one message; `data` must be writable, have a NUL at data[len], and outlive *m. */
static status MUST_CHECK msg_decode(char *data, size_t len, struct arena *a, struct msg *m,
                                    struct tw_error *e)
{
    struct rd r = {.p = (unsigned char *) data, .end = (unsigned char *) data + len};
    *m = (struct msg){.kind = (char) rd_uint(&r, 1)};
    switch (m->kind) {
    case 'B':
        m->final_lsn = rd_uint(&r, 8);
        m->commit_us = rd_time(&r);
        m->xid = (uint32_t) rd_uint(&r, 4);
        break;
    case 'C':
        rd_uint(&r, 1);  /* flags, unused */
        m->final_lsn = rd_uint(&r, 8);
        m->end_lsn = rd_uint(&r, 8);
        m->commit_us = rd_time(&r);
        break;
    case 'O':
        m->final_lsn = rd_uint(&r, 8);
        m->name = rd_str(&r);
        break;
    case 'R': msg_relation(&r, a, m); break;
    case 'I':
    case 'U':
    case 'D': msg_row(&r, a, m); break;
    case 'T': msg_truncate(&r, a, m); break;
    case 'Y':
    case 'M': return TW_OK;  /* type names and logical messages: nothing we act on (design 5) */
    default: r.bad = true;
    }
    if (r.bad || r.p != r.end)
        return fail(e, TW_EPROTO, "malformed pgoutput message of kind \"%c\" and %zu bytes",
                    isprint((unsigned char) m->kind) ? m->kind : '?', len);
    return TW_OK;
}

/* ==== 16. repl =============================================================
 * The replication connection: START_REPLICATION, keepalives, feedback.
 *
 * Feedback carries what may be forgotten as the flush position, and only when it changes; at all
 * other times flush is 0 ("no information").  Otherwise a source that shuts down would wait for
 * flush to reach its end of WAL (walsender.c, WalSndDone), while we hold it back on purpose. */

/* A frame that came while the target was at work. */
struct repl_frame {
    struct repl_frame *next;
    char *data;  /* libpq's: PQfreemem */
    int len;
};

struct repl {
    struct db db;
    bool started;
    struct repl_frame *first, **last;  /* frames read ahead, oldest first */
    size_t ahead_bytes;
    lsn_t held_lsn;      /* repl_pull: end of the last WAL that is in our hands */
    lsn_t received_lsn;  /* repl_read: end of the last WAL the source has told us of */
    lsn_t source_lsn;    /* newest position of the source it has told us of */
    lsn_t keepalive_lsn; /* of the last keepalive: all commits before it have been sent */
    lsn_t confirmed_lsn; /* repl_confirm only: what the source may forget; never goes back */
    usec source_us;      /* the source's clock when it sent its last message */
    usec heard_us;       /* our clock when anything last came */
    usec feedback_us;    /* when the next feedback is due */
    usec interval_us;
    bool reply_now;
    int low_water;
    usec silence_us;     /* a source that says nothing for so long is taken for gone */
};

enum { REPL_SILENCE_S = 30 };

static void repl_put(unsigned char *p, uint64_t v)
{
    for (int i = 7; i >= 0; i--, v >>= 8) p[i] = (unsigned char) v;
}

static status MUST_CHECK repl_send_status(struct repl *r, lsn_t flush)
{
    unsigned char m[34] = {'r'};
    repl_put(m + 1, r->held_lsn > r->received_lsn ? r->held_lsn : r->received_lsn);
    repl_put(m + 9, flush);
    repl_put(m + 17, 0);  /* apply position: only synchronous replication reads it */
    repl_put(m + 25, (uint64_t) (os_wall() - TS_PG_EPOCH));
    m[33] = os_now() - r->heard_us > r->interval_us;  /* please answer: are you there? */
    int rc = PQputCopyData(r->db.pg, (char *) m, sizeof m);
    if (rc < 0 || PQflush(r->db.pg) < 0) return db_fail_conn(&r->db, "send feedback");
    if (rc > 0) {
        r->feedback_us = os_now() + r->interval_us;
        r->reply_now = false;
    }
    return TW_OK;
}

/* Keep the source from taking us for dead.  Called often, also while the target works. */
static status MUST_CHECK repl_keepalive(struct repl *r)
{
    if (!r->started) return TW_OK;
    if (!r->reply_now && os_now() < r->feedback_us) {
        if (PQflush(r->db.pg) < 0) return db_fail_conn(&r->db, "send feedback");
        return TW_OK;
    }
    return repl_send_status(r, 0);
}

/* A connection that is open and silent is as bad as a closed one. */
static status MUST_CHECK repl_check_silence(struct repl *r)
{
    if (os_now() - r->heard_us < r->silence_us) return TW_OK;
    return fail(r->db.e, TW_ECONN, "%c has been silent for %d seconds", r->db.node->letter,
                (int) (r->silence_us / USEC_SEC));
}

/* Tell the source what it may forget.  `lsn` must be durable in the target's progress. */
static status MUST_CHECK repl_confirm(struct repl *r, lsn_t lsn)
{
    if (lsn <= r->confirmed_lsn) return TW_OK;
    TESTPOINT(r->db.e, "repl.confirm");
    r->confirmed_lsn = lsn;
    TRY(repl_send_status(r, lsn));
    return repl_send_status(r, 0);
}

/* A quarter of wal_sender_timeout, at most ten seconds. */
static status MUST_CHECK repl_read_interval(struct repl *r)
{
    struct arena a = {0};
    const char *ms = NULL;
    status s = db_value(&r->db, &a, "read wal_sender_timeout",
                        "SELECT setting FROM pg_catalog.pg_settings"
                        " WHERE name = 'wal_sender_timeout'", 0, NULL, &ms);
    usec timeout = s == TW_OK && ms ? strtoll(ms, NULL, 10) * 1000 : 0;
    r->interval_us = 10 * USEC_SEC;
    if (timeout && timeout / 4 < r->interval_us) r->interval_us = timeout / 4;
    arena_free(&a);
    return s;
}

static status MUST_CHECK repl_start(struct repl *r, const char *slot, lsn_t from)
{
    struct arena a = {0};
    TRY(repl_read_interval(r));
    if (r->interval_us / 2000 < r->db.tick_ms) r->db.tick_ms = (int) (r->interval_us / 2000) + 1;
    /* Names are [a-z0-9_] by construction (job name rule). */
    const char *sql = arena_fmt(&a, "START_REPLICATION SLOT \"%s\" LOGICAL " LSN_FMT
                                    " (proto_version '1', publication_names '\"%s\"')",
                                slot, LSN_ARG(from), slot);
    PGresult *res = NULL;
    status s = db_attempt(&r->db, sql, 0, NULL, &res);
    if (s == TW_OK && PQresultStatus(res) != PGRES_COPY_BOTH)
        s = db_fail_result(&r->db, res, "start replication");
    PQclear(res);
    arena_free(&a);
    r->started = s == TW_OK;
    r->received_lsn = from;
    r->heard_us = os_now();
    r->feedback_us = 0;
    if (!r->silence_us) r->silence_us = REPL_SILENCE_S * USEC_SEC;
    return s;
}

/* The next frame libpq holds; *frame NULL when there is none. */
static status MUST_CHECK repl_take(struct repl *r, char **frame, int *len)
{
    *frame = NULL;
    *len = PQgetCopyData(r->db.pg, frame, 1);
    if (*len >= 0) return TW_OK;
    if (*len < -1) return db_fail_conn(&r->db, "read the replication stream");
    PGresult *res = PQgetResult(r->db.pg);
    status s = db_result_ok(res) ? fail(r->db.e, TW_ECONN, "%c ended the replication stream",
                                        r->db.node->letter)
                                 : db_fail_result(&r->db, res, "read the replication stream");
    PQclear(res);
    return s;
}

/* What a frame's head says: that the source lives, how far it is, whether it wants an answer. */
static status MUST_CHECK repl_head(struct repl *r, char *frame, int len, struct rd *rd, char *kind)
{
    *rd = (struct rd){.p = (unsigned char *) frame, .end = (unsigned char *) frame + len};
    *kind = (char) rd_uint(rd, 1);
    r->heard_us = os_now();
    if (*kind == 'w') rd_uint(rd, 8);
    lsn_t end = rd_uint(rd, 8);
    usec sent = rd_time(rd);
    bool reply = *kind == 'k' && rd_uint(rd, 1);
    if (rd->bad || (*kind != 'w' && *kind != 'k'))
        return fail(r->db.e, TW_EPROTO, "unknown frame in the replication stream");
    r->source_us = sent;
    if (end > r->source_lsn) r->source_lsn = end;
    if (*kind == 'k' && end > r->held_lsn) r->held_lsn = end;
    if (reply) r->reply_now = true;
    return TW_OK;
}

enum { REPL_AHEAD_BYTES = 2 * 1024 * 1024, REPL_LOW_WATER = 128 * 1024 };

static bool repl_has_room(const struct repl *r)
{
    return r->ahead_bytes <= REPL_AHEAD_BYTES;
}

/* Wake for every few bytes, or only for many: a reader that wakes for each message makes the
 * walsender send each by itself (design 6).  Has no effect on Unix sockets. */
static void repl_low_water(struct repl *r, int bytes)
{
    if (r->low_water == bytes) return;
    r->low_water = bytes;
    setsockopt(PQsocket(r->db.pg), SOL_SOCKET, SO_RCVLOWAT, &bytes, sizeof bytes);
}

/* Receive what is there, waiting a little for it; *more: something came. */
static status MUST_CHECK repl_fill(struct repl *r, int wait_ms, bool *more)
{
    struct pollfd p = {.fd = PQsocket(r->db.pg), .events = POLLIN};
    repl_low_water(r, wait_ms ? REPL_LOW_WATER : 1);
    int n = poll(&p, 1, wait_ms);
    if (!n && wait_ms) {
        repl_low_water(r, 1);
        n = poll(&p, 1, 0);
    }
    if (n < 0 && errno != EINTR)
        return fail(r->db.e, TW_EOS, "could not wait for a socket: %s", strerror(errno));
    *more = n > 0;
    if (n > 0 && !PQconsumeInput(r->db.pg))
        return db_fail_conn(&r->db, "read the replication stream");
    return TW_OK;
}

/* While the target works: take what has come, as far as memory is meant for it, and answer.  A
 * source that shuts down waits until we have it all. */
static status MUST_CHECK repl_pull(struct repl *r)
{
    bool received = false;
    while (r->started && repl_has_room(r)) {
        char *frame, kind;
        int len;
        struct rd rd;
        TRY(repl_take(r, &frame, &len));
        if (!frame && received) break;
        if (!frame) {  /* only now: libpq's buffer doubles when more comes than was taken */
            if (!PQconsumeInput(r->db.pg))
                return db_fail_conn(&r->db, "read the replication stream");
            received = true;
            continue;
        }
        struct repl_frame *f = mem_resize(NULL, sizeof *f);
        *f = (struct repl_frame){.data = frame, .len = len};
        if (!r->last) r->last = &r->first;
        *r->last = f;
        r->last = &f->next;
        r->ahead_bytes += (size_t) len;
        TRY(repl_head(r, frame, len, &rd, &kind));
    }
    TRY(repl_keepalive(r));
    return r->started && repl_has_room(r) ? repl_check_silence(r) : TW_OK;
}

static void repl_shift(struct repl *r, char **frame, int *len)
{
    struct repl_frame *f = r->first;
    *frame = f->data;
    *len = f->len;
    r->first = f->next;
    r->ahead_bytes -= (size_t) f->len;
    if (!r->first) r->last = NULL;
    mem_free(f);
}

/* One frame of the stream.  *data is NULL when nothing is there yet; a keepalive is digested here
 * and gives *keepalive.  *data is a malloc'ed frame to PQfreemem, *body its pgoutput part. */
static status MUST_CHECK repl_read(struct repl *r, char **data, char **body, size_t *len,
                                   bool *keepalive)
{
    char *frame, kind;
    int n;
    struct rd rd;
    *data = NULL;
    *keepalive = false;
    if (r->first) repl_shift(r, &frame, &n);
    else TRY(repl_take(r, &frame, &n));
    if (!frame) return TW_OK;
    status s = repl_head(r, frame, n, &rd, &kind);
    *keepalive = s == TW_OK && kind == 'k';
    if (*keepalive) {
        struct rd again = {.p = (unsigned char *) frame + 1, .end = (unsigned char *) frame + n};
        r->keepalive_lsn = rd_uint(&again, 8);
    }
    if (s != TW_OK || *keepalive) {
        PQfreemem(frame);
        return s;
    }
    *body = (char *) (uintptr_t) rd.p;
    *len = (size_t) (rd.end - rd.p);
    *data = frame;
    return TW_OK;
}

static void repl_close(struct repl *r)
{
    while (r->first) {
        char *frame;
        int len;
        repl_shift(r, &frame, &len);
        PQfreemem(frame);
    }
    db_close(&r->db);
}

/* ==== 17. throttle =========================================================
 * Limits that all processes of a job share: what one lets through pushes the time at which all is
 * paid for, and it waits for that time before it goes on.  Limits may change while it waits. */

enum { THROTTLE_BURST_MS = 50, THROTTLE_LOOK_MS = 50 };

static int64_t throttle_rate(const struct stat_page *page, enum throttle which)
{
    return page && page->limits[which].rate > 0 ? (int64_t) page->limits[which].rate : 0;
}

static void throttle_take(struct stat_page *page, enum throttle which, int64_t n)
{
    int64_t rate = throttle_rate(page, which);
    if (!rate || n <= 0) return;
    int64_t now = os_now() * 1000;
    int64_t cost = (int64_t) ((double) n * 1e9 / (double) rate), due = page->limits[which].due_ns;
    int64_t paid;
    do paid = (due > now ? due : now) + cost;
    while (!atomic_compare_exchange_weak(&page->limits[which].due_ns, &due, paid));
}

/* How long nothing more may go. */
static usec throttle_left(const struct stat_page *page, enum throttle which)
{
    if (!throttle_rate(page, which)) return 0;
    usec left = page->limits[which].due_ns / 1000 - os_now() - THROTTLE_BURST_MS * 1000;
    return left > 0 ? left : 0;
}

/* So much at a time, lest one step take what is meant for a second. */
static int64_t throttle_step(const struct stat_page *page, enum throttle which, int64_t most)
{
    int64_t rate = throttle_rate(page, which), step = rate / 20;
    return !rate || step > most ? most : step < 1 ? 1 : step;
}

/* ==== 18. rel ==============================================================
 * A source relation and its place on the target: column map, keys, prepared statements.
 *
 * Rows are found by the target's primary key (or another unique key that cannot be NULL); a
 * table without one is matched as a whole row.  Values are compared as images (*=), not by =,
 * because 1.0 = 1.00 and citext's 'a' = 'A' are the same key and different bytes (failures D16). */

struct target_column {
    const char *quoted;
    uint32_t type;           /* of parameters; of a domain its base type: old values need not meet
                              * constraints that came later */
    const char *base;        /* name of that base type, NULL if the column is no domain */
    const char *declared;    /* of a staging column for its values: base type and collation */
    uint32_t array;          /* type of arrays of that base type; 0: unnest() could not tell them */
    const char *expression;  /* of a generated column, else NULL */
    int source;  /* index of the source column, -1: the target's own column */
    bool not_null, generated, identity_always;
};

/* A unique index or exclusion constraint of the target: rows whose parts all compare true by `ops`
 * are in each other's way.  Parts are SQL expressions over bare column names. */
struct unique_key {
    uint32_t oid;
    const char *name, *predicate;  /* predicate NULL: whole table */
    bool *uses;  /* by source column: its parts and predicate look at it */
    int n;
    int *columns;  /* target column index, -1 for an expression */
    const char **parts, **ops;
    bool primary, not_null, plain;  /* plain: ordinary columns only, no predicate */
    bool exclusion, nulls_equal;
    bool deferrable;  /* checked by a trigger, which rests under session_replication_role */
    bool unknown;     /* has a column that the source lacks */
};

enum param_from { FROM_NEW, FROM_OLD, FROM_KEY };

struct param {
    enum param_from from;
    int column;  /* source column index */
};

/* A set of columns that updates write. */
struct colset {
    struct colset *next;
    const bool *set;  /* by source column */
    bool secondary;   /* has a part of a unique key that is not the identity */
    bool deferrable;  /* has a part of a deferrable key */
    bool kept;        /* by the relation, not only for a while */
};

/* One statement of a relation: an operation and, for updates, the set of columns.  It exists twice:
 * prepared, for one change, and for all of a window, their parameters staged in a table. */
struct stmt {
    struct stmt *next;
    struct rel *rel;
    char op;          /* 'I' 'U' 'D'; 'A': the row must be absent; 'P': put it there, whatever is,
                       * 'R': remove it, if it is there (catching up) */
    char old_kind;
    const struct colset *cols;  /* 'U' */
    char name[32];
    const char *sql;
    int nparams;
    struct param *params;
    Oid *types;
    bool ready;       /* the server has prepared it; taken back if its reply is not good */
    char guard_name[34];    /* the same, but fails where it does not meet one row */
    const char *guard_sql;  /* made when first needed; 'U' and 'D' only */
    bool guard_ready;
    char array_name[34];    /* the same for many changes, whose values come as arrays */
    const char *array_sql;  /* made when first needed */
    Oid *array_types;
    bool array_ready;
    const char *bulk_sql;   /* the same with the staging table; made when first needed */
    char stage[48];         /* the staging table; 'I' goes straight into its own */
    bool staged;            /* it exists in the session */
    int64_t staged_in;      /* the batch that used it last: it is emptied at the batch's end */
    struct net *first, **last;  /* of the window at work: the net changes it is for */
    int64_t n;
};

/* A value of an enum that has another name on the target by now. */
struct relabel {
    int column;
    const char *from, *to;
};

/* What a column that was added later gives to rows that do not know it. */
struct fill {
    const char *quoted, *value;
};

struct rel {
    struct rel *next;
    struct arena arena;  /* of this entry: dropped as a whole when the relation is described anew */
    /* The source's description (Relation message). */
    uint32_t relid;
    const char *schema, *name;
    char replident;
    int ncolumns;
    struct msg_column *columns;
    /* What it is called on A: so everything that is noted of it is found by both tasks. */
    const char *a_schema, *a_name;
    const char **a_columns;
    /* Its place on the target. */
    const char *to_schema, *to_name;
    const char **to_columns;  /* NULL: the target does not have the column, by the job */
    bool is_marker;       /* twsync's own table */
    bool resolved;        /* the fields below are filled in */
    bool exists;
    const char *quoted;   /* "s"."t" */
    const char *only;     /* "ONLY " or "" for a partitioned table */
    int *target_of;       /* by source column; -1 where the target generates the value */
    int ntargets;
    struct target_column *targets;
    int nkeys;
    struct unique_key *keys;
    bool has_deferrable;  /* one of them is */
    bool has_secondary;   /* there is one besides the identity */
    bool same_keys;       /* the source has them all: only a conflict can violate one */
    bool bulk;            /* no trigger or rule fires on our writes: they may be folded */
    bool *changes;        /* room for one set of columns */
    struct colset *colsets;
    int ncolsets;
    int64_t brought_in;   /* the window that brings new values into its secondary keys */
    int64_t ruled_in;     /* the window whose rows its rules have seen */
    int64_t most;         /* of the window at work: changes of its largest statement */
    const struct unique_key *identity;  /* rows are found by it; NULL: see the next two */
    int nident;           /* 0: by the whole row */
    int *ident;           /* source columns rows are found by */
    const char **ident_ops;
    enum policy policy;
    enum merge_unit merge;
    int left_out;         /* kinds of changes that the task does not carry: enum operation */
    bool parts;           /* its rules let rows differ: conflicts are not settled */
    struct rules *rules;  /* forward: what is asked about each row; NULL: nothing */
    bool *loose;          /* by column: its old value is not what the target holds; NULL: none is */
    lsn_t skip_until_lsn; /* the copy holds everything committed before this (design 10) */
    lsn_t catchup_lsn;    /* and before this some of it: it was copied under several snapshots */
    const char *seen;     /* the snapshot of that copy, if it did not come with a slot */
    bool asked_in_vain;   /* its place was looked up for a change that the copy holds */
    bool parked;          /* left out until it is copied again: the fields above are not filled */
    bool named;           /* reverse: it has its names on A */
    bool followed;        /* reverse: it and its columns are called as on the target by now */
    struct relabel *relabels;
    int nrelabels;
    struct fill *fills;   /* columns the target has by now, which the source's rows lack */
    int nfills;
    struct recast *recast;  /* by column: its type on the target, if it was changed there */
    bool told_refused;    /* a warning was given that the target refuses its changes */
    struct stmt *stmts;
    int nstmts;
};

enum { REL_MAX_STMTS = 64, REL_MAX_COLSETS = 24 };

struct recast {
    const char *type;  /* NULL: it is what it was */
    bool by_using;     /* what the target's rows hold now is not what a cast of theirs would give */
};

static bool value_equal(const struct value *a, const struct value *b)
{
    if (a->kind == 'n' || b->kind == 'n') return a->kind == b->kind;
    return a->len == b->len && (!a->len || memcmp(a->data, b->data, a->len) == 0);
}

/* The value a server's answer gives; NULL is SQL NULL. */
static struct value value_of(const char *text)
{
    return (struct value){text, text ? (uint32_t) strlen(text) : 0, text ? 't' : 'n'};
}

static const char *value_text(const struct value *v)
{
    return v->kind == 'n' || v->kind == 'u' ? NULL : v->data;
}

/* One value as an element of an array. */
static void array_value(struct buf *b, const struct value *v)
{
    const char *text = value_text(v);
    buf_char(b, b->len ? ',' : '{');
    if (!text) {
        buf_str(b, "NULL");
        return;
    }
    buf_room(b, 2 * (size_t) v->len + 3);
    char *out = b->data + b->len;
    *out++ = '"';
    for (uint32_t i = 0; i < v->len; i++) {
        if (text[i] == '"' || text[i] == '\\') *out++ = '\\';
        *out++ = text[i];
    }
    *out++ = '"';
    b->len = (size_t) (out - b->data);
}

/* ---- reading the target's catalog ---- */

static const char rel_columns_sql[] =
    "SELECT c.oid, c.relkind, a.attname, base.oid, a.attnotnull, a.attidentity, %s,"
    " CASE WHEN base.oid <> a.atttypid THEN format_type(base.oid, -1) END,"
    " pg_get_expr(d.adbin, d.adrelid), format_type(base.oid, -1) || coalesce(' COLLATE '"
    "  || quote_ident(cn.nspname) || '.' || quote_ident(co.collname), ''),"
    " (SELECT t.typarray FROM pg_type t WHERE t.oid = base.oid AND t.typdelim = ','"
    "  AND NOT (t.typelem <> 0 AND t.typlen = -1))"
    " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    " LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
    " LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum"
    " LEFT JOIN LATERAL (WITH RECURSIVE b(oid) AS (SELECT a.atttypid UNION ALL"
    "  SELECT t.typbasetype FROM b JOIN pg_type t ON t.oid = b.oid AND t.typtype = 'd')"
    "  SELECT b.oid FROM b JOIN pg_type t ON t.oid = b.oid AND t.typtype <> 'd') base ON true"
    " LEFT JOIN pg_collation co ON co.oid = a.attcollation"
    " LEFT JOIN pg_namespace cn ON cn.oid = co.collnamespace"
    " WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p') ORDER BY a.attnum";

static void rel_read_column(struct rel *rel, const PGresult *r, int row)
{
    struct target_column *t = &rel->targets[rel->ntargets];
    const char *name = PQgetvalue(r, row, 2);
    struct buf q = {0};
    sql_ident(&q, name);
    *t = (struct target_column){.quoted = arena_str(&rel->arena, q.data),
                                .type = (uint32_t) db_cell_int(r, row, 3),
                                .not_null = db_cell_true(r, row, 4),
                                .identity_always = PQgetvalue(r, row, 5)[0] == 'a',
                                .generated = PQgetvalue(r, row, 6)[0] != '\0',
                                .declared = arena_str(&rel->arena, PQgetvalue(r, row, 9)),
                                .array = (uint32_t) db_cell_int(r, row, 10),
                                .source = -1};
    buf_free(&q);
    if (!PQgetisnull(r, row, 7)) t->base = arena_str(&rel->arena, PQgetvalue(r, row, 7));
    if (t->generated) t->expression = arena_str(&rel->arena, PQgetvalue(r, row, 8));
    for (int k = 0; k < rel->ncolumns; k++) {
        if (!rel->to_columns[k] || !str_is(rel->to_columns[k], name)) continue;
        t->source = k;
        rel->target_of[k] = t->generated ? -2 : rel->ntargets;
    }
    rel->ntargets++;
}

static void rel_read_columns(struct rel *rel, const PGresult *r)
{
    int n = PQntuples(r);
    rel->exists = n > 0;
    rel->targets = arena_array(&rel->arena, struct target_column, n);
    if (!n) return;
    rel->only = PQgetvalue(r, 0, 1)[0] == 'p' ? "" : "ONLY ";
    rel->target_of = arena_array(&rel->arena, int, rel->ncolumns);
    for (int i = 0; i < rel->ncolumns; i++)
        rel->target_of[i] = rel->columns[i].gone || !rel->to_columns[i] ? -2 : -1;
    for (int i = 0; i < n && !PQgetisnull(r, i, 2); i++) rel_read_column(rel, r, i);
}

/* false: its column is not among those that were read just before. */
static bool rel_read_key_part(struct rel *rel, struct unique_key *k, const PGresult *r, int row)
{
    int p = k->n++;
    const char *column = db_cell(r, row, 6);
    k->columns[p] = -1;
    k->parts[p] = arena_str(&rel->arena, PQgetvalue(r, row, 5));
    k->ops[p] = arena_fmt(&rel->arena, "OPERATOR(%s.%s)", PQgetvalue(r, row, 7),
                          PQgetvalue(r, row, 8));
    if (!column) {
        k->plain = false;
        return true;
    }
    struct buf q = {0};
    sql_ident(&q, column);
    for (int i = 0; i < rel->ntargets; i++)
        if (str_is(rel->targets[i].quoted, q.data)) k->columns[p] = i;
    buf_free(&q);
    if (k->columns[p] < 0) return false;
    const struct target_column *t = &rel->targets[k->columns[p]];
    if (!t->not_null) k->not_null = false;
    if (t->generated) {  /* the new row's value is not at hand: by its expression */
        k->plain = false;
        k->parts[p] = t->expression;
    } else if (t->source < 0) {
        k->unknown = true;
    }
    return true;
}

/* Unique indexes and exclusion constraints, with the operator of each part: with an empty
 * search_path a bare = would miss those of extensions. */
static const char rel_keys_sql[] =
    "SELECT i.indexrelid, ic.relname, i.indisprimary, i.indimmediate,"
    " pg_get_expr(i.indpred, i.indrelid), pg_get_indexdef(i.indexrelid, k, false), a.attname,"
    " quote_ident(opn.nspname), op.oprname, to_jsonb(i)->>'indnullsnotdistinct' = 'true',"
    " i.indisexclusion"
    " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    " JOIN pg_index i ON i.indrelid = c.oid AND i.indisvalid"
    "  AND (i.indisunique OR i.indisexclusion)"
    " JOIN pg_class ic ON ic.oid = i.indexrelid"
    " CROSS JOIN LATERAL generate_series(1, i.indnkeyatts) k"
    " LEFT JOIN pg_constraint con ON con.conindid = i.indexrelid AND con.conexclop IS NOT NULL"
    " JOIN pg_operator op ON op.oid = CASE WHEN con.oid IS NOT NULL THEN con.conexclop[k] ELSE"
    "  (SELECT ao.amopopr FROM pg_opclass oc JOIN pg_amop ao ON ao.amopfamily = oc.opcfamily"
    "   AND ao.amopstrategy = 3 AND ao.amoplefttype = oc.opcintype"
    "   AND ao.amoprighttype = oc.opcintype WHERE oc.oid = i.indclass[k - 1]) END"
    " JOIN pg_namespace opn ON opn.oid = op.oprnamespace"
    " LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[k - 1]"
    "  AND i.indkey[k - 1] <> 0"
    " WHERE n.nspname = $1 AND c.relname = $2"
    " ORDER BY i.indisprimary DESC, i.indexrelid, k";

static void rel_add_key(struct rel *rel, const PGresult *r, int row)
{
    struct unique_key *k = &rel->keys[rel->nkeys++];
    int parts = PQntuples(r);
    *k = (struct unique_key){.oid = (uint32_t) db_cell_int(r, row, 0),
                             .uses = arena_array(&rel->arena, bool, rel->ncolumns + 1),
                             .name = arena_str(&rel->arena, PQgetvalue(r, row, 1)),
                             .primary = db_cell_true(r, row, 2),
                             .deferrable = !db_cell_true(r, row, 3),
                             .nulls_equal = db_cell_true(r, row, 9),
                             .exclusion = db_cell_true(r, row, 10),
                             .not_null = true,
                             .columns = arena_array(&rel->arena, int, parts),
                             .parts = arena_array(&rel->arena, const char *, parts),
                             .ops = arena_array(&rel->arena, const char *, parts)};
    if (!PQgetisnull(r, row, 4)) k->predicate = arena_str(&rel->arena, PQgetvalue(r, row, 4));
    k->plain = !k->predicate && !k->exclusion;
    if (k->deferrable) rel->has_deferrable = true;
}

/* Which columns an index looks at: its own, and those of its expressions and predicate; of a
 * generated column those it is made of. */
static const char rel_key_uses_sql[] =
    "SELECT i.indexrelid, u.attname FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid"
    " JOIN pg_namespace n ON n.oid = c.relnamespace"
    " JOIN pg_attribute a ON a.attrelid = c.oid AND (a.attnum = ANY (i.indkey::int2[])"
    "  OR EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass"
    "   AND d.objid = i.indexrelid AND d.refobjid = c.oid AND d.refobjsubid = a.attnum))"
    " LEFT JOIN pg_attrdef g ON g.adrelid = c.oid AND g.adnum = a.attnum"
    " JOIN pg_attribute u ON u.attrelid = c.oid AND (u.attnum = a.attnum"
    "  OR EXISTS (SELECT FROM pg_depend d WHERE d.refobjid = c.oid AND d.refobjsubid = u.attnum"
    "   AND (d.classid = 'pg_attrdef'::regclass AND d.objid = g.oid"
    "    OR d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.objsubid = a.attnum)))"
    " WHERE n.nspname = $1 AND c.relname = $2 AND (i.indisunique OR i.indisexclusion)";

static void rel_read_key_uses(struct rel *rel, const PGresult *r)
{
    for (int i = 0; i < PQntuples(r); i++)
        for (int k = 0; k < rel->nkeys; k++)
            for (int c = 0; c < rel->ncolumns; c++)
                if (rel->keys[k].oid == (uint32_t) db_cell_int(r, i, 0) &&
                    rel->to_columns[c] && str_is(rel->to_columns[c], PQgetvalue(r, i, 1)))
                    rel->keys[k].uses[c] = true;
}

/* Has the source the same unique keys, checked at the same time?  $3: those of the target; NULL
 * asks for them. */
static const char rel_same_keys_sql[] =
    "WITH k AS (SELECT regexp_replace(pg_get_indexdef(i.indexrelid), '^.* USING ', '')"
    "  || i.indimmediate || i.indisexclusion AS def FROM pg_index i"
    "  JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
    "  WHERE n.nspname = $1 AND c.relname = $2 AND i.indisvalid"
    "  AND (i.indisunique OR i.indisexclusion))"
    " SELECT CASE WHEN $3::text[] IS NULL THEN (SELECT array_agg(def)::text FROM k)"
    " ELSE (NOT EXISTS (SELECT unnest($3::text[]) EXCEPT SELECT def FROM k))::text END";

static status MUST_CHECK rel_compare_keys(struct rel *rel, struct db *from, struct db *to,
                                          struct arena *scratch)
{
    const char *values[] = {rel->to_schema, rel->to_name, NULL}, *mine;
    PGresult *r;
    if (!rel->has_secondary) return TW_OK;
    TRY(db_value(to, scratch, "read the target's keys", rel_same_keys_sql, 3, values, &mine));
    if (!mine) return TW_OK;
    values[0] = rel->schema;
    values[1] = rel->name;
    values[2] = mine;
    TRY(db_attempt(from, rel_same_keys_sql, 3, values, &r));  /* keys may be going just now */
    rel->same_keys = db_result_ok(r) && db_cell_true(r, 0, 0);
    PQclear(r);
    return TW_OK;
}

static bool rel_read_keys(struct rel *rel, const PGresult *r)
{
    rel->keys = arena_array(&rel->arena, struct unique_key, PQntuples(r));
    const char *last = "";
    for (int i = 0; i < PQntuples(r); i++) {
        if (!str_is(last, PQgetvalue(r, i, 0))) rel_add_key(rel, r, i);
        last = PQgetvalue(r, i, 0);
        if (!rel_read_key_part(rel, &rel->keys[rel->nkeys - 1], r, i)) return false;
    }
    return true;
}

/* Does the change carry this column to the target, where it is an ordinary column? */
static bool rel_carries(const struct rel *rel, int column)
{
    return rel->target_of[column] >= 0;
}

/* Is what the column held before what the target's row should hold? */
static bool rel_compares(const struct rel *rel, int column)
{
    return rel_carries(rel, column) && !(rel->loose && rel->loose[column]);
}

/* Can the stream's old row give every part of this key? */
static bool rel_key_usable(const struct rel *rel, const struct unique_key *k)
{
    if (!k->plain || !k->not_null) return false;
    for (int i = 0; i < k->n; i++) {
        int source = rel->targets[k->columns[i]].source;
        if (source < 0 || !rel_carries(rel, source)) return false;
        if (rel->replident != 'f' && !rel->columns[source].is_key) return false;
    }
    return true;
}

static void rel_choose_identity(struct rel *rel)
{
    /* A deferrable key may belong to two rows for a moment: only if there is no other. */
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < rel->nkeys && !rel->identity; i++)
            if (rel->keys[i].deferrable == pass && rel_key_usable(rel, &rel->keys[i]))
                rel->identity = &rel->keys[i];
    if (rel->identity) {
        rel->nident = rel->identity->n;
        rel->ident = arena_array(&rel->arena, int, rel->nident);
        rel->ident_ops = rel->identity->ops;
        for (int i = 0; i < rel->nident; i++)
            rel->ident[i] = rel->targets[rel->identity->columns[i]].source;
    }
}

static status MUST_CHECK rel_check_columns(const struct rel *rel, struct db *to)
{
    if (!rel->exists) {
        fail_hint(to->e, "Create the table on %c as it is on the source, or drop it from the "
                         "publication; the stream waits here.", to->node->letter);
        return fail(to->e, TW_ESCHEMA, "table %s does not exist on %c", rel->quoted,
                    to->node->letter);
    }
    for (int i = 0; i < rel->ncolumns; i++)
        if (rel->target_of[i] == -1 && !rel->columns[i].gone)
            return fail(to->e, TW_ESCHEMA, "column \"%s\" of table %s does not exist on %c",
                        rel->to_columns[i], rel->quoted, to->node->letter);
    if (!rel->nident && rel->replident != 'f' && rel->replident != 'n')
        return fail(to->e, TW_ESCHEMA,
                    "table %s has no unique key on %c that matches the replica identity of its "
                    "source", rel->quoted, to->node->letter);
    return TW_OK;
}

static const char rel_skip_sql[] =
    "SELECT min(snapshot_lsn), max(snapshot_lsn), max(seen), EXISTS (SELECT FROM twsync.parked"
    "  WHERE schema_name = $1 AND table_name = $2 AND task = $3) FROM twsync.copied"
    " WHERE schema_name = $1 AND table_name = $2 AND task = $3";

static status MUST_CHECK rel_read_skip(struct rel *rel, struct db *to, const PGresult *r)
{
    const char *first = db_cell(r, 0, 0), *last = db_cell(r, 0, 1), *seen = db_cell(r, 0, 2);
    rel->parked = db_cell_true(r, 0, 3);
    rel->seen = seen ? arena_str(&rel->arena, seen) : NULL;
    bool several = first && !str_is(first, last);
    if (first && (!lsn_parse(first, &rel->skip_until_lsn) ||
                  (several && !lsn_parse(last, &rel->catchup_lsn))))
        return fail(to->e, TW_EPROTO, "bad position in twsync.copied");
    return TW_OK;
}

/* Does a snapshot, as txid_current_snapshot() writes it, see this transaction, if it is committed?
 * Of their 64 bits the stream tells the lower half; both are of a time not far apart. */
static bool snapshot_sees(const char *snapshot, uint32_t xid)
{
    char *p;
    uint32_t xmin = (uint32_t) strtoull(snapshot, &p, 10);
    uint32_t xmax = (uint32_t) strtoull(p + (*p == ':'), &p, 10);
    if ((int32_t) (xid - xmin) < 0) return true;
    if ((int32_t) (xid - xmax) >= 0) return false;
    while (*p && p[1])
        if ((uint32_t) strtoull(p + 1, &p, 10) == xid) return false;
    return true;
}

/* Is a change of this transaction in the copy of its table? */
static bool rel_skips(const struct rel *rel, lsn_t final_lsn, uint32_t xid)
{
    return final_lsn < rel->skip_until_lsn && (!rel->seen || snapshot_sees(rel->seen, xid));
}

/* Whoever fires on our writes, in the table or one of its partitions, counts on one statement per
 * row and on their order. */
static const char rel_fires_sql[] =
    "WITH RECURSIVE tree(oid) AS (SELECT c.oid FROM pg_class c JOIN pg_namespace n"
    "  ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2"
    " UNION ALL SELECT i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid"
    "  JOIN pg_class p ON p.oid = i.inhparent AND p.relkind = 'p')"
    " SELECT current_setting('session_replication_role') <> 'replica'"
    " OR EXISTS (SELECT FROM tree JOIN pg_trigger t ON t.tgrelid = tree.oid"
    "  AND t.tgenabled IN ('A', 'R'))"
    " OR EXISTS (SELECT FROM tree JOIN pg_rewrite w ON w.ev_class = tree.oid"
    "  AND w.ev_enabled IN ('A', 'R'))";

static void rel_read_firing(struct rel *rel, const PGresult *r)
{
    rel->bulk = PQntuples(r) && !db_cell_true(r, 0, 0) && !rel->nfills;
    for (int k = 0; k < rel->nkeys; k++)
        if (&rel->keys[k] != rel->identity) rel->has_secondary = true;
}

static void rel_relabel(const struct rel *rel, struct tuple *row)
{
    for (int i = 0; i < rel->nrelabels; i++) {
        const struct relabel *x = &rel->relabels[i];
        if (x->column >= row->n) continue;
        struct value *v = &row->values[x->column];
        if (v->kind == 't' && str_is(v->data, x->from)) *v = value_of(x->to);
    }
}

static void rel_free(struct rel *rel)
{
    struct arena a = rel->arena;
    arena_free(&a);
}

/* The entry for a Relation message.  Its place on the target is looked up when a change needs it:
 * a dropped transaction may describe tables that are none of our business. */
static struct rel *rel_learn(const struct msg *m)
{
    struct arena own = {0};
    struct rel *rel = arena_new(&own, struct rel);
    rel->relid = m->relid;
    rel->schema = arena_str(&own, m->schema);
    rel->name = arena_str(&own, m->name);
    rel->a_schema = rel->to_schema = rel->schema;
    rel->a_name = rel->to_name = rel->name;
    rel->quoted = sql_quoted_table(&own, m->schema, m->name);
    rel->replident = m->replident;
    rel->ncolumns = m->ncolumns;
    rel->columns = arena_array(&own, struct msg_column, m->ncolumns);
    rel->a_columns = arena_array(&own, const char *, m->ncolumns + 1);
    rel->to_columns = arena_array(&own, const char *, m->ncolumns + 1);
    for (int i = 0; i < m->ncolumns; i++) {
        rel->columns[i] = m->columns[i];
        rel->columns[i].name = arena_str(&own, m->columns[i].name);
        rel->a_columns[i] = rel->to_columns[i] = rel->columns[i].name;
    }
    rel->is_marker = str_is(rel->schema, "twsync");
    rel->changes = arena_array(&own, bool, m->ncolumns + 1);
    rel->arena = own;
    return rel;
}

/* Forward: what the job calls it on B. */
static void rel_name_b(struct rel *rel, const struct job *job)
{
    const struct table_rules *r = job_rules(job, rel->schema, rel->name);
    if (!job_maps(job)) return;
    rel->to_schema = name_schema(job, rel->schema);
    rel->to_name = name_table(job, rel->schema, rel->name);
    rel->quoted = name_quoted(job, &rel->arena, rel->schema, rel->name);
    for (int i = 0; i < rel->ncolumns; i++) {
        const char *name = rel->columns[i].name, *to = name_column(r, name);
        /* name_learn() does not know the columns that a table had when it was called otherwise. */
        if (to == name && job->letters > CASE_SERVICE)
            to = name_letters(&rel->arena, job->letters, name);
        rel->to_columns[i] = to;
    }
}

/* Reverse: what the job calls it on A.  Where A does not have what a rule names, but has what bears
 * B's name, it is that: A has renamed it so. */
static status MUST_CHECK rel_name_a(struct rel *rel, const struct job *job, struct db *a)
{
    static const char sql[] =
        "SELECT c.relname = $3, x.attname FROM pg_class c JOIN pg_namespace n ON n.oid ="
        " c.relnamespace LEFT JOIN pg_attribute x ON x.attrelid = c.oid AND x.attnum > 0 AND NOT"
        " x.attisdropped WHERE n.nspname = $1 AND c.relname IN ($2, $3) AND c.relkind IN ('r', 'p')"
        " ORDER BY c.relname = $2 DESC";
    struct arena scratch = {0};
    PGresult *r;
    if (!job_maps(job) || rel->named) return TW_OK;
    rel->a_schema = rel->to_schema = name_schema_of_a(job, rel->schema);
    rel->a_name = rel->to_name = name_table_of_a(job, rel->a_schema, rel->name);
    const char *values[] = {rel->a_schema, rel->a_name, rel->name};
    status s = db_query(a, &scratch, "read the names on A", sql, 3, values, &r);
    if (s != TW_OK) arena_free(&scratch);
    TRY(s);
    bool other = PQntuples(r) && db_cell_true(r, 0, 0);
    if (other) rel->a_name = rel->to_name = rel->name;
    rel->quoted = sql_quoted_table(&rel->arena, rel->a_schema, rel->a_name);
    const struct table_rules *rules = job_rules(job, rel->a_schema, rel->a_name);
    for (int i = 0; i < rel->ncolumns; i++) {
        const char *own = rel->columns[i].name, *name = name_column_of_a(rules, own);
        const char *there = name_column(rules, own);
        bool has_name = false, has_own = false;
        for (int k = 0; k < PQntuples(r) && db_cell_true(r, k, 0) == other; k++) {
            if (PQgetisnull(r, k, 1)) continue;
            has_name = has_name || (name && str_is(PQgetvalue(r, k, 1), name));
            has_own = has_own || str_is(PQgetvalue(r, k, 1), own);
        }
        if (!has_name && has_own && name && there && str_is(there, own)) name = own;
        rel->to_columns[i] = name;
        if (name) rel->a_columns[i] = name;
    }
    rel->named = true;
    arena_free(&scratch);
    return TW_OK;
}

/* Find its place: reads the target's catalog, in one round trip as a rule. */
static status MUST_CHECK rel_resolve_by(struct rel *rel, struct db *from, struct db *to,
                                        const char *task, const struct msg *txn,
                                        struct arena *scratch)
{
    enum { COLUMNS, KEYS, KEY_USES, FIRES, SKIP, QUESTIONS };
    const char *columns = arena_fmt(scratch, rel_columns_sql,
                                    to->version >= 120000 ? "a.attgenerated" : "''");
    struct db_question q[QUESTIONS] = {
        [COLUMNS] = {columns, 2, {rel->to_schema, rel->to_name}, NULL},
        [KEYS] = {rel_keys_sql, 2, {rel->to_schema, rel->to_name}, NULL},
        [KEY_USES] = {rel_key_uses_sql, 2, {rel->to_schema, rel->to_name}, NULL},
        [FIRES] = {rel_fires_sql, 2, {rel->to_schema, rel->to_name}, NULL},
        [SKIP] = {rel_skip_sql, 3, {rel->a_schema, rel->a_name, task}, NULL},
    };
    TRY(db_ask(to, scratch, "read the target table", q, QUESTIONS));
    rel->ntargets = rel->nkeys = rel->nident = 0;  /* it may have been tried before */
    rel->has_deferrable = rel->has_secondary = false;
    rel->identity = NULL;
    TRY(rel_read_skip(rel, to, q[SKIP].r));
    rel->asked_in_vain = !rel->parked && rel_skips(rel, txn->final_lsn, txn->xid);
    if (rel->parked || rel->asked_in_vain) return TW_OK;
    rel_read_columns(rel, q[COLUMNS].r);
    if (rel->exists && !rel_read_keys(rel, q[KEYS].r))
        return fail(to->e, TW_ETXN, "table %s was changed on %c while it was looked at",
                    rel->quoted, to->node->letter);
    rel_read_key_uses(rel, q[KEY_USES].r);
    if (rel->exists) rel_choose_identity(rel);
    TRY(rel_check_columns(rel, to));
    rel_read_firing(rel, q[FIRES].r);
    return rel_compare_keys(rel, from, to, scratch);
}

/* txn: the Begin message of the transaction whose change asks for it. */
static status MUST_CHECK rel_resolve(struct rel *rel, struct db *from, struct db *to,
                                     const char *task, const struct msg *txn)
{
    struct arena scratch = {0};
    assert(!rel->is_marker && !rel->resolved);
    status s = rel_resolve_by(rel, from, to, task, txn, &scratch);
    arena_free(&scratch);
    rel->resolved = s == TW_OK && !rel->asked_in_vain;
    return s;
}

/* ---- the statements of the optimistic path ---- */

static const struct target_column *rel_target(const struct rel *rel, int column)
{
    return &rel->targets[rel->target_of[column]];
}

/* Where a statement's values come from: parameters, a staging table, or arrays of them.  The last
 * two are joined as "s" with the table "t"; its columns p1, p2 ... are the parameters. */
enum stmt_from { STMT_VALUES, STMT_STAGED, STMT_ARRAYS };

/* What a statement is being built of. */
struct stmt_text {
    struct buf sql;
    struct rel *rel;
    struct stmt *st;
    enum stmt_from from;
};

/* Must every old value hold, not only the changed columns'? */
static bool rel_whole(const struct rel *rel)
{
    return rel->merge == MERGE_ROWS || (rel->identity && rel->identity->deferrable);
}

static void stmt_param(struct stmt_text *t, enum param_from from, int column)
{
    struct stmt *st = t->st;
    st->params[st->nparams] = (struct param){from, column};
    st->types[st->nparams++] = rel_target(t->rel, column)->type;
    buf_fmt(&t->sql, t->from == STMT_VALUES ? "$%d" : "s.p%d", st->nparams);
}

/* What the table is joined with, after `word`.  Arrays: the number of parameters is known, for the
 * statement was built with values before. */
static void stmt_source(struct stmt_text *t, const char *word, int nparams)
{
    if (t->from == STMT_STAGED) buf_fmt(&t->sql, "%s %s s", word, t->st->stage);
    if (t->from != STMT_ARRAYS) return;
    buf_fmt(&t->sql, "%s unnest(", word);
    for (int i = 1; i <= nparams; i++) buf_fmt(&t->sql, "%s$%d", i > 1 ? ", " : "", i);
    buf_str(&t->sql, ") s(");
    for (int i = 1; i <= nparams; i++) buf_fmt(&t->sql, "%sp%d", i > 1 ? ", " : "", i);
    buf_char(&t->sql, ')');
}

/* A column as comparisons take it: of a domain its base type, as the parameters are. */
static void stmt_column(struct buf *b, const char *alias, const struct target_column *t)
{
    buf_fmt(b, "%s%s", alias, t->quoted);
    if (t->base) buf_fmt(b, "::%s", t->base);
}

/* ROW(a, b)::record *= ROW($1, $2)::record over the chosen columns; "true" over none. */
static void stmt_same_image(struct stmt_text *t, enum param_from from, const bool *chosen)
{
    const char *sep = "";
    int n = 0;
    for (int i = 0; i < t->rel->ncolumns; i++) {
        if (!rel_compares(t->rel, i) || (chosen && !chosen[i])) continue;
        if (!n++) buf_str(&t->sql, "ROW(");
        buf_str(&t->sql, sep);
        stmt_column(&t->sql, "t.", rel_target(t->rel, i));
        sep = ", ";
    }
    if (!n) {
        buf_str(&t->sql, "true");
        return;
    }
    buf_str(&t->sql, ")::record OPERATOR(pg_catalog.*=) ROW(");
    sep = "";
    for (int i = 0; i < t->rel->ncolumns; i++) {
        if (!rel_compares(t->rel, i) || (chosen && !chosen[i])) continue;
        buf_str(&t->sql, sep);
        stmt_param(t, from, i);
        sep = ", ";
    }
    buf_str(&t->sql, ")::record");
}

/* WHERE that finds the row the change left from.  Of a table without key exactly one of equal
 * rows is meant (failures D5). */
static void stmt_where(struct stmt_text *t, const bool *compare)
{
    struct rel *rel = t->rel;
    if (!rel->nident) {
        buf_fmt(&t->sql, " WHERE t.ctid = (SELECT t.ctid FROM %s%s t WHERE ", rel->only,
                rel->quoted);
        stmt_same_image(t, FROM_OLD, NULL);
        buf_str(&t->sql, " LIMIT 1)");
        return;
    }
    buf_str(&t->sql, " WHERE ");
    for (int i = 0; i < rel->nident; i++) {
        buf_fmt(&t->sql, "%st.%s %s ", i ? " AND " : "", rel_target(rel, rel->ident[i])->quoted,
                rel->ident_ops[i]);
        stmt_param(t, FROM_KEY, rel->ident[i]);
    }
    if (t->st->old_kind == 'O') {
        buf_str(&t->sql, " AND ");
        stmt_same_image(t, FROM_OLD, compare);
    }
}

/* (a, b): the columns that inserts fill; their number. */
static int stmt_columns(struct buf *b, const struct rel *rel)
{
    int n = 0;
    for (int i = 0; i < rel->ncolumns; i++)
        if (rel_carries(rel, i))
            buf_fmt(b, "%s%s", n++ ? ", " : "(", rel_target(rel, i)->quoted);
    for (int i = 0; i < rel->nfills; i++)
        buf_fmt(b, "%s%s", n++ ? ", " : "(", rel->fills[i].quoted);
    if (n) buf_char(b, ')');
    return n;
}

static void stmt_fills(struct buf *b, const struct rel *rel, const char *sep)
{
    for (int i = 0; i < rel->nfills; i++, sep = ", ") {
        buf_str(b, sep);
        if (rel->fills[i].value) sql_literal(b, rel->fills[i].value);
        else buf_str(b, "NULL");
    }
}

static void stmt_insert(struct stmt_text *t, int nparams)
{
    const char *sep = "";
    bool staged = t->from == STMT_STAGED;
    buf_fmt(&t->sql, staged ? "COPY %s " : "INSERT INTO %s ", t->rel->quoted);
    if (!stmt_columns(&t->sql, t->rel)) {
        buf_str(&t->sql, "DEFAULT VALUES");
        return;
    }
    if (staged) {
        buf_str(&t->sql, " FROM STDIN");
        return;
    }
    buf_str(&t->sql, " OVERRIDING SYSTEM VALUE ");
    buf_str(&t->sql, t->from == STMT_ARRAYS ? "SELECT " : "VALUES (");
    for (int i = 0; i < t->rel->ncolumns; i++) {
        if (!rel_carries(t->rel, i)) continue;
        buf_str(&t->sql, sep);
        stmt_param(t, FROM_NEW, i);
        sep = ", ";
    }
    stmt_fills(&t->sql, t->rel, sep);
    if (t->from == STMT_ARRAYS) stmt_source(t, " FROM", nparams);
    else buf_char(&t->sql, ')');
}

/* The row as it is now, whether its key is there or not. */
static void stmt_put(struct stmt_text *t)
{
    struct rel *rel = t->rel;
    const char *sep = " ON CONFLICT (";
    stmt_insert(t, 0);
    for (int i = 0; i < rel->nident; i++, sep = ", ")
        buf_fmt(&t->sql, "%s%s", sep, rel_target(rel, rel->ident[i])->quoted);
    sep = ") DO UPDATE SET ";
    for (int i = 0; i < rel->ncolumns; i++) {
        if (!rel_carries(rel, i) || rel_target(rel, i)->identity_always) continue;
        const char *name = rel_target(rel, i)->quoted;
        buf_fmt(&t->sql, "%s%s = EXCLUDED.%s", sep, name, name);
        sep = ", ";
    }
}

/* Is there such a row?  Asked by an update that sets nothing (failures D7), and of rows that came
 * and went within a window. */
static void stmt_select(struct stmt_text *t, int nparams)
{
    buf_fmt(&t->sql, "SELECT 1 FROM %s%s t", t->rel->only, t->rel->quoted);
    stmt_source(t, ",", nparams);
}

static void stmt_update(struct stmt_text *t, int nparams)
{
    struct rel *rel = t->rel;
    const bool *set = t->st->cols->set;
    const char *sep = " SET ";
    int n = 0;
    for (int i = 0; i < rel->ncolumns; i++) n += set[i];
    if (!n) {
        stmt_select(t, nparams);
    } else {
        buf_fmt(&t->sql, "UPDATE %s%s t", rel->only, rel->quoted);
        for (int i = 0; i < rel->ncolumns; i++) {
            if (!set[i]) continue;
            buf_fmt(&t->sql, "%s%s = ", sep, rel_target(rel, i)->quoted);
            stmt_param(t, FROM_NEW, i);
            sep = ", ";
        }
        stmt_source(t, " FROM", nparams);
    }
    stmt_where(t, rel_whole(rel) ? NULL : set);
}

/* By its key alone. */
static void stmt_remove(struct stmt_text *t)
{
    struct rel *rel = t->rel;
    buf_fmt(&t->sql, "DELETE FROM %s%s t WHERE ", rel->only, rel->quoted);
    for (int i = 0; i < rel->nident; i++) {
        buf_fmt(&t->sql, "%st.%s %s ", i ? " AND " : "", rel_target(rel, rel->ident[i])->quoted,
                rel->ident_ops[i]);
        stmt_param(t, FROM_KEY, rel->ident[i]);
    }
}

static void stmt_delete(struct stmt_text *t, int nparams)
{
    buf_fmt(&t->sql, "DELETE FROM %s%s t", t->rel->only, t->rel->quoted);
    stmt_source(t, " USING", nparams);
    stmt_where(t, NULL);
}

static const char *stmt_build(struct rel *rel, struct stmt *st, enum stmt_from from,
                              struct arena *a)
{
    struct stmt_text t = {.rel = rel, .st = st, .from = from};
    int nparams = st->nparams;
    if (from != STMT_STAGED || st->op != 'I') st->nparams = 0;
    switch (st->op) {
    case 'I': stmt_insert(&t, nparams); break;
    case 'U': stmt_update(&t, nparams); break;
    case 'D': stmt_delete(&t, nparams); break;
    case 'P': stmt_put(&t); break;
    case 'R': stmt_remove(&t); break;
    case 'A':
        stmt_select(&t, nparams);
        stmt_where(&t, NULL);
        break;
    default: assert(false);
    }
    const char *sql = arena_str(a, t.sql.data);
    buf_free(&t.sql);
    return sql;
}

/* Which columns an update writes.  With the whole old row those that changed; otherwise all that
 * came, but for the key when it stayed.  false: a column that cannot be SET has changed. */
static bool rel_changed(const struct rel *rel, const struct dml *m, bool *set)
{
    bool can = true;
    for (int i = 0; i < rel->ncolumns; i++) {
        const struct value *now = &m->new.values[i];
        set[i] = rel_carries(rel, i) && now->kind != 'u';
        if (!set[i]) continue;
        if (m->old_kind == 'O')
            set[i] = m->old.values[i].kind == 'u' || !value_equal(&m->old.values[i], now);
        if (m->old_kind == 'K' && rel->columns[i].is_key)
            set[i] = !value_equal(&m->old.values[i], now);
        if (!m->old_kind && rel->columns[i].is_key) set[i] = false;
        if (set[i] && rel_target(rel, i)->identity_always) can = set[i] = false;
    }
    return can;
}

/* The key of the row a change left from. */
static const struct value *rel_key_value(const struct dml *m, int column)
{
    return m->old_kind ? &m->old.values[column] : &m->new.values[column];
}

/* One part of a key, to be added up over its columns, in whatever order. */
static uint64_t rel_hash_part(const char *name, const void *value, size_t len)
{
    return sum_bytes(sum_bytes(0, name, strlen(name)), value, len);
}

static uint64_t rel_hash_table(const char *schema, const char *table)
{
    return rel_hash_part(schema, table, strlen(table));
}

/* What a key is called between the two tasks: by names and texts, which are the same for both. */
static uint64_t rel_hash_key(const struct rel *rel, const struct value *row)
{
    uint64_t h = rel_hash_table(rel->a_schema, rel->a_name);
    for (int i = 0; i < rel->nident; i++) {
        const struct value *v = &row[rel->ident[i]];
        h += rel_hash_part(rel->a_columns[rel->ident[i]], v->data, v->len);
    }
    return h;
}

static const struct value *rel_param_value(const struct dml *m, const struct param *p)
{
    if (p->from == FROM_KEY) return rel_key_value(m, p->column);
    return p->from == FROM_OLD ? &m->old.values[p->column] : &m->new.values[p->column];
}

/* Does a unique key look at one of these columns? */
static bool rel_key_touched(const struct rel *rel, const struct unique_key *k, const bool *set)
{
    for (int i = 0; i < rel->ncolumns; i++)
        if (set[i] && k->uses[i]) return true;
    return false;
}

/* The set of columns an update writes, found or made. */
static const struct colset *rel_colset(struct rel *rel, const bool *set, struct arena *scratch)
{
    size_t size = (size_t) rel->ncolumns;
    for (struct colset *c = rel->colsets; c; c = c->next)
        if (!memcmp(c->set, set, size)) return c;
    bool keep = rel->ncolsets < REL_MAX_COLSETS;
    struct arena *a = keep ? &rel->arena : scratch;
    struct colset *c = arena_new(a, struct colset);
    bool *copy = arena_array(a, bool, size + 1);
    memcpy(copy, set, size);
    c->set = copy;
    c->kept = keep;
    for (int k = 0; k < rel->nkeys; k++) {
        if (!rel_key_touched(rel, &rel->keys[k], set)) continue;
        if (&rel->keys[k] != rel->identity) c->secondary = true;
        if (rel->keys[k].deferrable) c->deferrable = true;
    }
    if (keep) {
        c->next = rel->colsets;
        rel->colsets = c;
        rel->ncolsets++;
    }
    return c;
}

/* What two updates write together. */
static const struct colset *rel_union(struct rel *rel, const struct colset *a,
                                      const struct colset *b, struct arena *scratch)
{
    if (a == b) return a;
    bool *set = arena_array(scratch, bool, rel->ncolumns + 1);
    for (int i = 0; i < rel->ncolumns; i++) set[i] = a->set[i] || b->set[i];
    return rel_colset(rel, set, scratch);
}

/* The statement for a change, found or built.  `serial` makes names unique in the session.  A table
 * updated in ever new column sets keeps only so many; the rest, made in `scratch`, is unnamed and
 * planned each time. */
static struct stmt *rel_stmt(struct rel *rel, char op, char old_kind, const struct colset *cols,
                             int *serial, struct arena *scratch)
{
    for (struct stmt *st = rel->stmts; st; st = st->next)
        if (st->op == op && st->old_kind == old_kind && st->cols == cols) return st;
    bool keep = rel->nstmts < REL_MAX_STMTS && (!cols || cols->kept);
    struct arena *a = keep ? &rel->arena : scratch;
    struct stmt *st = arena_new(a, struct stmt);
    size_t most = 3 * (size_t) rel->ncolumns + (size_t) rel->nident + 1;
    st->rel = rel;
    st->op = op;
    st->old_kind = old_kind;
    st->cols = cols;
    st->params = arena_array(a, struct param, most);
    st->types = arena_array(a, Oid, most);
    if (keep) snprintf(st->name, sizeof st->name, "tw%d", ++*serial);
    st->sql = stmt_build(rel, st, STMT_VALUES, a);
    if (keep) {
        rel->nstmts++;
        st->next = rel->stmts;
        rel->stmts = st;
    }
    return st;
}

/* ==== 19. window ===========================================================
 * Changes waiting to be written: as they came, and folded to one net change per key.
 *
 * The folded form is what the bulk path writes: at most one statement per table, kind and set of
 * columns.  It must mean what the changes mean one by one, so whatever would blur that is not
 * folded: the window ends before it (TAKE_LATER), or is written row by row (by_row).
 *
 * What the row path would look at and the folded form would not, and what is done about it:
 *   - an old value of a later change that is not what the earlier one wrote: the row was changed
 *     in between by transactions that are not in this stream; the window ends before it
 *   - a value of a secondary unique key that comes and goes within the window, and would have met
 *     another row: the window ends before it
 *   - deletes are written first, so that keys are free for what comes; where no old image would
 *     show that a deleted row was in the way of an earlier change, the window ends
 *   - a row that came and went ('A'): doing nothing is not enough, it must not have been there */

struct change {
    struct rel *rel;
    const struct colset *cols;  /* 'U': what it writes */
    struct dml m;
    lsn_t commit_lsn;  /* of its transaction: Begin's final_lsn */
    usec commit_us;
    int64_t seq;       /* within its transaction */
    bool cannot;       /* no single statement can do it: a column that cannot be SET has changed */
    const struct dml *sent;  /* as it came, where new types refuse a value; `m` lacks it */
    bool lost;               /* a value of its key is refused: there is no row to write to */
    bool gone;               /* the table's rules leave it out */
    bool guessed;            /* its key is a cast of what USING may have made another */
};

/* While a table of several snapshots is caught up with, rows are met that are newer than the change
 * or are not there yet: nobody else has written them. */
static bool change_catches_up(const struct change *c)
{
    return c->commit_lsn < c->rel->catchup_lsn;
}

/* Does it give the row another key? */
static bool change_moves(const struct change *c)
{
    if (c->m.kind != 'U' || !c->m.old_kind) return false;
    for (int i = 0; i < c->rel->nident; i++) {
        const struct value *now = &c->m.new.values[c->rel->ident[i]];
        if (now->kind != 'u' && !value_equal(now, &c->m.old.values[c->rel->ident[i]])) return true;
    }
    return false;
}

/* What becomes of one key: first a row goes ('D'), is changed ('U') or must be absent ('A'), then
 * one may be inserted. */
struct net {
    struct rel *rel;
    const struct colset *cols;
    struct dml m;       /* kind 'D' 'U' 'A', or 'I': nothing comes before the insert */
    bool insert;        /* of m.new */
    uint32_t hash;
    uint64_t order;     /* about where its key stands among others */
    struct net *next;   /* of its statement */
    struct net *next_insert;
};

struct window {
    int64_t number;
    struct arena arena;  /* bytes and values of the changes */
    struct change *changes;
    int n, cap;
    struct net *nets;
    uint32_t nnets, cap_nets;
    uint32_t *slots;     /* hash table of keys: index into nets, plus 1 */
    uint32_t nslots;
    bool by_row;         /* holds what cannot be folded; its nets mean nothing */
    bool raw;            /* holds rows that their tables' rules have not seen: not folded yet */
    bool closed;         /* full, or what comes next must not be folded into it */
    bool settle;         /* ends a transaction that changed tables with deferrable keys */
    int most;            /* changes it takes, and bytes; 0: as many as fit */
    size_t most_bytes;
    lsn_t first_lsn;     /* commit LSN of its first transaction */
    lsn_t end_lsn;       /* of the last transaction that ends in it; 0: none does */
    usec commit_us;
    int64_t transactions;
};

enum { WINDOW_BYTES = 20 * 1024 * 1024, WINDOW_ROWS = 512, WINDOW_FEW = 256, WINDOW_RAW = 5000 };

/* What it takes of memory. */
static size_t window_bytes(const struct window *w)
{
    return w->arena.total + sizeof *w->changes * (size_t) w->n + sizeof *w->nets * w->nnets;
}

/* To so many quarters of what it takes. */
static bool window_full(const struct window *w, int quarters)
{
    size_t bytes = w->most_bytes ? w->most_bytes : WINDOW_BYTES;
    return (w->most && w->n >= w->most / 4 * quarters) ||
           window_bytes(w) > bytes / 4 * (size_t) quarters;
}

static void window_reset(struct window *w)
{
    arena_reset(&w->arena);
    if (w->nslots) memset(w->slots, 0, sizeof *w->slots * w->nslots);
    *w = (struct window){.number = w->number + 2, .arena = w->arena, .changes = w->changes,
                         .cap = w->cap, .nets = w->nets, .cap_nets = w->cap_nets,
                         .slots = w->slots, .nslots = w->nslots};
}

static void window_free(struct window *w)
{
    arena_free(&w->arena);
    mem_free(w->changes);
    mem_free(w->nets);
    mem_free(w->slots);
    *w = (struct window){0};
}

/* ---- the key table ---- */

static const struct value *net_key(const struct net *n, int column)
{
    return n->m.kind == 'I' || n->m.kind == 'A' ? &n->m.new.values[column]
                                                : rel_key_value(&n->m, column);
}

static bool net_is(const struct net *n, const struct rel *rel, const struct value *row)
{
    if (n->rel != rel) return false;
    for (int i = 0; i < rel->nident; i++)
        if (!value_equal(net_key(n, rel->ident[i]), &row[rel->ident[i]])) return false;
    return true;
}

/* Neighbours in the table next to each other: that halves what the target has to do.  Whole numbers
 * by value, other keys by their first bytes; it need not be exact. */
static uint64_t window_order(const struct rel *rel, const struct value *row)
{
    const struct value *v = &row[rel->ident[0]];
    uint32_t type = rel->columns[rel->ident[0]].type;
    uint64_t order = 0;
    if (!v->data) return 0;
    if (type == 20 || type == 21 || type == 23)  /* int8, int2, int4 (pg_type.dat) */
        return (uint64_t) strtoll(v->data, NULL, 10) ^ (uint64_t) 1 << 63;
    for (uint32_t i = 0; i < 8; i++)
        order = order << 8 | (i < v->len ? (unsigned char) v->data[i] : 0);
    return order;
}

static uint32_t window_hash(const struct rel *rel, const struct value *row)
{
    uint64_t h = rel->relid;
    for (int i = 0; i < rel->nident; i++) {
        const struct value *v = &row[rel->ident[i]];
        h = sum_bytes(h, v->data, v->len) + v->len;
    }
    return (uint32_t) (h ^ h >> 32);
}

static void window_grow_slots(struct window *w)
{
    if (w->nslots > 2 * w->nnets + 2) return;
    w->nslots = w->nslots ? 2 * w->nslots : 1024;
    mem_free(w->slots);
    w->slots = mem_resize(NULL, sizeof *w->slots * w->nslots);
    memset(w->slots, 0, sizeof *w->slots * w->nslots);
    for (uint32_t k = 0; k < w->nnets; k++) {
        if (!w->nets[k].rel->nident) continue;
        uint32_t i = w->nets[k].hash & (w->nslots - 1);
        while (w->slots[i]) i = (i + 1) & (w->nslots - 1);
        w->slots[i] = k + 1;
    }
}

static struct net *window_new_net(struct window *w, struct rel *rel)
{
    if (w->nnets == w->cap_nets) {
        w->cap_nets = w->cap_nets ? 2 * w->cap_nets : 512;
        w->nets = mem_resize(w->nets, sizeof *w->nets * w->cap_nets);
    }
    struct net *n = &w->nets[w->nnets++];
    *n = (struct net){.rel = rel};
    return n;
}

/* The net change of the row's key; one without kind if it is new. */
static struct net *window_net(struct window *w, struct rel *rel, const struct value *row)
{
    if (!rel->nident) return window_new_net(w, rel);
    window_grow_slots(w);
    uint32_t hash = window_hash(rel, row), i = hash & (w->nslots - 1);
    for (; w->slots[i]; i = (i + 1) & (w->nslots - 1)) {
        struct net *n = &w->nets[w->slots[i] - 1];
        if (n->hash == hash && net_is(n, rel, row)) return n;
    }
    w->slots[i] = w->nnets + 1;
    struct net *n = window_new_net(w, rel);
    n->hash = hash;
    n->order = window_order(rel, row);
    return n;
}

/* ---- folding ---- */

/* Did the change leave from the row that the net change makes?  Over the columns that count: those
 * written before, or all where the whole row is compared. */
static bool fold_continues(const struct net *n, const struct change *c, const bool *of)
{
    if (c->m.old_kind != 'O') return true;
    for (int i = 0; i < n->rel->ncolumns; i++) {
        const struct value *now = &n->m.new.values[i];
        if (!rel_compares(n->rel, i) || (of && !of[i]) || now->kind == 'u') continue;
        if (!value_equal(now, &c->m.old.values[i])) return false;
    }
    return true;
}

/* The later row, with what did not travel from the earlier one. */
static void fold_new(struct window *w, struct net *n, const struct change *c)
{
    struct tuple now = c->m.new;
    bool copied = false;
    for (int i = 0; i < now.n; i++) {
        if (now.values[i].kind != 'u') continue;
        if (!copied) {
            struct value *copy = arena_array(&w->arena, struct value, now.n);
            memcpy(copy, now.values, sizeof *copy * (size_t) now.n);
            now.values = copy;
            copied = true;
        }
        now.values[i] = n->m.new.values[i];
    }
    n->m.new = now;
}

/* The old values of both: of what was written before the first ones, of all else the later ones. */
static void fold_old(struct window *w, struct net *n, const struct change *c)
{
    if (c->m.old_kind != 'O') return;
    struct value *old = NULL;
    for (int i = 0; i < c->m.old.n; i++) {
        if (n->cols->set[i] || value_equal(&n->m.old.values[i], &c->m.old.values[i])) continue;
        if (!old) {
            old = arena_array(&w->arena, struct value, c->m.old.n);
            memcpy(old, n->m.old.values, sizeof *old * (size_t) c->m.old.n);
            n->m.old.values = old;
        }
        old[i] = c->m.old.values[i];
    }
}

/* Would the change hide that the net change so far may have met another row? */
static bool fold_hides(const struct net *n, const struct change *c)
{
    bool brings = n->insert ? n->rel->has_secondary : n->m.kind == 'U' && n->cols->secondary;
    return brings && (c->m.kind == 'D' || (c->m.kind == 'U' && c->cols->secondary));
}

static bool fold_insert(struct net *n, const struct change *c)
{
    if (n->insert || n->m.kind == 'U') return false;
    if (n->m.kind == 'A') n->m.kind = 'I';
    n->m.new = c->m.new;
    n->insert = true;
    return true;
}

static bool fold_update(struct window *w, struct net *n, const struct change *c)
{
    if (!n->insert && n->m.kind != 'U') return false;
    if (n->insert) {
        if (!fold_continues(n, c, NULL)) return false;
        fold_new(w, n, c);
        return true;
    }
    const struct colset *both = rel_union(n->rel, n->cols, c->cols, &w->arena);
    if (!both->kept || n->m.old_kind != c->m.old_kind) return false;
    if (!fold_continues(n, c, rel_whole(n->rel) ? NULL : n->cols->set)) return false;
    fold_old(w, n, c);
    fold_new(w, n, c);
    n->cols = both;
    return true;
}

static bool fold_delete(struct window *w, struct net *n, const struct change *c)
{
    if (!n->insert && n->m.kind != 'U') return false;
    if (!fold_continues(n, c, n->insert ? NULL : n->cols->set)) return false;
    if (n->insert) {
        n->insert = false;
        if (n->m.kind == 'I') n->m.kind = 'A';
        return true;
    }
    fold_old(w, n, c);
    if (!n->m.old_kind) {
        n->m.old_kind = c->m.old_kind;
        n->m.old = c->m.old;
    }
    n->m.kind = 'D';
    return true;
}

/* Fold a change into the window's net changes.  false: the window must end before it. */
static bool window_fold(struct window *w, const struct change *c)
{
    struct rel *rel = c->rel;
    const struct value *row = c->m.kind == 'I' || !c->m.old_kind ? c->m.new.values
                                                                 : c->m.old.values;
    struct net *n = window_net(w, rel, row);
    if (!n->m.kind) {
        n->m = c->m;
        n->cols = c->cols;
        n->insert = c->m.kind == 'I';
        return true;
    }
    if (rel->has_secondary && fold_hides(n, c)) return false;
    switch (c->m.kind) {
    case 'I': return fold_insert(n, c);
    case 'U': return fold_update(w, n, c);
    default: return fold_delete(w, n, c);
    }
}

/* ---- taking ---- */

enum take { TAKE_DONE, TAKE_LATER /* once this window is written */ };

/* Can only the row path do it?  A key that changes, a table without one, a deferrable key, triggers
 * that fire, more sets of columns than are kept. */
static bool window_needs_rows(const struct change *c)
{
    const struct rel *rel = c->rel;
    if (!rel->bulk || c->cannot || c->sent || change_catches_up(c)) return true;
    if (c->m.kind == 'I') return rel->has_deferrable;
    if (!rel->nident) return true;
    if (c->m.kind == 'D') return false;
    if (c->cols->deferrable || !c->cols->kept) return true;
    for (int i = 0; i < rel->nident; i++)
        if (c->cols->set[rel->ident[i]] || rel_key_value(&c->m, rel->ident[i])->kind == 'u')
            return true;
    return false;
}

/* Does it take values away from secondary keys after others came in?  With old images, and the same
 * keys on the source, that cannot hide anything. */
static bool window_disorders(const struct window *w, const struct change *c)
{
    struct rel *rel = c->rel;
    if (!rel->has_secondary || (c->m.old_kind == 'O' && rel->same_keys)) return false;
    bool touches = c->m.kind != 'U' || c->cols->secondary;
    if (touches && c->m.kind != 'I' && rel->brought_in == w->number) return true;
    if (touches && c->m.kind != 'D') rel->brought_in = w->number;
    return false;
}

static void window_append(struct window *w, const struct change *c)
{
    if (w->n == w->cap) {
        w->cap = w->cap ? 2 * w->cap : WINDOW_ROWS;
        w->changes = mem_resize(w->changes, sizeof *w->changes * (size_t) w->cap);
    }
    w->changes[w->n++] = *c;
    if (!w->first_lsn) w->first_lsn = c->commit_lsn;
}

/* What an update writes. */
static void window_columns(struct window *w, struct change *c)
{
    if (c->m.kind != 'U') return;
    c->cannot = !rel_changed(c->rel, &c->m, c->rel->changes);
    c->cols = rel_colset(c->rel, c->rel->changes, &w->arena);
}

/* Now that the rules have seen its rows. */
static void window_fold_all(struct window *w)
{
    if (w->nslots) memset(w->slots, 0, sizeof *w->slots * w->nslots);
    w->nnets = 0;
    w->number += 2;
    w->raw = false;
    for (int i = 0; i < w->n; i++) {
        struct change *c = &w->changes[i];
        window_columns(w, c);
        if (!w->by_row && (window_needs_rows(c) || window_disorders(w, c) || !window_fold(w, c)))
            w->by_row = true;
    }
}

/* Take a change whose bytes live in the window's arena. */
static enum take window_add(struct window *w, struct change *c)
{
    w->raw = w->raw || c->rel->rules;
    if (!w->raw) window_columns(w, c);
    bool rows = !w->raw && window_needs_rows(c);
    if (!w->raw && !w->by_row && (rows || window_disorders(w, c) || !window_fold(w, c))) {
        if (w->n > (rows ? 0 : WINDOW_FEW)) return TAKE_LATER;
        w->by_row = true;
    }
    window_append(w, c);
    w->closed = (w->by_row && w->n >= WINDOW_ROWS) || (w->raw && w->n >= WINDOW_RAW) ||
                window_full(w, 4);
#ifdef TWSYNC_HARD
    w->closed = true;
#endif
    return TAKE_DONE;
}

/* ==== 20. rules ============================================================
 * Filters and transforms of tables: SQL expressions of the job file over a row, which forward asks
 * the source about.  The copy has them in its SELECT; of the stream's rows, the old and the new of
 * each change, those of a window are asked about in one query per table, before they are folded.
 * An update that takes a row into the filter, or out of it, becomes an insert or a delete.
 *
 * The source answers and not the target, because what an expression uses is surely there. */

struct rules {
    const char *sql;
    int ncolumns;
    int *columns;       /* that the expressions name: by source column */
    int nsets;
    int *sets;          /* columns that are given a value */
    bool *of_change;    /* by set: its value depends on the change, not on the row alone */
};

/* The table's rules, or those of a partitioned table above it; *out NULL: none.  Names are A's, and
 * d may be either side. */
static status MUST_CHECK rules_find(const struct job *job, struct db *d, const char *schema,
                                    const char *table, const struct table_rules **out)
{
    static const char above_sql[] =
        "WITH RECURSIVE up(oid, depth) AS (SELECT to_regclass($1)::oid, 0 UNION ALL"
        " SELECT i.inhparent, depth + 1 FROM up JOIN pg_class c ON c.oid = up.oid AND"
        " c.relispartition JOIN pg_inherits i ON i.inhrelid = c.oid) SELECT n.nspname, c.relname"
        " FROM up JOIN pg_class c ON c.oid = up.oid JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE depth > 0 ORDER BY depth";
    struct arena a = {0};
    PGresult *r;
    *out = job_rules(job, schema, table);
    if ((*out && !(*out)->made) || !job->nrules) return TW_OK;
    bool on_b = d->node->letter == 'b';
    const char *name = on_b ? name_quoted(job, &a, schema, table)
                            : sql_quoted_table(&a, schema, table);
    status s = db_query(d, &a, "look for a partitioned table", above_sql, 1, &name, &r);
    for (int i = 0; s == TW_OK && (!*out || (*out)->made) && i < PQntuples(r); i++) {
        const char *up = PQgetvalue(r, i, 0), *above = PQgetvalue(r, i, 1);
        if (on_b) up = name_schema_of_a(job, up);
        if (on_b) above = name_table_of_a(job, up, above);
        const struct table_rules *x = job_rules(job, up, above);
        if (x) *out = x;
    }
    arena_free(&a);
    return s;
}

static bool rules_word_at(const char *text, const char *at, size_t len)
{
    static const char inside[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_$";
    bool before = at > text && (strchr(inside, at[-1]) || at[-1] & 0x80);
    bool after = at[len] && (strchr(inside, at[len]) || at[len] & 0x80);
    return !before && !after;
}

/* May the expression name this?  Rather too often than not. */
static bool rules_name(const char *expression, const char *name)
{
    size_t len = strlen(name);
    for (const char *p = expression; p && *p; p++)
        if (!strncasecmp(p, name, len) && rules_word_at(expression, p, len)) return true;
    return expression && strchr(name, '"');
}

/* Of all expressions of the table. */
static bool rules_any_name(const struct table_rules *r, const char *name)
{
    if (rules_name(r->filter, name) || rules_name(r->drop, name)) return true;
    for (int i = 0; i < r->nsets; i++)
        if (rules_name(r->sets[i].expression, name)) return true;
    return false;
}

/* May it name columns in a way that is not seen: *, U&"..."? */
static bool rules_hide(const char *expression)
{
    return expression && (strchr(expression, '*') || strcasestr(expression, "u&"));
}

/* Is the whole row meant, or may it be? */
static bool rules_take_row(const struct table_rules *r, const char *table)
{
    for (int i = 0; i < r->nsets; i++)
        if (rules_hide(r->sets[i].expression)) return true;
    return rules_any_name(r, table) || rules_hide(r->filter) || rules_hide(r->drop);
}

/* Is the row carried?  On lines of their own, for an expression may end with a comment. */
static void rules_condition(struct buf *b, const struct table_rules *r)
{
    buf_str(b, "(true");
    if (r->filter) buf_fmt(b, " AND coalesce((\n%s\n), false)", r->filter);
    if (r->drop) buf_fmt(b, " AND NOT coalesce((\n%s\n), false)", r->drop);
    buf_char(b, ')');
}

/* May the server leave out rows by the table's condition before they are sent?  It makes an insert
 * or a delete of an update that crosses it: not where that can be told. */
static bool rules_may_push(const struct table_rules *r, int operations)
{
    bool named = (r->filter && strcasestr(r->filter, "tw_")) ||
                 (r->drop && strcasestr(r->drop, "tw_"));
    for (int i = 0; i < r->nsets; i++)
        named = named || strcasestr(r->sets[i].expression, "tw_operation");
    return (r->filter || r->drop) && !named && operations == OP_ALL;
}

static const struct rule_set *rules_set_of(const struct table_rules *r, const char *column)
{
    for (int i = 0; r && i < r->nsets; i++)
        if (str_is(r->sets[i].column, column)) return &r->sets[i];
    return NULL;
}

/* Of each column: its type as the stream has it, the collation that comparisons take, its type as
 * it is declared, whether values come as an array of that type. */
static status MUST_CHECK rules_types(const struct rel *rel, struct db *from, struct arena *a,
                                     PGresult **r)
{
    struct buf oids = {0};
    for (int i = 0; i < rel->ncolumns; i++)
        buf_fmt(&oids, "%c%" PRIu32, i ? ',' : '{', rel->columns[i].type);
    buf_str(&oids, oids.len ? "}" : "{}");
    struct buf names = {0};
    for (int i = 0; i < rel->ncolumns; i++) {
        struct value v = value_of(rel->columns[i].name);
        array_value(&names, &v);
    }
    buf_str(&names, names.len ? "}" : "{}");
    const char *values[] = {oids.data, names.data, arena_fmt(a, "%" PRIu32, rel->relid)};
    status s = db_query(from, a, "read the types of columns",
                        "SELECT format_type(b.oid, -1), coalesce(l.word, ''),"
                        " coalesce(format_type(c.atttypid, c.atttypmod), format_type(u.type, -1)),"
                        " t.typarray <> 0 AND t.typdelim = ',' AND t.typcategory <> 'A' AND"
                        " t.typtype <> 'c'"
                        " FROM unnest($1::oid[], $2::text[]) WITH ORDINALITY u(type, name, n)"
                        " LEFT JOIN pg_attribute c ON c.attrelid = $3::oid AND c.attname = u.name"
                        "  AND c.atttypid = u.type AND NOT c.attisdropped"
                        " LEFT JOIN LATERAL (SELECT format(' COLLATE %I.%I', cn.nspname,"
                        "  co.collname) FROM pg_collation co JOIN pg_namespace cn ON cn.oid ="
                        "  co.collnamespace WHERE co.oid = c.attcollation AND co.collname <>"
                        "  'default') l(word) ON true"
                        " LEFT JOIN LATERAL (WITH RECURSIVE w(oid) AS (SELECT u.type UNION ALL"
                        "  SELECT d.typbasetype FROM w JOIN pg_type d ON d.oid = w.oid AND"
                        "  d.typtype = 'd') SELECT w.oid FROM w JOIN pg_type d ON d.oid = w.oid AND"
                        "  d.typtype <> 'd') b ON true"
                        " LEFT JOIN pg_type t ON t.oid = b.oid ORDER BY u.n", 3, values, r);
    buf_free(&oids);
    buf_free(&names);
    return s;
}

/* The query about rows.  Their values come as arrays, of the type itself where that is possible:
 * then each is read as the type reads it.  The row bears the table's name, and nothing but its
 * columns; what else can be named stands beside it. */
static void rules_sql(struct buf *b, const struct rel *rel, const struct table_rules *r,
                      const struct rules *x, const PGresult *types)
{
    struct buf condition = {0};
    rules_condition(&condition, r);
    buf_fmt(b, "SELECT %s", condition.data);
    for (int i = 0; i < x->nsets; i++)
        buf_fmt(b, ", CASE WHEN %s THEN ((\n%s\n)::%s)::text END", condition.data,
                rules_set_of(r, rel->columns[x->sets[i]].name)->expression,
                PQgetvalue(types, x->sets[i], 2));
    buf_str(b, " FROM unnest($1::text[], $2::bigint[]");
    for (int i = 0; i < x->ncolumns; i++)
        buf_fmt(b, ", $%d::%s[]", i + 3, db_cell_true(types, x->columns[i], 3)
                                             ? PQgetvalue(types, x->columns[i], 0) : "text");
    buf_str(b, ") WITH ORDINALITY \"tw:\"(\"tw:op\", \"tw:us\"");
    for (int i = 0; i < x->ncolumns; i++) buf_fmt(b, ", \"tw:%d\"", i);
    buf_str(b, ", \"tw:row\") CROSS JOIN LATERAL (SELECT ");
    for (int i = 0; i < x->ncolumns; i++) {
        const char *as = db_cell_true(types, x->columns[i], 3) ? "" : "::";
        buf_fmt(b, "%s\"tw:%d\"%s%s%s AS ", i ? ", " : "", i, as,
                *as ? PQgetvalue(types, x->columns[i], 0) : "",
                PQgetvalue(types, x->columns[i], 1));
        sql_ident(b, rel->columns[x->columns[i]].name);
    }
    buf_str(b, ") ");
    sql_ident(b, rel->name);
    buf_str(b, " CROSS JOIN LATERAL (SELECT \"tw:op\" AS tw_operation, 'epoch'::timestamptz +"
               " \"tw:us\" * '1 microsecond'::interval AS tw_commit_time, ");
    sql_literal(b, rel->schema);
    buf_str(b, "::text AS tw_schema, ");
    sql_literal(b, rel->name);
    buf_str(b, "::text AS tw_table) tw_names ORDER BY \"tw:row\"");
    buf_free(&condition);
}

/* Is its value another at another time? */
static bool rules_of_change(const char *expression)
{
    static const char *const names[] = {
        "tw_operation", "tw_commit_time", "now", "current_timestamp", "current_date",
        "current_time", "localtimestamp", "localtime", "clock_timestamp", "statement_timestamp",
        "transaction_timestamp", "timeofday", "random", "gen_random_uuid", "nextval", "currval"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (rules_name(expression, names[i])) return true;
    return false;
}

/* What the job says of this relation, ready to be asked. */
static status MUST_CHECK rules_prepare(struct rel *rel, const struct table_rules *r,
                                       bool two_way, struct db *from)
{
    struct rules *x = arena_new(&rel->arena, struct rules);
    struct arena scratch = {0};
    struct buf b = {0};
    PGresult *types;
    bool all = rules_take_row(r, rel->name);
    x->columns = arena_array(&rel->arena, int, rel->ncolumns + 1);
    x->sets = arena_array(&rel->arena, int, rel->ncolumns + 1);
    x->of_change = arena_array(&rel->arena, bool, rel->ncolumns + 1);
    rel->loose = arena_array(&rel->arena, bool, rel->ncolumns + 1);
    for (int i = 0; i < rel->ncolumns; i++) {
        const struct rule_set *set = rules_set_of(r, rel->columns[i].name);
        if (all || rules_any_name(r, rel->columns[i].name)) x->columns[x->ncolumns++] = i;
        if (!set) continue;
        x->of_change[x->nsets] = rules_of_change(set->expression);
        rel->loose[i] = two_way || x->of_change[x->nsets];  /* or B's own by now */
        x->sets[x->nsets++] = i;
    }
    status s = rules_types(rel, from, &scratch, &types);
    if (s == TW_OK) {
        rules_sql(&b, rel, r, x, types);
        x->sql = arena_str(&rel->arena, b.data);
        rel->rules = x;
    }
    buf_free(&b);
    arena_free(&scratch);
    return s;
}

/* Reverse: a column that forward fills is B's own afterwards, but in new rows. */
static void rules_loosen(struct rel *rel, const struct table_rules *r)
{
    rel->loose = arena_array(&rel->arena, bool, rel->ncolumns + 1);
    for (int i = 0; i < rel->ncolumns; i++)
        rel->loose[i] = rules_set_of(r, rel->a_columns[i]) != NULL;
}

/* Reverse: such columns are neither compared nor updated. */
static void rules_forget(const struct rel *rel, struct dml *m)
{
    for (int i = 0; rel->loose && i < rel->ncolumns; i++) {
        if (!rel->loose[i]) continue;
        if (m->old_kind) m->old.values[i] = (struct value){.kind = 'u'};
        if (m->kind == 'U') m->new.values[i] = (struct value){.kind = 'u'};
    }
}

/* Forward: what depends on the change is another value each time. */
static void rules_renew(const struct rel *rel, struct dml *m)
{
    for (int i = 0; i < rel->rules->nsets && m->old_kind; i++)
        if (rel->rules->of_change[i])
            m->old.values[rel->rules->sets[i]] = (struct value){.kind = 'u'};
}

/* ---- asking ---- */

/* The values of a window's rows of one table, as parameters. */
struct rules_rows {
    struct buf *arrays;
    int n;              /* of arrays */
    int rows;
};

/* What did not travel is in the old row. */
static status MUST_CHECK rules_add(struct rules_rows *q, const struct change *c,
                                   const struct tuple *row, struct tw_error *e)
{
    static const char *const names[] = {"insert", "update", "delete"};
    const struct rel *rel = c->rel;
    char us[24];
    struct value op = value_of(names[c->m.kind == 'I' ? 0 : c->m.kind == 'U' ? 1 : 2]);
    snprintf(us, sizeof us, "%" PRId64, c->commit_us);
    struct value when = value_of(us);
    array_value(&q->arrays[0], &op);
    array_value(&q->arrays[1], &when);
    for (int i = 0; i < rel->rules->ncolumns; i++) {
        int column = rel->rules->columns[i];
        const struct value *v = &row->values[column];
        if (v->kind == 'u' && c->m.old_kind == 'O') v = &c->m.old.values[column];
        if (v->kind == 'u')
            return fail(e, TW_ESCHEMA, "a change of %s lacks the value of column \"%s\", which its"
                        " rules name: the table has lost its REPLICA IDENTITY FULL", rel->quoted,
                        rel->columns[column].name);
        array_value(&q->arrays[i + 2], v);
    }
    q->rows++;
    return TW_OK;
}

static bool rules_ask_old(const struct change *c)
{
    return c->m.kind != 'I' && c->m.old_kind == 'O';
}

static status MUST_CHECK rules_gather(struct rules_rows *q, const struct window *w,
                                      const struct rel *rel, struct tw_error *e)
{
    for (int i = 0; i < w->n; i++) {
        const struct change *c = &w->changes[i];
        if (c->rel != rel) continue;
        if (rules_ask_old(c)) TRY(rules_add(q, c, &c->m.old, e));
        if (c->m.kind != 'D') TRY(rules_add(q, c, &c->m.new, e));
    }
    for (int i = 0; i < q->n; i++) {
        buf_char(&q->arrays[i], '}');
        buf_char(&q->arrays[i], '\0');
    }
    return TW_OK;
}

/* The values of a row's columns that are set; bytes go to the window. */
static void rules_fill(struct window *w, const struct rel *rel, struct tuple *row,
                       const PGresult *r, int at)
{
    for (int i = 0; i < rel->rules->nsets; i++) {
        const char *text = db_cell(r, at, 1 + i);
        row->values[rel->rules->sets[i]] = value_of(text ? arena_str(&w->arena, text) : NULL);
    }
}

/* What the change is for the target; false: nothing.  A delete that shows no old row may be of any:
 * it goes, and takes what is there. */
static bool rules_turn(struct window *w, struct change *c, const PGresult *r, int *at)
{
    bool old = true, now = false, ask_old = rules_ask_old(c);
    if (ask_old) {
        old = db_cell_true(r, *at, 0);
        rules_fill(w, c->rel, &c->m.old, r, (*at)++);
    }
    if (c->m.kind != 'D') {
        now = db_cell_true(r, *at, 0);
        rules_fill(w, c->rel, &c->m.new, r, (*at)++);
    }
    rules_renew(c->rel, &c->m);
    if (c->m.kind == 'I') return now;
    if (c->m.kind == 'D') return old;
    if (!old && !now) return false;
    if (!old) {
        for (int i = 0; i < c->m.new.n; i++)
            if (c->m.new.values[i].kind == 'u') c->m.new.values[i] = c->m.old.values[i];
        c->m.kind = 'I';
        c->m.old_kind = '\0';
    } else if (!now) {
        if (!c->m.old_kind) c->m.old = c->m.new;
        if (!c->m.old_kind) c->m.old_kind = 'K';
        c->m.kind = 'D';
    }
    return true;
}

/* The window's changes of one table. */
static status MUST_CHECK rules_run_table(struct window *w, struct rel *rel, struct db *from)
{
    struct rules_rows q = {.n = rel->rules->ncolumns + 2};
    struct arena a = {0};
    PGresult *r = NULL;
    q.arrays = arena_array(&a, struct buf, q.n);
    status s = rules_gather(&q, w, rel, from->e);
    if (s == TW_OK && q.rows) {
        const char **values = arena_array(&a, const char *, q.n);
        for (int i = 0; i < q.n; i++) values[i] = q.arrays[i].data;
        s = db_query(from, &a, arena_fmt(&a, "apply the rules of table %s", rel->quoted),
                     rel->rules->sql, q.n, values, &r);
    }
    if (s == TW_OK && r && PQntuples(r) != q.rows)
        s = fail(from->e, TW_EPROTO, "the rules of table %s gave %d answers for %d rows",
                 rel->quoted, PQntuples(r), q.rows);
    for (int i = 0, at = 0; s == TW_OK && i < w->n; i++) {
        struct change *c = &w->changes[i];
        if (c->rel == rel && !rules_turn(w, c, r, &at)) c->gone = true;
    }
    for (int i = 0; i < q.n; i++) buf_free(&q.arrays[i]);
    arena_free(&a);
    return s;
}

/* Ask about all rows of a window whose tables have rules; what is left is folded. */
static status MUST_CHECK rules_run(struct window *w, struct db *from)
{
    for (int i = 0; i < w->n; i++) {
        struct rel *rel = w->changes[i].rel;
        if (!rel->rules || rel->ruled_in == w->number) continue;
        rel->ruled_in = w->number;
        TRY(rules_run_table(w, rel, from));
    }
    int n = 0;
    for (int i = 0; i < w->n; i++)
        if (!w->changes[i].gone) w->changes[n++] = w->changes[i];
    w->n = n;
    window_fold_all(w);
    return TW_OK;
}

/* ==== 21. conf =============================================================
 * Conflicts: what a change that does not meet its row means, and what to do about it.  Pure: no
 * server, no clock, so every case can be tested by itself (tests/unit/stream.c). */

#define CONFLICT_KINDS(X)                                                                          \
    X(insert_exists) X(update_missing) X(update_exists) X(update_differs) X(update_deleted)        \
    X(delete_missing) X(delete_differs) X(multiple_unique_conflicts)

enum conflict_kind {
#define X(n) CONF_##n,
    CONFLICT_KINDS(X)
#undef X
    CONF_NKINDS,
    CONF_refused = CONF_NKINDS  /* by DDL of A that B had not: no policy decides about it */
};

static const char *const conflict_names[] = {
#define X(n) #n,
    CONFLICT_KINDS(X)
#undef X
    "refused"
};

enum conf_action {
    ACT_STOP,    /* the task is Failed: a person decides */
    ACT_SKIP,    /* the target's row stays */
    ACT_WRITE,   /* the incoming change wins; rows in its way are removed */
    ACT_INSERT,  /* the missing row is created */
};

/* Policy latest: is a change of node `from` newer than what was written last on the other side?
 * Of two at the same microsecond A's is. */
static bool conf_newer(usec theirs, usec ours, char from)
{
    return theirs > ours || (theirs == ours && from == 'a');
}

/* service.txt, "Conflict detection", and design 8: the missing cases ignore the policy.
 * `newer`: conf_newer() of this change, for policy latest. */
static enum conf_action conf_decide(enum conflict_kind kind, enum policy policy, bool newer)
{
    assert(kind < CONF_NKINDS);
    if (kind == CONF_update_missing) return ACT_INSERT;
    if (kind == CONF_delete_missing) return ACT_SKIP;
    if (policy == POLICY_FAIL) return ACT_STOP;
    if (policy == POLICY_IGNORE || (policy == POLICY_LATEST && !newer)) return ACT_SKIP;
    return kind == CONF_update_deleted ? ACT_INSERT : ACT_WRITE;
}

/* Settling: which side's row both shall hold once the streams have passed a conflict.  A pair of
 * policies names it; `named` ('a', 'b' or 0) where the pair does not.  Under latest the newer one,
 * and a row rather than none where the time of its deletion is not known.  0: nobody may say. */
struct conf_side {
    bool there;
    usec at_us;  /* when it was written, or deleted; 0: not known */
};

static char conf_winner(enum policy forward, enum policy reverse, char named,
                        const struct conf_side *a, const struct conf_side *b)
{
    if (forward == POLICY_OVERWRITE && reverse == POLICY_IGNORE) return 'a';
    if (forward == POLICY_IGNORE && reverse == POLICY_OVERWRITE) return 'b';
    if (forward != POLICY_LATEST || reverse != POLICY_LATEST) return named;
    if (a->there != b->there && (!a->at_us || !b->at_us)) return a->there ? 'a' : 'b';
    return conf_newer(a->at_us, b->at_us, 'a') ? 'a' : 'b';
}

/* Does an update that met other values fight over them?  Not where the row holds what it brings: by
 * columns, the differing ones; by rows, nothing short of the whole new row. */
static bool conf_disputed(enum merge_unit unit, int n, const bool *differs, const bool *brought)
{
    for (int i = 0; i < n; i++)
        if (!brought[i] && (differs[i] || unit == MERGE_ROWS)) return true;
    return false;
}

/* Which columns an update that met different values writes, given those it changes and those of
 * them that no longer hold their old value.  By columns, the undisturbed ones merge under every
 * policy; by rows, all or nothing.  Returns whether anything is left to write. */
static bool conf_columns(enum merge_unit unit, enum conf_action action, int n, const bool *changed,
                         const bool *differs, bool *write)
{
    bool any = false;
    for (int i = 0; i < n; i++) {
        write[i] = changed[i];
        if (action == ACT_SKIP && (unit == MERGE_ROWS || differs[i])) write[i] = false;
        if (action == ACT_WRITE && unit == MERGE_ROWS) write[i] = true;
        any = any || write[i];
    }
    return any;
}

/* ==== 22. shape ============================================================
 * Schema synchronization: what the target lacks, as statements in the order they can run.
 *
 * Deciding and doing are apart.  shape_plan() reads the source's catalog and writes a list;
 * shape_run() runs one section of it on the target.  An entry is one implicit transaction (the
 * simple protocol makes its statements one), so it is there as a whole or not at all, and its
 * question "is it there already?" makes a list that was cut short by a crash run again from the
 * start.  Definitions are put together by the server (pg_get_indexdef and its sisters), with
 * quote_all_identifiers on: a column name may be a keyword on a newer target only. */

enum ddl_section {
    DDL_BEFORE,  /* before the data: schemas, sequences, types, tables */
    DDL_KEYS,    /* after it: keys, indexes, constraints that old rows need not meet, and views,
                  * which may count on keys */
    DDL_LAST     /* when every table is filled: foreign keys, triggers, rules, row security */
};

/* What the catalog knows an entry by, to look for what it needs. */
struct ddl_id {
    char kind;     /* 'r' relation, 't' type, 'f' function, 'o' operator, 'k' index or its
                    * constraint; '\0': none refers to it */
    uint32_t oid;  /* on the source */
};

struct ddl {
    enum ddl_section section;
    struct ddl_id id;
    uint32_t table;          /* the table's oid on the source, 0 for other objects */
    bool is_primary_key;
    char key;                /* an index that tells rows apart 'k', that refuses some 'u', what
                              * needs one 'l'; 0: something else */
    bool optional;           /* rows can do without it: a failure is a warning */
    bool fires;              /* on our writes too, where they cannot be told apart */
    bool again;              /* sql brings one that differs to what it should be */
    bool follows;            /* in order, the entry before it */
    bool beside;             /* an index: it may be built while its neighbours of this kind are */
    const char *what;        /* 'table "s"."t"': completes "could not create ..." */
    const char *sql;
    const char *new_sql;     /* after sql, in the same transaction, for a new one only */
    const char *drop_sql;    /* before sql, for one that differs; NULL: not done by us */
    const char *exists_sql;  /* answers true if there is nothing to do; NULL: run always */
};

struct ddl_list {
    struct ddl *items;
    int n, cap;
    struct str_list warnings;  /* what the target will not get, in words */
};

/* What the steps of planning share. */
struct shape_plan {
    struct db *from;
    struct arena *arena;
    const struct job *job;
    const struct table_list *tables;
    const char *oids;  /* of the tables, "{1,2}" */
    const char *scope;     /* SQL: is namespace n selected as a whole? */
    const char *excluded;  /* SQL: is relation n, c left out by name? */
    struct sequence_list sequences;
    struct ddl_list *out;
};

static struct ddl *shape_add(struct shape_plan *p, enum ddl_section section, const char *what,
                             const char *sql, const char *exists_sql)
{
    struct ddl_list *l = p->out;
    if (l->n == l->cap) {
        struct ddl *old = l->items;
        l->cap = l->cap ? l->cap * 2 : 64;
        l->items = arena_array(p->arena, struct ddl, l->cap);
        if (l->n) memcpy(l->items, old, sizeof *old * (size_t) l->n);
    }
    struct ddl *d = &l->items[l->n++];
    *d = (struct ddl){.section = section, .what = what, .sql = sql, .exists_sql = exists_sql};
    return d;
}

static void PRINTF(2, 3) shape_warn(struct shape_plan *p, const char *fmt, ...)
{
    char text[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    struct str_list *w = &p->out->warnings;
    if ((w->n & (w->n - 1)) == 0) {  /* full at each power of two */
        const char **old = w->items;
        w->items = arena_array(p->arena, const char *, w->n ? w->n * 2 : 1);
        if (w->n) memcpy(w->items, old, sizeof *old * (size_t) w->n);
    }
    w->items[w->n++] = arena_str(p->arena, text);
}

/* Move the text out of b, which is empty afterwards, into the arena. */
static char *shape_take(struct arena *a, struct buf *b)
{
    char *text = arena_str(a, buf_cstr(b));
    buf_free(b);
    return text;
}

static void shape_append(struct buf *b, const char *before, const char *text, const char *after)
{
    if (text) buf_fmt(b, "%s%s%s", before, text, after);
}

static const char *shape_exists_relation(struct arena *a, const char *quoted)
{
    return arena_fmt(a, "SELECT to_regclass(%s) IS NOT NULL", sql_quoted_literal(a, quoted));
}

static const char *shape_exists_constraint(struct arena *a, const char *quoted, const char *name)
{
    return arena_fmt(a, "SELECT EXISTS (SELECT FROM pg_constraint"
                        " WHERE conrelid = to_regclass(%s) AND conname = %s)",
                     sql_quoted_literal(a, quoted), sql_quoted_literal(a, name));
}

static const char *shape_drop_constraint(struct arena *a, const char *quoted, const char *name)
{
    struct buf b = {0};
    buf_fmt(&b, "ALTER TABLE %s DROP CONSTRAINT ", quoted);
    sql_ident(&b, name);
    return shape_take(a, &b);
}

/* Parts of the queries below that differ between server versions. */
static const struct {
    const char *name;
    int since;
    const char *then, *before;
} shape_parts[] = {
    {"{generated}", 120000, "a.attgenerated", "''"},
    {"{multirange}", 140000,
     " UNION ALL SELECT r.rngtypid FROM pg_range r WHERE r.rngmultitypid = t.oid", ""},
    /* Left out where it is what the server makes of the range's name: older targets have none. */
    {"{multirange_name}", 140000,
     "(SELECT format(', MULTIRANGE_TYPE_NAME = %I.%I', mn.nspname, m.typname) FROM pg_type m"
     " JOIN pg_namespace mn ON mn.oid = m.typnamespace WHERE m.oid = r.rngmultitypid"
     " AND (m.typnamespace, m.typname::text) <> (t.typnamespace, CASE WHEN t.typname ~ 'range'"
     " THEN regexp_replace(t.typname, 'range', 'multirange') ELSE t.typname || '_multirange' END))",
     "''"},
    /* 18 keeps NOT NULL as a constraint with a name; in a child it may be the parent's alone. */
    {"{not_null}", 180000,
     "CASE WHEN nn.convalidated THEN format(' CONSTRAINT %I NOT NULL%s', nn.conname,"
     " CASE WHEN nn.connoinherit THEN ' NO INHERIT' ELSE '' END) ELSE '' END",
     "CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END"},
    {"{not_null_local}", 180000,
     "CASE WHEN nn.convalidated AND nn.conislocal THEN format(' CONSTRAINT %I NOT NULL%s',"
     " nn.conname, CASE WHEN nn.connoinherit THEN ' NO INHERIT' ELSE '' END) ELSE '' END",
     "CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END"},
    {"{not_null_inherited}", 180000,
     "CASE WHEN nn.convalidated AND nn.conislocal AND nn.coninhcount = 0 THEN"
     " format('ALTER TABLE ONLY %s ADD CONSTRAINT"
     " %I NOT NULL %I; ', q.fq, nn.conname, a.attname) ELSE '' END",
     "CASE WHEN a.attnotnull THEN format('ALTER TABLE ONLY %s ALTER COLUMN %I SET NOT NULL; ',"
     " q.fq, a.attname) ELSE '' END"},
    /* With a name of its own beside the parent's: as pg_dump writes it. */
    {"{not_null_own}", 180000, "CASE WHEN nn.conislocal AND nn.coninhcount > 0 THEN"
     " format('CONSTRAINT %I NOT NULL %I', nn.conname, a.attname) END", "NULL::text"},
    {"{not_null_join}", 180000,
     " LEFT JOIN pg_constraint nn ON nn.conrelid = a.attrelid AND nn.contype = 'n'"
     " AND nn.conkey = ARRAY[a.attnum]", ""},
    {"{stattarget}", 130000,
     "|| CASE WHEN s.stxstattarget >= 0 THEN format('; ALTER STATISTICS %I.%I SET STATISTICS %s',"
     " sn.nspname, s.stxname, s.stxstattarget) ELSE '' END", ""},
    {"{trigger_parent}", 130000, "AND g.tgparentid = 0", ""},
    /* Planning takes longer than the answer. */
    {"{plan_once}", 120000, " SET plan_cache_mode = force_generic_plan", ""},
    {"{trigger_own}", 130000, "g.tgparentid = 0", "true"},
    {"{compression}", 140000, "a.attcompression::text", "''"},
    {"{domain_not_null}", 170000,
     "(SELECT format(' CONSTRAINT %I NOT NULL', k.conname) FROM pg_constraint k"
     " WHERE k.contypid = t.oid AND k.contype = 'n')",
     "CASE WHEN t.typnotnull THEN ' NOT NULL' END"},
};

/* A word of a template and what it stands for. */
struct shape_word {
    const char *name, *text;
};

/* The template with its {parts} for this server, and `words`, filled in. */
static const char *shape_fill(struct arena *a, int version, const char *template,
                              const struct shape_word *words, size_t nwords)
{
    struct buf b = {0};
    for (const char *c = template; *c; c++) {
        size_t i = 0, k = 0, n = sizeof shape_parts / sizeof *shape_parts;
        if (*c != '{') {
            buf_char(&b, *c);
            continue;
        }
        while (k < nwords && strncmp(c, words[k].name, strlen(words[k].name))) k++;
        while (i < n && strncmp(c, shape_parts[i].name, strlen(shape_parts[i].name))) i++;
        if (k < nwords) {
            buf_str(&b, words[k].text);
            c += strlen(words[k].name) - 1;
        } else if (i < n) {
            buf_str(&b, version >= shape_parts[i].since ? shape_parts[i].then
                                                        : shape_parts[i].before);
            c += strlen(shape_parts[i].name) - 1;
        } else {
            buf_char(&b, *c);
        }
    }
    return shape_take(a, &b);
}

/* A query with its {parts} filled in for this server. */
static const char *shape_sql(struct shape_plan *p, const char *template)
{
    const struct shape_word words[] = {{"{scope}", p->scope}, {"{excluded}", p->excluded}};
    return shape_fill(p->arena, p->from->version, template, words, p->scope ? 2 : 0);
}

/* Run a query whose only parameter is the list of table oids. */
static status MUST_CHECK shape_query(struct shape_plan *p, const char *what, const char *template,
                                     PGresult **r)
{
    return db_query(p->from, p->arena, what, shape_sql(p, template), 1, &p->oids, r);
}

/* ---- schemas, sequences, types ---- */

static const char shape_schemas_sql[] =
    "SELECT n.nspname, obj_description(n.oid, 'pg_namespace') FROM pg_namespace n"
    " WHERE n.oid IN (SELECT c.relnamespace FROM pg_class c WHERE c.oid = ANY ($1::oid[])"
    " UNION SELECT t.typnamespace FROM pg_type t WHERE t.oid = ANY ($2::oid[])) OR {scope}"
    " ORDER BY 1";

/* CREATE SCHEMA IF NOT EXISTS asks for the right to create even if there is nothing to do, hence
 * the question of our own. */
static status MUST_CHECK shape_schemas(struct shape_plan *p, const PGresult *walk)
{
    struct buf relations = {0}, types = {0};
    PGresult *r;
    buf_str(&relations, p->oids);
    relations.data[--relations.len] = '\0';
    for (int i = 0; i < p->sequences.n; i++)
        buf_fmt(&relations, "%s%" PRIu32, relations.len > 1 ? "," : "", p->sequences.items[i].oid);
    buf_char(&relations, '}');
    buf_char(&types, '{');
    for (int i = 0; i < PQntuples(walk); i++)
        buf_fmt(&types, "%s%s", i ? "," : "", db_cell(walk, i, 0));
    buf_char(&types, '}');
    const char *args[] = {shape_take(p->arena, &relations), shape_take(p->arena, &types)};
    TRY(db_query(p->from, p->arena, "read the schemas", shape_sql(p, shape_schemas_sql), 2, args,
                 &r));
    for (int i = 0; i < PQntuples(r); i++) {
        struct buf sql = {0}, name = {0};
        const char *comment = db_cell(r, i, 1);
        sql_ident(&name, db_cell(r, i, 0));
        const char *q = shape_take(p->arena, &name);
        buf_fmt(&sql, "CREATE SCHEMA IF NOT EXISTS %s;", q);
        if (comment)
            buf_fmt(&sql, " COMMENT ON SCHEMA %s IS %s;", q, sql_quoted_literal(p->arena, comment));
        shape_add(p, DDL_BEFORE, arena_fmt(p->arena, "schema %s", q), shape_take(p->arena, &sql),
                  arena_fmt(p->arena, "SELECT to_regnamespace(%s) IS NOT NULL",
                            sql_quoted_literal(p->arena, q)));
    }
    return TW_OK;
}

static void shape_sequence(struct shape_plan *p, const struct sequence *s)
{
    struct buf b = {0};
    struct arena *a = p->arena;
    const char *q = sql_quoted_table(a, s->schema, s->name);
    buf_fmt(&b, "CREATE SEQUENCE %s AS %s START WITH %" PRId64 " INCREMENT BY %" PRId64, q, s->type,
            s->start, s->increment);
    buf_fmt(&b, " MINVALUE %" PRId64 " MAXVALUE %" PRId64 " CACHE %" PRId64 "%s;", s->min, s->max,
            s->cache, s->cycle ? " CYCLE" : "");
    if (s->comment)
        buf_fmt(&b, " COMMENT ON SEQUENCE %s IS %s;", q, sql_quoted_literal(a, s->comment));
    struct ddl *d = shape_add(p, DDL_BEFORE, arena_fmt(a, "sequence %s", q), shape_take(a, &b),
                              shape_exists_relation(a, q));
    d->id = (struct ddl_id){'r', s->oid};
}

/* Identity columns bring their own sequences. */
static void shape_sequences(struct shape_plan *p)
{
    for (int i = 0; i < p->sequences.n; i++)
        if (p->sequences.items[i].owned != 'i') shape_sequence(p, &p->sequences.items[i]);
}

/* After the tables: sequence s belongs to column c.  The comment of an identity sequence waits
 * until here too. */
static void shape_sequence_owner(struct shape_plan *p, const struct sequence *s)
{
    struct arena *a = p->arena;
    struct buf column = {0};
    if (!s->owned || !cat_find(p->tables, s->owner_oid)) return;
    const char *q = sql_quoted_table(a, s->schema, s->name);
    if (s->owned == 'i') {
        if (s->comment)
            shape_add(p, DDL_BEFORE, arena_fmt(a, "comment on sequence %s", q),
                      arena_fmt(a, "COMMENT ON SEQUENCE %s IS %s", q,
                                sql_quoted_literal(a, s->comment)),
                      NULL);
        return;
    }
    const char *table = sql_quoted_table(a, s->owner_schema, s->owner_table);
    sql_ident(&column, s->owner_column);
    const char *sql = arena_fmt(a, "ALTER SEQUENCE %s OWNED BY %s.%s", q, table, column.data);
    buf_free(&column);
    shape_add(p, DDL_BEFORE, arena_fmt(a, "ownership of sequence %s", q), sql,
              arena_fmt(a, "SELECT EXISTS (SELECT FROM pg_depend WHERE deptype IN ('a', 'i')"
                           " AND classid = 'pg_class'::regclass AND objid = to_regclass(%s)"
                           " AND refobjid = to_regclass(%s))",
                        sql_quoted_literal(a, q), sql_quoted_literal(a, table)));
}

#define SHAPE_COLLATE(collation, type_default)                                                     \
    "coalesce((SELECT format(' COLLATE %I.%I', ln.nspname, l.collname) FROM pg_collation l"        \
    " JOIN pg_namespace ln ON ln.oid = l.collnamespace WHERE l.oid = " collation                   \
    " AND l.oid <> " type_default "), '')"

#define SHAPE_RANGE                                                                                \
    "format('AS RANGE (SUBTYPE = %s', format_type(r.rngsubtype, NULL))"                            \
    "   || (SELECT format(', SUBTYPE_OPCLASS = %I.%I', pn.nspname, o.opcname) FROM pg_opclass o"   \
    "    JOIN pg_namespace pn ON pn.oid = o.opcnamespace WHERE o.oid = r.rngsubopc)"               \
    "   || coalesce((SELECT format(', COLLATION = %I.%I', ln.nspname, l.collname)"                 \
    "    FROM pg_collation l JOIN pg_namespace ln ON ln.oid = l.collnamespace"                     \
    "    JOIN pg_type y ON y.oid = r.rngsubtype"                                                   \
    "    WHERE l.oid = r.rngcollation AND l.oid <> y.typcollation), '')"                           \
    "   || CASE WHEN r.rngsubdiff <> 0 THEN ', SUBTYPE_DIFF = ' || r.rngsubdiff::regproc"          \
    "    ELSE '' END"                                                                              \
    "   || coalesce({multirange_name}, '') || ')'"

/* Every table and every type a column of it needs, deepest first.  A table is known by its row
 * type, so one walk orders types that contain rows of tables, children after parents, and all
 * else.  Oids below 16384 (FirstNormalObjectId) are the server's own. */
static const char shape_walk_sql[] =
    "WITH RECURSIVE walk(oid, level) AS ("
    "(SELECT c.reltype, 0 FROM pg_class c WHERE c.oid = ANY ($1::oid[])"
    " UNION ALL SELECT t.oid, 0 FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace"
    "  LEFT JOIN pg_class c ON c.oid = t.typrelid WHERE {scope}"
    "  AND (t.typtype IN ('d', 'e', 'r') OR c.relkind = 'c'))"
    " UNION SELECT e.oid, w.level + 1 FROM walk w JOIN pg_type t ON t.oid = w.oid"
    " CROSS JOIN LATERAL (SELECT t.typelem UNION ALL SELECT t.typbasetype"
    "  UNION ALL SELECT r.rngsubtype FROM pg_range r WHERE r.rngtypid = t.oid{multirange}"
    "  UNION ALL SELECT a.atttypid FROM pg_attribute a"
    "   WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped"
    "  UNION ALL SELECT o.reltype FROM pg_inherits h JOIN pg_class o ON o.oid = h.inhparent"
    "   WHERE h.inhrelid = t.typrelid) e(oid) WHERE e.oid >= 16384)"
    " SELECT t.oid, CASE WHEN c.oid = ANY ($1::oid[]) THEN c.oid END, t.typtype, n.nspname,"
    " t.typname, d.def, obj_description(t.oid, 'pg_type'), d.later,"
    " (SELECT string_agg(format('; COMMENT ON COLUMN %I.%I.%I IS %L', n.nspname, t.typname,"
    "  a.attname, x.description), '' ORDER BY a.attnum) FROM pg_description x JOIN pg_attribute a"
    "  ON a.attrelid = x.objoid AND a.attnum = x.objsubid WHERE c.relkind = 'c'"
    "  AND x.classoid = 'pg_class'::regclass AND x.objoid = c.oid),"
    " (SELECT string_agg(format('; COMMENT ON CONSTRAINT %I ON DOMAIN %I.%I IS %L', k.conname,"
    "  n.nspname, t.typname, x.description), '' ORDER BY k.conname) FROM pg_constraint k"
    "  JOIN pg_description x ON x.classoid = 'pg_constraint'::regclass AND x.objoid = k.oid"
    "  WHERE k.contypid = t.oid AND k.convalidated)"
    " FROM (SELECT w.oid, max(w.level) AS level FROM walk w GROUP BY w.oid) w"
    " JOIN pg_type t ON t.oid = w.oid JOIN pg_namespace n ON n.oid = t.typnamespace"
    " LEFT JOIN pg_class c ON c.oid = t.typrelid"
    " LEFT JOIN LATERAL ("
    "  SELECT 'AS ENUM (' || coalesce(string_agg(quote_literal(e.enumlabel), ', '"
    "   ORDER BY e.enumsortorder), '') || ')' AS def, NULL AS later FROM pg_enum e"
    "   WHERE t.typtype = 'e' AND e.enumtypid = t.oid HAVING t.typtype = 'e'"
    "  UNION ALL SELECT 'AS (' || coalesce(string_agg(quote_ident(a.attname) || ' '"
    "   || format_type(a.atttypid, a.atttypmod)"
    "   || " SHAPE_COLLATE("a.attcollation", "y.typcollation")
    "   , ', ' ORDER BY a.attnum), '') || ')', NULL FROM pg_attribute a"
    "   JOIN pg_type y ON y.oid = a.atttypid WHERE t.typtype = 'c' AND a.attrelid = t.typrelid"
    "   AND a.attnum > 0 AND NOT a.attisdropped HAVING t.typtype = 'c'"
    "  UNION ALL SELECT 'AS ' || format_type(t.typbasetype, t.typtypmod)"
    "   || " SHAPE_COLLATE("t.typcollation", "y.typcollation")
    "   || coalesce(' DEFAULT ' || pg_get_expr(t.typdefaultbin, 'pg_type'::regclass), '')"
    "   || coalesce({domain_not_null}, '')"
    "   || coalesce(k.checks, ''), k.later FROM pg_type y"
    "   CROSS JOIN LATERAL (SELECT string_agg(format(' CONSTRAINT %I %s', k.conname,"
    "    pg_get_constraintdef(k.oid)), '' ORDER BY k.conname) FILTER (WHERE k.convalidated) checks,"
    "    string_agg(format('ALTER DOMAIN %I.%I ADD CONSTRAINT %I %s; ', n.nspname, t.typname,"
    "    k.conname, pg_get_constraintdef(k.oid)), '') FILTER (WHERE NOT k.convalidated) AS later"
    "    FROM pg_constraint k WHERE k.contypid = t.oid AND k.contype = 'c') k"
    "   WHERE t.typtype = 'd' AND y.oid = t.typbasetype"
    "  UNION ALL SELECT " SHAPE_RANGE ", NULL"
    "   FROM pg_range r WHERE t.typtype = 'r' AND r.rngtypid = t.oid AND r.rngcanonical = 0) d"
    "  ON c.oid IS NULL OR c.relkind = 'c'"
    " WHERE (c.oid = ANY ($1::oid[]) OR t.typtype IN ('d', 'e', 'r', 'c') AND t.typarray <> 0)"
    " AND (c.oid IS NULL OR c.relkind = 'c' OR c.oid = ANY ($1::oid[]))"
    " AND NOT EXISTS (SELECT FROM pg_depend x WHERE x.classid IN ('pg_type'::regclass,"
    "  'pg_class'::regclass) AND x.objid = CASE x.classid WHEN 'pg_type'::regclass"
    "  THEN t.oid ELSE t.typrelid END AND x.deptype = 'e')"
    " ORDER BY w.level DESC, n.nspname, t.typname";
enum {
    WALK_OID, WALK_TABLE, WALK_TYPTYPE, WALK_SCHEMA, WALK_NAME, WALK_DEF, WALK_COMMENT, WALK_LATER,
    WALK_COLUMN_COMMENTS, WALK_CHECK_COMMENTS
};

static void shape_type(struct shape_plan *p, const PGresult *r, int row)
{
    struct arena *a = p->arena;
    struct buf b = {0};
    const char *q = sql_quoted_table(a, db_cell(r, row, WALK_SCHEMA), db_cell(r, row, WALK_NAME));
    const char *kind = *db_cell(r, row, WALK_TYPTYPE) == 'd' ? "domain" : "type";
    const char *word = *kind == 'd' ? "DOMAIN" : "TYPE";
    const char *def = db_cell(r, row, WALK_DEF), *comment = db_cell(r, row, WALK_COMMENT);
    const char *later = db_cell(r, row, WALK_LATER);
    if (!def) {
        shape_warn(p, "type %s is not created: a range type with a canonical function", q);
        return;
    }
    buf_fmt(&b, "CREATE %s %s %s", word, q, def);
    if (comment) buf_fmt(&b, "; COMMENT ON %s %s IS %s", word, q, sql_quoted_literal(a, comment));
    shape_append(&b, "", db_cell(r, row, WALK_COLUMN_COMMENTS), "");
    shape_append(&b, "", db_cell(r, row, WALK_CHECK_COMMENTS), "");
    struct ddl *d = shape_add(p, DDL_BEFORE, arena_fmt(a, "%s %s", kind, q), shape_take(a, &b),
                              arena_fmt(a, "SELECT to_regtype(%s) IS NOT NULL",
                                        sql_quoted_literal(a, q)));
    d->id = (struct ddl_id){'t', (uint32_t) db_cell_int(r, row, WALK_OID)};
    d->optional = true;  /* a table that needs it will say so */
    if (later)
        shape_add(p, DDL_KEYS, arena_fmt(a, "constraints of domain %s", q), later,
                  arena_fmt(a, "SELECT EXISTS (SELECT FROM pg_constraint WHERE contypid ="
                               " to_regtype(%s) AND NOT convalidated)", sql_quoted_literal(a, q)));
}

/* ---- tables ---- */

/* Does a check or default of table c call a function that knows the table?  Then it comes after
 * both. */
#define SHAPE_KNOWS(class, oid)                                                                    \
    "EXISTS (SELECT FROM pg_depend y JOIN pg_depend z ON z.classid = y.refclassid"                 \
    " AND z.objid = y.refobjid WHERE y.classid = '" class "'::regclass AND y.objid = " oid         \
    " AND y.refclassid = 'pg_proc'::regclass AND (z.refclassid = 'pg_type'::regclass"              \
    " AND z.refobjid = c.reltype OR z.refclassid = 'pg_class'::regclass AND z.refobjid = c.oid))"
#define SHAPE_RING SHAPE_KNOWS("pg_constraint", "k.oid")

/* One row per table, in the order of $1.  A column's definition comes twice: as in a table that
 * stands alone, and as in a child that gets its other columns from its parents.  Of a column's
 * options the documented ones are taken: 15.20 keeps a private one there (pg_attver). */
static const char shape_tables_sql[] =
    "SELECT c.oid, n.nspname, c.relname, c.relispartition, p.names, p.links,"
    " p.names IS NOT NULL AND NOT c.relispartition AND NOT k.all_local,"
    " k.defs, k.local_defs, x.checks, x.local_checks, pg_get_partkeydef(c.oid),"
    " (SELECT string_agg(format('%s%I=%L', y.prefix, z.option_name, z.option_value), ', ')"
    "  FROM (SELECT '', c.reloptions UNION ALL SELECT 'toast.', tc.reloptions"
    "   FROM pg_class tc WHERE tc.oid = c.reltoastrelid) y(prefix, options),"
    "  pg_options_to_table(y.options) z),"
    " c.relreplident, k.inherited, k.alters, x.comments, m.comments"
    " FROM unnest($1::oid[]) WITH ORDINALITY u(oid, ord) JOIN pg_class c ON c.oid = u.oid"
    " JOIN pg_namespace n ON n.oid = c.relnamespace"
    " CROSS JOIN LATERAL (SELECT format('%I.%I', n.nspname, c.relname) AS fq) q"
    /* names is NULL unless every parent is selected: then the table stands alone. */
    " CROSS JOIN LATERAL (SELECT CASE WHEN bool_and(h.inhparent = ANY ($1::oid[])) THEN"
    "   string_agg(format('%I.%I', pn.nspname, pc.relname), ', ' ORDER BY h.inhseqno) END AS names,"
    "  string_agg(CASE WHEN c.relispartition"
    "   THEN format('ALTER TABLE ONLY %I.%I ATTACH PARTITION %s %s; ', pn.nspname, pc.relname,"
    "    q.fq, pg_get_expr(c.relpartbound, c.oid))"
    "   ELSE format('ALTER TABLE %s INHERIT %I.%I; ', q.fq, pn.nspname, pc.relname) END, ''"
    "   ORDER BY h.inhseqno) AS links"
    "  FROM pg_inherits h JOIN pg_class pc ON pc.oid = h.inhparent"
    "  JOIN pg_namespace pn ON pn.oid = pc.relnamespace WHERE h.inhrelid = c.oid) p"
    " CROSS JOIN LATERAL (SELECT bool_and(a.attislocal) AS all_local,"
    "  string_agg(a.base || a.not_null, ', ' ORDER BY a.attnum) AS defs,"
    "  string_agg(CASE WHEN a.attislocal THEN a.base || a.not_null_local ELSE a.own END, ', '"
    "   ORDER BY a.attnum) AS local_defs,"
    "  string_agg(a.inherited, '' ORDER BY a.attnum) FILTER (WHERE NOT a.attislocal) AS inherited,"
    "  string_agg(a.alters, '' ORDER BY a.attnum) AS alters"
    "  FROM (SELECT a.attnum, a.attislocal, {not_null_own} AS own,"
    "    quote_ident(a.attname) || ' '"
    "    || format_type(a.atttypid, a.atttypmod)"
    "    || " SHAPE_COLLATE("a.attcollation", "t.typcollation")
    "    || CASE WHEN {generated} <> '' THEN format(' GENERATED ALWAYS AS (%s) %s', f.expr,"
    "      CASE {generated} WHEN 's' THEN 'STORED' ELSE 'VIRTUAL' END)"
    "     WHEN a.attidentity <> '' THEN coalesce(i.def, '')"
    "     ELSE coalesce(' DEFAULT ' || f.expr, '') END AS base,"
    "    {not_null} AS not_null, {not_null_local} AS not_null_local,"
    "    CASE WHEN {generated} <> '' OR a.attidentity <> '' THEN ''"
    "     WHEN f.expr IS NOT NULL THEN format('ALTER TABLE ONLY %s ALTER COLUMN %I SET DEFAULT"
    " %s; ', q.fq, a.attname, f.expr) ELSE format('ALTER TABLE ONLY %s ALTER COLUMN %I"
    " DROP DEFAULT; ', q.fq, a.attname) END || {not_null_inherited} AS inherited,"
    "    CASE WHEN a.attstorage <> t.typstorage THEN format('ALTER TABLE ONLY %s ALTER COLUMN %I"
    " SET STORAGE %s; ', q.fq, a.attname, CASE a.attstorage WHEN 'p' THEN 'PLAIN' WHEN 'e'"
    "     THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN' ELSE 'EXTENDED' END) ELSE '' END"
    "    || CASE WHEN a.attstattarget >= 0 THEN format('ALTER TABLE ONLY %s ALTER COLUMN %I"
    " SET STATISTICS %s; ', q.fq, a.attname, a.attstattarget) ELSE '' END"
    "    || coalesce((SELECT format('ALTER TABLE ONLY %s ALTER COLUMN %I SET (%s); ', q.fq,"
    "     a.attname, string_agg(format('%I=%L', z.option_name, z.option_value), ', '))"
    "     FROM pg_options_to_table(a.attoptions) z WHERE z.option_name IN ('n_distinct',"
    "     'n_distinct_inherited') HAVING count(*) > 0), '') AS alters"
    "    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid{not_null_join}"
    "    LEFT JOIN LATERAL (SELECT pg_get_expr(d.adbin, d.adrelid) AS expr FROM pg_attrdef d"
    "     WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum AND ({generated} <> ''"
    "     OR NOT " SHAPE_KNOWS("pg_attrdef", "d.oid") ")) f ON true"
    /* A partition has no sequence of its own: its identity is the root's (17 and later). */
    "    LEFT JOIN LATERAL (SELECT format(' GENERATED %s AS IDENTITY (SEQUENCE NAME %I.%I"
    " START WITH %s INCREMENT BY %s MINVALUE %s MAXVALUE %s CACHE %s%s)', CASE a.attidentity"
    "     WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END, sn.nspname, s.relname, v.seqstart,"
    "     v.seqincrement, v.seqmin, v.seqmax, v.seqcache,"
    "     CASE WHEN v.seqcycle THEN ' CYCLE' ELSE '' END) AS def FROM pg_depend d"
    "     JOIN pg_class s ON s.oid = d.objid JOIN pg_namespace sn ON sn.oid = s.relnamespace"
    "     JOIN pg_sequence v ON v.seqrelid = s.oid WHERE a.attidentity <> ''"
    "     AND d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass"
    "     AND d.refobjid = a.attrelid AND d.refobjsubid = a.attnum AND d.deptype = 'i') i ON true"
    "    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) a) k"
    /* Checks that old rows need not meet (NOT VALID) wait until the rows are there. */
    " CROSS JOIN LATERAL (SELECT string_agg(x.def, ', ' ORDER BY x.conname) AS checks,"
    "  string_agg(x.def, ', ' ORDER BY x.conname) FILTER (WHERE x.conislocal) AS local_checks,"
    "  string_agg(format('COMMENT ON CONSTRAINT %I ON %s IS %L; ', x.conname, q.fq, x.comment), ''"
    "   ORDER BY x.conname) FILTER (WHERE x.comment IS NOT NULL) AS comments"
    "  FROM (SELECT k.conname, k.conislocal, obj_description(k.oid, 'pg_constraint') AS comment,"
    "    format('CONSTRAINT %I %s', k.conname, pg_get_constraintdef(k.oid)) AS def"
    "    FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'c' AND k.convalidated"
    "    AND NOT " SHAPE_RING ") x) x"
    " CROSS JOIN LATERAL (SELECT string_agg(CASE WHEN d.objsubid = 0"
    "   THEN format('COMMENT ON TABLE %s IS %L; ', q.fq, d.description)"
    "   ELSE format('COMMENT ON COLUMN %s.%I IS %L; ', q.fq, a.attname, d.description) END, ''"
    "   ORDER BY d.objsubid) AS comments FROM pg_description d"
    "  LEFT JOIN pg_attribute a ON a.attrelid = d.objoid AND a.attnum = d.objsubid"
    "  WHERE d.objoid = c.oid AND d.classoid = 'pg_class'::regclass) m"
    " ORDER BY u.ord";
enum {
    SHAPE_OID, SHAPE_SCHEMA, SHAPE_NAME, SHAPE_IS_PARTITION, SHAPE_PARENTS, SHAPE_LINKS,
    SHAPE_CLAUSE, SHAPE_DEFS, SHAPE_LOCAL_DEFS, SHAPE_CHECKS, SHAPE_LOCAL_CHECKS, SHAPE_PARTKEY,
    SHAPE_OPTIONS, SHAPE_REPLIDENT, SHAPE_INHERITED, SHAPE_ALTERS, SHAPE_CHECK_COMMENTS,
    SHAPE_COMMENTS
};

/* A partition, and a child whose columns are all its own, is created alone and then attached: so
 * its columns keep their order.  Other children need the INHERITS clause: only that makes columns
 * which belong to the parent. */
static char *shape_table_sql(struct shape_plan *p, const PGresult *r, int row, const char *q)
{
    struct buf b = {0};
    const char *parents = db_cell(r, row, SHAPE_PARENTS);
    bool clause = db_cell_true(r, row, SHAPE_CLAUSE);
    const char *defs = db_cell(r, row, clause ? SHAPE_LOCAL_DEFS : SHAPE_DEFS);
    buf_fmt(&b, "CREATE TABLE %s (%s", q, defs ? defs : "");
    shape_append(&b, defs ? ", " : "",
                 db_cell(r, row, clause ? SHAPE_LOCAL_CHECKS : SHAPE_CHECKS), "");
    buf_char(&b, ')');
    if (clause) shape_append(&b, " INHERITS (", parents, ")");
    shape_append(&b, " PARTITION BY ", db_cell(r, row, SHAPE_PARTKEY), "");
    shape_append(&b, " WITH (", db_cell(r, row, SHAPE_OPTIONS), ")");
    buf_str(&b, "; ");
    if (clause) shape_append(&b, "", db_cell(r, row, SHAPE_INHERITED), "");
    if (!clause && parents) shape_append(&b, "", db_cell(r, row, SHAPE_LINKS), "");
    shape_append(&b, "", db_cell(r, row, SHAPE_ALTERS), "");
    shape_append(&b, "", db_cell(r, row, SHAPE_COMMENTS), "");
    shape_append(&b, "", db_cell(r, row, SHAPE_CHECK_COMMENTS), "");
    char replident = *db_cell(r, row, SHAPE_REPLIDENT);
    if (replident == 'f' || replident == 'n')
        buf_fmt(&b, "ALTER TABLE ONLY %s REPLICA IDENTITY %s;", q,
                replident == 'f' ? "FULL" : "NOTHING");
    return shape_take(p->arena, &b);
}

static void shape_table(struct shape_plan *p, const PGresult *r, int row)
{
    const char *q = sql_quoted_table(p->arena, db_cell(r, row, SHAPE_SCHEMA),
                                     db_cell(r, row, SHAPE_NAME));
    if (db_cell(r, row, SHAPE_LINKS) && !db_cell(r, row, SHAPE_PARENTS))
        shape_warn(p, "table %s stands alone on the target: its parent is not selected", q);
    struct ddl *d = shape_add(p, DDL_BEFORE, arena_fmt(p->arena, "table %s", q),
                              shape_table_sql(p, r, row, q), shape_exists_relation(p->arena, q));
    d->table = (uint32_t) db_cell_int(r, row, SHAPE_OID);
    d->id = (struct ddl_id){'r', d->table};
}

/* Types and tables in the order of the walk. */
static status MUST_CHECK shape_types_and_tables(struct shape_plan *p, const PGresult *walk)
{
    struct buf ordered = {0};
    PGresult *r;
    int next = 0;
    buf_char(&ordered, '{');
    for (int i = 0; i < PQntuples(walk); i++)
        if (db_cell(walk, i, WALK_TABLE))
            buf_fmt(&ordered, "%s%s", ordered.len > 1 ? "," : "", db_cell(walk, i, WALK_TABLE));
    buf_char(&ordered, '}');
    p->oids = shape_take(p->arena, &ordered);
    TRY(shape_query(p, "read the tables' shapes", shape_tables_sql, &r));
    for (int i = 0; i < PQntuples(walk); i++) {
        const char *table = db_cell(walk, i, WALK_TABLE);
        if (!table) {
            shape_type(p, walk, i);
            continue;
        }
        if (next == PQntuples(r) || !str_is(db_cell(r, next, SHAPE_OID), table))
            return fail(p->from->e, TW_ESCHEMA, "could not read the tables' shapes on %c: a table"
                        " was dropped meanwhile", p->from->node->letter);
        shape_table(p, r, next++);
    }
    return TW_OK;
}

/* A compression method is a matter of storage: a target that lacks it does without. */
static const char shape_compression_sql[] =
    "SELECT n.nspname, c.relname, a.attcompression, string_agg(format("
    "'ALTER TABLE ONLY %I.%I ALTER COLUMN %I SET COMPRESSION %s; ', n.nspname, c.relname,"
    " a.attname, CASE a.attcompression WHEN 'l' THEN 'lz4' ELSE 'pglz' END), '' ORDER BY a.attnum)"
    " FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid"
    " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE a.attrelid = ANY ($1::oid[])"
    " AND a.attnum > 0 AND NOT a.attisdropped AND a.attcompression <> ''"
    " GROUP BY 1, 2, 3 ORDER BY 1, 2, 3";

static status MUST_CHECK shape_compression(struct shape_plan *p)
{
    PGresult *r;
    if (p->from->version < 140000) return TW_OK;
    TRY(shape_query(p, "read the columns' compression", shape_compression_sql, &r));
    for (int i = 0; i < PQntuples(r); i++) {
        const char *q = sql_quoted_table(p->arena, db_cell(r, i, 0), db_cell(r, i, 1));
        bool lz4 = *db_cell(r, i, 2) == 'l';
        shape_add(p, DDL_BEFORE, arena_fmt(p->arena, "compression of table %s", q),
                  db_cell(r, i, 3),
                  arena_fmt(p->arena, "SELECT NOT EXISTS (SELECT FROM pg_settings WHERE name ="
                                      " 'default_toast_compression' AND '%s' = ANY (enumvals))",
                            lz4 ? "lz4" : "pglz"));
    }
    return TW_OK;
}

/* ---- functions, operators, views ---- */

/* Neither an extension's nor the server's own. */
#define SHAPE_OWN(catalog, oid)                                                                    \
    " AND NOT EXISTS (SELECT FROM pg_depend x WHERE x.deptype = 'e'"                               \
    " AND x.classid = '" catalog "'::regclass AND x.objid = " oid ")"

#define SHAPE_OPTION(word, value, given)                                                           \
    " || CASE WHEN " given " THEN ', " word " = ' || " value " ELSE '' END"

/* pg_get_functiondef() knows all but aggregates. */
#define SHAPE_FUNCTION                                                                             \
    "CASE WHEN p.prokind <> 'a' THEN pg_get_functiondef(p.oid)"                                    \
    " ELSE (SELECT format('CREATE AGGREGATE %I.%I(%s) (SFUNC = %s, STYPE = %s', n.nspname,"        \
    "  p.proname, CASE WHEN p.pronargs = 0 AND g.aggkind = 'n' THEN '*'"                           \
    "   ELSE pg_get_function_arguments(p.oid) END, g.aggtransfn::regproc,"                         \
    "  format_type(g.aggtranstype, NULL))"                                                         \
    SHAPE_OPTION("SSPACE", "g.aggtransspace", "g.aggtransspace <> 0")                              \
    SHAPE_OPTION("FINALFUNC", "g.aggfinalfn::regproc", "g.aggfinalfn <> 0")                        \
    SHAPE_OPTION("FINALFUNC_EXTRA", "'true'", "g.aggfinalextra")                                   \
    SHAPE_OPTION("FINALFUNC_MODIFY",                                                               \
                 "CASE g.aggfinalmodify WHEN 'r' THEN 'READ_ONLY' WHEN 's' THEN 'SHAREABLE'"       \
                 " ELSE 'READ_WRITE' END",                                                         \
                 "g.aggfinalmodify <> CASE g.aggkind WHEN 'n' THEN 'r' ELSE 'w' END::\"char\"")    \
    SHAPE_OPTION("COMBINEFUNC", "g.aggcombinefn::regproc", "g.aggcombinefn <> 0")                  \
    SHAPE_OPTION("SERIALFUNC", "g.aggserialfn::regproc", "g.aggserialfn <> 0")                     \
    SHAPE_OPTION("DESERIALFUNC", "g.aggdeserialfn::regproc", "g.aggdeserialfn <> 0")               \
    SHAPE_OPTION("INITCOND", "quote_literal(g.agginitval)", "g.agginitval IS NOT NULL")            \
    SHAPE_OPTION("MSFUNC", "g.aggmtransfn::regproc", "g.aggmtransfn <> 0")                         \
    SHAPE_OPTION("MINVFUNC", "g.aggminvtransfn::regproc", "g.aggminvtransfn <> 0")                 \
    SHAPE_OPTION("MSTYPE", "format_type(g.aggmtranstype, NULL)", "g.aggmtranstype <> 0")           \
    SHAPE_OPTION("MSSPACE", "g.aggmtransspace", "g.aggmtransspace <> 0")                           \
    SHAPE_OPTION("MFINALFUNC", "g.aggmfinalfn::regproc", "g.aggmfinalfn <> 0")                     \
    SHAPE_OPTION("MFINALFUNC_EXTRA", "'true'", "g.aggmfinalextra")                                 \
    SHAPE_OPTION("MFINALFUNC_MODIFY",                                                              \
                 "CASE g.aggmfinalmodify WHEN 'r' THEN 'READ_ONLY' WHEN 's' THEN 'SHAREABLE'"      \
                 " ELSE 'READ_WRITE' END",                                                         \
                 "g.aggmtransfn <> 0 AND g.aggmfinalmodify <> CASE g.aggkind WHEN 'n' THEN 'r'"    \
                 " ELSE 'w' END::\"char\"")                                                        \
    SHAPE_OPTION("MINITCOND", "quote_literal(g.aggminitval)", "g.aggminitval IS NOT NULL")         \
    SHAPE_OPTION("SORTOP", "(SELECT format('OPERATOR(%I.%s)', on_.nspname, o.oprname)"             \
                 " FROM pg_operator o JOIN pg_namespace on_ ON on_.oid = o.oprnamespace"           \
                 " WHERE o.oid = g.aggsortop)", "g.aggsortop <> 0")                                \
    SHAPE_OPTION("PARALLEL", "CASE p.proparallel WHEN 's' THEN 'SAFE' ELSE 'RESTRICTED' END",      \
                 "p.proparallel <> 'u'")                                                           \
    SHAPE_OPTION("HYPOTHETICAL", "'true'", "g.aggkind = 'h'") " || ')'"                            \
    "  FROM pg_aggregate g WHERE g.aggfnoid = p.oid) END"

static const char shape_functions_sql[] =
    "SELECT p.oid, p.oid::regprocedure, " SHAPE_FUNCTION ","
    " obj_description(p.oid, 'pg_proc'), l.lanname IN ('c', 'internal') AND p.prokind <> 'a',"
    " l.lanname, p.prosecdef AND p.proowner <> current_user::regrole"
    " FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace"
    " JOIN pg_language l ON l.oid = p.prolang WHERE {scope}" SHAPE_OWN("pg_proc", "p.oid")
    /* Those that CREATE TYPE makes for a range. */
    " AND NOT EXISTS (SELECT FROM pg_depend x WHERE x.classid = 'pg_proc'::regclass"
    "  AND x.objid = p.oid AND x.deptype = 'i')"
    " ORDER BY n.nspname, p.proname, p.oid";

/* Names in `what` and comments are quoted by the server. */
static void shape_comment(struct buf *b, const char *what, const char *quoted, const char *comment)
{
    if (!comment) return;
    buf_fmt(b, "; COMMENT ON %s %s IS ", what, quoted);
    sql_literal(b, comment);
}

static status MUST_CHECK shape_functions(struct shape_plan *p)
{
    struct arena *a = p->arena;
    PGresult *r;
    TRY(db_query(p->from, a, "read the functions", shape_sql(p, shape_functions_sql), 0, NULL, &r));
    for (int i = 0; i < PQntuples(r); i++) {
        const char *q = db_cell(r, i, 1);
        struct buf b = {0};
        if (db_cell_true(r, i, 4)) {
            shape_warn(p, "function %s is not created: it is written in %s", q, db_cell(r, i, 5));
            continue;
        }
        buf_str(&b, db_cell(r, i, 2));
        shape_comment(&b, "ROUTINE", q, db_cell(r, i, 3));
        struct ddl *d = shape_add(p, DDL_BEFORE, arena_fmt(a, "function %s", q), shape_take(a, &b),
                                  arena_fmt(a, "SELECT to_regprocedure(%s) IS NOT NULL",
                                            sql_quoted_literal(a, q)));
        d->id = (struct ddl_id){'f', (uint32_t) db_cell_int(r, i, 0)};
        d->optional = d->again = true;
        if (!db_cell_true(r, i, 6)) continue;
        /* Who wrote it would have our rights there. */
        d->new_sql = arena_fmt(a, "REVOKE EXECUTE ON ROUTINE %s FROM PUBLIC", q);
        shape_warn(p, "function %s runs with its owner's rights, which is this role on the"
                      " target: nobody else may execute it there until that is granted", q);
    }
    return TW_OK;
}

/* A shell, left by another's COMMUTATOR, has no function. */
#define SHAPE_OPERATOR                                                                             \
    "format('CREATE OPERATOR %I.%s (FUNCTION = %s', n.nspname,"                                    \
    " o.oprname, o.oprcode::regproc)"                                                              \
    SHAPE_OPTION("LEFTARG", "format_type(o.oprleft, NULL)", "o.oprleft <> 0")                      \
    SHAPE_OPTION("RIGHTARG", "format_type(o.oprright, NULL)", "o.oprright <> 0")                   \
    SHAPE_OPTION("COMMUTATOR", "(SELECT format('OPERATOR(%I.%s)', k.nspname, c.oprname)"           \
                 " FROM pg_operator c JOIN pg_namespace k ON k.oid = c.oprnamespace"               \
                 " WHERE c.oid = o.oprcom)", "o.oprcom <> 0")                                      \
    SHAPE_OPTION("NEGATOR", "(SELECT format('OPERATOR(%I.%s)', k.nspname, c.oprname)"              \
                 " FROM pg_operator c JOIN pg_namespace k ON k.oid = c.oprnamespace"               \
                 " WHERE c.oid = o.oprnegate)", "o.oprnegate <> 0")                                \
    " || CASE WHEN o.oprcanmerge THEN ', MERGES' ELSE '' END"                                      \
    " || CASE WHEN o.oprcanhash THEN ', HASHES' ELSE '' END"                                       \
    SHAPE_OPTION("RESTRICT", "o.oprrest::regproc", "o.oprrest <> 0")                               \
    SHAPE_OPTION("JOIN", "o.oprjoin::regproc", "o.oprjoin <> 0") " || ')'"

static const char shape_operators_sql[] =
    "SELECT o.oid, o.oid::regoperator, " SHAPE_OPERATOR ","
    " obj_description(o.oid, 'pg_operator')"
    " FROM pg_operator o JOIN pg_namespace n ON n.oid = o.oprnamespace"
    " WHERE {scope} AND o.oprcode <> 0" SHAPE_OWN("pg_operator", "o.oid") " ORDER BY o.oid";

static status MUST_CHECK shape_operators(struct shape_plan *p)
{
    struct arena *a = p->arena;
    PGresult *r;
    TRY(db_query(p->from, a, "read the operators", shape_sql(p, shape_operators_sql), 0, NULL, &r));
    for (int i = 0; i < PQntuples(r); i++) {
        const char *q = db_cell(r, i, 1);
        struct buf b = {0};
        buf_str(&b, db_cell(r, i, 2));
        shape_comment(&b, "OPERATOR", q, db_cell(r, i, 3));
        struct ddl *d = shape_add(p, DDL_BEFORE, arena_fmt(a, "operator %s", q), shape_take(a, &b),
                                  arena_fmt(a, "SELECT EXISTS (SELECT FROM pg_operator WHERE oid ="
                                               " to_regoperator(%s) AND oprcode <> 0)",
                                            sql_quoted_literal(a, q)));
        d->id = (struct ddl_id){'o', (uint32_t) db_cell_int(r, i, 0)};
        d->optional = true;
    }
    return TW_OK;
}

/* A materialized view is filled when its tables are, in the last section. */
static const char shape_views_sql[] =
    "SELECT c.oid, n.nspname, c.relname, c.relkind, format('CREATE %s %I.%I%s AS %s', k.word,"
    " n.nspname, c.relname, (SELECT format(' WITH (%s)', string_agg(format('%I=%L', z.option_name,"
    "  z.option_value), ', ')) FROM pg_options_to_table(c.reloptions) z HAVING count(*) > 0),"
    " rtrim(pg_get_viewdef(c.oid), ';')) || CASE c.relkind WHEN 'm' THEN ' WITH NO DATA' ELSE ''"
    " END || coalesce((SELECT string_agg(format('; ALTER VIEW %I.%I ALTER COLUMN %I SET DEFAULT"
    " %s', n.nspname, c.relname, a.attname, pg_get_expr(f.adbin, f.adrelid)), '')"
    "  FROM pg_attrdef f JOIN pg_attribute a ON a.attrelid = f.adrelid AND a.attnum = f.adnum"
    "  WHERE f.adrelid = c.oid), '')"
    " || coalesce((SELECT string_agg(CASE d.objsubid WHEN 0 THEN format('; COMMENT ON %s %I.%I"
    " IS %L', k.word, n.nspname, c.relname, d.description) ELSE format('; COMMENT ON COLUMN"
    " %I.%I.%I IS %L', n.nspname, c.relname, a.attname, d.description) END, '') FROM"
    "  pg_description d LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = d.objsubid"
    "  WHERE d.classoid = 'pg_class'::regclass AND d.objoid = c.oid), ''),"
    " c.relkind = 'm' AND c.relispopulated"
    " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace CROSS JOIN LATERAL"
    " (SELECT CASE c.relkind WHEN 'm' THEN 'MATERIALIZED VIEW' ELSE 'VIEW' END) k(word)"
    " WHERE c.relkind IN ('v', 'm') AND {scope} AND NOT {excluded}"
    SHAPE_OWN("pg_class", "c.oid") " ORDER BY c.oid";

static status MUST_CHECK shape_views(struct shape_plan *p)
{
    struct arena *a = p->arena;
    struct buf oids = {0};
    PGresult *r;
    TRY(db_query(p->from, a, "read the views", shape_sql(p, shape_views_sql), 0, NULL, &r));
    buf_str(&oids, p->oids);
    oids.data[--oids.len] = '\0';
    for (int i = 0; i < PQntuples(r); i++) {
        const char *q = sql_quoted_table(a, db_cell(r, i, 1), db_cell(r, i, 2));
        struct ddl *d = shape_add(p, DDL_KEYS, arena_fmt(a, "view %s", q), db_cell(r, i, 4),
                                  shape_exists_relation(a, q));
        d->id = (struct ddl_id){'r', (uint32_t) db_cell_int(r, i, 0)};
        d->optional = true;
        d->drop_sql = arena_fmt(a, "DROP %s %s", *db_cell(r, i, 3) == 'm' ? "MATERIALIZED VIEW"
                                                                          : "VIEW", q);
        buf_fmt(&oids, "%s%s", oids.len > 1 ? "," : "", db_cell(r, i, 0));
        if (!db_cell_true(r, i, 5)) continue;
        d = shape_add(p, DDL_LAST, arena_fmt(a, "rows of materialized view %s", q),
                      arena_fmt(a, "REFRESH MATERIALIZED VIEW %s", q),
                      arena_fmt(a, "SELECT relispopulated FROM pg_class WHERE oid ="
                                   " to_regclass(%s)", sql_quoted_literal(a, q)));
        d->optional = d->follows = true;
    }
    buf_char(&oids, '}');
    p->oids = shape_take(a, &oids);  /* what follows belongs to tables and views */
    return TW_OK;
}

/* ---- keys, indexes, late checks ---- */

/* Indexes with the constraint they carry, if any; leaves before partitioned tables, primary keys
 * first.  Everything is created by itself under its own name (ONLY), then children are attached:
 * an index made through the root would name its children anew.  Invalid leaf indexes are the
 * remains of a failed CREATE INDEX CONCURRENTLY. */
static const char shape_indexes_sql[] =
    "SELECT i.indrelid, tn.nspname, t.relname, xn.nspname, x.relname, k.conname, k.contype,"
    " CASE WHEN k.oid IS NULL THEN pg_get_indexdef(i.indexrelid) || '; '"
    "  ELSE format('ALTER TABLE ONLY %I.%I ADD CONSTRAINT %I %s; ', tn.nspname, t.relname,"
    "   k.conname, pg_get_constraintdef(k.oid)) || coalesce((SELECT format("
    "   'ALTER INDEX %I.%I SET (%s); ', xn.nspname, x.relname,"
    "   string_agg(format('%I=%L', z.option_name, z.option_value), ', '))"
    "   FROM pg_options_to_table(x.reloptions) z HAVING count(*) > 0), '') END"
    " || CASE WHEN m.description IS NULL THEN '' ELSE format('COMMENT ON INDEX %I.%I IS %L; ',"
    "   xn.nspname, x.relname, m.description) END"
    " || CASE WHEN km.description IS NULL THEN '' ELSE format('COMMENT ON CONSTRAINT %I ON %I.%I"
    " IS %L; ', k.conname, tn.nspname, t.relname, km.description) END"
    " || CASE WHEN i.indisclustered THEN format('ALTER TABLE %I.%I CLUSTER ON %I; ', tn.nspname,"
    "   t.relname, x.relname) ELSE '' END,"
    " i.indisreplident, on_.nspname, o.relname, CASE WHEN i.indisunique AND i.indpred IS NULL"
    "  AND i.indexprs IS NULL AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = t.oid"
    "   AND NOT a.attnotnull AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]))"
    "  THEN 'k' WHEN i.indisunique OR k.contype = 'x' THEN 'u' ELSE '' END"
    " FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid"
    " JOIN pg_namespace tn ON tn.oid = t.relnamespace"
    " JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_namespace xn ON xn.oid = x.relnamespace"
    " LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid"
    "  AND k.contype IN ('p', 'u', 'x')"
    " LEFT JOIN pg_description m ON m.classoid = 'pg_class'::regclass AND m.objoid = x.oid"
    "  AND m.objsubid = 0"
    " LEFT JOIN pg_description km ON km.classoid = 'pg_constraint'::regclass AND km.objoid = k.oid"
    " LEFT JOIN pg_inherits h ON h.inhrelid = i.indexrelid"
    " LEFT JOIN pg_index oi ON oi.indexrelid = h.inhparent AND oi.indrelid = ANY ($1::oid[])"
    " LEFT JOIN pg_class o ON o.oid = oi.indexrelid"
    " LEFT JOIN pg_namespace on_ ON on_.oid = o.relnamespace"
    " WHERE i.indrelid = ANY ($1::oid[]) AND (i.indisvalid OR x.relkind = 'I')"
    " ORDER BY t.relkind = 'p', i.indisprimary DESC, k.oid IS NULL, i.indisunique DESC,"
    " tn.nspname, t.relname, x.relname";
enum {
    INDEX_TABLE, INDEX_TABLE_SCHEMA, INDEX_TABLE_NAME, INDEX_SCHEMA, INDEX_NAME, INDEX_CONSTRAINT,
    INDEX_CONTYPE, INDEX_SQL, INDEX_IS_IDENTITY, INDEX_PARENT_SCHEMA, INDEX_PARENT,
    INDEX_KEY
};

static void shape_index(struct shape_plan *p, const PGresult *r, int row)
{
    struct arena *a = p->arena;
    const char *table = sql_quoted_table(a, db_cell(r, row, INDEX_TABLE_SCHEMA),
                                         db_cell(r, row, INDEX_TABLE_NAME));
    const char *index = sql_quoted_table(a, db_cell(r, row, INDEX_SCHEMA),
                                         db_cell(r, row, INDEX_NAME));
    const char *constraint = db_cell(r, row, INDEX_CONSTRAINT);
    const char *contype = db_cell(r, row, INDEX_CONTYPE);
    bool primary = contype && *contype == 'p';
    struct buf what = {0};
    if (constraint) {
        buf_str(&what, primary ? "primary key " : "constraint ");
        sql_ident(&what, constraint);
        buf_fmt(&what, " of table %s", table);
    } else {
        buf_fmt(&what, "index %s", index);
    }
    struct ddl *d = shape_add(p, DDL_KEYS, shape_take(a, &what), db_cell(r, row, INDEX_SQL),
                              constraint ? shape_exists_constraint(a, table, constraint)
                                         : shape_exists_relation(a, index));
    d->table = (uint32_t) db_cell_int(r, row, INDEX_TABLE);
    d->is_primary_key = primary;
    d->key = *db_cell(r, row, INDEX_KEY);
    d->optional = !cat_find(p->tables, d->table);  /* of a materialized view */
    d->beside = !d->optional;
    d->drop_sql = constraint ? shape_drop_constraint(a, table, constraint)
                             : arena_fmt(a, "DROP INDEX %s", index);
}

static void shape_index_attach(struct shape_plan *p, const PGresult *r, int row)
{
    struct arena *a = p->arena;
    const char *index = sql_quoted_table(a, db_cell(r, row, INDEX_SCHEMA),
                                         db_cell(r, row, INDEX_NAME));
    const char *parent = sql_quoted_table(a, db_cell(r, row, INDEX_PARENT_SCHEMA),
                                          db_cell(r, row, INDEX_PARENT));
    struct ddl *d = shape_add(
        p, DDL_KEYS, arena_fmt(a, "link of index %s to %s", index, parent),
        arena_fmt(a, "ALTER INDEX %s ATTACH PARTITION %s", parent, index),
        arena_fmt(a, "SELECT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = to_regclass(%s)"
                     " AND inhparent = to_regclass(%s))",
                  sql_quoted_literal(a, index), sql_quoted_literal(a, parent)));
    d->table = (uint32_t) db_cell_int(r, row, INDEX_TABLE);
    d->key = 'l';
}

/* Only where the target's table still has the default: FULL may have been set for this job. */
static void shape_replica_index(struct shape_plan *p, const PGresult *r, int row)
{
    struct arena *a = p->arena;
    struct buf b = {0};
    const char *table = sql_quoted_table(a, db_cell(r, row, INDEX_TABLE_SCHEMA),
                                         db_cell(r, row, INDEX_TABLE_NAME));
    buf_fmt(&b, "ALTER TABLE ONLY %s REPLICA IDENTITY USING INDEX ", table);
    sql_ident(&b, db_cell(r, row, INDEX_NAME));
    struct ddl *d = shape_add(
        p, DDL_KEYS, arena_fmt(a, "replica identity of table %s", table), shape_take(a, &b),
        arena_fmt(a, "SELECT relreplident <> 'd' FROM pg_class WHERE oid = to_regclass(%s)",
                  sql_quoted_literal(a, table)));
    d->table = (uint32_t) db_cell_int(r, row, INDEX_TABLE);
    d->key = 'l';
}

static status MUST_CHECK shape_indexes(struct shape_plan *p)
{
    PGresult *r;
    TRY(shape_query(p, "read the indexes", shape_indexes_sql, &r));
    for (int i = 0; i < PQntuples(r); i++) shape_index(p, r, i);
    for (int i = 0; i < PQntuples(r); i++)
        if (db_cell(r, i, INDEX_PARENT)) shape_index_attach(p, r, i);
    for (int i = 0; i < PQntuples(r); i++)
        if (db_cell_true(r, i, INDEX_IS_IDENTITY)) shape_replica_index(p, r, i);
    return TW_OK;
}

/* Checks (and, since 18, NOT NULL) that are NOT VALID: rows older than them may break them, so they
 * come after the copy; and those that wait for a function. */
static const char shape_late_checks_sql[] =
    "SELECT c.oid, n.nspname, c.relname, k.conname, format('ALTER TABLE %I.%I ADD CONSTRAINT %I"
    " %s; ', n.nspname, c.relname, k.conname, pg_get_constraintdef(k.oid))"
    " || CASE WHEN m.description IS NULL THEN '' ELSE format('COMMENT ON CONSTRAINT %I ON %I.%I"
    " IS %L; ', k.conname, n.nspname, c.relname, m.description) END"
    " FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid"
    " JOIN pg_namespace n ON n.oid = c.relnamespace"
    " LEFT JOIN pg_description m ON m.classoid = 'pg_constraint'::regclass AND m.objoid = k.oid"
    " WHERE k.conrelid = ANY ($1::oid[]) AND k.contype IN ('c', 'n')"
    " AND (NOT k.convalidated OR k.contype = 'c' AND " SHAPE_RING ") AND k.conislocal"
    " ORDER BY n.nspname, c.relname, k.conname";

/* Foreign keys, those of partitioned tables once: the server gives them to the partitions, and to
 * the partitions of the referenced table, as constraints with a parent. */
static const char shape_foreign_keys_sql[] =
    "SELECT c.oid, n.nspname, c.relname, k.conname, format('ALTER TABLE %I.%I ADD CONSTRAINT %I"
    " %s; ', n.nspname, c.relname, k.conname, pg_get_constraintdef(k.oid))"
    " || CASE WHEN m.description IS NULL THEN '' ELSE format('COMMENT ON CONSTRAINT %I ON %I.%I"
    " IS %L; ', k.conname, n.nspname, c.relname, m.description) END,"
    " k.confrelid = ANY ($1::oid[]), k.confrelid::regclass"
    " FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid"
    " JOIN pg_namespace n ON n.oid = c.relnamespace"
    " LEFT JOIN pg_description m ON m.classoid = 'pg_constraint'::regclass AND m.objoid = k.oid"
    " WHERE k.conrelid = ANY ($1::oid[]) AND k.contype = 'f' AND NOT EXISTS (SELECT"
    " FROM pg_constraint o WHERE o.oid = k.conparentid AND o.conrelid = ANY ($1::oid[]))"
    " ORDER BY n.nspname, c.relname, k.conname";

/* One statement per constraint of either query above. */
static status MUST_CHECK shape_constraints(struct shape_plan *p, enum ddl_section section,
                                           const char *kind, const char *query)
{
    struct arena *a = p->arena;
    PGresult *r;
    TRY(shape_query(p, arena_fmt(a, "read each %s", kind), query, &r));
    for (int i = 0; i < PQntuples(r); i++) {
        const char *table = sql_quoted_table(a, db_cell(r, i, 1), db_cell(r, i, 2));
        const char *name = db_cell(r, i, 3);
        struct buf what = {0};
        buf_fmt(&what, "%s ", kind);
        sql_ident(&what, name);
        buf_fmt(&what, " of table %s", table);
        if (PQnfields(r) > 5 && !db_cell_true(r, i, 5)) {
            shape_warn(p, "%s is not created: it refers to %s, which is not selected",
                       buf_cstr(&what), db_cell(r, i, 6));
            buf_free(&what);
            continue;
        }
        struct ddl *d = shape_add(p, section, shape_take(a, &what), db_cell(r, i, 4),
                                  shape_exists_constraint(a, table, name));
        d->table = (uint32_t) db_cell_int(r, i, 0);
        d->drop_sql = shape_drop_constraint(a, table, name);
    }
    return TW_OK;
}

/* ---- what belongs to a table or view ---- */

/* Rows of: what it is, the statements that make it, whether it is there, the statement that takes
 * it away, whether it is a view's, which we never write. */
static status MUST_CHECK shape_belongings(struct shape_plan *p, enum ddl_section section,
                                          const char *what, const char *query, bool fires)
{
    PGresult *r;
    TRY(shape_query(p, what, query, &r));
    for (int i = 0; i < PQntuples(r); i++) {
        struct ddl *d = shape_add(p, section, db_cell(r, i, 0), db_cell(r, i, 1),
                                  db_cell(r, i, 2));
        d->optional = true;
        d->fires = fires && !(PQnfields(r) > 4 && db_cell_true(r, i, 4));
        d->drop_sql = PQnfields(r) > 3 ? db_cell(r, i, 3) : NULL;
        d->again = !d->drop_sql;
    }
    return TW_OK;
}

/* Defaults that wait for a function. */
static const char shape_late_defaults_sql[] =
    "SELECT format('default of column %I of table %I.%I', a.attname, n.nspname, c.relname),"
    " format('ALTER TABLE ONLY %I.%I ALTER COLUMN %I SET DEFAULT %s', n.nspname, c.relname,"
    "  a.attname, pg_get_expr(f.adbin, f.adrelid)),"
    " format('SELECT EXISTS (SELECT FROM pg_attrdef f JOIN pg_attribute a ON a.attrelid ="
    " f.adrelid AND a.attnum = f.adnum WHERE f.adrelid = to_regclass(%L) AND a.attname = %L)',"
    "  format('%I.%I', n.nspname, c.relname), a.attname)"
    " FROM pg_attrdef f JOIN pg_class c ON c.oid = f.adrelid AND c.relkind IN ('r', 'p')"
    " JOIN pg_namespace n ON n.oid = c.relnamespace"
    " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = f.adnum"
    " WHERE c.oid = ANY ($1::oid[]) AND {generated} = '' AND "
    SHAPE_KNOWS("pg_attrdef", "f.oid") " ORDER BY n.nspname, c.relname, a.attnum";

static const char shape_statistics_sql[] =
    "SELECT format('statistics %I.%I', sn.nspname, s.stxname), pg_get_statisticsobjdef(s.oid)"
    " {stattarget}"
    " || coalesce(format('; COMMENT ON STATISTICS %I.%I IS ', sn.nspname, s.stxname)"
    "  || quote_literal(obj_description(s.oid, 'pg_statistic_ext')), ''),"
    " format('SELECT EXISTS (SELECT FROM pg_statistic_ext s JOIN pg_namespace n"
    " ON n.oid = s.stxnamespace WHERE n.nspname = %L AND s.stxname = %L)', sn.nspname, s.stxname),"
    " format('DROP STATISTICS %I.%I', sn.nspname, s.stxname)"
    " FROM pg_statistic_ext s JOIN pg_namespace sn ON sn.oid = s.stxnamespace"
    " WHERE s.stxrelid = ANY ($1::oid[]) ORDER BY sn.nspname, s.stxname";

/* Those of a partition that its parent's brought are made with the parent's. */
static const char shape_triggers_sql[] =
    "SELECT format('trigger %I on %I.%I', g.tgname, n.nspname, c.relname),"
    " pg_get_triggerdef(g.oid) || CASE g.tgenabled WHEN 'O' THEN '' ELSE format("
    "  '; ALTER TABLE ONLY %I.%I %s TRIGGER %I', n.nspname, c.relname, CASE g.tgenabled WHEN 'D'"
    "  THEN 'DISABLE' WHEN 'A' THEN 'ENABLE ALWAYS' ELSE 'ENABLE REPLICA' END, g.tgname) END"
    " || coalesce(format('; COMMENT ON TRIGGER %I ON %I.%I IS ', g.tgname, n.nspname, c.relname)"
    "  || quote_literal(obj_description(g.oid, 'pg_trigger')), ''),"
    " format('SELECT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass(%L)"
    " AND tgname = %L)', format('%I.%I', n.nspname, c.relname), g.tgname),"
    " format('DROP TRIGGER %I ON %I.%I', g.tgname, n.nspname, c.relname), c.relkind = 'v'"
    " FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid"
    " JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE g.tgrelid = ANY ($1::oid[]) AND NOT g.tgisinternal AND {scope} {trigger_parent}"
    " ORDER BY c.relkind = 'p' DESC, n.nspname, c.relname, g.tgname";

/* A partition's triggers come with its parent's, enabled or not by themselves. */
static const char shape_partition_triggers_sql[] =
    "SELECT format('state of trigger %I on %I.%I', g.tgname, n.nspname, c.relname), format("
    "  'ALTER TABLE ONLY %I.%I %s TRIGGER %I', n.nspname, c.relname, CASE g.tgenabled WHEN 'D' THEN"
    "  'DISABLE' WHEN 'A' THEN 'ENABLE ALWAYS' WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'ENABLE' END,"
    "  g.tgname), format('SELECT tgenabled = %L FROM pg_trigger WHERE tgrelid = to_regclass(%L)"
    " AND tgname = %L', g.tgenabled, format('%I.%I', n.nspname, c.relname), g.tgname)"
    " FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid"
    " JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE g.tgrelid = ANY ($1::oid[]) AND g.tgparentid <> 0 AND NOT g.tgisinternal AND {scope}"
    " ORDER BY 1";

static const char shape_rules_sql[] =
    "SELECT format('rule %I on %I.%I', w.rulename, n.nspname, c.relname),"
    " rtrim(pg_get_ruledef(w.oid), ';') || CASE w.ev_enabled WHEN 'O' THEN '' ELSE format("
    "  '; ALTER TABLE %I.%I %s RULE %I', n.nspname, c.relname, CASE w.ev_enabled WHEN 'D' THEN"
    "  'DISABLE' WHEN 'A' THEN 'ENABLE ALWAYS' ELSE 'ENABLE REPLICA' END, w.rulename) END"
    " || coalesce(format('; COMMENT ON RULE %I ON %I.%I IS ', w.rulename, n.nspname, c.relname)"
    "  || quote_literal(obj_description(w.oid, 'pg_rewrite')), ''),"
    " format('SELECT EXISTS (SELECT FROM pg_rewrite WHERE ev_class = to_regclass(%L)"
    " AND rulename = %L)', format('%I.%I', n.nspname, c.relname), w.rulename),"
    " format('DROP RULE %I ON %I.%I', w.rulename, n.nspname, c.relname), c.relkind = 'v'"
    " FROM pg_rewrite w JOIN pg_class c ON c.oid = w.ev_class"
    " JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE w.ev_class = ANY ($1::oid[]) AND w.rulename <> '_RETURN' AND {scope}"
    " ORDER BY n.nspname, c.relname, w.rulename";

/* Policies come before the switch that makes them count. */
static const char shape_policies_sql[] =
    "SELECT format('policy %I on %I.%I', y.polname, n.nspname, c.relname), format("
    " 'CREATE POLICY %I ON %I.%I AS %s FOR %s TO %s%s%s', y.polname, n.nspname, c.relname,"
    "  CASE WHEN y.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,"
    "  CASE y.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE'"
    "   WHEN 'd' THEN 'DELETE' ELSE 'ALL' END,"
    "  (SELECT string_agg(CASE u WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(u)) END,"
    "   ', ') FROM unnest(y.polroles) u),"
    "  ' USING (' || pg_get_expr(y.polqual, y.polrelid) || ')',"
    "  ' WITH CHECK (' || pg_get_expr(y.polwithcheck, y.polrelid) || ')')"
    " || coalesce(format('; COMMENT ON POLICY %I ON %I.%I IS ', y.polname, n.nspname, c.relname)"
    "  || quote_literal(obj_description(y.oid, 'pg_policy')), ''),"
    " format('SELECT EXISTS (SELECT FROM pg_policy WHERE polrelid = to_regclass(%L)"
    " AND polname = %L)', format('%I.%I', n.nspname, c.relname), y.polname),"
    " format('DROP POLICY %I ON %I.%I', y.polname, n.nspname, c.relname)"
    " FROM pg_policy y JOIN pg_class c ON c.oid = y.polrelid"
    " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE y.polrelid = ANY ($1::oid[])"
    " ORDER BY n.nspname, c.relname, y.polname";

static const char shape_row_security_sql[] =
    "SELECT format('row security of %I.%I', n.nspname, c.relname), format("
    " 'ALTER TABLE ONLY %I.%I %s', n.nspname, c.relname, concat_ws(', ', CASE WHEN c.relrowsecurity"
    "  THEN 'ENABLE ROW LEVEL SECURITY' END, CASE WHEN c.relforcerowsecurity"
    "  THEN 'FORCE ROW LEVEL SECURITY' END)),"
    " format('SELECT relrowsecurity = %L AND relforcerowsecurity = %L FROM pg_class WHERE oid ="
    " to_regclass(%L)', c.relrowsecurity, c.relforcerowsecurity, format('%I.%I', n.nspname,"
    " c.relname)) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE c.oid = ANY ($1::oid[]) AND (c.relrowsecurity OR c.relforcerowsecurity)"
    " ORDER BY n.nspname, c.relname";

/* ---- order ---- */

/* Who needs whom, by the entries' ids.  An array type is its element, a table's row type the table,
 * a default, a check or a view's query whose it is.  What ties a sequence or a partition to its
 * owner (deptypes 'a', 'i') is in the order of the walk already. */
#define SHAPE_OWNER(class, oid)                                                                    \
    "(SELECT 'r', f.adrelid FROM pg_attrdef f WHERE " class " = 'pg_attrdef'::regclass"            \
    "  AND f.oid = " oid                                                                           \
    " UNION ALL SELECT CASE WHEN k.contype <> 'c' THEN 'k' WHEN k.conrelid = 0 THEN 't'"           \
    "   ELSE 'r' END, CASE WHEN k.contype <> 'c' THEN k.oid WHEN k.conrelid = 0 THEN k.contypid"   \
    "   ELSE k.conrelid END FROM pg_constraint k LEFT JOIN pg_class c ON c.oid = k.conrelid"       \
    "  WHERE " class " = 'pg_constraint'::regclass AND k.oid = " oid                               \
    "  AND (k.contype IN ('p', 'u') OR k.contype = 'c' AND NOT " SHAPE_RING ")"                    \
    " UNION ALL SELECT 'r', w.ev_class FROM pg_rewrite w WHERE " class " = 'pg_rewrite'::regclass" \
    "  AND w.oid = " oid " AND w.rulename = '_RETURN'"                                             \
    " UNION ALL SELECT CASE WHEN c.relkind = 'c' THEN 't' WHEN c.relkind IN ('i', 'I') THEN 'k'"   \
    "   ELSE 'r' END, CASE c.relkind WHEN 'c' THEN c.reltype ELSE coalesce(i.refobjid, c.oid) END" \
    "  FROM pg_class c LEFT JOIN pg_depend i ON c.relkind = 'S' AND i.deptype = 'i'"               \
    "   AND i.classid = 'pg_class'::regclass AND i.objid = c.oid"                                  \
    "  WHERE " class " = 'pg_class'::regclass AND c.oid = " oid                                    \
    " UNION ALL SELECT CASE WHEN c.relkind <> 'c' THEN 'r' ELSE 't' END,"                          \
    "  CASE WHEN c.relkind <> 'c' THEN c.oid ELSE e.oid END FROM pg_type t JOIN pg_type e"         \
    "  ON e.oid = CASE WHEN t.typelem <> 0 AND t.typlen = -1 THEN t.typelem ELSE t.oid END"        \
    "  LEFT JOIN pg_class c ON c.oid = e.typrelid"                                                 \
    "  WHERE " class " = 'pg_type'::regclass AND t.oid = " oid                                     \
    " UNION ALL SELECT 'f', " oid " WHERE " class " = 'pg_proc'::regclass"                         \
    " UNION ALL SELECT 'o', " oid " WHERE " class " = 'pg_operator'::regclass)"

static const char shape_needs_sql[] =
    "SELECT DISTINCT a.kind, a.oid, b.kind, b.oid FROM pg_depend d"
    " CROSS JOIN LATERAL " SHAPE_OWNER("d.classid", "d.objid") " a(kind, oid)"
    " CROSS JOIN LATERAL " SHAPE_OWNER("d.refclassid", "d.refobjid") " b(kind, oid)"
    " WHERE d.deptype = 'n' AND d.refobjid >= 16384 AND (a.kind, a.oid) <> (b.kind, b.oid)"
    " ORDER BY 1, 2";

struct need {
    struct ddl_id who, whom;
};

struct ddl_at {
    struct ddl_id id;
    int at;  /* in the list */
};

/* The order being made: every entry once, after those it needs. */
struct shape_order {
    const struct ddl_list *list;
    struct need *needs;   /* by who */
    int nneeds;
    struct ddl_at *by_id; /* entries that have one */
    int nby_id;
    bool *seen;
    int *out, n;
};

static int id_order(struct ddl_id a, struct ddl_id b)
{
    if (a.kind != b.kind) return a.kind < b.kind ? -1 : 1;
    return a.oid < b.oid ? -1 : a.oid > b.oid;
}

static int need_order(const void *a, const void *b)
{
    return id_order(((const struct need *) a)->who, ((const struct need *) b)->who);
}

static int at_order(const void *a, const void *b)
{
    return id_order(((const struct ddl_at *) a)->id, ((const struct ddl_at *) b)->id);
}

/* The first need of an entry, by halves. */
static int order_first_need(const struct shape_order *o, struct ddl_id who)
{
    int low = 0, high = o->nneeds;
    while (low < high) {
        int mid = (low + high) / 2;
        if (id_order(o->needs[mid].who, who) < 0) low = mid + 1;
        else high = mid;
    }
    return low;
}

/* An entry after what it needs.  One that rows can do without goes to the section of what it needs;
 * a ring of needs is cut where it closes. */
static void order_visit(struct shape_order *o, int i)
{
    struct ddl *d = &o->list->items[i];
    if (o->seen[i] || (d->follows && !o->seen[i - 1])) return;
    o->seen[i] = true;
    int n = d->id.kind ? order_first_need(o, d->id) : o->nneeds;
    for (; n < o->nneeds && !id_order(o->needs[n].who, d->id); n++) {
        bool on_key = o->needs[n].whom.kind == 'k';  /* GROUP BY a primary key */
        if (on_key && d->optional && d->section < DDL_KEYS) d->section = DDL_KEYS;
        struct ddl_at key = {.id = o->needs[n].whom};
        const struct ddl_at *on = bsearch(&key, o->by_id, (size_t) o->nby_id, sizeof key, at_order);
        if (!on) continue;
        order_visit(o, on->at);
        enum ddl_section section = o->list->items[on->at].section;
        if (section > d->section && d->optional) d->section = section;
    }
    o->out[o->n++] = i;
    if (i + 1 < o->list->n && d[1].follows) order_visit(o, i + 1);
}

/* Views count on keys: after the data, what rows can do without comes behind the rest. */
static void order_apply(struct shape_plan *p, const struct shape_order *o)
{
    struct ddl_list *l = p->out;
    struct ddl *sorted = arena_array(p->arena, struct ddl, l->n);
    int n = 0;
    for (int late = 0; late < 2; late++) {
        for (int i = 0; i < o->n; i++) {
            const struct ddl *d = &l->items[o->out[i]];
            if ((d->section == DDL_KEYS && d->optional) == late) sorted[n++] = *d;
        }
    }
    assert(n == l->n);
    l->items = sorted;
    l->cap = n;
}

static struct ddl_id shape_id(const PGresult *r, int row, int column)
{
    return (struct ddl_id){*PQgetvalue(r, row, column), (uint32_t) db_cell_int(r, row, column + 1)};
}

static status MUST_CHECK shape_sort(struct shape_plan *p)
{
    struct arena *a = p->arena;
    struct ddl_list *l = p->out;
    PGresult *r;
    TRY(db_query(p->from, a, "read what depends on what", shape_needs_sql, 0, NULL, &r));
    struct shape_order o = {.list = l, .nneeds = PQntuples(r)};
    o.needs = arena_array(a, struct need, o.nneeds + 1);
    o.by_id = arena_array(a, struct ddl_at, l->n + 1);
    o.seen = arena_array(a, bool, l->n + 1);
    o.out = arena_array(a, int, l->n + 1);
    for (int i = 0; i < o.nneeds; i++)
        o.needs[i] = (struct need){shape_id(r, i, 0), shape_id(r, i, 2)};
    for (int i = 0; i < l->n; i++)
        if (l->items[i].id.kind) o.by_id[o.nby_id++] = (struct ddl_at){l->items[i].id, i};
    qsort(o.needs, (size_t) o.nneeds, sizeof *o.needs, need_order);
    qsort(o.by_id, (size_t) o.nby_id, sizeof *o.by_id, at_order);
    for (int i = 0; i < l->n; i++) order_visit(&o, i);
    order_apply(p, &o);
    return TW_OK;
}

/* ---- plan and run ---- */

static status MUST_CHECK shape_plan_all(struct shape_plan *p)
{
    PGresult *walk;
    TRY(cat_sequences(p->from, p->arena, p->job, &p->sequences));
    TRY(shape_query(p, "read the types", shape_walk_sql, &walk));
    TRY(shape_schemas(p, walk));
    shape_sequences(p);
    /* First: a table's expressions are planned, and a body may call what no dependency names. */
    TRY(shape_functions(p));
    TRY(shape_operators(p));
    TRY(shape_types_and_tables(p, walk));
    for (int i = 0; i < p->sequences.n; i++) shape_sequence_owner(p, &p->sequences.items[i]);
    TRY(shape_compression(p));
    TRY(shape_views(p));
    TRY(shape_indexes(p));
    TRY(shape_constraints(p, DDL_KEYS, "check constraint", shape_late_checks_sql));
    TRY(shape_belongings(p, DDL_KEYS, "read the defaults", shape_late_defaults_sql, false));
    TRY(shape_belongings(p, DDL_KEYS, "read the statistics", shape_statistics_sql, false));
    TRY(shape_constraints(p, DDL_LAST, "foreign key", shape_foreign_keys_sql));
    TRY(shape_belongings(p, DDL_LAST, "read the triggers", shape_triggers_sql, true));
    if (p->from->version >= 130000)
        TRY(shape_belongings(p, DDL_LAST, "read the triggers", shape_partition_triggers_sql, true));
    TRY(shape_belongings(p, DDL_LAST, "read the rules", shape_rules_sql, true));
    TRY(shape_belongings(p, DDL_LAST, "read the policies", shape_policies_sql, false));
    TRY(shape_belongings(p, DDL_LAST, "read the policies", shape_row_security_sql, false));
    return shape_sort(p);
}

/* Which schemas are selected as a whole: all of theirs belongs to the job. */
static const char *shape_scope(struct arena *a, const struct job *job)
{
    struct buf b = {0};
    bool all = job->schemas.n + job->tables.n == 0;
    buf_fmt(&b, "(%s AND (%s", cat_user_schema, all ? "true" : "false");
    cat_match_schemas(&b, &job->schemas);
    cat_match_schemas(&b, &job->tables);
    buf_str(&b, "))");
    return shape_take(a, &b);
}

static const char *shape_excluded(struct arena *a, const struct job *job)
{
    struct buf b = {0};
    cat_match(&b, &job->exclude);
    return shape_take(a, &b);
}

/* Everything is called as on B; what needs a column that B does not have is left out. */
static void shape_rename(struct shape_plan *p)
{
    struct ddl_list *l = p->out;
    int n = 0;
    if (!job_maps(p->job)) return;
    for (int i = 0; i < l->n; i++) {
        struct ddl *d = &l->items[i];
        const char **const texts[] = {&d->sql, &d->new_sql, &d->drop_sql, &d->exists_sql, &d->what};
        bool lacks = false;
        for (int k = 0; k < 5; k++) {
            bool this_lacks;
            *texts[k] = name_sql(p->job, p->arena, NULL, *texts[k], &this_lacks);
            lacks = lacks || (k == 0 && this_lacks);
        }
        if (lacks) shape_warn(p, "%s is not created: it names a column that is left out", d->what);
        else l->items[n++] = *d;
    }
    l->n = n;
}

/* What would give a target all that `tables` are on this server.  Nothing is written. */
static status MUST_CHECK shape_plan(struct db *from, struct arena *a, const struct job *job,
                                    const struct table_list *tables, struct ddl_list *out)
{
    *out = (struct ddl_list){0};
    struct shape_plan p = {.from = from, .arena = a, .job = job, .tables = tables, .out = out,
                           .oids = cat_oid_array(a, tables), .scope = shape_scope(a, job),
                           .excluded = shape_excluded(a, job)};
    TRY(db_exec(from, "set up the session", "SET quote_all_identifiers = on"));
    TRY(shape_plan_all(&p));
    shape_rename(&p);
    return db_exec(from, "set up the session", "SET quote_all_identifiers = off");
}

/* All that makes a new object. */
static const char *shape_make_sql(struct arena *a, const struct ddl *ddl)
{
    return ddl->new_sql ? arena_fmt(a, "%s; %s", ddl->sql, ddl->new_sql) : ddl->sql;
}

/* Do one statement of the list unless its object is there. */
static status MUST_CHECK shape_run_one(struct db *to, const struct ddl *ddl)
{
    struct arena a = {0};
    const char *what = arena_fmt(&a, "create %s", ddl->what), *there = NULL;
    status s = TW_OK;
    if (ddl->exists_sql) s = db_value(to, &a, what, ddl->exists_sql, 0, NULL, &there);
    if (s == TW_OK && !(there && *there == 't'))
        s = db_exec(to, what, shape_make_sql(&a, ddl));
    arena_free(&a);
    if (s == TW_OK || !ddl->optional || PQstatus(to->pg) != CONNECTION_OK) return s;
    log_warning("%s", to->e->msg);
    error_clear(to->e);
    return TW_OK;
}

/* Triggers and rules that fire on what we write would do again what they did on the source. */
static status MUST_CHECK shape_may_fire(struct db *to, const struct ddl_list *list,
                                        enum ddl_section section, bool *leave_out)
{
    int n = 0;
    *leave_out = false;
    for (int i = 0; i < list->n; i++)
        n += list->items[i].section == section && list->items[i].fires && list->items[i].drop_sql;
    if (!n) return TW_OK;
    status s = db_exec(to, "try session_replication_role",
                       "BEGIN; SET LOCAL session_replication_role = replica; ROLLBACK");
    if (s == TW_OK || PQstatus(to->pg) != CONNECTION_OK) return s;
    error_clear(to->e);
    *leave_out = true;
    log_warning("%d triggers and rules are not created on %c: they would fire on our writes, for"
                " this role may not set session_replication_role", n, to->node->letter);
    return db_exec(to, "roll back", "ROLLBACK");
}

/* ---- indexes, several at once ---- */

/* After each entry progress, if given, hears how many are done and how many there are. */
struct shape_watch {
    void (*progress)(void *, const struct ddl *, int, int);
    void *arg;
    int done, total;
};

/* Sessions that build one each, and what hears of it. */
struct shape_crew {
    struct db *to;
    struct db hands[16];
    const struct ddl *at[16];  /* what each is building; NULL: nothing */
    int n;
    struct shape_watch *watch;
};

static void shape_tell(struct shape_watch *w, const struct ddl *ddl)
{
    w->done++;
    if (w->progress) w->progress(w->arg, ddl, w->done, w->total);
}

/* Sorting takes memory, as much as the server gives or this, if that is more; and what ends the
 * phase is committed to disk, and all before it. */
static const char crew_session_sql[] =
    "SET synchronous_commit = off; SELECT set_config('maintenance_work_mem', '256MB', false)"
    " WHERE pg_size_bytes(current_setting('maintenance_work_mem')) < pg_size_bytes('256MB')";

static status MUST_CHECK crew_give(struct shape_crew *c, int hand, const struct ddl *ddl)
{
    struct arena a = {0};
    struct db *d = &c->hands[hand];
    const char *what = arena_fmt(&a, "create %s", ddl->what), *there = NULL;
    status s = TW_OK;
    if (ddl->exists_sql) s = db_value(c->to, &a, what, ddl->exists_sql, 0, NULL, &there);
    bool is_there = there && *there == 't';
    if (s == TW_OK && is_there) shape_tell(c->watch, ddl);
    if (s == TW_OK && !is_there && !d->pg) {
        *d = (struct db){.node = c->to->node, .e = c->to->e, .tick = c->to->tick,
                         .tick_arg = c->to->tick_arg};
        snprintf(d->purpose, sizeof d->purpose, "%.40s:index", c->to->purpose);
        s = db_open(d, false);
        if (s == TW_OK) s = db_exec(d, "set up the session", crew_session_sql);
    }
    if (s == TW_OK && !is_there) {
        c->at[hand] = ddl;
        if (!PQsendQuery(d->pg, shape_make_sql(&a, ddl))) s = db_fail_conn(d, what);
    }
    arena_free(&a);
    return s;
}

/* Is the session free?  Hears whether it has done its work. */
static status MUST_CHECK crew_hear(struct shape_crew *c, int hand, bool *is_free)
{
    struct db *d = &c->hands[hand];
    const struct ddl *ddl = c->at[hand];
    PGresult *r;
    *is_free = !ddl;
    if (!ddl) return TW_OK;
    if (!PQconsumeInput(d->pg)) return db_fail_conn(d, "receive");
    if (PQflush(d->pg) < 0) return db_fail_conn(d, "send");
    if (PQisBusy(d->pg)) return TW_OK;
    TRY(db_collect(d, &r));
    struct arena a = {0};
    status s = TW_OK;
    if (!db_result_ok(r)) s = db_fail_result(d, r, arena_fmt(&a, "create %s", ddl->what));
    PQclear(r);
    arena_free(&a);
    TRY(s);
    shape_tell(c->watch, ddl);
    c->at[hand] = NULL;
    *is_free = true;
    return TW_OK;
}

static status MUST_CHECK crew_wait(struct shape_crew *c)
{
    struct pollfd p[16];
    int n = 0;
    for (int i = 0; i < c->n; i++)
        if (c->at[i]) p[n++] = (struct pollfd){.fd = PQsocket(c->hands[i].pg), .events = POLLIN};
    if (n && poll(p, (nfds_t) n, 100) < 0 && errno != EINTR)
        return fail(c->to->e, TW_EOS, "could not wait for a socket: %s", strerror(errno));
    return db_tick(c->to);
}

/* All of ddl, each by a session that is free. */
static status MUST_CHECK crew_build(struct shape_crew *c, const struct ddl *ddl, int n)
{
    bool busy = true;
    for (int next = 0; next < n || busy;) {
        busy = false;
        for (int i = 0; i < c->n; i++) {
            bool is_free;
            TRY(crew_hear(c, i, &is_free));
            if (is_free && next < n) TRY(crew_give(c, i, &ddl[next++]));
            busy = busy || c->at[i];
        }
        if (busy) TRY(crew_wait(c));
    }
    return TW_OK;
}

/* How many entries from here on may be built beside each other. */
static int shape_neighbours(const struct ddl_list *list, int from)
{
    int n = 0;
    while (from + n < list->n && list->items[from + n].beside &&
           list->items[from + n].section == list->items[from].section)
        n++;
    return n;
}

static status MUST_CHECK shape_build_beside(struct db *to, const struct ddl *ddl, int n,
                                            int sessions, struct shape_watch *w)
{
    struct shape_crew c = {.to = to, .watch = w};
    int most = (int) (sizeof c.hands / sizeof *c.hands);
    c.n = sessions < most ? sessions : most;
    TESTPOINT(to->e, "shape.run");
    status s = crew_build(&c, ddl, n);
    for (int i = 0; i < c.n; i++) db_abandon(&c.hands[i]);
    return s;
}

/* Create on the target what a section lists and the target lacks; indexes by several sessions at
 * once. */
static status MUST_CHECK shape_run(struct db *to, const struct ddl_list *list,
                                   enum ddl_section section, int sessions, struct shape_watch *w)
{
    bool leave_out;
    TRY(shape_may_fire(to, list, section, &leave_out));
    for (int i = 0; i < list->n; i++) w->total += list->items[i].section == section;
    TRY(db_exec(to, "set up the session", "SET check_function_bodies = off"));
    TRY(db_commits_wait(to, false));  /* what ends a section does, and all before it with it */
    for (int i = 0; i < list->n; i++) {
        const struct ddl *ddl = &list->items[i];
        if (ddl->section != section || (ddl->fires && leave_out)) continue;
        int beside = shape_neighbours(list, i);
        if (beside > 1 && sessions > 1) {
            TRY(shape_build_beside(to, ddl, beside, sessions, w));
            i += beside - 1;
            continue;
        }
        TESTPOINT(to->e, "shape.run");
        TRY(shape_run_one(to, ddl));
        shape_tell(w, ddl);
    }
    TRY(db_commits_wait(to, true));
    return db_exec(to, "set up the session", "RESET check_function_bodies");
}

/* While the rows of a table are of several moments only one key of it is sure to hold, the first:
 * the rest of what refuses rows comes last. */
static void shape_defer_keys(struct ddl_list *list, const uint32_t *tables, int n)
{
    for (int k = 0; k < n; k++) {
        bool first = true;
        for (int i = 0; i < list->n; i++) {
            struct ddl *d = &list->items[i];
            if (d->table != tables[k] || !d->key || d->section != DDL_KEYS) continue;
            if (!first || d->key != 'k') d->section = DDL_LAST;
            else first = false;
        }
    }
}

/* That key alone, of each of the tables. */
static status MUST_CHECK shape_run_keys(struct db *to, struct ddl_list *list,
                                        const uint32_t *tables, int n)
{
    shape_defer_keys(list, tables, n);
    for (int k = 0; k < n; k++)
        for (int i = 0; i < list->n; i++)
            if (list->items[i].table == tables[k] && list->items[i].key == 'k' &&
                list->items[i].section == DDL_KEYS)
                TRY(shape_run_one(to, &list->items[i]));
    return TW_OK;
}

/* ---- single columns ---- */

/* What ALTER TABLE needs to know of a column a of type t with default f. */
#define SHAPE_COLUMN                                                                               \
    "a.attname, format_type(a.atttypid, a.atttypmod)"                                              \
    " || " SHAPE_COLLATE("a.attcollation", "t.typcollation") ", a.attnotnull,"                     \
    " CASE WHEN {generated} <> '' THEN ' GENERATED ALWAYS AS (' || pg_get_expr(f.adbin, f.adrelid)"\
    "  || CASE {generated} WHEN 's' THEN ') STORED' ELSE ') VIRTUAL' END"                          \
    " WHEN a.attidentity <> '' THEN ' GENERATED ' || CASE a.attidentity WHEN 'a' THEN 'ALWAYS'"    \
    "  ELSE 'BY DEFAULT' END || ' AS IDENTITY' ELSE '' END,"                                       \
    " CASE WHEN {generated} = '' THEN pg_get_expr(f.adbin, f.adrelid) END, a.attinhcount > 0"
#define SHAPE_COLUMN_FROM                                                                          \
    " FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid"                                    \
    " LEFT JOIN pg_attrdef f ON f.adrelid = a.attrelid AND f.adnum = a.attnum"
enum { COLUMN_NAME, COLUMN_TYPE, COLUMN_NOT_NULL, COLUMN_MADE, COLUMN_DEFAULT, COLUMN_INHERITED,
       COLUMN_ROWS, COLUMN_SCHEMA, COLUMN_TABLE };

/* A column of a table or of the parent it comes from, and what rows older than it hold: the server
 * keeps that one value, unless it had to write the table anew. */
static const char shape_one_column_sql[] =
    "WITH RECURSIVE up(oid) AS (SELECT $1::oid UNION SELECT i.inhparent FROM up"
    "  JOIN pg_inherits i ON i.inhrelid = up.oid)"
    " SELECT " SHAPE_COLUMN ", CASE WHEN a.atthasmissing"
    "  THEN quote_literal((a.attmissingval::text::text[])[1]) END, n.nspname, c.relname"
    SHAPE_COLUMN_FROM " JOIN up ON up.oid = a.attrelid JOIN pg_class c ON c.oid = a.attrelid"
    " JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE a.attname = $2 AND a.attnum > 0 AND NOT a.attisdropped AND a.attinhcount = 0";

/* Older rows get what they hold on the source; NOT NULL only where a value is sure to be there.
 * *unsure: each older row has a value of its own there. */
static char *shape_add_column_sql(struct arena *a, const PGresult *r, bool *unsure)
{
    struct buf b = {0};
    const char *value = db_cell(r, 0, COLUMN_DEFAULT), *old = db_cell(r, 0, COLUMN_ROWS);
    const char *made = db_cell(r, 0, COLUMN_MADE);
    const char *table = sql_quoted_table(a, db_cell(r, 0, COLUMN_SCHEMA),
                                         db_cell(r, 0, COLUMN_TABLE));
    *unsure = *made || (value && !old);
    buf_fmt(&b, "ALTER TABLE %s ADD COLUMN ", table);
    sql_ident(&b, db_cell(r, 0, COLUMN_NAME));
    buf_fmt(&b, " %s%s", db_cell(r, 0, COLUMN_TYPE), made);
    if (old || value) buf_fmt(&b, " DEFAULT %s", old ? old : value);
    if (db_cell_true(r, 0, COLUMN_NOT_NULL) && (old || value || *made)) buf_str(&b, " NOT NULL");
    if (old) {
        buf_fmt(&b, "; ALTER TABLE %s ALTER COLUMN ", table);
        sql_ident(&b, db_cell(r, 0, COLUMN_NAME));
        buf_fmt(&b, " %s%s", value ? "SET DEFAULT " : "DROP DEFAULT", value ? value : "");
    }
    return shape_take(a, &b);
}

static status MUST_CHECK shape_one_column(struct db *from, struct arena *a, uint32_t table,
                                          const char *column, PGresult **r)
{
    struct shape_plan p = {.from = from, .arena = a};
    const char *args[] = {arena_fmt(a, "%" PRIu32, table), column};
    return db_query(from, a, "read a new column", shape_sql(&p, shape_one_column_sql), 2, args, r);
}

/* Give the target a column the source has; *done false: the source has it no more. */
static status MUST_CHECK shape_add_column(const struct job *job, struct db *from, struct db *to,
                                          struct arena *a, uint32_t table, const char *column,
                                          bool *done)
{
    PGresult *r;
    bool unsure, lacks;
    TRY(shape_one_column(from, a, table, column, &r));
    *done = PQntuples(r) == 1;
    if (!*done) return TW_OK;
    const char *sql = shape_add_column_sql(a, r, &unsure);
    TRY(db_exec(to, "add a column",
                arena_fmt(a, "SET LOCAL lock_timeout = '2s'; %s; SET LOCAL lock_timeout = 0",
                          name_sql(job, a, NULL, sql, &lacks))));
    log_info("done on %c as on %c: %s", to->node->letter, from->node->letter, sql);
    if (unsure)
        log_warning("rows that were there before hold values of their own in the new column \"%s\""
                    " of %s: those of %c may differ", column,
                    sql_quoted_table(a, db_cell(r, 0, COLUMN_SCHEMA), db_cell(r, 0, COLUMN_TABLE)),
                    to->node->letter);
    return TW_OK;
}

/* ---- sequence values ---- */

/* Statements that give another server this one's next values. */
static status MUST_CHECK shape_sequences_sql(struct db *from, struct arena *a,
                                             const struct job *job, struct buf *out)
{
    struct sequence_list list;
    TRY(cat_sequences(from, a, job, &list));
    for (int i = 0; i < list.n; i++) {
        const struct sequence *s = &list.items[i];
        const char *q = name_quoted(job, a, s->schema, s->name);
        buf_str(out, "SELECT pg_catalog.setval(");
        sql_literal(out, q);
        buf_fmt(out, "::pg_catalog.regclass, %" PRId64 ", %s);\n", s->last_value,
                s->is_called ? "true" : "false");
    }
    return TW_OK;
}

/* Which of the sequences the target has: exists[i] for list->items[i]. */
static status MUST_CHECK shape_sequences_there(struct db *to, struct arena *a,
                                               const struct job *job,
                                               const struct sequence_list *list, bool *exists)
{
    struct buf b = {0};
    PGresult *r;
    buf_str(&b, "SELECT v.i FROM (VALUES (-1, NULL)");
    for (int i = 0; i < list->n; i++) {
        const struct sequence *s = &list->items[i];
        buf_fmt(&b, ", (%d, ", i);
        sql_literal(&b, name_quoted(job, a, s->schema, s->name));
        buf_char(&b, ')');
    }
    buf_str(&b, ") v(i, name) JOIN pg_class c ON c.oid = to_regclass(v.name) AND c.relkind = 'S'");
    status s = db_query(to, a, "look for the sequences", b.data, 0, NULL, &r);
    buf_free(&b);
    TRY(s);
    for (int i = 0; i < PQntuples(r); i++) exists[db_cell_int(r, i, 0)] = true;
    return TW_OK;
}

/* Set the target's sequences to the source's next values; those it lacks are named in the log.  A
 * sequence never goes back: values the target has given out itself would come again. */
static status MUST_CHECK shape_sequences_apply(struct db *from, struct db *to,
                                               const struct job *job)
{
    struct arena a = {0};
    struct buf b = {0};
    struct sequence_list list;
    status s = cat_sequences(from, &a, job, &list);
    bool *exists = s == TW_OK ? arena_array(&a, bool, list.n) : NULL;
    if (s == TW_OK) s = shape_sequences_there(to, &a, job, &list, exists);
    for (int i = 0; s == TW_OK && i < list.n; i++) {
        const struct sequence *q = &list.items[i];
        const char *name = name_quoted(job, &a, q->schema, q->name);
        if (!exists[i]) {
            log_warning("sequence %s does not exist on %c", name, to->node->letter);
            continue;
        }
        buf_str(&b, "SELECT setval(");
        sql_literal(&b, name);
        buf_fmt(&b, "::regclass, %" PRId64 ", %s) FROM %s", q->last_value,
                q->is_called ? "true" : "false", name);
        if (!q->cycle)
            buf_fmt(&b, " WHERE (last_value %s %" PRId64 ") OR (last_value = %" PRId64
                        " AND NOT is_called)",
                    q->increment > 0 ? "<" : ">", q->last_value, q->last_value);
        buf_str(&b, ";\n");
    }
    if (s == TW_OK && b.len) s = db_exec(to, "set the sequences", b.data);
    buf_free(&b);
    arena_free(&a);
    return s;
}
/* ==== 23. apply ============================================================
 * Source transactions become target transactions: a batch of whole source transactions is one
 * target transaction, opened by the marker and closed with the progress "applied up to <end_lsn>".
 *
 * Rows and progress commit together, so after any crash the progress is true and the source is
 * asked to send again from there.  Only then is the source told (repl_confirm): late costs WAL on
 * its disk, early would lose rows and nobody would notice.
 *
 * Two paths with one meaning.  Changes gather in a window and go as one pipeline of statements that
 * each must meet exactly one row.  If one does not, or fails, the window is rolled back to its
 * savepoint and the same changes go one at a time, looked at before they are written: that path
 * (apply_careful) defines what is right. */

struct conflict {
    enum conflict_kind kind;
    const char *outcome;  /* kept overwritten merged equal inserted ignored skipped stopped */
    const char *existing; /* JSON array of the target's rows in question, or NULL */
};

enum { CONFLICT_VALUES = 14 };  /* of conflict_sql */

/* The failed change of policy `fail`, recorded after its transaction was rolled back. */
struct conflict_left {
    bool set;
    char *sql_values[CONFLICT_VALUES];
};

/* A change that a deferrable key does not allow as things stand.  Later changes of the transaction
 * may make room (two rows swap their values); what is still in the way at its end is a conflict.
 * All in SQL text: descriptions of relations may be gone by then. */
struct deferred {
    struct deferred *next;
    enum conf_action act;
    bool quiet;            /* not a conflict, but the table's catching up */
    const char *quoted;
    char *record[13];      /* the conflict's row, but for the outcome */
    const char *mine_sql;  /* is our row still as we wrote it? */
    const char *undo_sql;
    int n;                 /* rows in the way */
    const char **there_sql, **delete_sql;
};

/* What was sent in a pipeline, in order, so that its results can be told apart. */
enum sent_kind {
    SENT_CONTROL, SENT_MARK, SENT_GUARD, SENT_PREPARE, SENT_CHANGE, SENT_ABSENT,
    SENT_ROWS /* many changes: guarded, or an insert */, SENT_WAL, SENT_DDL
};

struct sent {
    enum sent_kind kind;
    bool *ready;      /* SENT_PREPARE: of the statement */
    const char *what;
};

enum { PIPE_ROOM = 4 * WINDOW_ROWS + 16 };  /* a change may take two statements, both prepared */

enum fixed { FIXED_MARK, FIXED_MARK_LSN, FIXED_MARK_FULL, FIXED_GUARD, FIXED_ORIGIN, FIXED_WAL,
             FIXED_DDL, NFIXED };

struct pipeline {
    struct db *d;
    struct sent sent[PIPE_ROOM];
    int n;
    bool doubt;       /* a change met another number of rows, or failed */
    bool fenced;      /* a guarded mark met no row */
};

struct apply {
    struct db *to;          /* the target session */
    struct db *from;        /* ordinary session on the source: reading rows back */
    struct tw_error *e;
    struct stat_task *stat;
    const char *task;       /* "JOB/forward" */
    const char *job, *ddl_sum;  /* reverse: the target's DDL at the session's start; NULL: none */
    int64_t epoch;
    bool origin;            /* rung 2: a replication origin is set up on the session */
    struct stat_task *other;  /* the opposite task, NULL if there is none */
    struct memory *memory;
    lsn_t stalled_lsn;      /* where the opposite task stood still when it was waited for in vain */
    enum tw_direction dir;
    int serial;             /* names of prepared statements */
    struct rel *rels;       /* cache by source relid, of this session */
    /* The open batch. */
    bool open;              /* BEGIN and the marker are on the server */
    bool savepoint;         /* tw_window is set in it */
    int64_t rows;
    lsn_t end_lsn;          /* of the last whole transaction in it; 0: none yet */
    lsn_t first_lsn;        /* commit LSN of the first transaction in it */
    usec commit_us;
    int64_t batch;          /* its number */
    struct arena scratch;   /* of one pipeline */
    struct pipeline pipe;
    bool fixed_ready[NFIXED];  /* prepared: see apply_fixed */
    struct buf rows_text;   /* of a COPY */
    struct buf *arrays;     /* one per parameter */
    int narrays;
    enum bulk_how how;
    usec rtt_us;            /* what a round trip to the target took */
    struct buf sweep;       /* SQL that takes away what forgotten relations had in the session */
    int pause, last_pause;  /* windows for which folding is not tried, after it met a doubt */
    lsn_t durable_lsn;      /* apply_hear_wal() only: the progress on the target's disk */
    struct { lsn_t applied_lsn, wal_lsn; } awaited;
    usec ask_due_us;        /* when WAL is asked about again */
    char violated[64];      /* name of the key that refused the last careful write */
    struct conflict_left left;
    struct arena left_arena;
    struct deferred *deferred;  /* of the transaction, newest first */
    struct arena txn_arena;
    /* Counted when the batch commits. */
    int64_t inserts, updates, deletes, truncates, conflicts, transactions;
    lsn_t applied_lsn;      /* apply_commit only: the progress in the target */
};

static struct rel *apply_rel(const struct apply *ap, uint32_t relid)
{
    struct rel *r = ap->rels;
    while (r && r->relid != relid) r = r->next;
    return r;
}

static void apply_forget_rel(struct apply *ap, uint32_t relid)
{
    for (struct rel **p = &ap->rels; *p; p = &(*p)->next) {
        if ((*p)->relid != relid) continue;
        struct rel *old = *p;
        *p = old->next;
        for (struct stmt *st = old->stmts; st; st = st->next) {
            if (st->ready) buf_fmt(&ap->sweep, "DEALLOCATE %s;", st->name);
            if (st->guard_ready) buf_fmt(&ap->sweep, "DEALLOCATE %s;", st->guard_name);
            if (st->array_ready) buf_fmt(&ap->sweep, "DEALLOCATE %s;", st->array_name);
            if (st->staged) buf_fmt(&ap->sweep, "DROP TABLE %s;", st->stage);
        }
        rel_free(old);
        return;
    }
}

/* ---- the careful path: SQL made for one change ---- */

/* SQL text with typed parameters, built together. */
struct sqlb {
    struct arena *a;
    struct buf sql;
    int n, cap;
    const char **values;
    Oid *types;
};

static void sqlb_init(struct sqlb *q, struct arena *a, const struct rel *rel)
{
    *q = (struct sqlb){.a = a, .cap = 6 * rel->ncolumns + 16};
    q->values = arena_array(a, const char *, q->cap);
    q->types = arena_array(a, Oid, q->cap);
}

static void sqlb_param(struct sqlb *q, Oid type, const char *value)
{
    assert(q->n < q->cap);
    q->values[q->n] = value;
    q->types[q->n++] = type;
    buf_fmt(&q->sql, "$%d", q->n);
}

/* Run it; the result, good or bad, lives in q's arena. */
static status MUST_CHECK sqlb_attempt(struct sqlb *q, struct db *d, PGresult **out)
{
    *out = NULL;
    int sent = PQsendQueryParams(d->pg, q->sql.data, q->n, q->types, q->values, NULL, NULL, 0);
    buf_free(&q->sql);
    if (!sent) return db_fail_conn(d, "send a query");
    TRY(db_collect(d, out));
    arena_defer(q->a, db_clear_result, *out);
    if (PQstatus(d->pg) == CONNECTION_BAD) return db_fail_result(d, *out, "run a query");
    return TW_OK;
}

static status MUST_CHECK sqlb_run(struct sqlb *q, struct db *d, const char *what, PGresult **out)
{
    TRY(sqlb_attempt(q, d, out));
    return db_result_ok(*out) ? TW_OK : db_fail_result(d, *out, what);
}

/* A row of the target as it stands, locked. */
struct found {
    const char *ctid, *tableoid;
    usec at_us;           /* when it was written last; asked under policy latest only, else 0 */
    const char **values;  /* by source column; NULL for SQL NULL and for columns not carried */
    bool *same;           /* by source column: holds the change's old value */
};

static void careful_image(struct sqlb *q, const struct target_column *t, const struct value *v)
{
    buf_str(&q->sql, "ROW(");
    stmt_column(&q->sql, "t.", t);
    buf_str(&q->sql, ")::record OPERATOR(pg_catalog.*=) ROW(");
    sqlb_param(q, t->type, value_text(v));
    buf_str(&q->sql, ")::record");
}

/* The row as text, and whether each column holds the change's old value: as one array, since a
 * select list has room for 1,664 entries and a table may have 1,600 columns. */
static void careful_select(struct sqlb *q, const struct change *c, bool compare)
{
    const struct rel *rel = c->rel;
    const char *sep = "";
    buf_str(&q->sql, "SELECT t.ctid, t.tableoid, ARRAY[");
    for (int i = 0; i < rel->ncolumns && compare; i++) {
        if (!rel_carries(rel, i)) continue;
        buf_str(&q->sql, sep);
        careful_image(q, rel_target(rel, i), &c->m.old.values[i]);
        sep = ", ";
    }
    buf_str(&q->sql, "]::bool[], ");
    buf_str(&q->sql, rel->policy == POLICY_LATEST ? "round(extract(epoch FROM"
            " pg_xact_commit_timestamp(t.xmin)) * 1000000)::bigint" : "0");
    for (int i = 0; i < rel->ncolumns; i++)
        if (rel_carries(rel, i)) buf_fmt(&q->sql, ", t.%s", rel_target(rel, i)->quoted);
    buf_fmt(&q->sql, " FROM %s%s t", rel->only, rel->quoted);
}

/* Two texts of the same value may differ between server versions, and two images of the same text
 * may differ in memory layout: either equality will do. */
static bool careful_same(const char *now, const struct value *old, bool same_image)
{
    const char *was = value_text(old);
    if (same_image || old->kind == 'u') return true;
    return now && was ? str_is(now, was) : now == was;
}

static struct found *careful_rows(struct arena *a, const struct change *c, const PGresult *r,
                                  bool compare)
{
    const struct rel *rel = c->rel;
    int n = PQntuples(r);
    struct found *rows = arena_array(a, struct found, n + 1);
    for (int row = 0; row < n; row++) {
        struct found *f = &rows[row];
        f->ctid = PQgetvalue(r, row, 0);
        f->tableoid = PQgetvalue(r, row, 1);
        f->values = arena_array(a, const char *, rel->ncolumns + 1);
        f->same = arena_array(a, bool, rel->ncolumns + 1);
        f->at_us = db_cell_int(r, row, 3);
        const char *same = PQgetvalue(r, row, 2) + 1;  /* "{t,f,t}" */
        for (int i = 0, col = 4; i < rel->ncolumns; i++) {
            f->same[i] = true;
            if (!rel_carries(rel, i)) continue;
            f->values[i] = db_cell(r, row, col++);
            if (!compare) continue;
            f->same[i] = !rel_compares(rel, i) ||
                         careful_same(f->values[i], &c->m.old.values[i], *same == 't');
            same += 2;
        }
    }
    return rows;
}

/* Of several rows, which only a deferrable key can bring about, the one that holds most of the
 * change's old values; NULL of none. */
static struct found *careful_best(struct arena *a, const struct change *c, const PGresult *r,
                                  bool compare)
{
    struct found *rows = careful_rows(a, c, r, compare), *best = NULL;
    int most = -1;
    for (int i = 0; i < PQntuples(r); i++) {
        int same = 0;
        for (int k = 0; k < c->rel->ncolumns; k++) same += rows[i].same[k];
        if (same > most) best = &rows[i];
        if (same > most) most = same;
    }
    return best;
}

/* The row the change left from, locked; *out NULL when it is not there. */
static status MUST_CHECK careful_find(struct apply *ap, struct arena *a, const struct change *c,
                                      struct found **out)
{
    const struct rel *rel = c->rel;
    bool compare = c->m.old_kind == 'O';
    struct sqlb q;
    sqlb_init(&q, a, rel);
    careful_select(&q, c, compare && rel->nident);
    buf_str(&q.sql, " WHERE ");
    for (int i = 0; i < rel->nident; i++) {
        buf_fmt(&q.sql, "%st.%s %s ", i ? " AND " : "", rel_target(rel, rel->ident[i])->quoted,
                rel->ident_ops[i]);
        sqlb_param(&q, rel_target(rel, rel->ident[i])->type,
                   value_text(rel_key_value(&c->m, rel->ident[i])));
    }
    /* Without a key by every column, by image or by text: the image of a value may depend on how
     * it was made (an array that once held a NULL), its text does not. */
    for (int i = 0, n = 0; i < rel->ncolumns && !rel->nident; i++) {
        if (!rel_compares(rel, i) || c->m.old.values[i].kind == 'u') continue;
        buf_str(&q.sql, n++ ? " AND (" : "(");
        careful_image(&q, rel_target(rel, i), &c->m.old.values[i]);
        buf_fmt(&q.sql, " OR t.%s::text IS NOT DISTINCT FROM ", rel_target(rel, i)->quoted);
        sqlb_param(&q, 25, value_text(&c->m.old.values[i]));  /* text (pg_type.dat) */
        buf_char(&q.sql, ')');
    }
    if (!rel->nident && !q.n) buf_str(&q.sql, "true");
    if (!rel->nident) buf_str(&q.sql, " LIMIT 1");
    buf_str(&q.sql, " FOR UPDATE");
    PGresult *r;
    TRY(sqlb_run(&q, ap->to, "look for the row", &r));
    *out = careful_best(a, c, r, compare && rel->nident);
    return TW_OK;
}

/* The new row as a sub-select, for the parts and predicates of unique indexes. */
static void careful_new_row(struct sqlb *q, const struct rel *rel, const struct value *row)
{
    const char *sep = "";
    buf_str(&q->sql, "(SELECT ");
    for (int i = 0; i < rel->ncolumns; i++) {
        if (!rel_carries(rel, i)) continue;
        buf_str(&q->sql, sep);
        sqlb_param(q, rel_target(rel, i)->type, value_text(&row[i]));
        buf_fmt(&q->sql, " AS %s", rel_target(rel, i)->quoted);
        sep = ", ";
    }
    buf_str(&q->sql, ") tw_new");
}

/* "t"'s part of the key: parts are written over bare column names, so they are evaluated in a
 * sub-select of one row that shows those names. */
static void careful_collides(struct sqlb *q, const struct unique_key *k)
{
    buf_str(&q->sql, "EXISTS (SELECT FROM (SELECT ");
    for (int i = 0; i < k->n; i++) buf_fmt(&q->sql, "%s(%s) AS n%d", i ? ", " : "", k->parts[i], i);
    buf_str(&q->sql, " FROM tw_new");
    if (k->predicate) buf_fmt(&q->sql, " WHERE %s", k->predicate);
    buf_str(&q->sql, ") x, (SELECT ");
    for (int i = 0; i < k->n; i++) buf_fmt(&q->sql, "%s(%s) AS o%d", i ? ", " : "", k->parts[i], i);
    buf_str(&q->sql, " FROM (SELECT t.*) tw_old");
    if (k->predicate) buf_fmt(&q->sql, " WHERE %s", k->predicate);
    buf_str(&q->sql, ") y WHERE ");
    for (int i = 0; i < k->n; i++) {
        buf_fmt(&q->sql, "%s(x.n%d %s y.o%d", i ? " AND " : "", i, k->ops[i], i);
        if (k->nulls_equal) buf_fmt(&q->sql, " OR (x.n%d IS NULL AND y.o%d IS NULL)", i, i);
        buf_char(&q->sql, ')');
    }
    buf_char(&q->sql, ')');
}

/* NULL is in nobody's way, unless the index says NULLS NOT DISTINCT. */
static bool careful_key_is_null(const struct rel *rel, const struct unique_key *k,
                                const struct value *row)
{
    for (int i = 0; i < k->n && k->plain && !k->nulls_equal; i++)
        if (!value_text(&row[rel->targets[k->columns[i]].source])) return true;
    return false;
}

/* Rows of the target that stand in the way of `row` in one unique index, locked. */
static status MUST_CHECK careful_find_in_key(struct apply *ap, struct arena *a,
                                             const struct change *c, const struct unique_key *k,
                                             const struct value *row, PGresult **out)
{
    const struct rel *rel = c->rel;
    struct sqlb q;
    sqlb_init(&q, a, rel);
    if (k->plain) {
        /* The usual case, by index. */
        careful_select(&q, c, false);
        buf_str(&q.sql, " WHERE ");
        for (int i = 0; i < k->n; i++) {
            const struct target_column *t = &rel->targets[k->columns[i]];
            const char *v = value_text(&row[t->source]);
            buf_fmt(&q.sql, "%st.%s ", i ? " AND " : "", t->quoted);
            if (v) buf_fmt(&q.sql, "%s ", k->ops[i]);
            if (v) sqlb_param(&q, t->type, v);
            else buf_str(&q.sql, "IS NULL");
        }
    } else {
        buf_str(&q.sql, "WITH tw_new AS (SELECT * FROM ");
        careful_new_row(&q, rel, row);
        buf_str(&q.sql, ") ");
        careful_select(&q, c, false);
        buf_str(&q.sql, " WHERE ");
        careful_collides(&q, k);
    }
    buf_str(&q.sql, " LIMIT 100 FOR UPDATE OF t");
    return sqlb_run(&q, ap->to, "look for colliding rows", out);
}

struct collision {
    struct found row;
    bool by_identity;  /* it has the new row's identity key */
};

struct collisions {
    int n;
    struct collision *items;
};

static bool collision_known(const struct collisions *all, const struct found *f)
{
    for (int i = 0; i < all->n; i++)
        if (str_is(all->items[i].row.ctid, f->ctid) &&
            str_is(all->items[i].row.tableoid, f->tableoid))
            return true;
    return false;
}

/* All rows that stand in the way of `row` in any unique index, but for `self`. */
static status MUST_CHECK careful_collisions(struct apply *ap, struct arena *a,
                                            const struct change *c, const struct value *row,
                                            const struct found *self, struct collisions *out)
{
    const struct rel *rel = c->rel;
    *out = (struct collisions){.items = arena_array(a, struct collision, 100 * rel->nkeys + 1)};
    for (int k = 0; k < rel->nkeys; k++) {
        PGresult *r;
        if (rel->keys[k].unknown || careful_key_is_null(rel, &rel->keys[k], row)) continue;
        TRY(careful_find_in_key(ap, a, c, &rel->keys[k], row, &r));
        struct found *rows = careful_rows(a, c, r, false);
        for (int i = 0; i < PQntuples(r); i++) {
            if (self && str_is(self->ctid, rows[i].ctid) &&
                str_is(self->tableoid, rows[i].tableoid))
                continue;
            if (collision_known(out, &rows[i])) continue;
            out->items[out->n++] =
                (struct collision){.row = rows[i], .by_identity = &rel->keys[k] == rel->identity};
        }
    }
    return TW_OK;
}

/* ---- recording ---- */

static void json_value(struct buf *b, const char *name, const char *text)
{
    json_str(b, name);
    buf_char(b, ':');
    if (text) json_str(b, text);
    else buf_str(b, "null");
}

static void json_tuple(struct buf *b, const struct rel *rel, const struct tuple *t, bool keys_only)
{
    const char *sep = "";
    buf_char(b, '{');
    for (int i = 0; i < t->n && i < rel->ncolumns; i++) {
        if (t->values[i].kind == 'u' || (keys_only && !rel->columns[i].is_key)) continue;
        buf_str(b, sep);
        json_value(b, rel->a_columns[i], value_text(&t->values[i]));
        sep = ",";
    }
    buf_char(b, '}');
}

static void json_found(struct buf *b, const struct rel *rel, const struct found *f)
{
    const char *sep = "";
    buf_char(b, '{');
    for (int i = 0; i < rel->ncolumns; i++) {
        if (!rel_carries(rel, i)) continue;
        buf_str(b, sep);
        json_value(b, rel->a_columns[i], f->values[i]);
        sep = ",";
    }
    buf_char(b, '}');
}

static const char *json_existing(struct arena *a, const struct rel *rel, const struct found *one,
                                 const struct collisions *all)
{
    struct buf b = {0};
    buf_char(&b, '[');
    if (one) json_found(&b, rel, one);
    for (int i = 0; all && i < all->n; i++) {
        if (i || one) buf_char(&b, ',');
        json_found(&b, rel, &all->items[i].row);
    }
    buf_char(&b, ']');
    char *s = arena_str(a, b.data);
    buf_free(&b);
    return s;
}

/* What rows are found by, as JSON; of a moved row what did not travel is as before. */
static void json_key(struct buf *b, const struct change *c, bool after)
{
    const struct rel *rel = c->rel;
    buf_char(b, '{');
    for (int i = 0; i < rel->nident; i++) {
        const struct value *v = &c->m.new.values[rel->ident[i]];
        if (!after || v->kind == 'u') v = rel_key_value(&c->m, rel->ident[i]);
        if (i) buf_char(b, ',');
        json_value(b, rel->a_columns[rel->ident[i]], value_text(v));
    }
    buf_char(b, '}');
}

/* The key of the row in question, as JSON: what rows are found by, or the whole old row. */
static char *conflict_key(struct arena *a, const struct change *c)
{
    const struct rel *rel = c->rel;
    struct buf b = {0};
    if (rel->nident) {
        json_key(&b, c, false);
    } else {
        json_tuple(&b, rel, c->m.old_kind ? &c->m.old : &c->m.new, false);
    }
    char *s = arena_str(a, b.data);
    buf_free(&b);
    return s;
}

static char *conflict_tuple(struct arena *a, const struct change *c, const struct tuple *t,
                            bool keys_only)
{
    if (!t->n) return NULL;
    struct buf b = {0};
    json_tuple(&b, c->rel, t, keys_only);
    char *s = arena_str(a, b.data);
    buf_free(&b);
    return s;
}

static const char conflict_sql[] =
    "INSERT INTO twsync.conflict (task, kind, policy, outcome, schema_name, table_name, key,"
    " existing, old, incoming, commit_lsn, change, committed_at, settled)"
    " VALUES ($1, $2, $3, $4, $5, $6, $7::jsonb, $8::jsonb, $9::jsonb, $10::jsonb, $11::pg_lsn,"
    " $12::bigint, 'epoch'::timestamptz + $13::bigint * '1 microsecond'::interval,"
    " CASE WHEN $2 = 'refused' THEN 'failed' WHEN $14 = 't' THEN 'open' END)"
    " ON CONFLICT (task, commit_lsn, change, kind) DO UPDATE SET recorded_at = clock_timestamp(),"
    " policy = EXCLUDED.policy, outcome = EXCLUDED.outcome, existing = EXCLUDED.existing,"
    " settled = EXCLUDED.settled, settled_at = NULL";

static void conflict_values(struct apply *ap, struct arena *a, const struct change *c,
                            const struct conflict *k, char **v)
{
    v[0] = arena_str(a, ap->task);
    v[1] = arena_str(a, conflict_names[k->kind]);
    v[2] = arena_str(a, policy_names[c->rel->policy]);
    v[3] = arena_str(a, k->outcome);
    v[4] = arena_str(a, c->rel->a_schema);
    v[5] = arena_str(a, c->rel->a_name);
    v[6] = conflict_key(a, c);
    v[7] = k->existing ? arena_str(a, k->existing) : NULL;
    v[8] = conflict_tuple(a, c, c->sent ? &c->sent->old : &c->m.old, c->m.old_kind == 'K');
    v[9] = conflict_tuple(a, c, c->sent ? &c->sent->new : &c->m.new, false);
    v[10] = arena_str(a, lsn_text(a, c->commit_lsn));
    v[11] = arena_fmt(a, "%" PRId64, c->seq);
    v[12] = arena_fmt(a, "%" PRId64, c->commit_us);
    v[13] = arena_str(a, c->rel->parts ? "t" : "f");
}

/* Record a decided conflict in the deciding transaction.  One that stopped the task before keeps
 * its row and gets its outcome. */
static status MUST_CHECK conflict_record(struct apply *ap, struct arena *a, const struct change *c,
                                         struct conflict k)
{
    char *v[CONFLICT_VALUES];
    if (change_catches_up(c)) return TW_OK;
    conflict_values(ap, a, c, &k, v);
    ap->conflicts++;
    log_debug("conflict %s on %s %s: %s", v[1], c->rel->quoted, v[6], v[3]);
    return db_exec_params(ap->to, "record a conflict", conflict_sql, CONFLICT_VALUES,
                          (const char *const *) v);
}

/* A person may have decided a conflict that stopped the task: the side whose row is wanted, '-' if
 * nobody has, 0 if it is not on record. */
static status MUST_CHECK conflict_wanted(struct apply *ap, const struct change *c,
                                         enum conflict_kind kind, char *side)
{
    struct arena a = {0};
    const char *values[] = {ap->task, lsn_text(&a, c->commit_lsn),
                            arena_fmt(&a, "%" PRId64, c->seq), conflict_names[kind]}, *wanted;
    status s = db_value(ap->to, &a, "read a decision",
                        "SELECT coalesce(wanted, '-') FROM twsync.conflict WHERE task = $1"
                        " AND commit_lsn = $2::pg_lsn AND change = $3::bigint AND kind = $4", 4,
                        values, &wanted);
    *side = wanted ? wanted[0] : 0;
    arena_free(&a);
    return s;
}

/* What is to be done about a conflict; ours_us: when the row in question was written last. */
static status MUST_CHECK conflict_decide(struct apply *ap, const struct change *c,
                                         enum conflict_kind kind, usec ours_us,
                                         enum conf_action *act)
{
    char from = ap->from->node->letter, wanted;
    *act = change_catches_up(c) ? conf_decide(kind, POLICY_OVERWRITE, true)
                                : conf_decide(kind, c->rel->policy,
                                              conf_newer(c->commit_us, ours_us, from));
    if (*act != ACT_STOP) return TW_OK;
    TRY(conflict_wanted(ap, c, kind, &wanted));
    if (wanted && wanted != '-')
        *act = conf_decide(kind, wanted == from ? POLICY_OVERWRITE : POLICY_IGNORE, false);
    return TW_OK;
}

/* When the youngest of the rows in the way was written. */
static usec collisions_us(const struct collisions *all)
{
    usec last = 0;
    for (int i = 0; i < all->n; i++)
        if (all->items[i].row.at_us > last) last = all->items[i].row.at_us;
    return last;
}

/* Policy fail: the record (in left_arena) outlives the rollback, and the task is Failed. */
static status MUST_CHECK conflict_stop_record(struct apply *ap, const char *quoted, char **record)
{
    memcpy(ap->left.sql_values, record, sizeof ap->left.sql_values);
    ap->left.set = true;
    fail_detail(ap->e, "transaction committed at %s", record[10]);
    fail_hint(ap->e, "`twsync conflicts JOB` shows it, and with --resolve and --take decides it; "
                     "or change the row on %c, or the policy, and run again.",
              ap->to->node->letter);
    return fail(ap->e, TW_ECONFLICT, "conflict %s in table %s, key %s, under policy fail",
                record[1], quoted, record[6]);
}

static status MUST_CHECK conflict_stop(struct apply *ap, const struct change *c, struct conflict k)
{
    char *record[CONFLICT_VALUES];
    k.outcome = "stopped";
    arena_reset(&ap->left_arena);
    conflict_values(ap, &ap->left_arena, c, &k, record);
    return conflict_stop_record(ap, c->rel->quoted, record);
}

/* ---- careful writes ---- */

static void careful_here(struct sqlb *q, const struct found *f)
{
    buf_str(&q->sql, " WHERE ctid = ");
    sqlb_param(q, 27, f->ctid);  /* 27: tid, 26: oid (pg_type.dat; fixed since 8.x) */
    buf_str(&q->sql, " AND tableoid = ");
    sqlb_param(q, 26, f->tableoid);
}

static status MUST_CHECK careful_delete(struct apply *ap, struct arena *a, const struct rel *rel,
                                        const struct found *f)
{
    struct sqlb q;
    PGresult *r;
    sqlb_init(&q, a, rel);
    buf_fmt(&q.sql, "DELETE FROM %s%s", rel->only, rel->quoted);
    careful_here(&q, f);
    TRY(sqlb_run(&q, ap->to, "delete a row", &r));
    if (!str_is(PQcmdTuples(r), "1"))
        return fail(ap->e, TW_ESERVER, "could not delete from %s: a trigger or rule on %c prevents "
                    "it", rel->quoted, ap->to->node->letter);
    return TW_OK;
}

/* What became of a write: where the row is, or that a key forbids it. */
struct written {
    bool unique;  /* unique or exclusion violation: nothing has happened */
    const char *ctid, *tableoid;
};

/* Write one row inside a savepoint. */
static status MUST_CHECK careful_write(struct apply *ap, struct sqlb *q, const struct rel *rel,
                                       const char *what, struct written *w)
{
    PGresult *r;
    *w = (struct written){0};
    buf_str(&q->sql, " RETURNING ctid, tableoid");
    TRY(db_exec(ap->to, "set a savepoint", "SAVEPOINT tw_row"));
    TRY(sqlb_attempt(q, ap->to, &r));
    if (!db_result_ok(r)) {
        const char *state = PQresultErrorField(r, PG_DIAG_SQLSTATE);
        const char *constraint = PQresultErrorField(r, PG_DIAG_CONSTRAINT_NAME);
        w->unique = state && (str_is(state, "23505") || str_is(state, "23P01"));
        if (!w->unique)
            return db_fail_result(ap->to, r, arena_fmt(q->a, "%s %s", what, rel->quoted));
        str_copy(ap->violated, sizeof ap->violated, constraint ? constraint : "?");
        return db_exec(ap->to, "roll back to a savepoint", "ROLLBACK TO SAVEPOINT tw_row");
    }
    if (PQntuples(r) != 1)
        return fail(ap->e, TW_ESERVER, "could not %s %s: a trigger or rule on %c prevents it", what,
                    rel->quoted, ap->to->node->letter);
    w->ctid = PQgetvalue(r, 0, 0);
    w->tableoid = PQgetvalue(r, 0, 1);
    return db_exec(ap->to, "release a savepoint", "RELEASE SAVEPOINT tw_row");
}

static status MUST_CHECK careful_try_insert(struct apply *ap, struct arena *a, struct rel *rel,
                                            const struct value *row, struct written *w)
{
    struct sqlb q;
    const char *sep = "";
    sqlb_init(&q, a, rel);
    buf_fmt(&q.sql, "INSERT INTO %s ", rel->quoted);
    if (!stmt_columns(&q.sql, rel)) {
        buf_str(&q.sql, "DEFAULT VALUES");
        return careful_write(ap, &q, rel, "insert into", w);
    }
    buf_str(&q.sql, " OVERRIDING SYSTEM VALUE VALUES (");
    for (int i = 0; i < rel->ncolumns; i++) {
        if (!rel_carries(rel, i)) continue;
        buf_str(&q.sql, sep);
        sqlb_param(&q, rel_target(rel, i)->type, value_text(&row[i]));
        sep = ", ";
    }
    stmt_fills(&q.sql, rel, sep);
    buf_char(&q.sql, ')');
    return careful_write(ap, &q, rel, "insert into", w);
}

/* A generated-always identity cannot be SET: such a row is replaced by delete and insert. */
static bool careful_must_replace(const struct rel *rel, const struct found *f, const bool *write,
                                 const struct value *row)
{
    for (int i = 0; i < rel->ncolumns; i++)
        if (write[i] && rel_carries(rel, i) && rel_target(rel, i)->identity_always &&
            !careful_same(f->values[i], &row[i], false))
            return true;
    return false;
}

/* One statement, so that columns the source does not have keep their values. */
static status MUST_CHECK careful_replace(struct apply *ap, struct arena *a, struct rel *rel,
                                         const struct found *f, const bool *write,
                                         const struct value *row, struct written *w)
{
    struct sqlb q;
    const char *sep = "";
    sqlb_init(&q, a, rel);
    buf_fmt(&q.sql, "WITH gone AS (DELETE FROM %s%s", rel->only, rel->quoted);
    careful_here(&q, f);
    buf_fmt(&q.sql, " RETURNING *) INSERT INTO %s (", rel->quoted);
    for (int i = 0; i < rel->ntargets; i++) {
        if (rel->targets[i].generated) continue;
        buf_fmt(&q.sql, "%s%s", sep, rel->targets[i].quoted);
        sep = ", ";
    }
    buf_str(&q.sql, ") OVERRIDING SYSTEM VALUE SELECT ");
    sep = "";
    for (int i = 0; i < rel->ntargets; i++) {
        const struct target_column *t = &rel->targets[i];
        if (t->generated) continue;
        buf_str(&q.sql, sep);
        if (t->source >= 0 && write[t->source])
            sqlb_param(&q, t->type, value_text(&row[t->source]));
        else
            buf_fmt(&q.sql, "gone.%s", t->quoted);
        sep = ", ";
    }
    buf_str(&q.sql, " FROM gone");
    return careful_write(ap, &q, rel, "replace a row of", w);
}

/* SET the chosen columns of one locked row to the new row's values. */
static status MUST_CHECK careful_try_update(struct apply *ap, struct arena *a, struct rel *rel,
                                            const struct found *f, const bool *write,
                                            const struct value *row, struct written *w)
{
    struct sqlb q;
    const char *sep = " SET ";
    if (careful_must_replace(rel, f, write, row))
        return careful_replace(ap, a, rel, f, write, row, w);
    sqlb_init(&q, a, rel);
    buf_fmt(&q.sql, "UPDATE %s%s", rel->only, rel->quoted);
    for (int i = 0; i < rel->ncolumns; i++) {
        if (!write[i] || !rel_carries(rel, i) || rel_target(rel, i)->identity_always) continue;
        buf_fmt(&q.sql, "%s%s = ", sep, rel_target(rel, i)->quoted);
        sqlb_param(&q, rel_target(rel, i)->type, value_text(&row[i]));
        sep = ", ";
    }
    if (str_is(sep, " SET ")) {
        buf_free(&q.sql);
        *w = (struct written){.ctid = f->ctid, .tableoid = f->tableoid};
        return TW_OK;
    }
    careful_here(&q, f);
    return careful_write(ap, &q, rel, "update", w);
}

/* A row of which some columns are written and the others stay. */
static struct value *careful_whole(struct arena *a, const struct rel *rel, const struct found *f,
                                   const bool *write, const struct value *row)
{
    struct value *whole = arena_array(a, struct value, rel->ncolumns + 1);
    for (int i = 0; i < rel->ncolumns; i++) {
        const char *keep = f->values[i];
        whole[i] = write[i] ? row[i] : value_of(keep);
    }
    return whole;
}

/* ---- deferrable keys ---- */

static const char *deferred_at(struct arena *a, const char *sql, const struct rel *rel,
                               const char *ctid, const char *tableoid, const char *tail)
{
    return arena_fmt(a, "%s %s%s WHERE ctid = '%s'::tid AND tableoid = %s%s", sql, rel->only,
                     rel->quoted, ctid, tableoid, tail);
}

/* Back to the row as it was: an inserted one goes, an updated one gets its old values. */
static const char *deferred_undo(struct arena *a, const struct rel *rel, const struct written *w,
                                 const struct found *before, const bool *write)
{
    if (!before) return deferred_at(a, "DELETE FROM", rel, w->ctid, w->tableoid, "");
    struct buf b = {0};
    const char *sep = " SET ";
    buf_fmt(&b, "UPDATE %s%s", rel->only, rel->quoted);
    for (int i = 0; i < rel->ncolumns; i++) {
        if (!write[i] || !rel_carries(rel, i) || rel_target(rel, i)->identity_always) continue;
        buf_fmt(&b, "%s%s = ", sep, rel_target(rel, i)->quoted);
        if (before->values[i]) sql_literal(&b, before->values[i]);
        else buf_str(&b, "NULL");
        sep = ", ";
    }
    buf_fmt(&b, " WHERE ctid = '%s'::tid AND tableoid = %s", w->ctid, w->tableoid);
    const char *sql = arena_str(a, b.data);
    buf_free(&b);
    return sql;
}

/* After a write to a table with deferrable keys: remember whoever is in the way.  Where
 * session_replication_role rests triggers, nobody else would ever look. */
static status MUST_CHECK careful_defer(struct apply *ap, struct arena *a, const struct change *c,
                                       const struct value *row, const struct written *w,
                                       const struct found *before, const bool *write)
{
    struct rel *rel = c->rel;
    struct arena *keep = &ap->txn_arena;
    struct found self = {.ctid = w->ctid, .tableoid = w->tableoid};
    struct collisions all;
    if (!rel->has_deferrable) return TW_OK;
    TRY(careful_collisions(ap, a, c, row, &self, &all));
    if (!all.n) return TW_OK;
    struct deferred *d = arena_new(keep, struct deferred);
    struct conflict k = {.kind = before ? CONF_update_exists : CONF_insert_exists,
                         .outcome = "", .existing = json_existing(a, rel, before, &all)};
    if (all.n > 1) k.kind = CONF_multiple_unique_conflicts;
    conflict_values(ap, keep, c, &k, d->record);
    TRY(conflict_decide(ap, c, k.kind, collisions_us(&all), &d->act));
    d->quiet = change_catches_up(c);
    d->quoted = arena_str(keep, rel->quoted);
    d->mine_sql = deferred_at(keep, "SELECT 1 FROM", rel, w->ctid, w->tableoid, " FOR UPDATE");
    d->undo_sql = deferred_undo(keep, rel, w, before, write);
    d->n = all.n;
    d->there_sql = arena_array(keep, const char *, all.n);
    d->delete_sql = arena_array(keep, const char *, all.n);
    for (int i = 0; i < all.n; i++) {
        const struct found *f = &all.items[i].row;
        d->there_sql[i] = deferred_at(keep, "SELECT 1 FROM", rel, f->ctid, f->tableoid,
                                      " FOR UPDATE");
        d->delete_sql[i] = deferred_at(keep, "DELETE FROM", rel, f->ctid, f->tableoid, "");
    }
    d->next = ap->deferred;
    ap->deferred = d;
    return TW_OK;
}

static status MUST_CHECK deferred_settle(struct apply *ap, struct arena *a, struct deferred *d)
{
    const char *mine, *there = NULL;
    TRY(db_value(ap->to, a, "look for the row", d->mine_sql, 0, NULL, &mine));
    for (int i = 0; mine && i < d->n && !there; i++)
        TRY(db_value(ap->to, a, "look for the row in the way", d->there_sql[i], 0, NULL, &there));
    if (!there) return TW_OK;
    if (d->act == ACT_STOP) {
        d->record[3] = arena_str(&ap->left_arena, "stopped");
        return conflict_stop_record(ap, d->quoted, d->record);
    }
    d->record[3] = arena_str(a, d->act == ACT_SKIP ? "kept" : "overwritten");
    ap->conflicts += !d->quiet;
    if (!d->quiet)
        TRY(db_exec_params(ap->to, "record a conflict", conflict_sql, CONFLICT_VALUES,
                           (const char *const *) d->record));
    if (d->act == ACT_SKIP) return db_exec(ap->to, "undo a change", d->undo_sql);
    for (int i = 0; i < d->n; i++) TRY(db_exec(ap->to, "delete a row", d->delete_sql[i]));
    return TW_OK;
}

/* The end of a source transaction, when deferrable keys must hold. */
static status MUST_CHECK apply_settle_deferred(struct apply *ap)
{
    struct arena a = {0};
    status s = TW_OK;
    for (struct deferred *d = ap->deferred; d && s == TW_OK; d = d->next)
        s = deferred_settle(ap, &a, d);
    arena_free(&a);
    ap->deferred = NULL;
    if (s == TW_OK) arena_reset(&ap->txn_arena);  /* else the failed record lives there */
    return s;
}

/* ---- completing rows ---- */

/* Read a row back from the source by the new key, for TOASTed values that did not travel.
 * *out NULL: the source no longer has it; a later change of the stream will say why. */
static status MUST_CHECK careful_read_back(struct apply *ap, struct arena *a,
                                           const struct change *c, struct value **out)
{
    const struct rel *rel = c->rel;
    struct sqlb q;
    const char *sep = "SELECT ";
    sqlb_init(&q, a, rel);
    for (int i = 0; i < rel->ncolumns; i++, sep = ", ") {
        buf_str(&q.sql, sep);
        sql_ident(&q.sql, rel->columns[i].name);
    }
    buf_fmt(&q.sql, " FROM ONLY %s WHERE ", rel->quoted);
    for (int i = 0; i < rel->nident; i++) {
        int k = rel->ident[i];
        if (i) buf_str(&q.sql, " AND ");
        sql_ident(&q.sql, rel->columns[k].name);
        buf_fmt(&q.sql, " %s ", rel->ident_ops[i]);
        const struct value *v = &c->m.new.values[k];
        sqlb_param(&q, rel->columns[k].type,
                   value_text(v->kind == 'u' ? rel_key_value(&c->m, k) : v));
    }
    PGresult *r;
    TRY(sqlb_run(&q, ap->from, "read a row back", &r));
    *out = NULL;
    if (PQntuples(r) != 1) return TW_OK;
    struct value *row = arena_array(a, struct value, rel->ncolumns + 1);
    for (int i = 0; i < rel->ncolumns; i++) {
        const char *text = db_cell(r, 0, i);
        row[i] = value_of(text);
    }
    *out = row;
    return TW_OK;
}

/* The whole new row of an update: unchanged TOASTed values from the old image where it came,
 * else read back.  *out NULL as above. */
static status MUST_CHECK careful_complete(struct apply *ap, struct arena *a,
                                          const struct change *c, struct value **out)
{
    const struct rel *rel = c->rel;
    struct value *row = arena_array(a, struct value, rel->ncolumns + 1);
    bool missing = false;
    for (int i = 0; i < rel->ncolumns; i++) {
        row[i] = c->m.new.values[i];
        if (row[i].kind != 'u') continue;
        if (c->m.old_kind == 'O' || (c->m.old_kind == 'K' && rel->columns[i].is_key))
            row[i] = c->m.old.values[i];
        else
            missing = true;
    }
    *out = row;
    if (!missing) return TW_OK;
    struct value *read = NULL;
    TRY(careful_read_back(ap, a, c, &read));
    for (int i = 0; read && i < rel->ncolumns; i++)
        if (row[i].kind == 'u') row[i] = read[i];
    if (!read) *out = NULL;
    return TW_OK;
}

/* ---- one change, with all its conflicts ---- */

enum { CAREFUL_TRIES = 20 };

/* Take rows that are in the way out of it; `keep` is left. */
static status MUST_CHECK careful_clear(struct apply *ap, struct arena *a, struct rel *rel,
                                       const struct collisions *all, const struct collision *keep)
{
    for (int i = 0; i < all->n; i++)
        if (&all->items[i] != keep) TRY(careful_delete(ap, a, rel, &all->items[i].row));
    return TW_OK;
}

/* An insert has met rows in its way: decide, and write if the incoming row wins. */
static status MUST_CHECK careful_insert_conflict(struct apply *ap, struct arena *a,
                                                 const struct change *c, const struct value *row,
                                                 const struct collisions *all)
{
    struct conflict k = {.kind = all->n > 1 ? CONF_multiple_unique_conflicts : CONF_insert_exists,
                         .existing = json_existing(a, c->rel, NULL, all)};
    enum conf_action act;
    TRY(conflict_decide(ap, c, k.kind, collisions_us(all), &act));
    if (act == ACT_STOP) return conflict_stop(ap, c, k);
    k.outcome = act == ACT_SKIP ? "kept" : "overwritten";
    TRY(conflict_record(ap, a, c, k));
    if (act == ACT_SKIP) return TW_OK;
    const struct collision *same = NULL;
    for (int i = 0; i < all->n; i++)
        if (all->items[i].by_identity) same = &all->items[i];
    TRY(careful_clear(ap, a, c->rel, all, same));
    struct written w;
    if (same) {
        bool *write = arena_array(a, bool, c->rel->ncolumns + 1);
        for (int i = 0; i < c->rel->ncolumns; i++) write[i] = rel_carries(c->rel, i);
        TRY(careful_try_update(ap, a, c->rel, &same->row, write, row, &w));
    } else {
        TRY(careful_try_insert(ap, a, c->rel, row, &w));
    }
    if (w.unique)
        return fail(ap->e, TW_ETXN, "rows of %s changed while a conflict was decided",
                    c->rel->quoted);
    return TW_OK;
}

/* Refused by a key, and nobody found in the way, again and again. */
static status careful_refused(struct apply *ap, const struct rel *rel)
{
    return fail(ap->e, TW_ESERVER, "could not write to %s: %s refuses the row, and what is in its "
                "way cannot be told", rel->quoted, ap->violated);
}

static status MUST_CHECK careful_insert(struct apply *ap, struct arena *a, const struct change *c,
                                        const struct value *row)
{
    for (int i = 0; i < CAREFUL_TRIES; i++) {
        struct written w;
        struct collisions all;
        TRY(careful_try_insert(ap, a, c->rel, row, &w));
        if (!w.unique) return careful_defer(ap, a, c, row, &w, NULL, NULL);
        TRY(careful_collisions(ap, a, c, row, NULL, &all));
        if (all.n) return careful_insert_conflict(ap, a, c, row, &all);
        /* The row in the way was deleted meanwhile: try again. */
    }
    return careful_refused(ap, c->rel);
}

enum { DELETED_WAIT_S = 3 };

/* Did the target's own side delete the row, and when?  The opposite task knows, once it has decoded
 * all that was committed there by now.  0: it did not, or it cannot be told: then the sides may
 * part here, and are settled. */
static status MUST_CHECK careful_deleted(struct apply *ap, struct arena *a, const struct change *c,
                                         usec *when)
{
    struct stat_task *other = ap->other;
    const char *text;
    lsn_t lsn;
    *when = 0;
    if (!other || !other->enabled || !c->rel->nident) return TW_OK;
    TRY(db_value(ap->to, a, "read the WAL position", "SELECT pg_current_wal_flush_lsn()", 0, NULL,
                 &text));
    if (!text || !lsn_parse(text, &lsn)) return TW_OK;
    usec deadline = os_now() + DELETED_WAIT_S * USEC_SEC;
    while (other->received_lsn < lsn && other->received_lsn != ap->stalled_lsn &&
           other->state == TASK_Running && os_now() < deadline) {
        os_sleep_ms(2);
        TRY(db_tick(ap->to));
    }
    ap->stalled_lsn = other->received_lsn < lsn ? (lsn_t) other->received_lsn : 0;
    uint64_t key = rel_hash_key(c->rel, c->m.old_kind ? c->m.old.values : c->m.new.values);
    enum tw_direction dir = ap->dir == TW_FORWARD ? TW_REVERSE : TW_FORWARD;
    size_t i = key % MEMORY_DELETES;
    if (ap->memory->deleted[dir][i].key == key) *when = ap->memory->deleted[dir][i].us;
    return TW_OK;
}

/* A change that DDL of A has left no room for, or for some of its values. */
static status MUST_CHECK careful_refuse(struct apply *ap, const struct change *c, bool whole)
{
    struct arena a = {0};
    struct conflict k = {.kind = CONF_refused, .outcome = whole ? "skipped" : "merged"};
    if (!c->rel->told_refused)
        log_warning("%s of %s that %c has no room for since its DDL are left out; `twsync"
                    " conflicts` has them", whole ? "changes" : "values", c->rel->quoted,
                    ap->to->node->letter);
    c->rel->told_refused = true;
    status s = conflict_record(ap, &a, c, k);
    arena_free(&a);
    return s;
}

static status MUST_CHECK careful_update_missing(struct apply *ap, struct arena *a,
                                                const struct change *c)
{
    struct value *row;
    usec gone_us = 0;
    char known = 0;
    if (c->guessed) return careful_refuse(ap, c, true);
    if (!change_catches_up(c)) TRY(careful_deleted(ap, a, c, &gone_us));
    if (!gone_us && c->rel->policy == POLICY_FAIL)  /* what stopped us may be forgotten by now */
        TRY(conflict_wanted(ap, c, CONF_update_deleted, &known));
    struct conflict k = {.kind = gone_us || known ? CONF_update_deleted : CONF_update_missing};
    enum conf_action act;
    TRY(conflict_decide(ap, c, k.kind, gone_us, &act));
    if (act == ACT_STOP) return conflict_stop(ap, c, k);
    if (act == ACT_SKIP) {
        k.outcome = "kept";
        return conflict_record(ap, a, c, k);
    }
    TRY(careful_complete(ap, a, c, &row));
    k.outcome = row ? "inserted" : "skipped";
    TRY(conflict_record(ap, a, c, k));
    return row ? careful_insert(ap, a, c, row) : TW_OK;
}

/* The update's key or another unique value belongs to another row. */
static status MUST_CHECK careful_update_exists(struct apply *ap, struct arena *a,
                                               const struct change *c, const struct found *f,
                                               const bool *write, const struct value *row,
                                               const struct collisions *all)
{
    struct conflict k = {.kind = all->n > 1 ? CONF_multiple_unique_conflicts : CONF_update_exists,
                         .existing = json_existing(a, c->rel, f, all)};
    enum conf_action act;
    TRY(conflict_decide(ap, c, k.kind, collisions_us(all), &act));
    if (act == ACT_STOP) return conflict_stop(ap, c, k);
    k.outcome = act == ACT_SKIP ? "kept" : "overwritten";
    TRY(conflict_record(ap, a, c, k));
    if (act == ACT_SKIP) return TW_OK;
    TRY(careful_clear(ap, a, c->rel, all, NULL));
    struct written w;
    TRY(careful_try_update(ap, a, c->rel, f, write, row, &w));
    if (w.unique)
        return fail(ap->e, TW_ETXN, "rows of %s changed while a conflict was decided",
                    c->rel->quoted);
    return TW_OK;
}

static status MUST_CHECK careful_update_write(struct apply *ap, struct arena *a,
                                              const struct change *c, const struct found *f,
                                              const bool *write, const struct value *row)
{
    /* What the row will be: kept columns included, since they take part in keys. */
    struct value *whole = careful_whole(a, c->rel, f, write, row);
    for (int i = 0; i < CAREFUL_TRIES; i++) {
        struct written w;
        struct collisions all;
        TRY(careful_try_update(ap, a, c->rel, f, write, row, &w));
        if (!w.unique) return careful_defer(ap, a, c, whole, &w, f, write);
        TRY(careful_collisions(ap, a, c, whole, f, &all));
        if (all.n) return careful_update_exists(ap, a, c, f, write, row, &all);
    }
    return careful_refused(ap, c->rel);
}

/* Every column that holds another value than the change left from. */
static int careful_differs(const struct change *c, const struct found *f, const bool *of,
                           bool *differs)
{
    int n = 0;
    for (int i = 0; i < c->rel->ncolumns; i++) {
        differs[i] = rel_carries(c->rel, i) && (!of || of[i]) && !f->same[i];
        n += differs[i];
    }
    return n;
}

/* Which columns the update means to write.  rel_changed() leaves out a generated-always identity,
 * which cannot be SET; careful_try_update() replaces the row if its value really is another. */
static void careful_changed(const struct change *c, bool *changed)
{
    const struct rel *rel = c->rel;
    const struct value *row = c->m.new.values;
    rel_changed(rel, &c->m, changed);
    for (int i = 0; i < rel->ncolumns; i++) {
        if (!rel_carries(rel, i) || !rel_target(rel, i)->identity_always || row[i].kind == 'u')
            continue;
        bool known = c->m.old_kind == 'O' || (c->m.old_kind && rel->columns[i].is_key);
        changed[i] = known ? !value_equal(&row[i], &c->m.old.values[i]) : !rel->columns[i].is_key;
    }
}

/* Columns that differ but hold what the update brings are in no dispute: a cascade of the target's
 * own foreign key was faster, or both sides wrote the same. */
static bool careful_disputed(struct arena *a, const struct change *c, const struct found *f,
                             const bool *differs)
{
    bool *brought = arena_array(a, bool, c->rel->ncolumns + 1);
    for (int i = 0; i < c->rel->ncolumns; i++) {
        const struct value *now = &c->m.new.values[i];
        brought[i] = !rel_carries(c->rel, i) ||
                     (now->kind == 'u' ? !differs[i] : careful_same(f->values[i], now, false));
    }
    return conf_disputed(c->rel->merge, c->rel->ncolumns, differs, brought);
}

/* The row is there and holds other values: decide.  *any: something is left to write. */
static status MUST_CHECK careful_update_differs(struct apply *ap, struct arena *a,
                                                const struct change *c, const struct found *f,
                                                const bool *changed, const bool *differs,
                                                bool *write, bool *any)
{
    struct conflict k = {.kind = CONF_update_differs,
                         .existing = json_existing(a, c->rel, f, NULL)};
    bool disputed = careful_disputed(a, c, f, differs);
    enum conf_action act = ACT_WRITE;
    if (disputed) TRY(conflict_decide(ap, c, k.kind, f->at_us, &act));
    if (act == ACT_STOP) return conflict_stop(ap, c, k);
    *any = true;
    if (disputed)
        *any = conf_columns(c->rel->merge, act, c->rel->ncolumns, changed, differs, write);
    k.outcome = !disputed ? "equal" : act == ACT_WRITE ? "overwritten" : *any ? "merged" : "kept";
    return conflict_record(ap, a, c, k);
}

/* What is under the key may be another row than the change left from: deleted and inserted again
 * since.  So all of the new row is written. */
static status MUST_CHECK careful_catch_up(struct apply *ap, struct arena *a,
                                          const struct change *c, const struct found *f)
{
    const struct rel *rel = c->rel;
    struct value *row;
    bool *write = arena_array(a, bool, rel->ncolumns + 1);
    for (int i = 0; i < rel->ncolumns; i++) write[i] = rel_carries(rel, i);
    TRY(careful_complete(ap, a, c, &row));
    if (row) return careful_update_write(ap, a, c, f, write, row);
    return change_moves(c) ? careful_delete(ap, a, rel, f) : TW_OK;  /* more of it is to come */
}

static status MUST_CHECK careful_update(struct apply *ap, struct arena *a, const struct change *c)
{
    struct rel *rel = c->rel;
    struct found *f;
    bool *changed = arena_array(a, bool, rel->ncolumns + 1);
    bool *differs = arena_array(a, bool, rel->ncolumns + 1);
    bool *write = arena_array(a, bool, rel->ncolumns + 1);
    TRY(careful_find(ap, a, c, &f));
    if (!f) return careful_update_missing(ap, a, c);
    if (change_catches_up(c)) return careful_catch_up(ap, a, c, f);
    struct value *row = c->m.new.values;
    careful_changed(c, changed);
    memcpy(write, changed, sizeof(bool) * (size_t) rel->ncolumns);
    const bool *compare = rel->merge == MERGE_ROWS ? NULL : changed;
    if (c->m.old_kind == 'O' && careful_differs(c, f, compare, differs)) {
        bool any;
        TRY(careful_update_differs(ap, a, c, f, changed, differs, write, &any));
        if (!any) return TW_OK;
        TRY(careful_complete(ap, a, c, &row));
        assert(row);  /* the whole old row came */
    }
    return careful_update_write(ap, a, c, f, write, row);
}

static status MUST_CHECK careful_remove(struct apply *ap, struct arena *a, const struct change *c)
{
    struct found *f;
    TRY(careful_find(ap, a, c, &f));
    if (!f) {
        struct conflict k = {.kind = CONF_delete_missing, .outcome = "ignored"};
        return conflict_record(ap, a, c, k);
    }
    bool *differs = arena_array(a, bool, c->rel->ncolumns + 1);
    if (c->m.old_kind == 'O' && careful_differs(c, f, NULL, differs)) {
        struct conflict k = {.kind = CONF_delete_differs,
                             .existing = json_existing(a, c->rel, f, NULL)};
        enum conf_action act;
        TRY(conflict_decide(ap, c, k.kind, f->at_us, &act));
        if (act == ACT_STOP) return conflict_stop(ap, c, k);
        k.outcome = act == ACT_SKIP ? "kept" : "overwritten";
        TRY(conflict_record(ap, a, c, k));
        if (act == ACT_SKIP) return TW_OK;
    }
    return careful_delete(ap, a, c->rel, f);
}

/* One change, looked at before it is written.  This defines what is right. */
static status MUST_CHECK apply_careful(struct apply *ap, struct change *c)
{
    struct arena a = {0};
    status s = TW_OK;
    switch (c->lost ? 0 : c->m.kind) {
    case 'I': s = careful_insert(ap, &a, c, c->m.new.values); break;
    case 'U': s = careful_update(ap, &a, c); break;
    case 'D': s = careful_remove(ap, &a, c); break;
    default: assert(c->lost);
    }
    if (s == TW_OK && c->sent) s = careful_refuse(ap, c, c->lost);
    arena_free(&a);
    return s;
}

/* ---- what DDL of A leaves no room for ---- */

/* Do the row's values offend, and not the statement or the server?  (documentation, appendix A) */
static bool state_refuses(const char *state)
{
    return !strncmp(state, "22", 2) || !strncmp(state, "23", 2) || str_is(state, "44000") ||
           str_is(state, "42846") || str_is(state, "P0001");
}

/* Reverse: has A's schema changes that B had not when it wrote this, or which B would not have? */
static status MUST_CHECK refused_by_ddl(struct apply *ap, const struct change *c, bool *yes)
{
    struct arena a = {0};
    const char *values[] = {ap->job, lsn_text(&a, c->commit_lsn), c->rel->a_schema,
                            c->rel->a_name};
    const char *done = NULL, *any = NULL;
    status s = db_value(ap->from, &a, "read what is done",
                        "SELECT coalesce(array_agg(id), '{}') FROM twsync.ddl_done d WHERE job = $1"
                        " AND lsn < $2::pg_lsn AND NOT EXISTS (SELECT FROM twsync.parked WHERE task"
                        " = $1 || '/forward' AND schema_name = $3 AND table_name = $4)", 4, values,
                        &done);
    values[1] = done;
    if (s == TW_OK)
        s = db_value(ap->to, &a, "read the DDL", "SELECT 1 FROM twsync.ddl WHERE job = $1 AND"
                     " changes IS NOT NULL AND id <> ALL ($2::bigint[]) LIMIT 1", 2, values, &any);
    arena_free(&a);
    *yes = any != NULL;
    return s;
}

/* May DDL of A be the reason? */
static bool apply_may_be_refused(const struct apply *ap, status s)
{
    return s == TW_ESERVER && ap->ddl_sum && state_refuses(ap->e->sqlstate);
}

/* One change in a savepoint of its own: where DDL refuses it, it is left out and recorded. */
static status MUST_CHECK apply_apart(struct apply *ap, struct change *c)
{
    struct deferred *deferred = ap->deferred;
    int64_t conflicts = ap->conflicts;
    bool by_ddl;
    TRY(db_exec(ap->to, "set a savepoint", "SAVEPOINT tw_change"));
    status s = apply_careful(ap, c);
    if (s == TW_OK) return db_exec(ap->to, "release a savepoint", "RELEASE SAVEPOINT tw_change");
    if (!apply_may_be_refused(ap, s)) return s;
    struct tw_error why = *ap->e;
    error_clear(ap->e);
    TRY(db_exec(ap->to, "roll back to a savepoint", "ROLLBACK TO SAVEPOINT tw_change"));
    ap->deferred = deferred;
    ap->conflicts = conflicts;
    TRY(refused_by_ddl(ap, c, &by_ddl));
    if (by_ddl) return careful_refuse(ap, c, true);
    *ap->e = why;
    return s;
}

/* The changes one at a time; where one may be refused by DDL they begin again, each apart. */
static status MUST_CHECK apply_one_by_one(struct apply *ap, struct change *changes, int n)
{
    struct deferred *deferred = ap->deferred;
    int64_t conflicts = ap->conflicts;
    status s = TW_OK;
    for (int i = 0; i < n && s == TW_OK; i++) s = apply_careful(ap, &changes[i]);
    if (!apply_may_be_refused(ap, s)) return s;
    error_clear(ap->e);
    TRY(db_exec(ap->to, "roll back to a savepoint", "ROLLBACK TO SAVEPOINT tw_window"));
    ap->deferred = deferred;
    ap->conflicts = conflicts;
    for (int i = 0; i < n; i++) TRY(apply_apart(ap, &changes[i]));
    return TW_OK;
}

/* ---- the optimistic pipeline ---- */

static void pipe_add(struct pipeline *p, enum sent_kind kind, bool *ready, const char *what)
{
    assert(p->n < PIPE_ROOM);
    p->sent[p->n++] = (struct sent){kind, ready, what};
}

static status MUST_CHECK pipe_sql(struct pipeline *p, enum sent_kind kind, const char *what,
                                  const char *sql, int n, const char *const *values)
{
    pipe_add(p, kind, NULL, what);
    if (!PQsendQueryParams(p->d->pg, sql, n, NULL, values, NULL, NULL, 0))
        return db_fail_conn(p->d, what);
    return TW_OK;
}

/* Statements of every batch, prepared once in a session.  A mark must meet our row of our epoch, or
 * we were replaced; guarded, it fails where it does not, and with it all that was sent after it. */
#define APPLY_MARK_SET "UPDATE twsync.progress SET updated_at = clock_timestamp()"
#define APPLY_MARK_LSN APPLY_MARK_SET ", applied_lsn = $3::pg_lsn"
#define APPLY_MARK_FULL APPLY_MARK_LSN ", applied_at = 'epoch'::timestamptz"                       \
                        " + $4::bigint * '1 microsecond'::interval"
#define APPLY_MARK_WHERE " WHERE task = $1 AND epoch = $2::bigint"

/* What A has of DDL, as a sum that every one of it raises; those that are under way at once are
 * among the newest. */
#define APPLY_DDL_SUM "coalesce(sum(id), 0) FROM (SELECT id FROM twsync.ddl WHERE job = $1"        \
                      " AND changes IS NOT NULL ORDER BY id DESC LIMIT 200) d"

static const struct {
    const char *name, *sql, *what;
    enum sent_kind kind;
} apply_fixed[] = {
    [FIXED_MARK] = {"tw_mark", APPLY_MARK_SET APPLY_MARK_WHERE, "write the progress", SENT_MARK},
    [FIXED_MARK_LSN] = {"tw_mark_lsn", APPLY_MARK_LSN APPLY_MARK_WHERE, "write the progress",
                        SENT_MARK},
    [FIXED_MARK_FULL] = {"tw_mark_full", APPLY_MARK_FULL APPLY_MARK_WHERE, "write the progress",
                         SENT_MARK},
    [FIXED_GUARD] = {"tw_guard", "WITH tw AS (" APPLY_MARK_FULL APPLY_MARK_WHERE " RETURNING 1)"
                                 " SELECT 1 / count(*) FROM tw", "write the progress", SENT_GUARD},
    [FIXED_ORIGIN] = {"tw_origin",
                      "SELECT pg_replication_origin_xact_setup($1::pg_lsn,"
                      " 'epoch'::timestamptz + $2::bigint * '1 microsecond'::interval)",
                      "set the origin of the transaction", SENT_CONTROL},
    [FIXED_WAL] = {"tw_wal", "SELECT pg_current_wal_insert_lsn(), pg_current_wal_flush_lsn()",
                   "read the WAL position", SENT_WAL},
    [FIXED_DDL] = {"tw_ddl", "SELECT 1 / (sum = $2::numeric)::int FROM (SELECT " APPLY_DDL_SUM
                             ") s(sum)", "look for DDL in between", SENT_DDL},
};

static status MUST_CHECK pipe_fixed(struct apply *ap, struct pipeline *p, enum fixed f, int n,
                                    const char *const *values)
{
    if (!ap->fixed_ready[f]) {
        pipe_add(p, SENT_PREPARE, &ap->fixed_ready[f], apply_fixed[f].what);
        if (!PQsendPrepare(ap->to->pg, apply_fixed[f].name, apply_fixed[f].sql, 0, NULL))
            return db_fail_conn(ap->to, apply_fixed[f].what);
        ap->fixed_ready[f] = true;
    }
    pipe_add(p, apply_fixed[f].kind, NULL, apply_fixed[f].what);
    if (!PQsendQueryPrepared(ap->to->pg, apply_fixed[f].name, n, values, NULL, NULL, 0))
        return db_fail_conn(ap->to, apply_fixed[f].what);
    return TW_OK;
}

/* The marker, with the progress if `lsn` is given. */
static status MUST_CHECK apply_send_mark(struct apply *ap, struct pipeline *p, lsn_t lsn,
                                         usec commit_us, bool guard)
{
    struct arena *a = &ap->scratch;
    const char *values[] = {ap->task, arena_fmt(a, "%" PRId64, ap->epoch), NULL, NULL};
    if (lsn) values[2] = lsn_text(a, lsn);
    if (lsn && commit_us) values[3] = arena_fmt(a, "%" PRId64, commit_us);
    int n = !lsn ? 2 : !commit_us ? 3 : 4;
    assert(!guard || n == 4);
    enum fixed mark = n == 2 ? FIXED_MARK : n == 3 ? FIXED_MARK_LSN : FIXED_MARK_FULL;
    return pipe_fixed(ap, p, guard ? FIXED_GUARD : mark, n, values);
}

static void stmt_guard(struct stmt *st, struct arena *a)
{
    if (st->guard_sql) return;
    bool writes = st->sql[0] != 'S';
    snprintf(st->guard_name, sizeof st->guard_name, "%sg", st->name);
    st->guard_sql = arena_fmt(a, "WITH tw AS (%s%s) SELECT 1 / (count(*) = %d)::int FROM tw",
                              st->sql, writes ? " RETURNING 1" : "", st->op != 'A');
}

/* Send a statement for one change.  Guarded, it fails where it does not meet one row, or, of a row
 * that must be absent, none. */
static status MUST_CHECK pipe_send_stmt(struct apply *ap, struct pipeline *p, struct stmt *st,
                                        const struct dml *m, bool guard)
{
    guard = guard && st->op != 'I';
    if (guard) stmt_guard(st, &st->rel->arena);
    const char *name = guard ? st->guard_name : st->name;
    bool *ready = guard ? &st->guard_ready : &st->ready;
    if (!*ready) {
        pipe_add(p, SENT_PREPARE, ready, "prepare a statement");
        if (!PQsendPrepare(ap->to->pg, name, guard ? st->guard_sql : st->sql, st->nparams,
                           st->types))
            return db_fail_conn(ap->to, "prepare a statement");
        *ready = name[0] != 0;  /* taken back if its reply is not good */
    }
    const char **values = arena_array(&ap->scratch, const char *, st->nparams + 1);
    for (int i = 0; i < st->nparams; i++)
        values[i] = value_text(rel_param_value(m, &st->params[i]));
    pipe_add(p, st->op == 'R' ? SENT_ROWS : st->op == 'A' && !guard ? SENT_ABSENT : SENT_CHANGE,
             NULL, "apply a change");
    if (!PQsendQueryPrepared(ap->to->pg, name, st->nparams, values, NULL, NULL, 0))
        return db_fail_conn(ap->to, "apply a change");
    return TW_OK;
}

static struct stmt *apply_stmt(struct apply *ap, struct rel *rel, char op, char old_kind,
                               const struct colset *cols)
{
    return rel_stmt(rel, op, old_kind, op == 'U' ? cols : NULL, &ap->serial, &ap->scratch);
}

/* Does the change touch a deferrable key? */
static bool apply_touches_deferrable(const struct change *c)
{
    if (!c->rel->has_deferrable || c->m.kind == 'D') return false;
    return c->m.kind == 'I' || c->cols->deferrable;
}

/* Can a table be caught up with by rows put in place?  Where the key cannot arbitrate, or somebody
 * listens to each write, or a column cannot be SET, the careful way is taken. */
static bool apply_puts(const struct rel *rel)
{
    const struct unique_key *k = rel->identity;
    if (!rel->bulk || !k || !k->plain || k->deferrable || k->exclusion) return false;
    for (int i = 0; i < rel->ncolumns; i++)
        if (rel_carries(rel, i) && rel_target(rel, i)->identity_always) return false;
    return true;
}

/* A table of several snapshots: its row shall be what this change made of it, whatever it is now.
 * Each key's last change is followed by what the source holds. */
static status MUST_CHECK apply_catch_up(struct apply *ap, struct pipeline *p,
                                        const struct change *c)
{
    struct dml m = c->m;
    struct rel *rel = c->rel;
    if (m.kind == 'U') {
        m.new.values = arena_array(&ap->scratch, struct value, rel->ncolumns + 1);
        for (int i = 0; i < rel->ncolumns; i++) {
            const struct value *v = &c->m.new.values[i];
            m.new.values[i] = v->kind == 'u' && m.old_kind == 'O' ? m.old.values[i] : *v;
            if (rel_carries(rel, i) && m.new.values[i].kind == 'u') p->doubt = true;
        }
    }
    p->doubt = p->doubt || !apply_puts(rel);
    if (p->doubt) return TW_OK;
    if (m.kind == 'D' || change_moves(c))
        TRY(pipe_send_stmt(ap, p, apply_stmt(ap, rel, 'R', m.old_kind, NULL), &m, false));
    if (m.kind == 'D') return TW_OK;
    return pipe_send_stmt(ap, p, apply_stmt(ap, rel, 'P', 0, NULL), &m, false);
}

/* Changes that no single statement can do safely go the careful way, and their window with them. */
static status MUST_CHECK apply_send_change(struct apply *ap, struct pipeline *p,
                                           const struct change *c)
{
    if (p->doubt) return TW_OK;
    if (change_catches_up(c)) return apply_catch_up(ap, p, c);
    if (c->cannot || apply_touches_deferrable(c)) p->doubt = true;
    if (p->doubt) return TW_OK;
    struct stmt *st = apply_stmt(ap, c->rel, c->m.kind, c->m.old_kind, c->cols);
    return pipe_send_stmt(ap, p, st, &c->m, false);
}

/* Did a statement meet as many rows as it should? */
static bool pipe_met(PGresult *r, int64_t n)
{
    if (PQresultStatus(r) == PGRES_TUPLES_OK) return PQntuples(r) == n;
    return strtoll(PQcmdTuples(r), NULL, 10) == n;
}

static status apply_fenced(struct apply *ap)
{
    return fail(ap->e, TW_EFENCED, "progress of task %s on %c was taken over by another twsync",
                ap->task, ap->to->node->letter);
}

enum { WAL_ASK_US = USEC_SEC / 5 };

/* Which progress is on the target's disk?  A commit does not wait for that, and the source must
 * not forget more (failures A7).  Asked from time to time, with the head of a batch or, in quiet
 * times, alone: what was applied when WAL stood at wal_lsn is on disk when as much of WAL is. */
static status MUST_CHECK apply_send_wal(struct apply *ap, struct pipeline *p)
{
    usec now = os_now();
    if (ap->durable_lsn >= ap->applied_lsn || now < ap->ask_due_us) return TW_OK;
    ap->ask_due_us = now + WAL_ASK_US;
    return pipe_fixed(ap, p, FIXED_WAL, 0, NULL);
}

/* The answer: of the time before the batch that came behind the question. */
static status MUST_CHECK apply_hear_wal(struct apply *ap, const PGresult *r)
{
    lsn_t at = 0, flushed = 0;
    if (PQntuples(r) != 1 || !lsn_parse(db_cell(r, 0, 0), &at) ||
        !lsn_parse(db_cell(r, 0, 1), &flushed))
        return fail(ap->e, TW_EPROTO, "no WAL position on %c", ap->to->node->letter);
    if (ap->awaited.wal_lsn && flushed >= ap->awaited.wal_lsn) {
        ap->durable_lsn = ap->awaited.applied_lsn;
        ap->awaited.wal_lsn = 0;
    }
    if (ap->awaited.wal_lsn || ap->durable_lsn == ap->applied_lsn) return TW_OK;
    ap->awaited.applied_lsn = ap->applied_lsn;
    ap->awaited.wal_lsn = at;
    return TW_OK;
}

/* Judge one result of the pipeline. */
static status MUST_CHECK pipe_judge(struct apply *ap, struct pipeline *p, const struct sent *s,
                                    PGresult *r)
{
    bool ok = db_result_ok(r);
    if (s->kind == SENT_PREPARE && !ok) *s->ready = false;
    if (PQresultStatus(r) == PGRES_PIPELINE_ABORTED) return TW_OK;
    if (s->kind == SENT_CHANGE || s->kind == SENT_PREPARE || s->kind == SENT_ABSENT ||
        s->kind == SENT_ROWS) {
        if (!ok && PQstatus(ap->to->pg) == CONNECTION_BAD)
            return db_fail_result(ap->to, r, s->what);
        if (!ok || (s->kind == SENT_CHANGE && !pipe_met(r, 1)) ||
            (s->kind == SENT_ABSENT && !pipe_met(r, 0)))
            p->doubt = true;
        return TW_OK;
    }
    const char *state = PQresultErrorField(r, PG_DIAG_SQLSTATE);
    if (s->kind == SENT_GUARD && !ok && state && str_is(state, "22012")) p->fenced = true;
    if (p->fenced) return apply_fenced(ap);
    if (s->kind == SENT_DDL && !ok && state && str_is(state, "22012"))
        return fail(ap->e, TW_ETXN, "there was DDL on %c meanwhile", ap->to->node->letter);
    if (!ok) return db_fail_result(ap->to, r, s->what);
    if (s->kind == SENT_MARK && !pipe_met(r, 1)) return apply_fenced(ap);
    return s->kind == SENT_WAL ? apply_hear_wal(ap, r) : TW_OK;
}

/* Sync, then read the results of everything sent. */
static status MUST_CHECK pipe_finish(struct apply *ap, struct pipeline *p)
{
    if (!PQpipelineSync(ap->to->pg)) return db_fail_conn(ap->to, "send");
    status s = TW_OK;
    for (int i = 0; i < p->n; i++) {
        PGresult *r;
        TRY(db_next_result(ap->to, &r));
        if (!r) return db_fail_conn(ap->to, "receive a result");
        if (s == TW_OK) s = pipe_judge(ap, p, &p->sent[i], r);
        PQclear(r);
        if (PQstatus(ap->to->pg) == CONNECTION_BAD)
            return s != TW_OK ? s : db_fail_conn(ap->to, "receive a result");
        TRY(db_next_result(ap->to, &r));  /* the NULL after each statement */
        PQclear(r);
    }
    PGresult *r;
    TRY(db_next_result(ap->to, &r));
    if (s == TW_OK && PQresultStatus(r) == PGRES_FATAL_ERROR) {  /* the commit itself */
        s = db_fail_result(ap->to, r, "commit");
        PQclear(r);
        TRY(db_next_result(ap->to, &r));
        if (!r) TRY(db_next_result(ap->to, &r));
    }
    bool synced = PQresultStatus(r) == PGRES_PIPELINE_SYNC;
    PQclear(r);
    if (!synced || !PQexitPipelineMode(ap->to->pg))
        return s != TW_OK ? s : fail(ap->e, TW_EPROTO, "the target's answers are out of step");
    arena_reset(&ap->scratch);
    return s;
}

static status MUST_CHECK pipe_open(struct apply *ap, struct pipeline *p)
{
    p->d = ap->to;
    p->n = 0;
    p->doubt = p->fenced = false;
    if (!PQenterPipelineMode(ap->to->pg)) return db_fail_conn(ap->to, "start a pipeline");
    return TW_OK;
}

/* The head of a window: the batch is open and has a savepoint, so all that follows can be undone.
 * final_lsn: the batch ends with this window, so its progress is written only once; else 0.
 * guard: its commit is sent before we see the answers. */
static status MUST_CHECK apply_send_head(struct apply *ap, struct pipeline *p, lsn_t final_lsn,
                                         bool guard)
{
    if (!ap->open) {
        TRY(apply_send_wal(ap, p));
        TRY(pipe_sql(p, SENT_CONTROL, "begin", "BEGIN", 0, NULL));
        TRY(apply_send_mark(ap, p, final_lsn, ap->commit_us, guard));
        TRY(pipe_sql(p, SENT_CONTROL, "defer constraints", "SET CONSTRAINTS ALL DEFERRED", 0,
                     NULL));
    }
    if (ap->savepoint)
        TRY(pipe_sql(p, SENT_CONTROL, "release a savepoint", "RELEASE SAVEPOINT tw_window", 0,
                     NULL));
    return pipe_sql(p, SENT_CONTROL, "set a savepoint", "SAVEPOINT tw_window", 0, NULL);
}

/* Before the commit and not earlier: an aborted transaction must not move the origin (A14). */
static status MUST_CHECK apply_send_origin(struct apply *ap, struct pipeline *p)
{
    const char *values[] = {lsn_text(&ap->scratch, ap->end_lsn),
                            arena_fmt(&ap->scratch, "%" PRId64, ap->commit_us)};
    return pipe_fixed(ap, p, FIXED_ORIGIN, 2, values);
}

/* Reverse: was there DDL on A since we looked what things are called there?  Whatever we have
 * written to is locked by now, so that none can come after this look. */
static status MUST_CHECK apply_send_ddl(struct apply *ap, struct pipeline *p)
{
    const char *values[] = {ap->job, ap->ddl_sum};
    return ap->ddl_sum ? pipe_fixed(ap, p, FIXED_DDL, 2, values) : TW_OK;
}

static status MUST_CHECK apply_send_commit(struct apply *ap, struct pipeline *p)
{
    TRY(apply_send_ddl(ap, p));
    if (ap->origin) TRY(apply_send_origin(ap, p));
    TESTPOINT(ap->e, "apply.commit.before");
    return pipe_sql(p, SENT_CONTROL, "commit", "COMMIT", 0, NULL);
}

/* ---- the row path ---- */

/* Some changes of a window: as one pipeline, and if that meets a doubt one at a time. */
static status MUST_CHECK apply_rows(struct apply *ap, struct change *changes, int n,
                                    lsn_t final_lsn)
{
    struct pipeline *p = &ap->pipe;
    bool refused = false;
    TRY(pipe_open(ap, p));
    TRY(apply_send_head(ap, p, final_lsn, false));
    for (int i = 0; i < n; i++) refused = refused || changes[i].sent;
    for (int i = 0; i < n && !refused; i++) TRY(apply_send_change(ap, p, &changes[i]));
    TRY(pipe_finish(ap, p));
    ap->open = ap->savepoint = true;
    if (!p->doubt && !refused) return TW_OK;
    TRY(db_exec(ap->to, "roll back to a savepoint", "ROLLBACK TO SAVEPOINT tw_window"));
    return apply_one_by_one(ap, changes, n);
}

static status MUST_CHECK apply_by_row(struct apply *ap, struct window *w, lsn_t final_lsn)
{
    for (int i = 0; i < w->n || !ap->open; i += WINDOW_ROWS) {
        int n = w->n - i < WINDOW_ROWS ? w->n - i : WINDOW_ROWS;
        TRY(apply_rows(ap, w->changes + i, n, final_lsn));
    }
    return TW_OK;
}

/* ---- the bulk path ---- */

enum { BULK_LEAST = 32, BULK_CHUNK = 64 * 1024, BULK_PAUSE_MOST = 64 };

/* The statements a window needs, in the order they run: what goes, then what must be absent, what
 * changes, what comes. */
struct bulk {
    struct stmt **items;
    int n, cap;
};

static int bulk_rank(char op)
{
    return (int) (strchr("DAUI", op) - "DAUI");
}

static int bulk_order(const void *a, const void *b)
{
    const struct stmt *x = *(struct stmt *const *) a, *y = *(struct stmt *const *) b;
    return bulk_rank(x->op) - bulk_rank(y->op);
}

static void bulk_put(struct apply *ap, struct bulk *bulk, struct net *n, char op)
{
    struct rel *rel = n->rel;
    struct stmt *st = apply_stmt(ap, rel, op, op == 'I' ? 0 : n->m.old_kind, n->cols);
    if (!st->n++) {
        if (bulk->n == bulk->cap) {
            bulk->cap = bulk->cap ? 2 * bulk->cap : 16;
            bulk->items = mem_resize(bulk->items, sizeof *bulk->items * (size_t) bulk->cap);
        }
        bulk->items[bulk->n++] = st;
        st->first = NULL;
        st->last = &st->first;
    }
    struct net **next = op == 'I' ? &n->next_insert : &n->next;
    *st->last = n;
    st->last = next;
    *next = NULL;
    if (st->n > rel->most) rel->most = st->n;
}

static struct net **bulk_link(const struct stmt *st, struct net *n)
{
    return st->op == 'I' ? &n->next_insert : &n->next;
}

static struct net *bulk_next(const struct stmt *st, struct net *n)
{
    return *bulk_link(st, n);
}

/* By key, with runs that double in length (a merge sort); equals stay in their order. */
static void bulk_sort(struct stmt *st)
{
    for (int64_t run = 1; run < st->n; run *= 2) {
        struct net *rest = st->first;
        st->last = &st->first;
        while (rest) {
            struct net *a = rest, *b = a;
            int64_t na = run, nb = run;
            for (int64_t i = 0; b && i < run; i++) b = bulk_next(st, b);
            while ((na && a) || (nb && b)) {
                bool left = na && (!nb || !b || a->order <= b->order);
                struct net *n = left ? a : b;
                *st->last = n;
                st->last = bulk_link(st, n);
                if (left) {
                    a = bulk_next(st, a);
                    na--;
                } else {
                    b = bulk_next(st, b);
                    nb--;
                }
                if (!b) nb = 0;
            }
            rest = b;
        }
        *st->last = NULL;
    }
}

/* Share out the net changes among their statements. */
static void bulk_plan(struct apply *ap, struct window *w, struct bulk *bulk)
{
    for (uint32_t i = 0; i < w->nnets; i++) w->nets[i].rel->most = 0;
    for (uint32_t i = 0; i < w->nnets; i++) {
        struct net *n = &w->nets[i];
        if (n->m.kind != 'I') bulk_put(ap, bulk, n, n->m.kind);
        if (n->insert) bulk_put(ap, bulk, n, 'I');
    }
    qsort(bulk->items, (size_t) bulk->n, sizeof *bulk->items, bulk_order);
    for (int i = 0; i < bulk->n; i++)
        if (bulk->items[i]->rel->nident) bulk_sort(bulk->items[i]);
}

/* Tables with few changes: their net changes as single statements. */
static status MUST_CHECK bulk_few(struct apply *ap, const struct bulk *bulk, lsn_t final_lsn)
{
    struct pipeline *p = &ap->pipe;
    TRY(pipe_open(ap, p));
    TRY(apply_send_head(ap, p, final_lsn, false));
    for (int i = 0; i < bulk->n; i++) {
        struct stmt *st = bulk->items[i];
        if (st->rel->most >= BULK_LEAST) continue;
        for (struct net *n = st->first; n && !p->doubt; n = bulk_next(st, n)) {
            if (p->n > PIPE_ROOM - 4) {
                TRY(pipe_finish(ap, p));
                if (p->doubt) return TW_OK;
                TRY(pipe_open(ap, p));
            }
            TRY(pipe_send_stmt(ap, p, st, &n->m, false));
        }
    }
    TRY(pipe_finish(ap, p));
    ap->open = ap->savepoint = true;
    return TW_OK;
}

/* The statements of one kind of change: fill the staging table, then use it; or fill the table. */
static void bulk_text(struct apply *ap, struct buf *b, struct stmt *st)
{
    struct rel *rel = st->rel;
    if (!st->bulk_sql) {
        snprintf(st->stage, sizeof st->stage, "pg_temp.%s", st->name);
        st->bulk_sql = stmt_build(rel, st, STMT_STAGED, &rel->arena);
    }
    if (st->op != 'I') {
        if (!st->staged) {
            buf_fmt(b, "CREATE TEMP TABLE %s (", st->stage);
            for (int i = 0; i < st->nparams; i++)
                buf_fmt(b, "%sp%d %s", i ? ", " : "", i + 1,
                        rel_target(rel, st->params[i].column)->declared);
            buf_str(b, ") ON COMMIT DELETE ROWS;");
        } else if (st->staged_in == ap->batch) {
            buf_fmt(b, "TRUNCATE %s;", st->stage);
        }
        buf_fmt(b, "COPY %s FROM STDIN;", st->stage);
    }
    buf_fmt(b, "%s;", st->bulk_sql);
}

/* One value in COPY's text format. */
static void bulk_value(struct buf *b, const struct value *v)
{
    const char *text = value_text(v);
    if (!text) {
        buf_str(b, "\\N");
        return;
    }
    buf_room(b, 2 * (size_t) v->len + 1);
    char *out = b->data + b->len;
    for (uint32_t i = 0; i < v->len; i++) {
        char c = text[i];
        if (c == '\\' || c == '\n' || c == '\r' || c == '\t') {
            *out++ = '\\';
            c = c == '\n' ? 'n' : c == '\r' ? 'r' : c == '\t' ? 't' : c;
        }
        *out++ = c;
    }
    b->len = (size_t) (out - b->data);
}

static void bulk_row(struct buf *b, const struct stmt *st, const struct net *n)
{
    for (int i = 0; i < st->nparams; i++) {
        if (i) buf_char(b, '\t');
        bulk_value(b, rel_param_value(&n->m, &st->params[i]));
    }
    buf_char(b, '\n');
}

static status MUST_CHECK bulk_send(struct apply *ap, struct buf *b)
{
    if (PQputCopyData(ap->to->pg, b->data, (int) b->len) < 0)
        return db_fail_conn(ap->to, "send rows");
    b->len = 0;
    return db_flush(ap->to);
}

static status MUST_CHECK bulk_copy(struct apply *ap, const struct stmt *st)
{
    struct buf *b = &ap->rows_text;
    b->len = 0;
    for (struct net *n = st->first; n; n = bulk_next(st, n)) {
        bulk_row(b, st, n);
        if (b->len > BULK_CHUNK) TRY(bulk_send(ap, b));
    }
    if (b->len) TRY(bulk_send(ap, b));
    if (PQputCopyEnd(ap->to->pg, NULL) < 0) return db_fail_conn(ap->to, "send rows");
    return TW_OK;
}

/* The next result of a bulk string; anything unexpected is a doubt, and ends it. */
static status MUST_CHECK bulk_result(struct apply *ap, bool copy_in, int64_t n, bool *doubt)
{
    PGresult *r;
    TRY(db_next_result(ap->to, &r));
    status s = TW_OK;
    if (!r || PQstatus(ap->to->pg) == CONNECTION_BAD)
        s = db_fail_conn(ap->to, "apply changes");
    else if (!db_result_ok(r) || (PQresultStatus(r) == PGRES_COPY_IN) != copy_in ||
             (n >= 0 && !pipe_met(r, n)))
        *doubt = true;
    if (*doubt && s == TW_OK)
        log_debug("bulk: %s", db_result_ok(r) ? PQcmdStatus(r) : PQresultErrorMessage(r));
    PQclear(r);
    return s;
}

static status MUST_CHECK bulk_results(struct apply *ap, const struct stmt *st, bool *doubt)
{
    bool stages = st->op != 'I';
    if (stages && (!st->staged || st->staged_in == ap->batch))
        TRY(bulk_result(ap, false, -1, doubt));
    if (!*doubt) TRY(bulk_result(ap, true, -1, doubt));
    if (*doubt) return TW_OK;
    TRY(bulk_copy(ap, st));
    TRY(bulk_result(ap, false, st->n, doubt));
    if (stages && !*doubt) TRY(bulk_result(ap, false, st->op == 'A' ? 0 : st->n, doubt));
    return TW_OK;
}

/* After a doubt: what else the server says.  It reads no rows any more. */
static status MUST_CHECK bulk_drain(struct apply *ap)
{
    for (;;) {
        PGresult *r;
        TRY(db_next_result(ap->to, &r));
        if (!r) return TW_OK;
        ExecStatusType st = PQresultStatus(r);
        PQclear(r);
        if (PQstatus(ap->to->pg) == CONNECTION_BAD)
            return db_fail_conn(ap->to, "apply changes");
        if (st == PGRES_COPY_IN && PQputCopyEnd(ap->to->pg, "not needed") < 0)
            return db_fail_conn(ap->to, "end a copy");
    }
}

/* Tables with many changes: all their statements in one string, so that a far target costs one
 * round trip per COPY and no more. */
static status MUST_CHECK bulk_many(struct apply *ap, const struct bulk *bulk, bool *doubt)
{
    struct buf b = {0};
    for (int i = 0; i < bulk->n; i++)
        if (bulk->items[i]->rel->most >= BULK_LEAST) bulk_text(ap, &b, bulk->items[i]);
    if (!b.len) return TW_OK;
    int sent = PQsendQuery(ap->to->pg, b.data);
    buf_free(&b);
    if (!sent) return db_fail_conn(ap->to, "apply changes");
    for (int i = 0; i < bulk->n && !*doubt; i++)
        if (bulk->items[i]->rel->most >= BULK_LEAST)
            TRY(bulk_results(ap, bulk->items[i], doubt));
    TRY(bulk_drain(ap));
    for (int i = 0; i < bulk->n && !*doubt; i++) {
        struct stmt *st = bulk->items[i];
        if (st->rel->most < BULK_LEAST || st->op == 'I') continue;
        st->staged = true;
        st->staged_in = ap->batch;
    }
    return TW_OK;
}

static status MUST_CHECK bulk_by_copy(struct apply *ap, const struct bulk *bulk, lsn_t final_lsn,
                                      bool *doubt)
{
    TRY(bulk_few(ap, bulk, final_lsn));
    *doubt = ap->pipe.doubt;
    TESTPOINT(ap->e, "apply.bulk");
    return *doubt ? TW_OK : bulk_many(ap, bulk, doubt);
}

/* ---- the bulk path in one round trip ----
 *
 * A COPY cannot be part of a pipeline: each waits for the server to ask for its rows, and the
 * commit for their counts.  Where the target is far, values go as arrays instead, every statement
 * guarded and the commit right behind them.  Arrays take the target about a microsecond more for
 * each row (UPDATE of 80,000 of 1,000,000 rows: 5.1 us of CPU a row, by COPY 4.1), and cannot
 * carry arrays. */

enum { ARRAY_CHUNK = 256 * 1024, ARRAY_ROW_US = 1 };

static bool array_can(const struct stmt *st)
{
    for (int i = 0; i < st->nparams; i++)
        if (!rel_target(st->rel, st->params[i].column)->array) return false;
    return st->nparams > 0;
}

/* Are arrays the faster way?  What is saved: the round trips of the head, of each COPY, of the
 * counts and the commit, but for one. */
static bool bulk_wants_arrays(const struct apply *ap, const struct bulk *bulk)
{
    int64_t rows = 0, copies = 0;
    for (int i = 0; i < bulk->n; i++) {
        const struct stmt *st = bulk->items[i];
        if (st->rel->most < BULK_LEAST) continue;
        if (!array_can(st)) return false;
        rows += st->n;
        copies++;
    }
    if (ap->how == BULK_ARRAYS || ap->how == BULK_COPY) return ap->how == BULK_ARRAYS;
    return ap->rtt_us * (copies + 2) > rows * ARRAY_ROW_US;
}

/* The statement that takes arrays.  It fails where it does not meet as many rows as they are. */
static void array_build(struct stmt *st, struct arena *a)
{
    if (st->array_sql) return;
    const char *sql = stmt_build(st->rel, st, STMT_ARRAYS, a);
    snprintf(st->array_name, sizeof st->array_name, "%sa", st->name);
    st->array_types = arena_array(a, Oid, st->nparams + 1);
    for (int i = 0; i < st->nparams; i++)
        st->array_types[i] = rel_target(st->rel, st->params[i].column)->array;
    st->array_types[st->nparams] = 20;  /* int8 (pg_type.dat) */
    st->array_sql = st->op == 'I' ? sql
        : arena_fmt(a, "WITH tw AS (%s%s) SELECT 1 / (count(*) = $%d)::int FROM tw", sql,
                    sql[0] == 'S' ? "" : " RETURNING 1", st->nparams + 1);
}

/* The values of changes from n on, as many as make a chunk; *count: how many.  Returns the rest. */
static struct net *array_fill(struct apply *ap, const struct stmt *st, struct net *n,
                              int64_t *count)
{
    size_t bytes = 0;
    for (int i = 0; i < st->nparams; i++) ap->arrays[i].len = 0;
    for (*count = 0; n && bytes < ARRAY_CHUNK; n = bulk_next(st, n), ++*count) {
        for (int i = 0; i < st->nparams; i++) {
            size_t before = ap->arrays[i].len;
            array_value(&ap->arrays[i], rel_param_value(&n->m, &st->params[i]));
            bytes += ap->arrays[i].len - before;
        }
    }
    for (int i = 0; i < st->nparams; i++) {
        buf_char(&ap->arrays[i], '}');
        buf_char(&ap->arrays[i], '\0');
    }
    return n;
}

static void array_room(struct apply *ap, int n)
{
    if (n <= ap->narrays) return;
    ap->arrays = mem_resize(ap->arrays, sizeof *ap->arrays * (size_t) n);
    memset(ap->arrays + ap->narrays, 0, sizeof *ap->arrays * (size_t) (n - ap->narrays));
    ap->narrays = n;
}

static status MUST_CHECK array_send(struct apply *ap, struct pipeline *p, struct stmt *st,
                                    int64_t count)
{
    const char **values = arena_array(&ap->scratch, const char *, st->nparams + 1);
    for (int i = 0; i < st->nparams; i++) values[i] = ap->arrays[i].data;
    values[st->nparams] = arena_fmt(&ap->scratch, "%" PRId64, st->op == 'A' ? 0 : count);
    int n = st->nparams + (st->op != 'I');
    if (!st->array_ready) {
        pipe_add(p, SENT_PREPARE, &st->array_ready, "prepare a statement");
        if (!PQsendPrepare(ap->to->pg, st->array_name, st->array_sql, n, st->array_types))
            return db_fail_conn(ap->to, "prepare a statement");
        st->array_ready = true;
    }
    pipe_add(p, SENT_ROWS, NULL, "apply changes");
    if (!PQsendQueryPrepared(ap->to->pg, st->array_name, n, values, NULL, NULL, 0))
        return db_fail_conn(ap->to, "apply changes");
    return db_flush(ap->to);
}

/* A pipeline has room for so many answers; what was sent is judged, and a new one begun. */
static status MUST_CHECK pipe_make_room(struct apply *ap, struct pipeline *p)
{
    if (p->n < PIPE_ROOM - 8) return TW_OK;
    TRY(pipe_finish(ap, p));
    ap->open = ap->savepoint = true;
    return p->doubt ? TW_OK : pipe_open(ap, p);
}

static status MUST_CHECK array_changes(struct apply *ap, struct pipeline *p, struct stmt *st)
{
    bool single = st->rel->most < BULK_LEAST;
    if (!single) {
        array_room(ap, st->nparams);
        array_build(st, &st->rel->arena);
    }
    for (struct net *n = st->first; n && !p->doubt;) {
        int64_t count;
        if (single) {
            TRY(pipe_send_stmt(ap, p, st, &n->m, true));
            n = bulk_next(st, n);
        } else {
            n = array_fill(ap, st, n, &count);
            TRY(array_send(ap, p, st, count));
        }
        TRY(pipe_make_room(ap, p));
    }
    return TW_OK;
}

/* *committed: the batch, with the window that ends it. */
static status MUST_CHECK bulk_by_arrays(struct apply *ap, const struct bulk *bulk, lsn_t final_lsn,
                                        bool *doubt, bool *committed)
{
    struct pipeline *p = &ap->pipe;
    TESTPOINT(ap->e, "apply.bulk");
    TRY(pipe_open(ap, p));
    TRY(apply_send_head(ap, p, final_lsn, final_lsn != 0));
    for (int i = 0; i < bulk->n && !p->doubt; i++) TRY(array_changes(ap, p, bulk->items[i]));
    if (!p->doubt && final_lsn) TRY(apply_send_commit(ap, p));
    if (!p->doubt) TRY(pipe_finish(ap, p));
    *doubt = p->doubt;
    ap->open = ap->savepoint = true;
    *committed = !p->doubt && final_lsn;
    if (*committed) TESTPOINT(ap->e, "apply.commit.after");
    return TW_OK;
}

/* The window's net changes.  *doubt: something did not meet the rows it should have; everything is
 * to be rolled back to the savepoint and done row by row. */
static status MUST_CHECK apply_bulk(struct apply *ap, struct window *w, lsn_t final_lsn,
                                    bool *doubt, bool *committed)
{
    struct bulk bulk = {0};
    bulk_plan(ap, w, &bulk);
    status s = bulk_wants_arrays(ap, &bulk)
                   ? bulk_by_arrays(ap, &bulk, final_lsn, doubt, committed)
                   : bulk_by_copy(ap, &bulk, final_lsn, doubt);
    for (int i = 0; i < bulk.n; i++) bulk.items[i]->n = 0;
    mem_free(bulk.items);
    return s;
}

/* ---- a window ---- */

static void apply_count(struct apply *ap, const struct change *c)
{
    ap->inserts += c->m.kind == 'I';
    ap->updates += c->m.kind == 'U';
    ap->deletes += c->m.kind == 'D';
    ap->rows++;
}

/* Worth folding?  After a doubt the row path is taken for a while, longer each time: where
 * conflicts are frequent the attempt is a waste. */
static bool apply_may_fold(struct apply *ap, const struct window *w)
{
    if (w->by_row || w->n < BULK_LEAST) return false;
    if (!ap->pause) return true;
    ap->pause--;
    return false;
}

/* Write the window: in bulk, and if that meets a doubt row by row, which defines what is right.
 * final_lsn: the batch begins and ends with it; *committed: and was committed at once. */
static status MUST_CHECK apply_window(struct apply *ap, struct window *w, lsn_t final_lsn,
                                      bool *committed)
{
    *committed = false;
    if (!w->n && ap->open) return TW_OK;
    TESTPOINT(ap->e, "apply.window");
    bool doubt = true;
    if (apply_may_fold(ap, w)) {
        TRY(apply_bulk(ap, w, final_lsn, &doubt, committed));
        if (doubt)
            TRY(db_exec(ap->to, "roll back to a savepoint", "ROLLBACK TO SAVEPOINT tw_window"));
        ap->last_pause = !doubt ? 0 : ap->last_pause ? 2 * ap->last_pause : 1;
        if (ap->last_pause > BULK_PAUSE_MOST) ap->last_pause = BULK_PAUSE_MOST;
        ap->pause = ap->last_pause;
    }
    if (doubt) TRY(apply_by_row(ap, w, final_lsn));
    for (int i = 0; i < w->n; i++) apply_count(ap, &w->changes[i]);
    return TW_OK;
}

/* ---- batch ---- */

/* TRUNCATE is a barrier: what came before is on the server already. */
static status MUST_CHECK apply_truncate(struct apply *ap, struct rel *const *rels, int n,
                                        uint8_t options)
{
    struct buf b = {0};
    struct window none = {0};
    buf_str(&b, "TRUNCATE ");
    for (int i = 0; i < n; i++)
        buf_fmt(&b, "%s%s%s", i ? ", " : "", rels[i]->only, rels[i]->quoted);
    if (options & 2) buf_str(&b, " RESTART IDENTITY");
    bool committed;
    status s = apply_window(ap, &none, 0, &committed);
    if (s == TW_OK) s = db_exec(ap->to, "truncate", b.data);
    buf_free(&b);
    ap->truncates += n;
    ap->rows++;
    return s;
}

/* Between batches: relations are described anew for months on end. */
static status MUST_CHECK apply_sweep(struct apply *ap)
{
    if (!ap->sweep.len || ap->open) return TW_OK;
    TRY(db_exec(ap->to, "tidy up the session", ap->sweep.data));
    buf_reset(&ap->sweep);
    return TW_OK;
}

static void apply_counted(struct apply *ap)
{
    struct stat_task *st = ap->stat;
    st->inserts += ap->inserts;
    st->updates += ap->updates;
    st->deletes += ap->deletes;
    st->truncates += ap->truncates;
    st->conflicts += ap->conflicts;
    st->transactions += ap->transactions;
    st->rows += ap->rows;
    ap->inserts = ap->updates = ap->deletes = ap->truncates = 0;
    ap->conflicts = ap->transactions = ap->rows = 0;
}

/* The only function that moves applied_lsn, but for the idle mark below and a session's start. */
static void apply_committed(struct apply *ap)
{
    assert(ap->end_lsn >= ap->applied_lsn);
    ap->open = ap->savepoint = false;
    ap->applied_lsn = ap->end_lsn;
    ap->end_lsn = ap->first_lsn = 0;
    ap->batch++;
    apply_counted(ap);
}

/* The target has rolled back a batch that held nothing of the stream. */
static void apply_abandon(struct apply *ap)
{
    ap->open = ap->savepoint = false;
    ap->end_lsn = ap->first_lsn = 0;
    ap->rows = 0;
    ap->batch++;
}

enum { QUICK_MOST = 64 };

/* Can the window go with its commit in one round trip? */
static bool apply_is_quick(const struct apply *ap, const struct window *w)
{
    if (ap->open || w->settle || !w->n || w->n > QUICK_MOST || !ap->commit_us) return false;
    for (int i = 0; i < w->n; i++) {
        const struct change *c = &w->changes[i];
        if (!c->rel->bulk || c->cannot || apply_touches_deferrable(c)) return false;
        if (c->m.kind != 'I' && !c->rel->nident) return false;
        if ((c->cols && !c->cols->kept) || change_moves(c)) return false;
    }
    return true;
}

/* A few changes and their commit in one round trip: what a change of a quiet time costs.  What
 * stands before a Sync is one transaction, committed by it unless something failed; each change is
 * guarded, so one that does not meet its row fails.  *done: committed; otherwise nothing has
 * happened, and the window goes the longer way. */
static status MUST_CHECK apply_quick(struct apply *ap, struct window *w, bool *done)
{
    struct pipeline *p = &ap->pipe;
    *done = false;
    if (!apply_is_quick(ap, w)) return TW_OK;
    TESTPOINT(ap->e, "apply.window");
    TRY(pipe_open(ap, p));
    TRY(apply_send_wal(ap, p));
    TRY(apply_send_mark(ap, p, ap->end_lsn, ap->commit_us, true));
    for (int i = 0; i < w->n; i++) {
        const struct change *c = &w->changes[i];
        struct stmt *st = apply_stmt(ap, c->rel, c->m.kind, c->m.old_kind, c->cols);
        TRY(pipe_send_stmt(ap, p, st, &c->m, true));
    }
    TRY(apply_send_ddl(ap, p));
    if (ap->origin) TRY(apply_send_origin(ap, p));
    TESTPOINT(ap->e, "apply.commit.before");
    TRY(pipe_finish(ap, p));
    if (p->doubt) return TW_OK;
    TESTPOINT(ap->e, "apply.commit.after");
    for (int i = 0; i < w->n; i++) apply_count(ap, &w->changes[i]);
    apply_committed(ap);
    *done = true;
    return TW_OK;
}

/* Commit the batch with its progress.  `marked`: the batch's head wrote it. */
static status MUST_CHECK apply_commit(struct apply *ap, bool marked)
{
    struct pipeline *p = &ap->pipe;
    assert(ap->open);
    TRY(pipe_open(ap, p));
    if (!marked) TRY(apply_send_mark(ap, p, ap->end_lsn, ap->commit_us, false));
    TRY(apply_send_commit(ap, p));
    TRY(pipe_finish(ap, p));
    TESTPOINT(ap->e, "apply.commit.after");
    apply_committed(ap);
    return TW_OK;
}

static status MUST_CHECK apply_ask_wal(struct apply *ap)
{
    if (ap->open || ap->durable_lsn >= ap->applied_lsn || os_now() < ap->ask_due_us) return TW_OK;
    TRY(pipe_open(ap, &ap->pipe));
    TRY(apply_send_wal(ap, &ap->pipe));
    return pipe_finish(ap, &ap->pipe);
}

/* Progress of an idle stream: nothing of ours lay between, so the position may be remembered and
 * then confirmed (failures A8, A9). */
static status MUST_CHECK apply_idle(struct apply *ap, lsn_t lsn)
{
    struct pipeline *p = &ap->pipe;
    assert(!ap->open && lsn > ap->applied_lsn);
    TRY(pipe_open(ap, p));
    TRY(apply_send_mark(ap, p, lsn, 0, false));
    TRY(pipe_finish(ap, p));
    ap->applied_lsn = lsn;
    return TW_OK;
}

/* After a conflict under policy fail: the record, in a marked transaction of its own. */
static void apply_record_left(struct apply *ap)
{
    struct tw_error keep = *ap->e;
    if (!ap->left.set || PQstatus(ap->to->pg) != CONNECTION_OK) return;
    error_clear(ap->e);
    const char *mark[] = {ap->task};
    if (db_exec(ap->to, "roll back", "ROLLBACK; BEGIN") == TW_OK &&
        db_exec_params(ap->to, "write the progress",
                       "UPDATE twsync.progress SET updated_at = clock_timestamp() WHERE task = $1",
                       1, mark) == TW_OK &&
        db_exec_params(ap->to, "record a conflict", conflict_sql, CONFLICT_VALUES,
                       (const char *const *) ap->left.sql_values) == TW_OK &&
        db_exec(ap->to, "commit", "COMMIT") == TW_OK) {
        ap->stat->conflicts++;
        ap->left.set = false;
    } else {
        log_warning("could not record the conflict: %s", ap->e->msg);
    }
    *ap->e = keep;
}

static void apply_end(struct apply *ap)
{
    while (ap->rels) apply_forget_rel(ap, ap->rels->relid);
    arena_free(&ap->scratch);
    buf_free(&ap->rows_text);
    for (int i = 0; i < ap->narrays; i++) buf_free(&ap->arrays[i]);
    mem_free(ap->arrays);
    ap->arrays = NULL;
    ap->narrays = 0;
    buf_free(&ap->sweep);
    arena_free(&ap->txn_arena);
    arena_free(&ap->left_arena);
}

/* ==== 24. check ============================================================
 * The precheck: everything both servers must allow, measured before anything is made on them.
 *
 * Rights are found by trying, inside a transaction that is rolled back, since managed servers grant
 * by other ways than role attributes.  An item never stops the others: what could not be measured
 * is a failed item too.  The items are the rows of check_table[], in the order of the report. */

/* ---- rights: what our role may do on one server ---- */

struct rights {
    bool origin;         /* replication origins: create, use in a session, drop */
    bool replica_role;   /* session_replication_role can be, or already is, 'replica' */
    bool event_trigger;  /* event triggers can be created; only the precheck asks */
    bool commit_ts;      /* track_commit_timestamp is on */
    bool superuser, replication;  /* as the role says; managed servers may grant by membership */
};

/* The GRANT that the origin rung still lacks, NULL when it lacks none.  By name, not by signature:
 * arguments have been added to some of these. */
static const char check_origin_grants[] =
    "SELECT format('GRANT EXECUTE ON FUNCTION %s TO %I;  -- in database %I',"
    " string_agg(p.oid::regprocedure::text, ', ' ORDER BY p.proname), current_user,"
    " current_database()) FROM pg_proc p"
    " WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname IN ("
    "'pg_replication_origin_create', 'pg_replication_origin_drop', 'pg_replication_origin_oid',"
    "'pg_replication_origin_progress', 'pg_replication_origin_session_progress',"
    "'pg_replication_origin_session_setup', 'pg_replication_origin_session_reset',"
    "'pg_replication_origin_xact_setup') AND NOT has_function_privilege(p.oid, 'EXECUTE')"
    " HAVING count(*) > 0";

/* Run `sql` in a transaction and roll back.  *ok: it worked; state: the SQLSTATE if it did not. */
static status MUST_CHECK check_try(struct db *d, const char *sql, bool *ok, char state[6])
{
    PGresult *r;
    TRY(db_exec(d, "begin a transaction", "BEGIN"));
    TRY(db_attempt(d, sql, 0, NULL, &r));
    const char *code = PQresultErrorField(r, PG_DIAG_SQLSTATE);
    *ok = db_result_ok(r);
    str_copy(state, 6, code ? code : "");
    PQclear(r);
    return db_exec(d, "roll back", "ROLLBACK");
}

/* Creating an origin is undone by the rollback; setting up a session with it is not (its slot in
 * shared memory stays), so there the grants are read.  The creation also fails where 13 and older
 * ask for a superuser whatever was granted. */
static status MUST_CHECK check_try_origin(struct db *d, bool *ok)
{
    struct arena a = {0};
    const char *missing = NULL;
    char state[6];
    status s = check_try(d, "SELECT pg_replication_origin_create("
                            "'twsync_probe_' || pg_backend_pid())", ok, state);
    if (s == TW_OK)
        s = db_value(d, &a, "read function rights", check_origin_grants, 0, NULL, &missing);
    if (missing) *ok = false;
    arena_free(&a);
    return s;
}

/* The right is asked for before the function is looked up, so a missing function (42883) means
 * that the right is there, and nothing is ever created. */
static status MUST_CHECK check_try_event_trigger(struct db *d, bool *ok)
{
    char state[6];
    TRY(check_try(d, "CREATE EVENT TRIGGER twsync_probe ON ddl_command_end"
                     " EXECUTE PROCEDURE pg_catalog.twsync_no_such_function()", ok, state));
    *ok = *ok || str_is(state, "42883");
    return TW_OK;
}

static status MUST_CHECK check_rights(struct db *d, struct rights *out)
{
    static const char sql[] =
        "SELECT rolsuper, rolreplication, current_setting('track_commit_timestamp') = 'on',"
        " current_setting('session_replication_role') = 'replica'"
        " FROM pg_roles WHERE rolname = current_user";
    struct arena a = {0};
    PGresult *r = NULL;
    char state[6];
    *out = (struct rights){0};
    status s = db_query(d, &a, "read rights", sql, 0, NULL, &r);
    if (s == TW_OK && PQntuples(r)) {
        out->superuser = db_cell_true(r, 0, 0);
        out->replication = db_cell_true(r, 0, 1);
        out->commit_ts = db_cell_true(r, 0, 2);
        out->replica_role = db_cell_true(r, 0, 3);
    }
    arena_free(&a);
    if (s == TW_OK && !out->replica_role)
        s = check_try(d, "SET LOCAL session_replication_role = replica", &out->replica_role, state);
    if (s == TW_OK) s = check_try_origin(d, &out->origin);
    return s;
}

/* How transactions of ours are marked on this server (design 5). */
static const char *rights_rung(const struct rights *r)
{
    return r->origin ? "origin" : "marker";
}

/* ---- the list of items ---- */

enum check_status { CHECK_OK, CHECK_WARNING, CHECK_FAILED };

static const char *const check_status_names[] = {"ok", "warning", "failed"};

struct check_item {
    const char *code;  /* stable: scripts and [job] accept name it */
    enum check_status status;
    char node;             /* 'a', 'b', or '-' for both or neither */
    bool ignorable;        /* a failure may be accepted in the job */
    bool accepted;         /* and it is */
    const char *measured;  /* never NULL, nor are the next two; "" where there is nothing to say */
    const char *needed;
    const char *remedy;    /* commands, one a line */
};

struct check_list {
    struct check_item *items;
    int n, room;
    bool passed;       /* nothing failed but what the job accepts */
    bool unreachable;  /* a server could not be connected to */
};

struct check_node {
    const struct node *node;
    struct db db, repl;
    bool up, repl_up;        /* connected, and to be asked */
    const char *role, *dbname;  /* as SQL identifiers */
    const char *version;        /* "PostgreSQL 15.18" */
    const char *dboid, *started;  /* database oid, start of the server: who it is */
    struct source_id id;
    struct rights rights;
    const char *oids;  /* '{1,2}': A: selected tables; B: those of the same names that exist */
};

struct check {
    const struct job *job;
    struct arena *arena;
    struct check_list *list;
    struct tw_error e;
    struct check_node n[2];
    const struct check_row *row;  /* being run: check_add() takes code and ignorable from it */
    char at;                      /* node of the item being run, '-' for none */
    bool initialised;   /* the target knows this job: its slots and tables are ours */
    bool one_cluster;   /* both databases live on one server and share its slots */
    bool selected;      /* the next fields are set */
    struct table_list tables, unsupported;
    struct qname_list missing;
    PGresult *target;   /* per selected table: name, relkind on B or NULL */
};

enum check_scope { EACH, SOURCES, TARGETS, ONLY_A, ONLY_B, BOTH, LOCAL };
enum check_stage { STAGE_CONNECT, STAGE_SERVER, STAGE_TABLES };

struct check_row {
    const char *code;
    enum check_scope scope;
    enum check_stage stage;
    bool ignorable;
    status (*run)(struct check *c, struct check_node *n);  /* n: NULL for BOTH and LOCAL */
};

enum { CHECK_NAMES = 20 };         /* longer lists of names are cut here */
enum { CHECK_LONG_S = 300 };       /* a transaction open longer is worth a warning */
enum { CHECK_CLOCK_MS = 1000 };    /* a difference of the clocks beyond this too */
enum { CHECK_OLDEST = 11, CHECK_NEWEST = 18 };  /* server versions */

static bool check_accepts(const struct job *job, const char *code)
{
    for (int i = 0; i < job->accept.n; i++)
        if (!strcasecmp(job->accept.items[i], code)) return true;
    return false;
}

static void check_add(struct check *c, enum check_status st, const char *measured,
                      const char *needed, const char *remedy)
{
    struct check_list *l = c->list;
    assert(c->row && measured && needed);
    if (l->n == l->room) {
        struct check_item *more = arena_array(c->arena, struct check_item, l->room * 2 + 32);
        if (l->n) memcpy(more, l->items, sizeof *more * (size_t) l->n);
        l->items = more;
        l->room = l->room * 2 + 32;
    }
    l->items[l->n++] = (struct check_item){
        .code = c->row->code, .status = st, .node = c->at, .ignorable = c->row->ignorable,
        .accepted = c->row->ignorable && check_accepts(c->job, c->row->code),
        .measured = arena_str(c->arena, measured), .needed = arena_str(c->arena, needed),
        .remedy = arena_str(c->arena, remedy ? remedy : "")};
}

static void PRINTF(2, 3) check_ok(struct check *c, const char *fmt, ...)
{
    char text[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    check_add(c, CHECK_OK, text, "", "");
}

#define check_text(c, ...) arena_fmt((c)->arena, __VA_ARGS__)

/* Names or commands gathered into one text, cut after CHECK_NAMES with a count of the rest. */
struct gather {
    struct buf b;
    int n;
};

static void gather_add(struct gather *g, const char *sep, const char *text)
{
    if (g->n++ >= CHECK_NAMES) return;
    if (g->n > 1) buf_str(&g->b, sep);
    buf_str(&g->b, text);
}

static const char *gather_end(struct check *c, struct gather *g, const char *sep)
{
    if (g->n > CHECK_NAMES)
        buf_fmt(&g->b, "%s%sand %d more", sep, sep[0] == '\n' ? "-- " : "", g->n - CHECK_NAMES);
    const char *text = arena_str(c->arena, buf_cstr(&g->b));
    buf_free(&g->b);
    *g = (struct gather){0};
    return text;
}

/* A column of a result as one text: sep ", " for names, "\n" for commands. */
static const char *check_column(struct check *c, const PGresult *r, int col, const char *sep)
{
    struct gather g = {0};
    for (int i = 0; i < PQntuples(r); i++)
        if (!PQgetisnull(r, i, col)) gather_add(&g, sep, PQgetvalue(r, i, col));
    return gather_end(c, &g, sep);
}

/* Most items: a query whose rows are what is wrong (column 0: its name, 1: the command that mends
 * it, may be absent).  `ok` is reported when there are none. */
static status MUST_CHECK check_rows(struct check *c, struct check_node *n, enum check_status bad,
                                    const char *sql, int nvalues, const char *const *values,
                                    const char *ok, const char *needed)
{
    PGresult *r;
    TRY(db_query(&n->db, c->arena, check_text(c, "check %s", c->row->code), sql, nvalues, values,
                 &r));
    if (PQntuples(r))
        check_add(c, bad, check_column(c, r, 0, ", "), needed,
                  PQnfields(r) > 1 ? check_column(c, r, 1, "\n") : "");
    else
        check_ok(c, "%s", ok);
    return TW_OK;
}

static status MUST_CHECK check_setting(struct check *c, struct check_node *n, const char *name,
                                       const char **out)
{
    return db_value(&n->db, c->arena, "read a setting",
                    "SELECT setting FROM pg_settings WHERE name = $1", 1, (const char *[]){name},
                    out);
}

static int check_index(const struct check *c, const struct check_node *n)
{
    return (int) (n - c->n);
}

/* A is the source of forward and always checked as one: a job without forward has no start. */
static bool check_is_source(const struct check *c, int i)
{
    return i == 0 || c->job->task[TW_REVERSE].enabled;
}

static bool check_is_target(const struct check *c, int i)
{
    return i == 1 || c->job->task[TW_REVERSE].enabled;
}

static enum tw_direction check_direction_from(int i)
{
    return i == 0 ? TW_FORWARD : TW_REVERSE;
}

/* ---- connecting ---- */

/* Why a connection failed, by SQLSTATE and, where that is not enough, the server's function that
 * raised it: message texts follow lc_messages.  Without a SQLSTATE libpq itself speaks, in English.
 * The first match counts: "" and NULL match all. */
struct check_reason {
    const char *state, *where, *text;
    const char *code, *needed, *remedy;
};

static const char check_hba_remedy[] =
    "host {database} {role} <address of this machine>/32 scram-sha-256  -- in pg_hba.conf\n"
    "SELECT pg_reload_conf();";
static const char check_tls_needed[] = "TLS settings that fit the server";
static const char check_tls_remedy[] =
    "check sslmode, sslrootcert, sslcert, sslkey, sslpassword in the job, and ssl on the server";

static const struct check_reason check_reasons[] = {
    {"28P01", NULL, NULL, "CONNECT_PASSWORD", "the right password of an existing role",
     "set password_file or passfile in the job, or: ALTER ROLE {role} PASSWORD '...';"},
    {"28", "InitializeSessionUserId", NULL, "CONNECT_ROLE", "a role that may log in",
     "CREATE ROLE {role} LOGIN REPLICATION;  -- if it exists: ALTER ROLE {role} LOGIN;"},
    {"28", NULL, "ertificate", "CONNECT_TLS", check_tls_needed, check_tls_remedy},
    {"28", NULL, NULL, "CONNECT_HBA", "a line in pg_hba.conf that lets this machine in",
     check_hba_remedy},
    {"3D000", NULL, NULL, "CONNECT_DATABASE", "an existing database",
     "CREATE DATABASE {database};"},
    {"42501", NULL, NULL, "CONNECT_RIGHT", "the right CONNECT on the database",
     "GRANT CONNECT ON DATABASE {database} TO {role};"},
    {"53300", NULL, NULL, "CONNECT_LIMIT", "a free connection",
     "ALTER ROLE {role} CONNECTION LIMIT -1;\n"
     "ALTER SYSTEM SET max_connections = ...;  -- then restart the server"},
    {"57P03", NULL, NULL, "CONNECT_STARTING", "a server that accepts connections",
     "wait until the server has started, and check again"},
    {"", NULL, "no password supplied", "CONNECT_PASSWORD", "a password",
     "set password_file or passfile in the job"},
    {"", NULL, "authentication method", "CONNECT_HBA", "an authentication both ends accept",
     "change require_auth in the job, or the method in pg_hba.conf"},
    {"", NULL, "ertificate", "CONNECT_TLS", check_tls_needed, check_tls_remedy},
    {"", NULL, "SSL", "CONNECT_TLS", check_tls_needed, check_tls_remedy},
    {"", NULL, "private key", "CONNECT_TLS", check_tls_needed, check_tls_remedy},
    {"", NULL, "channel binding", "CONNECT_TLS", check_tls_needed, check_tls_remedy},
    {"", NULL, NULL, "CONNECT_REACH", "a server that listens at this address",
     "check host and port in the job, listen_addresses on the server, and firewalls"},
};

static const struct check_reason check_replication_reasons[] = {
    {"42501", NULL, NULL, "REPLICATION_CONNECT", "a role with the right of replication",
     "ALTER ROLE {role} REPLICATION;  -- on RDS: GRANT rds_replication TO {role};"},
    {"28", NULL, NULL, "REPLICATION_CONNECT", "a line in pg_hba.conf that lets this machine in",
     check_hba_remedy},
    {"53300", NULL, NULL, "REPLICATION_CONNECT", "a free walsender",
     "ALTER SYSTEM SET max_wal_senders = ...;  -- then restart the server"},
    {"", NULL, NULL, "REPLICATION_CONNECT", "a server that accepts replication connections",
     "give the address of the server itself, not of a pooler or proxy"},
};

/* The SQLSTATE in a verbose message, "...:  28P01: password ...": five capitals or digits. */
static const char *check_find_state(const char *msg)
{
    for (const char *p = strstr(msg, ":  "); p; p = strstr(p + 1, ":  ")) {
        size_t n = strspn(p + 3, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ");
        if (n == 5 && p[8] == ':') return p + 3;
    }
    return "";
}

static const struct check_reason *check_find_reason(const struct check_reason *k, const char *state,
                                                    const char *msg)
{
    for (;; k++) {  /* the last row matches all */
        if (strncmp(state, k->state, strlen(k->state))) continue;
        if (k->where && !strstr(msg, k->where)) continue;
        if (!k->text || strstr(msg, k->text)) return k;
    }
}

/* A remedy with {role} and {database} filled in as SQL identifiers. */
static const char *check_fill(struct check *c, const struct check_node *n, const char *template)
{
    struct buf b = {0};
    for (const char *p = template; *p; p++) {
        if (!strncmp(p, "{role}", 6)) {
            buf_str(&b, n->role);
            p += 5;
        } else if (!strncmp(p, "{database}", 10)) {
            buf_str(&b, n->dbname);
            p += 9;
        } else {
            buf_char(&b, *p);
        }
    }
    const char *s = arena_str(c->arena, buf_cstr(&b));
    buf_free(&b);
    return s;
}

static void check_refused(struct check *c, const struct check_node *n,
                          const struct check_reason *reasons)
{
    const char *state = c->e.sqlstate[0] ? c->e.sqlstate : check_find_state(c->e.msg);
    const struct check_reason *k = check_find_reason(reasons, state, c->e.msg);
    char *where = strstr(c->e.msg, " LOCATION:  ");
    if (where) *where = '\0';  /* the rest is for developers of the server */
    check_add(c, CHECK_FAILED, c->e.msg, k->needed, check_fill(c, n, k->remedy));
    c->list->items[c->list->n - 1].code = k->code;
    error_clear(&c->e);
}

/* libpq keeps the SQLSTATE of a refused connection to itself unless its messages are verbose, and
 * they can be made so only once connecting has begun: db_open() ticks between its polls. */
static status check_verbose(void *arg)
{
    struct db *d = arg;
    PQsetErrorVerbosity(d->pg, PQERRORS_VERBOSE);
    return TW_OK;
}

static status MUST_CHECK check_open(struct check *c, struct check_node *n, bool replication)
{
    struct db *d = replication ? &n->repl : &n->db;
    *d = (struct db){.node = n->node, .e = &c->e, .tick = check_verbose, .tick_arg = d};
    snprintf(d->purpose, sizeof d->purpose, "%s:check", c->job->name);
    TRY(db_open(d, replication));
    d->tick = NULL;
    PQsetErrorVerbosity(d->pg, PQERRORS_DEFAULT);
    return TW_OK;
}

static const char *check_ident(struct check *c, const char *name)
{
    struct buf b = {0};
    sql_ident(&b, name);
    const char *s = arena_str(c->arena, b.data);
    buf_free(&b);
    return s;
}

/* A setting of the job as identifier, for remedies when the server cannot be asked. */
static const char *check_given(struct check *c, const struct check_node *n, const char *keyword)
{
    const char *given = job_node_setting(n->node, keyword);
    return given ? check_ident(c, given) : check_text(c, "<%s>", keyword);
}

static status check_connect(struct check *c, struct check_node *n)
{
    n->role = check_given(c, n, "user");
    n->dbname = check_given(c, n, "dbname");
    status s = check_open(c, n, false);
    if (s == TW_ESTOP) return s;
    n->up = s == TW_OK;
    if (n->up) {
        check_ok(c, "connected to %s, %s", db_label(c->arena, n->node),
                 PQsslInUse(n->db.pg) ? "with TLS" : "without TLS");
    } else {
        check_refused(c, n, check_reasons);
        c->list->unreachable = true;
    }
    return TW_OK;
}

/* Who and where we are, in the server's words. */
static status MUST_CHECK check_identify(struct check *c, struct check_node *n)
{
    static const char sql[] =
        "SELECT quote_ident(current_user), quote_ident(d.datname), d.oid,"
        " pg_postmaster_start_time(), current_setting('server_version'),"
        " current_setting('polar_version', true)"
        " FROM pg_database d WHERE d.datname = current_database()";
    PGresult *r;
    TRY(db_query(&n->db, c->arena, "identify the server", sql, 0, NULL, &r));
    if (PQntuples(r) != 1)
        return fail(&c->e, TW_EPROTO, "database of the session is not in pg_database");
    n->role = PQgetvalue(r, 0, 0);
    n->dbname = PQgetvalue(r, 0, 1);
    n->dboid = PQgetvalue(r, 0, 2);
    n->started = PQgetvalue(r, 0, 3);
    const char *polar = db_cell(r, 0, 5);
    n->version = check_text(c, "%s %s", polar ? "PolarDB for PostgreSQL" : "PostgreSQL",
                            PQgetvalue(r, 0, 4));
    return TW_OK;
}

static status check_version(struct check *c, struct check_node *n)
{
    const char *needed = check_text(c, "PostgreSQL %d to %d", CHECK_OLDEST, CHECK_NEWEST);
    int major = n->db.version / 10000;
    if (major < CHECK_OLDEST) {
        n->up = false;  /* nothing else could be asked in its language */
        check_add(c, CHECK_FAILED, check_text(c, "PostgreSQL %d", major), needed,
                  "upgrade the server");
        return TW_OK;
    }
    TRY(check_identify(c, n));
    if (major > CHECK_NEWEST)
        check_add(c, CHECK_WARNING, n->version, needed, "try a newer twsync first");
    else
        check_ok(c, "%s", n->version);
    return TW_OK;
}

static status check_replication(struct check *c, struct check_node *n)
{
    status s = check_open(c, n, true);
    if (s == TW_ESTOP) return s;
    n->repl_up = s == TW_OK;
    if (!n->repl_up) {
        check_refused(c, n, check_replication_reasons);
        return TW_OK;
    }
    TRY(slot_identify(&n->repl, &n->id));
    check_ok(c, "system %s, timeline %d", n->id.system, n->id.timeline);
    return TW_OK;
}

/* ---- servers ---- */

static status check_recovery(struct check *c, struct check_node *n)
{
    return check_rows(c, n, CHECK_FAILED, "SELECT 'a standby' WHERE pg_is_in_recovery()", 0, NULL,
                      "not a standby", "a server that can be written");
}

static status MUST_CHECK check_pid(struct check *c, struct db *d, const char *sql, const char **pid)
{
    return db_value(d, c->arena, "read the backend's pid", sql, 0, NULL, pid);
}

/* Behind a pooler in transaction mode another session can take our backend between two of our
 * transactions, and settings and locks with it.  So let one try. */
static status MUST_CHECK check_backend_moves(struct check *c, struct check_node *n,
                                             const char *before, bool *moves)
{
    struct db other = {.node = n->node, .e = &c->e, .purpose = "check"};
    const char *theirs, *after = NULL;
    TRY(db_open(&other, false));
    status s = check_pid(c, &other, "BEGIN; SELECT pg_backend_pid()", &theirs);
    if (s == TW_OK) s = check_pid(c, &n->db, "SELECT pg_backend_pid()", &after);
    db_close(&other);
    *moves = s == TW_OK && !str_is(before, after);
    return s;
}

/* A pooler or proxy gives out process ids of its own, by which it routes cancel requests. */
static status check_pooler(struct check *c, struct check_node *n)
{
    const char *pid;
    bool moves = false;
    TRY(check_pid(c, &n->db, "SELECT pg_backend_pid()", &pid));
    bool behind = atoi(pid) != PQbackendPID(n->db.pg);
    if (behind) TRY(check_backend_moves(c, n, pid, &moves));
    const char *remedy = "give the address of the server itself in the job";
    if (moves)
        check_add(c, CHECK_FAILED, "the backend changes between transactions",
                  "a session of its own", remedy);
    else if (behind)
        check_add(c, CHECK_WARNING, "a pooler or proxy is in between",
                  "sessions that last, and cancel requests that arrive", remedy);
    else
        check_ok(c, "no pooler in between");
    return TW_OK;
}

/* What check_try() and the catalog say of our role; later items read it from the node. */
static status check_role(struct check *c, struct check_node *n)
{
    TRY(check_rights(&n->db, &n->rights));
    TRY(check_try_event_trigger(&n->db, &n->rights.event_trigger));
    check_ok(c, "role %s%s%s, track_commit_timestamp %s", n->role,
             n->rights.superuser ? ", superuser" : "", n->rights.replication ? ", replication" : "",
             n->rights.commit_ts ? "on" : "off");
    return TW_OK;
}

/* The target knows a job that was initialised: what carries its name is then its own. */
static status check_initialised(struct check *c, struct check_node *n)
{
    static const char can_sql[] =
        "SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = 'twsync' AND c.relname = 'progress'"
        " AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')";
    const char *task = task_name(c->arena, c->job, TW_FORWARD), *found;
    TRY(db_value(&n->db, c->arena, "look for the progress table", can_sql, 0, NULL, &found));
    if (found)
        TRY(db_value(&n->db, c->arena, "read the progress",
                     "SELECT 1 FROM twsync.progress WHERE task = $1", 1, &task, &found));
    c->initialised = found != NULL;
    check_ok(c, c->initialised ? "initialised before: goes on" : "not initialised yet");
    return TW_OK;
}

/* Same database?  A lock taken through A and met through B proves it, whatever addresses, proxies
 * or identifiers say.  Equal identifiers without it are two copies of one data directory. */
static status check_same_database(struct check *c, struct check_node *unused)
{
    struct check_node *a = &c->n[0], *b = &c->n[1];
    usec seed = os_wall() ^ ((usec) getpid() << 40);
    const char *key = check_text(c, "%" PRId64, seed);
    const char *got_a, *got_b;
    const char *sql = "SELECT pg_try_advisory_lock($1::bigint)";
    (void) unused;
    c->one_cluster = str_is(a->started, b->started);
    TRY(db_value(&a->db, c->arena, "lock", sql, 1, &key, &got_a));
    TRY(db_value(&b->db, c->arena, "lock", sql, 1, &key, &got_b));
    const char *same = check_text(c, "%s on both ends", a->dbname);
    if (!str_is(got_a, "t") || !str_is(got_b, "t"))
        check_add(c, CHECK_FAILED, same, "two different databases", "change [a] or [b] in the job");
    else if (a->id.system[0] && str_is(a->id.system, b->id.system) && !c->one_cluster &&
             str_is(a->dboid, b->dboid))
        check_add(c, CHECK_WARNING,
                  check_text(c, "physical copies: both have system identifier %s", a->id.system),
                  "identifiers that tell the servers apart", "initialise B with initdb");
    else
        check_ok(c, "two different databases");
    return TW_OK;
}

static status check_wal_level(struct check *c, struct check_node *n)
{
    const char *level;
    TRY(check_setting(c, n, "wal_level", &level));
    if (level && str_is(level, "logical"))
        check_ok(c, "wal_level is logical");
    else
        check_add(c, CHECK_FAILED, check_text(c, "wal_level is %s", level ? level : "unknown"),
                  "wal_level = logical",
                  "ALTER SYSTEM SET wal_level = logical;  -- then restart the server; on RDS:"
                  " rds.logical_replication = 1");
    return TW_OK;
}

/* How many slots and senders this job takes on the server of node i. */
static int check_tasks_from(const struct check *c, int i)
{
    return check_is_source(c, i) + (c->one_cluster && check_is_source(c, 1 - i));
}

static status MUST_CHECK check_free(struct check *c, struct check_node *n, const char *setting,
                                    const char *used_sql)
{
    const char *max, *used;
    TRY(check_setting(c, n, setting, &max));
    TRY(db_value(&n->db, c->arena, "count slots and senders", used_sql, 1, &c->job->name,
                 &used));
    int limit = max ? atoi(max) : 0, taken = used ? atoi(used) : 0;
    int need = check_tasks_from(c, check_index(c, n));
    const char *measured = check_text(c, "%s is %d, %d used by others", setting, limit, taken);
    if (limit - taken >= need)
        check_ok(c, "%s", measured);
    else
        check_add(c, CHECK_FAILED, measured, check_text(c, "%d free", need),
                  check_text(c, "ALTER SYSTEM SET %s = %d;  -- then restart the server", setting,
                             taken + need > 10 ? taken + need : 10));
    return TW_OK;
}

static status check_slots(struct check *c, struct check_node *n)
{
    return check_free(c, n, "max_replication_slots",
                      "SELECT count(*) FROM pg_replication_slots"
                      " WHERE slot_name NOT IN ('twsync_' || $1 || '_forward',"
                      " 'twsync_' || $1 || '_reverse')");
}

static status check_senders(struct check *c, struct check_node *n)
{
    return check_free(c, n, "max_wal_senders",
                      "SELECT count(*) FROM pg_stat_replication WHERE NOT starts_with("
                      "coalesce(application_name, ''), 'twsync:' || $1 || ':')");
}

static status check_slot_name(struct check *c, struct check_node *n)
{
    static const char sql[] =
        "SELECT 'slot ' || slot_name, format('SELECT pg_drop_replication_slot(%L);', slot_name)"
        " FROM pg_replication_slots WHERE slot_name = $1"
        " AND (NOT $2::bool OR database IS DISTINCT FROM current_database())"
        " UNION ALL SELECT 'publication ' || pubname, format('DROP PUBLICATION %I;', pubname)"
        " FROM pg_publication WHERE pubname = $1 AND NOT $2::bool";
    enum tw_direction dir = check_direction_from(check_index(c, n));
    const char *values[] = {slot_name(c->arena, c->job, dir), c->initialised ? "true" : "false"};
    PGresult *r;
    TRY(db_query(&n->db, c->arena, "read slots and publications", sql, 2, values, &r));
    if (!PQntuples(r))
        check_ok(c, "%s is %s", values[0], c->initialised ? "ours" : "not taken");
    else
        check_add(c, CHECK_FAILED, check_column(c, r, 0, ", "),
                  check_text(c, "no slot or publication %s of another or a former job", values[0]),
                  check_text(c, "twsync release %s\n%s", c->job->path,
                             check_column(c, r, 1, "\n")));
    return TW_OK;
}

static status check_create_right(struct check *c, struct check_node *n)
{
    static const char sql[] =
        "SELECT 'no CREATE on database ' || quote_ident(current_database()),"
        " format('GRANT CREATE ON DATABASE %I TO %I;', current_database(), current_user)"
        " WHERE NOT has_database_privilege(current_database(), 'CREATE')";
    return check_rows(c, n, CHECK_FAILED, sql, 0, NULL, "CREATE on the database",
                      "the right to create schema twsync and publications");
}

/* Rows of twsync.progress are what the stream is resumed by, and what tells echoes from changes:
 * whoever can write them can hide or repeat changes. */
static status check_schema_twsync(struct check *c, struct check_node *n)
{
    static const char sql[] =
        "WITH s AS (SELECT oid, nspowner, nspacl FROM pg_namespace WHERE nspname = 'twsync')"
        " SELECT 'schema twsync belongs to ' || pg_get_userbyid(nspowner),"
        " format('ALTER SCHEMA twsync OWNER TO %I;', current_user)"
        " FROM s WHERE NOT pg_has_role(nspowner, 'USAGE')"
        " UNION ALL SELECT format('twsync.%I belongs to %s', relname, pg_get_userbyid(relowner)),"
        " format('ALTER TABLE twsync.%I OWNER TO %I;', relname, current_user)"
        " FROM s JOIN pg_class ON relnamespace = s.oid"
        " WHERE relkind = 'r' AND NOT pg_has_role(relowner, 'USAGE')"
        " UNION ALL SELECT format('%s may create in schema twsync', x.who),"
        " format('REVOKE ALL ON SCHEMA twsync FROM %s;', x.who)"
        " FROM s, aclexplode(nspacl) acl, LATERAL (SELECT CASE acl.grantee WHEN 0 THEN 'PUBLIC'"
        " ELSE quote_ident(pg_get_userbyid(acl.grantee)) END AS who) x"
        " WHERE acl.grantee <> nspowner AND acl.privilege_type = 'CREATE'"
        " UNION ALL SELECT DISTINCT format('%s may write twsync.%I', x.who, relname),"
        " format('REVOKE ALL ON twsync.%I FROM %s;', relname, x.who)"
        " FROM s JOIN pg_class ON relnamespace = s.oid, aclexplode(relacl) acl, LATERAL"
        " (SELECT CASE acl.grantee WHEN 0 THEN 'PUBLIC'"
        " ELSE quote_ident(pg_get_userbyid(acl.grantee)) END AS who) x"
        " WHERE relkind = 'r' AND acl.grantee <> relowner AND acl.privilege_type"
        " IN ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER')";
    return check_rows(c, n, CHECK_FAILED, sql, 0, NULL, "not there, or ours alone",
                      "a schema twsync that only our role can write");
}

/* What gives a role the right to replication origins. */
static status MUST_CHECK check_origin_remedy(struct check *c, struct check_node *n,
                                             const char **remedy)
{
    *remedy = NULL;
    if (n->db.version >= 140000)
        TRY(db_value(&n->db, c->arena, "read function rights", check_origin_grants, 0, NULL,
                     remedy));
    if (!*remedy) *remedy = check_fill(c, n, "ALTER ROLE {role} SUPERUSER;");
    return TW_OK;
}

static status check_latest_origin(struct check *c, struct check_node *n)
{
    const char *remedy;
    TRY(check_origin_remedy(c, n, &remedy));
    check_add(c, CHECK_FAILED, "applied transactions cannot carry their commit time",
              "the right to replication origins, since the job says latest", remedy);
    return TW_OK;
}

/* Policy latest compares when rows were committed, on the side where that was done first. */
static status check_latest(struct check *c, struct check_node *n)
{
    if (!job_uses_policy(c->job, POLICY_LATEST))
        check_ok(c, "policy latest is not used");
    else if (!n->rights.commit_ts)
        check_add(c, CHECK_FAILED, "track_commit_timestamp is off",
                  "on, since the job says latest",
                  "ALTER SYSTEM SET track_commit_timestamp = on;  -- then restart the server");
    else if (!n->rights.origin)
        return check_latest_origin(c, n);
    else
        check_ok(c, "track_commit_timestamp is on, and applied transactions keep their time");
    return TW_OK;
}

static status check_rung(struct check *c, struct check_node *n)
{
    const char *remedy;
    if (n->rights.origin) {
        check_ok(c, "origin: applied transactions carry a replication origin and the marker row");
        return TW_OK;
    }
    TRY(check_origin_remedy(c, n, &remedy));
    check_add(c, CHECK_OK, "marker: applied transactions are known by the row of twsync.progress",
              "nothing; a superuser can raise it to origin", remedy);
    return TW_OK;
}

static status check_event_trigger(struct check *c, struct check_node *n)
{
    if (!c->job->task[TW_FORWARD].ddl) {
        check_ok(c, "ddl = no: no DDL is carried");
    } else if (n->rights.event_trigger) {
        check_ok(c, "event triggers can be created by this role: DDL is carried");
    } else {
        check_add(c, CHECK_OK, "event triggers cannot be created by this role: of DDL only added"
                  " columns are carried", "nothing; a superuser, or the provider's role for it, can"
                  " raise it", "");
    }
    return TW_OK;
}

/* Creating a slot waits for every transaction that writes, in any database of the server, and
 * setting a replica identity for those that only read its table. */
static status check_long_transactions(struct check *c, struct check_node *n)
{
    static const char sql[] =
        "SELECT format('pid %s (%s, open for %s)', pid, usename,"
        " date_trunc('second', clock_timestamp() - xact_start)),"
        " format('SELECT pg_terminate_backend(%s);', pid) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        " AND xact_start < clock_timestamp() - $1::int * interval '1 second'"
        " AND (backend_xid IS NOT NULL OR datname = current_database())"
        " AND NOT starts_with(application_name, 'twsync:' || $2 || ':')"
        " UNION ALL SELECT format('prepared transaction %L in database %I', gid, database),"
        " format('ROLLBACK PREPARED %L;  -- or COMMIT PREPARED, in database %I', gid, database)"
        " FROM pg_prepared_xacts";
    const char *values[] = {check_text(c, "%d", CHECK_LONG_S), c->job->name};
    const char *all;
    TRY(db_value(&n->db, c->arena, "read rights",
                 "SELECT pg_has_role('pg_read_all_stats', 'USAGE')", 0, NULL, &all));
    TRY(check_rows(c, n, CHECK_WARNING, sql, 2, values, "no old transactions seen",
                   "no old or prepared transactions: creating a slot waits for their end"));
    if (!str_is(all, "t"))  /* others' start times are hidden from us */
        check_add(c, CHECK_OK, check_text(c, "only transactions of %s were seen", n->role),
                  "to see those of others",
                  check_fill(c, n, "GRANT pg_read_all_stats TO {role};"));
    return TW_OK;
}

static status check_wal_keep(struct check *c, struct check_node *n)
{
    const char *keep;
    TRY(check_setting(c, n, "max_slot_wal_keep_size", &keep));  /* in MB, since 13 */
    int64_t mb = keep ? strtoll(keep, NULL, 10) : -1;
    int64_t want_mb = (c->job->retention_bytes + (1 << 20) - 1) >> 20;
    if (mb < 0 || mb > want_mb)
        check_ok(c, mb < 0 ? "slots keep WAL without limit" : "slots keep %" PRId64 " MB", mb);
    else
        check_add(c, CHECK_WARNING, check_text(c, "max_slot_wal_keep_size is %" PRId64 " MB", mb),
                  check_text(c, "more than retention_size, %" PRId64 " MB: a slot that falls behind"
                                " is lost", want_mb),
                  check_text(c, "ALTER SYSTEM SET max_slot_wal_keep_size = '%" PRId64 "MB';\n"
                                "SELECT pg_reload_conf();", want_mb * 4 + 1024));
    return TW_OK;
}

static status check_slot_failover(struct check *c, struct check_node *n)
{
    const char *polar, *mode;
    TRY(db_value(&n->db, c->arena, "read a setting",
                 "SELECT current_setting('polar_version', true)", 0, NULL, &polar));
    TRY(check_setting(c, n, "polar_failover_slot_mode", &mode));
    if (polar && (!mode || !str_is(mode, "sync")))
        check_add(c, CHECK_WARNING,
                  check_text(c, "polar_failover_slot_mode is %s", mode ? mode : "not there"),
                  "sync: otherwise a failover loses the slot, or changes with it",
                  mode ? "set polar_failover_slot_mode = sync" : "use another version than 14");
    else if (polar)
        check_ok(c, "polar_failover_slot_mode is sync");
    else if (n->db.version >= 170000)
        check_ok(c, "failover slots: standbys with sync_replication_slots = on keep them");
    else
        check_ok(c, "slots do not survive a failover before PostgreSQL 17");
    return TW_OK;
}

static status check_encoding(struct check *c, struct check_node *unused)
{
    const char *enc[2];
    (void) unused;
    for (int i = 0; i < 2; i++)
        TRY(db_value(&c->n[i].db, c->arena, "read the encoding", "SELECT getdatabaseencoding()", 0,
                     NULL, &enc[i]));
    const char *measured = check_text(c, "%s on a, %s on b", enc[0], enc[1]);
    bool ascii_a = str_is(enc[0], "SQL_ASCII"), ascii_b = str_is(enc[1], "SQL_ASCII");
    const char *needed = "the same encoding";
    const char *remedy = check_text(c, "CREATE DATABASE %s ENCODING '%s' TEMPLATE template0;"
                                       "  -- on b, in place of the present one",
                                    c->n[1].dbname, enc[0]);
    if (ascii_a != ascii_b)
        check_add(c, CHECK_FAILED, measured, needed, remedy);
    else if (ascii_a)
        check_add(c, CHECK_WARNING, measured, "text that is valid UTF-8: other bytes are refused",
                  "");
    else if (!str_is(enc[0], enc[1]))
        check_add(c, CHECK_WARNING, measured,
                  "the same encoding: a character that one end lacks stops its task", remedy);
    else
        check_ok(c, "%s", measured);
    return TW_OK;
}

/* Columns that came with later versions are read through to_jsonb. */
static status check_collation(struct check *c, struct check_node *unused)
{
    static const char sql[] =
        "SELECT concat_ws(', ', 'collate ' || d.datcollate, 'ctype ' || d.datctype,"
        " CASE WHEN coalesce(j->>'datlocprovider', 'c') <> 'c' THEN 'provider ' ||"
        " (j->>'datlocprovider') || ' ' || coalesce(j->>'datlocale', j->>'daticulocale', '') END)"
        " FROM pg_database d, to_jsonb(d) j WHERE d.datname = current_database()";
    const char *got[2];
    (void) unused;
    for (int i = 0; i < 2; i++)
        TRY(db_value(&c->n[i].db, c->arena, "read the collation", sql, 0, NULL, &got[i]));
    if (str_is(got[0], got[1]))
        check_ok(c, "%s", got[0]);
    else
        check_add(c, CHECK_WARNING, check_text(c, "a: %s; b: %s", got[0], got[1]),
                  "the same locale: order and comparison of text differ otherwise", "");
    return TW_OK;
}

/* Each server's clock against ours, halfway through the question. */
static status MUST_CHECK check_offset(struct db *d, struct arena *a, usec *offset, usec *doubt)
{
    const char *text;
    usec before = os_wall();
    TRY(db_value(d, a, "read the clock",
                 "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint", 0, NULL,
                 &text));
    usec after = os_wall();
    *offset = strtoll(text, NULL, 10) - (before + after) / 2;
    *doubt = (after - before) / 2;
    return TW_OK;
}

static status check_clock(struct check *c, struct check_node *unused)
{
    usec at[2], doubt[2];
    (void) unused;
    for (int i = 0; i < 2; i++) TRY(check_offset(&c->n[i].db, c->arena, &at[i], &doubt[i]));
    usec apart = at[0] > at[1] ? at[0] - at[1] : at[1] - at[0];
    const char *measured = check_text(c, "clocks %" PRId64 " ms apart, measured to %" PRId64 " ms",
                                      apart / 1000, (doubt[0] + doubt[1]) / 1000);
    usec sure = apart - doubt[0] - doubt[1];
    if (job_uses_policy(c->job, POLICY_LATEST) && sure > c->job->clock_skew_us)
        check_add(c, CHECK_FAILED, measured,
                  check_text(c, "at most %d ms, since the job says latest (max_clock_skew)",
                             (int) (c->job->clock_skew_us / 1000)),
                  "set both servers' clocks by NTP");
    else if (sure <= CHECK_CLOCK_MS * 1000)
        check_ok(c, "%s", measured);
    else
        check_add(c, CHECK_WARNING, measured,
                  check_text(c, "at most %d ms: delays and times shown are wrong by the difference",
                             CHECK_CLOCK_MS), "set both servers' clocks by NTP");
    return TW_OK;
}

/* ---- tables ---- */

/* "s.t" for names of a job, "schema s" where the table is missing. */
static const char *check_qnames(struct check *c, const struct qname_list *list)
{
    struct gather g = {0};
    for (int i = 0; i < list->n; i++) {
        const struct qname *q = &list->items[i];
        gather_add(&g, ", ", q->table ? sql_quoted_table(c->arena, q->schema, q->table)
                                      : check_text(c, "schema %s", check_ident(c, q->schema)));
    }
    return gather_end(c, &g, ", ");
}

/* B's tables that the selected ones go to. */
static status MUST_CHECK check_find_target(struct check *c)
{
    static const char target_sql[] =
        "SELECT format('%I.%I', w.s, w.t), c.relkind, c.oid, w.k, w.s, w.t"
        " FROM unnest($1::text[], $2::text[], $3::text[]) AS w(s, t, k)"
        " LEFT JOIN pg_namespace n ON n.nspname = w.s"
        " LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.t ORDER BY 1";
    struct check_node *b = &c->n[1];
    struct buf lists[3] = {{0}}, oids = {0};
    for (int i = 0; i < c->tables.n; i++) {
        const struct table *t = &c->tables.items[i];
        const char kind[] = {t->relkind, '\0'};
        struct value parts[] = {value_of(name_schema(c->job, t->schema)),
                                value_of(name_table(c->job, t->schema, t->name)), value_of(kind)};
        for (int k = 0; k < 3; k++) array_value(&lists[k], &parts[k]);
    }
    for (int k = 0; k < 3; k++) buf_str(&lists[k], lists[k].len ? "}" : "{}");
    const char *values[] = {lists[0].data, lists[1].data, lists[2].data};
    status s = db_query(&b->db, c->arena, "look for tables", target_sql, 3, values, &c->target);
    for (int k = 0; k < 3; k++) buf_free(&lists[k]);
    TRY(s);
    buf_char(&oids, '{');
    for (int i = 0; i < PQntuples(c->target); i++) {
        const char *kind = db_cell(c->target, i, 1);
        if (!kind || !strchr("rp", *kind)) continue;
        buf_fmt(&oids, "%s%s", oids.len > 1 ? "," : "", PQgetvalue(c->target, i, 2));
    }
    buf_char(&oids, '}');
    b->oids = arena_str(c->arena, oids.data);
    buf_free(&oids);
    return TW_OK;
}

static status check_objects(struct check *c, struct check_node *n)
{
    TRY(cat_tables(&n->db, c->arena, c->job, &c->tables, &c->unsupported, &c->missing));
    TRY(name_learn(c->job, &n->db, c->arena, NULL, &c->job));
    n->oids = cat_oid_array(c->arena, &c->tables);
    if (c->n[1].up) TRY(check_find_target(c));
    c->selected = c->n[1].up && c->tables.n > 0;
    if (c->initialised && (c->missing.n || !c->tables.n)) {  /* dropped since, or renamed */
        check_ok(c, "%d tables selected", c->tables.n);
        return TW_OK;
    }
    if (c->missing.n)
        check_add(c, CHECK_FAILED, check_text(c, "not found: %s", check_qnames(c, &c->missing)),
                  "every name in [objects] exists", "correct schemas and tables in the job");
    if (!c->tables.n)
        check_add(c, CHECK_FAILED, "no table is selected", "at least one table",
                  "correct [objects] in the job");
    if (c->tables.n && !c->missing.n) check_ok(c, "%d tables selected", c->tables.n);
    return TW_OK;
}

static bool check_is_named(const struct check *c, const struct table *t)
{
    for (int i = 0; i < c->job->tables.n; i++) {
        const struct qname *q = &c->job->tables.items[i];
        if (q->table && str_is(q->table, t->name) && str_is(q->schema, t->schema)) return true;
    }
    return false;
}

/* Passed over when a schema was asked for, refused when the table itself was. */
static void check_unsupported_of(struct check *c, bool named)
{
    struct gather g = {0}, mend = {0};
    for (int i = 0; i < c->unsupported.n; i++) {
        const struct table *t = &c->unsupported.items[i];
        if (check_is_named(c, t) != named) continue;
        const char *name = sql_quoted_table(c->arena, t->schema, t->name);
        gather_add(&g, ", ", check_text(c, "%s (%s)", name, t->why_not));
        if (t->unlogged) gather_add(&mend, "\n", check_text(c, "ALTER TABLE %s SET LOGGED;", name));
    }
    if (!g.n) return;
    const char *names = gather_end(c, &g, ", ");
    const char *remedy = mend.n ? gather_end(c, &mend, "\n")
                                : "take them out of tables, or put them under exclude, in the job";
    check_add(c, named ? CHECK_FAILED : CHECK_WARNING, names,
              named ? "tables that can be synchronised" : "nothing: they are passed over", remedy);
}

static status check_unsupported(struct check *c, struct check_node *n)
{
    (void) n;
    check_unsupported_of(c, true);
    check_unsupported_of(c, false);
    if (!c->unsupported.n) check_ok(c, "every selected object is supported");
    return TW_OK;
}

/* A: publishing a table and setting its replica identity take its owner.  B: the same when B is a
 * source too, otherwise the right to write. */
static status check_ownership(struct check *c, struct check_node *n)
{
    static const char sql[] =
        "SELECT format('%s (owner %I)', t.oid::regclass, pg_get_userbyid(t.relowner)),"
        " format('ALTER TABLE %s OWNER TO %I;  -- or: GRANT %I TO %2$I;', t.oid::regclass,"
        " current_user, pg_get_userbyid(t.relowner))"
        " FROM pg_class t WHERE t.oid = ANY ($1::oid[]) AND NOT CASE WHEN $2::bool"
        " THEN pg_has_role(t.relowner, 'USAGE') ELSE has_table_privilege(t.oid, 'SELECT')"
        " AND has_table_privilege(t.oid, 'INSERT') AND has_table_privilege(t.oid, 'UPDATE')"
        " AND has_table_privilege(t.oid, 'DELETE') END ORDER BY 1";
    bool owner = check_is_source(c, check_index(c, n));
    const char *values[] = {n->oids, owner ? "true" : "false"};
    return check_rows(c, n, CHECK_FAILED, sql, 2, values,
                      owner ? "our role may act as the owner of every table"
                            : "our role may write every table",
                      owner ? "a role that owns the tables or is a member of their owners"
                            : "a role that may read and write the tables");
}

/* Schemas that exist; on B twsync makes tables in them, and makes those it does not find. */
static status check_schema_right(struct check *c, struct check_node *n)
{
    static const char sql[] =
        "SELECT quote_ident(w.s), format('GRANT USAGE, CREATE ON SCHEMA %I TO %I;', w.s,"
        " current_user) FROM (SELECT DISTINCT s FROM json_to_recordset($1::json) AS x(s text)) w"
        " JOIN pg_namespace n ON n.nspname = w.s"
        " WHERE NOT (has_schema_privilege(n.oid, 'USAGE')"
        " AND (NOT $2::bool OR has_schema_privilege(n.oid, 'CREATE'))) ORDER BY 1";
    bool create = n == &c->n[1] && c->job->task[TW_FORWARD].schema;
    const char *values[] = {NULL, create ? "true" : "false"};
    TRY(db_value(&c->n[0].db, c->arena, "read schemas",
                 "SELECT json_agg(json_build_object('s', n.nspname)) FROM pg_namespace n WHERE"
                 " n.oid IN (SELECT relnamespace FROM pg_class WHERE oid = ANY ($1::oid[]))",
                 1, &c->n[0].oids, &values[0]));
    return check_rows(c, n, CHECK_FAILED, sql, 2, values, "schemas of the tables can be used",
                      "the right to use the tables' schemas, and to create in them");
}

/* Policies of row security would hide rows from us (failures F3); sessions of ours run with
 * row_security off, so that they fail rather than miss any. */
static status check_row_security(struct check *c, struct check_node *n)
{
    static const char sql[] =
        "SELECT t::regclass::text, format('ALTER TABLE %s NO FORCE ROW LEVEL SECURITY;"
        "  -- or: ALTER ROLE %I BYPASSRLS;', t::regclass, current_user)"
        " FROM unnest($1::oid[]) t WHERE row_security_active(t) ORDER BY 1";
    return check_rows(c, n, CHECK_FAILED, sql, 1, &n->oids, "no row security applies to our role",
                      "a role that sees every row");
}

static status check_key(struct check *c, struct check_node *n)
{
    struct gather g = {0}, mend = {0};
    bool by_key = c->job->task[TW_FORWARD].identity == IDENTITY_KEY ||
                  (c->job->task[TW_REVERSE].enabled &&
                   c->job->task[TW_REVERSE].identity == IDENTITY_KEY);
    (void) n;
    for (int i = 0; i < c->tables.n; i++) {
        const struct table *t = &c->tables.items[i];
        if (t->has_key) continue;
        const char *name = sql_quoted_table(c->arena, t->schema, t->name);
        gather_add(&g, ", ", name);
        gather_add(&mend, "\n", check_text(c, "ALTER TABLE %s ADD PRIMARY KEY (...);", name));
    }
    if (!g.n) {
        check_ok(c, "every table has a primary key or a unique index without nulls");
        return TW_OK;
    }
    const char *names = gather_end(c, &g, ", ");
    check_add(c, by_key ? CHECK_FAILED : CHECK_WARNING, names,
              by_key ? "a key, since the job says identity = key"
                     : "a key: without one each change is looked for by its whole row",
              gather_end(c, &mend, "\n"));
    return TW_OK;
}

static status check_replica_identity(struct check *c, struct check_node *n)
{
    static const char sql[] =
        "SELECT t.oid::regclass::text,"
        " format('ALTER TABLE ONLY %s REPLICA IDENTITY FULL;', t.oid::regclass)"
        " FROM pg_class t WHERE t.oid = ANY ($1::oid[]) AND t.relreplident <> 'f' ORDER BY 1";
    enum tw_direction dir = check_direction_from(check_index(c, n));
    /* Without one the server refuses the application's updates once they are published. */
    static const char key_sql[] =
        "SELECT t.oid::regclass::text,"
        " format('ALTER TABLE ONLY %s REPLICA IDENTITY FULL;', t.oid::regclass)"
        " FROM pg_class t WHERE t.oid = ANY ($1::oid[]) AND t.relkind = 'r'"
        " AND (t.relreplident = 'n' OR t.relreplident = 'd'"
        "  AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = t.oid"
        "   AND i.indisprimary AND i.indimmediate AND i.indisvalid)) ORDER BY 1";
    if (c->job->task[dir].identity == IDENTITY_KEY)
        return check_rows(c, n, CHECK_FAILED, key_sql, 1, &n->oids,
                          "a replica identity: a primary key that is not deferrable, or FULL",
                          "a replica identity on every table, since the job says identity = key");
    return check_rows(c, n, CHECK_WARNING, sql, 1, &n->oids, "FULL on every table",
                      "REPLICA IDENTITY FULL: twsync sets it when it initialises the task");
}

/* Another job's publication on one of our tables: two jobs would write it, and each would take the
 * other's marks for changes.  A native subscription is somebody else's third node. */
static status check_topology(struct check *c, struct check_node *n)
{
    static const char jobs_sql[] =
        "SELECT DISTINCT format('%s is in publication %I', r.prrelid::regclass, p.pubname)"
        " FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid"
        " WHERE r.prrelid = ANY ($1::oid[]) AND p.pubname ~ '^twsync_.*_(forward|reverse)$'"
        " AND p.pubname NOT IN ('twsync_' || $2 || '_forward', 'twsync_' || $2 || '_reverse')"
        " ORDER BY 1";
    const char *values[] = {n->oids, c->job->name};
    const char *subscription = n->db.version < 140000
                                   ? "srsubid::text"  /* its name is for superusers there */
                                   : "(SELECT quote_ident(subname) FROM pg_subscription"
                                     " WHERE oid = srsubid)";
    PGresult *r;
    TRY(db_query(&n->db, c->arena, "read subscriptions",
                 check_text(c, "SELECT format('%%s is written by subscription %%s',"
                               " srrelid::regclass, %s) FROM pg_subscription_rel"
                               " WHERE srrelid = ANY ($1::oid[]) ORDER BY 1", subscription),
                 1, values, &r));
    if (PQntuples(r))
        check_add(c, CHECK_WARNING, check_column(c, r, 0, ", "),
                  "one writer beside the application: a third node's changes must not come twice",
                  "DROP SUBSCRIPTION ...;  -- unless it brings changes from elsewhere");
    return check_rows(c, n, CHECK_FAILED, jobs_sql, 2, values, "no other job has these tables",
                      "tables that belong to one job: release the other job or exclude them");
}

/* ---- tables on B ---- */

/* Kind of the relation on A, and on B (NULL: not there). */
static const char *check_target_names(struct check *c, bool (*wanted)(const char *a, const char *b))
{
    struct gather g = {0};
    for (int i = 0; i < PQntuples(c->target); i++)
        if (wanted(db_cell(c->target, i, 3), db_cell(c->target, i, 1)))
            gather_add(&g, ", ", PQgetvalue(c->target, i, 0));
    return gather_end(c, &g, ", ");
}

static bool check_is_absent(const char *a, const char *b)
{
    return a && !b;
}

static bool check_is_table(const char *a, const char *b)
{
    return a && b && strchr("rp", *b);
}

static bool check_is_other(const char *a, const char *b)
{
    return a && b && !strchr("rp", *b);
}

/* Rows can go from a plain table into a partitioned one; the other way there is no place for what
 * happens to partitions. */
static bool check_is_partitioned_on_a(const char *a, const char *b)
{
    return check_is_table(a, b) && *a == 'p' && *b == 'r';
}

static bool check_is_partitioned_on_b(const char *a, const char *b)
{
    return check_is_table(a, b) && *a == 'r' && *b == 'p';
}

/* Existing tables that hold rows.  Only those with pages are asked, all in one query. */
static status MUST_CHECK check_filled(struct check *c, struct check_node *n, const char **names)
{
    static const char sql[] =
        "SELECT string_agg(format('SELECT %L WHERE EXISTS (SELECT FROM ONLY %s)', t::regclass,"
        " t::regclass), ' UNION ALL ') FROM unnest($1::oid[]) t"
        " WHERE pg_relation_size(t) > 0 AND has_table_privilege(t, 'SELECT')";
    const char *ask;
    PGresult *r;
    *names = "";
    TRY(db_value(&n->db, c->arena, "look for filled tables", sql, 1, &n->oids, &ask));
    if (!ask) return TW_OK;
    TRY(db_query(&n->db, c->arena, "look into tables", ask, 0, NULL, &r));
    *names = check_column(c, r, 0, ", ");
    return TW_OK;
}

static int check_by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *) a, *(const char *const *) b);
}

/* Tables that are on both sides, by their names on B, in order. */
static struct str_list check_present(const struct check *c)
{
    int n = PQntuples(c->target);
    struct str_list out = {.items = arena_array(c->arena, const char *, n + 1)};
    for (int i = 0; i < n; i++)
        if (!PQgetisnull(c->target, i, 1))
            out.items[out.n++] = sql_quoted_table(c->arena, PQgetvalue(c->target, i, 4),
                                                  PQgetvalue(c->target, i, 5));
    qsort(out.items, (size_t) out.n, sizeof *out.items, check_by_text);
    return out;
}

static bool check_lists(const struct str_list *list, const char *text)
{
    return bsearch(&text, list->items, (size_t) list->n, sizeof *list->items, check_by_text);
}

/* Columns of one side's tables that are on both, by the names they have on B, in order. */
static status MUST_CHECK check_read_columns(struct check *c, struct check_node *n,
                                            struct str_list *out)
{
    const char *sql = check_text(c, "SELECT n.nspname, c.relname, x.attname FROM pg_attribute x"
                                    " JOIN pg_class c ON c.oid = x.attrelid JOIN pg_namespace n"
                                    " ON n.oid = c.relnamespace WHERE c.oid = ANY ($1::oid[])"
                                    " AND x.attnum > 0 AND NOT x.attisdropped %s",
                                 n->db.version >= 120000 ? "AND x.attgenerated = ''" : "");
    struct str_list present = check_present(c);
    PGresult *r;
    TRY(db_query(&n->db, c->arena, "read columns", sql, 1, &n->oids, &r));
    out->items = arena_array(c->arena, const char *, PQntuples(r) + 1);
    for (int i = 0; i < PQntuples(r); i++) {
        const char *schema = PQgetvalue(r, i, 0), *table = PQgetvalue(r, i, 1);
        const char *column = PQgetvalue(r, i, 2), *name = sql_quoted_table(c->arena, schema, table);
        if (n == &c->n[0]) {
            column = name_column(job_rules(c->job, schema, table), column);
            name = name_quoted(c->job, c->arena, schema, table);
        }
        if (column && check_lists(&present, name))
            out->items[out->n++] = check_text(c, "%s.%s", name, check_ident(c, column));
    }
    qsort(out->items, (size_t) out->n, sizeof *out->items, check_by_text);
    return TW_OK;
}

/* Columns that the tables of one side have and their namesakes on the other lack. */
static status MUST_CHECK check_columns(struct check *c, struct check_node *has,
                                       struct check_node *lacks, const char **names)
{
    struct str_list have = {0}, there = {0};
    struct gather g = {0};
    TRY(check_read_columns(c, has, &have));
    TRY(check_read_columns(c, lacks, &there));
    for (int i = 0; i < have.n; i++)
        if (!check_lists(&there, have.items[i])) gather_add(&g, ", ", have.items[i]);
    *names = gather_end(c, &g, ", ");
    return TW_OK;
}

static status check_target_tables(struct check *c, struct check_node *n)
{
    const struct task_conf *f = &c->job->task[TW_FORWARD];
    bool refuse = c->job->existing == EXISTING_ERROR && !c->initialised;
    if (c->initialised && f->ddl) {  /* between DDL on A and on B they differ as they should */
        check_ok(c, "initialised by this job");
        return TW_OK;
    }
    const char *other = check_target_names(c, check_is_other);
    const char *absent = f->schema ? "" : check_target_names(c, check_is_absent);
    const char *present = f->schema && refuse ? check_target_names(c, check_is_table) : "";
    bool both = c->job->task[TW_REVERSE].enabled;
    const char *kinds = check_target_names(c, check_is_partitioned_on_a);
    if (!*kinds && both) kinds = check_target_names(c, check_is_partitioned_on_b);
    const char *filled = "", *columns, *extra = "";
    if (!f->schema && f->copy && refuse) TRY(check_filled(c, n, &filled));
    TRY(check_columns(c, &c->n[0], n, &columns));
    if (both) TRY(check_columns(c, n, &c->n[0], &extra));
    const struct {
        const char *names, *needed, *remedy;
    } found[] = {
        {other, "tables: something else has these names",
         "exclude them in the job, or rename on b"},
        {present, "no tables of these names, since existing = error",
         check_text(c, "DROP TABLE %s;  -- on b; or existing = keep in [objects]", present)},
        {absent, "tables that exist on b", "create them on b, or schema = yes in [forward]"},
        {filled, "empty tables, since existing = error",
         check_text(c, "TRUNCATE %s;  -- on b; or existing = keep in [objects]", filled)},
        {columns, "every column of a in the table on b",
         "ALTER TABLE ... ADD COLUMN ...;  -- on b"},
        {extra, "every column of b in the table on a, since reverse carries them",
         "ALTER TABLE ... ADD COLUMN ...;  -- on a; or enabled = no in [reverse]"},
        {kinds, "partitioned on both sides or on neither", "create the table on b as it is on a"},
    };
    bool ok = true;
    for (size_t i = 0; i < sizeof found / sizeof *found; i++) {
        if (!found[i].names[0]) continue;
        check_add(c, CHECK_FAILED, found[i].names, found[i].needed, found[i].remedy);
        ok = false;
    }
    if (ok) check_ok(c, "%s", c->initialised ? "initialised by this job" : "fit the job");
    return TW_OK;
}

static status check_foreign_keys(struct check *c, struct check_node *n)
{
    static const char sql[] =
        "SELECT format('%s: %I refers to %s', f.conrelid::regclass, f.conname,"
        " f.confrelid::regclass),"
        " format('add %s to tables in the job, or %s to exclude, or: ALTER TABLE %2$s"
        " DROP CONSTRAINT %I;', f.confrelid::regclass, f.conrelid::regclass, f.conname)"
        " FROM pg_constraint f WHERE f.contype = 'f' AND f.conrelid = ANY ($1::oid[])"
        " AND f.confrelid <> ALL ($1::oid[]) AND f.conparentid = 0 ORDER BY 1";
    return check_rows(c, n, CHECK_FAILED, sql, 1, &n->oids, "parents of all tables are selected",
                      "the parent of every selected child");
}

static status check_partitions(struct check *c, struct check_node *n)
{
    static const char sql[] =
        "SELECT format('%s without its root %s', p.oid::regclass, i.inhparent::regclass),"
        " format('add %s to tables in the job', i.inhparent::regclass)"
        " FROM pg_class p JOIN pg_inherits i ON i.inhrelid = p.oid"
        " WHERE p.relispartition AND p.oid = ANY ($1::oid[]) AND i.inhparent <> ALL ($1::oid[])"
        " UNION ALL SELECT format('%s without its partition %s', p.oid::regclass,"
        " i.inhrelid::regclass), format('take %s from exclude in the job', i.inhrelid::regclass)"
        " FROM pg_class p JOIN pg_inherits i ON i.inhparent = p.oid"
        " WHERE p.relkind = 'p' AND p.oid = ANY ($1::oid[]) AND i.inhrelid <> ALL ($1::oid[])"
        " ORDER BY 1";
    return check_rows(c, n, CHECK_FAILED, sql, 1, &n->oids, "partitioned tables are whole",
                      "a partitioned table with all its partitions");
}

static status check_sequences(struct check *c, struct check_node *n)
{
    const char *count;
    TRY(db_value(&n->db, c->arena, "count sequences",
                 "SELECT count(*) FROM pg_depend d JOIN pg_class s ON s.oid = d.objid"
                 " AND s.relkind = 'S' WHERE d.classid = 'pg_class'::regclass"
                 " AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')"
                 " AND d.refobjid = ANY ($1::oid[])", 1, &n->oids, &count));
    check_ok(c, "sequences that belong to the tables and come with them: %s", count);
    return TW_OK;
}

/* Extensions behind types, defaults, checks and indexes of the tables.  pg_depend leads from each
 * to what it uses; arrays and domains are steps on the way. */
/* dep: what the tables of $1 use, and what that uses. */
#define CHECK_USED_CTE \
    "WITH RECURSIVE dep(classid, objid) AS (" \
    " (SELECT 'pg_class'::regclass::oid, t FROM unnest($1::oid[]) t" \
    " UNION ALL SELECT 'pg_class'::regclass::oid, indexrelid FROM pg_index" \
    " WHERE indrelid = ANY ($1::oid[])" \
    " UNION ALL SELECT 'pg_attrdef'::regclass::oid, oid FROM pg_attrdef" \
    " WHERE adrelid = ANY ($1::oid[])" \
    " UNION ALL SELECT 'pg_constraint'::regclass::oid, oid FROM pg_constraint" \
    " WHERE conrelid = ANY ($1::oid[]))" \
    " UNION SELECT d.refclassid, d.refobjid FROM dep" \
    " JOIN pg_depend d ON d.classid = dep.classid AND d.objid = dep.objid" \
    " WHERE d.deptype IN ('n', 'a', 'i') AND d.refclassid IN ('pg_type'::regclass," \
    " 'pg_proc'::regclass, 'pg_opclass'::regclass, 'pg_opfamily'::regclass," \
    " 'pg_operator'::regclass, 'pg_collation'::regclass, 'pg_am'::regclass," \
    " 'pg_ts_config'::regclass))"

static const char check_extensions_sql[] =
    CHECK_USED_CTE
    " SELECT json_agg(DISTINCT jsonb_build_object('e', e.extname, 's', n.nspname))"
    " FROM dep JOIN pg_depend x ON x.classid = dep.classid AND x.objid = dep.objid"
    " AND x.deptype = 'e' JOIN pg_extension e ON e.oid = x.refobjid"
    " JOIN pg_namespace n ON n.oid = e.extnamespace";

static status check_extensions(struct check *c, struct check_node *n)
{
    static const char missing_sql[] =
        "SELECT quote_ident(w.e) || CASE WHEN v.name IS NULL THEN ' (not available on the server)'"
        " ELSE '' END, format('CREATE EXTENSION %I SCHEMA %I;', w.e, w.s)"
        " FROM json_to_recordset($1::json) AS w(e text, s text)"
        " LEFT JOIN pg_available_extensions v ON v.name = w.e"
        " WHERE w.e NOT IN (SELECT extname FROM pg_extension) ORDER BY 1";
    const char *used;
    TRY(db_value(&c->n[0].db, c->arena, "read extensions", check_extensions_sql, 1, &c->n[0].oids,
                 &used));
    return check_rows(c, n, c->job->task[TW_FORWARD].schema ? CHECK_FAILED : CHECK_WARNING,
                      missing_sql, 1, &used, "those the tables use are there",
                      "the extensions that the tables on a use");
}

/* What users made and schema synchronization does not: $1's tables cannot be without it. */
static const char check_dependencies_sql[] =
    CHECK_USED_CTE
    " SELECT coalesce(json_agg(json_build_object('k', x.k, 'f', x.f)), '[]') FROM ("
    "  SELECT 'function' AS k, p.oid::regprocedure::text AS f, dep.* FROM dep JOIN pg_proc p"
    "   ON dep.classid = 'pg_proc'::regclass AND p.oid = dep.objid"
    "   JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language y ON y.oid = p.prolang"
    "   WHERE NOT (y.lanname NOT IN ('c', 'internal') AND %s)"
    "  UNION SELECT 'collation', format('%%I.%%I', n.nspname, l.collname), dep.* FROM dep"
    "   JOIN pg_collation l ON dep.classid = 'pg_collation'::regclass AND l.oid = dep.objid"
    "   JOIN pg_namespace n ON n.oid = l.collnamespace"
    "  UNION SELECT 'operator class', format('%%I.%%I', n.nspname, o.opcname), dep.* FROM dep"
    "   JOIN pg_opclass o ON dep.classid = 'pg_opclass'::regclass AND o.oid = dep.objid"
    "   JOIN pg_namespace n ON n.oid = o.opcnamespace"
    "  UNION SELECT 'text search configuration', format('%%I.%%I', n.nspname, g.cfgname), dep.*"
    "   FROM dep JOIN pg_ts_config g ON dep.classid = 'pg_ts_config'::regclass"
    "   AND g.oid = dep.objid JOIN pg_namespace n ON n.oid = g.cfgnamespace"
    "  UNION SELECT 'cast', format('(%%s AS %%s)', format_type(c.castsource, NULL),"
    "   format_type(c.casttarget, NULL)), 'pg_cast'::regclass, c.oid FROM dep JOIN pg_cast c"
    "   ON dep.classid = 'pg_proc'::regclass AND c.castfunc = dep.objid AND dep.objid >= 16384"
    " ) x WHERE x.objid >= 16384 AND NOT EXISTS (SELECT FROM pg_depend e"
    "  WHERE e.deptype = 'e' AND e.classid = x.classid AND e.objid = x.objid)";

static const char check_lacking_sql[] =
    "SELECT w.k || ' ' || w.f, '-- on b: create ' || w.k || ' ' || w.f || ' as it is on a'"
    " FROM json_to_recordset($1::json) AS w(k text, f text) WHERE NOT CASE w.k"
    " WHEN 'function' THEN to_regprocedure(w.f) IS NOT NULL"
    " WHEN 'collation' THEN EXISTS (SELECT FROM pg_collation l JOIN pg_namespace n"
    "  ON n.oid = l.collnamespace WHERE format('%I.%I', n.nspname, l.collname) = w.f)"
    " WHEN 'operator class' THEN EXISTS (SELECT FROM pg_opclass o JOIN pg_namespace n"
    "  ON n.oid = o.opcnamespace WHERE format('%I.%I', n.nspname, o.opcname) = w.f)"
    " WHEN 'cast' THEN EXISTS (SELECT FROM pg_cast c WHERE w.f = format('(%s AS %s)',"
    "  format_type(c.castsource, NULL), format_type(c.casttarget, NULL)))"
    " ELSE EXISTS (SELECT FROM pg_ts_config g JOIN pg_namespace n ON n.oid = g.cfgnamespace"
    "  WHERE format('%I.%I', n.nspname, g.cfgname) = w.f) END ORDER BY 1";

static status check_dependencies(struct check *c, struct check_node *n)
{
    const char *used;
    bool makes = c->job->task[TW_FORWARD].schema && !c->initialised;
    TRY(db_value(&c->n[0].db, c->arena, "read dependencies",
                 arena_fmt(c->arena, check_dependencies_sql,
                           makes ? shape_scope(c->arena, c->job) : "false"), 1,
                 &c->n[0].oids, &used));
    return check_rows(c, n, makes ? CHECK_FAILED : CHECK_WARNING, check_lacking_sql, 1, &used,
                      "functions, collations and the like that the tables use are there",
                      "functions, collations, operator classes, casts, text search configurations"
                      " that the tables on a use");
}

/* What fires on our writes unless session_replication_role is 'replica'. */
static const char check_firing_sql[] =
    "SELECT t.oid::regclass || ' (' || concat_ws(', ',"
    " CASE WHEN f.acts THEN 'foreign key that changes rows' WHEN f.any THEN 'foreign key' END,"
    " CASE WHEN g.any THEN 'trigger' END) || ')' FROM pg_class t"
    " CROSS JOIN LATERAL (SELECT count(*) > 0 AS any, coalesce(bool_or(confupdtype IN ('c', 'n',"
    " 'd') OR confdeltype IN ('c', 'n', 'd')), false) AS acts FROM pg_constraint"
    " WHERE contype = 'f' AND conrelid = t.oid) f"
    " CROSS JOIN LATERAL (SELECT $2::bool AND count(*) > 0 AS any FROM pg_trigger"
    " WHERE tgrelid = t.oid AND NOT tgisinternal AND tgenabled = 'O') g"
    " WHERE t.oid = ANY ($1::oid[]) AND (f.any OR g.any) ORDER BY 1";

/* On B the tables may be still to come, with A's foreign keys; triggers would not be created. */
static status check_replica_role(struct check *c, struct check_node *n)
{
    PGresult *r;
    const char *own[] = {n->oids, "true"}, *coming[] = {c->n[0].oids, "false"};
    if (n->rights.replica_role) {
        check_ok(c, "session_replication_role can be replica");
        return TW_OK;
    }
    TRY(db_query(&n->db, c->arena, "read triggers", check_firing_sql, 2, own, &r));
    if (!PQntuples(r) && n == &c->n[1] && c->job->task[TW_FORWARD].schema)
        TRY(db_query(&c->n[0].db, c->arena, "read triggers", check_firing_sql, 2, coming, &r));
    if (!PQntuples(r)) {
        check_ok(c, "session_replication_role cannot be set; no table needs it");
        return TW_OK;
    }
    check_add(c, CHECK_WARNING, check_column(c, r, 0, ", "),
              "session_replication_role = replica: otherwise triggers fire and foreign keys are"
              " checked and act on both ends",
              check_fill(c, n, n->db.version >= 150000
                                   ? "GRANT SET ON PARAMETER session_replication_role TO {role};"
                                   : "ALTER ROLE {role} SET session_replication_role = replica;"
                                     "  -- by a superuser; it holds for all its sessions"));
    return TW_OK;
}

/* ---- the job itself ---- */

/* Do these policies part the sides for good where they conflict? */
static bool check_parts(const struct job *job, enum policy f, enum policy r)
{
    const struct conf_side side = {.there = true, .at_us = 1};
    return f != POLICY_FAIL && r != POLICY_FAIL && job->task[TW_REVERSE].enabled &&
           !conf_winner(f, r, job_winner(job), &side, &side);
}

static status check_policy(struct check *c, struct check_node *unused)
{
    const struct job *job = c->job;
    enum policy f = job->task[TW_FORWARD].on_conflict, r = job->task[TW_REVERSE].on_conflict;
    struct gather g = {0};
    (void) unused;
    if (check_parts(job, f, r)) gather_add(&g, "; ", "forward and reverse as a whole");
    for (int i = 0; i < 8; i++) {
        const struct qname_list *list = &job->task[i / 4].policy_tables[i % 4];
        for (int k = 0; k < list->n; k++) {
            const struct qname *q = &list->items[k];
            if (check_parts(job, job_policy(job, TW_FORWARD, q->schema, q->table),
                            job_policy(job, TW_REVERSE, q->schema, q->table)))
                gather_add(&g, "; ", sql_quoted_table(c->arena, q->schema, q->table));
        }
    }
    if (!job->task[TW_REVERSE].enabled)
        check_ok(c, "forward %s, no reverse", policy_names[f]);
    else if (!g.n)
        check_ok(c, "forward %s, reverse %s", policy_names[f], policy_names[r]);
    else
        check_add(c, CHECK_WARNING,
                  check_text(c, "forward %s, reverse %s; no winner: %s", policy_names[f],
                             policy_names[r], gather_end(c, &g, "; ")),
                  "a winner: with these policies the sides part where they conflict",
                  "on_conflict = overwrite in one of [forward] and [reverse] and ignore in the "
                  "other, latest in both, or name the winner in [job]");
    return TW_OK;
}

/* A table with a policy of its own that the job does not carry is a name misspelt. */
static status check_policy_tables(struct check *c, struct check_node *unused)
{
    struct gather g = {0};
    (void) unused;
    for (int i = 0; i < 8; i++) {
        const struct qname_list *list = &c->job->task[i / 4].policy_tables[i % 4];
        for (int k = 0; k < list->n; k++) {
            bool found = false;
            for (int t = 0; t < c->tables.n && !found; t++)
                found = qname_matches(&list->items[k], c->tables.items[t].schema,
                                      c->tables.items[t].name);
            if (!found)
                gather_add(&g, ", ", sql_quoted_table(c->arena, list->items[k].schema,
                                                      list->items[k].table));
        }
    }
    if (!g.n)
        check_ok(c, "every table with a policy of its own belongs to the job");
    else
        check_add(c, CHECK_FAILED, gather_end(c, &g, ", "),
                  "names of tables of this job in on_conflict_...",
                  "correct the names in the job file");
    return TW_OK;
}

/* ---- rules of tables ---- */

/* What an expression is tried on: a temporary table with the columns of the real one, beside the
 * names that are known of a change. */
struct check_trial {
    struct check *c;
    struct check_node *n;
    const struct table *t;
    const char *trial;     /* the temporary table, quoted */
    struct gather *wrong;
    struct gather *absent; /* what rules name, and the table does not have */
};

static status MUST_CHECK trial_try(struct check_trial *x, const char *sql, bool keep, PGresult **r,
                                   bool *ok)
{
    TRY(db_exec(&x->n->db, "set a savepoint", "SAVEPOINT tw_trial"));
    TRY(db_attempt(&x->n->db, sql, 0, NULL, r));
    arena_defer(x->c->arena, db_clear_result, *r);
    *ok = db_result_ok(*r);
    if (!*ok || !keep) return db_exec(&x->n->db, "roll back", "ROLLBACK TO SAVEPOINT tw_trial");
    return db_exec(&x->n->db, "release a savepoint", "RELEASE SAVEPOINT tw_trial");
}

static int trial_letters(const char *from, const char *to)
{
    int n = 0;
    for (; from < to; from++) n += (*from & 0xc0) != 0x80;
    return n;
}

/* The server's word about an expression, with the place in it. */
static void trial_wrong(struct check_trial *x, const char *what, const char *sql, const char *at,
                        const PGresult *r)
{
    const char *place = PQresultErrorField(r, PG_DIAG_STATEMENT_POSITION);
    const char *text = PQresultErrorField(r, PG_DIAG_MESSAGE_PRIMARY);
    int letter = place ? atoi(place) - trial_letters(sql, at) : 0;
    gather_add(x->wrong, "; ",
               check_text(x->c, letter > 0 ? "%s of %s: %s, at letter %d" : "%s of %s: %s", what,
                          sql_quoted_table(x->c->arena, x->t->schema, x->t->name), text, letter));
}

/* A check constraint takes what we take: one row, no other table. */
static status MUST_CHECK trial_alone(struct check_trial *x, const char *what,
                                     const char *expression, const char *as, bool *ok)
{
    static const char *const words[] = {"select", "values", "table", "with"};
    const char *head = arena_fmt(x->c->arena, "ALTER TABLE %s ADD tw_operation text, ADD"
                                 " tw_commit_time timestamptz, ADD tw_schema text, ADD tw_table"
                                 " text, ADD CONSTRAINT tw_trial CHECK ((\n", x->trial);
    const char *sql = arena_fmt(x->c->arena, "%s%s\n)%s)", head, expression, as);
    bool any = false;
    PGresult *r;
    *ok = true;
    for (int i = 0; i < 4; i++) any = any || rules_name(expression, words[i]);
    if (!any) return TW_OK;
    TRY(trial_try(x, sql, false, &r, ok));
    if (!*ok) trial_wrong(x, what, sql, sql + strlen(head), r);
    return TW_OK;
}

/* The expression as a condition, or as a value of a type.  *r: the columns it names, and whether
 * they are generated; NULL if it is wrong. */
static status MUST_CHECK trial_expression(struct check_trial *x, const char *what,
                                          const char *expression, const char *type, PGresult **r)
{
    struct check *c = x->c;
    bool ok;
    const char *as = type ? arena_fmt(c->arena, "::%s IS NOT NULL", type) : "";
    const char *head = arena_fmt(c->arena, "CREATE OR REPLACE TEMP VIEW tw_trial AS SELECT 1 AS one"
                                 " FROM %s CROSS JOIN (SELECT NULL::text AS tw_operation,"
                                 " NULL::timestamptz AS tw_commit_time, NULL::text AS tw_schema,"
                                 " NULL::text AS tw_table) tw_names WHERE ((\n", x->trial);
    const char *sql = arena_fmt(c->arena, "%s%s\n)%s)", head, expression, as);
    PGresult *tried;
    *r = NULL;
    TRY(trial_try(x, sql, true, &tried, &ok));
    if (!ok) trial_wrong(x, what, sql, sql + strlen(head), tried);
    if (ok) TRY(trial_alone(x, what, expression, as, &ok));
    if (!ok) return TW_OK;
    const char *values[] = {x->trial, check_text(c, "%" PRIu32, x->t->oid)};
    return db_query(&x->n->db, c->arena, "read what an expression names",
                    "SELECT a.attname, CASE WHEN d.refobjsubid < 0 THEN 'is of the system' WHEN"
                    " to_jsonb(o)->>'attgenerated' <> '' THEN 'is generated' END FROM pg_rewrite w"
                    " JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid"
                    " AND d.refclassid = 'pg_class'::regclass AND d.refobjid = to_regclass($1)"
                    " JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid"
                    " LEFT JOIN pg_attribute o ON o.attrelid = $2::oid AND o.attname = a.attname"
                    " WHERE w.ev_class = to_regclass('pg_temp.tw_trial')", 2, values, r);
}

/* Neither generated columns, which do not travel, nor those that are given other values. */
static void trial_columns(struct check_trial *x, const struct table_rules *rules, const char *what,
                          bool is_set, const PGresult *r)
{
    for (int i = 0; r && i < PQntuples(r); i++) {
        const char *column = PQgetvalue(r, i, 0), *why = NULL;
        if (db_cell(r, i, 1)) why = db_cell(r, i, 1);
        else if (!is_set && rules_set_of(rules, column)) why = "is set by the job";
        if (why)
            gather_add(x->wrong, "; ",
                       check_text(x->c, "%s of %s: column %s %s", what,
                                  sql_quoted_table(x->c->arena, x->t->schema, x->t->name),
                                  check_ident(x->c, column), why));
    }
}

static status MUST_CHECK trial_set(struct check_trial *x, const struct table_rules *rules,
                                   const struct rule_set *set)
{
    const char *values[] = {check_text(x->c, "%" PRIu32, x->t->oid), set->column};
    const char *what = check_text(x->c, "set %s", check_ident(x->c, set->column)), *why = NULL;
    PGresult *r;
    TRY(db_query(&x->n->db, x->c->arena, "read a column", "SELECT format_type(a.atttypid,"
                 " a.atttypmod),"
                 " coalesce(to_jsonb(a)->>'attgenerated', '') <> '', EXISTS (SELECT FROM pg_index i"
                 " WHERE i.indrelid = a.attrelid AND i.indisunique AND a.attnum = ANY (i.indkey))"
                 " FROM pg_attribute a WHERE a.attrelid = $1::oid AND a.attname = $2 AND"
                 " a.attnum > 0 AND NOT a.attisdropped", 2, values, &r));
    if (!PQntuples(r)) why = "there is no such column";
    else if (db_cell_true(r, 0, 1)) why = "the column is generated";
    else if (db_cell_true(r, 0, 2) && x->c->job->task[TW_REVERSE].enabled)
        why = "the column is part of a unique key, by which reverse finds rows";
    if (why) {
        gather_add(PQntuples(r) ? x->wrong : x->absent, "; ", check_text(x->c, "%s of %s: %s", what,
                                              sql_quoted_table(x->c->arena, x->t->schema,
                                                               x->t->name), why));
        return TW_OK;
    }
    PGresult *named;
    TRY(trial_expression(x, what, set->expression, PQgetvalue(r, 0, 0), &named));
    trial_columns(x, rules, what, true, named);
    return TW_OK;
}

static status MUST_CHECK trial_table(struct check_trial *x, const struct table_rules *rules)
{
    struct check *c = x->c;
    const char *real = sql_quoted_table(c->arena, x->t->schema, x->t->name);
    PGresult *r;
    bool ok;
    x->trial = sql_quoted_table(c->arena, "pg_temp", x->t->name);
    const char *make = arena_fmt(c->arena, "CREATE TEMP TABLE %s (LIKE %s)", x->trial, real);
    TRY(trial_try(x, make, true, &r, &ok));
    if (!ok) {
        gather_add(x->wrong, "; ", check_text(c, "rules of %s cannot be tried: %s", real,
                                              PQresultErrorField(r, PG_DIAG_MESSAGE_PRIMARY)));
        return TW_OK;
    }
    const char *texts[] = {rules->filter, rules->drop}, *const names[] = {"filter", "drop"};
    for (int i = 0; i < 2; i++) {
        if (!texts[i]) continue;
        TRY(trial_expression(x, names[i], texts[i], NULL, &r));
        trial_columns(x, rules, names[i], false, r);
    }
    for (int i = 0; i < rules->nsets; i++) TRY(trial_set(x, rules, &rules->sets[i]));
    return db_exec(&x->n->db, "drop the trial",
                   arena_fmt(c->arena, "DROP TABLE %s CASCADE", x->trial));
}

/* What the rules say of columns, held against the table: $2 what B does not have, $3 and $4 what is
 * called otherwise, and how, $5 every column that is named. */
static const char trial_columns_sql[] =
    "WITH c AS (SELECT a.attname, a.attnum, a.attname = ANY ($2::text[]) AS gone, coalesce((SELECT"
    " u.t FROM unnest($3::text[], $4::text[]) u(n, t) WHERE u.n = a.attname), a.attname) AS name,"
    " a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' AS needed FROM pg_attribute a"
    " WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped)"
    " SELECT format('there is no column %I', u), true FROM unnest($5::text[]) u"
    "  WHERE u NOT IN (SELECT attname FROM c)"
    " UNION ALL SELECT format('column %I would be there twice', name), false FROM c WHERE NOT gone"
    "  GROUP BY name HAVING count(*) > 1"
    " UNION ALL SELECT format('column %I is left out and part of a key', attname), false FROM c"
    "  WHERE gone"
    "  AND EXISTS (SELECT FROM pg_index i WHERE i.indrelid = $1::oid AND i.indisprimary"
    "  AND c.attnum = ANY (i.indkey))"
    " UNION ALL SELECT format('column %I is left out, and rows that come from b need a value for"
    " it: NOT NULL without a default', attname), false FROM c WHERE gone AND needed AND $6::bool";

static const char *trial_array(struct check *c, struct buf *b)
{
    buf_str(b, b->len ? "}" : "{}");
    const char *text = arena_str(c->arena, b->data);
    buf_free(b);
    return text;
}

static void trial_word(struct buf *b, const char *word)
{
    struct value v = value_of(word);
    array_value(b, &v);
}

static status MUST_CHECK trial_names(struct check_trial *x, const struct table_rules *r)
{
    struct check *c = x->c;
    struct buf gone = {0}, from = {0}, to = {0}, named = {0};
    PGresult *columns, *wrong;
    const char *oid = check_text(c, "%" PRIu32, x->t->oid);
    TRY(db_query(&x->n->db, c->arena, "read columns", "SELECT attname FROM pg_attribute WHERE"
                 " attrelid = $1::oid AND attnum > 0 AND NOT attisdropped", 1, &oid, &columns));
    for (int i = 0; i < PQntuples(columns); i++)
        if (!rules_have(r, PQgetvalue(columns, i, 0))) trial_word(&gone, PQgetvalue(columns, i, 0));
    for (int i = 0; i < r->nrenames; i++) {
        trial_word(&from, r->renames[i].name);
        trial_word(&to, r->renames[i].to);
    }
    bool glob = r->name.schema_glob || r->name.table_glob;  /* some tables may lack some */
    for (int i = 0; i < r->nrenames && !glob; i++) trial_word(&named, r->renames[i].name);
    for (int i = 0; i < r->columns.n && !glob; i++) trial_word(&named, r->columns.items[i]);
    for (int i = 0; i < r->without.n && !glob; i++) trial_word(&named, r->without.items[i]);
    const char *values[] = {oid, trial_array(c, &gone), trial_array(c, &from), trial_array(c, &to),
                            trial_array(c, &named),
                            c->job->task[TW_REVERSE].enabled ? "t" : "f"};
    TRY(db_query(&x->n->db, c->arena, "look at the columns", trial_columns_sql, 6, values, &wrong));
    for (int i = 0; i < PQntuples(wrong); i++)
        gather_add(db_cell_true(wrong, i, 1) ? x->absent : x->wrong, "; ", check_text(c, "%s: %s",
                                              sql_quoted_table(c->arena, x->t->schema, x->t->name),
                                              PQgetvalue(wrong, i, 0)));
    return TW_OK;
}

/* Does what one says of columns hold for the other? */
static bool trial_same_columns(const struct table_rules *x, const struct table_rules *y)
{
    for (int i = 0; x && i < x->nrenames; i++) {
        const char *there = name_column(y, x->renames[i].name);
        if (!there || !str_is(there, x->renames[i].to)) return false;
    }
    for (int i = 0; x && i < x->without.n; i++)
        if (rules_have(y, x->without.items[i])) return false;
    for (int i = 0; x && i < x->columns.n; i++)
        if (!rules_have(y, x->columns.items[i])) return false;
    return !x || !x->columns.n || (y && y->columns.n);
}

/* Two tables cannot have one name, and a partition has the columns of its table. */
static status MUST_CHECK trial_places(struct check *c, struct check_node *n, struct gather *wrong)
{
    struct str_list names = {.items = arena_array(c->arena, const char *, c->tables.n + 1)};
    PGresult *r;
    for (int i = 0; i < c->tables.n; i++)
        names.items[names.n++] = name_quoted(c->job, c->arena, c->tables.items[i].schema,
                                             c->tables.items[i].name);
    qsort(names.items, (size_t) names.n, sizeof *names.items, check_by_text);
    for (int i = 1; i < names.n; i++)
        if (str_is(names.items[i - 1], names.items[i]))
            gather_add(wrong, "; ", check_text(c, "two tables would be called %s", names.items[i]));
    TRY(db_query(&n->db, c->arena, "read the partitions",
                 "SELECT cn.nspname, c.relname, pn.nspname, p.relname FROM pg_inherits i"
                 " JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace cn ON cn.oid ="
                 " c.relnamespace JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace pn"
                 " ON pn.oid = p.relnamespace WHERE c.oid = ANY ($1::oid[])", 1, &n->oids, &r));
    for (int i = 0; i < PQntuples(r); i++) {
        const struct table_rules *x = job_rules(c->job, PQgetvalue(r, i, 0), PQgetvalue(r, i, 1));
        const struct table_rules *y = job_rules(c->job, PQgetvalue(r, i, 2), PQgetvalue(r, i, 3));
        if (!trial_same_columns(x, y) || !trial_same_columns(y, x))
            gather_add(wrong, "; ", check_text(c, "%s needs the columns of %s: one [table] section"
                                               " with a pattern that both meet",
                                               sql_quoted_table(c->arena, PQgetvalue(r, i, 0),
                                                                PQgetvalue(r, i, 1)),
                                               sql_quoted_table(c->arena, PQgetvalue(r, i, 2),
                                                                PQgetvalue(r, i, 3))));
    }
    return TW_OK;
}

/* Rows that others refer to, of which only some are carried. */
static status MUST_CHECK trial_parents(struct check *c, struct check_node *n)
{
    struct gather found = {0};
    PGresult *r;
    if (!c->job->nrules) return TW_OK;
    TRY(db_query(&n->db, c->arena, "read foreign keys", "SELECT pn.nspname, p.relname,"
                 " k.conrelid::regclass, k.conname FROM pg_constraint k JOIN pg_class p ON p.oid ="
                 " k.confrelid JOIN pg_namespace pn ON pn.oid = p.relnamespace WHERE k.contype ="
                 " 'f' AND k.conrelid = ANY ($1::oid[]) AND k.confrelid = ANY ($1::oid[])"
                 " ORDER BY 3, 4", 1, &n->oids, &r));
    for (int i = 0; i < PQntuples(r); i++) {
        const struct table_rules *rules;
        TRY(rules_find(c->job, &n->db, PQgetvalue(r, i, 0), PQgetvalue(r, i, 1), &rules));
        if (rules && (rules->filter || rules->drop))
            gather_add(&found, "; ", check_text(c, "%s of %s refers to rows of %s, of which only"
                                                " some are carried", PQgetvalue(r, i, 3),
                                                PQgetvalue(r, i, 2), PQgetvalue(r, i, 1)));
    }
    if (found.n)
        check_add(c, CHECK_WARNING, gather_end(c, &found, "; "),
                  "the rows that others refer to: else the foreign key cannot be made on b",
                  "a filter for the referring table, too; or no foreign key on a");
    return TW_OK;
}

/* Every expression is tried where it will be asked, in a transaction that is rolled back. */
static status check_rules(struct check *c, struct check_node *n)
{
    struct gather wrong = {0}, absent = {0};
    int tried = 0;
    for (int i = 0; i < c->job->nrules; i++) {
        const struct qname *q = &c->job->rules[i].name;
        bool found = false;
        for (int t = 0; t < c->tables.n && !found; t++)
            found = qname_matches(q, c->tables.items[t].schema, c->tables.items[t].name);
        if (!found)
            gather_add(&absent, "; ", check_text(c, "[table %s.%s]: no table of this job is meant",
                                                q->schema, q->table));
    }
    if (job_maps(c->job)) TRY(trial_places(c, n, &wrong));
    TRY(db_exec(&n->db, "begin", "BEGIN"));
    for (int i = 0; i < c->tables.n && c->job->nrules; i++) {
        struct check_trial x = {.c = c, .n = n, .t = &c->tables.items[i], .wrong = &wrong,
                                .absent = &absent};
        const struct table_rules *rules;
        TRY(rules_find(c->job, &n->db, x.t->schema, x.t->name, &rules));
        const struct table_rules *own = job_rules(c->job, x.t->schema, x.t->name);
        if (own) TRY(trial_names(&x, own));
        if (!rules_see_rows(rules)) continue;
        tried++;
        TRY(trial_table(&x, rules));
    }
    TRY(db_exec(&n->db, "roll back", "ROLLBACK"));
    TRY(trial_parents(c, n));
    bool any = wrong.n || absent.n;
    if (absent.n)  /* of a job that has run: dropped since, or renamed */
        check_add(c, c->initialised ? CHECK_WARNING : CHECK_FAILED, gather_end(c, &absent, "; "),
                  "tables and columns that are there",
                  "correct the [table] sections of the job file");
    if (wrong.n)
        check_add(c, CHECK_FAILED, gather_end(c, &wrong, "; "),
                  "tables, columns and expressions that the server understands",
                  "correct the [table] sections of the job file");
    if (!any)
        check_ok(c, tried ? "filters and transforms of %d tables" : "no filters or transforms",
                 tried);
    return TW_OK;
}

/* Looks only: the folder is made by `run`.  What counts is the nearest folder that exists. */
static status check_state_dir(struct check *c, struct check_node *unused)
{
    const char *dir = c->job->state_dir;
    char *p = arena_str(c->arena, dir);
    struct stat st = {0};
    (void) unused;
    while (stat(p, &st) && errno == ENOENT && strrchr(p, '/') > p) *strrchr(p, '/') = '\0';
    if (stat(p, &st) && errno == ENOENT) p = arena_str(c->arena, *dir == '/' ? "/" : ".");
    const char *remedy = check_text(c, "install -d -m 0700 -o %d %s", (int) geteuid(), dir);
    if (!stat(p, &st) && !S_ISDIR(st.st_mode))
        check_add(c, CHECK_FAILED, check_text(c, "%s is not a folder", p), "a folder",
                  "change state_dir in [job]");
    else if (access(p, R_OK | W_OK | X_OK))
        check_add(c, CHECK_FAILED, check_text(c, "%s: %s", p, strerror(errno)),
                  "a folder that can be written", remedy);
    else if (str_is(p, dir) && st.st_mode & 077)
        check_add(c, CHECK_WARNING, check_text(c, "%s has mode %03o", p, st.st_mode & 0777U),
                  "a private folder", check_text(c, "chmod 0700 %s", dir));
    else
        check_ok(c, str_is(p, dir) ? "%s" : "%s will be made", dir);
    return TW_OK;
}

/* ---- all items ---- */

static const struct check_row check_table[] = {
    {"CONNECT", EACH, STAGE_CONNECT, false, check_connect},
    {"VERSION", EACH, STAGE_CONNECT, false, check_version},
    {"REPLICATION_CONNECT", SOURCES, STAGE_CONNECT, false, check_replication},
    {"STATE_DIR", LOCAL, STAGE_SERVER, false, check_state_dir},
    {"POLICY", LOCAL, STAGE_SERVER, false, check_policy},
    {"RECOVERY", EACH, STAGE_SERVER, false, check_recovery},
    {"POOLER", EACH, STAGE_SERVER, false, check_pooler},
    {"RIGHTS", EACH, STAGE_SERVER, false, check_role},
    {"INITIALISED", ONLY_B, STAGE_SERVER, false, check_initialised},
    {"SAME_DATABASE", BOTH, STAGE_SERVER, false, check_same_database},
    {"WAL_LEVEL", SOURCES, STAGE_SERVER, false, check_wal_level},
    {"SLOTS", SOURCES, STAGE_SERVER, false, check_slots},
    {"SENDERS", SOURCES, STAGE_SERVER, false, check_senders},
    {"SLOT_NAME", SOURCES, STAGE_SERVER, false, check_slot_name},
    {"CREATE_RIGHT", EACH, STAGE_SERVER, false, check_create_right},
    {"SCHEMA_TWSYNC", EACH, STAGE_SERVER, false, check_schema_twsync},
    {"RUNG", TARGETS, STAGE_SERVER, false, check_rung},
    {"LATEST", EACH, STAGE_SERVER, false, check_latest},
    {"EVENT_TRIGGER", ONLY_A, STAGE_SERVER, false, check_event_trigger},
    {"LONG_TRANSACTIONS", SOURCES, STAGE_SERVER, false, check_long_transactions},
    {"WAL_KEEP", SOURCES, STAGE_SERVER, false, check_wal_keep},
    {"SLOT_FAILOVER", SOURCES, STAGE_SERVER, false, check_slot_failover},
    {"ENCODING", BOTH, STAGE_SERVER, false, check_encoding},
    {"COLLATION", BOTH, STAGE_SERVER, false, check_collation},
    {"CLOCK", BOTH, STAGE_SERVER, false, check_clock},
    {"OBJECTS", ONLY_A, STAGE_SERVER, false, check_objects},
    {"UNSUPPORTED", ONLY_A, STAGE_TABLES, false, check_unsupported},
    {"OWNERSHIP", EACH, STAGE_TABLES, false, check_ownership},
    {"SCHEMA_RIGHT", EACH, STAGE_TABLES, false, check_schema_right},
    {"ROW_SECURITY", EACH, STAGE_TABLES, false, check_row_security},
    {"KEY", ONLY_A, STAGE_TABLES, false, check_key},
    {"REPLICA_IDENTITY", SOURCES, STAGE_TABLES, false, check_replica_identity},
    {"TOPOLOGY", EACH, STAGE_TABLES, false, check_topology},
    {"TARGET_TABLES", ONLY_B, STAGE_TABLES, false, check_target_tables},
    {"FOREIGN_KEYS", ONLY_A, STAGE_TABLES, true, check_foreign_keys},
    {"PARTITIONS", ONLY_A, STAGE_TABLES, true, check_partitions},
    {"SEQUENCES", ONLY_A, STAGE_TABLES, false, check_sequences},
    {"EXTENSIONS", ONLY_B, STAGE_TABLES, false, check_extensions},
    {"DEPENDENCIES", ONLY_B, STAGE_TABLES, false, check_dependencies},
    {"REPLICA_ROLE", TARGETS, STAGE_TABLES, false, check_replica_role},
    {"POLICY_TABLES", LOCAL, STAGE_TABLES, false, check_policy_tables},
    {"RULES", ONLY_A, STAGE_TABLES, false, check_rules},
};

enum { CHECK_NROWS = (int) (sizeof check_table / sizeof *check_table) };

/* Not in the table, which it reads. */
static const struct check_row check_accept_row = {"ACCEPT", LOCAL, STAGE_CONNECT, false, NULL};

static const char *check_ignorable_codes(struct check *c)
{
    struct gather g = {0};
    for (int i = 0; i < CHECK_NROWS; i++)
        if (check_table[i].ignorable) gather_add(&g, ", ", check_table[i].code);
    return gather_end(c, &g, ", ");
}

static void check_accept(struct check *c)
{
    struct gather g = {0};
    c->row = &check_accept_row;
    c->at = '-';
    for (int i = 0; i < c->job->accept.n; i++) {
        const char *code = c->job->accept.items[i];
        bool ok = false;
        for (int k = 0; k < CHECK_NROWS; k++)
            ok = ok || (check_table[k].ignorable && !strcasecmp(check_table[k].code, code));
        if (!ok) gather_add(&g, ", ", code);
    }
    if (!g.n) return;
    check_add(c, CHECK_FAILED, check_text(c, "accept names %s", gather_end(c, &g, ", ")),
              check_text(c, "only codes that can be accepted: %s", check_ignorable_codes(c)),
              "correct accept in [job]");
}

static bool check_is_wanted(const struct check *c, const struct check_row *row, int i)
{
    assert(i == 0 || i == 1);
    const struct check_node *n = &c->n[i];
    const bool in_scope[] = {[EACH] = true,
                             [SOURCES] = check_is_source(c, i),
                             [TARGETS] = check_is_target(c, i),
                             [ONLY_A] = i == 0,
                             [ONLY_B] = i == 1,
                             [BOTH] = false,
                             [LOCAL] = false};
    if (!in_scope[row->scope]) return false;
    if (row->stage == STAGE_TABLES) return n->up && n->oids && c->selected;
    return n->up || row->run == check_connect;
}

/* What could not be measured is a failed item, and the session is made ready for the next. */
static status MUST_CHECK check_one(struct check *c, const struct check_row *row,
                                   struct check_node *n)
{
    c->row = row;
    c->at = n ? n->node->letter : '-';
    status s = row->run(c, n);
    if (s == TW_OK) return TW_OK;
    if (s == TW_ESTOP) return s;
    check_add(c, CHECK_FAILED, c->e.msg, "an answer from the server", c->e.hint);
    for (int i = 0; i < 2; i++) {
        struct db *d = &c->n[i].db;
        error_clear(&c->e);
        if (!c->n[i].up || (d->pg && PQtransactionStatus(d->pg) == PQTRANS_IDLE)) continue;
        c->n[i].up = db_exec(d, "roll back", "ROLLBACK") == TW_OK;
        if (!c->n[i].up) c->list->unreachable = true;
    }
    error_clear(&c->e);
    return TW_OK;
}

static status MUST_CHECK check_row_all(struct check *c, const struct check_row *row)
{
    if (row->scope == LOCAL) return check_one(c, row, NULL);
    if (row->scope == BOTH) return c->n[0].up && c->n[1].up ? check_one(c, row, NULL) : TW_OK;
    for (int i = 0; i < 2; i++)
        if (check_is_wanted(c, row, i)) TRY(check_one(c, row, &c->n[i]));
    return TW_OK;
}

/* No item failed, except such as can be and are accepted by the job. */
static bool check_passed(const struct check_list *l)
{
    for (int i = 0; i < l->n; i++)
        if (l->items[i].status == CHECK_FAILED && !l->items[i].accepted) return false;
    return l->n > 0;
}

/* Measure everything, or only whether both ends can be connected to.  Nothing stays on either
 * server.  An item that fails is no error: only a stop is.  The list lives in `a`. */
static status MUST_CHECK check_once(const struct job *job, bool connect_only, struct arena *a,
                                    struct check_list *list, bool *initialised, struct tw_error *e)
{
    struct check c = {.job = job, .arena = a, .list = list};
    status s = TW_OK;
    *list = (struct check_list){0};
    for (int i = 0; i < 2; i++) c.n[i].node = &job->node[i];
    check_accept(&c);
    for (int i = 0; i < CHECK_NROWS && s == TW_OK; i++)
        if (!connect_only || check_table[i].stage == STAGE_CONNECT)
            s = check_row_all(&c, &check_table[i]);
    for (int i = 0; i < 2; i++) {
        db_close(&c.n[i].db);
        db_close(&c.n[i].repl);
    }
    list->passed = s == TW_OK && check_passed(list);
    *initialised = c.initialised;
    if (s != TW_OK) *e = c.e;
    return s;
}

/* DDL may come between two of its questions: a job that is at work is not stopped by that. */
static status MUST_CHECK check_run(const struct job *job, bool connect_only, struct arena *a,
                                   struct check_list *list, struct tw_error *e)
{
    bool initialised = true;
    status s = TW_OK;
    for (int i = 0; i < 3 && s == TW_OK && initialised && !(i && list->passed); i++)
        s = check_once(job, connect_only, a, list, &initialised, e);
    return s;
}

/* ---- the report ---- */

static int check_count(const struct check_list *l, enum check_status st)
{
    int n = 0;
    for (int i = 0; i < l->n; i++) n += l->items[i].status == st;
    return n;
}

static void check_json_item(struct buf *b, const struct check_item *it)
{
    const char *const fields[][2] = {{"code", it->code},
                                     {"node", (char[]){it->node, '\0'}},
                                     {"status", check_status_names[it->status]},
                                     {"measured", it->measured},
                                     {"needed", it->needed},
                                     {"remedy", it->remedy}};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        buf_fmt(b, "%s\"%s\":", i ? "," : "{", fields[i][0]);
        json_str(b, fields[i][1]);
    }
    buf_fmt(b, ",\"ignorable\":%s,\"accepted\":%s}", it->ignorable ? "true" : "false",
            it->accepted ? "true" : "false");
}

static void check_print_json(const struct check_list *l, FILE *to)
{
    struct buf b = {0};
    buf_fmt(&b, "{\"passed\":%s,\"items\":[", l->passed ? "true" : "false");
    for (int i = 0; i < l->n; i++) {
        if (i) buf_char(&b, ',');
        check_json_item(&b, &l->items[i]);
    }
    buf_str(&b, "]}\n");
    fputs(b.data, to);
    buf_free(&b);
}

/* Text of servers on a terminal: no control characters, further lines under the first. */
static void check_print_text(FILE *to, const char *text, int indent)
{
    for (; *text; text++) {
        if (*text == '\n')
            fprintf(to, "\n%*s", indent, "");
        else
            fputc((unsigned char) *text < 0x20 || *text == 0x7f ? '?' : *text, to);
    }
    fputc('\n', to);
}

static void check_print_item(const struct check_item *it, FILE *to, int width, bool colour)
{
    static const char *const colours[] = {"\033[32m", "\033[33m", "\033[31m"};
    const char *const below[][2] = {{"needed", it->needed}, {"remedy", it->remedy}};
    const int indent = width + 14;
    fprintf(to, "%-*s  %c  %s%-7s%s  ", width, it->code, it->node,
            colour ? colours[it->status] : "", check_status_names[it->status],
            colour ? "\033[0m" : "");
    if (it->status == CHECK_FAILED && it->accepted) fputs("accepted: ", to);
    check_print_text(to, it->measured, indent);
    for (int i = 0; i < 2; i++) {
        if (!below[i][1][0]) continue;
        fprintf(to, "%*s%-6s  ", indent, "", below[i][0]);
        check_print_text(to, below[i][1], indent + 8);
    }
}

static void check_print(const struct check_list *l, FILE *to, bool json)
{
    if (json) {
        check_print_json(l, to);
        return;
    }
    bool colour = isatty(fileno(to)) && !getenv("NO_COLOR");
    size_t width = 0;
    for (int i = 0; i < l->n; i++)
        if (strlen(l->items[i].code) > width) width = strlen(l->items[i].code);
    for (int i = 0; i < l->n; i++) check_print_item(&l->items[i], to, (int) width, colour);
    fprintf(to, "%d ok, %d warnings, %d failed\n", check_count(l, CHECK_OK),
            check_count(l, CHECK_WARNING), check_count(l, CHECK_FAILED));
}
/* ==== 25. copy =============================================================
 * The full copy: every table as it was in one exported snapshot of the source, in chunks taken
 * from one queue, biggest first, by worker processes; straight from connection to connection.
 *
 * A chunk's ledger row (twsync.copied) commits with its rows, and opens the transaction, so it is
 * also the loop marker.  The ledger remembers the snapshot's position: changes committed before it
 * are in the copy and the stream skips them for this table (rel->skip_until_lsn).
 *
 * After a crash what the ledger has stays, and the pages it lacks are read under a new snapshot.  A
 * row that was moved between the two may then come twice, or not at all: so the table gets its key
 * first, what it has of such a row stays, and until the stream has passed the newest snapshot it
 * replays all changes since the oldest one over whatever is there (rel->catchup_lsn): each key's
 * last change makes its row what it is on the source.  A table without a key, or one whose file is
 * another one now, is emptied and begins again.  Nothing but what the ledger names is emptied. */

struct copy_chunk {
    int table;
    int number, of;
    int64_t from_page, to_page;  /* to_page -1: to the end */
    int64_t weight;
};

/* Pages that are still to be copied; to -1: to the end. */
struct copy_gap {
    int64_t from, to;
};

/* What is to be done about a table. */
struct copy_todo {
    bool keep;      /* it has rows of its own, which win */
    bool resumed;   /* it has chunks of an older snapshot */
    int have;       /* so many */
    int first;      /* number of the first new chunk */
    int chunks;     /* new ones; 0: copied before */
    int ngaps;
    struct copy_gap *gaps;
};

/* Shared by the workers: anonymous memory made before the fork. */
struct copy_shared {
    _Atomic int next;        /* index of the next chunk to take */
    _Atomic int failed;      /* 1 + index of the worker whose error is in `error` */
    struct tw_error error;
    int failed_at;           /* table of the chunk that failed; -1: it was none */
    _Atomic int64_t rows[];  /* by table, then bytes by table, then chunks done by table */
};

struct copy {
    const struct job *job;
    const struct node *source, *target;
    const char *ledger;         /* name of the task in the ledger, "JOB/forward" */
    const char *task;           /* the same for application_name, "JOB:forward" */
    const char *snapshot;       /* name of the exported snapshot */
    const char *snapshot_check; /* txid_current_snapshot() as its first importer saw it */
    lsn_t snapshot_lsn;
    const char *seen;           /* the snapshot itself, if it did not come with a slot; or NULL */
    const struct table_list *tables;
    struct copy_todo *todo;     /* by table */
    int nchunks;
    struct copy_chunk *chunks;
    struct copy_shared *shared;
    size_t shared_size;
    struct stat_task *stat;
    struct stat_page *page;     /* with the limits */
    struct tw_error *e;
    int64_t chunk_rows, chunk_bytes;  /* of the worker's chunk */
    int at;                     /* its table, or that of the chunk that failed; -1: none */
    bool bars;                  /* draw on a terminal */
    usec started_us, drawn_us;
};

enum { COPY_MAX_WORKERS = 64, COPY_FLUSH = 256 * 1024, COPY_QUERIES = 3 /* a chunk's */ };

static _Atomic int64_t *copy_rows(const struct copy *c, int table)
{
    return &c->shared->rows[table];
}

static _Atomic int64_t *copy_bytes(const struct copy *c, int table)
{
    return &c->shared->rows[c->tables->n + table];
}

static _Atomic int64_t *copy_done(const struct copy *c, int table)
{
    return &c->shared->rows[2 * c->tables->n + table];
}

/* ---- one chunk ---- */

/* What is copied of a table: columns of the target, and what fills them; NULL: there is none. */
struct copy_what {
    const char *into;  /* the table on the target */
    const char *columns, *values, *condition;
    const struct table_rules *rules;  /* NULL: all of it, as it is on the source */
};

/* What an expression may name besides the columns, but for what is only known of changes. */
static const char *copy_names(struct arena *a, const struct table *t, const struct table_rules *r)
{
    if (!r) return "";
    static const char *const names[] = {"tw_operation", "tw_commit_time", "tw_schema", "tw_table"};
    bool any = false;
    for (int i = 0; i < 4; i++) any = any || rules_any_name(r, names[i]);
    if (!any) return "";
    return arena_fmt(a, ", (SELECT 'insert'::text AS tw_operation, NULL::timestamptz AS"
                        " tw_commit_time, %s::text AS tw_schema, %s::text AS tw_table) tw_names",
                     sql_quoted_literal(a, t->schema), sql_quoted_literal(a, t->name));
}

/* Columns that can be copied, by the source's catalog: generated ones compute themselves. */
static status MUST_CHECK copy_columns(const struct job *job, struct db *from, struct arena *a,
                                      const struct table *t, struct copy_what *out)
{
    const struct table_rules *r, *own = job_rules(job, t->schema, t->name);
    struct buf columns = {0}, values = {0}, condition = {0}, q = {0};
    PGresult *names;
    const char *sql = arena_fmt(a,
        "SELECT attname, quote_ident(attname), format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = %u AND attnum > 0 AND NOT attisdropped %s ORDER BY attnum", t->oid,
        from->version >= 120000 ? "AND attgenerated = ''" : "");
    TRY(rules_find(job, from, t->schema, t->name, &r));
    TRY(db_query(from, a, "read columns", sql, 0, NULL, &names));
    if (!rules_see_rows(r)) r = NULL;
    *out = (struct copy_what){.into = name_quoted(job, a, t->schema, t->name), .rules = r};
    for (int i = 0; i < PQntuples(names); i++) {
        const struct rule_set *set = rules_set_of(r, PQgetvalue(names, i, 0));
        const char *sep = columns.len ? ", " : "", *name = PQgetvalue(names, i, 1);
        const char *there = name_column(own, PQgetvalue(names, i, 0));
        if (!there) continue;
        buf_reset(&q);
        sql_ident(&q, there);
        buf_fmt(&columns, "%s%s", sep, q.data);
        if (set) buf_fmt(&values, "%s(\n%s\n)::%s", sep, set->expression, PQgetvalue(names, i, 2));
        else buf_fmt(&values, "%s%s", sep, name);
    }
    if (r) rules_condition(&condition, r);
    if (columns.len) out->columns = arena_str(a, columns.data);
    if (columns.len) out->values = arena_str(a, values.data);
    buf_free(&q);
    if (condition.len) out->condition = arena_str(a, condition.data);
    buf_free(&columns);
    buf_free(&values);
    buf_free(&condition);
    return TW_OK;
}

/* Values as the servers' types send and receive them, without being written and read as text:
 * between servers of one major version, of types that are the same by number, and that do not send
 * numbers of other objects (reg..., arrays and rows of types that users made).  In a column list
 * both sides answer alike if they agree. */
static const char copy_types_sql[] =
    "SELECT string_agg(format('%s %s %s', a.attname, CASE WHEN b.typtype = 'e' THEN 'enum' ELSE"
    "   b.oid::text END, a.atttypmod), ',' ORDER BY a.attname)"
    " FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid"
    " JOIN pg_type b ON b.oid = CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END"
    " WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped"
    " AND coalesce(to_jsonb(a)->>'attgenerated', '') = ''"
    " HAVING bool_and(b.typsend <> 0 AND b.typreceive <> 0 AND (b.typtype = 'e' OR b.oid < 10000"
    "  AND b.typtype IN ('b', 'r', 'm') AND b.typname !~ '^_?reg'))";

enum { COPY_BINARY_LEAST = 1024 * 1024 };  /* what is smaller is not worth the questions */

static status MUST_CHECK copy_is_binary(struct arena *a, struct db *from, struct db *to,
                                        const struct table *t, bool *yes)
{
    const char *name = sql_quoted_table(a, t->schema, t->name), *there = NULL, *here = NULL;
    *yes = false;
    if (from->version / 10000 != to->version / 10000 || t->bytes < COPY_BINARY_LEAST) return TW_OK;
    TRY(db_value(from, a, "read the types", copy_types_sql, 1, &name, &there));
    if (there) TRY(db_value(to, a, "read the types", copy_types_sql, 1, &name, &here));
    *yes = there && here && str_is(there, here);
    return TW_OK;
}

static const char *copy_select(struct arena *a, const struct table *t, const struct copy_chunk *k,
                               const struct copy_what *what, bool binary)
{
    const char *name = sql_quoted_table(a, t->schema, t->name);
    const char *names = copy_names(a, t, what->rules);
    const char *where = arena_fmt(a, " WHERE %s", what->condition ? what->condition : "true");
    if (k->from_page)
        where = arena_fmt(a, "%s AND ctid >= '(%" PRId64 ",0)'::tid", where, k->from_page);
    if (k->to_page >= 0)
        where = arena_fmt(a, "%s AND ctid < '(%" PRId64 ",0)'::tid", where, k->to_page);
    return arena_fmt(a, "COPY (SELECT %s FROM ONLY %s%s%s) TO STDOUT%s", what->values, name, names,
                     where, binary ? " (FORMAT binary)" : "");
}

static status MUST_CHECK copy_start(struct db *d, const char *what, const char *sql,
                                    ExecStatusType want)
{
    PGresult *r = NULL;
    TRY(db_attempt(d, sql, 0, NULL, &r));
    status s = PQresultStatus(r) == want ? TW_OK : db_fail_result(d, r, what);
    PQclear(r);
    return s;
}

/* Wait until as much may go on as went before.  Nothing is lost on the way: the source waits. */
static status MUST_CHECK copy_throttle(struct copy *c, struct db *d, int64_t queries, int64_t rows,
                                       int64_t bytes)
{
    static const enum throttle all[] = {THROTTLE_full_queries, THROTTLE_full_rows,
                                        THROTTLE_full_bytes};
    const int64_t taken[] = {queries, rows, bytes};
    for (int i = 0; i < 3; i++) throttle_take(c->page, all[i], taken[i]);
    for (;;) {
        usec left = 0;
        for (int i = 0; i < 3; i++)
            if (taken[i] && throttle_left(c->page, all[i]) > left)
                left = throttle_left(c->page, all[i]);
        if (!left) return TW_OK;
        os_sleep_ms(left < THROTTLE_LOOK_MS * 1000 ? (int) (left / 1000) + 1 : THROTTLE_LOOK_MS);
        TRY(db_tick(d));
    }
}

/* Counted now and then: counters that several workers write to are dear. */
static status MUST_CHECK copy_passed(struct copy *c, int table, struct db *d, int64_t rows,
                                     int64_t bytes)
{
    *copy_rows(c, table) += rows;
    *copy_bytes(c, table) += bytes;
    c->chunk_rows += rows;
    c->chunk_bytes += bytes;
    return copy_throttle(c, d, 0, rows, bytes);
}

/* Rows from one COPY to the other, never more in hand than COPY_FLUSH and one row.  libpq sends by
 * itself whenever 8 kB have come together; to flush each row would cost a system call a row. */
static status MUST_CHECK copy_pump(struct copy *c, int table, struct db *from, struct db *to)
{
    int64_t held = 0, rows = 0, step = throttle_step(c->page, THROTTLE_full_rows, COPY_FLUSH);
    for (;;) {
        char *row = NULL;
        int n = PQgetCopyData(from->pg, &row, 1);
        if (n == -1) return copy_passed(c, table, to, rows, held);
        if (n < -1) return db_fail_conn(from, "read the copy");
        if (n == 0) {
            TRY(db_poll(from, POLLIN));
            if (!PQconsumeInput(from->pg)) return db_fail_conn(from, "read the copy");
            continue;
        }
        int rc = PQputCopyData(to->pg, row, n);
        PQfreemem(row);
        if (rc < 0) return db_fail_conn(to, "write the copy");
        held += n;
        rows++;
        if (held >= COPY_FLUSH || rows >= step) {
            TRY(db_flush(to));
            TRY(copy_passed(c, table, to, rows, held));
            step = throttle_step(c->page, THROTTLE_full_rows, COPY_FLUSH);
            held = rows = 0;
        }
    }
}

/* rows: how many there were, by the server. */
static status MUST_CHECK copy_finish(struct db *d, const char *what, int64_t *rows)
{
    PGresult *r = NULL;
    TRY(db_collect(d, &r));
    status s = db_result_ok(r) ? TW_OK : db_fail_result(d, r, what);
    if (s == TW_OK) *rows = strtoll(PQcmdTuples(r), NULL, 10);
    PQclear(r);
    return s;
}

/* The source failed: the target's COPY ends, and its transaction, if it wants to roll back to a
 * savepoint, can. */
static status MUST_CHECK copy_break_off(struct db *to, status s)
{
    PGresult *r = NULL;
    struct tw_error was = *to->e;
    if (PQputCopyEnd(to->pg, "the source could not be read") > 0 && db_collect(to, &r) == TW_OK)
        PQclear(r);
    *to->e = was;
    return s;
}

/* COPY from source to `into` on the target. */
static status MUST_CHECK copy_stream(struct copy *c, struct arena *a, const struct copy_chunk *k,
                                     struct db *from, struct db *to, const struct copy_what *what,
                                     const char *into, bool freeze)
{
    const struct table *t = &c->tables->items[k->table];
    const char *name = sql_quoted_table(a, t->schema, t->name);
    const char *reading = arena_fmt(a, "copy table %s from", name);
    const char *writing = arena_fmt(a, "copy table %s to", name);
    int64_t rows = 0;
    bool binary = false;
    if (!what->rules && !job_maps(c->job)) TRY(copy_is_binary(a, from, to, t, &binary));
    TRY(copy_start(from, reading, copy_select(a, t, k, what, binary), PGRES_COPY_OUT));
    TRY(copy_start(to, writing, arena_fmt(a, "COPY %s (%s) FROM STDIN (FORMAT %s%s)", into,
                                          what->columns, binary ? "binary" : "text",
                                          freeze ? ", FREEZE" : ""), PGRES_COPY_IN));
    status s = copy_pump(c, k->table, from, to);
    if (s == TW_OK) s = copy_finish(from, reading, &rows);
    if (s != TW_OK) return copy_break_off(to, s);
    if (PQputCopyEnd(to->pg, NULL) < 0) return db_fail_conn(to, writing);
    TRY(copy_finish(to, writing, &rows));
    *copy_rows(c, k->table) += rows - c->chunk_rows;  /* messages: a binary COPY has one more */
    c->chunk_rows = rows;
    return TW_OK;
}

/* A table without columns still has a number of rows. */
static status MUST_CHECK copy_no_columns(struct copy *c, struct arena *a, int table,
                                         struct db *from, struct db *to)
{
    const struct table *t = &c->tables->items[table];
    const char *name = sql_quoted_table(a, t->schema, t->name), *n;
    TRY(db_value(from, a, "count rows", arena_fmt(a, "SELECT count(*) FROM ONLY %s", name), 0, NULL,
                 &n));
    name = name_quoted(c->job, a, t->schema, t->name);
    c->chunk_rows = strtoll(n, NULL, 10);
    *copy_rows(c, table) += c->chunk_rows;
    return db_exec(to, "write rows", arena_fmt(a, "INSERT INTO %s SELECT FROM"
                                                  " generate_series(1, %s)", name, n));
}

/* A deferrable key cannot arbitrate ON CONFLICT: then every unique key is asked beforehand. */
static const char copy_absent_sql[] =
    "SELECT CASE WHEN bool_or(NOT x.indimmediate) THEN string_agg('NOT EXISTS (SELECT FROM '"
    " || $1 || ' t WHERE ' || x.cond || ')', ' AND ') END FROM (SELECT i.indimmediate,"
    " string_agg(format('t.%1$I = s.%1$I', a.attname), ' AND ') AS cond FROM pg_index i"
    " CROSS JOIN LATERAL generate_series(1, i.indnkeyatts) k"
    " JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[k - 1]"
    " WHERE i.indrelid = $1::regclass AND i.indisunique AND i.indpred IS NULL"
    " AND i.indexprs IS NULL GROUP BY i.indexrelid, i.indimmediate) x";

/* Rows that are there already win: with existing = keep the target's own, in a resumed table those
 * of older chunks. */
static status MUST_CHECK copy_keeping(struct copy *c, struct arena *a, const struct copy_chunk *k,
                                      struct db *from, struct db *to,
                                      const struct copy_what *what)
{
    const struct table *t = &c->tables->items[k->table];
    const char *name = name_quoted(c->job, a, t->schema, t->name), *columns = what->columns;
    const char *absent;
    TRY(db_value(to, a, "read keys", copy_absent_sql, 1, &name, &absent));
    TRY(db_exec(to, "create a staging table",
                arena_fmt(a, "CREATE TEMP TABLE tw_copy ON COMMIT DROP AS SELECT %s FROM %s"
                             " WITH NO DATA", columns, name)));
    TRY(copy_stream(c, a, k, from, to, what, "pg_temp.tw_copy", false));
    return db_exec(to, arena_fmt(a, "merge table %s", name),
                   arena_fmt(a, "INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %s FROM"
                                " pg_temp.tw_copy s%s%s", name, columns, columns,
                             absent ? " WHERE " : " ON CONFLICT DO NOTHING",
                             absent ? absent : ""));
}

static status MUST_CHECK copy_ledger(struct copy *c, struct arena *a, const struct copy_chunk *k,
                                     struct db *to)
{
    const struct table *t = &c->tables->items[k->table];
    const char *to_page = k->to_page < 0 ? NULL : arena_fmt(a, "%" PRId64, k->to_page);
    const char *values[] = {c->ledger, t->schema, t->name, arena_fmt(a, "%d", k->number),
                            arena_fmt(a, "%d", k->of), lsn_text(a, c->snapshot_lsn), c->seen,
                            arena_fmt(a, "%" PRIu32, t->filenode),
                            arena_fmt(a, "%" PRId64, k->from_page), to_page};
    return db_exec_params(to, "write the copy ledger",
                          "INSERT INTO twsync.copied (task, schema_name, table_name, chunk, chunks,"
                          " snapshot_lsn, seen, rows, bytes, filenode, from_page, to_page)"
                          " VALUES ($1, $2, $3, $4::int, $5::int, $6::pg_lsn, $7, 0, 0, $8::oid,"
                          " $9::bigint, $10::bigint)", 10, values);
}

static status MUST_CHECK copy_ledger_counts(struct copy *c, struct arena *a,
                                            const struct copy_chunk *k, struct db *to)
{
    const struct table *t = &c->tables->items[k->table];
    const char *values[] = {c->ledger, t->schema, t->name, arena_fmt(a, "%d", k->number),
                            arena_fmt(a, "%" PRId64, c->chunk_rows),
                            arena_fmt(a, "%" PRId64, c->chunk_bytes)};
    return db_exec_params(to, "write the copy ledger",
                          "UPDATE twsync.copied SET rows = $5::bigint, bytes = $6::bigint"
                          " WHERE task = $1 AND schema_name = $2 AND table_name = $3"
                          " AND chunk = $4::int", 6, values);
}

static status MUST_CHECK copy_try(struct db *to, const char *sql, bool *done)
{
    PGresult *r;
    TRY(db_attempt(to, sql, 0, NULL, &r));
    *done = db_result_ok(r);
    PQclear(r);
    return *done ? TW_OK : db_exec(to, "roll back to a savepoint",
                                   "ROLLBACK TO SAVEPOINT tw_empty");
}

/* Rows of a table that this transaction has truncated may be written as VACUUM FREEZE would leave
 * them: nobody has to touch them again.  Only where it is empty, nobody is at it, and we may. */
static status MUST_CHECK copy_may_freeze(struct arena *a, struct db *to, const char *name,
                                         bool *may)
{
    const char *row;
    TRY(copy_try(to, arena_fmt(a, "SAVEPOINT tw_empty; LOCK TABLE ONLY %s IN ACCESS EXCLUSIVE MODE"
                                  " NOWAIT", name), may));
    if (!*may) return TW_OK;
    TRY(db_value(to, a, arena_fmt(a, "look into table %s", name),
                 arena_fmt(a, "SELECT 1 FROM ONLY %s LIMIT 1", name), 0, NULL, &row));
    *may = !row;
    if (row) return db_exec(to, "give the lock back", "ROLLBACK TO SAVEPOINT tw_empty");
    return copy_try(to, arena_fmt(a, "TRUNCATE ONLY %s; RELEASE SAVEPOINT tw_empty", name), may);
}

/* What an old snapshot sees of a table that was written anew since, by ALTER TABLE, TRUNCATE or
 * VACUUM FULL, is not what was there, and a name may mean another column by now.  Our COPY holds
 * the table; these functions, unlike a query, tell what is. */
static const char copy_renamed_sql[] =
    "SELECT quote_ident(attname) FROM pg_attribute WHERE attrelid = %u AND attnum > 0 AND NOT"
    " attisdropped AND (pg_identify_object_as_address('pg_class'::regclass, attrelid, attnum))"
    ".object_names[3] IS DISTINCT FROM attname::text LIMIT 1";

static status MUST_CHECK copy_check_file(struct arena *a, struct db *from, const struct table *t)
{
    const char *now, *renamed;
    TRY(db_value(from, a, "look at the table", arena_fmt(a, "SELECT pg_relation_filenode(%u)",
                                                         t->oid), 0, NULL, &now));
    TRY(db_value(from, a, "look at the table", arena_fmt(a, copy_renamed_sql, t->oid), 0, NULL,
                 &renamed));
    if (renamed)
        return fail(from->e, TW_ESCHEMA, "column %s of table %s was renamed on %c while the table"
                    " was copied", renamed, sql_quoted_table(a, t->schema, t->name),
                    from->node->letter);
    if (now && strtoull(now, NULL, 10) == t->filenode) return TW_OK;
    return fail(from->e, TW_ESCHEMA, "table %s was written anew on %c while it was copied (ALTER"
                " TABLE, TRUNCATE, VACUUM FULL or CLUSTER)",
                sql_quoted_table(a, t->schema, t->name), from->node->letter);
}

static status MUST_CHECK copy_chunk_rows(struct copy *c, struct arena *a,
                                         const struct copy_chunk *k, struct db *from, struct db *to)
{
    const struct table *t = &c->tables->items[k->table];
    const struct copy_todo *todo = &c->todo[k->table];
    const char *name = name_quoted(c->job, a, t->schema, t->name);
    struct copy_what what;
    bool freeze = false;
    TRY(copy_columns(c->job, from, a, t, &what));
    if (!what.columns) return copy_no_columns(c, a, k->table, from, to);
    if (todo->keep || todo->resumed) {
        TRY(copy_keeping(c, a, k, from, to, &what));
    } else {
        if (k->of == 1 && t->pages) TRY(copy_may_freeze(a, to, name, &freeze));
        TRY(copy_stream(c, a, k, from, to, &what, name, freeze));
    }
    return copy_check_file(a, from, t);
}

/* The source's locks go with the savepoint: of thousands of tables they would not all fit. */
static status MUST_CHECK copy_chunk(struct copy *c, const struct copy_chunk *k, struct db *from,
                                    struct db *to)
{
    struct arena a = {0};
    c->chunk_rows = c->chunk_bytes = 0;
    status s = db_exec(from, "set a savepoint", "SAVEPOINT tw_chunk");
    if (s == TW_OK) s = db_exec(to, "begin", "BEGIN");
    if (s == TW_OK) s = copy_ledger(c, &a, k, to);
    if (s == TW_OK) s = copy_chunk_rows(c, &a, k, from, to);
    if (s == TW_OK) s = copy_ledger_counts(c, &a, k, to);
    if (s == TW_OK) s = db_exec(to, "commit", "COMMIT");
    if (s == TW_OK)
        s = db_exec(from, "end a savepoint",
                    "ROLLBACK TO SAVEPOINT tw_chunk; RELEASE SAVEPOINT tw_chunk");
    if (s == TW_OK) *copy_done(c, k->table) += 1;
    arena_free(&a);
    return s;
}

/* One table whole, in the target's open transaction. */
static status MUST_CHECK copy_one(struct copy *c, struct arena *a, struct db *from, struct db *to)
{
    const struct copy_chunk k = {.of = 1, .to_page = -1};
    const struct table *t = c->tables->items;
    const char *name = name_quoted(c->job, a, t->schema, t->name);
    const char *values[] = {c->ledger, t->schema, t->name};
    struct copy_what what;
    c->shared = arena_alloc(a, sizeof *c->shared + 3 * sizeof c->shared->rows[0]);
    TRY(db_exec_params(to, "write the copy ledger", "DELETE FROM twsync.copied WHERE task = $1"
                       " AND schema_name = $2 AND table_name = $3", 3, values));
    TRY(copy_ledger(c, a, &k, to));
    TRY(copy_columns(c->job, from, a, t, &what));
    if (what.columns) TRY(copy_stream(c, a, &k, from, to, &what, name, false));
    else TRY(copy_no_columns(c, a, 0, from, to));
    return copy_ledger_counts(c, a, &k, to);
}

/* ---- workers ---- */

/* Join the exported snapshot, and make sure the server gave what it promised (polardb.md: some
 * servers import wrongly without an error). */
static status MUST_CHECK copy_import(struct copy *c, struct db *from)
{
    struct arena a = {0};
    const char *now;
    status s = db_exec(from, "import the snapshot",
                       arena_fmt(&a, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;"
                                     "SET TRANSACTION SNAPSHOT %s",
                                 sql_quoted_literal(&a, c->snapshot)));
    if (s == TW_OK)
        s = db_value(from, &a, "compare the snapshot", "SELECT txid_current_snapshot()", 0, NULL,
                     &now);
    if (s == TW_OK && c->snapshot_check && !str_is(now, c->snapshot_check))
        s = fail(c->e, TW_EPROTO, "the exported snapshot differs between sessions on %c",
                 from->node->letter);
    arena_free(&a);
    return s;
}

/* No new chunk while more sessions than the job allows are at work on the source. */
static status MUST_CHECK copy_await_quiet(struct copy *c, struct db *from)
{
    struct arena a = {0};
    const char *n;
    status s = TW_OK;
    bool told = false;
    while (s == TW_OK && throttle_rate(c->page, THROTTLE_full_sessions)) {
        s = db_exec(from, "count active sessions", "SELECT pg_stat_clear_snapshot()");
        if (s == TW_OK)
            s = db_value(from, &a, "count active sessions", "SELECT count(*) FROM pg_stat_activity"
                         " WHERE state = 'active' AND backend_type = 'client backend'"
                         " AND application_name !~ '^twsync:'", 0, NULL, &n);
        if (s != TW_OK || atoll(n) <= throttle_rate(c->page, THROTTLE_full_sessions)) break;
        if (!told) log_info("waiting: %s sessions are active on %c", n, from->node->letter);
        told = true;
        for (int i = 0; i < 10 && s == TW_OK; i++) {
            os_sleep_ms(THROTTLE_LOOK_MS);
            s = db_tick(from);
        }
    }
    arena_free(&a);
    return s;
}

static status MUST_CHECK copy_work(struct copy *c, struct db *from, struct db *to)
{
    TRY(db_open(from, false));
    TRY(db_open(to, false));
    /* Foreign keys and triggers rest where the right is there; rows come in no useful order. */
    PGresult *r;
    TRY(db_attempt(to, "SET session_replication_role = replica", 0, NULL, &r));
    PQclear(r);
    /* The ledger goes with the rows; what ends the copy is committed to disk, and all before it. */
    TRY(db_commits_wait(to, false));
    TRY(copy_import(c, from));
    for (;;) {
        int i = c->shared->next++;
        if (i >= c->nchunks || c->shared->failed) return TW_OK;
        TESTPOINT(c->e, "copy.chunk");
        TRY(copy_await_quiet(c, from));
        TRY(copy_throttle(c, from, COPY_QUERIES, 0, 0));
        c->at = c->chunks[i].table;
        TRY(copy_chunk(c, &c->chunks[i], from, to));
        c->at = -1;
    }
}

static _Noreturn void copy_worker(struct copy *c, int index)
{
    struct tw_error e;
    error_clear(&e);
    /* cppcheck-suppress autoVariables ; it never returns */
    c->e = &e;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct db from = {.node = c->source, .e = &e}, to = {.node = c->target, .e = &e};
    c->at = -1;
    snprintf(from.purpose, sizeof from.purpose, "%s:copy%d", c->task, index);
    snprintf(to.purpose, sizeof to.purpose, "%s:copy%d", c->task, index);
    status s = copy_work(c, &from, &to);
    int none = 0;
    if (s != TW_OK && atomic_compare_exchange_strong(&c->shared->failed, &none, 1 + index)) {
        c->shared->error = e;
        c->shared->failed_at = c->at;
    }
    db_abandon(&from);
    db_abandon(&to);
    _exit(s == TW_OK ? 0 : 1);
}

/* ---- planning ---- */

/* Cut pages of a table into chunks.  Before PostgreSQL 14 a ctid range is a whole scan: one. */
static int copy_cut(const struct table *t, const struct copy_gap *gap, int64_t chunk_bytes,
                    struct copy_chunk *out)
{
    int64_t end = gap->to < 0 ? t->pages : gap->to, pages = end > gap->from ? end - gap->from : 0;
    int64_t bytes = t->pages ? (int64_t) ((double) t->bytes * (double) pages / (double) t->pages)
                             : t->bytes;
    int n = 1;
    if (chunk_bytes && pages > 1 && bytes > chunk_bytes) {
        int64_t want = bytes / chunk_bytes + 1;
        if (want > pages) want = pages;
        n = want > 10000 ? 10000 : (int) want;
    }
    for (int i = 0; i < n && out; i++)
        out[i] = (struct copy_chunk){.from_page = gap->from + pages * i / n,
                                     .to_page = i == n - 1 ? gap->to
                                                           : gap->from + pages * (i + 1) / n,
                                     .weight = bytes / n};
    return n;
}

static int copy_by_weight(const void *a, const void *b)
{
    const struct copy_chunk *x = a, *y = b;
    if (x->weight != y->weight) return x->weight < y->weight ? 1 : -1;
    if (x->table != y->table) return x->table < y->table ? -1 : 1;
    return x->number - y->number;
}

/* Empty a table that an interrupted copy left half full.  Only the ledger's word allows it. */
static status MUST_CHECK copy_start_over(struct copy *c, struct arena *a, struct db *to,
                                         const struct table *t, const char *why)
{
    const char *name = name_quoted(c->job, a, t->schema, t->name);
    const char *values[] = {c->ledger, t->schema, t->name};
    bool done;
    log_info("copy of %s was interrupted: starting it over, for %s", name, why);
    TRY(db_exec(to, "begin", "BEGIN"));
    TRY(db_exec_params(to, "clear the copy ledger",
                       "DELETE FROM twsync.copied WHERE task = $1 AND schema_name = $2"
                       " AND table_name = $3", 3, values));
    TRY(copy_try(to, arena_fmt(a, "SAVEPOINT tw_empty; TRUNCATE ONLY %s", name), &done));
    if (!done)  /* referenced by a foreign key that was there before */
        TRY(db_exec(to, arena_fmt(a, "empty table %s", name),
                    arena_fmt(a, "DELETE FROM ONLY %s", name)));
    return db_exec(to, "commit", "COMMIT");
}

static void copy_whole(struct arena *a, struct copy_todo *todo)
{
    todo->ngaps = 1;
    todo->gaps = arena_new(a, struct copy_gap);
    todo->gaps->to = -1;
}

/* What the ledger's ranges, in order, leave of a table. */
static void copy_gaps(struct arena *a, const PGresult *r, struct copy_todo *todo)
{
    int n = PQntuples(r);
    int64_t at = 0;
    todo->gaps = arena_array(a, struct copy_gap, n + 1);
    for (int i = 0; i < n; i++) {
        int64_t from = db_cell_int(r, i, 0);
        if (from > at) todo->gaps[todo->ngaps++] = (struct copy_gap){at, from};
        if (!db_cell(r, i, 1)) return;
        at = db_cell_int(r, i, 1);
    }
    todo->gaps[todo->ngaps++] = (struct copy_gap){at, -1};
}

/* Where the keys are the user's affair, there must be one on the target. */
static status MUST_CHECK copy_target_key(struct copy *c, struct arena *a, struct db *to,
                                         const struct table *t, const char **why)
{
    const char *name = name_quoted(c->job, a, t->schema, t->name), *key;
    if (c->job->task[TW_FORWARD].schema) return TW_OK;
    TRY(db_value(to, a, "look for a key", "SELECT 1 FROM pg_index WHERE indrelid ="
                 " to_regclass($1) AND indisunique AND indisvalid AND indpred IS NULL AND indexprs"
                 " IS NULL LIMIT 1", 1, &name, &key));
    if (!key) *why = "it has no key on the target";
    return TW_OK;
}

/* Where a copy was interrupted: *why NULL and what is left of the table, or why it must begin
 * again. */
static status MUST_CHECK copy_resume(struct copy *c, struct arena *a, struct db *to,
                                     const struct table *t, struct copy_todo *todo,
                                     const char **why)
{
    const char *values[] = {c->ledger, t->schema, t->name, arena_fmt(a, "%" PRIu32, t->filenode)};
    PGresult *r;
    TRY(db_query(to, a, "read the copy ledger",
                 "SELECT from_page, to_page, chunk, filenode = $4::oid, from_page IS NOT NULL FROM"
                 " twsync.copied WHERE task = $1 AND schema_name = $2 AND table_name = $3"
                 " ORDER BY from_page", 4, values, &r));
    *why = t->has_key ? NULL : "it has no key";
    if (!*why) TRY(copy_target_key(c, a, to, t, why));
    for (int i = 0; i < PQntuples(r); i++) {
        if (!db_cell_true(r, i, 3)) *why = "it was written anew since";
        if (!db_cell_true(r, i, 4)) *why = "its chunks are of an older twsync";
        if (db_cell_int(r, i, 2) >= todo->first) todo->first = (int) db_cell_int(r, i, 2) + 1;
    }
    if (!*why) copy_gaps(a, r, todo);
    todo->resumed = !*why;
    return TW_OK;
}

/* What to do with one table: nothing (copied whole before), go on, start over, or copy. */
static status MUST_CHECK copy_prepare_table(struct copy *c, struct arena *a, struct db *to,
                                            const struct table *t, struct copy_todo *todo)
{
    const char *values[] = {c->ledger, t->schema, t->name}, *why = NULL;
    PGresult *r;
    const char *left_out;
    if (t->relkind == 'p') return TW_OK;  /* its rows are in its partitions */
    TRY(db_value(to, a, "look for parked tables", "SELECT 1 FROM twsync.parked WHERE task = $1 AND"
                 " schema_name = $2 AND table_name = $3", 3, values, &left_out));
    if (left_out) {
        log_warning("table %s is not copied: it is to be left out",
                    sql_quoted_table(a, t->schema, t->name));
        return TW_OK;
    }
    TRY(db_query(to, a, "read the copy ledger",
                 "SELECT count(*), max(chunks) FROM twsync.copied"
                 " WHERE task = $1 AND schema_name = $2 AND table_name = $3", 3, values, &r));
    int64_t have = db_cell_int(r, 0, 0), of = db_cell_int(r, 0, 1);
    if (have && have == of) return TW_OK;
    todo->have = (int) have;
    if (have) TRY(copy_resume(c, a, to, t, todo, &why));
    if (todo->resumed) return TW_OK;
    *todo = (struct copy_todo){0};
    copy_whole(a, todo);
    if (have) return copy_start_over(c, a, to, t, why);
    const char *name = name_quoted(c->job, a, t->schema, t->name), *row;
    TRY(db_value(to, a, arena_fmt(a, "look into table %s", name),
                 arena_fmt(a, "SELECT 1 FROM ONLY %s LIMIT 1", name), 0, NULL, &row));
    if (row && c->job->existing == EXISTING_ERROR) {
        fail_hint(c->e, "Empty the table, exclude it, or set existing = keep.");
        return fail(c->e, TW_ECHECK, "table %s on %c is not empty", name, to->node->letter);
    }
    todo->keep = row != NULL;
    return TW_OK;
}

/* The chunks of a table's gaps; out NULL: count them. */
static int copy_cut_table(const struct copy *c, int table, bool can_cut, struct copy_chunk *out)
{
    const struct copy_todo *todo = &c->todo[table];
    int64_t size = can_cut && !todo->keep ? c->job->task[TW_FORWARD].chunk_bytes : 0;
    int n = 0;
    for (int i = 0; i < todo->ngaps; i++)
        n += copy_cut(&c->tables->items[table], &todo->gaps[i], size, out ? out + n : NULL);
    for (int i = 0; i < n && out; i++) {
        out[i].table = table;
        out[i].number = todo->first + i;
        out[i].of = todo->have + todo->chunks;
    }
    return n;
}

/* A resumed table's ledger counts the new chunks, too: it is whole when all are there. */
static status MUST_CHECK copy_recount(struct copy *c, struct arena *a, struct db *to, int table)
{
    const struct table *t = &c->tables->items[table];
    const struct copy_todo *todo = &c->todo[table];
    const char *values[] = {c->ledger, t->schema, t->name,
                            arena_fmt(a, "%d", todo->have + todo->chunks)};
    if (!todo->resumed) return TW_OK;
    log_info("copy of %s goes on: %d of %d chunks are there",
             sql_quoted_table(a, t->schema, t->name), todo->have, todo->have + todo->chunks);
    return db_exec_params(to, "write the copy ledger", "UPDATE twsync.copied SET chunks = $4::int"
                          " WHERE task = $1 AND schema_name = $2 AND table_name = $3", 4, values);
}

/* The keys of tables that are resumed, by which rows that are there already are told. */
static status MUST_CHECK copy_keys(struct copy *c, struct arena *a, struct db *from, struct db *to)
{
    uint32_t *resumed = arena_array(a, uint32_t, c->tables->n + 1);
    struct ddl_list list;
    int n = 0;
    for (int i = 0; i < c->tables->n; i++)
        if (c->todo[i].resumed) resumed[n++] = c->tables->items[i].oid;
    if (!n || !c->job->task[TW_FORWARD].schema) return TW_OK;
    TRY(shape_plan(from, a, c->job, c->tables, &list));
    return shape_run_keys(to, &list, resumed, n);
}

static status MUST_CHECK copy_plan(struct copy *c, struct arena *a, struct db *from, struct db *to)
{
    int n = c->tables->n, total = 0;
    bool can_cut = from->version >= 140000;
    c->todo = arena_array(a, struct copy_todo, n + 1);
    for (int i = 0; i < n; i++) {
        TRY(copy_prepare_table(c, a, to, &c->tables->items[i], &c->todo[i]));
        c->todo[i].chunks = copy_cut_table(c, i, can_cut, NULL);
        total += c->todo[i].chunks;
        TRY(copy_recount(c, a, to, i));
    }
    c->chunks = arena_array(a, struct copy_chunk, total + 1);
    for (int i = 0; i < n; i++)
        c->nchunks += copy_cut_table(c, i, can_cut, &c->chunks[c->nchunks]);
    qsort(c->chunks, (size_t) c->nchunks, sizeof *c->chunks, copy_by_weight);
    return copy_keys(c, a, from, to);
}

/* ---- seeing it ---- */

static void copy_totals(struct copy *c)
{
    int64_t rows = 0, bytes = 0, chunks = 0, tables = 0;
    int want = 0;
    for (int i = 0; i < c->tables->n; i++) {
        rows += *copy_rows(c, i);
        bytes += *copy_bytes(c, i);
        chunks += *copy_done(c, i);
        if (c->tables->items[i].relkind == 'p') continue;
        want++;
        tables += *copy_done(c, i) == c->todo[i].chunks;
    }
    c->stat->copy_rows = rows;
    c->stat->copy_bytes = bytes;
    c->stat->copy_chunks = c->nchunks;
    c->stat->copy_chunks_done = chunks;
    c->stat->copy_tables = want;
    c->stat->copy_tables_done = tables;
}

/* How much of a table is copied, 0 to 1: by the planner's estimate of its rows. */
static double copy_fraction(const struct copy *c, int i)
{
    int64_t expect = c->tables->items[i].reltuples;
    if (*copy_done(c, i) == c->todo[i].chunks) return 1;
    if (expect <= 0) return (double) *copy_done(c, i) / c->todo[i].chunks;
    double part = (double) *copy_rows(c, i) / (double) expect;
    return part > 0.99 ? 0.99 : part;
}

static double copy_total_fraction(const struct copy *c)
{
    double done = 0, all = 0;
    for (int i = 0; i < c->tables->n; i++) {
        double weight = (double) c->tables->items[i].bytes + 1;
        done += weight * copy_fraction(c, i);
        all += weight;
    }
    return all > 0 ? done / all : 1;
}

static void copy_bar(struct buf *b, double part)
{
    enum { WIDTH = 24 };
    int full = (int) (part * WIDTH);
    for (int i = 0; i < WIDTH; i++) buf_str(b, i < full ? "█" : "░");
}

/* "12.3 MB" */
static void copy_size(char *out, size_t size, int64_t bytes)
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB", "PB"};
    double v = (double) bytes;
    int u = 0;
    while (v >= 1000 && u < 5) v /= 1000, u++;
    snprintf(out, size, u ? "%.1f %s" : "%.0f %s", v, units[u]);
}

static void copy_line(struct buf *b, struct copy *c, int i)
{
    const struct table *t = &c->tables->items[i];
    char name[64], size[24];
    snprintf(name, sizeof name, "%s.%s", t->schema, t->name);
    copy_size(size, sizeof size, *copy_bytes(c, i));
    buf_fmt(b, "  %-34.34s ", name);
    copy_bar(b, copy_fraction(c, i));
    buf_fmt(b, " %10" PRId64 " rows %9s\033[K\n", *copy_rows(c, i), size);
}

enum { COPY_BAR_LINES = 8 };

/* Bars of the tables at work, biggest first, then a total; drawn over the last ones. */
static void copy_draw(struct copy *c, int *lines)
{
    struct buf b = {0};
    char size[24];
    if (*lines) buf_fmt(&b, "\033[%dA", *lines);
    *lines = 0;
    int shown = 0;
    for (int k = 0; k < c->nchunks && shown < COPY_BAR_LINES; k++) {
        int i = c->chunks[k].table;
        bool first = true;
        for (int j = 0; j < k && first; j++) first = c->chunks[j].table != i;
        if (!first || *copy_done(c, i) == c->todo[i].chunks || !*copy_rows(c, i)) continue;
        copy_line(&b, c, i);
        shown++;
    }
    double s = (double) (os_now() - c->started_us) / 1e6;
    copy_size(size, sizeof size, c->stat->copy_bytes);
    buf_fmt(&b, "  %-34s ", "total");
    copy_bar(&b, copy_total_fraction(c));
    buf_fmt(&b, " %10" PRId64 " rows %9s  %" PRId64 "/%" PRId64 " tables  %.0f s\033[K\n",
            (int64_t) c->stat->copy_rows, size, (int64_t) c->stat->copy_tables_done,
            (int64_t) c->stat->copy_tables, s);
    *lines = shown + 1;
    buf_str(&b, "\033[J");
    ssize_t ignored = write(STDERR_FILENO, b.data, b.len);
    (void) ignored;
    buf_free(&b);
}

static void copy_show(struct copy *c, int *lines, bool last)
{
    copy_totals(c);
    usec every = c->bars ? USEC_SEC / 5 : 10 * USEC_SEC;
    if (!last && os_now() - c->drawn_us < every) return;
    c->drawn_us = os_now();
    if (c->bars) {
        copy_draw(c, lines);
    } else {
        char size[24];
        copy_size(size, sizeof size, c->stat->copy_bytes);
        log_info("copied %" PRId64 " of %" PRId64 " tables, %" PRId64 " rows, %s",
                 (int64_t) c->stat->copy_tables_done, (int64_t) c->stat->copy_tables,
                 (int64_t) c->stat->copy_rows, size);
    }
}

/* ---- all of it ---- */

static status MUST_CHECK copy_watch(struct copy *c, pid_t *pids, int n, struct db *keepalive)
{
    int lines = 0, left = n;
    bool crashed = false;
    while (left) {
        copy_show(c, &lines, false);
        for (int i = 0; i < n; i++) {
            int st;
            if (pids[i] <= 0 || waitpid(pids[i], &st, WNOHANG) != pids[i]) continue;
            pids[i] = 0;
            left--;
            if (!WIFEXITED(st)) crashed = true;
            if (crashed) c->shared->failed = c->shared->failed ? (int) c->shared->failed : -1;
        }
        if (stop_flag || c->shared->failed)
            for (int i = 0; i < n; i++)
                if (pids[i] > 0) kill(pids[i], stop_flag ? SIGKILL : SIGTERM);
        if (left) os_sleep_ms(20);
    }
    copy_show(c, &lines, true);
    if (stop_flag) return fail(keepalive->e, TW_ESTOP, "stop requested");
    if (c->shared->failed > 0) {
        *keepalive->e = c->shared->error;
        c->at = c->shared->failed_at;
        return keepalive->e->code == TW_ESTOP
                   ? fail(keepalive->e, TW_ECONN, "copy worker was stopped")
                   : keepalive->e->code;
    }
    if (crashed) return fail(keepalive->e, TW_EOS, "a copy worker crashed");
    return TW_OK;
}

/* Copy all tables.  `from` has imported the snapshot and holds it; `inherited` are sockets of the
 * parent that workers must not keep open. */
static status MUST_CHECK copy_run(struct copy *c, struct arena *a, struct db *from, struct db *to,
                                  const int *inherited, int ninherited)
{
    pid_t pids[COPY_MAX_WORKERS];
    c->at = -1;
    TRY(copy_plan(c, a, from, to));
    c->shared_size = sizeof *c->shared + sizeof(int64_t) * 3 * (size_t) (c->tables->n + 1);
    c->shared = mmap(NULL, c->shared_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
                     0);
    if (c->shared == MAP_FAILED)
        return fail(c->e, TW_EOS, "could not map memory: %s", strerror(errno));
    c->started_us = c->drawn_us = os_now();
    int n = c->job->task[TW_FORWARD].workers;
    if (n > c->nchunks) n = c->nchunks;
    if (n > COPY_MAX_WORKERS) n = COPY_MAX_WORKERS;
    for (int i = 0; i < n; i++) {
        pids[i] = fork();
        if (pids[i] == 0) {
            for (int k = 0; k < ninherited; k++) close(inherited[k]);
            copy_worker(c, i);
        }
        if (pids[i] < 0) c->shared->failed = -1;
    }
    status s = copy_watch(c, pids, n, to);
    if (s == TW_OK && c->shared->failed)
        s = fail(c->e, TW_EOS, "could not start a copy worker: %s", strerror(errno));
    munmap(c->shared, c->shared_size);
    c->shared = NULL;
    return s;
}

/* ==== 26. settle ===========================================================
 * After a conflict: both sides shall hold the same row, the winner's.
 *
 * Conflicts alone do not see to that: old values can coincide (one side counts 5, 6, the other 5,
 * 6, 7), so a change may fit by accident.  But of two changes that part the sides at least one is a
 * conflict somewhere, whatever its outcome, so every key with a recorded conflict is looked at by
 * the forward task, which has sessions on both sides:
 *   1. wait until both streams have passed all that was committed when the conflict was found
 *   2. look: with the row locked on both sides, copy the winner's if they differ (marked)
 *   3. wait until both streams have passed all that was committed by then; if neither task wrote to
 *      the key since the look, the sides were truly in step there, and it is done; else look again
 * Changes in flight meet a settled row as they would any other.  tests/unit/conf.c checks all this
 * against every interleaving of up to four changes.
 *
 * Both sides' rows of twsync.progress are taken first, as marks; so no batch of either task is half
 * done at a look, and one that writes to the key later says so before it commits (settle_touch). */

enum settle_state { SETTLE_NEW, SETTLE_LOOK, SETTLE_CHECK };

struct pending {
    struct pending *next;
    const char *schema, *table, *key;  /* the key as JSON */
    int nparts;
    const char **names, **values;      /* of the key */
    size_t slot;                       /* in struct memory */
    uint32_t touches;                  /* of it, at the last look */
    enum settle_state state;
    lsn_t until_lsn[2];                /* on A, B: what the streams must have passed */
    int64_t last_id[2];                /* of its conflicts on A, B */
    struct pending *root;              /* where its row came from, if it had moved */
    int moves;                         /* how often it had */
    int open;                          /* a root's: keys its row went to, not settled yet */
    bool followed;
    char wanted;                       /* a person has said whose row: 'a' or 'b' */
    const char *result;
};

struct settle {
    const struct job *job;
    struct stat_page *page;
    struct apply *ahead;      /* writes on B, as the forward task */
    struct apply back;        /* writes on A, as the reverse task */
    struct db db;             /* its session */
    const char *origin;       /* NULL: settled rows are not given the winner's time */
    struct tw_error *e;
    struct arena arena;       /* of the list */
    struct pending *list;
    int n;
    int64_t serial;
    int64_t seen_conflicts;   /* of both tasks, when the list was last read */
    usec load_due_us, step_due_us, purge_due_us;
    bool more;                /* the list was given some; there may be others */
    bool locked;              /* this step: somebody holds a lock we need */
};

enum { SETTLE_KEYS = 500, SETTLE_STEP_MS = 50, SETTLE_MOVES = 8 };

/* The keys being settled hear of a batch that wrote to them: after its statements, which wait for a
 * look, and before passed_lsn says that they are applied. */
static void settle_touch(struct memory *m, const struct window *w)
{
    if (!m->npending) return;
    for (int i = 0; i < w->n; i++) {
        const struct change *c = &w->changes[i];
        if (!c->rel->nident) continue;
        size_t slot = rel_hash_key(c->rel, c->m.old_kind ? c->m.old.values : c->m.new.values) %
                      MEMORY_KEYS;
        m->touches[slot]++;
        if (c->m.kind != 'U' || !c->m.old_kind) continue;
        m->touches[rel_hash_key(c->rel, c->m.new.values) % MEMORY_KEYS]++;
    }
}

static status MUST_CHECK settle_write_moves(struct apply *ap, const struct rel *rel,
                                            struct buf *list)
{
    buf_char(list, ']');
    const char *values[] = {ap->task, rel->a_schema, rel->a_name, list->data};
    status s = db_exec_params(ap->to, "note moved rows",
                              "INSERT INTO twsync.moved (task, schema_name, table_name, key,"
                              " new_key) SELECT $1, $2, $3, e->'o', e->'n'"
                              " FROM jsonb_array_elements($4::jsonb) e", 4, values);
    buf_reset(list);
    return s;
}

/* In the batch of a two-way job: which rows it gave another key.  A conflict about the old one must
 * be settled where the row is now. */
static status MUST_CHECK settle_note_moves(struct apply *ap, const struct window *w)
{
    struct buf list = {0};
    const struct rel *of = NULL;
    status s = TW_OK;
    for (int i = 0; i < w->n && s == TW_OK && ap->other; i++) {
        const struct change *c = &w->changes[i];
        if (!change_moves(c)) continue;
        if (list.len && (of != c->rel || list.len > BULK_CHUNK))
            s = settle_write_moves(ap, of, &list);
        of = c->rel;
        buf_str(&list, list.len ? ",{\"o\":" : "[{\"o\":");
        json_key(&list, c, false);
        buf_str(&list, ",\"n\":");
        json_key(&list, c, true);
        buf_char(&list, '}');
    }
    if (list.len && s == TW_OK) s = settle_write_moves(ap, of, &list);
    buf_free(&list);
    return s;
}

/* TRUNCATE writes to every key. */
static void settle_touch_all(struct memory *m)
{
    for (int i = 0; m->npending && i < MEMORY_KEYS; i++) m->touches[i]++;
}

/* Side 0 is A, 1 is B. */
static struct apply *settle_side(struct settle *s, int side)
{
    return side ? s->ahead : &s->back;
}

static status MUST_CHECK settle_open(struct settle *s)
{
    struct rights r;
    if (s->db.pg) return TW_OK;
    TRY(db_open(&s->db, false));
    TRY(check_rights(&s->db, &r));
    if (r.replica_role)
        TRY(db_exec(&s->db, "set session_replication_role",
                    "SET session_replication_role = replica"));
    if (s->origin) TRY(slot_origin_setup(&s->db, s->origin));
    return TW_OK;
}

static void settle_close(struct settle *s)
{
    s->page->memory.npending = 0;
    db_abandon(&s->db);
    arena_free(&s->back.scratch);
    arena_free(&s->back.txn_arena);
    arena_free(&s->back.left_arena);
    arena_free(&s->arena);
    s->list = NULL;
    s->n = 0;
}

/* ---- the list ---- */

static struct pending *settle_find(struct settle *s, const char *schema, const char *table,
                                   const char *key)
{
    for (struct pending *p = s->list; p; p = p->next)
        if (str_is(p->schema, schema) && str_is(p->table, table) && str_is(p->key, key)) return p;
    return NULL;
}

static status MUST_CHECK settle_key_parts(struct settle *s, struct pending *p)
{
    struct arena a = {0};
    PGresult *r;
    uint64_t h = rel_hash_table(p->schema, p->table);
    status st = db_query(&s->db, &a, "read a key",
                         "SELECT key, value FROM jsonb_each_text($1::jsonb)", 1, &p->key, &r);
    if (st == TW_OK) {
        p->nparts = PQntuples(r);
        p->names = arena_array(&s->arena, const char *, p->nparts + 1);
        p->values = arena_array(&s->arena, const char *, p->nparts + 1);
        for (int i = 0; i < p->nparts; i++) {
            const char *value = db_cell(r, i, 1);
            p->names[i] = arena_str(&s->arena, PQgetvalue(r, i, 0));
            p->values[i] = value ? arena_str(&s->arena, value) : NULL;
            h += rel_hash_part(p->names[i], value ? value : "", value ? strlen(value) : 0);
        }
        p->slot = h % MEMORY_KEYS;
    }
    arena_free(&a);
    return st;
}

static status MUST_CHECK settle_add(struct settle *s, int side, const PGresult *r, int row,
                                    struct pending *from)
{
    const char *wanted = db_cell(r, row, 4);
    struct pending *p = settle_find(s, PQgetvalue(r, row, 0), PQgetvalue(r, row, 1),
                                    PQgetvalue(r, row, 2));
    if (!p) {
        p = arena_new(&s->arena, struct pending);
        p->schema = arena_str(&s->arena, PQgetvalue(r, row, 0));
        p->table = arena_str(&s->arena, PQgetvalue(r, row, 1));
        p->key = arena_str(&s->arena, PQgetvalue(r, row, 2));
        if (from) {
            p->root = from->root ? from->root : from;
            p->root->open++;
            p->moves = from->moves + 1;
        }
        TRY(settle_key_parts(s, p));
        struct pending **end = &s->list;
        while (*end) end = &(*end)->next;
        *end = p;
        s->n++;
    }
    if (db_cell_int(r, row, 3)) p->last_id[side] = db_cell_int(r, row, 3);
    if (wanted) p->wanted = wanted[0];
    return TW_OK;
}

/* Keys with conflicts that nobody has settled, those of rows that were in their way, and those that
 * the changes would have made of them; $2: only what a person has decided. */
static const char settle_load_sql[] =
    "WITH c AS (SELECT * FROM twsync.conflict WHERE task = $1 AND settled IS NULL"
    "  AND outcome <> 'stopped' AND (wanted IS NOT NULL OR NOT $2::bool) ORDER BY id LIMIT 500)"
    " SELECT schema_name, table_name, k::text, max(id), max(wanted) FROM"
    "  (SELECT c.*, key AS k FROM c UNION ALL SELECT c.*, (SELECT jsonb_object_agg(name, e->name)"
    "   FROM jsonb_object_keys(key) name) FROM c, jsonb_array_elements(existing) e"
    "   WHERE kind IN ('insert_exists', 'update_exists', 'multiple_unique_conflicts')"
    "   UNION ALL SELECT c.*, (SELECT jsonb_object_agg(name, coalesce(incoming->name, key->name))"
    "   FROM jsonb_object_keys(key) name) FROM c WHERE incoming IS NOT NULL) x"
    " GROUP BY 1, 2, 3 ORDER BY max(id)";

/* Is there a winner at all, for any table? */
static bool settle_has_winner(const struct job *job)
{
    static const struct conf_side there = {.there = true, .at_us = 1};
    char named = job_winner(job);
    const struct task_conf *f = &job->task[TW_FORWARD], *r = &job->task[TW_REVERSE];
    if (named || conf_winner(f->on_conflict, r->on_conflict, 0, &there, &there)) return true;
    for (int p = 0; p < 4; p++)
        if (f->policy_tables[p].n || r->policy_tables[p].n) return true;
    return false;
}

static status MUST_CHECK settle_load(struct settle *s)
{
    struct arena a = {0};
    const char *only = settle_has_winner(s->job) ? "f" : "t";
    status st = TW_OK;
    s->more = false;
    for (int side = 0; side < 2 && st == TW_OK && s->n < SETTLE_KEYS; side++) {
        struct apply *ap = settle_side(s, side);
        const char *values[] = {ap->task, only};
        PGresult *r;
        st = db_query(ap->to, &a, "read conflicts", settle_load_sql, 2, values, &r);
        if (st == TW_OK && PQntuples(r)) s->more = true;
        for (int i = 0; st == TW_OK && i < PQntuples(r); i++) st = settle_add(s, side, r, i, NULL);
    }
    arena_free(&a);
    s->page->memory.npending = s->n;
    return st;
}

/* Where the row of this key went meanwhile, by either side's hand: that key is looked at, too. */
static status MUST_CHECK settle_follow(struct settle *s, struct pending *p)
{
    struct arena a = {0};
    p->followed = true;
    const char *values[] = {p->schema, p->table, p->key};
    status st = TW_OK;
    for (int side = 0; side < 2 && st == TW_OK && p->moves < SETTLE_MOVES; side++) {
        PGresult *r;
        st = db_query(settle_side(s, side)->to, &a, "read moved rows",
                      "SELECT DISTINCT schema_name, table_name, new_key::text, 0, NULL"
                      " FROM twsync.moved WHERE schema_name = $1 AND table_name = $2"
                      " AND key = $3::jsonb AND new_key <> key", 3, values, &r);
        for (int i = 0; st == TW_OK && i < PQntuples(r); i++)
            st = settle_add(s, side, r, i, p);
    }
    arena_free(&a);
    return st;
}

/* It is done: its conflicts say so, but for those recorded since it was read. */
static status MUST_CHECK settle_done(struct settle *s, struct pending *p)
{
    struct arena a = {0};
    status st = TW_OK;
    if (p->root) p->root->open--;
    for (int side = 0; side < 2 && st == TW_OK; side++) {
        struct apply *ap = settle_side(s, side);
        const char *values[] = {ap->task, p->schema, p->table, p->key, p->result,
                                arena_fmt(&a, "%" PRId64, p->last_id[side])};
        if (p->last_id[side])
            st = db_exec_params(ap->to, "settle a conflict",
                                "UPDATE twsync.conflict SET settled = $5,"
                                " settled_at = clock_timestamp() WHERE task = $1"
                                " AND schema_name = $2 AND table_name = $3 AND key = $4::jsonb"
                                " AND settled IS NULL AND outcome <> 'stopped'"
                                " AND id <= $6::bigint", 6, values);
    }
    arena_free(&a);
    return st;
}

/* ---- both sides at once ---- */

static status MUST_CHECK settle_begin(struct settle *s)
{
    for (int side = 0; side < 2; side++) {
        struct apply *ap = settle_side(s, side);
        PGresult *r;
        TRY(db_exec(ap->to, "begin",
                    "BEGIN; SET LOCAL synchronous_commit = on; SET LOCAL lock_timeout = '200ms'"));
        TRY(db_query(ap->to, &ap->scratch, "write the progress",
                     "UPDATE twsync.progress SET updated_at = clock_timestamp() WHERE task = $1"
                     " RETURNING 1", 1, &ap->task, &r));
        if (PQntuples(r) != 1)
            return fail(s->e, TW_ETXN, "task %s has no progress yet", ap->task);
    }
    return TW_OK;
}

/* Commit on both, then read how far the streams must come to have passed it all. */
static status MUST_CHECK settle_commit(struct settle *s, lsn_t until[2])
{
    for (int side = 0; side < 2; side++) {
        struct apply *ap = settle_side(s, side);
        const char *lsn;
        TRY(db_exec(ap->to, "commit", "COMMIT"));
        TRY(db_value(ap->to, &ap->scratch, "read the WAL position",
                     "SELECT pg_current_wal_flush_lsn()", 0, NULL, &lsn));
        if (!lsn || !lsn_parse(lsn, &until[side]))
            return fail(s->e, TW_EPROTO, "no WAL position on %c", ap->to->node->letter);
        arena_reset(&ap->scratch);
    }
    return TW_OK;
}

/* After a failure that is nobody's end: true, both sides are as before. */
static bool settle_undo(struct settle *s)
{
    for (int side = 0; side < 2; side++) {
        struct apply *ap = settle_side(s, side);
        struct tw_error keep = *s->e;
        if (PQstatus(ap->to->pg) != CONNECTION_OK) return false;
        error_clear(s->e);
        status st = db_exec(ap->to, "roll back", "ROLLBACK");
        *s->e = keep;
        ap->deferred = NULL;
        arena_reset(&ap->scratch);
        arena_reset(&ap->txn_arena);
        if (st != TW_OK) return false;
    }
    return true;
}

/* The table as seen from one side, to be written on the other. */
static status MUST_CHECK settle_rel(struct settle *s, const struct pending *p, int from,
                                    struct arena *a, struct rel **out)
{
    struct db *d = settle_side(s, from)->to, *to = settle_side(s, !from)->to;
    const char *values[] = {from ? name_schema(s->job, p->schema) : p->schema,
                            from ? name_table(s->job, p->schema, p->table) : p->table};
    PGresult *r;
    const struct table_rules *rules;
    TRY(rules_find(s->job, settle_side(s, 0)->to, p->schema, p->table, &rules));
    if (rules_part(s->job, rules))
        return fail(s->e, TW_ESCHEMA, "the job lets rows of table %s differ between the sides",
                    sql_quoted_table(a, p->schema, p->table));
    TRY(db_query(d, a, "read columns",
                 d->version >= 120000
                     ? "SELECT a.attname, a.atttypid FROM pg_attribute a"
                       " WHERE a.attrelid = to_regclass(quote_ident($1) || '.' || quote_ident($2))"
                       " AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''"
                       " ORDER BY a.attnum"
                     : "SELECT a.attname, a.atttypid FROM pg_attribute a"
                       " WHERE a.attrelid = to_regclass(quote_ident($1) || '.' || quote_ident($2))"
                       " AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum", 2, values,
                 &r));
    struct msg m = {.schema = values[0], .name = values[1], .replident = 'f',
                    .ncolumns = PQntuples(r)};
    m.columns = arena_array(a, struct msg_column, m.ncolumns + 1);
    for (int i = 0; i < m.ncolumns; i++)
        m.columns[i] = (struct msg_column){true, PQgetvalue(r, i, 0),
                                           (uint32_t) db_cell_int(r, i, 1), false};
    *out = rel_learn(&m);
    enum tw_direction dir = from ? TW_REVERSE : TW_FORWARD;
    (*out)->policy = job_policy(s->job, dir, p->schema, p->table);
    if (from) TRY(rel_name_a(*out, s->job, to));
    else rel_name_b(*out, s->job);
    return rel_resolve(*out, d, to, "", &(struct msg){0});
}

/* One side's row, locked, and what it takes to write it there. */
struct settle_row {
    struct rel *rel;       /* from the other side to this one */
    struct change c;
    struct found *found;   /* NULL: there is none */
};

static status MUST_CHECK settle_read(struct settle *s, const struct pending *p, int side,
                                     struct arena *a, struct settle_row *row)
{
    TRY(settle_rel(s, p, !side, a, &row->rel));
    struct rel *rel = row->rel;
    struct value *key = arena_array(a, struct value, rel->ncolumns + 1);
    for (int i = 0; i < rel->ncolumns; i++) {
        key[i].kind = 'n';
        for (int k = 0; k < p->nparts; k++)
            if (str_is(rel->a_columns[i], p->names[k])) key[i] = value_of(p->values[k]);
    }
    for (int i = 0; i < rel->nident; i++)
        if (key[rel->ident[i]].kind == 'n')
            return fail(s->e, TW_ESCHEMA, "the conflict's key is not that of %s", rel->quoted);
    if (!rel->nident) return fail(s->e, TW_ESCHEMA, "%s has no key", rel->quoted);
    row->c = (struct change){.rel = rel, .m = {.kind = 'D', .old_kind = 'K'}, .seq = ++s->serial,
                             .commit_lsn = s->ahead->applied_lsn, .commit_us = os_wall()};
    row->c.m.old = (struct tuple){rel->ncolumns, key};
    return careful_find(settle_side(s, side), a, &row->c, &row->found);
}

/* The value that the other side's row has for a column of `row`. */
static const char *settle_value(const struct settle_row *row, const struct settle_row *other,
                                int column)
{
    const struct rel *rel = other->rel;
    for (int i = 0; i < rel->ncolumns; i++)
        if (rel_carries(rel, i) && str_is(rel->a_columns[i], row->rel->a_columns[column]))
            return other->found->values[i];
    return NULL;
}

static bool settle_same_text(const char *x, const char *y)
{
    return x && y ? str_is(x, y) : x == y;
}

static bool settle_differ(const struct settle_row *row, const struct settle_row *other)
{
    if (!row->found || !other->found) return row->found != other->found;
    for (int i = 0; i < row->rel->ncolumns; i++)
        if (rel_carries(row->rel, i) &&
            !settle_same_text(row->found->values[i], settle_value(row, other, i)))
            return true;
    return false;
}

/* Make this side's row the other's. */
static status MUST_CHECK settle_write(struct settle *s, int side, struct arena *a,
                                      struct settle_row *row, const struct settle_row *winner)
{
    struct apply *ap = settle_side(s, side);
    struct rel *rel = row->rel;
    rel->policy = POLICY_OVERWRITE;  /* whoever else is in its way */
    if (!winner->found) return careful_delete(ap, a, rel, row->found);
    struct value *values = arena_array(a, struct value, rel->ncolumns + 1);
    bool *write = arena_array(a, bool, rel->ncolumns + 1);
    for (int i = 0; i < rel->ncolumns; i++) {
        if (!rel_carries(rel, i)) continue;
        values[i] = value_of(settle_value(row, winner, i));
        write[i] = !row->found || !settle_same_text(row->found->values[i], values[i].data);
    }
    row->c.m = (struct dml){.kind = 'I', .new = {rel->ncolumns, values}};
    if (!row->found) TRY(careful_insert(ap, a, &row->c, values));
    else TRY(careful_update_write(ap, a, &row->c, row->found, write, values));
    return apply_settle_deferred(ap);
}

/* When the row was written, or the newest deletion of it that either task knows of. */
static struct conf_side settle_when(const struct settle *s, const struct settle_row *row)
{
    if (row->found) return (struct conf_side){true, row->found->at_us};
    uint64_t key = rel_hash_key(row->rel, row->c.m.old.values);
    size_t i = key % MEMORY_DELETES;
    usec last = 0;
    for (int dir = 0; dir < 2; dir++)
        if (s->page->memory.deleted[dir][i].key == key && s->page->memory.deleted[dir][i].us > last)
            last = s->page->memory.deleted[dir][i].us;
    return (struct conf_side){false, last};
}

/* Under latest the settled row is as old as the winner's. */
static status MUST_CHECK settle_time(struct settle *s, int side, usec at_us)
{
    struct apply *ap = settle_side(s, side);
    if (!s->origin || !ap->origin || !at_us) return TW_OK;
    lsn_t at = side ? ap->applied_lsn : 1;
    const char *values[] = {lsn_text(&ap->scratch, at),
                            arena_fmt(&ap->scratch, "%" PRId64, at_us)};
    return db_exec_params(ap->to, apply_fixed[FIXED_ORIGIN].what, apply_fixed[FIXED_ORIGIN].sql, 2,
                          values);
}

/* Compare the two locked rows, and make them the same; *loser: the side that was written, or -1. */
static status MUST_CHECK settle_rows(struct settle *s, struct pending *p, struct arena *a,
                                     struct settle_row row[2], int *loser)
{
    *loser = -1;
    for (int side = 0; side < 2; side++) TRY(settle_read(s, p, side, a, &row[side]));
    if (!settle_differ(&row[0], &row[1])) {
        if (!p->result) p->result = "equal";
        return TW_OK;
    }
    struct conf_side at[2] = {settle_when(s, &row[0]), settle_when(s, &row[1])};
    char winner = p->wanted;
    if (!winner)
        winner = conf_winner(job_policy(s->job, TW_FORWARD, p->schema, p->table),
                             job_policy(s->job, TW_REVERSE, p->schema, p->table),
                             job_winner(s->job), &at[0], &at[1]);
    if (!winner) {
        p->result = "open";
        return TW_OK;
    }
    int side = *loser = winner == 'a';
    p->result = side ? "a" : "b";
    TRY(settle_write(s, side, a, &row[side], &row[!side]));
    return settle_time(s, side, at[!side].at_us);
}

static status MUST_CHECK settle_look(struct settle *s, struct pending *p)
{
    struct arena a = {0};
    struct settle_row row[2] = {{0}, {0}};
    int loser = -1;
    status st = settle_begin(s);
    p->touches = s->page->memory.touches[p->slot];
    if (st == TW_OK) st = settle_rows(s, p, &a, row, &loser);
    for (int i = 0; i < 2; i++)
        if (row[i].rel) rel_free(row[i].rel);
    arena_free(&a);
    TRY(st);
    TRY(settle_commit(s, p->until_lsn));
    if (loser >= 0) s->page->task[loser ? TW_FORWARD : TW_REVERSE].settled++;
    return TW_OK;
}

/* ---- steps ---- */

static bool settle_passed(const struct settle *s, const struct pending *p)
{
    return s->page->task[TW_FORWARD].passed_lsn >= p->until_lsn[0] &&
           s->page->task[TW_REVERSE].passed_lsn >= p->until_lsn[1];
}

/* Something refuses: a constraint of one side, another table.  It is left to a person. */
static status MUST_CHECK settle_give_up(struct settle *s, struct pending *p)
{
    log_warning("could not settle %s.%s %s: %s", p->schema, p->table, p->key, s->e->msg);
    error_clear(s->e);
    p->result = "failed";
    return settle_done(s, p);
}

/* One key's next step; *gone: it is settled.  A lock that is not to be had is waited for. */
static status MUST_CHECK settle_one(struct settle *s, struct pending *p, bool *gone)
{
    status st = TW_OK;
    *gone = false;
    if (p->state == SETTLE_NEW) {
        st = settle_begin(s);
        if (st == TW_OK) st = settle_commit(s, p->until_lsn);
        if (st == TW_OK) p->state = SETTLE_LOOK;
    } else if (p->state == SETTLE_CHECK && s->page->memory.touches[p->slot] == p->touches) {
        if (!p->followed) TRY(settle_follow(s, p));
        *gone = !p->open;
        return *gone ? settle_done(s, p) : TW_OK;
    } else {
        st = settle_look(s, p);
        if (st == TW_OK) p->state = SETTLE_CHECK;
        if (st == TW_OK && str_is(p->result, "open")) {
            *gone = true;
            return settle_done(s, p);
        }
    }
    if (st == TW_OK || !settle_undo(s)) return st;
    if (st == TW_ETXN) {
        s->step_due_us = os_now() + USEC_SEC / 5;
        s->locked = true;
        error_clear(s->e);
        return TW_OK;
    }
    if (st != TW_ESERVER && st != TW_ESCHEMA) return st;
    *gone = true;
    return settle_give_up(s, p);
}

/* Steps of as many keys as a moment allows: no change is applied meanwhile.  The others come first
 * the next time. */
static status MUST_CHECK settle_steps(struct settle *s)
{
    usec until = os_now() + SETTLE_STEP_MS * 1000;
    struct pending **pp = &s->list;
    s->locked = false;
    while (*pp && !s->locked && os_now() < until) {
        struct pending *p = *pp;
        bool gone = false;
        if (p->state == SETTLE_NEW || settle_passed(s, p)) TRY(settle_one(s, p, &gone));
        if (gone) {
            *pp = p->next;
            s->n--;
        } else {
            pp = &p->next;
        }
    }
    if (*pp && pp != &s->list) {
        struct pending *first = s->list, **end = &s->list;
        s->list = *pp;
        *pp = NULL;
        while (*end) end = &(*end)->next;
        *end = first;
    }
    s->page->memory.npending = s->n;
    if (!s->list) arena_reset(&s->arena);
    return TW_OK;
}

static status MUST_CHECK settle_purge(struct settle *s)
{
    s->purge_due_us = os_now() + 3600 * USEC_SEC;
    for (int side = 0; side < 2; side++) {
        struct apply *ap = settle_side(s, side);
        TRY(db_exec_params(ap->to, "forget moved rows",
                           "DELETE FROM twsync.moved WHERE task = $1"
                           " AND moved_at < now() - interval '1 day'", 1, &ap->task));
    }
    return TW_OK;
}

/* Called between batches; does nothing until a conflict was counted or some seconds have passed. */
static status MUST_CHECK settle_step(struct settle *s)
{
    usec now = os_now();
    int64_t conflicts = s->page->task[0].conflicts + s->page->task[1].conflicts;
    if (now < s->step_due_us) return TW_OK;
    s->step_due_us = now + USEC_SEC / 20;
    if (conflicts != s->seen_conflicts || now >= s->load_due_us || (s->more && !s->list)) {
        TRY(settle_open(s));
        s->seen_conflicts = conflicts;
        s->load_due_us = now + 5 * USEC_SEC;
        TRY(settle_load(s));
        if (now >= s->purge_due_us) TRY(settle_purge(s));
    }
    return s->list ? settle_steps(s) : TW_OK;
}

/* ==== 27. ddl ==============================================================
 * DDL from A to B, by shape.
 *
 * On A two event triggers run one function of ours at the end of every DDL command.  It writes what
 * the command has changed into twsync.ddl, in the command's own transaction, so that it arrives in
 * the stream in its place between the rows.  It does not look at the command's text: it reads the
 * shape of what the command named (twsync.shape_of: facets, each with the statement that makes it),
 * and takes the difference to what it had been (twsync.shape).  Objects are known by oid there: a
 * renamed one is seen to be the same.  That is why DDL inside functions, in strings of several
 * statements, or with CASCADE is carried like any other.
 *
 * On B a change is done only where B is not so already: what is there is left, and what differs on
 * B for reasons of its own is touched only when the same facet changes on A.  Statements are those
 * of the catalog (pg_get_indexdef and its sisters), with every name quoted; the row's only writer
 * is our function, which runs with our rights and looks up every name in pg_catalog alone. */

/* Of the functions: what their answers and their names depend on. */
#define DDL_SETTINGS                                                                               \
    " SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = on"                        \
    " SET datestyle = 'ISO, MDY' SET intervalstyle = 'postgres' SET timezone = 'UTC'"              \
    " SET extra_float_digits = 3 SET bytea_output = 'hex' SET standard_conforming_strings = on"    \
    " SET row_security = off SET jit = off"

#define SHAPE_SEQUENCE(word)                                                                       \
    "format(' " word "INCREMENT BY %s " word "MINVALUE %s " word "MAXVALUE %s " word "START WITH"  \
    " %s " word "CACHE %s " word "%s', v.seqincrement, v.seqmin, v.seqmax, v.seqstart,"            \
    " v.seqcache, CASE WHEN v.seqcycle THEN 'CYCLE' ELSE 'NO CYCLE' END)"

/* The functions, around the query. */
static const char ddl_shape_head_sql[] =
    "SELECT pg_advisory_xact_lock(hashtext('twsync setup'));"
    "DO $$ BEGIN IF to_regtype('twsync.facet') IS NULL THEN CREATE TYPE twsync.facet AS (obj text,"
    " part text, facet text, phase int, what text, name text, value text, make text, alter_ text,"
    " unmake text, rename_ text); END IF; END $$;"
    "CREATE TABLE IF NOT EXISTS twsync.shape (job text, obj text, part text, facet text,"
    " phase int NOT NULL, what text, name text, value text, PRIMARY KEY (job, obj, part, facet));"
    "CREATE INDEX IF NOT EXISTS shape_part ON twsync.shape (job, part) WHERE facet = '';"
    "CREATE OR REPLACE FUNCTION twsync.shape_of(oid[], oid[], oid[], oid[], oid[]) RETURNS SETOF"
    " twsync.facet LANGUAGE plpgsql STABLE" DDL_SETTINGS "{plan_once} AS $twsync$"
    " BEGIN RETURN QUERY ";

/* One row per facet.  obj: the object, its kind and oid; part: what of it, by attnum or oid; facet:
 * '' for the part's being there.  Facets are made in the order of phase.  what: the same on both
 * sides for the same thing.  make: where there is none; alter_: where there is another; unmake;
 * rename_: a format of the old name and the new one.  Statements are NULL where nothing is to be
 * done by itself: a child's column comes with its parent's. */
static const char ddl_shape_sql[] =
    "WITH r AS ( SELECT c.oid, c.relname, c.relkind, c.relispartition, c.reloptions,"
    " c.reltoastrelid, c.relnamespace, c.relrowsecurity, c.relforcerowsecurity, c.relreplident,"
    " c.relpartbound, n.nspname, format('%I.%I', n.nspname, c.relname) AS fq, k.word, k.kind,"
    " replace(format('%I', n.nspname), '%', '%%') AS ns, replace(format('%I', c.relname), '%',"
    " '%%') AS rn, replace(format('%I.%I', n.nspname, c.relname), '%', '%%') AS ft FROM pg_class c"
    " JOIN pg_namespace n ON n.oid = c.relnamespace CROSS JOIN LATERAL (SELECT CASE c.relkind WHEN"
    " 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END,"
    " CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'S' THEN"
    " 'sequence' ELSE 'table' END) k(word, kind) WHERE c.oid = ANY ($1) AND c.relpersistence = 'p'"
    " AND c.relkind IN ('r', 'p', 'v', 'm', 'S') AND NOT EXISTS (SELECT FROM pg_depend d WHERE"
    " d.classid = 'pg_class'::regclass AND d.objid = c.oid AND (d.deptype = 'e' OR d.deptype = 'i'"
    " AND c.relkind = 'S'))), col AS ( SELECT r.*, a.attnum, a.attname, a.attinhcount > 0 AS"
    " inherited, a.attislocal, a.attidentity, a.attnotnull, a.attstorage, a.attstattarget,"
    " a.attoptions, {compression} AS compression, {generated} AS generated, t.typstorage,"
    " format_type(a.atttypid, a.atttypmod) || " SHAPE_COLLATE("a.attcollation", "t.typcollation")
    " AS type, CASE WHEN a.atthasmissing THEN quote_literal((a.attmissingval::text::text[])[1])"
    " WHEN r.relkind = 'p' THEN (SELECT quote_literal((b.attmissingval::text::text[])[1]) FROM"
    " pg_partition_tree(r.oid) l JOIN pg_attribute b ON b.attrelid = l.relid AND b.attname ="
    " a.attname AND b.atthasmissing LIMIT 1) END AS missing, f.expr, i.def, i.opts, i.seq,"
    " i.seqid, i.seqtype FROM r JOIN"
    " pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped JOIN pg_type t"
    " ON t.oid = a.atttypid LEFT JOIN LATERAL (SELECT pg_get_expr(d.adbin, d.adrelid) AS expr FROM"
    " pg_attrdef d WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum) f ON true LEFT JOIN"
    " LATERAL (SELECT format(' GENERATED %s AS IDENTITY (SEQUENCE NAME %I.%I%s)', CASE"
    " a.attidentity WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END, sn.nspname, s.relname, "
    SHAPE_SEQUENCE("") ") AS def, " SHAPE_SEQUENCE(" SET ") " AS opts, format('%I.%I', sn.nspname,"
    " s.relname) AS seq, s.oid AS seqid, CASE WHEN v.seqtypid <> a.atttypid THEN format('%s"
    " MINVALUE"
    " %s MAXVALUE %s', format_type(v.seqtypid, NULL), v.seqmin, v.seqmax) END AS seqtype FROM"
    " pg_depend d JOIN"
    " pg_class s ON s.oid = d.objid JOIN pg_namespace sn ON sn.oid = s.relnamespace JOIN"
    " pg_sequence v ON v.seqrelid = s.oid WHERE a.attidentity <> '' AND d.classid ="
    " 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = a.attrelid AND"
    " d.refobjsubid = a.attnum AND d.deptype = 'i') i ON true), tab AS ( SELECT r.*, p.names,"
    " k.cols FROM r CROSS JOIN LATERAL (SELECT CASE WHEN NOT r.relispartition AND EXISTS (SELECT"
    " FROM col WHERE col.oid = r.oid AND NOT col.attislocal) THEN"
    " string_agg(h.inhparent::regclass::text, ', ' ORDER BY h.inhseqno) END AS names FROM"
    " pg_inherits h WHERE h.inhrelid = r.oid) p CROSS JOIN LATERAL (SELECT string_agg(format('%I"
    " %s', col.attname, col.type) || CASE WHEN col.generated <> '' THEN format(' GENERATED ALWAYS"
    " AS (%s) %s', col.expr, CASE col.generated WHEN 's' THEN 'STORED' ELSE 'VIRTUAL' END) ELSE"
    " coalesce(col.def, '') END, ', ' ORDER BY col.attnum) AS cols FROM col WHERE col.oid = r.oid"
    " AND (p.names IS NULL OR col.attislocal)) k WHERE r.relkind IN ('r', 'p')), con AS ( SELECT"
    " r.*, k.oid AS con, k.conname, k.contype, k.convalidated, k.conindid, k.conislocal,"
    " k.condeferrable, k.condeferred, pg_get_constraintdef(k.oid) AS def FROM r JOIN"
    " pg_constraint k ON k.conrelid = r.oid WHERE"
    " k.contype IN ('p', 'u', 'x', 'c', 'f') AND NOT (k.contype = 'f' AND k.conparentid <> 0)),"
    " part(obj, part, phase, what, name, value, make, alter_, unmake, rename_, class, id, sub,"
    " target) AS ( SELECT 'r' || t.oid, '', 14, 'table ' || t.fq, t.relname::text,"
    " t.relkind::text, format('CREATE TABLE %s (%s)', t.fq, coalesce(t.cols, '')) || coalesce('"
    " INHERITS (' || t.names || ')', '') || coalesce(' PARTITION BY ' || pg_get_partkeydef(t.oid),"
    " ''), NULL, format('DROP TABLE IF EXISTS %s', t.fq), format('ALTER TABLE %s.%%1$I RENAME TO"
    " %%2$I', t.ns), 'pg_class'::regclass, t.oid, 0, 'TABLE ' || t.fq FROM tab t UNION ALL SELECT"
    " 'r' || r.oid, '', CASE r.relkind WHEN 'S' THEN 8 ELSE 60 END, r.kind || ' ' || r.fq,"
    " r.relname, CASE r.relkind WHEN 'S' THEN 'S' ELSE rtrim(pg_get_viewdef(r.oid), ';') END, CASE"
    " r.relkind WHEN 'S' THEN (SELECT format('CREATE SEQUENCE %s AS %s%s', r.fq,"
    " format_type(v.seqtypid, NULL), " SHAPE_SEQUENCE("") ") FROM pg_sequence v WHERE v.seqrelid ="
    " r.oid) ELSE format('CREATE %s %s AS %s%s', r.word, r.fq, rtrim(pg_get_viewdef(r.oid), ';'),"
    " CASE r.relkind WHEN 'm' THEN ' WITH NO DATA' ELSE '' END) END, CASE r.relkind WHEN 'v' THEN"
    " format('CREATE OR REPLACE VIEW %s AS %s', r.fq, rtrim(pg_get_viewdef(r.oid), ';')) END,"
    " format('DROP %s IF EXISTS %s', r.word, r.fq), format('ALTER %s %s.%%1$I RENAME TO %%2$I',"
    " r.word, r.ns), 'pg_class'::regclass, r.oid, 0, r.word || ' ' || r.fq FROM r WHERE r.relkind"
    " IN ('v', 'm', 'S') UNION ALL SELECT 'r' || col.oid, 'c' || col.attnum, 20, format('column %I"
    " of %s', col.attname, col.fq), col.attname, '', CASE WHEN col.relkind IN ('r', 'p') AND NOT"
    " col.inherited THEN format( 'ALTER TABLE %s ADD COLUMN %I %s', col.fq, col.attname, col.type)"
    " || CASE WHEN col.generated <> '' THEN format(' GENERATED ALWAYS AS (%s) %s', col.expr, CASE"
    " col.generated WHEN 's' THEN 'STORED' ELSE 'VIRTUAL' END) WHEN col.def IS NOT NULL THEN"
    " col.def WHEN col.missing IS NOT NULL THEN format( ' DEFAULT %s; ALTER TABLE %s ALTER COLUMN"
    " %I DROP DEFAULT', col.missing, col.fq, col.attname) ELSE '' END END, NULL, CASE WHEN"
    " col.relkind IN ('r', 'p') AND NOT col.inherited THEN format('ALTER TABLE %s%s DROP COLUMN IF"
    " EXISTS %I', CASE WHEN col.relkind = 'r' THEN 'ONLY ' ELSE '' END, col.fq, col.attname) END,"
    " CASE WHEN NOT col.inherited AND col.relkind <> 'S'"
    " THEN format( 'ALTER TABLE %s RENAME COLUMN %%1$I TO %%2$I', col.ft) END,"
    " 'pg_class'::regclass, col.oid, col.attnum::int, format('COLUMN %s.%I', col.fq, col.attname)"
    " FROM col WHERE col.relkind <> 'S' UNION ALL SELECT 'r' || con.oid, 'k' || con.con, CASE"
    " con.contype WHEN 'f' THEN 70 WHEN 'c' THEN 44 ELSE CASE con.relkind WHEN 'p' THEN 41 ELSE 40"
    " END END, format('constraint %I of %s', con.conname, con.fq), con.conname, replace(con.def, '"
    " NOT VALID', ''), CASE WHEN con.conislocal OR con.relispartition OR con.contype <> 'c' THEN"
    " format('ALTER TABLE %s%s ADD CONSTRAINT %I %s', CASE WHEN con.contype IN ('p', 'u', 'x')"
    " THEN 'ONLY ' ELSE '' END, con.fq, con.conname, con.def) END, CASE con.contype WHEN 'f' THEN"
    " format('ALTER TABLE %s ALTER CONSTRAINT %I %s INITIALLY %s', con.fq, con.conname, CASE WHEN"
    " con.condeferrable THEN 'DEFERRABLE' ELSE 'NOT DEFERRABLE' END, CASE WHEN con.condeferred THEN"
    " 'DEFERRED' ELSE 'IMMEDIATE' END) END, CASE WHEN con.conislocal"
    " THEN format('ALTER TABLE %s DROP CONSTRAINT IF EXISTS %I', con.fq, con.conname) END, CASE"
    " WHEN con.contype IN ('p', 'u', 'x') THEN format('ALTER INDEX %s.%%1$I RENAME TO %%2$I',"
    " con.ns) WHEN con.conislocal THEN format('ALTER TABLE %s RENAME CONSTRAINT %%1$I TO %%2$I',"
    " con.ft) END, 'pg_constraint'::regclass, con.con, 0, format('CONSTRAINT %I ON %s',"
    " con.conname, con.fq) FROM con UNION ALL SELECT 'r' || r.oid, 'i' || x.oid, CASE r.relkind"
    " WHEN 'p' THEN 43 WHEN 'm' THEN 62 ELSE 42 END, format('index %I.%I', xn.nspname, x.relname),"
    " x.relname, pg_get_indexdef(x.oid), pg_get_indexdef(x.oid), NULL, format('DROP INDEX IF"
    " EXISTS %I.%I', xn.nspname, x.relname), format('ALTER INDEX %s.%%1$I RENAME TO %%2$I',"
    " replace(format('%I', xn.nspname), '%', '%%')), 'pg_class'::regclass, x.oid, 0, format('INDEX"
    " %I.%I', xn.nspname, x.relname) FROM r JOIN pg_index i ON i.indrelid = r.oid AND"
    " (i.indisvalid OR r.relkind = 'p') JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_namespace"
    " xn ON xn.oid = x.relnamespace WHERE NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid"
    " = x.oid AND k.conrelid = r.oid AND k.contype IN ('p', 'u', 'x')) UNION ALL SELECT 'r' ||"
    " r.oid, 's' || s.oid, 64, format('statistics %I.%I', sn.nspname, s.stxname), s.stxname,"
    " pg_get_statisticsobjdef(s.oid), pg_get_statisticsobjdef(s.oid), NULL, format('DROP"
    " STATISTICS IF EXISTS %I.%I', sn.nspname, s.stxname), format('ALTER STATISTICS %s.%%1$I"
    " RENAME TO %%2$I', replace(format('%I', sn.nspname), '%', '%%')),"
    " 'pg_statistic_ext'::regclass, s.oid, 0, format('STATISTICS %I.%I', sn.nspname, s.stxname)"
    " FROM r JOIN pg_statistic_ext s ON s.stxrelid = r.oid JOIN pg_namespace sn ON sn.oid ="
    " s.stxnamespace UNION ALL SELECT 'r' || r.oid, 'g' || g.oid, 72, format('trigger %I on %s',"
    " g.tgname, r.fq), g.tgname, pg_get_triggerdef(g.oid), CASE WHEN {trigger_own} THEN"
    " pg_get_triggerdef(g.oid) END, NULL, CASE WHEN {trigger_own} THEN format('DROP TRIGGER IF"
    " EXISTS %I ON %s', g.tgname, r.fq) END, CASE WHEN {trigger_own} THEN format('ALTER TRIGGER"
    " %%1$I ON %s RENAME TO %%2$I', r.ft) END, 'pg_trigger'::regclass, g.oid, 0, format('TRIGGER"
    " %I ON %s', g.tgname, r.fq) FROM r JOIN pg_trigger g ON g.tgrelid = r.oid AND NOT"
    " g.tgisinternal UNION ALL SELECT 'r' || r.oid, 'w' || w.oid, 74, format('rule %I on %s',"
    " w.rulename, r.fq), w.rulename, pg_get_ruledef(w.oid), pg_get_ruledef(w.oid), NULL,"
    " format('DROP RULE IF EXISTS %I ON %s', w.rulename, r.fq), format('ALTER RULE %%1$I ON %s"
    " RENAME TO %%2$I', r.ft), 'pg_rewrite'::regclass, w.oid, 0, format('RULE %I ON %s',"
    " w.rulename, r.fq) FROM r JOIN pg_rewrite w ON w.ev_class = r.oid AND w.rulename <> '_RETURN'"
    " UNION ALL SELECT 'r' || r.oid, 'y' || y.oid, 76, format('policy %I on %s', y.polname, r.fq),"
    " y.polname, d.def, format('CREATE POLICY %I ON %s %s', y.polname, r.fq, d.def), NULL,"
    " format('DROP POLICY IF EXISTS %I ON %s', y.polname, r.fq), format('ALTER POLICY %%1$I ON %s"
    " RENAME TO %%2$I', r.ft), 'pg_policy'::regclass, y.oid, 0, format('POLICY %I ON %s',"
    " y.polname, r.fq) FROM r JOIN pg_policy y ON y.polrelid = r.oid CROSS JOIN LATERAL (SELECT"
    " format('AS %s FOR %s TO %s%s%s', CASE WHEN y.polpermissive THEN 'PERMISSIVE' ELSE"
    " 'RESTRICTIVE' END, CASE y.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN"
    " 'UPDATE' WHEN 'd' THEN 'DELETE' ELSE 'ALL' END, (SELECT string_agg(CASE u WHEN 0 THEN"
    " 'PUBLIC' ELSE quote_ident(pg_get_userbyid(u)) END, ', ') FROM unnest(y.polroles) u), ' USING"
    " (' || pg_get_expr(y.polqual, y.polrelid) || ')', ' WITH CHECK (' ||"
    " pg_get_expr(y.polwithcheck, y.polrelid) || ')')) d(def) UNION ALL SELECT 'n' || n.oid, '',"
    " 0, format('schema %I', n.nspname), n.nspname, '', format('CREATE SCHEMA %I', n.nspname),"
    " NULL, format('DROP SCHEMA IF EXISTS %I', n.nspname), 'ALTER SCHEMA %1$I RENAME TO %2$I',"
    " 'pg_namespace'::regclass, n.oid, 0, format('SCHEMA %I', n.nspname) FROM pg_namespace n WHERE"
    " n.oid = ANY ($4) UNION ALL SELECT 't' || t.oid, '', 2, format('type %I.%I', n.nspname,"
    " t.typname), t.typname, CASE t.typtype WHEN 'r' THEN d.def ELSE t.typtype::text END,"
    " format('CREATE %s %I.%I %s', k.word, n.nspname, t.typname, d.def), NULL, format('DROP %s IF"
    " EXISTS %I.%I', k.word, n.nspname, t.typname), format('ALTER %s %s.%%1$I RENAME TO %%2$I',"
    " k.word, replace(format('%I', n.nspname), '%', '%%')), 'pg_type'::regclass, t.oid, 0,"
    " format('%s %I.%I', k.word, n.nspname, t.typname) FROM pg_type t JOIN pg_namespace n ON n.oid"
    " = t.typnamespace LEFT JOIN pg_class c ON c.oid = t.typrelid CROSS JOIN LATERAL (SELECT CASE"
    " t.typtype WHEN 'd' THEN 'DOMAIN' ELSE 'TYPE' END) k(word) CROSS JOIN LATERAL (SELECT 'AS"
    " ENUM (' || coalesce((SELECT string_agg(quote_literal(e.enumlabel), ', ' ORDER BY"
    " e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = t.oid), '') || ')' AS def WHERE"
    " t.typtype = 'e' UNION ALL SELECT 'AS (' || coalesce((SELECT"
    " string_agg(quote_ident(a.attname) || ' ' || format_type(a.atttypid, a.atttypmod) || "
    SHAPE_COLLATE("a.attcollation", "y.typcollation") ", ', ' ORDER BY a.attnum) FROM pg_attribute"
    " a JOIN pg_type y ON y.oid = a.atttypid WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND"
    " NOT a.attisdropped), '') || ')' WHERE t.typtype = 'c' UNION ALL SELECT 'AS ' ||"
    " format_type(t.typbasetype, t.typtypmod) || "
    SHAPE_COLLATE("t.typcollation", "y.typcollation") " FROM pg_type y WHERE t.typtype = 'd' AND"
    " y.oid = t.typbasetype UNION ALL SELECT " SHAPE_RANGE " FROM pg_range r WHERE t.typtype = 'r'"
    " AND r.rngtypid = t.oid AND r.rngcanonical = 0) d WHERE t.oid = ANY ($2) AND (t.typtype IN"
    " ('d', 'e', 'r') OR t.typtype = 'c' AND c.relkind = 'c') UNION ALL SELECT 't' || t.oid, 'e'"
    " || e.oid, 4, format('value %L of type %I.%I', e.enumlabel, n.nspname, t.typname),"
    " e.enumlabel, '', format('ALTER TYPE %I.%I ADD VALUE %L%s', n.nspname, t.typname,"
    " e.enumlabel, coalesce((SELECT format(' AFTER %L', o.enumlabel) FROM pg_enum o WHERE"
    " o.enumtypid = t.oid AND o.enumsortorder < e.enumsortorder ORDER BY o.enumsortorder DESC"
    " LIMIT 1), (SELECT format(' BEFORE %L', o.enumlabel) FROM pg_enum o WHERE o.enumtypid = t.oid"
    " AND o.enumsortorder > e.enumsortorder ORDER BY o.enumsortorder LIMIT 1), '')), NULL, NULL,"
    " format('ALTER TYPE %s RENAME VALUE %%1$L TO %%2$L', replace(format('%I.%I', n.nspname,"
    " t.typname), '%', '%%')), 'pg_enum'::regclass, e.oid, 0, NULL FROM pg_type t JOIN"
    " pg_namespace n ON n.oid = t.typnamespace JOIN pg_enum e ON e.enumtypid = t.oid WHERE t.oid ="
    " ANY ($2) UNION ALL SELECT 't' || t.oid, 'c' || a.attnum, 4, format('attribute %I of %I.%I',"
    " a.attname, n.nspname, t.typname), a.attname, y.def, format('ALTER TYPE %I.%I ADD ATTRIBUTE"
    " %I %s CASCADE', n.nspname, t.typname, a.attname, y.def), format('ALTER TYPE %I.%I ALTER"
    " ATTRIBUTE %I TYPE %s CASCADE', n.nspname, t.typname, a.attname, y.def), format('ALTER TYPE"
    " %I.%I DROP ATTRIBUTE IF EXISTS %I CASCADE', n.nspname, t.typname, a.attname), format('ALTER"
    " TYPE %s RENAME ATTRIBUTE %%1$I TO %%2$I CASCADE', replace(format('%I.%I', n.nspname,"
    " t.typname), '%', '%%')), 'pg_class'::regclass, t.typrelid, a.attnum::int, format('COLUMN"
    " %I.%I.%I', n.nspname, t.typname, a.attname) FROM pg_type t JOIN pg_namespace n ON n.oid ="
    " t.typnamespace JOIN pg_class c ON c.oid = t.typrelid AND c.relkind = 'c' JOIN pg_attribute a"
    " ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped JOIN pg_type ay ON ay.oid ="
    " a.atttypid CROSS JOIN LATERAL (SELECT format_type(a.atttypid, a.atttypmod) || "
    SHAPE_COLLATE("a.attcollation", "ay.typcollation") ") y(def) WHERE t.oid = ANY ($2) UNION ALL"
    " SELECT 't' || t.oid, 'k' || k.oid, 6, format('constraint %I of domain %I.%I', k.conname,"
    " n.nspname, t.typname), k.conname, replace(pg_get_constraintdef(k.oid), ' NOT VALID', ''),"
    " format('ALTER DOMAIN %I.%I ADD CONSTRAINT %I %s', n.nspname, t.typname, k.conname,"
    " pg_get_constraintdef(k.oid)), NULL, format('ALTER DOMAIN %I.%I DROP CONSTRAINT IF EXISTS"
    " %I', n.nspname, t.typname, k.conname), format('ALTER DOMAIN %s RENAME CONSTRAINT %%1$I TO"
    " %%2$I', replace(format('%I.%I', n.nspname, t.typname), '%', '%%')),"
    " 'pg_constraint'::regclass, k.oid, 0, format('CONSTRAINT %I ON DOMAIN %I.%I', k.conname,"
    " n.nspname, t.typname) FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace JOIN"
    " pg_constraint k ON k.contypid = t.oid AND k.contype = 'c' WHERE t.oid = ANY ($2) UNION ALL"
    " SELECT 'f' || p.oid, '', 10, 'function ' || p.oid::regprocedure, p.proname, d.def, d.def ||"
    " x.revoke, CASE WHEN p.prokind <> 'a' THEN d.def || x.revoke END, format('DROP ROUTINE IF"
    " EXISTS %s', p.oid::regprocedure), format('ALTER ROUTINE %s.%%1$I(%s) RENAME TO %%2$I',"
    " replace(format('%I', n.nspname), '%', '%%'),"
    " replace(pg_get_function_identity_arguments(p.oid), '%', '%%')), 'pg_proc'::regclass, p.oid,"
    " 0, 'ROUTINE ' || p.oid::regprocedure FROM pg_proc p JOIN pg_namespace n ON n.oid ="
    " p.pronamespace JOIN pg_language l ON l.oid = p.prolang CROSS JOIN LATERAL (SELECT "
    SHAPE_FUNCTION ") d(def) CROSS JOIN LATERAL (SELECT CASE WHEN p.prosecdef AND p.proowner <>"
    " current_user::regrole THEN format( '; REVOKE EXECUTE ON ROUTINE %s FROM PUBLIC',"
    " p.oid::regprocedure) ELSE '' END) x(revoke) WHERE p.oid = ANY ($3) AND (l.lanname NOT IN"
    " ('c', 'internal') OR p.prokind = 'a') UNION ALL SELECT 'o' || o.oid, '', 12, 'operator ' ||"
    " o.oid::regoperator, o.oprname, d.def, d.def, NULL, format('DROP OPERATOR IF EXISTS %s',"
    " o.oid::regoperator), NULL, 'pg_operator'::regclass, o.oid, 0, 'OPERATOR ' ||"
    " o.oid::regoperator FROM pg_operator o JOIN pg_namespace n ON n.oid = o.oprnamespace CROSS"
    " JOIN LATERAL (SELECT " SHAPE_OPERATOR ") d(def) WHERE o.oid = ANY ($5) AND o.oprcode <> 0)"
    " SELECT obj, part, '', phase, what, name, value, make, alter_, unmake, rename_ FROM part"
    " UNION ALL SELECT p.obj, p.part, 'comment', 90, 'comment on ' || p.what, NULL,"
    " quote_literal(d.description), format('COMMENT ON %s IS %L', p.target, d.description),"
    " format('COMMENT ON %s IS %L', p.target, d.description), format('COMMENT ON %s IS NULL',"
    " p.target), NULL FROM part p JOIN pg_description d ON d.classoid = p.class AND d.objoid ="
    " p.id AND d.objsubid = p.sub UNION ALL SELECT 'r' || col.oid, 'c' || col.attnum,"
    " 'sequence comment', 90, format('sequence comment of column %I of %s', col.attname, col.fq),"
    " NULL, quote_literal(d.description), format('COMMENT ON SEQUENCE %s IS %L', col.seq,"
    " d.description), format('COMMENT ON SEQUENCE %s IS %L', col.seq, d.description),"
    " format('COMMENT"
    " ON SEQUENCE %s IS NULL', col.seq), NULL FROM col JOIN pg_description d ON d.classoid ="
    " 'pg_class'::regclass AND d.objoid = col.seqid AND d.objsubid = 0 UNION ALL SELECT 'r' ||"
    " col.oid, 'c' || col.attnum, 'sequence type', 35, format('sequence type of column %I of %s',"
    " col.attname, col.fq), NULL, col.seqtype, format('ALTER SEQUENCE %s AS %s', col.seq,"
    " col.seqtype), format('ALTER SEQUENCE %s AS %s', col.seq, col.seqtype), NULL, NULL FROM col"
    " WHERE col.seqtype IS NOT NULL UNION ALL SELECT 'r' || r.oid, '', 'schema', 1, NULL,"
    " r.nspname::text, NULL, NULL, NULL, NULL, format('ALTER %s %%1$I.%s SET SCHEMA %%2$I',"
    " r.word, r.rn) FROM r UNION ALL SELECT 't' || t.oid, '', 'schema', 1, NULL, n.nspname::text,"
    " NULL, NULL, NULL, NULL, format('ALTER %s %%1$I.%s SET SCHEMA %%2$I', CASE t.typtype WHEN 'd'"
    " THEN 'DOMAIN' ELSE 'TYPE' END, replace(format('%I', t.typname), '%', '%%')) FROM pg_type t"
    " JOIN pg_namespace n ON n.oid = t.typnamespace WHERE t.oid = ANY ($2) UNION ALL SELECT 'f' ||"
    " p.oid, '', 'schema', 1, NULL, n.nspname::text, NULL, NULL, NULL, NULL, format('ALTER ROUTINE"
    " %%1$I.%s(%s) SET SCHEMA %%2$I', replace(format('%I', p.proname), '%', '%%'),"
    " replace(pg_get_function_identity_arguments(p.oid), '%', '%%')) FROM pg_proc p JOIN"
    " pg_namespace n ON n.oid = p.pronamespace WHERE p.oid = ANY ($3) UNION ALL SELECT 'r' ||"
    " c.oid, 'c' || c.attnum, f.facet, f.phase, format('%s of column %I of %s', f.facet,"
    " c.attname, c.fq), NULL, f.value, f.make, f.alter_, f.unmake, NULL FROM col c CROSS JOIN"
    " LATERAL (SELECT format('ALTER TABLE %s ALTER COLUMN %I', c.fq, c.attname), format('ALTER"
    " TABLE ONLY %s ALTER COLUMN %I', c.fq, c.attname)) h(head, sole) CROSS JOIN LATERAL (VALUES"
    " ('type', 22, CASE WHEN c.relkind IN ('r', 'p') THEN c.type END, NULL, CASE WHEN NOT"
    " c.inherited THEN h.head || ' TYPE ' || c.type END, NULL), ('default', 30, CASE WHEN"
    " c.generated = '' THEN c.expr END, h.sole || ' SET DEFAULT ' || c.expr, h.sole || ' SET"
    " DEFAULT ' || c.expr, h.sole || ' DROP DEFAULT'), ('not null', 32, CASE WHEN c.attnotnull AND"
    " c.relkind IN ('r', 'p') THEN 't' END, h.head || ' SET NOT NULL', NULL, h.head || ' DROP NOT"
    " NULL'), ('identity', 34, CASE WHEN NOT c.inherited THEN nullif(c.attidentity, '')::text END,"
    " h.head || ' ADD' || c.def, h.head || ' SET GENERATED ' || CASE c.attidentity WHEN 'a' THEN"
    " 'ALWAYS' ELSE 'BY DEFAULT' END, h.head || ' DROP IDENTITY IF EXISTS'), ('sequence', 35,"
    " c.opts, h.head || c.opts, h.head || c.opts, NULL), ('expression', 34, CASE WHEN c.generated"
    " <> '' THEN c.expr END, NULL, h.head || ' SET EXPRESSION AS (' || c.expr || ')', h.head || '"
    " DROP EXPRESSION IF EXISTS'), ('storage', 36, CASE WHEN c.attstorage <> c.typstorage AND"
    " c.relkind IN ('r', 'p', 'm') THEN c.attstorage::text END, h.sole || ' SET STORAGE ' || CASE"
    " c.attstorage WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN' ELSE"
    " 'EXTENDED' END, h.sole || ' SET STORAGE ' || CASE c.attstorage WHEN 'p' THEN 'PLAIN' WHEN"
    " 'e' THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN' ELSE 'EXTENDED' END, h.sole || ' SET STORAGE ' ||"
    " CASE c.typstorage WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN' ELSE"
    " 'EXTENDED' END), ('compression', 36, nullif(c.compression, ''), h.sole || ' SET COMPRESSION"
    " ' || CASE c.compression WHEN 'l' THEN 'lz4' ELSE 'pglz' END, h.sole || ' SET COMPRESSION '"
    " || CASE c.compression WHEN 'l' THEN 'lz4' ELSE 'pglz' END, h.sole || ' SET COMPRESSION"
    " DEFAULT'), ('statistics', 36, CASE WHEN c.attstattarget >= 0 THEN c.attstattarget::text END,"
    " h.sole || ' SET STATISTICS ' || c.attstattarget, h.sole || ' SET STATISTICS ' ||"
    " c.attstattarget, h.sole || ' SET STATISTICS -1')) f(facet, phase, value, make, alter_,"
    " unmake) WHERE f.value IS NOT NULL AND c.relkind <> 'S' UNION ALL SELECT 'r' || c.oid, 'c' ||"
    " c.attnum, 'option ' || z.option_name, 36, format( 'option %s of column %I of %s',"
    " z.option_name, c.attname, c.fq), NULL, z.option_value, s.sql, s.sql, format('ALTER TABLE"
    " ONLY %s ALTER COLUMN %I RESET (%s)', c.fq, c.attname, z.option_name), NULL FROM col c CROSS"
    " JOIN LATERAL pg_options_to_table(c.attoptions) z CROSS JOIN LATERAL (SELECT format( 'ALTER"
    " TABLE ONLY %s ALTER COLUMN %I SET (%s = %L)', c.fq, c.attname, z.option_name,"
    " z.option_value)) s(sql) WHERE z.option_name IN ('n_distinct', 'n_distinct_inherited') UNION"
    " ALL SELECT 'r' || r.oid, '', 'option ' || y.prefix || z.option_name, 36, format('option %s%s"
    " of %s %s', y.prefix, z.option_name, r.kind, r.fq), NULL, z.option_value, s.sql, s.sql,"
    " format('ALTER %s %s RESET (%s%I)', r.word, r.fq, y.prefix, z.option_name), NULL FROM r CROSS"
    " JOIN LATERAL (SELECT '', r.reloptions UNION ALL SELECT 'toast.', tc.reloptions FROM pg_class"
    " tc WHERE tc.oid = r.reltoastrelid) y(prefix, options) CROSS JOIN LATERAL"
    " pg_options_to_table(y.options) z CROSS JOIN LATERAL (SELECT format( 'ALTER %s %s SET (%s%I ="
    " %L)', r.word, r.fq, y.prefix, z.option_name, z.option_value)) s(sql) UNION ALL SELECT 'r' ||"
    " c.oid, 'k' || c.con, 'option ' || z.option_name, 46, format( 'option %s of constraint %I of"
    " %s', z.option_name, c.conname, c.fq), NULL, z.option_value, s.sql, s.sql, format('ALTER"
    " INDEX %s RESET (%I)', c.conindid::regclass, z.option_name), NULL FROM con c JOIN pg_class x"
    " ON x.oid = c.conindid AND c.contype IN ('p', 'u', 'x') CROSS JOIN LATERAL"
    " pg_options_to_table(x.reloptions) z CROSS JOIN LATERAL (SELECT format( 'ALTER INDEX %s SET"
    " (%I = %L)', c.conindid::regclass, z.option_name, z.option_value)) s(sql) UNION ALL SELECT"
    " 'r' || c.oid, 'k' || c.con, 'validity', 78, format('validity of constraint %I of %s',"
    " c.conname, c.fq), NULL, 't', s.sql, NULL, NULL, NULL FROM con c CROSS JOIN LATERAL (SELECT"
    " format( 'ALTER TABLE %s VALIDATE CONSTRAINT %I', c.fq, c.conname)) s(sql) WHERE"
    " c.convalidated AND c.contype IN ('c', 'f') UNION ALL SELECT 't' || t.oid, 'k' || k.oid,"
    " 'validity', 78, format('validity of constraint %I of domain %I.%I', k.conname, n.nspname,"
    " t.typname), NULL, 't', format('ALTER DOMAIN %I.%I VALIDATE CONSTRAINT %I', n.nspname,"
    " t.typname, k.conname), NULL, NULL, NULL FROM pg_type t JOIN pg_namespace n ON n.oid ="
    " t.typnamespace JOIN pg_constraint k ON k.contypid = t.oid AND k.contype = 'c' AND"
    " k.convalidated WHERE t.oid = ANY ($2) UNION ALL SELECT 't' || t.oid, '', f.facet, 6,"
    " format('%s of domain %I.%I', f.facet, n.nspname, t.typname), NULL, f.value, f.make, f.make,"
    " f.unmake, NULL FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace CROSS JOIN"
    " LATERAL (SELECT format('ALTER DOMAIN %I.%I', n.nspname, t.typname)) h(head) CROSS JOIN"
    " LATERAL (VALUES ('default', pg_get_expr(t.typdefaultbin, 'pg_type'::regclass), h.head || '"
    " SET DEFAULT ' || pg_get_expr(t.typdefaultbin, 'pg_type'::regclass), h.head || ' DROP"
    " DEFAULT'), ('not null', CASE WHEN t.typnotnull THEN 't' END, h.head || ' SET NOT NULL',"
    " h.head || ' DROP NOT NULL')) f(facet, value, make, unmake) WHERE t.oid = ANY ($2) AND"
    " t.typtype = 'd' AND f.value IS NOT NULL UNION ALL SELECT 'r' || r.oid, '', f.facet, f.phase,"
    " format('%s of %s %s', f.facet, r.kind, r.fq), NULL, f.value, f.make, f.make, f.unmake, NULL"
    " FROM r CROSS JOIN LATERAL (VALUES ('row security', 80, CASE WHEN r.relrowsecurity THEN 't'"
    " END, format('ALTER TABLE ONLY %s ENABLE ROW LEVEL SECURITY', r.fq), format('ALTER TABLE ONLY"
    " %s DISABLE ROW LEVEL SECURITY', r.fq)), ('forced row security', 80, CASE WHEN"
    " r.relforcerowsecurity THEN 't' END, format('ALTER TABLE ONLY %s FORCE ROW LEVEL SECURITY',"
    " r.fq), format('ALTER TABLE ONLY %s NO FORCE ROW LEVEL SECURITY', r.fq)), ('replica"
    " identity', 82, CASE WHEN r.relkind IN ('r', 'p') THEN r.relreplident::text || coalesce("
    " (SELECT x.relname FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid WHERE i.indrelid ="
    " r.oid AND i.indisreplident), '') END, format( 'ALTER TABLE ONLY %s REPLICA IDENTITY %s',"
    " r.fq, CASE r.relreplident WHEN 'f' THEN 'FULL' WHEN 'n' THEN 'NOTHING' WHEN 'd' THEN"
    " 'DEFAULT' ELSE (SELECT format('USING INDEX %I', x.relname) FROM pg_index i JOIN pg_class x"
    " ON x.oid = i.indexrelid WHERE i.indrelid = r.oid AND i.indisreplident) END), NULL),"
    " ('clustering', 82, (SELECT x.relname::text FROM pg_index i JOIN pg_class x ON x.oid ="
    " i.indexrelid WHERE i.indrelid = r.oid AND i.indisclustered), (SELECT format('ALTER TABLE %s"
    " CLUSTER ON %I', r.fq, x.relname) FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid"
    " WHERE i.indrelid = r.oid AND i.indisclustered), format('ALTER TABLE %s SET WITHOUT CLUSTER',"
    " r.fq)), ('rows', 92, (SELECT 't' FROM pg_class c WHERE c.oid = r.oid AND c.relispopulated"
    " AND c.relkind = 'm'), format('REFRESH MATERIALIZED VIEW %s', r.fq), format('REFRESH"
    " MATERIALIZED VIEW %s WITH NO DATA', r.fq))) f(facet, phase, value, make, unmake) WHERE"
    " f.value IS NOT NULL UNION ALL SELECT 'r' || r.oid, 'p' || h.inhparent, '', 48,"
    " format('parent %s of %s', h.inhparent::regclass, r.fq), h.inhparent::regclass::text,"
    " s.bound, CASE WHEN r.relispartition THEN format( 'ALTER TABLE ONLY %s ATTACH PARTITION %s"
    " %s', h.inhparent::regclass, r.fq, s.bound) ELSE format('ALTER TABLE %s INHERIT %s', r.fq,"
    " h.inhparent::regclass) END, NULL, CASE WHEN r.relispartition THEN format('ALTER TABLE %s"
    " DETACH PARTITION %s', h.inhparent::regclass, r.fq) ELSE format('ALTER TABLE %s NO INHERIT"
    " %s', r.fq, h.inhparent::regclass) END, NULL FROM r JOIN pg_inherits h ON h.inhrelid = r.oid"
    " CROSS JOIN LATERAL (SELECT CASE WHEN r.relispartition THEN pg_get_expr(r.relpartbound,"
    " r.oid) ELSE '' END) s(bound) WHERE r.relkind IN ('r', 'p') UNION ALL SELECT 'r' || r.oid,"
    " 'i' || x.oid, 'parent', 50, format('parent of index %I.%I', xn.nspname, x.relname), NULL,"
    " h.inhparent::regclass::text, format('ALTER INDEX %s ATTACH PARTITION %I.%I',"
    " h.inhparent::regclass, xn.nspname, x.relname), NULL, NULL, NULL FROM r JOIN pg_index i ON"
    " i.indrelid = r.oid JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_namespace xn ON xn.oid ="
    " x.relnamespace JOIN pg_inherits h ON h.inhrelid = x.oid UNION ALL SELECT 'r' || r.oid, 'g'"
    " || g.oid, 'state', 84, format('state of trigger %I on %s', g.tgname, r.fq), NULL,"
    " g.tgenabled::text, s.sql, s.sql, format('ALTER TABLE ONLY %s ENABLE TRIGGER %I', r.fq,"
    " g.tgname), NULL FROM r JOIN pg_trigger g ON g.tgrelid = r.oid AND NOT g.tgisinternal AND"
    " g.tgenabled <> 'O' CROSS JOIN LATERAL (SELECT format('ALTER TABLE ONLY %s %s TRIGGER %I',"
    " r.fq, CASE g.tgenabled WHEN 'D' THEN 'DISABLE' WHEN 'A' THEN 'ENABLE ALWAYS' ELSE 'ENABLE"
    " REPLICA' END, g.tgname)) s(sql) UNION ALL SELECT 'r' || r.oid, 'w' || w.oid, 'state', 84,"
    " format('state of rule %I on %s', w.rulename, r.fq), NULL, w.ev_enabled::text, s.sql, s.sql,"
    " format('ALTER TABLE %s ENABLE RULE %I', r.fq, w.rulename), NULL FROM r JOIN pg_rewrite w ON"
    " w.ev_class = r.oid AND w.rulename <> '_RETURN' AND w.ev_enabled <> 'O' CROSS JOIN LATERAL"
    " (SELECT format('ALTER TABLE %s %s RULE %I', r.fq, CASE w.ev_enabled WHEN 'D' THEN 'DISABLE'"
    " WHEN 'A' THEN 'ENABLE ALWAYS' ELSE 'ENABLE REPLICA' END, w.rulename)) s(sql) UNION ALL"
    " SELECT 'r' || r.oid, 's' || s.oid, 'target', 66, format('target of statistics %I.%I',"
    " sn.nspname, s.stxname), NULL, to_jsonb(s)->>'stxstattarget', q.sql, q.sql, format( 'ALTER"
    " STATISTICS %I.%I SET STATISTICS -1', sn.nspname, s.stxname), NULL FROM r JOIN"
    " pg_statistic_ext s ON s.stxrelid = r.oid AND (to_jsonb(s)->>'stxstattarget')::int >= 0 JOIN"
    " pg_namespace sn ON sn.oid = s.stxnamespace CROSS JOIN LATERAL (SELECT format( 'ALTER"
    " STATISTICS %I.%I SET STATISTICS %s', sn.nspname, s.stxname, to_jsonb(s)->>'stxstattarget'))"
    " q(sql) UNION ALL SELECT 'r' || r.oid, '', 'sequence', 9, format('settings of sequence %s',"
    " r.fq), NULL, s.opts, format('ALTER SEQUENCE %s%s', r.fq, s.opts), format('ALTER SEQUENCE"
    " %s%s', r.fq, s.opts), NULL, NULL FROM r JOIN pg_sequence v ON v.seqrelid = r.oid CROSS JOIN"
    " LATERAL (SELECT ' AS ' || format_type(v.seqtypid, NULL) || " SHAPE_SEQUENCE("") ") s(opts)"
    " UNION ALL SELECT 'r' || r.oid, '', 'owner', 26, format('owner of sequence %s', r.fq), NULL,"
    " s.sql, format('ALTER SEQUENCE %s OWNED BY %s', r.fq, s.sql), format('ALTER SEQUENCE %s OWNED"
    " BY %s', r.fq, s.sql), format('ALTER SEQUENCE %s OWNED BY NONE', r.fq), NULL FROM r JOIN"
    " pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = r.oid AND d.refclassid ="
    " 'pg_class'::regclass AND d.deptype = 'a' JOIN pg_attribute a ON a.attrelid = d.refobjid AND"
    " a.attnum = d.refobjsubid CROSS JOIN LATERAL (SELECT format('%s.%I', d.refobjid::regclass,"
    " a.attname)) s(sql) WHERE r.relkind = 'S' UNION ALL SELECT 'r' || c.oid, 'k' || c.con, 'index"
    " comment', 90, 'comment on index ' || c.conindid::regclass, NULL,"
    " quote_literal(d.description), s.sql, s.sql, format('COMMENT ON INDEX %s IS NULL',"
    " c.conindid::regclass), NULL FROM con c JOIN pg_description d ON d.classoid ="
    " 'pg_class'::regclass AND d.objoid = c.conindid AND d.objsubid = 0 AND c.contype IN ('p',"
    " 'u', 'x') CROSS JOIN LATERAL (SELECT format( 'COMMENT ON INDEX %s IS %L',"
    " c.conindid::regclass, d.description)) s(sql)";

static const char ddl_shape_tail_sql[] =
    "; END $twsync$;"
    /* to_regprocedure() and to_regoperator() fail where a type of theirs is unknown. */
    "CREATE OR REPLACE FUNCTION twsync.shape_named(jsonb) RETURNS SETOF twsync.facet LANGUAGE sql"
    " STABLE" DDL_SETTINGS " AS $twsync$ WITH n AS (SELECT x->>0 AS kind, CASE x->>0"
    "  WHEN 'r' THEN to_regclass(x->>1)::oid WHEN 't' THEN to_regtype(x->>1)::oid"
    "  WHEN 'f' THEN (SELECT p.oid FROM pg_proc p WHERE p.oid >= 16384"
    "   AND p.oid::regprocedure::text = x->>1) WHEN 'n' THEN to_regnamespace(x->>1)::oid"
    "  WHEN 'o' THEN (SELECT o.oid FROM pg_operator o WHERE o.oid >= 16384"
    "   AND o.oid::regoperator::text = x->>1) END AS id FROM jsonb_array_elements($1) x)"
    " SELECT f.* FROM twsync.shape_of("
    " array(SELECT id FROM n WHERE kind = 'r' AND id IS NOT NULL),"
    " array(SELECT id FROM n WHERE kind = 't' AND id IS NOT NULL),"
    " array(SELECT id FROM n WHERE kind = 'f' AND id IS NOT NULL),"
    " array(SELECT id FROM n WHERE kind = 'n' AND id IS NOT NULL),"
    " array(SELECT id FROM n WHERE kind = 'o' AND id IS NOT NULL)) f $twsync$;"
    "REVOKE ALL ON twsync.shape FROM PUBLIC; REVOKE ALL ON FUNCTION twsync.shape_named(jsonb)"
    " FROM PUBLIC;"
    "REVOKE ALL ON FUNCTION twsync.shape_of(oid[], oid[], oid[], oid[], oid[]) FROM PUBLIC";

/* What the event triggers run.  A failure of ours does not fail the command: it is written down,
 * and the task says so. */
static const char ddl_capture_sql[] =
    "DECLARE query_ constant text := current_query(); named text[]; rels oid[]; types oid[]; procs"
    " oid[]; spaces oid[]; opers oid[]; keys text[]; fresh twsync.facet[]; changes_ jsonb; names_"
    " jsonb; copies_ jsonb := '[]'; why text; what_ text; stack text; item record; found_ boolean;"
    " indexes text[]; nestloop text;"
    " number bigint; BEGIN GET DIAGNOSTICS stack = PG_CONTEXT; IF (SELECT count(*) > 1 FROM"
    " regexp_matches(stack, '^PL/pgSQL function \"?twsync\"?\\.', 'gn')) THEN RETURN; END IF; IF"
    " tg_event = 'table_rewrite' THEN INSERT INTO twsync.shape SELECT {job}, s.obj, '',"
    " 'rewritten', 0, NULL, NULL, pg_event_trigger_table_rewrite_reason()::text FROM twsync.shape"
    " s WHERE s.job = {job} AND s.part = '' AND s.facet = '' AND s.obj = 'r' ||"
    " pg_event_trigger_table_rewrite_oid() ON CONFLICT (job, obj, part, facet) DO UPDATE SET value"
    " = EXCLUDED.value; RETURN; ELSIF tg_event = 'sql_drop' THEN SELECT array_agg(DISTINCT CASE"
    " d.object_type WHEN 'default value' THEN '\"pg_class\" ' || coalesce("
    " to_regclass(format('%I.%I', d.address_names[1], d.address_names[2]))::oid, 0) ELSE"
    " d.classid::regclass || ' ' || d.objid END), string_agg(DISTINCT d.object_identity, ', ')"
    " FILTER (WHERE d.original), array_agg(format('index %I.%I', d.schema_name, d.object_name))"
    " FILTER (WHERE d.object_type = 'index') INTO named, what_, indexes FROM"
    " pg_event_trigger_dropped_objects() d WHERE"
    " NOT d.is_temporary AND coalesce(d.schema_name, '') NOT IN ('twsync', 'pg_toast') AND"
    " d.object_type !~ '^(publication|subscription|event trigger)'; ELSE SELECT array_agg(DISTINCT"
    " c.classid::regclass || ' ' || c.objid), string_agg(DISTINCT c.object_identity, ', ') INTO"
    " named, what_ FROM pg_event_trigger_ddl_commands() c WHERE NOT c.in_extension AND c.objid IS"
    " NOT NULL AND coalesce(c.schema_name, '') NOT IN ('pg_temp', 'twsync') AND c.object_identity"
    " <> 'twsync' AND c.object_type !~ '^(publication|subscription|event trigger)'; END IF; IF"
    " named IS NULL THEN RETURN; END IF; BEGIN"
    /* An old snapshot sees neither what others did nor what was noted of it. */
    " IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') AND"
    " (SELECT q.is_called AND q.last_value > coalesce((SELECT max(id) FROM twsync.ddl), 0) FROM"
    " twsync.ddl_id_seq q) THEN RAISE EXCEPTION 'there was other DDL since the transaction''s"
    " snapshot'; END IF; SELECT coalesce(array_agg(n.oid), '{}') INTO spaces"
    " FROM pg_namespace n WHERE '\"pg_namespace\" ' || n.oid = ANY (named); WITH RECURSIVE x(oid)"
    " AS ( SELECT coalesce(i.indrelid, c.oid) FROM pg_class c LEFT JOIN pg_index i ON i.indexrelid"
    " = c.oid WHERE '\"pg_class\" ' || c.oid = ANY (named) AND c.relkind IN ('r', 'p', 'v', 'm',"
    " 'S', 'i', 'I') UNION SELECT d.refobjid FROM pg_depend d WHERE d.classid ="
    " 'pg_class'::regclass AND d.deptype = 'i' AND d.refclassid = 'pg_class'::regclass AND"
    " '\"pg_class\" ' || d.objid = ANY (named) UNION"
    /* What has columns of a type that was renamed: their definitions name it. */
    " SELECT a.attrelid FROM pg_type t JOIN twsync.shape s ON s.job = {job} AND s.obj = 't' ||"
    " t.oid AND s.part = '' AND s.facet = '' AND s.name <> t.typname JOIN pg_attribute a ON"
    " a.atttypid IN (t.oid, t.typarray) AND a.attnum > 0 JOIN twsync.shape k ON k.job = {job} AND"
    " k.obj = 'r' ||"
    " a.attrelid AND k.part = '' AND k.facet = '' WHERE '\"pg_type\" ' || t.oid = ANY (named)"
    " UNION SELECT k.conrelid FROM pg_constraint k WHERE"
    " '\"pg_constraint\" ' || k.oid = ANY (named) UNION SELECT g.tgrelid FROM pg_trigger g WHERE"
    " '\"pg_trigger\" ' || g.oid = ANY (named) UNION SELECT w.ev_class FROM pg_rewrite w WHERE"
    " '\"pg_rewrite\" ' || w.oid = ANY (named) UNION SELECT y.polrelid FROM pg_policy y WHERE"
    " '\"pg_policy\" ' || y.oid = ANY (named) UNION SELECT s.stxrelid FROM pg_statistic_ext s"
    " WHERE '\"pg_statistic_ext\" ' || s.oid = ANY (named) UNION SELECT f.adrelid FROM pg_attrdef"
    " f WHERE '\"pg_attrdef\" ' || f.oid = ANY (named) UNION SELECT substr(s.obj, 2)::oid FROM"
    " twsync.shape s WHERE s.job = {job} AND s.obj ~ '^r' AND s.facet = '' AND s.part IN (SELECT"
    " v.letter || split_part(u, ' ', 2) FROM unnest(named) u JOIN (VALUES ('\"pg_class\"', 'i'),"
    " ('\"pg_constraint\"', 'k'), ('\"pg_trigger\"', 'g'), ('\"pg_rewrite\"', 'w'),"
    " ('\"pg_policy\"', 'y'), ('\"pg_statistic_ext\"', 's')) v(class, letter) ON split_part(u, '"
    " ', 1) = v.class) UNION"
    /* One that REINDEX CONCURRENTLY has given another oid. */
    " SELECT substr(s.obj, 2)::oid FROM twsync.shape s WHERE s.job = {job} AND s.obj ~ '^r' AND"
    " s.facet = '' AND s.part ~ '^i' AND s.what = ANY (indexes) UNION SELECT c.oid FROM pg_class"
    " c JOIN pg_namespace n ON n.oid ="
    " c.relnamespace JOIN twsync.shape s ON s.job = {job} AND s.obj = 'r' || c.oid AND s.facet ="
    " 'schema' AND s.name <> n.nspname WHERE n.oid = ANY (spaces)), down(oid) AS (SELECT x.oid"
    " FROM x UNION SELECT i.inhrelid FROM down JOIN pg_inherits i ON i.inhparent = down.oid JOIN"
    " pg_class c ON c.oid = i.inhrelid AND c.relkind IN ('r', 'p')) SELECT"
    " coalesce(array_agg(oid), '{}') INTO rels FROM (SELECT oid FROM down UNION SELECT"
    " substr(s.obj, 2)::oid FROM twsync.shape s WHERE s.job = {job} AND s.facet = '' AND s.part IN"
    " (SELECT 'p' || down.oid FROM down)) z; WITH mine(oid) AS (SELECT c.oid FROM pg_class c JOIN"
    " pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY (rels) AND c.relpersistence = 'p'"
    " AND {user} AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.deptype = 'e' AND e.classid ="
    " 'pg_class'::regclass AND e.objid = c.oid) AND (c.relkind IN ('r', 'p') AND ({match} OR"
    " c.relispartition AND EXISTS (SELECT FROM pg_inherits i JOIN twsync.shape s ON s.job = {job}"
    " AND s.obj = 'r' || i.inhparent WHERE i.inhrelid = c.oid)) OR c.relkind IN ('v', 'm', 'S')"
    " AND {scope} AND NOT {excluded}) UNION SELECT c.oid FROM pg_class c JOIN twsync.shape s ON"
    " s.job = {job} AND s.obj = 'r' || c.oid WHERE c.oid = ANY (rels)) SELECT"
    " coalesce(array_agg(oid), '{}') INTO rels FROM (SELECT oid FROM mine UNION SELECT d.objid"
    " FROM pg_depend d JOIN mine ON mine.oid = d.refobjid WHERE d.classid = 'pg_class'::regclass"
    " AND d.refclassid = 'pg_class'::regclass AND d.deptype = 'a' AND d.objid = ANY (rels)) z; FOR"
    " item IN SELECT c.oid, format('%I.%I', n.nspname, c.relname) AS fq, format('%I.%I', s.name,"
    " c.relname) AS was FROM pg_class c JOIN"
    " pg_namespace n ON n.oid = c.relnamespace JOIN twsync.shape s ON s.job = {job} AND s.obj ="
    " 'r' || c.oid AND s.part = '' AND s.facet = 'schema' AND s.name <> n.nspname WHERE c.oid ="
    " ANY (rels) AND NOT ({user} AND ({match} OR {scope})) AND EXISTS (SELECT FROM pg_namespace g"
    " WHERE g.nspname = s.name) LOOP IF EXISTS (SELECT FROM pg_publication_rel m JOIN"
    " pg_publication u ON u.oid = m.prpubid WHERE m.prrelid = item.oid AND u.pubname ="
    " {publication}) THEN EXECUTE format('ALTER PUBLICATION %I DROP TABLE ONLY %s', {publication},"
    " item.fq); END IF; DELETE FROM twsync.shape s WHERE s.job = {job} AND s.obj = 'r' ||"
    " item.oid; rels := array_remove(rels, item.oid); INSERT INTO twsync.ddl (job, tag, skipped,"
    " names) VALUES ({job}, tg_tag, 'moved out of what is selected', to_jsonb(ARRAY[item.was,"
    " item.fq])); END LOOP;"
    " WITH RECURSIVE used(oid) AS (SELECT a.atttypid FROM pg_attribute a WHERE a.attrelid = ANY"
    " (rels) AND a.attnum > 0 AND NOT a.attisdropped AND a.atttypid >= 16384 UNION SELECT e.oid"
    " FROM used JOIN pg_type t ON t.oid = used.oid CROSS JOIN LATERAL (SELECT t.typelem UNION ALL"
    " SELECT t.typbasetype UNION ALL SELECT r.rngsubtype FROM pg_range r WHERE r.rngtypid = t.oid"
    " UNION ALL SELECT a.atttypid FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum >"
    " 0 AND NOT a.attisdropped) e(oid) WHERE e.oid >= 16384) SELECT coalesce(array_agg(DISTINCT"
    " t.oid), '{}') INTO types FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace LEFT"
    " JOIN pg_class c ON c.oid = t.typrelid LEFT JOIN pg_constraint k ON k.contypid = t.oid CROSS"
    " JOIN LATERAL (SELECT EXISTS (SELECT FROM twsync.shape s WHERE s.job = {job} AND s.obj = 't'"
    " || t.oid) AS known) y WHERE (t.typtype IN ('d', 'e', 'r') OR t.typtype = 'c' AND c.relkind ="
    " 'c') AND {user} AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.deptype = 'e' AND e.classid"
    " = 'pg_type'::regclass AND e.objid = t.oid) AND (('\"pg_type\" ' || t.oid = ANY (named) OR"
    " '\"pg_class\" ' || c.oid = ANY (named) OR '\"pg_constraint\" ' || k.oid = ANY (named) OR"
    " n.oid = ANY (spaces) OR 't' || t.oid IN (SELECT s.obj FROM twsync.shape s WHERE s.job ="
    " {job} AND s.facet = '' AND s.part IN (SELECT 'k' || split_part(u, ' ', 2) FROM unnest(named)"
    " u WHERE split_part(u, ' ', 1) = '\"pg_constraint\"'))) AND (y.known OR {scope}) OR NOT"
    " y.known AND t.oid IN (SELECT oid FROM used)); SELECT coalesce(array_agg(p.oid), '{}') INTO"
    " procs FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace CROSS JOIN LATERAL"
    " (SELECT EXISTS (SELECT FROM twsync.shape s WHERE s.job = {job} AND s.obj = 'f' || p.oid) AS"
    " known) y WHERE ('\"pg_proc\" ' || p.oid = ANY (named) AND {scope} OR y.known AND"
    " ('\"pg_proc\" ' || p.oid = ANY (named) OR n.oid = ANY (spaces))) AND NOT EXISTS (SELECT FROM"
    " pg_depend e WHERE e.deptype = 'e' AND e.classid = 'pg_proc'::regclass AND e.objid = p.oid)"
    " AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.deptype = 'i' AND d.classid ="
    " 'pg_proc'::regclass AND d.objid = p.oid); SELECT coalesce(array_agg(o.oid), '{}') INTO opers"
    " FROM pg_operator o JOIN pg_namespace n ON n.oid = o.oprnamespace WHERE '\"pg_operator\" ' ||"
    " o.oid = ANY (named) AND {scope} AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.deptype ="
    " 'e' AND e.classid = 'pg_operator'::regclass AND e.objid = o.oid); SELECT"
    " coalesce(array_agg(n.oid), '{}') INTO spaces FROM pg_namespace n WHERE {user} AND (n.oid ="
    " ANY (spaces) AND {scope} OR EXISTS (SELECT FROM twsync.shape s WHERE s.job = {job} AND s.obj"
    " = 'n' || n.oid) AND n.oid = ANY (spaces) OR NOT EXISTS (SELECT FROM twsync.shape s WHERE"
    " s.job = {job} AND s.obj = 'n' || n.oid) AND n.oid IN (SELECT c.relnamespace FROM pg_class c"
    " WHERE c.oid = ANY (rels) UNION ALL SELECT t.typnamespace FROM pg_type t WHERE t.oid = ANY"
    " (types) UNION ALL SELECT p.pronamespace FROM pg_proc p WHERE p.oid = ANY (procs))); SELECT"
    " array_agg(k) INTO keys FROM (SELECT 'r' || unnest(rels) UNION SELECT 't' || unnest(types)"
    " UNION SELECT 'f' || unnest(procs) UNION SELECT 'n' || unnest(spaces) UNION SELECT 'o' ||"
    " unnest(opers) UNION SELECT s.obj FROM twsync.shape s JOIN (SELECT CASE split_part(u, ' ', 1)"
    " WHEN '\"pg_class\"' THEN 'r' WHEN '\"pg_type\"' THEN 't' WHEN '\"pg_proc\"' THEN 'f' WHEN"
    " '\"pg_namespace\"' THEN 'n' WHEN '\"pg_operator\"' THEN 'o' END || split_part(u, ' ', 2)"
    " FROM unnest(named) u) g(obj) ON s.job = {job} AND s.obj = g.obj) z(k); IF keys IS NULL THEN"
    " INSERT INTO twsync.ddl (job, tag, skipped, names) VALUES ({job}, tg_tag, 'not selected',"
    " to_jsonb(what_)); RETURN; END IF; why := CASE WHEN"
    " current_setting('session_replication_role') = 'replica' THEN 'session_replication_role is"
    " replica' WHEN NOT {ddl} THEN 'ddl = no' END; FOR item IN SELECT c.oid, c.relkind,"
    " c.relreplident, format('%I.%I', n.nspname, c.relname) AS fq FROM pg_class c JOIN"
    " pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY (rels) AND why IS NULL AND"
    " c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND NOT EXISTS (SELECT FROM"
    " pg_publication_rel m JOIN pg_publication u ON u.oid = m.prpubid WHERE m.prrelid = c.oid AND"
    " u.pubname = {publication}) LOOP IF {full} AND item.relreplident <> 'f' AND NOT EXISTS"
    " (SELECT FROM pg_attribute a WHERE a.attrelid = item.oid AND NOT a.attisdropped AND"
    " {generated} = 'v') THEN EXECUTE format('ALTER TABLE ONLY %s REPLICA IDENTITY FULL',"
    " item.fq); END IF; EXECUTE format('ALTER PUBLICATION %I ADD TABLE ONLY %s', {publication},"
    " item.fq); CONTINUE WHEN item.relkind = 'p'; EXECUTE format('SELECT EXISTS (SELECT FROM ONLY"
    " %s)', item.fq) INTO found_; IF found_ THEN copies_ := copies_ || jsonb_build_object('oid',"
    " item.oid, 'fq', item.fq, 'new', true); END IF; END LOOP; fresh := array(SELECT f FROM"
    " twsync.shape_of(rels, types, procs, spaces, opers) f WHERE f.part !~ '^[gw]' OR EXISTS"
    " (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE 'r' || c.oid ="
    " f.obj AND {scope})); FOR item IN SELECT DISTINCT c.oid, format('%I.%I', n.nspname,"
    " c.relname) AS fq FROM unnest(fresh) f JOIN pg_class c ON f.obj = 'r' || c.oid AND c.relkind"
    " = 'r' JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid ="
    " c.oid AND a.attnum = CASE WHEN f.part ~ '^c' THEN"
    " substr(f.part, 2)::int2 END JOIN twsync.shape k ON k.job = {job} AND k.obj = f.obj"
    " AND k.part = '' AND k.facet = '' LEFT JOIN twsync.shape o ON o.job = {job} AND o.obj = f.obj"
    " AND o.part = f.part AND o.facet = f.facet WHERE why IS NULL AND (f.facet = '' AND o.obj IS"
    " NULL AND NOT a.atthasmissing AND {generated} = '' AND (a.atthasdef OR a.attidentity <> '' OR"
    " EXISTS (SELECT FROM pg_type t WHERE t.oid = a.atttypid AND t.typtype = 'd' AND"
    " t.typdefaultbin IS NOT NULL)) OR f.facet = 'type' AND o.value <> f.value AND (query_ ~*"
    " '\\musing\\M' OR query_ ~* '(^|;)\\s*(do|select|call|with|insert|update|delete|execute)\\M'"
    " OR NOT EXISTS (SELECT FROM (SELECT to_regtype(regexp_replace(o.value, ' COLLATE .*',"
    " ''))::oid AS oid) b WHERE b.oid = a.atttypid UNION ALL SELECT FROM pg_cast x LEFT JOIN"
    " pg_proc p ON p.oid = x.castfunc WHERE x.castsource = to_regtype(regexp_replace(o.value, '"
    " COLLATE .*', '')) AND x.casttarget = a.atttypid AND (x.castmethod = 'b' OR p.provolatile ="
    " 'i')))) UNION SELECT c.oid, format('%I.%I', n.nspname, c.relname) FROM twsync.shape k JOIN"
    " pg_class c ON k.obj = 'r' || c.oid AND c.oid = ANY (rels) JOIN pg_namespace n ON n.oid ="
    " c.relnamespace WHERE k.job = {job} AND k.facet = 'rewritten' AND k.value::int & 4 <> 0 AND"
    " why IS NULL AND (query_ ~* '\\musing\\M' OR query_ ~*"
    " '(^|;)\\s*(do|select|call|with|insert|update|delete|execute)\\M') LOOP copies_"
    " := copies_ || jsonb_build_object('oid', item.oid, 'fq', item.fq, 'new', false); END"
    " LOOP;"
    /* Joins of hundreds of facets, whose number nobody can guess. */
    " nestloop := current_setting('enable_nestloop'); PERFORM set_config('enable_nestloop', CASE"
    " WHEN cardinality(fresh) > 200 THEN 'off' ELSE nestloop END, true); WITH o AS (SELECT * FROM"
    " twsync.shape s WHERE s.job = {job} AND s.obj = ANY (keys)), f"
    " AS (SELECT * FROM unnest(fresh)) SELECT jsonb_agg(to_jsonb(x) - 'pos' ORDER BY x.phase,"
    " x.pos, x.what) INTO changes_ FROM ( SELECT 'rename' AS op, f.phase, om.what AS old, fm.what,"
    " NULL AS value, format(f.rename_, o.name, f.name) AS make, NULL AS alter_, (SELECT"
    " substr(m.what, 7) FROM f m WHERE m.obj = f.obj AND m.part = '' AND m.facet = '' AND m.what ~"
    " '^table ') AS table_, CASE WHEN f.part ~ '^[ce]' THEN f.name END AS name, 0 AS pos, false AS"
    " fresh, o.obj, CASE WHEN f.part ~ '^[ce]' AND f.facet = '' THEN o.name END AS was FROM o"
    " JOIN f"
    " USING (obj, part, facet) JOIN o om ON om.obj = o.obj AND om.part = o.part AND om.facet = ''"
    " JOIN f fm ON fm.obj = f.obj AND fm.part = f.part AND fm.facet = '' WHERE o.name <> f.name"
    " AND (f.rename_ IS NOT NULL OR f.part ~ '^c') UNION ALL SELECT 'drop', o.phase, NULL, o.what,"
    " NULL, NULL, NULL, CASE WHEN m.what ~ '^table ' THEN substr(m.what, 7) END, NULL, 0, false,"
    " o.obj, CASE WHEN o.part ~ '^c' AND o.facet = '' THEN o.name END FROM o LEFT JOIN f m ON"
    " m.obj = o.obj AND m.part = '' AND m.facet = '' LEFT JOIN f ON f.obj = o.obj AND f.part ="
    " o.part AND f.facet = o.facet WHERE f.obj IS NULL AND o.what IS NOT NULL AND (o.part = '' AND"
    " o.facet = '' OR EXISTS (SELECT FROM f g WHERE g.obj = o.obj AND g.facet = '' AND g.part ="
    " CASE WHEN o.facet = '' THEN '' ELSE o.part END)) AND (o.part ~ '^c' AND o.facet = '' OR NOT"
    " EXISTS (SELECT FROM f h WHERE h.what = o.what)) UNION ALL SELECT 'set', f.phase, NULL,"
    " f.what, f.value, f.make, f.alter_, CASE WHEN m.what ~ '^table ' THEN substr(m.what, 7) END,"
    " v.name, CASE WHEN f.part ~ '^c' THEN substr(f.part, 2)::int ELSE 0 END, f.part = '' AND"
    " f.facet = '' AND o.obj IS NULL AND f.obj !~ '^n', f.obj, v.missing FROM f JOIN f m ON m.obj ="
    " f.obj AND m.part = '' AND m.facet = '' LEFT JOIN o ON o.obj = f.obj AND o.part = f.part AND"
    " o.facet = f.facet LEFT JOIN LATERAL (SELECT a.attname::text AS name, CASE WHEN f.facet = ''"
    " AND a.atthasmissing THEN (a.attmissingval::text::text[])[1] END AS missing FROM pg_attribute"
    " a JOIN pg_type y ON y.oid = a.atttypid WHERE a.attrelid = CASE WHEN f.obj ~ '^r' THEN"
    " substr(f.obj, 2)::oid END AND a.attnum = CASE WHEN f.part ~ '^c' THEN substr(f.part, 2)::int2"
    " END AND (f.facet = 'type' AND o.obj IS NOT NULL OR f.facet = '' AND o.obj IS NULL AND"
    " {generated} = '' AND a.attidentity = '' AND (a.atthasmissing OR NOT a.atthasdef AND y.typtype"
    " <> 'd'))) v ON true WHERE f.what IS NOT NULL AND (o.obj IS NULL OR o.value IS DISTINCT FROM"
    " f.value)) x; SELECT jsonb_agg(DISTINCT jsonb_build_array(left(z.obj, 1), substr(z.what,"
    " position('\"' in z.what)))) INTO names_ FROM (SELECT s.obj, s.what FROM twsync.shape s WHERE"
    " s.job = {job} AND s.obj = ANY (keys) AND s.part = '' AND s.facet = '' UNION ALL SELECT"
    " u.obj, u.what FROM unnest(fresh) u WHERE u.part = '' AND u.facet = '') z; DELETE FROM"
    " twsync.shape s WHERE s.job = {job} AND s.obj = ANY (keys) AND NOT EXISTS (SELECT FROM"
    " unnest(fresh) u WHERE u.obj = s.obj AND u.part = s.part AND u.facet = s.facet AND (u.phase,"
    " u.what, u.name, u.value) IS NOT DISTINCT FROM (s.phase, s.what, s.name, s.value)); INSERT"
    " INTO twsync.shape SELECT {job}, u.obj, u.part, u.facet, u.phase, u.what, u.name, u.value FROM"
    " unnest(fresh) u WHERE NOT EXISTS (SELECT FROM twsync.shape s WHERE s.job = {job} AND s.obj ="
    " u.obj AND s.part = u.part AND s.facet = u.facet);"
    " PERFORM set_config('enable_nestloop', nestloop, true); IF"
    " changes_ IS NULL AND copies_ = '[]' THEN RETURN; END IF; INSERT INTO twsync.ddl (job, tag,"
    " skipped, names, changes, copies) VALUES ({job}, tg_tag, why, names_, CASE WHEN why IS NULL"
    " THEN coalesce(changes_, '[]') END, CASE WHEN why IS NULL THEN copies_ END) RETURNING id INTO"
    " number; IF number % 100 = 0 THEN DELETE FROM twsync.ddl d WHERE d.job = {job} AND d.id <"
    " number - 10000; END IF; EXCEPTION WHEN OTHERS THEN"
    /* The task asks again what these tables are. */
    " INSERT INTO twsync.ddl (job, tag, names, copies, failed) SELECT {job}, tg_tag,"
    " to_jsonb(what_), (SELECT jsonb_agg(jsonb_build_object('oid', c.oid, 'fq', format('%I.%I',"
    " n.nspname, c.relname))) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE"
    " (c.oid = ANY (rels) OR '\"pg_class\" ' || c.oid = ANY (named)) AND c.relkind = 'r' AND"
    " c.relpersistence = 'p' AND {user} AND {match} AND {ddl} AND"
    " current_setting('session_replication_role') <> 'replica'), sqlerrm || ' (' || sqlstate ||"
    " ')'; END;"
    " END";

static const char ddl_tables_sql[] =
    "CREATE TABLE IF NOT EXISTS twsync.ddl (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
    " job text NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp(), tag text NOT NULL,"
    " names jsonb, changes jsonb, copies jsonb, skipped text, failed text);"
    "CREATE TABLE IF NOT EXISTS twsync.parked (task text, schema_name text, table_name text,"
    " reason text NOT NULL, wanted boolean NOT NULL DEFAULT false, tries int NOT NULL DEFAULT 0,"
    " ddl_id bigint,"
    " parked_at timestamptz NOT NULL DEFAULT clock_timestamp(),"
    " PRIMARY KEY (task, schema_name, table_name));"
    /* What of A's DDL is done on B, and where that was in B's WAL. */
    "CREATE TABLE IF NOT EXISTS twsync.ddl_done (job text, id bigint, lsn pg_lsn NOT NULL,"
    " PRIMARY KEY (job, id));"
    /* Objects of A that were not made on B, where something else has their name. */
    "CREATE TABLE IF NOT EXISTS twsync.barred (task text, obj text, PRIMARY KEY (task, obj));"
    "ALTER TABLE twsync.progress ADD COLUMN IF NOT EXISTS ready_lsn pg_lsn;"
    "ALTER TABLE twsync.progress ADD COLUMN IF NOT EXISTS objects text;"
    "ALTER TABLE twsync.copied ADD COLUMN IF NOT EXISTS seen text;"
    "ALTER TABLE twsync.parked ADD COLUMN IF NOT EXISTS look boolean NOT NULL DEFAULT false;"
    "REVOKE ALL ON twsync.ddl, twsync.ddl_done, twsync.parked, twsync.barred FROM PUBLIC";

/* A template with the job's words filled in. */
static const char *ddl_fill(struct arena *a, struct db *d, const struct job *job,
                            const char *template)
{
    struct buf match = {0};
    cat_match_job(&match, job);
    struct shape_word words[] = {
        {"{job}", sql_quoted_literal(a, job->name)},
        {"{ddl}", job->task[TW_FORWARD].ddl ? "true" : "false"},
        {"{full}", job->task[TW_FORWARD].identity == IDENTITY_FULL ? "true" : "false"},
        {"{publication}", sql_quoted_literal(a, slot_name(a, job, TW_FORWARD))},
        {"{user}", cat_user_schema},
        {"{match}", arena_fmt(a, "(%s)", buf_cstr(&match))},
        {"{scope}", shape_scope(a, job)},
        {"{excluded}", shape_excluded(a, job)},
    };
    buf_free(&match);
    return shape_fill(a, d->version, template, words, sizeof words / sizeof *words);
}

/* Is there an object of ours by this name, made of this text? */
static status MUST_CHECK ddl_is_there(struct db *d, struct arena *a, const char *function,
                                      const char *text, const char **mark, bool *there)
{
    const char *found = NULL, *values[] = {function};
    *mark = arena_fmt(a, "twsync %016" PRIx64, sum_bytes(0, text, strlen(text)));
    TRY(db_value(d, a, "look for a function",
                 "SELECT obj_description(to_regprocedure($1)::oid, 'pg_proc')", 1, values, &found));
    *there = found && str_is(found, *mark);
    return TW_OK;
}

/* What either side needs: the reading of shapes, and the tables. */
static status MUST_CHECK ddl_setup(struct db *d)
{
    static const char name[] = "twsync.shape_of(oid[], oid[], oid[], oid[], oid[])";
    struct arena a = {0};
    const char *mark, *text = arena_fmt(&a, "%s; %s%s%s", ddl_tables_sql, ddl_shape_head_sql,
                                        ddl_shape_sql, ddl_shape_tail_sql);
    const char *sql = shape_fill(&a, d->version, text, NULL, 0);
    bool there;
    status s = ddl_is_there(d, &a, name, sql, &mark, &there);
    if (s == TW_OK && !there)
        s = db_exec(d, "set up the reading of shapes",
                    arena_fmt(&a, "BEGIN; %s; COMMENT ON FUNCTION %s IS '%s'; COMMIT", sql, name,
                              mark));
    arena_free(&a);
    return s;
}

/* What the job's objects are like now.  Tables go to shape_of by hundreds: its time grows with the
 * square of their number. */
static const char ddl_learn_sql[] =
    "DELETE FROM twsync.shape WHERE job = {job};"
    "WITH RECURSIVE t(oid) AS (SELECT c.oid FROM pg_class c JOIN pg_namespace n"
    "  ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p'"
    "  AND {user} AND {match}" SHAPE_OWN("pg_class", "c.oid")
    " UNION SELECT i.inhrelid FROM t JOIN pg_inherits i ON i.inhparent = t.oid JOIN pg_class c"
    "  ON c.oid = i.inhrelid AND c.relispartition AND c.relkind IN ('r', 'p')),"
    " o(oid) AS (SELECT oid FROM t UNION SELECT c.oid FROM pg_class c JOIN pg_namespace n"
    "  ON n.oid = c.relnamespace WHERE c.relkind IN ('v', 'm', 'S') AND c.relpersistence = 'p'"
    "  AND {scope} AND NOT {excluded}"
    " UNION SELECT d.objid FROM pg_depend d JOIN t ON t.oid = d.refobjid"
    "  WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass"
    "  AND d.deptype = 'a'),"
    " u(oid) AS (SELECT a.atttypid FROM pg_attribute a JOIN t ON t.oid = a.attrelid"
    "  WHERE a.attnum > 0 AND NOT a.attisdropped AND a.atttypid >= 16384"
    " UNION SELECT e.oid FROM u JOIN pg_type y ON y.oid = u.oid CROSS JOIN LATERAL"
    "  (SELECT y.typelem UNION ALL SELECT y.typbasetype"
    "   UNION ALL SELECT r.rngsubtype FROM pg_range r WHERE r.rngtypid = y.oid"
    "   UNION ALL SELECT a.atttypid FROM pg_attribute a"
    "   WHERE a.attrelid = y.typrelid AND a.attnum > 0 AND NOT a.attisdropped) e(oid)"
    "  WHERE e.oid >= 16384),"
    " y(oid) AS (SELECT y.oid FROM pg_type y JOIN pg_namespace n ON n.oid = y.typnamespace"
    "  LEFT JOIN pg_class c ON c.oid = y.typrelid WHERE (y.typtype IN ('d', 'e', 'r') OR"
    "  c.relkind = 'c') AND ({scope} OR y.oid IN (SELECT oid FROM u))"
    SHAPE_OWN("pg_type", "y.oid") ")"
    " INSERT INTO twsync.shape SELECT {job}, f.obj, f.part, f.facet, f.phase, f.what, f.name,"
    " f.value FROM (SELECT array_agg(p.oid), array[]::oid[], array[]::oid[], array[]::oid[],"
    " array[]::oid[] FROM (SELECT o.oid, (row_number() OVER () - 1) / 100 FROM o) p(oid, piece)"
    " GROUP BY p.piece UNION ALL SELECT array[]::oid[], array(SELECT oid FROM y),"
    " array(SELECT p.oid FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace"
    "  WHERE {scope}" SHAPE_OWN("pg_proc", "p.oid") "),"
    " array(SELECT n.oid FROM pg_namespace n WHERE {user} AND ({scope} OR n.oid IN (SELECT"
    "  c.relnamespace FROM o JOIN pg_class c ON c.oid = o.oid))),"
    " array(SELECT p.oid FROM pg_operator p JOIN pg_namespace n ON n.oid = p.oprnamespace"
    "  WHERE {scope}" SHAPE_OWN("pg_operator", "p.oid") ")) q(rels, types, procs, spaces, opers)"
    " CROSS JOIN LATERAL twsync.shape_of(q.rels, q.types, q.procs, q.spaces, q.opers) f"
    " WHERE f.part !~ '^[gw]' OR EXISTS (SELECT FROM pg_class c JOIN pg_namespace n"
    "  ON n.oid = c.relnamespace WHERE 'r' || c.oid = f.obj AND {scope})";

/* The event triggers; ENABLE ALWAYS, to see what is left out under session_replication_role too. */
static const char ddl_triggers_sql[] =
    "DROP EVENT TRIGGER IF EXISTS \"twsync_%1$s_ddl\"; DROP EVENT TRIGGER IF EXISTS"
    " \"twsync_%1$s_drop\"; DROP EVENT TRIGGER IF EXISTS \"twsync_%1$s_rewrite\";"
    "CREATE EVENT TRIGGER \"twsync_%1$s_ddl\" ON ddl_command_end EXECUTE FUNCTION"
    " twsync.\"ddl_%1$s\"(); ALTER EVENT TRIGGER \"twsync_%1$s_ddl\" ENABLE ALWAYS;"
    "CREATE EVENT TRIGGER \"twsync_%1$s_drop\" ON sql_drop EXECUTE FUNCTION"
    " twsync.\"ddl_%1$s\"(); ALTER EVENT TRIGGER \"twsync_%1$s_drop\" ENABLE ALWAYS;"
    "CREATE EVENT TRIGGER \"twsync_%1$s_rewrite\" ON table_rewrite EXECUTE FUNCTION"
    " twsync.\"ddl_%1$s\"(); ALTER EVENT TRIGGER \"twsync_%1$s_rewrite\" ENABLE ALWAYS";

static const char ddl_triggers_there_sql[] =
    "SELECT count(*) = 3 FROM pg_event_trigger WHERE evtenabled = 'A' AND evtname IN"
    " ('twsync_' || $1 || '_ddl', 'twsync_' || $1 || '_drop', 'twsync_' || $1 || '_rewrite')";

/* The source's part: the event triggers and what they know.  *on false: this role may not create
 * event triggers, and only what Relation messages tell is carried. */
static status MUST_CHECK ddl_install(struct db *from, const struct job *job, bool *on)
{
    struct arena a = {0};
    const char *mark, *triggers = NULL, *publication = slot_name(&a, job, TW_FORWARD);
    const char *function = arena_fmt(&a, "twsync.\"ddl_%s\"()", job->name);
    const char *body = ddl_fill(&a, from, job, ddl_capture_sql);
    const char *values[] = {job->name}, *published = NULL;
    bool there = false;
    *on = true;
    status s = ddl_setup(from);
    if (s == TW_OK) s = ddl_is_there(from, &a, function, body, &mark, &there);
    if (s == TW_OK)
        s = db_value(from, &a, "look for event triggers", ddl_triggers_there_sql, 1, values,
                     &triggers);
    bool complete = there && triggers && *triggers == 't';
    if (s == TW_OK && !complete) {
        s = db_exec(from, "create the event triggers", arena_fmt(&a,
                    "BEGIN; CREATE OR REPLACE FUNCTION %s RETURNS event_trigger LANGUAGE plpgsql"
                    " SECURITY DEFINER" DDL_SETTINGS " AS $twsync$%s$twsync$;"
                    "REVOKE ALL ON FUNCTION %s FROM PUBLIC; COMMENT ON FUNCTION %s IS '%s';",
                    function, body, function, function, mark));
        if (s == TW_OK)
            s = db_exec(from, "create the event triggers",
                        arena_fmt(&a, ddl_triggers_sql, job->name));
        if (s == TW_OK)
            s = db_exec(from, "read the shapes", ddl_fill(&a, from, job, ddl_learn_sql));
        if (s == TW_OK) s = db_exec(from, "commit", "COMMIT");
        if (s != TW_OK && str_is(from->e->sqlstate, "42501")) {
            *on = false;
            error_clear(from->e);
            s = db_exec(from, "roll back", "ROLLBACK");
        }
    }
    values[0] = publication;
    if (s == TW_OK)
        s = db_value(from, &a, "read the publication", "SELECT 1 FROM pg_publication u WHERE"
                     " u.pubname = $1 AND NOT EXISTS (SELECT FROM pg_publication_rel m WHERE"
                     " m.prpubid = u.oid AND m.prrelid = 'twsync.ddl'::regclass)", 1, values,
                     &published);
    if (s == TW_OK && published)
        s = db_exec(from, "publish the DDL",
                    arena_fmt(&a, "ALTER PUBLICATION \"%s\" ADD TABLE ONLY twsync.ddl",
                              publication));
    arena_free(&a);
    return s;
}

/* What A has renamed and dropped, in order, that B had not when it wrote what the reverse task
 * carries.  obj: by what A knows the table or the type, which stays the same. */
static const char ddl_steps_sql[] =
    "SELECT c->>'obj', CASE WHEN c->>'op' <> 'set' THEN c->>'op' WHEN c->>'what' ~ '^column ' THEN"
    " 'add' WHEN EXISTS (SELECT FROM jsonb_array_elements(d.copies) k WHERE 'r' || (k->>'oid') ="
    " c->>'obj') THEN 'using' ELSE 'type' END, c->>'what' ~ '^table ',"
    " substr(coalesce(c->>'old', c->>'what'), 7), substr(c->>'what', 7), c->>'was', c->>'name'"
    " FROM twsync.ddl d, jsonb_array_elements(d.changes) WITH ORDINALITY x(c, n)"
    " WHERE d.job = $1 AND d.changes IS NOT NULL AND d.id <> ALL ($2::bigint[])"
    " AND CASE WHEN c->>'op' = 'set' THEN c->>'name' IS NOT NULL ELSE c->>'what' ~ '^table ' OR"
    "  c->>'was' IS NOT NULL END ORDER BY d.id, x.n";

struct ddl_step {
    char op;                            /* 'r'ename, 'd'rop, 'a'dd, 't'ype, 'u'sing */
    const char *obj;
    bool of_table;
    const char *old_table, *new_table;  /* quoted */
    const char *was, *name;             /* of a column, or of a value of an enum; of one that was
                                         * added `was` is what older rows hold */
};

/* b: where the row was written, at `at`; a: where it goes to. */
static status MUST_CHECK ddl_steps(struct db *b, struct db *a, struct arena *arena,
                                   const struct job *job, lsn_t at, struct ddl_step **steps, int *n)
{
    const char *values[] = {job->name, lsn_text(arena, at)}, *done;
    PGresult *r;
    TRY(db_value(b, arena, "read what is done", "SELECT coalesce(array_agg(id), '{}') FROM"
                 " twsync.ddl_done WHERE job = $1 AND lsn < $2::pg_lsn", 2, values, &done));
    values[1] = done;
    TRY(db_query(a, arena, "read what was renamed", ddl_steps_sql, 2, values, &r));
    *n = PQntuples(r);
    *steps = arena_array(arena, struct ddl_step, *n + 1);
    for (int i = 0; i < *n; i++)
        (*steps)[i] = (struct ddl_step){
            .obj = db_cell(r, i, 0), .op = *db_cell(r, i, 1),
            .of_table = db_cell_true(r, i, 2), .old_table = db_cell(r, i, 3),
            .new_table = db_cell(r, i, 4), .was = db_cell(r, i, 5), .name = db_cell(r, i, 6)};
    return TW_OK;
}

/* What has become of a table: *table its name, NULL if it was dropped.  *obj NULL: no step is about
 * it. */
static void ddl_walk_table(const struct ddl_step *steps, int n, const char **table,
                           const char **obj)
{
    *obj = NULL;
    for (int i = 0; i < n && *table; i++) {
        const struct ddl_step *x = &steps[i];
        if (!x->of_table || !strchr("rd", x->op)) continue;
        if (!*obj && str_is(x->old_table, *table)) *obj = x->obj;
        if (*obj && str_is(*obj, x->obj)) *table = x->op == 'd' ? NULL : x->new_table;
    }
}

/* Of one of its columns, or of a value of a type. */
static const char *ddl_walk_part(const struct ddl_step *steps, int n, const char *obj,
                                 const char *name)
{
    for (int i = 0; i < n && name; i++) {
        const struct ddl_step *x = &steps[i];
        if (!x->of_table && strchr("rd", x->op) && str_is(x->obj, obj) && str_is(x->was, name))
            name = x->op == 'd' ? NULL : x->name;
    }
    return name;
}

/* ---- an event ---- */

/* A row of twsync.ddl, as it came. */
struct ddl_event {
    const char *id, *tag, *names, *changes, *copies, *skipped, *failed;
};

struct ddl_change {
    char op;                 /* 'r'ename, 'd'rop, 's'et */
    int phase;
    const char *old, *what;  /* old: of a rename, before it; as B calls it */
    const char *a_old, *a_what;  /* as A does: so it is noted and told */
    const char *value, *make, *alter;
    const char *table;       /* quoted, NULL if it belongs to none; as A calls it */
    bool done;
    bool parked;             /* its table: what fails now is mended with it */
    bool fresh;              /* new on the source: on the target it is by chance */
    const char *obj;         /* by what the source knows the object */
    bool barred;             /* so it is, and it is another */
    bool was_barred;         /* its object, earlier: what bears its name on the target is not it */
    bool other_type;         /* its type on the target is another by the same name */
    bool reread;             /* by its new name B has a column that it had not, or the reverse */
    struct tw_error why;     /* not done, because */
};

/* A facet the target has. */
struct ddl_have {
    const char *what, *value, *unmake;
};

struct ddl_work {
    const struct job *job;
    struct db *to;
    struct arena *arena;
    const char *task;
    lsn_t commit_lsn;         /* of the source's transaction */
    const struct ddl_event *event;
    struct ddl_change *changes;
    int n;
    struct ddl_have *have;
    int nhave;
    const char **copies;      /* tables whose rows the stream does not bring: quoted */
    int ncopies;
    const char *publication;  /* of the way back, which new tables join; NULL: none yet */
    int done;                 /* statements */
};

/* A parked table gets all that it lacks when it is copied again. */
static const char ddl_changes_sql[] =
    "SELECT c.op, c.phase, c.old, c.what, c.value, c.make, c.alter_, c.table_,"
    " EXISTS (SELECT FROM twsync.parked k WHERE k.task = $2"
    "  AND parse_ident(c.table_) = ARRAY[k.schema_name, k.table_name]),"
    /* What was made on the source before the job was ready may be on the target by the copy. */
    " c.fresh AND $3::pg_lsn > (SELECT p.ready_lsn FROM twsync.progress p WHERE p.task = $2),"
    /* A type that was not made: what B has by its name is another. */
    " c.op = 'set' AND c.what ~ '^type of column ' AND EXISTS (SELECT FROM twsync.parked k"
    "  WHERE k.task = $2 AND position(format('\"%s\".\"%s\"', replace(k.schema_name, '\"', '\"\"'),"
    "   replace(k.table_name, '\"', '\"\"')) IN c.value) = 1),"
    " c.obj, EXISTS (SELECT FROM twsync.barred b WHERE b.task = $2 AND b.obj = c.obj)"
    " FROM jsonb_to_recordset($1::jsonb) c(op text, phase int, old text, what text, value text,"
    " make text, alter_ text, table_ text, fresh boolean,"
    " obj text)";

/* What the target has of the objects that the event names. */
static const char ddl_have_sql[] =
    "SELECT f.what, f.value, f.unmake FROM twsync.shape_named($1::jsonb) f WHERE f.what IS NOT"
    " NULL";

static int ddl_have_order(const void *x, const void *y)
{
    return strcmp(((const struct ddl_have *) x)->what, ((const struct ddl_have *) y)->what);
}

/* The event's objects as B calls them. */
static status MUST_CHECK ddl_names(struct ddl_work *w, const char **names)
{
    struct buf b = {0};
    PGresult *r;
    *names = w->event->names;
    if (!job_maps(w->job) || !*names) return TW_OK;
    TRY(db_query(w->to, w->arena, "read names", "SELECT x->>0, x->>1 FROM"
                 " jsonb_array_elements($1::jsonb) x WHERE jsonb_typeof(x) = 'array'", 1, names,
                 &r));
    for (int i = 0; i < PQntuples(r); i++) {
        const char *kind = PQgetvalue(r, i, 0), *name = PQgetvalue(r, i, 1);
        bool lacks;
        if (*kind == 'n') name = arena_fmt(w->arena, "schema %s", name);
        name = name_sql(w->job, w->arena, NULL, name, &lacks);
        buf_str(&b, i ? ", [" : "[[");
        json_str(&b, kind);
        buf_str(&b, ", ");
        json_str(&b, *kind == 'n' ? name + strlen("schema ") : name);
        buf_char(&b, ']');
    }
    buf_str(&b, b.len ? "]" : "[]");
    *names = arena_str(w->arena, b.data);
    buf_free(&b);
    return TW_OK;
}

static status MUST_CHECK ddl_look(struct ddl_work *w)
{
    const char *names;
    PGresult *r;
    TRY(ddl_names(w, &names));
    TRY(db_query(w->to, w->arena, "read what is there", ddl_have_sql, 1, &names, &r));
    w->nhave = PQntuples(r);
    w->have = arena_array(w->arena, struct ddl_have, w->nhave + 1);
    for (int i = 0; i < w->nhave; i++)
        w->have[i] = (struct ddl_have){db_cell(r, i, 0), db_cell(r, i, 1), db_cell(r, i, 2)};
    qsort(w->have, (size_t) w->nhave, sizeof *w->have, ddl_have_order);
    return TW_OK;
}

static struct ddl_have *ddl_find(const struct ddl_work *w, const char *what)
{
    struct ddl_have key = {.what = what};
    return bsearch(&key, w->have, (size_t) w->nhave, sizeof key, ddl_have_order);
}

enum { DDL_TRIES = 5 };

/* One statement, which may be several, in a savepoint.  Writers are never held up by our waiting
 * for longer than two seconds.  *done false: the server refused it, and e says why. */
static status MUST_CHECK ddl_exec(struct ddl_work *w, const char *sql, bool *done)
{
    const char *text = arena_fmt(w->arena, "SAVEPOINT tw_ddl; SET LOCAL lock_timeout = '2s';"
                                           " %s; SET LOCAL lock_timeout = 0;"
                                           " RELEASE SAVEPOINT tw_ddl", sql);
    struct tw_error why;
    for (int i = 0;; i++) {
        status s = db_exec(w->to, "follow the source's DDL", text);
        *done = s == TW_OK;
        if (*done) break;
        why = *w->to->e;
        if (PQstatus(w->to->pg) != CONNECTION_OK || s == TW_ESTOP) return s;
        error_clear(w->to->e);
        TRY(db_exec(w->to, "roll back to a savepoint", "ROLLBACK TO SAVEPOINT tw_ddl"));
        bool locked = str_is(why.sqlstate, "55P03");
        *w->to->e = why;
        if (!locked && s != TW_ESERVER) return s;
        if (!locked) return TW_OK;
        if (i + 1 == DDL_TRIES) return s;
        error_clear(w->to->e);
        log_info("locked on %c, trying again: %s", w->to->node->letter, sql);
        for (int k = 0; k < 10; k++) {
            os_sleep_ms(50);
            TRY(db_tick(w->to));
        }
    }
    w->done++;
    log_info("done on %c as on the source: %s", w->to->node->letter, sql);
    return TW_OK;
}

/* Is it a column, or something of one? */
static bool ddl_of_column(const char *what)
{
    const char *name = strchr(what, '"');
    return name && name - what >= 7 && !strncmp(name - 7, "column ", 7);
}

/* The last identifier of a text in which all are quoted. */
static const char *ddl_last_name(const char *text)
{
    const char *last = NULL;
    for (const char *c = text; *c; c++) {
        if (*c != '"') continue;
        last = c++;
        while (*c && !(c[0] == '"' && c[1] != '"')) c += c[0] == '"' ? 2 : 1;
        if (!*c) break;
    }
    return last;
}

/* A table or a schema has another name: the statement's last word is that on B. */
static void ddl_name_rename(struct ddl_work *w, struct ddl_change *c)
{
    bool whole = !strncmp(c->what, "schema ", 7) || !strncmp(c->what, "table ", 6);
    const char *at = c->make ? ddl_last_name(c->make) : NULL, *name = ddl_last_name(c->what);
    if (!whole || !at || !name || strncmp(at - strlen("TO "), "TO ", 3)) return;
    c->make = arena_fmt(w->arena, "%.*s%s", (int) (at - c->make), c->make, name);
    c->done = str_is(c->old, c->what);
}

/* The changes as they are to be made on B; those of columns that B does not have are none. */
static void ddl_name(struct ddl_work *w)
{
    for (int i = 0; i < w->n; i++) {
        struct ddl_change *c = &w->changes[i];
        const char *of = c->table ? c->table : c->what;
        const char **const texts[] = {&c->what, &c->make, &c->alter, &c->old, &c->value};
        c->a_what = c->what;
        c->a_old = c->old;
        if (!job_maps(w->job)) continue;
        bool lacks[5];
        for (int k = 0; k < 5; k++) {
            *texts[k] = name_sql(w->job, w->arena, of, *texts[k], &lacks[k]);
            if (k < 3 && lacks[k]) c->done = true;
        }
        c->reread = c->op == 'r' && !strncmp(c->what, "column ", 7) && lacks[0] != lacks[3];
        if (c->op == 'r') ddl_name_rename(w, c);
    }
}

static status MUST_CHECK ddl_read(struct ddl_work *w)
{
    PGresult *r;
    const char *values[] = {w->event->changes, w->task, lsn_text(w->arena, w->commit_lsn)};
    TRY(db_query(w->to, w->arena, "read the changes", ddl_changes_sql, 3, values, &r));
    w->n = PQntuples(r);
    w->changes = arena_array(w->arena, struct ddl_change, w->n + 1);
    for (int i = 0; i < w->n; i++)
        w->changes[i] = (struct ddl_change){
            .op = *PQgetvalue(r, i, 0), .phase = (int) db_cell_int(r, i, 1),
            .other_type = db_cell_true(r, i, 10), .obj = db_cell(r, i, 11),
            .was_barred = db_cell_true(r, i, 12),
            .old = db_cell(r, i, 2), .what = db_cell(r, i, 3), .value = db_cell(r, i, 4),
            .make = db_cell(r, i, 5), .alter = db_cell(r, i, 6), .table = db_cell(r, i, 7),
            .parked = db_cell_true(r, i, 8), .fresh = db_cell_true(r, i, 9)};
    ddl_name(w);
    TRY(db_query(w->to, w->arena, "read the tables to copy",
                 "SELECT c.fq FROM jsonb_to_recordset($1::jsonb) c(fq text)", 1,
                 &w->event->copies, &r));
    w->ncopies = PQntuples(r);
    w->copies = arena_array(w->arena, const char *, w->ncopies + 1);
    for (int i = 0; i < w->ncopies; i++) w->copies[i] = db_cell(r, i, 0);
    return TW_OK;
}

/* A type that needs USING.  A table that is copied again is empty by now: what it held need not be
 * converted, and nothing can be lost by it. */
static status MUST_CHECK ddl_retype(struct ddl_work *w, struct ddl_change *c, const char *sql)
{
    static const char head[] = "type of column ";
    const char *name = c->what + strlen(head), *rows;
    bool lacks;
    const char *table = name_sql(w->job, w->arena, NULL, c->table, &lacks);
    size_t n = strlen(name), of = strlen(" of ") + strlen(table);
    if (n <= of || strstr(c->value, " COLLATE ")) return TW_OK;
    struct tw_error why = *w->to->e;
    error_clear(w->to->e);
    TRY(db_value(w->to, w->arena, "look for rows",
                 arena_fmt(w->arena, "SELECT 1 FROM %s LIMIT 1", table), 0, NULL, &rows));
    if (!rows)
        return ddl_exec(w, arena_fmt(w->arena, "%s USING %.*s::text::%s", sql, (int) (n - of),
                                     name, c->value), &c->done);
    *w->to->e = why;
    return TW_OK;
}

/* A default that changes with its column's type stands in the way of the new type. */
static status MUST_CHECK ddl_clear_default(struct ddl_work *w, const char *type_what)
{
    const char *what = arena_fmt(w->arena, "default%s", type_what + strlen("type"));
    struct ddl_have *have = ddl_find(w, what);
    bool done;
    for (int i = 0; have && have->value && i < w->n; i++) {
        if (!str_is(w->changes[i].what, what)) continue;
        TRY(ddl_exec(w, have->unmake, &done));
        if (!done) error_clear(w->to->e);
        have->value = NULL;
    }
    return TW_OK;
}

/* The old one goes, the new one comes, and has the comment of the old. */
static const char *ddl_remake(const struct ddl_work *w, const struct ddl_change *c,
                              const struct ddl_have *have)
{
    const char *what = arena_fmt(w->arena, "comment on %s", c->what);
    const struct ddl_have *comment = ddl_find(w, what);
    const char *sql = arena_fmt(w->arena, "%s; %s", have->unmake, c->make);
    size_t none = strlen("NULL");
    if (!comment || !comment->value || !comment->unmake || strlen(comment->unmake) < none)
        return sql;
    return arena_fmt(w->arena, "%s; %.*s%s", sql, (int) (strlen(comment->unmake) - none),
                     comment->unmake, comment->value);
}

/* The statement that brings the target nearer; NULL if there is nothing to do. */
static const char *ddl_statement(const struct ddl_work *w, const struct ddl_change *c)
{
    const struct ddl_have *have = ddl_find(w, c->what);
    switch (c->op) {
    case 'r': return ddl_find(w, c->old) && !have ? c->make : NULL;
    case 'd': return have ? have->unmake : NULL;
    default: break;
    }
    if (!have || !have->value) return c->make;
    if (c->value && str_is(have->value, c->value)) return NULL;
    if (c->alter) return c->alter;
    if (!strncmp(c->what, "index ", 6) &&  /* a partition's goes with its parent's */
        ddl_find(w, arena_fmt(w->arena, "parent of %s", c->what)))
        return NULL;
    return c->make && have->unmake ? ddl_remake(w, c, have) : NULL;
}

/* What is known of a table by its name, under its new name. */
static status MUST_CHECK ddl_rename_notes(struct ddl_work *w, const struct ddl_change *c)
{
    const char *values[] = {c->a_old + strlen("table "), c->a_what + strlen("table ")};
    TRY(db_exec_params(w->to, "forget a name", "DELETE FROM twsync.copied WHERE"
                       " ARRAY[schema_name, table_name] = parse_ident($2)"
                       " AND parse_ident($1) IS NOT NULL", 2, values));
    TRY(db_exec_params(w->to, "note a new name", "UPDATE twsync.copied SET schema_name = n[1],"
                       " table_name = n[2] FROM parse_ident($2) n WHERE"
                       " ARRAY[schema_name, table_name] = parse_ident($1)", 2, values));
    return db_exec_params(w->to, "note a new name", "UPDATE twsync.parked SET schema_name = n[1],"
                          " table_name = n[2] FROM parse_ident($2) n WHERE"
                          " ARRAY[schema_name, table_name] = parse_ident($1)", 2, values);
}

/* Is it an object of one of these kinds, and not something of one?  Its name, or NULL. */
static const char *ddl_named(const struct ddl_change *c, const char *const *kinds, size_t n)
{
    size_t len = strcspn(c->a_what, "\"");
    for (size_t i = 0; i < n; i++)
        if (c->a_what[len] && len == strlen(kinds[i]) + 1 &&
            !strncmp(c->a_what, kinds[i], len - 1))
            return c->a_what + len;
    return NULL;
}

/* The name of a table, or of a type; NULL if it is something else. */
static const char *ddl_whole(const struct ddl_change *c)
{
    static const char *const kinds[] = {"table", "type", "domain"};
    return ddl_named(c, kinds, sizeof kinds / sizeof *kinds);
}

static bool ddl_is_object(const struct ddl_change *c)
{
    static const char *const kinds[] = {"table", "type", "domain", "view", "materialized view",
                                        "sequence", "function", "procedure", "aggregate",
                                        "routine", "operator", "schema"};
    return ddl_named(c, kinds, sizeof kinds / sizeof *kinds);
}

/* A table that is gone is not parked. */
static status MUST_CHECK ddl_forget(struct ddl_work *w, const struct ddl_change *c)
{
    const char *table = ddl_whole(c);
    if (c->op != 'd' || !table) return TW_OK;
    return db_exec_params(w->to, "forget a table", "WITH p AS (DELETE FROM twsync.parked WHERE"
                          " ARRAY[schema_name, table_name] = parse_ident($1)) DELETE FROM"
                          " twsync.copied WHERE ARRAY[schema_name, table_name] = parse_ident($1)",
                          1, &table);
}

/* A new table joins the publication of the way back. */
static status MUST_CHECK ddl_join(struct ddl_work *w, const struct ddl_change *c)
{
    bool joined;
    if (!w->publication || c->op != 's' || strncmp(c->what, "table ", 6)) return TW_OK;
    TRY(ddl_exec(w, arena_fmt(w->arena, "ALTER PUBLICATION \"%s\" ADD TABLE ONLY %s",
                              w->publication, c->what + 6), &joined));
    error_clear(w->to->e);
    return TW_OK;
}

static status MUST_CHECK ddl_do(struct ddl_work *w, struct ddl_change *c)
{
    if (c->op == 'r' && !strncmp(c->what, "table ", 6)) TRY(ddl_rename_notes(w, c));
    bool is_type = c->op == 's' && !strncmp(c->what, "type of column ", 15);
    const char *sql = ddl_statement(w, c);
    if (!sql && c->op == 'd' && ddl_find(w, c->what)) return TW_OK;  /* goes with another */
    if (!sql) {
        c->done = true;
        TRY(ddl_forget(w, c));
        return c->fresh ? ddl_join(w, c) : TW_OK;
    }
    if (is_type) TRY(ddl_clear_default(w, c->what));
    TRY(ddl_exec(w, sql, &c->done));
    if (!c->done && is_type) TRY(ddl_retype(w, c, sql));
    if (!c->done && c->op == 's' && c->alter && c->make) {  /* OR REPLACE has its limits */
        struct ddl_have *have = ddl_find(w, c->what);
        if (have && have->unmake) {
            error_clear(w->to->e);
            TRY(ddl_exec(w, ddl_remake(w, c, have), &c->done));
        }
    }
    c->why = *w->to->e;
    error_clear(w->to->e);
    if (!strncmp(c->what, "validity of constraint ", 23) && str_is(c->why.sqlstate, "42704") &&
        job_maps(w->job))
        c->done = true;  /* of a column that is left out */
    if (!c->done) {  /* it may have come with another */
        TRY(ddl_look(w));
        c->done = !ddl_statement(w, c);
    }
    if (c->done) TRY(ddl_forget(w, c));
    return c->done ? ddl_join(w, c) : TW_OK;
}

/* All changes of one kind that are not done, forwards or backwards, again and again while that gets
 * some of them done: one may need another that comes later. */
static status MUST_CHECK ddl_pass(struct ddl_work *w, char op)
{
    bool again = true;
    while (again) {
        bool any = false, left = false;
        int made = -1;
        for (int k = 0; k < w->n; k++) {
            struct ddl_change *c = &w->changes[op == 'd' ? w->n - 1 - k : k];
            if (c->op != op || c->done || c->barred) continue;
            if (made >= 0 && c->phase > made) {  /* what was made has facets of its own */
                TRY(ddl_look(w));
                made = -1;
            }
            int before = w->done;
            TRY(ddl_do(w, c));
            any = any || c->done;
            left = left || !c->done;
            if (op == 's' && w->done > before && c->make) made = c->phase;
            if (op == 'r' && w->done > before) TRY(ddl_look(w));
        }
        if (made >= 0) TRY(ddl_look(w));
        if (made < 0 && op == 'd' && any) TRY(ddl_look(w));
        again = any && left;
    }
    return TW_OK;
}

/* Is y of the object that `whole` is?  A change of a table says so; others end with the name. */
static bool ddl_same_object(const struct ddl_change *whole, const struct ddl_change *y)
{
    const char *name = strchr(whole->what, '"');
    size_t len = strlen(y->what), n = name ? strlen(name) : 0;
    if (whole->table && y->table) return str_is(whole->table, y->table);
    return whole == y || (n && len > n && str_is(y->what + len - n, name));
}

/* Columns of a type that is another on the target. */
static void ddl_bar_types(struct ddl_work *w)
{
    for (int i = 0; i < w->n; i++) {
        struct ddl_change *c = &w->changes[i];
        if (!c->other_type) continue;
        c->barred = true;
        (void) fail(&c->why, TW_ESCHEMA, "type %s is another one on %c", c->value,
                    w->to->node->letter);
    }
}

/* What was not made: the target's own by its name is left alone, whatever the source does. */
static status MUST_CHECK ddl_leave(struct ddl_work *w)
{
    for (int i = 0; i < w->n; i++) {
        struct ddl_change *c = &w->changes[i];
        const char *values[] = {w->task, c->obj};
        if (!c->was_barred) continue;
        c->done = true;
        if (!ddl_is_object(c)) continue;
        if (c->op == 'r' && !strncmp(c->what, "table ", 6)) TRY(ddl_rename_notes(w, c));
        TRY(ddl_forget(w, c));
        if (c->op == 'd')
            TRY(db_exec_params(w->to, "forget an object", "DELETE FROM twsync.barred WHERE task ="
                               " $1 AND obj = $2", 2, values));
    }
    return TW_OK;
}

/* What is new on the source and was on the target before, otherwise: not ours to change. */
static status MUST_CHECK ddl_bar(struct ddl_work *w)
{
    for (int i = 0; i < w->n; i++) {
        struct ddl_change *c = &w->changes[i];
        bool other = false;
        if (!c->fresh || c->done || !ddl_find(w, c->what)) continue;
        for (int k = 0; k < w->n; k++) {
            const struct ddl_change *y = &w->changes[k];
            if (y->op != 's' || !ddl_same_object(c, y) || !y->value) continue;
            const struct ddl_have *have = ddl_find(w, y->what);
            bool same = have && have->value && str_is(have->value, y->value);
            other = other || (!same && strncmp(y->what, "replica identity", 16));
        }
        if (!other) continue;
        const char *values[] = {w->task, c->obj};
        TRY(db_exec_params(w->to, "note an object", "INSERT INTO twsync.barred VALUES ($1, $2)"
                           " ON CONFLICT DO NOTHING", 2, values));
        for (int k = 0; k < w->n; k++)
            if (ddl_same_object(c, &w->changes[k])) w->changes[k].barred = true;
        (void) fail(&c->why, TW_ESCHEMA, "there is another one on %c already",
                    w->to->node->letter);
    }
    return TW_OK;
}

/* Up to what must come before tables are emptied. */
static status MUST_CHECK ddl_begin(struct ddl_work *w)
{
    TRY(db_exec(w->to, "set up the session", "SET LOCAL check_function_bodies = off"));
    TRY(ddl_read(w));
    TRY(ddl_look(w));
    TRY(ddl_bar(w));
    ddl_bar_types(w);
    TRY(ddl_leave(w));
    return ddl_pass(w, 'r');
}

/* Tables that refer to one another go together. */
static status MUST_CHECK ddl_drop_ring(struct ddl_work *w)
{
    struct buf b = {0};
    bool done = false;
    int n = 0;
    for (int i = 0; i < w->n; i++) {
        const struct ddl_change *c = &w->changes[i];
        if (c->op != 'd' || c->done || c->barred || strncmp(c->what, "table \"", 7)) continue;
        buf_fmt(&b, "%s%s", n++ ? ", " : "DROP TABLE IF EXISTS ", c->what + strlen("table "));
    }
    status s = n > 1 ? ddl_exec(w, buf_cstr(&b), &done) : TW_OK;
    buf_free(&b);
    TRY(s);
    error_clear(w->to->e);
    if (!done) return TW_OK;
    TRY(ddl_look(w));
    return ddl_pass(w, 'd');
}

static status MUST_CHECK ddl_finish(struct ddl_work *w)
{
    TRY(ddl_pass(w, 'd'));
    TRY(ddl_drop_ring(w));
    return ddl_pass(w, 's');
}

/* The source's DDL that the target has done, this event with it. */
static status MUST_CHECK ddl_done(struct db *to, struct arena *a, const struct job *job,
                                  const char *id, const char **list)
{
    const char *values[] = {job->name, id};
    return db_value(to, a, "read what is done", "SELECT coalesce(array_remove(array_agg(id) ||"
                    " $2::bigint, NULL), '{}') FROM twsync.ddl_done WHERE job = $1", 2, values,
                    list);
}

/* Is there DDL on the source that the target has not done? */
static status MUST_CHECK ddl_is_behind(struct db *from, struct arena *a, const struct job *job,
                                       const char *done, bool *behind)
{
    const char *values[] = {job->name, done}, *found;
    TRY(db_value(from, a, "look for DDL on its way", "SELECT 1 FROM twsync.ddl WHERE job = $1"
                 " AND changes IS NOT NULL AND id <> ALL ($2::bigint[]) LIMIT 1", 2, values,
                 &found));
    *behind = found != NULL;
    return TW_OK;
}

/* DDL that was committed before the slot was made does not come by it: it counts as done. */
static status MUST_CHECK ddl_skip(struct db *from, struct db *to, const struct job *job)
{
    struct arena a = {0};
    const char *ids = NULL, *values[] = {job->name, NULL};
    status s = db_value(from, &a, "read what was done before", "SELECT array_agg(id) FROM"
                        " twsync.ddl WHERE job = $1 AND changes IS NOT NULL", 1, values, &ids);
    if (s == TW_OK)
        s = db_exec_params(to, "forget what was done before", "DELETE FROM twsync.ddl_done WHERE"
                           " job = $1", 1, values);
    values[1] = ids;
    if (s == TW_OK && ids)
        s = db_exec_params(to, "note what was done before", "INSERT INTO twsync.ddl_done SELECT $1,"
                           " unnest($2::bigint[]), '0/0'", 2, values);
    arena_free(&a);
    return s;
}

/* Note an event when all that it takes is locked: a transaction of the target that was before it
 * was committed before this place. */
static status MUST_CHECK ddl_note(struct ddl_work *w, const struct job *job)
{
    const char *values[] = {job->name, w->event->id};
    TRY(db_exec_params(w->to, "note what is done", "INSERT INTO twsync.ddl_done VALUES ($1,"
                       " $2::bigint, pg_current_wal_insert_lsn()) ON CONFLICT DO NOTHING", 2,
                       values));
    return db_exec_params(w->to, "forget what was done long ago", "DELETE FROM twsync.ddl_done"
                          " WHERE job = $1 AND $2::bigint % 100 = 0 AND id < $2::bigint - 20000",
                          2, values);
}

/* All that a table is on the source, as if all of it had changed.  `lead` may hold a snapshot. */
static status MUST_CHECK ddl_bring(struct ddl_work *w, struct db *lead, uint32_t oid,
                                   const char *table)
{
    static const char sql[] =
        "SELECT f.phase, f.what, f.value, f.make, f.alter_ FROM twsync.shape_of(ARRAY[$1::oid] ||"
        " ARRAY(SELECT d.objid FROM pg_depend d WHERE d.classid = 'pg_class'::regclass"
        "  AND d.refclassid = 'pg_class'::regclass AND d.refobjid = $1::oid AND d.deptype = 'a'"
        "  AND d.refobjsubid > 0), '{}', '{}', '{}', '{}') f"
        " WHERE f.what IS NOT NULL AND f.part !~ '^[gw]' ORDER BY f.phase,"
        " CASE WHEN f.part ~ '^c' THEN substr(f.part, 2)::int ELSE 0 END, f.what";
    const char *value = arena_fmt(w->arena, "%" PRIu32, oid), *names;
    PGresult *r;
    TRY(db_query(lead, w->arena, "read the shape", sql, 1, &value, &r));
    TRY(db_value(lead, w->arena, "name a table", "SELECT jsonb_agg(jsonb_build_array('r',"
                 " format('\"%s\".\"%s\"', replace(n.nspname, '\"', '\"\"'),"
                 " replace(c.relname, '\"', '\"\"')))) FROM pg_class c JOIN pg_namespace n"
                 " ON n.oid = c.relnamespace WHERE c.oid = $1::oid OR c.oid IN (SELECT d.objid"
                 " FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.refclassid ="
                 " 'pg_class'::regclass AND d.refobjid = $1::oid AND d.deptype = 'a')", 1, &value,
                 &names));
    struct ddl_event *event = arena_new(w->arena, struct ddl_event);
    event->names = names;
    w->event = event;
    w->n = PQntuples(r);
    w->changes = arena_array(w->arena, struct ddl_change, w->n + 1);
    for (int i = 0; i < w->n; i++)
        w->changes[i] = (struct ddl_change){
            .op = 's', .phase = (int) db_cell_int(r, i, 0), .what = db_cell(r, i, 1),
            .value = db_cell(r, i, 2), .make = db_cell(r, i, 3), .alter = db_cell(r, i, 4),
            .table = table};
    ddl_name(w);
    TRY(ddl_look(w));
    return ddl_pass(w, 's');
}

/* Columns the source has no more, and what it has no more of columns. */
static status MUST_CHECK ddl_drop_columns(struct ddl_work *w)
{
    for (int i = 0; i < w->nhave; i++) {
        bool there = !ddl_of_column(w->have[i].what) || !w->have[i].unmake, done;
        for (int k = 0; k < w->n && !there; k++)
            there = str_is(w->changes[k].what, w->have[i].what);
        if (!there) TRY(ddl_exec(w, w->have[i].unmake, &done));
        error_clear(w->to->e);
    }
    return TW_OK;
}

/* Rows can do without comments, options, triggers, rules, policies, views, and indexes that are not
 * unique: their failure is told. */
static bool ddl_parks(const struct ddl_change *c)
{
    bool index = c->phase == 42 || c->phase == 43;
    if (index && !(c->make && !strncmp(c->make, "CREATE UNIQUE ", 14))) return false;
    return c->table && c->phase != 36 && (c->phase <= 50 || c->phase == 70 || c->phase == 78);
}

/* ==== 28. task =============================================================
 * One direction: from nothing to streaming, and back to streaming after anything.
 *
 * A session opens the connections, fences out any older one, reads what is true from the servers,
 * does what is still to do (initialise, copy), and streams until something fails.  There is no
 * recovery code: the next session starts the same way. */

/* What the target knows of this task: its row of twsync.progress. */
struct progress {
    bool exists;
    char phase[16];
    char source_system[24], source_database[64], target_system[24], slot_name[64];
    int source_timeline;
    lsn_t slot_point, applied_lsn;
    int64_t epoch;
    bool reverse_made;  /* forward's row: the way back was made ready once */
};

/* Held-back feedback: when positions were applied, in buckets (design 4.3). */
enum { RETENTION_BUCKETS = 64, RETENTION_SPACING = RETENTION_BUCKETS - 2 };

struct retention {
    struct { usec since_us; lsn_t lsn; } bucket[RETENTION_BUCKETS];  /* oldest first */
    int n;
    int64_t cap_bytes;
};

struct task {
    /* Fixed by task_open(). */
    const struct job *given;    /* the job file's */
    const struct job *job;      /* of a session: with the names that capitalization makes */
    enum tw_direction dir;
    const struct task_conf *conf;
    const struct node *source, *target;
    const char *name;        /* "JOB/forward" */
    const char *slot;        /* slot, publication and origin */
    const char *opposite;    /* the other task's name: its marker */
    const char *opposite_origin;
    struct arena arena;      /* of the process */
    struct stat_page *page;
    struct stat_task *stat;  /* this task's part of it */
    char instance[40];       /* of the state directory: tells our dead sessions from others' */
    struct tw_error e;
    /* Of the session. */
    struct arena session;
    struct db from, to;      /* ordinary sessions on source and target */
    struct repl repl;
    struct apply apply;
    struct settle settle;    /* forward only */
    struct progress progress;
    struct source_id source_id;
    struct retention retention;
    /* Of the stream. */
    struct window windows[2];
    struct window *w;        /* the one being filled; the other may be being written */
    bool writing, leaves_open;  /* leaves_open: what is being written does not end its batch */
    char *held, *held_body;  /* a frame that has to wait until a window is written */
    size_t held_len;
    bool behind;             /* the source has much to send */
    bool care;               /* the transaction changes tables with deferrable keys */
    bool alone;              /* the transaction holds DDL: its batch ends with it */
    bool in_txn, decided, dropping;  /* decided: whether the transaction carries our marker */
    struct msg begin;
    int64_t seq;
    lsn_t seen_lsn;          /* task_handle: everything before it is applied, queued or not ours */
    usec stream_us;          /* when it was started */
    lsn_t catchup_lsn;       /* initialising ends when this is applied; 0: it has ended */
    usec beat_due_us, stat_due_us, ckpt_due_us, clock_due_us, resync_due_us;
    int64_t unpaid_bytes;    /* received, not yet held against the limits */
    lsn_t solo_until_lsn;    /* commit each transaction by itself until past this one */
    /* Of the retries. */
    usec failing_since_us, reported_us;
    int attempts;
    enum reaction failing_as;
    bool was_running;
    lsn_t past_lsn;          /* what is before it need not come: the opposite task wrote it */
};

static void task_checkpoint(struct task *t)
{
    struct stat_task *st = t->stat;
    struct ckpt c = {.received_lsn = st->received_lsn, .applied_lsn = st->applied_lsn,
                     .confirmed_lsn = st->confirmed_lsn};
    struct tw_error e;
    error_clear(&e);
    str_copy(c.task, sizeof c.task, t->name);
    str_copy(c.state, sizeof c.state, task_state_name(st->state));
    str_copy(c.phase, sizeof c.phase, st->phase);
    str_copy(c.rung, sizeof c.rung, st->rung);
    str_copy(c.source_system, sizeof c.source_system, t->progress.source_system);
    str_copy(c.slot_name, sizeof c.slot_name, t->slot);
    str_copy(c.last_error, sizeof c.last_error, st->last_error);
#define X(n) c.n = st->n;
    STAT_COUNTERS(X)
#undef X
    if (ckpt_write(t->job, t->dir, &c, &e) != TW_OK)
        log_warning("could not write the checkpoint: %s", e.msg);
}

static void task_phase(struct task *t, const char *phase)
{
    str_copy(t->progress.phase, sizeof t->progress.phase, phase);
    str_copy(t->stat->phase, sizeof t->stat->phase, phase);
}

static void task_go(struct task *t, enum task_state to)
{
    assert(task_may_move(t->stat->state, to));
    if (t->stat->state == to) return;
    t->stat->state = to;
    log_info("%s", task_state_name(to));
    task_checkpoint(t);
}

static void assert_task(const struct task *t)
{
    assert(t->seen_lsn >= t->apply.applied_lsn);
    assert(t->apply.applied_lsn >= t->repl.confirmed_lsn);
    (void) t;
}

static status task_tick(void *arg)
{
    struct task *t = arg;
    t->stat->beat_us = os_wall();
    return repl_pull(&t->repl);
}

/* ---- connections and fencing ---- */

static void task_db(struct task *t, struct db *d, const struct node *node, const char *what)
{
    *d = (struct db){.node = node, .e = &t->e, .tick = task_tick, .tick_arg = t};
    snprintf(d->purpose, sizeof d->purpose, "%s:%s:%s:%s", t->job->name, direction_names[t->dir],
             what, t->instance);
}

/* End a session that a dead process of this very installation left behind: we hold the state
 * directory's lock, so whoever carries our instance and is not us is no more. */
static status MUST_CHECK task_end_zombie(struct task *t, struct db *d, int pid)
{
    struct arena a = {0};
    const char *values[] = {arena_fmt(&a, "%d", pid), arena_fmt(&a, ":%s", t->instance)};
    const char *done = NULL;
    status s = db_value(d, &a, "end a dead session",
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE pid = $1::int AND left(application_name, 7) = 'twsync:'"
                        " AND right(application_name, length($2)) = $2", 2, values, &done);
    if (done) log_info("ended session %d on %c, left by a process that died", pid, d->node->letter);
    arena_free(&a);
    return s;
}

/* One worker per task, wherever it runs: a session lock on the target.  It also waits for the
 * commit of a killed predecessor, so that the progress read next is final (failures B2-B4). */
static status MUST_CHECK task_fence(struct task *t)
{
    static const char holder[] =
        "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        " AND ((classid::bigint << 32) | objid::bigint) = $1::bigint";
    struct arena a = {0};
    uint64_t sum = sum_bytes(0, t->name, strlen(t->name)) & INT64_MAX;
    const char *key[] = {arena_fmt(&a, "%" PRIu64, sum)}, *got = NULL, *pid = NULL;
    status s = TW_OK;
    for (int i = 0; s == TW_OK; i++) {
        s = db_value(&t->to, &a, "take the task's lock", "SELECT pg_try_advisory_lock($1::bigint)",
                     1, key, &got);
        if (s != TW_OK || *got == 't') break;
        if (i == 10) log_info("another session works on this task on %c: standing by",
                              t->target->letter);
        s = db_value(&t->to, &a, "find the lock's holder", holder, 1, key, &pid);
        if (s == TW_OK && pid && i >= 5) s = task_end_zombie(t, &t->to, atoi(pid));
        os_sleep_ms(200);
        if (s == TW_OK) s = db_tick(&t->to);
    }
    arena_free(&a);
    return s;
}

static status MUST_CHECK task_has_schema(struct db *d, bool *has)
{
    struct arena a = {0};
    const char *v = NULL;
    status s = db_value(d, &a, "look for schema twsync",
                        "SELECT to_regclass('twsync.moved')", 0, NULL, &v);
    *has = v != NULL;
    arena_free(&a);
    return s;
}

static status MUST_CHECK task_setup_node(struct db *d)
{
    bool has;
    TRY(task_has_schema(d, &has));
    if (!has) TRY(slot_setup_node(d));
    return ddl_setup(d);
}

/* The ordinary session on A. */
static struct db *task_a(struct task *t)
{
    return t->dir == TW_FORWARD ? &t->from : &t->to;
}

/* What the job calls tables on B, also those that have, or had, other names than now.  changes: of
 * an event, which comes before others can see it on A; or NULL. */
static status MUST_CHECK task_learn(struct task *t, const char *changes)
{
    static const char told_sql[] =
        "SELECT DISTINCT i[1], i[2], v.c FROM (SELECT changes FROM twsync.ddl WHERE job = $1"
        " UNION ALL SELECT $2::jsonb) d, jsonb_array_elements(d.changes) c,"
        " LATERAL (VALUES (c->>'what', NULL), (c->>'old', NULL), ('table ' || (c->>'table_'),"
        " c->>'was'), ('table ' || (c->>'table_'), c->>'name')) v(w, c),"
        " LATERAL parse_ident(substr(v.w, 7)) i WHERE v.w ~ '^table \"'";
    const char *there, *values[] = {t->given->name, changes};
    PGresult *told = NULL;
    if (!t->given->letters) return TW_OK;
    TRY(db_value(task_a(t), &t->session, "look for DDL", "SELECT to_regclass('twsync.ddl')", 0,
                 NULL, &there));
    if (there)
        TRY(db_query(task_a(t), &t->session, "read names", told_sql, 2, values, &told));
    return name_learn(t->given, task_a(t), &t->session, told, &t->job);
}

static status MUST_CHECK task_connect(struct task *t)
{
    task_db(t, &t->to, t->target, "apply");
    task_db(t, &t->from, t->source, "read");
    task_db(t, &t->repl.db, t->source, "stream");
    TRY(db_open(&t->to, false));
    TRY(task_fence(t));
    TRY(db_open(&t->from, false));
    TRY(task_learn(t, NULL));
    TRY(db_open(&t->repl.db, true));
    TRY(slot_identify(&t->repl.db, &t->source_id));
    return task_setup_node(&t->to);
}

/* ---- progress ---- */

static status MUST_CHECK task_system(struct db *d, struct arena *a, const char **out)
{
    PGresult *r;  /* not everyone may ask */
    *out = NULL;
    TRY(db_attempt(d, "SELECT system_identifier FROM pg_control_system()", 0, NULL, &r));
    if (PQresultStatus(r) == PGRES_TUPLES_OK) *out = arena_str(a, PQgetvalue(r, 0, 0));
    PQclear(r);
    return TW_OK;
}

static status MUST_CHECK progress_read(struct db *to, const char *task, struct progress *p)
{
    static const char sql[] =
        "SELECT phase, source_system, source_database, source_timeline, target_system, slot_name,"
        " slot_point, applied_lsn, epoch, reverse_made FROM twsync.progress WHERE task = $1";
    struct arena a = {0};
    PGresult *r;
    *p = (struct progress){0};
    status s = db_query(to, &a, "read the progress", sql, 1, (const char *[]){task}, &r);
    if (s == TW_OK && PQntuples(r)) {
        p->exists = true;
        str_copy(p->phase, sizeof p->phase, PQgetvalue(r, 0, 0));
        str_copy(p->source_system, sizeof p->source_system, PQgetvalue(r, 0, 1));
        str_copy(p->source_database, sizeof p->source_database, PQgetvalue(r, 0, 2));
        p->source_timeline = atoi(PQgetvalue(r, 0, 3));
        str_copy(p->target_system, sizeof p->target_system, PQgetvalue(r, 0, 4));
        str_copy(p->slot_name, sizeof p->slot_name, PQgetvalue(r, 0, 5));
        lsn_parse(db_cell(r, 0, 6), &p->slot_point);
        lsn_parse(db_cell(r, 0, 7), &p->applied_lsn);
        p->epoch = db_cell_int(r, 0, 8);
        p->reverse_made = db_cell_true(r, 0, 9);
    }
    arena_free(&a);
    return s;
}

/* The row before anything else is made: from here on, what we find is ours. */
static status MUST_CHECK progress_create(struct db *to, const struct job *job, const char *task,
                                         const char *slot)
{
    const char *values[] = {task, job->name, slot};
    return db_exec_params(to, "write the progress",
                          "INSERT INTO twsync.progress (task, job, phase, slot_name)"
                          " VALUES ($1, $2, 'init', $3) ON CONFLICT DO NOTHING", 3, values);
}

/* The slot exists and this is where it starts. */
static status MUST_CHECK progress_begin(struct db *to, const char *task, const char *phase,
                                        const struct source_id *id, lsn_t point)
{
    struct arena a = {0};
    const char *target = NULL;
    status s = task_system(to, &a, &target);
    const char *values[] = {task, phase, id->system, arena_fmt(&a, "%d", id->timeline),
                            id->database, target, lsn_text(&a, point)};
    if (s == TW_OK)
        s = db_exec_params(to, "write the progress",
                           "UPDATE twsync.progress SET phase = $2, source_system = $3,"
                           " source_timeline = $4::int, source_database = $5, target_system = $6,"
                           " slot_point = $7::pg_lsn, applied_lsn = $7::pg_lsn,"
                           " updated_at = clock_timestamp() WHERE task = $1", 7, values);
    arena_free(&a);
    return s;
}

static status MUST_CHECK task_set_phase(struct task *t, const char *phase)
{
    const char *values[] = {t->name, phase};
    TRY(db_exec_params(&t->to, "write the progress",
                       "UPDATE twsync.progress SET phase = $2, updated_at = clock_timestamp()"
                       " WHERE task = $1", 2, values));
    task_phase(t, phase);
    task_checkpoint(t);
    return TW_OK;
}

/* ---- initialising ---- */

static status task_gap_hint(struct task *t)
{
    fail_hint(&t->e, "The two databases may differ now.  Compare them; `twsync release %s` and a "
                     "new run start over.", t->job->path);
    return t->e.code;
}

static status MUST_CHECK task_tables(struct task *t, struct db *d, const struct job *job,
                                     struct table_list *out)
{
    struct table_list unsupported;
    struct qname_list missing;
    return cat_tables(d, &t->session, job, out, &unsupported, &missing);
}

/* Is a table, or a partitioned table above it, in the forward task's publication?  And will the
 * stream make it on the target, because it was created after the job began? */
static const char task_published_sql[] =
    "WITH RECURSIVE up(leaf, oid) AS (SELECT o, o FROM unnest($2::oid[]) o"
    " UNION SELECT up.leaf, i.inhparent FROM up JOIN pg_inherits i ON i.inhrelid = up.oid"
    " JOIN pg_class c ON c.oid = i.inhparent AND c.relkind = 'p'),"
    " coming(obj) AS MATERIALIZED (SELECT DISTINCT c->>'obj' FROM twsync.ddl d,"
    "  jsonb_array_elements(d.changes) c WHERE d.job = $3 AND d.changes IS NOT NULL"
    "  AND d.id <> ALL ($4::bigint[]) AND c->>'op' = 'set' AND c->>'what' ~ '^table ')"
    " SELECT DISTINCT up.leaf, coming.obj IS NOT NULL FROM up"
    " JOIN pg_publication_rel pr ON pr.prrelid = up.oid"
    " JOIN pg_publication p ON p.oid = pr.prpubid LEFT JOIN coming ON coming.obj = 'r' || up.leaf"
    " WHERE p.pubname = $1";

struct task_leaf {
    uint32_t oid;
    bool coming;
};

static int task_by_oid(const void *a, const void *b)
{
    uint32_t x = ((const struct task_leaf *) a)->oid, y = ((const struct task_leaf *) b)->oid;
    return (x > y) - (x < y);
}

/* The tables of this job on A: what the publication has, but for tables that come by the stream.
 * One list for schema, copy and stream, whatever is created on A meanwhile.  Forward only. */
static status MUST_CHECK task_published(struct task *t, struct db *a, struct table_list *out,
                                        struct table_list *later)
{
    struct table_list all;
    const char *done;
    PGresult *r;
    TRY(task_tables(t, a, t->job, &all));
    TRY(ddl_done(&t->to, &t->session, t->job, NULL, &done));
    const char *values[] = {t->slot, cat_oid_array(&t->session, &all), t->job->name, done};
    TRY(db_query(a, &t->session, "read the publication", task_published_sql, 4, values, &r));
    *out = (struct table_list){.items = arena_array(&t->session, struct table, all.n)};
    *later = (struct table_list){.items = arena_array(&t->session, struct table, all.n)};
    size_t n = (size_t) PQntuples(r);
    struct task_leaf *leaves = arena_array(&t->session, struct task_leaf, (int) n + 1);
    for (size_t k = 0; k < n; k++)
        leaves[k] = (struct task_leaf){(uint32_t) db_cell_int(r, (int) k, 0),
                                       db_cell_true(r, (int) k, 1)};
    qsort(leaves, n, sizeof *leaves, task_by_oid);
    for (int i = 0; i < all.n; i++) {
        const struct task_leaf key = {.oid = all.items[i].oid};
        const struct task_leaf *found = bsearch(&key, leaves, n, sizeof *leaves, task_by_oid);
        struct table_list *to = found ? out : later;
        if (!found || !found->coming) to->items[to->n++] = all.items[i];
    }
    return TW_OK;
}

static int task_by_name(const void *a, const void *b)
{
    const struct table *x = *(const struct table *const *) a, *y = *(const struct table *const *) b;
    int schema = strcmp(x->schema, y->schema);
    return schema ? schema : strcmp(x->name, y->name);
}

/* Their namesakes on B: what the reverse task carries (requirement 25). */
static status MUST_CHECK task_counterparts(struct task *t, struct table_list *out)
{
    struct table_list on_a, later, on_b;
    TRY(task_published(t, &t->from, &on_a, &later));
    TRY(task_tables(t, &t->to, name_job(t->job, &t->session, &on_a), &on_b));
    *out = (struct table_list){.items = arena_array(&t->session, struct table, on_b.n)};
    struct table **names = arena_array(&t->session, struct table *, on_a.n + 1);
    for (int k = 0; k < on_a.n; k++) {
        names[k] = &on_a.items[k];
        const char *table = name_table(t->job, names[k]->schema, names[k]->name);
        names[k]->schema = name_schema(t->job, names[k]->schema);
        names[k]->name = table;
    }
    qsort(names, (size_t) on_a.n, sizeof *names, task_by_name);
    for (int i = 0; i < on_b.n; i++) {
        const struct table *key = &on_b.items[i];
        if (bsearch(&key, names, (size_t) on_a.n, sizeof *names, task_by_name))
            out->items[out->n++] = *key;
    }
    return TW_OK;
}

/* While a slot is being made the server waits for older transactions: say for whom. */
struct slot_wait {
    struct task *t;
    struct db *ask;
    usec next_us;
    bool asking;
};

static status slot_wait_tick(void *arg)
{
    struct slot_wait *w = arg;
    if (!w->asking && os_now() >= w->next_us) {
        w->asking = true;  /* the question waits too, and ticks */
        slot_log_blockers(w->ask);
        w->asking = false;
        w->next_us = os_now() + 30 * USEC_SEC;
    }
    return task_tick(w->t);
}

static status MUST_CHECK task_create_slot(struct task *t, struct db *repl, struct db *ask,
                                          const char *name, bool temporary, lsn_t *point,
                                          const char **snapshot)
{
    struct slot_wait w = {.t = t, .ask = ask, .next_us = os_now() + 3 * USEC_SEC};
    repl->tick = slot_wait_tick;
    repl->tick_arg = &w;
    status s = slot_create(repl, &t->session, name, temporary, point, snapshot);
    repl->tick = task_tick;
    repl->tick_arg = t;
    return s;
}

static status MUST_CHECK task_reverse_made(struct task *t)
{
    t->progress.reverse_made = true;
    return db_exec_params(&t->to, "write the progress",
                          "UPDATE twsync.progress SET reverse_made = true WHERE task = $1", 1,
                          (const char *[]){t->name});
}

/* B→A is made ready before A→B is called Running: from then on, what applications write on B is
 * kept by the slot, whether the reverse task runs already or not.  It is made once, and forward's
 * row says so: if it is found missing later, that is a gap, and the reverse task will name it. */
static status MUST_CHECK task_prepare_reverse(struct task *t)
{
    struct arena *a = &t->session;
    const char *name = task_name(a, t->job, TW_REVERSE), *snapshot;
    const char *slot = slot_name(a, t->job, TW_REVERSE);
    const struct task_conf *conf = &t->job->task[TW_REVERSE];
    struct progress p;
    struct table_list tables;
    struct source_id id;
    struct slot_info info;
    lsn_t point;
    if (!conf->enabled || t->progress.reverse_made) return TW_OK;
    TRY(task_setup_node(&t->from));
    TRY(progress_read(&t->from, name, &p));
    if (p.exists && str_is(p.phase, "stream")) return task_reverse_made(t);
    TRY(progress_create(&t->from, t->job, name, slot));
    TRY(task_counterparts(t, &tables));
    if (conf->identity == IDENTITY_FULL) TRY(slot_identity_full(&t->to, &tables));
    TRY(slot_publish(&t->to, slot, &tables));
    TRY(slot_inspect(&t->to, slot, &info));
    if (info.exists) TRY(slot_drop(&t->to, slot));
    struct db repl;
    task_db(t, &repl, t->target, "slot");
    status s = db_open(&repl, true);
    if (s == TW_OK) s = slot_identify(&repl, &id);
    if (s == TW_OK) s = task_create_slot(t, &repl, &t->to, slot, false, &point, &snapshot);
    if (s == TW_OK) s = progress_begin(&t->from, name, "stream", &id, point);
    db_close(&repl);
    return s == TW_OK ? task_reverse_made(t) : s;
}

/* No progress on the target, and this is not the first start: it was there once, and where it stood
 * nobody knows.  To begin again here would skip what lies between. */
static status MUST_CHECK task_check_first(struct task *t)
{
    struct slot_info info;
    struct ckpt c;
    const char *copied = NULL, *values[] = {t->name};
    TRY(slot_inspect(&t->from, t->slot, &info));
    TRY(db_value(&t->to, &t->session, "read the copy ledger",
                 "SELECT 1 FROM twsync.copied WHERE task = $1 LIMIT 1", 1, values, &copied));
    ckpt_read(t->job, t->dir, &c);
    if (!info.exists && !copied && !t->stat->ready && !str_is(c.phase, "stream")) return TW_OK;
    fail(&t->e, TW_EGAP, "the progress of task %s is gone from %c, although %s", t->name,
         t->target->letter,
         info.exists ? "its replication slot exists" : copied ? "tables were copied for it"
                                                              : "it has been streaming");
    return task_gap_hint(t);
}

/* ---- filters that the source applies ---- */

/* The condition that the publication shall have of a table; NULL: none. */
static const char *task_pushed(const struct task *t, struct arena *a, const struct table *x)
{
    const struct table_rules *r = job_rules(t->job, x->schema, x->name);
    struct buf b = {0};
    if (!t->conf->push || t->from.version < 150000 || x->relkind != 'r' || !r) return NULL;
    if (!rules_may_push(r, r->operations[0] ? r->operations[0] : t->conf->operations)) return NULL;
    rules_condition(&b, r);
    const char *condition = arena_str(a, b.data);
    buf_free(&b);
    return condition;
}

/* In the transaction that has put the condition there: is it one of those that do no harm?  The
 * server refuses updates when it names a column that is not of the replica identity; and where it
 * fails for a row the stream ends there for good, whatever is published afterwards.  So it may
 * have comparisons and what joins them, and nothing else: their functions are of a btree's
 * operators, or declared to tell nothing by failing (documentation, "pg_proc", proleakproof).  Of
 * partitions it would only filter what is written to them by that name. */
static const char task_pushable_sql[] =
    "SELECT NOT c.relispartition AND (c.relreplident = 'f' OR NOT EXISTS (SELECT FROM pg_depend d"
    " WHERE d.classid = 'pg_publication_rel'::regclass AND d.objid = m.oid AND d.refobjid = c.oid"
    " AND d.refobjsubid > 0 AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND"
    " (c.relreplident = 'i' AND i.indisreplident OR c.relreplident = 'd' AND i.indisprimary AND"
    " i.indimmediate) AND d.refobjsubid = ANY (i.indkey))))"
    " AND NOT EXISTS (SELECT FROM regexp_matches(m.prqual::text, '\\{([A-Z_]+)', 'g') x WHERE x[1]"
    " NOT IN ('BOOLEXPR', 'OPEXPR', 'SCALARARRAYOPEXPR', 'DISTINCTEXPR', 'NULLTEST',"
    " 'BOOLEANTEST', 'COALESCEEXPR', 'COALESCE', 'RELABELTYPE', 'VAR', 'CONST', 'ARRAYEXPR',"
    " 'ARRAY'))"
    " AND NOT EXISTS (SELECT FROM regexp_matches(m.prqual::text, ':opfuncid (\\d+)', 'g') x WHERE"
    " NOT EXISTS (SELECT FROM pg_proc p WHERE p.oid = x[1]::oid AND p.proleakproof) AND NOT EXISTS"
    " (SELECT FROM pg_operator o JOIN pg_amop s ON s.amopopr = o.oid JOIN pg_am i ON i.oid ="
    "  s.amopmethod AND i.amname = 'btree' WHERE o.oprcode = x[1]::oid OR o.oprnegate IN (SELECT"
    "  oid FROM pg_operator w WHERE w.oprcode = x[1]::oid)))"
    " FROM pg_publication u JOIN pg_publication_rel m ON m.prpubid = u.oid JOIN pg_class c ON c.oid"
    " = m.prrelid WHERE u.pubname = $1 AND c.oid = $2";

/* The table's condition in the publication, NULL for none; anew in one transaction, so that no
 * change of the table is without it.  *taken: it is so now; *busy is set if the table is locked. */
static status MUST_CHECK task_push(struct task *t, const struct table *x, const char *condition,
                                   bool *taken, bool *busy)
{
    struct arena *a = &t->session;
    const char *name = sql_quoted_table(a, x->schema, x->name), *able = NULL;
    const char *values[] = {t->slot, arena_fmt(a, "%" PRIu32, x->oid)};
    const char *where = condition ? arena_fmt(a, " WHERE %s", condition) : "";
    *taken = false;
    status s = db_exec(&t->from, "put a filter into the publication",
                       arena_fmt(a, "BEGIN; SET LOCAL lock_timeout = '2s'; ALTER PUBLICATION"
                                 " \"%s\" DROP TABLE ONLY %s; ALTER PUBLICATION \"%s\" ADD TABLE"
                                 " ONLY %s%s", t->slot, name, t->slot, name, where));
    if (s == TW_OK && condition)
        s = db_value(&t->from, a, "read the publication", task_pushable_sql, 2, values, &able);
    if (s == TW_OK && (!condition || (able && *able == 't'))) {
        *taken = true;
        return db_exec(&t->from, "commit", "COMMIT");
    }
    if (s != TW_OK && !t->e.sqlstate[0]) return s;
    log_info("the filter of table %s is not put into the publication: %s", name,
             s == TW_OK ? "it is more than comparisons of columns of the replica identity, or the"
                          " table is a partition" : t->e.msg);
    *busy = *busy || str_is(t->e.sqlstate, "55P03");
    error_clear(&t->e);
    return db_exec(&t->from, "roll back", "ROLLBACK");
}

/* From 15 on a publication can have filters: what they leave out does not travel.  That only saves,
 * for what comes is asked about all the same; where the server does not take a filter it is left
 * to us.  It is not done unasked: the server refuses then to drop such a column or to change its
 * type, and updates of the table when its replica identity is changed.  A comment says what was
 * done, so that it is done, and the tables are locked, once. */
static status MUST_CHECK task_push_filters(struct task *t, const struct table_list *tables)
{
    static const char of[] = "SELECT coalesce(obj_description(oid, 'pg_publication'), '') FROM"
                             " pg_publication WHERE pubname = $1";
    struct arena *a = &t->session;
    const char **want = arena_array(a, const char *, tables->n + 1), *was = NULL;
    const char *values[] = {t->slot};
    uint64_t sum = 0;
    bool any = false, taken, busy = false;
    for (int i = 0; i < tables->n; i++) {
        const struct table *x = &tables->items[i];
        if (!(want[i] = task_pushed(t, a, x))) continue;
        any = true;
        sum = sum_bytes(sum, want[i], strlen(want[i]) + 1);
        sum = sum_bytes(sum, (const unsigned char *) &x->oid, sizeof x->oid);
    }
    const char *mark = any ? arena_fmt(a, "twsync filters %016" PRIx64, sum) : "";
    TRY(db_value(&t->from, a, "read the publication", of, 1, values, &was));
    if (!was || str_is(was, mark)) return TW_OK;
    for (int i = 0; i < tables->n; i++) {
        const struct table *x = &tables->items[i];
        const char *has[] = {t->slot, arena_fmt(a, "%" PRIu32, x->oid)}, *old = NULL;
        TRY(db_value(&t->from, a, "read the publication", "SELECT m.prqual IS NOT NULL FROM"
                     " pg_publication u JOIN pg_publication_rel m ON m.prpubid = u.oid WHERE"
                     " u.pubname = $1 AND m.prrelid = $2", 2, has, &old));
        if (!old || (!want[i] && *old == 'f')) continue;
        TRY(task_push(t, x, want[i], &taken, &busy));
        if (!taken && *old == 't') TRY(task_push(t, x, NULL, &taken, &busy));
        if (taken)
            log_info("the filter of table %s is %s the publication",
                     sql_quoted_table(a, x->schema, x->name), want[i] ? "in" : "no more in");
    }
    if (busy) return TW_OK;  /* the next session tries again */
    return db_exec(&t->from, "write down what is published",
                   arena_fmt(a, "COMMENT ON PUBLICATION \"%s\" IS '%s'", t->slot, mark));
}

/* ---- the first start ---- */

/* DDL of the source is written into the stream from here on. */
static status MUST_CHECK task_capture_ddl(struct task *t)
{
    bool on;
    if (t->dir == TW_REVERSE) return TW_OK;
    TRY(task_setup_node(&t->from));
    TRY(ddl_install(&t->from, t->job, &on));
    const char *by = on ? "trigger" : t->conf->ddl ? "relation" : "no";
    if (!on && t->conf->ddl && !str_is(t->stat->ddl_by, by))
        log_info("DDL on %c: only added columns are carried, for this role may not create event"
                 " triggers there", t->source->letter);
    str_copy(t->stat->ddl_by, sizeof t->stat->ddl_by, by);
    return TW_OK;
}

/* What is in the slot's snapshot does not come by the slot. */
static status MUST_CHECK task_ddl_before(struct task *t, const char *snapshot)
{
    struct copy c = {.e = &t->e, .snapshot = snapshot};
    struct db d;
    task_db(t, &d, t->source, "slot");
    status s = db_open(&d, false);
    if (s == TW_OK) s = copy_import(&c, &d);
    if (s == TW_OK) s = ddl_skip(&d, &t->to, t->job);
    db_close(&d);
    return s;
}

/* First steps: what must be there before the slot, and then the slot (requirement 58a). */
static status MUST_CHECK task_init_source(struct task *t, const char **snapshot, lsn_t *point)
{
    struct table_list tables;
    struct slot_info info;
    TRY(task_setup_node(&t->from));
    TRY(progress_create(&t->to, t->job, t->name, t->slot));
    TRY(task_tables(t, &t->from, t->job, &tables));
    if (t->conf->identity == IDENTITY_FULL) TRY(slot_identity_full(&t->from, &tables));
    TRY(slot_publish(&t->from, t->slot, &tables));
    TRY(task_push_filters(t, &tables));
    TRY(task_capture_ddl(t));
    /* Phase init: a slot of our name was made by a process that died before it could say so. */
    TRY(slot_inspect(&t->from, t->slot, &info));
    if (info.exists) TRY(slot_drop(&t->from, t->slot));
    TRY(task_create_slot(t, &t->repl.db, &t->from, t->slot, false, point, snapshot));
    TESTPOINT(&t->e, "task.slot.created");
    TRY(task_ddl_before(t, *snapshot));
    TRY(progress_begin(&t->to, t->name, "schema", &t->source_id, *point));
    task_phase(t, "schema");
    return TW_OK;
}

static void task_schema_progress(void *arg, const struct ddl *ddl, int done, int total)
{
    (void) arg;
    log_debug("created %s (%d of %d)", ddl->what, done, total);
}

/* Sessions of dead copy workers may still commit a chunk: end them before the ledger is read. */
static status MUST_CHECK task_end_workers(struct task *t)
{
    struct arena a = {0};
    const char *head[] = {arena_fmt(&a, "twsync:%s:forward:copy", t->job->name)}, *n = "1";
    status s = TW_OK;
    while (s == TW_OK && n && !str_is(n, "0")) {
        s = db_value(&t->to, &a, "end dead copy workers",
                     "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                     " WHERE left(application_name, length($1)) = $1 AND usename = current_user"
                     " AND datname = current_database()", 1, head, &n);
        if (s == TW_OK && n && !str_is(n, "0")) os_sleep_ms(50);
        if (s == TW_OK) s = db_tick(&t->to);
    }
    arena_free(&a);
    return s;
}

/* ---- DDL of the source while its tables are copied ----
 * It comes by the stream, after the copy, so until then the target is as the source was.  Only what
 * the rows need that are copied now, new columns and types, is made before, and the stream finds it
 * done.  Names that moved cannot be told from names that are right: the copy would put one column's
 * values into another. */

struct task_rename {
    const char *obj, *old, *now, *what;
};

static void task_note_rename(struct task_rename *list, int *n, const PGresult *r, int i)
{
    const char *obj = PQgetvalue(r, i, 0), *was = PQgetvalue(r, i, 1);
    int k = 0;
    while (k < *n && !(str_is(list[k].obj, obj) && str_is(list[k].now, was))) k++;
    if (k == *n) list[(*n)++] = (struct task_rename){.obj = obj, .old = was};
    list[k].now = PQgetvalue(r, i, 2);
    list[k].what = PQgetvalue(r, i, 3);
}

/* What was dropped, and is there again: not the same, but of the same name. */
static status MUST_CHECK task_check_again(struct task *t, const char *done)
{
    static const char sql[] =
        "SELECT c->>'what' FROM twsync.ddl d, jsonb_array_elements(d.changes) c WHERE d.job = $1"
        " AND d.changes IS NOT NULL AND d.id <> ALL ($2::bigint[]) AND c->>'op' = 'drop' AND"
        " CASE WHEN c->>'what' ~ '^table ' THEN EXISTS (SELECT FROM pg_publication u JOIN"
        "  pg_publication_rel m ON m.prpubid = u.oid WHERE u.pubname = $3 AND m.prrelid ="
        "  to_regclass(substr(c->>'what', 7)))"
        " WHEN c->>'what' ~ '^column ' THEN EXISTS (SELECT FROM pg_attribute a WHERE 'r' ||"
        "  a.attrelid = c->>'obj' AND a.attnum > 0 AND NOT a.attisdropped AND strpos(c->>'what',"
        "  format('column \"%s\" of ', replace(a.attname, '\"', '\"\"'))) = 1) END LIMIT 1";
    const char *values[] = {t->job->name, done, t->slot}, *what;
    TRY(db_value(&t->from, &t->session, "look for names used again", sql, 3, values, &what));
    if (!what) return TW_OK;
    fail_hint(&t->e, "Drop it again, and make it when the task is Running; or release the job,"
                     " empty its tables on %c, and run it anew.", t->target->letter);
    return fail(&t->e, TW_ESCHEMA, "%s was dropped and made again on %c after the job began and"
                " before its rows were copied", what, t->source->letter);
}

static status MUST_CHECK task_check_names(struct task *t)
{
    static const char sql[] =
        "SELECT k.kind || (c->>'obj'), CASE k.kind WHEN 't' THEN substr(coalesce(c->>'old',"
        " c->>'what'), 7) ELSE quote_ident(c->>'was') END, CASE k.kind WHEN 't' THEN"
        " substr(c->>'what', 7) ELSE quote_ident(c->>'name') END, c->>'what'"
        " FROM twsync.ddl d, jsonb_array_elements(d.changes) WITH ORDINALITY x(c, n)"
        " CROSS JOIN LATERAL (SELECT CASE WHEN c->>'what' ~ '^table ' THEN 't' ELSE 'c'"
        " END) k(kind) WHERE d.job = $1 AND d.changes IS NOT NULL AND d.id <> ALL ($2::bigint[])"
        " AND c->>'op' = 'rename' AND c->>'what' ~ '^(table|column) ' AND EXISTS (SELECT FROM"
        " pg_publication u JOIN pg_publication_rel m ON m.prpubid = u.oid WHERE u.pubname = $3"
        " AND 'r' || m.prrelid = c->>'obj') ORDER BY d.id, x.n";
    struct arena *a = &t->session;
    const char *done;
    PGresult *r;
    int n = 0;
    TRY(ddl_done(&t->to, a, t->job, NULL, &done));
    const char *values[] = {t->job->name, done, t->slot};
    TRY(task_check_again(t, done));
    TRY(db_query(&t->from, a, "look for new names", sql, 3, values, &r));
    struct task_rename *list = arena_array(a, struct task_rename, PQntuples(r) + 1);
    for (int i = 0; i < PQntuples(r); i++) task_note_rename(list, &n, r, i);
    for (int i = 0; i < n; i++) {
        if (str_is(list[i].old, list[i].now)) continue;
        fail_hint(&t->e, "Give it its old name back until the task is Running; or release the job,"
                         " empty its tables on %c, and run it anew.", t->target->letter);
        return fail(&t->e, TW_ESCHEMA, "%s was called %s when the job began: it was renamed on"
                    " %c before its rows were copied", list[i].what, list[i].old,
                    t->source->letter);
    }
    return TW_OK;
}

/* The column alone: the stream brings the default, with what it needs, and the rest. */
static status MUST_CHECK task_copy_bare(struct task *t, const struct table *x, const char *column,
                                        const char *type)
{
    struct arena *a = &t->session;
    const char *table = sql_quoted_table(a, x->schema, x->name);
    bool lacks;
    struct buf b = {0};
    buf_fmt(&b, "ALTER TABLE %s ADD COLUMN ", table);
    sql_ident(&b, column);
    const char *sql = arena_fmt(a, "%s %s", b.data, type);
    buf_free(&b);
    TRY(db_exec(&t->to, "roll back", "ROLLBACK; BEGIN"));
    return db_exec(&t->to, "add a column", name_sql(t->job, a, NULL, sql, &lacks));
}

/* Columns of the source's table that the target's has not are made there, as the stream would make
 * them later.  *any: there were some. */
static status MUST_CHECK task_copy_columns(struct task *t, const struct table *x, bool *any)
{
    struct arena *a = &t->session;
    const char *there = name_quoted(t->job, a, x->schema, x->name);
    const char *values[] = {arena_fmt(a, "%" PRIu32, x->oid)};
    bool done;
    PGresult *r;
    TRY(db_query(&t->from, a, "read columns", "SELECT attname,"
                 " format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = $1"
                 " AND attnum > 0 AND NOT attisdropped ORDER BY attnum", 1, values, &r));
    for (int i = 0; i < PQntuples(r); i++) {
        const char *column = PQgetvalue(r, i, 0), *has;
        const char *name = name_column(job_rules(t->job, x->schema, x->name), column);
        const char *ask[] = {there, name};
        if (!name) continue;
        TRY(db_value(&t->to, a, "look for a column", "SELECT 1 FROM pg_attribute WHERE attrelid ="
                     " to_regclass($1) AND attname = $2 AND attnum > 0 AND NOT attisdropped", 2,
                     ask, &has));
        if (has) continue;
        TRY(db_exec(&t->to, "begin", "BEGIN"));
        status s = shape_add_column(t->job, &t->from, &t->to, a, x->oid, column, &done);
        if (s != TW_OK && str_is(t->e.sqlstate, "42P01")) {  /* the sequence of its default */
            error_clear(&t->e);
            s = task_copy_bare(t, x, column, PQgetvalue(r, i, 1));
            done = true;
        }
        TRY(s);
        TRY(db_exec(&t->to, "commit", "COMMIT"));
        *any = *any || done;
    }
    return TW_OK;
}

/* A chunk failed: because the source's table has columns by now that the target's can be given? */
static status MUST_CHECK task_copy_failed(struct task *t, const struct table *x)
{
    struct tw_error was = t->e;
    bool any = false;
    if (!str_is(was.sqlstate, "42703") || !t->conf->schema || !t->conf->ddl) return was.code;
    error_clear(&t->e);
    TRY(task_check_names(t));
    TRY(task_copy_columns(t, x, &any));
    t->e = was;
    if (!any) return was.code;
    return fail(&t->e, TW_ETXN, "table %s got columns on %c while it was copied; %c has them now",
                sql_quoted_table(&t->session, x->schema, x->name), t->source->letter,
                t->target->letter);
}

/* The tables whose rows a table's are: itself, or the partitions below it.  *whole: all are
 * copied. */
static status MUST_CHECK task_copy_leaves(struct task *t, const char *oid, PGresult **leaves,
                                          bool *whole)
{
    static const char sql[] =
        "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind = 'r' AND (c.oid = $1::oid OR c.oid IN (SELECT relid FROM"
        " pg_partition_tree($1::oid)))";
    static const char whole_sql[] =
        "SELECT count(*) = max(chunks) FROM twsync.copied WHERE task = $1 AND schema_name = $2 AND"
        " table_name = $3";
    const char *done;
    TRY(db_query(&t->from, &t->session, "read partitions", sql, 1, &oid, leaves));
    *whole = true;
    for (int i = 0; i < PQntuples(*leaves) && *whole; i++) {
        const char *row[] = {t->name, PQgetvalue(*leaves, i, 0), PQgetvalue(*leaves, i, 1)};
        TRY(db_value(&t->to, &t->session, "read the copy ledger", whole_sql, 3, row, &done));
        *whole = done && *done == 't';
    }
    return TW_OK;
}

/* Empty the target's table, and give its column the type.  A default that does not fit it goes: the
 * stream brings the one that the source has. */
static status MUST_CHECK task_copy_type(struct task *t, const char *name, const char *column,
                                        const char *type, const PGresult *leaves)
{
    struct arena *a = &t->session;
    bool lacks, done = false;
    struct buf q = {0};
    sql_ident(&q, column);
    const char *quoted = arena_str(a, q.data);
    buf_free(&q);
    TRY(db_exec(&t->to, "begin", "BEGIN"));
    for (int i = 0; i < PQntuples(leaves); i++) {
        const char *row[] = {t->name, PQgetvalue(leaves, i, 0), PQgetvalue(leaves, i, 1)};
        TRY(db_exec_params(&t->to, "clear the copy ledger", "DELETE FROM twsync.copied WHERE task ="
                           " $1 AND schema_name = $2 AND table_name = $3", 3, row));
        TRY(db_exec(&t->to, "empty a table", arena_fmt(a, "DELETE FROM ONLY %s",
                                                       name_quoted(t->job, a, row[1], row[2]))));
    }
    for (int without = 0; without < 2 && !done; without++) {
        const char *sql = arena_fmt(a, "ALTER TABLE %s %s%s%s ALTER COLUMN %s TYPE %s USING NULL",
                                    name, without ? "ALTER COLUMN " : "", without ? quoted : "",
                                    without ? " DROP DEFAULT," : "", quoted, type);
        sql = name_sql(t->job, a, NULL, sql, &lacks);
        if (without) TRY(db_exec(&t->to, "change a type", sql));
        else TRY(copy_try(&t->to, arena_fmt(a, "SAVEPOINT tw_empty; %s", sql), &done));
    }
    return db_exec(&t->to, "commit", "COMMIT");
}

/* A table of which not all is copied has columns of other types by now: what is copied from here
 * on is of these types, so the target's table is emptied, given them, and begins again. */
static status MUST_CHECK task_copy_types(struct task *t)
{
    static const char sql[] =
        "SELECT DISTINCT c.oid, n.nspname, c.relname, a.attname, format_type(a.atttypid,"
        " a.atttypmod)"
        " FROM twsync.ddl d, jsonb_array_elements(d.changes) x(c), pg_class c JOIN pg_namespace n"
        " ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND"
        " NOT a.attisdropped WHERE d.job = $1 AND d.changes IS NOT NULL AND d.id <> ALL"
        " ($2::bigint[]) AND x.c->>'obj' = 'r' || c.oid AND x.c->>'op' = 'set' AND x.c->>'what'"
        " LIKE 'type of column %' AND strpos(x.c->>'what', format('column \"%s\" of \"',"
        "  replace(a.attname, '\"', '\"\"'))) > 0"
        " AND c.relkind IN ('r', 'p') AND NOT c.relispartition";
    static const char type_sql[] =
        "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid ="
        " to_regclass($1) AND attname = $2 AND NOT attisdropped";
    struct arena *a = &t->session;
    const char *done, *is;
    PGresult *r, *leaves;
    bool whole;
    if (!t->conf->schema || !t->conf->ddl || t->job->existing == EXISTING_KEEP) return TW_OK;
    TRY(ddl_done(&t->to, a, t->job, NULL, &done));
    const char *values[] = {t->job->name, done};
    TRY(db_query(&t->from, a, "look for new types", sql, 2, values, &r));
    for (int i = 0; i < PQntuples(r); i++) {
        const char *schema = PQgetvalue(r, i, 1), *table = PQgetvalue(r, i, 2);
        const char *column = PQgetvalue(r, i, 3), *type = PQgetvalue(r, i, 4);
        const char *there[] = {name_quoted(t->job, a, schema, table),
                               name_column(job_rules(t->job, schema, table), column)};
        if (!there[1]) continue;
        TRY(db_value(&t->to, a, "read a type", type_sql, 2, there, &is));
        if (!is || str_is(is, type)) continue;
        TRY(task_copy_leaves(t, PQgetvalue(r, i, 0), &leaves, &whole));
        if (whole) continue;
        log_info("a column of %s has another type: copying the table from its start", there[0]);
        TRY(task_copy_type(t, sql_quoted_table(a, schema, table), column, type, leaves));
    }
    return TW_OK;
}

/* ---- the phases ---- */

static status MUST_CHECK task_copy(struct task *t, const char *snapshot, lsn_t point)
{
    struct copy c = {.job = t->job, .source = t->source, .target = t->target, .snapshot = snapshot,
                     .at = -1, .snapshot_lsn = point, .stat = t->stat, .page = t->page, .e = &t->e,
                     .task = arena_fmt(&t->session, "%s:%s", t->job->name, "forward"),
                     .bars = isatty(STDERR_FILENO) && !log_sink.json && !log_sink.quiet};
    struct table_list tables, later;
    struct db lead;  /* imports the snapshot, plans, and holds it for the workers */
    task_db(t, &lead, t->source, "copy");
    c.ledger = t->name;
    c.tables = &tables;
    status s = task_end_workers(t);
    if (s == TW_OK) s = db_open(&lead, false);
    if (s == TW_OK) s = copy_import(&c, &lead);
    if (s == TW_OK)
        s = db_value(&lead, &t->session, "read the snapshot", "SELECT txid_current_snapshot()", 0,
                     NULL, &c.snapshot_check);
    if (s == TW_OK) s = task_published(t, &lead, &tables, &later);
    int sockets[] = {PQsocket(t->to.pg), PQsocket(t->from.pg), PQsocket(t->repl.db.pg),
                     lead.pg ? PQsocket(lead.pg) : -1};
    if (s == TW_OK) log_info("copying %d tables under snapshot %s at " LSN_FMT, tables.n, snapshot,
                             LSN_ARG(point));
    if (s == TW_OK) s = copy_run(&c, &t->session, &lead, &t->to, sockets, 4);
    db_close(&lead);
    return s == TW_OK || c.at < 0 ? s : task_copy_failed(t, &tables.items[c.at]);
}

/* Tables that were copied under more than one snapshot. */
static status MUST_CHECK task_mixed(struct task *t, const struct table_list *tables,
                                    uint32_t **out, int *n)
{
    const char *values[] = {t->name};
    PGresult *r;
    TRY(db_query(&t->to, &t->session, "read the copy ledger",
                 "SELECT schema_name, table_name FROM twsync.copied WHERE task = $1"
                 " GROUP BY 1, 2 HAVING count(DISTINCT snapshot_lsn) > 1", 1, values, &r));
    *out = arena_array(&t->session, uint32_t, PQntuples(r) + 1);
    *n = 0;
    for (int i = 0; i < PQntuples(r); i++)
        for (int k = 0; k < tables->n; k++)
            if (str_is(tables->items[k].schema, PQgetvalue(r, i, 0)) &&
                str_is(tables->items[k].name, PQgetvalue(r, i, 1)))
                (*out)[(*n)++] = tables->items[k].oid;
    return TW_OK;
}

static status MUST_CHECK task_schema(struct task *t, enum ddl_section section)
{
    uint32_t *mixed;
    int nmixed;
    struct table_list tables, later;
    struct ddl_list list;
    if (!t->conf->schema) return TW_OK;
    TRY(task_published(t, &t->from, &tables, &later));
    TRY(shape_plan(&t->from, &t->session, t->job, &tables, &list));
    if (section == DDL_BEFORE)
        for (int i = 0; i < list.warnings.n; i++) log_warning("%s", list.warnings.items[i]);
    TRY(task_mixed(t, &tables, &mixed, &nmixed));
    shape_defer_keys(&list, mixed, nmixed);
    struct shape_watch w = {.progress = task_schema_progress, .arg = t};
    return shape_run(&t->to, &list, section, t->job->task[TW_FORWARD].workers, &w);
}

static int task_by_size(const void *a, const void *b)
{
    const struct table *x = a, *y = b;
    return (x->bytes < y->bytes) - (x->bytes > y->bytes);
}

/* Statistics for the planner, of several tables at once, the largest first. */
static status MUST_CHECK task_analyze(struct task *t)
{
    struct shape_watch watch = {0};
    struct table_list tables;
    TRY(task_counterparts(t, &tables));
    qsort(tables.items, (size_t) tables.n, sizeof *tables.items, task_by_size);
    struct ddl *work = arena_array(&t->session, struct ddl, tables.n + 1);
    int n = 0;
    for (int i = 0; i < tables.n; i++) {
        const struct table *x = &tables.items[i];
        const char *name = sql_quoted_table(&t->session, x->schema, x->name);
        if (x->relkind == 'p' || !x->owned) continue;
        work[n++] = (struct ddl){.what = arena_fmt(&t->session, "statistics of table %s", name),
                                 .sql = arena_fmt(&t->session, "ANALYZE %s", name)};
    }
    return shape_build_beside(&t->to, work, n, t->job->task[TW_FORWARD].workers, &watch);
}

/* A copy that was interrupted has tables of more than one snapshot.  Each is exact by itself, but
 * they fit together only when the stream has passed the newest: 0 when there is one snapshot. */
static status MUST_CHECK task_catchup_lsn(struct task *t, lsn_t *out)
{
    const char *lsn = NULL, *values[] = {t->name};
    *out = 0;
    TRY(db_value(&t->to, &t->session, "read the copy ledger",
                 "SELECT max(snapshot_lsn) FROM twsync.copied WHERE task = $1"
                 " HAVING count(DISTINCT snapshot_lsn) > 1", 1, values, &lsn));
    if (lsn && !lsn_parse(lsn, out))
        return fail(&t->e, TW_EPROTO, "bad position in twsync.copied");
    return TW_OK;
}

/* What is made on A from here on cannot have come to B by the schema synchronization. */
static status MUST_CHECK task_note_ready(struct task *t)
{
    const char *values[] = {t->name, NULL};
    TRY(db_value(&t->from, &t->session, "read the position", "SELECT pg_current_wal_insert_lsn()",
                 0, NULL, &values[1]));
    return db_exec_params(&t->to, "write the progress", "UPDATE twsync.progress SET ready_lsn ="
                          " $2::pg_lsn WHERE task = $1", 2, values);
}

/* All tables are of one moment: what ties them together, sequences, and the way back. */
static status MUST_CHECK task_finish_init(struct task *t)
{
    TRY(task_schema(t, DDL_LAST));
    if (t->conf->copy) {
        TRY(shape_sequences_apply(&t->from, &t->to, t->job));
        TRY(task_analyze(t));
    }
    TRY(task_prepare_reverse(t));
    TRY(task_note_ready(t));
    t->catchup_lsn = 0;
    t->stat->ready = 1;
    return task_set_phase(t, "stream");
}

static status MUST_CHECK task_init_copy(struct task *t, const char *snapshot, lsn_t point)
{
    if (!t->conf->copy) return task_set_phase(t, "keys");
    TRY(task_check_names(t));
    if (!snapshot) {  /* the first one died with its session: another one */
        const char *slot = arena_fmt(&t->session, "twsync_%s_copy", t->job->name);
        TRY(task_copy_types(t));
        TRY(task_create_slot(t, &t->repl.db, &t->from, slot, true, &point, &snapshot));
    }
    TRY(task_copy(t, snapshot, point));
    return task_set_phase(t, "keys");
}

/* Go through the phases that are still ahead: init, schema, copy, keys, catchup, stream.  Every one
 * can be entered again after a crash. */
static status MUST_CHECK task_initialise(struct task *t)
{
    const char *snapshot = NULL;
    lsn_t point = 0;
    if (str_is(t->progress.phase, "stream")) return task_prepare_reverse(t);
    if (!t->progress.exists) TRY(task_check_first(t));
    task_go(t, TASK_Initializing);
    if (!t->progress.exists || str_is(t->progress.phase, "init"))
        TRY(task_init_source(t, &snapshot, &point));
    if (str_is(t->progress.phase, "schema")) {
        log_info("creating what is missing on %c", t->target->letter);
        TRY(task_schema(t, DDL_BEFORE));
        TRY(task_set_phase(t, "copy"));
    }
    if (str_is(t->progress.phase, "copy")) TRY(task_init_copy(t, snapshot, point));
    if (str_is(t->progress.phase, "keys")) {
        log_info("building keys and indexes");
        if (t->conf->copy) TRY(task_check_names(t));
        TRY(task_schema(t, DDL_KEYS));
        TRY(task_set_phase(t, "catchup"));
    }
    TRY(task_catchup_lsn(t, &t->catchup_lsn));
    if (t->catchup_lsn)
        log_info("the copy was interrupted: catching up to " LSN_FMT, LSN_ARG(t->catchup_lsn));
    else
        TRY(task_finish_init(t));
    return progress_read(&t->to, t->name, &t->progress);
}

/* ---- is it the same history? ---- */

/* The server was promoted: its timeline must have left the old one after what we applied
 * (failures A12). */
static status MUST_CHECK task_check_timeline(struct task *t)
{
    const struct progress *p = &t->progress;
    struct arena a = {0};
    PGresult *r;
    if (t->source_id.timeline == p->source_timeline) return TW_OK;
    status s = db_query(&t->repl.db, &a, "read the timeline history",
                        arena_fmt(&a, "TIMELINE_HISTORY %d", t->source_id.timeline), 0, NULL, &r);
    lsn_t left = 0;
    char *save = NULL, *text = NULL;
    if (s == TW_OK && PQntuples(r)) text = arena_str(&a, PQgetvalue(r, 0, 1));
    for (char *l = text ? strtok_r(text, "\n", &save) : NULL; l; l = strtok_r(NULL, "\n", &save)) {
        int tli;
        char at[32];
        if (sscanf(l, "%d %31s", &tli, at) == 2 && tli == p->source_timeline) lsn_parse(at, &left);
    }
    arena_free(&a);
    TRY(s);
    if (!left || p->applied_lsn > left) {
        fail(&t->e, TW_EGAP, "%c is on timeline %d, which left timeline %d at " LSN_FMT
                             ", before " LSN_FMT " which is applied already", t->source->letter,
             t->source_id.timeline, p->source_timeline, LSN_ARG(left), LSN_ARG(p->applied_lsn));
        return task_gap_hint(t);
    }
    log_info("%c is on a new timeline, %d, which continues ours", t->source->letter,
             t->source_id.timeline);
    const char *values[] = {t->name, arena_fmt(&t->session, "%d", t->source_id.timeline)};
    return db_exec_params(&t->to, "write the progress",
                          "UPDATE twsync.progress SET source_timeline = $2::int WHERE task = $1", 2,
                          values);
}

static status MUST_CHECK task_check_systems(struct task *t)
{
    const struct progress *p = &t->progress;
    const char *target = NULL;
    TRY(task_system(&t->to, &t->session, &target));
    if (!str_is(p->source_system, t->source_id.system)) {
        fail(&t->e, TW_EGAP, "%c is another server: system identifier %s, while task %s began on "
                             "%s", t->source->letter, t->source_id.system, t->name,
             p->source_system);
        return task_gap_hint(t);
    }
    if (!str_is(p->source_database, t->source_id.database)) {
        fail(&t->e, TW_EGAP, "%c is another database: \"%s\", while task %s began on \"%s\"",
             t->source->letter, t->source_id.database, t->name, p->source_database);
        return task_gap_hint(t);
    }
    if (target && p->target_system[0] && !str_is(target, p->target_system)) {
        fail(&t->e, TW_EGAP, "%c is another server: system identifier %s, while task %s began with "
                             "%s", t->target->letter, target, t->name, p->target_system);
        return task_gap_hint(t);
    }
    if (t->source_id.flush_lsn < p->applied_lsn) {
        fail(&t->e, TW_EGAP, "%c has gone back: its WAL ends at " LSN_FMT ", and " LSN_FMT
                             " is applied already", t->source->letter,
             LSN_ARG(t->source_id.flush_lsn), LSN_ARG(p->applied_lsn));
        return task_gap_hint(t);
    }
    return task_check_timeline(t);
}

/* Never stream over a gap: the server would skip silently to where the slot stands. */
static status MUST_CHECK task_check_slot(struct task *t, struct slot_info *s)
{
    const struct progress *p = &t->progress;
    char letter = t->source->letter;
    TRY(slot_inspect(&t->from, t->slot, s));
    if (!s->exists)
        fail(&t->e, TW_EGAP, "replication slot %s is gone from %c: what was committed after "
                             LSN_FMT " is lost", t->slot, letter, LSN_ARG(p->applied_lsn));
    else if (!str_is(s->plugin, "pgoutput") || !str_is(s->database, t->source_id.database))
        fail(&t->e, TW_EGAP, "replication slot %s on %c is not ours: plugin %s, database %s",
             t->slot, letter, s->plugin, s->database);
    else if (s->invalid[0] || str_is(s->wal_status, "lost") || !s->restart_lsn)
        fail(&t->e, TW_EGAP, "replication slot %s on %c is lost (%s): WAL after " LSN_FMT
                             " was removed", t->slot, letter,
             s->invalid[0] ? s->invalid : s->wal_status, LSN_ARG(p->applied_lsn));
    else if (s->confirmed_lsn > p->applied_lsn)
        fail(&t->e, TW_EGAP, "replication slot %s on %c stands at " LSN_FMT ", and only " LSN_FMT
                             " is applied: what lies between is lost", t->slot, letter,
             LSN_ARG(s->confirmed_lsn), LSN_ARG(p->applied_lsn));
    else if (s->active)
        return task_end_zombie(t, &t->from, s->active_pid);
    return t->e.code == TW_OK ? TW_OK : task_gap_hint(t);
}

/* ---- starting the stream ---- */

/* Take the rung the rights allow (design 5), and rest triggers and foreign keys where we may. */
static status MUST_CHECK task_session_setup(struct task *t)
{
    struct rights r;
    TRY(check_rights(&t->to, &r));
    /* In a deadlock the server ends the session that looks when it is complete: mostly ours, if
     * ours looks sooner than the application's. */
    TRY(db_exec(&t->to, "set deadlock_timeout", "SELECT set_config('deadlock_timeout', '100ms',"
                " false) FROM pg_roles WHERE rolname = current_user AND rolsuper"));
    if (r.replica_role)
        TRY(db_exec(&t->to, "set session_replication_role",
                    "SET session_replication_role = replica"));
    if (r.origin) TRY(slot_origin_setup(&t->to, t->slot));
    t->apply.origin = r.origin;
    str_copy(t->stat->rung, sizeof t->stat->rung, rights_rung(&r));
    return TW_OK;
}

/* A new epoch: whoever still writes under the old one meets no row.  The source hears of it first,
 * so it never knows less than the target, unless it was put back to an older copy of itself, which
 * its system identifier and timeline would not show (failures A5). */
static status MUST_CHECK task_new_epoch(struct task *t)
{
    const char *known = NULL;
    const char *values[] = {t->name, arena_fmt(&t->session, "%" PRId64, t->progress.epoch + 1)};
    TRY(db_value(&t->from, &t->session, "read the session", "SELECT epoch FROM twsync.session"
                 " WHERE task = $1", 1, values, &known));
    if (t->progress.epoch && (!known || strtoll(known, NULL, 10) < t->progress.epoch)) {
        fail(&t->e, TW_EGAP, "%c has gone back: it knows of session %s of task %s, and there were %"
             PRId64, t->source->letter, known ? known : "none", t->name, t->progress.epoch);
        return task_gap_hint(t);
    }
    TRY(db_exec_params(&t->from, "write the session",
                       "INSERT INTO twsync.session (task, epoch) VALUES ($1, $2::bigint)"
                       " ON CONFLICT (task) DO UPDATE SET epoch = EXCLUDED.epoch,"
                       " started_at = now()", 2, values));
    const char *epoch = NULL, *applied = NULL;
    PGresult *r;
    TRY(db_query(&t->to, &t->session, "write the progress",
                 "UPDATE twsync.progress SET epoch = $2::bigint, updated_at = clock_timestamp()"
                 " WHERE task = $1 RETURNING epoch, applied_lsn", 2, values, &r));
    if (PQntuples(r) == 1) epoch = db_cell(r, 0, 0), applied = db_cell(r, 0, 1);
    if (!epoch || !lsn_parse(applied, &t->progress.applied_lsn))
        return fail(&t->e, TW_EGAP, "the progress of task %s is gone from %c", t->name,
                    t->target->letter);
    t->progress.epoch = strtoll(epoch, NULL, 10);
    return TW_OK;
}

/* No more than half of what the source itself is willing to keep for a slot. */
static status MUST_CHECK task_retention_cap(struct task *t)
{
    const char *mb = NULL;
    TRY(db_value(&t->from, &t->session, "read max_slot_wal_keep_size",
                 "SELECT setting FROM pg_settings WHERE name = 'max_slot_wal_keep_size'", 0, NULL,
                 &mb));
    t->retention.cap_bytes = t->job->retention_bytes;
    int64_t keep = mb ? strtoll(mb, NULL, 10) * 1024 * 1024 : -1;
    if (keep >= 0 && keep / 2 < t->retention.cap_bytes) t->retention.cap_bytes = keep / 2;
    return TW_OK;
}

/* ---- tables that join or leave a job that runs ---- */

/* The table is left out of the stream until it is copied again. */
static status MUST_CHECK task_park(struct task *t, const char *table, const char *reason,
                                   const char *ddl_id, bool wanted)
{
    const char *values[] = {t->name, table, reason, wanted ? "true" : "false", ddl_id};
    log_warning("table %s is parked, its changes are left out: %s", table, reason);
    t->stat->parked++;
    if (wanted) t->resync_due_us = 0;
    return db_exec_params(&t->to, "park a table",
                          "INSERT INTO twsync.parked (task, schema_name, table_name, reason,"
                          " wanted, ddl_id) SELECT $1, i[1], i[2], $3, $4::boolean, $5::bigint"
                          " FROM parse_ident($2) i ON CONFLICT (task, schema_name, table_name) DO"
                          " UPDATE SET reason = CASE WHEN twsync.parked.wanted THEN"
                          " EXCLUDED.reason ELSE twsync.parked.reason END, wanted ="
                          " EXCLUDED.wanted", 5,
                          values);
}

/* [objects], to be compared with what it was. */
static const char *task_selection(const struct job *job, struct arena *a)
{
    const struct qname_list *const lists[] = {&job->schemas, &job->tables, &job->exclude};
    struct buf b = {0};
    for (int i = 0; i < 3; i++) {
        buf_str(&b, i ? "; " : "");
        job_write_names(&b, job->keys, lists[i]);
    }
    const char *text = arena_str(a, buf_cstr(&b));
    buf_free(&b);
    return text;
}

/* The publication of the way back, if it is there, has the table, or has it no more. */
static status MUST_CHECK task_way_back_has(struct task *t, const char *table, bool has)
{
    struct arena *a = &t->session;
    const char *publication = slot_name(a, t->job, TW_REVERSE), *is = NULL;
    const char *values[] = {publication, table};
    TRY(db_value(&t->to, a, "read the publication", "SELECT m.oid IS NOT NULL FROM pg_publication u"
                 " JOIN pg_class c ON c.oid = to_regclass($2) LEFT JOIN pg_publication_rel m ON"
                 " m.prpubid = u.oid AND m.prrelid = c.oid WHERE u.pubname = $1", 2, values, &is));
    if (!is || (*is == 't') == has) return TW_OK;
    return db_exec(&t->to, "change the publication",
                   arena_fmt(a, "ALTER PUBLICATION \"%s\" %s TABLE ONLY %s", publication,
                             has ? "ADD" : "DROP", table));
}

/* Rows that B has in a table that comes new: a reason to leave it alone. */
static status MUST_CHECK task_has_rows(struct task *t, const char *table, bool *rows)
{
    const char *there, *row = NULL;
    TRY(db_value(&t->to, &t->session, "look for a table", "SELECT to_regclass($1)", 1, &table,
                 &there));
    if (there)
        TRY(db_value(&t->to, &t->session, "look into a table",
                     arena_fmt(&t->session, "SELECT 1 FROM %s LIMIT 1", table), 0, NULL, &row));
    *rows = row != NULL;
    return TW_OK;
}

/* A table joins the publication and shows whole old rows, at once: without a key and without those
 * the server would refuse the application's updates in between.  Writers are not held up for longer
 * than two seconds at a time. */
static status MUST_CHECK task_publish(struct task *t, const struct table *x, const char *name)
{
    const char *identity = "";
    if (t->conf->identity == IDENTITY_FULL && !x->no_whole_rows)
        identity = arena_fmt(&t->session, "ALTER TABLE ONLY %s REPLICA IDENTITY FULL;", name);
    const char *sql = arena_fmt(&t->session, "BEGIN; SET LOCAL lock_timeout = '2s';"
                                " ALTER PUBLICATION \"%s\" ADD TABLE ONLY %s; %s COMMIT", t->slot,
                                name, identity);
    for (int i = 0;; i++) {
        status s = db_exec(&t->from, "publish a table", sql);
        if (s == TW_OK || !str_is(t->e.sqlstate, "55P03") || i == IDENTITY_TRIES) return s;
        error_clear(&t->e);
        log_info("table %s is locked on %c, trying again", name, t->source->letter);
        TRY(db_exec(&t->from, "roll back", "ROLLBACK"));
        TRY(db_tick(&t->from));
    }
}

/* New tables of the job: made on B, parked until their rows are copied, published, in this order,
 * so that it can be done again from the start. */
static status MUST_CHECK task_add_tables(struct task *t, const struct table_list *tables)
{
    struct arena *a = &t->session;
    struct shape_watch watch = {0};
    struct ddl_list list;
    bool *rows = arena_array(a, bool, tables->n + 1);
    for (int i = 0; i < tables->n; i++) {
        const struct table *x = &tables->items[i];
        TRY(task_has_rows(t, name_quoted(t->job, a, x->schema, x->name), &rows[i]));
    }
    TRY(shape_plan(&t->from, a, t->job, tables, &list));
    for (int section = DDL_BEFORE; section <= DDL_LAST && t->conf->schema; section++)
        TRY(shape_run(&t->to, &list, (enum ddl_section) section, 1, &watch));
    for (int i = 0; i < tables->n; i++) {
        const struct table *x = &tables->items[i];
        const char *name = sql_quoted_table(a, x->schema, x->name);
        const char *there = name_quoted(t->job, a, x->schema, x->name);
        if (x->relkind == 'r')
            TRY(task_park(t, name, rows[i] ? "it was added to the job, and holds rows on b already:"
                          " `twsync resync` empties it there first" : "it was added to the job",
                          NULL, !rows[i]));
        if (t->progress.reverse_made && t->job->task[TW_REVERSE].enabled) {
            if (t->job->task[TW_REVERSE].identity == IDENTITY_FULL)
                TRY(db_exec(&t->to, "set a replica identity",
                            arena_fmt(a, "ALTER TABLE ONLY %s REPLICA IDENTITY FULL", there)));
            TRY(task_way_back_has(t, there, true));
        }
        TRY(task_publish(t, x, name));
        log_info("table %s has joined the job", name);
    }
    return TW_OK;
}

/* Tables that the job selects no more: nothing of theirs is carried any longer. */
static status MUST_CHECK task_remove_tables(struct task *t)
{
    struct arena *a = &t->session;
    struct table_list all;
    PGresult *r;
    TRY(task_tables(t, &t->from, t->job, &all));
    const char *values[] = {t->slot, cat_oid_array(a, &all)};
    TRY(db_query(&t->from, a, "read the publication", "SELECT n.nspname, c.relname FROM"
                 " pg_publication_rel m JOIN pg_publication u ON u.oid = m.prpubid JOIN pg_class c"
                 " ON c.oid = m.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE"
                 " u.pubname = $1 AND n.nspname <> 'twsync' AND c.oid <> ALL ($2::oid[])", 2,
                 values, &r));
    for (int i = 0; i < PQntuples(r); i++) {
        const char *schema = PQgetvalue(r, i, 0), *table = PQgetvalue(r, i, 1);
        const char *name = sql_quoted_table(a, schema, table);
        const char *forget[] = {t->name, schema, table};
        TRY(task_way_back_has(t, name_quoted(t->job, a, schema, table), false));
        TRY(db_exec(&t->from, "change the publication",
                    arena_fmt(a, "ALTER PUBLICATION \"%s\" DROP TABLE ONLY %s", t->slot, name)));
        TRY(db_exec_params(&t->to, "forget a table", "WITH p AS (DELETE FROM twsync.parked WHERE"
                           " task = $1 AND schema_name = $2 AND table_name = $3) DELETE FROM"
                           " twsync.copied WHERE task = $1 AND schema_name = $2 AND table_name ="
                           " $3", 3, forget));
        log_info("table %s has left the job; on %c it stays as it is", name, t->target->letter);
    }
    return TW_OK;
}

/* The job's tables are those that [objects] names; when that has changed, tables join and leave.
 * Tables that came otherwise and are not published are told: silence about them would be a trap
 * (failures E11). */
static status MUST_CHECK task_objects(struct task *t)
{
    struct table_list tables, later;
    const char *now = task_selection(t->given, &t->session), *was;
    const char *values[] = {t->name, now};
    if (t->dir == TW_REVERSE) return TW_OK;
    TRY(task_published(t, &t->from, &tables, &later));
    TRY(db_value(&t->to, &t->session, "read the progress",
                 "SELECT objects FROM twsync.progress WHERE task = $1", 1, values, &was));
    bool changed = was && !str_is(was, now);
    if (changed) TRY(task_remove_tables(t));
    if (changed && later.n) TRY(task_add_tables(t, &later));
    for (int i = 0; i < later.n && !changed; i++)
        log_warning("table %s.%s on %c was created after the job began and is not synchronised:"
                    " name it under tables in [objects]", later.items[i].schema,
                    later.items[i].name, t->source->letter);
    if (changed) TRY(task_published(t, &t->from, &tables, &later));
    TRY(task_push_filters(t, &tables));
    if (was && !changed) return TW_OK;
    return db_exec_params(&t->to, "write the progress",
                          "UPDATE twsync.progress SET objects = $2 WHERE task = $1", 2, values);
}

/* Did the last session end by a statement that may fail again at once?  Then the task is Running
 * only when something was applied, or after a while without a failure. */
static bool task_is_failing(const struct task *t)
{
    return t->attempts > 0 && t->failing_as == REACT_LATER;
}

/* Running is what a task is once it streams and is initialised. */
static void task_up(struct task *t)
{
    task_go(t, t->catchup_lsn ? TASK_Initializing : TASK_Running);
}

/* The forward task settles what the two have in dispute. */
static void task_settle_setup(struct task *t)
{
    struct settle *s = &t->settle;
    if (t->dir != TW_FORWARD || !t->job->task[TW_REVERSE].enabled || t->catchup_lsn) return;
    *s = (struct settle){.job = t->job, .page = t->page, .ahead = &t->apply, .e = &t->e,
                         .serial = os_wall()};
    task_db(t, &s->db, t->source, "settle");
    if (job_uses_policy(t->job, POLICY_LATEST))
        s->origin = arena_fmt(&t->session, "twsync_%s_settle", t->job->name);
    s->back = (struct apply){.to = &s->db, .from = &t->to, .e = &t->e, .stat = t->stat,
                             .task = t->opposite, .dir = TW_REVERSE, .memory = &t->page->memory,
                             .origin = s->origin != NULL};
}

/* The reverse task's target has DDL that its source does not have yet. */
static bool task_meets_ddl(const struct task *t)
{
    const struct task_conf *forward = &t->job->task[TW_FORWARD];
    return t->dir == TW_REVERSE && forward->enabled && forward->ddl;
}

/* What the target has of DDL, where the reverse task writes: see apply_send_ddl(). */
static status MUST_CHECK task_ddl_sum(struct task *t, struct db *d, struct arena *a,
                                      const char **sum)
{
    *sum = NULL;
    if (!task_meets_ddl(t)) return TW_OK;
    return db_value(d, a, "read the DDL", "SELECT " APPLY_DDL_SUM, 1, &t->job->name, sum);
}

static status MUST_CHECK task_start_stream(struct task *t)
{
    struct slot_info slot;
    TRY(slot_identify(&t->repl.db, &t->source_id));  /* initialising took a while */
    TRY(task_check_systems(t));
    TRY(task_check_slot(t, &slot));
    TRY(task_session_setup(t));
    TRY(task_new_epoch(t));
    /* The epoch was committed to disk, and with it all that came before.  From here on a commit
     * need not wait for the disk: the source is told of what is there (apply_hear_wal).  Folded
     * changes find their rows by key: never by reading the whole table. */
    usec began = os_now();
    TRY(db_exec(&t->to, "set up the session", "SET synchronous_commit = off;"
                " SET enable_hashjoin = off; SET enable_mergejoin = off"));
    t->apply.rtt_us = os_now() - began;
    t->apply.how = t->conf->bulk;
    TRY(task_retention_cap(t));
    TRY(task_capture_ddl(t));
    TRY(task_objects(t));
    lsn_t from = t->progress.applied_lsn;
    if (from < t->past_lsn) from = t->past_lsn;
    t->apply.epoch = t->progress.epoch;
    t->apply.applied_lsn = t->apply.durable_lsn = t->seen_lsn = from;
    t->clock_due_us = 0;
    t->stat->applied_lsn = from;  /* a target that crashed may have lost what it had */
    t->repl.confirmed_lsn = slot.confirmed_lsn;
    t->retention.n = 0;
    if (from > slot.confirmed_lsn && t->job->retention_us) {
        t->retention.bucket[0].since_us = os_now();
        t->retention.bucket[0].lsn = slot.confirmed_lsn;
        t->retention.n = 1;
    }
    TRY(repl_start(&t->repl, t->slot, from));
    t->to.tick_ms = t->from.tick_ms = t->repl.db.tick_ms;
    /* Longer each time: it may be busy with something huge that is none of our tables. */
    t->repl.silence_us = (REPL_SILENCE_S * USEC_SEC) << (t->attempts < 5 ? t->attempts : 5);
    t->in_txn = false;
    task_phase(t, t->catchup_lsn ? "catchup" : "stream");
    t->apply.job = t->job->name;
    TRY(task_ddl_sum(t, &t->to, &t->session, &t->apply.ddl_sum));
    t->stream_us = os_now();
    if (!task_is_failing(t)) task_up(t);
    log_info("streaming from " LSN_FMT " (%s rung)", LSN_ARG(from), t->stat->rung);
    task_settle_setup(t);
    return TW_OK;
}

/* ---- holding back what the source may forget ---- */

/* A batch was applied on top of `before`. */
static void retention_note(struct retention *r, lsn_t before, usec now, usec keep)
{
    if (!keep) return;
    if (r->n && now - r->bucket[r->n - 1].since_us < keep / RETENTION_SPACING) return;
    if (r->n == RETENTION_BUCKETS) {
        r->n--;
        memmove(r->bucket, r->bucket + 1, sizeof *r->bucket * (size_t) r->n);
    }
    r->bucket[r->n].since_us = now;
    r->bucket[r->n++].lsn = before;
}

/* What may be confirmed: all that was applied longer than `keep` ago, and at the most cap_bytes
 * less than everything.  Where nothing was applied nothing is held: an idle slot advances. */
static lsn_t retention_limit(struct retention *r, lsn_t applied, usec now, usec keep)
{
    int drop = 0;
    while (drop < r->n &&
           (now - r->bucket[drop].since_us > keep + keep / RETENTION_SPACING ||
            applied - r->bucket[drop].lsn > (lsn_t) r->cap_bytes))
        drop++;
    r->n -= drop;
    memmove(r->bucket, r->bucket + drop, sizeof *r->bucket * (size_t) r->n);
    return r->n ? r->bucket[0].lsn : applied;
}

/* ---- the stream ---- */

enum { TASK_BEHIND_MS = 500, TASK_PATIENCE_MS = 10 };

static bool task_batch_empty(const struct task *t)
{
    return !t->apply.open && !t->writing && !t->windows[0].n && !t->windows[1].n;
}

/* Is the row of twsync's own tables the opposite task's mark?  Other jobs' marks are nothing to us:
 * their transactions are changes like any other. */
static bool task_is_our_mark(const struct task *t, const struct rel *rel, const struct msg *m)
{
    const struct tuple *row = m->row.new.n ? &m->row.new : &m->row.old;
    if (!rel->is_marker) return false;
    for (int i = 0; i < rel->ncolumns && i < row->n; i++)
        if (str_is(rel->columns[i].name, "task"))
            return row->values[i].kind == 't' && str_is(row->values[i].data, t->opposite);
    return false;
}

/* A relation described anew: waiting changes speak of its old description. */
static enum take task_relation(struct task *t, const struct msg *m)
{
    struct apply *ap = &t->apply;
    if (apply_rel(ap, m->relid)) {
        if (t->writing || t->w->n) return TAKE_LATER;
        apply_forget_rel(ap, m->relid);
    }
    struct rel *rel = rel_learn(m);
    rel->next = ap->rels;
    ap->rels = rel;
    return TAKE_DONE;
}

/* Columns the target lacks, in the open batch if there is one.  *any: it lacks none of them now. */
static status MUST_CHECK task_add_columns(struct task *t, const struct rel *rel, bool *any)
{
    struct arena a = {0};
    status s = TW_OK;
    *any = false;
    for (int i = 0; s == TW_OK && rel->exists && i < rel->ncolumns; i++) {
        if (rel->target_of[i] != -1) continue;
        s = shape_add_column(t->job, &t->from, &t->to, &a, rel->relid, rel->columns[i].name,
                             any);
        if (!*any) break;
    }
    arena_free(&a);
    return s;
}

/* A column of the target that the source has no more, or never had; NULL if there is none. */
static const char *task_odd_column(const struct rel *rel)
{
    for (int i = 0; i < rel->ntargets; i++)
        if (rel->targets[i].source < 0 && !rel->targets[i].generated) return rel->targets[i].quoted;
    return NULL;
}

/* What is otherwise on A with the columns: values of enums that have other names, columns that were
 * added, which hold for B's rows what B's will hold in them, and types. */
static status MUST_CHECK task_follow_values(struct task *t, struct arena *a, struct rel *rel,
                                            const char *obj, const struct ddl_step *steps, int n)
{
    const char *sql = arena_fmt(a, "SELECT attname, 't' || atttypid, format_type(atttypid,"
                                " atttypmod), %s FROM pg_attribute WHERE attrelid ="
                                " to_regclass($1) AND attnum > 0 AND NOT attisdropped",
                                t->to.version >= 120000 ? "attgenerated <> ''" : "false");
    PGresult *r;
    rel->relabels = arena_array(&rel->arena, struct relabel, n * rel->ncolumns + 1);
    rel->fills = arena_array(&rel->arena, struct fill, n + 1);
    rel->recast = arena_array(&rel->arena, struct recast, rel->ncolumns + 1);
    TRY(db_query(&t->to, a, "read types", sql, 1, &rel->quoted, &r));
    for (int i = 0; i < PQntuples(r); i++) {
        const char *column = db_cell(r, i, 0);
        int c = 0;
        while (c < rel->ncolumns && (!rel->to_columns[c] || !str_is(rel->to_columns[c], column)))
            c++;
        for (int k = 0; k < n; k++) {
            const struct ddl_step *x = &steps[k];
            bool here = obj && str_is(x->obj, obj) && strchr("atu", x->op);
            const char *now = here ? ddl_walk_part(x + 1, n - k - 1, obj, x->name) : NULL;
            if (x->op == 'r' && c < rel->ncolumns && str_is(x->obj, db_cell(r, i, 1)))
                rel->relabels[rel->nrelabels++] = (struct relabel){
                    c, arena_str(&rel->arena, x->was), arena_str(&rel->arena, x->name)};
            if (!now || !str_is(now, column) || db_cell_true(r, i, 3)) continue;
            if (x->op != 'a' && c < rel->ncolumns)
                rel->recast[c] = (struct recast){arena_str(&rel->arena, db_cell(r, i, 2)),
                                                 rel->recast[c].by_using || x->op == 'u'};
            struct buf q = {0};
            sql_ident(&q, column);
            if (x->op == 'a' && c == rel->ncolumns)
                rel->fills[rel->nfills++] = (struct fill){
                    arena_str(&rel->arena, buf_cstr(&q)),
                    x->was ? arena_str(&rel->arena, x->was) : NULL};
            buf_free(&q);
        }
    }
    return TW_OK;
}

static status MUST_CHECK task_follow_table(struct task *t, struct arena *a, struct rel *rel,
                                           const char *now)
{
    PGresult *r;
    TRY(db_query(&t->to, a, "read a name", "SELECT i[1], i[2] FROM parse_ident($1) i", 1, &now,
                 &r));
    rel->a_schema = rel->to_schema = arena_str(&rel->arena, db_cell(r, 0, 0));
    rel->a_name = rel->to_name = arena_str(&rel->arena, db_cell(r, 0, 1));
    rel->quoted = arena_str(&rel->arena, now);
    return TW_OK;
}

/* The reverse task's source is behind in DDL: what B has written to belongs to what has become of
 * it on A, whatever bears its name there now. */
static status MUST_CHECK task_follow_by(struct task *t, struct arena *a, struct rel *rel)
{
    struct ddl_step *steps;
    const char *now = rel->quoted, *obj;
    int n;
    TRY(ddl_steps(&t->from, &t->to, a, t->job, t->begin.final_lsn, &steps, &n));
    if (!n) return TW_OK;
    ddl_walk_table(steps, n, &now, &obj);
    if (!now) {
        log_warning("changes of table %s are left out: it was dropped on %c", rel->quoted,
                    t->target->letter);
        rel->parked = rel->resolved = true;
        return TW_OK;
    }
    if (!str_is(now, rel->quoted)) TRY(task_follow_table(t, a, rel, now));
    if (!obj)
        TRY(db_value(&t->to, a, "find a table", "SELECT 'r' || to_regclass($1)::oid", 1, &now,
                     &obj));
    for (int i = 0; obj && i < rel->ncolumns; i++) {
        const char *name = ddl_walk_part(steps, n, obj, rel->a_columns[i]);
        rel->columns[i].gone = !name;
        if (!rel->to_columns[i]) continue;  /* B's own */
        rel->a_columns[i] = name ? arena_str(&rel->arena, name) : "";
        rel->to_columns[i] = rel->a_columns[i];  /* "": what bears its name is another */
    }
    return task_follow_values(t, a, rel, obj, steps, n);
}

static status MUST_CHECK task_follow(struct task *t, struct rel *rel)
{
    struct arena a = {0};
    if (rel->followed || !task_meets_ddl(t)) return TW_OK;
    rel->followed = true;
    status s = task_follow_by(t, &a, rel);
    arena_free(&a);
    return s;
}

/* A value as its new type writes it; *refused: that type would not have it. */
static status MUST_CHECK task_cast(struct task *t, const char *type, struct value *v, bool *refused)
{
    struct arena *a = &t->w->arena;
    const char *text = value_text(v), *sql = arena_fmt(a, "SELECT $1::text::%s", type);
    PGresult *r;
    status s = TW_OK;
    if (t->apply.open) TRY(db_exec(&t->to, "set a savepoint", "SAVEPOINT tw_cast"));
    TRY(db_attempt(&t->to, sql, 1, &text, &r));
    const char *state = PQresultErrorField(r, PG_DIAG_SQLSTATE);
    if (db_result_ok(r)) *v = value_of(arena_str(a, db_cell(r, 0, 0)));
    else if (state && state_refuses(state)) *refused = true;
    else s = db_fail_result(&t->to, r, "read a value as its new type");
    PQclear(r);
    if (s != TW_OK || !t->apply.open) return s;
    return db_exec(&t->to, "end a savepoint", *refused
                   ? "ROLLBACK TO SAVEPOINT tw_cast; RELEASE SAVEPOINT tw_cast"
                   : "RELEASE SAVEPOINT tw_cast");
}

/* Values of columns whose type A has changed meanwhile, as A writes them: what is there is compared
 * with them as text.  What the new type would not have is left out: an update leaves the column as
 * it is, a new row has NULL there. */
static status MUST_CHECK task_recast_row(struct task *t, struct change *c, struct tuple *row,
                                         bool *any)
{
    const struct rel *rel = c->rel;
    for (int i = 0; i < rel->ncolumns && i < row->n; i++) {
        bool refused = false;
        struct value *v = &row->values[i];
        if (!rel->recast[i].type || !value_text(v)) continue;
        TRY(task_cast(t, rel->recast[i].type, v, &refused));
        if (!refused) continue;
        *any = true;
        *v = (struct value){.kind = row == &c->m.new && c->m.kind == 'I' ? 'n' : 'u'};
        for (int k = 0; k < rel->nident; k++) c->lost = c->lost || rel->ident[k] == i;
    }
    return TW_OK;
}

/* What USING has made of the target's values is not compared, nor written where B did not. */
static void task_recast_using(struct change *c)
{
    const struct rel *rel = c->rel;
    for (int i = 0; i < rel->ncolumns && c->m.old_kind == 'O'; i++) {
        struct value *old = &c->m.old.values[i], none = {.kind = 'u'};
        bool is_key = false;
        for (int k = 0; k < rel->nident; k++) is_key = is_key || rel->ident[k] == i;
        if (!rel->recast[i].by_using) continue;
        c->guessed = c->guessed || is_key;
        if (is_key) continue;
        if (c->m.kind == 'U' && value_equal(old, &c->m.new.values[i])) c->m.new.values[i] = none;
        *old = none;
    }
}

static struct tuple task_copy_row(struct task *t, const struct tuple *row)
{
    struct tuple copy = {row->n, arena_array(&t->w->arena, struct value, row->n + 1)};
    if (row->n) memcpy(copy.values, row->values, sizeof *row->values * (size_t) row->n);
    return copy;
}

static status MUST_CHECK task_recast(struct task *t, struct change *c)
{
    struct dml *sent = arena_new(&t->w->arena, struct dml);
    bool any = false;
    *sent = c->m;
    c->m.new = task_copy_row(t, &sent->new);
    c->m.old = task_copy_row(t, &sent->old);
    task_recast_using(c);
    TRY(task_recast_row(t, c, &c->m.new, &any));
    TRY(task_recast_row(t, c, &c->m.old, &any));
    if (any) c->sent = sent;
    if (c->lost) c->m = *sent;
    return TW_OK;
}

/* A table that A has moved out of what is selected. */
static status MUST_CHECK task_is_moved_out(struct task *t, struct rel *rel)
{
    struct arena a = {0};
    const char *values[] = {t->job->name, rel->quoted}, *found = NULL;
    struct tw_error why = t->e;
    error_clear(&t->e);
    status s = db_value(&t->to, &a, "read what was moved", "SELECT 1 FROM twsync.ddl WHERE job = $1"
                        " AND skipped = 'moved out of what is selected' AND names->>0 = $2 LIMIT 1",
                        2, values, &found);
    arena_free(&a);
    TRY(s);
    if (!found) {
        t->e = why;
        return why.code;
    }
    log_warning("changes of table %s are left out: %c has moved it out of what is selected",
                rel->quoted, t->target->letter);
    rel->parked = rel->resolved = true;
    return TW_OK;
}

/* A new name on the source need not be a new column: where the target has one that the source lacks
 * it may be that one, renamed. */
static status MUST_CHECK task_resolve(struct task *t, struct rel *rel)
{
    if (t->dir == TW_REVERSE) TRY(task_follow(t, rel));
    if (rel->resolved) return TW_OK;
    status s = rel_resolve(rel, &t->from, &t->to, t->name, &t->begin);
    if (s == TW_ESCHEMA && t->dir == TW_REVERSE && !rel->exists) return task_is_moved_out(t, rel);
    if (s != TW_ESCHEMA || !t->conf->ddl || t->dir == TW_REVERSE) return s;
    struct tw_error why = t->e;
    const char *odd = rel->exists ? task_odd_column(rel) : NULL;
    bool any;
    error_clear(&t->e);
    if (odd) {
        fail_hint(&t->e, "%c has a column %s there, which %c lacks: if it was renamed or dropped,"
                         " do the same on %c.", t->target->letter, odd, t->source->letter,
                  t->target->letter);
        return fail(&t->e, TW_ESCHEMA, "%s", why.msg);
    }
    TRY(task_add_columns(t, rel, &any));
    if (any) return rel_resolve(rel, &t->from, &t->to, t->name, &t->begin);
    t->e = why;
    return s;
}

/* What the job says of its table. */
static status MUST_CHECK task_rules(struct task *t, struct rel *rel)
{
    const struct table_rules *r;
    /* B's partitions are as the stream has them; A's may be otherwise by now. */
    struct db *b = t->dir == TW_FORWARD ? &t->to : &t->from;
    TRY(rules_find(t->job, b, rel->a_schema, rel->a_name, &r));
    if (!r || r->made) TRY(rules_find(t->job, task_a(t), rel->a_schema, rel->a_name, &r));
    int carried = r && r->operations[t->dir] ? r->operations[t->dir] : t->conf->operations;
    rel->left_out = OP_ALL & ~carried;
    rel->parts = rules_part(t->job, r);
    if (t->dir == TW_REVERSE && r && r->nsets) rules_loosen(rel, r);
    bool asks = t->dir == TW_FORWARD && rel->resolved && !rel->parked && rules_see_rows(r);
    bool two_way = t->job->task[TW_REVERSE].enabled;
    return asks ? rules_prepare(rel, r, two_way, &t->from) : TW_OK;
}

/* Is the kind of change left out?  Not while a table is caught up with: then all of them make its
 * rows what they were at the last snapshot. */
static bool task_leaves_out(const struct task *t, const struct rel *rel, int op)
{
    return rel->left_out & op && t->begin.final_lsn >= rel->catchup_lsn;
}

/* The relation of a change that is to be applied; *out NULL when it is not ours to apply, or when
 * its place must be looked up first and the target is at work. */
static status MUST_CHECK task_rel(struct task *t, uint32_t relid, struct rel **out,
                                  enum take *take)
{
    struct rel *rel = apply_rel(&t->apply, relid);
    *out = NULL;
    if (!rel) return fail(&t->e, TW_EPROTO, "change of unknown relation %" PRIu32, relid);
    if (rel->is_marker) return TW_OK;
    if (!rel->resolved && t->writing) {
        *take = TAKE_LATER;
        return TW_OK;
    }
    if (rel_skips(rel, t->begin.final_lsn, t->begin.xid)) return TW_OK;
    if (!rel->resolved) {
        if (t->dir == TW_FORWARD) rel_name_b(rel, t->job);
        else TRY(rel_name_a(rel, t->job, &t->to));
        rel->policy = job_policy(t->job, t->dir, rel->a_schema, rel->a_name);
        rel->merge = rel->policy == POLICY_LATEST ? MERGE_ROWS : t->conf->merge;
        TRY(task_resolve(t, rel));
        TRY(task_rules(t, rel));
    }
    if (!rel->resolved || rel->parked) return TW_OK;
    *out = rel;
    return TW_OK;
}

/* For the opposite task, which may find the row missing. */
static void task_remember_delete(struct task *t, const struct rel *rel, const struct msg *m)
{
    if (!rel->nident) return;
    uint64_t key = rel_hash_key(rel, m->row.old.values);
    size_t i = key % MEMORY_DELETES;
    t->page->memory.deleted[t->dir][i].us = t->begin.commit_us;
    t->page->memory.deleted[t->dir][i].key = key;
}

/* ---- DDL ---- */

/* Any commit writes the WAL before it to disk, from where the reverse task's source reads it; our
 * open transaction's would lie there for up to 15 s. */
static status MUST_CHECK task_flush_wal(struct task *t)
{
    struct db d;
    task_db(t, &d, t->target, "flush");
    status s = db_open(&d, false);
    if (s == TW_OK) s = db_exec(&d, "write the WAL", "SELECT txid_current()");
    db_close(&d);
    return s;
}

/* What was committed on B before now is on A too: the reverse task has passed it.  Nobody writes to
 * the table meanwhile, for we hold its lock. */
static status MUST_CHECK task_wait_reverse(struct task *t, struct arena *a)
{
    const struct stat_task *reverse = &t->page->task[TW_REVERSE];
    const char *text;
    lsn_t until;
    usec began = os_now();
    if (!t->progress.reverse_made || !t->job->task[TW_REVERSE].enabled) return TW_OK;
    TRY(db_value(&t->to, a, "read the position", "SELECT pg_current_wal_insert_lsn()", 0, NULL,
                 &text));
    if (!lsn_parse(text, &until)) return fail(&t->e, TW_EPROTO, "bad position \"%s\"", text);
    TRY(task_flush_wal(t));
    while (reverse->passed_lsn < until) {
        if (os_now() - began > 30 * USEC_SEC)
            return fail(&t->e, TW_EBUSY, "task %s has not passed " LSN_FMT " yet: a table that is"
                        " to be copied again waits for it", t->opposite, LSN_ARG(until));
        os_sleep_ms(20);
        TRY(db_tick(&t->to));
    }
    return TW_OK;
}

/* Nobody writes to the table on B from here on, and what was written is on A. */
static status MUST_CHECK task_lock_table(struct task *t, struct arena *a, const char *table)
{
    const char *there;
    bool lacks;
    table = name_sql(t->job, a, NULL, table, &lacks);
    TRY(db_value(&t->to, a, "look for a table", "SELECT to_regclass($1)", 1, &table, &there));
    if (!there) return TW_OK;
    TRY(db_exec(&t->to, "lock a table", arena_fmt(a, "SET LOCAL lock_timeout = '10s'; LOCK TABLE"
                                                     " ONLY %s IN EXCLUSIVE MODE;"
                                                     " SET LOCAL lock_timeout = 0", table)));
    return task_wait_reverse(t, a);
}

/* Its rows on B go, for those of A come. */
static status MUST_CHECK task_empty_table(struct task *t, struct arena *a, const char *table)
{
    const char *there;
    bool lacks;
    table = name_sql(t->job, a, NULL, table, &lacks);
    TRY(db_value(&t->to, a, "look for a table", "SELECT to_regclass($1)", 1, &table, &there));
    if (!there) return TW_OK;
    return db_exec(&t->to, "empty a table", arena_fmt(a, "DELETE FROM ONLY %s", table));
}

/* The publication that new tables of B join; NULL: the way back is not made yet. */
static const char *task_way_back(const struct task *t, struct arena *a)
{
    bool made = t->progress.reverse_made && t->job->task[TW_REVERSE].enabled;
    return made ? slot_name(a, t->job, TW_REVERSE) : NULL;
}

/* ---- a table's rows ---- */

/* A snapshot of the source, and how the stream knows what is in it: by xid, up to `point`.  No slot
 * is made for it: that would wait for all older transactions, with our locks held. */
struct moment {
    struct db lead;
    lsn_t point;       /* all transactions that it sees were committed before */
    const char *seen;  /* which those are */
};

static status MUST_CHECK moment_open(struct task *t, struct arena *a, struct moment *m)
{
    const char *point;
    task_db(t, &m->lead, t->source, "copy");
    TRY(db_open(&m->lead, false));
    TRY(db_exec(&m->lead, "take a snapshot", "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"));
    TRY(db_value(&m->lead, a, "take a snapshot", "SELECT txid_current_snapshot()", 0, NULL,
                 &m->seen));
    TRY(db_value(&m->lead, a, "read the position", "SELECT pg_current_wal_insert_lsn()", 0, NULL,
                 &point));
    if (!lsn_parse(point, &m->point)) return fail(&t->e, TW_EPROTO, "bad position \"%s\"", point);
    return TW_OK;
}

/* Find the table in the snapshot, and hold it: what a snapshot sees of a table that was written
 * anew since, or of the catalog, is not what was.  *held false: there is DDL that B has not done
 * yet, besides this event. */
static status MUST_CHECK moment_hold(struct task *t, struct arena *a, struct moment *m,
                                     const char *name, const char *event_id, struct table *table,
                                     bool *held)
{
    const char *done, *oid, *same;
    PGresult *r, *locked;
    *held = false;
    TRY(db_query(&m->lead, a, "read the table", "SELECT n.nspname, c.relname, c.oid, c.relfilenode,"
                 " pg_table_size(c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid ="
                 " c.relnamespace, parse_ident($1) i"
                 " WHERE c.relkind = 'r' AND n.nspname = i[1] AND c.relname = i[2]", 1, &name, &r));
    if (!PQntuples(r)) return TW_OK;
    table->schema = db_cell(r, 0, 0);
    table->name = db_cell(r, 0, 1);
    table->oid = (uint32_t) db_cell_int(r, 0, 2);
    table->bytes = db_cell_int(r, 0, 4);
    oid = db_cell(r, 0, 2);
    TRY(db_exec(&m->lead, "set a savepoint", "SAVEPOINT tw_hold"));
    TRY(db_attempt(&m->lead, arena_fmt(a, "SET LOCAL lock_timeout = '2s'; LOCK TABLE ONLY %s IN"
                                          " ACCESS SHARE MODE", name), 0, NULL, &locked));
    bool got = db_result_ok(locked);
    PQclear(locked);
    if (!got) return db_exec(&m->lead, "roll back to a savepoint", "ROLLBACK TO SAVEPOINT tw_hold");
    const char *ask[] = {oid, db_cell(r, 0, 3)};
    TRY(db_value(&t->from, a, "look at the table", "SELECT 1 FROM pg_class WHERE oid = $1::oid AND"
                 " relfilenode = $2::oid", 2, ask, &same));
    if (!same) return TW_OK;
    bool behind;
    TRY(ddl_done(&t->to, a, t->job, event_id, &done));
    TRY(ddl_is_behind(&t->from, a, t->job, done, &behind));
    *held = !behind;
    return TW_OK;
}

/* Make the table on B what it is on A, and copy its rows: the stream leaves out what was committed
 * before.  *refused: what B would not have; NULL if all is well. */
static status MUST_CHECK task_copy_rows(struct task *t, struct arena *a, struct moment *m,
                                        const struct table *table, const char **refused)
{
    struct table item = *table;
    struct table_list one = {.items = &item, .n = 1};
    struct copy c = {.job = t->job, .source = t->source, .target = t->target, .e = &t->e,
                     .ledger = t->name, .snapshot_lsn = m->point, .seen = m->seen, .page = t->page,
                     .tables = &one};
    const char *name = sql_quoted_table(a, table->schema, table->name);
    struct ddl_work w = {.job = t->job, .to = &t->to, .arena = a,
                         .publication = task_way_back(t, a)};
    *refused = NULL;
    TRY(ddl_bring(&w, &m->lead, table->oid, name));
    TRY(ddl_drop_columns(&w));
    for (int i = 0; i < w.n && !*refused; i++)
        if (!w.changes[i].done && ddl_parks(&w.changes[i]))
            *refused = arena_fmt(a, "%s: %s", w.changes[i].what, w.changes[i].why.msg);
    if (*refused) return TW_OK;
    TRY(db_exec(&t->to, "set a savepoint", "SAVEPOINT tw_copy"));
    status s = copy_one(&c, a, &m->lead, &t->to);
    if (s == TW_ESERVER) {  /* a row that B would not have */
        *refused = arena_str(a, t->e.msg);
        error_clear(&t->e);
        return db_exec(&t->to, "roll back to a savepoint", "ROLLBACK TO SAVEPOINT tw_copy");
    }
    TRY(s);
    log_info("table %s copied: %" PRId64 " rows as of " LSN_FMT, name, c.chunk_rows,
             LSN_ARG(m->point));
    const char *own[] = {t->name, arena_fmt(a, "r%" PRIu32, table->oid)};
    TRY(db_exec_params(&t->to, "take a table back", "DELETE FROM twsync.barred WHERE task = $1 AND"
                       " obj = $2", 2, own));
    bool lacks;
    const char *values[] = {t->name, name, name_sql(t->job, a, NULL, name, &lacks)};
    /* And its types, if they were parked. */
    return db_exec_params(&t->to, "take a table back", "DELETE FROM twsync.parked k WHERE task = $1"
                          " AND (ARRAY[schema_name, table_name] = parse_ident($2) OR EXISTS (SELECT"
                          " FROM pg_attribute a JOIN pg_type y ON y.oid = a.atttypid JOIN"
                          " pg_namespace n ON n.oid = y.typnamespace WHERE a.attrelid ="
                          " to_regclass($3) AND a.attnum > 0 AND n.nspname = k.schema_name AND"
                          " y.typname = k.table_name))", 3, values);
}

/* Is the table another one on B, or (refused) was something of it refused? */
static bool task_ddl_bars(const struct ddl_work *w, const char *table, bool refused)
{
    for (int i = 0; i < w->n; i++) {
        const struct ddl_change *c = &w->changes[i];
        bool other = c->barred || c->was_barred;
        bool failed = c->why.msg[0] && !c->done && ddl_parks(c);
        if (c->table && str_is(c->table, table) && (other || (refused && failed))) return true;
    }
    return false;
}

/* The tables of an event that need their rows: copied within its transaction, so that nobody on B
 * sees them empty.  If there is more DDL on its way, what the rows need may come with it: they are
 * left out of the stream until it has come, and copied then. */
static status MUST_CHECK task_ddl_copy(struct task *t, struct arena *a, struct ddl_work *w,
                                       struct moment *m, const char *table, bool put_off)
{
    struct table found = {0};
    const char *refused = "its rows are copied when more DDL has come";
    bool held = false;
    if (!put_off) TRY(moment_hold(t, a, m, table, w->event->id, &found, &held));
    if (held) TRY(task_copy_rows(t, a, m, &found, &refused));
    return refused ? task_park(t, table, refused, w->event->id, true) : TW_OK;
}

static status MUST_CHECK task_ddl_copies(struct task *t, struct arena *a, struct ddl_work *w,
                                         bool put_off)
{
    struct moment m = {0};
    status s = w->ncopies && !put_off ? moment_open(t, a, &m) : TW_OK;
    for (int i = 0; s == TW_OK && i < w->ncopies; i++)
        if (!task_ddl_bars(w, w->copies[i], true))
            s = task_ddl_copy(t, a, w, &m, w->copies[i], put_off);
    db_close(&m.lead);
    return s;
}

/* What the target refused. */
static status MUST_CHECK task_ddl_refused(struct task *t, struct arena *a, struct ddl_work *w)
{
    for (int i = 0; i < w->n; i++) {
        const struct ddl_change *c = &w->changes[i];
        if (c->done || c->parked || ((c->barred || c->op == 'd') && !c->why.msg[0])) continue;
        t->stat->ddl_failed++;
        const char *whole = ddl_whole(c);
        bool of_table = !strncmp(c->what, "table ", 6);
        if (whole && c->op == (of_table ? 'd' : 's')) {
            TRY(task_park(t, whole, arena_fmt(a, "%s: %s", c->what, c->why.msg), w->event->id,
                          false));
        } else if (ddl_parks(c)) {
            TRY(task_park(t, c->table, arena_fmt(a, "%s: %s", c->what, c->why.msg), w->event->id,
                          false));
        } else {
            log_warning("%s could not be made on %c as it is on %c: %s", c->what,
                        t->target->letter, t->source->letter, c->why.msg);
        }
    }
    return TW_OK;
}

/* What B has in the tables that are copied goes before they are changed: nothing of it need fit.
 * Not what other tables refer to, which is checked anew with the change: that goes afterwards. */
static status MUST_CHECK task_ddl_empty(struct task *t, struct arena *a, const struct ddl_work *w,
                                        bool first, bool put_off)
{
    for (int i = 0; i < w->ncopies; i++) {
        const char *table = w->copies[i], *kept = NULL;
        bool lacks;
        const char *there = name_sql(t->job, a, NULL, table, &lacks);
        if (task_ddl_bars(w, table, first)) continue;
        if (first)
            TRY(db_value(&t->to, a, "look for references", "SELECT 1 FROM pg_constraint WHERE"
                         " contype = 'f' AND confrelid = to_regclass($1) AND conrelid <> confrelid"
                         " LIMIT 1", 1, &there, &kept));
        if (first && !put_off) TRY(task_lock_table(t, a, table));
        if (!kept) TRY(task_empty_table(t, a, table));
    }
    return TW_OK;
}

/* A table that has left its section by another name: what that held back must not come to B. */
static status MUST_CHECK task_ddl_rules(struct task *t, struct arena *a, const struct ddl_work *w)
{
    for (int i = 0; i < w->n; i++) {
        const struct ddl_change *c = &w->changes[i];
        PGresult *r;
        if (c->reread && c->table)
            TRY(task_park(t, c->table, "a column was renamed, and the job carries only one of its"
                                       " names", w->event->id, true));
        if (c->op != 'r' || !c->a_old || strncmp(c->a_old, "table ", 6)) continue;
        const char *names[] = {c->a_old + strlen("table "), c->a_what + strlen("table ")};
        TRY(db_query(&t->to, a, "read names", "SELECT o[1], o[2], n[1], n[2] FROM parse_ident($1)"
                     " o, parse_ident($2) n", 2, names, &r));
        const struct table_rules *was = job_rules(t->job, PQgetvalue(r, 0, 0), PQgetvalue(r, 0, 1));
        const struct table_rules *is = job_rules(t->job, PQgetvalue(r, 0, 2), PQgetvalue(r, 0, 3));
        if (was == is) continue;
        if (!rules_see_rows(was) && (rules_columns(was) || rules_columns(is)))
            TRY(task_park(t, names[1], "other columns are carried under its new name",
                          w->event->id, true));
        if (!rules_see_rows(was)) continue;
        TRY(task_park(t, names[1], arena_fmt(a, "its [table] section is for %s: name it anew, then"
                                             " `twsync reload` and `twsync resync`", names[0]),
                      w->event->id, false));
    }
    return TW_OK;
}

static status MUST_CHECK task_ddl_apply(struct task *t, struct arena *a,
                                        const struct ddl_event *event)
{
    struct ddl_work w = {.job = t->job, .to = &t->to, .arena = a, .event = event, .task = t->name,
                         .commit_lsn = t->begin.final_lsn, .publication = task_way_back(t, a)};
    TRY(task_learn(t, event->changes));
    w.job = t->job;
    /* With the locks of other DDL held, the reverse task must not be waited for. */
    bool put_off = t->alone;
    TRY(ddl_begin(&w));
    TRY(task_ddl_empty(t, a, &w, true, put_off));
    TRY(ddl_finish(&w));
    TRY(task_ddl_empty(t, a, &w, false, put_off));
    if (w.ncopies) TRY(ddl_pass(&w, 's'));  /* it may be easier without rows */
    TRY(task_ddl_copies(t, a, &w, put_off));
    TRY(task_ddl_rules(t, a, &w));
    TRY(task_ddl_refused(t, a, &w));
    return ddl_note(&w, t->job);
}

/* Which value of a row belongs to a column of twsync.ddl. */
static const char *task_ddl_value(const struct rel *rel, const struct msg *m, const char *column)
{
    for (int i = 0; i < rel->ncolumns && i < m->row.new.n; i++)
        if (str_is(rel->columns[i].name, column)) return value_text(&m->row.new.values[i]);
    return NULL;
}

/* All that was known of tables on the target may be otherwise now. */
static void task_relearn(struct task *t)
{
    struct rel *old = t->apply.rels, *next, *fresh = NULL;
    for (struct rel *r = old; r; r = r->next) {
        struct msg m = {.kind = 'R', .relid = r->relid, .schema = r->schema, .name = r->name,
                        .replident = r->replident, .ncolumns = r->ncolumns, .columns = r->columns};
        struct rel *copy = rel_learn(&m);
        copy->next = fresh;
        fresh = copy;
    }
    for (struct rel *r = old; r; r = next) {
        next = r->next;
        apply_forget_rel(&t->apply, r->relid);
    }
    t->apply.rels = fresh;
}

/* ---- copying a table again ---- */

enum { TASK_RESYNC_TRIES = 5, TASK_RESYNC_S = 1, TASK_RESYNC_SOON_MS = 100 };

/* Have A's event triggers look at the table once more: by DDL that changes nothing.  Nobody writes
 * to it meanwhile, for it may join the publication only now. */
static status MUST_CHECK task_resync_look(struct task *t, struct arena *a, const char *name)
{
    const char *sql = NULL, *values[] = {t->name, name};
    PGresult *r;
    TRY(db_value(&t->from, a, "look at the table", "SELECT format('BEGIN; SET LOCAL lock_timeout ="
                 " ''2s''; LOCK TABLE ONLY %I.%I IN SHARE ROW EXCLUSIVE MODE; COMMENT ON TABLE"
                 " %I.%I IS %L; COMMIT', n.nspname, c.relname, n.nspname, c.relname,"
                 " obj_description(c.oid, 'pg_class')) FROM pg_class c JOIN pg_namespace n ON n.oid"
                 " = c.relnamespace WHERE c.oid = to_regclass($1) AND c.relkind = 'r'", 1, &name,
                 &sql));
    if (sql) {
        TRY(db_attempt(&t->from, sql, 0, NULL, &r));
        bool done = db_result_ok(r);
        PQclear(r);
        if (!done) return db_exec(&t->from, "roll back", "ROLLBACK");
    }
    log_info("table %s on %c was looked at once more", name, t->source->letter);
    return db_exec_params(&t->to, "note the look", "UPDATE twsync.parked SET look = false WHERE"
                          " task = $1 AND ARRAY[schema_name, table_name] = parse_ident($2)", 2,
                          values);
}

/* In a transaction of its own.  *later: not now. */
static status MUST_CHECK task_resync_table(struct task *t, struct arena *a, const char *name,
                                           struct moment *m, bool *later, const char **refused)
{
    struct table found = {0};
    const char *done;
    bool held;
    TRY(db_exec(&t->to, "set up the session", "SET LOCAL check_function_bodies = off"));
    TRY(ddl_done(&t->to, a, t->job, NULL, &done));
    TRY(ddl_is_behind(&t->from, a, t->job, done, later));
    if (*later) return TW_OK;
    log_info("copying table %s again", name);
    TRY(task_lock_table(t, a, name));
    TRY(task_empty_table(t, a, name));
    TRY(moment_open(t, a, m));
    TRY(moment_hold(t, a, m, name, NULL, &found, &held));
    *later = !held && found.oid;
    *refused = "it is not there on the source";
    if (!held) return TW_OK;
    return task_copy_rows(t, a, m, &found, refused);
}

/* Trying was noted first, so that what cannot be done does not keep the task from its work for
 * ever.  What only has to wait does not count. */
static status MUST_CHECK task_resync_one(struct task *t, struct arena *a, const char *name,
                                         bool *any_later)
{
    struct window none = {0};
    struct moment m = {0};
    bool committed, later = false;
    const char *refused = NULL;
    t->apply.end_lsn = t->apply.applied_lsn;
    TRY(apply_window(&t->apply, &none, 0, &committed));
    status s = task_resync_table(t, a, name, &m, &later, &refused);
    db_close(&m.lead);
    if (s == TW_EBUSY || (s != TW_OK && str_is(t->e.sqlstate, "55P03"))) {
        log_info("table %s is not copied yet: %s", name, t->e.msg);
        error_clear(&t->e);
        later = true;
        s = TW_OK;
    }
    TRY(s);
    if (!later && !refused) {
        t->apply.rows++;
        TRY(apply_commit(&t->apply, false));
        task_relearn(t);
        return TW_OK;
    }
    *any_later = *any_later || later;
    TRY(db_exec(&t->to, "roll back", "ROLLBACK"));
    apply_abandon(&t->apply);
    if (!later) log_warning("could not copy table %s again: %s", name, refused);
    const char *values[] = {t->name, name, later ? NULL : refused};
    return db_exec_params(&t->to, "write the reason", "UPDATE twsync.parked SET reason ="
                          " coalesce($3, reason), tries = tries - ($3 IS NULL)::int, wanted ="
                          " wanted OR $3 IS NULL WHERE task = $1 AND ARRAY[schema_name, table_name]"
                          " = parse_ident($2)", 3, values);
}

/* Between batches: what DDL has left to be copied, and what `twsync resync` has asked for. */
static status MUST_CHECK task_resync(struct task *t)
{
    struct arena a = {0};
    PGresult *r = NULL;
    bool later = false;
    const char *values[] = {t->name, arena_fmt(&a, "%d", TASK_RESYNC_TRIES)}, *n = NULL;
    if (t->dir == TW_REVERSE || t->catchup_lsn || os_now() < t->resync_due_us) return TW_OK;
    status s = db_query(&t->to, &a, "look for tables to copy again",
                        "UPDATE twsync.parked SET tries = tries + 1, wanted = tries + 1 < $2::int"
                        " WHERE task = $1 AND wanted RETURNING '\"' || replace(schema_name, '\"',"
                        " '\"\"') || '\".\"' || replace(table_name, '\"', '\"\"') || '\"', look", 2,
                        values, &r);
    for (int i = 0; s == TW_OK && i < PQntuples(r); i++) {
        if (db_cell_true(r, i, 1)) s = task_resync_look(t, &a, db_cell(r, i, 0));
        if (s == TW_OK) s = task_resync_one(t, &a, db_cell(r, i, 0), &later);
    }
    if (s == TW_OK)
        s = db_value(&t->to, &a, "count parked tables",
                     "SELECT count(*) FROM twsync.parked WHERE task = $1", 1, values, &n);
    if (s == TW_OK) t->stat->parked = strtoll(n, NULL, 10);
    t->resync_due_us = os_now() + (later ? TASK_RESYNC_SOON_MS * 1000 : TASK_RESYNC_S * USEC_SEC);
    arena_free(&a);
    return s;
}

static void task_ddl_left_out(struct task *t, const struct ddl_event *event)
{
    *(event->failed ? &t->stat->ddl_failed : &t->stat->ddl_skipped) += 1;
    log_warning("%s of %s on %c is not carried: %s", event->tag, event->names ? event->names : "?",
                t->source->letter, event->skipped ? event->skipped : event->failed);
}

/* DDL that could not be written down: its tables are parked until A has been asked what they are,
 * and are copied then. */
static status MUST_CHECK task_ddl_look(struct task *t, struct arena *a,
                                       const struct ddl_event *event)
{
    const char *values[] = {t->name, event->id};
    PGresult *r;
    TRY(db_query(&t->to, a, "read the tables",
                 "SELECT c.fq FROM jsonb_to_recordset($1::jsonb) c(fq text)", 1, &event->copies,
                 &r));
    for (int i = 0; i < PQntuples(r); i++)
        TRY(task_park(t, db_cell(r, i, 0), arena_fmt(a, "%s was not written down: %s", event->tag,
                                                     event->failed), event->id, true));
    return db_exec_params(&t->to, "park a table", "UPDATE twsync.parked SET look = true WHERE task"
                          " = $1 AND ddl_id = $2::bigint", 2, values);
}

/* A row of twsync.ddl: DDL of the source at its place between the rows. */
static status MUST_CHECK task_ddl(struct task *t, const struct rel *rel, const struct msg *m,
                                  enum take *take)
{
    struct arena a = {0};
    struct window none = {0};
    bool committed;
    const char *job = task_ddl_value(rel, m, "job");
    if (m->kind != 'I' || t->dir == TW_REVERSE || !job || !str_is(job, t->job->name)) return TW_OK;
    struct ddl_event event = {
        .id = task_ddl_value(rel, m, "id"), .tag = task_ddl_value(rel, m, "tag"),
        .names = task_ddl_value(rel, m, "names"),
        .changes = task_ddl_value(rel, m, "changes"), .copies = task_ddl_value(rel, m, "copies"),
        .skipped = task_ddl_value(rel, m, "skipped"), .failed = task_ddl_value(rel, m, "failed")};
    bool again = event.failed && event.copies;  /* not written down: its tables are looked at */
    if (!again && (event.skipped || event.failed || !event.changes)) {
        task_ddl_left_out(t, &event);
        return TW_OK;
    }
    if (t->writing || t->w->n) {
        *take = TAKE_LATER;
        return TW_OK;
    }
    if (again) task_ddl_left_out(t, &event);
    if (!t->apply.first_lsn) t->apply.first_lsn = t->begin.final_lsn;
    settle_touch_all(&t->page->memory);
    TRY(apply_window(&t->apply, &none, 0, &committed));
    TESTPOINT(&t->e, "task.ddl");
    log_info("%s on %c", event.tag, t->source->letter);
    status s = again ? task_ddl_look(t, &a, &event) : task_ddl_apply(t, &a, &event);
    arena_free(&a);
    t->apply.rows++;
    t->alone = true;
    t->stat->ddl++;
    task_relearn(t);
    return s;
}

/* ---- messages ---- */

static status MUST_CHECK task_change(struct task *t, const struct msg *m, enum take *take)
{
    struct rel *rel = apply_rel(&t->apply, m->relid);
    if (!t->decided) {
        t->decided = true;
        t->dropping = rel && task_is_our_mark(t, rel, m);
        if (t->dropping) return TW_OK;
    }
    if (rel && rel->is_marker && str_is(rel->name, "ddl")) return task_ddl(t, rel, m, take);
    TRY(task_rel(t, m->relid, &rel, take));
    if (!rel) return TW_OK;
    if ((m->kind != 'D' && m->row.new.n != rel->ncolumns) ||
        (m->row.old_kind && m->row.old.n != rel->ncolumns))
        return fail(&t->e, TW_EPROTO, "change of %s has another number of columns than the table",
                    rel->quoted);
    int op = m->kind == 'I' ? OP_INSERT : m->kind == 'U' ? OP_UPDATE : OP_DELETE;
    if (task_leaves_out(t, rel, op)) {
        if (m->kind == 'D') task_remember_delete(t, rel, m);
        return TW_OK;
    }
    struct change c = {.rel = rel, .m = m->row, .commit_lsn = t->begin.final_lsn,
                       .commit_us = t->begin.commit_us, .seq = t->seq};
    rel_relabel(rel, &c.m.new);
    rel_relabel(rel, &c.m.old);
    if (t->dir == TW_REVERSE) rules_forget(rel, &c.m);
    if (rel->recast && t->writing) {
        *take = TAKE_LATER;
        return TW_OK;
    }
    if (rel->recast) TRY(task_recast(t, &c));
    if (t->conf->bulk == BULK_NO && !t->w->n) t->w->by_row = true;
    *take = window_add(t->w, &c);
    if (*take == TAKE_LATER) return TW_OK;
    t->seq++;
    if (rel->has_deferrable) t->care = true;
    if (c.m.kind == 'D' || change_moves(&c)) task_remember_delete(t, rel, m);
    return TW_OK;
}

static status MUST_CHECK task_truncate(struct task *t, const struct msg *m, enum take *take)
{
    struct rel **rels = arena_array(&t->w->arena, struct rel *, m->nrelids + 1);
    int n = 0;
    t->decided = true;
    if (t->writing || t->w->n) {
        *take = TAKE_LATER;
        return TW_OK;
    }
    for (int i = 0; i < m->nrelids; i++) {
        TRY(task_rel(t, m->relids[i], &rels[n], take));
        n += rels[n] && !task_leaves_out(t, rels[n], OP_TRUNCATE);
    }
    if (!n) return TW_OK;
    if (!t->apply.first_lsn) t->apply.first_lsn = t->begin.final_lsn;
    settle_touch_all(&t->page->memory);
    return apply_truncate(&t->apply, rels, n, m->options);
}

/* The end of a source transaction: the window may end here, and does when it is large enough. */
static void task_end_txn(struct task *t, const struct msg *m)
{
    struct window *w = t->w;
    t->in_txn = false;
    t->seen_lsn = m->end_lsn;
    if (t->dropping) t->stat->skipped_transactions++;
    bool open = t->writing ? t->leaves_open : t->apply.open;
    if (!w->n && !open) return;
    w->end_lsn = m->end_lsn;
    if (!t->dropping) {
        w->commit_us = m->commit_us;
        w->transactions++;
    }
    int64_t rows = w->n + (t->writing ? 0 : t->apply.rows);
    w->settle = t->care;
    if (t->care || t->alone || t->solo_until_lsn || rows >= t->conf->batch || window_full(w, 3))
        w->closed = true;
    t->care = t->alone = false;
#ifdef TWSYNC_HARD
    w->closed = true;
#endif
}

static status MUST_CHECK task_message(struct task *t, const struct msg *m, enum take *take)
{
    switch (m->kind) {
    case 'B':
        if (t->in_txn) return fail(&t->e, TW_EPROTO, "BEGIN inside a transaction");
        t->begin = *m;
        t->in_txn = true;
        t->decided = t->care = t->alone = false;
        t->seq = 0;
        t->dropping = m->final_lsn < t->progress.applied_lsn;
        t->behind = t->repl.source_us - m->commit_us > TASK_BEHIND_MS * 1000;
        return TW_OK;
    case 'O':
        if (str_is(m->name, t->opposite_origin)) t->dropping = true;
        return TW_OK;
    case 'R': *take = task_relation(t, m); return TW_OK;
    case 'I':
    case 'U':
    case 'D': return t->dropping ? TW_OK : task_change(t, m, take);
    case 'T': return t->dropping ? TW_OK : task_truncate(t, m, take);
    case 'C':
        if (!t->in_txn) return fail(&t->e, TW_EPROTO, "COMMIT outside a transaction");
        task_end_txn(t, m);
        return TW_OK;
    default: return TW_OK;
    }
}

/* One pgoutput message.  Its bytes are copied into the window's arena, where a change waits. */
static status MUST_CHECK task_handle(struct task *t, const char *body, size_t len, enum take *take)
{
    struct window *w = t->w;
    *take = TAKE_DONE;
    if (t->dropping && t->in_txn && len && memchr("IUD", body[0], 3)) return TW_OK;
    char *copy = arena_bytes(&w->arena, body, len);
    struct msg m;
    TRY(msg_decode(copy, len, &w->arena, &m, &t->e));
    status s = task_message(t, &m, take);
    if (*take == TAKE_DONE) t->stat->bytes += (int64_t) len;
    if (*take == TAKE_DONE) t->unpaid_bytes += (int64_t) len;
    if (s == TW_OK && !w->n) arena_reset(&w->arena);  /* Begin, kept beyond, holds no pointers */
    return s;
}

/* ---- reading and writing at once ---- */

/* The next message: the one that had to wait, or a new one; *frame NULL when there is none yet. */
static status MUST_CHECK task_next(struct task *t, char **frame, char **body, size_t *len,
                                   bool *keepalive)
{
    *keepalive = false;
    *frame = t->held;
    *body = t->held_body;
    *len = t->held_len;
    t->held = NULL;
    return *frame ? TW_OK : repl_read(&t->repl, frame, body, len, keepalive);
}

enum gathered { GATHER_EMPTY, GATHER_FULL, GATHER_TURN };

/* Gather what has arrived into the window, until nothing more is there, or the window is full or a
 * message has to wait for it (t->held), or it is time to look around. */
static status MUST_CHECK task_gather(struct task *t, enum gathered *why)
{
    enum { TURN = 20000 };
    for (int i = 0; i < TURN; i++) {
        char *frame, *body = NULL;
        size_t len = 0;
        bool keepalive;
        enum take take;
        *why = GATHER_FULL;
        if (t->w->closed) return TW_OK;
        TRY(task_next(t, &frame, &body, &len, &keepalive));
        if (keepalive && !t->in_txn && t->repl.keepalive_lsn > t->seen_lsn)
            t->seen_lsn = t->repl.keepalive_lsn;
        if (keepalive) continue;
        *why = GATHER_EMPTY;
        if (!frame) return TW_OK;
        status s = task_handle(t, body, len, &take);
        *why = GATHER_FULL;
        if (s == TW_OK && take == TAKE_LATER) {
            t->held = frame;
            t->held_body = body;
            t->held_len = len;
            return TW_OK;
        }
        PQfreemem(frame);
        TRY(s);
    }
    *why = GATHER_TURN;
    return TW_OK;
}

/* While the target works: the next window fills, and when it is full some more is read ahead. */
static status task_tick_writing(void *arg)
{
    struct task *t = arg;
    enum gathered why;
    t->stat->beat_us = os_wall();
    for (int i = 0; i < 2 && !t->held && !t->w->closed; i++) {
        TRY(task_gather(t, &why));
        if (i || why != GATHER_EMPTY) break;
        if (!PQconsumeInput(t->repl.db.pg))
            return db_fail_conn(&t->repl.db, "read the replication stream");
    }
    t->stat->received_lsn = t->seen_lsn;
    if (t->held || t->w->closed) TRY(repl_pull(&t->repl));
    t->to.also_fd = repl_has_room(&t->repl) ? PQsocket(t->repl.db.pg) : -1;
    return repl_keepalive(&t->repl);
}

/* Write the gathered window, and commit when it ends between two transactions. */
static status MUST_CHECK task_write_window(struct task *t, struct window *w, bool commit)
{
    struct apply *ap = &t->apply;
    if (w->raw) TRY(rules_run(w, ap->from));
    bool marked = !ap->open && commit && !w->settle;
    if (!ap->first_lsn) ap->first_lsn = w->first_lsn;
    if (w->end_lsn) ap->end_lsn = w->end_lsn;
    if (w->commit_us) ap->commit_us = w->commit_us;
    ap->transactions += w->transactions;
    if (commit) {
        bool done;
        TRY(apply_quick(ap, w, &done));
        /* Not before: a look may have come between.  passed_lsn moves later still. */
        if (done) settle_touch(&t->page->memory, w);
        if (done) return TW_OK;
    }
    bool committed;
    TRY(apply_window(ap, w, marked ? ap->end_lsn : 0, &committed));
    if (w->settle) TRY(apply_settle_deferred(ap));
    TRY(settle_note_moves(ap, w));
    settle_touch(&t->page->memory, w);
    if (committed) apply_committed(ap);
    return commit && !committed ? apply_commit(ap, marked) : TW_OK;
}

static void task_applied(struct task *t, lsn_t before)
{
    retention_note(&t->retention, before, os_now(), t->job->retention_us);
    if (t->apply.applied_lsn > t->solo_until_lsn) t->solo_until_lsn = 0;
    t->stat->applied_lsn = t->apply.applied_lsn;
    t->stat->delay_us = t->repl.source_us > t->apply.commit_us
                            ? t->repl.source_us - t->apply.commit_us : 0;
    t->failing_since_us = 0;
    t->attempts = 0;
    task_up(t);
    assert_task(t);
}

/* The limits of a task: its own, and those of both together. */
static const struct { enum throttle rows, bytes; } task_throttles[2][2] = {
    [TW_FORWARD] = {{THROTTLE_forward_rows, THROTTLE_forward_bytes},
                    {THROTTLE_increments_rows, THROTTLE_increments_bytes}},
    [TW_REVERSE] = {{THROTTLE_reverse_rows, THROTTLE_reverse_bytes},
                    {THROTTLE_increments_rows, THROTTLE_increments_bytes}},
};

/* The next window holds no more than a fraction of a second's share, and ends where a transaction
 * does, if it can: then it is committed. */
static void task_throttle_window(struct task *t)
{
    int64_t rows = INT_MAX, bytes = WINDOW_BYTES;
    for (int i = 0; i < 2; i++) {
        rows = throttle_step(t->page, task_throttles[t->dir][i].rows, rows);
        bytes = throttle_step(t->page, task_throttles[t->dir][i].bytes, bytes);
    }
    t->w->most = rows > INT_MAX / 4 ? 0 : (int) rows * 4;
    t->w->most_bytes = bytes > WINDOW_BYTES / 4 ? 0 : (size_t) bytes * 4;
}

static status MUST_CHECK task_write(struct task *t)
{
    struct window *w = t->w;
    bool commit = !t->in_txn;
    lsn_t before = t->apply.applied_lsn;
    t->w = &t->windows[w == t->windows];
    task_throttle_window(t);
    t->writing = true;
    t->leaves_open = !commit;
    t->to.also_fd = PQsocket(t->repl.db.pg);
    t->to.tick = task_tick_writing;
    status s = task_write_window(t, w, commit);
    t->to.tick = task_tick;
    t->to.also_fd = -1;
    t->writing = false;
    if (s != TW_OK) return s;
    window_reset(w);
    if (commit) task_applied(t, before);
    return TW_OK;
}

/* Policy latest is only as good as the clocks. */
static status MUST_CHECK task_check_clocks(struct task *t)
{
    usec now = os_now();
    if (t->dir != TW_FORWARD || now < t->clock_due_us || t->apply.open) return TW_OK;
    if (!job_uses_policy(t->job, POLICY_LATEST)) return TW_OK;
    struct arena a = {0};
    struct db *d[] = {&t->from, &t->to};
    usec at[2] = {0, 0}, doubt[2] = {0, 0};
    status s = TW_OK;
    for (int i = 0; i < 2 && s == TW_OK; i++) s = check_offset(d[i], &a, &at[i], &doubt[i]);
    arena_free(&a);
    TRY(s);
    usec apart = llabs(at[0] - at[1]) - doubt[0] - doubt[1];
    if (apart <= t->job->clock_skew_us) {
        t->clock_due_us = now + 3600 * USEC_SEC;
        return TW_OK;
    }
    fail_hint(&t->e, "Set both servers' clocks by NTP, or raise max_clock_skew in [job].");
    return fail(&t->e, TW_ESERVER, "the clocks of a and b are %" PRId64 " ms apart: too much for "
                "policy latest", (int64_t) apart / 1000);
}

/* Remember and confirm positions.  Idle progress is written once per heartbeat only: each write is
 * WAL on the target, which the other direction sees. */
static status MUST_CHECK task_confirm(struct task *t)
{
    struct apply *ap = &t->apply;
    usec now = os_now();
    bool idle = task_batch_empty(t) && !t->in_txn;
    bool due = now >= t->beat_due_us || (t->catchup_lsn && t->seen_lsn >= t->catchup_lsn);
    if (idle && t->seen_lsn > ap->applied_lsn && due) {
        t->beat_due_us = now + t->job->heartbeat_us;
        TRY(apply_idle(ap, t->seen_lsn));
    }
    if (t->catchup_lsn && idle && ap->applied_lsn >= t->catchup_lsn) {
        TRY(task_finish_init(t));
        TRY(db_commits_wait(&t->to, false));  /* the stream's do not: task_start_stream() */
        task_relearn(t);                      /* there are more keys now */
        task_up(t);
        task_settle_setup(t);
    }
    if (idle) TRY(apply_ask_wal(ap));
    if (idle) TRY(task_resync(t));
    TRY(task_check_clocks(t));
    TRY(apply_sweep(ap));
    t->repl.received_lsn = t->seen_lsn;
    t->stat->passed_lsn = task_batch_empty(t) && !t->in_txn ? t->seen_lsn : ap->applied_lsn;
    lsn_t may = retention_limit(&t->retention, ap->applied_lsn, now, t->job->retention_us);
    TRY(repl_confirm(&t->repl, may < ap->durable_lsn ? may : ap->durable_lsn));
    return repl_keepalive(&t->repl);
}

static void task_timers(struct task *t)
{
    usec now = os_now();
    if (now >= t->stat_due_us) {
        struct stat_task *st = t->stat;
        bool idle = task_batch_empty(t) && !t->in_txn;
        t->stat_due_us = now + USEC_SEC / 10;
        st->received_lsn = t->seen_lsn;
        st->applied_lsn = t->apply.applied_lsn;
        st->confirmed_lsn = t->repl.confirmed_lsn;
        st->source_lsn = t->repl.source_lsn;
        st->caught_up = idle;
        if (idle) st->delay_us = 0;
        if (idle && now - t->stream_us > 2 * USEC_SEC) task_up(t);
        st->beat_us = os_wall();
    }
    if (now >= t->ckpt_due_us) {
        t->ckpt_due_us = now + 10 * USEC_SEC;
        task_checkpoint(t);
    }
}

static status MUST_CHECK task_wait(struct task *t)
{
    assert(!t->repl.first && !t->held);  /* what is at hand would wait for what comes next */
    repl_low_water(&t->repl, 1);
    struct pollfd p = {.fd = PQsocket(t->repl.db.pg), .events = POLLIN};
    usec ms = (t->repl.feedback_us - os_now()) / 1000;
    if (ms > 500) ms = 500;
    if (poll(&p, 1, ms < 1 ? 1 : (int) ms) < 0 && errno != EINTR)
        return fail(&t->e, TW_EOS, "could not wait for a socket: %s", strerror(errno));
    if (stop_flag) return fail(&t->e, TW_ESTOP, "stop requested");
    if (p.revents && !PQconsumeInput(t->repl.db.pg))
        return db_fail_conn(&t->repl.db, "read the replication stream");
    return p.revents ? TW_OK : repl_check_silence(&t->repl);
}

/* ---- not too fast ---- */

/* Before a window is written: wait until it may be.  The source is told meanwhile that we live, and
 * keeps what comes. */
static status MUST_CHECK task_throttle(struct task *t)
{
    for (int i = 0; i < 2; i++) {
        throttle_take(t->page, task_throttles[t->dir][i].rows, t->w->n);
        throttle_take(t->page, task_throttles[t->dir][i].bytes, t->unpaid_bytes);
    }
    t->unpaid_bytes = 0;
    for (;;) {
        usec left = 0;
        for (int i = 0; i < 2; i++) {
            usec rows = throttle_left(t->page, task_throttles[t->dir][i].rows);
            usec bytes = throttle_left(t->page, task_throttles[t->dir][i].bytes);
            left = rows > left ? rows : left;
            left = bytes > left ? bytes : left;
        }
        if (!left) return TW_OK;
        os_sleep_ms(left < THROTTLE_LOOK_MS * 1000 ? (int) (left / 1000) + 1 : THROTTLE_LOOK_MS);
        if (stop_flag) return fail(&t->e, TW_ESTOP, "stop requested");
        TRY(repl_keepalive(&t->repl));
        task_timers(t);
    }
}

/* The loop: gather, write, confirm, wait.  A batch is committed as soon as there is no more, so a
 * single transaction goes at once; what comes while the target works gathers into the next one. */
static status MUST_CHECK task_stream(struct task *t)
{
    for (;;) {
        enum gathered why;
        bool more = false;
        assert_task(t);
        task_throttle_window(t);
        TRY(task_gather(t, &why));
        t->stat->received_lsn = t->seen_lsn;
        if (why == GATHER_EMPTY) {
            TRY(repl_fill(&t->repl, t->behind ? TASK_PATIENCE_MS : 0, &more));
            t->behind = t->behind && more;
        }
        bool write = why == GATHER_FULL || (why == GATHER_EMPTY && !more && !t->in_txn);
        write = write && (t->w->n || t->apply.open);
        if (write) TRY(task_throttle(t));
        if (write) TRY(task_write(t));
        TRY(more ? repl_keepalive(&t->repl) : task_confirm(t));
        if (t->settle.page && !t->apply.open) TRY(settle_step(&t->settle));
        task_timers(t);
        if (stop_flag) return fail(&t->e, TW_ESTOP, "stop requested");
        bool ahead = t->repl.first;  /* frames that came while the target was asked */
        if (why == GATHER_EMPTY && !more && !write && !ahead) TRY(task_wait(t));
    }
}

/* ---- sessions and retries ---- */

static status MUST_CHECK task_work(struct task *t)
{
    TRY(task_connect(t));
    TRY(progress_read(&t->to, t->name, &t->progress));
    if (t->dir == TW_FORWARD) TRY(task_initialise(t));
    if (!str_is(t->progress.phase, "stream") && !t->catchup_lsn)
        return fail(&t->e, TW_EGAP, "task %s was never initialised: its progress is missing on %c",
                    t->name, t->target->letter);
    if (!t->catchup_lsn) t->stat->ready = 1;
    TRY(task_start_stream(t));
    return task_stream(t);
}

/* Where the failure happened, for the log line. */
static void task_context(const struct task *t, char *out, size_t size)
{
    out[0] = '\0';
    if (t->repl.started && t->in_txn)
        snprintf(out, size, "in the transaction %" PRIu32 " committed at " LSN_FMT ", change %"
                 PRId64, t->begin.xid, LSN_ARG(t->begin.final_lsn), t->seq);
    else if (t->repl.started && t->apply.first_lsn)
        snprintf(out, size, "in the batch that ends at " LSN_FMT, LSN_ARG(t->apply.end_lsn));
}

/* The source could not send a row: "invalid memory alloc request size" (MaxAllocSize, memutils.h),
 * or "cannot enlarge string buffer".  It does not say of which table; what it described last is
 * the best guess, for after a failure it describes each table anew.  True: what it could not send
 * was written by the opposite task, and the next session goes on after it. */
static bool task_too_large(struct task *t)
{
    bool large = str_is(t->e.sqlstate, "54000") ||
                 (str_is(t->e.sqlstate, "XX000") && strstr(t->e.msg, "invalid memory alloc"));
    if (!t->repl.started || !t->in_txn || !large) return false;
    if (t->dropping) {
        log_info("a row that %s has written is larger than %c can send: going on after it",
                 t->opposite, t->source->letter);
        t->past_lsn = t->begin.final_lsn + 1;
        return true;
    }
    const struct rel *rel = t->apply.rels;
    char lsn[LSN_TEXT];
    struct tw_error was = t->e;
    snprintf(lsn, sizeof lsn, LSN_FMT, LSN_ARG(t->begin.final_lsn));
    error_clear(&t->e);
    fail(&t->e, TW_ESERVER, "a row is larger than 1 GB as text, more than %c can send: of table %s,"
         " or of one the transaction changed before it", t->source->letter,
         rel ? rel->quoted : "(unknown)");
    str_copy(t->e.sqlstate, sizeof t->e.sqlstate, was.sqlstate);
    fail_detail(&t->e, "%s", was.msg);
    fail_hint(&t->e, "Stop the job; `twsync skip %s --transaction %s%s` goes on after it; then"
              " `twsync resync` the tables it changed: a binary copy takes 1 GB of bytea.",
              t->job->path, lsn, t->dir == TW_REVERSE ? " --task reverse" : "");
    return false;
}

/* A failing transaction must not take its neighbours of the batch with it: then once more, one by
 * one.  True: not a failure yet. */
static bool task_go_solo(struct task *t, status s)
{
    lsn_t until = t->in_txn ? t->begin.final_lsn : t->apply.end_lsn;
    if (s != TW_ECONFLICT && status_reaction(s) != REACT_LATER) return false;
    if (t->solo_until_lsn || !until || t->apply.transactions + t->in_txn <= 1) return false;
    t->solo_until_lsn = until;
    log_info("trying the transactions of the failed batch one by one");
    return true;
}

static void task_close(struct task *t, status s)
{
    if (s == TW_ECONFLICT) apply_record_left(&t->apply);
    if (t->settle.page) settle_close(&t->settle);
    apply_end(&t->apply);
    if (t->held) PQfreemem(t->held);
    t->held = NULL;
    for (int i = 0; i < 2; i++) window_free(&t->windows[i]);
    db_abandon(&t->to);
    db_abandon(&t->from);
    repl_close(&t->repl);
    t->job = t->given;
    arena_reset(&t->session);
}

static void task_session_init(struct task *t)
{
    t->repl = (struct repl){0};
    t->apply = (struct apply){.to = &t->to, .from = &t->from, .e = &t->e, .stat = t->stat,
                              .task = t->name, .dir = t->dir, .memory = &t->page->memory};
    if (t->job->task[TW_REVERSE].enabled && t->job->task[TW_FORWARD].enabled)
        t->apply.other = &t->page->task[t->dir == TW_FORWARD ? TW_REVERSE : TW_FORWARD];
    t->to = t->from = (struct db){0};
    t->progress = (struct progress){0};
    t->settle = (struct settle){0};
    t->stat->passed_lsn = 0;  /* what a crashed target lost comes again */
    settle_touch_all(&t->page->memory);  /* our last session may have died before it said so */
    for (int i = 0; i < 2; i++) t->windows[i].number = i + 1;
    t->w = t->windows;
    t->in_txn = t->dropping = t->writing = t->behind = t->care = false;
    t->seen_lsn = t->catchup_lsn = 0;
    error_clear(&t->e);
}

/* Log a failure once, and once a minute while it stays the same. */
static void task_report(struct task *t, const char *context)
{
    char text[sizeof t->stat->last_error];
    snprintf(text, sizeof text, "%s%s%s", t->e.msg, t->e.detail[0] ? "; " : "", t->e.detail);
    bool same = str_is(text, t->stat->last_error) && t->attempts > 0;
    if (!same || os_now() - t->reported_us > 60 * USEC_SEC) {
        t->reported_us = os_now();
        log_failure(&t->e, context);
    }
    str_copy(t->stat->last_error, sizeof t->stat->last_error, text);
}

/* Did the session fail because there was DDL meanwhile?  Then once more, with new eyes. */
static bool task_ddl_came(struct task *t, status s)
{
    struct tw_error keep = t->e;
    struct arena a = {0};
    struct db d;
    const char *sum = NULL;
    if (!t->apply.ddl_sum || s == TW_ESTOP || s == TW_ECONN || s == TW_EFENCED) return false;
    error_clear(&t->e);
    task_db(t, &d, t->target, "look");
    status looked = db_open(&d, false);
    if (looked == TW_OK) looked = task_ddl_sum(t, &d, &a, &sum);
    bool came = looked == TW_OK && sum && !str_is(sum, t->apply.ddl_sum);
    if (came) log_info("there was DDL on %c meanwhile, once more: %s", t->target->letter, keep.msg);
    db_close(&d);
    arena_free(&a);
    t->e = keep;
    return came;
}

/* One session from connect to failure.  TW_OK: try again at once. */
static status MUST_CHECK task_session(struct task *t)
{
    task_session_init(t);
    status s = task_work(t);
    assert(s != TW_OK && s == t->e.code);
    char context[160];
    bool past = task_too_large(t);
    task_context(t, context, sizeof context);
    bool again = past || task_ddl_came(t, s) || task_go_solo(t, s);
    t->was_running = t->stat->state == TASK_Running;
    if (!again && s != TW_ESTOP) task_report(t, context);
    task_close(t, again ? TW_OK : s);
    return again ? TW_OK : s;
}

/* May a failure be tried again?  Its window opens with the first one and closes when something
 * was applied (task_commit), or the stream ran for a while. */
static bool task_may_retry(struct task *t, enum reaction r)
{
    int minutes = r == REACT_RETRY ? t->job->connection_retry_min : t->job->other_retry_min;
    usec now = os_now(), window = (usec) minutes * 60 * USEC_SEC;
    if (!t->failing_since_us || r != t->failing_as) {
        t->failing_since_us = now;
        t->failing_as = r;
        t->attempts = 0;
    }
    t->attempts++;
    t->stat->attempts = t->attempts;
    t->stat->until_us = os_wall() + t->failing_since_us + window - now;
    return now - t->failing_since_us < window;
}

/* 0.1 s, doubling up to 5 s, and up to 30 s once it lasts longer than ten minutes. */
static void task_back_off(struct task *t)
{
    int n = t->attempts < 8 ? t->attempts : 8;
    usec wait = (USEC_SEC / 20) << n;
    bool long_ago = os_now() - t->failing_since_us > 600 * USEC_SEC;
    if (wait > 5 * USEC_SEC) wait = (long_ago ? 30 : 5) * USEC_SEC;
    usec until = os_now() + wait;
    t->stat->next_us = os_wall() + wait;
    log_debug("attempt %d failed, next in %d ms", t->attempts, (int) (wait / 1000));
    while (os_now() < until && !stop_flag) os_sleep_ms((int) ((until - os_now()) / 1000) + 1);
}

/* Sessions until a stop or a failure that no retry mends. */
static status MUST_CHECK task_run(struct task *t)
{
    for (;;) {
        usec started = os_now();
        status s = task_session(t);
        if (s == TW_OK) continue;
        if (s == TW_ESTOP || stop_flag) {
            task_go(t, TASK_NotStarted);
            return TW_ESTOP;
        }
        if (t->was_running && os_now() - started > 60 * USEC_SEC) t->failing_since_us = 0;
        enum reaction r = status_reaction(s);
        if (r == REACT_STOP || !task_may_retry(t, r)) {
            task_go(t, TASK_Failed);
            return s;
        }
        task_go(t, TASK_Retrying);
        t->stat->restarts++;
        task_back_off(t);
    }
}

/* Counters go on where the last process left them: the page knows more, the checkpoint survives. */
static void task_restore(struct task *t)
{
    struct ckpt c;
    ckpt_read(t->job, t->dir, &c);
#define X(n)                                                                                       \
    if (c.n > t->stat->n) t->stat->n = c.n;
    STAT_COUNTERS(X)
#undef X
    str_copy(t->stat->phase, sizeof t->stat->phase, c.phase[0] ? c.phase : "none");
    str_copy(t->stat->rung, sizeof t->stat->rung, c.rung);
    t->stat->applied_lsn = c.applied_lsn;
    t->stat->confirmed_lsn = c.confirmed_lsn;
    t->stat->last_error[0] = '\0';
    t->stat->state = TASK_NotStarted;
}

static void task_open(struct task *t, const struct job *job, enum tw_direction dir,
                      struct stat_page *page, const char *instance)
{
    *t = (struct task){.given = job, .job = job, .dir = dir, .conf = &job->task[dir], .page = page,
                       .stat = &page->task[dir],
                       .source = &job->node[dir == TW_FORWARD ? 0 : 1],
                       .target = &job->node[dir == TW_FORWARD ? 1 : 0]};
    enum tw_direction other = dir == TW_FORWARD ? TW_REVERSE : TW_FORWARD;
    t->name = task_name(&t->arena, job, dir);
    t->slot = slot_name(&t->arena, job, dir);
    t->opposite = task_name(&t->arena, job, other);
    t->opposite_origin = slot_name(&t->arena, job, other);
    str_copy(t->instance, sizeof t->instance, instance);
    task_restore(t);
}

/* ==== 29. sup ==============================================================
 * The supervisor: one process per direction, started, watched, restarted, stopped.  It holds no
 * database connection while they run. */

struct sup {
    const struct job *job;
    struct job *own;       /* read again; NULL: job is the caller's */
    struct stat_page *page;
    int lock_fd;
    char instance[16];
    struct {
        pid_t pid;
        int crashes;
        usec start_at_us;  /* not before; 0: not wanted */
        bool done;         /* stopped or Failed: not started again */
        int failed_as;     /* its exit code */
        bool paused;       /* it rests until it is told to go on */
    } child[2];
    int64_t shown_rows[2];
    usec shown_us;
};

enum { SUP_STOP_S = 8, EXIT_FAILED = 1, EXIT_JOB = 2, EXIT_CHECK = 3, EXIT_LOCKED = 4,
       EXIT_CONNECT = 5, EXIT_LEFTOVERS = 6, EXIT_DIFFER = 7, EXIT_INTERNAL = 70 };

static int sup_exit_code(status s)
{
    switch (s) {
    case TW_OK:
    case TW_ESTOP: return 0;
    case TW_EJOB: return EXIT_JOB;
    case TW_ECHECK: return EXIT_CHECK;
    case TW_EFENCED: return EXIT_LOCKED;
    case TW_ECONN:
    case TW_EBUSY: return EXIT_CONNECT;
    case TW_EINTERNAL: return EXIT_INTERNAL;
    default: return EXIT_FAILED;
    }
}

enum { SUP_LOCK_TRIES = 20 };  /* of 50 ms */

static bool sup_flock(int fd)
{
    for (int i = 0; flock(fd, LOCK_EX | LOCK_NB); i++) {
        if (i == SUP_LOCK_TRIES || stop_flag) return false;
        os_sleep_ms(50);  /* `twsync status` looks by taking it; killed children take a moment */
    }
    return true;
}

/* One twsync per state directory.  The lock dies with the process, however it dies.  The file is
 * empty until the page is ours: sup_page() writes the process id. */
static status MUST_CHECK sup_lock(const struct job *job, bool create, int *fd, struct tw_error *e)
{
    struct arena a = {0};
    const char *path = arena_fmt(&a, "%s/lock", job->state_dir);
    status s = create ? os_make_dir(job->state_dir, e) : TW_OK;
    *fd = -1;
    if (s == TW_OK) {
        *fd = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (*fd < 0) s = fail(e, TW_EOS, "could not open \"%s\": %s", path, strerror(errno));
        else if (!sup_flock(*fd))
            s = fail(e, TW_EFENCED, "another twsync works on job %s (state directory \"%s\")",
                     job->name, job->state_dir);
    }
    if (s == TW_OK && create && ftruncate(*fd, 0))
        s = fail(e, TW_EOS, "could not write \"%s\": %s", path, strerror(errno));
    if (s != TW_OK && *fd >= 0) {
        close(*fd);
        *fd = -1;
    }
    arena_free(&a);
    return s;
}

/* A name for this installation's sessions, kept in the state directory. */
static status MUST_CHECK sup_instance(const struct job *job, char *out, size_t size,
                                      struct tw_error *e)
{
    struct arena a = {0};
    struct buf b = {0};
    struct tw_error ignore;
    error_clear(&ignore);
    const char *path = arena_fmt(&a, "%s/instance", job->state_dir);
    status s = TW_OK;
    if (os_read_file(path, &b, 64, &ignore) == TW_OK && b.len == 8) {
        str_copy(out, size, b.data);
    } else {
        unsigned char r[4];
        int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
        if (getentropy(r, sizeof r) && (fd < 0 || read(fd, r, sizeof r) != sizeof r))
            s = fail(e, TW_EOS, "could not get random bytes: %s", strerror(errno));
        if (fd >= 0) close(fd);
        snprintf(out, size, "%02x%02x%02x%02x", r[0], r[1], r[2], r[3]);
        if (s == TW_OK) s = os_replace_file(job->state_dir, "instance", out, strlen(out), e);
    }
    buf_free(&b);
    arena_free(&a);
    return s;
}

/* ---- the live line ---- */

static void sup_show_task(struct sup *s, struct buf *b, int dir, double seconds)
{
    const struct stat_task *t = &s->page->task[dir];
    int64_t rows = t->rows;
    double rate = seconds > 0 ? (double) (rows - s->shown_rows[dir]) / seconds : 0;
    s->shown_rows[dir] = rows;
    buf_fmt(b, "\r%s %-12s %8.0f rows/s  delay %6" PRId64 " ms  %" PRId64 " conflicts\033[K",
            dir == TW_FORWARD ? "a→b" : "b→a", task_state_name(t->state), rate < 0 ? 0 : rate,
            (int64_t) t->delay_us / 1000, (int64_t) t->conflicts);
}

/* A line per task, rewritten twice a second, once the copy's bars are done. */
static void sup_show(struct sup *s)
{
    usec now = os_now();
    if (!log_sink.live || now - s->shown_us < USEC_SEC / 2) return;
    if (!s->page->task[TW_FORWARD].ready) return;
    struct buf b = {0};
    double seconds = (double) (now - s->shown_us) / 1e6;
    int lines = s->job->task[TW_FORWARD].enabled + s->job->task[TW_REVERSE].enabled;
    bool first = true;
    s->shown_us = now;
    if (lines > 1) buf_fmt(&b, s->page->live_lines ? "\033[%dA" : "\n\033[%dA", lines - 1);
    s->page->live_lines = lines;
    for (int dir = 0; dir < 2; dir++) {
        if (!s->job->task[dir].enabled) continue;
        if (!first) buf_char(&b, '\n');
        first = false;
        sup_show_task(s, &b, dir, seconds);
    }
    ssize_t ignored = write(STDERR_FILENO, b.data, b.len);
    (void) ignored;
    buf_free(&b);
}

/* ---- children ---- */

/* A task's state, when none of its processes lives. */
static void sup_go(struct sup *s, int dir, enum task_state to)
{
    struct stat_task *t = &s->page->task[dir];
    /* A process that was killed leaves its last state behind. */
    if (!task_may_move(t->state, to)) t->state = TASK_NotStarted;
    assert(task_may_move(t->state, to));
    t->state = to;
}

static _Noreturn void sup_child(struct sup *s, enum tw_direction dir, pid_t parent)
{
    struct task t;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(0);
    log_sink.task = direction_names[dir];
    task_open(&t, s->job, dir, s->page, s->instance);
    status st = task_run(&t);
    _exit(sup_exit_code(st));
}

static void sup_start(struct sup *s, int dir)
{
    pid_t parent = getpid();
    pid_t pid = fork();
    if (pid == 0) sup_child(s, (enum tw_direction) dir, parent);
    if (pid < 0) {
        log_error("could not start a process: %s", strerror(errno));
        s->child[dir].start_at_us = os_now() + USEC_SEC;
        return;
    }
    s->child[dir].pid = pid;
    s->child[dir].start_at_us = 0;
}

/* A child has ended: by its own decision (done), or it crashed or somebody else stopped it; then
 * it starts again, ever later. */
static void sup_ended(struct sup *s, int dir, int st)
{
    struct stat_task *t = &s->page->task[dir];
    s->child[dir].pid = 0;
    int code = WIFEXITED(st) ? WEXITSTATUS(st) : -1;
    bool decided = code > 0 && code != EXIT_OOM;
    s->child[dir].failed_as = code;
    if (decided || stop_flag || s->child[dir].paused) {
        s->child[dir].done = true;
        if (!decided) sup_go(s, dir, TASK_NotStarted);
        return;
    }
    int wait_ms = 100 << (s->child[dir].crashes < 8 ? s->child[dir].crashes : 8);
    s->child[dir].crashes++;
    t->restarts++;
    sup_go(s, dir, TASK_NotStarted);
    if (WIFSIGNALED(st))
        log_error("%s task was ended by signal %d; starting it again in %d ms",
                  direction_names[dir], WTERMSIG(st), wait_ms);
    else if (!code)
        log_info("%s task was stopped; starting it again in %d ms", direction_names[dir], wait_ms);
    else
        log_error("%s task ran out of memory; starting it again in %d ms", direction_names[dir],
                  wait_ms);
    s->child[dir].start_at_us = os_now() + (usec) wait_ms * 1000;
}

static void sup_reap(struct sup *s)
{
    int st;
    pid_t pid;
    while ((pid = waitpid(-1, &st, WNOHANG)) > 0)  /* as PID 1 others' orphans come here too */
        for (int dir = 0; dir < 2; dir++)
            if (s->child[dir].pid == pid) sup_ended(s, dir, st);
}

/* Has forward made the way back ready?  If it rests, its checkpoint knows. */
static bool sup_reverse_ready(const struct sup *s)
{
    struct ckpt c;
    if (s->page->task[TW_FORWARD].ready) return true;
    return s->child[TW_FORWARD].paused && ckpt_read(s->job, TW_FORWARD, &c) &&
           str_is(c.phase, "stream");
}

/* Reverse starts by itself once forward has made it ready. */
static void sup_wants(struct sup *s)
{
    if (s->job->task[TW_REVERSE].enabled && !s->child[TW_REVERSE].paused &&
        !s->child[TW_REVERSE].pid && sup_reverse_ready(s) &&
        !s->child[TW_REVERSE].done && !s->child[TW_REVERSE].start_at_us)
        s->child[TW_REVERSE].start_at_us = os_now();
    for (int dir = 0; dir < 2; dir++)
        if (s->child[dir].start_at_us && !s->child[dir].pid && !s->child[dir].done &&
            os_now() >= s->child[dir].start_at_us)
            sup_start(s, dir);
}

static bool sup_alive(const struct sup *s)
{
    for (int dir = 0; dir < 2; dir++)
        if (s->child[dir].pid || s->child[dir].paused ||
            (s->child[dir].start_at_us && !s->child[dir].done))
            return true;
    return false;
}

static bool sup_lives(const struct sup *s, const bool of[2])
{
    return (of[0] && s->child[0].pid) || (of[1] && s->child[1].pid);
}

static void sup_stop_some(struct sup *s, const bool of[2])
{
    usec deadline = os_now() + SUP_STOP_S * USEC_SEC;
    for (int dir = 0; dir < 2; dir++)
        if (of[dir] && s->child[dir].pid) kill(s->child[dir].pid, SIGTERM);
    while (sup_lives(s, of) && os_now() < deadline) {
        sup_reap(s);
        if (sup_lives(s, of)) os_sleep_ms(20);
    }
    for (int dir = 0; dir < 2; dir++) {
        if (!of[dir] || !s->child[dir].pid) continue;
        kill(s->child[dir].pid, SIGKILL);
        waitpid(s->child[dir].pid, NULL, 0);
        sup_go(s, dir, TASK_NotStarted);
        s->child[dir].pid = 0;
    }
}

static void sup_stop(struct sup *s)
{
    sup_stop_some(s, (const bool[2]){true, true});
}

/* Tasks rest, or go on: also those that have failed. */
static void sup_pause(struct sup *s)
{
    int heard = s->page->pauses;
    bool want[2], stop[2], goes_on[2];
    pause_read(s->job->state_dir, want);
    for (int dir = 0; dir < 2; dir++) {
        stop[dir] = want[dir] && !s->child[dir].paused;
        goes_on[dir] = !want[dir] && (s->child[dir].paused || s->child[dir].done);
        s->child[dir].paused = want[dir];
    }
    sup_stop_some(s, stop);
    for (int dir = 0; dir < 2; dir++) {
        if (!s->job->task[dir].enabled || (!stop[dir] && !goes_on[dir])) continue;
        s->child[dir].done = false;
        s->child[dir].crashes = 0;
        s->child[dir].start_at_us = goes_on[dir] && dir == TW_FORWARD ? os_now() : 0;
        sup_go(s, dir, goes_on[dir] ? TASK_NotStarted : TASK_Paused);
        log_info("%s task %s", direction_names[dir],
                 goes_on[dir] ? "goes on" : "rests: `twsync resume` lets it go on");
    }
    s->page->pauses_heard = heard;
}

static void sup_on_signal(int sig)
{
    /* SIGCHLD only has to end a wait. */
    if (sig == SIGTERM || sig == SIGINT) stop_flag = 1;
    if (sig == SIGHUP) reload_flag = 1;
}

static void sup_signals(void)
{
    struct sigaction act = {.sa_handler = sup_on_signal};
    sigemptyset(&act.sa_mask);
    sigaction(SIGTERM, &act, NULL);
    sigaction(SIGINT, &act, NULL);
    sigaction(SIGHUP, &act, NULL);
    sigaction(SIGCHLD, &act, NULL);
    signal(SIGPIPE, SIG_IGN);
}

/* ---- before the start ---- */

/* A job that streamed before goes on although an end is down: the retry windows are for that. */
static bool sup_may_wait(const struct job *job, const struct check_list *list)
{
    struct ckpt c;
    if (!list->unreachable || !ckpt_read(job, TW_FORWARD, &c)) return false;
    if (!str_is(c.phase, "stream")) return false;
    for (int i = 0; i < list->n; i++) {
        const char *code = list->items[i].code;
        bool passes = str_is(code, "CONNECT_REACH") || str_is(code, "CONNECT_STARTING") ||
                      str_is(code, "CONNECT_LIMIT");
        if (list->items[i].status == CHECK_FAILED && !passes) return false;
    }
    return true;
}

static status MUST_CHECK sup_precheck(struct sup *s, struct tw_error *e)
{
    struct arena a = {0};
    struct check_list list;
    sup_go(s, TW_FORWARD, TASK_Prechecking);
    status st = check_run(s->job, false, &a, &list, e);
    if (st == TW_OK && !list.passed && !sup_may_wait(s->job, &list)) {
        check_print(&list, stdout, log_sink.json);
        fflush(stdout);
        st = fail(e, TW_ECHECK, "precheck failed; nothing was changed on either server");
    }
    if (st == TW_OK)
        for (int i = 0; i < list.n; i++)
            if (list.items[i].status == CHECK_WARNING)
                log_info("precheck warning %s on %c: %s", list.items[i].code, list.items[i].node,
                         list.items[i].measured);
    sup_go(s, TW_FORWARD, st == TW_OK ? TASK_NotStarted : TASK_PrecheckFailed);
    arena_free(&a);
    return st;
}

static void sup_limits(struct sup *s)
{
    for (int i = 0; i < NTHROTTLES; i++) {
        s->page->limits[i].rate = s->job->throttle[i];
        s->page->limits[i].due_ns = 0;
    }
}

static status MUST_CHECK sup_page(struct sup *s, struct tw_error *e)
{
    s->page = stat_map(s->job->state_dir, STAT_MAKE, e);
    if (!s->page) return e->code;
    if (s->page->magic != STAT_MAGIC) {
        memset(s->page, 0, sizeof *s->page);
        s->page->magic = STAT_MAGIC;
    }
    s->page->supervisor_pid = getpid();
    s->page->started_us = os_wall();
    sup_limits(s);
    for (int dir = 0; dir < 2; dir++) {
        struct stat_task *t = &s->page->task[dir];
        t->enabled = s->job->task[dir].enabled;
        t->state = TASK_NotStarted;
        t->ready = 0;
        if (!t->phase[0]) str_copy(t->phase, sizeof t->phase, "none");
    }
    char pid[16];
    snprintf(pid, sizeof pid, "%d\n", (int) getpid());
    return os_write_all(s->lock_fd, pid, strlen(pid), "the lock file", e);
}

/* The job as its file has it now; *out NULL and e: it cannot be taken. */
static status MUST_CHECK sup_read_again(const struct sup *s, struct job **out, struct tw_error *e)
{
    struct arena a = {0};
    struct check_list list;
    TRY(job_load(s->job->path, out, e));
    const struct job *now = *out;
    status st = TW_OK;
    if (!str_is(now->name, s->job->name) || !str_is(now->state_dir, s->job->state_dir))
        st = fail(e, TW_EJOB, "name and state_dir of a job that runs cannot change");
    if (st == TW_OK) st = check_run(now, false, &a, &list, e);
    for (int i = 0; st == TW_OK && !list.passed && i < list.n; i++)
        if (list.items[i].status == CHECK_FAILED && !list.items[i].accepted)
            st = fail(e, TW_ECHECK, "%s on %c: %s", list.items[i].code, list.items[i].node,
                      list.items[i].measured);
    arena_free(&a);
    if (st == TW_OK) return TW_OK;
    job_free(*out);
    *out = NULL;
    return st;
}

/* The job file has changed: the tasks end, and begin again by what it says now.  A file that is
 * wrong changes nothing. */
static void sup_reload(struct sup *s)
{
    struct tw_error e;
    struct job *now;
    error_clear(&e);
    reload_flag = 0;
    log_info("reading \"%s\" again", s->job->path);
    s->page->reload_failed[0] = '\0';
    if (sup_read_again(s, &now, &e) != TW_OK) {
        str_copy(s->page->reload_failed, sizeof s->page->reload_failed, e.msg);
        log_error("the job goes on as it was: %s", e.msg);
    } else {
        sup_stop(s);
        for (int dir = 0; dir < 2; dir++)
            if (!s->child[dir].paused) sup_go(s, dir, TASK_Modifying);
        job_free(s->own);
        s->job = s->own = now;
        sup_limits(s);
        for (int dir = 0; dir < 2; dir++) {
            s->page->task[dir].enabled = now->task[dir].enabled;
            s->child[dir].done = false;
            s->child[dir].start_at_us = 0;
            if (!s->child[dir].paused) sup_go(s, dir, TASK_NotStarted);
        }
        if (!s->child[TW_FORWARD].paused) s->child[TW_FORWARD].start_at_us = os_now();
        log_info("the job goes on by what its file says now");
    }
    s->page->reloads++;
}

static status MUST_CHECK sup_loop(struct sup *s, struct tw_error *e)
{
    s->child[TW_FORWARD].start_at_us = os_now();
    sup_pause(s);
    do {
        if (s->page->pauses_heard != s->page->pauses) sup_pause(s);
        if (reload_flag) sup_reload(s);
        sup_wants(s);
        sup_reap(s);
        sup_show(s);
        if (!stop_flag) os_sleep_ms(50);
    } while (!stop_flag && sup_alive(s));
    if (stop_flag) {
        log_info("stopping");
        sup_stop(s);
        log_info("stopped; run again to go on from here");
    }
    for (int dir = 0; dir < 2; dir++)
        if (s->page->task[dir].state == TASK_Failed)
            return fail(e, s->child[dir].failed_as == EXIT_CONNECT ? TW_ECONN : TW_ESERVER,
                        "%s task failed: %s", direction_names[dir],
                        s->page->task[dir].last_error);
    return TW_OK;
}

/* `twsync run`: until stopped, or until no task is left that could work. */
static status MUST_CHECK sup_run(const struct job *job, struct tw_error *e)
{
    struct sup s = {.job = job, .lock_fd = -1};
    sup_signals();
    TRY(sup_lock(job, true, &s.lock_fd, e));
    status st = sup_instance(job, s.instance, sizeof s.instance, e);
    if (st == TW_OK) st = sup_page(&s, e);
    if (st == TW_OK) st = sup_precheck(&s, e);
    if (st == TW_OK) {
        s.page->live_lines = 0;
        if (isatty(STDERR_FILENO) && !log_sink.json && !log_sink.quiet)
            log_sink.live = &s.page->live_lines;
        st = sup_loop(&s, e);
        if (s.page->live_lines) fputs("\n", stderr);
        log_sink.live = NULL;
    }
    if (s.page) s.page->supervisor_pid = 0;
    job_free(s.own);
    close(s.lock_fd);
    return st;
}

/* ==== 30. release ==========================================================
 * Leaving: everything the job made on both servers is removed, and what cannot be is printed as
 * SQL.  Also the one-shot commands that print SQL or state: sequences, schema, conflicts,
 * status. */

struct release {
    const struct job *job;
    struct arena *arena;
    FILE *out;
    int left;  /* statements that could not be run */
};

/* What to remove from one node, in order; each statement may be run again. */
static int release_statements(struct release *r, int node, const char **out)
{
    struct arena *a = r->arena;
    enum tw_direction reads = node == 0 ? TW_FORWARD : TW_REVERSE;  /* the task that reads here */
    enum tw_direction writes = node == 0 ? TW_REVERSE : TW_FORWARD;
    const char *slot = slot_name(a, r->job, reads), *origin = slot_name(a, r->job, writes);
    int n = 0;
    out[n++] = arena_fmt(a, "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots"
                            " WHERE slot_name = '%s' AND active", slot);
    out[n++] = arena_fmt(a, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
                            " WHERE slot_name = '%s'", slot);
    out[n++] = arena_fmt(a, "DROP PUBLICATION IF EXISTS \"%s\"", slot);
    /* The right to call the function is asked for even where no row is found: hence the IF. */
    out[n++] = arena_fmt(a, "DO $$ BEGIN IF EXISTS (SELECT FROM pg_replication_origin"
                            " WHERE roname = '%s') THEN PERFORM pg_replication_origin_drop('%s');"
                            " END IF; END $$", origin, origin);
    if (node == 0) {
        out[n++] = arena_fmt(a, "DROP EVENT TRIGGER IF EXISTS \"twsync_%s_ddl\"", r->job->name);
        out[n++] = arena_fmt(a, "DROP EVENT TRIGGER IF EXISTS \"twsync_%s_drop\"", r->job->name);
        out[n++] = arena_fmt(a, "DROP EVENT TRIGGER IF EXISTS \"twsync_%s_rewrite\"",
                             r->job->name);
        out[n++] = arena_fmt(a, "DROP FUNCTION IF EXISTS twsync.\"ddl_%s\"()", r->job->name);
    }
    const char *settle = arena_fmt(a, "twsync_%s_settle", r->job->name);
    out[n++] = arena_fmt(a, "DO $$ BEGIN IF EXISTS (SELECT FROM pg_replication_origin"
                            " WHERE roname = '%s') THEN PERFORM pg_replication_origin_drop('%s');"
                            " END IF; END $$", settle, settle);
    out[n++] = arena_fmt(a, "DO $$ BEGIN IF to_regclass('twsync.progress') IS NOT NULL THEN"
                            " DELETE FROM twsync.progress WHERE job = '%1$s';"
                            " DELETE FROM twsync.session WHERE split_part(task, '/', 1) = '%1$s';"
                            " DELETE FROM twsync.copied WHERE split_part(task, '/', 1) = '%1$s';"
                            " DELETE FROM twsync.conflict WHERE split_part(task, '/', 1) = '%1$s';"
                            " DELETE FROM twsync.moved WHERE split_part(task, '/', 1) = '%1$s';"
                            " IF to_regclass('twsync.parked') IS NOT NULL THEN"
                            " DELETE FROM twsync.ddl WHERE job = '%1$s';"
                            " DELETE FROM twsync.ddl_done WHERE job = '%1$s';"
                            " DELETE FROM twsync.shape WHERE job = '%1$s';"
                            " DELETE FROM twsync.parked WHERE split_part(task, '/', 1) = '%1$s';"
                            " DELETE FROM twsync.barred WHERE split_part(task, '/', 1) = '%1$s';"
                            " END IF; IF NOT EXISTS (SELECT FROM twsync.progress) THEN"
                            " DROP SCHEMA twsync CASCADE; END IF;"
                            " ELSE DROP SCHEMA IF EXISTS twsync CASCADE; END IF; END $$",
                         r->job->name);
    return n;
}

enum { RELEASE_MAX = 12, RELEASE_TRIES = 50 };

/* A slot stays active for a moment after its session was ended. */
static status MUST_CHECK release_one(struct db *d, const char *sql)
{
    status s = TW_OK;
    for (int i = 0; i < RELEASE_TRIES; i++) {
        error_clear(d->e);
        s = db_exec(d, "clean up", sql);
        if (s != TW_EBUSY) break;
        os_sleep_ms(100);
    }
    return s;
}

static void release_node(struct release *r, int node)
{
    const char *sql[RELEASE_MAX];
    const char *label = db_label(r->arena, &r->job->node[node]);
    struct tw_error e;
    error_clear(&e);
    struct db d = {.node = &r->job->node[node], .e = &e};
    snprintf(d.purpose, sizeof d.purpose, "%s:release", r->job->name);
    int n = release_statements(r, node, sql), left = 0;
    bool up = db_open(&d, false) == TW_OK;
    for (int i = 0; i < n; i++) {
        bool done = up && release_one(&d, sql[i]) == TW_OK;
        if (done) continue;
        if (!left++) fprintf(r->out, "-- could not clean up %s: %s\n-- run there:\n", label, e.msg);
        fprintf(r->out, "%s;\n", sql[i]);
    }
    db_close(&d);
    if (!left) fprintf(r->out, "-- %s: nothing of job %s is left\n", label, r->job->name);
    r->left += left;
}

static void release_state(const struct job *job)
{
    static const char *const files[] = {"forward.ckpt", "reverse.ckpt", "page", "paused",
                                        "instance", "lock"};
    struct arena a = {0};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        unlink(arena_fmt(&a, "%s/%s", job->state_dir, files[i]));
    rmdir(job->state_dir);
    arena_free(&a);
}

static status MUST_CHECK release_run(const struct job *job, FILE *out, int *left,
                                     struct tw_error *e)
{
    struct arena a = {0};
    struct release r = {.job = job, .arena = &a, .out = out};
    int fd = -1;
    struct stat st;
    if (stat(job->state_dir, &st) == 0) TRY(sup_lock(job, false, &fd, e));
    for (int node = 0; node < 2; node++) release_node(&r, node);
    if (!r.left) release_state(job);
    if (fd >= 0) close(fd);
    *left = r.left;
    arena_free(&a);
    return TW_OK;
}

/* ---- sequences ---- */

static status MUST_CHECK sequences_run(const struct job *job, int to_node, bool apply, FILE *out,
                                       struct tw_error *e)
{
    struct arena a = {0};
    struct buf b = {0};
    struct db from = {.node = &job->node[1 - to_node], .e = e};
    struct db to = {.node = &job->node[to_node], .e = e};
    str_copy(from.purpose, sizeof from.purpose, "sequences");
    str_copy(to.purpose, sizeof to.purpose, "sequences");
    status s = db_open(&from, false);
    if (s == TW_OK) s = name_learn(job, &from, &a, NULL, &job);
    if (s == TW_OK) s = shape_sequences_sql(&from, &a, job, &b);
    if (s == TW_OK) fputs(buf_cstr(&b), out);
    if (s == TW_OK && apply) {
        s = db_open(&to, false);
        if (s == TW_OK) s = shape_sequences_apply(&from, &to, job);
    }
    db_close(&from);
    db_close(&to);
    buf_free(&b);
    arena_free(&a);
    return s;
}

/* ---- schema ---- */

/* `twsync schema`: what B needs to be as A is.  Both sides are planned as if they were to be made
 * on an empty server; entries of one name are the same object. */
struct schema_side {
    struct db db;
    struct table_list tables;
    struct ddl_list list;
    const struct ddl **by_what;
};

/* A facet of an object, as twsync.facet has it. */
struct facet {
    const char *facet, *what, *name, *value, *make, *alter, *unmake;
};

struct schema_diff {
    const struct job *job;
    struct arena *arena;
    FILE *out;
    struct schema_side a, b;
    struct buf todo;    /* statements for B, each ended by a zero byte */
    int missing, differ, extra;
    int open;           /* of those, what no statement here mends */
    bool leave_out;     /* what would fire on our writes */
};

static int schema_order(const void *x, const void *y)
{
    return strcmp((*(const struct ddl *const *) x)->what, (*(const struct ddl *const *) y)->what);
}

static status MUST_CHECK schema_read(struct schema_diff *d, struct schema_side *side)
{
    struct table_list unsupported;
    struct qname_list missing;
    TRY(db_open(&side->db, false));
    if (side == &d->a) TRY(name_learn(d->job, &side->db, d->arena, NULL, &d->job));
    const struct job *job = side == &d->a ? d->job : name_job(d->job, d->arena, &d->a.tables);
    TRY(cat_tables(&side->db, d->arena, job, &side->tables, &unsupported, &missing));
    TRY(shape_plan(&side->db, d->arena, job, &side->tables, &side->list));
    side->by_what = arena_array(d->arena, const struct ddl *, side->list.n + 1);
    for (int i = 0; i < side->list.n; i++) side->by_what[i] = &side->list.items[i];
    qsort(side->by_what, (size_t) side->list.n, sizeof *side->by_what, schema_order);
    return TW_OK;
}

static const struct ddl *schema_find(const struct schema_side *side, const struct ddl *like)
{
    const struct ddl **at = bsearch(&like, side->by_what, (size_t) side->list.n,
                                    sizeof *side->by_what, schema_order);
    return at ? *at : NULL;
}

static void schema_todo(struct schema_diff *d, const char *sql)
{
    size_t len = strlen(sql);
    while (len && strchr("; ", sql[len - 1])) len--;
    fprintf(d->out, "%.*s;\n", (int) len, sql);
    buf_str(&d->todo, sql);
    buf_char(&d->todo, '\0');
}

/* A difference that is only told, as comments. */
static void PRINTF(2, 3) schema_tell(struct schema_diff *d, const char *fmt, ...)
{
    struct buf b = {0};
    char text[4096];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    for (const char *c = text; *c; c++) {
        buf_char(&b, *c);
        if (*c == '\n') buf_str(&b, "-- ");
    }
    fprintf(d->out, "-- %s\n", buf_cstr(&b));
    buf_free(&b);
    d->open++;
}

/* A column only A has, as the stream would add it; NOT NULL is a facet of its own. */
static status MUST_CHECK schema_add_column(struct schema_diff *d, uint32_t table,
                                           const char *column)
{
    PGresult *r;
    bool unsure, lacks;
    TRY(shape_one_column(&d->a.db, d->arena, table, column, &r));
    if (PQntuples(r) != 1) return TW_OK;
    schema_todo(d, name_sql(d->job, d->arena, NULL, shape_add_column_sql(d->arena, r, &unsure),
                            &lacks));
    if (unsure) fprintf(d->out, "-- older rows hold values of their own there on a\n");
    return TW_OK;
}

/* What the stream would tell of one object (chapter 27), but for what is an entry of its own:
 * indexes, keys, triggers, rules, policies, statistics. */
static status MUST_CHECK schema_facets(struct schema_diff *d, struct db *db, const struct ddl *of,
                                       struct facet **out, int *n)
{
    bool is_type = of->id.kind == 't';
    const char *id = arena_fmt(d->arena, "{%" PRIu32 "}", of->id.oid), *none = "{}";
    const char *values[] = {is_type ? none : id, is_type ? id : none, none, none, none};
    const char *sql = arena_fmt(d->arena, "SELECT f.facet, f.what, f.name, f.value, f.make,"
                                " f.alter_, f.unmake FROM (%s) f(obj, part, facet, phase, what,"
                                " name, value, make, alter_, unmake, rename_) WHERE f.what IS NOT"
                                " NULL AND f.facet NOT IN ('replica identity', 'index comment')"
                                " AND (f.part !~ '^[iksgwy]' OR f.phase = 44 OR f.obj ~ '^t')"
                                " ORDER BY f.phase,"
                                " CASE WHEN f.part ~ '^c' THEN substr(f.part, 2)::int END, f.what",
                                shape_fill(d->arena, db->version, ddl_shape_sql, NULL, 0));
    PGresult *r;
    TRY(db_exec(db, "set up the session", "BEGIN READ ONLY; SET LOCAL search_path = pg_catalog,"
                " pg_temp; SET LOCAL quote_all_identifiers = on"));
    TRY(db_query(db, d->arena, "read the shape", sql, 5, values, &r));
    *n = PQntuples(r);
    *out = arena_array(d->arena, struct facet, *n + 1);
    int rows = *n;
    *n = 0;
    for (int i = 0; i < rows; i++) {
        const char *cells[7];
        bool lacks = false;
        for (int k = 0; k < 7; k++) {
            bool this_lacks = false;
            cells[k] = db_cell(r, i, k);
            if (db == &d->a.db && k != 0 && k != 2)
                cells[k] = name_sql(d->job, d->arena, db_cell(r, i, 1), cells[k], &this_lacks);
            lacks = lacks || this_lacks;
        }
        if (!lacks)
            (*out)[(*n)++] = (struct facet){cells[0], cells[1], cells[2], cells[3], cells[4],
                                            cells[5], cells[6]};
    }
    return db_exec(db, "set up the session", "COMMIT");
}

static const struct facet *facet_find(const struct facet *all, int n, const char *what)
{
    for (int i = 0; i < n; i++)
        if (str_is(all[i].what, what)) return &all[i];
    return NULL;
}

/* Does something of a column or a constraint belong to what the other side lacks? */
static bool facet_follows(const struct facet *x, const struct facet *other, int n)
{
    const char *at = strstr(x->what, "column \"");
    if (!x->facet[0] || !at) return false;
    return !facet_find(other, n, at);
}

/* Statements that make B's facet as A's is; what comes with a new column is not said twice. */
static status MUST_CHECK schema_facet(struct schema_diff *d, const struct ddl *want,
                                      const struct facet *x, const struct facet *y, bool follows)
{
    static const char *const with_column[] = {"type", "default", "identity", NULL};
    for (int i = 0; follows && with_column[i]; i++)
        if (str_is(x->facet, with_column[i])) return TW_OK;
    if (y && (x->value ? y->value && str_is(x->value, y->value) : !y->value)) return TW_OK;
    if (!y && !x->facet[0] && !strncmp(x->what, "column ", 7) && want->id.kind == 'r')
        return x->make ? schema_add_column(d, want->id.oid, x->name) : TW_OK;
    if (y && x->alter) schema_todo(d, x->alter);
    else if (y && x->make && y->unmake)
        schema_todo(d, arena_fmt(d->arena, "%s; %s", y->unmake, x->make));
    else if (!y && x->make) schema_todo(d, x->make);
    else if (y || x->value)
        schema_tell(d, "%s\na: %s\nb: %s", x->what, x->value ? x->value : "none",
                    y && y->value ? y->value : "none");
    return TW_OK;
}

/* What only B has of an object: what stands in the way of A's goes, columns and checks are only
 * told. */
static void schema_facet_of_b(struct schema_diff *d, const struct facet *y)
{
    bool kept = !strncmp(y->what, "column ", 7) || !strncmp(y->what, "constraint ", 11) ||
                !strncmp(y->what, "attribute ", 10);
    if (y->unmake && !kept) schema_todo(d, y->unmake);
    else schema_tell(d, "%s is only on b", y->what);
}

/* *same: they differ only by columns that the job leaves out. */
static status MUST_CHECK schema_object(struct schema_diff *d, const struct ddl *want,
                                       const struct ddl *have, bool *same)
{
    struct facet *x, *y;
    int nx, ny;
    size_t before = d->todo.len;
    int told = d->open;
    TRY(schema_facets(d, &d->a.db, want, &x, &nx));
    TRY(schema_facets(d, &d->b.db, have, &y, &ny));
    for (int i = ny - 1; i >= 0; i--)
        if (!facet_find(x, nx, y[i].what) && !facet_follows(&y[i], x, nx))
            schema_facet_of_b(d, &y[i]);
    bool by_parent = false;  /* a column comes with its parent's */
    for (int i = 0; i < nx; i++) {
        const struct facet *have_it = facet_find(y, ny, x[i].what);
        by_parent = by_parent || (!have_it && !x[i].make);
        TRY(schema_facet(d, want, &x[i], have_it, facet_follows(&x[i], y, ny)));
    }
    *same = d->todo.len == before && d->open == told && job_maps(d->job);
    if (d->todo.len == before && d->open == told && !by_parent && !*same)
        schema_tell(d, "%s differs\na: %s\nb: %s", want->what, want->sql, have->sql);
    return TW_OK;
}

/* Sequences count by themselves on each side, perhaps odd and even: told, but no difference. */
static bool schema_is_sequence(const struct ddl *x)
{
    return !strncmp(x->what, "sequence ", 9);
}

static status MUST_CHECK schema_entry(struct schema_diff *d, const struct ddl *want)
{
    bool same = false;
    const struct ddl *have = schema_find(&d->b, want);
    if (have && str_is(have->sql, want->sql)) return TW_OK;
    if (have && schema_is_sequence(want)) {
        fprintf(d->out, "-- %s is made otherwise on b, which may be meant so\n-- a: %s\n-- b: %s\n",
                want->what, want->sql, have->sql);
        return TW_OK;
    }
    *(have ? &d->differ : &d->missing) += 1;
    fprintf(d->out, "-- %s: %s\n", have ? "differs" : "missing on b", want->what);
    if (want->fires && d->leave_out) {
        schema_tell(d, "left out: it would fire on our writes on b, where this role may not set"
                       " session_replication_role");
    } else if (!have) {
        schema_todo(d, shape_make_sql(d->arena, want));
    } else if (want->again) {
        schema_todo(d, want->sql);
    } else if (have->drop_sql) {
        schema_todo(d, arena_fmt(d->arena, "%s; %s", have->drop_sql, want->sql));
    } else if ((want->table && want->id.kind == 'r') || want->id.kind == 't') {
        TRY(schema_object(d, want, have, &same));
        d->differ -= same;
        if (same) fprintf(d->out, "-- but for what the job leaves out\n");
    } else {
        schema_tell(d, "a: %s\nb: %s", want->sql, have->sql);
    }
    return TW_OK;
}

/* Run the statements; what fails may need another that comes later, or be done with another: the
 * next comparison tells.  *done: how many were run; why: of the first that failed. */
static status MUST_CHECK schema_apply(struct schema_diff *d, int *done, struct tw_error *why)
{
    TRY(db_exec(&d->b.db, "set up the session", "SET check_function_bodies = off"));
    *done = 0;
    error_clear(why);
    for (size_t i = 0; i < d->todo.len; i += strlen(d->todo.data + i) + 1) {
        status s = db_exec(&d->b.db, "change the schema", d->todo.data + i);
        if (s != TW_OK && s != TW_ESERVER) return s;
        if (s == TW_OK) ++*done;
        else if (why->code == TW_OK) *why = *d->b.db.e;
        error_clear(d->b.db.e);
    }
    return TW_OK;
}

static status MUST_CHECK schema_compare(struct schema_diff *d)
{
    TRY(schema_read(d, &d->a));
    TRY(schema_read(d, &d->b));
    TRY(shape_may_fire(&d->b.db, &d->a.list, DDL_LAST, &d->leave_out));
    for (int section = DDL_BEFORE; section <= DDL_LAST; section++)
        for (int i = 0; i < d->a.list.n; i++)
            if (d->a.list.items[i].section == (enum ddl_section) section)
                TRY(schema_entry(d, &d->a.list.items[i]));
    for (int i = 0; i < d->b.list.n; i++) {
        if (schema_find(&d->a, &d->b.list.items[i])) continue;
        const struct ddl *x = &d->b.list.items[i];
        d->extra++;
        schema_tell(d, "only on b: %s%s%s%s", x->what, x->drop_sql ? "\n" : "",
                    x->drop_sql ? x->drop_sql : "", x->drop_sql ? ";" : "");
    }
    return TW_OK;
}

static status MUST_CHECK schema_round(struct schema_diff *d, const struct job *job, FILE *out,
                                      struct tw_error *e)
{
    *d = (struct schema_diff){.job = job, .arena = d->arena, .out = out};
    d->a.db = (struct db){.node = &job->node[0], .e = e};
    d->b.db = (struct db){.node = &job->node[1], .e = e};
    snprintf(d->a.db.purpose, sizeof d->a.db.purpose, "%s:schema", job->name);
    snprintf(d->b.db.purpose, sizeof d->b.db.purpose, "%s:schema", job->name);
    status s = schema_compare(d);
    if (s == TW_OK && !d->missing && !d->differ && !d->extra)
        fprintf(out, "-- the schemas are equal: %d statements make either\n", d->a.list.n);
    else if (s == TW_OK)
        fprintf(out, "-- missing on b: %d, different: %d, only on b: %d\n", d->missing, d->differ,
                d->extra);
    return s;
}

static void schema_close(struct schema_diff *d)
{
    db_close(&d->a.db);
    db_close(&d->b.db);
    buf_free(&d->todo);
}

/* *differ: there is something that no statement, or none that was run, has mended.  With apply the
 * sides are compared again after the statements, and that is what counts: a statement that was
 * refused is an error if something is left. */
static status MUST_CHECK schema_run(const struct job *job, bool apply, FILE *out, bool *differ,
                                    struct tw_error *e)
{
    struct arena a = {0};
    struct schema_diff d = {.arena = &a};
    struct tw_error why;
    int done = 0;
    error_clear(&why);
    status s = schema_round(&d, job, out, e);
    for (bool more = apply && d.todo.len; s == TW_OK && more;) {
        s = schema_apply(&d, &done, &why);
        fprintf(out, "-- run on b: %d statements\n", done);
        schema_close(&d);
        if (s == TW_OK) s = schema_round(&d, job, out, e);
        more = done && d.todo.len;
    }
    *differ = d.open || d.todo.len;
    if (s == TW_OK && *differ && why.code != TW_OK) {
        *e = why;
        s = why.code;
    }
    schema_close(&d);
    arena_free(&a);
    return s;
}

/* ---- grants ---- */

/* What a role needs there, as statements that it has not got yet; run by a superuser or, where the
 * database is managed by others, by whom they let. */
static const char grants_role_sql[] =
    "SELECT format('ALTER ROLE %I REPLICATION;', r.rolname) || CASE WHEN EXISTS (SELECT FROM"
    " pg_roles x WHERE x.rolname = 'rds_replication') THEN format('  -- on Amazon RDS: GRANT"
    " rds_replication TO %I;', r.rolname) ELSE '' END FROM pg_roles r WHERE r.rolname ="
    " current_user AND $1::boolean AND NOT r.rolreplication AND NOT r.rolsuper"
    " UNION ALL SELECT format('GRANT CREATE ON DATABASE %I TO %I;', current_database(),"
    " current_user) WHERE NOT has_database_privilege(current_database(), 'CREATE')"
    " UNION ALL SELECT format('GRANT %s ON SCHEMA %I TO %I;', CASE WHEN $2::boolean THEN 'USAGE,"
    " CREATE' ELSE 'USAGE' END, n.nspname, current_user) FROM pg_namespace n WHERE n.nspname ="
    " ANY ($3::text[]) AND NOT (has_schema_privilege(n.oid, 'USAGE') AND (NOT $2::boolean OR"
    " has_schema_privilege(n.oid, 'CREATE')))"
    " UNION ALL SELECT format('GRANT %I TO %I;  -- owner of %s table%s, %s', o.rolname,"
    " current_user, count(*), CASE WHEN count(*) = 1 THEN '' ELSE 's' END,"
    " min(c.oid::regclass::text)) FROM pg_class c JOIN pg_roles o ON o.oid = c.relowner WHERE c.oid"
    " = ANY ($4::oid[]) AND NOT pg_has_role(c.relowner, 'USAGE') GROUP BY o.rolname"
    " UNION ALL SELECT format('GRANT EXECUTE ON FUNCTION %s TO %I;', string_agg("
    " p.oid::regprocedure::text, ', ' ORDER BY p.proname), current_user) FROM pg_proc p WHERE"
    " p.pronamespace = 'pg_catalog'::regnamespace AND p.proname = ANY"
    " ('{pg_replication_origin_create,pg_replication_origin_drop,pg_replication_origin_oid,"
    "pg_replication_origin_progress,pg_replication_origin_session_progress,"
    "pg_replication_origin_session_reset,pg_replication_origin_session_setup,"
    "pg_replication_origin_xact_setup}') AND current_setting('server_version_num')::int >= 140000"
    " AND NOT has_function_privilege(p.oid, 'EXECUTE') HAVING count(*) > 0";

/* 15 can give the right to set a parameter; before, a superuser sets it for the role. */
static const char grants_parameter_sql[] =
    "SELECT CASE WHEN current_setting('server_version_num')::int >= 150000 THEN format('GRANT SET"
    " ON PARAMETER session_replication_role TO %I;', current_user) ELSE format('ALTER ROLE %I SET"
    " session_replication_role = replica;  -- if it is used by twsync alone', current_user) END";

static const char *grants_setting(const struct node *n, const char *name, const char *otherwise)
{
    for (int i = 0; i < n->nsettings; i++)
        if (str_is(n->settings[i].keyword, name)) return n->settings[i].value;
    return otherwise;
}

/* Where the role cannot even connect. */
static void grants_first(const struct node *n, bool source, struct buf *b)
{
    const char *user = grants_setting(n, "user", "ROLE");
    buf_str(b, "CREATE ROLE ");
    sql_ident(b, user);
    buf_fmt(b, " LOGIN%s PASSWORD '...';\nGRANT CONNECT, CREATE ON DATABASE ",
            source ? " REPLICATION" : "");
    sql_ident(b, grants_setting(n, "dbname", user));
    buf_str(b, " TO ");
    sql_ident(b, user);
    buf_str(b, ";\n-- then once more, for the rest, which can be seen when it connects\n");
}

/* Schemas of the job, by their names on this node: the chosen ones, and those of A's tables. */
static const char *grants_schemas(const struct job *job, struct arena *a, bool on_b,
                                  const struct table_list *tables)
{
    struct buf b = {0};
    struct value v;
    for (int i = 0; i < job->schemas.n; i++) {
        const char *name = job->schemas.items[i].schema;
        v = value_of(on_b ? name_schema(job, name) : name);
        if (!job->schemas.items[i].schema_glob) array_value(&b, &v);
    }
    for (int i = 0; i < tables->n; i++) {
        v = value_of(on_b ? name_schema(job, tables->items[i].schema) : tables->items[i].schema);
        array_value(&b, &v);
    }
    if (!b.len) return "{}";
    buf_str(&b, "}");
    const char *list = arena_str(a, b.data);
    buf_free(&b);
    return list;
}

/* tables: those of A, which the first call finds. */
static status MUST_CHECK grants_ask(const struct job *job, struct db *d, struct arena *a,
                                    struct table_list *tables, struct buf *b)
{
    bool on_b = d->node->letter == 'b';
    struct table_list here, unsupported;
    struct qname_list missing;
    PGresult *r, *may;
    const struct job *seen = on_b ? name_job(job, a, tables) : job;
    TRY(cat_tables(d, a, seen, &here, &unsupported, &missing));
    if (!on_b) *tables = here;
    const char *values[] = {!on_b || job->task[TW_REVERSE].enabled ? "t" : "f", on_b ? "t" : "f",
                            grants_schemas(job, a, on_b, tables), cat_oid_array(a, &here)};
    TRY(db_query(d, a, "look for rights", grants_role_sql, 4, values, &r));
    for (int i = 0; i < PQntuples(r); i++) buf_fmt(b, "%s\n", db_cell(r, i, 0));
    TRY(db_attempt(d, "SET session_replication_role = replica", 0, NULL, &may));
    bool ok = db_result_ok(may);
    PQclear(may);
    if (ok) return TW_OK;
    TRY(db_query(d, a, "look for rights", grants_parameter_sql, 0, NULL, &r));
    buf_fmt(b, "%s\n", db_cell(r, 0, 0));
    return TW_OK;
}

/* `twsync grants`: SQL for what the job's roles lack on both sides. */
static status MUST_CHECK grants_run(const struct job *job, FILE *out, struct tw_error *e)
{
    struct arena a = {0};
    struct table_list tables = {0};
    for (int i = 0; i < 2; i++) {
        const struct node *n = &job->node[i];
        struct buf b = {0};
        struct db d = {.node = n, .e = e};
        error_clear(e);
        snprintf(d.purpose, sizeof d.purpose, "%s:grants", job->name);
        status s = db_open(&d, false);
        if (s == TW_OK) s = grants_ask(job, &d, &a, &tables, &b);
        fprintf(out, "-- %c, database %s\n", n->letter, grants_setting(n, "dbname", "?"));
        if (s != TW_OK) {
            fprintf(out, "-- %s\n", e->msg);
            grants_first(n, i == 0 || job->task[TW_REVERSE].enabled, &b);
        }
        fputs(b.len ? b.data : "-- nothing is missing\n", out);
        db_close(&d);
        buf_free(&b);
    }
    error_clear(e);
    arena_free(&a);
    return TW_OK;
}

/* ---- resync ---- */

/* Is a supervisor at work, and the page its own?  Its lock tells; a file alone would not after a
 * kill. */
static bool status_running(const struct job *job)
{
    struct arena a = {0};
    int fd = open(arena_fmt(&a, "%s/lock", job->state_dir), O_RDONLY | O_CLOEXEC);
    struct stat st;
    bool running = fd >= 0 && flock(fd, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK &&
                   fstat(fd, &st) == 0 && st.st_size > 0;
    if (fd >= 0) close(fd);
    arena_free(&a);
    return running;
}

/* `twsync resync`: ask the forward task to copy a table again, and wait until it has, if it runs.
 * `twsync skip`: leave it out until then. */
static status MUST_CHECK resync_wait(struct db *b, struct arena *a, const char *const *values,
                                     FILE *out)
{
    static const char sql[] =
        "SELECT wanted, tries, reason FROM twsync.parked WHERE task = $1"
        " AND ARRAY[schema_name, table_name] = parse_ident($2)";
    PGresult *r;
    for (;;) {
        TRY(db_query(b, a, "look at the table", sql, 2, values, &r));
        if (!PQntuples(r)) break;
        if (!db_cell_true(r, 0, 0) && db_cell_int(r, 0, 1) >= TASK_RESYNC_TRIES)
            return fail(b->e, TW_ESERVER, "table %s could not be copied again: the task's log says"
                        " why", values[1]);
        os_sleep_ms(200);
        if (stop_flag) return fail(b->e, TW_ESTOP, "stop requested");
    }
    fprintf(out, "table %s has been copied again\n", values[1]);
    return TW_OK;
}

static status MUST_CHECK resync_run(const struct job *job, const char *table, bool skip,
                                    FILE *out, struct tw_error *e)
{
    struct arena a = {0};
    struct db from = {.node = &job->node[0], .e = e}, to = {.node = &job->node[1], .e = e};
    const char *task = task_name(&a, job, TW_FORWARD), *name = NULL;
    const char *known[] = {slot_name(&a, job, TW_FORWARD), table};
    const char *values[] = {task, NULL, skip ? "twsync skip" : "twsync resync", skip ? "f" : "t"};
    snprintf(from.purpose, sizeof from.purpose, "%s:resync", job->name);
    snprintf(to.purpose, sizeof to.purpose, "%s:resync", job->name);
    status s = db_open(&from, false);
    if (s == TW_OK)
        s = db_value(&from, &a, "look for the table", "SELECT format('%I.%I', n.nspname, c.relname)"
                     " FROM pg_publication u JOIN pg_publication_rel m ON m.prpubid = u.oid"
                     " JOIN pg_class c ON c.oid = m.prrelid AND c.relkind = 'r' JOIN pg_namespace n"
                     " ON n.oid = c.relnamespace WHERE u.pubname = $1 AND n.nspname <> 'twsync'"
                     " AND (ARRAY[n.nspname, c.relname]::text[] = parse_ident($2)"
                     " OR n.nspname = 'public' AND ARRAY[c.relname]::text[] = parse_ident($2))",
                     2, known, &name);
    if (s == TW_OK && !name)
        s = fail(e, TW_EJOB, "job %s does not carry a table %s (partitioned tables are copied by"
                 " their partitions)", job->name, table);
    values[1] = name;
    if (s == TW_OK) s = db_open(&to, false);
    if (s == TW_OK)
        s = db_exec_params(&to, "ask for the table", "INSERT INTO twsync.parked (task, schema_name,"
                           " table_name, reason, wanted) SELECT $1, i[1], i[2], $3, $4::boolean"
                           " FROM parse_ident($2) i ON CONFLICT (task, schema_name,"
                           " table_name) DO UPDATE SET wanted = EXCLUDED.wanted, tries = 0", 4,
                           values);
    bool waits = s == TW_OK && !skip && status_running(job);
    if (s == TW_OK && skip)
        fprintf(out, "table %s is left out until `twsync resync %s %s`\n", name, job->path, table);
    else if (s == TW_OK)
        fprintf(out, waits ? "waiting for task %s to copy table %s again\n"
                           : "task %s does not run on this host: it copies table %s again when it"
                             " runs\n", task, name);
    fflush(out);
    if (waits) s = resync_wait(&to, &a, values, out);
    db_close(&from);
    db_close(&to);
    arena_free(&a);
    return s;
}

/* `twsync skip --transaction`: a task goes on after a transaction that it cannot get past.  The
 * source decodes nothing before the position that it is asked for. */
static status MUST_CHECK skip_transaction(const struct job *job, enum tw_direction dir,
                                          const char *lsn, FILE *out, struct tw_error *e)
{
    static const char sql[] =
        "UPDATE twsync.progress SET applied_lsn = $2::pg_lsn WHERE task = $1 AND applied_lsn <"
        " $2::pg_lsn AND phase = 'stream' AND NOT EXISTS (SELECT FROM pg_stat_activity WHERE"
        " datname = current_database() AND starts_with(application_name, $3)) RETURNING task";
    struct arena a = {0};
    const struct node *source = &job->node[dir == TW_FORWARD ? 0 : 1];
    struct db from = {.node = source, .e = e};
    struct db to = {.node = &job->node[dir == TW_FORWARD ? 1 : 0], .e = e};
    lsn_t at, end = 0;
    const char *now, *done;
    if (!lsn_parse(lsn, &at))
        return fail(e, TW_EJOB, "\"%s\" is no position; the task's error has it, like 0/61CA8F8",
                    lsn);
    if (status_running(job)) return fail(e, TW_EFENCED, "the job runs on this host: stop it first");
    snprintf(from.purpose, sizeof from.purpose, "%s:skip", job->name);
    snprintf(to.purpose, sizeof to.purpose, "%s:skip", job->name);
    const char *task = task_name(&a, job, dir);
    const char *values[] = {task, lsn_text(&a, at + 1),
                            arena_fmt(&a, "twsync:%s:%s:", job->name, direction_names[dir])};
    status s = db_open(&from, false);
    if (s == TW_OK)
        s = db_value(&from, &a, "read the position", "SELECT pg_current_wal_insert_lsn()", 0, NULL,
                     &now);
    if (s == TW_OK && (!lsn_parse(now, &end) || at >= end))
        s = fail(e, TW_EJOB, "%c is at %s: it has not come to %s yet", source->letter, now, lsn);
    if (s == TW_OK) s = db_open(&to, false);
    if (s == TW_OK) s = db_value(&to, &a, "go past a transaction", sql, 3, values, &done);
    if (s == TW_OK && !done)
        s = fail(e, TW_EJOB, "task %s is past %s already, is not streaming yet, or runs on another"
                 " host", task, lsn);
    if (s == TW_OK)
        fprintf(out, "task %s goes on after %s: what it had not applied of what was committed up to"
                " there is left out.\nStart the job and copy the tables of that transaction again,"
                " from a to b: twsync resync %s TABLE\n", task, lsn, job->path);
    db_close(&from);
    db_close(&to);
    arena_free(&a);
    return s;
}

/* ---- conflicts ---- */

/* `twsync conflicts`: what was decided, and deciding it again. */
struct conflicts_query {
    const char *task, *kind, *table;  /* NULL: all */
    const char *id;                   /* a/12: number 12 of those recorded on A */
    const char *take;                 /* "a" or "b": that side's row is wanted on both */
    bool open, json;
    int limit;
};

/* $1 task, $2 kind, $3 table, $4 id, $5 only open ones */
#define CONFLICTS_WHERE                                                                            \
    " WHERE task = $1 AND ($2::text IS NULL OR kind = $2)"                                         \
    " AND ($3::text IS NULL OR $3 IN (schema_name || '.' || table_name, table_name))"              \
    " AND ($4::bigint IS NULL OR id = $4::bigint)"                                                 \
    " AND (NOT $5::bool OR settled IS NULL OR settled IN ('open', 'failed'))"

static const char conflicts_list_sql[] =
    "SELECT * FROM (SELECT to_char(recorded_at, 'YYYY-MM-DD HH24:MI:SS.MS') AS at, id,"
    " split_part(task, '/', 2), kind, policy, outcome,"
    " coalesce(settled, CASE WHEN wanted IS NOT NULL THEN wanted || ' wanted' ELSE '-' END),"
    " schema_name || '.' || table_name, key::text,"
    " row_to_json(c)::text FROM twsync.conflict c" CONFLICTS_WHERE
    " ORDER BY c.id DESC LIMIT $6::int) x ORDER BY id";

static const char conflicts_take_sql[] =
    "UPDATE twsync.conflict SET wanted = $6, settled = NULL, settled_at = NULL" CONFLICTS_WHERE
    " RETURNING to_char(recorded_at, 'YYYY-MM-DD HH24:MI:SS.MS'), id, split_part(task, '/', 2),"
    " kind, policy, outcome, wanted || ' wanted', schema_name || '.' || table_name, key::text,"
    " row_to_json(conflict)::text";

#undef CONFLICTS_WHERE

static void conflicts_print(const struct conflicts_query *q, char node, const PGresult *r,
                            FILE *out)
{
    for (int i = 0; i < PQntuples(r); i++) {
        if (q->json) {
            fprintf(out, "{\"node\":\"%c\",%s\n", node, PQgetvalue(r, i, 9) + 1);
            continue;
        }
        fprintf(out, "%s  %c/%-6s %-8s %-24s %-9s %-11s %-9s %s %s\n", PQgetvalue(r, i, 0), node,
                PQgetvalue(r, i, 1), PQgetvalue(r, i, 2), PQgetvalue(r, i, 3), PQgetvalue(r, i, 4),
                PQgetvalue(r, i, 5), PQgetvalue(r, i, 6), PQgetvalue(r, i, 7),
                PQgetvalue(r, i, 8));
    }
}

/* The conflicts of one task, which its target holds. */
static status MUST_CHECK conflicts_of(const struct job *job, enum tw_direction dir,
                                      const struct conflicts_query *q, FILE *out, int *found,
                                      struct tw_error *e)
{
    struct arena a = {0};
    struct db d = {.node = &job->node[dir == TW_FORWARD ? 1 : 0], .e = e};
    PGresult *r = NULL;
    const char *there = NULL;
    const char *values[] = {task_name(&a, job, dir), q->kind, q->table, q->id ? q->id + 2 : NULL,
                            q->open ? "t" : "f",
                            q->take ? q->take : arena_fmt(&a, "%d", q->limit)};
    str_copy(d.purpose, sizeof d.purpose, "conflicts");
    bool here = !q->id || q->id[0] == d.node->letter;
    status s = here ? db_open(&d, false) : TW_OK;
    if (s == TW_OK && here)
        s = db_value(&d, &a, "look for schema twsync", "SELECT to_regclass('twsync.conflict')", 0,
                     NULL, &there);
    if (s == TW_OK && there)
        s = db_query(&d, &a, "read conflicts", q->take ? conflicts_take_sql : conflicts_list_sql, 6,
                     values, &r);
    if (s == TW_OK && r) {
        conflicts_print(q, d.node->letter, r, out);
        *found += PQntuples(r);
    }
    db_close(&d);
    arena_free(&a);
    return s;
}

static status MUST_CHECK conflicts_run(const struct job *job, const struct conflicts_query *q,
                                       FILE *out, struct tw_error *e)
{
    int found = 0;
    bool headed = !q->json;
    if (headed)
        fprintf(out, "%-25s%-9s%-9s%-25s%-10s%-12s%-10s%s\n", "recorded", "id", "task", "kind",
                "policy", "outcome", "settled", "row");
    for (int dir = 0; dir < 2; dir++) {
        if (q->task && !str_is(q->task, direction_names[dir])) continue;
        TRY(conflicts_of(job, (enum tw_direction) dir, q, out, &found, e));
    }
    if (q->id && !found) return fail(e, TW_EJOB, "there is no conflict %s", q->id);
    if (headed && q->take)
        fprintf(out, "%d taken up: both sides get %s's row from the running job within seconds; a "
                "task that stopped at it goes on when the job is run again\n", found,
                str_is(q->take, "a") ? "A" : "B");
    return TW_OK;
}

/* ---- status ---- */

/* A page left by a kill says Running: of a job that does not run only failures are still true. */
static enum task_state status_state(const struct stat_task *t, bool running)
{
    enum task_state s = (enum task_state) t->state;
    bool stays = s == TASK_Failed || s == TASK_PrecheckFailed || s == TASK_Paused;
    return running || stays ? s : TASK_NotStarted;
}

static void status_time(struct buf *b, usec wall_us)
{
    struct tm tm;
    char text[32];
    time_t at = (time_t) (wall_us / USEC_SEC);
    strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&at, &tm));
    buf_str(b, text);
}

static void status_task_json(struct buf *b, const struct stat_task *t, int dir, bool running)
{
    buf_fmt(b, "{\"task\":\"%s\",\"state\":\"%s\",\"phase\":\"%s\",\"rung\":\"%s\"",
            direction_names[dir], task_state_name(status_state(t, running)), t->phase, t->rung);
    buf_fmt(b, ",\"received_lsn\":\"" LSN_FMT "\"", LSN_ARG((lsn_t) t->received_lsn));
    buf_fmt(b, ",\"applied_lsn\":\"" LSN_FMT "\"", LSN_ARG((lsn_t) t->applied_lsn));
    buf_fmt(b, ",\"confirmed_lsn\":\"" LSN_FMT "\"", LSN_ARG((lsn_t) t->confirmed_lsn));
    buf_fmt(b, ",\"caught_up\":%s,\"delay_ms\":%" PRId64, t->caught_up ? "true" : "false",
            (int64_t) t->delay_us / 1000);
#define X(n) buf_fmt(b, ",\"" #n "\":%" PRId64, (int64_t) t->n);
    STAT_COUNTERS(X)
#undef X
    if (status_state(t, running) == TASK_Retrying) {
        buf_fmt(b, ",\"attempt\":%" PRId64 ",\"next_try\":\"", (int64_t) t->attempts);
        status_time(b, t->next_us);
        buf_str(b, "\",\"gives_up\":\"");
        status_time(b, t->until_us);
        buf_char(b, '"');
    }
    buf_str(b, ",\"last_error\":");
    json_str(b, t->last_error);
    buf_char(b, '}');
}

static void status_json(struct buf *b, const struct job *job, const struct stat_page *page,
                        bool running)
{
    const char *sep = "";
    buf_fmt(b, "{\"job\":\"%s\",\"tag\":\"%s\",\"running\":%s,\"tasks\":[", job->name,
            tag_names[job->tag], running ? "true" : "false");
    for (int dir = 0; dir < 2; dir++) {
        if (!job->task[dir].enabled) continue;
        buf_str(b, sep);
        status_task_json(b, &page->task[dir], dir, running);
        sep = ",";
    }
    buf_str(b, "]}\n");
}

/* What is being done about a failure, or can be. */
static void status_retry(struct buf *b, const struct job *job, const struct stat_task *t, int dir,
                         enum task_state state)
{
    if (state == TASK_Retrying) {
        buf_fmt(b, "  retry        attempt %" PRId64 ", the next at ", (int64_t) t->attempts);
        status_time(b, t->next_us);
        buf_str(b, ", given up at ");
        status_time(b, t->until_us);
        buf_char(b, '\n');
    }
    if (state == TASK_Failed)
        buf_fmt(b, "  to go on     when its cause is gone: twsync resume %s --task %s (or run, if"
                   " nothing runs)\n", job->path, direction_names[dir]);
    if (state == TASK_Paused)
        buf_fmt(b, "  to go on     twsync resume %s --task %s\n", job->path, direction_names[dir]);
}

static void status_task_text(struct buf *b, const struct job *job, const struct stat_task *t,
                             int dir, bool running)
{
    enum task_state state = status_state(t, running);
    buf_fmt(b, "%-8s %s", direction_names[dir], task_state_name(state));
    if (state == TASK_Running) buf_str(b, t->caught_up ? " (caught up)" : " (delayed)");
    buf_fmt(b, "\n  phase        %s\n", t->phase);
    if (t->rung[0]) buf_fmt(b, "  rung         %s\n", t->rung);
    if (t->copy_tables)
        buf_fmt(b, "  copy         %" PRId64 " of %" PRId64 " tables, %" PRId64 " rows\n",
                (int64_t) t->copy_tables_done, (int64_t) t->copy_tables, (int64_t) t->copy_rows);
    buf_fmt(b, "  delay        %" PRId64 " ms\n", (int64_t) t->delay_us / 1000);
    buf_fmt(b, "  applied      " LSN_FMT "  confirmed " LSN_FMT "\n",
            LSN_ARG((lsn_t) t->applied_lsn), LSN_ARG((lsn_t) t->confirmed_lsn));
    buf_fmt(b, "  changes      %" PRId64 " in %" PRId64 " transactions (%" PRId64 " inserts, %"
               PRId64 " updates, %" PRId64 " deletes, %" PRId64 " truncates)\n",
            (int64_t) t->rows, (int64_t) t->transactions, (int64_t) t->inserts,
            (int64_t) t->updates, (int64_t) t->deletes, (int64_t) t->truncates);
    buf_fmt(b, "  conflicts    %" PRId64 "\n", (int64_t) t->conflicts);
    buf_fmt(b, "  not echoed   %" PRId64 " transactions of the other direction\n",
            (int64_t) t->skipped_transactions);
    if (t->ddl_by[0])
        buf_fmt(b, "  DDL          %s: %" PRId64 " carried, %" PRId64 " skipped, %" PRId64
                   " refused\n",
                str_is(t->ddl_by, "trigger") ? "by event triggers"
                : str_is(t->ddl_by, "relation") ? "added columns only" : "not carried",
                (int64_t) t->ddl, (int64_t) t->ddl_skipped, (int64_t) t->ddl_failed);
    if (t->parked)
        buf_fmt(b, "  parked       %" PRId64 " tables (twsync.parked on the target says why; "
                   "`twsync resync` copies one again)\n", (int64_t) t->parked);
    if (t->restarts) buf_fmt(b, "  restarts     %" PRId64 "\n", (int64_t) t->restarts);
    if (t->last_error[0]) buf_fmt(b, "  last error   %s\n", t->last_error);
    status_retry(b, job, t, dir, state);
}

/* A copy that stays what it is: in the page texts may change between two looks. */
static void status_copy(struct stat_page *to, const struct stat_page *from)
{
    memcpy(to, from, sizeof *to);
    for (int dir = 0; dir < 2; dir++) {
        struct stat_task *t = &to->task[dir];
        t->phase[sizeof t->phase - 1] = t->rung[sizeof t->rung - 1] = '\0';
        t->last_error[sizeof t->last_error - 1] = '\0';
    }
}

static status MUST_CHECK status_run(const struct job *job, bool json, FILE *out, struct tw_error *e)
{
    struct stat_page now = {.task = {{.phase = "none"}, {.phase = "none"}}};
    struct buf b = {0};
    struct tw_error missing;
    (void) e;
    error_clear(&missing);
    const struct stat_page *page = stat_map(job->state_dir, STAT_READ, &missing);
    bool running = page && status_running(job);
    if (page) status_copy(&now, page);
    page = &now;
    if (json) {
        status_json(&b, job, page, running);
    } else {
        buf_fmt(&b, "job %s (%s): %s\n", job->name, tag_names[job->tag],
                running ? "running" : "not running; what follows is its last word");
        for (int dir = 0; dir < 2; dir++)
            if (job->task[dir].enabled) status_task_text(&b, job, &page->task[dir], dir, running);
    }
    fputs(b.data, out);
    buf_free(&b);
    return TW_OK;
}

/* ---- throttle ---- */

static const char *const throttle_names[] = {
#define X(n, name, help) name,
    THROTTLES(X)
#undef X
};

static const char *const throttle_help[] = {
#define X(n, name, help) help,
    THROTTLES(X)
#undef X
};

/* "full.rows=50000".  false, with the reason in `e`: there is no such limit, or no such value. */
static bool throttle_parse(const char *word, int *which, int64_t *rate, struct tw_error *e)
{
    const char *equals = strchr(word, '=');
    for (*which = 0; equals && *which < NTHROTTLES; ++*which) {
        const char *name = throttle_names[*which];
        if (strlen(name) != (size_t) (equals - word) || strncmp(name, word, strlen(name))) continue;
        if (job_parse_rate(name, equals + 1, rate)) return true;
        char why[200];
        job_rate_wrong(why, sizeof why, name, equals + 1);
        (void) fail(e, TW_EJOB, "%s", why);
        return false;
    }
    (void) fail(e, TW_EJOB, "there is no limit \"%.60s\": NAME=VALUE, and `twsync throttle JOB`"
                            " lists the names", word);
    return false;
}

/* `twsync throttle`: show the limits of a job, or set some until it starts anew. */
static status MUST_CHECK throttle_run(const struct job *job, char *const *words, int n, FILE *out,
                                      struct tw_error *e)
{
    int which[NTHROTTLES];
    int64_t rate[NTHROTTLES];
    struct tw_error missing;
    error_clear(&missing);
    if (n > NTHROTTLES) return fail(e, TW_EJOB, "more limits than there are");
    for (int i = 0; i < n; i++)
        if (!throttle_parse(words[i], &which[i], &rate[i], e)) return e->code;
    struct stat_page *page = stat_map(job->state_dir, n ? STAT_WRITE : STAT_READ, &missing);
    bool running = page && status_running(job);
    if (n && !running)
        return fail(e, TW_EJOB, "job %s does not run on this host: set its limits in [throttle] of"
                    " its file", job->name);
    for (int i = 0; i < n; i++) {
        page->limits[which[i]].rate = rate[i];
        page->limits[which[i]].due_ns = 0;
    }
    for (int i = 0; i < NTHROTTLES; i++) {
        struct job_key k = {.key = throttle_names[i]};
        int64_t now = running ? (int64_t) page->limits[i].rate : job->throttle[i];
        struct buf b = {0};
        job_write_rate(&b, &k, &now);
        fprintf(out, "%-17s %12s  %s\n", throttle_names[i], buf_cstr(&b), throttle_help[i]);
        buf_free(&b);
    }
    if (n) fputs("in effect until the job starts again; [throttle] in its file keeps them\n", out);
    if (page) munmap(page, sizeof *page);
    return TW_OK;
}

/* ---- reload ---- */

enum { RELOAD_WAIT_S = 60 };

/* `twsync reload`: the supervisor reads the file again, and says whether it took it. */
static status MUST_CHECK reload_run(const struct job *job, FILE *out, struct tw_error *e)
{
    struct tw_error missing;
    error_clear(&missing);
    struct stat_page *page = stat_map(job->state_dir, STAT_READ, &missing);
    if (!page || !status_running(job))
        return fail(e, TW_EJOB, "job %s does not run on this host: `twsync run` reads its file",
                    job->name);
    int before = page->reloads;
    usec deadline = os_now() + RELOAD_WAIT_S * USEC_SEC;
    if (kill(page->supervisor_pid, SIGHUP))
        return fail(e, TW_EOS, "could not signal process %d: %s", (int) page->supervisor_pid,
                    strerror(errno));
    while (page->reloads == before && status_running(job) && os_now() < deadline) os_sleep_ms(20);
    if (page->reloads == before)
        return fail(e, TW_EOS, "job %s gave no answer in %d s", job->name, RELOAD_WAIT_S);
    if (page->reload_failed[0])
        return fail(e, TW_ECHECK, "the job goes on as it was: %s", page->reload_failed);
    fputs("the job goes on by what its file says now\n", out);
    munmap(page, sizeof *page);
    return TW_OK;
}

/* ---- pause, resume ---- */

enum { PAUSE_WAIT_S = 30 };

/* What a slot keeps while its task rests, and how much it may. */
static void pause_tell(const struct job *job, int dir, FILE *out)
{
    static const char sql[] =
        "SELECT pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_insert_lsn(), restart_lsn)),"
        " coalesce((SELECT CASE setting WHEN '-1' THEN 'without a limit (max_slot_wal_keep_size is"
        " -1)' ELSE 'up to ' || setting || ' MB (max_slot_wal_keep_size), then it is lost' END FROM"
        " pg_settings WHERE name = 'max_slot_wal_keep_size'), 'without a limit') FROM"
        " pg_replication_slots WHERE slot_name = $1";
    struct arena a = {0};
    struct tw_error e;
    struct db d = {.node = &job->node[dir == TW_FORWARD ? 0 : 1], .e = &e};
    const char *slot = slot_name(&a, job, (enum tw_direction) dir);
    PGresult *r;
    error_clear(&e);
    snprintf(d.purpose, sizeof d.purpose, "%s:pause", job->name);
    status s = db_open(&d, false);
    if (s == TW_OK) s = db_query(&d, &a, "look at the slot", sql, 1, &slot, &r);
    if (s == TW_OK && PQntuples(r) && db_cell(r, 0, 0))
        fprintf(out, "  slot %s keeps WAL on %c meanwhile: %s so far, %s\n", slot, d.node->letter,
                db_cell(r, 0, 0), db_cell(r, 0, 1));
    if (s != TW_OK)
        fprintf(out, "  its slot keeps WAL on %c meanwhile (how much could not be asked: %s)\n",
                d.node->letter, e.msg);
    db_close(&d);
    arena_free(&a);
}

/* `twsync pause`, `twsync resume`: of one task, or of both (task NULL).  What is written down holds
 * for the next run, too. */
static status MUST_CHECK pause_run(const struct job *job, const char *task, bool rest, FILE *out,
                                   struct tw_error *e)
{
    struct tw_error missing;
    bool paused[2];
    pause_read(job->state_dir, paused);
    for (int dir = 0; dir < 2; dir++)
        if (job->task[dir].enabled && (!task || str_is(task, direction_names[dir])))
            paused[dir] = rest;
    if (task && !job->task[str_is(task, "reverse")].enabled)
        return fail(e, TW_EJOB, "task %s of this job is not enabled", task);
    TRY(pause_write(job->state_dir, paused, e));
    error_clear(&missing);
    struct stat_page *page = stat_map(job->state_dir, STAT_WRITE, &missing);
    bool running = page && status_running(job);
    if (running) page->pauses++;
    usec deadline = os_now() + PAUSE_WAIT_S * USEC_SEC;
    while (running && page->pauses_heard != page->pauses && status_running(job) &&
           os_now() < deadline)
        os_sleep_ms(20);
    if (running && page->pauses_heard != page->pauses)
        return fail(e, TW_EOS, "job %s gave no answer in %d s", job->name, PAUSE_WAIT_S);
    for (int dir = 0; dir < 2; dir++) {
        if (!job->task[dir].enabled || (task && !str_is(task, direction_names[dir]))) continue;
        fprintf(out, "%s task %s%s\n", direction_names[dir], rest ? "rests" : "goes on",
                running ? "" : " when the job runs: it does not on this host");
        if (rest) pause_tell(job, dir, out);
    }
    if (page) munmap(page, sizeof *page);
    return TW_OK;
}

/* ==== 31. tw_ ==============================================================
 * The public API of twsync.h: thin. */

const char *tw_status_name(tw_status s)
{
    return s < TW_NSTATUS ? status_table[s].name : "?";
}

const char *tw_status_text(tw_status s)
{
    return s < TW_NSTATUS ? status_table[s].text : "unknown status";
}

#ifndef TWSYNC_INIH_VERSION
#define TWSYNC_INIH_VERSION "unknown"
#endif

#ifndef TWSYNC_LIBC_VERSION
#define TWSYNC_LIBC_VERSION "libc unknown"
#endif

void tw_versions_print(FILE *to)
{
    int pq = PQlibVersion();
    fprintf(to, "twsync %s\nlibpq %d.%d\n%s\nzlib %s\ninih %s\n%s\n", TWSYNC_VERSION, pq / 10000,
            pq % 10000, OpenSSL_version(OPENSSL_VERSION), zlibVersion(), TWSYNC_INIH_VERSION,
            TWSYNC_LIBC_VERSION);
}

tw_status tw_job_load(const char *path, tw_job **job, struct tw_error *e)
{
    error_clear(e);
    return job_load(path, job, e);
}

void tw_job_free(tw_job *job)
{
    job_free(job);
}

void tw_job_print(const tw_job *job, FILE *to)
{
    job_print(job, to);
}

tw_status tw_job_check(const tw_job *job, FILE *to, bool json, struct tw_error *e)
{
    struct arena a = {0};
    struct check_list list;
    error_clear(e);
    status s = check_run(job, false, &a, &list, e);
    if (s == TW_OK) check_print(&list, to, json);
    if (s == TW_OK && !list.passed)
        s = fail(e, list.unreachable ? TW_ECONN : TW_ECHECK, "precheck failed");
    arena_free(&a);
    return s;
}

tw_status tw_task_run(const tw_job *job, enum tw_direction dir, struct tw_error *e)
{
    struct sup s = {.job = job, .lock_fd = -1};
    struct task t;
    error_clear(e);
    TRY(sup_lock(job, true, &s.lock_fd, e));
    status st = sup_instance(job, s.instance, sizeof s.instance, e);
    if (st == TW_OK) st = sup_page(&s, e);
    if (st == TW_OK) {
        task_open(&t, job, dir, s.page, s.instance);
        st = task_run(&t);
        *e = t.e;
    }
    close(s.lock_fd);
    return st;
}

void tw_stop(void)
{
    stop_flag = 1;
}

/* ==== 32. cli ==============================================================
 * Commands, options, main(). */
#ifndef TWSYNC_LIBRARY

struct cli {
    const char *command, *job_path, *table;
    bool json, connect, apply, quiet;
    const char *log, *to, *limit, *transaction;
    char **words;  /* what follows the job, from argv; or NULL */
    int nwords;
    struct conflicts_query conflicts;
    struct job *job;
    struct tw_error e;
};

static int cli_give_up(struct cli *c, status s)
{
    if (s != TW_OK && s != TW_ESTOP) {
        log_failure(&c->e, NULL);
    }
    return sup_exit_code(s);
}

static int cli_run(struct cli *c)
{
    return cli_give_up(c, sup_run(c->job, &c->e));
}

static int cli_check(struct cli *c)
{
    struct arena a = {0};
    struct check_list list;
    status s = check_run(c->job, c->connect, &a, &list, &c->e);
    int code = cli_give_up(c, s);
    if (s == TW_OK) {
        check_print(&list, stdout, c->json);
        if (!list.passed) code = EXIT_CHECK;
    }
    arena_free(&a);
    return code;
}

static int cli_show(struct cli *c)
{
    job_print(c->job, stdout);
    return 0;
}

static int cli_status(struct cli *c)
{
    return cli_give_up(c, status_run(c->job, c->json, stdout, &c->e));
}

static int cli_sequences(struct cli *c)
{
    int node = c->to && str_is(c->to, "a") ? 0 : 1;
    return cli_give_up(c, sequences_run(c->job, node, c->apply, stdout, &c->e));
}

static int cli_schema(struct cli *c)
{
    bool differ = false;
    status s = schema_run(c->job, c->apply, stdout, &differ, &c->e);
    if (s != TW_OK) return cli_give_up(c, s);
    return differ ? EXIT_DIFFER : 0;
}

static int PRINTF(1, 2) cli_wrong(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    fputs("twsync: ", stderr);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fputs("\nTry \"twsync --help\".\n", stderr);
    return EXIT_JOB;
}

/* What the options of `conflicts` say; 0 or the exit code. */
static int cli_conflicts_options(struct cli *c)
{
    struct conflicts_query *q = &c->conflicts;
    bool known = !q->kind;
    for (int k = 0; k <= CONF_refused && !known; k++) known = str_is(q->kind, conflict_names[k]);
    if (!known) return cli_wrong("there is no conflict kind \"%s\"", q->kind);
    if (q->id && (!strchr("ab", q->id[0]) || q->id[1] != '/' || !q->id[2] ||
                  q->id[2 + strspn(q->id + 2, "0123456789")] || strlen(q->id) > 20))
        return cli_wrong("option --resolve takes an id as the list shows it, like b/12");
    if (q->id && !q->take) return cli_wrong("--resolve %s needs --take a or --take b", q->id);
    if (q->take && !q->id && !q->table && !q->open)
        return cli_wrong("--take needs --resolve ID, --table NAME or --open");
    q->limit = 50;
    if (c->limit && (strlen(c->limit) > 9 || c->limit[strspn(c->limit, "0123456789")] ||
                     (q->limit = atoi(c->limit)) < 1))
        return cli_wrong("option --limit takes a number from 1 to 999999999");
    q->json = c->json;
    return 0;
}

static int cli_conflicts(struct cli *c)
{
    int rc = cli_conflicts_options(c);
    return rc ? rc : cli_give_up(c, conflicts_run(c->job, &c->conflicts, stdout, &c->e));
}

static int cli_release(struct cli *c)
{
    int left = 0;
    status s = release_run(c->job, stdout, &left, &c->e);
    if (s != TW_OK) return cli_give_up(c, s);
    return left ? EXIT_LEFTOVERS : 0;
}

static int cli_resync(struct cli *c)
{
    return cli_give_up(c, resync_run(c->job, c->table, false, stdout, &c->e));
}

static int cli_skip(struct cli *c)
{
    const char *task = c->conflicts.task;
    enum tw_direction dir = task && str_is(task, "reverse") ? TW_REVERSE : TW_FORWARD;
    return cli_give_up(c, c->transaction
                              ? skip_transaction(c->job, dir, c->transaction, stdout, &c->e)
                              : resync_run(c->job, c->table, true, stdout, &c->e));
}

static int cli_reload(struct cli *c)
{
    return cli_give_up(c, reload_run(c->job, stdout, &c->e));
}

static int cli_grants(struct cli *c)
{
    return cli_give_up(c, grants_run(c->job, stdout, &c->e));
}

static int cli_pause(struct cli *c)
{
    return cli_give_up(c, pause_run(c->job, c->conflicts.task, true, stdout, &c->e));
}

static int cli_resume(struct cli *c)
{
    return cli_give_up(c, pause_run(c->job, c->conflicts.task, false, stdout, &c->e));
}

static int cli_throttle(struct cli *c)
{
    return cli_give_up(c, throttle_run(c->job, c->words, c->nwords, stdout, &c->e));
}

static const struct command {
    const char *name;
    int (*run)(struct cli *);
    const char *options, *what;
} commands[] = {
    {"run", cli_run, "", "bring both databases in step and keep them so; run again to go on"},
    {"check", cli_check, "[--json] [--connect]",
     "precheck both servers; nothing is changed (--connect: the connections only)"},
    {"grants", cli_grants, "",
     "print the SQL that gives the job's roles what they lack on either side"},
    {"show", cli_show, "", "print the job in effect, defaults filled in, secrets masked"},
    {"status", cli_status, "[--json]", "what the tasks of a job are doing"},
    {"pause", cli_pause, "[--task T]",
     "let the tasks of a job rest, or one (forward, reverse), until resume"},
    {"resume", cli_resume, "[--task T]", "let them go on where they were, also after they failed"},
    {"sequences", cli_sequences, "[--to a|b] [--apply]",
     "print, or set, the next values of sequences for the other side"},
    {"schema", cli_schema, "[--apply]",
     "what B's schema lacks to be as A's is, as SQL; --apply runs it on B"},
    {"resync", cli_resync, "TABLE",
     "copy one table of a running job again: a parked one, or any"},
    {"skip", cli_skip, "TABLE",
     "leave one table of a job out, until it is copied again by resync; or (--transaction\n"
     "                                             LSN --task forward|reverse) a transaction that a"
     " task cannot get past"},
    {"reload", cli_reload, "", "have a running job go on by what its file says now"},
    {"throttle", cli_throttle, "[NAME=VALUE...]",
     "show the limits of a running job, or change them at once: full.rows=50000"},
    {"conflicts", cli_conflicts, "[--take a|b]",
     "list recorded conflicts (--task forward|reverse, --kind K, --table T, --open, --limit N,\n"
     "                                             --json), or have one decided again "
     "(--resolve ID --take a|b)"},
    {"release", cli_release, "", "remove everything the job made on both servers"},
};

static const struct command *cli_find(const char *name)
{
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (str_is(commands[i].name, name)) return &commands[i];
    return NULL;
}

static void cli_usage(FILE *to)
{
    fputs("twsync keeps two PostgreSQL databases in step, in both directions.\n\nUsage:\n", to);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        fprintf(to, "  twsync %-9s JOB %-21s %s\n", commands[i].name, commands[i].options,
                commands[i].what);
    fputs("  twsync --version | --help | help COMMAND\n"
          "  twsync help job | states | man | bash     keys of a job file, states of a task,\n"
          "                                            a manual page, completion for bash\n\n"
          "Options of every command:\n"
          "  --log text|json   form of log lines (default: the job's, text)\n"
          "  --quiet           warnings and errors only\n\n"
          "JOB is a job file; jobs/ has commented examples.\n\n"
          "Exit codes: 0 done, 1 a task failed, 2 job file or usage wrong, 3 precheck failed,\n"
          "4 another twsync works on this job, 5 could not connect, 6 release incomplete (the SQL\n"
          "to run is printed), 7 the schemas differ, 70 internal error, 71 out of memory.\n", to);
}

/* The states of a task, as a graph for Graphviz. */
static void cli_help_states(void)
{
    puts("digraph \"states of a task\" {");
    for (size_t i = 0; i < sizeof task_moves / sizeof *task_moves; i++)
        printf("  %s -> %s [label=\"%s\"];\n", task_state_name(task_moves[i].from),
               task_state_name(task_moves[i].to), task_moves[i].why);
    puts("}");
}

static int cli_help(const struct command *cmd)
{
    printf("twsync %s JOB %s\n  %s\n", cmd->name, cmd->options, cmd->what);
    return 0;
}

/* Options of commands; those of every command have none named. */
static const struct cli_opt {
    const char *name;
    size_t flag, value;      /* where it goes in struct cli; the other is 0 */
    const char *allowed[3];  /* what a value may be; none: anything */
    const char *commands;
} cli_opts[] = {
#define FLAG(f) offsetof(struct cli, f), 0
#define VALUE(f) 0, offsetof(struct cli, f)
    {"--json", FLAG(json), {NULL}, "check status conflicts"},
    {"--connect", FLAG(connect), {NULL}, "check"},
    {"--apply", FLAG(apply), {NULL}, "sequences schema"},
    {"--quiet", FLAG(quiet), {NULL}, NULL},
    {"--log", VALUE(log), {"text", "json", NULL}, NULL},
    {"--to", VALUE(to), {"a", "b", NULL}, "sequences"},
    {"--task", VALUE(conflicts.task), {"forward", "reverse", NULL}, "conflicts skip pause resume"},
    {"--transaction", VALUE(transaction), {NULL}, "skip"},
    {"--kind", VALUE(conflicts.kind), {NULL}, "conflicts"},
    {"--table", VALUE(conflicts.table), {NULL}, "conflicts"},
    {"--open", FLAG(conflicts.open), {NULL}, "conflicts"},
    {"--limit", VALUE(limit), {NULL}, "conflicts"},
    {"--resolve", VALUE(conflicts.id), {NULL}, "conflicts"},
    {"--take", VALUE(conflicts.take), {"a", "b", NULL}, "conflicts"},
#undef FLAG
#undef VALUE
};
enum { CLI_NOPTS = sizeof cli_opts / sizeof *cli_opts };

/* Is a command's name among these words? */
static bool cli_belongs(const struct cli_opt *o, const char *command)
{
    size_t n = strlen(command);
    for (const char *p = o->commands; p && (p = strstr(p, command)); p += n)
        if ((p == o->commands || p[-1] == ' ') && (!p[n] || p[n] == ' ')) return true;
    return !o->commands;
}

/* A flag, or an option with a value from the next argument.  0: known and taken. */
static int cli_option(struct cli *c, int argc, char **argv, int *i)
{
    const char *arg = argv[*i];
    int k = 0;
    while (k < CLI_NOPTS && !str_is(arg, cli_opts[k].name)) k++;
    if (k == CLI_NOPTS) return cli_wrong("unknown option \"%s\"", arg);
    const struct cli_opt *o = &cli_opts[k];
    if (!cli_belongs(o, c->command))
        return cli_wrong("option %s does not belong to \"%s\"", arg, c->command);
    if (o->flag) {
        *(bool *) ((char *) c + o->flag) = true;
        return 0;
    }
    const char *v = ++*i < argc ? argv[*i] : "";
    if (!o->allowed[0] && !*v) return cli_wrong("option %s takes a value", arg);
    if (o->allowed[0] && !str_is(v, o->allowed[0]) && !str_is(v, o->allowed[1]))
        return cli_wrong("option %s takes %s or %s", arg, o->allowed[0], o->allowed[1]);
    *(const char **) ((char *) c + o->value) = v;
    return 0;
}

/* ---- help that other programs read ---- */

/* `twsync help bash`: completion of commands, options, their values, and job files. */
static void cli_help_bash(void)
{
    puts("_twsync() {\n"
         "    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} words=\n"
         "    if ((COMP_CWORD == 1)); then\n"
         "        words=\"help --help --version");
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        printf("               %s\n", commands[i].name);
    puts("               \"");
    puts("    else\n        case $before in");
    for (int i = 0; i < CLI_NOPTS; i++)
        if (cli_opts[i].allowed[0])
            printf("        %s) words=\"%s %s\" ;;\n", cli_opts[i].name, cli_opts[i].allowed[0],
                   cli_opts[i].allowed[1]);
    puts("        *) case ${COMP_WORDS[1]} in");
    for (size_t k = 0; k < sizeof commands / sizeof *commands; k++) {
        printf("            %s) words=\"", commands[k].name);
        for (int i = 0; i < CLI_NOPTS; i++)
            if (cli_belongs(&cli_opts[i], commands[k].name)) printf(" %s", cli_opts[i].name);
        puts("\" ;;");
    }
    puts("            help) words=\"job states man bash\" ;;\n"
         "            esac\n"
         "            [[ $word == -* || ${COMP_WORDS[1]} == help ]] || { compopt -o filenames;\n"
         "                mapfile -t COMPREPLY < <(compgen -f -X '!*.ini' -- \"$word\";\n"
         "                                         compgen -d -- \"$word\"); return; } ;;\n"
         "        esac\n"
         "    fi\n"
         "    mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$word\")\n"
         "}\n"
         "complete -F _twsync twsync");
}

/* Text as it is, in a page for man. */
static void cli_roff(const char *text)
{
    for (const char *p = text; *p; p++) {
        if ((p == text || p[-1] == '\n') && (*p == '.' || *p == '\'')) fputs("\\&", stdout);
        if (*p == '\\') fputs("\\e", stdout);
        else if (*p == '-') fputs("\\-", stdout);
        else putchar(*p);
    }
}

/* `twsync help man`: the manual page, from what the other pages of help are made of. */
static void cli_help_man(void)
{
    static void (*const parts[])(FILE *) = {cli_usage, job_help};
    static const char *const names[] = {"SYNOPSIS AND COMMANDS", "THE JOB FILE"};
    printf(".TH TWSYNC 1\n.SH NAME\ntwsync \\- keeps two PostgreSQL databases in step, in both"
           " directions\n");
    for (int i = 0; i < 2; i++) {
        char *text = NULL;
        size_t n = 0;
        FILE *f = open_memstream(&text, &n);
        if (!f) return;
        parts[i](f);
        fclose(f);
        printf(".SH %s\n.nf\n", names[i]);
        cli_roff(text);
        puts(".fi");
        free(text);
    }
    puts(".SH SEE ALSO\nREADME.md, jobs/");
}

/* A page of help that is not about a command; false: there is none of this name. */
static bool cli_help_page(const char *name)
{
    if (str_is(name, "job")) job_help(stdout);
    else if (str_is(name, "states")) cli_help_states();
    else if (str_is(name, "man")) cli_help_man();
    else if (str_is(name, "bash")) cli_help_bash();
    else return false;
    return true;
}

static bool cli_wants_table(const struct cli *c)
{
    return str_is(c->command, "resync") || (str_is(c->command, "skip") && !c->transaction);
}

static int cli_parse(struct cli *c, int argc, char **argv)
{
    for (int i = 2; i < argc; i++) {
        if (argv[i][0] == '-' && argv[i][1]) {
            int rc = cli_option(c, argc, argv, &i);
            if (rc) return rc;
        } else if (strstr(argv[i], "://")) {
            return cli_wrong("connections belong into the job file: a command line can be read by "
                             "everyone on this host");
        } else if (c->job_path && !c->table && cli_wants_table(c)) {
            c->table = argv[i];
        } else if (c->job_path && str_is(c->command, "throttle")) {
            if (c->words && c->words + c->nwords != &argv[i])
                return cli_wrong("limits are given in one row, after the job");
            if (!c->words) c->words = &argv[i];
            c->nwords++;
        } else if (c->job_path) {
            return cli_wrong("more than one job file");
        } else {
            c->job_path = argv[i];
        }
    }
    if (c->job_path && !c->table && cli_wants_table(c))
        return cli_wrong("which table? \"twsync %s JOB TABLE\"", c->command);
    return c->job_path ? 0 : cli_wrong("which job? \"twsync %s JOB\"", c->command);
}

/* Secrets are in this process: no core dumps, no attaching, private files. */
static void cli_harden(void)
{
    struct rlimit none = {0, 0};
#ifndef TWSYNC_TEST
    prctl(PR_SET_DUMPABLE, 0);
#endif
    setrlimit(RLIMIT_CORE, &none);
    umask(077);
    signal(SIGPIPE, SIG_IGN);
}

int main(int argc, char **argv)
{
    struct cli c = {.command = argc > 1 ? argv[1] : ""};
    if (argc < 2) {
        cli_usage(stderr);
        return EXIT_JOB;
    }
    bool help = str_is(c.command, "help");
    if (help && argc == 3 && cli_help_page(argv[2])) return 0;
    if (help && argc == 3 && cli_find(argv[2])) return cli_help(cli_find(argv[2]));
    if (help || str_is(c.command, "--help") || str_is(c.command, "-h")) {
        cli_usage(stdout);
        return 0;
    }
    if (str_is(c.command, "--version") || str_is(c.command, "-V")) {
        tw_versions_print(stdout);
        return 0;
    }
    const struct command *cmd = cli_find(c.command);
    if (!cmd) return cli_wrong("unknown command \"%s\"", c.command);
    for (int i = 2; i < argc; i++)
        if (str_is(argv[i], "--help") || str_is(argv[i], "-h")) return cli_help(cmd);
    cli_harden();
    int rc = cli_parse(&c, argc, argv);
    if (rc) return rc;
    log_sink.quiet = c.quiet;
    log_sink.debug = getenv("TWSYNC_DEBUG") != NULL;
    if (job_load(c.job_path, &c.job, &c.e) != TW_OK) return EXIT_JOB;
    log_sink.json = c.log ? str_is(c.log, "json") : c.job->log_json;
    log_sink.job = c.job->name;
    rc = cmd->run(&c);
    job_free(c.job);
    return rc;
}

#endif
