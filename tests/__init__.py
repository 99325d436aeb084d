"""`unit` mirrors src; `integration` meets the real kernel; `conformance` is a suite a port; `fault` fails each step."""
