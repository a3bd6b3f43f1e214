//! One call for everybody who has the same question at the same time.
//!
//! A call is a task of its own: it goes on when the caller that began it leaves. Everybody who waited for it gets its result, a failure
//! too. Nothing is remembered: who comes after its end begins a new call.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::{FutureExt as _, future::BoxFuture};
use tokio::sync::watch;
use tracing::Instrument as _;

/// The calls for one question: at most one is under way, and at most one waits for its end.
#[derive(Clone)]
pub struct Single<T> {
    turns: Arc<Mutex<Turns<T>>>,
}

/// The call that somebody waited for has ended without a result: it panicked, or the runtime stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost;

struct Turns<T> {
    /// The result of the call that is under way.
    running: Option<watch::Receiver<Option<T>>>,
    next: Option<Call<T>>,
}

/// A call, and where its result goes.
struct Call<T> {
    work: BoxFuture<'static, T>,
    tell: watch::Sender<Option<T>>,
}

impl<T: Clone + Send + Sync + 'static> Single<T> {
    /// The result of the call that is under way. If there is none, `call` is made. It may have begun before this question. Cancel safe.
    ///
    /// # Errors
    /// [`Lost`].
    pub async fn join<F>(&self, call: impl FnOnce() -> F) -> Result<T, Lost>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let told = {
            let mut turns = lock(&self.turns);
            match &turns.running {
                Some(told) => told.clone(),
                None => self.begin(&mut turns, call()),
            }
        };
        result(told).await
    }

    /// The result of a call that begins after this question. All who ask while a call is under way share the next one, which is made
    /// unless all of them have left by then. Cancel safe.
    ///
    /// # Errors
    /// [`Lost`].
    pub async fn fresh<F>(&self, call: impl FnOnce() -> F) -> Result<T, Lost>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let told = {
            let mut turns = lock(&self.turns);
            match (&turns.running, &turns.next) {
                (None, _) => self.begin(&mut turns, call()),
                (Some(_), Some(next)) => next.tell.subscribe(),
                (Some(_), None) => {
                    let (call, told) = Call::new(call());
                    turns.next = Some(call);
                    told
                }
            }
        };
        result(told).await
    }

    fn begin<F>(&self, turns: &mut Turns<T>, work: F) -> watch::Receiver<Option<T>>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let (call, told) = Call::new(work);
        turns.running = Some(told.clone());
        tokio::spawn(run(Arc::clone(&self.turns), call));
        told
    }
}

impl<T> Default for Single<T> {
    fn default() -> Self {
        Self { turns: Arc::new(Mutex::new(Turns { running: None, next: None })) }
    }
}

impl<T> std::fmt::Debug for Single<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Single").field("running", &lock(&self.turns).running.is_some()).finish()
    }
}

impl<T> Call<T> {
    /// The work is part of the trace of the caller that brought it.
    fn new(work: impl Future<Output = T> + Send + 'static) -> (Self, watch::Receiver<Option<T>>) {
        let (tell, told) = watch::channel(None);
        (Self { work: work.in_current_span().boxed(), tell }, told)
    }
}

fn lock<T>(turns: &Mutex<Turns<T>>) -> MutexGuard<'_, Turns<T>> {
    turns.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes a call, then the one that was asked for meanwhile, until there is none.
async fn run<T>(turns: Arc<Mutex<Turns<T>>>, mut call: Call<T>) {
    loop {
        let ended = AssertUnwindSafe(call.work).catch_unwind().await;
        let next = {
            let mut turns = lock(&turns);
            let next = turns.next.take().filter(|next| !next.tell.is_closed());
            turns.running = next.as_ref().map(|next| next.tell.subscribe());
            next
        };
        // told last: who hears of the end and asks again begins a new call
        if let Ok(result) = ended {
            call.tell.send_replace(Some(result));
        }
        match next {
            Some(next) => call = next,
            None => return,
        }
    }
}

async fn result<T: Clone>(mut told: watch::Receiver<Option<T>>) -> Result<T, Lost> {
    match told.wait_for(Option::is_some).await {
        Ok(result) => result.clone().ok_or(Lost),
        Err(_) => Err(Lost),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use proptest::prelude::*;
    use tokio::{sync::mpsc, task::JoinHandle};

    use super::*;

    /// How a call ends.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum End {
        Well,
        Failed,
        Panicked,
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Join,
        Fresh,
        /// One of those who wait leaves.
        Leave(prop::sample::Index),
        /// The call that is under way ends.
        End(End),
    }

    fn step() -> impl Strategy<Value = Step> {
        let end = prop_oneof![Just(End::Well), Just(End::Failed), Just(End::Panicked)];
        prop_oneof![
            3 => Just(Step::Join),
            3 => Just(Step::Fresh),
            2 => any::<prop::sample::Index>().prop_map(Step::Leave),
            3 => end.prop_map(Step::End),
        ]
    }

    /// A result: the number of the call, and how it ended.
    type Told = Result<Result<usize, usize>, Lost>;

    /// The calls of one test, which end when the test says so.
    #[derive(Default)]
    struct Calls {
        begun: AtomicUsize,
        under_way: AtomicUsize,
    }

    impl Calls {
        async fn work(
            self: Arc<Self>,
            ends: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<End>>>,
        ) -> Result<usize, usize> {
            let number = self.begun.fetch_add(1, SeqCst) + 1;
            assert_eq!(self.under_way.fetch_add(1, SeqCst), 0, "one at a time");
            let end = ends.lock().await.recv().await;
            self.under_way.fetch_sub(1, SeqCst);
            match end {
                Some(End::Well) => Ok(number),
                Some(End::Failed) => Err(number),
                Some(End::Panicked) | None => panic!("as the test wants"),
            }
        }
    }

    /// Lets every task go on until it waits.
    async fn settle() {
        for _ in 0..16 {
            tokio::task::yield_now().await;
        }
    }

    /// The oracle: who waits for the call under way, and who for the next one.
    #[derive(Default)]
    struct Model {
        begun: usize,
        running: bool,
        of_running: Vec<JoinHandle<Told>>,
        of_next: Vec<JoinHandle<Told>>,
    }

    async fn follow(steps: Vec<Step>) {
        let (calls, single) = (Arc::<Calls>::default(), Single::<Result<usize, usize>>::default());
        let (end, ends) = mpsc::unbounded_channel();
        let ends = Arc::new(tokio::sync::Mutex::new(ends));
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Join | Step::Fresh => {
                    let (calls, single, ends) = (calls.clone(), single.clone(), ends.clone());
                    let waits = tokio::spawn(async move {
                        match step {
                            Step::Join => single.join(|| calls.work(ends)).await,
                            _ => single.fresh(|| calls.work(ends)).await,
                        }
                    });
                    match step {
                        Step::Fresh if model.running => model.of_next.push(waits),
                        _ => {
                            model.begun += usize::from(!model.running);
                            model.running = true;
                            model.of_running.push(waits);
                        }
                    }
                }
                Step::Leave(who) => {
                    let Model { of_running, of_next, .. } = &mut model;
                    let all = of_running.len() + of_next.len();
                    if all > 0 {
                        let who = who.index(all);
                        let gone = match who < of_running.len() {
                            true => of_running.swap_remove(who),
                            false => of_next.swap_remove(who - of_running.len()),
                        };
                        gone.abort();
                    }
                }
                Step::End(how) if model.running => {
                    end.send(how).unwrap();
                    settle().await;
                    let expected = match how {
                        End::Well => Ok(Ok(model.begun)),
                        End::Failed => Ok(Err(model.begun)),
                        End::Panicked => Err(Lost),
                    };
                    for waits in std::mem::take(&mut model.of_running) {
                        assert!(waits.is_finished(), "all who waited are told");
                        assert_eq!(waits.await.unwrap(), expected);
                    }
                    model.of_running = std::mem::take(&mut model.of_next);
                    model.running = !model.of_running.is_empty();
                    model.begun += usize::from(model.running);
                }
                Step::End(_) => {}
            }
            settle().await;
            assert_eq!(
                calls.begun.load(SeqCst),
                model.begun,
                "a call for each question, and none for nobody"
            );
            assert_eq!(calls.under_way.load(SeqCst), usize::from(model.running));
            assert!(!model.of_running.iter().chain(&model.of_next).any(JoinHandle::is_finished));
        }
    }

    proptest! {
        #[test]
        fn everybody_gets_the_result_of_the_right_call_and_no_call_is_made_twice(
            steps in prop::collection::vec(step(), 0..40),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(follow(steps));
        }
    }

    #[tokio::test]
    async fn a_call_goes_on_when_the_caller_that_began_it_leaves() {
        let single = Single::<usize>::default();
        let (go, gone) = tokio::sync::oneshot::channel::<()>();
        let first = single.join(|| async move {
            gone.await.unwrap();
            7
        });
        assert!(futures::poll!(Box::pin(first)).is_pending(), "it began the call, and is dropped here");
        let second = single.join(|| async { unreachable!("there is a call already") });
        go.send(()).unwrap();
        assert_eq!(second.await, Ok(7));
    }
}
