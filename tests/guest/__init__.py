"""Atoll in a small virtual machine, whose kernel has the cgroups (and the security module) that are asked for.

image.py     the disk: Debian 12 by debootstrap, its cloud kernel, this repository's .venv; made once, then kept
project.py   the working tree, on a second disk
machine.py   one boot of both under qemu; its report, read from the serial line
__main__.py  the command line of scripts/guest-test
initrd, init what the guest starts: the disk, then the cgroups and the tests
report.py    the guest's end of the report, a pytest plugin
conftest.py, test_*.py   the tests that run inside, the guest's own
"""
