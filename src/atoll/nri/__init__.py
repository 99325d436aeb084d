"""NRI, by which programs of the node watch pods and adjust containers: the runtime's side of `nri.pkg.api.v1alpha1`.

    mux        several connections over one socket: bytes <-> pieces, no I/O
    trunk      that socket on the loop, each of its connections a transport of `atoll.ttrpc`
    plugin     one connected plugin: registration, configuration, synchronisation, its calls
    plugins    all of them: the order of calls, who joins, who is let go
    installed  plugins that the daemon starts itself
    owners     which plugin set what, and who may not
    merge      the answers of several plugins to one request, as one
    limits     cgroup limits: protocol <-> runtime spec
    views      a runtime spec in the words of the protocol
    adjust     a merged adjustment, put into a runtime spec
    legacy     plugins of version 0.1: a program executed for each create and delete of a sandbox

Nothing here knows a pod: `engine.nri` does, and calls this.
"""
