//! What a pull shows: bars on a terminal, else a JSON line an event.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::pull::PullEvent;

/// Shows the events of one pull.
pub(super) enum Progress {
    /// Bars on the terminal, one a file.
    Bars { all: MultiProgress, files: HashMap<String, ProgressBar> },
    /// JSON lines on standard output.
    Lines,
}

impl Progress {
    /// Bars if somebody watches, else lines.
    pub(super) fn new() -> Progress {
        match std::io::stderr().is_terminal() && std::io::stdout().is_terminal() {
            true => Progress::Bars { all: MultiProgress::new(), files: HashMap::new() },
            false => Progress::Lines,
        }
    }

    /// Shows one event.
    pub(super) fn on(&mut self, event: &PullEvent) {
        match self {
            Progress::Lines => {
                if let Ok(line) = serde_json::to_string(event) {
                    // A closed pipe is no reason to stop the pull.
                    let _ = writeln!(std::io::stdout(), "{line}");
                }
            }
            Progress::Bars { all, files } => show(all, files, event),
        }
    }
}

fn show(all: &MultiProgress, files: &mut HashMap<String, ProgressBar>, event: &PullEvent) {
    let say = |line: String| {
        let _ = all.println(line);
    };
    match event {
        PullEvent::Start { repository, commit, files, bytes } => {
            let size = indicatif::HumanBytes(*bytes);
            say(format!("{repository} at {}: {files} files, {size}", commit.get(..12).unwrap_or(commit)));
        }
        PullEvent::Progress { file, bytes, size } => {
            let bar = files.entry(file.clone()).or_insert_with(|| all.add(bar(file, *size)));
            bar.set_position(*bytes);
        }
        PullEvent::Resume { file, bytes, reason } => {
            say(format!("{file}: {reason}; going on from byte {bytes}"))
        }
        PullEvent::File { file, verified, .. } => {
            if let Some(bar) = files.remove(file) {
                bar.finish_and_clear();
            }
            say(format!("{} {file}", if *verified { "verified" } else { "fetched " }));
        }
        PullEvent::Done { path } => say(path.display().to_string()),
    }
}

fn bar(file: &str, size: u64) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{msg:40!} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(size).with_style(style).with_message(file.to_owned())
}
