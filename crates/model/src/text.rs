//! Text with a checked form: what every such newtype has in common.

/// Implements `as_str`, `Display` and the stored form of newtypes over `String` that have `FromStr`.
macro_rules! checked_text {
    ($($name:ident),+ $(,)?) => { $(
        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = $crate::error::Invalid;

            fn try_from(text: String) -> Result<Self, $crate::error::Invalid> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.0
            }
        }
    )+ };
}
pub(crate) use checked_text;
