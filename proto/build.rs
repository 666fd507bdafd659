//! Compiles the `.proto` files in pure Rust, so that no system `protoc` is needed.

use std::error::Error;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let mut files = Vec::new();
    for package in ["type", "agreement", "order"] {
        let folder = Path::new("csp").join(package).join("v1");
        for entry in std::fs::read_dir(&folder)? {
            files.push(entry?.path());
        }
    }
    files.sort();
    println!("cargo::rerun-if-changed=csp");
    println!("cargo::rerun-if-changed=buf");

    let mut compiler = protox::Compiler::new(["."])?;
    compiler.include_imports(true).include_source_info(true).open_files(&files)?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // These bytes keep the options of fields that are extensions, the constraints; the decoded set does not.
    std::fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    let mut descriptors = compiler.file_descriptor_set();
    descriptors.file.retain(|file| file.package() != "buf.validate");
    let messages = descriptors.file.iter_mut().flat_map(|file| &mut file.message_type);
    for field in messages.flat_map(|message| &mut message.field) {
        // Nothing is left of the constraints, but prost takes a list that has options for one that is not packed.
        field.options.take_if(|options| *options == Default::default());
    }
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
