//! A tar archive as a [`Store`]; the bytes are told in `ustar`.
//!
//! An archive of ours begins with a pax header that says so. One that is there is gone through by its
//! headers and added to behind its last whole entry; what a broken run left behind that is cut off.
//! Any other file is refused. To standard output everything goes as it comes.

use super::store::{Fill, Hash, Store, Sum};
use super::ustar::{BLOCK, Block, MARK, header, mark, parse, pax};
use crate::error::{Error, Kind, Result};
use crate::sys::lock::{LockKind, try_lock};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Bytes that are written at once.
const BUFFER: usize = 64 * 1024;

/// The longest pax header that is read.
const MAX_PAX: u64 = 64 * 1024;

/// The largest document whose bytes are compared, when an archive is read again.
const MAX_DOCUMENT: u64 = 1 << 40;

enum Out {
    /// Not looked at yet.
    New,
    File(BufWriter<File>),
    Stream(Box<dyn Write>),
}

/// An archive.
pub struct Tar {
    path: Option<PathBuf>,
    out: Out,
    /// Behind the last whole entry; where the next one goes.
    end: u64,
    /// Whether the end is not written behind the entries.
    open: bool,
    /// Whether what is there lacks its end, or has something in its place.
    torn: bool,
    folders: HashMap<String, Vec<String>>,
    documents: HashMap<String, Hash>,
}

impl Tar {
    /// An archive in a file, which need not exist. Nothing is opened yet.
    pub fn file(path: &Path) -> Tar {
        Tar::new(Some(path.to_owned()), Out::New)
    }

    /// An archive that goes somewhere as it is made.
    pub fn stream(to: Box<dyn Write>) -> Tar {
        Tar::new(None, Out::Stream(to))
    }

    fn new(path: Option<PathBuf>, out: Out) -> Tar {
        Tar {
            path,
            out,
            end: 0,
            open: false,
            torn: false,
            folders: HashMap::new(),
            documents: HashMap::new(),
        }
    }

    fn fail(&self, what: &str, e: io::Error) -> Error {
        match &self.path {
            Some(path) => Error::io(what, e).at(path),
            None => Error::io(what, e).place("standard output"),
        }
    }

    /// Reads what is there, the first time. Makes nothing.
    fn look(&mut self) -> Result<()> {
        let Some(path) = self.path.clone().filter(|_| matches!(self.out, Out::New)) else {
            return Ok(());
        };
        let file = match File::options().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(self.fail("cannot open", e)),
        };
        own(&file, &path)?;
        let mut reader = BufReader::with_capacity(BUFFER, &file);
        self.scan(&mut reader)?;
        let length = file
            .metadata()
            .map_err(|e| self.fail("cannot read", e))?
            .len();
        self.torn = length < self.end + 2 * BLOCK as u64;
        self.out = Out::File(BufWriter::with_capacity(BUFFER, file));
        Ok(())
    }

    fn scan(&mut self, r: &mut (impl Read + Seek)) -> Result<()> {
        let foreign = |path: &Option<PathBuf>| {
            let e = Error::new(Kind::Exists, "there is a file that is no export of ours");
            e.place(
                path.as_deref()
                    .unwrap_or(Path::new("-"))
                    .display()
                    .to_string(),
            )
        };
        let length = r
            .seek(SeekFrom::End(0))
            .map_err(|e| self.fail("cannot read", e))?;
        r.rewind().map_err(|e| self.fail("cannot read", e))?;
        if length < mark().len() as u64 {
            let mut all = Vec::new();
            r.read_to_end(&mut all)
                .map_err(|e| self.fail("cannot read", e))?;
            return match mark().starts_with(&all) {
                true => Ok(()),
                false => Err(foreign(&self.path)),
            };
        }
        let (mut path, mut size) = (None, None);
        // Where the entry begins, pax header included, and where we are.
        let (mut at, mut is_first) = (0, true);
        while at + BLOCK as u64 <= length {
            let mut b = [0; BLOCK];
            r.read_exact(&mut b)
                .map_err(|e| self.fail("cannot read", e))?;
            let entry = match parse(&b) {
                Some(Block::End) if !is_first => break,
                Some(Block::Entry(kind, name, n)) => (kind, name, n),
                _ if is_first => return Err(foreign(&self.path)),
                // Whatever a broken run left.
                _ => break,
            };
            let (kind, name, n) = entry;
            let data = size.take().filter(|_| kind == b'0').unwrap_or(n);
            let Some(next) = data
                .checked_next_multiple_of(BLOCK as u64)
                .and_then(|n| n.checked_add(at + BLOCK as u64))
                .filter(|&next| next <= length)
            else {
                break;
            };
            at = next;
            if matches!(kind, b'x' | b'g') {
                let mut text = vec![0; data.min(MAX_PAX) as usize];
                r.read_exact(&mut text)
                    .map_err(|e| self.fail("cannot read", e))?;
                if is_first && !(kind == b'g' && String::from_utf8_lossy(&text).contains(MARK)) {
                    return Err(foreign(&self.path));
                }
                if kind == b'x' {
                    (path, size) = pax(&text);
                }
            } else if is_first {
                return Err(foreign(&self.path));
            } else {
                let name = path.take().unwrap_or(name);
                let is_message = name.ends_with(".eml");
                if !is_message && data < MAX_DOCUMENT {
                    let mut sum = Sum::default();
                    io::copy(&mut r.by_ref().take(data), &mut sum)
                        .map_err(|e| self.fail("cannot read", e))?;
                    let hash = sha2::Digest::finalize(sum.hash);
                    self.documents.insert(name.clone(), hash.into());
                }
                self.enter(&name);
                self.end = next;
            }
            if is_first {
                self.end = next;
            }
            is_first = false;
            let now = r
                .stream_position()
                .map_err(|e| self.fail("cannot read", e))?;
            let skip = i64::try_from(next - now).unwrap_or(i64::MAX);
            r.seek_relative(skip)
                .map_err(|e| self.fail("cannot read", e))?;
        }
        Ok(())
    }

    fn enter(&mut self, path: &str) {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let names = self.folders.entry(dir.to_owned()).or_default();
        if name.ends_with(".eml") {
            names.push(name.to_owned());
        }
    }

    /// Makes the archive, or cuts off its end, when the first entry comes.
    fn begin(&mut self) -> Result<()> {
        self.look()?;
        if self.open {
            return Ok(());
        }
        if let (Out::New, Some(path)) = (&self.out, &self.path) {
            let made = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(path);
            let file = made.map_err(|e| self.fail("cannot make", e))?;
            own(&file, path)?;
            self.out = Out::File(BufWriter::with_capacity(BUFFER, file));
        }
        self.cut()?;
        self.open = true;
        if self.end == 0 {
            let mark = mark();
            self.write(&mark)
                .and_then(|()| match &mut self.out {
                    Out::File(w) => w.flush(),
                    _ => Ok(()),
                })
                .map_err(|e| self.fail("cannot write", e))?;
            self.end = mark.len() as u64;
        }
        Ok(())
    }

    /// Back to the end of the last whole entry, whatever is buffered.
    fn cut(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.out, Out::New) {
            Out::File(w) => {
                let (mut file, _) = w.into_parts();
                let done = file.set_len(self.end).and_then(|()| {
                    let end = SeekFrom::Start(self.end);
                    file.seek(end).map(drop)
                });
                self.out = Out::File(BufWriter::with_capacity(BUFFER, file));
                done.map_err(|e| self.fail("cannot write", e))
            }
            other => {
                self.out = other;
                Ok(())
            }
        }
    }

    /// The padding; and nothing of a whole entry stays behind in a buffer that may have to go.
    fn end_entry(&mut self, size: u64) -> Result<()> {
        let padding = vec![0; (size.next_multiple_of(BLOCK as u64) - size) as usize];
        let done = self.write(&padding).and_then(|()| match &mut self.out {
            Out::File(w) => w.flush(),
            _ => Ok(()),
        });
        done.map_err(|e| Error::io("cannot write", e))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.out {
            Out::File(w) => w.write_all(bytes),
            Out::Stream(w) => w.write_all(bytes),
            Out::New => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

/// Refuses what is no file, and what another of us is writing.
pub(super) fn own(file: &File, path: &Path) -> Result<()> {
    let fail = |e| Error::io("cannot open", e).at(path);
    if !file.metadata().map_err(fail)?.is_file() {
        return Err(Error::new(Kind::Exists, "not a file").at(path));
    }
    match try_lock(file, LockKind::Write).map_err(fail)? {
        true => Ok(()),
        false => Err(Error::new(Kind::Locked, "another export writes this").at(path)),
    }
}

/// The bytes of an entry; its header comes before the first of them.
struct Entry<'a> {
    tar: &'a mut Tar,
    header: Vec<u8>,
    left: u64,
}

impl Write for Entry<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.header.is_empty() {
            let header = std::mem::take(&mut self.header);
            self.tar.write(&header)?;
        }
        self.left = self
            .left
            .checked_sub(bytes.len() as u64)
            .ok_or(io::ErrorKind::InvalidData)?;
        self.tar.write(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Store for Tar {
    fn list(&mut self, dir: &str) -> Result<Option<Vec<String>>> {
        self.look()?;
        Ok(self.folders.get(dir).cloned())
    }

    fn digest(&mut self, path: &str) -> Result<Option<Hash>> {
        self.look()?;
        Ok(self.documents.get(path).copied())
    }

    fn put(&mut self, path: &str, size: u64, mtime: i64, fill: &mut Fill<'_>) -> Result<()> {
        self.begin()?;
        let header = header(path, size, mtime);
        let whole = header.len() as u64 + size.next_multiple_of(BLOCK as u64);
        let hash = (!path.ends_with(".eml")).then(Sum::default);
        let mut entry = Entry {
            tar: self,
            header,
            left: size,
        };
        let mut both = Both(&mut entry, hash);
        let done = fill(&mut both).and_then(|()| {
            // Of an empty file too.
            let ended = both.write(&[]).map(drop);
            ended.map_err(|e| Error::io("cannot write", e))
        });
        let hash = both.1;
        let (left, is_begun) = (entry.left, entry.header.is_empty());
        let place = |e: Error, tar: &Tar| match (&tar.path, e.kind()) {
            (_, Kind::Damaged | Kind::NotFound) => e,
            (Some(path), _) => e.at(path),
            (None, _) => e.place("standard output"),
        };
        let done = done.and_then(|()| match left {
            0 => self.end_entry(size),
            _ => Err(Error::new(Kind::Internal, "an entry is too short")),
        });
        if let Err(e) = done {
            let e = place(e, self);
            if matches!(self.out, Out::File(_)) {
                self.cut()?;
            } else if is_begun {
                let what = format!("the archive is broken: {e}");
                return Err(Error::new(Kind::Io, what));
            }
            return Err(e);
        }
        self.end += whole;
        if let Some(sum) = hash {
            self.documents
                .insert(path.to_owned(), sha2::Digest::finalize(sum.hash).into());
        }
        Ok(())
    }

    fn waiting(&self) -> (u64, u64) {
        (0, 0)
    }

    fn settle(&mut self) -> Result<()> {
        if std::mem::take(&mut self.torn) {
            self.begin()?;
        }
        let done = match &mut self.out {
            Out::File(w) if self.open => w.flush().and_then(|()| w.get_ref().sync_data()),
            Out::Stream(w) => w.flush(),
            _ => Ok(()),
        };
        done.map_err(|e| self.fail("cannot write", e))
    }

    fn finish(&mut self) -> Result<()> {
        if let Out::Stream(_) = self.out {
            // An archive without entries is one too.
            self.begin()?;
        }
        if self.open {
            self.write(&[0; 2 * BLOCK])
                .map_err(|e| self.fail("cannot write", e))?;
            self.settle()?;
            self.open = false;
        }
        if let (Out::File(_), Some(dir)) = (&self.out, self.path.as_deref().and_then(Path::parent))
        {
            let dir = if dir.as_os_str().is_empty() {
                Path::new(".")
            } else {
                dir
            };
            let _ = File::open(dir).and_then(|d| d.sync_all());
        }
        Ok(())
    }
}

/// Cuts off what no entry came of, and ends the archive, so that it reads.
impl Drop for Tar {
    fn drop(&mut self) {
        if self.open && matches!(self.out, Out::File(_)) && self.cut().is_ok() {
            let _ = self.write(&[0; 2 * BLOCK]);
            let _ = self.settle();
        }
    }
}

/// Writes to an entry and hashes what goes there, if wanted.
struct Both<'a, 'b>(&'a mut Entry<'b>, Option<Sum>);

impl Write for Both<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.0.write(bytes)?;
        if let Some(sum) = &mut self.1 {
            sum.write_all(&bytes[..n])?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
