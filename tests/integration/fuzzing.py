"""Requests that nobody would send: hypothesis strategies over protobuf descriptors.

`random_message` fills any message with anything; `mutated` changes a valid one in a few places. Texts are drawn from
what has broken runtimes (nothing, too much, .., NUL) and from words that `fill` replaces by what there is: IDs of live
pods and containers, and folders of the test. Where a text is the path of something that a runtime makes or fetches, the
choice is narrower, for the daemon is root and believes its caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]

MAX_DEPTH = 6
IDS = ("<pod>", "<running>", "<created>", "<exited>", "<stopped>", "<half>", "<made>", "<ran>")
"""What `fill` replaces: the IDs of live things, and half of one."""
BASE = "<base>"
"""The test's own folder."""
ODD = (
    "",
    " ",
    ".",
    "..",
    "a",
    "a/b",
    "a/../../b",
    "\0",
    "a\0b",
    "\n",
    "é",
    "😀",
    "%s%n",
    "a b",
    "-x",
    "--help",
    "{}",
    "0",
)
LONG = ("x" * 300, "y" * 5000, "../" * 100)
PATHS = (BASE, BASE + "/new/folder", "/dev/null", "/proc/self", "relative", "", "..", "/a\0b", "/" + "z" * 5000)
INSIDE = (
    BASE + "/logs",
    BASE + "/logs/",
    BASE + "//logs",
    BASE + "/logs/../logs",
    "relative",
    "",
    ".",
    "/../..",
    "/a\0b",
)
"""For what makes its folders: nothing outside of the test's own."""
IMAGES = (
    "atoll/busybox",
    "127.0.0.1:1/none:latest",
    "",
    "UPPER/Case",
    "a@sha256:0",
    "sha256:" + "0" * 64,
    "x" * 300,
    "a b",
    "\0",
)
CGROUPS = ("", "/<prefix>/fuzz<new>", "/<prefix>/a b<new>", "..", "/../x", "x/y.slice", "\0", "/" + "c" * 300)
TEXTS: Mapping[str, tuple[str, ...]] = {
    "log_directory": INSIDE,
    "location": (*INSIDE, BASE + "/checkpoint.tar"),
    "host_path": PATHS,
    "container_path": (*PATHS, "/", "/dev/console", "/proc", "/etc/../etc/passwd", "/mnt"),
    "image": IMAGES,
    "image_ref": IMAGES,
    "user_specified_image": IMAGES,
    "cgroup_parent": CGROUPS,
    "pod_cidr": ("", "x", "10.0.0.0/8", "10.0.0.0/8,fd00::/8", ",", "0.0.0.0/0", "10.0.0.1/33"),
    "runtime_handler": ("", "atoll", "nosuch", "\0", "x" * 300),
    "command": ("true", "sleep", "/bin/sh", "", "\0", "nosuch", "x" * 5000),
    "cmd": ("true", "/bin/true", "", "\0", "nosuch", "x" * 5000),
}
ID_FIELDS = ("id", "container_id", "pod_sandbox_id", "target_id")
NUMBERS = (0, 1, 2, 10, 1000, 1 << 20, -1, -2, (1 << 31) - 1, -(1 << 31), (1 << 63) - 1, -(1 << 63))
RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}
KEYS = (*ODD, "io.atoll.network/none", "kernel.shm_rmid_forced", "net.no.such", "memory.max", "pids.max", "k" * 300)


def texts(name: str) -> st.SearchStrategy[str]:
    """What to write into the text field `name`."""
    if name in TEXTS:
        return st.sampled_from(TEXTS[name])
    if name in ID_FIELDS:
        return st.sampled_from((*IDS, *IDS, *ODD, *LONG))
    return st.sampled_from((*ODD, *LONG, *IDS[:2])) | st.text(max_size=8)


def numbers(kind: int) -> st.SearchStrategy[int]:
    low, high = RANGES[kind]
    return st.sampled_from([number for number in NUMBERS if low <= number <= high]) | st.integers(low, high)


def scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """A value of the field, which is no message; an enum's may be one that nobody knows."""
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return st.binary(max_size=16) if field.type == FieldDescriptor.TYPE_BYTES else texts(field.name)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        assert field.enum_type is not None
        return st.sampled_from([*field.enum_type.values_by_number, 77, -1])
    if kind in RANGES:
        return numbers(kind)
    return st.floats(width=32)


def set_field(draw: Draw, message: Message, field: FieldDescriptor, depth: int) -> None:
    """Put something into one field, whatever is there."""
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        entries = getattr(message, field.name)
        key, value = kind.fields_by_name["key"], kind.fields_by_name["value"]
        for _ in range(draw(st.integers(0, 2))):
            name = draw(st.sampled_from(KEYS)) if key.cpp_type == FieldDescriptor.CPPTYPE_STRING else draw(scalar(key))
            if value.message_type is not None:
                fill_fields(draw, entries[name], depth - 1)
            else:
                entries[name] = draw(scalar(value))
    elif field.is_repeated:
        values = getattr(message, field.name)
        for _ in range(draw(st.sampled_from((0, 1, 1, 2, 3)))):
            if kind is not None:
                fill_fields(draw, values.add(), depth - 1)
            else:
                values.append(draw(scalar(field)))
    elif kind is not None:
        inner = getattr(message, field.name)
        inner.SetInParent()
        fill_fields(draw, inner, depth - 1)
    else:
        setattr(message, field.name, draw(scalar(field)))


def fill_fields(draw: Draw, message: Message, depth: int) -> None:
    """Put something into some of the fields."""
    if depth <= 0 or not message.DESCRIPTOR.fields:
        return
    for field in draw(st.lists(st.sampled_from(list(message.DESCRIPTOR.fields)), max_size=4, unique_by=id)):
        set_field(draw, message, field, depth)


@st.composite
def random_message(draw: Draw, kind: Descriptor) -> Message:
    """Anything that the message can hold."""
    message = GetMessageClass(kind)()
    fill_fields(draw, message, MAX_DEPTH)
    return message


@st.composite
def mutated(draw: Draw, valid: Message) -> Message:
    """`valid`, changed in one to three places at any depth."""
    message = type(valid)()
    message.CopyFrom(valid)
    for _ in range(draw(st.integers(1, 3))):
        target, depth = message, MAX_DEPTH
        while depth > 1:
            inner = [field for field, _ in target.ListFields() if _is_single_message(field)]
            if not inner or draw(st.integers(0, 2)) == 0:
                break
            target, depth = getattr(target, draw(st.sampled_from(inner)).name), depth - 1
        if fields := list(target.DESCRIPTOR.fields):
            field = draw(st.sampled_from(fields))
            if draw(st.booleans()):
                target.ClearField(field.name)
            set_field(draw, target, field, depth)
    return message


def _is_single_message(field: FieldDescriptor) -> bool:
    return field.message_type is not None and not field.is_repeated


def fill(message: Message, words: Mapping[str, str]) -> None:
    """Replace the words in every text of the message by what they stand for."""
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            continue
        if field.message_type is not None:
            for inner in value if field.is_repeated else (value,):
                fill(inner, words)
        elif field.type == FieldDescriptor.TYPE_STRING:
            if field.is_repeated:
                changed = [_filled(text, words) for text in value]
                del value[:]
                value.extend(changed)
            else:
                setattr(message, field.name, _filled(value, words))


def _filled(text: str, words: Mapping[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(word, value)
    return text
