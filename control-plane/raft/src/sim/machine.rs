//! The replicated state of the simulation: every command ever applied, so that nothing can hide.

use crate::machine::StateMachine;

/// All applied commands with their log index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct History(pub(crate) Vec<(u64, u64)>);

impl StateMachine for History {
    fn apply(&mut self, log_index: u64, command: &[u8]) -> Vec<u8> {
        let id = u64::from_be_bytes(command.try_into().unwrap());
        self.0.push((log_index, id));
        id.to_be_bytes().to_vec()
    }

    fn snapshot(&self) -> Vec<u8> {
        self.0.iter().flat_map(|(log_index, id)| [log_index.to_be_bytes(), id.to_be_bytes()]).flatten().collect()
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), String> {
        let (words, []) = snapshot.as_chunks::<16>() else { return Err("not whole pairs".into()) };
        let word = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().unwrap());
        self.0 = words.iter().map(|pair| (word(&pair[..8]), word(&pair[8..]))).collect();
        Ok(())
    }
}
