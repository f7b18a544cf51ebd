//! Local testnets: manifests, and the runner that starts real node processes.
