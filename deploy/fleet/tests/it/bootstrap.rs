//! `fleet bootstrap` against ECS of the fake, and IAM and EC2 that remember what they were told.

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use aws_smithy_runtime_api::client::{
    http::{
        HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
        SharedHttpConnector,
    },
    orchestrator::{HttpRequest, HttpResponse},
    runtime_components::RuntimeComponents,
};
use aws_smithy_types::body::SdkBody;
use trellis_fleet::{aws::Door, bootstrap, desired::Desired};

use crate::support::Fake;

/// What was told, as `ACCOUNT SERVICE body`.
#[derive(Clone, Debug, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    /// How often an account was told something.
    fn times(&self, account: &str, what: &str) -> usize {
        let told = self.0.lock().expect("no panic");
        told.iter().filter(|line| line.starts_with(account) && line.contains(what)).count()
    }
}

impl HttpConnector for Told {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let signed = request.headers().get("authorization").expect("a signature").to_owned();
        // Credential=ASIA<account><4 digits>/<day>/<Region>/<service>/aws4_request
        let scope = signed.split_once("Credential=").expect("a scope").1;
        let parts: Vec<&str> = scope.split(['/', ',']).collect();
        let (account, service) = (&parts[0][4..16], parts[3]);
        let body = String::from_utf8_lossy(request.body().bytes().expect("a body")).into_owned();
        let known = |what: &str| self.times(account, what) > 0;
        let (status, answer) = if body.contains("EnableOutbound") && known("EnableOutbound") {
            (
                400,
                "<ErrorResponse><Error><Code>FeatureEnabled</Code><Message>It is on.</Message></Error></ErrorResponse>",
            )
        } else if body.contains("DescribeInstanceEventWindows") && known("AssociateInstanceEventWindow") {
            (
                200,
                "<R><instanceEventWindowId>iew-1</instanceEventWindowId><key>trellis:event-window</key></R>",
            )
        } else if body.contains("CreateInstanceEventWindow") {
            (200, "<R><instanceEventWindowId>iew-1</instanceEventWindowId></R>")
        } else {
            (200, "<R/>")
        };
        self.0.lock().expect("no panic").push(format!("{account} {service} {body}"));
        let response =
            http::Response::builder().status(status).body(SdkBody::from(answer)).expect("a response");
        HttpConnectorFuture::ready(Ok(HttpResponse::try_from(response).expect("a response")))
    }
}

/// ECS of the fake, which does not list settings: this does.
#[derive(Clone, Debug)]
struct Settings {
    fake: Fake,
    put: Told,
}

impl HttpConnector for Settings {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let target = request.headers().get("x-amz-target").unwrap_or_default().to_owned();
        let scope = request.headers().get("authorization").unwrap_or_default().to_owned();
        let account = scope.split_once("Credential=ASIA").map_or("", |(_, rest)| &rest[..12]).to_owned();
        let body = String::from_utf8_lossy(request.body().bytes().expect("a body")).into_owned();
        if target.ends_with(".PutAccountSettingDefault") {
            self.put.0.lock().expect("no panic").push(format!("{account} {body}"));
        }
        if !target.ends_with(".ListAccountSettings") {
            return self.fake.call(request);
        }
        let put = self.put.0.lock().expect("no panic");
        let asked: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        let found = put.iter().filter_map(|line| line.strip_prefix(&format!("{account} "))).filter(|body| {
            let put: serde_json::Value = serde_json::from_str(body).expect("JSON");
            put["name"] == asked["name"]
        });
        let answer = format!("{{\"settings\": [{}]}}", found.collect::<Vec<_>>().join(","));
        let response = http::Response::builder().status(200).body(SdkBody::from(answer)).expect("a response");
        HttpConnectorFuture::ready(Ok(HttpResponse::try_from(response).expect("a response")))
    }
}

impl HttpClient for Settings {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

#[tokio::test(start_paused = true)]
async fn bootstrap_sets_everything_once_and_may_be_repeated() {
    let fake = Fake::new(trellis_aws_fake::Settings::default());
    let told = Told::default();
    let settings = Settings { fake: fake.clone(), put: Told::default() };
    let door = Door {
        connector: SharedHttpConnector::new(told.clone()),
        http: SharedHttpClient::new(settings),
        ..fake.door()
    };
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("example");
    let desired = Desired::read(&example).expect("the example is right");
    let first = bootstrap::run(&door, &desired, Some("vpc-1")).await;
    assert!(first.iter().all(|step| step.failed.is_none() && !step.was_so), "{first:?}");
    // two accounts; the VPC is the network's
    assert_eq!(first.len(), 2 * 4 + 1);
    assert_eq!(told.times("111111111111", "Action=ModifyVpcAttribute"), 1);
    assert_eq!(told.times("222222222222", "Action=ModifyVpcAttribute"), 0);
    let again = bootstrap::run(&door, &desired, Some("vpc-1")).await;
    assert!(again.iter().all(|step| step.failed.is_none()), "{again:?}");
    let set: Vec<_> = again.iter().filter(|step| !step.was_so).map(|step| step.what.as_str()).collect();
    assert_eq!(set, ["network address units of vpc-1 are counted"], "only this is not asked before");
    for account in ["111111111111", "222222222222"] {
        assert_eq!(told.times(account, "Action=CreateInstanceEventWindow"), 1);
        assert_eq!(told.times(account, "Action=AssociateInstanceEventWindow"), 1);
    }
}
