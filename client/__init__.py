"""The client of the served model, over REST and gRPC: a library, a command line and the drawing of answers."""
