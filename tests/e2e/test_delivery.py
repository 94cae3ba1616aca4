#!/usr/bin/env python3
"""Delivery agents write into the spool while sessions collect and delete: every message arrives, once."""
import fcntl
import os
import poplib
import random
import shutil
import subprocess
import threading
import time

from deliverers import *  # noqa: F403
from harness import *  # noqa: F403

LONGEST = 60  # seconds until everything must have been collected

POSTFIX_SERVICES = """\
pickup    unix  n  -  n  1     1  pickup
cleanup   unix  n  -  n  -     0  cleanup
qmgr      unix  n  -  n  300   1  qmgr
rewrite   unix  -  -  n  -     -  trivial-rewrite
bounce    unix  -  -  n  -     0  bounce
defer     unix  -  -  n  -     0  bounce
trace     unix  -  -  n  -     0  bounce
local     unix  -  n  n  -     -  local
error     unix  -  -  n  -     -  error
retry     unix  -  -  n  -     -  error
postlog   unix-dgram n - n  -   1  postlogd
"""


def configure_postfix(site, directory, locks):
    """A Postfix of its own: no network, local delivery into the site's spool."""
    for name in "etc", "queue", "data":
        os.mkdir(os.path.join(directory, name))
    shutil.chown(os.path.join(directory, "data"), "postfix")
    settings = {
        "compatibility_level": "3.6", "queue_directory": os.path.join(directory, "queue"),
        "data_directory": os.path.join(directory, "data"), "mail_spool_directory": site.spool,
        "maillog_file": os.path.join(directory, "log"), "maillog_file_prefixes": directory,
        "myhostname": "test.invalid", "mydestination": "test.invalid", "inet_interfaces": "loopback-only",
        "inet_protocols": "ipv4", "alias_maps": "", "alias_database": "", "local_recipient_maps": "", "biff": "no",
        "mailbox_command": "", "minimal_backoff_time": "1s", "maximal_backoff_time": "2s", "queue_run_delay": "1s",
        "mailbox_delivery_lock": locks, "deliver_lock_delay": "1s", "deliver_lock_attempts": "20",
        "local_destination_concurrency_limit": "2",
    }
    with open(os.path.join(directory, "etc", "main.cf"), "w") as main_cf:
        main_cf.writelines("%s = %s\n" % setting for setting in settings.items())
    with open(os.path.join(directory, "etc", "master.cf"), "w") as master_cf:
        master_cf.write(POSTFIX_SERVICES)
    for name in "dynamicmaps.cf", "postfix-files":
        shutil.copy(os.path.join("/etc/postfix", name), os.path.join(directory, "etc"))


def postfix(site, user, count, locks="fcntl, dotlock"):
    """Postfix's local: by default fcntl first, then the dot-lock, and it waits for each."""
    directory = site.path("postfix")
    configuration = os.path.join(directory, "etc")
    os.mkdir(directory)
    configure_postfix(site, directory, locks)
    started = subprocess.run(["postfix", "-c", configuration, "start"], capture_output=True, text=True, timeout=60)
    site.cleanups.append(lambda: subprocess.run(["postfix", "-c", configuration, "stop"], capture_output=True))
    if started.returncode != 0:
        raise Skip("Postfix does not start in a scratch configuration: " + started.stderr.replace("\n", " "))

    def deliver(number):
        subprocess.run(["sendmail", "-C", configuration, "-i", "-f", "sender@example.org", user + "@test.invalid"],
                       input=letter(number), text=True, check=True, capture_output=True, timeout=60)
    return Deliverer("postfix", count, deliver)


# ---- the collecting side ----

class Collector:
    """Sessions that fetch, delete some of what they fetched, and remember what QUIT confirmed."""

    def __init__(self, site, user):
        self.site = site
        self.user = user
        self.collected = []
        self.busy = 0
        self.failed_updates = 0
        self.rng = random.Random(user)

    def login(self):
        """A session, or None while a deliverer holds the locks."""
        try:
            return self.site.login(self.user, timeout=60)
        except poplib.error_proto as answer:
            assert "[IN-USE]" in str(answer) or "[SYS/TEMP]" in str(answer), answer
            self.busy += 1
            return None

    def one_session(self, everything=False):
        """Whether the maildrop was open and empty."""
        client = self.login()
        if client is None:
            return False
        marked = []
        count = client.stat()[0]
        for index in range(1, count + 1):
            number = check_letter(retrieve(client, index))
            if everything or self.rng.random() < 0.7:
                client.dele(index)
                marked.append(number)
        try:
            client.quit()
            self.collected += marked
        except poplib.error_proto as answer:
            assert "[SYS/TEMP]" in str(answer), answer
            self.failed_updates += 1
        return count == 0


def collect_during(site, user, deliverers):
    """Let all deliver at once, collect meanwhile and until nothing is missing."""
    collector = Collector(site, user)
    wanted = sorted(number for deliverer in deliverers for number in deliverer.numbers)
    for deliverer in deliverers:
        deliverer.start()
    deadline = time.monotonic() + LONGEST
    while time.monotonic() < deadline:
        done = not any(deliverer.is_alive() for deliverer in deliverers)
        empty = collector.one_session(everything=done)
        if done and empty and len(collector.collected) >= len(wanted):
            break
        time.sleep(0.01)
    for deliverer in deliverers:
        deliverer.join(60)
        if deliverer.problem is not None:
            raise AssertionError("%s: %s" % (deliverer.kind, deliverer.problem))
    print("# %d logins found the maildrop busy, %d updates had to be repeated"
          % (collector.busy, collector.failed_updates))
    missing = sorted(set(wanted) - set(collector.collected))
    assert not missing, "lost: %r; postfix says:\n%s" % (missing, postfix_log(site))
    assert sorted(collector.collected) == wanted, "doubled: %r" % sorted(
        number for number in set(collector.collected) if collector.collected.count(number) > 1)
    assert site.read_mail(user) == b""
    assert not os.path.exists(site.spool_path(user) + ".lock")


def postfix_log(site):
    try:
        with open(site.path("postfix", "log")) as log:
            return log.read()[-4000:]
    except FileNotFoundError:
        return "nothing"


def in_background(function):
    """Run it in a thread; a function that waits for its result or raises what it raised."""
    results = []

    def call():
        try:
            results.append((function(), None))
        except Exception as problem:  # noqa: B902 (raised again below)
            results.append((None, problem))
    thread = threading.Thread(target=call, daemon=True)
    thread.start()

    def finish():
        thread.join(30)
        assert results, "it does not come to an end"
        value, problem = results[0]
        if problem is not None:
            raise problem
        return value
    return finish


def take_dot_lock(site, every, seconds):
    """How long it took to make the dot-lock, looking so often."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        try:
            os.close(os.open(site.spool_path() + ".lock", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            return time.monotonic() - began
        except FileExistsError:
            time.sleep(every)
    raise AssertionError("the dot-lock was held for %d seconds" % seconds)


@test
def dot_lock_then_fcntl(site):
    """a deliverer with the dot-lock gets the fcntl lock at once although a login waits for it"""
    site.add_user()
    site.put_mail([message(1)])
    site.start()
    take_dot_lock(site, 0.01, 1)
    login = in_background(lambda: site.login(timeout=30))
    time.sleep(0.5)
    with open(site.spool_path(), "ab") as spool:
        fcntl.lockf(spool, fcntl.LOCK_EX | fcntl.LOCK_NB)
        spool.write(message(2).encode())
    os.unlink(site.spool_path() + ".lock")
    client = login()
    assert client.stat()[0] == 2
    client.quit()


@test
def fcntl_then_dot_lock(site):
    """a deliverer with the fcntl lock gets the dot-lock within seconds although a QUIT waits for it"""
    site.add_user()
    site.put_mail([message(1), message(2)])
    site.start()
    client = site.login()
    client.dele(1)
    with open(site.spool_path(), "ab") as spool:
        fcntl.lockf(spool, fcntl.LOCK_EX)
        end = in_background(client.quit)
        time.sleep(0.1)
        take_dot_lock(site, 1.0, 5)
        spool.write(message(3).encode())
        spool.flush()
        os.unlink(site.spool_path() + ".lock")
    assert end().startswith(b"+OK")
    assert site.read_mail() == (message(2) + message(3)).encode()


@test
def procmail_delivers(site):
    """procmail alone against sessions that collect and delete"""
    need_root()
    need_program("procmail")
    user = make_mailbox_owner(site)
    site.start()
    collect_during(site, user, [procmail(site, user, 60)])


@test
def mailbox_module_delivers(site):
    """Python's mailbox.mbox alone against sessions that collect and delete"""
    need_root()
    user = make_mailbox_owner(site)
    site.start()
    collect_during(site, user, [python_mailbox(site, user, 60)])


@test
def postfix_delivers(site):
    """Postfix's local alone against sessions that collect and delete"""
    need_root()
    need_program("postfix", "sendmail")
    user = make_mailbox_owner(site)
    site.start()
    collect_during(site, user, [postfix(site, user, 60)])


@test
def all_deliver_at_once(site):
    """procmail, Postfix and mailbox.mbox together, against one collecting user"""
    need_root()
    need_program("procmail", "postfix", "sendmail")
    user = make_mailbox_owner(site)
    site.start()
    # procmail takes the dot-lock first and waits for fcntl: Postfix must do the same, or they block each other
    collect_during(site, user, [procmail(site, user, 40), postfix(site, user, 40, "dotlock, fcntl"),
                                python_mailbox(site, user, 40)])


if __name__ == "__main__":
    main()
