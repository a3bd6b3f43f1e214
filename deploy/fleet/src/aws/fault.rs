//! What a failure of the SDK means.

use aws_smithy_runtime_api::client::{orchestrator::HttpResponse, result::SdkError};
use aws_smithy_types::error::{display::DisplayErrorContext, metadata::ProvideErrorMetadata};

use crate::call::{Fault, Kind};

/// The kind of a failure, and its words.
pub(super) fn fault<E>(error: &SdkError<E, HttpResponse>) -> Fault
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let SdkError::ServiceError(service) = error else {
        // the chain of causes: a role that cannot be assumed is in there
        let message = format!("{}", DisplayErrorContext(error));
        let kind = match error {
            _ if message.contains("AccessDenied") => Kind::Denied,
            SdkError::ConstructionFailure(_) if !message.contains("credentials") => Kind::Refused,
            _ => Kind::Unavailable,
        };
        return Fault { kind, message: shorten(&message) };
    };
    let meta = service.err().meta();
    let (code, told) = (meta.code().unwrap_or("no code"), meta.message().unwrap_or("no message"));
    let kind = kind(code, told, service.raw().status().as_u16());
    Fault { kind, message: shorten(&format!("{code}: {told}")) }
}

/// Longest text of a failure that is shown.
const TEXT_MAX: usize = 600;

fn shorten(text: &str) -> String {
    text.chars().take(TEXT_MAX).collect()
}

fn kind(code: &str, message: &str, status: u16) -> Kind {
    let lower = message.to_ascii_lowercase();
    match code {
        "ThrottlingException"
        | "Throttling"
        | "RequestLimitExceeded"
        | "TooManyRequestsException"
        | "RequestThrottled"
        | "RequestThrottledException" => Kind::Throttled,
        _ if lower.contains("rate exceeded") => Kind::Throttled,
        "ServiceNotFoundException" | "ServiceNotActiveException" => Kind::Missing,
        "LimitExceededException" | "ResourceLimitExceeded" => Kind::Quota,
        "InvalidParameterException" | "ClientException" if lower.contains("idempotent") => Kind::Exists,
        "InvalidParameterException" | "ClientException" if lower.contains("draining") => Kind::Draining,
        "InvalidParameterException" | "ClientException" if lower.contains("maximum number of services") => {
            Kind::Quota
        }
        _ if code.starts_with("AccessDenied") => Kind::Denied,
        "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch" => Kind::Denied,
        // credentials are read anew for the next try
        "ExpiredTokenException" | "ExpiredToken" => Kind::Unavailable,
        _ if status >= 500 => Kind::Unavailable,
        _ => Kind::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_of_a_failure_says_what_to_do() {
        let of = |code, message| kind(code, message, 400);
        assert_eq!(of("ThrottlingException", "Rate exceeded"), Kind::Throttled);
        assert_eq!(of("InvalidParameterException", "Creation of service was not idempotent."), Kind::Exists);
        let draining = "Unable to Start a service that is still Draining.";
        assert_eq!(of("InvalidParameterException", draining), Kind::Draining);
        assert_eq!(of("InvalidParameterException", "Invalid subnet."), Kind::Refused);
        assert_eq!(of("ServiceNotActiveException", "Service was not ACTIVE."), Kind::Missing);
        assert_eq!(of("AccessDeniedException", "not authorized to perform: ecs:CreateService"), Kind::Denied);
        assert_eq!(
            kind("ServerException", "Service Unavailable. Please try again later.", 503),
            Kind::Unavailable
        );
    }
}
