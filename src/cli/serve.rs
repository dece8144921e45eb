//! `tarn serve`.

use std::process::ExitCode;

use anyhow::Context;

use crate::config::Settings;

pub(super) fn run(settings: Settings) -> anyhow::Result<ExitCode> {
    let runtime = super::parts::runtime()?;
    let (state, engine, _embed) = super::parts::server(&settings)?;
    runtime.block_on(async {
        let address = settings.server.listen;
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .with_context(|| format!("listening on {address}: is another server running there?"))?;
        state.jobs.resume();
        tracing::info!("Tarn is up at http://{}", listener.local_addr()?);
        crate::server::serve(listener, state, stop(), settings.server.drain).await?;
        anyhow::Ok(())
    })?;
    drop(engine);
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    Ok(ExitCode::SUCCESS)
}

/// Resolves on SIGTERM or Ctrl-C.
async fn stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = terminated => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
