//! The client's half of SASL: PLAIN (RFC 4616) and SCRAM-SHA-512, -256, -1 (RFC 5802, 7677).
//!
//! A state machine over messages, without base64 and without I/O; the nonce is handed in. With
//! SCRAM the server proves that it knows the password's verifier: success that it claims without
//! that proof is a failure ([`Client::is_proven`]). Authorization is as the one who logs in, unless
//! [`Client::acting_as`] names somebody else.

use super::Login;
use crate::proto::verifier::{Hash, MAX_ITERATIONS};
use base64ct::{Base64, Encoding};
use hmac::{Hmac, Mac};
use sha1::{Digest, Sha1};
use subtle::ConstantTimeEq;

/// The longest challenge in bytes.
const MAX_CHALLENGE: usize = 4096;

/// The fewest iterations a server may ask for (RFC 5802): fewer would give the password away.
const MIN_ITERATIONS: u32 = 4096;

/// What we can do, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// SCRAM with one of the SHA-2 hashes.
    Scram(Hash),
    /// SCRAM-SHA-1.
    ScramSha1,
    /// The password itself.
    Plain,
}

impl Mechanism {
    /// All, the best first.
    pub const ALL: [Mechanism; 4] = [
        Mechanism::Scram(Hash::Sha512),
        Mechanism::Scram(Hash::Sha256),
        Mechanism::ScramSha1,
        Mechanism::Plain,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Mechanism::Scram(hash) => hash.mechanism(),
            Mechanism::ScramSha1 => "SCRAM-SHA-1",
            Mechanism::Plain => "PLAIN",
        }
    }

    /// Those of the offered ones that we can do and may use, the best first. `is_private`: nobody
    /// listens, so that the password itself may be sent.
    pub fn usable(offered: &[String], login: &Login, is_private: bool) -> Vec<Mechanism> {
        let mut out = Mechanism::ALL.to_vec();
        out.retain(|m| {
            let clear = *m == Mechanism::Plain && !is_private && !login.allow_plaintext;
            !clear && offered.iter().any(|o| o.eq_ignore_ascii_case(m.name()))
        });
        out
    }

    fn hmac(self, key: &[u8], data: &[u8]) -> Vec<u8> {
        match self {
            Mechanism::Scram(hash) => hash.hmac(key, data),
            _ => {
                let mut mac =
                    Hmac::<Sha1>::new_from_slice(key).expect("HMAC takes keys of any length");
                mac.update(data);
                mac.finalize().into_bytes().to_vec()
            }
        }
    }

    fn digest(self, data: &[u8]) -> Vec<u8> {
        match self {
            Mechanism::Scram(hash) => hash.digest(data),
            _ => Sha1::digest(data).to_vec(),
        }
    }

    fn salted(self, password: &[u8], salt: &[u8], iterations: u32) -> Vec<u8> {
        match self {
            Mechanism::Scram(hash) => hash.salted_password(password, salt, iterations),
            _ => {
                let mut out = vec![0; 20];
                pbkdf2::pbkdf2_hmac::<Sha1>(password, salt, iterations, &mut out);
                out
            }
        }
    }
}

enum State {
    Start,
    /// The first message is out.
    First {
        bare: String,
        nonce: String,
    },
    /// The proof is out; the server's must be this.
    Proof(Vec<u8>),
    Proven,
}

/// One attempt to log in.
pub struct Client<'a> {
    mechanism: Mechanism,
    login: &'a Login,
    nonce: String,
    /// Who is acted for; empty: the one who logs in.
    authzid: &'a str,
    state: State,
}

impl<'a> Client<'a> {
    /// An attempt with a mechanism; `entropy` is fresh and random.
    pub fn new(mechanism: Mechanism, login: &'a Login, entropy: [u8; 18]) -> Client<'a> {
        Client {
            mechanism,
            login,
            nonce: Base64::encode_string(&entropy),
            authzid: "",
            state: State::Start,
        }
    }

    /// Asks to act for somebody else, as administrators may.
    pub fn acting_as(mut self, authzid: &'a str) -> Client<'a> {
        self.authzid = authzid;
        self
    }

    /// What comes before the message proper (RFC 5801 4): no channel binding, and whom we act for.
    fn header(&self) -> String {
        match self.authzid {
            "" => "n,,".into(),
            authzid => format!("n,a={},", saslname(authzid)),
        }
    }

    /// The same with entropy from the system.
    pub fn fresh(mechanism: Mechanism, login: &'a Login) -> crate::error::Result<Client<'a>> {
        use crate::error::{Error, Kind};
        let mut entropy = [0; 18];
        getrandom::fill(&mut entropy)
            .map_err(|e| Error::new(Kind::Internal, "no entropy").because(e.to_string()))?;
        Ok(Client::new(mechanism, login, entropy))
    }

    /// The mechanism.
    pub fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// The initial response.
    pub fn first(&mut self) -> Vec<u8> {
        if self.mechanism == Mechanism::Plain {
            self.state = State::Proven;
            return [
                self.authzid.as_bytes(),
                b"\0",
                self.login.user.as_bytes(),
                b"\0",
                &self.login.password,
            ]
            .concat();
        }
        let bare = format!("n={},r={}", saslname(&self.login.user), self.nonce);
        let message = format!("{}{bare}", self.header()).into_bytes();
        let nonce = self.nonce.clone();
        self.state = State::First { bare, nonce };
        message
    }

    /// The answer to a challenge, or why there is none.
    pub fn answer(&mut self, challenge: &[u8]) -> Result<Vec<u8>, &'static str> {
        if challenge.len() > MAX_CHALLENGE {
            return Err("challenge too long");
        }
        match std::mem::replace(&mut self.state, State::Start) {
            State::First { bare, nonce } => self.prove(challenge, &bare, &nonce),
            State::Proof(expected) => {
                check(challenge, &expected)?;
                self.state = State::Proven;
                Ok(Vec::new())
            }
            State::Start | State::Proven => Err("a challenge too many"),
        }
    }

    /// Takes what a success carried (IMAP and csync carry nothing).
    pub fn success(&mut self, data: Option<&[u8]>) -> Result<(), &'static str> {
        if let (Some(data), State::Proof(expected)) = (data, &self.state) {
            check(data, expected)?;
            self.state = State::Proven;
        }
        match self.is_proven() {
            true => Ok(()),
            false => Err("the server did not prove that it knows the password"),
        }
    }

    /// Whether the exchange is complete: the server has proven itself, if the mechanism has that.
    pub fn is_proven(&self) -> bool {
        matches!(self.state, State::Proven)
    }

    fn prove(&mut self, first: &[u8], bare: &str, nonce: &str) -> Result<Vec<u8>, &'static str> {
        let text = std::str::from_utf8(first).map_err(|_| "challenge is not UTF-8")?;
        let mut attrs = text.split(',');
        let mut attr = |name: &str| attrs.next().and_then(|a| a.strip_prefix(name));
        let (Some(whole), Some(salt), Some(iterations)) = (attr("r="), attr("s="), attr("i="))
        else {
            return Err("bad challenge");
        };
        if !whole.starts_with(nonce) || whole.len() == nonce.len() {
            return Err("wrong nonce");
        }
        let salt = Base64::decode_vec(salt).map_err(|_| "bad salt")?;
        let iterations: u32 = iterations.parse().map_err(|_| "bad iterations")?;
        if !(MIN_ITERATIONS..=MAX_ITERATIONS).contains(&iterations) || salt.is_empty() {
            return Err("iterations or salt out of bounds");
        }
        let m = self.mechanism;
        let salted = m.salted(&self.login.password, &salt, iterations);
        let client_key = m.hmac(&salted, b"Client Key");
        let unproved = format!(
            "c={},r={whole}",
            Base64::encode_string(self.header().as_bytes())
        );
        let message = format!("{bare},{text},{unproved}");
        let signature = m.hmac(&m.digest(&client_key), message.as_bytes());
        let proof: Vec<u8> = signature
            .iter()
            .zip(&client_key)
            .map(|(s, k)| s ^ k)
            .collect();
        let server = m.hmac(&m.hmac(&salted, b"Server Key"), message.as_bytes());
        self.state = State::Proof(server);
        Ok(format!("{unproved},p={}", Base64::encode_string(&proof)).into_bytes())
    }
}

/// A name as SCRAM writes it.
fn saslname(name: &str) -> String {
    name.replace('=', "=3D").replace(',', "=2C")
}

fn check(message: &[u8], expected: &[u8]) -> Result<(), &'static str> {
    let text = std::str::from_utf8(message).map_err(|_| "bad proof of the server")?;
    let value = text.strip_prefix("v=").and_then(|v| v.split(',').next());
    let given = value.and_then(|v| Base64::decode_vec(v).ok());
    match given {
        Some(given) if bool::from(given.ct_eq(expected)) => Ok(()),
        _ => Err("wrong proof of the server"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::scram::ClientFirst;
    use crate::proto::verifier::Verifier;

    fn login() -> Login {
        Login {
            user: "u=,x".into(),
            password: b"pencil".to_vec(),
            allow_plaintext: false,
        }
    }

    #[test]
    fn scram_with_our_own_server() {
        for hash in Hash::ALL {
            let login = login();
            let mut c = Client::new(Mechanism::Scram(hash), &login, [7; 18]);
            let first = ClientFirst::parse(&c.first()).unwrap();
            assert_eq!(first.user(), "u=,x");
            let verifier = Verifier::derive(hash, b"pencil", b"saltsalt", 4096);
            let (challenge, pending) = first.challenge(verifier, "theirs");
            let last = c.answer(&challenge).unwrap();
            let proof = pending.verify(&last).unwrap();
            assert!(c.success(None).is_err());
            let mut bad = proof.clone();
            bad[9] ^= 1;
            let mut other = Client::new(Mechanism::Scram(hash), &login, [7; 18]);
            other.first();
            other.answer(&challenge).unwrap();
            assert!(other.answer(&bad).is_err());
            assert!(!other.is_proven());
            assert_eq!(c.answer(&proof).unwrap(), b"");
            assert!(c.success(None).is_ok());
        }
    }

    #[test]
    fn scram_sha_1_of_rfc_5802() {
        let login = Login {
            user: "user".into(),
            ..login()
        };
        let mut c = Client::new(Mechanism::ScramSha1, &login, [0; 18]);
        c.first();
        // The nonce of the example is no base64 of ours.
        c.state = State::First {
            bare: "n=user,r=fyko+d2lbbFgONRv9qkxdawL".into(),
            nonce: "fyko+d2lbbFgONRv9qkxdawL".into(),
        };
        let challenge = b"r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096";
        assert_eq!(
            c.answer(challenge).unwrap(),
            b"c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts="
        );
        let proof = b"v=rmF9pqV8S7suAoZWja4dJRkFsKQ=";
        assert!(c.success(Some(proof)).is_ok());
    }

    #[test]
    fn acting_for_another() {
        let login = login();
        let mut c = Client::new(Mechanism::Plain, &login, [7; 18]).acting_as("anna");
        assert_eq!(c.first(), b"anna\0u=,x\0pencil");
        let scram = Mechanism::Scram(Hash::Sha256);
        let mut c = Client::new(scram, &login, [7; 18]).acting_as("a,b");
        let first = String::from_utf8(c.first()).unwrap();
        assert!(first.starts_with("n,a=a=2Cb,n=u=3D=2Cx,r="), "{first}");
        let nonce = Base64::encode_string(&[7; 18]);
        let last = c.answer(format!("r={nonce}x,s=QSXCR+Q6sek8bf92,i=4096").as_bytes());
        let last = String::from_utf8(last.unwrap()).unwrap();
        let header = Base64::encode_string(b"n,a=a=2Cb,");
        assert!(last.starts_with(&format!("c={header},r=")), "{last}");
    }

    #[test]
    fn challenges_refused() {
        let login = login();
        let nonce = Base64::encode_string(&[7; 18]);
        let cases = [
            "r=other,s=QSXCR+Q6sek8bf92,i=4096".to_owned(),
            format!("r={nonce},s=QSXCR+Q6sek8bf92,i=4096"),
            format!("r={nonce}x,s=QSXCR+Q6sek8bf92,i=4095"),
            format!("r={nonce}x,s=QSXCR+Q6sek8bf92,i=2000000"),
            format!("r={nonce}x,s=,i=4096"),
            format!("m=1,r={nonce}x,s=QSXCR+Q6sek8bf92,i=4096"),
            "x".repeat(MAX_CHALLENGE + 1),
            String::new(),
        ];
        for text in cases {
            let mut c = Client::new(Mechanism::Scram(Hash::Sha256), &login, [7; 18]);
            c.first();
            assert!(c.answer(text.as_bytes()).is_err(), "{text}");
        }
        let mut c = Client::new(Mechanism::Plain, &login, [7; 18]);
        assert_eq!(c.first(), b"\0u=,x\0pencil");
        assert!(c.answer(b"").is_err());
    }

    #[test]
    fn the_password_itself_only_where_nobody_listens() {
        let offered: Vec<String> = ["plain", "GSSAPI", "SCRAM-SHA-1"].map(Into::into).into();
        let mut login = login();
        let both = [Mechanism::ScramSha1, Mechanism::Plain];
        assert_eq!(Mechanism::usable(&offered, &login, true), both);
        assert_eq!(Mechanism::usable(&offered, &login, false), both[..1]);
        login.allow_plaintext = true;
        assert_eq!(Mechanism::usable(&offered, &login, false), both);
        assert!(Mechanism::usable(&[], &login, true).is_empty());
    }
}
