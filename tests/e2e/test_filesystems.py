#!/usr/bin/env python3
"""Real file systems: ext4, XFS and Btrfs in image files, full, over quota, failing, and cut off from power.

QPOPPER_LONG=1 makes the power cuts go on for hours instead of a minute.
"""
import fcntl
import os
import poplib
import random
import re
import signal
import struct
import subprocess
import time

from harness import *  # noqa: F403

KINDS = ("ext4", "xfs", "btrfs")
LONG = os.environ.get("QPOPPER_LONG", "0") != "0"
ROUNDS = 1500 if LONG else 12  # of power cuts, for each arrangement

FS_IOC_SHUTDOWN = 0x8004587d
LOG_FLUSH = 1     # what the file system's own journal has in memory is written first
NO_LOG_FLUSH = 2  # it is lost

# what the server may put behind a separator line to keep blocks aligned; no part of a message
FILLER = re.compile(rb"^(From [^\n]*\n)X-Qpopper-Filler: [0-9a-f]{16}\n(?:\t-{1,996}\n)*", re.MULTILINE)


# ---- maildrops with a manifest ----

class Manifest:
    """The messages that a maildrop must hold, in order, and the unique-id that each has had since it was first seen."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.noise = "".join("%s\n" % self.rng.randbytes(36).hex() for _ in range(16384))
        self.number = 0
        self.messages = {}
        self.uidls = {}

    def add(self, size):
        """A new message of about that many bytes, no two alike."""
        self.number += 1
        start = self.rng.randrange(len(self.noise))
        body = "%d\n" % self.number + (self.noise[start:] + self.noise * (size // len(self.noise) + 1))[:size]
        self.messages[self.number] = message(self.number, body).encode()
        return self.messages[self.number]

    def add_many(self, total, most):
        """New messages of all sizes up to most, total bytes together; their bytes."""
        data = []
        while total > 0:
            data.append(self.add(min(total, int(most * self.rng.random() ** 2) + 1)))
            total -= len(data[-1])
        return b"".join(data)

    def numbers(self):
        return list(self.messages)

    def without(self, deleted):
        return b"".join(data for number, data in self.messages.items() if number not in deleted)

    def delete(self, deleted):
        for number in deleted:
            del self.messages[number]


def content(site):
    """The spool without fillers."""
    return FILLER.sub(rb"\1", site.read_mail())


def append(site, data):
    """A delivery that is on disk when it is over."""
    with open(site.spool_path(), "ab") as spool:
        fcntl.lockf(spool, fcntl.LOCK_EX)
        spool.write(data)
        spool.flush()
        os.fsync(spool.fileno())


def check_session(site, manifest, fetched=3):
    """A session sees the manifest: sizes and unique-ids of all messages, and every octet of some of them."""
    client = wait_login(site)
    sizes = [int(line.split()[1]) for line in client.list()[1]]
    wanted = [as_sent(data.decode()) for data in manifest.messages.values()]
    assert sizes == [len(octets) for octets in wanted], (len(sizes), len(wanted))
    for line, number in zip(client.uidl()[1], manifest.messages):
        uidl = line.split()[1]
        assert manifest.uidls.setdefault(number, uidl) == uidl, "message %d was %s and is %s" % (
            number, manifest.uidls[number], uidl)
    assert len(set(manifest.uidls.values())) == len(manifest.uidls), "a unique-id was used twice"
    for index in manifest.rng.sample(range(len(wanted)), min(fetched, len(wanted))):
        assert retrieve(client, index + 1) == wanted[index], "message %d" % (index + 1)
    return client


def dele(client, manifest, deleted):
    for index, number in enumerate(manifest.messages, 1):
        if number in deleted:
            client.dele(index)


def choices(numbers):
    """What is deleted: the first, one in the middle, the last, every second, all."""
    return {"first": numbers[:1], "middle": numbers[len(numbers) // 2:len(numbers) // 2 + 1], "last": numbers[-1:],
            "every second": numbers[::2], "all": numbers}


# ---- disks ----

def use_spool(site, directory):
    """Put the spool directory there, with the rights of a mail system."""
    site.spool = os.path.join(directory, "mail")
    os.makedirs(site.spool, exist_ok=True)
    os.chown(site.spool, 0, 8)
    os.chmod(site.spool, 0o2775)


def use_state(site, directory):
    site.state = os.path.join(directory, "state")
    os.makedirs(site.state, mode=0o755, exist_ok=True)


def shut_down(directory, flag):
    """Cut the file system off: nothing that is in memory only reaches its disk any more."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, FS_IOC_SHUTDOWN, struct.pack("I", flag))
    except OSError as problem:
        raise Skip("%s cannot be shut down: %s" % (directory, problem))
    finally:
        os.close(fd)


class Disks:
    """Image files that lose power together, and come back as what is on them."""

    def __init__(self, site):
        self.site = site
        self.mounts = []  # (directory, image), inner ones later

    def add(self, name, kind, megabytes, inside=None):
        image = os.path.join(inside or self.site.directory, name + ".image")
        directory = self.site.path(name)
        make_image(image, kind, megabytes)
        os.mkdir(directory)
        mount(image, directory)
        self.mounts.append((directory, image))
        self.site.cleanups.append(lambda: subprocess.run(["umount", "-l", directory], capture_output=True))
        return directory

    def remount(self):
        """What a machine does between power cut and boot: the file systems replay their own journals."""
        for directory, _ in reversed(self.mounts):
            unmount(directory)
        for directory, image in self.mounts:
            mount(image, directory)


# ---- updates of every shape ----

def updates_of_every_shape(site, kind):
    """Five deletions, each in a spool of more than 40 MB that has grown since the session began."""
    directory = mount_image(site, "disk", kind, 400)
    use_spool(site, directory)
    use_state(site, directory)
    site.add_user()
    site.start()
    for what in ("first", "middle", "last", "every second", "all"):
        manifest = Manifest(what)
        site.put_mail(manifest.add_many(44 << 20, 2 << 20))
        client = check_session(site, manifest)
        deleted = choices(manifest.numbers())[what]
        dele(client, manifest, deleted)
        append(site, manifest.add(5000))
        began = time.monotonic()
        client.quit()
        print("# %s, %s of %d messages: %.3f s" % (kind, what, len(manifest.messages), time.monotonic() - began))
        assert content(site) == manifest.without(deleted), what
        manifest.delete(deleted)
        check_session(site, manifest).quit()
    assert site.stop() == 0


@test
def updates_on_ext4(site):
    """ext4: first, middle, last, every second and all messages deleted from 44 MB while mail comes in"""
    updates_of_every_shape(site, "ext4")


@test
def updates_on_xfs(site):
    """XFS: the same"""
    updates_of_every_shape(site, "xfs")


@test
def updates_on_btrfs(site):
    """Btrfs: the same"""
    updates_of_every_shape(site, "btrfs")


# ---- no room ----

def delete_without_room(site, manifest, take_room, give_room):
    """Delete half while there is no room at all; whatever the answer, nothing else may be missing then or later.

    True when it was done at once.
    """
    client = check_session(site, manifest)
    deleted = manifest.numbers()[::2]
    dele(client, manifest, deleted)
    take_room()
    try:
        client.quit()
        done = True
    except poplib.error_proto as answer:
        assert "[SYS/TEMP]" in str(answer), answer
        done = False
    if done:
        assert content(site) == manifest.without(deleted)
        manifest.delete(deleted)
        check_session(site, manifest).quit()
        return True
    give_room()
    site.stop()
    status, text = site.recover()
    assert status == 0, text
    now = content(site)
    assert now in (manifest.without(()), manifest.without(deleted))
    if now != manifest.without(()):
        manifest.delete(deleted)
    site.start()
    check_session(site, manifest).quit()
    return False


def on_a_full_disk(site, kind):
    directory = mount_image(site, "disk", kind, 320)
    use_spool(site, directory)
    site.add_user()
    manifest = Manifest(kind)
    site.put_mail(manifest.add_many(42 << 20, 1 << 20))
    site.start()
    return delete_without_room(site, manifest, lambda: fill(directory),
                               lambda: os.unlink(os.path.join(directory, "filler")))


@test
def full_ext4(site):
    """ext4 without a free block: half of 42 MB is deleted all the same"""
    assert on_a_full_disk(site, "ext4")


@test
def full_xfs(site):
    """XFS without a free block, which makes no file then, not even a dot-lock: done, or refused and nothing lost"""
    print("# on a full XFS the deletion was %s" % ("done" if on_a_full_disk(site, "xfs") else "done later"))


@test
def full_btrfs(site):
    """Btrfs without a free block, which cannot even overwrite: done, or refused and nothing lost"""
    print("# on a full Btrfs the deletion was %s" % ("done" if on_a_full_disk(site, "btrfs") else "done later"))


@test
def quota_of_a_user(site):
    """a user at the end of a real ext4 quota (EDQUOT) deletes half of his mail"""
    need_program("setquota")
    directory = site.path("disk")
    make_image(directory + ".image", "ext4", 400)
    subprocess.run(["tune2fs", "-O", "quota", directory + ".image"], check=True, capture_output=True)
    os.mkdir(directory)
    mount(directory + ".image", directory, "loop,usrquota")
    site.cleanups.append(lambda: subprocess.run(["umount", "-l", directory], capture_output=True))
    use_spool(site, directory)
    user = site.add_user()
    uid, gid = site.owner_of(user)
    manifest = Manifest("quota")
    site.put_mail(manifest.add_many(42 << 20, 1 << 20))

    def limit(blocks):
        subprocess.run(["setquota", "-u", str(uid), str(blocks), str(blocks), "0", "0", directory], check=True)

    def refused():
        with open(site.spool_path(), "ab") as spool:
            try:
                spool.write(b"x" * (1 << 20))
                spool.flush()
            except OSError as problem:
                assert "quota" in str(problem).lower(), problem
                os.ftruncate(spool.fileno(), size)
                return
        raise AssertionError("the quota does not hold")
    size = os.path.getsize(site.spool_path())
    site.start()
    assert delete_without_room(site, manifest, lambda: (limit(1000), run_as(uid, gid, refused)), lambda: limit(0))


@test
def quota_of_a_subvolume(site):
    """a spool at the end of a real Btrfs quota (EDQUOT), which cannot overwrite either: nothing is lost"""
    disk = mount_image(site, "disk", "btrfs", 400)
    directory = os.path.join(disk, "volume")

    def btrfs(*arguments):
        return subprocess.run(["btrfs", *arguments], check=True, capture_output=True)
    btrfs("subvolume", "create", directory)
    btrfs("quota", "enable", disk)
    use_spool(site, directory)
    site.add_user()
    manifest = Manifest("qgroup")
    site.put_mail(manifest.add_many(42 << 20, 1 << 20))
    os.sync()
    site.start()

    def at_the_end():
        btrfs("qgroup", "limit", "43M", directory)
        try:
            with open(os.path.join(directory, "more"), "wb") as file:
                for _ in range(64):
                    file.write(b"x" * (1 << 20))
                    file.flush()
        except OSError as problem:
            assert "quota" in str(problem).lower(), problem
            return
        raise AssertionError("the quota does not hold")
    done = delete_without_room(site, manifest, at_the_end, lambda: btrfs("qgroup", "limit", "none", directory))
    print("# at the end of the quota the deletion was %s" % ("done" if done else "done later"))


# ---- a disk that fails under a running service ----

def check_refused(site):
    """Nobody gets to see a maildrop that is half rewritten."""
    try:
        site.login().close()
    except poplib.error_proto as refusal:
        assert "[SYS/TEMP]" in str(refusal) or "[IN-USE]" in str(refusal), refusal
    else:
        raise AssertionError("a maildrop that is half rewritten was opened")


def fails_in_the_middle(site, kind, which):
    """The file system of spool or journal gives nothing but EIO from the middle of an update on."""
    disks = Disks(site)
    directory = disks.add("disk", kind, 320)
    if which == "spool":
        use_spool(site, directory)
    else:
        use_state(site, directory)
    site.add_user()
    manifest = Manifest(kind + which)
    site.put_mail(manifest.add_many(42 << 20, 1 << 20))
    os.sync()
    site.start(filler="false")  # a move takes long enough to be met
    for _ in range(10):
        client = check_session(site, manifest)
        deleted = manifest.numbers()[:1]
        dele(client, manifest, deleted)
        agent = stop_in_the_middle(site, client)
        if agent is not None:
            break
        client.close()
        manifest.delete(deleted)
    else:
        raise Skip("every update was faster than a signal")
    shut_down(directory, NO_LOG_FLUSH)
    os.kill(agent, signal.SIGCONT)
    try:
        client._getresp()  # then all was on disk already, as is seen below
    except poplib.error_proto as refusal:
        assert "[SYS/TEMP]" in str(refusal), refusal
        check_refused(site)
        site.wait_log("recovery for user")
    site.stop()
    disks.remount()
    status, text = site.recover()
    assert status == 0, text
    assert content(site) == manifest.without(deleted)
    manifest.delete(deleted)
    site.start()
    check_session(site, manifest).quit()


@test
def spool_on_ext4_fails(site):
    """EIO from the spool in the middle of an update: not acknowledged, nobody sees the rest, recovered later"""
    fails_in_the_middle(site, "ext4", "spool")


@test
def spool_on_xfs_fails(site):
    """the same on XFS"""
    fails_in_the_middle(site, "xfs", "spool")


@test
def journal_on_ext4_fails(site):
    """EIO from the journal in the middle of an update: the same holds"""
    fails_in_the_middle(site, "ext4", "journal")


@test
def thin_disk_under_the_journal(site):
    """a disk that promised more room than there is fails at the sync of the journal: refused, nothing changed"""
    need_root()
    outer = site.path("outer")
    os.mkdir(outer)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", outer], check=True)
    site.cleanups.append(lambda: subprocess.run(["umount", "-l", outer], capture_output=True))
    disks = Disks(site)
    use_state(site, disks.add("disk", "ext4", 320, inside=outer))
    site.add_user()
    manifest = Manifest("thin")
    site.put_mail(manifest.add_many(12 << 20, 1 << 20))
    site.start()
    client = check_session(site, manifest)
    deleted = manifest.numbers()[3:4]
    dele(client, manifest, deleted)
    os.sync()
    fill(outer)
    try:
        answer = client.quit()
    except poplib.error_proto as refusal:
        assert "[SYS/TEMP]" in str(refusal), refusal
    else:
        raise AssertionError("acknowledged without a journal: %r" % answer)
    assert content(site) == manifest.without(())
    os.unlink(os.path.join(outer, "filler"))
    site.stop()
    disks.remount()
    status, text = site.recover()
    assert status == 0, text
    if content(site) != manifest.without(()):
        manifest.delete(deleted)
    site.start()
    check_session(site, manifest).quit()


# ---- power cuts ----

class PowerCuts:
    """Rounds of: deliver, delete, cut off at a random moment of QUIT, mount again, recover, account for everything."""

    def __init__(self, site, disks, cut):
        self.site = site
        self.disks = disks
        self.cut = cut
        self.manifest = Manifest(repr(cut.__doc__))
        self.rng = self.manifest.rng
        self.longest = 0.1  # seconds of a QUIT: a guess that gets better
        self.outcomes = {"acknowledged": 0, "applied": 0, "undone": 0, "locks left": 0}

    def fill_up(self):
        """Mail for a large update, safely on disk."""
        if not os.path.exists(self.site.spool_path()):
            self.site.put_mail(b"")
        append(self.site, self.manifest.add_many(26 << 20, 1 << 20)
               if sum(map(len, self.manifest.messages.values())) < 20 << 20 else self.manifest.add(3000))
        os.sync()

    def pick(self):
        numbers = self.manifest.numbers()
        kinds = list(choices(numbers).values())[:4] + [sorted(self.rng.sample(numbers, len(numbers) // 4))]
        return self.rng.choice(kinds + [numbers] if self.rng.random() < 0.1 else kinds)

    def quit_and_cut(self, client):
        """Whether QUIT was acknowledged."""
        client.sock.settimeout(0.3)
        client._putcmd("QUIT")
        time.sleep(self.rng.random() * self.longest)
        self.cut()
        try:
            acknowledged = client._getresp().startswith(b"+OK")
        except (OSError, EOFError, poplib.error_proto):
            acknowledged = False
        return acknowledged

    def recover(self):
        """At boot by --recover, or by a start of the service."""
        if self.rng.random() < 0.5:
            status, text = self.site.recover(mail_lock_timeout=2)
            if status == 1 and "is locked by another process" in text:
                self.let_lock_grow_stale()
                status, text = self.site.recover()
            assert status == 0, text
            self.check()
        self.site.start()
        self.let_lock_grow_stale()

    def let_lock_grow_stale(self):
        """A dot-lock that reached the disk before anything that knows of it is only a name: time takes it away."""
        lock = self.site.spool_path() + ".lock"
        deadline = time.monotonic() + 3
        while os.path.exists(lock) and time.monotonic() < deadline:
            time.sleep(0.05)
        if os.path.exists(lock):
            assert os.path.getsize(lock) == 0, "a lock with a name in it was not removed"
            old = time.time() - 400
            os.utime(lock, (old, old))
            self.outcomes["locks left"] += 1

    def check(self):
        now = content(self.site)
        before, after = self.manifest.without(()), self.manifest.without(self.deleted)
        assert now in (before, after), differences(now, self.manifest, self.deleted)
        assert not self.acknowledged or now == after, "an acknowledged deletion has come back"
        return now == after

    def round(self):
        self.fill_up()
        client = check_session(self.site, self.manifest, fetched=1)
        self.deleted = self.pick()
        dele(client, self.manifest, self.deleted)
        self.acknowledged = self.quit_and_cut(client)
        client.close()
        self.site.kill_service()
        self.disks.remount()
        self.recover()
        wait_login(self.site).close()
        outcome = "undone"
        if self.check():
            self.manifest.delete(self.deleted)
            outcome = "acknowledged" if self.acknowledged else "applied"
        self.outcomes[outcome] += 1
        # the next cut comes earlier or later, so that most meet an update half done
        self.longest *= {"acknowledged": 0.7, "applied": 1, "undone": 1.3}[outcome]
        wait_login(self.site).close()

    def run(self, rounds=ROUNDS):
        self.site.add_user()
        self.site.start()
        for _ in range(rounds):
            self.round()
        print("# " + ", ".join("%d %s" % (count, outcome) for outcome, count in self.outcomes.items()))
        assert self.site.stop() == 0


def differences(now, manifest, deleted):
    """What is wrong, in words that fit a terminal."""
    text = ["%d bytes" % len(now)]
    for number, data in manifest.messages.items():
        count = now.count(data)
        if count > 1 or (count == 0 and number not in deleted):
            text.append("message %d of %d bytes is there %d times" % (number, len(data), count))
    return "; ".join(text[:20])


def cut_both(*directories):
    def cut():
        """shutdown"""
        for directory in directories:
            shut_down(directory, random.choice([LOG_FLUSH, NO_LOG_FLUSH]))
    return cut


def cuts_with_one_disk(site, kind):
    disks = Disks(site)
    directory = disks.add("disk", kind, 320)
    use_spool(site, directory)
    use_state(site, directory)
    PowerCuts(site, disks, cut_both(directory)).run()


def cuts_with_two_disks(site, kind):
    disks = Disks(site)
    spool = disks.add("disk", kind, 320)
    state = disks.add("journals", kind, 320)
    use_spool(site, spool)
    use_state(site, state)
    PowerCuts(site, disks, cut_both(spool, state)).run()


def cuts_under_the_disk(site, kind):
    """The file system lies on a disk that stops in an instant, with all that was not flushed to it."""
    disks = Disks(site)
    outer = disks.add("outer", "xfs", 900)
    directory = disks.add("disk", kind, 400, inside=outer)
    use_spool(site, directory)
    use_state(site, directory)

    def cut():
        """disk"""
        shut_down(outer, NO_LOG_FLUSH)
    PowerCuts(site, disks, cut).run()


@test
def cuts_on_ext4(site):
    """power cuts, ext4, journal on the same disk: each message is there once, in order, or was deleted"""
    cuts_with_one_disk(site, "ext4")


@test
def cuts_on_ext4_and_ext4(site):
    """power cuts, ext4, journal on another disk"""
    cuts_with_two_disks(site, "ext4")


@test
def cuts_on_xfs(site):
    """power cuts, XFS, journal on the same disk"""
    cuts_with_one_disk(site, "xfs")


@test
def cuts_on_xfs_and_xfs(site):
    """power cuts, XFS, journal on another disk"""
    cuts_with_two_disks(site, "xfs")


@test
def cuts_under_ext4(site):
    """power cuts below ext4: the device itself stops, and loses what was not flushed"""
    cuts_under_the_disk(site, "ext4")


@test
def cuts_under_xfs(site):
    """power cuts below XFS"""
    cuts_under_the_disk(site, "xfs")


@test
def cuts_under_btrfs(site):
    """power cuts below Btrfs, which has no shutdown of its own"""
    cuts_under_the_disk(site, "btrfs")


if __name__ == "__main__":
    main()
