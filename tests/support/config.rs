//! The configuration of a gateway for tests, written in one way.

/// A provider of the configuration.
pub struct Provider<'a> {
    pub name: &'a str,
    pub protocol: &'a str,
    pub base_url: &'a str,
    pub api_key: Option<&'a str>,
}

/// Writes the text of a `gauntlet.toml`: the gateway listens on a free port and keeps its data in
/// memory. All providers are candidates of the alias `solo`, in their order, and the model of the
/// provider `p1` is `m-p1`. `sections` is further text; it may have a `[server]` or a `[store]` of
/// its own.
pub fn toml(providers: &[Provider<'_>], sections: &str) -> String {
    let listen = "[server]\nlisten = \"127.0.0.1:0\"\n";
    let mut text = match sections.contains("[server]\n") {
        true => sections.replacen("[server]\n", listen, 1),
        false => format!("{listen}{sections}"),
    };
    if !sections.contains("[store]\n") {
        text.push_str("\n[store]\nurl = \"sqlite::memory:\"\n");
    }
    let mut candidates = Vec::new();
    for provider in providers {
        let Provider {
            name,
            protocol,
            base_url,
            api_key,
        } = provider;
        text.push_str(&format!(
            "[[providers]]\nname = \"{name}\"\nprotocol = \"{protocol}\"\nbase_url = \"{base_url}\"\n"
        ));
        if let Some(key) = api_key {
            text.push_str(&format!("api_key = \"{key}\"\n"));
        }
        candidates.push(format!("{{ provider = \"{name}\", model = \"m-{name}\" }}"));
    }
    if candidates.is_empty() {
        return text;
    }
    format!(
        "{text}[[models]]\nalias = \"solo\"\ncandidates = [{}]\n",
        candidates.join(", ")
    )
}

/// Writes an `[[auth.keys]]` entry for the token.
pub fn auth_key(tenant: &str, token: &str) -> String {
    let hash = gauntlet::store::token_hash(token);
    format!("[[auth.keys]]\ntenant = \"{tenant}\"\nsha256 = \"{hash}\"\n")
}
