"""The wire: one `.proto` file a protocol, the modules generated from them, and `codec`."""
