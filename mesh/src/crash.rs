//! Numbered points at which a test can kill the process it tests: agent, shim or controller.
//!
//! [`crash_points!`](crate::crash_points) makes the list of a program. `PLEXUS_CRASH_AT=after-commit` kills at the first passage of
//! that point, `PLEXUS_CRASH_AT=after-commit:3` at the third; a child inherits the variable. The process writes the point's name to
//! the file `PLEXUS_CRASH_NOTE`, if one is named, and dies by SIGKILL to itself: no destructor runs, nothing is flushed.

/// Declares the crash points of a program: an enum `Point` with `ALL` (in the order of the list), `name` and `hit`.
///
/// `hit` is nothing unless the crate that calls the macro has its feature `crash-points`. Later points are appended; names stay.
#[macro_export]
macro_rules! crash_points {
    ($($(#[$doc:meta])+ $point:ident = $name:literal,)+) => {
        /// A place in the code where dying is interesting.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Point {
            $($(#[$doc])+ $point,)+
        }

        impl Point {
            /// All points, in order.
            pub const ALL: &[Self] = &[$(Self::$point),+];

            /// The name used in `PLEXUS_CRASH_AT`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$point => $name,)+
                }
            }

            /// Passes the point, or dies there.
            #[inline]
            pub fn hit(self) {
                #[cfg(feature = "crash-points")]
                $crate::crash::hit(self.name(), || Self::ALL.iter().map(|point| point.name()).collect());
            }
        }
    };
}

#[cfg(feature = "crash-points")]
pub use armed::hit;

#[cfg(feature = "crash-points")]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Armed {
        point: String,
        /// Passages still to survive, and the last one.
        left: AtomicU64,
    }

    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

    /// Dies if `PLEXUS_CRASH_AT` names `point` and this is the passage it means. `all` are the program's points.
    ///
    /// # Panics
    ///
    /// On a name that is not one of `all`: a test that arms a point which is not there would pass without testing anything.
    pub fn hit(point: &str, all: impl FnOnce() -> Vec<&'static str>) {
        let armed = ARMED.get_or_init(|| {
            let text = std::env::var("PLEXUS_CRASH_AT").ok()?;
            let (name, nth) = text.split_once(':').unwrap_or((&text, "1"));
            let nth = nth.parse().ok().filter(|&nth: &u64| nth > 0);
            match nth {
                Some(nth) if all().contains(&name) => {
                    Some(Armed { point: name.to_owned(), left: AtomicU64::new(nth) })
                }
                _ => panic!("PLEXUS_CRASH_AT={text} names no crash point"),
            }
        });
        let Some(armed) = armed else { return };
        if armed.point == point && armed.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            if let Some(note) = std::env::var_os("PLEXUS_CRASH_NOTE") {
                std::fs::write(note, point).ok();
            }
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            // The signal is on its way; nothing more may happen in between.
            loop {
                std::thread::park();
            }
        }
    }
}

#[cfg(test)]
#[expect(unreachable_pub, reason = "the macro makes the public list of a program")]
mod tests {
    crate::crash_points! {
        /// One.
        First = "first",
        /// Two.
        Second = "second",
    }

    #[test]
    fn a_list_has_its_points_in_order_and_none_is_armed_by_itself() {
        assert_eq!(Point::ALL, [Point::First, Point::Second]);
        assert_eq!(Point::Second.name(), "second");
        Point::First.hit();
    }
}
