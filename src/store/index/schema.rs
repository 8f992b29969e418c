//! The tables. Times are true times in seconds; offsets as `doc/format.md` says; flags, heads and
//! annotations are canonical dlist text.

/// `CyBk`: says at once that the file is ours.
pub const APPLICATION_ID: i64 = 0x4379_426b;

/// The schema's version, kept in the meta table: `user_version` is high, so that the old tools do
/// not try to upgrade what they find, but they write their own number there all the same.
pub const VERSION: i64 = 2;

/// Settings of every connection. Small caches; large transactions spill; the write-ahead log is
/// moved into the file when it is closed, and in a long session whenever it has 16 MiB.
pub const SETTINGS: &str = "
    PRAGMA cache_size = -1024;
    PRAGMA synchronous = NORMAL;
    PRAGMA temp_store = MEMORY;
    PRAGMA wal_autocheckpoint = 4096;
";

/// Those that matter to a reader of a file at rest.
pub const READ_SETTINGS: &str = "PRAGMA cache_size = -1024;";

/// Until the first commit into a write-ahead log that begins empty. Nothing is moved out of it.
pub const FRESH: &str = "PRAGMA synchronous = OFF; PRAGMA wal_autocheckpoint = 0;";

/// From then on.
pub const SETTLED: &str = "PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 4096;";

/// While a new index is filled that nobody else opens: one large transaction, written once. The
/// journal is there for what is taken back within it.
pub const APART: &str = "
    PRAGMA cache_size = -8192;
    PRAGMA temp_store = MEMORY;
    PRAGMA synchronous = OFF;
    PRAGMA locking_mode = EXCLUSIVE;
";

/// While an index is filled in one large transaction that also reads from another.
pub const FILLING: &str = "PRAGMA main.cache_size = -32768; PRAGMA old.cache_size = -4096;";

/// The mode in which readers and a writer work side by side.
pub const WAL: &str = "PRAGMA journal_mode = WAL;";

/// While a new index is made: no journal that a kill would leave beside it, to be played back by
/// whoever may write. What is half made is made again.
pub const MAKING: &str = "PRAGMA journal_mode = MEMORY;";

/// A new index.
pub const CREATE: &str = "
    BEGIN;
    PRAGMA application_id = 0x4379426b;
    PRAGMA user_version = 1001;
    -- schema: version of these tables; generation: of the log; acknowledged: file length at the last durable point; stamp: last one
    -- printed; key: whose backup this is; created
    CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
    INSERT INTO meta VALUES ('schema', 2);
    -- length, plain_length and sha256 are NULL while the member is open
    CREATE TABLE chunk (
        id INTEGER PRIMARY KEY,
        offset INTEGER NOT NULL,
        length INTEGER,
        plain_length INTEGER,
        first_time INTEGER NOT NULL,
        last_time INTEGER NOT NULL,
        sha256 BLOB
    );
    -- offset and size: the body's bytes in the plain text of its chunk
    CREATE TABLE message (
        id INTEGER PRIMARY KEY,
        guid BLOB NOT NULL UNIQUE,
        chunk_id INTEGER NOT NULL,
        offset INTEGER NOT NULL,
        size INTEGER NOT NULL,
        partition TEXT NOT NULL,
        time INTEGER NOT NULL,
        from_ TEXT, to_ TEXT, cc TEXT, subject TEXT, message_id TEXT, date TEXT
    );
    -- records, crc, annot_short, annot_long: count and sums of the live records;
    -- unreliable: a complete state came whose own sums were wrong
    CREATE TABLE mailbox (
        id INTEGER PRIMARY KEY,
        uniqueid TEXT NOT NULL UNIQUE,
        mboxname TEXT NOT NULL,
        last_uid INTEGER NOT NULL,
        highestmodseq INTEGER NOT NULL,
        uidvalidity INTEGER NOT NULL,
        sync_crc INTEGER,
        sync_crc_annot INTEGER,
        head BLOB NOT NULL,
        intermediate INTEGER NOT NULL,
        epoch INTEGER NOT NULL,
        records INTEGER NOT NULL,
        crc INTEGER NOT NULL,
        annot_short INTEGER NOT NULL,
        annot_long INTEGER NOT NULL,
        unreliable INTEGER NOT NULL,
        created INTEGER NOT NULL,
        changed INTEGER NOT NULL,
        deleted INTEGER
    );
    CREATE INDEX mailbox_name ON mailbox (mboxname);
    -- expunged: when we heard of it; gone: not by a flag but by a complete state that lacked it;
    -- missing: no body is there; position: chunk << 40 | offset of the last line about it
    CREATE TABLE record (
        mailbox_id INTEGER NOT NULL,
        epoch INTEGER NOT NULL,
        uid INTEGER NOT NULL,
        modseq INTEGER NOT NULL,
        last_updated INTEGER NOT NULL,
        internaldate INTEGER NOT NULL,
        size INTEGER NOT NULL,
        guid BLOB NOT NULL,
        flags BLOB NOT NULL,
        annotations BLOB,
        extra BLOB,
        crc INTEGER NOT NULL,
        annot_short INTEGER NOT NULL,
        annot_long INTEGER NOT NULL,
        arrived INTEGER NOT NULL,
        changed INTEGER NOT NULL,
        expunged INTEGER,
        gone INTEGER NOT NULL,
        missing INTEGER NOT NULL,
        position INTEGER NOT NULL,
        PRIMARY KEY (mailbox_id, epoch, uid)
    ) WITHOUT ROWID;
    CREATE INDEX record_missing ON record (guid) WHERE missing;
    -- level 1: records are in doubt; 2: the server went back, the next state is a new epoch
    CREATE TABLE resync (
        uniqueid TEXT PRIMARY KEY, level INTEGER NOT NULL, why TEXT NOT NULL, time INTEGER NOT NULL
    ) WITHOUT ROWID;
    -- We never delete a record or a message, and never alter what a sender stated of one: whoever
    -- does puts the mailbox in doubt.
    CREATE TRIGGER record_taken AFTER DELETE ON record BEGIN
        INSERT OR REPLACE INTO resync
        SELECT uniqueid, 1, 'records were taken out of the index', OLD.changed
        FROM mailbox WHERE id = OLD.mailbox_id;
    END;
    CREATE TRIGGER record_altered
    AFTER UPDATE OF epoch, uid, modseq, last_updated, internaldate, size, guid, flags,
        annotations, extra ON record
    BEGIN
        INSERT OR REPLACE INTO resync
        SELECT uniqueid, 1, 'records were altered in the index', OLD.changed
        FROM mailbox WHERE id = OLD.mailbox_id;
    END;
    CREATE TRIGGER message_taken AFTER DELETE ON message BEGIN
        INSERT OR REPLACE INTO resync
        SELECT uniqueid, 1, 'messages were taken out of the index', OLD.time
        FROM mailbox WHERE EXISTS (
            SELECT 1 FROM record
            WHERE mailbox_id = mailbox.id AND guid = OLD.guid AND expunged IS NULL
        );
    END;
    -- The clock was behind: what was said at a time from first to last was printed as this.
    CREATE TABLE late (
        printed INTEGER PRIMARY KEY, first INTEGER NOT NULL, last INTEGER NOT NULL
    );
    CREATE TABLE subscription (
        mboxname TEXT PRIMARY KEY, time INTEGER NOT NULL, unsubscribed INTEGER
    ) WITHOUT ROWID;
    CREATE TABLE seen (
        uniqueid TEXT PRIMARY KEY, value BLOB NOT NULL, time INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE sieve (
        id INTEGER PRIMARY KEY,
        filename TEXT NOT NULL,
        guid BLOB NOT NULL,
        last_update INTEGER NOT NULL,
        content BLOB NOT NULL,
        time INTEGER NOT NULL,
        deleted INTEGER
    );
    CREATE INDEX sieve_name ON sieve (filename);
    CREATE TABLE sieve_active (
        id INTEGER PRIMARY KEY CHECK (id = 1), filename TEXT, time INTEGER NOT NULL
    );
    CREATE TABLE quota (
        root TEXT PRIMARY KEY, value BLOB NOT NULL, time INTEGER NOT NULL, removed INTEGER
    ) WITHOUT ROWID;
    CREATE TABLE annotation (
        mboxname TEXT NOT NULL, entry TEXT NOT NULL, userid TEXT NOT NULL,
        value BLOB NOT NULL, time INTEGER NOT NULL, removed INTEGER,
        PRIMARY KEY (mboxname, entry, userid)
    ) WITHOUT ROWID;
    COMMIT;
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_stand_in_the_schema() {
        assert!(CREATE.contains(&format!("application_id = {APPLICATION_ID:#x}")));
        assert!(CREATE.contains(&format!("('schema', {VERSION})")));
    }
}
