//! Files as spreadsheets and shells write them, imported into a running server.

use chassis::auth::Caller;
use expect_test::expect;
use proto::agreement::ListAttestationsRequest;
use proto::agreement::attestation_service_client::AttestationServiceClient;
use proto::identity::{Role, TenantKind};
use proto::types::{AttestationDetails, ShownText};

use super::{PARTNER, Server, as_caller, caller, results};

/// A file by the conventions of a program. `{1}`, `{2}` and `{3}` stand for customers of its own.
struct File {
    /// The program, and how the file was saved.
    by: &'static str,
    text: &'static str,
    encode: fn(&str) -> Vec<u8>,
}

fn utf8(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

fn utf8_with_mark(text: &str) -> Vec<u8> {
    [b"\xef\xbb\xbf", text.as_bytes()].concat()
}

fn utf16(text: &str) -> Vec<u8> {
    "\u{feff}".encode_utf16().chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect()
}

fn utf16_big_endian(text: &str) -> Vec<u8> {
    "\u{feff}".encode_utf16().chain(text.encode_utf16()).flat_map(u16::to_be_bytes).collect()
}

/// For the letters used here, the first 256 of Unicode.
fn windows_1252(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect()
}

const FILES: [File; 10] = [
    File {
        by: "Excel, United States, CSV UTF-8",
        text: "CustomerTenantId,FirstName,LastName,Email,PhoneNumber,DateAgreed,PartnerAttestationCompleted\r\n\
               {1},Zo\u{eb},\"Carr, Dr.\",zoe@contoso.example,(425) 555-0100 x12,2024-05-01,TRUE\r\n\
               {2},Zo\u{eb},Carr,zoe@contoso.example,4.25556E+10,2024-05-01,TRUE\r\n\
               {3},Zo\u{eb},Carr,zoe@contoso.example,,5/1/2024,TRUE\r\n\
               ,,,,,,\r\n,,,,,,\r\n",
        encode: utf8_with_mark,
    },
    File {
        by: "Excel, France, CSV UTF-8; the last cells are empty and have no separators",
        text: "CustomerTenantId;FirstName;LastName;Email;PartnerAttestationCompleted;PhoneNumber;DateAgreed;\r\n\
               {1};Fran\u{e7}ois;\"d'H\u{e9}ricourt\";f@contoso.example;VRAI;+33\u{a0}1\u{202f}02 03;2024-05-01 10:20;\r\n\
               {2};Fran\u{e7}ois;d'H\u{e9}ricourt;f@contoso.example;FAUX;;2024-05-01;\r\n\
               ;;;;;;;\r\n\
               {3};Fran\u{e7}ois;d'H\u{e9}ricourt;f@contoso.example;VRAI\r\n",
        encode: utf8_with_mark,
    },
    File {
        by: "Excel, Germany, Unicode text",
        text: "CustomerTenantId\tFirstName\tLastName\tEmail\tDateAgreed\tPartnerAttestationCompleted\r\n\
               {1}\tJ\u{f6}rg\t\"M\u{fc}ller \"\"Sen.\"\"\"\tj@contoso.example\t2024-05-01T10:20:30\tWAHR\r\n\
               {2}\tJ\u{f6}rg\tM\u{fc}ller\tj@contoso.example\t01.05.2024\tWAHR\r\n\
               {3}\tJ\u{f6}rg\tM\u{fc}ller\tj@contoso.example\t2024-05-01\tFALSCH\r\n",
        encode: utf16,
    },
    File {
        by: "Excel, Germany, with the line that says the separator, and a title's empty row",
        text: "sep=;\r\n;;;;\r\nCustomerTenantId;FirstName;LastName;Email;DateAgreed\r\n\
               {1};J\u{f6}rg;M\u{fc}ller;j@contoso.example;2024-05-01\r\n",
        encode: utf8_with_mark,
    },
    File {
        by: "Excel, Poland, CSV in the computer's code page",
        text: "CustomerTenantId;FirstName;LastName;Email;DateAgreed\r\n\
               {1};Zoe;Carr;zoe@contoso.example;2024-05-01\r\n\
               {2};Zo\u{eb};Carr;zoe@contoso.example;2024-05-01\r\n",
        encode: windows_1252,
    },
    File {
        by: "LibreOffice, Poland, every text quoted, a line break in a cell",
        text: "\"CustomerTenantId\";\"CustomerAccountLink\";\"FirstName\";\"LastName\";\"Email\";\"DateAgreed\";\
               \"PartnerAttestationCompleted\"\n\
               \"{1}\";\"https://x.example/\na;b\";\"Stanis\u{142}aw\";\"Lem\";\"s@contoso.example\";2024-05-01;PRAWDA\n\
               \"{2}\";;\"Stanis\u{142}aw\";\"Lem\";\"s@contoso.example\";2024-05-01;FA\u{141}SZ\n\
               \"{3}\";;\"Stanis\u{142}aw\";\"Lem\";\"s@contoso.example\";2024-05-01;PRAWIE\n",
        encode: utf8,
    },
    File {
        by: "PowerShell 5, Export-Csv",
        text: "#TYPE System.Management.Automation.PSCustomObject\r\n\
               \"CustomerTenantId\",\"FirstName\",\"LastName\",\"Email\",\"PhoneNumber\",\"DateAgreed\",\
               \"PartnerAttestationCompleted\"\r\n\
               \"{1}\",\"Tania\",\"Carr\",\"t@contoso.example\",\"\",\"2024-05-01T10:20:30.1234567Z\",\"True\"\r\n\
               \"{2}\",\"Tania\",\"Carr\",\"t@contoso.example\",,\"05/01/2024 10:20:30\",\"True\"\r\n\
               \"{3}\",\"Tania\",\"Carr\",\"t@contoso.example\",\"\",\"2024-05-01T10:20:30.1234567+02:00\",\"False\"\r\n",
        encode: utf8,
    },
    File {
        by: "PowerShell 7, Export-Csv -Encoding bigendianunicode -Delimiter ';'",
        text: "\"CustomerTenantId\";\"FirstName\";\"LastName\";\"Email\";\"DateAgreed\"\r\n\
               \"{1}\";\"\u{1f600}\";\"\u{5b89}\";\"t@contoso.example\";\"2024-05-01 10:20:30Z\"\r\n",
        encode: utf16_big_endian,
    },
    File {
        by: "Google Sheets, which ends no last line",
        text: "CustomerTenantId,FirstName,LastName,Email,DateAgreed,PartnerAttestationCompleted\r\n\
               {1},Cafe\u{301},\u{639}\u{644}\u{6cc}\u{200c}\u{631}\u{636}\u{627},t@contoso.example,2024-05-01,TRUE\r\n\
               {2},T\u{200b}ania,Carr,t@contoso.example,2024-05-01,TRUE\r\n\
               {3},Tania,Carr,t@contoso.example,2024-05-01,",
        encode: utf8,
    },
    File {
        by: "Excel 2011 on a Mac, lines that end in CR, with what a partner keeps",
        text: "CustomerTenantId,FirstName,LastName,Email,DateAgreed,PartnerAttestationCompleted,JobTitle,EvidenceReference,\
               EvidenceSha256,OnBehalfOf,ExternalReference,ShownCountry,ShownLanguage,ShownSha256\r\
               {1},Tania,Carr,t@contoso.example,2024-05-01,1,CFO,Folder 7,,E-1,PO 1,FR,fr-FR,\r\
               {2},Tania,Carr,t@contoso.example,2024-05-01,no,,,,,,,,\r\
               {3},Tania,Carr,t@contoso.example,2024-05-01,1,,,E3,,,,en-US,\r",
        encode: utf8,
    },
];

/// Who is attested at each of the customers, and when.
fn attested(server: &Server, customers: &[String]) -> Vec<String> {
    let agent: Caller = caller(TenantKind::Partner, PARTNER, vec![Role::SalesAgent.into_str()]);
    chassis::lifecycle::runtime().unwrap().block_on(async {
        let mut calls = AttestationServiceClient::connect(server.address.clone()).await.unwrap();
        let mut lines = vec![];
        for (n, customer_id) in (1..).zip(customers) {
            let list = ListAttestationsRequest { customer_id: customer_id.clone(), ..Default::default() };
            let listed = calls.list_attestations(as_caller(list, &agent)).await.unwrap().into_inner();
            lines.extend(listed.attestations.into_iter().map(|attestation| {
                let (contact, at) = (attestation.contact.unwrap(), attestation.agreed_at.unwrap());
                let name = format!("{} {} {}", contact.first_name, contact.last_name, contact.phone);
                let AttestationDetails {
                    title,
                    evidence_reference,
                    on_behalf_of,
                    external_reference,
                    shown_text,
                    ..
                } = attestation.details.unwrap_or_default();
                let ShownText { country, language, .. } = shown_text.unwrap_or_default();
                let details =
                    [title, evidence_reference, on_behalf_of, external_reference, country, language];
                let details = details.join(" ");
                let line =
                    format!("customer {n}: {} at {}.{:06}", name.trim_end(), at.seconds, at.nanos / 1000);
                format!("  {line} {details}").trim_end().to_owned()
            }));
        }
        lines
    })
}

#[test]
fn files_are_read_as_spreadsheets_and_shells_write_them() {
    let server = Server::start();
    let customers: [String; 3 * FILES.len()] = server.customers();
    let mut seen = String::new();
    for (n, file) in FILES.iter().enumerate() {
        let own = &customers[3 * n..3 * n + 3];
        let text =
            (1..).zip(own).fold(file.text.to_owned(), |text, (n, id)| text.replace(&format!("{{{n}}}"), id));
        let path = server.write(&format!("{n}.csv"), (file.encode)(&text));
        let (code, said) = server.import(&path, &[]);
        seen += &format!("{}: exit {}\n", file.by, code.unwrap());
        if code == Some(2) {
            let problem = said.split_once(&format!("{n}.csv: ")).unwrap().1;
            seen += &format!("  {}\n", problem.trim());
            continue;
        }
        let mut results =
            csv::Reader::from_path(server.folder.path().join(format!("{n}.results.csv"))).unwrap();
        for record in results.records().map(Result::unwrap) {
            seen += &format!("  row {} {} {}\n", &record[0], &record[2], &record[5]).replace(" \n", "\n");
        }
        seen.extend(attested(&server, own).into_iter().map(|line| line + "\n"));
    }
    expect![[r#"
        Excel, United States, CSV UTF-8: exit 1
          row 1 STORED
          row 2 REFUSED INVALID_FIELDS: contact.phone must have digits, and between them only spaces and + ( ) - . / x
          row 3 REFUSED INVALID_FIELDS: DateAgreed must be a time such as 2026-11-21T09:30:00Z, 2026-11-21 09:30:00 or 2026-11-21, in UTC
          customer 1: Zoë Carr, Dr. (425) 555-0100 x12 at 1714521600.000000
        Excel, France, CSV UTF-8; the last cells are empty and have no separators: exit 1
          row 1 STORED
          row 2 SKIPPED PartnerAttestationCompleted is false
          row 4 REFUSED INVALID_FIELDS: DateAgreed is required
          customer 1: François d'Héricourt +33 1 02 03 at 1714558800.000000
        Excel, Germany, Unicode text: exit 1
          row 1 STORED
          row 2 REFUSED INVALID_FIELDS: DateAgreed must be a time such as 2026-11-21T09:30:00Z, 2026-11-21 09:30:00 or 2026-11-21, in UTC
          row 3 SKIPPED PartnerAttestationCompleted is false
          customer 1: Jörg Müller "Sen." at 1714558830.000000
        Excel, Germany, with the line that says the separator, and a title's empty row: exit 0
          row 1 STORED
          customer 1: Jörg Müller at 1714521600.000000
        Excel, Poland, CSV in the computer's code page: exit 2
          line 3, column FirstName: not UTF-8; save the file as CSV UTF-8
        LibreOffice, Poland, every text quoted, a line break in a cell: exit 1
          row 1 STORED
          row 2 SKIPPED PartnerAttestationCompleted is false
          row 3 REFUSED INVALID_FIELDS: PartnerAttestationCompleted must be true or false, in a language in which spreadsheets write them, or 1, 0, yes or no
          customer 1: Stanisław Lem at 1714521600.000000
        PowerShell 5, Export-Csv: exit 1
          row 1 STORED
          row 2 REFUSED INVALID_FIELDS: DateAgreed must be a time such as 2026-11-21T09:30:00Z, 2026-11-21 09:30:00 or 2026-11-21, in UTC
          row 3 SKIPPED PartnerAttestationCompleted is false
          customer 1: Tania Carr at 1714558830.123456
        PowerShell 7, Export-Csv -Encoding bigendianunicode -Delimiter ';': exit 0
          row 1 STORED
          customer 1: 😀 安 at 1714558830.000000
        Google Sheets, which ends no last line: exit 1
          row 1 STORED
          row 2 REFUSED INVALID_FIELDS: contact.first_name must not contain U+200B (character 2), which cannot be seen; leave it out
          row 3 REFUSED INVALID_FIELDS: PartnerAttestationCompleted must be true or false, in a language in which spreadsheets write them, or 1, 0, yes or no
          customer 1: Café علی‌رضا at 1714521600.000000
        Excel 2011 on a Mac, lines that end in CR, with what a partner keeps: exit 1
          row 1 STORED
          row 2 SKIPPED PartnerAttestationCompleted is false
          row 3 REFUSED INVALID_FIELDS: details.evidence_sha256 must be empty or 64 lower-case hexadecimal digits; details.shown_text.country is required
          customer 1: Tania Carr at 1714521600.000000 CFO Folder 7 E-1 PO 1 FR fr-FR
    "#]].assert_eq(&seen);
}

/// Only what a row says makes its request id: neither its file, its place, nor the rows beside it.
#[test]
fn a_corrected_cell_sends_no_other_row_again() {
    let server = Server::start();
    let [first, second, third] = server.customers();
    let row = |customer: &str, name: &str| format!("{customer},{name},Carr,t@contoso.example,2024-05-01\n");
    let header = "CustomerTenantId,FirstName,LastName,Email,DateAgreed\n";
    let rows = [row(&first, "Tania"), row(&second, "Tanja"), row(&first, "Tania"), row(&third, "Tania")];
    let results_of = |name: &str, text: String, more: &[&str]| {
        let path = server.write(&format!("{name}.csv"), text);
        server.import(&path, more);
        results(&server.folder.path().join(format!("{name}.results.csv")))
    };
    let sent = results_of("sent", header.to_owned() + &rows.concat(), &[]);
    assert_eq!(sent, ["1 STORED", "2 STORED", "3 DUPLICATE", "4 STORED"]);

    // One name is corrected, the rows are sorted, and the file is saved with other separators.
    let corrected = [row(&third, "Tania"), row(&second, "Tania"), row(&first, "Tania"), row(&first, "Tania")];
    let corrected = (header.to_owned() + &corrected.concat()).replace(',', ";");
    let sent = results_of("corrected", corrected, &[]);
    assert_eq!(sent, ["1 REPLAYED", "2 STORED", "3 REPLAYED", "4 DUPLICATE"]);

    // A file without dates means another time in each run that says so, which corrects the one before (ATT-8).
    let undated =
        format!("CustomerTenantId,FirstName,LastName,Email\n{first},Tania,Carr,u@contoso.example\n");
    let sent = |at| results_of("undated", undated.clone(), &["--agreed-at", at]);
    assert_eq!(sent("2024-05-01"), ["1 STORED"]);
    assert_eq!(sent("2024-05-01"), ["1 REPLAYED"]);
    assert_eq!(sent("2024-05-02"), ["1 STORED"]);
}
