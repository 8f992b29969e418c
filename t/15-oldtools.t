#!/usr/bin/env python3
"""What we write, old tools read: zcat, and Debian's ctl_backups reindex and verify on a
copy, after everything a log can hold has happened."""

import os
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *
from cyrusrig import sandbox

BACKUPS = ("ours", "backupd")


def setup():
    if RECEIVER not in BACKUPS:
        raise Skip("receiver %s keeps no log" % RECEIVER)
    if not os.path.exists(sandbox.BIN + "/ctl_backups"):
        raise Skip("there is no ctl_backups")
    rig = start_rig()
    rig.cyrus.user("anna", "bert")
    with rig.cyrus.imap("anna") as imap:
        imap.fill("INBOX", [message(n, 700) for n in range(20)])
    rig.sync("-u", "anna", "bert")
    with rig.cyrus.imap("anna") as imap:
        imap.create("INBOX/A")
        imap.create("INBOX/A/B")
        imap.select("INBOX")
        imap.move("3:5", "INBOX/A/B")
        imap.store("1:2", "+FLAGS", "\\Seen \\Flagged $Label")
        imap.expunge("7")
        imap.subscribe("INBOX/A")
        imap.setacl("INBOX", "bert", "lrs")
    rig.cyrus.sieve_upload("anna", {"one": "# 100% \"quoted\"\r\nkeep;\r\n"}, active="one")
    rig.sync("-u", "anna")
    with rig.cyrus.imap("anna") as imap:
        imap.rename("INBOX/A", "INBOX/Z")
        imap.delete("INBOX/Z/B")
        imap.append("INBOX", message("more"))
    rig.sync("-u", "anna", attempts=2)
    return rig


def trouble(rig):
    """What the old tools have known defects with (B2: values that become literals)."""
    with rig.cyrus.imap("anna") as imap:
        imap.setmetadata("INBOX", "/private/comment", "Grüße 100%")
        imap.create("INBOX/x/y")
    rig.sync("-u", "anna", attempts=2)
    with rig.cyrus.imap("admin") as imap:
        imap.setquota("user/anna", storage=100000)
    rig.sync("-u", "anna", attempts=2)


def copy_of(rig, user):
    """A copy of the user's log, sealed because the receiver is stopped."""
    rig.to.stop()
    try:
        target = sandbox.temp_dir() + "/" + os.path.basename(rig.to.data_file(user))
        shutil.copy(rig.to.data_file(user), target)
        return sandbox.owned(target)
    finally:
        rig.to.start()


def old(rig, *args):
    return run_command([sandbox.BIN + "/ctl_backups", "-C", rig.to.conf] + list(args))


@case("zcat reads every log")
def zcat(rig):
    for user, path in rig.to.data_files().items():
        done = run_command(
            ["sh", "-c", 'zcat < "$1" | wc -c', "sh", path]
        )
        expect(done.code == 0 and not done.err.strip(), "zcat of %s's log" % user, [str(done)])
    path = copy_of(rig, "anna")
    done = run_command(["sh", "-c", 'zcat < "$1" > /dev/null', "sh", path])
    expect(done.code == 0 and not done.err.strip(), "zcat of a sealed log is silent", [str(done)])
    logfile.plain(path, unsealed=False)


@case("the first line is the comment that the old tools expect")
def comment(rig):
    first = logfile.plain(rig.to.data_file("anna"))[0][:29]
    expect_equal(first.count(b"\n"), 1, "lines in the first 29 bytes")
    expect(first.startswith(b"# ") and first.endswith(b"\n"), "it is one comment line", [repr(first)])


@case("Debian's ctl_backups reindex -f and verify -f say ok")
def reindex(rig):
    path = copy_of(rig, "anna")
    done = old(rig, "-v", "reindex", "-f", path)
    expect(done.code == 0 and "ok" in done.out, "reindex", str(done).splitlines())
    done = old(rig, "-v", "verify", "-f", path)
    expect(done.code == 0 and "ok" in done.out, "verify", str(done).splitlines())
    rows = run_command(["sqlite3", path + ".index", "select count(*) from mailbox_message where expunged is null"])
    held = rig.cyrus.dump(["anna"])
    live = sum(1 for b in held["mailboxes"].values() for r in b["records"].values() if not r["expunged"])
    expect_equal(int(rows.out or -1), live, "live messages in the index that Debian made of our log")


@case("the same after literals, intermediate mailboxes and quota", todo={"backupd": "B2, B6"})
def reindex_trouble(rig):
    trouble(rig)
    path = copy_of(rig, "anna")
    done = old(rig, "-v", "reindex", "-f", path)
    expect(done.code == 0 and "ok" in done.out, "reindex", str(done).splitlines())
    done = old(rig, "-v", "verify", "-f", path)
    expect(done.code == 0 and "ok" in done.out, "verify", str(done).splitlines())


@case("Debian's ctl_backups list finds our backups.db", only=("ours",))
def listed(rig):
    done = old(rig, "-V", "list", "-A")
    expect(done.code == 0, "list", str(done).splitlines())
    for user in ("anna", "bert"):
        expect("\t%s\t" % user in done.out, "%s is in the list" % user, done.out.splitlines())


@case("our own verify is content, and a reindexed copy lists the same", only=("ours",))
def own(rig):
    for command in ("verify", "reindex"):
        if not rig.to.has(command):
            raise Skip("there is no %s yet" % command)
    expect_none(rig.to.checked(["anna", "bert"]), "verify")
    before = rig.to.json("messages", "anna", "--deleted")
    boxes = rig.to.json("mailboxes", "anna")
    done = rig.to.tool("reindex", "anna")
    expect(done.code == 0, "reindex", str(done).splitlines())
    expect_equal(rig.to.json("messages", "anna", "--deleted"), before, "messages after reindex")
    expect_equal(rig.to.json("mailboxes", "anna"), boxes, "mailboxes after reindex")


run(setup, Rig.close)
