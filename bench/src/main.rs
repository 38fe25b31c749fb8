//! `make bench`: what Roost costs, as ratios to the same work done by hand.
//!
//! Owns the choice of benchmarks, their order and their output. Pairs are interleaved, and whoever is
//! first changes from pair to pair: machines differ from minute to minute. Nothing here is a test; a
//! bar that is missed is printed and does not fail the run.
#![forbid(unsafe_code)]

mod by_hand;
mod creates;
mod daemon;
mod ends;
mod host;
mod launches;
mod report;
mod stamp;
mod stats;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};

use crate::report::Row;

/// Measures Roost against the same work done by hand.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Flags {
    /// Only these [default: all]
    #[arg(value_enum)]
    only: Vec<Bench>,
    /// Where the figures go as JSON [default: bench.json beside this program]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// A few runs of each: whether it works, not how fast
    #[arg(long)]
    quick: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Bench {
    /// Create to guest up, with the tiny Linux guest
    Cold,
    /// CPU time of the daemon for a create
    Cpu,
    /// Request to running, with the micro guest
    Running,
    /// Exec of QEMU to QMP running, with the micro guest
    Exec,
    /// Durable creates on the simulator
    Creates,
    /// From a killed QEMU to the recorded exit
    Exits,
    /// Re-adoption of 10,000 VMs of the simulator
    AdoptSim,
    /// Re-adoption of 10 QEMUs
    AdoptReal,
}

fn main() -> Result<()> {
    stamp::become_qemu();
    let flags = Flags::parse();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(flags))
}

async fn run(flags: Flags) -> Result<()> {
    let mut facts = host::facts();
    let temporary = std::env::temp_dir();
    facts.push(("fdatasync p50 before", format!("{:.2} ms", host::fdatasync_p50_ms(&temporary, 200)?)));
    let (mut rows, mut failed, begun) = (Vec::new(), 0, Instant::now());
    for bench in Bench::value_variants() {
        if flags.only.is_empty() || flags.only.contains(bench) {
            let begun = Instant::now();
            match measure(*bench, flags.quick).await {
                Ok(measured) => rows.extend(measured),
                // The others are worth having.
                Err(error) => {
                    eprintln!("bench: {bench:?} failed: {error:#}");
                    failed += 1;
                }
            }
            eprintln!("bench: {bench:?} took {:.0} s", begun.elapsed().as_secs_f64());
        }
    }
    facts.push(("fdatasync p50 after", format!("{:.2} ms", host::fdatasync_p50_ms(&temporary, 200)?)));
    facts.push(("all took", format!("{:.0} s", begun.elapsed().as_secs_f64())));
    for (key, value) in &facts {
        println!("{key}: {value}");
    }
    println!("\n{}", report::table(&rows));
    let path = flags.json.map_or_else(|| daemon::beside_us("bench").map(|own| own.with_extension("json")), Ok)?;
    std::fs::write(&path, format!("{:#}\n", report::json(&facts, &rows)))?;
    println!("as JSON: {}", path.display());
    ensure!(failed == 0, "{failed} of the benchmarks failed");
    Ok(())
}

async fn measure(bench: Bench, quick: bool) -> Result<Vec<Row>> {
    let runs = |many, few| if quick { few } else { many };
    match bench {
        Bench::Cold => launches::cold_create(runs(9, 1)).await,
        Bench::Cpu => launches::cpu_of_create(runs(5, 1), 20).await,
        Bench::Running => launches::request_to_running(runs(25, 2)).await,
        Bench::Exec => launches::exec_to_running(runs(25, 2)).await,
        Bench::Creates => {
            let mut rows = creates::durable(runs(5, 1), 1, runs(300, 30), None).await?;
            rows.extend(creates::durable(runs(5, 1), 64, runs(6_400, 640), Some(2_000.0)).await?);
            Ok(rows)
        }
        Bench::Exits => ends::killed_to_recorded(runs(15, 2)).await,
        Bench::AdoptSim => ends::readopt_sim(runs(7, 1), runs(10_000, 2_000)).await,
        Bench::AdoptReal => ends::readopt_real(runs(7, 1), 10).await,
    }
}
