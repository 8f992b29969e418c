//! Lists of what is wanted: a GUID or a mailbox a line, or what `search -j` and `messages -j` print.

use crate::cyrus::guid::Guid;
use crate::error::{Error, Kind, Result};
use serde_json::Value;
use std::collections::HashSet;
use std::io::Read;

/// Larger lists are not read.
const MAX_BYTES: u64 = 1 << 30;

/// A message of one mailbox, as a search prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Whose backup; `None`: any.
    pub userid: Option<String>,
    /// The mailbox.
    pub uniqueid: String,
    /// The message.
    pub guid: Guid,
}

/// What a list names.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct List {
    /// Messages, wherever they are.
    pub guids: HashSet<Guid>,
    /// Messages of one mailbox each.
    pub rows: Vec<Row>,
    /// Mailboxes.
    pub mailboxes: Vec<String>,
}

/// Reads a list from a file, or from standard input if it is called `-`. `Usage` if it is neither
/// text nor JSON.
pub fn read(path: &str) -> Result<List> {
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

fn parse(text: &[u8]) -> Result<List> {
    let mut list = List::default();
    if text.trim_ascii_start().first() == Some(&b'{') {
        let value: Value = serde_json::from_slice(text)
            .map_err(|e| Error::new(Kind::Usage, "list of messages: bad JSON").because(e))?;
        collect(&value, None, &mut list);
        return Ok(list);
    }
    for (number, line) in text.split(|&b| b == b'\n').enumerate() {
        let word = line.trim_ascii();
        if word.is_empty() || word[0] == b'#' {
            continue;
        }
        match Guid::parse(word) {
            Some(guid) => _ = list.guids.insert(guid),
            None => match std::str::from_utf8(word) {
                Ok(name) => list.mailboxes.push(name.to_owned()),
                Err(_) => {
                    let what = format!("line {} is neither GUID nor mailbox", number + 1);
                    return Err(Error::new(Kind::Usage, what));
                }
            },
        }
    }
    Ok(list)
}

/// Every `guid` in a document, however deep it is: with `uniqueid` beside it a message of that mailbox;
/// `userid` beside or above says whose.
fn collect(value: &Value, userid: Option<&str>, to: &mut List) {
    match value {
        Value::Array(items) => items.iter().for_each(|v| collect(v, userid, to)),
        Value::Object(map) => {
            let text = |key| map.get(key).and_then(Value::as_str);
            let userid = text("userid").or(userid);
            let guid = text("guid").and_then(|g| Guid::parse(g.as_bytes()));
            match (guid, text("uniqueid")) {
                (Some(guid), Some(uniqueid)) => to.rows.push(Row {
                    userid: userid.map(str::to_owned),
                    uniqueid: uniqueid.to_owned(),
                    guid,
                }),
                (Some(guid), None) => _ = to.guids.insert(guid),
                (None, _) => {}
            }
            map.values().for_each(|v| collect(v, userid, to));
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
        let lines = format!("# two\n{a}\r\n\n  {b}\nuser.anna.Sent Mail\n{a}");
        let list = parse(lines.as_bytes()).unwrap();
        assert_eq!(list.guids, both);
        assert_eq!(list.mailboxes, ["user.anna.Sent Mail"]);
        let json = format!(
            r#" {{"version":1,"users":[{{"messages":[{{"guid":"{a}","subject":"guid"}},{{"guid":"{b}"}}]}}]}}"#
        );
        assert_eq!(parse(json.as_bytes()).unwrap().guids, both);
        let json = format!(
            r#"{{"userid":"anna","messages":[{{"guid":"{a}","uniqueid":"u1"}},
                {{"guid":"{b}","uniqueid":"u2","userid":"bert","more":{{"guid":"{a}"}}}}]}}"#
        );
        let list = parse(json.as_bytes()).unwrap();
        let row = |userid: &str, uniqueid: &str, guid: &str| Row {
            userid: Some(userid.into()),
            uniqueid: uniqueid.into(),
            guid: Guid::parse(guid.as_bytes()).unwrap(),
        };
        assert_eq!(list.rows, [row("anna", "u1", a), row("bert", "u2", b)]);
        assert_eq!(list.guids.len(), 1);
        assert_eq!(parse(b"").unwrap(), List::default());
        for bad in [&b"\xff\n"[..], b"{"] {
            assert_eq!(parse(bad).unwrap_err().kind(), Kind::Usage);
        }
    }
}
