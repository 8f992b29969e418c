//! Finding messages by what is known of them: header fields, mailbox, dates, flags, alive or deleted.
//!
//! From the index alone. First the header fields of all bodies are gone through, and the messages
//! that match are remembered by GUID; then the records of the wanted mailboxes. Fields are compared
//! decoded and without case; those that are plain ASCII, which is most, are not copied more than
//! once for it.

use super::index::{Field, Index, IsWanted, MailboxRow, RecordFilter, RecordRow};
use crate::cyrus::encoded::{decode, fold};
use crate::cyrus::header::Envelope;
use crate::cyrus::mboxname::{MboxName, Namespace};
use crate::error::Result;
use std::collections::HashSet;
use std::ops::RangeInclusive;

/// So many bodies are worth a second thread.
const MANY: i64 = 20_000;

/// Alive or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Both.
    #[default]
    Any,
    /// What the server has.
    Alive,
    /// What the server has no longer: expunged, gone, or in a deleted mailbox.
    Deleted,
}

/// What is looked for; all of it must be so. The default finds everything.
#[derive(Clone, Debug, Default)]
pub struct Query {
    headers: Vec<(Field, Vec<String>)>,
    /// Internal date not before, in seconds.
    pub since: Option<i64>,
    /// Internal date not after.
    pub until: Option<i64>,
    /// Alive or deleted.
    pub state: State,
    /// Deleted not before; such a message is deleted.
    pub deleted_since: Option<i64>,
    /// Deleted not after.
    pub deleted_until: Option<i64>,
    /// Flags that are set; without case.
    pub flags: Vec<String>,
    /// Flags that are not.
    pub not_flags: Vec<String>,
}

/// A message that was found, in one mailbox.
#[derive(Debug)]
pub struct Hit<'a> {
    /// Where it is, or was.
    pub mailbox: &'a MailboxRow,
    /// The message there.
    pub record: RecordRow,
    /// When it was deleted: by itself, or with its mailbox.
    pub deleted: Option<i64>,
    /// Its header fields, decoded; `None` if no body came.
    pub envelope: Option<Envelope>,
}

impl Query {
    /// Wants every word of `text` somewhere in the field, in any case; with what was wanted before.
    pub fn header(&mut self, field: Field, text: &str) {
        let words = text.split_whitespace().map(fold);
        match self.headers.iter_mut().find(|(f, _)| *f == field) {
            Some((_, wanted)) => wanted.extend(words),
            None => self.headers.push((field, words.collect())),
        }
    }

    /// Hands all messages that match to `each`, by mailbox, epoch and UID. Looks only into mailboxes
    /// that `within` accepts. Stops at the first error.
    pub fn run(
        &self,
        index: &Index,
        ns: &Namespace,
        within: &dyn Fn(&MailboxRow) -> bool,
        each: &mut dyn FnMut(Hit<'_>) -> Result<()>,
    ) -> Result<()> {
        let with_deleted = self.state != State::Alive;
        let mut mailboxes = index.mailboxes(with_deleted)?;
        mailboxes.retain(|m| within(m));
        if mailboxes.is_empty() {
            return Ok(());
        }
        let guids = match self.headers.is_empty() {
            true => None,
            false => Some(self.guids(index, MANY)?),
        };
        if guids.as_ref().is_some_and(HashSet::is_empty) {
            return Ok(());
        }
        let is_found = |guid: &[u8]| guids.as_ref().is_some_and(|g| g.contains(guid));
        let wanted: Option<&IsWanted<'_>> = guids.as_ref().map(|_| &is_found as _);
        // In the rows flags may be quoted; of such there is no telling without reading them.
        let atoms = self.flags.iter().map(|f| f.trim_start_matches('\\'));
        let atoms = atoms.filter(|f| f.bytes().all(|b| b.is_ascii_alphanumeric()));
        let flags: Vec<String> = atoms.map(str::to_ascii_lowercase).collect();
        for mailbox in &mailboxes {
            let with_it = deleted_at(mailbox, ns);
            let filter = RecordFilter {
                since: self.since,
                until: self.until,
                expunged: match (self.state, with_it) {
                    (State::Alive, Some(_)) => continue,
                    (State::Alive, None) => Some(false),
                    (State::Deleted, None) => Some(true),
                    _ => None,
                },
                flags: flags.clone(),
            };
            index.records_where(mailbox.id, &filter, wanted, &mut |record| {
                let deleted = record.expunged.or(with_it);
                if !self.is_wanted(&record, deleted) {
                    return Ok(());
                }
                let envelope = index.envelope(&record.record.guid.0)?;
                each(Hit {
                    mailbox,
                    record,
                    deleted,
                    envelope: envelope.map(decoded),
                })
            })?;
        }
        Ok(())
    }

    /// Of which bodies the header fields match. `many` and more are gone through by two threads.
    fn guids(&self, index: &Index, many: i64) -> Result<HashSet<[u8; 20]>> {
        let last = index.last_message()?;
        if last < many {
            return self.guids_in(index, 0..=last);
        }
        let generation = index.meta_text("generation")?;
        let path = index.path().to_owned();
        let half = last / 2;
        std::thread::scope(|scope| {
            let helper = scope.spawn(|| {
                let twin = Index::open_read_only(&path)?;
                twin.begin_read()?;
                // Another index may be in its place by now.
                match twin.meta_text("generation")? == generation {
                    true => self.guids_in(&twin, half + 1..=last).map(Some),
                    false => Ok(None),
                }
            });
            let mut found = self.guids_in(index, 0..=half);
            let further = helper.join();
            if let Ok(found) = &mut found {
                found.extend(match further {
                    Ok(Ok(Some(further))) => further,
                    _ => self.guids_in(index, half + 1..=last)?,
                });
            }
            found
        })
    }

    fn guids_in(&self, index: &Index, range: RangeInclusive<i64>) -> Result<HashSet<[u8; 20]>> {
        let fields: Vec<Field> = self.headers.iter().map(|(field, _)| *field).collect();
        let mut found = HashSet::new();
        let mut lower = Vec::new();
        index.fields(&fields, range, &mut |guid, values| {
            let matches = self
                .headers
                .iter()
                .zip(values)
                .all(|((_, words), value)| has_all(value, words, &mut lower));
            if let (true, Ok(guid)) = (matches, guid.try_into()) {
                found.insert(guid);
            }
            Ok(())
        })?;
        Ok(found)
    }

    fn is_wanted(&self, row: &RecordRow, deleted: Option<i64>) -> bool {
        let after = self
            .deleted_since
            .is_none_or(|t| deleted.is_some_and(|d| d >= t));
        let before = self
            .deleted_until
            .is_none_or(|t| deleted.is_some_and(|d| d <= t));
        let has = |flag: &String| {
            let mut flags = row.record.flags.iter().filter_map(|f| f.as_bytes());
            flags.any(|f| f.eq_ignore_ascii_case(flag.as_bytes()))
        };
        after && before && self.flags.iter().all(has) && !self.not_flags.iter().any(has)
    }
}

/// When a mailbox was deleted. One that the server keeps below the deleted prefix has been since the
/// time in its name.
pub fn deleted_at(mailbox: &MailboxRow, ns: &Namespace) -> Option<i64> {
    let name = MboxName::parse(&mailbox.mboxname, ns).ok();
    name.and_then(|n| n.deleted()).or(mailbox.deleted)
}

/// Whether a field has all words, which are folded. `lower` is for reuse.
fn has_all(value: &[u8], words: &[String], lower: &mut Vec<u8>) -> bool {
    // Encoded words have some.
    let plain = value.is_ascii() && !value.contains(&b'?');
    if !plain {
        let text = fold(&decode(&String::from_utf8_lossy(value)));
        return words.iter().all(|w| text.contains(w.as_str()));
    }
    lower.clear();
    lower.extend_from_slice(value);
    lower.make_ascii_lowercase();
    match std::str::from_utf8(lower) {
        Ok(text) => words.iter().all(|w| text.contains(w.as_str())),
        Err(_) => false,
    }
}

/// The same fields with their encoded words decoded.
pub fn decoded(envelope: Envelope) -> Envelope {
    let text = |value: Option<String>| value.map(|v| decode(&v).into_owned());
    Envelope {
        from: text(envelope.from),
        to: text(envelope.to),
        cc: text(envelope.cc),
        subject: text(envelope.subject),
        message_id: envelope.message_id,
        date: envelope.date,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cyrus::guid::Guid;

    #[test]
    fn fields_are_asked_for_once() {
        let mut query = Query::default();
        for n in 0..20 {
            query.header(Field::From, &format!("a{n} B"));
            query.header(Field::Cc, "c");
        }
        let counts: Vec<_> = query.headers.iter().map(|(_, w)| w.len()).collect();
        assert_eq!(counts, [40, 20]);
    }

    #[test]
    fn two_threads_find_what_one_finds() {
        let name = format!("cyrb-search-{}.index", std::process::id());
        let path = &std::env::temp_dir().join(name);
        let index = Index::create(path).unwrap();
        index.begin().unwrap();
        for n in 0..201_u8 {
            let envelope = Envelope {
                subject: Some(format!("number {}", n % 7)),
                ..Envelope::default()
            };
            let time = crate::util::time::Timestamp(1);
            index
                .message(Guid([n; 20]), 1, 0, 1, "default", &envelope, time)
                .unwrap();
        }
        index.set_meta("generation", "some").unwrap();
        index.commit().unwrap();
        let mut query = Query::default();
        query.header(Field::Subject, "NUMBER 3");
        let found = query.guids(&index, 1).unwrap();
        assert_eq!(found, query.guids(&index, MANY).unwrap());
        let wanted = (0..201_u8).filter(|n| n % 7 == 3);
        assert_eq!(found, wanted.map(|n| [n; 20]).collect());
        // One that cannot be opened a second time, or is another by now.
        std::fs::remove_file(path).unwrap();
        assert_eq!(found, query.guids(&index, 1).unwrap());
        crate::store::index::remove(path).unwrap();
        let other = Index::create(path).unwrap();
        other.set_meta("generation", "another").unwrap();
        assert_eq!(found, query.guids(&index, 1).unwrap());
        crate::store::index::remove(path).unwrap();
    }

    #[test]
    fn words_are_anded_and_case_is_none() {
        let has = |value: &str, text: &str| {
            let words: Vec<String> = text.split_whitespace().map(fold).collect();
            has_all(value.as_bytes(), &words, &mut b"old".to_vec())
        };
        assert!(has("Quarterly Report", "REPORT quart"));
        assert!(!has("Quarterly Report", "report annual"));
        assert!(has("anything", "") && has("", ""));
        assert!(!has("", "x"));
        assert!(has("=?utf-8?Q?Gr=C3=9C=C3=9Fe?=", "gr\u{fc}\u{df}"));
        assert!(!has("=?utf-8?Q?Gr=C3=9C=C3=9Fe?=", "utf-8"));
        assert!(has("M\u{dc}LLER =? x", "m\u{fc}ller =?"));
    }
}
