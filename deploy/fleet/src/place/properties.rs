//! Placement against rules that are slow and plain.

use proptest::prelude::*;

use super::{
    tests::{exceeded, flower, grid, item, ledger, with_openings},
    *,
};
use crate::{
    class::{Arch, Need, size},
    desired::Flower,
};

/// The rules of the module's first lines, each look-up a search through everything that was placed.
fn slow(grid: &Grid, items: &[Item], ledger: &Ledger) -> (BTreeMap<String, Seat>, Vec<String>) {
    let mut seats: BTreeMap<String, Seat> = BTreeMap::new();
    let mut flowers: Vec<Flower> = grid.flowers.clone();
    let account =
        |number: &str| grid.accounts.iter().find(|account| account.place.account == number).unwrap();
    let fits = |seats: &BTreeMap<String, Seat>, item: &Item, seat: &Seat| {
        let mut with = Placed { seats: seats.clone(), ..Placed::default() };
        let before = exceeded(grid, items, &with).len();
        with.seats.insert(item.service.clone(), seat.clone());
        exceeded(grid, items, &with).len() <= before
    };
    let seat =
        |flower: &Flower, zone| Seat { account: flower.account.clone(), flower: flower.flower.clone(), zone };
    let mut sorted: Vec<_> = items.iter().collect();
    sorted.sort_by_key(|item| &item.service);
    let allowed = |item: &Item, flower: &Flower| {
        let account = account(&flower.account);
        let offers = !item.size.provider.is_managed() || flower.providers.contains(&item.size.provider);
        account.kind == Kind::of(item.role) && !account.drain && !flower.drain && offers
    };
    for same_size in [true, false] {
        for item in &sorted {
            let Some(entry) =
                ledger.get(&item.service).filter(|entry| (entry.size == item.size) == same_size)
            else {
                continue;
            };
            let Some(flower) = flowers.iter().find(|flower| flower.flower == entry.cluster) else { continue };
            let old = seat(flower, None);
            if allowed(item, flower) && (same_size || fits(&seats, item, &old)) {
                seats.insert(item.service.clone(), old);
            }
        }
    }
    let mut refused = Vec::new();
    for item in sorted {
        if seats.contains_key(&item.service) {
            continue;
        }
        let mut found = None;
        for i in ranked(grid, item.role, &item.service) {
            let account = &grid.accounts[i].place.account;
            let theirs: Vec<_> =
                flowers.iter().filter(|flower| flower.account == *account).cloned().collect();
            let providers: Vec<_> = theirs.iter().flat_map(|flower| flower.providers.clone()).collect();
            found = theirs
                .iter()
                .filter(|flower| allowed(item, flower))
                .map(|flower| seat(flower, None))
                .find(|seat| fits(&seats, item, seat));
            if found.is_none() {
                let taken = flowers
                    .iter()
                    .map(|flower| flower.flower.clone())
                    .chain(ledger.entries().map(|entry| entry.cluster.clone()))
                    .collect();
                let fresh = self::flower(&flowers::next(&taken).unwrap(), account, &providers);
                if allowed(item, &fresh) && fits(&seats, item, &seat(&fresh, None)) {
                    found = Some(seat(&fresh, None));
                    flowers.push(fresh);
                }
            }
            if found.is_some() {
                break;
            }
        }
        match found {
            Some(seat) => _ = seats.insert(item.service.clone(), seat),
            None => refused.push(item.service.clone()),
        }
    }
    (seats, refused)
}

fn some_items(most: usize) -> impl Strategy<Value = Vec<Item>> {
    let one = (
        0_u32..100,
        prop_oneof![6 => Just(Role::Unit), 1 => Just(Role::Head), 1 => Just(Role::Shard)],
        0_usize..5,
        any::<bool>(),
    );
    prop::collection::vec(one, 0..most).prop_map(|all| {
        let by_name: BTreeMap<_, _> = all
            .into_iter()
            .map(|(name, role, cpu, spot)| {
                let cpu = [0.25, 1.0, 2.0, 16.0, 20.0][cpu];
                let need =
                    Need { cpu, memory: 8 << 30, gpu: 0, arch: Arch::X86, spot: spot && role == Role::Unit };
                let item = Item { size: size(&need).unwrap(), ..item(role, name, cpu) };
                (item.service.clone(), item)
            })
            .collect();
        by_name
            .into_values()
            .filter(|item| item.role == Role::Unit || !item.size.provider.is_managed())
            .collect()
    })
}

fn some_grid() -> impl Strategy<Value = Grid> {
    let account = (0_u64..80, 0_u64..40, 1_u64..4, any::<bool>());
    (prop::collection::vec(account, 1..4), 10_u64..20, 10_u64..60).prop_map(
        |(accounts, services, address_units)| {
            let mut grid = grid(accounts.len(), 0, services);
            grid.address_units = address_units;
            grid.accounts[0].quotas.fargate_vcpu = 60;
            grid.accounts[0].quotas.instances_per_namespace = 10;
            for (account, (vcpu, interfaces, weight, drain)) in grid.accounts[1..].iter_mut().zip(accounts) {
                account.quotas.fargate_vcpu = vcpu;
                account.quotas.interfaces = interfaces;
                account.quotas.ec2_vcpu = vcpu;
                account.weight = weight;
                account.drain = drain && vcpu % 3 == 0;
            }
            grid
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn a_placement_is_that_of_the_slow_rules_and_exceeds_no_quota(
        grid in some_grid(), before in some_items(25), after in some_items(40),
    ) {
        let first = place(&grid, &before, &Ledger::default());
        prop_assert_eq!(exceeded(&grid, &before, &first), Vec::<String>::new());
        let (seats, refused) = slow(&grid, &before, &Ledger::default());
        prop_assert_eq!(&first.seats, &seats);
        prop_assert_eq!(first.refused.iter().map(|r| r.service.clone()).collect::<Vec<_>>(), refused);

        let grid = with_openings(&grid, &first);
        let ledger = ledger(&grid, &before, &first);
        let second = place(&grid, &after, &ledger);
        prop_assert_eq!(exceeded(&grid, &after, &second), Vec::<String>::new());
        let (seats, refused) = slow(&grid, &after, &ledger);
        prop_assert_eq!(&second.seats, &seats);
        prop_assert_eq!(second.refused.iter().map(|r| r.service.clone()).collect::<Vec<_>>(), refused);
    }

    /// Removal and growth: what is asked for again with the same size stays, whatever else comes and goes.
    #[test]
    fn what_is_placed_stays(grid in some_grid(), before in some_items(40), more in some_items(40), kept: [bool; 8]) {
        let first = place(&grid, &before, &Ledger::default());
        let grid = with_openings(&grid, &first);
        let ledger = ledger(&grid, &before, &first);
        let kept: Vec<_> = before.iter().enumerate().filter(|(i, _)| kept[i % 8]).map(|(_, item)| item.clone()).collect();
        let names: BTreeSet<_> = kept.iter().map(|item| item.service.clone()).collect();
        let mut items = kept.clone();
        items.extend(more.into_iter().filter(|item| !names.contains(&item.service)));
        let second = place(&grid, &items, &ledger);
        for item in &kept {
            if let Some(seat) = first.seats.get(&item.service) {
                prop_assert_eq!(second.seats.get(&item.service), Some(seat));
            }
        }
        prop_assert!(second.moved.keys().all(|name| !names.contains(name)));
    }

    /// What AWS was asked for is given: after some rounds nothing is refused. One round may show the next quota.
    #[test]
    fn the_increases_are_enough(grid in some_grid(), items in some_items(60)) {
        let mut grid = grid;
        for account in &mut grid.accounts {
            account.drain = false;
        }
        for _ in 0..8 {
            let placed = place(&grid, &items, &Ledger::default());
            if placed.refused.is_empty() {
                prop_assert_eq!(placed.asks, Vec::new());
                return Ok(());
            }
            prop_assert!(!placed.asks.is_empty(), "{:?}", placed.refused);
            for ask in placed.asks {
                prop_assert!(ask.ask > ask.have);
                let account = grid.accounts.iter_mut().find(|account| account.place.account == ask.account).unwrap();
                match ask.quota {
                    Quota::FargateVcpu => account.quotas.fargate_vcpu = ask.ask,
                    Quota::FargateSpotVcpu => account.quotas.fargate_spot_vcpu = ask.ask,
                    Quota::Ec2Vcpu => account.quotas.ec2_vcpu = ask.ask,
                    Quota::Ec2GpuVcpu => account.quotas.ec2_gpu_vcpu = ask.ask,
                    Quota::Interfaces => account.quotas.interfaces = ask.ask,
                    Quota::AddressUnits => grid.address_units = ask.ask,
                    Quota::Flowers => unreachable!("there are 648 names"),
                }
            }
        }
        prop_assert!(false, "eight rounds were not enough");
    }
}
