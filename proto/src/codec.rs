//! Small messages as the bodies of calls, and back.

use prost::Message;
use tokio_stream::{Stream, StreamExt};
use tonic::body::Body;
use tonic::codec::{Codec, EncodeBody, SingleMessageCompressionOverride};
use tonic::{Status, Streaming};
use tonic_prost::ProstCodec;

use crate::MAX_REQUEST_BYTES;

/// A message of the contract.
pub trait WireMessage: Message + Default + 'static {}

impl<M: Message + Default + 'static> WireMessage for M {}

/// The body of an answer: one message and the status `ok`.
pub fn encode_answer<M: WireMessage>(message: M) -> Body {
    let encoder = ProstCodec::<M, M>::default().encoder();
    let messages = tokio_stream::once(Ok(message));
    Body::new(EncodeBody::new_server(encoder, messages, None, SingleMessageCompressionOverride::default(), None))
}

/// The body of a call with `messages`, which may go on while the answer comes.
pub fn encode_requests<M: WireMessage>(messages: impl Stream<Item = M> + Send + 'static) -> Body {
    let encoder = ProstCodec::<M, M>::default().encoder();
    Body::new(EncodeBody::new_client(encoder, messages.map(Ok), None, None))
}

/// The messages of a call's body; one above [`MAX_REQUEST_BYTES`] is an error.
pub fn decode_requests<M: WireMessage>(body: Body) -> Streaming<M> {
    Streaming::new_request(ProstCodec::<M, M>::default().decoder(), body, None, Some(MAX_REQUEST_BYTES))
}

/// The message of a call that has one.
///
/// # Errors
/// If there is none, or another after it.
pub async fn decode_request<M: WireMessage>(body: Body) -> Result<M, Status> {
    let mut messages = decode_requests(body);
    let first = messages.message().await?.ok_or_else(|| Status::invalid_argument("expected a message, found none"))?;
    match messages.message().await? {
        None => Ok(first),
        Some(_) => Err(Status::invalid_argument("expected one message, found another after it")),
    }
}
