//! Objects in S3 by their URL: a few whole ones, not a lake. An error says whose fault it is and what to do.
//!
//! Credentials are those of the environment, of a web identity, of the task's role or of the instance's role, unless the caller has
//! others. `AWS_ENDPOINT_URL` names another server than AWS.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use object_store::{
    ClientOptions, Error, GetOptions, ObjectStore, ObjectStoreExt as _, PutMode, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey},
    path::Path,
};
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    aws::{Variable, error_of, root},
    retry::Pauses,
    task,
};

/// Longest time of one request with its body. Objects of some MiB need a second; whoever asks tries again.
const TIME_MAX: Duration = Duration::from_secs(30);
/// Longest time until a connection is there. Without a metadata service, packets to its address are often lost silently.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// Pauses between attempts.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// See [`PAUSE_MIN`].
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Where an ECS agent gives credentials by a relative address.
const AGENT: &str = "http://169.254.170.2";
const SCHEME: &str = "s3://";

/// The address of an object: `s3://BUCKET/KEY`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectUrl {
    /// Its bucket.
    pub bucket: String,
    /// Its key.
    pub key: String,
}

impl ObjectUrl {
    /// Whether a text is meant as the address of an object.
    #[must_use]
    pub fn is_meant(text: &str) -> bool {
        text.starts_with(SCHEME)
    }

    /// Reads an address.
    ///
    /// # Errors
    /// Says what is expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parts = text.strip_prefix(SCHEME).and_then(|rest| rest.split_once('/'));
        match parts {
            Some((bucket, key))
                if !bucket.is_empty()
                    && Path::parse(key).is_ok_and(|p| p.as_ref() == key)
                    && !key.is_empty() =>
            {
                Ok(Self { bucket: bucket.to_owned(), key: key.to_owned() })
            }
            _ => Err(format!("{text:?} is not s3://BUCKET/KEY")),
        }
    }

    /// An object of the same bucket.
    #[must_use]
    pub fn beside(&self, key: &str) -> Self {
        Self { bucket: self.bucket.clone(), key: key.to_owned() }
    }
}

impl std::fmt::Display for ObjectUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.bucket, self.key)
    }
}

/// Whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectFault {
    /// There is no such object.
    Missing,
    /// There is no such bucket.
    NoBucket,
    /// The caller may not.
    Denied,
    /// The caller has no credentials.
    NoCredentials,
    /// The object is larger than its reader takes.
    TooLarge,
    /// S3 refuses the request for another reason, or the object is not what was expected.
    Refused,
    /// S3 could not be reached, or did not answer in time. Another attempt may succeed.
    Unanswered,
}

/// Why an object was not read or put.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}; {hint}")]
pub struct ObjectError {
    /// Whose fault it is.
    pub fault: ObjectFault,
    /// What went wrong.
    pub message: String,
    /// What to do.
    pub hint: String,
}

impl ObjectError {
    fn new(fault: ObjectFault, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { fault, message: message.into(), hint: hint.into() }
    }
}

/// Credentials that the caller brings.
#[derive(Clone)]
pub struct Keys {
    /// The id of the key.
    pub id: String,
    /// The key.
    pub secret: String,
    /// The token of a session.
    pub token: Option<String>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A bucket.
#[derive(Debug)]
pub struct Objects {
    store: AmazonS3,
    bucket: String,
    /// Set if the caller brought credentials.
    key_id: Option<String>,
}

impl Objects {
    /// Opens a bucket; in `region`, or in that of the environment. Nothing is called yet.
    ///
    /// # Errors
    /// No region; an incomplete set of variables.
    pub fn open(bucket: &str, region: Option<&str>, keys: Option<Keys>) -> Result<Self, ObjectError> {
        let refuse = |why: String| {
            ObjectError::new(
                ObjectFault::Refused,
                format!("the bucket {bucket} cannot be used: {why}"),
                "set the variables AWS_*",
            )
        };
        let endpoint = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"].into_iter().find_map(variable);
        let plain = endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("http://"));
        let options = ClientOptions::new()
            .with_timeout(TIME_MAX)
            .with_connect_timeout(CONNECT_MAX)
            .with_allow_http(plain);
        // whoever asks tries again, with new credentials
        let retries = RetryConfig { max_retries: 0, retry_timeout: TIME_MAX, ..RetryConfig::default() };
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            .with_client_options(options)
            .with_retry(retries);
        if let Some(region) = region {
            builder = builder.with_region(region);
        }
        if builder.get_config_value(&AmazonS3ConfigKey::Region).is_none() && endpoint.is_none() {
            return Err(ObjectError::new(
                ObjectFault::Refused,
                format!("the bucket {bucket} cannot be used: no AWS region"),
                "set AWS_REGION to that of the bucket",
            ));
        }
        let key_id = keys.as_ref().map(|keys| keys.id.clone());
        if let Some(keys) = keys {
            builder = builder
                .with_access_key_id(keys.id)
                .with_secret_access_key(keys.secret)
                .with_config(AmazonS3ConfigKey::Token, keys.token.unwrap_or_default());
        }
        let store = builder.build().map_err(|error| refuse(root(&error)))?;
        Ok(Self { store, bucket: bucket.to_owned(), key_id })
    }

    /// Reads an object of at most `bytes_max`. While S3 does not answer, it tries again for `patience`.
    ///
    /// # Errors
    /// See [`ObjectFault`].
    pub async fn get(&self, key: &str, bytes_max: usize, patience: Duration) -> Result<Bytes, ObjectError> {
        self.patiently(patience, || self.get_once(key, bytes_max)).await
    }

    /// Puts an object unless it is there. Returns whether it was put. While S3 does not answer, it tries again for `patience`.
    ///
    /// # Errors
    /// See [`ObjectFault`]. `Refused`: other bytes are there.
    pub async fn put_new(&self, key: &str, bytes: &Bytes, patience: Duration) -> Result<bool, ObjectError> {
        self.patiently(patience, || self.put_new_once(key, bytes)).await
    }

    /// Puts an object, in the place of the one before. While S3 does not answer, it tries again for `patience`.
    ///
    /// # Errors
    /// See [`ObjectFault`].
    pub async fn put(&self, key: &str, bytes: &Bytes, patience: Duration) -> Result<(), ObjectError> {
        self.patiently(patience, || async {
            self.store
                .put(&self.path(key)?, bytes.clone().into())
                .await
                .map(|_| ())
                .map_err(|error| Attempt::of(&error).put(&self.url(key)))
        })
        .await
    }

    async fn get_once(&self, key: &str, bytes_max: usize) -> Result<Bytes, Attempt> {
        let url = self.url(key);
        let got = self.store.get_opts(&self.path(key)?, GetOptions::default()).await;
        let got = got.map_err(|error| Attempt::of(&error).read(&url))?;
        let too_large = || {
            Attempt::Told(ObjectError::new(
                ObjectFault::TooLarge,
                format!("{url} has more than {bytes_max} bytes, the most that is read"),
                "look what was put there",
            ))
        };
        if got.meta.size > bytes_max as u64 {
            return Err(too_large());
        }
        let mut bytes = Vec::with_capacity(usize::try_from(got.meta.size).unwrap_or_default());
        let mut pieces = got.into_stream();
        while let Some(piece) = pieces.next().await {
            bytes.extend_from_slice(&piece.map_err(|error| Attempt::of(&error).read(&url))?);
            if bytes.len() > bytes_max {
                return Err(too_large());
            }
        }
        Ok(bytes.into())
    }

    async fn put_new_once(&self, key: &str, bytes: &Bytes) -> Result<bool, Attempt> {
        let other = || {
            Attempt::Told(ObjectError::new(
                ObjectFault::Refused,
                format!("{} is there with other bytes than its name says", self.url(key)),
                "somebody changed it, or it is damaged: look who did, remove it, and try again",
            ))
        };
        match self.get_once(key, bytes.len()).await {
            Ok(there) if there == *bytes => return Ok(false),
            Ok(_) => return Err(other()),
            Err(attempt) => match attempt.fault() {
                ObjectFault::TooLarge => return Err(other()),
                // who may not list the bucket gets the same answer for an object that is not there
                ObjectFault::Missing | ObjectFault::Denied => {}
                _ => return Err(attempt),
            },
        }
        match self.store.put_opts(&self.path(key)?, bytes.clone().into(), PutMode::Create.into()).await {
            Ok(_) => Ok(true),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(false),
            Err(error) => Err(Attempt::of(&error).put(&self.url(key))),
        }
    }

    async fn patiently<T, F>(&self, patience: Duration, attempt: impl Fn() -> F) -> Result<T, ObjectError>
    where
        F: Future<Output = Result<T, Attempt>>,
    {
        let until = Instant::now() + patience;
        let mut pauses = Pauses::new(PAUSE_MIN, PAUSE_MAX);
        loop {
            let tried = timeout_at(until, async {
                self.credentials().await?;
                attempt().await
            });
            let failed = match tried.await {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(failed)) => failed,
                Err(_) => Attempt::Told(ObjectError::new(
                    ObjectFault::Unanswered,
                    format!("the bucket {} did not answer within {patience:?}", self.bucket),
                    UNANSWERED_HINT,
                )),
            };
            let error = match failed {
                Attempt::Told(error) => error,
                Attempt::Denied(message) => ObjectError::new(
                    ObjectFault::Denied,
                    format!("{message} (asked by {})", self.caller().await),
                    "give it the right; S3 also says this of an object that is not there, to a caller that may not list the bucket",
                ),
            };
            let pause = pauses.next_pause();
            if error.fault != ObjectFault::Unanswered || Instant::now() + pause >= until {
                return Err(error);
            }
            sleep(pause).await;
        }
    }

    /// Whether there are credentials, so that their lack is told apart from a store that does not answer.
    async fn credentials(&self) -> Result<(), Attempt> {
        let Err(error) = self.store.credentials().get_credential().await else { return Ok(()) };
        let source = source(variable);
        let why = root(&error);
        Err(Attempt::Told(match source {
            Some(source) => ObjectError::new(
                ObjectFault::Unanswered,
                format!("no AWS credentials from {source}: {why}"),
                "look whether the role exists and may be used here",
            ),
            None => ObjectError::new(
                ObjectFault::NoCredentials,
                format!("no AWS credentials: no variable names any, and this machine has no role ({why})"),
                "give the task a role; on a laptop: eval \"$(aws configure export-credentials --format env)\"",
            ),
        }))
    }

    /// Who asks, for people.
    async fn caller(&self) -> String {
        if let Some(id) = &self.key_id {
            return format!("the key {id}");
        }
        tokio::task::spawn_blocking(|| caller(variable, AGENT)).await.unwrap_or_default()
    }

    fn url(&self, key: &str) -> ObjectUrl {
        ObjectUrl { bucket: self.bucket.clone(), key: key.to_owned() }
    }

    fn path(&self, key: &str) -> Result<Path, Attempt> {
        Path::parse(key).map_err(|error| {
            Attempt::Told(ObjectError::new(
                ObjectFault::Refused,
                format!("{} is no address of an object: {error}", self.url(key)),
                "correct it",
            ))
        })
    }
}

const UNANSWERED_HINT: &str =
    "look at the network, at the endpoint of S3 in the VPC, and at AWS_ENDPOINT_URL";

/// Why an attempt failed.
enum Attempt {
    Told(ObjectError),
    /// The caller's name is still missing.
    Denied(String),
}

impl Attempt {
    fn fault(&self) -> ObjectFault {
        match self {
            Self::Told(error) => error.fault,
            Self::Denied(_) => ObjectFault::Denied,
        }
    }

    fn of(error: &Error) -> Answered {
        let told = root(error);
        let fault = match error {
            Error::NotFound { .. } if told.contains("NoSuchBucket") => ObjectFault::NoBucket,
            Error::NotFound { .. } => ObjectFault::Missing,
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => ObjectFault::Denied,
            _ if is_refused(&told) => ObjectFault::Refused,
            _ => ObjectFault::Unanswered,
        };
        let words = match error_of(&told, None) {
            (code, message) if told.contains("<Code>") => format!("{code}: {message}"),
            (_, _) => told,
        };
        Answered { fault, words }
    }
}

/// Whether the answer is one that another attempt gets again: 4xx, but for those that say "later", and a redirect to another region.
fn is_refused(told: &str) -> bool {
    let status = told.split_once("status code: ").and_then(|(_, rest)| rest.get(..3));
    told.contains("incorrectly configured region")
        || status.is_some_and(|status| status.starts_with('4') && !["408", "429"].contains(&status))
}

/// What S3 answered, or why it did not.
struct Answered {
    fault: ObjectFault,
    words: String,
}

impl Answered {
    fn read(self, url: &ObjectUrl) -> Attempt {
        self.attempt(url, "read")
    }

    fn put(self, url: &ObjectUrl) -> Attempt {
        self.attempt(url, "put")
    }

    fn attempt(self, url: &ObjectUrl, what: &str) -> Attempt {
        let Self { fault, words } = self;
        let told = |message: String, hint: &str| Attempt::Told(ObjectError::new(fault, message, hint));
        match fault {
            ObjectFault::Missing => {
                told(format!("there is no object {url}"), "look whether it was put, and under this key")
            }
            ObjectFault::NoBucket => {
                told(format!("there is no bucket {} for {url}", url.bucket), "correct its name, or make it")
            }
            ObjectFault::Denied => Attempt::Denied(format!("{url} may not be {what}: {words}")),
            ObjectFault::Unanswered => {
                told(format!("{url} cannot be {what}, S3 does not answer: {words}"), UNANSWERED_HINT)
            }
            ObjectFault::NoCredentials | ObjectFault::TooLarge | ObjectFault::Refused => {
                told(format!("{url} cannot be {what}: {words}"), "look at the region and at the credentials")
            }
        }
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Where the environment says that credentials come from.
fn source(variable: Variable) -> Option<&'static str> {
    const SOURCES: [&str; 4] = [
        "AWS_ACCESS_KEY_ID",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ];
    SOURCES.into_iter().find(|name| variable(name).is_some())
}

/// Who asks. ECS tells the ARN of the task's role.
fn caller(variable: Variable, agent: &str) -> String {
    let value = |name| variable(name).unwrap_or_default();
    match source(variable) {
        Some("AWS_ACCESS_KEY_ID") => format!("the key {}", value("AWS_ACCESS_KEY_ID")),
        Some("AWS_WEB_IDENTITY_TOKEN_FILE") => format!("the role {}", value("AWS_ROLE_ARN")),
        Some(name @ "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") => {
            let role = task::role(&format!("{agent}{}", value(name)));
            role.map_or_else(|| "the task's role".to_owned(), |role| format!("the task's role {role}"))
        }
        Some(name) => format!("the role of {name}"),
        None => "the instance's role".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_bucket_and_a_key() {
        let url = ObjectUrl::parse("s3://b/bundles/units/t-unit-x.json").unwrap();
        assert_eq!((url.bucket.as_str(), url.key.as_str()), ("b", "bundles/units/t-unit-x.json"));
        assert_eq!(url.beside("bundles/1.zip").to_string(), "s3://b/bundles/1.zip");
        for wrong in
            ["s3://b", "s3://b/", "s3:///k", "s3://b//k", "s3://b/a/../k", "s3://b/k/", "file:///k", ""]
        {
            assert!(ObjectUrl::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn who_asks_has_a_name() {
        let key: Variable = |name| (name == "AWS_ACCESS_KEY_ID").then(|| "AKIA1".to_owned());
        assert_eq!(caller(key, AGENT), "the key AKIA1");
        let task: Variable =
            |name| (name == "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI").then(|| "/task".to_owned());
        let answer =
            "HTTP/1.1 200 OK\r\n\r\n{\"RoleArn\": \"arn:aws:iam::1:role/unit\", \"SecretAccessKey\": \"s\"}";
        let agent = task::tests::answer_once(answer);
        assert_eq!(caller(task, &agent), "the task's role arn:aws:iam::1:role/unit");
        assert_eq!(caller(task, "http://127.0.0.1:1"), "the task's role");
        assert_eq!(caller(|_| None, AGENT), "the instance's role");
    }

    #[test]
    fn an_answer_that_comes_again_is_not_asked_for_again() {
        for (told, refused) in [
            ("Server returned non-2xx status code: 400 Bad Request: <Code>ExpiredToken</Code>", true),
            ("Server returned non-2xx status code: 429 Too Many Requests: ", false),
            ("Server returned non-2xx status code: 503 Service Unavailable: ", false),
            (
                "Received redirect without LOCATION, this normally indicates an incorrectly configured region",
                true,
            ),
            ("connection refused", false),
        ] {
            assert_eq!(is_refused(told), refused, "{told}");
        }
    }
}
