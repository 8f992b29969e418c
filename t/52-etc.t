#!/usr/bin/env python3
"""The examples in etc/ work: they are started with nothing changed but places, ports and
the name in syslog, and a real sync_client sends to what they start."""

import os
import re
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *
from cyrusrig import sandbox
from cyrusrig.receiver import binary
from cyrusrig.sandbox import BIN, TOP, Process, as_cyrus, make_dir, wait_for, write

PASSWORD = "a password of many words"
LOCAL = "#backuplocal"


def example(name):
    with open(os.path.join(TOP, name), encoding="utf-8") as file:
        return file.read()


class Host:
    """A backup host set up with the files of etc/ in a private directory."""

    kind = "ours"
    ignore = ()

    def __init__(self):
        sandbox.start_syslog()
        self.dir = sandbox.temp_dir("cyrusrig-etc-")
        self.tag = "rig%d-etc" % os.getpid()
        self.port = sandbox.free_port()
        self.unix = self.dir + "/s/backup"
        self.program = self.dir + "/cyr_backup"
        self.process = None
        self.over = "tcp"
        for folder in ("conf", "backup", "s", "staging"):
            os.chmod(make_dir(os.path.join(self.dir, folder)), 0o750)
        shutil.copy(binary(), self.program)
        os.chmod(self.program, 0o755)
        self.imapd_conf = self.dir + "/imapd.conf"
        self.write_conf()

    def moved(self, text):
        """An example with our places in it."""
        for was, now in (
            ("/usr/libexec/cyr_backup", self.program),
            ("/etc/imapd.conf", self.imapd_conf),
            ("/var/lib/cyrus", self.dir + "/conf"),
            ("/var/spool/cyrus-backup", self.dir + "/backup"),
            ("/run/cyrus/socket/backup", self.unix),
            ("/run/cyr-backup/socket", self.unix),
            ("/tmp/backup", self.dir + "/staging"),
            ("127.0.0.1:2005", "127.0.0.1:%d" % self.port),
            ("syslog_prefix: cyrus", "syslog_prefix: " + self.tag),
        ):
            text = text.replace(was, now)
        return text

    def write_conf(self, change=lambda text: text):
        write(self.imapd_conf, self.moved(change(example("etc/imapd.conf"))))

    def run(self, *words, stdin=None):
        return sandbox.run([self.program, "-C", self.imapd_conf, *words], 30, stdin)

    def start(self, argv):
        self.process = Process(as_cyrus(argv), self.dir + "/output")
        wait_for(
            lambda: not self.process.running() or sandbox.listening(("127.0.0.1", self.port)), 20, "our port"
        )
        if not self.process.running():
            raise Failed("it ended at once", [self.process.output(), self.recent_log()])

    def start_master(self, cyrus_conf):
        path = write(self.dir + "/cyrus.conf", self.moved(cyrus_conf))
        self.start([BIN + "/master", "-C", self.imapd_conf, "-M", path, "-p", self.dir + "/master.pid", "-D"])

    def passwd(self):
        """Give the sender its password, once."""
        if not os.path.exists(self.dir + "/conf/backup_passwd"):
            done = self.run("passwd", "mail1", stdin=PASSWORD.encode() + b"\n")
            expect_equal((done.code, done.err), (0, ""), "passwd")

    def stop(self):
        if self.process is not None:
            self.process.stop()
            self.process = None

    # What a sender needs to know.

    def sync_host(self):
        return "127.0.0.1" if self.over == "tcp" else self.unix

    def sync_options(self):
        if self.over != "tcp":
            return {"sync_try_imap": "no"}
        return {
            "sync_port": str(self.port),
            "sync_try_imap": "no",
            "sync_authname": "mail1",
            "sync_password": PASSWORD,
        }

    def recent_log(self, lines=25):
        return sandbox.recent(self.tag, lines)


class Pair:
    def __init__(self):
        problem = sandbox.problem()
        if problem:
            raise Skip(problem)
        self.host = Host()
        self.cyrus = Cyrus()

    def close(self):
        self.host.stop()
        self.cyrus.stop()

    def sent(self, user):
        """A new user with a message goes over and is listed."""
        self.host.passwd()
        self.cyrus.user(user)
        with self.cyrus.imap(user) as imap:
            imap.append("INBOX", message("for the examples", to=user))
        self.cyrus.sync_ok(self.host, "-u", user)
        done = self.host.run("messages", user)
        expect(done.code == 0 and "user/" + user in done.out, "it is listed", [str(done)])
        done = self.host.run("list")
        expect(done.code == 0 and user in done.out and self.host.dir in done.out, "list", [str(done)])


@case("a password for the sender of etc/imapd.conf")
def password(pair):
    pair.host.passwd()
    done = pair.host.run("passwd", "-l")
    expect("mail1" in done.out, "listed", [str(done)])
    expect(os.path.exists(pair.host.dir + "/conf/backup_passwd"), "where the manual says")


@case("etc/cyrus.conf and etc/imapd.conf under master: over TCP with SCRAM")
def master(pair):
    pair.host.start_master(example("etc/cyrus.conf"))
    try:
        pair.sent("anna")
    finally:
        pair.host.stop()


@case("etc/cyrus.conf with its second line: over a UNIX socket without a password")
def master_unix(pair):
    text = example("etc/cyrus.conf")
    expect(text.count(LOCAL) == 1, "there is a second line, commented out")
    pair.host.start_master(text.replace(LOCAL, LOCAL[1:]))
    pair.host.over = "unix"
    try:
        wait_for(lambda: os.path.exists(pair.host.unix), 10, "our socket")
        pair.sent("bert")
    finally:
        pair.host.over = "tcp"
        pair.host.stop()


@case("every setting of etc/imapd.conf spelled out: started by itself")
def spelled_out(pair):
    def all_of_it(text):
        text, count = re.subn(r"(?m)^#(backup_\w+:)", r"\1", text)
        expect(count > 12, "there are settings to spell out")
        return text

    pair.host.write_conf(all_of_it)
    try:
        pair.host.start([pair.host.program, "-C", pair.host.imapd_conf, "serve"])
        pair.sent("cora")
        pair.host.over = "unix"
        pair.sent("dora")
        said = pair.host.recent_log(200)
        expect(not re.search(r"imapd\.conf:", said), "nothing to complain about", said.splitlines())
    finally:
        pair.host.over = "tcp"
        pair.host.stop()
        pair.host.write_conf()


@case("the systemd units name what etc/imapd.conf and the program know")
def units(pair):
    service, conf = example("etc/cyr-backup.service"), example("etc/imapd.conf")
    command = re.search(r"^ExecStart=(.*)$", service, re.M).group(1).split()
    done = sandbox.run([pair.host.program, *command[1:], "-h"], 20)
    expect_equal(done.code, 0, "ExecStart is understood")
    places = re.search(r"^ReadWritePaths=(.*)$", service, re.M).group(1).split()
    wanted = re.findall(r"(?m)^(?:configdirectory|backuppartition-\w+): (.*)$", conf)
    expect_equal(sorted(places), sorted(wanted), "ReadWritePaths")
    port = re.search(r"(?m)^ListenStream=(.*)$", example("etc/cyr-backup.socket")).group(1)
    expect_equal(port, re.search(r"(?m)^#backup_listen: (.*)$", conf).group(1), "ListenStream")
    # These two must not be tried again: a wrong command line, a wrong configuration.
    statuses = re.search(r"^RestartPreventExitStatus=(.*)$", service, re.M).group(1).split()
    wrong = sandbox.run([pair.host.program, "serve", "--nonsense"], 20)
    nowhere = sandbox.run([pair.host.program, "-C", pair.host.imapd_conf, "serve"], 20)
    expect_equal([str(wrong.code), str(nowhere.code)], statuses, "exit statuses")


@case("INSTALL shows the same lines for cyrus.conf")
def install(_pair):
    squeeze = lambda text: set(re.sub(r"[# ]+", " ", line).strip() for line in text.splitlines())
    shown = {re.sub(r"^backup cmd", "backuplocal cmd", line) for line in squeeze(example("INSTALL"))}
    shown |= squeeze(example("INSTALL"))
    lines = [line for line in squeeze(example("etc/cyrus.conf")) if line.startswith("backup") and "cmd=" in line]
    expect_equal(len(lines), 2, "lines of etc/cyrus.conf")
    expect_none([line for line in lines if line not in shown], "not in INSTALL")


run(lambda: Pair(), Pair.close)
