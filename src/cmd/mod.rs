//! The subcommands: one table, one file each.
#![forbid(unsafe_code)]

pub mod passwd;
pub mod serve;

/// Runs the program with the process' arguments and returns its exit status.
pub fn main() -> std::process::ExitCode {
    let args: Vec<String> = std::env::args().skip(2).collect();
    let run = || -> crate::error::Result<u8> {
        let args = serve::Args::parse(&args)?;
        let path = args
            .config
            .clone()
            .unwrap_or_else(|| "/etc/imapd.conf".into());
        let config = crate::cyrus::config::Config::load(&path, "backup")?;
        crate::sys::identity::set_umask(0o077);
        crate::sys::identity::become_user(config.cyrus_user(), config.cyrus_group())?;
        let level = if args.verbose > 0 {
            log::LevelFilter::Debug
        } else {
            log::LevelFilter::Info
        };
        crate::cyrus::syslog::init(
            "backup",
            config.syslog_prefix(),
            config.syslog_facility(),
            level,
            args.verbose > 0,
        )?;
        serve::run(&args, config)
    };
    match run() {
        Ok(code) => std::process::ExitCode::from(code),
        Err(e) => {
            eprintln!("{e}");
            std::process::ExitCode::from(78)
        }
    }
}
