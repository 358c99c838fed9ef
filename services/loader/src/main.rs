//! The `loader` binary: `serve` and `healthcheck`.

use std::path::PathBuf;
use std::process::ExitCode;

use vela_loader::{HealthTls, LoaderError, LoaderReport, ServeArgs, ServeConfig, check_health, serve};
use vela_runtime::clap::{self, Parser, Subcommand};
use vela_runtime::{CommandError, Outcome, Period, Shutdown, run_command};

#[derive(Parser)]
#[command(name = "loader", version, about = "Serves micro-batches of a shard set over gRPC.")]
struct Cli {
    /// Print one JSON object as the last line of stdout.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a shard set until stopped.
    #[command(after_help = "Examples:\n  \
        loader serve --shards /data/sa1b-shards\n  \
        loader serve --shards /data/sa1b-shards --listen 0.0.0.0:50051 --allow-remote-plaintext")]
    Serve(ServeArgs),
    /// Exit 0 if a loader answers and serves, 1 otherwise.
    #[command(after_help = "Examples:\n  \
        loader healthcheck --address 127.0.0.1:50051 --timeout 2s\n  \
        loader healthcheck --address localhost:50051 --authority ca.pem")]
    Healthcheck {
        /// Where the loader listens: `host:port` or a url.
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:50051")]
        address: String,
        /// How long it has to answer.
        #[arg(long, value_name = "PERIOD", default_value = "2s")]
        timeout: Period,
        /// Ask encrypted, of a server with a certificate of these authorities, a PEM file.
        #[arg(long, value_name = "FILE")]
        authority: Option<PathBuf>,
        /// Our certificate for a server that asks for one, a PEM file.
        #[arg(long, value_name = "FILE", requires_all = ["tls_key", "authority"])]
        tls_cert: Option<PathBuf>,
        /// The certificate's private key, a PEM file.
        #[arg(long, value_name = "FILE", requires = "tls_cert")]
        tls_key: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let Cli { json, command } = Cli::parse();
    run_command(json, |shutdown| {
        let runtime = tokio::runtime::Runtime::new()?;
        let outcome = match command {
            Command::Serve(args) => runtime.block_on(run_serve(args, shutdown)),
            Command::Healthcheck { address, timeout, authority, tls_cert, tls_key } => {
                let tls = authority.map(|authority| HealthTls { authority, identity: tls_cert.zip(tls_key) });
                runtime.block_on(run_healthcheck(&address, timeout, tls.as_ref()))
            }
        };
        // A read that a store keeps waiting, or a plan that nobody asks for any more, does not hold up the end.
        runtime.shutdown_background();
        outcome
    })
}

async fn run_serve(args: ServeArgs, shutdown: &Shutdown) -> Result<Outcome, CommandError> {
    let config = ServeConfig::try_from(args).map_err(to_command_error)?;
    let running = serve(config, shutdown.clone()).await.map_err(to_command_error)?;
    let report = running.join().await.map_err(to_command_error)?;
    let LoaderReport { address, consumers, batches, bytes, seconds, .. } = &report;
    let human = format!("{address}: {batches} batches ({bytes} bytes) to {consumers} consumers in {seconds:.0} s");
    Ok(Outcome::done(&report, human)?)
}

async fn run_healthcheck(address: &str, timeout: Period, tls: Option<&HealthTls>) -> Result<Outcome, CommandError> {
    check_health(address, timeout.0, tls).await.map_err(to_command_error)?;
    let json = serde_json::json!({ "address": address, "status": "SERVING" });
    Ok(Outcome::done(&json, format!("{address}: serving"))?)
}

fn to_command_error(error: LoaderError) -> CommandError {
    match error.is_usage() {
        true => CommandError::usage(error),
        false => CommandError::failure(error),
    }
}
