/* twsync.h - keep two PostgreSQL databases in step, in both directions.
 *
 * The public face of twsync.c, for programs that embed it and for tests.  A command line
 * program is built from the same file unless TWSYNC_LIBRARY is defined.
 *
 *     struct tw_error e;
 *     tw_job *job;
 *     if (tw_job_load("shop.ini", &job, &e) != TW_OK) { puts(e.msg); exit(2); }
 *     if (tw_job_check(job, stdout, false, &e) == TW_OK)
 *         tw_task_run(job, TW_FORWARD, &e);       returns when tw_stop() was called or it failed
 *     tw_job_free(job);
 *
 * Conventions.  Functions return a tw_status and leave the story in *e.  Strings in
 * struct tw_error are owned by the caller's struct.  Times are microseconds since the Unix
 * epoch, positions are PostgreSQL LSNs as 64-bit byte offsets (documentation, "pg_lsn Type").
 *
 * Caveats.
 *  - One task per process: a task holds server sessions and its own counters.  Fix: fork, as
 *    `twsync run` does; connect only after the fork.
 *  - Out of memory ends the process with exit code 71: nothing is lost, because progress
 *    lives on the target server.  Fix: run the task in a child.
 *  - Nothing here installs signal handlers.  Fix: call tw_stop() from your own handler; it is
 *    async-signal-safe.
 */
#ifndef TWSYNC_H
#define TWSYNC_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define TWSYNC_VERSION "0.1.0"

/* What can go wrong, and what twsync does about it.
 * Reactions: DONE nothing; RETRY reconnect within the connection window; REDO again at once;
 * LATER again within the window for other errors; STOP the task is Failed. */
#define TW_STATUSES(X)                                                                  \
    X(OK, DONE, "ok")                                                                   \
    X(ECONN, RETRY, "connection lost or refused")                                       \
    X(EBUSY, RETRY, "in use by another session")                                        \
    X(ETXN, REDO, "transaction rolled back by the server")                              \
    X(ESERVER, LATER, "statement failed on the server")                                 \
    X(EOS, LATER, "operating system call failed")                                       \
    X(ELIMIT, LATER, "limit reached")                                                   \
    X(ECONFLICT, STOP, "conflict under policy fail")                                    \
    X(EGAP, STOP, "changes were lost outside twsync")                                   \
    X(EPROTO, STOP, "message from the server makes no sense")                           \
    X(EJOB, STOP, "job file is wrong")                                                  \
    X(ECHECK, STOP, "precheck failed")                                                  \
    X(ESCHEMA, LATER, "source and target tables do not fit")                            \
    X(EFENCED, STOP, "another twsync works on this task")                               \
    X(ESTOP, DONE, "stop requested")                                                    \
    X(EINTERNAL, STOP, "internal error")

typedef enum tw_status {
#define TW_ENUM(name, reaction, text) TW_##name,
    TW_STATUSES(TW_ENUM)
#undef TW_ENUM
    TW_NSTATUS
} tw_status;

/* One error, as it was born.  msg is a line in PostgreSQL's style; detail, hint may be empty. */
struct tw_error {
    tw_status code;
    int line;          /* of twsync.c, for bug reports */
    char sqlstate[6];  /* "" unless a server said it (documentation, "PostgreSQL Error Codes") */
    char msg[512];
    char detail[1024];
    char hint[512];
};

enum tw_direction { TW_FORWARD, TW_REVERSE };

typedef struct job tw_job;

/* Name and one-line meaning of a status; never NULL. */
const char *tw_status_name(tw_status s);
const char *tw_status_text(tw_status s);

/* Write the versions of twsync and of every library linked in, one per line. */
void tw_versions_print(FILE *to);

/* Read and validate a job file.  TW_EJOB: e->msg holds the first mistake, and every mistake has
 * been written to stderr as file:line: what.  *job is the caller's until tw_job_free(). */
tw_status tw_job_load(const char *path, tw_job **job, struct tw_error *e);
void tw_job_free(tw_job *job);

/* Write the job in effect, defaults filled in, secrets masked; the output is a valid job file. */
void tw_job_print(const tw_job *job, FILE *to);

/* Precheck both servers and report to `to`.  Creates nothing that outlives the call.
 * TW_ECHECK when an item failed, TW_ECONN when an end could not be reached. */
tw_status tw_job_check(const tw_job *job, FILE *to, bool json, struct tw_error *e);

/* Work on one direction until tw_stop() (TW_ESTOP) or until the task is Failed. */
tw_status tw_task_run(const tw_job *job, enum tw_direction dir, struct tw_error *e);

/* Ask every task of this process to stop at the next safe point.  Async-signal-safe. */
void tw_stop(void);

#endif
