"""What `verify` and `reindex` have in common as benchmarks: the same mail in a backup of ours and in
one of Debian's backupd, and a command timed on both in turn."""

import argparse
import os
import shlex
import statistics
import sys
import time

from feed import Feed, Mail, play
from cyrusrig import sandbox
from cyrusrig.receiver import receiver


def arguments(what):
    problem = sandbox.problem()
    if problem:
        sys.exit("t/bench: " + problem)
    parser = argparse.ArgumentParser(description=what, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", default="ram,disk")
    parser.add_argument("--mb", type=int, default=200)
    parser.add_argument("--mean", type=int, default=Mail.BASE, help="bytes of a message, about")
    parser.add_argument("--batch", type=int, default=100, help="messages of one APPLY MESSAGE")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="threads of ours")
    parser.add_argument("--alone", action="store_true", help="without ctl_backups")
    parser.add_argument("--keep", action="store_true", help="leave our backup, and say where")
    return parser.parse_args()


def fill(to, a):
    """The user whose backup now has the mail, and its bytes."""
    feed = Feed("proven")
    play(to, feed.user, feed.lines(Mail("proven", a.mean).total(a.mb * 1000000), a.batch, a.batch * 10))
    return feed


def timed(argv, path):
    """Seconds, and the largest memory in MB."""
    began = time.perf_counter()
    done = sandbox.run(["/usr/bin/time", "-f", "%M kB", "-o", path] + argv, 3600)
    seconds = time.perf_counter() - began
    if done.code != 0:
        raise RuntimeError("%s\n%s" % (shlex.join(argv), done))
    with open(path) as file:
        return seconds, int(file.read().split()[-2]) / 1024


def compare(a, rows):
    """`rows`: title, arguments of ours, arguments of ctl_backups or None."""
    print("# %s" % shlex.join(sys.argv))
    for on in a.on.split(","):
        os.environ["CYRUSRIG_DIR"] = {"ram": "/dev/shm", "disk": "/var/tmp"}[on]
        print("# on %s, %d cores; MB/s of mail; a ratio over 1x means ours is better" % (on, os.cpu_count()))
        kinds = ["ours"] if a.alone else ["ours", "backupd"]
        pair = {kind: receiver(kind) for kind in kinds}
        try:
            feeds = {kind: fill(to, a) for kind, to in pair.items()}
            for to in pair.values():
                to.stop()
            for title, ours, theirs in rows:
                times, peak = {kind: [] for kind in kinds}, {}
                for _turn in range(a.runs):
                    for kind, to in pair.items():
                        words = ours if kind == "ours" else theirs
                        if words is None:
                            continue
                        program = [to.path, "-C", to.conf] if kind == "ours" else [sandbox.BIN + "/ctl_backups", "-C", to.conf]
                        words = [to.data_file(feeds[kind].user) if word == "FILE" else word for word in words]
                        seconds, memory = timed(program + words, to.dir + "/tmp/time")
                        times[kind].append(seconds)
                        peak[kind] = max(memory, peak.get(kind, 0))
                rates = {kind: feeds[kind].bytes / 1e6 / statistics.median(t) for kind, t in times.items() if t}
                text = "%-34s %8.1f" % (title, rates["ours"])
                if "backupd" in rates:
                    text += " %8.1f MB/s  %.1fx" % (rates["backupd"], rates["ours"] / rates["backupd"])
                else:
                    text += " %8s MB/s" % ""
                print(text + "   memory %s MB" % ", ".join("%.0f" % peak[kind] for kind in peak), flush=True)
            if a.keep:
                print("# kept: %s -C %s, %s" % (pair["ours"].path, pair["ours"].conf, pair["ours"].data_file("proven")))
                input("# press return ")
        finally:
            for to in pair.values():
                to.stop()
