"""The faces beside CRI: `runtime` is atoll.v1.Runtime."""
