//! When controllers should ask anew what this node has.
//!
//! They ask every minute anyway. What decides where jobs go is told sooner: a cordon at once; images, and a disk that filled or
//! was cleared, when they are noticed.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::time::Duration;

use super::Supervisor;
use super::about::IMAGES_MAX;
use crate::capacity;

/// Pause between two looks at disk and images: a system call, and the names of a few images.
const LOOK: Duration = Duration::from_secs(2);
/// A disk with less is taken for full.
const FULL: u64 = 64 << 20;

/// What was told last of things that change by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Told {
    free_disk: u64,
    images: u64,
}

impl Told {
    /// Whether this is worth an announcement: other images, or half or twice as much room.
    fn is_news(self, now: Self) -> bool {
        let (before, free) = (self.free_disk.max(FULL), now.free_disk.max(FULL));
        self.images != now.images || free <= before / 2 || free >= before.saturating_mul(2)
    }
}

impl Supervisor {
    /// Waits until this node would say something else of itself than before.
    pub async fn news(&self) {
        self.0.news.notified().await;
    }

    /// Looks for what nobody else notices.
    pub(super) async fn watch_news(&self) {
        let mut told = self.tellable();
        loop {
            tokio::time::sleep(LOOK).await;
            let now = self.tellable();
            if told.is_news(now) {
                told = now;
                self.0.news.notify_one();
            }
        }
    }

    fn tellable(&self) -> Told {
        let mut images = DefaultHasher::new();
        for image in self.0.images.iter().flat_map(|images| images.known(IMAGES_MAX)) {
            (image.id, image.names).hash(&mut images);
        }
        let free_disk = capacity::free_disk(&self.0.options.data_dir);
        Told { free_disk, images: images.finish() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_images_are_news_and_a_disk_only_when_it_halves_or_doubles() {
        let gib = |free: u64| Told { free_disk: free << 30, images: 1 };
        assert!(!gib(10).is_news(gib(6)) && !gib(10).is_news(gib(19)));
        assert!(gib(10).is_news(gib(5)) && gib(10).is_news(gib(20)));
        assert!(gib(10).is_news(Told { images: 2, ..gib(10) }));
        // A full disk stays one, however little it has.
        let bytes = |free_disk| Told { free_disk, images: 1 };
        assert!(!bytes(FULL).is_news(bytes(0)) && !bytes(0).is_news(bytes(FULL)));
        assert!(gib(1).is_news(bytes(0)) && bytes(0).is_news(gib(1)));
    }
}
