//! `stockdiff --ours KUBECONFIG --stock KUBECONFIG`: the same requests to an API server of ours and to stock Kubernetes 1.20.2, and where the answers differ.
//!
//! Every seed of `tests/data/seeds.yaml` is changed by rule ([`mutate`]) and sent to both, as a create and against the stored seed as an update and
//! a patch; all dry runs. Compared are the status code, the reason, the causes, the message and, of what is accepted, the defaulted object.
//! What v1.33 deliberately says otherwise stands in [`known`] with its reason; it is counted apart.
//! Fails if a ratio is below its goal.

mod compare;
mod known;
mod mutate;
mod side;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Parser;
use http::Method;
use serde_json::{Value, json};

use compare::Tally;
use mutate::Mutation;
use side::{Reply, Side, UNANSWERED};

const SEEDS: &str = include_str!("../../../data/seeds.yaml");
const NAMESPACE: &str = "stockdiff";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const JSON: &str = "application/json-patch+json";

#[derive(Parser)]
struct Args {
    /// Kubeconfig of the server under test
    #[arg(long)]
    ours: PathBuf,
    /// Kubeconfig of stock's
    #[arg(long)]
    stock: PathBuf,
    /// Only seeds of these kinds
    #[arg(long, value_delimiter = ',')]
    kind: Vec<String>,
    /// Mutations of each seed, picked at random
    #[arg(long, default_value_t = 40)]
    limit: usize,
    /// Which ones
    #[arg(long, default_value_t = 1)]
    pick: u64,
    /// Groups of differences to show of each sort
    #[arg(long, default_value_t = 15)]
    show: usize,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    let folder = tempfile::tempdir()?;
    let mut sides = Sides {
        ours: Side::connect(&args.ours, &folder.path().join("ours"), false).await?,
        stock: Side::connect(&args.stock, &folder.path().join("stock"), true).await?,
        tally: Tally::default(),
    };
    let text = SEEDS.replace("NAMESPACE", NAMESPACE);
    let seeds: Vec<Value> = serde_yaml::from_multiple(&text).context("seeds.yaml")?;
    sides.prepare().await?;
    for seed in &seeds {
        let kind = seed["kind"].as_str().context("a seed's kind")?;
        if args.kind.is_empty() || args.kind.iter().any(|wanted| wanted == kind) {
            let mutations = mutate::pick(mutate::all(seed), args.limit, args.pick);
            sides.seed(kind, seed, &mutations).await.with_context(|| format!("{kind} {}", name_of(seed)))?;
        }
    }
    if sides.tally.report(args.show) { Ok(()) } else { bail!("below the goals") }
}

fn name_of(seed: &Value) -> &str {
    seed.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("")
}

struct Sides {
    ours: Side,
    stock: Side,
    tally: Tally,
}

impl Sides {
    /// A namespace with an account, which no controller needs to make first.
    async fn prepare(&mut self) -> Result<()> {
        for side in [&mut self.ours, &mut self.stock] {
            side.post("/api/v1/namespaces", &json!({"metadata": {"name": NAMESPACE}})).await?;
            let accounts = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts");
            side.post(&accounts, &json!({"metadata": {"name": "default"}})).await?;
        }
        Ok(())
    }

    async fn seed(&mut self, kind: &str, seed: &Value, mutations: &[Mutation]) -> Result<()> {
        self.create(kind, seed, &Mutation { rule: "as it is".into(), at: String::new(), body: seed.clone() }).await?;
        for mutation in mutations {
            self.create(kind, seed, mutation).await?;
        }
        // Questions are answered, not stored.
        if kind.ends_with("Review") {
            return Ok(());
        }
        for side in [&mut self.ours, &mut self.stock] {
            side.store(seed).await?;
        }
        for (index, mutation) in mutations.iter().enumerate().filter(|(_, mutation)| mutation.body.is_object()) {
            self.update(kind, seed, mutation).await?;
            if index % 2 == 0 && !mutation.at.is_empty() {
                self.patch(kind, seed, mutation, [MERGE, JSON, STRATEGIC][index / 2 % 3]).await?;
            }
        }
        for side in [&mut self.ours, &mut self.stock] {
            side.remove(seed).await?;
        }
        Ok(())
    }

    async fn create(&mut self, kind: &str, seed: &Value, mutation: &Mutation) -> Result<()> {
        let ours = self.ours.dry(Method::POST, seed, "", "application/json", &mutation.body);
        let stock = self.stock.dry(Method::POST, seed, "", "application/json", &mutation.body);
        let (ours, stock) = tokio::join!(ours, stock);
        self.note(kind, seed, "create", mutation, ours?, stock?);
        Ok(())
    }

    async fn update(&mut self, kind: &str, seed: &Value, mutation: &Mutation) -> Result<()> {
        let mut replies = Vec::new();
        for side in [&mut self.ours, &mut self.stock] {
            let body = side.against_stored(seed, &mutation.body).await?;
            replies.push(side.dry(Method::PUT, seed, name_of(seed), "application/json", &body).await?);
        }
        let (stock, ours) = (replies.pop().context("stock's")?, replies.pop().context("ours")?);
        self.note(kind, seed, "update", mutation, ours, stock);
        Ok(())
    }

    async fn patch(&mut self, kind: &str, seed: &Value, mutation: &Mutation, content_type: &str) -> Result<()> {
        let mut body = mutation.body.clone();
        if content_type == JSON {
            body = match body.pointer(&mutation.at) {
                Some(value) => json!([{"op": "replace", "path": mutation.at, "value": value}]),
                None => json!([{"op": "remove", "path": mutation.at}]),
            };
        } else if let Some(fields) = body.as_object_mut() {
            fields.remove("apiVersion");
            fields.remove("kind");
        }
        let ours = self.ours.dry(Method::PATCH, seed, name_of(seed), content_type, &body);
        let stock = self.stock.dry(Method::PATCH, seed, name_of(seed), content_type, &body);
        let (ours, stock) = tokio::join!(ours, stock);
        let (verb, _) = content_type.trim_start_matches("application/").split_once('-').unwrap_or_default();
        self.note(kind, seed, verb, mutation, ours?, stock?);
        Ok(())
    }

    fn note(&mut self, kind: &str, seed: &Value, verb: &str, mutation: &Mutation, ours: Reply, stock: Reply) {
        // Stock panics on a few (a replication controller without a template): there is nothing to equal.
        if stock.code == UNANSWERED {
            return;
        }
        self.tally.note(kind, &format!("{verb} {} {}", name_of(seed), mutation.rule), &ours, &stock);
    }
}
