/* drain.c: reads a slot with twsync's own reader and applies nothing: the floor of twsync's time.
 *
 *     ./build.sh cc release tests/bench/drain.c OUT -Wno-unused-function && OUT JOB SLOT LSN
 *
 * Prints the seconds from before connecting until a commit that ends past LSN has been read.  The
 * publication has the slot's name.  Nothing is confirmed: the slot stays where it is. */
#define TWSYNC_LIBRARY
#include "../../twsync.c"

/* Wake for many messages, not for each: design.md 6. */
enum { LOW_WATER = 64 * 1024, WAIT_MS = 5 };

static lsn_t commit_end(const char *body, size_t len)
{
    struct rd rd = {.p = (const unsigned char *) body, .end = (const unsigned char *) body + len};
    rd_uint(&rd, 2);  /* kind and flags */
    rd_uint(&rd, 8);
    lsn_t end = rd_uint(&rd, 8);
    return rd.bad ? 0 : end;
}

static status MUST_CHECK drain_wait(struct repl *r)
{
    struct pollfd p = {.fd = PQsocket(r->db.pg), .events = POLLIN};
    poll(&p, 1, WAIT_MS);
    if (!PQconsumeInput(r->db.pg)) return db_fail_conn(&r->db, "read the replication stream");
    return repl_keepalive(r);
}

static status MUST_CHECK drain(struct repl *r, const char *slot, lsn_t until)
{
    TRY(db_open(&r->db, true));
    TRY(repl_start(r, slot, 0));
    int low = LOW_WATER;
    setsockopt(PQsocket(r->db.pg), SOL_SOCKET, SO_RCVLOWAT, &low, sizeof low);
    for (lsn_t seen = 0; seen <= until;) {
        char *frame, *body = NULL;
        size_t len = 0;
        bool keepalive;
        TRY(repl_read(r, &frame, &body, &len, &keepalive));
        if (frame && body[0] == 'C') seen = commit_end(body, len);
        if (!frame && !keepalive) TRY(drain_wait(r));
        PQfreemem(frame);
    }
    return TW_OK;
}

int main(int argc, char **argv)
{
    struct tw_error e = {0};
    struct job *job = NULL;
    struct repl r = {.db = {.e = &e, .purpose = "drain"}};
    lsn_t until;
    usec began = os_now();
    status s = argc == 4 && lsn_parse(argv[3], &until) ? job_load(argv[1], &job, &e)
                                                      : fail(&e, TW_EJOB, "usage: JOB SLOT LSN");
    if (s == TW_OK) {
        r.db.node = &job->node[0];
        s = drain(&r, argv[2], until);
    }
    if (s == TW_OK) printf("%.3f\n", (double) (os_now() - began) / USEC_SEC);
    else fprintf(stderr, "drain: %s\n", e.msg);
    repl_close(&r);
    if (job) job_free(job);
    return s != TW_OK;
}
