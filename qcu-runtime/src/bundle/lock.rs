//! The packages that a strategy was deployed with, and those of this machine. A difference changes no run by itself, so it is only told.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{process::Command, time::timeout};

/// Name of the lock file in a bundle: lines `PACKAGE==VERSION`, one of them for `python`.
const LOCK: &str = "packages.lock";
/// Longest wait for Python. What is wrong with it, its start as the child tells.
const TIME_MAX: Duration = Duration::from_secs(30);
/// Most differences that the line names.
const NAMED_MAX: usize = 10;
/// Tells the versions of the packages that its arguments name.
const ASK: &str = "
import importlib.metadata, platform, sys
for name in sys.argv[1:]:
    try:
        print(name, '==', platform.python_version() if name == 'python' else importlib.metadata.version(name), sep='')
    except importlib.metadata.PackageNotFoundError:
        pass
";

/// Logs one line if this machine has other packages than the lock file of the bundle names.
pub(crate) async fn tell_differences(python: PathBuf, bundle: PathBuf) {
    let Ok(lock) = tokio::fs::read_to_string(bundle.join(LOCK)).await else { return };
    let locked = versions(&lock);
    let Some(here) = ask(&python, &bundle, locked.keys().copied()).await else { return };
    let told = differences(&locked, &versions(&here));
    if !told.is_empty() {
        tracing::warn!("this image has other packages than the strategy was deployed with: {told}");
    }
}

async fn ask(python: &Path, bundle: &Path, names: impl Iterator<Item = &str>) -> Option<String> {
    let asked = Command::new(python)
        // -P: a file of the bundle must not stand in for a module of Python
        .args(["-P", "-c", ASK])
        .args(names)
        .current_dir(bundle)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let answer = timeout(TIME_MAX, asked).await.ok()?.ok()?;
    answer.status.success().then(|| String::from_utf8_lossy(&answer.stdout).into_owned())
}

fn versions(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|line| line.trim().split_once("==")).collect()
}

/// `numpy 2.4.6 instead of 2.4.5, pandas is missing (3.1.1)`.
fn differences(locked: &BTreeMap<&str, &str>, here: &BTreeMap<&str, &str>) -> String {
    let mut told: Vec<String> = locked
        .iter()
        .filter_map(|(name, locked)| match here.get(name) {
            Some(here) if here == locked => None,
            Some(here) => Some(format!("{name} {here} instead of {locked}")),
            None => Some(format!("{name} is missing ({locked})")),
        })
        .collect();
    let more = told.len().saturating_sub(NAMED_MAX);
    told.truncate(NAMED_MAX);
    if more > 0 {
        told.push(format!("and {more} more"));
    }
    told.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_and_missing_packages_are_named() {
        let locked = versions("python==3.11.2\nnumpy==2.4.5\npandas==3.1.1\ntrellis==0.1.0\n");
        let here = versions("python==3.11.2\nnumpy==2.4.6\ntrellis==0.1.0\nother==1\n");
        assert_eq!(differences(&locked, &here), "numpy 2.4.6 instead of 2.4.5, pandas is missing (3.1.1)");
        assert_eq!(differences(&locked, &locked), "");
    }

    #[test]
    fn a_long_list_is_cut() {
        let lock: String = (0..NAMED_MAX + 3).map(|i| format!("p{i:02}==1\n")).collect();
        assert!(differences(&versions(&lock), &BTreeMap::new()).ends_with("p09 is missing (1), and 3 more"));
    }
}
