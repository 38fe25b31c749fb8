//! Generates the wire types from `proto/` without `protoc`: `protox` makes the descriptor set.

mod schema;

use std::error::Error;
use std::path::{Path, PathBuf};

use buffa_codegen::MapRepr;
use connectrpc_build::CodeGenConfig;
use prost::Message;

const FILES: [&str; 5] =
    ["vmm/v1/error.proto", "vmm/v1/guest.proto", "vmm/v1/operation.proto", "vmm/v1/system.proto", "vmm/v1/vm.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    // The package's own directory, now: a target directory may have been built from another checkout.
    let root = Path::new("../../proto").canonicalize()?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    println!("cargo:rerun-if-changed=../../proto");
    println!("cargo:rerun-if-changed=build");

    // With source info for the generated docs; without it for what ends up in the binary.
    let mut compiler = protox::Compiler::new([&root])?;
    compiler.include_imports(true).include_source_info(true).open_files(FILES)?;
    let mut set = compiler.file_descriptor_set();
    let documented = out.join("documented.bin");
    std::fs::write(&documented, set.encode_to_vec())?;
    for file in &mut set.file {
        file.source_code_info = None;
    }
    std::fs::write(out.join("descriptors.bin"), set.encode_to_vec())?;
    std::fs::write(out.join("schema.rs"), schema::generate(&compiler.descriptor_pool()))?;

    let mut messages = CodeGenConfig::default();
    messages.generate_json = true;
    // Maps in the order of their keys: the same message has one JSON form.
    messages.map_fields.push((".".to_owned(), MapRepr::BTreeMap));
    connectrpc_build::Config::new()
        .buffa_config(messages)
        .files(&FILES)
        .descriptor_set(documented)
        .emit_rerun_directives(false)
        .include_file("generated.rs")
        .compile()?;
    Ok(())
}
