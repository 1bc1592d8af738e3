"""Retort's federated methods under Flower's SuperLink and SuperNodes."""
