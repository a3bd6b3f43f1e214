//! The world: accounts and Regions, one clock, one door.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use serde_json::{Value, json};

use crate::buckets::{Bucket, Category};
use crate::counters::Counters;
use crate::fail::{Answer, Fail};
use crate::kept::{CloudMap, Region};
use crate::settings::{Quotas, Settings};
use crate::time::{Ctx, Due};
use crate::{cloudmap, ecs, sqs, sts, wire};

/// In the extensions of a response: the connection broke, and the caller must see no response. The call may have been applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost;

/// A fake of AWS. All it does is a function of its settings, the calls it gets, and the times it gets them at.
#[derive(Debug)]
pub struct World {
    pub(crate) ctx: Ctx,
    pub(crate) regions: Vec<Region>,
    index: BTreeMap<(String, String), usize>,
}

impl World {
    /// An empty world at time zero.
    pub fn new(settings: Settings) -> Self {
        Self { ctx: Ctx::new(settings), regions: Vec::new(), index: BTreeMap::new() }
    }

    /// The time of the last call or advance.
    pub fn now(&self) -> Duration {
        self.ctx.now
    }

    /// When something will happen by itself next.
    pub fn next_at(&self) -> Option<Duration> {
        self.ctx.next_at()
    }

    /// What was called so far.
    pub fn counters(&self) -> &Counters {
        &self.ctx.counters
    }

    /// Counts from zero again.
    pub fn reset_counters(&mut self) {
        self.ctx.counters = Counters::default();
    }

    pub(crate) fn place(&mut self, account: &str, region: &str) -> usize {
        let key = (account.to_owned(), region.to_owned());
        if let Some(index) = self.index.get(&key) {
            return *index;
        }
        let index = self.regions.len();
        let quotas = self.ctx.set.quotas.clone();
        self.regions.push(Region {
            index,
            account: account.into(),
            name: region.into(),
            launches: Bucket::new(quotas.launch_burst, quotas.launch_rate),
            quotas,
            buckets: BTreeMap::new(),
            clusters: BTreeMap::new(),
            families: BTreeMap::new(),
            used: Default::default(),
            map: CloudMap::new(index),
            queues: Default::default(),
            account_settings: BTreeMap::new(),
        });
        self.index.insert(key, index);
        index
    }

    /// Other quotas for one account and Region.
    pub fn set_quotas(&mut self, account: &str, region: &str, quotas: Quotas) {
        let index = self.place(account, region);
        let place = &mut self.regions[index];
        place.launches = Bucket::new(quotas.launch_burst, quotas.launch_rate);
        place.quotas = quotas;
    }

    /// Makes what the CloudFormation stack of a cluster makes: the cluster with FARGATE, FARGATE_SPOT and these Managed Instances
    /// providers, and the queue of its events.
    pub fn cluster(&mut self, account: &str, region: &str, name: &str, managed: &[&str]) {
        let index = self.place(account, region);
        let managed: BTreeSet<String> = managed.iter().map(|name| (*name).to_owned()).collect();
        ecs::make_cluster(&self.ctx, &mut self.regions[index], name, managed);
    }

    /// Makes a private DNS namespace. Returns its id.
    pub fn namespace(&mut self, account: &str, region: &str, name: &str) -> String {
        let index = self.place(account, region);
        self.regions[index].map.make_namespace(&mut self.ctx, name, "DNS_PRIVATE").to_string()
    }

    /// Makes a Cloud Map service with A records, whose health ECS reports. Returns its ARN; none without the namespace.
    pub fn registry(&mut self, account: &str, region: &str, namespace: &str, name: &str) -> Option<String> {
        let index = self.place(account, region);
        let dns = json!({
            "NamespaceId": namespace, "RoutingPolicy": "MULTIVALUE", "DnsRecords": [{"Type": "A", "TTL": 10}],
        });
        let id = self.regions[index].map.make_service(&mut self.ctx, namespace, name, dns, true, None)?;
        Some(format!("arn:aws:servicediscovery:{region}:{account}:service/{id}"))
    }

    /// Shares a namespace with another account. That account can discover instances, and ECS there still cannot register tasks.
    pub fn share(&mut self, account: &str, region: &str, namespace: &str, with: &str) {
        let index = self.place(account, region);
        self.regions[index].map.share(namespace, with);
    }

    /// The addresses that DNS answers for `name.namespace`: 8 at most.
    pub fn dns(&mut self, account: &str, region: &str, namespace: &str, name: &str) -> Vec<String> {
        let index = self.place(account, region);
        self.regions[index].map.dns(&mut self.ctx, namespace, name)
    }

    /// Lets everything happen that is due by `now`. A time before the last one counts as the last one.
    pub fn advance(&mut self, now: Duration) {
        while let Some(due) = self.ctx.next(now) {
            let (Due::Step { region, .. }
            | Due::Settle { region, .. }
            | Due::ForgetTask { region, .. }
            | Due::Schedule { region, .. }
            | Due::ForgetService { region, .. }
            | Due::ForgetInstance { region, .. }) = &due;
            let place = &mut self.regions[*region];
            let ctx = &mut self.ctx;
            match due {
                Due::Step { cluster, task, version, .. } => {
                    ecs::step_task(ctx, place, &cluster, task, version)
                }
                Due::Settle { cluster, task, version, .. } => {
                    ecs::settle_task(ctx, place, &cluster, task, version)
                }
                Due::ForgetTask { cluster, task, .. } => ecs::forget_task(place, &cluster, task),
                Due::Schedule { cluster, service, serial, .. } => {
                    ecs::look(ctx, place, &cluster, &service, serial)
                }
                Due::ForgetService { cluster, service, serial, .. } => {
                    if let Some(home) = place.clusters.get_mut(&cluster)
                        && home.services.get(&service).is_some_and(|each| each.serial == serial)
                    {
                        home.services.remove(&service);
                    }
                }
                Due::ForgetInstance { service, instance, .. } => {
                    place.map.forget(ctx.now, &service, &instance)
                }
            }
        }
        self.ctx.now = self.ctx.now.max(now);
    }

    /// Answers a call at a time. A response with `Lost` in its extensions must reach the caller as a broken connection.
    pub fn handle(&mut self, now: Duration, request: &Request<Bytes>) -> Response<Bytes> {
        self.advance(now);
        let call = match wire::parse(request) {
            Ok(call) => call,
            Err(why) => return wire::refusal(wire::Protocol::Json11, &why, self.ctx.serial()),
        };
        let account = sts::account(&call.key).unwrap_or(&self.ctx.set.account).to_owned();
        let index = self.place(&account, &call.region);
        let counted = |world: &mut Self, work: &dyn Fn(&mut crate::counters::Calls)| {
            work(world.ctx.counters.of(&account, &call.region, call.category, &call.op));
        };
        counted(self, &|calls| calls.calls += 1);
        if self.ctx.faults.is_away(&account, self.ctx.now) {
            counted(self, &|calls| calls.lost += 1);
            return lost();
        }
        if self.ctx.keys.get(&call.key).is_some_and(|ends| *ends <= self.ctx.now) {
            counted(self, &|calls| calls.refused += 1);
            let name =
                if call.protocol == wire::Protocol::Query { "ExpiredToken" } else { "ExpiredTokenException" };
            let why = Fail::new(name, 400, "The security token included in the request is expired");
            return wire::refusal(call.protocol, &why, self.ctx.serial());
        }
        let factor = self.ctx.faults.factor(&account);
        let rate = self.ctx.set.rates.iter().find(|(category, ..)| *category == call.category);
        let (burst, rate) = rate.map_or_else(|| call.category.rate(), |(_, burst, rate)| (*burst, *rate));
        let bucket =
            self.regions[index].buckets.entry(call.category).or_insert_with(|| Bucket::new(burst, rate));
        if !bucket.take(self.ctx.now, factor) {
            counted(self, &|calls| calls.throttled += 1);
            return wire::refusal(call.protocol, &throttled(call.category), self.ctx.serial());
        }
        self.ctx.changed = false;
        let answer = match call.protocol {
            wire::Protocol::Query => {
                let form = sts::form(request.body());
                let answer = sts::handle(&mut self.ctx, &account, &call.key, &call.op, &form);
                answer.map(Value::String)
            }
            _ => self.json(index, &call, request.body()),
        };
        match &answer {
            Err(_) => counted(self, &|calls| calls.refused += 1),
            Ok(_) if call.changes() && !self.ctx.changed => counted(self, &|calls| calls.wasted += 1),
            Ok(_) => {}
        }
        let serial = self.ctx.serial();
        if self.loses(&call.op, serial) {
            counted(self, &|calls| calls.lost += 1);
            return lost();
        }
        match answer {
            Ok(answer) => wire::success(call.protocol, &call.op, answer, serial),
            Err(why) => wire::refusal(call.protocol, &why, serial),
        }
    }

    /// Whether the queue that a ReceiveMessage names has a message; true for any other call, which has nothing to wait for.
    pub(crate) fn has_message(&mut self, now: Duration, request: &Request<Bytes>) -> bool {
        self.advance(now);
        let Ok(call) = wire::parse(request) else { return true };
        let account = sts::account(&call.key).unwrap_or(&self.ctx.set.account).to_owned();
        let index = self.place(&account, &call.region);
        sqs::has_message(self.ctx.now, &mut self.regions[index], request)
    }

    fn loses(&mut self, op: &str, serial: u64) -> bool {
        let faults = &mut self.ctx.faults;
        if let Some(at) = faults.lose_next.iter().position(|name| name == op) {
            faults.lose_next.remove(at);
            return true;
        }
        let share = faults.answers_lost;
        self.ctx.draw_share(share, "answer lost", serial)
    }

    fn json(&mut self, index: usize, call: &wire::Call, body: &[u8]) -> Answer {
        let body: Value = match body {
            [] => json!({}),
            body => serde_json::from_slice(body)
                .map_err(|why| Fail::new("SerializationException", 400, why.to_string()))?,
        };
        let ctx = &mut self.ctx;
        match call.service {
            wire::Service::Ecs => ecs::handle(ctx, &mut self.regions[index], &call.op, &body),
            wire::Service::Sqs => sqs::handle(ctx, &mut self.regions[index], &call.op, &body),
            wire::Service::CloudMap if call.op.starts_with("DiscoverInstances") => {
                let account = self.regions[index].account.clone();
                let asked = cloudmap::Asked::read(&account, &call.op, &body)?;
                let owner = self.index.get(&(asked.owner().to_owned(), call.region.clone()));
                let owner = owner.ok_or_else(|| Fail::new("NamespaceNotFound", 404, "No such namespace."))?;
                asked.answer(ctx, &mut self.regions[*owner].map)
            }
            wire::Service::CloudMap => cloudmap::handle(ctx, &mut self.regions[index], &call.op, &body),
            wire::Service::Sts => Err(Fail::not_faked("STS in JSON")),
        }
    }
}

fn throttled(category: Category) -> Fail {
    match category {
        Category::Discover | Category::DiscoverRevision => {
            Fail::new("RequestLimitExceeded", 429, "The request rate limit was exceeded.")
        }
        Category::Queue => {
            Fail::new("RequestThrottled", 400, "The request was denied due to request throttling.")
        }
        Category::Token => Fail::new("Throttling", 400, "Rate exceeded"),
        _ => Fail::new("ThrottlingException", 400, "Rate exceeded"),
    }
}

fn lost() -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
    response.extensions_mut().insert(Lost);
    response
}
