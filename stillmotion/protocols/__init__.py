"""Protocols of the video papers on stored features and scores (METHODS 3.5). No torch but where videos are read."""
