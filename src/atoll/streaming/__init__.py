"""The server behind Exec, Attach and PortForward of the CRI: HTTP/1.1 upgrades to SPDY/3.1 and WebSocket.

    tokens      URLs that work once, for a minute
    server      the listener: limits, TLS, the way of a request to its session
    handshake   what a request asks for, and its refusal in the words of the field
    wire        one connection: bytes to and fro, back-pressure, idleness
    spdy_codec  SPDY/3.1 frames, without I/O          spdy       sessions and streams of them over a carrier
    channels    the numbered channels of a WebSocket  tunnel     a carrier for SPDY inside a WebSocket
    flow        what came in and waits for its reader, bounded
    command     exec and attach: streams by name, versions 1 to 5, how it ended
    forward     port forward: pairs of data and error streams
    status      the end of a command as metav1.Status

What a session does with its streams is not known here: `command.Handler` and `forward.Dial` are given to `Server`.
"""
