"""What stands around the algorithms: settings, runs, the RL Zoo, plots, the command line."""
