"""The `atoll` command.

    main       the entry: dispatch, exit codes, one-line errors
    commands   which commands there are, a row a module; typer
    options    what several commands take
    running, containers, manifests, control, images, daemon, ...   what each command takes
    run, attaching       a process in the foreground: streams, terminals, signals
    work, registry, ...  what the others do, a module a subject
    completing           names for the shell, from the live daemon
    show       tables for people, JSON for programs
    doctor     what this host has and lacks

Exit codes: 0; what the container or the exec ended with; 1 where `fsck` or `doctor` found something; 2 for
a command line that is wrong; 125 where Atoll failed, 126 and 127 where a command cannot be executed or found;
128 + n for a signal.
"""
