//! How much of the machine the process wants.

/// Steps back for others: work in the background. Of the calling thread, and of those it starts
/// from then on. That it cannot is no matter.
pub fn lower() {
    // SAFETY: takes numbers only; 0 is the caller.
    unsafe {
        if libc::getpriority(libc::PRIO_PROCESS, 0) < BACKGROUND {
            libc::setpriority(libc::PRIO_PROCESS, 0, BACKGROUND);
        }
    }
}

/// A nice value.
const BACKGROUND: i32 = 10;

#[cfg(test)]
mod tests {
    #[test]
    fn lower_is_allowed_to_everybody() {
        super::lower();
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap_or_default();
        let nice = stat.rsplit(')').next().and_then(|s| s.split(' ').nth(17));
        let nice = nice.map(|n| n.parse::<i32>().unwrap());
        assert!(nice.is_none_or(|n| n >= 10), "{nice:?}");
    }
}
