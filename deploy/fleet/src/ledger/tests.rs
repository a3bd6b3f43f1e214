use proptest::prelude::*;

use super::*;
use crate::{
    definition::family_of,
    desired::{Desired, tests::example},
    plan::plan,
};

fn example_ledger() -> Ledger {
    plan(&Desired::parse(&example()).unwrap(), &Ledger::default()).ledger
}

fn family(entry: &Entry) -> String {
    family_of("trellis", &entry.cluster, entry.role, &entry.size, &entry.definition)
}

/// The ledger as the services know it: they do not know when they were deployed.
fn undated(ledger: &Ledger) -> Ledger {
    let mut undated = Ledger::default();
    ledger.entries().for_each(|entry| undated.insert(Entry { deployed_ns: None, ..entry.clone() }));
    undated
}

/// What ECS tells of the services of a ledger.
fn observed(ledger: &Ledger) -> Vec<Observed> {
    let tell = |entry: &Entry| Observed {
        service: entry.service.clone(),
        place: entry.place.clone(),
        cluster: entry.cluster.clone(),
        family: family(entry),
        provider: Some(entry.size.provider.in_cluster(&entry.cluster)),
        tags: entry.tags("trellis"),
    };
    ledger.entries().map(tell).collect()
}

#[test]
fn the_file_is_read_back_as_it_was_written_and_has_a_line_for_each_service() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.jsonl");
    assert_eq!(Ledger::read(&path), Ok(None));
    let ledger = example_ledger();
    ledger.write(&path).unwrap();
    assert_eq!(Ledger::read(&path), Ok(Some(ledger.clone())));
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), ledger.len());
    assert!(text.lines().map(|line| line.split(',').next().unwrap()).is_sorted(), "in order of names");
    Ledger::default().write(&path).unwrap();
    assert!(Ledger::read(&path).unwrap().unwrap().is_empty());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
}

/// A `fleet` that dies while it writes leaves its half beside the file.
#[test]
fn half_a_file_beside_it_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.jsonl");
    let ledger = example_ledger();
    ledger.write(&path).unwrap();
    fs::write(path.with_extension("new"), "{\"service\":\"tre").unwrap();
    assert_eq!(Ledger::read(&path), Ok(Some(ledger.clone())));
    ledger.write(&path).unwrap();
    assert_eq!(Ledger::read(&path), Ok(Some(ledger)));
}

#[test]
fn a_damaged_line_is_named() {
    let text = {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.jsonl");
        example_ledger().write(&path).unwrap();
        fs::read_to_string(&path).unwrap()
    };
    let lines: Vec<_> = text.lines().collect();
    let cut = format!("{}\n{}", lines[0], &lines[1][..20]);
    assert!(Ledger::parse(&cut).unwrap_err().starts_with("line 2: "));
    let twice = format!("{}\n{}", lines[0], lines[0]);
    assert!(Ledger::parse(&twice).unwrap_err().contains("is there twice"));
    let unknown = lines[0].replacen('{', "{\"luck\":1,", 1);
    assert!(Ledger::parse(&unknown).unwrap_err().contains("luck"));
}

#[test]
fn the_tags_of_the_services_make_the_same_ledger() {
    let ledger = example_ledger();
    let mut told = observed(&ledger);
    told.reverse();
    assert_eq!(Ledger::from_tags("trellis", told), (undated(&ledger), vec![]));
    let desired = Desired::parse(&example()).unwrap();
    assert_eq!(plan(&desired, &undated(&ledger)).changes, [], "a ledger that was lost changes nothing");
    let (other, _) = Ledger::from_tags("another", observed(&ledger));
    assert!(other.is_empty(), "services of another grid do not count");
}

#[test]
fn services_that_cannot_be_understood_are_told_and_left_alone() {
    let ledger = example_ledger();
    let mut told = observed(&ledger);
    told[0].family = "somebody-elses".to_owned();
    let mut twin = told[1].clone();
    twin.cluster = "zinnia".to_owned();
    told.push(twin);
    let (made, problems) = Ledger::from_tags("trellis", told);
    assert_eq!(made.len(), ledger.len() - 1);
    assert!(problems[0].contains("somebody-elses") && problems[1].contains("zinnia"), "{problems:?}");
}

proptest! {
    #[test]
    fn tags_say_everything_of_an_entry(
        cpu: u32, memory: u32, gpu: u32, arm: bool, provider in 0_usize..5,
        zone in prop::option::of("[a-z]{2}-[a-z]{4}-[0-9][abc]"), role in 0_usize..4,
    ) {
        let provider = [Provider::Fargate, Provider::FargateSpot, Provider::General, Provider::Memory, Provider::Gpu][provider];
        let entry = Entry {
            service: "trellis-unit-a".to_owned(),
            role: [Role::Collector, Role::Shard, Role::Head, Role::Unit][role],
            place: Place { account: "111111111111".to_owned(), region: "eu-central-1".to_owned() },
            cluster: "peony".to_owned(),
            zone,
            size: Size { cpu, memory, gpu, arch: if arm { Arch::Arm } else { Arch::X86 }, provider },
            definition: "0123456789abcdef".to_owned(),
            deployed_ns: None,
        };
        let mut ledger = Ledger::default();
        ledger.insert(entry);
        prop_assert!(observed(&ledger)[0].tags.iter().all(|(key, value)| key.len() <= 128 && value.len() <= 256));
        prop_assert_eq!(Ledger::from_tags("trellis", observed(&ledger)), (ledger, vec![]));
    }
}
