#!/usr/bin/env python3
"""The disk is full: the real sender gets a refusal that it repeats, others' small things go on as
far as they fit, space returns, and the next sync completes. Nothing acknowledged is missing and
nothing stale is left, on disk or open. On small tmpfs of our own, so it needs root."""

import glob
import os
import re
import shutil
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *
from cyrusrig import sandbox, tap
from cyrusrig.witness import Witness

if RECEIVER != "ours":
    skip_all("about our receiver only")


class Disk:
    """A tmpfs of a few MiB, with a file that takes what is to be taken."""

    def __init__(self, where, mib):
        sandbox.make_dir(where)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=%dM,mode=777" % mib, "none", where], capture_output=True)
        if done.returncode != 0:
            raise Skip("cannot mount a tmpfs: %s" % done.stderr.decode().strip())
        self.where = where
        self.filler = where + "/filler"

    def free(self):
        stat = os.statvfs(self.where)
        return stat.f_bavail * stat.f_frsize

    def fill(self, leave=0):
        """Take everything but `leave` bytes."""
        size = os.path.getsize(self.filler) if os.path.exists(self.filler) else 0
        with open(self.filler, "ab") as file:
            while self.free() > leave:
                piece = min(self.free() - leave, 1 << 16)
                try:
                    file.write(b"x" * piece)
                    file.flush()
                except OSError:
                    break
        return os.path.getsize(self.filler) - size

    def empty(self):
        if os.path.exists(self.filler):
            os.unlink(self.filler)

    def close(self):
        subprocess.run(["umount", self.where], check=False)


class Full:
    def __init__(self):
        self.rig = start_rig({"start": False})
        self.cyrus, self.to = self.rig.cyrus, self.rig.to
        self.why = self.rig.why
        self.disk = Disk(self.to.dir + "/disk", 6)
        try:
            self.backup = sandbox.make_dir(self.disk.where + "/backup")
            self.to.write_conf(**{"backuppartition-default": self.backup})
            self.to.start()
        except BaseException:
            self.close()
            raise
        self.witness = Witness(self.to)
        self.number = 0

    def begin(self):
        """Each case has room at first, whatever became of the one before."""
        self.disk.empty()
        self.rig.begin()

    def close(self):
        self.rig.close()
        self.disk.close()

    def user(self, name):
        self.cyrus.user(name)
        with self.cyrus.imap(name) as imap:
            imap.fill("INBOX", [message(n, 2000, to=name) for n in range(5)])
        self.rig.sync("-u", name)
        self.rig.whole(name)

    def mail(self, user, size=400000, count=1):
        """New mail that does not shrink."""
        with self.cyrus.imap(user) as imap:
            for _ in range(count):
                self.number += 1
                imap.append("INBOX", message("big%d" % self.number, to=user) + os.urandom(size // 2).hex().encode())

    def refused(self, user):
        """A sync of the user fails, with an answer to each command."""
        silent = len(self.witness.unanswered())
        done = self.cyrus.sync(self.witness, "-u", user, timeout=90)
        expect(done.code not in (0, None), "the sender is told", [str(done)])
        expect_none(self.witness.unanswered()[silent:], "no answer")
        expect("no space" in self.cyrus.recent_log(100).lower(), "it is told why", [self.cyrus.recent_log(10)])

    def acknowledged(self, *users):
        expect_none(self.witness.lacks(users, users), "acknowledged and not there")

    def clean(self, where=None):
        """No half file, no staging, nothing open that is deleted or idle."""
        strange = []
        for folder, _dirs, files in os.walk(where or self.backup):
            for name in files:
                if not re.fullmatch(r"[a-z0-9]+_[A-Za-z0-9]{6}(\.index(-wal|-shm)?)?", name):
                    strange.append("%s/%s" % (folder, name))
        named = set(self.to.data_files().values())
        for folder, _dirs, files in os.walk(self.backup):
            strange += [n for n in files if ".index" not in n and os.path.join(folder, n) not in named]
        expect_none(strange + os.listdir(self.to.dir + "/tmp"), "files left")

        def idle():
            links = []
            for name in os.listdir("/proc/%d/fd" % self.to.process.pid):
                try:
                    links.append(os.readlink("/proc/%d/fd/%s" % (self.to.process.pid, name)))
                except OSError:
                    pass
            return not [link for link in links if "(deleted)" in link or self.backup in link]

        wait_for(idle, 10, "descriptors of files that are deleted or in no use")


@case("a sender meets a full disk, and completes when there is space")
def sender(full):
    full.user("anna")
    full.user("bert")
    full.disk.fill(300000)
    full.mail("anna", count=3)
    full.refused("anna")
    full.acknowledged("anna", "bert")
    # What fits still comes in; no other user suffers.
    with full.cyrus.imap("bert") as imap:
        imap.append("INBOX", message("small", to="bert"))
    full.rig.sync("-u", "bert")
    full.rig.whole("bert")
    expect(full.to.tool("verify", "anna", "bert").code == 0, "verify while it is full")
    full.disk.empty()
    full.rig.sync("-u", "anna")
    full.rig.whole("anna", "bert")
    full.clean()


@case("not a byte left: old and new users, readers, and a restart")
def nothing_left(full):
    full.user("carl")
    full.user("idle")
    full.mail("carl", 5000)
    full.cyrus.user("newone")
    full.disk.fill()
    expect_equal(full.disk.free(), 0, "free bytes")
    for user in ("carl", "newone"):
        full.refused(user)
    # What is at rest can be looked at: a tool that closed last may have left a write-ahead log.
    wal = full.to.data_file("idle") + ".index-wal"
    at_rest = not os.path.exists(wal) or not os.path.getsize(wal)
    for command in ("messages", "stat", "show", "verify") if at_rest else ():
        done = full.to.tool(command, "idle", *(["marks"] if command == "show" else []))
        expect_equal(done.code, 0, "%s: %s" % (command, done))
    expect("idle" in full.to.tool("list").out, "list goes on behind what cannot be read")
    full.to.kill()
    full.to.start()
    full.refused("carl")
    full.acknowledged("carl")
    full.disk.empty()
    full.rig.sync("-u", "carl", "newone")
    full.rig.whole("carl", "newone")
    full.clean()


@case("a rolling sender stays, and works its log off when there is space")
def rolling(full):
    full.user("dora")
    client = full.cyrus.rolling(full.to)
    try:
        full.disk.fill(100000)
        full.mail("dora", count=2)
        with full.cyrus.imap("bert") as imap:
            imap.append("INBOX", message("behind it", to="bert"))
        time.sleep(4)
        expect(client.running(), "the rolling client is still there", [client.process.output()])
        # A refusal comes after a pause: no loop that fills the log.
        refusals = [l for l in full.to.recent_log(1000).splitlines() if "command failed" in l and "dora" in l]
        expect(0 < len(refusals) < 12, "%d refusals in 4 s" % len(refusals))
        full.disk.empty()
        client.drain(60)
        expect(client.running(), "the rolling client is still there", [client.process.output()])
    finally:
        client.stop()
    full.rig.whole("dora", "bert")
    full.clean()


@case("reindex, verify and heal on a full disk: the backup stays as it was")
def tools(full):
    full.user("emil")
    with full.cyrus.imap("emil") as imap:
        imap.fill("INBOX", [message("e%d" % n, 500, to="emil") for n in range(400)])
    full.rig.sync("-u", "emil")
    full.disk.fill()
    for command in ("verify", "heal"):
        done = full.to.tool(command, "emil")
        # An index with a write-ahead log cannot be opened now. It is no damage.
        expect(done.code in (0, 1, 74), "%s: %s" % (command, done))
        expect(done.code == 0 or "I/O" in done.err or "space" in done.err, "it says why", [str(done)])
    done = full.to.tool("reindex", "emil")
    expect(done.code not in (0, None, 65), "reindex has no room", [str(done)])
    expect(re.search("space|full|I/O", done.err), "it says why", [str(done)])
    # What it had made so far takes no room from the others.
    expect_none(glob.glob(glob.escape(full.to.data_file("emil")) + ".index.new*"), "half an index")
    full.disk.empty()
    # The index that was there is still in use.
    full.to.json("messages", "emil")
    full.rig.whole("emil")
    with full.cyrus.imap("emil") as imap:
        imap.append("INBOX", message("after", to="emil"))
    full.rig.sync("-u", "emil")
    full.rig.whole("emil")
    expect_equal(full.to.tool("reindex", "emil").code, 0, "reindex")
    full.rig.whole("emil")
    full.clean()


@case("an index that is lost on a full disk comes back with the space")
def lost_index(full):
    full.user("fritz")
    full.to.stop()
    full.to.drop_index("fritz")
    full.to.start()
    full.disk.fill()
    full.mail("fritz", 5000)
    full.refused("fritz")
    full.disk.empty()
    full.rig.sync("-u", "fritz")
    full.rig.whole("fritz")
    full.clean()


tap.run(Full, Full.close)
