//! Writing one member.

use super::choose::{Chooser, Encoding, PIECE_MIN};
use super::huffman::Bits;
use super::{MAGIC, seal_bytes};
use miniz_oxide::deflate::core::{
    CompressorOxide, TDEFLFlush, compress_to_output, create_comp_flags_from_zip_params,
};

/// How much is looked at before an encoding is chosen.
const PIECE: usize = 16 * 1024;
/// How much one set of codes is used for.
const CODES_MAX: usize = 64 * 1024;
/// Bit of the header's flags: extra bytes follow.
const FEXTRA: u8 = 4;

/// Makes the bytes of one member, appending them to buffers of the caller.
///
/// Text goes through miniz_oxide, base64 and compressed data through blocks of our own; the change costs a
/// few bytes and the dictionary. Everything written is in the buffers only after [`MemberWriter::flush`].
/// Holds about 350 KiB once text was written.
pub struct MemberWriter {
    level: u8,
    /// Made when first needed.
    strings: Option<Box<CompressorOxide>>,
    /// `strings` holds bytes that are not in a buffer yet.
    strings_open: bool,
    /// The stream went on without `strings`: its dictionary must not be used.
    strings_stale: bool,
    bits: Bits,
    chooser: Chooser,
    crc: crc32fast::Hasher,
    plain_len: u64,
    /// Something was written since the last flush.
    unflushed: bool,
}

impl MemberWriter {
    /// Starts a member: appends its header to `out`. `level` is 0 (store) to 9; `extra` are subfields as RFC
    /// 1952 2.3.1.1 has them, left out if empty or longer than 65535 bytes.
    pub fn new(level: u8, extra: &[u8], out: &mut Vec<u8>) -> MemberWriter {
        let extra_len = u16::try_from(extra.len()).unwrap_or(0);
        out.extend_from_slice(&MAGIC);
        out.push(if extra_len > 0 { FEXTRA } else { 0 });
        out.extend_from_slice(&[0, 0, 0, 0, 0, 3]);
        if extra_len > 0 {
            out.extend_from_slice(&extra_len.to_le_bytes());
            out.extend_from_slice(extra);
        }
        MemberWriter::resume(level, 0, 0)
    }

    /// Goes on inside a member that was cut back to a flush point, with an empty dictionary.
    pub fn resume(level: u8, plain_len: u64, crc: u32) -> MemberWriter {
        MemberWriter {
            level,
            strings: None,
            strings_open: false,
            strings_stale: false,
            bits: Bits::default(),
            chooser: Chooser::new(level),
            crc: crc32fast::Hasher::new_with_initial_len(crc, plain_len),
            plain_len,
            unflushed: false,
        }
    }

    /// Takes plain bytes; appends what is compressed already.
    pub fn write(&mut self, plain: &[u8], out: &mut Vec<u8>) {
        if plain.is_empty() {
            return;
        }
        self.crc.update(plain);
        self.plain_len += plain.len() as u64;
        self.unflushed = true;
        let mut rest = plain;
        // A run of pieces that will share one set of codes, and its histogram.
        let (mut run, mut counts) = (0, [0; 256]);
        while rest.len() > run {
            let next = &rest[run..];
            // The last piece is not left too small to be judged.
            let len = if next.len() < PIECE + PIECE_MIN {
                next.len()
            } else {
                PIECE
            };
            let encoding = match self.level {
                0 => Encoding::Stored,
                _ => self.chooser.choose(&next[..len], &mut counts),
            };
            if encoding == Encoding::Codes {
                run += len;
                if run < CODES_MAX && run < rest.len() {
                    continue;
                }
            }
            let (before, after) = rest.split_at(run);
            if !before.is_empty() {
                self.leave_strings(out);
                self.bits.literals(before, &counts, out);
                counts = [0; 256];
                run = 0;
            }
            rest = after;
            if encoding != Encoding::Codes {
                let (piece, after) = rest.split_at(len);
                rest = after;
                if encoding == Encoding::Stored {
                    self.leave_strings(out);
                    self.bits.stored(piece, out);
                } else {
                    self.write_strings(piece, out);
                }
            }
        }
    }

    /// Appends everything written so far, up to a byte boundary after `00 00 FF FF`. Appends nothing when
    /// nothing was written since the last flush.
    pub fn flush(&mut self, out: &mut Vec<u8>) {
        if !self.unflushed {
            return;
        }
        self.unflushed = false;
        if self.strings_open {
            self.flush_strings(out);
        } else {
            self.bits.align(out);
        }
    }

    /// Completes the member.
    pub fn finish(mut self, out: &mut Vec<u8>) {
        self.flush(out);
        out.extend_from_slice(&seal_bytes(self.crc(), self.plain_len));
    }

    /// Plain bytes written so far.
    pub fn plain_len(&self) -> u64 {
        self.plain_len
    }

    /// The CRC-32 of the plain bytes written so far.
    pub fn crc(&self) -> u32 {
        self.crc.clone().finalize()
    }

    fn write_strings(&mut self, plain: &[u8], out: &mut Vec<u8>) {
        if !self.bits.is_aligned() {
            self.bits.align(out);
        }
        let level = i32::from(self.level.min(9));
        let strings = self.strings.get_or_insert_with(|| {
            // Raw deflate: no window bits; the default strategy.
            Box::new(CompressorOxide::new(create_comp_flags_from_zip_params(
                level, 0, 0,
            )))
        });
        if self.strings_stale {
            strings.reset();
            self.strings_stale = false;
        }
        self.strings_open = true;
        compress(strings, plain, TDEFLFlush::None, out);
    }

    fn flush_strings(&mut self, out: &mut Vec<u8>) {
        if let Some(strings) = &mut self.strings {
            compress(strings, &[], TDEFLFlush::Sync, out);
        }
        self.strings_open = false;
    }

    /// Gets ready for a block of our own.
    fn leave_strings(&mut self, out: &mut Vec<u8>) {
        if self.strings_open {
            self.flush_strings(out);
        }
        self.strings_stale = true;
    }
}

fn compress(to: &mut CompressorOxide, plain: &[u8], flush: TDEFLFlush, out: &mut Vec<u8>) {
    // The sink takes everything, so one call takes all the input.
    let (_, taken) = compress_to_output(to, plain, flush, |bytes| {
        out.extend_from_slice(bytes);
        true
    });
    debug_assert_eq!(taken, plain.len());
}
