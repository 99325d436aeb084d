"""The controllers that come with Atoll.

shim        the sandbox is what the shim's Sandbox service makes of it; the default
podsandbox  the sandbox is a pause container, run through the Task service of any shim
pause       what a pause container is: its record, its runtime spec, its verbose status
roots       root filesystems for pause containers, from the pause image
"""
