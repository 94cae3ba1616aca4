#!/usr/bin/env python3
"""Mail programs of the field collect a maildrop; what they get is what lay in the spool."""
import os
import poplib
import random
import socket
import ssl
import subprocess

from harness import *  # noqa: F403

ODD_BODIES = (
    "Plain text.\n",
    ".\n..\n...\n.leading dot\nend.\n.\n",
    "From the middle of a sentence\n\nFrom nobody, not a date\n>From quoted\n",
    "Gr\xfc\xdfe, 8-bit \xa4\xff\xe4\n",
    "a" * 900 + "\n" + "b" * 990 + "\n\n\n\nempty lines in between\n",
    "tabs\tand blanks at the end  \t\n",
    "last line is a dot\n.\n",
)


# ---- the maildrop and the comparison ----

def fill_maildrop(site):
    """A user with several messages, and the daemon; the contents as they stand in the spool."""
    site.add_user()
    mail = [message(number, body) for number, body in enumerate(ODD_BODIES, 1)]
    site.put_mail(mail)
    site.start(max_connections_per_address=50)
    return [as_sent(m).replace(b"\r\n", b"\n") for m in mail]


def run_program(site, *arguments, environment=None, good=(0,)):
    """Run a client to its end; its output goes into the failure report."""
    run = subprocess.run(arguments, env={**os.environ, "HOME": site.directory, **(environment or {})},
                         stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
    if run.returncode not in good:
        raise AssertionError("%s ended with %d:\n%s" % (arguments[0], run.returncode, run.stdout.decode("latin-1")))
    return run.stdout


def make_delivery_script(site):
    """A delivery agent that stores its standard input as inbox/1, inbox/2 and so on."""
    os.makedirs(site.path("inbox"), exist_ok=True)
    with open(site.path("deliver"), "w") as script:
        script.write("#!/bin/sh\nset -e\ncd '%s'\nnumber=$(ls | wc -l)\ncat > $((number + 1))\n" % site.path("inbox"))
    os.chmod(site.path("deliver"), 0o755)
    return site.path("deliver")


def take_inbox(site):
    """What the script has stored, in the order of arrival; the inbox is empty then."""
    contents = []
    for name in sorted(os.listdir(site.path("inbox")), key=int):
        with open(site.path("inbox", name), "rb") as file:
            contents.append(file.read())
        os.unlink(site.path("inbox", name))
    return contents


def compare(received, wanted):
    """Byte for byte, message by message."""
    assert len(received) == len(wanted), "%d messages in place of %d" % (len(received), len(wanted))
    for number, (got, want) in enumerate(zip(received, wanted), 1):
        assert got == want, "message %d:\n%r\nin place of\n%r" % (number, got, want)


def write_private(path, text):
    with open(path, "w") as file:
        file.write(text)
    os.chmod(path, 0o600)
    return path


# ---- curl ----

def curl(site, kind):
    """All messages by URL, one after the other over one connection."""
    url = "pop3s://localhost:%d" % site.tls_port if kind == "tls" else "pop3://localhost:%d" % site.port
    options = ["--ssl-reqd"] if kind == "stls" else []
    base = ["curl", "-sS", "--fail", "--cacert", site.path("cert.pem"), "-u", "user:" + PASSWORD, *options]
    listing = run_program(site, *base, url + "/").split(b"\r\n")
    count = len([line for line in listing if line])
    run_program(site, *base, "%s/[1-%d]" % (url, count), "-o", site.path("curl.#1"))
    received = []
    for number in range(1, count + 1):
        with open(site.path("curl.%d" % number), "rb") as file:
            received.append(file.read())
    return received


@test
def curl_collects(site):
    """curl: plain, STLS and implicit TLS"""
    need_program("curl")
    wanted = [content.replace(b"\n", b"\r\n") for content in fill_maildrop(site)]
    for kind in None, "stls", "tls":
        compare(curl(site, kind), wanted)


# ---- fetchmail ----

def fetchmail(site, kind, keep):
    """One poll that hands each message to the script."""
    port = site.tls_port if kind == "tls" else site.port
    tls = {None: 'sslproto ""', "stls": 'sslproto "tls1.2+" sslcertck sslcertfile "%s"',
           "tls": 'ssl sslproto "tls1.2+" sslcertck sslcertfile "%s"'}[kind]
    if kind:
        tls %= site.path("cert.pem")
    rc = write_private(site.path("fetchmailrc"), (
        'set no syslog\nset no bouncemail\nset invisible\n'
        'poll localhost protocol pop3 port %d timeout 20 no dns\n'
        '  user "user" password "%s" is root here\n  mda "%s" no rewrite fetchall pass8bits %s %s\n'
        % (port, PASSWORD, make_delivery_script(site), tls, "keep" if keep else "nokeep")))
    run_program(site, "fetchmail", "-v", "-v", "-f", rc, "--nodetach", "--pidfile", site.path("fetchmail.pid"),
                "--idfile", site.path("fetchids"), environment={"FETCHMAILHOME": site.directory})
    return take_inbox(site)


@test
def fetchmail_collects(site):
    """fetchmail: plain, STLS and implicit TLS, first keeping, then deleting"""
    need_program("fetchmail")
    wanted = fill_maildrop(site)
    before = site.read_mail()
    for kind in None, "stls", "tls":
        compare(fetchmail(site, kind, keep=True), wanted)
        assert site.read_mail() == before
    for kind in None, "stls", "tls":
        site.put_mail(before)
        compare(fetchmail(site, kind, keep=False), wanted)
        assert site.read_mail() == b"", "messages are left after " + str(kind)


# ---- mpop ----

def mpop(site, kind, keep):
    port = site.tls_port if kind == "tls" else site.port
    conf = write_private(site.path("mpoprc"), (
        "account default\nhost localhost\nport %d\nuser user\npassword \"%s\"\nauth user\ntimeout 20\n"
        "delivery mda \"%s\"\nreceived_header off\nkeep %s\nonly_new off\nuidls_file %s\n"
        "tls %s\ntls_starttls %s\n%s"
        % (port, PASSWORD, make_delivery_script(site), "on" if keep else "off", site.path("uidls"),
           "on" if kind else "off", "on" if kind == "stls" else "off",
           "tls_trust_file %s\n" % site.path("cert.pem") if kind else "")))
    run_program(site, "mpop", "--file=" + conf, "--debug")
    return take_inbox(site)


@test
def mpop_collects(site):
    """mpop, which pipelines: plain, STLS and implicit TLS, first keeping, then deleting"""
    need_program("mpop")
    wanted = fill_maildrop(site)
    before = site.read_mail()
    for kind in None, "stls", "tls":
        compare(mpop(site, kind, keep=True), wanted)
        assert site.read_mail() == before
    for kind in None, "stls", "tls":
        site.put_mail(before)
        compare(mpop(site, kind, keep=False), wanted)
        assert site.read_mail() == b"", "messages are left after " + str(kind)


# ---- getmail ----

def getmail(site, kind, keep):
    tls = kind == "tls"
    write_private(site.path("getmailrc"), (
        "[retriever]\ntype = %s\nserver = localhost\nport = %d\nusername = user\npassword = %s\n%s"
        "[destination]\ntype = MDA_external\npath = %s\nallow_root_commands = true\n"
        "[options]\ndelete = %s\nread_all = true\ndelivered_to = false\nreceived = false\n"
        % ("SimplePOP3SSLRetriever" if tls else "SimplePOP3Retriever", site.tls_port if tls else site.port, PASSWORD,
           "ca_certs = %s\n" % site.path("cert.pem") if tls else "", make_delivery_script(site),
           "false" if keep else "true")))
    os.makedirs(site.path("getmail"), exist_ok=True)
    run_program(site, "getmail", "--getmaildir", site.path("getmail"), "--rcfile", site.path("getmailrc"))
    return take_inbox(site)


def envelope_cut(content):
    """The MDA of getmail gets a Return-Path and no more; without it the message as it was."""
    return content.split(b"\n", 1)[1] if content.startswith(b"Return-Path:") else content


@test
def getmail_collects(site):
    """getmail: plain and implicit TLS (it cannot do STLS), first keeping, then deleting"""
    need_program("getmail")
    wanted = fill_maildrop(site)
    before = site.read_mail()
    for kind in None, "tls":
        compare([envelope_cut(content) for content in getmail(site, kind, keep=True)], wanted)
        assert site.read_mail() == before
    for kind in None, "tls":
        site.put_mail(before)
        compare([envelope_cut(content) for content in getmail(site, kind, keep=False)], wanted)
        assert site.read_mail() == b"", "messages are left after " + str(kind)


# ---- poplib ----

@test
def poplib_collects(site):
    """Python's poplib: plain, STLS and implicit TLS, deleting with the last"""
    wanted = [content.replace(b"\n", b"\r\n") for content in fill_maildrop(site)]
    for kind in None, "stls", "tls":
        client = site.login(tls=kind)
        compare([retrieve(client, number) for number in range(1, len(wanted) + 1)], wanted)
        if kind == "tls":
            for number in range(1, len(wanted) + 1):
                client.dele(number)
        client.quit()
    assert site.read_mail() == b""


# ---- Net::POP3 ----

NET_POP3 = r"""
use strict; use warnings; use Net::POP3;
my ($kind, $port, $certificate, $password, $directory, $delete) = @ARGV;
my @tls = (SSL_ca_file => $certificate, SSL_verifycn_name => 'localhost');
my $pop = Net::POP3->new('127.0.0.1', Port => $port, Timeout => 20, $kind eq 'tls' ? (SSL => 1, @tls) : ())
    or die "connect: $@";
$pop->starttls(@tls) or die "STLS: ", $pop->message if $kind eq 'stls';
my $count = $pop->login('user', $password);
defined $count or die "login: ", $pop->message;
for my $number (1 .. $count) {
    my $lines = $pop->get($number) or die "RETR $number: ", $pop->message;
    open my $file, '>:raw', "$directory/$number" or die $!;
    print $file @$lines;
    close $file or die $!;
    $pop->delete($number) or die "DELE: ", $pop->message if $delete;
}
$pop->quit or die "QUIT: ", $pop->message;
"""


def net_pop3(site, kind, delete):
    os.makedirs(site.path("inbox"), exist_ok=True)
    run_program(site, "perl", "-e", NET_POP3, kind or "plain", str(site.tls_port if kind == "tls" else site.port),
                site.path("cert.pem"), PASSWORD, site.path("inbox"), "1" if delete else "")
    contents = take_inbox(site)
    if kind:  # then the lines come from IO::Socket::SSL, which leaves their ends as they are
        assert all(content.count(b"\n") == content.count(b"\r\n") for content in contents)
        contents = [content.replace(b"\r\n", b"\n") for content in contents]
    return contents


@test
def net_pop3_collects(site):
    """Perl's Net::POP3: plain, and STLS and implicit TLS where IO::Socket::SSL is there"""
    need_program("perl")
    if subprocess.run(["perl", "-MNet::POP3", "-e", "1"], capture_output=True).returncode != 0:
        raise Skip("Net::POP3 is not installed")
    kinds = [None, "stls", "tls"]
    if subprocess.run(["perl", "-MIO::Socket::SSL", "-e", "1"], capture_output=True).returncode != 0:
        print("# without IO::Socket::SSL: plain only")
        kinds = [None]
    wanted = fill_maildrop(site)
    before = site.read_mail()
    for kind in kinds:
        compare(net_pop3(site, kind, delete=False), wanted)
        assert site.read_mail() == before
        compare(net_pop3(site, kind, delete=True), wanted)
        assert site.read_mail() == b""
        site.put_mail(before)


# ---- 500 generated messages ----

SEPARATOR = b"From sender@example.org Sat Nov 21 12:00:00 2026\n"


def random_line(rng):
    """One line of a body with its end, of any kind that a spool may hold."""
    kind = rng.randrange(14)
    if kind == 0:
        return b"." * rng.randrange(1, 4) + rng.choice((b"\n", b"\r\n", b"x\n", b"\r.\n"))
    if kind == 1:
        return rng.choice((b"From here on\n", b">From quoted\n", b"From \n", b"from x Sat Nov 21 12:00:00 2026\n",
                           b"From x Sat Nov 21 12:00:00 2026 and more\n"))
    if kind == 2:
        return bytes(rng.randrange(128, 256) for _ in range(rng.randrange(1, 200))) + b"\n"
    if kind == 3:
        return b"nul\0in\0\0the middle\0\n"
    if kind == 4:
        return bytes([rng.randrange(33, 127)]) * rng.choice((998, 2048, 4095, 4096, 4097, 8192, 16384, 70000)) + b"\n"
    if kind == 5:
        return b"CRLF in the spool\r\n"
    if kind == 6:
        return b"CR \r in the \r\r middle\n"
    if kind == 7:
        return b"\n" * rng.randrange(1, 4)
    if kind == 8:
        return b"text right before\n" + SEPARATOR
    if kind == 9:
        return b"\r\n" + SEPARATOR
    return b"word " * rng.randrange(1, 20) + b"\n"


def random_message(rng, number):
    """The content of a message: headers, and in most cases a body."""
    header = b"From: sender@example.org\nSubject: message %d\nX-Long: %s\n" % (number, b"h" * rng.randrange(0, 1200))
    shape = rng.randrange(12)
    if shape == 0:
        return header  # not even the empty line
    if shape == 1:
        return header + b"\n"  # no body
    if shape == 2:
        return header.replace(b"\n", b"\r\n") + b"\r\n" + b"body\r\n" * rng.randrange(0, 9)
    return header + b"\n" + b"".join(random_line(rng) for _ in range(rng.randrange(0, 40)))


def wire_form(content):
    """CRLF for every LF that has none, and at the end."""
    lines = content.split(b"\n")
    unfinished = lines.pop()
    sent = b"".join(line + (b"\n" if line.endswith(b"\r") else b"\r\n") for line in lines)
    if unfinished:
        sent += unfinished + (b"\n" if unfinished.endswith(b"\r") else b"\r\n")
    return sent


def multi_line(content, body_lines=None):
    """What the server must send after the first line of its answer."""
    lines = content.split(b"\r\n")
    if body_lines is not None:
        end = lines.index(b"") if b"" in lines[:-1] else len(lines) - 1
        lines = lines[:end + 1 + body_lines] + [b""] if end + 1 + body_lines < len(lines) else lines
    # a line begins behind each LF that ends one: bare CRs and LFs do not occur after wire_form
    return b"\r\n".join(b"." + line if line.startswith(b".") else line for line in lines) + b".\r\n"


def generated_maildrop(count):
    rng = random.Random(19391121)
    contents = [random_message(rng, number) for number in range(1, count + 1)]
    contents[-1] += b"\nthe last line has no end\n."
    spool = b"".join(SEPARATOR + content + b"\n" for content in contents)[:-1]
    return spool, contents


class Answers:
    """Reads a server's answers from a socket."""

    def __init__(self, client):
        self.file = client.makefile("rb")

    def line(self):
        line = self.file.readline()
        assert line.startswith(b"+OK") and line.endswith(b"\r\n"), line
        return line

    def body(self):
        """A multi-line answer behind its first line, with the dots as sent."""
        lines = []
        while True:
            line = self.file.readline()
            assert line, "closed within an answer"
            lines.append(line)
            if line == b".\r\n":
                return b"".join(lines)


def check_pipelined(client, sent):
    """STAT, LIST, all of RETR and TOP, in one write, against what must come."""
    count = len(sent)
    commands = b"USER user\r\nPASS %s\r\nSTAT\r\nLIST\r\n" % PASSWORD.encode()
    commands += b"".join(b"LIST %d\r\nRETR %d\r\nTOP %d 3\r\n" % (i, i, i) for i in range(1, count + 1))
    client.sendall(commands + b"QUIT\r\n")
    answers = Answers(client)
    answers.line()
    answers.line()
    assert answers.line().split()[1:3] == [b"%d" % count, b"%d" % sum(map(len, sent))]
    answers.line()
    assert answers.body() == b"".join(b"%d %d\r\n" % (i, len(m)) for i, m in enumerate(sent, 1)) + b".\r\n"
    for number, content in enumerate(sent, 1):
        assert answers.line().split()[1:3] == [b"%d" % number, b"%d" % len(content)]
        answers.line()
        assert answers.body() == multi_line(content), "RETR %d" % number
        answers.line()
        assert answers.body() == multi_line(content, 3), "TOP %d 3" % number
    answers.line()
    assert answers.file.read() == b""


@test
def five_hundred_pipelined(site):
    """500 generated messages, pipelined over a socket and over TLS: every octet and every count"""
    spool, contents = generated_maildrop(500)
    sent = [wire_form(content) for content in contents]
    site.add_user()
    site.put_mail(spool)
    site.start()
    with site.raw(60) as client:
        check_pipelined(client, sent)
    context = ssl.create_default_context(cafile=site.path("cert.pem"))
    with socket.create_connection(("127.0.0.1", site.tls_port), 60) as plain, \
            context.wrap_socket(plain, server_hostname="localhost") as client:
        assert client.recv(600).startswith(b"+OK")
        check_pipelined(client, sent)
    assert site.read_mail() == spool


@test
def five_hundred_by_poplib(site):
    """500 generated messages by poplib, plain and TLS; then every other one is deleted"""
    spool, contents = generated_maildrop(500)
    sent = [wire_form(content) for content in contents]
    poplib._MAXLINE = 1 << 20
    site.add_user()
    site.put_mail(spool)
    site.start()
    for kind in None, "stls":
        client = site.login(tls=kind)
        assert client.stat() == (500, sum(map(len, sent)))
        assert [int(line.split()[1]) for line in client.list()[1]] == [len(m) for m in sent]
        for number, content in enumerate(sent, 1):
            assert retrieve(client, number) == content, "message %d" % number
        if kind:
            for number in range(2, 501, 2):
                client.dele(number)
        client.quit()
    assert site.read_mail() == b"".join(SEPARATOR + content + b"\n" for content in contents[::2])


if __name__ == "__main__":
    main()
