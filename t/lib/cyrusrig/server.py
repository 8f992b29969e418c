"""A private Cyrus IMAP server: Debian's own programs under Debian's own master.

    cyrus = Cyrus(delete_mode='immediate', channels=['one', 'two'])
    cyrus.user('anna')
    with cyrus.imap('anna') as imap: imap.append('INBOX', message(1))
    cyrus.sync(receiver, '-u', 'anna').code
    cyrus.stop()

Passwords are all `secret`; `admin` is the administrator. Nothing reads /etc/imapd.conf:
every command line carries its own `-C`, because master does not pass it on.
"""

import json
import os
import shutil
import socket
import time

from . import sandbox
from .csync import Csync
from .imap import Imap
from .tap import Failed
from .sandbox import BIN, Process, Result, make_dir, run, wait_for, write

PASSWORD = "secret"
_count = 0


class Cyrus:
    """One server tree. Keyword arguments become imapd.conf lines, except:
    `channels` (names of sync log channels; '' is the unnamed one, always there),
    `name`, `start`, and `services`: further (name, program, port) on loopback, whose own
    options begin with the name and an underscore."""

    def __init__(self, name=None, channels=(), start=True, services=(), **options):
        global _count
        _count += 1
        sandbox.start_syslog()
        self.name = name or "mail%d" % _count
        self.tag = "rig%d-%s" % (os.getpid(), self.name)
        self.dir = sandbox.temp_dir("cyrusrig-%s-" % self.name)
        self.conf = self.dir + "/imapd.conf"
        self.cyrus_conf = self.dir + "/cyrus.conf"
        self.tree = self.dir + "/tree"
        self.config = self.tree + "/conf"
        self.csync_socket = self.dir + "/sock/csync"
        self.lmtp_socket = self.dir + "/sock/lmtp"
        self.imap_port = sandbox.free_port()
        self.sieve_port = sandbox.free_port()
        self.channels = list(channels)
        self.services = list(services)
        self.master = None
        self.clients = 0
        for part in ("conf", "spool", "sieve"):
            make_dir("%s/%s" % (self.tree, part))
        for part in ("sock", "tmp", "log"):
            make_dir("%s/%s" % (self.dir, part))
        # Locks and the like are made at start-up: a tree restored from a copy has all it needs.
        for part in ("db", "proc", "lock", "log", "sync", "user", "quota", "ptclient", "socket"):
            make_dir("%s/%s" % (self.config, part))
        for channel in self.channels:
            if channel:
                make_dir("%s/sync/%s" % (self.config, channel))
        self.options = {
            "configdirectory": self.config,
            "defaultpartition": "default",
            "partition-default": self.tree + "/spool",
            "sievedir": self.tree + "/sieve",
            "temp_path": self.dir + "/tmp",
            "servername": self.name + ".example.org",
            "admins": "admin cyrus",
            "proxyservers": "admin",
            "allowplaintext": "yes",
            "sasl_pwcheck_method": "auxprop",
            "sasl_auxprop_plugin": "sasldb",
            "sasl_sasldb_path": self.dir + "/sasldb",
            "sasl_mech_list": "PLAIN",
            "syslog_prefix": self.tag,
            "unixhierarchysep": "yes",
            "altnamespace": "no",
            "anyoneuseracl": "yes",
            "allowusermoves": "yes",
            "sync_log": "yes",
            "sync_try_imap": "no",
            "sync_repeat_interval": "1",
            "sync_timeout": "60",
            "lmtpsocket": self.lmtp_socket,
            "notifysocket": self.dir + "/sock/notify",
            "idlesocket": self.dir + "/sock/idle",
            "tls_server_cert": "disabled",
            "failedloginpause": "0",
            "popminpoll": "0",
            "maxlogins_per_user": "0",
        }
        if self.channels:
            logged = [c or '""' for c in self.channels]
            self.options["sync_log_channels"] = " ".join(logged)
        self.options.update({k.replace("__", "-"): str(v) for k, v in options.items()})
        self._write_conf(self.conf, {})
        self._write_cyrus_conf()
        self.passwords = set()
        self.password("admin")
        if start:
            self.start()

    # -- files and processes --------------------------------------------------

    def _write_conf(self, path, more):
        lines = dict(self.options)
        lines.update(more)
        write(path, "".join("%s: %s\n" % pair for pair in lines.items()))

    def _write_cyrus_conf(self):
        services = [
            ("imap", "imapd", "127.0.0.1:%d" % self.imap_port, "tcp4"),
            ("sieve", "timsieved", "127.0.0.1:%d" % self.sieve_port, "tcp4"),
            ("csync", "sync_server", self.csync_socket, "tcp"),
            ("lmtp", "lmtpd", self.lmtp_socket, "tcp"),
        ]
        services += [(name, program, "127.0.0.1:%d" % port, "tcp4") for name, program, port in self.services]
        text = 'START {\n recover cmd="%s/ctl_cyrusdb -C %s -r"\n}\nSERVICES {\n' % (BIN, self.conf)
        for name, program, listen, proto in services:
            text += ' %s cmd="%s/%s -C %s" listen="%s" proto="%s" prefork=0\n' % (
                name,
                BIN,
                program,
                self.conf,
                listen,
                proto,
            )
        write(self.cyrus_conf, text + "}\nEVENTS {\n}\n")

    def password(self, user):
        """Let `user` log in. sasldb keys carry a realm: set all that may be asked for."""
        if user in self.passwords:
            return
        name, _at, domain = user.partition("@")
        realms = [domain] if domain else [self.options["servername"], socket.gethostname()]
        for realm in dict.fromkeys(realms):
            done = run(
                ["/usr/sbin/saslpasswd2", "-p", "-c", "-f", self.dir + "/sasldb", "-u", realm, name],
                stdin=PASSWORD.encode(),
                cyrus=False,
            )
            if done.code != 0:
                raise RuntimeError(str(done))
        sandbox.owned(self.dir + "/sasldb")
        self.passwords.add(user)

    def start(self):
        """Start master and wait until IMAP answers."""
        self.master = Process(
            sandbox.as_cyrus(
                [BIN + "/master", "-C", self.conf, "-M", self.cyrus_conf, "-p", self.dir + "/master.pid", "-D"]
            ),
            self.dir + "/log/master",
        )
        try:
            wait_for(
                lambda: not self.master.running() or sandbox.listening(("127.0.0.1", self.imap_port)),
                20,
                "IMAP port of " + self.name,
            )
            if not self.master.running():
                raise TimeoutError("master ended")
        except TimeoutError as why:
            raise RuntimeError("%s\n%s\n%s" % (why, self.master.output(), self.syslog())) from why
        return self

    def stop(self):
        """Stop the server; the tree stays until exit."""
        if self.master is not None:
            self.master.stop()
            self.master = None

    def syslog(self):
        """What this instance's programs have said to syslog."""
        return sandbox.syslog_text(self.tag)

    def tool(self, program, *args, timeout=120, stdin=None):
        """Run a Cyrus program with our configuration."""
        return run([BIN + "/" + program, "-C", self.conf] + list(args), timeout, stdin)

    def snapshot(self):
        """A copy of the whole tree, taken while the server is down for a moment."""
        up = self.master is not None
        self.stop()
        copy = sandbox.temp_dir("cyrusrig-copy-") + "/tree"
        run(["cp", "-a", self.tree, copy], cyrus=False)
        if up:
            self.start()
        return copy

    def restore(self, copy):
        """Put an older copy back, as an administrator would after a disaster."""
        up = self.master is not None
        self.stop()
        shutil.rmtree(self.tree)
        run(["cp", "-a", copy, self.tree], cyrus=False)
        if up:
            self.start()

    # -- filling --------------------------------------------------------------

    def imap(self, user, proxy=True):
        """A connection as `user`, by the admin's right to act for others."""
        if user == "admin" or not proxy:
            self.password(user)
            return Imap(self.imap_port, user, PASSWORD)
        return Imap(self.imap_port, "admin", PASSWORD, as_user=user)

    def user(self, *users):
        """Create users' INBOXes."""
        with self.imap("admin") as imap:
            for user in users:
                imap.create(self.inbox(user))

    @staticmethod
    def inbox(user, folder=None):
        """Admin name: 'anna@example.com', 'Sent' -> user/anna/Sent@example.com"""
        name, at, domain = user.partition("@")
        return "user/" + name + ("/" + folder if folder else "") + at + domain

    def sieve_upload(self, user, scripts, active=None):
        """PUTSCRIPT each of {name: text}; `active` may be '' for none."""
        from .managesieve import ManageSieve

        with ManageSieve(self.sieve_port, "admin", PASSWORD, user) as sieve:
            for name, text in scripts.items():
                sieve.put(name, text)
            if active is not None:
                sieve.activate(active)

    def sieve_delete(self, user, name):
        from .managesieve import ManageSieve

        with ManageSieve(self.sieve_port, "admin", PASSWORD, user) as sieve:
            sieve.delete(name)

    def expire(self, *args):
        """cyr_expire; without arguments: really remove all that is expunged or deleted."""
        done = self.tool("cyr_expire", *(args or ("-E", "0", "-X", "0", "-D", "0")))
        if done.code != 0:
            raise RuntimeError(str(done))
        return done

    # -- what it holds --------------------------------------------------------

    def csync(self):
        """A replication connection to this server's own sync_server."""
        return Csync(self.csync_socket)

    def mailbox_names(self):
        """Internal names of all mailboxes, deleted ones included."""
        done = self.tool("ctl_mboxlist", "-d")
        if done.code != 0:
            raise RuntimeError(str(done))
        return sorted(json.loads(done.out))

    def shared_names(self):
        """Internal names of mailboxes without an owner."""
        shared = []
        for name in self.mailbox_names():
            local = name.split("!", 1)[-1]
            if not local.startswith(("user.", "DELETED.user.")):
                shared.append(name)
        return shared

    def dump(self, users=(), shared=()):
        """Everything replication could know; see csync.Csync.dump."""
        wire = self.csync()
        try:
            return wire.dump(users, shared)
        finally:
            wire.close()

    def state(self, users, shared=()):
        """The whole state for before/after comparison: the replication view and what
        IMAP shows, with the SHA-1 of each body as it is really delivered."""
        state = self.dump(users, shared)
        state["imap"] = {}
        for user in users:
            with self.imap(user) as imap:
                for name in imap.list():
                    if name.startswith("user/"):
                        continue
                    label = "%s:%s" % (user, name)
                    try:
                        state["imap"][label] = dict(imap.status(name), messages=imap.messages(name))
                    except Exception as why:  # a folder shared without read rights
                        state["imap"][label] = {"unreadable": str(why)}
        return state

    # -- replication ----------------------------------------------------------

    def client_conf(self, receiver, **more):
        """An imapd.conf of this server that sends to `receiver`."""
        self.clients += 1
        path = "%s/imapd-client%d.conf" % (self.dir, self.clients)
        lines = {"sync_host": receiver.sync_host(), "sync_authname": "admin", "sync_password": PASSWORD}
        lines.update(receiver.sync_options())
        lines.update(more)
        self._write_conf(path, lines)
        return path

    def sync(self, receiver, *args, timeout=60, **options) -> Result:
        """Run sync_client to the end under a time limit: a failing login retries for ever."""
        conf = self.client_conf(receiver, **options)
        return run([BIN + "/sync_client", "-C", conf] + list(args), timeout)

    def sync_ok(self, receiver, *args, attempts=1, **options):
        """The same, and raise unless an attempt ends with 0."""
        for _attempt in range(attempts):
            done = self.sync(receiver, *args, **options)
            if done.code == 0:
                return done
        raise Failed(
            "sync_client %s: %s" % (" ".join(args), "time limit" if done.code is None else "exit %d" % done.code),
            (done.err + self.recent_log(12) + "\n" + receiver.recent_log(12)).splitlines(),
        )

    def recent_log(self, lines=25):
        return sandbox.recent(self.tag, lines)

    def rolling(self, receiver, channel="", **options):
        """Start a rolling client in the foreground of a process of ours."""
        return Rolling(self, receiver, channel, options)

    def sync_log_path(self, channel=""):
        return self.config + "/sync/" + (channel + "/" if channel else "") + "log"


class Rolling:
    """A rolling sync_client; `drain` waits until its log is worked off."""

    def __init__(self, cyrus, receiver, channel, options):
        prefix = channel + "_" if channel else ""
        more = {prefix + "sync_repeat_interval": "1"}
        if channel:
            more[prefix + "sync_host"] = receiver.sync_host()
        more.update(options)
        self.cyrus = cyrus
        self.channel = channel
        self.starts = 0
        self.conf = cyrus.client_conf(receiver, **more)
        self.process = None
        self.start()

    def start(self):
        argv = [BIN + "/sync_client", "-C", self.conf, "-R"]
        if self.channel:
            argv += ["-n", self.channel]
        self.starts += 1
        log = "%s/log/rolling-%s" % (self.cyrus.dir, self.channel or "default")
        self.process = Process(sandbox.as_cyrus(argv), log)

    def running(self):
        return self.process.running()

    def restart_if_gone(self):
        """What master does for a DAEMON entry."""
        if not self.running():
            self.process.kill()
            self.start()
            return True
        return False

    def pending(self):
        """Files of work that is not done yet."""
        log = self.cyrus.sync_log_path(self.channel)
        folder = os.path.dirname(log)
        names = os.listdir(folder) if os.path.isdir(folder) else []
        return [n for n in names if n == "log" or n.startswith("log-")]

    def drain(self, timeout=30, supervised=False):
        """Wait until nothing is pending for a moment; raises Failed. `supervised`
        starts a client that has gone again, as master does."""
        end = time.monotonic() + timeout
        quiet = 0
        while quiet < 3:
            if supervised:
                self.restart_if_gone()
            quiet = 0 if self.pending() else quiet + 1
            if time.monotonic() > end:
                raise Failed(
                    "rolling client has not drained (%s, %s)" % (self.pending(), "running" if self.running() else "gone"),
                    self.cyrus.recent_log().splitlines(),
                )
            time.sleep(0.2)

    def stop(self):
        return self.process.stop(10)


def message(number, size=300, sender="sender@example.com", to="anna@example.org", subject=None):
    """A small well-formed message; equal arguments give equal bytes."""
    head = (
        "From: Sender <%s>\r\nTo: <%s>\r\nSubject: %s\r\nDate: Mon, 23 Nov 2026 10:00:00 +0000\r\n"
        "Message-ID: <m%s@example.com>\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n"
        % (sender, to, subject or "message %s" % number, number)
    ).encode()
    line = ("line of message %s for %s\r\n" % (number, to)).encode()
    body = line * max(1, (size - len(head)) // len(line))
    return head + body
