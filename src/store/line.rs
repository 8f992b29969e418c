//! Lines of the log: `<time> APPLY <NAME> <value>` CR LF, and the private ones among them.
//!
//! What the old format has no line for is carried by a RESERVE that reserves nothing, under the
//! key X-CYRBACKUP; the old tools pass over it. Format: `doc/format.md`.

use crate::cyrus::dlist::{Form, Value, is_atom, print_text, print_to_vec};
use crate::cyrus::guid::Guid;
use crate::cyrus::sync::MailboxHead;
use crate::util::time::Timestamp;

/// The first bytes of every chunk.
pub const CHUNK_START: &[u8] = b"# cyrus backup: chunk start\r\n";

/// The key of our own facts in a RESERVE line.
pub const PRIVATE: &str = "X-CYRBACKUP";

/// A whole line but its time.
#[derive(Clone, Debug)]
pub struct Line {
    /// The command's name, upper case.
    pub name: &'static str,
    /// Its value in canonical form.
    pub value: Vec<u8>,
    /// Whether the value holds a literal, which patched old tools cannot read.
    pub has_literal: bool,
}

impl Line {
    /// A line of the old format.
    pub fn new(name: &'static str, value: &Value) -> Line {
        Line {
            name,
            value: print_to_vec(value, Form::Log),
            has_literal: needs_literal(value),
        }
    }

    /// A private line that states one fact.
    pub fn private(key: &str, value: Value) -> Line {
        Line::new(
            "RESERVE",
            &Value::kv([
                ("PARTITION", Value::text("default")),
                ("MBOXNAME", Value::List(Vec::new())),
                ("GUID", Value::List(Vec::new())),
                (PRIVATE, Value::kv([(key, value)])),
            ]),
        )
    }
}

/// The fact that begins every log of ours: which log it is, and whose. A shared tree's key has a
/// `%`, which would need a literal; it is told without.
pub fn generation(id: &str, key: &str) -> Line {
    Line::private("GENERATION", Value::kv(named(id, key)))
}

/// The same for a log that was made from an older one: also since when there is the backup, in
/// seconds since 1970.
pub fn generation_of(id: &str, key: &str, created: i64) -> Line {
    let mut fact = named(id, key).to_vec();
    fact.push(("CREATED", Value::num(created)));
    Line::private("GENERATION", Value::kv(fact))
}

fn named<'a>(id: &str, key: &str) -> [(&'a str, Value); 3] {
    let whose = match key.strip_prefix(SHARED) {
        Some(rest) => ("SHARED", Value::text(rest)),
        None => ("KEY", Value::text(key)),
    };
    [("ID", Value::text(id)), whose, ("FORMAT", Value::num(1))]
}

/// A mailbox's head as a line without records: old tools follow renames by it.
pub fn mailbox_head(head: &MailboxHead) -> Line {
    if head.is_intermediate() {
        return Line::private("MAILBOX", Value::Kv(head.keys.clone()));
    }
    let mut keys = head.keys.clone();
    keys.push((b"RECORD".to_vec(), Value::List(Vec::new())));
    Line::new("MAILBOX", &Value::Kv(keys))
}

/// The key that a GENERATION fact tells.
pub fn key_of(fact: &Value) -> Option<String> {
    let text = |key| fact.get(key).and_then(Value::as_str);
    match text("SHARED") {
        Some(rest) => Some(format!("{SHARED}{rest}")),
        None => text("KEY").map(str::to_owned),
    }
}

const SHARED: &str = "%SHARED/";

/// The bytes before a line's value.
pub fn prefix(stamp: Timestamp, name: &str) -> Vec<u8> {
    format!("{stamp} APPLY {name} ").into_bytes()
}

/// What stands before a body in a MESSAGE line: `%{PARTITION GUID SIZE}` CR LF.
pub fn body_head(partition: &[u8], guid: Guid, size: u64) -> Vec<u8> {
    let mut head = b"%{".to_vec();
    if is_atom(partition) && partition.contains(&b'}') {
        // A bare word would end there.
        head.push(b'"');
        head.extend_from_slice(partition);
        head.push(b'"');
    } else {
        let _ = print_text(partition, Form::Log, &mut head);
    }
    head.extend_from_slice(format!(" {guid} {size}}}\r\n").as_bytes());
    head
}

/// Whether the canonical form of a value has a literal in it.
pub fn needs_literal(value: &Value) -> bool {
    match value {
        Value::Nil | Value::Flag(_) => false,
        Value::Text(text) => {
            let mut out = Vec::new();
            if text.len() < 1024 {
                let _ = crate::cyrus::dlist::print_text(text, Form::Log, &mut out);
                out.first() == Some(&b'{')
            } else {
                true
            }
        }
        Value::List(items) => items.iter().any(needs_literal),
        Value::Kv(items) => items.iter().any(|(_, v)| needs_literal(v)),
    }
}
