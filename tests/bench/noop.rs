//! The yardstick of `make bench`: a tonic server that decodes the same `CheckRequest` and always allows, with an id of its own.

use std::collections::HashMap;

use envoy_types::ext_authz::v3::pb::{Authorization, AuthorizationServer};
use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Struct, Value};
use envoy_types::pb::google::rpc::Status;
use tonic::{Request, Response, Status as GrpcStatus};

#[global_allocator]
static ALLOCATOR: stepgate_allocator::MiMalloc = stepgate_allocator::MiMalloc;

#[derive(Debug)]
struct AlwaysAllow;

#[tonic::async_trait]
impl Authorization for AlwaysAllow {
    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, GrpcStatus> {
        std::hint::black_box(request.into_inner());
        let id = Value { kind: Some(Kind::StringValue(uuid::Uuid::new_v4().to_string())) };
        let fields = HashMap::from([("decision_id".to_owned(), id)]);
        Ok(Response::new(CheckResponse {
            status: Some(Status::default()),
            dynamic_metadata: Some(Struct { fields }),
            ..CheckResponse::default()
        }))
    }
}

fn main() {
    let address = std::env::args().nth(1).and_then(|text| text.parse().ok()).expect("usage: noop ADDRESS");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let server = tonic::transport::Server::builder().add_service(AuthorizationServer::new(AlwaysAllow)).serve(address);
    runtime.block_on(server).expect("the server runs");
}
