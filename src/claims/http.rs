//! The HTTP client of an S3-compatible store: the one hyper that this process has anyway, with the machine's own roots.

use std::error::Error as _;
use std::io;

use http_body_util::BodyExt as _;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector as Tcp;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody,
    HttpResponse, HttpResponseBody, HttpService,
};
use std::time::Duration;

/// How long a connection may take, and how long an idle one is kept.
const CONNECT: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(30);

/// Makes the client.
#[derive(Debug)]
pub(super) struct Connector {
    secure: bool,
}

impl Connector {
    /// `secure` is whether the store is reached by TLS.
    pub(super) fn new(secure: bool) -> Self {
        Self { secure }
    }
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        let connector = connector(self.secure).map_err(|source| object_store::Error::Generic {
            store: "S3",
            source: source.into(),
        })?;
        let mut builder = Client::builder(TokioExecutor::new());
        builder
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE);
        Ok(HttpClient::new(Service(builder.build(connector))))
    }
}

fn connector(secure: bool) -> io::Result<HttpsConnector<Tcp>> {
    let provider = rustls::crypto::ring::default_provider();
    let mut tcp = Tcp::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    // In the clear too: the platform gives its keys so, and whether the bucket is reached so is for the store to judge.
    let native = HttpsConnectorBuilder::new().with_provider_and_native_roots(provider.clone());
    let builder = match native {
        Ok(builder) => builder,
        Err(error) if secure => return Err(error),
        Err(_) => {
            let config = rustls::ClientConfig::builder_with_provider(provider.into())
                .with_safe_default_protocol_versions()
                .map_err(io::Error::other)?
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
            HttpsConnectorBuilder::new().with_tls_config(config)
        }
    };
    let builder = builder.https_or_http();
    Ok(builder.enable_http1().wrap_connector(tcp))
}

#[derive(Debug)]
struct Service(Client<HttpsConnector<Tcp>, HttpRequestBody>);

#[async_trait::async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let answer = self.0.request(request).await.map_err(failed)?;
        let (head, body) = answer.into_parts();
        let broken = |error| HttpError::new(HttpErrorKind::Interrupted, error);
        let body = HttpResponseBody::new(body.map_err(broken));
        Ok(HttpResponse::from_parts(head, body))
    }
}

/// What the store's own retries may make of a failure.
fn failed(error: ClientError) -> HttpError {
    let kind = match error
        .source()
        .and_then(|cause| cause.downcast_ref::<hyper::Error>())
    {
        _ if error.is_connect() => HttpErrorKind::Connect,
        Some(cause) if cause.is_timeout() => HttpErrorKind::Timeout,
        Some(cause) if cause.is_closed() || cause.is_incomplete_message() => HttpErrorKind::Request,
        _ => HttpErrorKind::Interrupted,
    };
    HttpError::new(kind, error)
}
