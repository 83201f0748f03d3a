//! What is wanted, and changed all the time: Deployments that are scaled and rolled, Jobs, deleted pods.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::Value;
use tests::cluster::Cluster;
use tests::kubectl::Kubectl;
use tests::until;

use crate::census;

const NAMESPACE: &str = "churn";
const DEPLOYMENTS: usize = 6;
/// Pods of the Deployments together, about.
const PODS: u32 = 50;
const MOST: u32 = 16;
/// Jobs that exist at a time.
const JOBS: usize = 3;

pub struct Churn {
    kubectl: Kubectl,
    replicas: Vec<u32>,
    jobs: Vec<usize>,
    started_jobs: usize,
    pub changes: usize,
    /// Changes that could not be made, because the API server or its store was just dead.
    pub refused: usize,
}

impl Churn {
    pub fn start(cluster: &Cluster) -> Result<Churn> {
        let kubectl = cluster.kubectl("default").in_new_namespace(NAMESPACE)?;
        let replicas = vec![PODS / DEPLOYMENTS as u32; DEPLOYMENTS];
        for (n, replicas) in replicas.iter().enumerate() {
            kubectl.apply(&deployment(n, *replicas))?;
        }
        let churn = Churn { kubectl, replicas, jobs: Vec::new(), started_jobs: 0, changes: 0, refused: 0 };
        until(180, "the first pods", || churn.deployments_are_ready())?;
        Ok(churn)
    }

    /// One random change. A refusal is counted: what is wanted is then as before.
    pub fn change(&mut self, random: &mut StdRng) {
        let n = random.random_range(0..DEPLOYMENTS);
        let outcome = match random.random_range(0..10) {
            0..5 => self.scale(n, random),
            5..7 => self.command(&format!("set env deployment/d{n} STEP={}", self.changes)),
            7 => {
                self.command(&format!("delete pod -l app=d{n} --field-selector=status.phase=Running --wait=false --grace-period=0 --force"))
            }
            _ => self.job(),
        };
        self.changes += 1;
        if outcome.is_err() {
            self.refused += 1;
        }
    }

    fn command(&self, words: &str) -> Result<()> {
        self.kubectl.ok(&format!("{words} --request-timeout=5s")).map(drop)
    }

    /// Keeps the sum near [`PODS`].
    fn scale(&mut self, n: usize, random: &mut StdRng) -> Result<()> {
        let others: u32 = self.replicas.iter().enumerate().filter(|(at, _)| *at != n).map(|(_, r)| r).sum();
        let middle = PODS.saturating_sub(others).min(MOST);
        let wanted = random.random_range(middle.saturating_sub(3)..=(middle + 3).min(MOST));
        self.command(&format!("scale deployment d{n} --replicas={wanted}"))?;
        self.replicas[n] = wanted;
        Ok(())
    }

    fn job(&mut self) -> Result<()> {
        if self.jobs.len() >= JOBS {
            let oldest = self.jobs[0];
            self.command(&format!("delete job j{oldest} --wait=false --ignore-not-found"))?;
            self.jobs.remove(0);
        }
        let n = self.started_jobs;
        self.started_jobs += 1;
        self.kubectl.apply(&job(n))?;
        self.jobs.push(n);
        Ok(())
    }

    /// The last word on what is wanted.
    pub fn settle(&mut self, random: &mut StdRng) -> Result<()> {
        for n in 0..DEPLOYMENTS {
            until(30, "the last scale", || self.scale_to(n, PODS / DEPLOYMENTS as u32))?;
            self.replicas[n] = PODS / DEPLOYMENTS as u32;
        }
        self.scale(random.random_range(0..DEPLOYMENTS), random)
    }

    fn scale_to(&self, n: usize, replicas: u32) -> Result<()> {
        self.command(&format!("scale deployment d{n} --replicas={replicas}"))
    }

    fn deployments_are_ready(&self) -> Result<()> {
        let listed = self.kubectl.json("get deployments")?;
        let items = listed["items"].as_array().context("items")?;
        for (n, replicas) in self.replicas.iter().enumerate() {
            let name = format!("d{n}");
            let found = items.iter().find(|item| item["metadata"]["name"] == name.as_str()).with_context(|| format!("{name} is lost"))?;
            for field in ["replicas", "readyReplicas", "updatedReplicas", "availableReplicas"] {
                let is = found["status"][field].as_u64().unwrap_or_default();
                if is != u64::from(*replicas) || found["spec"]["replicas"] != *replicas {
                    bail!("{name}: {replicas} wanted, {field} {is}");
                }
            }
        }
        Ok(())
    }

    /// Wanted = what the API says = what runs on the machines.
    pub fn check(&self, record: &coracle::cluster::Cluster) -> Result<()> {
        self.deployments_are_ready()?;
        let listed = self.kubectl.json("get pods")?;
        let mut wanted: BTreeMap<String, String> = BTreeMap::new();
        for pod in listed["items"].as_array().context("items")? {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let name = text(&pod["metadata"]["name"]);
            match pod["status"]["phase"].as_str() {
                Some("Running") if pod["metadata"]["deletionTimestamp"].is_null() => wanted.insert(text(&pod["metadata"]["uid"]), name),
                // Of a Job.
                Some("Succeeded" | "Failed") if name.starts_with('j') => None,
                phase => bail!("pod {name} is {phase:?}, deleted {}", pod["metadata"]["deletionTimestamp"]),
            };
        }
        let sum: u32 = self.replicas.iter().sum();
        if wanted.len() != sum as usize {
            bail!("{sum} pods wanted, {} are there", wanted.len());
        }
        let running = census::running(record, NAMESPACE)?;
        let uids: BTreeSet<&String> = running.iter().map(|container| &container.pod).collect();
        if uids.len() != running.len() {
            bail!("{} containers run of {} pods: one runs twice", running.len(), uids.len());
        }
        if let Some(stray) = running.iter().find(|container| !wanted.contains_key(&container.pod)) {
            bail!("a container of pod {} runs on {} that nobody wants", stray.pod, stray.machine);
        }
        if let Some((_, name)) = wanted.iter().find(|(uid, _)| !uids.contains(uid)) {
            bail!("pod {name} is Running and has no container");
        }
        self.jobs_are_done()
    }

    fn jobs_are_done(&self) -> Result<()> {
        let listed = self.kubectl.json("get jobs")?;
        for job in listed["items"].as_array().context("items")? {
            let ended =
                job["status"]["conditions"].as_array().into_iter().flatten().any(|c| c["type"] == "Complete" && c["status"] == "True");
            if !ended {
                bail!("job {} is not complete: {}", job["metadata"]["name"], job["status"]);
            }
        }
        Ok(())
    }

    pub fn clear(self) -> Result<()> {
        until(60, "delete the namespace", || self.kubectl.ok(&format!("delete namespace {NAMESPACE} --ignore-not-found --timeout=180s")))
            .map(drop)
    }
}

fn deployment(n: usize, replicas: u32) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: d{n}}}\nspec:\n  replicas: {replicas}\n  selector: {{matchLabels: {{app: d{n}}}}}\n  \
         template:\n    metadata: {{labels: {{app: d{n}}}}}\n    spec:\n      terminationGracePeriodSeconds: 1\n      containers:\n      - name: web\n        \
         image: coracle/web:1\n        volumeMounts: [{{name: scratch, mountPath: /scratch}}]\n      volumes: [{{name: scratch, emptyDir: {{medium: Memory}}}}]\n"
    )
}

/// Kills may fail its pods: it may try often.
fn job(n: usize) -> String {
    format!(
        "apiVersion: batch/v1\nkind: Job\nmetadata: {{name: j{n}}}\nspec:\n  completions: 3\n  parallelism: 2\n  backoffLimit: 50\n  template:\n    spec:\n      \
         restartPolicy: Never\n      terminationGracePeriodSeconds: 1\n      containers:\n      - name: work\n        image: coracle/web:1\n        \
         command: [sleep, \"2\"]\n"
    )
}
