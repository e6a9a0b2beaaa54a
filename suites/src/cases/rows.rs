//! The instances of a case that differ in who is asked for what, and in what the provider answers.

use gauntlet_harness::case::{CaseResult, Ctx, Deviations, Failure, equal};
use gauntlet_harness::client::{Reply, Transcript};
use gauntlet_harness::llm::{Responder, Stub, chat, error, tool_call};
use gauntlet_harness::spec::{Protocol, Spec, Timeouts};
use gauntlet_harness::subject::Capability;
use serde_json::{Value, json};

use super::support::{
    choices, chunk, chunk_of, of_choice, refused_unasked, role, silent_in, streams_fall_back,
    until_asked, with_choices, with_tools,
};

/// One provider of each protocol, and a second candidate behind one that fails. Every timeout is
/// beyond the hang guard, so that a busy machine ends nothing.
pub(super) fn everywhere() -> Spec {
    everywhere_within(Timeouts::UNHURRIED)
}

/// The same with these timeouts for each alias.
pub(super) fn everywhere_within(timeouts: Timeouts) -> Spec {
    Spec::solo()
        .provider("p2", Protocol::OLLAMA)
        .provider("p3", Protocol::OPENAI)
        .optional_model("local", &["p2"])
        .optional_model("pair", &["p3", "p1"])
        .model_timeouts("solo", timeouts)
        .model_timeouts("local", timeouts)
        .model_timeouts("pair", timeouts)
}

/// Who answers in an instance.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum By {
    /// The only candidate.
    Solo,
    /// The second candidate, after the first one has failed.
    Second,
    /// A provider that speaks Ollama's protocol.
    Ollama,
}

impl By {
    pub fn alias(self) -> &'static str {
        match self {
            Self::Solo => "solo",
            Self::Second => "pair",
            Self::Ollama => "local",
        }
    }

    pub fn stub(self) -> &'static str {
        match self {
            Self::Solo | Self::Second => "p1",
            Self::Ollama => "p2",
        }
    }

    /// What a target declares where the instance is examined.
    pub fn needed(self) -> Option<Capability> {
        match self {
            Self::Solo => None,
            Self::Second => Some(Capability::Fallback),
            Self::Ollama => Some(Capability::Ollama),
        }
    }
}

/// An instance: who is asked for what, and what the provider answers.
pub(super) struct Row {
    pub name: &'static str,
    pub by: By,
    pub asked: fn(Value) -> Value,
    pub answer: Responder,
    /// The text that the client must read.
    pub text: String,
    /// Whether a gateway may refuse the request by itself.
    pub may_refuse: bool,
}

pub(super) fn row(name: &'static str, answer: Responder, text: &str) -> Row {
    Row {
        name,
        by: By::Solo,
        asked: |body| body,
        answer,
        text: text.into(),
        may_refuse: false,
    }
}

impl Row {
    pub fn by(self, by: By) -> Self {
        Self { by, ..self }
    }

    pub fn tools(self) -> Self {
        Self {
            asked: with_tools,
            ..self
        }
    }

    /// Asks for two choices. A gateway may refuse that.
    pub fn two_choices(self) -> Self {
        Self {
            asked: |body| with_choices(body, 2),
            answer: self.answer.optional(),
            may_refuse: true,
            ..self
        }
    }

    pub fn prompt(&self) -> String {
        format!("({})", self.name)
    }

    /// Whether the instance is examined; it is left out where the target lacks what it needs, and
    /// where streams never reach a second candidate, which FALL-01 and FALL-03 judge.
    pub async fn is_examined(&self, ctx: &Ctx) -> Result<bool, Failure> {
        let needed = self.by.needed();
        if needed.is_some_and(|needed| !ctx.declares(needed)) {
            return Ok(ctx.instance_where(false, self.name));
        }
        let reached = self.by != By::Second || streams_fall_back(ctx, "p3", "p1").await?;
        Ok(ctx.instance_where(reached, self.name))
    }

    /// Lets the provider give the answer to the prompt of the row.
    pub async fn mount<'c>(&self, ctx: &'c Ctx) -> Result<&'c Stub, Failure> {
        if self.by == By::Second {
            ctx.stub("p3")?.answers(error(503));
        }
        let stub = ctx.stub(self.by.stub())?;
        stub.mount(chat().user_says(&self.prompt()), self.answer.clone())
            .await;
        Ok(stub)
    }

    /// Streams the answer; `None` if the gateway refused the request by itself.
    pub async fn streamed(&self, ctx: &Ctx) -> Result<Option<Transcript>, Failure> {
        let stub = self.mount(ctx).await?;
        let asked = (self.asked)(ctx.prompt(self.by.alias(), &self.prompt()));
        let stream = Box::pin(ctx.client.streamed(asked)).await?;
        let refused = self.may_refuse && refused_unasked(&stream, stub, &self.prompt());
        Ok(Some(stream).filter(|_| !refused))
    }

    /// Asks for the answer without a stream; `None` if the gateway refused the request by itself.
    pub async fn plain(&self, ctx: &Ctx) -> Result<Option<Reply>, Failure> {
        let stub = self.mount(ctx).await?;
        let asked = (self.asked)(ctx.prompt(self.by.alias(), &self.prompt()));
        let plain = Box::pin(ctx.client.chat(asked)).await?;
        let unasked = self.may_refuse && stub.calls(&self.prompt()).is_empty();
        let refused = (400..500).contains(&plain.status) && unasked;
        Ok(Some(plain).filter(|_| !refused))
    }

    /// The text of the first choice must be that of the row.
    pub fn has_text(&self, stream: &Transcript) -> CaseResult {
        let read = choices(stream).remove(&0).unwrap_or_default();
        equal(
            "stream.text",
            "the text of the stream",
            self.text.as_str(),
            read.text.as_str(),
        )
        .map_err(silent_in(stream))
    }
}

/// Streams the answer of each row, one after the other, and checks what the client gets.
pub(super) async fn each(
    ctx: &Ctx,
    rows: Vec<Row>,
    check: impl Fn(&Row, &Transcript) -> CaseResult + Send + Sync,
) -> CaseResult {
    let mut deviations = Deviations::new();
    Box::pin(note_each(ctx, rows, &mut deviations, check)).await?;
    deviations.result()
}

pub(super) async fn note_each(
    ctx: &Ctx,
    rows: Vec<Row>,
    deviations: &mut Deviations,
    check: impl Fn(&Row, &Transcript) -> CaseResult + Send + Sync,
) -> CaseResult {
    for (n, row) in rows.iter().enumerate() {
        if !Box::pin(row.is_examined(ctx)).await? {
            continue;
        }
        // on the heap, because the examinations of tables are large
        let examination = Box::pin(async {
            ready(ctx, row, n).await?;
            match row.streamed(ctx).await? {
                Some(stream) => check(row, &stream),
                None => Ok(()),
            }
        });
        deviations.note(ctx.examine(row.name, examination).await)?;
    }
    Ok(())
}

/// The provider of the row is asked again after the failure of an earlier row.
pub(super) async fn ready(ctx: &Ctx, row: &Row, n: usize) -> CaseResult {
    if n == 0 {
        return Ok(());
    }
    let stub = ctx.stub(row.by.stub())?;
    let alias = if row.by == By::Ollama {
        "local"
    } else {
        "solo"
    };
    Box::pin(until_asked(ctx, alias, stub)).await
}

/// Two choices with a text each, of which the first one is finished.
pub(super) fn one_of_two_finished() -> [String; 4] {
    let text = |index, text: &str| chunk_of(&[of_choice(index, json!({"content": text}), None)]);
    [
        role(),
        text(0, "Par"),
        text(1, "Rom"),
        chunk("", Some("stop")),
    ]
}

pub(super) fn weather() -> Responder {
    tool_call("weather", json!({"city": "Zürich", "days": 3}))
}
