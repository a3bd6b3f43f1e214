//! Lets an engine act: sends its calls, brings it the answers, and tells how far it is. All that is decided is decided elsewhere.

use std::time::Duration;

use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::Instant;

use crate::{
    aws::Aws,
    reconcile::{Engine, Outcome},
};

/// From one line of progress to the next.
const SHOW_EVERY: Duration = Duration::from_secs(5);
/// An engine that waits for nothing is asked again after this.
const IDLE: Duration = Duration::from_secs(1);

/// Runs an engine that was made at `start` to its end. It may be dropped at any point: another one finds out from AWS what is done.
pub async fn run(engine: &mut Engine, aws: &Aws, start: Instant, mut show: impl FnMut(&Engine)) -> Outcome {
    let mut under_way = FuturesUnordered::new();
    let mut shown = Instant::now();
    loop {
        let now = start.elapsed();
        let next = engine.next(now);
        if let Some(outcome) = next.outcome {
            show(engine);
            return outcome;
        }
        for (ticket, call) in next.calls {
            under_way.push(async move {
                let answer = aws.call(&call).await;
                (ticket, call, now, answer)
            });
        }
        if shown.elapsed() >= SHOW_EVERY {
            shown = Instant::now();
            show(engine);
        }
        let wake = start + next.wake.unwrap_or(now + IDLE).max(now);
        let wake = wake.min(shown + SHOW_EVERY);
        tokio::select! {
            Some((ticket, call, sent, answer)) = under_way.next() => {
                engine.answer(start.elapsed(), sent, ticket, &call, answer);
            }
            () = tokio::time::sleep_until(wake) => {}
        }
    }
}
