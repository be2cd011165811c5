"""Fuzzing of every decoder: targets, and two ways of driving them (atheris here, hypothesis in tests/test_fuzz.py)."""
