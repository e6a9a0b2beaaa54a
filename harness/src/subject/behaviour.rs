//! What a target file states about a gateway that nobody can configure, one row each.
//!
//! A capability is something that a gateway can do; a row here is something that it always does.
//! The harness and the cases read it, so that no case accuses a gateway of what it documents. The
//! keys of `[behaviour]` in target files and the table of `fixtures/targets/README.md` come from
//! these rows.

use serde::{Deserialize, Serialize};

macro_rules! behaviour {
    ($($key:ident: $type:ty = $default:literal $claim:literal)*) => {
        /// What a gateway always does, whatever is configured.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct Behaviour {
            $(
                #[doc = $claim]
                pub $key: $type,
            )*
        }

        impl Default for Behaviour {
            fn default() -> Self {
                Self { $($key: $default,)* }
            }
        }

        impl Behaviour {
            /// Every key with its default, as TOML, and what it states.
            pub const ROWS: &'static [(&'static str, &'static str, &'static str)] =
                &[$((stringify!($key), stringify!($default), $claim)),*];
        }
    };
}

#[rustfmt::skip] // a row is a key with its default, and a sentence
behaviour! {
    retries_built_in: u32 = 0
        "The number of attempts that the gateway always makes at a candidate after a failed one, \
         without a setting for it."
    benches_after_one_failure: bool = false
        "After one failure the gateway stops asking that provider for `bench_ms`, whatever its \
         failure threshold is."
    bench_ms: u64 = 1_000
        "How long the gateway stops asking a provider after one failure, in milliseconds, if \
         `benches_after_one_failure` is true."
    timeout_unit_ms: u64 = 1
        "Each timeout of the gateway is a multiple of this number of milliseconds (1000 for whole \
         seconds). The timeouts of a case are rounded up to it, and a case in which two different \
         timeouts would become equal is *not supported*."
}

#[cfg(test)]
mod tests {
    use super::Behaviour;

    #[test]
    fn the_readme_of_the_target_files_lists_exactly_these_rows() {
        let readme = include_str!("../../../fixtures/targets/README.md");
        let listed: Vec<&str> = readme
            .lines()
            .skip_while(|line| !line.starts_with("| `[behaviour]` | default |"))
            .skip(2)
            .take_while(|line| line.starts_with('|'))
            .collect();
        let rows: Vec<String> = Behaviour::ROWS
            .iter()
            .map(|(key, default, claim)| {
                format!("| `{key}` | `{}` | {claim} |", default.replace('_', ""))
            })
            .collect();
        assert_eq!(
            listed,
            rows,
            "the table of fixtures/targets/README.md has to be:\n{}",
            rows.join("\n")
        );
    }
}
