"""Tests: `unit` mirrors src, `integration` meets the real kernel, `conformance` holds one suite a port, `fault` fails each step."""
