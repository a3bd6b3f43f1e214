//! The connections that exports travel on: a gRPC channel, or an HTTP client. Both have the same TLS.
//!
//! The SDK exports from threads of its own, which have no reactor. So the HTTP client sends each request in a task of the process's
//! runtime. The gRPC channel does that by itself.

use std::{error::Error as _, fmt, sync::Arc};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Limited};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::rt::TokioIo;
use opentelemetry_http::{HttpClient, HttpError};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, pem::PemObject as _},
};
use tokio::runtime::Handle;
use tonic::transport::{Channel, Endpoint};

use super::settings::Target;
use crate::connector::{boxed, tcp};

/// Largest answer to an export over HTTP. An answer is empty, or says in a sentence what was refused.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// A gRPC channel to `target`, which connects at the first export. Needs a Tokio runtime.
pub(super) fn channel(target: &Target) -> Result<Channel, String> {
    let url = target.url();
    let endpoint =
        Endpoint::from_shared(url.clone()).map_err(|error| format!("{url}: {}", with_source(&error)))?;
    let connector = HttpsConnectorBuilder::new().with_tls_config(tls(target)?).https_or_http().enable_http2();
    let connector = boxed(connector.wrap_connector(tcp(target.timeout)), TokioIo::new);
    Ok(endpoint.timeout(target.timeout).connect_with_connector_lazy(connector))
}

/// An HTTP/1.1 client for `target`. Needs a Tokio runtime.
pub(super) fn http_client(target: &Target) -> Result<HttpSender, String> {
    let client = reqwest::Client::builder().use_preconfigured_tls(tls(target)?).http1_only();
    let client = client.connect_timeout(target.timeout).timeout(target.timeout).build();
    let client = client.map_err(|error| format!("HTTP: {error}"))?;
    Ok(HttpSender { client, runtime: Handle::current() })
}

fn tls(target: &Target) -> Result<ClientConfig, String> {
    // named here, not installed for the process: another library may bring a second provider, and rustls's own choice then panics
    let provider: Arc<CryptoProvider> = ring::default_provider().into();
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS: {error}"))?;
    if !target.is_tls() {
        // reading the system's certificates takes tens of milliseconds
        return Ok(config.with_root_certificates(RootCertStore::empty()).with_no_client_auth());
    }
    let Some(file) = &target.certificate else {
        use hyper_rustls::ConfigBuilderExt as _;
        let config =
            config.with_native_roots().map_err(|error| format!("the system's certificates: {error}"))?;
        return Ok(config.with_no_client_auth());
    };
    let unusable = |error: &dyn fmt::Display| format!("certificate {}: {error}", file.display());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(|error| unusable(&error))? {
        let certificate = certificate.map_err(|error| unusable(&error))?;
        roots.add(certificate).map_err(|error| unusable(&error))?;
    }
    if roots.is_empty() {
        return Err(unusable(&"no certificate in it"));
    }
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

fn with_source(error: &tonic::transport::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

/// Sends exports over HTTP, from any thread.
#[derive(Clone, Debug)]
pub(super) struct HttpSender {
    client: reqwest::Client,
    runtime: Handle,
}

#[async_trait::async_trait]
impl HttpClient for HttpSender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let HttpSender { client, runtime } = self.clone();
        let sent = runtime.spawn(async move {
            let answer = client.execute(request.try_into()?).await?;
            let (parts, body) = Response::<reqwest::Body>::from(answer).into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await?.to_bytes();
            Ok::<_, HttpError>(Response::from_parts(parts, body))
        });
        sent.await?
    }
}
