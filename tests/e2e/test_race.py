#!/usr/bin/env python3
"""Everybody at once: deliverers, mail readers that rewrite the spool, two clients, and kill -9 all the time.

At the end every message that was ever delivered is there once, or was deleted by somebody who was told so, or by
somebody whose reply was lost; octets and unique-ids are what they were from the first day. QPOPPER_LONG=1 goes on for
half an hour instead of half a minute.
"""
import contextlib
import fcntl
import os
import poplib
import random
import re
import select
import shutil
import signal
import threading
import time
import traceback

from deliverers import *  # noqa: F403
from harness import *  # noqa: F403

SECONDS = 1800 if os.environ.get("QPOPPER_LONG", "0") != "0" else 25
FIRST = range(1, 401)  # delivered before the race: 3 MB or so, that an update takes a while
FETCHED = 20  # messages in one session, at most
LEAST = 10   # messages that must have been delivered in that time, or the race was none
BEGIN = re.compile(rb"^From ", re.MULTILINE)  # no body has such a line
STATUS = re.compile(rb"^Status: [A-Z]*\n", re.MULTILINE)
NUMBER = re.compile(rb"^Subject: delivered (\d+)$", re.MULTILINE)


# ---- other mail programs: processes with the rights of the user ----

@contextlib.contextmanager
def locked(path):
    """The spool open and locked in the manner of Debian: fcntl, then the dot-lock, never waiting with one of them."""
    for _ in range(1200):
        spool = open(path, "r+b", buffering=0)
        try:
            fcntl.lockf(spool, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.close(os.open(path + ".lock", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except OSError:
            spool.close()
            time.sleep(0.05)
            continue
        try:
            yield spool
        finally:
            os.unlink(path + ".lock")
            spool.close()
        return
    raise AssertionError("the locks were never free")


def split(data):
    starts = [match.start() for match in BEGIN.finditer(data)] + [len(data)]
    return [data[start:end] for start, end in zip(starts, starts[1:])]


def write_all(spool, data):
    """In place: the same inode, another size, and the time of modification as it was, as mutt does it."""
    before = os.fstat(spool.fileno())
    spool.seek(0)
    written = 0
    while written < len(data):
        written += spool.write(data[written:])
    spool.truncate(len(data))
    os.utime(spool.fileno(), ns=(before.st_atime_ns, before.st_mtime_ns))


def mark_read(data, rng):
    """Status fields come, change and go, and with them the place of everything behind."""
    changed = []
    for letter_bytes in split(data):
        head, body = letter_bytes.split(b"\n\n", 1)
        head = STATUS.sub(b"", head + b"\n")
        field = rng.choice([b"", b"Status: O\n", b"Status: RO\n"])
        changed.append(head + field + b"\n" + body)
    return b"".join(changed)


class MailReader:
    """Rewrites the spool now and then, and removes a message if told to; says in a pipe what it has removed."""

    def __init__(self, path, user, seed, removes):
        self.reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.setgroups([])
                os.setgid(8)
                os.setuid(pwd.getpwnam(user).pw_uid)
                self.work(path, random.Random(seed), removes, writer)
                status = 0
            except BaseException:  # noqa: B902 (nothing may return into the copy of the test)
                traceback.print_exc()
            os._exit(status)
        os.close(writer)
        self.text = b""

    def work(self, path, rng, removes, writer):
        enough = []
        signal.signal(signal.SIGTERM, lambda *_: enough.append(True))
        while not enough:
            with locked(path) as spool:
                data = spool.read()
                letters = split(data)
                if removes and len(letters) > 5:
                    gone = letters.pop(rng.randrange(len(letters)))
                    os.write(writer, NUMBER.search(gone).group(1) + b"\n")
                    write_all(spool, b"".join(letters))
                elif not removes:
                    write_all(spool, mark_read(data, rng))
            time.sleep(rng.random())

    def removed(self):
        """The numbers that it has removed since the last call."""
        while select.select([self.reader], [], [], 0)[0]:
            piece = os.read(self.reader, 65536)
            if not piece:
                break
            self.text += piece
        *lines, self.text = self.text.split(b"\n")
        return [int(line) for line in lines]

    def kill(self):
        """When the test ends before its time."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def end(self):
        os.kill(self.pid, signal.SIGTERM)
        status = os.waitpid(self.pid, 0)[1]
        self.pid = None
        assert os.waitstatus_to_exitcode(status) == 0, "a mail reader failed"
        removed = self.removed()
        os.close(self.reader)
        return removed


# ---- what is known of every message ----

class Ledger:
    """Numbers and unique-ids, shared by the clients; complains of whatever may not be."""

    def __init__(self):
        self.lock = threading.Lock()
        self.uidl_of = {}
        self.number_of = {}
        self.gone = set()      # deletion confirmed
        self.doubtful = set()  # deleted, but the reply was lost or a refusal
        self.problems = []

    def complain(self, text):
        self.problems.append(text)

    def seen(self, number, uidl):
        with self.lock:
            if self.uidl_of.setdefault(number, uidl) != uidl:
                self.complain("message %d was %s and is %s" % (number, self.uidl_of[number], uidl))
            if self.number_of.setdefault(uidl, number) != number:
                self.complain("%s was message %d and is %d" % (uidl, self.number_of[uidl], number))

    def check_listing(self, uidls, gone_before):
        if len(set(uidls)) != len(uidls):
            self.complain("a unique-id is listed twice: %r" % sorted(uidls))
        with self.lock:
            back = gone_before & {self.number_of[uidl] for uidl in uidls if uidl in self.number_of}
        if back:
            self.complain("deleted messages have come back: %r" % sorted(back))


class Client(threading.Thread):
    """Checks, fetches what is new and some of what is not, deletes some, again and again."""

    def __init__(self, site, user, ledger, seed):
        super().__init__(daemon=True)
        self.site = site
        self.user = user
        self.ledger = ledger
        self.rng = random.Random(seed)
        self.enough = threading.Event()
        self.sessions = 0
        self.interrupted = 0

    def run(self):
        while not self.enough.is_set():
            try:
                self.session(0.02)
                self.sessions += 1
            except (OSError, EOFError, poplib.error_proto):
                self.interrupted += 1
            except Exception:  # noqa: B902 (whatever it is, the test must see it)
                self.ledger.complain(traceback.format_exc())
            time.sleep(self.rng.random() * 0.05)

    def session(self, share):
        """One session that deletes this share of the maildrop; the numbers that it saw."""
        with self.ledger.lock:
            gone_before = set(self.ledger.gone)
        client = self.site.login(self.user, timeout=20)
        try:
            return self.collect(client, share, gone_before)
        finally:
            client.close()

    def collect(self, client, share, gone_before):
        uidls = [line.split()[1] for line in client.uidl()[1]]
        self.ledger.check_listing(uidls, gone_before)
        marked = []
        fetched = 0
        for index, uidl in enumerate(uidls, 1):
            new = uidl not in self.ledger.number_of
            if share == 0 or (fetched < FETCHED and (new or self.rng.random() < share)):
                self.ledger.seen(check_letter(STATUS_CRLF.sub(b"", retrieve(client, index))), uidl)
                fetched += 1
            if uidl in self.ledger.number_of and self.rng.random() < share:
                client.dele(index)
                marked.append(self.ledger.number_of[uidl])
        with self.ledger.lock:
            self.ledger.doubtful |= set(marked)
        client.quit()
        with self.ledger.lock:
            self.ledger.doubtful -= set(marked)
            self.ledger.gone |= set(marked)
        return [self.ledger.number_of.get(uidl) for uidl in uidls]


STATUS_CRLF = re.compile(rb"^Status: [A-Z]*\r\n", re.MULTILINE)


# ---- kill -9 ----

class Killer:
    """Ends processes of the service at random, one kind after the other, sometimes all of them."""

    KINDS = ("update", "update", "update", "agent", "qpopper-worker", "qpopper-monitor", "qpopper-verifier",
             "everything", "everything in an update")

    def __init__(self, site):
        self.site = site
        self.rng = random.Random("killer")
        self.count = dict.fromkeys(self.KINDS, 0)

    def victims(self, kind):
        if kind == "update" and journals_in_force(self.site) == 0:
            return []
        if kind in ("update", "agent"):
            return [pid for monitor in self.site.processes("qpopper-monitor") for pid in children_of(monitor)]
        return self.site.processes(kind)

    def strike(self):
        kind = self.rng.choice(self.KINDS)
        wanted = "update" if kind == "everything in an update" else kind
        deadline = time.monotonic() + 1
        while wanted != "everything" and time.monotonic() < deadline:  # an agent lives for milliseconds only
            victims = self.victims(wanted)
            if not victims:
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.rng.choice(victims), signal.SIGKILL)
                self.count[kind] += 1
            break
        if kind.startswith("everything"):
            self.site.kill_service()
            self.site.start()
            self.count[kind] += kind == wanted


# ---- the race ----

def race(site, user, deliverers, ledger):
    path = site.spool_path(user)
    readers = [MailReader(path, user, "reader", False), MailReader(path, user, "remover", True)]
    site.cleanups += [reader.kill for reader in readers]
    clients = [Client(site, user, ledger, seed) for seed in range(2)]
    killer = Killer(site)
    for actor in [*deliverers, *clients]:
        actor.start()
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and not ledger.problems:
        killer.strike()
        time.sleep(killer.rng.random() * 0.4)
        for reader in readers:
            with ledger.lock:
                ledger.gone |= set(reader.removed())
    for actor in [*clients, *deliverers]:
        actor.enough.set()
    for reader in readers:
        ledger.gone |= set(reader.end())
    for actor in [*clients, *deliverers]:
        actor.join(90)
        assert not actor.is_alive(), "%s does not come to an end" % type(actor).__name__
    for deliverer in deliverers:
        assert deliverer.problem is None, "%s: %s" % (deliverer.kind, deliverer.problem)
    print("# killed: %s; sessions: %s, interrupted: %s" % (
        ", ".join("%d %s" % (count, kind) for kind, count in killer.count.items()),
        [client.sessions for client in clients], [client.interrupted for client in clients]))


def settle(site, user, ledger):
    """What a last session finds, when nobody disturbs it."""
    wait_login(site, user).quit()
    last = Client(site, user, ledger, "last")
    present = last.session(0)
    assert not ledger.problems, "\n".join(ledger.problems)
    return present


@test
def everybody_at_once(site):
    """deliverers, rewriting and removing mail readers, two clients and kill -9: all is accounted for at the end"""
    need_root()
    user = make_mailbox_owner(site, "qpoprace")
    site.settings["mail_lock_timeout"] = 5
    deliverers = [python_mailbox(site, user, 99999)]
    if shutil.which("procmail"):
        deliverers.append(procmail(site, user, 99999))
        deliverers[-1].longest_pause = 5  # it holds the fcntl lock for a second, and nobody else gets anywhere
    site.put_mail(["From sender@example.org Sat Nov 21 12:00:00 2026\n%s\n" % letter(number) for number in FIRST], user)
    site.start()
    ledger = Ledger()
    settle(site, user, ledger)
    race(site, user, deliverers, ledger)
    present = settle(site, user, ledger)
    delivered = set(FIRST) | {number for deliverer in deliverers for number in deliverer.delivered}
    print("# %d delivered, %d left, %d deleted, %d in doubt" % (
        len(delivered), len(present), len(ledger.gone), len(ledger.doubtful)))
    assert len(delivered) >= len(FIRST) + LEAST, "only %d messages were delivered" % (len(delivered) - len(FIRST))
    assert len(set(present)) == len(present), "doubled: %r" % sorted(present)
    lost = delivered - set(present) - ledger.gone - ledger.doubtful
    assert not lost, "lost: %r" % sorted(lost)
    assert not set(present) - delivered, "nobody has delivered %r" % sorted(set(present) - delivered)
    assert not set(present) & ledger.gone, "come back: %r" % sorted(set(present) & ledger.gone)
    assert len(split(site.read_mail(user))) == len(present)
    assert site.stop() == 0
    assert not os.path.exists(site.spool_path(user) + ".lock")


if __name__ == "__main__":
    main()
