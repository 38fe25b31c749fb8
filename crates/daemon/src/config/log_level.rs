//! What `log.level` may be: a level, or levels by module.
//!
//! Stricter than the library that reads it, which takes a misspelt level for the name of a module and
//! then logs all of that and nothing else.

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Whether it is one.
pub(super) fn check(text: &str) -> Result<(), String> {
    text.split(',').try_for_each(|part| {
        let (module, level) = match part.split_once('=') {
            Some((module, level)) => (Some(module), level),
            None => (None, part),
        };
        if !LEVELS.iter().any(|known| known.eq_ignore_ascii_case(level)) {
            return Err(format!(
                "{level:?} is no level; permitted: {}, or MODULE=LEVEL, joined by commas",
                LEVELS.join(", ")
            ));
        }
        match module {
            Some(module)
                if module.is_empty() || !module.chars().all(|c| c.is_ascii_alphanumeric() || "_:".contains(c)) =>
            {
                Err(format!("{module:?} is no module; permitted: letters, digits, _ and ::, e.g. roost_engine=debug"))
            }
            _ => Ok(()),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn levels_and_modules_and_nothing_else() {
        for good in ["info", "WARN", "off", "info,roost_engine=debug", "roost_engine::actor=trace,warn"] {
            assert_eq!(check(good), Ok(()), "{good}");
            assert!(good.parse::<tracing_subscriber::filter::Targets>().is_ok(), "{good}");
        }
        for (bad, named) in [
            ("warning", "\"warning\""),
            ("", "\"\""),
            ("info,", "\"\""),
            ("roost_engine", "\"roost_engine\""),
            ("roost_engine=loud", "\"loud\""),
            ("=debug", "\"\" is no module"),
            ("roost engine=debug", "\"roost engine\""),
            ("[span]=debug", "\"[span]\""),
        ] {
            let said = check(bad).unwrap_err();
            assert!(said.contains(named), "{bad}: {said}");
        }
    }
}
