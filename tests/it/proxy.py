"""A TCP proxy before a PostgreSQL server that can cut, hold, or swallow what passes; reorders nothing."""

import contextlib
import socket
import struct
import threading

import pg

# What a server says when a COMMIT is done: CommandComplete with the tag COMMIT.
COMMITTED = b"C\x00\x00\x00\x0bCOMMIT\x00"

# A few changes go without BEGIN and COMMIT: the Sync that ends their pipeline commits.  It begins
# with the progress, by this prepared statement.
QUICK = b"\x00tw_guard\x00"


class Link:
    """One client connection and its connection to the server; a thread pumps each direction."""

    def __init__(self, proxy, client, server):
        self.proxy, self.client, self.server = proxy, client, server
        self.committing = False     # a pipeline that commits at its end was sent, no answer has come
        self._to_end = 2
        for sock in (client, server):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for source, sink in ((client, server), (server, client)):
            threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source, sink):
        with contextlib.suppress(OSError):
            while True:
                data = source.recv(65536)
                if source is self.server:
                    self.proxy.came(len(data))
                self.proxy.passing.wait()
                if not data:
                    break
                if self.proxy.swallows(self, data, source is self.server):
                    self.cut(True)
                    break
                sink.sendall(data)
        self.cut(False)
        with self.proxy.lock:
            self._to_end -= 1
            last = not self._to_end
            if last:
                self.proxy.links.discard(self)
        if last:
            self.client.close()
            self.server.close()

    def cut(self, reset):
        for sock in (self.client, self.server):
            with contextlib.suppress(OSError):
                if reset:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.shutdown(socket.SHUT_RDWR)


class Proxy(threading.Thread):
    """Listens on a free port of 127.0.0.1 and forwards to port `to` there.

    cut()                  ends all connections, roughly or (reset=False) in an orderly way
    hold(), release()      nothing passes any more, nobody is told: a black hole; on it goes
    hold_after = n         holds by itself when the server has sent n bytes more
    refuse                 new connections are closed at once
    swallow_replies = n    the next n replies to a COMMIT do not arrive; the connection is cut instead
    swallow_requests = n   the next n COMMITs do not arrive; the connection is cut instead
    swallowed              how often that happened
    """

    def __init__(self, to):
        super().__init__(daemon=True)
        self.to, self.refuse = to, False
        self.hold_after = None
        self.swallow_replies = self.swallow_requests = self.swallowed = 0
        self.passing, self.lock, self.links = threading.Event(), threading.RLock(), set()
        self.passing.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.start()

    def run(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                if self.refuse:
                    raise OSError("refused")
                server = socket.create_connection(("127.0.0.1", self.to))
            except OSError:
                client.close()
                continue
            with self.lock:
                self.links.add(Link(self, client, server))

    def swallows(self, link, data, is_reply):
        with self.lock:
            if is_reply:
                commits = link.committing or COMMITTED in data
                link.committing = False
            else:
                link.committing = QUICK in data
                commits = link.committing or b"COMMIT" in data
            if is_reply and self.swallow_replies and commits:
                self.swallow_replies -= 1
            elif not is_reply and self.swallow_requests and commits:
                self.swallow_requests -= 1
            else:
                return False
            self.swallowed += 1
            return True

    def cut(self, reset=True):
        with self.lock:
            for link in list(self.links):
                link.cut(reset)

    def came(self, size):
        with self.lock:
            if self.hold_after is not None:
                self.hold_after -= size
                if self.hold_after <= 0:
                    self.hold_after = None
                    self.hold()

    def held(self):
        return not self.passing.is_set()

    def hold(self):
        self.passing.clear()

    def release(self):
        """Everything passes again; a hold that has not yet come does not come any more."""
        with self.lock:
            self.hold_after = None
            self.passing.set()

    def job_keys(self):
        """What a job file's section about the node behind this proxy says, beyond pg.Node.job_keys()."""
        return {"host": "127.0.0.1", "port": self.port, "password": pg.PASSWORD, "sslmode": "disable"}

    def close(self):
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.release()
        self.cut()
