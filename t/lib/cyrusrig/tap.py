"""Test Anything Protocol for `prove`.

A test file registers cases with `@case(...)` and ends with `run()`. A case is a
function; it fails by raising (`Failed` or anything else) and every difference it
found is printed as a diagnostic. `NAME...` on the command line runs only the cases
whose title contains one of the words; `--list` prints the titles.

`todo={'backupd': 'why'}` marks a case that a receiver is known to fail: the case
is still run, and prove shows "not ok ... # TODO why" without failing the file.
`only=('ours',)` skips the case for other receivers, with the reason in the line.
"""

import os
import signal
import sys
import time
import traceback

RECEIVER = os.environ.get("RECEIVER", "ours")

_cases = []


class Failed(Exception):
    """A test's own verdict; `lines` say what differs."""

    def __init__(self, what, lines=()):
        Exception.__init__(self, what)
        self.lines = list(lines)


class Skip(Exception):
    """Raised by a case that cannot be run here; the text is the reason."""


def case(title, todo=None, only=None):
    """Register a case. `todo`: reason, or {receiver: reason}."""

    def register(function):
        _cases.append((title, function, todo, only))
        return function

    return register


def diag(text, to=None):
    """Print a diagnostic, each line with the '# ' that TAP wants."""
    for line in str(text).splitlines() or [""]:
        print("# " + line, file=to, flush=True)


def complain(text):
    """A diagnostic of a failure: on standard error, which `prove` passes on to whoever
    reads its output later, without a second run."""
    diag(text, sys.stderr)


def expect(condition, what, lines=()):
    """Fail the running case unless `condition` holds."""
    if not condition:
        raise Failed(what, lines)


def expect_equal(got, wanted, what):
    """Fail the running case unless both are equal, showing both."""
    if got != wanted:
        raise Failed(what, ["got:    %r" % (got,), "wanted: %r" % (wanted,)])


def expect_none(differences, what, limit=40):
    """Fail the running case if the list of differences is not empty."""
    if differences:
        shown = differences[:limit]
        if len(differences) > limit:
            shown.append("... and %d more" % (len(differences) - limit))
        raise Failed("%s: %d differences" % (what, len(differences)), shown)


def skip_all(reason):
    """End the whole file as skipped."""
    print("1..0 # SKIP " + reason, flush=True)
    sys.exit(0)


def run(setup=None, teardown=None, time_limit=600):
    """Run the cases; `setup()`'s result is each case's argument.

    Ends the process: 0 if every case is ok, skipped or TODO, else 1.
    """
    words = [a for a in sys.argv[1:] if not a.startswith("-")]
    chosen = [c for c in _cases if not words or any(w in c[0] for w in words)]
    if "--list" in sys.argv:
        for title, _function, _todo, _only in chosen:
            print(title)
        sys.exit(0)

    def too_long(_signal, _frame):
        raise Failed("time limit of %d s for the whole file" % time_limit)

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(time_limit)
    # A person's ^C or prove's TERM must still clean up.
    signal.signal(signal.SIGTERM, lambda _s, _f: sys.exit(143))
    bad = 0
    number = 0
    print("1..%d" % len(chosen), flush=True)
    argument = None
    try:
        if setup:
            try:
                argument = setup()
            except Skip as why:
                for title, _function, _todo, _only in chosen:
                    number += 1
                    print("ok %d - %s # SKIP %s" % (number, title, why), flush=True)
                return _end(0)
        for title, function, todo, only in chosen:
            number += 1
            if isinstance(todo, dict):
                todo = todo.get(RECEIVER)
            mark = " # TODO " + todo if todo else ""
            if only and RECEIVER not in only:
                print(
                    "ok %d - %s # SKIP not for receiver %s" % (number, title, RECEIVER),
                    flush=True,
                )
                continue
            began = time.monotonic()
            if hasattr(argument, "begin"):
                argument.begin()
            try:
                function(argument) if setup else function()
                spent = time.monotonic() - began
                print("ok %d - %s%s" % (number, title, mark), flush=True)
                if spent > 5 or os.environ.get("TIMES"):
                    diag("%.1f s" % spent)
            except Skip as why:
                print("ok %d - %s # SKIP %s" % (number, title, why), flush=True)
            except Exception as error:
                say = diag if todo else complain
                print("not ok %d - %s%s" % (number, title, mark), flush=True)
                say("%s: not ok %d: %s: %s" % (os.path.basename(sys.argv[0]), number, type(error).__name__, error))
                for line in getattr(error, "lines", ()):
                    say("  " + line)
                if argument is not None and hasattr(argument, "why"):
                    told = set(getattr(error, "lines", ()))
                    for line in argument.why():
                        if line not in told:
                            say("  " + line)
                if not isinstance(error, Failed):
                    say(traceback.format_exc())
                if not todo:
                    bad += 1
    except Exception:
        # A rig that does not come up is a failure, never a silent pass.
        complain(traceback.format_exc())
        while number < len(chosen):
            number += 1
            print("not ok %d - %s" % (number, chosen[number - 1][0]), flush=True)
        bad += 1
    finally:
        signal.alarm(0)
        if teardown and argument is not None:
            teardown(argument)
    _end(1 if bad else 0)


def _end(code):
    sys.stdout.flush()
    sys.exit(code)
