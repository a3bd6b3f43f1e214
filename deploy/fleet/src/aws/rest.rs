//! Calls of Cloud Map and of SQS.

use std::collections::BTreeMap;

use aws_sdk_servicediscovery::types::{
    FilterCondition, NamespaceFilter, NamespaceFilterName, ServiceFilter, ServiceFilterName,
};
use aws_sdk_sqs::types::DeleteMessageBatchRequestEntry;
use aws_smithy_runtime_api::client::result::SdkError;

use super::fault::fault;
use crate::call::{Answer, Fault, Kind};

/// Messages of one answer (AWS: 10 at most).
const MESSAGES_MAX: i32 = 10;
/// Services of a page of a namespace (AWS: 100 at most). A namespace of the grid has three.
const PAGE: i32 = 100;

fn built(error: impl std::fmt::Display) -> Fault {
    Fault { kind: Kind::Refused, message: format!("{error}: this is a bug of fleet") }
}

pub(super) async fn find_namespace(
    names: &aws_sdk_servicediscovery::Client,
    name: &str,
) -> Result<Answer, Fault> {
    let filter = NamespaceFilter::builder()
        .name(NamespaceFilterName::Name)
        .values(name)
        .condition(FilterCondition::Eq)
        .build()
        .map_err(built)?;
    let answer = names.list_namespaces().filters(filter).send().await.map_err(|error| fault(&error))?;
    let found = answer.namespaces().iter().find(|each| each.name() == Some(name));
    Ok(Answer::Found(found.and_then(|each| each.id()).map(str::to_owned)))
}

pub(super) async fn find_registries(
    names: &aws_sdk_servicediscovery::Client,
    namespace: &str,
) -> Result<Answer, Fault> {
    let filter = ServiceFilter::builder()
        .name(ServiceFilterName::NamespaceId)
        .values(namespace)
        .condition(FilterCondition::Eq)
        .build()
        .map_err(built)?;
    let answer = names.list_services().filters(filter).max_results(PAGE).send().await;
    let answer = answer.map_err(|error| fault(&error))?;
    let pairs =
        answer.services().iter().filter_map(|each| Some((each.name()?.to_owned(), each.arn()?.to_owned())));
    Ok(Answer::Registries(pairs.collect::<BTreeMap<_, _>>()))
}

pub(super) async fn find_queue(queues: &aws_sdk_sqs::Client, name: &str) -> Result<Answer, Fault> {
    match queues.get_queue_url().queue_name(name).send().await {
        Ok(answer) => Ok(Answer::Found(answer.queue_url().map(str::to_owned))),
        Err(SdkError::ServiceError(error))
            if error.err().meta().code().is_some_and(|code| {
                code.contains("QueueDoesNotExist") || code.contains("NonExistentQueue")
            }) =>
        {
            Ok(Answer::Found(None))
        }
        Err(error) => Err(fault(&error)),
    }
}

pub(super) async fn receive(queues: &aws_sdk_sqs::Client, url: &str) -> Result<Answer, Fault> {
    let call = queues.receive_message().queue_url(url).max_number_of_messages(MESSAGES_MAX);
    let answer = call.send().await.map_err(|error| fault(&error))?;
    let messages = answer
        .messages()
        .iter()
        .filter_map(|message| Some((message.body()?.to_owned(), message.receipt_handle()?.to_owned())));
    Ok(Answer::Messages(messages.collect()))
}

pub(super) async fn forget(
    queues: &aws_sdk_sqs::Client,
    url: &str,
    receipts: &[String],
) -> Result<Answer, Fault> {
    let mut entries = Vec::with_capacity(receipts.len());
    for (index, receipt) in receipts.iter().enumerate() {
        let entry =
            DeleteMessageBatchRequestEntry::builder().id(index.to_string()).receipt_handle(receipt).build();
        entries.push(entry.map_err(built)?);
    }
    let answer = queues.delete_message_batch().queue_url(url).set_entries(Some(entries)).send().await;
    answer.map(|_| Answer::Done).map_err(|error| fault(&error))
}
