#!/usr/bin/env python3
"""deferred-purge: what is deleted stays in the spool, with a mark, until it is worth a rewrite."""
import mailbox
import poplib
import re
import shutil
import time

from harness import *  # noqa: F403

MARK = re.compile(rb"^X-Qpopper-Deleted: (\S+) (\d+)(?: -*)?$", re.M)


def spool_of(numbers, extra=""):
    return [message(number, extra=extra) for number in numbers]


def marks(site):
    """Unique-ids and times of the marks in the spool, in order."""
    return [(uid.decode(), int(seconds)) for uid, seconds in MARK.findall(site.read_mail())]


def uids(client):
    return [line.split()[1].decode() for line in client.uidl()[1]]


def look(site):
    """What a client sees: STAT, unique-ids, contents."""
    client = site.login()
    seen = client.stat(), uids(client), [retrieve(client, i + 1) for i in range(client.stat()[0])]
    client.quit()
    return seen


def delete(site, *numbers):
    client = site.login()
    for number in numbers:
        client.dele(number)
    client.quit()


def without(seen, *numbers):
    """What is to be seen when these messages are gone."""
    left = [i for i in range(len(seen[1])) if i + 1 not in numbers]
    octets = sum(len(seen[2][i]) for i in left)
    return (len(left), octets), [seen[1][i] for i in left], [seen[2][i] for i in left]


def begin(site, messages, **changes):
    site.add_user()
    site.put_mail(messages)
    site.start(deferred_purge="true", **changes)
    return look(site)


def forget_index(site):
    """A service that remembers nothing."""
    site.stop()
    shutil.rmtree(site.path("state", "cache"), ignore_errors=True)
    site.start(deferred_purge="true")


@test
def a_mark_and_nothing_else(site):
    """a deletion changes the first bytes of its header and no other byte; clients see it no more"""
    before = begin(site, spool_of(range(1, 11)))
    old = site.read_mail()
    delete(site, 3)
    new = site.read_mail()
    assert len(new) == len(old)
    changed = [i for i in range(len(old)) if old[i] != new[i]]
    start = old.index(b"Received:", old.index(b"From sender@example.org Sat Nov 21 12:00:03"))
    end = old.index(b"Subject: message 3\n")
    assert start <= changed[0] and changed[-1] < end, (start, changed[0], changed[-1], end)
    assert [uid for uid, seconds in marks(site)] == [before[1][2]]
    assert abs(marks(site)[0][1] - time.time()) < 60
    site.wait_log("1 deleted, 9 left")
    assert look(site) == without(before, 3)
    forget_index(site)
    assert look(site) == without(before, 3)
    box = mailbox.mbox(site.spool_path())
    assert len(box) == 10 and [i for i in range(10) if "X-Qpopper-Deleted" in box[i]] == [2]


@test
def the_share(site):
    """when more than the share is deleted, all of it goes, and is counted once"""
    before = begin(site, spool_of(range(1, 11)))
    delete(site, 2)
    delete(site, 4)
    assert len(marks(site)) == 2
    delete(site, 1)
    assert marks(site) == []
    assert site.log().count("1 deleted") == 3, site.log()
    site.wait_log("1 deleted, 7 left")
    assert look(site) == without(before, 1, 2, 5)
    assert site.read_mail() == "".join(spool_of([3, 4, 6, 7, 8, 9, 10])).encode()


@test
def the_age(site):
    """a mark that is old enough goes with the next deletion; a young one stays"""
    before = begin(site, spool_of(range(1, 31)), deferred_purge_age="4")
    delete(site, 2)
    delete(site, 2)
    assert len(marks(site)) == 2
    time.sleep(4.2)
    delete(site, 2)
    assert marks(site) == []
    assert look(site) == without(before, 2, 3, 4)


@test
def the_end(site):
    """where only the end of the spool goes it is cut off at once, marks that stand before it with it"""
    before = begin(site, spool_of(range(1, 31)))
    delete(site, 30)
    assert marks(site) == [] and look(site) == without(before, 30)
    delete(site, 28)
    assert len(marks(site)) == 1
    delete(site, 28)
    assert site.read_mail() == "".join(spool_of(range(1, 28))).encode()
    delete(site, *range(1, 28))
    assert site.read_mail() == b""


@test
def not_markable(site):
    """a header that is too short for a mark makes a rewrite"""
    short = "From a Sat Nov 21 12:00:00 2026\nA: b\n\nbody\n\n"
    before = begin(site, spool_of(range(1, 21)) + [short] + spool_of(range(21, 41)))
    delete(site, 21)
    assert site.read_mail() == "".join(spool_of(range(1, 41))).encode()
    assert look(site) == without(before, 21)


@test
def twins(site):
    """identical messages keep their unique-ids, whichever goes and however it goes"""
    twin = [message(0)] * 5
    before = begin(site, spool_of(range(1, 31)) + twin + spool_of(range(31, 61)))
    gone = []
    # a rewrite first: behind it one twin has its unique-id in writing
    site.stop()
    site.start()
    delete(site, 31)
    gone.append(31)
    assert look(site) == expected(before, site, gone)
    site.stop()
    site.start(deferred_purge="true")
    for number in 32, 34, 33, 35:
        client = site.login()
        client.dele(uids(client).index(before[1][number - 1]) + 1)
        client.quit()
        gone.append(number)
        assert look(site)[1] == without(before, *gone)[1]
        forget_index(site)
        assert look(site)[1] == without(before, *gone)[1]
    assert len(marks(site)) == 4
    with open(site.spool_path(), "a") as spool:
        spool.write(twin[0])
    fresh = look(site)[1]
    assert fresh[:-1] == without(before, *gone)[1] and fresh[-1] not in before[1]


def expected(before, site, gone):
    """As without(), where a message may have got its X-UIDL field."""
    seen = look(site)
    assert seen[1] == without(before, *gone)[1]
    return seen


@test
def content_length(site):
    """with content-length a mark does not cover what says where a message ends"""
    body = "one\n\nFrom x@y Sat Nov 21 12:00:00 2026\ntwo\n"
    inner = ("From z Sat Nov 21 12:00:00 2026\nContent-Length: %d\nFrom: somebody@example.org with a long name\n"
             "Subject: a message in which another seems to begin\n\n%s\n" % (len(body), body))
    before = begin(site, spool_of(range(1, 21)) + [inner] + spool_of(range(21, 41)), content_length="true")
    assert before[0][0] == 41
    delete(site, 21)
    assert look(site) == without(before, 21)


@test
def many(site):
    """a large maildrop with its index: marks in many sessions, then a rewrite, all seen right"""
    before = begin(site, spool_of(range(1, 501), "X-Padding: %s\n" % ("p" * 600)))
    gone = []
    for first in range(1, 6):
        client = site.login()
        here = uids(client)
        client.retr(100)
        for number in range(first, 500, 50):
            client.dele(here.index(before[1][number - 1]) + 1)
            gone.append(number)
        client.quit()
        assert len(marks(site)) == len(gone)
        with open(site.spool_path(), "a") as spool:
            spool.write(message(1000 + first))
        client = site.login()
        assert uids(client)[:500 - len(gone)] == without(before, *gone)[1]
        assert client.stat()[0] == 500 - len(gone) + first
        client.quit()
    forget_index(site)
    assert look(site)[1][:500 - len(gone)] == without(before, *gone)[1]
    client = site.login()
    for number in range(1, 120):
        client.dele(number)
    client.quit()
    assert marks(site) == []
    assert look(site)[1][:500 - len(gone) - 119] == without(before, *gone)[1][119:]


@test
def off_again(site):
    """without deferred-purge what was marked before stays hidden, and goes with the next deletion"""
    before = begin(site, spool_of(range(1, 21)))
    delete(site, 5)
    site.stop()
    site.start()
    assert look(site) == without(before, 5)
    delete(site, 1)
    assert marks(site) == [] and look(site) == without(before, 1, 5)


@test
def killed(site):
    """killed at any time, the service has marked all that a session deleted or nothing, and all if it said so"""
    settings = {"deferred_purge": "true", "update_status_headers": "true"}
    site.add_user()
    for delay in range(12):
        site.put_mail(spool_of(range(1, 501), "Status: O\n"))
        site.start(**settings)
        client = site.login()
        before = uids(client)
        for number in range(1, 100, 2):
            client.retr(number + 1)
            client.dele(number)
        monitor = site.processes("qpopper-monitor")
        client.sock.sendall(b"QUIT\r\n")
        time.sleep(delay / 4000)
        kill_all(children_of(monitor[0]))
        kill_all(monitor)
        site.kill_service()
        try:
            answered = client.file.readline().startswith(b"+OK")
        except OSError:
            answered = False
        site.start(**settings)
        # a recovery may be under way: the login waits, or is refused for a moment
        client = wait_until(lambda: login_or_none(site), 20, "a login")
        after = uids(client)
        client.quit()
        site.stop()
        assert after in (before, before[1:100:2] + before[100:]), delay
        assert after != before or not answered, delay
        assert len(site.read_mail()) == len("".join(spool_of(range(1, 501), "Status: O\n")))


def login_or_none(site):
    try:
        return site.login()
    except (poplib.error_proto, OSError):
        return None


if __name__ == "__main__":
    main()
