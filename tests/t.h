/* t.h: the unit tests' whole framework.  A test is a function that CHECKs; a file of tests ends
 * with T_MAIN(tests), whose program prints "N passed, N failed" and returns 1 if any failed. */
#ifndef T_H
#define T_H

#include <stdio.h>
#include <string.h>

struct t_test {
    const char *name;
    void (*run)(void);
};

static int t_bad; /* failed checks of the running test */

#define CHECK(x)                                                                                   \
    ((x) ? (void) 0 : (void) (t_bad++, printf("%s:%d: not true: %s\n", __FILE__, __LINE__, #x)))
#define CHECK_STR(got, want) t_check_str(__FILE__, __LINE__, got, want)

static void t_check_str(const char *file, int line, const char *got, const char *want)
{
    if (got && want && strcmp(got, want) == 0) return;
    t_bad++;
    printf("%s:%d: got  \"%s\"\n%s:%d: want \"%s\"\n", file, line, got ? got : "(null)", file, line,
           want ? want : "(null)");
}

static int t_run(const struct t_test *tests, size_t n)
{
    size_t failed = 0;
    for (size_t i = 0; i < n; i++, failed += t_bad != 0) {
        t_bad = 0;
        tests[i].run();
        if (t_bad) printf("FAILED %s\n", tests[i].name);
    }
    printf("%zu passed, %zu failed\n", n - failed, failed);
    return failed != 0;
}

#define T_MAIN(tests)                                                                              \
    int main(void) { return t_run(tests, sizeof(tests) / sizeof *(tests)); }

#endif
