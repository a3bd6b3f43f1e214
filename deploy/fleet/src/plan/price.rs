//! What services cost a month, from `deploy/aws/prices.json`. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::OnceLock,
};

use serde::{Deserialize, Serialize};

use crate::class::{Arch, Provider, Size, instance_vcpus};

/// A price list.
#[derive(Clone, Debug, PartialEq)]
pub struct Prices {
    /// The Region that they are of.
    pub region: String,
    /// `USD`.
    pub currency: String,
    /// When somebody looked.
    pub as_of: String,
    /// Hours of a month.
    pub hours: f64,
    by_name: BTreeMap<(String, Option<Arch>), f64>,
}

/// A month's price, and what of it could not be told.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Month {
    /// All of it.
    pub total: f64,
    /// By account.
    pub by_account: BTreeMap<String, f64>,
    /// By provider, as classes name it.
    pub by_provider: BTreeMap<String, f64>,
    /// Prices that the list lacks. What they would buy is not in the sums.
    pub missing: BTreeSet<String>,
    /// How many services the missing prices concern.
    pub unpriced: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    #[serde(rename = "comment")]
    _comment: String,
    region: String,
    currency: String,
    as_of: String,
    hours_a_month: f64,
    prices: Vec<Price>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Price {
    name: String,
    arch: Option<Arch>,
    value: f64,
    #[serde(rename = "source")]
    _source: String,
}

/// The price list that is compiled in.
///
/// # Panics
/// Never: a test reads it.
#[must_use]
pub fn prices() -> &'static Prices {
    static PRICES: OnceLock<Prices> = OnceLock::new();
    PRICES.get_or_init(|| {
        Prices::parse(include_str!("../../../aws/prices.json")).expect("a test reads prices.json")
    })
}

impl Prices {
    /// Reads a list of the same form: that of another Region, or of a contract.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(json: &str) -> Result<Self, String> {
        let list: List = serde_json::from_str(json).map_err(|error| format!("prices: {error}"))?;
        let mut by_name = BTreeMap::new();
        for price in list.prices {
            if by_name.insert((price.name.clone(), price.arch), price.value).is_some() {
                return Err(format!("prices: {} is there twice", price.name));
            }
        }
        Ok(Self {
            region: list.region,
            currency: list.currency,
            as_of: list.as_of,
            hours: list.hours_a_month,
            by_name,
        })
    }

    /// Which list it is, for people.
    #[must_use]
    pub fn list(&self) -> String {
        format!("prices of {}, {}", self.region, self.as_of)
    }

    /// What a task costs that runs `hours` a month.
    ///
    /// # Errors
    /// The price that the list lacks.
    pub fn task(&self, size: &Size, hours: f64) -> Result<f64, String> {
        let price = |name: &str| {
            let found = self.by_name.get(&(name.to_owned(), Some(size.arch)));
            found.copied().ok_or_else(|| format!("{name} {}", size.arch.name()))
        };
        let (vcpu, gib) = (f64::from(size.cpu) / 1024.0, f64::from(size.memory) / 1024.0);
        let hourly = match size.provider {
            Provider::Fargate => vcpu * price("fargate_vcpu_hour")? + gib * price("fargate_gb_hour")?,
            Provider::FargateSpot => {
                vcpu * price("fargate_spot_vcpu_hour")? + gib * price("fargate_spot_gb_hour")?
            }
            // an instance has what a task needs, and is paid for as a whole
            Provider::General | Provider::Memory => {
                f64::from(instance_vcpus(size)) * price("managed_vcpu_hour")?
            }
            Provider::Gpu => f64::from(size.gpu) * price("managed_gpu_hour")?,
        };
        Ok(hourly * hours)
    }
}

impl Month {
    /// Adds a task.
    pub fn add(&mut self, prices: &Prices, account: &str, size: &Size, hours: f64) {
        match prices.task(size, hours) {
            Ok(price) => {
                self.total += price;
                *self.by_account.entry(account.to_owned()).or_default() += price;
                *self.by_provider.entry(size.provider.word().to_owned()).or_default() += price;
            }
            Err(missing) => {
                self.missing.insert(missing);
                self.unpriced += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::class::{Need, size};

    fn task(cpu: f64, gib: u64, gpu: u32, arch: Arch, spot: bool) -> Size {
        size(&Need { cpu, memory: gib << 30, gpu, arch, spot }).unwrap()
    }

    /// The numbers of the page `scale.md`, which Python computes: 40,000 units of 1 vCPU and 4 GB.
    #[test]
    fn the_target_costs_what_the_page_says() {
        let month = |arch, spot| {
            let size = task(1.0, 4, 0, arch, spot);
            40_000.0 * prices().task(&size, prices().hours).unwrap()
        };
        let page = include_str!("../../../aws/scale.md");
        for (title, arch, spot) in [
            ("units, 1 vCPU and 4 GB, Fargate x86", Arch::X86, false),
            ("units, 1 vCPU and 4 GB, Fargate Graviton", Arch::Arm, false),
            ("units, 1 vCPU and 4 GB, Fargate Spot x86", Arch::X86, true),
        ] {
            let row = page.lines().find(|line| line.starts_with(&format!("| {title} |"))).unwrap();
            let told: f64 = row.split('|').nth(3).unwrap().trim().replace(',', "").parse().unwrap();
            let got = month(arch, spot);
            // the page has three digits
            assert!((got - told).abs() / told < 0.005, "{title}: {got}, the page says {told}");
        }
    }

    #[test]
    fn a_price_that_the_list_lacks_is_named_and_not_guessed() {
        let mut month = Month::default();
        let gpu = task(4.0, 16, 1, Arch::Arm, false);
        month.add(prices(), "111111111111", &gpu, 730.0);
        assert_eq!(month.missing, ["managed_gpu_hour ARM64".to_owned()].into());
        assert_eq!((month.total, month.unpriced), (0.0, 1));
    }

    #[test]
    fn an_instance_is_paid_for_what_takes_more_of_it() {
        let price = |name: &str, arch| prices().by_name[&(name.to_owned(), Some(arch))];
        let wide = task(32.0, 64, 0, Arch::X86, false);
        assert_eq!(prices().task(&wide, 1.0).unwrap(), 32.0 * price("managed_vcpu_hour", Arch::X86));
        let deep = task(4.0, 256, 0, Arch::Arm, false);
        assert_eq!(prices().task(&deep, 1.0).unwrap(), 32.0 * price("managed_vcpu_hour", Arch::Arm));
        let gpus = task(4.0, 16, 2, Arch::X86, false);
        assert_eq!(prices().task(&gpus, 1.0).unwrap(), 2.0 * price("managed_gpu_hour", Arch::X86));
    }

    proptest! {
        #[test]
        fn more_of_a_task_never_costs_less(cpu in 0.1..20.0_f64, gib in 1_u64..200, more in 1_u64..50, arm: bool) {
            let arch = if arm { Arch::Arm } else { Arch::X86 };
            let price = |gib| {
                let size = task(cpu, gib, 0, arch, false);
                (size.provider, prices().task(&size, 730.0).unwrap())
            };
            let (provider, less) = price(gib);
            let (other, most) = price(gib + more);
            prop_assert!(provider != other || less <= most);
        }

        #[test]
        fn the_sums_are_the_sum_of_the_tasks(tasks in prop::collection::vec((0_usize..3, 1_u64..100), 0..50)) {
            let mut month = Month::default();
            let mut sum = 0.0;
            for (account, gib) in tasks {
                let size = task(1.0, gib, 0, Arch::X86, false);
                sum += prices().task(&size, 730.0).unwrap();
                month.add(prices(), &account.to_string(), &size, 730.0);
            }
            prop_assert!((month.total - sum).abs() < 1e-6 * sum.max(1.0));
            prop_assert!((month.by_account.values().sum::<f64>() - sum).abs() < 1e-6 * sum.max(1.0));
            prop_assert!((month.by_provider.values().sum::<f64>() - sum).abs() < 1e-6 * sum.max(1.0));
        }
    }
}
