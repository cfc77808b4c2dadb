//! Queue `scheduler`: requests of clients, as many at once as wait.
//!
//! ```text
//!  gather ▶ serve the changes, in their order: creates that follow one another ▶ commit ▶ reads ▶ acknowledge ▶ answer
//!           together, every other one with a savepoint of its own
//! ```
//!
//! While one batch is committed the next one gathers, so the batches are as large as the load is. When a transaction
//! fails, each of its requests is served again by itself: one request's trouble stays its own.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use berth_common::{
    bus::{BusError, Consumer, Delivery, Message, PublishError, Target, Unfit},
    message::{
        app,
        question::is_question,
        request::{InstanceCreate, InstanceCreateMany, Method, Reply},
        understands,
    },
    refusal::{Refusal, RefusalCode},
    telemetry::error_chain,
};
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{
    RETRY_PAUSE, cut, gather,
    methods::{self, Unserved},
    misfit, next,
    questions::{self, Passing},
    wrong_version,
};
use crate::{
    claim::{
        ClaimError,
        instances::create::{create, taken},
        unavailable,
    },
    context::{Context, Writing},
    leader::PROBE,
};

/// Requests taken off the queue ahead of their turn, and the most in one batch. A request is a few KiB; the broker lets
/// each be 1 MiB, so that hostile ones take 256 MiB until they are refused.
pub const PREFETCH: u16 = 256;
/// Answers under way at once; while the broker takes none, no more requests are served.
const ANSWERS: usize = 1024;
/// The longest method that is repeated in an answer, in bytes; AMQP allows 255 with what is appended.
const MAX_METHOD: usize = 200;

/// What became of a request.
#[derive(Debug)]
enum Outcome {
    /// It was granted or refused.
    Answered(Result<Value, Refusal>),
    /// Its instance's host is to answer it.
    PassedOn(Box<Passing>),
    /// Nobody could use it: it is refused and goes to `berth.dead`.
    Poison(Refusal),
    /// A scheduler's word to itself, or a question whose answer nobody waits for.
    Nothing,
}

/// What is still to be sent when a request is settled.
#[derive(Debug)]
enum Answer {
    /// This, to whoever asked.
    Own(Result<Value, Refusal>),
    /// The question, to the host that is to answer it; since when it is at work on it.
    OfHost(Box<Passing>, Instant),
}

/// How far a request of a batch got.
#[derive(Debug)]
enum Served {
    /// That became of it.
    Done(Outcome),
    /// The database is away, and nobody waits for an answer: it is tried again, and holds nobody up.
    Waits,
}

/// Why a batch, or a request, could not be served.
#[derive(Debug)]
enum Trouble {
    /// The database failed; nothing of it is there, or nobody knows.
    Failed(ClaimError),
    /// Another scheduler took over: the requests are its to serve.
    Fenced,
}

impl From<ClaimError> for Trouble {
    fn from(error: ClaimError) -> Self {
        match error {
            ClaimError::Store(berth_store::StoreError::Fenced { .. }) => Self::Fenced,
            error => Self::Failed(error),
        }
    }
}

/// A request as it was delivered.
struct Asked {
    message: Message,
    unfit: Option<Unfit>,
}

impl From<&Delivery> for Asked {
    fn from(delivery: &Delivery) -> Self {
        Self {
            message: delivery.message.clone(),
            unfit: delivery.unfit(),
        }
    }
}

/// Serves requests until cancelled. `first`: what was taken off the queue already.
///
/// # Errors
/// When the queue exists with other arguments.
pub async fn run(
    context: Arc<Context>,
    mut consumer: Consumer,
    first: Option<Delivery>,
    cancel: CancellationToken,
) -> Result<(), BusError> {
    let answers = Arc::new(Semaphore::new(ANSWERS));
    let mut first = first;
    let mut waiting: Vec<Delivery> = Vec::new();
    loop {
        let one = match first.take() {
            Some(delivery) => Some(delivery),
            None => tokio::select! {
                delivery = next(&mut consumer, &cancel) => match delivery {
                    Some(delivery) => Some(delivery),
                    // Unsettled deliveries go back to the queue, to whoever serves it next.
                    None => return Ok(()),
                },
                () = tokio::time::sleep(RETRY_PAUSE), if !waiting.is_empty() => None,
            },
        };
        let started = Instant::now();
        let mut deliveries = std::mem::take(&mut waiting);
        if let Some(one) = one {
            deliveries.extend(gather(one, &mut consumer, PREFETCH));
        }
        let batch: Vec<Asked> = deliveries.iter().map(Asked::from).collect();
        context.metrics.batch(batch.len());
        let Some(outcomes) = serve(&context, &batch).await else {
            return Ok(());
        };
        let seconds = started.elapsed().as_secs_f64();
        for ((delivery, asked), outcome) in deliveries.into_iter().zip(batch).zip(outcomes) {
            let outcome = match outcome {
                Served::Done(outcome) => outcome,
                Served::Waits => {
                    waiting.push(delivery);
                    continue;
                }
            };
            let timing = Timing { started, seconds };
            let answer = settle(&context, &asked.message, delivery, outcome, timing).await;
            if let Some(answer) = answer
                && asked.message.reply_to.is_some()
                && let Ok(permit) = Arc::clone(&answers).acquire_owned().await
            {
                let context = Arc::clone(&context);
                tokio::spawn(async move {
                    send(&context, &asked.message, answer).await;
                    drop(permit);
                });
            }
        }
        if !waiting.is_empty() {
            tracing::warn!(
                requests = waiting.len(),
                "the database is out of reach; requests that want no answer wait"
            );
        }
    }
}

/// How long a request took.
#[derive(Debug, Clone, Copy)]
struct Timing {
    /// When its batch began.
    started: Instant,
    /// How long that took.
    seconds: f64,
}

/// Settles a delivery; its answer, if it has one, is sent after that: a lost connection must not bring an older request
/// back after a newer one was answered.
async fn settle(
    context: &Context,
    request: &Message,
    delivery: Delivery,
    outcome: Outcome,
    Timing { started, seconds }: Timing,
) -> Option<Answer> {
    match outcome {
        Outcome::Nothing => {
            delivery.ack().await;
            None
        }
        Outcome::Answered(result) => {
            let code = result.as_ref().err().map(|refusal| refusal.code);
            context.metrics.request(&request.method, code, seconds);
            delivery.ack().await;
            Some(Answer::Own(result))
        }
        // One that is lost from here on is asked again by whoever still wants to know.
        Outcome::PassedOn(passing) => {
            delivery.ack().await;
            Some(Answer::OfHost(passing, started))
        }
        Outcome::Poison(refusal) => {
            // Not the sender's text: a label must not grow with what strangers send.
            context
                .metrics
                .request("unusable", Some(refusal.code), seconds);
            tracing::warn!(
                method = %request.method.escape_debug(), sender = %request.app_id.escape_debug(), reason = %refusal,
                "unusable request"
            );
            context.metrics.dead("scheduler");
            delivery.dead(&refusal.message).await;
            Some(Answer::Own(Err(refusal)))
        }
    }
}

/// Sends what is still to be sent of a request.
async fn send(context: &Context, request: &Message, answer: Answer) {
    match answer {
        Answer::Own(result) => send_answer(context, request, result).await,
        Answer::OfHost(passing, started) => {
            let passed = questions::pass_on(context, request, *passing).await;
            let code = passed.as_ref().err().map(|refusal| refusal.code);
            let seconds = started.elapsed().as_secs_f64();
            context.metrics.request(&request.method, code, seconds);
            if let Err(refusal) = passed {
                send_answer(context, request, Err(refusal)).await;
            }
        }
    }
}

/// Sends the answer where the sender wants it. Progress never depends on anybody waiting for it.
async fn send_answer(context: &Context, request: &Message, result: Result<Value, Refusal>) {
    let Some(reply_to) = &request.reply_to else {
        return;
    };
    let publish = async |result| {
        let method = format!("{}.reply", cut(&request.method, MAX_METHOD));
        let message = Message::reply(request, method, 1, app::SCHEDULER, &Reply::from(result))
            .inspect_err(|error| {
                tracing::error!(error = %error_chain(error), "an answer could not be written");
            });
        match message {
            Ok(message) => {
                context
                    .bus
                    .publish(Target::queue(reply_to.clone()), message)
                    .await
            }
            Err(_) => Ok(()),
        }
    };
    let mut sent = publish(result).await;
    if let Err(PublishError::TooLarge { bytes, limit }) = sent {
        tracing::warn!(
            method = request.method,
            bytes,
            "an answer is too large to be sent"
        );
        let advice = if methods::only_reads(&request.method) {
            "ask for less at once, where the request has a `limit`"
        } else {
            "it was carried out, or refused; a list shows which"
        };
        let refusal = Refusal::new(
            RefusalCode::TooLarge,
            format!(
                "the answer would have {bytes} bytes, and a message has at most {limit}: {advice}"
            ),
        );
        sent = publish(Err(refusal)).await;
    }
    match sent {
        Ok(()) => {}
        Err(PublishError::Unroutable { .. }) => {
            tracing::debug!(
                method = request.method,
                "nobody waits for an answer any more"
            );
        }
        Err(error) => {
            tracing::warn!(method = request.method, error = %error_chain(&error), "an answer was not sent");
        }
    }
}

/// Serves a batch: what changes something in its order, then what only reads. `None`: this scheduler ends, and the batch
/// is not served.
///
/// Reads would cut the changes into as many transactions. None of them was answered before the changes came, so each may
/// see them.
async fn serve(context: &Context, batch: &[Asked]) -> Option<Vec<Served>> {
    let mut served = BTreeMap::new();
    let (mut changes, mut reads) = (Vec::new(), Vec::new());
    for (place, asked) in batch.iter().enumerate() {
        if let Some(outcome) = without_database(asked) {
            served.insert(place, Served::Done(outcome));
        } else if methods::only_reads(&asked.message.method) {
            reads.push((place, asked));
        } else {
            changes.push((place, asked));
        }
    }
    let mut is_database_away = false;
    // A large one ends a transaction.
    let is_large = |(_, asked): &(usize, &Asked)| asked.message.method == InstanceCreateMany::NAME;
    let runs = changes.split_inclusive(is_large).chain(reads.chunks(1));
    for run in runs {
        let places = run.iter().map(|(place, _)| *place);
        let run: Vec<&Asked> = run.iter().map(|(_, asked)| *asked).collect();
        let mut done = Vec::new();
        if !is_database_away {
            match together(context, &run).await {
                Ok(outcomes) => done.extend(outcomes.into_iter().map(Served::Done)),
                Err(Trouble::Fenced) => return None,
                Err(Trouble::Failed(error)) => {
                    tracing::debug!(error = %error_chain(&error), "requests are served one by one");
                    is_database_away = is_away(&error);
                    done.push(by_itself(context, run.first()?).await?);
                }
            }
        }
        for asked in run.iter().skip(done.len()) {
            done.push(if is_database_away {
                // Each would wait as long as the first one did.
                while_away(asked)
            } else {
                by_itself(context, asked).await?
            });
        }
        served.extend(places.zip(done));
    }
    Some(served.into_values().collect())
}

/// Serves a run of changes in one transaction, or a single read.
async fn together(context: &Context, run: &[&Asked]) -> Result<Vec<Outcome>, Trouble> {
    match run {
        [one] if is_question(&one.message.method) => {
            let found = questions::look_up(context, &one.message).await;
            let found = found.map(|passing| match passing {
                Some(passing) => Outcome::PassedOn(Box::new(passing)),
                None => Outcome::Nothing,
            });
            Ok(vec![outcome_or(found)?])
        }
        [one] if methods::only_reads(&one.message.method) => {
            let shown = methods::show(context, &one.message).await;
            Ok(vec![outcome(shown)?])
        }
        run => write(context, run).await,
    }
}

/// What needs no database: what nobody can use, and what a scheduler tells itself.
fn without_database(asked: &Asked) -> Option<Outcome> {
    if let Some(outcome) = unusable(asked) {
        return Some(outcome);
    }
    let method = asked.message.method.as_str();
    if method == PROBE {
        return Some(Outcome::Nothing);
    }
    (!methods::is_known(method)).then(|| Outcome::Poison(methods::unknown(method)))
}

fn is_away(error: &ClaimError) -> bool {
    matches!(error, ClaimError::Store(cause) if cause.retryable())
}

/// Serves one request. `None`: this scheduler ends.
async fn by_itself(context: &Context, asked: &Asked) -> Option<Served> {
    match together(context, &[asked]).await {
        Ok(outcomes) => outcomes.into_iter().next().map(Served::Done),
        Err(Trouble::Fenced) => None,
        Err(Trouble::Failed(error)) if is_away(&error) => Some(while_away(asked)),
        Err(Trouble::Failed(error)) => Some(Served::Done(Outcome::Answered(Err(error.refusal())))),
    }
}

/// What becomes of a request while the database is away.
fn while_away(asked: &Asked) -> Served {
    if asked.message.reply_to.is_some() {
        Served::Done(Outcome::Answered(Err(unavailable())))
    } else if methods::only_reads(&asked.message.method) {
        Served::Done(Outcome::Nothing)
    } else {
        Served::Waits
    }
}

/// A refusal is an answer; a failure of the database is the whole transaction's.
fn outcome(result: Result<Value, Unserved>) -> Result<Outcome, ClaimError> {
    outcome_or(result.map(|reply| Outcome::Answered(Ok(reply))))
}

/// The same for what may be answered in another way.
fn outcome_or(result: Result<Outcome, Unserved>) -> Result<Outcome, ClaimError> {
    match result {
        Ok(outcome) => Ok(outcome),
        Err(Unserved::Poison(refusal)) => Ok(Outcome::Poison(refusal)),
        Err(Unserved::Failed(ClaimError::Refused(refusal))) => Ok(Outcome::Answered(Err(refusal))),
        Err(Unserved::Failed(error)) => Err(error),
    }
}

/// Serves requests that change something, all in one transaction.
async fn write(context: &Context, batch: &[&Asked]) -> Result<Vec<Outcome>, Trouble> {
    let single = batch.len() == 1;
    let mut writing = context.begin().await.map_err(ClaimError::from)?;
    if !batch
        .iter()
        .all(|asked| methods::takes_away(&asked.message.method))
    {
        writing.refuse_oversize();
    }
    let mut outcomes = Vec::with_capacity(batch.len());
    while let Some(rest) = batch.get(outcomes.len()..).filter(|rest| !rest.is_empty()) {
        let creates = creates(rest);
        if creates.is_empty() {
            let Some(asked) = rest.first() else { break };
            outcomes.push(one_change(&mut writing, asked).await?);
        } else {
            let answers = create(&mut writing, &creates).await;
            let answers = match (answers, creates.first()) {
                // Whose it is, only a single one can tell.
                (Err(error), Some(request)) if single => Err(taken(error, request)),
                (answers, _) => answers,
            };
            match answers {
                Ok(answers) => outcomes.extend(answers.into_iter().map(encode)),
                Err(ClaimError::Refused(refusal)) if single => {
                    // The transaction may be spoilt; nothing else is in it.
                    return Ok(vec![Outcome::Answered(Err(refusal))]);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    writing.commit().await?;
    Ok(outcomes)
}

/// The creates that a range begins with.
fn creates(batch: &[&Asked]) -> Vec<InstanceCreate> {
    batch
        .iter()
        .map_while(|asked| {
            let message = &asked.message;
            let is_create = message.method == InstanceCreate::NAME;
            is_create.then(|| parse(message).ok()).flatten()
        })
        .collect()
}

async fn one_change(writing: &mut Writing<'_>, asked: &Asked) -> Result<Outcome, ClaimError> {
    // Those that can be read are served many at once.
    if asked.message.method == InstanceCreate::NAME
        && let Err(refusal) = parse::<InstanceCreate>(&asked.message)
    {
        return Ok(Outcome::Poison(refusal));
    }
    // Of a refused one nothing stays.
    let attempt = writing.attempt().await?;
    let served = methods::change(writing, &asked.message).await;
    writing.end(attempt, served.is_ok()).await?;
    outcome(served)
}

fn unusable(asked: &Asked) -> Option<Outcome> {
    let unfit = asked.unfit.as_ref()?;
    let code = match unfit {
        Unfit::TooLarge { .. } => RefusalCode::TooLarge,
        _ => RefusalCode::Malformed,
    };
    Some(Outcome::Poison(Refusal::new(code, unfit.to_string())))
}

/// Reads a request of a version this scheduler speaks.
///
/// # Errors
/// What is wrong with it, for its sender.
pub(super) fn parse<M: Method>(message: &Message) -> Result<M, Refusal> {
    if !message
        .version
        .is_some_and(|got| understands(M::VERSION, got))
    {
        return Err(Refusal::new(
            RefusalCode::UnsupportedVersion,
            wrong_version(message, M::VERSION),
        ));
    }
    serde_json::from_slice::<M>(&message.body)
        .map_err(|error| Refusal::new(RefusalCode::Malformed, misfit(M::NAME, &error)))
}

/// An answer as it is sent.
fn encode<T: serde::Serialize>(answer: Result<T, Refusal>) -> Outcome {
    Outcome::Answered(answer.and_then(|reply| {
        serde_json::to_value(reply).map_err(|error| ClaimError::from(error).refusal())
    }))
}
