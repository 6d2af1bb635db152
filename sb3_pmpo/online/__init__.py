"""The algorithms on Stable-Baselines3: what collects, stores, logs and saves around the learner."""
