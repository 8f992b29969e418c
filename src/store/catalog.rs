//! The catalogue, `backups.db`: whose backup is in which data file.
//!
//! Key: a userid, or one of ours that begins with `%`; value: the absolute path of the data file, in
//! raw byte order of the keys. The old C tools read and write the same file (Cyrus 3.6
//! `backup/lcb_backupdb.c`).
//!
//! Promises: a lookup takes the shared lock for as long as it reads a few dozen blocks; a change is on
//! disk when its method returns; nothing else is waited for while the file is locked, except what
//! [`Catalog::create_with`] is given to do. `Arc<Catalog>` serves all threads.
//!
//! One database behind a mutex, not one per thread: the locks belong to the open file description,
//! so threads that share one would not exclude each other without the mutex; a description per
//! thread would cost descriptors and gain little, as a lookup takes some tens of microseconds.
//!
//! Fails with the kinds of `cyrus::twoskip`. An entry that is no absolute path is `Damaged`. A missing
//! file has no entries; it is made by the first change if the catalogue may create it.

use crate::cyrus::twoskip::{Db, OpenMode};
use crate::error::{Error, Kind, Result};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The catalogue of one server.
#[derive(Debug)]
pub struct Catalog {
    path: PathBuf,
    create: bool,
    /// Opened at the first use, for reading only until something is to be written.
    db: Mutex<Option<Db>>,
}

impl Catalog {
    /// The catalogue in the file `path`; nothing is opened yet. `create`: a change may make the file.
    pub fn open(path: &Path, create: bool) -> Catalog {
        Catalog {
            path: path.to_owned(),
            create,
            db: Mutex::new(None),
        }
    }

    /// The path of the catalogue's own file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The data file of `key`.
    pub fn lookup(&self, key: &str) -> Result<Option<PathBuf>> {
        match self.reading(|db| db.get(key.as_bytes()))? {
            Some(Some(value)) => self.to_path(key, &value).map(Some),
            Some(None) | None => Ok(None),
        }
    }

    /// All entries as they were at one moment, in raw order of the keys.
    ///
    /// Entries that cannot be used (a key that is no UTF-8, a path that is not absolute) are left out
    /// with a line in the log.
    pub fn list(&self) -> Result<Vec<(String, PathBuf)>> {
        let mut found = Vec::new();
        self.reading(|db| {
            found.clear();
            db.for_each(b"", |key, value| {
                found.push((key.to_vec(), value.to_vec()));
                Ok(())
            })
        })?;
        let mut out = Vec::with_capacity(found.len());
        for (key, value) in found {
            let usable = String::from_utf8(key)
                .map_err(|e| Error::new(Kind::Damaged, "key is no UTF-8").because(e))
                .and_then(|key| Ok((self.to_path(&key, &value)?, key)));
            match usable {
                Ok((path, key)) => out.push((key, path)),
                Err(e) => {
                    let file = self.path.display();
                    log::error!("IOERROR: bad catalogue entry filename=<{file}> error=<{e}>");
                }
            }
        }
        Ok(out)
    }

    /// The data file of `key`; if there is none, `make` makes one and its path is stored.
    ///
    /// All under the write lock, so that two callers never make two. If the path cannot be stored the
    /// made file is removed, unless the catalogue may name it all the same.
    pub fn create_with(
        &self,
        key: &str,
        make: impl FnOnce() -> Result<PathBuf>,
    ) -> Result<PathBuf> {
        let mut made = None;
        let result = self.writing(|db| {
            let mut txn = db.begin()?;
            if let Some(value) = txn.get(key.as_bytes())? {
                return self.to_path(key, &value);
            }
            let path = make()?;
            made = Some(path.clone());
            txn.put(key.as_bytes(), self.to_value(&path)?)?;
            txn.commit()?;
            Ok(path)
        });
        if let (Err(_), Some(path)) = (&result, made) {
            // A commit whose very last sync failed may stand: an unused file does less harm than an
            // entry without one.
            if matches!(self.lookup(key), Ok(None)) {
                let _ = std::fs::remove_file(path);
            }
        }
        result
    }

    /// Removes the entry; whether there was one. The data file is not touched.
    pub fn remove(&self, key: &str) -> Result<bool> {
        let exists = self.path.try_exists();
        if !exists.map_err(|e| Error::io("cannot open database", e).at(&self.path))? {
            return Ok(false);
        }
        self.writing(|db| {
            let mut txn = db.begin()?;
            let was_there = txn.delete(key.as_bytes())?;
            txn.commit()?;
            Ok(was_there)
        })
    }

    /// Stores an entry, new or not.
    pub fn set(&self, key: &str, path: &Path) -> Result<()> {
        self.replace(&[(key.to_owned(), Some(path.to_owned()))])
    }

    /// Stores (`Some`) and removes (`None`) several entries in one transaction: all or none.
    pub fn replace(&self, changes: &[(String, Option<PathBuf>)]) -> Result<()> {
        self.writing(|db| {
            let mut txn = db.begin()?;
            for (key, path) in changes {
                match path {
                    Some(path) => txn.put(key.as_bytes(), self.to_value(path)?)?,
                    None => {
                        txn.delete(key.as_bytes())?;
                    }
                }
            }
            txn.commit()
        })
    }

    /// The same, if the entries of some keys are what the caller believes; else `Kind::Changed`, and
    /// nothing is changed.
    pub fn exchange(
        &self,
        believed: &[(&str, Option<&Path>)],
        changes: &[(String, Option<PathBuf>)],
    ) -> Result<()> {
        self.writing(|db| {
            let mut txn = db.begin()?;
            for (key, believed) in believed {
                let is = txn.get(key.as_bytes())?;
                if is.as_deref() != believed.map(|p| p.as_os_str().as_bytes()) {
                    txn.abort()?;
                    let what = "the catalogue entry has changed meanwhile";
                    return Err(Error::new(Kind::Changed, what).for_user(key));
                }
            }
            for (key, path) in changes {
                match path {
                    Some(path) => txn.put(key.as_bytes(), self.to_value(path)?)?,
                    None => {
                        txn.delete(key.as_bytes())?;
                    }
                }
            }
            txn.commit()
        })
    }

    /// Runs `f` with the database; `None` if there is no file.
    fn reading<T>(&self, f: impl FnOnce(&mut Db) -> Result<T>) -> Result<Option<T>> {
        let mut slot = self.slot();
        let result = match slot.take() {
            Some(db) => Ok(db),
            None => Db::open(&self.path, OpenMode::Read),
        }
        .and_then(|mut db| {
            let value = f(&mut db)?;
            *slot = Some(db);
            Ok(value)
        });
        match result {
            Ok(value) => Ok(Some(value)),
            Err(e) if e.kind() == Kind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Runs `f` with the database open for writing. After an error it is opened anew.
    fn writing<T>(&self, f: impl FnOnce(&mut Db) -> Result<T>) -> Result<T> {
        let mode = match self.create {
            true => OpenMode::Create,
            false => OpenMode::ReadWrite,
        };
        let mut slot = self.slot();
        let mut db = match slot.take() {
            Some(db) if db.mode() == mode => db,
            _ => Db::open(&self.path, mode)?,
        };
        let value = f(&mut db)?;
        *slot = Some(db);
        Ok(value)
    }

    /// The slot is empty while its database is in use, so a panic leaves nothing half-done in it.
    fn slot(&self) -> MutexGuard<'_, Option<Db>> {
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn to_path(&self, key: &str, value: &[u8]) -> Result<PathBuf> {
        let path = Path::new(OsStr::from_bytes(value));
        if path.is_absolute() && !value.contains(&0) {
            return Ok(path.to_owned());
        }
        let e = Error::new(Kind::Damaged, "catalogue entry is no absolute path");
        Err(e.at(&self.path).for_user(key))
    }

    fn to_value<'a>(&self, path: &'a Path) -> Result<&'a [u8]> {
        if path.is_absolute() {
            return Ok(path.as_os_str().as_bytes());
        }
        Err(Error::new(Kind::Internal, "data file's path is not absolute").at(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::sync::Arc;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let name = format!("cyr_backup-catalog-{}-{name}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            Folder(path)
        }

        fn catalog(&self) -> Catalog {
            Catalog::open(&self.0.join("backups.db"), true)
        }

        /// Makes a data file, as `create_with` wants it.
        fn make(&self, name: &str) -> Result<PathBuf> {
            let path = self.0.join(name);
            fs::write(&path, b"").map_err(|e| Error::io("cannot make", e))?;
            Ok(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_missing_file_has_no_entries_and_is_made_by_the_first_change() {
        let folder = Folder::new("missing");
        let catalog = folder.catalog();
        assert_eq!(catalog.lookup("anna").unwrap(), None);
        assert!(catalog.list().unwrap().is_empty());
        assert!(!catalog.remove("anna").unwrap());
        assert!(!catalog.path().exists());
        let reader = Catalog::open(catalog.path(), false);
        let e = reader.set("anna", Path::new("/b/anna")).unwrap_err();
        assert_eq!(e.kind(), Kind::NotFound);
        assert!(!catalog.path().exists());

        catalog.set("anna", Path::new("/b/anna")).unwrap();
        assert_eq!(catalog.path().metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(reader.lookup("anna").unwrap(), Some("/b/anna".into()));
        // Deleted under our hands.
        fs::remove_file(catalog.path()).unwrap();
        assert_eq!(reader.lookup("anna").unwrap(), None);
        catalog.set("bert", Path::new("/b/bert")).unwrap();
        assert_eq!(reader.lookup("bert").unwrap(), Some("/b/bert".into()));
        assert!(reader.remove("bert").unwrap());
        assert!(!reader.remove("bert").unwrap());
    }

    #[test]
    fn several_keys_change_at_once_and_the_list_is_in_raw_order() {
        let folder = Folder::new("replace");
        let catalog = folder.catalog();
        for key in ["b", "a.b", "a", "%SHARED", "A@x"] {
            catalog.set(key, &Path::new("/b").join(key)).unwrap();
        }
        let e = catalog
            .replace(&[("a".into(), None), ("c".into(), Some("relative".into()))])
            .unwrap_err();
        assert_eq!(e.kind(), Kind::Internal);
        assert!(catalog.lookup("a").unwrap().is_some(), "all or none");
        assert!(catalog.set("", Path::new("/b/x")).is_err());
        catalog
            .replace(&[
                ("a".into(), None),
                ("%FORMER/a/1".into(), Some("/b/a".into())),
            ])
            .unwrap();
        let keys: Vec<_> = catalog
            .list()
            .unwrap()
            .into_iter()
            .map(|(k, _)| k)
            .collect();
        assert_eq!(keys, ["%FORMER/a/1", "%SHARED", "A@x", "a.b", "b"]);
    }

    #[test]
    fn entries_are_exchanged_only_if_they_are_as_believed() {
        let folder = Folder::new("exchange");
        let catalog = folder.catalog();
        let (a, b) = (Path::new("/b/a"), Path::new("/b/b"));
        catalog.set("anna", a).unwrap();
        let change = [
            ("anna".to_owned(), None),
            ("bert".to_owned(), Some(b.into())),
        ];
        for believed in [
            &[("anna", Some(b))][..],
            &[("anna", None)],
            &[("anna", Some(a)), ("bert", Some(b))],
            &[("bert", Some(b))],
        ] {
            let e = catalog.exchange(believed, &change).unwrap_err();
            assert_eq!(e.kind(), Kind::Changed);
            assert_eq!(catalog.list().unwrap(), [("anna".into(), a.into())]);
        }
        catalog
            .exchange(&[("anna", Some(a)), ("bert", None)], &change)
            .unwrap();
        assert_eq!(catalog.list().unwrap(), [("bert".into(), b.into())]);
    }

    #[test]
    fn the_made_file_goes_if_it_cannot_be_stored() {
        let folder = Folder::new("fail");
        let catalog = folder.catalog();
        let made = catalog
            .create_with("anna", || folder.make("anna_1"))
            .unwrap();
        assert!(made.exists());
        let again = catalog.create_with("anna", || panic!("it exists")).unwrap();
        assert_eq!(again, made);
        let e = catalog
            .create_with("bert", || Err(Error::new(Kind::NoSpace, "full")))
            .unwrap_err();
        assert_eq!(e.kind(), Kind::NoSpace);
        // An empty key cannot be stored.
        assert!(catalog.create_with("", || folder.make("bert_1")).is_err());
        assert!(!folder.0.join("bert_1").exists());
        assert_eq!(catalog.list().unwrap().len(), 1);
    }

    #[test]
    fn unusable_entries_are_damage_for_their_key_only() {
        let folder = Folder::new("bad");
        let catalog = folder.catalog();
        catalog.set("anna", Path::new("/b/anna")).unwrap();
        let mut db = Db::open(catalog.path(), OpenMode::ReadWrite).unwrap();
        let mut txn = db.begin().unwrap();
        txn.put(b"bert", b"relative").unwrap();
        txn.put(b"\xff\xfe", b"/b/x").unwrap();
        txn.put(b"cora", b"").unwrap();
        txn.commit().unwrap();
        assert_eq!(catalog.lookup("bert").unwrap_err().kind(), Kind::Damaged);
        assert_eq!(catalog.lookup("cora").unwrap_err().kind(), Kind::Damaged);
        assert_eq!(catalog.list().unwrap(), [("anna".into(), "/b/anna".into())]);
        // A damaged file is named and kept.
        let mut bytes = fs::read(catalog.path()).unwrap();
        bytes[70] ^= 1;
        fs::write(catalog.path(), &bytes).unwrap();
        let e = catalog.lookup("anna").unwrap_err();
        assert_eq!(e.kind(), Kind::Damaged);
        assert!(e.to_string().contains("backups.db: offset 64: "), "{e}");
        assert_eq!(
            catalog.set("x", Path::new("/x")).unwrap_err().kind(),
            Kind::Damaged
        );
        assert_eq!(fs::read(catalog.path()).unwrap(), bytes);
    }

    #[test]
    fn threads_with_one_and_with_two_catalogues_lose_nothing() {
        let folder = Arc::new(Folder::new("threads"));
        let shared = Arc::new(folder.catalog());
        let threads: Vec<_> = (0..4)
            .map(|n| {
                let folder = folder.clone();
                let catalog = match n {
                    0 | 1 => shared.clone(),
                    _ => Arc::new(folder.catalog()),
                };
                std::thread::spawn(move || {
                    for i in 0..60 {
                        let own = format!("own{n}-{i}");
                        catalog.set(&own, Path::new("/b/own")).unwrap();
                        // All four want the same user: one makes it.
                        let user = format!("user{i}");
                        let name = format!("{user}_{n}");
                        let got = catalog.create_with(&user, || folder.make(&name)).unwrap();
                        assert!(got.exists());
                        assert_eq!(catalog.lookup(&user).unwrap(), Some(got));
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        let entries = shared.list().unwrap();
        assert_eq!(entries.len(), 4 * 60 + 60);
        let made = fs::read_dir(&folder.0).unwrap().flatten();
        let made = made.filter(|f| f.file_name().to_string_lossy().starts_with("user"));
        assert_eq!(made.count(), 60, "one file for each user");
    }

    #[test]
    fn a_panic_while_a_file_is_made_leaves_the_catalogue_usable() {
        let folder = Folder::new("panic");
        let catalog = folder.catalog();
        catalog.set("anna", Path::new("/b/anna")).unwrap();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            catalog.create_with("bert", || panic!("on purpose"))
        }));
        assert!(result.is_err());
        let other = folder.catalog();
        other.set("cora", Path::new("/b/cora")).unwrap();
        assert_eq!(catalog.list().unwrap().len(), 2);
    }
}
