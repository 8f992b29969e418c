//! Message bodies out of a backup, for destinations.
//!
//! A body is proven before its first byte is handed over: small ones in memory, large ones by reading
//! them twice. The plain text of the chunk read last is kept when it is asked for again, so that
//! neighbours cost one inflate together; memory is bounded whatever the messages are.

use super::Bodies;
use crate::cyrus::guid::Guid;
use crate::error::{Error, Kind, Result};
use crate::store::index::MessageRow;
use crate::store::log::read_chunk_plain;
use crate::store::reader::Reader;
use sha1::{Digest, Sha1};

/// Larger bodies are not held in memory.
const SMALL: u64 = 1024 * 1024;

/// Chunks with more plain text than this are not kept; those with one huge message have.
const KEPT: u64 = 16 * 1024 * 1024;

/// The bodies of one backup.
pub struct FromBackup<'a> {
    reader: &'a Reader,
    /// The chunk asked for last; its plain text once that was worth it.
    chunk: Option<(i64, Option<Vec<u8>>)>,
}

impl<'a> FromBackup<'a> {
    /// Over a reader, whose index may be older than what is asked for: bodies are in the log of
    /// today.
    pub fn new(reader: &'a Reader) -> FromBackup<'a> {
        FromBackup {
            reader,
            chunk: None,
        }
    }

    fn row(&self, guid: Guid) -> Result<MessageRow> {
        let row = self.reader.index().body(guid)?;
        row.ok_or_else(|| Error::new(Kind::NotFound, format!("no body of message {guid}")))
    }

    /// Keeps the chunk of `row` if it is asked for the second time, and lends it if it is there.
    fn kept(&mut self, row: &MessageRow) -> Option<&[u8]> {
        let again = match &self.chunk {
            Some((id, Some(_))) if *id == row.chunk_id => false,
            Some((id, None)) if *id == row.chunk_id => true,
            _ => {
                self.chunk = Some((row.chunk_id, None));
                return None;
            }
        };
        if again {
            let chunk = self.reader.index().chunk(row.chunk_id).ok()??;
            let length = chunk.plain_length.filter(|&n| n <= KEPT)?;
            let mut plain = Vec::with_capacity(usize::try_from(length).ok()?);
            // A chunk that does not read is read body by body: some of them may be whole.
            read_chunk_plain(self.reader.file(), chunk.offset, 0, length, &mut |part| {
                plain.extend_from_slice(part);
                Ok(())
            })
            .ok()?;
            self.chunk = Some((row.chunk_id, Some(plain)));
        }
        match &self.chunk {
            Some((_, Some(plain))) => Some(plain),
            _ => None,
        }
    }
}

impl Bodies for FromBackup<'_> {
    fn body(&mut self, guid: Guid, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let row = self.row(guid)?;
        let range = usize::try_from(row.offset)
            .ok()
            .zip(usize::try_from(row.offset + row.size).ok());
        if let (Some(plain), Some((from, to))) = (self.kept(&row), range) {
            if let Some(body) = plain.get(from..to) {
                if Sha1::digest(body)[..] == guid.0 {
                    return sink(body);
                }
            }
            // Another look at the file itself says what is wrong.
        }
        let mut held = Vec::new();
        self.reader.body(guid, &mut |part| {
            if row.size <= SMALL {
                held.extend_from_slice(part);
            }
            Ok(())
        })?;
        if row.size <= SMALL {
            return sink(&held);
        }
        self.reader.body(guid, sink)
    }

    fn message_id(&mut self, guid: Guid) -> Result<Option<String>> {
        self.reader.index().message_id(guid)
    }

    fn order(&mut self, guids: &mut [Guid]) -> Result<()> {
        let mut places = Vec::with_capacity(guids.len());
        for guid in guids.iter() {
            let row = self.reader.index().body(*guid)?;
            places.push((row.map(|r| (r.chunk_offset, r.offset)), *guid));
        }
        places.sort();
        for (to, (_, guid)) in guids.iter_mut().zip(places) {
            *to = guid;
        }
        Ok(())
    }
}
