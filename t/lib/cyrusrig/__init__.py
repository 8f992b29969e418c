"""A rig for tests with real Cyrus programs; standard library only.

See tap.py for the shape of a test file, server.py for the IMAP server, receiver.py
for what it sends to, compare.py for what "equal" means, logfile.py for the bytes.
"""

from . import compare, dlist, logfile, sandbox
from .csync import Csync, Refused
from .receiver import receiver
from .rig import Rig, inject, start_rig
from .sandbox import free_port, run as run_command, temp_dir, wait_for
from .server import PASSWORD, Cyrus, message
from .tap import (
    RECEIVER,
    Failed,
    Skip,
    case,
    diag,
    expect,
    expect_equal,
    expect_none,
    run,
    skip_all,
)
