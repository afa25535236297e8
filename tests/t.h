/* t.h: the unit tests' whole framework.  A test is a function that CHECKs; a file of tests ends
 * with T_MAIN(tests).  The program takes words: it runs the tests whose name holds one of them.  It
 * prints "N passed, N failed" last and returns 1 if any failed. */
#ifndef T_H
#define T_H

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

struct t_test {
    const char *name;
    void (*run)(void);
};

static int t_bad;              /* failed checks of the running test */
enum { T_SHOWN = 20 };         /* so many of them are shown */

#define CHECK(x) ((x) ? (void) 0 : t_fail(__FILE__, __LINE__, "not true: " #x, NULL, NULL))
#define CHECK_STR(got, want) t_check_str(__FILE__, __LINE__, got, want)

static void t_fail(const char *file, int line, const char *what, const char *got, const char *want)
{
    if (t_bad++ >= T_SHOWN) return;
    printf("\n%s:%d: %s", file, line, what);
    if (what[0] == '\0') printf("got  \"%s\"\n%s:%d: want \"%s\"", got, file, line, want);
}

static void t_check_str(const char *file, int line, const char *got, const char *want)
{
    if (got && want && strcmp(got, want) == 0) return;
    t_fail(file, line, "", got ? got : "(null)", want ? want : "(null)");
}

static bool t_chosen(const char *name, int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (strstr(name, argv[i])) return true;
    return argc < 2;
}

static int t_run(const struct t_test *tests, size_t n, int argc, char **argv)
{
    int passed = 0, failed = 0;
    setvbuf(stdout, NULL, _IONBF, 0); /* a crash must not hide where it was */
    for (size_t i = 0; i < n; i++) {
        if (!t_chosen(tests[i].name, argc, argv)) continue;
        t_bad = 0;
        printf("%s", tests[i].name);
        tests[i].run();
        if (t_bad) printf("\n%s: FAILED, %d checks\n", tests[i].name, t_bad);
        else printf(": ok\n");
        failed += t_bad > 0;
        passed += t_bad == 0;
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}

#define T_MAIN(tests)                                                                              \
    int main(int argc, char **argv)                                                                \
    {                                                                                              \
        return t_run(tests, sizeof(tests) / sizeof *(tests), argc, argv);                          \
    }

#endif
