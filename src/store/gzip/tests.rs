use super::*;
use crate::store::file::FaultFile;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

/// Bytes that look like the parts of mail, chosen by `seed`.
pub(crate) struct Mail(pub(crate) u64);

impl Mail {
    pub(crate) fn next(&mut self, below: u64) -> u64 {
        self.0 = crate::store::file::next_random(self.0);
        (self.0 >> 33) % below
    }

    pub(crate) fn noise(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next(256) as u8).collect()
    }

    pub(crate) fn base64(&mut self, len: usize) -> Vec<u8> {
        let set = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        (0..len)
            .map(|at| match at % 78 {
                76 => b'\r',
                77 => b'\n',
                _ => set[self.next(64) as usize],
            })
            .collect()
    }

    pub(crate) fn text(&mut self, len: usize) -> Vec<u8> {
        let mut text = Vec::new();
        while text.len() < len {
            // Short words are common: squaring makes the low numbers likely.
            let word = self.next(60) * self.next(60);
            let letters = [word % 26, word / 26 % 26, word / 676 % 26, word % 7];
            for letter in letters.iter().take(2 + word as usize % 3) {
                text.push(b'a' + *letter as u8);
            }
            text.extend_from_slice(if self.next(12) == 0 { b"\r\n" } else { b" " });
        }
        text.truncate(len);
        text
    }

    pub(crate) fn any(&mut self, most: u64) -> Vec<u8> {
        let len = self.next(most) as usize;
        match self.next(5) {
            0 => self.noise(len),
            1 => self.base64(len),
            2 => vec![self.next(256) as u8; len],
            _ => self.text(len),
        }
    }
}

fn member(level: u8, pieces: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = MemberWriter::new(level, b"", &mut out);
    for piece in pieces {
        writer.write(piece, &mut out);
        writer.flush(&mut out);
    }
    writer.finish(&mut out);
    out
}

/// What gzip makes of `bytes`.
fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut child = Command::new("gzip")
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let feeder = std::thread::spawn(move || stdin.write_all(&bytes));
    let done = child.wait_with_output().unwrap();
    feeder.join().unwrap().unwrap();
    assert!(done.status.success(), "gzip does not like it");
    done.stdout
}

fn inflate(bytes: &[u8]) -> (Vec<u8>, MemberEnd) {
    let mut reader = MemberReader::new(bytes);
    let mut plain = Vec::new();
    // Damage is told again by end().
    let _ = reader.read_to_end(&mut plain);
    (plain, reader.end().unwrap())
}

fn points(bytes: &[u8]) -> Vec<FlushPoint> {
    let mut all = Vec::new();
    flush_points(bytes, |p| {
        all.push(p);
        true
    })
    .unwrap();
    all
}

/// Hands out one byte at a time.
struct Drip<'a>(&'a [u8]);

impl Read for Drip<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let len = buf.len().min(1);
        self.0.read(&mut buf[..len])
    }
}

#[test]
fn gzip_and_we_read_what_we_write() {
    let mut mail = Mail(1);
    for level in [0, 1, 3, 4, 6, 9] {
        for round in 0..12 {
            let pieces: Vec<Vec<u8>> = (0..6).map(|_| mail.any(150_000)).collect();
            let all = pieces.concat();
            let pieces: Vec<&[u8]> = pieces.iter().map(|p| &p[..]).collect();
            let bytes = member(level, &pieces);
            let sealed = MemberEnd::Sealed {
                compressed_len: bytes.len() as u64,
            };
            assert_eq!(inflate(&bytes), (all.clone(), sealed), "{level} {round}");
            assert!(gunzip(&bytes) == all, "{level} {round}");
        }
    }
}

#[test]
fn what_cannot_shrink_hardly_grows_and_base64_shrinks() {
    let mut mail = Mail(2);
    let noise = mail.noise(1 << 20);
    let base64 = mail.base64(1 << 20);
    let text = mail.text(1 << 20);
    for level in [1, 6] {
        assert!(member(level, &[&noise]).len() < noise.len() + noise.len() / 1000);
        let ratio = member(level, &[&base64]).len() as f64 / base64.len() as f64;
        assert!(ratio < 0.765, "base64 {ratio}");
        let ratio = member(level, &[&text]).len() as f64 / text.len() as f64;
        assert!(ratio < 0.6, "text {ratio}");
        // Noise that repeats is not stored.
        let twice = [&noise[..10_000]; 40].concat();
        assert!(member(level, &[&twice]).len() < twice.len() / 4);
    }
}

#[test]
fn extra_bytes_and_foreign_headers_are_passed_over() {
    let mut out = Vec::new();
    let mut writer = MemberWriter::new(1, b"CB\x03\x00abc", &mut out);
    writer.write(b"hello", &mut out);
    assert_eq!((writer.plain_len(), writer.crc()), (5, 0x3610_a686));
    writer.finish(&mut out);
    assert_eq!(&out[..14], b"\x1f\x8b\x08\x04\0\0\0\0\0\x03\x07\0CB");
    assert_eq!(inflate(&out).0, b"hello");
    assert_eq!(gunzip(&out), b"hello");

    let mut foreign = b"\x1f\x8b\x08\x1e\x01\x02\x03\x04\x02\xff\x02\0xyname\0comment\0".to_vec();
    let sum = crc32fast::hash(&foreign) as u16;
    foreign.extend_from_slice(&sum.to_le_bytes());
    foreign.extend_from_slice(&out[19..]);
    let (plain, end) = inflate(&foreign);
    assert_eq!(plain, b"hello");
    assert!(matches!(end, MemberEnd::Sealed { .. }));
    let mut bad = foreign.clone();
    bad[14] ^= 1;
    assert!(matches!(inflate(&bad).1, MemberEnd::Damaged(why) if why.contains("header CRC")));
    for cut in 0..foreign.len() {
        assert_eq!(inflate(&foreign[..cut]).1, MemberEnd::Torn, "{cut}");
    }
}

#[test]
fn members_follow_each_other() {
    let mut file = member(1, &[b"one"]);
    file.extend(member(0, &[]));
    file.extend(member(6, &[b"three"]));
    for drip in [false, true] {
        let source: Box<dyn Read> = if drip {
            Box::new(Drip(&file))
        } else {
            Box::new(&file[..])
        };
        let mut reader = MemberReader::new(source);
        let mut seen = Vec::new();
        let mut offset = 0;
        loop {
            let mut plain = String::new();
            reader.read_to_string(&mut plain).unwrap();
            seen.push(plain);
            match reader.end().unwrap() {
                MemberEnd::Sealed { compressed_len } => offset += compressed_len,
                other => panic!("{other:?}"),
            }
            if !reader.next_member().unwrap() {
                break;
            }
        }
        assert_eq!(seen, ["one", "", "three"]);
        assert_eq!(offset, file.len() as u64);
    }
}

#[test]
fn a_byte_at_a_time_is_the_same() {
    let mut mail = Mail(3);
    let pieces = [mail.text(9000), mail.noise(9000), mail.base64(20_000)];
    let pieces: Vec<&[u8]> = pieces.iter().map(|p| &p[..]).collect();
    let bytes = member(1, &pieces);
    let mut reader = MemberReader::new(Drip(&bytes));
    let mut plain = Vec::new();
    reader.read_to_end(&mut plain).unwrap();
    assert_eq!(plain, pieces.concat());
    let compressed_len = bytes.len() as u64;
    assert_eq!(reader.end().unwrap(), MemberEnd::Sealed { compressed_len });
    let mut dripped = Vec::new();
    flush_points(Drip(&bytes), |p| {
        dripped.push(p);
        true
    })
    .unwrap();
    assert_eq!(dripped, points(&bytes));
}

#[test]
fn every_flush_is_found_and_any_cut_can_be_sealed() {
    let mut mail = Mail(4);
    let mut out = Vec::new();
    let mut flushes = Vec::new();
    let mut all = Vec::new();
    let mut writer = MemberWriter::new(1, b"", &mut out);
    for at in 0..14 {
        // A flush marker, and a whole end of a member, inside the data.
        let piece = match at % 7 {
            5 => b"\0\0\xff\xff\x03\0\0\0\xff\xff".repeat(30),
            6 => mail.noise(5000),
            _ => mail.any(400),
        };
        writer.write(&piece, &mut out);
        all.extend(piece);
        writer.flush(&mut out);
        assert_eq!(out[out.len() - 4..], [0, 0, 0xff, 0xff]);
        let len = out.len();
        writer.flush(&mut out);
        assert_eq!(out.len(), len, "nothing new, nothing written");
        flushes.push((len as u64, all.len() as u64));
    }
    for cut in 0..=out.len() {
        let found = points(&out[..cut]);
        for flush in flushes.iter().filter(|f| f.0 <= cut as u64) {
            assert!(found.iter().any(|p| (p.compressed, p.plain) == *flush));
        }
        if let Some(last) = found.last() {
            seal_at(&out, last, &all);
        }
    }
    for point in points(&out) {
        seal_at(&out, &point, &all);
        assert_eq!(
            last_flush_point(&out[..], point.plain).unwrap(),
            points(&out).into_iter().rfind(|p| p.plain <= point.plain)
        );
    }
    assert_eq!(last_flush_point(&out[..12], u64::MAX).unwrap(), None);
}

/// Cuts `out` at a flush point, seals it, and compares with zlib's and our reading.
fn seal_at(out: &[u8], point: &FlushPoint, all: &[u8]) {
    let want = &all[..point.plain as usize];
    let mut cut = out[..point.compressed as usize].to_vec();
    cut.extend_from_slice(&seal_bytes(point.crc, point.plain));
    let (plain, end) = inflate(&cut);
    assert!(plain == want && matches!(end, MemberEnd::Sealed { .. }));
}

#[test]
fn gzip_reads_a_member_sealed_or_resumed_at_a_flush() {
    let mut mail = Mail(5);
    let mut out = Vec::new();
    let mut writer = MemberWriter::new(6, b"", &mut out);
    let first = [mail.text(40_000), mail.base64(40_000)].concat();
    writer.write(&first, &mut out);
    writer.flush(&mut out);
    let cut = out.len();
    let (len, crc) = (writer.plain_len(), writer.crc());
    writer.write(&mail.text(50_000), &mut out);
    writer.flush(&mut out);
    out.truncate(cut);

    let mut sealed = out.clone();
    sealed.extend_from_slice(&seal_bytes(crc, len));
    assert!(gunzip(&sealed) == first);

    let mut writer = MemberWriter::resume(6, len, crc);
    writer.write(&first, &mut out);
    writer.finish(&mut out);
    assert!(gunzip(&out) == [&first[..], &first[..]].concat());
}

#[test]
fn flipped_bits_are_damage_and_never_a_panic() {
    let mut mail = Mail(6);
    let pieces = [mail.text(3000), mail.base64(6000), mail.noise(5000)];
    let pieces: Vec<&[u8]> = pieces.iter().map(|p| &p[..]).collect();
    let bytes = member(1, &pieces);
    let all = pieces.concat();
    let mut unnoticed = 0;
    for at in 0..bytes.len() {
        for bit in [0, 3, 7] {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << bit;
            let (plain, end) = inflate(&bad);
            if let MemberEnd::Sealed { .. } = end {
                // Header bytes and padding may change, but nothing that means anything.
                assert!(plain == all, "byte {at} bit {bit}");
                unnoticed += 1;
            }
            for point in points(&bad) {
                assert!(point.compressed <= bad.len() as u64);
            }
        }
    }
    assert!(unnoticed < 40, "{unnoticed}");
}

#[test]
fn damage_says_where() {
    let bytes = member(1, &[b"hello hello hello"]);
    let mut bad = bytes.clone();
    let at = bad.len() - 8;
    bad[at] ^= 1;
    let mut reader = MemberReader::new(&bad[..]);
    let mut plain = Vec::new();
    let e = reader.read_to_end(&mut plain).unwrap_err();
    assert_eq!(e.kind(), std::io::ErrorKind::InvalidData);
    let want = format!(
        "wrong CRC at byte {} of the member, plain offset 17",
        bad.len()
    );
    assert_eq!(e.to_string(), want);
    assert_eq!(plain, b"hello hello hello", "what was good is delivered");
    assert_eq!(reader.end().unwrap(), MemberEnd::Damaged(want));
    bad = bytes.clone();
    let at = bad.len() - 1;
    bad[at] ^= 1;
    assert!(matches!(inflate(&bad).1, MemberEnd::Damaged(why) if why.starts_with("wrong length")));
    assert!(matches!(inflate(b"plain text").1, MemberEnd::Damaged(_)));
    assert_eq!(inflate(b"").1, MemberEnd::Torn);
}

#[test]
fn a_distance_before_the_first_byte_is_refused() {
    // A fixed block: length 3 (code 257), distance 1, before any literal; gzip refuses it too.
    let mut bytes = b"\x1f\x8b\x08\0\0\0\0\0\0\x03".to_vec();
    bytes.extend_from_slice(&[0x03, 0x02, 0x00]);
    bytes.extend_from_slice(&[0; 8]);
    assert!(matches!(inflate(&bytes).1, MemberEnd::Damaged(why) if why.starts_with("bad deflate")));
}

#[test]
fn the_next_chunk_is_found_behind_damage() {
    let chunk = |tail: &[u8]| member(1, &[&[&CHUNK_HEADER[..], tail].concat()]);
    let other = member(1, &[b"not a chunk"]);
    let mut mail = Mail(7);
    for gap in [0, 1, 100, 65_534, 65_535, 65_536, 131_071, 200_000] {
        let mut bytes = mail.noise(gap);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&other);
        let first = bytes.len() as u64;
        bytes.extend(chunk(b"1 APPLY SUB x\r\n"));
        let second = bytes.len() as u64;
        bytes.extend(chunk(b"2 APPLY SUB y\r\n"));
        let file = FaultFile::with(&bytes);
        assert_eq!(find_next_member(&file, 0).unwrap(), Some(first), "{gap}");
        assert_eq!(find_next_member(&file, first).unwrap(), Some(first));
        assert_eq!(find_next_member(&file, first + 1).unwrap(), Some(second));
        assert_eq!(find_next_member(&file, second + 1).unwrap(), None);
        assert_eq!(find_next_member(&file, u64::MAX / 2).unwrap(), None);
    }
}
