/* job.c: any bytes as a job file; what loads must print as a job that loads.
 *
 *     ./build.sh cc fuzz tests/fuzz/job.c /tmp/fuzz && /tmp/fuzz -max_len=2000 CORPUS_DIR jobs */
#define TWSYNC_LIBRARY
#include "../../twsync.c"

#include <sanitizer/common_interface_defs.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int shown, hidden; /* where standard error goes: in our own code, and in job_load() */

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void) argc;
    (void) argv;
    setenv("HOME", "/nonexistent", 1);
    shown = dup(STDERR_FILENO);
    hidden = open("/dev/null", O_WRONLY | O_CLOEXEC);
    __sanitizer_set_report_fd((void *) (uintptr_t) shown);
    return 0;
}

/* Mistakes go to standard error, up to a hundred a file: nobody wants to read them here. */
static struct job *load(const void *data, size_t size)
{
    struct tw_error e = {0};
    struct job *job = NULL;
    char path[64];
    int fd = memfd_create("job", MFD_CLOEXEC);
    assert(fd >= 0 && fchmod(fd, 0600) == 0 && write(fd, data, size) == (ssize_t) size);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    dup2(hidden, STDERR_FILENO);
    status s = job_load(path, &job, &e);
    dup2(shown, STDERR_FILENO);
    assert(s == e.code && (s == TW_OK) == (job != NULL) && (s == TW_OK || s == TW_EJOB));
    close(fd);
    return job;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct job *job = load(data, size);
    if (!job) return 0;
    char *text = NULL;
    size_t n = 0;
    FILE *to = open_memstream(&text, &n);
    job_print(job, to);
    fclose(to);
    struct job *again = load(text, n);
    assert(again);
    job_free(again);
    job_free(job);
    free(text);
    return 0;
}
