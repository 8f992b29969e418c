"""A mail server that keeps changing, decided by dice: the same dice, the same changes.

    traffic = Traffic(cyrus, users)
    traffic.change(random.Random('7/1'), 12)

What is done depends on the dice and on what was done before, never on what a backup
server answers; so a run can be played again from its seed. One thread at a time.
"""

from . import server
from .imap import No

FLAGS = ("\\Seen", "\\Flagged", "\\Answered", "\\Deleted", "\\Draft", "$Label1", "Junk")

# What everybody gets alike: one body in several mailboxes of several users.
COMMON = [server.message("newsletter %d" % n, 400 + 900 * n, to="all@example.org") for n in range(6)]


class Traffic:
    """`users`: the userids there are now; they come, go and are renamed. `gone`: those
    that were deleted. Folders are remembered here, UIDs are asked of the server."""

    def __init__(self, cyrus, users, come_and_go=True):
        self.cyrus = cyrus
        self.users = []
        self.gone = []
        self.folders = {}
        self.scripts = {}
        self.made = 0
        self.count = 0
        self.come_and_go = come_and_go
        self.unclean = False
        # (user, folder) that got their names since all was last sent: of one that is deleted
        # before its new name was sent no stock sender says that the old one is gone, either.
        self.renamed = set()
        for user in users:
            self._new(user)

    def _new(self, user):
        self.cyrus.user(user)
        self.users.append(user)
        self.folders[user] = []
        self.scripts[user] = []

    def change(self, dice, times, each=None):
        """So many changes, each of one user; `each()` is called before one and may stop
        it by returning False. Returns what was done, in words."""
        said = []
        for _ in range(times):
            if each and each() is False:
                break
            what = dice.choices(list(CHANGES), list(CHANGES.values()))[0]
            user = dice.choice(self.users)
            try:
                told = getattr(self, "_" + what)(user, dice)
                said.append("%s of %s%s" % (what, user, ": " + told if told else ""))
            except No as why:
                # A folder that is there already and the like.
                said.append("%s of %s: NO %s" % (what, user, why))
        return said

    # -- messages -------------------------------------------------------------

    def _body(self, user, dice):
        if dice.random() < 0.2:
            return dice.choice(COMMON)
        self.count += 1
        size = dice.choice((300, 300, 600, 2000, 2000, 9000, 40000, 200000 if dice.random() < 0.3 else 700))
        text = server.message("%s %d" % (user, self.count), size, to=user)
        if dice.random() < 0.3:
            # What does not shrink.
            text += b"".join(b"%x\r\n" % dice.getrandbits(280) for _ in range(size // 72))
        return text

    def _folder(self, user, dice):
        return dice.choice(["INBOX"] * 2 + self.folders[user])

    def _append(self, user, dice):
        folder = self._folder(user, dice)
        bodies = [self._body(user, dice) for _ in range(dice.choice((1, 1, 1, 2, 3, 8)))]
        flags = " ".join(f for f in FLAGS[:3] if dice.random() < 0.2)
        with self.cyrus.imap(user) as imap:
            imap.fill(folder, bodies, flags)
        return "%d into %s" % (len(bodies), folder)

    def _some(self, imap, folder, dice, share):
        """A set of UIDs of the folder, as a string; '' if there are none."""
        imap.select(folder)
        uids = []
        for pieces in imap.command("UID SEARCH ALL"):
            parts = imap.parse(pieces)
            if parts[1:2] == [b"SEARCH"]:
                uids += [int(word) for word in parts[2:]]
        return ",".join(str(uid) for uid in sorted(uids) if dice.random() < share)

    def _flag(self, user, dice):
        folder = self._folder(user, dice)
        with self.cyrus.imap(user) as imap:
            uids = self._some(imap, folder, dice, dice.choice((0.1, 0.5, 1)))
            if uids:
                imap.store(uids, dice.choice(("+FLAGS", "-FLAGS", "FLAGS")), dice.choice(FLAGS))
        return "%s in %s" % (uids, folder)

    def _expunge(self, user, dice):
        folder = self._folder(user, dice)
        with self.cyrus.imap(user) as imap:
            uids = self._some(imap, folder, dice, dice.choice((0.1, 0.4, 0.7)))
            if uids:
                imap.expunge(uids)
        return "%s in %s" % (uids, folder)

    def _move(self, user, dice):
        return self._transfer(user, dice, "move")

    def _copy(self, user, dice):
        return self._transfer(user, dice, "copy")

    def _transfer(self, user, dice, how):
        one, two = self._folder(user, dice), self._folder(user, dice)
        with self.cyrus.imap(user) as imap:
            uids = self._some(imap, one, dice, dice.choice((0.1, 0.3)))
            if uids and one != two:
                getattr(imap, how)(uids, two)
        return "%s from %s to %s" % (uids, one, two)

    def _annotation(self, user, dice):
        folder = self._folder(user, dice)
        with self.cyrus.imap(user) as imap:
            uids = self._some(imap, folder, dice, 0.1)
            if uids:
                # Shared: Cyrus 3.6 states a wrong sum over private ones of a user it has renamed.
                imap.annotate(uids, "/comment", "value.shared", "remark %d\nsecond line" % dice.randrange(9))
        return "%s in %s" % (uids, folder)

    # -- folders --------------------------------------------------------------

    def _create(self, user, dice):
        if len(self.folders[user]) > 8:
            return self._delete(user, dice)
        name = "folder%d" % dice.randrange(30)
        if self.folders[user] and dice.random() < 0.3:
            name = dice.choice(self.folders[user]) + "/" + name
        else:
            name = "INBOX/" + name
        with self.cyrus.imap(user) as imap:
            imap.create(name)
        self.folders[user].append(name)
        return name

    def _settled(self, user):
        return [name for name in self.folders[user] if (user, name) not in self.renamed]

    def _delete(self, user, dice):
        if not self._settled(user):
            return ""
        name = dice.choice(self._settled(user))
        with self.cyrus.imap(user) as imap:
            imap.delete(name)
        self.folders[user].remove(name)
        return name

    def _rename(self, user, dice):
        if not self.folders[user]:
            return ""
        old = dice.choice(self.folders[user])
        # A name that never was: names that go round in a circle no stock sender can replicate.
        self.made += 1
        new = "INBOX/moved%d" % self.made
        with self.cyrus.imap(user) as imap:
            imap.rename(old, new)
        # What is below it goes with it.
        inside = old + "/"
        moved = {name: new + name[len(old) :] for name in self.folders[user] if name == old or name.startswith(inside)}
        self.folders[user] = [moved.get(name, name) for name in self.folders[user]]
        self.renamed |= {(user, name) for name in moved.values()}
        return "%s to %s" % (old, new)

    def _replace(self, user, dice):
        """One folder goes, another takes its name before anybody replicates. Never two
        that exchange names: stock senders cannot bring that over ("failed to order")."""
        plain = [n for n in self.folders[user] if not any(o.startswith(n + "/") for o in self.folders[user])]
        if len(plain) < 2:
            return ""
        one, two = dice.sample(plain, 2)
        if (user, one) in self.renamed:
            return ""
        with self.cyrus.imap(user) as imap:
            imap.delete(one)
            imap.rename(two, one)
        self.folders[user].remove(two)
        self.renamed.add((user, one))
        return "%s by %s" % (one, two)

    def _recreate(self, user, dice):
        if not self._settled(user):
            return ""
        name = dice.choice(self._settled(user))
        with self.cyrus.imap(user) as imap:
            imap.delete(name)
            imap.create(name)
            imap.fill(name, [self._body(user, dice)])
        return name

    def _acl(self, user, dice):
        other, rights = dice.choice(self.users), dice.choice(("lrs", "lrswipkxte", ""))
        folder = self._folder(user, dice)
        if other != user:
            with self.cyrus.imap(user) as imap:
                imap.setacl(folder, other, rights)
        return "%s of %s for %s" % (rights, folder, other)

    def _metadata(self, user, dice):
        folder = self._folder(user, dice)
        value = dice.choice((None, "words", "two\nlines", "x" * 1500))
        with self.cyrus.imap(user) as imap:
            imap.setmetadata(folder, "/private/comment", value)
        return folder

    # -- users ----------------------------------------------------------------

    def _subscription(self, user, dice):
        folder = self._folder(user, dice)
        with self.cyrus.imap(user) as imap:
            if dice.random() < 0.6:
                imap.subscribe(folder)
            else:
                imap.unsubscribe(folder)
        return folder

    def _quota(self, user, dice):
        with self.cyrus.imap("admin") as imap:
            imap.setquota(self.cyrus.inbox(user), storage=dice.randrange(500000, 900000))

    def _script(self, user, dice):
        name = "script%d" % dice.randrange(3)
        what = dice.randrange(4)
        if what == 3 and name in self.scripts[user]:
            self.cyrus.sieve_upload(user, {}, "")
            self.cyrus.sieve_delete(user, name)
            self.scripts[user].remove(name)
            return "no more " + name
        text = 'require "fileinto";\r\nif header :is "subject" "%d" { fileinto "INBOX"; }\r\n' % dice.randrange(99)
        self.cyrus.sieve_upload(user, {name: text}, name if what else None)
        if name not in self.scripts[user]:
            self.scripts[user].append(name)
        return name

    def _arrival(self, user, dice):
        """Somebody new; where there are too many, somebody leaves."""
        if not self.come_and_go:
            return ""
        self.made += 1
        new = "new%d" % self.made
        self._new(new)
        with self.cyrus.imap(new) as imap:
            imap.fill("INBOX", [self._body(new, dice) for _ in range(dice.randrange(1, 6))])
        if len(self.users) > 5:
            return "%s came, %s" % (new, self.remove(dice.choice(self.users[:-1])))
        return new

    def remove(self, user):
        """Delete a user."""
        with self.cyrus.imap("admin") as imap:
            # Admins may do it, if they say so.
            imap.setacl(self.cyrus.inbox(user), "admin", "lrswipkxtecda")
            imap.delete(self.cyrus.inbox(user))
        self.users.remove(user)
        self.gone.append(user)
        return "%s left" % user

    def _person(self, user, dice):
        """A user's new name."""
        if not self.come_and_go:
            return ""
        self.made += 1
        new = "name%d" % self.made
        with self.cyrus.imap("admin") as imap:
            imap.rename(self.cyrus.inbox(user), self.cyrus.inbox(new))
        self.users[self.users.index(user)] = new
        self.folders[new] = self.folders.pop(user)
        self.renamed |= {(new, name) for name in self.folders[new]}
        self.scripts[new] = self.scripts.pop(user)
        self.gone.append(user)
        return "is %s now" % new

    def _cleaning(self, _user, _dice):
        """The server really forgets what was expunged; what was deleted only when all has
        been sent (`sent`): of a mailbox that is gone without a trace no stock sender ever
        says that it is ("no tombstone")."""
        self.cyrus.expire("-E", "0", "-X", "0")
        self.unclean = True

    def sent(self):
        """All has been sent: the deleted mailboxes may go, if it is time."""
        self.renamed.clear()
        if self.unclean:
            self.cyrus.expire()
            self.unclean = False


# What happens, and how often.
CHANGES = {
    "append": 30,
    "flag": 15,
    "expunge": 8,
    "move": 6,
    "copy": 5,
    "annotation": 2,
    "create": 7,
    "delete": 2,
    "rename": 4,
    "replace": 2,
    "recreate": 2,
    "acl": 2,
    "metadata": 2,
    "subscription": 3,
    "quota": 2,
    "script": 4,
    "arrival": 1.5,
    "person": 0.7,
    "cleaning": 1,
}
