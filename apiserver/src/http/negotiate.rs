//! Which form of an answer the client accepts, and in which form its body comes.
//!
//! Upstream counterparts: `apiserver/pkg/endpoints/handlers/{negotiation/negotiate,rest}.go`, `goautoneg` (v1.33).

use std::cmp::Reverse;

use api::Status;
use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE, USER_AGENT};
use schema::Media;

use super::info::Query;

pub const JSON: &str = "application/json";
pub const YAML: &str = "application/yaml";
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
pub const SUPPORTED: [&str; 3] = [JSON, YAML, PROTOBUF];
const STREAMED: [&str; 2] = ["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];

/// `meta.k8s.io/v1` or `meta.k8s.io/v1beta1`: in which version a Table or metadata is shown.
pub type MetaVersion = &'static str;

/// What the objects of an answer are shown as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Object,
    Metadata(MetaVersion),
    Table(MetaVersion),
    /// `APIGroupDiscoveryList` v2.
    Discovery,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    pub shape: Shape,
    pub media: Media,
    /// JSON for people's eyes.
    pub pretty: bool,
}

impl Want {
    pub const JSON: Want = Want { shape: Shape::Object, media: Media::Json, pretty: false };

    pub fn content_type(&self) -> &'static str {
        match self.media {
            Media::Json => JSON,
            Media::Yaml => YAML,
            Media::Protobuf => PROTOBUF,
        }
    }
}

/// What an endpoint can answer with, besides its objects as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offers {
    /// Objects only: errors, discovery and what has no metadata.
    Objects,
    /// Metadata alone, too.
    Metadata,
    /// And tables.
    Tables,
    /// Aggregated discovery.
    Discovery,
    /// Metadata and tables, by the event: no YAML.
    Watch,
}

/// One clause of `Accept`: a media range and its parameters.
#[derive(Clone, Debug)]
pub struct Clause<'a> {
    kind: &'a str,
    subtype: &'a str,
    params: Vec<(&'a str, &'a str)>,
    quality: f32,
}

impl<'a> Clause<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let range = parts.next().filter(|range| !range.is_empty())?;
        let (kind, subtype) = if range == "*" { ("*", "*") } else { range.split_once('/')? };
        let mut clause = Clause { kind, subtype, params: Vec::new(), quality: 1.0 };
        for (name, value) in parts.filter_map(|p| p.split_once('=')) {
            match name.trim() {
                "q" => clause.quality = value.trim().parse().unwrap_or(1.0),
                name => clause.params.push((name, value.trim())),
            }
        }
        Some(clause)
    }

    /// Is this media type one that the clause asks for?
    pub fn takes(&self, media_type: &str) -> bool {
        let is = |range: &str, one: &str| range == "*" || range == one;
        media_type.split_once('/').is_some_and(|(kind, subtype)| is(self.kind, kind) && is(self.subtype, subtype))
    }

    fn param(&self, name: &str) -> &'a str {
        self.params.iter().rfind(|(n, _)| *n == name).map_or("", |(_, v)| v)
    }

    fn want(&self, offers: Offers) -> Option<Want> {
        let (media, _) =
            [(Media::Json, JSON), (Media::Yaml, YAML), (Media::Protobuf, PROTOBUF)].into_iter().find(|(_, name)| self.takes(name))?;
        let stream = self.param("stream");
        let streams = stream.is_empty() || stream == "watch" && media != Media::Yaml;
        let shape = self.shape(media, offers).filter(|_| streams)?;
        Some(Want { shape, media, pretty: self.param("pretty") == "1" })
    }

    fn shape(&self, media: Media, offers: Offers) -> Option<Shape> {
        let version = match (self.param("g"), self.param("v")) {
            ("meta.k8s.io", "v1") => "meta.k8s.io/v1",
            ("meta.k8s.io", "v1beta1") => "meta.k8s.io/v1beta1",
            ("apidiscovery.k8s.io", "v2") => "apidiscovery.k8s.io/v2",
            _ => "",
        };
        let partly = matches!(offers, Offers::Metadata | Offers::Tables | Offers::Watch);
        match (self.param("as"), version) {
            ("", "") => Some(Shape::Object),
            ("APIGroupDiscoveryList", "apidiscovery.k8s.io/v2") if offers == Offers::Discovery && media == Media::Json => {
                Some(Shape::Discovery)
            }
            ("Table", version) if version.starts_with("meta") && media != Media::Protobuf => {
                matches!(offers, Offers::Tables | Offers::Watch).then_some(Shape::Table(version))
            }
            ("PartialObjectMetadata" | "PartialObjectMetadataList", version) if version.starts_with("meta") => {
                partly.then_some(Shape::Metadata(version))
            }
            _ => None,
        }
    }
}

/// The clauses of `Accept`, best first: by quality, then the more specific. None if the client does not say.
pub fn clauses(headers: &HeaderMap) -> Vec<Clause<'_>> {
    let values = headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok());
    let mut clauses: Vec<_> = values.flat_map(|v| v.split(',')).filter_map(Clause::parse).collect();
    clauses.sort_by(|a, b| {
        b.quality
            .total_cmp(&a.quality)
            .then_with(|| Reverse((a.kind != "*", a.subtype != "*")).cmp(&Reverse((b.kind != "*", b.subtype != "*"))))
    });
    clauses
}

/// The first clause that can be served. Errors: 406.
pub fn accept(headers: &HeaderMap, query: &Query, offers: Offers) -> Result<Want, Status> {
    let clauses = clauses(headers);
    let mut want = if headers.get(ACCEPT).is_none_or(|v| v.is_empty()) {
        Want::JSON
    } else {
        let refused = || Status::not_acceptable(if offers == Offers::Watch { &STREAMED } else { &SUPPORTED });
        clauses
            .iter()
            .find_map(|clause| clause.want(offers))
            .filter(|want| offers != Offers::Watch || want.media != Media::Yaml)
            .ok_or_else(refused)?
    };
    want.pretty = want.media == Media::Json && offers != Offers::Watch && (want.pretty || wants_pretty(headers, query));
    Ok(want)
}

/// How to say no: as an object, in JSON if nothing else fits.
pub fn accept_error(headers: &HeaderMap, query: &Query) -> Want {
    accept(headers, query, Offers::Objects).unwrap_or(Want::JSON)
}

/// Asked for, or the client is one that people look at.
fn wants_pretty(headers: &HeaderMap, query: &Query) -> bool {
    if !query.get("pretty").is_empty() {
        return query.flag("pretty");
    }
    let agent = headers.get(USER_AGENT).map_or(&[][..], |v| v.as_bytes());
    [&b"curl"[..], b"Wget", b"Mozilla/5.0"].iter().any(|human| agent.starts_with(human))
}

/// The body's form, from `Content-Type`; none means JSON.
pub fn content(headers: &HeaderMap) -> Result<Media, Status> {
    let value = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    match media_type(value) {
        "" | "application/json" => Ok(Media::Json),
        "application/yaml" | "text/yaml" => Ok(Media::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(Media::Protobuf),
        _ => Err(Status::unsupported_media_type(&SUPPORTED)),
    }
}

/// A media type without its parameters.
pub fn media_type(value: &str) -> &str {
    value.split(';').next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    const META: &str = "meta.k8s.io/v1";

    #[test]
    fn takes_the_first_clause_it_can_serve() {
        let (object, table, metadata) = (Shape::Object, Shape::Table(META), Shape::Metadata(META));
        let (json, yaml, protobuf) = (Media::Json, Media::Yaml, Media::Protobuf);
        let tables = "application/json;as=Table;v=v1;g=meta.k8s.io";
        let cases = [
            ("", Offers::Tables, Some((object, json))),
            ("application/vnd.kubernetes.protobuf, */*", Offers::Tables, Some((object, protobuf))),
            ("application/json, application/vnd.kubernetes.protobuf", Offers::Tables, Some((object, json))),
            ("application/json;q=0.5, application/vnd.kubernetes.protobuf", Offers::Tables, Some((object, protobuf))),
            ("*/*, application/yaml", Offers::Tables, Some((object, yaml))),
            ("application/*", Offers::Tables, Some((object, json))),
            (&format!("{tables},application/json"), Offers::Tables, Some((table, json))),
            (&format!("{tables},application/json"), Offers::Objects, Some((object, json))),
            (tables, Offers::Metadata, None),
            ("application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,application/json", Offers::Tables, Some((object, json))),
            (
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json",
                Offers::Tables,
                Some((metadata, protobuf)),
            ),
            ("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v2", Offers::Tables, None),
            ("application/vnd.kubernetes.protobuf;stream=watch,application/json;stream=watch", Offers::Watch, Some((object, protobuf))),
            ("application/yaml", Offers::Watch, None),
            (
                "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json",
                Offers::Discovery,
                Some((Shape::Discovery, json)),
            ),
            ("text/html", Offers::Tables, None),
        ];
        for (header, offers, expected) in cases {
            let mut headers = HeaderMap::new();
            if !header.is_empty() {
                headers.insert(ACCEPT, header.parse().unwrap());
            }
            let got = accept(&headers, &Query::default(), offers).ok().map(|w| (w.shape, w.media));
            assert_eq!(got, expected, "{header} {offers:?}");
        }
    }
}
