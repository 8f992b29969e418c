#!/usr/bin/env python3
"""Mixed load: eight senders at once over two channels and by hand, readers, verify, and reindex of
other users, while the server keeps changing. No error, and after a while of warming up neither
descriptors nor memory of the daemon grow.

    t/run 80-load                  half a minute
    MINUTES=30 t/80-load.t         the long form; prints a line of figures a minute
    SEED=7                         the same changes
"""

import os
import random
import re
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *
from cyrusrig import sandbox, tap
from cyrusrig.traffic import Traffic

if RECEIVER != "ours":
    skip_all("about our receiver only")

MINUTES = float(os.environ.get("MINUTES", 0))
SECONDS = MINUTES * 60 or 20
SEED = int(os.environ.get("SEED", 0)) or time.time_ns() % 10**9
USERS = ["user%d" % n for n in range(8)]
# Nobody sends these; tools may hold their locks as long as they like.
QUIET = ["quiet%d" % n for n in range(3)]
# KiB and descriptors that the daemon may have more at the end than when it was warm.
RSS_GROWTH = 12 << 10
FD_GROWTH = 2


class Load:
    def __init__(self):
        self.rig = start_rig({"backup_lock_wait": "60"}, channels=["one", "two"])
        self.cyrus, self.to = self.rig.cyrus, self.rig.to
        self.begin, self.why = self.rig.begin, self.rig.why
        self.traffic = Traffic(self.cyrus, USERS, come_and_go=False)
        self.cyrus.user(*QUIET)
        for user in QUIET + USERS:
            with self.cyrus.imap(user) as imap:
                imap.fill("INBOX", [message("%s%d" % (user, n), 2000, to=user) for n in range(100)])
        self.rig.sync("-A")
        self.going = True
        self.errors = []
        self.counts = {}
        self.guard = threading.Lock()
        self.samples = []

    def close(self):
        self.going = False
        self.rig.close()

    def count(self, what):
        with self.guard:
            self.counts[what] = self.counts.get(what, 0) + 1

    def loop(self, what, step, pause=0.0):
        """A thread that does a thing over and over; what goes wrong is kept."""

        def run():
            while self.going:
                try:
                    step()
                    self.count(what)
                except Exception as why:
                    if self.going:
                        self.errors.append("%s: %s: %s" % (what, type(why).__name__, why))
                    return
                time.sleep(pause)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    # -- who does what ----------------------------------------------------------

    def change(self, dice):
        for line in self.traffic.change(dice, 1):
            if ": NO " in line and not re.search("xist|HASCHILDREN", line):
                diag(line)

    def sender(self, args):
        conf = self.cyrus.client_conf(self.to)

        def step():
            done = run_command([sandbox.BIN + "/sync_client", "-C", conf] + args(), 120)
            # A mailbox that vanished while it was looked at is no fault of ours.
            if done.code != 0 and not self.moved_on():
                raise Failed("%s\n%s" % (done, self.cyrus.recent_log(8)))

        return step

    def moved_on(self):
        """Did the last client stumble over its own server having changed meanwhile?"""
        log = self.cyrus.recent_log(12)
        return re.search("does not exist|Mailbox has been moved|NONEXISTENT|SYNC_CHANGED|Changed since", log)

    def tool(self, *words, dice=None, users=()):
        def step():
            named = [dice.choice(users) if w == "USER" else w for w in words]
            done = self.to.tool(*named)
            # Another tool may have the lock just then.
            if done.code not in (0, 75) and not (done.code == 1 and "locked" in done.err):
                raise Failed(str(done))

        return step

    # -- what the daemon takes -----------------------------------------------------

    def sample(self):
        with open("/proc/%d/status" % self.to.process.pid) as status:
            text = status.read()
        number = lambda field: int(re.search(field + r":\s+(\d+)", text).group(1))
        return (number("VmRSS"), self.to.descriptors(), number("Threads"))

    def watch(self, seconds):
        """A sample a second, and a line a minute."""
        begun = time.monotonic()
        told = 0
        while (spent := time.monotonic() - begun) < seconds and not self.errors:
            self.samples.append((spent,) + self.sample())
            if spent // 60 > told:
                told = spent // 60
                # The quietest moment of the minute: what stays when sessions are gone.
                last = [s for s in self.samples if s[0] > spent - 60]
                diag(
                    "%3d min: RSS %.1f to %.1f MB, descriptors %d to %d; %s"
                    % (
                        told,
                        min(s[1] for s in last) / 1024,
                        max(s[1] for s in last) / 1024,
                        min(s[2] for s in last),
                        max(s[2] for s in last),
                        ", ".join("%s %d" % pair for pair in sorted(self.counts.items())),
                    )
                )
            time.sleep(1)


@case("eight senders, readers, verify and reindex at once for %d s: no error, no growth" % SECONDS)
def load(load):
    diag("SEED=%d" % SEED)
    dice = random.Random(SEED)
    clients = [load.cyrus.rolling(load.to, channel) for channel in ("one", "two")]
    threads = []
    try:
        new = lambda: random.Random(dice.random())
        mine = random.Random(dice.random())
        threads.append(load.loop("changes", lambda: load.change(mine), 0.05))
        for _ in range(4):
            one = new()
            threads.append(load.loop("-u", load.sender(lambda one=one: ["-u"] + one.sample(USERS, one.randrange(1, 5))), 0.1))
        threads.append(load.loop("-A", load.sender(lambda: ["-A"]), 0.3))
        box = new()
        threads.append(load.loop("-m", load.sender(lambda: ["-m", "user." + box.choice(USERS)]), 0.1))
        for words in (["list"], ["messages", "USER"], ["show", "USER", "subscriptions"], ["dump", "log", "USER"], ["stat", "-A"]):
            threads.append(load.loop(words[0], load.tool(*words, dice=new(), users=USERS), 0.3))
        threads.append(load.loop("verify", load.tool("verify", "USER", dice=new(), users=USERS + QUIET), 0.5))
        threads.append(load.loop("reindex", load.tool("reindex", "-w", "USER", dice=new(), users=QUIET), 0.5))
        load.watch(SECONDS)
    finally:
        load.going = False
        for thread in threads:
            thread.join(130)
    expect_none(load.errors, "errors")
    expect_none([c.channel for c in clients if not c.running()], "rolling senders that ended")
    for client in clients:
        client.drain(120)
        client.stop()
    load.rig.sync("-u", *USERS, attempts=2)
    load.rig.whole(*USERS, *QUIET)
    bad = [l for l in load.to.recent_log(1000000).splitlines() if re.search("IOERROR|DBERROR|panick|copy kept|set aside", l)]
    expect_none(bad, "in the daemon's log")
    wait_for(lambda: load.sample()[2] <= 5, 20, "sessions end: %r" % (load.sample(),))
    idle = load.sample()
    warm = [s for s in load.samples if SECONDS * 0.2 < s[0] < SECONDS * 0.5]
    late = [s for s in load.samples if s[0] > SECONDS * 0.7]
    for name, at in (("RSS in KiB", 1), ("descriptors", 2)):
        middle = lambda rows: sorted(row[at] for row in rows)[len(rows) // 2]
        diag("%s: median %d when warm, %d at the end, %d idle" % (name, middle(warm), middle(late), idle[at - 1]))
        if at == 1:
            expect(middle(late) - middle(warm) <= RSS_GROWTH, "memory grows")
        else:
            # How many are open depends on who is there just then.
            lowest = lambda rows: min(row[at] for row in rows)
            expect(lowest(late) - lowest(warm) <= max(FD_GROWTH, lowest(warm)), "descriptors grow")
    expect(idle[1] <= 16, "%d descriptors open when nobody is there" % idle[1])
    diag(", ".join("%s %d" % pair for pair in sorted(load.counts.items())))


tap.run(Load, Load.close, time_limit=int(SECONDS) + 400)
