//! Response bodies: batches whose tensors are sent from where they lie, and answers that end with the server.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::Frame;
use tokio_stream::Stream;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower_service::Service;
use vela_proto::EncodedPart;
use vela_runtime::Shutdown;

/// The parts of batches and, in the end, a status. Every piece goes to the connection as it is: what `tonic` would do, a copy of each payload
/// into its message, took half of the server's time.
pub(crate) struct BatchBody<S> {
    parts: S,
    /// What is left of the part under way.
    pieces: VecDeque<Bytes>,
    ended: bool,
}

impl<S: Stream<Item = Result<EncodedPart, Status>> + Send + Unpin + 'static> BatchBody<S> {
    /// A body of `parts`; the first error among them is its last word.
    pub(crate) fn of(parts: S) -> Body {
        Body::new(Self { parts, pieces: VecDeque::new(), ended: false })
    }

    fn end(&mut self, status: &Status) -> Result<Frame<Bytes>, Status> {
        self.ended = true;
        trailers(status)
    }
}

impl<S: Stream<Item = Result<EncodedPart, Status>> + Send + Unpin + 'static> http_body::Body for BatchBody<S> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match ready!(Pin::new(&mut self.parts).poll_next(context)) {
                Some(Ok(part)) => self.pieces = part.pieces,
                Some(Err(status)) => return Poll::Ready(Some(self.end(&status))),
                None => return Poll::Ready(Some(self.end(&Status::ok("")))),
            }
        }
    }
}

/// A service whose answers end when the server stops, whatever they were waiting for.
#[derive(Clone)]
pub(crate) struct Ending<S> {
    inner: S,
    stop: Shutdown,
}

impl<S> Ending<S> {
    pub(crate) fn new(inner: S, stop: Shutdown) -> Self {
        Self { inner, stop }
    }
}

impl<S: NamedService> NamedService for Ending<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Ending<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Future: Send + 'static>,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (answer, stop) = (self.inner.call(request), self.stop.clone());
        Box::pin(async move {
            let stopped = Box::pin(async move { stop.wait().await });
            Ok(answer.await?.map(|body| Body::new(EndingBody { body, stop: Stop::Waiting(stopped) })))
        })
    }
}

/// A body that ends with a status once the server stops and it has nothing ready.
struct EndingBody {
    body: Body,
    stop: Stop,
}

enum Stop {
    Waiting(Pin<Box<dyn Future<Output = ()> + Send>>),
    Come,
    /// The body has ended for it.
    Told,
}

impl Stop {
    fn poll(&mut self, context: &mut Context<'_>) {
        if let Self::Waiting(stopped) = self
            && stopped.as_mut().poll(context).is_ready()
        {
            *self = Self::Come;
        }
    }
}

impl http_body::Body for EndingBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.stop.poll(context);
        if matches!(self.stop, Stop::Told) {
            return Poll::Ready(None);
        }
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Pending if matches!(self.stop, Stop::Come) => {
                self.stop = Stop::Told;
                Poll::Ready(Some(trailers(&Status::unavailable("the loader is stopping"))))
            }
            polled => polled,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

fn trailers(status: &Status) -> Result<Frame<Bytes>, Status> {
    let mut trailers = http::HeaderMap::new();
    status.add_header(&mut trailers)?;
    Ok(Frame::trailers(trailers))
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn a_stopped_body_gives_what_is_ready_and_then_the_word() {
        let stop = Shutdown::new();
        let (sender, parts) = tokio::sync::mpsc::channel(4);
        let part = || EncodedPart { pieces: [Bytes::from_static(b"one")].into(), payload_bytes: 3 };
        for _ in 0..2 {
            sender.send(Ok(part())).await.expect("room");
        }
        let stopped = stop.clone();
        let stopped = Box::pin(async move { stopped.wait().await });
        let body = BatchBody::of(tokio_stream::wrappers::ReceiverStream::new(parts));
        let mut body = EndingBody { body, stop: Stop::Waiting(stopped) };
        stop.request();
        for _ in 0..2 {
            assert!(body.frame().await.expect("a frame").expect("no fault").is_data(), "it was ready");
        }
        assert!(body.frame().await.expect("a frame").expect("no fault").is_trailers());
        assert!(body.frame().await.is_none() && body.frame().await.is_none());
    }

    #[tokio::test]
    async fn pieces_come_as_they_are_and_the_status_last() {
        let payload = Bytes::from(vec![7; 4096]);
        let part =
            EncodedPart { pieces: [Bytes::from_static(b"opening"), payload.clone()].into(), payload_bytes: 4096 };
        let parts =
            [Ok(part), Err(Status::unavailable("going")), Ok(EncodedPart { pieces: [].into(), payload_bytes: 0 })];
        let mut body = BatchBody::of(tokio_stream::iter(parts));
        let mut next = async || body.frame().await.expect("a frame").expect("no fault");
        assert_eq!(next().await.into_data().expect("data"), "opening");
        assert_eq!(next().await.into_data().expect("data").as_ptr(), payload.as_ptr());
        let trailers = next().await.into_trailers().expect("trailers");
        assert_eq!(
            (&trailers["grpc-status"], &trailers["grpc-message"]),
            (&"14".parse().expect("text"), &"going".parse().expect("text"))
        );
        assert!(body.frame().await.is_none());
    }
}
