//! `cyr_backup serve`: the server, under Cyrus master, systemd, or by itself.
//!
//! The Args half also accepts what may stand in old cyrus.conf lines for backupd. The run half opens the sockets
//! and hands over to the supervisor; it expects to run as the cyrus user. Fails with `Kind::Usage`
//! for the command line and `Kind::Config` for sockets an administrator must correct: these must not become exit
//! statuses 0 or 75, or master would start us again without a pause, for ever.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use getopts::{HasArg, Matches, Occur, Options};
use log::LevelFilter;

use super::args::{no_more, quiet_and_help};
use super::output::Out;
use super::{Context, Job, Outcome};
use crate::cyrus::config::{Config, Opt};
use crate::cyrus::syslog;
use crate::error::{Error, Kind, Result};
use crate::server::auth::{AuthPolicy, Authenticator};
use crate::server::listen::{Keepalive, Listeners, Sources, Stop};
use crate::server::session;
use crate::server::shared::Shared;
use crate::server::supervisor::{self, Handler, Limits};
use crate::server::wanted::Wanted;
use crate::store::backup;
use crate::store::catalog::Catalog;
use crate::sys::{fd, identity};

/// What was typed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    /// `--listen`, in order.
    pub listen: Vec<String>,
    /// `--socket`.
    pub socket: Option<PathBuf>,
}

/// Options of stock services that mean nothing to us: letter, and the name of their value.
const IGNORED: [(&str, &str); 5] = [
    ("p", "SSF"),
    ("U", "N"),
    ("T", "SECS"),
    ("D", ""),
    ("X", ""),
];

/// The options, for parsing, help and the test of the manual page.
pub fn options() -> Options {
    let mut o = Options::new();
    o.optopt("C", "", "read this imapd.conf", "FILE");
    o.optflagmulti("v", "", "log more");
    quiet_and_help(&mut o);
    o.optmulti("", "listen", "listen on a TCP address", "ADDR:PORT");
    o.optopt("", "socket", "listen on a UNIX socket", "PATH");
    for (letter, value) in IGNORED {
        let has_arg = if value.is_empty() {
            HasArg::No
        } else {
            HasArg::Yes
        };
        let help = "ignored, for old cyrus.conf lines";
        o.opt(letter, "", help, value, has_arg, Occur::Multi);
    }
    o
}

/// The command.
pub fn job(m: &Matches) -> Result<Job> {
    let args = Args::parse(m)?;
    Ok(Box::new(move |c, out| run(&args, c, out)))
}

impl Args {
    /// Judges what was typed. `Kind::Usage` for words nobody asked for.
    pub fn parse(m: &Matches) -> Result<Args> {
        no_more(&m.free)?;
        Ok(Args {
            listen: m.opt_strs("listen"),
            socket: m.opt_str("socket").map(PathBuf::from),
        })
    }
}

/// What imapd.conf says about serving.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `backup_listen`: used when nothing else says where.
    pub listen: Vec<String>,
    /// `backup_socket`: likewise.
    pub socket: Option<PathBuf>,
    /// `backup_max_connections`.
    pub max_connections: usize,
    /// `backup_drain`.
    pub drain: Duration,
    /// `tcp_keepalive` and its values; `None`: off.
    pub keepalive: Option<Keepalive>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            listen: Vec::new(),
            socket: None,
            max_connections: 100,
            drain: Duration::from_secs(60),
            keepalive: None,
        }
    }
}

/// Sockets that are open and nothing served yet: the step before the configuration's databases are opened, because
/// descriptors handed over must be taken before others are opened.
#[derive(Debug)]
pub struct Ready {
    listeners: Listeners,
    limits: Limits,
}

impl Ready {
    /// Takes over or opens the sockets and raises the limit of descriptors. No other thread may run.
    pub fn prepare(args: &Args, settings: &Settings) -> Result<Ready> {
        if let Err(e) = fd::raise_nofile() {
            log::warn!("cannot raise the limit of open files error=<{e}>");
        }
        let sources = Sources {
            listen: args.listen.clone(),
            socket: args.socket.clone(),
            config_listen: settings.listen.clone(),
            config_socket: settings.socket.clone(),
        };
        let mut listeners = Listeners::open(&sources, |k| std::env::var_os(k), std::process::id())?;
        listeners.keepalive = settings.keepalive;
        Ok(Ready {
            listeners,
            limits: Limits {
                max_connections: settings.max_connections,
                drain: settings.drain,
            },
        })
    }

    /// Serves until told to stop; returns the exit status. Panics are logged from here on.
    pub fn serve<C: Send + Sync + 'static>(
        self,
        shared: Arc<C>,
        handler: Handler<C>,
    ) -> Result<u8> {
        log_panics();
        let stop = Stop::new().map_err(|e| Error::io("cannot make the stop flag", e))?;
        supervisor::run(self.listeners, self.limits, stop, shared, handler)
    }
}

/// Serves as imapd.conf says until told to stop. We are the cyrus user already, and have no other
/// thread and no log yet.
pub fn run(args: &Args, context: &Context, _out: &mut Out) -> Result<Outcome> {
    crate::sys::memory::give_back();
    let config = context.config.clone();
    let verbose = context.globals.verbose > 0;
    let level = match context.globals.verbose {
        _ if config.debug() => LevelFilter::Debug,
        0 => LevelFilter::Info,
        1 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    syslog::init(
        config.ident(),
        config.syslog_prefix(),
        config.syslog_facility(),
        level,
        verbose,
    )?;
    for warning in config.warnings() {
        log::warn!("imapd.conf: {warning}");
    }
    let served = serve(args, config);
    if let Err(e) = &served {
        log::error!("cannot serve error=<{e}>");
    }
    served.map(Outcome::Status)
}

fn serve(args: &Args, config: Config) -> Result<u8> {
    let keepalive = config.switch(Opt::TcpKeepalive).then(|| Keepalive {
        idle_secs: config.secs(Opt::TcpKeepaliveIdle) as u32,
        interval_secs: config.secs(Opt::TcpKeepaliveIntvl) as u32,
        count: config.int(Opt::TcpKeepaliveCnt) as u32,
    });
    let settings = Settings {
        listen: config
            .backup_listen()
            .map(|l| l.split_whitespace().map(str::to_owned).collect())
            .unwrap_or_default(),
        socket: config.backup_socket(),
        max_connections: config.backup_max_connections(),
        drain: config.backup_drain(),
        keepalive,
    };
    let ready = Ready::prepare(args, &settings)?;
    ready.serve(Arc::new(shared(config)?), session::run)
}

/// What the sessions share. `Kind::Config` when there is nowhere to keep backups.
fn shared(config: Config) -> Result<Shared> {
    if config.backup_partitions().is_empty() {
        return Err(Error::new(
            Kind::Config,
            "no backup partition: set backuppartition-<name>",
        ));
    }
    let mut our_uids = vec![identity::current_uid()];
    our_uids.extend(identity::uid_of(config.cyrus_user()).ok().flatten());
    let auth = Authenticator::new(AuthPolicy {
        admins: config.admins(),
        allow_plaintext: config.allowplaintext(),
        passwd_file: config.backup_passwd_file(),
        failed_pause: config.failedloginpause(),
        username_tolower: config.username_tolower(),
        our_uids,
    })?;
    Ok(Shared {
        ns: config.namespace(),
        catalog: Catalog::open(&config.backup_db_path(), true),
        auth,
        settings: backup::Settings {
            level: config.backup_ingest_level(),
            chunk_max: config.backup_chunk_max(),
        },
        lock_wait: config.backup_lock_wait(),
        staging: config.backup_staging_path(),
        wanted: Wanted::default(),
        config,
    })
}

/// Sends the place of a panic to the log instead of standard error, which is /dev/null under master. What it said
/// follows from the supervisor.
fn log_panics() {
    std::panic::set_hook(Box::new(|info| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("?");
        match info.location() {
            Some(at) => log::error!("panic thread={name} at={at}"),
            None => log::error!("panic thread={name}"),
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Option<Args> {
        Args::parse(&options().parse(words).ok()?).ok()
    }

    #[test]
    fn options_of_ours_and_of_old_lines() {
        let args = parse(&[
            "-C",
            "/etc/x.conf",
            "-v",
            "-v",
            "--listen",
            "127.0.0.1:1",
            "--listen=[::1]:2",
            "--socket",
            "/s",
        ]);
        assert_eq!(
            args.unwrap(),
            Args {
                listen: vec!["127.0.0.1:1".into(), "[::1]:2".into()],
                socket: Some("/s".into()),
            }
        );
        let old = ["-p", "0", "-U", "250", "-T", "60", "-D", "-X", "-U", "1"];
        assert_eq!(parse(&old).unwrap(), Args::default());
        assert_eq!(parse(&[]).unwrap(), Args::default());
    }

    #[test]
    fn what_is_unknown_is_refused() {
        for bad in [
            &["-z"][..],
            &["--liste=1"],
            &["-C"],
            &["-C", "a", "-C", "b"],
            &["anna"],
            &["--socket"],
            &["-U"],
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
