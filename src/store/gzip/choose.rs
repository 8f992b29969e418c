//! Which kind of block a piece of plain text deserves.
//!
//! Searching for repeated strings pays on text and on little else: base64 has 6 bits of surprise in every
//! byte and repeats nothing, and what is compressed already does not shrink at all. Those two are most of
//! the bytes of most mail, so they are told from text by a cheap look: a sampled histogram first, and
//! only if that looks flat the whole histogram and a count of repeated 4-byte strings.

/// How a piece is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// Repeated strings and Huffman codes: text.
    Strings,
    /// Huffman codes only: base64 of what was compressed.
    Codes,
    /// As it is.
    Stored,
}

/// Below this many bits per byte in the sample a piece is text.
const FLAT_BITS: f32 = 5.6;
/// From this many bits per byte on codes gain less than they cost.
const STORED_BITS: f32 = 7.85;
/// Pieces shorter than this are not worth a change of encoding.
pub(super) const PIECE_MIN: usize = 4 * 1024;

const SAMPLES: usize = 4;
const SAMPLE: usize = 256;
const TABLE_BITS: u32 = 12;
/// Stored pieces are searched for repeats once in so many.
const LOOK_EVERY: u32 = 8;

/// Chooses; remembers which strings it saw lately (16 KiB).
pub(super) struct Chooser {
    seen: Vec<u32>,
    unsearched: u32,
}

impl Chooser {
    pub(super) fn new() -> Chooser {
        Chooser {
            seen: Vec::new(),
            unsearched: 0,
        }
    }

    /// The encoding for `piece`. Adds its histogram to `counts` if the answer is [`Encoding::Codes`].
    pub(super) fn choose(&mut self, piece: &[u8], counts: &mut [u32; 256]) -> Encoding {
        if piece.len() < PIECE_MIN {
            return Encoding::Strings;
        }
        let mut sample = [0; 256];
        for at in 0..SAMPLES {
            let start = (piece.len() - SAMPLE) / (SAMPLES - 1) * at;
            count(&piece[start..start + SAMPLE], &mut sample);
        }
        if bits_per_byte(&sample) < FLAT_BITS {
            self.unsearched = 0;
            return Encoding::Strings;
        }
        let mut all = [0; 256];
        count(piece, &mut all);
        let bits = bits_per_byte(&all);
        if bits >= STORED_BITS {
            self.unsearched = self.unsearched.saturating_sub(1);
            if self.unsearched > 0 {
                return Encoding::Stored;
            }
            if self.repeats(piece) {
                return Encoding::Strings;
            }
            self.unsearched = LOOK_EVERY;
            return Encoding::Stored;
        }
        self.unsearched = 0;
        if self.repeats(piece) {
            return Encoding::Strings;
        }
        for (sum, n) in counts.iter_mut().zip(&all) {
            *sum += n;
        }
        Encoding::Codes
    }

    /// True if over 2 % of the 4-byte strings were seen lately.
    fn repeats(&mut self, piece: &[u8]) -> bool {
        self.seen.resize(1 << TABLE_BITS, 0);
        let mut hits = 0;
        for string in piece.windows(4) {
            let value = u32::from_le_bytes([string[0], string[1], string[2], string[3]]);
            let slot = (value.wrapping_mul(0x9e37_79b1) >> (32 - TABLE_BITS)) as usize;
            hits += usize::from(self.seen[slot] == value);
            self.seen[slot] = value;
        }
        hits > piece.len() / 50
    }
}

/// Adds the bytes of `piece` to `counts`.
fn count(piece: &[u8], counts: &mut [u32; 256]) {
    // Four tables, because equal neighbours in one would wait for each other.
    let mut tables = [[0u32; 256]; 4];
    let [a, b, c, d] = &mut tables;
    let quads = piece.chunks_exact(4);
    for &byte in quads.remainder() {
        counts[usize::from(byte)] += 1;
    }
    for quad in quads {
        a[usize::from(quad[0])] += 1;
        b[usize::from(quad[1])] += 1;
        c[usize::from(quad[2])] += 1;
        d[usize::from(quad[3])] += 1;
    }
    for (at, sum) in counts.iter_mut().enumerate() {
        *sum += tables.iter().map(|t| t[at]).sum::<u32>();
    }
}

/// The entropy of a histogram.
fn bits_per_byte(counts: &[u32; 256]) -> f32 {
    let total: u32 = counts.iter().sum();
    if total == 0 {
        return 0.0;
    }
    let used = counts.iter().filter(|&&n| n > 0).map(|&n| n as f32);
    let weighted: f32 = used.map(|n| n * n.log2()).sum();
    (total as f32).log2() - weighted / total as f32
}
