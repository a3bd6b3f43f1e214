//! A fleet of units over a fake of AWS in the same process, on a clock that stands still while nobody waits.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use aws_smithy_async::time::{SharedTimeSource, TimeSource};
use aws_smithy_runtime_api::client::{
    http::{
        HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
        SharedHttpConnector,
    },
    orchestrator::{HttpRequest, HttpResponse},
    result::ConnectorError,
    runtime_components::RuntimeComponents,
};
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use serde_json::json;
use tokio::time::Instant;
use trellis_aws_fake::{Lost, Settings, World};
use trellis_fleet::{
    aws::{Aws, Door},
    model::{Place, Role, Service},
    reconcile::{Engine, Mode, Network, Outcome, Target},
    run,
};

/// Region of all tests.
pub(crate) const REGION: &str = "eu-central-1";
/// Time that a call takes on its way.
const LATENCY: Duration = Duration::from_millis(80);
/// Time zero of the fake: 2026-11-30.
const EPOCH: u64 = 1_796_000_000;

/// The fake and its clock.
#[derive(Clone)]
pub(crate) struct Fake {
    world: Arc<Mutex<World>>,
    start: Instant,
}

impl std::fmt::Debug for Fake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fake")
    }
}

impl TimeSource for Fake {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(EPOCH) + self.start.elapsed()
    }
}

impl HttpConnector for Fake {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let fake = self.clone();
        HttpConnectorFuture::new(async move {
            tokio::time::sleep(LATENCY).await;
            let request = request.try_into_http1x().expect("an HTTP request");
            let request = request.map(|body| Bytes::copy_from_slice(body.bytes().expect("a body in memory")));
            let response = fake.world().handle(fake.start.elapsed(), &request);
            tokio::time::sleep(LATENCY).await;
            if response.extensions().get::<Lost>().is_some() {
                return Err(ConnectorError::io("the connection broke".into()));
            }
            let response = response.map(SdkBody::from);
            HttpResponse::try_from(response).map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}

impl HttpClient for Fake {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl Fake {
    pub(crate) fn new(settings: Settings) -> Self {
        let settings = Settings { epoch: EPOCH, ..settings };
        Self { world: Arc::new(Mutex::new(World::new(settings))), start: Instant::now() }
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().expect("no test panicked with it")
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Milliseconds since 1970, by the clock of the fake.
    pub(crate) fn now_ms(&self) -> i64 {
        i64::try_from((Duration::from_secs(EPOCH) + self.start.elapsed()).as_millis())
            .expect("a time of this age")
    }

    /// The world, after everything that is due by now.
    pub(crate) fn today(&self) -> MutexGuard<'_, World> {
        let mut world = self.world();
        world.advance(self.start.elapsed());
        world
    }

    pub(crate) fn door(&self) -> Door {
        let credentials = Credentials::new("ASIA9999999999990000", "secret", None, None, "test");
        Door {
            http: SharedHttpClient::new(self.clone()),
            connector: SharedHttpConnector::new(self.clone()),
            time: Some(SharedTimeSource::new(self.clone())),
            endpoint: None,
            credentials: Some(SharedCredentialsProvider::new(credentials)),
        }
    }

    /// A `fleet` that is started now and runs to its end.
    pub(crate) async fn fleet(&self, target: &Target, mode: Mode) -> (Outcome, Engine) {
        let (outcome, engine) = self.fleet_until(target, mode, Duration::from_secs(100_000)).await;
        (outcome.expect("it ends within a day"), engine)
    }

    /// A `fleet` that is started now and killed after a while, if it has not ended. Then the outcome is none.
    pub(crate) async fn fleet_until(
        &self,
        target: &Target,
        mode: Mode,
        life: Duration,
    ) -> (Option<Outcome>, Engine) {
        let start = Instant::now();
        let places = target.clusters.iter().map(|(place, _)| place.clone());
        let aws = Aws::connect(&self.door(), &target.grid, places).await;
        let mut engine = Engine::new(target.clone(), mode, BTreeMap::new(), Duration::ZERO);
        let show = std::env::var_os("TRELLIS_FLEET_SHOW").is_some();
        let running = run::run(&mut engine, &aws, start, |engine| {
            if show {
                eprintln!("{:?} {:?}", self.start.elapsed(), engine.progress());
            }
        });
        let outcome = tokio::time::timeout(life, running).await.ok();
        (outcome, engine)
    }
}

pub(crate) fn place(account: usize) -> Place {
    Place { account: format!("{:012}", 111_111_111_111 * (account as u64 + 1)), region: REGION.into() }
}

/// The clusters of the tests, in order: the first is the core, the others are spread over the accounts.
const FLOWERS: [&str; 13] = [
    "peony", "tulip", "violet", "lily", "dahlia", "aster", "iris", "poppy", "lotus", "orchid", "rose",
    "daisy", "lilac",
];

/// A grid of units over `clusters` clusters in `accounts` accounts, and as many heads and shards as named in a core cluster of
/// the first account.
pub(crate) struct Grid {
    pub(crate) accounts: usize,
    pub(crate) clusters: usize,
    pub(crate) units: usize,
    pub(crate) heads: usize,
    pub(crate) shards: usize,
    /// Changes the task definitions.
    pub(crate) image: u32,
}

impl Grid {
    pub(crate) fn units(units: usize) -> Self {
        Self { accounts: 4, clusters: 12, units, heads: 0, shards: 0, image: 1 }
    }

    fn cluster(&self, unit: usize) -> (Place, String) {
        let cluster = unit % self.clusters;
        (place(cluster % self.accounts), FLOWERS[cluster + 1].to_owned())
    }

    /// A fake with the clusters of the grid.
    pub(crate) fn fake(&self) -> Fake {
        let fake = Fake::new(Settings::default());
        self.build(&fake);
        fake
    }

    /// Makes the clusters in the fake.
    fn build(&self, fake: &Fake) {
        let mut world = fake.world();
        for cluster in 0..self.clusters {
            let (place, name) = self.cluster(cluster);
            world.cluster(&place.account, REGION, &name, &[]);
        }
        world.cluster(&place(0).account, REGION, FLOWERS[0], &[]);
        let namespace = world.namespace(&place(0).account, REGION, "peony.trellis.internal");
        for name in ["head", "shard"] {
            world.registry(&place(0).account, REGION, &namespace, name).expect("a namespace");
        }
    }

    fn service(&self, role: Role, index: usize, place: Place, cluster: String) -> Service {
        let definition = format!("{:016x}", self.image);
        let own = if role == Role::Unit { String::new() } else { format!("{index}-") };
        Service {
            name: format!("trellis-{}-{index}", role.word()),
            role,
            family: format!("trellis-{cluster}-{}-{own}{definition}", role.word()),
            place,
            cluster,
            zone: None,
            definition,
            provider: "FARGATE".into(),
            desired: 1,
            registry: (role != Role::Unit).then(|| role.word().to_owned()),
            deployed_after_ms: None,
            grace_seconds: (role != Role::Unit).then_some(60),
            tags: [
                ("trellis:grid".to_owned(), "trellis".to_owned()),
                ("trellis:role".to_owned(), role.word().to_owned()),
            ]
            .into(),
        }
    }

    pub(crate) fn target(&self) -> Target {
        let mut services: Vec<Service> = (0..self.units)
            .map(|unit| {
                let (place, cluster) = self.cluster(unit);
                self.service(Role::Unit, unit, place, cluster)
            })
            .collect();
        for (role, count) in [(Role::Head, self.heads), (Role::Shard, self.shards)] {
            services.extend((0..count).map(|index| self.service(role, index, place(0), FLOWERS[0].into())));
        }
        let definitions = services
            .iter()
            .map(|service| {
                let body = json!({
                    "family": service.family, "networkMode": "awsvpc", "requiresCompatibilities": ["FARGATE", "MANAGED_INSTANCES"],
                    "cpu": "1024", "memory": "4096",
                    "containerDefinitions": [{"name": service.role.word(), "image": format!("registry/trellis@sha256:{:064x}", self.image),
                        "essential": true}],
                    "tags": [{"key": "trellis:grid", "value": "trellis"}],
                });
                (service.family.clone(), Arc::new(body))
            })
            .collect();
        let mut clusters: Vec<_> = (0..self.clusters).map(|cluster| self.cluster(cluster)).collect();
        clusters.push((place(0), FLOWERS[0].into()));
        let network = Network {
            subnets: [("eu-central-1a".to_owned(), vec!["subnet-0a".to_owned()])].into(),
            security_groups: [Role::Unit, Role::Head, Role::Shard, Role::Collector]
                .into_iter()
                .map(|role| (role, vec!["sg-01".to_owned()]))
                .collect(),
        };
        Target {
            grid: "trellis".into(),
            domain: "trellis.internal".into(),
            clusters,
            services,
            definitions,
            networks: (0..self.accounts).map(|account| (place(account).account, network.clone())).collect(),
            schedule: Vec::new(),
        }
    }
}

/// Running tasks by service.
pub(crate) fn running(fake: &Fake, target: &Target) -> BTreeMap<String, usize> {
    let mut running = BTreeMap::new();
    let world = fake.today();
    for (place, cluster) in &target.clusters {
        for (service, status) in world.tasks(&place.account, REGION, cluster) {
            if status == "RUNNING" {
                *running.entry(service).or_default() += 1;
            }
        }
    }
    running
}

/// Copies a folder.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("the example") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).expect("a copy");
        }
    }
}
