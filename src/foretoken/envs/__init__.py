"""Environments: made by id, described, played in slots, and collected from."""

from foretoken.envs.make import make
from foretoken.envs.slots import Job, Restored, Slots, Tick, follow, join_contexts, reset_seed
from foretoken.envs.spaces import check_same, to_space, to_spec
