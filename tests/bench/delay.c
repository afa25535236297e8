/* delay.c: a TCP proxy on 127.0.0.1 that holds back every byte for a while, in both directions.
 *
 *     ./build.sh cc release tests/bench/delay.c OUT && OUT PORT MILLISECONDS
 *
 * Prints the port it listens on and forwards to PORT, until it is killed.  A process for each
 * connection.  The rate is not limited: HELD_MAX bytes may be under way. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CHUNK = 64 * 1024, HELD_MAX = 64 * 1024 * 1024 };

struct chunk {
    struct chunk *next;
    int64_t due_us;
    size_t len, sent; /* len 0: the end */
    char data[];
};

struct flow {
    int from, to;
    struct chunk *first, **last;
    size_t held;
    bool ended, blocked, done;
};

static int64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t) t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static bool is_transient(void)
{
    return errno == EAGAIN || errno == EINTR;
}

/* Takes what has come. */
static void flow_take(struct flow *f, int64_t delay_us)
{
    struct chunk *c = malloc(sizeof *c + CHUNK);
    if (!c) exit(71);
    ssize_t n = recv(f->from, c->data, CHUNK, 0);
    if (n < 0 && is_transient()) {
        free(c);
        return;
    }
    f->ended = n <= 0;
    c->next = NULL;
    c->due_us = now_us() + delay_us;
    c->len = n > 0 ? (size_t) n : 0;
    c->sent = 0;
    *f->last = c;
    f->last = &c->next;
    f->held += c->len;
}

/* Passes on what is due. */
static void flow_pass(struct flow *f)
{
    f->blocked = false;
    while (f->first && f->first->due_us <= now_us()) {
        struct chunk *c = f->first;
        ssize_t n = c->len ? send(f->to, c->data + c->sent, c->len - c->sent, MSG_NOSIGNAL) : 0;
        if (n < 0 && !is_transient()) exit(0);
        if (n > 0) c->sent += (size_t) n;
        f->blocked = c->sent < c->len;
        if (f->blocked) return;
        f->done = !c->len;
        if (f->done) shutdown(f->to, SHUT_WR);
        f->held -= c->len;
        f->first = c->next;
        if (!f->first) f->last = &f->first;
        free(c);
    }
}

static int64_t flow_wait_us(const struct flow *f, int64_t now)
{
    if (!f->first || f->blocked) return INT64_MAX;
    return f->first->due_us > now ? f->first->due_us - now : 0;
}

static void carry(int client, int server, int64_t delay_us)
{
    struct flow flows[2] = {{.from = client, .to = server}, {.from = server, .to = client}};
    for (int i = 0; i < 2; i++) {
        int one = 1;
        flows[i].last = &flows[i].first;
        setsockopt(flows[i].from, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        fcntl(flows[i].from, F_SETFL, O_NONBLOCK);
    }
    while (!flows[0].done || !flows[1].done) {
        struct pollfd p[4];
        int64_t now = now_us(), wait_us = 1000000;
        for (int i = 0; i < 2; i++) {
            const struct flow *f = &flows[i];
            bool takes = !f->ended && f->held < HELD_MAX;
            int64_t due = flow_wait_us(f, now);
            p[2 * i] = (struct pollfd){.fd = takes ? f->from : -1, .events = POLLIN};
            p[2 * i + 1] = (struct pollfd){.fd = f->blocked ? f->to : -1, .events = POLLOUT};
            if (due < wait_us) wait_us = due;
        }
        struct timespec t = {.tv_sec = wait_us / 1000000, .tv_nsec = wait_us % 1000000 * 1000};
        ppoll(p, 4, &t, NULL);
        for (int i = 0; i < 2; i++) {
            if (p[2 * i].revents) flow_take(&flows[i], delay_us);
            flow_pass(&flows[i]);
        }
    }
}

static struct sockaddr_in local(int port)
{
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t) port),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

static void serve(int client, int port, int64_t delay_us)
{
    struct sockaddr_in to = local(port);
    int server = socket(AF_INET, SOCK_STREAM, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (server >= 0 && !connect(server, (struct sockaddr *) &to, sizeof to))
        carry(client, server, delay_us);
}

int main(int argc, char **argv)
{
    if (argc != 3) return 2;
    struct sockaddr_in at = local(0);
    socklen_t len = sizeof at;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    signal(SIGCHLD, SIG_IGN);
    if (bind(listener, (struct sockaddr *) &at, len) || listen(listener, 64) ||
        getsockname(listener, (struct sockaddr *) &at, &len)) {
        perror("delay: could not listen");
        return 1;
    }
    printf("%d\n", ntohs(at.sin_port));
    fflush(stdout);
    for (;;) {
        int client = accept(listener, NULL, NULL);
        if (client >= 0 && fork() == 0) {
            serve(client, atoi(argv[1]), atoi(argv[2]) * 1000L);
            return 0;
        }
        close(client);
    }
}
