//! `gauntlet list`: the catalogue of requirements with their proofs, or the capabilities.

use std::process::ExitCode;

use gauntlet_harness::report::counted;
use gauntlet_harness::subject::Capability;
use gauntlet_suites::catalogue::{Proof, Requirement};
use serde_json::{Value, json};

use super::CommandError;
use super::select::Selection;

/// Arguments of `gauntlet list`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    selection: Selection,
    /// Print JSON instead of lines
    #[arg(long)]
    json: bool,
    /// List the capabilities that a target file may declare, instead of requirements
    #[arg(long, conflicts_with_all = ["profile", "ids"])]
    capabilities: bool,
}

/// Prints one line for each requirement and a summary, or one line for each capability.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    if args.capabilities {
        capabilities(args.json);
        return Ok(ExitCode::SUCCESS);
    }
    let requirements = args.selection.requirements().map_err(CommandError)?;
    if args.json {
        let rows: Vec<Value> = requirements.iter().map(|row| as_json(row)).collect();
        say!("{:#}", Value::from(rows));
    } else {
        for row in &requirements {
            let (keyword, proof) = (row.keyword.name(), proof_name(row.proof()));
            say!("{:<9} {keyword:<8}  {proof:<8}  {}", row.id, row.text);
        }
        say!("\n{}", summary(&requirements));
    }
    Ok(ExitCode::SUCCESS)
}

/// The name of a kind of proof.
pub(super) const fn proof_name(proof: Proof) -> &'static str {
    match proof {
        Proof::Case => "case",
        Proof::Property(_) => "property",
        Proof::Test(_) => "test",
        Proof::NotYet => "not yet",
    }
}

fn summary(requirements: &[&Requirement]) -> String {
    let proven = |kind: &str| {
        let of_kind = |row: &&&Requirement| proof_name(row.proof()) == kind;
        requirements.iter().filter(of_kind).count()
    };
    let cases = gauntlet_suites::cases::all();
    let listed = |id: &str| requirements.iter().any(|row| row.id == id);
    let of_listed = cases.iter().filter(|case| listed(case.id));
    let instances = of_listed.map(|case| case.instances.len()).sum();
    format!(
        "{}: {} by a case against any gateway, {} by a property, {} by a test, {} not proven yet; \
         the cases examine {}",
        counted(requirements.len(), "requirement", "requirements"),
        counted(proven("case"), "is proven", "are proven"),
        proven("property"),
        proven("test"),
        counted(proven("not yet"), "is", "are"),
        counted(instances, "instance", "instances"),
    )
}

fn as_json(row: &Requirement) -> Value {
    let functions = match row.proof() {
        Proof::Property(functions) | Proof::Test(functions) => functions,
        Proof::Case | Proof::NotYet => &[],
    };
    let functions: Vec<Value> = functions
        .iter()
        .map(|function| json!({"file": function.file, "name": function.name}))
        .collect();
    let cases = gauntlet_suites::cases::all();
    let case = cases.iter().find(|case| case.id == row.id);
    let instances = case.map_or(&[][..], |case| case.instances);
    json!({
        "id": row.id,
        "keyword": row.keyword.name(),
        "profiles": row.profiles,
        "text": row.text,
        "proof": proof_name(row.proof()),
        "functions": functions,
        "instances": instances,
    })
}

fn capabilities(as_json: bool) {
    if as_json {
        let rows = Capability::ALL
            .iter()
            .map(|row| json!({"name": row.name(), "claim": row.claim()}));
        say!("{:#}", Value::from_iter(rows));
        return;
    }
    for row in Capability::ALL {
        say!("{:<20} {}", row.name(), row.claim());
    }
}
