//! `DirectSignService`.

use proto::agreement::direct_sign_service_server::DirectSignService;
use proto::agreement::{
    AcceptInvitationRequest, AcceptInvitationResponse, CreateInvitationRequest, CreateInvitationResponse,
    GetDirectSignStatusRequest, GetDirectSignStatusResponse, GetInvitationRequest, GetInvitationResponse,
    ListInvitationsRequest, ListInvitationsResponse, RevokeInvitationRequest, RevokeInvitationResponse,
    SignAgreementRequest, SignAgreementResponse, WithdrawSignatureRequest, WithdrawSignatureResponse,
};
use tonic::{Request, Response, Status};

use super::Api;

#[tonic::async_trait]
impl DirectSignService for Api {
    async fn create_invitation(
        &self,
        _request: Request<CreateInvitationRequest>,
    ) -> Result<Response<CreateInvitationResponse>, Status> {
        Err(Status::unimplemented("not built yet"))
    }

    async fn revoke_invitation(
        &self,
        _request: Request<RevokeInvitationRequest>,
    ) -> Result<Response<RevokeInvitationResponse>, Status> {
        Err(Status::unimplemented("not built yet"))
    }

    async fn get_invitation(
        &self,
        _request: Request<GetInvitationRequest>,
    ) -> Result<Response<GetInvitationResponse>, Status> {
        Err(Status::unimplemented("not built yet"))
    }

    async fn list_invitations(
        &self,
        _request: Request<ListInvitationsRequest>,
    ) -> Result<Response<ListInvitationsResponse>, Status> {
        Err(Status::unimplemented("not built yet"))
    }

    async fn accept_invitation(
        &self,
        _request: Request<AcceptInvitationRequest>,
    ) -> Result<Response<AcceptInvitationResponse>, Status> {
        Err(Status::unimplemented("not built yet"))
    }

    async fn sign_agreement(
        &self,
        _request: Request<SignAgreementRequest>,
    ) -> Result<Response<SignAgreementResponse>, Status> {
        Err(Status::unimplemented("not built yet"))
    }

    async fn withdraw_signature(
        &self,
        _request: Request<WithdrawSignatureRequest>,
    ) -> Result<Response<WithdrawSignatureResponse>, Status> {
        Err(Status::unimplemented("not built yet"))
    }

    async fn get_direct_sign_status(
        &self,
        _request: Request<GetDirectSignStatusRequest>,
    ) -> Result<Response<GetDirectSignStatusResponse>, Status> {
        Err(Status::unimplemented("not built yet"))
    }
}
