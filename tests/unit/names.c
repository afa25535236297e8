/* What A's statements become for B: name_sql(). */
#define TWSYNC_LIBRARY
#include "../../twsync.c"

#include "../t.h"

static struct renamed columns[] = {{"mail", "email"}, {"to", "Odd"
" \"one\""}, {"a", "b"}, {"b", "a"}};
static const char *left_out[] = {"secret"};
static struct table_rules rules[] = {
    {.name = {.schema = "shop", .table = "people"}, .to = "clients", .renames = columns,
     .nrenames = 4, .without = {left_out, 1}},
    {.name = {.schema = "shop", .table = "swap"}, .to = "other"},
    {.name = {.schema = "shop", .table = "other"}, .to = "swap"},
};
static struct renamed schemas[] = {{"shop", "crm"}};
static const struct job job = {.rules = rules, .nrules = 3, .schema_names = schemas,
                               .nschema_names = 1};

static const struct {
    const char *of, *text, *want;
    bool lacks;
} cases[] = {
    /* names */
    {NULL, "SELECT \"shop\".\"f\"(1)", "SELECT \"crm\".\"f\"(1)", false},
    {NULL, "SELECT \"shop\".\"people\"(1)", "SELECT \"crm\".\"people\"(1)", false},
    {NULL, "DROP TABLE \"shop\".\"people\"", "DROP TABLE \"crm\".\"clients\"", false},
    {NULL, "DROP TABLE \"other\".\"people\"", "DROP TABLE \"other\".\"people\"", false},
    {NULL, "\"shop\".\"swap\", \"shop\".\"other\"", "\"crm\".\"other\", \"crm\".\"swap\"", false},
    {NULL, "CREATE SCHEMA \"shop\"", "CREATE SCHEMA \"crm\"", false},
    {NULL, "schema \"shop\"", "schema \"crm\"", false},
    /* columns */
    {NULL, "ALTER TABLE ONLY \"shop\".\"people\" ALTER COLUMN \"mail\" SET NOT NULL",
     "ALTER TABLE ONLY \"crm\".\"clients\" ALTER COLUMN \"email\" SET NOT NULL", false},
    {NULL, "ALTER TABLE \"shop\".\"people\" ADD CHECK ((\"a\" > \"b\"))",
     "ALTER TABLE \"crm\".\"clients\" ADD CHECK ((\"b\" > \"a\"))", false},
    {NULL, "ALTER TABLE \"shop\".\"people\" ADD CONSTRAINT \"mail\" CHECK (\"mail\"(\"mail\"))",
     "ALTER TABLE \"crm\".\"clients\" ADD CONSTRAINT \"mail\" CHECK (\"mail\"(\"email\"))", false},
    {NULL, "CREATE INDEX \"mail\" ON \"shop\".\"people\" USING \"mail\" (\"mail\" \"mail\", \"a\")",
     "CREATE INDEX \"mail\" ON \"crm\".\"clients\" USING \"mail\" (\"email\" \"mail\","
     " \"b\")", false},
    {NULL, "ALTER TABLE \"shop\".\"people\" ALTER COLUMN \"mail\" TYPE \"text\" COLLATE \"mail\"",
     "ALTER TABLE \"crm\".\"clients\" ALTER COLUMN \"email\" TYPE \"text\" COLLATE"
     " \"mail\"", false},
    {NULL, "ALTER TABLE \"shop\".\"people\" RENAME COLUMN \"x\" TO \"mail\"",
     "ALTER TABLE \"crm\".\"clients\" RENAME COLUMN \"x\" TO \"email\"", false},
    {NULL, "ALTER TABLE \"shop\".\"people\" RENAME CONSTRAINT \"a\" TO \"mail\"",
     "ALTER TABLE \"crm\".\"clients\" RENAME CONSTRAINT \"a\" TO \"mail\"", false},
    {NULL, "ALTER TABLE \"shop\".\"people\" CLUSTER ON \"mail\"",
     "ALTER TABLE \"crm\".\"clients\" CLUSTER ON \"mail\"", false},
    {NULL, "CREATE STATISTICS \"shop\".\"s\" ON \"mail\", \"a\" FROM \"shop\".\"people\"",
     "CREATE STATISTICS \"crm\".\"s\" ON \"email\", \"b\" FROM \"crm\".\"clients\"", false},
    {NULL, "COMMENT ON COLUMN \"shop\".\"people\".\"mail\" IS 'x'",
     "COMMENT ON COLUMN \"crm\".\"clients\".\"email\" IS 'x'", false},
    {NULL, "column \"mail\" of \"shop\".\"people\"", "column \"email\" of"
           " \"crm\".\"clients\"", false},
    {NULL, "constraint \"mail\" of \"shop\".\"people\"", "constraint \"mail\" of"
           " \"crm\".\"clients\"",
     false},
    {"\"shop\".\"people\"", "CHECK ((\"to\" <> 'to'::\"text\"))",
     "CHECK ((\"Odd \"\"one\"\"\" <> 'to'::\"text\"))", false},
    {NULL, "ALTER TABLE \"shop\".\"x\" ADD FOREIGN KEY (\"mail\", \"a\") REFERENCES"
           " \"shop\".\"people\"(\"mail\", \"a\") ON DELETE SET NULL (\"mail\")",
     "ALTER TABLE \"crm\".\"x\" ADD FOREIGN KEY (\"mail\", \"a\") REFERENCES"
     " \"crm\".\"clients\"(\"email\", \"b\") ON DELETE SET NULL (\"mail\")", false},
    {NULL, "ALTER TABLE \"shop\".\"people\" ADD FOREIGN KEY (\"mail\") REFERENCES"
           " \"shop\".\"x\"(\"mail\")",
     "ALTER TABLE \"crm\".\"clients\" ADD FOREIGN KEY (\"email\") REFERENCES"
     " \"crm\".\"x\"(\"mail\")",
     false},
    {NULL, "CREATE TRIGGER \"mail\" BEFORE UPDATE OF \"mail\" ON"
           " \"shop\".\"people\" FOR EACH ROW WHEN"
           " ((\"old\".\"mail\" <> \"new\".\"mail\")) EXECUTE FUNCTION \"shop\".\"mail\"()",
     "CREATE TRIGGER \"mail\" BEFORE UPDATE OF \"email\" ON \"crm\".\"clients\" FOR EACH ROW WHEN"
     " ((\"old\".\"email\" <> \"new\".\"email\")) EXECUTE FUNCTION \"crm\".\"mail\"()", false},
    {NULL, "CHECK ((\"a\" OPERATOR(\"shop\".===) \"b\"))",
     "CHECK ((\"a\" OPERATOR(\"crm\".===) \"b\"))",
     false},
    {"\"shop\".\"people\"", "CHECK ((\"people\".* IS NOT NULL))",
     "CHECK ((\"clients\".* IS NOT NULL))",
     false},
    {NULL, "CREATE POLICY \"p\" ON \"shop\".\"people\" TO \"mail\", \"a\" USING ((\"a\" = 1))",
     "CREATE POLICY \"p\" ON \"crm\".\"clients\" TO \"mail\", \"a\" USING ((\"b\" = 1))", false},
    {NULL, "CREATE RULE \"r\" AS ON INSERT TO \"shop\".\"people\" DO INSERT INTO"
           " \"shop\".\"x\" (\"mail\")"
           " VALUES (\"new\".\"mail\")",
     "CREATE RULE \"r\" AS ON INSERT TO \"crm\".\"clients\" DO INSERT INTO \"crm\".\"x\" (\"mail\")"
     " VALUES (\"new\".\"email\")", false},
    /* strings and bodies */
    {NULL, "ALTER TABLE \"shop\".\"people\" ALTER COLUMN \"a\""
           " SET DEFAULT '\"shop\".\"people\" \"mail\"'",
     "ALTER TABLE \"crm\".\"clients\" ALTER COLUMN \"b\" SET DEFAULT '\"shop\".\"people\""
     " \"mail\"'",
     false},
    {NULL, "SELECT nextval('\"shop\".\"q\"'::regclass), 'it''s"
           " \"shop\".\"q\"', E'\\'\"shop\".\"q\"'",
     "SELECT nextval('\"crm\".\"q\"'::regclass), 'it''s"
     " \"shop\".\"q\"', E'\\'\"shop\".\"q\"'", false},
    {NULL, "SELECT to_regclass('\"shop\".\"people\"') IS NOT NULL",
     "SELECT to_regclass('\"crm\".\"clients\"') IS NOT NULL", false},
    {NULL, "SELECT to_regprocedure('\"shop\".\"f\"(\"shop\".\"t\", integer)')",
     "SELECT to_regprocedure('\"crm\".\"f\"(\"crm\".\"t\", integer)')", false},
    {NULL, "SELECT to_regnamespace('\"shop\"')", "SELECT to_regnamespace('\"crm\"')", false},
    {NULL, "CREATE FUNCTION \"shop\".\"f\"() AS $f$ \"shop\".\"people\" 'x $f$ LANGUAGE sql",
     "CREATE FUNCTION \"crm\".\"f\"() AS $f$ \"shop\".\"people\" 'x $f$ LANGUAGE sql", false},
    {NULL, "SELECT $1, \"shop\".\"x\"", "SELECT $1, \"crm\".\"x\"", false},
    {NULL, "SELECT '\"shop\"'::regnamespace, to_regclass('\"it''s\".\"shop\"')",
     "SELECT '\"crm\"'::regnamespace, to_regclass('\"it''s\".\"shop\"')", false},
    /* columns that B does not have */
    {NULL, "CREATE TABLE \"shop\".\"people\" (\"secret\" \"text\"); COMMENT ON COLUMN"
           " \"shop\".\"people\".\"secret\" IS 'x'; COMMENT ON TABLE \"shop\".\"people\" IS 'y'",
     "CREATE TABLE \"crm\".\"clients\" (\"secret\" \"text\"); ALTER TABLE"
     " \"crm\".\"clients\" DROP COLUMN"
     " IF EXISTS \"secret\" CASCADE; COMMENT ON TABLE \"crm\".\"clients\" IS 'y'", false},
    {NULL, "CREATE INDEX \"i\" ON \"shop\".\"people\" (\"secret\")",
     "CREATE INDEX \"i\" ON \"crm\".\"clients\" (\"secret\")", true},
    {NULL, "type of column \"secret\" of \"shop\".\"people\"",
     "type of column \"secret\" of \"crm\".\"clients\"", true},
    {NULL, "COMMENT ON COLUMN \"shop\".\"people\".\"secret\" IS NULL",
     "COMMENT ON COLUMN \"crm\".\"clients\".\"secret\" IS NULL", true},
    {NULL, "CREATE TABLE \"shop\".\"people\" (\"mail\" \"text\", \"secret\" \"text\")",
     "CREATE TABLE \"crm\".\"clients\" (\"email\" \"text\", \"secret\" \"text\");"
     " ALTER TABLE \"crm\".\"clients\" DROP COLUMN IF EXISTS \"secret\" CASCADE", false},
    {NULL, "CREATE INDEX \"i\" ON \"shop\".\"x\" (\"secret\")",
     "CREATE INDEX \"i\" ON \"crm\".\"x\" (\"secret\")", false},
    /* what ends too early */
    {NULL, "\"shop", "\"shop\"", false}, {NULL, "'x", "'x", false}, {NULL, "$a$ x", "$a$ x", false},
    {NULL, "\"shop\".", "\"crm\".", false}, {NULL, "", "", false},
};

static void test_names(void)
{
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct arena a = {0};
        bool lacks;
        CHECK_STR(name_sql(&job, &a, cases[i].of, cases[i].text, &lacks), cases[i].want);
        CHECK(lacks == cases[i].lacks);
        arena_free(&a);
    }
}

static void test_back(void)
{
    CHECK_STR(name_schema_of_a(&job, "crm"), "shop");
    CHECK_STR(name_schema_of_a(&job, "x"), "x");
    CHECK_STR(name_table_of_a(&job, "shop", "clients"), "people");
    CHECK_STR(name_table_of_a(&job, "shop", "swap"), "other");
    CHECK_STR(name_table_of_a(&job, "x", "clients"), "clients");
    CHECK_STR(name_column_of_a(&rules[0], "email"), "mail");
    CHECK_STR(name_column_of_a(&rules[0], "a"), "b");
    CHECK_STR(name_column_of_a(&rules[0], "more"), "more");
    CHECK(!name_column_of_a(&rules[0], "mail") && !name_column_of_a(&rules[0], "secret"));
}

static void test_no_rules(void)
{
    static const struct job none;
    struct arena a = {0};
    const char *text = "SELECT \"shop\".\"people\"";
    bool lacks;
    CHECK(name_sql(&none, &a, NULL, text, &lacks) == text && !lacks);
    CHECK(!name_sql(&job, &a, NULL, NULL, &lacks));
    arena_free(&a);
}

static const struct t_test tests[] = {
    {"statements", test_names},
    {"from B to A", test_back},
    {"no rules", test_no_rules},
};

int main(int argc, char **argv)
{
    return t_run(tests, sizeof tests / sizeof *tests, argc, argv);
}
