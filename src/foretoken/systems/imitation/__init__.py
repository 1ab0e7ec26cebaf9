"""Policies learned by copying demonstrations."""
