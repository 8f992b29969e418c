#!/usr/bin/env python3
"""Restarts of the receiver under rolling traffic: nothing is lost, nobody has to help.
HUP under master: the rolling client never even notices. TERM: a client that waits in the
middle of a session is served or told to come back. kill -9: nothing acknowledged is lost."""

import os
import signal
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
from cyrusrig import *

TIMES = int(os.environ.get("RESTARTS", "20"))
USERS = ["anna", "bert", "cora"]
# How long a client that finds nobody waits before it knocks again, else 15 s and more.
SOON = {"sync_reconnect_maxwait": "1s"}


def setup():
    rig = start_rig()
    rig.cyrus.user(*USERS)
    rig.sync("-u", *USERS)
    return rig


class Traffic:
    """Mail that keeps coming until `stop`."""

    def __init__(self, rig):
        self.rig = rig
        self.ending = threading.Event()
        self.count = 0
        self.error = None
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()

    def work(self):
        try:
            while not self.ending.is_set():
                for user in USERS:
                    with self.rig.cyrus.imap(user) as imap:
                        imap.append("INBOX", message("traffic%d" % self.count, 2000, to=user))
                        imap.select("INBOX")
                        imap.store("*", "+FLAGS", "\\Seen")
                    self.count += 1
                self.ending.wait(0.1)
        except Exception as why:  # reported by stop()
            self.error = why

    def stop(self):
        self.ending.set()
        self.thread.join(30)
        if self.error:
            raise self.error
        expect(self.count > 5, "there was traffic", ["%d messages" % self.count])


@case("%d polite restarts under rolling traffic" % TIMES)
def restarts(rig):
    client = rig.cyrus.rolling(rig.to, **SOON)
    traffic = Traffic(rig)
    gone = 0
    try:
        for _number in range(TIMES):
            time.sleep(0.2)
            rig.to.restart()
            gone += client.restart_if_gone()
        traffic.stop()
        client.drain(60, supervised=True)
    finally:
        traffic.ending.set()
        client.stop()
    diag("%d messages, the rolling client had to be started again %d times" % (traffic.count, gone))
    rig.whole(*USERS)
    if RECEIVER == "ours":
        expect_none(rig.to.checked(USERS), "verify")


@case("%d times HUP under master: the rolling client stays" % TIMES, only=("ours",))
def hup(rig):
    to = receiver(master=True)
    try:
        rig.sync("-u", *USERS, to=to)
        client = rig.cyrus.rolling(to, **SOON)
        traffic = Traffic(rig)
        try:
            for _number in range(TIMES):
                time.sleep(0.35)
                to.process.signal(signal.SIGHUP)
            expect(client.running(), "the rolling client is still there", [client.process.output()])
            traffic.stop()
            client.drain(60)
            expect_equal(client.starts, 1, "starts of the rolling client")
        finally:
            traffic.ending.set()
            client.stop()
        rig.whole(*USERS, to=to)
    finally:
        to.stop()


@case("HUP under master with an idle rolling client", only=("ours",))
def hup_idle(rig):
    to = receiver(master=True)
    try:
        rig.sync("-u", *USERS, to=to)
        client = rig.cyrus.rolling(to, **SOON)
        try:
            for number in range(2):
                with rig.cyrus.imap("anna") as imap:
                    imap.append("INBOX", message("idle%d" % number))
                client.drain(30)
                to.process.signal(signal.SIGHUP)
                time.sleep(2.5)
                expect(client.running(), "the idle client is still there after HUP %d" % number)
            with rig.cyrus.imap("anna") as imap:
                imap.append("INBOX", message("after idling"))
            client.drain(30)
            expect(client.running(), "the client is still there", [client.process.output()])
        finally:
            client.stop()
        rig.whole(*USERS, to=to)
    finally:
        to.stop()


@case("a restart with an idle rolling client: nothing is lost")
def idle(rig):
    # The cases before may have sent the log's work to another receiver.
    rig.sync("-u", *USERS)
    client = rig.cyrus.rolling(rig.to, **SOON)
    try:
        with rig.cyrus.imap("bert") as imap:
            imap.append("INBOX", message("before idling"))
        client.drain(30)
        time.sleep(1.5)
        if RECEIVER == "ours":
            # The drain waits for the idle client's next command: let it come.
            rig.to.process.signal(signal.SIGTERM)
            time.sleep(0.5)
        else:
            rig.to.stop()
        with rig.cyrus.imap("bert") as imap:
            imap.append("INBOX", message("while going down"))
        if RECEIVER == "ours":
            expect(rig.to.process.wait(30) is not None, "the server ends once the client has been told")
            expect_equal(rig.to.process.wait(1), 0, "its exit status")
            rig.to.kill()
        rig.to.start()
        client.drain(60, supervised=True)
    finally:
        client.stop()
    rig.whole(*USERS)


@case("%d times kill -9 under rolling traffic" % (TIMES // 2), only=("ours",))
def killed(rig):
    rig.sync("-u", *USERS)
    client = rig.cyrus.rolling(rig.to, **SOON)
    traffic = Traffic(rig)
    try:
        for number in range(TIMES // 2):
            time.sleep(0.3 + 0.07 * number)
            rig.to.kill()
            rig.to.start()
            client.restart_if_gone()
        traffic.stop()
        client.drain(60, supervised=True)
    finally:
        traffic.ending.set()
        client.stop()
    rig.whole(*USERS)
    expect_none(rig.to.checked(USERS), "verify")


run(setup, Rig.close, time_limit=900)
