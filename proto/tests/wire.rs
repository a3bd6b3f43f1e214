//! The wire as a reviewer sees it: a golden text of every message, field, number and method, so that a change of the
//! contract is a readable diff. And the files in `generated`, which are what the .proto files give.
//!
//! `TRELLIS_BLESS=1 cargo test --workspace --test wire` remakes both.

#![allow(clippy::unwrap_used)] // a test may panic

use std::{fmt::Write as _, path::Path};

use prost::Message;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet, field_descriptor_proto::Label};

const PROTOS: [&str; 5] = [
    "trellis/v1/error.proto",
    "trellis/v1/series.proto",
    "trellis/v1/publish.proto",
    "trellis/v1/shard.proto",
    "trellis/v1/head.proto",
];

/// The .proto files, compiled without protoc.
fn descriptors() -> FileDescriptorSet {
    protox::compile(PROTOS, [concat!(env!("CARGO_MANIFEST_DIR"), "/proto")]).unwrap()
}

/// Compares with the file in this crate, or writes it if the tests are to remake their golden files.
fn is_golden(file: &str, now: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if std::env::var_os("TRELLIS_BLESS").is_some() {
        std::fs::write(&path, now).unwrap();
    }
    let golden = std::fs::read(&path).unwrap_or_default();
    if golden == now {
        return;
    }
    let (golden, now) = (String::from_utf8_lossy(&golden), String::from_utf8_lossy(now));
    for (line, (old, new)) in golden.lines().zip(now.lines()).enumerate() {
        assert_eq!(old, new, "line {} of {file} is not what the .proto files give", line + 1);
    }
    panic!("{file} is not what the .proto files give: their lengths differ");
}

fn text(set: FileDescriptorSet) -> String {
    let mut out = String::new();
    for file in set.file {
        writeln!(out, "file {}", file.name()).unwrap();
        for service in &file.service {
            for method in &service.method {
                let stream = |on: bool| if on { "stream " } else { "" };
                writeln!(
                    out,
                    "  rpc {}/{} ({}{}) -> {}{}",
                    service.name(),
                    method.name(),
                    stream(method.client_streaming()),
                    method.input_type(),
                    stream(method.server_streaming()),
                    method.output_type()
                )
                .unwrap();
            }
        }
        file.message_type.iter().for_each(|m| message(&mut out, m));
        file.enum_type.iter().for_each(|e| enumeration(&mut out, e));
    }
    out
}

fn message(out: &mut String, message: &DescriptorProto) {
    writeln!(out, "  message {}", message.name()).unwrap();
    for field in &message.field {
        let kind = match field.type_name() {
            "" => format!("{:?}", field.r#type()).to_lowercase(),
            name => name.to_owned(),
        };
        let label = match (field.label(), field.proto3_optional()) {
            (Label::Repeated, _) => "repeated ",
            (_, true) => "optional ",
            _ => "",
        };
        let one_of = match field.oneof_index {
            Some(i) if !field.proto3_optional() => {
                format!(" oneof {}", message.oneof_decl[i as usize].name())
            }
            _ => String::new(),
        };
        writeln!(out, "    {} = {label}{kind} {}{one_of}", field.number(), field.name()).unwrap();
    }
}

fn enumeration(out: &mut String, of: &EnumDescriptorProto) {
    writeln!(out, "  enum {}", of.name()).unwrap();
    for value in &of.value {
        writeln!(out, "    {} = {}", value.number(), value.name()).unwrap();
    }
}

#[test]
fn the_contract_is_the_golden_one() {
    is_golden("tests/golden/trellis.v1.txt", text(descriptors()).as_bytes());
}

#[test]
fn the_generated_files_are_those_of_the_contract() {
    let out = tempfile::tempdir().unwrap();
    tonic_prost_build::configure()
        // Bodies are shared buffers of the message they arrived in, not copies.
        .bytes(".trellis.v1")
        .out_dir(&out)
        .compile_fds(descriptors())
        .unwrap();
    is_golden("generated/trellis.v1.rs", &std::fs::read(out.path().join("trellis.v1.rs")).unwrap());
    is_golden("generated/trellis.v1.bin", &descriptors().encode_to_vec());
}
