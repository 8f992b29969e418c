//! Message GUIDs: SHA-1 of the raw message (Cyrus `imap/message_guid.c`).

use crate::util::hex;
use sha1::{Digest, Sha1};
use std::fmt;

/// A message's GUID: 20 bytes of SHA-1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Guid(pub [u8; 20]);

impl Guid {
    /// The null GUID, 40 zeros on the wire.
    pub const NULL: Guid = Guid([0; 20]);

    /// Parses exactly 40 hex digits of either case.
    pub fn parse(text: &[u8]) -> Option<Guid> {
        hex::decode::<20>(text).map(Guid)
    }

    /// The GUID of a whole message.
    pub fn of(message: &[u8]) -> Guid {
        Guid(Sha1::digest(message).into())
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
