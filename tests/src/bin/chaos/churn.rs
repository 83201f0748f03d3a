//! What is wanted, and changed all the time: workloads of every kind are scaled, rolled, deleted and made anew; pods, Services and settings
//! come and go.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::Value;
use tests::cluster::Cluster;
use tests::kubectl::Kubectl;
use tests::until;

use crate::census;
use crate::objects;

pub const NAMESPACE: &str = "churn";
const DEPLOYMENTS: [&str; 5] = ["d0", "d1", "d2", "d3", "d4"];
const STATEFUL_SETS: [&str; 2] = ["s0", "s1"];
const DAEMON_SET: &str = "e0";
/// Pods of a Deployment at first and at last, and at most.
const REPLICAS: u32 = 6;
const MOST: u32 = 12;
/// The same of a StatefulSet.
const MEMBERS: u32 = 3;
const MOST_MEMBERS: u32 = 4;
/// Jobs and bare pods that exist at a time.
const JOBS: usize = 3;
const COMPLETIONS: u64 = 3;
const BARE: usize = 8;

pub struct Churn {
    kubectl: Kubectl,
    /// Of Deployments and StatefulSets.
    replicas: BTreeMap<&'static str, u32>,
    services: BTreeSet<&'static str>,
    jobs: Vec<usize>,
    bare: Vec<usize>,
    /// Names that were given; a bare pod's number is never used again.
    numbers: usize,
    pub changes: usize,
    /// Changes that could not be made, because the API server or its store was just dead.
    pub refused: usize,
}

fn kind(name: &str) -> &'static str {
    match name.as_bytes().first() {
        Some(b'd') => "deployment",
        Some(b's') => "statefulset",
        _ => "daemonset",
    }
}

fn one_of<T: Copy>(all: &[T], random: &mut StdRng) -> T {
    all[random.random_range(0..all.len())]
}

impl Churn {
    pub fn start(cluster: &Cluster) -> Result<Churn> {
        let kubectl = cluster.kubectl("default").in_new_namespace(NAMESPACE)?;
        let replicas = DEPLOYMENTS.map(|name| (name, REPLICAS)).into_iter().chain(STATEFUL_SETS.map(|name| (name, MEMBERS))).collect();
        let services = DEPLOYMENTS.into_iter().chain(STATEFUL_SETS).collect();
        let churn = Churn { kubectl, replicas, services, jobs: Vec::new(), bare: Vec::new(), numbers: 0, changes: 0, refused: 0 };
        churn.apply_all()?;
        until(300, "the first pods", || churn.workloads_are_ready())?;
        Ok(churn)
    }

    /// One random change. A refusal is counted; it may have happened all the same.
    pub fn change(&mut self, random: &mut StdRng) {
        let (deployment, set) = (one_of(&DEPLOYMENTS, random), one_of(&STATEFUL_SETS, random));
        let any = one_of(&[deployment, deployment, set, DAEMON_SET], random);
        let step = self.changes;
        let outcome = match random.random_range(0..24) {
            0..5 => self.scale(deployment, random.random_range(0..=MOST)),
            5..7 => self.scale(set, random.random_range(0..=MOST_MEMBERS)),
            7..10 => self.command(&format!("set env {}/{any} STEP={step}", kind(any))),
            10 => self.command(&format!("delete pod -l app={deployment} --wait=false --grace-period=0 --force")),
            11 => self.command(&format!("delete pod -l app={any} --wait=false")),
            12 => self.command(&format!("delete pod {set}-{} --wait=false --ignore-not-found", random.random_range(0..MEMBERS))),
            13 => self.anew(any),
            14..16 => self.settings(step),
            16..18 => self.service(deployment),
            18..20 => self.job(random),
            _ => self.bare(random),
        };
        self.changes += 1;
        if outcome.is_err() {
            self.refused += 1;
        }
    }

    fn command(&self, words: &str) -> Result<()> {
        self.kubectl.ok(&format!("{words} --request-timeout=5s")).map(drop)
    }

    fn apply(&self, object: &Value) -> Result<()> {
        self.kubectl.ok_stdin("apply --request-timeout=5s -f -", &object.to_string()).map(drop)
    }

    fn workload(&self, name: &str) -> Value {
        let replicas = self.replicas.get(name).copied().unwrap_or_default();
        match kind(name) {
            "deployment" => objects::deployment(name, replicas),
            "statefulset" => objects::stateful_set(name, replicas),
            _ => objects::daemon_set(name),
        }
    }

    /// Everything that is wanted, whatever of it is there.
    fn apply_all(&self) -> Result<()> {
        let workloads = self.replicas.keys().copied().chain([DAEMON_SET]).map(|name| self.workload(name));
        let rest = self.services.iter().map(|name| objects::service(name)).chain(self.jobs.iter().map(|n| objects::job(*n, COMPLETIONS)));
        let bare = self.bare.iter().map(|n| objects::bare(*n));
        [objects::settings()].into_iter().chain(workloads).chain(rest).chain(bare).try_for_each(|object| self.apply(&object))
    }

    fn scale(&mut self, name: &'static str, replicas: u32) -> Result<()> {
        self.command(&format!("scale {}/{name} --replicas={replicas}", kind(name)))?;
        self.replicas.insert(name, replicas);
        Ok(())
    }

    /// Deleted and made again at once: the new one meets pods of the old.
    fn anew(&self, name: &str) -> Result<()> {
        self.command(&format!("delete {}/{name} --wait=false --ignore-not-found", kind(name)))?;
        self.apply(&self.workload(name))
    }

    fn settings(&self, step: usize) -> Result<()> {
        let patch = |kind: &str, field: &str| {
            let text = format!("{{\"{field}\":{{\"step\":\"{step}\"}}}}");
            self.kubectl.ok_with(&format!("patch {kind} settings --request-timeout=5s --type=merge -p"), &[&text]).map(drop)
        };
        patch("configmap", "data")?;
        patch("secret", "stringData")
    }

    fn service(&mut self, name: &'static str) -> Result<()> {
        if self.services.remove(name) {
            return self.command(&format!("delete service {name} --wait=false --ignore-not-found"));
        }
        self.services.insert(name);
        self.apply(&objects::service(name))
    }

    /// A new one; or one of these, made anew under its name.
    fn job(&mut self, random: &mut StdRng) -> Result<()> {
        if let Some(n) = self.jobs.last().filter(|_| random.random_bool(0.3)) {
            self.command(&format!("delete job {} --wait=false --ignore-not-found", objects::job_name(*n)))?;
            return self.apply(&objects::job(*n, COMPLETIONS));
        }
        if self.jobs.len() >= JOBS {
            let oldest = self.jobs.remove(0);
            self.command(&format!("delete job {} --wait=false --ignore-not-found", objects::job_name(oldest)))?;
        }
        self.numbers += 1;
        self.jobs.push(self.numbers);
        self.apply(&objects::job(self.numbers, COMPLETIONS))
    }

    fn bare(&mut self, random: &mut StdRng) -> Result<()> {
        if self.bare.len() >= BARE {
            let name = objects::bare_name(self.bare.remove(0));
            let how = one_of(&["", "--grace-period=0 --force", "--now"], random);
            self.command(&format!("delete pod {name} --wait=false --ignore-not-found {how}"))?;
            self.command(&format!("delete pvc {name} --wait=false --ignore-not-found"))?;
        }
        self.numbers += 1;
        self.bare.push(self.numbers);
        self.apply(&objects::bare(self.numbers))
    }

    /// The last word on what is wanted: what may or may not have happened is made so.
    pub fn settle(&mut self) -> Result<()> {
        for name in DEPLOYMENTS {
            self.replicas.insert(name, REPLICAS);
        }
        for name in STATEFUL_SETS {
            self.replicas.insert(name, MEMBERS);
        }
        self.services = DEPLOYMENTS.into_iter().chain(STATEFUL_SETS).collect();
        let wanted: BTreeSet<String> = self.bare.iter().map(|n| objects::bare_name(*n)).collect();
        let jobs: BTreeSet<String> = self.jobs.iter().map(|n| objects::job_name(*n)).collect();
        until(240, "the last word", || {
            for (what, keep) in [("pod -l app=bare", &wanted), ("pvc", &wanted), ("job", &jobs)] {
                let listed = self.kubectl.ok(&format!("get {what} -o name"))?;
                let names = listed.lines().filter_map(|line| line.split_once('/')).map(|(_, name)| name);
                for name in names.filter(|name| !name.starts_with("data-s") && !keep.contains(*name)) {
                    self.command(&format!("delete {} {name} --wait=false --ignore-not-found", what.split(' ').next().unwrap_or(what)))?;
                }
            }
            self.apply_all()
        })
    }

    fn listed(&self, what: &str) -> Result<Vec<Value>> {
        match self.kubectl.json(&format!("get {what}"))?["items"].take() {
            Value::Array(items) => Ok(items),
            other => bail!("{what}: {other}"),
        }
    }

    fn workloads_are_ready(&self) -> Result<()> {
        let items = self.listed("deployments,statefulsets,daemonsets")?;
        let find = |name: &str| items.iter().find(|item| item["metadata"]["name"] == name).with_context(|| format!("{name} is lost"));
        for (name, replicas) in &self.replicas {
            let found = find(name)?;
            for field in ["replicas", "readyReplicas", "updatedReplicas", "availableReplicas"] {
                let is = found["status"][field].as_u64().unwrap_or_default();
                if is != u64::from(*replicas) || found["spec"]["replicas"] != *replicas {
                    bail!("{name}: {replicas} wanted, {field} {is}");
                }
            }
        }
        let status = &find(DAEMON_SET)?["status"];
        let wanted = &status["desiredNumberScheduled"];
        for field in ["currentNumberScheduled", "updatedNumberScheduled", "numberReady"] {
            if *wanted == 0 || status[field] != *wanted {
                bail!("{DAEMON_SET}: {wanted} wanted, {field} {}", status[field]);
            }
        }
        Ok(())
    }

    /// Wanted = what the API says = what runs on the machines = what Services lead to.
    pub fn check(&self, record: &coracle::cluster::Cluster) -> Result<()> {
        self.workloads_are_ready()?;
        self.jobs_are_done()?;
        let pods = self.listed("pods")?;
        let running = self.living(&pods, record.machines.len())?;
        let found = census::running(record, NAMESPACE)?;
        if let Some(stray) = found.iter().find(|container| !running.contains(&container.pod)) {
            bail!("container {} of pod {} runs on {}, and nobody wants it", stray.container, stray.name, stray.machine);
        }
        if let Some(missing) = running.iter().find(|uid| !found.iter().any(|container| container.pod == **uid)) {
            bail!("pod {missing} is Running and has no container");
        }
        self.services_lead_to(&pods, record)
    }

    /// The uids of the pods that run, each of them wanted.
    fn living(&self, pods: &[Value], machines: usize) -> Result<BTreeSet<String>> {
        let mut running = BTreeSet::new();
        let mut bare: BTreeSet<String> = self.bare.iter().map(|n| objects::bare_name(*n)).collect();
        for pod in pods {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let name = text(&pod["metadata"]["name"]);
            if !pod["metadata"]["deletionTimestamp"].is_null() {
                bail!("pod {name} is being deleted");
            }
            if pod["metadata"]["ownerReferences"].is_null() && !bare.remove(&name) {
                bail!("pod {name} is one that nobody wants");
            }
            match pod["status"]["phase"].as_str() {
                Some("Running") if !objects::runs_once(&name) => running.insert(text(&pod["metadata"]["uid"])),
                Some("Succeeded" | "Failed") if objects::runs_once(&name) => continue,
                phase => bail!("pod {name} is {phase:?}"),
            };
        }
        if let Some(lost) = bare.first() {
            bail!("pod {lost} is lost");
        }
        let forever = self.bare.iter().filter(|n| !objects::runs_once(&objects::bare_name(**n))).count();
        let wanted = self.replicas.values().sum::<u32>() as usize + machines + forever;
        if running.len() != wanted {
            bail!("{wanted} pods wanted, {} run", running.len());
        }
        Ok(running)
    }

    fn jobs_are_done(&self) -> Result<()> {
        let listed = self.listed("jobs")?;
        for n in &self.jobs {
            let name = objects::job_name(*n);
            let job = listed.iter().find(|job| job["metadata"]["name"] == name.as_str()).with_context(|| format!("job {name} is lost"))?;
            let ended =
                job["status"]["conditions"].as_array().into_iter().flatten().any(|c| c["type"] == "Complete" && c["status"] == "True");
            if !ended || job["status"]["succeeded"] != COMPLETIONS {
                bail!("job {name} is not complete, or too much so: {}", job["status"]);
            }
        }
        Ok(())
    }

    /// Endpoints are the ready pods, and every machine's node port answers.
    fn services_lead_to(&self, pods: &[Value], record: &coracle::cluster::Cluster) -> Result<()> {
        let slices = self.listed("endpointslices")?;
        let services = self.listed("services")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        for name in &self.services {
            let of_service = slices.iter().filter(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == *name);
            let endpoints = of_service.flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
            let are: BTreeSet<String> = endpoints.map(|endpoint| text(&endpoint["addresses"][0])).collect();
            let behind = pods.iter().filter(|pod| pod["metadata"]["labels"]["app"] == *name);
            let wanted: BTreeSet<String> = behind.map(|pod| text(&pod["status"]["podIP"])).collect();
            if are != wanted {
                bail!("service {name}: endpoints {are:?}, pods {wanted:?}");
            }
            let service =
                services.iter().find(|one| one["metadata"]["name"] == *name).with_context(|| format!("service {name} is lost"))?;
            let port = service["spec"]["ports"][0]["nodePort"].as_u64().and_then(|port| u16::try_from(port).ok()).context("a node port")?;
            for machine in &record.machines {
                answers(record.address(machine), port).with_context(|| format!("service {name} through {}", machine.name))?;
            }
        }
        Ok(())
    }

    /// Deletes all of it. Nothing may hold on to its end, and no volume may stay.
    pub fn clear(self) -> Result<()> {
        let delete = format!("delete namespace {NAMESPACE} --ignore-not-found --timeout=180s");
        until(60, "delete the namespace", || self.kubectl.ok(&delete))?;
        until(120, "the volumes go with their claims", || match self.kubectl.ok("get pv -o name")?.trim() {
            "" => Ok(()),
            left => bail!("{left}"),
        })
    }
}

fn answers(address: std::net::Ipv4Addr, port: u16) -> Result<()> {
    use std::io::{Read, Write};
    let limit = std::time::Duration::from_secs(5);
    let mut stream = std::net::TcpStream::connect_timeout(&(address, port).into(), limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    if !text.contains("200 OK") {
        bail!("answered {text:?}");
    }
    Ok(())
}
