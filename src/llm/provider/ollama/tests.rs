//! Requests as they are written for Ollama, and its answers as they are read.
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;

use http::HeaderValue;
use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use crate::llm::cause::Cause;
use crate::llm::chat::Usage;
use crate::llm::provider::Decoded;

fn codec() -> OllamaCodec {
    OllamaCodec::new(&ProviderConfig {
        name: "local".into(),
        protocol: "ollama",
        base_url: "http://127.0.0.1:11434/".parse().unwrap(),
        api_key: None,
        max_in_flight: 8,
        queue: 16,
        user: None,
    })
}

fn encode(request: &Value) -> Result<Value, AttemptError> {
    let context = CallContext {
        request_id: "r".into(),
        arrived: tokio::time::Instant::now(),
        deadline: None,
        idempotency_key: "i".into(),
        traceparent: None,
    };
    let request = ChatRequest::parse(request.to_string().as_bytes()).unwrap();
    let upstream = codec().encode(&request, "llama3", &context)?;
    assert_eq!(upstream.url, "http://127.0.0.1:11434/api/chat");
    assert!(!upstream.headers.contains_key("authorization"));
    Ok(serde_json::from_slice(&upstream.body).unwrap())
}

fn asking(fields: Value) -> Value {
    let mut request = json!({"model": "alias", "messages": [{"role": "user", "content": "hi"}]});
    request
        .as_object_mut()
        .unwrap()
        .extend(fields.as_object().unwrap().clone());
    request
}

#[test]
fn a_plain_request_switches_streaming_off() {
    let body = encode(&asking(json!({}))).unwrap();
    assert_eq!(
        body,
        json!({"model": "llama3", "messages": [{"role": "user", "content": "hi"}], "stream": false})
    );
}

#[rstest]
#[case(json!({"stream": true, "stream_options": {"include_usage": true}}), json!({"stream": true}))]
#[case(json!({"temperature": 0.5, "top_p": 1, "seed": 7, "stop": "x", "max_tokens": 9}),
       json!({"options": {"temperature": 0.5, "top_p": 1, "seed": 7, "stop": ["x"], "num_predict": 9}}))]
#[case(json!({"max_completion_tokens": 5, "max_tokens": 9, "stop": ["a", "b"]}), json!({"options": {"num_predict": 5, "stop": ["a", "b"]}}))]
#[case(json!({"max_tokens": 9, "max_completion_tokens": 5}), json!({"options": {"num_predict": 5}}))]
#[case(json!({"presence_penalty": 1, "frequency_penalty": 2}), json!({"options": {"presence_penalty": 1, "frequency_penalty": 2}}))]
#[case(json!({"response_format": {"type": "json_object"}}), json!({"format": "json"}))]
#[case(json!({"response_format": {"type": "text"}}), json!({}))]
#[case(json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}}), json!({"format": {"type": "object"}}))]
#[case(json!({"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "auto"}), json!({"tools": [{"type": "function", "function": {"name": "f"}}]}))]
#[case(json!({"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"}), json!({}))]
#[case(json!({"reasoning_effort": "none"}), json!({"think": false}))]
#[case(json!({"user": "u", "metadata": {}, "n": 1, "logprobs": false, "parallel_tool_calls": true, "x_new": null, "temperature": null}), json!({}))]
fn fields(#[case] asked: Value, #[case] converted: Value) {
    let mut expected = json!({"model": "llama3", "messages": [{"role": "user", "content": "hi"}], "stream": false});
    expected
        .as_object_mut()
        .unwrap()
        .extend(converted.as_object().unwrap().clone());
    assert_eq!(encode(&asking(asked)).unwrap(), expected);
}

#[rstest]
#[case("x_new", json!({"x_new": 1}))]
#[case("n", json!({"n": 2}))]
#[case("logit_bias", json!({"logit_bias": {"5": 1}}))]
#[case("logprobs", json!({"logprobs": true}))]
#[case("tool_choice", json!({"tool_choice": "required"}))]
#[case("tool_choice", json!({"tool_choice": {"type": "function", "function": {"name": "f"}}}))]
#[case("parallel_tool_calls", json!({"parallel_tool_calls": false}))]
#[case("response_format", json!({"response_format": {"type": "grammar"}}))]
#[case("functions", json!({"functions": [{}]}))]
#[case("tools[0]", json!({"tools": [{"type": "web_search"}]}))]
#[case("store", json!({"store": true}))]
fn an_unsupported_field_is_refused_by_name(#[case] param: &str, #[case] asked: Value) {
    let error = encode(&asking(asked)).unwrap_err();
    assert_eq!(error.cause, Cause::Unsupported);
    assert_eq!(error.detail.param.as_deref(), Some(param));
    assert!(error.message.contains(param), "{}", error.message);
}

#[test]
fn a_field_nested_too_deep_is_refused() {
    let deep = format!("{}1{}", "[".repeat(50_000), "]".repeat(50_000));
    let body =
        format!(r#"{{"model":"m","messages":[{{"role":"user","content":"hi"}}],"x":{deep}}}"#);
    let request = ChatRequest::parse(body.as_bytes()).unwrap();
    assert_eq!(
        request::body(&request, "m").unwrap_err().cause,
        Cause::Unsupported
    );
}

#[test]
fn messages_keep_parts_images_and_tool_calls() {
    let request = json!({"model": "alias", "messages": [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "name": "ann", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}]},
        {"role": "assistant", "content": null, "refusal": null, "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ]});
    let expected = json!([
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "a\nb", "images": ["QUJD"]},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}, "id": "c1"}]},
        {"role": "tool", "content": "42", "tool_name": "f", "tool_call_id": "c1"},
    ]);
    assert_eq!(encode(&request).unwrap()["messages"], expected);
}

#[rstest]
#[case("messages[0].role", json!({"role": "function", "content": "x"}))]
#[case("messages[0].content[0]", json!({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://10.0.0.1/x.png"}}]}))]
#[case("messages[0].content[0]", json!({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}))]
#[case("messages[0].x_new", json!({"role": "user", "content": "x", "x_new": 1}))]
#[case("messages[0].tool_calls[0].function.arguments", json!({"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{"}}]}))]
fn unsupported_messages_are_refused_by_name(#[case] param: &str, #[case] message: Value) {
    let error = encode(&json!({"model": "alias", "messages": [message]})).unwrap_err();
    assert_eq!(
        (error.cause, error.detail.param.as_deref()),
        (Cause::Unsupported, Some(param))
    );
}

fn complete(body: &str) -> Result<(Value, Option<Usage>), AttemptError> {
    let completion =
        codec().completion(&HeaderMap::new(), Bytes::copy_from_slice(body.as_bytes()))?;
    Ok((
        serde_json::from_slice(&completion.body).unwrap(),
        completion.usage,
    ))
}

#[test]
fn a_completion_has_openais_shape() {
    let (document, usage) = complete(
        r#"{"model":"llama3","created_at":"2026-08-21T18:48:22.123456789Z","message":{"role":"assistant","content":"Paris"},"done":true,"done_reason":"stop","eval_count":2}"#,
    )
    .unwrap();
    assert!(document["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(
        (
            &document["object"],
            &document["created"],
            &document["model"]
        ),
        (
            &json!("chat.completion"),
            &json!(1_787_338_102),
            &json!("llama3")
        )
    );
    assert_eq!(
        document["choices"],
        json!([{"index": 0, "message": {"role": "assistant", "content": "Paris"}, "logprobs": null, "finish_reason": "stop"}])
    );
    assert_eq!(
        document["usage"],
        json!({"prompt_tokens": 0, "completion_tokens": 2, "total_tokens": 2})
    );
    assert_eq!(
        usage,
        Some(Usage {
            prompt_tokens: 0,
            completion_tokens: 2,
            total_tokens: 2
        })
    );
}

#[test]
fn tool_calls_have_ids_and_arguments_as_text() {
    let (document, _) = complete(
        r#"{"message":{"role":"assistant","content":"","thinking":"hm","tool_calls":[{"function":{"index":0,"name":"f","arguments":{"x": 1}}},{"id":"c9","function":{"index":0,"name":"g","arguments":"{}"}}]},"done":true,"done_reason":"stop"}"#,
    )
    .unwrap();
    let choice = &document["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(
        (
            &choice["message"]["content"],
            &choice["message"]["reasoning_content"]
        ),
        (&Value::Null, &json!("hm"))
    );
    let calls = &choice["message"]["tool_calls"];
    assert!(calls[0]["id"].as_str().unwrap().starts_with("call_"));
    assert_eq!(
        calls[0]["function"],
        json!({"name": "f", "arguments": "{\"x\": 1}"})
    );
    assert_eq!(
        calls[1],
        json!({"id": "c9", "type": "function", "function": {"name": "g", "arguments": "{}"}})
    );
}

#[rstest]
#[case::empty("", Cause::BadResponse)]
#[case::html("<html>", Cause::BadResponse)]
#[case::broken(r#"{"message":"#, Cause::BadResponse)]
#[case::array("[]", Cause::BadResponse)]
#[case::not_finished(r#"{"message":{"content":"a"},"done":false}"#, Cause::BadResponse)]
#[case::no_message(r#"{"done":true,"done_reason":"stop"}"#, Cause::BadResponse)]
#[case::loaded(
    r#"{"message":{"role":"assistant","content":""},"done":true,"done_reason":"load"}"#,
    Cause::BadResponse
)]
#[case::error(r#"{"error":"out of memory"}"#, Cause::InBand)]
fn an_invalid_answer_is_not_a_completion(#[case] body: &str, #[case] cause: Cause) {
    assert_eq!(complete(body).unwrap_err().cause, cause);
}

/// The chunks of a stream, and how it ended.
fn read(fields: Value, stream: &str) -> (Vec<Value>, String) {
    let mut fields = fields;
    fields["stream"] = true.into();
    let request = ChatRequest::parse(asking(fields).to_string().as_bytes()).unwrap();
    let headers = HeaderMap::from_iter([(
        http::header::CONTENT_TYPE,
        HeaderValue::from_static("application/x-ndjson"),
    )]);
    let mut decoder = codec().decoder(&request, &headers).unwrap();
    let mut out = VecDeque::new();
    decoder.push(Bytes::copy_from_slice(stream.as_bytes()), &mut out);
    decoder.finish(&mut out);
    decoder.push(Bytes::from_static(b"{}\n"), &mut out);
    decoder.finish(&mut out);
    let (mut chunks, mut end, mut ids) = (Vec::new(), String::new(), Vec::new());
    for item in out {
        assert!(end.is_empty(), "the stream has exactly one end");
        match item {
            Decoded::Chunk { data, content } => {
                let chunk: Value = serde_json::from_slice(&data).unwrap();
                assert_eq!(chunk["object"], "chat.completion.chunk");
                ids.push((chunk["id"].clone(), chunk["created"].clone()));
                let delta = &chunk["choices"][0]["delta"];
                let has_content = ["content", "reasoning_content", "tool_calls"]
                    .iter()
                    .any(|name| !delta[name].is_null() && delta[name] != "");
                assert_eq!(
                    content,
                    has_content || chunk["choices"][0]["finish_reason"].is_string()
                );
                chunks.push(chunk);
            }
            Decoded::Done(usage) => {
                end = format!("done {:?}", usage.map(|usage| usage.total_tokens))
            }
            Decoded::Failed(error) => end = format!("{:?}: {}", error.cause, error.message),
        }
    }
    ids.dedup();
    assert!(ids.len() <= 1, "id and created are the same in every chunk");
    (chunks, end)
}

const TEXT: &str = r#"{"model":"llama3","created_at":"2026-08-21T18:48:22Z","message":{"role":"assistant","content":"He\u00e9"},"done":false}"#;
const DONE: &str = r#"{"model":"llama3","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop","prompt_eval_count":5,"eval_count":2}"#;

#[test]
fn a_stream_has_openais_shape() {
    let (chunks, end) = read(
        json!({"stream_options": {"include_usage": true}}),
        &format!("{TEXT}\n{DONE}"),
    );
    let choices: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"]).collect();
    let choice = |delta: Value, finish: Value| json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}]);
    assert_eq!(
        choices,
        [
            &choice(json!({"role": "assistant", "content": ""}), Value::Null),
            &choice(json!({"content": "Heé"}), Value::Null),
            &choice(json!({}), json!("stop")),
            &json!([]),
        ]
    );
    assert_eq!(
        chunks[3]["usage"],
        json!({"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7})
    );
    assert!(
        chunks[..3]
            .iter()
            .all(|chunk| chunk.as_object().unwrap().contains_key("usage")
                && chunk["usage"].is_null())
    );
    assert_eq!(end, "done Some(7)");
    let (chunks, end) = read(json!({}), &format!("{TEXT}\n{DONE}\n"));
    assert_eq!((chunks.len(), end.as_str()), (3, "done Some(7)"));
    assert!(
        chunks
            .iter()
            .all(|chunk| !chunk.as_object().unwrap().contains_key("usage"))
    );
}

#[test]
fn streamed_tool_calls_have_their_own_index_and_id() {
    let call = r#"{"message":{"content":"","tool_calls":[{"id":"c","function":{"index":0,"name":"f","arguments":{"x":1}}}]},"done":false}"#;
    let (chunks, _) = read(json!({}), &format!("{call}\n{call}\n{DONE}\n"));
    let calls: Vec<&Value> = chunks
        .iter()
        .map(|chunk| &chunk["choices"][0]["delta"]["tool_calls"][0])
        .filter(|call| !call.is_null())
        .collect();
    assert_eq!(
        calls[0],
        &json!({"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}})
    );
    assert_eq!(calls[1]["index"], 1);
    assert!(calls[1]["id"] != "c" && calls[1]["id"].is_string());
    assert_eq!(
        chunks.last().unwrap()["choices"][0]["finish_reason"],
        "tool_calls"
    );
}

#[rstest]
#[case::cut(&format!("{TEXT}\n"), "Truncated")]
#[case::nothing("", "Truncated")]
#[case::cut_in_a_record(&format!("{TEXT}\n{{\"model\":\"ll"), "Truncated")]
#[case::error_line(&format!("{TEXT}\n{{\"error\":\"out of memory\"}}\n"), "InBand: out of memory")]
#[case::error_without_newline("{\"error\":\"out of memory\"}", "InBand: out of memory")]
#[case::broken(&format!("{TEXT}\n{{\"model\":\"ll\n{DONE}\n"), "BadResponse")]
#[case::no_message("{\"status\":\"x\"}\n", "BadResponse")]
#[case::html("<html>\n", "BadResponse")]
#[case::loaded(
    "{\"message\":{\"content\":\"\"},\"done\":true,\"done_reason\":\"load\"}\n",
    "BadResponse"
)]
#[case::more_after_the_end(&format!("{DONE}\n{TEXT}\nx\n"), "done Some(7)")]
#[case::length(&format!("{}\n", DONE.replace("stop", "length")), "done Some(7)")]
#[case::no_reason(&format!("{}\n", DONE.replace("\"done_reason\":\"stop\",", "")), "done Some(7)")]
fn ends(#[case] stream: &str, #[case] expected: &str) {
    let (_, end) = read(json!({}), stream);
    assert!(end.starts_with(expected), "{end}");
}

#[test]
fn an_answer_with_a_wrong_content_type_is_not_a_stream() {
    let request =
        ChatRequest::parse(asking(json!({"stream": true})).to_string().as_bytes()).unwrap();
    for headers in [
        HeaderMap::new(),
        HeaderMap::from_iter([(
            http::header::CONTENT_TYPE,
            HeaderValue::from_static("text/html"),
        )]),
    ] {
        assert_eq!(
            codec().decoder(&request, &headers).err().unwrap().cause,
            Cause::BadResponse
        );
    }
}

/// ERR-04: the message does not repeat a value that cannot be read, because it may hold anything.
#[test]
fn an_answer_that_cannot_be_read_is_not_repeated() {
    let long = format!("canary-{}", "x".repeat(100_000));
    let error = codec()
        .completion(
            &HeaderMap::new(),
            Bytes::from(format!(r#"{{"message":"{long}"}}"#)),
        )
        .unwrap_err();
    assert_eq!(
        error.message,
        "The provider's answer is not one of Ollama's (line 1, column 100020)."
    );
}
