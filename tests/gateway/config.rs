//! Configuration: what is refused and with which message, what the environment overrides, and how
//! timeouts are inherited.

use std::time::Duration;

use gauntlet::config::kinds::{Kinds, ProtocolSettings, StepSettings};
use gauntlet::config::{Config, Loaded, StepConfig, Timeouts};

use secrecy::ExposeSecret;

use super::snapshots::settings;

const P1: &str =
    "[[providers]]\nname = \"p1\"\nprotocol = \"openai\"\nbase_url = \"http://127.0.0.1:1/v1\"\n";
const SOLO: &str =
    "[[models]]\nalias = \"solo\"\ncandidates = [{ provider = \"p1\", model = \"m\" }]\n";

fn problems(text: &str, environment: &[(&str, &str)]) -> Vec<String> {
    let environment = environment
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect();
    Loaded::from_text(text, "gauntlet.toml", environment)
        .map(|_| Vec::new())
        .unwrap_or_else(|error| error.problems)
}

#[test]
fn what_is_refused_names_key_and_value_and_what_to_write_instead() {
    let cases = [
        "[server]\nlissten = \"127.0.0.1:1\"",
        "[servers]",
        "[server]\nlisten = \"localhost\"",
        "[server]\nbody_limit_bytes = 1",
        "[server]\ndrain_ms = \"30s\"",
        "[server]\ndrain_ms = -1",
        "server = 5",
        "[server\n",
        "[store]\nurl = \"mysql://root:canary@db/x\"",
        "[store]\nacquire_timeout_ms = 90000",
        "[auth]\nrequired = \"yes\"",
        "[[auth.keys]]\ntenant = \"a\"\nsha256 = \"abc\"",
        "[[providers]]\nname = \"p1\"\nprotocol = \"openapi\"\nbase_url = \"api.openai.com\"",
        "[[providers]]\nname = \"p1\"",
        "[[providers]]\nname = \"p1\"\nprotocol = \"ollama\"\nbase_url = \"http://x\"\napi_key = \"canary\\n\"",
        "[[providers]]\nname = \"p1\"\nprotocol = \"ollama\"\nbase_url = \"http://x\"\napi_key_env = \"NOT_SET\"",
        "[[providers]]\nname = \"p1\"\nprotocol = \"openai\"\nbase_url = \"http://u:canary@h/v1\"\napi_key = \"canary\"",
        "[[providers]]\nname = \"p1\"\nprotocol = \"anthropic\"\n[[models]]\nalias = \"solo\"\ncandidates = [{ provider = \"p1\", model = \"m\" }]",
        "providers = 1",
        "[timeouts]\ntotal_ms = 1000\nidle_ms = 2000",
        "[timeouts]\nconnect_ms = 3000\nfirst_token_ms = 2000",
        "[timeouts]\nconnect_ms = 61000",
        "[retry]\nbase_ms = 100\nmax_ms = 50",
        "[timeouts]\ntotal_ms = 1000\n[retry]\nbase_ms = 1000",
        "[retry]\njitter = 1.5",
        "[orchestrator]\ndeadline_ms = 1000\n[orchestrator.steps.synthesis]\ncap_ms = 2000",
        "[orchestrator.steps.review]\ncap_ms = 100\nminimum_ms = 200",
        "[orchestrator]\nstep_cap_ms = 90000",
        "[orchestrator.steps.reveiw]",
        "[orchestrator.models]\nsynthesis = \"none\"",
        "[telemetry]\nlog = \"gauntlet=loud\"",
    ];
    let mut refused: Vec<(String, Vec<String>)> = cases
        .iter()
        .map(|case| (case.to_string(), problems(case, &[])))
        .collect();
    let with_models = [
        format!("{P1}{P1}{SOLO}"),
        format!("{P1}{SOLO}{SOLO}"),
        format!(
            "[[auth.keys]]\ntenant = \"a\"\nsha256 = \"{0}\"\n[[auth.keys]]\ntenant = \"b\"\nsha256 = \"{0}\"",
            "ab".repeat(32)
        ),
        format!(
            "{P1}{}",
            SOLO.replace("provider = \"p1\"", "provider = \"p2\"")
        ),
        format!("{P1}[[models]]\nalias = \"solo\"\n"),
        format!("{P1}{SOLO}[models.timeouts]\ntotal_ms = 1000\nfirst_token_ms = 1500\n"),
        format!(
            "{P1}[providers.timeouts]\nconnect_ms = 500\n{SOLO}[models.timeouts]\nfirst_token_ms = 400\n"
        ),
        format!(
            "{P1}[providers.timeouts]\nidle_ms = 5000\n{SOLO}[models.timeouts]\ntotal_ms = 1000\n"
        ),
        format!(
            "{P1}{}[models.timeouts]\ntotal_ms = 1000\nreserve_ms = 500\n",
            SOLO.replace(
                "}]",
                "}, { provider = \"p1\", model = \"b\" }, { provider = \"p1\", model = \"c\" }]"
            )
        ),
        format!("{P1}{SOLO}[orchestrator.models]\nreview = \"sola\"\n"),
    ];
    refused.extend(
        with_models
            .into_iter()
            .map(|case| (case.clone(), problems(&case, &[]))),
    );
    for (variable, value) in [
        ("GAUNTLET_SERVER__LISTN", "x"),
        ("GAUNTLET_SERVER__DRAIN_MS", "soon"),
        ("GAUNTLET_SERVR__DRAIN_MS", "1"),
        ("GAUNTLET_PROVIDERS__P9__API_KEY", "k"),
        ("GAUNTLET_PROVIDERS__API_KEY", "k"),
        ("GAUNTLET_SERVER__DRAIN_MS__MORE", "1"),
    ] {
        refused.push((
            format!("{variable}={value}"),
            problems(&format!("{P1}{SOLO}"), &[(variable, value)]),
        ));
    }
    let text: Vec<String> = refused
        .iter()
        .map(|(case, problems)| {
            assert!(!problems.is_empty(), "accepted: {case}");
            assert!(!problems.join("").contains("canary"), "{problems:?}");
            let problems: Vec<String> = problems
                .iter()
                .map(|problem| format!("    {problem}"))
                .collect();
            format!(
                "{}\n{}",
                case.trim().replace(['\n'], " ⏎ "),
                problems.join("\n")
            )
        })
        .collect();
    settings().bind(|| insta::assert_snapshot!("SNAP-01__config_problems", text.join("\n")));
}

#[test]
fn all_problems_are_found_at_once() {
    assert_eq!(
        problems("[server]\nlisten = 1\ndrain_ms = -1\n[nothing]\n", &[]).len(),
        3
    );
}

#[test]
fn the_environment_overrides_by_name_and_by_index() {
    let environment = [
        ("GAUNTLET_SERVER__DRAIN_MS", "7"),
        ("GAUNTLET_PROVIDERS__P1__API_KEY", "key"),
        ("GAUNTLET_MODELS__0__CANDIDATES__0__MODEL", "other"),
        ("GAUNTLET_MODELS__SOLO__TIMEOUTS__TOTAL_MS", "900"),
        ("GAUNTLET_RETRY__JITTER", "0"),
        ("GAUNTLET_POSTGRES_IMAGE", "not configuration"),
    ];
    let environment = environment
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect();
    let config = Loaded::from_text(&format!("{P1}{SOLO}"), "gauntlet.toml", environment)
        .unwrap()
        .config;
    assert_eq!(config.server.drain, Duration::from_millis(7));
    assert!(config.providers["p1"].api_key.is_some());
    assert_eq!(config.models["solo"].candidates[0].model, "other");
    assert_eq!(config.models["solo"].total, Duration::from_millis(900));
    assert_eq!(config.retry.jitter.to_bits(), 0.0_f64.to_bits());
}

/// The printed text is a file that means the same: two keys of one tenant, two candidates at one
/// provider, a name with a dot.
#[test]
fn what_is_printed_can_be_started_from() {
    let key = |digit: &str| {
        format!(
            "[[auth.keys]]\ntenant = \"a\"\nsha256 = \"{}\"\n",
            digit.repeat(64)
        )
    };
    let text = format!(
        "[store]\nurl = \"postgres://u:canary@h/db\"\n{}{}{P1}max_in_flight = 7\n[[models]]\nalias = \"llama3.2\"\ncandidates = [{{ provider = \"p1\", model = \"x\" }}, {{ provider = \"p1\", model = \"y\" }}]\n[models.timeouts]\ntotal_ms = 900\n[[models]]\nalias = \"{}\"\ncandidates = [{{ provider = \"p1\", model = \"x\" }}]\n",
        key("0"),
        key("1"),
        "é".repeat(200)
    );
    let loaded = Loaded::from_text(&text, "gauntlet.toml", Vec::new()).unwrap();
    let printed = loaded.print();
    assert!(!printed.contains("canary"), "{printed}");
    assert!(
        printed.contains("\n# url = \"postgres://[redacted]@h/db\"\n"),
        "{printed}"
    );
    let again = Loaded::from_text(printed, "printed", Vec::new())
        .unwrap_or_else(|error| panic!("{error}\n{printed}"));
    let fields = |config: &Config| {
        format!(
            "{:?} {:?} {:?} {:?}",
            config.auth, config.providers, config.models, config.orchestrator
        )
    };
    assert_eq!(fields(&again.config), fields(&loaded.config));
    assert_eq!(
        again.print().replace(
            "url = \"sqlite://gauntlet.db\"",
            "# url = \"postgres://[redacted]@h/db\""
        ),
        printed
    );

    // defaults give way to short times, and their printed values are within their own bounds
    let short = Loaded::from_text(
        &format!("[timeouts]\ntotal_ms = 100\nfirst_token_ms = 50\n{P1}{SOLO}"),
        "gauntlet.toml",
        Vec::new(),
    )
    .unwrap();
    let again = Loaded::from_text(short.print(), "printed", Vec::new()).unwrap();
    assert_eq!(
        (
            again.config.retry.base,
            again.config.models["solo"].candidates[0].timeouts.connect
        ),
        (Duration::from_millis(50), Duration::from_millis(50))
    );

    // each named variable overrides the key below it, and no other
    for (variable, value, read) in [
        ("GAUNTLET_MODELS__LLAMA3_2__CANDIDATES__P1__MODEL", "z", 0),
        ("GAUNTLET_MODELS__LLAMA3_2__CANDIDATES__1__MODEL", "z", 1),
    ] {
        assert!(printed.contains(variable), "{variable} in\n{printed}");
        let config = Loaded::from_text(
            &text,
            "gauntlet.toml",
            vec![(variable.into(), value.into())],
        )
        .unwrap()
        .config;
        assert_eq!(config.models["llama3.2"].candidates[read].model, "z");
    }
    for variable in [
        "GAUNTLET_AUTH__KEYS__A__SHA256",
        "GAUNTLET_AUTH__KEYS__1__SHA256",
        "GAUNTLET_MODELS__1__ALIAS",
    ] {
        assert!(printed.contains(variable), "{variable} in\n{printed}");
    }
}

#[test]
fn model_goes_over_provider_and_provider_over_default() {
    let text = format!(
        "[timeouts]\nconnect_ms = 1\nfirst_token_ms = 2\nidle_ms = 3\ntotal_ms = 100\n{P1}[providers.timeouts]\nfirst_token_ms = 20\nidle_ms = 30\n{SOLO}[models.timeouts]\nidle_ms = 40\n"
    );
    let model = &Config::from_toml(&text).unwrap().models["solo"];
    let ms = Duration::from_millis;
    assert_eq!(
        model.candidates[0].timeouts,
        Timeouts {
            connect: ms(1),
            first_token: ms(20),
            idle: ms(40)
        }
    );
    assert_eq!(model.total, ms(100));
}

#[test]
fn a_default_gives_way_to_a_models_shorter_deadline() {
    let model = &Config::from_toml(&format!("{P1}{SOLO}[models.timeouts]\ntotal_ms = 80\n"))
        .unwrap()
        .models["solo"];
    let ms = Duration::from_millis;
    assert_eq!(
        model.candidates[0].timeouts,
        Timeouts {
            connect: ms(80),
            first_token: ms(80),
            idle: ms(80)
        }
    );
}

#[test]
fn the_environment_appends_elements_in_the_order_of_their_indexes() {
    let variable = |index: usize, key: &str, value: String| {
        (format!("GAUNTLET_AUTH__KEYS__{index}__{key}"), value)
    };
    let environment = (0..12).flat_map(|index| {
        [
            variable(index, "TENANT", format!("t{index}")),
            variable(index, "SHA256", format!("{index:064x}")),
        ]
    });
    let keys = Loaded::from_text("", "gauntlet.toml", environment.collect())
        .unwrap()
        .config
        .auth
        .keys;
    assert!(
        keys.iter()
            .enumerate()
            .all(|(index, key)| key.tenant == format!("t{index}"))
            && keys.len() == 12,
        "{keys:?}"
    );
}

#[test]
fn a_user_and_password_are_taken_out_of_the_url() {
    let read = |url: &str| {
        Config::from_toml(&P1.replace("http://127.0.0.1:1/v1", url))
            .unwrap()
            .providers["p1"]
            .clone()
    };
    for (url, base_url, user) in [
        ("http://h/v1", "http://h/v1", None),
        ("http://us:p%40ss@h:8/v1/", "http://h:8/v1", Some("us:p@ss")),
        ("https://token@h", "https://h/", Some("token:")),
    ] {
        let provider = read(url);
        assert_eq!(
            (
                provider.base_url.to_string().as_str(),
                provider.user.as_ref().map(ExposeSecret::expose_secret)
            ),
            (base_url, user),
            "{url}"
        );
    }
}

/// PARA-02: a stalled provider leaves permits of the listener to the others.
#[test]
fn one_provider_cannot_hold_every_permit_of_the_listener() {
    let config = Config::from_toml(&format!("{P1}{SOLO}")).unwrap();
    let p1 = &config.providers["p1"];
    assert!(p1.max_in_flight + p1.queue < config.server.max_in_flight);
}

#[test]
fn keys_in_the_file_make_a_key_required() {
    let keys = format!(
        "[[auth.keys]]\ntenant = \"a\"\nsha256 = \"{}\"\n",
        "0".repeat(64)
    );
    assert_eq!(Config::from_toml(&keys).unwrap().auth.required, Some(true));
    assert_eq!(
        Config::from_toml(&format!("[auth]\nrequired = false\n{keys}"))
            .unwrap()
            .auth
            .required,
        Some(false)
    );
    assert_eq!(
        Config::from_toml("").unwrap().auth.required,
        None,
        "a key in the store decides, at start"
    );
}

#[test]
fn a_provider_without_a_url_has_the_default_of_its_protocol() {
    let text = "[[providers]]\nname = \"p1\"\nprotocol = \"ollama\"\n";
    let loaded = Loaded::from_text(text, "gauntlet.toml", Vec::new()).unwrap();
    let p1 = &loaded.config.providers["p1"];
    assert_eq!(
        (p1.protocol, p1.base_url.to_string().as_str()),
        ("ollama", "http://127.0.0.1:11434/")
    );
    assert!(
        loaded
            .print()
            .contains("\n# base_url = \"http://127.0.0.1:11434\"\n"),
        "{}",
        loaded.print()
    );
}

/// A file bounds every step without naming one; a step's own cap goes over it.
#[test]
fn step_cap_is_the_cap_of_each_step_that_writes_none() {
    let text = "[orchestrator]\ndeadline_ms = 50000\nstep_cap_ms = 40000\n[orchestrator.steps.review]\ncap_ms = 7\n";
    let loaded = Loaded::from_text(text, "gauntlet.toml", Vec::new()).unwrap();
    let steps = &loaded.config.orchestrator.steps;
    assert!(steps.len() > 1);
    for (name, step) in steps {
        let expected = if name == "review" { 7 } else { 40_000 };
        assert_eq!(step.cap, Duration::from_millis(expected), "{name}");
        assert!(step.minimum <= step.cap, "{name}");
    }
    let again = Config::from_toml(loaded.print()).unwrap();
    assert_eq!(again.orchestrator.steps, *steps);
}

/// A step or protocol brings its keys, defaults, documentation and messages with its row.
#[test]
fn a_new_kind_needs_nothing_but_its_row() {
    const KINDS: Kinds = Kinds {
        steps: &[StepSettings {
            name: "translation",
            cap: Duration::from_millis(900),
            minimum: Duration::from_millis(9),
            asks_model: true,
        }],
        protocols: &[ProtocolSettings {
            name: "anthropic",
            default_base_url: "https://api.anthropic.com",
            description: "Anthropic's messages",
        }],
    };
    let load = |text: &str| Loaded::with_kinds(text, "gauntlet.toml", &[], &KINDS);
    let text = "[[providers]]\nname = \"p1\"\nprotocol = \"anthropic\"\n";
    let loaded = load(&format!("{text}{SOLO}")).unwrap();
    let config = &loaded.config;
    assert_eq!(config.providers["p1"].protocol, "anthropic");
    assert_eq!(
        config.orchestrator.steps["translation"],
        StepConfig {
            cap: Duration::from_millis(900),
            minimum: Duration::from_millis(9)
        }
    );
    assert_eq!(config.orchestrator.models["translation"], "solo");
    for shown in [
        "[orchestrator.steps.translation]",
        "GAUNTLET_ORCHESTRATOR__MODELS__TRANSLATION",
        "\"anthropic\": Anthropic's messages.",
    ] {
        assert!(loaded.print().contains(shown), "{shown}");
    }
    let refused = load(P1).unwrap_err();
    assert_eq!(
        refused.problems,
        ["providers.p1.protocol = \"openai\" is not possible: write \"anthropic\""]
    );
}
