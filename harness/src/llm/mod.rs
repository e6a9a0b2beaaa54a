//! Stubs of LLM providers: what a provider answers, for each protocol, behind the wire.
//!
//! A test of your own starts a stub, states what it answers and how the bytes flow, and points the
//! client under test at it:
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! use gauntlet_harness::llm::{Stub, chat, error, reply, sequence};
//! use gauntlet_harness::plan::{Plan, Step};
//!
//! let stub = Stub::openai().await?;
//! // the first attempt of each prompt gets a 503, and the next one a reply
//! stub.answers(sequence([error(503).retry_after(1), reply("Paris").usage(12, 1)]));
//! // two events of a stream, and then the connection is reset
//! stub.mount(
//!     chat().user_says("capital of Spain").streaming(true),
//!     reply("Madrid").plan(Plan::events_then(2, Step::Reset)),
//! )
//! .await;
//! // the answer waits until the test opens the gate
//! stub.mount(chat().user_says("later"), reply("now").plan(Plan::held("later"))).await;
//!
//! let url = stub.base_url(); // … the client under test asks here …
//! stub.gates().gate("later").open();
//! assert!(stub.requests().is_empty(), "nobody has asked yet");
//! # let _ = url;
//! # Ok::<(), gauntlet_harness::verdict::Failure>(()) }).unwrap();
//! ```
//!
//! The same matchers and responders work on a wiremock server of your own, as long as they have no
//! plan:
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! use gauntlet_harness::llm::{error, openai, reply, sequence};
//! use gauntlet_harness::wiremock;
//!
//! let server = wiremock::MockServer::start().await;
//! wiremock::Mock::given(openai::chat().model("gpt-4o").user_says("capital"))
//!     .respond_with(sequence([error(503).retry_after(1), reply("Paris").usage(12, 1)]))
//!     .mount(&server)
//!     .await;
//! # });
//! ```

pub mod fixture;
mod matcher;
mod protocol;
mod request;
mod responder;
mod sequence;
mod source;
mod stub;

pub use matcher::{Matcher, anything, chat};
pub use protocol::{Protocol, ollama, openai};
pub use request::{StubRequest, without_namespace};
pub use responder::{
    Responder, call_sequence, echo, embeddings, error, raw, reply, sequence, tool_call, with,
};
pub use source::{ScriptSource, WiremockSource};
#[cfg(feature = "runner")]
pub(crate) use stub::calls_at;
pub use stub::{ReceivedRequest, Stub, StubBuilder};
