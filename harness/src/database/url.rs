//! The URLs of Postgres servers: they are parsed and rendered without losing what the user wrote.

use std::fmt;

use super::DatabaseError;

/// A server and the login for it. `Debug` and `Display` hide the password.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct ServerUrl {
    /// `user` or `user:password`, with the percent-encoding that the user wrote.
    pub login: String,
    pub host: String,
    pub port: u16,
    pub database: String,
    /// The text after the question mark, as the user wrote it.
    query: Option<String>,
}

impl fmt::Debug for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.host, self.port, self.database)
    }
}

impl ServerUrl {
    /// Makes the URL of a server that the harness started.
    pub fn new(login: String, host: String, port: u16) -> Self {
        Self {
            login,
            host,
            port,
            database: "postgres".into(),
            query: None,
        }
    }

    /// Reads `postgres://user:password@host:port/database?sslmode=…`.
    pub fn parse(url: &str) -> Result<Self, DatabaseError> {
        // the URL may hold a password, so that the message must not quote it
        let wrong = |what: &str| {
            DatabaseError::Url(format!(
                "the URL of the database {what}; give postgres://user:password@host:port/database"
            ))
        };
        let rest = url
            .strip_prefix("postgres://")
            .or_else(|| url.strip_prefix("postgresql://"))
            .ok_or_else(|| wrong("does not begin with postgres://"))?;
        let (rest, query) = rest
            .split_once('?')
            .map_or((rest, None), |(rest, query)| (rest, Some(query.to_owned())));
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, address) = authority
            .rsplit_once('@')
            .ok_or_else(|| wrong("has no user"))?;
        let (host, port) = match address.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (
                host,
                port.parse()
                    .map_err(|_| wrong("has a port that is not a number"))?,
            ),
            _ => (address, 5432),
        };
        if host.is_empty() {
            return Err(wrong(
                "has no host (the folder of a Unix socket is not enough, because the wire relays a TCP \
                 port)",
            ));
        }
        let database = if database.is_empty() {
            "postgres"
        } else {
            database
        };
        Ok(Self {
            login: login.into(),
            host: host.into(),
            port,
            database: database.into(),
            query,
        })
    }

    /// Renders the URL of a database for this login and address.
    pub fn render(&self, login: &str, host: &str, port: u16, database: &str) -> String {
        let query = self
            .query
            .as_ref()
            .map_or(String::new(), |query| format!("?{query}"));
        format!("postgres://{login}@{host}:{port}/{database}{query}")
    }

    /// Renders the administrator's URL of a database at this server.
    pub fn admin(&self, database: &str) -> String {
        self.render(&self.login, &self.host, self.port, database)
    }

    /// Returns the name of the user, as statements need it.
    pub fn user(&self) -> &str {
        self.login.split(':').next().unwrap_or(&self.login)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_rendered_url_differs_in_database_and_address_alone() {
        let url = ServerUrl::parse("postgresql://me:p%40ss@db.example:6000/main?sslmode=disable")
            .unwrap();
        assert_eq!(
            url.admin("other"),
            "postgres://me:p%40ss@db.example:6000/other?sslmode=disable"
        );
        assert_eq!(
            url.render("r:x", "127.0.0.1", 1, "d"),
            "postgres://r:x@127.0.0.1:1/d?sslmode=disable"
        );
        assert_eq!(
            format!("{url} {url:?}"),
            "db.example:6000/main db.example:6000/main"
        );
        let short = ServerUrl::parse("postgres://me@[::1]").unwrap();
        assert_eq!(
            (short.host.as_str(), short.port, short.database.as_str()),
            ("[::1]", 5432, "postgres")
        );
    }

    #[test]
    fn the_message_for_a_wrong_url_does_not_quote_it() {
        for url in [
            "mysql://u:secret@h/d",
            "postgres://h/d",
            "postgres://u:secret@h:port/d",
            "postgres://u:secret@/d",
        ] {
            assert!(
                !ServerUrl::parse(url)
                    .unwrap_err()
                    .to_string()
                    .contains("secret"),
                "{url}"
            );
        }
    }
}
