"""What a sync_client sends to: ours, Debian's backupd, or a plain replica.

`RECEIVER` chooses (`ours`, `backupd`, `replica`). The two others prove the rig: a
replica must pass every scenario that is about content, and backupd fails where it
is known to (the tests say so with `todo`). All have the same face:

    start() stop() restart()    sync_host() sync_options()
    dump(users, shared)         what it claims, asked over the wire
    listing(users, shared)      what its tools list (ours), else the same as dump
    data_file(user)             path of the user's log, None if it keeps none
"""

import json
import os
import shutil
import sqlite3
import time

from . import sandbox, server
from .csync import VIRTUAL, Csync, Refused
from .sandbox import BIN, Process, make_dir, run, wait_for, write
from .tap import RECEIVER, Failed, Skip

_count = 0


def receiver(name=None, **options):
    """The receiver that this run is about, started."""
    kinds = {"ours": Ours, "backupd": Backupd, "replica": Replica}
    return kinds[name or RECEIVER](**options)


def binary():
    """The program under test: $CYR_BACKUP, else the release build, else the debug one."""
    chosen = os.environ.get("CYR_BACKUP")
    for path in [chosen] if chosen else ["target/release/cyr_backup", "target/debug/cyr_backup"]:
        path = os.path.join(sandbox.TOP, path)
        if os.path.exists(path):
            return path
    raise Skip("cyr_backup is not built (%s)" % (chosen or "target/release/cyr_backup"))


class Base:
    """What the kinds share."""

    kind = None
    # Fields of compare.* that this kind does not keep.
    ignore = ()
    # Does its FULLMAILBOX tell what it holds? Ours never does, to harm no sender.
    full = True

    def __init__(self, **options):
        global _count
        _count += 1
        sandbox.start_syslog()
        self.options = options
        self.tag = "rig%d-%s%d" % (os.getpid(), self.kind, _count)

    def sync_options(self):
        return {}

    def restart(self):
        self.stop()
        self.start()

    def recent_log(self, lines=25):
        return sandbox.recent(self.tag, lines)

    def listing(self, users=(), shared=()):
        return self.dump(users, shared)["mailboxes"]

    def data_file(self, _user):
        return None

    def checked(self, _users=()):
        """Differences that the receiver's own tools find in what it keeps."""
        return []


class Replica(Base):
    """Debian's sync_server: an ordinary replica."""

    kind = "replica"

    def __init__(self, start=True, **options):
        Base.__init__(self)
        self.cyrus = server.Cyrus(start=start, **options)

    def start(self):
        self.cyrus.start()

    def stop(self):
        self.cyrus.stop()

    def snapshot(self):
        return self.cyrus.snapshot()

    def restore(self, copy):
        self.cyrus.restore(copy)

    def sync_host(self):
        return self.cyrus.csync_socket

    def csync(self):
        return self.cyrus.csync()

    def dump(self, users=(), shared=()):
        return self.cyrus.dump(users, shared)

    def recent_log(self, lines=25):
        return self.cyrus.recent_log(lines)


class _Backup(Base):
    """What ours and backupd have in common: an imapd.conf, a partition, backups.db."""

    def __init__(self, start=True, tcp=False, via=(), **options):
        """`tcp`: a loopback port as well (`self.port`). `via`: words before the command,
        for the likes of strace and prlimit."""
        Base.__init__(self, **options)
        self.via = list(via)
        self.port = sandbox.free_port() if tcp else None
        self.dir = sandbox.temp_dir("cyrusrig-%s-" % self.kind)
        self.tree = self.dir + "/tree"
        self.conf = self.dir + "/imapd.conf"
        self.socket = self.dir + "/sock/backup"
        self.process = None
        for part in ("tree/conf/db", "tree/conf/proc", "tree/conf/lock", "tree/conf/socket", "tree/backup", "sock", "tmp", "log"):
            make_dir(self.dir + "/" + part)
        self.lines = {
            "configdirectory": self.tree + "/conf",
            "defaultpartition": "default",
            "partition-default": self.dir + "/spool",
            "backuppartition-default": self.tree + "/backup",
            "backup_staging_path": self.dir + "/tmp",
            "temp_path": self.dir + "/tmp",
            "admins": "admin cyrus",
            "allowplaintext": "yes",
            "sasl_pwcheck_method": "auxprop",
            "sasl_auxprop_plugin": "sasldb",
            "sasl_sasldb_path": self.dir + "/sasldb",
            "sasl_mech_list": "PLAIN",
            "servername": "backup.example.org",
            "syslog_prefix": self.tag,
            "unixhierarchysep": "yes",
            "altnamespace": "no",
            "virtdomains": "userid",
        }
        self.lines.update({k: str(v) for k, v in options.items()})
        self.write_conf()
        if start:
            self.start()

    def write_conf(self, **more):
        self.lines.update(more)
        write(self.conf, "".join("%s: %s\n" % pair for pair in self.lines.items()))

    def sync_host(self):
        return self.socket

    def csync(self):
        return Csync(self.socket)

    def dump(self, users=(), shared=()):
        # A writer may hold the backup for a moment, the old one until it is idle.
        end = time.monotonic() + 15
        while True:
            wire = self.csync()
            try:
                return wire.dump(users, shared, self.full)
            except Refused as why:
                if "LOCKED" not in str(why) or time.monotonic() > end:
                    raise
            finally:
                wire.close()
            time.sleep(0.5)

    def data_file(self, user):
        """From backups.db, as Debian's own tool reads it."""
        return self.data_files().get(user)

    def data_files(self):
        """{key: path} of backups.db."""
        path = self.tree + "/conf/backups.db"
        if not os.path.exists(path):
            return {}
        done = run([BIN + "/cyr_dbtool", "-C", self.conf, path, "twoskip", "show"])
        return dict(line.split("\t", 1) for line in done.out.splitlines() if "\t" in line)

    def under_master(self, command):
        """Run `command` as a service on the socket under a private master."""
        cyrus_conf = self.dir + "/cyrus.conf"
        listen = [("backup", self.socket, "tcp")]
        if self.port:
            listen.append(("backuptcp", "127.0.0.1:%d" % self.port, "tcp4"))
        lines = "".join(
            ' %s cmd="%s" listen="%s" proto="%s" prefork=1 maxchild=%d\n'
            % (name, command, where, proto, self.max_children)
            for name, where, proto in listen
        )
        write(cyrus_conf, "START {\n}\nSERVICES {\n%s}\n" % lines)
        self.process = Process(
            sandbox.as_cyrus(
                self.via
                + [BIN + "/master", "-C", self.conf, "-M", cyrus_conf, "-p", self.dir + "/master.pid", "-D"]
            ),
            self.dir + "/log/master",
        )
        self.wait_ready()

    def wait_ready(self):
        try:
            wait_for(
                lambda: not self.process.running()
                or (
                    sandbox.unix_listening(self.socket)
                    and (not self.port or sandbox.tcp_listening(self.port))
                ),
                20,
                "socket of the receiver",
            )
        except TimeoutError as why:
            raise RuntimeError("%s\n%s\n%s" % (why, self.process.output(), self.recent_log())) from why
        if not self.process.running():
            raise RuntimeError("the receiver ended at once\n%s\n%s" % (self.process.output(), self.recent_log()))

    def stop(self):
        """The exit status of a polite stop, None if it had to be killed."""
        if self.process is None:
            return 0
        status = self.process.stop(30)
        self.process = None
        return status

    def kill(self):
        """No warning at all."""
        self.process.kill()
        self.process = None

    def descriptors(self):
        """How many files the processes hold open, all together."""
        family = [self.process.pid]
        for pid in family:
            with open("/proc/%d/task/%d/children" % (pid, pid)) as file:
                family += [int(word) for word in file.read().split()]
        return sum(len(os.listdir("/proc/%d/fd" % pid)) for pid in family)

    def snapshot(self):
        """A copy of everything kept, taken while the receiver is down."""
        up = self.process is not None
        self.stop()
        copy = sandbox.temp_dir("cyrusrig-copy-") + "/tree"
        run(["cp", "-a", self.tree, copy], cyrus=False)
        if up:
            self.start()
        return copy

    def restore(self, copy):
        up = self.process is not None
        self.stop()
        shutil.rmtree(self.tree)
        run(["cp", "-a", copy, self.tree], cyrus=False)
        if up:
            self.start()


class Backupd(_Backup):
    """Debian's backupd, the original: one process a connection, under master."""

    kind = "backupd"
    max_children = 20
    # It answers no QUOTA, and never says which script is active (facts of the original).
    ignore = ("quota", "active", "mboxtype")

    def start(self):
        self.under_master("%s/backupd -C %s" % (BIN, self.conf))

    def checked(self, users=()):
        done = run([BIN + "/ctl_backups", "-C", self.conf, "verify"] + (list(users) or ["-A"]))
        return [] if done.code == 0 else [str(done)]


class Ours(_Backup):
    """`cyr_backup serve` on a socket, or under master with `master=True`."""

    kind = "ours"
    max_children = 2
    full = False

    def __init__(self, master=False, start=True, env=None, **options):
        self.master = master
        self.env = env
        self.path = binary()
        _Backup.__init__(self, start=False, **options)
        if run(["test", "-x", self.path]).code != 0:
            # The cyrus user cannot reach the build directory.
            shutil.copy(self.path, self.dir + "/cyr_backup")
            self.path = self.dir + "/cyr_backup"
        if start:
            self.start()

    def start(self):
        if self.master:
            self.under_master("%s serve -C %s" % (self.path, self.conf))
            return
        words = self.via + [self.path, "serve", "-C", self.conf, "--socket", self.socket]
        if self.port:
            words += ["--listen", "127.0.0.1:%d" % self.port]
        self.process = Process(
            sandbox.as_cyrus(words),
            self.dir + "/log/serve",
            env=dict(os.environ, **self.env) if self.env else None,
        )
        self.wait_ready()

    def tool(self, *args, timeout=120, stdin=None):
        """Run a subcommand as the cyrus user."""
        return run([self.path, "-C", self.conf] + list(args), timeout, stdin)

    def has(self, command):
        """Is the subcommand there already?"""
        return self.tool(command, "--help").code == 0

    def json(self, *args):
        """The document a subcommand prints with -j."""
        done = self.tool(*args, "-j")
        if done.code != 0:
            raise RuntimeError("%s\n%s" % (done, self.recent_log()))
        try:
            document = json.loads(done.out)
        except ValueError as why:
            raise RuntimeError("not JSON (%s): %s" % (why, done)) from why
        if not isinstance(document, dict) or document.get("version") != 1:
            raise RuntimeError("no version 1 in the JSON of: %s" % done)
        return document

    def listing(self, users=(), shared=(), deleted=False, at=None):
        """{mboxname: mailbox} by `mailboxes -j` and `messages -j`, now or `at` a time."""
        found = {}
        then = ["--at", str(at)] if at else []
        wanted = [[user] for user in users] + [["-m", self.admin_name(name)] for name in shared]
        for words in wanted:
            words = words + then
            boxes = {}
            for item in self.json("mailboxes", *words)["mailboxes"]:
                if item["deleted"] is None:
                    boxes[item["uniqueid"]] = self._mailbox(item)
            more = ["--deleted"] if deleted else []
            for item in self.json("messages", *words, *more)["messages"]:
                box = boxes.get(item["uniqueid"])
                if box is None:
                    if item["expunged"] is None:
                        raise RuntimeError("message of an unlisted mailbox: %r" % item)
                    continue
                uid = int(item["uid"])
                old = box["records"].get(uid)
                if old is not None and not old["expunged"] and item["expunged"] is None:
                    raise RuntimeError("two live messages with uid %d in %s" % (uid, item["mboxname"]))
                if old is None or old["expunged"]:
                    box["records"][uid] = self._record(item)
            if not deleted:
                for item in self.json("mailboxes", *words)["mailboxes"]:
                    box = boxes.get(item["uniqueid"])
                    if box is not None and item["messages"] != len(box["records"]):
                        # Also when a client sent something in between: who waits for it looks again.
                        raise Failed(
                            "%s: mailboxes says %d messages, messages lists %d"
                            % (item["mboxname"], item["messages"], len(box["records"]))
                        )
            for box in boxes.values():
                found[box["mboxname"]] = box
        return found

    def own_listing(self, users, at=None):
        """{userid: what is the user's own} by `show -j`, now or `at` a time."""
        found = {}
        then = ["--at", str(at)] if at else []
        for user in users:
            shown = self.json("show", user, "subscriptions", "seen", "sieve", "quota", *then)
            about = {"subscriptions": {s["mboxname"] for s in shown["subscriptions"]}}
            about["seen"] = {s["uniqueid"]: (s["lastuid"], s["seenuids"] or "") for s in shown["seen"]}
            about["sieve"] = {s["filename"]: (s["guid"], int(s["active"])) for s in shown["scripts"]}
            about["quota"] = {}
            for root in shown["quota"]:
                names = set(root) - {"root", "adminname", "limit", "modseq"}
                about["quota"][root["root"]] = {name.upper(): root[name] for name in names}
            found[user] = about
        return found

    @staticmethod
    def admin_name(mboxname):
        """example.com!shared.a^b -> shared/a.b@example.com"""
        domain, _bang, local = mboxname.rpartition("!")
        local = local.replace(".", "/").replace("^", ".")
        return local + ("@" + domain if domain else "")

    @staticmethod
    def _annotations(items):
        found = set()
        for item in items or ():
            if item["entry"] not in VIRTUAL:
                value = (item["value"] or "").encode("utf-8", "surrogateescape")
                found.add((item["entry"], item["userid"] or "", value))
        return found

    def _mailbox(self, item):
        return {
            "mboxname": item["mboxname"],
            "uniqueid": item["uniqueid"],
            "uidvalidity": int(item["uidvalidity"] or 0),
            "lastuid": int(item["lastuid"] or 0),
            "highestmodseq": int(item["highestmodseq"] or 0),
            "acl": item["acl"] or "",
            "options": item["options"] or "",
            "partition": item["partition"] or "",
            "annotations": self._annotations(item["annotations"]),
            "resync": item["resync"],
            "records": {},
        }

    def _record(self, item):
        return {
            "modseq": int(item["modseq"]),
            "last_updated": int(item["last_updated"]),
            "internaldate": int(item["internaldate"]),
            "size": int(item["size"]),
            "guid": item["guid"],
            "flags": {f for f in item["flags"] if f.lower() != "\\expunged"},
            "expunged": item["expunged"] is not None,
            "annotations": self._annotations(item["annotations"]),
        }

    # -- damage; the server must be stopped ---------------------------------

    def drop_index(self, user):
        """Delete the index, its journal files too."""
        path = self.data_file(user)
        for suffix in (".index", ".index-wal", ".index-shm"):
            if os.path.exists(path + suffix):
                os.unlink(path + suffix)

    def edit_index(self, user, columns, statement):
        """Run `statement` on every table of the index that has all `columns`; `{}` in
        it is the table's name. How many rows it changed. Knows no more of the schema."""
        path = self.data_file(user) + ".index"
        changed = 0
        with sqlite3.connect(path) as index:
            tables = [row[0] for row in index.execute("select name from sqlite_master where type='table'")]
            for table in tables:
                names = {row[1] for row in index.execute('pragma table_info("%s")' % table)}
                if set(columns) <= names:
                    changed += index.execute(statement.replace("{}", '"%s"' % table)).rowcount
        index.close()
        for suffix in ("", "-wal", "-shm"):
            if os.path.exists(path + suffix):
                sandbox.owned(path + suffix)
        return changed

    def checked(self, users=()):
        """`verify` of the given users (default all), once there is such a command."""
        if not self.has("verify"):
            return []
        done = self.tool("verify", *(list(users) or ["-A"]))
        return [] if done.code == 0 else [str(done)]
