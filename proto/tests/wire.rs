//! The wire as a reviewer sees it: a golden text of every message, field, number and method, so that a change of the
//! contract is a readable diff. Remake it with `TRELLIS_BLESS=1 cargo test --workspace --test wire`.

#![allow(clippy::unwrap_used)] // a test may panic

use std::fmt::Write as _;

use prost::Message;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet, field_descriptor_proto::Label};

fn text() -> String {
    let set = FileDescriptorSet::decode(trellis_proto::DESCRIPTOR_SET).unwrap();
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
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/trellis.v1.txt");
    let now = text();
    if std::env::var_os("TRELLIS_BLESS").is_some() {
        std::fs::write(path, &now).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap_or_default();
    for (line, (a, b)) in golden.lines().zip(now.lines()).enumerate() {
        assert_eq!(a, b, "the contract changed at line {} of {path}", line + 1);
    }
    assert_eq!(golden.lines().count(), now.lines().count(), "the contract grew or shrank");
}
