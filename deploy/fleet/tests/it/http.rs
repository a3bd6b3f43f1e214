//! Over real HTTP: the program itself against the fake, killed in the middle; and the SDK against moto, which others wrote.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::Instant,
};
use trellis_aws_fake::{Category, Settings, World, serve};
use trellis_fleet::{
    aws::{Aws, Door, Query, deployer_role, element},
    model::Role,
    reconcile::{Engine, Mode, Network, Outcome, Target},
    run,
};

use crate::support::{Grid, REGION, copy};

const OWNER: &str = "111111111111";
const UNITS: &str = "222222222222";

/// Counts the test of this thread as skipped, as `tests/src/skip.rs` does.
fn skipped(why: &str) {
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let _ = writeln!(std::io::stderr(), "\nskipped: {test}: {why}");
}

/// What the stacks of the example make.
fn example(world: &mut World) {
    world.cluster(OWNER, REGION, "peony", &[]);
    world.cluster(UNITS, REGION, "tulip", &["tulip-general"]);
    let namespace = world.namespace(OWNER, REGION, "peony.trellis.internal");
    for name in ["head", "shard"] {
        world.registry(OWNER, REGION, &namespace, name).expect("a namespace");
    }
}

/// An S3 that takes every object: its address, and what it has by path.
async fn store() -> (String, Arc<Mutex<BTreeMap<String, String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    let objects = Arc::new(Mutex::new(BTreeMap::new()));
    let kept = objects.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(take(stream, kept.clone()));
        }
    });
    (address, objects)
}

/// Takes the objects of one connection.
async fn take(stream: TcpStream, objects: Arc<Mutex<BTreeMap<String, String>>>) -> std::io::Result<()> {
    let mut stream = tokio::io::BufReader::new(stream);
    loop {
        let (mut path, mut length, mut line) = (String::new(), 0, String::new());
        while stream.read_line(&mut line).await? > 2 {
            let head = line.trim().to_owned();
            if let Some(rest) = head.strip_prefix("PUT ") {
                path = rest.split(' ').next().unwrap_or_default().to_owned();
            } else if let Some((name, value)) = head.split_once(": ")
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.parse().unwrap_or_default();
            }
            line.clear();
        }
        if path.is_empty() {
            return Ok(());
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        objects.lock().expect("no panic").insert(path, String::from_utf8_lossy(&body).into_owned());
        stream.write_all(b"HTTP/1.1 200 OK\r\nETag: \"1\"\r\nContent-Length: 0\r\n\r\n").await?;
    }
}

/// The program in a folder, against an endpoint.
fn fleet(folder: &Path, endpoint: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fleet"));
    command
        .args(["--dir", &folder.to_string_lossy(), "--json"])
        .args(arguments)
        .env_clear()
        .env("AWS_ENDPOINT_URL", endpoint)
        .env("AWS_ACCESS_KEY_ID", "ASIA9999999999990000")
        .env("AWS_SECRET_ACCESS_KEY", "secret")
        .env("AWS_EC2_METADATA_DISABLED", "true");
    command
}

/// Runs it to its end: the exit code and the JSON that it told.
async fn finish(command: Command) -> (i32, serde_json::Value) {
    let output = tokio::task::spawn_blocking(move || {
        let mut command = command;
        command.output()
    });
    let output = output.await.expect("a thread").expect("the program starts");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let last = told.lines().last().unwrap_or_default();
    let json = serde_json::from_str(last).unwrap_or_else(|error| {
        panic!("{error}: {told}\n{}", String::from_utf8_lossy(&output.stderr));
    });
    (output.status.code().unwrap_or(-1), json)
}

/// Without the look every call would fail, and the program would try again for ten minutes before it says why.
#[test]
fn without_credentials_the_program_says_so_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("example"), folder.path());
    for command in ["apply", "status"] {
        let mut program = fleet(folder.path(), "http://127.0.0.1:9", &[command]);
        program
            .env_remove("AWS_ACCESS_KEY_ID")
            .env_remove("AWS_SECRET_ACCESS_KEY")
            .env("HOME", folder.path());
        let ended = program.output().expect("the program starts");
        let told = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(4), "{told}");
        assert!(told.contains("no AWS credentials"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_makes_the_example_although_it_is_killed() {
    // a second of the clock is a minute of the world
    let mut world = World::new(Settings { speed: 60.0, ..Settings::default() });
    example(&mut world);
    let world = Arc::new(Mutex::new(world));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let server = tokio::spawn(serve(world.clone(), listener));
    let (s3, objects) = store().await;
    let fleet = |folder: &Path, endpoint: &str, arguments: &[&str]| {
        let mut command = fleet(folder, endpoint, arguments);
        command.env("AWS_ENDPOINT_URL_S3", &s3);
        command
    };
    let folder = tempfile::tempdir().expect("a folder");
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("example"), folder.path());
    let folder = folder.path();
    // a unit that is in a window at every moment: its task is one that comes and goes
    let unit = std::fs::read_to_string(folder.join("units/risk.json")).expect("a unit");
    let unit = unit.replace("\"risk\"", "\"always\"").replace("risk.py", "always.py");
    let unit = unit.replace("\"calendar\": \"XNYS\"}", "\"calendar\": \"24/7\"}, \"window\": \"2d\"");
    let unit = unit.replace("\"cpu\": 32", "\"cpu\": 1").replace("128G", "4G");
    std::fs::write(folder.join("units/always.json"), unit).expect("a folder");

    let (exit, plan) = finish(fleet(folder, &endpoint, &["plan"])).await;
    assert_eq!(exit, 0, "{plan}");
    let services = plan["services"].as_array().expect("services").len();
    let (exit, _) = finish(fleet(folder, &endpoint, &["status"])).await;
    assert_eq!(exit, 5, "nothing is there yet");

    let created = |world: &Mutex<World>| {
        let world = world.lock().expect("no panic");
        let made = world.counters().sum(|_, _, op| op == "CreateService");
        made.calls - made.throttled
    };
    let mut killed = fleet(folder, &endpoint, &["apply"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    while created(&world) == 0 {
        assert!(killed.try_wait().expect("a child").is_none(), "it ended before its first service");
        tokio::task::yield_now().await;
    }
    // SIGKILL
    killed.kill().expect("it is killed");
    killed.wait().expect("it ends");
    assert!((created(&world) as usize) < services, "it was killed in the middle");

    let (exit, told) = finish(fleet(folder, &endpoint, &["apply"])).await;
    assert_eq!((exit, &told["outcome"]), (0, &"done".into()), "{told}");
    let put: Vec<_> = objects.lock().expect("no panic").keys().cloned().collect();
    let expected = ["always", "combo", "mom_12_1", "risk"].map(|unit| {
        format!("/trellis-bundles-111111111111-eu-central-1/bundles/units/trellis-unit-{unit}.json")
    });
    assert_eq!(put, expected, "each unit's task finds its bundle");
    let changes =
        world.lock().expect("no panic").counters().sum(|_, category, _| category == Category::ServiceModify);
    assert!(changes.calls as usize <= services + 1, "{changes:?} for {services}");
    let (exit, status) = finish(fleet(folder, &endpoint, &["status"])).await;
    assert_eq!(exit, 0, "{status}");

    // without its ledger it makes one from the tags, and changes nothing
    std::fs::remove_file(folder.join("ledger.jsonl")).expect("a ledger");
    let (exit, again) = finish(fleet(folder, &endpoint, &["apply"])).await;
    assert_eq!((exit, &again["calls"]["CreateService"]), (0, &serde_json::Value::Null), "{again}");
    assert_eq!(again["calls"]["UpdateService"], serde_json::Value::Null, "{again}");

    // what would be deleted needs a yes
    std::fs::remove_file(folder.join("units/risk.json")).expect("a unit");
    let (exit, refused) = finish(fleet(folder, &endpoint, &["apply"])).await;
    assert_eq!(exit, 2, "{refused}");
    let (exit, told) = finish(fleet(folder, &endpoint, &["apply", "--yes"])).await;
    assert_eq!((exit, &told["calls"]["DeleteService"]), (0, &1.into()), "{told}");
    let (exit, _) = finish(fleet(folder, &endpoint, &["explain", "trellis-head-0"])).await;
    assert_eq!(exit, 0);
    let (exit, _) = finish(fleet(folder, &endpoint, &["explain", "trellis-head-77"])).await;
    assert_eq!(exit, 3);
    server.abort();
}

struct Moto(Child);

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A moto server, and where it listens; none if this machine has no moto.
fn moto() -> Option<(Moto, String)> {
    let child = Command::new("moto_server")
        .args(["-H", "127.0.0.1", "-p", "0"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.ok()?;
    let mut lines = BufReader::new(child.stderr.take()?).lines();
    let server = Moto(child);
    let endpoint = lines.by_ref().map_while(Result::ok).find_map(|line| {
        let (_, address) = line.split_once("Running on ")?;
        Some(address.split_whitespace().next()?.to_owned())
    })?;
    // a full pipe would stop it
    std::thread::spawn(move || lines.for_each(drop));
    Some((server, endpoint))
}

async fn with_moto(endpoint: &str, target: &Target, mode: Mode) -> (Outcome, Engine) {
    let credentials = Credentials::new("ASIA9999999999990000", "secret", None, None, "test");
    let door = Door {
        endpoint: Some(endpoint.to_owned()),
        credentials: Some(SharedCredentialsProvider::new(credentials)),
        ..Door::of_process()
    };
    let aws = Aws::connect(&door, &target.grid, target.clusters.iter().map(|(place, _)| place.clone())).await;
    let mut engine = Engine::new(target.clone(), mode, BTreeMap::new(), Duration::ZERO);
    let outcome = run::run(&mut engine, &aws, Instant::now(), |_| {}).await;
    (outcome, engine)
}

/// moto starts no tasks, so the services here want none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moto_understands_what_fleet_says() {
    let Some((_server, endpoint)) = moto() else {
        return skipped("moto_server is not installed (deploy/aws/requirements.txt)");
    };
    let grid = |units, image| Grid { accounts: 2, clusters: 2, image, ..Grid::units(units) };
    let target = |units, image| {
        let mut target = grid(units, image).target();
        target.services.iter_mut().for_each(|service| service.desired = 0);
        // moto's core cluster is not needed
        target.clusters.retain(|(_, cluster)| cluster != "peony");
        target
    };
    // moto wants subnets that exist: each account has some of its own
    let mut networks = BTreeMap::new();
    for (place, cluster) in &target(12, 1).clusters {
        let credentials = Credentials::new("ASIA9999999999990000", "secret", None, None, "test");
        let door = Door {
            endpoint: Some(endpoint.clone()),
            credentials: Some(SharedCredentialsProvider::new(credentials)),
            ..Door::of_process()
        };
        let config = door.assume(place, &deployer_role("trellis", place)).await;
        let ecs = aws_sdk_ecs::Client::new(&config);
        ecs.create_cluster().cluster_name(cluster).send().await.expect("moto makes a cluster");
        let query = |action| {
            let query =
                Query { service: "ec2", region: REGION, action, version: "2016-11-15", parameters: vec![] };
            let (door, config) = (&door, &config);
            async move { query.send(door, config).await.expect("moto answers") }
        };
        let subnet = element(&query("DescribeSubnets").await, "subnetId").expect("a subnet");
        let group = element(&query("DescribeSecurityGroups").await, "groupId").expect("a group");
        let network = Network {
            subnets: [("eu-central-1a".to_owned(), vec![subnet])].into(),
            security_groups: [(Role::Unit, vec![group])].into(),
        };
        networks.insert(place.account.clone(), network);
    }
    let target = |units, image| Target { networks: networks.clone(), ..target(units, image) };
    let first = target(12, 1);
    let (outcome, engine) = with_moto(&endpoint, &first, Mode::default()).await;
    assert_eq!(outcome, Outcome::Done(vec![]));
    assert_eq!(engine.tally().calls["CreateService"], 12);
    let (outcome, engine) = with_moto(&endpoint, &target(12, 2), Mode::default()).await;
    assert_eq!(outcome, Outcome::Done(vec![]));
    assert_eq!(engine.tally().calls["UpdateService"], 12);
    assert_eq!(engine.tally().calls["RegisterTaskDefinition"], 2);
    let remove = Mode { remove: true, ..Mode::default() };
    let (outcome, engine) = with_moto(&endpoint, &target(4, 2), remove).await;
    assert_eq!(outcome, Outcome::Done(vec![]));
    assert_eq!(engine.tally().calls["DeleteService"], 8);
    let (outcome, engine) = with_moto(&endpoint, &target(4, 2), Mode::default()).await;
    assert_eq!(outcome, Outcome::Done(vec![]));
    assert!(!engine.tally().calls.contains_key("UpdateService"), "{:?}", engine.tally());
}
