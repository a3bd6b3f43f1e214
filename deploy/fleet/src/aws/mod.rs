//! The one door of the SDK: everything that reaches AWS goes through here, and nothing here decides anything.
//!
//! The SDK does not try again: `pace` knows the rates and `reconcile` knows what a failure means.

mod door;
mod ecs;
mod fault;
mod query;
mod rest;

use std::collections::BTreeMap;

pub use self::{
    door::{Door, bootstrap_role, deployer_role},
    query::{Query, Refusal, element},
};
use crate::{
    call::{Answer, Call, Fault, Kind, What},
    model::Place,
};

#[derive(Debug)]
struct Clients {
    ecs: aws_sdk_ecs::Client,
    names: aws_sdk_servicediscovery::Client,
    queues: aws_sdk_sqs::Client,
}

/// The clients of every place.
#[derive(Debug)]
pub struct Aws {
    grid: String,
    places: BTreeMap<Place, Clients>,
}

impl Aws {
    /// Makes clients for the deployer role of each place. Nothing is called yet.
    pub async fn connect(door: &Door, grid: &str, places: impl IntoIterator<Item = Place>) -> Self {
        let mut clients = BTreeMap::new();
        for place in places {
            if clients.contains_key(&place) {
                continue;
            }
            let config = door.assume(&place, &deployer_role(grid, &place)).await;
            clients.insert(
                place,
                Clients {
                    ecs: aws_sdk_ecs::Client::new(&config),
                    names: aws_sdk_servicediscovery::Client::new(&config),
                    queues: aws_sdk_sqs::Client::new(&config),
                },
            );
        }
        Self { grid: grid.to_owned(), places: clients }
    }

    /// Sends a call, once.
    ///
    /// # Errors
    /// What AWS or the transport says, with its kind.
    pub async fn call(&self, call: &Call) -> Result<Answer, Fault> {
        let Some(clients) = self.places.get(&call.place) else {
            let Place { account, region } = &call.place;
            let message = format!("no client for account {account} in {region}: this is a bug of fleet");
            return Err(Fault { kind: Kind::Refused, message });
        };
        match &call.what {
            What::ListServices { cluster, page } => ecs::list(&clients.ecs, cluster, page.clone()).await,
            What::DescribeServices { cluster, names } => ecs::describe(&clients.ecs, cluster, names).await,
            What::CreateService(create) => ecs::create(&clients.ecs, create).await,
            What::UpdateService { cluster, name, change } => {
                ecs::update(&clients.ecs, cluster, name, change).await
            }
            What::DeleteService { cluster, name } => ecs::delete(&clients.ecs, cluster, name).await,
            What::FindDefinition { family } => ecs::find_definition(&clients.ecs, family).await,
            What::Register { family, body } => ecs::register(&clients.ecs, &self.grid, family, body).await,
            What::FindNamespace { name } => rest::find_namespace(&clients.names, name).await,
            What::FindRegistries { namespace } => rest::find_registries(&clients.names, namespace).await,
            What::FindQueue { name } => rest::find_queue(&clients.queues, name).await,
            What::Receive { url } => rest::receive(&clients.queues, url).await,
            What::Forget { url, receipts } => rest::forget(&clients.queues, url, receipts).await,
        }
    }
}
