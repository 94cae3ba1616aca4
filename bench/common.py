"""What bench/run and bench/scale share: build, peers, namespaces, the load generator."""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

BENCH = os.path.dirname(os.path.abspath(__file__))
FLAGS = ("-std=gnu17 -D_GNU_SOURCE -O2 -Wall -Wextra -Wshadow -Wstrict-prototypes"
         " -Wmissing-prototypes -Wformat=2 -Wcast-qual -Wvla -Wundef -Wpointer-arith").split()


def say(text):
    print(time.strftime("%H:%M:%S ") + text, file=sys.stderr, flush=True)


def peers(scratch, *arguments):
    action, *rest = arguments
    subprocess.run([os.path.join(BENCH, "peers.sh"), action, scratch, *rest], check=True,
                   stdin=subprocess.DEVNULL)


# ---- build ----

def build_popper(scratch):
    """A build directory with popper and its roles in it."""
    source, build = os.path.dirname(BENCH), os.path.join(scratch, "build")
    os.mkdir(build)
    with open(os.path.join(scratch, "build.log"), "w") as log:
        for command, where in (
                (["autoreconf", "-fi"], source),
                ([source + "/configure", "--disable-tests", "--prefix=/usr", "--sysconfdir=/etc",
                  "--localstatedir=/var"], build),
                (["make", "-j%d" % os.cpu_count()], build)):
            if command[0] == "autoreconf" and os.access(source + "/configure", os.X_OK):
                continue
            say(" ".join(command))
            if subprocess.run(command, cwd=where, stdout=log, stderr=log).returncode != 0:
                with open(log.name) as text:
                    sys.exit("bench: %s failed:\n%s" % (command[0], text.read()[-2000:]))
    return build


def build_tools(scratch, build):
    compiler = os.environ.get("CC", "cc")
    common = [compiler, *FLAGS, "-I" + build, "-I" + os.path.dirname(BENCH)]
    subprocess.run([*common, BENCH + "/pop3_load.c", BENCH + "/pop3_client.c", "-o",
                    scratch + "/pop3_load", "-lssl", "-lcrypto"], check=True)
    subprocess.run([*common, BENCH + "/loopback.c", "-o", scratch + "/loopback"], check=True)
    subprocess.run([*common, "-shared", "-fPIC", BENCH + "/listen_shim.c", "-o",
                    scratch + "/listen_shim.so", "-ldl"], check=True)


# ---- a server ----

class Server:
    def __init__(self, scratch, name, build, port):
        self.scratch, self.name, self.build = scratch, name, build
        self.port = port
        self.group = os.path.join(scratch, "cgroup", "qpopper-bench-" + name)

    def start(self):
        peers(self.scratch, "start", self.name, str(self.port), str(self.port + 1), self.build)

    def stop(self):
        peers(self.scratch, "stop", self.name)

    def processes(self):
        with open(self.group + "/cgroup.procs") as processes:
            return [int(line) for line in processes]


def load_command(server, scenario, tls, options):
    words = [server.scratch + "/pop3_load", scenario, "-w", "benchpw", "-p",
             str(server.port + (1 if tls else 0))] + (["-s"] if tls else [])
    for letter, value in options.items():
        words += ["-" + letter, str(value)]
    return words


def load(server, scenario, tls=False, **options):
    done = subprocess.run(load_command(server, scenario, tls, options), stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, text=True)
    if not done.stdout:
        sys.exit("bench: pop3_load failed on %s" % server.name)
    result = json.loads(done.stdout)
    if result["errors"] or result["unfinished"]:
        say("%s, %s: %d errors, %d unfinished: %s" % (server.name, scenario, result["errors"],
                                                      result["unfinished"], result["first_error"]))
    return result


# ---- reports ----

def table(head, rows):
    print("| " + " | ".join(head) + " |")
    print("|---" * len(head) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def first_line(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return done.stdout.split("\n")[0]


def machine(build):
    """Date, processor, kernel and versions, as a line."""
    with open("/proc/cpuinfo") as cpus:
        model = next((x.split(":")[1].strip() for x in cpus if x.startswith("model name")), "?")
    return "%s, %d × %s, Linux %s; %s; Dovecot %s" % (
        time.strftime("%Y-%m-%d"), os.cpu_count(), model, os.uname().release,
        first_line(build + "/popper", "--version"), first_line("dovecot", "--version"))


# ---- the run in namespaces of its own ----

def add_options(parser):
    parser.add_argument("--build-dir", help="where popper is built already")
    parser.add_argument("--scratch", default="/var/tmp", help="parent of the scratch directory; a"
                        " file system like that of real maildrops; default: /var/tmp")
    parser.add_argument("--port", type=int, default=21100, help="first of twelve; default: 21100")
    parser.add_argument("--keep", action="store_true", help="keep the scratch directory")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)


def run_inside(script, options, names):
    """Build, then run script again with --inside and these options, in namespaces of its own."""
    if os.geteuid() != 0:
        sys.exit("bench: must be root: it mounts, and starts servers that become users")
    scratch = tempfile.mkdtemp(prefix="qpopper-bench.", dir=options.scratch)
    os.chmod(scratch, 0o755)
    try:
        build = os.path.abspath(options.build_dir) if options.build_dir else build_popper(scratch)
        build_tools(scratch, build)
        say("peers")
        peers(scratch, "install")
        words = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child",
                 sys.executable, os.path.abspath(script), "--inside", "--scratch", scratch,
                 "--build-dir", build]
        for name in names:
            value = getattr(options, name.replace("-", "_"))
            if value is not None:
                words += ["--" + name, str(value)]
        return subprocess.run(words).returncode
    finally:
        peers(scratch, "remove")
        if options.keep:
            say("kept: " + scratch)
        else:
            shutil.rmtree(scratch)
