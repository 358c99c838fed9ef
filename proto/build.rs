//! Compiles the proto files with `protox`, so that no `protoc` is needed.

use std::error::Error;
use std::path::Path;

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=vela");
    let descriptors = protox::compile(["vela/loader/v1/loader.proto"], ["."])?;
    let path = Path::new(&std::env::var("OUT_DIR")?).join("descriptors.bin");
    std::fs::write(path, descriptors.encode_to_vec())?;
    // Payload fields are reference-counted slices of the received message instead of copies of it. The server is written by hand, since
    // generated ones copy every payload into its message.
    tonic_prost_build::configure().bytes(".").build_server(false).compile_fds(descriptors)?;
    Ok(())
}
