#!/usr/bin/env python3
"""A whole backup is deleted, brought back, removed after its grace, erased; with syncs of
the real sync_client in between, and interrupted at each step."""

import fcntl
import os
import shutil
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *
from cyrusrig import sandbox


def setup():
    if RECEIVER != "ours":
        raise Skip("not for receiver %s" % RECEIVER)
    return start_rig({"backup_delete_grace": "30d"})


def made(rig, user, count=5):
    rig.cyrus.user(user)
    with rig.cyrus.imap(user) as imap:
        imap.fill("INBOX", [message("%s%d" % (user, n), to=user) for n in range(count)])
    rig.sync("-u", user)


def names(rig, *words):
    return [b["userid"] for b in rig.to.json("list", *words)["backups"]]


def deleted(rig, user):
    return [b for b in rig.to.json("list", "--deleted")["backups"] if b["userid"] == user]


def asked(rig, *words, code=0):
    done = rig.to.tool(*words)
    expect_equal(done.code, code, "status of %s" % " ".join(words))
    return done.out + done.err


@case("deleted: not live, listed with its time, and brought back whole")
def there_and_back(rig):
    made(rig, "anna")
    path = rig.to.data_file("anna")
    said = asked(rig, "delete", "anna")
    expect("anna: deleted: kept until" in said and "%FORMER/anna/" in said, "what is said", [said])
    expect("anna" not in names(rig), "not listed as live")
    expect("no backup" in asked(rig, "stat", "anna", code=1), "unknown to other commands")
    one = deleted(rig, "anna")[0]
    expect_equal(one["until"] - one["deleted"], 30 * 86400, "grace")
    expect(one["key"].startswith("%FORMER/anna/") and one["path"] == rig.to.data_file(one["key"]), "its key", [str(one)])
    held = rig.to.json("messages", one["key"])["messages"]
    expect_equal(len(held), 5, "messages of the deleted one, by its key")
    expect("deleted already" in asked(rig, "delete", one["key"], code=64), "not twice")
    expect("0 findings" in asked(rig, "rescan"), "nothing to complain about")
    asked(rig, "delete", "--undo", "anna")
    expect_equal(rig.to.data_file("anna"), path, "its old place")
    rig.whole("anna")
    rig.sync("-u", "anna")
    expect_equal(deleted(rig, "anna"), [], "deleted ones left")


@case("a sync in between begins a new backup: nothing is mixed, undo is refused")
def sync_between(rig):
    made(rig, "bert")
    old = rig.to.data_file("bert")
    size = os.path.getsize(old)
    asked(rig, "delete", "bert")
    gone = deleted(rig, "bert")[0]
    with rig.cyrus.imap("bert") as imap:
        imap.append("INBOX", message("new", to="bert"))
    rig.sync("-u", "bert")
    rig.whole("bert")
    expect(rig.to.data_file("bert") != old, "a new file")
    expect_equal(os.path.getsize(gone["path"]), size, "the deleted log is as it was")
    said = asked(rig, "delete", "--undo", "bert", code=1)
    expect("there is a backup in its place" in said and rig.to.data_file("bert") in said, "why not", [said])
    # Both are deleted now; the last one comes back first.
    asked(rig, "delete", "bert")
    expect_equal(len(deleted(rig, "bert")), 2, "deleted backups")
    asked(rig, "delete", "--undo", gone["key"])
    rig.sync("-u", "bert", attempts=2)
    rig.whole("bert")
    expect_equal(len(deleted(rig, "bert")), 1, "the other one is left")


@case("while a session has it open it is locked; -w waits")
def held(rig):
    made(rig, "carl")
    wire = rig.to.csync()
    try:
        wire.command("GET USER", "carl")
        wire.command("APPLY SUB", {"USERID": "carl", "MBOXNAME": "user.carl"})
        said = asked(rig, "delete", "carl", code=75)
        expect("locked: held by process" in said, "by whom", [said])
    finally:
        wire.close()
    asked(rig, "delete", "-w", "carl")
    expect_equal(len(deleted(rig, "carl")), 1, "deleted")


def age(rig, key, days):
    """Makes a deleted backup look older: its name tells its age."""
    path = rig.to.data_file(key)
    base, _mark, when = path.rpartition(".deleted.")
    new = "%s.deleted.%d" % (base, int(when) - days * 86400)
    for suffix in ("", ".index"):
        if os.path.exists(path + suffix):
            os.rename(path + suffix, new + suffix)
    run_command(["/usr/lib/cyrus/bin/cyr_dbtool", "-C", rig.to.conf, rig.to.tree + "/conf/backups.db", "twoskip", "set", key, new])
    return new


@case("after its grace it is removed with all that was beside it, and nothing else is")
def expired(rig):
    made(rig, "dora")
    made(rig, "emil")
    live = rig.to.data_file("emil")
    path = rig.to.data_file("dora")
    aside = [path + ".damaged.1795442465123", path + ".1795442465"]
    for name in aside:
        with open(name, "w") as file:
            file.write("mail")
    asked(rig, "delete", "dora", "emil")
    key = deleted(rig, "dora")[0]["key"]
    expect_equal(asked(rig, "delete", "--expired"), "", "nothing is old enough")
    aged = age(rig, key, 31)
    said = asked(rig, "delete", "--expired")
    expect("%s: removed: 4 files" % key in said, "what is said", [said])
    left = [n for n in os.listdir(os.path.dirname(path)) if n.startswith(os.path.basename(path))]
    expect_equal(left, [], "files left of it")
    expect(not os.path.exists(aged) and rig.to.data_file(key) is None, "no entry is left")
    asked(rig, "delete", "--undo", "emil")
    expect_equal(rig.to.data_file("emil"), live, "the younger one came back")
    rig.whole("emil")


@case("interrupted between its steps: the next sync finishes it and begins a new backup")
def interrupted(rig):
    made(rig, "fred")
    path = rig.to.data_file("fred")
    gone = "%s.deleted.%d" % (path, time.time())
    os.rename(path, gone)
    expect("fred" in asked(rig, "rescan", code=1), "rescan tells")
    for words in (["list"], ["stat", "fred"], ["messages", "fred"], ["search", "fred"], ["compact", "-n", "fred"]):
        said = asked(rig, *words, code=1)
        expect("delete --undo brings it back" in said, "%s says what to do" % words[0], [said])
    for words in (["verify", "fred"], ["heal", "fred"], ["move", "--to", "default", "fred"], ["rename", "fred", "freda"]):
        said = asked(rig, *words, code=65 if words[0] == "verify" else 1)
        expect("delete --undo brings it back" in said, "%s says what to do" % words[0], [said])
    rig.sync("-u", "fred")
    rig.whole("fred")
    one = deleted(rig, "fred")
    expect_equal([o["path"] for o in one], [gone], "the old one is a deleted one")
    expect(not os.path.exists(path + ".index"), "its old index is gone")
    expect("0 findings" in asked(rig, "rescan"), "all agree again")
    # The same, finished by deleting again.
    made(rig, "gina")
    path = rig.to.data_file("gina")
    os.rename(path, path + ".deleted.1795442465")
    asked(rig, "delete", "gina")
    expect_equal(len(deleted(rig, "gina")), 1, "finished")
    # Bringing back was interrupted: the entry is there, the file not yet.
    one = deleted(rig, "gina")[0]
    tool = ["/usr/lib/cyrus/bin/cyr_dbtool", "-C", rig.to.conf, rig.to.tree + "/conf/backups.db", "twoskip"]
    run_command(tool + ["delete", one["key"]])
    run_command(tool + ["set", "gina", path])
    rig.sync("-u", "gina")
    rig.whole("gina")
    expect_equal([o["path"] for o in deleted(rig, "gina")], [one["path"]], "it stayed deleted")


@case("interrupted between its steps: compact -A finishes it")
def interrupted_compact(rig):
    made(rig, "olga")
    path = rig.to.data_file("olga")
    gone = "%s.deleted.%d" % (path, time.time())
    os.rename(path, gone)
    asked(rig, "compact", "-A")
    expect_equal([o["path"] for o in deleted(rig, "olga")], [gone], "it is a deleted one")
    expect("olga" not in names(rig), "and not live")
    asked(rig, "delete", "--undo", "olga")
    rig.whole("olga")
    # Missing for another reason: nothing is made of that.
    os.rename(path, path + ".away")
    said = asked(rig, "compact", "-A", code=1)
    expect("cannot open: " + path in said, "it is told as missing", [said])
    expect_equal(rig.to.data_file("olga"), path, "its entry stays")
    os.rename(path + ".away", path)
    asked(rig, "compact", "-A")
    rig.whole("olga")


@case("a deletion that compact ends is not removed in the same run")
def seen_first(rig):
    made(rig, "otto")
    path = rig.to.data_file("otto")
    os.rename(path, "%s.deleted.%d" % (path, time.time() - 40 * 86400))
    asked(rig, "compact", "-A")
    expect_equal(len(deleted(rig, "otto")), 1, "it can be seen")
    asked(rig, "delete", "--undo", "otto")
    rig.whole("otto")


@case("interrupted between its steps: undo finishes it first, and brings it back whole")
def interrupted_undo(rig):
    made(rig, "ulla")
    path = rig.to.data_file("ulla")
    os.rename(path, "%s.deleted.%d" % (path, time.time()))
    said = asked(rig, "delete", "--undo", "ulla")
    expect("ulla: brought back: " + path in said, "what is said", [said])
    asked(rig, "verify", "ulla")
    rig.sync("-u", "ulla")
    rig.whole("ulla")


@case("backups.db is lost: rescan knows what was deleted")
def rescan(rig):
    made(rig, "hugo")
    asked(rig, "delete", "hugo")
    rig.sync("-u", "hugo")
    before = rig.to.data_files()
    rig.to.stop()
    os.unlink(rig.to.tree + "/conf/backups.db")
    said = asked(rig, "rescan", "--fix")
    expect(", 0 left" in said, "all is fixed", [said[-400:]])
    rig.to.start()
    after = rig.to.data_files()
    expect_equal(sorted(after.values()), sorted(before.values()), "files with an entry")
    former = [k for k, path in after.items() if ".deleted." in path]
    expect(all(k.startswith("%FORMER/") for k in former) and len(former) > 1, "keys of the deleted", former)
    rig.whole("hugo")
    rig.sync("-u", "hugo")


@case("erased: nothing is left of it, and that is on record")
def erased(rig):
    made(rig, "ines")
    path = rig.to.data_file("ines")
    asked(rig, "delete", "ines")
    rig.sync("-u", "ines")
    second = rig.to.data_file("ines")
    for name in (path, second):
        with open(name + ".damaged.1795442465123", "w") as file:
            file.write("mail")
    said = asked(rig, "erase", "--whole", "ines")
    expect("ines: erased: 2 backups, 6 files" in said, "what is said", [said])
    expect("sends it again" in said, "and what is not reached", [said])
    for name in (path, second):
        folder, base = os.path.split(name)
        expect_equal([n for n in os.listdir(folder) if n.startswith(base)], [], "files left")
    expect(not any("ines" in key for key in rig.to.data_files()), "no entry is left")
    with open(rig.to.tree + "/conf/backups.db.erased") as file:
        expect("user=<ines> backups=2 files=6" in file.read(), "the record")
    expect("no backup" in asked(rig, "erase", "--whole", "ines", code=1), "not twice")
    rig.sync("-u", "ines")
    rig.whole("ines")


@case("one message is erased: its body is nowhere, all else is as it was, and it does not come again")
def message_erased(rig):
    made(rig, "jana")
    held = {int(m["uid"]): m["guid"] for m in rig.to.json("messages", "jana")["messages"]}
    said = asked(rig, "erase", "jana", held[2], code=77)
    expect("is still in user/jana, UID 2" in said, "a live one is refused", [said])
    with rig.cyrus.imap("jana") as imap:
        imap.select("INBOX")
        imap.expunge("2:3")
    rig.sync("-u", "jana")
    path = rig.to.data_file("jana")
    for suffix in (".1795442465", ".damaged.1795442465123"):
        with open(path + suffix, "w") as file:
            file.write("mail")
    said = asked(rig, "erase", "jana", held[2])
    expect("jana: erased: 1 messages, 1 previous logs" in said, "what is said", [said])
    expect("may hold them still: %s.damaged.1795442465123" % path in said, "and what is left", [said])
    expect(not os.path.exists(path + ".1795442465"), "the previous log is gone")
    os.unlink(path + ".damaged.1795442465123")
    path = rig.to.data_file("jana")
    kept = logfile.bodies(path)
    expect(held[2] not in kept, "its body is not in the log")
    expect_none([u for u, g in held.items() if u != 2 and g not in kept], "other bodies that are gone")
    asked(rig, "dump", "message", "jana", held[2], code=1)
    asked(rig, "dump", "message", "jana", held[3])
    listed = {int(m["uid"]): m for m in rig.to.json("messages", "jana", "--deleted")["messages"]}
    expect_equal(sorted(listed), [1, 2, 3, 4, 5], "what is known of the messages")
    with open(rig.to.tree + "/conf/backups.db.erased") as file:
        expect("user=<jana> message=%s" % held[2] in file.read(), "the record")
    expect("no body" in asked(rig, "erase", "jana", held[2], code=1), "not twice")
    with rig.cyrus.imap("jana") as imap:
        imap.append("INBOX", message("later", to="jana"))
    rig.sync("-u", "jana")
    rig.whole("jana")
    rig.to.drop_index("jana")
    expect(held[2] not in logfile.bodies(rig.to.data_file("jana")), "it did not come again")
    rig.whole("jana")

def killed_at(rig, call, n, *words):
    """Runs it under strace, which kills it at the nth call. Whether it was killed."""
    if not shutil.which("strace"):
        raise Skip("strace is not installed")
    argv = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=" + call]
    argv += ["-e", "inject=%s:signal=KILL:when=%d" % (call, n)]
    argv += sandbox.as_cyrus([rig.to.path, "-C", rig.to.conf] + list(words))
    return subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60).returncode != 0


@case("undo killed at each name that it gives: it is brought back, whatever comes next, and never removed")
def killed_undo(rig):
    nexts = {"compact": ["compact", "-A"], "undo": ["delete", "--undo", "USER"], "expired": ["delete", "--expired"],
             "delete": ["delete", "USER"], "rescan": ["rescan", "--fix"], "sync": None}
    rig.to.write_conf(backup_delete_grace="1s")
    try:
        for n in (1, 2):
            for title, words in sorted(nexts.items()):
                if n == 2 and title in ("delete", "expired"):
                    continue
                user = "k%d%s" % (n, title)
                made(rig, user)
                path = rig.to.data_file(user)
                asked(rig, "delete", user)
                was_killed = killed_at(rig, "rename,renameat,renameat2", n, "delete", "--undo", user)
                expect(was_killed, "undo was killed (%s)" % user)
                time.sleep(1.1)
                if words is None:
                    rig.sync("-u", user)
                else:
                    rig.to.tool(*[w.replace("USER", user) for w in words])
                if title == "delete":
                    asked(rig, "delete", "--undo", user)
                rig.to.tool("compact", "-A")
                expect_equal(rig.to.data_file(user), path, "its old place (%s)" % user)
                expect_equal(deleted(rig, user), [], "deleted ones left (%s)" % user)
                rig.whole(user)
                rig.sync("-u", user)
                rig.whole(user)
                expect("0 findings" in asked(rig, "rescan"), "all agree (%s)" % user)
    finally:
        rig.to.write_conf(backup_delete_grace="30d")


@case("undo killed before its last step, then renamed: no trace of the deletion is left")
def killed_undo_renamed(rig):
    made(rig, "mara")
    asked(rig, "delete", "mara")
    key = deleted(rig, "mara")[0]["key"]
    gone = rig.to.data_file(key)
    expect(killed_at(rig, "rename,renameat,renameat2", 2, "delete", "--undo", "mara"), "undo was killed")
    expect(key in rig.to.data_files(), "its entry as a deleted one is there still")
    asked(rig, "rename", "mara", "marta")
    expect_equal([k for k in rig.to.data_files() if "mar" in k], ["marta"], "entries")
    folder, base = os.path.split(gone)
    expect_equal([n for n in os.listdir(folder) if n.startswith(base)], [], "files of the deleted one")
    asked(rig, "verify", "marta")


@case("an entry without a log: told when its time is over, and it stays until the log is there or known to be gone")
def no_log(rig):
    made(rig, "nora")
    asked(rig, "delete", "nora")
    key = deleted(rig, "nora")[0]["key"]
    gone = rig.to.data_file(key)
    os.rename(gone, rig.to.tree + "/nora")
    rig.to.write_conf(backup_delete_grace="1s")
    try:
        time.sleep(1.1)
        said = asked(rig, "delete", "--expired", code=1)
        expect("its log is missing" in said and gone in said, "it is told", [said])
        expect(key in rig.to.data_files(), "its entry stays")
        expect("<nora> whole" not in erased_record(rig), "nothing is on record")
        os.rename(rig.to.tree + "/nora", gone)
        # Killed when all but the entry is gone: then it was removed.
        for n in range(1, 9):
            if not killed_at(rig, "unlink,unlinkat", n, "delete", "--expired"):
                break
            if not os.path.exists(gone):
                break
        expect(not os.path.exists(gone), "the log is removed")
        asked(rig, "delete", "--expired")
    finally:
        rig.to.write_conf(backup_delete_grace="30d")
    expect(key not in rig.to.data_files(), "its entry goes")


@case("an entry without a log stays, too, when a later one of the same owner has gone")
def no_log_older(rig):
    made(rig, "ida")
    asked(rig, "delete", "ida")
    first = deleted(rig, "ida")[0]
    rig.sync("-u", "ida")
    time.sleep(1.1)
    asked(rig, "delete", "ida")
    os.rename(first["path"], rig.to.tree + "/ida")
    rig.to.write_conf(backup_delete_grace="1s")
    try:
        time.sleep(2.1)
        for _again in range(2):
            said = asked(rig, "delete", "--expired", code=1)
            expect("its log is missing" in said, "it is told", [said])
        expect_equal([b["key"] for b in deleted(rig, "ida")], [first["key"]], "what is left")
        said = asked(rig, "erase", "--whole", "ida", code=1)
        expect("its log is missing" in said and "0 backups" in said and "may hold them still: " + first["path"] in said, "what is said", [said])
        os.rename(rig.to.tree + "/ida", first["path"])
        asked(rig, "erase", "--whole", "ida")
    finally:
        rig.to.write_conf(backup_delete_grace="30d")


@case("begun to be deleted and locked: rescan leaves it as it is, and ends it later as it was begun")
def locked_rescan(rig):
    made(rig, "nina")
    path = rig.to.data_file("nina")
    gone = "%s.deleted.%d" % (path, time.time())
    os.rename(path, gone)
    before = rig.to.data_files()
    with open(gone, "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        said = asked(rig, "rescan", "--fix", code=1)
        expect("nina: locked" in said, "who has it", [said])
    expect_equal(rig.to.data_files(), before, "entries")
    said = asked(rig, "rescan", "--fix")
    expect("deleted, as was begun" in said and "not fixed" not in said, "what is said", [said])
    expect_equal([o["path"] for o in deleted(rig, "nina")], [gone], "the deleted one")
    expect("nina" not in names(rig), "not live")


@case("what was deleted last comes back, whatever the clock said")
def last(rig):
    made(rig, "oda")
    path = rig.to.data_file("oda")
    later = int(time.time()) + 86400
    os.utime(path, (later, later))
    asked(rig, "delete", "oda")
    rig.sync("-u", "oda")
    second = rig.to.data_file("oda")
    asked(rig, "delete", "oda")
    asked(rig, "delete", "--undo", "oda")
    expect_equal(rig.to.data_file("oda"), second, "the younger one")


@case("one that is locked when its time is over stays, and is not on record as erased")
def locked_then(rig):
    made(rig, "olaf")
    asked(rig, "delete", "olaf")
    rig.to.write_conf(backup_delete_grace="1s")
    try:
        time.sleep(1.1)
        with open(deleted(rig, "olaf")[0]["path"], "r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            expect("locked: held by" in asked(rig, "compact", "-A", code=1), "who has it")
        expect("<olaf> whole" not in erased_record(rig), "nothing is on record")
        asked(rig, "delete", "--undo", "olaf")
    finally:
        rig.to.write_conf(backup_delete_grace="30d")
    rig.whole("olaf")


@case("a copy put in the place of a deleted one is a backup, and the deleted one goes in time")
def copied(rig):
    made(rig, "rita")
    path = rig.to.data_file("rita")
    asked(rig, "delete", "rita")
    gone = deleted(rig, "rita")[0]["path"]
    shutil.copyfile(gone, path)
    sandbox.owned(path)
    said = asked(rig, "rescan", "--fix")
    expect("rita: a log without an entry" in said and rig.to.data_file("rita") == path, "it is entered", [said])
    asked(rig, "compact", "-A")
    expect_equal(len(deleted(rig, "rita")), 1, "the deleted one stays")
    tool = ["/usr/lib/cyrus/bin/cyr_dbtool", "-C", rig.to.conf, rig.to.tree + "/conf/backups.db", "twoskip"]
    run_command(tool + ["delete", deleted(rig, "rita")[0]["key"]])
    asked(rig, "rescan", "--fix")
    expect_equal([o["path"] for o in deleted(rig, "rita")], [gone], "rescan enters it again")
    rig.to.write_conf(backup_delete_grace="1s")
    try:
        time.sleep(1.1)
        asked(rig, "compact", "-A")
    finally:
        rig.to.write_conf(backup_delete_grace="30d")
    expect_equal((deleted(rig, "rita"), os.path.exists(gone)), ([], False), "the deleted one")
    rig.whole("rita")


@case("a clock that is slow does not shorten the time of grace; one that is quite wrong is refused")
def slow_clock(rig):
    made(rig, "paul")
    path = rig.to.data_file("paul")
    # What was written to last by a clock that is right is ahead of one that is slow.
    later = int(time.time()) + 20 * 86400
    os.utime(path, (later, later))
    said = asked(rig, "delete", "paul")
    expect("the clock is behind" in said, "it is told", [said])
    expect_equal(deleted(rig, "paul")[0]["deleted"], later, "from when on it is kept")
    made(rig, "pina")
    tool = ["/usr/lib/cyrus/bin/cyr_dbtool", "-C", rig.to.conf, "-n", rig.to.tree + "/conf/backups.db.compacted", "twoskip"]
    asked(rig, "compact", "-A")
    run_command(tool + ["set", "%RAN", str(later)])
    try:
        asked(rig, "delete", "pina")
        expect_equal(deleted(rig, "pina")[0]["deleted"], later, "from when on it is kept")
        rig.sync("-u", "pina")
        run_command(tool + ["set", "%RAN", str(later + 20 * 86400)])
        said = asked(rig, "delete", "pina", code=77)
        expect("40 days behind" in said or "39 days behind" in said, "why", [said])
        rig.whole("pina")
        asked(rig, "delete", "--clock-is-right", "pina")
        expect(all(b["deleted"] <= later + 1 for b in deleted(rig, "pina")), "by this clock then")
    finally:
        run_command(tool + ["delete", "%RAN"])


@case("a clock that is ahead by more than half of the time of grace removes no deleted backup")
def fast_clock(rig):
    made(rig, "quinn")
    asked(rig, "delete", "quinn")
    aged = age(rig, deleted(rig, "quinn")[0]["key"], 31)
    tool = ["/usr/lib/cyrus/bin/cyr_dbtool", "-C", rig.to.conf, "-n", rig.to.tree + "/conf/backups.db.compacted", "twoskip"]
    rig.to.write_conf(backup_retention="365d")
    asked(rig, "compact", "-A")
    expect(not os.path.exists(aged), "it goes by a clock that is believed")
    made(rig, "quentin")
    asked(rig, "delete", "quentin")
    aged = age(rig, deleted(rig, "quentin")[0]["key"], 31)
    try:
        run_command(tool + ["set", "%RAN", str(int(time.time()) - 20 * 86400)])
        said = asked(rig, "delete", "--expired", code=77)
        expect("the clock is 20 days ahead" in said and os.path.exists(aged), "why", [said])
        asked(rig, "delete", "--expired", "--clock-is-right")
        expect(not os.path.exists(aged), "it is believed then")
    finally:
        rig.to.write_conf(backup_retention="7d")
        run_command(tool + ["delete", "%RAN"])


@case("deleted by a clock that was years ahead: what was deleted after that is the last one")
def far_ahead(rig):
    made(rig, "rudi", 3)
    asked(rig, "delete", "rudi")
    key = deleted(rig, "rudi")[0]["key"]
    age(rig, key, -500)
    rig.sync("-u", "rudi")
    asked(rig, "delete", "rudi")
    asked(rig, "delete", "--undo", "rudi")
    expect_equal([b["key"] for b in deleted(rig, "rudi")], [key], "what stays deleted")
    asked(rig, "delete", "rudi")
    asked(rig, "delete", "--undo", key)
    expect_equal(len(deleted(rig, "rudi")), 1, "by its key it comes back as well")


def twice_deleted(rig, user):
    """Two deleted backups of one place: the first had 3 messages, the one after it 4; their keys and logs."""
    made(rig, user, 3)
    path = rig.to.data_file(user)
    asked(rig, "delete", user)
    first = deleted(rig, user)[0]
    shutil.copyfile(first["path"], path)
    sandbox.owned(path)
    # As an administrator enters a copy.
    run_command(["/usr/lib/cyrus/bin/cyr_dbtool", "-C", rig.to.conf, rig.to.tree + "/conf/backups.db", "twoskip", "set", user, path])
    with rig.cyrus.imap(user) as imap:
        imap.append("INBOX", message("fourth", to=user))
    rig.sync("-u", user, attempts=2)
    rig.whole(user)
    return path, first


@case("a deletion is interrupted where another one was deleted before: that one does not come back in its stead")
def interrupted_twice(rig):
    nexts = {"compact": ["compact", "-A"], "undo": ["delete", "--undo", "USER"], "delete": ["delete", "USER"],
             "expired": ["delete", "--expired"], "sync": None}
    for title, words in sorted(nexts.items()):
        user = "s" + title
        path, first = twice_deleted(rig, user)
        expect(killed_at(rig, "rename,renameat,renameat2", 2, "delete", user), "delete was killed (%s)" % title)
        expect(not os.path.exists(path), "the log has gone (%s)" % title)
        if words is None:
            rig.sync("-u", user)
        else:
            rig.to.tool(*[w.replace("USER", user) for w in words])
        expect(os.path.exists(first["path"]), "the first one is as it was (%s)" % title)
        if title in ("undo", "sync"):
            expect_equal(rig.to.data_file(user) == path, title == "undo", "the place in use (%s)" % title)
            rig.whole(user)
        else:
            # What lists or removes leaves a begun one alone, the others end it.
            asked(rig, "delete", "--undo", user)
            expect_equal(rig.to.data_file(user), path, "the last one comes back (%s)" % title)
            rig.whole(user)
        asked(rig, "erase", "--whole", user)


@case("of two that were deleted from one place the second keeps all its files when the first goes")
def goes_alone(rig):
    path, first = twice_deleted(rig, "tessa")
    aside = [path + ".1795442465", path + ".damaged.1795442465123"]
    for name in aside:
        with open(name, "w") as file:
            file.write("mail")
    asked(rig, "delete", "tessa")
    second = [b for b in deleted(rig, "tessa") if b["key"] != first["key"]][0]
    age(rig, first["key"], 31)
    said = asked(rig, "delete", "--expired")
    expect("%s: removed: 2 files" % first["key"] in said, "what is said", [said])
    for name in aside + [second["path"], second["path"] + ".index"]:
        expect(os.path.exists(name), "it stays: " + name)
    said = asked(rig, "erase", "--whole", "tessa")
    expect("1 backups, 4 files" in said, "with the last one they go", [said])


@case("a clock that is slow ends what was begun, and does not begin it")
def slow_ends(rig):
    made(rig, "ulf")
    path = rig.to.data_file("ulf")
    later = int(time.time()) + 200 * 86400
    expect(killed_at(rig, "rename,renameat,renameat2", 2, "delete", "ulf"), "delete was killed")
    gone = [n for n in os.listdir(os.path.dirname(path)) if n.startswith(os.path.basename(path) + ".deleted.")]
    tool = ["/usr/lib/cyrus/bin/cyr_dbtool", "-C", rig.to.conf, "-n", rig.to.tree + "/conf/backups.db.compacted", "twoskip"]
    run_command(tool + ["set", "%RAN", str(later)])
    try:
        asked(rig, "delete", "ulf")
    finally:
        run_command(tool + ["delete", "%RAN"])
    expect(os.path.basename(deleted(rig, "ulf")[0]["path"]) in gone, "with the time at which it was begun")


@case("its log was removed, but not its entry: who brings it back or erases it is told so")
def entry_only(rig):
    made(rig, "vroni")
    asked(rig, "delete", "vroni")
    key = deleted(rig, "vroni")[0]["key"]
    aged = age(rig, key, 31)
    for n in range(1, 30):
        killed_at(rig, "unlink,unlinkat,fsync,fdatasync", n, "delete", "--expired")
        if not os.path.exists(aged):
            break
    expect(not os.path.exists(aged) and key in rig.to.data_files(), "only the entry is there")
    said = asked(rig, "delete", "--undo", "vroni", code=1)
    expect("removed already" in said, "undo", [said])
    said = asked(rig, "erase", "--whole", "vroni")
    expect("may hold" not in said, "nothing is left", [said])
    expect(key not in rig.to.data_files(), "its entry goes")


@case("a folder that does not read keeps no other deleted backup")
def unreadable(rig):
    for user in ("jakob", "xenia"):
        made(rig, user)
        asked(rig, "delete", user)
    folder = os.path.dirname(rig.to.data_file(deleted(rig, "jakob")[0]["key"]))
    os.rename(folder, folder + ".away")
    with open(folder, "w") as file:
        sandbox.owned(file.name)
    rig.to.write_conf(backup_delete_grace="1s")
    try:
        time.sleep(1.1)
        said = asked(rig, "delete", "--expired", code=1)
        expect("%FORMER/jakob/" in said, "it is told", [said])
    finally:
        os.unlink(folder)
        os.rename(folder + ".away", folder)
        rig.to.write_conf(backup_delete_grace="30d")
    expect_equal((len(deleted(rig, "jakob")), deleted(rig, "xenia")), (1, []), "deleted ones left")


@case("two who erase it at once: both say that it is erased, or that there is nothing")
def erased_twice(rig):
    made(rig, "wanda")
    asked(rig, "delete", "wanda")
    words = [rig.to.path, "-C", rig.to.conf, "erase", "-w", "--whole", "wanda"]
    with open(deleted(rig, "wanda")[0]["path"], "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        waiting = [subprocess.Popen(sandbox.as_cyrus(words), stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
        time.sleep(0.5)
    said = [(b"".join(p.communicate(timeout=30)).decode(), p.returncode) for p in waiting]
    for text, code in said:
        expect(code == 0 and "may hold" not in text, "what is said", [str(said)])
    expect(any("1 backups" in text for text, _ in said), "by one of them", [str(said)])
    expect(not any("wanda" in key for key in rig.to.data_files()), "no entry is left")


def slowly(rig, words, when, call="rename,renameat,renameat2"):
    """Runs it in the background; from the nth rename on each waits for a second."""
    if not shutil.which("strace"):
        raise Skip("strace is not installed")
    argv = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=" + call]
    argv += ["-e", "inject=%s:delay_enter=1000000:when=%d+" % (call, when)]
    argv += sandbox.as_cyrus([rig.to.path, "-C", rig.to.conf] + words)
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@case("erased whole between two steps of undo and of delete: waited for, and nothing is left")
def erased_between(rig):
    made(rig, "xaver")
    made(rig, "xandra")
    asked(rig, "delete", "xaver")
    for words in (["delete", "--undo", "xaver"], ["delete", "xandra"]):
        user = words[-1]
        other = slowly(rig, words, 1 if user == "xaver" else 2)
        time.sleep(0.6)
        said = asked(rig, "erase", "-w", "--whole", user)
        expect("1 backups" in said and "may hold" not in said, "what is said (%s)" % user, [said])
        other.communicate(timeout=30)
        expect_equal([key for key in rig.to.data_files() if user in key], [], "entries (%s)" % user)


@case("what cannot be removed is named where it is")
def named_there(rig):
    made(rig, "yvonne")
    path = rig.to.data_file("yvonne")
    argv = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=unlink,unlinkat"]
    argv += ["-e", "inject=unlink,unlinkat:error=EACCES:when=1+"]
    argv += sandbox.as_cyrus([rig.to.path, "-C", rig.to.conf, "erase", "--whole", "yvonne"])
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
    told = done.stdout.decode()
    left = [line.split(": ", 1)[1] for line in told.splitlines() if line.startswith("may hold")]
    expect(done.returncode == 74 and left, "it fails", [told])
    expect(all(os.path.exists(name) and name.startswith(path + ".deleted.") for name in left), "and says where", [told])
    # Begun, and it fails: it is not taken for removed when it is out of reach.
    argv[argv.index("erase") + 1:] = ["--whole", "yvonne"]
    asked(rig, "delete", "--undo", "yvonne") if deleted(rig, "yvonne") else None
    rig.sync("-u", "yvonne")
    asked(rig, "delete", "yvonne")
    one = deleted(rig, "yvonne")[0]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
    expect_equal(done.returncode, 74, "it fails")
    os.rename(one["path"], rig.to.tree + "/yvonne")
    said = asked(rig, "erase", "--whole", "yvonne", code=1)
    expect("its log is missing" in said and one["key"] in rig.to.data_files(), "out of reach", [said])
    os.rename(rig.to.tree + "/yvonne", one["path"])
    asked(rig, "erase", "--whole", "yvonne")


@case("one deleted backup is erased by its key: another one that came back is found when backups.db is lost")
def one_of_two(rig):
    for user in ("kurt", "kim"):
        made(rig, user)
        path = rig.to.data_file(user)
        asked(rig, "delete", user)
        first = deleted(rig, user)[0]["key"]
        time.sleep(1.1)
        rig.sync("-u", user)
        asked(rig, "delete", user)
        asked(rig, "delete", "--undo", first)
        second = deleted(rig, user)[0]["key"]
        if user == "kurt":
            asked(rig, "erase", "--whole", second)
        else:
            age(rig, second, 31)
            asked(rig, "delete", "--expired")
        run_command(["/usr/lib/cyrus/bin/cyr_dbtool", "-C", rig.to.conf, rig.to.tree + "/conf/backups.db", "twoskip", "delete", user])
        rig.sync("-u", user)
        expect_equal(rig.to.data_file(user), path, "its log is found (%s)" % user)


@case("erased whole while it is brought back: nothing of it is left, or that is said")
def erased_meanwhile(rig):
    for n in range(4):
        user = "zoe%d" % n
        made(rig, user)
        asked(rig, "delete", user)
        both = [["delete", "-w", "--undo", user], ["erase", "-w", "--whole", user]]
        if n % 2:
            both.reverse()
        with open(deleted(rig, user)[0]["path"], "r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            waiting = []
            for words in both:
                waiting.append(subprocess.Popen(sandbox.as_cyrus([rig.to.path, "-C", rig.to.conf] + words)))
                time.sleep(0.3)
        codes = dict(zip((words[0] for words in both), [p.wait(30) for p in waiting]))
        if codes["erase"] == 0:
            expect(not any(user in key for key in rig.to.data_files()), "nothing of it is left (%d)" % n, [str(rig.to.data_files())])
        else:
            asked(rig, "erase", "--whole", user)
        expect(codes["erase"] in (0, 1, 75), "status (%d)" % n, [str(codes)])


def erased_record(rig):
    path = rig.to.tree + "/conf/backups.db.erased"
    if not os.path.exists(path):
        return ""
    with open(path) as file:
        return file.read()


run(setup, Rig.close)
