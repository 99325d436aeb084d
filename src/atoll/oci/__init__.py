"""Containers as an OCI runtime sees them: their specs, and the program that makes them.

config        what pods and containers may ask for, in the words of the CRI
spec          the runtime spec as structs: Spec, Process, Mount, Linux, Resources, ...
builder       from the request, the image and the pod to a Spec; the modules beside it each decide one part
              (user, rootfs, capabilities, mounts, devices, resources, sysctls, security, seccomp, bpf)
apparmor      the default AppArmor profile, loaded into the kernel
runtime       OCIRuntime: create, start, exec, kill, delete, ... by the command line of runc, crun and their like
failures      what such a program says when it fails, as one of our errors; StartFailed is the container's own fault
features      what a runtime can do
detect        which runtime works on this host
"""
