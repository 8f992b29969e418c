//! How much of the machine the process wants.

/// Steps back for others: work in the background. That it cannot is no matter.
pub fn lower() {
    // SAFETY: takes numbers only; 0 is the calling process.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) };
}

#[cfg(test)]
mod tests {
    #[test]
    fn lower_is_allowed_to_everybody() {
        super::lower();
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let nice = stat.rsplit(')').next().and_then(|s| s.split(' ').nth(17));
        assert!(nice.is_none_or(|n| n == "10"), "{nice:?}");
    }
}
