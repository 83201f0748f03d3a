//! ImageLocality: prefers nodes that already have the pod's images, big ones counting more.
//!
//! Upstream: plugins/imagelocality/image_locality.go, v1.33.

use crate::cache::NodeInfo;
use crate::framework::{Context, MAX_NODE_SCORE, Plugin, Score};

const MIB: i64 = 1024 * 1024;
/// Below this many bytes an image does not matter.
const MIN_THRESHOLD: i64 = 23 * MIB;
/// From this many bytes per container an image can't matter more.
const MAX_CONTAINER_THRESHOLD: i64 = 1000 * MIB;

pub struct ImageLocality;

struct Images {
    /// Normalised name, and the share of nodes that have it: an image on few nodes should not draw every pod there.
    images: Vec<(String, f64)>,
}

/// `nginx` → `nginx:latest`, as nodes report it.
fn normalized(image: &str) -> String {
    let tag = image.rfind(':').is_some_and(|colon| image.rfind('/').is_none_or(|slash| colon > slash));
    if tag { image.to_owned() } else { format!("{image}:latest") }
}

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }

    fn pre_score<'c>(&self, context: Context<'c>, _nodes: &[&NodeInfo]) -> Option<Box<dyn Score<'c> + 'c>> {
        let spec = context.pod.spec();
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let total = context.cache.nodes().len().max(1) as f64;
        let spread = |name: &str| context.cache.nodes_with_image(name) as f64 / total;
        let images: Vec<_> = containers.map(|c| normalized(c.image.as_deref().unwrap_or_default())).collect();
        let images: Vec<_> = images.into_iter().map(|name| (spread(&name), name)).map(|(s, n)| (n, s)).collect();
        images.iter().any(|(_, spread)| *spread > 0.0).then(|| Box::new(Images { images }) as Box<dyn Score<'c> + 'c>)
    }
}

impl<'c> Score<'c> for Images {
    fn score(&self, node: &NodeInfo) -> i64 {
        let weight = |(name, spread): &(String, f64)| node.images.get(name).map_or(0, |size| (*size as f64 * spread) as i64);
        let containers = i64::try_from(self.images.len()).unwrap_or(1);
        let highest = MAX_CONTAINER_THRESHOLD * containers;
        let sum = self.images.iter().map(weight).sum::<i64>().clamp(MIN_THRESHOLD, highest);
        MAX_NODE_SCORE * (sum - MIN_THRESHOLD) / (highest - MIN_THRESHOLD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(normalized("nginx"), "nginx:latest");
        assert_eq!(normalized("localhost:5000/nginx"), "localhost:5000/nginx:latest");
        assert_eq!(normalized("localhost:5000/nginx:1"), "localhost:5000/nginx:1");
    }
}
