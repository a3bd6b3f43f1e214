//! What the program does without a call of AWS: it refuses, and it bears a reader that leaves.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Output},
};

use tempfile::TempDir;
use trellis_fleet::{desired::Desired, ledger::Ledger, plan::plan};

use crate::support::copy;

fn example() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("example"), folder.path());
    folder
}

/// Writes the ledger of what the example wants, as `change` makes it.
fn placed(folder: &Path, change: impl FnOnce(String) -> String) {
    let ledger = plan(&Desired::read(folder).expect("the example"), &Ledger::default()).ledger;
    let path = folder.join("ledger.jsonl");
    ledger.write(&path).expect("a folder");
    let text = fs::read_to_string(&path).expect("a ledger");
    let changed = change(text.clone());
    assert_ne!(changed, text);
    fs::write(&path, changed).expect("a folder");
}

/// An endpoint that nobody serves: a call would fail.
fn fleet(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fleet"));
    command.arg("--dir").arg(folder).args(arguments).env_clear();
    command.env("AWS_ENDPOINT_URL", "http://127.0.0.1:9").env("AWS_EC2_METADATA_DISABLED", "true");
    command.env("AWS_ACCESS_KEY_ID", "ASIA9999999999990000").env("AWS_SECRET_ACCESS_KEY", "secret");
    command
}

fn said(output: Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_reader_that_leaves_is_no_failure_of_fleet() {
    let folder = example();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = fleet(folder.path(), &["plan"]).stdout(writer).output().expect("it starts");
    assert_eq!(said(output), (Some(0), String::new()));
}

#[test]
fn two_at_once_do_not_write_one_ledger() {
    let folder = example();
    let other = File::open(folder.path()).expect("a folder");
    other.try_lock().expect("nobody else has it");
    let (exit, told) = said(fleet(folder.path(), &["apply"]).output().expect("it starts"));
    assert_eq!(exit, Some(5), "{told}");
    assert!(told.contains("another fleet applies the files in"), "{told}");
}

#[test]
fn a_cluster_that_the_files_no_longer_name_is_not_forgotten() {
    let folder = example();
    placed(folder.path(), |text| text.replacen("\"cluster\":\"tulip\"", "\"cluster\":\"violet\"", 1));
    let (exit, told) = said(fleet(folder.path(), &["apply", "--yes"]).output().expect("it starts"));
    assert_eq!(exit, Some(3), "{told}");
    assert!(told.contains("still runs in the cluster violet of"), "{told}");
}

#[test]
fn a_unit_whose_file_is_older_than_its_deployment_is_refused() {
    let folder = example();
    placed(folder.path(), |text| text.replace("\"deployed_ns\":1795931", "\"deployed_ns\":1795932"));
    let (exit, told) = said(fleet(folder.path(), &["apply"]).output().expect("it starts"));
    assert_eq!(exit, Some(3), "{told}");
    assert!(told.contains("`deployed_ns` is older than"), "{told}");
}

#[test]
fn a_unit_from_the_future_is_refused() {
    let folder = example();
    let path = folder.path().join("units/risk.json");
    let text = fs::read_to_string(&path).expect("a unit");
    fs::write(&path, text.replace("1795931000000000000", "9000000000000000000")).expect("a folder");
    placed(folder.path(), |text| text.replace("9000000000000000000", "1795931000000000000"));
    let (exit, told) = said(fleet(folder.path(), &["apply"]).output().expect("it starts"));
    assert_eq!(exit, Some(3), "{told}");
    assert!(told.contains("`deployed_ns` is in the future"), "{told}");
}
