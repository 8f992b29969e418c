//! The server side of SCRAM-SHA-256 and SCRAM-SHA-512 (RFC 5802, RFC 7677).
//!
//! A state machine over messages: no I/O, entropy and verifiers are handed in. Channel binding is
//! not offered, so a client that demands it (`p=`) is refused, and one that only could (`y`) is not.
//! An authorization id must equal the user. Messages must have the attributes in the order of the
//! RFC; unknown ones at the end are part of what is signed and otherwise ignored.
//!
//! A user who does not exist gets a decoy verifier from the caller and fails at the proof, like
//! anyone with a wrong password.

use base64ct::{Base64, Encoding};
use subtle::ConstantTimeEq;

use crate::proto::verifier::Verifier;

/// The longest client message in bytes.
const MAX_MESSAGE: usize = 2048;
/// The longest user name in a message, longer than any valid one.
const MAX_NAME: usize = 256;

/// What the first client message says.
pub struct ClientFirst {
    user: String,
    gs2_header: String,
    bare: String,
    nonce: String,
}

impl ClientFirst {
    /// Takes the message apart; the error is a reason for the log.
    pub fn parse(message: &[u8]) -> Result<ClientFirst, &'static str> {
        if message.len() > MAX_MESSAGE {
            return Err("message too long");
        }
        let text = std::str::from_utf8(message).map_err(|_| "message is not UTF-8")?;
        let mut parts = text.splitn(3, ',');
        let (Some(flag), Some(authzid), Some(bare)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err("bad GS2 header");
        };
        match flag {
            "n" | "y" => {}
            _ if flag.starts_with("p=") => return Err("channel binding not supported"),
            _ => return Err("bad GS2 header"),
        }
        let mut attrs = bare.split(',');
        let name = attrs.next().unwrap_or_default();
        if name.starts_with("m=") {
            return Err("unknown mandatory extension");
        }
        let user = saslname(name.strip_prefix("n=").ok_or("no user name")?)?;
        let nonce = attrs.next().and_then(|a| a.strip_prefix("r="));
        let nonce = nonce.ok_or("no nonce")?;
        if nonce.is_empty() || !nonce.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("bad nonce");
        }
        if !authzid.is_empty() {
            let authzid = authzid.strip_prefix("a=").ok_or("bad GS2 header")?;
            if saslname(authzid)? != user {
                return Err("authorization as somebody else refused");
            }
        }
        Ok(ClientFirst {
            user,
            gs2_header: format!("{flag},{authzid},"),
            bare: bare.to_owned(),
            nonce: nonce.to_owned(),
        })
    }

    /// The user who wants to log in, as the client wrote it.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The server's first message and what is needed to check the client's last. `nonce` is fresh
    /// random text without commas.
    pub fn challenge(self, verifier: Verifier, nonce: &str) -> (Vec<u8>, Pending) {
        let nonce = format!("{}{nonce}", self.nonce);
        let server_first = format!(
            "r={nonce},s={},i={}",
            Base64::encode_string(&verifier.salt),
            verifier.iterations
        );
        let start = format!(
            "c={},r={nonce}",
            Base64::encode_string(self.gs2_header.as_bytes())
        );
        let signed = format!("{},{server_first},", self.bare);
        let pending = Pending {
            user: self.user,
            verifier,
            start,
            signed,
        };
        (server_first.into_bytes(), pending)
    }
}

/// An exchange that waits for the client's proof.
pub struct Pending {
    user: String,
    verifier: Verifier,
    /// How the client's final message must begin: its header again and the whole nonce.
    start: String,
    /// What both sides sign, up to the client's final message.
    signed: String,
}

impl Pending {
    /// The user who is to prove himself.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Checks the client's final message: the server's final one, or a reason for the log.
    pub fn verify(&self, message: &[u8]) -> Result<Vec<u8>, &'static str> {
        if message.len() > MAX_MESSAGE {
            return Err("message too long");
        }
        let text = std::str::from_utf8(message).map_err(|_| "message is not UTF-8")?;
        let (unproved, proof) = text.rsplit_once(",p=").ok_or("no proof")?;
        match unproved.strip_prefix(self.start.as_str()) {
            Some(rest) if rest.is_empty() || rest.starts_with(',') => {}
            _ => return Err("wrong channel binding or nonce"),
        }
        let hash = self.verifier.hash;
        let proof = Base64::decode_vec(proof).map_err(|_| "bad proof")?;
        if proof.len() != hash.size() {
            return Err("bad proof");
        }
        let auth_message = format!("{}{unproved}", self.signed);
        let signature = hash.hmac(&self.verifier.stored_key, auth_message.as_bytes());
        let client_key: Vec<u8> = signature.iter().zip(&proof).map(|(s, p)| s ^ p).collect();
        let known: bool = hash
            .digest(&client_key)
            .ct_eq(&self.verifier.stored_key)
            .into();
        if !known {
            return Err("unknown user or wrong password");
        }
        let ours = hash.hmac(&self.verifier.server_key, auth_message.as_bytes());
        Ok(format!("v={}", Base64::encode_string(&ours)).into_bytes())
    }
}

/// Decodes a name: `=2C` is a comma and `=3D` an equals sign, and no other `=` may occur.
fn saslname(text: &str) -> Result<String, &'static str> {
    if text.len() > MAX_NAME {
        return Err("user name too long");
    }
    let mut parts = text.split('=');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        if let Some(rest) = part.strip_prefix("2C") {
            out.push(',');
            out.push_str(rest);
        } else if let Some(rest) = part.strip_prefix("3D") {
            out.push('=');
            out.push_str(rest);
        } else {
            return Err("bad user name");
        }
    }
    if out.is_empty() || out.contains('\0') {
        return Err("bad user name");
    }
    Ok(out)
}

/// The client's side, for tests.
#[cfg(test)]
pub(crate) mod client {
    use super::*;
    use crate::proto::verifier::Hash;

    /// The final message for a server-first, and the server-final that should follow.
    pub(crate) fn answer(
        hash: Hash,
        header: &str,
        bare: &str,
        password: &[u8],
        server_first: &[u8],
    ) -> (Vec<u8>, Vec<u8>) {
        let first = std::str::from_utf8(server_first).unwrap();
        let mut attrs = first.split(',');
        let nonce = &attrs.next().unwrap()[2..];
        let salt = Base64::decode_vec(&attrs.next().unwrap()[2..]).unwrap();
        let iterations: u32 = attrs.next().unwrap()[2..].parse().unwrap();
        // PBKDF2 by its definition, not with the code under test.
        let mut u = hash.hmac(password, &[&salt[..], &[0, 0, 0, 1]].concat());
        let mut salted = u.clone();
        for _ in 1..iterations {
            u = hash.hmac(password, &u);
            salted.iter_mut().zip(&u).for_each(|(s, u)| *s ^= u);
        }
        let client_key = hash.hmac(&salted, b"Client Key");
        let c = Base64::encode_string(header.as_bytes());
        let unproved = format!("c={c},r={nonce}");
        let message = format!("{bare},{first},{unproved}");
        let signature = hash.hmac(&hash.digest(&client_key), message.as_bytes());
        let proof: Vec<u8> = signature
            .iter()
            .zip(&client_key)
            .map(|(s, k)| s ^ k)
            .collect();
        let server = hash.hmac(&hash.hmac(&salted, b"Server Key"), message.as_bytes());
        (
            format!("{unproved},p={}", Base64::encode_string(&proof)).into_bytes(),
            format!("v={}", Base64::encode_string(&server)).into_bytes(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::verifier::Hash;

    #[test]
    fn example_of_rfc_7677() {
        let salt = Base64::decode_vec("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let verifier = Verifier::derive(Hash::Sha256, b"pencil", &salt, 4096);
        let first = ClientFirst::parse(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO").unwrap();
        assert_eq!(first.user(), "user");
        let (challenge, pending) = first.challenge(verifier, "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0");
        assert_eq!(
            challenge,
            b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
        );
        let last = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
            p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        assert_eq!(
            pending.verify(last).unwrap(),
            b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
        );
        for i in 0..last.len() {
            let mut bad = last.to_vec();
            bad[i] ^= 1;
            assert!(pending.verify(&bad).is_err(), "byte {i}");
            assert!(pending.verify(&last[..i]).is_err(), "cut at {i}");
        }
    }

    #[test]
    fn both_hashes_and_all_headers() {
        for hash in Hash::ALL {
            for header in ["n,,", "y,,", "n,a=u=2Cx,"] {
                let v = Verifier::derive(hash, "p\u{e9}".as_bytes(), b"saltsalt", 4096);
                let bare = "n=u=2Cx,r=abc,ext=1";
                let first = ClientFirst::parse(format!("{header}{bare}").as_bytes()).unwrap();
                assert_eq!(first.user(), "u,x");
                let (challenge, pending) = first.challenge(v, "xyz");
                let (good, v) =
                    client::answer(hash, header, bare, "p\u{e9}".as_bytes(), &challenge);
                assert_eq!(pending.verify(&good).unwrap(), v);
                let (bad, _) = client::answer(hash, header, bare, b"pe", &challenge);
                assert_eq!(
                    pending.verify(&bad).unwrap_err(),
                    "unknown user or wrong password"
                );
            }
        }
    }

    #[test]
    fn first_messages_refused() {
        for (message, why) in [
            ("p=tls-unique,,n=u,r=x", "channel binding not supported"),
            (
                "n,a=admin,n=u,r=x",
                "authorization as somebody else refused",
            ),
            ("n,admin,n=u,r=x", "bad GS2 header"),
            ("x,,n=u,r=x", "bad GS2 header"),
            ("n,n=u", "bad GS2 header"),
            ("", "bad GS2 header"),
            ("n,,m=1,n=u,r=x", "unknown mandatory extension"),
            ("n,,r=x,n=u", "no user name"),
            ("n,,n=,r=x", "bad user name"),
            ("n,,n=a=b,r=x", "bad user name"),
            ("n,,n=a=,r=x", "bad user name"),
            ("n,,n=u", "no nonce"),
            ("n,,n=u,r=", "bad nonce"),
            ("n,,n=u,r=a b", "bad nonce"),
        ] {
            assert_eq!(
                ClientFirst::parse(message.as_bytes()).err(),
                Some(why),
                "{message}"
            );
        }
        assert!(ClientFirst::parse(b"n,,n=\xff,r=x").is_err());
        let long = format!("n,,n=u,r={}", "x".repeat(MAX_MESSAGE));
        assert!(ClientFirst::parse(long.as_bytes()).is_err());
    }
}
