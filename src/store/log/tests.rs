use super::*;
use crate::store::file::{Fault, FaultFile};
use crate::store::gzip::tests::Mail;
use crate::store::gzip::{FlushPoint, MemberEnd, MemberReader, flush_points, seal_bytes};
use std::io::Read;

fn open(file: &FaultFile) -> Log {
    Log::new(Arc::new(file.clone()), file.len().unwrap(), 1)
}

/// Plain text up to the last flush point, that point, and where its member starts.
type Torn = (Vec<u8>, FlushPoint, u64);

/// The plain text of each sealed member, and of the flush-pointed part of a torn last one with its point.
fn chunks(bytes: &[u8]) -> (Vec<Vec<u8>>, Option<Torn>) {
    let mut sealed = Vec::new();
    let mut offset = 0;
    while offset < bytes.len() {
        let mut reader = MemberReader::new(&bytes[offset..]);
        let mut plain = Vec::new();
        let _ = reader.read_to_end(&mut plain);
        if let MemberEnd::Sealed { compressed_len } = reader.end().unwrap() {
            sealed.push(plain);
            offset += compressed_len as usize;
            continue;
        }
        let mut last = None;
        flush_points(&bytes[offset..], |p| {
            last = Some(p);
            true
        })
        .unwrap();
        let torn = last.map(|point| {
            plain.truncate(point.plain as usize);
            (plain, point, offset as u64)
        });
        return (sealed, torn);
    }
    (sealed, None)
}

#[test]
fn members_are_written_synced_and_sealed() {
    let file = FaultFile::new();
    let mut log = open(&file);
    assert!(!log.is_open());
    log.begin(b"XX\x01\x00y").unwrap();
    assert_eq!((log.is_open(), log.plain_position()), (true, 29));
    assert_eq!(file.operations(), 0, "nothing is written yet");
    log.append(b"1 APPLY SUB x\r\n").unwrap();
    let len = log.sync().unwrap();
    assert_eq!(len, file.len().unwrap());
    assert_eq!(file.after_power_loss(0).len() as u64, len);
    log.sync().unwrap();
    assert_eq!(file.syncs(), 1, "nothing new, nothing synced");
    log.append(b"2 APPLY SUB y\r\n").unwrap();
    let sealed = log.seal().unwrap();
    let bytes = file.after_power_loss(0);
    assert_eq!(
        (sealed.offset, sealed.length, sealed.plain_length),
        (0, bytes.len() as u64, 59)
    );
    assert_eq!(sealed.sha256, <[u8; 32]>::from(Sha256::digest(&bytes)));

    log.begin(b"").unwrap();
    assert_eq!(log.member_offset(), sealed.length);
    let sealed = log.seal().unwrap();
    let bytes = file.after_kill();
    assert_eq!(
        sealed.sha256,
        <[u8; 32]>::from(Sha256::digest(&bytes[sealed.offset as usize..]))
    );
    let (all, torn) = chunks(&bytes);
    assert!(torn.is_none());
    assert_eq!(
        all[0],
        b"# cyrus backup: chunk start\r\n1 APPLY SUB x\r\n2 APPLY SUB y\r\n"
    );
    assert_eq!(all[1], CHUNK_HEADER);
}

#[test]
fn misuse_is_told_and_breaks_nothing() {
    let file = FaultFile::new();
    let mut log = open(&file);
    assert_eq!(log.append(b"x").unwrap_err().kind(), Kind::Internal);
    assert_eq!(log.seal().unwrap_err().kind(), Kind::Internal);
    let e = log.read_plain(0, 1, &mut |_| Ok(())).unwrap_err();
    assert_eq!(e.kind(), Kind::Internal);
    assert_eq!(log.flush().unwrap(), 0);
    log.begin(b"").unwrap();
    assert_eq!(log.begin(b"").unwrap_err().kind(), Kind::Internal);
    log.append(b"x").unwrap();
    log.seal().unwrap();
}

#[test]
fn plain_bytes_of_the_open_chunk_come_back() {
    let file = FaultFile::new();
    let mut mail = Mail(11);
    let mut log = open(&file);
    let mut all = CHUNK_HEADER.to_vec();
    log.begin(b"").unwrap();
    for _ in 0..5 {
        let piece = mail.any(300_000);
        log.append(&piece).unwrap();
        all.extend(piece);
        for _ in 0..5 {
            let from = mail.next(all.len() as u64);
            let len = mail.next(all.len() as u64 - from);
            let mut got = Vec::new();
            log.read_plain(from, len, &mut |plain| {
                got.extend_from_slice(plain);
                Ok(())
            })
            .unwrap();
            assert!(got == all[from as usize..(from + len) as usize]);
        }
    }
    let e = log.read_plain(all.len() as u64 - 1, 2, &mut |_| Ok(()));
    assert_eq!(e.unwrap_err().kind(), Kind::Damaged);
    for (from, len) in [(u64::MAX, u64::MAX), (0, u64::MAX), (u64::MAX, 1)] {
        let e = read_chunk_plain(&file, 0, from, len, &mut |_| Ok(())).unwrap_err();
        assert_eq!(e.kind(), Kind::Damaged);
    }
    read_chunk_plain(&file, 0, u64::MAX, 0, &mut |_| panic!("nothing to show")).unwrap();
    let e = read_chunk_plain(&file, 1, 0, 1, &mut |_| Ok(())).unwrap_err();
    assert_eq!(e.kind(), Kind::Damaged);
    assert!(e.to_string().contains("not a gzip member"), "{e}");
    let e = log.read_plain(0, 10, &mut |_| Err(Error::new(Kind::Denied, "enough")));
    assert_eq!(e.unwrap_err().kind(), Kind::Denied);
}

/// What the log should hold: sealed chunks, and the open one.
#[derive(Clone, Default)]
struct Model {
    sealed: Vec<Vec<u8>>,
    open: Option<Vec<u8>>,
}

impl Model {
    fn check(&self, bytes: &[u8]) {
        let (sealed, torn) = chunks(bytes);
        assert!(sealed == self.sealed);
        let torn = torn.map(|(plain, ..)| plain);
        assert!(torn == self.open, "open chunk differs");
    }
}

#[test]
fn random_work_equals_the_model() {
    for seed in 1..30 {
        let mut mail = Mail(seed);
        let file = FaultFile::new();
        let mut log = open(&file);
        let mut model = Model::default();
        let mut points: Vec<(Checkpoint, Model)> = Vec::new();
        for _ in 0..60 {
            match (mail.next(9), &mut model.open) {
                (0, None) => {
                    log.begin(b"").unwrap();
                    model.open = Some(CHUNK_HEADER.to_vec());
                }
                (0, Some(plain)) => {
                    let sealed = log.seal().unwrap();
                    assert_eq!(sealed.plain_length, plain.len() as u64);
                    let bytes = file.after_power_loss(0);
                    let member = &bytes[sealed.offset as usize..];
                    assert_eq!(sealed.length, member.len() as u64);
                    assert_eq!(sealed.sha256, <[u8; 32]>::from(Sha256::digest(member)));
                    model.sealed.extend(model.open.take());
                    model.check(&bytes);
                }
                (1, _) => {
                    log.sync().unwrap();
                    model.check(&file.after_power_loss(0));
                }
                (2, _) => points.push((log.checkpoint().unwrap(), model.clone())),
                (3, _) if !points.is_empty() => {
                    let keep = mail.next(points.len() as u64) as usize;
                    points.truncate(keep + 1);
                    let (point, then) = &points[keep];
                    log.rewind(point).unwrap();
                    model = then.clone();
                    assert_eq!(log.file_len(), point.file_len());
                    assert_eq!(log.is_open(), model.open.is_some());
                    model.check(&file.after_kill());
                }
                (4, Some(plain)) => {
                    // Enough for the helper.
                    let piece = mail.any(600_000);
                    log.append(&piece).unwrap();
                    plain.extend(piece);
                }
                (_, Some(plain)) => {
                    let piece = mail.any(3000);
                    log.append(&piece).unwrap();
                    plain.extend(piece);
                    assert_eq!(log.plain_position(), plain.len() as u64);
                }
                (_, None) => {}
            }
        }
        log.sync().unwrap();
        model.check(&file.after_power_loss(0));
        log.flush().unwrap();
        drop(log);
    }
}

/// Works on `file` until something fails; returns the lengths of what was promised: sealed chunks and the plain
/// length of the open one.
fn work(file: &FaultFile, promised: &mut (usize, usize), plain: &mut Vec<Vec<u8>>) -> Result<()> {
    let mut mail = Mail(77);
    let mut log = open(file);
    for chunk in 0..4 {
        log.begin(b"")?;
        plain.push(CHUNK_HEADER.to_vec());
        for step in 0..4 {
            let piece = mail.any(if chunk == 2 { 300_000 } else { 2000 });
            plain[chunk].extend_from_slice(&piece);
            log.append(&piece)?;
            if step == 1 {
                let point = log.checkpoint()?;
                let bulk = if chunk == 1 { 200_000 } else { 100 };
                log.append(&mail.noise(bulk))?;
                log.flush()?;
                log.rewind(&point)?;
            }
            log.sync()?;
            *promised = (chunk, plain[chunk].len());
        }
        log.seal()?;
        *promised = (chunk + 1, 0);
    }
    Ok(())
}

#[test]
fn a_crash_at_any_operation_keeps_what_was_promised() {
    let file = FaultFile::new();
    work(&file, &mut (0, 0), &mut Vec::new()).unwrap();
    let total = file.operations();
    assert!(total > 40);
    for fault in [Fault::Freeze, Fault::Eio, Fault::NoSpace, Fault::SyncLies] {
        for at in 1..=total {
            let file = FaultFile::new();
            file.plan(at, fault);
            let mut promised = (0, 0);
            let mut plain = Vec::new();
            let done = work(&file, &mut promised, &mut plain);
            // A lying sync is the only one that may strike where nobody asks for a sync.
            assert!(done.is_err() || fault == Fault::SyncLies, "{fault:?} {at}");
            let mut disks = vec![file.after_kill()];
            disks.extend((0..6).map(|seed| file.after_power_loss(seed)));
            for disk in disks {
                let (sealed, torn) = chunks(&disk);
                let safe = if sealed.len() > promised.0 {
                    usize::MAX
                } else {
                    torn.as_ref().map_or(0, |(plain, ..)| plain.len())
                };
                assert!(sealed.len() >= promised.0, "{fault:?} {at}");
                assert!(safe >= promised.1, "{fault:?} {at}: {safe} {promised:?}");
                for (chunk, text) in sealed.iter().enumerate() {
                    assert!(*text == plain[chunk]);
                }
                if let Some((text, point, offset)) = torn {
                    let known = promised.1.min(text.len());
                    if sealed.len() == promised.0 {
                        assert!(text[..known] == plain[promised.0][..known]);
                    }
                    // The plan of the next start: cut, seal, go on.
                    let mut mended = disk[..(offset + point.compressed) as usize].to_vec();
                    mended.extend_from_slice(&seal_bytes(point.crc, point.plain));
                    assert!(chunks(&mended).1.is_none());
                    let mended = FaultFile::with(&mended);
                    let mut log = open(&mended);
                    log.begin(b"").unwrap();
                    log.seal().unwrap();
                    let (all, torn) = chunks(&mended.after_kill());
                    assert_eq!(all.len(), sealed.len() + 2);
                    assert!(torn.is_none());
                }
            }
        }
    }
}

#[test]
fn after_a_failed_append_a_rewind_mends() {
    for bulk in [10, 2_000_000] {
        let mut mail = Mail(5);
        let file = FaultFile::new();
        let mut log = open(&file);
        log.begin(b"").unwrap();
        log.append(b"1 APPLY SUB x\r\n").unwrap();
        let point = log.checkpoint().unwrap();
        assert_eq!(point.plain_len(), Some(44));
        file.plan(file.operations() + 1, Fault::NoSpace);
        let noise = mail.noise(bulk);
        let e = log.append(&noise).and_then(|()| log.flush()).unwrap_err();
        assert_eq!(e.kind(), Kind::NoSpace);
        let e = log.append(b"more").unwrap_err();
        assert_eq!(e.kind(), Kind::NoSpace);
        assert_eq!(log.seal().unwrap_err().kind(), Kind::NoSpace);
        assert_eq!(log.checkpoint().err().unwrap().kind(), Kind::NoSpace);
        log.rewind(&point).unwrap();
        assert_eq!(file.len().unwrap(), point.file_len());
        file.heal();
        log.append(b"2 APPLY SUB y\r\n").unwrap();
        log.seal().unwrap();
        let (all, torn) = chunks(&file.after_power_loss(0));
        assert!(torn.is_none());
        assert!(all[0].ends_with(b"1 APPLY SUB x\r\n2 APPLY SUB y\r\n"));
    }
}

#[test]
fn a_failed_sync_poisons_for_good() {
    let file = FaultFile::new();
    let mut log = open(&file);
    log.begin(b"").unwrap();
    let point = log.checkpoint().unwrap();
    log.append(b"1 APPLY SUB x\r\n").unwrap();
    file.plan(file.operations() + 2, Fault::SyncLies);
    assert_eq!(log.sync().unwrap_err().kind(), Kind::Io);
    let asked = file.operations();
    assert_eq!(log.sync().unwrap_err().kind(), Kind::Io);
    assert_eq!(log.append(b"x").unwrap_err().kind(), Kind::Io);
    assert_eq!(file.operations(), asked, "the file is not touched again");
    // What the kernel may have dropped is not left for the next who opens the file.
    assert_eq!(log.rewind(&point).unwrap_err().kind(), Kind::Io);
    assert_eq!(file.len().unwrap(), point.file_len());
    assert_eq!(log.begin(b"").unwrap_err().kind(), Kind::Io);
}

#[test]
fn a_failed_rewind_poisons_for_good() {
    let file = FaultFile::new();
    let mut log = open(&file);
    log.begin(b"").unwrap();
    let point = log.checkpoint().unwrap();
    file.plan(file.operations() + 1, Fault::Eio);
    assert_eq!(log.rewind(&point).unwrap_err().kind(), Kind::Io);
    assert_eq!(log.rewind(&point).unwrap_err().kind(), Kind::Io);
    assert_eq!(log.begin(b"").unwrap_err().kind(), Kind::Io);

    // A file that somebody cut is not stretched with zeros.
    let file = FaultFile::new();
    let mut log = open(&file);
    log.begin(b"").unwrap();
    let point = log.checkpoint().unwrap();
    file.set_len(3).unwrap();
    assert_eq!(log.rewind(&point).unwrap_err().kind(), Kind::Damaged);
    assert_eq!(log.flush().unwrap_err().kind(), Kind::Damaged);
}

#[test]
fn buffers_stay_bounded_whatever_streams_in() {
    let file = FaultFile::new();
    let mut mail = Mail(8);
    let noise = mail.noise(1 << 20);
    let mut log = open(&file);
    log.begin(b"").unwrap();
    let mut largest = 0;
    for _ in 0..48 {
        log.append(&noise).unwrap();
        largest = largest.max(log.buffer.capacity());
    }
    assert_eq!(largest, BUFFER);
    assert!(
        file.largest_write() < 2 * BUFFER,
        "{}",
        file.largest_write()
    );
    log.seal().unwrap();
    let bytes = file.after_kill();
    let mut total = 0;
    read_chunk_plain(&file, 0, 29, 48 << 20, &mut |plain| {
        assert!(plain.len() <= 160 * 1024);
        total += plain.len();
        Ok(())
    })
    .unwrap();
    assert_eq!(total, 48 << 20);
    assert!(bytes.len() < total + total / 500);
}

#[test]
fn dropping_leaves_no_thread_and_does_not_hang() {
    let mut mail = Mail(9);
    let text = mail.text(1 << 20);
    for _ in 0..20 {
        let file = FaultFile::new();
        let shared: Arc<dyn LogFile> = Arc::new(file.clone());
        let mut log = Log::new(Arc::clone(&shared), 0, 6);
        log.begin(b"").unwrap();
        log.append(&text).unwrap();
        drop(log);
        // The thread held a handle of the file.
        assert_eq!(Arc::strong_count(&shared), 1);
    }
}
