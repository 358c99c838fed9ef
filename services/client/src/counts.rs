//! What Prometheus learns of a client's streams, if the process has a recorder (`docs/protocol.md`, metrics).

use std::time::Duration;

/// How long the consumer waited for a batch.
pub(crate) fn count_stall(waited: Duration) {
    metrics::histogram!("vela_client_stall_seconds").record(waited);
}

/// A micro-batch that came whole from the loader at `url`.
pub(crate) fn count_batch(url: &str, num_bytes: usize) {
    metrics::counter!("vela_client_batches_total", "address" => url.to_owned()).increment(1);
    metrics::counter!("vela_client_bytes_total", "address" => url.to_owned()).increment(num_bytes as u64);
}

/// A stream asked for at the loader at `url`: the first, one after a seek, or another try.
pub(crate) fn count_try(url: &str) {
    metrics::counter!("vela_client_tries_total", "address" => url.to_owned()).increment(1);
}

/// A stream that the loader at `url` opened in the middle of things, after another was lost.
pub(crate) fn count_resume(url: &str) {
    metrics::counter!("vela_client_resumes_total", "address" => url.to_owned()).increment(1);
}
