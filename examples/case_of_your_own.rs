//! Examines a gateway by a case of your own.
//!
//!     cargo build
//!     cargo run --example case_of_your_own -- fixtures/targets/bundled.toml target/debug/gauntlet
//!
//! A case is a requirement, what it needs of a gateway, and a proof by the order of events. This
//! one holds the provider's answer at a gate, and opens the gate only after a second client was
//! answered.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use gauntlet_harness::case::{Case, CaseResult, Ctx, Level, Profile, Verdict, equal};
use gauntlet_harness::llm::{chat, reply};
use gauntlet_harness::plan::Plan;
use gauntlet_harness::runner::examine;
use gauntlet_harness::spec::Spec;
use gauntlet_harness::subject::{Capability, TargetFile};

const OVERTAKES: Case = Case {
    id: "MINE-01",
    level: Level::Must,
    profiles: &[Profile::Llm],
    requirement: "a slow answer does not delay the next request to the same model",
    why: "One long answer must not stop everybody else.",
    shown: "The provider holds its first answer at a gate until a second client has been answered.",
    remedy: "Forward each request as a task of its own.",
    needs: &[Capability::Chat],
    reaches: &[],
    instances: &["plain"],
    spec: Spec::solo,
    run: &overtakes,
};

async fn overtakes(ctx: &Ctx) -> CaseResult {
    // given: the provider holds the answer to "slow" and answers everything else at once
    let provider = ctx.stub("p1")?;
    let held = reply("late").plan(Plan::held("late"));
    provider.mount(chat().user_says("slow"), held).await;
    provider.answers(reply("at once"));
    // when
    ctx.instance("plain");
    let slow = ctx.client.send_chat(ctx.prompt("solo", "slow")).await?;
    provider.held(1).await?;
    let quick = ctx.client.chat(ctx.prompt("solo", "quick")).await?;
    // then: the second client has its answer while the first one's is still held
    equal(
        "quick.status",
        "the status of the quick request",
        200,
        quick.status,
    )?;
    ctx.gates.gate("late").open();
    let slow = slow.reply().await?;
    equal(
        "slow.status",
        "the status of the slow request",
        200,
        slow.status,
    )
}

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(file), Some(program)) = (arguments.next(), arguments.next()) else {
        return Err("give the path of a target file and the path of the gauntlet program".into());
    };
    let target = TargetFile::load(Path::new(&file))?.into_target(PathBuf::from(program))?;
    let outcome = examine(&target, &OVERTAKES, None).await;
    println!("{}: {:?}", OVERTAKES.id, outcome.verdict);
    let passed = outcome.verdict == Verdict::Passed;
    Ok(if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
