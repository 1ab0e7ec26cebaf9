"""How methods are trained: the loop, where batches come from, the optimiser, checkpoints and metrics."""

from foretoken.training.checkpoint import Checkpoint, best, latest, load_weights, save_weights, verify
from foretoken.training.loop import Interrupted, Trained, Training, launch, train
from foretoken.training.optim import AdamW, Part
