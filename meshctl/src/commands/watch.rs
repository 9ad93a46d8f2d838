//! `--watch`: a listing again and again, redrawn on a terminal; elsewhere what has changed follows what was printed before.

use std::io::IsTerminal as _;
use std::pin::pin;
use std::time::Duration;

use super::Context;
use crate::cli::WatchArgs;
use crate::exit::{Failure, Outcome};
use crate::output::{self, Format, talk};

/// Prints a listing once, or until Ctrl-C.
pub(super) async fn run(context: &Context, args: WatchArgs, print: impl AsyncFn(&Context) -> Outcome) -> Outcome {
    if !args.watch {
        return print(context).await;
    }
    let format = context.output.format();
    let is_live = matches!(format, Format::Table | Format::Wide) && std::io::stdout().is_terminal();
    let mut interrupted = pin!(tokio::signal::ctrl_c());
    let mut seen = Seen::new(format);
    let mut trouble: Option<String> = None;
    let mut is_first = true;
    if is_live && !output::write_part(output::CLEAR)? {
        return Ok(());
    }
    loop {
        let (output, record) = context.output.recorded();
        let once = Context { global: context.global.clone(), output };
        let printed = tokio::select! {
            printed = print(&once) => printed,
            ended = &mut interrupted => return interruption(ended),
        };
        let text = record.take();
        let failure = printed.err();
        // What fails at once is most likely asked wrongly. Later on whoever answers may be back in a moment.
        if let Some(failure) = failure.as_ref().filter(|_| is_first && text.is_empty()) {
            return Err(failure.clone());
        }
        is_first = false;
        let says = failure.map(|failure| output::printable(&failure.render()).into_owned());
        if is_live {
            let text = if text.is_empty() { seen.shown.join("\n") + "\n" } else { text.clone() };
            let whole = text + says.as_deref().unwrap_or_default();
            if !output::write_part(&output::screen(&whole))? {
                return Ok(());
            }
        } else if says != trouble {
            talk(says.as_deref().unwrap_or("answers again").trim_end());
        }
        trouble = says;
        let news = if text.is_empty() { String::new() } else { seen.news(&text) };
        if !is_live && !news.is_empty() && !output::write_part(&news)? {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(args.interval.max(INTERVAL_MIN)) => {}
            ended = &mut interrupted => return interruption(ended),
        }
    }
}

fn interruption(ended: std::io::Result<()>) -> Outcome {
    ended.map_err(|error| Failure::refused(format!("cannot wait for Ctrl-C: {error}")))
}

/// What was printed, and what of the next is new.
struct Seen {
    format: Format,
    shown: Vec<String>,
}

impl Seen {
    fn new(format: Format) -> Self {
        Self { format, shown: Vec::new() }
    }

    /// Of JSON and YAML the whole, if anything in it has changed; of a table the rows that have, and those whose first word is gone.
    fn news(&mut self, text: &str) -> String {
        let lines: Vec<String> = text.lines().map(ToOwned::to_owned).collect();
        let before = std::mem::replace(&mut self.shown, lines);
        match self.format {
            _ if before == self.shown => String::new(),
            Format::Json => text.to_owned(),
            Format::Yaml => format!("---\n{text}"),
            Format::Table | Format::Wide => {
                // Columns move when something gets longer.
                let words = |line: &str| line.split_whitespace().map(ToOwned::to_owned).collect::<Vec<_>>();
                let known: Vec<_> = before.iter().map(|line| words(line)).collect();
                let now: Vec<_> = self.shown.iter().map(|line| words(line)).collect();
                let mut news = String::new();
                for (line, _) in self.shown.iter().zip(&now).filter(|(_, words)| !known.contains(words)) {
                    news.push_str(line);
                    news.push('\n');
                }
                let is_gone = |words: &Vec<String>| !now.iter().any(|now| now.first() == words.first());
                for (line, _) in before.iter().zip(&known).filter(|(_, words)| is_gone(words)) {
                    news.push_str(&format!("gone: {line}\n"));
                }
                news
            }
        }
    }
}

/// More often nobody sees anything, and a member has better things to do.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_table_what_has_changed_follows() {
        let mut seen = Seen::new(Format::Table);
        assert_eq!(seen.news("NAME    STATE\nparis   up\ntokyo   up\n"), "NAME    STATE\nparis   up\ntokyo   up\n");
        assert_eq!(seen.news("NAME    STATE\nparis   up\ntokyo   up\n"), "");
        assert_eq!(
            seen.news("NAME        STATE\nparis       up\nfrankfurt   up\ntokyo       down\n"),
            "frankfurt   up\ntokyo       down\n"
        );
        assert_eq!(seen.news("NAME    STATE\nparis   up\ntokyo   down\n"), "gone: frankfurt   up\n");
    }

    #[test]
    fn of_values_the_whole_one_follows() {
        let mut seen = Seen::new(Format::Json);
        assert_eq!(
            (seen.news("[1]\n"), seen.news("[1]\n"), seen.news("[1,2]\n")),
            ("[1]\n".into(), String::new(), "[1,2]\n".into())
        );
        let mut seen = Seen::new(Format::Yaml);
        assert_eq!(
            (seen.news("a: 1\n"), seen.news("a: 1\n"), seen.news("a: 2\n")),
            ("---\na: 1\n".into(), String::new(), "---\na: 2\n".into())
        );
    }
}
