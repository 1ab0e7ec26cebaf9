"""The laws of every kind of part, for whoever writes a new one.

Each check raises AssertionError with the law that broke, by how much, and the sizes it broke at:

    from foretoken.testing import check_mixer
    check_mixer(MyMixerConfig(), width=12)
"""

from foretoken.testing.conditions import check_condition
from foretoken.testing.heads import check_head
from foretoken.testing.methods import check_method
from foretoken.testing.mixers import check_mixer
from foretoken.testing.stores import check_store
from foretoken.testing.systems import check_system
from foretoken.testing.tokenizers import check_tokenizer

__all__ = [
    "check_condition",
    "check_head",
    "check_method",
    "check_mixer",
    "check_store",
    "check_system",
    "check_tokenizer",
]
