//! `dashboard`: a link into the page of a member, opened where there is a screen.

use std::io::IsTerminal as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::Serialize;

use super::Context;
use crate::cli::DashboardArgs;
use crate::duration;
use crate::exit::Outcome;
use crate::output::{self, Text};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LinkView {
    /// Good once.
    url: String,
    /// How long it is.
    valid_for_seconds: u64,
    /// How long the session lasts that it begins.
    session_seconds: u64,
    /// Whose page it is.
    member: String,
    role: &'static str,
}

/// `dashboard`.
pub(super) async fn run(context: &Context, args: DashboardArgs) -> Outcome {
    let client = context.client()?;
    let signed = client.sign_in(args.read_only).await?;
    let (address, link) = (signed.address, signed.link);
    let view = LinkView {
        valid_for_seconds: link.link_ms / 1_000,
        session_seconds: link.session_ms / 1_000,
        member: format!("cp-{}", link.member),
        role: if args.read_only { "reader" } else { "operator" },
        url: link.url,
    };
    context.output.print(&view, || Text::default().line(&view.url))?;
    if let Some(forward) = forward(&view.url, &address) {
        output::talk(format!("the page is on the machine of {}: first run `{forward}` here", view.member));
    } else if !args.print && has_screen() && open(&view.url) {
        output::talk("opened in the browser");
    }
    let seconds = duration::display(Duration::from_secs(view.valid_for_seconds));
    let session = duration::display(Duration::from_secs(view.session_seconds));
    output::talk(format!("the link is good once, within {seconds}; the session lasts {session}"));
    Ok(())
}

/// What makes a page reachable that listens on the loopback address of another machine.
fn forward(url: &str, member: &str) -> Option<String> {
    let authority = url.split_once("://")?.1.split(['/', '#']).next()?;
    let (page, port) = authority.rsplit_once(':')?;
    let (host, _) = member.rsplit_once(':')?;
    let is_here = |host: &str| {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    };
    (is_here(page) && !is_here(host)).then(|| format!("ssh -N -L {port}:{page}:{port} {host}"))
}

/// A person in front of a screen, and no program that reads what is printed.
fn has_screen() -> bool {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    std::io::stdout().is_terminal() && (is_set("DISPLAY") || is_set("WAYLAND_DISPLAY"))
}

/// Whether something took it; the link is printed in any case.
fn open(url: &str) -> bool {
    let mut opener = Command::new("xdg-open");
    opener.arg(url).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    opener.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_another_machine_needs_a_forwarded_port() {
        let page = "http://127.0.0.1:7430/sign-in#secret";
        assert_eq!(forward(page, "cp-1.mesh.example:7400").unwrap(), "ssh -N -L 7430:127.0.0.1:7430 cp-1.mesh.example");
        assert_eq!(forward(page, "127.0.0.1:7400"), None);
        assert_eq!(forward(page, "localhost:7400"), None);
        assert_eq!(forward(page, "[::1]:7400"), None);
        assert_eq!(forward("https://mesh.example:7443/sign-in#secret", "10.0.0.1:7400"), None);
    }
}
