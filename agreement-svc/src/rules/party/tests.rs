use expect_test::expect;
use rstest::rstest;

use super::*;

/// ATT-2.
#[test]
fn the_form_of_an_email_address_is_checked_and_nothing_more() {
    for good in ["a@b.example", "first.last+tag@sub.contoso.example", "o'neil@x-y.example"] {
        assert!(is_email(good), "{good}");
    }
    for bad in [
        "",
        "a",
        "a@b",
        "@b.example",
        "a@",
        "a b@c.example",
        "a@b..example",
        ".a@b.example",
        "a@-b.example",
        "a@b@c.example,d@e.example",
        "a@b.example\n",
    ] {
        assert!(!is_email(bad), "{bad}");
    }
}

/// CUS-3, ROLE-6.
#[test]
fn the_end_of_a_relationship_cuts_off_its_parties() {
    let [payer, reseller] = [1, 2].map(Uuid::from_u128);
    let of = |reseller_id| Relationship { payer_id: payer, reseller_id };
    let (alone, through) = (of(None), of(Some(reseller)));
    for (ended, others_remain, caller, expected) in [
        (alone, false, payer, vec![alone]),
        (alone, true, payer, vec![]),
        (through, false, payer, vec![alone, through]),
        (through, true, payer, vec![through]),
        (through, false, reseller, vec![through]),
        (through, true, reseller, vec![through]),
    ] {
        let found = cut_off(ended, others_remain, caller);
        assert_eq!(found, expected, "{ended:?} {others_remain} {caller}");
    }
}

/// ATT-9. Where the partner set no contact, that of the other partner of its relationship counts, but of one that has
/// ended only while there is no other.
#[test]
fn a_contact_of_a_partner_that_parted_receives_nothing_beside_an_active_one() {
    const PROVIDER: Uuid = Uuid::from_u128(2);
    let [parted, active, silent] = [3, 4, 5].map(Uuid::from_u128);
    let named = |email: &str| Contact { email: email.into(), ..Contact::default() };
    let through = |resellers: &[Uuid]| -> Vec<Relationship> {
        resellers.iter().map(|of| Relationship { payer_id: PROVIDER, reseller_id: Some(*of) }).collect()
    };
    for (now, before, expected) in [
        (&[active][..], &[parted][..], Some("active")),
        (&[silent], &[parted], None),
        (&[silent, active], &[parted], Some("active")),
        (&[], &[parted], Some("parted")),
        (&[], &[silent], None),
    ] {
        let contacts = Contacts {
            of_partners: [(PROVIDER, ""), (parted, "parted"), (active, "active"), (silent, "")]
                .map(|(partner, email)| (partner, named(email)))
                .into(),
            active: through(now),
            ended: through(before),
            ..Contacts::default()
        };
        let found = contacts.addressee(PROVIDER).map(|contact| contact.email.as_str());
        assert_eq!(found, expected, "{now:?} {before:?}");
    }
}

/// ATT-9. A partner's announcements go to the customer's own contact, else to the one that the partner set.
#[test]
fn each_partner_has_its_own_contact_and_the_customers_overrides_them() {
    let through = |payer_id: Uuid, reseller_id: Option<Uuid>| Relationship { payer_id, reseller_id };
    let mut table = String::new();
    for (about, own, set, shared) in [
        ("each its own", "", &[(DIRECT, "d"), (PROVIDER, "p"), (RESELLER, "r")][..], "s"),
        ("the customer's", "own", &[(DIRECT, "d"), (PROVIDER, "p"), (RESELLER, "r")], "s"),
        ("the reseller's", "", &[(DIRECT, "d"), (PROVIDER, ""), (RESELLER, "r")], "s"),
        ("the provider's", "", &[(DIRECT, "d"), (PROVIDER, "p"), (RESELLER, "")], "s"),
        ("none of two", "", &[(DIRECT, "d"), (PROVIDER, ""), (RESELLER, "")], "s"),
        ("of an older version", "", &[], "s"),
        ("of an older version, one set", "", &[(RESELLER, "r")], "s"),
        ("of an older version, erased", "", &[], ""),
    ] {
        let contacts = Contacts {
            own: Some(named(own)),
            of_partners: set.iter().map(|(partner, email)| (*partner, named(email))).collect(),
            shared: Some(named(shared)),
            active: vec![through(DIRECT, None), through(PROVIDER, Some(RESELLER))],
            ended: vec![through(PROVIDER, None)],
        };
        let to = |partner| contacts.addressee(partner).map_or("-", |contact| contact.email.as_str());
        let seen = |partner| contacts.of(partner).map_or("-", |contact| contact.email.as_str());
        let notices =
            |set_by| contacts.replaced_by(&named("NEW"), set_by).into_iter().collect::<Vec<_>>().join(" ");
        table += &format!(
            "{about:<29} sent to {:<4}{:<4} seen {} {} {}; notices for the customer's: {:<7} the provider's: {:<4} the reseller's: {}\n",
            to(DIRECT),
            to(PROVIDER),
            seen(DIRECT),
            seen(PROVIDER),
            seen(RESELLER),
            notices(None),
            notices(Some(PROVIDER)),
            notices(Some(RESELLER)),
        );
    }
    expect![[r#"
        each its own                  sent to d   p    seen d p r; notices for the customer's: d p r   the provider's: p    the reseller's: r
        the customer's                sent to own own  seen d p r; notices for the customer's: own     the provider's:      the reseller's: 
        the reseller's                sent to d   r    seen d r r; notices for the customer's: d r     the provider's: r    the reseller's: r
        the provider's                sent to d   p    seen d p p; notices for the customer's: d p     the provider's: p    the reseller's: p
        none of two                   sent to d   -    seen d - -; notices for the customer's: d       the provider's:      the reseller's: 
        of an older version           sent to s   s    seen s s s; notices for the customer's: s       the provider's: s    the reseller's: s
        of an older version, one set  sent to s   s    seen s s r; notices for the customer's: r s     the provider's: s    the reseller's: r
        of an older version, erased   sent to -   -    seen - - -; notices for the customer's:         the provider's:      the reseller's: 
    "#]].assert_eq(&table);
}

const DIRECT: Uuid = Uuid::from_u128(1);
const PROVIDER: Uuid = Uuid::from_u128(2);
const RESELLER: Uuid = Uuid::from_u128(3);
const FORMER: Uuid = Uuid::from_u128(4);
const STRANGER: Uuid = Uuid::from_u128(5);

fn named(email: &str) -> Contact {
    Contact { email: email.into(), ..Contact::default() }
}

/// A customer of a provider through a reseller, and before of another reseller; `set` have contacts.
fn contacts(own: Option<&str>, set: &[Uuid]) -> Contacts {
    let through = |reseller| Relationship { payer_id: PROVIDER, reseller_id: Some(reseller) };
    Contacts {
        own: own.map(named),
        of_partners: set.iter().map(|partner| (*partner, named("p"))).collect(),
        shared: Some(named("s")),
        active: vec![through(RESELLER)],
        ended: vec![through(FORMER)],
    }
}

/// ATT-9: the shared contact is kept for the partners that have no other, present or former.
#[test]
fn the_shared_contact_is_replaced_when_no_partner_needs_it() {
    let all = [PROVIDER, RESELLER, FORMER];
    // the customer's own, partners that have a contact, who sets one -> whether it replaces the shared one, too
    for (own, set, set_by, may) in [
        (None, &all[..], None, true),
        (None, &all, Some(PROVIDER), true),
        (None, &[RESELLER, FORMER], Some(PROVIDER), true),
        (None, &[RESELLER, FORMER], None, false),
        (None, &[PROVIDER, FORMER], Some(PROVIDER), false),
        (None, &[PROVIDER, RESELLER], Some(PROVIDER), false),
        (None, &[], Some(PROVIDER), false),
        // Its own stands in this place, unless it was erased.
        (Some("own"), &all, None, true),
        (Some("own"), &all, Some(PROVIDER), false),
        (Some("own"), &[], None, false),
        (Some(""), &all, Some(PROVIDER), true),
    ] {
        assert_eq!(contacts(own, set).may_replace_shared(set_by), may, "{own:?} {set:?} {set_by:?}");
    }
}

#[test]
fn a_partner_is_known_by_its_contact_or_by_a_relationship() {
    for (partner, set, known) in [
        (PROVIDER, &[][..], true),
        (RESELLER, &[], true),
        (FORMER, &[], true),
        (STRANGER, &[], false),
        (STRANGER, &[PROVIDER], false),
        (STRANGER, &[STRANGER], true),
    ] {
        assert_eq!(contacts(None, set).knows(partner), known, "{partner} {set:?}");
    }
}

/// ATT-9: each partner with an active relationship is listed with what it set, or what the other partner of it did.
#[test]
fn the_partners_of_active_relationships_are_listed_with_their_contacts() {
    let mut contacts = contacts(None, &[]);
    let set = [(PROVIDER, ""), (RESELLER, "r"), (FORMER, "f"), (DIRECT, "d"), (STRANGER, "x")];
    contacts.of_partners = set.map(|(partner, email)| (partner, named(email))).into();
    contacts.active.push(Relationship { payer_id: DIRECT, reseller_id: None });
    let listed = |contacts: &Contacts| -> Vec<_> {
        contacts.of_active_partners().into_iter().map(|(of, contact)| (of, contact.email.clone())).collect()
    };
    assert_eq!(listed(&contacts), [(DIRECT, "d".into()), (PROVIDER, "r".into()), (RESELLER, "r".into())]);
    contacts.of_partners.insert(RESELLER, named(""));
    assert_eq!(listed(&contacts), [(DIRECT, "d".into())]);
}

/// ATT-9: whose address stays, whatever its case, loses nothing.
#[test]
fn only_another_address_gets_a_notice() {
    let with_own = |own: &str| contacts(Some(own), &[PROVIDER]);
    let notices = |contacts: &Contacts, new: &str, set_by| {
        contacts.replaced_by(&named(new), set_by).into_iter().collect::<Vec<_>>()
    };
    assert_eq!(notices(&with_own("Own@a.example"), "new@a.example", None), ["own@a.example"]);
    assert_eq!(notices(&with_own("Own@a.example"), "OWN@A.example", None), [""; 0]);
    // Without one of its own the partners' are replaced; the reseller has the shared one still.
    assert_eq!(notices(&with_own(""), "new", None), ["p", "s"]);
    assert_eq!(notices(&with_own(""), "P", None), ["s"]);
    assert_eq!(notices(&with_own(""), "new", Some(PROVIDER)), ["p"]);
    assert_eq!(notices(&with_own(""), "P", Some(PROVIDER)), [""; 0]);
}

#[rstest]
#[case::no_at("a", false)]
#[case::nothing_before_the_at("@b.example", false)]
#[case::longest(&format!("{}@b.example", "a".repeat(64)), true)]
#[case::longer(&format!("{}@b.example", "a".repeat(65)), false)]
#[case::two_ats("a@b@c.example", false)]
#[case::space("a b@c.example", false)]
#[case::control("a\u{7}b@c.example", false)]
#[case::bracket("a<b@c.example", false)]
#[case::quote("a\"b@c.example", false)]
#[case::dot_first(".a@b.example", false)]
#[case::dot_last("a.@b.example", false)]
#[case::dot_between("a.b@c.example", true)]
#[case::two_dots("a..b@c.example", false)]
#[case::no_host("a@", false)]
fn an_address_has_a_local_part_and_a_host(#[case] text: &str, #[case] is: bool) {
    assert_eq!(is_email(text), is);
}

#[rstest]
#[case::two_labels("a.b", true)]
#[case::one_label("a", false)]
#[case::empty("", false)]
#[case::empty_label("a..b", false)]
#[case::dot_last("a.b.", false)]
#[case::hyphen("a-b.c", true)]
#[case::hyphen_first("-a.b", false)]
#[case::hyphen_last("a-.b", false)]
#[case::underscore("a_b.c", false)]
#[case::longest_label(&format!("{}.b", "a".repeat(63)), true)]
#[case::longer_label(&format!("{}.b", "a".repeat(64)), false)]
#[case::longest(&format!("{}a", "a.".repeat(126)), true)]
#[case::longer(&format!("{}aa", "a.".repeat(126)), false)]
fn a_domain_has_labels(#[case] text: &str, #[case] is: bool) {
    assert_eq!(is_domain(text), is);
}

#[test]
fn an_address_outside_ascii_is_answered_with_what_to_send() {
    for (text, words) in [
        ("用户@contoso.example", "before the @"),
        ("zoë@bücher.example", "before the @"),
        ("zoe@bücher.example", "xn--bcher-kva.example"),
        ("zoe@\u{212a}ontoso.example", "xn--"),
        ("zoe@contoso", "name@example.com"),
        ("zoë", "before the @"),
        ("zoe@127.0.0.1", "not the address of a computer"),
    ] {
        let problem = email_problem(text).unwrap_or_default();
        assert!(problem.contains(words), "{text}: {problem}");
    }
    assert_eq!(email_problem("zoe@xn--bcher-kva.example"), None);
    assert!(
        domain_problem("bücher.example").is_some_and(|problem| problem.contains("xn--bcher-kva.example"))
    );
    assert!(domain_problem("contoso").is_some_and(|problem| problem.contains("contoso.example")));
    assert_eq!(domain_problem("xn--bcher-kva.example"), None);
}

/// CUS-1.
#[test]
fn the_domain_of_a_customer_is_one_that_a_company_can_have() {
    for good in [
        "contoso.example",
        "contoso.test",
        "CONTOSO.Example",
        "127.example",
        "3m.example",
        "local.contoso.example",
        "localhost.contoso.example",
        "contoso.locals",
        "xn--bcher-kva.example",
        "contoso.xn--p1ai",
    ] {
        assert_eq!(domain_problem(good), None, "{good}");
    }
    for (bad, words) in [
        ("127.0.0.1", "not be an address"),
        ("8.8.8.8", "not be an address"),
        ("127.1", "not be an address"),
        ("0x7f.0x1", "not be an address"),
        ("contoso.365", "not be an address"),
        ("localhost", "host name"),
        ("2130706433", "host name"),
        ("::1", "host name"),
        ("[127.0.0.1]", "host name"),
        ("localhost.localdomain", "private network"),
        ("app.localhost", "private network"),
        ("contoso.LOCAL", "private network"),
        ("contoso.invalid", "private network"),
        ("contoso.onion", "private network"),
        ("contoso.internal", "private network"),
        ("contoso.home.arpa", "private network"),
        ("1.0.0.127.in-addr.arpa", "private network"),
    ] {
        let problem = domain_problem(bad).unwrap_or_default();
        assert!(problem.contains(words) && problem.contains("contoso.example"), "{bad}: {problem}");
    }
}

#[test]
fn a_telephone_number_has_digits_and_what_stands_between_them() {
    for good in ["1234567890", "+33 (0)1/02-03.04", "(425) 555-0100 x12", "5550100X1", "0"] {
        assert!(is_phone(good), "{good}");
    }
    for bad in
        ["", "-", "+", "x", "n/a", "4.25556E+10", "555 0100 ext. 12", "٠١٢٣", "+33\u{a0}1", "=1+1", "1;2"]
    {
        assert!(!is_phone(bad), "{bad}");
    }
}

/// ATT-8.
#[test]
fn contacts_are_the_same_when_all_four_fields_agree() {
    let known = Contact {
        first_name: "Tania".into(),
        last_name: "Carr".into(),
        email: "t@contoso.example".into(),
        phone: "555".into(),
    };
    assert!(known.is_same(&known));
    let other = || "x".to_owned();
    for (field, changed) in [
        ("first name", Contact { first_name: other(), ..known.clone() }),
        ("last name", Contact { last_name: other(), ..known.clone() }),
        ("e-mail", Contact { email: other(), ..known.clone() }),
        ("phone", Contact { phone: other(), ..known.clone() }),
    ] {
        assert!(!known.is_same(&changed) && !changed.is_same(&known), "{field}");
    }
}

#[test]
fn contacts_that_look_the_same_are_the_same() {
    let contact = |name: &str, email: &str| Contact {
        first_name: name.into(),
        last_name: name.into(),
        email: email.into(),
        phone: String::new(),
    };
    let known = contact("Zoe\u{308}", "Zoe\u{308}@Contoso.example");
    assert!(known.is_same(&contact("Zo\u{eb}", "ZO\u{cb}@contoso.example")));
    assert!(!known.is_same(&contact("Zoe", "zo\u{eb}@contoso.example")));
    assert!(!known.is_same(&contact("ZO\u{cb}", "zo\u{eb}@contoso.example")));
}

#[test]
fn countries_are_codes_in_upper_case() {
    for code in ["XK", "XJ", "XS", "XE"] {
        assert!(is_country(code), "{code}, which the vendor sells under");
    }
    assert!(is_country("FR") && is_country("US") && is_country("XK"));
    assert!(!is_country("fr") && !is_country("ZZ") && !is_country("F") && !is_country("R F"));
}

fn partner(n: u128, kind: PartnerKind) -> Partner {
    Partner {
        id: Uuid::from_u128(n),
        name: String::new(),
        kind,
        cloud: Cloud::Public,
        registered_at: Time::UNIX_EPOCH,
        support: Default::default(),
        revision: 1,
    }
}

/// The refusal names the partner that stands in the wrong place.
#[test]
fn a_provider_and_a_reseller_of_one_cloud_can_be_linked() {
    use PartnerKind::{DirectBill, IndirectProvider, IndirectReseller};
    let abroad = |partner| Partner { cloud: Cloud::Germany, ..partner };
    let provider = partner(2, IndirectProvider);
    let reseller = partner(3, IndirectReseller);
    let direct = partner(1, DirectBill);
    assert_eq!(check_link(&provider, &reseller), Ok(()));
    assert_eq!(check_link(&abroad(provider.clone()), &abroad(reseller.clone())), Ok(()));
    for (as_provider, as_reseller, wrong) in [
        (&direct, &reseller, &direct),
        (&reseller, &reseller, &reseller),
        (&provider, &direct, &direct),
        (&provider, &provider, &provider),
        (&provider, &abroad(reseller.clone()), &abroad(reseller.clone())),
    ] {
        let (partner_id, kind, cloud) = (wrong.id, wrong.kind, wrong.cloud);
        let refused = Err(Refusal::WrongPartnerKind { partner_id, kind, cloud });
        assert_eq!(check_link(as_provider, as_reseller), refused, "{as_provider:?} {as_reseller:?}");
    }
}

#[test]
fn each_kind_of_creator_enters_the_relationship_it_may() {
    let direct = partner(1, PartnerKind::DirectBill);
    let provider = partner(2, PartnerKind::IndirectProvider);
    let reseller = partner(3, PartnerKind::IndirectReseller);
    let through_both = Ok(Relationship { payer_id: provider.id, reseller_id: Some(reseller.id) });

    let alone = |partner: &Partner| Ok(Relationship { payer_id: partner.id, reseller_id: None });
    assert_eq!(relationship_of(&direct, Named::Neither), alone(&direct));
    assert_eq!(relationship_of(&provider, Named::Neither), alone(&provider));
    assert_eq!(relationship_of(&provider, Named::Reseller(reseller.id, true)), through_both);
    assert_eq!(relationship_of(&reseller, Named::Provider(provider.id, true)), through_both);

    // A refusal names the field that is wrong, or the two partners that are not linked.
    let names_wrong = |result| match result {
        Err(Refusal::Fields(bad)) => bad.into_iter().map(|bad| bad.field).collect(),
        Err(Refusal::ResellerNotLinked { provider_id, reseller_id }) => {
            vec![provider_id.to_string(), reseller_id.to_string()]
        }
        other => panic!("{other:?}"),
    };
    let not_linked = || vec![provider.id.to_string(), reseller.id.to_string()];
    let field = |name: &str| vec![name.to_owned()];
    for (creator, named, wrong) in [
        (&reseller, Named::Neither, field("provider_id")),
        (&reseller, Named::Provider(provider.id, false), not_linked()),
        (&reseller, Named::Reseller(reseller.id, true), field("provider_id")),
        (&provider, Named::Reseller(reseller.id, false), not_linked()),
        (&provider, Named::Provider(provider.id, true), field("provider_id")),
        (&direct, Named::Reseller(reseller.id, true), field("reseller_id")),
        (&direct, Named::Provider(provider.id, true), field("provider_id")),
    ] {
        assert_eq!(names_wrong(relationship_of(creator, named)), wrong, "{:?} {named:?}", creator.kind);
    }
}
