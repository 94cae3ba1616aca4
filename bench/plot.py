#!/usr/bin/env python3
"""Draw the figures of bench/scale: cost against the size of the maildrop, both in powers of ten.

    plot.py FIGURES.tsv DIRECTORY

writes check.svg, first-check.svg, deletions.svg and fetching.svg into DIRECTORY.
"""
import html
import math
import os
import sys

WIDTH, HEIGHT = 830, 460
LEFT, TOP, RIGHT, BOTTOM = 70, 40, 300, 55 # margins; the legend is on the right
COLOURS = ("#0b6e4f", "#c1121f", "#1d4e89", "#e08e0b", "#7b2d8b", "#5c5c5c", "#00a6a6", "#8c564b")

# file, title, unit of the value axis, [(server, measure, label, dashed)]
PLOTS = [
    ("check", "Repeated check", "ms", [
        (server, measure, "%s, %s" % (server, label), dashed)
        for server in ("popper", "popa3d", "Dovecot mbox")
        for measure, label, dashed in (("check with listings ms", "with LIST and UIDL", False),
                                       ("check ms", "STAT only", True))]),
    ("first-check", "First check, without an index", "ms", [
        (server, "first check ms", server, False)
        for server in ("popper", "popa3d", "Dovecot mbox")]),
    ("deletions", "QUIT after deletions, until the locks are free", "ms", [
        ("popper", "QUIT newest, locks free ms", "popper, newest", False),
        ("popper", "QUIT middle, locks free ms", "popper, one in the middle", False),
        ("popper", "QUIT oldest tenth, locks free ms", "popper, oldest tenth", False),
        ("popper", "QUIT every second, locks free ms", "popper, every second", False),
        ("popa3d", "QUIT middle, locks free ms", "popa3d, one in the middle (not synced)", True),
        ("the machine", "QUIT middle ms", "raw move of half the file", True),
        ("the machine", "copy ms", "raw copy of the file", True)]),
    ("fetching", "RETR of everything", "MB/s", [
        ("the machine", "RETR pipelined MB/s", "sendfile, one stream", True),
        ("popper", "RETR pipelined MB/s", "popper, pipelined", False),
        ("popper", "RETR pipelined, TLS 1.3 MB/s", "popper, TLS 1.3", False),
        ("popper", "RETR one by one MB/s", "popper, one by one", False),
        ("popa3d", "RETR pipelined MB/s", "popa3d, pipelined", False),
        ("Dovecot mbox", "RETR pipelined MB/s", "Dovecot mbox, pipelined", False),
        ("Dovecot mbox", "RETR pipelined, TLS 1.3 MB/s", "Dovecot mbox, TLS 1.3", False)]),
]


def read(path):
    """The figures as {(server, measure): [(octets, value), ...]}, and the file system."""
    with open(path) as lines:
        rows = [line.rstrip("\n").split("\t") for line in lines][1:]
    octets = {row[1]: float(row[4]) for row in rows if row[3] == "octets"}
    figures = {}
    for _, messages, server, measure, value in rows:
        figures.setdefault((server, measure), []).append((octets[messages], float(value)))
    return {key: sorted(points) for key, points in figures.items()}, rows[0][0]


class Axis:
    """Powers of ten between two ends of a line of the picture."""

    def __init__(self, values, begin, end):
        self.least = math.floor(math.log10(min(values)) + 1e-9)
        self.most = max(math.ceil(math.log10(max(values)) - 1e-9), self.least + 1)
        self.begin, self.end = begin, end

    def at(self, value):
        share = (math.log10(value) - self.least) / (self.most - self.least)
        return self.begin + share * (self.end - self.begin)

    def powers(self):
        return [10.0 ** exponent for exponent in range(self.least, self.most + 1)]

    def steps(self):
        return [power * n for power in self.powers()[:-1] for n in range(2, 10)]


def size_label(octets):
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if octets >= unit:
            return "%g %s" % (octets / unit, name)
    return "%g B" % octets


def text(x, y, content, anchor="middle", extra=""):
    return '<text x="%.1f" y="%.1f" text-anchor="%s"%s>%s</text>' % (
        x, y, anchor, extra, html.escape(content))


def rule(x1, y1, x2, y2, colour, extra=""):
    return '<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s"%s/>' % (
        x1, y1, x2, y2, colour, extra)


def draw_axes(title, unit, across, up):
    out = [text((across.begin + across.end) / 2, 22, title, extra=' font-size="15"')]
    for axis, positions, colour in ((across, across.steps(), "#f0f0f0"),
                                    (across, across.powers(), "#cccccc")):
        out += [rule(axis.at(v), up.begin, axis.at(v), up.end, colour) for v in positions]
    for positions, colour in ((up.steps(), "#f0f0f0"), (up.powers(), "#cccccc")):
        out += [rule(across.begin, up.at(v), across.end, up.at(v), colour) for v in positions]
    out += [text(across.at(v), up.begin + 18, size_label(v)) for v in across.powers()]
    out += [text(across.begin - 8, up.at(v) + 4, "%g" % v, "end") for v in up.powers()]
    middle = (up.begin + up.end) / 2
    out.append(text((across.begin + across.end) / 2, up.begin + 40, "size of the maildrop"))
    out.append(text(18, middle, unit, extra=' transform="rotate(-90 18 %.1f)"' % middle))
    return out


def draw_line(points, across, up, colour, dashed):
    places = [(across.at(x), up.at(y)) for x, y in points]
    dash = ' stroke-dasharray="6 4"' if dashed else ""
    out = ['<polyline fill="none" stroke="%s" stroke-width="2"%s points="%s"/>' % (
        colour, dash, " ".join("%.1f,%.1f" % place for place in places))]
    return out + ['<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>' % (x, y, colour)
                  for x, y in places]


def draw(title, unit, lines):
    """The picture; lines are [(label, dashed, points)]."""
    points = [point for _, _, points in lines for point in points]
    across = Axis([x for x, _ in points], LEFT, WIDTH - RIGHT)
    up = Axis([y for _, y in points], HEIGHT - BOTTOM, TOP)
    out = ['<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d"'
           ' font-family="sans-serif" font-size="12">' % (WIDTH, HEIGHT, WIDTH, HEIGHT),
           '<rect width="100%" height="100%" fill="white"/>']
    out += draw_axes(title, unit, across, up)
    for number, (label, dashed, line) in enumerate(lines):
        colour, y = COLOURS[number % len(COLOURS)], TOP + 12 + 22 * number
        out += draw_line(line, across, up, colour, dashed)
        out.append(rule(WIDTH - RIGHT + 15, y, WIDTH - RIGHT + 40, y, colour,
                        ' stroke-width="2"' + (' stroke-dasharray="6 4"' if dashed else "")))
        out.append(text(WIDTH - RIGHT + 46, y + 4, label, "start", ' font-size="11"'))
    return "\n".join([*out, "</svg>", ""])


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__.strip())
    figures, filesystem = read(sys.argv[1])
    os.makedirs(sys.argv[2], exist_ok=True)
    for name, title, unit, wanted in PLOTS:
        lines = [(label, dashed, figures[server, measure])
                 for server, measure, label, dashed in wanted if (server, measure) in figures]
        if lines:
            with open(os.path.join(sys.argv[2], name + ".svg"), "w") as out:
                out.write(draw("%s (file system: %s)" % (title, filesystem), unit, lines))


if __name__ == "__main__":
    main()
