"""Plain data and contracts; imports torch and numpy only."""

from foretoken.core.batch import Batch, Decision, Loss, Step, masked_mean
from foretoken.core.card import Card
from foretoken.core.config import Config, configures
from foretoken.core.method import Condition, Context, Method, Objective, Policy, Source
from foretoken.core.spec import Spec, Window
from foretoken.core.state import State
from foretoken.core.store import EpisodeStore, Statistics
