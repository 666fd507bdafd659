//! When what identifies somebody ends: certificates and tokens. So it can be told before it happens.

use tokio_rustls::rustls::pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::der::Decode;

/// For how long something identifies somebody, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// What it is to this process: one of a few names, which metrics are labelled with.
    pub name: &'static str,
    /// From when, if it says so.
    pub begins: Option<i64>,
    /// Until when.
    pub ends: i64,
}

impl Validity {
    /// Of several certificates the one that ends first: of a chain all have to hold, and of a list of authorities
    /// somebody may need each. One that cannot be read here is told of by nothing but a warning, since only
    /// those who verify it say whether it is of use.
    pub(crate) fn of_certificates(name: &'static str, certificates: &[CertificateDer<'_>]) -> Option<Self> {
        let read = |certificate: &CertificateDer<'_>| {
            let certificate = Certificate::from_der(certificate)
                .inspect_err(|error| tracing::warn!(%error, name, "when a certificate ends cannot be read"))
                .ok()?;
            let validity = certificate.tbs_certificate().validity();
            let [begins, ends] = [validity.not_before, validity.not_after]
                .map(|time| i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX));
            Some(Self { name, begins: Some(begins), ends })
        };
        certificates.iter().filter_map(read).min_by_key(|credential| credential.ends)
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn until(year: i32) -> CertificateDer<'static> {
        let mut params = CertificateParams::new([]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(year, 1, 1));
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn of_several_certificates_the_first_that_ends_counts() {
        let all = [until(2040), until(2002), until(9999)];
        let told = Validity { name: "some", begins: Some(978_307_200), ends: 1_009_843_200 };
        assert_eq!(Validity::of_certificates("some", &all), Some(told));
        assert_eq!(Validity::of_certificates("some", &all[1..]), Some(told));
        let ends = |year| Validity::of_certificates("some", &[until(year)]).unwrap().ends;
        // From 2050 on certificates write years in another way.
        assert_eq!([ends(2049), ends(2050), ends(9999)], [2_493_072_000, 2_524_608_000, 253_370_764_800]);
        let nonsense = CertificateDer::from(vec![0x30, 0]);
        assert_eq!(Validity::of_certificates("some", std::slice::from_ref(&nonsense)), None);
        assert_eq!(Validity::of_certificates("some", &[nonsense, until(2002)]), Some(told));
    }
}
