//! The bytes of a twoskip file: header, record heads, pointer rules, padding. Pure.
//!
//! All integers are big-endian, all offsets count from the start of the file and are multiples of 8.
//!
//! ```text
//! header   0  20  magic          24  8  generation     40  8  size at the last repack
//!         20   4  version        32  8  live records   48  8  size at the last commit
//!                                                      56  4  flags   60  4  crc of 0..60
//! record   0   1  type           2   2  key length, or ffff     (then 8 more bytes below)
//!          1   1  level L        4   4  value length, or ffffffff  (then 8 more bytes below)
//!          8   0/8 key length    .   0/8 value length
//!          .   8*(L+1) pointers  .   4  crc of all before   .   4  crc of body
//!          body: key, value, zeros up to a multiple of 8
//! ```
//!
//! A pointer of 0 ends the list. The lowest level owns two pointers, so that the last committed
//! successor survives until the next transaction; see [`Record::successor`].
//!
//! Fails with a few words (`&'static str`); the caller knows the offset. Nothing here panics on any
//! input. The format is Cyrus' (3.6 `lib/cyrusdb_twoskip.c`).

/// Bytes of the header; the first record follows.
pub const HEADER_LEN: usize = 64;
/// Offset of the DUMMY record, the head of every level.
pub const DUMMY_AT: u64 = HEADER_LEN as u64;
/// Length of a new, empty database.
pub const NEW_LEN: u64 = DUMMY_AT + 8 + 32 * 8 + 8;
/// The highest level of a record.
pub const LEVEL_MAX: usize = 31;
/// The longest record head: type, both long lengths, 32 pointers, two CRCs.
pub const HEAD_MAX: usize = 8 + 16 + (LEVEL_MAX + 1) * 8 + 8;
/// Flag: a transaction is under way, or was when the writer died.
pub const DIRTY: u32 = 1;
/// The filler between records.
pub const BLANK: [u8; 8] = *b" BLANK\x07\xa0";

const MAGIC: [u8; 20] = *b"\xa1\x02\x8b\x0dtwoskip file\0\0\0\0";
const VERSION: u32 = 1;
const SHORT_KEY_MAX: u64 = 0xfffe;
const SHORT_VALUE_MAX: u64 = 0xffff_fffe;
/// A rewritten head should lie in one block of the disk.
const BLOCK: u64 = 512;

/// The header's fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Format version, 0 or 1.
    pub version: u32,
    /// Counts the repacks, from 1.
    pub generation: u64,
    /// Live records.
    pub num_records: u64,
    /// Size at the last repack, in bytes.
    pub repack_size: u64,
    /// Size at the last commit, in bytes.
    pub current_size: u64,
    /// `DIRTY` or nothing.
    pub flags: u32,
}

impl Header {
    /// The header of a new, empty database.
    pub fn new() -> Header {
        Header {
            version: VERSION,
            generation: 1,
            num_records: 0,
            repack_size: NEW_LEN,
            current_size: NEW_LEN,
            flags: 0,
        }
    }

    /// Reads a header and judges it: magic, version, CRC, and a size that can be.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Header, &'static str> {
        if bytes[..20] != MAGIC {
            return Err("not a twoskip file");
        }
        let header = Header {
            version: be32(bytes, 20),
            generation: be64(bytes, 24),
            num_records: be64(bytes, 32),
            repack_size: be64(bytes, 40),
            current_size: be64(bytes, 48),
            flags: be32(bytes, 56),
        };
        if header.version > VERSION {
            return Err("twoskip version is newer than we know");
        }
        if be32(bytes, 60) != crc32fast::hash(&bytes[..60]) {
            return Err("header checksum is wrong");
        }
        let size = header.current_size;
        if size < NEW_LEN || size > i64::MAX as u64 || size % 8 != 0 {
            return Err("header names an impossible size");
        }
        Ok(header)
    }

    /// The header's bytes, checksum included.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..20].copy_from_slice(&MAGIC);
        out[20..24].copy_from_slice(&self.version.to_be_bytes());
        out[24..32].copy_from_slice(&self.generation.to_be_bytes());
        out[32..40].copy_from_slice(&self.num_records.to_be_bytes());
        out[40..48].copy_from_slice(&self.repack_size.to_be_bytes());
        out[48..56].copy_from_slice(&self.current_size.to_be_bytes());
        out[56..60].copy_from_slice(&self.flags.to_be_bytes());
        let crc = crc32fast::hash(&out[..60]);
        out[60..].copy_from_slice(&crc.to_be_bytes());
        out
    }

    /// Whether a transaction was begun and neither committed nor undone.
    pub fn is_dirty(&self) -> bool {
        self.flags & DIRTY != 0
    }
}

impl Default for Header {
    fn default() -> Header {
        Header::new()
    }
}

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// The head of all levels, at [`DUMMY_AT`] only.
    Dummy = b'=',
    /// A key and its value.
    Record = b'+',
    /// Stands in the lowest level where a record was; points to the live record after it.
    Delete = b'-',
    /// Ends a transaction; points to its start.
    Commit = b'$',
}

/// A record's head.
#[derive(Clone, Debug)]
pub struct Record {
    /// What it is.
    pub kind: RecordKind,
    /// How many levels it is on; 0 for DELETE and COMMIT.
    pub level: u8,
    /// Bytes of the key.
    pub key_len: u64,
    /// Bytes of the value.
    pub val_len: u64,
    /// Pointers 0..=level; the rest is zero.
    pub next: [u64; LEVEL_MAX + 1],
    /// Checksum of key, value and padding.
    pub body_crc: u32,
}

impl Record {
    /// A DUMMY, DELETE or COMMIT with its first pointer.
    pub fn bare(kind: RecordKind, level: u8, first: u64) -> Record {
        let mut next = [0; LEVEL_MAX + 1];
        next[0] = first;
        Record {
            kind,
            level,
            key_len: 0,
            val_len: 0,
            next,
            body_crc: 0,
        }
    }

    /// Reads the head at the start of `bytes`, which holds [`HEAD_MAX`] bytes unless the file ends.
    pub fn parse(bytes: &[u8]) -> Result<Record, &'static str> {
        const SHORT: &str = "record is cut short";
        let fixed = bytes.get(..8).ok_or(SHORT)?;
        let kind = match fixed[0] {
            b'=' => RecordKind::Dummy,
            b'+' => RecordKind::Record,
            b'-' => RecordKind::Delete,
            b'$' => RecordKind::Commit,
            _ => return Err("no record here"),
        };
        let level = fixed[1];
        if usize::from(level) > LEVEL_MAX {
            return Err("record has an impossible level");
        }
        if kind == RecordKind::Record && level == 0 {
            return Err("record is on no level");
        }
        let mut key_len = u64::from(u16::from_be_bytes([fixed[2], fixed[3]]));
        let mut val_len = u64::from(be32(fixed, 4));
        let mut at = 8;
        if key_len > SHORT_KEY_MAX {
            key_len = be64(bytes.get(at..at + 8).ok_or(SHORT)?, 0);
            at += 8;
        }
        if val_len > SHORT_VALUE_MAX {
            val_len = be64(bytes.get(at..at + 8).ok_or(SHORT)?, 0);
            at += 8;
        }
        let mut next = [0; LEVEL_MAX + 1];
        for pointer in &mut next[..=usize::from(level)] {
            *pointer = be64(bytes.get(at..at + 8).ok_or(SHORT)?, 0);
            at += 8;
        }
        let crcs = bytes.get(at..at + 8).ok_or(SHORT)?;
        if be32(crcs, 0) != crc32fast::hash(&bytes[..at]) {
            return Err("record head checksum is wrong");
        }
        Ok(Record {
            kind,
            level,
            key_len,
            val_len,
            next,
            body_crc: be32(crcs, 4),
        })
    }

    /// Bytes of the head, checksums included.
    pub fn head_len(&self) -> usize {
        8 + if self.key_len > SHORT_KEY_MAX { 8 } else { 0 }
            + if self.val_len > SHORT_VALUE_MAX { 8 } else { 0 }
            + (usize::from(self.level) + 1) * 8
            + 8
    }

    /// Bytes of key, value and padding; `None` for lengths that cannot be.
    pub fn body_len(&self) -> Option<u64> {
        self.key_len
            .checked_add(self.val_len)?
            .checked_next_multiple_of(8)
    }

    /// The head's bytes, with a fresh checksum of the head.
    pub fn head_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD_MAX);
        out.extend([self.kind as u8, self.level]);
        let (long_key, long_value) = (self.key_len > SHORT_KEY_MAX, self.val_len > SHORT_VALUE_MAX);
        let short_key = if long_key {
            u16::MAX
        } else {
            self.key_len as u16
        };
        let short_value = if long_value {
            u32::MAX
        } else {
            self.val_len as u32
        };
        out.extend(short_key.to_be_bytes());
        out.extend(short_value.to_be_bytes());
        if long_key {
            out.extend(self.key_len.to_be_bytes());
        }
        if long_value {
            out.extend(self.val_len.to_be_bytes());
        }
        for pointer in self.next.iter().take(usize::from(self.level) + 1) {
            out.extend(pointer.to_be_bytes());
        }
        let crc = crc32fast::hash(&out);
        out.extend(crc.to_be_bytes());
        out.extend(self.body_crc.to_be_bytes());
        out
    }

    /// The next record on `level` (counted from 0) for one who knows the file up to `end`; 0: none.
    ///
    /// Of the two slots of the lowest level the larger one below `end` is newer. A higher pointer
    /// past `end` belongs to a transaction that was never committed, and ends its level.
    pub fn successor(&self, level: usize, end: u64) -> u64 {
        let (a, b) = (self.next[0], self.next[1]);
        match level {
            0 if a >= end && b >= end => 0,
            0 if a >= end => b,
            0 if b >= end => a,
            0 => a.max(b),
            _ => match self.next.get(level + 1) {
                Some(&at) if at < end => at,
                _ => 0,
            },
        }
    }

    /// Points `level` to `to`; `committed` is the header's size, above which all is new.
    ///
    /// On the lowest level the slot of this transaction is taken again, else the older one.
    pub fn set_successor(&mut self, level: usize, to: u64, committed: u64) {
        let slot = if level > 0 {
            level + 1
        } else if self.next[0] >= committed {
            0
        } else if self.next[1] >= committed {
            1
        } else {
            usize::from(self.next[1] <= self.next[0])
        };
        if let Some(pointer) = self.next.get_mut(slot) {
            *pointer = to;
        }
    }
}

/// Key, value and padding as they stand in the file.
pub fn body(key: &[u8], value: &[u8]) -> Vec<u8> {
    let len = key.len() + value.len();
    let mut out = Vec::with_capacity(len + 7);
    out.extend(key);
    out.extend(value);
    out.resize(len.next_multiple_of(8), 0);
    out
}

/// How many BLANKs go before a record whose head has `head_len` bytes, at the file's end `end`.
///
/// For writers only: readers accept any.
pub fn blanks_before(end: u64, head_len: usize) -> u64 {
    let head_len = head_len as u64;
    if head_len > BLOCK - 8 {
        return 0;
    }
    // At most a block's worth: at the last 8 bytes of a block the left side is 0.
    (0..BLOCK / 8)
        .find(|i| {
            let end = end % BLOCK + i * 8;
            (end + 8) % BLOCK <= (end + BLOCK - 8 + head_len) % BLOCK
        })
        .unwrap_or(0)
}

/// The whole file of a new, empty database.
pub fn new_file() -> Vec<u8> {
    let mut out = Header::new().to_bytes().to_vec();
    out.extend(Record::bare(RecordKind::Dummy, LEVEL_MAX as u8, 0).head_bytes());
    out
}

/// `bytes` is at least `at + 4` long: every caller has cut it so.
fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4]
        .iter()
        .fold(0, |n, b| (n << 8) | u32::from(*b))
}

/// As `be32`, for 8 bytes.
fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8]
        .iter()
        .fold(0, |n, b| (n << 8) | u64::from(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_file_is_336_bytes_and_parses() {
        let file = new_file();
        assert_eq!(file.len() as u64, NEW_LEN);
        assert_eq!(NEW_LEN, 0x150);
        let header = Header::parse(file[..64].try_into().unwrap()).unwrap();
        assert_eq!(header, Header::new());
        let dummy = Record::parse(&file[64..]).unwrap();
        assert_eq!((dummy.kind, dummy.level), (RecordKind::Dummy, 31));
        assert_eq!(dummy.head_bytes(), &file[64..]);
    }

    #[test]
    fn headers_are_judged() {
        let good = Header::new().to_bytes();
        for (at, why) in [
            (0, "not a twoskip file"),
            (23, "newer"),
            (39, "checksum"),
            (63, "checksum"),
        ] {
            let mut bad = good;
            bad[at] ^= 2;
            let e = Header::parse(&bad).unwrap_err();
            assert!(e.contains(why), "{at}: {e}");
        }
        for size in [0, NEW_LEN - 8, NEW_LEN + 4, u64::MAX, 1 << 63] {
            let header = Header {
                current_size: size,
                ..Header::new()
            };
            assert!(Header::parse(&header.to_bytes()).is_err(), "{size}");
        }
        let old = Header {
            version: 0,
            generation: 0,
            repack_size: 0,
            ..Header::new()
        };
        assert_eq!(Header::parse(&old.to_bytes()), Ok(old));
    }

    #[test]
    fn length_forms_change_at_their_limits() {
        for (key_len, val_len, head) in [
            (65534, 0, 32),
            (65535, 0, 40),
            (100_000, 0xffff_fffe, 40),
            (1, 0xffff_ffff, 40),
            (65535, 1 << 40, 48),
        ] {
            let record = Record {
                key_len,
                val_len,
                ..Record::bare(RecordKind::Record, 1, 8)
            };
            let bytes = record.head_bytes();
            assert_eq!(bytes.len(), head);
            assert_eq!(record.head_len(), head);
            let back = Record::parse(&bytes).unwrap();
            assert_eq!((back.key_len, back.val_len), (key_len, val_len));
            for cut in 0..bytes.len() {
                assert!(Record::parse(&bytes[..cut]).is_err());
            }
        }
        let endless = Record {
            key_len: u64::MAX,
            val_len: 1,
            ..Record::bare(RecordKind::Record, 1, 0)
        };
        assert_eq!(endless.body_len(), None);
        let endless = Record {
            val_len: 0,
            ..endless
        };
        assert_eq!(endless.body_len(), None);
    }

    #[test]
    fn every_flipped_bit_of_a_head_is_noticed() {
        let record = Record {
            key_len: 5,
            val_len: 9,
            ..Record::bare(RecordKind::Record, 2, 336)
        };
        let good = record.head_bytes();
        for bit in 0..(good.len() - 4) * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            bad.resize(HEAD_MAX, 0);
            assert!(Record::parse(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn the_two_slots_of_the_lowest_level() {
        let mut r = Record::bare(RecordKind::Record, 2, 0);
        let mut end = 1000;
        r.next[..3].copy_from_slice(&[400, 500, 600]);
        assert_eq!(r.successor(0, end), 500);
        assert_eq!(r.successor(0, 500), 400);
        assert_eq!(r.successor(0, 400), 0);
        assert_eq!((r.successor(1, end), r.successor(1, 600)), (600, 0));
        assert_eq!(r.successor(31, end), 0);
        // The older slot is given away; the same one again within the transaction.
        r.set_successor(0, 1000, end);
        assert_eq!(r.next[..2], [1000, 500]);
        r.set_successor(0, 1100, end);
        assert_eq!(r.next[..2], [1100, 500]);
        assert_eq!(r.successor(0, end), 500);
        end = 1200;
        r.set_successor(0, 1200, end);
        assert_eq!(r.next[..2], [1100, 1200]);
        // Equal slots: the second is given away, as the C code does.
        r.next[..2].copy_from_slice(&[0, 0]);
        r.set_successor(0, 1200, end);
        assert_eq!(r.next[..2], [0, 1200]);
    }

    #[test]
    fn padding_keeps_a_head_in_one_block() {
        for end in (336..2000).step_by(8) {
            for head in [24usize, 32, 280, 288, 504] {
                let blanks = blanks_before(end, head);
                assert!(blanks < 64);
                let start = end + blanks * 8;
                assert!((start + 8) % 512 <= (start - 8 + head as u64) % 512);
            }
        }
        assert_eq!(blanks_before(504, 32), 0);
        assert_eq!(blanks_before(336, 505), 0);
    }

    #[test]
    fn checksums_are_zlibs() {
        assert_eq!(crc32fast::hash(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32fast::hash(b""), 0);
    }
}
