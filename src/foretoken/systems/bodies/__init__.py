"""Policies that read a body: parts, how they are joined, and what each of them senses and moves."""
