//! What changes in the rows while lines are entered, kept by triggers: so [`super::apply_line`]
//! stays the one place that knows what lines mean.
//!
//! For a scratch index only. Changes of a line that is rolled back go with it.

use super::Index;
use crate::cyrus::guid::Guid;
use crate::error::Result;
use crate::util::hex;
use rusqlite::{Row, params};

/// Whose changes are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watch {
    /// Everything.
    All,
    /// A message wherever it is, and the mailboxes it is in.
    Message(Guid),
    /// Mailboxes, by uniqueid, and their messages.
    Mailboxes(Vec<String>),
    /// One UID of these mailboxes, and the mailboxes.
    Uid(Vec<String>, u32),
}

/// A row before and after. Flags and heads are dlist text.
#[derive(Clone, Debug)]
pub struct RowChange {
    /// Whose row.
    pub table: Table,
    /// The mailbox's number; 0 for what is in none.
    pub mailbox_id: i64,
    /// Mailbox: what it was called. Else: what it is about.
    pub old_name: Option<String>,
    /// Mailbox: what it is called.
    pub new_name: Option<String>,
    /// Record: its epoch. Mailbox: the present one.
    pub epoch: i64,
    /// Record: its UID.
    pub uid: u32,
    /// Record: its message.
    pub guid: Option<Guid>,
    /// Record: flags; mailbox: head. `None` if there was none.
    pub old: Option<Vec<u8>>,
    /// The same afterwards.
    pub new: Option<Vec<u8>>,
    /// Expunged, deleted, ended: since when.
    pub old_end: Option<i64>,
    /// The same afterwards.
    pub new_end: Option<i64>,
    /// Record: not by a flag, but by a complete state that lacked it. Mailbox: its epoch is another.
    pub gone: bool,
    /// Record: when it came.
    pub arrived: Option<i64>,
}

/// What a row is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// A mailbox.
    Mailbox,
    /// A message in a mailbox.
    Record,
    /// A subscription.
    Subscription,
    /// A sieve script.
    Sieve,
    /// Which script is active.
    Active,
}

const TABLES: [Table; 5] = [
    Table::Mailbox,
    Table::Record,
    Table::Subscription,
    Table::Sieve,
    Table::Active,
];

const CREATE: &str = "
    CREATE INDEX record_guid ON record (guid);
    CREATE TEMP TABLE watched_mailbox (uniqueid TEXT PRIMARY KEY);
    CREATE TEMP TABLE row_change (
        n INTEGER PRIMARY KEY, what INTEGER, mailbox_id, old_name, new_name, epoch, uid, guid,
        old, new, old_end, new_end, gone, arrived
    );
";

/// `{new}`: whether the record NEW is wanted; `{box}`: whether the mailbox NEW is.
const TRIGGERS: &str = "
    CREATE TEMP TRIGGER watch_record BEFORE INSERT ON record WHEN {new} BEGIN
        INSERT INTO row_change
        SELECT NULL, 1, NEW.mailbox_id, NULL, NULL, NEW.epoch, NEW.uid, NEW.guid, o.flags,
            NEW.flags, o.expunged, NEW.expunged, NEW.gone, NEW.arrived
        FROM (SELECT 1) LEFT JOIN record o
            ON o.mailbox_id = NEW.mailbox_id AND o.epoch = NEW.epoch AND o.uid = NEW.uid;
    END;
    CREATE TEMP TRIGGER watch_gone AFTER UPDATE OF expunged ON record WHEN {new} BEGIN
        INSERT INTO row_change VALUES (NULL, 1, NEW.mailbox_id, NULL, NULL, NEW.epoch, NEW.uid,
            NEW.guid, OLD.flags, NEW.flags, OLD.expunged, NEW.expunged, NEW.gone, NEW.arrived);
    END;
    CREATE TEMP TRIGGER watch_created AFTER INSERT ON mailbox WHEN {box} BEGIN
        INSERT INTO row_change VALUES (NULL, 0, NEW.id, NULL, NEW.mboxname, NEW.epoch, 0, NULL,
            NULL, NEW.head, NULL, NEW.deleted, 0, NULL);
    END;
    CREATE TEMP TRIGGER watch_mailbox AFTER UPDATE ON mailbox WHEN {box} BEGIN
        INSERT INTO row_change VALUES (NULL, 0, NEW.id, OLD.mboxname, NEW.mboxname, NEW.epoch, 0,
            NULL, OLD.head, NEW.head, OLD.deleted, NEW.deleted, OLD.epoch <> NEW.epoch, NULL);
    END;
";

/// What is in no mailbox.
const OF_USER: &str = "
    CREATE TEMP TRIGGER watch_subscribed AFTER INSERT ON subscription BEGIN
        INSERT INTO row_change VALUES (NULL, 2, 0, NEW.mboxname, NEW.mboxname, 0, 0, NULL, NULL,
            x'', NULL, NEW.unsubscribed, 0, NULL);
    END;
    CREATE TEMP TRIGGER watch_subscription AFTER UPDATE ON subscription BEGIN
        INSERT INTO row_change VALUES (NULL, 2, 0, NEW.mboxname, NEW.mboxname, 0, 0, NULL, x'',
            x'', OLD.unsubscribed, NEW.unsubscribed, 0, NULL);
    END;
    CREATE TEMP TRIGGER watch_script AFTER INSERT ON sieve BEGIN
        INSERT INTO row_change VALUES (NULL, 3, 0, NEW.filename, NEW.filename, 0, 0, NEW.guid,
            NULL, x'', NULL, NEW.deleted, 0, NULL);
    END;
    CREATE TEMP TRIGGER watch_sieve AFTER UPDATE ON sieve BEGIN
        INSERT INTO row_change VALUES (NULL, 3, 0, NEW.filename, NEW.filename, 0, 0, NEW.guid,
            x'', x'', OLD.deleted, NEW.deleted, 0, NULL);
    END;
    CREATE TEMP TRIGGER watch_active BEFORE INSERT ON sieve_active BEGIN
        INSERT INTO row_change VALUES (NULL, 4, 0, (SELECT filename FROM sieve_active),
            NEW.filename, 0, 0, NULL, x'', x'', NULL, NULL, 0, NULL);
    END;
";

impl Index {
    /// Keeps what changes from here on. The index is empty, and in a transaction.
    pub fn watch(&self, watch: &Watch) -> Result<()> {
        self.run(CREATE)?;
        let (new, mailbox) = match watch {
            Watch::All => ("1".to_owned(), "1".to_owned()),
            Watch::Message(guid) => {
                let guid = format!("x'{}'", hex::encode(&guid.0));
                (
                    format!("NEW.guid = {guid}"),
                    format!(
                        "EXISTS (SELECT 1 FROM record WHERE guid = {guid} AND mailbox_id = NEW.id)"
                    ),
                )
            }
            Watch::Mailboxes(ids) | Watch::Uid(ids, _) => {
                for id in ids {
                    self.conn
                        .execute("INSERT OR IGNORE INTO watched_mailbox VALUES (?1)", [id])
                        .map_err(|e| self.error(e))?;
                }
                let of = "(SELECT uniqueid FROM watched_mailbox)";
                let uid = match watch {
                    Watch::Uid(_, uid) => format!("NEW.uid = {uid} AND "),
                    _ => String::new(),
                };
                (
                    format!(
                        "{uid}NEW.mailbox_id IN (SELECT id FROM mailbox WHERE uniqueid IN {of})"
                    ),
                    format!("NEW.uniqueid IN {of}"),
                )
            }
        };
        self.run(&TRIGGERS.replace("{new}", &new).replace("{box}", &mailbox))?;
        match watch {
            Watch::All => self.run(OF_USER),
            _ => Ok(()),
        }
    }

    /// What has changed since this was last asked, in order.
    pub fn take_changes(&self) -> Result<Vec<RowChange>> {
        let changes = self.all(
            "SELECT what, mailbox_id, old_name, new_name, epoch, uid, guid, old, new, old_end,
                new_end, gone, arrived FROM row_change ORDER BY n",
            [],
            row_change,
        )?;
        if !changes.is_empty() {
            self.conn
                .prepare_cached("DELETE FROM row_change")
                .and_then(|mut s| s.execute([]))
                .map_err(|e| self.error(e))?;
        }
        Ok(changes)
    }

    /// Where else a message is or was: mailbox, epoch, UID, and whether it is alive there, deleted
    /// mailboxes aside. Quick in a watched index only.
    pub fn elsewhere(&self, guid: Guid, but: (i64, i64, u32)) -> Result<Vec<(i64, u32, bool)>> {
        self.all(
            "SELECT r.mailbox_id, r.uid, r.expunged IS NULL AND m.deleted IS NULL
             FROM record r JOIN mailbox m ON m.id = r.mailbox_id
             WHERE r.guid = ?1 AND (r.mailbox_id, r.epoch, r.uid) <> (?2, ?3, ?4)
             ORDER BY r.mailbox_id, r.epoch, r.uid",
            params![&guid.0[..], but.0, but.1, but.2],
            |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)),
        )
    }
}

fn row_change(r: &Row<'_>) -> rusqlite::Result<RowChange> {
    let table: usize = r.get(0)?;
    let table = TABLES.get(table).copied();
    Ok(RowChange {
        table: table.ok_or(rusqlite::Error::IntegralValueOutOfRange(0, 0))?,
        mailbox_id: r.get(1)?,
        old_name: r.get(2)?,
        new_name: r.get(3)?,
        epoch: r.get(4)?,
        uid: r.get(5)?,
        guid: r.get::<_, Option<[u8; 20]>>(6)?.map(Guid),
        old: r.get(7)?,
        new: r.get(8)?,
        old_end: r.get(9)?,
        new_end: r.get(10)?,
        gone: r.get(11)?,
        arrived: r.get(12)?,
    })
}
