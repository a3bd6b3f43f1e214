//! A real server of AWS's APIs in the memory of one process: `moto_server`, on a free port of loopback.

use std::{path::Path, process::Stdio};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use crate::skip::skipped;

pub(crate) const REGION: &str = "eu-west-1";

pub(crate) struct Moto {
    address: String,
    client: reqwest::Client,
    _server: Child,
}

impl Moto {
    /// `None`, and a line that says so, where it is not installed. `make` does not install it (`pip install 'moto[server]'`), because it
    /// has 300 MB.
    pub(crate) async fn start() -> Option<Self> {
        let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/bin/moto_server");
        let program = if beside.exists() { beside.as_path() } else { Path::new("moto_server") };
        let server = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", "0"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let Ok(mut server) = server else {
            skipped("there is no moto_server");
            return None;
        };
        let mut lines = BufReader::new(server.stderr.take().unwrap()).lines();
        let address = loop {
            let line = lines.next_line().await.unwrap().expect("it says where it listens");
            if let Some((_, address)) = line.split_once("Running on ") {
                break address.trim().to_owned();
            }
        };
        // the server writes a line for each request, which must be read
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Some(Self {
            address,
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
            _server: server,
        })
    }

    /// Where it listens: `http://127.0.0.1:PORT`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    async fn post(&self, service: &str, headers: &[(&str, &str)], body: String) -> String {
        // it asks for no signature before `check_rights`, only for the name of the service
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential=set-up/20260101/{REGION}/{service}/aws4_request, SignedHeaders=host, Signature=0"
        );
        let mut request = self.client.post(&self.address).header("authorization", authorization).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert!(status.is_success(), "{service}: {status}: {text}");
        text
    }

    /// A call of Cloud Map.
    pub(crate) async fn cloud_map(&self, call: &str, body: Value) -> Value {
        let target = format!("Route53AutoNaming_v20170314.{call}");
        let headers = [("x-amz-target", &*target), ("content-type", "application/x-amz-json-1.1")];
        let answer = self.post("servicediscovery", &headers, body.to_string()).await;
        serde_json::from_str(&answer).unwrap_or_default()
    }

    /// A namespace with one service. Returns the service's id.
    pub(crate) async fn service(&self, namespace: &str, service: &str) -> String {
        self.cloud_map("CreateHttpNamespace", json!({"Name": namespace, "CreatorRequestId": namespace}))
            .await;
        let all = self.cloud_map("ListNamespaces", json!({})).await;
        let all = all["Namespaces"].as_array().unwrap().clone();
        let id = &all.iter().find(|one| one["Name"] == namespace).unwrap()["Id"];
        let made = self.cloud_map("CreateService", json!({"Name": service, "NamespaceId": id})).await;
        made["Service"]["Id"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn register(&self, service: &str, instance: &str, attributes: Value) {
        let body = json!({
            "ServiceId": service, "InstanceId": instance, "CreatorRequestId": instance, "Attributes": attributes
        });
        self.cloud_map("RegisterInstance", body).await;
    }

    /// A call of an API that takes forms. Returns the text of the elements with these names.
    pub(crate) async fn form<const N: usize>(
        &self,
        service: &str,
        form: &[(&str, &str)],
        elements: [&str; N],
    ) -> [String; N] {
        let mut body = url::form_urlencoded::Serializer::new(String::new());
        let body = body.extend_pairs(form).finish();
        let headers = [("content-type", "application/x-www-form-urlencoded")];
        let answer = self.post(service, &headers, body).await;
        elements.map(|name| {
            let (_, from) = answer.split_once(&format!("<{name}>")).unwrap();
            from.split_once(&format!("</{name}>")).unwrap().0.to_owned()
        })
    }

    /// From here on it compares each signature with the one that botocore computes, and asks the policies of the caller.
    pub(crate) async fn check_rights(&self) {
        let answer =
            self.client.post(format!("{}/moto-api/reset-auth", self.address)).body("0").send().await.unwrap();
        assert!(answer.status().is_success());
    }
}
