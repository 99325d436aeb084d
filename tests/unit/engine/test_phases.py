"""The stories of operations."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from atoll.engine import phases
from atoll.engine.phases import Stories


def test_a_step_is_recorded_with_its_time_and_what_it_waits_on() -> None:
    story = Stories().begin("pod", "run")
    with story.step("network", "CNI ADD") as phase:
        assert story.running() is phase
        assert phase.duration_ns == -1
        phase.waits_on = "CNI plugin bridge"
    assert story.running() is None
    assert [(one.name, one.waits_on, one.error) for one in story.phases] == [("network", "CNI plugin bridge", "")]
    assert phase.duration_ns >= 0


def test_a_step_that_fails_tells_why_and_lets_the_error_pass() -> None:
    story = Stories().begin("pod", "run")
    with pytest.raises(RuntimeError), story.step("broken"):
        raise RuntimeError("out of luck")
    assert story.phases[0].error == "out of luck"


def test_the_innermost_step_is_the_one_that_runs() -> None:
    story = Stories().begin("pod", "stop")
    with story.step("outer"), story.step("inner") as inner:
        assert story.running() is inner


def test_the_oldest_stories_and_the_pods_gone_longest_are_forgotten() -> None:
    stories = Stories()
    for number in range(phases.MAX_STORIES + 5):
        stories.begin("pod", f"{number}")
    kept = stories.of("pod")
    assert [kept[0].operation, len(kept)] == ["5", phases.MAX_STORIES]
    stories.end("pod")
    for number in range(phases.MAX_ENDED):
        stories.begin(f"other-{number}", "run")
        assert stories.of("pod") != ()
        stories.end(f"other-{number}")
    assert stories.of("pod") == ()
    assert stories.of("nobody") == ()


async def test_an_operation_ends_the_story_that_it_begins_and_no_other() -> None:
    stories, told = Stories(), []
    stories.tap(told.append)
    earlier = stories.begin("pod", "run")

    @phases.operation
    async def stop() -> str:
        with stories.begin("pod", "stop").step("kill"):
            return "stopped"

    @phases.operation
    async def remove() -> None:
        story = stories.begin("pod", "remove", "container")
        await stop()
        with story.step("release"):
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        await remove()
    assert [(one.operation, one.subject, one.pod_id, one.error) for one in told] == [
        ("stop", "pod", "pod", ""),
        ("remove", "container", "pod", "the disk is full"),
    ]
    assert all(one.duration_ns >= sum(phase.duration_ns for phase in one.phases) for one in told)
    assert earlier.duration_ns == -1


def test_whoever_begins_a_story_ends_it() -> None:
    """Each function of the engine that begins one is an `operation`."""
    found: list[str] = []
    for path in Path(phases.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.AsyncFunctionDef) and "stories.begin(" in ast.unparse(node):
                marks = [ast.unparse(one) for one in node.decorator_list]
                found += [f"{path.name}: {node.name}"] if "operation" not in marks else []
    assert found == []
