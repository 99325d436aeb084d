"""Who a container runs as: names and ids of the request and the image, looked up in the image's own files.

Source: passwd(5), group(5); the image specification on `config.User`; the CRI on run_as_user,
run_as_username, run_as_group and supplemental groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from atoll import errors
from atoll.oci import spec
from atoll.oci.config import LinuxContainerSecurityContext, SupplementalGroupsPolicy
from atoll.oci.rootfs import RootfsView

ID_LIMIT = (1 << 31) - 1
ACCOUNT_FILE_LIMIT_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Account:
    """One line of /etc/passwd."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Group:
    """One line of /etc/group."""

    name: str
    gid: int
    members: tuple[str, ...]


def parse_passwd(content: bytes) -> Iterator[Account]:
    """The accounts of /etc/passwd; lines that are none are skipped, as the C library does."""
    for fields in _lines(content):
        if (
            len(fields) >= 4
            and fields[0]
            and (uid := _id(fields[2])) is not None
            and (gid := _id(fields[3])) is not None
        ):
            yield Account(fields[0], uid, gid)


def parse_group(content: bytes) -> Iterator[Group]:
    """The groups of /etc/group; lines that are none are skipped."""
    for fields in _lines(content):
        if len(fields) >= 4 and fields[0] and (gid := _id(fields[2])) is not None:
            yield Group(fields[0], gid, tuple(filter(None, fields[3].split(","))))


def _lines(content: bytes) -> Iterator[list[str]]:
    for line in content.decode("utf-8", "surrogateescape").split("\n"):
        if line and not line.startswith("#"):
            yield line.strip().split(":")


def _id(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and int(text[:11]) <= ID_LIMIT else None


def resolve(security: LinuxContainerSecurityContext, image_user: str, rootfs: RootfsView) -> spec.User:
    """The user of a container's first process.

    The request's user comes before the image's. A user without a group gets the account's group, or 0
    for a number without an account. The primary group is always among the additional ones. Raises
    `InvalidArgument` for names the image does not know, for ids out of range, and for a group without a user.
    """
    name, group = _wanted(security, image_user)
    accounts = list(parse_passwd(_file(rootfs, "/etc/passwd")))
    account = _find_account(accounts, name)
    uid = account.uid if account is not None else _number(name, "user")
    groups = list(parse_group(_file(rootfs, "/etc/group")))
    gid = _find_gid(groups, group) if group else account.gid if account is not None else 0
    additional = {gid, *_supplemental(security.supplemental_groups)}
    if security.supplemental_groups_policy is SupplementalGroupsPolicy.MERGE and account is not None:
        additional.update(entry.gid for entry in groups if account.name in entry.members)
    return spec.User(uid=uid, gid=gid, additional_gids=(gid, *sorted(additional - {gid})))


def require_ids(security: LinuxContainerSecurityContext) -> None:
    """Raise `InvalidArgument` for ids out of range, and for a group without a user; no image is needed for that."""
    _wanted(security, "")
    _supplemental(security.supplemental_groups)
    for what, asked in (("run_as_user", security.run_as_user), ("run_as_group", security.run_as_group)):
        if asked is not None:
            _number(str(asked.value), what)


def _wanted(security: LinuxContainerSecurityContext, image_user: str) -> tuple[str, str]:
    user, _, group = image_user.partition(":")
    if security.run_as_user is not None:
        user, group = str(security.run_as_user.value), ""
    elif security.run_as_username:
        user, group = security.run_as_username, ""
    if security.run_as_group is not None:
        if security.run_as_user is None and not security.run_as_username:
            raise errors.InvalidArgument("run_as_group: needs run_as_user or run_as_username")
        group = str(security.run_as_group.value)
    return user or "0", group


def _find_account(accounts: list[Account], name: str) -> Account | None:
    # A name that is a number is a number, unless an account is called so.
    for account in accounts:
        if account.name == name:
            return account
    number = _id(name)
    return next((account for account in accounts if account.uid == number), None)


def _find_gid(groups: list[Group], name: str) -> int:
    for group in groups:
        if group.name == name:
            return group.gid
    return _number(name, "group")


def _number(text: str, what: str) -> int:
    number = _id(text)
    if number is not None:
        return number
    if text.lstrip("-").isdecimal():
        raise errors.InvalidArgument(f"{what} {text[:40]}: must be from 0 to {ID_LIMIT}")
    raise errors.InvalidArgument(f"{what} {text[:100]!r}: the image has no such {what}")


def _supplemental(groups: tuple[int, ...]) -> tuple[int, ...]:
    for gid in groups:
        if not 0 <= gid <= ID_LIMIT:
            raise errors.InvalidArgument(f"supplemental_groups: {gid} is not from 0 to {ID_LIMIT}")
    return groups


def _file(rootfs: RootfsView, path: str) -> bytes:
    try:
        return rootfs.read(path, limit_bytes=ACCOUNT_FILE_LIMIT_BYTES) or b""
    except OSError as error:
        raise errors.InvalidArgument(f"image: {path} cannot be read: {error.strerror}") from error
