//! `explain` and `bootstrap`.

use std::fmt;

use serde::Serialize;

use super::{folder::Cli, output::Failure, show::advice};
use crate::{
    bootstrap::{self, Step},
    call::{Answer, Call, Present, Rollout, Status, What},
    desired::Desired,
    plan::{Explanation, explain},
};

#[derive(Serialize)]
struct Explained {
    placement: Explanation,
    /// How it does, in ECS's words.
    ecs: Vec<String>,
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.placement)?;
        self.ecs.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl Cli {
    pub(super) async fn explain(&self, desired: &Desired, service: &str) -> Result<u8, Failure> {
        let ledger = self.ledger()?.unwrap_or_default();
        let Some(placement) = explain(desired, &ledger, service) else {
            return Err(Failure::input(format!(
                "the desired state has no service {service}: names are like {}",
                desired.service(crate::model::Role::Unit, "NAME")
            )));
        };
        let mut ecs = Vec::new();
        if let Some(entry) = ledger.get(service) {
            let (place, cluster) = (entry.place.clone(), entry.cluster.clone());
            let what = What::DescribeServices { cluster, names: vec![service.to_owned()] };
            let asked = match self.aws(desired).await {
                Ok(aws) => aws.call(&Call { place, what }).await.map_err(|fault| fault.to_string()),
                Err(failure) => Err(failure.lines.join("; ")),
            };
            match asked {
                Ok(Answer::Services(mut found)) => match found.remove(service) {
                    Some(present) => ecs = tell(&present),
                    None => ecs.push("ECS has no such service: `fleet apply` makes it".into()),
                },
                Ok(_) => {}
                Err(why) => ecs.push(format!("ECS cannot be asked: {why}")),
            }
        }
        self.tell(&Explained { placement, ecs });
        Ok(0)
    }

    pub(super) async fn bootstrap(&self, desired: &Desired, vpc: Option<&str>) -> Result<u8, Failure> {
        let steps = bootstrap::run(&crate::aws::Door::of_process(), desired, vpc).await;
        let failed = steps.iter().filter(|step| step.failed.is_some()).count();
        self.tell(&Steps(steps));
        if failed > 0 {
            return Err(Failure::new(
                trellis_proto::Code::Unavailable.exit_code(),
                format!("{failed} steps failed; the others are done: repair the cause and run it again"),
            ));
        }
        Ok(0)
    }
}

#[derive(Serialize)]
struct Steps(Vec<Step>);

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}

fn tell(present: &Present) -> Vec<String> {
    let status = match present.status {
        Status::Active => "lives",
        Status::Draining => "was deleted, and its task ends",
        Status::Inactive => "was deleted",
    };
    let rollout = match present.rollout {
        Rollout::InProgress => "is under way",
        Rollout::Completed => "is done",
        Rollout::Failed => "was broken off",
    };
    let mut lines = vec![
        format!(
            "it {status}: {} of {} tasks run, {} start",
            present.running, present.desired, present.pending
        ),
        format!("it has {}", present.definition),
        format!("its deployment {rollout}, {} tasks failed; {}", present.failed_tasks, present.reason),
    ];
    lines.extend(present.messages.iter().map(|message| format!("ECS says: {message}")));
    let all = lines.join("\n");
    lines.extend(advice(&all).map(|advice| format!("probably {advice}")));
    lines
}
