//! What processes take of the processor.

/// User and system time of the process `id`, or of `self`, so far, in seconds: Linux's `/proc` counts hundredths. `None` elsewhere, and of a
/// process that is gone.
pub fn cpu_seconds(id: &str) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name before may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |field: usize| fields.get(field)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / 100.0)
}
