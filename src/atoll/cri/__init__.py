"""The CRI face: validates and translates, holds no state.

runtime     runtime.v1.RuntimeService, put together from about, pods, containers, execs and stats
images      runtime.v1.ImageService
selection   pods and containers by the IDs and filters of requests
views       from what the engine holds to what CRI clients read
"""
