//! What goes wrong on demand.

use std::time::Duration;

/// Something that goes wrong with requests that fit.
#[derive(Debug, Clone)]
pub struct Fault {
    pub(crate) effect: Effect,
    method: Option<String>,
    uri: Option<String>,
    left: Option<u32>,
}

#[derive(Debug, Clone)]
pub(crate) enum Effect {
    /// Answered with this status.
    Status { code: u16, retry_after: Option<u64> },
    /// The connection ends without an answer.
    Drop,
    /// Answered after this.
    Delay(Duration),
}

impl Fault {
    /// An answer with this status, and nothing done.
    #[must_use]
    pub fn status(code: u16) -> Self {
        Self::new(Effect::Status { code, retry_after: None })
    }

    /// 429 with `Retry-After`.
    #[must_use]
    pub fn busy(seconds: u64) -> Self {
        Self::new(Effect::Status { code: 429, retry_after: Some(seconds) })
    }

    /// The connection ends without an answer, and nothing was done.
    #[must_use]
    pub fn drop() -> Self {
        Self::new(Effect::Drop)
    }

    /// The answer comes late.
    #[must_use]
    pub fn delay(time: Duration) -> Self {
        Self::new(Effect::Delay(time))
    }

    /// Only requests whose path and query contain `part`.
    #[must_use]
    pub fn on(self, part: &str) -> Self {
        Self { uri: Some(part.to_owned()), ..self }
    }

    /// Only requests with this method.
    #[must_use]
    pub fn method(self, method: &str) -> Self {
        Self { method: Some(method.to_owned()), ..self }
    }

    /// Only so many times.
    #[must_use]
    pub fn times(self, times: u32) -> Self {
        Self { left: Some(times), ..self }
    }

    fn new(effect: Effect) -> Self {
        Self { effect, method: None, uri: None, left: None }
    }

    fn fits(&self, method: &str, uri: &str) -> bool {
        self.left != Some(0)
            && self.method.as_ref().is_none_or(|wanted| wanted == method)
            && self.uri.as_ref().is_none_or(|part| uri.contains(part))
    }
}

#[derive(Default)]
pub(crate) struct Faults(Vec<Fault>);

impl Faults {
    pub(crate) fn add(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn strike(&mut self, method: &str, uri: &str) -> Option<Effect> {
        let fault = self.0.iter_mut().rev().find(|fault| fault.fits(method, uri))?;
        fault.left = fault.left.map(|left| left - 1);
        Some(fault.effect.clone())
    }
}
