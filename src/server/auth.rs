//! Who is at the other end, and may they work here.
//!
//! | transport | what is asked |
//! |---|---|
//! | UNIX socket | nothing; the peer's uid must be root's, the cyrus user's or our own |
//! | TCP | SCRAM against our verifier file, if it has users |
//! | TCP from this host, with `allowplaintext` | PLAIN as well, against the same file |
//!
//! The verifier file (`proto::verifier`) is read anew for each banner and each login, so a changed
//! password holds at once. A file that others can read, that a stranger owns or that is no plain
//! file is refused and says so in the log: then nobody can log in over TCP. A missing one is no
//! trouble, it only offers nothing.
//!
//! The words on the wire and in the log are Cyrus' (`imap/sync_server.c`, `imap/backupd.c`), so that
//! what watches for `badlogin:` works; no password and no SASL data is ever logged. A failed login
//! is answered after `failedloginpause`, and the peer is not told why it failed.

use std::fs::{self, File};
use std::io::{BufRead, ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::proto::line::{LineEnd, read_line};
use crate::proto::reply;
use crate::proto::sasl::{Exchange, Lookup, MAX_LINE, Mechanism, Step};
use crate::proto::verifier::{Hash, Verifier, Verifiers};

pub use crate::proto::verifier::canonical_id;

/// The largest verifier file read, in bytes: thousands of senders.
const MAX_FILE: u64 = 4 << 20;
/// The name of whoever comes through the UNIX socket, as in Cyrus.
const LOCAL_USER: &str = "cyrus";

/// What the configuration says about logins.
#[derive(Clone, Debug)]
pub struct AuthPolicy {
    /// `admins`: exact userids, or `anyone`. XXX `group:` entries admit nobody.
    pub admins: Vec<String>,
    /// `allowplaintext`; without TLS it counts on this host only.
    pub allow_plaintext: bool,
    /// `backup_passwd_file`.
    pub passwd_file: PathBuf,
    /// `failedloginpause`.
    pub failed_pause: Duration,
    /// `username_tolower`.
    pub username_tolower: bool,
    /// Uids besides root's that may use the UNIX socket and own the verifier file: the cyrus
    /// user's and our own.
    pub our_uids: Vec<u32>,
}

/// Where a connection comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerKind {
    /// A UNIX socket, with the peer's uid as the kernel tells it.
    Unix {
        /// SO_PEERCRED's uid.
        uid: u32,
    },
    /// TCP.
    Tcp {
        /// The peer's address.
        addr: IpAddr,
        /// Whether TLS is active.
        tls: bool,
    },
}

impl PeerKind {
    /// The peer as a login line names it.
    pub fn host(&self) -> String {
        match self {
            PeerKind::Unix { .. } => "[unix socket]".to_owned(),
            PeerKind::Tcp { addr, .. } => format!("[{}]", addr.to_canonical()),
        }
    }
}

/// Somebody known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The canonical userid.
    pub userid: String,
    /// Whether it is in `admins`. Anyone else may log in and gets "Permission denied" for the rest.
    pub is_admin: bool,
}

/// How an AUTHENTICATE ended; the answer is sent and flushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The client is known now.
    Known(Identity),
    /// The client may try again.
    Refused,
    /// The client hung up in the middle, without an answer.
    Gone,
}

/// Checks logins. One for the whole server: it can be shared between threads and keeps no state
/// but a secret of this process.
pub struct Authenticator {
    policy: AuthPolicy,
    /// Makes the salts of users who do not exist; a restart changes them.
    secret: [u8; 32],
}

impl Authenticator {
    /// Fails only without entropy.
    pub fn new(policy: AuthPolicy) -> Result<Authenticator> {
        Ok(Authenticator {
            policy,
            secret: random()?,
        })
    }

    /// Who the peer is without a login: known if it comes through the UNIX socket from a uid we
    /// trust. A UNIX peer that is not known here cannot log in at all.
    pub fn without_login(&self, peer: &PeerKind) -> Option<Identity> {
        match peer {
            PeerKind::Unix { uid } if self.is_ours(*uid) => Some(Identity {
                userid: LOCAL_USER.to_owned(),
                is_admin: true,
            }),
            _ => None,
        }
    }

    /// The mechanisms to offer this peer, the best first.
    pub fn mechanisms(&self, peer: &PeerKind) -> Vec<&'static str> {
        let offered = self.offered(peer, &self.verifiers());
        offered.into_iter().map(Mechanism::name).collect()
    }

    /// Carries out `AUTHENTICATE mechanism [initial]`, up to the final answer.
    ///
    /// Blocks as long as the reader does; a timeout there is an error, and so is a line beyond
    /// 65,535 bytes. After an error the connection is of no more use.
    pub fn authenticate(
        &self,
        mechanism: &str,
        initial: Option<&[u8]>,
        reader: &mut impl BufRead,
        writer: &mut impl Write,
        peer: &PeerKind,
    ) -> Result<Outcome> {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if !(1..=20).contains(&mechanism.len()) || !mechanism.bytes().all(word) {
            send(writer, reply::BAD_MECHANISM)?;
            return Ok(Outcome::Refused);
        }
        let verifiers = self.verifiers();
        let offered = self.offered(peer, &verifiers);
        let Some(mechanism) = Mechanism::parse(mechanism).filter(|m| offered.contains(m)) else {
            return self.refuse(peer, mechanism, "no mechanism available", writer);
        };
        let known = Known {
            verifiers: &verifiers,
            secret: &self.secret,
            tolower: self.policy.username_tolower,
        };
        let mut exchange = Exchange::new(mechanism, &known, random()?);
        let mut line = Vec::new();
        let mut step = exchange.begin(initial);
        loop {
            match step {
                Step::Challenge(challenge) => send(writer, &challenge)?,
                Step::Done(user) => return self.admit(peer, mechanism, &user, writer),
                Step::Failed(why) => return self.refuse(peer, mechanism.name(), why, writer),
                Step::Canceled => {
                    badlogin(peer, mechanism.name(), "client canceled");
                    send(writer, reply::BAD_AUTH_CANCELED)?;
                    return Ok(Outcome::Refused);
                }
            }
            line.clear();
            match read_line(reader, MAX_LINE, &mut line) {
                Ok(LineEnd::Line) => step = exchange.answer(&line),
                Ok(LineEnd::TooLong) => {
                    badlogin(peer, mechanism.name(), "line too long");
                    send(writer, reply::BAD_TOO_LONG)?;
                    return Err(Error::new(Kind::Protocol, "line too long"));
                }
                Ok(LineEnd::Eof | LineEnd::EofInLine) => {
                    badlogin(peer, mechanism.name(), "connection closed");
                    return Ok(Outcome::Gone);
                }
                Err(e) => return Err(Error::io("cannot read", e).place(peer.host())),
            }
        }
    }

    fn offered(&self, peer: &PeerKind, verifiers: &Verifiers) -> Vec<Mechanism> {
        let PeerKind::Tcp { addr, tls } = peer else {
            return Vec::new();
        };
        let here = addr.to_canonical().is_loopback();
        let plaintext = *tls || (self.policy.allow_plaintext && here);
        // Under TLS this is also where PLAIN through saslauthd, and EXTERNAL for a client
        // certificate, are to be offered; STARTTLS itself is the session's to offer.
        let mut all = Mechanism::ALL.to_vec();
        all.retain(|m| match m {
            Mechanism::Plain => plaintext && Hash::ALL.iter().any(|h| verifiers.any(*h).is_some()),
            Mechanism::Scram(hash) => verifiers.any(*hash).is_some(),
        });
        all
    }

    fn admit(
        &self,
        peer: &PeerKind,
        mechanism: Mechanism,
        user: &str,
        writer: &mut impl Write,
    ) -> Result<Outcome> {
        let Some(userid) = canonical_id(user, self.policy.username_tolower) else {
            return self.refuse(peer, mechanism.name(), "bad user name", writer);
        };
        let mut admins = self.policy.admins.iter();
        let is_admin = admins.any(|a| *a == userid || a == "anyone");
        send(writer, reply::OK_AUTH)?;
        log::info!(
            "login: {} {userid} {}{} User logged in",
            peer.host(),
            mechanism.name(),
            if matches!(peer, PeerKind::Tcp { tls: true, .. }) {
                "+TLS"
            } else {
                ""
            }
        );
        if !is_admin {
            log::warn!("user is not in admins, may do nothing: userid=<{userid}>");
        }
        Ok(Outcome::Known(Identity { userid, is_admin }))
    }

    fn refuse(
        &self,
        peer: &PeerKind,
        mechanism: &str,
        why: &str,
        writer: &mut impl Write,
    ) -> Result<Outcome> {
        badlogin(peer, mechanism, why);
        std::thread::sleep(self.policy.failed_pause);
        send(writer, reply::NO_AUTH)?;
        Ok(Outcome::Refused)
    }

    fn is_ours(&self, uid: u32) -> bool {
        uid == 0 || self.policy.our_uids.contains(&uid)
    }

    /// The verifiers as they are now; none if the file cannot be used.
    fn verifiers(&self) -> Verifiers {
        let path = &self.policy.passwd_file;
        match self.read_file(path) {
            Ok(None) => Verifiers::default(),
            Ok(Some(text)) => {
                let verifiers = Verifiers::parse(&text);
                for line in &verifiers.bad_lines {
                    log::warn!(
                        "skipping bad line in password file: filename=<{}> line=<{line}>",
                        path.display()
                    );
                }
                verifiers
            }
            Err(e) => {
                log::error!("IOERROR: password file refused, no logins: {e}");
                Verifiers::default()
            }
        }
    }

    fn read_file(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        let cannot = |e| Error::io("cannot read", e).at(path);
        // Looked at before it is opened, because opening a FIFO would wait for its writer.
        match fs::metadata(path) {
            Ok(m) if m.is_file() => {}
            Ok(_) => return Err(Error::new(Kind::Config, "not a plain file").at(path)),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(cannot(e)),
        }
        let file = File::open(path).map_err(cannot)?;
        let meta = file.metadata().map_err(cannot)?;
        let refused = |why: String| Err(Error::new(Kind::Config, why).at(path));
        if !self.is_ours(meta.uid()) {
            return refused(format!("owned by uid {}, must be ours", meta.uid()));
        }
        if meta.mode() & 0o027 != 0 {
            return refused(format!(
                "others can read or write it (mode {:03o}), must be 600 or 640",
                meta.mode() & 0o777
            ));
        }
        if meta.len() > MAX_FILE {
            return refused(format!("larger than {MAX_FILE} bytes"));
        }
        let mut text = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut text).map_err(cannot)?;
        Ok(Some(text))
    }
}

/// The verifier file as the exchange sees it.
struct Known<'a> {
    verifiers: &'a Verifiers,
    secret: &'a [u8],
    tolower: bool,
}

impl Known<'_> {
    fn find(&self, user: &str, hash: Hash) -> Option<&Verifier> {
        let user = canonical_id(user, self.tolower)?;
        self.verifiers.find(&user, hash)
    }
}

impl Lookup for Known<'_> {
    fn verifier(&self, user: &str, hash: Hash) -> Verifier {
        match self.find(user, hash) {
            Some(v) => v.clone(),
            None => {
                // Spellings of one name must not differ in their salts when they do not for users.
                let user = if self.tolower {
                    user.to_ascii_lowercase()
                } else {
                    user.to_owned()
                };
                Verifier::decoy(hash, &user, self.secret, self.verifiers.any(hash))
            }
        }
    }

    fn check_password(&self, user: &str, password: &[u8]) -> bool {
        let known = Hash::ALL.into_iter().find_map(|h| self.find(user, h));
        match known {
            Some(v) => v.matches(password),
            None => {
                // The same work as for a user, and then no.
                let of_file = Hash::ALL
                    .into_iter()
                    .find(|h| self.verifiers.any(*h).is_some());
                let hash = of_file.unwrap_or(Hash::Sha512);
                self.verifier(user, hash).matches(password);
                false
            }
        }
    }
}

fn badlogin(peer: &PeerKind, mechanism: &str, why: &str) {
    log::warn!("badlogin: {} {mechanism} [{why}]", peer.host());
}

fn send(writer: &mut impl Write, line: &str) -> Result<()> {
    reply::send(writer, line)
        .and_then(|()| writer.flush())
        .map_err(|e| Error::io("cannot answer", e))
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    match getrandom::fill(&mut bytes) {
        Ok(()) => Ok(bytes),
        Err(e) => Err(Error::new(Kind::Internal, "no entropy").because(e.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::scram::client;
    use crate::proto::verifier;
    use base64ct::{Base64, Encoding};
    use std::io::BufReader;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    struct Dir(PathBuf);
    impl Dir {
        fn new(name: &str) -> Dir {
            let name = format!("cyr_backup-auth-{}-{name}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            Dir(path)
        }
    }
    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn remote() -> PeerKind {
        PeerKind::Tcp {
            addr: "192.0.2.7".parse().unwrap(),
            tls: false,
        }
    }

    fn local() -> PeerKind {
        PeerKind::Tcp {
            addr: "::ffff:127.0.0.1".parse().unwrap(),
            tls: false,
        }
    }

    /// A server with the users repl (both hashes) and old (SHA-256 only), password "secret".
    fn server(dir: &Dir) -> Authenticator {
        let path = dir.0.join("passwd");
        let both = Hash::ALL.map(|h| Verifier::derive(h, b"secret", b"0123456789abcdef", 4096));
        let (text, _) = verifier::replace(b"", "repl", &both);
        let (text, _) = verifier::replace(&text, "old", &both[1..]);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let uid = fs::metadata(&path).unwrap().uid();
        Authenticator::new(AuthPolicy {
            admins: vec!["repl".into()],
            allow_plaintext: true,
            passwd_file: path,
            failed_pause: Duration::from_millis(1),
            username_tolower: true,
            our_uids: vec![uid],
        })
        .unwrap()
    }

    /// Plays `client` against the server over a socket pair.
    fn play(
        auth: &Authenticator,
        peer: &PeerKind,
        mechanism: &str,
        initial: Option<&str>,
        client: impl FnOnce(BufReader<UnixStream>, UnixStream) + Send,
    ) -> Result<Outcome> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::thread::scope(|s| {
            s.spawn(|| client(BufReader::new(theirs.try_clone().unwrap()), theirs));
            let mut reader = BufReader::new(ours.try_clone().unwrap());
            let initial = initial.map(str::as_bytes);
            let outcome = auth.authenticate(mechanism, initial, &mut reader, &mut &ours, peer);
            drop((reader, ours));
            outcome
        })
    }

    fn next(reader: &mut impl BufRead) -> String {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        line
    }

    fn plain(user: &str, password: &str) -> String {
        Base64::encode_string(format!("\0{user}\0{password}").as_bytes())
    }

    fn scram(auth: &Authenticator, hash: Hash, user: &str, password: &str) -> Outcome {
        let bare = format!("n={user},r=clientnonce");
        let first = Base64::encode_string(format!("n,,{bare}").as_bytes());
        play(
            auth,
            &remote(),
            hash.mechanism(),
            Some(&first),
            |mut r, mut w| {
                let line = next(&mut r);
                let first =
                    Base64::decode_vec(line.trim_end().strip_prefix("+ ").unwrap()).unwrap();
                let (last, v) = client::answer(hash, "n,,", &bare, password.as_bytes(), &first);
                writeln!(w, "{}\r", Base64::encode_string(&last)).unwrap();
                let line = next(&mut r);
                if line == "NO authentication failed\r\n" {
                    return;
                }
                assert_eq!(line, format!("+ {}\r\n", Base64::encode_string(&v)));
                w.write_all(b"\r\n").unwrap();
                assert_eq!(next(&mut r), "OK Success (no protection)\r\n");
            },
        )
        .unwrap()
    }

    fn known(userid: &str, is_admin: bool) -> Outcome {
        Outcome::Known(Identity {
            userid: userid.into(),
            is_admin,
        })
    }

    #[test]
    fn scram_end_to_end() {
        let dir = Dir::new("scram");
        let auth = server(&dir);
        for hash in Hash::ALL {
            assert_eq!(scram(&auth, hash, "repl", "secret"), known("repl", true));
            assert_eq!(scram(&auth, hash, "REPL", "secret"), known("repl", true));
            assert_eq!(scram(&auth, hash, "repl", "wrong"), Outcome::Refused);
            assert_eq!(scram(&auth, hash, "nobody", "secret"), Outcome::Refused);
        }
        let old = |hash| scram(&auth, hash, "old", "secret");
        assert_eq!(old(Hash::Sha256), known("old", false));
        assert_eq!(old(Hash::Sha512), Outcome::Refused);
    }

    #[test]
    fn plain_only_from_this_host() {
        let dir = Dir::new("plain");
        let mut auth = server(&dir);
        let login = |auth: &Authenticator, peer: &PeerKind, password: &str| {
            let initial = plain("repl", password);
            play(auth, peer, "plain", Some(&initial), |mut r, _| {
                next(&mut r);
            })
            .unwrap()
        };
        assert_eq!(login(&auth, &local(), "secret"), known("repl", true));
        assert_eq!(login(&auth, &local(), "Secret"), Outcome::Refused);
        assert_eq!(login(&auth, &remote(), "secret"), Outcome::Refused);
        assert_eq!(
            auth.mechanisms(&local()),
            ["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"]
        );
        assert_eq!(
            auth.mechanisms(&remote()),
            ["SCRAM-SHA-512", "SCRAM-SHA-256"]
        );
        auth.policy.allow_plaintext = false;
        assert_eq!(login(&auth, &local(), "secret"), Outcome::Refused);
        let tls = PeerKind::Tcp {
            addr: "192.0.2.7".parse().unwrap(),
            tls: true,
        };
        assert_eq!(login(&auth, &tls, "secret"), known("repl", true));
    }

    #[test]
    fn answers_on_the_wire() {
        let dir = Dir::new("wire");
        let auth = server(&dir);
        let canceled = play(&auth, &local(), "PLAIN", None, |mut r, mut w| {
            assert_eq!(next(&mut r), "+ \r\n");
            w.write_all(b"*\r\n").unwrap();
            assert_eq!(next(&mut r), "BAD Client canceled authentication\r\n");
        });
        assert_eq!(canceled.unwrap(), Outcome::Refused);
        let gone = play(&auth, &local(), "PLAIN", None, |mut r, mut w| {
            next(&mut r);
            w.write_all(b"AHJl").unwrap();
        });
        assert_eq!(gone.unwrap(), Outcome::Gone);
        let long = play(&auth, &local(), "PLAIN", None, |mut r, mut w| {
            next(&mut r);
            let _ = w.write_all(&[b'A'; MAX_LINE + 10]);
            // Stays until the server has had enough: closing now could reset the connection.
            let _ = r.read_line(&mut String::new());
        });
        assert_eq!(long.unwrap_err().kind(), Kind::Protocol);
        for (mechanism, answer) in [
            ("", "BAD Invalid mechanism\r\n"),
            ("A B", "BAD Invalid mechanism\r\n"),
            ("x\r\ny", "BAD Invalid mechanism\r\n"),
            ("LOGIN", "NO authentication failed\r\n"),
            ("SCRAM-SHA-1", "NO authentication failed\r\n"),
        ] {
            let outcome = play(&auth, &local(), mechanism, None, |mut r, _| {
                assert_eq!(next(&mut r), answer);
            });
            assert_eq!(outcome.unwrap(), Outcome::Refused);
        }
    }

    #[test]
    fn a_changed_password_holds_at_once() {
        let dir = Dir::new("change");
        let auth = server(&dir);
        let path = &auth.policy.passwd_file;
        let new = Verifier::derive(Hash::Sha256, b"new", b"salt", 4096);
        let (text, _) = verifier::replace(&fs::read(path).unwrap(), "repl", &[new]);
        fs::write(path, text).unwrap();
        let login = |password| scram(&auth, Hash::Sha256, "repl", password);
        assert_eq!(login("secret"), Outcome::Refused);
        assert_eq!(login("new"), known("repl", true));
    }

    #[test]
    fn unsafe_files_are_refused() {
        let dir = Dir::new("file");
        let mut auth = server(&dir);
        let path = auth.policy.passwd_file.clone();
        for (mode, good) in [
            (0o604, false),
            (0o620, false),
            (0o601, false),
            (0o640, true),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(!auth.mechanisms(&remote()).is_empty(), good, "{mode:o}");
        }
        let uid = auth.policy.our_uids[0];
        auth.policy.our_uids.clear();
        // Root's files are always good.
        assert_eq!(auth.mechanisms(&remote()).is_empty(), uid != 0);
        auth.policy.our_uids.push(uid);
        fs::remove_file(&path).unwrap();
        assert!(auth.mechanisms(&remote()).is_empty());
        fs::create_dir(&path).unwrap();
        assert!(auth.mechanisms(&remote()).is_empty());
    }

    #[test]
    fn unix_peers() {
        let dir = Dir::new("unix");
        let mut auth = server(&dir);
        auth.policy.our_uids = vec![8];
        let who = |uid| auth.without_login(&PeerKind::Unix { uid });
        assert!(who(0).is_some_and(|i| i.is_admin && i.userid == "cyrus"));
        assert!(who(8).is_some_and(|i| i.is_admin));
        assert_eq!(who(1000), None);
        assert_eq!(auth.without_login(&local()), None);
        assert!(auth.mechanisms(&PeerKind::Unix { uid: 1000 }).is_empty());
        let initial = plain("repl", "secret");
        let stranger = PeerKind::Unix { uid: 1000 };
        let tried = play(&auth, &stranger, "PLAIN", Some(&initial), |mut r, _| {
            next(&mut r);
        });
        assert_eq!(tried.unwrap(), Outcome::Refused);
    }

    #[test]
    fn strangers_look_like_users() {
        let dir = Dir::new("stranger");
        let auth = server(&dir);
        let verifiers = auth.verifiers();
        let known = Known {
            verifiers: &verifiers,
            secret: &auth.secret,
            tolower: true,
        };
        let user = known.verifier("repl", Hash::Sha256);
        let stranger = known.verifier("nobody", Hash::Sha256);
        assert_eq!(stranger.iterations, user.iterations);
        assert_eq!(stranger.salt.len(), user.salt.len());
        assert_eq!(stranger, known.verifier("NoBody", Hash::Sha256));
        assert_ne!(stranger.salt, known.verifier("nobody2", Hash::Sha256).salt);
        assert!(!known.check_password("nobody", b"secret"));
        assert!(!known.check_password("no body", b"secret"));
    }
}
