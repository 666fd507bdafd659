//! Previews: what order-svc says of a withdrawal, or of the end of a relationship, just before it is what happens (WD-6).

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use proto::order::{
    PreviewOutcome, PreviewWithdrawalRequest, PreviewWithdrawalResponse, SubscriptionChange,
    SubscriptionChangeKind as Kind, WithdrawalOutcome,
};
use tests::reason_of;

use super::play::Play;
use super::state::{Tracked, is_final};
use crate::model::acceptance::{self, NOT_FOUND, PARTNERS};

impl Play {
    /// The preview of what a step withdraws or ends; nothing while events are held back, for what will be applied then is
    /// not known yet.
    pub(super) async fn preview(&self, step: &acceptance::Step) -> Option<PreviewWithdrawalResponse> {
        let subject = Some(self.world.subject_of(step)?).filter(|_| !self.is_history_held)?;
        let request =
            PreviewWithdrawalRequest { subject: Some(subject), page_size: 500, page_token: String::new() };
        match self.world.operator.withdrawals().preview_withdrawal(request).await {
            Ok(preview) => Some(preview.into_inner()),
            Err(refused) => {
                assert_eq!(reason_of(&refused), NOT_FOUND, "{refused}");
                // There is nothing to end, so nothing happens.
                Some(PreviewWithdrawalResponse::default())
            }
        }
    }

    /// Compares a preview with what has happened since.
    pub(super) fn compare_preview(&self, preview: &PreviewWithdrawalResponse) -> Result<(), TestCaseError> {
        let happened = self.world.model.history.last().unwrap();
        let revision = self.world.model.head();
        let is_end = happened.kind == "RelationshipEnded";
        let effects: Vec<(String, PreviewOutcome)> = if is_end {
            let payer_id = happened.partner.map(|of| PARTNERS[of].to_string()).unwrap();
            let customer_id = &self.world.customer_ids[happened.customer.unwrap()];
            let is_about = |tracked: &&Tracked| {
                (&tracked.now.payer_id, &tracked.now.customer_id) == (&payer_id, customer_id)
            };
            let outcome = |tracked: &Tracked| {
                let change = tracked.changes.last().filter(|change| change.event_revision == revision);
                let outcome = match change.map(SubscriptionChange::kind) {
                    Some(Kind::Cancelled) => PreviewOutcome::Cancelled,
                    Some(Kind::AutoRenewOff) => PreviewOutcome::NotRenewed,
                    _ if is_final(tracked.now.state()) => return None,
                    _ => PreviewOutcome::Unaffected,
                };
                Some((tracked.now.subscription_id.clone(), outcome))
            };
            self.model.subscriptions.values().filter(is_about).filter_map(outcome).collect()
        } else {
            let (report, effects) = &self.model.reports[&revision];
            prop_assert_eq!(&preview.uncovered_partner_ids, &report.uncovered_partner_ids);
            let outcome = |of: WithdrawalOutcome| match of {
                WithdrawalOutcome::Cancelled => PreviewOutcome::Cancelled,
                WithdrawalOutcome::StillCovered => PreviewOutcome::StillCovered,
                // Nothing rests on an answer from after it.
                WithdrawalOutcome::NewerAnswer | WithdrawalOutcome::Unspecified => {
                    PreviewOutcome::Unspecified
                }
            };
            effects.iter().map(|of| (of.subscription_id.clone(), outcome(of.outcome()))).collect()
        };
        let previewed: Vec<_> =
            preview.effects.iter().map(|of| (of.subscription_id.clone(), of.outcome())).collect();
        prop_assert_eq!(&previewed, &effects);
        prop_assert!(preview.is_current);
        let count = |these: &[PreviewOutcome]| {
            u32::try_from(effects.iter().filter(|(_, outcome)| these.contains(outcome)).count()).unwrap()
        };
        let counts = (preview.cancelled, preview.not_renewed, preview.stayed);
        let stayed = count(&[PreviewOutcome::StillCovered, PreviewOutcome::Unaffected]);
        let expected = (count(&[PreviewOutcome::Cancelled]), count(&[PreviewOutcome::NotRenewed]), stayed);
        prop_assert_eq!(counts, expected);
        Ok(())
    }
}
