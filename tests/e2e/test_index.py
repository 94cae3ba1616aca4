#!/usr/bin/env python3
"""The index of a maildrop: what need not be read is not read, and nothing depends on it but time."""
import glob
import mailbox
import os
import shutil
import stat
import subprocess
import time

from harness import (ROOT, Skip, main, message, need_root, retrieve, test, wait_until)

COUNT = 120
BIG = "x" * 70 + "\n"


def messages(count=COUNT, lines=40, first=0):
    return [message(first + number, BIG * lines) for number in range(count)]


def index_file(site, user="user"):
    return os.path.join(site.settings.get("cache_dir") or site.path("state", "cache"), ".%s.cache" % user)


def wait_for_index(site, since=0, user="user"):
    """The file is written after the login is answered: wait until it is newer than `since`."""
    path = index_file(site, user)
    wait_until(lambda: os.path.exists(path) and os.stat(path).st_mtime_ns > since, 10, path)
    wait_until(lambda: not os.path.exists(path + ".new"), 10, "the end of " + path + ".new")
    return path


def settle():
    """Let the clock tick that the last change was made in go by."""
    time.sleep(0.05)


def look(site, user="user"):
    """
    What a client sees of all of it: STAT, LIST, UIDL, and the bytes of three messages (by TOP, which
    leaves no read marks behind).
    """
    client = site.login(user)
    count, octets = client.stat()
    seen = (count, octets, client.list()[1], client.uidl()[1],
            [client.top(number, 1000000)[1] for number in sorted({1, (count + 1) // 2, count}) if count])
    client.quit()
    return seen


def uids_of(seen):
    return [line.split()[1] for line in seen[3]]


class Trace:
    """strace of the monitor and its agents: bytes read from a user's spool."""

    def __init__(self, site, user="user"):
        need_root()
        if shutil.which("strace") is None:
            raise Skip("strace is not installed")
        self.site = site
        self.output = site.path("trace")
        self.spool = site.spool_path(user)
        monitor = site.processes("qpopper-monitor")[0]
        self.process = subprocess.Popen(["strace", "-f", "-y", "-e", "trace=read,pread64,preadv,mmap", "-o",
                                         self.output, "-p", str(monitor)], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        line = self.process.stderr.readline()
        if b"attached" not in line:
            self.process.kill()
            self.process.wait()
            raise Skip("strace cannot attach: " + line.decode().strip())

    def bytes_read(self):
        """Ends the trace."""
        self.process.terminate()
        self.process.wait()
        self.process.stderr.close()
        total = 0
        with open(self.output, encoding="latin-1") as trace:
            for line in trace:
                if "<%s>" % self.spool not in line:
                    continue
                assert "mmap(" not in line, line
                total += max(0, int(line.rsplit(" = ", 1)[1].split()[0]))
        return total


def big_site(site, **changes):
    site.add_user()
    site.put_mail(messages())
    settle()
    site.start(**changes)
    return look(site)


# ---- what is not read ----

@test
def unchanged(site):
    """A maildrop that has not changed is answered without a read of the spool, whatever was done before."""
    first = big_site(site)
    wait_for_index(site)
    trace = Trace(site)
    client = site.login()
    assert client.stat() == first[:2]
    client.quit()
    assert trace.bytes_read() == 0
    assert look(site) == first


@test
def unchanged_after_a_restart(site):
    """The index file serves a service that was started anew; the spool is not read then either."""
    first = big_site(site)
    wait_for_index(site)
    site.stop()
    site.start()
    trace = Trace(site)
    client = site.login()
    assert client.stat() == first[:2]
    client.quit()
    assert trace.bytes_read() == 0
    assert look(site) == first


@test
def grown(site):
    """Of a spool that has grown the new bytes are read, and little more."""
    first = big_site(site)
    path = wait_for_index(site)
    written = os.stat(path).st_mtime_ns
    for number in range(3):
        settle()  # what the last session left behind is done
        with open(site.spool_path(), "a") as spool:
            spool.write(message(COUNT + number, "new\n"))
        settle()
        if number == 2:  # from the file alone
            site.stop()
            site.start()
        trace = Trace(site)
        client = site.login()
        assert client.stat()[0] == COUNT + number + 1
        client.quit()
        size = os.stat(site.spool_path()).st_size
        read = trace.bytes_read()
        assert 0 < read < size // 2, (read, size)
        seen = look(site)
        assert seen[3][:COUNT] == first[3] and seen[2][:COUNT] == first[2]
    assert os.stat(path).st_mtime_ns == written, "the file is not written anew for a few messages"
    with open(site.spool_path(), "a") as spool:
        spool.write("".join(messages(20, 1000, COUNT + 10)))
    settle()
    seen = look(site)
    wait_for_index(site, written)
    forget(site)
    assert look(site) == seen


def forget(site):
    """Restart without any index."""
    site.stop()
    for path in glob.glob(os.path.join(os.path.dirname(index_file(site)), ".*.cache*")):
        os.unlink(path)
    site.start()


@test
def small_maildrops_have_none(site):
    """A small maildrop is read as fast as an index: none is written."""
    site.add_user()
    site.put_mail([message(1)])
    settle()
    site.start()
    look(site)
    time.sleep(0.3)
    assert not os.path.exists(index_file(site))


@test
def within_a_tick(site):
    """Deliveries, checks and deletions without a pause between them: the table is always the spool's."""
    big_site(site)
    expected = COUNT
    for number in range(12):
        with open(site.spool_path(), "a") as spool:
            spool.write(message(COUNT + number))
        client = site.login()
        expected += 1
        assert client.stat()[0] == expected
        client.dele(1 + number % 3)
        client.dele(expected - number % 2)
        client.quit()
        expected -= 2
        client = site.login()
        assert client.stat()[0] == expected
        client.quit()
    seen = look(site)
    forget(site)
    assert look(site) == seen


# ---- nothing depends on it ----

@test
def deleted_files(site):
    """Index files that go, at any time, cost no unique-id and no message."""
    first = big_site(site)
    wait_for_index(site)
    os.unlink(index_file(site))
    assert look(site) == first
    forget(site)
    assert look(site) == first
    wait_for_index(site)
    site.stop()
    shutil.rmtree(os.path.dirname(index_file(site)))
    site.start()
    assert look(site) == first


@test
def deletions(site):
    """The index follows deletions: the next check reads nothing, and all is as a scan says."""
    first = big_site(site)
    path = wait_for_index(site)
    gone = set()
    for numbers in ([7, 8, 9, 60], [1], [COUNT - 5]):
        written = os.stat(path).st_mtime_ns
        client = site.login()
        left = [line.split()[1] for line in client.uidl()[1]]
        for number in numbers:
            client.dele(number)
            gone.add(left[number - 1])
        client.quit()
        settle()
        seen = look(site)
        assert uids_of(seen) == [uid for uid in uids_of(first) if uid not in gone]
        wait_for_index(site, written)
        forget(site)
        assert look(site) == seen
        wait_for_index(site)
    client = site.login()
    for number in range(1, client.stat()[0] + 1):
        client.dele(number)
    client.quit()
    assert look(site)[:2] == (0, 0)
    assert site.read_mail() == b""


@test
def check_after_deletions_reads_nothing(site):
    """The table after an update follows from the plan: the next session need not read the spool."""
    big_site(site)
    path = wait_for_index(site)
    written = os.stat(path).st_mtime_ns
    client = site.login()
    client.dele(50)
    client.quit()
    try:
        wait_for_index(site, written)
    except AssertionError:
        raise Skip("the file system tells no two changes in one tick apart: the spool is read again")
    trace = Trace(site)
    client = site.login()
    assert client.stat()[0] == COUNT - 1
    client.quit()
    assert trace.bytes_read() == 0


@test
def deletions_in_a_grown_spool(site):
    """What arrives during a session stays, when the update works from the index."""
    first = big_site(site)
    wait_for_index(site)
    client = site.login()
    with open(site.spool_path(), "a") as spool:
        spool.write(message(COUNT, "arrived\n"))
    for number in range(1, COUNT, 2):
        client.dele(number)
    client.quit()
    seen = look(site)
    assert uids_of(seen)[:-1] == uids_of(first)[1::2]
    assert seen[0] == COUNT // 2 + 1
    forget(site)
    assert look(site) == seen


@test
def identical_messages(site):
    """Twins keep their unique-ids when one of them goes, with the index and without."""
    site.add_user()
    twin = message(1, BIG * 30)
    site.put_mail([twin] * 40 + messages(40, first=100) + [twin] * 30)
    settle()
    site.start()
    first = look(site)
    assert len(set(uids_of(first))) == 110
    wait_for_index(site)
    client = site.login()
    for number in (1, 5, 50, 81):
        client.dele(number)
    client.quit()
    expected = [uid for number, uid in enumerate(uids_of(first), 1) if number not in (1, 5, 50, 81)]
    seen = look(site)
    assert uids_of(seen) == expected
    with open(site.spool_path(), "a") as spool:
        spool.write(twin)
    settle()
    seen = look(site)
    assert uids_of(seen)[:-1] == expected and uids_of(seen)[-1] not in uids_of(first)
    forget(site)
    assert look(site) == seen


@test
def forged_unique_ids(site):
    """Nobody can take another message's unique-id by an X-UIDL, in the index or out of it."""
    first = big_site(site)
    wait_for_index(site)
    wanted = uids_of(first)[3].decode()
    with open(site.spool_path(), "a") as spool:
        forged = message(500)
        separator, rest = forged.split("\n", 1)
        spool.write(separator + "\nX-UIDL: " + wanted + "\n" + rest)
        spool.write(message(501, extra="X-UIDL: %s\n" % wanted))
    settle()
    seen = look(site)
    assert uids_of(seen)[:COUNT] == uids_of(first)
    assert len(set(uids_of(seen))) == COUNT + 2
    client = site.login()
    client.dele(COUNT + 1)
    client.quit()
    settle()
    again = look(site)
    assert uids_of(again) == uids_of(seen)[:COUNT] + uids_of(seen)[COUNT + 1:]
    forget(site)
    assert look(site) == again


@test
def other_readers(site):
    """A program that rewrites the spool with new status lines changes no unique-id."""
    first = big_site(site)
    wait_for_index(site)
    for flags in ("RO", "O", "ROA"):
        box = mailbox.mbox(site.spool_path())
        box.lock()
        for key in list(box.keys())[::3]:
            entry = box[key]
            entry.set_flags(flags)
            box[key] = entry
        box.flush()
        box.unlock()
        box.close()
        if ROOT:
            os.chown(site.spool_path(), *site.owner_of("user"))
        settle()
        seen = look(site)
        assert uids_of(seen) == uids_of(first)


@test
def rewritten_in_place(site):
    """mutt keeps inode, size and time of modification: the time of change tells."""
    first = big_site(site)
    wait_for_index(site)
    status = os.stat(site.spool_path())
    data = site.read_mail()
    changed = data.replace(b"Subject: message 60\n", b"Subject: massage 60\n")
    assert len(changed) == len(data) and changed != data
    with open(site.spool_path(), "r+b") as spool:
        spool.write(changed)
    os.utime(site.spool_path(), ns=(status.st_atime_ns, status.st_mtime_ns))
    settle()
    now = os.stat(site.spool_path())
    assert (now.st_ino, now.st_size, now.st_mtime_ns) == (status.st_ino, status.st_size, status.st_mtime_ns)
    seen = look(site)
    assert uids_of(seen)[60] != uids_of(first)[60]
    assert sum(a != b for a, b in zip(uids_of(seen), uids_of(first))) == 1
    client = site.login()
    assert b"Subject: massage 60" in retrieve(client, 61)
    client.quit()


# ---- index files that are none ----

def plant(path, data, user):
    if os.path.lexists(path):
        os.unlink(path)
    with open(path, "wb") as file:
        file.write(data)
    os.chmod(path, 0o600)
    if user is not None:
        os.chown(path, *user)


@test
def damaged_files(site):
    """An index file that is damaged, cut, or another maildrop's is not believed."""
    site.add_user("other")
    site.put_mail(messages(90, first=1000), "other")
    first = big_site(site)
    path = wait_for_index(site)
    look(site, "other")
    foreign = wait_for_index(site, user="other")
    with open(path, "rb") as file:
        good = file.read()
    with open(foreign, "rb") as file:
        other = file.read()
    flipped = bytearray(good)
    flipped[4096 + 48 * 10 + 16] ^= 1
    for data in (b"", b"x", good[:4096], good[:-1], good + b"\0", bytes(flipped), other, os.urandom(len(good)),
                 b"\0" * (1 << 20)):
        site.stop()
        plant(path, data, None)
        site.start()
        assert look(site) == first
        client = site.login()
        assert client.stat() == first[:2]
        client.quit()


@test
def names_that_are_no_files(site):
    """A symbolic link, a FIFO, a directory or a second link under the name: no harm, no waiting."""
    first = big_site(site)
    path = wait_for_index(site)
    victim = site.path("victim")
    with open(victim, "w") as file:
        file.write("precious\n")

    def link(name):
        os.symlink(victim, name)

    def hard_link(name):
        os.link(victim, name)

    def huge(name):
        with open(name, "wb") as file:
            file.write(b"QPINDEX\n")
            file.truncate(1 << 40)

    for make in (link, os.mkfifo, os.mkdir, hard_link, huge):
        for name in (path, path + ".new"):
            site.stop()
            for old in (path, path + ".new"):
                if os.path.isdir(old) and not os.path.islink(old):
                    os.rmdir(old)
                elif os.path.lexists(old):
                    os.unlink(old)
            make(name)
            site.start()
            assert look(site) == first
            time.sleep(0.1)
            assert look(site) == first
            with open(victim) as file:
                assert file.read() == "precious\n"


# ---- cache-dir ----

@test
def shared_directory(site):
    """In a cache-dir of the administrator's the file is the user's, and survives a restart."""
    need_root()
    directory = site.path("caches")
    os.mkdir(directory)
    os.chown(directory, 0, 8)
    os.chmod(directory, 0o2775)
    site.settings["cache_dir"] = directory
    first = big_site(site)
    path = wait_for_index(site)
    status = os.stat(path)
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (site.owner_of("user")[0], 0o600)
    site.stop()
    site.start()
    trace = Trace(site)
    client = site.login()
    client.quit()
    assert trace.bytes_read() == 0
    assert look(site) == first
    # somebody else's file, or one that others may write, is not even looked at
    with open(path, "rb") as file:
        good = file.read()
    for owner, mode in ((site.owner_of("user")[0] + 1, 0o600), (site.owner_of("user")[0], 0o620)):
        site.stop()
        plant(path, good, (owner, 8))
        os.chmod(path, mode)
        site.start()
        trace = Trace(site)
        client = site.login()
        client.quit()
        assert trace.bytes_read() > 0
        assert look(site) == first
        os.unlink(path)


@test
def nothing_else_is_replaced(site):
    """In a shared directory a file that is no index stays, even where the names clash."""
    need_root()
    directory = site.path("caches")
    os.mkdir(directory, 0o755)
    site.settings["cache_dir"] = directory
    site.add_user()
    site.put_mail(messages())
    path = index_file(site)
    plant(path, b"mail of somebody\n", site.owner_of("user"))
    settle()
    site.start()
    look(site)
    time.sleep(0.3)
    with open(path, "rb") as file:
        assert file.read() == b"mail of somebody\n"
    assert os.listdir(directory) == [".user.cache"]


@test
def name_of_the_session_file(site):
    """A cache-name that is the session file's, in the same directory, makes no index."""
    site.settings["cache_dir"] = site.spool
    site.settings["cache_name"] = ".%s.pop"
    first = big_site(site)
    client = site.login()
    assert os.stat(os.path.join(site.spool, ".user.pop")).st_size == 0
    client.quit()
    time.sleep(0.2)
    assert look(site) == first


@test
def a_directory_that_cannot_be_written(site):
    """A full or missing cache-dir is no reason to refuse a login."""
    site.settings["cache_dir"] = site.path("nowhere")
    first = big_site(site)
    assert look(site) == first
    site.stop()
    site.settings["cache_dir"] = None
    with open(site.path("state", "cache"), "w"):
        pass
    site.start()
    assert look(site) == first


@test
def one_session_after_the_other(site):
    """Many sessions of one user, one after the other, with deletions from an index each time."""
    first = big_site(site)
    wait_for_index(site)
    left = uids_of(first)
    for number in range(20):
        client = site.login()
        client.dele(1 + number * 3 % len(left))
        client.quit()
        del left[number * 3 % len(left)]
    assert uids_of(look(site)) == left


if __name__ == "__main__":
    main()
