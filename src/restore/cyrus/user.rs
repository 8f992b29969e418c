//! What is not mail: subscriptions, seen states, scripts and limits. Only what is not there is
//! brought; what is there stays as it is.

use super::super::Plan;
use super::{Cyrus, refused};
use crate::client::csync::{MAX_LITERAL, Status};
use crate::cyrus::dlist::Value;
use crate::error::Result;

impl Cyrus {
    pub(super) fn bring_user(&mut self, plan: &Plan, dry_run: bool) -> Result<Vec<String>> {
        let mut failed = Vec::new();
        if dry_run {
            return Ok(failed);
        }
        // Shared mailboxes have no user, but limits.
        if !plan.userid.is_empty() {
            self.own(plan, &mut failed)?;
        }
        for (root, keys) in &plan.quotas {
            if !self.user.quotas.contains(root) {
                let (lines, _) = self.csync()?.command("GET QUOTA", &Value::text(root))?;
                lines
                    .into_iter()
                    .for_each(|(kind, v)| self.user.take(&kind, v));
            }
            if self.user.quotas.contains(root) {
                continue;
            }
            let mut items = vec![(b"ROOT".to_vec(), Value::text(root))];
            let rest = keys.as_kv().unwrap_or_default().iter();
            items.extend(rest.filter(|(k, _)| k != b"ROOT").cloned());
            self.one("QUOTA", root, &Value::Kv(items), &mut failed)?;
        }
        self.csync()?.restart()?;
        Ok(failed)
    }

    fn own(&mut self, plan: &Plan, failed: &mut Vec<String>) -> Result<()> {
        let userid = || ("USERID", Value::text(&plan.userid));
        for name in &plan.subscriptions {
            if !self.user.subscriptions.contains(name) {
                let value = Value::kv([userid(), ("MBOXNAME", Value::text(name))]);
                self.one("SUB", name, &value, failed)?;
            }
        }
        for (uniqueid, keys) in &plan.seen {
            if self.user.seen.contains(uniqueid) {
                continue;
            }
            let mut items = vec![(b"USERID".to_vec(), Value::text(&plan.userid))];
            if keys.get("UNIQUEID").is_none() {
                items.push((b"UNIQUEID".to_vec(), Value::text(uniqueid)));
            }
            items.extend(keys.as_kv().unwrap_or_default().iter().cloned());
            self.one("SEEN", uniqueid, &Value::Kv(items), failed)?;
        }
        self.scripts(plan, failed)
    }

    fn scripts(&mut self, plan: &Plan, failed: &mut Vec<String>) -> Result<()> {
        for script in &plan.scripts {
            if self.user.scripts.contains_key(&script.filename) {
                continue;
            }
            if script.content.len() >= MAX_LITERAL {
                failed.push(format!("script {}: too long for a server", script.filename));
                continue;
            }
            let value = Value::kv([
                ("USERID", Value::text(&plan.userid)),
                ("FILENAME", Value::text(&script.filename)),
                ("LAST_UPDATE", Value::num(script.last_update)),
                ("CONTENT", Value::text(&script.content)),
            ]);
            self.one("SIEVE", &script.filename, &value, failed)?;
        }
        if let Some(active) = plan.active_script.as_ref().filter(|_| !self.user.is_active) {
            let value = Value::kv([
                ("USERID", Value::text(&plan.userid)),
                ("FILENAME", Value::text(active)),
            ]);
            self.one("ACTIVATE_SIEVE", active, &value, failed)?;
        }
        Ok(())
    }

    fn one(
        &mut self,
        verb: &str,
        what: &str,
        value: &Value,
        failed: &mut Vec<String>,
    ) -> Result<()> {
        let status = self.csync()?.apply(&format!("APPLY {verb}"), value)?;
        if status != Status::Ok {
            let what = format!("{} {what}", verb.to_ascii_lowercase());
            failed.push(refused(&what, &status));
        }
        Ok(())
    }
}
