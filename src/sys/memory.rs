//! How the C library keeps memory that was freed, and that SQLite does not count its own.

/// Keeps little of what is freed: large buffers go back to the system at once, and threads share
/// two pools instead of having one each. A server that idles most of its time is small then. Does
/// nothing where the C library is not the GNU one. For the start, before there are threads.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    for (what, value) in [
        (libc::M_ARENA_MAX, 2),
        // Setting them keeps the library from raising them by what it sees.
        (libc::M_MMAP_THRESHOLD, 96 * 1024),
        (libc::M_TRIM_THRESHOLD, 256 * 1024),
    ] {
        // SAFETY: takes two numbers. A refusal changes nothing, which is harmless.
        unsafe { libc::mallopt(what, value) };
    }
}

/// SQLite keeps no sums of the memory it has, for which it takes a lock of the whole process at each
/// allocation. For the start, before it is used.
pub fn count_no_sqlite() {
    // SAFETY: the option takes one number. A refusal changes nothing, which is harmless.
    unsafe { rusqlite::ffi::sqlite3_config(rusqlite::ffi::SQLITE_CONFIG_MEMSTATUS, 0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_still_works_afterwards() {
        give_back();
        let threads: Vec<_> = (0..4u8)
            .map(|n| {
                std::thread::spawn(move || {
                    vec![n; 300_000].iter().map(|&b| u64::from(b)).sum::<u64>()
                })
            })
            .collect();
        let sums: Vec<u64> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        assert_eq!(sums, [0, 300_000, 600_000, 900_000]);
    }
}
