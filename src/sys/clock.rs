//! Local time, and the time that goes on whatever the clock says.

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

/// A name of this start of the machine, and the seconds since then, also those in which it slept.
/// `None` where the kernel does not say.
pub fn uptime() -> Option<(String, i64)> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let boot = boot.trim();
    let is_name = !boot.is_empty() && boot.bytes().all(|b| b.is_ascii_graphic());
    let mut since = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: the place is valid for the call, which fills it in unless it fails.
    if !is_name || unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, since.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: filled in.
    let since = unsafe { since.assume_init() };
    Some((boot.to_owned(), since.tv_sec))
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
    fn the_machine_is_up() {
        let (boot, secs) = uptime().unwrap();
        let again = uptime().unwrap();
        assert!(again.0 == boot && again.1 >= secs && secs > 0 && !boot.contains(' '));
    }

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
