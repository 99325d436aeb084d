"""The kit finds what is wrong: each controller of `faults` breaks one rule, and the checks of that rule say so."""

from __future__ import annotations

import inspect

import pytest

from atoll.testing.conformance import CHECKS, Report, check_controller
from atoll.testing.fake import FakeController
from tests.unit.testing.conformance import faults
from tests.unit.testing.conformance.subjects import fake_subject

WITHIN_S = 5.0
SHORT_S = 0.3
TOGETHER = 100

Kind = type[FakeController]

FOUND: dict[Kind, tuple[str, ...]] = {
    faults.TakesAnyId: ("create_refuses_ids_that_are_no_names",),
    faults.RefusesLongIds: ("the_longest_id_is_taken",),
    faults.IgnoresOptions: ("options_of_an_unknown_type_are_refused",),
    faults.ParsesStrangeExtensions: ("unknown_extensions_are_carried",),
    faults.StartsTwice: ("second_start_is_refused", "two_starts_at_once_run_one", "survives_a_restart"),
    faults.RestartsTheDead: ("start_after_the_end_is_refused", "stop_before_start_ends_it"),
    faults.FailedStartLeaves: ("refused_options_leave_nothing", "a_failed_undo_is_told_and_paid"),
    faults.CleanupErrorHides: ("a_failed_undo_is_told_and_paid",),
    faults.ForgetsWhatIsStuck: ("a_failed_undo_is_told_and_paid",),
    faults.CancelledStartIsHalf: ("cancelled_start_can_be_shut_down",),
    faults.StartIsNotOrdered: ("two_starts_at_once_run_one",),
    faults.PidIsOfTheHost: ("the_pid_is_in_namespaces_of_its_own",),
    faults.AddressWithoutProtocol: ("an_address_has_protocol_and_version", "the_address_serves_tasks"),
    faults.VersionIsZero: ("an_address_has_protocol_and_version",),
    faults.NobodyListens: ("the_address_serves_tasks",),
    faults.DropsLabels: ("start_gives_the_labels_of_the_record",),
    faults.CreatedAtIsOld: ("created_at_is_the_time_of_the_start", "an_id_can_be_used_again"),
    faults.StopNeedsTheId: ("absent_is_stopped_and_shut_down", "shutdown_is_idempotent_and_forgets"),
    faults.StopChangesTheExit: ("stop_is_idempotent", "an_end_from_outside_is_told"),
    faults.StopReturnsEarly: (
        "stop_returns_when_every_process_has_ended",
        "containers_are_found_again_after_a_restart",
    ),
    faults.RemembersAFirstLife: ("an_id_can_be_used_again",),
    faults.WaitLosesTheStatus: (
        "stop_before_start_ends_it",
        "an_end_from_outside_is_told",
        "an_end_during_a_restart_is_told",
    ),
    faults.ExitIsInTheFuture: ("the_exit_time_is_when_it_ended",),
    faults.ExitIsRaw: ("a_stopped_sandbox_tells_a_wait_status",),
    faults.OneWaiterOnly: ("wait_tells_all_the_same", "a_thousand_waiters_hear_the_same"),
    faults.WaitEndsTheSandbox: ("wait_can_be_given_up",),
    faults.StatusWaitsForItsTurn: ("status_overlaps_with_everything",),
    faults.TalksProse: (
        "verbose_info_is_json",
        "info_has_the_word_of_the_state",
        "update_reaches_the_status",
        "update_reaches_the_cgroup",
    ),
    faults.AlwaysVerbose: ("verbose_info_is_json", "ping_changes_nothing"),
    faults.SaysRunningWhilePaused: ("info_has_the_word_of_the_state",),
    faults.PlatformIsEmpty: ("platform_is_told_in_every_state",),
    faults.PlatformOfTheRunningOnly: ("platform_is_told_in_every_state",),
    faults.PingAlwaysSucceeds: ("ping_tells_whether_it_runs", "ping_changes_nothing", "errors_name_the_sandbox"),
    faults.PingThaws: ("ping_changes_nothing",),
    faults.PingMakesProcesses: ("ping_changes_nothing",),
    faults.NamelessErrors: ("errors_name_the_sandbox",),
    faults.MeasuresSomebodyElse: ("metrics_are_of_the_sandbox",),
    faults.MeasuresInJson: ("metrics_are_of_the_sandbox",),
    faults.MeasuresTheDead: ("metrics_need_a_running_sandbox",),
    faults.PauseIsNotIdempotent: ("pause_and_resume_are_idempotent",),
    faults.PauseFreezesOne: ("pause_freezes_every_process",),
    faults.ResumeThawsNothing: ("pause_freezes_every_process", "a_paused_sandbox_takes_no_containers"),
    faults.PausedCannotBeStopped: (
        "info_has_the_word_of_the_state",
        "ping_changes_nothing",
        "a_paused_sandbox_can_be_stopped",
    ),
    faults.UpdateIgnores: (
        "update_reaches_the_status",
        "update_of_unknown_fields_is_refused",
        "update_reaches_the_cgroup",
    ),
    faults.UpdateTakesAnyField: ("update_of_unknown_fields_is_refused",),
    faults.UpdateIsHalf: ("update_of_unknown_fields_is_refused",),
    faults.UpdateForgetsLimits: ("update_reaches_the_cgroup",),
    faults.NoMoreThanFiveHundred: ("a_thousand_waiters_hear_the_same",),
    faults.ForgetsAtRestart: (
        "survives_a_restart",
        "an_end_during_a_restart_is_told",
        "containers_are_found_again_after_a_restart",
    ),
    faults.LosesExitsAtRestart: ("survives_a_restart", "an_end_during_a_restart_is_told"),
    faults.TakesContainersWhilePaused: ("a_paused_sandbox_takes_no_containers",),
    faults.LosesContainersAtRestart: ("containers_are_found_again_after_a_restart",),
    faults.CannotFreeAnotherLife: ("what_a_dead_daemon_left_is_freed",),
}
"""The checks that find a fault: these, and no other."""

FOUND_WIDELY: dict[Kind, tuple[str, ...]] = {
    faults.CreateReplacesSilently: (
        "create_of_an_id_that_is_there_is_refused",
        "create_does_not_disturb_one_that_runs",
        "two_creates_at_once_make_one",
    ),
    faults.CreateRuns: ("create_runs_nothing",),
    faults.PidIsZero: ("start_answers_what_status_tells", "the_pid_is_in_namespaces_of_its_own"),
    faults.PidIsDead: ("the_pid_is_in_namespaces_of_its_own",),
    faults.SandboxesShareNamespaces: ("the_pid_is_in_namespaces_of_its_own",),
    faults.CreatedAtDiffers: ("start_answers_what_status_tells", "created_at_is_the_time_of_the_start"),
    faults.StopIsNotIdempotent: ("stop_is_idempotent", "two_stops_at_once_both_succeed"),
    faults.ShutdownNeedsTheId: ("absent_is_stopped_and_shut_down", "shutdown_is_idempotent_and_forgets"),
    faults.ShutdownKeepsTheId: ("shutdown_is_idempotent_and_forgets", "an_id_can_be_used_again"),
    faults.ShutdownLeavesAProcess: ("shutdown_stops_what_runs",),
    faults.ShutdownLeavesAMount: ("shutdown_stops_what_runs", "shutdown_before_start_leaves_nothing"),
    faults.ShutdownLeavesACgroup: ("shutdown_stops_what_runs", "shutdown_before_start_leaves_nothing"),
    faults.ShutdownLeavesASocket: ("shutdown_stops_what_runs",),
    faults.WaitAnswersEarly: ("wait_answers_only_after_the_end", "wait_may_come_before_start"),
    faults.ExitIsNow: ("the_exit_time_is_when_it_ended", "wait_tells_all_the_same"),
    faults.KnowsEveryId: ("unknown_ids_are_not_found", "shutdown_is_idempotent_and_forgets"),
    faults.WrongCode: ("unknown_ids_are_not_found",),
    faults.ReadyForEver: ("stop_ends_it", "status_overlaps_with_everything", "wait_answers_only_after_the_end"),
}
"""The checks whose claim is broken, among others that the fault makes fail as well."""

HANGING: dict[Kind, tuple[str, ...]] = {
    faults.ShutdownLeavesWaiters: ("shutdown_releases_waiters",),
    faults.WaitForgets: ("wait_tells_all_the_same", "stop_is_idempotent"),
    faults.WaitBlocksAll: ("waits_hold_up_nobody",),
    faults.MissesEndsFromOutside: ("an_end_from_outside_is_told",),
    faults.Hangs: ("platform_is_told_in_every_state",),
}
"""Faults by which an answer never comes."""


async def failures(kind: Kind, within_s: float) -> Report:
    return await check_controller(fake_subject(kind(sockets="/run/fake"), within_s), jobs=TOGETHER)


def names(report: Report) -> set[str]:
    return {outcome.check.name for outcome in report.failures}


def named(kind: Kind) -> str:
    return kind.__name__


async def test_the_controller_without_a_fault_passes() -> None:
    report = await failures(FakeController, WITHIN_S)
    assert report.is_passed, report
    assert {outcome.check.name for outcome in report.skips} == {"clients_may_vanish", "a_wait_survives_a_restart"}


def test_every_fault_is_looked_for_once() -> None:
    seeded = {one for one in vars(faults).values() if inspect.isclass(one) and one.__name__ in faults.__all__}
    tables = [kind for table in (FOUND, FOUND_WIDELY, HANGING) for kind in table]
    assert len(seeded) >= 20
    assert set(tables) == seeded
    assert len(tables) == len(seeded)
    assert all(inspect.getdoc(kind) for kind in seeded)


@pytest.mark.parametrize("kind", FOUND, ids=named)
async def test_a_fault_is_found_by_its_checks_alone(kind: Kind) -> None:
    assert names(await failures(kind, WITHIN_S)) == set(FOUND[kind])


@pytest.mark.parametrize("kind", FOUND_WIDELY, ids=named)
async def test_a_fault_is_found(kind: Kind) -> None:
    assert names(await failures(kind, WITHIN_S)) >= set(FOUND_WIDELY[kind])


@pytest.mark.parametrize("kind", HANGING, ids=named)
async def test_an_answer_that_never_comes_is_found(kind: Kind) -> None:
    report = await failures(kind, SHORT_S)
    assert names(report) >= set(HANGING[kind])
    assert len(report.outcomes) == len(CHECKS)
