"""The host and the OCI runtime that the tests of specs have."""

from tests.unit.oci.conftest import host, runtime

__all__ = ["host", "runtime"]
