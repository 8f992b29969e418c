//! One line of the conversation, with a limit.
//!
//! Lines end in LF; a CR before it belongs to the ending. No more than the limit is ever kept in
//! memory, whatever the peer sends. The end of a line says how it came to its end, and only trouble
//! of the reader is an `io::Error`.

use std::io::{self, BufRead};

/// How a line ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineEnd {
    /// With LF or CR LF, which are not part of the line.
    Line,
    /// It has more bytes than the limit. The rest of it was not read, so the place in the stream
    /// is lost: answer and close.
    TooLong,
    /// The stream ended before its first byte.
    Eof,
    /// The stream ended inside it.
    EofInLine,
}

/// Reads a line of at most `limit` bytes, without its ending, to the end of `out`.
///
/// `out` must be empty for a new line. After an error of the reader, a timeout for instance, `out`
/// holds what came so far, and calling again with it goes on in the same line.
pub fn read_line(
    reader: &mut impl BufRead,
    limit: usize,
    out: &mut Vec<u8>,
) -> io::Result<LineEnd> {
    let limit = limit.min(isize::MAX as usize);
    loop {
        let bytes = match reader.fill_buf() {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        if bytes.is_empty() {
            return Ok(if out.is_empty() {
                LineEnd::Eof
            } else {
                LineEnd::EofInLine
            });
        }
        // One byte more than the limit is taken: it may be the CR of the ending.
        let room = (limit + 1).saturating_sub(out.len());
        if let Some(n) = bytes.iter().take(room + 1).position(|b| *b == b'\n') {
            out.extend_from_slice(&bytes[..n]);
            reader.consume(n + 1);
            if out.last() == Some(&b'\r') {
                out.pop();
            }
            if out.len() > limit {
                out.truncate(limit);
                return Ok(LineEnd::TooLong);
            }
            return Ok(LineEnd::Line);
        }
        let n = bytes.len().min(room);
        out.extend_from_slice(&bytes[..n]);
        reader.consume(n);
        if n == 0 || (out.len() > limit && out.last() != Some(&b'\r')) {
            out.truncate(limit);
            return Ok(LineEnd::TooLong);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufReader;

    fn lines(input: &[u8], limit: usize, buffer: usize) -> Vec<(Vec<u8>, LineEnd)> {
        let mut reader = BufReader::with_capacity(buffer, input);
        let mut all = Vec::new();
        loop {
            let mut out = Vec::new();
            let end = read_line(&mut reader, limit, &mut out).unwrap();
            assert!(out.len() <= limit);
            all.push((out, end));
            if end != LineEnd::Line {
                return all;
            }
        }
    }

    #[test]
    fn endings() {
        for buffer in 1..9 {
            assert_eq!(
                lines(b"NOOP\r\nEXIT\n\r\n\nA\rB\r\r\nrest", 100, buffer),
                [
                    (b"NOOP".to_vec(), LineEnd::Line),
                    (b"EXIT".to_vec(), LineEnd::Line),
                    (b"".to_vec(), LineEnd::Line),
                    (b"".to_vec(), LineEnd::Line),
                    (b"A\rB\r".to_vec(), LineEnd::Line),
                    (b"rest".to_vec(), LineEnd::EofInLine),
                ]
            );
            assert_eq!(lines(b"", 100, buffer), [(vec![], LineEnd::Eof)]);
        }
    }

    #[test]
    fn limit_is_exact_and_the_ending_does_not_count() {
        for buffer in 1..9 {
            for ok in [&b"1234\r\n"[..], b"1234\n", b"123\r\r\n"] {
                assert_eq!(lines(ok, 4, buffer)[0].1, LineEnd::Line);
            }
            for long in [
                &b"12345\r\n"[..],
                b"12345\n",
                b"12345",
                b"1234\r\r\n",
                b"1234\rx\n",
                b"1234567890",
            ] {
                assert_eq!(lines(long, 4, buffer)[0].1, LineEnd::TooLong);
            }
            assert_eq!(lines(b"x\n", 0, buffer)[0].1, LineEnd::TooLong);
            assert_eq!(lines(b"\r\n", 0, buffer)[0].1, LineEnd::Line);
        }
    }

    #[test]
    fn a_timeout_in_mid_line_loses_nothing() {
        struct Slow(Vec<Option<u8>>);
        impl io::Read for Slow {
            fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
                match self.0.pop() {
                    Some(Some(b)) => {
                        buf[0] = b;
                        Ok(1)
                    }
                    Some(None) => Err(io::ErrorKind::WouldBlock.into()),
                    None => Ok(0),
                }
            }
        }
        let input: Vec<_> = b"NOOP\r\n"
            .iter()
            .rev()
            .flat_map(|b| [Some(*b), None])
            .collect();
        let mut reader = BufReader::new(Slow(input));
        let mut out = Vec::new();
        let mut timeouts = 0;
        let end = loop {
            match read_line(&mut reader, 10, &mut out) {
                Ok(end) => break end,
                Err(_) => timeouts += 1,
            }
        };
        assert_eq!((&out[..], end, timeouts), (&b"NOOP"[..], LineEnd::Line, 6));
    }
}
