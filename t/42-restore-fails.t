#!/usr/bin/env python3
"""restore when something goes wrong on the way: the destination dies, says no, is not there,
refuses the login; a body is damaged. Each time the report says what is there and what is
not, the exit status tells, and another run completes the work without doubling anything."""

import hashlib
import json
import os
import signal
import socket
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *
from cyrusrig import logfile, sandbox

LOGIN = {"restore_authname": "admin", "restore_password": PASSWORD}
FOLDERS = ["A", "B", "C"]
EACH = 300


class Cut:
    """A UNIX socket before another one that dies after so many bytes of the client's."""

    def __init__(self, folder, behind, after, slow=0):
        self.path = folder + "/cut"
        self.behind, self.left, self.slow = behind, after, slow
        if os.path.exists(self.path):
            os.unlink(self.path)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        os.chmod(self.path, 0o777)
        self.listener.listen(8)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self.behind)
            threading.Thread(target=self.pump, args=(server, client, False), daemon=True).start()
            threading.Thread(target=self.pump, args=(client, server, True), daemon=True).start()

    def pump(self, one, other, counted):
        try:
            while True:
                data = one.recv(65536)
                if counted:
                    self.left -= len(data)
                    time.sleep(self.slow)
                if not data or self.left < 0:
                    break
                other.sendall(data)
        except OSError:
            pass
        for sock in (one, other):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        self.listener.close()


def setup():
    if RECEIVER != "ours":
        raise Skip("about our own command")
    rig = start_rig(to_options=LOGIN)
    rig.cyrus.user("anna", "bert")
    with rig.cyrus.imap("anna") as imap:
        for name in FOLDERS:
            imap.create("INBOX/" + name)
            imap.fill("INBOX/" + name, [message("%s%d" % (name, n), 3000, to="anna") for n in range(EACH)])
    rig.sync("-u", "anna")
    # Where nothing is yet: bodies have to travel.
    rig.other = Cyrus(name="other")
    rig.other.user("bert")
    return rig


def close(rig):
    rig.other.stop()
    rig.close()


def restore(rig, to, *args):
    done = rig.to.tool("restore", "-j", "--to", to, *args)
    try:
        return done, json.loads(done.out)["users"]
    except ValueError:
        return done, None


def held(cyrus, user, name):
    wire = cyrus.csync()
    try:
        box = wire.mailbox(name)
        return sorted(r["guid"] for r in box["records"].values() if not r["expunged"]) if box else []
    finally:
        wire.close()


@case("the destination dies in the middle: the report is true, another run completes")
def dies(rig):
    names = {n: "user.bert.%s" % n for n in FOLDERS}
    all_there = {n: held(rig.cyrus, "anna", "user.anna." + n) for n in FOLDERS}
    cut = Cut(rig.other.dir, rig.other.csync_socket, 1500000)
    try:
        done, told = restore(rig, "unix:" + cut.path, "--in-place", "--as", "bert", "anna")
    finally:
        cut.close()
    expect_equal(done.code, 74, "exit status")
    expect("closed the connection" in told[0]["error"], "the reason is told", [str(told[0]["error"])])
    brought = {b["mboxname"].split(".")[-1]: b["brought"] for b in told[0]["mailboxes"]}
    for name in FOLDERS:
        there = held(rig.other, "bert", names[name])
        expect(len(there) >= brought.get(name, 0), "what is said to be there is there: " + name)
        if name in brought:
            expect(len(there) <= brought[name] + EACH, "and hardly more")
    expect_equal(brought.get("A"), EACH, "the first folder was done")
    expect("user.anna.C" in told[0]["not_begun"], "what was not begun is told", [str(told[0]["not_begun"])])
    done, told = restore(rig, "unix:" + rig.other.csync_socket, "--in-place", "--as", "bert", "anna")
    expect_equal(done.code, 0, "another run")
    for name in FOLDERS:
        expect_equal(held(rig.other, "bert", names[name]), all_there[name], "all of " + name)
    expect(sum(b["there"] for b in told[0]["mailboxes"]) >= EACH, "what was there was not brought again")


@case("a rebuild is cut and goes on")
def rebuild_dies(rig):
    new = Cyrus(name="cut")
    try:
        before = rig.cyrus.dump(["anna"])["mailboxes"]
        for after in (700000, 1500000):
            cut = Cut(new.dir, new.csync_socket, after)
            try:
                done, _told = restore(rig, "unix:" + cut.path, "--keep-uids", "anna")
            finally:
                cut.close()
            expect_equal(done.code, 74, "exit status")
        done, told = restore(rig, "unix:" + new.csync_socket, "--keep-uids", "anna")
        expect_equal(done.code, 0, "another run")
        expect(all(b["compared"] and b["differs"] == [] for b in told[0]["mailboxes"]), "all is compared", [str(told)])
        expect_equal(new.dump(["anna"])["mailboxes"], before, "the mailboxes")
    finally:
        new.stop()


@case("equal is only what was read back: cut in the first mailbox, over APPEND, to a folder that cannot be")
def unproven(rig):
    new = Cyrus(name="unproven")
    try:
        new.user("anna")
        new.password("anna")
        cut = Cut(new.dir, new.csync_socket, 20000)
        words = ["--keep-uids", "anna", "A"]
        try:
            done = rig.to.tool("restore", "--to", "unix:" + cut.path, *words)
        finally:
            cut.close()
        expect_equal(done.code, 74, "exit status")
        expect("anna: 0 mailboxes are equal, 0 are not, 1 were not" in done.out, "none is said to be equal", done.out.splitlines())
        made = [line for line in done.out.splitlines() if "mailbox made" in line]
        expect_equal(made, [line for line in made if "0 of" not in line], "none without mail was made")
        boxes = json.loads(rig.to.tool("restore", "-j", "--to", "unix:" + new.csync_socket, *words).out)
        expect_equal(boxes["total"]["equal"], len(boxes["users"][0]["mailboxes"]), "then all are")
        conf = rig.to.dir + "/plain.conf"
        with open(rig.to.conf) as file:
            text = file.read().replace("restore_authname: admin", "restore_authname: anna")
        with open(conf, "w") as file:
            file.write(text)
        os.chmod(conf, 0o644)
        where = "imap://127.0.0.1:%d" % new.imap_port
        done = run_command([rig.to.path, "-C", conf, "restore", "--keep-uids", "--to", where, "anna"])
        expect("cannot keep UIDs" in done.err and "anna: 0 mailboxes are equal" in done.out, "over APPEND", [str(done)])
        done = rig.to.tool("restore", "--to", "mbox:/proc/nosuch/x", "anna")
        expect(done.code != 0 and "made" not in done.out, "a file that cannot be", [str(done)])
    finally:
        new.stop()


@case("stopped by a signal: it says so, and another run completes")
def stopped(rig):
    cut = Cut(rig.other.dir, rig.other.csync_socket, 10**9, slow=0.05)
    try:
        argv = sandbox.as_cyrus([rig.to.path, "-C", rig.to.conf, "restore", "-j", "--as", "bert", "--prefix", "stopped"])
        argv += ["--to", "unix:" + cut.path, "anna"]
        process = sandbox.Process(argv, rig.to.dir + "/log/stopped")
        wait_for(lambda: held(rig.other, "bert", "user.bert.stopped.A"), 30, "the first folder")
        process.signal(signal.SIGTERM)
        wait_for(lambda: not process.running(), 20, "it ends")
        expect("stopped: run it again" in process.output(), "it says so", [process.output()])
    finally:
        cut.close()
    done, told = restore(rig, "unix:" + rig.other.csync_socket, "--as", "bert", "--prefix", "stopped", "anna")
    expect_equal(done.code, 0, "another run")
    expect_equal(len(held(rig.other, "bert", "user.bert.stopped.C")), EACH, "all is there")
    expect(sum(b["there"] for b in told[0]["mailboxes"]) > 0, "some was")


@case("stopped while the destination says nothing: it ends all the same, at once by a second signal")
def stalled(rig):
    for to_unix, signals in ((True, 1), (False, 2)):
        listener = socket.socket(socket.AF_UNIX if to_unix else socket.AF_INET)
        path = rig.other.dir + "/stalled"
        if os.path.exists(path):
            os.unlink(path)
        listener.bind(path if to_unix else ("127.0.0.1", 0))
        if to_unix:
            os.chmod(path, 0o777)
        listener.listen(1)
        where = "unix:" + path if to_unix else "imap://127.0.0.1:%d" % listener.getsockname()[1]
        name = rig.to.dir + "/log/stalled%d" % signals
        argv = sandbox.as_cyrus([rig.to.path, "-C", rig.to.conf, "restore", "--to", where, "anna"])
        process = sandbox.Process(argv, name)
        peer, _ = listener.accept()
        try:
            # A banner, and nothing more for whatever comes.
            peer.sendall(b"* OK hello\r\n" if to_unix else b"* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] hello\r\n")
            expect(peer.recv(100), "it has begun to talk")
            began = time.time()
            process.signal(signal.SIGTERM)
            if signals == 2:
                time.sleep(0.5)
                process.signal(signal.SIGINT)
            wait_for(lambda: not process.running(), 15, "it ends")
            took = time.time() - began
            expect(took < (9 if signals == 1 else 2.5), "soon", ["%.1f s" % took])
            if signals == 1:
                expect("stopped: run it again" in process.output(), "and says so", [process.output()])
        finally:
            peer.close()
            listener.close()


@case("a message that the server does not take: all others are there")
def refused(rig):
    rig.cyrus.user("empty")
    rig.sync("-u", "empty")
    inject(rig.to, "user.empty", [b"Subject: a\r\n\r\nA\r\n", b"", b"Subject: b\r\n\r\nB\r\n"])
    for to in ("unix:" + rig.cyrus.csync_socket, "imap://127.0.0.1:%d" % rig.cyrus.imap_port):
        tree = "t" + to[:4].strip(":")
        done, told = restore(rig, to, "--prefix", tree, "empty")
        box = told[0]["mailboxes"][0]
        there = held(rig.cyrus, "empty", "user.empty.%s.INBOX" % tree)
        expect_equal(len(there), box["brought"], "as it says")
        expect(hashlib.sha1(b"Subject: b\r\n\r\nB\r\n").hexdigest() in there, "the one behind is there", [str(told)])
        expect_equal(done.code, 1 if box["failed"] else 0, "exit status")
        expect_equal(box["brought"] + len(box["failed"]), 3, "none is forgotten")


@case("a body that does not read: told with its UID, all others are there")
def damaged(rig):
    guid = held(rig.cyrus, "anna", "user.anna.B")[5]
    where = rig.to.json("show", "anna", guid)["messages"][0]["body"]
    guids = [g for n in FOLDERS for g in held(rig.cyrus, "anna", "user.anna." + n)]
    path = rig.to.data_files()["anna"]
    kept = open(path, "rb").read()
    rig.to.stop()
    # A chunk of stored blocks would be needed to hit one message only; here its chunk is hit.
    chunk = [c for c in rig.to.json("chunks", "anna")["chunks"] if c["id"] == where["chunk"]][0]
    try:
        # Where it hits bodies, not only the line that lists them, is found out.
        for part in (4, 5, 3, 6, 8, 2):
            with open(path, "r+b") as file:
                file.write(kept)
                file.seek(chunk["offset"] + chunk["length"] // part)
                byte = file.read(1)
                file.seek(-1, 1)
                file.write(bytes([byte[0] ^ 0x55]))
            if any(rig.to.tool("dump", "message", "anna", g).code != 0 for g in guids):
                break
        done, told = restore(rig, "unix:" + rig.other.csync_socket, "--prefix", "damaged", "--as", "bert", "anna")
        failed = [f for b in told[0]["mailboxes"] for f in b["failed"]]
        expect(done.code == 1 and failed, "it is told", [str(done)[-1500:]])
        brought = sum(b["brought"] for b in told[0]["mailboxes"])
        expect_equal(brought + len(failed), 3 * EACH, "none is forgotten")
        expect(brought > 0, "what reads is there", [str(brought)])
        expect(all(f["uid"] > 0 for f in failed), "each with its UID")
        there = sum(len(held(rig.other, "bert", "user.bert.damaged." + n)) for n in FOLDERS)
        expect_equal(there, brought, "as it says")
    finally:
        with open(path, "r+b") as file:
            file.write(kept)
    done, _told = restore(rig, "unix:" + rig.other.csync_socket, "--prefix", "damaged", "--as", "bert", "anna")
    expect_equal(done.code, 0, "with the copy put back it completes")
    rig.to.start()


@case("nobody there, and no login: said at once")
def nobody(rig):
    done, _told = restore(rig, "csync://127.0.0.1:%d" % free_port(), "anna")
    expect_equal((done.code, "cannot connect" in done.err), (74, True), "nobody is there: %s" % done)
    path = rig.to.dir + "/wrong.conf"
    text = open(rig.to.conf).read().replace("restore_password: " + PASSWORD, "restore_password: wrong")
    with open(path, "w") as file:
        file.write(text)
    os.chmod(path, 0o644)
    where = "imap://127.0.0.1:%d" % rig.cyrus.imap_port
    done = run_command([rig.to.path, "-C", path, "restore", "--to", where, "anna"])
    expect_equal((done.code, "login refused" in done.err), (77, True), "a wrong password: %s" % done)
    done = rig.to.tool("restore", "--to", "unix:" + rig.cyrus.csync_socket, "--partition", "nosuch", "--as", "nina", "anna")
    expect(done.code in (1, 74), "a partition that is not there: %s" % done)
    expect("partition" in done.out + done.err, "is told", [str(done)])


run(setup, close)
