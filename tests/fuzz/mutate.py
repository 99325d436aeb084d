"""Inputs for hypothesis: any bytes, and what a target takes, changed, cut, doubled or nested too deep."""

from __future__ import annotations

from hypothesis import strategies as st

ODD = (b"", b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"[" * 5000, b'{"a":' * 5000, b"9" * 5000, b"-1", b"1e999", b"null",
       b"\n", b'"', b"\\u0000", b"\\ud800", b"../" * 20)  # fmt: skip
"""What has broken decoders: no text, half a surrogate, nesting, numbers out of range."""


@st.composite
def changed(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """A seed with some changes."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        size = draw(st.integers(0, 8))
        match draw(st.integers(0, 4)):
            case 0:
                data[at : at + size] = draw(st.binary(max_size=8))
            case 1:
                data[at : at + size] = draw(st.sampled_from(ODD))
            case 2:
                del data[at:]
            case 3:
                data += data[at:]
            case _:
                data[at:at] = data[at : at + 64]
    return bytes(data)


def inputs(seeds: tuple[bytes, ...]) -> st.SearchStrategy[bytes]:
    return st.one_of(changed(seeds), st.binary(max_size=200), st.sampled_from((*seeds, *ODD)))
