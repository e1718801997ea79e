//! An HTTP proxy in front of the API server: the operator speaks plain HTTP to it, and it speaks as the harness's
//! administrator to the real one. Whatever changes an object is an action.

use std::{
    convert::Infallible,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use http_body_util::{BodyExt as _, BodyStream, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response,
    body::{Bytes, Incoming},
    header,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use kube::{Client, client::Body};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

use super::recorder::{Fault, Life, Recorder, Repeats, Step};
use crate::run_folder::RunFolder;

const SERVER: &str = "api";

/// What is sent back, as it comes.
type Answer = UnsyncBoxBody<Bytes, <Body as hyper::body::Body>::Error>;

/// A running proxy. Dropped, it ends with its connections.
#[derive(Debug)]
pub struct ApiProxy {
    kubeconfig: PathBuf,
    hold_leases: Arc<AtomicBool>,
    held: watch::Sender<Option<String>>,
    hung: watch::Sender<Option<String>>,
    requests: Arc<AtomicU64>,
    _accepting: JoinSet<()>,
}

impl ApiProxy {
    /// Forwards with what `client` is allowed; `name` tells its kubeconfig from others.
    pub async fn start(name: &str, client: Client, recorder: Arc<Recorder>) -> Result<Self> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("failed to start the API proxy")?;
        let port = listener.local_addr()?.port();
        let kubeconfig =
            RunFolder::current()?.folder(&format!("api-proxy-{name}"), 0o700)?.join("kubeconfig");
        fs::write(&kubeconfig, kubeconfig_of(port))?;
        let hold_leases = Arc::new(AtomicBool::new(false));
        let (held, hung) = (watch::Sender::new(None), watch::Sender::new(None));
        let requests = Arc::new(AtomicU64::new(0));
        let route = Route {
            client,
            recorder,
            hold_leases: Arc::clone(&hold_leases),
            held: held.subscribe(),
            hung: hung.subscribe(),
            requests: Arc::clone(&requests),
        };
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, route));
        Ok(Self { kubeconfig, hold_leases, held, hung, requests, _accepting: accepting })
    }

    /// From now on nothing about a Lease is answered: the operator behind this proxy does not learn that it lost the lead.
    pub fn hold_leases(&self) {
        self.hold_leases.store(true, Ordering::Relaxed);
    }

    /// How many requests there were, those that only read included.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// From now on, changes of what has this in its path wait here, as in a network that is slow; none lets them go on.
    pub fn hold(&self, path: Option<&str>) {
        self.held.send_replace(path.map(str::to_owned));
    }

    /// From now on, watches of what has this in its path stay open and bring nothing; none lets them go on.
    pub fn hang_watches(&self, path: Option<&str>) {
        self.hung.send_replace(path.map(str::to_owned));
    }

    /// For the operator.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }
}

/// What every connection needs.
#[derive(Clone)]
struct Route {
    client: Client,
    recorder: Arc<Recorder>,
    hold_leases: Arc<AtomicBool>,
    held: watch::Receiver<Option<String>>,
    hung: watch::Receiver<Option<String>>,
    requests: Arc<AtomicU64>,
}

fn kubeconfig_of(port: u16) -> String {
    format!(
        "apiVersion: v1
kind: Config
clusters: [{{name: proxy, cluster: {{server: \"http://127.0.0.1:{port}\"}}}}]
users: [{{name: nobody, user: {{}}}}]
contexts: [{{name: proxy, context: {{cluster: proxy, user: nobody}}}}]
current-context: proxy
"
    )
}

async fn accept(listener: TcpListener, route: Route) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => {
                connections.spawn(serve(stream, route.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, route: Route) {
    let mut life = route.recorder.life();
    // The answer is on its way when the connection ends, which it then does at once.
    let doom_at_end = AtomicBool::new(false);
    let answer = |request| answer(request, &route, life.clone(), &doom_at_end);
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer));
    // A connection that breaks is for its two ends to notice.
    drop(connection.await);
    if doom_at_end.load(Ordering::Relaxed) && !life.is_over() {
        route.recorder.doom();
        life.ended().await;
    }
}

/// The connection is to end without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the connection was cut")]
struct Cut;

async fn answer(
    request: Request<Incoming>,
    Route { client, recorder, hold_leases, held, hung, requests }: &Route,
    life: Life,
    doom_at_end: &AtomicBool,
) -> Result<Response<Answer>, Cut> {
    requests.fetch_add(1, Ordering::Relaxed);
    let silent = hold_leases.load(Ordering::Relaxed) && request.uri().path().contains("/leases");
    if silent || life.is_over() || doom_at_end.load(Ordering::Relaxed) {
        return unanswered().await;
    }
    let path = request.uri().path().to_owned();
    if request.uri().query().is_some_and(|query| query.contains("watch=true")) {
        return Ok(forward(request, client).await?.map(|news| news_of(news, path, hung.clone())));
    }
    let Some(step) = step(request.method(), &path) else {
        return forward(request, client).await;
    };
    let ticket = recorder.ask(SERVER, &step);
    if ticket.fault == Some(Fault::Before) {
        recorder.doom();
        return unanswered().await;
    }
    held.clone().wait_for(|held| passes(held.as_deref(), &path)).await.map_err(|_| Cut)?;
    let mut response = forward(request, client).await?;
    if !response.status().is_success() {
        recorder.refused(&ticket);
        return Ok(response);
    }
    recorder.committed(&ticket);
    match ticket.fault {
        None | Some(Fault::Before) => Ok(response),
        Some(Fault::After) => {
            response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
            doom_at_end.store(true, Ordering::Relaxed);
            Ok(response)
        }
        Some(Fault::Lost) => {
            recorder.doom();
            unanswered().await
        }
        Some(Fault::Cut) => Err(Cut),
    }
}

fn passes(held: Option<&str>, path: &str) -> bool {
    held.is_none_or(|held| !path.contains(held))
}

/// What a watch brings, while it does not hang.
fn news_of(news: Answer, path: String, hung: watch::Receiver<Option<String>>) -> Answer {
    let path: Arc<str> = path.into();
    let frames = BodyStream::new(news).then(move |frame| {
        let (mut hung, path) = (hung.clone(), Arc::clone(&path));
        async move {
            // With the proxy gone, the connection is as well.
            drop(hung.wait_for(|hung| passes(hung.as_deref(), &path)).await);
            frame
        }
    });
    StreamBody::new(frames).boxed_unsync()
}

/// Ends with the connection, and that with the operator.
async fn unanswered() -> Result<Response<Answer>, Cut> {
    match std::future::pending::<Infallible>().await {}
}

async fn forward(request: Request<Incoming>, client: &Client) -> Result<Response<Answer>, Cut> {
    let (mut head, body) = request.into_parts();
    head.headers.remove(header::HOST);
    head.headers.remove(header::CONNECTION);
    let body = body.collect().await.map_err(|_| Cut)?.to_bytes();
    let answer = client.send(Request::from_parts(head, Body::from(body))).await.map_err(|_| Cut)?;
    Ok(answer.map(http_body_util::BodyExt::boxed_unsync))
}

/// What a request changes, if anything.
fn step(method: &Method, path: &str) -> Option<Step> {
    if ![Method::POST, Method::PUT, Method::PATCH, Method::DELETE].contains(method) {
        return None;
    }
    // After `namespaces/<its name>`: what is changed, the same in every run.
    let mut rest = path.split('/').skip_while(|part| *part != "namespaces").skip(2);
    let resource = rest.next().unwrap_or("cluster");
    let (name, part) = (rest.next().unwrap_or_default(), rest.next());
    let (kind, detail, repeats) = match (resource, part) {
        ("leases", _) => ("lease", method.to_string(), Repeats::Never),
        ("events", _) => ("event", method.to_string(), Repeats::EachHandOver),
        (_, Some(part)) => (part, format!("{method} {resource}/{name}"), Repeats::EachHandOver),
        (_, None) => ("object", format!("{method} {resource}/{name}"), Repeats::EachDoubling),
    };
    Some(Step { kind: kind.to_owned(), detail, repeats })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_an_object_is_an_action() {
        let check = |method: &Method, path: &str, expected: Option<&str>| {
            let found = step(method, path).map(|step| format!("{} {}", step.kind, step.detail));
            assert_eq!(found.as_deref(), expected, "{method} {path}");
        };
        let set = "/apis/longshore.dev/v1alpha1/namespaces/shop-1/ordershardsets/orders";
        check(&Method::GET, set, None);
        check(&Method::PATCH, &format!("{set}/status"), Some("status PATCH ordershardsets/orders"));
        check(&Method::PATCH, set, Some("object PATCH ordershardsets/orders"));
        check(&Method::POST, "/apis/events.k8s.io/v1/namespaces/shop-1/events", Some("event POST"));
        let lease = "/apis/coordination.k8s.io/v1/namespaces/shop-1/leases/longshore-operator";
        check(&Method::PATCH, lease, Some("lease PATCH"));
    }
}
