#!/usr/bin/env python3
"""erase takes what was named, all of it that lies on this host, and nothing else: not what
retention would drop, and not less where a move or an erase was killed before."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *
from cyrusrig import dlist, sandbox

TWO = temp_dir("cyrusrig-two-")
OPTIONS = {
    "backup_retention": "2s",
    "backup_compact_brake": "0",
    "backup_keep_previous": "yes",
    "backup_delete_grace": "1s",
    "backuppartition-two": TWO,
    "partition_select_exclude": "two",
    "backup_lock_wait": "3s",
}


def setup():
    if RECEIVER != "ours":
        raise Skip("not for receiver %s" % RECEIVER)
    global rig_tree
    rig = start_rig(OPTIONS)
    rig_tree = rig.to.tree
    return rig


def made(rig, user, count=5, expunge=None):
    """A user with mail; of that some expunged. {uid: guid}."""
    rig.cyrus.user(user)
    with rig.cyrus.imap(user) as imap:
        imap.fill("INBOX", [message("%s%d" % (user, n), to=user, subject="word%s%d" % (user, n)) for n in range(count)])
    rig.sync("-u", user)
    held = {int(m["uid"]): m["guid"] for m in rig.to.json("messages", user)["messages"]}
    if expunge:
        with rig.cyrus.imap(user) as imap:
            imap.select("INBOX")
            imap.expunge(expunge)
        rig.sync("-u", user)
    return held


def killed_at(rig, n, *words):
    """Runs it under strace, which kills it at the nth name that it takes away. Whether it ended."""
    if not shutil.which("strace"):
        raise Skip("strace is not installed")
    calls = "unlink,unlinkat,rename,renameat"
    argv = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=" + calls, "-e", "inject=%s:signal=KILL:when=%d" % (calls, n)]
    argv += sandbox.as_cyrus([rig.to.path, "-C", rig.to.conf] + list(words))
    return subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60).returncode == 0


def asked(rig, *words, code=0):
    done = rig.to.tool(*words)
    expect(done.code == code, "status of %s is %d" % (" ".join(words), code), [str(done)])
    return done.out + done.err


def files_of(user):
    """All files of the user, by name, in both partitions."""
    found = []
    for top in (TWO, rig_tree + "/backup"):
        for folder, _dirs, names in os.walk(top):
            found += [os.path.join(folder, n) for n in names if n.startswith(user + "_")]
    return sorted(found)


def holders(user, *guids):
    """Logs of the user, whatever they are called, in which one of the bodies is."""
    found = []
    for path in files_of(user):
        with open(path, "rb") as file:
            is_log = file.read(2) == b"\x1f\x8b"
        if is_log and set(guids) & set(logfile.bodies(path)):
            found.append(path)
    return found


def copy(path, to):
    sandbox.make_dir(os.path.dirname(to))
    shutil.copyfile(path, to)
    return sandbox.owned(to)


def record(rig):
    path = rig.to.tree + "/conf/backups.db.erased"
    if not os.path.exists(path):
        return ""
    with open(path) as file:
        return file.read()


def kept(rig, user, held, but=()):
    have = logfile.bodies(rig.to.data_file(user))
    expect_none([u for u, g in held.items() if u not in but and g not in have], "bodies that are gone but were not named")
    expect_none([u for u in but if held[u] in have], "bodies that were named and are there")
    listed = rig.to.json("messages", user, "--deleted")["messages"]
    expect_equal(sorted(int(m["uid"]) for m in listed), sorted(held), "what is known of the messages")


@case("what retention would drop stays: only what was named goes")
def only_named(rig):
    held = made(rig, "anna", 10, "2:6")
    time.sleep(3)
    said = asked(rig, "erase", "anna", held[3], held[3])
    kept(rig, "anna", held, [3])
    expect("anna: erased: 1 messages" in said, "one that is named twice is one", [said])
    expect_equal(record(rig).count(held[3]), 2, "lines about it: before, and after")
    rig.sync("-u", "anna")
    # Of a deleted backup, too.
    held = made(rig, "bert", 10, "2:6")
    asked(rig, "delete", "bert")
    key = [b["key"] for b in rig.to.json("list", "--deleted")["backups"] if b["userid"] == "bert"][0]
    time.sleep(3)
    asked(rig, "erase", key, held[2])
    kept(rig, key, held, [2])


@case("the record of an erasure outlives a power loss: it is synced, and the folder it is new in")
def synced(rig):
    held = made(rig, "petra", 3, "2")
    if not shutil.which("strace"):
        raise Skip("strace is not installed")
    os.unlink(rig.to.tree + "/conf/backups.db.erased")
    trace = rig.to.tree + "/conf/trace"
    argv = ["strace", "-f", "-y", "-qq", "-o", trace, "-e", "trace=fsync,fdatasync,unlink,unlinkat,rename,renameat"]
    argv += sandbox.as_cyrus([rig.to.path, "-C", rig.to.conf, "erase", "petra", held[2]])
    done = subprocess.run(argv, capture_output=True, timeout=60)
    expect_equal(done.returncode, 0, "its status")
    with open(trace) as file:
        calls = [line.split(None, 1)[1] for line in file]
    about = [n for n, call in enumerate(calls) if "sync(" in call and "backups.db.erased>" in call]
    folder = [n for n, call in enumerate(calls) if "sync(" in call and "%s/conf>" % rig.to.tree in call]
    log = [n for n, call in enumerate(calls) if call.startswith(("unlink", "rename")) and rig.to.data_file("petra") in call]
    expect(about and folder and log, "what was to be seen", calls)
    expect(any(about[0] < n < log[0] for n in folder), "the folder is synced behind the record, before mail goes", calls)


@case("it is only in previous logs: they go, with their indexes")
def previous(rig):
    held = made(rig, "sven", 5, "2:3")
    time.sleep(3)
    asked(rig, "compact", "-F", "sven")
    path = rig.to.data_file("sven")
    expect(held[2] not in logfile.bodies(path), "it has expired")
    old = [p for p in holders("sven", held[2]) if p != path]
    expect_equal(len(old), 1, "previous logs that have it")
    expect("no body of message" in asked(rig, "erase", "sven", "1" * 40, code=1), "an unknown one")
    expect(os.path.exists(old[0]) and not os.path.exists(old[0] + ".index"), "for which nothing is made or removed")
    asked(rig, "messages", "-f", old[0])
    for suffix in (".index-wal", ".index.former"):
        with open(old[0] + suffix, "ab"):
            pass
    with open(path + ".damaged.1795442465123", "w") as file:
        file.write("mail")
    with open(path + ".damaged.1795442465123.index", "w") as file:
        file.write("subjects")
    expect("no body of message" in asked(rig, "erase", "sven", "0" * 40, code=1), "an unknown one")
    expect(os.path.exists(old[0]), "for which nothing is removed")
    said = asked(rig, "erase", "sven", held[2])
    expect("sven: erased: 1 messages, 1 previous logs" in said, "what is said", [said])
    for suffix in ("", ".index"):
        expect("may hold them still: %s.damaged.1795442465123%s\n" % (path, suffix) in said, "and what is left", [said])
        os.unlink(path + ".damaged.1795442465123" + suffix)
    left = [f for f in files_of("sven") if not f.startswith((path + ".index", path + "\0")) and f != path]
    expect_equal(left, [], "files beside the log")
    expect("message=%s previous=1" % held[2] in record(rig), "the record")
    rig.whole("sven")


@case("killed at each removal: run again it is done, and on record")
def killed(rig):
    ended = False
    for n in range(1, 40):
        user = "tilda%d" % n
        held = made(rig, user, 4, "2")
        with rig.cyrus.imap(user) as imap:
            imap.append("INBOX", message("more", to=user))
        rig.sync("-u", user)
        path = rig.to.data_file(user)
        copy(path, path + ".1795442465")
        asked(rig, "messages", "-f", path + ".1795442465")
        ended = killed_at(rig, n, "erase", user, held[2])
        expect("message=%s begun" % held[2] in record(rig) or not ended and holders(user, held[2]), "begun is on record (%d)" % n)
        again = rig.to.tool("erase", user, held[2])
        was_done = "message=%s previous=" % held[2] in record(rig)
        expect(again.code == 0 or ended and "no body" in again.err, "run again (%d)" % n, [str(again)])
        expect(was_done, "its end is on record (%d)" % n)
        expect_equal(holders(user, held[2]), [], "logs that have it (%d)" % n)
        expect("message=%s" % held[2] in record(rig), "on record (%d)" % n)
        rig.to.tool("erase", "--whole", user)
        expect_equal(files_of(user), [], "files left (%d)" % n)
        if ended:
            break
    expect(ended, "it came to its end at last")


@case("killed when the body is gone already: the same call ends it, and says what it would have said")
def killed_behind(rig):
    held = made(rig, "tristan", 4)
    path = rig.to.data_file("tristan")
    with open(path + ".damaged.1795442465123", "w") as file:
        file.write("mail")
    for n in range(1, 20):
        expect(not killed_at(rig, n, "erase", "--force", "tristan", held[2]), "it is killed (%d)" % n)
        if not holders("tristan", held[2]):
            break
    expect_equal(holders("tristan", held[2]), [], "logs that have it")
    expect("message=%s previous" % held[2] not in record(rig), "its end is not on record")
    said = asked(rig, "erase", "--force", "tristan", held[2])
    expect("may hold them still: " + path + ".damaged.1795442465123" in said, "what is left", [said])
    expect("message=%s previous=0" % held[2] in record(rig), "its end is on record")
    expect("no body" in asked(rig, "erase", "--force", "tristan", held[2], code=1), "and not twice")
    for n in range(1, 20):
        expect(not killed_at(rig, n, "erase", "--force", "tristan", held[3]), "it is killed (%d)" % n)
        if not holders("tristan", held[3]):
            break
    asked(rig, "rename", "tristan", "isolde")
    asked(rig, "erase", "--force", "isolde", held[3])
    expect("user=<isolde> message=%s previous=0" % held[3] in record(rig), "its end is on record")


@case("of a whole backup: killed at each removal, run again nothing is left and nothing comes back")
def whole_killed(rig):
    ended = False
    for n in range(1, 40):
        user = "udo%d" % n
        made(rig, user, 3)
        path = rig.to.data_file(user)
        copy(path, path[:-6] + "COPY01")
        copy(path, path + ".damaged.1795442465123")
        ended = killed_at(rig, n, "erase", "--whole", user)
        again = rig.to.tool("erase", "--whole", user)
        expect(again.code == 0 or ended and "no backup" in again.err, "run again (%d)" % n, [str(again)])
        expect_equal((files_of(user), rig.to.data_file(user)), ([], None), "what is left (%d)" % n)
        expect(re.search("user=<%s> whole=[0-9]+ begun" % user, record(rig)), "on record (%d)" % n)
        if ended:
            break
    expect(ended, "it came to its end at last")


@case("what a killed move left is erased, too, and nothing comes back")
def left_by_move(rig):
    held = made(rig, "mia", 5)
    old = rig.to.data_file("mia")
    copy(old, rig.to.tree + "/kept-mia")
    asked(rig, "move", "--to", "two", "mia")
    # The catalogue names the new one, the old one was not removed.
    copy(rig.to.tree + "/kept-mia", old)
    copy(old, old + ".damaged.1795442465123")
    said = asked(rig, "erase", "--force", "mia", held[1])
    expect("may hold them still: %s\n" % old in said, "one message: the copy is named", [said])
    said = asked(rig, "erase", "--whole", "mia")
    expect("mia: erased: 2 backups" in said, "what is said", [said])
    expect_equal(files_of("mia"), [], "files left")
    expect("no backup" in asked(rig, "erase", "--whole", "mia", code=1), "not twice")
    # It lies there again: an old copy that somebody puts back.
    copy(rig.to.tree + "/kept-mia", old)
    with rig.cyrus.imap("mia") as imap:
        imap.select("INBOX")
        imap.expunge("1:5")
        imap.append("INBOX", message("new", to="mia"))
    rig.cyrus.expire("-E", "0", "-X", "0", "-D", "0")
    rig.sync("-u", "mia", attempts=2)
    expect(rig.to.data_file("mia") != old, "a new log is begun")
    expect_none(sorted(set(held.values()) & set(logfile.bodies(rig.to.data_file("mia")))), "erased mail that is back")
    rig.whole("mia")
    expect_equal(asked(rig, "erase", "--whole", "mia").count("2 backups"), 1, "both go")
    expect_equal(files_of("mia"), [], "files left")
    # Without any entry it can be erased still.
    copy(rig.to.tree + "/kept-mia", old)
    expect("mia: erased: 1 backups" in asked(rig, "erase", "--whole", "mia"), "without an entry")
    expect_equal(files_of("mia"), [], "files left")


@case("heal knows what was erased, and takes it from no copy")
def healed(rig):
    held = made(rig, "vera", 5)
    # What went in the second in which it came counts as never here.
    time.sleep(1.5)
    with rig.cyrus.imap("vera") as imap:
        imap.select("INBOX")
        imap.expunge("2:3")
    rig.sync("-u", "vera")
    path = rig.to.data_file("vera")
    before = copy(path, rig.to.tree + "/kept-vera")
    asked(rig, "erase", "vera", held[2])
    document = rig.to.json("heal", "vera")["backups"][0]
    expect_equal([m["guid"] for m in document["erased"]], [held[2]], "what is told as erased")
    expect_equal(document["status"], "ok", "status")
    said = asked(rig, "heal", "--from", before, "vera")
    expect("message %s: erased here" % held[2] in said, "what is said", [said])
    expect_equal(holders("vera", held[2]), [], "logs that have it")
    rig.whole("vera")


def former(rig, user):
    return [b["key"] for b in rig.to.json("list", "--deleted")["backups"] if b["userid"] == user][0]


@case("of a deleted backup: its previous logs go, too, though they have the name from before")
def deleted_previous(rig):
    held = made(rig, "hans", 5, "2:3")
    time.sleep(3)
    asked(rig, "compact", "-F", "hans")
    path = rig.to.data_file("hans")
    with open(path + ".damaged.1795442465123", "w") as file:
        file.write("mail")
    expect_equal([os.path.basename(p).count(".") for p in holders("hans", held[2])], [1], "a previous log alone has one")
    asked(rig, "delete", "hans")
    key = former(rig, "hans")
    expect("no body of message" in asked(rig, "erase", key, "0" * 40, code=1), "an unknown one")
    expect(holders("hans", held[2]), "for which nothing goes")
    said = asked(rig, "erase", key, held[2])
    expect("erased: 1 messages, 1 previous logs" in said, "what is said", [said])
    expect("may hold them still: %s.damaged.1795442465123\n" % path in said, "and what is left", [said])
    expect_equal(holders("hans", held[2], held[3]), [], "logs that have it")
    # One that is in the log and in a previous one.
    asked(rig, "delete", "--undo", "hans")
    copy(path, path + ".1795442465")
    asked(rig, "delete", "hans")
    said = asked(rig, "erase", "--force", key, held[4])
    expect("erased: 1 messages, 1 previous logs" in said, "what is said", [said])
    expect_equal(holders("hans", held[4]), [], "logs that have it")


@case("only a deleted backup has it: that one is named, and nothing is erased")
def elsewhere(rig):
    held = made(rig, "ilja", 5)
    asked(rig, "delete", "ilja")
    with rig.cyrus.imap("ilja") as imap:
        imap.select("INBOX")
        imap.expunge("4")
    rig.cyrus.expire()
    rig.sync("-u", "ilja")
    said = asked(rig, "erase", "ilja", held[4], code=1)
    expect("no body of message %s; %s has it" % (held[4], former(rig, "ilja")) in said, "where it is", [said])
    expect(held[4] not in record(rig), "nothing is on record")
    # In a previous log of it alone.
    expect_equal(holders("ilja", held[4]), [rig.to.data_file(former(rig, "ilja"))], "logs that have it")
    copy(holders("ilja", held[4])[0], rig.to.data_file(former(rig, "ilja")) + ".1795442465")
    said = asked(rig, "erase", "ilja", held[4], code=1)
    expect_equal(said.count("%s has it" % former(rig, "ilja")), 1, "named once")
    said = asked(rig, "erase", former(rig, "ilja"), held[4], code=77)
    expect("was still in user/ilja, UID 4, when this was deleted: --force" in said, "how it goes", [said])
    asked(rig, "erase", "--force", former(rig, "ilja"), held[4])
    expect_equal(holders("ilja", held[4]), [], "logs that have it")


@case("who goes after each backup that is named has it nowhere any more")
def hints(rig):
    held = made(rig, "jan", 5)
    path = rig.to.data_file("jan")
    copy(path, path + ".1795442465")
    asked(rig, "delete", "jan")
    key = former(rig, "jan")
    rig.sync("-u", "jan")
    # It is in both logs, and in a previous one: as it was, and when it is in that alone.
    said = asked(rig, "erase", "--force", "jan", held[1])
    expect_equal(said.count("%s has it, too: %s\n" % (key, held[1])), 1, "the deleted one is named, once")
    asked(rig, "erase", "--force", key, held[1])
    expect_equal(holders("jan", held[1]), [], "logs that have it")
    copy(rig.to.data_file("jan"), path + ".1795442466")
    asked(rig, "erase", "--force", key, held[2])
    copy(rig.to.data_file("jan"), path + ".1795442466")
    said = asked(rig, "erase", "--force", "jan", held[2])
    expect("%s has it, too: %s\n" % (key, held[2]) in said, "it is named for its previous log", [said])
    asked(rig, "erase", "--force", key, held[2])
    expect_equal(holders("jan", held[2]), [], "logs that have it")


def not_again(rig, user, before, guid):
    """heal knows that it was erased, and takes it from no copy."""
    # A session that has just ended may have it still.
    document = rig.to.json("heal", "-w", user)["backups"][0]
    expect_equal([m["guid"] for m in document["erased"]], [guid], "what is told as erased of %s" % user)
    expect_equal(document["nowhere"], [], "and what as lost")
    said = asked(rig, "heal", "--from", before, user)
    expect("message %s: erased here" % guid in said, "what is said", [said])
    expect_equal([p for p in holders(user, guid) if p != before], [], "logs that have it")


@case("it does not come back from a copy: not after undo, a new name, or another place")
def away_for_good(rig):
    held = made(rig, "kai", 5)
    time.sleep(1.5)
    with rig.cyrus.imap("kai") as imap:
        imap.select("INBOX")
        imap.expunge("2:3")
    rig.sync("-u", "kai")
    before = copy(rig.to.data_file("kai"), rig.to.tree + "/kept-kai")
    asked(rig, "delete", "kai")
    key = former(rig, "kai")
    asked(rig, "erase", key, held[2])
    not_again(rig, key, before, held[2])
    asked(rig, "delete", "--undo", "kai")
    not_again(rig, "kai", before, held[2])
    asked(rig, "rename", "kai", "kaspar")
    not_again(rig, "kaspar", before, held[2])
    asked(rig, "move", "--to", "two", "kaspar")
    asked(rig, "rename", "kaspar", "konrad")
    not_again(rig, "konrad", before, held[2])
    asked(rig, "delete", "konrad")
    not_again(rig, former(rig, "konrad"), before, held[2])
    expect_equal(record(rig).count(held[2]), 4, "lines about it: before, after, and two new names")
    # Another one comes back: nobody asked for that one.
    asked(rig, "delete", "--undo", "konrad")
    expect(held[3] in logfile.bodies(rig.to.data_file("konrad")), "the other one is there")


@case("it does not come back when the server gives the mailbox to another owner")
def renamed_there(rig):
    held = made(rig, "kat", 5)
    before = copy(rig.to.data_file("kat"), rig.to.tree + "/kept-kat")
    asked(rig, "erase", "--force", "kat", held[2])
    wire = rig.to.csync()
    try:
        box = wire.command("GET MAILBOXES", ["user.kat"])[0][1]
        change = {"OLDMBOXNAME": "user.kat", "NEWMBOXNAME": "user.kate", "PARTITION": "default"}
        wire.command("APPLY RENAME", dict(change, UIDVALIDITY=int(box["UIDVALIDITY"])))
    finally:
        wire.close()
    about = [line.split(" ", 2)[2] for line in record(rig).splitlines() if "user=<kate>" in line]
    expect_equal(about, ["user=<kate> message=%s of=<kat>" % held[2]], "what is on record of the new owner")
    not_again(rig, "kate", before, held[2])
    asked(rig, "heal", "--from", before, "kat")
    expect_equal([p for p in holders("kat", held[2]) if p != before], [], "logs of the old one that have it")


def begun(rig, *words):
    """A command that goes on beside us."""
    return subprocess.Popen(sandbox.as_cyrus([rig.to.path, "-C", rig.to.conf] + list(words)), stdout=subprocess.DEVNULL)


@case("who has it open, or compacts it, is told, and waited for")
def waited_for(rig):
    made(rig, "ses", 2)
    wire = rig.to.csync()
    try:
        body = message("in the open chunk", to="ses")
        guid = hashlib.sha1(body).hexdigest()
        box = dict(wire.command("GET MAILBOXES", ["user.ses"])[0][1])
        wire.command("APPLY RESERVE", {"PARTITION": "default", "MBOXNAME": ["user.ses"], "GUID": [guid]})
        wire.command("APPLY MESSAGE", [dlist.File("default", guid, body)])
        for key in ("SYNC_CRC", "SYNC_CRC_ANNOT", "XCONVMODSEQ"):
            box.pop(key, None)
        uid, modseq, now = int(box["LAST_UID"]) + 1, int(box["HIGHESTMODSEQ"]) + 1, int(time.time())
        gone = {"UID": uid, "MODSEQ": modseq, "LAST_UPDATED": now, "FLAGS": ["\\Expunged"], "INTERNALDATE": now}
        gone.update({"SIZE": len(body), "GUID": guid})
        wire.command("APPLY MAILBOX", dict(box, LAST_UID=uid, HIGHESTMODSEQ=modseq, RECORD=[gone]))
        for _attempt in range(2):
            said = asked(rig, "erase", "ses", guid, code=75)
            expect("held by process %d" % rig.to.process.pid in said, "who has it", [said])
        expect_equal(record(rig).count(guid), 1, "lines about it, however often it is tried")
        waiting = begun(rig, "erase", "-w", "ses", guid)
        time.sleep(4)
        expect_equal(waiting.poll(), None, "longer than backup_lock_wait")
        wire.command("RESTART")
        expect_equal(waiting.wait(30), 0, "status of the waiting one")
        expect_equal(holders("ses", guid), [], "logs that have it")
    finally:
        wire.close()
    # While somebody compacts it.
    held = made(rig, "tess", 4)
    new = rig.to.data_file("tess") + ".new"
    with open(new, "w") as file:
        sandbox.owned(new)
        fcntl.lockf(file, fcntl.LOCK_EX)
        start = time.time()
        said = asked(rig, "erase", "--force", "tess", held[1], code=75)
        expect("is being compacted already" in said and "held by process %d" % os.getpid() in said, "by whom", [said])
        expect(time.time() - start > 2.5, "it is waited for as backup_lock_wait says")
        start = time.time()
        asked(rig, "compact", "-F", "tess", code=75)
        expect(time.time() - start < 2.5, "compact leaves it to who is at work")
        both = [begun(rig, *words) for words in (("erase", "--force", "-w", "tess", held[1]), ("compact", "-w", "-F", "tess"))]
        time.sleep(4)
        expect_equal([p.poll() for p in both], [None, None], "longer than that")
    expect_equal([p.wait(30) for p in both], [0, 0], "status of the waiting ones")
    expect_equal(holders("tess", held[1]), [], "logs that have it")
    expect(not os.path.exists(new), "nothing is left of it")


@case("a whole backup goes only if all that is named is known, and is a whole one")
def names(rig):
    for user in ("rob", "roy"):
        made(rig, user, 2)
    guid = hashlib.sha1(b"x").hexdigest()
    said = asked(rig, "erase", "--whole", "rob", guid, code=64)
    expect("%s: no backup is called so, and GUIDs of messages go without --whole" % guid in said, "a GUID", [said])
    said = asked(rig, "erase", "--whole", "rob", "nobody", code=1)
    expect_equal(said, "rob: nothing is erased, for another name is unknown\nnobody: no backup\n", "an unknown one")
    expect_equal(rig.to.tool("erase", "--whole", "nobody").err, "nobody: no backup\n", "said once")
    for command in (["erase", "--whole"], ["delete"]):
        said = asked(rig, *command, "-m", "user/rob/Trash", code=64)
        expect("this is about all of user rob" in said, "what it would be of a mailbox", [said])
    expect_equal(rig.to.tool("delete", "nobody").err, "nobody: no backup\n", "said once")
    done = rig.to.tool("erase", "-j", "--whole", "rob", "nobody")
    rows = [{"userid": "rob", "status": "untouched"}, {"userid": "nobody", "status": "failed", "error": "no backup"}]
    expect_equal((done.code, json.loads(done.out)["backups"]), (1, rows), "the same in JSON")
    for user in ("rob", "roy"):
        rig.whole(user)
    # What is erased already does not keep the others: that is how an interrupted one is ended.
    asked(rig, "erase", "--whole", "-m", "user/rob")
    said = asked(rig, "erase", "--whole", "rob", "roy", code=1)
    expect("rob: no backup\n" in said and "roy: erased: 1 backups" in said, "the rest of it", [said])
    expect_equal(files_of("rob") + files_of("roy"), [], "files left")


@case("what is refused or not found is a document, too, and a look into previous logs is silent")
def documents(rig):
    held = made(rig, "dana", 3)
    for guid, code, why in ((held[1], 77, "is still in user/dana"), ("0" * 40, 1, "no body of message")):
        done = rig.to.tool("erase", "-j", "dana", guid)
        document = json.loads(done.out)
        expect_equal((done.code, document["userid"], document["status"]), (code, "dana", "failed"), "what is told")
        expect(why in document["error"] and why in done.err, "and why", [str(done)])
    path = rig.to.data_file("dana")
    copy(path, path + ".1795442465")
    done = rig.to.tool("erase", "--force", "-j", "dana", held[1])
    expect_equal((json.loads(done.out)["status"], json.loads(done.out)["removed"]), ("erased", [path + ".1795442465"]), "an erased one")
    copy(path, path + ".1795442465")
    done = rig.to.tool("erase", "--force", "dana", held[2])
    expect_equal(done.err, "", "what is said beside")
    copy(path, path + ".1795442465")
    done = rig.to.tool("erase", "dana", "0" * 40)
    expect_equal(done.err.count("\n"), 1, "one line of an unknown one")


@case("somebody else's log of that name is left, and one that does not read is named")
def not_his(rig):
    made(rig, "nora")
    made(rig, "olaf")
    folder = os.path.dirname(rig.to.data_file("nora"))
    other = copy(rig.to.data_file("olaf"), folder + "/nora_AAAAAA")
    with open(folder + "/nora_BBBBBB", "w") as file:
        file.write("neither")
    sandbox.owned(folder + "/nora_BBBBBB")
    said = asked(rig, "erase", "--whole", "nora")
    expect("may hold them still: %s/nora_BBBBBB\n" % folder in said, "which may be hers", [said])
    expect_equal(files_of("nora"), [other, folder + "/nora_BBBBBB"], "files left")
    for name in ("A", "B"):
        os.unlink(folder + "/nora_" + name * 6)
    rig.whole("olaf")


@case("removed after its grace: a copy beside it is named, and is not his backup again")
def expired(rig):
    held = made(rig, "paul")
    path = rig.to.data_file("paul")
    beside = copy(path, path[:-6] + "COPY01")
    asked(rig, "delete", "paul")
    time.sleep(2)
    said = asked(rig, "delete", "--expired")
    expect("without an entry: %s\n" % beside in said, "the copy is named", [said])
    with rig.cyrus.imap("paul") as imap:
        imap.select("INBOX")
        imap.expunge("1:5")
    rig.cyrus.expire("-E", "0", "-X", "0", "-D", "0")
    rig.sync("-u", "paul", attempts=2)
    expect(rig.to.data_file("paul") != beside, "a new log is begun")
    expect_none(sorted(set(held.values()) & set(logfile.bodies(rig.to.data_file("paul")))), "mail that is back")
    # What was begun after that is found by a session when the catalogue is lost.
    path = rig.to.data_file("paul")
    run_command(["/usr/lib/cyrus/bin/cyr_dbtool", "-C", rig.to.conf, rig.to.tree + "/conf/backups.db", "twoskip", "delete", "paul"])
    rig.sync("-u", "paul")
    expect_equal(rig.to.data_file("paul"), path, "the live log is found again")


@case("erased by a clock that is slow: a copy is not his backup again")
def slow_clock(rig):
    held = made(rig, "uwe")
    path = rig.to.data_file("uwe")
    copy(path, rig.to.tree + "/kept-uwe")
    later = int(time.time()) + 7200
    os.utime(path, (later, later))
    asked(rig, "erase", "--whole", "uwe")
    expect("user=<uwe> whole=%d begun" % later in record(rig), "up to when, is on record", [record(rig)])
    expect(held, "it had mail")


@case("of a whole backup: killed before its last line, the same call writes it")
def whole_ended(rig):
    for n, name in enumerate(("user", "key")):
        user = "vito%d" % n
        made(rig, user, 2)
        asked(rig, "delete", user)
        key = former(rig, user)
        words = ["erase", "--whole", key if name == "key" else user]
        argv = ["strace", "-f", "-qq", "-o", "/dev/null", "-P", rig.to.tree + "/conf/backups.db.erased"]
        argv += ["-e", "trace=write", "-e", "inject=write:signal=KILL:when=3"]
        argv += sandbox.as_cyrus([rig.to.path, "-C", rig.to.conf] + words)
        expect(subprocess.run(argv, timeout=60).returncode != 0, "it is killed (%s)" % name)
        expect_equal((files_of(user), key in rig.to.data_files()), ([], False), "it has gone (%s)" % name)
        last = record(rig).splitlines()[-1]
        expect("backups=" not in last, "its end is not on record (%s)" % name, [last])
        asked(rig, *words)
        last = record(rig).splitlines()[-1]
        expect("user=<%s> backups=0" % user in last, "its end is on record (%s)" % name, [last])
        expect("no backup" in asked(rig, *words, code=1), "and not twice (%s)" % name)


@case("a deleted backup came back since its erasure was begun: that call does not say that it is erased")
def back_again(rig):
    made(rig, "berta", 3)
    asked(rig, "delete", "berta")
    key = former(rig, "berta")
    asked(rig, "delete", "--undo", "berta")
    asked(rig, "delete", "berta")
    key = former(rig, "berta")
    ended = False
    for n in range(1, 30):
        ended = killed_at(rig, n, "erase", "--whole", key)
        if ended or key not in rig.to.data_files() or not holders_any("berta"):
            break
        asked(rig, "delete", "--undo", "berta")
        said = asked(rig, "erase", "--whole", key, code=1)
        expect("no backup" in said, "what is said (%d)" % n, [said])
        rig.whole("berta")
        asked(rig, "delete", "berta")
        key = former(rig, "berta")
    expect(n > 1, "it was killed and brought back")
    rig.to.tool("erase", "--whole", "berta")
    expect_equal(files_of("berta"), [], "files left")


def holders_any(user):
    """Logs of the user that lie anywhere."""
    return [path for path in files_of(user) if not path.endswith((".index", "-wal", "-shm"))]


@case("a folder that lists and lets nobody look into it: what lies there is named")
def unlooked(rig):
    made(rig, "zora", 2)
    path = rig.to.data_file("zora")
    beside = copy(path, TWO + "/z/" + os.path.basename(path)[:-6] + "COPY01")
    os.chmod(TWO + "/z", 0o400)
    try:
        said = asked(rig, "erase", "--whole", "zora")
        expect("may hold them still: %s\n" % beside in said, "what is left", [said])
    finally:
        os.chmod(TWO + "/z", 0o700)
    expect("1 backups" in asked(rig, "erase", "--whole", "zora"), "it goes then")


@case("a folder of another partition that does not read is named, and ends nothing")
def unreadable(rig):
    made(rig, "zara")
    guid = made(rig, "zeno")[1]
    made(rig, "zita")
    asked(rig, "delete", "zita")
    folder = TWO + "/z"
    if os.path.isdir(folder):
        os.rename(folder, TWO + "/away")
    with open(folder, "w") as file:
        sandbox.owned(file.name)
    try:
        said = asked(rig, "erase", "--whole", "zara")
        expect("1 backups" in said and "may hold them still: %s\n" % folder in said, "of a whole backup", [said])
        said = asked(rig, "erase", "--force", "zeno", guid)
        expect("may hold them still: %s\n" % folder in said, "of a message", [said])
        time.sleep(2)
        said = asked(rig, "delete", "--expired")
        expect("removed: " in said and "without an entry: %s\n" % folder in said, "of what has expired", [said])
    finally:
        os.unlink(folder)
        if os.path.isdir(TWO + "/away"):
            os.rename(TWO + "/away", folder)
    expect_equal((files_of("zara"), files_of("zita")), ([], []), "files left")


@case("other backups that have it are named: of an earlier name, too")
def others(rig):
    held = made(rig, "hilda", 4)
    with rig.cyrus.imap("admin") as imap:
        imap.rename("user/hilda", "user/helga")
    rig.sync("-u", "helga", attempts=2)
    keys = rig.to.data_files()
    if "hilda" not in keys:
        # Followed as a whole: an old copy stands for it.
        raise Skip("the backup went along")
    said = asked(rig, "erase", "--force", "helga", held[1])
    expect("hilda has it, too: %s\n" % held[1] in said, "who has it", [said])
    document = rig.to.json("erase", "--force", "helga", held[2])
    expect_equal(document["others"], [{"userid": "hilda", "guid": held[2]}], "the same in JSON")
    said = asked(rig, "erase", "--whole", "helga")
    expect("hilda has a part of its past" in said, "of the whole, too", [said])


run(setup, Rig.close)
