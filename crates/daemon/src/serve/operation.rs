//! `vmm.v1.OperationService`.

// The concrete message types are what this module wants to say.
#![allow(refining_impl_trait)]

use std::sync::Arc;
use std::time::Duration;

use connectrpc::{ConnectError, RequestContext, Response, ServiceRequest, ServiceResult};
use roost_api::vmm::v1;
use roost_api::{from_proto, status, to_proto};
use roost_engine::{Address, OperationFilter};
use roost_model::{OperationId, ProjectId};

use super::failure::told;
use super::wait::at_most;
use crate::wiring::Daemon;

/// The service.
pub(super) struct Operations(pub(super) Arc<Daemon>);

impl v1::OperationService for Operations {
    async fn get_operation(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, v1::GetOperationRequest>,
    ) -> ServiceResult<v1::GetOperationResponse> {
        let id = id_of(request.operation_id)?;
        let operation = self.0.engine.operation(ProjectId::DEFAULT, id).await.map_err(|e| told(&e))?;
        let operation = to_proto::operation(&operation).into();
        Response::ok(v1::GetOperationResponse { operation, ..Default::default() })
    }

    async fn list_operations(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, v1::ListOperationsRequest>,
    ) -> ServiceResult<v1::ListOperationsResponse> {
        let query = from_proto::list_operations(request.to_owned_message()).map_err(|e| status::invalid(&e))?;
        let vm = match query.vm.map(|text| Address::parse(&text)).transpose().map_err(|e| status::refusal(&e))? {
            // The operations of a VM that is gone are found by its ID.
            Some(Address::Id(id)) => Some(id),
            Some(name) => Some(self.0.engine.vm(ProjectId::DEFAULT, name).await.map_err(|e| told(&e))?.id),
            None => None,
        };
        let filter = OperationFilter {
            project: Some(ProjectId::DEFAULT),
            vm,
            statuses: query.statuses,
            ..OperationFilter::default()
        };
        let page = self.0.engine.operations(filter, query.after, query.page_size).await.map_err(|e| told(&e))?;
        Response::ok(v1::ListOperationsResponse {
            operations: page.operations.iter().map(to_proto::operation).collect(),
            next_page_token: page.next.map(|id| id.to_string()).unwrap_or_default(),
            ..Default::default()
        })
    }

    async fn wait_operation(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, v1::WaitOperationRequest>,
    ) -> ServiceResult<v1::WaitOperationResponse> {
        let id = id_of(request.operation_id)?;
        let asked = Some(request.timeout_seconds).filter(|s| *s != 0).map(|s| Duration::from_secs(s.into()));
        let waited = self.0.engine.wait(ProjectId::DEFAULT, id, at_most(&context, asked)).await;
        let (operation, _vm) = waited.map_err(|e| told(&e))?;
        let operation = to_proto::operation(&operation).into();
        Response::ok(v1::WaitOperationResponse { operation, ..Default::default() })
    }

    async fn cancel_operation(
        &self,
        _context: RequestContext,
        request: ServiceRequest<'_, v1::CancelOperationRequest>,
    ) -> ServiceResult<v1::CancelOperationResponse> {
        let id = id_of(request.operation_id)?;
        let operation = self.0.engine.cancel(ProjectId::DEFAULT, id).await.map_err(|e| told(&e))?;
        let operation = to_proto::operation(&operation).into();
        Response::ok(v1::CancelOperationResponse { operation, ..Default::default() })
    }
}

fn id_of(text: &str) -> Result<OperationId, ConnectError> {
    from_proto::operation_id(text).map_err(|e| status::invalid(&e))
}
