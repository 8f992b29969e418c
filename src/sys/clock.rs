//! Local time, for the log.

use std::mem::MaybeUninit;

/// Month (1 to 12), day, hour, minute and second here at a time in seconds since 1970; `None` for
/// years no calendar has.
pub fn local(secs: i64) -> Option<[u32; 5]> {
    let mut tm = MaybeUninit::<libc::tm>::uninit();
    let secs: libc::time_t = secs;
    // SAFETY: both places are valid for the call, which fills in `tm` unless it returns null.
    if unsafe { libc::localtime_r(&secs, tm.as_mut_ptr()) }.is_null() {
        return None;
    }
    // SAFETY: filled in.
    let tm = unsafe { tm.assume_init() };
    let field = |n: i32| u32::try_from(n).ok();
    Some([
        field(tm.tm_mon + 1)?,
        field(tm.tm_mday)?,
        field(tm.tm_hour)?,
        field(tm.tm_min)?,
        field(tm.tm_sec)?,
    ])
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
    }
}
