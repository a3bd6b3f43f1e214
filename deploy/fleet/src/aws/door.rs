//! How AWS is reached: transport, Region, credentials.

use std::{error::Error as _, time::Duration};

use aws_config::{
    BehaviorVersion, Region, SdkConfig, retry::RetryConfig, sts::AssumeRoleProvider, timeout::TimeoutConfig,
};
use aws_credential_types::provider::{ProvideCredentials as _, SharedCredentialsProvider};
use aws_smithy_async::time::SharedTimeSource;
use aws_smithy_runtime_api::client::http::{SharedHttpClient, SharedHttpConnector};
use aws_smithy_types::error::display::DisplayErrorContext;
use trellis_fabric::objects::Keys;

use crate::model::Place;

/// Longest wait for an answer. The slowest of the calls (CreateService) answers within some seconds.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Longest wait for a connection.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// How AWS is reached.
#[derive(Clone, Debug)]
pub struct Door {
    /// The transport of the SDK.
    pub http: SharedHttpClient,
    /// The transport of the requests that the SDK does not know, which `fleet` signs itself.
    pub connector: SharedHttpConnector,
    /// The clock for signatures and credentials; none for the machine's.
    pub time: Option<SharedTimeSource>,
    /// Another address than AWS's own, for a fake.
    pub endpoint: Option<String>,
    /// The credentials of who runs `fleet`; none for the environment, the profile or the machine's role.
    pub credentials: Option<SharedCredentialsProvider>,
}

impl Door {
    /// The door of the program: hyper and ring, credentials and `AWS_ENDPOINT_URL` from the environment.
    #[must_use]
    pub fn of_process() -> Self {
        use aws_smithy_http_client::{Builder, Connector, tls};
        let ring = || tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring);
        Self {
            http: Builder::new().tls_provider(ring()).build_https(),
            connector: SharedHttpConnector::new(Connector::builder().tls_provider(ring()).build()),
            time: None,
            endpoint: std::env::var("AWS_ENDPOINT_URL").ok().filter(|url| !url.is_empty()),
            credentials: None,
        }
    }

    /// The configuration of the caller itself, in a Region.
    pub async fn config(&self, region: &str) -> SdkConfig {
        let timeouts =
            TimeoutConfig::builder().connect_timeout(CONNECT_MAX).operation_timeout(ANSWER_MAX).build();
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(self.http.clone())
            .region(Region::new(region.to_owned()))
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts);
        if let Some(credentials) = &self.credentials {
            loader = loader.credentials_provider(credentials.clone());
        }
        if let Some(endpoint) = &self.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        let config = loader.load().await;
        match &self.time {
            Some(time) => config.to_builder().time_source(time.clone()).build(),
            None => config,
        }
    }

    /// Looks whether whoever runs `fleet` has credentials at all. Without them every call would fail, and be tried again.
    ///
    /// # Errors
    /// Says where they were looked for.
    pub async fn caller(&self, region: &str) -> Result<(), String> {
        let config = self.config(region).await;
        let provider = config.credentials_provider().ok_or("no credentials: this is a bug of fleet")?;
        let Err(error) = provider.provide_credentials().await else { return Ok(()) };
        let causes = std::iter::successors(error.source(), |&cause| cause.source());
        let causes: Vec<String> = causes.map(ToString::to_string).collect();
        Err(format!(
            "no AWS credentials: {error}: {}; give those of an identity that may assume the deployer's roles, by the variables AWS_*, a \
             profile or a role",
            causes.join(": ")
        ))
    }

    /// The configuration of a role in a place.
    pub async fn assume(&self, place: &Place, role: &str) -> SdkConfig {
        let config = self.config(&place.region).await;
        let provider = AssumeRoleProvider::builder(role)
            .session_name("fleet")
            .region(Region::new(place.region.clone()))
            .configure(&config)
            .build()
            .await;
        config.to_builder().credentials_provider(SharedCredentialsProvider::new(provider)).build()
    }

    /// The keys of a role in a place, for S3, which the SDK is not used for.
    ///
    /// # Errors
    /// Says why there are none.
    pub async fn keys(&self, place: &Place, role: &str) -> Result<Keys, String> {
        let config = self.assume(place, role).await;
        let provider = config.credentials_provider().ok_or("no credentials: this is a bug of fleet")?;
        let keys = provider.provide_credentials().await;
        let keys = keys
            .map_err(|error| format!("the role {role} cannot be assumed: {}", DisplayErrorContext(&error)))?;
        Ok(Keys {
            id: keys.access_key_id().to_owned(),
            secret: keys.secret_access_key().to_owned(),
            token: keys.session_token().map(str::to_owned),
        })
    }
}

/// The role that `fleet` works with: `DeployerRole` of `cfn/account.yaml`.
#[must_use]
pub fn deployer_role(grid: &str, place: &Place) -> String {
    role(grid, place, "deployer")
}

/// The role of `fleet bootstrap`: `BootstrapRole` of `cfn/account.yaml`.
#[must_use]
pub fn bootstrap_role(grid: &str, place: &Place) -> String {
    role(grid, place, "bootstrap")
}

fn role(grid: &str, place: &Place, name: &str) -> String {
    let Place { account, region } = place;
    format!("arn:aws:iam::{account}:role/trellis/{grid}/{grid}-{name}-{region}")
}
