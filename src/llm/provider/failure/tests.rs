//! Tables of providers' failures and what is read from them.
#![allow(clippy::unwrap_used)]

use rstest::rstest;

use super::*;

fn key() -> SecretString {
    SecretString::from("canary-5f3a9b")
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()))
        .collect()
}

#[rstest]
#[case::bad_request(
    400,
    r#"{"error":{"message":"m","type":"invalid_request_error","param":"messages","code":null}}"#,
    Cause::Rejected
)]
#[case::the_key(
    401,
    r#"{"error":{"message":"m","code":"invalid_api_key"}}"#,
    Cause::ProviderAuth
)]
#[case::forbidden(403, "", Cause::ProviderAuth)]
#[case::credits(402, r#"{"error":"m"}"#, Cause::QuotaExhausted)]
#[case::no_model(404, r#"{"error":"model 'x' not found"}"#, Cause::NotFound)]
#[case::no_method(405, "", Cause::NotFound)]
#[case::gone(410, "", Cause::NotFound)]
#[case::time(408, "<html>", Cause::ServerError)]
#[case::conflict(409, "", Cause::ServerError)]
#[case::large(413, "<html></html>", Cause::Rejected)]
#[case::unprocessable(422, r#"{"error":"m","error_type":"validation"}"#, Cause::Rejected)]
#[case::generation(424, r#"{"error":"m","error_type":"generation"}"#, Cause::ServerError)]
#[case::rate(
    429,
    r#"{"error":{"message":"m","type":"requests","code":"rate_limit_exceeded"}}"#,
    Cause::RateLimited
)]
#[case::rate_without_body(429, "", Cause::RateLimited)]
#[case::quota_by_code(
    429,
    r#"{"error":{"message":"m","type":"x","code":"insufficient_quota"}}"#,
    Cause::QuotaExhausted
)]
#[case::quota_by_type(
    429,
    r#"{"error":{"message":"m","type":"insufficient_quota","code":null}}"#,
    Cause::QuotaExhausted
)]
#[case::cancelled(499, r#"{"error":"request canceled"}"#, Cause::ServerError)]
#[case::server(500, "", Cause::ServerError)]
#[case::gateway(502, "<html>", Cause::ServerError)]
#[case::overloaded(503, r#"{"error":"server busy"}"#, Cause::Overloaded)]
#[case::gateway_time(504, "", Cause::ServerError)]
#[case::anthropic_overloaded(529, "", Cause::Overloaded)]
#[case::redirect(301, "", Cause::BadResponse)]
fn causes(#[case] status: u16, #[case] body: &str, #[case] cause: Cause) {
    let error = from_answer(
        StatusCode::from_u16(status).unwrap(),
        &HeaderMap::new(),
        body.as_bytes(),
        None,
    );
    assert_eq!((error.cause, error.status), (cause, Some(status)));
}

#[rstest]
#[case::vllm(
    r#"{"message":"m","type":"BadRequestError","param":null,"code":400}"#,
    Cause::Rejected,
    Some(400)
)]
#[case::as_text(r#"{"message":"m","code":"422"}"#, Cause::Rejected, Some(422))]
#[case::by_type(
    r#"{"message":"m","type":"invalid_request_error","code":null}"#,
    Cause::Rejected,
    Some(400)
)]
#[case::the_key(
    r#"{"message":"m","type":"invalid_request_error","code":"invalid_api_key"}"#,
    Cause::ProviderAuth,
    Some(401)
)]
#[case::no_model(
    r#"{"message":"m","type":"invalid_request_error","code":"model_not_found"}"#,
    Cause::NotFound,
    Some(404)
)]
#[case::rate(r#"{"message":"m","code":429}"#, Cause::RateLimited, Some(429))]
#[case::quota(
    r#"{"message":"m","type":"insufficient_quota","code":429}"#,
    Cause::QuotaExhausted,
    Some(429)
)]
#[case::server(
    r#"{"message":"m","type":"InternalServerError","code":500}"#,
    Cause::InBand,
    None
)]
#[case::a_word(
    r#"{"message":"m","type":"server_error","code":"x"}"#,
    Cause::InBand,
    None
)]
#[case::a_number_that_is_no_status(r#"{"message":"m","code":40000}"#, Cause::InBand, None)]
#[case::text(r#""out of memory""#, Cause::InBand, None)]
fn causes_inside_a_200(#[case] error: &str, #[case] cause: Cause, #[case] status: Option<u16>) {
    let error = in_band(error, None);
    assert_eq!((error.cause, error.status), (cause, status));
}

#[rstest]
#[case::envelope(
    r#"{"error":{"message":"Too long.","type":"t","param":"p","code":"c"}}"#,
    "Too long.",
    Some("t"),
    Some("c"),
    Some("p")
)]
#[case::without_wrapper(
    r#"{"code":"c","message":"Not here.","param":null,"type":"t"}"#,
    "Not here.",
    Some("t"),
    Some("c"),
    None
)]
#[case::text(
    r#"{"error":"Model not supported"}"#,
    "Model not supported",
    None,
    None,
    None
)]
#[case::tgi(
    r#"{"error":"Bad input","error_type":"validation"}"#,
    "Bad input",
    Some("validation"),
    None,
    None
)]
#[case::number_code(
    r#"{"error":{"message":"m","code":422}}"#,
    "m",
    None,
    Some("422"),
    None
)]
#[case::plain("no such thing\r\n", "no such thing", None, None, None)]
#[case::html(
    "<html><body>secret</body></html>",
    "The provider answered 400 with an HTML page.",
    None,
    None,
    None
)]
#[case::empty("", "The provider answered 400 with an empty body.", None, None, None)]
#[case::broken(r#"{"error":"#, "The provider answered 400.", None, None, None)]
#[case::nothing(r#"{"error":null}"#, "The provider answered 400.", None, None, None)]
fn messages_and_details(
    #[case] body: &str,
    #[case] message: &str,
    #[case] kind: Option<&str>,
    #[case] code: Option<&str>,
    #[case] param: Option<&str>,
) {
    let error = from_answer(
        StatusCode::BAD_REQUEST,
        &HeaderMap::new(),
        body.as_bytes(),
        None,
    );
    assert_eq!(error.message, message);
    assert_eq!(
        (
            error.detail.kind.as_deref(),
            error.detail.code.as_deref(),
            error.detail.param.as_deref()
        ),
        (kind, code, param)
    );
}

#[rstest]
#[case::seconds("retry-after", "2", Some(2_000))]
#[case::zero("retry-after", "0", Some(0))]
#[case::fraction("retry-after", "0.5", Some(500))]
#[case::milliseconds("retry-after-ms", "1500", Some(1_500))]
#[case::date("retry-after", "Thu, 01 Jan 1970 00:01:05 GMT", Some(5_000))]
#[case::past("retry-after", "Thu, 01 Jan 1970 00:00:05 GMT", Some(0))]
#[case::far("retry-after", "Fri, 31 Dec 9999 23:59:59 GMT", Some(86_400_000))]
#[case::absurd("retry-after", "1e300", Some(86_400_000))]
#[case::endless("retry-after", "inf", None)]
#[case::no_number("retry-after", "NaN", None)]
#[case::negative("retry-after", "-1", None)]
#[case::a_word("retry-after", "soon", None)]
fn waits(#[case] name: &'static str, #[case] value: &str, #[case] milliseconds: Option<u64>) {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(60);
    assert_eq!(
        retry_after(&headers(&[(name, value)]), now),
        milliseconds.map(Duration::from_millis)
    );
}

#[test]
fn milliseconds_come_before_seconds() {
    let both = headers(&[("retry-after", "7"), ("retry-after-ms", "20")]);
    assert_eq!(
        retry_after(&both, SystemTime::now()),
        Some(Duration::from_millis(20))
    );
    let broken = headers(&[("retry-after", "7"), ("retry-after-ms", "x")]);
    assert_eq!(
        retry_after(&broken, SystemTime::now()),
        Some(Duration::from_secs(7))
    );
}

#[rstest]
#[case::the_key(
    "Incorrect API key provided: canary-5f3a9b.",
    "Incorrect API key provided: [redacted]."
)]
#[case::inside_a_word("key=canary-5f3a9b&x", "key=[redacted]&x")]
#[case::masked(
    "Incorrect API key provided: sk-abc***wxyz. See https://x.io",
    "Incorrect API key provided: [redacted]. See https://x.io"
)]
#[case::bearer(
    "got 'Authorization: Bearer abc.def'",
    "got 'Authorization: Bearer [redacted]'"
)]
#[case::token_of_a_hub("hf_abcdefgh is bad", "[redacted] is bad")]
#[case::basic(
    "got Basic dXNlcjpjYW5hcnktNWYzYTli and dXNlcjpjYW5hcnktNWYzYTliLg==",
    "got Basic [redacted] and [redacted]=="
)]
#[case::url("at https://u:p@host/v1 refused", "at https://host/v1 refused")]
#[case::innocent(
    "a sk- and a task-force, risk-free",
    "a sk- and a task-force, risk-free"
)]
fn secrets(#[case] message: &str, #[case] passed_on: &str) {
    assert_eq!(redact(message, Some(&key())), passed_on);
    let error = from_answer(
        StatusCode::UNAUTHORIZED,
        &HeaderMap::new(),
        format!(r#"{{"error":"{message}"}}"#).as_bytes(),
        Some(&key()),
    );
    assert_eq!(
        error.message,
        format!("The provider answered 401: {passed_on}")
    );
    assert!(!format!("{error:?}").contains("canary"));
}

#[test]
fn messages_are_bounded_and_on_one_line() {
    let error = from_answer(
        StatusCode::BAD_REQUEST,
        &HeaderMap::new(),
        format!("a\nb{}", "é".repeat(5_000)).as_bytes(),
        None,
    );
    assert_eq!(error.message.chars().count(), MESSAGE_LIMIT + 1);
    assert!(error.message.starts_with("a b") && error.message.ends_with('…'));
}

#[test]
fn a_key_at_the_limit_leaves_no_part_behind() {
    let text = format!("{}canary-5f3a9b", "x ".repeat(MESSAGE_LIMIT / 2 - 3));
    assert!(!clean(&text, Some(&key())).contains("canary"));
}

/// The provider's words survive each shape of an error's body.
#[rstest]
#[case::envelope(r#"{"error":{"message":"sentinel"}}"#)]
#[case::array(r#"[{"error":{"code":400,"message":"sentinel","status":"INVALID"}}]"#)]
#[case::array_of_texts(r#"["sentinel"]"#)]
#[case::fastapi(r#"{"detail":[{"loc":["body","n"],"msg":"sentinel","type":"missing"}]}"#)]
#[case::detail(r#"{"detail":"sentinel"}"#)]
#[case::detail_object(r#"{"detail":{"error":"sentinel"}}"#)]
#[case::text(r#"{"error":"sentinel"}"#)]
#[case::message(r#"{"message":"sentinel","code":7}"#)]
#[case::errors(r#"{"errors":[{"message":"sentinel"}]}"#)]
#[case::nested(r#"{"error":{"error":{"message":"sentinel"}}}"#)]
#[case::number_as_message(r#"{"error":{"message":5,"reason":"sentinel"}}"#)]
#[case::plain("sentinel\n")]
fn the_words_of_each_shape_survive(#[case] body: &str, #[values(400, 429, 500)] status: u16) {
    let error = from_answer(
        StatusCode::from_u16(status).unwrap(),
        &HeaderMap::new(),
        body.as_bytes(),
        None,
    );
    assert!(error.message.contains("sentinel"), "{}", error.message);
    assert!(!error.message.contains(['{', '[']), "{}", error.message);
}

#[test]
fn an_error_without_end_is_read_to_a_bound() {
    let body = format!(
        "{}\"sentinel\"{}",
        r#"{"error":"#.repeat(100),
        "}".repeat(100)
    );
    let error = from_answer(
        StatusCode::BAD_REQUEST,
        &HeaderMap::new(),
        body.as_bytes(),
        None,
    );
    assert!(!error.message.contains("sentinel"));
}
