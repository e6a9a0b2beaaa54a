//! CITE and RETR: what an answer cites was found, and what was stored can be found.

use gauntlet_harness::case::{
    CaseResult, Ctx, Deviations, Failure, FailureMode, equal, holds, silent,
};
use gauntlet_harness::llm::{error, reply};
use serde_json::{Value, json};

use super::CaseRow;
use super::support::{
    ANSWER, DOCUMENTS, PASSAGE, QUERIES, STORED, ask, complete, healthy, known, query, text,
};
use crate::agents::{AGENTS, Phase};

pub(super) const CASES: &[CaseRow] = &[
    CaseRow {
        id: "CITE-01",
        why: "Readers check an answer by its citations: one that cites what nobody found is worse \
              than an answer without any.",
        shown: "Citation, synthesis and fact check give sources that were not retrieved and quotes \
                that stand in none, beside right ones. The answer must hold the right ones alone.",
        remedy: "Look each source up among the passages that were found, and each quote in its \
                 passage, before the answer is sent.",
        needs: STORED,
        instances: &[
            "source 0",
            "a source that was not retrieved",
            "an invented quote",
            "a quote with another number",
            "a quote of two passages joined",
            "a quote of a document that was not found",
            "an empty quote",
            "a right citation beside a wrong one",
            "marks in the answer",
            "marks in the answer, citation fails",
            "marks in the answer, no source",
            "quotes of claims",
        ],
        spec: query,
        run: &cite_01,
    },
    CaseRow {
        id: "RETR-01",
        why: "Who indexes the beginning of a document, or shows each agent other passages, answers \
              from a part of what is there, and nobody sees which.",
        shown: "Words that stand only at the end of long documents are asked for, among hundreds of \
                passages with the other words of the question. Each agent must be shown the passages \
                that the answer lists, whole and in one order.",
        remedy: "Index every passage of a document, let rare words weigh more than common ones, and \
                 give all agents the list that the answer shows.",
        needs: STORED,
        instances: &[
            "the end of a document of hundreds of passages",
            "the end of a document without paragraphs",
            "the same passages for all agents",
        ],
        spec: query,
        run: &retr_01,
    },
];

/// A document that the question does not find.
const ELSEWHERE: &str = "Helium boils below all other liquids.";
/// The second passage that the question finds.
const SECOND: &str = "Who discovered polonium is the same as who discovered radium.";

async fn cite_01(ctx: &Ctx) -> CaseResult {
    let mut deviations = Deviations::new();
    // given
    healthy(ctx)?;
    deviations.note(no_source(ctx).await)?;
    known(ctx).await?;
    for (title, text) in [("Polonium", SECOND), ("Gases", ELSEWHERE)] {
        stored(ctx, title, text).await?;
    }
    let sources = sources(&complete(ctx).await?);
    let right = number_of(&sources, PASSAGE)?;
    let second = number_of(&sources, SECOND)?;
    holds(
        "sources.found",
        sources.iter().all(|(_, passage)| passage != ELSEWHERE),
        "no source that shares no word with the question",
        format_args!("{sources:?}"),
    )?;
    let joined = format!("{PASSAGE} {SECOND}");
    let wrong = [
        ("source 0", json!(0), PASSAGE),
        ("a source that was not retrieved", json!(99), PASSAGE),
        (
            "an invented quote",
            json!(right),
            "Radium was never discovered.",
        ),
        (
            "a quote with another number",
            json!(right),
            "Radium was discovered by Marie Curie in 1899.",
        ),
        (
            "a quote of two passages joined",
            json!(second),
            joined.as_str(),
        ),
        (
            "a quote of a document that was not found",
            json!(right),
            ELSEWHERE,
        ),
        ("an empty quote", json!(right), " "),
    ];
    let citation =
        |source: &Value, quote: &str| json!({"sentence": 1, "source": source, "quote": quote});
    let healthy_one = citation(&json!(right), PASSAGE);
    for (name, source, quote) in &wrong {
        // when
        let given = json!({"citations": [citation(source, quote)]});
        ctx.stub("citation")?.answers(reply(&given.to_string()));
        // then
        let examined = async { cited(&complete(ctx).await?) };
        deviations.note(ctx.examine(name, examined).await)?;
    }
    let all: Vec<Value> = wrong
        .iter()
        .map(|(_, source, quote)| citation(source, quote))
        .chain([healthy_one])
        .collect();
    ctx.stub("citation")?
        .answers(reply(&json!({ "citations": all }).to_string()));
    let examined = async {
        let answer = complete(ctx).await?;
        cited(&answer)?;
        let citations = answer["citations"].as_array();
        holds(
            "citations.kept",
            citations.is_some_and(|all| all.iter().any(|one| text(one, "quote") == PASSAGE)),
            "the right citation in the answer",
            &answer["citations"],
        )
    };
    let name = "a right citation beside a wrong one";
    deviations.note(ctx.examine(name, examined).await)?;
    healthy(ctx)?;
    marked(ctx, right)?;
    let examined = async { unmarked(&complete(ctx).await?, Some(right)) };
    deviations.note(ctx.examine("marks in the answer", examined).await)?;
    ctx.stub("citation")?.answers(error(500));
    let examined = async {
        let answer = ask(ctx).await?.json();
        unmarked(&answer, Some(right))?;
        cited(&answer)
    };
    let name = "marks in the answer, citation fails";
    deviations.note(ctx.examine(name, examined).await)?;
    healthy(ctx)?;
    deviations.note(ctx.examine("quotes of claims", claims(ctx, right)).await)?;
    deviations.result()
}

/// An answer for which nothing was found cites nothing.
async fn no_source(ctx: &Ctx) -> CaseResult {
    marked(ctx, 1)?;
    let examined = async {
        let answer = complete(ctx).await?;
        unmarked(&answer, None)?;
        cited(&answer)
    };
    ctx.examine("marks in the answer, no source", examined)
        .await?;
    healthy(ctx)
}

/// Claims of the fact check with quotes and sources that are wrong, each in its own way.
async fn claims(ctx: &Ctx, right: u64) -> CaseResult {
    const INVENTED: &str = "Radium glows in the light of the moon.";
    let claim = |source: u64, quote: &str| json!({"claim": "Radium", "source": source, "verdict": "supported", "quote": quote});
    let given =
        json!({"claims": [claim(right, INVENTED), claim(99, PASSAGE), claim(right, PASSAGE)]});
    ctx.stub("fact_check")?.answers(reply(&given.to_string()));
    let answer = complete(ctx).await?;
    let claims = answer["claims"].to_string();
    holds(
        "claims.quote",
        !claims.contains(INVENTED),
        "no claim with a quote that stands in no source",
        &claims,
    )
    .map_err(silent)?;
    equal(
        "claims.verified",
        "the field verified with a claim whose quote stands in no source",
        Some(false),
        answer["verified"].as_bool(),
    )
    .map_err(silent)
}

/// Lets synthesis mark sources that there are not, beside one that there may be.
fn marked(ctx: &Ctx, right: u64) -> CaseResult {
    let answer = json!({"answer": format!("{ANSWER} [{right}][99] So it is [47].")});
    ctx.stub("synthesis")?.answers(reply(&answer.to_string()));
    Ok(())
}

/// The answer must mark no source that there is not, and the one that there is.
fn unmarked(answer: &Value, right: Option<u64>) -> CaseResult {
    let written = text(answer, "answer");
    let marks: Vec<String> = (0..=99)
        .map(|n| format!("[{n}]"))
        .filter(|mark| written.contains(mark.as_str()))
        .collect();
    let expected: Vec<String> = right.iter().map(|n| format!("[{n}]")).collect();
    equal("answer.marks", "the marks in the answer", expected, marks).map_err(silent)
}

/// Each citation of the answer must name a source of the answer, and quote it.
fn cited(answer: &Value) -> CaseResult {
    let sources = sources(answer);
    for citation in answer["citations"].as_array().into_iter().flatten() {
        let source = citation["source"].as_u64();
        let passage = sources.iter().find(|(n, _)| Some(*n) == source);
        let Some((_, passage)) = passage else {
            return holds(
                "citations.source",
                false,
                "no citation of a source that was not retrieved",
                citation,
            )
            .map_err(silent);
        };
        let quote = single_spaced(text(citation, "quote"));
        let stands = match &citation["quote"] {
            // a mark of the writing model, which nobody has checked
            Value::Null => true,
            _ => !quote.is_empty() && single_spaced(passage).contains(&quote),
        };
        holds(
            "citations.quote",
            stands,
            "no citation with a quote that does not stand in its source",
            citation,
        )
        .map_err(silent)?;
    }
    Ok(())
}

fn single_spaced(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The sources of an answer, with their numbers.
fn sources(answer: &Value) -> Vec<(u64, String)> {
    let sources = answer["sources"].as_array().into_iter().flatten();
    let row = |source: &Value| Some((source["n"].as_u64()?, text(source, "passage").to_owned()));
    sources.filter_map(row).collect()
}

/// The number of the source whose passage this is.
fn number_of(sources: &[(u64, String)], passage: &str) -> Result<u64, Failure> {
    let source = sources.iter().find(|(_, text)| text == passage);
    source.map(|(n, _)| *n).ok_or_else(|| Failure::Violated {
        fact: "sources.passage".into(),
        expected: format!("a source with the passage {passage:?}"),
        observed: format!("{sources:?}"),
        mode: FailureMode::Visible,
    })
}

async fn stored(ctx: &Ctx, title: &str, text: &str) -> CaseResult {
    let document = json!({"title": title, "text": text});
    let answer = ctx.client.post(DOCUMENTS, document).await?;
    equal(
        "document.status",
        "the status of a document that is handed in",
        201,
        answer.status,
    )
}

/// Three words that stand at the beginning, in the middle and at the end of a passage, and nowhere
/// else.
fn words_of(passage: usize) -> [String; 3] {
    ["begin", "middle", "finish"].map(|part| format!("{part}canary{passage}x"))
}

async fn retr_01(ctx: &Ctx) -> CaseResult {
    const END: &str = "The boiling point of the rare zyxite is 4711 degrees.";
    const LAST: &str = "The only quuxium of the house is in the drawer of the kitchen.";
    const SAMPLES: usize = 5;
    let mut deviations = Deviations::new();
    // given
    healthy(ctx)?;
    let filler = "What the point of the rest is, is what the rest of the book is about. ";
    let paragraph = filler.repeat(16);
    let long = format!("{}{END}", format!("{}\n\n", paragraph.trim()).repeat(400));
    let unbroken = format!("{}{LAST}", filler.repeat(600));
    stored(ctx, "Book", &long).await?;
    stored(ctx, "House", &unbroken).await?;
    let mut canaries: Vec<String> = Vec::new();
    for n in 0..SAMPLES {
        let [begin, middle, finish] = words_of(n);
        let stone = "It is a stone. ".repeat(20);
        let sample = format!(
            "{begin} What is the boiling point of zyxite of sample {n}? {stone}{middle} {stone}{finish}"
        );
        stored(ctx, &format!("Sample {n}"), &sample).await?;
        canaries.extend([begin, middle, finish]);
    }
    canaries.push("4711".into());
    // when
    let question = format!("What is the boiling point of the zyxite? [{}]", ctx.nonce);
    let answer = asked(ctx, &question).await?;
    // then
    let listed: Vec<String> = sources(&answer)
        .into_iter()
        .map(|(_, passage)| passage)
        .collect();
    let examined = async {
        holds(
            "end.sources",
            listed.iter().any(|passage| passage.contains(END)),
            "a source that holds the last sentence of the document",
            format_args!("{} other sources", listed.len()),
        )
        .map_err(silent)
    };
    let name = "the end of a document of hundreds of passages";
    deviations.note(ctx.examine(name, examined).await)?;
    let shown = in_order_of(&canaries, &listed.join("\n"));
    let examined = async {
        let mut agents = Deviations::new();
        for agent in AGENTS
            .iter()
            .filter(|agent| agent.phase > Phase::BesideRetrieval)
        {
            agents.note(shown_to(ctx, agent.name, &canaries, &shown))?;
        }
        agents.result()
    };
    let name = "the same passages for all agents";
    deviations.note(ctx.examine(name, examined).await)?;
    let examined = async {
        let answer = asked(ctx, "Where is the quuxium of the house?").await?;
        let sources = sources(&answer);
        holds(
            "unbroken.sources",
            sources.iter().any(|(_, passage)| passage.contains(LAST)),
            "a source that holds the last sentence of the document",
            format_args!("{} other sources", sources.len()),
        )
        .map_err(silent)
    };
    let name = "the end of a document without paragraphs";
    deviations.note(ctx.examine(name, examined).await)?;
    deviations.result()
}

/// Asks a question that must be answered; nothing may be missing.
async fn asked(ctx: &Ctx, question: &str) -> Result<Value, Failure> {
    let answer = ctx
        .client
        .post(QUERIES, json!({ "question": question }))
        .await?;
    equal(
        "answer.status",
        "the status of a query that misses nothing",
        200,
        answer.status,
    )?;
    equal(
        "query.status",
        "the status field of the query",
        "complete",
        text(&answer.json(), "status"),
    )?;
    Ok(answer.json())
}

/// The agent must have been shown the words of the passages, each as often and in the order in
/// which the answer lists them. An agent that works on the answer alone is shown none.
fn shown_to(ctx: &Ctx, agent: &str, canaries: &[String], listed: &[String]) -> CaseResult {
    let call = ctx.stub(agent)?.requests().pop();
    let body = call.map(|call| call.body).unwrap_or_default();
    let seen = in_order_of(canaries, &body);
    if agent == "review" && seen.is_empty() {
        return Ok(());
    }
    equal(
        &format!("passages.{agent}"),
        &format!("the words of the passages that {agent} is shown, in their order,"),
        listed,
        &seen,
    )
    .map_err(silent)
}

/// The words that a text holds, in the order in which they first stand in it.
fn in_order_of(words: &[String], text: &str) -> Vec<String> {
    let mut found: Vec<(usize, String)> = words
        .iter()
        .filter_map(|word| Some((text.find(word.as_str())?, word.clone())))
        .collect();
    found.sort();
    found.into_iter().map(|(_, word)| word).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cases::support::tests::violation;

    #[test]
    fn a_citation_is_judged_by_the_sources_of_its_own_answer() {
        let answer = |source: u64, quote: Value| {
            json!({
                "sources": [{"n": 1, "passage": "Radium glows."}, {"n": 2, "passage": "Lead\ndoes not."}],
                "citations": [{"source": source, "quote": quote}],
            })
        };
        for (source, quote) in [(1, "Radium"), (2, "Lead  does")] {
            assert_eq!(cited(&answer(source, json!(quote))), Ok(()));
        }
        assert_eq!(cited(&answer(2, Value::Null)), Ok(()));
        for (source, quote, fact) in [
            (3, "Radium", "citations.source"),
            (0, "Radium", "citations.source"),
            (2, "Radium", "citations.quote"),
            (1, "", "citations.quote"),
        ] {
            let (seen, _) = violation(cited(&answer(source, json!(quote))));
            assert_eq!(seen, fact);
        }
        let marked = json!({"answer": "So [1][12] it is."});
        assert_eq!(violation(unmarked(&marked, Some(1))).0, "answer.marks");
        assert_eq!(unmarked(&json!({"answer": "So [1]."}), Some(1)), Ok(()));
    }

    #[test]
    fn words_are_compared_in_the_order_of_the_text() {
        let words = ["a1", "b1", "c1"].map(String::from);
        assert_eq!(in_order_of(&words, "c1 and a1 and c1"), ["c1", "a1"]);
    }
}
