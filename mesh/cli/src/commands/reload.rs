//! `plexus reload`: the daemon takes over its configuration, and says what changed.

use plexus_mesh::local::Action;
use plexus_mesh::status::Reloaded;

use crate::door::Door;
use crate::failure::{Exit, Failure};
use crate::output::{Color, Output, Paint, Shape};

pub(crate) async fn run(door: &mut Door, output: &mut Output) -> Result<Exit, Failure> {
    let answer = door.act(&Action::Reload).await?;
    let reloaded: Reloaded = answer.parse()?;
    let text = render(&reloaded, output.paint);
    output.show(&answer, Shape { items: None, name: "changed" }, &text)?;
    // What waits for a restart is not in force: a script may want to know.
    Ok(if reloaded.needs_restart.is_empty() { Exit::Ok } else { Exit::Degraded })
}

fn render(reloaded: &Reloaded, paint: Paint) -> String {
    let mut text = String::new();
    for change in &reloaded.changed {
        text += &format!("{} {change}\n", paint.on(Color::Green, "changed:"));
    }
    for waiting in &reloaded.needs_restart {
        text += &format!("{} {waiting}\n", paint.on(Color::Yellow, "needs a restart:"));
    }
    if text.is_empty() {
        text += "nothing has changed\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_listed() {
        let mut reloaded = Reloaded::default();
        assert_eq!(render(&reloaded, Paint(false)), "nothing has changed\n");
        reloaded.changed = vec!["peer hop-2:7323 added".into()];
        reloaded.needs_restart = vec!["data_dir".into()];
        let expected = "changed: peer hop-2:7323 added\nneeds a restart: data_dir\n";
        assert_eq!(render(&reloaded, Paint(false)), expected);
    }
}
