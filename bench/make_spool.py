#!/usr/bin/env python3
"""Make mbox maildrops with realistic contents, the same ones each time.

    make_spool.py DIRECTORY PREFIX COUNT MESSAGES OCTETS [--uid FIRST] [--gid GID] [--one-owner]

makes DIRECTORY/PREFIX0 to DIRECTORY/PREFIX<COUNT-1>, copies of one mbox of MESSAGES messages and
about OCTETS octets. Maildrop number N belongs to user FIRST+N, or to FIRST with --one-owner.
Messages are plain 8-bit text or multiparts with base64; among their lines are such as begin with
dots, with ">From ", and ones of some thousand octets.
"""
import argparse
import base64
import os
import random
import time

FIRST_DATE = 1_750_000_000
WORDS = """account archive attached before bench copy deliver draft every folder from header index
invoice journal kind letter line mailbox message note octet order parcel quota reader receipt reply
spool session table thread unread update verify warehouse window yesterday""".split()
UNUSUAL = [
    b".",
    b"..",
    b".profile and other names with a dot",
    b">From the one that was quoted",
    b">>From the one that was quoted twice",
    b"\tafter a tab",
    b"blanks at the end    ",
    b"",
    "Käse, façade, naïve – and a dash".encode(),
    b"octets of Latin-1: \xe4\xf6\xfc\xdf\xff",
]


def text_line(source):
    chance = source.random()
    if chance < 0.1:
        return source.choice(UNUSUAL)
    if chance < 0.103:
        return b"long-" * source.randrange(200, 1500)
    return " ".join(source.choices(WORDS, k=source.randrange(2, 12))).encode()


def text(source, octets):
    lines = []
    while octets > 0:
        lines.append(text_line(source))
        octets -= len(lines[-1]) + 1
    return b"\n".join(lines) + b"\n"


def multipart(source, octets, boundary):
    part = b"--" + boundary
    words = text(source, octets // 4)
    data = base64.encodebytes(source.randbytes(max(60, (octets - len(words)) * 3 // 4)))
    return b"".join([
        b"For readers without MIME.\n", part, b"\nContent-Type: text/plain; charset=utf-8\n\n",
        words, part, b"\nContent-Type: application/pdf\nContent-Transfer-Encoding: base64\n\n",
        data, part, b"--\n"])


def message(source, number, octets):
    date = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(FIRST_DATE + 61 * number))
    boundary = b"part-%08x" % source.getrandbits(32)
    parts = number % 2 == 1
    kind = b'multipart/mixed; boundary="%s"' % boundary if parts else b"text/plain; charset=utf-8"
    fields = [
        "Return-Path: <writer%d@example.com>" % (number % 50),
        "Received: from relay%d.example.com (relay%d.example.com [192.0.2.%d])"
        % (number % 9, number % 9, number % 200),
        "\tby mail.example.org with ESMTPS id %012X; %s" % (source.getrandbits(48), date),
        "Message-ID: <%d.%016x@example.com>" % (number, source.getrandbits(64)),
        "Date: " + date,
        "From: Writer %d <writer%d@example.com>" % (number % 50, number % 50),
        "To: reader@example.org",
        "Subject: " + " ".join(source.choices(WORDS, k=5)),
        "MIME-Version: 1.0",
    ]
    head = "\n".join(fields).encode() + b"\nContent-Type: " + kind + b"\n\n"
    rest = max(100, octets - len(head))
    return head + (multipart(source, rest, boundary) if parts else text(source, rest))


def mbox(messages, octets):
    source = random.Random(messages)
    shares = [source.lognormvariate(0, 0.8) for _ in range(messages)]
    unit = octets / sum(shares)
    out = []
    for number, share in enumerate(shares):
        date = time.asctime(time.gmtime(FIRST_DATE + 61 * number + 5))
        out.append(b"From writer%d@example.com %s\n" % (number % 50, date.encode()))
        out.append(message(source, number, int(share * unit)))
        out.append(b"\n")
    return b"".join(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory")
    parser.add_argument("prefix")
    parser.add_argument("count", type=int)
    parser.add_argument("messages", type=int)
    parser.add_argument("octets", type=int)
    parser.add_argument("--uid", type=int, default=os.getuid())
    parser.add_argument("--gid", type=int, default=os.getgid())
    parser.add_argument("--one-owner", action="store_true")
    options = parser.parse_args()
    contents = mbox(options.messages, options.octets)
    for number in range(options.count):
        path = os.path.join(options.directory, "%s%d" % (options.prefix, number))
        with open(path, "wb") as spool:
            spool.write(contents)
        os.chmod(path, 0o660)
        os.chown(path, options.uid + (0 if options.one_owner else number), options.gid)


if __name__ == "__main__":
    main()
