//! The bound on how often the acceptances of a customer change (ATT-8).

use chassis::clock::Clock;
use chrono::Duration;
use rstest_reuse::apply;
use tests::actions::{self, attest, sign, withdraw, withdraw_signature};
use tests::assert::refusal;
use tests::fixtures::{self, DIRECT, PROVIDER, acceptance, new_attestation, new_withdrawal};
use tests::{Backend, Cluster, Setup, metadata_of};
use tonic::Code;
use tonic_types::StatusExt;

use crate::each_backend;

#[apply(each_backend)]
async fn acceptances_of_a_customer_change_a_bounded_number_of_times_an_hour(#[case] backend: Backend) {
    tests::needs_own!("settings of its own");
    tests::needs!(backend);
    let start = fixtures::now();
    let clock = Clock::manual(start);
    let setup = Setup { backend, clock: clock.clone(), acceptance_changes_max: 3, ..Setup::default() };
    let cluster = Cluster::start(setup).await.unwrap();
    actions::register_partners(&cluster).await.unwrap();
    let [direct, provider] = [DIRECT, PROVIDER].map(|partner| cluster.as_caller(fixtures::sales(partner)));
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let admin = cluster.as_caller(fixtures::admin(customer.parse().unwrap()));
    let attest_at = async |at| attest(&direct, &customer, at).await.map(|made| made.attestation.unwrap());
    let limit = (Code::ResourceExhausted, "ACCEPTANCE_CHANGE_LIMIT".to_owned());

    let first = new_attestation(&customer);
    let answer = direct.attestations().create_attestation(first.clone()).await.unwrap().into_inner();
    let id = answer.attestation.clone().unwrap().attestation_id;
    clock.set(start + Duration::minutes(10));
    withdraw(&direct, &id).await.unwrap();
    clock.set(start + Duration::minutes(20));
    let last = attest_at(start).await.unwrap();
    clock.set(start + Duration::minutes(30));
    let withdrawal = new_withdrawal(&last.attestation_id);
    let mut waits = vec![];
    for validate_only in [true, false] {
        let again = proto::agreement::CreateAttestationRequest {
            contact: Some(fixtures::person("Grace")),
            validate_only,
            ..new_attestation(&customer)
        };
        let refused = direct.attestations().create_attestation(again).await.unwrap_err();
        assert_eq!((refusal(&refused), metadata_of(&refused)["limit"].as_str()), (limit.clone(), "3"));
        waits.push(refused.get_details_retry_info().unwrap().retry_delay.unwrap().as_secs());
    }
    // The first change becomes old in half an hour.
    assert_eq!(waits, [30 * 60, 30 * 60]);

    // What was answered is answered again, and a duplicate is one.
    let again = direct.attestations().create_attestation(first).await.unwrap().into_inner();
    assert_eq!(again, answer);
    let refused = attest_at(start).await.unwrap_err();
    assert_eq!(refusal(&refused).1, "ALREADY_ATTESTED");
    // The customer's own acceptance and other partners' are counted by themselves.
    sign(&admin, 2).await.unwrap();
    withdraw_signature(&admin, &customer).await.unwrap();
    let invited = actions::invite(&provider, None, None).await.unwrap();
    admin.signatures().accept_invitation(acceptance(&invited, None)).await.unwrap();
    actions::attest_now(&provider, &customer).await.unwrap();

    // A withdrawal is never refused, and counts.
    direct.attestations().withdraw_attestation(withdrawal).await.unwrap();
    clock.set(start + Duration::minutes(69));
    assert_eq!(refusal(&attest_at(start).await.unwrap_err()), limit);
    clock.set(start + Duration::minutes(70));
    attest_at(start).await.unwrap();
}
