//! Protocol numbers and their negotiation.

/// Oldest protocol this build speaks.
pub const MIN_VERSION: u32 = 1;
/// Newest protocol this build speaks.
pub const MAX_VERSION: u32 = 1;

/// The two ranges of versions do not overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("peer speaks protocol {peer_min} to {peer_max}, this build {MIN_VERSION} to {MAX_VERSION}")]
pub struct Incompatible {
    /// Oldest the peer speaks.
    pub peer_min: u32,
    /// Newest the peer speaks.
    pub peer_max: u32,
}

/// The newest version both sides speak.
pub fn negotiate(peer_min: u32, peer_max: u32) -> Result<u32, Incompatible> {
    let version = peer_max.min(MAX_VERSION);
    if version < peer_min.max(MIN_VERSION) {
        return Err(Incompatible { peer_min, peer_max });
    }
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_common_version_wins() {
        assert_eq!(negotiate(1, 9), Ok(MAX_VERSION));
        assert!(negotiate(MAX_VERSION + 1, 9).is_err());
        assert!(negotiate(0, 0).is_err());
        assert!(negotiate(9, 1).is_err(), "an empty range is no range");
    }
}
