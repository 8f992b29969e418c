#!/usr/bin/env python3
"""Mail goes into files: Maildir, mbox, tar, eml. Each form is read back by a reader that is not
ours and holds what the IMAP server shows, byte for byte; hostile names stay inside; a full disk
is told and the next run completes."""

import email.utils
import hashlib
import json
import mailbox
import os
import subprocess
import sys
import tarfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *
from cyrusrig import dovecot, mixed

USER = "anna"


def start(**options):
    if RECEIVER != "ours":
        skip_all("only for our own server")
    rig = start_rig(**options)
    rig.cyrus.user(USER)
    with rig.cyrus.imap(USER) as imap:
        mixed.fill(imap)
    rig.cyrus.sieve_upload(USER, {"main": "keep;\r\n", "other": "stop;\r\n"}, active="main")
    rig.sync("-u", USER)
    return rig


def restore(rig, to, *words, code=0, user=USER):
    done = rig.to.tool("restore", "--to", to, *words, user)
    if done.code != code:
        raise Failed("restore ended with %s, not %d" % (done.code, code), str(done).splitlines())
    return done


def as_they_were(rig):
    """{folder: sorted [(sha1, seconds, flags)]} with names in words."""
    with rig.cyrus.imap(USER) as imap:
        shown = mixed.shown(imap)
    return {words(name): rows for name, rows in shown.items()}


def words(name):
    return name.replace("Entw&APw-rfe", "Entw\u00fcrfe").replace("&ZeVnLIqe-", "\u65e5\u672c\u8a9e").replace("&-", "&")


def tree(top):
    """{path: bytes} of all files below."""
    found = {}
    for folder, _dirs, files in os.walk(top):
        for name in files:
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, top)] = file.read()
    return found


def by_json(document, bodies):
    """Rows of one mailbox from its mailbox.json, with the SHA-1 of the bodies that are there."""
    rows = []
    for item in document["messages"]:
        sha = hashlib.sha1(bodies[item["file"]]).hexdigest() if "file" in item else item["guid"]
        rows.append((sha, item["internaldate"], tuple(sorted(item["flags"]))))
    return sorted(rows)


def complete(files, user):
    """What is no message is there."""
    told = json.loads(files[user + "/user.json"])
    expect_equal(set(told["subscriptions"]), {"user.anna", "user.anna.Sent", "user.anna.Entw&APw-rfe"}, "subscriptions")
    expect_equal(told["active_script"], "main.bc", "the active script")
    expect_equal(files[user + "/sieve/main.sieve"], b"keep;\r\n", "a script")


def twice(rig, to, where):
    """The second run changes nothing."""
    before = tree(where)
    done = restore(rig, to)
    expect(" 0 messages brought" in done.out, "nothing is brought", [done.out[-500:]])
    expect_none(sorted(n for n, data in tree(where).items() if before.get(n) != data), "changed files")
    expect_none(sorted(set(before) - set(tree(where))), "files that are gone")


@case("eml: a file for each message", only=("ours",))
def eml(rig):
    top = temp_dir("cyrusrig-eml-")
    restore(rig, "eml:%s/out" % top)
    files = tree(top + "/out")
    shown = {}
    for path in files:
        folder, name = os.path.split(path)
        if name == "mailbox.json":
            inside = {n[len(folder) + 1 :]: data for n, data in files.items() if os.path.dirname(n) == folder}
            shown[os.path.relpath(folder, USER)] = by_json(json.loads(files[path]), inside)
    expect_none(mixed.differences(as_they_were(rig), shown), "the server against the files")
    complete(files, USER)
    for path in files:
        if path.endswith(".eml"):
            guid = path[:-4].rsplit("-", 1)[1]
            expect_equal(hashlib.sha1(files[path]).hexdigest(), guid, path)
            expect_equal(os.stat("%s/out/%s" % (top, path)).st_mode & 0o777, 0o600, "mode of " + path)
    head = json.loads(files[USER + "/Sent/mailbox.json"])["head"]
    expect("anna\tlrswip" in head["ACL"] and int(head["UIDVALIDITY"]) > 0, "ACL and UIDVALIDITY", [str(head)])
    twice(rig, "eml:%s/out" % top, top)


@case("tar: the same in an archive", only=("ours",))
def tar(rig):
    top = temp_dir("cyrusrig-tar-")
    restore(rig, "tar:%s/out.tar" % top)
    restore(rig, "eml:%s/out" % top)
    wanted = tree(top + "/out")
    found, times = {}, {}
    with tarfile.open(top + "/out.tar") as archive:
        for member in archive.getmembers():
            expect(member.isfile() and not member.name.startswith(("/", "..")), "a plain member: " + member.name)
            found[member.name] = archive.extractfile(member).read()
            times[member.name] = member.mtime
    expect_none(sorted(n for n in set(wanted) ^ set(found)), "names on one side only")
    expect_none(sorted(n for n in wanted if wanted[n] != found[n]), "contents")
    for name in wanted:
        if name.endswith(".eml"):
            expect_equal(times[name], int(os.stat("%s/out/%s" % (top, name)).st_mtime), "time of " + name)
    listed = subprocess.run(["tar", "-tf", top + "/out.tar"], capture_output=True)
    expect_equal((listed.returncode, listed.stderr), (0, b""), "tar reads it")
    os.mkdir(top + "/only")
    os.rename(top + "/out.tar", top + "/only/out.tar")
    sandbox.owned(top + "/only")
    twice(rig, "tar:%s/only/out.tar" % top, top + "/only")
    # As a stream, and cut off in the middle and run again.
    done = rig.to.tool("restore", "--to", "tar:-", USER)
    expect_equal(done.code, 0, "status")
    expect("messages brought" in done.err, "the report goes elsewhere", [done.err[-300:]])
    whole = os.path.getsize(top + "/only/out.tar")
    os.truncate(top + "/only/out.tar", whole // 3)
    restore(rig, "tar:%s/only/out.tar" % top)
    with tarfile.open(top + "/only/out.tar") as archive:
        again = {m.name: archive.extractfile(m).read() for m in archive.getmembers()}
    expect_none(sorted(n for n in wanted if wanted[n] != again.get(n)), "contents after a break")


def unquoted(data):
    """What was a message before it went into an mbox."""
    lines = data.split(b"\n")
    expect(lines[0].startswith(b"Status: ") and lines[1].startswith(b"X-Status:"), "status lines", [str(lines[:4])])
    out = []
    for line in lines[3:]:
        out.append(line[1:] if line.startswith(b">") and line.lstrip(b">").startswith(b"From ") else line)
    return b"\r\n".join(out)


MARKS = {"R": "\\Seen", "A": "\\Answered", "F": "\\Flagged", "T": "\\Draft", "D": "\\Deleted"}


def rows_of_mbox(path):
    """[(sha1, seconds, flags)], read by Python's mailbox."""
    rows = []
    box = mailbox.mbox(path, create=False)
    for key in box.keys():
        data = box.get_bytes(key)
        one = box.get_message(key)
        flags = {MARKS[c] for c in one["Status"] + one["X-Status"] if c in MARKS}
        flags |= set(one["X-Keywords"].split())
        date = time.strptime(one.get_from().split(" ", 1)[1], "%a %b %d %H:%M:%S %Y")
        body = unquoted(data)
        sha = hashlib.sha1(body).hexdigest()
        guid = one.get_from().split(".")[1]
        if sha != guid:
            # It had no end of its last line.
            sha = hashlib.sha1(body[:-2]).hexdigest()
        expect_equal(sha, guid, "message %r" % one.get_from())
        rows.append((sha, int(email.utils.mktime_tz(tuple(date[:9]) + (0,))), tuple(sorted(flags))))
    box.close()
    return sorted(rows)


@case("mbox: one file, a file for each mailbox, standard output", only=("ours",))
def mbox(rig):
    top = temp_dir("cyrusrig-mbox-")
    restore(rig, "mbox:%s/each/" % top)
    files = tree(top + "/each")
    shown = {}
    for path in files:
        if path.endswith("/mbox"):
            shown[os.path.relpath(os.path.dirname(path), USER)] = rows_of_mbox(top + "/each/" + path)
        elif path.endswith("/mailbox.json"):
            shown.setdefault(os.path.relpath(os.path.dirname(path), USER), [])
    expect_none(mixed.differences(as_they_were(rig), shown), "the server against the files")
    complete(files, USER)
    twice(rig, "mbox:%s/each" % top, top)
    restore(rig, "mbox:%s/one" % top)
    every = sorted(row for rows in as_they_were(rig).values() for row in rows)
    expect_equal(rows_of_mbox(top + "/one"), every, "all in one file")
    complete(tree(top + "/one.d"), USER)
    twice(rig, "mbox:%s/one" % top, top)
    with open(top + "/one", "rb") as file:
        whole = file.read()
    # Killed anywhere.
    os.truncate(top + "/one", len(whole) // 2)
    restore(rig, "mbox:%s/one" % top)
    with open(top + "/one", "rb") as file:
        expect(file.read() == whole, "completed after a break")
    raw = subprocess.run(
        sandbox.as_cyrus([rig.to.path, "-C", rig.to.conf, "restore", "--to", "-", USER, "INBOX"]), capture_output=True
    )
    with open(top + "/stdout", "wb") as file:
        file.write(raw.stdout)
    expect_equal(raw.returncode, 0, "status")
    expect_equal(rows_of_mbox(top + "/stdout"), as_they_were(rig)["INBOX"], "standard output")


FLAGS = {"S": "\\Seen", "R": "\\Answered", "F": "\\Flagged", "D": "\\Draft", "T": "\\Deleted"}


@case("maildir: read by Python, and by Dovecot", only=("ours",))
def maildir(rig):
    top = temp_dir("cyrusrig-maildir-")
    restore(rig, "maildir:%s/out" % top)
    root = top + "/out/" + USER
    files = tree(top + "/out")
    complete(files, USER)
    wanted = as_they_were(rig)
    shown = {}
    box = mailbox.Maildir(root, create=False)
    folders = {"INBOX": box}
    folders.update({name: box.get_folder(name) for name in box.list_folders()})
    for name, folder in folders.items():
        keywords = {}
        path = folder._path + "/dovecot-keywords"
        if os.path.exists(path):
            with open(path) as file:
                keywords = {chr(ord("a") + int(n)): k for n, k in (line.split() for line in file)}
        rows = []
        for key in folder.keys():
            one = folder.get_message(key)
            flags = {FLAGS[c] if c in FLAGS else keywords[c] for c in one.get_flags()}
            rows.append((hashlib.sha1(folder.get_bytes(key)).hexdigest(), int(one.get_date()), tuple(sorted(flags))))
        shown[words(name).replace(".", "/").replace("%2E", ".")] = sorted(rows)
    expect_none(mixed.differences(wanted, shown), "the server against the files")
    twice(rig, "maildir:%s/out" % top, top)
    if dovecot.problem():
        raise Skip(dovecot.problem())
    server = dovecot.Dovecot([USER], location="maildir:%s/out/%%u" % top)
    try:
        with server.imap(USER) as imap:
            shown = {words(name).replace("%2E", "."): rows for name, rows in mixed.shown(imap, "").items()}
            expect_none(mixed.differences(wanted, shown), "the server against Dovecot")
            expect_equal(mixed.subscriptions(imap), {"INBOX", "Sent", "Entw&APw-rfe"}, "subscriptions")
            # A reader changes flags and moves files: they are there all the same.
            imap.select("Sent")
            imap.store("1:*", "FLAGS", "\\Flagged")
            imap.select("INBOX")
            imap.store("1:*", "+FLAGS", "Other")
    finally:
        server.stop()
    done = restore(rig, "maildir:%s/out" % top)
    expect(" 0 messages brought" in done.out, "nothing is brought", [done.out[-500:]])


HOSTILE = ("../../etc", "a/b", "con", "x" * 255, "-rf", "~root", " lead", "a\\b", "mailbox.json", "CON.txt", "Inbox", "inbox")


@case("hostile names stay inside and apart", only=("ours",))
def hostile(rig):
    user = "evil"
    rig.cyrus.user(user)
    body = message("evil", 300, to=user)
    with rig.cyrus.imap(user) as imap:
        imap.append("INBOX", body)
    rig.sync("-u", user)
    # Cyrus would refuse such names: told as a sender might that has lost its mind.
    wire = rig.to.csync() if hasattr(rig.to, "csync") else Csync(rig.to.socket)
    names = []
    for number, name in enumerate(HOSTILE):
        internal = "user.evil." + name.replace(".", "^")
        names.append(internal)
        box = tell(wire, internal, number, body)
        expect(box, "told: " + internal)
    wire.close()
    for form in ("eml:%s", "maildir:%s", "tar:%s/x.tar", "mbox:%s/"):
        top = temp_dir("cyrusrig-hostile-")
        os.mkdir(top + "/in")
        sandbox.owned(top + "/in")
        restore(rig, form % (top + "/in"), user=user)
        expect_equal(os.listdir(top), ["in"], "nothing beside: " + form)
        if form.startswith("tar"):
            with tarfile.open(top + "/in/x.tar") as archive:
                archive.extractall(top + "/in/out")
        found = tree(top + "/in")
        told = [json.loads(data)["mboxname"] for n, data in found.items() if os.path.basename(n) == "mailbox.json"]
        expect_equal(sorted(told), sorted(names + ["user.evil"]), "each has its place: " + form)
        for path in found:
            for part in path.split("/"):
                expect(part not in (".", "..") and len(part.encode()) <= 255 and part.isprintable(), "a good name: %r" % path)


def tell(wire, internal, number, body):
    """A mailbox with one message, as replication says it."""
    guid = hashlib.sha1(body).hexdigest()
    record = {
        "UID": "1",
        "MODSEQ": "2",
        "LAST_UPDATED": "1795439789",
        "FLAGS": [],
        "INTERNALDATE": "1795439789",
        "SIZE": str(len(body)),
        "GUID": guid,
    }
    box = {
        "UNIQUEID": "evil%020d" % number,
        "MBOXNAME": internal,
        "SYNC_CRC": "0",
        "LAST_UID": "1",
        "HIGHESTMODSEQ": "2",
        "RECENTUID": "0",
        "RECENTTIME": "0",
        "LAST_APPENDDATE": "0",
        "POP3_LAST_LOGIN": "0",
        "UIDVALIDITY": str(1700000000 + number),
        "PARTITION": "default",
        "ACL": "evil\tlrswipkxtecdan\t",
        "OPTIONS": "P",
        "RECORD": [record],
    }
    wire.command("APPLY RESERVE", {"PARTITION": "default", "MBOXNAME": ["user.evil"], "GUID": [guid]})
    wire.command("APPLY MAILBOX", box)
    return box


@case("a full disk is told, and the next run completes", only=("ours",))
def full(rig):
    for form in ("eml:%s/out", "maildir:%s/out", "tar:%s/out.tar", "mbox:%s/out"):
        top = temp_dir("cyrusrig-full-")
        small = top + "/small"
        os.mkdir(small)
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=777", "none", small], capture_output=True)
        if mounted.returncode != 0:
            raise Skip("cannot mount a small file system: " + mounted.stderr.decode().strip())
        try:
            done = restore(rig, form % small, code=74)
            expect("No space left" in done.err, "what happened is told: " + form, [done.err])
            line = [l for l in done.out.splitlines() if "messages brought" in l]
            expect(line and "of 12 messages brought" in line[0], "what is there is told: " + form, [done.out])
            expect("user/anna/Sent: not begun" in done.out, "and what is not: " + form, [done.out])
            count = int(line[0].split(": ")[1].split(" ")[0])
            expect(0 < count < 12, "some were brought: %d" % count)
            left = [n for n in tree(small) if "cyr_backup-" in n or "/tmp/" in n]
            expect_none(left, "unfinished files: " + form)
            subprocess.run(["mount", "-o", "remount,size=20m", small], check=True)
            done = restore(rig, form % small)
            expect("%d there already" % count in done.out, "what was told was there: " + form, [done.out[:300]])
            again = restore(rig, form % small)
            expect(" 0 messages brought" in again.out, "and now all is: " + form, [again.out[-300:]])
        finally:
            subprocess.run(["umount", small])


# Runs a command and prints its memory at its peak. A process of its own: what a parent holds counts.
MEASURE = """
import os, sys
child = os.fork()
if child == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
_pid, status, used = os.wait4(child, 0)
print(used.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@case("a large message takes no memory", only=("ours",))
def large(rig):
    user = "large"
    rig.cyrus.user(user)
    body = message("large", 300) + (b"z" * 998 + b"\r\n") * 60000
    with rig.cyrus.imap(user) as imap:
        imap.append("INBOX", body)
    rig.sync("-u", user)
    top = temp_dir("cyrusrig-large-")
    server = None if dovecot.problem() else dovecot.Dovecot([user])
    conf = rig.to.conf + ".large"
    with open(rig.to.conf) as file:
        sandbox.write(conf, file.read() + "restore_authname: %s\nrestore_password: %s\n" % (user, PASSWORD))
    try:
        for form in ("eml:%s/eml", "maildir:%s/maildir", "tar:%s/tar", "mbox:%s/mbox", server and server.url() + "%.0s"):
            if form is None:
                continue
            argv = [rig.to.path, "-C", conf, "restore", "--in-place", "--what", "mail", "--to", form % top, user]
            done = run_command([sys.executable, "-c", MEASURE] + sandbox.as_cyrus(argv), cyrus=False)
            expect_equal(done.code, 0, "status of %s: %s" % (form, done))
            kib = int(done.out.splitlines()[-1])
            diag("%s: %d KiB" % (form.split(":")[0], kib))
            expect(kib < 40 * 1024, "%s: %d KiB of memory for 60 MB" % (form, kib))
        expect(body in tree(top + "/eml").values(), "it is there")
        if server:
            with server.imap(user) as imap:
                expect_equal([m["sha1"] for m in imap.messages("INBOX").values()], [mixed.sha1(body)], "and at the server")
    finally:
        if server:
            server.stop()


@case("what is there and is not ours is left alone", only=("ours",))
def foreign(rig):
    top = temp_dir("cyrusrig-foreign-")
    sandbox.write(top + "/old", "From somebody@else Thu Jan  1 00:00:00 1970\nSubject: mine\n\n")
    for form in ("mbox:", "tar:"):
        done = rig.to.tool("restore", "--to", form + top + "/old", USER)
        expect(done.code not in (0, None), "refused: " + form)
        expect("no export of ours" in done.err, "and told why", [done.err])
    with open(top + "/old") as file:
        expect_equal(file.read().count("mine"), 1, "the file is what it was")
    for wrong in ("maildir:-", "eml:-"):
        expect_equal(rig.to.tool("restore", "--to", wrong, USER).code, 64, wrong)
    expect_equal(rig.to.tool("restore", "--to", "eml:" + top, "--keep-uids", USER).code, 64, "--keep-uids")


run(start, Rig.close)
