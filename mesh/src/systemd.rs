//! What a daemon tells systemd: that it is ready, reloads, stops, and lives.
//!
//! The protocol of `sd_notify(3)`: datagrams of `KEY=VALUE` to the socket that `NOTIFY_SOCKET` names. A daemon that was
//! started by something else has none, and tells nobody.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tracing::{debug, warn};

/// Variables that concern the daemon itself: a program that it starts must not speak for it.
pub const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// Longest wait for room in systemd's socket.
const PATIENCE: Duration = Duration::from_secs(1);

/// The way to the manager that started this daemon, if it listens.
#[derive(Debug)]
pub struct Manager {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Manager {
    /// As the environment says; nothing in it, or nonsense, means that nobody listens.
    pub fn from_env() -> Self {
        let own = std::process::id();
        Self::new(|name| std::env::var(name).ok(), own)
    }

    fn new(variable: impl Fn(&str) -> Option<String>, own: u32) -> Self {
        let socket = variable("NOTIFY_SOCKET").and_then(|name| match open(&name) {
            Ok(socket) => Some(socket),
            Err(error) => {
                warn!(name, error = &error as &dyn std::error::Error, "cannot tell systemd anything");
                None
            }
        });
        let meant = variable("WATCHDOG_PID").is_none_or(|pid| pid.parse() == Ok(own));
        let micros =
            variable("WATCHDOG_USEC").and_then(|text| text.parse().ok()).filter(|&micros| micros > 0);
        let watchdog = micros.filter(|_| meant).map(Duration::from_micros);
        Self { socket, watchdog }
    }

    /// The daemon does what it is for.
    pub fn ready(&self) {
        self.tell("READY=1\nSTATUS=");
    }

    /// The daemon reads its configuration again; [`ready`](Self::ready) or [`not_reloaded`](Self::not_reloaded) follows.
    pub fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let micros = now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1000);
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
    }

    /// The daemon is ready as it was before; `why` is for people.
    pub fn not_reloaded(&self, why: &str) {
        let why = why.replace('\n', " ");
        self.tell(&format!("READY=1\nSTATUS=not reloaded: {why}"));
    }

    /// The daemon has begun to end.
    pub fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// Says that the daemon lives, at half of the time after which systemd would kill it, and only when `alive` has come
    /// to its end within that half. Never ends; where no watchdog is asked for it does nothing.
    pub async fn keep_watched<F: Future<Output = ()>>(&self, alive: impl Fn() -> F) {
        let Some(period) = self.watchdog.map(|limit| limit / 2) else { return std::future::pending().await };
        let mut tick = tokio::time::interval(period);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            match tokio::time::timeout(period, alive()).await {
                Ok(()) => self.tell("WATCHDOG=1"),
                Err(_) => warn!(?period, "a part of this daemon does not answer; the watchdog is not told"),
            }
        }
    }

    fn tell(&self, text: &str) {
        let Some((socket, address)) = &self.socket else { return };
        match socket.send_to_addr(text.as_bytes(), address) {
            Ok(_) => debug!(text, "systemd is told"),
            Err(error) => {
                warn!(text, error = &error as &dyn std::error::Error, "systemd cannot be told");
            }
        }
    }
}

/// A name that begins with `@` stands in the abstract namespace.
fn open(name: &str) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok((socket, address))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn manager(variables: &[(&str, &str)], own: u32) -> Manager {
        let find =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Manager::new(find, own)
    }

    fn heard(socket: &UnixDatagram) -> Vec<String> {
        socket.set_nonblocking(true).expect("a socket's mode can be set");
        let mut buffer = [0; 512];
        std::iter::from_fn(|| {
            let length = socket.recv(&mut buffer).ok()?;
            Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
        })
        .collect()
    }

    #[test]
    fn a_path_and_an_abstract_name_are_told_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("plexus-test-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = UnixDatagram::bind_addr(&abstract_address).unwrap();
        for (name, socket) in [(path.to_str().unwrap(), &by_path), (&*format!("@{name}"), &by_name)] {
            let manager = manager(&[("NOTIFY_SOCKET", name)], 1);
            manager.ready();
            manager.reloading();
            manager.not_reloaded("line 3:\nno such key");
            manager.stopping();
            let said = heard(socket);
            assert!(said[1].starts_with("RELOADING=1\nMONOTONIC_USEC="), "{said:?}");
            let rest = [&said[0], &said[2], &said[3]];
            assert_eq!(
                rest,
                ["READY=1\nSTATUS=", "READY=1\nSTATUS=not reloaded: line 3: no such key", "STOPPING=1"]
            );
        }
    }

    #[test]
    fn the_watchdog_is_told_by_whom_it_watches_and_by_nobody_else() {
        let period = |variables: &[(&str, &str)]| manager(variables, 7).watchdog;
        assert_eq!(period(&[]), None);
        assert_eq!(period(&[("WATCHDOG_USEC", "3000000")]), Some(Duration::from_secs(3)));
        assert_eq!(
            period(&[("WATCHDOG_USEC", "3000000"), ("WATCHDOG_PID", "7")]),
            Some(Duration::from_secs(3))
        );
        assert_eq!(period(&[("WATCHDOG_USEC", "3000000"), ("WATCHDOG_PID", "8")]), None);
        assert_eq!(period(&[("WATCHDOG_USEC", "0")]), None);
        assert_eq!(period(&[("WATCHDOG_USEC", "soon")]), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_of_which_a_part_is_stuck_is_not_called_alive() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let variables = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "10000000")];
        let manager = manager(&variables, 1);
        let stuck = AtomicBool::new(false);
        let alive = || async {
            if stuck.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
        };
        let watched = manager.keep_watched(alive);
        tokio::pin!(watched);
        let while_ = Duration::from_secs(26);
        assert!(tokio::time::timeout(while_, &mut watched).await.is_err());
        assert_eq!(heard(&socket), ["WATCHDOG=1"; 6]); // at once, and each five seconds
        stuck.store(true, Ordering::SeqCst);
        assert!(tokio::time::timeout(while_, &mut watched).await.is_err());
        assert_eq!(heard(&socket), [""; 0]);
    }
}
