#!/usr/bin/env python3
"""A backup moves to another partition and back while the real sync_client goes on; killed
and interrupted at each step; beside files of others."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *
from cyrusrig import sandbox

TWO = temp_dir("cyrusrig-two-")


def setup():
    if RECEIVER != "ours":
        raise Skip("not for receiver %s" % RECEIVER)
    return start_rig({"backuppartition-two": TWO, "partition_select_exclude": "two", "backup_lock_wait": "3s"})


def made(rig, user, count=5, size=600):
    rig.cyrus.user(user)
    with rig.cyrus.imap(user) as imap:
        imap.fill("INBOX", [message("%s%d" % (user, n), size, to=user) for n in range(count)])
    rig.sync("-u", user)


def move(rig, user, to, code=0):
    done = rig.to.tool("move", "--to", to, user)
    expect(done.code == code, "status of move is %s" % code, [str(done)])
    return done.out + done.err


def place(rig, user):
    return "two" if rig.to.data_file(user).startswith(TWO) else "default"


def files_of(rig, user):
    """All files of the user in both partitions."""
    out = []
    for top in (TWO, rig.to.tree + "/backup"):
        for folder, _dirs, names in os.walk(top):
            out += [os.path.join(folder, n) for n in names if n.startswith(user + "_")]
    return sorted(out)


def lone(rig, user):
    """One log, one index, nothing else."""
    path = rig.to.data_file(user)
    extra = [f for f in files_of(rig, user) if f not in (path, path + ".index", path + ".index-wal", path + ".index-shm")]
    expect_equal(extra, [], "other files of %s" % user)


def agree(rig):
    said = rig.to.tool("rescan").out
    expect(" 0 findings" in said, "rescan", [said])


@case("there and back: all of it moves, and syncs go on")
def there(rig):
    made(rig, "anna")
    old = rig.to.data_file("anna")
    with open(old + ".damaged.1795442465123", "w") as file:
        file.write("kept aside")
    said = move(rig, "anna", "two")
    expect("anna: moved to " + TWO in said and " under the lock" in said, "what is said", [said])
    new = rig.to.data_file("anna")
    expect_equal((place(rig, "anna"), os.path.basename(new)), ("two", os.path.basename(old)), "place and name")
    expect(not os.path.exists(old) and not os.path.exists(old + ".index"), "nothing is left")
    expect(os.path.exists(new + ".damaged.1795442465123"), "what was set aside came along")
    os.unlink(new + ".damaged.1795442465123")
    lone(rig, "anna")
    rig.whole("anna")
    with rig.cyrus.imap("anna") as imap:
        imap.append("INBOX", message("after", to="anna"))
    rig.sync("-u", "anna")
    rig.whole("anna")
    expect("is there already" in move(rig, "anna", "two"), "nothing to do is well")
    move(rig, "anna", "default")
    expect_equal(rig.to.data_file("anna"), old, "back in its place")
    rig.sync("-u", "anna")
    rig.whole("anna")
    agree(rig)


@case("while mail comes in and is synced all the time")
def busy(rig):
    made(rig, "bert", 30, 20000)
    stop = threading.Event()
    failed = []

    def deliver():
        number = 0
        while not stop.is_set():
            with rig.cyrus.imap("bert") as imap:
                imap.append("INBOX", message("busy%d" % number, 3000, to="bert"))
            number += 1
            done = rig.cyrus.sync(rig.to, "-u", "bert")
            if done.code != 0:
                failed.append(str(done))

    thread = threading.Thread(target=deliver)
    thread.start()
    try:
        moves = 0
        for n in range(12):
            done = rig.to.tool("move", "-w", "--to", ("two", "default")[n % 2], "bert")
            expect_equal(done.code, 0, "status of a move")
            moves += 1
            time.sleep(0.2)
    finally:
        stop.set()
        thread.join()
    expect_equal(failed, [], "syncs that failed")
    rig.sync("-u", "bert")
    rig.whole("bert")
    lone(rig, "bert")
    agree(rig)


@case("while compact works on everybody all the time: moved, renamed, deleted, brought back")
def compacted(rig):
    made(rig, "gina", 30, 20000)
    with rig.cyrus.imap("gina") as imap:
        imap.select("INBOX")
        imap.expunge("1:3")
    rig.sync("-u", "gina")
    stop = threading.Event()
    strange, runs = [], 0

    def compact():
        nonlocal runs
        while not stop.is_set():
            done = rig.to.tool("compact", "-A", "--force")
            runs += 1
            # 1: it was locked, or had gone away meanwhile.
            if done.code not in (0, 1) or "IOERROR" in done.err or "panic" in done.err:
                strange.append(str(done))

    thread = threading.Thread(target=compact)
    thread.start()
    try:
        for n in range(8):
            for words in (
                ("move", "-w", "--to", ("two", "default")[n % 2], "gina"),
                ("rename", "-w", "gina", "regina"),
                ("delete", "-w", "regina"),
                ("delete", "-w", "--undo", "regina"),
                ("rename", "-w", "regina", "gina"),
            ):
                done = rig.to.tool(*words)
                expect_equal(done.code, 0, "status of %s: %s" % (" ".join(words), done))
    finally:
        stop.set()
        thread.join()
    diag("%d compactions" % runs)
    expect_equal(strange, [], "compactions that failed")
    expect_equal(rig.to.tool("verify", "gina").code, 0, "verify")
    rig.whole("gina")
    rig.sync("-u", "gina")
    rig.whole("gina")
    lone(rig, "gina")
    agree(rig)


@case("who has it open is waited for, and told; nothing has moved then")
def held(rig):
    made(rig, "carl")
    wire = rig.to.csync()
    try:
        wire.command("GET USER", "carl")
        wire.command("APPLY SUB", {"USERID": "carl", "MBOXNAME": "user.carl"})
        said = move(rig, "carl", "two", code=75)
        expect("locked: held by process" in said, "by whom", [said])
        expect_equal(place(rig, "carl"), "default", "place")
        waiting = subprocess.Popen(
            sandbox.as_cyrus([rig.to.path, "-C", rig.to.conf, "move", "-w", "--to", "two", "carl"])
        )
        time.sleep(0.5)
        # What comes meanwhile moves, too.
        wire.command("APPLY SUB", {"USERID": "carl", "MBOXNAME": "user.carl.later"})
        wire.command("RESTART")
        expect_equal(waiting.wait(30), 0, "status of the waiting one")
        wire.command("APPLY UNSUB", {"USERID": "carl", "MBOXNAME": "user.carl.later"})
    finally:
        wire.close()
    expect_equal(place(rig, "carl"), "two", "place")
    shown = rig.to.json("show", "carl", "subscriptions", "--deleted")["subscriptions"]
    expect("user.carl.later" in [s["mboxname"] for s in shown], "what came while it waited is there", [str(shown)])
    lone(rig, "carl")


@case("a message is erased while its backup moves: both come to their end, and it is nowhere")
def erased_meanwhile(rig):
    for n in range(6):
        user = "eras%d" % n
        made(rig, user)
        guid = rig.to.json("messages", user)["messages"][1]["guid"]
        both = [["move", "-w", "--to", "two", user], ["erase", "--force", "-w", user, guid]]
        wire = rig.to.csync()
        try:
            wire.command("APPLY SUB", {"USERID": user, "MBOXNAME": "user.%s.later" % user})
            if n % 2:
                both.reverse()
            waiting = []
            for words in both:
                waiting.append(subprocess.Popen(sandbox.as_cyrus([rig.to.path, "-C", rig.to.conf] + words)))
                time.sleep(0.2)
            wire.command("RESTART")
            expect_equal([p.wait(30) for p in waiting], [0, 0], "status of %s" % both)
        finally:
            wire.close()
        expect_equal(place(rig, user), "two", "place")
        lone(rig, user)
        expect(guid not in logfile.bodies(rig.to.data_file(user)), "it is nowhere")
        expect_equal(rig.to.tool("verify", user).code, 0, "verify")


@case("killed at any moment: one of the two is the backup, and the next move ends it")
def killed(rig):
    made(rig, "dora", 60, 100000)
    chance = random.Random(4)
    counts = {"default": 0, "two": 0}
    for turn in range(14):
        there = place(rig, "dora")
        argv = [rig.to.path, "-C", rig.to.conf, "move", "--to", "default" if there == "two" else "two", "dora"]
        child = subprocess.Popen(sandbox.as_cyrus(argv), stdout=subprocess.DEVNULL, start_new_session=True)
        time.sleep(chance.uniform(0, 0.12))
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        child.wait()
        counts[place(rig, "dora")] += 1
        if turn % 3 == 0:
            with rig.cyrus.imap("dora") as imap:
                imap.append("INBOX", message("turn%d" % turn, to="dora"))
            rig.sync("-u", "dora")
        expect(os.path.exists(rig.to.data_file("dora")), "the backup is where backups.db says")
    diag("ended in: %s" % counts)
    rig.sync("-u", "dora")
    rig.whole("dora")
    for to in ("two", "default"):
        move(rig, "dora", to)
    rig.whole("dora")
    lone(rig, "dora")
    agree(rig)


@case("interrupted at each step, as it lies on disk then")
def steps(rig):
    made(rig, "emil")
    old = rig.to.data_file("emil")
    new = TWO + "/e/" + os.path.basename(old)
    sandbox.make_dir(os.path.dirname(new))

    def copy(path, to):
        shutil.copyfile(path, to)
        sandbox.owned(to)

    # A part of the copy, and an index that belongs to nothing yet.
    copy(old, new + ".new")
    os.truncate(new + ".new", 100)
    copy(old + ".index", new + ".index")
    agree(rig)
    move(rig, "emil", "two")
    rig.whole("emil")
    lone(rig, "emil")
    # The copy has its name, the catalogue does not know it; mail goes on into the old one.
    copy(new, old)
    with rig.cyrus.imap("emil") as imap:
        imap.append("INBOX", message("goes on", to="emil"))
    rig.sync("-u", "emil")
    said = rig.to.tool("rescan").out
    expect("one of several logs" in said and "(a copy of %s)" % new in said, "rescan tells which is a copy", [said])
    rig.whole("emil")
    # The catalogue knows the copy, the old files are not removed; backups.db is lost on top.
    rig.to.stop()
    os.unlink(rig.to.tree + "/conf/backups.db")
    rig.to.tool("rescan", "--fix")
    rig.to.start()
    expect_equal(rig.to.data_file("emil"), new, "the one that went on is the backup")
    rig.whole("emil")
    said = move(rig, "emil", "two")
    expect("is there already" in said, "already there", [said])
    lone(rig, "emil")
    agree(rig)
    copy(new, old)
    move(rig, "emil", "default")
    rig.whole("emil")
    lone(rig, "emil")


def traced(rig, *words, inject, only=None):
    """Runs it under strace, which makes some of its calls fail or kills it there."""
    strace = shutil.which("strace")
    if not strace:
        raise Skip("strace is not installed")
    argv = [strace, "-f", "-qq", "-o", "/dev/null"] + (["-P", only] if only else [])
    calls = inject.split(":")[0]
    argv += ["-e", "trace=" + calls, "-e", "inject=" + inject]
    return run_command(argv + [rig.to.path, "-C", rig.to.conf] + list(words))


@case("killed at each name that it gives or takes away, and compacted since: the next moves end it")
def killed_and_compacted(rig):
    made(rig, "lea")
    with open(rig.to.data_file("lea") + ".damaged.1795442465123", "w") as file:
        file.write("kept aside")
    # Beyond that many it ends before.
    for n in range(1, 60):
        to = "default" if place(rig, "lea") == "two" else "two"
        calls = "unlink,unlinkat,rename,renameat:signal=KILL:when=%d" % n
        done = traced(rig, "move", "--to", to, "lea", inject=calls)
        with rig.cyrus.imap("lea") as imap:
            imap.append("INBOX", message("lea%d" % n, to="lea"))
        rig.sync("-u", "lea")
        expect_equal(rig.to.tool("compact", "-F", "lea").code, 0, "compact (%d)" % n)
        for to in ("default", "two"):
            move(rig, "lea", to)
        path = rig.to.data_file("lea")
        aside = path + ".damaged.1795442465123"
        expect(os.path.exists(aside), "what was set aside is there (%d)" % n)
        extra = [f for f in files_of(rig, "lea") if not f.startswith(path + ".index") and f not in (path, aside)]
        expect_equal(extra, [], "other files (%d)" % n)
        if done.code == 0:
            break
    expect(done.code == 0 and n > 5, "it came to its end at last (%d)" % n)
    rig.whole("lea")
    agree(rig)


@case("killed, then deleted: what was left of the live one is known, too")
def killed_and_deleted(rig):
    made(rig, "lou")
    old = rig.to.data_file("lou")
    traced(rig, "move", "--to", "two", "lou", inject="unlink,unlinkat:signal=KILL:when=1", only=old)
    expect(os.path.exists(old) and place(rig, "lou") == "two", "the old log is left")
    expect_equal(rig.to.tool("compact", "-F", "lou").code, 0, "compact")
    expect_equal(rig.to.tool("delete", "lou").code, 0, "delete")
    key = [b["key"] for b in rig.to.json("list", "--deleted")["backups"] if b["userid"] == "lou"][0]
    move(rig, key, "two")
    expect(not os.path.exists(old), "the move of the deleted one removes it")
    expect_equal(rig.to.tool("delete", "--undo", "lou").code, 0, "undo")
    rig.whole("lou")


@case("what cannot be removed is told, with a status, and removed by the next move")
def stays(rig):
    made(rig, "lisa")
    old = rig.to.data_file("lisa")
    for words, is_json in ((["lisa"], False), (["-j", "lisa"], True)):
        to = "default" if place(rig, "lisa") == "two" else "two"
        old = rig.to.data_file("lisa")
        done = traced(rig, "move", "--to", to, *words, inject="unlink,unlinkat:error=EROFS", only=old)
        expect_equal(done.code, 74, "status of a move that leaves files")
        expect_equal(place(rig, "lisa"), to, "it has moved")
        expect("lisa: stays until the next move: %s\n" % old in done.err, "which", [str(done)])
        if is_json:
            row = json.loads(done.out)["backups"][0]
            expect_equal((row["status"], row["left"]), ("moved", [old]), "the same in JSON")
        expect_equal(rig.to.tool("compact", "-F", "lisa").code, 0, "compact")
        move(rig, "lisa", to)
        lone(rig, "lisa")
    rig.whole("lisa")


@case("a partition that is reached by two names: nothing of it is taken for a copy")
def two_names(rig):
    made(rig, "max")
    path = rig.to.data_file("max")
    one, other = rig.to.tree + "/backup", rig.to.tree + "/other"
    os.rename(one, other)
    os.symlink(other, one)
    moved = path.replace(one, other)
    run_command(["/usr/lib/cyrus/bin/cyr_dbtool", "-C", rig.to.conf, rig.to.tree + "/conf/backups.db", "twoskip", "set", "max", moved])
    try:
        expect("is there already" in move(rig, "max", "default"), "it is there")
        expect(os.path.exists(path), "the log is where it was")
        move(rig, "max", "two")
        lone(rig, "max")
    finally:
        os.unlink(one)
        os.rename(other, one)
    rig.whole("max")


@case("what a killed compaction left is not carried along, and goes")
def leftovers(rig):
    made(rig, "lena")
    path = rig.to.data_file("lena")
    for suffix in (".new", ".new.index"):
        shutil.copy(path, path + suffix)
        sandbox.owned(path + suffix)
    move(rig, "lena", "default" if place(rig, "lena") == "two" else "two")
    path = rig.to.data_file("lena")
    left = [n for n in files_of(rig, "lena") if ".new" in n]
    expect_equal(left, [], "files left")
    rig.whole("lena")


@case("another file in its place is left alone")
def stranger(rig):
    made(rig, "fred")
    made(rig, "bella")
    new = TWO + "/f/" + os.path.basename(rig.to.data_file("fred"))
    sandbox.make_dir(os.path.dirname(new))
    shutil.copyfile(rig.to.data_file("bella"), new)
    sandbox.owned(new)
    said = move(rig, "fred", "two", code=1)
    expect("another file lies there: " + new in said, "which", [said])
    expect(os.path.exists(new) and place(rig, "fred") == "default", "both are where they were")
    rig.whole("fred")
    os.unlink(new)
    expect("no backuppartition-three" in move(rig, "fred", "three", code=78), "unknown partition")
    expect("no backup" in move(rig, "nobody", "two", code=1), "unknown user")
    done = rig.to.tool("move", "-j", "--to", "two", "nobody")
    row = {"userid": "nobody", "status": "failed", "error": "no backup"}
    expect_equal((done.code, json.loads(done.out)["backups"]), (1, [row]), "the same in JSON")


@case("a deleted backup moves, too, and comes back")
def deleted(rig):
    made(rig, "hugo")
    old = rig.to.data_file("hugo")
    for suffix in (".1795442465", ".damaged.1795442465123"):
        shutil.copyfile(old, old + suffix)
        sandbox.owned(old + suffix)
    expect_equal(rig.to.tool("delete", "hugo").code, 0, "delete")
    key = [b["key"] for b in rig.to.json("list", "--deleted")["backups"] if b["userid"] == "hugo"][0]
    made(rig, "horst")
    expect_equal(rig.to.tool("delete", "horst").code, 0, "delete")
    said = rig.to.tool("move", "-A", "--to", "two")
    expect_equal(said.code, 0, "status of move -A")
    expect("2 deleted backups stay where they are: move --to two -P %FORMER/ moves them\n" in said.out, "what it says of them", [str(said)])
    expect_equal(rig.to.json("move", "-A", "--to", "two")["deleted"], 2, "the same in JSON")
    move(rig, key, "two")
    expect_equal([f for f in files_of(rig, "hugo") if not f.startswith(TWO)], [], "what stays at its old place")
    expect_equal(rig.to.json("move", "-A", "--to", "two")["deleted"], 1, "how many stay then")
    expect_equal(rig.to.tool("move", "-P", "%FORMER/", "--to", "two").code, 0, "all of them")
    said = rig.to.tool("move", "-A", "--to", "two").out
    expect("stay where" not in said, "none stays any more", [said])
    expect_equal(rig.to.tool("delete", "--undo", "hugo").code, 0, "undo")
    expect_equal(place(rig, "hugo"), "two", "place")
    path = rig.to.data_file("hugo")
    for suffix in (".1795442465", ".damaged.1795442465123"):
        expect(os.path.exists(path + suffix), "what was beside it is beside it: %s" % suffix)
    rig.sync("-u", "hugo")
    rig.whole("hugo")
    agree(rig)


def left_by_kill(rig, user):
    """A move to the other partition that is killed when it removes the old log: that one's path."""
    old = rig.to.data_file(user)
    traced(rig, "move", "--to", "two", user, inject="unlink,unlinkat:signal=KILL:when=1", only=old)
    expect(os.path.exists(old) and place(rig, user) == "two", "the old log is left")
    return old


def put(path, content):
    with open(path, "wb") as file:
        file.write(content)
    sandbox.owned(path)


def noted(rig, path):
    """Whether a move of the log is on record."""
    argv = ["/usr/lib/cyrus/bin/cyr_dbtool", "-C", rig.to.conf, rig.to.tree + "/conf/backups.db.moved", "twoskip", "show"]
    shown = run_command(argv)
    expect_equal(shown.code, 0, "cyr_dbtool")
    return os.path.basename(path) in shown.out


@case("no move was interrupted: what lies where a deleted one lies is another's, and so is what is beside it")
def beside_deleted(rig):
    made(rig, "ada")
    path = rig.to.data_file("ada")
    aside = [path + ".1795442465", path + ".damaged.1795442465123"]
    for file in aside:
        put(file, b"kept aside")
    expect_equal(rig.to.tool("delete", "ada").code, 0, "delete")
    key, log = [(b["key"], b["path"]) for b in rig.to.json("list", "--deleted")["backups"] if b["userid"] == "ada"][0]
    shutil.copyfile(log, path)
    sandbox.owned(path)
    said = move(rig, key, "two")
    expect("removed" not in said, "nothing is said to be removed", [said])
    for file in [path] + aside:
        expect(os.path.exists(file), "it stays: %s" % file)
        os.unlink(file)
    agree(rig)


@case("what was never moved is not removed with a copy of the log, and is named")
def beside_copies(rig):
    made(rig, "cora")
    path = rig.to.data_file("cora")
    other = TWO + "/c/" + os.path.basename(path)
    sandbox.make_dir(os.path.dirname(other))
    put(path + ".damaged.1795442465123", b"kept aside")
    shutil.copyfile(path, other)
    sandbox.owned(other)
    for number in (1795442465123, 1795442465124):
        put("%s.damaged.%d" % (other, number), b"kept aside")
    said = move(rig, "cora", "default")
    expect("is there already" in said and not os.path.exists(other), "the copy goes", [said])
    for number in (1795442465123, 1795442465124):
        file = "%s.damaged.%d" % (other, number)
        expect(os.path.exists(file), "nothing says that it was moved: %s" % file)
        expect("stays filename=<%s>" % file in said, "it is named", [said])
        os.unlink(file)
    rig.whole("cora")
    # A move that was interrupted: what it had copied goes, and nothing else.
    old = left_by_kill(rig, "cora")
    ours, his, new = (old + ".damaged.1795442465%s" % n for n in ("123", "124", "125"))
    put(ours, b"kept aside")
    put(his, b"his own")
    put(new, b"his own")
    put(rig.to.data_file("cora") + ".damaged.1795442465125", b"another")
    said = move(rig, "cora", "two")
    expect(not os.path.exists(old) and not os.path.exists(ours), "what was moved goes", [said])
    for file in (his, new):
        expect(os.path.exists(file) and "stays filename=<%s>" % file in said, "what is his stays, and is named", [said])
        os.unlink(file)
    os.unlink(rig.to.data_file("cora") + ".damaged.1795442465125")
    os.unlink(rig.to.data_file("cora") + ".damaged.1795442465123")
    lone(rig, "cora")
    rig.whole("cora")


@case("a move that is killed while it copies what is beside the log can be begun again")
def killed_beside(rig):
    made(rig, "cilly")
    path = rig.to.data_file("cilly")
    put(path + ".damaged.1795442465123", b"kept aside" * 100)
    new = TWO + "/c/" + os.path.basename(path)
    traced(rig, "move", "--to", "two", "cilly", inject="rename,renameat,renameat2:signal=KILL:when=1", only=new + ".new")
    expect(os.path.exists(new + ".new") and noted(rig, path), "it is begun")
    os.truncate(new + ".damaged.1795442465123", 15)
    put(new + ".damaged.1795442465124", b"his own")
    said = move(rig, "cilly", "default")
    left = [f for f in files_of(rig, "cilly") if f.startswith(TWO)]
    expect_equal(left, [new + ".damaged.1795442465124"], "what stays")
    expect("stays filename=<%s>" % left[0] in said, "it is named", [said])
    expect(not noted(rig, path), "nothing is on record")
    os.unlink(left[0])
    move(rig, "cilly", "two")
    with open(new + ".damaged.1795442465123", "rb") as file:
        expect_equal(file.read(), b"kept aside" * 100, "what was set aside")
    rig.whole("cilly")


@case("once all is ended nothing is on record: what comes to the old place later is not removed")
def ended(rig):
    made(rig, "erna")
    old = left_by_kill(rig, "erna")
    expect(noted(rig, old), "it is on record")
    with open(old, "rb") as file:
        tape = file.read()
    expect_equal(rig.to.tool("compact", "-F", "erna").code, 0, "compact")
    said = move(rig, "erna", "two")
    expect("is there already" in said and not os.path.exists(old), "ended", [said])
    expect(not noted(rig, old), "nothing is on record")
    put(old, tape)
    said = move(rig, "erna", "two", code=1)
    expect("another file lies there: " + old in said, "which", [said])
    expect(os.path.exists(old), "it stays")
    os.unlink(old)
    # Another's file at the old place: what is on record ends, too.
    old = rig.to.data_file("erna")
    traced(rig, "move", "--to", "default", "erna", inject="unlink,unlinkat:signal=KILL:when=1", only=old)
    put(old, b"his own")
    said = move(rig, "erna", "default", code=1)
    expect("another file lies there: " + old in said and not noted(rig, old), "it is told, and the move is over", [said])
    os.unlink(old)
    lone(rig, "erna")
    rig.whole("erna")


@case("killed, then renamed: not before the move is ended, so that nothing is left under the old name")
def killed_and_renamed(rig):
    made(rig, "otto")
    old = left_by_kill(rig, "otto")
    new = rig.to.data_file("otto")
    with open(new, "rb") as file:
        before = file.read()
    done = rig.to.tool("rename", "otto", "ursel")
    expect_equal(done.code, 75, "status of rename")
    expect(old in done.err and "move --to PARTITION" in done.err, "what was left, and what ends it", [str(done)])
    with open(new, "rb") as file:
        expect(file.read() == before, "the log is as it was")
    names = [b["userid"] for b in rig.to.json("list")["backups"]]
    expect("otto" in names and "ursel" not in names, "nobody is renamed", names)
    move(rig, "otto", "two")
    expect_equal(rig.to.tool("rename", "otto", "ursel").code, 0, "rename")
    expect_equal([f for f in files_of(rig, "otto") if not f.startswith(new)], [], "what is left")
    move(rig, "ursel", "default")
    path = rig.to.data_file("ursel")
    expect("/u/" in path, "it goes to the folder of its owner", [path])
    expect_equal([f for f in files_of(rig, "otto") if not f.startswith(path)], [], "what is left")
    agree(rig)


@case("killed, then a message is erased: no move carries it back, and a strange file is no part of the backup")
def killed_and_erased(rig):
    rig.to.write_conf(backup_keep_previous="yes", backup_retention="1s", backup_compact_brake="0")
    try:
        made(rig, "petra")
        guid = rig.to.json("messages", "petra")["messages"][0]["guid"]
        with rig.cyrus.imap("petra") as imap:
            imap.select("INBOX")
            imap.expunge("1")
        rig.sync("-u", "petra")
        time.sleep(2.1)
        expect_equal(rig.to.tool("compact", "-F", "petra").code, 0, "compact")
        path = rig.to.data_file("petra")
        [old] = [f for f in files_of(rig, "petra") if f.startswith(path + ".1")]
        expect(guid in logfile.bodies(old) and guid not in logfile.bodies(path), "a previous log alone has it")
        new = TWO + "/p/" + os.path.basename(path)
        traced(rig, "move", "--to", "two", "petra", inject="rename,renameat,renameat2:signal=KILL:when=1", only=new + ".new")
        copy = new + old[len(path):]
        expect(os.path.exists(copy), "a copy of it is made")
        with open(copy, "rb") as file:
            held = file.read()
        done = rig.to.tool("erase", "petra", guid)
        expect(done.code == 0 and "may hold" not in done.out, "erase", [str(done)])
        lone(rig, "petra")
        # Somebody puts it there again.
        put(copy, held)
        said = move(rig, "petra", "two", code=1)
        expect("lies there: remove it" in said and copy in said, "it is named", [said])
        expect_equal(place(rig, "petra"), "default", "place")
        os.unlink(copy)
        move(rig, "petra", "two")
        lone(rig, "petra")
    finally:
        rig.to.write_conf(backup_keep_previous="no", backup_retention="7d", backup_compact_brake="50")


@case("undo killed before its last step, then moved: no trace of the deletion is left")
def killed_undo(rig):
    made(rig, "quirin")
    expect_equal(rig.to.tool("delete", "quirin").code, 0, "delete")
    key = [b["key"] for b in rig.to.json("list", "--deleted")["backups"] if b["userid"] == "quirin"][0]
    traced(rig, "delete", "--undo", "quirin", inject="rename,renameat,renameat2:signal=KILL:when=2")
    expect(key in rig.to.data_files(), "its entry as a deleted one is there still")
    move(rig, "quirin", "two")
    # Killed before the first name: the deleted one does not move away from under its owner.
    expect_equal(rig.to.tool("delete", "quirin").code, 0, "delete")
    key = [b["key"] for b in rig.to.json("list", "--deleted")["backups"] if b["userid"] == "quirin"][0]
    traced(rig, "delete", "--undo", "quirin", inject="rename,renameat,renameat2:signal=KILL:when=1")
    expect("being brought back" in move(rig, key, "default", code=75), "why")
    done = rig.to.tool("erase", "--whole", key)
    expect(done.code == 75 and "being brought back" in done.err, "nor is it erased alone", [str(done)])
    move(rig, "quirin", "default")
    expect(key not in rig.to.data_files(), "it is brought back first")
    lone(rig, "quirin")
    rig.whole("quirin")
    expect(key not in rig.to.data_files(), "and goes")
    lone(rig, "quirin")
    rig.whole("quirin")


@case("killed, and the old partition is not mounted: nothing is forgotten, and the erased does not come back")
def unmounted(rig):
    made(rig, "rolf")
    guid = rig.to.json("messages", "rolf")["messages"][0]["guid"]
    old = rig.to.data_file("rolf")
    traced(rig, "move", "--to", "two", "rolf", inject="unlink,unlinkat:signal=KILL:when=1", only=old)
    expect(os.path.exists(old) and place(rig, "rolf") == "two", "the old log is left")
    folder = os.path.dirname(old)
    os.rename(folder, rig.to.tree + "/away")
    try:
        done = rig.to.tool("erase", "--force", "rolf", guid)
        expect(done.code == 0 and "may hold them still: " + old in done.out, "where it may be is told", [str(done)])
        expect(noted(rig, old), "the move is on record still")
        done = rig.to.tool("rename", "rolf", "ralf")
        expect(done.code == 75 and old in done.err, "not renamed", [str(done)])
        for to in ("two", "default"):
            said = move(rig, "rolf", to, code=74)
            expect("mount its partition" in said and folder in said and old not in said, "nor moved to %s" % to, [said])
        expect(not os.path.exists(folder) and noted(rig, old), "and nothing is made")
    finally:
        os.rename(rig.to.tree + "/away", folder)
    move(rig, "rolf", "two")
    expect(not os.path.exists(old), "the old log is removed")
    lone(rig, "rolf")
    expect(guid not in logfile.bodies(rig.to.data_file("rolf")), "it is nowhere")
    expect(not noted(rig, old), "nothing is on record")


@case("killed, and the old partition is not mounted: erase --whole names what may lie there")
def unmounted_whole(rig):
    made(rig, "rosa")
    old = rig.to.data_file("rosa")
    traced(rig, "move", "--to", "two", "rosa", inject="unlink,unlinkat:signal=KILL:when=1", only=old)
    folder = os.path.dirname(old)
    os.rename(folder, rig.to.tree + "/away")
    try:
        done = rig.to.tool("erase", "--whole", "rosa")
        expect(done.code == 0 and "may hold them still: " + old in done.out, "it is told", [str(done)])
    finally:
        os.rename(rig.to.tree + "/away", folder)
    done = rig.to.tool("erase", "--whole", "rosa")
    expect_equal((done.code, files_of(rig, "rosa")), (0, []), "erased again")


@case("killed, then deleted and erased by its key: what was left goes, and does not come back")
def killed_and_erased_by_key(rig):
    made(rig, "tom")
    with rig.cyrus.imap("tom") as imap:
        imap.select("INBOX")
        imap.expunge("1:2")
    rig.sync("-u", "tom")
    old = left_by_kill(rig, "tom")
    expect_equal(rig.to.tool("delete", "tom").code, 0, "delete")
    key = [b["key"] for b in rig.to.json("list", "--deleted")["backups"] if b["userid"] == "tom"][0]
    log = rig.to.data_file(key)
    kept = rig.to.tree + "/kept-tom"
    shutil.copyfile(old, kept)
    done = rig.to.tool("erase", "--whole", key)
    expect(done.code == 0 and "may hold" not in done.out, "erase", [str(done)])
    expect_equal(files_of(rig, "tom"), [], "files left")
    # Nor does a copy that somebody puts back.
    shutil.copyfile(kept, old)
    sandbox.owned(old)
    rig.sync("-u", "tom", attempts=2)
    expect(rig.to.data_file("tom") not in (old, log), "a new log is begun")
    rig.whole("tom")
    os.unlink(old)


@case("erase --whole: what is on a partition that is not mounted stays and is told, all else goes")
def unmounted_others(rig):
    # The deleted one is out of reach, then the live one.
    for user, is_live in (("dorothea", False), ("dirk", True)):
        made(rig, user)
        if not is_live:
            move(rig, user, "two")
        expect_equal(rig.to.tool("delete", user).code, 0, "delete")
        rig.sync("-u", user)
        rig.whole(user)
        if is_live:
            move(rig, user, "two")
        away = [path for key, path in rig.to.data_files().items() if user in key and path.startswith(TWO)]
        here = [path for key, path in rig.to.data_files().items() if user in key and not path.startswith(TWO)]
        expect_equal((len(away), len(here)), (1, 1), "one in each partition (%s)" % user)
        os.rename(TWO + "/d", TWO + "/away")
        try:
            done = rig.to.tool("erase", "--whole", user)
            told = done.out + done.err
            expect(done.code == 1 and "1 backups" in told, "erase (%s)" % user, [told])
            expect("may hold them still: " + away[0] in told, "what is out of reach (%s)" % user, [told])
            expect(is_live or "is the partition mounted?" in told, "why (%s)" % user, [told])
            expect(not os.path.exists(here[0]), "what is within reach goes (%s)" % user)
            if not is_live:
                # As a mount point on which others have begun a backup since.
                sandbox.make_dir(TWO + "/d")
                key = [key for key, path in rig.to.data_files().items() if path == away[0]][0]
                said = rig.to.tool("delete", "--undo", user)
                expect(said.code == 1 and "its log is missing" in said.err, "undo says what is true", [str(said)])
                for words in (["erase", "--whole", user], ["erase", "--whole", key], ["delete", "--expired"]):
                    said = rig.to.tool(*words)
                    told = said.out + said.err
                    expect(said.code == (0 if words[0] == "delete" else 1), "status of %s" % words, [told])
                    expect(words[0] == "delete" or "its log is missing" in told, "why", [told])
                    expect(key in rig.to.data_files(), "its entry stays")
                os.rmdir(TWO + "/d")
            row = rig.to.tool("erase", "-j", "--whole", user)
            expect(row.code == 1 and json.loads(row.out)["backups"][0]["status"] == "failed", "in JSON (%s)" % user, [str(row)])
        finally:
            os.rename(TWO + "/away", TWO + "/d")
        done = rig.to.tool("erase", "--whole", user)
        expect_equal((done.code, files_of(rig, user)), (0, []), "erased again (%s)" % user)


@case("killed, and nothing is left: renamed as ever, and nothing is on record")
def gone_and_renamed(rig):
    made(rig, "olaf")
    old = left_by_kill(rig, "olaf")
    os.unlink(old)
    expect(noted(rig, old), "it is on record")
    expect_equal(rig.to.tool("rename", "olaf", "ulla").code, 0, "rename")
    expect(not noted(rig, old), "nothing is on record")
    expect_equal(rig.to.tool("rename", "ulla", "olaf").code, 0, "and back")
    # A copy that was begun counts as left.
    path = rig.to.data_file("olaf")
    beside = old + ".new"
    traced(rig, "move", "--to", "default", "olaf", inject="rename,renameat,renameat2:signal=KILL:when=1", only=beside)
    expect(os.path.exists(beside), "it is begun")
    done = rig.to.tool("rename", "olaf", "ulla")
    expect(done.code == 75 and beside in done.err, "rename", [str(done)])
    move(rig, "olaf", "two")
    expect_equal(rig.to.tool("rename", "olaf", "ulla").code, 0, "rename")
    expect_equal([f for f in files_of(rig, "olaf") if not f.startswith(path)], [], "what is left")


@case("whatever its owner is called now: the folders of both ends of the move are looked at")
def both_ends(rig):
    made(rig, "olga")
    old = left_by_kill(rig, "olga")
    new = rig.to.data_file("olga")
    tool = ["/usr/lib/cyrus/bin/cyr_dbtool", "-C", rig.to.conf, rig.to.tree + "/conf/backups.db", "twoskip"]
    for words in (["set", "uta", new], ["delete", "olga"]):
        expect_equal(run_command(tool + words).code, 0, "cyr_dbtool")
    move(rig, "uta", "two")
    path = rig.to.data_file("uta")
    expect_equal([f for f in files_of(rig, "olga") if not f.startswith(path)], [], "what is left")
    expect(not noted(rig, old), "nothing is on record")


run(setup, Rig.close)
