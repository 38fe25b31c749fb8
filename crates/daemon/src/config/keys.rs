//! The rows of the configuration.

/// One setting.
#[derive(Debug)]
pub(super) struct Key {
    /// Its name in files and `--set`.
    pub(super) name: &'static str,
    /// Its environment variables; the first wins.
    pub(super) env: &'static [&'static str],
    /// Its value when nobody sets it; `None` where it depends on other things.
    pub(super) default: Option<&'static str>,
    /// From a variable's text to the setting's own: aliases may speak another language.
    pub(super) translate: fn(variable: &str, value: &str) -> Result<String, String>,
}

const fn key(name: &'static str, env: &'static [&'static str], default: Option<&'static str>) -> Key {
    Key { name, env, default, translate: same }
}

pub(super) const KEYS: &[Key] = &[
    key("state_dir", &["ROOST_STATE_DIR"], None),
    key("runtime_dir", &["ROOST_RUNTIME_DIR"], None),
    key("socket", &["ROOST_SOCKET"], None),
    key("backend", &["ROOST_BACKEND", "VMCP_BACKEND"], Some("qemu")),
    key("log.format", &["ROOST_LOG_FORMAT"], Some("text")),
    key("log.level", &["ROOST_LOG_LEVEL"], Some("info")),
    key("reconcile_period_seconds", &["ROOST_RECONCILE_PERIOD_SECONDS"], Some("5")),
    key("parallel_starts", &["ROOST_PARALLEL_STARTS"], Some("8")),
    key("qemu.binary", &["ROOST_QEMU_BINARY", "VMCP_QEMU_BINARY"], Some("qemu-system-x86_64")),
    Key {
        name: "qemu.accelerator",
        env: &["ROOST_QEMU_ACCELERATOR", "VMCP_QEMU_KVM"],
        default: Some("auto"),
        translate: accelerator,
    },
    key("qemu.console_binary", &["ROOST_QEMU_CONSOLE_BINARY"], None),
    key("sim.enabled", &["ROOST_SIM_ENABLED"], Some("false")),
    key("sim.hosted", &["ROOST_SIM_HOSTED"], Some("true")),
];

fn same(_variable: &str, value: &str) -> Result<String, String> {
    Ok(value.to_owned())
}

/// `VMCP_QEMU_KVM` says whether KVM may be used: yes is "where it works", as in `auto`.
fn accelerator(variable: &str, value: &str) -> Result<String, String> {
    match (variable, value) {
        ("VMCP_QEMU_KVM", "true") => Ok("auto".to_owned()),
        ("VMCP_QEMU_KVM", "false") => Ok("tcg".to_owned()),
        ("VMCP_QEMU_KVM", _) => Err("permitted: true, false".to_owned()),
        _ => Ok(value.to_owned()),
    }
}
