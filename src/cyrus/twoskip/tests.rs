//! The list over a disk in memory: the bytes real Cyrus writes, every crash, hostile files.

use super::format::{HEADER_LEN, Header, Record, RecordKind};
use super::{Condition, Disk, Fault, List};
use std::collections::BTreeMap;
use std::io;

type State = BTreeMap<Vec<u8>, Vec<u8>>;

/// What happened to a disk, in order.
#[derive(Clone, Debug)]
enum Op {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Sync,
}

/// A disk in memory that remembers what was done to it and can be told to fail.
#[derive(Clone, Debug, Default)]
struct MemDisk {
    bytes: Vec<u8>,
    ops: Vec<Op>,
    /// Operations that still work; `None`: all.
    works: Option<usize>,
    /// After the failing operation everything works again.
    is_transient: bool,
}

impl MemDisk {
    fn of(bytes: &[u8]) -> MemDisk {
        MemDisk {
            bytes: bytes.to_vec(),
            ..MemDisk::default()
        }
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Write(at, bytes) => {
                let at = *at as usize;
                let end = at + bytes.len();
                if self.bytes.len() < end {
                    self.bytes.resize(end, 0);
                }
                self.bytes[at..end].copy_from_slice(bytes);
            }
            Op::SetLen(len) => self.bytes.resize(*len as usize, 0),
            Op::Sync => (),
        }
    }

    fn perform(&mut self, op: Op) -> io::Result<()> {
        match &mut self.works {
            Some(0) => {
                if self.is_transient {
                    self.works = None;
                }
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            Some(n) => *n -= 1,
            None => (),
        }
        // A test disk has its limit too.
        if let Op::SetLen(n) = op {
            if n > 1 << 24 {
                return Err(io::Error::from_raw_os_error(libc::EFBIG));
            }
        }
        self.apply(&op);
        self.ops.push(op);
        Ok(())
    }
}

impl Disk for MemDisk {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let from = usize::try_from(at).unwrap().min(self.bytes.len());
        let n = buf.len().min(self.bytes.len() - from);
        buf[..n].copy_from_slice(&self.bytes[from..from + n]);
        Ok(n)
    }

    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.perform(Op::Write(at, bytes.to_vec()))
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.perform(Op::SetLen(len))
    }

    fn sync_data(&mut self) -> io::Result<()> {
        self.perform(Op::Sync)
    }

    fn sync_all(&mut self) -> io::Result<()> {
        self.perform(Op::Sync)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.len() as u64)
    }
}

/// Opens for writing, as `Db` does.
fn ready(bytes: &[u8], seed: u64) -> Result<List<MemDisk>, Fault> {
    let mut list = List::with_seed(MemDisk::of(bytes), seed);
    match list.load()? {
        Condition::Clean => (),
        Condition::Unclean => list.recover()?,
        Condition::Unborn => list.create()?,
    }
    Ok(list)
}

/// Reads everything in both ways, without recovery.
fn read(list: &List<MemDisk>) -> State {
    let mut state = State::new();
    list.for_each(b"", |k, v| state.insert(k.to_vec(), v.to_vec()).is_none())
        .unwrap();
    for (k, v) in &state {
        assert_eq!(list.get(k).unwrap().as_ref(), Some(v));
    }
    state
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

fn put(list: &mut List<MemDisk>, key: &str, value: &str) {
    list.put(key.as_bytes(), value.as_bytes()).unwrap();
}

#[test]
fn the_bytes_are_those_of_the_c_tools() {
    // Debian's cyr_dbtool 3.6.1: set alice, set bob, set alice to another value, delete bob.
    let hex = "
        a1028b0d74776f736b69702066696c6500000000000000010000000000000001
        0000000000000001000000000000015000000000000002780000000 04a6bad75
        3d1f00000000000000000000000001f80000000000000150";
    let mut bytes = unhex(hex);
    bytes.resize(0x148, 0);
    bytes.extend(unhex(
        "7a71a7c100000000
        2b010005000000120000000000000000 00000000000001a0cdf4572e19442b5e
        616c6963652f626b2f612f616c6963655f5131773245330024000000000000000000000000000150
        5dc51c1a00000000
        2b0300030000000b",
    ));
    bytes.resize(0x1c8, 0);
    bytes.extend(unhex(
        "35941e2c29ad3097626f622f626b2f622f626f625f780000
        240000000000000000000000000001a0e078ee0600000000
        2b0100050000000f000000000000024800000000000001a0a9a41c6301b8bd9b
        616c6963652f626b2f612f616c6963655f4e455700000000
        240000000000000000000000000001f885c837c000000000
        2d000000000000000000000000000000f2ce727100000000
        24000000000000000000000000000248 6584d78f00000000",
    ));
    assert_eq!(bytes.len(), 632);

    let mut list = ready(b"", 1).unwrap();
    for (key, value, level) in [
        ("alice", "/bk/a/alice_Q1w2E3", 1),
        ("bob", "/bk/b/bob_x", 3),
        ("alice", "/bk/a/alice_NEW", 1),
    ] {
        list.put_at_level(key.as_bytes(), value.as_bytes(), level)
            .unwrap();
        list.commit().unwrap();
    }
    assert!(list.delete(b"bob").unwrap());
    list.commit().unwrap();
    for (at, (ours, theirs)) in list.disk().bytes.chunks(8).zip(bytes.chunks(8)).enumerate() {
        assert_eq!(ours, theirs, "at {:#x}", at * 8);
    }
    assert_eq!(list.disk().bytes.len(), bytes.len());

    let list = ready(&bytes, 1).unwrap();
    assert!(list.disk().ops.is_empty(), "a clean file is not touched");
    list.check().unwrap();
    assert_eq!(list.get(b"alice").unwrap().unwrap(), b"/bk/a/alice_NEW");
    assert_eq!(list.get(b"bob").unwrap(), None);
    assert_eq!(list.get(b"").unwrap(), None);
    assert_eq!(read(&list).len(), 1);
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|c| !c.is_ascii_whitespace()).collect();
    digits
        .chunks(2)
        .map(|pair| crate::util::hex::decode::<1>(pair).unwrap()[0])
        .collect()
}

/// A database with some history: replaced and deleted keys, several levels.
fn history(seed: u64) -> (Vec<u8>, State) {
    let mut list = ready(b"", seed).unwrap();
    let mut state = State::new();
    let mut random = Random(seed);
    for _ in 0..30 {
        for _ in 0..=random.below(4) {
            let key = format!("user{:02}", random.below(25)).into_bytes();
            if random.below(3) == 0 {
                assert_eq!(list.delete(&key).unwrap(), state.remove(&key).is_some());
            } else {
                let value = vec![b'v'; random.below(40) as usize];
                list.put(&key, &value).unwrap();
                state.insert(key, value);
            }
        }
        list.commit().unwrap();
    }
    assert_eq!(read(&list), state);
    list.check().unwrap();
    (list.disk().bytes.clone(), state)
}

type Change = fn(&mut List<MemDisk>);

const CHANGES: [(&str, Change); 8] = [
    ("insert first", |l| put(l, "a", "1")),
    ("insert last", |l| put(l, "z", "1")),
    ("insert high", |l| {
        l.put_at_level(b"user11x", b"new", 12).unwrap()
    }),
    ("replace", |l| {
        let key = nth(l, 3);
        l.put_at_level(&key, b"other", 1).unwrap();
    }),
    ("replace high", |l| {
        let key = nth(l, 5);
        l.put_at_level(&key, b"other", 9).unwrap();
    }),
    ("delete", |l| {
        let key = nth(l, 4);
        assert!(l.delete(&key).unwrap());
    }),
    ("delete first, middle, neighbours, last", |l| {
        for n in [usize::MAX, 0, 3, 3, 3] {
            let key = nth(l, n);
            assert!(l.delete(&key).unwrap());
        }
    }),
    ("everything at once", |l| {
        for n in 0..6 {
            let key = nth(l, n);
            l.delete(&key).unwrap();
            l.put(&key, b"back").unwrap();
            let next = nth(l, n + 1);
            l.put_at_level(&next, b"x", 1 + n as u8).unwrap();
            l.put(&next, b"y").unwrap();
            put(l, &format!("fresh{n}"), "");
        }
        l.delete(b"fresh2").unwrap();
        l.delete(b"fresh3").unwrap();
    }),
];

fn nth(list: &List<MemDisk>, n: usize) -> Vec<u8> {
    let keys: Vec<_> = read(list).into_keys().collect();
    keys[n.min(keys.len() - 1)].clone()
}

/// The disk after a crash: `synced` is there, of `pending` only what `keep` keeps.
fn crashed(base: &[u8], synced: &[Op], pending: &[Op], keep: impl Fn(usize) -> bool) -> Vec<u8> {
    let mut disk = MemDisk::of(base);
    synced.iter().for_each(|op| disk.apply(op));
    let kept = pending.iter().enumerate().filter(|(i, _)| keep(*i));
    kept.for_each(|(_, op)| disk.apply(op));
    disk.bytes
}

/// Every crash image of `ops`: each prefix, with unsynced writes kept, lost, or partly lost.
fn crash_images(base: &[u8], ops: &[Op], random: &mut Random) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    for stop in 0..=ops.len() {
        let is_sync = |op: &Op| matches!(op, Op::Sync);
        let synced = ops[..stop].iter().rposition(is_sync).map_or(0, |i| i + 1);
        let (synced, pending) = (&ops[..synced], &ops[synced..stop]);
        out.push(crashed(base, synced, pending, |_| true));
        out.push(crashed(base, synced, pending, |_| false));
        for i in 0..pending.len() {
            out.push(crashed(base, synced, pending, |n| n == i));
            out.push(crashed(base, synced, pending, |n| n != i));
        }
        for _ in 0..4 {
            let mask = random.below(1 << 30);
            out.push(crashed(base, synced, pending, |n| {
                mask & (1 << (n % 30)) != 0
            }));
        }
    }
    out
}

#[test]
fn every_crash_leaves_the_old_or_the_new_state() {
    let mut random = Random(7);
    let mut seen = (0, 0);
    for seed in [3] {
        let (base, old) = history(seed);
        for (name, change) in CHANGES {
            let mut list = ready(&base, seed).unwrap();
            change(&mut list);
            list.commit().unwrap();
            list.check().unwrap();
            let new = read(&list);
            assert_ne!(old, new, "{name}");
            let committed = Header::parse(list.disk().bytes[..HEADER_LEN].try_into().unwrap());
            for image in crash_images(&base, &list.disk().ops, &mut random) {
                let header = Header::parse(image[..HEADER_LEN].try_into().unwrap());
                let (expected, count) = match header == committed {
                    true => (&new, &mut seen.1),
                    false => (&old, &mut seen.0),
                };
                *count += 1;
                // A reader that may not recover.
                let mut reader = List::new(MemDisk::of(&image));
                reader.load().unwrap();
                assert_eq!(&read(&reader), expected, "{name}");
                // A writer, which recovers, and then goes on.
                let mut list = ready(&image, seed).unwrap();
                list.check().unwrap();
                assert_eq!(&read(&list), expected, "{name}");
                let recovery = list.disk().ops.clone();
                put(&mut list, "user07", "after the crash");
                put(&mut list, "zz", "after the crash");
                list.commit().unwrap();
                list.check().unwrap();
                assert_eq!(list.get(b"zz").unwrap().unwrap(), b"after the crash");
                // A crash while recovering; one image of ten, for time's sake.
                if random.below(10) == 0 {
                    for again in crash_images(&image, &recovery, &mut random) {
                        let list = ready(&again, seed).unwrap();
                        list.check().unwrap();
                        assert_eq!(&read(&list), expected, "{name}");
                    }
                }
            }
        }
    }
    assert!(seen.0 > 500 && seen.1 > 15, "{seen:?}");
}

#[test]
fn a_crash_while_a_database_is_made_is_healed() {
    let made = ready(b"", 1).unwrap();
    let ops = made.disk().ops.clone();
    for image in crash_images(b"", &ops, &mut Random(1)) {
        assert!(read(&ready(&image, 1).unwrap()).is_empty());
    }
    // The length reached the disk, the bytes did not.
    let mut reader = List::new(MemDisk::of(&[0; 336]));
    assert_eq!(reader.load().unwrap(), Condition::Unborn);
    assert!(read(&reader).is_empty());
    assert_eq!(ready(&[0; 336], 1).unwrap().disk().bytes, made.disk().bytes);
    assert!(matches!(ready(&[0; 344], 1), Err(Fault::Bad { at: 0, .. })));
    for cut in 1..64 {
        assert!(matches!(
            ready(&made.disk().bytes[..cut], 1),
            Err(Fault::Bad { at: 0, .. })
        ));
    }
}

#[test]
fn every_failing_call_leaves_the_old_state_or_reports_success() {
    let (base, old) = history(5);
    for (name, change) in CHANGES {
        let mut list = ready(&base, 5).unwrap();
        change(&mut list);
        list.commit().unwrap();
        let (new, calls) = (read(&list), list.disk().ops.len());
        for works in 0..calls {
            for is_transient in [true, false] {
                let disk = MemDisk {
                    works: Some(works),
                    is_transient,
                    ..MemDisk::of(&base)
                };
                let mut list = List::with_seed(disk, 5);
                list.load().unwrap();
                // The change itself may panic on its unwrap: run it for its effect on the disk.
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    change(&mut list);
                }));
                let committed = list.commit();
                assert!(result.is_err() || committed.is_err(), "{name} {works}");
                assert!(
                    committed.is_err(),
                    "{name} {works}: half a change was committed"
                );
                let again = ready(&list.disk().bytes, 5).unwrap();
                again.check().unwrap();
                let state = read(&again);
                // Only a disk that fails in the very last sync, and for good, may keep the new.
                let may_be_new = works + 1 == calls && !is_transient;
                assert!(
                    state == old || (may_be_new && state == new),
                    "{name} {works}"
                );
            }
        }
    }
}

#[test]
fn abort_gives_back_the_same_records() {
    let (base, old) = history(9);
    for (name, change) in CHANGES {
        let mut list = ready(&base, 9).unwrap();
        change(&mut list);
        list.abort().unwrap();
        assert_eq!(read(&list), old, "{name}");
        list.check().unwrap();
        assert_eq!(list.disk().bytes.len(), base.len());
    }
    let mut list = ready(&base, 9).unwrap();
    let (key, value) = old.iter().next().unwrap();
    list.put(key, value).unwrap();
    assert!(!list.delete(b"nobody").unwrap());
    list.commit().unwrap();
    list.abort().unwrap();
    assert!(
        list.disk().ops.is_empty(),
        "nothing changed, nothing written"
    );
}

#[test]
fn odd_keys_and_values() {
    let mut list = ready(b"", 2).unwrap();
    let mut state = State::new();
    for len in [1usize, 7, 8, 9, 511, 512, 65534, 65535, 65536, 100_000] {
        let key = vec![0xff; len];
        list.put(&key, b"").unwrap();
        state.insert(key, Vec::new());
        list.put(&[0, 0], &vec![0; len]).unwrap();
        state.insert(vec![0, 0], vec![0; len]);
    }
    assert!(matches!(list.put(b"", b"x"), Err(Fault::Refused(_))));
    assert!(matches!(
        list.put(b"k", &vec![0; (64 << 20) + 1]),
        Err(Fault::Refused(_))
    ));
    assert!(!list.delete(b"").unwrap());
    list.commit().unwrap();
    list.check().unwrap();
    assert_eq!(read(&list), state);
    let mut seen = 0;
    list.for_each(&[0xff; 512], |k, _| {
        assert!(k.len() >= 512);
        seen += 1;
        seen < 3
    })
    .unwrap();
    assert_eq!(seen, 3, "it stops when told");
    list.for_each(b"nope", |_, _| panic!("no such prefix"))
        .unwrap();
}

#[test]
fn a_repacked_copy_is_the_same_list() {
    let (base, old) = history(21);
    let list = ready(&base, 1).unwrap();
    let mut copy = ready(b"", 1).unwrap();
    list.copy_to(&mut copy).unwrap();
    copy.set_repacked(2).unwrap();
    copy.commit().unwrap();
    copy.check().unwrap();
    assert_eq!(read(&copy), old);
    let header = ready(&copy.disk().bytes, 1).unwrap().header().clone();
    assert_eq!(
        (header.generation, header.num_records),
        (2, old.len() as u64)
    );
    assert_eq!(header.current_size, copy.disk().bytes.len() as u64);
    assert!((24..24 + 512).contains(&(header.current_size - header.repack_size)));
}

/// Uses a file in every way; errors are fine, panics and endless loops are not.
fn use_up(bytes: &[u8]) -> Result<(), Fault> {
    let mut reader = List::new(MemDisk::of(bytes));
    if reader.load().is_ok() {
        let _ = reader.check();
        let _ = reader.for_each(b"", |_, _| true);
        let _ = reader.for_each(b"user1", |_, _| true);
        let _ = reader.get(b"user12");
    }
    let mut list = ready(bytes, 1)?;
    let _ = list.put(b"user12", b"changed");
    let _ = list.delete(b"user03");
    let _ = list.put(b"zz", b"new");
    let _ = list.commit();
    let _ = list.delete(b"zz");
    list.abort()
}

#[test]
fn damage_is_an_error_and_never_a_panic() {
    let (base, old) = history(13);
    for cut in 0..base.len() {
        let _ = use_up(&base[..cut]);
    }
    for at in 0..base.len() {
        let mut bad = base.clone();
        bad[at] ^= 0x11;
        let _ = use_up(&bad);
        // What is still said to be whole must be what was there.
        let mut list = List::new(MemDisk::of(&bad));
        if list.load().is_ok() && list.check().is_ok() {
            assert_eq!(read(&list), old, "flip at {at}");
        }
    }
}

#[test]
fn a_rotten_value_is_reported_and_may_be_replaced() {
    let mut list = ready(b"", 1).unwrap();
    put(&mut list, "a", "value of a");
    put(&mut list, "b", "value of b");
    list.commit().unwrap();
    let mut bytes = list.disk().bytes.clone();
    let at = bytes.windows(10).position(|w| w == b"value of a").unwrap();
    bytes[at] = b'w';
    let mut list = ready(&bytes, 1).unwrap();
    assert!(matches!(list.get(b"a"), Err(Fault::Bad { .. })));
    assert!(matches!(list.check(), Err(Fault::Bad { .. })));
    assert_eq!(list.get(b"b").unwrap().unwrap(), b"value of b");
    put(&mut list, "a", "again");
    list.commit().unwrap();
    list.check().unwrap();
}

#[test]
fn forged_pointers_end_in_an_error() {
    let (base, _) = history(17);
    let offsets: Vec<u64> = (64..base.len() as u64)
        .step_by(8)
        .filter(|at| {
            let rest = &base[*at as usize..];
            Record::parse(rest).is_ok()
        })
        .collect();
    let mut random = Random(99);
    let mut failed = 0;
    for _ in 0..6000 {
        let mut bad = base.clone();
        for _ in 0..=random.below(3) {
            let at = offsets[random.below(offsets.len() as u64) as usize];
            let mut record = Record::parse(&bad[at as usize..]).unwrap();
            let slot = random.below(u64::from(record.level) + 1) as usize;
            let to = match random.below(6) {
                0 => at,
                1 => u64::MAX - random.below(16),
                2 => random.below(base.len() as u64 + 64),
                _ => offsets[random.below(offsets.len() as u64) as usize],
            };
            match random.below(5) {
                0 if record.kind == RecordKind::Record => {
                    // The head must keep its size, so that it is still the record's head.
                    record.val_len = random.below(1 << 31);
                    record.key_len = random.below(65000);
                }
                1 => record.kind = RecordKind::Delete,
                _ => record.next[slot] = to,
            }
            let head = record.head_bytes();
            let room = &mut bad[at as usize..];
            let n = head.len().min(room.len());
            room[..n].copy_from_slice(&head[..n]);
        }
        if random.below(2) == 0 {
            // Dirty, so that recovery walks it.
            let mut header = Header::parse(bad[..64].try_into().unwrap()).unwrap();
            header.flags |= 1;
            if random.below(3) == 0 {
                header.current_size += random.below(1 << 40) * 8;
            }
            bad[..64].copy_from_slice(&header.to_bytes());
        }
        failed += u32::from(use_up(&bad).is_err());
    }
    assert!(failed > 100, "{failed}");
}
