"""Images: what containers are made from, fetched, checked, unpacked and kept.

    reference   a name for an image: registry, repository, tag and/or digest
    image       a config (its digest is the ID), a manifest, layers; named by any number of references
    content     blobs below <root>/content, each named by the SHA-256 of its bytes
    layer       a tar, perhaps compressed; its diff ID is the digest of the tar itself
    chain ID    names a layer together with all below it; the name of its snapshot
    pull        manifests and blobs through skopeo from a registry
    import      the same from an archive or a layout on the disk
    unpack      a layer into a staged snapshot, by a confined process
    built-in    `atoll/busybox` and `atoll/pause`, made from the host's static busybox

`store` is the door; `reference`, `model`, `config` are its words. What the confined process runs
(`tar`, `layer`, `confine`, `unpack`) imports next to nothing.
"""
