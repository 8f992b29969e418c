//! Bodies on their way to the server: RESERVE first, MESSAGE for what it lacks.
//!
//! The server keeps uploaded bodies beside a partition until RESTART, and takes them from there for
//! every mailbox on it.

use super::super::{Bodies, Item};
use super::{Cyrus, pass};
use crate::client::csync::Csync;
use crate::client::stream::broken;
use crate::cyrus::dlist::{Form, Value, print_text};
use crate::cyrus::guid::Guid;
use crate::error::{Error, Kind, Result};
use std::collections::{HashMap, HashSet};
use std::io::Write;

/// GUIDs in one RESERVE.
const RESERVED: usize = 8192;
/// Bodies in one MESSAGE.
const AT_ONCE: usize = 512;
/// Bytes of bodies in one MESSAGE, after the last one.
const BYTES_AT_ONCE: u64 = 16 << 20;

/// Bodies that could not be read here, and why.
pub type Unread = HashMap<Guid, String>;

impl Cyrus {
    /// Which of the bodies the server lacks, after it looked in the mailboxes named.
    pub(super) fn reserve(
        &mut self,
        partition: &str,
        names: &[String],
        guids: impl Iterator<Item = Guid>,
    ) -> Result<HashSet<Guid>> {
        let mut seen = HashSet::new();
        let mut missing: HashSet<Guid> = HashSet::new();
        let guids: Vec<Guid> = guids.filter(|g| seen.insert(*g)).collect();
        for part in guids.chunks(RESERVED) {
            let list = |items: Vec<Value>| Value::List(items);
            let request = Value::kv([
                ("PARTITION", Value::text(partition)),
                ("MBOXNAME", list(names.iter().map(Value::text).collect())),
                (
                    "GUID",
                    list(part.iter().map(|g| Value::text(g.to_string())).collect()),
                ),
            ]);
            let (lines, status) = self.csync()?.command("APPLY RESERVE", &request)?;
            status.check("RESERVE")?;
            for (_, value) in lines.iter().filter(|(kind, _)| kind == "MISSING") {
                let listed = value.as_list().unwrap_or_default().iter();
                missing.extend(listed.filter_map(Value::as_bytes).filter_map(Guid::parse));
            }
        }
        Ok(missing)
    }

    /// Uploads those of the messages that are in `missing`, which become fewer. What cannot be
    /// read here is told and passed over.
    pub(super) fn upload<'a>(
        &mut self,
        partition: &str,
        items: impl Iterator<Item = &'a Item>,
        missing: &mut HashSet<Guid>,
        bodies: &mut dyn Bodies,
    ) -> Result<Unread> {
        let mut sizes = HashMap::new();
        for item in items {
            if missing.remove(&item.record.guid) {
                sizes.insert(item.record.guid, item.record.size);
            }
        }
        let mut guids: Vec<Guid> = sizes.keys().copied().collect();
        bodies.order(&mut guids)?;
        let mut unread = Unread::new();
        let mut left = &guids[..];
        while !left.is_empty() {
            let mut bytes = 0;
            let n = left
                .iter()
                .take(AT_ONCE)
                .take_while(|g| {
                    let fits = bytes < BYTES_AT_ONCE;
                    bytes += sizes[g];
                    fits
                })
                .count();
            let (now, later) = left.split_at(n);
            let mut one = Upload {
                partition,
                sizes: &sizes,
                unread: &mut unread,
            };
            one.send(self.csync()?, now, bodies)?;
            left = later;
        }
        Ok(unread)
    }
}

struct Upload<'a> {
    partition: &'a str,
    sizes: &'a HashMap<Guid, u64>,
    unread: &'a mut Unread,
}

impl Upload<'_> {
    fn send(&mut self, csync: &mut Csync, guids: &[Guid], bodies: &mut dyn Bodies) -> Result<()> {
        let status = csync.exchange(
            "APPLY MESSAGE",
            &mut |w| self.list(w, guids, bodies),
            &mut pass,
        )?;
        status.check("MESSAGE")
    }

    fn list(&mut self, w: &mut dyn Write, guids: &[Guid], bodies: &mut dyn Bodies) -> Result<()> {
        w.write_all(b"(").map_err(broken)?;
        let mut first = true;
        for &guid in guids {
            let size = self.sizes[&guid];
            let mut sent = None;
            let done = bodies.body(guid, &mut |part| {
                if sent.is_none() {
                    if !first {
                        w.write_all(b" ").map_err(broken)?;
                    }
                    first = false;
                    w.write_all(b"%{").map_err(broken)?;
                    print_text(self.partition.as_bytes(), Form::Log, w).map_err(broken)?;
                    write!(w, " {guid} {size}}}\r\n").map_err(broken)?;
                }
                let total = sent.unwrap_or(0) + part.len() as u64;
                sent = Some(total);
                if total > size {
                    return Err(longer(guid));
                }
                w.write_all(part).map_err(broken)
            });
            match done {
                Ok(()) if sent == Some(size) => {}
                // What was announced cannot be taken back: the connection is lost.
                Ok(()) if sent.is_some() => return Err(longer(guid)),
                Ok(()) => _ = self.unread.insert(guid, "empty".into()),
                Err(e) if sent.is_none() && matches!(e.kind(), Kind::NotFound | Kind::Damaged) => {
                    self.unread.insert(guid, e.to_string());
                }
                Err(e) => return Err(e),
            }
        }
        w.write_all(b")").map_err(broken)
    }
}

fn longer(guid: Guid) -> Error {
    let what = format!("message {guid} has not the size its mailbox says");
    Error::new(Kind::Damaged, what)
}
