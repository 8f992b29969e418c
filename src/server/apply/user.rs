//! What belongs to a user apart from mailboxes: subscriptions, seen states, scripts, quota,
//! annotations; and the end of a user.

use super::{annotation_key, change, change_existing, text, whole};
use crate::cyrus::dlist::Value;
use crate::cyrus::mboxname::inbox_of;
use crate::error::{Error, Kind, Result};
use crate::server::held::Held;
use crate::store::index::Index;
use crate::store::line::Line;

pub(super) fn subscribe(held: &mut Held, value: &Value, on: bool) -> Result<()> {
    let key = held.shared().user_key(text(value, "USERID")?)?;
    let name = text(value, "MBOXNAME")?;
    let line = Line::new(if on { "SUB" } else { "UNSUB" }, value);
    let unchanged = |index: &Index| Ok(index.is_subscribed(name)? == on);
    if on {
        change(held, &key, &[line], &unchanged)
    } else {
        change_existing(held, &key, &[line], &unchanged)
    }
}

pub(super) fn seen(held: &mut Held, value: &Value) -> Result<()> {
    let key = held.shared().user_key(text(value, "USERID")?)?;
    let uniqueid = text(value, "UNIQUEID")?;
    for needed in ["LASTREAD", "LASTUID", "LASTCHANGE", "SEENUIDS"] {
        text(value, needed)?;
    }
    let line = Line::new("SEEN", value);
    change(held, &key, &[line], &|index| {
        Ok(index.seen_state(uniqueid)?.is_some_and(|old| {
            ["LASTREAD", "LASTUID", "LASTCHANGE", "SEENUIDS"]
                .iter()
                .all(|k| old.get(k) == value.get(k))
        }))
    })
}

pub(super) fn sieve(held: &mut Held, value: &Value) -> Result<()> {
    let key = held.shared().user_key(text(value, "USERID")?)?;
    let filename = text(value, "FILENAME")?;
    let updated = value
        .get("LAST_UPDATE")
        .and_then(Value::as_u64)
        .ok_or_else(|| Error::new(Kind::Protocol, "SIEVE without a good LAST_UPDATE"))?;
    let content = value
        .get("CONTENT")
        .and_then(Value::as_bytes)
        .ok_or_else(|| Error::new(Kind::Protocol, "SIEVE without CONTENT"))?;
    let line = Line::new("SIEVE", value);
    change(held, &key, &[line], &|index| {
        Ok(index
            .scripts(false)?
            .iter()
            .any(|s| s.filename == filename && s.content == content && s.last_update == updated))
    })
}

pub(super) fn unsieve(held: &mut Held, value: &Value) -> Result<()> {
    let key = held.shared().user_key(text(value, "USERID")?)?;
    let filename = text(value, "FILENAME")?;
    // A deactivation comes as the removal of the active script's bytecode.
    let active = held
        .ask(&key, &mut |index, _| index.active_script())?
        .flatten();
    if active.as_deref() == Some(filename) {
        return activate(held, value, false);
    }
    let line = Line::new("UNSIEVE", value);
    change_existing(held, &key, &[line], &|index| {
        Ok(!index.scripts(false)?.iter().any(|s| s.filename == filename))
    })
}

pub(super) fn activate(held: &mut Held, value: &Value, on: bool) -> Result<()> {
    let key = held.shared().user_key(text(value, "USERID")?)?;
    let wanted = if on {
        Some(text(value, "FILENAME")?.to_owned())
    } else {
        None
    };
    let name = if on {
        "ACTIVATE_SIEVE"
    } else {
        "UNACTIVATE_SIEVE"
    };
    let line = Line::private(name, value.clone());
    let unchanged = |index: &Index| Ok(index.active_script()? == wanted);
    if on {
        change(held, &key, &[line], &unchanged)
    } else {
        change_existing(held, &key, &[line], &unchanged)
    }
}

pub(super) fn quota(held: &mut Held, value: &Value) -> Result<()> {
    let root = text(value, "ROOT")?;
    let key = held.shared().owner_of(root)?;
    let line = Line::private("QUOTA", value.clone());
    change(held, &key, &[line], &|index| {
        Ok(index.quotas()?.iter().any(|(r, v)| r == root && v == value))
    })
}

pub(super) fn unquota(held: &mut Held, value: &Value) -> Result<()> {
    let root = whole(value, "quota root")?;
    let key = held.shared().owner_of(root)?;
    let line = Line::private("UNQUOTA", value.clone());
    change_existing(held, &key, &[line], &|index| {
        Ok(!index.quotas()?.iter().any(|(r, _)| r == root))
    })
}

pub(super) fn annotation(held: &mut Held, value: &Value, on: bool) -> Result<()> {
    let mboxname = text(value, "MBOXNAME")?;
    let entry = text(value, "ENTRY")?;
    let userid = value.get("USERID").and_then(Value::as_str).unwrap_or("");
    let wanted = value.get("VALUE").and_then(Value::as_bytes).unwrap_or(b"");
    let key = annotation_key(held, mboxname)?;
    let name = if on { "ANNOTATION" } else { "UNANNOTATION" };
    let line = Line::private(name, value.clone());
    let unchanged = |index: &Index| {
        let known = index.annotations(mboxname)?;
        let ours = known
            .iter()
            .find(|(e, u, _)| e == entry && u == userid)
            .map(|(_, _, v)| v.as_slice());
        Ok(if on {
            ours == Some(wanted)
        } else {
            ours.is_none()
        })
    };
    if on {
        change(held, &key, &[line], &unchanged)
    } else {
        change_existing(held, &key, &[line], &unchanged)
    }
}

pub(super) fn unuser(held: &mut Held, value: &Value) -> Result<()> {
    let userid = whole(value, "userid")?;
    let key = held.shared().user_key(userid)?;
    let inbox = inbox_of(&key, &held.shared().ns);
    let below = format!("{inbox}.");
    let is_its = |name: &str| name == inbox || name.starts_with(&below);
    let names: Vec<String> = held
        .ask(&key, &mut |index, _| index.mailboxes(false))?
        .unwrap_or_default()
        .into_iter()
        .map(|m| m.mboxname)
        .filter(|n| is_its(n))
        .collect();
    // Old tools know UNMAILBOX only.
    let mut lines: Vec<Line> = names
        .iter()
        .map(|n| Line::new("UNMAILBOX", &Value::text(n)))
        .collect();
    lines.push(Line::private("UNUSER", Value::text(&inbox)));
    change_existing(held, &key, &lines, &|index| {
        Ok(!index.mailboxes(false)?.iter().any(|m| is_its(&m.mboxname))
            && index.subscriptions(false)?.is_empty()
            && index.scripts(false)?.is_empty()
            && index.seen_states()?.is_empty()
            && index.quotas()?.is_empty()
            && index.active_script()?.is_none())
    })
}
