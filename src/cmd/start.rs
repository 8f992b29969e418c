//! From the process' arguments to a command that runs, and to its exit status.
//!
//! A command line is first judged as a whole, without opening anything; then imapd.conf is read;
//! then, when started as root, the process becomes the cyrus user, before any other file is
//! opened: a file of root's would lock the server out. Then the command runs.
//!
//! `serve` logs as Cyrus services do; the others log to standard error.

use super::args::{self, Globals, usage};
use super::output::{Out, plain};
use super::{COMMANDS, Command, Context, IDENT, Job, Outcome, old, say, status};
use crate::cyrus::config::Config;
use crate::error::{Error, Kind, Result};
use crate::sys::identity::{self, Became};
use getopts::{Options, ParsingStyle};
use log::{Level, LevelFilter};
use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;

/// Read when no `-C` is given.
const CONFIG: &str = "/etc/imapd.conf";

/// Runs the program with the process' arguments and returns its exit status.
pub fn main() -> ExitCode {
    crate::sys::memory::count_no_sqlite();
    let args: Vec<OsString> = std::env::args_os().collect();
    // A panic has been reported by its hook already.
    let status = catch_unwind(AssertUnwindSafe(|| run(&args))).unwrap_or(status(Kind::Internal));
    ExitCode::from(status)
}

fn run(args: &[OsString]) -> u8 {
    let fail = |e: Error| {
        say(format_args!("{IDENT}: {}", plain(&e.to_string())));
        if e.kind() == Kind::Usage {
            say(format_args!("Try `{IDENT} --help'."));
        }
        status(e.kind())
    };
    let mut out = Out::stdout();
    let (command, globals, job) = match parse(args) {
        Ok(Invocation::Run(command, globals, job)) => (command, globals, job),
        Ok(Invocation::Print(text)) => {
            let done = out.bytes(text.as_bytes()).and_then(|()| out.flush());
            return match done {
                Err(e) if !out.is_closed() => fail(e),
                _ => 0,
            };
        }
        Err(e) => return fail(e),
    };
    let context = match start(command, globals) {
        Ok(context) => context,
        Err(e) => return fail(e),
    };
    let outcome = job(&context, &mut out).and_then(|o| out.flush().map(|()| o));
    match outcome {
        Err(_) if out.is_closed() => u8::from(context.outcome() != Outcome::Well),
        Ok(Outcome::Well) => 0,
        Ok(Outcome::Partly) => 1,
        Ok(Outcome::Status(status)) => status,
        Err(e) => {
            // What came before the failure is shown before its reason.
            let _ = out.flush();
            fail(e)
        }
    }
}

enum Invocation {
    Print(String),
    Run(&'static Command, Globals, Job),
}

/// Understands a command line; the first word is the program's name.
fn parse(args: &[OsString]) -> Result<Invocation> {
    let (program, args) = match args.split_first() {
        Some((program, args)) => (Path::new(program).file_name(), args),
        None => (None, args),
    };
    let mut globals = Globals::default();
    match program.and_then(|p| p.to_str()) {
        Some("backupd") => return command("serve", args, globals),
        Some("ctl_backups") => {
            let words = old::ctl_backups(args)?;
            let (name, rest) = words.split_first().ok_or_else(|| usage("no command"))?;
            return command(&name.to_string_lossy(), rest, globals);
        }
        Some("restore") => {
            let words = old::restore(args)?;
            return command("restore", &words[1..], globals);
        }
        _ => {}
    }
    let mut o = args::common();
    o.parsing_style(ParsingStyle::StopAtFirstFree);
    o.optflag("", "version", "show the version");
    let m = o.parse(args).map_err(|e| usage(e.to_string()))?;
    globals.add(&m);
    if m.opt_present("version") {
        let version = env!("CARGO_PKG_VERSION");
        return Ok(Invocation::Print(format!("{IDENT} {version}\n")));
    }
    if m.opt_present("h") {
        return Ok(Invocation::Print(help(&o)));
    }
    match m.free.split_first() {
        None => Err(usage("no command")),
        Some((name, rest)) if name == "help" && rest.is_empty() => Ok(Invocation::Print(help(&o))),
        Some((name, rest)) => {
            let rest: Vec<OsString> = rest.iter().map(OsString::from).collect();
            command(name, &rest, globals)
        }
    }
}

fn command(name: &str, args: &[OsString], mut globals: Globals) -> Result<Invocation> {
    let Some(command) = COMMANDS.iter().find(|c| c.name == name) else {
        return Err(usage(format!("unknown command {name}")));
    };
    let place = |e: Error| match e.kind() {
        Kind::Usage => usage(format!("{name}: {e}")),
        _ => e,
    };
    let o = (command.options)();
    let m = o.parse(args).map_err(|e| place(usage(e.to_string())))?;
    globals.add(&m);
    if m.opt_present("h") {
        let brief = format!(
            "Usage: {IDENT} {name} [OPTIONS] {}\n\n{}",
            command.operands, command.help
        );
        return Ok(Invocation::Print(o.usage(brief.trim_end())));
    }
    let job = (command.job)(&m).map_err(place)?;
    Ok(Invocation::Run(command, globals, job))
}

fn help(o: &Options) -> String {
    let mut brief = format!(
        "Usage: {IDENT} [OPTIONS] COMMAND [OPTIONS] [MODE] [BACKUP...] [ITEM...]\n\nCommands:\n"
    );
    for c in COMMANDS {
        brief.push_str(&format!("    {:<10} {}\n", c.name, c.help));
    }
    brief.push_str(
        "\nMODE, what BACKUP is: -u userid (default), -m mailbox, -f data file, -D domain,\n\
         -P prefix of userids, -A all",
    );
    o.usage(&brief)
}

/// Reads imapd.conf and becomes who it says.
fn start(command: &Command, globals: Globals) -> Result<Context> {
    let is_server = command.name == "serve";
    if !is_server {
        log_to_stderr(&globals);
    }
    // The name of our line in cyrus.conf may have keys of its own.
    let service = std::env::var("CYRUS_SERVICE").ok();
    let ident = match service.filter(|s| is_server && !s.is_empty()) {
        Some(service) => service,
        None => IDENT.to_owned(),
    };
    let path = globals.config.as_deref().unwrap_or(Path::new(CONFIG));
    let config = Config::load(path, &ident)?;
    identity::set_umask(0o077);
    identity::unblock_signals()
        .map_err(|e| Error::io("cannot unblock signals", e).with_kind(Kind::Internal))?;
    let user = config.cyrus_user();
    if let Became::Other(uid) = identity::become_user(user, config.cyrus_group())? {
        log::info!("running as uid={uid}, not as user={user}");
    }
    if !is_server {
        for warning in config.warnings() {
            log::info!("{}: {warning}", path.display());
        }
    }
    Ok(Context::new(config, globals))
}

fn log_to_stderr(globals: &Globals) {
    let level = match (globals.quiet, globals.verbose) {
        (_, 3..) => LevelFilter::Trace,
        (_, 2) => LevelFilter::Debug,
        (_, 1) => LevelFilter::Info,
        (true, 0) => LevelFilter::Error,
        (false, 0) => LevelFilter::Warn,
    };
    static STDERR: Stderr = Stderr;
    // A second logger can only be a test's.
    if log::set_logger(&STDERR).is_ok() {
        log::set_max_level(level);
    }
}

struct Stderr;

impl log::Log for Stderr {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        // Other crates' chatter is nobody's business.
        if record.target().starts_with(env!("CARGO_CRATE_NAME")) || record.level() <= Level::Warn {
            say(format_args!(
                "{IDENT}: {}",
                plain(&record.args().to_string())
            ));
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Invocation> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        parse(&words)
    }

    fn runs(words: &[&str]) -> (&'static str, Globals) {
        match parsed(words) {
            Ok(Invocation::Run(c, globals, _)) => (c.name, globals),
            Ok(Invocation::Print(text)) => panic!("printed {text}"),
            Err(e) => panic!("{e}"),
        }
    }

    fn prints(words: &[&str]) -> String {
        match parsed(words) {
            Ok(Invocation::Print(text)) => text,
            Ok(Invocation::Run(c, ..)) => panic!("would run {}", c.name),
            Err(e) => panic!("{e}"),
        }
    }

    #[test]
    fn globals_stand_before_or_behind() {
        let (name, before) = runs(&["cyr_backup", "-C", "/x", "-v", "list", "-j"]);
        let (_, behind) = runs(&["/sbin/cyr_backup", "list", "-j", "-v", "-C", "/x"]);
        assert_eq!((name, &before), ("list", &behind));
        assert_eq!(before.config.as_deref(), Some(Path::new("/x")));
        let (_, both) = runs(&["c", "-q", "-C", "/x", "list", "-C", "/y", "-v"]);
        assert_eq!(both.config.as_deref(), Some(Path::new("/y")));
        assert!(both.quiet && both.verbose == 1);
    }

    #[test]
    fn the_program_s_name_may_be_an_old_one() {
        let (name, globals) = runs(&["/usr/lib/cyrus/bin/backupd", "-C", "/x", "-U", "5"]);
        assert_eq!(name, "serve");
        assert_eq!(globals.config.as_deref(), Some(Path::new("/x")));
        let (name, globals) = runs(&["/x/ctl_backups", "-v", "-C", "/y", "list", "-t", "5"]);
        assert_eq!((name, globals.verbose), ("list", 1));
        let (name, _) = runs(&["/x/restore", "-a", "host", "anna"]);
        assert_eq!(name, "restore");
        let e = parsed(&["/x/restore", "host"]).err().unwrap();
        assert_eq!(e.kind(), Kind::Usage);
    }

    #[test]
    fn every_command_has_help_and_the_common_options() {
        let all = prints(&["c", "--help"]);
        assert_eq!(all, prints(&["c", "help"]));
        for c in COMMANDS {
            assert!(all.contains(&format!("    {} ", c.name)), "{}", c.name);
            let text = prints(&["c", c.name, "-h"]);
            assert!(text.starts_with(&format!("Usage: cyr_backup {}", c.name)));
            assert!(text.contains(c.help));
            // Undefined options would panic.
            let m = (c.options)().parse(["-C", "/x", "-v", "-q"]).unwrap();
            Globals::default().add(&m);
        }
        let version = prints(&["c", "--version"]);
        assert_eq!(
            version,
            format!("cyr_backup {}\n", env!("CARGO_PKG_VERSION"))
        );
    }

    #[test]
    fn what_is_unknown_is_usage() {
        for words in [
            &["c"][..],
            &[],
            &["c", "lst"],
            &["c", "-z"],
            &["c", "-C"],
            &["c", "list", "-z"],
            &["c", "list", "--stale", "x"],
            &["c", "stat"],
            &["c", "chunks"],
            &["c", "chunks", "a", "b"],
            &["c", "mailboxes", "-A"],
            &["c", "messages"],
            &["c", "show", "anna"],
            &["c", "dump"],
            &["c", "dump", "message", "anna"],
            &["c", "dump", "message", "anna", "xyz"],
            &["c", "dump", "chunk", "anna", "x"],
            &["c", "dump", "log", "anna", "x"],
            &["c", "dump", "mail", "anna", "x"],
            &["c", "passwd"],
            &["c", "passwd", "-d"],
            &["c", "passwd", "-l", "anna"],
            &["c", "passwd", "-l", "-d", "anna"],
            &["c", "serve", "anna"],
        ] {
            let e = parsed(words).err().map(|e| e.kind());
            assert_eq!(e, Some(Kind::Usage), "{words:?}");
        }
    }
}
