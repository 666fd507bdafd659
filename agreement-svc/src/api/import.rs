//! `ImportAttestations`: attestations in bulk, each row decided and answered by itself.

use std::pin::Pin;

use futures_util::Stream;
use proto::agreement::{ImportAttestationsRequest, ImportAttestationsResponse};
use tonic::{Request, Response, Status, Streaming};

use super::Api;

/// The answers, in the order of the rows.
pub(super) type Answers = Pin<Box<dyn Stream<Item = Result<ImportAttestationsResponse, Status>> + Send>>;

impl Api {
    pub(super) fn import(
        &self,
        _request: Request<Streaming<ImportAttestationsRequest>>,
    ) -> Result<Response<Answers>, Status> {
        Err(Status::unimplemented("not built yet"))
    }
}
