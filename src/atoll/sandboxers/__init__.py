"""The controllers that come with Atoll.

shim        the sandbox is what the shim's Sandbox service makes of it; the default
podsandbox  the sandbox is a pause container, run through the Task service of any shim
held        what these two share: turns, the watch for the end, what is known without asking
update      an update by field names, checked before anything changes
info        what a record tells of itself in a verbose status
pause       what a pause container is: its record and its runtime spec
roots       root filesystems for pause containers, from the pause image
"""
