"""Tests of the ttrpc package."""
