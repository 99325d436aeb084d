"""The power goes at any write of the stores: the next start succeeds and believes all of what was acknowledged, whole.

CI starts from some of the disks that a loss of power may leave, the same ones every time; `make powerloss` from all.
"""

from __future__ import annotations

import pytest

from tests.powerloss.run import WORKLOADS, lose_power

DISKS = 50
"""Of each workload."""


@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_start_after_a_loss_of_power_finds_what_was_acknowledged(workload: str) -> None:
    outcome = lose_power(workload, DISKS)
    print(outcome)
    assert not outcome.wrong, "\n".join(map(str, [outcome, *outcome.wrong[:20]]))
    assert outcome.tried == DISKS < outcome.disks


def test_a_store_that_syncs_no_file_is_found_out() -> None:
    outcome = lose_power("careless", DISKS // 4)
    assert any("container/" in problem for problem in outcome.wrong), outcome
