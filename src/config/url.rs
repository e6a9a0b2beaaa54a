//! URLs that hold secrets: how they are shown, and how user and password are split off.

use http::Uri;
use percent_encoding::percent_decode_str;

/// A URL without user and password, and these as `user:password` (RFC 3986 section 3.2.1) without
/// percent-encoding. Fails if they are not UTF-8, or if the rest is no URL.
pub(super) fn split_user(url: &str) -> Result<(Uri, Option<String>), ()> {
    let mut parts = url.parse::<Uri>().map_err(drop)?.into_parts();
    let authority = parts.authority.take().ok_or(())?;
    let (user, host) = authority
        .as_str()
        .rsplit_once('@')
        .unwrap_or(("", authority.as_str()));
    let user = percent_decode_str(user).decode_utf8().map_err(drop)?;
    let user = match (user.is_empty(), user.contains(':')) {
        (true, _) => None,
        (false, true) => Some(user.into_owned()),
        (false, false) => Some(format!("{user}:")),
    };
    parts.authority = Some(host.parse().map_err(drop)?);
    Ok((Uri::from_parts(parts).map_err(drop)?, user))
}

/// Returns a URL without its user, password and query values, to be shown to people.
///
/// A password may hold any character, also one that ends a host: everything before the last `@` is
/// taken for user and password. An `@` after a `?` may belong to a query value as well: then only
/// the scheme is shown.
#[must_use]
pub fn redact_url(url: &str) -> String {
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), url),
    };
    let (user, rest) = match rest.rsplit_once('@') {
        Some((user, _)) if user.contains('?') && !scheme.is_empty() => {
            return format!("{scheme}[redacted]");
        }
        Some((_, rest)) if !scheme.is_empty() => ("[redacted]@", rest),
        _ => ("", rest),
    };
    let Some((base, query)) = rest.split_once('?') else {
        return format!("{scheme}{user}{rest}");
    };
    let names = query
        .split('&')
        .map(|pair| pair.split('=').next().unwrap_or_default());
    let query: Vec<_> = names.map(|name| format!("{name}=[redacted]")).collect();
    format!("{scheme}{user}{base}?{}", query.join("&"))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::plain("postgres://host:5432/db", "postgres://host:5432/db")]
    #[case::password("postgres://user:canary@host/db", "postgres://[redacted]@host/db")]
    #[case::slash("postgres://user:can/canary@host/db", "postgres://[redacted]@host/db")]
    #[case::question_mark("postgres://user:can?canary@host/db", "postgres://[redacted]")]
    #[case::at("postgres://user:can@canary@host/db", "postgres://[redacted]@host/db")]
    #[case::all(
        "https://user:c/an@ary/canary@host/v1?key=canary&x",
        "https://[redacted]@host/v1?key=[redacted]&x=[redacted]"
    )]
    #[case::at_in_the_query("postgres://host/db?password=c@canary", "postgres://[redacted]")]
    #[case::no_scheme("sqlite:data.db?mode=ro", "sqlite:data.db?mode=[redacted]")]
    #[case::path("sqlite://a@b.db", "sqlite://[redacted]@b.db")]
    fn urls_are_shown_without_user_password_and_query_values(
        #[case] url: &str,
        #[case] shown: &str,
    ) {
        assert_eq!(redact_url(url), shown);
        assert!(!redact_url(url).contains("canary"));
    }
}
