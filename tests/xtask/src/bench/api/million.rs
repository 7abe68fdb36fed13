//! A controller with a million finished jobs of twenty templates, and a user who may see half of them.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use plexus_tests::{Api, Binaries, Cluster, JobOptions, Samples, demo_image};
use serde_json::json;

use super::Measured;
use super::http::{Client, Numbers};
use crate::bench::machine::private_mb;
use crate::bench::median;
use crate::bench::mesh::quantile;

const JOBS: u64 = 1_000_000;
const TEMPLATES: usize = 20;
/// Every second template is the ordinary user's to see.
const SEEN: usize = 2;
/// Lists asked for, one after the other.
const LISTS: usize = 2000;
const WARM: usize = 100;
/// The pages that people look at.
const PAGES: u64 = 400;
/// Clients of the row of details, how long they ask, and how often that is done.
const CLIENTS: u64 = 4;
const ROUND: Duration = Duration::from_secs(5);
const ROUNDS: usize = 3;
const STARTS: usize = 15;
/// Rest before memory is read.
const REST: Duration = Duration::from_secs(60);

/// The running controller.
pub(super) struct Million {
    cluster: Cluster,
    /// Of the ordinary user.
    token: String,
    /// The first job that may be seen, and how far they are apart.
    first: u64,
    lists: Vec<f64>,
}

fn id(value: &serde_json::Value) -> anyhow::Result<u64> {
    value["id"].as_u64().context("an object without id")
}

impl Million {
    /// Makes templates and one job of each over the API, then copies those jobs in the file.
    pub(super) async fn make() -> anyhow::Result<Self> {
        eprintln!("bench: making a controller with {JOBS} jobs");
        let mut cluster = Cluster::builder("bench-api").without_node().start().await?;
        let samples = Samples::new(&demo_image())?;
        samples.copy_project(&cluster.layout.projects())?;
        let api = cluster.api().clone();
        let loaded = samples.load(&api).await?;
        let inventory = samples.load_inventory(&api, loaded, "two-hosts.ini").await?;
        let password = "an ordinary password";
        let body = json!({"username": "ordinary", "password": password});
        let ordinary = id(&api.create("users/", &body).await?)?;
        let mut last = 0;
        for number in 0..TEMPLATES {
            let name = format!("bench {number}");
            let options = JobOptions::default();
            let template = samples.template(&api, loaded, &name, "facts.yml", inventory, &options).await?;
            if number % SEEN == 0 {
                let template = api.get(&format!("job_templates/{template}/")).await?;
                let role = id(&template["summary_fields"]["object_roles"]["execute_role"])?;
                api.post(&format!("users/{ordinary}/roles/"), &json!({"id": role})).await?;
            }
            let job = api.launch(template, &json!({})).await?;
            last = id(&job)?;
            api.post(&format!("jobs/{last}/cancel/"), &json!({})).await?;
            api.finished(i64::try_from(last)?, Duration::from_secs(30)).await?;
        }
        let user = Api::new(api.base(), "ordinary", password)?;
        let token = user.create("tokens/", &json!({"scope": "write"})).await?;
        let token = token["token"].as_str().context("no token")?.to_owned();
        cluster.controller.stop().await?;
        let mut fill = Command::new(Binaries::of_this_build()?.controller());
        fill.args(["debug", "copy-jobs", "--jobs", &JOBS.to_string()]);
        fill.arg(cluster.layout.data_dir("controller"));
        ensure!(fill.status().context("cannot run the controller")?.success(), "copy-jobs failed");
        cluster.controller.start()?;
        cluster.api_up().await?;
        // Copies go round the templates, after the jobs that were launched.
        Ok(Self { cluster, token, first: last + 1, lists: Vec::new() })
    }

    async fn client(&self) -> anyhow::Result<Client> {
        Client::connect(self.cluster.layout.http_port, &self.token).await
    }

    pub(super) async fn lists(&mut self, part: f64) -> anyhow::Result<Measured> {
        if self.lists.is_empty() {
            let mut client = self.client().await?;
            let (mut numbers, mut samples) = (Numbers(1), Vec::new());
            for round in 0..WARM + LISTS {
                let path = if round % 2 == 0 {
                    format!("/api/v2/jobs/?order_by=-id&page={}", numbers.below(PAGES) + 1)
                } else {
                    format!("/api/v2/jobs/?cursor={}", numbers.below(JOBS - 100))
                };
                let answer = client.get(&path).await?;
                let took = answer.ms();
                let list = answer.expect(200)?;
                let shown = list["results"].as_array().map_or(0, Vec::len);
                ensure!(shown == 25, "{path} shows {shown} jobs");
                if round >= WARM {
                    samples.push(took);
                }
            }
            self.lists = samples;
        }
        Ok(Measured {
            value: quantile(&self.lists, part),
            samples: self.lists.clone(),
            conditions: format!(
                "25 of {JOBS} jobs, SQLite, a user who may see half of them by roles of ten templates; {LISTS} requests one after \
                 the other, half of them one of the first {PAGES} pages, half by cursor from anywhere"
            ),
        })
    }

    pub(super) async fn details(&mut self) -> anyhow::Result<Measured> {
        let mut samples = Vec::new();
        for round in 0..=ROUNDS {
            let mut clients = tokio::task::JoinSet::new();
            let began = Instant::now();
            for number in 0..CLIENTS {
                let mut client = self.client().await?;
                let (first, seed) = (self.first, number + 100 * round as u64);
                clients.spawn(async move {
                    let (mut numbers, mut answered) = (Numbers(seed), 0_u64);
                    while began.elapsed() < ROUND {
                        // Those of the first template, which may be seen.
                        let step = TEMPLATES as u64;
                        let job = first + numbers.below(JOBS / step - 1) * step;
                        let answer = client.get(&format!("/api/v2/jobs/{job}/")).await?;
                        ensure!(answer.status == 200, "job {job} answered {}", answer.status);
                        answered += 1;
                    }
                    Ok(answered)
                });
            }
            let mut answered = 0;
            while let Some(done) = clients.join_next().await {
                answered += done.context("a client panicked")??;
            }
            if round > 0 {
                #[expect(clippy::cast_precision_loss, reason = "answers of some seconds")]
                samples.push(answered as f64 / began.elapsed().as_secs_f64());
            }
        }
        Ok(Measured {
            value: median(&samples),
            samples,
            conditions: format!(
                "jobs drawn from {JOBS}, {CLIENTS} clients of an ordinary user, whole objects with related and summary_fields"
            ),
        })
    }

    pub(super) async fn starts(&mut self) -> anyhow::Result<Measured> {
        self.cluster.controller.stop().await?;
        let mut samples = Vec::new();
        for round in 0..=STARTS {
            let took = start(&mut self.cluster).await?;
            if round > 0 {
                samples.push(took);
            }
        }
        self.cluster.controller.start()?;
        self.cluster.api_up().await?;
        Ok(Measured {
            value: median(&samples),
            samples,
            conditions: format!("exec to the first answer of the API, {JOBS} jobs, SQLite"),
        })
    }

    pub(super) async fn rest(&mut self) -> anyhow::Result<Measured> {
        // What it has done so far counts too: it was asked for lists and details, or just started.
        tokio::time::sleep(REST).await;
        let pid = self.cluster.controller.pid().context("the controller does not run")?;
        let memory = private_mb(pid).context("no memory of the controller")?;
        Ok(Measured {
            value: memory,
            samples: vec![memory],
            conditions: format!(
                "private pages (clean and dirty), {JOBS} jobs, after {} s of rest",
                REST.as_secs()
            ),
        })
    }

    pub(super) async fn finish(self) -> anyhow::Result<()> {
        self.cluster.finish().await
    }
}

/// Milliseconds from the start of the program to the first answer.
async fn start(cluster: &mut Cluster) -> anyhow::Result<f64> {
    let address = format!("127.0.0.1:{}", cluster.layout.http_port);
    let began = Instant::now();
    cluster.controller.start()?;
    let took = tokio::task::spawn_blocking(move || -> anyhow::Result<Duration> {
        loop {
            ensure!(began.elapsed() < Duration::from_secs(30), "no answer from {address}");
            if let Ok(mut stream) = TcpStream::connect(&address) {
                write!(stream, "GET /api/v2/ping/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer)?;
                ensure!(answer.starts_with("HTTP/1.1 200"), "answered {answer}");
                return Ok(began.elapsed());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    })
    .await??;
    cluster.controller.stop().await?;
    Ok(took.as_secs_f64() * 1e3)
}
