//! What a target file states about a gateway that nobody can configure, one row each.
//!
//! A capability is something that a gateway can do; a row here is something that it always does.
//! The harness and the cases read it, so that no case accuses a gateway of what it documents. The
//! keys of `[behaviour]` in target files and the table of `fixtures/targets/README.md` come from
//! these rows.

use super::stated::stated;

#[rustfmt::skip] // a row is a key with its default, and a sentence
stated! {
    /// What a gateway always does, whatever is configured.
    #[derive(Copy)]
    Behaviour;
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
    goes_on_after_sighup: bool = false
        "SIGHUP ends nothing: the gateway goes on and takes new requests. Without it the gateway may \
         also finish what is in flight and end."
    revoked_key_ms: u64 = 0
        "How long the gateway may accept a key of a client after its revocation, in milliseconds, \
         also while its database does not answer: its stated cache time."
}

#[cfg(test)]
mod tests {
    use super::Behaviour;
    use crate::subject::stated::assert_table_of_the_readme;

    #[test]
    fn the_readme_of_the_target_files_lists_exactly_these_rows() {
        let rows = Behaviour::ROWS.iter().map(|(key, default, claim)| {
            format!("| `{key}` | `{}` | {claim} |", default.replace('_', ""))
        });
        assert_table_of_the_readme("| `[behaviour]` | default |", rows);
    }
}
