"""Suite -> graph of stages -> jobs -> report. Nothing here imports torch at import."""
