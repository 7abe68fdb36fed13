//! Compiles the protobuf files with protox, a compiler in Rust: no `protoc` is needed on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "proto/plexus/v1/link.proto",
        "proto/plexus/v1/work.proto",
        "proto/plexus/v1/local.proto",
        "proto/plexus/v1/enrol.proto",
        "proto/plexus/v1/forward.proto",
    ];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    let secret = ["PrivateBlock", "PrivateFile", "RegistryAuth"].map(|name| format!(".plexus.v1.{name}"));
    tonic_prost_build::configure()
        .skip_debug(secret)
        .bytes(".plexus.v1")
        .btree_map(".")
        .compile_fds(descriptors)?;
    Ok(())
}
