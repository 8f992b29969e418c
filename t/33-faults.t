#!/usr/bin/env python3
"""The kernel says no to the running daemon: the Nth call of a kind fails, or kills it, in the
middle of a real sync. The sender gets an answer, others are served, and the next sync
completes. strace does it from outside; the program knows nothing of it.

    t/run 33-faults              a sample
    FULL=1 t/33-faults.t         every N of every call, some 20 minutes
    SEED=7 t/33-faults.t         another sample
    ONLY=fdatasync:EIO:3 ...     this one alone

N counts the calls of the session's own thread.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *
from cyrusrig import sandbox, tap
from cyrusrig.witness import Witness

if RECEIVER != "ours":
    skip_all("about our receiver only")

SEED = int(os.environ.get("SEED", 0)) or time.time_ns() % 10**9
FULL = os.environ.get("FULL")
ONLY = os.environ.get("ONLY")
# Seconds for a sample of each kind, in the short form.
SHORT = 13.0
# What fails, and how.
FAULTS = [
    ("fdatasync", "EIO"),
    ("fsync", "EIO"),
    ("pwrite64", "ENOSPC"),
    ("pwrite64", "EIO"),
    ("ftruncate", "EIO"),
    ("rename", "EIO"),
    ("unlink", "EIO"),
    ("mkdir", "ENOSPC"),
    ("openat", "EMFILE"),
    ("pread64", "EIO"),
    ("statx", "EIO"),
    ("fcntl", "ENOLCK"),
]
KILLED = ["pwrite64", "fdatasync", "fsync", "ftruncate", "unlink", "openat", "mkdir", "sendto"]


class Strace:
    """strace on a process that runs, until `stop`."""

    def __init__(self, pid, log, *words):
        self.log = log
        self.pid = pid
        if os.path.exists(log):
            os.unlink(log)
        self.child = subprocess.Popen(
            ["strace", "-f", "-y", "-qq", "-o", log, *words, "-p", str(pid)], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        try:
            wait_for(lambda: self.child.poll() is not None or self._attached(), 10, "strace")
        except TimeoutError:
            pass
        if self.child.poll() is not None or not self._attached():
            self.stop()
            raise Skip("strace cannot attach here: %s" % self.child.stderr.read().decode(errors="replace").strip())

    def _attached(self):
        tracers = set()
        for task in os.listdir("/proc/%d/task" % self.pid):
            with open("/proc/%d/task/%s/status" % (self.pid, task)) as status:
                tracers.add(re.search(r"TracerPid:\s+(\d+)", status.read()).group(1))
        return tracers == {str(self.child.pid)}

    def stop(self):
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGINT)
            try:
                self.child.wait(10)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()

    def lines(self):
        with open(self.log, errors="replace") as file:
            return file.read().splitlines()


class Faults:
    def __init__(self):
        if not any(os.access(os.path.join(p, "strace"), os.X_OK) for p in os.environ["PATH"].split(":")):
            raise Skip("strace is not installed")
        # Small members, so that some are sealed in the middle of a unit.
        self.rig = start_rig({"backup_chunk_max": "150K"})
        self.cyrus, self.to = self.rig.cyrus, self.rig.to
        self.begin, self.why = self.rig.begin, self.rig.why
        self.witness = Witness(self.to)
        self.count = 0
        self.dice = random.Random(SEED)
        for user in ("anna", "bert"):
            self.cyrus.user(user)
            with self.cyrus.imap(user) as imap:
                imap.fill("INBOX", [message(n, to=user) for n in range(3)])
            self.sync(user)
        Strace(self.to.process.pid, self.to.dir + "/log/strace", "-e", "trace=none").stop()

    def close(self):
        self.witness.close()
        self.rig.close()

    def sync(self, *users):
        return self.rig.sync("-u", *users, to=self.witness)

    def news(self):
        """A representative change: a new user with a large message and folders, and an old
        one with new mail, flags, a folder under a new name and a script."""
        self.count += 1
        new = "new%d" % self.count
        self.cyrus.user(new)
        with self.cyrus.imap(new) as imap:
            big = message(self.count, 1000, to=new) + os.urandom(220000).hex().encode()
            imap.fill("INBOX", [big] + [message("%d-%d" % (self.count, n), to=new) for n in range(2)])
            imap.create("INBOX/Sub")
            imap.fill("INBOX/Sub", [message("s%d" % self.count, 5000, to=new)])
        with self.cyrus.imap("anna") as imap:
            imap.fill("INBOX", [message("a%d" % self.count, 3000)])
            imap.select("INBOX")
            imap.store("1:2", "+FLAGS" if self.count % 2 else "-FLAGS", "\\Flagged")
            imap.create("INBOX/X%d" % self.count)
            if self.count > 1:
                imap.rename("INBOX/X%d" % (self.count - 1), "INBOX/Y%d" % (self.count - 1))
            if self.count > 3:
                imap.delete("INBOX/Y%d" % (self.count - 3))
            imap.subscribe("INBOX/X%d" % self.count)
        self.cyrus.sieve_upload("anna", {"filter": "# %d\r\nkeep;\r\n" % self.count}, "filter")
        return new

    def strace(self, call, how, when):
        inject = "inject=%s:%s:when=%s" % (call, how, when)
        return Strace(self.to.process.pid, self.to.dir + "/log/strace", "-e", "trace=%s,openat,close" % call, "-e", inject)

    # -- one fault --------------------------------------------------------------

    def fails(self, call, error, when):
        """Whether the Nth call came about; everything is as it should be afterwards."""
        new = self.news()
        pid, answers = self.to.process.pid, len(self.witness.unanswered())
        trace = self.strace(call, "error=" + error, when)
        try:
            done = self.cyrus.sync(self.witness, "-u", new, "anna", timeout=90)
            expect(done.code is not None, "the sender is kept waiting", [str(done)])
            expect_equal(self.to.process.running(), True, "the daemon lives")
        finally:
            trace.stop()
        lines = trace.lines()
        hit = any("(INJECTED)" in line for line in lines)
        what = "%s:%s:%d" % (call, error, when)
        expect_none(synced_again(lines), what + ": a failed sync was tried again")
        expect_none(self.witness.unanswered()[answers:], what + ": no answer")
        self.sync("bert")
        expect_none(self.witness.lacks([u for u in (new, "anna", "bert") if u in self.to.data_files()], ("anna", "bert")), what + ": acknowledged and not there")
        self.sync(new, "anna")
        self.rig.whole(new, "anna")
        expect_equal(self.to.process.pid, pid, "the same daemon")
        self.tidy(what)
        return hit

    def killed(self, call, when):
        """The same for a kill at the Nth call."""
        new = self.news()
        trace = self.strace(call, "signal=KILL", when)
        try:
            self.cyrus.sync(self.witness, "-u", new, "anna", timeout=90)
        finally:
            trace.stop()
        hit = not self.to.process.running() or any("killed by SIGKILL" in line for line in trace.lines())
        what = "%s:KILL:%d" % (call, when)
        if hit:
            self.to.process.wait(5)
            self.to.kill()
            self.to.start()
        known = [u for u in (new, "anna") if u in self.to.data_files()]
        done = self.to.tool("verify", *known)
        expect(done.code == 0, what + ": verify", [str(done)])
        expect_none(self.witness.lacks(known, ("anna",)), what + ": acknowledged and not there")
        self.sync(new, "anna")
        self.rig.whole(new, "anna")
        self.tidy(what)
        return hit

    def tidy(self, what):
        """Nothing is left behind, on disk or open."""
        strange = []
        for folder, _dirs, files in os.walk(self.to.lines["backuppartition-default"]):
            for name in files:
                if not re.fullmatch(r"[A-Za-z0-9@+.=-]+_[A-Za-z0-9]{6}(\.index(-wal|-shm)?)?", name):
                    strange.append("%s/%s" % (folder, name))
        strange += os.listdir(self.to.dir + "/tmp")
        expect_none(strange, what + ": files left")
        where = "/proc/%d/fd/" % self.to.process.pid
        wait_for(lambda: len(self.open_files(where)) == 0, 5, what + ": files still open: %s" % self.open_files(where))

    @staticmethod
    def open_files(where):
        found = []
        for name in os.listdir(where):
            try:
                target = os.readlink(where + name)
            except OSError:
                continue
            if "/tree/backup/" in target or "(deleted)" in target:
                found.append(target)
        return found

    def sweep(self, kinds, one):
        """Each kind for N = 1, 2, ... until the call no longer comes about; or a sample."""
        if ONLY:
            kinds = [k for k in kinds if ":".join(k) == ONLY.rpartition(":")[0]]
            for kind in kinds:
                expect(one(*kind, int(ONLY.rpartition(":")[2])), "%s did not come about" % ONLY)
            return
        diag("SEED=%d" % SEED)
        hits = {}
        if FULL:
            for kind in kinds:
                when = 1
                while one(*kind, when):
                    when += 1
                hits[kind] = when - 1
        else:
            end = time.monotonic() + SHORT
            kinds = list(kinds)
            self.dice.shuffle(kinds)
            # On a busy machine the sample is small, but never nothing.
            while time.monotonic() < end or (sum(hits.values()) < 4 and time.monotonic() < end + 60):
                kind = kinds.pop(0)
                kinds.append(kind)
                # Most kinds have few calls; those that write have some hundred.
                when = self.dice.randrange(1, self.dice.choice((2, 4, 10, 10, 40, 150)))
                hits[kind] = hits.get(kind, 0) + one(*kind, when)
        diag(", ".join("%s: %d" % (":".join(kind), n) for kind, n in hits.items()))
        expect(sum(hits.values()) > 3, "hardly any fault came about: %r" % hits)


def synced_again(lines):
    """Logs on which a sync failed and that were synced again without being opened anew.
    An index is made again at need; backups.db is written anew where the sync counted."""
    bad, failed = [], set()
    for line in lines:
        opened = re.search(r"openat\(.*= \d+<([^>]*)>", line)
        synced = re.search(r"f(?:data)?sync\(\d+<([^>]*)>", line)
        if opened:
            failed.discard(opened.group(1))
        elif synced:
            path = synced.group(1)
            if path in failed and "/tree/backup/" in path and ".index" not in path:
                bad.append(line)
            if "(INJECTED)" in line:
                failed.add(path)
    return bad


@case("a call fails: an answer, others are served, the next sync completes")
def errors(faults):
    faults.sweep(FAULTS, faults.fails)


@case("a call kills: the next start is clean, the next sync completes")
def kills(faults):
    faults.sweep([(call, "KILL") for call in KILLED], lambda call, _kill, when: faults.killed(call, when))


@case("one user's files fail for a while: another user is served all the time")
def one_user(faults):
    path = faults.to.data_file("anna")
    faults.news()
    for call in ("pwrite64", "fdatasync"):
        trace = Strace(
            faults.to.process.pid,
            faults.to.dir + "/log/strace",
            *("-e", "trace=" + call, "-e", "inject=%s:error=EIO" % call, "-P", path),
        )
        try:
            sender = sandbox.Process(
                sandbox.as_cyrus([sandbox.BIN + "/sync_client", "-C", faults.cyrus.client_conf(faults.to), "-u", "anna"]),
                faults.cyrus.dir + "/log/sender",
            )
            for number in range(3):
                with faults.cyrus.imap("bert") as imap:
                    imap.append("INBOX", message("%s %d" % (call, number), to="bert"))
                faults.sync("bert")
            status = sender.wait(60)
            expect(status, "the sender of the failing user is told: status %s" % status)
        finally:
            trace.stop()
        expect(any("(INJECTED)" in line for line in trace.lines()), "nothing failed")
        faults.rig.whole("bert")
    faults.sync("anna")
    faults.rig.whole("anna")
    faults.tidy("one user")


@case("a reader is held up between opening an index and reading it: no other's writes are taken for its")
def held_up(faults):
    faults.news()
    faults.sync("anna")
    data = faults.to.data_file("anna")
    index = data + ".index"

    def start(words, inject):
        """A tool that is held up at one call."""
        argv = sandbox.as_cyrus([faults.to.path, "-C", faults.to.conf] + words)
        trace = ["strace", "-f", "-qq", "-o", faults.to.dir + "/log/strace-" + words[0]] + inject
        return subprocess.Popen(trace + argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def ended(tool, words):
        said, _ = tool.communicate(timeout=60)
        expect(tool.returncode == 0, words[0], [said.decode()])
        with open(faults.to.dir + "/log/strace-" + words[0]) as file:
            expect("(DELAYED)" in file.read(), words[0] + " was not held up")

    done = faults.to.tool("compact", "--force", "anna")
    expect(done.code == 0, "compact", [str(done)])
    faults.news()
    faults.sync("anna")
    # The new log is in place and the new index is not: a reader opens the old one.
    before = os.stat(data).st_ino
    compact, verify = ["compact", "--force", "anna"], ["verify", "anna"]
    writer = start(compact, ["-P", index, "-e", "inject=unlink:delay_enter=4000000:when=1"])
    wait_for(lambda: os.stat(data).st_ino != before, 10, "the new log")
    reader = start(verify, ["-P", index + "-wal", "-e", "inject=openat:delay_enter=9000000:when=1"])
    wait_for(lambda: "verify" in openers(index), 5, "the reader that was held up")
    ended(writer, compact)
    # Now there is the new one, and it gets a write-ahead log under the same name.
    wire = faults.to.csync()
    try:
        wire.command("GET USER", "anna")
        for turn in range(4):
            wire.command("APPLY UNSUB" if turn % 2 else "APPLY SUB", {"USERID": "anna", "MBOXNAME": "user.anna.X"})
        expect("verify" in openers(index + " (deleted)"), "the reader does not have the old index any more")
        ended(reader, verify)
    finally:
        wire.close()
        reader.kill()
        writer.kill()


def openers(path):
    """Commands of the program under test that have a file open."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/cmdline" % pid) as line:
                words = line.read().split("\0")
            files = [os.readlink("/proc/%s/fd/%s" % (pid, fd)) for fd in os.listdir("/proc/%s/fd" % pid)]
        except OSError:
            continue
        if path in files:
            found += [word for word in words[1:] if word in ("serve", "verify")][:1]
    return found


tap.run(Faults, Faults.close, time_limit=600 if not FULL else 7200)
