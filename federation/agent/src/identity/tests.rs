//! With a store in memory. Joining, and two replicas with one token, are tested against a real control plane, beside it.

use std::sync::{Mutex, PoisonError};

use archipelago_identity::{SpiffeId, testing::TestAuthority};
use tokio::sync::watch;

use super::*;

/// Fails so many times before it works.
struct Memory {
    held: Mutex<Option<Vec<u8>>>,
    failing: Mutex<u32>,
    stored: watch::Sender<u32>,
}

impl Memory {
    fn new(held: Option<Vec<u8>>, failing: u32) -> Arc<Self> {
        Arc::new(Self { held: Mutex::new(held), failing: Mutex::new(failing), stored: watch::Sender::new(0) })
    }

    fn held(&self) -> Option<Credential> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).clone();
        held.map(|pem| Credential::from_pem(&pem, Path::new("memory")).unwrap())
    }

    fn fail(&self) -> anyhow::Result<()> {
        let mut failing = self.failing.lock().unwrap();
        if *failing > 0 {
            *failing -= 1;
            bail!("the API server is away");
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl IdentityStore for Memory {
    async fn load(&self) -> anyhow::Result<Option<Vec<u8>>> {
        self.fail()?;
        Ok(self.held.lock().unwrap().clone())
    }

    async fn store(&self, identity: &[u8]) -> anyhow::Result<()> {
        self.fail()?;
        *self.held.lock().unwrap() = Some(identity.to_vec());
        self.stored.send_modify(|count| *count += 1);
        Ok(())
    }
}

const PARIS: Expected<'static> = Expected { cluster: "paris", name: "agent" };

fn paris(authority: &TestAuthority, hours: u64) -> Credential {
    let id = SpiffeId::agent(authority.trust_domain(), "paris", "agent");
    authority.issue_for(&id, Duration::from_secs(hours * 3_600))
}

async fn obtained(dir: &CredentialDir, memory: &Arc<Memory>) -> anyhow::Result<Credential> {
    let store: Arc<dyn IdentityStore> = Arc::clone(memory) as Arc<dyn IdentityStore>;
    Ok(Credential::clone(&obtain(dir, &store, None, &PARIS).await?.current()))
}

#[tokio::test]
async fn the_identity_that_lasts_longer_is_used_and_is_then_in_both_places() {
    let authority = TestAuthority::new("mesh.example");
    let (short, long) = (paris(&authority, 1), paris(&authority, 2));
    let cases = [
        (None, Some(&short), &short),
        (Some(&short), None, &short),
        (Some(&long), Some(&short), &long),
        (Some(&short), Some(&long), &long),
    ];
    for (on_disk, stored, expected) in cases {
        let temp = tempfile::tempdir().unwrap();
        let dir = CredentialDir::new(temp.path());
        if let Some(credential) = on_disk {
            dir.store(credential).unwrap();
        }
        let memory = Memory::new(stored.map(|credential| credential.to_pem().as_bytes().to_vec()), 0);
        let used = obtained(&dir, &memory).await.unwrap();
        for credential in [used, dir.load().unwrap().unwrap(), memory.held().unwrap()] {
            assert_eq!((credential.chain, credential.bundle), (expected.chain.clone(), expected.bundle.clone()));
        }
    }
}

#[tokio::test]
async fn what_is_another_agents_or_damaged_is_refused_and_kept_out() {
    let authority = TestAuthority::new("mesh.example");
    let temp = tempfile::tempdir().unwrap();
    let dir = CredentialDir::new(temp.path());
    let tokyo =
        authority.issue_for(&SpiffeId::agent(authority.trust_domain(), "tokyo", "agent"), Duration::from_secs(3_600));
    let memory = Memory::new(Some(tokyo.to_pem().as_bytes().to_vec()), 0);
    let error = format!("{:#}", obtained(&dir, &memory).await.unwrap_err());
    assert!(error.contains("cluster/tokyo/agent/agent, but this is agent agent of cluster paris"), "{error}");
    assert!(dir.load().unwrap().is_none());

    let whole = paris(&authority, 1).to_pem().to_string();
    let (own, bundle) = whole.split_once("# trust bundle\n").unwrap();
    for damaged in [own, bundle, "", &whole.replace("PRIVATE", "PUBLIC")] {
        let memory = Memory::new(Some(damaged.as_bytes().to_vec()), 0);
        let error = format!("{:#}", obtained(&dir, &memory).await.unwrap_err());
        assert!(error.contains("the stored identity is damaged; remove it"), "{error}");
    }
    let nothing = format!("{:#}", obtained(&dir, &Memory::new(None, 0)).await.unwrap_err());
    assert!(nothing.contains("give a join token"), "{nothing}");
}

#[tokio::test]
async fn a_store_that_is_away_is_waited_for_and_renewals_reach_it() {
    let authority = TestAuthority::new("mesh.example");
    let temp = tempfile::tempdir().unwrap();
    let dir = CredentialDir::new(temp.path());
    let first = paris(&authority, 1);
    let memory = Memory::new(Some(first.to_pem().as_bytes().to_vec()), 3);
    assert_eq!(obtained(&dir, &memory).await.unwrap().chain, first.chain);

    let credential = LiveCredential::new(first).unwrap();
    let (trigger, shutdown) = Shutdown::manual();
    let store: Arc<dyn IdentityStore> = Arc::clone(&memory) as Arc<dyn IdentityStore>;
    let keeping = tokio::spawn(keep_stored(store, credential.clone(), shutdown));
    let renewed = paris(&authority, 2);
    *memory.failing.lock().unwrap() = 2;
    credential.replace(renewed.clone()).unwrap();
    let mut stored = memory.stored.subscribe();
    while memory.held().unwrap().chain != renewed.chain {
        stored.changed().await.unwrap();
    }
    trigger.request();
    keeping.await.unwrap();
}
