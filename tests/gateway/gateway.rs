//! Gateways for tests: one provider `p1` behind the alias `solo`, and whatever else a test writes.

use std::net::SocketAddr;
use std::sync::Arc;

use gauntlet::config::Config;
use gauntlet::{Gateway, RunningGateway};

use super::memory::MemoryStore;
use super::provider::Provider;

pub struct Started {
    pub running: RunningGateway,
    pub address: SocketAddr,
    pub provider: Provider,
    pub store: Arc<MemoryStore>,
}

pub fn toml(providers: &[(&str, &str)], further: &str) -> String {
    let mut text = further.to_owned();
    for (name, base_url) in providers {
        text.push_str(&format!(
            "\n[[providers]]\nname = \"{name}\"\nprotocol = \"openai\"\nbase_url = \"{base_url}\"\napi_key = \"sk-canary-provider\"\n"
        ));
    }
    let candidates: Vec<_> = providers
        .iter()
        .map(|(name, _)| format!("{{ provider = \"{name}\", model = \"m-{name}\" }}"))
        .collect();
    format!(
        "{text}\n[[models]]\nalias = \"solo\"\ncandidates = [{}]\n",
        candidates.join(", ")
    )
}

/// A gateway over `solo`; `further` is put before its providers.
pub async fn start(further: &str) -> Started {
    start_over(further, MemoryStore::default()).await
}

pub async fn start_over(further: &str, store: MemoryStore) -> Started {
    let provider = Provider::start().await;
    let further = if further.contains("[server]") {
        further.replace("[server]", "[server]\nlisten = \"127.0.0.1:0\"")
    } else {
        format!("[server]\nlisten = \"127.0.0.1:0\"\n{further}")
    };
    let config = Config::from_toml(&toml(&[("p1", &provider.base_url)], &further)).unwrap();
    let store = Arc::new(store);
    let running = Gateway::start_with(config, store.clone()).await.unwrap();
    Started {
        address: running.addr,
        running,
        provider,
        store,
    }
}
