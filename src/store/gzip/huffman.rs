//! Deflate blocks of our own (RFC 1951): stored ones, and ones of literals only.
//!
//! A block of literals starts with the lengths of its codes, packed with a fixed set of codes for lengths
//! (14 of 4 bits and 4 of 5 bits: 0 to 15, and 17 and 18 for runs of zeros), and names two distance
//! codes that are never used, because some decoders want a complete set.

/// The longest code we make: four of them and 7 waiting bits fit into 64.
const CODE_MAX: u8 = 14;
const END_OF_BLOCK: usize = 256;
/// A stored block's length has 16 bits.
const STORED_MAX: usize = 65535;
/// The order in which a block lists the lengths of its codes for lengths.
const LENGTH_ORDER: [usize; 19] = [
    16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15,
];

/// Bits that wait for their byte to be full, lowest first.
#[derive(Default)]
pub(super) struct Bits {
    bits: u64,
    count: u32,
}

impl Bits {
    /// Appends `count` (at most 48) bits.
    fn put(&mut self, bits: u64, count: u32, out: &mut Vec<u8>) {
        self.bits |= bits << self.count;
        self.count += count;
        while self.count >= 8 {
            out.push(self.bits as u8);
            self.bits >>= 8;
            self.count -= 8;
        }
    }

    /// Appends an empty stored block, after which the stream is byte-aligned.
    pub(super) fn align(&mut self, out: &mut Vec<u8>) {
        self.stored_block(&[], out);
    }

    /// True if no bits wait.
    pub(super) fn is_aligned(&self) -> bool {
        self.count == 0
    }

    /// Appends `data` in stored blocks.
    pub(super) fn stored(&mut self, data: &[u8], out: &mut Vec<u8>) {
        for block in data.chunks(STORED_MAX) {
            self.stored_block(block, out);
        }
    }

    fn stored_block(&mut self, data: &[u8], out: &mut Vec<u8>) {
        self.put(0, 3, out);
        if self.count > 0 {
            self.put(0, 8 - self.count, out);
        }
        let len = data.len() as u16;
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&(!len).to_le_bytes());
        out.extend_from_slice(data);
    }

    /// Appends `data` as one block of literals; `counts` is its histogram.
    pub(super) fn literals(&mut self, data: &[u8], counts: &[u32; 256], out: &mut Vec<u8>) {
        let lengths = code_lengths(counts);
        let codes = codes_of(&lengths);
        self.put(0b100, 3, out);
        self.lengths(&lengths, out);
        self.codes(data, &codes, out);
        let end = codes[END_OF_BLOCK];
        self.put(u64::from(end & 0xffff), end >> 16, out);
    }

    fn lengths(&mut self, lengths: &[u8; 257], out: &mut Vec<u8>) {
        let own = std::array::from_fn(|symbol| match symbol {
            16 => 0,
            13..=15 | 17 => 5,
            _ => 4,
        });
        let code: [u32; 19] = codes_of(&own);
        // HLIT: 257 codes; HDIST: 2 codes; HCLEN: all 19 lengths of codes for lengths.
        self.put(1 << 5 | 15 << 10, 14, out);
        for symbol in LENGTH_ORDER {
            self.put(u64::from(own[symbol]), 3, out);
        }
        let mut put = |symbol: u8, extra: u64, bits: u32| {
            let code = code[usize::from(symbol)];
            self.put(u64::from(code & 0xffff), code >> 16, out);
            self.put(extra, bits, out);
        };
        let mut rest: &[u8] = lengths;
        while let Some(&length) = rest.first() {
            let zeros = rest.iter().take(138).take_while(|&&n| n == 0).count();
            match zeros {
                0..=2 => put(length, 0, 0),
                3..=10 => put(17, zeros as u64 - 3, 3),
                _ => put(18, zeros as u64 - 11, 7),
            }
            rest = &rest[if zeros < 3 { 1 } else { zeros }..];
        }
        put(1, 0, 0);
        put(1, 0, 0);
    }

    /// Appends the codes of `data`, four to a write.
    fn codes(&mut self, data: &[u8], codes: &[u32; 257], out: &mut Vec<u8>) {
        let mut at = out.len();
        out.resize(at + data.len() * usize::from(CODE_MAX) / 8 + 16, 0);
        let (mut bits, mut count) = (self.bits, self.count);
        let mut write = |bits: &mut u64, count: &mut u32| {
            out[at..at + 8].copy_from_slice(&bits.to_le_bytes());
            at += (*count / 8) as usize;
            *bits >>= *count & !7;
            *count &= 7;
        };
        let quads = data.chunks_exact(4);
        let last = quads.remainder();
        for quad in quads {
            for &byte in quad {
                let code = codes[usize::from(byte)];
                bits |= u64::from(code & 0xffff) << count;
                count += code >> 16;
            }
            write(&mut bits, &mut count);
        }
        for &byte in last {
            let code = codes[usize::from(byte)];
            bits |= u64::from(code & 0xffff) << count;
            count += code >> 16;
        }
        write(&mut bits, &mut count);
        out.truncate(at);
        (self.bits, self.count) = (bits, count);
    }
}

/// The length of each literal's code and of the end's; 0 for bytes that do not occur.
fn code_lengths(counts: &[u32; 256]) -> [u8; 257] {
    let mut weights: Vec<(u64, usize)> = counts
        .iter()
        .enumerate()
        .filter(|(_, n)| **n > 0)
        .map(|(symbol, n)| (u64::from(*n), symbol))
        .collect();
    weights.push((1, END_OF_BLOCK));
    loop {
        weights.sort_unstable();
        let depths = tree_depths(&weights);
        if depths.iter().all(|d| *d <= CODE_MAX) {
            let mut lengths = [0; 257];
            for ((_, symbol), depth) in weights.iter().zip(depths) {
                lengths[*symbol] = depth;
            }
            return lengths;
        }
        // Flatter weights make a flatter tree; in the end all are 1 and it has 9 levels at most.
        for (weight, _) in &mut weights {
            *weight = weight.div_ceil(4);
        }
    }
}

/// The depths of the leaves of a Huffman tree over weights in ascending order, at least 1.
fn tree_depths(weights: &[(u64, usize)]) -> Vec<u8> {
    let leaves = weights.len();
    if leaves < 2 {
        return vec![1; leaves];
    }
    // Nodes in the order they are made: leaves first, then joints, each heavier than the one before.
    let mut weight: Vec<u64> = weights.iter().map(|(w, _)| *w).collect();
    let mut parent = vec![0; 2 * leaves - 1];
    let (mut leaf, mut joint) = (0, leaves);
    while weight.len() < 2 * leaves - 1 {
        let mut sum = 0;
        for _ in 0..2 {
            let leaf_next =
                leaf < leaves && (joint >= weight.len() || weight[leaf] <= weight[joint]);
            let node = if leaf_next { &mut leaf } else { &mut joint };
            sum += weight[*node];
            parent[*node] = weight.len();
            *node += 1;
        }
        weight.push(sum);
    }
    let mut depth = vec![0u8; 2 * leaves - 1];
    for node in (0..2 * leaves - 2).rev() {
        depth[node] = depth[parent[node]].saturating_add(1);
    }
    depth.truncate(leaves);
    depth
}

/// The canonical codes for `lengths`: the code, first bit lowest, in the low half, its length in the high.
fn codes_of<const N: usize>(lengths: &[u8; N]) -> [u32; N] {
    let mut next = [0u32; 17];
    for &length in lengths.iter().filter(|l| **l > 0) {
        next[usize::from(length) + 1] += 1;
    }
    for length in 1..next.len() {
        next[length] = (next[length] + next[length - 1]) << 1;
    }
    std::array::from_fn(|symbol| {
        let length = u32::from(lengths[symbol]);
        if length == 0 {
            return 0;
        }
        let code = next[length as usize];
        next[length as usize] += 1;
        code.reverse_bits() >> (32 - length) | length << 16
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(data: &[u8], before: u32) -> Vec<u8> {
        let mut counts = [0; 256];
        for &byte in data {
            counts[usize::from(byte)] += 1;
        }
        let mut out = Vec::new();
        let mut bits = Bits::default();
        // Empty blocks of fixed codes, to begin at any bit.
        for _ in 0..before {
            bits.put(0b010, 10, &mut out);
        }
        bits.literals(data, &counts, &mut out);
        bits.align(&mut out);
        bits.stored(data, &mut out);
        out.extend_from_slice(&[3, 0]);
        out
    }

    fn check(data: &[u8]) {
        for before in 0..8 {
            let plain = miniz_oxide::inflate::decompress_to_vec(&block(data, before)).unwrap();
            assert!(plain == [data, data].concat());
        }
    }

    #[test]
    fn blocks_of_every_shape_come_back() {
        check(b"");
        check(b"x");
        check(b"xy");
        check(&[0; 1000]);
        check(&[255; 1003]);
        let all: Vec<u8> = (0..=255).collect();
        check(&all);
        check(&all.repeat(300));
        for gap in [2, 3, 4, 10, 11, 12, 100, 138] {
            let sparse: Vec<u8> = all.iter().copied().step_by(gap).collect();
            check(&sparse.repeat(3));
        }
    }

    #[test]
    fn codes_are_complete_and_never_too_long() {
        let mut fibonacci = [0; 256];
        let (mut a, mut b) = (1u32, 1u32);
        for count in fibonacci.iter_mut().take(40) {
            *count = a;
            (a, b) = (b, a + b);
        }
        let mut one = [0; 256];
        one[7] = u32::MAX;
        for counts in [fibonacci, one, [1; 256], [u32::MAX / 256; 256]] {
            let lengths = code_lengths(&counts);
            let used = lengths.iter().filter(|l| **l > 0);
            let kraft: f64 = used.map(|l| 0.5f64.powi(i32::from(*l))).sum();
            assert!((kraft - 1.0).abs() < 1e-9);
            assert!(lengths.iter().all(|l| *l <= CODE_MAX));
        }
        // The unlimited tree would have 40 levels: all lengths up to the limit occur.
        let mut data = Vec::new();
        for (byte, count) in fibonacci.iter().enumerate().take(24) {
            data.extend(vec![byte as u8; *count as usize]);
        }
        check(&data);
    }
}
