#!/usr/bin/env python3
"""The ways to a Cyrus server: its replication port over TCP with PLAIN and SCRAM, imapd with
SCRAM; users with dots and domains; shared mailboxes; several partitions. And the old tool's
command line, under its name."""

import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *
from cyrusrig import sandbox
from cyrusrig.sandbox import BIN

LOGIN = {"restore_authname": "admin", "restore_password": PASSWORD}
USER = "b.c@dom.example"


class Open(Cyrus):
    """A server whose replication port is on TCP as well."""

    def __init__(self, **options):
        Cyrus.__init__(self, start=False, **options)
        self.csync_port = sandbox.free_port()
        with open(self.cyrus_conf) as file:
            text = file.read()
        line = '\n tcp cmd="%s/sync_server -C %s" listen="127.0.0.1:%d" proto="tcp4" prefork=0\n'
        text = text.replace("SERVICES {\n", "SERVICES {" + line % (BIN, self.conf, self.csync_port))
        with open(self.cyrus_conf, "w") as file:
            file.write(text)
        self.start()


def setup():
    if RECEIVER != "ours":
        raise Skip("about our own command")
    domains = {"virtdomains": "userid", "defaultdomain": "home.example"}
    rig = start_rig(to_options=dict(LOGIN, **domains), **domains)
    rig.cyrus.user(USER)
    with rig.cyrus.imap(USER) as imap:
        imap.create("INBOX/x.y")
        for name in ("INBOX", "INBOX/x.y"):
            imap.fill(name, [message("%s%d" % (name, n), 900, to=USER) for n in range(5)])
    with rig.cyrus.imap("admin") as imap:
        imap.create("shared")
        imap.setacl("shared", "anyone", "lrswip")
        imap.setquota("shared", storage=7777)
    rig.cyrus.user("zoe")
    with rig.cyrus.imap("zoe") as imap:
        imap.fill("shared", [message("shared%d" % n) for n in range(3)])
    client = rig.cyrus.rolling(rig.to)
    try:
        client.drain()
    finally:
        client.stop()
    rig.whole(USER, shared=["shared"])
    return rig


def restore(rig, to, *args, code=0):
    done = rig.to.tool("restore", "-j", "--to", to, *args)
    expect(done.code == code, "restore ends with %d" % code, [str(done)[-2000:]])
    return json.loads(done.out)["users"]


def brought(users):
    return sum(box["brought"] for user in users for box in user["mailboxes"])


def arrived(cyrus):
    with cyrus.imap(USER) as imap:
        return {name: sorted(m["sha1"] for m in imap.messages(name).values()) for name in ("INBOX", "INBOX/x.y")}


@case("PLAIN and SCRAM, on the replication port and in imapd; names with dots and domains")
def logins(rig):
    expected = arrived(rig.cyrus)
    for mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-1"):
        new = Open(name="login", sasl_mech_list=mechanism, virtdomains="userid", defaultdomain="home.example")
        try:
            told = restore(rig, "csync://127.0.0.1:%d" % new.csync_port, "--in-place", USER)
            expect_equal(brought(told), 10, mechanism + " on the replication port")
            told = restore(rig, "imap://127.0.0.1:%d" % new.imap_port, "--prefix", "again", USER)
            expect_equal(brought(told), 10, mechanism + " in imapd")
            if mechanism == "PLAIN":
                expect_equal(arrived(new), expected, "what arrived")
        finally:
            new.stop()


@case("a server with which we have nothing in common: said clearly")
def nothing(rig):
    new = Open(name="nothing", sasl_mech_list="EXTERNAL")
    try:
        done = rig.to.tool("restore", "--to", "csync://127.0.0.1:%d" % new.csync_port, USER)
        expect_equal((done.code, "no way to log in" in done.err), (78, True), str(done))
        done = rig.to.tool("restore", "-A", "--jobs", "1", "--to", "csync://127.0.0.1:%d" % new.csync_port)
        expect_equal((done.code, done.err.count("no way to log in"), "not begun" in done.err), (1, 1, True), str(done))
    finally:
        new.stop()


@case("shared mailboxes, with ACL and limit; another partition")
def shared(rig):
    new = Cyrus(name="shared", virtdomains="userid", defaultdomain="home.example")
    try:
        make = new.dir + "/tree/second"
        sandbox.make_dir(make)
        new.options["partition-second"] = make
        new._write_conf(new.conf, {})
        told = restore(rig, "unix:" + new.csync_socket, "--in-place", "--partition", "second", "-m", "shared")
        expect_equal(brought(told), 3, "messages")
        before, after = (c.dump([], ["shared"])["mailboxes"]["shared"] for c in (rig.cyrus, new))
        expect_equal((after["acl"], after["partition"]), (before["acl"], "second"), "ACL and partition")
        wire = new.csync()
        try:
            quota = dict(wire.command("GET QUOTA", "shared"))["QUOTA"]
        finally:
            wire.close()
        expect_equal(int(quota["STORAGE"]), 7777, "limit")
    finally:
        new.stop()


@case("all into one mailbox: one's own, or a shared one that is there, but none is made")
def into(rig):
    new = Cyrus(name="into", virtdomains="userid", defaultdomain="home.example")
    try:
        new.user(USER)
        with new.imap("admin") as imap:
            imap.create("shared")
            imap.setacl("shared", "anyone", "lrswip")
        for to in ("unix:" + new.csync_socket, "imap://127.0.0.1:%d" % new.imap_port):
            own = "a.b" + to[:4]
            told = restore(rig, to, "--into", own, USER)
            expect_equal(brought(told), 10, "into a folder of one's own")
            told = restore(rig, to, "--into", "INBOX/" + own, USER)
            expect_equal(brought(told), 0, "which may be said in another way")
            with new.imap(USER) as imap:
                expect_equal(len(imap.messages("INBOX/" + own)), 10, "it is below INBOX")
            told = restore(rig, to, "--into", "/nowhere", USER, code=1)
            expect("is not made" in told[0]["mailboxes"][0]["failed"][0]["why"], "no shared one is made", [str(told)])
        told = restore(rig, to, "--into", "/shared", USER)
        expect_equal(brought(told), 10, "into a shared one")
        with new.imap("admin") as imap:
            expect_equal([n for n in imap.list() if not n.startswith("user/")], ["shared"], "shared ones")
    finally:
        new.stop()


@case("the old restore's command line, under its name")
def old(rig):
    link = rig.to.dir + "/restore"
    os.symlink(rig.to.path, link)
    new = Cyrus(name="old", virtdomains="userid", defaultdomain="home.example")
    try:
        argv = [link, "-C", rig.to.conf, "-v", "-a", new.csync_socket, USER]
        done = run_command(argv)
        expect(done.code == 0, "restore -a", [str(done)])
        expect_equal(arrived(new), arrived(rig.cyrus), "what arrived")
        done = run_command([link, "-C", rig.to.conf, "-n", "-x", new.csync_socket, "-u", USER, "user/b.c@dom.example"])
        expect(done.code == 0, "restore -n -x", [str(done)])
        done = run_command([link, "-C", rig.to.conf, "-D", "-a", new.csync_socket, USER])
        expect_equal((done.code, "no equal" in done.err), (64, True), "what has no equal")
    finally:
        new.stop()


@case("who restored what is in the system's log")
def logged(rig):
    restore(rig, "unix:" + rig.cyrus.csync_socket, "--prefix", "logged", USER, "INBOX")
    text = sandbox.syslog_text("")
    expect("restore from=<%s> user=<%s> to=<unix:" % (USER, USER) in text, "it is logged", text.splitlines()[-5:])


run(setup, Rig.close)
