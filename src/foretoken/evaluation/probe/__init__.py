"""The probe: what a mixer can learn in seconds, what its steps and its training cost, measured the same way for all."""

from foretoken.evaluation.probe.page import drawn, fill
from foretoken.evaluation.probe.run import SEEDS, measure_costs, probe, probed, read_record, train
from foretoken.evaluation.probe.tasks import TASKS, Problem, Task
