"""Trainer, learning-rate schedules, checkpoints and full-sequence training."""
