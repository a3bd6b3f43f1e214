//! The connections that exports travel on: a gRPC channel, or an HTTP client. Both connect with the same connector, so both have the
//! same TLS.
//!
//! The SDK exports from threads of its own, which have no reactor. So the HTTP client sends each request in a task of the process's
//! runtime. The gRPC channel does that by itself.

use std::{error::Error as _, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use opentelemetry_http::{HttpClient, HttpError};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, pem::PemObject as _},
};
use tokio::runtime::Handle;
use tonic::transport::{Channel, Endpoint};

use super::settings::Target;

/// Largest answer to an export over HTTP. An answer is empty, or says in a sentence what was refused.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// A gRPC channel to `target`, which connects at the first export. Needs a Tokio runtime.
pub(super) fn channel(target: &Target) -> Result<Channel, String> {
    let url = target.url();
    let endpoint =
        Endpoint::from_shared(url.clone()).map_err(|error| format!("{url}: {}", with_source(&error)))?;
    let connector = HttpsConnectorBuilder::new().with_tls_config(tls(target)?).https_or_http().enable_http2();
    Ok(endpoint.timeout(target.timeout).connect_with_connector_lazy(connector.wrap_connector(tcp(target))))
}

/// An HTTP client for `target`. Needs a Tokio runtime.
pub(super) fn http_client(target: &Target) -> Result<HttpSender, String> {
    let connector = HttpsConnectorBuilder::new().with_tls_config(tls(target)?).https_or_http().enable_http1();
    let client = Client::builder(TokioExecutor::new()).build(connector.wrap_connector(tcp(target)));
    Ok(HttpSender { client, runtime: Handle::current(), timeout: target.timeout })
}

fn tcp(target: &Target) -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(target.timeout));
    tcp
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

/// Sends exports over HTTP/1.1, from any thread.
#[derive(Clone)]
pub(super) struct HttpSender {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    runtime: Handle,
    timeout: Duration,
}

impl fmt::Debug for HttpSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpSender").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

#[async_trait::async_trait]
impl HttpClient for HttpSender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let HttpSender { client, runtime, timeout } = self.clone();
        let sent = runtime.spawn(async move {
            let answered = async {
                let (parts, body) = client.request(request.map(Full::new)).await?.into_parts();
                let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await?.to_bytes();
                Ok::<_, HttpError>(Response::from_parts(parts, body))
            };
            tokio::time::timeout(timeout, answered).await
        });
        sent.await??
    }
}
