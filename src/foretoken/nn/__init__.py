"""Networks that know nothing of reinforcement learning."""
