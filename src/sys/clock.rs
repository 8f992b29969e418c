//! Local time.

use std::mem::MaybeUninit;

/// Month (1 to 12), day, hour, minute and second here at a time in seconds since 1970; `None` for
/// years no calendar has.
pub fn local(secs: i64) -> Option<[u32; 5]> {
    let tm = tm(secs)?;
    let field = |n: i32| u32::try_from(n).ok();
    Some([
        field(tm.tm_mon + 1)?,
        field(tm.tm_mday)?,
        field(tm.tm_hour)?,
        field(tm.tm_min)?,
        field(tm.tm_sec)?,
    ])
}

/// Seconds that local time is ahead of UTC at a time in seconds since 1970; 0 for years no calendar
/// has. The zone is that of the process (`TZ`, or the system's).
pub fn ahead(secs: i64) -> i64 {
    tm(secs).map_or(0, |tm| tm.tm_gmtoff)
}

fn tm(secs: i64) -> Option<libc::tm> {
    let mut tm = MaybeUninit::<libc::tm>::uninit();
    let secs: libc::time_t = secs;
    // SAFETY: both places are valid for the call, which fills in `tm` unless it returns null.
    if unsafe { libc::localtime_r(&secs, tm.as_mut_ptr()) }.is_null() {
        return None;
    }
    // SAFETY: filled in.
    Some(unsafe { tm.assume_init() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_near_the_one_in_utc() {
        // Noon of 15 March 2021, UTC: no zone makes that another month.
        let [month, day, _, minute, second] = local(1_615_809_600).unwrap();
        assert_eq!((month, second), (3, 0));
        assert!((15..=16).contains(&day) && minute < 60);
        assert_eq!(local(i64::MAX), None);
        assert_eq!(ahead(i64::MAX), 0);
        assert!(ahead(1_615_809_600).abs() <= 14 * 3600);
    }
}
