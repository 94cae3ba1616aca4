#!/usr/bin/env python3
"""server-mode off: the mail is in the session file during a session, and back in the spool after it."""
import os
import poplib
import time

from harness import *  # noqa: F403


def temp_drop(site, user="user"):
    return os.path.join(os.path.dirname(site.spool_path(user)), ".%s.pop" % user)


def append(site, number, path=None):
    with open(path or site.spool_path(), "a") as spool:
        spool.write(message(number))


def wait_for_spool(site, numbers):
    expected = "".join(message(number) for number in numbers).encode()
    wait_until(lambda: os.path.exists(site.spool_path()) and site.read_mail() == expected, 10,
               "the spool to hold %s" % list(numbers))


def contents(path):
    with open(path, "rb") as file:
        return file.read()


def deliver(site, *numbers):
    site.put_mail([message(number) for number in numbers])


@test
def mail_moves_there_and_back(site):
    """the spool is empty during the session; what is left comes back in front of what has arrived"""
    site.add_user()
    deliver(site, 1, 2, 3)
    inode = os.stat(site.spool_path()).st_ino
    site.start(server_mode="false")
    client = site.login()
    assert client.stat()[0] == 3
    assert site.read_mail() == b""
    assert contents(temp_drop(site)) == "".join(message(n) for n in (1, 2, 3)).encode()
    append(site, 4)
    client.dele(2)
    client.quit()
    wait_for_spool(site, (1, 3, 4))
    assert os.stat(site.spool_path()).st_ino == inode
    assert not os.path.exists(temp_drop(site))
    assert not os.path.exists(site.spool_path() + ".lock")
    client = site.login()
    assert client.stat()[0] == 3
    client.dele(1)
    client.dele(2)
    client.dele(3)
    client.quit()
    assert site.read_mail() == b""


@test
def ends_without_deletions(site):
    """QUIT without a deletion and a connection that breaks put everything back, too"""
    site.add_user()
    deliver(site, 1, 2)
    site.start(server_mode="false")
    client = site.login()
    client.retr(1)
    client.quit()
    assert site.read_mail() == (message(1) + message(2)).encode()
    client = wait_login(site)
    client.dele(1)
    append(site, 3)
    client.sock.close()
    client.file.close()
    wait_for_spool(site, (1, 2, 3))


@test
def uids_stay(site):
    """unique-ids are the same in both modes, also of twins"""
    site.add_user()
    deliver(site, 1, 1, 2, 1)
    site.start()
    client = site.login()
    before = client.uidl()[1]
    client.quit()
    site.stop()
    site.start(server_mode="false")
    client = wait_login(site)
    assert client.uidl()[1] == before
    client.dele(1)
    client.quit()
    client = wait_login(site)
    assert [line.split()[1] for line in client.uidl()[1]] == [line.split()[1] for line in before[1:]]
    client.quit()


@test
def left_over(site):
    """mail in a session file that a crash (or the Qpopper of old) left is put back, whatever the mode"""
    site.add_user()
    deliver(site, 2)
    with open(temp_drop(site), "w") as file:
        file.write(message(1))
    os.chmod(temp_drop(site), 0o600)
    os.chown(temp_drop(site), *site.owner_of("user"))
    site.start()
    client = site.login()
    assert client.stat()[0] == 2
    client.quit()
    wait_for_spool(site, (1, 2))
    site.wait_log("session of user")
    client = wait_login(site)
    assert site.read_mail() != b"", "server mode again"
    client.quit()


@test
def left_over_that_is_no_mail(site):
    """a left-over that does not begin with a separator line: [SYS/PERM], and nothing is touched"""
    site.add_user()
    deliver(site, 2)
    with open(temp_drop(site), "w") as file:
        file.write("garbage\n")
    os.chown(temp_drop(site), *site.owner_of("user"))
    site.start()
    try:
        site.login()
        raise AssertionError("the login was accepted")
    except poplib.error_proto as answer:
        assert "[SYS/PERM]" in str(answer), answer
    assert contents(temp_drop(site)) == b"garbage\n"
    assert site.read_mail() == message(2).encode()


@test
def missing_spool(site):
    """without a spool there is an empty maildrop; mail of a left-over gets a spool made for it"""
    site.add_user()
    site.start(server_mode="false")
    client = site.login()
    assert client.stat() == (0, 0)
    client.quit()
    site.stop()
    with open(temp_drop(site), "w") as file:
        file.write(message(1))
    os.chown(temp_drop(site), *site.owner_of("user"))
    if os.path.exists(site.spool_path()):
        os.unlink(site.spool_path())
    site.start(server_mode="false")
    client = site.login()
    assert client.stat()[0] == 1
    client.quit()
    wait_for_spool(site, (1,))
    status = os.stat(site.spool_path())
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == site.owner_of("user") + (0o600,)


@test
def keep_temp_drop(site):
    """keep-temp-drop leaves the session file, empty"""
    site.add_user()
    deliver(site, 1)
    site.start(server_mode="false", keep_temp_drop="true")
    client = site.login()
    client.quit()
    wait_for_spool(site, (1,))
    wait_until(lambda: os.stat(temp_drop(site)).st_size == 0, 10, "an empty session file")
    time.sleep(0.2)
    assert os.path.exists(temp_drop(site))
    wait_login(site).quit()


@test
def killed_processes(site):
    """workers and monitors that are killed during sessions lose and double nothing"""
    site.add_user()
    deliver(site, *range(1, 31))
    site.start(server_mode="false")
    for number, name in enumerate(("qpopper-worker", "qpopper-monitor", None) * 2):
        client = wait_login(site)
        client.dele(1)
        append(site, 100 + number)
        if name is None:
            site.kill_service()
            site.start(server_mode="false")
        else:
            kill_all(site.processes(name))
        client.close()
    client = wait_login(site)
    assert client.stat()[0] == 36
    client.quit()
    wait_for_spool(site, list(range(1, 31)) + list(range(100, 106)))


@test
def killed_at_quit(site):
    """everything is killed at random moments of QUIT: every message is there once, or deleted"""
    site.add_user()
    deliver(site, *range(1, 401))
    expected = [message(number) for number in range(1, 401)]
    site.start(server_mode="false")
    for round_number in range(8):
        client = wait_login(site)
        assert client.stat()[0] == len(expected)
        client.dele(1)
        client._putcmd("QUIT")
        time.sleep(round_number * 0.002)
        site.kill_service()
        site.start(server_mode="false")
        client = wait_login(site)
        count = client.stat()[0]
        assert count in (len(expected), len(expected) - 1), count
        if count < len(expected):
            expected.pop(0)
        client.quit()
        wait_until(lambda: site.read_mail() == "".join(expected).encode(), 10, "the whole spool")
    client.close()


if __name__ == "__main__":
    main()
