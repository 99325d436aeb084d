"""The faces beside CRI: `runtime` is atoll.v1.Runtime; `sandbox_store`, `events`, `version` are containerd services."""
