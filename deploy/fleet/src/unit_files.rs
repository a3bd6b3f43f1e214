//! The files of units in S3, by which a task finds its bundle: which ones to put, and putting them. `qcu` reads them
//! (`qcu-runtime/src/bundle`).

use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::json;
use trellis_fabric::objects::{Keys, ObjectFault, ObjectUrl, Objects};
use trellis_proto::Code;

use crate::{
    definition::unit_files,
    desired::{Desired, Unit},
    ledger::Ledger,
    model::Role,
};

/// Requests to S3 at once. Each takes some ten milliseconds or more, so they stay below the 3,500 a second that S3 takes for one prefix.
const AT_ONCE: usize = 64;
/// How long S3 may not answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A unit's file in S3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitFile {
    /// Its address.
    pub url: String,
    /// Its text.
    pub text: String,
}

/// The files that are not there as the ledger says: of services that it does not know, and of units that were deployed since.
#[must_use]
pub fn missing(desired: &Desired, ledger: &Ledger) -> Vec<UnitFile> {
    let mut files = Vec::new();
    for unit in desired.units.values() {
        for (name, partition) in unit.names() {
            let service = desired.service(Role::Unit, &name);
            let put = ledger.get(&service).and_then(|entry| entry.deployed_ns);
            if put != Some(unit.deployed_ns) {
                let url = format!("{}{service}.json", unit_files(desired));
                files.push(UnitFile { url, text: text(unit, partition) });
            }
        }
    }
    files
}

fn text(unit: &Unit, partition: Option<&str>) -> String {
    let Unit { unit, digest, deployed_ns, bundle, module, function, .. } = unit;
    let mut file = json!({
        "unit": unit, "digest": digest, "bundle": bundle, "module": module, "function": function, "deployed_ns": deployed_ns,
    });
    if let Some(partition) = partition {
        file["partition"] = json!(partition);
    }
    file.to_string()
}

/// Puts files with the credentials of the deployer's role in the network's account, which has the bucket.
///
/// # Errors
/// The exit code, and which file could not be put and why.
pub async fn put(files: Vec<UnitFile>, region: &str, keys: Keys, role: &str) -> Result<(), (u8, String)> {
    let parse = |url: &str| ObjectUrl::parse(url).map_err(|why| (Code::InvalidRequest.exit_code(), why));
    let Some(first) = files.first() else { return Ok(()) };
    let bucket = parse(&first.url)?.bucket;
    let failed = |error: trellis_fabric::objects::ObjectError| {
        let code = match error.fault {
            ObjectFault::Unanswered => Code::Unavailable,
            _ => Code::InvalidRequest,
        };
        (code.exit_code(), format!("the file of a unit, put by {role}: {error}"))
    };
    let objects = Objects::open(&bucket, Some(region), Some(keys)).map_err(failed)?;
    let objects = &objects;
    stream::iter(files)
        .map(|file| async move {
            let key = parse(&file.url)?.key;
            objects.put(&key, &Bytes::from(file.text), PATIENCE).await.map_err(failed)
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path};

    use super::*;
    use crate::plan::plan;

    fn example() -> Desired {
        Desired::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("example")).unwrap()
    }

    fn names(files: &[UnitFile]) -> BTreeSet<&str> {
        files.iter().filter_map(|file| file.url.rsplit('/').next()).collect()
    }

    #[test]
    fn a_file_has_what_a_task_needs_to_find_its_bundle() {
        let files = missing(&example(), &Ledger::default());
        let mom = files.iter().find(|file| file.url.contains("mom_12_1")).unwrap();
        let folder = "s3://trellis-bundles-111111111111-eu-central-1/bundles/units";
        assert_eq!(mom.url, format!("{folder}/trellis-unit-mom_12_1.json"));
        let json: serde_json::Value = serde_json::from_str(&mom.text).unwrap();
        let fields = ["unit", "digest", "bundle", "module", "function", "deployed_ns"];
        assert!(fields.iter().all(|field| !json[field].is_null()), "{json}");
    }

    #[test]
    fn only_a_new_service_and_a_new_deployment_get_a_file() {
        let mut desired = example();
        let ledger = plan(&desired, &Ledger::default()).ledger;
        assert!(missing(&desired, &ledger).is_empty());
        desired.units.get_mut("risk").unwrap().deployed_ns += 1;
        desired.units.get_mut("combo").unwrap().partitions = vec!["eu".to_owned(), "us".to_owned()];
        let files = missing(&desired, &ledger);
        let expected =
            ["trellis-unit-risk.json", "trellis-unit-combo-PART-eu.json", "trellis-unit-combo-PART-us.json"];
        assert_eq!(names(&files), BTreeSet::from(expected));
        assert!(files.iter().any(|file| file.text.contains(r#""partition":"us""#)));
    }
}
