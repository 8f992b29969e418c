//! What the rest of the program asks of imapd.conf, in its own words.
#![forbid(unsafe_code)]

use super::Config;
use super::options::Opt;
use super::retention::Retention;
use crate::cyrus::mboxname::{Namespace, VirtDomains};
use crate::cyrus::partition::{Mode, Select};
use crate::cyrus::syslog::Facility;
use crate::error::{Error, Kind, Result};
use crate::sys::identity;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What happens when a user appears under another name: the values of `backup_rename`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rename {
    /// Refuse, so that nothing is mixed.
    Reject,
    /// Carry the backup along.
    Follow,
}

/// Checks what the table cannot say, and collects warnings.
pub(super) fn check(config: &mut Config) -> Result<()> {
    let fail = |why: String| Err(Error::new(Kind::Config, why));
    if !config.configdirectory().is_absolute() {
        return fail("configdirectory is not an absolute path".into());
    }
    if config.text(Opt::BackupDb) != Some("twoskip") {
        return fail("backup_db: only twoskip is supported".into());
    }
    let paths = [
        Opt::BackupDbPath,
        Opt::BackupStagingPath,
        Opt::BackupPasswdFile,
        Opt::BackupIndexPath,
        Opt::BackupSocket,
    ];
    for opt in paths {
        if config.text(opt).is_some_and(|p| !p.starts_with('/')) {
            return fail(format!("{} is not an absolute path", opt.row().name));
        }
    }
    let letters = |c: char| c.is_ascii_alphanumeric();
    if !config
        .text(Opt::DefaultPartition)
        .unwrap_or_default()
        .chars()
        .all(letters)
    {
        return fail("defaultpartition holds other than letters and digits".into());
    }
    retention(config)?;
    // Elsewhere less than 0 is for ever; here it would be no grace at all.
    if config.secs(Opt::BackupDeleteGrace) < 0 {
        return fail("backup_delete_grace is negative".into());
    }
    let mut warnings = Vec::new();
    if let Some(group) = config.admins().iter().find(|id| id.starts_with("group:")) {
        warnings.push(format!("admins: {group} is ignored: name each id"));
    }
    if parse_umask(config).is_none() {
        warnings.push("umask is not three octal digits: using 077".into());
    }
    if let Some(name) = config.text(Opt::SyslogFacility) {
        if Facility::from_name(name).is_none() {
            warnings.push(format!("syslog_facility: {name} is unknown: using MAIL"));
        }
    }
    for (i, (a, inner)) in config.partitions.iter().enumerate() {
        for (j, (b, outer)) in config.partitions.iter().enumerate() {
            if i != j && inner.starts_with(outer) && (inner != outer || i < j) {
                warnings.push(format!("backuppartition-{a} lies in backuppartition-{b}"));
            }
        }
    }
    for (key, near) in config.unknown_backup_options() {
        let meant = near.map_or(String::new(), |near| format!(": is {near} meant?"));
        warnings.push(format!("{key} is no option{meant}"));
    }
    config.warnings.append(&mut warnings);
    Ok(())
}

fn retention(config: &Config) -> Result<Retention> {
    let general = config.backup_retention().map(|d| d.as_secs() as i64);
    let rules = config.text(Opt::BackupRetentionFor).unwrap_or_default();
    let retention = Retention::parse(general, rules)?;
    Ok(match config.username_tolower() {
        true => retention.with_small_userids(),
        false => retention,
    })
}

fn parse_umask(config: &Config) -> Option<u32> {
    let text = config.text(Opt::Umask)?;
    u32::from_str_radix(text, 8).ok().filter(|m| *m <= 0o777)
}

/// The words of a list separated by blanks, commas or tabs.
fn words(text: Option<&str>) -> Vec<String> {
    text.unwrap_or_default()
        .split([' ', '\t', ','])
        .filter(|w| !w.is_empty())
        .map(str::to_string)
        .collect()
}

impl Config {
    fn path(&self, opt: Opt) -> Option<PathBuf> {
        self.text(opt).map(PathBuf::from)
    }

    /// Cyrus' own directory, absolute.
    pub fn configdirectory(&self) -> &Path {
        // Nothing is read without it: `Config::load` refuses.
        Path::new(self.text(Opt::ConfigDirectory).unwrap_or_default())
    }

    /// The ids in `admins`.
    pub fn admins(&self) -> Vec<String> {
        let text = self.text(Opt::Admins).unwrap_or_default();
        text.split_ascii_whitespace().map(str::to_string).collect()
    }

    /// Whether `userid` is in `admins`, by itself or through `anyone`. Groups are not looked up.
    pub fn is_admin(&self, userid: &str) -> bool {
        let text = self.text(Opt::Admins).unwrap_or_default();
        text.split_ascii_whitespace()
            .any(|id| id == "anyone" || (id == userid && !id.starts_with("group:")))
    }

    /// The backup partitions, name and folder, in the order of the file; perhaps none.
    pub fn backup_partitions(&self) -> Vec<(String, PathBuf)> {
        self.partitions.clone()
    }

    /// Where `backups.db` is.
    pub fn backup_db_path(&self) -> PathBuf {
        self.path(Opt::BackupDbPath)
            .unwrap_or_else(|| self.configdirectory().join("backups.db"))
    }

    /// The folder for message bodies between wire and log.
    pub fn backup_staging_path(&self) -> PathBuf {
        self.path(Opt::BackupStagingPath)
            .unwrap_or_else(|| Path::new(self.text(Opt::TempPath).unwrap_or("/tmp")).join("backup"))
    }

    /// How many bytes staging may take; 0 is no limit.
    pub fn backup_staging_max(&self) -> u64 {
        self.bytes(Opt::BackupStagingMax)
    }

    /// The folder for indexes, when they do not lie beside the data files.
    pub fn backup_index_path(&self) -> Option<PathBuf> {
        self.path(Opt::BackupIndexPath)
    }

    /// How long what was deleted is kept; `None` is for ever.
    pub fn backup_retention(&self) -> Option<Duration> {
        Some(self.duration(Opt::BackupRetention)).filter(|d| !d.is_zero())
    }

    /// The same for each user and mailbox.
    pub fn retention(&self) -> Retention {
        // Checked when the configuration was read.
        retention(self).unwrap_or_default()
    }

    /// Whether anything is ever old enough to go, of whomever.
    pub fn expires(&self) -> bool {
        let rules = self.text(Opt::BackupRetentionFor).unwrap_or_default();
        let mut rules = rules.split(',').map(str::trim).filter(|r| !r.is_empty());
        self.backup_retention().is_some() || rules.any(|rule| !rule.ends_with("forever"))
    }

    /// The share of a backup's messages, in percent, that no compaction drops at once unless
    /// forced; 0 is no limit.
    pub fn backup_compact_brake(&self) -> u32 {
        self.count(Opt::BackupCompactBrake) as u32
    }

    /// How long a deleted backup can be brought back.
    pub fn backup_delete_grace(&self) -> Duration {
        self.duration(Opt::BackupDeleteGrace)
    }

    /// What to do when a user appears under another name.
    pub fn backup_rename(&self) -> Rename {
        match self.text(Opt::BackupRename) {
            Some("reject") => Rename::Reject,
            _ => Rename::Follow,
        }
    }

    /// The TCP address to listen on.
    pub fn backup_listen(&self) -> Option<&str> {
        self.text(Opt::BackupListen)
    }

    /// The UNIX socket to listen on.
    pub fn backup_socket(&self) -> Option<PathBuf> {
        self.path(Opt::BackupSocket)
    }

    /// How many connections are served at once.
    pub fn backup_max_connections(&self) -> usize {
        self.count(Opt::BackupMaxConnections)
    }

    /// How many backups a session keeps open.
    pub fn backup_open_max(&self) -> usize {
        self.count(Opt::BackupOpenMax)
    }

    /// How long a client is waited for when we stop.
    pub fn backup_drain(&self) -> Duration {
        self.duration(Opt::BackupDrain)
    }

    /// How long a locked backup is waited for.
    pub fn backup_lock_wait(&self) -> Duration {
        self.duration(Opt::BackupLockWait)
    }

    /// The file of SCRAM verifiers.
    pub fn backup_passwd_file(&self) -> PathBuf {
        self.path(Opt::BackupPasswdFile).unwrap_or_default()
    }

    /// Deflate level while receiving, 0 to 9.
    pub fn backup_ingest_level(&self) -> u8 {
        self.count(Opt::BackupIngestLevel) as u8
    }

    /// Deflate level of compaction, 0 to 9.
    pub fn backup_compact_level(&self) -> u8 {
        self.count(Opt::BackupCompactLevel) as u8
    }

    /// After how long without use a session seals and lets go of a backup.
    pub fn backup_chunk_idle(&self) -> Duration {
        self.duration(Opt::BackupChunkIdle)
    }

    /// How many bytes of plain text a chunk holds before the next begins.
    pub fn backup_chunk_max(&self) -> u64 {
        self.bytes(Opt::BackupChunkMax)
    }

    /// This server's name: `servername`, else the host's.
    pub fn servername(&self) -> String {
        match self.text(Opt::ServerName) {
            Some(name) => name.to_string(),
            None => identity::host_name(),
        }
    }

    /// How long a client may be silent; at least 3 seconds.
    pub fn sync_timeout(&self) -> Duration {
        self.duration(Opt::SyncTimeout).max(Duration::from_secs(3))
    }

    /// How mailbox names are read and shown.
    pub fn namespace(&self) -> Namespace {
        let text = |opt| self.text(opt).unwrap_or_default().to_string();
        Namespace {
            defaultdomain: text(Opt::DefaultDomain),
            deletedprefix: text(Opt::DeletedPrefix),
            unixhierarchysep: self.switch(Opt::UnixHierarchySep),
            altnamespace: self.switch(Opt::AltNamespace),
            virtdomains: self.virtdomains(),
        }
    }

    /// The meaning of domains.
    pub fn virtdomains(&self) -> VirtDomains {
        match self.text(Opt::VirtDomains) {
            Some("userid") => VirtDomains::Userid,
            Some("on") => VirtDomains::On,
            _ => VirtDomains::Off,
        }
    }

    /// The domain left out of names.
    pub fn defaultdomain(&self) -> &str {
        self.text(Opt::DefaultDomain).unwrap_or_default()
    }

    /// Whether login names are folded to lower case.
    pub fn username_tolower(&self) -> bool {
        self.switch(Opt::UsernameToLower)
    }

    /// Which of the two kinds of hash folder new backups get.
    pub fn fulldirhash(&self) -> bool {
        self.switch(Opt::FullDirHash)
    }

    /// Whether a clear-text mechanism may be offered without TLS.
    pub fn allowplaintext(&self) -> bool {
        self.switch(Opt::AllowPlaintext)
    }

    /// The pause after a failed login.
    pub fn failedloginpause(&self) -> Duration {
        self.duration(Opt::FailedLoginPause)
    }

    /// How a partition is chosen for a new backup.
    pub fn partition_select(&self) -> Select {
        Select {
            // The table admits only these names.
            mode: self
                .text(Opt::PartitionSelectMode)
                .and_then(Mode::from_name)
                .unwrap_or(Mode::FreespaceMost),
            exclude: words(self.text(Opt::PartitionSelectExclude)),
            soft_usage_limit: self.int(Opt::PartitionSelectSoftUsageLimit),
            usage_reinit: self.int(Opt::PartitionSelectUsageReinit),
        }
    }

    /// What stands before our name in the log; `CYRUS_SYSLOG_PREFIX` wins.
    pub fn syslog_prefix(&self) -> Option<&str> {
        let env = self.env.syslog_prefix.as_deref();
        env.or_else(|| self.text(Opt::SyslogPrefix))
    }

    /// The facility of the log; MAIL, as in Debian, unless set.
    pub fn syslog_facility(&self) -> Facility {
        self.text(Opt::SyslogFacility)
            .and_then(Facility::from_name)
            .unwrap_or(Facility::Mail)
    }

    /// Whether debug lines are logged.
    pub fn debug(&self) -> bool {
        self.switch(Opt::Debug)
    }

    /// The mask for new files; 077 unless set.
    pub fn umask(&self) -> u32 {
        parse_umask(self).unwrap_or(0o077)
    }

    /// The user to run as: `CYRUS_USER`, `cyrus_user`, `cyrus`.
    pub fn cyrus_user(&self) -> &str {
        let env = self.env.user.as_deref();
        env.or_else(|| self.text(Opt::CyrusUser)).unwrap_or("cyrus")
    }

    /// The group to run as: `CYRUS_GROUP`, `cyrus_group`, `mail`.
    pub fn cyrus_group(&self) -> &str {
        let env = self.env.group.as_deref();
        env.or_else(|| self.text(Opt::CyrusGroup)).unwrap_or("mail")
    }

    fn count(&self, opt: Opt) -> usize {
        usize::try_from(self.int(opt)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::from_text(&format!("configdirectory: /c\n{text}"), "backupd").unwrap()
    }

    #[test]
    fn admins() {
        let c = config("admins: cyrus  repl@ex.org\tgroup:staff a,b\n");
        assert_eq!(c.admins(), ["cyrus", "repl@ex.org", "group:staff", "a,b"]);
        assert!(c.is_admin("cyrus") && c.is_admin("repl@ex.org"));
        for no in [
            "",
            "Cyrus",
            "repl",
            "staff",
            "group:staff",
            "a",
            "cyrus repl@ex.org",
        ] {
            assert!(!c.is_admin(no), "{no}");
        }
        assert!(c.warnings()[0].contains("group:staff"));
        assert!(config("admins: anyone\n").is_admin("whoever"));
        assert!(!config("").is_admin("") && !config("").is_admin("anyone"));
    }

    #[test]
    fn places() {
        let c = config("backuppartition-b: /b/\nbackuppartition-A: /a\n");
        let expect = [("b", "/b"), ("a", "/a")].map(|(n, p)| (n.to_string(), PathBuf::from(p)));
        assert_eq!(c.backup_partitions(), expect);
        assert_eq!(c.backup_db_path(), Path::new("/c/backups.db"));
        assert_eq!(c.backup_staging_path(), Path::new("/tmp/backup"));
        assert_eq!(c.backup_passwd_file(), Path::new("/c/backup_passwd"));
        assert_eq!(c.backup_index_path(), None);
        let c = config("temp_path: /t\nbackup_index_path: {configdirectory}/i\n");
        assert_eq!(c.backup_staging_path(), Path::new("/t/backup"));
        assert_eq!(c.backup_index_path(), Some(PathBuf::from("/c/i")));
    }

    #[test]
    fn times_and_numbers() {
        let c = config("");
        assert_eq!(c.sync_timeout(), Duration::from_secs(1800));
        assert_eq!(c.backup_retention(), Some(Duration::from_secs(7 * 86_400)));
        assert_eq!(c.failedloginpause(), Duration::from_secs(3));
        assert_eq!((c.backup_max_connections(), c.backup_open_max()), (200, 8));
        assert_eq!((c.backup_ingest_level(), c.backup_compact_level()), (1, 6));
        assert_eq!(c.backup_chunk_max(), 8 << 20);
        assert_eq!((c.umask(), c.backup_rename()), (0o077, Rename::Follow));
        let c = config("sync_timeout: 1s\nbackup_retention: 0\numask: 27\nbackup_rename: reject\n");
        assert_eq!(c.sync_timeout(), Duration::from_secs(3));
        assert_eq!(c.backup_retention(), None);
        assert_eq!((c.umask(), c.backup_rename()), (0o27, Rename::Reject));
        assert_eq!(config("backup_retention: -1\n").backup_retention(), None);
        let grace = "configdirectory: /c\nbackup_delete_grace: -1\n";
        let e = Config::from_text(grace, "x").unwrap_err();
        assert!(e.to_string().contains("backup_delete_grace is negative"));
    }

    #[test]
    fn names_and_partitions() {
        let c = config("virtdomains: userid\ndefaultdomain: d.org\nunixhierarchysep: off\n");
        let expect = Namespace {
            defaultdomain: "d.org".into(),
            unixhierarchysep: false,
            virtdomains: VirtDomains::Userid,
            ..Namespace::default()
        };
        assert_eq!(c.namespace(), expect);
        assert_eq!(config("").namespace(), Namespace::default());
        let c = config("partition_select_mode: random\npartition_select_exclude: a, b\tc\n");
        assert_eq!(c.partition_select().mode, Mode::Random);
        assert_eq!(c.partition_select().exclude, ["a", "b", "c"]);
        assert_eq!((c.cyrus_user(), c.cyrus_group()), ("cyrus", "mail"));
        assert_eq!(
            (c.syslog_facility(), c.syslog_prefix()),
            (Facility::Mail, None)
        );
        assert_eq!(config("servername: s\n").servername(), "s");
        assert_eq!(config("").servername(), identity::host_name());
    }

    #[test]
    fn what_the_table_cannot_say() {
        for text in [
            "backup_db: sql\n",
            "backup_db_path: b.db\n",
            "backup_socket: s\n",
            "defaultpartition: a_b\n",
        ] {
            let text = format!("configdirectory: /c\n{text}");
            let e = Config::from_text(&text, "backupd").unwrap_err();
            assert_eq!(e.kind(), Kind::Config, "{text}");
        }
        assert!(Config::from_text("configdirectory: c\n", "x").is_err());
        let odd = "umask: 9\nsyslog_facility: KERN\nbackuppartition-a: /a\n\
                   backuppartition-b: /a/b\nbackuppartition-c: /a\nbackuppartition-d: /ab\n";
        let c = config(odd);
        assert_eq!(c.warnings().len(), 5, "{:?}", c.warnings());
        assert_eq!(c.umask(), 0o077);
    }
}
