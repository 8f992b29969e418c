#!/usr/bin/env python3
"""Everything is killed at random moments: the daemon, its tools, the senders, while a real
server keeps changing and real sync_clients send. After each round: start, no person, nothing
acknowledged is missing, verify is content, and the next sync brings the rest.

    t/run 31-crash                        a few rounds
    ROUNDS=500 t/31-crash-loop.t          the long form, about an hour
    SEED=7 FIRST=40 ROUNDS=1 ...          only the decisions of round 40 of that seed
    PLAN=1                                tells what each round does

Same seed, same decisions: what the server does, who syncs, who is killed and after how
long. What a kill hits is up to the machine.
"""

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *
from cyrusrig import compare, sandbox, tap
from cyrusrig.server import BIN
from cyrusrig.traffic import Traffic
from cyrusrig.witness import Witness

if RECEIVER != "ours":
    skip_all("about our receiver only")

ROUNDS = int(os.environ.get("ROUNDS", 0))
SEED = int(os.environ.get("SEED", 0)) or time.time_ns() % 10**9
# Every so many rounds all indexes are made anew.
ANEW = int(os.environ.get("ANEW", 10))
FIRST = int(os.environ.get("FIRST", 1))
# The short form ends by its time, whatever the machine does meanwhile.
SHORT = 30.0
USERS = ["anna", "bert", "carl"]


class Plan:
    """What one round does, all of it decided beforehand."""

    def __init__(self, seed, number, commands):
        dice = random.Random("%d/%d" % (seed, number))
        self.first, self.during = dice.randrange(1, 14), dice.randrange(12)
        self.pause = dice.choice((0, 0, 0.02, 0.1))
        self.change = random.Random(dice.random())
        self.rolling = dice.random() < 0.4
        # Further senders: how they are called, and how long after the first.
        self.senders = [
            (dice.choice(("-A", "-u", "-m")), dice.random() * 0.3) for _ in range(dice.choice((1, 1, 1, 2, 3)) - self.rolling)
        ]
        self.tools = [dice.choice(commands) for _ in range(dice.choice((0, 0, 1, 1, 2, 4)))]
        self.kills = []
        for _ in range(dice.choice((1, 1, 1, 2, 3))):
            # In the middle of a conversation: so many pieces after the last, and a moment.
            # Or by the clock; some of these come when all is idle.
            pieces = dice.choice((dice.randrange(1, 12), dice.randrange(1, 60), 0))
            after = dice.choice((0, dice.expovariate(2000), dice.expovariate(200)))
            if not pieces:
                after = dice.choice((dice.expovariate(12), dice.expovariate(3)))
            whom = dice.choices(("daemon", "tools", "sender"), (6, 2 if self.tools else 0, 1))[0]
            # A daemon that has just begun is killed in its recovery.
            again = [dice.expovariate(40) for _ in range(dice.choice((0, 0, 0, 1, 2)))] if whom == "daemon" else []
            self.kills.append((pieces, min(after, 2), whom, again))
        self.wait = dice.choice((0, 0, 0.3))

    def __str__(self):
        kills = ", ".join(
            "%s after %s%.4f s%s" % (whom, "%d pieces and " % pieces if pieces else "", after, "".join(", again %.3f" % x for x in more))
            for pieces, after, whom, more in self.kills
        )
        return "changes %d+%d, rolling %s, senders %s, tools %s, kills %s" % (
            self.first,
            self.during,
            self.rolling,
            [s for s, _ in self.senders],
            [" ".join(t) for t in self.tools],
            kills,
        )


class Tools:
    """Commands of ours, each over and over until stopped or killed."""

    def __init__(self, to, commands, users):
        self.to = to
        self.going = True
        self.children = [None] * len(commands)
        self.ended = []
        self.guard = threading.Lock()
        self.threads = [
            threading.Thread(target=self._run, args=(n, words, list(users)), daemon=True)
            for n, words in enumerate(commands)
        ]
        for thread in self.threads:
            thread.start()

    def _run(self, number, words, users):
        turn = 0
        while self.going:
            named = [users[(number + turn) % len(users)] if w == "USER" else w for w in words]
            turn += 1
            child = subprocess.Popen(
                sandbox.as_cyrus([self.to.path, "-C", self.to.conf] + named),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            with self.guard:
                self.children[number] = child
            said, _ = child.communicate()
            self.ended.append((named, child.returncode, said[-1000:].decode(errors="replace")))

    def kill(self):
        with self.guard:
            for child in self.children:
                if child is not None and child.poll() is None:
                    child.send_signal(signal.SIGKILL)

    def stop(self):
        self.going = False
        for thread in self.threads:
            thread.join(120)
            expect(not thread.is_alive(), "a tool that does not end")

    def strange(self):
        """What did not end as it should: 0, nothing there (yet), locked, or killed."""
        return [
            "%s: status %s: %s" % (" ".join(words), code, said.strip())
            for words, code, said in self.ended
            if code not in (0, 1, 66, 75, -signal.SIGKILL)
        ]


def sealed(path):
    """Does the log end with a whole member?"""
    try:
        logfile.plain(path, unsealed=False)
        return True
    except logfile.Broken:
        return False


class Loop:
    def __init__(self):
        dice = random.Random(SEED)
        modes = ("immediate", "delayed")
        self.rig = start_rig(
            {"backup_lock_wait": "20", "backup_chunk_max": dice.choice(("64K", "300K", "8M"))},
            delete_mode=dice.choice(modes),
            expunge_mode=dice.choice(modes),
        )
        self.cyrus, self.to = self.rig.cyrus, self.rig.to
        self.begin = self.rig.begin
        self.why = self.rig.why
        self.witness = Witness(self.to)
        self.traffic = Traffic(self.cyrus, USERS)
        self.commands = [["verify", "USER"], ["verify", "-A"], ["reindex", "USER"], ["reindex", "-w", "USER"]]
        self.commands += [["list"], ["stat", "-A"], ["messages", "USER", "--deleted"], ["mailboxes", "USER"]]
        self.commands += [["heal", "-w", "USER"], ["dump", "log", "USER"], ["rescan"]]
        if self.to.has("compact"):
            self.commands += [["compact", "--force", "USER"], ["compact", "USER"]] * 2
        self.killed = {"daemon": 0, "recovery": 0, "tools": 0, "sender": 0}
        self.rounds = 0
        self.unclean = 0

    # -- the daemon -----------------------------------------------------------

    def kill_daemon(self, again):
        """Kill it, start it, and perhaps kill it again while it begins."""
        self.to.kill()
        self.killed["daemon"] += 1
        for pause in again:
            self.to.process = sandbox.Process(
                sandbox.as_cyrus([self.to.path, "serve", "-C", self.to.conf, "--socket", self.to.socket]),
                self.to.dir + "/log/serve",
            )
            time.sleep(pause)
            self.to.kill()
            self.killed["recovery"] += 1
        self.to.start()

    # -- a round --------------------------------------------------------------

    def round(self, number):
        plan = Plan(SEED, number, self.commands)
        if os.environ.get("PLAN"):
            diag("%d: %s" % (number, plan))
        said = self.traffic.change(plan.change, plan.first)
        senders, rolling, tools = [], None, None
        users = list(self.traffic.users)
        try:
            if plan.rolling:
                rolling = self.cyrus.rolling(self.witness)
            tools = Tools(self.to, plan.tools, users)
            more = []

            def change():
                def each():
                    time.sleep(plan.pause)

                try:
                    more.extend(self.traffic.change(plan.change, plan.during, each))
                except Exception as why:
                    more.append(why)

            changing = threading.Thread(target=change)
            changing.start()
            sending = threading.Thread(target=self.send_all, args=(plan, users, senders))
            sending.start()
            for pieces, after, whom, again in plan.kills:
                if pieces:
                    self.witness.moment(pieces).wait(1.0)
                time.sleep(after)
                if whom == "daemon":
                    self.kill_daemon(again)
                    if rolling:
                        rolling.restart_if_gone()
                elif whom == "tools":
                    tools.kill()
                    self.killed["tools"] += 1
                elif senders or rolling:
                    (senders[-1] if senders else rolling.process).kill()
                    self.killed["sender"] += 1
            sending.join()
            changing.join(120)
            expect(not changing.is_alive(), "the mail server does not answer")
            for item in more:
                if isinstance(item, Exception):
                    raise item
            said += more
            time.sleep(plan.wait)
            for sender in senders:
                # One that found nobody waits 15 s and longer; the next round has its own.
                sender.wait(1)
                sender.kill()
            tools.stop()
            expect_none(tools.strange(), "tools that ended badly")
            self.unclean += sum(not sealed(path) for path in self.to.data_files().values())
            self.acknowledged_is_there()
            self.in_order()
            if rolling:
                rolling.drain(60, supervised=True)
                self.compared("after the sync log was worked off")
            before = self.cyrus.dump(self.traffic.users) if number % 5 == 0 else None
            self.rig.sync("-u", *self.traffic.users, to=self.witness)
            self.rig.whole(*self.traffic.users, state=before)
            if before:
                expect_none(compare.states(before, self.cyrus.dump(self.traffic.users)), "the IMAP server before and after")
            self.in_order()
            self.acknowledged_is_there()
            self.traffic.sent()
        except Exception as error:
            tap.complain("SEED=%d round %d: %s" % (SEED, number, plan))
            for line in said:
                diag("  " + str(line))
            raise error
        finally:
            for process in senders + ([rolling.process] if rolling else []):
                process.kill()
            if tools:
                tools.going = False
                tools.kill()
        if ANEW and number % ANEW == 0:
            self.made_anew()
        self.rounds += 1

    def made_anew(self):
        """Stopped politely, every index made from its log: nothing is in doubt by that."""
        expect_equal(self.to.stop(), 0, "status of a polite stop")
        done = self.to.tool("verify", "-A")
        expect_equal(done.code, 0, "verify -A: %s" % done)
        done = self.to.tool("reindex", "-A")
        expect_equal(done.code, 0, "reindex -A: %s" % done)
        self.to.start()
        try:
            self.rig.whole(*self.traffic.users)
        except Failed:
            tap.complain("SEED=%d: %s" % (SEED, done))
            raise

    def send_all(self, plan, users, senders):
        begun = time.monotonic()
        for how, when in sorted(plan.senders, key=lambda pair: pair[1]):
            time.sleep(max(0, begun + when - time.monotonic()))
            senders.append(self.send(how, users))

    def send(self, how, users):
        names = list(users)
        if how == "-m":
            names = ["user." + user for user in users]
        elif how == "-A":
            names = []
        conf = self.cyrus.client_conf(self.witness)
        argv = [BIN + "/sync_client", "-C", conf, how] + names
        return sandbox.Process(sandbox.as_cyrus(argv), self.cyrus.dir + "/log/sender")

    def compared(self, when):
        """What the server has, without another sync: the rolling client's part."""
        held = self.cyrus.dump(self.traffic.users)
        listed = self.to.listing(self.traffic.users)
        expect_none(compare.mailboxes(held["mailboxes"], listed), when)

    def acknowledged_is_there(self):
        # First what was said, then who has a backup: a sender may still be at it.
        told = self.witness.settle()
        users = self.traffic.users
        known = [u for u in users + self.traffic.gone if u in self.to.data_files()]
        done = self.to.tool("verify", *known) if known else None
        expect(done is None or done.code == 0, "verify", [str(done)])
        expect_none(told.lacks(self.to, known, users, self.witness.settle), "acknowledged and not there")

    def in_order(self):
        """No file that should not be there, and nothing in the log that a kill does not explain."""
        strange = []
        for folder, _dirs, files in os.walk(self.to.lines["backuppartition-default"]):
            for name in files:
                if not re.fullmatch(r"[A-Za-z0-9@+.=-]+_[A-Za-z0-9]{6}(\.new)?(\.index(-wal|-shm|-journal|\.new(-wal|-shm|-journal)?)?)?", name):
                    strange.append("%s/%s" % (folder, name))
        expect_none(strange, "files in the partition")
        if os.listdir(self.to.dir + "/tmp"):
            strange = ["%s" % n for n in os.listdir(self.to.dir + "/tmp")]
        expect_none(strange, "files in staging")
        lines = self.to.recent_log(100000).splitlines()
        bad = re.compile(r"panick|IOERROR|to be sent again|do not exist on the sender|index rebuilt|copy kept|log finding|set aside")
        new = lines[self.heard() :]
        self.seen = len(lines)
        expect_none([line for line in new if bad.search(line)], "in the log")

    seen = 0

    def heard(self):
        return self.seen

    def close(self):
        diag(
            "SEED=%d: %d rounds, %d commands acknowledged, %d logs found unsealed; killed: %s"
            % (
                SEED,
                self.rounds,
                self.witness.acknowledged.commands,
                self.unclean,
                ", ".join("%s %d" % pair for pair in self.killed.items()),
            )
        )
        self.witness.close()
        self.rig.close()


@case("killed at random: nothing acknowledged is missing, nobody is needed")
def crash(loop):
    diag("SEED=%d FIRST=%d ROUNDS=%s" % (SEED, FIRST, ROUNDS or "for %d s" % SHORT))
    end = time.monotonic() + SHORT
    number = FIRST
    while loop.rounds < ROUNDS if ROUNDS else time.monotonic() < end:
        loop.round(number)
        number += 1
        if ROUNDS and loop.rounds % 20 == 0:
            diag("%d rounds" % loop.rounds)
    expect(loop.killed["daemon"] > 0, "no kill came about")


@case("after all of it: stopped politely, indexes made anew, all backups whole")
def again(loop):
    loop.made_anew()


tap.run(Loop, Loop.close, time_limit=600 if not ROUNDS else 60 * ROUNDS)
