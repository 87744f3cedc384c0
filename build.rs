//! Compiles the protos. `protox` is a protobuf compiler in Rust, so no `protoc` is needed on the machine.

use std::{env, fs, path::PathBuf};

const PROTOS: [&str; 5] = [
    "makima/v1/checkpoint.proto",
    "makima/v1/contract.proto",
    "makima/v1/daemon.proto",
    "makima/v1/key.proto",
    "makima/v1/task.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    // sqlx::migrate! embeds the migrations; without this line a new file would not be seen.
    println!("cargo:rerun-if-changed=migrations");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    // Server reflection serves the same descriptors.
    let out = PathBuf::from(env::var("OUT_DIR")?).join("makima.bin");
    fs::write(out, prost_bytes(&descriptors))?;
    tonic_prost_build::configure()
        .codec_path("crate::wire::codec::Codec")
        .bytes(".makima.v1.UploadChunksRequest.data")
        .bytes(".makima.v1.DownloadChunksResponse.data")
        .bytes(".makima.v1.StreamTaskOutputResponse.data")
        // A message is moved some ten times on its way, and is as large as the largest that it may be: most are a tenth of that.
        .boxed(".makima.v1.AttachRequest.kind.hello")
        .boxed(".makima.v1.AttachRequest.kind.message")
        .boxed(".makima.v1.DaemonCommand.kind.spawn_task")
        .boxed(".makima.v1.CreateTaskRequest.spec")
        .boxed(".makima.v1.CreateTaskResponse.task")
        .compile_fds(descriptors)?;
    Ok(())
}

fn prost_bytes(descriptors: &impl protox::prost::Message) -> Vec<u8> {
    descriptors.encode_to_vec()
}
