//! Histories from the newest entry down: the same rows as from the oldest up.

use proto::agreement::{InvitationState, ListEventsRequest, ListInvitationsRequest, RevokeInvitationRequest};
use rstest_reuse::apply;
use tests::fixtures::{self, PROVIDER, RESELLER};
use tests::{As, Backend, actions};

use crate::each_backend;

async fn invitations(caller: &As, filter: ListInvitationsRequest) -> Vec<String> {
    let mut request = ListInvitationsRequest { page_size: 2, ..filter };
    let mut found = vec![];
    loop {
        let page = caller.signatures().list_invitations(request.clone()).await.unwrap().into_inner();
        found.extend(page.invitations.into_iter().map(|invitation| invitation.invitation_id));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return found;
        }
    }
}

async fn revisions(caller: &As, customer_id: &str, newest_first: bool) -> Vec<i64> {
    let customer_id = customer_id.to_owned();
    let mut request = ListEventsRequest { customer_id, page_size: 2, newest_first, ..Default::default() };
    let mut found = vec![];
    loop {
        let page = caller.events().list_events(request.clone()).await.unwrap().into_inner();
        found.extend(page.events.into_iter().map(|event| event.revision));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return found;
        }
    }
}

#[apply(each_backend)]
async fn the_newest_invitation_and_event_come_first(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, _) = actions::start_with_partners(backend).await;
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let reseller = cluster.as_caller(fixtures::sales(RESELLER));
    let customer = actions::create_customer(&reseller, "Contoso", "FR", Some(PROVIDER)).await.unwrap();
    let mut made = vec![];
    for _ in 0..5 {
        let new = fixtures::new_invitation(Some(&customer), None);
        let invited = reseller.signatures().create_invitation(new).await.unwrap().into_inner();
        made.push(invited.invitation.unwrap().invitation_id);
    }
    let revocation = RevokeInvitationRequest {
        request_id: fixtures::request_id(),
        invitation_id: made[2].clone(),
        validate_only: false,
    };
    reseller.signatures().revoke_invitation(revocation).await.unwrap();
    let up = ListInvitationsRequest { customer_id: customer.clone(), ..Default::default() };
    let down = ListInvitationsRequest { newest_first: true, ..up.clone() };
    let pending = ListInvitationsRequest { state: InvitationState::Pending.into(), ..down.clone() };
    let operator = cluster.as_caller(fixtures::operator());
    // The reseller sees what names no partner.
    for (caller, least) in [(&provider, 8), (&reseller, 1), (&operator, 8)] {
        assert_eq!(invitations(caller, up.clone()).await, made);
        let reversed: Vec<_> = made.iter().rev().cloned().collect();
        assert_eq!(invitations(caller, down.clone()).await, reversed);
        assert_eq!(invitations(caller, pending.clone()).await, [&reversed[..2], &reversed[3..]].concat());
        let mut upwards = revisions(caller, &customer, false).await;
        assert!(upwards.len() >= least && upwards.is_sorted(), "{upwards:?}");
        upwards.reverse();
        assert_eq!(revisions(caller, &customer, true).await, upwards);
    }
}
