"""One large maildrop for bench/scale: made, put in place, delivered to, deleted from, and moved by hand.

Times are milliseconds.
"""
import fcntl
import os
import random
import shutil
import socket
import threading
import time

import make_spool

USER, PASSWORD = "benchbig0", "benchpw"
BIG_UID = 21000 # peers.sh
KINDS = 1000 # different messages; all others differ from them by their Message-ID alone
PIECE = 1 << 20
LOCK_WAIT = 60 # seconds


def mail_group(scratch):
    return os.stat(os.path.join(scratch, "mail", "popa3d")).st_gid


# ---- the maildrop ----

def templates(octets):
    """Messages in two parts, between which the only thing stands that tells their copies apart."""
    source = random.Random(octets)
    for number in range(KINDS):
        content = make_spool.message(source, number, int(octets * source.uniform(0.2, 1.8)))
        yield content.split(b"Message-ID: <", 1)


def make(path, messages, octets):
    """Write an mbox of so many messages of about so many octets; returns its size."""
    kinds = list(templates(octets))
    separator = b"From writer@example.com Sat Nov 21 10:00:00 2026\n"
    with open(path, "wb", buffering=PIECE) as spool:
        for number in range(messages):
            before, after = kinds[number % KINDS]
            spool.write(b"%s%sMessage-ID: <%09d.%s\n" % (separator, before, number, after))
        return spool.tell()


def put(source, path, scratch):
    """A copy for the user, in a new file, on disk, and old enough that its time stamps are firm."""
    if os.path.lexists(path):
        os.unlink(path)
    shutil.copyfile(source, path)
    os.chown(path, BIG_UID, mail_group(scratch))
    os.chmod(path, 0o660)
    os.sync()
    time.sleep(1.1) # popa3d sleeps when a maildrop changed in the same second


def forget(scratch, name):
    """What a server remembers of maildrops, besides what stands in them. It must not run."""
    for path in ((name, "state"), ("home", USER, "mail"), ("home", USER, "qpopper")):
        shutil.rmtree(os.path.join(scratch, *path), ignore_errors=True)


def deliver(path, octets):
    """Append a message that no earlier one equals."""
    number = time.time_ns()
    content = make_spool.message(random.Random(number), number % 10**6, octets)
    with open(path, "ab") as spool:
        fcntl.lockf(spool, fcntl.LOCK_EX)
        spool.write(b"From late@example.com Sat Nov 21 11:00:00 2026\n" + content + b"\n")
    time.sleep(1.1)


# ---- deletions ----

def chosen(kind, messages):
    """The numbers, from 1 on, of the messages to delete."""
    return {"newest": range(messages, messages + 1),
            "middle": range(messages // 2, messages // 2 + 1),
            "oldest tenth": range(1, max(2, messages // 10 + 1)),
            "every second": range(1, messages + 1, 2)}[kind]


class Session:
    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.input = self.socket.makefile("rb")
        self.answer()

    def answer(self):
        line = self.input.readline()
        if not line.startswith(b"+OK"):
            raise RuntimeError("the server says %r" % line)

    def say(self, *commands):
        self.socket.sendall(b"".join(b"%s\r\n" % command.encode() for command in commands))
        for _ in commands:
            self.answer()


def locks_free(path):
    """Whether a deliverer could begin now."""
    if os.path.lexists(path + ".lock"):
        return False
    with open(path, "r+b") as spool:
        try:
            fcntl.lockf(spool, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(spool, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def delete(server, path, numbers):
    """Delete these messages; the times from QUIT to its +OK, and to when the locks are free."""
    session = Session(server.port)
    session.say("USER " + USER)
    session.say("PASS " + PASSWORD)
    commands = ["DELE %d" % number for number in numbers]
    for begin in range(0, len(commands), 100):
        session.say(*commands[begin:begin + 100])
    os.sync()
    start = time.perf_counter()
    session.say("QUIT")
    answered = time.perf_counter()
    while not locks_free(path):
        if time.perf_counter() - answered > LOCK_WAIT:
            raise RuntimeError("the locks of %s are not given back" % path)
        time.sleep(0.0002)
    return (answered - start) * 1000, (time.perf_counter() - start) * 1000


# ---- the same bytes moved by hand ----

def ranges_to_move(kind, size, messages):
    """(from, to, length): what stands behind deleted bytes, as if all messages had one length."""
    one = size // messages
    if kind == "newest":
        return [], size - one
    if kind == "middle":
        return [(size // 2, size // 2 - one, size - size // 2)], size - one
    if kind == "oldest tenth":
        return [(size // 10, 0, size - size // 10)], size - size // 10
    return [(size - size // 2, 0, size // 2)], size // 2 # the kept bytes, written once


def raw_move(path, kind, messages):
    """Move what has to move in the file itself, and sync it."""
    file = os.open(path, os.O_RDWR)
    moves, end = ranges_to_move(kind, os.fstat(file).st_size, messages)
    os.sync()
    start = time.perf_counter()
    for source, target, length in moves:
        for done in range(0, length, PIECE):
            os.pwrite(file, os.pread(file, min(PIECE, length - done), source + done), target + done)
    os.ftruncate(file, end)
    os.fdatasync(file)
    elapsed = time.perf_counter() - start
    os.close(file)
    return elapsed * 1000


def raw_copy(source, target):
    """Copy the file by read and write, and sync the copy."""
    os.sync()
    start = time.perf_counter()
    with open(source, "rb", buffering=0) as old, open(target, "wb", buffering=0) as new:
        while piece := old.read(PIECE):
            new.write(piece)
        os.fdatasync(new)
    elapsed = time.perf_counter() - start
    os.unlink(target)
    return elapsed * 1000


# ---- memory ----

class PeakMemory:
    """The greatest VmHWM (KiB) of the monitor's children, sampled while the body runs."""

    def __init__(self, server):
        self.server, self.peak, self.ended = server, 0, threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def __enter__(self):
        self.monitors = {process for process in self.server.processes()
                         if self.field(process, "Name") == "qpopper-monitor"}
        self.thread.start()
        return self

    def __exit__(self, *unused):
        self.ended.set()
        self.thread.join()

    @staticmethod
    def field(process, name):
        try:
            with open("/proc/%d/status" % process) as lines:
                return next(line.split()[1] for line in lines if line.startswith(name + ":"))
        except (OSError, StopIteration): # it has ended
            return "0"

    def watch(self):
        while not self.ended.wait(0.002):
            for process in self.server.processes():
                if int(self.field(process, "PPid")) in self.monitors:
                    self.peak = max(self.peak, int(self.field(process, "VmHWM")))
