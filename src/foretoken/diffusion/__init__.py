"""Noise schedules and samplers as plain objects that know nothing of actions."""
