//! Who may import whom, held by machine: the edges between our crates, the one door of each outside crate, and inside a crate
//! the rooms, their doors, and no circle of files.
#![allow(clippy::unwrap_used)] // a test may panic

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use serde_json::Value;

/// Each of our crates with those of ours that it may name.
const EDGES: [(&str, &[&str]); 9] = [
    ("trellis-proto", &[]),
    ("trellis-fabric", &[]),
    ("trellis-head", &["trellis-proto", "trellis-fabric"]),
    ("trellis-shard", &["trellis-proto", "trellis-fabric"]),
    ("trellis-qcu", &["trellis-proto", "trellis-fabric"]),
    ("trellis-python", &["trellis-proto", "trellis-fabric", "trellis-head", "trellis-shard", "trellis-qcu"]),
    ("trellis-fleet", &["trellis-proto", "trellis-fabric"]),
    ("trellis-aws-fake", &[]),
    ("trellis-tests", &["trellis-proto", "trellis-fabric", "trellis-head", "trellis-shard", "trellis-qcu"]),
];

/// Outside crates that one of ours alone may name, so that a change of library is a change of one crate.
const DOORS: [(&str, &str); 21] = [
    ("backon", "trellis-fabric"),
    ("hickory-resolver", "trellis-fabric"),
    ("hyper-rustls", "trellis-fabric"),
    ("mimalloc", "trellis-fabric"),
    ("opentelemetry-http", "trellis-fabric"),
    ("opentelemetry-otlp", "trellis-fabric"),
    ("opentelemetry_sdk", "trellis-fabric"),
    ("reqwest", "trellis-fabric"),
    ("rustls", "trellis-fabric"),
    ("tonic-health", "trellis-fabric"),
    ("tonic-reflection", "trellis-fabric"),
    ("aws-config", "trellis-fleet"),
    ("aws-sdk-ecs", "trellis-fleet"),
    ("aws-sdk-servicediscovery", "trellis-fleet"),
    ("aws-sdk-sqs", "trellis-fleet"),
    ("lru", "trellis-head"),
    ("parquet", "trellis-shard"),
    ("buoyant_kernel", "trellis-shard"),
    ("buoyant_kernel_engine", "trellis-shard"),
    ("pyo3", "trellis-python"),
    ("pyo3-arrow", "trellis-python"),
];

/// Those of our crates that may name object_store: the shard, which reads and writes the lake with it, and `fabric`, which signs calls of
/// AWS with it in one file, and in another reads and puts single objects for crates that have no lake.
const STORE_DOORS: [&str; 2] = ["trellis-fabric", "trellis-shard"];
const STORE_FILES: [&str; 2] = ["fabric/src/aws.rs", "fabric/src/objects.rs"];

/// Outside crates that one file alone may name.
const FILE_DOORS: [(&str, &str); 1] = [("lru", "head-node/src/held/cache.rs")];

/// The crates whose files are held to rooms, doors and no circles.
const CRATES: [&str; 8] = [
    "proto",
    "fabric",
    "head-node",
    "shard",
    "qcu-runtime",
    "qcu-runtime/python",
    "deploy/fleet",
    "tests/aws-fake",
];

/// Direct dependencies of each member, but for those that only its own tests use.
fn dependencies() -> BTreeMap<String, Vec<String>> {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let metadata: Value = serde_json::from_slice(&out.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let packages = metadata["packages"].as_array().unwrap();
    packages
        .iter()
        .map(|package| {
            let named = package["dependencies"].as_array().unwrap().iter();
            let named = named.filter(|d| d["kind"].as_str() != Some("dev")).map(|d| text(&d["name"]));
            (text(&package["name"]), named.collect())
        })
        .collect()
}

#[test]
fn our_crates_meet_only_where_the_house_says() {
    let dependencies = dependencies();
    let crates: Vec<&str> = EDGES.iter().map(|(name, _)| *name).collect();
    assert!(
        dependencies.keys().all(|name| crates.contains(&name.as_str())),
        "a crate without a place: {dependencies:?}"
    );
    for (name, allowed) in EDGES {
        for other in dependencies[name].iter().filter(|d| crates.contains(&d.as_str())) {
            assert!(allowed.contains(&other.as_str()), "{name} must not import {other}");
        }
    }
}

#[test]
fn each_outside_crate_has_one_door() {
    let dependencies = dependencies();
    for (outside, door) in DOORS {
        for (name, named) in &dependencies {
            assert!(
                name == door || !named.iter().any(|d| d == outside),
                "{name} names {outside}; only {door} may"
            );
        }
        assert!(
            dependencies[door].iter().any(|d| d == outside),
            "{door} no longer names {outside}: drop the line"
        );
    }
}

#[test]
fn object_store_has_two_doors() {
    for (name, named) in dependencies() {
        let names_it = named.iter().any(|d| d == "object_store");
        assert_eq!(names_it, STORE_DOORS.contains(&name.as_str()), "{name}");
    }
    assert_eq!(files_that_name("object_store", &["fabric"]), STORE_FILES.map(|file| root().join(file)));
}

#[test]
fn an_outside_crate_with_a_file_as_its_door_is_named_there_only() {
    for (outside, door) in FILE_DOORS {
        assert_eq!(files_that_name(outside, &CRATES), [root().join(door)], "{outside} is named by one file");
    }
}

/// The files of these crates whose code names an outside crate.
fn files_that_name(outside: &str, crates: &[&str]) -> Vec<PathBuf> {
    let sources = crates.iter().flat_map(|name| rust_files(&root().join(name).join("src")));
    let names = |path: &PathBuf| {
        let mut named = false;
        words(fs::read_to_string(path).unwrap().parse().unwrap(), &mut |word| named |= word == outside);
        named
    };
    sources.filter(names).collect()
}

#[test]
fn each_room_has_its_door_inside() {
    for name in CRATES {
        let source = root().join(name).join("src");
        for entry in fs::read_dir(&source).unwrap() {
            let room = entry.unwrap().path();
            if room.is_dir() && !room.ends_with("bin") {
                assert!(room.join("mod.rs").exists(), "{} has no mod.rs", room.display());
            }
        }
    }
}

#[test]
fn a_room_is_entered_by_its_door_and_no_files_import_each_other_in_a_circle() {
    let mut faults = Vec::new();
    for name in CRATES {
        let files = Files::read(&root().join(name).join("src"));
        faults.extend(files.faults().into_iter().map(|fault| format!("{name}/src: {fault}")));
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every `.rs` file below `folder`, sorted.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Calls `each` with every word of the code. Comments and texts have none.
fn words(code: TokenStream, each: &mut dyn FnMut(&str)) {
    for token in code {
        match token {
            TokenTree::Ident(word) => each(&word.to_string()),
            TokenTree::Group(group) => words(group.stream(), each),
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
    }
}

/// A module by its path from the crate's root: `["engine", "fetch"]` is `engine/fetch.rs`, `[]` is `lib.rs`.
type Module = Vec<String>;

/// The files of one crate, without what only its tests use, each with the modules that it imports from.
struct Files(BTreeMap<Module, BTreeSet<Module>>);

impl Files {
    fn read(source: &Path) -> Self {
        let mut code = BTreeMap::new();
        for path in rust_files(source) {
            let mut module: Module = path
                .strip_prefix(source)
                .unwrap()
                .with_extension("")
                .iter()
                .map(|part| part.to_str().unwrap().to_owned())
                .collect();
            if module[0] == "main" || module[0] == "bin" {
                continue;
            }
            if module.last().is_some_and(|last| last == "mod" || last == "lib") {
                module.pop();
            }
            code.insert(module, path);
        }
        let mut imports = BTreeMap::new();
        let mut only_for_tests = Vec::new();
        for (module, path) in &code {
            let tokens: TokenStream = fs::read_to_string(path).unwrap().parse().unwrap();
            let mut found = Imports { module: module.clone(), paths: Vec::new(), only_for_tests: Vec::new() };
            found.block(tokens);
            imports.insert(module.clone(), found.paths);
            only_for_tests.extend(found.only_for_tests);
        }
        let is_used = |module: &Module| !only_for_tests.iter().any(|test| module.starts_with(test));
        let file_of = |path: &Module| {
            (0..=path.len())
                .rev()
                .map(|n| path[..n].to_vec())
                .find(|module| code.contains_key(module))
                .unwrap()
        };
        let files = imports.into_iter().filter(|(module, _)| is_used(module)).map(|(module, paths)| {
            let mut others: BTreeSet<Module> = paths.iter().map(file_of).filter(is_used).collect();
            others.remove(&module);
            (module, others)
        });
        Self(files.collect())
    }

    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (module, others) in &self.0 {
            for other in others {
                let room = &other[..other.len().saturating_sub(1)];
                if !module.starts_with(room) {
                    let (module, other, door) = (name(module), name(other), name(room));
                    faults.push(format!("{module} names {other}: it may name the door {door} only"));
                }
            }
        }
        let mut state = BTreeMap::new();
        for module in self.0.keys() {
            self.circles(module, &mut Vec::new(), &mut state, &mut faults);
        }
        faults
    }

    /// Walks the imports from `module` on; `open` is the way to it. `true` in `done`: everything from there on has been walked.
    fn circles(
        &self,
        module: &Module,
        open: &mut Vec<Module>,
        done: &mut BTreeMap<Module, bool>,
        faults: &mut Vec<String>,
    ) {
        match done.get(module) {
            Some(true) => return,
            Some(false) => {
                let from = open.iter().position(|other| other == module).unwrap();
                let circle: Vec<String> = open[from..].iter().map(|module| name(module)).collect();
                faults.push(format!("a circle: {} -> {}", circle.join(" -> "), name(module)));
                return;
            }
            None => {}
        }
        done.insert(module.clone(), false);
        open.push(module.clone());
        for other in &self.0[module] {
            self.circles(other, open, done, faults);
        }
        open.pop();
        done.insert(module.clone(), true);
    }
}

fn name(module: &[String]) -> String {
    if module.is_empty() { "lib".to_owned() } else { module.join("/") }
}

/// What one file imports.
struct Imports {
    /// The module that the code read at present stands in.
    module: Module,
    /// Every path of the code that begins with `crate`, `self` or `super`, from the crate's root.
    paths: Vec<Module>,
    /// Files that the file declares for tests.
    only_for_tests: Vec<Module>,
}

impl Imports {
    fn block(&mut self, code: TokenStream) {
        let tokens: Vec<TokenTree> = code.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            if let Some(after) = attribute_of_tests(&tokens[at..]) {
                at = self.skip_item(&tokens, at + after);
                continue;
            }
            match &tokens[at] {
                TokenTree::Ident(word) if word == "mod" => {
                    // a door imports its files; a module inside the file is read as what it is
                    if let Some(TokenTree::Ident(child)) = tokens.get(at + 1) {
                        let child: Module = [&self.module[..], &[child.to_string()]].concat();
                        match tokens.get(at + 2) {
                            Some(TokenTree::Group(block)) => {
                                let outside = std::mem::replace(&mut self.module, child);
                                self.block(block.stream());
                                self.module = outside;
                            }
                            _ => self.paths.push(child),
                        }
                        at += 2;
                    }
                }
                TokenTree::Ident(word) if is_path(&tokens, at) => {
                    let word = word.to_string();
                    let start = match word.as_str() {
                        "crate" => Vec::new(),
                        "self" => self.module.clone(),
                        _ => self.module[..self.module.len() - 1].to_vec(),
                    };
                    at = self.tree(&tokens, at + 3, start);
                    continue;
                }
                TokenTree::Group(group) => self.block(group.stream()),
                _ => {}
            }
            at += 1;
        }
    }

    /// Reads what follows `prefix::` and returns where it ends.
    fn tree(&mut self, tokens: &[TokenTree], at: usize, mut prefix: Module) -> usize {
        match tokens.get(at) {
            Some(TokenTree::Ident(word)) => {
                match word.to_string().as_str() {
                    "super" => drop(prefix.pop()),
                    word => prefix.push(word.to_owned()),
                }
                if is_colons(tokens, at + 1) {
                    return self.tree(tokens, at + 3, prefix);
                }
                self.paths.push(prefix);
                at + 1
            }
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                let tokens: Vec<TokenTree> = group.stream().into_iter().collect();
                let mut inner = 0;
                while inner < tokens.len() {
                    inner = self.tree(&tokens, inner, prefix.clone());
                    // an `as NAME`, and the comma
                    while inner < tokens.len() && !is_punct(&tokens[inner], ',') {
                        inner += 1;
                    }
                    inner += 1;
                }
                at + 1
            }
            _ => {
                self.paths.push(prefix);
                at + 1
            }
        }
    }

    /// Returns where the item at `at` ends, and notes the file that it declares.
    fn skip_item(&mut self, tokens: &[TokenTree], mut at: usize) -> usize {
        while let Some(token) = tokens.get(at) {
            match (token, tokens.get(at + 1)) {
                (TokenTree::Ident(word), Some(TokenTree::Ident(child))) if word == "mod" => {
                    self.only_for_tests.push([&self.module[..], &[child.to_string()]].concat());
                }
                (TokenTree::Group(group), _) if group.delimiter() == Delimiter::Brace => return at + 1,
                (token, _) if is_punct(token, ';') || is_punct(token, ',') => return at + 1,
                _ => {}
            }
            at += 1;
        }
        at
    }
}

/// How many tokens an attribute has that leaves an item to tests.
fn attribute_of_tests(tokens: &[TokenTree]) -> Option<usize> {
    let [hash, TokenTree::Group(group), ..] = tokens else { return None };
    let mut found = Vec::new();
    words(group.stream(), &mut |word| found.push(word.to_owned()));
    let is = |word: &str| found.iter().any(|other| other == word);
    (is_punct(hash, '#') && is("cfg") && (is("test") || is("testing")) && !is("not")).then_some(2)
}

/// Whether a path from inside the crate begins here.
fn is_path(tokens: &[TokenTree], at: usize) -> bool {
    let TokenTree::Ident(word) = &tokens[at] else { return false };
    let continues = at > 0 && (is_punct(&tokens[at - 1], ':') && is_colons(tokens, at.saturating_sub(2)));
    let of_macro = at > 0 && is_punct(&tokens[at - 1], '$');
    (word == "crate" || word == "self" || word == "super")
        && is_colons(tokens, at + 1)
        && !continues
        && !of_macro
}

fn is_colons(tokens: &[TokenTree], at: usize) -> bool {
    matches!(tokens.get(at..at + 2), Some([a, b]) if is_punct(a, ':') && is_punct(b, ':'))
}

fn is_punct(token: &TokenTree, is: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == is)
}
