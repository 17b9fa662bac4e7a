//! A local page that follows runs while they go: what lies below one folder, read only.
//!
//! | path | answer |
//! |---|---|
//! | `/` | the page |
//! | `/assets/NAME` | its scripts and style |
//! | `/api/items` | everything below the folder that can be shown |
//! | `/api/item?path=P&metrics=N&probe=M&grown=true` | one item; of a run, the rows from line N and M on |
//! | `/api/completions?path=P&from=BYTE&limit=N&step=S&status=V&search=TEXT` | a page of a run's completions |
//! | `/api/tokens?path=P&sample=N` | the token map of one sample |
//!
//! Paths are relative to the folder, and nothing that lies outside, links followed, is ever read ([`Place`]).

mod answer;
mod guard;

use crate::report::Place;
use answer::{completions, index, item, items, script, token_map};
use anyhow::{Context, Result};
use axum::Router;
use axum::routing::get;
use guard::{Hosts, guard};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

/// Serves `dir` until the process ends. `ready` hears the address, whose port is a free one if `port` is 0.
pub fn serve(dir: &Path, host: IpAddr, port: u16, ready: impl FnOnce(SocketAddr)) -> Result<()> {
    let place = Arc::new(Place::below(dir)?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .max_blocking_threads(4)
        .build()
        .context("cannot start the server")?;
    runtime.block_on(async {
        let asked = SocketAddr::new(host, port);
        let listener = tokio::net::TcpListener::bind(asked).await;
        let listener =
            listener.with_context(|| format!("cannot listen on {asked}: choose another --port (0: any free one)"))?;
        let address = listener.local_addr().context("the server has no address")?;
        ready(address);
        axum::serve(listener, router(place, Hosts::of(address))).await.context("the server ended")
    })
}

fn router(place: Arc<Place>, hosts: Hosts) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/assets/{name}", get(script))
        .route("/api/items", get(items))
        .route("/api/item", get(item))
        .route("/api/completions", get(completions))
        .route("/api/tokens", get(token_map))
        .with_state(place)
        .layer(axum::middleware::from_fn_with_state(hosts, guard))
}
