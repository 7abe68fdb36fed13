//! `plexus forward`: a port here, an address as another node sees it.
//!
//! The port is opened by this command, so that it stands where whoever typed it looks for it; each connection goes
//! through the daemon's local socket and the mesh to the far node, which connects if its policy allows that.

use std::sync::Arc;

use plexus_mesh::local::LocalClient;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::args::{Forward, Target};
use crate::door::Door;
use crate::failure::{Exit, Failure, causes};
use crate::output::Output;

pub(crate) async fn run(door: &mut Door, forward: Forward, output: &mut Output) -> Result<Exit, Failure> {
    let Door::Local(client) = door else {
        return Err(Failure::new(Exit::Usage, "a port is forwarded through a daemon of this machine")
            .hint("run it as root where a daemon runs, with --socket PATH"));
    };
    let Forward { listen, target, connections } = forward;
    // A trial first: what the far node refuses is known before anybody connects here.
    client.forward_check(target.node.as_str(), &target.address).await.map_err(crate::door::refused)?;
    let listener = TcpListener::bind(listen)
        .await
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot listen at {listen}: {error}")))?;
    let listen = listener.local_addr().unwrap_or(listen);
    let document = json!({
        "schema_version": 1, "listen": listen, "node": target.node, "target": target.address,
    });
    output.done(&document, &format!("{listen} leads to {target}; Ctrl-C ends it\n"))?;
    let turns = Arc::new(Semaphore::new(connections.into()));
    let (failed, mut failures) = tokio::sync::mpsc::channel::<String>(16);
    loop {
        // What does not get a turn waits in the system's queue, and the peer with it.
        let turn = turns.clone().acquire_owned().await;
        let Ok(turn) = turn else { return Ok(Exit::Ok) };
        let accepted = loop {
            tokio::select! {
                accepted = listener.accept() => break accepted,
                Some(text) = failures.recv() => complain(&text, output),
                _ = tokio::signal::ctrl_c() => return Ok(Exit::Ok),
            }
        };
        match accepted {
            Ok((stream, from)) => {
                let (client, target, failed) = (client.clone(), target.clone(), failed.clone());
                tokio::spawn(async move {
                    if let Err(text) = carry(client, stream, &target).await {
                        // Nobody reads: many fail alike, and the first of them is told.
                        let _ = failed.try_send(format!("connection of {from}: {text}"));
                    }
                    drop(turn);
                });
            }
            Err(error) => {
                complain(&format!("cannot accept: {error}"), output);
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

fn complain(text: &str, output: &mut Output) {
    output.failure(&Failure::new(Exit::Failed, text));
}

async fn carry(client: LocalClient, mut stream: TcpStream, target: &Target) -> Result<(), String> {
    // Small questions and answers are what such ports carry.
    stream.set_nodelay(true).ok();
    let carried = client.forward(target.node.as_str(), &target.address, &mut stream).await;
    carried.map_err(|error| {
        // A reset: half a conversation is not to pass for all of it.
        stream.set_zero_linger().ok();
        causes(&error)
    })
}
