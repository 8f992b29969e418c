//! The log on a real file, against gzip; and how fast it is (ignored: `cargo test --release --test rs
//! log:: -- --ignored --nocapture`).

use cyr_backup::store::file::LogFile;
use cyr_backup::store::gzip::{CHUNK_HEADER, MemberReader, MemberWriter};
use cyr_backup::store::log::{Log, read_chunk_plain};
use miniz_oxide::deflate::core::{
    CompressorOxide, TDEFLFlush, compress_to_output, create_comp_flags_from_zip_params,
};
use std::fs::File;
use std::hint::black_box;
use std::io::BufRead;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

/// A file of its own that goes away at the end of the test.
struct Temp(PathBuf);

impl Temp {
    fn create(name: &str) -> (Temp, Arc<dyn LogFile>) {
        let name = format!("cyrlog-{}-{name}.gz", std::process::id());
        let path = std::env::temp_dir().join(name);
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true);
        let file = file.open(&path).unwrap();
        (Temp(path), Arc::new(file))
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn random(state: &mut u64) -> usize {
    *state = state
        .wrapping_mul(6364136223846793005)
        .wrapping_add(1442695040888963407);
    (*state >> 33) as usize
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 1;
    (0..len).map(|_| random(&mut state) as u8).collect()
}

fn base64(len: usize) -> Vec<u8> {
    let set = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut state = 2;
    (0..len)
        .map(|at| match at % 78 {
            76 => b'\r',
            77 => b'\n',
            _ => set[random(&mut state) % 64],
        })
        .collect()
}

/// Words of a small language, the common ones most often; or the file named by LOG_BENCH_TEXT, repeated.
fn text(len: usize) -> Vec<u8> {
    if let Some(path) = std::env::var_os("LOG_BENCH_TEXT") {
        let sample = std::fs::read(path).unwrap();
        return sample.iter().copied().cycle().take(len).collect();
    }
    let mut state = 3;
    let words: Vec<Vec<u8>> = (0..4000)
        .map(|_| {
            let len = 2 + random(&mut state) % 8;
            (0..len)
                .map(|_| b'a' + (random(&mut state) % 26 * (random(&mut state) % 26) / 26) as u8)
                .collect()
        })
        .collect();
    let mut text = Vec::new();
    while text.len() < len {
        let rank = random(&mut state) % 4000 * (random(&mut state) % 4000) / 4000;
        text.extend_from_slice(&words[rank * rank / 4000]);
        text.extend_from_slice(if random(&mut state) % 12 == 0 {
            b"\r\n"
        } else {
            b" "
        });
    }
    text.truncate(len);
    text
}

#[test]
fn gzip_reads_the_file_at_every_durable_point() {
    let (temp, file) = Temp::create("durable");
    let mut log = Log::new(Arc::clone(&file), 0, 1);
    let mut all = Vec::new();
    for round in 0..3 {
        log.begin(if round == 1 { b"XX\x02\x00hi" } else { b"" })
            .unwrap();
        all.extend_from_slice(CHUNK_HEADER);
        for piece in [text(1000), base64(400_000), noise(300_000), text(90_000)] {
            log.append(&piece).unwrap();
            all.extend_from_slice(&piece);
            log.sync().unwrap();
            // Not sealed yet: gzip complains about the end, but shows everything before it.
            let shown = Command::new("gzip").arg("-dc").arg(&temp.0).output();
            assert!(shown.unwrap().stdout == all);
        }
        let sealed = log.seal().unwrap();
        let checked = Command::new("gzip").arg("-t").arg(&temp.0).output();
        assert!(checked.unwrap().status.success());
        assert_eq!(file.len().unwrap(), sealed.offset + sealed.length);
        let mut body = Vec::new();
        read_chunk_plain(&*file, sealed.offset, 1029, 400_000, &mut |plain| {
            body.extend_from_slice(plain);
            Ok(())
        })
        .unwrap();
        assert!(body == base64(400_000));
    }
}

/// Nanoseconds this thread was on a processor.
fn processor_time() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse().unwrap()
}

/// The best of five, by the clock or by this thread's processor time.
fn megabytes_per_second(
    clock: bool,
    bytes: usize,
    mut work: impl FnMut() -> usize,
) -> (f64, usize) {
    let mut best = f64::MAX;
    let mut made = 0;
    for _ in 0..5 {
        let (start, time) = (Instant::now(), processor_time());
        made = work();
        let spent = if clock {
            start.elapsed().as_secs_f64()
        } else {
            (processor_time() - time) as f64 / 1e9
        };
        // Processor time is counted in ticks.
        best = best.min(spent.max(0.001));
    }
    (bytes as f64 / 1e6 / best, made)
}

#[test]
#[ignore = "a measurement"]
fn how_fast() {
    const SIZE: usize = 32 << 20;
    let mixed: Vec<u8> = [text(8 << 20), base64(16 << 20), noise(8 << 20)]
        .map(|part| {
            part.chunks(256 << 10)
                .map(<[u8]>::to_vec)
                .collect::<Vec<_>>()
        })
        .concat()
        .concat();
    let sorts = [
        ("text", text(SIZE)),
        ("base64", base64(SIZE)),
        ("noise", noise(SIZE)),
        ("mixed", mixed),
    ];
    for (name, plain) in &sorts {
        for level in [1, 6] {
            let (plainly, size) = megabytes_per_second(false, SIZE, || {
                let flags = create_comp_flags_from_zip_params(level, 0, 0);
                let mut to = CompressorOxide::new(flags);
                let mut made = 0;
                for piece in plain.chunks(128 << 10) {
                    compress_to_output(&mut to, piece, TDEFLFlush::None, |out| {
                        made += out.len();
                        true
                    });
                    black_box(crc32fast::hash(piece));
                }
                made
            });
            let mut member = Vec::new();
            let (ours, made) = megabytes_per_second(false, SIZE, || {
                member.clear();
                let mut writer = MemberWriter::new(level as u8, b"", &mut member);
                let mut out = Vec::new();
                for piece in plain.chunks(128 << 10) {
                    out.clear();
                    writer.write(piece, &mut out);
                    member.extend_from_slice(&out);
                }
                writer.finish(&mut member);
                member.len()
            });
            let (read, _) = megabytes_per_second(false, SIZE, || {
                let mut reader = MemberReader::new(&member[..]);
                let mut total = 0;
                loop {
                    let size = reader.fill_buf().unwrap().len();
                    if size == 0 {
                        break total;
                    }
                    total += size;
                    reader.consume(size);
                }
            });
            let (temp, file) = Temp::create("speed");
            let (logged, _) = megabytes_per_second(true, SIZE, || {
                file.set_len(0).unwrap();
                let mut log = Log::new(Arc::clone(&file), 0, level as u8);
                log.begin(b"").unwrap();
                for piece in plain.chunks(16 << 10) {
                    log.append(piece).unwrap();
                }
                log.flush().unwrap() as usize
            });
            drop(temp);
            println!(
                "{name:7} level {level}: miniz {plainly:5.0} MB/s {:5.1} %, writer {ours:5.0} MB/s \
                 {:5.1} %, log {logged:5.0} MB/s, reader {read:5.0} MB/s",
                100.0 * size as f64 / SIZE as f64,
                100.0 * made as f64 / SIZE as f64,
            );
        }
    }
}
