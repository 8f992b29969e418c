//! What is in a mailbox of a foreign server, and whether a message of ours is among it.
//!
//! There are no GUIDs to compare. Size and internal date are asked for all messages; where both are
//! equal the Message-ID decides, and where one has none, SHA-1 of what the server has. A server that
//! tells SHA-1 by itself (Cyrus, `DIGEST=SHA1`) is asked for that. Each message there stands for one
//! of ours.

use super::text::parse_date;
use crate::client::imap::Imap;
use crate::client::imap::response::Token;
use crate::cyrus::guid::Guid;
use crate::cyrus::header::Envelope;
use crate::error::{Error, Kind, Result};
use crate::restore::{Bodies, Item};
use sha1::{Digest, Sha1};
use std::collections::{HashMap, HashSet};

/// UIDs in one FETCH.
const AT_ONCE: usize = 500;

/// Bytes of a message fetched at once.
const PART: u64 = 256 * 1024;

/// Size and internal date.
type Key = (u64, i64);

/// Messages of the selected mailbox.
pub struct There {
    by_key: HashMap<Key, Vec<u32>>,
    /// What is known of some of them.
    known: HashMap<u32, Known>,
    /// Flags, if they were asked for.
    flags: HashMap<u32, Vec<String>>,
}

enum Known {
    Guid(Guid),
    MessageId(Option<String>),
}

/// `FETCH` data as pairs of a name and a value.
fn pairs(data: &[Token]) -> Option<&[Token]> {
    match data {
        [_, word, Token::List(pairs)] if word.is("FETCH") => Some(pairs),
        _ => None,
    }
}

fn item<'a>(pairs: &'a [Token], name: &str) -> Option<&'a Token> {
    let mut pairs = pairs.chunks_exact(2);
    pairs.find(|p| p[0].is(name)).map(|p| &p[1])
}

fn checked(outcome: crate::client::imap::response::Outcome) -> Result<()> {
    match outcome.is_ok() {
        true => Ok(()),
        false => Err(Error::new(Kind::Protocol, format!("FETCH: {outcome}"))),
    }
}

impl There {
    /// Nothing.
    pub fn none() -> There {
        There {
            by_key: HashMap::new(),
            known: HashMap::new(),
            flags: HashMap::new(),
        }
    }

    /// Asks for all messages of the mailbox, and looks closer at those that may be some of `items`.
    pub fn ask(imap: &mut Imap, items: &[Item], with_flags: bool) -> Result<There> {
        let wanted: HashSet<Key> = items.iter().map(key).collect();
        let mut there = There::none();
        let what = match with_flags {
            true => "UID FETCH 1:* (UID RFC822.SIZE INTERNALDATE FLAGS)",
            false => "UID FETCH 1:* (UID RFC822.SIZE INTERNALDATE)",
        };
        let outcome = imap.command(what.as_bytes(), &mut |data| {
            there.list(data, &wanted, with_flags);
            Ok(())
        })?;
        checked(outcome)?;
        let mut uids: Vec<u32> = there.by_key.values().flatten().copied().collect();
        uids.sort_unstable();
        for some in uids.chunks(AT_ONCE) {
            there.look(imap, some)?;
        }
        for list in there.by_key.values_mut() {
            list.sort_unstable_by(|a, b| b.cmp(a));
        }
        Ok(there)
    }

    fn list(&mut self, data: &[Token], wanted: &HashSet<Key>, with_flags: bool) -> Option<()> {
        let pairs = pairs(data)?;
        let uid = u32::try_from(item(pairs, "UID")?.number()?).ok()?;
        let size = item(pairs, "RFC822.SIZE")?.number()?;
        let date = parse_date(item(pairs, "INTERNALDATE")?.text()?)?;
        if !wanted.contains(&(size, date)) {
            return None;
        }
        let list = self.by_key.entry((size, date)).or_default();
        if !list.contains(&uid) {
            list.push(uid);
        }
        if with_flags {
            let flags = item(pairs, "FLAGS")?.list()?;
            let words = flags.iter().filter_map(Token::text);
            let words = words.filter(|f| !f.eq_ignore_ascii_case("\\Recent"));
            self.flags.insert(uid, words.map(str::to_owned).collect());
        }
        Some(())
    }

    /// Asks for SHA-1 or Message-ID of messages.
    fn look(&mut self, imap: &mut Imap, uids: &[u32]) -> Result<()> {
        let digest = imap.has("DIGEST=SHA1");
        let what = match digest {
            true => "DIGEST.SHA1",
            false => "BODY.PEEK[HEADER.FIELDS (MESSAGE-ID)]",
        };
        let set: Vec<String> = uids.iter().map(u32::to_string).collect();
        let command = format!("UID FETCH {} (UID {what})", set.join(","));
        let outcome = imap.command(command.as_bytes(), &mut |data| {
            self.note(data, digest);
            Ok(())
        })?;
        checked(outcome)
    }

    fn note(&mut self, data: &[Token], digest: bool) -> Option<()> {
        let pairs = pairs(data)?;
        let uid = u32::try_from(item(pairs, "UID")?.number()?).ok()?;
        let known = match digest {
            true => Known::Guid(Guid::parse(item(pairs, "DIGEST.SHA1")?.bytes()?)?),
            false => {
                let mut values = pairs.chunks_exact(2);
                let is_header = |t: &Token| t.text().is_some_and(|t| t.starts_with("BODY["));
                let header = values.find(|p| is_header(&p[0])).map(|p| &p[1])?;
                let header = header.bytes().unwrap_or_default();
                let id = Envelope::read(header).message_id;
                Known::MessageId(id.filter(|id| !id.is_empty()))
            }
        };
        self.known.insert(uid, known);
        Some(())
    }

    /// Whether a message of ours is there, and under which UID. It is then not there for another.
    pub fn take(
        &mut self,
        imap: &mut Imap,
        ours: &Item,
        bodies: &mut dyn Bodies,
    ) -> Result<Option<u32>> {
        let Some(mut uids) = self.by_key.remove(&key(ours)) else {
            return Ok(None);
        };
        let found = self.find(imap, &uids, ours, bodies);
        if let Ok(Some(at)) = &found {
            let uid = uids.remove(*at);
            self.by_key.insert(key(ours), uids);
            return Ok(Some(uid));
        }
        self.by_key.insert(key(ours), uids);
        found.map(|_| None)
    }

    /// Which of `uids` it is; the oldest stand last.
    fn find(
        &mut self,
        imap: &mut Imap,
        uids: &[u32],
        ours: &Item,
        bodies: &mut dyn Bodies,
    ) -> Result<Option<usize>> {
        let guid = ours.record.guid;
        let mut id = None;
        for (at, uid) in uids.iter().enumerate().rev() {
            let is_it = match self.known.get(uid) {
                Some(Known::Guid(theirs)) => *theirs == guid,
                Some(Known::MessageId(Some(theirs))) => {
                    if id.is_none() {
                        id = Some(bodies.message_id(guid)?);
                    }
                    match &id {
                        Some(Some(ours)) => ours == theirs,
                        _ => self.hashed(imap, *uid)? == guid,
                    }
                }
                Some(Known::MessageId(None)) | None => self.hashed(imap, *uid)? == guid,
            };
            if is_it {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }

    /// SHA-1 of a message as the server has it, remembered.
    fn hashed(&mut self, imap: &mut Imap, uid: u32) -> Result<Guid> {
        let mut hash = Sha1::new();
        let mut offset = 0;
        loop {
            let mut got = None;
            let command = format!("UID FETCH {uid} (UID BODY.PEEK[]<{offset}.{PART}>)");
            let outcome = imap.command(command.as_bytes(), &mut |data| {
                let body = pairs(data).and_then(|pairs| {
                    let mut pairs = pairs.chunks_exact(2);
                    let is_body = |t: &Token| t.text().is_some_and(|t| t.starts_with("BODY["));
                    pairs.find(|p| is_body(&p[0])).map(|p| &p[1])
                });
                if let Some(body) = body {
                    got = Some(body.bytes().unwrap_or_default().to_vec());
                }
                Ok(())
            })?;
            checked(outcome)?;
            let part = got.unwrap_or_default();
            hash.update(&part);
            offset += part.len() as u64;
            if (part.len() as u64) < PART {
                break;
            }
        }
        let guid = Guid(hash.finalize().into());
        self.known.insert(uid, Known::Guid(guid));
        Ok(guid)
    }

    /// Flags of a message, if they were asked for.
    pub fn flags(&self, uid: u32) -> &[String] {
        self.flags.get(&uid).map_or(&[], Vec::as_slice)
    }
}

fn key(item: &Item) -> Key {
    (item.record.size, item.record.internaldate as i64)
}
