//! Signed calls of an AWS API that speaks JSON 1.1.
//!
//! object_store, which reads the lake on S3, has the parts: where the credentials of a process come from (keys in the environment, a web
//! identity, an ECS task role, an instance's role), when they are renewed, and signatures of version 4 for any service. A crate for
//! signatures alone, or Amazon's SDK, would be a second one of the same.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{HeaderName, HeaderValue, header::CONTENT_TYPE};
use object_store::{
    ClientOptions, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey, AwsAuthorizer, AwsCredentialProvider},
    client::{HttpClient, HttpConnector as _, HttpRequest, HttpRequestBody, ReqwestConnector},
};
use serde_json::Value;

/// Longest time of one request, to the API or for credentials. Each takes milliseconds; whoever asks tries again.
const TIME_MAX: Duration = Duration::from_secs(5);
/// Longest time until a connection is there. Without a metadata service, packets to its address are often lost silently.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// Attempts for credentials, beside the first; whoever asks tries again.
const CREDENTIAL_RETRIES: usize = 1;
/// Longest answer. A thousand instances, which is the most of a service, with ten attributes each, have less than 1 MiB.
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// Most characters of an answer in no known form, in an error: enough to see which proxy wrote it.
const MESSAGE_MAX: usize = 200;

/// Where credentials can come from: the variable that says so, and its name for people.
const SOURCES: [(&str, &str); 4] = [
    ("AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY_ID"),
    ("AWS_WEB_IDENTITY_TOKEN_FILE", "the web identity of AWS_WEB_IDENTITY_TOKEN_FILE"),
    ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "the task's role"),
    ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
];

/// Every variable that credentials are made of, and the key of the library that takes its value.
const VARIABLES: [(&str, AmazonS3ConfigKey); 11] = [
    ("AWS_ACCESS_KEY_ID", AmazonS3ConfigKey::AccessKeyId),
    ("AWS_SECRET_ACCESS_KEY", AmazonS3ConfigKey::SecretAccessKey),
    ("AWS_SESSION_TOKEN", AmazonS3ConfigKey::Token),
    ("AWS_WEB_IDENTITY_TOKEN_FILE", AmazonS3ConfigKey::WebIdentityTokenFile),
    ("AWS_ROLE_ARN", AmazonS3ConfigKey::RoleArn),
    ("AWS_ROLE_SESSION_NAME", AmazonS3ConfigKey::RoleSessionName),
    ("AWS_ENDPOINT_URL_STS", AmazonS3ConfigKey::StsEndpoint),
    ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", AmazonS3ConfigKey::ContainerCredentialsRelativeUri),
    ("AWS_CONTAINER_CREDENTIALS_FULL_URI", AmazonS3ConfigKey::ContainerCredentialsFullUri),
    ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", AmazonS3ConfigKey::ContainerAuthorizationTokenFile),
    ("AWS_METADATA_ENDPOINT", AmazonS3ConfigKey::MetadataEndpoint),
];

/// Reads a variable of the environment.
pub(crate) type Variable = fn(&str) -> Option<String>;

/// Calls one API in one region.
#[derive(Debug)]
pub(crate) struct Aws {
    http: HttpClient,
    credentials: AwsCredentialProvider,
    /// Where the credentials come from, for people; `None` is the instance's role, the last resort.
    source: Option<&'static str>,
    service: &'static str,
    region: String,
    endpoint: String,
}

/// Why a call has no answer.
#[derive(Debug)]
pub(crate) enum CallError {
    /// There are no credentials to sign with.
    NoCredentials(String),
    /// The API could not be reached, or did not answer in time or in JSON.
    Unanswered(String),
    /// The API's answer is an error.
    Refused {
        /// Its HTTP status.
        status: u16,
        /// The API's word for it, without a namespace: `AccessDeniedException`.
        code: String,
        /// The API's sentence.
        message: String,
    },
}

impl Aws {
    /// Calls of `service` in `region`, or in that of the environment; to `endpoint`, or to AWS at the host `host_prefix`SERVICE.
    ///
    /// # Errors
    /// No region; an incomplete set of variables; a TLS configuration that cannot be used.
    pub(crate) fn new(
        service: &'static str,
        host_prefix: &str,
        region: Option<&str>,
        endpoint: Option<&str>,
        variable: Variable,
    ) -> Result<Self, String> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let region = region
            .map(str::to_owned)
            .or_else(|| set("AWS_REGION"))
            .or_else(|| set("AWS_DEFAULT_REGION"))
            .ok_or("no AWS region: set AWS_REGION, or name one in the URL (region=eu-west-1)")?;
        let options = ClientOptions::new().with_timeout(TIME_MAX).with_connect_timeout(CONNECT_MAX);
        let retries = RetryConfig {
            max_retries: CREDENTIAL_RETRIES,
            retry_timeout: TIME_MAX,
            ..RetryConfig::default()
        };
        // the library gives credentials only to a bucket; nobody asks this one for anything
        let mut bucket = AmazonS3Builder::new()
            .with_bucket_name("none")
            .with_region(&region)
            .with_client_options(options.clone())
            .with_retry(retries);
        for (name, key) in VARIABLES {
            if let Some(value) = set(name) {
                bucket = bucket.with_config(key, value);
            }
        }
        let bucket = bucket.build().map_err(|error| format!("AWS credentials: {error}"))?;
        let endpoint = endpoint.map_or_else(
            || {
                let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
                format!("https://{host_prefix}{service}.{region}.{domain}")
            },
            str::to_owned,
        );
        let options = options.with_allow_http(endpoint.starts_with("http://"));
        Ok(Self {
            http: ReqwestConnector::default().connect(&options).map_err(|error| error.to_string())?,
            credentials: bucket.credentials().clone(),
            source: SOURCES.iter().find(|(name, _)| set(name).is_some()).map(|(_, source)| *source),
            service,
            region,
            endpoint,
        })
    }

    /// The region of the calls.
    pub(crate) fn region(&self) -> &str {
        &self.region
    }

    /// One call. Nothing is tried twice.
    pub(crate) async fn call(&self, target: &str, body: &Value) -> Result<Value, CallError> {
        let credential = self.credentials.get_credential().await.map_err(|error| {
            CallError::NoCredentials(match self.source {
                Some(source) => format!("no AWS credentials from {source}: {error}"),
                None => format!(
                    "no AWS credentials: no variable names any, and the instance has no role ({error}); give the task a role, or set \
                     AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                ),
            })
        })?;
        let unanswered = |error: &dyn std::fmt::Display| {
            CallError::Unanswered(format!("{} ({}): {error}", self.endpoint, self.region))
        };
        let mut request = request(&self.endpoint, target, body).map_err(|error| unanswered(&error))?;
        AwsAuthorizer::new(&credential, self.service, &self.region).authorize(&mut request, None);
        let answer = self.http.execute(request).await.map_err(|error| unanswered(&root(&error)))?;
        let (parts, body) = answer.into_parts();
        let mut pieces = body.bytes_stream();
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.next().await {
            bytes.extend_from_slice(&piece.map_err(|error| unanswered(&root(&error)))?);
            if bytes.len() > ANSWER_BYTES_MAX {
                return Err(unanswered(&format!("an answer of more than {ANSWER_BYTES_MAX} bytes")));
            }
        }
        if parts.status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|error| unanswered(&error));
        }
        let header = parts.headers.get("x-amzn-errortype").and_then(|code| code.to_str().ok());
        let (code, message) = error_of(&String::from_utf8_lossy(&bytes), header);
        Err(CallError::Refused { status: parts.status.as_u16(), code, message })
    }
}

/// The request before it is signed.
fn request(endpoint: &str, target: &str, body: &Value) -> Result<HttpRequest, String> {
    let body = HttpRequestBody::from(Bytes::from(body.to_string()));
    let mut request = HttpRequest::new(body);
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = format!("{endpoint}/").parse().map_err(|error| format!("{error}"))?;
    let target = HeaderValue::from_str(target).map_err(|error| error.to_string())?;
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-amz-json-1.1"));
    headers.insert(HeaderName::from_static("x-amz-target"), target);
    Ok(request)
}

/// The API's word and sentence for an error. The word may have a namespace before it and a URL after it. What stands before the API, and
/// moto, answer in XML.
pub(crate) fn error_of(answer: &str, header: Option<&str>) -> (String, String) {
    let json: Value = serde_json::from_str(answer).unwrap_or_default();
    let text = |key: &str| json.get(key).and_then(Value::as_str);
    let element = |name: &str| {
        let (_, from) = answer.split_once(&format!("<{name}>"))?;
        from.split_once(&format!("</{name}>")).map(|(text, _)| text)
    };
    let code = text("__type").or(text("code")).or(header).or_else(|| element("Code"));
    let code = code.unwrap_or("an error without a name");
    let code = code.rsplit('#').next().unwrap_or(code);
    let code = code.split(':').next().unwrap_or(code);
    let message = text("message").or(text("Message")).or_else(|| element("Message"));
    let message = message.map_or_else(|| answer.chars().take(MESSAGE_MAX).collect(), str::to_owned);
    (code.to_owned(), message)
}

/// The innermost cause: the outer ones say only that a request failed.
pub(crate) fn root(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_region_and_with_half_a_key_there_are_no_calls() {
        let nothing = Aws::new("servicediscovery", "data-", None, None, |_| None).unwrap_err();
        assert!(nothing.contains("set AWS_REGION"), "{nothing}");
        let half: Variable = |name| (name == "AWS_ACCESS_KEY_ID").then(|| "id".to_owned());
        let half = Aws::new("servicediscovery", "data-", Some("eu-west-1"), None, half).unwrap_err();
        assert!(half.contains("AWS credentials"), "{half}");
    }

    #[test]
    fn calls_go_to_the_region_or_to_the_endpoint() {
        let key: Variable = |name| Some(name.to_owned()).filter(|name| name.contains("ACCESS_KEY"));
        let at =
            |region, endpoint| Aws::new("servicediscovery", "data-", Some(region), endpoint, key).unwrap();
        assert_eq!(at("eu-west-1", None).endpoint, "https://data-servicediscovery.eu-west-1.amazonaws.com");
        assert_eq!(
            at("cn-north-1", None).endpoint,
            "https://data-servicediscovery.cn-north-1.amazonaws.com.cn"
        );
        assert_eq!(at("x", Some("http://127.0.0.1:5000")).endpoint, "http://127.0.0.1:5000");
    }

    #[test]
    fn an_error_has_the_words_of_the_api_wherever_they_stand() {
        let of = |answer: &str, header| error_of(answer, header);
        let words = |code: &str, message: &str| (code.to_owned(), message.to_owned());
        assert_eq!(
            of(r#"{"__type": "com.amazonaws.servicediscovery#NamespaceNotFound", "Message": "n"}"#, None),
            words("NamespaceNotFound", "n")
        );
        assert_eq!(
            of(r#"{"message": "m"}"#, Some("AccessDeniedException:http://internal.amazon.com/coral/")),
            words("AccessDeniedException", "m")
        );
        let xml =
            "<ErrorResponse><Error><Code>ExpiredToken</Code><Message>late</Message></Error></ErrorResponse>";
        assert_eq!(of(xml, None), words("ExpiredToken", "late"));
        assert_eq!(of("<html>proxy</html>", None), words("an error without a name", "<html>proxy</html>"));
    }
}
