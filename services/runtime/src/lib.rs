//! What each binary does at start and stop: config, telemetry, progress, exit codes, shutdown.
