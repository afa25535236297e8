/* job.c: the job file (chapter 9).  No server. */
#define TWSYNC_LIBRARY
#include "../../twsync.c"

#include "../t.h"

#include <glob.h>

static char dir[64], path[128], heard[128 * 1024];
static struct tw_error err;

static const char good[] = "[job]\n"
                           "name = shop\n"
                           "[a]\n"
                           "host = /run/a\n"
                           "dbname = one\n"
                           "[b]\n"
                           "host = /run/b\n"
                           "dbname = two\n"
                           "[objects]\n"
                           "schemas = shop\n";

static void put(const char *file, const void *data, size_t n, mode_t mode)
{
    unlink(file);
    int fd = open(file, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(fd >= 0 && write(fd, data, n) == (ssize_t) n && fchmod(fd, mode) == 0);
    close(fd);
}

/* Load what is at `path`; what went to standard error is in `heard`. */
static struct job *load(void)
{
    struct job *job = NULL;
    char file[128];
    snprintf(file, sizeof file, "%s/heard", dir);
    int old = dup(STDERR_FILENO), fd = open(file, O_CREAT | O_RDWR | O_TRUNC | O_CLOEXEC, 0600);
    dup2(fd, STDERR_FILENO);
    error_clear(&err);
    status s = job_load(path, &job, &err);
    dup2(old, STDERR_FILENO);
    close(old);
    ssize_t n = pread(fd, heard, sizeof heard - 1, 0);
    close(fd);
    heard[n > 0 ? n : 0] = '\0';
    CHECK((s == TW_OK) == (job != NULL) && s == err.code);
    CHECK(s == TW_OK || (s == TW_EJOB && !strncmp(heard, err.msg, strlen(err.msg))));
    return job;
}

static struct job *load_text(const char *text)
{
    put(path, text, strlen(text), 0600);
    return load();
}

/* This text must give exactly these mistakes, one a line, path removed. */
static void whole(const char *text, const char *want)
{
    struct buf got = {0};
    struct job *job = load_text(text);
    CHECK(job == NULL);
    job_free(job);
    for (char *l = strtok(heard, "\n"); l; l = strtok(NULL, "\n")) {
        CHECK(!strncmp(l, path, strlen(path)));
        buf_fmt(&got, "%s\n", l + strlen(path) + 1);
    }
    CHECK_STR(buf_cstr(&got), want);
    buf_free(&got);
}

/* The good job with more text. */
static void mistakes(const char *more, const char *want)
{
    struct buf text = {0};
    buf_fmt(&text, "%s%s", good, more);
    whole(text.data, want);
    buf_free(&text);
}

static struct job *fine(const char *more)
{
    struct buf text = {0};
    buf_fmt(&text, "%s%s", good, more);
    struct job *job = load_text(text.data);
    CHECK(job != NULL);
    CHECK_STR(heard, "");
    buf_free(&text);
    return job;
}

static char *printed(const struct job *job)
{
    char *text = NULL;
    size_t n;
    FILE *to = open_memstream(&text, &n);
    job_print(job, to);
    fclose(to);
    return text;
}

/* The output is a valid job, and its output is itself. */
static void check_round_trip(const struct job *job)
{
    char *one = printed(job);
    struct job *again = load_text(one);
    CHECK(again != NULL);
    CHECK_STR(heard, "");
    if (again) {
        char *two = printed(again);
        CHECK_STR(two, one);
        free(two);
    }
    job_free(again);
    free(one);
}

static void test_defaults(void)
{
    struct job *job = fine("");
    if (!job) return;
    CHECK_STR(job->name, "shop");
    CHECK(job->tag == TAG_NORMAL && !job->log_json && job->existing == EXISTING_ERROR);
    for (int i = 0; i < 2; i++) {
        CHECK(job->task[i].enabled && job->task[i].on_conflict == POLICY_FAIL);
        CHECK(job->task[i].merge == MERGE_COLUMNS && job->task[i].identity == IDENTITY_FULL);
    }
    CHECK(job->task[TW_FORWARD].schema && job->task[TW_FORWARD].copy);
    CHECK(job->task[TW_FORWARD].workers == 4 && !job->task[TW_REVERSE].copy);
    CHECK(job->retention_us == 15 * 60 * USEC_SEC && job->retention_bytes == 1 << 30);
    CHECK(job->heartbeat_us == 10 * USEC_SEC);
    CHECK(job->connection_retry_min == 720 && job->other_retry_min == 10);
    CHECK(job->node[0].letter == 'a' && job->node[1].letter == 'b');
    CHECK(job->node[0].nsettings == 2);
    CHECK(job->schemas.n == 1 && job->tables.n == 0 && job->exclude.n == 0 && job->accept.n == 0);
    check_round_trip(job);
    job_free(job);
}

static void test_values(void)
{
    struct job *job = fine("existing = keep ; why\n"
                           "[forward]\nenabled: ON\nschema=0\nworkers=64\non_conflict = ignore\n"
                           "merge = \"rows\"\nidentity = key\n"
                           "[reverse]\nenabled = false\non_conflict = overwrite\n"
                           "[slots]\nretention = 0\nretention_size = 3 mb\nheartbeat = 1500ms\n"
                           "[retry]\nconnection = 1h\nother = 120s\n");
    if (!job) return;
    CHECK(job->existing == EXISTING_KEEP && job->task[TW_FORWARD].enabled);
    CHECK(!job->task[TW_FORWARD].schema && job->task[TW_FORWARD].workers == 64);
    CHECK(job->task[TW_FORWARD].on_conflict == POLICY_IGNORE);
    CHECK(job->task[TW_FORWARD].merge == MERGE_ROWS);
    CHECK(job->task[TW_FORWARD].identity == IDENTITY_KEY);
    CHECK(!job->task[TW_REVERSE].enabled && job->task[TW_REVERSE].on_conflict == POLICY_OVERWRITE);
    CHECK(job->retention_us == 0 && job->retention_bytes == 3 * 1024 * 1024);
    CHECK(job->heartbeat_us == 1500 * 1000);
    CHECK(job->connection_retry_min == 60 && job->other_retry_min == 2);
    check_round_trip(job);
    job_free(job);
}

static void test_lists(void)
{
    struct job *job = fine("tables = sales.Orders, \"Odd \"\"one\"\"\".\".x, y\", ; first\n"
                           "\n"
                           "  ; a comment, not the end\n"
                           "\tsales.items\n"
                           "  \"a=b\".c,d.\"[x]\"\n"
                           "exclude =\n"
                           "    shop.audit,\n"
                           "    shop.\"; no comment\"\n");
    if (!job) return;
    CHECK(job->tables.n == 5 && job->exclude.n == 2);
    CHECK_STR(job->tables.items[0].schema, "sales");
    CHECK_STR(job->tables.items[0].table, "Orders");
    CHECK_STR(job->tables.items[1].schema, "Odd \"one\"");
    CHECK_STR(job->tables.items[1].table, ".x, y");
    CHECK_STR(job->tables.items[2].table, "items");
    CHECK_STR(job->tables.items[3].schema, "a=b");
    CHECK_STR(job->tables.items[4].table, "[x]");
    CHECK_STR(job->exclude.items[1].table, "; no comment");
    check_round_trip(job);
    job_free(job);
}

/* Longer than a line of inih (200 bytes). */
static void test_long(void)
{
    struct buf b = {0};
    buf_str(&b, "exclude = shop.t0");
    for (int i = 1; i < 500; i++) buf_fmt(&b, ", shop.\"table %d\"", i);
    struct job *job = fine(b.data);
    CHECK(job && job->exclude.n == 500);
    if (job) {
        CHECK_STR(job->exclude.items[499].table, "table 499");
        check_round_trip(job);
    }
    job_free(job);
    buf_free(&b);
}

static void test_password_exact(void)
{
    static const struct {
        const char *written, *meant;
    } cases[] = {
        {"p@:/?#%'\\w", "p@:/?#%'\\w"},
        {"a;b#c", "a;b#c"},
        {"it's \"so\"", "it's \"so\""},
        {";x ; comment", NULL},
        {"\"p@:/?#%'\\\"\" ; \"  ; comment", "p@:/?#%'\\\" ; "},
        {"\" lead and trail \"", " lead and trail "},
        {"p\303\244ss=w\305\237rd", "p\303\244ss=w\305\237rd"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct buf b = {0};
        buf_fmt(&b, "[job]\nname = x\n[a]\ndbname = one\npassword = %s\n[b]\ndbname = two\n"
                "[objects]\nschemas = s\n", cases[i].written);
        struct job *job = load_text(b.data);
        CHECK((job != NULL) == (cases[i].meant != NULL));
        if (job) {
            CHECK_STR(job_node_setting(&job->node[0], "password"), cases[i].meant);
            char *text = printed(job);
            CHECK(!strstr(text, cases[i].meant) && strstr(text, "; password = ********"));
            free(text);
            check_round_trip(job);
        }
        job_free(job);
        buf_free(&b);
    }
}

static void test_strings_round_trip(void)
{
    static const char *const odd[] = {"plain", "two words", " blank", "a;b", "a ; b", "#x", "\"",
                                      "a\"b", "x\ty", "[b]", "k = v", "it's", "\303\244"};
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
        struct buf b = {0};
        buf_str(&b, "[job]\nname = x\n[a]\ndbname = one\nuser = ");
        sql_ident(&b, odd[i]);
        buf_str(&b, "\n[b]\ndbname = two\n[objects]\nschemas = ");
        sql_ident(&b, odd[i]);
        buf_char(&b, '\n');
        struct job *job = load_text(b.data);
        CHECK(job != NULL);
        if (job) {
            CHECK_STR(job_node_setting(&job->node[0], "user"), odd[i]);
            CHECK_STR(job->schemas.items[0].schema, odd[i]);
            check_round_trip(job);
        }
        job_free(job);
        buf_free(&b);
    }
}

static void test_password_files(void)
{
    char file[128], more[512];
    snprintf(file, sizeof file, "%s/pw", dir);
    snprintf(more, sizeof more, "[job]\nname = x\n[a]\ndbname = one\npassword_file = %s\n"
             "[b]\ndbname = two\n[objects]\nschemas = s\n", file);
    put(file, " se cret;\r\n", 11, 0600);
    struct job *job = load_text(more);
    CHECK(job != NULL);
    if (job) {
        CHECK_STR(job_node_setting(&job->node[0], "password"), " se cret;");
        check_round_trip(job);
    }
    job_free(job);
    static const struct {
        const char *text, *want;
        mode_t mode;
    } bad[] = {
        {"", "is empty", 0600},
        {"\n", "is empty", 0600},
        {"one\ntwo\n", "must hold one line", 0600},
        {"secret\n", "chmod 600 ", 0640},
        {"secret\n", "chmod 600 ", 0604},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        put(file, bad[i].text, strlen(bad[i].text), bad[i].mode);
        CHECK(load_text(more) == NULL);
        CHECK(strstr(heard, ":5: ") && strstr(heard, bad[i].want) && !strstr(heard, "secret\""));
    }
    unlink(file);
    CHECK(load_text(more) == NULL && strstr(heard, "No such file"));
}

static void test_private(void)
{
    const char text[] = "[job]\nname = x\n[a]\ndbname = one\npassword = canary\n"
                        "sslpassword = canary\n[b]\ndbname = two\n[objects]\nschemas = s\n";
    put(path, text, strlen(text), 0644);
    CHECK(load() == NULL);
    CHECK(strstr(heard, ":5: password in") && strstr(heard, ":6: sslpassword in"));
    CHECK(strstr(heard, "chmod 600 ") && !strstr(heard, "canary") && !strstr(err.msg, "canary"));
    put(path, good, strlen(good), 0644);
    struct job *job = load();
    CHECK(job != NULL); /* without a password anyone may read it */
    job_free(job);
}

/* Whatever is wrong around it, a secret is not shown. */
static void test_no_secret_shown(void)
{
    static const char *const bad[] = {
        "password = \"canary\n",          "password = \"canary\" canary\n",
        "password canary\n",              "password = x\npassword = canary\n",
        "password = x\n  canary\n",       "passwort = canary\n",
        "dbname = postgres://u:canary@h/d\n", "host = u:canary@h\n",
        "Canary7x==\n",                   "password_file = /nowhere\npassword = canary\n",
        "dbname = password=canary host=x\n",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct buf b = {0};
        buf_fmt(&b, "[a]\n%s[b]\ndbname = two\n[objects]\nschemas = s\n", bad[i]);
        CHECK(load_text(b.data) == NULL);
        CHECK(heard[0] && !strcasestr(heard, "canary") && !strcasestr(err.detail, "canary"));
        buf_free(&b);
    }
}

static void test_sslmode_default(void)
{
    static const struct {
        const char *host, *sslmode;
    } cases[] = {
        {"host = db.example.com", "verify-full"}, {"host = 10.0.0.1", "verify-full"},
        {"host = localhost", NULL},               {"host = 127.0.0.1", NULL},
        {"host = ::1", NULL},                     {"host = /run/postgresql", NULL},
        {"user = u", NULL},                       {"host = localhost,db2", "verify-full"},
        {"host = 127.evil.com", "verify-full"},   {"host = localhost, /tmp", "verify-full"},
        {"host = x\nhostaddr = 127.0.0.1", NULL}, {"host = x\nservice = s", NULL},
        {"host = x\nsslmode = disable", "disable"}, {"hostaddr = 10.0.0.1", "verify-full"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct buf b = {0};
        buf_fmt(&b, "[job]\nname = x\n[a]\ndbname = one\n%s\n[b]\ndbname = two\n"
                "[objects]\nschemas = s\n", cases[i].host);
        struct job *job = load_text(b.data);
        CHECK(job != NULL);
        if (job) {
            const char *mode = job_node_setting(&job->node[0], "sslmode"), *want = cases[i].sslmode;
            CHECK_STR(mode ? mode : "none", want ? want : "none");
            const char *root = job_node_setting(&job->node[0], "sslrootcert");
            CHECK(!root == !(want && str_is(want, "verify-full")));
            check_round_trip(job);
        }
        job_free(job);
        buf_free(&b);
    }
}

static void test_mistakes(void)
{
    /* The good job has 10 lines and ends within [objects]. */
    mistakes("hots = 1\n", "11: unknown key \"hots\" in [objects]\n");
    mistakes("table = a.b\n", "11: unknown key \"table\" in [objects]; did you mean \"tables\"?\n");
    mistakes("Exclude = a.b\n",
             "11: unknown key \"Exclude\" in [objects]; did you mean \"exclude\"?\n");
    mistakes("workers = 1\n",
             "11: unknown key \"workers\" in [objects]; it belongs in [forward]\n");
    mistakes("[forwrd]\nx = 1\n", "11: unknown section [forwrd]; did you mean \"forward\"?\n");
    mistakes("[forward\n", "11: section must be written [name], alone in its line\n");
    mistakes("[a]\n", "11: section [a] is given twice, first in line 3\n");
    mistakes("schemas = x\n", "11: \"schemas\" is given twice in [objects], first in line 10\n");
    mistakes("tables\n", "11: = is missing after \"tables\"\n");
    mistakes("= 1\n", "11: key expected before =\n");
    mistakes("a\001b = 1\n", "11: not text in UTF-8\n");
    mistakes("x = \377\n", "11: not text in UTF-8\n");
    mistakes("existing = kep\n",
             "11: existing must be one of error, keep, not \"kep\"; did you mean \"keep\"?\n");
    mistakes("existing =\n", "11: existing has no value\n");
    mistakes("tables =\n", "11: tables has no value\n");
    mistakes("tables = orders\n", "11: tables: \"orders\" lacks its schema; write schema.table\n");
    mistakes("tables = *\n", "11: tables: \"*\" lacks its schema; write schema.table\n");
    mistakes("tables = x.a x.b, y\n",
             "11: tables: comma expected before \"x.b, y\" (quote a name with blanks)\n"
             "11: tables: \"y\" lacks its schema; write schema.table\n");
    mistakes("tables = x.a, x.a\n", "11: tables: \"x\".\"a\" is listed twice\n");
    mistakes("tables = shop.a\nexclude = shop.a\n",
             "12: exclude: \"shop\".\"a\" is also listed under tables\n");
    mistakes("exclude = x.a\n", "11: exclude: \"x\".\"a\" is in none of the schemas\n");
    mistakes("exclude = pg_catalog.x\n",
             "11: exclude: schema \"pg_catalog\" cannot be synchronized\n");
    mistakes("[forward]\nworkers = 65\n", "12: workers must be between 1 and 64, not 65\n");
    mistakes("[forward]\nworkers = 4x\n", "12: workers must be a whole number, not \"4x\"\n");
    mistakes("[forward]\nworkers = 99999999999999999999\n",
             "12: workers must be a whole number, not \"99999999999999999999\"\n");
    mistakes("[forward]\nenabled = ja\n", "12: enabled must be yes or no, not \"ja\"\n");
    mistakes("[forward]\nenabled = no\n",
             "12: reverse is enabled and forward is not; reverse starts from a running forward\n");
    mistakes("[reverse]\ncopy = no\n",
             "12: copy cannot be set in [reverse]: only forward copies\n");
    mistakes("[slots]\nheartbeat = 10\n",
             "12: heartbeat must be a number with a unit (us, ms, s, min, h or d), not \"10\"\n");
    mistakes("[slots]\nheartbeat = 2h\n", "12: heartbeat must be between 100ms and 1h, not 2h\n");
    mistakes("[slots]\nretention = 999999999999999999d\n",
             "12: retention must be a number with a unit (us, ms, s, min, h or d), "
             "not \"999999999999999999d\"\n");
    mistakes("[retry]\nconnection = 9min\n",
             "12: connection must be between 10min and 1d, not 9min\n");
    mistakes("[retry]\nother = 90s\n", "12: other must be whole minutes, not 90s\n");
    mistakes("[retry]\nconnection = 10min\n", "11: other (10min) must be less than connection "
             "(10min)\n");
    mistakes("[a]\nport = 70000\n",
             "11: section [a] is given twice, first in line 3\n"
             "12: port must be a number between 1 and 65535, not \"70000\"\n");
    mistakes("[b]\napplication_name = x\n  more\n",
             "11: section [b] is given twice, first in line 6\n"
             "12: application_name cannot be set in [b]: twsync sets it itself\n"
             "13: indented line goes on with application_name, which is not a list\n");
}

static void test_whole_file(void)
{
    whole("", "1: file is empty\n");
    whole(" \r\n\n", "1: file is empty\n");
    whole("key = 1\n", "1: key stands before the first [section]\n1: section [a] is missing\n"
          "1: section [b] is missing\n1: section [objects] is missing\n");
    whole("[job]\nname = x\n[a]\nuser = a\n[b]\nuser = b\n[objects]\n",
          "3: dbname is missing in [a]\n5: dbname is missing in [b]\n"
          "7: [objects] selects nothing: give schemas or tables\n");
    whole("[a]\ndbname = x\nuser = a\n[b]\nport = 5432\ndbname = x\n[objects]\ntables = a.b\n",
          "6: [b] is the same database as [a]\n");
    put(path, "[job]\n\0x", 8, 0600);
    CHECK(load() == NULL && strstr(heard, ":2: not a text file"));
    unlink(path);
    CHECK(load() == NULL && strstr(heard, "No such file or directory"));
    CHECK(mkdir(path, 0700) == 0 && load() == NULL && strstr(heard, "Is a directory"));
    rmdir(path);
    CHECK(mkfifo(path, 0600) == 0 && load() == NULL && strstr(heard, "not a regular file"));
    unlink(path);
    put(path, "", 0, 0600);
    CHECK(truncate(path, 1024 * 1024 + 1) == 0);
    CHECK(load() == NULL && strstr(heard, "larger than 1024 kB"));
}

static void test_forms(void)
{
    struct job *job = load_text("\357\273\277[ job ] ; c\r\n  name : x\r\n[a] # c\r\n"
                                "\tdbname=one\r\n  port = 1,,3\r\n[b]\r\ndbname = two\r\n"
                                "[objects]\r\nschemas=s ,t;u\r\n    , \r\n");
    CHECK(job == NULL); /* the last line: a comma without a name */
    job = load_text("\357\273\277[ job ] ; c\r\n  name : x\r\n[a] # c\r\n\tdbname=one\r\n"
                    "  port = 1,,3\r\n[b]\r\ndbname = two\r\n[objects]\r\nschemas=s ,t;u");
    CHECK(job != NULL);
    CHECK_STR(heard, "");
    if (!job) return;
    CHECK_STR(job->name, "x");
    CHECK_STR(job_node_setting(&job->node[0], "port"), "1,,3");
    CHECK(job->schemas.n == 2);
    CHECK_STR(job->schemas.items[1].schema, "t;u");
    check_round_trip(job);
    job_free(job);
}

static void test_name(void)
{
    char keep[128];
    str_copy(keep, sizeof keep, path);
    snprintf(path, sizeof path, "%s/My Shop-1.x.ini", dir);
    struct job *job = load_text(strstr(good, "[a]"));
    CHECK(job != NULL);
    if (job) {
        CHECK_STR(job->name, "my_shop_1_x");
        CHECK(job->state_dir && job->state_dir[0] == '/');
        check_round_trip(job);
    }
    job_free(job);
    snprintf(path, sizeof path, "%s/.ini", dir);
    CHECK(load_text(strstr(good, "[a]")) == NULL && strstr(heard, ":1: name is missing"));
    unlink(path);
    str_copy(path, sizeof path, keep);
}

static void test_state_dir(void)
{
    setenv("TWSYNC_STATE_DIR", "/tmp/states", 1);
    struct job *job = fine("");
    CHECK_STR(job ? job->state_dir : "", "/tmp/states/shop");
    job_free(job);
    setenv("TWSYNC_STATE_DIR", "here", 1);
    job = fine("");
    CHECK(job && job->state_dir[0] == '/' && strstr(job->state_dir, "/here/shop"));
    job_free(job);
    unsetenv("TWSYNC_STATE_DIR");
    job = fine("");
    CHECK(job && strstr(job->state_dir, geteuid() ? "/.local/state/twsync/shop"
                                                  : "/var/lib/twsync/shop"));
    job_free(job);
}

/* Small damage anywhere in a job file: it is read, or there are mistakes with their lines. */
static void test_mutations(void)
{
    static const char seed[] =
        "[job]\nname = shop\naccept = ONE, TWO\n[a]\nhost = db\nport = 5432\ndbname = one\n"
        "password = \"x\"\"; \" ; secret\n[b]\nhost = \"/run/b\"\ndbname: two\nsslmode = prefer\n"
        "[objects]\nschemas = shop, \"Odd, one\",\n   public\ntables = s.t, \"a\"\"b\".\"c.d\",\n"
        "  ; comment\n   sales.items\nexclude = shop.audit\n[forward]\nworkers = 8\n"
        "on_conflict = ignore\n[reverse]\nenabled = yes\n[slots]\nretention = 90s\n"
        "retention_size = 512 MB\n[retry]\nconnection = 2h\nother = 3min\n";
    static const char bytes[] = "\"\"\"[]=:;#,. \t\n\r\\x0*\303\200\377";
    int loaded = 0;
    srandom(1);
    for (int round = 0; round < 10000; round++) {
        struct buf b = {0};
        buf_bytes(&b, seed, sizeof seed - 1);
        for (long i = random() % 6; i >= 0; i--) {
            size_t at = (size_t) random() % b.len, n = 1 + (size_t) random() % 20;
            if (n > b.len - at) n = b.len - at;
            long kind = random() % 4;
            if (kind == 0) b.data[at] = bytes[(size_t) random() % (sizeof bytes - 1)];
            if (kind == 1 && b.len > n + 1) {
                memmove(b.data + at, b.data + at + n, b.len - at - n);
                b.len -= n;
            }
            if (kind == 2) {
                char part[32];
                memcpy(part, b.data + at, n);
                buf_bytes(&b, part, n);
            }
            if (kind == 3) {
                size_t to = (size_t) random() % (b.len - n + 1);
                memmove(b.data + to, b.data + at, n);
            }
        }
        put(path, b.data, b.len, 0600);
        struct job *job = load();
        loaded += job != NULL;
        CHECK(job || (!strncmp(heard, path, strlen(path)) &&
                      isdigit((unsigned char) heard[strlen(path) + 1])));
        if (job) check_round_trip(job);
        job_free(job);
        buf_free(&b);
    }
    CHECK(loaded > 100 && loaded < 9900);
}

/* Every example of jobs/ is a good job, though it may hold a password that only the tests' copy may
 * hold, since that one is private. */
static void test_examples(void)
{
    glob_t found;
    int n = glob("jobs/*.ini", 0, NULL, &found) ? 0 : (int) found.gl_pathc;
    CHECK(n > 0);
    for (int i = 0; i < n; i++) {
        struct buf b = {0};
        struct tw_error e = {0};
        CHECK(os_read_file(found.gl_pathv[i], &b, JOB_FILE_MAX, &e) == TW_OK);
        struct job *job = load_text(buf_cstr(&b));
        CHECK_STR(heard, "");
        CHECK(job != NULL);
        if (job) check_round_trip(job);
        job_free(job);
        buf_free(&b);
    }
    globfree(&found);
}

static void test_patterns(void)
{
    static const struct {
        const char *pattern, *text;
        bool meets;
    } cases[] = {
        {"*", "", true}, {"*", "x", true}, {"?", "", false}, {"?", "x", true}, {"?", "xy", false},
        {"?", "\303\251", true}, {"??", "\303\251", false}, {"a?c", "a\303\251c", true},
        {"", "", true}, {"", "x", false}, {"abc", "abc", true}, {"abc", "abcd", false},
        {"a*c", "abbc", true}, {"a*c", "abcb", false}, {"*b*", "abc", true}, {"*ab", "aab", true},
        {"a**b?", "axbybz", true}, {"*a*b", "ab_a_b_", false}, {"a.c", "abc", false},
        {"[a]", "a", false}, {"log_*", "log_1", true}, {"log_*", "log", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        CHECK(glob_matches(cases[i].pattern, cases[i].text) == cases[i].meets);
    struct job *job = fine("tables = a.b*, \"a\".\"b*\", *.x\nexclude = a.b1\n");
    if (!job) return;
    const struct qname *q = job->tables.items;
    CHECK(q[0].table_glob && !q[0].schema_glob && !q[1].table_glob && q[2].schema_glob);
    CHECK(qname_matches(&q[0], "a", "bc") && !qname_matches(&q[1], "a", "bc"));
    CHECK(qname_matches(&q[1], "a", "b*") && qname_matches(&q[2], "any", "x"));
    check_round_trip(job);
    job_free(job);
    mistakes("exclude = x?.a\ntables = *\n",
             "12: tables: \"*\" lacks its schema; write schema.table\n");
}

static const struct t_test tests[] = {
    {"defaults", test_defaults},
    {"values", test_values},
    {"lists", test_lists},
    {"long lists", test_long},
    {"passwords are read exactly", test_password_exact},
    {"strings round trip", test_strings_round_trip},
    {"password files", test_password_files},
    {"passwords only in private files", test_private},
    {"secrets are never shown", test_no_secret_shown},
    {"sslmode by host", test_sslmode_default},
    {"mistakes", test_mistakes},
    {"the file as a whole", test_whole_file},
    {"forms of lines", test_forms},
    {"examples", test_examples},
    {"patterns", test_patterns},
    {"name", test_name},
    {"state_dir", test_state_dir},
    {"10,000 mutations", test_mutations},
};

int main(int argc, char **argv)
{
    static const char *const variables[] = {"PGHOST", "PGHOSTADDR", "PGPORT", "PGSERVICE",
                                            "PGSSLMODE", "PGSSLROOTCERT", "TWSYNC_STATE_DIR"};
    for (size_t i = 0; i < sizeof variables / sizeof *variables; i++) unsetenv(variables[i]);
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%.40s/twsync-job-XXXXXX", tmp ? tmp : "/tmp");
    if (!mkdtemp(dir)) return 1;
    setenv("HOME", dir, 1);
    snprintf(path, sizeof path, "%s/test.ini", dir);
    int rc = t_run(tests, sizeof tests / sizeof *tests, argc, argv);
    static const char *const files[] = {"test.ini", "heard", "pw", "My Shop-1.x.ini"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, files[i]);
        unlink(path);
    }
    rmdir(dir);
    return rc;
}
