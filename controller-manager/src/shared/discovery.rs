//! Every kind the API server stores, for controllers that work on all of them.

use kube::Client;
use kube::core::{ApiResource, discovery::Scope};
use kube::discovery::Discovery;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Resource {
    pub api: ApiResource,
    pub namespaced: bool,
}

/// Each resource once, in its preferred version, if it can be listed, watched and deleted.
pub async fn resources(client: &Client) -> kube::Result<Vec<Resource>> {
    let discovered = match Discovery::new(client.clone()).run_aggregated().await {
        // A server that does not know the aggregated form answers with something that reads as empty.
        Ok(discovered) if discovered.groups().next().is_some() => discovered,
        _ => Discovery::new(client.clone()).run().await?,
    };
    let mut found = Vec::new();
    for group in discovered.groups() {
        for (api, capabilities) in group.resources_by_stability() {
            let supports = |verb: &str| capabilities.supports_operation(verb);
            if supports("list") && supports("delete") && supports("watch") {
                found.push(Resource { api, namespaced: capabilities.scope == Scope::Namespaced });
            }
        }
    }
    Ok(found)
}
