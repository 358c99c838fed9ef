//! The calls of the service. The dispatch is written by hand for the sake of the answers (see [`crate::body`]).

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio_stream::StreamExt;
use tonic::Status;
use tonic::body::Body;
use tonic::metadata::GRPC_CONTENT_TYPE;
use tonic::server::NamedService;
use tower_service::Service;
use vela_dataset::Provenance;
use vela_proto::v1;
use vela_proto::{
    Sealed, ServiceError, WireMessage, decode_position, decode_request, decode_requests, encode_answer, encode_batch,
    encode_fingerprint, encode_info,
};

use crate::body::BatchBody;
use crate::session::{Session, unless_stopping};
use crate::shared::{Request, Shared, acquire, off_thread};
use crate::tenants::Tenant;

/// The service over the data sets of a catalog.
#[derive(Clone)]
pub(crate) struct LoaderService {
    shared: Arc<Shared>,
}

impl LoaderService {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The call that a request names.
    async fn answer(&self, request: http::Request<Body>) -> Result<Body, Status> {
        let (parts, body) = request.into_parts();
        // The interceptor put it there; without one nobody may read.
        let tenant = parts.extensions.get::<Arc<Tenant>>();
        let tenant = tenant.ok_or_else(|| Status::unauthenticated("nobody asked who calls"))?;
        let call = parts.uri.path().strip_prefix('/').and_then(|path| path.strip_prefix(Self::NAME));
        match call {
            Some("/DescribeDataset") => {
                Ok(encode_answer(counted(self.describe(tenant, self.read(body).await?).await)?))
            }
            Some("/Lookup") => Ok(encode_answer(counted(self.find_record(tenant, self.read(body).await?).await)?)),
            Some("/GetBatch") => Ok(counted(self.send_batch(tenant, self.read(body).await?).await)?),
            Some("/StreamBatches") => {
                let session = Session::start(Arc::clone(&self.shared), Arc::clone(tenant), decode_requests(body));
                Ok(BatchBody::of(counted(session.await)?))
            }
            _ => Err(Status::unimplemented(format!("no call `{}`", parts.uri.path()))),
        }
    }

    /// The message of a call that has one; a caller that sends half of it holds up no stop.
    async fn read<M: WireMessage>(&self, body: Body) -> Result<M, Status> {
        tokio::select! {
            message = decode_request(body) => message,
            () = self.shared.stop.wait() => Err(Status::unavailable("the loader is stopping")),
        }
    }

    async fn describe(
        &self,
        tenant: &Tenant,
        request: v1::DescribeDatasetRequest,
    ) -> Result<v1::DescribeDatasetResponse, ServiceError> {
        let v1::DescribeDatasetRequest { dataset, spec, partition, .. } = request.check()?;
        let info = Some(encode_info(self.shared.catalog.find(tenant, &dataset)?.dataset.info()));
        if spec.is_none() {
            return Ok(v1::DescribeDatasetResponse { info, ..Default::default() }.sealed());
        }
        let partition = partition.or(Some(v1::Partition { rank: 0, world: 1 }));
        let request = Request::decode(&self.shared, tenant, &dataset, spec, partition)?;
        let order = async {
            // The planner first: who waits for it keeps no other from describing what is planned.
            let planning = request.begin_plan(tenant).await;
            let describing = tenant.begin_description().await;
            request.plan_holding((planning, describing)).await
        };
        let share = unless_stopping(&self.shared.stop, order).await?.share;
        let spec_fingerprint = encode_fingerprint(&share.spec_fingerprint());
        let steps_per_epoch = share.plan().steps_per_epoch();
        Ok(v1::DescribeDatasetResponse { info, spec_fingerprint, steps_per_epoch, checksum: None }.sealed())
    }

    async fn find_record(
        &self,
        tenant: &Tenant,
        request: v1::LookupRequest,
    ) -> Result<v1::LookupResponse, ServiceError> {
        let served = Arc::clone(self.shared.catalog.find(tenant, &request.dataset)?);
        let looking_up = tenant.begin_lookup().await;
        // It reads the record, and so fetches its shard.
        let fetching = acquire(&served.fetchers).await;
        let provenance = off_thread(move || {
            let _held = (looking_up, fetching);
            served.dataset.provenance(request.index)
        });
        let Provenance { shards, file, row, id, source } = provenance.await?;
        Ok(v1::LookupResponse { shards, file, row, id, source })
    }

    async fn send_batch(&self, tenant: &Arc<Tenant>, request: v1::GetBatchRequest) -> Result<Body, ServiceError> {
        let admission = Arc::new(self.shared.admit(tenant)?);
        let v1::GetBatchRequest { dataset, spec, partition, position, .. } = request.check()?;
        let wanted = Request::decode(&self.shared, tenant, &dataset, spec, partition)?;
        let position = decode_position(position)?;
        let order = unless_stopping(&self.shared.stop, wanted.plan(tenant)).await?;
        let batch = Arc::clone(&self.shared).build(order, position).await?;
        let tenant = Arc::clone(tenant);
        let parts = tokio_stream::iter(encode_batch(batch)).then(move |part| {
            let (admission, tenant) = (Arc::clone(&admission), Arc::clone(&tenant));
            async move {
                let _held = admission;
                tenant.spend(part.payload_bytes).await;
                Ok(part)
            }
        });
        Ok(BatchBody::of(Box::pin(parts)))
    }
}

impl NamedService for LoaderService {
    const NAME: &'static str = "vela.loader.v1.Loader";
}

impl Service<http::Request<Body>> for LoaderService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            Ok(match service.answer(request).await {
                Ok(body) => grpc_response(body),
                Err(status) => status.into_http(),
            })
        })
    }
}

fn grpc_response(body: Body) -> http::Response<Body> {
    let mut response = http::Response::new(body);
    response.headers_mut().insert(http::header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
    response
}

/// Counts a refusal by its kind.
pub(crate) fn counted<T>(answer: Result<T, ServiceError>) -> Result<T, ServiceError> {
    answer
        .inspect_err(|error| metrics::counter!("vela_loader_refusals_total", "kind" => error.kind.name()).increment(1))
}

#[cfg(test)]
#[path = "../tests/e2e/shards.rs"]
#[allow(dead_code, reason = "one set is enough here")]
mod shards;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prost::Message;
    use vela_dataset::DamagePolicy;
    use vela_proto::{encode_cursor, encode_spec};
    use vela_types::{BatchSpec, PackingSpec};

    use super::*;
    use crate::catalog::Catalog;
    use crate::tenants::Tenants;

    /// Windows, each another spec, whose rows are all to be planned.
    const NUM_PLANS: u32 = 12;

    fn packed(window: u32) -> BatchSpec {
        BatchSpec { packing: Some(PackingSpec { max_images: 4, window }), ..shards::spec() }
    }

    /// A service over a set in the folder, for a tenant.
    fn service(max_consumers: u32) -> (tempfile::TempDir, LoaderService, Arc<Tenant>) {
        let folder = tempfile::tempdir().expect("a folder");
        shards::write(folder.path(), &shards::Plan::small());
        let set = folder.path().display().to_string().parse().expect("a data set");
        let catalog = Catalog::open(vec![set], 64 << 20, DamagePolicy::Fail).expect("a catalog");
        let service = LoaderService::new(Arc::new(Shared::new(catalog, max_consumers, u64::MAX)));
        let tenant = Tenants::everybody().identify(&tonic::Request::new(())).expect("everybody");
        (folder, service, tenant)
    }

    #[tokio::test]
    async fn who_waits_for_a_plan_holds_up_no_stop() {
        let (_folder, service, tenant) = service(2);
        let _planning = tenant.begin_plan().await;
        let (spec, partition) = (Some(encode_spec(&packed(3))), Some(v1::Partition { rank: 0, world: 1 }));
        let position = Some(v1::Position { epoch: 0, step: 0, micro: 0 });
        let cursor = Some(encode_cursor(
            &service.shared.catalog.find(&tenant, "").expect("it").dataset.start_cursor(&packed(3)),
        ));
        let open = v1::OpenStream { spec, partition, cursor, credit_bytes: 1, ..Default::default() };
        let open = v1::StreamBatchesRequest { request: Some(v1::stream_batches_request::Request::Open(open)) };
        let get = v1::GetBatchRequest { spec, partition, position, ..Default::default() };
        let describe = v1::DescribeDatasetRequest { spec, partition, ..Default::default() };
        let messages = [
            ("DescribeDataset", describe.encode_to_vec()),
            ("GetBatch", get.encode_to_vec()),
            ("StreamBatches", open.encode_to_vec()),
        ];
        let calls = messages.map(|(call, message)| {
            let mut request = http::Request::new(framed(&message));
            *request.uri_mut() = format!("/vela.loader.v1.Loader/{call}").parse().expect("a path");
            request.extensions_mut().insert(Arc::clone(&tenant));
            let service = service.clone();
            (call, tokio::spawn(async move { service.answer(request).await.map(drop) }))
        });
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(calls.iter().all(|(_, waiting)| !waiting.is_finished()), "all wait for the plan");
        service.shared.stop.request();
        for (call, waiting) in calls {
            let ended = tokio::time::timeout(Duration::from_secs(5), waiting).await.expect(call).expect("no panic");
            assert_eq!(ended.map_err(|status| status.code()), Err(tonic::Code::Unavailable), "{call}");
        }
    }

    /// One message as a body of gRPC: uncompressed, its length, itself.
    fn framed(message: &[u8]) -> Body {
        let mut frame = vec![0];
        frame.extend_from_slice(&(message.len() as u32).to_be_bytes());
        frame.extend_from_slice(message);
        Body::new(http_body_util::Full::new(bytes::Bytes::from(frame)))
    }

    #[tokio::test]
    async fn descriptions_that_wait_for_a_plan_hold_up_no_other() {
        let (_folder, service, tenant) = service(1);
        let describe = |spec: BatchSpec| {
            let (service, tenant) = (service.clone(), Arc::clone(&tenant));
            let spec = Some(encode_spec(&spec));
            let request = v1::DescribeDatasetRequest { spec, ..Default::default() };
            tokio::spawn(async move { service.describe(&tenant, request).await })
        };
        let planning = tenant.begin_plan().await;
        let waiting: Vec<_> = (1..=NUM_PLANS).map(|window| describe(packed(window))).collect();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let plain = tokio::time::timeout(Duration::from_secs(10), describe(shards::spec())).await;
        let plain = plain.expect("no plan is waited for").expect("no panic").expect("a description");
        assert_eq!(plain.steps_per_epoch, 4);
        assert!(waiting.iter().all(|waiting| !waiting.is_finished()), "no plan was made meanwhile");
        drop(planning);
        for waiting in waiting {
            waiting.await.expect("no panic").expect("a description");
        }
    }
}
