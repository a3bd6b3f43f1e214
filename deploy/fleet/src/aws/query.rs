//! Calls of the query protocol (IAM, EC2), for which the workspace has no SDK: four calls of `fleet bootstrap`. The SDK's own signer
//! signs them.

use std::time::SystemTime;

use aws_config::SdkConfig;
use aws_credential_types::provider::ProvideCredentials as _;
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SigningSettings, sign},
    sign::v4,
};
use aws_smithy_runtime_api::client::{http::HttpConnector as _, identity::Identity};
use aws_smithy_types::body::SdkBody;
use http_body_util::BodyExt as _;
use url::form_urlencoded;

use super::door::Door;

/// A call of the query protocol.
#[derive(Clone, Debug)]
pub struct Query<'a> {
    /// `iam` or `ec2`.
    pub service: &'a str,
    /// The Region of the signature.
    pub region: &'a str,
    /// `ModifyVpcAttribute`.
    pub action: &'a str,
    /// The version of the API.
    pub version: &'a str,
    /// Its parameters.
    pub parameters: Vec<(&'a str, String)>,
}

/// A query that was not done.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// AWS's code; empty if AWS was not reached.
    pub code: String,
    /// What it says.
    pub message: String,
}

impl Query<'_> {
    fn url(&self, door: &Door) -> String {
        match &door.endpoint {
            Some(endpoint) => format!("{}/", endpoint.trim_end_matches('/')),
            // IAM is one for all Regions
            None if self.service == "iam" => "https://iam.amazonaws.com/".to_owned(),
            None => format!("https://{}.{}.amazonaws.com/", self.service, self.region),
        }
    }

    fn body(&self) -> String {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("Action", self.action).append_pair("Version", self.version);
        for (key, value) in &self.parameters {
            form.append_pair(key, value);
        }
        form.finish()
    }

    /// Sends it, once, with the credentials of the configuration.
    ///
    /// # Errors
    /// What AWS or the transport says.
    pub async fn send(&self, door: &Door, config: &SdkConfig) -> Result<String, Refusal> {
        let fail = |message: String| Refusal { code: String::new(), message };
        let credentials =
            config.credentials_provider().ok_or_else(|| fail("there are no credentials".into()))?;
        let credentials = credentials.provide_credentials().await;
        let identity: Identity = credentials
            .map_err(|error| {
                fail(format!("{}", aws_smithy_types::error::display::DisplayErrorContext(error)))
            })?
            .into();
        let time = door.time.as_ref().map_or_else(SystemTime::now, |time| time.now());
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(self.region)
            .name(self.service)
            .time(time)
            .settings(SigningSettings::default())
            .build()
            .map_err(|error| fail(error.to_string()))?
            .into();
        let (url, body) = (self.url(door), self.body());
        let kind = ("content-type", "application/x-www-form-urlencoded");
        let signable = SignableRequest::new(
            "POST",
            url.as_str(),
            [kind].into_iter(),
            SignableBody::Bytes(body.as_bytes()),
        );
        let signed = sign(signable.map_err(|error| fail(error.to_string()))?, &params);
        let (instructions, _) = signed.map_err(|error| fail(error.to_string()))?.into_parts();
        let mut request = http::Request::builder()
            .method("POST")
            .uri(&url)
            .header(kind.0, kind.1)
            .body(SdkBody::from(body))
            .map_err(|error| fail(error.to_string()))?;
        instructions.apply_to_request_http1x(&mut request);
        let request = request.try_into().map_err(|error| fail(format!("{error}")))?;
        let response = door.connector.call(request).await.map_err(|error| {
            fail(format!("{}", aws_smithy_types::error::display::DisplayErrorContext(error)))
        })?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|error| fail(error.to_string()))?;
        let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        if status.is_success() {
            return Ok(text);
        }
        Err(Refusal {
            code: element(&text, "Code").unwrap_or_else(|| status.as_u16().to_string()),
            message: element(&text, "Message").unwrap_or(text),
        })
    }
}

/// The text of the first element of a name in XML whose texts have no markup: ids, codes, messages.
#[must_use]
pub fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(text.to_owned())
}
