use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::*;
use crate::{
    desired::tests::example,
    ledger::Ledger,
    model::Service,
    plan::{Plan, plan},
};

fn desired() -> Desired {
    Desired::parse(&example()).unwrap()
}

fn body<'p>(plan: &'p Plan, service: &str) -> &'p Value {
    &plan.definitions[&of(plan, service).definition]
}

fn of<'p>(plan: &'p Plan, service: &str) -> &'p Service {
    plan.services.iter().find(|each| each.name == service).unwrap()
}

fn variables(body: &Value) -> BTreeMap<&str, &str> {
    let all = body["containerDefinitions"][0]["environment"].as_array().unwrap().iter();
    all.map(|each| (each["name"].as_str().unwrap(), each["value"].as_str().unwrap())).collect()
}

/// A reviewer sees here what a change of the code does to every task. It must not depend on the machine: the hash is made of this text.
#[test]
fn the_definitions_of_the_example_are_the_reviewed_ones() {
    let plan = plan(&desired(), &Ledger::default());
    let by_family: BTreeMap<_, _> =
        plan.definitions.values().map(|body| (body["family"].to_string(), body)).collect();
    // through the text, so that the order of keys is ours
    let now: Value = serde_json::from_str(&text::of(&json!(by_family.values().collect::<Vec<_>>()))).unwrap();
    let now = serde_json::to_string_pretty(&now).unwrap() + "\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/definition/golden.json");
    if std::env::var_os("TRELLIS_BLESS").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        now == golden,
        "the definitions differ from golden.json; if that is meant: TRELLIS_BLESS=1 cargo test -p trellis-fleet"
    );
}

#[test]
fn units_of_the_same_size_share_a_definition_that_names_none_of_them() {
    let mut files = example();
    for name in ["a", "b", "c"] {
        let unit = files["units/combo.json"].replace("\"combo\"", &format!("\"{name}\""));
        files.insert(format!("units/{name}.json"), unit);
    }
    let plan = plan(&Desired::parse(&files).unwrap(), &Ledger::default());
    let shared: BTreeSet<_> =
        ["a", "b", "c", "combo"].map(|name| &of(&plan, &format!("trellis-unit-{name}")).definition).into();
    assert_eq!(shared.len(), 1);
    let all: Vec<_> = plan.definitions.values().map(ToString::to_string).collect();
    assert!(
        all.iter()
            .all(|text| !text.contains("mom_12_1") && !text.contains("combo") && !text.contains("9f86d08"))
    );
}

#[test]
fn another_bundle_is_the_same_definition_and_another_image_is_not() {
    let first = plan(&desired(), &Ledger::default());
    let mut files = example();
    files.insert(
        "units/risk.json".to_owned(),
        files["units/risk.json"].replace("fd61a03", "0000000").replace("179593100", "179593200"),
    );
    let bundle = plan(&Desired::parse(&files).unwrap(), &first.ledger);
    assert_eq!(of(&bundle, "trellis-unit-risk").definition, of(&first, "trellis-unit-risk").definition);
    assert_eq!(bundle.changes.len(), 1, "but its service changes");
    files.insert("grid.json".to_owned(), files["grid.json"].replace("sha256:3333", "sha256:4444"));
    let image = plan(&Desired::parse(&files).unwrap(), &first.ledger);
    assert_ne!(of(&image, "trellis-unit-risk").definition, of(&first, "trellis-unit-risk").definition);
    assert_eq!(of(&image, "trellis-head-0").definition, of(&first, "trellis-head-0").definition);
}

#[test]
fn every_task_is_confined() {
    let plan = plan(&desired(), &Ledger::default());
    for body in plan.definitions.values() {
        let container = &body["containerDefinitions"][0];
        assert!(container["image"].as_str().unwrap().contains("@sha256:"), "{body}");
        assert_eq!(container["readonlyRootFilesystem"], true);
        assert_eq!(container["linuxParameters"]["capabilities"]["drop"], json!(["ALL"]));
        assert!(container["stopTimeout"].as_u64().unwrap() > u64::from(classes().drain_seconds));
        assert_eq!(container["logConfiguration"]["options"]["mode"], "non-blocking");
        assert_eq!(body["networkMode"], "awsvpc");
        assert_eq!(
            body["tags"],
            json!([{"key": "trellis:grid", "value": "trellis"}]),
            "the deployer's role demands it"
        );
        for mount in container["mountPoints"].as_array().unwrap() {
            let volumes = body["volumes"].as_array().unwrap();
            assert!(volumes.iter().any(|volume| volume["name"] == mount["sourceVolume"]), "{body}");
        }
    }
    assert_eq!(
        body(&plan, "trellis-unit-mom_12_1")["requiresCompatibilities"],
        json!(["FARGATE", "MANAGED_INSTANCES"])
    );
    assert_eq!(
        body(&plan, "trellis-unit-risk")["requiresCompatibilities"],
        json!(["MANAGED_INSTANCES"]),
        "128 GiB"
    );
}

/// The programs refuse a variable that they do not know.
#[test]
fn a_task_has_the_variables_of_its_class_and_no_others() {
    let mut files = example();
    let half = |start: u32, end: u32| json!({"owns": [{"dataset": "*", "slots": [start, end]}]});
    let halves = json!({"shards": [half(0, 32_768), half(32_768, 65_536)]});
    let even = plan(&desired(), &Ledger::default());
    files.insert("shards.json".to_owned(), halves.to_string());
    files.insert("heads.json".to_owned(), r#"{"count": 1, "cache": "16GiB"}"#.to_owned());
    let own = plan(&Desired::parse(&files).unwrap(), &Ledger::default());
    let mut given: BTreeMap<Role, BTreeSet<String>> = BTreeMap::new();
    for plan in [&even, &own] {
        for service in &plan.services {
            let variables = variables(&plan.definitions[&service.definition]);
            given.entry(service.role).or_default().extend(variables.keys().map(ToString::to_string));
        }
    }
    for (role, given) in given {
        let class = classes().class(role.word());
        let known = class.environment.keys().chain(&class.environment_of_service);
        assert_eq!(given, known.cloned().collect(), "{role:?}");
    }
    let shard = variables(body(&own, "trellis-shard-1"));
    assert_eq!(shard["TRELLIS_OWNS"], r#"[{"dataset":"*","slots":[32768,65536]}]"#);
    assert_eq!(shard["TRELLIS_SHARD_COUNT"], "2");
    assert_eq!(variables(body(&own, "trellis-head-0"))["TRELLIS_CACHE_BYTES"], "17179869184");
    assert_eq!(variables(body(&even, "trellis-shard-1"))["TRELLIS_SHARD_COUNT"], "3");
}

/// Who a task is, it knows from the name of its service.
#[test]
fn all_heads_share_a_definition_and_so_do_shards_that_split_the_symbols_evenly() {
    let plan = plan(&desired(), &Ledger::default());
    let of_role = |role: Role| {
        let services = plan.services.iter().filter(|service| service.role == role);
        (services.clone().count(), services.map(|service| &service.definition).collect::<BTreeSet<_>>().len())
    };
    assert_eq!((of_role(Role::Head), of_role(Role::Shard)), ((2, 1), (3, 1)));
    assert!(plan.definitions.values().all(|body| !variables(body).contains_key("TRELLIS_ID")));
}

#[test]
fn a_region_of_another_partition_has_its_arns() {
    let mut files = example();
    let grid = files["grid.json"].replace("\"eu-central-1\"", "\"cn-north-1\"");
    files.insert("grid.json".to_owned(), grid);
    let plan = plan(&Desired::parse(&files).unwrap(), &Ledger::default());
    let arn = body(&plan, "trellis-head-0")["taskRoleArn"].as_str().unwrap();
    assert_eq!(arn, "arn:aws-cn:iam::111111111111:role/trellis/trellis/tasks/trellis-peony-head");
}
