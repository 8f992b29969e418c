#!/usr/bin/env python3
"""compact in the middle of things: promises given before it, users who go away, large messages."""

import hashlib
import grp
import json
import os
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *
from cyrusrig import dlist, logfile, sandbox


TWO = temp_dir("cyrusrig-two-")


def setup():
    if RECEIVER != "ours":
        raise Skip("only ours has this compact")
    return start_rig({"backup_retention": "1s", "backup_compact_brake": "0", "backup_chunk_max": "512K",
                      "backuppartition-two": TWO, "partition_select_exclude": "two"})


def asked(rig, *words, code=0):
    done = rig.to.tool(*words)
    expect_equal(done.code, code, "status of %s" % " ".join(words))
    return done.out + done.err


def made(rig, user, count=6):
    rig.cyrus.user(user)
    with rig.cyrus.imap(user) as imap:
        imap.fill("INBOX", [message("%s%d" % (user, n), to=user) for n in range(count)])
    rig.sync("-u", user)


@case("a message that was promised, and then compacted away, is not taken for present")
def promised(rig):
    made(rig, "anna")
    text = message("goes and comes", to="anna")
    with rig.cyrus.imap("anna") as imap:
        imap.append("INBOX", text)
    rig.sync("-u", "anna")
    with rig.cyrus.imap("anna") as imap:
        imap.select("INBOX")
        imap.expunge("7")
    rig.cyrus.expire("-E", "0", "-X", "0", "-D", "0")
    rig.sync("-u", "anna", attempts=2)
    gone = [m for m in rig.to.json("messages", "anna", "--deleted")["messages"] if m.get("expunged")]
    expect_equal(len(gone), 1, "expunged messages")
    guid = gone[0]["guid"]
    time.sleep(2.5)
    wire = rig.to.csync()
    try:
        box = dict(wire.command("GET MAILBOXES", ["user.anna"])[0][1])
        lines = wire.command("APPLY RESERVE", {"PARTITION": "default", "MBOXNAME": ["user.anna"], "GUID": [guid]})
        diag("RESERVE: %r" % (lines,))
        done = rig.to.tool("compact", "--force", "anna")
        diag("compact meanwhile: %d %s" % (done.code, (done.out + done.err).strip()))
        for key in ("SYNC_CRC", "SYNC_CRC_ANNOT", "XCONVMODSEQ"):
            box.pop(key, None)
        uid, modseq = int(box["LAST_UID"]) + 1, int(box["HIGHESTMODSEQ"]) + 1
        record = {"UID": uid, "MODSEQ": modseq, "LAST_UPDATED": int(time.time()), "FLAGS": []}
        record.update({"INTERNALDATE": int(time.time()), "SIZE": len(text), "GUID": guid})
        try:
            wire.command("APPLY MAILBOX", dict(box, LAST_UID=uid, HIGHESTMODSEQ=modseq, RECORD=[record]))
            answer = "OK"
        except Refused as why:
            answer = str(why)
        diag("MAILBOX: " + answer)
    finally:
        wire.close()
    held = guid in logfile.bodies(rig.to.data_file("anna"))
    expect(held or answer != "OK", "OK is said only of what is there", [answer])
    # The same message comes once more from the real server, while compact runs at every moment.
    with rig.cyrus.imap("anna") as imap:
        imap.append("INBOX", text)
    rig.sync("-u", "anna", attempts=3)
    asked(rig, "compact", "--force", "anna")
    rig.whole("anna")


@case("what a killed run left goes with the user: rename, move, delete, rescan")
def left_behind(rig):
    made(rig, "bert")
    path = rig.to.data_file("bert")
    for suffix in (".new", ".new.index"):
        with open(path + suffix, "wb") as file:
            file.write(open(path, "rb").read()[:500])
        shutil_owned(path, path + suffix)
    said = asked(rig, "rescan")
    diag(said.strip())
    asked(rig, "verify", "--quick", "bert")
    asked(rig, "list")
    asked(rig, "delete", "bert")
    folder = os.path.dirname(path)
    left = [n for n in os.listdir(folder) if n.startswith("bert") and ".new" in n]
    diag("left after delete: %r" % left)
    said = asked(rig, "rescan", "--fix")
    expect_equal([b["userid"] for b in rig.to.json("list")["backups"] if b["userid"] == "bert"], [], "nobody comes back")
    asked(rig, "delete", "--undo", "bert")
    asked(rig, "compact", "--force", "bert")
    expect_equal([n for n in os.listdir(folder) if n.startswith("bert") and ".new" in n], [], "left files")
    rig.whole("bert")


def shutil_owned(like, path):
    info = os.stat(like)
    os.chown(path, info.st_uid, info.st_gid)


@case("a message of 40 MB, far above the size of a chunk")
def large(rig):
    rig.cyrus.user("cora")
    line = (hashlib.sha256(b"x").hexdigest() + "\r\n").encode()
    with rig.cyrus.imap("cora") as imap:
        imap.append("INBOX", message("small", to="cora"))
        imap.append("INBOX", message("large", to="cora") + line * (40 * 1024 * 1024 // len(line)))
        imap.append("INBOX", message("last", to="cora"))
    rig.sync("-u", "cora", timeout=120)
    asked(rig, "compact", "--force", "cora")
    asked(rig, "verify", "cora")
    rig.whole("cora")
    expect("nothing to do" in asked(rig, "compact", "cora"), "a second run finds nothing to do")


@case("a shared root: compacted by its key, and synced on")
def shared(rig):
    with rig.cyrus.imap("admin") as imap:
        imap.create("team")
        imap.setacl("team", "anyone", "lrswipkxte")
        imap.create("team/old")
        imap.setacl("team/old", "anyone", "lrswipkxte")
        for n in range(5):
            imap.append("team", message("team%d" % n))
        imap.append("team/old", message("old"))
    rig.sync("-m", "team", "team/old")
    with rig.cyrus.imap("admin") as imap:
        imap.select("team")
        imap.expunge("1:2")
    rig.sync("-m", "team", "team/old", attempts=2)
    time.sleep(2.5)
    out = rig.to.json("compact", "--force", "%SHARED//team")["backups"]
    expect_equal([(b["userid"], b["status"]) for b in out], [("%SHARED//team", "done")], "what was done")
    asked(rig, "verify", "%SHARED//team")
    with rig.cyrus.imap("admin") as imap:
        imap.append("team", message("after"))
    rig.sync("-m", "team", "team/old")
    rig.whole(shared=("team", "team.old"))


@case("erasing a message drops nothing else of what the brake holds")
def erased(rig):
    made(rig, "dora", 12)
    time.sleep(2.5)
    with rig.cyrus.imap("dora") as imap:
        imap.select("INBOX")
        imap.expunge("1:10")
    rig.cyrus.expire("-E", "0", "-X", "0", "-D", "0")
    rig.sync("-u", "dora", attempts=2)
    time.sleep(2.5)
    rig.to.write_conf(backup_compact_brake="50")
    try:
        expect("held" in asked(rig, "compact", "dora"), "the brake holds it")
        guid = rig.to.json("messages", "dora", "--deleted")["messages"][0]["guid"]
        asked(rig, "erase", "dora", guid)
        bodies = logfile.bodies(rig.to.data_file("dora"))
        expect(guid not in bodies, "it is erased")
        expect_equal(len(bodies), 11, "bodies that are left")
        expect("held" in asked(rig, "compact", "dora"), "the brake holds it still")
    finally:
        rig.to.write_conf(backup_compact_brake="0")
    rig.whole("dora")


def note(rig, key, value):
    """Writes one of the notes that compact keeps."""
    db = rig.to.tree + "/conf/backups.db.compacted"
    words = ["/usr/lib/cyrus/bin/cyr_dbtool", "-C", rig.to.conf, "-n", db, "twoskip"]
    run_command(words + ["set", key, value])
    expect(value in run_command(words + ["get", key]).out, "the note %s is there" % key)


def spent(rig, user, keep=3, gone=9):
    """A user of whose messages most went, longer ago than retention."""
    made(rig, user, keep + gone)
    time.sleep(1.5)
    with rig.cyrus.imap(user) as imap:
        imap.select("INBOX")
        imap.expunge("1:%d" % gone)
    rig.cyrus.expire("-E", "0", "-X", "0", "-D", "0")
    rig.sync("-u", user, attempts=2)
    time.sleep(1.5)


@case("other retention counts at the next run, also where no mail came")
def shorter(rig):
    rig.to.write_conf(backup_retention="30d")
    try:
        spent(rig, "fred")
        asked(rig, "compact", "fred")
        expect("(expired" not in asked(rig, "compact", "fred"), "a second run does not look")
    finally:
        rig.to.write_conf(backup_retention="1s")
    out = rig.to.json("compact", "fred")["backups"][0]
    expect(out.get("expired_records") == 9, "it looks, and they go", [repr(out)])
    rig.to.write_conf(backup_compact_minsize="1M")
    out = rig.to.json("compact", "fred")["backups"][0]
    expect("expired_records" in out, "by other sizes, too", [repr(out)])
    rig.to.write_conf(backup_compact_minsize="0")


@case("what the brake held of a deleted backup is not said of the next one")
def another(rig):
    rig.to.write_conf(backup_compact_brake="50")
    try:
        spent(rig, "gina")
        expect("held" in asked(rig, "compact", "gina"), "the brake holds it")
        stat = rig.to.json("stat", "gina")["backups"][0]
        expect(stat["held"] and stat["compacted"], "stat says so", [repr(stat)])
        asked(rig, "delete", "gina")
        rig.sync("-u", "gina")
        for command in ("stat", "list"):
            new = rig.to.json(command, "gina")["backups"][0]
            expect_equal((new["held"], new["compacted"]), (None, None), "what %s says of the new one" % command)
    finally:
        rig.to.write_conf(backup_compact_brake="0")


@case("one that always fails is not always the first")
def starving(rig):
    made(rig, "hans")
    made(rig, "hugo")
    rig.to.write_conf(backup_lock_wait="1s")
    holder = hold(rig, "hans")
    try:
        asked(rig, "compact", "-A", "--force", code=1)
        time.sleep(1.1)
        made(rig, "ines")
        done = rig.to.tool("compact", "-A", "--force", "-j", "--jobs", "1")
        order = [b["userid"] for b in json.loads(done.out)["backups"]]
        expect(order[0] == "ines", "the new one is first", order)
    finally:
        holder.stdin.close()
        holder.wait(20)
    out = rig.to.json("compact", "hans")["backups"][0]
    expect("bytes_before" in out, "it is looked at as soon as it can be", [repr(out)])


def hold(rig, user):
    holder = subprocess.Popen(
        sandbox.as_cyrus([rig.to.path, "-C", rig.to.conf, "lock", user]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    said = [holder.stdout.readline() for _ in range(2)]
    expect(said[1].startswith(b"OK"), "the lock is held", [repr(said)])
    return holder


@case("what a killed run left is removed by the next one, also where there is nothing to do")
def killed(rig):
    made(rig, "jana")
    asked(rig, "compact", "jana")
    expect("(expired" not in asked(rig, "compact", "jana"), "it is not looked at again")
    path = rig.to.data_file("jana")
    for suffixes in ((".new", ".new.index", ".new.index-wal"), (".new",), (".new.index",)):
        for suffix in suffixes:
            with open(path + suffix, "wb") as file:
                file.write(b"half of it")
            shutil_owned(path, path + suffix)
        asked(rig, "compact", "--dry-run", "jana")
        expect(os.path.exists(path + suffixes[0]), "a dry run leaves it")
        # Somebody compacts: not his.
        held = ".new" if ".new" in suffixes else ""
        holder = subprocess.Popen(
            sandbox.as_cyrus([rig.to.path, "-C", rig.to.conf, "lock", "-x", "echo; echo OK; cat", "-f", path + held])
            if not held
            else sandbox.as_cyrus(["python3", "-c", HOLD, path + held]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        expect([holder.stdout.readline() for _ in range(2)][1] == b"OK\n", "it is held")
        asked(rig, "compact", "-A")
        expect(os.path.exists(path + suffixes[0]), "what somebody makes is left alone")
        holder.stdin.close()
        holder.wait(20)
        asked(rig, "compact", "-A")
        left = [n for n in os.listdir(os.path.dirname(path)) if n.startswith("jana") and ".new" in n]
        expect_equal(left, [], "left files")
    rig.whole("jana")


# Holds a lock on a file as a compaction does.
HOLD = """
import fcntl, struct, sys
file = open(sys.argv[1], "r+b")
fcntl.fcntl(file, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
print("\\nOK", flush=True)
sys.stdin.read()
"""


@case("moved or deleted while others are compacted: done there, or not missed")
def moved(rig):
    for user in ("kurt", "lara", "maya"):
        made(rig, user)
    rig.to.write_conf(backup_lock_wait="60s")
    # Those that were never looked at come first.
    holder = hold(rig, "kurt")
    words = [rig.to.path, "-C", rig.to.conf, "compact", "-A", "-j", "-w", "--force", "--jobs", "1"]
    run = subprocess.Popen(sandbox.as_cyrus(words), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        time.sleep(1)
        expect(run.poll() is None, "it waits for the first")
        asked(rig, "move", "--to", "two", "lara")
        asked(rig, "delete", "maya")
    finally:
        holder.stdin.close()
        holder.wait(20)
    out, err = run.communicate(timeout=60)
    expect_equal((run.returncode, err), (0, b""), "how it ended")
    status = {b["userid"]: b["status"] for b in json.loads(out)["backups"]}
    expect_equal([status[u] for u in ("kurt", "lara", "maya")], ["done", "done", "gone"], "what was done")
    rig.whole("kurt", "lara")


@case("one that is named and locked: 75, and of several 1")
def locked(rig):
    rig.to.write_conf(backup_lock_wait="1s")
    holder = hold(rig, "kurt")
    try:
        said = asked(rig, "compact", "--force", "kurt", code=75)
        expect("locked" in said, "it says why", [said])
        asked(rig, "compact", "--force", "kurt", "lara", code=1)
    finally:
        holder.stdin.close()
        holder.wait(20)
    asked(rig, "compact", "nobody", code=1)


@case("previous logs of the same second get names of their own")
def previous(rig):
    made(rig, "nora")
    path = rig.to.data_file("nora")
    rig.to.write_conf(backup_keep_previous="1")
    try:
        now = int(time.time())
        for n in range(now, now + 6):
            with open("%s.%d" % (path, n), "w") as file:
                file.write("another")
        os.unlink("%s.%d" % (path, now + 3))
        out = rig.to.json("compact", "--force", "nora")["backups"][0]
        expect_equal((out["status"], out["previous"]), ("done", "%s.%d" % (path, now + 3)), "what was done")
        out = rig.to.json("compact", "--force", "nora")["backups"][0]
        if out["status"] == "done":
            expect_equal(out["previous"], "%s.%d" % (path, now + 6), "the next name")
    finally:
        rig.to.write_conf(backup_keep_previous="0")
    rig.whole("nora")


@case("the mode of a log and of its index stays, for a group that may copy it")
def modes(rig):
    made(rig, "olaf")
    path = rig.to.data_file("olaf")
    # With a group of another the new log's own group must not get its rights.
    for group, mode in (("mail", 0o640), ("root", 0o600)):
        for suffix in ("", ".index"):
            os.chown(path + suffix, -1, grp.getgrnam(group).gr_gid)
            os.chmod(path + suffix, 0o640)
        out = rig.to.json("compact", "--force", "olaf")["backups"][0]
        expect_equal(out["status"], "done", "compact")
        for suffix in ("", ".index"):
            expect_equal(oct(os.stat(path + suffix).st_mode & 0o777), oct(mode), "mode for " + group)
    rig.whole("olaf")


DAY = 86400


@case("a run that is late by two days is a run, also where no mail came")
def late(rig):
    made(rig, "ella")
    asked(rig, "compact", "-A")
    before = time.time() - 2 * DAY
    for user in rig.to.json("list")["backups"]:
        os.utime(user["path"], (before, before))
    os.unlink(rig.to.tree + "/conf/backups.db.compacted")
    note(rig, "%RAN", "%d 0 - -" % before)
    asked(rig, "compact", "-A")


@case("a clock that has jumped is refused once, whatever came by it, and then believed")
def jumped(rig):
    made(rig, "eric")
    asked(rig, "compact", "-A")
    asked(rig, "delete", "ella")
    now = int(time.time())
    ran = now - 10 * DAY
    note(rig, "%RAN", str(ran))
    made(rig, "evan")
    for words in (["-A"], ["eric"], ["-A", "--force"], ["--force", "eric"]):
        said = asked(rig, "compact", *words, code=77)
        expect("10 days ahead" in said and "--clock-is-right" in said, "it says what to do", [said])
        expect("--force" not in said, "it does not tell to force", [said])
    said = asked(rig, "delete", "--expired", code=77)
    done = rig.to.tool("compact", "-A", "-j")
    document = json.loads(done.out)
    expect_equal((done.code, document["backups"]), (77, []), "status, and what was done")
    expect("10 days ahead" in document["error"], "the document says why", [done.out])
    said = asked(rig, "compact", "-n", "eric")
    expect("10 days ahead" in said and "eric: " in said, "a dry run warns", [said])
    # An hour later: not yet. Thirteen: the clock has gone on.
    note(rig, "%CLOCK", "%d %d 1" % (now - 3600, ran))
    asked(rig, "compact", "-A", code=77)
    note(rig, "%CLOCK", "%d %d 1" % (now - 13 * 3600, ran))
    asked(rig, "compact", "-A")
    asked(rig, "compact", "-A")
    # What was noted before the last run counts no more.
    note(rig, "%RAN", str(ran + 1))
    asked(rig, "compact", "-A", code=77)
    asked(rig, "delete", "--expired", "--clock-is-right")
    asked(rig, "compact", "-A")


@case("ten days without a run are none of the clock's, if the kernel has counted them, too")
def weekly(rig):
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    up = int(time.clock_gettime(time.CLOCK_BOOTTIME))
    then = int(time.time()) - 10 * DAY
    note(rig, "%RAN", "%d %s %d" % (then, boot, up))
    asked(rig, "compact", "-A", code=77)
    note(rig, "%RAN", "%d %s %d" % (then, boot, up - 10 * DAY))
    asked(rig, "compact", "-A")
    # What that run noted is read by the next.
    asked(rig, "compact", "-A")


@case("deleted backups whose time is over go with compact -A, which tells them; names without a backup are told")
def buried(rig):
    for user in ("fay", "finn"):
        made(rig, user)
        asked(rig, "delete", user)
    rig.to.write_conf(backup_delete_grace="1s")
    try:
        time.sleep(1.1)
        out = rig.to.json("compact", "eric")
        expect_equal((len(out["backups"]), out["removed"]), (1, []), "one that is named is all it is about")
        out = rig.to.json("compact", "-A")
        removed = {r["userid"]: r for r in out["removed"]}
        expect("fay" in removed and removed["finn"]["status"] == "removed", "they are told", [str(out["removed"])])
        expect_equal(rig.to.json("list", "--deleted")["backups"], [], "deleted ones left")
        made(rig, "freda")
        asked(rig, "delete", "freda")
        time.sleep(1.1)
        said = asked(rig, "compact", "-A")
        expect(": removed: 2 files" in said and "%FORMER/freda/" in said, "for people, too", [said])
    finally:
        rig.to.write_conf(backup_delete_grace="30d")
    done = rig.to.tool("compact", "-j", "eric", "nobody")
    rows = {r["userid"]: r for r in json.loads(done.out)["backups"]}
    expect_equal((done.code, rows["nobody"]["error"]), (1, "no backup"), "a name without a backup")


@case("list and stat --stale: into which nothing has come for so long")
def stale(rig):
    made(rig, "gwen")
    time.sleep(1.1)
    for command in ("list", "stat"):
        expect_equal(len(rig.to.json(command, "--stale", "0", "gwen")["backups"]), 1, command + ": older than nothing")
        expect_equal(rig.to.json(command, "--stale", "1", "gwen")["backups"], [], command + ": an hour is not over")
        expect("gwen" in asked(rig, command, "--stale", "0", "gwen"), command + " for people")
        expect("gwen" not in asked(rig, command, "--stale", "1", "gwen"), command + " for people")
    expect("--stale wants" in asked(rig, "stat", "--stale", "x", "gwen", code=64), "a number")


@case("compact --force of a log that does not read: what is lost is told, and the next sync brings it")
def salvaged(rig):
    rig.cyrus.user("wilma")
    with rig.cyrus.imap("wilma") as imap:
        imap.fill("INBOX", [message("wilma%d" % n, 40000, to="wilma") for n in range(30)])
    rig.sync("-u", "wilma")
    asked(rig, "compact", "--force", "wilma")
    path = rig.to.data_file("wilma")
    with open(path, "r+b") as file:
        at = os.path.getsize(path) // 2
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x55]))
    said = asked(rig, "compact", "--force", "wilma")
    expect("do not read and are dropped" in said, "what is said", [said])
    told = [line for line in said.splitlines() + rig.why() if "does not read: message=" in line]
    expect(told, "each is named")
    expect_equal(len(rig.to.json("messages", "wilma")["messages"]), 30, "messages that are known")
    asked(rig, "heal", "wilma")
    rig.sync("-u", "wilma", attempts=2)
    have = logfile.bodies(path)
    expect_none([m["uid"] for m in rig.to.json("messages", "wilma")["messages"] if m["guid"] not in have], "messages without a body")
    rig.whole("wilma")


@case("where nothing expires no clock is in the way")
def forever(rig):
    rig.to.write_conf(backup_retention="0", backup_retention_for="eric=forever")
    try:
        note(rig, "%RAN", str(int(time.time()) - 20 * DAY))
        said = asked(rig, "compact", "-A")
        expect("no deleted backup is removed" in said, "but for deleted backups", [said])
    finally:
        del rig.to.lines["backup_retention_for"]
        rig.to.write_conf(backup_retention="1s")
    asked(rig, "compact", "-A", "--clock-is-right")


run(setup, Rig.close)
