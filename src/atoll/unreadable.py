"""What decoding a JSON text raises where that is none: not the decoder's own errors only."""

from __future__ import annotations

from typing import Final

import msgspec

UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""To catch around `msgspec.json.decode` of whatever others wrote: a wrong form or type, bytes that are no UTF-8 in a
text, and more nesting than the decoder goes into, also in a field that is passed over."""
