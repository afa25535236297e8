/* check.c: what the precheck concludes without a server, and what helps where others run it. */
#define TWSYNC_LIBRARY
#include "../../twsync.c"

#include "../t.h"

static void test_minor_versions(void)
{
    static const int fine[] = {130022, 140019, 150014, 150018, 160010, 170006, 180000, 110022};
    static const int old[] = {130021, 140000, 150013, 160009, 170005};
    for (size_t i = 0; i < sizeof fine / sizeof *fine; i++) CHECK(!check_fixed_in(fine[i]));
    for (size_t i = 0; i < sizeof old / sizeof *old; i++)
        CHECK(check_fixed_in(old[i]) > old[i] && check_fixed_in(old[i]) < old[i] + 100);
}

static void test_hosts(void)
{
    CHECK(provider_of_host("x.abc.eu-west-1.rds.amazonaws.com") == AWS_RDS);
    CHECK(provider_of_host("pgm-1.pg.rds.aliyuncs.com") == ALIBABA_RDS);
    CHECK(provider_of_host("pc-1.pg.polardb.rds.aliyuncs.com") == POLARDB);
    CHECK(provider_of_host("/run/postgresql") == SELF_MANAGED);
    CHECK(provider_of_host(NULL) == SELF_MANAGED);
}

/* Of types one by one: do values change on the way, without an error? */
static void test_types(void)
{
    static const struct {
        const char *from, *to;
        bool changes;
    } cases[] = {
        {"numeric(12,4)", "numeric(12,2)", true}, {"numeric(12,2)", "numeric(12,4)", false},
        {"numeric", "numeric(20,6)", true}, {"numeric(10,0)", "numeric(10)", false},
        {"numeric(12,2)", "numeric(12)", true}, {"numeric(12,2)", "numeric", false},
        {"integer", "bigint", false}, {"bigint", "integer", false}, {"numeric", "bigint", true},
        {"bigint", "numeric", false}, {"real", "double precision", false},
        {"double precision", "real", true}, {"text", "character varying(3)", false},
        {"character varying(3)", "character(3)", true}, {"text", "bytea", true},
        {"timestamp without time zone", "timestamp(0) without time zone", true},
        {"timestamp(6) without time zone", "timestamp without time zone", false},
        {"timestamp without time zone", "timestamp(6) without time zone", false},
        {"timestamp with time zone", "timestamp without time zone", true},
        {"time(2) with time zone", "time(1) with time zone", true},
        {"integer[]", "integer", true}, {"integer[]", "integer[]", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bool got = check_changes_values(cases[i].from, cases[i].to);
        if (got != cases[i].changes) CHECK_STR(cases[i].from, cases[i].to);
    }
}

static void test_numbers(void)
{
    struct numbers one = {.step = 1, .next = 8, .min = 1, .max = 1000}, two = one;
    CHECK(check_numbers_meet(&one, &two));
    two.min = 1001, two.max = 2000;
    CHECK(!check_numbers_meet(&one, &two));
    two = one, one.step = two.step = 2;
    CHECK(check_numbers_meet(&one, &two));
    two.next = 1009;
    CHECK(!check_numbers_meet(&one, &two) && !check_numbers_meet(&two, &one));
    one.step = -2;
    CHECK(check_numbers_meet(&one, &two));
    two.step = -2;
    CHECK(!check_numbers_meet(&one, &two));
}

/* Nobody's remedy is empty, and where others run the server it is nothing that only its owner can
 * do. */
static void test_advice(void)
{
    static const char *const not_theirs[] = {"ALTER SYSTEM", "pg_hba", " SUPERUSER",
                                             "restart the server"};
    struct arena a = {0};
    struct check c = {.arena = &a};
    for (int p = 0; p < NPROVIDERS; p++) {
        struct check_node n = {.provider = (enum provider) p, .role = "r", .dbname = "d"};
        for (int i = 0; i <= NADVICE; i++) {
            const char *text = i < NADVICE ? check_advice(&c, &n, (enum advice) i)
                                           : check_set(&c, &n, "wal_level", "logical", true);
            CHECK(text[0] && !strchr(text, '{'));
            for (size_t k = 0; k < sizeof not_theirs / sizeof *not_theirs; k++)
                if (p != SELF_MANAGED && strstr(text, not_theirs[k]))
                    CHECK_STR(text, provider_names[p]);
        }
    }
    struct check_node aws = {.provider = AWS_RDS}, own = {.provider = SELF_MANAGED};
    CHECK_STR(check_set(&c, &aws, "wal_level", "logical", true), "set rds.logical_replication = 1"
              " in the parameter group of the instance, or of the cluster, and reboot it");
    CHECK_STR(check_set(&c, &own, "a", "1", false), "ALTER SYSTEM SET a = 1;\nSELECT"
              " pg_reload_conf();");
    arena_free(&a);
}

/* What becomes of slots at a failover, by the setting that providers have for it. */
static void test_failover_modes(void)
{
    static const struct {
        enum provider provider;
        int version;
        const char *mode, *word;
        enum check_status status;
    } cases[] = {
        {POLARDB, 150000, "sync", "is sync", CHECK_OK},
        {POLARDB, 150000, "async", "a has lost", CHECK_WARNING},
        {POLARDB, 150000, "off", "loses the slot", CHECK_WARNING},
        {POLARDB, 140000, NULL, "another major version", CHECK_WARNING},
        {POLARDB, 110000, NULL, "update the minor version", CHECK_WARNING},
        {ALIBABA_RDS, 150000, "sync", "is sync", CHECK_OK},
        {ALIBABA_RDS, 150000, "async", "keeps the slot", CHECK_OK},
        {ALIBABA_RDS, 150000, "off", "loses the slot", CHECK_WARNING},
        {ALIBABA_RDS, 130000, NULL, "update the minor version", CHECK_WARNING},
    };
    static const struct check_row row = {"SLOT_FAILOVER", SOURCES, STAGE_SERVER, false, NULL};
    static const struct job job;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct arena a = {0};
        struct check_list list = {0};
        struct check c = {.job = &job, .arena = &a, .list = &list, .row = &row, .at = 'a'};
        struct check_node n = {.provider = cases[i].provider, .db.version = cases[i].version};
        check_failover_mode(&c, &n, "mode", cases[i].mode);
        const struct check_item *it = &list.items[0];
        CHECK(list.n == 1 && it->status == cases[i].status);
        CHECK(strstr(it->measured, cases[i].word) || strstr(it->needed, cases[i].word) ||
              strstr(it->remedy, cases[i].word));
        CHECK(it->status == CHECK_OK || (it->needed[0] && it->remedy[0]));
        arena_free(&a);
    }
}

static const struct t_test tests[] = {
    {"minor versions", test_minor_versions}, {"hosts", test_hosts},     {"types", test_types},
    {"numbers", test_numbers},               {"advice", test_advice},
    {"failover modes", test_failover_modes},
};

T_MAIN(tests)
