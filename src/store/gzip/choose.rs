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
/// A sample of this many bits per byte is noise if the pieces before it were.
const NOISE_BITS: f32 = 7.6;
const TABLE_BITS: u32 = 14;
/// Fast levels look closely at one piece in so many, in a row of pieces that came out the same.
const LOOK_EVERY: u32 = 8;
/// Share of repeated strings from which on fast levels search for them: where one in 50 repeats, about
/// 1 % is lost by not searching.
const REPEATS_FAST: usize = 50;
/// The same for levels that want small files; chance makes one in 200 repeat in base64.
const REPEATS_SMALL: usize = 125;
/// The last fast level.
const FAST: u8 = 3;

/// Chooses; remembers which strings it saw lately (16 KiB).
pub(super) struct Chooser {
    fast: bool,
    seen: Vec<u32>,
    last: Encoding,
    /// Pieces that may pass for what the last ones were.
    trusted: u32,
}

impl Chooser {
    /// For compression at `level`.
    pub(super) fn new(level: u8) -> Chooser {
        Chooser {
            fast: level <= FAST,
            seen: Vec::new(),
            last: Encoding::Strings,
            trusted: 0,
        }
    }

    /// The encoding for `piece`. Adds its histogram to `counts` if the answer is [`Encoding::Codes`].
    pub(super) fn choose(&mut self, piece: &[u8], counts: &mut [u32; 256]) -> Encoding {
        let encoding = if piece.len() < PIECE_MIN {
            Encoding::Strings
        } else {
            self.look(piece, counts)
        };
        if encoding == self.last {
            self.trusted = self.trusted.saturating_sub(1);
        }
        if encoding != self.last || self.trusted == 0 {
            self.trusted = LOOK_EVERY;
        }
        self.last = encoding;
        encoding
    }

    fn look(&mut self, piece: &[u8], counts: &mut [u32; 256]) -> Encoding {
        let mut sample = [0; 256];
        for at in 0..SAMPLES {
            let start = (piece.len() - SAMPLE) / (SAMPLES - 1) * at;
            for &byte in &piece[start..start + SAMPLE] {
                sample[usize::from(byte)] += 1;
            }
        }
        let bits = bits_per_byte(&sample);
        let trust = |kind| self.fast && self.last == kind && self.trusted > 1;
        if bits < FLAT_BITS {
            return Encoding::Strings;
        }
        if bits >= NOISE_BITS && trust(Encoding::Stored) {
            return Encoding::Stored;
        }
        let mut all = [0; 256];
        count(piece, &mut all);
        let encoding = if bits_per_byte(&all) >= STORED_BITS {
            Encoding::Stored
        } else {
            Encoding::Codes
        };
        if !trust(encoding) && self.repeats(piece) {
            return Encoding::Strings;
        }
        if encoding == Encoding::Codes {
            for (sum, n) in counts.iter_mut().zip(&all) {
                *sum += n;
            }
        }
        encoding
    }

    /// True if enough of the 4-byte strings were seen lately.
    fn repeats(&mut self, piece: &[u8]) -> bool {
        self.seen.resize(1 << TABLE_BITS, 0);
        let mut hits = 0;
        for string in piece.windows(4) {
            let value = u32::from_le_bytes([string[0], string[1], string[2], string[3]]);
            let slot = (value.wrapping_mul(0x9e37_79b1) >> (32 - TABLE_BITS)) as usize;
            hits += usize::from(self.seen[slot] == value);
            self.seen[slot] = value;
        }
        hits > piece.len()
            / if self.fast {
                REPEATS_FAST
            } else {
                REPEATS_SMALL
            }
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
        for (table, &byte) in [&mut *a, b, c, d].into_iter().zip(quad) {
            let n = &mut table[usize::from(byte)];
            *n = n.wrapping_add(1);
        }
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

#[cfg(test)]
mod tests {
    use super::super::tests::Mail;
    use super::*;

    const LEN: usize = 16 * 1024;

    fn choices(level: u8, data: &[u8]) -> Vec<Encoding> {
        let mut chooser = Chooser::new(level);
        data.chunks(LEN)
            .map(|piece| {
                let mut counts = [0; 256];
                let choice = chooser.choose(piece, &mut counts);
                let codes = choice == Encoding::Codes;
                let counted = counts.iter().sum::<u32>() as usize;
                assert_eq!(counted, if codes { piece.len() } else { 0 });
                choice
            })
            .collect()
    }

    #[test]
    fn each_kind_is_told_from_the_others_at_once() {
        let mut mail = Mail(21);
        let kinds = [
            (mail.text(20 * LEN), Encoding::Strings),
            (mail.base64(20 * LEN), Encoding::Codes),
            (mail.noise(20 * LEN), Encoding::Stored),
            (mail.base64(20 * LEN), Encoding::Codes),
            (vec![0; 20 * LEN], Encoding::Strings),
        ];
        let mut all = Vec::new();
        for (data, kind) in &kinds {
            assert!(
                [1, 6]
                    .iter()
                    .all(|level| choices(*level, data) == [*kind; 20]),
                "{kind:?}"
            );
            all.extend_from_slice(data);
        }
        let want = kinds.iter().flat_map(|(_, kind)| vec![*kind; 20]);
        assert!(choices(1, &all).into_iter().eq(want.clone()));
        assert!(choices(6, &all).into_iter().eq(want));
    }

    #[test]
    fn repeats_are_found_among_what_looks_flat() {
        let mut mail = Mail(22);
        for period in [1000, 10_000, 30_000] {
            for unit in [mail.noise(period), mail.base64(period)] {
                let choices = choices(1, &unit.repeat(30 * LEN / period));
                let strings = choices.iter().filter(|c| **c == Encoding::Strings).count();
                assert!(strings > choices.len() / 2, "{period}: {strings}");
            }
        }
    }

    #[test]
    fn small_pieces_are_text() {
        let mut counts = [0; 256];
        for len in [0, 1, 3, PIECE_MIN - 1] {
            let piece = Mail(23).noise(len);
            assert_eq!(
                Chooser::new(1).choose(&piece, &mut counts),
                Encoding::Strings
            );
        }
        assert_eq!(count_of(&[]), [0; 256]);
        assert_eq!(bits_per_byte(&count_of(&[])), 0.0);
        assert_eq!(bits_per_byte(&count_of(b"aaaaa")), 0.0);
        assert!(bits_per_byte(&count_of(b"abcdabc")) > 1.9);
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(bits_per_byte(&count_of(&all)), 8.0);
    }

    fn count_of(data: &[u8]) -> [u32; 256] {
        let mut counts = [0; 256];
        count(data, &mut counts);
        counts
    }
}
