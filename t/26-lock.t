#!/usr/bin/env python3
"""lock: until end of input, around sqlite3, around a command; beside Debian's ctl_backups
in both directions, and before a sync_client that wants the same backup."""

import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *
from cyrusrig import sandbox

CTL = sandbox.BIN + "/ctl_backups"


def setup():
    if RECEIVER != "ours":
        raise Skip("not for receiver %s" % RECEIVER)
    rig = start_rig({"backup_lock_wait": "1s"})
    rig.cyrus.user("anna")
    with rig.cyrus.imap("anna") as imap:
        imap.fill("INBOX", [message(n) for n in range(5)])
    rig.sync("-u", "anna")
    return rig


class Held:
    """`COMMAND lock -p ...` that has said OK, until the block ends."""

    def __init__(self, *argv):
        self.child = subprocess.Popen(
            sandbox.as_cyrus([str(a) for a in argv]), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.said = [self.child.stdout.readline().decode().rstrip() for _ in range(2)]

    def __enter__(self):
        expect_equal(self.said[1], "OK locked", "what the holder said")
        return self

    def __exit__(self, *_error):
        self.child.stdin.close()
        expect_equal(self.child.wait(20), 0, "exit status of the holder")


def ours(rig, *args):
    return Held(rig.to.path, "-C", rig.to.conf, "lock", *args)


@case("-p says what the old tool says and holds until end of input")
def pause(rig):
    with ours(rig, "anna") as held:
        expect_equal(held.said[0], "* Trying to obtain lock on anna...", "first line")
        done = rig.to.tool("lock", "-p", "anna", stdin=b"")
        expect_equal(done.code, 75, "status of a second one")
        lines = done.out.splitlines()
        expect_equal(lines[0], "* Trying to obtain lock on anna...", "first line")
        who = "held by process %d (" % held.child.pid
        expect(lines[1].startswith("NO failed (locked: ") and who in lines[1], "the holder is named", lines)
        # Reading goes on.
        rig.whole("anna")
    done = rig.to.tool("lock", "anna", stdin=b"")
    expect_equal((done.code, done.out.splitlines()[1:]), (0, ["OK locked"]), "afterwards it is free")


@case("a holder that was started as root, and became cyrus, is named too")
def root(rig):
    if os.geteuid() != 0:
        raise Skip("only root can become somebody")
    child = subprocess.Popen(
        [rig.to.path, "-C", rig.to.conf, "lock", "anna"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    said = [child.stdout.readline() for _ in range(2)]
    try:
        expect_equal(said[1], b"OK locked\n", "what the holder said")
        done = rig.to.tool("lock", "-p", "anna", stdin=b"")
        expect("held by process %d (" % child.pid in done.out, "the holder is named", [str(done)])
    finally:
        child.stdin.close()
        expect_equal(child.wait(20), 0, "exit status of the holder")


@case("-x: environment, output and exit status are the child's")
def execute(rig):
    path = rig.to.data_file("anna")
    script = 'echo "$ctl_backups_lock_data_fname $ctl_backups_lock_index_fname"; exit 3'
    done = rig.to.tool("lock", "-x", script, "anna")
    expect_equal((done.code, done.out), (3, "%s %s.index\n" % (path, path)), "a child with 3")
    expect_equal(rig.to.tool("lock", "-x", "kill -9 $$", "anna").code, 137, "a killed child")
    expect_equal(rig.to.tool("lock", "-x", "true", "-f", path).code, 0, "by path")
    expect_equal(rig.to.tool("lock", "-x", "true", "-m", "user/anna").code, 0, "by mailbox")
    inner = "%s -C %s lock -x true anna" % (rig.to.path, rig.to.conf)
    done = rig.to.tool("lock", "-x", inner, "anna")
    expect_equal(done.code, 75, "the child finds it locked")
    expect("held by process" in done.err, "and says by whom", [done.err])


@case("under the lock both files are at rest, whatever the writer was doing")
def rest(rig):
    with rig.cyrus.imap("anna") as imap:
        imap.append("INBOX", message("unsealed"))
    rig.sync("-u", "anna")
    rig.to.kill()
    rig.to.start()
    script = 'ls "$ctl_backups_lock_index_fname-wal"; gzip -t < "$ctl_backups_lock_data_fname"'
    done = rig.to.tool("lock", "-x", script, "anna")
    expect_equal(done.code, 0, "gzip -t under the lock")
    expect("cannot access" in done.err, "no journal beside the index", [done.out, done.err])


@case("-s opens the index in sqlite3")
def sqlite(rig):
    done = rig.to.tool("lock", "-s", "anna", stdin=b"select count(*) from record;\n")
    expect_equal((done.code, done.out.strip()), (0, "6"), "answer of sqlite3")


@case("-c makes a data file that must not exist")
def create(rig):
    path = rig.to.data_file("anna")
    new = os.path.dirname(path) + "/made_abcdef"
    expect_equal(rig.to.tool("lock", "-c", "-x", "test -f %s" % new, "-f", new).code, 0, "made")
    done = rig.to.tool("lock", "-c", "-p", "-f", new, stdin=b"")
    expect_equal(done.code, 1, "it exists now")
    expect("NO failed (" in done.out, "and that is said", [done.out])
    expect_equal(rig.to.tool("lock", "-c", "-x", "true", "nobody").code, 1, "no such user")
    for suffix in ("", ".index"):
        os.unlink(new + suffix)


@case("Debian's ctl_backups holds: ours is refused, names it, and waits with -w")
def old_holds(rig):
    if not os.path.exists(CTL):
        raise Skip("there is no ctl_backups")
    copy = sandbox.temp_dir() + "/anna_abcdef"
    run_command(["cp", rig.to.data_file("anna"), copy], cyrus=False)
    sandbox.owned(copy)
    old = [CTL, "-C", rig.to.conf]
    expect_equal(run_command(old + ["reindex", "-f", copy]).code, 0, "reindex by the old tool")
    # Its own words stay in its buffer while the other end is a pipe.
    say = "echo; echo OK locked; cat"
    with Held(*old, "lock", "-x", say, "-f", copy):
        done = rig.to.tool("lock", "-x", "true", "-f", copy)
        expect_equal(done.code, 75, "ours is refused")
        # Under `su` or the like the lock is a child's of what we started.
        expect("held by process" in done.err and "(ctl_backups)" in done.err, "the holder is named", [done.err])
        waiting = subprocess.Popen(
            sandbox.as_cyrus([rig.to.path, "-C", rig.to.conf, "lock", "-w", "-x", "echo got it", "-f", copy]),
            stdout=subprocess.PIPE,
        )
        try:
            waiting.wait(1)
            raise Failed("-w did not wait")
        except subprocess.TimeoutExpired:
            pass
    out, _err = waiting.communicate(timeout=20)
    expect_equal((waiting.returncode, out), (0, b"got it\n"), "with -w it is got in the end")
    with Held(rig.to.path, "-C", rig.to.conf, "lock", "-f", copy):
        done = run_command(old + ["lock", "-p", "-f", copy], stdin=b"")
        expect_equal(done.code, 75, "ours holds: Debian's is refused")
        expect("NO failed (" in done.out and "locked" in done.out, "and says why", [done.out])


@case("under the name ctl_backups old command lines do the same")
def old_name(rig):
    link = sandbox.temp_dir() + "/ctl_backups"
    os.symlink(rig.to.path, link)
    path = rig.to.data_file("anna")
    old = [link, "-C", rig.to.conf]
    script = 'test "$ctl_backups_lock_data_fname" = %s && exit 5' % path
    done = run_command(old + ["lock", "-x", script, "-u", "anna"])
    expect_equal(done.code, 5, "status of the child")
    with Held(*old, "lock", "--pause", "anna"):
        expect_equal(run_command(old + ["-j", "lock", "-s", "anna"], stdin=b"").code, 75, "locked")


@case("a sync of the user waits, is told locked, and succeeds afterwards")
def sync(rig):
    with rig.cyrus.imap("anna") as imap:
        imap.append("INBOX", message("while locked"))
    with ours(rig, "anna"):
        done = rig.cyrus.sync(rig.to, "-u", "anna")
        expect(done.code != 0, "the sync cannot succeed", [str(done)])
    rig.sync("-u", "anna")
    rig.whole("anna")


run(setup, Rig.close)
