//! The Python client, where Python has what it needs; and the descriptors that it carries.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::shards;

fn client() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../client/python")
}

#[test]
fn the_python_client_carries_the_contract_as_it_is() {
    let path = client().join("src/vela_client/descriptors.bin");
    if std::env::var_os("VELA_WRITE_DESCRIPTORS").is_some() {
        std::fs::write(&path, vela_proto::DESCRIPTORS).expect("written");
    }
    let carried = std::fs::read(&path).expect("the descriptors");
    assert!(
        carried == vela_proto::DESCRIPTORS,
        "run this test with VELA_WRITE_DESCRIPTORS=1 after a change of the proto files"
    );
}

#[test]
fn the_python_client_passes_its_tests() {
    let python = std::env::var("VELA_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has_grpc = Command::new(&python).args(["-c", "import grpc, numpy, google.protobuf"]).output();
    if !has_grpc.is_ok_and(|output| output.status.success()) {
        vela_tests::skip(
            "the_python_client_passes_its_tests",
            "`python3` (or $VELA_PYTHON) lacks grpcio, protobuf or numpy",
        );
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    shards::write(folder.path(), &shards::Plan::small());
    let output = Command::new(python)
        .args(["-m", "unittest", "discover", "-s"])
        .arg(client().join("tests"))
        .env("VELA_LOADER", env!("CARGO_BIN_EXE_loader"))
        .env("VELA_SHARDS", folder.path())
        .output()
        .expect("Python runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("\nOK"), "{told}");
}
