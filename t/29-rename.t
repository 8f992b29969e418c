#!/usr/bin/env python3
"""A user gets another name on the server and here by hand: the backup goes along with its
past, nothing is sent again, and every way to make index and catalogue anew agrees."""

import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *
from cyrusrig import sandbox

TOOL = "/usr/lib/cyrus/bin/cyr_dbtool"


def setup():
    if RECEIVER != "ours":
        raise Skip("not for receiver %s" % RECEIVER)
    return start_rig({"backup_rename": "reject"})


def made(rig, user):
    rig.cyrus.user(user)
    with rig.cyrus.imap(user) as imap:
        imap.fill("INBOX", [message("%s%d" % (user, n), 3000, to=user) for n in range(20)])
        imap.create("INBOX/Sub")
        imap.create("INBOX/a.b")
        imap.create("INBOX/x/y")
        imap.subscribe("INBOX/Sub")
        imap.append("INBOX/Sub", message("sub", to=user))
    rig.sync("-u", user)
    with rig.cyrus.imap(user) as imap:
        imap.select("INBOX")
        imap.expunge("3")
        imap.delete("INBOX/a.b")
    rig.sync("-u", user)


def server_renames(rig, old, new):
    with rig.cyrus.imap("admin") as imap:
        imap.rename("user/" + old, "user/" + new)


def rename(rig, old, new, code=0):
    done = rig.to.tool("rename", old, new)
    expect(done.code == code, "status of rename is %d" % code, [str(done)])
    return done.out + done.err


def findings(rig):
    return rig.to.tool("rescan").out


def catalog(rig, *words):
    path = rig.to.tree + "/conf/backups.db"
    done = run_command([TOOL, "-C", rig.to.conf, path, "twoskip"] + list(words))
    expect_equal(done.code, 0, "cyr_dbtool %s" % (words,))


@case("by hand, after the server: no mail is sent again, the past is there")
def by_hand(rig):
    made(rig, "miss")
    path = rig.to.data_file("miss")
    server_renames(rig, "miss", "missis")
    size = os.path.getsize(path)
    said = rename(rig, "miss", "missis")
    expect("miss is missis now" in said, "what is said", [said])
    expect_equal((rig.to.data_file("missis"), rig.to.data_file("miss")), (path, None), "entries")
    rig.sync("-u", "missis", attempts=2)
    rig.whole("missis", bodies=False)
    grown = os.path.getsize(path) - size
    expect(grown < 20000, "no bodies came again", ["grown by %d" % grown])
    gone = [m for m in rig.to.json("messages", "missis", "--deleted")["messages"] if m["expunged"]]
    expect_equal(len(gone), 1, "what was expunged before")
    subs = [s["mboxname"] for s in rig.to.json("show", "missis", "subscriptions")["subscriptions"]]
    expect_equal(subs, ["user.missis.Sub"], "subscriptions")
    with rig.cyrus.imap("missis") as imap:
        imap.append("INBOX/Sub", message("later"))
    rig.sync("-u", "missis")
    rig.whole("missis", bodies=False)
    expect(" 0 findings" in findings(rig), "rescan agrees", [findings(rig)])
    done = rig.to.tool("verify", "missis")
    expect_equal(done.code, 0, "verify")


@case("index and catalogue are lost: the log says whose it is")
def lost(rig):
    path = rig.to.data_file("missis")
    rig.to.stop()
    rig.to.drop_index("missis")
    os.unlink(rig.to.tree + "/conf/backups.db")
    rig.to.tool("rescan", "--fix")
    rig.to.start()
    expect_equal(rig.to.data_files().get("missis"), path, "entry of the new name")
    expect_equal(rig.to.data_file("miss"), None, "entry of the old name")
    rig.sync("-u", "missis")
    rig.whole("missis", bodies=False)


@case("interrupted between log and catalogue: the same again ends it, and so does rescan")
def interrupted(rig):
    for end in ("rename", "rescan"):
        old, new = "old" + end, "new" + end
        made(rig, old)
        path = rig.to.data_file(old)
        server_renames(rig, old, new)
        rename(rig, old, new)
        catalog(rig, "delete", new)
        catalog(rig, "set", old, path)
        expect("the log says %s" % new in findings(rig), "rescan tells", [findings(rig)])
        size = os.path.getsize(path)
        if end == "rename":
            rename(rig, old, new)
            expect_equal(os.path.getsize(path), size, "the log is not told twice")
        else:
            rig.to.tool("rescan", "--fix")
        expect_equal((rig.to.data_file(new), rig.to.data_file(old)), (path, None), "entries")
        rig.sync("-u", new, attempts=2)
        rig.whole(new, bodies=False)


@case("a name that is taken, missing or no user is refused, and nothing changed")
def refused(rig):
    made(rig, "anna")
    made(rig, "bert")
    before = {user: (rig.to.data_file(user), os.path.getsize(rig.to.data_file(user))) for user in ("anna", "bert")}
    expect("bert has a backup" in rename(rig, "anna", "bert", code=1), "taken")
    expect("nobody: no backup" in rename(rig, "nobody", "carl", code=1), "missing")
    rename(rig, "%SHARED//x", "carl", code=64)
    expect("same user" in rename(rig, "anna", "anna", code=64), "the same")
    held = subprocess.Popen(
        sandbox.as_cyrus([rig.to.path, "-C", rig.to.conf, "lock", "anna"]), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    held.stdout.readline(), held.stdout.readline()
    expect("held by process" in rename(rig, "anna", "carl", code=75), "locked")
    held.stdin.close()
    held.wait(20)
    after = {user: (rig.to.data_file(user), os.path.getsize(rig.to.data_file(user))) for user in ("anna", "bert")}
    expect_equal(after, before, "logs and entries")
    rig.whole("anna", "bert")


@case("a list of renames, in an order in which each name is free")
def many(rig):
    for user in ("one", "two", "three"):
        made(rig, user)
    paths = {user: rig.to.data_file(user) for user in ("one", "two", "three")}
    names = "# comment\none two\n\ntwo three\nthree four\n".encode()
    script = [sandbox.TOP + "/contrib/rename-users", "-C", rig.to.conf]
    env = dict(os.environ, CYR_BACKUP=rig.to.path)
    done = run_command(script + ["-n"], stdin=names, env=env, cyrus=False)
    expect_equal([line.split()[-2:] for line in done.out.splitlines()], [["three", "four"], ["two", "three"], ["one", "two"]], "order")
    done = run_command(script, stdin=names, env=env, cyrus=False)
    expect_equal(done.code, 0, "status")
    now = {user: rig.to.data_file(user) for user in ("one", "two", "three", "four")}
    expect_equal(now, {"one": None, "two": paths["one"], "three": paths["two"], "four": paths["three"]}, "entries")
    done = run_command(script, stdin=b"a b\nb a\n", env=env, cyrus=False)
    expect(done.code != 0 and "in a circle" in done.err, "a circle is refused", [str(done)])


run(setup, Rig.close)
