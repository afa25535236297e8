/* A wait between two attempts ends, whatever the clock does meanwhile. */
#include <poll.h>
#include <time.h>

static int longest_poll, polls;
static struct timespec clock_now;

/* Each look at the clock is 37 ms after the one before. */
static int test_clock(clockid_t id, struct timespec *t)
{
    (void) id;
    clock_now.tv_nsec += 37000000;
    if (clock_now.tv_nsec >= 1000000000) {
        clock_now.tv_nsec -= 1000000000;
        clock_now.tv_sec++;
    }
    *t = clock_now;
    return 0;
}

static int test_poll(struct pollfd *p, nfds_t n, int ms)
{
    (void) p, (void) n;
    polls++;
    if (ms < 0) longest_poll = -1; /* for ever */
    else if (longest_poll >= 0 && ms > longest_poll) longest_poll = ms;
    return 0;
}

#define clock_gettime test_clock
#define poll test_poll
#define TWSYNC_LIBRARY
#include "../../twsync.c"

#include "../t.h"

static void test_back_off(void)
{
    static struct stat_page page;
    static struct task task;
    for (int attempts = 4; attempts < 12; attempts++) {
        task = (struct task){.page = &page, .stat = &page.task[TW_FORWARD], .attempts = attempts};
        task.failing[1].since_us = os_now();
        longest_poll = polls = 0;
        task_back_off(&task);
        CHECK(polls > 0 && longest_poll >= 0 && longest_poll <= 5001);
    }
}

static const struct t_test tests[] = {{"back off", test_back_off}};

int main(int argc, char **argv)
{
    return t_run(tests, sizeof tests / sizeof *tests, argc, argv);
}
