"""Overlay snapshots: the file systems that containers are made of.

    snapshot    a folder of files and, except for the lowest, a parent; named in `state.db`
    committed   immutable, named by its chain ID (`sha256:...`); what a layer was unpacked into
    active      writable, named by a key (a container ID); the top of one container's root
    view        read-only, named by a key; sees its parent and nothing of its own
    staged      a folder being filled; no record names it yet, so a crash leaves only a folder to sweep
    mount       what the shim passes to mount(2); this package never mounts

`mount` is the type that other packages share, `records` the schema and SQL, `disk` the folders,
`snapshotter` the rules.
"""
