use super::*;
use crate::{
    class::{Arch, Need, size},
    desired::{Desired, Flower, tests::example},
    model::Place,
};

/// A grid of one account of the network and `units` accounts of units, with the given quota of vCPUs and of services per cluster.
pub(super) fn grid(units: usize, vcpu: u64, services: u64) -> Grid {
    let mut grid = Desired::parse(&example()).unwrap().grid;
    let owner = grid.accounts[0].clone();
    let account = grid.accounts[1].clone();
    grid.accounts = vec![owner];
    grid.flowers = vec![flower("peony", "111111111111", &[])];
    for i in 0..units {
        let number = format!("2222222222{i:02}");
        let mut account = account.clone();
        account.place.account = number.clone();
        account.quotas.fargate_vcpu = vcpu;
        account.quotas.fargate_spot_vcpu = vcpu;
        account.quotas.ec2_vcpu = vcpu;
        account.quotas.interfaces = 100_000;
        account.quotas.services_per_cluster = services;
        grid.accounts.push(account);
        grid.flowers.push(flower(flowers::FLOWERS[i + 1], &number, &[Provider::General]));
    }
    grid.address_units = 1_000_000;
    grid
}

pub(super) fn flower(flower: &str, account: &str, providers: &[Provider]) -> Flower {
    let providers = providers.iter().copied().collect();
    Flower { flower: flower.to_owned(), account: account.to_owned(), providers, drain: false }
}

pub(super) fn item(role: Role, name: impl std::fmt::Display, cpu: f64) -> Item {
    let need = Need { cpu, memory: 4 << 30, gpu: 0, arch: Arch::X86, spot: false };
    let service = format!("trellis-{}-{name}", role.word());
    Item { service, role, size: size(&need).unwrap(), apart: None }
}

pub(super) fn units(count: usize) -> Vec<Item> {
    (0..count).map(|i| item(Role::Unit, format!("u{i}"), 1.0)).collect()
}

/// The ledger after a placement.
pub(super) fn ledger(grid: &Grid, items: &[Item], placed: &Placed) -> Ledger {
    let mut ledger = Ledger::default();
    for item in items {
        let Some(seat) = placed.seats.get(&item.service) else { continue };
        ledger.insert(Entry {
            service: item.service.clone(),
            role: item.role,
            place: Place { account: seat.account.clone(), region: grid.region.clone() },
            cluster: seat.flower.clone(),
            zone: seat.zone.clone(),
            size: item.size,
            definition: String::new(),
            deployed_ns: None,
        });
    }
    ledger
}

/// The grid with the clusters that a placement opened.
pub(super) fn with_openings(grid: &Grid, placed: &Placed) -> Grid {
    let mut grid = grid.clone();
    for opening in &placed.openings {
        let providers: Vec<_> = opening.providers.iter().copied().collect();
        grid.flowers.push(flower(&opening.flower, &opening.account, &providers));
    }
    grid
}

/// Says what of a placement is above what may be used, counted from nothing.
pub(super) fn exceeded(grid: &Grid, items: &[Item], placed: &Placed) -> Vec<String> {
    let mut over = Vec::new();
    let seated: Vec<_> =
        items.iter().filter_map(|item| Some((item, placed.seats.get(&item.service)?))).collect();
    for account in &grid.accounts {
        let here: Vec<_> = seated.iter().filter(|(_, seat)| seat.account == account.place.account).collect();
        let vcpus = |provider: Provider| {
            here.iter()
                .filter(|(item, _)| item.size.provider == provider)
                .map(|(item, _)| f64::from(item.size.cpu) / 1024.0)
                .sum::<f64>()
        };
        let q = &account.quotas;
        for (what, used, quota) in [
            ("fargate", vcpus(Provider::Fargate), q.fargate_vcpu),
            ("spot", vcpus(Provider::FargateSpot), q.fargate_spot_vcpu),
            ("ec2", vcpus(Provider::General) + vcpus(Provider::Memory), q.ec2_vcpu),
            ("interfaces", here.len() as f64, q.interfaces),
        ] {
            if used > quota as f64 * 0.8 {
                over.push(format!("{what} of {}: {used}", account.place.account));
            }
        }
        let flowers: BTreeSet<_> = here.iter().map(|(_, seat)| &seat.flower).collect();
        for flower in flowers {
            let count = |role: Option<Role>| {
                here.iter()
                    .filter(|(item, seat)| {
                        seat.flower == *flower && role.is_none_or(|role| item.role == role)
                    })
                    .count() as f64
            };
            let registered = count(Some(Role::Head)) + count(Some(Role::Shard));
            for (what, used, quota) in [
                ("services", count(None), q.services_per_cluster),
                ("instances", registered, q.instances_per_namespace),
                ("heads", count(Some(Role::Head)), 1_000),
                ("shards", count(Some(Role::Shard)), 1_000),
            ] {
                if used > quota as f64 * 0.8 {
                    over.push(format!("{what} of {flower}: {used}"));
                }
            }
        }
    }
    if seated.len() as f64 > grid.address_units as f64 * 0.8 {
        over.push(format!("address units: {}", seated.len()));
    }
    over
}

/// The target: 40,000 units over 4 accounts and 12 clusters, 2,000 heads and 2,000 shards over 3 core clusters.
#[test]
fn the_target_fits_in_as_many_clusters_as_the_quotas_allow() {
    let mut grid = grid(4, 13_000, 5_000);
    for account in &mut grid.accounts {
        (account.quotas.fargate_vcpu, account.quotas.interfaces) = (30_000, 15_000);
    }
    let mut items = units(40_000);
    items.extend((0..2_000).flat_map(|i| [item(Role::Head, i, 8.0), item(Role::Shard, i, 4.0)]));
    let placed = place(&grid, &items, &Ledger::default());
    assert_eq!((&placed.refused, placed.seats.len()), (&vec![], 44_000));
    assert_eq!(exceeded(&grid, &items, &placed), Vec::<String>::new());
    let clusters = |kind| placed.openings.iter().filter(|opening| opening.kind == kind).count();
    assert_eq!(clusters(Kind::Core) + 1, 3, "800 of a name in each");
    assert_eq!(clusters(Kind::Unit) + 4, 12, "4,000 in each");
    let accounts = &grid.accounts[1..];
    for account in accounts {
        let here = placed.seats.values().filter(|seat| seat.account == account.place.account).count();
        assert!((9_700..10_300).contains(&here), "{here} of 40,000 in one of four equal accounts");
    }
}

#[test]
fn a_new_account_takes_its_share_of_new_units_and_moves_none() {
    for weight in 1..4_u64 {
        let few = grid(3, 100_000, 5_000);
        let first = place(&few, &units(1_000), &Ledger::default());
        let mut more = grid(4, 100_000, 5_000);
        more.accounts[4].weight = weight;
        let ledger = ledger(&few, &units(1_000), &first);
        let all = units(5_000);
        let second = place(&more, &all, &ledger);
        assert_eq!(second.moved.len(), 0);
        assert!(first.seats.iter().all(|(name, seat)| second.seats[name] == *seat));
        let new = all.iter().filter(|item| !first.seats.contains_key(&item.service));
        let share = new.clone().filter(|item| second.seats[&item.service].account == "222222222203").count()
            as f64
            / new.count() as f64;
        let fair = weight as f64 / (3 + weight) as f64;
        assert!((share - fair).abs() < 0.03, "{share} of the new units, {fair} is its share");
        // and without a ledger, only what goes to the new account is elsewhere
        let fresh = place(&more, &all, &Ledger::default());
        let before = place(&few, &all, &Ledger::default());
        let elsewhere = |name: &String| fresh.seats[name].account != before.seats[name].account;
        assert!(
            before
                .seats
                .keys()
                .filter(|name| elsewhere(name))
                .all(|name| fresh.seats[name].account == "222222222203")
        );
    }
}

#[test]
fn the_quota_that_binds_is_named_and_the_increase_is_enough() {
    let grid = grid(1, 100, 5_000);
    let items = units(1_000);
    let placed = place(&grid, &items, &Ledger::default());
    assert_eq!(placed.seats.len(), 80, "80 percent of 100 vCPUs");
    assert_eq!(placed.refused.len(), 920);
    assert!(placed.refused[0].why.contains("quotas.fargate_vcpu"), "{}", placed.refused[0].why);
    let ask = Ask { quota: Quota::FargateVcpu, account: "222222222200".to_owned(), have: 100, ask: 1_300 };
    assert_eq!(placed.asks, [ask], "1,000 / 0.8, in steps of a hundred");
    let mut raised = grid;
    raised.accounts[1].quotas.fargate_vcpu = 1_300;
    assert_eq!(place(&raised, &items, &Ledger::default()).refused, []);
}

#[test]
fn the_address_units_of_the_vpc_bind_all_accounts_together() {
    let mut grid = grid(2, 10_000, 5_000);
    grid.address_units = 100;
    let placed = place(&grid, &units(150), &Ledger::default());
    assert_eq!(placed.seats.len(), 80);
    assert!(placed.refused[0].why.contains("address_units"), "{}", placed.refused[0].why);
    let quotas: Vec<_> = placed.asks.iter().map(|ask| (ask.quota, ask.account.as_str(), ask.ask)).collect();
    assert_eq!(quotas, [(Quota::AddressUnits, "111111111111", 200)]);
}

#[test]
fn a_provider_that_no_cluster_has_is_named() {
    let mut grid = grid(1, 10_000, 5_000);
    grid.flowers[1].providers.clear();
    let placed = place(&grid, &[item(Role::Unit, "big", 32.0)], &Ledger::default());
    assert!(placed.refused[0].why.contains("the provider general"), "{}", placed.refused[0].why);
}

#[test]
fn shards_of_the_same_series_are_apart() {
    let grid = grid(0, 0, 10);
    let mut grid = grid;
    grid.accounts[0].quotas.fargate_vcpu = 10_000;
    let shard = |i: usize| Item { apart: Some("fx".to_owned()), ..item(Role::Shard, i, 4.0) };
    let shards: Vec<_> = (0..7).map(shard).collect();
    let placed = place(&grid, &shards, &Ledger::default());
    assert_eq!(placed.refused, []);
    let seats: BTreeSet<_> = placed.seats.values().map(|seat| (&seat.flower, &seat.zone)).collect();
    assert_eq!(seats.len(), 7, "no two in the same zone of the same cluster");
    assert_eq!(placed.openings.len(), 2, "three zones in each cluster");
    let zones: BTreeSet<_> = shards[..3].iter().map(|shard| &placed.seats[&shard.service].zone).collect();
    assert_eq!(zones.len(), 3, "the first three are in three zones");
    let again = place(&with_openings(&grid, &placed), &shards, &ledger(&grid, &shards, &placed));
    assert_eq!((again.seats, again.moved), (placed.seats, BTreeMap::new()));
}

#[test]
fn a_drained_cluster_empties_and_its_name_is_not_used_for_another() {
    let mut grid = grid(1, 10_000, 5_000);
    let items = units(10);
    let placed = place(&grid, &items, &Ledger::default());
    let before = ledger(&grid, &items, &placed);
    grid.flowers[1].drain = true;
    let drained = place(&grid, &items, &before);
    assert_eq!(drained.moved.len(), 10);
    assert!(drained.moved.values().all(|why| why.contains("drained")));
    assert!(drained.seats.values().all(|seat| seat.flower == "violet"), "peony and tulip exist");
    grid.flowers.remove(1);
    let gone = place(&grid, &items, &before);
    assert!(gone.seats.values().all(|seat| seat.flower == "violet"), "tulip may still exist");
}

#[test]
fn there_are_names_for_more_than_64_clusters_and_each_is_one_of_the_template() {
    let mut taken = BTreeSet::new();
    while let Some(name) = flowers::next(&taken) {
        let (word, number) = name.split_once('-').unwrap_or((&name, "2"));
        assert!((3..=14).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_lowercase()), "{name}");
        assert!(("2"..="9").contains(&number), "{name}");
        taken.insert(name);
    }
    assert_eq!(taken.len(), 72 * 9);
}
