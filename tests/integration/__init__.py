"""Tests against the real kernel and the real programs; they need root, and each leaves nothing behind."""
