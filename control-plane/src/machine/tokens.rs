//! Join tokens: created, used once and in time, and forgotten a week after their end.

use imbl::{OrdMap, OrdSet};

use super::{
    apply::Refusal,
    command::{Answer, Consumed, Done, RefusalCode, TokenConsume, TokenCreate, role_name},
    state::{State, Token},
};

/// All tokens, also in the order of their ends.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tokens {
    all: OrdMap<[u8; 32], Token>,
    ends: OrdSet<(i64, [u8; 32])>,
}

impl Tokens {
    pub(super) fn all(&self) -> &OrdMap<[u8; 32], Token> {
        &self.all
    }

    pub(super) fn insert(&mut self, secret: [u8; 32], token: Token) {
        self.remove(&secret);
        self.ends.insert((token.expires_unix_ms, secret));
        self.all.insert(secret, token);
    }

    pub(super) fn remove(&mut self, secret: &[u8; 32]) {
        if let Some(token) = self.all.remove(secret) {
            self.ends.remove(&(token.expires_unix_ms, *secret));
        }
    }

    fn forget_before(&mut self, unix_ms: i64) {
        while let Some((end, secret)) = self.ends.get_min().copied().filter(|(end, _)| *end <= unix_ms) {
            self.ends.remove(&(end, secret));
            self.all.remove(&secret);
        }
    }
}

impl State {
    pub(super) fn token_create(&mut self, create: TokenCreate, now_unix_ms: i64) -> Result<Answer, Refusal> {
        let secret = secret_key(&create.secret_sha256)?;
        self.refuse_deleted(&create.cluster)?;
        if self.tokens.all.contains_key(&secret) {
            return Err(Refusal::of(RefusalCode::TokenExists));
        }
        self.tokens.forget_before(now_unix_ms.saturating_sub(RETENTION_MS));
        if self.tokens.all.len() >= TOKENS_MAX {
            return Err(Refusal::full(RefusalCode::TokensFull, TOKENS_MAX));
        }
        let TokenCreate { cluster, role, name, ttl_ms, .. } = create;
        let expires_unix_ms = now_unix_ms.saturating_add(ttl_ms.max(0));
        self.tokens.insert(secret, Token { cluster, role, name, expires_unix_ms, used_unix_ms: None });
        Ok(Answer::Done(Done {}))
    }

    pub(super) fn token_consume(&mut self, consume: &TokenConsume, now_unix_ms: i64) -> Result<Answer, Refusal> {
        let secret = secret_key(&consume.secret_sha256)?;
        let Some(token) = self.tokens.all.get(&secret).cloned() else {
            return Err(Refusal::of(RefusalCode::TokenUnknown));
        };
        if let Some(used) = token.used_unix_ms {
            let by = format!("/cluster/{}/{}/{}", token.cluster, role_name(token.role), token.name);
            return Err(Refusal::of(RefusalCode::TokenUsed).about(&by).at(used));
        }
        self.refuse_late(&token, now_unix_ms)?;
        let consumed = Consumed { cluster: token.cluster.clone(), role: token.role, name: token.name.clone() };
        self.tokens.insert(secret, Token { used_unix_ms: Some(now_unix_ms), ..token });
        Ok(Answer::Consumed(consumed))
    }

    /// A remembered answer is no right for ever: what has ended since does not come back by a repeated request.
    pub(super) fn refuse_spent_retry(&self, consume: &TokenConsume, now_unix_ms: i64) -> Result<(), Refusal> {
        match self.tokens.all.get(&secret_key(&consume.secret_sha256)?) {
            Some(token) => self.refuse_late(token, now_unix_ms),
            None => Err(Refusal::of(RefusalCode::TokenUnknown)),
        }
    }

    fn refuse_late(&self, token: &Token, now_unix_ms: i64) -> Result<(), Refusal> {
        self.refuse_deleted(&token.cluster)?;
        if now_unix_ms >= token.expires_unix_ms {
            return Err(Refusal::of(RefusalCode::TokenExpired).at(token.expires_unix_ms));
        }
        Ok(())
    }

    /// Takes the unspent tokens of a cluster away; spent ones stay listed.
    pub(super) fn forget_unspent_tokens(&mut self, cluster: &str) {
        let unspent: Vec<[u8; 32]> = self
            .tokens
            .all
            .iter()
            .filter(|(_, token)| token.cluster == cluster && token.used_unix_ms.is_none())
            .map(|(secret, _)| *secret)
            .collect();
        for secret in unspent {
            self.tokens.remove(&secret);
        }
    }
}

fn secret_key(sha256: &[u8]) -> Result<[u8; 32], Refusal> {
    <[u8; 32]>::try_from(sha256).map_err(|_| Refusal::of(RefusalCode::Malformed))
}

const TOKENS_MAX: usize = 10_000;
/// A used or expired token stays listed for a week, so that `token list` and refusals can say what became of it.
const RETENTION_MS: i64 = 7 * 24 * 3_600 * 1_000;
