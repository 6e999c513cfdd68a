"""Reinforcement learning on our own engine: episodes, their rewards, and what the trainer makes of them."""
