//! `vmm.v1.SystemService`.

// The concrete message types are what this module wants to say.
#![allow(refining_impl_trait)]

use std::sync::Arc;

use connectrpc::{ConnectError, RequestContext, Response, ServiceRequest, ServiceResult};
use roost_api::vmm::v1;

use crate::doctor::{self, Severity};
use crate::wiring::Daemon;

/// The service.
pub(super) struct System(pub(super) Arc<Daemon>);

impl v1::SystemService for System {
    async fn get_version(
        &self,
        _context: RequestContext,
        _request: ServiceRequest<'_, v1::GetVersionRequest>,
    ) -> ServiceResult<v1::GetVersionResponse> {
        let (node, _epoch) = self.0.engine.node();
        Response::ok(v1::GetVersionResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            api_versions: vec!["vmm.v1".to_owned()],
            platform: format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
            node_id: node.to_string(),
            schema_version: roost_store::SCHEMA_VERSION,
            default_backend: self.0.config.backend.to_string(),
            ..Default::default()
        })
    }

    async fn list_backends(
        &self,
        _context: RequestContext,
        _request: ServiceRequest<'_, v1::ListBackendsRequest>,
    ) -> ServiceResult<v1::ListBackendsResponse> {
        let mut backends = Vec::new();
        for entry in self.0.engine.backends() {
            let capabilities = entry.capabilities.as_ref().map_err(String::as_str);
            let mut description = roost_api::to_proto::backend(entry.backend.name(), capabilities);
            if description.available
                && let Err(error) = entry.backend.ping().await
            {
                description.available = false;
                description.reason = error.to_string();
            }
            backends.push(description);
        }
        Response::ok(v1::ListBackendsResponse { backends, ..Default::default() })
    }

    async fn doctor(
        &self,
        _context: RequestContext,
        _request: ServiceRequest<'_, v1::DoctorRequest>,
    ) -> ServiceResult<v1::DoctorResponse> {
        let (state_dir, backends) = (self.0.config.state_dir.clone(), self.0.engine.backends());
        let findings = tokio::task::spawn_blocking(move || doctor::examine(&state_dir, &backends)).await;
        let findings = findings.map_err(|e| ConnectError::internal(format!("the examination broke off: {e}")))?;
        Response::ok(v1::DoctorResponse { findings: findings.into_iter().map(finding).collect(), ..Default::default() })
    }
}

fn finding(f: doctor::Finding) -> v1::Finding {
    use v1::finding::Severity as Wire;
    let severity = match f.severity {
        Severity::Ok => Wire::SEVERITY_OK,
        Severity::Info => Wire::SEVERITY_INFO,
        Severity::Warning => Wire::SEVERITY_WARNING,
        Severity::Error => Wire::SEVERITY_ERROR,
    };
    v1::Finding {
        id: f.id,
        severity: severity.into(),
        title: f.title,
        detail: f.detail,
        fix: f.fix,
        ..Default::default()
    }
}
