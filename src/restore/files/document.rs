//! What is told of a mailbox and of a user beside the messages: `mailbox.json` and `user.json`. Pure.
//!
//! The same state always makes the same bytes, so that a second export finds what it would write.

use crate::cyrus::dlist::Value as Dlist;
use crate::cyrus::dlist::json::{annotations_json, bytes_json, dlist_json};
use crate::cyrus::sync::Record;
use crate::restore::{Folder, Plan};
use serde_json::{Map, Value, json};
use std::io::{self, Write};

/// Writes `mailbox.json`. `file` names the file of each message, if there is one for each.
pub fn mailbox(
    folder: &Folder,
    file: &dyn Fn(&Record) -> Option<String>,
    w: &mut dyn Write,
) -> io::Result<()> {
    let mut head = Map::new();
    head.insert("version".into(), 1.into());
    head.insert("mboxname".into(), folder.to.as_str().into());
    head.insert("from".into(), folder.from.as_str().into());
    head.insert(
        "head".into(),
        dlist_json(&Dlist::Kv(folder.head.keys.clone())),
    );
    let text = serde_json::to_string_pretty(&head)?;
    let open = text.strip_suffix("\n}").unwrap_or(&text);
    w.write_all(open.as_bytes())?;
    w.write_all(b",\n  \"messages\": [")?;
    for (index, item) in folder.items.iter().enumerate() {
        let r = &item.record;
        let mut row = json!({
            "uid": r.uid,
            "guid": r.guid.to_string(),
            "size": r.size,
            // Times before 1970 wrap on the wire.
            "internaldate": r.internaldate as i64,
            "flags": flags(r).collect::<Value>(),
            "modseq": r.modseq,
        });
        if !r.annotations.is_empty() {
            row["annotations"] = annotations_json(&r.annotations);
        }
        if let Some(name) = file(r) {
            row["file"] = name.into();
        }
        w.write_all(if index == 0 { b"\n    " } else { b",\n    " })?;
        serde_json::to_writer(&mut *w, &row)?;
    }
    w.write_all(b"\n  ]\n}\n")
}

fn flags(r: &Record) -> impl Iterator<Item = Value> {
    r.flags.iter().filter_map(Dlist::as_bytes).map(bytes_json)
}

/// `user.json`. `file` names the file of a sieve script.
pub fn user(plan: &Plan, file: &dyn Fn(&str) -> String) -> Vec<u8> {
    let kept = |key: &str, name: &str, value: &Dlist| {
        let mut row = Map::new();
        row.insert(key.into(), name.into());
        row.insert("value".into(), dlist_json(value));
        Value::from(row)
    };
    let scripts = plan.scripts.iter().map(|s| {
        json!({
            "filename": s.filename,
            "last_update": s.last_update,
            "file": file(&s.filename),
        })
    });
    let document = json!({
        "version": 1,
        "userid": plan.userid,
        "subscriptions": plan.subscriptions,
        "seen": plan.seen.iter().map(|(id, v)| kept("uniqueid", id, v)).collect::<Value>(),
        "quota": plan.quotas.iter().map(|(root, v)| kept("root", root, v)).collect::<Value>(),
        "scripts": scripts.collect::<Value>(),
        "active_script": plan.active_script,
    });
    let mut text = serde_json::to_vec_pretty(&document).unwrap_or_default();
    text.push(b'\n');
    text
}

/// Whether there is anything of a user's own to tell.
pub fn has_user(plan: &Plan) -> bool {
    !(plan.subscriptions.is_empty()
        && plan.seen.is_empty()
        && plan.scripts.is_empty()
        && plan.active_script.is_none()
        && plan.quotas.is_empty())
}
