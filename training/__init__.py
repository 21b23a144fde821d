"""On what the network is trained, and how well: data sets, loop, evaluation."""
