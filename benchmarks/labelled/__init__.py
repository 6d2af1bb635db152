"""Learning from labels, measured: demonstrations, a stand-in for Table 1, memory."""
