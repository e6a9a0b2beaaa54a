//! The timeouts that a gateway can be given: one set of them for all aliases where it has only one,
//! and multiples of its unit.

use super::Capability;
use crate::gate::hang_guard;
use crate::spec::{Spec, Timeouts};

/// How finely a gateway can be given timeouts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Granularity {
    /// Whether each alias can have timeouts of its own.
    pub(super) per_model: bool,
    /// The milliseconds of which each timeout is a multiple; never 0.
    pub(super) unit_ms: u64,
}

impl Granularity {
    /// Checks that the case can live with such timeouts.
    ///
    /// # Errors
    /// A sentence that names the timeouts that the gateway cannot be given.
    pub(super) fn accepts(self, spec: &Spec) -> Result<(), String> {
        self.has_one_set_of_timeouts(spec)?;
        let of_models = spec
            .timeouts_in_force()
            .map(|(model, timeouts)| (timeouts, format!(" for the alias {}", model.alias)));
        let usual = Spec::default().timeouts.connect_ms;
        for (timeouts, whose) in of_models.chain([(spec.timeouts, String::new())]) {
            // a stub takes connections at once, unless the case examines the connect timeout
            let connect_ms = timeouts.connect_ms.filter(|_| timeouts.connect_ms != usual);
            let named = Timeouts {
                connect_ms,
                ..timeouts
            }
            .named();
            for (first, a) in named {
                for (second, b) in named {
                    if let (Some(a), Some(b)) = (a, b)
                        && a < b
                        && a.next_multiple_of(self.unit_ms) == b.next_multiple_of(self.unit_ms)
                    {
                        return Err(format!(
                            "the case needs {first} = {a} and {second} = {b}{whose}, which are equal in \
                             multiples of {} ms (behaviour.timeout_unit_ms of the target file)",
                            self.unit_ms
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// Checks that one set of timeouts for all aliases serves the case, if the target has only one:
    /// no timeout is both one that the case waits for and one beyond the hang guard. The case waits
    /// for no timeout that it leaves at its default.
    fn has_one_set_of_timeouts(self, spec: &Spec) -> Result<(), String> {
        if self.per_model {
            return Ok(());
        }
        let guard = u64::try_from(hang_guard().as_millis()).unwrap_or(u64::MAX);
        let all: Vec<(&str, Timeouts)> = spec
            .timeouts_in_force()
            .map(|(model, timeouts)| (model.alias.as_str(), timeouts))
            .collect();
        for (n, (name, usual)) in Spec::default().timeouts.named().into_iter().enumerate() {
            let of = |such: &dyn Fn(u64) -> bool| {
                all.iter().find_map(|(alias, timeouts)| {
                    timeouts.named()[n]
                        .1
                        .filter(|value| such(*value))
                        .map(|value| (*alias, value))
                })
            };
            if let (Some((short, a)), Some((long, b))) = (
                of(&|value| value <= guard && Some(value) != usual),
                of(&|value| value > guard),
            ) {
                return Err(format!(
                    "the case needs {name} = {a} for the alias {short} and {name} = {b} for the alias \
                     {long}, and the target does not declare `{}`",
                    Capability::TimeoutPerModel
                ));
            }
        }
        Ok(())
    }

    /// Gives the case such timeouts: where there is one set, it has the longest ones, and each is
    /// rounded up to a multiple of the unit.
    pub(super) fn adapt(self, spec: &mut Spec) {
        if !self.per_model {
            // the longest, so that nothing ends what the case wants to last
            let longest = spec
                .timeouts_in_force()
                .map(|(_, timeouts)| timeouts)
                .reduce(|a, b| a.zipped(b, Option::max));
            spec.timeouts = longest.unwrap_or(spec.timeouts);
        }
        let of_providers = spec.providers.iter_mut().map(|one| &mut one.timeouts);
        let of_models = spec.models.iter_mut().map(|one| &mut one.timeouts);
        for timeouts in of_providers.chain(of_models).chain([&mut spec.timeouts]) {
            let whole = |value: u64| value.next_multiple_of(self.unit_ms);
            *timeouts = timeouts.zipped(*timeouts, |value, _| value.map(whole));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{CommandTarget, Target, TargetFile};
    use super::*;

    #[test]
    fn a_gateway_without_timeouts_per_model_has_those_of_the_case_for_all_aliases() {
        let with = |capabilities: &str| {
            let file = format!(
                "name = \"t\"\ncapabilities = [{capabilities}]\n[start]\ncommand = [\"x\"]\n"
            );
            let file = TargetFile::parse(&file, "t.toml").unwrap();
            CommandTarget::new(file, "gauntlet".into()).unwrap()
        };
        let (per_model, alone) = (with("\"timeout_per_model\""), with(""));
        // whoever leaves must be noticed before any timeout closes the connection
        let patient = Spec::solo().model_timeouts("solo", Timeouts::PATIENT);
        assert_eq!(alone.accepts(&patient), Ok(()));
        assert_eq!(
            alone.adapted(patient.clone()).timeouts.total_ms,
            Some(60_000)
        );
        assert_eq!(per_model.adapted(patient.clone()), patient);
        let short = |total_ms| Timeouts {
            total_ms: Some(total_ms),
            ..Timeouts::default()
        };
        let pair = Spec::pair()
            .provider_timeouts("p1", short(900))
            .provider_timeouts("p2", short(2_000));
        assert_eq!(alone.accepts(&pair), Ok(()));
        assert_eq!(alone.adapted(pair).timeouts.total_ms, Some(2_000));
        let patient_first = Spec::pair().provider_timeouts(
            "p1",
            Timeouts {
                first_token_ms: Some(900),
                ..Timeouts::PATIENT
            },
        );
        assert_eq!(alone.accepts(&patient_first), Ok(()));
        let adapted = alone.adapted(patient_first).timeouts;
        assert_eq!(
            (adapted.first_token_ms, adapted.idle_ms),
            (Some(3_000), Some(60_000))
        );
        let mixed = Spec::pair()
            .provider_timeouts("p1", short(900))
            .provider_timeouts("p2", short(60_000));
        assert_eq!(
            alone.accepts(&mixed).unwrap_err(),
            "the case needs total_ms = 900 for the alias pair and total_ms = 60000 for the alias pair, \
             and the target does not declare `timeout_per_model`"
        );
        assert_eq!(per_model.accepts(&mixed), Ok(()));
    }

    #[test]
    fn timeouts_are_rounded_up_to_whole_units_unless_two_become_equal() {
        let file =
            "name = \"t\"\n[start]\ncommand = [\"x\"]\n[behaviour]\ntimeout_unit_ms = 1000\n";
        let file = TargetFile::parse(file, "t.toml").unwrap();
        let target = CommandTarget::new(file, "gauntlet".into()).unwrap();
        let own = |first_token_ms, total_ms| {
            let own = Timeouts {
                first_token_ms: Some(first_token_ms),
                total_ms: Some(total_ms),
                ..Timeouts::default()
            };
            Spec::solo().model_timeouts("solo", own)
        };
        let fits = own(1_500, 4_000);
        assert_eq!(target.accepts(&fits), Ok(()));
        let adapted = target.adapted(fits).models[0].timeouts;
        assert_eq!(
            (adapted.first_token_ms, adapted.total_ms),
            (Some(2_000), Some(4_000))
        );
        let as_long_as_a_connection = own(3_000, 300);
        assert_eq!(
            target.accepts(&as_long_as_a_connection),
            Ok(()),
            "the target declares no timeout of the connection"
        );
        assert_eq!(
            target.accepts(&own(3_500, 3_800)).unwrap_err(),
            "the case needs first_token_ms = 3500 and total_ms = 3800 for the alias solo, which are \
             equal in multiples of 1000 ms (behaviour.timeout_unit_ms of the target file)"
        );
    }
}
