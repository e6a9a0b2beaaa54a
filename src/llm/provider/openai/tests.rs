//! Requests as they are sent to OpenAI, valid and invalid answers, and the chunks of each stream.
#![allow(clippy::unwrap_used, clippy::panic)]

use rstest::rstest;

use super::*;
use crate::llm::cause::Cause;
use crate::llm::chat::ErrorDetail;

fn provider(base_url: &str) -> ProviderConfig {
    ProviderConfig {
        name: "main".into(),
        protocol: "openai",
        base_url: base_url.parse().unwrap(),
        api_key: Some("sk-canary-1".to_owned().into()),
        max_in_flight: 8,
        queue: 16,
        user: None,
    }
}

fn codec() -> OpenAiCodec {
    OpenAiCodec::new(&provider("http://127.0.0.1:9/v1"))
}

fn context() -> CallContext {
    CallContext {
        request_id: "req-1".into(),
        arrived: tokio::time::Instant::now(),
        deadline: None,
        idempotency_key: "idem-1".into(),
        traceparent: Some(HeaderValue::from_static(
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        )),
    }
}

use http::HeaderValue;

fn request(fields: &str) -> ChatRequest {
    ChatRequest::parse(
        format!(r#"{{"model":"alias","messages":[{{"role":"user","content":"hi"}}]{fields}}}"#)
            .as_bytes(),
    )
    .unwrap()
}

fn headers(content_type: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(
        http::header::CONTENT_TYPE,
        HeaderValue::from_static(content_type),
    )])
}

#[test]
fn fields_are_sent_byte_for_byte_and_only_the_model_is_replaced() {
    let sent = r#"{"temperature":1.0,"model":"alias", "x_new": {"a" : [1e2,"\u00e9"]},"messages":[{"role":"user","content":"hi","x":1}]}"#;
    let request = ChatRequest::parse(sent.as_bytes()).unwrap();
    let upstream = codec().encode(&request, "gpt-\"4", &context()).unwrap();
    let expected = r#"{"temperature":1.0,"model":"gpt-\"4","x_new":{"a" : [1e2,"\u00e9"]},"messages":[{"role":"user","content":"hi","x":1}]}"#;
    assert_eq!(std::str::from_utf8(&upstream.body).unwrap(), expected);
}

#[test]
fn the_key_and_the_ids_go_with_the_request() {
    let upstream = codec().encode(&request(""), "m", &context()).unwrap();
    assert_eq!(upstream.url, "http://127.0.0.1:9/v1/chat/completions");
    let value = |name: &str| {
        upstream
            .headers
            .get(name)
            .map(|value| value.to_str().unwrap().to_owned())
    };
    assert_eq!(
        value("authorization").as_deref(),
        Some("Bearer sk-canary-1")
    );
    assert_eq!(value("x-request-id").as_deref(), Some("req-1"));
    assert_eq!(value("idempotency-key").as_deref(), Some("idem-1"));
    assert!(value("traceparent").unwrap().starts_with("00-0af7"));
    assert_eq!(value("content-type").as_deref(), Some("application/json"));
    assert!(
        !format!("{upstream:?}").contains("canary"),
        "the key is marked sensitive"
    );
}

#[test]
fn a_user_and_password_go_with_the_request_and_nowhere_else() {
    let provider = ProviderConfig {
        api_key: None,
        user: Some("user:canary pass".into()),
        ..provider("http://h/v1")
    };
    let codec = OpenAiCodec::new(&provider);
    let upstream = codec.encode(&request(""), "m", &context()).unwrap();
    assert_eq!(
        upstream.headers["authorization"],
        "Basic dXNlcjpjYW5hcnkgcGFzcw=="
    );
    assert!(upstream.headers["authorization"].is_sensitive());
    assert!(!format!("{upstream:?} {provider:?}").contains("canary"));
    let echo = br#"{"error":{"message":"bad: user:canary pass, Basic dXNlcjpjYW5hcnkgcGFzcw=="}}"#;
    let error = codec.error(StatusCode::UNAUTHORIZED, &HeaderMap::new(), echo);
    assert_eq!(
        error.message,
        "The provider answered 401: bad: user:[redacted], Basic [redacted]=="
    );
}

#[rstest]
#[case(
    "https://api.openai.com/v1",
    "https://api.openai.com/v1/chat/completions"
)]
#[case(
    "https://api.openai.com/v1/",
    "https://api.openai.com/v1/chat/completions"
)]
#[case("http://h", "http://h/chat/completions")]
#[case(
    "http://h/d/x?api-version=2",
    "http://h/d/x/chat/completions?api-version=2"
)]
fn urls(#[case] base: &str, #[case] expected: &str) {
    let upstream = OpenAiCodec::new(&provider(base))
        .encode(&request(""), "m", &context())
        .unwrap();
    assert_eq!(upstream.url.to_string(), expected);
}

#[test]
fn a_key_that_no_header_can_carry_is_an_error_without_the_key() {
    let provider = ProviderConfig {
        api_key: Some("canary\nx".to_owned().into()),
        ..provider("http://h/v1")
    };
    let error = OpenAiCodec::new(&provider)
        .encode(&request(""), "m", &context())
        .unwrap_err();
    assert_eq!(error.cause, Cause::ProviderAuth);
    assert!(error.message.contains("'main'") && !format!("{error:?}").contains("canary"));
}

#[test]
fn a_completion_is_passed_on_byte_for_byte() {
    let body = Bytes::from_static(
        br#" {"id":"1","choices":[{"index":0,"message":{"role":"assistant","content":"Paris"},"finish_reason":"stop"}],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7},"x":1} "#,
    );
    let completion = codec()
        .completion(&headers("application/json"), body.clone())
        .unwrap();
    assert_eq!(completion.body, body);
    assert_eq!(
        completion.usage,
        Some(Usage {
            prompt_tokens: 5,
            completion_tokens: 2,
            total_tokens: 7
        })
    );
    assert_eq!(completion.text().as_deref(), Some("Paris"));
}

#[rstest]
#[case::html("<html></html>", Cause::BadResponse)]
#[case::empty("", Cause::BadResponse)]
#[case::blank(" \n", Cause::BadResponse)]
#[case::broken(r#"{"choices":[{"message":{"content":"#, Cause::BadResponse)]
#[case::trailing(r#"{"choices":[{"message":{}}]} x"#, Cause::BadResponse)]
#[case::array("[]", Cause::BadResponse)]
#[case::no_choices(r#"{"id":"1"}"#, Cause::BadResponse)]
#[case::null_choices(r#"{"choices":null}"#, Cause::BadResponse)]
#[case::empty_choices(r#"{"choices":[]}"#, Cause::BadResponse)]
#[case::no_message(r#"{"choices":[{"index":0}]}"#, Cause::BadResponse)]
#[case::null_message(r#"{"choices":[{"message":null}]}"#, Cause::BadResponse)]
#[case::array_choice(r#"{"choices":[[{}]]}"#, Cause::BadResponse)]
#[case::error(r#"{"error":{"message":"no","type":"t"}}"#, Cause::InBand)]
#[case::error_text(r#"{"error":"no","choices":[{"message":{}}]}"#, Cause::InBand)]
#[case::error_in_a_choice(
    r#"{"choices":[{"message":{"content":"Pa"},"finish_reason":"error","error":{"code":502,"message":"no"}}]}"#,
    Cause::InBand
)]
#[case::error_in_a_later_choice(
    r#"{"choices":[{"message":{}},{"error":{"code":429,"message":"slow"}}]}"#,
    Cause::RateLimited
)]
#[case::error_by_its_reason(
    r#"{"choices":[{"message":{"content":""},"finish_reason":"error"}]}"#,
    Cause::InBand
)]
fn an_invalid_answer_is_not_a_completion(#[case] body: &'static str, #[case] cause: Cause) {
    assert_eq!(
        codec()
            .completion(&HeaderMap::new(), Bytes::from_static(body.as_bytes()))
            .unwrap_err()
            .cause,
        cause
    );
}

#[test]
fn a_body_that_is_not_utf8_or_is_encoded_is_not_a_completion() {
    let body = Bytes::from_static(b"{\"choices\":[{\"message\":{\"content\":\"\xFF\"}}]}");
    assert_eq!(
        codec()
            .completion(&HeaderMap::new(), body)
            .unwrap_err()
            .cause,
        Cause::BadResponse
    );
    let coded = HeaderMap::from_iter([(
        http::header::CONTENT_ENCODING,
        HeaderValue::from_static("gzip"),
    )]);
    assert_eq!(
        codec()
            .completion(
                &coded,
                Bytes::from_static(br#"{"choices":[{"message":{}}]}"#)
            )
            .unwrap_err()
            .cause,
        Cause::BadResponse
    );
    assert_eq!(
        codec()
            .decoder(&request(r#","stream":true"#), &coded)
            .err()
            .unwrap()
            .cause,
        Cause::BadResponse
    );
}

/// A stream in short: `+` is a chunk with content, `-` a chunk without, and the end follows.
fn read(fields: &str, stream: &str) -> (String, Vec<Bytes>, Option<AttemptError>, Option<Usage>) {
    let mut decoder = codec()
        .decoder(
            &request(&format!(r#","stream":true{fields}"#)),
            &headers("text/event-stream; charset=utf-8"),
        )
        .unwrap();
    let mut out = VecDeque::new();
    decoder.push(Bytes::copy_from_slice(stream.as_bytes()), &mut out);
    decoder.finish(&mut out);
    decoder.push(Bytes::from_static(b"data: {}\n\n"), &mut out);
    decoder.finish(&mut out);
    let (mut summary, mut chunks, mut failed, mut usage) = (String::new(), Vec::new(), None, None);
    for item in out {
        match item {
            Decoded::Chunk { data, content } => {
                summary.push(if content { '+' } else { '-' });
                chunks.push(data);
            }
            Decoded::Done(reported) => {
                summary.push_str(" done");
                usage = reported;
            }
            Decoded::Failed(error) => {
                summary.push_str(&format!(" {:?}", error.cause));
                failed = Some(error);
            }
        }
    }
    (summary, chunks, failed, usage)
}

const ROLE: &str = r#"data: {"choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"finish_reason":null}],"usage":null}"#;
const TEXT: &str =
    r#"data: {"choices":[{"index":0,"delta":{"content":"Hel"},"finish_reason":null}]}"#;
const STOP: &str = r#"data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
const USAGE: &str =
    r#"data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}"#;
const DONE: &str = "data: [DONE]";

#[rstest]
#[case::whole(&[ROLE, TEXT, STOP, DONE], "-++ done")]
#[case::done_twice_and_more(&[TEXT, STOP, DONE, DONE, TEXT], "++ done")]
#[case::no_done_marker(&[TEXT, STOP], "++ done")]
#[case::no_finish_reason(&[TEXT, DONE], "+ Truncated")]
#[case::cut(&[TEXT], "+ Truncated")]
#[case::nothing(&[], " Truncated")]
#[case::only_the_marker(&[DONE], " Truncated")]
#[case::empty_finish_reason_is_none(&[r#"data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":""}]}"#, DONE], "+ Truncated")]
#[case::comments(&[": keepalive", TEXT, ":", STOP, DONE], "++ done")]
#[case::empty_data_has_no_effect(&["data:", TEXT, STOP, DONE], "++ done")]
#[case::tool_call(&[r#"data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c"}]}}]}"#, STOP, DONE], "++ done")]
#[case::no_tool_call(&[r#"data: {"choices":[{"index":0,"delta":{"content":null,"tool_calls":[]}}]}"#, STOP, DONE], "-+ done")]
#[case::refusal(&[r#"data: {"choices":[{"index":0,"delta":{"refusal":"no"}}]}"#, STOP, DONE], "++ done")]
#[case::reasoning(&[r#"data: {"choices":[{"index":0,"delta":{"reasoning_content":"hm"}}]}"#, STOP, DONE], "++ done")]
#[case::no_delta(&[r#"data: {"choices":[{"index":0}]}"#, STOP, DONE], "-+ done")]
#[case::broken_json(&[TEXT, r#"data: {"choices":[{"#, STOP, DONE], "+ BadResponse")]
#[case::not_an_object(&[TEXT, "data: 5", DONE], "+ BadResponse")]
#[case::no_choices(&[TEXT, "data: {}", DONE], "+ BadResponse")]
#[case::wrong_choices(&[r#"data: {"choices":{"0":1}}"#], " BadResponse")]
#[case::in_band(&[TEXT, r#"data: {"error":{"message":"late","type":"server_error","code":"x"}}"#, DONE], "+ InBand")]
#[case::in_band_text(&[r#"data: {"error":"late","error_type":"generation"}"#], " InBand")]
#[case::in_band_with_choices(&[r#"data: {"error":{"code":502,"message":"late"},"choices":[{"delta":{"content":""},"finish_reason":"error"}]}"#], " InBand")]
#[case::in_a_choice(&[TEXT, r#"data: {"choices":[{"index":0,"delta":{"content":""},"error":{"code":429,"message":"slow"}}]}"#, DONE], "+ RateLimited")]
#[case::by_its_reason(&[r#"data: {"choices":[{"index":0,"delta":{},"finish_reason":"error"}]}"#, DONE], " InBand")]
#[case::no_error_in_a_choice(&[r#"data: {"choices":[{"index":0,"delta":{"content":"a"},"error":null,"finish_reason":"stop"}]}"#, DONE], "+ done")]
#[case::two_reasons(&[TEXT, STOP, STOP, DONE], "++ done")]
#[case::text_after_the_reason(&[TEXT, STOP, TEXT, DONE], "+++ done")]
#[case::half_a_pair(&[r#"data: {"choices":[{"index":0,"delta":{"content":"\ud83d"}}]}"#, STOP, DONE], "++ done")]
#[case::error_event(&["event: error\ndata: {\"message\":\"late\"}"], " InBand")]
#[case::no_error(&[r#"data: {"error":null,"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}"#, DONE], "+ done")]
#[case::other_event_names(&["event: message\ndata: {\"choices\":[{\"delta\":{\"content\":\"a\"},\"finish_reason\":\"stop\"}]}", DONE], "+ done")]
fn streams(#[case] events: &[&str], #[case] expected: &str) {
    let stream: String = events.iter().map(|event| format!("{event}\n\n")).collect();
    assert_eq!(read("", &stream).0, expected);
}

#[test]
fn events_are_passed_on_byte_for_byte() {
    let (_, chunks, ..) = read("", &format!("{TEXT}\n\n{STOP}\n\n{DONE}\n\n"));
    assert_eq!(chunks, [&TEXT[6..], &STOP[6..]]);
}

/// A second finish_reason becomes null where its event carries text, and an empty one always does.
#[test]
fn a_client_sees_one_finish_reason() {
    let both = |text: &str, reason: &str| {
        format!(
            r#"{{"id":1.50,"choices":[{{"index":0,"delta":{{"content":"{text}"}},"finish_reason":{reason}}}]}}"#
        )
    };
    let sent = [
        both("a", r#""""#),
        both("b", r#""stop""#),
        both("c", r#""stop""#),
        both("d", "null"),
    ];
    let events: String = sent
        .iter()
        .map(|event| format!("data: {event}\n\n"))
        .collect();
    let (summary, chunks, ..) = read("", &format!("{events}{DONE}\n\n"));
    assert_eq!(summary, "++++ done");
    let expected = [
        both("a", "null"),
        both("b", r#""stop""#),
        both("c", "null"),
        both("d", "null"),
    ];
    assert_eq!(chunks, expected);
}

/// What a provider cuts between two events arrives whole in the second.
#[test]
fn a_surrogate_pair_that_is_cut_between_two_events_is_joined() {
    let event = |choice: u8, field: &str, text: &str| {
        format!(r#"{{"choices":[{{"index":{choice},"delta":{{"{field}":"{text}"}}}}]}}"#)
    };
    let sent = [
        event(0, "content", r"a\ud83d"),
        event(1, "content", r"\uD83D"),
        event(0, "reasoning", "hm"),
        event(0, "content", r"\ude00b"),
        event(1, "content", r"\uDE80\ud83d\ude00"),
        event(0, "content", r"c\\ud83d"),
    ];
    let end = r#"data: {"choices":[{"index":0,"finish_reason":"stop"},{"index":1,"finish_reason":"stop"}]}"#;
    let events: String = sent
        .iter()
        .map(|event| format!("data: {event}\n\n"))
        .collect();
    let (summary, chunks, ..) = read("", &format!("{events}{end}\n\n{DONE}\n\n"));
    assert_eq!(summary, "+++++++ done");
    let expected = [
        event(0, "content", "a"),
        event(1, "content", ""),
        event(0, "reasoning", "hm"),
        event(0, "content", r"\ud83d\ude00b"),
        event(1, "content", r"\uD83D\uDE80\ud83d\ude00"),
        event(0, "content", r"c\\ud83d"),
    ];
    assert_eq!(chunks[..6], expected);
}

#[test]
fn data_over_several_lines_becomes_one() {
    let (summary, chunks, ..) = read(
        "",
        "data: {\"choices\":[\ndata: {\"delta\":{\"content\":\"a\"},\r\ndata: \"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n",
    );
    assert_eq!(summary, "+ done");
    assert_eq!(
        chunks,
        [r#"{"choices":[ {"delta":{"content":"a"}, "finish_reason":"stop"}]}"#]
    );
}

#[test]
fn usage_is_always_read_and_passed_on_if_it_was_requested() {
    let stream = format!("{TEXT}\n\n{STOP}\n\n{USAGE}\n\n{DONE}\n\n");
    let expected = Some(Usage {
        prompt_tokens: 5,
        completion_tokens: 2,
        total_tokens: 7,
    });
    let (chunks, .., usage) = read("", &stream);
    assert_eq!((chunks.as_str(), usage), ("++ done", expected));
    let (chunks, .., usage) = read(r#","stream_options":{"include_usage":true}"#, &stream);
    assert_eq!((chunks.as_str(), usage), ("++- done", expected));
}

#[test]
fn every_choice_that_began_must_end() {
    let choice = |index: u32, finish: &str| {
        format!(
            "data: {{\"choices\":[{{\"index\":{index},\"delta\":{{\"content\":\"a\"}},\"finish_reason\":{finish}}}]}}\n\n"
        )
    };
    let half = format!(
        "{}{}{}",
        choice(0, "null"),
        choice(1, "null"),
        choice(0, "\"stop\"")
    );
    assert_eq!(
        read(r#","n":2"#, &format!("{half}{DONE}\n\n")).0,
        "+++ Truncated"
    );
    assert_eq!(
        read(
            r#","n":2"#,
            &format!("{half}{}{DONE}\n\n", choice(1, "\"stop\""))
        )
        .0,
        "++++ done"
    );
    let both = r#"data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"},{"index":1,"delta":{},"finish_reason":"length"}]}"#;
    assert_eq!(
        read(r#","n":2"#, &format!("{half}{both}\n\n{DONE}\n\n")).0,
        "++++ done"
    );
    // The provider sends one of two requested choices: with the end marker the answer is complete,
    // without it a choice is missing.
    assert_eq!(
        read(r#","n":2"#, &format!("{}{DONE}\n\n", choice(0, "\"stop\""))).0,
        "+ done"
    );
    assert_eq!(read(r#","n":2"#, &choice(0, "\"stop\"")).0, "+ Truncated");
}

#[test]
fn an_in_band_error_keeps_its_class_and_loses_the_key() {
    let event = r#"data: {"error":{"message":"sk-canary-1 is over its limit","type":"requests","param":null,"code":"rate_limit_exceeded"}}"#;
    let error = read("", &format!("{event}\n\n")).2.unwrap();
    assert_eq!(error.message, "[redacted] is over its limit");
    assert_eq!(
        error.detail,
        ErrorDetail {
            kind: Some("requests".into()),
            code: Some("rate_limit_exceeded".into()),
            param: None
        }
    );
}

#[test]
fn too_many_choices_are_not_an_answer() {
    let stream: String = (0..2_000)
        .map(|index| format!("data: {{\"choices\":[{{\"index\":{index},\"delta\":{{}}}}]}}\n\n"))
        .collect();
    assert_eq!(read("", &stream).2.unwrap().cause, Cause::BadResponse);
}

#[test]
fn an_event_without_end_is_refused_at_the_limit() {
    let mut decoder = codec()
        .decoder(&request(r#","stream":true"#), &headers("text/event-stream"))
        .unwrap();
    let mut out = VecDeque::new();
    let piece = Bytes::from(vec![b'x'; 64 * 1024]);
    for _ in 0..=DEFAULT_EVENT_LIMIT / piece.len() {
        decoder.push(piece.clone(), &mut out);
    }
    assert!(matches!(
        &out.make_contiguous()[..],
        [Decoded::Failed(AttemptError {
            cause: Cause::Oversized,
            ..
        })]
    ));
}

#[rstest]
#[case::html("text/html", "<html>", Cause::BadResponse)]
#[case::none("", "data: {}", Cause::BadResponse)]
#[case::error("application/json", r#"{"error":{"message":"late"}}"#, Cause::InBand)]
#[case::document(
    "application/json",
    r#"{"choices":[{"message":{"content":"a"}}]}"#,
    Cause::BadResponse
)]
#[case::broken("application/json; charset=utf-8", r#"{"error""#, Cause::BadResponse)]
#[case::stream_under_a_wrong_name("application/json", "data: {}\n\n", Cause::BadResponse)]
fn an_invalid_answer_is_not_a_stream(
    #[case] content_type: &'static str,
    #[case] body: &'static str,
    #[case] cause: Cause,
) {
    let mut out = VecDeque::new();
    match codec().decoder(&request(r#","stream":true"#), &headers(content_type)) {
        Ok(mut decoder) => {
            decoder.push(Bytes::from_static(body.as_bytes()), &mut out);
            decoder.finish(&mut out);
        }
        Err(error) => out.push_back(Decoded::Failed(error)),
    }
    assert!(
        matches!(&out.make_contiguous()[..], [Decoded::Failed(error)] if error.cause == cause),
        "{out:?}"
    );
}

/// ERR-04: the message does not repeat a value that cannot be read, because it may hold anything.
#[test]
fn an_answer_that_cannot_be_read_is_not_repeated() {
    let long = format!("canary-{}", "x".repeat(100_000));
    let document = format!(r#"{{"choices":"{long}"}}"#);
    let error = codec()
        .completion(&HeaderMap::new(), Bytes::from(document.clone()))
        .unwrap_err();
    assert_eq!(
        error.message,
        "The provider's answer is not a chat completion (line 1, column 100020)."
    );
    let mut decoder = codec()
        .decoder(&request(r#","stream":true"#), &headers("text/event-stream"))
        .unwrap();
    let mut out = VecDeque::new();
    decoder.push(Bytes::from(format!("data: {document}\n\n")), &mut out);
    let Some(Decoded::Failed(error)) = out.pop_front() else {
        panic!("{out:?}")
    };
    assert_eq!(
        error.message,
        "The provider's stream holds an event that is not a chat completion chunk (line 1, column 100020)."
    );
    let error = codec()
        .decoder(
            &request(r#","stream":true"#),
            &headers("text/plain-sk-canary-1"),
        )
        .err()
        .unwrap();
    assert!(!error.message.contains("canary"), "{}", error.message);
}
