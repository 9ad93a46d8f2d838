//! Which traces are recorded: the samplers that OpenTelemetry names.

/// One of the standard's samplers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    /// Whoever sent the request decides, where somebody did.
    pub parent_based: bool,
    /// Decides where nobody did, or where that does not count.
    pub root: Root,
}

/// How it is decided.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Root {
    /// All.
    On,
    /// None.
    Off,
    /// Those whose id is among so many of all ids.
    Ratio(f64),
}

impl Sampler {
    /// By the names of `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`.
    ///
    /// # Errors
    /// What to write in their place.
    pub fn parse(name: &str, argument: Option<&str>) -> Result<Self, String> {
        let (parent_based, kind) = match name.strip_prefix("parentbased_") {
            Some(kind) => (true, kind),
            None => (false, name),
        };
        let root = match kind {
            "always_on" => Root::On,
            "always_off" => Root::Off,
            "traceidratio" => {
                let ratio = argument.map_or(Ok(1.0), str::parse).ok().filter(|ratio| (0.0..=1.0).contains(ratio));
                Root::Ratio(ratio.ok_or("OTEL_TRACES_SAMPLER_ARG must be a number from 0 to 1, such as 0.01")?)
            }
            _ => {
                return Err(
                    "OTEL_TRACES_SAMPLER must be always_on, always_off or traceidratio, or one of these behind \
                            parentbased_"
                        .to_owned(),
                );
            }
        };
        Ok(Self { parent_based, root })
    }

    /// Whether to record a request of this trace whose sender said whether it does.
    #[inline]
    pub fn follows(self, trace_id: u128, is_sampled: bool) -> bool {
        if self.parent_based { is_sampled } else { self.begins(trace_id) }
    }

    /// Whether to record a trace that begins here.
    #[inline]
    pub fn begins(self, trace_id: u128) -> bool {
        match self.root {
            Root::On => true,
            Root::Off => false,
            // As OpenTelemetry's own libraries have it, so that all that sample by ratio choose the same traces.
            Root::Ratio(ratio) => trace_id as u64 >> 1 < (ratio * (1_u64 << 63) as f64) as u64,
        }
    }

    /// True if no trace ever begins here.
    pub fn never_begins(self) -> bool {
        matches!(self.root, Root::Off)
    }
}

impl Default for Sampler {
    /// The standard's.
    fn default() -> Self {
        Self { parent_based: true, root: Root::On }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samplers_by_name() {
        let named = |name: &str, argument| Sampler::parse(name, argument);
        for (name, argument, parent_based, root) in [
            ("always_on", None, false, Root::On),
            ("always_off", Some("0.5"), false, Root::Off),
            ("traceidratio", Some("0.25"), false, Root::Ratio(0.25)),
            ("traceidratio", None, false, Root::Ratio(1.0)),
            ("parentbased_always_on", None, true, Root::On),
            ("parentbased_always_off", None, true, Root::Off),
            ("parentbased_traceidratio", Some("0"), true, Root::Ratio(0.0)),
        ] {
            assert_eq!(named(name, argument), Ok(Sampler { parent_based, root }), "{name}");
        }
        for (name, argument) in
            [("jaeger_remote", None), ("", None), ("traceidratio", Some("2")), ("traceidratio", Some("NaN"))]
        {
            assert!(named(name, argument).unwrap_err().contains("must be"), "{name}");
        }
        assert_eq!(Sampler::default(), named("parentbased_always_on", None).unwrap());
    }

    #[test]
    fn a_ratio_is_one_of_all_ids() {
        let sampler = Sampler::parse("traceidratio", Some("0.25")).unwrap();
        assert!(sampler.begins(0) && sampler.begins((1 << 62) - 1));
        assert!(!sampler.begins(1 << 62) && !sampler.begins(u64::MAX.into()));
        assert!(sampler.begins(u128::MAX << 64), "only the right half counts");
        let (all, none) = (Sampler::parse("traceidratio", Some("1")), Sampler::parse("traceidratio", Some("0")));
        assert!(all.unwrap().begins(u128::MAX) && !none.unwrap().begins(0));
    }

    #[test]
    fn the_parent_decides_where_it_is_asked() {
        let named = |name| Sampler::parse(name, None).unwrap();
        assert!(named("parentbased_always_off").follows(1, true) && !named("parentbased_always_on").follows(1, false));
        assert!(!named("always_off").follows(1, true) && named("always_on").follows(1, false));
    }
}
