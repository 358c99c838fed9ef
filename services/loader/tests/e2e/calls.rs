//! Single calls without Vela's client, which would not make them.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};
use vela_proto::v1::{self, BatchPart, loader_client::LoaderClient, stream_batches_request::Request};
use vela_proto::{encode_cursor, encode_position, encode_spec};
use vela_types::{BatchSpec, Cursor, Position};

const WHOLE: v1::Partition = v1::Partition { rank: 0, world: 1 };

/// A connection of its own; with it dropped the call ends.
async fn client(url: &str) -> LoaderClient<Channel> {
    let endpoint = Endpoint::from_shared(url.to_owned()).expect("a url");
    LoaderClient::new(endpoint.connect().await.expect("a connection"))
}

/// The first batch by position.
pub(crate) async fn get_batch(url: &str, spec: &BatchSpec) -> Result<Streaming<BatchPart>, Status> {
    get_batch_at(url, spec, Position { epoch: 0, step: 0, micro: 0 }).await
}

/// The batch at `position`.
pub(crate) async fn get_batch_at(
    url: &str,
    spec: &BatchSpec,
    position: Position,
) -> Result<Streaming<BatchPart>, Status> {
    let request = v1::GetBatchRequest {
        dataset: String::new(),
        spec: Some(encode_spec(spec)),
        partition: Some(WHOLE),
        position: Some(encode_position(position)),
        checksum: None,
    };
    Ok(client(url).await.get_batch(request).await?.into_inner())
}

/// Where record `index` came from.
pub(crate) fn lookup(url: &str, index: u64) -> Result<v1::LookupResponse, Status> {
    let runtime = tokio::runtime::Runtime::new().expect("an event loop");
    let request = v1::LookupRequest { dataset: String::new(), index };
    runtime.block_on(async { Ok(client(url).await.lookup(request).await?.into_inner()) })
}

/// An open stream. With `requests` dropped the consumer says no more, and the loader ends it.
#[derive(Debug)]
pub(crate) struct OpenStream {
    pub(crate) requests: mpsc::Sender<v1::StreamBatchesRequest>,
    pub(crate) parts: Streaming<BatchPart>,
}

/// A stream from `cursor` on.
pub(crate) async fn open_stream(
    url: &str,
    spec: &BatchSpec,
    cursor: &Cursor,
    credit_bytes: u64,
) -> Result<OpenStream, Status> {
    open_stream_at(url, spec, cursor, 0, credit_bytes).await
}

/// A stream from micro-batch `micro` of the step of `cursor` on.
pub(crate) async fn open_stream_at(
    url: &str,
    spec: &BatchSpec,
    cursor: &Cursor,
    micro: u32,
    credit_bytes: u64,
) -> Result<OpenStream, Status> {
    let open = v1::OpenStream {
        dataset: String::new(),
        spec: Some(encode_spec(spec)),
        partition: Some(WHOLE),
        cursor: Some(encode_cursor(cursor)),
        micro,
        credit_bytes,
        checksum: None,
    };
    let (requests, outbound) = mpsc::channel(4);
    requests.send(v1::StreamBatchesRequest { request: Some(Request::Open(open)) }).await.expect("room for one");
    let parts = client(url).await.stream_batches(ReceiverStream::new(outbound)).await?.into_inner();
    Ok(OpenStream { requests, parts })
}
