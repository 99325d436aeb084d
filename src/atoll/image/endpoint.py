"""Whether a registry speaks TLS.

skopeo has one switch for two things: `insecure` lets it skip the check of a certificate, and lets it speak plain HTTP
where HTTPS failed. An operator who allows one of them has not allowed the other, so the registry is asked first, with
a TLS handshake and nothing more, and skopeo gets the switch only where it leads to what was allowed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import urllib.parse
import urllib.request

from atoll import errors

HTTPS_PORT = 443
ANSWER_WITHIN_S = 5.0
MAX_REPLY_BYTES = 16 << 10


async def speaks_tls(domain: str) -> bool | None:
    """Whether a TLS server answers at `domain` (`host[:port]`); None where a proxy is in the way that cannot be asked.

    False also where nobody answers within `ANSWER_WITHIN_S`. No certificate is checked.
    """
    host, port = _address(domain)
    proxy = _proxy_for(domain)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        async with asyncio.timeout(ANSWER_WITHIN_S), contextlib.AsyncExitStack() as stack:
            _, writer = await _connect(proxy, host, port)
            stack.callback(writer.transport.abort)
            await writer.start_tls(context, server_hostname=host)
    except errors.Unavailable:
        return None
    except ssl.SSLError as error:
        # An alert is TLS: the server has something against our handshake, and says so as TLS has it.
        return "ALERT" in (error.reason or "")
    except (OSError, EOFError):
        return False
    return True


async def _connect(proxy: str, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if not proxy:
        return await asyncio.open_connection(host, port)
    parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if parts.scheme != "http" or not parts.hostname or parts.username:
        raise errors.Unavailable(f"proxy {parts.hostname}: is none that can be asked")
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80, limit=MAX_REPLY_BYTES)
    try:
        at = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        writer.write(f"CONNECT {at} HTTP/1.1\r\nHost: {at}\r\n\r\n".encode())
        reply = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        reply = b""
    except BaseException:
        writer.transport.abort()
        raise
    if reply.split(b" ", 2)[1:2] != [b"200"]:
        writer.transport.abort()
        raise ConnectionRefusedError(f"proxy {parts.hostname}: refuses a connection to {host}")
    return reader, writer


def _proxy_for(domain: str) -> str:
    if urllib.request.proxy_bypass(domain):
        return ""
    host, _ = _address(domain)
    # Go's net/http, which skopeo is made with, asks no proxy for the machine itself.
    if host == "localhost" or host.startswith("127.") or host == "::1":
        return ""
    return urllib.request.getproxies().get("https", "")


def _address(domain: str) -> tuple[str, int]:
    parts = urllib.parse.urlsplit(f"//{domain}")
    return parts.hostname or domain, parts.port or HTTPS_PORT
