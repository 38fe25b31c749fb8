//! From a configuration to a running daemon, and back down again in order.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use roost_backend::{Backend, EventSender};
use roost_backend_qemu::{QemuBackend, QemuConfig};
use roost_backend_sim::{SimBackend, SimConfig};
use roost_engine::{Engine, EngineConfig};
use roost_host::dirs::{DirLock, ensure_private_dir};
use roost_store::Store;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::config::Config;
use crate::guests::Guests;
use crate::{logging, seams, serve};

/// What the API's handlers share.
#[derive(Debug)]
pub(crate) struct Daemon {
    /// The engine.
    pub(crate) engine: Engine,
    /// What is done inside guests.
    pub(crate) guests: Guests,
    /// The configuration.
    pub(crate) config: Config,
}

/// Runs the daemon until it is told to stop.
pub fn run(config: Config) -> anyhow::Result<()> {
    logging::install(config.log_format, &config.log_level)?;
    make_state_dir(&config.state_dir)?;
    // Held until the end: one process owns a state directory.
    let _lock = DirLock::acquire(&config.state_dir).with_context(|| {
        let dir = config.state_dir.display();
        format!(
            "the state directory {dir} belongs to one daemon at a time: stop the other, or give another --state-dir"
        )
    })?;
    ensure_private_dir(&config.runtime_dir).context("the runtime directory cannot be used")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve_until_told(config))
}

async fn serve_until_told(config: Config) -> anyhow::Result<()> {
    // Before anything that takes time: a signal during the start is not lost.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let store = Store::open(&config.state_dir.join("state.db")).await?;
    let (events, received) = roost_backend::events();
    let backends = backends(&config, &events)?;
    let settings = EngineConfig {
        default_backend: config.backend.clone(),
        reconcile_period: config.reconcile_period,
        parallel_starts: config.parallel_starts,
        ..EngineConfig::default()
    };
    let (guests, happened) = Guests::new();
    let engine = Engine::start(settings, seams::real(Arc::new(guests.clone())), store.clone(), backends, received)
        .await
        .context("the engine could not start")?;
    guests.start(engine.clone(), happened);
    let listener = serve::Listener::bind(&config.socket).context("the API's socket cannot be bound")?;
    let socket = config.socket.clone();
    let daemon = Arc::new(Daemon { engine, guests, config });
    let (stop, stopped) = watch::channel(false);
    let serving = tokio::spawn(serve::serve(listener, serve::router(&daemon)?, stopped));
    tracing::info!(socket = %socket.display(), version = env!("CARGO_PKG_VERSION"), "serving");
    announce_ready();
    tokio::select! {
        _ = terminate.recv() => tracing::info!("told to stop; guests go on"),
        _ = interrupt.recv() => tracing::info!("interrupted; guests go on"),
    }
    stop.send_replace(true);
    // The engine first: it ends the waits and watches that keep calls open.
    daemon.engine.stop().await;
    serving.await.context("the API broke off")?;
    drop(daemon);
    store.close().await;
    tracing::info!("stopped");
    Ok(())
}

fn backends(config: &Config, events: &EventSender) -> anyhow::Result<Vec<Arc<dyn Backend>>> {
    let console = config.qemu.console_binary.clone().map_or_else(|| beside_us("roost-console"), Ok)?;
    let (run_dir, cache_dir) = (config.runtime_dir.join("vms"), config.state_dir.join("cache"));
    let qemu = QemuConfig {
        binary: config.qemu.binary.clone(),
        accelerator: config.qemu.accelerator,
        ..QemuConfig::new(run_dir, config.state_dir.clone(), cache_dir, console)
    };
    let mut backends: Vec<Arc<dyn Backend>> = vec![Arc::new(QemuBackend::new(qemu, events.clone())?)];
    if config.sim.enabled || config.backend.as_str() == "sim" {
        let sim = SimConfig::default();
        backends.push(if config.sim.hosted {
            let socket = config.runtime_dir.join("simhost.sock");
            let sim = SimConfig { host_binary: Some(beside_us("roost-simhost")?), ..sim };
            Arc::new(SimBackend::hosted(&socket, sim, events.clone()))
        } else {
            Arc::new(SimBackend::in_process(sim, events.clone()))
        });
    }
    Ok(backends)
}

/// Our other programs are in the directory that this one was started from.
fn beside_us(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("our own path is not known")?;
    let beside = own.with_file_name(name);
    if !beside.exists() {
        bail!("{} is missing: install it beside {}", beside.display(), own.display());
    }
    Ok(beside)
}

/// As root other users' machines live below, so that it can be passed through; else it is private.
fn make_state_dir(path: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(path).with_context(|| format!("the state directory {} cannot be made", path.display()))?;
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
        .with_context(|| format!("the state directory {} is not ours", path.display()))?;
    Ok(())
}

/// Tells whoever started us that we serve: a line on the descriptor that they named.
fn announce_ready() {
    let Ok(number) = std::env::var("ROOST_READY_FD") else { return };
    let told = || -> anyhow::Result<()> {
        match number.parse()? {
            1 => Ok(std::io::stdout().write_all(b"ready\n")?),
            number => Ok(std::fs::File::from(roost_host::inherited::take(number)?).write_all(b"ready\n")?),
        }
    };
    if let Err(error) = told() {
        tracing::warn!(error = %error, "ROOST_READY_FD cannot be written");
    }
}
