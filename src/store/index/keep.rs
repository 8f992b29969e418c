//! What compaction asks of an index, and how it takes over rows that its log already proves.

use super::Index;
use crate::cyrus::guid::Guid;
use crate::error::Result;
use rusqlite::params;
use std::collections::HashMap;

/// Of each chunk the first and the last row of its bodies; others may lie between.
pub type RowRanges = HashMap<i64, (i64, i64)>;

/// A record as far as keeping or dropping it goes.
#[derive(Clone, Copy, Debug)]
pub struct KeepRow {
    /// Its message.
    pub guid: Guid,
    /// When we heard that it was expunged.
    pub expunged: Option<i64>,
    /// When it came to us.
    pub arrived: i64,
    /// IMAP's internal date.
    pub internaldate: i64,
}

/// Times at which the clock was behind. Printed times never go back, so they are the later ones;
/// which of the two is true nobody knows.
#[derive(Clone, Debug, Default)]
pub struct Late(Vec<(i64, i64, i64)>);

impl Late {
    /// The latest time, in seconds, at which something may have happened of which we were told at `time`.
    pub fn at(&self, time: Option<i64>) -> Option<i64> {
        let time = time?;
        let covers = |(_, first, last): &&(i64, i64, i64)| (*first..=*last).contains(&time);
        let printed = self.0.iter().filter(covers).map(|row| row.0).max();
        Some(printed.map_or(time, |printed| printed.max(time)))
    }

    /// What is printed, first and last time.
    pub fn rows(&self) -> &[(i64, i64, i64)] {
        &self.0
    }
}

/// A state of a script, a subscription or the like, as it was stated and ended.
#[derive(Clone, Debug)]
pub struct Lasting {
    /// What tells it apart: a file name, a mailbox, a quota root.
    pub name: String,
    /// Its value as stored.
    pub value: Vec<u8>,
    /// When it was stated.
    pub time: i64,
    /// When it ended.
    pub ended: Option<i64>,
}

impl Index {
    /// Forgets everything but chunks, bodies and what tells whose index it is.
    pub(super) fn forget(&self) -> Result<()> {
        // Mailboxes first: a trigger would put them in doubt for each record.
        for table in [
            "mailbox",
            "record",
            "resync",
            "subscription",
            "seen",
            "sieve",
            "sieve_active",
            "quota",
            "annotation",
        ] {
            self.run(&format!("DELETE FROM {table}"))?;
        }
        Ok(())
    }

    /// What was said from `first` to `last` was printed as `printed`, which is later.
    pub(super) fn late(&self, printed: i64, first: i64, last: i64) -> Result<()> {
        self.conn
            .prepare_cached(
                "INSERT INTO late (printed, first, last) VALUES (?1, ?2, ?3)
                 ON CONFLICT (printed) DO UPDATE
                 SET first = min(first, ?2), last = max(last, ?3)",
            )
            .and_then(|mut s| s.execute([printed, first, last]))
            .map_err(|e| self.error(e))?;
        Ok(())
    }

    /// When the clock was behind.
    pub fn lates(&self) -> Result<Late> {
        let sql = "SELECT printed, first, last FROM late ORDER BY printed";
        let rows = self.all(sql, [], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?;
        Ok(Late(rows))
    }

    /// Sets what a stated mailbox's line does not tell.
    pub(super) fn stated(
        &self,
        id: i64,
        created: i64,
        changed: i64,
        deleted: Option<i64>,
    ) -> Result<()> {
        self.conn
            .prepare_cached(
                "UPDATE mailbox SET created = ?2, changed = ?3, deleted = ?4 WHERE id = ?1",
            )
            .and_then(|mut s| s.execute(params![id, created, changed, deleted]))
            .map_err(|e| self.error(e))?;
        Ok(())
    }

    /// Hands all records of a mailbox to `each`, of every epoch.
    pub fn keep_rows(&self, mailbox_id: i64, each: &mut dyn FnMut(KeepRow)) -> Result<()> {
        let mut statement = self
            .conn
            .prepare_cached(
                "SELECT guid, expunged, arrived, internaldate FROM record WHERE mailbox_id = ?1",
            )
            .map_err(|e| self.error(e))?;
        let mut rows = statement.query([mailbox_id]).map_err(|e| self.error(e))?;
        while let Some(row) = rows.next().map_err(|e| self.error(e))? {
            let read = || -> rusqlite::Result<KeepRow> {
                Ok(KeepRow {
                    guid: Guid(row.get(0)?),
                    expunged: row.get(1)?,
                    arrived: row.get(2)?,
                    internaldate: row.get(3)?,
                })
            };
            each(read().map_err(|e| self.error(e))?);
        }
        Ok(())
    }

    /// Takes over the bodies of a chunk of the index that [`Index::attach`] attached, as those of
    /// chunk `to`. `ranges` is what that gave.
    pub fn take_bodies(&self, from: i64, to: i64, ranges: &RowRanges) -> Result<()> {
        let Some((first, last)) = ranges.get(&from) else {
            return Ok(());
        };
        self.conn
            .prepare_cached(
                "INSERT INTO message (guid, chunk_id, offset, size, partition, time,
                    from_, to_, cc, subject, message_id, date)
                 SELECT guid, ?2, offset, size, partition, time,
                    from_, to_, cc, subject, message_id, date
                 FROM old.message WHERE chunk_id = ?1 AND id BETWEEN ?3 AND ?4
                 ON CONFLICT (guid) DO UPDATE SET chunk_id = excluded.chunk_id,
                    offset = excluded.offset, size = excluded.size,
                    partition = excluded.partition, time = excluded.time",
            )
            .and_then(|mut s| s.execute([from, to, *first, *last]))
            .map_err(|e| self.error(e))?;
        self.conn
            .prepare_cached(
                "UPDATE record SET missing = 0 WHERE missing
                 AND guid IN (SELECT guid FROM message WHERE chunk_id = ?1)",
            )
            .and_then(|mut s| s.execute([to]))
            .map_err(|e| self.error(e))?;
        Ok(())
    }

    /// Attaches another index, to take bodies over from. Not inside a transaction.
    pub fn attach(&self, other: &std::path::Path) -> Result<RowRanges> {
        let mut tries = 0;
        let uri = super::uri(other, "mode=ro");
        // While an index is put in the place of another there is none for a moment.
        while let Err(e) = self.conn.execute("ATTACH ?1 AS old", [&uri]) {
            tries += 1;
            if tries > super::TRIES {
                return Err(self.error(e));
            }
            std::thread::sleep(super::PAUSE);
        }
        self.run(super::schema::FILLING)?;
        let ranges = self.all(
            "SELECT chunk_id, min(id), max(id) FROM old.message GROUP BY chunk_id",
            [],
            |r| Ok((r.get(0)?, (r.get(1)?, r.get(2)?))),
        )?;
        Ok(ranges.into_iter().collect())
    }

    /// Lets go of the other index.
    pub fn detach(&self) -> Result<()> {
        self.run("DETACH old")
    }

    /// Subscriptions, ended ones too, by name.
    pub fn lasting_subscriptions(&self) -> Result<Vec<Lasting>> {
        self.lasting("SELECT mboxname, x'', time, unsubscribed FROM subscription ORDER BY mboxname")
    }

    /// Quota roots, removed ones too, by name.
    pub fn lasting_quotas(&self) -> Result<Vec<Lasting>> {
        self.lasting("SELECT root, value, time, removed FROM quota ORDER BY root")
    }

    /// Seen states by mailbox.
    pub fn lasting_seen(&self) -> Result<Vec<Lasting>> {
        self.lasting("SELECT uniqueid, value, time, NULL FROM seen ORDER BY uniqueid")
    }

    /// Versions of scripts, the oldest first.
    pub fn lasting_scripts(&self) -> Result<Vec<Lasting>> {
        self.lasting("SELECT filename, content, time, deleted FROM sieve ORDER BY id")
    }

    fn lasting(&self, sql: &str) -> Result<Vec<Lasting>> {
        self.all(sql, [], |r| {
            Ok(Lasting {
                name: r.get(0)?,
                value: r.get(1)?,
                time: r.get(2)?,
                ended: r.get(3)?,
            })
        })
    }

    /// LAST_UPDATE of the scripts, in the same order as [`Index::lasting_scripts`].
    pub fn script_updates(&self) -> Result<Vec<i64>> {
        self.all("SELECT last_update FROM sieve ORDER BY id", [], |r| {
            r.get(0)
        })
    }

    /// Which script is active (`None`: none), and since when it is so.
    pub fn active_since(&self) -> Result<Option<(Option<String>, i64)>> {
        self.one("SELECT filename, time FROM sieve_active", [], |r| {
            Ok((r.get(0)?, r.get(1)?))
        })
    }

    /// Annotations outside mailboxes: mailbox, entry, userid, and the rest.
    pub fn lasting_annotations(&self) -> Result<Vec<(String, String, Lasting)>> {
        self.all(
            "SELECT mboxname, entry, userid, value, time, removed FROM annotation
             ORDER BY mboxname, entry, userid",
            [],
            |r| {
                let lasting = Lasting {
                    name: r.get(0)?,
                    value: r.get(3)?,
                    time: r.get(4)?,
                    ended: r.get(5)?,
                };
                Ok((r.get(1)?, r.get(2)?, lasting))
            },
        )
    }

    /// Marked mailboxes: uniqueid, level, reason, since when.
    pub fn marks_since(&self) -> Result<Vec<(String, i64, String, i64)>> {
        self.all(
            "SELECT uniqueid, level, why, time FROM resync ORDER BY uniqueid",
            [],
            |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?)),
        )
    }
}
