"""ttrpc, the small RPC protocol between containerd, its shims and their event sink.

    address     how a peer is named, reached and bound; who the peer is (SO_PEERCRED)
    codec       frames and envelopes: bytes <-> values, no I/O
    connection  the state machine of each role: which stream is open, what may come next, no I/O
    inbox       messages of one stream that nobody has read yet
    transport   a machine on an asyncio transport: back-pressure both ways
    stream      the client's end of a connection and its streaming calls
    client      `Client`: connect, calls, streams
    service     `Method`, `CallContext`: what a served service is made of
    calls       the served side of one connection: its calls, their deadlines and answers
    server      `Server`: listening sockets, registered services, graceful shutdown

A stream is one call (unary or streaming) on a connection; its number is odd and never used twice.
"""
