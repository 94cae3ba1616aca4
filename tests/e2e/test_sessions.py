#!/usr/bin/env python3
"""What a session leaves behind: options that delete more, or less, or otherwise than RFC 1939."""
import fcntl
import mailbox
import os
import struct
import time

from harness import *  # noqa: F403


def subjects(site, user="user"):
    """Subjects of the messages in the spool, in order."""
    return [line[9:].decode() for line in site.read_mail(user).split(b"\n")
            if line.startswith(b"Subject: ")]


def wait_for_subjects(site, expected):
    wait_until(lambda: subjects(site) == expected, 10, "the spool to hold %s" % expected)


def deliver(site, count):
    site.put_mail([message(i) for i in range(1, count + 1)])
    return subjects(site)


def vanish(client):
    """The connection breaks."""
    client.sock.close()
    client.file.close()


# ---- sessions that end without QUIT ----

@test
def abort_deletes_nothing(site):
    """a session that breaks off deletes nothing"""
    site.add_user()
    before = deliver(site, 3)
    site.start()
    client = site.login()
    client.dele(2)
    vanish(client)
    site.wait_log("end eof")
    site.login().quit()
    assert subjects(site) == before


@test
def update_on_abort(site):
    """with update-on-abort a session that breaks off is applied, and one after RSET is not"""
    site.add_user()
    before = deliver(site, 3)
    site.start(update_on_abort="true")
    client = site.login()
    client.dele(1)
    client.rset()
    vanish(client)
    site.wait_log("0 deleted, 3 left")
    client = site.login()
    client.dele(2)
    vanish(client)
    site.wait_log("1 deleted, 2 left")
    wait_for_subjects(site, [before[0], before[2]])
    client = site.login()
    assert client.stat()[0] == 2
    client.quit()


@test
def update_on_abort_at_timeout(site):
    """with update-on-abort the silence of a client is an end like any other"""
    site.add_user()
    before = deliver(site, 2)
    site.start(update_on_abort="true", timeout=10)
    client = site.login()
    client.dele(1)
    time.sleep(10.5)
    wait_for_subjects(site, before[1:])
    client.close()


@test
def fetching_deletes_nothing(site):
    """a client that fetches everything and deletes nothing leaves every byte of the spool as it was"""
    site.add_user()
    deliver(site, 200)
    spool = site.read_mail()
    for headers in "false", "true":
        site.start(update_status_headers=headers)
        client = site.login()
        for number in range(1, 201):
            client.retr(number)
        client.quit()
        client = site.login()
        assert client.stat()[0] == 200
        client.quit()
        assert site.read_mail() == spool or headers == "true"
        site.stop()


# ---- read marks ----

def marks_of(site):
    """How many read marks stand in the index file; None without one."""
    try:
        with open(site.path("state", "cache", ".user.cache"), "rb") as index:
            return struct.unpack("=I", index.read(128)[124:])[0]
    except FileNotFoundError:
        return None


def fetch(site, *numbers):
    client = site.login()
    for number in numbers:
        client.retr(number)
    client.quit()


@test
def read_marks_need_no_lock(site):
    """a session that only reads leaves its marks while another program reads: no dot-lock, no journal"""
    site.add_user()
    deliver(site, 200)
    spool = site.read_mail()
    os.mkdir(site.path("temp"))
    os.chmod(site.path("temp"), 0o1777)
    site.start(temp_dir=site.path("temp"))
    wait_until(lambda: site.login().quit() and marks_of(site) == 0, 10, "the index")
    before = os.stat(site.spool_path()), os.stat(site.spool).st_mtime_ns
    with open(site.spool_path(), "rb") as reader:
        fcntl.lockf(reader, fcntl.LOCK_SH)
        fcntl.flock(reader, fcntl.LOCK_SH)
        fetch(site, 1, 7, 200)
        wait_until(lambda: marks_of(site) == 3, 10, "three read marks")
    after = os.stat(site.spool_path()), os.stat(site.spool).st_mtime_ns
    assert before[0].st_ctime_ns == after[0].st_ctime_ns and before[1] == after[1]
    assert os.listdir(site.path("state", "journal")) == []
    assert site.read_mail() == spool


@test
def read_marks_wait_for_a_deliverer(site):
    """while a deliverer has the dot-lock no mark is made, and afterwards it is, with the new mail"""
    site.add_user()
    deliver(site, 200)
    site.start(mail_lock_timeout="20")
    wait_until(lambda: site.login().quit() and marks_of(site) == 0, 10, "the index")
    client = site.login()
    client.retr(3)
    with open(site.spool_path() + ".lock", "w") as lock:
        lock.write("%d\n" % os.getpid())
    client.quit()
    time.sleep(1)
    assert marks_of(site) == 0
    with open(site.spool_path(), "a") as spool:
        spool.write(message(201))
    os.unlink(site.spool_path() + ".lock")
    wait_until(lambda: marks_of(site) == 1, 10, "the read mark")
    client = site.login()
    assert client.stat()[0] == 201
    client.quit()


# ---- update-status-headers ----

def flags(site):
    """Status of each message, as another mail reader finds it."""
    return [found.get_flags() for found in mailbox.mbox(site.spool_path())]


@test
def status_in_place(site):
    """a Status: field becomes one of a message that was read, in its place; nothing else changes, nothing grows"""
    site.add_user()
    fields = ["Status: O\n", "Status: RO\n", "", "status:U     \n", "Status: OZ\n", "Status:\n", "Status: O\n",
              "Status: O\n folded\n"]
    site.put_mail([message(i + 1, extra=field) for i, field in enumerate(fields)])
    site.start(update_status_headers="true")
    client = site.login()
    before = client.uidl()[1]
    for number in 1, 2, 3, 4, 5, 6, 8:
        client.retr(number)
    client.quit()
    fields[0] = "Status:RO\n"
    fields[3] = "Status:    RO\n"
    fields[4] = "Status: RO\n"
    assert site.read_mail().decode() == "".join(message(i + 1, extra=field) for i, field in enumerate(fields))
    assert [found == "RO" for found in flags(site)] == [True, True, False, True, True, False, False, False]
    client = site.login()
    assert client.uidl()[1] == before
    client.retr(1)
    client.quit()
    assert site.log().count("ended early") == 0


@test
def status_in_a_rewrite(site):
    """behind a deletion a missing field is inserted and a short one is lengthened, as long as there is room"""
    site.add_user()
    fields = ["Status: O\n", "X: gone\n", "Status: O\n", "", "Status: O\n", ""] + [""] * 60
    site.put_mail([message(i + 1, extra=field) for i, field in enumerate(fields)])
    old = site.read_mail()
    site.start(update_status_headers="true", filler="false")
    client = site.login()
    kept = [line.split()[1] for line in client.uidl()[1]]
    for number in 1, 2, 3, 4, *range(6, 67):
        client.retr(number)
    client.dele(2)
    client.quit()
    room = len(message(2, extra=fields[1]))
    fields[0] = "Status:RO\n"
    fields[2] = "Status: RO\n"
    room -= 1
    for i in [3, *range(5, 66)]:
        if room < 11:
            break
        fields[i] = "Status: RO\n"
        room -= 11
    new = site.read_mail().decode()
    assert new == "".join(message(i + 1, extra=field) for i, field in enumerate(fields) if i != 1)
    assert len(new) <= len(old)
    client = site.login()
    assert [line.split()[1] for line in client.uidl()[1]] == kept[:1] + kept[2:]
    assert client.stat()[0] == 65
    client.quit()


@test
def status_of_many(site):
    """in a large maildrop the index knows every mark, whether it stands in the spool or found no room there"""
    site.add_user()
    site.put_mail([message(i, extra="Status: O\n" if i % 2 else "") for i in range(1, 201)])
    site.start(update_status_headers="true", deferred_purge="true")
    fetch(site, *range(1, 101))
    assert flags(site) == ["RO" if i % 2 and i <= 100 else "O" if i % 2 else "" for i in range(1, 201)]
    wait_until(lambda: marks_of(site) == 100, 10, "100 read marks")
    client = site.login()
    client.retr(101)
    client.retr(102)
    client.dele(50)
    client.quit()
    assert flags(site)[100] == "RO" and b"X-Qpopper-Deleted: " in site.read_mail()
    wait_until(lambda: marks_of(site) == 102, 10, "102 read marks")
    client = site.login()
    client.retr(198)
    for number in range(1, 99):
        client.dele(number)
    client.quit()
    assert flags(site) == ["RO", "RO", "RO"] + ["O" if i % 2 else "" for i in range(103, 199)] + ["RO", ""], flags(site)
    assert marks_of(site) is None or wait_until(lambda: marks_of(site) == 4, 10, "4 read marks")


# ---- auto-delete ----

@test
def auto_delete(site):
    """auto-delete takes what was retrieved as a whole, at QUIT only, and CAPA says EXPIRE 0"""
    site.add_user()
    before = deliver(site, 4)
    site.start(auto_delete="true", update_on_abort="true")
    client = site.login()
    assert client.capa()["EXPIRE"] == ["0"]
    client.retr(1)
    vanish(client)
    site.wait_log("1 retrieved, 0 deleted, 4 left")
    client = site.login()
    client.top(1, 0)
    client.retr(2)
    client.retr(4)
    client.quit()
    assert subjects(site) == [before[0], before[2]]


# ---- fast-update ----

@test
def fast_update_needs_a_word(site):
    """fast-update alone changes nothing: the spool keeps its inode"""
    site.add_user()
    deliver(site, 3)
    inode = os.stat(site.spool_path()).st_ino
    site.start(fast_update="true")
    delete_first(site)
    assert os.stat(site.spool_path()).st_ino == inode


@test
def fast_update(site):
    """with dot-locked-delivery the new spool is renamed, and has owner, mode and attributes of the old"""
    site.add_user()
    before = deliver(site, 3)
    path = site.spool_path()
    os.chmod(path, 0o640)
    attributes = set_attribute(path)
    old = os.stat(path)
    site.start(fast_update="true", dot_locked_delivery="true")
    uids = site.login()
    kept = uids.uidl()[1][1:]
    uids.quit()
    delete_first(site)
    new = os.stat(path)
    assert new.st_ino != old.st_ino
    assert (new.st_uid, new.st_gid, new.st_mode) == (old.st_uid, old.st_gid, old.st_mode)
    assert {name: os.getxattr(path, name) for name in os.listxattr(path)} == attributes
    assert subjects(site) == before[1:]
    client = site.login()
    assert [line.split()[1] for line in client.uidl()[1]] == [line.split()[1] for line in kept]
    client.dele(1)
    client.dele(2)
    client.quit()
    assert os.stat(path).st_size == 0
    assert sorted(os.listdir(os.path.dirname(path))) == [os.path.basename(path)]


def set_attribute(path):
    """An attribute that a new file would not have, where the file system takes one."""
    try:
        os.setxattr(path, "user.qpopper-test", b"kept")
    except OSError:
        return {}
    return {name: os.getxattr(path, name) for name in os.listxattr(path)}


def delete_first(site):
    client = site.login()
    client.dele(1)
    client.quit()


if __name__ == "__main__":
    main()
