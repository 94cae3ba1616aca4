#!/usr/bin/env python3
"""popper --recover: what a crash has left is finished while no service runs, and nobody is left locked out."""
import fcntl
import os
import signal
import subprocess
import time

from harness import *  # noqa: F403


def check_free(site):
    """No lock is left on the maildrop, and nothing of the recovery is still running."""
    assert not os.path.exists(site.spool_path() + ".lock")
    with open(site.spool_path(), "r+b") as spool:
        fcntl.lockf(spool, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(spool, fcntl.LOCK_EX | fcntl.LOCK_NB)
    session = os.path.join(site.spool, ".user.pop")
    if os.path.exists(session):
        with open(session, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not [name for name in os.listdir(site.state) if name.startswith("monitor.")]


@test
def finishes_an_interrupted_update(site):
    """the service dies in the middle of a large move: --recover finishes it and leaves no lock"""
    mail = kill_everything_during_update(site)
    status, text = site.recover()
    assert status == 0, text
    assert "recovering the update of user" in text, text
    assert site.read_mail() == "".join(mail[1:]).encode()
    check_free(site)
    status, text = site.recover()
    assert (status, text) == (0, ""), text
    site.start()
    client = site.login()
    assert client.stat()[0] == 47
    client.quit()


@test
def nothing_to_do(site):
    """without any state it says nothing, and listens nowhere"""
    status, text = site.recover(tls_server_cert_file="/nonexistent", listen="203.0.113.1:1")
    assert (status, text) == (0, ""), text


@test
def refuses_a_bad_configuration(site):
    """errors in the settings are shown, and nothing is tried"""
    status, text = site.recover(no_such_option="1")
    assert status == 1 and "no-such-option" in text, text


@test
def locked_maildrop_is_named(site):
    """a maildrop that somebody keeps locked is waited for, then named; the next try finishes it"""
    mail = kill_everything_during_update(site)
    lock = site.spool_path() + ".lock"
    with open(lock + ".new", "w") as file:
        file.write("%d@%s" % (os.getpid(), os.uname().nodename))
    os.rename(lock + ".new", lock)
    half = site.read_mail()
    began = time.monotonic()
    status, text = site.recover(mail_lock_timeout=2)
    assert 2 <= time.monotonic() - began < 10
    assert status == 1, text
    assert "the update of user" in text and "locked by another process" in text, text
    assert "1 interrupted update" in text, text
    assert site.read_mail() == half
    os.unlink(lock)
    status, text = site.recover()
    assert status == 0, text
    assert site.read_mail() == "".join(mail[1:]).encode()
    check_free(site)


@test
def rewritten_spool_is_left_alone(site):
    """another program's new spool is not touched; the journal is set aside, and nothing is pending"""
    kill_everything_during_update(site)
    site.put_mail([message(7)])
    status, text = site.recover()
    assert status == 0, text
    assert "rewritten by another program" in text, text
    assert site.read_mail() == message(7).encode()
    assert any(name.startswith("foreign-") for name in os.listdir(site.path("state", "journal")))
    check_free(site)


@test
def running_service_keeps_its_updates(site):
    """beside a service nothing is taken out of its hands: its update goes on, and --recover says so"""
    mail, client, agent = stop_update(site)
    try:
        status, text = site.recover(mail_lock_timeout=2)
    finally:
        os.kill(agent, signal.SIGCONT)
    assert status == 1 and "a running service" in text, text
    assert client._getresp().startswith(b"+OK")
    assert site.read_mail() == "".join(mail[1:]).encode()
    status, text = site.recover()
    assert (status, text) == (0, ""), text


@test
def ended_in_the_middle(site):
    """--recover itself killed again and again at random moments: the update is finished all the same"""
    mail = kill_everything_during_update(site)
    site.write_settings()
    for tries in range(6):
        run = subprocess.Popen([os.path.join(BUILD, "popper"), "--recover", "-f", site.path("popper.conf")],
                               stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.004 * (tries + 1))
        for pid in [run.pid, *children_of(run.pid)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        run.wait()
    status, text = site.recover()
    assert status == 0, text
    assert site.read_mail() == "".join(mail[1:]).encode()
    check_free(site)


if __name__ == "__main__":
    main()
