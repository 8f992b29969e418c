//! What replication says, as types: MAILBOX and its RECORDs, to and from dlist; and SYNC_CRC.
//!
//! Unknown keys are kept as they came. Numbers are decimal and unsigned; dates are seconds since
//! 1970, a negative one wraps to 2^64 - n as Cyrus prints it. Source: Cyrus
//! `imap/sync_support.c`; `doc/replication-protocol.md`.

use super::dlist::{Form, Value, print_to_vec};
use super::guid::Guid;
use crate::error::{Error, Kind, Result};
use crc32fast::Hasher;

/// The flag by which Cyrus marks a message that is gone for IMAP clients.
pub const EXPUNGED: &[u8] = b"\\Expunged";

/// The virtual annotation whose spelling differs between versions.
const THRID: &[u8] = b"/vendor/cmu/cyrus-imapd/thrid";

fn missing(what: &str, key: &str) -> Error {
    Error::new(Kind::Protocol, format!("{what} without a good {key}"))
}

/// One message of a mailbox, as a RECORD states it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// UID in its mailbox.
    pub uid: u32,
    /// Modification sequence.
    pub modseq: u64,
    /// Time of the last change on the server.
    pub last_updated: u64,
    /// Flags without `\Expunged`.
    pub flags: Vec<Value>,
    /// Whether `\Expunged` was among them.
    pub expunged: bool,
    /// IMAP's internal date.
    pub internaldate: u64,
    /// Size in bytes.
    pub size: u64,
    /// The message.
    pub guid: Guid,
    /// The ANNOTATIONS list, empty if there was none.
    pub annotations: Vec<Value>,
    /// Keys this version does not know.
    pub extra: Vec<(Vec<u8>, Value)>,
}

impl Record {
    /// Reads one element of RECORD.
    pub fn from_value(value: Value) -> Result<Record> {
        let Value::Kv(items) = value else {
            return Err(Error::new(
                Kind::Protocol,
                "RECORD holds something else than %()",
            ));
        };
        let (mut uid, mut modseq, mut last_updated) = (None, None, None);
        let (mut internaldate, mut size, mut guid) = (None, None, None);
        let mut flags = None;
        let mut annotations = Vec::new();
        let mut extra = Vec::new();
        for (key, value) in items {
            match key.as_slice() {
                b"UID" => uid = value.as_u64().and_then(|n| u32::try_from(n).ok()),
                b"MODSEQ" => modseq = value.as_u64(),
                b"LAST_UPDATED" => last_updated = value.as_u64(),
                b"INTERNALDATE" => internaldate = value.as_u64(),
                b"SIZE" => size = value.as_u64(),
                b"GUID" => guid = value.as_bytes().and_then(Guid::parse),
                b"FLAGS" => match value {
                    Value::List(list) => flags = Some(list),
                    _ => return Err(missing("RECORD", "FLAGS")),
                },
                b"ANNOTATIONS" => match value {
                    Value::List(list) => annotations = list,
                    Value::Nil => {}
                    _ => return Err(missing("RECORD", "ANNOTATIONS")),
                },
                _ => extra.push((key, value)),
            }
        }
        let mut flags = flags.ok_or_else(|| missing("RECORD", "FLAGS"))?;
        let before = flags.len();
        flags.retain(|f| {
            f.as_bytes()
                .is_none_or(|b| !b.eq_ignore_ascii_case(EXPUNGED))
        });
        Ok(Record {
            uid: uid
                .filter(|&n| n > 0)
                .ok_or_else(|| missing("RECORD", "UID"))?,
            modseq: modseq.ok_or_else(|| missing("RECORD", "MODSEQ"))?,
            last_updated: last_updated.ok_or_else(|| missing("RECORD", "LAST_UPDATED"))?,
            expunged: flags.len() < before,
            flags,
            internaldate: internaldate.ok_or_else(|| missing("RECORD", "INTERNALDATE"))?,
            size: size.ok_or_else(|| missing("RECORD", "SIZE"))?,
            guid: guid.ok_or_else(|| missing("RECORD", "GUID"))?,
            annotations,
            extra,
        })
    }

    /// The record as an element of RECORD, keys in the order Cyrus writes them.
    pub fn to_value(&self) -> Value {
        let mut flags = self.flags.clone();
        if self.expunged {
            // Cyrus writes system flags first and \Expunged behind \Draft, before \Seen.
            let at = flags
                .iter()
                .position(|f| {
                    !f.as_bytes().is_some_and(|b| {
                        [&b"\\deleted"[..], b"\\answered", b"\\flagged", b"\\draft"]
                            .iter()
                            .any(|s| b.eq_ignore_ascii_case(s))
                    })
                })
                .unwrap_or(flags.len());
            flags.insert(at, Value::Flag(EXPUNGED.to_vec()));
        }
        let mut items = vec![
            (b"UID".to_vec(), Value::num(self.uid)),
            (b"MODSEQ".to_vec(), Value::num(self.modseq)),
            (b"LAST_UPDATED".to_vec(), Value::num(self.last_updated)),
            (b"FLAGS".to_vec(), Value::List(flags)),
            (b"INTERNALDATE".to_vec(), Value::num(self.internaldate)),
            (b"SIZE".to_vec(), Value::num(self.size)),
            (b"GUID".to_vec(), Value::text(self.guid.to_string())),
        ];
        if !self.annotations.is_empty() {
            items.push((
                b"ANNOTATIONS".to_vec(),
                Value::List(self.annotations.clone()),
            ));
        }
        items.extend(self.extra.iter().cloned());
        Value::Kv(items)
    }

    /// What the record adds to the sums of its mailbox; an expunged one adds nothing.
    pub fn sums(&self) -> Sums {
        if self.expunged {
            return Sums::default();
        }
        let mut flagcrc = 0;
        for flag in &self.flags {
            if let Some(b) = flag.as_bytes() {
                flagcrc ^= crc32fast::hash(&b.to_ascii_lowercase());
            }
        }
        let record = crc32fast::hash(
            format!(
                "{} {} {} ({}) {} {}",
                self.uid, self.modseq, self.last_updated, flagcrc, self.internaldate, self.guid
            )
            .as_bytes(),
        );
        let (mut short, mut long) = (0, 0);
        for annotation in &self.annotations {
            let text = |key| annotation.get(key).and_then(Value::as_bytes).unwrap_or(b"");
            // USERID NIL is ignored from 3.2 on.
            if annotation.get("USERID") == Some(&Value::Nil) {
                continue;
            }
            let (entry, userid, value) = (text("ENTRY"), text("USERID"), text("VALUE"));
            let full = annotation_crc(self.uid, entry, userid, value);
            long ^= full;
            short ^= if entry == THRID {
                let zeros = value.iter().take_while(|&&b| b == b'0').count();
                let zeros = zeros.min(value.len().saturating_sub(1));
                annotation_crc(self.uid, entry, userid, &value[zeros..])
            } else {
                full
            };
        }
        Sums {
            record,
            annot_short: short,
            annot_long: long,
        }
    }
}

fn annotation_crc(uid: u32, entry: &[u8], userid: &[u8], value: &[u8]) -> u32 {
    let mut h = Hasher::new();
    h.update(uid.to_string().as_bytes());
    h.update(b" ");
    h.update(entry);
    h.update(b" ");
    h.update(userid);
    h.update(b" ");
    h.update(value);
    h.finalize()
}

/// SYNC_CRC and SYNC_CRC_ANNOT without their start values: XORs over the live records of a
/// mailbox. Thread ids are written without leading zeros up to 3.12 (`short`) and with 16 digits
/// from 3.13 on (`long`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// SYNC_CRC.
    pub record: u32,
    /// SYNC_CRC_ANNOT before its start value, thread ids short.
    pub annot_short: u32,
    /// The same, thread ids long.
    pub annot_long: u32,
}

impl Sums {
    /// Adds or takes away: XOR is its own inverse.
    pub fn toggle(&mut self, other: Sums) {
        self.record ^= other.record;
        self.annot_short ^= other.annot_short;
        self.annot_long ^= other.annot_long;
    }

    /// Whether a sender's sums describe the same records. A zero or absent value of the sender
    /// cannot be checked and agrees with everything.
    pub fn agrees(&self, crc: Option<u32>, crc_annot: Option<u32>) -> bool {
        /// Start value from 3.2 on; before, it was 0.
        const START: u32 = 12_345_678;
        let records = match crc {
            None | Some(0) => true,
            Some(c) => c == self.record,
        };
        let annotations = match crc_annot {
            None | Some(0) => true,
            Some(c) => [self.annot_short, self.annot_long]
                .iter()
                .any(|&s| c == s || c == s ^ START),
        };
        records && annotations
    }
}

/// All keys of a MAILBOX but RECORD, in order of arrival.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MailboxHead {
    /// The keys as they came.
    pub keys: Vec<(Vec<u8>, Value)>,
}

impl MailboxHead {
    /// The value under `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.keys
            .iter()
            .find(|(k, _)| k == key.as_bytes())
            .map(|(_, v)| v)
    }

    /// Replaces the value under `key`, or adds it at the end.
    pub fn set(&mut self, key: &str, value: Value) {
        match self.keys.iter_mut().find(|(k, _)| k == key.as_bytes()) {
            Some((_, v)) => *v = value,
            None => self.keys.push((key.as_bytes().to_vec(), value)),
        }
    }

    /// Removes `key`.
    pub fn remove(&mut self, key: &str) {
        self.keys.retain(|(k, _)| k != key.as_bytes());
    }

    /// A number that is there; anything else under the key is no number.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.get(key).and_then(Value::as_u64)
    }

    /// A 32-bit sum.
    pub fn sum(&self, key: &str) -> Option<u32> {
        self.number(key).map(|n| n as u32)
    }

    /// A text; NIL and absent are `None`.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }

    /// The mailbox's identity.
    pub fn uniqueid(&self) -> Result<&str> {
        self.text("UNIQUEID")
            .filter(|s| !s.is_empty() && s.len() <= 255 && s.bytes().all(|b| b.is_ascii_graphic()))
            .ok_or_else(|| missing("MAILBOX", "UNIQUEID"))
    }

    /// The mailbox's internal name; not yet checked by `mboxname`.
    pub fn mboxname(&self) -> Result<&str> {
        self.text("MBOXNAME")
            .ok_or_else(|| missing("MAILBOX", "MBOXNAME"))
    }

    /// A placeholder in the hierarchy, without content: six keys and no RECORD.
    pub fn is_intermediate(&self) -> bool {
        self.text("MBOXTYPE").is_some_and(|t| t.contains('i'))
    }

    /// Checks the keys that the real server requires.
    pub fn check(&self) -> Result<()> {
        self.uniqueid()?;
        self.mboxname()?;
        if self.is_intermediate() {
            return Ok(());
        }
        for key in [
            "LAST_UID",
            "HIGHESTMODSEQ",
            "RECENTUID",
            "RECENTTIME",
            "LAST_APPENDDATE",
            "POP3_LAST_LOGIN",
            "UIDVALIDITY",
        ] {
            if self.number(key).is_none() {
                return Err(missing("MAILBOX", key));
            }
        }
        for key in ["PARTITION", "ACL", "OPTIONS"] {
            if self.get(key).and_then(Value::as_bytes).is_none() {
                return Err(missing("MAILBOX", key));
            }
        }
        Ok(())
    }

    /// The keys as a reply to GET carries them: those that stock clients know and compare,
    /// exactly as they came, without FOLDERMODSEQ and RACLMODSEQ, which a client would copy into
    /// its own server when they are higher.
    pub fn reply(&self) -> Value {
        const SHOWN: [&str; 20] = [
            "UNIQUEID",
            "MBOXNAME",
            "MBOXTYPE",
            "SYNC_CRC",
            "SYNC_CRC_ANNOT",
            "LAST_UID",
            "HIGHESTMODSEQ",
            "RECENTUID",
            "RECENTTIME",
            "LAST_APPENDDATE",
            "POP3_LAST_LOGIN",
            "POP3_SHOW_AFTER",
            "XCONVMODSEQ",
            "UIDVALIDITY",
            "PARTITION",
            "ACL",
            "OPTIONS",
            "QUOTAROOT",
            "CREATEDMODSEQ",
            "ANNOTATIONS",
        ];
        Value::Kv(
            SHOWN
                .iter()
                .filter_map(|key| self.get(key).map(|v| (key.as_bytes().to_vec(), v.clone())))
                .collect(),
        )
    }

    /// The keys as canonical text of one key-value list.
    pub fn print(&self) -> Vec<u8> {
        print_to_vec(&Value::Kv(self.keys.clone()), Form::Log)
    }
}

#[cfg(test)]
mod tests {
    use super::super::dlist::{Limits, Parser};
    use super::*;

    fn value(text: &str) -> Value {
        Parser::new(format!("{text}\r\n").as_bytes(), Limits::default())
            .value()
            .unwrap()
    }

    const RECORD: &str = "%(UID 1 MODSEQ 2 LAST_UPDATED 1795439789 FLAGS (\\Seen) INTERNALDATE \
        1795439789 SIZE 91 GUID 5a184cd1a6222c5bdef730087d1de284fe479ccd ANNOTATIONS \
        (%(ENTRY /vendor/cmu/cyrus-imapd/savedate USERID \"\" MODSEQ 0 VALUE 1795439789) \
        %(ENTRY /vendor/cmu/cyrus-imapd/createdmodseq USERID \"\" MODSEQ 0 VALUE 2)))";

    #[test]
    fn sums_of_a_real_mailbox() {
        // A first sync of Cyrus 3.6.1 with SYNC_CRC 651384018 SYNC_CRC_ANNOT 3892212918.
        let r = Record::from_value(value(RECORD)).unwrap();
        assert!(r.sums().agrees(Some(651_384_018), Some(3_892_212_918)));
        assert!(!r.sums().agrees(Some(651_384_019), Some(3_892_212_918)));
        assert!(!r.sums().agrees(Some(651_384_018), Some(3_892_212_919)));
        assert!(r.sums().agrees(None, Some(0)));
    }

    #[test]
    fn record_round_trip() {
        let v = value(RECORD);
        let mut r = Record::from_value(v.clone()).unwrap();
        assert_eq!(r.to_value(), v);
        r.expunged = true;
        let back = Record::from_value(r.to_value()).unwrap();
        assert_eq!(back, r);
        assert_eq!(r.sums(), Sums::default());
    }

    #[test]
    fn refuses_what_lacks_a_key() {
        for text in [
            "%(UID 0 MODSEQ 1)",
            "(a)",
            "%(UID 1 MODSEQ 2 LAST_UPDATED 3 INTERNALDATE 4 SIZE 5 GUID 5a184cd1a6222c5bdef730087d1de284fe479ccd)",
            "%(UID 1 MODSEQ 2 LAST_UPDATED 3 FLAGS () INTERNALDATE 4 SIZE 5 GUID 5a)",
        ] {
            assert_eq!(
                Record::from_value(value(text)).unwrap_err().kind(),
                Kind::Protocol
            );
        }
    }
}
