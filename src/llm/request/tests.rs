//! Valid requests, and invalid ones with the message that refuses them.
#![allow(clippy::unwrap_used)]

use rstest::rstest;

use super::*;

const MESSAGES: &str = r#"[{"role":"user","content":"hi"}]"#;

fn parse(fields: &str) -> Result<ChatRequest, InvalidRequest> {
    ChatRequest::parse(format!(r#"{{"model":"m","messages":{MESSAGES}{fields}}}"#).as_bytes())
}

#[rstest]
#[case::plain("", Mode::Plain)]
#[case::not_streamed(r#","stream":false"#, Mode::Plain)]
#[case::null(
    r#","stream":null,"stream_options":null,"temperature":null,"stop":null"#,
    Mode::Plain
)]
#[case::stream(r#","stream":true"#, Mode::Stream { include_usage: false })]
#[case::usage(r#","stream":true,"stream_options":{"include_usage":true,"include_obfuscation":false}"#, Mode::Stream { include_usage: true })]
#[case::no_usage(r#","stream":true,"stream_options":{"include_usage":null}"#, Mode::Stream { include_usage: false })]
fn modes(#[case] fields: &str, #[case] mode: Mode) {
    let request = parse(fields).unwrap();
    assert_eq!((request.model.as_str(), request.mode), ("m", mode));
}

#[test]
fn every_field_is_kept_in_order_and_byte_for_byte() {
    let body = r#"{ "x_new" : {"a":[1, 2]} , "model":"\u006d","messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}],"seed":18446744073709551615,"temperature":1e-2}"#;
    let request = ChatRequest::parse(body.as_bytes()).unwrap();
    assert_eq!(request.model, "m");
    let kept: Vec<(&str, &str)> = request
        .fields
        .iter()
        .map(|(name, value)| (name.as_str(), value.get()))
        .collect();
    assert_eq!(kept[0], ("x_new", r#"{"a":[1, 2]}"#));
    assert_eq!(
        kept[3..],
        [("seed", "18446744073709551615"), ("temperature", "1e-2")]
    );
    let body = request.body_for("other");
    assert_eq!(
        body,
        r#"{"x_new":{"a":[1, 2]},"model":"other","messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}],"seed":18446744073709551615,"temperature":1e-2}"#
    );
}

#[rstest]
#[case::empty("", None)]
#[case::blank(" \n", None)]
#[case::not_json("a word", None)]
#[case::array("[]", None)]
#[case::cut(r#"{"model":"m","messages":["#, None)]
#[case::trailing(r#"{"model":"m","messages":[{"role":"user"}]} {}"#, None)]
#[case::no_model(r#"{"messages":[{"role":"user"}]}"#, Some("model"))]
#[case::null_model(r#"{"model":null,"messages":[{"role":"user"}]}"#, Some("model"))]
#[case::empty_model(r#"{"model":"","messages":[{"role":"user"}]}"#, Some("model"))]
#[case::lone_surrogate(r#"{"model":"\ud800","messages":[{"role":"user"}]}"#, Some("model"))]
#[case::no_messages(r#"{"model":"m"}"#, Some("messages"))]
#[case::empty_messages(r#"{"model":"m","messages":[]}"#, Some("messages"))]
#[case::text_messages(r#"{"model":"m","messages":"hi"}"#, Some("messages"))]
#[case::text_message(r#"{"model":"m","messages":["hi"]}"#, Some("messages[0]"))]
#[case::array_message(r#"{"model":"m","messages":[["user"]]}"#, Some("messages[0]"))]
#[case::no_role(
    r#"{"model":"m","messages":[{"role":"user"},{"content":"x"}]}"#,
    Some("messages[1].role")
)]
#[case::number_role(r#"{"model":"m","messages":[{"role":1}]}"#, Some("messages[0].role"))]
#[case::number_content(
    r#"{"model":"m","messages":[{"role":"user","content":5}]}"#,
    Some("messages[0].content")
)]
#[case::text_parts(
    r#"{"model":"m","messages":[{"role":"user","content":["a"]}]}"#,
    Some("messages[0].content")
)]
#[case::two_roles(
    r#"{"model":"m","messages":[{"role":"user","role":"system"}]}"#,
    Some("messages[0]")
)]
#[case::two_models(
    r#"{"model":"m","messages":[{"role":"user"}],"model":"n"}"#,
    Some("model")
)]
#[case::two_of_any(r#"{"model":"m","messages":[{"role":"user"}],"x":1,"x":1}"#, Some("x"))]
fn an_invalid_request_is_refused_with_its_field(#[case] body: &str, #[case] param: Option<&str>) {
    let error = ChatRequest::parse(body.as_bytes()).unwrap_err();
    assert_eq!(error.param.as_deref(), param, "{error}");
}

#[rstest]
#[case(
    "temperature",
    r#""hot""#,
    r#"Invalid value for 'temperature': expected a finite number, got "hot"."#
)]
#[case(
    "temperature",
    "1e999",
    "Invalid value for 'temperature': expected a finite number, got 1e999."
)]
#[case(
    "stream",
    "1",
    "Invalid value for 'stream': expected true or false, got 1."
)]
#[case(
    "stream",
    r#""true""#,
    r#"Invalid value for 'stream': expected true or false, got "true"."#
)]
#[case(
    "max_tokens",
    "0",
    "Invalid value for 'max_tokens': expected an integer of at least 1, got 0."
)]
#[case(
    "max_tokens",
    "1.5",
    "Invalid value for 'max_tokens': expected an integer of at least 1, got 1.5."
)]
#[case(
    "n",
    "99999999999999999999999999",
    "Invalid value for 'n': expected an integer of at least 1, got 99999999999999999999999999."
)]
#[case(
    "stop",
    "[1]",
    "Invalid value for 'stop': expected a string or an array of strings, got [1]."
)]
#[case(
    "tools",
    "{}",
    "Invalid value for 'tools': expected an array of objects, got {}."
)]
#[case(
    "response_format",
    r#""json""#,
    r#"Invalid value for 'response_format': expected an object, got "json"."#
)]
fn a_wrong_type_is_refused_with_field_and_value(
    #[case] name: &str,
    #[case] value: &str,
    #[case] message: &str,
) {
    let error = parse(&format!(r#","{name}":{value}"#)).unwrap_err();
    assert_eq!(
        (error.message.as_str(), error.param.as_deref()),
        (message, Some(name))
    );
}

#[rstest]
#[case(r#","stream_options":[true]"#, "stream_options")]
#[case(
    r#","stream_options":{"include_usage":"yes"}"#,
    "stream_options.include_usage"
)]
fn stream_options_are_checked(#[case] fields: &str, #[case] param: &str) {
    assert_eq!(parse(fields).unwrap_err().param.as_deref(), Some(param));
}

#[test]
fn a_long_value_is_shown_in_part() {
    let error = parse(&format!(r#","seed":"{}""#, "é".repeat(10_000))).unwrap_err();
    assert!(error.message.chars().count() < 150 && error.message.contains('…'));
}

#[test]
fn a_body_that_is_not_utf8_is_refused() {
    assert!(
        ChatRequest::parse(b"{\"model\":\"\xFF\"}")
            .unwrap_err()
            .message
            .contains("UTF-8")
    );
}

#[rstest]
#[case("[", "]")]
#[case("{\"a\":", "}")]
fn deeply_nested_input_is_harmless(#[case] open: &str, #[case] close: &str) {
    let deep = format!("{}1{}", open.repeat(200_000), close.repeat(200_000));
    let request = parse(&format!(r#","x":{deep}"#)).unwrap();
    assert!(request.body_for("m").len() > deep.len());
    assert!(parse(&format!(r#","stop":{deep}"#)).is_err());
    assert!(
        ChatRequest::parse(format!(r#"{{"model":"m","messages":{deep}}}"#).as_bytes()).is_err()
    );
    assert!(ChatRequest::parse(deep.as_bytes()).is_err());
}

#[test]
fn a_composed_request_is_valid() {
    let request = ChatRequest::compose("a\"b", "system\n", "user")
        .with("temperature", &json!(0))
        .answering_json("facts", &json!({"type": "object"}));
    let body = request.body_for(&request.model);
    let parsed = ChatRequest::parse(&body).unwrap();
    assert_eq!((parsed.model.as_str(), parsed.mode), ("a\"b", Mode::Plain));
    let document: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        document["messages"][0],
        json!({"role": "system", "content": "system\n"})
    );
    assert_eq!(
        document["response_format"]["json_schema"]["schema"],
        json!({"type": "object"})
    );
}
