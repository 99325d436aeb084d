"""`unit` mirrors src; `integration` meets the real kernel; `conformance` holds a suite a port; `fault` fails each step."""
