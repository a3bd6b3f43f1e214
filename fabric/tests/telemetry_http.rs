//! Telemetry by HTTP and by TLS to a real OTLP receiver. One test in its own process, because telemetry is installed once per process.
//!
//! `tls/` has a certificate of `localhost`, its key, and the authority that signed it, for this test only.
#![allow(missing_docs, clippy::unwrap_used)] // a test may panic

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use trellis_fabric::{
    telemetry::{self, Dropped, Settings, Telemetry},
    testing::OtlpReceiver,
};

const WAIT_MAX: Duration = Duration::from_secs(30);

fn tls(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(file)
}

/// Terminates TLS in front of `behind`, and returns its port.
async fn terminate(behind: SocketAddr) -> u16 {
    let certificate = vec![CertificateDer::from_pem_file(tls("certificate.pem")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(tls("key.pem")).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certificate, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut outside = acceptor.accept(stream).await.unwrap();
                let mut inside = TcpStream::connect(behind).await.unwrap();
                // ends with an error if a peer closes without a word, which is no concern of this test
                let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_signal_arrives_by_its_own_protocol_compressed_and_encrypted_as_the_environment_says() {
    let receiver = OtlpReceiver::start().unwrap();
    let plain = receiver.endpoint();
    let port = terminate(plain.strip_prefix("http://").unwrap().parse().unwrap()).await;
    let settings = Settings::read(|name| {
        Some(match name {
            "OTEL_EXPORTER_OTLP_ENDPOINT" => format!("https://localhost:{port}"),
            "OTEL_TRACES_SAMPLER" => "parentbased_always_on".to_owned(),
            "OTEL_EXPORTER_OTLP_PROTOCOL" => "http/protobuf".to_owned(),
            "OTEL_EXPORTER_OTLP_COMPRESSION" => "gzip".to_owned(),
            "OTEL_EXPORTER_OTLP_CERTIFICATE" => tls("authority.pem").display().to_string(),
            "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL" => "grpc".to_owned(),
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT" => format!("{plain}/v1/metrics"),
            "OTEL_EXPORTER_OTLP_METRICS_COMPRESSION" => "none".to_owned(),
            _ => return None,
        })
    });
    assert_eq!(settings.complaints, [""; 0]);
    let telemetry = Telemetry::init_with("trellis-probe", "probe-0", &settings);
    let trace_id = tracing::info_span!(target: "trellis", "run").in_scope(|| {
        tracing::info!(target: "trellis", "in the run");
        telemetry::trace_id()
    });
    telemetry::meter("probe").f64_histogram("trellis.probe.duration").with_unit("s").build().record(0.5, &[]);
    telemetry.shutdown().await;

    let arrived = receiver.until(WAIT_MAX, |received| {
        let all = !received.spans.is_empty()
            && received.metric("trellis.probe.duration").is_some()
            && received.logs.iter().any(|log| log.body == "in the run");
        all.then(|| received.clone())
    });
    let arrived = arrived.await.unwrap_or_else(|received| panic!("not all arrived: {received:#?}"));
    assert_eq!(arrived.spans[0].trace_id, trace_id);
    assert_eq!(arrived.metric("trellis.probe.duration").unwrap().count(&[]), 1);
    let log = arrived.logs.iter().find(|log| log.body == "in the run").unwrap();
    assert_eq!(log.trace_id, trace_id);
    let logs = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";
    for (path, encoding) in [("/v1/traces", "gzip"), ("/v1/metrics", ""), (logs, "gzip")] {
        let request = (path.to_owned(), encoding.to_owned());
        assert!(arrived.requests.contains(&request), "{request:?}: {:?}", arrived.requests);
    }
    assert_eq!(telemetry::dropped(), Dropped::default());
}
