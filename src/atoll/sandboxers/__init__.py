"""The controllers that come with Atoll.

shim        the sandbox is what the shim's Sandbox service makes of it; the default
podsandbox  the sandbox is a pause container, run through the Task service of any shim
"""
