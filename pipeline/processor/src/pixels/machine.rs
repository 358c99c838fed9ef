//! Which of the instructions that not every machine has this one can run.

#[cfg(test)]
thread_local! {
    /// Lets a test run what machines without VNNI run.
    pub(super) static WITHOUT_VNNI: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// AVX-512 VNNI on vectors of 256 bits: products of pairs are added to a sum at once.
pub(super) fn has_vnni() -> bool {
    #[cfg(test)]
    if WITHOUT_VNNI.get() {
        return false;
    }
    is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("avx512vnni")
}
