"""A network entry that is damaged stops nothing."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from atoll import errors
from atoll.engine import kinds
from atoll.ledger.kind import Entry
from atoll.network.model import Attachment


def entry(data: dict[str, str]) -> Entry:
    now = datetime.now(UTC)
    return Entry(seq=1, owner="net.p1", kind=kinds.NETWORK, key="p1", data=data, entered_at=now, boot_id="b")


def test_an_attachment_is_read_back() -> None:
    attachment = Attachment(sandbox_id="p1", container_id="p1", netns_path="/run/netns/p1")
    assert kinds.recorded_attachment(entry(kinds.network_data(attachment))) == attachment
    assert kinds.recorded_attachment(entry({})) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"sandbox_id": 7}', "\x00"])
def test_a_damaged_attachment_says_so(text: str) -> None:
    with pytest.raises(errors.DataLoss, match="its attachment cannot be read"):
        kinds.recorded_attachment(entry({"attachment": text}))
