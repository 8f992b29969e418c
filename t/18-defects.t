#!/usr/bin/env python3
"""The known defects of the old backupd that no other file is about, by their names.

Ours passes each; backupd fails it, which is marked. The rest of the list is where it
belongs: B1 in 10-modes.t and 14-many-users.t, B2 in 15-oldtools.t, B3, B4 and B9 in
11-content.t, B7 in 13-harmless.t, B10 and B12 to B14 beside the code (t/rs)."""

import fcntl
import hashlib
import os
import re
import shutil
import socket
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *
from cyrusrig import sandbox

BACKUPS = ("ours", "backupd")
OURS = ("ours",)


def setup():
    if RECEIVER not in BACKUPS:
        raise Skip("receiver %s keeps no log" % RECEIVER)
    rig = start_rig()
    fill(rig, "anna")
    rig.sync("-u", "anna")
    return rig


def fill(rig, user, count=6):
    rig.cyrus.user(user)
    with rig.cyrus.imap(user) as imap:
        imap.fill("INBOX", [message(n, 400, to=user) for n in range(count)])


def guids(held):
    """Of all messages that the server holds."""
    return {r["guid"] for b in held["mailboxes"].values() for r in b["records"].values()}


def old_tool(rig, *args):
    return run_command([sandbox.BIN + "/ctl_backups", "-C", rig.to.conf] + list(args))


def sealed_copy(rig, user):
    rig.to.stop()
    try:
        target = sandbox.temp_dir() + "/" + os.path.basename(rig.to.data_file(user))
        shutil.copy(rig.to.data_file(user), target)
        return sandbox.owned(target)
    finally:
        rig.to.start()


@case("B6: intermediate mailboxes: any tool can still work with the log", only=BACKUPS,
      todo={"backupd": "B6: logs them, and refuses them"})
def intermediate(rig):
    fill(rig, "inter")
    with rig.cyrus.imap("inter") as imap:
        imap.create("INBOX/deep")
        imap.append("INBOX/deep", message("deep"))
    rig.sync("-u", "inter")
    refused = None
    try:
        place(rig.to, "user.inter.deep.er", "user.inter.hollow")
    except Refused as why:
        refused = why
    with rig.cyrus.imap("inter") as imap:
        imap.append("INBOX/deep", message("deeper"))
    rig.sync("-u", "inter")
    path = sealed_copy(rig, "inter")
    for words in (("reindex",), ("verify",), ("-F", "compact"), ("verify",)):
        done = old_tool(rig, "-v", *words, "-f", path)
        expect(done.code == 0 and "ok" in done.out, "Debian's ctl_backups " + words[-1], str(done).splitlines())
    expect(refused is None, "they are accepted", [str(refused)])
    held, listed = rig.cyrus.dump(["inter"])["mailboxes"], rig.to.listing(["inter"])
    expect_none(compare.mailboxes(held, listed, exact=False), "server against listing")


def place(to, *names):
    """Intermediate mailboxes, in the only form in which they travel. 3.6 makes none
    itself, newer versions do."""
    wire = to.csync()
    try:
        for number, name in enumerate(names):
            head = {"UNIQUEID": hashlib.sha1(name.encode()).hexdigest()[:24], "MBOXNAME": name, "MBOXTYPE": "ei"}
            head.update({"HIGHESTMODSEQ": 5 + number, "CREATEDMODSEQ": 5, "FOLDERMODSEQ": 5})
            wire.command("APPLY MAILBOX", head)
    finally:
        wire.close()


@case("B8: a mailbox does not become another user's inside the old user's log", only=BACKUPS,
      todo={"backupd": "B8: the rename goes into the old user's backup"})
def foreign_rename(rig):
    fill(rig, "maiden")
    rig.sync("-u", "maiden")
    names = {"OLDMBOXNAME": "user.maiden", "NEWMBOXNAME": "user.married", "PARTITION": "default", "UIDVALIDITY": 0}
    wire = rig.to.csync()
    try:
        wire.command("GET USER", "maiden")
        wire.command("APPLY RENAME", names)
    except Refused:
        pass
    finally:
        wire.close()
    strange = [repr(v) for _t, name, v in logfile.lines(rig.to.data_file("maiden")) if b"married" in dlist.encode(v)]
    expect_none([line for line in strange], "lines about another user's mailboxes in the log")
    rig.sync("-u", "maiden")
    rig.whole("maiden")


@case("a renamed user's own remarks are under the new name, as on the server", only=("ours",))
def own_remarks(rig):
    fill(rig, "maid")
    with rig.cyrus.imap("maid") as imap:
        imap.create("INBOX/Sub")
        imap.fill("INBOX/Sub", [message("sub%d" % n, to="maid") for n in range(3)])
        imap.setmetadata("INBOX/Sub", "/private/comment", "mine")
        for folder in ("INBOX", "INBOX/Sub"):
            imap.select(folder)
            imap.annotate("1:2", "/comment", "value.priv", "mine as well")
    rig.sync("-u", "maid")
    client = rig.cyrus.rolling(rig.to)
    try:
        with rig.cyrus.imap("admin") as imap:
            imap.rename("user/maid", "user/wife")
        client.drain()
    finally:
        client.stop()
    # The server has changed them without a new modseq, so it never states them.
    rig.whole("wife")
    # The log says that the sum which the server states is not that of the records.
    done = rig.to.tool("reindex", "wife")
    expect(done.code == 0 and "again" not in done.out + done.err, "reindex", [str(done)])
    rig.whole("wife")
    with rig.cyrus.imap("wife") as imap:
        imap.append("INBOX/Sub", message("later", to="wife"))
    rig.begin()
    rig.sync("-u", "wife")
    rig.whole("wife")
    expect_none([line for line in rig.to.recent_log().splitlines() if "again" in line], "marks")


@case("B8: a renamed user's backup is complete, and holds nobody else's mail", only=BACKUPS)
def user_rename(rig):
    fill(rig, "miss")
    with rig.cyrus.imap("miss") as imap:
        imap.create("INBOX/Sub")
        imap.fill("INBOX/Sub", [message("sub%d" % n, to="miss") for n in range(3)])
    rig.sync("-u", "miss")
    before = guids(rig.cyrus.dump(["miss"]))
    client = rig.cyrus.rolling(rig.to)
    try:
        with rig.cyrus.imap("admin") as imap:
            imap.rename("user/miss", "user/missis")
        with rig.cyrus.imap("missis") as imap:
            imap.append("INBOX", message("after the wedding", to="missis"))
        client.drain()
        # A new person gets the old name.
        fill(rig, "miss", 0)
        with rig.cyrus.imap("miss") as imap:
            imap.fill("INBOX", [message("somebody new", to="miss2")])
        client.drain()
        expect(client.running(), "the rolling client is still there", [client.process.output()])
    finally:
        client.stop()
    rig.sync("-u", "missis", "miss", attempts=2)
    rig.whole("missis", "miss")
    held = {user: guids(rig.cyrus.dump([user])) for user in ("miss", "missis")}
    files = rig.to.data_files()
    kept = {user: set(logfile.bodies(files[user])) for user in held}
    expect_none(sorted(held["missis"] - kept["missis"]), "mail that is not in the renamed user's log")
    expect_none(sorted(kept["missis"] - held["missis"]), "others' mail in the renamed user's log")
    expect_none(sorted(kept["miss"] - held["miss"] - before), "others' mail in the log of the old name")


def reserve(wire, user, guid):
    wire.command("APPLY RESERVE", {"PARTITION": "default", "MBOXNAME": ["user." + user], "GUID": [guid]})


def put(to, user, body):
    """One message more in the INBOX, as a sender would: GET, RESERVE, MESSAGE, MAILBOX."""
    guid = hashlib.sha1(body).hexdigest()
    wire = to.csync()
    try:
        box = dict(wire.command("GET MAILBOXES", ["user." + user])[0][1])
        reserve(wire, user, guid)
        wire.command("APPLY MESSAGE", [dlist.File("default", guid, body)])
        for key in ("SYNC_CRC", "SYNC_CRC_ANNOT", "XCONVMODSEQ"):
            box.pop(key, None)
        uid, modseq = int(box["LAST_UID"]) + 1, int(box["HIGHESTMODSEQ"]) + 1
        record = {"UID": uid, "MODSEQ": modseq, "LAST_UPDATED": int(time.time()), "FLAGS": []}
        record.update({"INTERNALDATE": int(time.time()), "SIZE": len(body), "GUID": guid})
        wire.command("APPLY MAILBOX", dict(box, LAST_UID=uid, HIGHESTMODSEQ=modseq, RECORD=[record]))
    finally:
        wire.close()


def traced(path):
    """(pid, call, what, first line, last line) of a log of strace, in order of their ends."""
    begun, calls = {}, []
    head = re.compile(r"^(\d+) +(?:<\.\.\. )?(\w+)(.*)$")
    with open(path, errors="replace") as file:
        for number, line in enumerate(file):
            found = head.match(line)
            if not found:
                continue
            pid, call, rest = found.groups()
            if "resumed>" in rest:
                first, what = begun.pop((pid, call), (number, ""))
                calls.append((pid, call, what, first, number))
            elif rest.endswith("<unfinished ...>"):
                begun[pid, call] = (number, rest)
            else:
                calls.append((pid, call, rest, number, number))
    return calls


@case("B11: between the last write and the OK the log is synced, and its folder", only=BACKUPS,
      todo={"backupd": "B11: nothing is ever synced"})
def synced(rig):
    strace = shutil.which("strace")
    if not strace or run_command([strace, "-f", "true"]).code != 0:
        raise Skip("strace is missing or may not trace")
    trace = sandbox.temp_dir() + "/trace"
    calls = "fsync,fdatasync,write,writev,pwrite64,sendto,sendmsg"
    to = receiver(via=[strace, "-D", "-f", "-y", "-qq", "-s", "2000", "-o", trace, "-e", "trace=" + calls])
    try:
        rig.sync("-u", "anna", to=to)
        path = to.data_file("anna")
        with open(trace) as file:
            begin = sum(1 for _line in file)
        put(to, "anna", message("synced", 30000))
        time.sleep(0.5)
        done = traced(trace)
    finally:
        to.stop()
    files = "<%s>" % path
    answers = [c for c in done if c[3] >= begin and re.search(r'"(\* .*\\n)?OK ', c[2])]
    expect(len(answers) >= 4, "the answers are in the trace", [str(c) for c in done if c[3] >= begin])
    # To GET, RESERVE, MESSAGE, and this is the promise.
    promise = answers[3]
    syncs = [c for c in done if files in c[2] and c[1] in ("fsync", "fdatasync") and c[3] >= begin]
    writes = [c for c in done if files in c[2] and "write" in c[1] and begin <= c[3] < promise[3]]
    expect(writes, "the log was written before the OK", [str(c) for c in done[-20:]])
    last = max(c[4] for c in writes)
    good = [c for c in syncs if c[3] > last and c[4] < promise[3]]
    expect(good, "the log is synced between its last write and the OK", [str(c)[:150] for c in syncs + writes])
    late = [c for c in done if files in c[2] and "write" in c[1] and c[3] < promise[3] and c[4] > good[0][3]]
    expect_none([str(c) for c in late], "writes at the same time as the sync")
    folder = "<%s>" % os.path.dirname(path)
    first = [c for c in done if c[1] == "fsync" and folder in c[2] and c[4] < begin]
    expect(first, "the folder of the new log is synced", [str(c) for c in done if "sync" in c[1]])


@case("B16: a message that cannot be staged is refused, nothing is put in its place", only=BACKUPS,
      todo={"backupd": "B16: NIL is stored, and the answer is OK"})
def unstaged(rig):
    to = receiver(**({"backup_staging_max": "100K"} if RECEIVER == "ours" else {}))
    tracer = None
    try:
        user = "unstaged"
        body = message("large", 300000, to=user)
        guid = hashlib.sha1(body).hexdigest()
        fill(rig, user)
        rig.sync("-u", user, to=to)
        wire = to.csync()
        if RECEIVER == "ours":
            # With two users it is not clear whose log it belongs to, so it has to be staged.
            wire.command("GET MAILBOXES", ["user." + user, "user.anna"])
        else:
            wire.command("GET MAILBOXES", ["user." + user])
            tracer = unreadable(to, guid)
        reserve(wire, user, guid)
        try:
            wire.command("APPLY MESSAGE", [dlist.File("default", guid, body)])
            refused = False
        except Refused:
            refused = True
        wire.close()
        for _stamp, name, value in logfile.lines(to.data_file(user)):
            expect(name != "MESSAGE" or None not in value, "no NIL stands for a message")
        expect(refused, "the message is refused")
        expect(guid not in logfile.bodies(to.data_file(user)), "nothing of it is stored")
        rig.whole(user, to=to)
    finally:
        if tracer:
            tracer.kill()
        to.stop()


def unreadable(to, guid):
    """Make the third look at the old one's staging file fail: the one that copies it."""
    strace = shutil.which("strace")
    if not strace:
        raise Skip("strace is missing")
    (pid,) = os.listdir(to.tree + "/conf/proc")
    words = [strace, "-f", "-p", pid, "-P", "%s/tmp/sync./%s/%s" % (to.dir, pid, guid), "-e", "trace=openat"]
    tracer = sandbox.Process(
        sandbox.as_cyrus(words + ["-e", "inject=openat:error=EACCES:when=3"]), to.dir + "/log/strace"
    )
    wait_for(lambda: "attached" in tracer.output(), 10, "strace")
    return tracer


@case("a full disk: refused with NO, nothing half is kept, and it goes on when there is room", only=OURS)
def full_disk(rig):
    # A limit on the size of files is a disk that is full, and can be lifted.
    if run_command(["prlimit", "--fsize=100000", "true"]).code != 0:
        raise Skip("prlimit is missing")
    limit = 400000
    to = receiver(via=["env", "--ignore-signal=XFSZ", "prlimit", "--fsize=%d:unlimited" % limit])
    try:
        user = "fulldisk"
        fill(rig, user)
        rig.sync("-u", user, to=to)
        held = rig.cyrus.dump([user])
        rig.whole(user, to=to)
        with rig.cyrus.imap(user) as imap:
            imap.append("INBOX", message("noise", 400, to=user) + os.urandom(limit).hex().encode() + b"\r\n")
        for _attempt in range(2):
            done = rig.cyrus.sync(to, "-u", user)
            expect(done.code not in (0, None), "the sender is told", [str(done)])
            expect(to.process.running(), "the server lives", [to.process.output()])
        rig.whole(user, to=to, state=held)
        rig.sync("-u", "anna", to=to)
        rig.whole("anna", to=to)
        room = run_command(["prlimit", "--pid", to.process.pid, "--fsize=unlimited"])
        expect(room.code == 0, "there is room again", [str(room)])
        rig.sync("-u", user, to=to)
        rig.whole(user, "anna", to=to)
    finally:
        to.stop()


@case("B20: an answer that something is locked costs no descriptor", only=BACKUPS,
      todo={"backupd": "B20: leaks one each time"})
def descriptors(rig):
    to = receiver(**({"backup_lock_wait": "0"} if RECEIVER == "ours" else {}))
    try:
        rig.sync("-u", "anna", to=to)
        wire = to.csync()
        with open(to.data_file("anna"), "r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)

            def locked():
                try:
                    wire.command("APPLY SUB", {"USERID": "anna", "MBOXNAME": "user.anna.x"})
                except Refused as why:
                    expect("LOCKED" in str(why), "the answer is that it is locked", [str(why)])
                    return
                raise Failed("a locked backup is written to")

            locked()
            before = to.descriptors()
            for _time in range(20):
                locked()
            expect(to.descriptors() <= before, "descriptors", ["%d became %d" % (before, to.descriptors())])
        wire.command("APPLY SUB", {"USERID": "anna", "MBOXNAME": "user.anna.x"})
        wire.close()
    finally:
        to.stop()


def everything(rig):
    """All files of the store with their sizes, and the catalogue."""
    found = dict(rig.to.data_files())
    for folder, _names, files in os.walk(rig.to.tree + "/backup"):
        for name in files:
            if not name.endswith(("-shm", "-wal", "-journal")):
                found[name] = os.path.getsize(os.path.join(folder, name))
    return found


@case("B20: asking for a user that is not there makes nothing", only=BACKUPS,
      todo={"backupd": "B20: makes a backup"})
def unknown(rig):
    before = everything(rig)
    wire = rig.to.csync()
    for words, value in (
        ("GET USER", "nobody-here"),
        ("GET META", "nobody-here"),
        ("GET MAILBOXES", ["user.nobody-there", "user.nobody-there.x", "nowhere.shared"]),
        ("GET FULLMAILBOX", "user.nobody-there.y"),
        ("GET UNIQUEIDS", ["00000000-0000-0000-0000-000000000000"]),
    ):
        try:
            wire.command(words, value)
        except Refused:
            pass
    wire.close()
    expect_equal(everything(rig), before, "files and catalogue")


@case("B20: a session that only asks writes no byte", only=BACKUPS, todo={"backupd": "B20: an empty chunk each time"})
def asking(rig):
    before = everything(rig)
    for _time in range(3):
        wire = rig.to.csync()
        wire.command("GET USER", "anna")
        wire.command("RESTART")
        wire.command("GET MAILBOXES", ["user.anna"])
        wire.command("NOOP")
        wire.close()
    time.sleep(0.3)
    expect_equal(everything(rig), before, "files and catalogue")


@case("B20: a backup that a waiting client has not used is let go", only=BACKUPS,
      todo={"backupd": "B20: only when the next command comes"})
def let_go(rig):
    to = receiver(**({"backup_chunk_idle": "2s"} if RECEIVER == "ours" else {}))
    try:
        rig.sync("-u", "anna", to=to)
        wire = to.csync()
        subscribe = ("APPLY SUB", {"USERID": "anna", "MBOXNAME": "user.anna.idle"})
        wire.command(*subscribe)

        def free():
            with open(to.data_file("anna"), "r+b") as file:
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return True
                except OSError:
                    return False

        expect(not free(), "the session holds the lock at first")
        began = time.monotonic()
        try:
            wait_for(free, 8, "lock")
        except TimeoutError as why:
            raise Failed("another process gets the lock while the client waits") from why
        expect(time.monotonic() - began > 1, "not at once")
        logfile.plain(to.data_file("anna"), unsealed=False)
        wire.command("APPLY UNSUB", subscribe[1])
        wire.close()
    finally:
        to.stop()


@case("B22: STARTTLS that would not work is not offered", only=BACKUPS, todo={"backupd": "B22: offered, not there"})
def starttls(_rig):
    dir = sandbox.temp_dir()
    done = run_command(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        + ["-keyout", dir + "/key", "-out", dir + "/cert"]
    )
    if done.code != 0:
        raise Skip("openssl makes no certificate")
    to = receiver(tcp=True, tls_server_cert=dir + "/cert", tls_server_key=dir + "/key")
    try:
        for address in (("127.0.0.1", to.port), to.socket):
            wire = Csync(address)
            offered = any(b"STARTTLS" in line for line in wire.banner)
            try:
                wire.command("STARTTLS")
                works = True
            except Refused:
                works = False
            expect(offered == works, "what is offered works", [repr(line) for line in wire.banner])
            if not works:
                wire.command("NOOP")
            wire.close()
    finally:
        to.stop()


@case("B25: a user with the default domain spelled out is the same user", only=BACKUPS,
      todo={"backupd": "B25: gets a second backup"})
def default_domain(_rig):
    to = receiver(defaultdomain="example.org", virtdomains="userid")
    try:
        wire = to.csync()
        wire.command("APPLY SUB", {"USERID": "bert", "MBOXNAME": "user.bert"})
        wire.command("APPLY SUB", {"USERID": "bert@example.org", "MBOXNAME": "user.bert.more"})
        wire.command("APPLY SUB", {"USERID": "bert@example.com", "MBOXNAME": "example.com!user.bert"})
        wire.command("RESTART")
        claims = [{v.decode() for k, vs in wire.command("GET USER", u) if k == "LSUB" for v in vs} for u in ("bert", "bert@example.org")]
        wire.close()
        expect_equal(sorted(to.data_files()), ["bert", "bert@example.com"], "backups")
        expect_equal(claims, [{"user.bert", "user.bert.more"}] * 2, "subscriptions under both names")
    finally:
        to.stop()


@case("B26: changes since a state that is not here are refused", only=BACKUPS,
      todo={"backupd": "B26: taken without a look"})
def without_base(rig):
    fill(rig, "base")
    rig.sync("-u", "base")
    wire = rig.to.csync()
    held = rig.cyrus.csync()
    try:
        full = dict(held.command("GET FULLMAILBOX", "user.base")[0][1])
        for key in ("XCONVMODSEQ",):
            full.pop(key, None)
        modseq = int(full["HIGHESTMODSEQ"])
        later = dict(full, HIGHESTMODSEQ=modseq + 9, RECORD=[dict(full["RECORD"][-1], MODSEQ=modseq + 9)])
        later.pop("SYNC_CRC", None)
        gone = dict(later, MBOXNAME="user.base.unknown", UNIQUEID="6b656570-6d65-4e6f-7765-6c6c00000001")
        for title, box, since in (
            ("the state is an older one", later, {"SINCE_MODSEQ": modseq + 5}),
            ("the checksum is another one", later, {"SINCE_MODSEQ": modseq, "SINCE_CRC": 4711}),
            ("the mailbox is not here at all", gone, {"SINCE_MODSEQ": modseq}),
        ):
            try:
                wire.command("APPLY MAILBOX", dict(box, **since))
            except Refused as why:
                expect("IMAP_SYNC_CHANGED" in str(why), title, [str(why)])
            else:
                raise Failed("taken, though " + title)
    finally:
        wire.close()
        held.close()
    rig.whole("base")
    with rig.cyrus.imap("base") as imap:
        imap.append("INBOX", message("and on", to="base"))
    rig.sync("-u", "base")
    rig.whole("base")


run(setup, Rig.close)
