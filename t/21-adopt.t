#!/usr/bin/env python3
"""Backups made by Debian's backupd are taken over where they lie: same partition, same
backups.db. The real client goes on without sending a message again, mail of others is
reported and not listed, and Debian's tools still read what we have continued."""

import glob
import os
import re
import shutil
import signal
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *
from cyrusrig import sandbox
from cyrusrig.receiver import Backupd

USERS = ("anna", "bert", "cora")


def ended(to):
    """(messages, refused) of each session of ours that has ended."""
    text = sandbox.recent(to.tag, 100000)
    return [tuple(map(int, found)) for found in re.findall(r"session ended .* messages=(\d+) .* refused=(\d+)", text)]


def fill(rig, user, count, mailbox="INBOX", word="first"):
    with rig.cyrus.imap(user) as imap:
        imap.fill(mailbox, [message("%s-%s-%d" % (word, mailbox, n), 500, to=user) for n in range(count)])


def content(path):
    with open(path, "rb") as file:
        return file.read()


def setup():
    if RECEIVER != "ours":
        raise Skip("this is about taking over from backupd to ours")
    if not os.path.exists(sandbox.BIN + "/backupd"):
        raise Skip("there is no backupd")
    rig = start_rig()
    rig.old = Backupd()
    rig.cyrus.user(*USERS)
    for user in USERS:
        fill(rig, user, 6)
    # All in one session: bert's and cora's mail gets into anna's log.
    rig.sync("-A", to=rig.old)
    with rig.cyrus.imap("anna") as imap:
        imap.create("INBOX/A")
        imap.create("INBOX/B")
        imap.subscribe("INBOX/A")
        imap.select("INBOX")
        imap.store("1:2", "+FLAGS", "\\Seen $Label")
        imap.move("3:4", "INBOX/A")
        imap.setmetadata("INBOX/B", "/private/comment", "100% \"Grüße\"")
    rig.cyrus.sieve_upload("anna", {"one": "# 100%\r\nkeep;\r\n"}, active="one")
    rig.sync("-u", "anna", to=rig.old)
    with rig.cyrus.imap("anna") as imap:
        imap.select("INBOX/A")
        imap.move("1", "INBOX")
        imap.rename("INBOX/B", "INBOX/C")
    rig.sync("-u", "anna", to=rig.old)
    with rig.cyrus.imap("admin") as imap:
        imap.create("board")
        imap.setacl("board", "anyone", "lrswipkxte")
        imap.append("board", message("board"))
    rig.sync("-m", "board", to=rig.old)
    # What it answers, before it goes.
    rig.told = {user: told(rig.old, user) for user in USERS}
    rig.old.stop()
    rig.to.stop()
    rig.to.tree = rig.old.tree
    rig.to.write_conf(**{"configdirectory": rig.old.tree + "/conf", "backuppartition-default": rig.old.tree + "/backup"})
    rig.files = rig.to.data_files()
    rig.before = {user: content(path) for user, path in rig.files.items()}
    rig.indexes = {user: content(path + ".index") for user, path in rig.files.items()}
    rig.to.start()
    return rig


def kill_writer(to, path):
    """kill -9 of the backupd that has a log open."""
    family = [to.process.pid]
    for pid in family:
        with open("/proc/%d/task/%d/children" % (pid, pid)) as file:
            family += [int(word) for word in file.read().split()]
        for fd in os.listdir("/proc/%d/fd" % pid):
            try:
                found = os.path.samefile("/proc/%d/fd/%s" % (pid, fd), path)
            except OSError:
                continue
            if found:
                os.kill(pid, signal.SIGKILL)
                return
    raise Failed("nobody has %s open" % path)


def told(to, user):
    wire = to.csync()
    try:
        lines = wire.command("GET USER", user)
    finally:
        wire.close()
    boxes = {v["MBOXNAME"]: v for k, v in lines if k == "MAILBOX"}
    rest = sorted(repr(v) for k, v in lines if k in ("LSUB", "SEEN"))
    scripts = {v["FILENAME"]: (v["GUID"], v["LAST_UPDATE"]) for k, v in lines if k == "SIEVE"}
    return boxes, rest, scripts


def unchanged(rig):
    """Users whose log is not what it was."""
    return [user for user, path in rig.files.items() if content(path) != rig.before[user]]


@case("looking at them changes no log, and keeps the old index")
def looking(rig):
    for command in ("mailboxes", "messages", "chunks", "stat"):
        for user in USERS + ("%SHARED",):
            rig.to.json(command, user)
    expect_equal(unchanged(rig), [], "logs that changed")
    for user, path in rig.files.items():
        kept = glob.glob(glob.escape(path) + ".index.[0-9]*")
        expect_equal(len(kept), 1, "old indexes kept of " + user)
        expect(content(kept[0]) == rig.indexes[user], "it is what it was")
    found = {row["userid"]: row for row in rig.to.json("list")["backups"]}
    expect_equal(sorted(found), sorted(USERS + ("%SHARED",)), "list")
    expect(all("error" not in row for row in found.values()), "no errors", [str(found)])
    listed = rig.to.listing(USERS, ["board"])
    expect_none(compare.mailboxes(rig.cyrus.dump(USERS, ["board"])["mailboxes"], listed, ("mboxtype",)), "server against our listing")


@case("mail of others is told, and not shown as the user's")
def foreign(rig):
    for user, many in (("anna", 12), ("bert", 6), ("cora", 0)):
        row = rig.to.json("stat", user)["backups"][0]
        expect_equal(row["unreferenced"], many, "bodies in %s's log that no record refers to" % user)
        expect(row["unreferenced_bytes"] >= 400 * many, "their bytes", [str(row)])
        shown = rig.to.json("messages", user, "--deleted")["messages"]
        expect(all(item["mboxname"].split(".")[1] == user for item in shown), "only their own", [str(shown)[:300]])
        expect_equal(len({item["guid"] for item in shown}), 6, "messages of %s" % user)


@case("GET USER tells what backupd told")
def answers(rig):
    for user in USERS:
        was, is_ = rig.told[user], told(rig.to, user)
        expect_equal(sorted(is_[0]), sorted(was[0]), "mailboxes")
        for name, box in was[0].items():
            for key, value in box.items():
                if key in ("MBOXTYPE", "QUOTAROOT", "XCONVMODSEQ", "ANNOTATIONS"):
                    continue
                expect_equal(is_[0][name].get(key), value, "%s of %s" % (key, name))
            expect_equal(repr(is_[0][name].get("ANNOTATIONS")), repr(box.get("ANNOTATIONS")), "annotations of %s" % name)
        expect_equal(is_[1], was[1], "subscriptions and seen states")
        expect_equal(is_[2], was[2], "scripts")
    expect_equal(unchanged(rig), [], "logs that changed")


@case("-u: nothing is sent again, and nothing is refused")
def user_sync(rig):
    before = rig.cyrus.state(USERS)
    rig.sync("-u", *USERS)
    wait_for(lambda: ended(rig.to), 5, "line about the session")
    done = ended(rig.to)
    expect_equal([m for m, _refused in done], [0] * len(done), "messages sent")
    expect_equal([r for _m, r in done], [0] * len(done), "commands refused")
    rig.harmless(before, USERS)
    rig.whole(*USERS, bodies=False, ignore=("mboxtype",))
    # The server tells which script is active, which backupd never kept.
    expect(set(unchanged(rig)) <= {"anna"}, "logs that changed", [str(unchanged(rig))])


@case("new mail is sent once, by -u and by a rolling client")
def more(rig):
    fill(rig, "anna", 2, word="second")
    with rig.cyrus.imap("anna") as imap:
        imap.select("INBOX")
        imap.store("1", "+FLAGS", "\\Answered")
        imap.expunge("2")
        imap.rename("INBOX/C", "INBOX/D")
    count = len(ended(rig.to))
    rig.sync("-u", "anna")
    wait_for(lambda: len(ended(rig.to)) > count, 5, "line about the session")
    expect_equal(ended(rig.to)[count:], [(2, 0)], "messages sent, commands refused")
    rig.whole("anna", bodies=False, ignore=("mboxtype",))
    count = len(ended(rig.to))
    client = rig.cyrus.rolling(rig.to)
    client.drain()
    for user in USERS:
        fill(rig, user, 1, word="third")
    client.drain()
    client.stop()
    wait_for(lambda: len(ended(rig.to)) > count, 10, "line about the session")
    # One for each user, and the shared mailbox, which begins a backup of its own.
    expect_equal([sum(c) for c in zip(*ended(rig.to)[count:])], [4, 0], "messages sent, commands refused")
    rig.whole(*USERS, bodies=False, ignore=("mboxtype",))
    for user in USERS:
        expect(content(rig.files[user]).startswith(rig.before[user]), "%s's log goes on where it ended" % user)


@case("the log names itself from the first change on, and a rebuilt index says the same")
def named(rig):
    for user in USERS:
        facts = [
            value["X-CYRBACKUP"]["GENERATION"]
            for _stamp, name, value in logfile.lines(rig.files[user])
            if name == "RESERVE" and "GENERATION" in (value.get("X-CYRBACKUP") or {})
        ]
        expect_equal([fact["KEY"].decode() for fact in facts], [user], "names in the log")
        listed = rig.to.json("messages", user, "--deleted")
        done = rig.to.tool("reindex", user)
        expect(done.code == 0, "reindex", str(done).splitlines())
        expect_equal(rig.to.json("messages", user, "--deleted"), listed, "messages after reindex")
    expect_none(rig.to.checked(list(USERS)), "verify")
    rig.to.restart()
    expect_none(rig.to.checked(list(USERS)), "verify after a restart")


@case("one whose writer was killed in a session: the sync goes on, nothing is sent again")
def killed(rig):
    old = Backupd()
    try:
        rig.cyrus.user("dora")
        fill(rig, "dora", 4)
        rig.sync("-u", "dora", to=old)
        wire = old.csync()
        wire.command("GET USER", "dora")
        for n in range(3):
            wire.command("APPLY SUB", {"USERID": "dora", "MBOXNAME": "user.dora.f%d" % n})
        path = old.data_file("dora")
        kill_writer(old, path)
        old.stop()
        to = receiver(start=False, configdirectory=old.tree + "/conf", **{"backuppartition-default": old.tree + "/backup"})
        to.tree = old.tree
        before = content(path)
        listed = to.json("messages", "dora")["messages"]
        expect_equal(len(listed), 4, "messages listed by a tool")
        expect(content(path).startswith(before), "nothing of the log is lost")
        to.start()
        try:
            rig.sync("-u", "dora", to=to)
            wait_for(lambda: ended(to), 5, "line about the session")
            expect_equal(ended(to), [(0, 0)], "messages sent, commands refused")
            rig.whole("dora", to=to, bodies=False, ignore=("mboxtype",))
            expect_none(to.checked(["dora"]), "verify")
        finally:
            to.stop()
    finally:
        old.stop()


@case("a shared mailbox begins its own backup, the old one stays readable")
def shared(rig):
    listed = rig.to.json("messages", "%SHARED")["messages"]
    expect_equal([item["mboxname"] for item in listed], ["board"], "what the old one lists")
    rig.sync("-m", "board")
    expect("%SHARED//board" in rig.to.data_files(), "its own", [str(rig.to.data_files())])
    rig.whole(shared=["board"], bodies=False)
    expect_equal(rig.to.json("messages", "%SHARED")["messages"], listed, "the old one still")
    found = {row["userid"] for row in rig.to.json("list")["backups"]}
    expect({"%SHARED", "%SHARED//board"} <= found, "both are listed", [str(found)])


@case("Debian's ctl_backups reindex and verify are content with a copy that needs no literal")
def debian(rig):
    for user in ("bert", "cora"):
        rig.to.stop()
        copy = sandbox.temp_dir() + "/" + user
        shutil.copy(rig.files[user], copy)
        rig.to.start()
        sandbox.owned(copy)
        for command in ("reindex", "verify"):
            done = run_command([sandbox.BIN + "/ctl_backups", "-C", rig.to.conf, "-v", command, "-f", copy])
            expect(done.code == 0 and "ok" in done.out, command, str(done).splitlines())


def close(rig):
    rig.old.stop()
    rig.close()


run(setup, close)
