#!/usr/bin/env python3
"""Bad spools, busy locks, full disks and killed processes: nothing is lost, doubled or stuck."""
import os
import poplib
import random
import signal
import time

from harness import *  # noqa: F403


# ---- odd spools ----

@test
def empty_and_missing_spool(site):
    """a missing spool and one of zero octets are empty maildrops"""
    site.add_user()
    site.start()
    client = site.login()
    assert client.stat() == (0, 0)
    client.quit()
    site.put_mail(b"")
    client = site.login()
    assert client.stat() == (0, 0)
    assert client.list()[1] == []
    client.quit()


@test
def garbage_spool(site):
    """a first line that is no separator: [SYS/PERM], and the log names spoolfix"""
    site.add_user()
    site.put_mail(b"rom sender@example.org Sat Nov 21 12:00:00 2026\nSubject: x\n\nbody\n")
    site.start()
    refused(site, "[SYS/PERM]")
    site.wait_log("spoolfix")
    assert site.read_mail().startswith(b"rom ")


@test
def directory_or_link_as_spool(site):
    """a directory, a hard link or a symbolic link to one in place of the spool is refused"""
    site.add_user()
    site.start()
    path = site.spool_path()
    os.mkdir(path)
    refused(site, "[SYS/PERM]")
    os.rmdir(path)
    with open(site.path("other"), "w") as other:
        other.write(message(1))
    os.chmod(site.path("other"), 0o666)
    os.link(site.path("other"), site.path("other.second"))
    os.symlink(site.path("other"), path)
    refused(site, "[SYS/PERM]")
    os.unlink(path)
    site.put_mail([message(1)])
    os.link(path, path + ".second")
    refused(site, "[SYS/PERM]")
    os.mkfifo(site.spool_path("fifo"))
    os.rename(site.spool_path("fifo"), path)
    refused(site, "[SYS/PERM]")


@test
def unreadable_spool(site):
    """a spool that its user may not read is refused, whoever the service runs as"""
    site.add_user()
    site.put_mail([message(1)])
    os.chmod(site.spool_path(), 0)
    if ROOT:
        os.chown(site.spool_path(), 0, 0)
    site.start()
    refused(site, "[SYS/PERM]")


# ---- locks ----

@test
def second_session(site):
    """one session a maildrop: the second gets [IN-USE], and the first is not disturbed"""
    site.add_user()
    site.put_mail([message(1)])
    site.start()
    first = site.login()
    refused(site, "[IN-USE]")
    assert first.stat()[0] == 1
    first.quit()
    site.login().quit()


@test
def live_and_stale_dot_lock(site):
    """a live dot-lock gives [IN-USE] after mail-lock-timeout; a stale one is taken over by an update"""
    site.add_user()
    site.put_mail([message(1), message(2)])
    site.start(mail_lock_timeout=1)
    lock = site.spool_path() + ".lock"
    with open(lock, "w") as file:
        file.write("%d@%s" % (os.getpid(), os.uname().nodename))
    refused(site, "[IN-USE]")
    site.wait_log("maillock error 4")
    with open(lock, "w") as file:
        file.write("999999@elsewhere")
    old = time.time() - 4000
    os.utime(lock, (old, old))
    client = site.login()
    assert client.stat()[0] == 2
    client.dele(1)
    client.quit()
    assert not os.path.exists(lock)
    assert site.read_mail() == message(2).encode()
    site.wait_log("stale lock")


@test
def dot_lock_during_quit(site):
    """a deliverer's lock at QUIT: the update waits for it, and says [SYS/TEMP] when it stays"""
    site.add_user()
    mail = [message(1), message(2)]
    site.put_mail(mail)
    site.start(mail_lock_timeout=1)
    client = site.login()
    client.dele(1)
    lock = site.spool_path() + ".lock"
    with open(lock, "w") as file:
        file.write("%d@%s" % (os.getpid(), os.uname().nodename))
    try:
        client.quit()
    except poplib.error_proto as answer:
        assert "[SYS/TEMP]" in str(answer) or "[IN-USE]" in str(answer), answer
    else:
        raise AssertionError("QUIT was acknowledged")
    assert site.read_mail() == "".join(mail).encode()
    os.unlink(lock)
    client = site.login()
    assert client.stat()[0] == 2
    client.quit()


@test
def fcntl_lock_held(site):
    """a deliverer that holds the fcntl lock makes the login wait, then [IN-USE]"""
    import fcntl
    site.add_user()
    site.put_mail([message(1)])
    site.start(mail_lock_timeout=1)
    with open(site.spool_path(), "r+b") as spool:
        fcntl.lockf(spool, fcntl.LOCK_EX)
        refused(site, "[IN-USE]")
    site.login().quit()


# ---- full disks ----

@test
def delete_on_a_full_disk(site):
    """a user at the end of the spool's disk can delete: the journal lies elsewhere"""
    site.spool = mount_image(site, "small", "ext4", 8)
    os.chown(site.spool, 0, 8)
    os.chmod(site.spool, 0o2775)
    site.add_user()
    mail = [message(i, "x" * 3000) for i in range(1, 101)]
    site.put_mail(mail)
    # the files that a session makes take a directory entry and an inode, but no block
    fill(site.spool)
    site.start()
    client = site.login()
    for number in range(1, 101, 2):
        client.dele(number)
    client.quit()
    assert site.read_mail() == "".join(mail[1::2]).encode()


@test
def no_room_for_the_journal(site):
    """when even the journal has no room, QUIT says [SYS/TEMP] and the spool is as it was"""
    site.state = mount_image(site, "small", "ext4", 4)
    site.add_user()
    mail = [message(i) for i in range(1, 11)]
    site.put_mail(mail)
    site.start()
    client = site.login()
    client.dele(3)
    try:
        client.quit()
    except poplib.error_proto as answer:
        assert "[SYS/TEMP]" in str(answer), answer
    else:
        raise AssertionError("QUIT was acknowledged")
    assert site.read_mail() == "".join(mail).encode()
    client = site.login()
    assert client.stat()[0] == 10
    client.quit()


# ---- killed processes ----

@test
def any_process_killed(site):
    """each process of the service killed in turn: a new login works within seconds"""
    site.add_user()
    mail = [message(i) for i in range(1, 4)]
    site.put_mail(mail)
    site.start()
    for name in ("qpopper-worker", "qpopper-verifier", "qpopper-signer", "qpopper-monitor", "popper-logger"):
        victims = site.processes(name)
        assert victims, "no process " + name
        for pid in victims:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

        def works():
            try:
                client = site.login(tls="tls", timeout=5)
                good = client.stat()[0] == 3
                client.quit()
                return good
            except (OSError, EOFError, poplib.error_proto):
                return False
        wait_until(works, 15, "a login after %s was killed" % name)
    assert site.read_mail() == "".join(mail).encode()
    assert site.stop() == 0


@test
def everything_killed_during_an_update(site):
    """the next start finishes what was begun: the deletion is wholly applied, and nothing else is"""
    mail = kill_everything_during_update(site)
    site.start()
    client = wait_login(site)
    assert client.stat()[0] == 47
    client.quit()
    assert site.read_mail() == "".join(mail[1:]).encode()


@test
def rewritten_before_recovery(site):
    """a spool that another program rewrote after the crash is left alone; the journal is set aside"""
    kill_everything_during_update(site)
    site.put_mail([message(7)])
    site.start()
    client = wait_login(site)
    assert client.stat()[0] == 1
    client.quit()
    assert site.read_mail() == message(7).encode()
    assert any(name.startswith("foreign-") for name in os.listdir(site.path("state", "journal")))


@test
def killed_at_random(site):
    """300 rounds of kill -9 at random moments: every message accounted for at the end"""
    rng = random.Random(20261121)
    site.add_user()
    alive = {i: message(i, "x" * rng.randrange(1, 4000)) for i in range(1, 401)}
    site.put_mail(list(alive.values()))
    site.start(failure_delay=0, mail_lock_timeout=30)
    unsure = set()
    rounds = 300
    number = 400
    for round_number in range(rounds):
        victims = rng.choice(["qpopper-worker", "qpopper-monitor", "qpopper-monitor", "qpopper-verifier"])
        marked = []
        acknowledged = False
        try:
            client = site.login(timeout=30)
            listed = client.stat()[0]
            for index in sorted(rng.sample(range(1, listed + 1), min(listed, rng.randrange(1, 3)))):
                subject = next(line for line in client.top(index, 0)[1] if line.startswith(b"Subject:"))
                client.dele(index)
                marked.append(int(subject.split()[-1]))
            delay = rng.random() * 0.006
            client._putcmd("QUIT")
            time.sleep(delay)
            targets = site.processes(victims)
            if targets and round_number % 3 != 2:
                os.kill(rng.choice(targets), signal.SIGKILL)
            acknowledged = client._getresp().startswith(b"+OK")
        except (OSError, EOFError, poplib.error_proto, ProcessLookupError):
            pass
        for subject in marked:
            if acknowledged:
                alive.pop(subject, None)
            else:
                unsure.add(subject)
        if len(alive) < 100:
            number += 1
            deliver(site, number, alive)
        if unsure:
            settle(site, alive, unsure)
    client = wait_login(site)
    seen = [subject_of(client, i) for i in range(1, client.stat()[0] + 1)]
    client.quit()
    assert seen == sorted(alive), (set(seen) ^ set(alive), len(seen), len(set(seen)))
    wanted = "".join(alive[i] for i in sorted(alive)).encode()
    assert site.read_mail() == wanted


def deliver(site, number, alive):
    """Append one message under a dot-lock, as a deliverer does."""
    lock = site.spool_path() + ".lock"

    def take():
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            return True
        except FileExistsError:
            return False
    wait_until(take, 60, "the dot-lock")
    try:
        with open(site.spool_path(), "ab") as spool:
            spool.write(message(number).encode())
        alive[number] = message(number)
    finally:
        os.unlink(lock)


def settle(site, alive, unsure):
    """What an interrupted QUIT left: each unsure message is wholly there or wholly gone, all or none."""
    client = wait_login(site)
    present = {subject_of(client, i) for i in range(1, client.stat()[0] + 1)}
    client.quit()
    left = unsure & present
    assert left in (set(), unsure), "half of an update was applied: %r of %r" % (left, unsure)
    for subject in unsure - present:
        alive.pop(subject, None)
    unsure.clear()
    assert present == set(alive), present ^ set(alive)


if __name__ == "__main__":
    main()
