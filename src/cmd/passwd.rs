//! `passwd`: the credentials of senders.
//!
//! Writes the verifier file (`proto::verifier`): for each user a SCRAM-SHA-256 and a SCRAM-SHA-512
//! line with fresh random salts. Other lines, comments included, stay as they are.
//!
//! A change happens under a lock on `FILE.lock` and is a new file, synced, mode 600, that takes the
//! place of the old one in one step: a daemon that reads at that moment sees the old or the new one,
//! and after a crash one of them is there. A symlink is followed and stays. A running daemon needs no
//! signal.
//!
//! Fails with `Usage` for a name or password that cannot work, `NotFound` for a user to delete who is
//! not there, `Locked` if another change does not end within ten seconds, and I/O errors.

use super::args::{self, no_more, usage};
use super::output::{Out, plain};
use super::{Context, Job, Outcome};
use getopts::{Matches, Options};
use serde_json::json;
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::proto::verifier::{
    Hash, ITERATIONS, MAX_PASSWORD, SALT, Verifier, Verifiers, canonical_id, is_user, replace,
};
use crate::sys::fs::sync_folder;
use crate::sys::lock::{LockKind, lock_wait};
use crate::sys::tty::NoEcho;

/// How long a change waits for another one.
const WAIT: Duration = Duration::from_secs(10);

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Args {
    /// Nothing but the name: asks for a password.
    Set(String),
    /// `-d`
    Delete(String),
    /// `-l`, and whether as JSON.
    List(bool),
}

/// The options.
pub fn options() -> Options {
    let mut o = args::common();
    o.optflag("d", "", "delete the user");
    o.optflag("l", "", "list the users");
    args::json(&mut o);
    o
}

/// The command.
pub fn job(m: &Matches) -> Result<Job> {
    let args = Args::parse(m)?;
    Ok(Box::new(move |c, out| run(&args, c, out)))
}

impl Args {
    fn parse(m: &Matches) -> Result<Args> {
        let (delete, list) = (m.opt_present("d"), m.opt_present("l"));
        if delete && list {
            return Err(usage("-d or -l, not both"));
        }
        if list {
            no_more(&m.free)?;
            return Ok(Args::List(m.opt_present("j")));
        }
        let (user, rest) = m.free.split_first().ok_or_else(|| usage("no user named"))?;
        no_more(rest)?;
        Ok(match delete {
            true => Args::Delete(user.clone()),
            false => Args::Set(user.clone()),
        })
    }
}

fn run(args: &Args, c: &Context, out: &mut Out) -> Result<Outcome> {
    let file = c.config.backup_passwd_file();
    let fold = |user: &str| {
        let tolower = c.config.username_tolower();
        canonical_id(user, tolower).ok_or_else(|| usage(format!("{user} cannot be a user")))
    };
    match args {
        Args::Set(user) => {
            let user = fold(user)?;
            let password = ask_password(&user)?;
            set_password(&file, &user, &password)?;
            if !c.config.is_admin(&user) {
                log::warn!("{user} is not in admins: it may log in and do nothing");
            }
        }
        Args::Delete(user) => delete_user(&file, &fold(user)?)?,
        Args::List(json) => list(&file, *json, out)?,
    }
    Ok(Outcome::Well)
}

fn list(file: &Path, as_json: bool, out: &mut Out) -> Result<()> {
    let all = list_users(file)?;
    for line in &all.bad_lines {
        log::warn!("{} line {line} is no verifier", file.display());
    }
    let users = all.users();
    let names = |hashes: &[Hash]| -> Vec<&str> { hashes.iter().map(|h| h.mechanism()).collect() };
    if as_json {
        return out.document(&[], |d| {
            d.list("users")?;
            users.iter().try_for_each(|(user, hashes)| {
                d.row(&json!({ "userid": user, "mechanisms": names(hashes) }))
            })
        });
    }
    users.iter().try_for_each(|(user, hashes)| {
        let hashes = names(hashes).join(" ");
        out.line(format_args!("{:<24} {hashes}", plain(user)))
    })
}

/// Sets or changes a user's password. `user` is taken as it stands: fold it with
/// `proto::verifier::canonical_id` first where `username_tolower` asks for it.
pub fn set_password(file: &Path, user: &str, password: &[u8]) -> Result<()> {
    if !is_user(user) {
        return Err(Error::new(
            Kind::Usage,
            "bad user name: at most 80 printable ASCII characters, none of % & * / : ? and blank",
        ));
    }
    check_password(password)?;
    let mut verifiers = Vec::new();
    for hash in Hash::ALL {
        let mut salt = [0; SALT];
        getrandom::fill(&mut salt)
            .map_err(|e| Error::new(Kind::Internal, "no entropy").because(e.to_string()))?;
        verifiers.push(Verifier::derive(hash, password, &salt, ITERATIONS));
    }
    change(file, |text| Ok(replace(text, user, &verifiers).0))
}

/// Removes a user.
pub fn delete_user(file: &Path, user: &str) -> Result<()> {
    change(file, |text| match replace(text, user, &[]) {
        (text, true) => Ok(text),
        (_, false) => Err(Error::new(Kind::NotFound, "no such user").for_user(user)),
    })
}

/// What the file holds: its users, and the numbers of lines that are no verifiers. No file, no users.
pub fn list_users(file: &Path) -> Result<Verifiers> {
    Ok(Verifiers::parse(&read(file)?))
}

/// Asks for a new password: twice and unseen on a terminal, else the first line of standard input.
pub fn ask_password(user: &str) -> Result<Vec<u8>> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return password_line(&mut stdin.lock());
    }
    let cannot = |e| Error::io("cannot use the terminal", e);
    let silent = NoEcho::new(&stdin).map_err(cannot)?;
    let mut answers = Vec::new();
    for prompt in ["New password for", "Again, password for"] {
        eprint!("{prompt} {user}: ");
        io::stderr().flush().map_err(cannot)?;
        answers.push(password_line(&mut stdin.lock())?);
        // Said at once rather than after the second time.
        check_password(&answers[0])?;
    }
    drop(silent);
    let second = answers.pop();
    let first = answers.pop().unwrap_or_default();
    if second.as_ref() != Some(&first) {
        return Err(Error::new(Kind::Usage, "the passwords are not the same"));
    }
    Ok(first)
}

/// One line without its ending.
fn password_line(input: &mut impl BufRead) -> Result<Vec<u8>> {
    let mut line = Vec::new();
    let limit = MAX_PASSWORD as u64 + 3;
    input
        .take(limit)
        .read_until(b'\n', &mut line)
        .map_err(|e| Error::io("cannot read the password", e))?;
    if line.ends_with(b"\n") {
        line.pop();
        if line.ends_with(b"\r") {
            line.pop();
        }
    }
    Ok(line)
}

fn check_password(password: &[u8]) -> Result<()> {
    let why = if password.is_empty() {
        "the password is empty"
    } else if password.len() > MAX_PASSWORD {
        "the password is longer than 1024 bytes"
    } else if std::str::from_utf8(password).is_err() {
        "the password is not UTF-8"
    } else if password.iter().any(u8::is_ascii_control) {
        "the password has a control character in it"
    } else {
        return Ok(());
    };
    Err(Error::new(Kind::Usage, why))
}

/// Replaces the file by what `edit` makes of its text.
fn change(file: &Path, edit: impl FnOnce(&[u8]) -> Result<Vec<u8>>) -> Result<()> {
    let file = match fs::canonicalize(file) {
        Ok(real) => real,
        Err(e) if e.kind() == io::ErrorKind::NotFound => file.to_owned(),
        Err(e) => return Err(Error::io("cannot find", e).at(file)),
    };
    let lock_path = beside(&file, ".lock");
    let lock = private()
        .create(true)
        .truncate(false)
        .open(&lock_path)
        .map_err(|e| Error::io("cannot open", e).at(&lock_path))?;
    match lock_wait(&lock, LockKind::Write, Some(WAIT)) {
        Ok(true) => {}
        Ok(false) => {
            return Err(Error::new(Kind::Locked, "somebody else is changing it").at(&file));
        }
        Err(e) => return Err(Error::io("cannot lock", e).at(&lock_path)),
    }
    let text = edit(&read(&file)?)?;
    let new = beside(&file, ".new");
    // Left from a crash: nobody else can be writing it.
    let _ = fs::remove_file(&new);
    let written = write(&new, &file, &text);
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

fn write(new: &Path, file: &Path, text: &[u8]) -> Result<()> {
    let cannot = |e| Error::io("cannot write", e).at(new);
    let mut out = private().create_new(true).open(new).map_err(cannot)?;
    out.write_all(text).map_err(cannot)?;
    out.sync_all().map_err(cannot)?;
    fs::rename(new, file).map_err(|e| Error::io("cannot rename", e).at(new))?;
    sync_folder(file)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    match fs::read(file) {
        Ok(text) => Ok(text),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(Error::io("cannot read", e).at(file)),
    }
}

/// Options for files only we may read.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    struct Dir(PathBuf);
    impl Dir {
        fn new(name: &str) -> Dir {
            let name = format!("cyr_backup-passwd-{}-{name}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            Dir(path)
        }
    }
    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn users(file: &Path) -> Vec<String> {
        let all = list_users(file).unwrap();
        assert!(all.bad_lines.is_empty());
        let users = all.users();
        assert!(users.iter().all(|(_, h)| h.len() == 2));
        users.into_iter().map(|(u, _)| u).collect()
    }

    #[test]
    fn set_change_list_delete() {
        let dir = Dir::new("cycle");
        let file = dir.0.join("passwd");
        assert!(users(&file).is_empty());
        set_password(&file, "anna", b"one").unwrap();
        set_password(&file, "ben", b"two").unwrap();
        let before = fs::read(&file).unwrap();
        set_password(&file, "anna", "drei \u{fc}".as_bytes()).unwrap();
        assert_eq!(users(&file), ["ben", "anna"]);
        let v = Verifiers::parse(&fs::read(&file).unwrap());
        for hash in Hash::ALL {
            let anna = v.find("anna", hash).unwrap();
            assert!(anna.matches("drei \u{fc}".as_bytes()) && !anna.matches(b"one"));
            assert!(v.find("ben", hash).unwrap().matches(b"two"));
            assert_eq!(anna.iterations, ITERATIONS);
            let old = Verifiers::parse(&before);
            assert_ne!(old.find("anna", hash).unwrap().salt, anna.salt);
        }
        delete_user(&file, "anna").unwrap();
        assert_eq!(users(&file), ["ben"]);
        assert_eq!(
            delete_user(&file, "anna").unwrap_err().kind(),
            Kind::NotFound
        );
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&file), 0o600);
        let text = fs::read_to_string(&file).unwrap();
        assert!(!text.contains("two"));
        assert!(!beside(&file, ".new").exists());
    }

    #[test]
    fn comments_links_and_leftovers_survive() {
        let dir = Dir::new("links");
        let real = dir.0.join("real");
        let link = dir.0.join("link");
        fs::write(&real, "# by hand\n").unwrap();
        fs::write(beside(&real, ".new"), "torn").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        set_password(&link, "anna", b"one").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        let text = fs::read_to_string(&real).unwrap();
        assert!(text.starts_with("# by hand\nanna:SCRAM-SHA-512:"));
    }

    #[test]
    fn refusals_change_nothing() {
        let dir = Dir::new("refuse");
        let file = dir.0.join("passwd");
        let long = [b'x'; MAX_PASSWORD + 1];
        for bad in [&b""[..], b"a\0b", b"a\nb", b"\xff", &long] {
            let e = set_password(&file, "anna", bad).unwrap_err();
            assert_eq!(e.kind(), Kind::Usage);
        }
        for bad in ["", "a:b", "a b", "#a"] {
            let e = set_password(&file, bad, b"one").unwrap_err();
            assert_eq!(e.kind(), Kind::Usage);
        }
        assert!(!file.exists());
        assert!(set_password(&dir.0.join("no/such"), "anna", b"one").is_err());
    }

    #[test]
    fn two_changes_at_once_both_hold() {
        let dir = Dir::new("race");
        let file = dir.0.join("passwd");
        std::thread::scope(|s| {
            for i in 0..8 {
                let file = &file;
                s.spawn(move || set_password(file, &format!("u{i}"), b"x").unwrap());
            }
        });
        assert_eq!(users(&file).len(), 8);
    }

    #[test]
    fn the_first_line_is_the_password() {
        for (input, password) in [
            (&b"one\ntwo\n"[..], &b"one"[..]),
            (b"one\r\n", b"one"),
            (b" one ", b" one "),
            (b"", b""),
        ] {
            assert_eq!(password_line(&mut &input[..]).unwrap(), password);
        }
        let long = [b'x'; MAX_PASSWORD * 3];
        let line = password_line(&mut &long[..]).unwrap();
        assert!(check_password(&line).is_err());
    }
}
