"""What skopeo says, as our errors. The texts are skopeo 1.9's and 1.18's own."""

from __future__ import annotations

import pytest

from atoll import errors
from atoll.image.reference import Reference
from atoll.image.registry_errors import complaint, translate

FRAME = 'time="2026-01-02T03:04:05Z" level=fatal msg="{}"\n'
SAID = {
    'Error parsing image name \\"docker://[::1]/x:latest\\": invalid reference format': errors.InvalidArgument,
    "Error reading manifest v9 in r:5000/a: manifest unknown: manifest unknown": errors.NotFound,
    "reading manifest v1 in r:5000/a: name unknown: repository name not known to registry": errors.NotFound,
    'Get \\"https://r:5000/v2/\\": http: server gave HTTP response to HTTPS client': errors.Unavailable,
    'Get \\"https://r:5000/v2/\\": x509: certificate signed by unknown authority': errors.Unavailable,
    'Get \\"http://r:5000/v2/\\": dial tcp 127.0.0.1:5000: connect: connection refused': errors.Unavailable,
    'Get \\"https://r/v2/\\": dial tcp: lookup r on 1.1.1.1:53: no such host': errors.Unavailable,
    "reading manifest latest in docker.io/library/a: toomanyrequests: your pull rate limit": errors.Unavailable,
    "unable to retrieve auth token: invalid username/password: unauthorized: incorrect": errors.Unauthenticated,
    "Error reading manifest v1 in r:5000/a: unauthorized: authentication required": errors.Unauthenticated,
    "reading manifest latest in docker.io/a/b: requested access to the resource is denied": errors.PermissionDenied,
    "errors:\\ndenied: requested access is denied\\nunauthorized: authentication required": errors.PermissionDenied,
    "corrupted blob, expecting sha256:404aa500, got sha256:00": errors.DataLoss,
    "the sky is falling on sha256:4045004013": errors.Unknown,
}


@pytest.mark.parametrize("text", SAID)
@pytest.mark.parametrize("has_auth", [False, True])
def test_complaints_become_one_line_errors(text: str, has_auth: bool) -> None:
    stderr = 'time="x" level=warning msg="never mind"\n' + FRAME.format(text)
    error = translate(complaint(stderr), Reference.parse("r:5000/a:v1"), has_auth=has_auth)
    assert type(error) is SAID[text]
    assert str(error).startswith("r:5000/a:v1: ")
    assert "\n" not in str(error)
    assert "level=" not in str(error)


def test_a_program_without_words() -> None:
    assert "without a word" in str(translate(complaint(""), Reference.parse("a"), has_auth=False))
