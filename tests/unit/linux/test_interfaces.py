"""The text of /proc/net/dev."""

from __future__ import annotations

from atoll.linux import interfaces
from atoll.linux.netlink import LinkCounters

TEXT = """\
Inter-|   Receive                                      |  Transmit
 face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed
    lo:     100       2    0    0    0     0          0   0      100       2    0    0    0     0       0          0
  eth0:12345678     100    1    3    0     0          0   0     8765      90    2    4    0     0       0          0
eth0:1:       5       1    0    0    0     0          0   0        6       1    0    0    0     0       0          0
"""


def test_each_interface_has_its_counters() -> None:
    found = interfaces.parse(TEXT)
    assert list(found) == ["lo", "eth0", "eth0:1"]
    assert found["eth0"] == LinkCounters(
        rx_bytes=12345678,
        rx_packets=100,
        rx_errors=1,
        rx_dropped=3,
        tx_bytes=8765,
        tx_packets=90,
        tx_errors=2,
        tx_dropped=4,
    )


def test_lines_of_another_form_are_passed_over() -> None:
    assert interfaces.parse("") == interfaces.parse("eth0: 1 2 3\nno colon\n") == {}
