"""The CRI face: validates and translates, holds no state.

runtime   runtime.v1.RuntimeService        images   runtime.v1.ImageService
views     from what the engine holds to what CRI clients read
"""
