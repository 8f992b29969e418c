//! Sending messages by APPEND: several in one command where the server takes that (MULTIAPPEND), and
//! several commands in flight.
//!
//! A command of several messages is refused as a whole: then each is sent alone, so that only what
//! the server does not want is not there. Small bodies are held in memory for a moment; of a large one
//! it is seen first that it can be read, since what was announced must be sent.

use super::text::{Permanent, date, flags};
use crate::client::imap::response::Outcome;
use crate::client::imap::{Imap, Tag, quote};
use crate::error::{Error, Kind, Result};
use crate::restore::{Bodies, Done, Item, is_of_message};
use std::collections::VecDeque;

/// Larger bodies are not held in memory.
const SMALL: u64 = 256 * 1024;

/// Messages and bytes of one command.
const BATCH: usize = 50;
const BATCH_BYTES: u64 = 1024 * 1024;

/// Commands and bytes that were sent and not answered.
const FLYING: usize = 16;
const FLYING_BYTES: u64 = 4 * 1024 * 1024;

/// A command that is not answered yet, and its messages.
struct Flying<'a> {
    tag: Tag,
    items: Vec<&'a Item>,
    bytes: u64,
}

/// Sends the messages of one mailbox.
pub struct Sender<'a> {
    imap: &'a mut Imap,
    bodies: &'a mut dyn Bodies,
    /// `APPEND "name"`
    command: Vec<u8>,
    permanent: &'a Permanent,
    done: &'a mut Done,
    flying: VecDeque<Flying<'a>>,
    /// The command being written.
    open: Option<Flying<'a>>,
    /// Keywords and flags the server does not keep.
    lost: Vec<String>,
}

impl<'a> Sender<'a> {
    /// A sender to a mailbox by its name at the server.
    pub fn new(
        imap: &'a mut Imap,
        bodies: &'a mut dyn Bodies,
        name: &str,
        permanent: &'a Permanent,
        done: &'a mut Done,
    ) -> Sender<'a> {
        let mut command = b"APPEND ".to_vec();
        // Names are UTF-7.
        let _ = quote(name.as_bytes(), &mut command);
        Sender {
            imap,
            bodies,
            command,
            permanent,
            done,
            flying: VecDeque::new(),
            open: None,
            lost: Vec::new(),
        }
    }

    /// Sends all; what is answered is in `done` also when this fails.
    pub fn send(mut self, items: &[&'a Item]) -> Result<()> {
        let sent = items.iter().try_for_each(|item| self.one(item));
        let sent = sent.and_then(|()| self.end_open());
        // What was sent already counts, if only the connection holds.
        let answered = match &sent {
            Err(e) if e.kind() != Kind::Stopping => Ok(()),
            _ => self.end_open().and_then(|()| self.land(0, 0)),
        };
        if !self.lost.is_empty() {
            self.lost.sort();
            self.lost.dedup();
            let what = format!("the server does not keep {}", self.lost.join(" "));
            self.done.notes.push(what);
        }
        sent.and(answered)
    }

    /// `(flags) "date" `, with or without keywords.
    fn head(&mut self, item: &Item, with_keywords: bool) -> Vec<u8> {
        let mut kept = Vec::new();
        for flag in flags(&item.record) {
            match self.permanent.keeps(&flag) {
                true if with_keywords || flag.starts_with('\\') => kept.push(flag),
                _ => self.lost.push(flag),
            }
        }
        let mut head = format!(" ({}) ", kept.join(" "));
        if let Some(date) = date(item.record.internaldate as i64) {
            head.push_str(&format!("\"{date}\" "));
        }
        head.into_bytes()
    }

    /// A small body; `None`, and told, if it cannot be had.
    fn small(&mut self, item: &Item) -> Result<Option<Vec<u8>>> {
        let mut body = Vec::new();
        let got = self.bodies.body(item.record.guid, &mut |part| {
            body.extend_from_slice(part);
            match body.len() as u64 > SMALL {
                true => Err(wrong_size()),
                false => Ok(()),
            }
        });
        match got {
            Ok(()) => Ok(Some(body)),
            Err(e) => self.told(item, e).map(|()| None),
        }
    }

    /// Whether a large body can be had; told if not.
    fn is_readable(&mut self, item: &Item) -> Result<bool> {
        let mut size = 0;
        let got = self.bodies.body(item.record.guid, &mut |part| {
            size += part.len() as u64;
            Ok(())
        });
        match got {
            Ok(()) if size == item.record.size => Ok(true),
            Ok(()) => self.told(item, wrong_size()).map(|()| false),
            Err(e) => self.told(item, e).map(|()| false),
        }
    }

    fn told(&mut self, item: &Item, e: Error) -> Result<()> {
        match is_of_message(&e) {
            true => self.done.failed.push((item.record.uid, e.to_string())),
            false => return Err(e),
        }
        Ok(())
    }

    /// Sends one message, in the command that is open if it fits.
    fn one(&mut self, item: &'a Item) -> Result<()> {
        let size = item.record.size;
        if let Some(limit) = self.imap.append_limit().filter(|&limit| size > limit) {
            let why = format!("{size} bytes; the server takes {limit} at most");
            self.done.failed.push((item.record.uid, why));
            return Ok(());
        }
        if size > SMALL {
            self.end_open()?;
            if !self.is_readable(item)? {
                return Ok(());
            }
            self.land(FLYING - 1, FLYING_BYTES.saturating_sub(size))?;
            let tag = self.begin()?;
            return match self.large(tag, item, true)? {
                None => self.fly(tag, vec![item], size),
                Some(refused) => self.refused(vec![item], refused),
            };
        }
        let Some(body) = self.small(item)? else {
            return Ok(());
        };
        let multi = self.imap.has("MULTIAPPEND");
        let fits = |open: &Flying<'_>| {
            multi && open.items.len() < BATCH && open.bytes + size <= BATCH_BYTES
        };
        if !self.open.as_ref().is_some_and(fits) {
            self.end_open()?;
            self.land(FLYING - 1, FLYING_BYTES)?;
            self.open = Some(Flying {
                tag: self.begin()?,
                items: Vec::new(),
                bytes: 0,
            });
        }
        let Some(mut open) = self.open.take() else {
            return Ok(());
        };
        let head = self.head(item, true);
        self.imap.write(&head)?;
        open.items.push(item);
        if let Some(refused) = self.imap.literal(open.tag, body.len() as u64)? {
            return self.refused(open.items, refused);
        }
        self.imap.write(&body)?;
        open.bytes += size;
        self.open = Some(open);
        Ok(())
    }

    fn begin(&mut self) -> Result<Tag> {
        let command = self.command.clone();
        self.imap.begin(&command)
    }

    /// Writes a large message into a command; the outcome if the server does not want it.
    fn large(&mut self, tag: Tag, item: &Item, with_keywords: bool) -> Result<Option<Outcome>> {
        let head = self.head(item, with_keywords);
        self.imap.write(&head)?;
        if let Some(refused) = self.imap.literal(tag, item.record.size)? {
            return Ok(Some(refused));
        }
        let imap = &mut *self.imap;
        let mut left = item.record.size;
        self.bodies.body(item.record.guid, &mut |part| {
            left = left.checked_sub(part.len() as u64).ok_or_else(wrong_size)?;
            imap.write(part)
        })?;
        match left {
            0 => Ok(None),
            _ => Err(wrong_size()),
        }
    }

    fn end_open(&mut self) -> Result<()> {
        match self.open.take() {
            Some(open) => self.fly(open.tag, open.items, open.bytes),
            None => Ok(()),
        }
    }

    fn fly(&mut self, tag: Tag, items: Vec<&'a Item>, bytes: u64) -> Result<()> {
        self.imap.end()?;
        self.flying.push_back(Flying { tag, items, bytes });
        // Without literals at once the server is waited for anyway.
        match self.imap.is_at_once(SMALL) {
            true => Ok(()),
            false => self.land(0, 0),
        }
    }

    /// Takes answers until no more commands and bytes than these are in flight.
    fn land(&mut self, commands: usize, bytes: u64) -> Result<()> {
        loop {
            let flying: u64 = self.flying.iter().map(|f| f.bytes).sum();
            if self.flying.len() <= commands && flying <= bytes {
                return Ok(());
            }
            let Some(first) = self.flying.pop_front() else {
                return Ok(());
            };
            let outcome = self.imap.wait(first.tag, &mut |_| Ok(()))?;
            match outcome.is_ok() {
                true => self.brought(&first.items),
                false => self.refused(first.items, outcome)?,
            }
        }
    }

    fn brought(&mut self, items: &[&Item]) {
        self.done.brought += items.len() as u64;
        self.done.bytes += items.iter().map(|i| i.record.size).sum::<u64>();
    }

    /// Sends what was refused together one by one, and what was refused alone without keywords.
    fn refused(&mut self, items: Vec<&'a Item>, outcome: Outcome) -> Result<()> {
        if let [item] = items[..] {
            let keywords = flags(&item.record).iter().any(|f| !f.starts_with('\\'));
            let mut outcome = outcome;
            if keywords && !outcome.has("OVERQUOTA") {
                let Some(second) = self.again(item, false)? else {
                    return Ok(());
                };
                outcome = second;
            }
            if outcome.is_ok() {
                self.brought(&items);
            } else {
                let why = outcome.to_string();
                self.done.failed.push((item.record.uid, why));
            }
            return Ok(());
        }
        for item in items {
            match self.again(item, true)? {
                Some(o) if o.is_ok() => self.brought(&[item]),
                Some(o) => self.refused(vec![item], o)?,
                None => {}
            }
        }
        Ok(())
    }

    /// Sends a message alone and waits; `None`, and told, if its body cannot be had any more.
    fn again(&mut self, item: &'a Item, with_keywords: bool) -> Result<Option<Outcome>> {
        let size = item.record.size;
        let body = match size > SMALL {
            true if self.is_readable(item)? => None,
            true => return Ok(None),
            false => match self.small(item)? {
                Some(body) => Some(body),
                None => return Ok(None),
            },
        };
        let tag = self.begin()?;
        let refused = match body {
            None => self.large(tag, item, with_keywords)?,
            Some(body) => {
                let head = self.head(item, with_keywords);
                self.imap.write(&head)?;
                let refused = self.imap.literal(tag, body.len() as u64)?;
                if refused.is_none() {
                    self.imap.write(&body)?;
                }
                refused
            }
        };
        if refused.is_some() {
            return Ok(refused);
        }
        self.imap.end()?;
        self.imap.wait(tag, &mut |_| Ok(())).map(Some)
    }
}

fn wrong_size() -> Error {
    let what = "the message has another size than its record says";
    Error::new(Kind::Damaged, what)
}
