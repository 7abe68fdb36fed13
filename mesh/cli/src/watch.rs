//! `--watch`: asks again and again; a screen is drawn anew, a pipe gets a line of JSON for every change.

use std::time::Duration;

use crate::args::Format;
use crate::door::{self, Answer, Door};
use crate::failure::{Exit, Failure};
use crate::output::{Color, Output};
use crate::settings::Settings;

/// One look: asks, and says how to show the answer.
pub(crate) trait Look {
    /// Asks the daemon.
    async fn ask(&self, door: &mut Door) -> Result<Answer, Failure>;

    /// Shows the answer; the exit code is what it means.
    fn show(&self, answer: &Answer, output: &mut Output) -> Result<Exit, Failure>;
}

/// Looks once, or every `watch` until Ctrl-C. A daemon that goes away while it is watched is told and waited for.
pub(crate) async fn look(
    look: &impl Look,
    settings: &Settings,
    watch: Option<Duration>,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let mut door = door::open(settings).await?;
    let Some(period) = watch else {
        let answer = look.ask(&mut door).await?;
        return look.show(&answer, output);
    };
    let mut shown = None;
    let mut exit = Exit::Ok;
    loop {
        let asked = tokio::select! {
            asked = look.ask(&mut door) => asked,
            _ = tokio::signal::ctrl_c() => return Ok(exit),
        };
        match asked {
            Ok(answer) => exit = redraw(look, &answer, &mut shown, output)?,
            Err(failure) if failure.exit == Exit::Unreachable => {
                exit = failure.exit;
                if output.is_screen() {
                    let word = output.paint.on(Color::Red, "no answer:");
                    output.write(&format!("\x1b[H\x1b[J{word} {}\n", failure.text))?;
                } else if shown.take().is_some() {
                    output.failure(&failure);
                }
                if let Ok(again) = door::open(settings).await {
                    door = again;
                }
            }
            Err(failure) => return Err(failure),
        }
        tokio::select! {
            () = tokio::time::sleep(period) => {}
            _ = tokio::signal::ctrl_c() => return Ok(exit),
        }
    }
}

fn redraw(
    look: &impl Look,
    answer: &Answer,
    shown: &mut Option<String>,
    output: &mut Output,
) -> Result<Exit, Failure> {
    if output.is_screen() {
        // From the top, and what was below goes.
        output.write("\x1b[H\x1b[J")?;
        return look.show(answer, output);
    }
    // What people would read on a screen is for programs in a pipe.
    if output.format.is_text() {
        output.format = Format::Json;
    }
    if shown.as_ref() == Some(&answer.0) {
        return Ok(Exit::Ok);
    }
    *shown = Some(answer.0.clone());
    look.show(answer, output)
}
