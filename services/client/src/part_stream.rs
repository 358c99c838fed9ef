//! An open batch stream: requests out, batches in, without a copy of the payload but the one into its batch.

use std::future::poll_fn;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, TE};
use http_body_util::BodyExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::metadata::GRPC_CONTENT_TYPE;
use tonic::service::interceptor::{InterceptedService, ResponseBody};
use tonic::transport::Channel;
use tonic::{Code, Status};
use tower_service::Service;
use vela_proto::v1::StreamBatchesRequest;
use vela_proto::{PartReader, Received, encode_requests};

use crate::ClientError;
use crate::options::{ClientOptions, VerifyImages};
use crate::server::{Bearer, Server};

const STREAM_BATCHES: &str = "/vela.loader.v1.Loader/StreamBatches";

/// The answer of a `StreamBatches` call.
pub(crate) struct PartStream {
    server: Server,
    body: ResponseBody<Body>,
    /// Received and not yet read.
    data: Bytes,
    reader: PartReader,
}

impl PartStream {
    /// Calls `server`; `requests` goes on for as long as the stream does.
    pub(crate) async fn open(
        server: &Server,
        requests: mpsc::Receiver<StreamBatchesRequest>,
        options: &ClientOptions,
    ) -> Result<Self, ClientError> {
        let mut channel = server.channel().await?;
        let answer = call(&mut channel, requests).await.map_err(|status| server.service_error(status))?;
        let verifies_images = options.verify_images == VerifyImages::Always || !server.is_guarded();
        let reader = PartReader::new(options.max_batch_bytes, verifies_images);
        Ok(Self { server: server.clone(), body: answer.into_body(), data: Bytes::new(), reader })
    }

    /// What came next; may be dropped while it waits without losing anything.
    pub(crate) async fn next(&mut self) -> Result<Received, ClientError> {
        loop {
            let read = self.reader.read(&mut self.data).map_err(|fault| self.server.wire_error(fault))?;
            if let Some(received) = read {
                return Ok(received);
            }
            let frame = self.body.frame().await.ok_or_else(|| self.server.ended())?;
            let frame = frame.map_err(|status| self.server.service_error(status))?;
            match frame.into_data() {
                Ok(data) => self.data = data,
                Err(frame) => return Err(self.last_word(frame.trailers_ref())),
            }
        }
    }

    fn last_word(&self, trailers: Option<&http::HeaderMap>) -> ClientError {
        match trailers.and_then(Status::from_header_map).filter(|status| status.code() != Code::Ok) {
            Some(status) => self.server.service_error(status),
            None => self.server.ended(),
        }
    }
}

async fn call(
    channel: &mut InterceptedService<Channel, Bearer>,
    requests: mpsc::Receiver<StreamBatchesRequest>,
) -> Result<http::Response<ResponseBody<Body>>, Status> {
    let mut request = http::Request::new(encode_requests(ReceiverStream::new(requests)));
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = http::Uri::from_static(STREAM_BATCHES);
    *request.version_mut() = http::Version::HTTP_2;
    request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    request.headers_mut().insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
    let lost = |error: tonic::transport::Error| Status::from_error(error.into());
    poll_fn(|context: &mut Context<'_>| -> Poll<_> { channel.poll_ready(context) }).await.map_err(lost)?;
    let answer = channel.call(request).await.map_err(lost)?;
    match Status::from_header_map(answer.headers()) {
        Some(status) if status.code() != Code::Ok => Err(status),
        _ if answer.status() != http::StatusCode::OK => Err(not_grpc(answer.status())),
        _ => Ok(answer),
    }
}

/// An answer of something between us and a loader. Codes: gRPC's "HTTP to gRPC Status Code Mapping".
fn not_grpc(status: http::StatusCode) -> Status {
    let code = match status.as_u16() {
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        429 | 502..=504 => Code::Unavailable,
        _ => Code::Unknown,
    };
    Status::new(code, format!("expected the answer of a loader, found HTTP {status}"))
}
