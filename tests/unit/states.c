/* Which SQLSTATE asks for which reaction, and for how long it is tried (chapters 2, 11, 28). */
#define TWSYNC_LIBRARY
#include "../../twsync.c"

#include "../t.h"

/* Row by row; of a class more than one member, and the neighbours that are not of the row. */
static const struct {
    const char *state;
    status code;
    enum reaction reaction;
} states[] = {
    {"55006", TW_EBUSY, REACT_RETRY},
    {"55000", TW_ESERVER, REACT_LATER},
    {"55P02", TW_ESERVER, REACT_LATER},
    {"55P03", TW_ETXN, REACT_REDO},
    {"55P04", TW_ESERVER, REACT_LATER},
    {"40000", TW_ETXN, REACT_REDO},
    {"40001", TW_ETXN, REACT_REDO},
    {"40002", TW_ETXN, REACT_REDO},
    {"40003", TW_ETXN, REACT_REDO},
    {"40P01", TW_ETXN, REACT_REDO},
    {"57014", TW_ETXN, REACT_REDO},
    {"57000", TW_ESERVER, REACT_LATER},
    {"08000", TW_ECONN, REACT_RETRY},
    {"08001", TW_ECONN, REACT_RETRY},
    {"08003", TW_ECONN, REACT_RETRY},
    {"08004", TW_ECONN, REACT_RETRY},
    {"08006", TW_ECONN, REACT_RETRY},
    {"08007", TW_ECONN, REACT_RETRY},
    {"08P01", TW_ECONN, REACT_RETRY},
    {"57P01", TW_ECONN, REACT_RETRY},
    {"57P02", TW_ECONN, REACT_RETRY},
    {"57P03", TW_ECONN, REACT_RETRY},
    {"57P04", TW_ECONN, REACT_RETRY},
    {"57P05", TW_ECONN, REACT_RETRY},
    {"53300", TW_ECONN, REACT_RETRY},
    {"53000", TW_ESERVER, REACT_LATER},
    {"53100", TW_ESERVER, REACT_LATER},
    {"53200", TW_ESERVER, REACT_LATER},
    {"53400", TW_ESERVER, REACT_LATER},
    {"25P03", TW_ECONN, REACT_RETRY},
    {"25P04", TW_ECONN, REACT_RETRY},
    {"25000", TW_ESERVER, REACT_LATER},
    {"25006", TW_ECONN, REACT_RETRY},
    {"25P01", TW_ESERVER, REACT_LATER},
    {"25P02", TW_ESERVER, REACT_LATER},
    /* everything else */
    {"0A000", TW_ESERVER, REACT_LATER},
    {"22003", TW_ESERVER, REACT_LATER},
    {"23503", TW_ESERVER, REACT_LATER},
    {"23505", TW_ESERVER, REACT_LATER},
    {"28P01", TW_ESERVER, REACT_LATER},
    {"3D000", TW_ESERVER, REACT_LATER},
    {"42501", TW_ESERVER, REACT_LATER},
    {"42P01", TW_ESERVER, REACT_LATER},
    {"54000", TW_ESERVER, REACT_LATER},
    {"58030", TW_ESERVER, REACT_LATER},
    {"P0001", TW_ESERVER, REACT_LATER},
    {"XX000", TW_ESERVER, REACT_LATER},
    {"XX001", TW_ESERVER, REACT_LATER},
    {"", TW_ESERVER, REACT_LATER},
    {"4", TW_ESERVER, REACT_LATER},
    {"57P", TW_ECONN, REACT_RETRY},
};

static void test_states(void)
{
    for (size_t i = 0; i < sizeof states / sizeof *states; i++) {
        char got[40], want[40];
        status s = db_state_status(states[i].state);
        snprintf(got, sizeof got, "%s: %s", states[i].state, tw_status_name(s));
        snprintf(want, sizeof want, "%s: %s", states[i].state, tw_status_name(states[i].code));
        CHECK_STR(got, want);
        CHECK(status_reaction(s) == states[i].reaction);
    }
}

/* No row of the table hides behind one before it, and each is among the states above. */
static void test_rows(void)
{
    enum { ROWS = sizeof db_sqlstates / sizeof *db_sqlstates };
    for (size_t i = 0; i < ROWS; i++) {
        const char *prefix = db_sqlstates[i].prefix;
        bool seen = false;
        CHECK(strlen(prefix) >= 2 && strlen(prefix) <= 5);
        CHECK(db_sqlstates[i].code != TW_OK && db_sqlstates[i].code != TW_ESERVER);
        CHECK(db_state_status(prefix) == db_sqlstates[i].code);
        for (size_t j = 0; j < sizeof states / sizeof *states; j++)
            seen = seen || (strlen(states[j].state) == 5 &&
                            !strncmp(states[j].state, prefix, strlen(prefix)));
        CHECK(seen);
        for (size_t j = 0; j < i; j++)
            CHECK(strncmp(prefix, db_sqlstates[j].prefix, strlen(db_sqlstates[j].prefix)));
    }
}

static void test_reactions(void)
{
    static const struct {
        status code;
        enum reaction reaction;
    } want[] = {
        {TW_OK, REACT_DONE}, {TW_ESTOP, REACT_DONE}, {TW_ECONN, REACT_RETRY},
        {TW_EBUSY, REACT_RETRY}, {TW_ETXN, REACT_REDO}, {TW_ESERVER, REACT_LATER},
        {TW_EOS, REACT_LATER}, {TW_ELIMIT, REACT_LATER}, {TW_ESCHEMA, REACT_LATER},
        {TW_ECONFLICT, REACT_STOP}, {TW_EGAP, REACT_STOP}, {TW_EPROTO, REACT_STOP},
        {TW_EJOB, REACT_STOP}, {TW_ECHECK, REACT_STOP}, {TW_EFENCED, REACT_STOP},
        {TW_EINTERNAL, REACT_STOP},
    };
    CHECK(sizeof want / sizeof *want == TW_NSTATUS);
    for (size_t i = 0; i < sizeof want / sizeof *want; i++)
        CHECK(status_reaction(want[i].code) == want[i].reaction);
}

/* What DDL of A may be the reason of: values and constraints, not rights, names or the server. */
static void test_refuses(void)
{
    static const char *const yes[] = {"22001", "22003", "22P02", "23502", "23503", "23505",
                                      "23514", "23P01", "44000", "42846", "P0001"};
    static const char *const no[] = {"", "21000", "24000", "42501", "42P01", "42804", "P0002",
                                     "P0000", "40001", "53100", "54000", "XX000"};
    for (size_t i = 0; i < sizeof yes / sizeof *yes; i++) CHECK(state_refuses(yes[i]));
    for (size_t i = 0; i < sizeof no / sizeof *no; i++) CHECK(!state_refuses(no[i]));
}

/* ---- windows ---- */

static struct stat_page page;
static struct job job;
static struct task task;

static void begin(int connection, int other)
{
    memset(&page, 0, sizeof page);
    job = (struct job){.connection_retry_min = connection, .other_retry_min = other};
    task = (struct task){.job = &job, .page = &page, .stat = &page.task[TW_FORWARD]};
}

static int minutes_left(void)
{
    return (int) ((task.stat->until_us - os_wall() + 30 * USEC_SEC) / (60 * USEC_SEC));
}

/* Each reaction has its window; attempts are counted from the first failure, and so is the end. */
static void test_windows(void)
{
    begin(60, 10);
    CHECK(task_may_retry(&task, REACT_RETRY));
    CHECK(task.stat->attempts == 1 && minutes_left() == 60);
    task.failing[0].since_us -= 59 * 60 * USEC_SEC;
    CHECK(task_may_retry(&task, REACT_RETRY));
    CHECK(task.stat->attempts == 2 && minutes_left() == 1);
    task.failing[0].since_us -= 61 * USEC_SEC;
    CHECK(!task_may_retry(&task, REACT_RETRY));
    for (int i = 0; i < 2; i++) {
        enum reaction r = i ? REACT_LATER : REACT_REDO;
        begin(60, 10);
        CHECK(task_may_retry(&task, r));
        CHECK(minutes_left() == 10);
        task.failing[1].since_us -= 10 * 60 * USEC_SEC;
        CHECK(!task_may_retry(&task, r));
    }
}

/* Of jobs that share a database the shorter window holds, never the longer. */
static void test_shared(void)
{
    begin(60, 10);
    page.retry_min[0] = 20;
    page.retry_min[1] = 30;
    CHECK(task_may_retry(&task, REACT_RETRY));
    CHECK(minutes_left() == 20);
    begin(60, 10);
    page.retry_min[0] = 20;
    page.retry_min[1] = 30;
    CHECK(task_may_retry(&task, REACT_LATER));
    CHECK(minutes_left() == 10);
}

/* Errors that take turns share a window; one of connections does not open it anew, nor close it;
 * what has not come for as long as it lasts is a new failure, and so is one after something was
 * applied. */
static void test_turns(void)
{
    begin(60, 10);
    CHECK(task_may_retry(&task, REACT_LATER));
    task.failing[1].since_us -= 5 * 60 * USEC_SEC;
    CHECK(task_may_retry(&task, REACT_REDO) && minutes_left() == 5);
    CHECK(task_may_retry(&task, REACT_RETRY) && minutes_left() == 60);
    CHECK(task_may_retry(&task, REACT_LATER) && minutes_left() == 5 && task.stat->attempts == 4);
    task.failing[1].since_us -= 5 * 60 * USEC_SEC;
    CHECK(task_may_retry(&task, REACT_RETRY) && !task_may_retry(&task, REACT_REDO));
    task.failing[1].last_us -= 10 * 60 * USEC_SEC;
    CHECK(task_may_retry(&task, REACT_REDO) && minutes_left() == 10);
    task.failing[0].since_us -= 59 * 60 * USEC_SEC;
    task.attempts = 0;
    CHECK(task_may_retry(&task, REACT_RETRY) && minutes_left() == 60);
}

static const struct t_test tests[] = {
    {"states", test_states},
    {"rows", test_rows},
    {"reactions", test_reactions},
    {"refuses", test_refuses},
    {"windows", test_windows},
    {"shared", test_shared},
    {"turns", test_turns},
};

int main(int argc, char **argv)
{
    return t_run(tests, sizeof tests / sizeof *tests, argc, argv);
}
