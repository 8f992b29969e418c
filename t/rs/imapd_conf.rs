//! imapd.conf read by us and by Cyrus' own parser, side by side: both must refuse the same files and
//! understand the same values in the others. Skipped where Cyrus is not installed.

use cyr_backup::cyrus::config::Config;
use cyr_backup::cyrus::config::options::{Opt, TABLE};
use cyr_backup::cyrus::syslog;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

const CYR_INFO: &str = "/usr/lib/cyrus/bin/cyr_info";
const IDENT: &str = "cyr_info";

/// Written after `configdirectory`; `INC` stands for the path of a file that sets `servername`.
const SNIPPETS: &[&str] = &[
    "",
    // Switches and words.
    "debug: Yes\n",
    "debug: oxy\n",
    "debug: o\n",
    "debug: onx\n",
    "fulldirhash: tiger\n",
    "fulldirhash: of\nunixhierarchysep: n\n",
    "virtdomains: yes\n",
    "virtdomains: y\n",
    "virtdomains: ON\n",
    "virtdomains: userid\n",
    "tls_client_certs: 1\n",
    "tls_client_certs: false\n",
    "serverinfo: f\n",
    "partition_select_mode: Random\n",
    "partition_select_mode: yes\n",
    "partition_select_mode: freespace-percent-weighted\n",
    // Numbers.
    "sync_batchsize: 010\n",
    "sync_batchsize: 0x1F\n",
    "sync_batchsize: 0x\n",
    "sync_batchsize: +5\n",
    "sync_batchsize: 5k\n",
    "sync_batchsize: 08\n",
    // Durations.
    "sync_timeout: 1d12h\n",
    "sync_timeout: 1m1h1m\n",
    "sync_timeout: -5\n",
    "sync_timeout: -\n",
    "sync_timeout: 5 m\n",
    "sync_timeout: 5w\n",
    "sync_timeout: h\n",
    "sync_timeout: +5\n",
    "sync_timeout: 1h-5m\n",
    "backup_retention: 14\n",
    // Lines.
    "admins: a\\\n  b\n",
    "admins: a\\\n# x\n",
    "admins: a\\ \nservername: x\n",
    "servername: x\\",
    "servername: x\\\n",
    "servername: last",
    "servername:\n",
    "servername :x\n",
    " \t servername:x # y\r\n",
    "#x\\\ndebug: 1\nsync_host: h\n",
    "\x0c#x\n\x0bservername: a\x0b\n",
    "foo.bar: x\n",
    "nope\n",
    ": x\n",
    // Twice, and the service's own.
    "Servername:x\nSERVERNAME:x\n",
    "foo: 1\nfoo: 2\n",
    "cyr_info_debug: 1\ndebug: 0\n",
    "debug: 0\ncyr_info_debug: 1\n",
    "debug: 0\ncyr_info_debug: 1\ndebug: 0\n",
    "cyr_info_debug: 1\ndebug: Yes\ndebug: 0\n",
    "cyr_info_debug: 1\ncyr_info_debug: 1\n",
    "other_debug: 1\n",
    // Files.
    "@include: INC\n",
    "@INCLUDE: INC\nservername: again\n",
    "@include: INC\n@include: INC\n",
    "@include: INC.missing\n",
    "@nope: INC\n",
    // Substitution.
    "sync_host: {CONFIGdirectory}x\n",
    "sync_host: a{configdirectory}x\n",
    "backup_db_path: {configdirectory}/b.db\n",
    // Deprecated names.
    "backup_retention_days: 9\n",
    "backup_retention_days: 9\nbackup_retention: 3\n",
    "backup_retention_days: x9\n",
    "cyr_info_backup_retention_days: 3\nbackup_retention_days: 9\n",
    "tls_cert_file: /a\ntls_server_cert: /b\n",
    "tls_ca_path: /a\n",
    // The rest.
    "defaultpartition: a_b\n",
    "sasl_maximum_layer: 5\n",
    "backuppartition-Default: /b\nfoo: x  y\n",
];

/// What `cyr_info conf` prints: known options first, as understood. `None` if it dies.
fn original(conf: &Path) -> Option<BTreeMap<String, String>> {
    let out = Command::new(CYR_INFO)
        .arg("-C")
        .arg(conf)
        .arg("conf")
        .output()
        .unwrap();
    if !out.status.success() {
        return None;
    }
    let text = String::from_utf8(out.stdout).unwrap();
    let mut map = BTreeMap::new();
    for line in text.lines() {
        let (key, value) = line.split_once(": ").unwrap();
        // Keys no table knows, and deprecated ones as written, follow: the first wins.
        map.entry(key.to_string()).or_insert(value.to_string());
    }
    Some(map)
}

fn ours(conf: &Path) -> Option<BTreeMap<String, String>> {
    let config = Config::load(conf, IDENT)
        .map_err(|e| eprintln!("  {e}"))
        .ok()?;
    let set = config.effective().into_iter().filter(|(_, _, d)| !d);
    Some(set.map(|(name, value, _)| (name, value)).collect())
}

/// Two spellings of one value: the original prints switches as yes, numbers in decimal, and words
/// of an enum as it understood them.
fn same(config: &Config, name: &str, theirs: &str) -> bool {
    use cyr_backup::cyrus::config::options::Type;
    use cyr_backup::cyrus::config::parse;
    let Some(opt) = Opt::by_name(name) else {
        return config.other(name) == Some(theirs);
    };
    match opt.row().kind {
        Type::Switch => Some(config.switch(opt)) == parse::switch(theirs),
        Type::Int(..) => theirs.parse() == Ok(config.int(opt)),
        Type::Duration(unit) => Some(config.secs(opt)) == parse::duration(theirs, unit),
        Type::Enum(_) | Type::Word(_) | Type::Text => config.text(opt) == Some(theirs),
        Type::Size(..) => true,
    }
}

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn both_parsers_agree() {
    if !Path::new(CYR_INFO).exists() {
        eprintln!("skipped: no {CYR_INFO}");
        return;
    }
    let path = std::env::temp_dir().join(format!("cyr_backup-conf-{}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    let folder = Folder(path);
    let include = folder.0.join("inc.conf");
    std::fs::write(&include, "servername: inc\n").unwrap();
    let include = include.to_str().unwrap();
    let conf = folder.0.join("imapd.conf");
    let (mut refused, mut accepted) = (0, 0);
    for snippet in SNIPPETS {
        let text = snippet.replace("INC", include);
        std::fs::write(&conf, format!("configdirectory: /c\n{text}")).unwrap();
        let (theirs, ours) = (original(&conf), ours(&conf));
        let (theirs, ours) = match (theirs, ours) {
            (Some(theirs), Some(ours)) => (theirs, ours),
            (None, None) => {
                refused += 1;
                continue;
            }
            (theirs, ours) => panic!("{snippet:?}: theirs {theirs:?}, ours {ours:?}"),
        };
        accepted += 1;
        let config = Config::load(&conf, IDENT).unwrap();
        for (name, value) in &theirs {
            // A service's own key is printed by itself, under the option as understood, too.
            if name.starts_with("cyr_info_") {
                continue;
            }
            assert!(same(&config, name, value), "{snippet:?}: {name}: {value:?}");
        }
        // What the original does not print is at its default, whatever the spelling.
        for name in ours.keys().filter(|name| !theirs.contains_key(*name)) {
            let opt = Opt::by_name(name).unwrap();
            let text = opt.row().default.unwrap_or_default();
            let replaced = theirs.contains_key("backup_retention_days");
            assert!(replaced || same(&config, name, text), "{snippet:?}: {name}");
        }
    }
    std::fs::write(&conf, "debug: 1\n").unwrap();
    assert!(original(&conf).is_none() && ours(&conf).is_none());
    assert!(refused > 20 && accepted > 20, "{refused} {accepted}");
}

#[test]
fn the_original_knows_our_names_and_has_our_defaults() {
    if !Path::new(CYR_INFO).exists() {
        eprintln!("skipped: no {CYR_INFO}");
        return;
    }
    let name = format!("cyr_backup-defaults-{}.conf", std::process::id());
    let conf = std::env::temp_dir().join(name);
    let mut text = "configdirectory: /c\n".to_string();
    let mut count = 0;
    // The table ends in our own.
    for row in &TABLE[..Opt::BackupListen as usize] {
        let default = row.default.unwrap_or_default();
        // What is empty cannot be written; what depends on a folder has no default in Cyrus.
        if !default.is_empty() && !default.starts_with('{') && row.replaced_by.is_none() {
            text.push_str(&format!("{}: {default}\n", row.name));
            count += 1;
        }
    }
    std::fs::write(&conf, text).unwrap();
    let printed = original(&conf);
    std::fs::remove_file(&conf).unwrap();
    // It prints only what differs from its own default, and what it does not know.
    let printed: Vec<_> = printed.unwrap().into_iter().collect();
    assert_eq!(printed, [("configdirectory".to_string(), "/c".to_string())]);
    assert!(count > 30, "{count}");
}

#[test]
fn a_file_that_is_not_there_is_a_configuration_error() {
    let e = Config::load(Path::new("/no/such/imapd.conf"), IDENT).unwrap_err();
    assert_eq!(e.kind(), cyr_backup::error::Kind::Config);
    assert!(e.to_string().contains("/no/such/imapd.conf"), "{e}");
}

#[test]
fn the_environment_wins() {
    // In a child, because an environment belongs to a process; the child is this test.
    const MARK: &str = "CYR_BACKUP_TEST_ENV";
    if std::env::var_os(MARK).is_some() {
        let config = Config::load(Path::new("/imapd.conf"), IDENT).unwrap();
        assert_eq!(config.servername(), "prefixed");
        assert_eq!((config.cyrus_user(), config.cyrus_group()), ("u", "g"));
        assert_eq!(config.syslog_prefix(), Some("p"));
        let facility = config.syslog_facility();
        let level = log::LevelFilter::Debug;
        syslog::init("me", config.syslog_prefix(), facility, level, false).unwrap();
        log::debug!("hello");
        assert!(syslog::init("me", None, facility, level, false).is_err());
        return;
    }
    let path = std::env::temp_dir().join(format!("cyr_backup-env-{}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    let folder = Folder(path);
    let text = "configdirectory: /c\nservername: prefixed\ncyrus_user: x\ncyrus_group: x\n\
                syslog_prefix: x\nsyslog_facility: LOCAL6\n";
    std::fs::write(folder.0.join("imapd.conf"), text).unwrap();
    let daemon = std::os::unix::net::UnixDatagram::bind(folder.0.join("log")).unwrap();
    daemon
        .set_read_timeout(Some(std::time::Duration::from_secs(5)))
        .unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "imapd_conf::the_environment_wins"])
        .env(MARK, "1")
        .env("CYRUS_PREFIX", &folder.0)
        .env("CYRUS_USER", "u")
        .env("CYRUS_GROUP", "g")
        .env("CYRUS_SYSLOG_PREFIX", "p")
        .env("CYR_BACKUP_SYSLOG", folder.0.join("log"))
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&child.stdout).into_owned();
    assert!(
        child.status.success() && shown.contains("1 passed"),
        "{shown}"
    );
    let mut line = [0; 500];
    let n = daemon.recv(&mut line).unwrap();
    let line = String::from_utf8_lossy(&line[..n]).into_owned();
    // LOCAL6 and debug; the test's thread has a name.
    assert!(line.starts_with("<183>"), "{line}");
    assert!(
        line.contains(" p/me[") && line.ends_with("the_environment_wins: hello"),
        "{line}"
    );
}
