//! What a user has besides mailboxes: subscriptions, seen states, scripts, quota, annotations.

use super::{damaged, value};
use crate::cyrus::dlist::Value;
use crate::cyrus::guid::Guid;
use crate::error::Result;
use crate::store::index::Index;

/// A subscription.
#[derive(Clone, Debug)]
pub struct SubscriptionRow {
    /// Internal name; need not exist.
    pub mboxname: String,
    /// Since when.
    pub time: i64,
    /// When it ended.
    pub unsubscribed: Option<i64>,
}

/// A seen state.
#[derive(Clone, Debug)]
pub struct SeenRow {
    /// Of which mailbox, perhaps another user's.
    pub uniqueid: String,
    /// All keys but USERID.
    pub value: Value,
}

/// A version of a sieve script.
#[derive(Clone, Debug)]
pub struct SieveRow {
    /// `name.script`
    pub filename: String,
    /// SHA-1 of the content.
    pub guid: Guid,
    /// The server's time of change.
    pub last_update: u64,
    /// The script.
    pub content: Vec<u8>,
    /// When it came.
    pub time: i64,
    /// When it was replaced or deleted.
    pub deleted: Option<i64>,
}

/// An annotation kept outside mailboxes.
#[derive(Clone, Debug)]
pub struct AnnotationRow {
    /// Internal name; empty for the server.
    pub mboxname: String,
    /// Its name.
    pub entry: String,
    /// Whose it is; empty for everybody's.
    pub userid: String,
    /// Any bytes.
    pub value: Vec<u8>,
}

impl Index {
    /// How many scripts, limits and subscriptions there are, and whether a script is active.
    pub fn own_things(&self) -> Result<i64> {
        let n = self.one(
            "SELECT (SELECT count(*) FROM sieve WHERE deleted IS NULL)
                + (SELECT count(*) FROM quota WHERE removed IS NULL)
                + (SELECT count(*) FROM subscription WHERE unsubscribed IS NULL)
                + (SELECT count(*) FROM sieve_active WHERE filename IS NOT NULL)",
            [],
            |r| r.get(0),
        )?;
        Ok(n.unwrap_or(0))
    }

    /// Subscriptions by name; ended ones only if asked for.
    pub fn subscriptions(&self, with_ended: bool) -> Result<Vec<SubscriptionRow>> {
        self.all(
            "SELECT mboxname, time, unsubscribed FROM subscription
             WHERE ?1 OR unsubscribed IS NULL ORDER BY mboxname",
            [with_ended],
            |r| {
                Ok(SubscriptionRow {
                    mboxname: r.get(0)?,
                    time: r.get(1)?,
                    unsubscribed: r.get(2)?,
                })
            },
        )
    }

    /// Whether a name is subscribed to.
    pub fn is_subscribed(&self, mboxname: &str) -> Result<bool> {
        Ok(self
            .one(
                "SELECT 1 FROM subscription WHERE mboxname = ?1 AND unsubscribed IS NULL",
                [mboxname],
                |_| Ok(()),
            )?
            .is_some())
    }

    /// Seen states.
    pub fn seen_states(&self) -> Result<Vec<SeenRow>> {
        self.all(
            "SELECT uniqueid, value FROM seen ORDER BY uniqueid",
            [],
            |r| {
                let text: Vec<u8> = r.get(1)?;
                Ok(SeenRow {
                    uniqueid: r.get(0)?,
                    value: value(&text).ok_or_else(|| damaged(1))?,
                })
            },
        )
    }

    /// One seen state.
    pub fn seen_state(&self, uniqueid: &str) -> Result<Option<Value>> {
        let text = self.one(
            "SELECT value FROM seen WHERE uniqueid = ?1",
            [uniqueid],
            |r| r.get::<_, Vec<u8>>(0),
        )?;
        Ok(text.and_then(|t| value(&t)))
    }

    /// Sieve scripts by name and age; replaced and deleted ones only if asked for.
    pub fn scripts(&self, with_deleted: bool) -> Result<Vec<SieveRow>> {
        self.all(
            "SELECT filename, guid, last_update, content, time, deleted FROM sieve
             WHERE ?1 OR deleted IS NULL ORDER BY filename, id",
            [with_deleted],
            |r| {
                Ok(SieveRow {
                    filename: r.get(0)?,
                    guid: Guid(r.get(1)?),
                    last_update: r.get::<_, i64>(2)? as u64,
                    content: r.get(3)?,
                    time: r.get(4)?,
                    deleted: r.get(5)?,
                })
            },
        )
    }

    /// The name ACTIVATE_SIEVE gave, usually `<script>.bc`.
    pub fn active_script(&self) -> Result<Option<String>> {
        Ok(self
            .one("SELECT filename FROM sieve_active", [], |r| {
                r.get::<_, Option<String>>(0)
            })?
            .flatten())
    }

    /// Quota roots with their limits, as QUOTA gave them.
    pub fn quotas(&self) -> Result<Vec<(String, Value)>> {
        self.all(
            "SELECT root, value FROM quota WHERE removed IS NULL ORDER BY root",
            [],
            |r| {
                let text: Vec<u8> = r.get(1)?;
                Ok((r.get(0)?, value(&text).ok_or_else(|| damaged(1))?))
            },
        )
    }

    /// Quota roots that were removed last of all, with the limits they had.
    pub fn last_quotas(&self) -> Result<Vec<(String, Value)>> {
        self.all(
            "SELECT root, value FROM quota
             WHERE removed = (SELECT max(removed) FROM quota) ORDER BY root",
            [],
            |r| {
                let text: Vec<u8> = r.get(1)?;
                Ok((r.get(0)?, value(&text).ok_or_else(|| damaged(1))?))
            },
        )
    }

    /// Annotations kept outside mailboxes: mailbox name, entry, userid, value.
    pub fn annotations(&self, mboxname: &str) -> Result<Vec<(String, String, Vec<u8>)>> {
        self.all(
            "SELECT entry, userid, value FROM annotation
             WHERE mboxname = ?1 AND removed IS NULL ORDER BY entry, userid",
            [mboxname],
            |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)),
        )
    }

    /// All of them, by mailbox.
    pub fn all_annotations(&self) -> Result<Vec<AnnotationRow>> {
        self.all(
            "SELECT mboxname, entry, userid, value FROM annotation
             WHERE removed IS NULL ORDER BY mboxname, entry, userid",
            [],
            |r| {
                Ok(AnnotationRow {
                    mboxname: r.get(0)?,
                    entry: r.get(1)?,
                    userid: r.get(2)?,
                    value: r.get(3)?,
                })
            },
        )
    }
}
