//! Creates ConfigMaps one after another: `creates PKI ADDRESS NAMESPACE COUNT`, until COUNT are acknowledged. Prints "NAME RESOURCE_VERSION" for each create the server
//! acknowledged with 201. A create that got no answer counts for nothing; the next one goes on over a new connection.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use http::Method;
use tests::client::{Client, Endpoint};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [pki, address, namespace, count] = words.as_slice() else { bail!("creates PKI ADDRESS NAMESPACE COUNT") };
    let mut client = Client::new(&Endpoint { address: address.parse()?, pki: pki.into() })?;
    let path = format!("/api/v1/namespaces/{namespace}/configmaps");
    let count: u32 = count.parse()?;
    let deadline = Instant::now() + Duration::from_secs(180);
    let (mut name, mut acknowledged) = (0, 0);
    while acknowledged < count && Instant::now() < deadline {
        let body = serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("c{name}")}, "data": {"n": name.to_string()}});
        match client.request(Method::POST, &path, serde_json::to_vec(&body)?).await {
            Ok(answer) if answer.status == 201 => {
                let object: serde_json::Value = serde_json::from_slice(&answer.body)?;
                acknowledged += 1;
                println!("c{name} {}", object["metadata"]["resourceVersion"].as_str().context("resourceVersion")?);
            }
            Ok(answer) if answer.status >= 500 => tokio::time::sleep(Duration::from_millis(20)).await,
            Ok(answer) => bail!("create c{name}: {} {}", answer.status, String::from_utf8_lossy(&answer.body)),
            // The server is being killed: whether this create was stored nobody knows, so it is not counted.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
        name += 1;
    }
    Ok(())
}
