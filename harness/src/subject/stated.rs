//! What a target file states about its gateway, one row each: a key, its default, a sentence.

/// Makes a table of a target file from its rows: each key has a default, which is a `String` or a
/// literal of its type, and a sentence, which is its documentation.
macro_rules! stated {
    (
        $(#[$about:meta])*
        $name:ident;
        $($key:ident: $type:ident = $default:literal $sentence:literal)*
    ) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, Eq, ::serde::Serialize, ::serde::Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $(
                #[doc = $sentence]
                pub $key: $type,
            )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $crate::subject::stated::stated!(@value $type $default),)* }
            }
        }

        impl $name {
            /// Every key with its default and its sentence.
            pub const ROWS: &'static [(&'static str, &'static str, &'static str)] = &[$((
                stringify!($key),
                $crate::subject::stated::stated!(@shown $type $default),
                $sentence,
            )),*];
        }
    };
    (@value String $default:literal) => { String::from($default) };
    (@value $type:ident $default:literal) => { $default };
    (@shown String $default:literal) => { $default };
    (@shown $type:ident $default:literal) => { stringify!($default) };
}

pub(crate) use stated;

/// Asserts that the table of fixtures/targets/README.md whose first line begins with `head` has
/// exactly these rows.
#[cfg(test)]
pub(super) fn assert_table_of_the_readme(head: &str, rows: impl Iterator<Item = String>) {
    let readme = include_str!("../../../fixtures/targets/README.md");
    let listed: Vec<&str> = readme
        .lines()
        .skip_while(|line| !line.starts_with(head))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .collect();
    let rows: Vec<String> = rows.collect();
    assert_eq!(
        listed,
        rows,
        "the table of fixtures/targets/README.md has to be:\n{}",
        rows.join("\n")
    );
}
