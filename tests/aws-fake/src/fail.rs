//! An error answer, before it has the form of its protocol.

use serde_json::Value;

/// What a call answers.
pub(crate) type Answer = Result<Value, Fail>;

/// The error code as the service's own model names it, the HTTP status, a message.
#[derive(Clone, Debug)]
pub(crate) struct Fail {
    pub(crate) code: &'static str,
    pub(crate) status: u16,
    pub(crate) message: String,
}

impl Fail {
    pub(crate) fn new(code: &'static str, status: u16, message: impl Into<String>) -> Self {
        Self { code, status, message: message.into() }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new("InvalidParameterException", 400, message)
    }

    pub(crate) fn client(message: impl Into<String>) -> Self {
        Self::new("ClientException", 400, message)
    }

    pub(crate) fn cluster() -> Self {
        Self::new("ClusterNotFoundException", 400, "Cluster not found.")
    }

    pub(crate) fn service() -> Self {
        Self::new("ServiceNotFoundException", 400, "Service not found.")
    }

    /// The caller uses what this fake does not do. A test must not go on with a half-true answer.
    pub(crate) fn not_faked(what: impl std::fmt::Display) -> Self {
        Self::new("NotFaked", 501, format!("trellis-aws-fake does not do this: {what}"))
    }
}

/// Reads the body of a call. A field that the fake does not know is an error, because the fake would ignore it and AWS would not.
pub(crate) fn read<T: serde::de::DeserializeOwned>(body: &Value) -> Result<T, Fail> {
    T::deserialize(body).map_err(|why| {
        let text = why.to_string();
        if text.starts_with("unknown field") {
            Fail::not_faked(text)
        } else {
            Fail::new("SerializationException", 400, text)
        }
    })
}
