"""Fuzzing of everything that reads bytes which others wrote.

targets   each decoder with some of what it should take, and what it may raise
mutate    changed inputs, for hypothesis and for people without a fuzzer
run       `make fuzz`: coverage-guided, by atheris (libFuzzer), one target after another
"""
