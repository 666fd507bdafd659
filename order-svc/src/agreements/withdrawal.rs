//! Asks agreement-svc whom a withdrawal would leave without acceptance (WD-6).

use std::time::Duration;

use chassis::telemetry::trace::Traced;
use proto::agreement::eligibility_service_client::EligibilityServiceClient;
use proto::agreement::{CheckWithdrawalRequest, CheckWithdrawalResponse};
use proto::types::{AcceptanceKind, ErrorReason};
use tonic::Code;
use uuid::Uuid;

use super::{AgreementClient, log_if_unauthenticated, reason_of};
use crate::rules::gate::EvidenceKind;
use crate::rules::withdrawal::Withdrawal;

/// What agreement-svc says of the withdrawal of an acceptance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CheckedWithdrawal {
    pub withdrawal: Withdrawal,
    /// False where the acceptance is superseded or withdrawn already.
    pub is_current: bool,
}

impl AgreementClient {
    /// What the withdrawal of an acceptance would be; `None` if there is no such acceptance.
    ///
    /// # Errors
    /// Why agreement-svc gave no answer. For the log.
    pub(crate) async fn check_withdrawal(
        &self,
        acceptance_id: Uuid,
        call_id: &str,
        time_left: Duration,
    ) -> Result<Option<CheckedWithdrawal>, String> {
        let options = self.own_options(call_id, self.deadline, time_left);
        let message = CheckWithdrawalRequest { acceptance_id: acceptance_id.to_string() };
        let call = |channel, request| {
            let mut gate = EligibilityServiceClient::new(Traced(channel));
            async move { gate.check_withdrawal(request).await }
        };
        let checked = self.client.call(options, message, call).await;
        match checked.inspect_err(log_if_unauthenticated) {
            Ok(answer) => match read_check(acceptance_id, &answer) {
                Some(checked) => Ok(Some(checked)),
                None => Err("its answer cannot be used".into()),
            },
            Err(status) => match (reason_of(&status), status.code()) {
                (Some(ErrorReason::ResourceNotFound), Code::NotFound) => Ok(None),
                _ => Err(status.to_string()),
            },
        }
    }
}

fn read_check(acceptance_id: Uuid, answer: &CheckWithdrawalResponse) -> Option<CheckedWithdrawal> {
    let uncovered = answer.uncovered_partner_ids.iter().map(|id| id.parse().ok());
    let (kind, partner_id) = match answer.kind() {
        AcceptanceKind::Attestation => (EvidenceKind::Attestation, Some(answer.partner_id.parse().ok()?)),
        AcceptanceKind::DirectSignature => (EvidenceKind::DirectSignature, None),
        AcceptanceKind::Unspecified => return None,
    };
    let withdrawal = Withdrawal {
        customer_id: answer.customer_id.parse().ok()?,
        kind,
        acceptance_id,
        partner_id,
        uncovered: uncovered.collect::<Option<_>>()?,
    };
    Some(CheckedWithdrawal { withdrawal, is_current: answer.is_current })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// I8.
    #[test]
    fn an_answer_that_is_incomplete_cannot_be_used() {
        let [id, customer, partner] = [1, 2, 3].map(Uuid::from_u128);
        let good = CheckWithdrawalResponse {
            customer_id: customer.to_string(),
            kind: AcceptanceKind::Attestation.into(),
            partner_id: partner.to_string(),
            is_current: true,
            uncovered_partner_ids: vec![partner.to_string()],
        };
        let withdrawal = Withdrawal {
            customer_id: customer,
            kind: EvidenceKind::Attestation,
            acceptance_id: id,
            partner_id: Some(partner),
            uncovered: vec![partner],
        };
        assert_eq!(read_check(id, &good), Some(CheckedWithdrawal { withdrawal, is_current: true }));
        for bad in [
            CheckWithdrawalResponse { customer_id: String::new(), ..good.clone() },
            CheckWithdrawalResponse { kind: 0, ..good.clone() },
            CheckWithdrawalResponse { kind: 99, ..good.clone() },
            CheckWithdrawalResponse { partner_id: String::new(), ..good.clone() },
            CheckWithdrawalResponse { uncovered_partner_ids: vec!["x".into()], ..good.clone() },
        ] {
            assert_eq!(read_check(id, &bad), None, "{bad:?}");
        }
    }
}
