//! Pairs of certificate and key, without I/O: [`Shelf`] takes what is in the directory now, and gives what clients are shown.
//!
//! A pair that is broken takes nothing away: what was usable under its name stays until the files are whole again. Only a pair of
//! which both files are gone is gone.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;
use zeroize::Zeroizing;

/// Both files of a pair, as they are on disk.
#[derive(Debug, PartialEq, Eq)]
pub struct Files {
    /// The certificate and those that lead to its root, in PEM.
    pub chain: Vec<u8>,
    /// Its private key, in PEM.
    pub key: Zeroizing<Vec<u8>>,
}

/// What is in the directory: each pair by its name, or why it cannot be read.
pub type Listing = BTreeMap<String, Result<Files, String>>;

/// What has become of a pair.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// Clients are shown it from now on.
    Used {
        /// Its name.
        pair: String,
        /// What it is for.
        names: Vec<String>,
    },
    /// It cannot be used.
    Unusable {
        /// Its name.
        pair: String,
        /// Why.
        why: String,
        /// The one before it under this name still is.
        keeps: bool,
    },
    /// It is there no more.
    Gone {
        /// Its name.
        pair: String,
    },
}

/// All pairs of a directory.
#[derive(Debug, Default)]
pub struct Shelf(BTreeMap<String, Place>);

#[derive(Debug, Default)]
struct Place {
    seen: Option<Result<Files, String>>,
    usable: Option<Pair>,
    is_broken: bool,
}

impl Shelf {
    /// Takes note of what is there now. Returns what has changed by that.
    pub fn take(&mut self, listing: Listing) -> Vec<Change> {
        let mut changes = vec![];
        self.0.retain(|pair, _| {
            let stays = listing.contains_key(pair);
            if !stays {
                changes.push(Change::Gone { pair: pair.clone() });
            }
            stays
        });
        for (pair, files) in listing {
            let place = self.0.entry(pair.clone()).or_default();
            if place.seen.as_ref() == Some(&files) {
                continue;
            }
            let parsed = match &files {
                Ok(files) => Pair::parse(files),
                Err(why) => Err(why.clone()),
            };
            place.is_broken = parsed.is_err();
            changes.push(match parsed {
                Ok(usable) => {
                    let names = usable.names.clone();
                    place.usable = Some(usable);
                    Change::Used { pair, names }
                }
                Err(why) => Change::Unusable { pair, why, keeps: place.usable.is_some() },
            });
            place.seen = Some(files);
        }
        changes
    }

    /// What clients are shown.
    pub fn certificates(&self) -> Certificates {
        let mut certificates = Certificates::default();
        for (name, pair) in self.0.iter().filter_map(|(name, place)| Some((name, place.usable.as_ref()?))) {
            if name == DEFAULT {
                certificates.default = Some(Arc::clone(&pair.key));
            }
            for host in &pair.names {
                // Two for one name: the one that is good for longer.
                let of_name = certificates.by_name.entry(host.clone()).or_insert((pair.expires, Arc::clone(&pair.key)));
                if of_name.0 < pair.expires {
                    *of_name = (pair.expires, Arc::clone(&pair.key));
                }
            }
        }
        certificates
    }

    /// How many pairs clients are shown, and how many are broken, whether or not there is one before them.
    pub fn count(&self) -> [usize; 2] {
        let places = self.0.values();
        [places.clone().filter(|p| p.usable.is_some()).count(), places.filter(|p| p.is_broken).count()]
    }

    /// When the first of those that clients are shown runs out, in seconds of Unix time.
    pub fn expires(&self) -> Option<i64> {
        self.0.values().filter_map(|place| Some(place.usable.as_ref()?.expires)).min()
    }
}

/// A usable pair.
#[derive(Debug)]
struct Pair {
    /// Lower case; those with `*.` are for one label.
    names: Vec<String>,
    expires: i64,
    key: Arc<CertifiedKey>,
}

impl Pair {
    fn parse(files: &Files) -> Result<Self, String> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&files.chain).collect();
        let chain = chain.map_err(|error| format!("the certificate is not PEM: {error}"))?;
        let leaf =
            chain.first().ok_or("the file of the certificate holds none: expected -----BEGIN CERTIFICATE-----")?;
        // Nothing of the key's text is in the error.
        let key = PrivateKeyDer::from_pem_slice(&files.key)
            .map_err(|_| "the file of the key holds none that can be read: expected -----BEGIN PRIVATE KEY-----")?;
        let (names, expires) = subject(leaf)?;
        let key = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())
            .map_err(|error| format!("certificate and key do not go together: {error}"))?;
        Ok(Self { names, expires, key: Arc::new(key) })
    }
}

/// For which names a certificate is, and until when.
fn subject(leaf: &CertificateDer<'_>) -> Result<(Vec<String>, i64), String> {
    let (_, parsed) =
        parse_x509_certificate(leaf).map_err(|error| format!("the certificate cannot be parsed: {error}"))?;
    let names = parsed.subject_alternative_name().map_err(|error| format!("its names cannot be parsed: {error}"))?;
    let names = names.map_or(&[][..], |names| &names.value.general_names);
    let names = names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.trim_end_matches('.').to_ascii_lowercase()),
        _ => None,
    });
    Ok((names.collect(), parsed.validity().not_after.timestamp()))
}

/// Which certificate is for which name.
#[derive(Debug, Default)]
pub struct Certificates {
    by_name: HashMap<String, (i64, Arc<CertifiedKey>)>,
    default: Option<Arc<CertifiedKey>>,
}

impl Certificates {
    /// The one for `name`: of exactly that name, else of a wildcard in the place of its first label, else the one for all others.
    pub fn choose(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let of_name = name.and_then(|name| {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            let wildcard = || self.by_name.get(&format!("*.{}", name.split_once('.')?.1));
            self.by_name.get(&name).or_else(wildcard).map(|(_, key)| key)
        });
        of_name.or(self.default.as_ref()).map(Arc::clone)
    }
}

/// The pair for names that no other is for, and for clients that name none.
const DEFAULT: &str = "default";

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(names: &[&str], expires: i32) -> Files {
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.not_after = rcgen::date_time_ymd(expires, 1, 1);
        let chain = params.self_signed(&key).unwrap().pem().into_bytes();
        Files { chain, key: Zeroizing::new(key.serialize_pem().into_bytes()) }
    }

    fn again(files: &Files) -> Files {
        Files { chain: files.chain.clone(), key: files.key.clone() }
    }

    fn leaf(files: &Files) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(&files.chain).unwrap()
    }

    fn listing(pairs: Vec<(&str, Result<Files, String>)>) -> Listing {
        pairs.into_iter().map(|(name, files)| (name.to_owned(), files)).collect()
    }

    fn chosen(shelf: &Shelf, name: Option<&str>) -> Option<CertificateDer<'static>> {
        shelf.certificates().choose(name).map(|key| key.cert[0].clone())
    }

    #[test]
    fn a_name_finds_its_own_then_a_wildcard_then_the_default() {
        let (own, wild, rest) =
            (pair(&["Www.Shop.example"], 2040), pair(&["*.shop.example"], 2040), pair(&["x"], 2040));
        let [own_leaf, wild_leaf, rest_leaf] = [&own, &wild, &rest].map(leaf);
        let mut shelf = Shelf::default();
        shelf.take(listing(vec![("own", Ok(own)), ("wild", Ok(wild))]));
        for (name, expected) in [
            (Some("www.shop.example"), Some(&own_leaf)),
            (Some("WWW.shop.example."), Some(&own_leaf)),
            (Some("api.shop.example"), Some(&wild_leaf)),
            // One label, not two, and not none (RFC 9525 §6.3).
            (Some("a.b.shop.example"), None),
            (Some("shop.example"), None),
            (Some("x"), None),
            (Some(""), None),
            (None, None),
        ] {
            assert_eq!(chosen(&shelf, name).as_ref(), expected, "{name:?}");
        }
        let mut shelf = Shelf::default();
        shelf.take(listing(vec![("default", Ok(rest))]));
        for name in [Some("anything.example"), Some("x"), None] {
            assert_eq!(chosen(&shelf, name).as_ref(), Some(&rest_leaf), "{name:?}");
        }
    }

    #[test]
    fn of_two_for_one_name_the_one_that_is_good_for_longer() {
        let (short, long) = (pair(&["shop"], 2039), pair(&["shop"], 2041));
        let expected = leaf(&long);
        let expires = subject(&leaf(&short)).unwrap().1;
        for names in [["a", "b"], ["b", "a"]] {
            let mut shelf = Shelf::default();
            shelf.take(listing(vec![(names[0], Ok(again(&short))), (names[1], Ok(again(&long)))]));
            assert_eq!(chosen(&shelf, Some("shop")), Some(expected.clone()));
            assert_eq!(shelf.expires(), Some(expires));
        }
    }

    #[test]
    fn a_broken_pair_keeps_what_was_there_and_says_so_once() {
        let (first, second) = (pair(&["shop"], 2040), pair(&["shop"], 2041));
        let [first_leaf, second_leaf] = [&first, &second].map(leaf);
        let mut shelf = Shelf::default();
        let used = |pair: &str| Change::Used { pair: pair.into(), names: vec!["shop".into()] };
        assert_eq!(shelf.take(listing(vec![("web", Ok(again(&first)))])), [used("web")]);
        assert_eq!(shelf.take(listing(vec![("web", Ok(again(&first)))])), [], "nothing has changed");

        // Half renewed: the certificate is there, its key is not yet.
        let half = || Files { chain: second.chain.clone(), key: first.key.clone() };
        let [Change::Unusable { why, keeps: true, .. }] = &shelf.take(listing(vec![("web", Ok(half()))]))[..] else {
            panic!("a broken pair is not said to be one")
        };
        assert!(why.contains("do not go together"), "{why}");
        assert_eq!((shelf.take(listing(vec![("web", Ok(half()))])), shelf.count()), (vec![], [1, 1]));
        assert_eq!(chosen(&shelf, Some("shop")), Some(first_leaf.clone()));
        let missing = || Err("tls.key is missing".to_owned());
        assert_eq!(shelf.take(listing(vec![("web", missing())])).len(), 1);
        assert_eq!(chosen(&shelf, Some("shop")), Some(first_leaf));

        assert_eq!(shelf.take(listing(vec![("web", Ok(second))])), [used("web")]);
        assert_eq!((chosen(&shelf, Some("shop")), shelf.count()), (Some(second_leaf), [1, 0]));
        assert_eq!(shelf.take(Listing::new()), [Change::Gone { pair: "web".into() }]);
        assert_eq!((chosen(&shelf, Some("shop")), shelf.count(), shelf.expires()), (None, [0, 0], None));
    }

    #[test]
    fn what_is_no_pair_says_what_is_missing_and_nothing_of_a_key() {
        let good = pair(&["shop"], 2040);
        let secret = String::from_utf8_lossy(&good.key).lines().nth(1).unwrap().to_owned();
        let files = |chain: &[u8], key: &[u8]| Files { chain: chain.to_vec(), key: Zeroizing::new(key.to_vec()) };
        let bad = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (files, expected) in [
            (files(b"", &good.key), "BEGIN CERTIFICATE"),
            (files(&good.chain, b""), "BEGIN PRIVATE KEY"),
            (files(&good.chain, &good.key[..good.key.len() / 2]), "BEGIN PRIVATE KEY"),
            (files(&good.key, &good.chain), "BEGIN CERTIFICATE"),
            (files(bad, &good.key), "cannot be parsed"),
        ] {
            let why = Pair::parse(&files).unwrap_err();
            assert!(why.contains(expected) && !why.contains(&secret), "{why}");
        }
    }
}
