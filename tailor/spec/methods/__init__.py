"""`method`: the training method, one section per method.

This module imports none of them, so that each can be imported by itself.
"""
