//! The kinds of which each has one row: a variant, its name and one sentence about it.

/// Makes an enum of rows. Each variant has a name, which records and files hold, and a sentence,
/// which is its documentation and the result of the method that the head names.
macro_rules! kinds {
    (
        $(#[$about:meta])*
        $kind:ident;
        $(#[$about_sentence:meta])*
        $sentence:ident;
        $($variant:ident $name:literal $text:literal)*
    ) => {
        $(#[$about])*
        #[derive(
            Clone,
            Copy,
            Debug,
            PartialEq,
            Eq,
            PartialOrd,
            Ord,
            Hash,
            ::serde::Serialize,
            ::serde::Deserialize,
        )]
        pub enum $kind {
            $(
                #[doc = $text]
                #[serde(rename = $name)]
                $variant,
            )*
        }

        impl $kind {
            /// Every variant, in the order of the rows.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name in records, in files and on the command line.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            $(#[$about_sentence])*
            #[must_use]
            pub const fn $sentence(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }

        impl ::std::fmt::Display for $kind {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

pub(crate) use kinds;
