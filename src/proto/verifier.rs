//! Verifiers of passwords, and the text of the file that keeps them (`backup_passwd_file`).
//!
//! A verifier is what a SCRAM server keeps instead of the password: it can check a proof and a
//! password, and nothing but guessing leads back from it. The file has one line for each user and
//! hash, and anything after `#` at the start of a line is a comment:
//!
//! | field | content |
//! |---|---|
//! | user | userid, without `:` |
//! | mechanism | `SCRAM-SHA-256` or `SCRAM-SHA-512` |
//! | iterations | of PBKDF2, decimal, 4096 to 1,000,000 |
//! | salt | base64 |
//! | stored key | base64 of H(ClientKey) |
//! | server key | base64 |
//!
//! joined by `:`. The terms are RFC 5802's, the format of the file is ours. Lines that cannot be
//! understood are reported by number, never quoted, and do not hide the others.
//!
//! Passwords are taken byte for byte: SASLprep is not applied, so a password outside ASCII must be
//! typed in the same composed form on both sides.

use base64ct::{Base64, Encoding};
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256, Sha512};
use subtle::ConstantTimeEq;

/// The fewest iterations accepted (RFC 7677).
pub const MIN_ITERATIONS: u32 = 4096;
/// The most iterations accepted: the client computes them all.
pub const MAX_ITERATIONS: u32 = 1_000_000;
/// Iterations of new verifiers.
pub const ITERATIONS: u32 = 16_384;
/// Bytes of salt of new verifiers.
pub const SALT: usize = 16;
/// The longest password in bytes.
pub const MAX_PASSWORD: usize = 1024;
/// The longest userid in bytes, as in Cyrus.
pub const MAX_USER: usize = 80;
/// The longest salt in bytes.
const MAX_SALT: usize = 256;

/// The hash of a SCRAM mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// SCRAM-SHA-256
    Sha256,
    /// SCRAM-SHA-512
    Sha512,
}

impl Hash {
    /// Both, the stronger first.
    pub const ALL: [Hash; 2] = [Hash::Sha512, Hash::Sha256];

    /// The name of the mechanism.
    pub fn mechanism(self) -> &'static str {
        match self {
            Hash::Sha256 => "SCRAM-SHA-256",
            Hash::Sha512 => "SCRAM-SHA-512",
        }
    }

    /// The length of its keys in bytes.
    pub fn size(self) -> usize {
        match self {
            Hash::Sha256 => 32,
            Hash::Sha512 => 64,
        }
    }

    /// The hash of `data`.
    pub fn digest(self, data: &[u8]) -> Vec<u8> {
        match self {
            Hash::Sha256 => Sha256::digest(data).to_vec(),
            Hash::Sha512 => Sha512::digest(data).to_vec(),
        }
    }

    /// HMAC of `data`; the key may have any length.
    pub fn hmac(self, key: &[u8], data: &[u8]) -> Vec<u8> {
        const ANY: &str = "HMAC takes keys of any length";
        match self {
            Hash::Sha256 => {
                let mut mac = Hmac::<Sha256>::new_from_slice(key).expect(ANY);
                mac.update(data);
                mac.finalize().into_bytes().to_vec()
            }
            Hash::Sha512 => {
                let mut mac = Hmac::<Sha512>::new_from_slice(key).expect(ANY);
                mac.update(data);
                mac.finalize().into_bytes().to_vec()
            }
        }
    }

    /// The password after PBKDF2, from which all keys come.
    pub(crate) fn salted_password(self, password: &[u8], salt: &[u8], iterations: u32) -> Vec<u8> {
        let mut out = vec![0; self.size()];
        match self {
            Hash::Sha256 => pbkdf2::pbkdf2_hmac::<Sha256>(password, salt, iterations, &mut out),
            Hash::Sha512 => pbkdf2::pbkdf2_hmac::<Sha512>(password, salt, iterations, &mut out),
        }
        out
    }
}

/// What is kept of one user's password for one hash.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    /// The hash of all its keys.
    pub hash: Hash,
    /// Rounds of PBKDF2.
    pub iterations: u32,
    /// Public, random.
    pub salt: Vec<u8>,
    /// H(ClientKey).
    pub stored_key: Vec<u8>,
    /// Proves to the client that we know its verifier.
    pub server_key: Vec<u8>,
}

impl Verifier {
    /// The verifier of `password`. Slow on purpose: milliseconds for 10,000 iterations.
    pub fn derive(hash: Hash, password: &[u8], salt: &[u8], iterations: u32) -> Verifier {
        let salted = hash.salted_password(password, salt, iterations);
        Verifier {
            hash,
            iterations,
            salt: salt.to_vec(),
            stored_key: hash.digest(&hash.hmac(&salted, b"Client Key")),
            server_key: hash.hmac(&salted, b"Server Key"),
        }
    }

    /// Whether this is the password, in time that does not depend on how wrong it is.
    pub fn matches(&self, password: &[u8]) -> bool {
        let theirs = Verifier::derive(self.hash, password, &self.salt, self.iterations);
        theirs.stored_key.ct_eq(&self.stored_key).into()
    }

    /// A verifier for a user who does not exist: the same salt each time for the same name, so that
    /// it cannot be told from a real one, and keys nobody has. `model` is a real one to resemble.
    pub fn decoy(hash: Hash, user: &str, secret: &[u8], model: Option<&Verifier>) -> Verifier {
        let mut salt = hash.hmac(secret, format!("salt {user}").as_bytes());
        salt.truncate(model.map_or(SALT, |m| m.salt.len()));
        Verifier {
            hash,
            iterations: model.map_or(ITERATIONS, |m| m.iterations),
            salt,
            stored_key: hash.hmac(secret, format!("stored {user}").as_bytes()),
            server_key: hash.hmac(secret, format!("server {user}").as_bytes()),
        }
    }

    fn print(&self, user: &str) -> String {
        format!(
            "{user}:{}:{}:{}:{}:{}",
            self.hash.mechanism(),
            self.iterations,
            Base64::encode_string(&self.salt),
            Base64::encode_string(&self.stored_key),
            Base64::encode_string(&self.server_key)
        )
    }
}

/// Never shows the keys.
impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier")
            .field("hash", &self.hash)
            .field("iterations", &self.iterations)
            .finish_non_exhaustive()
    }
}

/// The content of a verifier file.
#[derive(Debug, Default)]
pub struct Verifiers {
    entries: Vec<(String, Verifier)>,
    /// Numbers, from 1, of lines that are neither a verifier nor a comment.
    pub bad_lines: Vec<usize>,
}

impl Verifiers {
    /// Reads the text of a file; cannot fail, see `bad_lines`.
    pub fn parse(text: &[u8]) -> Verifiers {
        let mut all = Verifiers::default();
        for (i, line) in text.split(|b| *b == b'\n').enumerate() {
            let line = line.trim_ascii();
            if line.is_empty() || line[0] == b'#' {
                continue;
            }
            match parse_line(line) {
                Some(entry) => all.entries.push(entry),
                None => all.bad_lines.push(i + 1),
            }
        }
        all
    }

    /// The verifier of a user for a hash; the first line if there are several.
    pub fn find(&self, user: &str, hash: Hash) -> Option<&Verifier> {
        let mut of_hash = self.entries.iter().filter(|(_, v)| v.hash == hash);
        of_hash.find(|(u, _)| u == user).map(|(_, v)| v)
    }

    /// Any verifier for a hash.
    pub fn any(&self, hash: Hash) -> Option<&Verifier> {
        let mut all = self.entries.iter().map(|(_, v)| v);
        all.find(|v| v.hash == hash)
    }

    /// The users, in the order of the file, each once, with their hashes.
    pub fn users(&self) -> Vec<(String, Vec<Hash>)> {
        let mut out: Vec<(String, Vec<Hash>)> = Vec::new();
        for (user, v) in &self.entries {
            match out.iter_mut().find(|(u, _)| u == user) {
                Some((_, hashes)) if hashes.contains(&v.hash) => {}
                Some((_, hashes)) => hashes.push(v.hash),
                None => out.push((user.clone(), vec![v.hash])),
            }
        }
        out
    }
}

/// `text` with the lines of `user` replaced by `verifiers`; everything else, comments and bad lines
/// included, stays byte for byte. The second value says whether the user had a line.
pub fn replace(text: &[u8], user: &str, verifiers: &[Verifier]) -> (Vec<u8>, bool) {
    let mut out = Vec::with_capacity(text.len() + 512);
    let mut found = false;
    for line in text.split_inclusive(|b| *b == b'\n') {
        let name = line.trim_ascii().split(|b| *b == b':').next();
        if name == Some(user.as_bytes()) && line.contains(&b':') {
            found = true;
            continue;
        }
        out.extend_from_slice(line);
    }
    if !out.is_empty() && !out.ends_with(b"\n") {
        out.push(b'\n');
    }
    for v in verifiers {
        out.extend_from_slice(v.print(user).as_bytes());
        out.push(b'\n');
    }
    (out, found)
}

/// Whether a name can be a userid: as in Cyrus at most 80 bytes, printable ASCII, no blanks and none
/// of `% & * / : ?`; here it may not begin like a comment either.
pub fn is_user(user: &str) -> bool {
    !user.is_empty()
        && user.len() <= MAX_USER
        && !user.starts_with('#')
        && user
            .bytes()
            .all(|b| b.is_ascii_graphic() && !b"%&*/:?".contains(&b))
}

/// The form in which a userid is looked up and compared with `admins`: in lower case if
/// `username_tolower` says so; `None` if it cannot be a userid. A realm is part of the name, and
/// names exist only if the file has them, so `loginrealms` and default domains have no say.
pub fn canonical_id(id: &str, tolower: bool) -> Option<String> {
    is_user(id).then(|| {
        if tolower {
            id.to_ascii_lowercase()
        } else {
            id.to_owned()
        }
    })
}

fn parse_line(line: &[u8]) -> Option<(String, Verifier)> {
    let line = std::str::from_utf8(line).ok()?;
    let fields: Vec<&str> = line.splitn(7, ':').collect();
    let &[user, mechanism, iterations, salt, stored_key, server_key] = &fields[..] else {
        return None;
    };
    let hash = Hash::ALL.into_iter().find(|h| h.mechanism() == mechanism)?;
    let verifier = Verifier {
        hash,
        iterations: iterations.parse().ok()?,
        salt: Base64::decode_vec(salt).ok()?,
        stored_key: Base64::decode_vec(stored_key).ok()?,
        server_key: Base64::decode_vec(server_key).ok()?,
    };
    let good = is_user(user)
        && (MIN_ITERATIONS..=MAX_ITERATIONS).contains(&verifier.iterations)
        && (1..=MAX_SALT).contains(&verifier.salt.len())
        && verifier.stored_key.len() == hash.size()
        && verifier.server_key.len() == hash.size();
    good.then(|| (user.to_owned(), verifier))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text() -> Vec<u8> {
        let both = Hash::ALL.map(|h| Verifier::derive(h, b"secret", b"0123456789abcdef", 4096));
        let (t, had) = replace(b"# senders\n\nbroken line", "repl", &both);
        assert!(!had);
        replace(&t, "other", &both[..1]).0
    }

    #[test]
    fn file_round_trip() {
        let all = Verifiers::parse(&text());
        assert_eq!(all.bad_lines, [3]);
        assert_eq!(
            all.users(),
            [
                ("repl".to_owned(), Hash::ALL.to_vec()),
                ("other".to_owned(), vec![Hash::Sha512])
            ]
        );
        for hash in Hash::ALL {
            let v = all.find("repl", hash).unwrap();
            assert!(v.matches(b"secret"));
            assert!(!v.matches(b"secret "));
            assert!(!v.matches(b""));
        }
        assert!(all.find("other", Hash::Sha256).is_none());
        assert!(all.find("rep", Hash::Sha256).is_none());
        assert!(all.any(Hash::Sha256).is_some());
    }

    #[test]
    fn replacing_touches_one_user_only() {
        let (t, had) = replace(&text(), "repl", &[]);
        assert!(had);
        assert!(t.starts_with(b"# senders\n\nbroken line\nother:SCRAM-SHA-512:4096:"));
        assert_eq!(Verifiers::parse(&t).users().len(), 1);
        assert_eq!(replace(&t, "repl", &[]), (t.clone(), false));
        assert!(!replace(b"broken\n", "broken", &[]).1);
    }

    #[test]
    fn bad_lines_are_counted_and_skipped() {
        let good = String::from_utf8(text()).unwrap();
        let good = good.lines().find(|l| l.starts_with("repl")).unwrap();
        for bad in [
            good.replace(":4096:", ":4095:"),
            good.replace(":4096:", ":4000000:"),
            good.replace(":4096:", ":x:"),
            good.replace("SHA-512", "SHA-1"),
            good.replace("SHA-512", "SHA-256"),
            good.replace("repl:", "re pl:"),
            good.replace("repl:", ":"),
            format!("{good}:"),
            format!("{good}="),
            good[..good.len() - 4].to_owned(),
            "\u{e9}".to_owned(),
        ] {
            let all = Verifiers::parse(format!("{bad}\n{good}\n").as_bytes());
            assert_eq!(all.bad_lines, [1], "{bad}");
            assert_eq!(all.users().len(), 1);
        }
        assert_eq!(Verifiers::parse(b"\xff\xfe:\n").bad_lines, [1]);
    }

    #[test]
    fn decoys_are_stable_and_fit_the_model() {
        let all = Verifiers::parse(&text());
        let model = all.any(Hash::Sha256);
        let a = Verifier::decoy(Hash::Sha256, "nobody", b"key", model);
        assert_eq!(a, Verifier::decoy(Hash::Sha256, "nobody", b"key", model));
        assert_eq!((a.iterations, a.salt.len()), (4096, 16));
        assert_ne!(
            a.salt,
            Verifier::decoy(Hash::Sha256, "anna", b"key", model).salt
        );
        assert_ne!(
            a.salt,
            Verifier::decoy(Hash::Sha256, "nobody", b"yek", model).salt
        );
    }

    #[test]
    fn userids() {
        assert_eq!(
            canonical_id("Repl@Ex.org", true),
            Some("repl@ex.org".into())
        );
        assert_eq!(canonical_id("Repl", false), Some("Repl".into()));
        let long = "x".repeat(MAX_USER + 1);
        for bad in ["", "a b", "a:b", "a%b", "a/b", "\u{e9}", "a\n", "#a", &long] {
            assert_eq!(canonical_id(bad, true), None, "{bad}");
        }
    }

    #[test]
    fn debug_shows_no_keys() {
        let v = Verifier::derive(Hash::Sha256, b"x", b"salt", 4096);
        assert!(!format!("{v:?}").contains("key"));
    }
}
