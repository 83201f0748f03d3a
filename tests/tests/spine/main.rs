//! The spine, from apply to traffic, on a real cluster of one master and two workers with real kubectl.
//!
//! `cargo test --release -p tests -- WORD…` runs the stages whose names hold one of the words. `KEEP=1` leaves the cluster up.

mod basics;
mod charts;
mod configuration;
mod control_plane;
mod errors;
mod healing;
mod images;
mod lifecycle;
mod network;
mod quota;
mod reads;
mod rollout;
mod services;
mod storage;
mod store;
mod streams;
mod verbs;
mod writes;

use std::process::ExitCode;

use anyhow::{Result, bail};
use tests::cluster::{Cluster, SHORT_TIMEOUTS};
use tests::kubectl::Kubectl;
use tests::runner;

/// The cluster, so that two runs on one machine do not meet: `CLUSTER=mine cargo test …`.
pub fn name() -> String {
    std::env::var("CLUSTER").unwrap_or_else(|_| "test-spine".into())
}

/// `STORE=etcd` runs the stages on a cluster whose state is in etcd, and those about etcd besides.
fn on_etcd() -> bool {
    std::env::var("STORE").is_ok_and(|store| store == "etcd")
}

/// What every stage gets.
pub struct Spine {
    pub cluster: Cluster,
    /// What `up` printed.
    pub printed: String,
}

impl Spine {
    pub fn kubectl(&self, namespace: &str) -> Kubectl {
        self.cluster.kubectl(namespace)
    }

    /// kubectl in a namespace of the stage's own.
    pub fn own(&self, namespace: &str) -> Result<Kubectl> {
        self.kubectl("default").in_new_namespace(namespace)
    }
}

fn main() -> ExitCode {
    let filters: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    // What an interrupted run left.
    let leftover = Cluster { name: name() };
    if let Err(e) = leftover.coracle(&["down"]) {
        println!("clear up before: {e:#}");
    }
    let mut words = SHORT_TIMEOUTS.to_vec();
    if on_etcd() {
        words.push("--etcd");
    }
    let (passed, failed, skipped) = match Cluster::up(&name(), &words) {
        Ok((cluster, printed)) => {
            println!("{printed}");
            all(Spine { cluster, printed }, &filters)
        }
        Err(e) => {
            println!("test up ... FAILED\n    {e:#}");
            (0, vec!["up"], 0)
        }
    };
    if !failed.is_empty() {
        println!("\nfailed: {}", failed.join(", "));
    }
    println!("\n{passed} passed, {} failed, {skipped} skipped", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn all(spine: Spine, filters: &[String]) -> (usize, Vec<&'static str>, usize) {
    let mut stages = tests::stages![
        basics::nodes_are_ready,
        basics::quick_start_answers,
        basics::every_process_is_healthy,
        basics::trace_shows_the_chain,
        basics::up_again_changes_nothing,
        verbs::apply_file_and_directory,
        verbs::get_in_every_form,
        verbs::create_family,
        verbs::change_in_place,
        verbs::patch_label_annotate_edit,
        verbs::explain_and_discovery,
        verbs::run_expose_wait_events,
        verbs::delete_in_every_form,
        verbs::cordon_taint_drain,
        writes::server_side_apply,
        writes::managers_and_no_ops,
        writes::diff_and_dry_run,
        streams::logs,
        streams::exec_attach_cp,
        streams::port_forward,
        streams::debug,
        lifecycle::killed_container_restarts,
        lifecycle::init_containers_and_probes,
        lifecycle::failed_pods_say_why,
        lifecycle::unschedulable_says_why,
        lifecycle::runtime_classes_and_kernel_settings,
        configuration::environment_and_volumes,
        configuration::limits_become_control_groups,
        configuration::service_account_token_works,
        storage::claims_find_volumes,
        storage::data_outlives_pods,
        storage::a_kept_volume_is_kept,
        storage::ephemeral_volumes_and_sub_paths,
        storage::volumes_follow_their_sources,
        storage::sidecars_and_hooks,
        network::names_and_services,
        network::loaded_image_runs,
        reads::proxies,
        reads::websockets,
        images::a_dockerfile_becomes_an_image,
        images::refused_images_say_why,
        images::private_registry,
        services::addresses_and_ports_come_and_go,
        services::load_balancer_and_policies,
        services::affinity_headless_and_hand_made,
        quota::quotas_hold_and_give_back,
        charts::helm_releases,
        errors::bad_input_is_refused_and_not_stored,
        errors::permissions_are_asked,
        rollout::history_and_undo,
        rollout::no_request_is_lost,
        healing::a_job_made_anew_while_nobody_counted_lets_its_old_pods_go,
        healing::cut_off_worker_is_evicted_and_rejoins,
        control_plane::each_process_killed_in_turn,
        control_plane::killed_during_a_thousand_creates,
    ];
    if on_etcd() {
        stages.extend(tests::stages![store::objects_are_seen_in_etcd, store::etcd_away_and_back, store::state_moves_there_and_back]);
    }
    let (passed, mut failed, skipped) = runner::run(&spine, &stages, filters);
    if std::env::var_os("KEEP").is_some() {
        return (passed, failed, skipped);
    }
    let last = [runner::Stage { name: "down_leaves_nothing", run: down_leaves_nothing }];
    let end = runner::run(&spine, &last, &[]);
    failed.extend(end.1);
    (passed + end.0, failed, skipped)
}

fn down_leaves_nothing(spine: &Spine) -> Result<()> {
    spine.cluster.coracle(&["down"])?;
    let left = spine.cluster.remains()?;
    if !left.is_empty() {
        bail!("left behind:\n{}", left.join("\n"));
    }
    // Once more is fine.
    spine.cluster.coracle(&["down"]).map(drop)
}
