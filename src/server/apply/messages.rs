//! MESSAGE: bodies are streamed to the backup of the expected owner, or to staging where none is
//! expected, while their SHA-1 runs.

use super::Read;
use crate::cyrus::dlist::{ParseError, Parser, Start, Value, Why};
use crate::cyrus::guid::Guid;
use crate::error::{Error, Kind, Result};
use crate::server::held::Held;
use crate::util::time;
use sha1::{Digest, Sha1};
use std::io::BufRead;

/// Where a body is going.
enum Sink {
    Backup(String),
    Staging,
    Nowhere,
}

pub(super) fn messages<R: BufRead>(held: &mut Held, parser: &mut Parser<R>) -> Read<()> {
    match parser.start()? {
        Start::List => {}
        Start::Leaf(_) => {
            parser.end_line()?;
            return Ok(Err(Error::new(Kind::Protocol, "MESSAGE without a list")));
        }
        _ => {
            return Err(ParseError {
                at: parser.position(),
                why: Why::Syntax("MESSAGE without a list"),
            });
        }
    }
    let expected = held.expected().map(str::to_owned);
    let mut done: Result<()> = Ok(());
    let mut unread = 0u64;
    while parser.list_next()? {
        let head = match parser.start()? {
            Start::File(head) => head,
            // A message the sender could not read. Its record comes all the same.
            Start::Leaf(Value::Nil) => {
                unread += 1;
                continue;
            }
            _ => {
                return Err(ParseError {
                    at: parser.position(),
                    why: Why::Syntax("MESSAGE holds something else than messages"),
                });
            }
        };
        let mut sink = Sink::Nowhere;
        if done.is_ok() {
            match begin(
                held,
                expected.as_deref(),
                &head.partition,
                head.guid,
                head.size,
            ) {
                Ok(s) => sink = s,
                Err(e) => done = Err(e),
            }
        }
        let mut sha1 = Sha1::new();
        let mut failed: Option<Error> = None;
        parser.body(head.size, &mut |part| {
            sha1.update(part);
            if failed.is_none() {
                let stored = match &sink {
                    Sink::Backup(key) => held.get(key).and_then(|b| b.body_data(part)),
                    Sink::Staging => held.staging.data(part),
                    Sink::Nowhere => Ok(()),
                };
                failed = stored.err();
            }
            Ok::<(), ParseError>(())
        })?;
        if failed.is_none() && sha1.finalize()[..] != head.guid.0 {
            failed = Some(Error::new(
                Kind::Protocol,
                format!("message {} does not match its GUID", head.guid),
            ));
        }
        let ended = match (&sink, &failed) {
            (Sink::Backup(key), None) => held.get(key).and_then(|b| b.body_end()),
            (Sink::Backup(key), Some(_)) => {
                // Takes the bodies before it along; the sender brings them all again.
                if let Ok(b) = held.get(key) {
                    b.abort();
                }
                Ok(())
            }
            (Sink::Staging, None) => {
                held.staging
                    .end(head.guid, &String::from_utf8_lossy(&head.partition));
                Ok(())
            }
            (Sink::Staging, Some(_)) => {
                held.staging.forget();
                Ok(())
            }
            (Sink::Nowhere, _) => Ok(()),
        };
        held.stats.messages += 1;
        held.stats.bytes += head.size;
        if done.is_ok() {
            done = failed.map_or(ended, Err);
        }
    }
    parser.end_line()?;
    if unread > 0 {
        log::warn!("the sender could not read messages it announced count={unread}");
    }
    if let Some(key) = expected {
        if held.held(&key).is_some() {
            let ended = held.get(&key).and_then(|b| b.messages_end());
            if done.is_ok() {
                done = ended;
            }
        }
    }
    Ok(done)
}

fn begin(
    held: &mut Held,
    expected: Option<&str>,
    partition: &[u8],
    guid: Guid,
    size: u64,
) -> Result<Sink> {
    if held.staging.has(guid) {
        return Ok(Sink::Nowhere);
    }
    match expected {
        Some(key) => {
            let now = time::now();
            let backup = held.get(key)?;
            if backup.is_pending(guid)? {
                return Ok(Sink::Nowhere);
            }
            backup.body_begin(partition, guid, size, now)?;
            Ok(Sink::Backup(key.to_owned()))
        }
        None => {
            held.staging.begin();
            Ok(Sink::Staging)
        }
    }
}
