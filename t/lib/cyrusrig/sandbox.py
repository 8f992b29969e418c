"""Private directories, ports, processes, and one shared sink for syslog.

Everything lives below one directory on the RAM disk (`CYRUSRIG_DIR`, default
/dev/shm), owned by cyrus:mail, and is removed at exit unless `KEEP=1` is set. Only
processes started here are ever signalled, by pid or by their own process group.
"""

import atexit
import fcntl
import grp
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
BIN = "/usr/lib/cyrus/bin"
SBIN = "/usr/sbin"

_dirs = []
_processes = []


def problem():
    """Why the rig cannot run here, or None."""
    if os.geteuid() != 0:
        return "needs root to become the cyrus user"
    for program in ("master", "imapd", "sync_client", "sync_server"):
        if not os.path.exists(os.path.join(BIN, program)):
            return "%s/%s is not installed" % (BIN, program)
    try:
        pwd.getpwnam("cyrus")
    except KeyError:
        return "there is no user cyrus"
    return None


def as_cyrus(argv):
    """`argv` run as user cyrus, group mail."""
    return ["setpriv", "--reuid=cyrus", "--regid=mail", "--init-groups", "--"] + list(argv)


def owned(path):
    """Give a path to cyrus:mail."""
    os.chown(path, pwd.getpwnam("cyrus").pw_uid, grp.getgrnam("mail").gr_gid)
    return path


def make_dir(path):
    """A directory (parents too) that belongs to cyrus."""
    if not os.path.isdir(path):
        make_dir(os.path.dirname(path))
        os.mkdir(path, 0o755)
        owned(path)
    return path


def write(path, text):
    """Write a file for cyrus to read."""
    with open(path, "w") as out:
        out.write(text)
    return owned(path)


def temp_dir(prefix="cyrusrig-"):
    """A new private directory, removed at exit unless KEEP is set."""
    where = os.environ.get("CYRUSRIG_DIR")
    if not where:
        where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()
    path = tempfile.mkdtemp(prefix=prefix, dir=where)
    os.chmod(path, 0o755)
    owned(path)
    _dirs.append(path)
    return path


def free_port():
    """A loopback port nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Process:
    """A child in a process group of its own."""

    def __init__(self, argv, log, env=None):
        self.log_path = log
        self.argv = argv
        with open(log, "ab") as out:
            self.child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=env,
                start_new_session=True,
            )
        self.pid = self.child.pid
        _processes.append(self)

    def running(self):
        return self.child.poll() is None

    def output(self):
        with open(self.log_path, "rb") as file:
            return file.read().decode(errors="replace")

    def wait(self, timeout):
        """Exit status, or None if it still runs after `timeout` seconds."""
        try:
            return self.child.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def signal(self, number):
        if self.running():
            os.kill(self.pid, number)

    def stop(self, timeout=20):
        """TERM, and KILL for what is left of the group after `timeout` s."""
        self.signal(signal.SIGTERM)
        status = self.wait(timeout)
        self.kill()
        return status

    def kill(self):
        """KILL the whole group; the group's id is ours since start_new_session."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        self.child.wait()
        if self in _processes:
            _processes.remove(self)


class Result:
    """What a finished command left: `code` (None: time limit), `out`, `err`."""

    def __init__(self, argv, code, out, err, seconds):
        self.argv = argv
        self.code = code
        self.out = out
        self.err = err
        self.seconds = seconds

    def __str__(self):
        ended = "time limit" if self.code is None else "exit %d" % self.code
        text = "%s: %s" % (" ".join(self.argv), ended)
        for stream in (self.out, self.err):
            if stream.strip():
                text += "\n" + stream.strip()[-3000:]
        return text


def run(argv, timeout=60, stdin=None, cyrus=True, env=None):
    """Run to the end under a hard limit; never raises for an exit status."""
    argv = [str(a) for a in argv]
    began = time.monotonic()
    child = subprocess.Popen(
        as_cyrus(argv) if cyrus else argv,
        stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
        start_new_session=True,
    )
    try:
        out, err = child.communicate(stdin, timeout)
        code = child.returncode
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        out, err = child.communicate()
        code = None
    return Result(
        argv,
        code,
        out.decode(errors="surrogateescape"),
        err.decode(errors="replace"),
        time.monotonic() - began,
    )


def wait_for(condition, timeout, what):
    """Poll until `condition()` is true; its value. Raises TimeoutError."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise TimeoutError("after %s s: %s" % (timeout, what))
        time.sleep(0.05)


def listening(address):
    """Does somebody accept at this socket path or (host, port)?"""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as probe:
        probe.settimeout(2)
        try:
            probe.connect(address)
            return True
        except OSError:
            return False


def unix_listening(path):
    """Is there a listening socket at the path? Asked of the kernel, not of it."""
    with open("/proc/net/unix") as table:
        for line in table:
            parts = line.split()
            # Flags 00010000 is __SO_ACCEPTCON.
            if parts[-1] == path and parts[3] == "00010000":
                return True
    return False


def tcp_listening(port):
    """Is there an IPv4 listener at the port? Asked of the kernel, not of it."""
    with open("/proc/net/tcp") as table:
        return any(":%04X" % port == p[1][-5:] and p[3] == "0A" for p in map(str.split, table))


def clean_up():
    """Stop what still runs and remove the directories."""
    for process in list(_processes):
        process.kill()
    if os.environ.get("KEEP"):
        for path in _dirs:
            print("# kept: " + path, file=sys.stderr)
    else:
        for path in _dirs:
            shutil.rmtree(path, ignore_errors=True)
    _dirs.clear()


atexit.register(clean_up)


# -- syslog -------------------------------------------------------------------
#
# Cyrus says why only to syslog, and a container has none. The first rig on the
# machine starts a small daemon on /dev/log; every rig holds a shared lock while it
# lives, and the daemon leaves when nobody does. Each instance has a syslog_prefix of
# its own, so one file serves all. Somebody else's /dev/log is left alone: then
# there are no reasons to read, and `syslog_text` is empty.

_LOG_DIR = "/run/cyrusrig"
_LOG_FILE = _LOG_DIR + "/syslog"
_users_lock = None


def _sink_alive():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect("/dev/log")
            return True
        except OSError:
            return False


def start_syslog():
    """Make sure that somebody reads /dev/log."""
    global _users_lock
    if _users_lock is not None or os.geteuid() != 0:
        return
    os.makedirs(_LOG_DIR, exist_ok=True)
    _users_lock = open(_LOG_DIR + "/users", "a")
    fcntl.flock(_users_lock, fcntl.LOCK_SH)
    with open(_LOG_DIR + "/start", "a") as start:
        fcntl.flock(start, fcntl.LOCK_EX)
        if not _sink_alive():
            subprocess.Popen(
                [sys.executable, "-c", _SINK, _LOG_DIR],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                close_fds=True,
                start_new_session=True,
            )
            end = time.monotonic() + 5
            while not _sink_alive() and time.monotonic() < end:
                time.sleep(0.02)
    _listen()


_heard = []
_heard_to = None


def _listen():
    """Lines of this process' instances, read on from where we were."""
    global _heard_to
    mark = b"rig%d-" % os.getpid()
    try:
        with open(_LOG_FILE, "rb") as file:
            size = file.seek(0, 2)
            if _heard_to is None or _heard_to > size:
                # What was before us is nobody's here; a smaller file has begun anew.
                _heard_to = 0 if _heard_to else size
            file.seek(_heard_to)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                _heard_to += len(line)
                if mark in line:
                    _heard.append(line.decode(errors="replace").rstrip())
    except OSError:
        pass
    return _heard


def syslog_text(prefix):
    """The lines so far of the instance with this syslog_prefix, which begins `rigPID-`."""
    return "\n".join(line for line in _listen() if prefix + "/" in line)


_NOISE = re.compile(r"ctl_cyrusdb|checkpointed|login: |USAGE |IDLE: error|skipstamp|locking disabled|: executed|about to exec|creating sql_db")


def recent(prefix, lines=25):
    """The last lines of an instance that may tell why something failed."""
    text = [line for line in syslog_text(prefix).splitlines() if not _NOISE.search(line)]
    return "\n".join(text[-lines:])


_SINK = r"""
import fcntl, os, socket, sys
where = sys.argv[1]
try:
    os.unlink('/dev/log')
except FileNotFoundError:
    pass
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
sock.bind('/dev/log')
os.chmod('/dev/log', 0o666)
sock.settimeout(1)
out = open(where + '/syslog', 'wb', 0)
users = open(where + '/users', 'a')
start = open(where + '/start', 'a')
while True:
    try:
        out.write(sock.recv(65536).rstrip(b'\n\0') + b'\n')
        if out.tell() > 100000000:
            # A program that loops must not fill the memory.
            out.seek(0)
            out.truncate()
        continue
    except socket.timeout:
        pass
    fcntl.flock(start, fcntl.LOCK_EX)
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fcntl.flock(start, fcntl.LOCK_UN)
        continue
    os.unlink('/dev/log')
    sys.exit(0)
"""
