//! Compiles the contract without protoc, and keeps its descriptor set for reflection and the golden test.
use prost::Message;

const PROTOS: [&str; 5] = [
    "trellis/v1/error.proto",
    "trellis/v1/series.proto",
    "trellis/v1/publish.proto",
    "trellis/v1/shard.proto",
    "trellis/v1/head.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("trellis.v1.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Bodies are shared buffers of the message they arrived in, not copies.
        .bytes(".trellis.v1")
        .compile_fds(descriptors)?;
    Ok(())
}
