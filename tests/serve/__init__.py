"""Tests of `tailor serve`."""
