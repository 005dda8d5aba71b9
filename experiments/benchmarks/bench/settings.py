"""Settings that every trainer shares."""

LEARNING_RATE = 1e-5
B1, B2, EPSILON = 0.9, 0.95, 1e-8
WEIGHT_DECAY = 0.0
MAX_GRAD_NORM = 1.0
DPO_BETA = 0.1
KL_WEIGHT = 0.04  # GRPO's pull toward the reference
