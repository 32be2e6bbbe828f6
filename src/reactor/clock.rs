//! The event loop's clock: the one that Python's time.monotonic() reads.

/// Seconds since an unspecified moment.
pub fn now() -> f64 {
    #[cfg(target_vendor = "apple")]
    const CLOCK: libc::clockid_t = libc::CLOCK_UPTIME_RAW;
    #[cfg(not(target_vendor = "apple"))]
    const CLOCK: libc::clockid_t = libc::CLOCK_MONOTONIC;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` outlives the call, which cannot fail with a clock that exists.
    unsafe { libc::clock_gettime(CLOCK, &mut time) };
    // By way of whole nanoseconds, as Python computes it: the same instant is the same float.
    #[allow(clippy::unnecessary_cast, reason = "the fields have other types on other platforms")]
    let nanoseconds = time.tv_sec as i64 * 1_000_000_000 + time.tv_nsec as i64;
    nanoseconds as f64 / 1e9
}

/// What the processor counts, which takes half as long to read as the time and does not keep other instructions waiting:
/// a hint of how much time has passed, with an unknown unit. Always 0 where there is no such thing.
#[inline(always)]
pub fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every processor of this architecture has the instruction.
    unsafe {
        core::arch::x86_64::_rdtsc()
    }
    #[cfg(not(target_arch = "x86_64"))]
    0
}

#[cfg(test)]
mod tests {
    #[test]
    fn goes_forward() {
        let before = super::now();
        std::thread::sleep(std::time::Duration::from_millis(2));
        let passed = super::now() - before;
        assert!((0.002..1.0).contains(&passed));
    }
}
