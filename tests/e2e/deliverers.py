"""Delivery agents for tests: each a thread that delivers letters which prove themselves."""
import mailbox
import os
import pwd
import random
import subprocess
import threading
import time
import traceback

FIRST_ID = {"procmail": 100000, "postfix": 200000, "mailbox": 300000}


# ---- messages that prove themselves ----

def body_of(number):
    """The body of that message, from its number alone."""
    rng = random.Random(number)
    lines = ["." * rng.randrange(3) + "%d: " % number + "x" * rng.randrange(180) for _ in range(rng.randrange(1, 150))]
    return "\n".join(lines) + "\n"


def letter(number):
    """The message as it is given to a delivery agent."""
    return ("From: sender@example.org\nTo: user\nSubject: delivered %d\nMessage-ID: <%d@example.org>\n\n%s"
            % (number, number, body_of(number)))


def check_letter(content):
    """The number of a message that was received; every octet of its body must be right."""
    header, body = content.decode("ascii").replace("\r\n", "\n").split("\n\n", 1)
    numbers = [line.split()[-1] for line in header.split("\n") if line.startswith("Subject: delivered ")]
    assert len(numbers) == 1, header
    assert body == body_of(int(numbers[0])), "message %s is broken: %r" % (numbers[0], body[:2000])
    return int(numbers[0])


# ---- deliverers: each a thread; failures are kept for the report ----

class Deliverer(threading.Thread):
    """Delivers count messages for one user, one after the other, with short pauses, unless told that it is enough."""

    def __init__(self, name, count, deliver):
        super().__init__(daemon=True)
        self.kind = name
        self.numbers = list(range(FIRST_ID[name], FIRST_ID[name] + count))
        self.deliver = deliver
        self.delivered = []
        self.longest_pause = 0.1  # seconds
        self.enough = threading.Event()
        self.problem = None

    def run(self):
        rng = random.Random(self.numbers[0])
        try:
            for number in self.numbers:
                if self.enough.is_set():
                    break
                self.deliver(number)
                self.delivered.append(number)
                time.sleep(rng.random() * self.longest_pause)
        except Exception as problem:  # noqa: B902 (whatever it is, the test must see it)
            self.problem = problem


def make_mailbox_owner(site, name="qpopdeliver"):
    """A system account whose maildrop is also known to passwd-file, empty at first."""
    site.add_system_user(name)
    site.add_user(name, uid=pwd.getpwnam(name).pw_uid)
    site.put_mail(b"", name)
    return name


def run_as_owner(user, arguments, text, attempts=1):
    """A delivery agent with the rights that a mail system gives it: the user's, and group mail."""
    for _ in range(attempts):
        run = subprocess.run(arguments, input=text, text=True, capture_output=True, timeout=60, cwd="/",
                             user=pwd.getpwnam(user).pw_uid, group=8, extra_groups=[])
        if run.returncode == 0:
            return
        if run.returncode != 75:  # EX_TEMPFAIL: nothing was delivered, try again
            break
        time.sleep(0.1)
    raise AssertionError("%s ended with %d:\n%s" % (arguments[0], run.returncode, run.stdout + run.stderr))


def procmail(site, user, count):
    """procmail with a recipe that takes its dot-lock; it locks by fcntl besides."""
    rc = site.path("procmailrc")
    with open(rc, "w") as file:
        file.write("SHELL=/bin/sh\nLOCKSLEEP=1\nDEFAULT=%s\nORGMAIL=%s\n:0:\n$DEFAULT\n"
                   % (site.spool_path(user), site.spool_path(user)))
    os.chmod(rc, 0o644)
    return Deliverer("procmail", count, lambda number: run_as_owner(
        user, ["procmail", "-t", "-f", "sender@example.org", rc], letter(number), attempts=20))


def add_by_mailbox(path, text):
    """One delivery as programs in Python do it: fcntl first, then the dot-lock, never waiting with one of them."""
    for _ in range(600):
        box = mailbox.mbox(path)
        try:
            box.lock()
        except mailbox.ExternalClashError:
            box.close()
            time.sleep(0.05)
            continue
        try:
            box.add(text)
            box.flush()
        finally:
            box.unlock()
            box.close()
        return
    raise AssertionError("the locks were never free")


def python_mailbox(site, user, count):
    """The mailbox module of Python, in a process of the user's."""
    def deliver(number):
        child = os.fork()
        if child == 0:
            try:
                os.setgroups([])
                os.setgid(8)
                os.setuid(pwd.getpwnam(user).pw_uid)
                add_by_mailbox(site.spool_path(user), letter(number))
                os._exit(0)
            except BaseException:  # noqa: B902 (nothing may return into the copy of the test)
                traceback.print_exc()
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "message %d" % number
    return Deliverer("mailbox", count, deliver)
