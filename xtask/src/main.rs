//! `cargo xtask`: the command line of [`xtask`].

#![forbid(unsafe_code)]

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Tasks of the Roost repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Make the tiny guest: Debian's kernel and an initramfs, without root, cached.
    GuestImage {
        /// Print lines of KEY=VALUE instead: kernel, initrd, kernel_args.
        #[arg(long)]
        print_paths: bool,
    },
    /// Build the guest agent as one static program, and print its path.
    Agent,
    /// Build the micro guest, which has no operating system, and print its path.
    MicroGuest,
}

fn main() -> Result<()> {
    match Arguments::parse().task {
        Task::GuestImage { print_paths } => guest_image(print_paths),
        Task::Agent => {
            println!("{}", xtask::static_agent()?.display());
            Ok(())
        }
        Task::MicroGuest => {
            println!("{}", xtask::micro_guest()?.display());
            Ok(())
        }
    }
}

fn guest_image(print_paths: bool) -> Result<()> {
    let guest = xtask::tiny_guest()?;
    let (kernel, initrd) = (guest.kernel.display(), guest.initrd.display());
    let args = xtask::KERNEL_ARGS;
    if print_paths {
        println!("kernel={kernel}\ninitrd={initrd}\nkernel_args={args}");
    } else {
        println!("kernel       {kernel}\ninitrd       {initrd}\nkernel args  {args}");
    }
    Ok(())
}
