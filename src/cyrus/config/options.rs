//! The options of imapd.conf we know: name, type, default. A table, and nothing else.
//!
//! Cyrus' own are as in its `lib/imapoptions` (3.6); ours all have defaults under which nothing
//! needs to be set but `configdirectory` and a `backuppartition-<name>`. An option that is not
//! here is kept as a string and never judged. A new key must not contain `partition-`: newer
//! Cyrus takes that for a mail partition.
#![forbid(unsafe_code)]

use crate::cyrus::partition::Mode;

/// How a value is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// On or off.
    Switch,
    /// A whole number within these limits, both included.
    Int(i64, i64),
    /// One of these words; `yes` and `no` and their like mean `on` and `off`.
    Enum(&'static [&'static str]),
    /// Exactly one of these words.
    Word(&'static [&'static str]),
    /// Anything; a leading `{configdirectory}` is replaced.
    Text,
    /// Time in seconds; the unit of a bare number.
    Duration(u8),
    /// Bytes; the unit of a bare number, and the least allowed.
    Size(u8, i64),
}

/// A row of the table.
#[derive(Debug)]
pub struct Row {
    /// Which option.
    pub opt: Opt,
    /// Its name in the file.
    pub name: &'static str,
    /// How its value is read.
    pub kind: Type,
    /// Its value when not set, as it would be written.
    pub default: Option<&'static str>,
    /// The option that replaces it, when it is deprecated.
    pub replaced_by: Option<Opt>,
}

macro_rules! options {
    ($($opt:ident $name:literal $kind:expr, $default:expr $(, replaced by $new:ident)?;)*) => {
        /// An option we know.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Opt {
            $(#[doc = concat!("`", $name, "`")] $opt,)*
        }

        /// Every option we know, in the order of [`Opt`].
        pub static TABLE: &[Row] = &[
            $(Row {
                opt: Opt::$opt,
                name: $name,
                kind: $kind,
                default: $default,
                replaced_by: options!(@new $($new)?),
            },)*
        ];
    };
    (@new $new:ident) => { Some(Opt::$new) };
    (@new) => { None };
}

const SWITCH: Type = Type::Switch;
const TEXT: Type = Type::Text;
/// What a C int holds: Cyrus' getter refuses more.
const INT: Type = Type::Int(-0x7fff_ffff, 0x7fff_ffff);
const SECS: Type = Type::Duration(b's');
const OFF: Option<&str> = Some("no");
const ON: Option<&str> = Some("yes");

options! {
    // Cyrus: places and names.
    ConfigDirectory "configdirectory" TEXT, None;
    Admins "admins" TEXT, Some("");
    ServerName "servername" TEXT, None;
    ProcPath "proc_path" TEXT, Some("{configdirectory}/proc");
    TempPath "temp_path" TEXT, Some("/tmp");
    DefaultPartition "defaultpartition" TEXT, None;
    FullDirHash "fulldirhash" SWITCH, OFF;
    VirtDomains "virtdomains" Type::Enum(&["off", "userid", "on"]), Some("off");
    DefaultDomain "defaultdomain" TEXT, Some("internal");
    UnixHierarchySep "unixhierarchysep" SWITCH, ON;
    AltNamespace "altnamespace" SWITCH, ON;
    DeletedPrefix "deletedprefix" TEXT, Some("DELETED");
    UsernameToLower "username_tolower" SWITCH, ON;
    PartitionSelectMode "partition_select_mode" Type::Word(Mode::NAMES), Some("freespace-most");
    PartitionSelectExclude "partition_select_exclude" TEXT, None;
    PartitionSelectUsageReinit "partition_select_usage_reinit" INT, Some("0");
    PartitionSelectSoftUsageLimit "partition_select_soft_usage_limit" INT, Some("0");

    // Cyrus: process and log.
    CyrusUser "cyrus_user" TEXT, None;
    CyrusGroup "cyrus_group" TEXT, None;
    Umask "umask" TEXT, Some("077");
    Debug "debug" SWITCH, OFF;
    SyslogPrefix "syslog_prefix" TEXT, None;
    SyslogFacility "syslog_facility" TEXT, None;
    ServerInfo "serverinfo" Type::Enum(&["off", "min", "on"]), Some("on");
    TelemetryBySessionId "telemetry_bysessionid" SWITCH, OFF;
    PrometheusEnabled "prometheus_enabled" SWITCH, OFF;

    // Cyrus: connections and authority.
    AllowPlaintext "allowplaintext" SWITCH, OFF;
    AllowAnonymousLogin "allowanonymouslogin" SWITCH, OFF;
    FailedLoginPause "failedloginpause" SECS, Some("3s");
    LoginRealms "loginrealms" TEXT, Some("");
    SaslMinimumLayer "sasl_minimum_layer" INT, Some("0");
    SaslMaximumLayer "sasl_maximum_layer" INT, Some("256");
    TlsServerCert "tls_server_cert" TEXT, None;
    TlsServerKey "tls_server_key" TEXT, None;
    TlsServerCaFile "tls_server_ca_file" TEXT, None;
    TlsServerCaDir "tls_server_ca_dir" TEXT, None;
    TlsClientCaFile "tls_client_ca_file" TEXT, None;
    TlsClientCaDir "tls_client_ca_dir" TEXT, None;
    TlsClientCert "tls_client_cert" TEXT, None;
    TlsClientKey "tls_client_key" TEXT, None;
    TlsClientCerts "tls_client_certs" Type::Enum(&["off", "optional", "require"]), Some("optional");
    TlsVersions "tls_versions" TEXT, Some("tls1_0 tls1_1 tls1_2 tls1_3");
    TlsCiphers "tls_ciphers" TEXT, Some("DEFAULT");
    TlsCrlFile "tls_crl_file" TEXT, None;
    TlsSessionTimeout "tls_session_timeout" Type::Duration(b'm'), Some("24h");
    TlsCertFile "tls_cert_file" TEXT, None, replaced by TlsServerCert;
    TlsKeyFile "tls_key_file" TEXT, None, replaced by TlsServerKey;
    TlsCaFile "tls_ca_file" TEXT, None, replaced by TlsClientCaFile;
    TlsCaPath "tls_ca_path" TEXT, None, replaced by TlsClientCaDir;
    TlsCipherList "tls_cipher_list" TEXT, Some("DEFAULT"), replaced by TlsCiphers;
    TcpKeepalive "tcp_keepalive" SWITCH, OFF;
    TcpKeepaliveCnt "tcp_keepalive_cnt" INT, Some("0");
    TcpKeepaliveIdle "tcp_keepalive_idle" SECS, Some("0");
    TcpKeepaliveIntvl "tcp_keepalive_intvl" SECS, Some("0");
    ClientTimeout "client_timeout" SECS, Some("10s");

    // Cyrus: replication and restore.
    SyncTimeout "sync_timeout" SECS, Some("30m");
    SyncHost "sync_host" TEXT, None;
    SyncPort "sync_port" TEXT, None;
    SyncAuthname "sync_authname" TEXT, None;
    SyncPassword "sync_password" TEXT, None;
    SyncRealm "sync_realm" TEXT, None;
    SyncTryImap "sync_try_imap" SWITCH, ON;
    SyncBatchsize "sync_batchsize" INT, Some("8192");
    RestoreAuthname "restore_authname" TEXT, None;
    RestorePassword "restore_password" TEXT, None;
    RestoreRealm "restore_realm" TEXT, None;

    // Cyrus up to 3.10: backups. Sizes were plain numbers of KiB in 3.6.
    BackupDb "backup_db" Type::Word(&["skiplist", "sql", "twoskip", "zeroskip"]), Some("twoskip");
    BackupDbPath "backup_db_path" TEXT, Some("{configdirectory}/backups.db");
    BackupStagingPath "backup_staging_path" TEXT, None;
    BackupRetention "backup_retention" Type::Duration(b'd'), Some("7d");
    BackupRetentionDays "backup_retention_days" Type::Duration(b'd'), None, replaced by BackupRetention;
    BackupCompactMinsize "backup_compact_minsize" Type::Size(b'K', i64::MIN), Some("0");
    BackupCompactMaxsize "backup_compact_maxsize" Type::Size(b'K', i64::MIN), Some("0");
    BackupCompactWorkThreshold "backup_compact_work_threshold" INT, Some("1");
    BackupKeepPrevious "backup_keep_previous" SWITCH, OFF;
    XbackupEnabled "xbackup_enabled" SWITCH, OFF;

    // Ours.
    BackupListen "backup_listen" TEXT, None;
    BackupSocket "backup_socket" TEXT, None;
    BackupMaxConnections "backup_max_connections" Type::Int(1, 100_000), Some("200");
    BackupOpenMax "backup_open_max" Type::Int(1, 10_000), Some("8");
    BackupDrain "backup_drain" SECS, Some("60s");
    BackupLockWait "backup_lock_wait" SECS, Some("60s");
    BackupPasswdFile "backup_passwd_file" TEXT, Some("{configdirectory}/backup_passwd");
    BackupIngestLevel "backup_ingest_level" Type::Int(0, 9), Some("1");
    BackupCompactLevel "backup_compact_level" Type::Int(0, 9), Some("6");
    BackupChunkIdle "backup_chunk_idle" SECS, Some("5m");
    BackupChunkMax "backup_chunk_max" Type::Size(b'K', 64 << 10), Some("8M");
    BackupStagingMax "backup_staging_max" Type::Size(b'K', 0), Some("16G");
    BackupIndexPath "backup_index_path" TEXT, None;
    BackupRetentionFor "backup_retention_for" TEXT, None;
    BackupCompactBrake "backup_compact_brake" Type::Int(0, 100), Some("50");
    BackupDeleteGrace "backup_delete_grace" Type::Duration(b'd'), Some("30d");
    BackupRename "backup_rename" Type::Word(&["reject", "follow"]), Some("follow");
}

impl Opt {
    /// The row of this option.
    pub fn row(self) -> &'static Row {
        // The table is in the order of the variants: both come from one list.
        &TABLE[self as usize]
    }

    /// The option of that name.
    pub fn by_name(name: &str) -> Option<Opt> {
        TABLE.iter().find(|row| row.name == name).map(|row| row.opt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_found() {
        let names: HashSet<&str> = TABLE.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), TABLE.len());
        for row in TABLE {
            assert_eq!(row.opt.row().name, row.name);
            assert_eq!(Opt::by_name(row.name), Some(row.opt));
            assert!(!row.name.contains("partition-"), "{}", row.name);
            assert_eq!(row.name, row.name.to_ascii_lowercase());
        }
        assert_eq!(Opt::by_name("nope"), None);
    }

    #[test]
    fn a_replacement_reads_its_values_alike() {
        for row in TABLE {
            let Some(new) = row.replaced_by else { continue };
            assert_eq!(row.kind, new.row().kind, "{}", row.name);
            assert_eq!(new.row().replaced_by, None);
        }
    }
}
