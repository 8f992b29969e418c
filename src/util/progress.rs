//! Progress of long work: one line on standard error, if that is a terminal; else nothing at all.
//!
//! Shows the share done, the rate and the time left, a few times a second; the line is wiped at the
//! end. [`Progress::at`] may be called by any thread, as often as it likes. Nothing here fails.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const EVERY_MS: u64 = 250;
/// Before this nothing is shown: short work needs none.
const FIRST_MS: u64 = 1000;

/// Work that is being watched.
#[derive(Debug)]
pub struct Progress {
    what: String,
    total: u64,
    start: Instant,
    done: AtomicU64,
    /// Milliseconds after the start at which the next line is due; `u64::MAX`: never.
    due: AtomicU64,
}

impl Progress {
    /// Work of `total` bytes, called `what`.
    pub fn new(what: &str, total: u64) -> Progress {
        let shown = std::io::stderr().is_terminal() && total > 0;
        Progress {
            what: what.to_owned(),
            total,
            start: Instant::now(),
            done: AtomicU64::new(0),
            due: AtomicU64::new(if shown { FIRST_MS } else { u64::MAX }),
        }
    }

    /// So many bytes are done now; less than before counts for nothing.
    pub fn at(&self, done: u64) {
        let done = self.done.fetch_max(done, Ordering::Relaxed).max(done);
        let due = self.due.load(Ordering::Relaxed);
        if due == u64::MAX {
            return;
        }
        let elapsed = self.start.elapsed();
        let now = elapsed.as_millis() as u64;
        let next = now + EVERY_MS;
        let mine = |to| {
            let order = Ordering::Relaxed;
            self.due.compare_exchange(due, to, order, order).is_ok()
        };
        if now >= due && mine(next) {
            let text = line(&self.what, done, self.total, elapsed);
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K{text}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        let due = self.due.load(Ordering::Relaxed);
        if due != u64::MAX && due != FIRST_MS {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
        }
    }
}

fn line(what: &str, done: u64, total: u64, elapsed: Duration) -> String {
    let done = done.min(total);
    let percent = done.saturating_mul(100).checked_div(total).unwrap_or(100);
    let rate = done as f64 / elapsed.as_secs_f64().max(0.001);
    let left = match rate > 0.0 {
        true => clock(((total - done) as f64 / rate).ceil() as u64),
        false => "?".into(),
    };
    format!("{what}: {percent}%, {:.1} MB/s, {left} left", rate / 1e6)
}

fn clock(secs: u64) -> String {
    match secs {
        0..=3599 => format!("{}:{:02}", secs / 60, secs % 60),
        _ => format!("{}:{:02}:{:02}", secs / 3600, secs / 60 % 60, secs % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_share_rate_and_time() {
        let ten = Duration::from_secs(10);
        assert_eq!(
            line("a", 25_000_000, 100_000_000, ten),
            "a: 25%, 2.5 MB/s, 0:30 left"
        );
        assert_eq!(line("a", 0, 100, ten), "a: 0%, 0.0 MB/s, ? left");
        assert_eq!(
            line("a", 500, 100, Duration::ZERO),
            "a: 100%, 0.1 MB/s, 0:00 left"
        );
        assert_eq!(line("a", 1, 0, ten), "a: 100%, 0.0 MB/s, ? left");
        assert_eq!(clock(3599), "59:59");
        assert_eq!(clock(7325), "2:02:05");
    }

    #[test]
    fn going_back_counts_for_nothing() {
        let progress = Progress::new("a", 10);
        progress.at(7);
        progress.at(3);
        assert_eq!(progress.done.load(Ordering::Relaxed), 7);
    }
}
