//! PROP-03 (MUST): SSE and NDJSON decoders, alone and inside the codecs: any bytes never panic, and the result does not depend on
//! how the bytes were split. And proof that this can fail, and that the bytes reach what they are made for.
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use gauntlet::config::ProviderConfig;
use gauntlet::llm::chat::ChatRequest;
use gauntlet::llm::framing::FrameError;
use gauntlet::llm::framing::ndjson::NdjsonDecoder;
use gauntlet::llm::framing::sse::{SseDecoder, SseEvent};
use gauntlet::llm::provider::{ChunkDecoder, Codec, Decoded, codec};
use gauntlet_suites::properties::counterexample;
use http::{HeaderMap, HeaderValue};
use proptest::prelude::*;
use rstest::rstest;

/// Small, so that events beyond it are common.
const LIMIT: usize = 48;

/// A decoder as it is, or one with a bug that the property has to find.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bug {
    None,
    /// What a piece leaves unfinished is forgotten.
    ForgetsAtSplit,
    /// A piece is read as text by itself.
    DecodesEachPiece,
}

fn sse(pieces: &[&[u8]], bug: Bug) -> Vec<Result<SseEvent, FrameError>> {
    let mut decoder = SseDecoder::new(LIMIT);
    let mut events = Vec::new();
    for piece in pieces {
        if bug == Bug::DecodesEachPiece {
            decoder.push(String::from_utf8_lossy(piece).into_owned().into());
            events.extend(std::iter::from_fn(|| decoder.next_event()));
            continue;
        }
        if bug == Bug::ForgetsAtSplit {
            decoder = SseDecoder::new(LIMIT);
        }
        decoder.push(Bytes::copy_from_slice(piece));
        events.extend(std::iter::from_fn(|| decoder.next_event()));
    }
    events
}

fn ndjson(pieces: &[&[u8]]) -> Vec<Result<Bytes, FrameError>> {
    let mut decoder = NdjsonDecoder::new(LIMIT);
    let mut records = Vec::new();
    for piece in pieces {
        decoder.push(Bytes::copy_from_slice(piece));
        records.extend(std::iter::from_fn(|| decoder.next_record()));
    }
    records.extend(decoder.finish());
    records
}

/// What SSE says of these bytes, read the slow way: line by line, as the standard's text goes.
fn sse_by_the_book(bytes: &[u8]) -> Vec<Result<SseEvent, FrameError>> {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let (mut events, mut name, mut data) = (Vec::new(), Vec::new(), None::<Vec<u8>>);
    for line in lines(bytes) {
        if line.is_empty() {
            let name = std::mem::take(&mut name);
            match data.take() {
                Some(data)
                    if std::str::from_utf8(&data).is_err()
                        || std::str::from_utf8(&name).is_err() =>
                {
                    events.push(Err(FrameError::InvalidUtf8));
                    return events;
                }
                Some(data) => events.push(Ok(SseEvent {
                    name: name.into(),
                    data: data.into(),
                })),
                None => {}
            }
            continue;
        }
        let colon = line
            .iter()
            .position(|byte| *byte == b':')
            .unwrap_or(line.len());
        let value = line.get(colon + 1..).unwrap_or_default();
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match &line[..colon] {
            b"data" => match &mut data {
                Some(data) => data.extend([b"\n", value].concat()),
                None => data = Some(value.to_vec()),
            },
            b"event" => name = value.to_vec(),
            _ => {}
        }
    }
    events
}

/// The lines that have their end: LF, CRLF or CR.
fn lines(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut lines = Vec::new();
    while let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
        lines.push(&bytes[..end]);
        let crlf = bytes[end..].starts_with(b"\r\n");
        bytes = &bytes[end + if crlf { 2 } else { 1 }..];
    }
    lines
}

/// A decoder of a stream that `protocol` answers with.
fn decoder(protocol: &'static str) -> Box<dyn ChunkDecoder> {
    let content_type = match protocol {
        "ollama" => "application/x-ndjson",
        _ => "text/event-stream",
    };
    let headers = HeaderMap::from_iter([(
        http::header::CONTENT_TYPE,
        HeaderValue::from_static(content_type),
    )]);
    let request = br#"{"model":"m","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user"}]}"#;
    codec_of(protocol)
        .decoder(&ChatRequest::parse(request).unwrap(), &headers)
        .unwrap()
}

fn codec_of(protocol: &'static str) -> Arc<dyn Codec> {
    codec(&ProviderConfig {
        name: "p".into(),
        protocol,
        base_url: http::Uri::from_static("http://127.0.0.1:1"),
        api_key: Some("secret".to_owned().into()),
        max_in_flight: 1,
        queue: 16,
        user: None,
    })
}

/// What a decoder makes of the pieces, without what is random (ids) or of the moment (created).
fn chunks(mut decoder: Box<dyn ChunkDecoder>, pieces: &[&[u8]]) -> Vec<String> {
    let mut out = VecDeque::new();
    for piece in pieces {
        decoder.push(Bytes::copy_from_slice(piece), &mut out);
    }
    decoder.finish(&mut out);
    let told: Vec<String> = out
        .into_iter()
        .map(|item| match item {
            Decoded::Chunk { data, content } => {
                let mut chunk: serde_json::Value = serde_json::from_slice(&data).unwrap();
                assert!(
                    !data.contains(&b'\n') && !data.contains(&b'\r'),
                    "a chunk is one line"
                );
                scrub(&mut chunk);
                format!("{content} {chunk}")
            }
            Decoded::Done(usage) => format!("done {usage:?}"),
            Decoded::Failed(error) => format!("failed {error:?}"),
        })
        .collect();
    let ends = told
        .iter()
        .filter(|item| item.starts_with("done") || item.starts_with("failed"))
        .count();
    assert_eq!(ends, 1, "one end: {told:?}");
    assert!(
        told.last()
            .is_some_and(|last| last.starts_with("done") || last.starts_with("failed")),
        "and it is the last: {told:?}"
    );
    told
}

fn scrub(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(object) => {
            object.remove("id");
            object.remove("created");
            object.values_mut().for_each(scrub);
        }
        serde_json::Value::Array(array) => array.iter_mut().for_each(scrub),
        _ => {}
    }
}

/// Cuts bytes at these places.
fn split<'a>(bytes: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    places.sort_unstable();
    let mut pieces = Vec::new();
    let mut from = 0;
    for place in places {
        pieces.push(&bytes[from..place]);
        from = place;
    }
    pieces.push(&bytes[from..]);
    pieces
}

/// Bytes that are near to streams: their pieces, in any order, some of them broken.
fn near(tokens: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let token = prop_oneof![
        12 => prop::sample::select(tokens).prop_map(|token| token.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..8),
        1 => prop::sample::select(tokens).prop_flat_map(|token| (0..=token.len()).prop_map(move |end| token.as_bytes()[..end].to_vec())),
    ];
    prop::collection::vec(token, 0..24).prop_map(|tokens| tokens.concat())
}

const SSE: &[&str] = &[
    "\n",
    "\r",
    "\r\n",
    "\n\n",
    "data",
    "data:",
    "data: ",
    ":",
    ": keepalive",
    "event: error",
    "event:",
    "id: 7",
    "retry: 1",
    "x",
    "é",
    "\u{1F44D}",
    "\u{FEFF}",
    "data: a\n\n",
    "data: a\r\n\r\n",
    "data: a\r\r",
    "0123456789012345678901234567890123456789",
];

const NDJSON: &[&str] = &[
    "\n",
    "\r\n",
    " ",
    "{}",
    "[1]",
    "\"é\"",
    "\u{1F44D}",
    "\u{FEFF}",
    "0123456789012345678901234567890123456789",
];

const OPENAI: &[&str] = &[
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"é\u{1F44D}\"},\"finish_reason\":null}]}\n\n",
    "data:{\"choices\":[{\"index\":1,\"delta\":{\"content\":\"b\"}}],\"usage\":null}\r\n\r\n",
    "data: {\"choices\":[\ndata: {\"delta\":{\"tool_calls\":[{\"index\":0}]}}]}\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
    "data: {\"choices\":[{\"index\":1,\"delta\":{},\"finish_reason\":\"length\"}]}\n\n",
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2,\"total_tokens\":7}}\n\n",
    "data: {\"error\":{\"message\":\"m\",\"type\":\"t\",\"code\":5}}\n\n",
    "event: error\ndata: late\n\n",
    ": keepalive\n\n",
    "data: [DONE]\n\n",
    "\n",
    "\r",
    "data: ",
    "{",
];

const OLLAMA: &[&str] = &[
    "{\"model\":\"m\",\"created_at\":\"2026-08-21T18:48:22Z\",\"message\":{\"role\":\"assistant\",\"content\":\"é\u{1F44D}\"},\"done\":false}\n",
    "{\"message\":{\"content\":\"\",\"thinking\":\"hm\"},\"done\":false}\r\n",
    "{\"message\":{\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":{\"a\":1}}}]},\"done\":false}\n",
    "{\"message\":{\"content\":\"\"},\"done\":true,\"done_reason\":\"stop\",\"prompt_eval_count\":5,\"eval_count\":2}\n",
    "{\"done\":true,\"done_reason\":\"load\"}\n",
    "{\"error\":\"out of memory\"}\n",
    "\n",
    "\r",
    "{",
    "\"",
];

fn cuts() -> impl Strategy<Value = Vec<prop::sample::Index>> {
    prop::collection::vec(any::<prop::sample::Index>(), 0..12)
}

fn each_byte(bytes: &[u8]) -> Vec<&[u8]> {
    bytes.chunks(1).collect()
}

fn whole_as_in_pieces(
    bytes: &[u8],
    cuts: &[prop::sample::Index],
    bug: Bug,
) -> Result<(), TestCaseError> {
    let whole = sse(&[bytes], bug);
    prop_assert_eq!(&sse(&split(bytes, cuts), bug), &whole);
    prop_assert_eq!(&sse(&each_byte(bytes), bug), &whole);
    Ok(())
}

/// The property can fail: each bug is found.
#[rstest]
#[case::forgets(Bug::ForgetsAtSplit)]
#[case::decodes(Bug::DecodesEachPiece)]
fn every_bug_is_found(#[case] bug: Bug) {
    let any = (near(SSE), cuts());
    let found = counterexample::find(counterexample::fixed(300), &any, |(bytes, cuts)| {
        whole_as_in_pieces(bytes, cuts, bug).map_err(|why| why.to_string())
    });
    assert!(found.unwrap().is_some(), "{bug:?} survives");
}

/// The bytes reach what they are made for: events of every kind, both errors, streams that end and streams that fail, and cuts inside an event.
#[test]
fn the_bytes_reach_every_outcome() {
    let reached = RefCell::new(BTreeMap::<&str, usize>::new());
    let count =
        |what, there: bool| *reached.borrow_mut().entry(what).or_default() += usize::from(there);
    let any = (near(SSE), near(OPENAI), near(OLLAMA), cuts());
    counterexample::find(
        counterexample::fixed(1_000),
        &any,
        |(bytes, openai, ollama, cuts)| {
            let events = sse(&[bytes], Bug::None);
            let read = || events.iter().flatten();
            count("an event", read().next().is_some());
            count(
                "an event with a name",
                read().any(|event| !event.name.is_empty()),
            );
            count(
                "an event of many lines",
                read().any(|event| event.data.contains(&b'\n')),
            );
            count(
                "too large",
                events
                    .iter()
                    .any(|event| matches!(event, Err(FrameError::Oversized { .. }))),
            );
            count(
                "not UTF-8",
                events
                    .iter()
                    .any(|event| matches!(event, Err(FrameError::InvalidUtf8))),
            );
            count(
                "a cut within the bytes",
                split(bytes, cuts)
                    .iter()
                    .filter(|piece| !piece.is_empty())
                    .count()
                    > 1,
            );
            for (done, failed, chunk, protocol, bytes) in [
                (
                    "OpenAI done",
                    "OpenAI failed",
                    "OpenAI chunk",
                    "openai",
                    openai,
                ),
                (
                    "Ollama done",
                    "Ollama failed",
                    "Ollama chunk",
                    "ollama",
                    ollama,
                ),
            ] {
                let told = chunks(decoder(protocol), &[bytes]);
                count(done, told.iter().any(|item| item.starts_with("done")));
                count(failed, told.iter().any(|item| item.starts_with("failed")));
                count(chunk, told.len() > 1);
            }
            Ok(())
        },
    )
    .unwrap();
    let reached = reached.into_inner();
    assert!(
        reached.values().all(|times| *times >= 10),
        "hardly reached: {reached:#?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sse_does_not_depend_on_the_split(bytes in prop_oneof![near(SSE), prop::collection::vec(any::<u8>(), 0..200)], cuts in cuts()) {
        whole_as_in_pieces(&bytes, &cuts, Bug::None)?;
    }

    #[test]
    fn sse_reads_what_the_standard_says(bytes in near(SSE)) {
        let read = sse(&[&bytes], Bug::None);
        let expected = sse_by_the_book(&bytes);
        match read.last() {
            // the book knows no bound: up to it, both agree
            Some(Err(FrameError::Oversized { .. })) => prop_assert_eq!(&read[..read.len() - 1], &expected[..(read.len() - 1).min(expected.len())]),
            _ => prop_assert_eq!(&read, &expected),
        }
    }

    #[test]
    fn ndjson_does_not_depend_on_the_split(bytes in prop_oneof![near(NDJSON), prop::collection::vec(any::<u8>(), 0..200)], cuts in cuts()) {
        let whole = ndjson(&[&bytes]);
        prop_assert_eq!(&ndjson(&split(&bytes, &cuts)), &whole);
        prop_assert_eq!(&ndjson(&each_byte(&bytes)), &whole);
    }

    #[test]
    fn chunks_do_not_depend_on_the_split(
        (openai_bytes, ollama_bytes) in (near(OPENAI), near(OLLAMA)),
        noise in prop::collection::vec(any::<u8>(), 0..200),
        cuts in cuts(),
    ) {
        for (protocol, bytes) in
            [("openai", &openai_bytes), ("ollama", &ollama_bytes), ("openai", &noise), ("ollama", &noise)]
        {
            let whole = chunks(decoder(protocol), &[bytes]);
            prop_assert_eq!(&chunks(decoder(protocol), &split(bytes, &cuts)), &whole, "{:?}", protocol);
            prop_assert_eq!(&chunks(decoder(protocol), &each_byte(bytes)), &whole, "{:?}", protocol);
        }
    }

    #[test]
    fn requests_and_documents_never_panic(bytes in prop_oneof![
        near(&["{", "}", "[", "]", ":", ",", "\"model\"", "\"messages\"", "\"role\"", "\"user\"", "\"stream\"", "true", "null", "1e999", "\"\\ud800\"", "-0", " "]),
        prop::collection::vec(any::<u8>(), 0..200),
    ]) {
        if let Ok(request) = ChatRequest::parse(&bytes) {
            let told = request.body_for("m");
            prop_assert!(ChatRequest::parse(&told).is_ok());
        }
        for protocol in ["openai", "ollama"] {
            let codec = codec_of(protocol);
            let _ = codec.completion(&HeaderMap::new(), Bytes::copy_from_slice(&bytes));
            let error = codec.error(http::StatusCode::BAD_REQUEST, &HeaderMap::new(), &bytes);
            prop_assert_eq!(error.status, Some(400));
        }
    }
}
