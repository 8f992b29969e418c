//! The bytes of a tar archive: POSIX ustar headers, with pax headers where they are needed (long
//! names, names beyond ASCII, sizes over 8 GiB, times before 1970). Pure.

/// Everything comes in blocks of so many bytes.
pub const BLOCK: usize = 512;

/// What the first entry says.
pub const MARK: &str = "comment=cyr_backup export 1";

/// Eleven octal digits.
const MAX_OCTAL: u64 = 0o777_7777_7777;

/// The header of one entry, with a pax header before it if it needs one.
pub fn header(path: &str, size: u64, mtime: i64) -> Vec<u8> {
    let mut pax = String::new();
    if path.len() > 100 || !path.is_ascii() {
        record("path", path, &mut pax);
    }
    if size > MAX_OCTAL {
        record("size", &size.to_string(), &mut pax);
    }
    let time = u64::try_from(mtime).ok().filter(|&t| t <= MAX_OCTAL);
    if time.is_none() {
        record("mtime", &mtime.to_string(), &mut pax);
    }
    let mut out = Vec::new();
    if !pax.is_empty() {
        pax_header(b'x', &pax, &mut out);
    }
    let size = if size > MAX_OCTAL { 0 } else { size };
    block(path, b'0', size, time.unwrap_or(0), &mut out);
    out
}

/// The entry that an archive of ours begins with.
pub fn mark() -> Vec<u8> {
    let (key, value) = MARK.split_once('=').unwrap_or_default();
    let mut pax = String::new();
    record(key, value, &mut pax);
    let mut out = Vec::new();
    pax_header(b'g', &pax, &mut out);
    out
}

/// A pax record: its own length in decimal comes first.
fn record(key: &str, value: &str, out: &mut String) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.push_str(&format!("{length} {key}={value}\n"));
}

fn pax_header(kind: u8, pax: &str, out: &mut Vec<u8>) {
    block("././@PaxHeader", kind, pax.len() as u64, 0, out);
    out.extend_from_slice(pax.as_bytes());
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(BLOCK), 0);
}

/// | bytes | what |
/// |---|---|
/// | 0-99 | name |
/// | 100-123 | mode, uid, gid |
/// | 124-147 | size, mtime, octal |
/// | 148-155 | checksum of the block with blanks here |
/// | 156 | kind |
/// | 257-264 | `ustar` NUL `00` |
fn block(path: &str, kind: u8, size: u64, mtime: u64, out: &mut Vec<u8>) {
    let mut b = [0u8; BLOCK];
    // Readers that know no pax get the beginning, in ASCII.
    let name = path.bytes().map(|c| if c.is_ascii() { c } else { b'_' });
    for (to, from) in b[..100].iter_mut().zip(name) {
        *to = from;
    }
    b[100..108].copy_from_slice(b"0000600\0");
    b[108..116].copy_from_slice(b"0000000\0");
    b[116..124].copy_from_slice(b"0000000\0");
    b[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    b[136..148].copy_from_slice(format!("{mtime:011o}\0").as_bytes());
    b[148..156].fill(b' ');
    b[156] = kind;
    b[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = b.iter().map(|&c| u32::from(c)).sum();
    b[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    out.extend_from_slice(&b);
}

/// A header block that was read.
#[derive(Debug, PartialEq, Eq)]
pub enum Block {
    /// Nothing but zeros: the end.
    End,
    /// Kind, name, size.
    Entry(u8, String, u64),
}

/// Reads a header block; `None` if it is none.
pub fn parse(b: &[u8; BLOCK]) -> Option<Block> {
    if b.iter().all(|&c| c == 0) {
        return Some(Block::End);
    }
    let octal = |field: &[u8]| {
        let text = std::str::from_utf8(field).ok()?;
        u64::from_str_radix(text.trim_matches(['\0', ' ']), 8).ok()
    };
    let sum: u32 = b.iter().map(|&c| u32::from(c)).sum();
    let blanks: u32 = b[148..156].iter().map(|&c| u32::from(c)).sum();
    if octal(&b[148..156])? != u64::from(sum - blanks + 8 * u32::from(b' ')) {
        return None;
    }
    let name: Vec<u8> = b[..100].iter().copied().take_while(|&c| c != 0).collect();
    let name = String::from_utf8_lossy(&name).into_owned();
    Some(Block::Entry(b[156], name, octal(&b[124..136])?))
}

/// Path and size in pax records.
pub fn pax(text: &[u8]) -> (Option<String>, Option<u64>) {
    let (mut path, mut size) = (None, None);
    let text = String::from_utf8_lossy(text);
    for line in text.split('\n') {
        let Some((key, value)) = line.split_once(' ').and_then(|(_, r)| r.split_once('=')) else {
            continue;
        };
        match key {
            "path" => path = Some(value.to_owned()),
            "size" => size = value.parse().ok(),
            _ => {}
        }
    }
    (path, size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_read_back() {
        let long = "ä/".repeat(90) + "x";
        for (path, size, mtime, blocks) in [
            ("a/b.eml", 0, 0, 1),
            ("a/b.eml", MAX_OCTAL, 1_795_439_789, 1),
            ("a/b.eml", MAX_OCTAL + 1, 1, 3),
            ("a/b.eml", 5, -1, 3),
            (&long, 5, 1, 3),
        ] {
            let bytes = header(path, size, mtime);
            assert_eq!(bytes.len(), blocks * BLOCK, "{path}");
            let last: &[u8; BLOCK] = bytes[(blocks - 1) * BLOCK..].try_into().unwrap();
            let Some(Block::Entry(b'0', name, n)) = parse(last) else {
                panic!("{path}");
            };
            let (p, s) = match blocks {
                1 => (None, None),
                _ => pax(&bytes[BLOCK..2 * BLOCK]),
            };
            assert_eq!(p.unwrap_or(name), path);
            assert_eq!(s.unwrap_or(n), size);
        }
        let mut bad: [u8; BLOCK] = header("a", 1, 1).try_into().unwrap();
        bad[0] = b'b';
        assert_eq!(parse(&bad), None);
        assert_eq!(parse(&[0; BLOCK]), Some(Block::End));
    }

    #[test]
    fn a_pax_record_counts_itself() {
        for n in [1, 90, 91, 92, 93, 990, 991] {
            let mut out = String::new();
            record("path", &"x".repeat(n), &mut out);
            let length: usize = out.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(length, out.len());
        }
    }
}
