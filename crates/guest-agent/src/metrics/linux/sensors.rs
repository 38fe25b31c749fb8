//! How warm the processor is. Few guests can tell: it takes a thermal zone or a sensor that was passed through.

use super::files::Files;
use super::text::lines;
use crate::metrics::rates::round;

/// Zones, or chips, that are looked at.
const MAX_SENSORS: usize = 32;

/// Degrees Celsius, by the first sensor that says it is the processor's, or else by the first thermal zone.
pub(super) fn temperature(files: &mut Files) -> Option<f64> {
    let is_processor = |name: &[u8]| {
        [&b"x86_pkg_temp"[..], b"coretemp", b"k10temp", b"zenpower", b"cpu_thermal", b"soc_thermal"].contains(&name)
            || name.starts_with(b"cpu")
    };
    let zones = sensors(files, "sys/class/thermal", "thermal_zone", "type", "temp");
    let chips = sensors(files, "sys/class/hwmon", "hwmon", "name", "temp1_input");
    let known = zones.iter().chain(&chips).find(|(name, _)| is_processor(name));
    known.or(zones.first()).map(|(_, degrees)| *degrees)
}

/// Names and degrees.
fn sensors(files: &mut Files, class: &str, prefix: &str, name: &str, value: &str) -> Vec<(Vec<u8>, f64)> {
    let Ok(entries) = std::fs::read_dir(files.path(class)) else { return Vec::new() };
    let mut entries: Vec<_> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|entry| entry.starts_with(prefix))
        .take(MAX_SENSORS)
        .collect();
    entries.sort_unstable();
    let mut found = Vec::new();
    for entry in entries {
        let Ok(Some(text)) = files.read_if_there(&format!("{class}/{entry}/{value}"), 64) else { continue };
        let Some(degrees) = parse(text) else { continue };
        let Ok(Some(text)) = files.read_if_there(&format!("{class}/{entry}/{name}"), 64) else { continue };
        found.push((text.trim_ascii().to_vec(), degrees));
    }
    found
}

/// Thousandths of a degree. A sensor that is absent says 0, or what no processor survives.
fn parse(text: &[u8]) -> Option<f64> {
    let thousandths: i32 = std::str::from_utf8(lines(text).next()?).ok()?.trim().parse().ok()?;
    let degrees = f64::from(thousandths) / 1000.0;
    (degrees != 0.0 && (-60.0..=150.0).contains(&degrees)).then(|| round(degrees, 1))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn write(root: &std::path::Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn the_processors_own_sensor_comes_first() {
        let root = tempfile::tempdir().unwrap();
        let mut files = Files::new(root.path().to_owned());
        assert_eq!(temperature(&mut files), None);
        write(root.path(), "sys/class/thermal/thermal_zone0/type", "acpitz\n");
        write(root.path(), "sys/class/thermal/thermal_zone0/temp", "27800\n");
        assert_eq!(temperature(&mut files), Some(27.8));
        write(root.path(), "sys/class/hwmon/hwmon1/name", "coretemp\n");
        write(root.path(), "sys/class/hwmon/hwmon1/temp1_input", "51000\n");
        assert_eq!(temperature(&mut files), Some(51.0));
    }

    #[test]
    fn what_no_processor_has_is_no_temperature() {
        assert_eq!(parse(b"45123\n"), Some(45.1));
        assert_eq!(parse(b"-5000\n"), Some(-5.0));
        for wrong in [&b""[..], b"0\n", b"999999\n", b"warm\n", b"\xff\n", b"99999999999\n"] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }
}
