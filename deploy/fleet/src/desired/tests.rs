use std::path::PathBuf;

use super::*;

/// The files of the example.
pub(crate) fn example() -> Files {
    let folder = folder();
    let mut files = Files::new();
    for name in ["grid.json", "heads.json", "shards.json"] {
        files.insert(name.to_owned(), fs::read_to_string(folder.join(name)).unwrap());
    }
    for inner in ["units", "calendars"] {
        for name in names(&folder.join(inner)).unwrap() {
            let text = fs::read_to_string(folder.join(inner).join(&name)).unwrap();
            files.insert(format!("{inner}/{name}"), text);
        }
    }
    files
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("example")
}

/// The mistakes of the example after a change of one file, as lines.
fn mistakes(file: &str, change: impl FnOnce(&mut serde_json::Value)) -> Vec<String> {
    let mut files = example();
    let mut json = serde_json::from_str(&files[file]).unwrap();
    change(&mut json);
    files.insert(file.to_owned(), json.to_string());
    lines(Desired::parse(&files))
}

fn lines(read: Result<Desired, Vec<Mistake>>) -> Vec<String> {
    read.err().unwrap_or_default().iter().map(ToString::to_string).collect()
}

#[test]
fn the_example_reads() {
    let desired = Desired::read(&folder()).unwrap();
    assert_eq!((desired.units.len(), desired.heads.count, desired.shards.count), (3, 2, 3));
    assert_eq!(desired.units["mom_12_1"].size.arch, crate::class::Arch::Arm, "by its class");
    assert_eq!(desired.units["risk"].size.provider, crate::class::Provider::General, "more than 16 vCPUs");
    assert_eq!(Desired::parse(&example()).unwrap(), desired);
}

#[test]
fn a_file_that_trellis_deploy_wrote_reads() {
    // a test of the Python package compares what it writes with this file
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../qcu-runtime/python/tests/golden/mom_12_1.json");
    let mut files = example();
    files.insert("units/mom_12_1.json".to_owned(), fs::read_to_string(golden).unwrap());
    let desired = Desired::parse(&files).unwrap();
    let unit = &desired.units["mom_12_1"];
    assert_eq!((unit.module.as_str(), unit.function.as_str()), ("momentum.py", "mom"));
    assert_eq!((unit.size.cpu, unit.size.memory), (1_024, 4_096), "of 1 core and 4 GiB");
    let schedule = Schedule::AtClose { calendar: "XNYS".to_owned(), delay_ns: 1_200_000_000_000 };
    assert_eq!(unit.schedule, schedule);
}

#[test]
fn each_mistake_is_named_with_its_file_and_field() {
    type Change = fn(&mut serde_json::Value);
    let cases: Vec<(&str, &str, Change)> = vec![
        ("grid.json", "grid", |j| j["grid"] = "Trellis".into()),
        ("grid.json", "environment", |j| j["environment"] = "".into()),
        ("grid.json", "domain", |j| j["domain"] = "internal".into()),
        ("grid.json", "region", |j| j["region"] = 7.into()),
        ("grid.json", "lake", |j| j["lake"] = "s3://bucket/".into()),
        ("grid.json", "telemetry", |j| j["telemetry"] = "otlp:4317".into()),
        ("grid.json", "address_units", |j| j["address_units"] = 0.into()),
        ("grid.json", "images.qcu", |j| j["images"]["qcu"] = "registry/qcu:latest".into()),
        ("grid.json", "images.shard", |j| _ = j["images"].as_object_mut().unwrap().remove("shard")),
        ("grid.json", "images.other", |j| j["images"]["other"] = j["images"]["qcu"].clone()),
        ("grid.json", "classes.small.cpu", |j| j["classes"]["small"]["cpu"] = (-1).into()),
        ("grid.json", "classes.small.memory", |j| j["classes"]["small"]["memory"] = "4 parsecs".into()),
        ("grid.json", "classes.small.arch", |j| j["classes"]["small"]["arch"] = "MIPS".into()),
        ("grid.json", "classes.small.disk", |j| j["classes"]["small"]["disk"] = 1.into()),
        ("grid.json", "accounts", |j| j["accounts"][0]["role"] = "units".into()),
        ("grid.json", "accounts[1].account", |j| j["accounts"][1]["account"] = "222".into()),
        ("grid.json", "accounts[1].account", |j| {
            j["accounts"][1]["account"] = j["accounts"][0]["account"].clone()
        }),
        ("grid.json", "accounts[1].role", |j| j["accounts"][1]["role"] = "guest".into()),
        ("grid.json", "accounts[1].weight", |j| j["accounts"][1]["weight"] = 0.into()),
        ("grid.json", "accounts[1].quotas.interfaces", |j| {
            _ = j["accounts"][1]["quotas"].as_object_mut().unwrap().remove("interfaces");
        }),
        ("grid.json", "accounts[1].quotas.services_per_cluster", |j| {
            j["accounts"][1]["quotas"]["services_per_cluster"] = 3.into();
        }),
        ("grid.json", "accounts[1].quotas.luck", |j| j["accounts"][1]["quotas"]["luck"] = 3.into()),
        ("grid.json", "accounts[1].subnets", |j| j["accounts"][1]["subnets"] = serde_json::json!({})),
        ("grid.json", "accounts[1].subnets.eu-central-1a[0]", |j| {
            j["accounts"][1]["subnets"]["eu-central-1a"][0] = "vpc-1".into();
        }),
        ("grid.json", "accounts[1].security_groups", |j| {
            j["accounts"][1]["security_groups"] = serde_json::json!({"head": ["sg-1"]});
        }),
        ("grid.json", "accounts[1].security_groups.guest", |j| {
            j["accounts"][1]["security_groups"]["guest"] = serde_json::json!(["sg-1"]);
        }),
        ("grid.json", "flowers[1].flower", |j| j["flowers"][1]["flower"] = "Tulip".into()),
        ("grid.json", "flowers[1].flower", |j| j["flowers"][1]["flower"] = "peony".into()),
        ("grid.json", "flowers[1].flower", |j| j["retired"] = serde_json::json!(["tulip"])),
        ("grid.json", "flowers[1].account", |j| j["flowers"][1]["account"] = "999999999999".into()),
        ("grid.json", "flowers[1].providers[0]", |j| j["flowers"][1]["providers"][0] = "FARGATE".into()),
        ("grid.json", "tags.trellis:grid", |j| j["tags"]["trellis:grid"] = "other".into()),
        ("grid.json", "surprise", |j| j["surprise"] = 1.into()),
        ("heads.json", "count", |j| j["count"] = 0.into()),
        ("heads.json", "cache", |j| j["cache"] = "40GiB".into()),
        ("heads.json", "cpu", |j| *j = serde_json::json!({"count": 1, "cpu": 2, "memory": "500G"})),
        ("heads.json", "memory", |j| j["cpu"] = 2.into()),
        ("shards.json", "count", |j| j["count"] = "three".into()),
        ("shards.json", "shards", |j| {
            let one = serde_json::json!({"owns": [{"dataset": "*", "slots": [0, 65536]}]});
            *j = serde_json::json!({"shards": [one, one]});
        }),
        ("shards.json", "shards", |j| {
            *j = serde_json::json!({"shards": [{"owns": [{"dataset": "*", "slots": [0, 9]}]}]})
        }),
        ("shards.json", "shards[0].owns", |j| *j = serde_json::json!({"shards": [{"owns": []}]})),
        ("shards.json", "shards[0].owns[0].start", |j| {
            *j = serde_json::json!({"shards": [{"owns": [{"dataset": "*", "start": "soon"}]}]});
        }),
        ("shards.json", "shards[0].owns[0].slots", |j| {
            *j = serde_json::json!({"shards": [{"owns": [{"dataset": "*", "slots": [9, 9]}]}]});
        }),
        ("units/risk.json", "unit", |j| j["unit"] = "other".into()),
        ("units/risk.json", "environment", |j| j["environment"] = "test".into()),
        ("units/risk.json", "digest", |j| j["digest"] = "9f86".into()),
        ("units/risk.json", "bundle", |j| j["bundle"] = "bundles/other.zip".into()),
        ("units/risk.json", "bundle", |j| j["bundle"] = "config/policy.toml".into()),
        ("units/risk.json", "deployed_ns", |j| j["deployed_ns"] = "yesterday".into()),
        ("units/risk.json", "module", |j| j["module"] = "risk".into()),
        ("units/risk.json", "function", |j| _ = j.as_object_mut().unwrap().remove("function")),
        ("units/risk.json", "cpu", |j| j["cpu"] = 1000.into()),
        ("units/risk.json", "cpu", |j| j["class"] = "small".into()),
        ("units/mom_12_1.json", "class", |j| j["class"] = "huge".into()),
        ("units/mom_12_1.json", "window", |j| j["window"] = "soon".into()),
        ("units/combo.json", "window", |j| j["window"] = "1h".into()),
        ("units/mom_12_1.json", "window", |j| j["window"] = "3d".into()),
        ("units/mom_12_1.json", "schedule.calendar", |j| j["schedule"]["calendar"] = "XLON".into()),
        ("units/mom_12_1.json", "schedule.kind", |j| j["schedule"]["kind"] = "always".into()),
        ("units/mom_12_1.json", "schedule.delay", |j| j["schedule"]["delay"] = 20.into()),
        ("units/combo.json", "schedule.units[0].unit", |j| j["schedule"]["units"][0]["unit"] = "gone".into()),
        ("units/risk.json", "partitions", |j| j["partitions"] = serde_json::json!(["us", "us"])),
        ("units/risk.json", "partitions[0]", |j| j["partitions"] = serde_json::json!(["U S"])),
        ("units/risk.json", "extra", |j| j["extra"] = 1.into()),
        ("calendars/XNYS.json", "calendar", |j| j["calendar"] = "XLON".into()),
        ("calendars/XNYS.json", "zone", |j| j["zone"] = "America/Gotham".into()),
        ("calendars/XNYS.json", "until", |j| j["until"] = "2020-01-01".into()),
        ("calendars/XNYS.json", "closed[0]", |j| j["closed"][0] = "Christmas".into()),
        ("calendars/XNYS.json", "early.2026-11-27", |j| j["early"]["2026-11-27"] = "1pm".into()),
    ];
    for (file, field, change) in cases {
        let told = mistakes(file, change);
        let start = format!("{file}: {field}: ");
        assert!(told.iter().any(|line| line.starts_with(&start)), "{start} is not in {told:#?}");
    }
}

#[test]
fn all_mistakes_of_all_files_are_told_at_once() {
    let mut files = example();
    files.insert(
        "grid.json".to_owned(),
        files["grid.json"].replace("eu-central-1\"", "\"").replace("sg-03", "sg_03"),
    );
    files.insert("heads.json".to_owned(), r#"{"count": 0, "arch": "MIPS", "color": 1}"#.to_owned());
    files.insert("units/notes.txt".to_owned(), String::new());
    files.remove("shards.json");
    let told = lines(Desired::parse(&files));
    for start in [
        "grid.json: accounts[1].security_groups.unit[0]",
        "grid.json",
        "heads.json: arch",
        "heads.json: color",
        "heads.json: count",
        "shards.json: is missing",
        "units/notes.txt",
    ] {
        assert!(told.iter().any(|line| line.starts_with(start)), "{start} is not in {told:#?}");
    }
}

#[test]
fn a_key_that_is_there_twice_is_a_mistake() {
    let mut files = example();
    files.insert("heads.json".to_owned(), r#"{"count": 2, "count": 3}"#.to_owned());
    let told = lines(Desired::parse(&files));
    assert!(told[0].contains("\"count\" is there twice"), "{told:?}");
}

#[test]
fn names_of_units_become_names_of_services_one_to_one() {
    let mut files = example();
    let unit = files["units/risk.json"].replace("\"risk\"", "\"fx.carry\"");
    files.insert(
        "units/fx.carry.json".to_owned(),
        unit.replace("\"function\": \"fx.carry\"", "\"function\": \"f\""),
    );
    let with = files["units/combo.json"].replace("\"class\"", "\"partitions\": [\"us\", \"eu\"], \"class\"");
    files.insert("units/combo.json".to_owned(), with);
    let desired = Desired::parse(&files).unwrap();
    let names: Vec<_> = desired.units.values().flat_map(|unit| unit.names().map(|(name, _)| name)).collect();
    assert_eq!(names, ["combo-PART-us", "combo-PART-eu", "fx-DOT-carry", "mom_12_1", "risk"]);
    assert!(names.iter().all(|name| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))));
}

#[test]
fn a_folder_that_is_not_there_is_told_file_by_file() {
    let told = lines(Desired::read(Path::new("/no/such/folder")));
    assert_eq!(told.len(), 3, "{told:?}");
}
