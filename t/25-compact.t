#!/usr/bin/env python3
"""compact with real programs: retention, a rolling user's hot day, replication meanwhile,
under EVENTS of the real master, old tools on the result, a full disk, rsync.

COMPACT_HOT=5000 for the long form of the hot day (t/run: 150 syncs)."""

import os
import shutil
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *
from cyrusrig import sandbox
from cyrusrig.receiver import binary

HOT = int(os.environ.get("COMPACT_HOT", "150"))


def setup():
    if RECEIVER != "ours":
        raise Skip("only ours has this compact")
    # Everything that was deleted two seconds ago has expired.
    return start_rig({"backup_retention": "2s", "backup_compact_brake": "0", "backup_chunk_max": "512K"})


def compact(rig, *args):
    done = rig.to.tool("compact", *args)
    expect(done.code == 0, "compact " + " ".join(args), str(done).splitlines())
    return done.out


def noise(n, user, size=3000):
    """A message that hardly shrinks."""
    digits = ""
    while len(digits) < size:
        digits += "%016x\r\n" % (hash((n, user, len(digits))) & 0xFFFFFFFFFFFFFFFF)
    return message(n, 0, to=user) + digits.encode()


@case("what was deleted longer ago than its retention goes, all else stays")
def retention(rig):
    rig.cyrus.user("anna")
    with rig.cyrus.imap("anna") as imap:
        imap.fill("INBOX", [noise(n, "anna") for n in range(40)])
        imap.create("INBOX/Old")
        imap.fill("INBOX/Old", [noise("old%d" % n, "anna") for n in range(20)])
        imap.subscribe("INBOX/Old")
    rig.cyrus.sieve_upload("anna", {"one": "keep;\r\n"}, active="one")
    rig.sync("-u", "anna")
    with rig.cyrus.imap("anna") as imap:
        imap.select("INBOX")
        imap.expunge("1:20")
        imap.store("21:25", "+FLAGS", "\\Flagged $Label")
        imap.delete("INBOX/Old")
        imap.unsubscribe("INBOX/Old")
    rig.cyrus.sieve_upload("anna", {"one": "discard;\r\n"}, active="one")
    rig.cyrus.expire("-E", "0", "-X", "0", "-D", "0")
    rig.sync("-u", "anna", attempts=2)
    before = os.path.getsize(rig.to.data_file("anna"))
    fresh = rig.to.json("messages", "anna", "--deleted")["messages"]
    expect_equal(len(fresh), 60, "messages that are not forgotten yet")
    time.sleep(3)
    told = rig.to.tool("compact", "anna", "--dry-run").out
    expect("would free" in told, "a dry run says what would go", [told])
    expect_equal(os.path.getsize(rig.to.data_file("anna")), before, "size after a dry run")
    compact(rig, "anna")
    after = os.path.getsize(rig.to.data_file("anna"))
    expect(after < before * 0.5, "the log shrinks", ["%d to %d" % (before, after)])
    left = rig.to.json("messages", "anna", "--deleted")["messages"]
    expect_equal(len(left), 20, "messages that are left")
    rig.whole("anna")
    expect("nothing to do" in compact(rig, "anna"), "a second run finds nothing to do")
    with rig.cyrus.imap("anna") as imap:
        imap.append("INBOX", message("after"))
    rig.sync("-u", "anna")
    rig.whole("anna")


@case("Debian's ctl_backups reads what compact wrote")
def old_tools(rig):
    if not os.path.exists(sandbox.BIN + "/ctl_backups"):
        raise Skip("there is no ctl_backups")
    rig.cyrus.user("olga")
    with rig.cyrus.imap("olga") as imap:
        imap.fill("INBOX", [noise(n, "olga") for n in range(10)])
        imap.create("INBOX/A")
        imap.create("INBOX/B")
        imap.fill("INBOX/A", [noise("a%d" % n, "olga") for n in range(5)])
    rig.sync("-u", "olga")
    with rig.cyrus.imap("olga") as imap:
        imap.select("INBOX")
        imap.expunge("2:4")
        imap.rename("INBOX/A", "INBOX/C")
        imap.delete("INBOX/B")
    rig.sync("-u", "olga", attempts=2)
    time.sleep(3)
    with rig.cyrus.imap("olga") as imap:
        imap.append("INBOX", noise("young", "olga"))
    rig.sync("-u", "olga")
    compact(rig, "--force", "olga")
    rig.whole("olga")
    copy = sandbox.temp_dir() + "/copy"
    shutil.copy(rig.to.data_file("olga"), copy)
    sandbox.owned(copy)
    old = [sandbox.BIN + "/ctl_backups", "-C", rig.to.conf, "-v"]
    for command in ("reindex", "verify"):
        done = run_command(old + [command, "-f", copy])
        expect(done.code == 0 and "ok" in done.out, command, str(done).splitlines())
    tool = [sandbox.BIN + "/cyr_backup", "-C", rig.to.conf, "-f", copy]
    names = run_command(tool + ["list", "mailboxes"]).out
    expect("user.olga.C" in names, "the renamed folder is there", [names])
    done = run_command(["sh", "-c", 'zcat < "$1" > /dev/null', "sh", copy])
    expect(done.code == 0 and not done.err.strip(), "zcat is silent", [str(done)])


@case("a rolling user's day: %d syncs of one message become few chunks" % HOT)
def hot_day(rig):
    rig.cyrus.user("hot", "cold")
    with rig.cyrus.imap("cold") as imap:
        imap.fill("INBOX", [noise(n, "hot") for n in range(HOT)])
    rig.sync("-u", "cold")
    wire_messages = [noise(n, "hot") for n in range(HOT)]
    with rig.cyrus.imap("hot") as imap:
        for text in wire_messages:
            imap.append("INBOX", text)
            rig.sync("-u", "hot")
    many = len(rig.to.json("chunks", "hot")["chunks"])
    expect(many >= HOT, "each sync made a chunk", [str(many)])
    compact(rig, "hot")
    compact(rig, "--force", "cold")
    few = len(rig.to.json("chunks", "hot")["chunks"])
    hot = os.path.getsize(rig.to.data_file("hot"))
    cold = os.path.getsize(rig.to.data_file("cold"))
    diag("hot day of %d: %d chunks to %d, %d bytes; at once %d bytes: %.3f" % (HOT, many, few, hot, cold, hot / cold))
    expect(few <= 40, "few chunks are left", [str(few)])
    expect(hot <= cold * 1.05, "as small as a backup made at once", ["%d, %d" % (hot, cold)])
    rig.whole("hot")


@case("others are served while compact works, and the user is, soon after")
def meanwhile(rig):
    users = ["m%d" % n for n in range(6)]
    rig.cyrus.user(*users)
    for user in users:
        with rig.cyrus.imap(user) as imap:
            imap.fill("INBOX", [noise(n, user, 8000) for n in range(30)])
    rig.sync("-A")
    over = threading.Event()
    failed = []

    def work():
        while not over.is_set():
            done = rig.to.tool("compact", "-A", "--force")
            if done.code != 0:
                failed.append(str(done))
                return

    thread = threading.Thread(target=work)
    thread.start()
    slowest = 0
    try:
        for round_ in range(12):
            user = users[round_ % len(users)]
            with rig.cyrus.imap(user) as imap:
                imap.append("INBOX", message("round %d" % round_))
            began = time.monotonic()
            rig.sync("-u", user, timeout=30)
            slowest = max(slowest, time.monotonic() - began)
    finally:
        over.set()
        thread.join()
    expect_none(failed, "compact meanwhile")
    diag("slowest sync beside compact: %.2f s" % slowest)
    expect(slowest < 15, "no sync waits long", ["%.1f s" % slowest])
    rig.whole(*users)


@case("master runs it from EVENTS, and it says so in the log")
def events(rig):
    path = rig.to.dir + "/events.conf"
    program = rig.to.dir + "/compact_program"
    shutil.copy(binary(), program)
    os.chmod(program, 0o755)
    sandbox.write(
        path,
        "START {\n}\nSERVICES {\n}\nEVENTS {\n  compact cmd=\"%s compact -A -C %s\" period=1\n}\n"
        % (program, rig.to.conf),
    )
    before = rig.to.recent_log(1000).count("compacted backups=")
    master = sandbox.Process(
        sandbox.as_cyrus(
            [sandbox.BIN + "/master", "-C", rig.to.conf, "-M", path, "-p", rig.to.dir + "/m.pid", "-D"]
        ),
        rig.to.dir + "/log/events",
    )
    try:
        # The first run is due when master starts.
        wait_for(
            lambda: rig.to.recent_log(1000).count("compacted backups=") > before, 75, "a run by master"
        )
    finally:
        master.stop(20)


@case("a full disk leaves the old pair, and nothing beside it")
def full_disk(rig):
    if os.geteuid() != 0:
        raise Skip("mounting a small disk needs root")
    rig.cyrus.user("full")
    with rig.cyrus.imap("full") as imap:
        imap.fill("INBOX", [noise(n, "full", 40000) for n in range(60)])
    rig.sync("-u", "full")
    disk = sandbox.temp_dir("cyrusrig-disk-")
    path = rig.to.data_file("full")
    size = os.path.getsize(path)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=%d" % (size * 3 // 2), "tmpfs", disk])
    if done.returncode != 0:
        raise Skip("no tmpfs can be mounted")
    try:
        rig.to.stop()
        for suffix in ("", ".index"):
            shutil.copy(path + suffix, disk + "/full_abcdef" + suffix)
        rig.to.start()
        subprocess.run(["chown", "-R", "cyrus:mail", disk], check=True)
        copy = disk + "/full_abcdef"
        bytes_ = open(copy, "rb").read()
        done = rig.to.tool("compact", "--force", "-f", copy)
        expect_equal(done.code, 74, "status on a full disk")
        expect("No space" in done.err or "no space" in done.err.lower(), "it says why", [done.err])
        expect(open(copy, "rb").read() == bytes_, "the log is as it was")
        left = sorted(os.listdir(disk))
        expect_equal([n for n in left if ".new" in n], [], "files left behind")
        done = rig.to.tool("verify", "-f", copy)
        expect_equal(done.code, 0, "verify afterwards")
        subprocess.run(["mount", "-o", "remount,size=%d" % (size * 4), disk], check=True)
        done = rig.to.tool("compact", "--force", "-f", copy)
        expect_equal(done.code, 0, "status with room")
    finally:
        subprocess.run(["umount", "-l", disk])


@case("a call that fails, at any place, leaves an old pair or a new one")
def failing(rig):
    if not shutil.which("strace"):
        raise Skip("there is no strace")
    rig.cyrus.user("fail")
    with rig.cyrus.imap("fail") as imap:
        imap.fill("INBOX", [noise(n, "fail") for n in range(12)])
        imap.create("INBOX/A")
    rig.sync("-u", "fail")
    with rig.cyrus.imap("fail") as imap:
        imap.select("INBOX")
        imap.expunge("1:3")
    rig.sync("-u", "fail")
    time.sleep(3)
    rig.to.stop()
    origin = rig.to.data_file("fail")
    folder = sandbox.temp_dir("cyrusrig-fail-")
    copy = folder + "/fail_abcdef"

    def lay():
        shutil.rmtree(folder)
        os.mkdir(folder, 0o700)
        for suffix in ("", ".index"):
            shutil.copy(origin + suffix, copy + suffix)
        subprocess.run(["chown", "-R", "cyrus:mail", folder], check=True)

    def listed():
        done = rig.to.tool("messages", "-f", copy, "-j")
        expect_equal(done.code, 0, "messages can be listed")
        return sorted(line for line in done.out.split('"guid":')[1:])

    lay()
    whole = listed()
    ended = {"failed": 0, "done": 0}
    calls = {"fsync": 6, "fdatasync": 4, "rename": 4, "unlink": 8, "pwrite64": 24, "openat": 60, "ftruncate": 4}
    for call, most in calls.items():
        for n in sorted({1, 2, 3, 4, most // 3, most // 2, most}):
            for how in ("error=EIO", "signal=KILL"):
                lay()
                inject = "inject=%s:%s:when=%d" % (call, how, n)
                done = run_command(
                    ["strace", "-f", "-o", "/dev/null", "-e", "trace=" + call, "-e", inject]
                    + [rig.to.path, "-C", rig.to.conf, "compact", "--force", "-f", copy],
                    60,
                )
                ended["done" if done.code == 0 else "failed"] += 1
                where = "%s %d %s" % (call, n, how)
                proof = rig.to.tool("verify", "-f", copy)
                if proof.code != 0:
                    # An index that a kill left behind is mended by whoever opens the backup to read.
                    listed()
                    proof = rig.to.tool("verify", "-f", copy)
                expect(proof.code == 0, "verify after " + where, str(proof).splitlines())
                expect(listed() == whole, "messages after " + where)
                done = rig.to.tool("compact", "--force", "-f", copy)
                expect(done.code == 0, "the next run after " + where, str(done).splitlines())
                expect(listed() == whole, "messages after the next run, " + where)
                left = [name for name in os.listdir(folder) if ".new" in name]
                expect_equal(left, [], "files left after " + where)
    diag("%(failed)d runs failed or were killed, %(done)d ended well" % ended)
    expect(ended["failed"] > 30, "most of them failed")
    rig.to.start()


@case("a second copy by rsync gets little after a night with little waste")
def rsync(rig):
    if not shutil.which("rsync"):
        raise Skip("there is no rsync")
    rig.cyrus.user("rita")
    with rig.cyrus.imap("rita") as imap:
        imap.fill("INBOX", [noise(n, "rita", 20000) for n in range(400)])
    rig.sync("-u", "rita")
    # Nothing in it shrinks: by itself it would be done when something has expired.
    compact(rig, "--force", "rita")
    copy = sandbox.temp_dir() + "/copy"
    shutil.copy(rig.to.data_file("rita"), copy)
    with rig.cyrus.imap("rita") as imap:
        imap.select("INBOX")
        imap.expunge("1:20")
        imap.fill("INBOX", [noise("new%d" % n, "rita", 20000) for n in range(5)])
    rig.sync("-u", "rita", attempts=2)
    time.sleep(3)
    out = rig.to.json("compact", "rita")["backups"][0]
    expect_equal(out["status"], "done", "compact")
    path = rig.to.data_file("rita")
    done = run_command(["rsync", "--no-whole-file", "--inplace", "--stats", path, copy], cyrus=False)
    sent = [l for l in done.out.splitlines() if l.startswith("Literal data")][0]
    literal = int(sent.split(":")[1].split()[0].replace(",", ""))
    diag("of %d bytes rsync sent %d, %d deflated anew" % (os.path.getsize(path), literal, out["rewritten_bytes"]))
    expect(literal < os.path.getsize(path) * 0.10, "little is sent", [sent])
    rig.whole("rita")


run(setup, Rig.close)
