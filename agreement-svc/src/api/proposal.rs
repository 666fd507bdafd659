//! `ProposalService`.

use std::mem::take;

use chassis::paging::filter_of;
use chassis::server::call;
use proto::agreement::proposal_service_server::ProposalService;
use proto::agreement::{
    ApproveProposalRequest, ApproveProposalResponse, GetProposalRequest, GetProposalResponse,
    ListProposalsRequest, ListProposalsResponse, ProposeAttestationRequest, ProposeAttestationResponse,
    RejectProposalRequest, RejectProposalResponse, WithdrawProposalRequest, WithdrawProposalResponse,
};
use proto::identity::TenantKind;
use tonic::{Request, Response, Status};

use super::statement::read_statement;
use super::{Api, Mutation, convert};
use crate::actions::attest::NewAttestation;
use crate::actions::propose::{NewProposal, approve, propose, reject, withdraw};
use crate::actions::visibility::require_own_proposal;
use crate::rules::Refusal;
use crate::rules::proposal::RejectionReason;
use crate::store::proposal::{ProposalFilter, proposal_find, proposal_list};

#[tonic::async_trait]
impl ProposalService for Api {
    async fn propose_attestation(
        &self,
        request: Request<ProposeAttestationRequest>,
    ) -> Result<Response<ProposeAttestationResponse>, Status> {
        let mut call = self.mutation("ProposeAttestation", request, |message| {
            (&mut message.request_id, &mut message.validate_only)
        })?;
        let Mutation { caller, form, message, timed, .. } = &mut call;
        let provider_id = form.id("provider_id", &message.provider_id);
        let ids = (message.customer_id.as_str(), message.template_id.as_str());
        let stated = (message.contact.as_ref(), message.agreed_at.as_ref(), message.details.as_ref());
        let (customer_id, new) = read_statement(form, timed, caller, ids, stated);

        self.change(call, move |change, caller| {
            let NewAttestation { template_id, claim, by, .. } = new;
            let new = NewProposal { provider_id, customer_id, template_id, claim, by };
            let proposal = propose(change, caller.tenant_id, new)?;
            let proposal = Some(convert::proposal(proposal, change.now));
            Ok(ProposeAttestationResponse { proposal, revision: change.revision() })
        })
        .await
    }

    async fn get_proposal(
        &self,
        request: Request<GetProposalRequest>,
    ) -> Result<Response<GetProposalResponse>, Status> {
        let (caller, message, mut form) = call::open(request)?;
        let id = form.id("proposal_id", &message.proposal_id);
        let now = self.clock.now();
        self.read(form, move |connection| {
            let proposal = if caller.tenant_kind == TenantKind::Partner {
                require_own_proposal(connection, caller.tenant_id, id)?
            } else {
                proposal_find(connection, id)?.ok_or(Refusal::NotFound { resource: "proposal", id })?
            };
            Ok(GetProposalResponse { proposal: Some(convert::proposal(proposal, now)) })
        })
        .await
    }

    async fn list_proposals(
        &self,
        request: Request<ListProposalsRequest>,
    ) -> Result<Response<ListProposalsResponse>, Status> {
        let (caller, mut message, mut form) = call::open(request)?;
        let asked = (take(&mut message.page_size), take(&mut message.page_token));
        let asked = (asked.0, asked.1.as_str());
        let page = self.pages.read(&mut form, asked, &caller, "ListProposals", &filter_of(&message));
        let state = match message.state {
            0 => None,
            given => convert::read_proposal_state(&mut form, "state", given),
        };
        let now = self.clock.now();
        let filter = ProposalFilter {
            partner: (caller.tenant_kind == TenantKind::Partner).then_some(caller.tenant_id),
            customer: form.optional_id("customer_id", &message.customer_id),
            state: state.map(|state| (state, now)),
        };
        self.list(form, page, move |connection, page| {
            let mut rows = proposal_list(connection, filter, page.after_number(), page.fetch())?;
            let next_page_token = page.cut(&mut rows, |proposal| proposal.revision.to_string());
            let proposals = rows.into_iter().map(|row| convert::proposal(row, now)).collect();
            Ok(ListProposalsResponse { proposals, next_page_token })
        })
        .await
    }

    async fn approve_proposal(
        &self,
        request: Request<ApproveProposalRequest>,
    ) -> Result<Response<ApproveProposalResponse>, Status> {
        let mut call = self.mutation("ApproveProposal", request, |message| {
            (&mut message.request_id, &mut message.validate_only)
        })?;
        let Mutation { form, message, .. } = &mut call;
        let id = form.id("proposal_id", &message.proposal_id);

        self.change(call, move |change, caller| {
            let by = (caller.user_id, caller.client.clone());
            let (proposal, attestation) = approve(change, caller.tenant_id, id, by)?;
            Ok(ApproveProposalResponse {
                proposal: Some(convert::proposal(proposal, change.now)),
                attestation: Some(convert::attestation(attestation, None)),
                revision: change.revision(),
            })
        })
        .await
    }

    async fn reject_proposal(
        &self,
        request: Request<RejectProposalRequest>,
    ) -> Result<Response<RejectProposalResponse>, Status> {
        let mut call = self.mutation("RejectProposal", request, |message| {
            (&mut message.request_id, &mut message.validate_only)
        })?;
        let Mutation { form, message, .. } = &mut call;
        let id = form.id("proposal_id", &message.proposal_id);
        let reason = convert::read_rejection_reason(form, "reason", message.reason);
        let reason = reason.unwrap_or(RejectionReason::Other);

        self.change(call, move |change, caller| {
            let proposal = reject(change, caller.tenant_id, id, reason, caller.user_id)?;
            let proposal = Some(convert::proposal(proposal, change.now));
            Ok(RejectProposalResponse { proposal, revision: change.revision() })
        })
        .await
    }

    async fn withdraw_proposal(
        &self,
        request: Request<WithdrawProposalRequest>,
    ) -> Result<Response<WithdrawProposalResponse>, Status> {
        let mut call = self.mutation("WithdrawProposal", request, |message| {
            (&mut message.request_id, &mut message.validate_only)
        })?;
        let Mutation { form, message, .. } = &mut call;
        let id = form.id("proposal_id", &message.proposal_id);

        self.change(call, move |change, caller| {
            let proposal = withdraw(change, caller.tenant_id, id, caller.user_id)?;
            let proposal = Some(convert::proposal(proposal, change.now));
            Ok(WithdrawProposalResponse { proposal, revision: change.revision() })
        })
        .await
    }
}
