"""A private Dovecot: another IMAP server than Cyrus, to restore to.

Debian's package and that of Cyrus exclude each other, so contrib/install-deps unpacks it
into a directory of its own, to which a link in /usr/lib leads. It runs as the user cyrus, on loopback, with users from a file;
`admin` is its master user and may act for others.
"""

import glob
import os
import signal
import subprocess

from . import sandbox
from .imap import Imap
from .sandbox import Process, free_port, make_dir, temp_dir, wait_for, write
from .server import PASSWORD

UNPACKED = "/usr/local/lib/cyr_backup-test/dovecot"


def prefix():
    """Where Dovecot is, or None."""
    for path in ("", UNPACKED):
        if os.access(path + "/usr/sbin/dovecot", os.X_OK):
            return path
    return None


def problem():
    """Why there is no Dovecot to test with, or None."""
    if sandbox.problem():
        return sandbox.problem()
    where = prefix()
    if where is None:
        return "Dovecot is not there: contrib/install-deps"
    told = subprocess.run([where + "/usr/sbin/dovecot", "--version"], env=environment(where), capture_output=True)
    version = told.stdout.decode().split(" ")[0].strip()
    return None if version.startswith("2.3.") else "Dovecot %s: the settings here are for 2.3" % version


def environment(where):
    """With the libraries of one that is unpacked."""
    env = dict(os.environ)
    if where:
        folders = [where + "/usr/lib/dovecot"] + glob.glob(where + "/usr/lib/*-linux-gnu*")
        env["LD_LIBRARY_PATH"] = ":".join(folders)
    return env


CONF = """
protocols = imap
listen = 127.0.0.1
base_dir = {dir}/run
state_dir = {dir}/state
log_path = {dir}/log
libexec_dir = {prefix}/usr/lib/dovecot
mail_plugin_dir = {prefix}/usr/lib/dovecot/modules
import_environment = LD_LIBRARY_PATH TZ
default_internal_user = cyrus
default_internal_group = mail
default_login_user = cyrus
first_valid_uid = 1
ssl = no
disable_plaintext_auth = no
auth_mechanisms = {mechanisms}
mail_location = {location}
mail_max_userip_connections = 100
{more}
namespace inbox {{
  inbox = yes
  separator = {separator}
  prefix = {names}
}}
passdb {{
  driver = passwd-file
  master = yes
  args = scheme=PLAIN {dir}/masters
}}
passdb {{
  driver = passwd-file
  args = scheme=PLAIN {dir}/users
}}
userdb {{
  driver = passwd-file
  args = {dir}/users
  default_fields = uid=cyrus gid=mail home={dir}/home/%u
}}
service imap-login {{
  chroot =
  inet_listener imap {{
    port = {port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service anvil {{
  chroot =
}}
service stats {{
  chroot =
}}
"""


class Dovecot:
    """Runs until `stop`; options: separator, names (what names begin with), mechanisms, location
    of the mail, and `more` lines of configuration."""

    def __init__(self, users=(), separator="/", names="", mechanisms="plain", location=None, more=""):
        where = prefix()
        self.dir = temp_dir("cyrusrig-dovecot-")
        self.port = free_port()
        for part in ("run", "state", "home", "mail"):
            make_dir(self.dir + "/" + part)
        write(self.dir + "/masters", "admin:%s\n" % PASSWORD)
        write(self.dir + "/users", "".join("%s:%s::::::\n" % (u, PASSWORD) for u in users))
        conf = CONF.format(
            dir=self.dir,
            prefix=where,
            port=self.port,
            separator=separator,
            names=names,
            mechanisms=mechanisms,
            location=location or "maildir:%s/mail/%%u" % self.dir,
            more=more,
        )
        self.conf = write(self.dir + "/dovecot.conf", conf)
        env = environment(where)
        # What dovecot does first itself, but with the path of an installed doveconf.
        argv = [where + "/usr/bin/doveconf", "-f", "service=master", "-c", self.conf, "-m", "master"]
        argv += ["-e", where + "/usr/sbin/dovecot", "-F", "-c", self.conf]
        self.process = Process(sandbox.as_cyrus(argv), self.dir + "/out", env=env)
        try:
            wait_for(
                lambda: not self.process.running() or sandbox.listening(("127.0.0.1", self.port)),
                20,
                "Dovecot",
            )
        except TimeoutError as why:
            raise RuntimeError("%s\n%s" % (why, self.said())) from why
        if not self.process.running():
            raise RuntimeError("Dovecot ended\n" + self.said())

    def said(self):
        """What it has logged."""
        out = self.process.output()
        if os.path.exists(self.dir + "/log"):
            with open(self.dir + "/log", errors="replace") as file:
                out += file.read()[-3000:]
        return out

    def url(self):
        return "imap://127.0.0.1:%d" % self.port

    def imap(self, user):
        return Imap(self.port, user, PASSWORD)

    def kill_sessions(self):
        """Kills the processes that serve somebody who is logged in."""
        pid = self.process.pid
        with open("/proc/%d/task/%d/children" % (pid, pid)) as file:
            children = file.read().split()
        for child in children:
            try:
                with open("/proc/%s/comm" % child) as file:
                    if file.read().strip() == "imap":
                        os.kill(int(child), signal.SIGKILL)
            except (FileNotFoundError, ProcessLookupError):
                pass

    def stop(self):
        self.process.stop()
