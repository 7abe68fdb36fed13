//! A client that costs little: one connection that stays open, requests one after the other, answers read whole.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(30);
/// Largest answer.
const MAX: usize = 16 << 20;

/// A connection of one user.
pub(super) struct Client {
    stream: TcpStream,
    head: String,
    buffer: Vec<u8>,
}

/// What came, and when.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
    pub(super) took: Duration,
}

impl Client {
    /// Connects to a controller on loopback as the owner of a token.
    pub(super) async fn connect(port: u16, token: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.context("cannot connect")?;
        stream.set_nodelay(true).context("cannot set TCP_NODELAY")?;
        let head =
            format!("Host: 127.0.0.1\r\nAuthorization: Bearer {token}\r\nAccept: application/json\r\n");
        Ok(Self { stream, head, buffer: Vec::with_capacity(1 << 16) })
    }

    pub(super) async fn get(&mut self, path: &str) -> anyhow::Result<Answer> {
        let request = format!("GET {path} HTTP/1.1\r\n{}\r\n", self.head);
        self.send(&request).await
    }

    pub(super) async fn post(&mut self, path: &str, body: &str) -> anyhow::Result<Answer> {
        let request = format!(
            "POST {path} HTTP/1.1\r\n{}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.head,
            body.len()
        );
        self.send(&request).await
    }

    async fn send(&mut self, request: &str) -> anyhow::Result<Answer> {
        let began = Instant::now();
        let answer = tokio::time::timeout(ANSWER, async {
            self.stream.write_all(request.as_bytes()).await?;
            self.answer().await
        });
        let (status, body) = answer.await.context("no answer in half a minute")??;
        Ok(Answer { status, body, took: began.elapsed() })
    }

    async fn answer(&mut self) -> anyhow::Result<(u16, Vec<u8>)> {
        self.buffer.clear();
        let end = loop {
            if let Some(end) = memchr::memmem::find(&self.buffer, b"\r\n\r\n") {
                break end + 4;
            }
            self.more().await?;
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]).to_lowercase();
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).context("no status")?;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        let length: usize = match length {
            Some(length) => length.trim().parse().context("no number of bytes")?,
            None => bail!("an answer without content-length: {head}"),
        };
        ensure!(length <= MAX, "an answer of {length} bytes");
        while self.buffer.len() < end + length {
            self.more().await?;
        }
        Ok((status, self.buffer[end..end + length].to_vec()))
    }

    async fn more(&mut self) -> anyhow::Result<()> {
        let read = self.stream.read_buf(&mut self.buffer).await.context("the connection broke")?;
        ensure!(read > 0, "the connection ended");
        Ok(())
    }
}

impl Answer {
    /// The body, if the status is `expected`.
    pub(super) fn expect(self, expected: u16) -> anyhow::Result<Value> {
        ensure!(
            self.status == expected,
            "answered {}: {}",
            self.status,
            String::from_utf8_lossy(&self.body[..self.body.len().min(300)])
        );
        serde_json::from_slice(&self.body).context("the answer is no JSON")
    }

    pub(super) fn ms(&self) -> f64 {
        self.took.as_secs_f64() * 1e3
    }
}

/// Numbers that look random and are the same each time: splitmix64.
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    /// One below `bound`.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_below_their_bound_and_differ() {
        let mut numbers = Numbers(1);
        let drawn: std::collections::BTreeSet<u64> = (0..100).map(|_| numbers.below(1000)).collect();
        assert!(drawn.len() > 50 && drawn.iter().all(|number| *number < 1000));
    }
}
