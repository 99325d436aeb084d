"""What an OCI runtime said when it failed, turned into one of our errors with one clear line.

Runtimes report in prose. With `--log-format json` each line is an object with `level` and `msg`; what is
written before the log is open (a bad option, a crash) is plain text. The tables hold the words of runc
1.1-1.3 and crun 1.8-1.21.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec

from atoll import errors
from atoll.unreadable import UNREADABLE

MESSAGE_LIMIT = 1000


class RuntimeFailed(errors.Unknown):
    """The OCI runtime failed; `operation` is its verb, `container` the id it worked on."""

    def __init__(self, message: str, *, operation: str, container: str) -> None:
        super().__init__(message)
        self.operation = operation
        self.container = container


class StartFailed(RuntimeFailed):
    """The container's own command cannot be executed: not there, not executable, no such folder.

    The fault is the request's or the image's; the host and the runtime are well.
    """


@dataclass(frozen=True, slots=True)
class _Rule:
    pattern: re.Pattern[str]
    kind: type[errors.AtollError]
    operations: frozenset[str] = frozenset()
    clearer: str = ""


def _rule(pattern: str, kind: type[errors.AtollError], *operations: str, clearer: str = "") -> _Rule:
    return _Rule(re.compile(pattern, re.IGNORECASE), kind, frozenset(operations), clearer)


_ABSENT = "container does not exist"
_STARTED = "the container was started before"
_FINISHED = "the container's process has ended"

_RULES = (
    _rule(
        r"cpuset\.(?:cpus|mems)\b.*: (?:invalid argument|numerical result out of range|permission denied)",
        errors.InvalidArgument,
        *("create", "restore"),
    ),
    # A mount or device whose place in the container cannot be one: a file where a folder must be, /proc, /sys.
    _rule(
        r"(?:mount|mkdir|mknod|open|error mounting|error creating device nodes)\b.*"
        r": (?:not a directory|is a directory|operation not permitted|read-only file system"
        r"|too many levels of symbolic links)$"
        r"|(?:mkdir|mknod) \S*/(?:proc|sys)/.*: (?:no such file or directory|permission denied)$"
        r"|error mounting .* cannot be mounted because|is inside /proc$|must be on top of /proc",
        errors.InvalidArgument,
        *("create", "restore"),
    ),
    _rule(r"(?:failed open\(\)ing|stat) /dev/null: no such file", errors.InvalidArgument, "create"),
    _rule(r"container(?: with given id| `[^`]*`)? already exists|id already in use", errors.AlreadyExists),
    _rule(r"container \S* ?does not exist", errors.NotFound),
    _rule(r"(?:error opening file|open) `[^`]*/status`: no such file", errors.NotFound, clearer=_ABSENT),
    _rule(r"cannot open directory '[^']*': no such file", errors.NotFound, clearer=_ABSENT),
    _rule(r"process already finished|no such process|container (?:\S+ )?(?:is )?not running", errors.NotFound, "kill"),
    _rule(r"not in `created` or `running` state", errors.NotFound, "kill", clearer=_FINISHED),
    _rule(r"container (?:\S+ )?(?:is )?not running|container not paused|is not paused", errors.FailedPrecondition),
    _rule(r"cannot start a(?:n already running)? container", errors.FailedPrecondition, "start"),
    _rule(r"exec\.fifo`?: no such file", errors.FailedPrecondition, "start", clearer=_STARTED),
    _rule(r"cannot exec (?:in )?a|container `[^`]*` is paused", errors.FailedPrecondition, "exec"),
    # What crun says where the container ends under it.
    _rule(r"\bfail startup|setns `\w+`: bad file descriptor", errors.FailedPrecondition, "exec", clearer=_FINISHED),
    _rule(r"setns\(pid=\d+, \w+\): no such process", errors.FailedPrecondition, "exec", clearer=_FINISHED),
    _rule(r"is not in `created` or `stopped` state|that is not stopped", errors.FailedPrecondition, "delete"),
    _rule(r"cannot (?:pause|resume) |container is (?:already )?paused", errors.FailedPrecondition),
    _rule(r"memory limit (?:could be )?too low", errors.InvalidArgument),
    _rule(r"device or resource busy|unable to set memory limit", errors.FailedPrecondition, "update"),
    _rule(r": (?:invalid argument|numerical result out of range)", errors.InvalidArgument, "update"),
)

_COMMAND_AT_FAULT = re.compile(
    r"exec: \"|executable file |exec user process|exec format error|chdir |cannot find executable|open executable"
    r"|(?:^|: )exec[cv]?\w* ?[`']|cannot exec `",
    re.IGNORECASE,
)
_NOISE = re.compile(
    r"^(?:(?:runc (?:create|run|exec) failed|exec failed|unable to start container process"
    r"|container_linux\.go:\d+|starting container process caused|error during container init): )+"
)
_STARTS_A_COMMAND = frozenset({"create", "start", "exec", "restore"})


_NOT_THERE = re.compile(r"executable file .*not found|no such file or directory|cannot find executable", re.IGNORECASE)
_CHDIR = re.compile(r"\bchdir\b", re.IGNORECASE)
_WAYS_OUT = {
    "permission denied": "look at its mode, at the folders above it and at the user",
    "operation not permitted": "look at its mode, at the folders above it and at the user",
    "exec format error": "it must be a program for this machine, or a script that begins with #!",
    "is a directory": "name a program in it",
    "not a directory": "what stands before the last / must be a folder",
}


class _LogLine(msgspec.Struct):
    level: str = ""
    msg: str = ""


_decoder = msgspec.json.Decoder(_LogLine)


def last_error(log: bytes) -> str:
    """The last error of a runtime's log, else its last line that says anything; empty where it said nothing.

    `log` is bytes as read, cut anywhere, text and JSON lines mixed.
    """
    plain = ""
    for raw in reversed(log.splitlines()):
        line = raw.strip()
        if not line:
            continue
        try:
            entry = _decoder.decode(line)
        except UNREADABLE:
            plain = plain or line.decode("utf-8", "replace")
            continue
        if entry.level in ("error", "fatal", "panic") and entry.msg:
            return entry.msg
    return plain


def one_line(text: str) -> str:
    """`text` on one printable line of at most `MESSAGE_LIMIT` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= MESSAGE_LIMIT else line[: MESSAGE_LIMIT - 3] + "..."


def translate(runtime: str, operation: str, container: str, returncode: int, log: bytes) -> errors.AtollError:
    """The error for a runtime's call that ended with `returncode` after writing `log`."""
    said = _NOISE.sub("", one_line(last_error(log)))
    if not said:
        said = f"ended by signal {-returncode}" if returncode < 0 else f"exit code {returncode}, without a word"
    subject = " ".join(filter(None, (runtime, operation, container)))
    for rule in _RULES:
        if (not rule.operations or operation in rule.operations) and rule.pattern.search(said):
            return rule.kind(f"{subject}: {rule.clearer or said}")
    message = f"{subject}: {said}"
    if operation in _STARTS_A_COMMAND and _COMMAND_AT_FAULT.search(said):
        return StartFailed(message, operation=operation, container=container)
    return RuntimeFailed(message, operation=operation, container=container)


def explain_command(error: errors.AtollError, command: str, cwd: str, where: str) -> errors.AtollError:
    """A clear error where `error` says that a process could not be run for its own command or folder, else `error`.

    It is read from prose, because that is all that a shim hands on of what its runtime said. `where` says what the
    command was looked for in.
    """
    said = error.message
    is_folder = f": mkdir {cwd}: " in said  # runc makes it where it is not there
    if not (is_folder and isinstance(error, errors.InvalidArgument)) and not (
        isinstance(error, errors.Unknown) and (is_folder or _COMMAND_AT_FAULT.search(said))
    ):
        return error
    if is_folder or _CHDIR.search(said):
        return errors.NotFound(f"working folder {cwd!r}: cannot be entered in {where}; name a folder that is there")
    if _NOT_THERE.search(said):
        return errors.NotFound(
            f"command {command!r}: is not in {where}; name a program that is, by its path or as PATH finds it "
            "(a script needs its interpreter too)"
        )
    reason = next((one for one in _WAYS_OUT if one in said.lower()), "")
    if not reason:
        return error
    return errors.FailedPrecondition(
        f"command {command!r}: cannot be executed in {where}: {reason}; {_WAYS_OUT[reason]}"
    )
