//! `dashboard`.

use clap::Args;

/// `dashboard`.
#[derive(Args)]
pub(crate) struct DashboardArgs {
    /// Print the link and open nothing
    #[arg(long)]
    pub(crate) print: bool,
    /// A session that sees everything and changes nothing, for a screen on a wall
    #[arg(long)]
    pub(crate) read_only: bool,
}
