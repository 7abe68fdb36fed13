//! `plexus job …`: jobs, as a user of a controller.

mod args;
mod grep;
mod list;
mod progress;
mod show;
mod sse;
mod tail;
mod terminal;

use serde_json::{Map, Value, json};

pub(crate) use self::args::Job;
use self::args::Launch;
use crate::api::Api;
use crate::args::Format;
use crate::failure::{Exit, Failure};
use crate::output::Output;

pub(crate) async fn run(api: &Api, command: Job, output: &mut Output) -> Result<Exit, Failure> {
    match command {
        Job::Launch(launch) => {
            let template = api.id_of("job_templates", "job template", &launch.template).await?;
            let body = body(api, &launch).await?;
            let path = format!("/api/v2/job_templates/{template}/launch/");
            launched(api, &path, &body, launch.detach, output).await
        }
        Job::Relaunch { id, failed, detach } => {
            let body = json!({"hosts": if failed { "failed" } else { "all" }});
            launched(api, &format!("/api/v2/jobs/{id}/relaunch/"), &body, detach, output).await
        }
        Job::Tail { id, after } => tail::run(api, id, after, output).await,
        Job::List { status, limit } => list::run(api, status.as_deref(), limit, output).await,
        Job::Show { id } => show::run(api, id, output).await,
        Job::Why { id } => show::why(api, id, output).await,
        Job::Grep(grep) => grep::run(api, grep, output).await,
        Job::Cancel { id } => cancel(api, id, output).await,
    }
}

/// Starts a job, and follows it.
async fn launched(
    api: &Api,
    path: &str,
    body: &Value,
    detach: bool,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let job = api.post(path, body).await?.unwrap_or_default();
    let Some(id) = job["id"].as_i64().or(job["job"].as_i64()) else {
        return Err(Failure::new(Exit::Failed, "the controller did not say which job it launched"));
    };
    if detach {
        match output.format {
            Format::Table | Format::Wide => output.write(&format!("job {id} launched\n"))?,
            _ => output.json(&job.to_string())?,
        }
        return Ok(Exit::Ok);
    }
    if let Some(ignored) = job["ignored_fields"].as_object().filter(|ignored| !ignored.is_empty()) {
        let names: Vec<&str> = ignored.keys().map(String::as_str).collect();
        output.note(&format!("the template does not ask for {}: ignored", names.join(", ")));
    }
    output.note(&format!("job {id} launched; if this ends, `plexus job tail {id}` goes on"));
    tail::run(api, id, 0, output).await
}

/// What a launch asks for, with names made ids.
async fn body(api: &Api, launch: &Launch) -> Result<Value, Failure> {
    let mut body = Map::new();
    let mut text = |name: &str, value: &Option<String>| {
        if let Some(value) = value {
            body.insert(name.to_owned(), value.as_str().into());
        }
    };
    text("limit", &launch.limit);
    text("job_tags", &launch.tags);
    text("skip_tags", &launch.skip_tags);
    if launch.check {
        body.insert("job_type".to_owned(), "check".into());
    }
    if launch.diff {
        body.insert("diff_mode".to_owned(), true.into());
    }
    if let Some(verbosity) = launch.verbosity {
        body.insert("verbosity".to_owned(), verbosity.into());
    }
    if let Some(inventory) = &launch.inventory {
        body.insert("inventory".to_owned(), api.id_of("inventories", "inventory", inventory).await?.into());
    }
    if let Some(image) = &launch.ee {
        let id = api.id_of("execution_environments", "execution environment", image).await?;
        body.insert("execution_environment".to_owned(), id.into());
    }
    if !launch.credential.is_empty() {
        let mut ids = Vec::new();
        for credential in &launch.credential {
            ids.push(api.id_of("credentials", "credential", credential).await?);
        }
        body.insert("credentials".to_owned(), ids.into());
    }
    let variables = args::variables(&launch.extra_vars)?;
    if !variables.is_empty() {
        body.insert("extra_vars".to_owned(), variables.into());
    }
    Ok(body.into())
}

async fn cancel(api: &Api, id: i64, output: &mut Output) -> Result<Exit, Failure> {
    match api.post(&format!("/api/v2/jobs/{id}/cancel/"), &json!({})).await {
        Ok(_) => {}
        // The controller has no better word for a job that is over.
        Err(failure) if failure.text.contains("not allowed") => {
            let job = api.get(&format!("/api/v2/jobs/{id}/"), &[]).await?;
            let status = job["status"].as_str().unwrap_or("over");
            return Err(Failure::new(Exit::Failed, format!("job {id} is {status} already")));
        }
        Err(failure) => return Err(failure),
    }
    match output.format {
        Format::Table | Format::Wide => {
            output.write(&format!(
                "job {id}: cancel is noted; `plexus job show {id}` tells when it took effect\n"
            ))?;
        }
        _ => output.json(&json!({"job": id, "cancel": "noted"}).to_string())?,
    }
    Ok(Exit::Ok)
}
