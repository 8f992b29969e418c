//! Unix time: seconds as a type, milliseconds for true time, and text forms.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub i64);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The clock's time in milliseconds since 1970. The only function here that is not pure.
pub fn now_ms() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(d) => i64::try_from(d.as_millis()).unwrap_or(i64::MAX),
        Err(_) => 0,
    }
}

/// The clock's time in seconds.
pub fn now() -> Timestamp {
    Timestamp(now_ms() / 1000)
}

/// `2026-11-23T15:04:05Z` for a time in UTC.
pub fn iso(t: Timestamp) -> String {
    let (y, mo, d, h, mi, s) = civil(t);
    format!("{y:04}-{mo:02}-{d:02}T{h:02}:{mi:02}:{s:02}Z")
}

/// Splits a time into year, month, day, hour, minute, second, in UTC.
pub fn civil(t: Timestamp) -> (i64, u32, u32, u32, u32, u32) {
    let days = t.0.div_euclid(86400);
    let secs = t.0.rem_euclid(86400) as u32;
    // Days since 0000-03-01, in eras of 400 years.
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = (doy - (153 * mp + 2) / 5 + 1) as u32;
    let month = if mp < 10 { mp + 3 } else { mp - 9 } as u32;
    let year = yoe + era * 400 + i64::from(month <= 2);
    (year, month, day, secs / 3600, secs / 60 % 60, secs % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_days() {
        assert_eq!(iso(Timestamp(0)), "1970-01-01T00:00:00Z");
        assert_eq!(iso(Timestamp(951_782_400)), "2000-02-29T00:00:00Z");
        assert_eq!(iso(Timestamp(1_795_438_719)), "2026-11-23T12:58:39Z");
        assert_eq!(iso(Timestamp(-1)), "1969-12-31T23:59:59Z");
    }
}
