//! Recipe to trained checkpoint: data, step, optimizer, schedule, checkpoints, metrics. The trainer binary.
