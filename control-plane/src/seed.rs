//! Fills the data directory of a member that begins, from what the founding made.
//!
//! For orchestrators that give a member an empty disk: run before each start, it does something only at the first. The directory of a
//! member that has begun is never filled again, also when it was lost: the marker outside of it says so, and the member would
//! vote against what it had promised.
//!
//! ```text
//! from/federation.json  ca.sealed     the same for all members
//! from/seal-<id>.key                  opens this member's share
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use archipelago_base::durable;

use crate::{
    bootstrap::{FEDERATION_FILE, SEALED_FILE, read_federation, read_sealed, seal_key_file},
    ca::SealKey,
    started::marker,
};

/// What to fill, and from where.
#[derive(Debug, Clone, clap::Args)]
pub struct Seed {
    /// Raft id of the member.
    #[arg(long)]
    pub node_id: u64,
    /// Directory with federation.json, ca.sealed and seal-<ID>.key.
    #[arg(long)]
    pub from: PathBuf,
    /// The member's data directory.
    #[arg(long)]
    pub data_dir: PathBuf,
    /// File that remembers that this member was started, as it is given to `run`.
    #[arg(long)]
    pub marker: Option<PathBuf>,
    /// Where to put the member's seal key, readable by nobody else; written at every start.
    #[arg(long, value_name = "FILE")]
    pub seal_key_out: PathBuf,
}

/// Puts the seal key in its place, and fills the data directory if the member has not begun.
///
/// # Errors
/// The member began elsewhere or lost its disk; nothing to begin with; a disk that cannot be written.
pub fn seed(seed: &Seed) -> anyhow::Result<()> {
    let federation = |dir: &Path| dir.join(FEDERATION_FILE).exists().then(|| read_federation(dir)).transpose();
    let (here, given) = (federation(&seed.data_dir)?, federation(&seed.from)?);
    // Who has begun stays who it is, whatever is there to begin with by now.
    let of = here.as_ref().or(given.as_ref());
    let member = of.and_then(|federation| federation.member(seed.node_id)).map_or(seed.node_id, |member| member.id);
    put_seal_key(seed, member)?;
    if seed.data_dir.join(FEDERATION_FILE).exists() {
        let federation = read_federation(&seed.data_dir)?;
        tracing::info!(federation = federation.federation, member, "this member has its data directory already");
        return Ok(());
    }
    let marker = seed.marker.clone().unwrap_or_else(|| marker(&seed.data_dir));
    if let Some(federation) = &given {
        let members: Vec<u64> = federation.members.iter().map(|member| member.id).collect();
        if let Some(replaced) = archipelago_raft::forget_replaced(&marker, &federation.federation, &members)? {
            tracing::info!(replaced, member, "another member begins in the place of one that was lost");
        }
    }
    archipelago_raft::refuse_lost(&seed.data_dir, &marker)?;
    ensure!(
        seed.from.join(FEDERATION_FILE).exists(),
        "{} is empty and {} holds nothing to begin with\nhint: apply what `meshctl install --control-plane` printed at the founding",
        seed.data_dir.display(),
        seed.from.display()
    );
    let federation = read_federation(&seed.from)?;
    let sealed = read_sealed(&seed.from)?;
    ensure!(sealed.trust_domain == federation.trust_domain, "ca.sealed and federation.json are of two federations");
    ensure!(federation.member(seed.node_id).is_some(), "member {} does not belong to this federation", seed.node_id);
    create_private(&seed.data_dir)?;
    // Last the file that makes the directory complete.
    for name in [SEALED_FILE, FEDERATION_FILE] {
        let bytes = fs::read(seed.from.join(name)).with_context(|| format!("cannot read {name}"))?;
        let path = seed.data_dir.join(name);
        durable::write(&path, &bytes, 0o600).with_context(|| format!("cannot write {}", path.display()))?;
    }
    tracing::info!(federation = federation.federation, member, "this member begins");
    Ok(())
}

/// A mounted Secret is readable by a group, which a seal key must not be. An orchestrator names it by place.
fn put_seal_key(seed: &Seed, member: u64) -> anyhow::Result<()> {
    let own = seal_key_file(&seed.from, member);
    let from = if own.exists() { own } else { seal_key_file(&seed.from, seed.node_id) };
    let text = match fs::read(&from) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // The member serves without it and says that it cannot issue certificates.
            tracing::warn!(path = %from.display(), "there is no seal key for this member");
            return Ok(());
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", from.display())),
    };
    let path = &seed.seal_key_out;
    durable::write(path, &text, 0o600).with_context(|| format!("cannot write {}", path.display()))?;
    SealKey::load(path).map(drop).with_context(|| format!("{} holds no seal key", from.display()))
}

fn create_private(directory: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("cannot create {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::bootstrap::{Plan, bootstrap, member_dir};

    fn founded(out: &Path) -> Seed {
        let members = ["1=a:7400/a:7401".parse().unwrap(), "2=b:7400/b:7401".parse().unwrap()].to_vec();
        let plan = Plan {
            seal_key_dir: Some(out.join("from")),
            ..Plan::new("mesh.example".parse().unwrap(), members, out.to_owned())
        };
        bootstrap(&plan).unwrap();
        for name in [FEDERATION_FILE, SEALED_FILE] {
            fs::copy(member_dir(out, 1).join(name), out.join("from").join(name)).unwrap();
        }
        Seed {
            node_id: 2,
            from: out.join("from"),
            data_dir: out.join("disk/member"),
            marker: Some(out.join("marker")),
            seal_key_out: out.join("run/seal.key"),
        }
    }

    #[test]
    fn an_empty_disk_is_filled_once_and_the_key_is_nobody_elses() {
        let out = tempfile::tempdir().unwrap();
        let plan = founded(out.path());
        fs::create_dir_all(out.path().join("run")).unwrap();
        // As a Secret is mounted for a group.
        fs::set_permissions(plan.from.join("seal-2.key"), fs::Permissions::from_mode(0o440)).unwrap();
        seed(&plan).unwrap();
        assert_eq!(fs::metadata(&plan.seal_key_out).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(plan.data_dir.join(SEALED_FILE).exists());

        fs::write(plan.data_dir.join("log"), "history").unwrap();
        fs::remove_file(plan.from.join(FEDERATION_FILE)).unwrap();
        seed(&plan).unwrap();
        assert_eq!(fs::read_to_string(plan.data_dir.join("log")).unwrap(), "history");
    }

    #[test]
    fn a_lost_disk_is_not_filled_again() {
        let out = tempfile::tempdir().unwrap();
        let plan = founded(out.path());
        fs::create_dir_all(out.path().join("run")).unwrap();
        // Whatever is there remembers a start; what cannot be read is no reason to begin again.
        fs::write(out.path().join("marker"), "damaged").unwrap();
        let error = format!("{:#}", seed(&plan).unwrap_err());
        assert!(error.contains("marker"), "{error}");
        assert!(!plan.data_dir.exists());
    }

    #[test]
    fn nothing_to_begin_with_says_what_to_apply() {
        let out = tempfile::tempdir().unwrap();
        let plan = Seed { node_id: 3, ..founded(out.path()) };
        let error = seed(&plan).unwrap_err().to_string();
        assert!(error.contains("member 3 does not belong"), "{error}");
        fs::remove_file(plan.from.join(FEDERATION_FILE)).unwrap();
        let error = seed(&plan).unwrap_err().to_string();
        assert!(error.contains("meshctl install --control-plane"), "{error}");
    }
}
