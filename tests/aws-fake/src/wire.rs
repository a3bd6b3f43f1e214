//! Requests and responses: AWS JSON 1.0 and 1.1, and the query protocol.

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use serde_json::{Value, json};

use crate::buckets::Category;
use crate::fail::Fail;
use crate::time::uuid;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Json10,
    Json11,
    Query,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    Ecs,
    CloudMap,
    Sqs,
    Sts,
}

/// Who calls what.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) key: String,
    pub(crate) region: String,
    pub(crate) service: Service,
    pub(crate) protocol: Protocol,
    pub(crate) category: Category,
    pub(crate) op: String,
}

impl Call {
    /// The call should change something.
    pub(crate) fn changes(&self) -> bool {
        let reads = ["Describe", "List", "Get", "Discover", "Receive"];
        !reads.iter().any(|word| self.op.starts_with(word))
    }
}

/// Reads who calls what from the headers. The signature is not checked.
pub(crate) fn parse(request: &Request<Bytes>) -> Result<Call, Fail> {
    let header =
        |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let unsigned =
        || Fail::new("MissingAuthenticationTokenException", 403, "Request is missing Authentication Token");
    let credential = header("authorization").split_once("Credential=").ok_or_else(unsigned)?.1;
    let scope: Vec<&str> = credential.split([',', ' ']).next().unwrap_or_default().split('/').collect();
    let [key, _date, region, signed_for, "aws4_request"] = scope[..] else {
        return Err(Fail::new("IncompleteSignatureException", 403, "The credential scope is malformed."));
    };
    let target = header("x-amz-target");
    let (prefix, op) = target.split_once('.').unwrap_or_default();
    let (service, protocol, name) = match prefix {
        "AmazonEC2ContainerServiceV20141113" => (Service::Ecs, Protocol::Json11, "ecs"),
        "Route53AutoNaming_v20170314" => (Service::CloudMap, Protocol::Json11, "servicediscovery"),
        "AmazonSQS" => (Service::Sqs, Protocol::Json10, "sqs"),
        "" if signed_for == "sts" => (Service::Sts, Protocol::Query, "sts"),
        _ => return Err(Fail::new("UnknownOperationException", 404, format!("No such target: {target:?}"))),
    };
    if signed_for != name {
        return Err(Fail::new(
            "InvalidSignatureException",
            403,
            format!("Credential should be scoped to correct service: '{name}'."),
        ));
    }
    let op = if service == Service::Sts {
        crate::sts::form(request.body()).remove("Action").unwrap_or_default()
    } else {
        let version = if protocol == Protocol::Json10 { "1.0" } else { "1.1" };
        if header("content-type") != format!("application/x-amz-json-{version}") {
            return Err(Fail::new(
                "UnknownOperationException",
                404,
                format!("The content type is not that of JSON {version}."),
            ));
        }
        op.to_owned()
    };
    let category = match service {
        Service::Ecs => Category::of_ecs(&op),
        Service::Sqs => Some(Category::Queue),
        Service::Sts => Some(Category::Token),
        Service::CloudMap => Some(match op.as_str() {
            "DiscoverInstances" => Category::Discover,
            "DiscoverInstancesRevision" => Category::DiscoverRevision,
            op if op.starts_with("Get") || op.starts_with("List") => Category::MapRead,
            _ => Category::MapModify,
        }),
    };
    let category = category.ok_or_else(|| Fail::not_faked(format!("{name} {op}")))?;
    Ok(Call { key: key.into(), region: region.into(), service, protocol, category, op })
}

fn response(protocol: Protocol, status: u16, body: String, serial: u64) -> Response<Bytes> {
    let kind = match protocol {
        Protocol::Json10 => "application/x-amz-json-1.0",
        Protocol::Json11 => "application/x-amz-json-1.1",
        Protocol::Query => "text/xml",
    };
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert("content-type", http::HeaderValue::from_static(kind));
    if let Ok(id) = uuid(serial).parse() {
        headers.insert("x-amzn-requestid", id);
    }
    response
}

pub(crate) fn success(protocol: Protocol, op: &str, mut answer: Value, serial: u64) -> Response<Bytes> {
    let body = match (protocol, &mut answer) {
        (Protocol::Query, Value::String(inner)) => format!(
            "<{op}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{op}Result>{inner}</{op}Result>\
             <ResponseMetadata><RequestId>{}</RequestId></ResponseMetadata></{op}Response>",
            uuid(serial)
        ),
        (_, Value::Object(map)) => {
            // AWS leaves out what is not there
            map.retain(|_, value| !value.is_null());
            answer.to_string()
        }
        _ => answer.to_string(),
    };
    response(protocol, 200, body, serial)
}

pub(crate) fn refusal(protocol: Protocol, why: &Fail, serial: u64) -> Response<Bytes> {
    let body = match protocol {
        Protocol::Query => format!(
            "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type><Code>{}</Code>\
             <Message>{}</Message></Error><RequestId>{}</RequestId></ErrorResponse>",
            why.code,
            why.message.replace('&', "&amp;").replace('<', "&lt;"),
            uuid(serial)
        ),
        // SQS names its shapes with their namespace
        Protocol::Json10 => {
            json!({"__type": format!("com.amazonaws.sqs#{}", why.code), "message": why.message}).to_string()
        }
        Protocol::Json11 => json!({"__type": why.code, "message": why.message}).to_string(),
    };
    response(protocol, why.status, body, serial)
}
