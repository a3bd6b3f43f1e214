//! What AWS counts, and how much of it a task takes.

use serde::Serialize;

use crate::{
    class::{Provider, Size, instance_vcpus},
    desired::{Account, Quotas},
};

/// How full `fleet` makes a quota, in percent. The rest is for people, for other services, and for the days until AWS has raised it;
/// the quota alarms are at the same number.
pub const FULL_PERCENT: u64 = 80;
/// Instances of one Cloud Map service: AWS does not raise it.
pub const INSTANCES_PER_NAME: u64 = 1_000;
/// What is asked for is rounded up to this many.
const ASK_STEP: u64 = 100;

/// Something that AWS counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Quota {
    /// vCPUs of Fargate on demand, in an account.
    FargateVcpu,
    /// vCPUs of Fargate Spot, in an account.
    FargateSpotVcpu,
    /// vCPUs of standard instances, in an account.
    Ec2Vcpu,
    /// vCPUs of instances with GPUs, in an account.
    Ec2GpuVcpu,
    /// Network interfaces of an account.
    Interfaces,
    /// Network address units of the VPC.
    AddressUnits,
    /// Names for clusters.
    Flowers,
}

impl Quota {
    /// As AWS's console names it, and where it is asked for.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::FargateVcpu => "Fargate On-Demand vCPU resource count",
            Self::FargateSpotVcpu => "Fargate Spot vCPU resource count",
            Self::Ec2Vcpu => "EC2: Running On-Demand Standard instances (vCPUs)",
            Self::Ec2GpuVcpu => "EC2: Running On-Demand G and VT instances (vCPUs)",
            Self::Interfaces => "VPC: Network interfaces per Region",
            Self::AddressUnits => "VPC: Network Address Usage, in the network's account",
            Self::Flowers => "names of clusters",
        }
    }

    /// The field of `grid.json`.
    #[must_use]
    pub fn field(self) -> &'static str {
        match self {
            Self::FargateVcpu => "quotas.fargate_vcpu",
            Self::FargateSpotVcpu => "quotas.fargate_spot_vcpu",
            Self::Ec2Vcpu => "quotas.ec2_vcpu",
            Self::Ec2GpuVcpu => "quotas.ec2_gpu_vcpu",
            Self::Interfaces => "quotas.interfaces",
            Self::AddressUnits => "address_units",
            Self::Flowers => "flowers",
        }
    }

    /// How many of [`Load`]'s units are one of AWS's.
    #[must_use]
    pub fn unit(self) -> u64 {
        match self {
            Self::FargateVcpu | Self::FargateSpotVcpu | Self::Ec2Vcpu | Self::Ec2GpuVcpu => 1024,
            Self::Interfaces | Self::AddressUnits | Self::Flowers => 1,
        }
    }

    /// The quota at which `used` is not more than [`FULL_PERCENT`] of it, in AWS's units.
    #[must_use]
    pub fn ask(self, used: u64) -> u64 {
        (used * 100).div_ceil(FULL_PERCENT * self.unit()).div_ceil(ASK_STEP) * ASK_STEP
    }
}

/// The quotas of an account that a task counts against.
pub const OF_ACCOUNT: [Quota; 5] =
    [Quota::FargateVcpu, Quota::FargateSpotVcpu, Quota::Ec2Vcpu, Quota::Ec2GpuVcpu, Quota::Interfaces];

/// An amount of each of [`OF_ACCOUNT`]; processors in 1/1024.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Load(pub [u64; OF_ACCOUNT.len()]);

impl Load {
    /// What one task takes.
    #[must_use]
    pub fn of(size: &Size) -> Self {
        let mut load = Self::default();
        let (slot, amount) = match size.provider {
            Provider::Fargate => (0, u64::from(size.cpu)),
            Provider::FargateSpot => (1, u64::from(size.cpu)),
            Provider::General | Provider::Memory => (2, u64::from(instance_vcpus(size)) * 1024),
            Provider::Gpu => (3, u64::from(instance_vcpus(size)) * 1024),
        };
        load.0[slot] = amount;
        load.0[4] = 1;
        load
    }

    /// What an account may be filled with.
    #[must_use]
    pub fn limit(account: &Account) -> Self {
        let Quotas { fargate_vcpu, fargate_spot_vcpu, ec2_vcpu, ec2_gpu_vcpu, interfaces, .. } =
            account.quotas;
        let mut load = Self([fargate_vcpu, fargate_spot_vcpu, ec2_vcpu, ec2_gpu_vcpu, interfaces]);
        for (amount, quota) in load.0.iter_mut().zip(OF_ACCOUNT) {
            *amount = filled(*amount) * quota.unit();
        }
        load
    }

    /// Adds the other.
    pub fn add(&mut self, other: &Self) {
        for (amount, more) in self.0.iter_mut().zip(other.0) {
            *amount += more;
        }
    }

    /// The quotas of which `self` and `more` together are above `limit`. One that `more` does not take does not bind.
    pub fn over(&self, more: &Self, limit: &Self) -> impl Iterator<Item = Quota> + use<> {
        let all = self.0.into_iter().zip(more.0).zip(limit.0).zip(OF_ACCOUNT);
        all.filter(|(((used, more), limit), _)| *more > 0 && used + more > *limit).map(|(_, quota)| quota)
    }
}

/// How far a quota is filled, in its own units.
#[must_use]
pub fn filled(quota: u64) -> u64 {
    quota * FULL_PERCENT / 100
}
