"""Thin wrappers of Linux system calls and kernel files; one function a call, errors name the path."""
