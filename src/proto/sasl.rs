//! AUTHENTICATE as the csync protocol writes it, for PLAIN and SCRAM.
//!
//! `Exchange` takes the client's lines and says what to answer; no I/O, and nonce and verifiers are
//! handed in. What is particular to csync lives here: everything is base64, `=` is an empty initial
//! response, an empty challenge is `+` and a blank, `*` cancels, and as there is no success data
//! SCRAM's final message is one more challenge, answered by an empty line (Cyrus `imap/saslclient.c`).
//!
//! Failures are values with a reason for our log; the peer gets no reason.

use base64ct::{Base64, Encoding};

use crate::proto::scram::{ClientFirst, Pending};
use crate::proto::verifier::{Hash, MAX_PASSWORD, Verifier};

/// The longest line of an exchange in bytes.
pub const MAX_LINE: usize = 65_535;

/// A mechanism we can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// The password in clear, RFC 4616.
    Plain,
    /// SCRAM with this hash, without channel binding.
    Scram(Hash),
}

impl Mechanism {
    /// All, the best first.
    pub const ALL: [Mechanism; 3] = [
        Mechanism::Scram(Hash::Sha512),
        Mechanism::Scram(Hash::Sha256),
        Mechanism::Plain,
    ];

    /// Its registered name.
    pub fn name(self) -> &'static str {
        match self {
            Mechanism::Plain => "PLAIN",
            Mechanism::Scram(hash) => hash.mechanism(),
        }
    }

    /// Finds it by its name, in either case.
    pub fn parse(name: &str) -> Option<Mechanism> {
        let mut all = Mechanism::ALL.into_iter();
        all.find(|m| m.name().eq_ignore_ascii_case(name))
    }
}

/// Where verifiers come from; both functions are asked with the name as the client wrote it.
pub trait Lookup {
    /// The verifier of the user for a hash, or a decoy: a stranger must not be told from a user.
    fn verifier(&self, user: &str, hash: Hash) -> Verifier;

    /// Whether this is the user's password. It should take as long for strangers.
    fn check_password(&self, user: &str, password: &[u8]) -> bool;
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Send this line (without CR LF here) and hand in the client's next.
    Challenge(String),
    /// The client is this user, as it wrote the name.
    Done(String),
    /// It is not; the reason is for our log only.
    Failed(&'static str),
    /// The client gave up.
    Canceled,
}

enum State {
    First,
    Proof(Pending),
    /// SCRAM's final message is sent: this user is known.
    Confirmed(String),
    Over,
}

/// One exchange.
pub struct Exchange<'a> {
    mechanism: Mechanism,
    lookup: &'a dyn Lookup,
    nonce: String,
    state: State,
}

impl<'a> Exchange<'a> {
    /// A new exchange; `entropy` is fresh random bytes.
    pub fn new(mechanism: Mechanism, lookup: &'a dyn Lookup, entropy: [u8; 18]) -> Exchange<'a> {
        Exchange {
            mechanism,
            lookup,
            // Multiple of three: no padding, and no comma in any base64.
            nonce: Base64::encode_string(&entropy),
            state: State::First,
        }
    }

    /// Begins, with the initial response as it stood in the command if there was one.
    pub fn begin(&mut self, initial: Option<&[u8]>) -> Step {
        match initial {
            None => Step::Challenge(challenge(b"")),
            Some(b"=") => self.message(b""),
            Some(line) => self.answer(line),
        }
    }

    /// Goes on with the client's next line, without its ending.
    pub fn answer(&mut self, line: &[u8]) -> Step {
        if line == b"*" {
            self.state = State::Over;
            return Step::Canceled;
        }
        let decoded = match std::str::from_utf8(line) {
            Ok(text) if text.len() <= MAX_LINE => Base64::decode_vec(text).ok(),
            _ => None,
        };
        match decoded {
            Some(bytes) => self.message(&bytes),
            None => {
                self.state = State::Over;
                Step::Failed("bad base64")
            }
        }
    }

    fn message(&mut self, bytes: &[u8]) -> Step {
        match std::mem::replace(&mut self.state, State::Over) {
            State::First => match self.mechanism {
                Mechanism::Plain => self.plain(bytes),
                Mechanism::Scram(hash) => self.scram_first(bytes, hash),
            },
            State::Proof(pending) => match pending.verify(bytes) {
                Ok(server_final) => {
                    self.state = State::Confirmed(pending.user().to_owned());
                    Step::Challenge(challenge(&server_final))
                }
                Err(why) => Step::Failed(why),
            },
            State::Confirmed(user) if bytes.is_empty() => Step::Done(user),
            State::Confirmed(_) => Step::Failed("unexpected data after the proof"),
            State::Over => Step::Failed("exchange is over"),
        }
    }

    fn scram_first(&mut self, bytes: &[u8], hash: Hash) -> Step {
        let first = match ClientFirst::parse(bytes) {
            Ok(first) => first,
            Err(why) => return Step::Failed(why),
        };
        let verifier = self.lookup.verifier(first.user(), hash);
        let (server_first, pending) = first.challenge(verifier, &self.nonce);
        self.state = State::Proof(pending);
        Step::Challenge(challenge(&server_first))
    }

    /// authzid NUL authcid NUL password. A NUL in the password would be a third one, and is refused.
    fn plain(&mut self, bytes: &[u8]) -> Step {
        let parts: Vec<&[u8]> = bytes.splitn(4, |b| *b == 0).collect();
        let &[authzid, user, password] = &parts[..] else {
            return Step::Failed("bad message");
        };
        if !authzid.is_empty() && authzid != user {
            return Step::Failed("authorization as somebody else refused");
        }
        let Ok(user) = std::str::from_utf8(user) else {
            return Step::Failed("bad user name");
        };
        if user.is_empty() || password.is_empty() || password.len() > MAX_PASSWORD {
            return Step::Failed("no user or no password");
        }
        if self.lookup.check_password(user, password) {
            Step::Done(user.to_owned())
        } else {
            Step::Failed("unknown user or wrong password")
        }
    }
}

/// A challenge line. The blank stays when there is nothing behind it: the client compares `"+ "`.
fn challenge(bytes: &[u8]) -> String {
    format!("+ {}", Base64::encode_string(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::scram::client;

    struct One;
    impl Lookup for One {
        fn verifier(&self, user: &str, hash: Hash) -> Verifier {
            if user == "repl" {
                Verifier::derive(hash, b"secret", b"0123456789abcdef", 4096)
            } else {
                Verifier::decoy(hash, user, b"key", None)
            }
        }
        fn check_password(&self, user: &str, password: &[u8]) -> bool {
            user == "repl" && password == b"secret"
        }
    }

    fn exchange(mechanism: Mechanism) -> Exchange<'static> {
        Exchange::new(mechanism, &One, [7; 18])
    }

    fn plain(message: &[u8]) -> Step {
        exchange(Mechanism::Plain).begin(Some(Base64::encode_string(message).as_bytes()))
    }

    #[test]
    fn plain_rules() {
        assert_eq!(plain(b"\0repl\0secret"), Step::Done("repl".into()));
        assert_eq!(plain(b"repl\0repl\0secret"), Step::Done("repl".into()));
        for bad in [
            &b"admin\0repl\0secret"[..],
            b"\0repl\0secret\0",
            b"\0repl\0secret\0x",
            b"\0repl\0secre",
            b"\0repl\0",
            b"\0\0secret",
            b"\0repl",
            b"",
            b"\0nobody\0secret",
            b"\0\xff\0secret",
        ] {
            assert!(matches!(plain(bad), Step::Failed(_)), "{bad:?}");
        }
        let long = [&b"\0repl\0"[..], &[b'x'; MAX_PASSWORD + 1]].concat();
        assert!(matches!(plain(&long), Step::Failed(_)));
    }

    #[test]
    fn wire_forms() {
        // RFC order without an initial response: an empty challenge with its blank first.
        let mut e = exchange(Mechanism::Plain);
        assert_eq!(e.begin(None), Step::Challenge("+ ".into()));
        assert_eq!(e.answer(b"AHJlcGwAc2VjcmV0"), Step::Done("repl".into()));
        assert_eq!(
            e.answer(b"AHJlcGwAc2VjcmV0"),
            Step::Failed("exchange is over")
        );
        let mut e = exchange(Mechanism::Plain);
        assert_eq!(e.begin(Some(b"=")), Step::Failed("bad message"));
        let mut e = exchange(Mechanism::Plain);
        e.begin(None);
        assert_eq!(e.answer(b"*"), Step::Canceled);
        for bad in [
            &b"A"[..],
            b"AHJlcGwAc2VjcmV",
            b"AHJl cGwA",
            b"!",
            b"\xff",
            b"=",
        ] {
            assert_eq!(
                exchange(Mechanism::Plain).answer(bad),
                Step::Failed("bad base64"),
                "{bad:?}"
            );
        }
    }

    fn decode(step: Step) -> Vec<u8> {
        match step {
            Step::Challenge(line) => Base64::decode_vec(line.strip_prefix("+ ").unwrap()).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn scram(hash: Hash, user: &str, password: &[u8], last: &[u8]) -> Step {
        let mut e = exchange(Mechanism::Scram(hash));
        let bare = format!("n={user},r=abc");
        let first = Base64::encode_string(format!("n,,{bare}").as_bytes());
        let challenge = decode(e.begin(Some(first.as_bytes())));
        let (proof, expected) = client::answer(hash, "n,,", &bare, password, &challenge);
        match e.answer(Base64::encode_string(&proof).as_bytes()) {
            step @ Step::Challenge(_) => assert_eq!(decode(step), expected),
            other => return other,
        }
        e.answer(last)
    }

    #[test]
    fn scram_on_the_wire() {
        for hash in Hash::ALL {
            assert_eq!(
                scram(hash, "repl", b"secret", b""),
                Step::Done("repl".into())
            );
            let refused = Step::Failed("unknown user or wrong password");
            assert_eq!(scram(hash, "repl", b"Secret", b""), refused);
            assert_eq!(scram(hash, "nobody", b"secret", b""), refused);
            assert_eq!(scram(hash, "repl", b"secret", b"*"), Step::Canceled);
            assert_eq!(
                scram(hash, "repl", b"secret", b"eA=="),
                Step::Failed("unexpected data after the proof")
            );
        }
    }

    #[test]
    fn names() {
        assert_eq!(Mechanism::parse("plain"), Some(Mechanism::Plain));
        assert_eq!(
            Mechanism::parse("Scram-Sha-512"),
            Some(Mechanism::Scram(Hash::Sha512))
        );
        for other in ["", "SCRAM-SHA-1", "SCRAM-SHA-256-PLUS", "LOGIN", "PLAIN "] {
            assert_eq!(Mechanism::parse(other), None);
        }
    }
}
