//! Thousands of services in twelve clusters of four accounts. The tests of `fleet` go to forty thousand.

use std::time::Duration;

use serde_json::json;
use trellis_aws_fake::{Category, Settings};

use crate::client::{Client, REGION, service};

const ACCOUNTS: usize = 4;
const CLUSTERS: usize = 3;
const SERVICES: usize = 4_000;

/// Creates all of them as fast as each account's bucket allows, and waits until they run. The floor is known: the burst, then five a
/// second.
#[test]
fn services_start_at_the_rate_of_their_accounts() {
    let mut client = Client::new(Settings::default());
    let accounts: Vec<String> = (0..ACCOUNTS).map(|i| format!("{}", 300_000_000_000 + i)).collect();
    let clusters: Vec<String> = (0..CLUSTERS).map(|i| format!("flower{i}")).collect();
    for account in &accounts {
        for cluster in &clusters {
            client.world.cluster(account, REGION, cluster, &[]);
        }
        client.account.clone_from(account);
        client.definition("unit");
    }
    let each = SERVICES / ACCOUNTS;
    let mut made = [0; ACCOUNTS];
    while made.iter().any(|count| *count < each) {
        for (account, count) in accounts.iter().zip(&mut made) {
            client.account.clone_from(account);
            while *count < each {
                let mut body = service(&format!("unit-{count}"), "unit:1");
                body["cluster"] = json!(clusters[*count % CLUSTERS]);
                if client.ecs("CreateService", body).is_err() {
                    break;
                }
                *count += 1;
            }
        }
        client.now += Duration::from_secs(1);
    }
    let floor = (each - Category::ServiceModify.rate().0 as usize) as f64 / Category::ServiceModify.rate().1;
    assert!((client.now.as_secs_f64() - floor).abs() < 3.0, "{:?} beside {floor}", client.now);
    client.wait(300);
    for account in &accounts {
        client.account.clone_from(account);
        let answer = client.ecs("DescribeClusters", json!({"clusters": clusters})).unwrap();
        let running: u64 = answer["clusters"]
            .as_array()
            .unwrap()
            .iter()
            .map(|each| each["runningTasksCount"].as_u64().unwrap())
            .sum();
        assert_eq!(running, each as u64);
    }
}
