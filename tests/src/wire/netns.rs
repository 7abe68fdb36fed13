//! Network namespaces: hosts of their own on one kernel, for what user space cannot do.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, bail};

/// A host of its own: interfaces, addresses, routes and filters that nobody else sees. Dropping it removes them.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace with its loopback up.
    ///
    /// # Errors
    /// When this user may not, or `ip` is missing.
    pub fn new() -> anyhow::Result<Self> {
        static LAST: AtomicU32 = AtomicU32::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        let name = format!("plexus-{}-{number}", std::process::id());
        run("ip", &["netns", "add", &name])?;
        let made = Self { name };
        made.run("ip", &["link", "set", "lo", "up"])?;
        Ok(made)
    }

    /// Joins two namespaces by a cable; interface `name` with these addresses at each end.
    ///
    /// # Errors
    /// When the cable cannot be made.
    pub fn join(&self, other: &Self, name: &str, here: &[IpAddr], there: &[IpAddr]) -> anyhow::Result<()> {
        let peer = ["peer", "name", name, "netns", &other.name];
        let args = [&["link", "add", name, "netns", &self.name, "type", "veth"][..], &peer].concat();
        run("ip", &args)?;
        for (space, addresses) in [(self, here), (other, there)] {
            for address in addresses {
                space.add_address(name, *address)?;
            }
            space.run("ip", &["link", "set", name, "up"])?;
        }
        Ok(())
    }

    /// Gives an interface one more address; the cable's other end is on the same network (/24 or /64).
    ///
    /// # Errors
    /// When it cannot have it.
    pub fn add_address(&self, interface: &str, address: IpAddr) -> anyhow::Result<()> {
        // No duplicate address detection: an IPv6 address would be of no use for its first second.
        let (prefix, more): (u8, &[&str]) = if address.is_ipv4() { (24, &[]) } else { (64, &["nodad"]) };
        let text = format!("{address}/{prefix}");
        self.run("ip", &[&["address", "add", &text, "dev", interface][..], more].concat())
    }

    /// Takes an address away.
    ///
    /// # Errors
    /// When it has no such address.
    pub fn remove_address(&self, interface: &str, address: IpAddr) -> anyhow::Result<()> {
        let prefix = if address.is_ipv4() { 24 } else { 64 };
        self.run("ip", &["address", "del", &format!("{address}/{prefix}"), "dev", interface])
    }

    /// Sets an interface's MTU (of the IP packet).
    ///
    /// # Errors
    /// When it cannot be.
    pub fn set_mtu(&self, interface: &str, mtu: u32) -> anyhow::Result<()> {
        self.run("ip", &["link", "set", interface, "mtu", &mtu.to_string()])
    }

    /// Makes this host pass packets on between its cables.
    ///
    /// # Errors
    /// When it may not.
    pub fn forward(&self) -> anyhow::Result<()> {
        let set = "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding";
        self.run("sh", &["-c", set])
    }

    /// Makes this host drop the datagrams that it would pass on (or lets them through again): silently, or telling the
    /// sender that they are prohibited.
    ///
    /// # Errors
    /// When the rule cannot be set.
    pub fn block_udp(&self, blocked: bool, tell: bool) -> anyhow::Result<()> {
        let (verb, verdict) =
            (if blocked { "add" } else { "del" }, if tell { "prohibit" } else { "blackhole" });
        self.run("ip", &["rule", verb, "pref", "10", "ipproto", "udp", verdict])
    }

    /// Sends what goes to `network` by way of `gateway`.
    ///
    /// # Errors
    /// When the gateway is not a neighbour.
    pub fn route(&self, network: &str, gateway: IpAddr) -> anyhow::Result<()> {
        self.run("ip", &["route", "add", network, "via", &gateway.to_string()])
    }

    /// Runs a command inside.
    ///
    /// # Errors
    /// When it fails; its message is in the error.
    pub fn run(&self, program: &str, args: &[&str]) -> anyhow::Result<()> {
        run("ip", &[&["netns", "exec", &self.name, program][..], args].concat())
    }

    /// Program and first arguments that start another program inside. Unlike `ip netns exec` this keeps /sys, and with it
    /// the control groups.
    pub fn enter(&self) -> (PathBuf, Vec<String>) {
        let mut words = privileged("nsenter");
        words.push(format!("--net=/run/netns/{}", self.name));
        (words.remove(0).into(), words)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        run("ip", &["netns", "delete", &self.name]).ok();
    }
}

fn privileged(program: &str) -> Vec<String> {
    let words: &[&str] = if rustix::process::geteuid().is_root() { &[] } else { &["sudo", "-n"] };
    words.iter().chain(&[program]).map(|&word| word.to_owned()).collect()
}

fn run(program: &str, args: &[&str]) -> anyhow::Result<()> {
    let words = privileged(program);
    let output = Command::new(&words[0])
        .args(&words[1..])
        .args(args)
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {} failed: {}", args.join(" "), message.trim());
    }
    Ok(())
}
