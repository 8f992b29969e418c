//! mbox files as a destination: one for all messages, or one for each folder. The bytes are told in
//! `mboxrd`.
//!
//! A file that is there is read through first. What a broken run left of its last message is cut off
//! and kept beside it when the next message comes; what a mail reader has changed or added stays. A file whose first line
//! is not ours is refused.

use super::dir::{Dir, Unfinished};
use super::document;
use super::mboxrd::{FROM, Key, Quoter, asctime, hash_of, parse, status};
use super::names::{self, Layout, Taken};
use super::store::{self, Store};
use super::tar::own;
use super::tree::{copy, refuse, user};
use crate::cyrus::guid::Guid;
use crate::cyrus::mboxname::Namespace;
use crate::cyrus::sync::Record;
use crate::error::{Error, Kind, Result};
use crate::restore::{Bodies, Destination, Done, Folder, Own, Plan, is_of_message};
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Bytes that are written at once.
const BUFFER: usize = 64 * 1024;

/// A message in the form of an mbox, cut into what fits into memory.
fn convert(
    bodies: &mut dyn Bodies,
    r: &Record,
    w: &mut dyn Write,
    of_writing: &mut bool,
) -> Result<()> {
    struct Through<'a>(Quoter, &'a mut dyn Write, Vec<u8>);
    impl Write for Through<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            for part in bytes.chunks(BUFFER) {
                self.2.clear();
                self.0.push(part, &mut self.2);
                self.1.write_all(&self.2)?;
            }
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let head = status(r);
    let fail = |e, of_writing: &mut bool| {
        *of_writing = true;
        Error::io("cannot write", e)
    };
    let mut through = Through(Quoter::new(), w, Vec::new());
    let begun = through.1.write_all(head.as_bytes());
    begun.map_err(|e| fail(e, of_writing))?;
    copy(bodies, r, &mut through, of_writing)?;
    let mut rest = Vec::new();
    through.0.end(&mut rest);
    through.1.write_all(&rest).map_err(|e| fail(e, of_writing))
}

/// One mbox file, or a stream of that form.
struct Output {
    path: Option<PathBuf>,
    file: Option<BufWriter<File>>,
    stream: Option<Box<dyn Write>>,
    /// Behind the last whole message.
    end: u64,
    there: HashMap<(String, Guid), Vec<u32>>,
    is_new: bool,
    /// Whether something lies behind `end` that was there before us.
    torn: bool,
}

impl Output {
    fn stream(to: Box<dyn Write>) -> Output {
        Output {
            path: None,
            file: None,
            stream: Some(to),
            end: 0,
            there: HashMap::new(),
            is_new: true,
            torn: false,
        }
    }

    /// Looks at a file, which need not exist. Makes nothing.
    fn open(path: &Path) -> Result<Output> {
        let mut output = Output {
            path: Some(path.to_owned()),
            file: None,
            stream: None,
            end: 0,
            there: HashMap::new(),
            is_new: false,
            torn: false,
        };
        let file = match File::options().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                output.is_new = true;
                return Ok(output);
            }
            Err(e) => return Err(Error::io("cannot open", e).at(path)),
        };
        own(&file, path)?;
        output.scan(BufReader::with_capacity(BUFFER, &file))?;
        let length = file
            .metadata()
            .map_err(|e| output.fail("cannot read", e))?
            .len();
        output.torn = length > output.end;
        output.file = Some(BufWriter::with_capacity(BUFFER, file));
        Ok(output)
    }

    fn fail(&self, what: &str, e: io::Error) -> Error {
        match &self.path {
            Some(path) => Error::io(what, e).at(path),
            None => Error::io(what, e).place("standard output"),
        }
    }

    /// Goes through the lines. What is behind the last message of ours that is whole is cut off when
    /// the next comes; but what a reader has added or changed stays.
    fn scan(&mut self, mut r: impl BufRead) -> Result<()> {
        let mut at = 0u64;
        // The last message of ours: key, where its From line begins, where it should end.
        let mut last: Option<(Key, u64, u64)> = None;
        let mut line = Vec::new();
        let mut is_start = true;
        loop {
            line.clear();
            // A line may be as long as a message.
            let limited = &mut io::Read::take(&mut r, BUFFER as u64);
            let read = limited.read_until(b'\n', &mut line);
            let n = read.map_err(|e| self.fail("cannot read", e))? as u64;
            if n == 0 {
                break;
            }
            if is_start && line.starts_with(FROM) {
                if let Some((key, bytes)) = parse(&line).filter(|_| line.ends_with(b"\n")) {
                    self.enter(last.take());
                    last = Some((key, at, at + n + bytes + 1));
                } else if at == 0 && line.ends_with(b"\n") {
                    return Err(self.foreign());
                } else if line.ends_with(b"\n") {
                    // Somebody else's message.
                    self.enter(last.take());
                }
            } else if at == 0 && !FROM.starts_with(&line) {
                return Err(self.foreign());
            }
            at += n;
            is_start = line.ends_with(b"\n");
            self.end = at;
        }
        match last {
            Some((_, begins, ends)) if ends > at => self.end = begins,
            Some(whole) => {
                // Behind it may be a From line that was not finished.
                if !is_start {
                    self.end = whole.2;
                }
                self.enter(Some(whole));
            }
            None if self.there.is_empty() => self.end = 0,
            None => {}
        }
        Ok(())
    }

    fn foreign(&self) -> Error {
        let e = Error::new(Kind::Exists, "there is a file that is no export of ours");
        e.at(self.path.as_deref().unwrap_or(Path::new("-")))
    }

    fn enter(&mut self, message: Option<(Key, u64, u64)>) {
        if let Some(((folder, guid, uid), ..)) = message {
            self.there.entry((folder, guid)).or_default().push(uid);
        }
    }

    /// Makes the file, if there is none.
    fn make(&mut self) -> Result<()> {
        let Some(path) = self.path.clone().filter(|_| self.file.is_none()) else {
            return Ok(());
        };
        let fail = |e| Error::io("cannot make", e).at(&path);
        if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            fs::create_dir_all(dir).map_err(fail)?;
        }
        let made = File::options().write(true).create_new(true).open(&path);
        let file = made.map_err(fail)?;
        own(&file, &path)?;
        self.file = Some(BufWriter::with_capacity(BUFFER, file));
        Ok(())
    }

    /// Keeps what is to be cut off: it may be a reader's doing and not a broken run's.
    fn set_aside(&mut self) -> Result<()> {
        let Some(path) = self.path.clone().filter(|_| std::mem::take(&mut self.torn)) else {
            return Ok(());
        };
        let fail = |e| Error::io("cannot set aside", e).at(&path);
        let mut from = File::open(&path).map_err(fail)?;
        from.seek(SeekFrom::Start(self.end)).map_err(fail)?;
        for number in 1u32.. {
            let mut name = path.clone().into_os_string();
            name.push(format!(".torn{number}"));
            match File::options().write(true).create_new(true).open(&name) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(fail(e)),
                Ok(mut to) => {
                    io::copy(&mut from, &mut to).map_err(fail)?;
                    return to.sync_all().map_err(fail);
                }
            }
        }
        Ok(())
    }

    fn cut(&mut self) -> Result<()> {
        if let Some(w) = self.file.take() {
            let (mut file, _) = w.into_parts();
            let done = file
                .set_len(self.end)
                .and_then(|()| file.seek(SeekFrom::Start(self.end)).map(drop));
            self.file = Some(BufWriter::with_capacity(BUFFER, file));
            done.map_err(|e| self.fail("cannot write", e))?;
        }
        Ok(())
    }

    /// Adds a message. The inner error is of the message alone, which then is not there.
    fn add(
        &mut self,
        folder: &str,
        r: &Record,
        bodies: &mut dyn Bodies,
    ) -> Result<std::result::Result<(), String>> {
        let mut of_writing = false;
        // Counted first: the From line says how much follows.
        let mut sum = store::Sum::default();
        if let Err(e) = convert(bodies, r, &mut sum, &mut of_writing) {
            return match is_of_message(&e) {
                true => Ok(Err(e.to_string())),
                false => Err(e),
            };
        }
        self.make()?;
        self.set_aside()?;
        self.cut()?;
        let from = format!(
            "From {}.{}.{}@{folder} {}\n",
            r.uid,
            r.guid,
            sum.size,
            asctime(r.internaldate as i64)
        );
        let w: &mut dyn Write = match (&mut self.file, &mut self.stream) {
            (Some(file), _) => file,
            (None, Some(stream)) => stream,
            (None, None) => return Err(Error::new(Kind::Internal, "no mbox is open")),
        };
        let done = w
            .write_all(from.as_bytes())
            .map_err(|e| Error::io("cannot write", e))
            .and_then(|()| convert(bodies, r, w, &mut of_writing))
            .and_then(|()| {
                let ended = w.write_all(b"\n").and_then(|()| w.flush());
                ended.map_err(|e| Error::io("cannot write", e))
            });
        match done {
            Ok(()) => {
                self.end += from.len() as u64 + sum.size + 1;
                Ok(Ok(()))
            }
            Err(e) => {
                self.cut()?;
                Err(match &self.path {
                    Some(path) => e.at(path),
                    None => e.place("standard output"),
                })
            }
        }
    }

    fn sync(&mut self) -> Result<()> {
        let done = match &mut self.file {
            Some(w) => w.flush().and_then(|()| w.get_ref().sync_data()),
            None => Ok(()),
        };
        done.map_err(|e| self.fail("cannot write", e))
    }
}

/// Where messages go.
enum Place {
    /// All into one.
    One(Option<Output>, Option<PathBuf>),
    /// `FOLDER/mbox` in a directory.
    Each(PathBuf),
}

/// mbox files as a destination.
pub struct Mbox {
    name: String,
    place: Place,
    /// What is no message; nowhere if all goes to standard output.
    side: Option<Dir>,
    ns: Namespace,
    taken: Taken,
}

impl Mbox {
    /// All messages into `path`, the rest into `path.d`; or one file for each folder if `path` is a
    /// directory or ends with a slash. Nothing is opened yet.
    pub fn file(name: String, path: &Path, ns: Namespace) -> Mbox {
        let is_dir = path.is_dir() || path.as_os_str().as_encoded_bytes().ends_with(b"/");
        let (place, side) = match is_dir {
            true => (Place::Each(path.to_owned()), path.to_owned()),
            false => {
                let mut side = path.as_os_str().to_owned();
                side.push(".d");
                (Place::One(None, Some(path.to_owned())), side.into())
            }
        };
        Mbox {
            name,
            place,
            side: Some(Dir::new(&side, Unfinished::Beside)),
            ns,
            taken: Taken::default(),
        }
    }

    /// All messages to where `to` leads.
    pub fn stream(name: String, to: Box<dyn Write>, ns: Namespace) -> Mbox {
        Mbox {
            name,
            place: Place::One(Some(Output::stream(to)), None),
            side: None,
            ns,
            taken: Taken::default(),
        }
    }

    /// The file for a folder, taken out of `self`.
    fn output(&mut self, path: &str) -> Result<Output> {
        match &mut self.place {
            Place::Each(dir) => Output::open(&dir.join(path).join("mbox")),
            Place::One(output, file) => match (output.take(), file) {
                (Some(output), _) => Ok(output),
                (None, Some(file)) => Output::open(file),
                (None, None) => Err(Error::new(Kind::Internal, "standard output is gone")),
            },
        }
    }
}

impl Destination for Mbox {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn folder(
        &mut self,
        folder: &Folder,
        bodies: &mut dyn Bodies,
        dry_run: bool,
        done: &mut Done,
    ) -> Result<()> {
        refuse(folder)?;
        let path = match names::path(&folder.to, &self.ns, Layout::Nested) {
            Ok(path) => self.taken.give(path, &folder.to),
            Err(e) => {
                done.failed.push((0, e.to_string()));
                return Ok(());
            }
        };
        let mut output = self.output(&path)?;
        let filled = fill(&mut output, folder, bodies, dry_run, done);
        if let Place::One(kept, _) = &mut self.place {
            *kept = Some(output);
        }
        filled?;
        if let Some(side) = self.side.as_mut().filter(|_| !dry_run) {
            let write = |w: &mut dyn Write| document::mailbox(folder, &|_| None, w);
            let stem = format!("{path}/mailbox");
            store::document(side, &stem, "json", None, &write)?;
            side.settle()?;
        }
        Ok(())
    }

    fn user(&mut self, plan: &Plan, dry_run: bool, told: &mut Vec<Own>) -> Result<()> {
        match &mut self.side {
            _ if !document::has_user(plan) => Ok(()),
            None => {
                let what = "subscriptions, sieve scripts, seen states and quota do not go into an \
                            mbox on standard output";
                told.push(Own::failed("file", "user.json", what));
                Ok(())
            }
            Some(side) => user(side, "", plan, dry_run, told),
        }
    }

    fn finish(&mut self) -> Result<()> {
        if let Place::One(Some(output), _) = &mut self.place {
            output.sync()?;
        }
        match &mut self.side {
            Some(side) => side.finish(),
            None => Ok(()),
        }
    }
}

fn fill(
    output: &mut Output,
    folder: &Folder,
    bodies: &mut dyn Bodies,
    dry_run: bool,
    done: &mut Done,
) -> Result<()> {
    let is_new = output.is_new;
    done.made = is_new && dry_run;
    let hash = hash_of(&folder.to);
    let mut wanted = Vec::new();
    // One UID may come from several epochs of a mailbox; with the same message it is the same.
    let mut seen = HashSet::new();
    for item in &folder.items {
        let r = &item.record;
        if !seen.insert((r.uid, r.guid)) {
            done.there += 1;
            continue;
        }
        let there = output.there.get_mut(&(hash.clone(), r.guid));
        let exact = there.and_then(|uids| {
            let at = uids.iter().position(|uid| *uid == r.uid)?;
            Some(uids.swap_remove(at))
        });
        match exact {
            Some(_) => done.there += 1,
            None => wanted.push(item),
        }
    }
    for item in wanted {
        let r = &item.record;
        let there = output.there.get_mut(&(hash.clone(), r.guid));
        if there.and_then(Vec::pop).is_some() {
            done.there += 1;
            continue;
        }
        let added = match dry_run {
            true => Ok(Ok(())),
            false => output.add(&hash, r, bodies),
        };
        match added? {
            Ok(()) => {
                done.made = is_new;
                done.brought += 1;
                done.bytes += r.size;
            }
            Err(why) => done.failed.push((r.uid, why)),
        }
    }
    output.sync()?;
    // Without a message there is no file.
    done.made = is_new && (dry_run || output.file.is_some());
    Ok(())
}
