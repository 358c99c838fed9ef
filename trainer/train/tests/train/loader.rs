//! Where batches come from changes no loss.

use std::net::TcpListener;

use vela_loader::{ServeConfig, serve};
use vela_runtime::Shutdown;
use vela_train::Resume;

use crate::fixture::{Stage, loss_bits};
use crate::resume::assert_kills_change_no_bit;

/// A loader over the stage's shards on a thread of its own; the address it serves on.
pub(crate) fn start_loader(stage: &Stage, shutdown: &Shutdown) -> (std::thread::JoinHandle<()>, String) {
    let config =
        ServeConfig::new(stage.path("shards").display().to_string(), "127.0.0.1:0".parse().expect("an address"));
    let (sender, receiver) = std::sync::mpsc::channel();
    let shutdown = shutdown.clone();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let loader = serve(config, shutdown).await.expect("serving");
            sender.send(loader.addr).expect("heard");
            loader.join().await.expect("an orderly end");
        });
    });
    (thread, format!("http://{}", receiver.recv().expect("an address")))
}

#[test]
fn a_run_over_the_loader_has_the_losses_of_a_run_in_process_also_when_it_changes_sides() {
    let stage = Stage::new("freeze_vision");
    stage.train(&["data.shuffle=true"], &Resume::Fresh).expect("in process");
    let shutdown = Shutdown::new();
    let (thread, address) = start_loader(&stage, &shutdown);
    stage.use_loader(&address);
    let output = format!("run.output={}", stage.path("remote").display());
    stage.train(&["data.shuffle=true", &output], &Resume::Fresh).expect("over the loader");
    assert_eq!(loss_bits(&stage.metrics("remote")), loss_bits(&stage.metrics("run")));
    let first = stage.path("run").join("checkpoints/step-15");
    let output = format!("run.output={}", stage.path("changed").display());
    stage.train(&["data.shuffle=true", &output], &Resume::From(first)).expect("over the loader from in process");
    assert_eq!(loss_bits(&stage.metrics("changed")), loss_bits(&stage.metrics("run")[15..]));
    shutdown.request();
    thread.join().expect("the loader ended");
}

#[test]
fn kills_of_a_trainer_that_reads_from_a_loader_change_no_bit() {
    let stage = Stage::new("freeze_vision_and_llm");
    let shutdown = Shutdown::new();
    let (thread, address) = start_loader(&stage, &shutdown);
    stage.use_loader(&address);
    assert_kills_change_no_bit(&stage);
    shutdown.request();
    thread.join().expect("the loader ended");
}

#[test]
fn a_loader_that_is_not_there_is_named() {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let stage = Stage::new("freeze_vision_and_llm");
    stage.use_loader(&format!("http://{free}"));
    let output = stage.command(&[], &[]).output().expect("run");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains(&free.to_string()) && told.contains("loader serve"), "{told}");
}
