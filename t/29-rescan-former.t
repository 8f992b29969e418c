#!/usr/bin/env python3
"""What rescan --fix must not enter: what an interrupted move has left of a backup that was
deleted, brought back or erased since, and what is not to be seen while a partition is away."""

import contextlib
import os
import shutil
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *
from cyrusrig import sandbox

TWO = temp_dir("cyrusrig-two-")


def setup():
    if RECEIVER != "ours":
        raise Skip("not for receiver %s" % RECEIVER)
    more = {"backuppartition-two": TWO, "partition_select_exclude": "two", "backup_delete_grace": "30d"}
    return start_rig(more)


def made(rig, user, count=3):
    rig.cyrus.user(user)
    with rig.cyrus.imap(user) as imap:
        imap.fill("INBOX", [message("%s%d" % (user, n), to=user) for n in range(count)])
    rig.sync("-u", user)
    return rig.to.data_file(user)


def more(rig, user):
    with rig.cyrus.imap(user) as imap:
        imap.append("INBOX", message("later", to=user))
    rig.sync("-u", user)


def asked(rig, *words, code=0):
    done = rig.to.tool(*words)
    expect(done.code == code, "status of %s is %s" % (" ".join(words), code), [str(done)])
    return done.out + done.err


def deleted(rig, user):
    return [b for b in rig.to.json("list", "--deleted")["backups"] if b["userid"] == user]


def content(path):
    with open(path, "rb") as file:
        return file.read()


@contextlib.contextmanager
def away(rig, folder):
    """The folder is not there meanwhile, nor anywhere in a partition."""
    kept = rig.to.tree + "/away"
    os.rename(folder, kept)
    try:
        yield
    finally:
        if os.path.isdir(folder):
            os.rmdir(folder)
        os.rename(kept, folder)


def put(path, data):
    with open(path, "wb") as file:
        file.write(data)
    sandbox.owned(path)


def killed_move(rig, key, path):
    """A move to the other partition that is killed when it removes the old log, at `path`."""
    strace = shutil.which("strace")
    if not strace:
        raise Skip("strace is not installed")
    calls = "unlink,unlinkat"
    argv = [strace, "-f", "-qq", "-o", "/dev/null", "-P", path, "-e", "trace=" + calls]
    argv += ["-e", "inject=%s:signal=KILL:when=1" % calls]
    run_command(argv + [rig.to.path, "-C", rig.to.conf, "move", "--to", "two", key])
    expect(os.path.exists(path), "the old log is left: %s" % path)
    new = rig.to.data_file(key)
    expect(new.startswith(TWO), "backups.db names the new one", [new])
    return new


def line_of(said, path):
    """What rescan says of a log."""
    found = [line for line in said.splitlines() if ": %s (" % path in line]
    expect_equal(len(found), 1, "lines about %s in %s" % (path, said))
    return found[0]


@case("a killed move, then deleted: what was left is not entered, and undo brings the whole backup back")
def killed_and_deleted(rig):
    old = made(rig, "yara")
    killed_move(rig, "yara", old)
    more(rig, "yara")
    asked(rig, "delete", "yara")
    before = rig.to.data_files()
    for words in (["rescan"], ["rescan", "--fix"]):
        said = line_of(asked(rig, *words, code=1), old)
        expect("yara: a log without an entry" in said, "what it is", [said])
        expect("left by an interrupted move of %s: delete --undo" % deleted(rig, "yara")[0]["key"] in said, "why", [said])
        expect_equal(rig.to.data_files(), before, "entries")
    found = [f for f in rig.to.tool("rescan", "-j").out.split("{") if old in f]
    expect(len(found) == 1 and '"fixable":false' in found[0].replace(" ", ""), "in JSON", found)
    asked(rig, "delete", "--undo", "yara")
    expect_equal(len(rig.to.json("messages", "yara")["messages"]), 4, "messages")
    rig.whole("yara")
    asked(rig, "move", "--to", "two", "yara")
    expect(not os.path.exists(old), "the next move removes what was left")
    expect("0 findings" in asked(rig, "rescan"), "all agree")


@case("the same with nothing later in the backup, and where the new partition is away")
def killed_and_deleted_away(rig):
    old = made(rig, "yves")
    new = killed_move(rig, "yves", old)
    asked(rig, "delete", "yves")
    key = deleted(rig, "yves")[0]["key"]
    with away(rig, os.path.dirname(new)):
        said = asked(rig, "rescan", "--fix", code=1)
        expect("left by an interrupted move" in line_of(said, old), "what was left", [said])
        expect("nor is its folder there: mount" in said, "the deleted one", [said])
    expect(key in rig.to.data_files() and "yves" not in rig.to.data_files(), "entries")
    asked(rig, "move", "--to", "default", key)
    expect(not os.path.exists(old), "the next move of the deleted one removes it")
    asked(rig, "delete", "--undo", "yves")
    rig.whole("yves")
    expect("0 findings" in asked(rig, "rescan"), "all agree")


@case("a new backup was begun since: what was left is no candidate for it")
def killed_deleted_begun(rig):
    old = made(rig, "yoko")
    killed_move(rig, "yoko", old)
    asked(rig, "delete", "yoko")
    rig.sync("-u", "yoko")
    path = rig.to.data_file("yoko")
    os.truncate(path, 0)
    rig.to.drop_index("yoko")
    asked(rig, "rescan", "--fix", code=1)
    expect_equal(rig.to.data_file("yoko"), path, "the entry of an empty one")
    asked(rig, "erase", "--whole", "yoko")
    expect(not os.path.exists(old), "erased with the rest")


@case("a killed move, then erased while the old partition is away: not entered when it is back")
def killed_and_erased(rig):
    for user, is_deleted in (("zoe", False), ("zita", True)):
        key, old = user, made(rig, user)
        if is_deleted:
            asked(rig, "delete", user)
            key, old = deleted(rig, user)[0]["key"], deleted(rig, user)[0]["path"]
        killed_move(rig, key, old)
        kept = content(old)
        with away(rig, os.path.dirname(old)):
            said = asked(rig, "erase", "--whole", user)
            expect("may hold them still: " + old in said, "it is told", [said])
        said = line_of(asked(rig, "rescan", "--fix", code=1), old)
        expect("erased since: erase --whole removes it" in said, "why not", [said])
        expect_none([k for k in rig.to.data_files() if user in k], "entries of %s" % user)
        asked(rig, "erase", "--whole", user)
        expect("0 findings" in asked(rig, "rescan"), "all agree")
        if is_deleted:
            continue
        # Under another name it is what somebody puts back, and is entered.
        path = old[:-6] + "BACK01"
        put(path, kept)
        said = asked(rig, "rescan", "--fix")
        expect_equal(rig.to.data_file(user), path, "it is entered")
        rig.whole(user)


@case("no move was interrupted: what somebody puts back is entered, of a deleted and of an erased user")
def put_back(rig):
    path = made(rig, "willi")
    kept = content(path)
    asked(rig, "move", "--to", "two", "willi")
    asked(rig, "delete", "willi")
    put(path, kept)
    asked(rig, "rescan", "--fix")
    expect_equal(rig.to.data_file("willi"), path, "beside the deleted one it is entered")
    asked(rig, "erase", "--whole", "willi")
    expect_none([k for k in rig.to.data_files() if "willi" in k], "entries")
    put(path, kept)
    asked(rig, "rescan", "--fix")
    expect_equal(rig.to.data_file("willi"), path, "the erased one is entered")
    rig.whole("willi")


@case("without any record: an older state of a deleted backup is not entered")
def older(rig):
    path = made(rig, "wanda")
    kept = content(path)
    time.sleep(1.1)
    more(rig, "wanda")
    asked(rig, "delete", "wanda")
    there = deleted(rig, "wanda")[0]
    put(path[:-6] + "OLDER1", kept)
    said = line_of(asked(rig, "rescan", "--fix", code=1), path[:-6] + "OLDER1")
    expect("older than the deleted backup %s" % there["path"] in said, "why", [said])
    expect("wanda" not in rig.to.data_files(), "not live")
    asked(rig, "delete", "--undo", "wanda")
    rig.whole("wanda")
    os.unlink(path[:-6] + "OLDER1")
    expect("0 findings" in asked(rig, "rescan"), "all agree")


@case("backups.db is lost: what was left is entered, if nothing else is there")
def lost(rig):
    old = made(rig, "walter")
    new = killed_move(rig, "walter", old)
    os.unlink(new)
    rig.to.stop()
    os.unlink(rig.to.tree + "/conf/backups.db")
    rig.to.tool("rescan", "--fix")
    rig.to.start()
    expect_equal(rig.to.data_file("walter"), old, "its log")
    rig.whole("walter")


@case("backups.db is lost: what was left of a deleted one is entered beside it")
def lost_deleted(rig):
    old = made(rig, "wilma")
    killed_move(rig, "wilma", old)
    more(rig, "wilma")
    asked(rig, "delete", "wilma")
    one = deleted(rig, "wilma")[0]
    rig.to.stop()
    os.unlink(rig.to.tree + "/conf/backups.db")
    rig.to.tool("rescan", "--fix")
    rig.to.start()
    expect_equal([b["path"] for b in deleted(rig, "wilma")], [one["path"]], "the deleted one")
    expect_equal(rig.to.data_file("wilma"), old, "and what was left")
    asked(rig, "delete", "wilma")
    asked(rig, "delete", "--undo", deleted(rig, "wilma")[0]["key"])
    asked(rig, "erase", "--whole", "wilma")


@case("a partition is not mounted: no entry changes, though older logs lie elsewhere")
def unmounted(rig):
    old = made(rig, "toni")
    new = killed_move(rig, "toni", old)
    more(rig, "toni")
    for is_empty in (True, False):
        with away(rig, TWO):
            if is_empty:
                sandbox.make_dir(TWO)
            said = line_of(asked(rig, "rescan", "--fix", code=1), new)
            expect("toni: an entry without a file" in said and ": not fixed" in said, "what it is", [said])
            expect("%s is a log of that owner" % old in said, "the other log is told", [said])
            expect("mount its partition" in said and "make the folder" in said, "and what to do", [said])
            expect_equal(rig.to.data_file("toni"), new, "its entry")
            done = rig.cyrus.sync(rig.to, "-u", "toni")
            expect(done.code != 0, "a sync does not go on in the older one")
    rig.whole("toni")
    rig.sync("-u", "toni")
    rig.whole("toni")
    # Gone for good: the folder is made, and the other log is entered.
    shutil.rmtree(os.path.dirname(new))
    sandbox.make_dir(os.path.dirname(new))
    said = line_of(asked(rig, "rescan", code=1), new)
    expect("its folder is there" in said and ": --fix sets the entry to %s" % old in said, "what would be done", [said])
    said = line_of(asked(rig, "rescan", "--fix"), new)
    expect(": entry set to %s" % old in said, "what is done", [said])
    expect_equal(rig.to.data_file("toni"), old, "its entry")
    rig.sync("-u", "toni", attempts=2)
    rig.whole("toni")


@case("an entry without a file and without any other log: what is said is what is done")
def missing(rig):
    path = made(rig, "theo")
    os.rename(path, rig.to.tree + "/theo")
    said = line_of(asked(rig, "rescan", code=1), path)
    expect("its folder is there" in said and said.endswith(": --fix removes the entry"), "what would be done", [said])
    os.rename(rig.to.tree + "/theo", path)
    with away(rig, os.path.dirname(path)):
        said = line_of(asked(rig, "rescan", "--fix", code=1), path)
        expect("make the folder, and rescan --fix removes the entry): not fixed" in said, "what to do", [said])
    expect("0 findings" in asked(rig, "rescan"), "all agree")
    rig.whole("theo")


@case("several deleted logs of one generation without entries: one run enters them all")
def of_one_generation(rig):
    made(rig, "uwe")
    asked(rig, "delete", "uwe")
    one = deleted(rig, "uwe")[0]
    for n in (1, 2):
        put("%s%d" % (one["path"][:-1], (int(one["path"][-1]) + n) % 10), content(one["path"]))
    tool = ["/usr/lib/cyrus/bin/cyr_dbtool", "-C", rig.to.conf, rig.to.tree + "/conf/backups.db", "twoskip"]
    expect_equal(run_command(tool + ["delete", one["key"]]).code, 0, "cyr_dbtool")
    said = asked(rig, "rescan", "--fix")
    expect(", 0 left" in said and "not fixed" not in said, "all is fixed", [said])
    expect_equal(len({b["key"] for b in deleted(rig, "uwe")}), 3, "deleted ones")
    expect("0 findings" in asked(rig, "rescan"), "all agree")
    asked(rig, "erase", "--whole", "uwe")


@case("a killed move of a deleted backup: what was left is not entered as a second one, before and after undo")
def of_a_deleted(rig):
    made(rig, "vroni")
    asked(rig, "delete", "vroni")
    one = deleted(rig, "vroni")[0]
    killed_move(rig, one["key"], one["path"])
    said = line_of(asked(rig, "rescan", "--fix", code=1), one["path"])
    expect("left by an interrupted move of %s" % one["key"] in said, "why", [said])
    expect_equal([b["key"] for b in deleted(rig, "vroni")], [one["key"]], "deleted ones")
    asked(rig, "delete", "--undo", "vroni")
    more(rig, "vroni")
    said = line_of(asked(rig, "rescan", "--fix", code=1), one["path"])
    expect("left by an interrupted move of vroni: the next move" in said, "why", [said])
    expect_equal(deleted(rig, "vroni"), [], "deleted ones")
    rig.whole("vroni")
    asked(rig, "move", "--to", "two", "vroni")
    expect(not os.path.exists(one["path"]), "the next move removes it")
    expect("0 findings" in asked(rig, "rescan"), "all agree")


run(setup, Rig.close)
