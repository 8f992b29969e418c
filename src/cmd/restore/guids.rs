//! Lists of messages: one GUID a line, or what `search -j` and `messages -j` print.

use crate::cyrus::guid::Guid;
use crate::error::{Error, Kind, Result};
use serde_json::Value;
use std::collections::HashSet;
use std::io::Read;

/// Larger lists are not read.
const MAX_BYTES: u64 = 1 << 30;

/// Reads a list from a file, or from standard input if it is called `-`. `Usage` if there is
/// anything in it that is no GUID.
pub fn read(path: &str) -> Result<HashSet<Guid>> {
    let fail = |e| Error::io("cannot read list of messages", e).place(path);
    let mut text = Vec::new();
    if path == "-" {
        let stdin = std::io::stdin().lock();
        stdin.take(MAX_BYTES).read_to_end(&mut text).map_err(fail)?;
    } else {
        let file = std::fs::File::open(path).map_err(fail)?;
        file.take(MAX_BYTES).read_to_end(&mut text).map_err(fail)?;
    }
    parse(&text).map_err(|e| e.place(path))
}

fn parse(text: &[u8]) -> Result<HashSet<Guid>> {
    let mut guids = HashSet::new();
    if text.trim_ascii_start().first() == Some(&b'{') {
        let value: Value = serde_json::from_slice(text)
            .map_err(|e| Error::new(Kind::Usage, "list of messages: bad JSON").because(e))?;
        collect(&value, &mut guids);
        return Ok(guids);
    }
    for (number, line) in text.split(|&b| b == b'\n').enumerate() {
        let word = line.trim_ascii();
        if word.is_empty() || word[0] == b'#' {
            continue;
        }
        let guid = Guid::parse(word).ok_or_else(|| {
            let what = format!("list of messages: line {} is no GUID", number + 1);
            Error::new(Kind::Usage, what)
        })?;
        guids.insert(guid);
    }
    Ok(guids)
}

/// Every `guid` in a document, however deep it is.
fn collect(value: &Value, to: &mut HashSet<Guid>) {
    match value {
        Value::Array(items) => items.iter().for_each(|v| collect(v, to)),
        Value::Object(map) => {
            for (key, value) in map {
                match value.as_str().and_then(|s| Guid::parse(s.as_bytes())) {
                    Some(guid) if key == "guid" => _ = to.insert(guid),
                    _ => collect(value, to),
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_documents() {
        let a = "5a184cd1a6222c5bdef730087d1de284fe479ccd";
        let b = "b2ce3efabc50b353b5ba9c8ee679b8e1a1031fd2";
        let both: HashSet<Guid> = [a, b]
            .iter()
            .filter_map(|t| Guid::parse(t.as_bytes()))
            .collect();
        let lines = format!("# two\n{a}\r\n\n  {b}\n{a}");
        assert_eq!(parse(lines.as_bytes()).unwrap(), both);
        let json = format!(
            r#" {{"version":1,"users":[{{"messages":[{{"guid":"{a}","subject":"guid"}},{{"guid":"{b}"}}]}}]}}"#
        );
        assert_eq!(parse(json.as_bytes()).unwrap(), both);
        assert!(parse(b"").unwrap().is_empty());
        for bad in [&b"5a\n"[..], b"{", b"x\n{}"] {
            assert_eq!(parse(bad).unwrap_err().kind(), Kind::Usage);
        }
        let e = parse(format!("{a}\nnone\n").as_bytes()).unwrap_err();
        assert!(e.to_string().contains("line 2"), "{e}");
    }
}
