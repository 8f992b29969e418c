//! What is not mail: subscriptions, seen states, scripts and limits. Only what is not there is
//! brought; what is there stays as it is. A script is made active only if none is, and if it is the one
//! that was: what the user has since put in its place would do something else with his mail.

use super::super::{Became, Own, Plan, Script};
use super::{Cyrus, refused};
use crate::client::csync::{MAX_LITERAL, Status};
use crate::cyrus::dlist::Value;
use crate::cyrus::guid::Guid;
use crate::error::Result;

impl Cyrus {
    pub(super) fn bring_user(
        &mut self,
        plan: &Plan,
        dry_run: bool,
        told: &mut Vec<Own>,
    ) -> Result<()> {
        // Shared mailboxes have no user, but limits.
        if !plan.userid.is_empty() {
            self.own(plan, dry_run, told)?;
        }
        for (root, keys) in &plan.quotas {
            if !self.user.quotas.contains_key(root) {
                let (lines, _) = self.csync()?.command("GET QUOTA", &Value::text(root))?;
                lines
                    .into_iter()
                    .for_each(|(kind, v)| self.user.take(&kind, v));
            }
            if let Some(there) = self.user.quotas.get(root) {
                const BESIDE: [&str; 3] = ["ROOT", "MODSEQ", "LIMIT"];
                told.push(match says(keys, &BESIDE) == says(there, &BESIDE) {
                    true => Own::new("quota", root, Became::There),
                    false => Own::left("quota", root, "other limits are there"),
                });
                continue;
            }
            let mut items = vec![(b"ROOT".to_vec(), Value::text(root))];
            let rest = keys.as_kv().unwrap_or_default().iter();
            items.extend(rest.filter(|(k, _)| k != b"ROOT").cloned());
            self.one("QUOTA", ("quota", root), Value::Kv(items), dry_run, told)?;
        }
        match dry_run {
            true => Ok(()),
            false => self.csync()?.restart(),
        }
    }

    fn own(&mut self, plan: &Plan, dry_run: bool, told: &mut Vec<Own>) -> Result<()> {
        let userid = || ("USERID", Value::text(&plan.userid));
        for name in &plan.subscriptions {
            if self.user.subscriptions.contains(name) {
                told.push(Own::new("subscription", name, Became::There));
                continue;
            }
            let value = Value::kv([userid(), ("MBOXNAME", Value::text(name))]);
            self.one("SUB", ("subscription", name), value, dry_run, told)?;
        }
        for (uniqueid, keys) in &plan.seen {
            if let Some(there) = self.user.seen.get(uniqueid) {
                const BESIDE: [&str; 2] = ["USERID", "UNIQUEID"];
                told.push(match says(keys, &BESIDE) == says(there, &BESIDE) {
                    true => Own::new("seen state", uniqueid, Became::There),
                    false => Own::left("seen state", uniqueid, "another one is there"),
                });
                continue;
            }
            let mut items = vec![(b"USERID".to_vec(), Value::text(&plan.userid))];
            if keys.get("UNIQUEID").is_none() {
                items.push((b"UNIQUEID".to_vec(), Value::text(uniqueid)));
            }
            items.extend(keys.as_kv().unwrap_or_default().iter().cloned());
            let what = ("seen state", uniqueid.as_str());
            self.one("SEEN", what, Value::Kv(items), dry_run, told)?;
        }
        self.scripts(plan, dry_run, told)
    }

    fn scripts(&mut self, plan: &Plan, dry_run: bool, told: &mut Vec<Own>) -> Result<()> {
        for script in &plan.scripts {
            let name = &script.filename;
            if let Some(guid) = self.user.scripts.get(name) {
                told.push(match is_same(guid, script) {
                    true => Own::new("script", name, Became::There),
                    false => Own::left("script", name, "another one of that name is there"),
                });
                continue;
            }
            if script.content.len() >= MAX_LITERAL {
                told.push(Own::failed("script", name, "too long for a server"));
                continue;
            }
            let value = Value::kv([
                ("USERID", Value::text(&plan.userid)),
                ("FILENAME", Value::text(name)),
                ("LAST_UPDATE", Value::num(script.last_update)),
                ("CONTENT", Value::text(&script.content)),
            ]);
            if self.one("SIEVE", ("script", name), value, dry_run, told)? {
                let guid = Guid::of(&script.content).to_string();
                self.user.scripts.insert(name.clone(), guid);
            }
        }
        let Some(active) = &plan.active_script else {
            return Ok(());
        };
        let what = ("active script", active.as_str());
        let stem = stem(active);
        if let Some(there) = &self.user.active {
            let there = self::stem(there);
            told.push(match there == stem {
                true => Own::new(what.0, active, Became::There),
                false => Own::left(what.0, active, format!("{there} is active")),
            });
            return Ok(());
        }
        let was = |s: &&Script| self::stem(&s.filename) == stem;
        let script = plan.scripts.iter().find(was);
        let there = script.and_then(|s| Some((s, self.user.scripts.get(&s.filename)?)));
        match there {
            Some((script, guid)) if is_same(guid, script) => {
                let value = Value::kv([
                    ("USERID", Value::text(&plan.userid)),
                    ("FILENAME", Value::text(active)),
                ]);
                self.one("ACTIVATE_SIEVE", what, value, dry_run, told)?;
            }
            Some(_) => {
                let why = "it is another one now: not made active";
                told.push(Own::left(what.0, active, why));
            }
            None => told.push(Own::failed(what.0, active, "there is no such script")),
        }
        Ok(())
    }

    /// Whether it is there now, or would be.
    fn one(
        &mut self,
        verb: &str,
        (kind, name): (&'static str, &str),
        value: Value,
        dry_run: bool,
        told: &mut Vec<Own>,
    ) -> Result<bool> {
        let status = match dry_run {
            true => Status::Ok,
            false => self.csync()?.apply(&format!("APPLY {verb}"), &value)?,
        };
        let is_ok = status == Status::Ok;
        told.push(match is_ok {
            true => Own::new(kind, name, Became::Brought),
            false => Own::failed(kind, name, refused("refused", &status)),
        });
        Ok(is_ok)
    }
}

/// A script's name: text and bytecode are files of one name.
fn stem(filename: &str) -> &str {
    let stem = [".script", ".bc"]
        .iter()
        .find_map(|end| filename.strip_suffix(end));
    stem.unwrap_or(filename)
}

fn is_same(guid: &str, script: &Script) -> bool {
    Guid::parse(guid.as_bytes()) == Some(Guid::of(&script.content))
}

/// What a list of keys says, but for some.
fn says(value: &Value, but: &[&str]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let keys = value.as_kv().unwrap_or_default().iter();
    let keys = keys.filter(|(k, _)| !but.iter().any(|b| b.as_bytes() == k.as_slice()));
    let mut keys: Vec<_> = keys
        .map(|(k, v)| (k.clone(), v.as_bytes().unwrap_or_default().to_vec()))
        .collect();
    keys.sort();
    keys
}
